"""Off-policy evaluation: what a policy's sessions would have been, from sessions that another one logged.

Estimands, over logged starting histories x of users, mu the logging policy, pi the policy asked about:

    valence, arousal    E_pi[g y] / E_pi[g]: y the report after a session, g = 1 where it is given
    engagement, rating  E_pi[sum_t g_t r_t] / E_pi[sum_t g_t]: a mean over plays, g_t = 1 where r_t is known

Missing reports are not imputed: the figure is the mean of the reports *that would be given*. That needs no
assumption on why reports are missing, and is what a service would see; where those who feel worse report
less, it lies above the mean over all sessions, and a policy that makes them silent looks better than it is.
Sessions are as long as their listeners make them (the horizon of imagined sessions is not used).

Every estimator is a ratio of sums over users, so `columns` (S, 2) hold (above, below) of each session.
Shape suffixes: S sessions, T plays, U users, C columns of sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from amrs.config.stages import OffPolicyConfig
from amrs.metrics import Estimate, mean_of, user_sums
from amrs.metrics.fidelity import Floats

Statistic = Callable[[Floats], Floats]


def importance_weights(log_ratio_ST: npt.ArrayLike, clip: float | None = None) -> Floats:
    """w_t = product over plays up to t of pi(a | h) / mu(a | h), as (S, T).

    `log_ratio_ST` is in nats, NaN behind the last play, where the weight stays that of the whole session.
    `clip` bounds every weight from above: less variance for a bias toward the logging policy.
    """
    total_ST = np.nancumsum(np.asarray(log_ratio_ST, dtype=np.float64), axis=1)
    weight_ST: Floats = np.exp(total_ST)
    return weight_ST if clip is None else np.minimum(weight_ST, clip)


def effective_size(weight_N: npt.ArrayLike) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2; 0 where all weights are 0."""
    weight_N = np.asarray(weight_N, dtype=np.float64)
    squares = float((weight_N**2).sum())
    return float(weight_N.sum()) ** 2 / squares if squares > 0 else 0.0


def snips(weight_ST: Floats, reward_ST: Floats) -> Floats:
    """Self-normalised importance sampling by whole sessions (Swaminathan & Joachims 2015), as (S, 2).

    Each known reward (not NaN) counts with the weight of its whole session.
    """
    known_ST = ~np.isnan(reward_ST)
    last_S1 = weight_ST[:, -1:]
    return np.stack([(last_S1 * np.where(known_ST, reward_ST, 0.0)).sum(1), (last_S1 * known_ST).sum(1)], 1)


def per_decision(weight_ST: Floats, reward_ST: Floats) -> Floats:
    """Per-decision importance sampling (Precup et al. 2000), self-normalised, as (S, 2).

    A reward at play t counts with the weight up to t, since later plays cannot have caused it. For a report
    after the last play this is `snips`.
    """
    known_ST = ~np.isnan(reward_ST)
    return np.stack([(weight_ST * np.where(known_ST, reward_ST, 0.0)).sum(1), (weight_ST * known_ST).sum(1)], 1)


def doubly_robust(weight_ST: Floats, reward_ST: Floats, q_ST: Floats, v_ST: Floats) -> Floats:
    """Doubly robust value of each session, (S,): Jiang & Li 2016 eq. 10, Thomas & Brunskill 2016.

    sum over plays of w_{t-1} v_t + w_t (r_t - q_t), with w_{-1} = 1. `q_ST` is the model's value of the logged
    play and all after it, `v_ST` its mean over the policy's own choice at the same history; both NaN behind
    the last play, and rewards there count nothing. Its mean is the policy's value if the weights are right,
    whatever the model, or if the model is, whatever the weights.
    """
    before_ST = np.concatenate([np.ones_like(weight_ST[:, :1]), weight_ST[:, :-1]], axis=1)
    parts_ST = before_ST * v_ST + weight_ST * (reward_ST - q_ST)
    value_S: Floats = np.where(np.isnan(q_ST), 0.0, parts_ST).sum(1)
    return value_S


def given(reward_ST: Floats) -> tuple[Floats, Floats]:
    """(g r, g): rewards with 0 where unknown, and whether each is known."""
    known_ST = ~np.isnan(reward_ST)
    return np.where(known_ST, reward_ST, 0.0), known_ST.astype(np.float64)


def ratio(sums: Floats) -> Floats:
    """A policy's value from users' sums [..., (above, below)]."""
    return mean_of(sums)


def gain(sums: Floats) -> Floats:
    """Difference of two policies' values from [..., (above, below, above of the other, below of the other)]."""
    return mean_of(sums[..., :2]) - mean_of(sums[..., 2:])


def pseudo_values(sums_UC: npt.ArrayLike, statistic: Statistic) -> Floats:
    """Jackknife pseudo-values by user, (U,): U theta - (U - 1) theta without the user (Tukey 1958).

    For a ratio, or a difference of ratios, they behave as independent observations of it.
    """
    sums_UC = np.asarray(sums_UC, dtype=np.float64)
    users, total_C = len(sums_UC), sums_UC.sum(0)
    value_U: Floats = users * statistic(total_C) - (users - 1) * statistic(total_C - sums_UC)
    return value_U


def studentised(
    sums_UC: npt.ArrayLike, statistic: Statistic, size: float, n: int, level: float = 0.95
) -> Estimate:
    """`statistic` of the users' sums (U, C) with its interval: jackknife by user, t with `size` - 1 degrees.

    `size` is the effective number of users. Percentile bootstrap covers too seldom here: a few users carry
    the weights, and a draw without them looks certain (study `off_policy` shows both).
    """
    pseudo_U = pseudo_values(sums_UC, statistic)
    value = float(statistic(np.asarray(sums_UC, dtype=np.float64).sum(0)))
    if len(pseudo_U) < 2 or size <= 1 or not np.isfinite(pseudo_U).all():
        return Estimate(value, None, None, n)
    half = stats.t.ppf((1 + level) / 2, size - 1) * float(pseudo_U.std(ddof=1)) / len(pseudo_U) ** 0.5
    return Estimate(value, value - half, value + half, n)


class Support(NamedTuple):
    """How much of the log speaks about a policy."""

    sessions: float
    """Kish's effective sample size of the sessions' weights."""
    users: float
    """The same of the users' summed weights: intervals are by user, so this bounds what they can know."""

    def too_small(self, config: OffPolicyConfig) -> bool:
        """Whether the answer is "cannot tell"."""
        return self.sessions < config.least_sessions or self.users < config.least_users


def support(weight_ST: Floats, reward_ST: Floats, user_S: npt.ArrayLike) -> Support:
    """Effective sessions and users among the sessions with a known reward."""
    weight_S = weight_ST[:, -1] * ~np.isnan(reward_ST).all(1)
    return Support(effective_size(weight_S), effective_size(user_sums(weight_S[:, None], user_S)))
