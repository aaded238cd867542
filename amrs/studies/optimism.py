"""How much of a predicted gain comes true, and whether the judge can say so honestly.

The policy was made to please the labeller, so the labeller overstates it (the optimiser's curse). Side by
side: the labeller; a model of the *same users* from another seed, which repeats the labeller's errors; the
judge, which shares no listener with it; the judge corrected by its own uplift slope; and the platform.
The corrected gain is the slope of held-out reports on the judge's predicted track effect times its predicted
gain; its interval draws users once for both, at 90 %.

Shape suffixes: B sessions, N reports, U users, C columns of sums, M modes.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from amrs import metrics
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.fidelity import kept, predict, predict_usual
from amrs.listeners import ImaginedListeners
from amrs.metrics.fidelity import Floats
from amrs.metrics.gains import gain_sums, weighted_gain
from amrs.models.world_model import WorldModel
from amrs.outcomes import Sessions, choose_sessions, gain_rows, outcome, roll_out
from amrs.platform import load_truth
from amrs.policies import NeuralPolicy
from amrs.report import Row
from amrs.rollout import Environment, Rollouts
from amrs.runs import Run
from amrs.splits import TEST
from amrs.stages import bc, world_model
from amrs.stages.prepare import open_data
from amrs.targets import AFFECT, Ints, targets
from amrs.track_effects import slope_columns, slope_of

LEVEL = 0.9


def parts(config: Config) -> dict[str, Config]:
    """A world model of the labeller's users from another seed."""
    same_log = replace(config.world_model, users="labeller")
    return {"same_log": replace(config, stage="world_model", seed=config.seed + 1, world_model=same_log)}


def rows(run: Run) -> list[Row]:
    """Gains of DPO as the same log's other model predicts them, corrected gains of the judge, and ratios."""
    config, data = run.config, open_data(run)
    section = config.evaluate
    sessions = choose_sessions(data, section.sessions, section.horizon, config.seed)
    clone = run.parents["bc"].folder
    policies = {
        "copycat": NeuralPolicy(bc.load(clone, data), data, sessions.horizon),
        "dpo": NeuralPolicy(bc.load(run.parents["dpo"].folder, data, clone), data, sessions.horizon),
    }
    models = {name: world_model.load(run.parents[role].folder, data) for name, role in ROLES.items()}
    worlds: dict[str, Environment] = {
        name: ImaginedListeners(model, data, sessions.horizon) for name, model in models.items()
    }
    truth = run.parents["prepare"].folder / "truth"
    if truth.exists():
        worlds["realised"] = load_truth(truth).environment()
    found = {name: roll_out(policies, world, data.rules(), sessions) for name, world in worlds.items()}
    rows = gain_rows("predicted_same_log", found["predicted_same_log"], sessions, data, config.seed,
                     section.bootstrap)  # fmt: skip
    for signal in AFFECT:
        if signal in data.log.metadata.signals:
            rows += _signal_rows(found, models["predicted"], sessions, data, signal, run)
    return rows


ROLES = {"predicted": "judge", "predicted_labeller": "labeller", "predicted_same_log": "same_log"}
"""The parent that each section is predicted by."""


def _signal_rows(
    found: dict[str, dict[str, Rollouts]], judge: WorldModel, sessions: Sessions, data: SessionDataModule,
    signal: str, run: Run,
) -> list[Row]:  # fmt: skip
    draws, seed = run.config.evaluate.bootstrap, run.config.seed
    sums, weight_M, n = {}, np.zeros(0), 0
    for name, rollouts in found.items():
        sums[name], weight_M, n = _gain_sums(rollouts, sessions, data, signal)
    if n == 0:
        return []
    value = weighted_gain(weight_M)
    rows = []
    if "realised" in sums:
        for name in ROLES:
            pair_UC = np.concatenate([sums[name], sums["realised"]], 1)
            estimate = metrics.user_bootstrap(pair_UC, _over(value), n, draws, seed)
            rows.append(
                Row(name, "dpo", signal, "predicted_over_realised", "mean", "all", *estimate, "ratio")
            )
    users_U = np.unique(sessions.user_B.numpy())
    slope_U5 = _slope_sums(judge, data, signal, users_U)
    both_UC = np.concatenate([slope_U5, sums["predicted"]], 1)
    estimate = metrics.user_bootstrap(both_UC, corrected(value), n, draws, seed, level=LEVEL)
    unit = "scale points, 90 % interval"
    return [*rows, Row("predicted", "dpo", signal, "corrected_gain", "mean", "all", *estimate, unit)]


def corrected(value: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    """Slope times gain from [..., (five sums of the slope, those of the gain)]."""

    def statistic(sums: Floats) -> Floats:
        product: Floats = slope_of(sums[..., :5]) * value(sums[..., 5:])
        return product

    return statistic


def _over(value: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    def statistic(sums: Floats) -> Floats:
        half = sums.shape[-1] // 2
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Floats = value(sums[..., :half]) / value(sums[..., half:])
        return ratio

    return statistic


def _gain_sums(
    rollouts: dict[str, Rollouts], sessions: Sessions, data: SessionDataModule, signal: str
) -> tuple[Floats, Floats, int]:
    """Sums by user, in the order of all their numbers, as `metrics.gain_rows` weighs them."""
    meta = data.log.metadata
    share = metrics.logged_share(data.flat.mode_S.numpy(), meta.modes)
    dpo_B, copycat_B = (outcome(rollouts[name], signal) for name in ("dpo", "copycat"))
    return gain_sums(
        dpo_B, copycat_B, sessions.mode_B.numpy(), sessions.user_B.numpy(), signal, meta.modes, share
    )


def _slope_sums(judge: WorldModel, data: SessionDataModule, signal: str, users_U: Ints) -> Floats:
    """Sums of the uplift slope (n, x, y, xx, xy) of test users' reports, (U, 5); 0 for who gave none."""
    label = targets(data.log)[signal]
    keep_N = (data.part_S.numpy()[label.row] == TEST) & np.isin(label.user, users_U)
    label = kept(label, keep_N)
    given_N = predict(judge, data, signal, label, "tracks").mean_N
    columns_NC = slope_columns(label.value, given_N, predict_usual(judge, data, label.row)[signal])
    sums_UC = np.zeros((len(users_U), 5))
    np.add.at(sums_UC, np.searchsorted(users_U, label.user), columns_NC)
    return sums_UC
