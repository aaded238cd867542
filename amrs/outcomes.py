"""What policies do to listeners: predicted by the judge and the labeller, realised where truth is known.

Every policy meets the same sessions of test users with the same random numbers.
Shape suffixes: B sessions, T steps, K tracks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from amrs import metrics
from amrs.cluster.shares import Share, alone
from amrs.config.groups import UtilityConfig
from amrs.data import SessionDataModule
from amrs.fidelity.targets import AFFECT, Ints, Target, targets
from amrs.logs.splits import TEST, TRAIN
from amrs.metrics import DIVERSITY, Lists
from amrs.noise import hash_keys, uniform
from amrs.report import Row
from amrs.rollout import Environment, Policy, Rollouts, imagine
from amrs.rules import Rules, histories_at_once
from amrs.utility import Utility, aims, yardstick

_DIVERSITY_DRAWS = 50
"""Bootstrap draws for diversity, which is recomputed in each."""
SESSIONS, LUCK = 600, 601
"""Purposes of draws: which sessions are rolled out, and their luck."""
_UNITS = {"catalogue_coverage": "fraction", "entropy": "fraction", "effective_tracks": "tracks",
          "intra_list": "cosine distance", "gini": "fraction", "artist_entropy": "fraction",
          "novelty": "bits", "repeat_rate": "fraction", "between_listeners": "fraction"}  # fmt: skip


@dataclass(frozen=True)
class Sessions:
    """The held-out sessions that every policy is rolled out from."""

    row_B: Tensor
    key_B: Tensor
    mode_B: Tensor
    user_B: Tensor
    cohort_B: Tensor
    horizon: int


def choose_sessions(
    data: SessionDataModule, count: int, horizon: int | None, seed: int, part: int = TEST
) -> Sessions:
    """`count` starts of sessions of `part`'s users, spread evenly over the users.

    Sessions with reports after tracks are a laboratory's protocol, not listening, and are left out, unless
    the users' sessions are all like that.
    A horizon of None is the median length of training users' sessions.
    """
    flat = data.flat
    reported_N = ~flat.feedback_N4[:, 2:].isnan().all(1)
    laboratory_S = torch.zeros(len(flat.mode_S), dtype=torch.bool)
    laboratory_S[flat.session_N[reported_N]] = True
    if laboratory_S[data.rows(TRAIN)].all() or laboratory_S[data.rows(part)].all():
        laboratory_S[:] = False
    if horizon is None:
        training = data.rows(TRAIN)
        horizon = int(flat.length_S[training[~laboratory_S[training]]].double().median())
    rows = data.rows(part)
    rows = rows[~laboratory_S[rows]]
    order = uniform(seed, SESSIONS, rows).argsort()
    rows = rows[order]
    turn_B = _occurrence(flat.user_S[rows])
    rows = rows[turn_B.argsort(stable=True)][:count].sort().values
    return Sessions(rows, hash_keys(seed, LUCK, rows), flat.mode_S[rows], flat.user_S[rows],
                    flat.cohort_S[rows], horizon)  # fmt: skip


def several_times(sessions: Sessions, count: int) -> Sessions:
    """Each session `count` times in a row: under its own luck first, then under that of each number."""
    key_BR = torch.stack([sessions.key_B, *(hash_keys(sessions.key_B, n) for n in range(1, count))], 1)
    return repeated(sessions, key_BR)


def repeated(sessions: Sessions, key_BR: Tensor) -> Sessions:
    """Each session once a key, its simulations in a row; B sessions, R keys of each."""
    row_N, mode_N, user_N, cohort_N = (
        x_B.repeat_interleave(key_BR.shape[1])
        for x_B in (sessions.row_B, sessions.mode_B, sessions.user_B, sessions.cohort_B)
    )
    return Sessions(row_N, key_BR.flatten(), mode_N, user_N, cohort_N, sessions.horizon)


def _occurrence(user_B: Tensor) -> Tensor:
    """How many earlier entries have the same user, (B,)."""
    order = user_B.argsort(stable=True)
    sorted_B = user_B[order]
    first_B = torch.searchsorted(sorted_B, sorted_B)
    turn_B = torch.empty_like(user_B)
    turn_B[order] = torch.arange(len(user_B)) - first_B
    return turn_B


def roll_out(
    policies: Mapping[str, Policy],
    environment: Environment,
    rules: Rules,
    sessions: Sessions,
    batch: int = 256,
    share: Share = alone,
    name: str = "rollouts",
) -> dict[str, Rollouts]:
    """Every policy in the same environment; KL to Copycat is taken on each policy's own histories.

    Batches of one policy's sessions are the units that processes share, under `name` and their size, which
    may differ by device.
    """
    batch = histories_at_once(rules.mode_MK.shape[1], batch)
    name = f"{name} by {batch}"
    parts = torch.arange(len(sessions.row_B)).split(batch)
    units = [(policy, index) for policy in policies.values() for index in parts]

    def work(unit: int) -> dict[str, Any]:
        policy, index = units[unit]
        return vars(imagine(
            policy, environment, rules, sessions.mode_B[index], sessions.row_B[index],
            sessions.key_B[index], sessions.horizon, policies["copycat"],
        ))  # fmt: skip

    found, count = [Rollouts(**rollouts) for rollouts in share(name, len(units), work)], len(parts)
    return {policy: Rollouts.join(found[n * count : (n + 1) * count]) for n, policy in enumerate(policies)}


def outcome(rollouts: Rollouts, signal: str) -> np.ndarray:
    """The session's outcome (B,): the expected report at its end, or its distance to a target; or the mean
    over its plays."""
    of_report = signal.startswith(AFFECT)
    value_B = rollouts.final(signal) if of_report else rollouts.per_play(signal)
    return value_B.double().numpy()


def mean_outcome(rollouts: Rollouts, signal: str, sessions: int) -> np.ndarray:
    """Mean over the simulations of each session, which lie together, (B,)."""
    mean_B: np.ndarray = outcome(rollouts, signal).reshape(sessions, -1).mean(1)
    return mean_B


def gain_rows(
    section: str, found: Mapping[str, Rollouts], sessions: Sessions, data: SessionDataModule,
    config: UtilityConfig, seed: int, draws: int,
) -> list[Row]:  # fmt: skip
    """Means of every policy and gains over Copycat, in all and by cohort and mode."""
    meta = data.log.metadata
    share = metrics.logged_share(data.flat.mode_S.numpy(), meta.modes)
    within = _within_person(data)
    mode_B, user_B = sessions.mode_B.numpy(), sessions.user_B.numpy()
    rows = []
    for subject, rollouts in found.items():
        for signal in meta.signals:
            value_B, base_B = (mean_outcome(x, signal, len(mode_B)) for x in (rollouts, found["copycat"]))
            for group, keep_B in groups(sessions, data):
                estimate = metrics.mean_interval(value_B[keep_B], user_B[keep_B], draws, seed)
                rows.append(Row(section, subject, signal, "mean", "mean", group, *estimate, "scale points"))
                if subject != "copycat":
                    rows += metrics.gain_rows(
                        value_B[keep_B], base_B[keep_B], mode_B[keep_B], user_B[keep_B], section=section,
                        subject=subject, signal=signal, modes=meta.modes, share=share,
                        within_sd=within.get(signal), group=group, draws=draws, seed=seed,
                        aims=aims(config),
                    )  # fmt: skip
                if "production" in found and subject != "production":
                    logged_B = mean_outcome(found["production"], signal, len(mode_B))
                    over = metrics.gain_rows(
                        value_B[keep_B], logged_B[keep_B], mode_B[keep_B], user_B[keep_B], section=section,
                        subject=subject, signal=signal, modes=meta.modes, share=share, group=group,
                        draws=draws, seed=seed, aims=aims(config),
                    )  # fmt: skip
                    rows += [replace(r, metric="gain_over_production") for r in over if r.metric == "gain"]
    return rows


def utility_rows(
    section: str, found: Mapping[str, Rollouts], sessions: Sessions, data: SessionDataModule,
    config: UtilityConfig, spread: Mapping[str, float], seed: int, draws: int,
) -> list[Row]:  # fmt: skip
    """Gains over Copycat in the *default* utility (`utility.yardstick`), whatever policies were trained for.

    So runs with different weights can be compared. `spread` is that of predicted effects under Copycat
    (`carry.measure_effects`), which depends on no weight; the unit is one such spread.
    """
    meta = data.log.metadata
    utility = Utility(yardstick(config), meta.modes, spread)
    share = metrics.logged_share(data.flat.mode_S.numpy(), meta.modes)
    mode_B, user_B = sessions.mode_B.numpy(), sessions.user_B.numpy()
    value = {name: session_utility(rollouts, utility, sessions.mode_B) for name, rollouts in found.items()}
    rows: list[Row] = []
    for subject in [name for name in found if name != "copycat"]:
        for group, keep_B in groups(sessions, data):
            rows += metrics.gain_rows(
                value[subject][keep_B], value["copycat"][keep_B], mode_B[keep_B], user_B[keep_B],
                section=section, subject=subject, signal="utility", modes=meta.modes, share=share,
                group=group, draws=draws, seed=seed,
            )  # fmt: skip
    # Utility has no natural zero, so a gain relative to Copycat's means nothing.
    return [replace(row, unit="spreads of effects") for row in rows if row.metric == "gain"]


def session_utility(rollouts: Rollouts, utility: Utility, mode_B: Tensor) -> np.ndarray:
    """The utility of each session's expected outcome, a mean over its simulations, as (B,); the listeners
    must know `utility.targets`."""
    means = {name: mean_outcome(rollouts, name, len(mode_B)) for name in rollouts.expected}
    values = {name: torch.from_numpy(mean_B) for name, mean_B in means.items()}
    return utility.of_values(values, mode_B).numpy()


def _within_person(data: SessionDataModule) -> dict[str, float]:
    """Within-person standard deviation of training users' final reports."""
    part_S = data.part_S.numpy()
    found: dict[str, Target] = targets(data.log)
    return {
        name: metrics.within_person_sd(label.value[keep], label.user[keep])
        for name, label in found.items()
        if name in ("valence", "arousal") and (keep := part_S[label.row] == TRAIN).any()
    }


def groups(sessions: Sessions, data: SessionDataModule) -> Iterator[tuple[str, np.ndarray]]:
    """All sessions, and those of each cohort and mode that has any, as bool (B,)."""
    meta = data.log.metadata
    groups = {"all": torch.ones(len(sessions.row_B), dtype=torch.bool)}
    groups |= {f"cohort:{name}": sessions.cohort_B == code for code, name in enumerate(meta.cohorts)}
    groups |= {f"mode:{name}": sessions.mode_B == code for code, name in enumerate(meta.modes)}
    yield from ((name, keep_B.numpy()) for name, keep_B in groups.items() if keep_B.any())


def diversity_rows(
    found: Mapping[str, Rollouts], sessions: Sessions, data: SessionDataModule, seed: int, draws: int
) -> list[Row]:
    """Diversity at equal numbers of recommendations, and KL(policy || Copycat) in nats per track."""
    user_B = sessions.user_B.numpy()
    rows = []
    for subject, lists in lists_of(found, sessions, data).items():
        for metric, figure in DIVERSITY.items():
            again = partial(_diversity, figure, lists)
            estimate = metrics.resampled_users(again, user_B, _DIVERSITY_DRAWS, seed, centred=True)
            rows.append(Row("diversity", subject, "all", metric, "mean", "all", *estimate, _UNITS[metric]))
        kl_BT, played_BT = found[subject].kl_BT, found[subject].played_BT
        if subject != "copycat" and kl_BT is not None:
            sums_B2 = torch.stack([kl_BT.nansum(1), played_BT.sum(1)], 1).double().numpy()
            estimate = metrics.user_bootstrap(
                metrics.user_sums(sums_B2, user_B), metrics.mean_of, len(user_B), draws, seed
            )
            rows.append(Row("diversity", subject, "all", "kl", "mean", "all", *estimate, "nats per track"))
    return rows


def lists_of(found: Mapping[str, Rollouts], sessions: Sessions, data: SessionDataModule) -> dict[str, Lists]:
    """What each policy recommended, at equal numbers of recommendations."""
    tracks = metrics.equal_lengths({name: r.track_BT.numpy() for name, r in found.items()})
    plays_K = data.plays(TRAIN).double().numpy() + 1
    embedding_KE = data.embedding_KE.double().numpy()
    embedding_KE = metrics.unit(embedding_KE - embedding_KE.mean(0))
    about = (sessions.user_B.numpy(), embedding_KE, _artists(data), plays_K / plays_K.sum())
    return {name: Lists(track_BT, *about) for name, track_BT in tracks.items()}


def _diversity(figure: Callable[[Lists], float], lists: Lists, row: Ints, user: Ints) -> float:
    return figure(lists.rows(row, user))


def _artists(data: SessionDataModule) -> np.ndarray:
    column = data.log.catalogue.with_format("arrow")[:]["artist"].combine_chunks().dictionary_encode()
    return np.asarray(pa.compute.fill_null(column.indices, -1).to_numpy(), dtype=np.int64)
