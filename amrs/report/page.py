"""The page: one self-contained HTML file, from the rows and the provenance of a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from omegaconf import OmegaConf

from amrs.report import figures, prose, stress, tables, words
from amrs.report.canvas import Panel
from amrs.report.rows import Report
from amrs.report.tables import Table

_KNOWN = {
    "title", "data", "log", "config", "commands", "notes", "examples", "verdicts", "worst_cases",
}  # fmt: skip


class Part(NamedTuple):
    """A heading, the paragraph that explains what follows, figures of several panels, and tables.

    `legend` names what the panels' marks stand for: some of realised, judge, labeller, limit.
    """

    title: str
    text: str
    panels: Sequence[Panel]
    tables: Sequence[Table]
    legend: Sequence[str] = ()


class Chapter(NamedTuple):
    """A heading and what stands below it."""

    anchor: str
    title: str
    text: str
    parts: list[Part]


def templates() -> jinja2.Environment:
    """The templates beside this file; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["svg"] = Markup
    environment.globals["style"] = Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8"))
    return environment


def render(report: Report) -> str:
    """The whole page as HTML text. Nothing in it comes from a network, and all text is escaped."""
    provenance = report.provenance
    return templates().get_template("page.html.j2").render(
        title=provenance.get("title", "Affective music recommendation: what was learned offline"),
        stressed=bool(report.find(section="gate")),
        verdicts=stress.verdicts(provenance.get("verdicts", {})),
        sentence=words.gain_sentence(report),
        listeners=words.listeners_sentence(report),
        realised=bool(report.find(section="realised")),
        findings=_findings(report),
        chapters=[chapter for chapter in _chapters(report) if chapter.parts],
        notes=list(provenance.get("notes", [])),
        commands=list(provenance.get("commands", [])),
        config=_text(provenance.get("config")),
        records=[(key.replace("_", " ").capitalize(), _pairs(value)) for key, value in provenance.items()
                 if key not in _KNOWN],
        figures_in_file=len(report.rows),
    )  # fmt: skip


def _findings(report: Report) -> list[tuple[str, list[words.Finding]]]:
    groups = [
        ("Does DPO leave listeners better off than Copycat?", words.gain_findings(report)),
        ("What do the logs themselves say of DPO?", words.off_policy_findings(report)),
        ("Can the world model be believed?", words.model_findings(report)),
        ("Does everyone get the same few tracks?", words.diversity_findings(report)),
    ]
    return [(title, found) for title, found in groups if found]


def _chapters(report: Report) -> list[Chapter]:
    return [
        Chapter("data", "The data", prose.DATA, _kept(
            _part("", words.log_words(report), (), tables.data_table(report.provenance.get("data", []))))),
        Chapter("model", "Can the world model be believed?", _about_model(report), _kept(*_model(report))),
        Chapter("policies", "What do the policies do?", prose.POLICIES, _kept(*_policies(report))),
        Chapter("harm", "Who might be harmed?", prose.HARM, _kept(*_harm(report))),
    ]  # fmt: skip


def _about_model(report: Report) -> str:
    measured = any(row.metric == "rollout_error" for row in report.rows)
    return prose.MODEL if measured else prose.MODEL + prose.NO_HORIZON


def _model(report: Report) -> list[Part]:
    return [
        _part("Against baselines", prose.FIT, figures.fidelity_panels(report), tables.fidelity_table(report)),
        _part("Do probabilities mean what they say?", prose.RELIABILITY, figures.reliability_panels(report)),
        _part("Are predicted distributions the right width?", prose.PIT, figures.pit_panels(report)),
        _part("", prose.REST, (), tables.fidelity_rest(report)),
        _part("How far ahead?", prose.HORIZON, figures.horizon_panels(report)),
        _part("Are predicted effects of tracks real?", prose.EFFECTS, (), *tables.effect_tables(report)),
        _part(
            "How much would more listeners help?",
            prose.LEARNING,
            figures.learning_panels(report),
            tables.ceiling_table(report),
        ),
        _part("For whom?", "", (), *tables.fidelity_groups(report)),
        _part("What each part contributes", "", (), tables.ablation_table(report)),
        _part("Studies of trust", prose.TRUST, (), *tables.trust_tables(report)),
    ]


def _policies(report: Report) -> list[Part]:
    examples = report.provenance.get("examples", [])
    return [
        _part("Gain over Copycat", prose.GAIN, figures.gain_panels(report), tables.gain_table(report),
              legend=("realised", "judge", "labeller")),
        _part("For whom?", prose.GROUPS, figures.group_panels(report), tables.gain_groups(report)),
        _part("What a gain costs", prose.PLANE, figures.plane_panels(report), tables.diversity_table(report)),
        _part("The front between signals", prose.FRONT, figures.front_panels(report),
              tables.front_table(report)),
        _part("Do predicted gains come true?", prose.DIAGONAL, figures.truth_panels(report),
              tables.honesty_table(report), tables.choosing_table(report), legend=("judge", "labeller")),
        _part("What the log itself says", prose.OFF_POLICY, (), tables.off_policy_table(report)),
        _part("Example sessions", prose.EXAMPLES, figures.example_panels(examples),
              tables.example_table(examples)),
        _part("Every mean", "", (), tables.mean_table(report)),
    ]  # fmt: skip


def _harm(report: Report) -> list[Part]:
    return [
        _part("Sessions that end worse", prose.HARM_BOUND, stress.harm_panels(report),
              stress.harm_table(report), legend=("realised", "judge", "limit")),
        _part("Does a gain last?", prose.LASTING, (), stress.lasting_table(report)),
        _part("The gate", prose.GATE, (), stress.gate_table(report)),
        _part("What the judge's promises rest on", prose.JUDGE, (), stress.judge_table(report)),
        _part("How wrong may the judge be?", prose.BREAKING, (), stress.breaking_table(report)),
        _part("Worst histories", prose.WORST, (),
              stress.worst_table(report.provenance.get("worst_cases", []))),
        _part("The gate itself, tried", prose.WORLDS, (), stress.world_table(report)),
    ]  # fmt: skip


def _part(
    title: str, text: str, panels: Sequence[Panel], *found: Table | None, legend: Sequence[str] = ()
) -> Part:
    return Part(title, text, panels, [table for table in found if table], legend)


def _kept(*parts: Part) -> list[Part]:
    """The parts that hold anything."""
    return [part for part in parts if part.panels or part.tables]


def _text(value: Any) -> str:
    """A config as YAML text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else OmegaConf.to_yaml(OmegaConf.create(value))


def _pairs(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as (dotted name, text)."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _pairs(inner, f"{prefix}.{key}".lstrip("."))]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(map(str, value)))]
    return [(prefix, "none" if value is None else str(value))]
