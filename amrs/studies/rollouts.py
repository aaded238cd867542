"""How far imagined sessions may be followed: replays by horizon, trusted horizons, simulated sessions.

Shape suffixes: B sessions, H plays.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.data import SessionDataModule
from amrs.fidelity.realism import (
    PlatformReporting,
    Reporting,
    Told,
    compared,
    done_hazard,
    drawn_done,
    ended,
    features,
    logged_sessions,
    told_apart,
)
from amrs.fidelity.replay import (
    FILE,
    HORIZON,
    SAMPLES,
    bands,
    listed_tape,
    logged_tape,
    logged_truth,
    platform_truth,
    replay,
    root_of,
    trusted_horizon,
    upper_bound,
)
from amrs.fidelity.track_effects import likely_lists
from amrs.metrics import Estimate
from amrs.models.world_model import WorldModel
from amrs.noise import hash_keys
from amrs.outcomes import Sessions, choose_sessions
from amrs.platform import Platform, load_truth
from amrs.platform.routine import planned
from amrs.policies import NeuralPolicy
from amrs.report import Row
from amrs.rollout import Environment, Policy, Rollouts, imagine
from amrs.rules import log_softmax_allowed
from amrs.runs import Run, write_json
from amrs.stages import bc, world_model
from amrs.stages.prepare import open_data

SHOWN = (1, 2, 4, 8, 16, 24, 32)
"""Horizons with rows; each stands for the plays beyond the one before it."""
LUCK, REPLAYED = 780, 200
"""Purpose of the draw that resamples sessions; sessions replayed."""
LEAST = 10
"""Plays without which an error has no row: of two reports an interval says nothing."""


class Error(NamedTuple):
    """Replays of one signal against one truth, (B, H) each."""

    difference_BH: Tensor
    """Expected less what happened."""
    added_BH: Tensor | None
    """Squared error less that with the logged feedback known; None where the truth has no noise."""
    members_BH: Tensor
    samples_BH: Tensor


def rows(run: Run) -> list[Row]:
    """Rows by `horizon:<log or random>:<tracks>` and `compared:`; and the trusted horizons in a file."""
    data, config = open_data(run), run.config
    model = world_model.load(run.parents["world_model"].folder, data)
    truth = run.parents["prepare"].folder / "truth"
    platform = load_truth(truth) if truth.exists() else None
    sessions = choose_sessions(data, config.evaluate.sessions, 1, config.seed)
    found: list[Row] = []
    trusted: dict[str, dict[str, int]] = {}
    for source, signal, error in errors(model, data, platform, sessions.row_B[:REPLAYED], config.seed):
        user_B = sessions.user_B[:REPLAYED].numpy()
        found += _error_rows(source, signal, error, user_B, config.evaluate.bootstrap, config.seed)
        upper = upper_bounds(error, user_B, config.evaluate.bootstrap, config.seed)
        horizon = trusted_horizon(upper, config.evaluate.tolerance)
        trusted.setdefault(signal, {})[source] = horizon
        found.append(_row(signal, "trusted_horizon", f"horizon:{source}",
                          Estimate(horizon, None, None, len(user_B)), "tracks"))  # fmt: skip
    horizons = {signal: min(by_source.values()) for signal, by_source in trusted.items()}
    by_source = {"by_source": trusted, "trusted_horizon": horizons}
    write_json(run.partial / FILE, {"tolerance": config.evaluate.tolerance, **by_source})
    return found + session_rows(run, data, model, platform, sessions)


def errors(
    model: WorldModel, data: SessionDataModule, platform: Platform | None, row_B: Tensor, seed: int
) -> Iterator[tuple[str, str, Error]]:
    """Source ("log", or "random": lists that nobody chose, against the platform's truth), signal, error."""
    longest = model.ensemble[0].encoder.config.history // 2
    horizon = min(HORIZON, longest // 2)
    tape = logged_tape(data, row_B, horizon)
    expected = replay(model, data, tape, SAMPLES, seed)
    informed = replay(model, data, tape, 1, seed, logged=True)
    for signal in data.log.metadata.signals:
        band, true_BH = bands(expected[signal]), logged_truth(data, tape, signal)
        known = informed[signal].mean((0, 1))
        added_BH = (band.mean_BH - true_BH) ** 2 - (known - true_BH) ** 2
        yield "log", signal, Error(band.mean_BH - true_BH, added_BH, band.members_BH, band.samples_BH)
    if platform is None:
        return
    tracks_BH = random_lists(data, row_B, min(HORIZON, longest), seed)
    expected = replay(model, data, listed_tape(data, row_B, tracks_BH), SAMPLES, seed)
    truth = platform_truth(platform, row_B, tracks_BH, seed=seed)
    for signal in data.log.metadata.signals:
        band = bands(expected[signal])
        yield "random", signal, Error(band.mean_BH - truth[signal], None, band.members_BH, band.samples_BH)


def random_lists(data: SessionDataModule, row_B: Tensor, length: int, seed: int) -> Tensor:
    """Tracks (B, H) that are allowed in each session's mode, all alike likely, none twice."""
    none_B0 = torch.empty(len(row_B), 0, dtype=torch.int64)
    allowed_BK = data.rules().allowed(data.flat.mode_S[row_B], none_B0)
    log_p_BK = log_softmax_allowed(torch.zeros(allowed_BK.shape), allowed_BK)
    return likely_lists(log_p_BK, hash_keys(seed, LUCK, row_B), 1, length)[:, 0]


def binned(value_BH: Tensor, user_B: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Values of the plays up to each of `SHOWN` and beyond the one before it, and whose they are: reports are
    too few for one horizon at a time."""
    below = 0
    for h in (h for h in SHOWN if h <= value_BH.shape[1]):
        part_BW = value_BH[:, below:h].double().numpy()
        yield h, part_BW.flatten(), np.repeat(user_B, h - below)
        below = h


def upper_bounds(error: Error, user_B: np.ndarray, draws: int, seed: int) -> dict[int, float]:
    """90 % upper bound of the error by horizon: the root mean square against a truth without noise; against
    a log the larger of the bias and of what rolling out adds."""
    if error.added_BH is None:
        parts = binned(error.difference_BH**2, user_B)
        return {h: upper_bound(value, user, True, draws, seed) for h, value, user in parts}
    biased, added = binned(error.difference_BH, user_B), binned(error.added_BH, user_B)
    return {
        h: max(upper_bound(bias, user, False, draws, seed), upper_bound(more, user, True, draws, seed))
        for (h, bias, user), (_, more, _) in zip(biased, added, strict=True)
    }


def _error_rows(
    source: str, signal: str, error: Error, user_B: np.ndarray, draws: int, seed: int
) -> list[Row]:
    columns = {
        "rollout_bias": (error.difference_BH, metrics.mean_of),
        "rollout_error": (error.difference_BH**2, root_of),
        "rollout_members_sd": (error.members_BH**2, root_of),
        "rollout_samples_sd": (error.samples_BH**2, root_of),
    }
    if error.added_BH is not None:
        columns["rollout_excess"] = (error.added_BH, root_of)
    labelled_BH, found = ~error.difference_BH.isnan(), []
    for metric, (value_BH, statistic) in columns.items():
        for h, value, user in binned(value_BH.where(labelled_BH, torch.nan), user_B):
            known = ~np.isnan(value)
            if known.sum() >= LEAST:
                sums = metrics.user_sums(np.stack([value[known], np.ones(known.sum())], 1), user[known])
                estimate = metrics.user_bootstrap(sums, statistic, int(known.sum()), draws, seed)
                found.append(_row(signal, metric, f"horizon:{source}:{h}", estimate, "scale points"))
    return found


def session_rows(
    run: Run, data: SessionDataModule, model: WorldModel, platform: Platform | None, sessions: Sessions
) -> list[Row]:
    """Simulated sessions under Copycat against logged ones; and, as the floor, the platform's own sessions
    drawn again."""
    hazard_T, seed = done_hazard(data), run.config.seed
    logged = logged_sessions(data, sessions.row_B)
    horizon = min(len(hazard_T), run.config.model.history // 2)
    copycat = NeuralPolicy(bc.load(run.parents["bc"].folder, data), data, horizon)
    drawn = _sessions(copycat, Reporting(model, data, horizon), data, sessions, horizon, seed)
    done_B = drawn_done(hazard_T, drawn.left_B, drawn.played_BT.sum(1), sessions.key_B)
    sides = {"world_model": ended(drawn, done_B)}
    if platform is not None:
        pre_S = data.flat.pre_report_S2[:, 0]
        listeners = PlatformReporting(platform.environment(after_logs=False), pre_S)
        drawn = _sessions(platform.production(), listeners, data, sessions, horizon, seed + 1)
        done_B = planned(platform.config, hash_keys(seed + 1, LUCK, sessions.row_B))
        sides["production"] = ended(drawn, done_B)
    found = []
    for subject, told in sides.items():
        found += _apart_rows(subject, told, logged, data, sessions.user_B.numpy(), seed)
    return found


def _sessions(
    policy: Policy, world: Environment, data: SessionDataModule, sessions: Sessions, horizon: int, seed: int
) -> Rollouts:
    key_B = hash_keys(seed, LUCK, sessions.row_B)
    return Rollouts.join([
        imagine(policy, world, data.rules(), sessions.mode_B[i], sessions.row_B[i], key_B[i], horizon)
        for i in torch.arange(len(sessions.row_B)).split(256)
    ])  # fmt: skip


def _apart_rows(
    subject: str, told: Told, logged: Told, data: SessionDataModule, user_B: np.ndarray, seed: int
) -> list[Row]:
    found = []
    for signal, what, w1, ks, n in compared(told, logged):
        for metric, value, unit in (("distance_w1", w1, "scale points"), ("distance_ks", ks, "fraction")):
            unit = "tracks" if signal == "all" and metric == "distance_w1" else unit
            estimate = Estimate(value, None, None, n)
            found.append(_row(signal, metric, f"compared:{what}", estimate, unit, subject))
    label_W, score_W, user_W = told_apart(features(logged, data), features(told, data), user_B, seed)
    estimate = metrics.auroc_interval(label_W, score_W, user_W, 200, seed)
    return [*found, _row("all", "told_apart", "compared:session", estimate, "area", subject)]


def _row(
    signal: str, metric: str, group: str, estimate: Estimate, unit: str, subject: str = "world_model"
) -> Row:
    return Row("fidelity", subject, signal, metric, "mean", group, *estimate, unit)
