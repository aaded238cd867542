"""Figures from stored predictions: what is scored, and what pooling of several parts must and must not do."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_stages import Done, folders

from amrs.fidelity.predictions import fit_rows, labels, pooled, save
from amrs.report import Row


def frame(
    value: list[float], user: list[int], log: str = "one", signal: str = "valence", **predicted: object
):
    count = len(value)
    return pd.DataFrame({
        "signal": signal, "log": log, "user": user, "row": range(count), "step": 0, "mode": "", "cohort": "",
        "value": value, "train_mean": 0.5, **predicted,
    })  # fmt: skip


def figure(rows: list[Row], **keys: str) -> Row:
    (found,) = [row for row in rows if all(getattr(row, key) == value for key, value in keys.items())]
    return found


def test_r2_by_hand_at_each_moment() -> None:
    one = frame([0.0, 1.0], [0, 1], world_model=[0.25, 0.75], **{"world_model@forecast": [0.5, 0.5]})
    rows = fit_rows(one, 100, 0)
    # squared errors 2 / 16 against 2 / 4 about the training mean
    assert figure(rows, metric="r2", group="all").value == pytest.approx(0.75)
    assert figure(rows, metric="r2", group="known:forecast").value == 0


def test_each_part_is_scored_about_its_own_training_mean() -> None:
    parts = [frame([0.0], [0], ridge=[0.0]).assign(train_mean=0.5, part=0),
             frame([1.0], [1], ridge=[0.0]).assign(train_mean=0.0, part=1)]  # fmt: skip
    rows = fit_rows(pd.concat(parts, ignore_index=True), 100, 0)
    assert figure(rows, metric="r2").value == pytest.approx(1 - 1 / 1.25)


def test_a_label_tested_twice_counts_once_and_its_listener_is_drawn_as_one() -> None:
    generator = np.random.default_rng(0)
    value, user = generator.random(60), np.repeat(np.arange(12), 5)
    once = frame(value.tolist(), user.tolist(), ridge=generator.random(60))
    twice = pd.concat([once.assign(part=0), once.assign(part=1)], ignore_index=True)
    rows = [fit_rows(x, 200, 3) for x in (once, twice)]
    # Appearances in both parts are drawn together, so doubling the rows narrows nothing.
    for a, b in zip(*rows, strict=True):
        assert (a.value, a.low, a.high, a.n) == pytest.approx((b.value, b.low, b.high, 60))
    assert labels(twice) == 60


def test_users_of_another_world_are_other_listeners() -> None:
    one = frame([0.2, 0.4, 0.9], [0, 1, 2], ridge=[0.1, 0.2, 0.9])
    both = pd.concat([one, one.assign(log="two")], ignore_index=True)
    assert labels(both) == 6
    assert fit_rows(both, 100, 0) != fit_rows(pd.concat([one, one], ignore_index=True), 100, 0)


def test_rows_by_group_keep_to_the_group() -> None:
    one = frame([0.0, 1.0, 0.3], [0, 1, 2], ridge=[0.0, 1.0, 0.9]).assign(cohort=["a", "a", "b"])
    rows = fit_rows(one, 100, 0)
    assert figure(rows, metric="r2", group="cohort:a").value == 1
    assert figure(rows, metric="mae", group="cohort:b").value == pytest.approx(0.6)


def test_a_finished_evaluation_holds_its_predictions_and_no_user_id(evaluated: Done, tmp_path: Path) -> None:
    folder = folders(evaluated[0], "evaluate")[0]
    found = pooled([folder])
    assert {"world_model", "track_blind", "boosting", "boosting@nowcast", "best_baseline"} <= set(found)
    assert found["user"].dtype == np.int64
    from amrs.report import load

    report = load(folder)
    for row in fit_rows(found, 100, 0):
        if row.metric in ("r2", "partial_r2"):
            same = report.one(subject=row.subject, signal=row.signal, metric=row.metric, group=row.group)
            assert same is not None and same.value == pytest.approx(row.value, abs=1e-5)
    save(found, tmp_path)
    assert len(pooled([tmp_path, tmp_path])) == 2 * len(found)


def test_the_best_baseline_is_one_of_the_baselines(evaluated: Done) -> None:
    found = pooled([folders(evaluated[0], "evaluate")[0]])
    for _, mine in found.groupby("signal"):
        names = ("persistence_pre", "persistence_last", "user_mean", "ridge", "boosting")
        assert any((mine["best_baseline"] == mine[name]).all() for name in names if name in mine)
