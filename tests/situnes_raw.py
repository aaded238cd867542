"""Where the tests find SiTunes, and its importer run on a folder."""

import os
from pathlib import Path

import pytest

from amrs.config.data import DataConfig
from amrs.importers import IMPORTERS
from amrs.logs.schema import SessionLog, read_log

GIVEN = os.environ.get("AMRS_SITUNES")
RAW = Path(GIVEN) if GIVEN else Path(__file__).parents[2] / "shared" / "data" / "situnes"
REASON = (
    f"no SiTunes in {RAW}: set AMRS_SITUNES to the folder of the raw files (the README says where they are)"
)
needs_situnes = pytest.mark.skipif(not (RAW / "Stage1" / "interactions.csv").is_file(), reason=REASON)


def run(raw: Path, folder: Path) -> SessionLog:
    IMPORTERS["situnes"](DataConfig(name="situnes", raw_dir=str(raw)), folder)
    return read_log(folder / "log")
