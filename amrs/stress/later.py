"""Harm that comes only after several sessions: whether the log shows that good sessions are paid for later.

No simulation of one session can show what it does to those after it; a log of several sessions a listener
can. A track's usual effect in mode m, by the judge,

    a(k) = mean over session starts h in m of E[report | h, k],

is the same for everybody: asked with the listener's own history it would know the mood that later reports
show, too. A session's tracks were better than Copycat's choices at the same moments, q(. | h), by

    e = sum over plays of a(track) - mean of a over q(. | h),

which is the luck of the draw: who feels well may be played other music than who does not, but that is known
to q. The late slope b is that of the report *before* a session on the sum of e over the listener's earlier
sessions, in

    report = b sum(e) + c first report + d number of earlier sessions + constant,

an analysis of covariance (Fisher 1932): who reported well before anything was played tends to go on, and so
does what changes with time. Moods that last make b positive; what is given now and taken back later makes
it negative.

Where the truth is known, `valence_to_come` follows the platform's listeners through sessions in a row.
Shape suffixes: S sessions, K tracks, M modes, H histories, T plays, C choices, N sessions with a report
before, P predictors, B rollouts.
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
from amrs.noise import hash_keys, uniform
from amrs.outcomes import Sessions
from amrs.platform.dynamics import State
from amrs.platform.world import PlatformEnvironment
from amrs.rollout import Feedback, Policy, imagine
from amrs.rules import Rules

ASKED, TO_COME = 940, 941
"""Purposes of the draws of histories, and of the luck of sessions to come."""
SESSIONS, FIRST_LATER, DAYS = 20, 11, 2.5
"""Consecutive true sessions of a policy, the first of the later ones, and days between two of them."""
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

    In scale points; the last row is that of no mode, a mode nobody had is 0.
    """
    mode_S = data.flat.mode_S[row_S] % (len(data.log.metadata.modes) + 1)
    order_S = uniform(seed, ASKED, row_S).argsort()
    effect_MK = torch.zeros(len(data.log.metadata.modes) + 1, data.tracks)
    for member in judge.eval().ensemble:
        candidates, kind = member.candidates(), member.kinds["valence"]
        for mode in mode_S.unique().tolist():
            row_H = row_S[order_S[mode_S[order_S] == mode]][:_HISTORIES]
            batch = data.prefix(row_H).to(member.head.weight.device)
            questions = member.questions(member.encoder.last(batch), ["valence"])
            for question in questions:
                effect_K = kind.mean(member.replies(question, candidates)["valence"]).cpu()
                effect_MK[mode] += effect_K / len(row_H) / len(judge.ensemble)
    return effect_MK


def session_effects(effect_MK: Tensor, mode_S: Tensor, track_ST: Tensor, choice_STC: Tensor) -> Floats:
    """e of sessions, (S,), from their tracks, -1 behind the last, and Copycat's choices at the same moments.

    A mean over few choices blurs e, which can only draw the slope to 0.
    """
    mode_S1 = mode_S[:, None] % len(effect_MK)
    usual_ST = effect_MK[mode_S1[..., None], choice_STC.clamp(min=0)].mean(-1)
    better_ST = effect_MK[mode_S1, track_ST.clamp(min=0)] - usual_ST
    e_S: Floats = better_ST.where(track_ST >= 0, 0.0).double().sum(1).numpy()
    return e_S


def earlier(e_S: Floats, user_S: Ints) -> Floats:
    """Sum of e over each listener's earlier sessions, (S,); sessions of a listener lie together, in order."""
    before_S = np.cumsum(e_S) - e_S
    first_S = np.searchsorted(user_S, user_S)
    past_S: Floats = before_S - before_S[first_S]
    return past_S


def late_slope(report_S: Floats, past_S: Floats, user_S: Ints) -> Estimate | None:
    """The late slope b with its interval of LEVEL by user; None where there is too little to tell.

    First sessions have no earlier ones and are left out. A first session without a report counts as such.
    The interval is a jackknife by user, with as many degrees of freedom as users who tell of the slope: the
    sums of a few who came often are most of it. c and d are held: their luck is small beside that of b.
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
    users_N = user_S[known_S]
    size = metrics.effective_users(x_N, users_N)
    columns_NC = np.stack([np.ones_like(x_N), x_N, y_N, x_N * x_N, x_N * y_N], 1)
    return metrics.studentised(metrics.user_sums(columns_NC, users_N), slope_of, size, len(x_N), LEVEL)


class Following:
    """The platform's listeners over consecutive sessions: each starts where the last one ended."""

    def __init__(self, platform: PlatformEnvironment) -> None:
        self.platform = platform
        self.ended: State | None = None

    def start(self, row_B: Tensor, key_B: Tensor) -> State:
        """As logged the first time; then some days later in the same mode."""
        self.left_B = torch.zeros(len(row_B), dtype=torch.bool)
        if self.ended is None:
            return self.platform.start(row_B, key_B)
        return self.platform.next_session(self.ended, key_B, DAYS * 24)

    def step(self, state: State, track_B: Tensor, t: int) -> tuple[State, Feedback, dict[str, Tensor]]:
        """The platform's; what is played to somebody who has left changes nothing in them."""
        new, feedback, expected = self.platform.step(state, track_B, t)
        left_B1 = self.left_B[:, None]
        self.ended = new._replace(
            affect_B2=torch.where(left_B1, state.affect_B2, new.affect_B2),
            trace_BL=torch.where(left_B1, state.trace_BL, new.trace_BL),
            strain_B=torch.where(self.left_B, state.strain_B, new.strain_B),
        )
        self.left_B = self.left_B | feedback.left_B
        return self.ended, feedback, expected


def valence_to_come(
    policy: Policy, platform: PlatformEnvironment, rules: Rules, sessions: Sessions, seed: int
) -> Floats:
    """Mean true valence at the end of the sessions `FIRST_LATER` to `SESSIONS` in a row, (B,).

    The policy knows each listener as the log leaves them; what it plays in between it does not learn from.
    """
    environment, total_B = Following(platform), torch.zeros(len(sessions.row_B), dtype=torch.float64)
    for number in range(SESSIONS):
        key_B = hash_keys(seed, TO_COME, sessions.key_B, number)
        found = imagine(policy, environment, rules, sessions.mode_B, sessions.row_B, key_B, sessions.horizon)
        if number >= FIRST_LATER - 1:
            total_B += found.final("valence").double() / (SESSIONS - FIRST_LATER + 1)
    values_B: Floats = total_B.numpy()
    return values_B
