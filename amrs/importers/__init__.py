"""Importers: from raw logs to a session log in `folder/log`, one file each, picked by `data.name`."""

from collections.abc import Callable
from pathlib import Path

from amrs.config.data import DataConfig


def _platform(config: DataConfig, folder: Path) -> None:
    from amrs.importers.platform import importer

    importer(config, folder)


def _situnes(config: DataConfig, folder: Path) -> None:
    from amrs.importers.situnes import importer

    importer(config, folder)


def _table(config: DataConfig, folder: Path) -> None:
    from amrs.importers.table import importer

    importer(config, folder)


ADVICE = {
    "situnes": (
        "give the folder that holds Stage1, Stage2 and music_metadata as data.raw_dir; "
        "SiTunes (CHIIR 2024) is at https://github.com/JiayuLi-997/SiTunes_dataset"
    ),
    "table": "give the folder of your tables and their map.yaml as data.raw_dir (see examples/own_log)",
}
"""What to do where raw files are missing."""
IMPORTERS: dict[str, Callable[[DataConfig, Path], None]] = {
    "platform": _platform,
    "situnes": _situnes,
    "table": _table,
}
