"""Are predicted track effects real, and may the uplift slope be believed about it?

On logs only the uplift slope is known: held-out reports' residual regressed on the predicted track effect. On
small worlds the truth is known too, so its interval from a few listeners is held against two true slopes, of
the other test listeners: of the true effect of the tracks that were played (the oracle's expectation with
them, less its mean over the lists that the predicted effect is counted from), and of the same regression
without sampling error.
Shape suffixes: N labels, B sessions, C lists of tracks, T tracks of a list, W worlds.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs.config.data import SplitConfig
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.fidelity.fit import held_out_labels, predict, usual_columns
from amrs.fidelity.targets import AFFECT, targets
from amrs.fidelity.track_effects import (
    DRAWS,
    LISTS,
    Usual,
    likely_lists,
    other_lists,
    slope_columns,
    slope_of,
    true_effect_rows,
    uplift_slope,
    usual_odds,
)
from amrs.logs.histories import played_before
from amrs.logs.splits import TEST as TEST_PART
from amrs.outcomes import choose_sessions
from amrs.platform import Platform, load_truth
from amrs.report import Row
from amrs.runs import Run, RunError
from amrs.stages import world_model
from amrs.stages.prepare import open_data

USERS, TRACKS, ARTISTS = 200, 300, 40
"""Size of a small world: 60 users train, 20 validate, 120 test."""
VALIDATION, TEST = 0.1, 0.6
MEASURED = 30
"""Test users whose reports give a world's uplift slope; the others give the truth."""
_Z = 1.959964


class Slopes(NamedTuple):
    """One signal of one world."""

    value: float
    low: float
    high: float
    true: float
    """Slope of the true on the predicted effect."""
    regression: float
    """The uplift slope among the other test users."""


def parts(config: Config) -> dict[str, Config]:
    """A world model in each small world, and one for each number of users of the learning curve."""
    if config.data.name != "platform":
        raise RunError(
            f"evaluate.study=effects needs the truth, which data={config.data.name} does not have: "
            "give data=platform"
        )
    worlds = {f"world_{k}": _small(config, k) for k in range(config.evaluate.worlds)}
    return worlds | {f"users_{n}": of_size(config, n) for n in config.evaluate.curve}


def _small(config: Config, k: int) -> Config:
    platform = replace(
        config.data.platform, seed=config.data.platform.seed + 1000 + k, users=USERS, tracks=TRACKS,
        artists=ARTISTS,
    )  # fmt: skip
    split = SplitConfig(seed=config.data.split.seed + k, validation=VALIDATION, test=TEST)
    return replace(config, stage="world_model", data=replace(config.data, platform=platform, split=split))


def of_size(config: Config, users: int) -> Config:
    """A world model on the log of so many users of the same world."""
    platform = replace(config.data.platform, users=users)
    return replace(config, stage="world_model", data=replace(config.data, platform=platform))


def rows(run: Run) -> list[Row]:
    """Coverage of the uplift slope over small worlds; true effects per number of training users."""
    section, seed = run.config.evaluate, run.config.seed
    found: list[Row] = []
    worlds = [slopes(run.parents[f"world_{k}"], seed) for k in range(section.worlds)]
    for signal in AFFECT:
        found += coverage_rows(signal, [world[signal] for world in worlds if signal in world])
    for users in section.curve:
        part = run.parents[f"users_{users}"]
        data, platform = open_data(part), _truth(part)
        model = world_model.load(part.folder, data)
        sessions = choose_sessions(data, section.sessions, section.horizon, seed)
        production = platform.production()
        log_p_BK = production.logits(production.start(sessions.row_B))
        lists_BCT = likely_lists(log_p_BK, sessions.key_B, LISTS, sessions.horizon)
        measured = true_effect_rows(model, data, platform, sessions.row_B, lists_BCT, section.bootstrap, seed)
        training = len(data.users(0))
        found += [replace(row, group=f"users:{training}") for row in measured]
    return found


def slopes(part: Run, seed: int) -> dict[str, Slopes]:
    """The uplift slope of one small world by signal, its interval, and the two true slopes."""
    data, platform = open_data(part), _truth(part)
    model = world_model.load(part.folder, data)
    labels = held_out_labels(targets(data.log), data.part_S.numpy(), TEST_PART)
    labels = {name: label for name, label in labels.items() if name in AFFECT}
    usual = usual_columns(model, data, labels)
    few_U = np.random.default_rng(seed).permutation(data.users(TEST_PART).numpy())[:MEASURED]
    rest_B = np.unique(np.concatenate([label.row[~np.isin(label.user, few_U)] for label in labels.values()]))
    true = played_effects(platform, data, torch.from_numpy(rest_B))
    found = {}
    for signal, label in labels.items():
        given_N, few_N = predict(model, data, signal, label).mean_N, np.isin(label.user, few_U)
        few, rest = (
            (label.value[of_N], given_N[of_N], Usual(*(x_N[of_N] for x_N in usual[signal].values())))
            for of_N in (few_N, ~few_N)
        )
        estimate = uplift_slope(*few, label.user[few_N])
        effect_N = true[signal][np.searchsorted(rest_B, label.row[~few_N])].numpy()
        if estimate.low is not None and estimate.high is not None:
            found[signal] = Slopes(
                estimate.value, estimate.low, estimate.high, slope(rest[1] - rest[2].mean_N, effect_N),
                float(slope_of(slope_columns(*rest).sum(0))),
            )  # fmt: skip
    return found


def slope(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Least-squares slope with intercept of y on x."""
    ones_N = np.ones_like(x_N)
    return float(slope_of(np.stack([ones_N, x_N, y_N, x_N * x_N, x_N * y_N], -1).sum(0)))


def played_effects(platform: Platform, data: SessionDataModule, row_B: Tensor) -> dict[str, Tensor]:
    """True effect (B,) of the tracks that sessions `row_B` had, against the first `LISTS` of `other_lists`.

    The same listener, state and mode, and the same chance, in expectation over `DRAWS` simulations. The
    predicted effect counts from these lists too, so their luck is the same on both sides of the true slope.
    """
    played_BT = played_before(data.flat, row_B, data.flat.length_S[row_B])
    odds_BK = usual_odds(data)[data.flat.mode_S[row_B]]
    lists_BCT = other_lists(odds_BK, row_B, played_BT.shape[1]).where((played_BT >= 0)[:, None], -1)
    with_played = platform.oracle(row_B, played_BT, DRAWS)
    others = [platform.oracle(row_B, track_BT, DRAWS) for track_BT in lists_BCT[:, :LISTS].unbind(1)]
    return {x: with_played[x] - torch.stack([other[x] for other in others]).mean(0) for x in AFFECT}


def coverage_rows(signal: str, worlds: Sequence[Slopes]) -> list[Row]:
    """Share of worlds whose interval holds the true slope (Wilson 1927), and the mean slopes over worlds."""
    if not worlds:
        return []
    values_W = np.array(worlds)
    low_W, high_W = values_W[:, 1], values_W[:, 2]
    found = []
    for group, column in (("all", 3), ("compared:regression", 4)):
        inside_W = (low_W <= values_W[:, column]) & (values_W[:, column] <= high_W)
        estimate = wilson(int(inside_W.sum()), len(worlds))
        found.append(Row("fidelity", "world_model", signal, "slope_coverage", "mean", group, *estimate,
                         len(worlds), "fraction"))  # fmt: skip
    for metric, column, unit in (("uplift_slope", 0, "residual per predicted"),
                                 ("effect_slope", 3, "true per predicted")):  # fmt: skip
        mean = float(values_W[:, column].mean())
        half = _Z * float(values_W[:, column].std(ddof=1)) / math.sqrt(len(worlds)) if len(worlds) > 1 else 0
        found.append(Row("fidelity", "world_model", signal, metric, "mean", "world:mean", mean, mean - half,
                         mean + half, len(worlds), unit))  # fmt: skip
    return found


def wilson(hits: int, count: int) -> tuple[float, float, float]:
    """A share with its 95 % interval (Wilson 1927)."""
    share, z2 = hits / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return share, max(middle - half, 0.0), min(middle + half, 1.0)


def _truth(part: Run) -> Platform:
    return load_truth(part.parents["prepare"].folder / "truth")
