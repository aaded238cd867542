"""Units of work: every process gets all results, the same for any number of them."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, train
from datasets import Dataset
from test_stages import Done
from tiny_logs import opened, policy, random_log, world_model

from amrs.cluster.shares import Work, alone, share
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TRAIN
from amrs.outcomes import choose_sessions, roll_out
from amrs.policies import NeuralPolicy
from amrs.report import load
from amrs.runs import read_json


def results(folder: Path, ranks: int, units: int, order: list[int]) -> tuple[list[list[int]], list[int]]:
    """What each process gets, and how many units each worked on."""
    found, worked = [], []
    for rank in order:
        done: list[int] = []

        def work(unit: int, done: list[int] = done) -> int:
            done.append(unit)
            return unit * unit

        found.append(share(folder, rank, ranks, units, work))
        worked.append(len(done))
    return found, worked


def test_every_process_has_all_results_and_each_unit_is_done_once(tmp_path: Path) -> None:
    for ranks in (1, 2, 4):
        found, worked = results(tmp_path / str(ranks), ranks, 7, list(range(ranks)))
        assert all(values == [n * n for n in range(7)] for values in found)
        assert sum(worked) == 7


def test_a_process_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    found, worked = results(tmp_path / "x", 4, 9, [2])
    assert found == [[n * n for n in range(9)]] and worked == [9]
    (tmp_path / "x" / "000003.pt").unlink()  # and a killed run goes on where it was
    assert results(tmp_path / "x", 2, 9, [0])[1] == [1]


def test_no_units_are_no_results(tmp_path: Path) -> None:
    assert share(tmp_path / "x", 0, 2, 0, lambda unit: unit) == []


@pytest.mark.parametrize("ranks", [2, 4])
def test_rollouts_are_the_same_for_any_number_of_processes(tmp_path: Path, ranks: int) -> None:
    data = opened(random_log(tmp_path / "log", users=30))
    policies = {
        "copycat": NeuralPolicy(policy(data), data, 4),
        "other": NeuralPolicy(policy(data, 1), data, 4),
    }
    listeners = ImaginedListeners(world_model(data, members=2), data, 4)
    sessions = choose_sessions(data, 20, 4, 0, TRAIN)

    def found(how: object) -> list[torch.Tensor]:
        rolled = roll_out(policies, listeners, data.rules(), sessions, batch=6, share=how)  # type: ignore[arg-type]
        return [x for one in rolled.values() for x in (one.track_BT, one.kl_BT, *one.expected.values())]

    def of_rank(rank: int) -> object:
        def how(name: str, units: int, work: Work) -> list[object]:
            return share(tmp_path / f"{ranks}" / name, rank, ranks, units, work)

        return how

    truth = found(alone)
    for rank in reversed(range(ranks)):
        for mine, expected in zip(found(of_rank(rank)), truth, strict=True):
            assert torch.equal(mine.nan_to_num(-9), expected.nan_to_num(-9))


def test_pairs_and_report_of_two_processes_are_those_of_one(evaluated: Done, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(evaluated[0], tmp_path / "runs"))
    evaluate = runs / "evaluate" / Path(evaluated[1].stdout.splitlines()[-1]).name
    made_by = read_json(evaluate / "provenance.json")["parents"]
    before = {"evaluate": evaluate, "preferences": runs / "preferences" / Path(made_by["preferences"]).name}
    pairs = Dataset.load_from_disk(str(before["preferences"] / "pairs")).to_dict()
    rows = load(before["evaluate"]).rows
    for folder in before.values():
        shutil.rmtree(folder)
    done = train("stage=evaluate", *TINY, "trainer.devices=2", "trainer.accelerator=cpu", f"runs={runs}")
    assert done.stderr.count("finished in") == 2  # training is not done again
    assert Dataset.load_from_disk(str(before["preferences"] / "pairs")).to_dict() == pairs
    assert load(before["evaluate"]).rows == rows
    assert not list(runs.glob("*/*/parts"))
