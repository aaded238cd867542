"""Do off-policy intervals cover the truth? 400 repetitions on small platforms, policies of known value.

A repetition is the log of 100 listeners under production. The policies asked about are production tilted by
a track's valence, arousal, popularity or by chance, pi(a | h) proportional to mu(a | h) exp(s_a), so weights
and truth are known: the truth is what all listeners of the world report when the tilted policy plays to them
from the same starting states under other luck. The outcome model of the doubly robust estimate is a ridge
regression, cross-fitted: a session is scored by a model of other users.

Shape suffixes: S sessions, T plays, K tracks, J tilts, F features of a history, P of a track, B a fold's
rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.config.platform import PlatformConfig
from amrs.config.stages import OffPolicyConfig
from amrs.metrics.fidelity import Floats
from amrs.noise import normal
from amrs.off_policy import (
    Support,
    doubly_robust,
    gain,
    given,
    importance_weights,
    per_decision,
    ratio,
    snips,
    support,
)
from amrs.platform.catalogue import Catalogue, draw_catalogue
from amrs.platform.draws import hash_keys
from amrs.platform.dynamics import expected_report
from amrs.platform.listeners import Listeners, draw_listeners, session_counts, take
from amrs.platform.production import Production, ProductionState
from amrs.platform.reports import post_given
from amrs.platform.service import LONGEST, Plays, Shard, play_session, simulate
from amrs.report import Row
from amrs.rollout import Feedback
from amrs.runs import Run, read_json, write_json

WORLDS, REPETITIONS, USERS = 20, 20, 100
"""Catalogues; logs of each; listeners of a log (a tenth of the published scale: its test users)."""
TILTS = {
    "valence .15": ("valence", 0.15), "valence .3": ("valence", 0.3), "valence .45": ("valence", 0.45),
    "valence .8": ("valence", 0.8), "calm .3": ("arousal", -0.3), "popular .3": ("popularity", 0.3),
    "chance .25": ("chance", 0.25),
}  # fmt: skip
"""Log-odds of a track per standard deviation of its property in the catalogue."""
SIGNALS = ("valence", "arousal", "engagement")
ESTIMATORS = ("snips", "per_decision", "doubly_robust")
FOLDS, RIDGE, DRAWS = 5, 1.0, 500
TRUTH_LUCK = (900, 901)
"""Each world's truth is the mean of simulations of all its listeners under as many other lucks."""


@dataclass(frozen=True)
class World:
    """A catalogue, its listeners with their log, and the tilts."""

    config: PlatformConfig
    catalogue: Catalogue
    listeners: Listeners
    shard: Shard
    tilt_KJ: Tensor


class Tilted(Production):
    """Production with its probabilities multiplied by exp(`tilt_K`) and normalised."""

    def __init__(self, world: World, tilt_K: Tensor) -> None:
        super().__init__(world.config, world.catalogue, _no_history)
        self.factor_K = tilt_K.exp()

    def probabilities(self, state: ProductionState) -> Tensor:
        """Every track's probability, (B, K)."""
        odds_BK = super().probabilities(state).mul_(self.factor_K)
        return odds_BK.div_(odds_BK.sum(1, keepdim=True))


def rows(run: Run) -> list[Row]:
    """Coverage and withheld share; a world that is done is kept in the run folder and not made again."""
    found = []
    for number in range(WORLDS):
        path = _folder(run) / f"world-{number:03d}.json"
        if not path.exists():
            seed = run.config.seed * WORLDS + number
            write_json(path, answers(draw_world(seed, REPETITIONS * USERS), USERS))
        found += [{**line, "world": number} for line in read_json(path)]
    return coverage_rows(found, run.config.evaluate.off_policy)


def _folder(run: Run) -> Path:
    folder = run.folder if run.finished else run.partial
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def draw_world(seed: int, users: int, tracks: int = 300) -> World:
    """A small platform with the log of `users` listeners."""
    config = PlatformConfig(users=users, tracks=tracks, artists=tracks // 5, seed=seed, shard_users=users)
    catalogue = draw_catalogue(config)
    listeners = draw_listeners(config, seed, torch.arange(users))
    shard = simulate(config, catalogue, listeners, session_counts(config, seed, users))
    valence_K, arousal_K = catalogue.affect_K2.unbind(1)
    chance_K = normal(seed, TRUTH_LUCK[0], torch.arange(tracks))
    named = {"valence": valence_K, "arousal": arousal_K, "popularity": catalogue.log_popularity_K,
             "chance": chance_K}  # fmt: skip
    scaled = {name: (x_K - x_K.mean()) / x_K.std() for name, x_K in named.items()}
    tilt_KJ = torch.stack([factor * scaled[name] for name, factor in TILTS.values()], 1)
    return World(config, catalogue, listeners, shard, tilt_KJ)


def rewards(plays: Plays) -> dict[str, Floats]:
    """Each signal as (S, T), NaN where unknown: reports at the last play."""
    count_S = (plays.track_SN >= 0).sum(1)
    found = {}
    for column, name in enumerate(("valence", "arousal")):
        reward_ST = torch.full(plays.track_SN.shape, torch.nan)
        found[name] = reward_ST.scatter(1, count_S[:, None] - 1, plays.post_S2[:, column : column + 1])
    found["engagement"] = plays.engagement_SN
    return {name: reward_ST.double().numpy() for name, reward_ST in found.items()}


def true_values(world: World, tilt_K: Tensor) -> dict[str, float]:
    """What the listeners report and do when the tilted policy plays, from the logged starts."""
    found = [_simulated(world, tilt_K, luck) for luck in TRUTH_LUCK]
    return {name: float(np.mean([values[name] for values in found])) for name in SIGNALS}


def _simulated(world: World, tilt_K: Tensor, luck: int) -> dict[str, float]:
    shard = world.shard
    start = shard.starts._replace(key_S=hash_keys(shard.starts.key_S, luck))
    who = take(world.listeners, shard.user_S)
    plays, state, _ = play_session(world.config, world.catalogue, Tilted(world, tilt_K), who, start)
    # A report and whether it is given are independent once the state is known: their means, without chance.
    given_S = post_given(
        world.config, state, plays.left_S, plays.pre_S2[:, 0], plays.engagement_SN.nanmean(1)
    ).double()
    report_S2 = expected_report(world.config, state.affect_B2).double()
    valence, arousal = ((given_S[:, None] * report_S2).sum(0) / given_S.sum()).tolist()
    return {"valence": valence, "arousal": arousal, "engagement": float(plays.engagement_SN.nanmean())}


@dataclass(frozen=True)
class Logs:
    """What off-policy estimates are made of, for all tilts at once; NaN behind a session's last play."""

    log_ratio_STJ: Floats
    kl_J: Floats
    """KL(tilted || production) in nats per track."""
    known_STF: Floats
    """Features of history and logged track."""
    chosen_STJF: Floats
    """The same averaged over the tilted policy's own choice of the track."""


def replay(world: World) -> Logs:
    """Production asked again at every logged history: weights, and features under each tilt."""
    shard, catalogue = world.shard, world.catalogue
    plays, starts = shard.plays, shard.starts
    production = Production(world.config, catalogue, _no_history)
    memory = production.begin(starts.mode_S, starts.profile_SP, starts.hidden_S)
    feature_KP = torch.cat([catalogue.feature_KP, catalogue.energy_K[:, None]], 1)
    tracks, tilts = world.tilt_KJ.shape
    # One matrix product gives, under every tilt, the normaliser and the means of features and of the tilt.
    columns_KJC = torch.cat(
        [torch.ones(tracks, tilts, 1), world.tilt_KJ[..., None], feature_KP[:, None].expand(-1, tilts, -1)], 2
    )
    table_KC = (world.tilt_KJ.exp()[..., None] * columns_KJC).flatten(1)
    before_SF, heard_SP = _before(shard), torch.zeros(len(starts.mode_S), feature_KP.shape[1])
    ratios, kls, known, chosen = [], [], [], []
    for t in range(LONGEST):
        track_S = plays.track_SN[:, t].clamp(min=0)
        sums_SJC = (production.probabilities(memory) @ table_KC).unflatten(1, (tilts, -1))
        mean_SJC = sums_SJC[..., 1:] / sums_SJC[..., :1]
        log_total_SJ = sums_SJC[..., 0].log()
        on_S1 = plays.track_SN[:, t, None] >= 0
        ratios.append((world.tilt_KJ[track_S] - log_total_SJ).where(on_S1, torch.nan))
        kls.append((mean_SJC[..., 0] - log_total_SJ).where(on_S1, torch.nan))
        known.append(_history(before_SF, heard_SP, feature_KP[track_S], t))
        chosen.append(torch.stack(
            [_history(before_SF, heard_SP, mean_SJC[:, j, 1:], t) for j in range(tilts)], 1
        ))  # fmt: skip
        heard_SP = heard_SP + feature_KP[track_S]
        nothing = Feedback(plays.engagement_SN[:, t].nan_to_num(0.0), plays.rating_SN[:, t], on_S1[:, 0])
        memory = production.observe(memory, track_S, nothing)
    stacked = [torch.stack(parts, 1).numpy() for parts in (ratios, kls, known, chosen)]
    return Logs(stacked[0].astype(np.float64), np.nanmean(stacked[1], (0, 1)), stacked[2], stacked[3])


def _before(shard: Shard) -> Tensor:
    """What is known before the first track, (S, F): intercept, mode, pre-report."""
    missing_S1 = shard.plays.pre_S2[:, :1].isnan().float()
    mode_SM = torch.nn.functional.one_hot(shard.starts.mode_S, 4).float()
    return torch.cat([mode_SM, shard.plays.pre_S2.nan_to_num(0.5), missing_S1], 1)


def _history(before_SF: Tensor, heard_SP: Tensor, next_SP: Tensor, t: int) -> Tensor:
    """Features if the next track is `next_SP`: linear in it, so a mean over tracks is a mean of features."""
    time_S1 = torch.full((len(before_SF), 1), t / 10)
    return torch.cat([before_SF, time_S1, (heard_SP + next_SP) / (t + 1), next_SP], 1)


def answers(world: World, users: int) -> list[dict[str, Any]]:
    """One line for each repetition, tilt and signal: support, truth and every estimate with interval."""
    logs, played = replay(world), rewards(world.shard.plays)
    base = true_values(world, torch.zeros(len(world.tilt_KJ)))
    truth = {name: true_values(world, world.tilt_KJ[:, j]) for j, name in enumerate(TILTS)}
    user_S = world.shard.user_S.numpy()
    lines = []
    for number in range(int(user_S.max() + 1) // users):
        mine_S = user_S // users == number
        for signal, reward_ST in played.items():
            found = estimates(logs, reward_ST, user_S, mine_S, signal in ("valence", "arousal"))
            for j, (tilt, line) in enumerate(zip(TILTS, found, strict=True)):
                line |= {"tilt": tilt, "signal": signal, "kl": float(logs.kl_J[j])}
                line |= {"truth": truth[tilt][signal], "true_gain": truth[tilt][signal] - base[signal]}
                lines.append(line)
    return lines


def estimates(
    logs: Logs, reward_ST: Floats, user_S: np.ndarray, mine_S: np.ndarray, report: bool
) -> Iterator[dict[str, Any]]:
    """The estimates of one repetition (sessions `mine_S`) for each tilt."""
    reward_ST, user_S = reward_ST[mine_S], user_S[mine_S]
    played_ST = ~np.isnan(logs.log_ratio_STJ[mine_S, :, 0])
    models = [
        cross_fitted(logs, target_ST, played_ST, user_S, mine_S, report) for target_ST in given(reward_ST)
    ]
    logged_U2 = metrics.user_sums(np.stack([part.sum(1) for part in given(reward_ST)], 1), user_S)
    for j in range(len(TILTS)):
        weight_ST = importance_weights(logs.log_ratio_STJ[mine_S, :, j])
        size = support(weight_ST, reward_ST, user_S)
        robust = [
            doubly_robust(weight_ST, target_ST, q_ST, v_STJ[..., j])
            for target_ST, (q_ST, v_STJ) in zip(given(reward_ST), models, strict=True)
        ]
        columns = {"snips": snips(weight_ST, reward_ST), "per_decision": per_decision(weight_ST, reward_ST),
                   "doubly_robust": np.stack(robust, 1)}  # fmt: skip
        line: dict[str, Any] = {"sessions": size.sessions, "users": size.users}
        for name, columns_S2 in columns.items():
            sums_U2 = metrics.user_sums(columns_S2, user_S)
            pair_U4 = np.concatenate([sums_U2, logged_U2], 1)
            line[name] = metrics.studentised(sums_U2, ratio, size.users, 0)[:3]
            line[f"{name}_gain"] = metrics.studentised(pair_U4, gain, size.users, 0)[:3]
            if name == "per_decision":
                line["bootstrap"] = metrics.user_bootstrap(sums_U2, ratio, 0, DRAWS)[:3]
                line["bootstrap_gain"] = metrics.user_bootstrap(pair_U4, gain, 0, DRAWS)[:3]
        yield line


def cross_fitted(
    logs: Logs, target_ST: Floats, played_ST: np.ndarray, user_S: np.ndarray, mine_S: np.ndarray, report: bool
) -> tuple[Floats, Floats]:
    """q (S, T) and v (S, T, J) of `target_ST`, each session by a ridge regression of the other folds' users.

    A report is learned from last plays, where it is asked for; everything else from all plays.
    """
    known_STF, chosen_STJF = logs.known_STF[mine_S], logs.chosen_STJF[mine_S]
    learn_ST = played_ST.copy()
    if report:
        learn_ST[:, :-1] &= ~played_ST[:, 1:]
    q_ST, v_STJ = np.full(played_ST.shape, np.nan), np.full((*played_ST.shape, len(TILTS)), np.nan)
    codes_S = np.unique(user_S, return_inverse=True)[1]
    for fold in range(FOLDS):
        out_S = codes_S % FOLDS == fold
        x_BF = known_STF[~out_S][learn_ST[~out_S]].astype(np.float64)
        gram_FF = x_BF.T @ x_BF + RIDGE * np.eye(x_BF.shape[1])
        slope_F = np.linalg.solve(gram_FF, x_BF.T @ target_ST[~out_S][learn_ST[~out_S]])
        q_ST[out_S], v_STJ[out_S] = known_STF[out_S] @ slope_F, chosen_STJF[out_S] @ slope_F
    q_ST[~played_ST] = v_STJ[~played_ST] = np.nan
    return q_ST, v_STJ


def coverage_rows(lines: list[dict[str, Any]], config: OffPolicyConfig) -> list[Row]:
    """Shares of intervals that hold the truth, of those not withheld; intervals over worlds."""
    found = []
    for tilt in ("all", *TILTS):
        for signal in ("all", *SIGNALS):
            mine = [x for x in lines if tilt in ("all", x["tilt"]) and signal in ("all", x["signal"])]
            found += _coverage(mine, f"tilt:{tilt.replace(' ', '')}", signal, config)
    return found


def _coverage(mine: list[dict[str, Any]], subject: str, signal: str, config: OffPolicyConfig) -> list[Row]:
    small = [_withheld(line, config) for line in mine]
    told = [line for line, withheld in zip(mine, small, strict=True) if not withheld]
    figures: list[tuple[str, str, list[float], list[dict[str, Any]], str]] = [
        ("withheld", "all", [float(x) for x in small], mine, "fraction"),
        ("ess", "all", [line["sessions"] for line in mine], mine, "sessions"),
        ("kl", "all", [line["kl"] for line in mine], mine, "nats per track"),
    ]
    for name in (*ESTIMATORS, "bootstrap"):
        for metric, key, truth in (
            ("coverage_95", name, "truth"),
            ("gain_coverage_95", f"{name}_gain", "true_gain"),
        ):
            hits = [float(line[key][1] <= line[truth] <= line[key][2]) for line in told]
            figures.append((metric, f"estimator:{name}", hits, told, "fraction"))
    return [
        Row("off_policy", subject, signal, metric, "mean", group,
            *metrics.mean_interval(values, [line["world"] for line in lines]), unit)
        for metric, group, values, lines, unit in figures if values
    ]  # fmt: skip


def _withheld(line: dict[str, Any], config: OffPolicyConfig) -> bool:
    return Support(line["sessions"], line["users"]).too_small(config)


def _no_history(row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    raise LookupError("a tilted policy plays from a session's start, not from rows of a stored log")
