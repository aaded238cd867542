"""Tables of the chapter on who might be harmed: harm, what breaks a gain, histories, and the gate."""

from collections.abc import Sequence

from amrs.report.rows import POLICIES, Report, Row
from amrs.report.tables import Cell, Table, row_cell
from amrs.report.words import label, number, subjects

_PERTURBED = {
    "reactivity": "Reactivity shrunk by", "inertia": "Inertia", "track_effect": "Track effect shrunk by",
    "sign_flip": "Share of tracks turned", "heads": "Noise in the heads (relative)",
    "hidden_cause": "Hidden cause (odds)",
}  # fmt: skip


def harm_table(report: Report) -> Table | None:
    """Harm by policy and group, in the judge and where it was realised."""
    rows = [row for row in report.rows if row.metric == "harm" and row.split == "mean"]
    sections = [name for name in ("stress", "realised") if any(row.section == name for row in rows)]
    if not rows:
        return None
    by_key = {(row.section, row.subject, row.group): row for row in rows}
    lines = []
    for name in subjects(report, "stress", POLICIES):
        groups = [row.group for row in rows if (row.section, row.subject) == ("stress", name)]
        for group in sorted(groups, key=lambda text: (text != "all", text)):
            found = [by_key.get((section, name, group)) for section in sections]
            who = label(name) if name != "copycat" else "Copycat against itself"
            count = f"{found[0].n:,}" if found[0] else ""
            lines.append([Cell(who), Cell(label(group)), *map(row_cell, found), Cell(count)])
    header = ["Policy", "Group", *({"stress": "In the judge", "realised": "Realised"}[s] for s in sections),
              "Sessions"]  # fmt: skip
    return Table("Share of sessions whose expected valence falls by more than .02", header, lines, heads=2)


def breaking_table(report: Report) -> Table | None:
    """How strong each perturbation must be until the gain in valence is gone."""
    rows = [
        row for row in report.rows
        if (row.section, row.metric, row.signal) == ("stress", "breaking_point", "valence")
        and row.split == "mean"
    ]  # fmt: skip
    if not rows:
        return None
    kinds = [kind for kind in _PERTURBED if any(row.group == f"perturbed:{kind}" for row in rows)]
    by_key = {(row.subject, row.group): row for row in rows}
    lines = []
    for name in subjects(report, "stress", POLICIES):
        found = [by_key.get((name, f"perturbed:{kind}")) for kind in kinds]
        if any(found):
            lines.append([Cell(label(name)), *(_point(row) for row in found)])
    return Table("Breaking points of the gain in valence", ["Policy", *(_PERTURBED[k] for k in kinds)], lines)


def _point(row: Row | None) -> Cell:
    return Cell("not broken") if row is None else Cell(number(row.value, row.metric))


def gate_table(report: Report) -> Table | None:
    """Each threshold's margin by policy; below 0 it failed."""
    rows = [row for row in report.rows if row.section == "gate" and row.metric != "pass_rate"]
    rows = [row for row in rows if row.split == "mean" and row.metric != "verdict"]
    if not rows:
        return None
    names = subjects(report, "gate", POLICIES)
    by_key = {(row.subject, row.metric, row.signal, row.group): row for row in rows}
    lines = []
    for metric, signal, group in dict.fromkeys((row.metric, row.signal, row.group) for row in rows):
        what = label(metric) if signal == "all" else f"{label(metric)}, {label(signal).lower()}"
        found = [by_key.get((name, metric, signal, group)) for name in names]
        lines.append([Cell(what), Cell(label(group)), *(_margin(row) for row in found)])
    header = ["Threshold", "Group", *map(label, names)]
    return Table("The gate: distance to each threshold, below 0 where it failed", header, lines, heads=2)


def _margin(row: Row | None) -> Cell:
    return Cell("not known") if row is None else Cell(f"{row.value:+.4g}")


def world_table(report: Report) -> Table | None:
    """How often the gate passed a policy, by kind of world."""
    rows = [row for row in report.rows if row.metric == "pass_rate"]
    if not rows:
        return None
    lines = [[Cell(label(row.group)), row_cell(row), Cell(f"{row.n:,}")] for row in rows]
    return Table("The gate's operating figures: share of worlds that pass", ["Worlds", "Pass", "n"], lines)


def worst_table(cases: Sequence[dict[str, object]]) -> Table | None:
    """What the adversary found."""
    if not cases:
        return None
    names = list(cases[0])
    lines = [[Cell("" if case[name] is None else str(case[name])) for name in names] for case in cases]
    header = [name.replace("_", " ").capitalize() for name in names]
    return Table("Worst histories found for each policy", header, lines)
