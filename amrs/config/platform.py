"""Parameters of the synthetic platform (placeholder until the platform's author writes them)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PlatformConfig:
    users: int = 939
    """Listeners in the log, 10 or more."""
    seed: int = 0
    """Which world: catalogue, listeners and log are drawn from it."""
