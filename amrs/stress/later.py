"""Harm that comes only after several sessions: whether the log shows that good sessions are paid for later.

No simulation of one session can show what it does to those after it; a log of several sessions a listener
can. A track's usual effect in mode m, by the judge,

    a(k) = mean over session starts h in m of E[report | h, k],   less its mean over what was played in m,

is the same for everybody: asked with the listener's own history it would know the mood that later reports
show, too. A session's tracks were good by e = sum of a, and the late slope b is that of the report *before* a
session on the sum of e over the listener's earlier sessions, in

    report = b sum(e) + c first report + d number of earlier sessions + constant,

an analysis of covariance (Fisher 1932): who reported well before anything was played tends to go on, and so
does what changes with time. Moods that last make b positive; what is given now and taken back later makes it
negative.
Shape suffixes: S sessions, K tracks, M modes, H histories, N sessions with a report before, P predictors.
"""

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.data import SessionDataModule
from amrs.fidelity.track_effects import slope_of
from amrs.metrics import Estimate
from amrs.metrics.fidelity import Floats, Ints
from amrs.models.world_model import WorldModel
from amrs.noise import uniform

ASKED = 940
"""Purpose of the draw of histories."""
_HISTORIES = 32
"""Session starts of each mode that a track's usual effect is a mean over."""
LEVEL = 0.8
"""Of the interval: its upper end is held against harm at one in ten, since a log of a few hundred listeners
that must prove harm at one in forty proves it too seldom."""
_TOLD = 1e-9
"""Least share of the variance of what sessions gave that the other predictors do not tell."""


@torch.inference_mode()
def usual_effects(judge: WorldModel, data: SessionDataModule, row_S: Tensor, seed: int) -> Tensor:
    """E[valence] after one track, a mean over members and some of the sessions `row_S`, as (M + 1, K).

    In scale points, about its mean over tracks; the last row is that of no mode, a mode nobody had is 0.
    """
    mode_S = data.flat.mode_S[row_S] % (len(data.log.metadata.modes) + 1)
    order_S = uniform(seed, ASKED, row_S).argsort()
    effect_MK = torch.zeros(len(data.log.metadata.modes) + 1, data.tracks)
    for member in judge.eval().ensemble:
        candidates, kind = member.candidates(), member.kinds["valence"]
        for mode in mode_S.unique().tolist():
            row_H = row_S[order_S[mode_S[order_S] == mode]][:_HISTORIES]
            questions = member.questions(member.encoder.last(data.prefix(row_H)), ["valence"])
            for question in questions:
                effect_K = kind.mean(member.replies(question, candidates)["valence"]).cpu()
                effect_MK[mode] += (effect_K - effect_K.mean()) / len(row_H) / len(judge.ensemble)
    return effect_MK


def session_effects(data: SessionDataModule, effect_MK: Tensor) -> Floats:
    """e of every session of the log, (S,), about the mean over its mode's plays."""
    flat, modes = data.flat, len(effect_MK)
    play_N = flat.track_N >= 0
    session_N, track_N = flat.session_N[play_N], flat.track_N[play_N]
    mode_N = flat.mode_S[session_N] % modes
    value_N = effect_MK[mode_N, track_N].double()
    total_M, count_M = (
        torch.zeros(modes, dtype=torch.float64).index_add(0, mode_N, x_N)
        for x_N in (value_N, torch.ones_like(value_N))
    )
    value_N = value_N - (total_M / count_M.clamp(min=1))[mode_N]
    e_S: Floats = torch.zeros(len(flat.mode_S), dtype=torch.float64).index_add(0, session_N, value_N).numpy()
    return e_S


def earlier(e_S: Floats, user_S: Ints) -> Floats:
    """Sum of e over each listener's earlier sessions, (S,); sessions of a listener lie together, in order."""
    before_S = np.cumsum(e_S) - e_S
    first_S = np.searchsorted(user_S, user_S)
    past_S: Floats = before_S - before_S[first_S]
    return past_S


def late_slope(report_S: Floats, past_S: Floats, user_S: Ints, draws: int, seed: int) -> Estimate | None:
    """The late slope b with its interval of LEVEL by user; None where there is too little to tell.

    First sessions have no earlier ones and are left out. A first session without a report counts as such.
    c and d are held while users are drawn: their own luck is small beside that of b.
    """
    first_S = np.searchsorted(user_S, user_S)
    number_S = np.arange(len(user_S)) - first_S
    known_S = np.isfinite(report_S) & (number_S > 0)
    baseline_N = report_S[first_S][known_S]
    others_NP = np.stack([np.ones_like(baseline_N), number_S[known_S], np.nan_to_num(baseline_N),
                          np.isfinite(baseline_N)], 1)  # fmt: skip
    both_N2 = np.stack([past_S, report_S], 1)[known_S]
    if len(both_N2) <= others_NP.shape[1] + 1:
        return None
    x_N, y_N = (both_N2 - others_NP @ np.linalg.lstsq(others_NP, both_N2, rcond=None)[0]).T
    if x_N.var() <= _TOLD * both_N2[:, 0].var():
        return None
    sums_UC = metrics.user_sums(
        np.stack([np.ones_like(x_N), x_N, y_N, x_N * x_N, x_N * y_N], 1), user_S[known_S]
    )
    return metrics.user_bootstrap(sums_UC, slope_of, len(x_N), draws, seed, LEVEL)
