"""Stress every policy as a careful team would, and say of each whether it passes the gate."""

from pathlib import Path
from typing import Any

from amrs.config.graph import Config
from amrs.fidelity.targets import AFFECT
from amrs.gate import checks, gate_rows, verdict
from amrs.judging import PARTS
from amrs.lineup import Parts, lineup, variants
from amrs.outcomes import choose_sessions
from amrs.platform import load_truth
from amrs.report import Report, finite_rows, load, over_splits, terminal_table
from amrs.runs import Run, splits_of
from amrs.stages import world_model
from amrs.stages.evaluate import record
from amrs.stages.prepare import open_data
from amrs.stress.figures import stress_rows
from amrs.stress.trial import Trial
from amrs.training import log_once


def run(run: Run, folder: Path) -> None:
    """The report of `evaluate` with the rows of stress and gate to `folder`/report.json and report.html."""
    splits = splits_of(run)
    report = _all_splits(run, splits) if splits else _one_split(run)
    report.save(folder)
    rows = [row for row in report.find() if row.section in ("stress", "gate")]
    log_once(run, folder, {f"{r.section}/{r.subject}/{r.metric}/{r.signal}": r.value for r in rows})
    print(terminal_table(report))
    print("\n".join(report.provenance["verdicts"].values()))


def _all_splits(run: Run, splits: list[Run]) -> Report:
    """The reports of all splits as one; a verdict's mean is the share of splits that passed."""
    reports = [load(parent.folder) for parent in splits]
    split = run.config.data.split
    rows = over_splits(reports, split.test / (1 - split.validation - split.test))
    verdicts: dict[str, str] = {}
    for k, report in enumerate(reports):
        for name, words in report.provenance["verdicts"].items():
            verdicts[name] = f"{verdicts.get(name, '')} Split {k}: {words}".strip()
    return Report(rows, {**reports[0].provenance, **record(run), "verdicts": verdicts})


def _one_split(run: Run) -> Report:
    before = load(run.parents["evaluate"].folder)
    trial = prepare(run)
    stressed, worst_cases = stress_rows(trial)
    rows = finite_rows([*before.rows, *stressed])
    found = {name: checks(rows, name, run.config.gate, counted(run.config)) for name in trial.names}
    rows += [row for name, each in found.items() for row in gate_rows(name, each)]
    verdicts = {name: verdict(name, each) for name, each in found.items()}
    about: dict[str, Any] = {**record(run), "verdicts": verdicts, "worst_cases": worst_cases}
    commands = dict.fromkeys([*before.provenance["commands"], *about["commands"]])
    fingerprints = {**before.provenance["fingerprints"], **about["fingerprints"]}
    about |= {"commands": list(commands), "fingerprints": fingerprints}
    return Report(rows, {**before.provenance, **about})


def counted(config: Config) -> list[str]:
    """Signals of affect that the utility counts."""
    return [name for name in AFFECT if vars(config.utility.weights)[name] > 0]


def prepare(run: Run) -> Trial:
    """All that is stressed, read from the parents."""
    config = run.config
    data = open_data(run)
    judge = world_model.load(run.parents["judge"].folder, data)
    part = PARTS[config.evaluate.users]
    sessions = choose_sessions(data, config.stress.sessions, config.evaluate.horizon, config.seed, part)
    policies = lineup(run, data, sessions.horizon, [*config.stress.policies, *variants(run)])
    parts = Parts(run, data, sessions.horizon)
    truth = run.parents["prepare"].folder / "truth"
    platform = load_truth(truth).environment() if truth.exists() else None
    carry = parts.summary["carry"]
    return Trial(
        config, data, judge, parts.labeller, parts.utility, policies, sessions, platform, part, carry
    )
