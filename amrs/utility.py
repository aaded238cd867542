"""What is good for the listener: predicted signals to one number.

U = sum over signals x of w_x g_x(m) / s_x, where w_x is the weight, s_x the spread of the signal's
predicted effect under Copycat (1 without standardisation), m the session's mode and
  g = E[x] (up), 1 - E[x] (down), or E[1 - |x - t|] (target t, over the predictive distribution).
Signals that a mode does not name go up, except arousal: which arousal is good depends on the mode, so
where no mode (or no direction) is known it does not count.
Shape suffixes: B histories, P head parameters; `...` are candidates.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from amrs.config.groups import UtilityConfig
from amrs.signals import Kind

LEAST_SPREAD = 1e-4
"""Spread below which a predicted effect is rounding error: it is not blown up to matter."""


class Utility:
    """Callable utility of one model's predictions.

    Args:
        config: weights and directions.
        modes: the data set's modes, in the order of their labels.
        spread: s_x by signal; signals that are not in it are left as they are.
    """

    def __init__(
        self, config: UtilityConfig, modes: tuple[str, ...], spread: Mapping[str, float] | None = None
    ) -> None:
        self.config, self.modes = config, modes
        self.spread = dict(spread or {}) if config.standardise else {}
        self.weights = {name: w for name, w in vars(config.weights).items() if w > 0}

    def direction(self, signal: str, mode: int) -> str | None:
        """up, down, a target as text, or None where the signal does not count; mode -1 is null."""
        named = self.config.modes.get(self.modes[mode], {}) if mode >= 0 else {}
        return named.get(signal, None if signal == "arousal" else "up")

    def __call__(self, kinds: Mapping[str, Kind], params: Mapping[str, Tensor], mode_B: Tensor) -> Tensor:
        """Utility (B, ...) from head parameters (B, ..., P) by signal."""
        signals = [name for name in self.weights if name in params]
        if not signals:
            raise ValueError(
                f"utility.weights={self.weights} name none of the signals that this data set has: "
                f"{', '.join(params)}"
            )
        total = torch.zeros(params[signals[0]].shape[:-1], device=mode_B.device)
        for signal in signals:
            scale = self.weights[signal] / max(self.spread.get(signal, 1.0), LEAST_SPREAD)
            for mode in mode_B.unique().tolist():
                rows = mode_B == mode
                direction = self.direction(signal, mode)
                if direction == "up":
                    total[rows] += scale * kinds[signal].mean(params[signal][rows])
                elif direction == "down":
                    total[rows] += scale * (1 - kinds[signal].mean(params[signal][rows]))
                elif direction is not None:
                    near = 1 - kinds[signal].distance(params[signal][rows], float(direction))
                    total[rows] += scale * near
        return total
