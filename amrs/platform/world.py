"""The platform as a world: an environment for any policy, fresh listeners, and the oracle's answers.

Shape suffixes: S sessions of the log, B rollouts, T steps, U listeners, K tracks, P features,
2 = (valence, arousal).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform.catalogue import Catalogue, draw_catalogue
from amrs.platform.draws import ALWAYS, Draw, hash_keys
from amrs.platform.dynamics import State, begin, rested, step
from amrs.platform.listeners import Listeners, draw_listeners, join, session_counts, take
from amrs.platform.log import session_table
from amrs.platform.production import Production
from amrs.platform.routine import Start, state_at
from amrs.platform.service import Shard, simulate
from amrs.rollout import Feedback

DAY_H = 24.0


class PlatformEnvironment:
    """The true listeners: any policy can act on them, from any session of the log."""

    def __init__(
        self, config: PlatformConfig, catalogue: Catalogue, platform: "Platform",
        targets: Sequence[tuple[str, float]] = (),
    ) -> None:  # fmt: skip
        """`catalogue` is the one that acts: after the logs it may differ from `platform.catalogue`.

        `targets`: signals and values from which the expected distance is asked for (`rollout.distance_to`).
        """
        self.config, self.catalogue, self.platform, self.targets = config, catalogue, platform, targets

    def start(self, row_B: Tensor, key_B: Tensor) -> State:
        """The true state at the start of the log's sessions `row_B`; draws will be those of `key_B`."""
        return state_at(self.platform.who(row_B), take(self.platform.starts, row_B), key_B)

    def step(self, state: State, track_B: Tensor, t: int) -> tuple[State, Feedback, dict[str, Tensor]]:
        """Play a track to each; also the expected signals (B,), free of noise in feedback and reports.

        engagement: expected fraction of this play; rating: probability of a like; valence, arousal: the
        expected report if the session ended now.
        """
        return step(self.config, self.catalogue, state, track_B.cpu(), t, self.targets)

    def next_session(self, state: State, key_B: Tensor, gap_hours: float = DAY_H) -> State:
        """The same listeners a day later in the same mode: a new session under the noise of `key_B`."""
        gap_B = torch.full_like(state.strain_B, gap_hours)
        trace_BL, strain_B = rested(state.trace_BL, state.strain_B, gap_B)
        hour_B = torch.full_like(gap_B, 20.0)
        affect_B2 = begin(self.config, state.who, key_B, hour_B, state.affect_B2, strain_B, gap_B)
        return state._replace(key_B=key_B, affect_B2=affect_B2, trace_BL=trace_BL, strain_B=strain_B)


@dataclass(frozen=True)
class Platform:
    """A world and its log's hidden side; rows of `starts` are the rows of the session log."""

    config: PlatformConfig
    catalogue: Catalogue
    listeners: Listeners
    user_S: Tensor
    """int64 row of each session's listener."""
    starts: Start

    def who(self, row_B: Tensor) -> Listeners:
        """The listeners of the log's sessions `row_B`."""
        return take(self.listeners, self.user_S[row_B])

    def log_key(self, row_B: Tensor) -> Tensor:
        """The noise key (B,) under which the log's sessions were made."""
        return self.starts.key_S[row_B]

    def environment(
        self, after_logs: bool = True, targets: Sequence[tuple[str, float]] = ()
    ) -> PlatformEnvironment:
        """The listeners as an environment; under drift as they are after the logs, unless told otherwise."""
        catalogue = self.catalogue
        if after_logs:
            catalogue = catalogue._replace(affect_K2=catalogue.affect_after_K2)
        return PlatformEnvironment(self.config, catalogue, self, targets)

    def production(self) -> Production:
        """The policy that made the log, as it was at the start of each session."""
        return Production(self.config, self.catalogue, self._memory)

    def _memory(self, row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        starts = self.starts
        return starts.mode_S[row_B], starts.profile_SP[row_B], starts.hidden_S[row_B]

    def oracle(
        self, row_B: Tensor, track_BT: Tensor, draws: int = 32, after_logs: bool = True
    ) -> dict[str, Tensor]:
        """Expected signals (B,) if the sessions `row_B` were these tracks, (B, T), -1 behind the last.

        Nobody leaves before the last. valence and arousal: expected report after it; engagement and
        rating: mean over the tracks. Means over `draws` of all that is left to chance, the same
        draws for every list of tracks. Under drift they are answers after the logs, unless told otherwise.
        """
        key_BD = hash_keys(self.log_key(row_B)[:, None], ALWAYS, Draw.ORACLE, torch.arange(draws))
        environment, count = self.environment(after_logs), len(row_B)
        state = environment.start(row_B.repeat_interleave(draws), key_BD.flatten())
        heard = {"engagement": torch.zeros(count), "rating": torch.zeros(count)}
        last = {"valence": torch.zeros(count), "arousal": torch.zeros(count)}
        for t in range(track_BT.shape[1]):
            on_B = track_BT[:, t] >= 0
            track_B = track_BT[:, t].clamp(min=0).repeat_interleave(draws)
            state, _, signals = environment.step(state, track_B, t)
            mean = {name: value.view(count, draws).mean(1) for name, value in signals.items()}
            heard = {name: total + mean[name] * on_B for name, total in heard.items()}
            last = {name: torch.where(on_B, mean[name], before) for name, before in last.items()}
        length_B = (track_BT >= 0).sum(1)
        return {name: total / length_B for name, total in heard.items()} | last

    def fresh(self, users: int, seed: int) -> tuple["Platform", pa.Table]:
        """New listeners on the same catalogue, with their log under production (after the drift, if any)."""
        population = hash_keys(self.config.seed, ALWAYS, Draw.FRESH, seed)
        catalogue = self.catalogue._replace(affect_K2=self.catalogue.affect_after_K2)
        parts = list(draw_shards(self.config, catalogue, population, users, f"fresh-{seed}-"))
        world = assemble(self.config, catalogue, [shard[:3] for shard, _ in parts])
        return world, pa.concat_tables([table for _, table in parts])


def draw_platform(config: PlatformConfig) -> tuple[Platform, pa.Table]:
    """The world of these settings and its session log, in memory."""
    catalogue = draw_catalogue(config)
    parts = list(draw_shards(config, catalogue, config.seed, config.users, "user-"))
    platform = assemble(config, catalogue, [shard[:3] for shard, _ in parts])
    return platform, pa.concat_tables([table for _, table in parts])


def draw_shards(
    config: PlatformConfig, catalogue: Catalogue, population: int | Tensor, users: int, prefix: str
) -> Iterator[tuple[Shard, pa.Table]]:
    """The log of a population in shards of `shard_users` listeners: hidden side and rows."""
    count_U = session_counts(config, population, users)
    for first in range(0, users, config.shard_users):
        number_U = torch.arange(first, min(first + config.shard_users, users))
        shard = simulate(config, catalogue, draw_listeners(config, population, number_U), count_U[number_U])
        yield shard, session_table(catalogue, shard, first, prefix)


def assemble(
    config: PlatformConfig, catalogue: Catalogue, parts: list[tuple[Listeners, Tensor, Start]]
) -> Platform:
    """One world from its shards, in order: listeners, sessions' rows in them, and sessions' starts."""
    users = torch.tensor([0, *(len(listeners.key_U) for listeners, _, _ in parts)]).cumsum(0)
    user_S = torch.cat([user_S + first for (_, user_S, _), first in zip(parts, users[:-1], strict=True)])
    return Platform(
        config,
        catalogue,
        join([listeners for listeners, _, _ in parts]),
        user_S,
        join([starts for _, _, starts in parts]),
    )
