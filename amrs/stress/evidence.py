"""What the judge's promises rest on: held-out reports, logged propensities, later sessions.

Figures of the judge and the log, the same for every policy: its simulations are no better than this.
Shape suffixes: N reports, S sessions, M modes, K tracks, U users.
"""

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.fidelity.calibration import Judged, pits
from amrs.fidelity.fit import GRID_G, held_out_labels, predict, predict_usual
from amrs.fidelity.targets import AFFECT, targets
from amrs.fidelity.track_effects import uplift_slope
from amrs.logs.splits import JUDGE, TRAIN
from amrs.noise import uniform
from amrs.outcomes import choose_sessions
from amrs.policies import NeuralPolicy
from amrs.propensities import ask, logged_plays
from amrs.report import Row
from amrs.stress import later
from amrs.stress.confounding import logged_effects, weighted_slope
from amrs.stress.trial import Trial

_INSIDE = 0.8
"""Coverage that its intervals should have."""
_LISTENERS, _CHOICES = 2000, 16
"""Listeners whose sessions are asked for the late slope, and draws of Copycat at each of their plays."""


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
    longest = int(data.flat.length_S[row_S].max())  # logged sessions may be longer than simulated ones
    reader, rows = NeuralPolicy(_copycat(trial).model, data, longest), []
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
    row_S, longest = _told_of(trial), trial.config.model.history // 2
    short_S = (flat.length_S[row_S] <= longest) & (flat.length_S[row_S] > 0)
    if not short_S.any():
        return []
    logged = logged_plays(data, row_S[short_S])
    asked = ask(NeuralPolicy(_copycat(trial).model, data, longest), data, logged, _CHOICES, seed)
    by_judge_S, by_labeller_S = np.zeros((2, len(row_S)))
    for model, e_S in ((trial.judge, by_judge_S), (trial.labeller, by_labeller_S)):
        usual_MK = later.usual_effects(model, data, data.rows(trial.part), seed)
        e_S[short_S.numpy()] = later.session_effects(
            usual_MK, flat.mode_S[logged.row_S], logged.track_ST, asked.choice_STC
        )
    user_S = flat.user_S[row_S]
    known_S = ((data.part_S[row_S] == TRAIN) & (data.half_U[user_S] == JUDGE)).numpy()
    past_S = later.earlier(np.where(known_S, by_labeller_S, by_judge_S), user_S.numpy())
    slope = later.late_slope(flat.pre_report_S2[row_S, 0].double().numpy(), past_S, user_S.numpy())
    if slope is None:
        return []
    unit = f"points per point, {100 * later.LEVEL:g} % interval"
    return [Row("stress", "world_model", "valence", "late_slope", "mean", "all", *slope, unit)]


def _told_of(trial: Trial) -> Tensor:
    """Sessions of training users and of those who are judged: of `_LISTENERS` at most."""
    data = trial.data
    here_S = (data.part_S == TRAIN) | (data.part_S == trial.part)
    user_U = data.flat.user_S[here_S].unique()
    drawn_U = user_U[uniform(trial.config.seed, later.ASKED, user_U).argsort()[:_LISTENERS]]
    return (here_S & torch.isin(data.flat.user_S, drawn_U)).nonzero()[:, 0]


def _copycat(trial: Trial) -> NeuralPolicy:
    copycat = trial.policies["copycat"]
    assert isinstance(copycat, NeuralPolicy)
    return copycat
