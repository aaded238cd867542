"""Affective music recommendation, trained and judged offline."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amrs.serving import Recommender

__version__ = "0.1.0"


def load(path: str | Path) -> "Recommender":
    """An exported policy, ready to recommend; `path` is the run folder of stage export."""
    from amrs.serving import Recommender  # imports torch, which settings and help do without

    return Recommender(Path(path))
