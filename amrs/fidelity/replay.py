"""How far the world model may be followed: given tracks are played to held-out listeners, who answer with
sampled feedback, and what it then expects is compared with what happened.

Against the log, in which what happened is noisy: the bias, and by how much rolling out adds to the squared
error of predicting the same play with the logged feedback known. Against the platform's expectation, which
has no noise: the whole error. The trusted horizon of a signal is the last number of tracks up to which the
90 % upper bound of its error stays under a tolerance.
Shape suffixes: B sessions, L tokens of a tape, H plays (the horizon), M members, S samples, F session
features, T steps, D draws.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.data import SessionDataModule
from amrs.listeners import HistoryReader, Mind, luck, sample_feedback
from amrs.logs.histories import TARGETS, static_names, without_reports
from amrs.metrics.fidelity import Floats, Ints
from amrs.models.world_model import WorldModel
from amrs.noise import hash_keys
from amrs.platform import Platform
from amrs.rollout import Feedback, Rollouts
from amrs.runs import read_json

HORIZON, SAMPLES, DRAWS = 32, 8, 32
"""Plays that are replayed, samples of each member, simulations of the truth."""
REPLAY = 720
"""Purpose of the draw."""
FILE = "trusted_horizon.json"
_FEWEST = 5
"""Users below which a horizon has no error to trust."""
_CHUNK = 128


class Tape(NamedTuple):
    """What is played after the start of sessions `row_B`, whatever the listener does."""

    row_B: Tensor
    track_BL: Tensor
    """int64; -1 where another session starts, -2 behind the last."""
    static_BLF: Tensor
    """Features of each token's session; see `without_reports`."""
    token_BH: Tensor
    """Place on the tape of each play, -1 where the tape is shorter."""
    before_BH: Tensor
    """Token of the log that asks for it, -1 where there is none."""


def logged_tape(data: SessionDataModule, row_B: Tensor, horizon: int) -> Tape:
    """The log itself from each session's start on, across the user's later sessions."""
    flat, meta = data.flat, data.log.metadata
    index_BL = flat.first_S[row_B][:, None] + 1 + torch.arange(2 * horizon)
    inside_BL = index_BL < flat.user_last_U[flat.user_S[row_B]][:, None]
    index_BL = index_BL.where(inside_BL, 0)
    is_play_BL = inside_BL & (flat.track_N[index_BL] >= 0)
    play_BL = is_play_BL.cumsum(1)
    inside_BL &= (play_BL < horizon) | (is_play_BL & (play_BL == horizon))
    length = int(inside_BL.sum(1).max())
    index_BL, inside_BL, is_play_BL = index_BL[:, :length], inside_BL[:, :length], is_play_BL[:, :length]
    session_BL = flat.session_N[index_BL]
    static_BLF, own_B1F = flat.static_SF[session_BL], flat.static_SF[row_B][:, None]
    names = static_names(meta.modes, meta.cohorts, meta.context)
    later_BLF = without_reports(static_BLF, own_B1F, names)
    static_BLF = static_BLF.where((session_BL == row_B[:, None])[..., None], later_BLF)
    track_BL = flat.track_N[index_BL].where(inside_BL, -2)
    token_BH = _places(track_BL >= 0, horizon)
    before_BH = (index_BL.gather(1, token_BH.clamp(min=0)) - 1).where(token_BH >= 0, -1)
    return Tape(row_B, track_BL, static_BLF, token_BH, before_BH)


def listed_tape(data: SessionDataModule, row_B: Tensor, track_BT: Tensor) -> Tape:
    """One long session of given tracks."""
    static_BLF = data.flat.static_SF[row_B][:, None].expand(-1, track_BT.shape[1], -1)
    token_BH = torch.arange(track_BT.shape[1]).expand(len(row_B), -1)
    return Tape(row_B, track_BT, static_BLF, token_BH, torch.full_like(token_BH, -1))


def _places(is_play_BL: Tensor, horizon: int) -> Tensor:
    """Place of the first, second, ... True of each row, (B, H), -1 where there are fewer."""
    number_BL = is_play_BL.cumsum(1)
    place_BH = torch.full((len(is_play_BL), horizon), -1)
    row, place = is_play_BL.nonzero(as_tuple=True)
    place_BH[row, number_BL[row, place] - 1] = place
    return place_BH


@torch.inference_mode()
def replay(
    model: WorldModel, data: SessionDataModule, tape: Tape, samples: int, seed: int, logged: bool = False
) -> dict[str, Tensor]:
    """What each member expects of each play, (M, S, B, H) by signal, under feedback that it sampled itself;
    NaN where the tape is shorter. With `logged` the log's own feedback is fed back, and nothing is sampled.
    """
    found: dict[str, list[Tensor]] = {}
    for m, member in enumerate(model.eval().ensemble):
        for s in range(samples):
            key_B = hash_keys(seed, REPLAY, m, s, tape.row_B)
            parts = [
                _play(model, m, data, _part(tape, index), key_B[index], logged)
                for index in torch.arange(len(tape.row_B)).split(_CHUNK)
            ]
            for name in member.kinds:
                found.setdefault(name, []).append(torch.cat([part[name] for part in parts]))
    shape = (len(model.ensemble), samples)
    return {name: torch.stack(values).unflatten(0, shape) for name, values in found.items()}


def _part(tape: Tape, index: Tensor) -> Tape:
    return Tape(*(column[index] for column in tape))


def _play(
    model: WorldModel, m: int, data: SessionDataModule, tape: Tape, key_B: Tensor, logged: bool
) -> dict[str, Tensor]:
    """Expected signals (B, H) of one member over one tape."""
    member, length = model.ensemble[m], tape.track_BL.shape[1]
    reader = HistoryReader(member.encoder, data, length)
    mind = reader.start(tape.row_B)
    expected: dict[str, list[Tensor]] = {}
    truth_BL4 = _feedback(data, tape) if logged else None
    for k in range(length):
        track_B = tape.track_BL[:, k]
        params = member.answer(mind.h_BD, member.candidates(track_B.clamp(min=0)))
        for name, kind in member.kinds.items():
            expected.setdefault(name, []).append(kind.mean(params[name]))
        given = sample_feedback(member, params, luck(key_B, k))
        if truth_BL4 is not None:
            given = Feedback(truth_BL4[:, k, 0], truth_BL4[:, k, 1], given.left_B)
        played_B = track_B >= 0
        engagement_B, rating_B = (x.where(played_B, torch.nan) for x in given[:2])
        given = Feedback(engagement_B, rating_B, given.left_B)
        static_BG = reader.encoder.standardised(tape.static_BLF[:, k])
        mind = Mind(mind.h_BD, mind.cache, static_BG, mind.mode_B)
        mind = reader.append(mind, track_B.clamp(min=-1), given)
    place_BH = tape.token_BH
    return {
        name: torch.stack(values, 1).gather(1, place_BH.clamp(min=0)).where(place_BH >= 0, torch.nan)
        for name, values in expected.items()
    }


def _feedback(data: SessionDataModule, tape: Tape) -> Tensor:
    """The log's feedback to each token of the tape, (B, L, 4), NaN where there is none."""
    values_BL4 = torch.full((*tape.track_BL.shape, 4), torch.nan)
    row, number = (tape.token_BH >= 0).nonzero(as_tuple=True)
    values_BL4[row, tape.token_BH[row, number]] = data.flat.feedback_N4[tape.before_BH[row, number] + 1]
    return values_BL4


def logged_truth(data: SessionDataModule, tape: Tape, signal: str) -> Tensor:
    """What the log says of each play, (B, H), NaN where nothing: reports at a session's last play only."""
    value_BH = data.flat.target_NY[tape.before_BH.clamp(min=0), TARGETS.index(signal)]
    return value_BH.where(tape.before_BH >= 0, torch.nan)


def platform_truth(
    platform: Platform, row_B: Tensor, track_BT: Tensor, draws: int = DRAWS, seed: int = 0
) -> dict[str, Tensor]:
    """The platform's expectation of each play, (B, T) by signal, if these were the session's tracks and
    nobody left: a mean over `draws` of all that is left to chance."""
    key_BD = hash_keys(platform.log_key(row_B)[:, None], REPLAY, seed, torch.arange(draws))
    environment = platform.environment()
    state = environment.start(row_B.repeat_interleave(draws), key_BD.flatten())
    found: dict[str, list[Tensor]] = {}
    for t, track_B in enumerate(track_BT.unbind(1)):
        state, _, signals = environment.step(state, track_B.repeat_interleave(draws), t)
        for name, value in signals.items():
            found.setdefault(name, []).append(value.view(len(row_B), draws).mean(1))
    return {name: torch.stack(values, 1) for name, values in found.items()}


class Bands(NamedTuple):
    """Replayed expectations of one signal, (B, H) each."""

    mean_BH: Tensor
    members_BH: Tensor
    """Standard deviation between members' means: ignorance, without what few samples add to it."""
    samples_BH: Tensor
    """Standard deviation between a member's samples: what the listener's own luck makes of it."""


def bands(expected_MSBH: Tensor) -> Bands:
    """The mean over members and samples, and its spread by either."""
    members, samples = expected_MSBH.shape[:2]
    within_BH = expected_MSBH.var(1, unbiased=True).mean(0) if samples > 1 else expected_MSBH[0, 0] * 0
    between_BH = expected_MSBH.mean(1).var(0, unbiased=False)
    share = (members - 1) / members / samples
    return Bands(
        expected_MSBH.mean((0, 1)), (between_BH - share * within_BH).clamp(min=0).sqrt(), within_BH.sqrt()
    )


def root_of(sums: Floats) -> Floats:
    """Root of a mean from [..., (sum, count)]; 0 where the mean is below 0."""
    root: Floats = np.sqrt(np.maximum(metrics.mean_of(sums), 0.0))
    return root


def size_of(sums: Floats) -> Floats:
    """Absolute value of a mean from [..., (sum, count)]."""
    size: Floats = np.abs(metrics.mean_of(sums))
    return size


def upper_bound(value_B: Floats, user_B: Ints, root: bool, draws: int, seed: int) -> float:
    """90 % upper bound (one-sided, users resampled) of the root mean, or of the size of the mean; NaN with
    fewer than five users."""
    known_B = ~np.isnan(value_B)
    if len(np.unique(user_B[known_B])) < _FEWEST:
        return float("nan")
    sums = metrics.user_sums(np.stack([value_B[known_B], np.ones(known_B.sum())], 1), user_B[known_B])
    statistic = root_of if root else size_of
    high = metrics.user_bootstrap(sums, statistic, int(known_B.sum()), draws, seed, level=0.8).high
    return float("nan") if high is None else high


def trusted_horizon(upper: Mapping[int, float], tolerance: float) -> int:
    """The last horizon up to which every upper bound that is known is under the tolerance; 0 if the first is
    not. A horizon whose bound is not known (NaN) is passed over, but is never the last."""
    last = 0
    for horizon in sorted(upper):
        if upper[horizon] >= tolerance:
            break
        last = last if np.isnan(upper[horizon]) else horizon
    return last


def cut(rollouts: Rollouts, horizon: int) -> tuple[Rollouts, int]:
    """The rollouts up to a trusted horizon, and how many of them went on beyond it.

    A listener who left after it has not left by then.
    """
    if horizon < 1:
        raise ValueError(f"horizon={horizon}: no track is trusted, so no continuation can be kept")
    longer_B = rollouts.played_BT[:, horizon:].any(1)
    kept = {name: getattr(rollouts, name)[:, :horizon] for name in
            ("track_BT", "played_BT", "engagement_BT", "rating_BT")}  # fmt: skip
    shorter = replace(
        rollouts, **kept, left_B=rollouts.left_B & ~longer_B,
        expected={name: value[:, :horizon] for name, value in rollouts.expected.items()},
        kl_BT=None if rollouts.kl_BT is None else rollouts.kl_BT[:, :horizon],
    )  # fmt: skip
    return shorter, int(longer_B.sum())


def stored_horizon(folder: Path, weights: Mapping[str, float]) -> int:
    """The shortest trusted horizon, in the run folder of study `replay`, of the signals that count."""
    horizons: dict[str, int] = read_json(folder / FILE)["trusted_horizon"]
    known = [horizons[name] for name, weight in weights.items() if weight > 0 and name in horizons]
    if not known:
        raise ValueError(f"{folder / FILE} knows none of {', '.join(weights)}; it has {', '.join(horizons)}")
    return min(known)
