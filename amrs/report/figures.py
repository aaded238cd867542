"""Figures of the page: small panels of SVG, themed by the page's own colours.

Each panel is drawn narrow, so that a phone shows one below the other at a readable size. Colours are
placeholders that become CSS variables: the page decides what they are in light, dark and print. A shape
goes with every colour, and the text alternative holds the numbers.
"""

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from amrs.report.rows import MODELS, POLICIES, Report, Row
from amrs.report.tables import lead_section
from amrs.report.words import GAIN_SECTIONS, MAIN_FIT, cell, counts, label, subjects

_NAMES = ("ink", "muted", "grid", "realised", "judge", "labeller", "model", "blind", "other")
PLACEHOLDERS = {name: f"#0{index}0{index}0{index}" for index, name in enumerate(_NAMES, start=1)}
STYLE = {"realised": ("realised", "o"), "predicted": ("judge", "s"), "predicted_labeller": ("labeller", "^")}
"""Colour and marker of each way of knowing a gain."""
_SETTINGS: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "amrs", "font.family": "sans-serif", "font.size": 9.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), PLACEHOLDERS["ink"]),
    "axes.edgecolor": PLACEHOLDERS["muted"], "grid.color": PLACEHOLDERS["grid"], "grid.linewidth": 0.7,
}  # fmt: skip
_DASHED: Any = {
    "color": PLACEHOLDERS["muted"], "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 1,
}  # fmt: skip


class Panel(NamedTuple):
    """One small figure: its heading, the SVG, and what it shows in words."""

    title: str
    svg: str
    alt: str


def fidelity_panels(report: Report) -> list[Panel]:
    """World model against baselines, one panel for each signal's main figure."""
    panels = []
    for signal, metric in MAIN_FIT:
        rows = {row.subject: row for row in report.find(section="fidelity", signal=signal, metric=metric)}
        names = [name for name in subjects(report, "fidelity", MODELS) if name in rows]
        if not names:
            continue
        figure, axes = _canvas(0.9 + 0.27 * len(names))
        for place, name in enumerate(names):
            colour = {"world_model": "model", "track_blind": "blind"}.get(name, "other")
            _dot(axes, rows[name], place, colour, "D" if name == "world_model" else "o")
        _name_places(axes, [label(name) for name in names])
        reference = 0.5 if metric == "auroc" else 0.0
        _line(axes, reference)
        axes.set_xlabel("AUROC (0.5 is chance)" if metric == "auroc" else "R2 (0 is the training mean)")
        title, subject = f"{label(signal)}, {counts(rows.values())}", f"{label(signal)} {label(metric)}"
        panels.append(_panel(title, figure, subject, [rows[name] for name in names]))
    return panels


def gain_panels(report: Report) -> list[Panel]:
    """Gain over Copycat: realised, judge and labeller side by side, one panel per signal."""
    panels = []
    for signal in ("valence", "arousal"):
        rows = [row for section in GAIN_SECTIONS for row in _gains(report, section, signal)]
        order = dict.fromkeys(name for s in GAIN_SECTIONS for name in subjects(report, s, POLICIES))
        names = [name for name in order if any(row.subject == name for row in rows)]
        if not names:
            continue
        figure, axes = _canvas(0.9 + 0.42 * len(names))
        for row in rows:
            colour, marker = STYLE[row.section]
            shift = 0.24 * (GAIN_SECTIONS.index(row.section) - 1)
            _dot(axes, row, names.index(row.subject) + shift, colour, marker)
        _name_places(axes, [label(name) for name in names])
        _line(axes, 0.0)
        axes.set_xlabel("gain over Copycat (scale points)")
        title = f"{label(signal)}, {counts(rows)}"
        panels.append(_panel(title, figure, f"Gain in {signal} over Copycat", rows))
    return panels


def group_panels(report: Report) -> list[Panel]:
    """DPO's gain by cohort and mode."""
    section = lead_section(report)
    panels = []
    for signal in ("valence", "arousal"):
        keys = {"section": section, "subject": "dpo", "signal": signal, "metric": "gain", "split": "mean"}
        rows = [row for row in report.rows if all(getattr(row, key) == value for key, value in keys.items())]
        rows = [row for row in rows if row.group == "all" or row.group.startswith(("cohort:", "mode:"))]
        if len(rows) < 2:
            continue
        rows.sort(key=lambda row: (row.group != "all", row.group))
        figure, axes = _canvas(0.9 + 0.27 * len(rows))
        for place, row in enumerate(rows):
            _dot(axes, row, place, *STYLE[section])
        _name_places(axes, [f"{label(row.group)} (n = {row.n:,})" for row in rows])
        _line(axes, 0.0)
        axes.set_xlabel("gain over Copycat (scale points)")
        panels.append(_panel(label(signal), figure, f"Gain of DPO in {signal} by group", rows, by="group"))
    return panels


def plane_panels(report: Report) -> list[Panel]:
    """Valence gain against drift (KL) and against diversity (effective tracks): what a gain costs."""
    section = lead_section(report)
    gains = {row.subject: row for row in report.find(section=section, signal="valence", metric="gain")}
    panels = []
    for metric, title in (("kl", "Gain and drift"), ("effective_tracks", "Gain and diversity")):
        across = {row.subject: row for row in report.find(metric=metric, signal="all")}
        names = [name for name in across if name in gains and name != "copycat"]
        base = across.get("copycat")
        if not names:
            continue
        figure, axes = _canvas(2.9)
        for name in names:
            _cross(axes, across[name], gains[name], *STYLE[section])
        if metric == "kl":
            axes.set_xscale("symlog", linthresh=0.1)
            most = max(across[name].value for name in names)
            ticks = [tick for tick in (0.0, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0) if tick < 2 * most]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            axes.set_xticks([], minor=True)
        axes.set_xlabel(
            "KL to Copycat (nats a track; linear below 0.1)" if metric == "kl" else "effective tracks"
        )
        _line(axes, 0.0, across=True)
        axes.set_ylabel("valence gain (scale points)")
        points = [(label(name), across[name].value, gains[name].value) for name in names]
        if base is not None:  # its gain is 0 by definition
            axes.axvline(base.value, **_DASHED)
            axes.plot([base.value], [0.0], "D", color=PLACEHOLDERS["ink"], markersize=5.0, zorder=3)
            points.append((label("copycat"), base.value, 0.0))
        _tag(figure, axes, points)
        words = ", ".join(f"{label(name)} {cell(across[name])}" for name in names)
        heading = f"{title}, {counts(gains.values())}"
        panel = _panel(heading, figure, "Valence gain", [gains[name] for name in names])
        panels.append(panel._replace(alt=f"{panel.alt} {label(metric)}: {words}."))
    return panels


def truth_panels(report: Report) -> list[Panel]:
    """Predicted against realised gain; on the diagonal a prediction came true."""
    panels = []
    for signal in ("valence", "arousal"):
        true = {row.subject: row for row in _gains(report, "realised", signal)}
        shown = [row for section in GAIN_SECTIONS[1:] for row in _gains(report, section, signal)]
        shown = [row for row in shown if row.subject in true]
        if not shown:
            continue
        figure, axes = _canvas(3.1)
        for row in shown:
            _cross(axes, row, true[row.subject], *STYLE[row.section])
        axes.axline((0.0, 0.0), slope=1.0, **_DASHED)
        _line(axes, 0.0)
        _line(axes, 0.0, across=True)
        axes.set_xlabel("predicted gain (scale points)")
        axes.set_ylabel("realised gain (scale points)")
        named = [row for row in shown if row.section == "predicted"] or shown
        _tag(figure, axes, [(label(row.subject), row.value, true[row.subject].value) for row in named])
        rows = shown + [true[name] for name in dict.fromkeys(row.subject for row in shown)]
        title = f"{label(signal)}, {counts(rows)}"
        panels.append(_panel(title, figure, f"Predicted and realised {signal} gain", rows))
    return panels


def _gains(report: Report, section: str, signal: str) -> list[Row]:
    """The gains of a section, less Copycat's own, which is 0."""
    rows = report.find(section=section, signal=signal, metric="gain")
    return [row for row in rows if row.subject != "copycat"]


def _canvas(height: float) -> tuple[Figure, Axes]:
    """A panel 4.3 inches wide; drawn without pyplot, so no global state and no display."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(4.3, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    return figure, axes


def _dot(axes: Axes, row: Row, place: float, colour: str, marker: str) -> None:
    ink = PLACEHOLDERS[colour]
    if row.low is not None and row.high is not None:
        axes.plot(
            [row.low, row.high], [place, place], color=ink, linewidth=1.6, solid_capstyle="butt", zorder=2
        )
    axes.plot([row.value], [place], marker, color=ink, markersize=5.5, zorder=3)


def _cross(axes: Axes, across: Row, up: Row, colour: str, marker: str) -> None:
    ink = PLACEHOLDERS[colour]
    if across.low is not None and across.high is not None:
        axes.plot([across.low, across.high], [up.value, up.value], color=ink, linewidth=1.0, zorder=2)
    if up.low is not None and up.high is not None:
        axes.plot([across.value, across.value], [up.low, up.high], color=ink, linewidth=1.0, zorder=2)
    axes.plot([across.value], [up.value], marker, color=ink, markersize=5.5, zorder=3)


def _line(axes: Axes, at: float, across: bool = False) -> None:
    draw = axes.axhline if across else axes.axvline
    draw(at, color=PLACEHOLDERS["ink"], linewidth=0.9, zorder=1)


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    with matplotlib.rc_context(_SETTINGS):
        axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _tag(figure: Figure, axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside points, each pushed up until it clears those already written."""
    axes.margins(x=0.12, y=0.14)
    figure.draw_without_rendering()
    left, right = axes.get_window_extent().x0, axes.get_window_extent().x1
    taken: list[tuple[float, float, float]] = []
    for name, x, y in sorted(points, key=lambda point: point[2]):
        at_x, at_y = axes.transData.transform((x, y))
        flip = at_x > left + 0.62 * (right - left)
        width = 5.6 * len(name) * figure.dpi / 72
        start = at_x - width if flip else at_x
        rise = 4.0
        while any(abs(at_y + rise - other_y) < 11 and start < end and begin < start + width
                  for begin, end, other_y in taken):  # fmt: skip
            rise += 4.0
        taken.append((start, start + width, at_y + rise))
        axes.annotate(
            name, (x, y), xytext=(-5 if flip else 5, rise * 72 / figure.dpi), textcoords="offset points",
            ha="right" if flip else "left", fontsize=8, color=PLACEHOLDERS["ink"], zorder=4,
        )  # fmt: skip


def _panel(title: str, figure: Figure, subject: str, rows: Sequence[Row], by: str = "subject") -> Panel:
    sections = {row.section for row in rows}
    parts = []
    for row in rows:
        name = label(getattr(row, by)) + (f", {label(row.section).lower()}" if len(sections) > 1 else "")
        parts.append(f"{name} {cell(row)}")
    return Panel(title, _svg(figure), f"{subject}, with 95 % intervals: {'; '.join(parts)}.")


def _svg(figure: Figure) -> str:
    """The figure as an SVG element that scales with its box and takes the page's colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # This style would hold for the whole page.
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<svg [^>]*viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', text, count=1
    )
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"<g id=\"[^\"]*\">", "<g>", text)  # names of parts, the same in every panel
    text = text.replace("xlink:href", "href")
    for name, colour in PLACEHOLDERS.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", text)
