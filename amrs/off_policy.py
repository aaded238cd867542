"""Off-policy evaluation: what a policy's sessions would have been, from sessions that another one logged.

Estimands, over logged starting histories x of users, mu the logging policy, pi the policy asked about:

    valence, arousal    E_pi[g y] / E_pi[g]: y the report after a session, g = 1 where it is given
    engagement, rating  E_pi[sum_t g_t r_t] / E_pi[sum_t g_t]: a mean over plays, g_t = 1 where r_t is known

Missing reports are not imputed: the figure is the mean of the reports *that would be given*. That needs no
assumption on why reports are missing, and is what a service would see; where those who feel worse report
less, it lies above the mean over all sessions, and a policy that makes them silent looks better than it is.
Sessions are as long as their listeners make them (the horizon of imagined sessions is not used).

Every estimator is a ratio of sums over users, so `columns` (S, 2) hold (above, below) of each session.
Shape suffixes: S sessions, T plays, U users, C columns of sums, N tracks asked about.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amrs.config.stages import OffPolicyConfig
from amrs.data import SessionDataModule
from amrs.metrics import Estimate, mean_of, studentised, user_sums
from amrs.metrics.fidelity import Floats
from amrs.models.world_model import WorldModel
from amrs.propensities import Asked, LoggedPlays, ask, expected, logged_plays
from amrs.report import Row
from amrs.rollout import Policy


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
    return np.stack(
        [(weight_ST * np.where(known_ST, reward_ST, 0.0)).sum(1), (weight_ST * known_ST).sum(1)], 1
    )


def doubly_robust(weight_ST: Floats, reward_ST: Floats, q_ST: Floats, v_ST: Floats) -> Floats:
    """Doubly robust value of each session, (S,): Jiang & Li 2016 eq. 10, Thomas & Brunskill 2016.

    sum over plays of w_{t-1} v_t + w_t (r_t - q_t), with w_{-1} = 1. `q_ST` is the model's value of the
    logged play and all after it, `v_ST` its mean over the policy's own choice at the same history; both NaN
    behind the last play, and rewards there count nothing. Its mean is the policy's value if the weights are
    right, whatever the model, or if the model is, whatever the weights.
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
    """Difference of two policies' values from [..., (above, below) of each]."""
    return mean_of(sums[..., :2]) - mean_of(sums[..., 2:])


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


@dataclass(frozen=True)
class Question:
    """Sessions of held-out users, and what is needed to ask the log about policies."""

    logged: LoggedPlays
    user_S: npt.NDArray[np.int64]
    asked: Mapping[str, Asked]
    """Answers of each policy at the logged histories, Copycat among them."""
    expected: Mapping[str, tuple[Tensor, Tensor]]
    """The judge's (g r, g), (S, T, N): the logged track first, then each policy's own choices in order."""

    def log_behaviour(self, propensities: str) -> Tensor:
        """Log-probability (S, T) of the logged tracks as `logged`, or under `copycat`."""
        if propensities == "copycat":
            return self.asked["copycat"].log_p_ST
        return self.logged.log_propensity_ST

    def reward(self, signal: str) -> Floats:
        """(S, T), NaN where not known."""
        return self.logged.reward[signal].double().numpy()

    def outcome_model(self, name: str, signal: str) -> tuple[tuple[Floats, Floats], ...]:
        """The judge's (q, v) of g r and of g for a policy; NaN behind the last play.

        They stand in for values of a play and all after it: a report is taken as if the session ended there,
        engagement and rating as those of the play alone. So the estimate is right where the weights are, with
        less noise where the judge is good; a good judge alone does not make it right.
        """
        first = 1 + list(self.asked).index(name) * self.asked[name].choice_STC.shape[2]
        chosen = slice(first, first + self.asked[name].choice_STC.shape[2])
        off_ST = self.logged.track_ST < 0
        return tuple(
            (
                x.double()[..., 0].masked_fill(off_ST, torch.nan).numpy(),
                x.double()[..., chosen].mean(-1).numpy(),
            )
            for x in self.expected[signal]
        )


def ask_the_log(
    policies: Mapping[str, Policy], judge: WorldModel, data: SessionDataModule, row_S: Tensor,
    config: OffPolicyConfig, seed: int,
) -> Question:  # fmt: skip
    """Ask every policy and the judge at every history of these sessions.

    The judge must share no user with `row_S`: the outcome model is cross-fitted by the split.
    """
    logged = logged_plays(data, row_S)
    asked = {
        name: ask(policy, data, logged, config.choices, seed)
        for name, policy in policies.items()
        if name != "production"  # the log says what it did
    }
    track_STN = torch.cat([logged.track_ST[..., None], *(each.choice_STC for each in asked.values())], 2)
    return Question(logged, data.flat.user_S[row_S].numpy(), asked, expected(judge, data, logged, track_STN))


class Told(NamedTuple):
    """What the log tells of one policy and signal: columns (S, 2) by estimator, and their support."""

    columns: dict[str, Floats]
    size: Support


def off_policy_rows(question: Question, config: OffPolicyConfig) -> list[Row]:
    """What the log says of every policy, where its support is enough; else only a row `withheld` of 1.

    Group "all" has the logged propensities where the log holds them, else Copycat's. Where both are there,
    group "propensities:copycat" has the estimates with Copycat's: nearly exact for production tilted as the
    policy tilts Copycat, for the policy itself biased by what Copycat gets wrong.
    """
    played_ST = question.logged.track_ST >= 0
    known = not bool(question.logged.log_propensity_ST[played_ST].isnan().any())
    ways = {"all": "logged", "propensities:copycat": "copycat"} if known else {"all": "copycat"}
    found = []
    for signal in question.logged.reward:
        reward_ST = question.reward(signal)
        even_ST = np.ones_like(reward_ST)
        logged = Told(
            {"per_decision": per_decision(even_ST, reward_ST)}, support(even_ST, reward_ST, question.user_S)
        )
        found += _answer(question, "production", signal, "all", logged, {}, config)
        for group, propensities in ways.items():
            told = {name: _tell(question, name, signal, propensities, config) for name in question.asked}
            if propensities == "copycat":  # by construction its weights are 1: the log as it is
                told["copycat"] = logged
            for name, answer in told.items():
                if answer is not logged:
                    others = {"gain_over_production": logged, "gain": told["copycat"]}
                    others = {metric: other for metric, other in others.items() if other is not answer}
                    found += _answer(question, name, signal, group, answer, others, config)
    return found


def _tell(question: Question, name: str, signal: str, propensities: str, config: OffPolicyConfig) -> Told:
    log_ratio_ST = question.asked[name].log_p_ST.double() - question.log_behaviour(propensities).double()
    weight_ST = importance_weights(log_ratio_ST.numpy(), config.clip)
    reward_ST = question.reward(signal)
    robust = [
        doubly_robust(weight_ST, target_ST, *model)
        for target_ST, model in zip(given(reward_ST), question.outcome_model(name, signal), strict=True)
    ]
    columns = {
        "per_decision": per_decision(weight_ST, reward_ST),
        "doubly_robust": np.stack(robust, 1),
        "snips": snips(weight_ST, reward_ST),
    }
    if signal in ("valence", "arousal"):
        del columns["snips"]  # the same as per_decision for a report after the last play
    return Told(columns, support(weight_ST, reward_ST, question.user_S))


def _answer(
    question: Question, subject: str, signal: str, group: str, told: Told, others: Mapping[str, Told],
    config: OffPolicyConfig,
) -> list[Row]:  # fmt: skip
    """Rows of one policy: support, whether withheld, its mean and its gains over `others`."""
    n = int((~np.isnan(question.reward(signal)).all(1)).sum())

    def row(metric: str, where: str, estimate: Estimate, unit: str) -> Row:
        return Row("off_policy", subject, signal, metric, "mean", where, *estimate, unit)

    withheld = told.size.too_small(config)
    rows = [
        row("ess", group, Estimate(told.size.sessions, None, None, n), "sessions"),
        row("withheld", group, Estimate(float(withheld), None, None, n), "1 = cannot tell"),
    ]
    if withheld:
        return rows
    for estimator, columns_S2 in told.columns.items():
        where = group if estimator == "per_decision" else f"estimator:{estimator}"
        if where != group and group != "all":
            continue
        sums_U2 = user_sums(columns_S2, question.user_S)
        rows.append(row("mean", where, studentised(sums_U2, ratio, told.size.users, n), "scale points"))
        for metric, other in others.items():
            if not other.size.too_small(config):
                base_U2 = user_sums(other.columns["per_decision"], question.user_S)
                users = min(told.size.users, other.size.users)
                both_U4 = np.concatenate([sums_U2, base_U2], 1)
                rows.append(row(metric, where, studentised(both_U4, gain, users, n), "scale points"))
    return rows
