"""The service at work: production plays to listeners, session after session, and keeps the log.

Listeners of a shard are simulated side by side; the loops are over session number and step.
Shape suffixes: U listeners of the shard, S their sessions, B those in session now, N steps,
2 = (valence, arousal).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform.catalogue import Catalogue
from amrs.platform.draws import ALWAYS, Draw, event, uniform
from amrs.platform.dynamics import State, report, step
from amrs.platform.listeners import Listeners, join, take
from amrs.platform.production import Production, ProductionState
from amrs.platform.reports import post_given, pre_given
from amrs.platform.routine import Start, blank, open_session, planned, state_at
from amrs.rollout import Feedback

LONGEST = 20
"""Most tracks in a session."""


class Plays(NamedTuple):
    """What the log keeps of S sessions; NaN where unknown, -1 behind the last track."""

    pre_S2: Tensor
    post_S2: Tensor
    left_S: Tensor
    """bool: the listener left before the planned end."""
    track_SN: Tensor
    engagement_SN: Tensor
    rating_SN: Tensor
    propensity_SN: Tensor


class Shard(NamedTuple):
    """Some listeners with all of their sessions, in order of listener, then time."""

    listeners: Listeners
    user_S: Tensor
    """int64 row of the listener."""
    starts: Start
    plays: Plays


def simulate(config: PlatformConfig, catalogue: Catalogue, listeners: Listeners, count_U: Tensor) -> Shard:
    """`count_U` sessions of each listener under production."""
    production = Production(config, catalogue, _nothing)
    starts, plays, users, numbers = [], [], [], []
    user_B = torch.arange(len(count_U))
    past, end_B2 = blank(listeners, production.feature_KP.shape[1]), listeners.baseline_U2
    for number in range(int(count_U.max())):
        kept_B = count_U[user_B] > number
        user_B, past, end_B2 = user_B[kept_B], take(past, kept_B), end_B2[kept_B]
        who = take(listeners, user_B)
        start = open_session(config, who, number, past, end_B2)
        play, state, memory = play_session(config, catalogue, production, who, start)
        starts.append(start)
        plays.append(play)
        users.append(user_B)
        numbers.append(torch.full_like(user_B, number))
        end_B2 = state.affect_B2
        past = start._replace(trace_SL=state.trace_BL, strain_S=state.strain_B, profile_SP=memory.profile_BP)
    user_S = torch.cat(users)
    order_S = (user_S * len(numbers) + torch.cat(numbers)).argsort()
    return Shard(listeners, user_S[order_S], take(join(starts), order_S), take(join(plays), order_S))


def play_session(
    config: PlatformConfig, catalogue: Catalogue, production: Production, who: Listeners, start: Start
) -> tuple[Plays, State, ProductionState]:
    """One session of everybody, to the end that each chooses; and how it leaves listener and production."""
    state = state_at(who, start, start.key_S)
    memory = production.begin(start.mode_S, start.profile_SP, start.hidden_S)
    pre_B2 = _reported(config, state, pre_given(config, state), Draw.PRE_GIVEN, Draw.PRE_NOISE)
    planned_B, left_B = planned(config, start.key_S), torch.zeros_like(start.key_S, dtype=torch.bool)
    size = (len(left_B), LONGEST)
    unknown = [torch.full(size, torch.nan) for _ in range(3)]
    played = Plays(pre_B2, pre_B2, left_B, torch.full(size, -1), *unknown)
    for t in range(LONGEST):
        now_A = ((planned_B > t) & ~left_B).nonzero()[:, 0]
        if not len(now_A):
            break
        inner, seen = _take_state(state, now_A), take(memory, now_A)
        track_A, chance_A = production.play(seen, uniform(inner.key_B, t, Draw.CHOICE))
        inner, feedback, _ = step(config, catalogue, inner, track_A, t)
        seen = production.observe(seen, track_A, feedback)
        _record(played, now_A, t, track_A, chance_A, feedback)
        state, memory = _put_state(state, now_A, inner), _put_memory(memory, now_A, seen)
        left_B = left_B.index_put((now_A,), feedback.left_B & (planned_B[now_A] > t + 1))
    mean_B = played.engagement_SN.nanmean(1)
    given_B = post_given(config, state, left_B, pre_B2[:, 0], mean_B)
    post_B2 = _reported(config, state, given_B, Draw.POST_GIVEN, Draw.POST_NOISE)
    return played._replace(post_S2=post_B2, left_S=left_B), state, memory


def _record(
    played: Plays, now_A: Tensor, t: int, track_A: Tensor, chance_A: Tensor, feedback: Feedback
) -> None:
    played.track_SN[now_A, t] = track_A
    played.propensity_SN[now_A, t] = chance_A
    played.engagement_SN[now_A, t] = feedback.engagement_B
    played.rating_SN[now_A, t] = feedback.rating_B


def _reported(config: PlatformConfig, state: State, given_B: Tensor, whether: Draw, noise: Draw) -> Tensor:
    """A report (B, 2) where it is given, else NaN."""
    gives_B = event(config.feedback_noise, uniform(state.key_B, ALWAYS, whether)) < given_B
    return torch.where(gives_B[:, None], report(config, state.affect_B2, state.key_B, noise), torch.nan)


def _take_state(state: State, index: Tensor) -> State:
    return State(take(state.who, index), *(field[index] for field in state[1:]))


def _put_state(state: State, index: Tensor, part: State) -> State:
    fields = zip(state[1:], part[1:], strict=True)
    return State(state.who, *(old.index_copy(0, index, new) for old, new in fields))


def _put_memory(memory: ProductionState, index: Tensor, part: ProductionState) -> ProductionState:
    """As `_put_state`; those that are out of the session keep a track they had, so that widths agree."""
    heard_BN = torch.cat([memory.heard_BN, torch.zeros_like(memory.mode_B)[:, None]], 1)
    memory = memory._replace(heard_BN=heard_BN)
    return ProductionState(*(old.index_copy(0, index, new) for old, new in zip(memory, part, strict=True)))


def _nothing(row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    raise LookupError("the log is being made: production has no stored sessions to start from")
