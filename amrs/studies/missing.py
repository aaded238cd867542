"""Reports that are missing: figures from reported sessions, weighted and bounded, beside those of all.

On the platform fresh listeners' log can be made again with every report given, since what is drawn depends
only on what it is drawn for. Variant `random_missing` misses reports at random given what is observed; the
default does not.
Shape suffixes: N sessions of test users (or fresh ones), R those with a report.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from amrs import metrics
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.fidelity.fit import events, kept, predict
from amrs.fidelity.missing import effective, mean_bounds, r2_bounds, resampled_bounds
from amrs.fidelity.targets import AFFECT, targets, training_mean
from amrs.logs.splits import TEST
from amrs.metrics import Estimate
from amrs.metrics.fidelity import Floats, Ints
from amrs.models.world_model import WorldModel
from amrs.platform import Platform, load_truth
from amrs.report import Row
from amrs.runs import Run
from amrs.stages import world_model
from amrs.stages.prepare import open_data
from amrs.studies.calibration import FRESH_SEED, fresh_data

GAMMAS = (1.0, 1.5, 2.0, 3.0)
"""Factors by which the odds of a report may differ from those predicted."""
FRESH = 500
"""New listeners whose complete log is the truth, where there is a platform."""
BOUND_DRAWS = 200
Triple = tuple[float, float, float]
"""A figure from reported sessions, plain and weighted, and of all."""


class Sessions(NamedTuple):
    """One signal in all sessions: the report where given (else NaN), its prediction, the predicted
    probability of a report, the complete truth (None on real logs), and whose they are."""

    y_N: Floats
    predicted_N: Floats
    presence_N: Floats
    true_N: Floats | None
    user_N: Ints


def parts(config: Config) -> dict[str, Config]:
    """A world model of the platform on which reports are missing at random."""
    if config.data.name != "platform":
        return {}
    data = replace(config.data, platform=replace(config.data.platform, variant="random_missing"))
    return {"random_missing": replace(config, stage="world_model", data=data)}


def rows(run: Run) -> list[Row]:
    """Means and R2 over all sessions; groups `missing:as_logged` and `missing:at_random`."""
    found = _rows(run, run.parents["prepare"], run.parents["world_model"], "as_logged")
    if "random_missing" in run.parents:
        part = run.parents["random_missing"]
        found += _rows(run, part.parents["prepare"], part, "at_random")
    return found


def _rows(run: Run, prepared: Run, trained: Run, group: str) -> list[Row]:
    data = open_data(trained)
    model = world_model.load(trained.folder, data)
    means = training_mean(targets(data.log), data.part_S.numpy().astype(np.int8))
    truth = prepared.folder / "truth"
    platform = load_truth(truth) if truth.exists() else None
    judged = data if platform is None else fresh_data(platform, run, FRESH)[1]
    row_N = judged.rows(TEST).numpy() if platform is None else np.arange(len(judged.flat.mode_S))
    found = []
    for signal in (name for name in AFFECT if name in data.log.metadata.signals):
        true_N = None if platform is None else complete(platform, judged, signal)[row_N]
        sessions = gathered(model, judged, signal, row_N, true_N)
        found += figures(sessions, signal, means[signal], group, run.config.seed)
    return found


def complete(platform: Platform, fresh: SessionDataModule, signal: str) -> Floats:
    """Every fresh session's report, as it is where it was given: nothing else depends on its being given."""
    always = replace(platform, config=replace(platform.config, post_report_rate=1.0))
    _, table = always.fresh(FRESH, FRESH_SEED)
    value = dict(zip(table["session_id"].to_pylist(), table[f"post_{signal}"].to_pylist(), strict=True))
    return np.array([value[name] for name in fresh.log.sessions["session_id"][:]], np.float64)


def gathered(
    model: WorldModel, data: SessionDataModule, signal: str, row_N: Ints, true_N: Floats | None
) -> Sessions:
    """The signal's sessions `row_N` with predictions from their tracks, whether reported or not."""
    label = events(data)["reported"]
    label = kept(label, np.isin(label.row, row_N))
    y_N = data.flat.report_S2[label.row, AFFECT.index(signal)].double().numpy()
    predicted_N = predict(model, data, signal, label).mean_N
    presence_N = predict(model, data, "reported", label).mean_N
    if true_N is not None:
        true_N = true_N[np.searchsorted(row_N, label.row)]
    return Sessions(y_N, predicted_N, presence_N, true_N, label.user)


def plain_and_weighted(sessions: Sessions, centre: float, row_M: Ints | None = None) -> dict[str, Triple]:
    """Mean and R2 of drawn sessions from reported ones (plain, weighted), and the truth of all (NaN if
    unknown)."""
    row_M = np.arange(len(sessions.y_N)) if row_M is None else row_M
    y_N, predicted_N, presence_N = (x[row_M] for x in sessions[:3])
    given_N = ~np.isnan(y_N)
    y_R, predicted_R, presence_R = y_N[given_N], predicted_N[given_N], presence_N[given_N]
    nothing = float("nan")
    mean, r2 = (nothing, nothing) if sessions.true_N is None else (
        float(sessions.true_N[row_M].mean()), metrics.r2(sessions.true_N[row_M], predicted_N, centre)
    )  # fmt: skip
    return {
        "report_mean": (float(y_R.mean()), mean_bounds(y_R, presence_R, 1.0)[0], mean),
        "r2": (metrics.r2(y_R, predicted_R, centre),
               r2_bounds(y_R, predicted_R, centre, presence_R, 1.0)[0], r2),
    }  # fmt: skip


def figures(sessions: Sessions, signal: str, centre: float, group: str, seed: int) -> list[Row]:
    """Plain, weighted and true figures, how much nearer the weighted is, and bounds by gamma."""
    found = comparisons(sessions, centre, seed) | bounds(sessions, centre, seed)
    units = {"report_mean": "scale points", "r2": "fraction", "effective_share": "fraction"}
    return [
        Row("fidelity", "world_model", signal, metric, "mean", f"{kind}{group}", *estimate,
            units[next(name for name in units if metric.startswith(name))])
        for (metric, kind), estimate in found.items()
    ]  # fmt: skip


def comparisons(sessions: Sessions, centre: float, seed: int) -> dict[tuple[str, str], Estimate]:
    """Each figure from reported sessions (plain, weighted), of all (true), and by how much the weighted is
    nearer to the truth than the plain."""
    contrasts: dict[str, Callable[[Triple], float]] = {
        "reported": lambda t: t[0], "weighted": lambda t: t[1], "true": lambda t: t[2],
        "nearer": lambda t: abs(t[0] - t[2]) - abs(t[1] - t[2]),
    }  # fmt: skip
    found = {}
    for figure in ("report_mean", "r2"):
        for ending, contrast in contrasts.items():
            found[f"{figure}_{ending}", "missing:"] = metrics.resampled_users(
                partial(_contrasted, sessions, centre, figure, contrast), sessions.user_N, BOUND_DRAWS, seed
            )
    return found


def _contrasted(
    sessions: Sessions, centre: float, figure: str, contrast: Callable[[Triple], float], row: Ints, user: Ints
) -> float:
    return contrast(plain_and_weighted(sessions, centre, row)[figure])


def bounds(sessions: Sessions, centre: float, seed: int) -> dict[tuple[str, str], Estimate]:
    """The weighted figure with its bounds, by gamma; and the share of reports that the weights leave."""
    given_N = ~np.isnan(sessions.y_N)
    y_R, predicted_R, presence_R = (x[given_N] for x in sessions[:3])
    user_R = sessions.user_N[given_N]
    ratios = {"report_mean": (y_R, np.ones(len(y_R))),
              "r2": ((y_R - predicted_R) ** 2, (y_R - centre) ** 2)}  # fmt: skip
    weighted = plain_and_weighted(sessions, centre)
    found = {}
    for gamma in GAMMAS:
        for figure, (above_R, below_R) in ratios.items():
            low, high = resampled_bounds(above_R, below_R, presence_R, gamma, user_R, BOUND_DRAWS, seed)
            low, high = (1 - high, 1 - low) if figure == "r2" else (low, high)
            found[f"{figure}_bounds", f"gamma:{gamma:g}:"] = Estimate(
                weighted[figure][1], low, high, len(y_R)
            )
    share = effective(presence_R) / max(len(y_R), 1)
    return found | {("effective_share", "missing:"): Estimate(share, None, None, len(y_R))}
