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
from amrs.metrics import Estimate
from amrs.models.world_model import WorldModel
from amrs.noise import hash_keys
from amrs.outcomes import Sessions, choose_sessions
from amrs.platform import Platform, load_truth
from amrs.platform.routine import planned
from amrs.policies import NeuralPolicy
from amrs.realism import (
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
from amrs.replay import (
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
from amrs.report import Row
from amrs.rollout import Environment, Policy, Rollouts, imagine
from amrs.rules import log_softmax_allowed
from amrs.runs import Run, write_json
from amrs.stages import bc, world_model
from amrs.stages.prepare import open_data
from amrs.track_effects import likely_lists

SHOWN = (1, 2, 4, 8, 16, 24, 32)
"""Horizons with rows; all are looked at for the trusted horizon."""
LUCK, REPLAYED = 780, 200
"""Purpose of the draw that resamples sessions; sessions replayed."""


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


def upper_bounds(error: Error, user_B: np.ndarray, draws: int, seed: int) -> list[float]:
    """90 % upper bound of the error at each horizon: the root mean square against a truth without noise;
    against a log the larger of the bias and of what rolling out adds."""
    found = []
    for h in range(error.difference_BH.shape[1]):
        difference_B = error.difference_BH[:, h].double().numpy()
        if error.added_BH is None:
            found.append(upper_bound(difference_B**2, user_B, True, draws, seed))
        else:
            added_B = error.added_BH[:, h].double().numpy()
            bias = upper_bound(difference_B, user_B, False, draws, seed)
            found.append(max(bias, upper_bound(added_B, user_B, True, draws, seed)))
    return found


def _error_rows(
    source: str, signal: str, error: Error, user_B: np.ndarray, draws: int, seed: int
) -> list[Row]:
    found = []
    for h in (h for h in SHOWN if h <= error.difference_BH.shape[1]):
        group, difference_B = f"horizon:{source}:{h}", error.difference_BH[:, h - 1].double().numpy()
        known_B = ~np.isnan(difference_B)
        if not known_B.any():
            continue
        columns = {
            "rollout_bias": (difference_B, metrics.mean_of),
            "rollout_error": (difference_B**2, root_of),
            "rollout_members_sd": (error.members_BH[:, h - 1].double().numpy() ** 2, root_of),
            "rollout_samples_sd": (error.samples_BH[:, h - 1].double().numpy() ** 2, root_of),
        }
        if error.added_BH is not None:
            columns["rollout_excess"] = (error.added_BH[:, h - 1].double().numpy(), root_of)
        for metric, (value_B, statistic) in columns.items():
            table = np.stack([value_B[known_B], np.ones(known_B.sum())], 1)
            sums = metrics.user_sums(table, user_B[known_B])
            estimate = metrics.user_bootstrap(sums, statistic, int(known_B.sum()), draws, seed)
            found.append(_row(signal, metric, group, estimate, "scale points"))
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
