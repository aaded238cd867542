"""What is good for the listener: predicted signals to one number.

    U(k) = sum over signals x of  w_x c_x(s) g_x(m, k) / s_x

for candidate k as track s (from 0) of a session in mode m: w_x is the weight; c_x(s) the carry, what an
effect now is still worth at the session's end (`carry.py`; 1 with `utility.horizon=track`); s_x the spread
of those effects under Copycat (1 without standardisation), so that equal weights mean equal say; and
  g = E[x] (up), 1 - E[x] (down), or E[1 - |x - t|] (target t, over the predictive distribution).
Signals that a mode does not name go up, except arousal: which arousal is good depends on the mode, so
where no mode (or no direction) is known it does not count.

Members m of an ensemble are joined by (`joined`)

    U(k) = mean_m U_m(k) - lambda sd_m (U_m(k) - mean_j U_m(j)) + eta H(k)

with j the candidates at the same history: what members disagree about for all candidates alike is no
reason to prefer one. lambda is `utility.pessimism`; the standard deviation is the ignorance (after MOPO,
Yu et al. 2020, and DORL, Gao et al. 2023, who take the largest and the variance over members). eta is
`utility.entropy`, H(k) the behaviour policy's entropy once k was played (`candidates.entropy_after`): DORL's
remedy for pessimism that leads to the same few tracks. It counts where tracks are chosen, not in outcomes.
Shape suffixes: B histories, P head parameters, M members, K tracks; `...` are candidates.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amrs.config.groups import UtilityConfig
from amrs.rollout import distance_to
from amrs.runs import RunError
from amrs.signals import Kind

LEAST_SPREAD = 1e-4
"""Spread below which a predicted effect is rounding error: it is not blown up to matter."""


def yardstick(config: UtilityConfig) -> UtilityConfig:
    """The utility that every policy's gain is given in, whatever it was trained for: the default one, so that
    runs can be compared, with the directions that were set for modes which the default does not know."""
    return UtilityConfig(modes={**config.modes, **UtilityConfig().modes})


def aims(config: UtilityConfig) -> dict[str, float]:
    """1 or -1 for each mode whose arousal is judged by a direction."""
    signs = {"up": 1.0, "down": -1.0}
    found = {mode: signs.get(asked.get("arousal", "")) for mode, asked in yardstick(config).modes.items()}
    return {mode: sign for mode, sign in found.items() if sign is not None}


class Utility:
    """Callable utility of one model's predictions.

    Args:
        config: weights and directions.
        modes: the data set's modes, in the order of their labels.
        spread: s_x by signal; signals that are not in it are left as they are.
        carry: c_x by signal, for each track of a session (the last figure holds for all after it); signals
            that are not in it carry over whole.
        entropy: H(k) of every track in nats; nothing is added without it.

    Raises:
        RunError: where `utility.modes` names a mode that the data set does not have.
    """

    def __init__(
        self,
        config: UtilityConfig,
        modes: tuple[str, ...],
        spread: Mapping[str, float] | None = None,
        carry: Mapping[str, Sequence[float]] | None = None,
        entropy: Sequence[float] | None = None,
    ) -> None:
        unknown = set(config.modes) - set(modes) - set(UtilityConfig().modes)
        if unknown:
            raise RunError(
                f"utility.modes names {', '.join(sorted(unknown))}, but the modes of this data set are "
                f"{', '.join(modes) or 'not recorded'}"
            )
        self.config, self.modes = config, modes
        self.carry = {name: torch.tensor(c) for name, c in (carry or {}).items()}
        self.bonus_K = config.entropy * torch.tensor(entropy) if entropy and config.entropy else None
        self.spread = dict(spread or {}) if config.standardise else {}
        self.weights = {name: w for name, w in vars(config.weights).items() if w > 0}

    def direction(self, signal: str, mode: int) -> str | None:
        """up, down, a target as text, or None where the signal does not count; mode -1 is null."""
        named = self.config.modes.get(self.modes[mode], {}) if mode >= 0 else {}
        return named.get(signal, None if signal == "arousal" else "up")

    def __call__(
        self,
        kinds: Mapping[str, Kind],
        params: Mapping[str, Tensor],
        mode_B: Tensor,
        step_B: Tensor | None = None,
    ) -> Tensor:
        """Utility (B, ...) from head parameters (B, ..., P) by signal, for track `step_B` (default 0)."""
        signals = [name for name in self.weights if name in params]
        if not signals:
            raise ValueError(
                f"utility.weights={self.weights} name none of the signals that this data set has: "
                f"{', '.join(params)}"
            )
        total = torch.zeros(params[signals[0]].shape[:-1], device=mode_B.device)
        modes = mode_B.unique().tolist()
        for signal in signals:
            scale = self.weights[signal] / max(self.spread.get(signal, 1.0), LEAST_SPREAD)
            scale_B = scale * self._carry(signal, mode_B, step_B)
            directions = [self.direction(signal, mode) for mode in modes]
            if len(set(directions)) == 1:
                good = _good(kinds[signal], params[signal], directions[0])
            else:
                good = torch.zeros_like(total)
                for mode, direction in zip(modes, directions, strict=True):
                    rows_B = mode_B == mode
                    good[rows_B] = _good(kinds[signal], params[signal][rows_B], direction)
            total = torch.addcmul(total, good, scale_B.reshape(-1, *[1] * (good.ndim - 1)))
        return total

    @property
    def targets(self) -> list[tuple[str, float]]:
        """Signals with the targets that modes of this data set give them."""
        modes = range(len(self.modes))
        named = {(name, self.direction(name, mode)) for name in self.weights for mode in modes}
        return sorted((name, float(to)) for name, to in named if to not in (None, "up", "down"))

    def of_values(self, values: Mapping[str, Tensor], mode_B: Tensor, step_B: Tensor | None = None) -> Tensor:
        """Utility (B,) of known or expected values (B,) by signal: at the session's end, or after `step_B`.

        A target t counts 1 - E|x - t|; E|x - t| must be among the values as `distance_to(signal, t)`, for it
        is not the distance of the expectation.
        """
        total_B = torch.zeros(len(mode_B), dtype=next(iter(values.values())).dtype)
        for signal in [name for name in self.weights if name in values]:
            scale = self.weights[signal] / max(self.spread.get(signal, 1.0), LEAST_SPREAD)
            good_B = torch.zeros_like(total_B)
            for mode in mode_B.unique().tolist():
                rows, direction = mode_B == mode, self.direction(signal, mode)
                if direction == "up":
                    good_B[rows] = values[signal][rows]
                elif direction == "down":
                    good_B[rows] = 1 - values[signal][rows]
                elif direction is not None:
                    good_B[rows] = 1 - values[distance_to(signal, float(direction))][rows]
            total_B += scale * good_B * (1.0 if step_B is None else self._carry(signal, mode_B, step_B))
        return total_B

    def _carry(self, signal: str, mode_B: Tensor, step_B: Tensor | None) -> Tensor:
        """c_x(s), as (B,)."""
        if signal not in self.carry:
            return torch.ones(len(mode_B), device=mode_B.device)
        carry_T = self.carry[signal].to(mode_B.device)
        step_B = torch.zeros_like(mode_B) if step_B is None else step_B
        return carry_T[step_B.clamp(max=len(carry_T) - 1)]

    def joined(self, u_MB: Tensor, track: Tensor) -> Tensor:
        """One utility (B, ...) of the members' (M, B, ...): mean less lambda times ignorance, plus the bonus.

        The last dimension must hold the candidates that are compared at one history, `track` (any shape
        that broadcasts to (B, ...)).
        """
        mean_B = u_MB.mean(0)
        if self.config.pessimism > 0 and len(u_MB) > 1:
            mean_B = mean_B - self.config.pessimism * ignorance(u_MB)
        return mean_B + self.bonus(track)

    def bonus(self, track: Tensor) -> Tensor:
        """eta H of each track, in units of utility; 0 where there is none."""
        if self.bonus_K is None:
            return torch.zeros((), device=track.device)
        return self.bonus_K.to(track.device)[track]


def _good(kind: Kind, params: Tensor, direction: str | None) -> Tensor:
    """g (...) of a signal with parameters (..., P) under one direction."""
    if direction is None:
        return torch.zeros_like(params[..., 0])
    if direction in ("up", "down"):
        return kind.mean(params) if direction == "up" else 1 - kind.mean(params)
    return 1 - kind.distance(params, float(direction))


def ignorance(u_MB: Tensor) -> Tensor:
    """Standard deviation over members (M, B, C) of the utility relative to the candidates' mean, (B, C)."""
    return (u_MB - u_MB.mean(-1, keepdim=True)).std(0)
