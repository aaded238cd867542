"""SiTunes files that are missing or damaged, and the words in which they are refused."""

import shutil
from pathlib import Path

import pytest
from situnes_raw import RAW, needs_situnes

from amrs.config.data import DataConfig
from amrs.importers import IMPORTERS
from amrs.logs.schema import LogError


def refusal(raw: Path | None, folder: Path) -> str:
    folder.mkdir()
    with pytest.raises(LogError) as error:
        IMPORTERS["situnes"](DataConfig(name="situnes", raw_dir=str(raw) if raw else None), folder)
    assert list(folder.iterdir()) == []  # nothing half-written
    return str(error.value)


def test_a_missing_raw_dir_says_what_to_give_and_where_the_data_are(tmp_path: Path) -> None:
    text = refusal(None, tmp_path / "run")
    assert "data.raw_dir is not given" in text and "SiTunes (CHIIR 2024) is at" in text


@needs_situnes
@pytest.mark.parametrize(
    "missing",
    [
        "Stage1/interactions.csv",
        "Stage2/interactions.csv",
        "Stage2/wrist.npy",
        "Stage2/env.json",
        "music_metadata/music_info.csv",
    ],
)
def test_a_missing_file_is_named_with_its_folder(tmp_path: Path, missing: str) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(RAW, raw)
    (raw / missing).unlink()
    text = refusal(raw, tmp_path / "run")
    assert f"{Path(missing).name} is missing in {(raw / missing).parent}; give the folder" in text


@needs_situnes
@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "Stage1/interactions.csv",
            "1,707,2,1625023059,4,92.13",
            "1,707,2,1625023059,9,92.13",
            "column rating, row 2: '9'; allowed: 1, 2, 3, 4 or 5",
        ),
        (
            "Stage1/interactions.csv",
            "1,707,2,1625023059",
            "1,707,2,soon",
            "column timestamp, row 2: 'soon'; allowed:",
        ),
        (
            "Stage1/interactions.csv",
            "1,707,2,",
            "1,4711,2,",
            "session_id stage1-01, item 2: '4711'; allowed: a track_id",
        ),
        (
            "Stage2/interactions.csv",
            "1,1,529,1625103746,1,0.35,",
            "1,1,529,1625103746,1,1.35,",
            "column emo_pre_valence, row 1: '1.35'; allowed: a number in [-1, 1], or empty",
        ),
        (
            "Stage2/interactions.csv",
            "emo_pre_valence",
            "mood",
            "no column emo_pre_valence; its columns are inter_id",
        ),
        (
            "Stage2/env.json",
            '"1":',
            '"x":',
            "do not fit the records of Stage2/interactions.csv (KeyError: '1')",
        ),
    ],
)
def test_a_damaged_file_is_refused_with_column_row_and_value(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(RAW, raw)
    text = (raw / file).read_text()
    assert old in text
    (raw / file).write_text(text.replace(old, new, 1))
    assert message in refusal(raw, tmp_path / "run")
