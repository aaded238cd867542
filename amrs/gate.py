"""Thresholds to a verdict, in rows and in words: what a policy must show before it may be exported.

Everything that enters is known to somebody who has logs alone: the judge's simulations, held-out reports,
diversity of what the judge's listeners were played. What was realised on a platform never enters.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from amrs.config.groups import GateConfig
from amrs.report import Row
from amrs.report.words import label

_LEVEL = 0.8
"""Coverage that an interval of 80 % should have."""


class Check(NamedTuple):
    """One threshold and the figure that is held against it."""

    name: str
    """The threshold's name in configs/gate.yaml."""
    signal: str
    metric: str
    group: str
    what: str
    """What the figure is, in words."""
    figure: float | None
    """None where the report has no such figure; what cannot be told does not pass."""
    limit: float
    least: bool
    """True where the figure must not be below the limit, False where not above it."""
    strict: bool
    """True where the limit itself does not pass either."""
    n: int
    unit: str

    @property
    def margin(self) -> float | None:
        """How far the figure is on the right side of the limit; below 0 fails."""
        if self.figure is None:
            return None
        return self.figure - self.limit if self.least else self.limit - self.figure

    @property
    def passed(self) -> bool:
        """True where the threshold holds."""
        margin = self.margin
        return margin is not None and (margin > 0 if self.strict else margin >= 0)

    @property
    def words(self) -> str:
        """The figure, what it had to be, and whose."""
        whose = "" if self.group == "all" else f" ({label(self.group)})"
        sign = ("above" if self.strict else "at least") if self.least else "at most"
        figure = "not known" if self.figure is None else f"{self.figure:.4f}".rstrip("0").rstrip(".")
        return f"{self.what}{whose} is {figure}, must be {sign} {self.limit:g} [gate.{self.name}]"


class Figures:
    """Rows by what they are about, over all splits."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.key: row for row in rows if row.split == "mean"}

    def row(self, section: str, subject: str, signal: str, metric: str, group: str = "all") -> Row | None:
        """The row, or None."""
        return self.rows.get((section, subject, signal, metric, "mean", group))

    def groups(self, section: str, subject: str, signal: str, metric: str) -> list[str]:
        """all and the cohorts that have such a row."""
        found = {key[5] for key in self.rows if key[:5] == (section, subject, signal, metric, "mean")}
        return ["all", *sorted(group for group in found if group.startswith("cohort:"))]


def checks(rows: Iterable[Row], policy: str, config: GateConfig, signals: Sequence[str]) -> list[Check]:
    """Every threshold for one policy; `signals` are those of affect that the utility counts."""
    figures = Figures(rows)
    return [
        *_gains(figures, policy, config),
        *_harm(figures, policy, config),
        *_believed(figures, config, signals),
        *_traced(figures, config),
        *_paid_later(figures, config),
        *_variety(figures, policy, config),
        _drift(figures, policy, config),
        _hard(figures, policy, config),
    ]


def _gains(figures: Figures, policy: str, config: GateConfig) -> list[Check]:
    found = []
    for name, signal, strict in (("utility_gain", "utility", True), ("valence_gain", "valence", False)):
        for group in figures.groups("stress", policy, signal, "gain"):
            row = figures.row("stress", policy, signal, "gain", group)
            found.append(Check(
                name, signal, "gain", group, f"lower bound of the judge's gain in {signal}",
                row.low if row else None, getattr(config, name), True, strict, row.n if row else 0,
                row.unit if row else "",
            ))  # fmt: skip
    return found


def _harm(figures: Figures, policy: str, config: GateConfig) -> list[Check]:
    found = []
    for group in figures.groups("stress", policy, "valence", "harm"):
        row = figures.row("stress", policy, "valence", "harm", group)
        name = "harm" if group == "all" else "harm_cohort"
        found.append(Check(
            name, "valence", "harm", group, "upper bound of harm in the judge", row.high if row else None,
            getattr(config, name), False, False, row.n if row else 0, "fraction",
        ))  # fmt: skip
    return found


def _believed(figures: Figures, config: GateConfig, signals: Sequence[str]) -> list[Check]:
    """The judge's track effects and calibration on held-out reports: it makes the promises."""
    found = []
    for signal in signals:
        row = figures.row("stress", "world_model", signal, "uplift_slope")
        found.append(Check(
            "uplift_slope", signal, "uplift_slope", "all",
            f"lower bound of the judge's uplift slope of {signal}", row.low if row else None,
            config.uplift_slope, True, True, row.n if row else 0, "residual per predicted",
        ))  # fmt: skip
        row = figures.row("stress", "world_model", signal, "coverage_80")
        found.append(Check(
            "calibration", signal, "coverage_80", "all",
            f"distance from .8 of the coverage of {signal} by the judge's 80 % intervals",
            abs(row.value - _LEVEL) if row else None, config.calibration, False, False, row.n if row else 0,
            "fraction",
        ))  # fmt: skip
    return found


def _traced(figures: Figures, config: GateConfig) -> list[Check]:
    """The trace that a hidden cause leaves in logged propensities; not asked where the log has none."""
    row = figures.row("stress", "world_model", "valence", "uplift_slope", "propensities:logged")
    if row is None:
        return []
    what = "lower bound of the uplift slope of valence, plays weighted by"
    return [Check("weighted_slope", "valence", "uplift_slope", row.group, what, row.low,
                  config.weighted_slope, True, True, row.n, row.unit)]  # fmt: skip


def _paid_later(figures: Figures, config: GateConfig) -> list[Check]:
    """What later reports say of earlier sessions; not asked where there are none before sessions."""
    row = figures.row("stress", "world_model", "valence", "late_slope")
    if row is None or row.high is None:
        return []
    what = "upper end (80 %) of the slope of valence before a session on what earlier sessions gave"
    return [Check("late_slope", "valence", "late_slope", "all", what, row.high, config.late_slope, True,
                  False, row.n, row.unit)]  # fmt: skip


def _variety(figures: Figures, policy: str, config: GateConfig) -> list[Check]:
    found = []
    for name, metric in (
        ("effective_tracks", "effective_tracks"), ("coverage", "catalogue_coverage"), ("entropy", "entropy"),
    ):  # fmt: skip
        row, base = (figures.row("stress", who, "all", metric) for who in (policy, "copycat"))
        share = row.value / base.value if row and base and base.value > 0 else None
        found.append(Check(
            name, "all", metric, "all", f"{label(metric).lower()}, as a share of Copycat's,", share,
            getattr(config, name), True, False, row.n if row else 0, "fraction of Copycat's",
        ))  # fmt: skip
    return found


def _drift(figures: Figures, policy: str, config: GateConfig) -> Check:
    row = figures.row("stress", policy, "all", "kl")
    bound = None if row is None else row.value if row.high is None else row.high
    return Check("kl", "all", "kl", "all", "upper bound of the KL to Copycat", bound, config.kl, False, False,
                 row.n if row else 0, "nats per track")  # fmt: skip


def _hard(figures: Figures, policy: str, config: GateConfig) -> Check:
    row = figures.row("stress", policy, "all", "violations")
    return Check(
        "violations", "all", "violations", "all", "share of hard properties violated",
        row.value if row else None, config.violations, False, False, row.n if row else 0, "fraction",
    )  # fmt: skip


def gate_rows(policy: str, found: Sequence[Check]) -> list[Row]:
    """`verdict` (1 passed, 0 failed) and the margin of each threshold: the figure's distance to the limit,
    in the figure's unit, below 0 where it fails."""
    passed = all(check.passed for check in found)
    rows = [
        Row(
            "gate", policy, "all", "verdict", "mean", "all", float(passed), None, None, len(found), "1 passed"
        )
    ]
    for check in found:
        if check.margin is not None:
            rows.append(Row("gate", policy, check.signal, check.metric, "mean", check.group, check.margin,
                            None, None, check.n, f"margin, {check.unit}"))  # fmt: skip
    return rows


def verdict(policy: str, found: Sequence[Check]) -> str:
    """One sentence: passed, or what failed, each threshold with its figure."""
    failed = [check.words for check in found if not check.passed]
    if not failed:
        return f"{label(policy)} passed all {len(found)} thresholds of the gate."
    return (
        f"{label(policy)} failed {len(failed)} of {len(found)} thresholds of the gate: {'; '.join(failed)}."
    )
