"""Small worlds of the platform, shared by its tests."""

from collections.abc import Iterator
from functools import cache

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform import Platform, draw_platform

SMALL = {"users": 60, "tracks": 500, "artists": 60}


@cache
def world(**settings: object) -> tuple[Platform, pa.Table]:
    return draw_platform(PlatformConfig(**{**SMALL, **settings}))


def tracks(log: pa.Table, longest: int = 20) -> Tensor:
    """Logged tracks as rows of the catalogue, (S, T), -1 behind the last."""
    lists = [[int(name[6:]) for name in row] for row in log["track_id"].to_pylist()]
    return torch.tensor([row + [-1] * (longest - len(row)) for row in lists])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors are small here: on several threads they would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
