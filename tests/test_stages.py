"""Every stage through train.py: what is made, reused, resumed, refused."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, TINY, train
from datasets import Dataset

STAGES = ("prepare", "world_model", "bc", "preferences", "dpo", "evaluate")
Done = tuple[Path, subprocess.CompletedProcess[str]]


def folders(runs: Path, stage: str) -> list[Path]:
    """Finished run folders of a stage, oldest first."""
    found = [path.parent for path in (runs / stage).glob("*/provenance.json")]
    return sorted(found, key=lambda path: (path / "provenance.json").stat().st_mtime)


def test_evaluate_from_nothing_makes_every_parent(evaluated: Done) -> None:
    runs, done = evaluated
    finished = [line.split(":")[0] for line in done.stderr.splitlines() if "finished in" in line]
    assert finished == ["prepare", "world_model", "labeller", "judge", "bc", "preferences", "dpo", "evaluate"]
    assert all(folders(runs, stage) for stage in STAGES)
    assert done.stdout.splitlines()[-1] == str(folders(runs, "evaluate")[0])


def test_report_holds_every_section_with_unique_finite_rows(evaluated: Done) -> None:
    report = json.loads((folders(evaluated[0], "evaluate")[0] / "report.json").read_text())
    rows = pd.DataFrame(report["rows"])
    sections = {"fidelity", "predicted", "predicted_labeller", "realised", "diversity", "off_policy"}
    assert sections == set(rows["section"])
    keys = ["section", "subject", "signal", "metric", "split", "group"]
    assert not rows.duplicated(keys).any() and rows["value"].notna().all()
    gains = rows[(rows["section"] == "realised") & (rows["metric"] == "gain") & (rows["group"] == "all")]
    guided = {"boltzmann", "soft_boltzmann", "best_of_n"}
    assert {"random", "popularity", "greedy", "dpo", "production"} | guided == set(gains["subject"])
    assert "production" in set(rows[rows["metric"] == "kl"]["subject"])


def test_no_user_id_is_in_report_or_metrics(evaluated: Done) -> None:
    runs = evaluated[0]
    log = folders(runs, "prepare")[0] / "log"
    from amrs.logs.schema import read_log

    users = set(read_log(log).sessions["user_id"][:])
    texts = [p.read_text() for name in ("report.*", "metrics.csv", "summary.json") for p in runs.rglob(name)]
    assert len(texts) >= 6
    assert not [user for user in users for text in texts if user in text]


def test_a_second_command_reuses_all_and_says_so(evaluated: Done) -> None:
    runs, first = evaluated
    script = "import sys, train; train.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", script, "stage=evaluate", *TINY, f"runs={runs}"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "running" not in again.stderr and again.stderr.count("reusing") == 8
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


def test_another_beta_trains_only_dpo(evaluated: Done) -> None:
    plan = train(
        "stage=dpo",
        *[a for a in TINY if "evaluate" not in a],
        f"runs={evaluated[0]}",
        "dpo.beta=2",
        "--dry-run",
    )
    states = dict(line.split()[:2] for line in plan.stdout.splitlines())
    assert states == {"prepare": "finished", "labeller": "finished", "bc": "finished",
                      "preferences": "finished", "dpo": "to"}  # fmt: skip


def test_checkpoints_hold_tensors_and_plain_values_only(evaluated: Done) -> None:
    found = list(evaluated[0].rglob("*.ckpt"))
    assert len(found) >= 10  # best and last of three world models, Copycat and DPO
    for path in found:
        torch.load(path, weights_only=True)


def test_config_of_a_run_folder_is_made_of_valid_arguments(evaluated: Done) -> None:
    from amrs.config import load

    found = yaml.safe_load((folders(evaluated[0], "dpo")[0] / "config.yaml").read_text())
    assert load([f"stage={found['stage']}", f"seed={found['seed']}"]).stage == "dpo"
    assert found["dpo"]["beta"] == 1.0


def test_pairs_come_from_the_labellers_users_only(evaluated: Done) -> None:
    runs = evaluated[0]
    from amrs.config.data import SplitConfig
    from amrs.data import SessionDataModule

    pairs = Dataset.load_from_disk(str(folders(runs, "preferences")[0] / "pairs"))
    data = SessionDataModule(folders(runs, "prepare")[0] / "log", SplitConfig(), 64, users="judge")
    judges = {data.flat.user_ids[u] for part in (0, 1) for u in data.users(part).tolist()}
    tests = {data.flat.user_ids[u] for u in range(len(data.flat.user_ids)) if data.part_U[u] == 2}
    assert len(pairs) > 0
    assert not set(pairs["user_id"]) & (judges | tests)
    assert min(pairs["du"]) > 0


def test_a_judge_that_labelled_is_refused(evaluated: Done) -> None:
    runs = evaluated[0]
    roles = {
        json.loads((f / "provenance.json").read_text())["role"]: f for f in folders(runs, "world_model")[:3]
    }
    for role in ("labeller", "world_model"):
        done = train("stage=evaluate", *TINY, f"runs={runs}", f"parents.judge={roles[role]}",
                     "dpo.beta=0.3", check=False)  # fmt: skip
        users = {"world_model": "all"}.get(role, role)
        assert done.returncode == 1 and f"trained with world_model.users={users}" in done.stderr
        assert "running" not in done.stderr, "told before anything is trained"


def test_a_pin_to_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = train(
        "stage=dpo", *[a for a in TINY if "evaluate" not in a], f"parents.bc={tmp_path}", check=False
    )
    assert done.returncode == 1 and "no finished run" in done.stderr


def test_a_mode_that_is_not_in_the_log_is_refused_before_any_training(evaluated: Done) -> None:
    runs = evaluated[0]
    before = {p.name for p in (runs / "world_model").iterdir()}
    done = train(
        "stage=evaluate", *TINY, f"runs={runs}", "seed=7", "utility.modes.comute.arousal=0.6", check=False
    )
    assert done.returncode == 1 and "comute" in done.stderr and "energize" in done.stderr
    assert {p.name for p in (runs / "world_model").iterdir() if p.is_dir()} <= before


def test_too_few_pairs_end_the_stage_in_words(evaluated: Done) -> None:
    runs = evaluated[0]
    arguments = [a for a in TINY if not a.startswith(("preferences", "evaluate", "dpo"))]
    done = train("stage=preferences", *arguments, f"runs={runs}", "preferences.min_pairs=100000", check=False)
    assert done.returncode == 1 and "too few to train on" in done.stderr
    there = {p for p in (runs / "preferences").iterdir() if p.is_dir()}
    assert there == set(folders(runs, "preferences")), "nothing half-written is left"


@pytest.mark.parametrize("stage", ["world_model", "bc", "dpo"])
def test_metrics_are_in_csv(evaluated: Done, stage: str) -> None:
    table = pd.read_csv(folders(evaluated[0], stage)[0] / "metrics.csv")
    assert table["train/loss"].notna().any() and table["val/loss"].notna().any()


def test_several_splits_are_reported_each_and_in_the_mean(evaluated: Done) -> None:
    runs = evaluated[0]
    done = train("stage=evaluate", *TINY, f"runs={runs}", "evaluate.splits=2", "trainer.max_steps=5",
                 "evaluate.chapters=[fidelity]")  # fmt: skip
    report = json.loads((Path(done.stdout.splitlines()[-1]) / "report.json").read_text())
    rows = pd.DataFrame(report["rows"])
    r2 = rows[(rows["subject"] == "ridge") & (rows["signal"] == "valence") & (rows["metric"] == "r2")]
    value = r2[r2["group"] == "all"].set_index("split")["value"]
    assert set(value.index) == {0, 1, "mean", "pooled"} and value[0] != value[1]
    assert value["mean"] == pytest.approx((value[0] + value[1]) / 2)


def test_wandb_offline_holds_the_names_of_the_csv(evaluated: Done) -> None:
    runs = evaluated[0]
    arguments = [
        a for a in TINY if not a.startswith(("log", "evaluate", "preferences", "dpo", "world_model"))
    ]
    done = train("stage=bc", *arguments, f"runs={runs}", "log=offline", "seed=7")
    folder = Path(done.stdout.splitlines()[-1])
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert pd.read_csv(folder / "metrics.csv")["val/loss"].notna().any()


def test_a_pinned_parent_is_used_and_its_fingerprint_recorded(evaluated: Done) -> None:
    runs = evaluated[0]
    clone = folders(runs, "bc")[0]
    small = [a for a in TINY if "evaluate" not in a]
    plan = train("stage=dpo", *small, f"runs={runs}", "bc.learning_rate=.5",
                 f"parents.bc={clone}", "--dry-run").stdout  # fmt: skip
    assert [line.split()[1] for line in plan.splitlines() if line.startswith("bc")] == ["pinned"]
    assert plan.splitlines()[-1].split()[1] == "finished"  # the same fingerprint as unpinned


def test_bad_raw_files_leave_nothing_behind(tmp_path: Path) -> None:
    done = train(
        "stage=prepare", "data=table", f"data.raw_dir={tmp_path}", f"runs={tmp_path / 'runs'}", check=False
    )
    assert done.returncode == 1 and "map.yaml" in done.stderr
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.is_dir() and p.name != "prepare"]


def test_too_few_users_for_a_judge_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    small = ["data=table", f"data.raw_dir={ROOT / 'examples' / 'own_log'}", "model=tiny", f"runs={tmp_path}"]
    done = train("stage=evaluate", *small, check=False)
    assert done.returncode == 1 and "no validation user is left for world_model.users=judge" in done.stderr
    assert "world_model: running" in done.stderr and "finished" not in done.stderr.partition("world_model")[2]


def test_modes_that_may_be_slips_of_the_pen_are_told() -> None:
    from amrs.config.groups import UtilityConfig
    from amrs.stages.prepare import doubtful_modes

    lines = list(doubtful_modes(["calm", "energise", "focus"], {"calm", "energise"}, UtilityConfig()))
    assert [line.split(":")[0][:40] for line in lines] == [
        "mode energise is new to the utility, so ", "mode focus is in the catalogue, but no s",
    ]  # fmt: skip
    assert "Did you mean energize?" in lines[0] and "utility.modes.energise.arousal=down" in lines[0]
    own = UtilityConfig(modes={"energise": {"arousal": "up"}, "calm": {"arousal": "down"}})
    assert list(doubtful_modes(["calm", "energise"], {"calm", "energise"}, own)) == []


def test_the_hidden_truth_cannot_be_opened_as_data(evaluated: Done) -> None:
    from amrs.config.data import SplitConfig
    from amrs.data import SessionDataModule
    from amrs.logs.schema import LogError

    prepared = folders(evaluated[0], "prepare")[0]
    assert (prepared / "truth").is_dir()
    with pytest.raises(LogError):
        SessionDataModule(prepared / "truth", SplitConfig(), 64)


def test_a_pin_from_another_split_is_refused(evaluated: Done) -> None:
    runs = evaluated[0]
    clone = folders(runs, "bc")[0]
    small = [a for a in TINY if "evaluate" not in a]
    pin = [f"parents.bc={clone}", "data.split.seed=99", "--dry-run"]
    done = train("stage=dpo", *small, f"runs={runs}", *pin, check=False)
    assert done.returncode == 1 and "user split" in done.stderr


def test_a_pin_from_another_log_is_refused_unless_its_log_is_taken_too(evaluated: Done) -> None:
    runs = evaluated[0]
    (clone, *_), (prepared, *_) = folders(runs, "bc"), folders(runs, "prepare")
    pin = [*[a for a in TINY if "evaluate" not in a], f"runs={runs}", f"parents.bc={clone}",
           "data.platform.seed=9", "--dry-run"]  # fmt: skip
    done = train("stage=dpo", *pin, check=False)
    assert done.returncode == 1 and f"trained on the log {prepared.name}" in done.stderr
    assert f"parents.prepare={prepared}" in done.stderr
    assert train("stage=dpo", *pin, f"parents.prepare={prepared}").stdout.count("pinned") == 2
    policy = f"preferences.policy={folders(runs, 'dpo')[0]}"
    small = [x for x in pin if not x.startswith(("parents.bc", "dpo.", "preferences."))]
    done = train("stage=preferences", *small, "preferences.sampler=on_policy", policy, check=False)
    assert done.returncode == 1 and f"{policy}: trained on the log" in done.stderr
