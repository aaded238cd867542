"""Tables of the page: rows of a report laid out for reading. Only the mean over splits is shown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from amrs.report.listeners import headed
from amrs.report.rows import MODELS, POLICIES, Report, Row
from amrs.report.words import GAIN_SECTIONS, MAIN_FIT, cell, counts, label, number, subjects


class Cell(NamedTuple):
    """A table cell: its text, its interval (dimmed on the page), and a share in percent drawn as a bar."""

    text: str
    interval: str = ""
    share: float | None = None


class Table(NamedTuple):
    """A table with its caption; the first `heads` columns name the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    heads: int = 1


def data_table(lines: Sequence[Mapping[str, Any]]) -> Table | None:
    """The data by group, as `provenance["data"]` gives it: any columns; "share..." and "missing..." in
    percent."""
    if not lines:
        return None
    columns = list(dict.fromkeys(key for line in lines for key in line))
    header = [column.replace("_", " ").capitalize() for column in columns]
    rows = [[_datum(column, line.get(column)) for column in columns] for line in lines]
    return Table("Who and what was logged", header, rows)


def example_table(examples: Sequence[Mapping[str, Any]]) -> Table | None:
    """The tracks of the example sessions, policies side by side, with what is expected after each."""
    if not examples:
        return None
    policies = list(dict.fromkeys(example["policy"] for example in examples))
    rows = []
    for mode in dict.fromkeys(example["mode"] for example in examples):
        of_mode = {e["policy"]: e for e in examples if e["mode"] == mode}
        for t in range(max(len(e["tracks"]) for e in of_mode.values())):
            cells = [Cell(f"{mode}, track {t + 1}")]
            for policy in policies:
                e = of_mode[policy]
                over = t >= len(e["tracks"])
                point = "" if over else "{:.2f}, {:.2f}".format(*e["path"][t])
                cells.append(Cell("left" if over else e["tracks"][t], point))
            rows.append(cells)
    header = ["Session", *(label(policy) for policy in policies)]
    return Table("Example sessions: tracks, with expected valence and arousal after each", header, rows)


def fidelity_table(report: Report) -> Table | None:
    """World model and baselines, by each signal's main figure."""
    return _grid(report, "fidelity", MODELS, MAIN_FIT, "Fit on held-out users, with 95 % intervals by user")


def fidelity_rest(report: Report) -> Table | None:
    """Every other figure of fit."""
    rows = report.find(section="fidelity")
    pairs = list(
        dict.fromkeys((row.signal, row.metric) for row in rows if (row.signal, row.metric) not in MAIN_FIT)
    )
    signals = [signal for signal, _ in MAIN_FIT]
    pairs.sort(key=lambda pair: (signals.index(pair[0]) if pair[0] in signals else 9, pair[1]))
    return _turned(_grid(report, "fidelity", MODELS, pairs, "Error and calibration on held-out users"))


def ablation_table(report: Report) -> Table | None:
    """The world model with parts taken away."""
    if not any(name.startswith("ablation:") for name in subjects(report, "fidelity", ("ablation",))):
        return None
    return _grid(report, "fidelity", ("world_model", "ablation"), MAIN_FIT, "What each part contributes")


def fidelity_groups(report: Report) -> list[Table]:
    """Fit by cohort, mode and what is known, of the world model and what it is held against; then the groups
    that are too small for a figure."""
    too_few = tuple((signal, "too_few_users") for signal, _ in MAIN_FIT)
    wanted = (
        ("world_model", MAIN_FIT, "Fit of the world model by group"),
        ("track_blind", MAIN_FIT, "The same, track-blind"),
        ("best_baseline", MAIN_FIT, "The same, best baseline on validation users"),
        ("ablation:artists", MAIN_FIT, "The same by a world model that learned nothing of these artists"),
        ("world_model", too_few, "Users of groups that are too small for a claim"),
    )
    found = (
        _by_group([row for row in _fidelity(report, subject) if row.group not in ("all", "world:mean")
                   and not row.group.startswith("users:")], pairs, caption)
        for subject, pairs, caption in wanted
    )  # fmt: skip
    return [table for table in found if table]


def effect_tables(report: Report) -> list[Table]:
    """True effects of tracks by training users, and how the uplift slope fares where the truth is known."""
    rows = _fidelity(report, "world_model")
    found = (
        _by_group([row for row in rows if row.group.partition(":")[0] in kinds],
                  [(signal, metric) for metric in metrics for signal, _ in MAIN_FIT], caption)
        for kinds, metrics, caption in (
            (("users",), ("effect_slope", "effect_correlation"), "True effects of tracks by training users"),
            (("all", "compared"), ("slope_coverage",), "Small worlds whose interval holds the true slope"),
            (("world",), ("uplift_slope", "effect_slope"), "Mean slopes over the small worlds"),
        )
    )  # fmt: skip
    return [table for table in found if table]


def ceiling_table(report: Report) -> Table | None:
    """The learning curve, and the share of what histories allow that is reached."""
    pairs = [*MAIN_FIT, *((signal, "share_of_ceiling") for signal, _ in MAIN_FIT)]
    rows = [row for row in _fidelity(report, "world_model") if row.group.startswith("users:")
            or row.metric == "share_of_ceiling"]  # fmt: skip
    return _by_group(rows, pairs, "By training users, and the share of the ceiling that is reached")


def _fidelity(report: Report, subject: str) -> list[Row]:
    """Means over splits of one subject, of all groups."""
    return [row for row in report.rows if row.section == "fidelity" and row.subject == subject
            and row.split == "mean"]  # fmt: skip


_TRUST = (
    (("users",), ("coverage_50", "coverage_80", "coverage_95", "pit_ks", "ece"), "world_model",
     "Calibration on fresh listeners"),
    (("users",), ("coverage_50", "coverage_80", "coverage_95", "pit_ks", "ece"), "recalibrated",
     "Calibration on fresh listeners, recalibrated on validation users"),
    (("distance", "mode"), ("ignorance_sd",), "world_model", "How far the members disagree"),
    (("genres",), ("ignorance_auroc",), "world_model", "Does disagreement find the worst tenth of errors?"),
    (("horizon",), ("trusted_horizon",), "world_model", "Trusted horizon (tracks)"),
    (("horizon",), ("rollout_error", "rollout_bias"), "world_model", "Error of replays by horizon"),
    (("compared",), ("distance_w1", "told_apart"), "world_model", "Simulated sessions against logged ones"),
    (("compared",), ("distance_w1", "told_apart"), "production", "The platform's own sessions, drawn again"),
    (("horizon",), ("rollout_excess", "rollout_members_sd", "rollout_samples_sd"), "world_model",
     "What rolling out adds, and bands over members and samples"),
    (("missing",), ("report_mean_reported", "report_mean_weighted", "report_mean_true"), "world_model",
     "Mean report: of those given, weighted, and of all"),
    (("missing",), ("r2_reported", "r2_weighted", "r2_true"), "world_model",
     "R2: of reports given, weighted, and of all"),
    (("missing",), ("report_mean_nearer", "r2_nearer"), "world_model",
     "How much nearer to the truth the weighted figure is"),
    (("gamma",), ("report_mean_bounds", "r2_bounds"), "world_model",
     "Bounds if the odds of a report differ by a factor from those predicted"),
)  # fmt: skip
"""Groups, metrics, subject and caption of the tables that studies of trust fill."""


def trust_tables(report: Report) -> list[Table]:
    """What studies of calibration, ignorance, rollouts and missing reports found."""
    tables = []
    for kinds, metrics, subject, caption in _TRUST:
        rows = [
            row for row in _fidelity(report, subject)
            if row.metric in metrics and row.group.partition(":")[0] in kinds
        ]  # fmt: skip
        signals = dict.fromkeys(row.signal for row in rows)
        pairs = [(signal, metric) for metric in metrics for signal in signals]
        table = _by_group(rows, pairs, caption)
        if table is not None:
            tables.append(table)
    return tables


def gain_table(report: Report) -> Table | None:
    """Each policy's gain over Copycat for each signal: realised and predicted side by side."""
    ways = (*GAIN_SECTIONS, "predicted_same_log")
    shown = [section for section in ways if report.find(section=section, metric="gain")]
    if not shown:
        return None
    lead = shown[0]
    rows = []
    for signal in ("valence", "arousal", "engagement", "rating", "utility"):
        names = dict.fromkeys(name for section in shown for name in subjects(report, section, POLICIES))
        for name in names:
            keys: dict[str, str | int] = {"subject": name, "signal": signal}
            found = [report.one(section=section, metric="gain", **keys) for section in shown]
            if not any(found):
                continue
            extra = [
                report.one(section=lead, metric=metric, **keys) for metric in ("gain_sd", "relative_gain")
            ]
            n = counts([row for row in found if row]).removeprefix("n\u00a0=\u00a0")
            rows.append([Cell(label(signal)), Cell(label(name)), *map(row_cell, found), *map(row_cell, extra),
                         Cell(n)])  # fmt: skip
    basis = label(lead).lower()
    header = [
        "Signal",
        "Policy",
        *map(label, shown),
        f"In within-person sd ({basis})",
        f"Relative ({basis})",
        "n",
    ]
    utility = any(report.find(section=section, signal="utility", metric="gain") for section in shown)
    unit = "scale points, of utility in spreads of effects" if utility else "scale points"
    caption = headed(f"Gain over Copycat in {unit}, with 95 % intervals by user", report, "policies")
    return Table(caption, header, rows, heads=2)


def gain_groups(report: Report) -> Table | None:
    """DPO's gain by cohort and mode, by the best way of knowing that there is."""
    section = lead_section(report)
    rows = [
        row for row in report.rows
        if row.section == section and row.subject == "dpo" and row.metric == "gain" and row.split == "mean"
        and row.group != "all"
    ]  # fmt: skip
    pairs = [(signal, "gain") for signal in ("valence", "arousal", "engagement", "rating")]
    return _by_group(rows, pairs, f"Gain of DPO over Copycat by group, {label(section).lower()}")


def mean_table(report: Report) -> Table | None:
    """The mean of each signal under each policy."""
    section = lead_section(report)
    pairs = [(signal, "mean") for signal in ("valence", "arousal", "engagement", "rating", "utility")]
    return _grid(report, section, POLICIES, pairs, f"Mean of each signal, {label(section).lower()}")


def diversity_table(report: Report) -> Table | None:
    """Diversity and drift of each policy at equal numbers of recommendations."""
    metrics = ("effective_tracks", "catalogue_coverage", "entropy", "intra_list", "between_listeners", "gini",
               "artist_entropy", "novelty", "repeat_rate", "kl")  # fmt: skip
    pairs = [("all", metric) for metric in metrics]
    table = _grid(report, "diversity", POLICIES, pairs, "Diversity at equal numbers of recommendations")
    if table is None:
        return None
    base = report.one(section="diversity", subject="copycat", metric="effective_tracks")
    if base is None or base.value <= 0:
        return _turned(table)
    rows = []
    for name, line in zip(subjects(report, "diversity", POLICIES), table.rows, strict=True):
        row = report.one(section="diversity", subject=name, metric="effective_tracks")
        share = Cell(f"{100 * row.value / base.value:.0f} %") if row else Cell("")
        rows.append([line[0], share, *line[1:]])
    header = [table.header[0], "Effective tracks, of Copycat's", *table.header[1:]]
    return _turned(table._replace(header=header, rows=rows))


def front_table(report: Report) -> Table | None:
    """Gains, divergence and diversity by the share of the weight that valence has."""
    names = subjects(report, "diversity", ("front",))
    columns = [
        *((section, signal, "gain") for signal in ("valence", "arousal") for section in GAIN_SECTIONS[:2]),
        *(("diversity", "all", metric) for metric in ("kl", "effective_tracks", "catalogue_coverage",
                                                      "entropy", "intra_list")),
    ]  # fmt: skip
    lines = []
    for name in names:
        found = [report.one(section=s, subject=name, signal=x, metric=m) for s, x, m in columns]
        lines.append([Cell(label(name.partition(":")[2])), *map(row_cell, found)])
    header = ["Valence's share of the weight"]
    for section, signal, metric in columns:
        header.append(f"{label(signal)}, {label(section).lower()}" if metric == "gain" else label(metric))
    return Table("The front: DPO policies by what the utility weighs", header, lines) if lines else None


def honesty_table(report: Report) -> Table | None:
    """The judge's gain corrected by its slopes, what came true, and what share of each prediction did."""
    lines = []
    for signal in ("valence", "arousal"):
        keys: dict[str, str | int] = {"subject": "dpo", "signal": signal}
        gains = [
            report.one(section="predicted", metric=metric, **keys)
            for metric in ("corrected_gain", "instrumented_gain")
        ]
        gains.append(report.one(section="realised", metric="gain", **keys))
        ratios = [
            report.one(section=section, metric="predicted_over_realised", **keys)
            for section in ("predicted", "predicted_labeller", "predicted_same_log")
        ]
        if gains[0] is not None:
            lines.append([Cell(label(signal)), *map(row_cell, [*gains, *ratios])])
    header = ["Signal", "Judge, corrected by its uplift slope (90 %)",
              "Judge, corrected along the labeller's effects (90 %)", "Realised", "Judge over realised",
              "Labeller over realised", "Same log over realised"]  # fmt: skip
    return (
        Table("DPO's predicted gain, corrected and against what came true", header, lines) if lines else None
    )


def choosing_table(report: Report) -> Table | None:
    """How well policies near Copycat are ranked, and what picking the one predicted best would cost."""
    lines = []
    for section in ("predicted", "predicted_labeller"):
        for signal in ("utility", "valence"):
            keys: dict[str, str | int] = {"section": section, "subject": "tilt:all", "signal": signal}
            found = [report.one(metric=metric, **keys) for metric in ("kendall_tau", "regret")]
            if found[0] is not None:
                lines.append([Cell(label(section)), Cell(label(signal)), *map(row_cell, found)])
    header = ["By", "Signal", "Kendall's tau with the platform", "Regret of the pick"]
    return Table("Choosing among policies near Copycat", header, lines, heads=2) if lines else None


def off_policy_table(report: Report) -> Table | None:
    """What the log says of each policy, by signal and by the propensities it rests on."""
    propensities = {"all": "", "propensities:copycat": "by Copycat"}
    rows = []
    for signal in ("valence", "arousal", "engagement", "rating"):
        for name in subjects(report, "off_policy", POLICIES):
            for group, words in propensities.items():
                keys: dict[str, str | int] = {
                    "section": "off_policy", "subject": name, "signal": signal, "group": group,
                }  # fmt: skip
                size = report.one(**keys, metric="ess")
                if size is None:
                    continue
                told = [report.one(**keys, metric=m) for m in ("mean", "gain_over_production", "gain")]
                cells = (
                    [row_cell(row) for row in told] if told[0] else [Cell("cannot tell"), Cell(""), Cell("")]
                )
                rows.append([Cell(label(signal)), Cell(label(name)), Cell(words), *cells, row_cell(size),
                             Cell(f"{size.n:,}")])  # fmt: skip
    header = ["Signal", "Policy", "Propensities", "Mean", "Gain over production", "Gain over Copycat",
              "Effective sessions", "n"]  # fmt: skip
    return Table("What the log itself says of each policy", header, rows, heads=3) if rows else None


def lead_section(report: Report) -> str:
    """Realised where the truth is known, else the judge's prediction."""
    return next((name for name in GAIN_SECTIONS if report.find(section=name)), GAIN_SECTIONS[0])


def _grid(
    report: Report, section: str, kind: Sequence[str], pairs: Sequence[tuple[str, str]], caption: str
) -> Table | None:
    """Subjects down, (signal, metric) across; columns without rows are left out."""
    found = {pair: report.find(section=section, signal=pair[0], metric=pair[1]) for pair in pairs}
    shown = [pair for pair in pairs if found[pair]]
    names = subjects(report, section, kind)
    if not shown or not names:
        return None
    header = ["Model" if kind[0] == MODELS[0] else "Policy"]
    for signal, metric in shown:
        words = label(signal) if metric == "mean" else _of(signal, metric)
        header.append(f"{words} ({counts(found[signal, metric])})")
    by_key = {(row.subject, row.signal, row.metric): row for rows in found.values() for row in rows}
    rows = [[Cell(label(name)), *(row_cell(by_key.get((name, *pair))) for pair in shown)] for name in names]
    keep = [line for line in rows if any(entry.text for entry in line[1:])]
    return Table(caption, header, keep)


def _turned(table: Table | None) -> Table | None:
    """Rows as columns, where there are more figures than subjects."""
    if table is None:
        return None
    header = ["Figure", *(line[0].text for line in table.rows)]
    rows = [
        [Cell(name), *(line[place] for line in table.rows)]
        for place, name in enumerate(table.header[1:], start=1)
    ]
    return table._replace(header=header, rows=rows)


def _by_group(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], caption: str) -> Table | None:
    groups = sorted({row.group for row in rows if (row.signal, row.metric) in pairs}, key=_natural)
    shown = [pair for pair in pairs if any((row.signal, row.metric) == pair for row in rows)]
    if not groups or not shown:
        return None
    by_key = {(row.group, row.signal, row.metric): row for row in rows}
    header = ["Group"]
    for signal, metric in shown:
        header += [_of(signal, metric), "n"]
    lines = []
    for group in groups:
        line = [Cell(label(group))]
        for pair in shown:
            row = by_key.get((group, *pair))
            line += [row_cell(row), Cell(f"{row.n:,}" if row else "")]
        lines.append(line)
    return Table(caption, header, lines)


def _natural(group: str) -> list[tuple[int, float, str]]:
    """A key that sorts numbers in a group's name by size."""
    return [
        (0, float(part), "") if re.fullmatch(r"\d+(\.\d+)?", part) else (1, 0.0, part)
        for part in re.split(r"[: ]", group)
    ]


def _of(signal: str, metric: str) -> str:
    """A metric of a signal in words: "Valence coverage of 80 %", "Rating AUROC", "Gini"."""
    words = label(metric)
    if signal == "all":
        return words
    first = words.replace(",", " ").split()[0]
    return f"{label(signal)} {words if first.isupper() else words[0].lower() + words[1:]}"


def row_cell(row: Row | None) -> Cell:
    """A figure with its interval dimmed; empty where there is no row."""
    text, _, interval = cell(row).partition(" [")
    return Cell(text, f"[{interval}" if interval else "")


def _datum(column: str, value: Any) -> Cell:
    if value is None:
        return Cell("")
    if column.startswith(("share", "missing")) and isinstance(value, (int, float)):
        return Cell(f"{100 * value:.1f} %", share=100.0 * value)
    if isinstance(value, float):
        return Cell(f"{value:,.0f}" if value.is_integer() else number(value, column))
    return Cell(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
