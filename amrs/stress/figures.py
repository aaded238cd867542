"""All rows of section `stress`: what happens to each policy's gain, and to whom.

Shape suffixes: B sessions, R simulations of each, N = B R rollouts, T steps, Q histories.
"""

from collections.abc import Mapping

import numpy as np
import torch

from amrs import metrics
from amrs.fidelity.targets import columns
from amrs.listeners import ImaginedListeners
from amrs.metrics import DIVERSITY
from amrs.outcomes import Sessions, groups, lists_of
from amrs.platform.world import PlatformEnvironment
from amrs.report import Row
from amrs.rollout import Environment, Rollouts
from amrs.stress import adversary, counterfactual, later, perturbed, properties
from amrs.stress.dynamics import Forecasting
from amrs.stress.evidence import evidence_rows
from amrs.stress.harm import harm
from amrs.stress.simulation import START, simulate, simulations
from amrs.stress.trial import Trial

PAIRED, ITSELF = 930, 931
"""Purposes of draws: paired luck, and other luck for Copycat against itself."""
_SHOWN, _FUTURES = 5, 4
_VARIETY = {"effective_tracks": "tracks", "catalogue_coverage": "fraction", "entropy": "fraction"}


def stress_rows(trial: Trial) -> tuple[list[Row], list[dict[str, object]]]:
    """Every row, and the worst cases in words, without any id."""
    section, seed = trial.config.stress, trial.config.seed
    lucky = simulations(trial.sessions, section.simulations, seed, PAIRED)
    other = simulations(trial.sessions, section.simulations, seed, ITSELF)
    targets = trial.utility.targets
    listeners = ImaginedListeners(trial.judge, trial.data, trial.sessions.horizon, targets)
    judge = Forecasting(listeners, START)
    found = trial.simulate(judge, lucky)
    itself = simulate(trial.policies["copycat"], judge, trial.data.rules(), other)
    rows = _gains(trial, found) + _harm(trial, "stress", found, itself)
    rows += _variety(trial, found, lucky) + _drift(trial, judge)
    rows += perturbed.path_rows(trial, found) + perturbed.world_rows(trial, found, PAIRED)
    rows += perturbed.member_rows(trial, found, lucky) + perturbed.half_rows(trial, found)
    rows += perturbed.confounding_rows(trial, rows) + evidence_rows(trial)
    rows += _histories(trial)
    worst, cases = _adversary(trial, found, listeners)
    if trial.platform is not None:
        true = trial.simulate(trial.platform, lucky)
        itself = simulate(trial.policies["copycat"], trial.platform, trial.data.rules(), other)
        rows += _harm(trial, "realised", true, itself)
        rows += _to_come(trial, trial.platform)
    return rows + worst, cases


def _gains(trial: Trial, found: Mapping[str, Rollouts]) -> list[Row]:
    base = trial.outcomes(found["copycat"])
    rows = []
    for name in trial.names:
        value = trial.outcomes(found[name])
        for group, keep_B in groups(trial.sessions, trial.data):
            rows += trial.gain_rows(name, value, base, group, keep_B)
    return rows


def _harm(trial: Trial, section: str, found: Mapping[str, Rollouts], itself: Rollouts) -> list[Row]:
    """Harm of each policy, and of Copycat against itself under other luck."""
    if "valence" not in found["copycat"].expected:
        return []
    base_B = trial.affect(found["copycat"])["valence"]
    delta = {name: trial.affect(found[name])["valence"] - base_B for name in trial.names}
    delta["copycat"] = trial.affect(itself)["valence"] - base_B
    user_B, draws, seed = trial.sessions.user_B.numpy(), trial.config.evaluate.bootstrap, trial.config.seed
    return [
        Row(section, name, "valence", "harm", "mean", group,
            *harm(delta_B[keep_B], user_B[keep_B], draws, seed), "fraction")
        for name, delta_B in delta.items() for group, keep_B in groups(trial.sessions, trial.data)
    ]  # fmt: skip


def _to_come(trial: Trial, platform: PlatformEnvironment) -> list[Row]:
    """What is left of each policy's true gain after many sessions of it."""
    lucky = simulations(trial.sessions, _FUTURES, trial.config.seed, later.TO_COME)
    valence = {name: later.valence_to_come(policy, platform, trial.data.rules(), lucky, trial.config.seed)
               for name, policy in trial.policies.items()}  # fmt: skip
    draws, seed = trial.config.evaluate.bootstrap, trial.config.seed
    return [
        Row("realised", name, "valence", "later_gain", "mean", "all",
            *metrics.mean_interval(valence[name] - valence["copycat"], lucky.user_B.numpy(), draws, seed),
            "scale points")
        for name in trial.names
    ]  # fmt: skip


def _variety(trial: Trial, found: Mapping[str, Rollouts], lucky: Sessions) -> list[Row]:
    """Diversity of what the judge's listeners were played: the platform's truth has no part in it.

    It is that of one simulation a session, averaged over simulations: all of them together would cover most
    of a catalogue, whoever plays.
    """
    count = len(lucky.row_B) // len(trial.sessions.row_B)
    user_R = np.zeros(len(trial.sessions.row_B), np.int64)
    rows = []
    for name, lists in lists_of(found, lucky, trial.data).items():
        once = [lists.rows(np.arange(r, len(lucky.row_B), count), user_R) for r in range(count)]
        for metric, unit in _VARIETY.items():
            value = float(np.mean([DIVERSITY[metric](each) for each in once]))
            rows.append(
                Row("stress", name, "all", metric, "mean", "all", value, None, None, len(user_R), unit)
            )
    return rows


def _drift(trial: Trial, judge: Environment) -> list[Row]:
    """KL to Copycat on the policy's own histories in the judge."""
    draws, seed = trial.config.evaluate.bootstrap, trial.config.seed
    once = simulations(trial.sessions, 1, seed, PAIRED)
    user_B, copycat, rows = trial.sessions.user_B.numpy(), trial.policies["copycat"], []
    for name in trial.names:
        rollouts = simulate(trial.policies[name], judge, trial.data.rules(), once, copycat)
        assert rollouts.kl_BT is not None
        sums_B2 = torch.stack([rollouts.kl_BT.nansum(1), rollouts.played_BT.sum(1)], 1).double().numpy()
        sums = metrics.user_sums(sums_B2, user_B)
        estimate = metrics.user_bootstrap(sums, metrics.mean_of, len(user_B), draws, seed)
        rows.append(Row("stress", name, "all", "kl", "mean", "all", *estimate, "nats per track"))
    return rows


def _histories(trial: Trial) -> list[Row]:
    """Hard and statistical properties on made-up histories; of all hard checks, the share that fail."""
    row_B, user_B = trial.sessions.row_B.numpy(), trial.sessions.user_B.numpy()
    last_B = np.r_[user_B[1:] != user_B[:-1], True]  # the longest history of each user
    real = counterfactual.logged(columns(trial.data.log), row_B[last_B][: trial.config.stress.histories])
    made = {name: edit(real, trial.config.model.history) for name, edit in counterfactual.EDITS.items()}
    made["as_logged"] = real
    rows = []
    for name in trial.readers:
        policy, total = trial.policies[name], properties.NONE
        for kind, histories in made.items():
            hard = properties.hard(policy, trial.data, histories, trial.config.seed)
            found = sum(hard.values(), properties.NONE)
            total = total + found
            rows.append(_violations(name, f"history:{kind}", found))
        rows.append(_violations(name, "all", total))
        worse = properties.worse_feedback(policy, trial.data, real)
        if worse.checks:
            rows.append(_violations(name, "history:worse_feedback", worse))
            rows.append(Row("stress", name, "all", "worst_violation", "mean", "history:worse_feedback",
                            worse.worst, None, None, worse.checks, "nats"))  # fmt: skip
    return rows


def _violations(subject: str, group: str, found: properties.Found) -> Row:
    share, checks = found.violations / found.checks, found.checks
    return Row("stress", subject, "all", "violations", "mean", group, share, None, None, checks, "fraction")


def _adversary(
    trial: Trial, found: Mapping[str, Rollouts], judge: Environment
) -> tuple[list[Row], list[dict[str, object]]]:
    """The worst real histories, and variants of them, for each policy."""
    if "valence" not in found["copycat"].expected:
        return [], []
    log, section = columns(trial.data.log), trial.config.stress
    base_B, rows, cases = trial.affect(found["copycat"])["valence"], [], []
    for name in [name for name in trial.readers if name != "copycat"]:
        delta_B = trial.affect(found[name])["valence"] - base_B
        worst = adversary.search(
            trial.policies[name], trial.policies["copycat"], judge, trial.data, log, trial.sessions, delta_B,
            section.candidates, section.variants, trial.config.seed,
        )[:_SHOWN]  # fmt: skip
        for rank, case in enumerate(worst, start=1):
            rows.append(Row("stress", name, "valence", "gain", "mean", f"worst:{rank}", case.delta, None,
                            None, adversary.SIMULATIONS, "scale points"))  # fmt: skip
            cases.append({"policy": name, "rank": rank, **_about(trial, case)})
    return rows, cases


def _about(trial: Trial, case: adversary.Worst) -> dict[str, object]:
    """What a history is like, without saying whose."""
    flat, meta = trial.data.flat, trial.data.log.metadata
    mode, cohort = int(flat.mode_S[case.row]), int(flat.cohort_S[case.row])
    return {
        "valence_delta": round(case.delta, 4),
        "mode": meta.modes[mode] if mode >= 0 else None,
        "cohort": meta.cohorts[cohort] if cohort >= 0 else None,
        "earlier_sessions": case.row - int(flat.row_U[flat.user_S[case.row]]),
        "plays_with_other_feedback": case.changed,
    }
