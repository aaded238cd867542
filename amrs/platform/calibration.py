"""How much of the variance of post-session reports is whose: nested shares by re-simulation.

For sampled sessions of the log, production chooses tracks again and again from the same start, as many
as were heard, in the session's own mode and in the others; the oracle says what each list of tracks
leads to. By the law of total variance, with x the state before the session, m mode, T tracks:

    person   Var E[y|u]                        state    E Var(E[y|u,x] | u)
    mode     E Var(E[y|u,x,m] | u,x)           tracks   E Var(E[y|u,x,m,T] | u,x,m)
    remainder: what is left of Var(y), that is chance on the way and the noise of reports.

Shape suffixes: B sampled sessions, R lists of tracks, T steps, M modes, 2 = (valence, arousal).
"""

import torch
from torch import Tensor

from amrs.platform.catalogue import MODES
from amrs.platform.draws import ALWAYS, Draw, hash_keys, uniform
from amrs.platform.dynamics import step
from amrs.platform.listeners import take
from amrs.platform.routine import Start, mode_odds, state_at
from amrs.platform.world import Platform

SIGNALS = ("valence", "arousal")


def nested_shares(
    platform: Platform, rows_B: Tensor, length: int = 10, lists: int = 16, draws: int = 4
) -> dict[str, dict[str, float]]:
    """Shares of Var(y) per signal, summing to 1; `rows_B` should hold several sessions of each user."""
    expected_M, tracks_M, chance_M = [], [], []
    for mode in range(len(MODES)):
        expected_RB2, chance_B2 = _outcomes(platform, rows_B, mode, length, lists, draws)
        expected_M.append(expected_RB2)
        # Var over lists of a mean over draws holds a share of chance that is not the tracks'.
        tracks_M.append(expected_RB2.var(0) - chance_B2 / draws)
        chance_M.append(chance_B2)
    start = platform.starts
    odds_BM1 = mode_odds(platform.who(rows_B), start.hour_S[rows_B], start.affect_S2[rows_B])[..., None]
    mean_B2, blur_2, mode_2 = _over_modes(odds_BM1, torch.stack(expected_M, 2))
    tracks_2 = (odds_BM1 * torch.stack(tracks_M, 1)).sum(1).mean(0)
    chance_2 = (odds_BM1 * torch.stack(chance_M, 1)).sum(1).mean(0)
    person_2, state_2 = _between(mean_B2, platform.user_S[rows_B])
    part_2 = {
        "person": person_2,
        "state": state_2 - blur_2,
        "mode": mode_2,
        "tracks": tracks_2,
        "remainder": chance_2 + platform.config.report_sd**2,
    }
    total_2 = torch.stack(list(part_2.values())).sum(0)
    return {
        name: {part: float(value_2[i] / total_2[i]) for part, value_2 in part_2.items()}
        for i, name in enumerate(SIGNALS)
    }


def _over_modes(odds_BM1: Tensor, expected_RBM2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over modes and lists (B, 2), what few lists add to its variance (2,), variance over modes (2,).

    A mean over R lists moves with which lists they were, by their variance over R: that is the tracks', and
    no mode's or state's.
    """
    lists = len(expected_RBM2)
    mean_RB2 = (odds_BM1 * expected_RBM2).sum(2)
    apart_RBM2 = expected_RBM2 - mean_RB2[:, :, None]
    between_BM2 = apart_RBM2.mean(0) ** 2 - apart_RBM2.var(0) / lists
    return mean_RB2.mean(0), mean_RB2.var(0).mean(0) / lists, (odds_BM1 * between_BM2).sum(1).mean(0)


def _outcomes(
    platform: Platform, rows_B: Tensor, mode: int, length: int, lists: int, draws: int
) -> tuple[Tensor, Tensor]:
    """E[y | list] by `draws` runs of each list, (R, B, 2), and the variance by chance given a list (B, 2)."""
    expected, chance = [], []
    for number in range(lists):
        track_BT = production_tracks(platform, rows_B, mode, length, number)
        runs = range(number * draws, (number + 1) * draws)
        ends_DB2 = torch.stack([_end(platform, rows_B, mode, track_BT, run) for run in runs])
        expected.append(ends_DB2.mean(0))
        chance.append(ends_DB2.var(0))
    return torch.stack(expected), torch.stack(chance).mean(0)


def production_tracks(platform: Platform, rows_B: Tensor, mode: int, length: int, number: int) -> Tensor:
    """The `number`-th list (B, T) that production might have played in this mode; nobody leaves."""
    config, catalogue, production = platform.config, platform.catalogue, platform.production()
    key_B = hash_keys(platform.log_key(rows_B), ALWAYS, Draw.SHARES, number)
    state = state_at(platform.who(rows_B), _rows(platform, rows_B, mode), key_B)
    _, profile_BP, hidden_B = production.restore(rows_B)
    memory = production.begin(state.mode_B, profile_BP, hidden_B)
    tracks = []
    for t in range(length):
        track_B, _ = production.play(memory, uniform(key_B, t, Draw.CHOICE))
        state, feedback, _ = step(config, catalogue, state, track_B, t)
        memory = production.observe(memory, track_B, feedback)
        tracks.append(track_B)
    return torch.stack(tracks, 1)


def _end(platform: Platform, rows_B: Tensor, mode: int, track_BT: Tensor, number: int) -> Tensor:
    """State (B, 2) after these tracks, under noise of its own."""
    key_B = hash_keys(platform.log_key(rows_B), ALWAYS, Draw.SHARES, -1, number)
    state = state_at(platform.who(rows_B), _rows(platform, rows_B, mode), key_B)
    for t, track_B in enumerate(track_BT.unbind(1)):
        state, _, _ = step(platform.config, platform.catalogue, state, track_B, t)
    return state.affect_B2


def _rows(platform: Platform, rows_B: Tensor, mode: int) -> Start:
    return take(platform.starts, rows_B)._replace(mode_S=torch.full_like(rows_B, mode))


def _between(mean_B2: Tensor, user_B: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of users' true means, and mean variance inside users, (2,) each."""
    user_B = torch.unique(user_B, return_inverse=True)[1]
    count_U = torch.bincount(user_B).float()
    mean_U2 = torch.zeros(len(count_U), 2).index_add_(0, user_B, mean_B2) / count_U[:, None]
    inside_2 = ((mean_B2 - mean_U2[user_B]) ** 2).sum(0) / (len(user_B) - len(count_U))
    weight_U1 = (count_U / count_U.sum())[:, None]
    spread_2 = (weight_U1 * (mean_U2 - (weight_U1 * mean_U2).sum(0)) ** 2).sum(0)
    # A user's mean over n sessions has inside / n of its own.
    return (spread_2 - inside_2 * (len(count_U) - 1) / count_U.sum()).clamp(min=0), inside_2
