"""What differs between the reports of runs: python -m amrs.compare RUN RUN ... [--page FILE]

The first run is what the others are compared with. Two intervals that do not touch are told apart; where they
touch, a paired test might still tell, but a report holds no sessions to pair.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from signal import SIG_DFL, SIGPIPE
from signal import signal as on_signal
from typing import TYPE_CHECKING, NamedTuple

from amrs.report import Report, ReportError, Row, load
from amrs.report.tables import Cell, Table
from amrs.report.words import GAIN_SECTIONS, MAIN_FIT, cell, counts, label, number
from amrs.run_table import flat_settings

if TYPE_CHECKING:
    from amrs.report.canvas import Panel

WIDTH = 110
"""Columns of the terminal, at most."""
_SHOWN = ("r2", "auroc", "gain", "kl", "effective_tracks", "catalogue_coverage", "intra_list", "gini", "harm")
"""Metrics of the terminal table; the page has all."""
_ELSEWHERE = re.compile(r"(runs$|cluster\.|log\.)")
"""Settings of where and how a run is made."""
NOTE = (
    "After a figure: its difference to the first run; * where the two intervals do not touch. Intervals that "
    "touch do not mean that there is no difference."
)


class Line(NamedTuple):
    """One figure in every run."""

    name: str
    metric: str
    rows: tuple[Row | None, ...]

    def difference(self, other: int) -> str:
        """The run's figure minus the first run's; `*` where the intervals do not touch."""
        first, row = self.rows[0], self.rows[other]
        if first is None or row is None:
            return ""
        text = number(row.value - first.value, row.metric)
        return ("" if text[0] in "+-" else "+") + text + ("*" if apart(first, row) else "")


def apart(first: Row, second: Row) -> bool:
    """True where both have intervals and these do not touch."""
    if None in (first.low, first.high, second.low, second.high):
        return False
    assert first.low is not None and first.high is not None
    assert second.low is not None and second.high is not None
    return first.high < second.low or second.high < first.low


def figures(reports: list[Report]) -> list[Line]:
    """The figures of all users over all splits that read differently in the reports, in their order."""
    tables = [{row.key: row for row in report.find()} for report in reports]
    keys = dict.fromkeys(key for table in tables for key in table)
    found = []
    for key in keys:
        rows = tuple(table.get(key) for table in tables)
        if len({cell(row) for row in rows}) > 1:
            section, subject, signal, metric, *_ = key
            what = [label(section), label(subject), label(signal) if signal != "all" else "", label(metric)]
            found.append(Line(", ".join(filter(None, what)), metric, rows))
    return found


def settings(reports: list[Report]) -> list[tuple[str, list[str]]]:
    """Settings that differ, by their keys; those that do not bear on figures, or that one of the versions of
    amrs did not have, are left out."""
    flat = [flat_settings(report.provenance.get("config") or {}) for report in reports]
    keys = [key for key in flat[0] if all(key in config for config in flat)]
    rows = [(key, ["" if config[key] is None else str(config[key]) for config in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1 and not _ELSEWHERE.match(key)]


def terminal(names: list[str], reports: list[Report]) -> str:
    """Settings and main figures that differ, as plain text of at most `WIDTH` columns."""
    sheets = {"settings": [[key, *(value or "-" for value in values)] for key, values in settings(reports)]}
    for line in figures(reports):
        if line.metric in _SHOWN:
            section, _, what = line.name.partition(", ")
            cells = [f"{cell(row)} {line.difference(k) if k else ''}" for k, row in enumerate(line.rows)]
            sheets.setdefault(section.lower(), []).append([what, *(text.strip() or "-" for text in cells)])
    blocks = ["\n".join(_lines([title, *names], rows)) for title, rows in sheets.items() if rows]
    return "\n\n".join([*blocks, textwrap.fill(NOTE, WIDTH)])


def _lines(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Rows in columns; a row that is too wide for them has its cells below its name, a run a line."""
    first = max(len(row[0]) for row in [header, *rows])
    room = (WIDTH - first) // (len(header) - 1) - 2
    narrow = [row for row in rows if all(len(word) <= room for word in row[1:])]
    widths = [first, *(max(len(row[k]) for row in [header, *narrow]) for k in range(1, len(header)))]
    yield "  ".join(word.ljust(width) for word, width in zip(header, widths, strict=True)).rstrip()
    for row in rows:
        if row in narrow:
            yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        else:
            below = max(map(len, header[1:])) + 4
            yield row[0]
            for run, word in zip(header[1:], row[1:], strict=True):
                start = f"  {run}".ljust(below)
                yield from textwrap.wrap(word, WIDTH, initial_indent=start, subsequent_indent=" " * below)


def page(names: list[str], reports: list[Report]) -> str:
    """Everything that differs, as a page that stands alone."""
    from amrs.report.page import templates  # draws with matplotlib, which the table does not need

    differing = settings(reports)
    sheets = {"Settings": [[Cell(key), *map(Cell, values)] for key, values in differing]}
    for line in figures(reports):
        section, _, what = line.name.partition(", ")
        cells = [Cell(cell(row), line.difference(k) if k else "") for k, row in enumerate(line.rows)]
        sheets.setdefault(section, []).append([Cell(what), *cells])
    captions = {"Settings": "Settings that differ"}
    found = {
        section: Table(captions.get(section, f"{section}: figures that differ"), ["", *names], rows)
        for section, rows in sheets.items() if rows
    }  # fmt: skip
    template = templates().get_template("compare.html.j2")
    return template.render(
        title=f"What differs between {len(names)} runs", names=names, tables=found, note=NOTE,
        panels=panels(names, reports), realised=any(report.find(section="realised") for report in reports),
        alike=not figures(reports),
    )  # fmt: skip


def panels(names: list[str], reports: list[Report]) -> "list[Panel]":
    """The fit of each run's world model, and DPO's gain in each, by every way of knowing it."""
    found = []
    for signal, metric in MAIN_FIT:
        keys = {"section": "fidelity", "subject": "world_model", "signal": signal, "metric": metric}
        title = f"World model, {label(signal).lower()} {label(metric)}"
        found.append(_panel(title, names, [[report.one(**keys)] for report in reports]))
    for signal in ("valence", "arousal", "utility"):
        keys = {"subject": "dpo", "signal": signal, "metric": "gain"}
        rows = [[report.one(section=section, **keys) for section in GAIN_SECTIONS] for report in reports]
        found.append(_panel(f"DPO's gain, {label(signal).lower()}", names, rows))
    return [each for each in found if each is not None]


def _panel(title: str, names: list[str], rows: list[list[Row | None]]) -> "Panel | None":
    """One line a run; nothing where fewer than two runs have such a figure."""
    from amrs.report.canvas import STYLE, canvas, dot, drawn, line, name_places

    known = [row for each in rows for row in each if row is not None]
    if sum(any(each) for each in rows) < 2:
        return None
    figure, axes = canvas(0.9 + 0.36 * len(names))
    for place, each in enumerate(rows):
        for row in filter(None, each):
            colour, marker = STYLE.get(row.section, ("model", "D"))
            shift = 0.2 * (GAIN_SECTIONS.index(row.section) - 1) if row.section in GAIN_SECTIONS else 0.0
            dot(axes, row, place + shift, colour, marker)
    name_places(axes, names)
    if known[0].metric != "auroc":
        line(axes, 0.0)
    axes.set_xlabel(known[0].unit)
    told = [f"{name}: {'; '.join(f'{label(r.section).lower()} {cell(r)}' for r in each if r)}"
            for name, each in zip(names, rows, strict=True)]  # fmt: skip
    return drawn(f"{title}, {counts(known)}", figure, f"{title}, with 95 % intervals. {'. '.join(told)}.")


def main(argv: list[str]) -> int:
    """Print the main differences; with --page write them all."""
    parser = argparse.ArgumentParser("python -m amrs.compare", description=__doc__)
    parser.add_argument("run", nargs="+", type=Path, help="run folders with a report; the first is the base")
    parser.add_argument("--page", type=Path, help="write every difference to this HTML file, too")
    given = parser.parse_args(argv)
    if len(given.run) < 2:
        parser.error("give two runs or more")
    try:
        reports = [load(folder) for folder in given.run]
    except ReportError as error:
        print(f"amrs.compare: {error}", file=sys.stderr)
        return 1
    names = [folder.resolve().name for folder in given.run]
    print(terminal(names, reports))
    if given.page:
        temporary = given.page.with_name(given.page.name + ".tmp")
        temporary.write_text(page(names, reports), encoding="utf-8")
        temporary.replace(given.page)
        print(given.page)
    return 0


if __name__ == "__main__":
    on_signal(SIGPIPE, SIG_DFL)  # `| head` reads no further
    sys.exit(main(sys.argv[1:]))
