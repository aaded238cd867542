"""What is stressed: the policies, the judge, the sessions; and gains over Copycat in them.

Shape suffixes: B sessions, R simulations of each, N = B R rollouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from amrs import metrics
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.fidelity.targets import AFFECT
from amrs.models.world_model import WorldModel
from amrs.outcomes import Sessions, mean_outcome, session_utility
from amrs.platform.world import PlatformEnvironment
from amrs.report import Row
from amrs.rollout import Environment, Policy, Rollouts
from amrs.stress.simulation import simulate
from amrs.utility import Utility, aims

Means = Mapping[str, np.ndarray]
"""Mean outcome of each session over its simulations, (B,), by signal."""


@dataclass(frozen=True)
class Trial:
    """Everything that is stressed."""

    config: Config
    data: SessionDataModule
    judge: WorldModel
    labeller: WorldModel
    """Asked only where users from whom the judge learnt are looked at."""
    utility: Utility
    policies: Mapping[str, Policy]
    """By name; Copycat is among them."""
    sessions: Sessions
    platform: PlatformEnvironment | None
    """The truth, where there is one: only `realised` rows come of it."""
    part: int
    """Of the users' split, whose sessions these are."""
    carry: Mapping[str, Sequence[float]]
    """What is left of a track's effect at a session's end, by signal and track of the session."""

    @property
    def names(self) -> list[str]:
        """Policies that are compared with Copycat."""
        return [name for name in self.policies if name != "copycat"]

    @property
    def readers(self) -> list[str]:
        """Policies that read their history from the log, so that one can be made up for them."""
        return [name for name in self.policies if name != "production"]

    def simulate(self, world: Environment, lucky: Sessions) -> dict[str, Rollouts]:
        """Every policy in the same world under the same luck."""
        rules = self.data.rules()
        return {name: simulate(policy, world, rules, lucky) for name, policy in self.policies.items()}

    def mean(self, value_N: np.ndarray) -> np.ndarray:
        """Mean over each session's simulations, (B,)."""
        mean_B: np.ndarray = value_N.reshape(len(self.sessions.row_B), -1).mean(1)
        return mean_B

    def affect(self, rollouts: Rollouts) -> dict[str, np.ndarray]:
        """Mean outcome in valence and arousal."""
        count, known = len(self.sessions.row_B), [name for name in AFFECT if name in rollouts.expected]
        return {name: mean_outcome(rollouts, name, count) for name in known}

    def outcomes(self, rollouts: Rollouts) -> dict[str, np.ndarray]:
        """The same, and the utility that the policies were trained for."""
        utility_B = session_utility(rollouts, self.utility, self.sessions.mode_B)
        return {**self.affect(rollouts), "utility": utility_B}

    def gain_rows(
        self, subject: str, value: Means, base: Means, group: str, keep_B: np.ndarray | None = None
    ) -> list[Row]:
        """Gains over Copycat of some sessions, modes weighed as in the log."""
        draws = self.config.evaluate.bootstrap
        return [
            row for signal in value for row in self._gain(subject, signal, value, base, group, keep_B, draws)
        ]

    def gains_alone(
        self, subject: str, value: Means, base: Means, group: str, keep_B: np.ndarray
    ) -> list[Row]:
        """The same without intervals, for the least of many."""
        return [row for signal in value for row in self._gain(subject, signal, value, base, group, keep_B, 1)]

    def _gain(
        self, subject: str, signal: str, value: Means, base: Means, group: str,
        keep_B: np.ndarray | None, draws: int,
    ) -> list[Row]:  # fmt: skip
        meta, sessions = self.data.log.metadata, self.sessions
        known_B = np.isfinite(value[signal]) & np.isfinite(base[signal])
        known_B = known_B if keep_B is None else known_B & keep_B
        if not known_B.any():
            return []
        rows = metrics.gain_rows(
            value[signal][known_B], base[signal][known_B], sessions.mode_B.numpy()[known_B],
            sessions.user_B.numpy()[known_B], section="stress", subject=subject, signal=signal,
            modes=meta.modes, share=metrics.logged_share(self.data.flat.mode_S.numpy(), meta.modes),
            group=group, draws=draws, seed=self.config.seed, aims=aims(self.config.utility),
        )  # fmt: skip
        unit = "spreads of effects" if signal == "utility" else "scale points"
        return [replace(row, unit=unit) for row in rows if row.metric == "gain"]


def least(by_case: Sequence[Sequence[Row]]) -> list[Row]:
    """Of each signal the row with the least value, without interval: it was picked."""
    lowest: dict[str, Row] = {}
    for row in (row for rows in by_case for row in rows):
        if row.signal not in lowest or row.value < lowest[row.signal].value:
            lowest[row.signal] = row
    return [replace(row, low=None, high=None) for row in lowest.values()]
