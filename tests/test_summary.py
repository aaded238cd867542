"""What prepare says of a log: aggregates by hand, at most six lines, for every data set."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import ROOT, train
from small_log import METADATA, catalogue, sessions
from test_table import EXAMPLE, edit_map, raw, run

from amrs.logs.schema import SIGNALS_ORDER, read_log, write_log
from amrs.logs.summary import COLUMNS, _known, _ranked, sessions_in_modes, summary

__all__ = ["raw"]  # the fixture


def test_a_small_log_in_lines(tmp_path: Path) -> None:
    write_log(tmp_path / "log", [sessions().slice(0, 2), sessions().slice(2)], catalogue(), METADATA, "test")
    log = read_log(tmp_path / "log")
    assert list(summary(log, listeners=2)) == [
        "listeners 2, sessions 3, plays 5, tracks in the catalogue 3, days 1 (2024-05-01 to 2024-05-01, UTC)",
        "engagement (scale 0 to 1) known for 60 % of plays, from 0.00 to 1.00",
        "rating (scale 0 to 1) known for 40 % of plays, from 0.00 to 1.00",
        "valence (scale 0 to 1) known before 67 % of sessions, from 0.10 to 1.00; "
        "after 67 % of sessions, from 0.00 to 0.30; after 20 % of plays, from 0.40 to 0.40",
        "sessions in modes: calm 1, focus 1, none 1",
    ]
    assert sessions_in_modes(log) == {"calm": 1, "focus": 1, None: 1}


def test_the_manual_shows_what_is_said_of_the_example(tmp_path: Path) -> None:
    said = [f"prepare: {line}" for line in summary(run(EXAMPLE, tmp_path), listeners=5)]
    assert "\n".join(said) in (ROOT / "docs" / "data.md").read_text()


def test_a_scale_that_is_too_wide_shows(raw: Path, tmp_path: Path) -> None:
    edit_map(raw, lambda m: m["sessions"]["columns"]["post_arousal"].update(scale=["0", "10"]))
    (line,) = [line for line in summary(run(raw, tmp_path / "run"), 5) if line.startswith("arousal")]
    assert line.endswith("after 90 % of sessions, from 0.10 to 0.70")


def test_every_signal_has_its_columns() -> None:
    assert tuple(COLUMNS) == SIGNALS_ORDER


@pytest.mark.parametrize(
    ("known", "share"), [(1, "under 1 %"), (999, "over 99 %"), (1000, "100 %"), (430, "43 %")]
)
def test_a_share_is_not_rounded_to_none_or_all(known: int, share: str) -> None:
    values = pa.chunked_array([[0.5] * known, pa.nulls(1000 - known, pa.float64())])
    assert _known(values, "after") == f"after {share} of sessions, from 0.50 to 0.50"


def test_of_many_modes_the_largest_are_named() -> None:
    modes: Counter[str | None] = Counter({f"m{k}": 20 - k for k in range(13)} | {None: 1})
    shown = list(_ranked(modes))
    assert shown[:2] == ["m0 20", "m1 19"] and shown[10:] == ["3 others 27", "none 1"]


@pytest.mark.parametrize(
    "settings",
    [
        ["data=table", f"data.raw_dir={ROOT / 'examples' / 'own_log'}"],
        ["data.platform.users=20", "data.platform.tracks=200"],
    ],
    ids=["table", "platform"],
)
def test_prepare_says_it_on_stderr_without_user_ids(tmp_path: Path, settings: list[str]) -> None:
    done = train("stage=prepare", *settings, f"runs={tmp_path}")
    said = [line for line in done.stderr.splitlines() if line.startswith("prepare: ")][1:-1]
    assert len(said) == 6 and said[0].startswith("prepare: listeners ")
    users = set(read_log(Path(done.stdout.split()[-1]) / "log").sessions["user_id"])
    assert f"listeners {len(users)}," in said[0]
    assert not [user for user in users if user in " ".join(said)]
