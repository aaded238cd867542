"""What the judge's promises rest on: held-out reports, logged propensities, later sessions.

Figures of the judge and the log, the same for every policy: its simulations are no better than this.
Shape suffixes: N reports, S sessions, M modes, K tracks, U users.
"""

import numpy as np

from amrs import metrics
from amrs.fidelity.calibration import Judged, pits
from amrs.fidelity.fit import GRID_G, held_out_labels, predict, predict_usual
from amrs.fidelity.targets import AFFECT, targets
from amrs.fidelity.track_effects import uplift_slope
from amrs.logs.splits import JUDGE, TRAIN
from amrs.outcomes import choose_sessions
from amrs.policies import NeuralPolicy
from amrs.report import Row
from amrs.stress import later
from amrs.stress.confounding import logged_effects, weighted_slope
from amrs.stress.trial import Trial

_INSIDE = 0.8
"""Coverage that its intervals should have."""


def evidence_rows(trial: Trial) -> list[Row]:
    """All of them, of subject `world_model`: the judge."""
    return [*held_out_rows(trial), *_weighted_slopes(trial), *_late_slope(trial)]


def held_out_rows(trial: Trial) -> list[Row]:
    """Do reports of the users who are judged move as its track effects say, and lie where it says?"""
    data, judge, rows = trial.data, trial.judge, []
    draws, seed = trial.config.evaluate.bootstrap, trial.config.seed
    for signal, label in held_out_labels(targets(data.log), data.part_S.numpy(), trial.part).items():
        if signal not in AFFECT or len(label.row) < 2:
            continue
        found = predict(judge, data, signal, label)
        slope = uplift_slope(
            label.value, found.mean_N, predict_usual(judge, data, label.row)[signal], label.user
        )
        pit_N = pits(Judged(label.value.astype(np.float64), found.cdf_NG, label.user), GRID_G, seed)
        inside_N = (np.abs(pit_N - 0.5) <= _INSIDE / 2).astype(np.float64)
        inside = metrics.mean_interval(inside_N, label.user, draws, seed)
        rows += [
            Row("stress", "world_model", signal, "uplift_slope", "mean", "all", *slope,
                "residual per predicted"),
            Row("stress", "world_model", signal, "coverage_80", "mean", "all", *inside, "fraction"),
        ]  # fmt: skip
    return rows


def _weighted_slopes(trial: Trial) -> list[Row]:
    """The uplift slope on logged plays weighted by logged propensities."""
    data, config = trial.data, trial.config
    every = choose_sessions(data, len(data.part_S), 1, config.seed, trial.part)
    row_S = every.row_B[data.flat.length_S[every.row_B] <= config.model.history // 2]
    if not len(row_S):
        return []
    copycat = trial.policies["copycat"]
    assert isinstance(copycat, NeuralPolicy)
    longest = int(data.flat.length_S[row_S].max())  # logged sessions may be longer than simulated ones
    reader, rows = NeuralPolicy(copycat.model, data, longest), []
    for signal, logged in logged_effects(
        trial.judge, reader, data, row_S, trial.carry, config.seed
    ).items():  # fmt: skip
        slope = weighted_slope(logged, config.evaluate.bootstrap, config.seed)
        if slope is not None:
            rows.append(Row("stress", "world_model", signal, "uplift_slope", "mean", "propensities:logged",
                            *slope, "surprise per predicted"))  # fmt: skip
    return rows


def _late_slope(trial: Trial) -> list[Row]:
    """Whether later reports take back what earlier sessions gave, by the usual effects of their tracks.

    Of training users, too: those who are judged have too few sessions to tell. A model that did not learn
    from the listener is asked: the labeller for the judge's training users, the judge for all others.
    """
    data, flat, seed = trial.data, trial.data.flat, trial.config.seed
    if "valence" not in data.log.metadata.signals:
        return []
    report_S, user_S = flat.pre_report_S2[:, 0].double().numpy(), flat.user_S.numpy()
    judge_S, labeller_S = (
        later.earlier(
            later.session_effects(data, later.usual_effects(model, data, data.rows(trial.part), seed)), user_S
        )
        for model in (trial.judge, trial.labeller)
    )
    training_S = (data.part_S == TRAIN).numpy()
    past_S = np.where(training_S & (data.half_U[flat.user_S] == JUDGE).numpy(), labeller_S, judge_S)
    keep_S = training_S | (data.part_S == trial.part).numpy()
    draws = trial.config.evaluate.bootstrap
    slope = later.late_slope(report_S[keep_S], past_S[keep_S], user_S[keep_S], draws, seed)
    if slope is None:
        return []
    unit = f"points per point, {100 * later.LEVEL:g} % interval"
    return [Row("stress", "world_model", "valence", "late_slope", "mean", "all", *slope, unit)]
