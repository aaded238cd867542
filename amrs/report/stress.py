"""The chapter on who might be harmed: verdicts, harm, what breaks a gain, histories, and the gate."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from amrs.report.canvas import DASHED, STYLE, Panel, canvas, dot, name_places, panel
from amrs.report.listeners import headed
from amrs.report.rows import POLICIES, Report, Row
from amrs.report.tables import Cell, Table, row_cell
from amrs.report.words import counts, label, number, subjects

_PERTURBED = {
    "reactivity": "Reactivity shrunk by", "inertia": "Inertia", "track_effect": "Track effect shrunk by",
    "sign_flip": "Share of tracks turned", "heads": "Noise in the heads (relative)",
    "hidden_cause": "Hidden cause (odds)",
}  # fmt: skip


def _tried(report: Report, section: str) -> list[str]:
    """Policies of a section, DPO first: it is the one that was asked about."""
    return sorted(subjects(report, section, POLICIES), key=_dpo_first)


def _dpo_first(name: str) -> bool:
    return not name.startswith("dpo")


class Verdict(NamedTuple):
    """What the gate says of a policy, and each threshold that failed."""

    text: str
    failed: list[str]


def verdicts(said: Mapping[str, str]) -> list[Verdict]:
    """The gate's sentences (`amrs.gate.verdict`), those on DPO first, with their reasons as lists."""
    found = []
    for name in sorted(said, key=_dpo_first):
        text, reasons, failed = said[name].partition(" of the gate: ")
        if reasons and "Split 0:" not in text:
            found.append(Verdict(f"{text} of the gate.", failed.removesuffix(".").split("; ")))
        else:
            found.append(Verdict(said[name], []))
    return found


def harm_panels(report: Report) -> list[Panel]:
    """Harm of every policy over all sessions, and of DPO by cohort and mode."""
    rows = _harm_rows(report)
    every = [row for row in rows if row.group == "all"]
    names = {
        name: label(name) if name != "copycat" else "Copycat itself"
        for name in _tried(report, "stress")
        if any(row.subject == name for row in every)
    }
    mine = [row for row in rows if row.subject == "dpo"]
    count = {row.group: row.n for row in mine}
    groups = {group: f"{label(group)} (n = {count[group]:,})" for group in sorted(count, key=_all_first)}
    panels = []
    if names:
        limits = dict.fromkeys(names, _limit(report, "all"))
        panels.append(_harm_panel(f"Every policy, all sessions, {counts(every)}", every, "subject", names,
                                  limits))  # fmt: skip
    if len(groups) > 1:
        limits = {group: _limit(report, group) for group in groups}
        panels.append(_harm_panel("DPO, by cohort and mode", mine, "group", groups, limits))
    return panels


def _harm_rows(report: Report) -> list[Row]:
    """Harm in the judge and where it was realised; the gate's margins of it are other rows."""
    sections = ("stress", "realised")
    return [r for r in report.rows if r.metric == "harm" and r.section in sections and r.split == "mean"]


def _all_first(group: str) -> tuple[bool, str]:
    return group != "all", group


def _limit(report: Report, group: str) -> float | None:
    """What the upper end of the judge's interval may be, where the settings name it; modes have no limit."""
    gate = (report.provenance.get("config") or {}).get("gate") or {}
    name = {"all": "harm", "cohort": "harm_cohort"}.get(group.partition(":")[0], "")
    return float(gate[name]) if name in gate else None


def _harm_panel(
    title: str, rows: Sequence[Row], by: str, names: Mapping[str, str], limits: Mapping[str, float | None]
) -> Panel:
    figure, axes = canvas(0.9 + 0.34 * len(names))
    places = {name: place for place, name in enumerate(names)}
    shown = [row for row in rows if getattr(row, by) in places]
    for row in shown:
        colour, marker = STYLE["realised" if row.section == "realised" else "predicted"]
        shift = -0.13 if row.section == "realised" else 0.13
        dot(axes, row, places[getattr(row, by)] + shift, colour, marker)
    for name, limit in limits.items():
        if limit is not None:
            axes.plot([limit, limit], [places[name] - 0.45, places[name] + 0.45], **DASHED)
    name_places(axes, list(names.values()))
    axes.set_xlim(left=0.0)
    axes.set_xlabel("share of sessions harmed")
    return panel(title, figure, f"Harm. {title}", shown, by=by)


def harm_table(report: Report) -> Table | None:
    """Harm by policy and cohort, of DPO by mode, too, in the judge and where it was realised."""
    rows = _harm_rows(report)
    sections = [name for name in ("stress", "realised") if any(row.section == name for row in rows)]
    if not rows:
        return None
    by_key = {(row.section, row.subject, row.group): row for row in rows}
    lines = []
    for name in _tried(report, "stress"):
        groups = [row.group for row in rows if (row.section, row.subject) == ("stress", name)]
        shown = [group for group in groups if name == "dpo" or not group.startswith("mode:")]
        for group in sorted(shown, key=_all_first):
            found = [by_key.get((section, name, group)) for section in sections]
            who = label(name) if name != "copycat" else "Copycat against itself"
            count = f"{found[0].n:,}" if found[0] else ""
            lines.append([Cell(who), Cell(label(group)), *map(row_cell, found), Cell(count)])
    header = ["Policy", "Group", *({"stress": "In the judge", "realised": "Realised"}[s] for s in sections),
              "Sessions"]  # fmt: skip
    caption = "Share of sessions whose expected valence falls by more than .02"
    return Table(headed(caption, report, "harm"), header, lines, heads=2)


def lasting_table(report: Report) -> Table | None:
    """What is left of a true gain in valence after many sessions of the policy."""
    found = [
        (label(name), report.one(section="realised", subject=name, signal="valence", metric="gain"), row)
        for name in _tried(report, "stress")
        if (row := report.one(section="realised", subject=name, signal="valence", metric="later_gain"))
    ]
    lines = [
        [Cell(name), row_cell(once), row_cell(later), Cell(f"{later.n:,}")] for name, once, later in found
    ]
    header = ["Policy", "One session", "Sessions 11 to 20 in a row", "Later sessions simulated"]
    caption = "Realised gain in valence over Copycat, in scale points"
    return Table(headed(caption, report, "harm"), header, lines) if lines else None


def breaking_table(report: Report) -> Table | None:
    """How strong each perturbation must be until the gain in valence is gone."""
    rows = [row for row in report.rows if (row.section, row.signal) == ("stress", "valence")]
    cells = {
        (name, kind): _point(report, rows, name, kind)
        for name in _tried(report, "stress") for kind in _PERTURBED
    }  # fmt: skip
    names = dict.fromkeys(name for (name, _), point in cells.items() if point)
    kinds = [kind for kind in _PERTURBED if any(cells[name, kind] for name in names)]
    lines = [[Cell(label(name)), *(Cell(cells[name, kind]) for kind in kinds)] for name in names]
    header = ["Policy", *(_PERTURBED[kind] for kind in kinds)]
    return Table("Breaking points of the gain in valence", header, lines) if lines else None


def _point(report: Report, rows: Sequence[Row], name: str, kind: str) -> str:
    """Where a policy's gain breaks, or that it did not; empty where that was not tried."""
    wanted = (name, "breaking_point", f"perturbed:{kind}")
    broken = [row for row in rows if (row.subject, row.metric, row.group) == wanted]
    for row in broken:
        if row.split == "mean":
            return number(row.value, row.metric)
    if broken:
        return "not in every split"
    tried = any(r.subject == name and r.group.startswith(f"perturbed:{kind}=") for r in rows)
    if kind == "hidden_cause":  # a bound, from the gain's interval and held-out reports: no gain of its own
        gain = report.one(section="stress", subject=name, signal="valence", metric="gain")
        judged = report.find(section="stress", subject="world_model", signal="valence", metric="coverage_80")
        tried = gain is not None and gain.low is not None and bool(judged)
    return "not broken" if tried else ""


_EVIDENCE = {
    ("uplift_slope", "all"): "Uplift slope",
    ("uplift_slope", "propensities:logged"): "Uplift slope, plays weighted by logged propensities",
    ("late_slope", "all"): "Slope of reports before sessions on what earlier ones gave (training users, too)",
    ("coverage_80", "all"): "Coverage of 80 % intervals",
}  # fmt: skip
"""What the judge's promises rest on (`amrs/stress/evidence.py`), by metric and group."""


def judge_table(report: Report) -> Table | None:
    """The judge's own slopes and coverage, which the gate asks."""
    lines = []
    for (metric, group), what in _EVIDENCE.items():
        for row in report.rows:
            about = (row.section, row.subject, row.metric, row.group, row.split)
            if about == ("stress", "world_model", metric, group, "mean"):
                lines.append([Cell(what), Cell(label(row.signal)), row_cell(row), Cell(row.unit),
                              Cell(f"{row.n:,}")])  # fmt: skip
    header = ["What", "Signal", "Figure", "Unit", "n"]
    caption = "The judge's slopes and coverage, with 95 % intervals by user unless the unit says otherwise"
    return Table(caption, header, lines, heads=2) if lines else None


def gate_table(report: Report) -> Table | None:
    """Each threshold's margin by policy; below 0 it failed."""
    rows = [row for row in report.rows if row.section == "gate" and row.metric != "pass_rate"]
    rows = [row for row in rows if row.split == "mean" and row.metric != "verdict"]
    if not rows:
        return None
    names = _tried(report, "gate")
    by_key = {(row.subject, row.metric, row.signal, row.group): row for row in rows}
    lines = []
    for metric, signal, group in dict.fromkeys((row.metric, row.signal, row.group) for row in rows):
        what = label(metric) if signal == "all" else f"{label(metric)}, {label(signal).lower()}"
        found = [by_key.get((name, metric, signal, group)) for name in names]
        lines.append([Cell(what), Cell(label(group)), *(_margin(row) for row in found)])
    header = ["Threshold", "Group", *map(label, names)]
    return Table("The gate: distance to each threshold, below 0 where it failed", header, lines, heads=2)


def _margin(row: Row | None) -> Cell:
    if row is None:
        return Cell("not known")
    return Cell(f"{row.value:+.4f}", "failed" if row.value < 0 else "")


def world_table(report: Report) -> Table | None:
    """How often the gate passed a policy, by kind of world."""
    rows = [row for row in report.rows if row.metric == "pass_rate"]
    if not rows:
        return None
    lines = [[Cell(label(row.group)), row_cell(row), Cell(f"{row.n:,}")] for row in rows]
    return Table("The gate's operating figures: share of worlds that pass", ["Worlds", "Pass", "n"], lines)


def worst_table(cases: Sequence[Mapping[str, object]]) -> Table | None:
    """What the adversary found, for DPO first."""
    if not cases:
        return None
    names = list(cases[0])
    ordered = sorted(cases, key=lambda case: _dpo_first(str(case["policy"])))
    lines = [[Cell(_about(name, case[name])) for name in names] for case in ordered]
    header = [name.replace("_", " ").capitalize() for name in names]
    return Table("Worst histories found for each policy", header, lines)


def _about(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:+.4f}"
    return "" if value is None else label(str(value)) if name == "policy" else str(value)
