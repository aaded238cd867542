"""Figures of the page: which rows of a report go into which panel."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from amrs.report.canvas import (
    DASHED,
    LEGEND,
    PLACEHOLDERS,
    STYLE,
    Panel,
    canvas,
    cross,
    dot,
    drawn,
    line,
    name_places,
    panel,
    standing,
    tag,
)
from amrs.report.rows import MODELS, POLICIES, Report, Row
from amrs.report.tables import lead_section
from amrs.report.words import GAIN_SECTIONS, MAIN_FIT, cell, counts, label, subjects

_PATHS = {"copycat": ("other", "o"), "dpo": ("judge", "D")}
"""Colour and marker of each policy of an example."""
_BEFORE_AFTER = {"world_model": ("model", "o"), "recalibrated": ("other", "^")}
"""Colour and marker of the world model and of it recalibrated."""
_SOURCES = {"log": ("other", "o"), "random": ("model", "D")}
"""Colour and marker of what replays are held against: the log, or the truth of random tracks."""
_CEILINGS = ("full_information", "history_ceiling")


def fidelity_panels(report: Report) -> list[Panel]:
    """World model against baselines, one panel for each signal's main figure."""
    panels = []
    for signal, metric in MAIN_FIT:
        rows = {row.subject: row for row in report.find(section="fidelity", signal=signal, metric=metric)}
        names = [name for name in subjects(report, "fidelity", MODELS) if name in rows]
        if not names:
            continue
        figure, axes = canvas(0.9 + 0.27 * len(names))
        for place, name in enumerate(names):
            colour = {"world_model": "model", "track_blind": "blind"}.get(name, "other")
            dot(axes, rows[name], place, colour, "D" if name == "world_model" else "o")
        name_places(axes, [label(name) for name in names])
        reference = 0.5 if metric == "auroc" else 0.0
        line(axes, reference)
        axes.set_xlabel("AUROC (0.5 is chance)" if metric == "auroc" else "R2 (0 is the training mean)")
        title, subject = f"{label(signal)}, {counts(rows.values())}", f"{label(signal)} {label(metric)}"
        panels.append(panel(title, figure, subject, [rows[name] for name in names]))
    return panels


def example_panels(examples: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Paths of example sessions in the plane of valence and arousal, one panel a mode."""
    panels = []
    for mode in dict.fromkeys(example["mode"] for example in examples):
        figure, axes = canvas(3.4)
        told = []
        for example in (e for e in examples if e["mode"] == mode):
            colour, marker = _PATHS[example["policy"]]
            start = [example["start"]] if example["start"] else []
            across, up = zip(*start, *example["path"], strict=True)
            ink = PLACEHOLDERS[colour]
            axes.plot(across, up, "-", color=ink, linewidth=1.1, zorder=2)
            axes.plot(across[len(start) :], up[len(start) :], marker, color=ink, markersize=3.5, zorder=3)
            axes.plot(across[-1:], up[-1:], marker, color=ink, markersize=9, zorder=4,
                      label=label(example["policy"]))  # fmt: skip
            if start:
                axes.plot(*start[0], "x", color=PLACEHOLDERS["ink"], markersize=8, zorder=4)
            told.append(f"{label(example['policy'])} ends at valence {across[-1]:.2f}, arousal {up[-1]:.2f}")
        axes.grid(axis="y")
        axes.set_xlabel("Expected valence (0 to 1)")
        axes.set_ylabel("Expected arousal (0 to 1)")
        axes.legend(**LEGEND, markerscale=0.6)
        panels.append(drawn(f"A session in mode {mode}", figure, "; ".join(told) + "."))
    return panels


def reliability_panels(report: Report) -> list[Panel]:
    """Observed against predicted share of each yes-or-no signal, before and after recalibration."""
    panels = []
    for signal in ("rating", "left", "rated", "reported"):
        keys = {"section": "fidelity", "signal": signal}
        across = _bins(report, metric="reliability_predicted", **keys)
        up = _bins(report, metric="reliability_observed", **keys)
        if not up:
            continue
        figure, axes = canvas(2.9)
        for subject, (colour, marker) in _BEFORE_AFTER.items():
            mine = [(across[key].value, row) for key, row in up.items() if key[0] == subject]
            for place, row in mine:
                standing(axes, row, place, colour, marker)
            if mine:
                axes.plot(*zip(*((place, row.value) for place, row in mine), strict=True), marker,
                          linestyle="-", color=PLACEHOLDERS[colour], linewidth=0.8, markersize=4.5,
                          label=label(subject), zorder=3)  # fmt: skip
        shown_part = axes.axis()
        axes.axline((0.0, 0.0), slope=1.0, **DASHED)
        axes.axis(shown_part)  # the diagonal's own point at 0 would widen it
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("observed share")
        axes.legend(**LEGEND)
        shown = [row for key, row in up.items() if key[0] == "world_model"]
        words = "; ".join(
            f"{label(key[0])} predicted {across[key].value:.2f}, observed {cell(row)}"
            for key, row in up.items()
        )
        alt = f"Reliability of {label(signal)}, bin by bin, with 95 % intervals: {words}."
        panels.append(drawn(f"{label(signal)}, n\u00a0=\u00a0{sum(row.n for row in shown):,}", figure, alt))
    return panels


def horizon_panels(report: Report) -> list[Panel]:
    """Error of replays by how many tracks ahead they look, one panel a signal."""
    panels = []
    for signal, _ in MAIN_FIT:
        rows = [row for row in report.rows if row.split == "mean" and row.signal == signal
                and row.metric == "rollout_error" and row.group.startswith("horizon:")]  # fmt: skip
        if not rows:
            continue
        figure, axes = canvas(2.6)
        axes.set_xscale("log", base=2)
        places = {row.group: int(row.group.rpartition(":")[2]) for row in rows}
        for source, (colour, marker) in _SOURCES.items():
            mine = [row for row in rows if row.group.startswith(f"horizon:{source}:")]
            for row in mine:
                standing(axes, row, places[row.group], colour, marker)
            if mine:
                axes.plot([places[row.group] for row in mine], [row.value for row in mine], marker,
                          linestyle="-", color=PLACEHOLDERS[colour], linewidth=0.8,
                          markersize=4.5)  # fmt: skip
        ticks = sorted(set(places.values()))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("tracks ahead")
        axes.set_ylabel("error (scale points)")
        title = f"{label(signal)}, {counts(rows)}"
        panels.append(panel(title, figure, f"Error of {signal} by tracks ahead", rows, by="group"))
    return panels


def learning_panels(report: Report) -> list[Panel]:
    """Each signal's main figure by the number of training users, with both ceilings as dashed lines."""
    panels = []
    for signal, metric in MAIN_FIT:
        found = [row for row in report.rows if row.section == "fidelity" and row.split == "mean"
                 and (row.signal, row.metric) == (signal, metric)]  # fmt: skip
        rows = [row for row in found if row.subject == "world_model"
                and re.fullmatch(r"users:\d+", row.group)]  # fmt: skip
        if len(rows) < 2:
            continue
        rows.sort(key=lambda row: int(row.group.partition(":")[2]))
        ceilings = [row for row in found if row.group == "all" and row.subject in _CEILINGS]
        figure, axes = canvas(2.6)
        axes.set_xscale("log")
        places = [int(row.group.partition(":")[2]) for row in rows]
        for place, row in zip(places, rows, strict=True):
            standing(axes, row, place, "model", "D")
        axes.plot(places, [row.value for row in rows], color=PLACEHOLDERS["model"], linewidth=0.8)
        for row in ceilings:
            axes.axhline(row.value, **DASHED)
            axes.annotate(label(row.subject), (places[0], row.value), fontsize=8, va="bottom")
        axes.set_xticks(places, [f"{place:,}" for place in places])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("training users")
        axes.set_ylabel("AUROC" if metric == "auroc" else "R2")
        words = f"{label(signal)} {label(metric)} by training users"
        alt = "; ".join(f"{label(row.group)} {cell(row)}" for row in rows)
        alt += "".join(f"; {label(row.subject)} {cell(row)}" for row in ceilings)
        panels.append(drawn(f"{label(signal)}, {counts(rows)}", figure, f"{words}: {alt}."))
    return panels


def pit_panels(report: Report) -> list[Panel]:
    """Where observations fell in their predicted distributions; flat is calibrated."""
    panels = []
    for signal in ("valence", "arousal", "engagement"):
        found = _bins(report, section="fidelity", signal=signal, metric="pit_share")
        if not found:
            continue
        figure, axes = canvas(2.4)
        bins = len({group for _, group in found})
        for shift, (subject, (colour, marker)) in zip((-0.12, 0.12), _BEFORE_AFTER.items(), strict=True):
            rows = [row for key, row in found.items() if key[0] == subject]
            for row in rows:
                place = (int(row.group.partition(":")[2]) + 0.5 + shift) / bins
                standing(axes, row, place, colour, marker)
        axes.axhline(1 / bins, **DASHED)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("level of the predicted distribution")
        axes.set_ylabel("share of observations")
        shown = [row for key, row in found.items() if key[0] == "world_model"]
        title = f"{label(signal)}, {counts(shown)}"
        panels.append(panel(title, figure, f"PIT of {signal} by tenth", list(found.values()), by="subject"))
    return panels


def _bins(report: Report, **keys: str) -> dict[tuple[str, str], Row]:
    """Rows by subject and bin, in order."""
    rows = [row for row in report.rows if row.split == "mean" and row.group.startswith("bin:")
            and all(getattr(row, key) == value for key, value in keys.items())]  # fmt: skip
    return {(row.subject, row.group): row for row in rows}


def gain_panels(report: Report) -> list[Panel]:
    """Gain over Copycat: realised, judge and labeller side by side, one panel per signal."""
    panels = []
    for signal in ("valence", "arousal"):
        rows = [row for section in GAIN_SECTIONS for row in _gains(report, section, signal)]
        order = dict.fromkeys(name for s in GAIN_SECTIONS for name in subjects(report, s, POLICIES))
        names = [name for name in order if any(row.subject == name for row in rows)]
        if not names:
            continue
        figure, axes = canvas(0.9 + 0.42 * len(names))
        for row in rows:
            colour, marker = STYLE[row.section]
            shift = 0.24 * (GAIN_SECTIONS.index(row.section) - 1)
            dot(axes, row, names.index(row.subject) + shift, colour, marker)
        name_places(axes, [label(name) for name in names])
        line(axes, 0.0)
        axes.set_xlabel("gain over Copycat (scale points)")
        title = f"{label(signal)}, {counts(rows)}"
        panels.append(panel(title, figure, f"Gain in {signal} over Copycat", rows))
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
        figure, axes = canvas(0.9 + 0.27 * len(rows))
        for place, row in enumerate(rows):
            dot(axes, row, place, *STYLE[section])
        name_places(axes, [f"{label(row.group)} (n = {row.n:,})" for row in rows])
        line(axes, 0.0)
        axes.set_xlabel(f"gain over Copycat, {label(section).lower()}")
        panels.append(panel(label(signal), figure, f"Gain of DPO in {signal} by group", rows, by="group"))
    return panels


def plane_panels(report: Report) -> list[Panel]:
    """Valence gain against drift (KL) and against diversity (effective tracks): what a gain costs."""
    section = lead_section(report)
    gains = {row.subject: row for row in report.find(section=section, signal="valence", metric="gain")}
    panels = []
    for metric, title in (("kl", "Gain and drift"), ("effective_tracks", "Gain and diversity")):
        across = {row.subject: row for row in report.find(section="diversity", metric=metric)}
        names = [
            name for name in subjects(report, "diversity", POLICIES) if name in gains and name != "copycat"
        ]
        base = across.get("copycat")
        if not names:
            continue
        figure, axes = canvas(2.9)
        for name in names:
            cross(axes, across[name], gains[name], *STYLE[section])
        if metric == "kl":
            axes.set_xscale("symlog", linthresh=0.1)
            most = max(across[name].value for name in names)
            ticks = [tick for tick in (0.0, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0) if tick < 2 * most]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            axes.set_xticks([], minor=True)
        axes.set_xlabel(
            "KL to Copycat (nats a track; linear below 0.1)" if metric == "kl" else "effective tracks"
        )
        line(axes, 0.0, across=True)
        axes.set_ylabel(f"valence gain, {label(section).lower()}")
        points = [(label(name), across[name].value, gains[name].value) for name in names]
        if base is not None:  # its gain is 0 by definition
            axes.axvline(base.value, **DASHED)
            axes.plot([base.value], [0.0], "D", color=PLACEHOLDERS["ink"], markersize=5.0, zorder=3)
            points.append((label("copycat"), base.value, 0.0))
        tag(figure, axes, points)
        words = ", ".join(f"{label(name)} {cell(across[name])}" for name in names)
        heading = f"{title}, {counts(gains.values())}"
        drawn = panel(heading, figure, "Valence gain", [gains[name] for name in names])
        panels.append(drawn._replace(alt=f"{drawn.alt} {label(metric)}: {words}."))
    return panels


def front_panels(report: Report) -> list[Panel]:
    """Gain in valence against gain in arousal, a point for each weight of the utility."""
    panels = []
    for section in GAIN_SECTIONS[:2]:
        across, up = ({row.subject: row for row in report.find(section=section, signal=signal, metric="gain")}
                      for signal in ("arousal", "valence"))  # fmt: skip
        names = [name for name in subjects(report, section, ("front",)) if name in across and name in up]
        if not names:
            continue
        figure, axes = canvas(3.1)
        for name in names:
            cross(axes, across[name], up[name], *STYLE[section])
        line(axes, 0.0)
        line(axes, 0.0, across=True)
        axes.set_xlabel("arousal gain, in the mode's direction (scale points)")
        axes.set_ylabel("valence gain (scale points)")
        share = {name: name.partition(":")[2] for name in names}
        tag(figure, axes, [(share[name], across[name].value, up[name].value) for name in names])
        words = "; ".join(
            f"valence's share {share[name]}: valence {cell(up[name])}, arousal {cell(across[name])}"
            for name in names
        )
        heading = f"{label(section)}, {counts(up[name] for name in names)}"
        panels.append(drawn(heading, figure, f"Gains by valence's share of the weight. {words}."))
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
        figure, axes = canvas(3.1)
        for row in shown:
            cross(axes, row, true[row.subject], *STYLE[row.section])
        axes.axline((0.0, 0.0), slope=1.0, **DASHED)
        line(axes, 0.0)
        line(axes, 0.0, across=True)
        axes.set_xlabel("predicted gain (scale points)")
        axes.set_ylabel("realised gain (scale points)")
        named = [row for row in shown if row.section == "predicted"] or shown
        tag(figure, axes, [(label(row.subject), row.value, true[row.subject].value) for row in named])
        rows = shown + [true[name] for name in dict.fromkeys(row.subject for row in shown)]
        title = f"{label(signal)}, {counts(rows)}"
        panels.append(panel(title, figure, f"Predicted and realised {signal} gain", rows))
    return panels


def _gains(report: Report, section: str, signal: str) -> list[Row]:
    """The gains of a section's policies, less Copycat's own, which is 0, and less those that studies make by
    the dozen."""
    rows = report.find(section=section, signal=signal, metric="gain")
    return [row for row in rows if row.subject != "copycat" and row.subject.partition(":")[0] in POLICIES]
