"""Importer of the synthetic platform: simulates the log, and keeps its hidden truth apart from it."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from amrs.config.data import DataConfig
from amrs.config.platform import PlatformConfig
from amrs.logs.schema import Metadata, write_log
from amrs.platform.catalogue import COHORTS, MODES, Catalogue, catalogue_table, draw_catalogue
from amrs.platform.truth import save_shard, save_world
from amrs.platform.world import draw_shards


def metadata(config: PlatformConfig) -> Metadata:
    """What the platform's log says about itself."""
    return Metadata(
        name="platform",
        modes=MODES,
        cohorts=COHORTS,
        context=(),
        signals={"engagement": "bounded", "rating": "binary", "valence": "bounded", "arousal": "bounded"},
        repeats=False,
        embedding=f"synthetic, {config.dimension} standardised channels with clusters of genres and artists",
    )


def importer(config: DataConfig, folder: Path) -> None:
    """Simulate the service; the log goes to `folder/log`, the truth to `folder/truth`."""
    world = config.platform
    catalogue = draw_catalogue(world)
    truth = folder / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    save_world(truth, world, catalogue)
    write_log(
        folder / "log",
        _shards(world, catalogue, truth),
        catalogue_table(catalogue),
        metadata(world),
        "the platform's simulation",
    )


def _shards(config: PlatformConfig, catalogue: Catalogue, truth: Path) -> Iterator[pa.Table]:
    """Tables of sessions, one shard in memory at a time; each shard's truth is written on the way."""
    shards = draw_shards(config, catalogue, config.seed, config.users, "user-")
    for number, (shard, table) in enumerate(shards):
        save_shard(truth, number, shard)
        yield table
