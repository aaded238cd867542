"""Policies asked again at logged histories: what they would play there, and what a judge expects of it.

Shape suffixes: S sessions, B a batch of them, T plays, K tracks, C tracks drawn from a policy, N tracks
asked about, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.fidelity.targets import columns
from amrs.listeners import HistoryReader
from amrs.models.world_model import WorldModel, WorldModelMember
from amrs.noise import uniform
from amrs.rollout import Feedback, Policy
from amrs.rules import log_softmax_allowed

CHOICE = 950
"""Purpose of the draws of a policy's own choices."""
_BATCH = 64
_IMPOSSIBLE = -500.0
"""Log-probability of a session, in nats, below which its weight is 0 whatever logged it."""
PRESENCE = {"valence": "reported", "arousal": "reported", "rating": "rated"}
"""The head that says whether a signal is given; engagement is taken to be."""


class LoggedPlays(NamedTuple):
    """Sessions `row_S` as they were logged; NaN where unknown, -1 and NaN behind the last play."""

    row_S: Tensor
    track_ST: Tensor
    log_propensity_ST: Tensor
    """Of the logged track under the policy that logged, in nats."""
    reward: dict[str, Tensor]
    """Each signal (S, T); valence and arousal are the session's report, at its last play."""
    feedback: Feedback
    """Engagement and rating (S, T), as policies and judge read them."""


class Asked(NamedTuple):
    """A policy's answers at logged histories."""

    log_p_ST: Tensor
    """Log-probability of the logged track, in nats; NaN behind the last play."""
    choice_STC: Tensor
    """Tracks drawn from the policy at the same history, -1 where it was not asked."""


def logged_plays(data: SessionDataModule, row_S: Tensor) -> LoggedPlays:
    """The sessions' plays side by side."""
    log = columns(data.log)
    length_S = torch.from_numpy(log.length_S)[row_S]
    t_T = torch.arange(int(length_S.max()))
    inside_ST = t_T < length_S[:, None]
    play_ST = (torch.from_numpy(log.first_S)[row_S][:, None] + t_T).where(inside_ST, 0)

    def plays(name: str) -> Tensor:
        return torch.from_numpy(log.play_N[name])[play_ST].where(inside_ST, torch.nan)

    signals = data.log.metadata.signals
    reward: dict[str, Tensor] = {name: plays(name) for name in ("engagement", "rating") if name in signals}
    last_ST = inside_ST & (t_T == length_S[:, None] - 1)
    for column, name in enumerate(("valence", "arousal")):
        if name in signals:
            reward[name] = data.flat.report_S2[row_S, column, None].where(last_ST, torch.nan)
    track_ST = torch.from_numpy(log.track_N)[play_ST].where(inside_ST, -1)
    feedback = Feedback(plays("engagement"), plays("rating"), torch.zeros_like(inside_ST))
    return LoggedPlays(row_S, track_ST, plays("propensity").log(), reward, feedback)


@torch.inference_mode()
def ask(policy: Policy, data: SessionDataModule, logged: LoggedPlays, choices: int, seed: int) -> Asked:
    """Replay the logged sessions to `policy` and ask it before every play.

    A batch ends early once the policy could have played none of its sessions (as with Greedy): their
    weights are 0 from there on.
    """
    parts = [_ask(policy, data, logged, index, choices, seed) for index in _batches(logged)]
    return Asked(torch.cat([p.log_p_ST for p in parts]), torch.cat([p.choice_STC for p in parts]))


def _ask(
    policy: Policy, data: SessionDataModule, logged: LoggedPlays, index: Tensor, choices: int, seed: int
) -> Asked:
    row_B, track_BT = logged.row_S[index], logged.track_ST[index]
    mode_B, rules, state = data.flat.mode_S[row_B], data.rules(), policy.start(row_B)
    log_p_BT = torch.full(track_BT.shape, torch.nan)
    choice_BTC = torch.full((*track_BT.shape, choices), -1)
    number_C = torch.arange(choices)
    for t in range(track_BT.shape[1]):
        on_B, heard_B = track_BT[:, t] >= 0, track_BT[:, t].clamp(min=0)
        log_p_BK = log_softmax_allowed(policy.logits(state).cpu(), rules.allowed(mode_B, track_BT[:, :t]))
        log_p_BT[:, t] = log_p_BK.gather(1, heard_B[:, None])[:, 0].where(on_B, torch.nan)
        edge_BK = log_p_BK.double().exp().cumsum(1)
        luck_BC = uniform(seed, CHOICE, row_B[:, None], t, number_C).double() * edge_BK[:, -1:]
        drawn_BC = torch.searchsorted(edge_BK, luck_BC).clamp(max=edge_BK.shape[1] - 1)
        choice_BTC[:, t] = drawn_BC.where(on_B[:, None], -1)
        if t + 1 == track_BT.shape[1] or bool((log_p_BT.nansum(1) < _IMPOSSIBLE).all()):
            break
        state = policy.observe(state, heard_B, _feedback(logged, index, t))
    return Asked(log_p_BT, choice_BTC)


@torch.inference_mode()
def expected(
    judge: WorldModel, data: SessionDataModule, logged: LoggedPlays, track_STN: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the judge expects if the next track at each logged history were each of `track_STN`.

    For each signal (g r, g): the signal times the probability that it is given, and that probability, both
    (S, T, N), averaged over members. Valence and arousal: the report if the session ended after that track.
    """
    names, longest = list(logged.reward), track_STN.shape[1]
    readers = [HistoryReader(member.encoder, data, longest) for member in judge.eval().ensemble]
    parts = []
    for index in _batches(logged):
        total: dict[str, list[Tensor]] = {}
        for member, reader in zip(judge.ensemble, readers, strict=True):
            for name, pair in _member_expects(member, reader, logged, index, track_STN[index], names).items():
                total.setdefault(name, []).append(pair)
        parts.append({name: torch.stack(pairs).mean(0) for name, pairs in total.items()})
    whole = {name: torch.cat([part[name] for part in parts], 1) for name in names}
    return {name: (pair[0], pair[1]) for name, pair in whole.items()}


def _member_expects(
    member: WorldModelMember, reader: HistoryReader, logged: LoggedPlays, index: Tensor, track_BTN: Tensor,
    names: list[str],
) -> dict[str, Tensor]:  # fmt: skip
    """(g r, g) as (2, B, T, N) by signal."""
    mind = reader.start(logged.row_S[index])
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    count = track_BTN.shape[2]
    for t in range(track_BTN.shape[1]):
        candidates = member.candidates(track_BTN[:, t].clamp(min=0).flatten())
        params = member.answer(mind.h_BD.repeat_interleave(count, 0), candidates)
        for name in names:
            mean_BN = member.kinds[name].mean(params[name]).view(-1, count)
            given_BN = torch.ones_like(mean_BN)
            if name in PRESENCE:
                head = PRESENCE[name]
                given_BN = member.kinds[head].mean(params[head]).view(-1, count)
            found[name].append(torch.stack([mean_BN * given_BN, given_BN]))
        if t + 1 < track_BTN.shape[1]:
            heard_B = logged.track_ST[index, t].clamp(min=0)
            mind = reader.append(mind, heard_B, _feedback(logged, index, t))
    return {name: torch.stack(pairs, 2) for name, pairs in found.items()}


def _feedback(logged: LoggedPlays, index: Tensor, t: int) -> Feedback:
    return Feedback(*(column_ST[index, t] for column_ST in logged.feedback))


def _batches(logged: LoggedPlays) -> tuple[Tensor, ...]:
    batches: tuple[Tensor, ...] = torch.arange(len(logged.row_S)).split(_BATCH)
    return batches
