"""How much of a predicted gain comes true, and whether the judge can say so honestly.

The policy was made to please the labeller, so the labeller overstates it (the optimiser's curse). Side by
side: the labeller; a model of the *same users* from another seed, which repeats the labeller's errors; the
judge, which shares no listener with it; the judge corrected by its own uplift slope; and the platform.
The corrected gain is the slope of held-out reports on the judge's predicted track effect times its predicted
gain; its interval draws users once for both, at 90 %. That slope is below 1 for the judge's noise, too, which
the policy never followed. The instrumented gain takes the slope along the labeller's effects instead, those
that the policy was made from (`track_effects.instrumented_slope_of`).

Shape suffixes: B sessions, N reports, U users, C columns of sums, M modes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from amrs import metrics
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.fidelity.fit import kept, predict, predict_usual
from amrs.fidelity.targets import AFFECT, Ints, targets
from amrs.fidelity.track_effects import instrument_columns, instrumented_slope_of, slope_columns, slope_of
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TEST
from amrs.metrics.fidelity import Floats
from amrs.metrics.gains import gain_sums, weighted_gain
from amrs.models.world_model import WorldModel
from amrs.outcomes import Sessions, choose_sessions, gain_rows, outcome, roll_out
from amrs.platform import load_truth
from amrs.policies import NeuralPolicy
from amrs.report import Row
from amrs.rollout import Environment, Rollouts
from amrs.runs import Run
from amrs.stages import bc, world_model
from amrs.stages.prepare import open_data
from amrs.utility import aims

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
    rows = gain_rows("predicted_same_log", found["predicted_same_log"], sessions, data,
                     config.utility, config.seed, section.bootstrap)  # fmt: skip
    for signal in AFFECT:
        if signal in data.log.metadata.signals:
            rows += _signal_rows(found, models, sessions, data, signal, run)
    return rows


ROLES = {"predicted": "judge", "predicted_labeller": "labeller", "predicted_same_log": "same_log"}
"""The parent that each section is predicted by."""


def _signal_rows(
    found: dict[str, dict[str, Rollouts]], models: dict[str, WorldModel], sessions: Sessions,
    data: SessionDataModule, signal: str, run: Run,
) -> list[Row]:  # fmt: skip
    draws, seed = run.config.evaluate.bootstrap, run.config.seed
    sums, weight_M, n = {}, np.zeros(0), 0
    for name, rollouts in found.items():
        sums[name], weight_M, n = _gain_sums(rollouts, sessions, data, signal, aims(run.config.utility))
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
    own_UC, instrument_UC = _slope_sums(models, data, signal, np.unique(sessions.user_B.numpy()))
    gain_UC, reports = sums["predicted"], int(instrument_UC[:, 0].sum())
    points = "scale points, 90 % interval"
    for metric, sums_UC, statistic, count, unit in (
        ("corrected_gain", np.concatenate([own_UC, gain_UC], 1), corrected(slope_of, 5, value), n, points),
        ("instrumented_gain", np.concatenate([instrument_UC, gain_UC], 1),
         corrected(instrumented_slope_of, 6, value), n, points),
        ("instrumented_slope", instrument_UC, instrumented_slope_of, reports,
         "true per predicted, 90 % interval"),
    ):  # fmt: skip
        estimate = metrics.user_bootstrap(sums_UC, statistic, count, draws, seed, level=LEVEL)
        rows.append(Row("predicted", "dpo", signal, metric, "mean", "all", *estimate, unit))
    return rows


def corrected(
    slope: Callable[[Floats], Floats], columns: int, value: Callable[[Floats], Floats]
) -> Callable[[Floats], Floats]:
    """Slope times gain from [..., (`columns` sums of the slope, those of the gain)]."""

    def statistic(sums: Floats) -> Floats:
        product: Floats = slope(sums[..., :columns]) * value(sums[..., columns:])
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
    rollouts: dict[str, Rollouts],
    sessions: Sessions,
    data: SessionDataModule,
    signal: str,
    aims: Mapping[str, float],
) -> tuple[Floats, Floats, int]:
    """Sums by user, in the order of all their numbers, as `metrics.gain_rows` weighs them."""
    meta = data.log.metadata
    share = metrics.logged_share(data.flat.mode_S.numpy(), meta.modes)
    dpo_B, copycat_B = (outcome(rollouts[name], signal) for name in ("dpo", "copycat"))
    return gain_sums(
        dpo_B, copycat_B, sessions.mode_B.numpy(), sessions.user_B.numpy(), signal, meta.modes, share, aims
    )


def _slope_sums(
    models: dict[str, WorldModel], data: SessionDataModule, signal: str, users_U: Ints
) -> tuple[Floats, Floats]:
    """Sums of the judge's own slope (n, x, y, xx, xy), (U, 5), and of its instrumented slope (U, 6), of test
    users' reports; 0 for who gave none."""
    label = targets(data.log)[signal]
    keep_N = (data.part_S.numpy()[label.row] == TEST) & np.isin(label.user, users_U)
    label = kept(label, keep_N)
    judge, labeller = models["predicted"], models["predicted_labeller"]
    given_N = predict(judge, data, signal, label, "tracks").mean_N
    usual = predict_usual(judge, data, label.row)[signal]
    # Other lists than the judge's: their chance must not be common to both.
    others_N = predict_usual(labeller, data, label.row, draw=1)[signal].mean_N
    effect_N = predict(labeller, data, signal, label, "tracks").mean_N - others_N
    found = []
    for columns_NC in (
        slope_columns(label.value, given_N, usual),
        instrument_columns(label.value, given_N, usual, effect_N),
    ):
        sums_UC = np.zeros((len(users_U), columns_NC.shape[1]))
        np.add.at(sums_UC, np.searchsorted(users_U, label.user), columns_NC)
        found.append(sums_UC)
    return found[0], found[1]
