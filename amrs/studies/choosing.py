"""Does the judge choose well? 25 policies near Copycat, ranked by its prediction and by the platform.

Copycat q is tilted by what the labeller predicts of each track as the session starts,
pi(k | h) proportional to q(k | h) exp(strength u(k)), where u is one of `DIRECTIONS`, good or bad for
listeners; the strength is set on validation users so that KL(pi || q) at a session's start is one of `KLS`.
u is held for the session, so that 24 policies cost one look at the catalogue.

Shape suffixes: B sessions, K tracks, P policies, U users, D bootstrap draws.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.config.groups import UtilityConfig, WeightsConfig
from amrs.data import SessionDataModule
from amrs.fidelity.targets import Ints
from amrs.listeners import ImaginedListeners, Mind
from amrs.logs.splits import TRAIN, VALIDATION
from amrs.losses import kl_divergence
from amrs.metrics.fidelity import Floats
from amrs.models.world_model import WorldModel
from amrs.noise import uniform
from amrs.outcomes import Sessions, choose_sessions, outcome, roll_out, session_utility
from amrs.platform import load_truth
from amrs.policies import NeuralPolicy, Scorer
from amrs.report import Row
from amrs.rollout import Environment, Feedback, Policy, Rollouts
from amrs.rules import log_softmax_allowed
from amrs.runs import Run, RunError, read_json
from amrs.stages import bc, world_model
from amrs.stages.prepare import open_data
from amrs.utility import Utility, yardstick

DIRECTIONS: dict[str, dict[str, float]] = {
    "wellbeing": {"valence": 0.5, "arousal": 0.5}, "valence": {"valence": 1.0}, "arousal": {"arousal": 1.0},
    "rating": {"rating": 1.0}, "harmful": {"valence": -0.5, "arousal": -0.5}, "popular": {"popularity": 1.0},
}  # fmt: skip
"""Weights of the labeller's predicted signals in the mode's direction, each in spreads of its effect."""
KLS = (0.02, 0.05, 0.1, 0.2)
TUNED_ON, TUNING = 64, 960
"""Validation sessions that strengths are set on; the purpose of their draw."""
_CHUNK = 64


@dataclass
class Tilted:
    """Copycat tilted by a score that a session keeps."""

    copycat: NeuralPolicy
    score: dict[int, Tensor]
    """(K,) by row of the log."""
    strength: float

    def start(self, row_B: Tensor) -> tuple[Mind, Tensor]:
        """Read the logged history and look the scores up."""
        return self.copycat.start(row_B), torch.stack([self.score[row] for row in row_B.tolist()])

    def logits(self, state: tuple[Mind, Tensor]) -> Tensor:
        """(B, K)."""
        # Over all tracks or over the allowed ones: a softmax after the rules is the same.
        return self.copycat.logits(state[0]) + self.strength * state[1]

    def observe(self, state: tuple[Mind, Tensor], track_B: Tensor, feedback: Feedback) -> tuple[Mind, Tensor]:
        """Copycat reads one more play."""
        return self.copycat.observe(state[0], track_B, feedback), state[1]


def rows(run: Run) -> list[Row]:
    """Each policy's gain in utility, predicted and realised; Kendall's tau and the regret of the pick."""
    config, data = run.config, open_data(run)
    truth = run.parents["prepare"].folder / "truth"
    if not truth.exists():
        raise RunError("evaluate.study=choosing asks the platform what came true: it needs data=platform")
    section = config.evaluate
    sessions = choose_sessions(data, section.sessions, section.horizon, config.seed)
    models = {role: world_model.load(run.parents[role].folder, data) for role in ("labeller", "judge")}
    policies = tilted_policies(run, data, models["labeller"], sessions)
    utility = Utility(yardstick(config.utility), data.log.metadata.modes, _spread(run))
    worlds: dict[str, Environment] = {
        "predicted": ImaginedListeners(models["judge"], data, sessions.horizon, utility.targets),
        "predicted_labeller": ImaginedListeners(models["labeller"], data, sessions.horizon, utility.targets),
        "realised": load_truth(truth).environment(targets=utility.targets),
    }
    value_P = {
        name: _values(roll_out(policies, world, data.rules(), sessions), utility, sessions)
        for name, world in worlds.items()
    }
    return choice_rows(list(policies), value_P, sessions.user_B.numpy(), section.bootstrap, config.seed)


def _values(found: dict[str, Rollouts], utility: Utility, sessions: Sessions) -> dict[str, Floats]:
    """Sessions' outcomes (B, P) by signal."""
    return {
        "utility": np.stack([session_utility(r, utility, sessions.mode_B) for r in found.values()], 1),
        "valence": np.stack([outcome(r, "valence") for r in found.values()], 1),
    }


def choice_rows(
    names: list[str], value: dict[str, dict[str, Floats]], user_B: np.ndarray, draws: int, seed: int
) -> list[Row]:
    """Rows from outcomes (B, P) by way of knowing and signal; the first policy is Copycat."""
    units = {"utility": "spreads of effects", "valence": "scale points"}
    found = []
    for signal, unit in units.items():
        realised_BP = value["realised"][signal]
        for section, by_signal in value.items():
            value_BP = by_signal[signal]
            for p, name in enumerate(names[1:], 1):
                estimate = metrics.mean_interval(value_BP[:, p] - value_BP[:, 0], user_B, draws, seed)
                found.append(Row(section, name, signal, "gain", "mean", "all", *estimate, unit))
            if section == "realised":
                continue
            both_BC = np.concatenate([value_BP, realised_BP, np.ones((len(user_B), 1))], 1)
            tau = _resampled(tau_of, both_BC, user_B, (-1.0, 1.0), draws, seed)
            regret = _resampled(regret_of, both_BC, user_B, (0.0, np.inf), draws, seed)
            for metric, estimate, of in (("kendall_tau", tau, "rank correlation"), ("regret", regret, unit)):
                found.append(Row(section, "tilt:all", signal, metric, "mean", "all", *estimate, of))
    return found


def _resampled(
    statistic: Callable[[Floats], Floats], both_BC: Floats, user_B: np.ndarray, span: tuple[float, float],
    draws: int, seed: int,
) -> metrics.Estimate:  # fmt: skip
    """Interval by user inside `span`, centred: draws are noisier than the sample, so that they rank worse and
    find better bests."""

    def again(row_M: Ints, user_M: Ints) -> float:
        return float(statistic(both_BC[row_M].sum(0)))

    value, low, high, n = metrics.resampled_users(again, user_B, draws, seed, centred=True)
    if low is None or high is None:
        return metrics.Estimate(value, None, None, n)
    low, high = (float(min(max(end, span[0]), span[1])) for end in (low, high))
    return metrics.Estimate(value, low, high, n)


def tau_of(sums: Floats) -> Floats:
    """Kendall's tau-a of P policies from [..., (P predicted sums, P realised sums, count)]."""
    predicted, realised = _halves(sums)
    count = predicted.shape[-1]
    agree = np.sign(predicted[..., :, None] - predicted[..., None, :]) * np.sign(
        realised[..., :, None] - realised[..., None, :]
    )
    tau: Floats = agree.sum((-1, -2)) / (count * (count - 1))
    return tau


def regret_of(sums: Floats) -> Floats:
    """What the best policy realises more than the one predicted best, 0 or more."""
    predicted, realised = _halves(sums)
    picked = np.take_along_axis(realised, predicted.argmax(-1)[..., None], -1)[..., 0]
    regret: Floats = realised.max(-1) - picked
    return regret


def _halves(sums: Floats) -> tuple[Floats, Floats]:
    half = sums.shape[-1] // 2
    means = sums[..., :-1] / sums[..., -1:]
    return means[..., :half], means[..., half:]


def tilted_policies(
    run: Run, data: SessionDataModule, labeller: WorldModel, sessions: Sessions
) -> dict[str, Policy]:
    """Copycat and its tilts, by name."""
    copycat = NeuralPolicy(bc.load(run.parents["bc"].folder, data), data, sessions.horizon)
    validation = data.rows(VALIDATION)
    tuned_B = validation[uniform(run.config.seed, TUNING, validation).argsort()[:TUNED_ON]]
    row_B = torch.cat([tuned_B, sessions.row_B])
    parts = _parts(run, data, labeller, row_B, sessions.horizon)
    policies: dict[str, Policy] = {"copycat": copycat}
    none_BT = torch.zeros(len(tuned_B), 0, dtype=torch.int64)
    allowed_BK = data.rules().allowed(data.flat.mode_S[tuned_B], none_BT)
    log_q_BK = log_softmax_allowed(copycat.logits(copycat.start(tuned_B)), allowed_BK)
    for direction, weights in DIRECTIONS.items():
        score_BK = torch.stack([weight * parts[name] for name, weight in weights.items()]).sum(0)
        by_row = dict(zip(row_B.tolist(), score_BK, strict=True))
        for kl in KLS:
            strength = strength_for(kl, log_q_BK, score_BK[: len(tuned_B)])
            policies[f"tilt:{direction}_{kl}"] = Tilted(copycat, by_row, strength)
    return policies


def strength_for(kl: float, log_q_BK: Tensor, score_BK: Tensor) -> float:
    """The strength at which the mean KL(tilted || q) is `kl` nats, by bisection on a log scale."""
    low, high = 1e-4, 1e4
    for _ in range(40):
        middle = (low * high) ** 0.5
        log_p_BK = (log_q_BK + middle * score_BK).log_softmax(-1)
        far = float(kl_divergence(log_p_BK, log_q_BK).mean()) > kl
        low, high = (low, middle) if far else (middle, high)
    return low


def _parts(
    run: Run, data: SessionDataModule, labeller: WorldModel, row_B: Tensor, horizon: int
) -> dict[str, Tensor]:
    """What tilts are made of, (B, K) each: the labeller's utility of each signal alone; log popularity."""
    popularity_K = (data.plays(TRAIN) + run.config.bc.popularity_smoothing).log()
    found = {"popularity": popularity_K.expand(len(row_B), -1)}
    for signal in ("valence", "arousal", "rating"):
        utility = Utility(_only(run.config.utility, signal), data.log.metadata.modes, _spread(run))
        scorer = Scorer(labeller, utility, data, horizon)
        chunks = [scorer.utility_of_all(scorer.start(index_B)) for index_B in row_B.split(_CHUNK)]
        found[signal] = torch.cat(chunks)
    return found


def _only(config: UtilityConfig, signal: str) -> UtilityConfig:
    """The utility of one signal, in the directions of its modes."""
    nothing = dict.fromkeys(vars(WeightsConfig()), 0.0)
    return replace(config, weights=WeightsConfig(**{**nothing, signal: 1.0}), entropy=0.0)


def _spread(run: Run) -> dict[str, float]:
    found: dict[str, float] = read_json(run.parents["preferences"].folder / "summary.json")["effect_spread"]
    return found
