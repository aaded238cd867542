"""Tables over run folders: what is read of them, what may be removed, and what differs between reports."""

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from filelock import FileLock

from amrs import compare, run_table, runs
from amrs.report import Report, Row


def a_run(
    runs_dir: Path, stage: str, name: str, parents: dict[str, str] | None = None, **config: Any
) -> Path:
    """A finished run folder as `execution` leaves it."""
    folder = runs_dir / stage / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage": stage, "seed": 0, **config}))
    provenance = {"stage": stage, "role": stage, "fingerprint": name, "seconds": 1.5,
                  "fingerprints": parents or {}}  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def test_a_row_holds_settings_parents_and_the_last_value_of_each_metric(tmp_path: Path) -> None:
    folder = a_run(tmp_path, "dpo", "d1", {"bc": "b1"}, dpo={"beta": 0.5})
    (folder / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,1,3.0,\n0,2,2.0,\n0,2,,9.5\n")
    a_run(tmp_path, "bc", "b1")
    table = runs.load(tmp_path).set_index("stage")
    assert len(table) == 2
    dpo = table.loc["dpo"]
    assert (dpo["dpo.beta"], dpo["parent/bc"], dpo["train/loss"], dpo["val/loss"]) == (0.5, "b1", 2.0, 9.5)
    assert (dpo["state"], dpo["seconds"], dpo["run"]) == ("finished", 1.5, str(folder))
    assert pd.isna(table.loc["bc", "val/loss"]) and "epoch" not in table


def test_a_folder_without_runs_is_an_empty_table(tmp_path: Path) -> None:
    assert list(runs.load(tmp_path).columns) == ["run", "stage", "role", "state", "finished_at", "seconds"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none is no folder; give the one that holds the runs"):
        runs.load(tmp_path / "none")


def test_offline_wandb_runs_are_rows_too_but_not_twice(tmp_path: Path) -> None:
    done = a_run(tmp_path, "bc", "b1")
    for folder in (done, tmp_path / "bc" / "b2.partial"):
        folder.mkdir(exist_ok=True)
        script = (
            "import wandb; config = {'stage': 'bc', 'bc': {'patience': 7}};"
            "run = wandb.init(mode='offline', config=config); run.log({'val/loss': 2.5}); run.finish()"
        )
        environment = {**os.environ, "WANDB_SILENT": "true", "WANDB_DIR": str(folder)}
        subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True)
    (tmp_path / "bc" / "b3.partial").mkdir()
    table = runs.load(tmp_path).set_index("run")
    assert sorted(Path(run).name for run in table.index) == ["b1", "b2.partial", "b3.partial"]
    row = table.loc[str(tmp_path / "bc" / "b2.partial")]
    assert (row["state"], row["stage"], row["bc.patience"], row["val/loss"]) == ("partial", "bc", 7, 2.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation with its parents, a Copycat that nothing uses, and two unfinished runs, one under way."""
    a_run(tmp_path, "prepare", "p")
    a_run(tmp_path, "bc", "used", {"prepare": "p"})
    a_run(tmp_path, "bc", "idle", {"prepare": "p"})
    evaluation = a_run(tmp_path, "evaluate", "e", {"bc": "used"})
    (evaluation / "report.json").write_text("{}")
    for name in ("killed", "running"):
        (tmp_path / "bc" / f"{name}.partial").mkdir()
    return tmp_path


def test_what_no_result_stands_on_may_go_and_a_run_under_way_may_not(folder: Path) -> None:
    with FileLock(folder / "bc" / "running.lock"):
        listed = run_table.listed(folder)
    assert {run.folder.name for run in listed if run.why} == {"idle", "killed.partial"}
    assert {run.folder.name for run in listed if not run.why} == {"p", "used", "e", "running.partial"}


@pytest.mark.parametrize(("said", "left"), [("y", False), ("", True), ("n", True)])
def test_nothing_is_removed_without_a_yes(
    folder: Path, said: str, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", type("Tty", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: said)
    assert run_table.main([str(folder)]) == 0
    assert (folder / "bc" / "idle").exists() == left
    assert (folder / "bc" / "used").exists() and (folder / "evaluate" / "e").exists()


def test_a_pipe_is_never_asked_and_only_lists(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_table.main([str(folder)]) == 0
    assert "no finished result stands on it" in capsys.readouterr().out
    assert (folder / "bc" / "idle").exists()


def report(value: float, low: float, high: float, beta: float) -> Report:
    """One figure that differs, one that does not."""
    rows = [
        Row("predicted", "dpo", "valence", "gain", "mean", "all", value, low, high, 9, "scale points"),
        Row("predicted", "random", "valence", "gain", "mean", "all", 0.5, 0.4, 0.6, 9, "scale points"),
    ]
    return Report(rows, {"config": {"seed": 0, "dpo": {"beta": beta}, "runs": str(beta)}})


def test_only_what_differs_is_compared_and_a_star_means_intervals_apart() -> None:
    reports = [report(0.01, 0.0, 0.02, 1.0), report(0.05, 0.03, 0.07, 2.0), report(0.02, 0.01, 0.03, 1.0)]
    (line,) = compare.figures(reports)
    assert line.name == "Predicted by the judge, DPO, Valence, Gain"
    assert (line.difference(1), line.difference(2)) == ("+0.0400*", "+0.0100")
    assert compare.settings(reports) == [("dpo.beta", ["1.0", "2.0", "1.0"])]


def test_a_page_and_a_table_are_made_of_run_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("a", 0.01), ("b", 0.05)):
        report(value, value, value, value).save(tmp_path / name)
    page = tmp_path / "page.html"
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--page", str(page)]) == 0
    assert "+0.0400*" in capsys.readouterr().out
    text = page.read_text()
    assert "+0.0400*" in text and not re.search(r"(?:src|href)=\"(?!#|data:)", text)
    assert "DPO's gain, valence, with 95 % intervals. a: predicted by the judge +0.0100" in unescape(text)
    assert compare.main([str(tmp_path / "a"), str(tmp_path)]) == 1
    assert "holds no report.json" in capsys.readouterr().err


def test_a_row_too_wide_for_columns_stands_below_its_name() -> None:
    long = "a, b, c, " * 12
    lines = list(compare._lines(["settings", "run1", "run2"], [["dpo.beta", "1", "2"], ["key", "3", long]]))
    assert lines[:4] == ["settings  run1  run2", "dpo.beta  1     2", "key", "  run1  3"]
    assert lines[4].startswith("  run2  a, b") and lines[5].startswith("        ")
    assert max(map(len, lines)) <= compare.WIDTH


@pytest.mark.parametrize("program", ["-m amrs.compare {0}/a {0}/b", "-m amrs.runs {0}", "train.py --help"])
def test_a_reader_that_closes_early_is_no_error(program: str, tmp_path: Path) -> None:
    for name, value in (("a", 0.01), ("b", 0.05)):
        report(value, value, value, value).save(tmp_path / name)
    command = f"{sys.executable} {program.format(tmp_path)} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == ""
