"""Small panels of SVG, drawn without pyplot and themed by the page's own colours.

Each panel is narrow, so that a phone shows one below the other at a readable size. Colours are placeholders
that become CSS variables: the page decides what they are in light, dark and print. A shape goes with every
colour, and the text alternative holds the numbers.
"""

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from amrs.report.rows import Row
from amrs.report.words import cell, label

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
DASHED: Any = {
    "color": PLACEHOLDERS["muted"], "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 1,
}  # fmt: skip
LEGEND: Any = {"frameon": False, "fontsize": 8, "labelcolor": PLACEHOLDERS["ink"]}
"""A legend takes its colour when it is made, after the figure's settings have gone."""
_LEADER: Any = {
    "arrowstyle": "-", "color": PLACEHOLDERS["muted"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2,
}  # fmt: skip
"""From a name to its point."""


class Panel(NamedTuple):
    """One small figure: its heading, the SVG, and what it shows in words.

    A notebook shows it as a picture of its own in the page's light colours.
    """

    title: str
    svg: str
    alt: str

    def _repr_svg_(self) -> str:
        css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
        light = dict(re.findall(r"--(\w+): (#\w+)", css[: css.index("}")]))
        width, height = map(float, re.findall(r"[\d.]+", self.svg.partition('viewBox="')[2])[2:4])
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -22 {width:g} {height + 22:g}" '
            f'width="{1.3 * width:g}"><rect y="-22" width="100%" height="100%" fill="{light["card"]}"/>'
            f'<text x="8" y="-7" fill="{light["ink"]}" font-family="sans-serif" font-size="10.5" '
            f'font-weight="bold">{escape(self.title)}</text>'
        )
        drawing = re.sub(r"var\(--(\w+)\)", lambda found: light[found[1]], self.svg)
        return head + drawing.partition(">")[2]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"{self.title}: {self.alt}")


def canvas(height: float) -> tuple[Figure, Axes]:
    """A panel 4.3 inches wide; drawn without pyplot, so no global state and no display."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(4.3, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    return figure, axes


def dot(axes: Axes, row: Row, place: float, colour: str, marker: str) -> None:
    """A figure and its interval on one line."""
    ink = PLACEHOLDERS[colour]
    if row.low is not None and row.high is not None:
        axes.plot(
            [row.low, row.high], [place, place], color=ink, linewidth=1.6, solid_capstyle="butt", zorder=2
        )
    axes.plot([row.value], [place], marker, color=ink, markersize=5.5, zorder=3)


def standing(axes: Axes, row: Row, place: float, colour: str, marker: str) -> None:
    """A figure and its interval on one upright line."""
    ink = PLACEHOLDERS[colour]
    if row.low is not None and row.high is not None:
        axes.plot([place, place], [row.low, row.high], color=ink, linewidth=1.2, zorder=2)
    axes.plot([place], [row.value], marker, color=ink, markersize=4.5, zorder=3)


def cross(axes: Axes, across: Row, up: Row, colour: str, marker: str) -> None:
    """A point with an interval either way."""
    ink = PLACEHOLDERS[colour]
    if across.low is not None and across.high is not None:
        axes.plot([across.low, across.high], [up.value, up.value], color=ink, linewidth=1.0, zorder=2)
    if up.low is not None and up.high is not None:
        axes.plot([across.value, across.value], [up.low, up.high], color=ink, linewidth=1.0, zorder=2)
    axes.plot([across.value], [up.value], marker, color=ink, markersize=5.5, zorder=3)


def line(axes: Axes, at: float, across: bool = False) -> None:
    """A reference line."""
    draw = axes.axhline if across else axes.axvline
    draw(at, color=PLACEHOLDERS["ink"], linewidth=0.9, zorder=1)


def name_places(axes: Axes, names: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    with matplotlib.rc_context(_SETTINGS):
        axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def tag(figure: Figure, axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside points, each pushed up until it clears all points and names, with a line to its point."""
    axes.margins(x=0.12, y=0.18)
    figure.draw_without_rendering()
    left, right = axes.get_window_extent().x0, axes.get_window_extent().x1
    spots: list[tuple[str, float, float, float, float]] = []
    for name, x, y in points:
        at_x, at_y = axes.transData.transform((x, y))
        spots.append((name, x, y, float(at_x), float(at_y)))
    taken = [(at_x - 4, at_x + 4, at_y) for *_, at_x, at_y in spots]
    for name, x, y, at_x, at_y in sorted(spots, key=lambda spot: spot[4]):
        flip = at_x > left + 0.62 * (right - left)
        width = 5.6 * len(name) * figure.dpi / 72
        start = at_x - width - 6 if flip else at_x + 6
        rise = next(rise for rise in range(0, 400, 4) if _clear(taken, start, start + width, at_y + rise))
        taken.append((start, start + width, at_y + rise))
        axes.annotate(
            name, (x, y), xytext=(-6 if flip else 6, rise * 72 / figure.dpi), textcoords="offset points",
            ha="right" if flip else "left", va="center", fontsize=8, color=PLACEHOLDERS["ink"], zorder=4,
            arrowprops=_LEADER if rise > 4 else None,
        )  # fmt: skip


def _clear(taken: Sequence[tuple[float, float, float]], start: float, end: float, y: float) -> bool:
    """Whether a line of text at height `y` meets nothing that is there."""
    return not any(abs(y - other) < 11 and start < last and first < end for first, last, other in taken)


def drawn(title: str, figure: Figure, alt: str) -> Panel:
    """The finished panel of a figure that is not made of rows."""
    return Panel(title, _svg(figure), alt)


def panel(title: str, figure: Figure, subject: str, rows: Sequence[Row], by: str = "subject") -> Panel:
    """The finished panel, with its figures as text."""
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
