"""The model card of an exported policy: data, protocol, gains, limits, and what the gate said."""

from collections.abc import Sequence
from html import escape

from amrs.gate import checks
from amrs.report import Report, Row
from amrs.report.words import cell, label, log_words
from amrs.runs import Run

_LIMITS = (
    "Gains are predictions of a model of listeners. Where the data are the synthetic platform's they were "
    "also realised there, which says nothing about people.",
    "Nothing was tried on listeners, and nothing here is fit to be used on patients.",
    "The policy saw the tracks and the listeners of one service. Other listeners, other tracks and other "
    "embeddings are extrapolation.",
    "What was judged draws its tracks; so does `recommend`. Always playing the most probable track is "
    "another policy, which was not judged.",
)
_SHOWN = (("valence", "gain"), ("arousal", "gain"), ("utility", "gain"), ("valence", "harm"))


def card(report: Report, run: Run, policy: str, force: str | None) -> str:
    """The card as Markdown; it holds no id of any user."""
    parts = [f"# {label(policy)}, exported by amrs", _verdict(report, policy, force), _use(run)]
    log = log_words(report)
    parts += ["## Data", *([escape(log)] if log else []), _table(report.provenance.get("data", []))]
    protocol = report.provenance.get("protocol", {})
    parts += ["## Protocol", *(f"- {key}: {value}" for key, value in protocol.items())]
    parts += ["## Gains over Copycat, and harm", *_gains(report, policy)]
    parts += ["## The gate", *_thresholds(report, run, policy)]
    parts += ["## Limits", *(f"- {line}" for line in _LIMITS)]
    parents = {role: parent.fingerprint for role, parent in run.parents.items()}
    parts += ["## Made from", *(f"- {role}: `{fingerprint}`" for role, fingerprint in parents.items())]
    return "\n\n".join(_blocks(parts)) + "\n"


def _blocks(parts: Sequence[str]) -> list[str]:
    """Lines of one list stand together."""
    blocks: list[str] = []
    for part in parts:
        if part.startswith("- ") and blocks and blocks[-1].startswith("- "):
            blocks[-1] += f"\n{part}"
        else:
            blocks.append(part)
    return blocks


def _verdict(report: Report, policy: str, force: str | None) -> str:
    said = str(report.provenance["verdicts"].get(policy, f"The gate has no verdict on {label(policy)}."))
    if force is None:
        return said
    return f"**Exported by force. Reason given: {force}**\n\n{said}"


def _use(run: Run) -> str:
    return (
        "```python\nimport amrs\n\nrecommender = amrs.load(\"this folder\")\n"
        'recommender.recommend([{"track_id": []}], mode=None, k=10)\n```'
    )  # fmt: skip


def _table(lines: Sequence[dict[str, object]]) -> str:
    if not lines:
        return "Not recorded."
    names = list(lines[0])
    rows = [names, ["---"] * len(names)] + [[_text(line.get(name)) for name in names] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _gains(report: Report, policy: str) -> list[str]:
    sections = (("stress", "predicted by the judge"), ("realised", "realised on the platform"))
    found = [
        f"- {label(row.signal)} {row.metric}, {how}{_whose(row)}: {cell(row)} {row.unit} (n = {row.n})"
        for signal, metric in _SHOWN
        for section, how in sections
        for row in report.rows
        if (row.section, row.subject, row.signal, row.metric, row.split)
        == (section, policy, signal, metric, "mean")
        and row.group.partition(":")[0] in ("all", "cohort")
    ]
    return found or ["None: it is what others are compared with."]


def _whose(row: Row) -> str:
    return "" if row.group == "all" else f" ({label(row.group)})"


def _thresholds(report: Report, run: Run, policy: str) -> list[str]:
    from amrs.stages.stress import counted

    found = checks(report.rows, policy, run.config.gate, counted(run.config))
    return [f"- {'passed' if check.passed else '**failed**'}: {check.words}" for check in found]
