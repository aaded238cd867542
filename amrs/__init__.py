"""Affective music recommendation, trained and judged offline."""

__version__ = "0.1.0"
