"""A synthetic listening service whose truth is known."""

from amrs.platform.truth import TruthError, load_truth
from amrs.platform.world import Platform, PlatformEnvironment, draw_platform

__all__ = ["Platform", "PlatformEnvironment", "TruthError", "draw_platform", "load_truth"]
