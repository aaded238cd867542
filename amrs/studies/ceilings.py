"""How good could predictions be? Two ceilings: the truth itself, and what history allows.

Full information: expectations from the platform's true state, so only chance is left. History: the world
model's learning curve over numbers of users, extrapolated to ten times the command's training users. The
share that is reached has an interval over the listeners who are scored, the same for all sizes.
Shape suffixes: B sessions, T tracks, N labels, J sizes of the log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from amrs import metrics
from amrs.config.data import SplitConfig
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.fidelity.fit import kept, model_table
from amrs.fidelity.predictions import fit_rows, predictors, table
from amrs.fidelity.targets import AFFECT, targets, training_mean
from amrs.fidelity.track_effects import DRAWS
from amrs.logs.histories import played_before
from amrs.logs.splits import TEST, TRAIN
from amrs.platform import Platform, load_truth
from amrs.report import Row
from amrs.runs import Run, RunError
from amrs.stages import world_model
from amrs.stages.prepare import open_data
from amrs.studies.calibration import fresh_data
from amrs.studies.effects import of_size

FRESH = 1000
"""New listeners of the same world on whom models of all sizes are scored: test users of a small log are too
few to tell a twentieth, and each log's would be others."""
ALL_TESTED = SplitConfig(validation=0.01, test=0.94)
"""The rest gives the training mean that R2 is about."""
TIMES = 10
"""Training users, in multiples of the command's, at which the learning curve is read."""
_DRAWS = 200
"""Of the share's interval."""
POWERS = np.arange(0.1, 2.01, 0.05)
"""Exponents of the learning curve that are tried."""


class Curve(NamedTuple):
    """value(n) = limit - fall * n ** -power."""

    limit: float
    fall: float
    power: float

    def at(self, users: float) -> float:
        """The figure with so many training users."""
        return float(self.limit - self.fall * users**-self.power)


def parts(config: Config) -> dict[str, Config]:
    """A world model for each size of the log."""
    if config.data.name != "platform":
        raise RunError(
            f"evaluate.study=ceilings needs the truth, which data={config.data.name} does not have: "
            "give data=platform"
        )
    return {f"users_{n}": of_size(config, n) for n in config.evaluate.curve}


def rows(run: Run) -> list[Row]:
    """Both ceilings, the learning curve, and the share of the history ceiling that the model reaches."""
    section, seed = run.config.evaluate, run.config.seed
    own_users = len(open_data(run).users(TRAIN))
    platform, data = fresh_data(load_truth(run.parents["prepare"].folder / "truth"), run, FRESH, ALL_TESTED)
    found = fit_rows(full_information(platform, data), section.bootstrap, seed)
    curve = {own_users: _table(run.parents["world_model"].folder, data)}
    for n in section.curve:
        part = run.parents[f"users_{n}"]
        users = len(open_data(part).users(TRAIN))
        if users not in curve:
            curve[users] = _table(part.folder, data)
    for users, frame in curve.items():
        found += [
            replace(row, group=f"users:{users}")
            for row in fit_rows(frame, section.bootstrap, seed)
            if row.metric in ("r2", "auroc") and row.group == "all"
        ]
    return found + ceiling_rows(curve, own_users, section.bootstrap, seed)


def _table(folder: Path, data: SessionDataModule) -> pd.DataFrame:
    return model_table("world_model", world_model.load(folder, data), data)


def ceiling_rows(curve: Mapping[int, pd.DataFrame], users: int, draws: int, seed: int) -> list[Row]:
    """What history allows by the learning curve, and the share of it that `users` training users give.

    `curve` holds each size's predictions of the same labels. Nothing of fewer than three sizes.
    """
    if len(curve) < 3:
        return []
    found = []
    for signal, all_N in curve[users].groupby("signal", sort=False):
        for name in predictors(all_N.dropna(axis=1, how="all")):
            mine = all_N[all_N[name].notna()]
            given_JN = np.stack([frame[name].to_numpy(np.float64)[mine.index] for frame in curve.values()])
            value_N, mean = mine["value"].to_numpy(np.float64), float(mine["train_mean"].iloc[0])
            scored = _Scored(str(signal), list(curve), users, value_N, mean, given_JN)
            known, limit = name.partition("@")[2], scored.limit(scored.scores(np.arange(len(mine))))
            row = Row("fidelity", "history_ceiling", str(signal), scored.metric, "mean",
                      f"known:{known}" if known else "all", limit, None, None, len(mine),
                      "area" if scored.metric == "auroc" else "fraction")  # fmt: skip
            found.append(row)
            user_N = mine["user"].to_numpy()
            share = metrics.resampled_users(scored.share, user_N, min(draws, _DRAWS), seed)
            if np.isfinite(share.value):
                found.append(replace(row, subject="world_model", metric="share_of_ceiling", unit="fraction",
                                     value=share.value, low=share.low, high=share.high))  # fmt: skip
    return found


class _Scored(NamedTuple):
    """One signal's labels and predictions by models of all sizes of log."""

    signal: str
    users_J: list[int]
    own: int
    value_N: np.ndarray
    train_mean: float
    given_JN: np.ndarray

    @property
    def metric(self) -> str:
        """Its figure."""
        return "auroc" if self.signal == "rating" else "r2"

    def scores(self, row_M: np.ndarray) -> list[float]:
        """Of these labels, of each size."""
        y_M = self.value_N[row_M]
        if self.metric == "auroc":
            return [metrics.auroc(y_M, given_N[row_M]) for given_N in self.given_JN]
        return [metrics.r2(y_M, given_N[row_M], self.train_mean) for given_N in self.given_JN]

    def limit(self, scores: Sequence[float]) -> float:
        """The history ceiling that these figures lead to."""
        return fit_curve(self.users_J, scores).at(TIMES * self.own)

    def share(self, row_M: np.ndarray, user_M: np.ndarray) -> float:
        """What the own size reaches of it; of an AUROC, of its distance from .5. NaN where it is none."""
        scores, chance = self.scores(row_M), 0.5 if self.metric == "auroc" else 0.0
        limit, own = self.limit(scores), scores[self.users_J.index(self.own)]
        return (own - chance) / (limit - chance) if limit > chance else float("nan")


def fit_curve(users_J: Sequence[int], value_J: Sequence[float]) -> Curve:
    """The power law of least squared error; the fall is not below 0, as more users never harm."""
    y_J, best = np.asarray(value_J, np.float64), Curve(float(np.mean(value_J)), 0.0, 1.0)
    least = float(np.square(y_J - best.limit).sum())
    for power in POWERS:
        x_J = np.asarray(users_J, np.float64) ** -power
        fall = -float(np.cov(x_J, y_J, bias=True)[0, 1] / x_J.var())
        limit = float(y_J.mean() + fall * x_J.mean())
        error = float(np.square(y_J - limit + fall * x_J).sum())
        if fall > 0 and error < least:
            least, best = error, Curve(limit, fall, float(power))
    return best


@torch.inference_mode()
def full_information(platform: Platform, data: SessionDataModule) -> pd.DataFrame:
    """Expectations of test users' labels from the true state, as a table of predictions."""
    labels, part_S = targets(data.log), data.part_S.numpy().astype(np.int8)
    means = training_mean(labels, part_S)
    row_B = data.rows(TEST)
    played_BT = played_before(data.flat, row_B, data.flat.length_S[row_B])
    replayed = _replayed(platform, row_B, played_BT)
    ahead = platform.oracle(row_B, played_BT, DRAWS, after_logs=False)
    tables = []
    for signal, label in labels.items():
        held_out = kept(label, part_S[label.row] == TEST)
        at_N = torch.searchsorted(row_B, torch.from_numpy(held_out.row))
        along_N = replayed[signal][at_N, torch.from_numpy(held_out.step)].numpy()
        name = "full_information"
        columns = {name: along_N}
        if signal in AFFECT:
            columns = {name: ahead[signal][at_N].numpy(), f"{name}@nowcast": along_N}
        tables.append(table(signal, held_out, means[signal], columns, data.log.metadata, ""))
    return pd.concat(tables, ignore_index=True)


def _replayed(platform: Platform, row_B: Tensor, played_BT: Tensor) -> dict[str, Tensor]:
    """Expected signals (B, T) of each logged play, from the state that the listener truly was in."""
    environment = platform.environment(after_logs=False)
    state = environment.start(row_B, platform.log_key(row_B))
    steps = []
    for t in range(played_BT.shape[1]):
        state, _, expected = environment.step(state, played_BT[:, t].clamp(min=0), t)
        steps.append(expected)
    return {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}
