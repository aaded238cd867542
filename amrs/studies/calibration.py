"""Coverage on fresh listeners of the platform, before and after recalibration on validation users."""

import shutil
from pathlib import Path

import numpy as np

from amrs.config.data import SplitConfig
from amrs.data import SessionDataModule
from amrs.fidelity.fit import Predicted, distribution_rows, events, kept, predict, predict_plays
from amrs.fidelity.targets import AFFECT, Target, targets
from amrs.importers.platform import metadata
from amrs.logs.schema import write_log
from amrs.logs.splits import VALIDATION
from amrs.models.world_model import WorldModel
from amrs.platform import Platform, load_truth
from amrs.platform.catalogue import catalogue_table
from amrs.report import Row
from amrs.runs import Run, RunError
from amrs.stages import world_model
from amrs.stages.prepare import open_data

FRESH, FRESH_SEED = 2000, 1
"""New users, and which."""
PER_USER = {"valence": 2, "arousal": 2}
"""Labels scored of each user, evenly from first to last; all where not named. Each of these costs a history
to read."""


def rows(run: Run) -> list[Row]:
    """Rows of group `users:fresh`."""
    truth = run.parents["prepare"].folder / "truth"
    if not truth.exists():
        raise RunError("evaluate.study=calibration needs fresh users: only data=platform can make them")
    data, section = open_data(run), run.config.evaluate
    model = world_model.load(run.parents["world_model"].folder, data)
    _, fresh = fresh_data(load_truth(truth), run, FRESH)
    part_S, found = data.part_S.numpy(), []
    of_log, of_fresh = ({**targets(d.log), **events(d)} for d in (data, fresh))
    tuning = {name: kept(label, part_S[label.row] == VALIDATION) for name, label in of_log.items()}
    test = {name: spread_out(label, PER_USER.get(name)) for name, label in of_fresh.items()}
    known, judged = _predicted(model, data, tuning), _predicted(model, fresh, test)
    for name in tuning:
        found += distribution_rows(
            name, (tuning[name], known[name]), (test[name], judged[name]), run.config.seed,
            section.bootstrap, "users:fresh",
        )  # fmt: skip
    return found


def _predicted(model: WorldModel, data: SessionDataModule, labels: dict[str, Target]) -> dict[str, Predicted]:
    plays = {name: label for name, label in labels.items() if name not in AFFECT}
    reports = {name: predict(model, data, name, label) for name, label in labels.items() if name in AFFECT}
    return predict_plays(model, data, plays) | reports


def fresh_data(
    platform: Platform, run: Run, users: int, split: SplitConfig | None = None
) -> tuple[Platform, SessionDataModule]:
    """Listeners that nobody has seen and their log, on the same catalogue; split as the run's unless told."""
    fresh, table = platform.fresh(users, FRESH_SEED)
    folder = run.partial / "fresh"
    shutil.rmtree(folder, ignore_errors=True)
    about = metadata(platform.config)
    write_log(folder, [table], catalogue_table(platform.catalogue), about, "fresh listeners of the platform")
    return fresh, SessionDataModule(Path(folder), split or run.config.data.split, run.config.model.history)


def spread_out(label: Target, per_user: int | None) -> Target:
    """At most `per_user` labels of each user, evenly from the first to the last."""
    if per_user is None:
        return label
    count_U = np.bincount(label.user)
    first_U = np.cumsum(count_U) - count_U
    order_N = np.argsort(label.user, kind="stable")
    number_N = np.empty(len(label.user), np.int64)
    number_N[order_N] = np.arange(len(label.user)) - first_U[label.user[order_N]]
    wanted_UP = np.linspace(0, np.maximum(count_U - 1, 0), per_user).round().astype(np.int64).T
    return kept(label, (number_N[:, None] == wanted_UP[label.user]).any(1))
