"""The hidden truth on disk: catalogue, listeners and sessions' starting states, as plain arrays (npz).

`world.npz` holds settings and catalogue; `shard-00000.npz`, ... the listeners and their sessions.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from amrs.config.platform import PlatformConfig
from amrs.platform.catalogue import Catalogue
from amrs.platform.listeners import Listeners
from amrs.platform.routine import Start
from amrs.platform.service import Shard
from amrs.platform.world import Platform, assemble

VERSION = 1
Rows = TypeVar("Rows", bound=NamedTuple)


class TruthError(ValueError):
    """A folder that holds no readable truth; the message says what to do."""


def save_world(folder: Path, config: PlatformConfig, catalogue: Catalogue) -> None:
    """Write settings and catalogue."""
    about = json.dumps({"version": VERSION, "config": asdict(config)})
    np.savez(folder / "world.npz", about=np.array(about), **_arrays("", catalogue))


def save_shard(folder: Path, number: int, shard: Shard) -> None:
    """Write a shard's listeners and the starting states of their sessions."""
    np.savez(
        folder / f"shard-{number:05d}.npz",
        user_S=shard.user_S.numpy(),
        **_arrays("listeners.", shard.listeners),
        **_arrays("starts.", shard.starts),
    )


def load_truth(folder: Path) -> Platform:
    """The world whose log lies next to `folder`, the `truth` folder of a prepare run.

    Raises TruthError where there is none, as with data that are not the platform's.
    """
    try:
        with np.load(folder / "world.npz") as file:
            about = json.loads(str(file["about"]))
            catalogue = _named(Catalogue, "", file)
        if about["version"] != VERSION:
            raise TruthError(
                f"{folder} has version {about['version']}, this program reads {VERSION}: "
                "run stage=prepare again"
            )
        parts = []
        for path in sorted(folder.glob("shard-*.npz")):
            with np.load(path) as file:
                user_S = torch.from_numpy(file["user_S"])
                parts.append((_named(Listeners, "listeners.", file), user_S, _named(Start, "starts.", file)))
    except (OSError, KeyError) as error:
        raise TruthError(
            f"{folder} holds no truth of a platform ({error}): only data=platform has one; "
            "run stage=prepare again if it is damaged"
        ) from error
    return assemble(PlatformConfig(**about["config"]), catalogue, parts)


def _arrays(prefix: str, rows: NamedTuple) -> dict[str, Any]:
    return {prefix + name: tensor.numpy() for name, tensor in rows._asdict().items()}


def _named(kind: type[Rows], prefix: str, file: "np.lib.npyio.NpzFile") -> Rows:
    return kind._make(torch.from_numpy(file[prefix + name]) for name in kind._fields)
