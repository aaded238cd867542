"""Judge everything offline, on users that nothing was trained on, and write the report."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from amrs.cluster.shares import shared
from amrs.config import dump
from amrs.config.stages import StudyName
from amrs.data import SessionDataModule
from amrs.execution import environment, process_rank
from amrs.fidelity.fit import fidelity
from amrs.fidelity.predictions import fit_rows, pooled, save
from amrs.fidelity.track_effects import LISTS, likely_lists, true_effect_rows
from amrs.judging import PARTS, policy_rows, rolled_out
from amrs.lineup import lineup, variants
from amrs.logs.splits import FOLD_VALIDATION, TEST, TRAIN, VALIDATION
from amrs.models.world_model import WorldModel
from amrs.off_policy import ask_the_log, off_policy_rows
from amrs.outcomes import Sessions, choose_sessions
from amrs.platform import Platform, load_truth
from amrs.report import Report, Row, finite_rows, load, over_folds, over_splits, terminal_table
from amrs.rollout import Policy
from amrs.runs import Run, RunError, merged_studies, read_json, splits_of
from amrs.stages import world_model
from amrs.stages.prepare import open_data
from amrs.training import log_once

_TUNING = "Judged on validation users, for tuning: results are what test users give."


def run(run: Run, folder: Path) -> None:
    """The chapters (or one study) to `folder`/report.json and report.html."""
    if process_rank() > 0:
        _help(run, folder)
        return
    report = _report(run, folder)
    merged = [row for study in merged_studies(run) for row in load(study.folder).rows]
    report = Report([*report.rows, *merged], report.provenance)
    report.save(folder)
    log_once(run, folder, _figures(report))
    print(terminal_table(report))


def _help(run: Run, folder: Path) -> None:
    """What the other processes do: a share of the rollouts."""
    section = run.config.evaluate
    if section.study is None and not splits_of(run) and "policies" in section.chapters:
        data = open_data(run)
        sessions = _sessions(run, data)
        rolled_out(run, data, sessions, _policies(run, data, sessions), shared(run, folder))


def _sessions(run: Run, data: SessionDataModule) -> Sessions:
    section = run.config.evaluate
    return choose_sessions(data, section.sessions, section.horizon, run.config.seed, PARTS[section.users])


def _policies(run: Run, data: SessionDataModule, sessions: Sessions) -> dict[str, Policy]:
    return lineup(run, data, sessions.horizon, [*run.config.evaluate.policies, *variants(run)])


def _report(run: Run, folder: Path) -> Report:
    if run.config.evaluate.study is not None:
        return _study(run, run.config.evaluate.study)
    return _all_splits(run) if splits_of(run) else _one_split(run, folder)


def _study(run: Run, name: StudyName) -> Report:
    from amrs.studies import STUDIES  # the studies import stages

    rows = finite_rows(STUDIES[name].rows(run))
    title = f"Study: {name.replace('_', ' ')}"
    return Report(rows, {"title": title, "notes": STUDIES[name].notes(run), **record(run)})


def _figures(report: Report) -> dict[str, float]:
    """Means over all sessions, with lower bounds, as flat names for a logger."""
    figures = {}
    for row in report.find(split="mean", group="all"):
        name = f"{row.section}/{row.subject}/{row.metric}/{row.signal}"
        figures[name] = row.value
        if row.low is not None:
            figures[f"{name}/low"] = row.low
    return figures


def _all_splits(run: Run) -> Report:
    """The reports of all splits as one; each split has a finished run folder of its own."""
    config, section = run.config, run.config.evaluate
    splits = splits_of(run)
    reports = [load(split.folder) for split in splits]
    rows: list[Row] = []
    if "fidelity" in section.chapters:
        frame = pooled([split.folder for split in splits])
        rows = finite_rows(fit_rows(frame, section.bootstrap, config.seed))
    if section.protocol == "kfold":
        ratio = 1 / (section.folds - 1) / (1 - FOLD_VALIDATION)
        rows = over_folds(reports, ratio, rows)
    else:
        ratio = config.data.split.test / (1 - config.data.split.validation - config.data.split.test)
        rows = over_splits(reports, ratio) + [replace(row, split="pooled") for row in rows]
    tuning = [report.provenance.get("tuning") for report in reports]
    return Report(rows, {**reports[0].provenance, **record(run), "tuning": tuning})


def _one_split(run: Run, folder: Path) -> Report:
    config, section = run.config, run.config.evaluate
    if "policies" in section.chapters:
        _refuse_partial_judge(run)
    data = open_data(run)
    part = PARTS[section.users]
    sessions = _sessions(run, data)
    truth = run.parents["prepare"].folder / "truth"
    platform = load_truth(truth) if truth.exists() else None
    provenance = _provenance(run, data, sessions)
    rows = []
    if "fidelity" in section.chapters:
        model = world_model.load(run.parents["world_model"].folder, data)
        log = run.parents["prepare"].fingerprint
        found = fidelity(model, data, config.seed, section.bootstrap, part, log)
        save(found.table, folder)
        provenance["tuning"] = found.tuning
        rows += found.rows + _effect_rows(run, model, data, sessions, platform)
    if "policies" in section.chapters:
        policies, share = _policies(run, data, sessions), shared(run, folder)
        played, provenance["examples"] = policy_rows(run, data, sessions, policies, share)
        rows += played
        rows += _off_policy(run, data, part)
    return Report(finite_rows(rows), provenance)


def _effect_rows(
    run: Run, model: WorldModel, data: SessionDataModule, sessions: Sessions, platform: Platform | None
) -> list[Row]:
    """What changing the tracks truly changes, where the truth is known: lists as production starts them."""
    if platform is None:
        return []
    production = platform.production()
    log_p_BK = production.logits(production.start(sessions.row_B))
    lists_BCT = likely_lists(log_p_BK, sessions.key_B, LISTS, sessions.horizon)
    draws, seed = run.config.evaluate.bootstrap, run.config.seed
    return true_effect_rows(model, data, platform, sessions.row_B, lists_BCT, draws, seed)


def _off_policy(run: Run, data: SessionDataModule, part: int) -> list[Row]:
    """What the log itself says of the policies, from all sessions of these users."""
    config = run.config
    section = config.evaluate.off_policy
    every = choose_sessions(data, len(data.part_S), 1, config.seed, part)
    length_B = data.flat.length_S[every.row_B]
    row_S = every.row_B[length_B <= config.model.history // 2]  # a policy must hold what came before, too
    if not len(row_S):
        return []
    judge = world_model.load(run.parents["judge"].folder, data)
    names = [name for name in section.policies if name in config.evaluate.policies]
    policies = lineup(run, data, int(data.flat.length_S[row_S].max()), [*names, *variants(run)])
    return off_policy_rows(ask_the_log(policies, judge, data, row_S, section, config.seed), section)


def _refuse_partial_judge(run: Run) -> None:
    """The judge must not have labelled the pairs; `plan` sees to it that they share no listener."""
    labeller, judge = run.parents["labeller"], run.parents["judge"]
    labelled_by = read_json(run.parents["preferences"].folder / "provenance.json")["fingerprints"]["labeller"]
    if judge.fingerprint in (labeller.fingerprint, labelled_by):
        raise RunError(f"{judge.folder} labelled the pairs and cannot judge them; give another parents.judge")


def _provenance(run: Run, data: SessionDataModule, sessions: Sessions) -> dict[str, Any]:
    config = run.config
    return {
        "notes": [_TUNING] if config.evaluate.users == "validation" else [],
        "data": data_summary(data),
        "log": {"name": data.log.metadata.name, "embedding": data.log.metadata.embedding},
        **record(run),
        "protocol": {
            f"{config.evaluate.users} sessions rolled out": len(sessions.row_B),
            "tracks per rollout": sessions.horizon,
            "split seed": config.data.split.seed,
            "seed": config.seed,
        },
    }


def record(run: Run) -> dict[str, Any]:
    """How to make this report again."""
    here = environment()
    command = shlex.join(here.pop("command"))
    config = yaml.safe_load(dump(run.config))
    fingerprints = {role: parent.fingerprint for role, parent in run.parents.items()}
    return {"config": config, "commands": [command], "environment": here, "fingerprints": fingerprints}


def data_summary(data: SessionDataModule) -> list[dict[str, object]]:
    """Users, sessions, plays and labels of each part and cohort: counts and shares, never ids."""
    flat, meta = data.flat, data.log.metadata
    lines = []
    groups = {name: data.part_S == part for name, part in
              (("training", TRAIN), ("validation", VALIDATION), ("test", TEST))}  # fmt: skip
    groups |= {f"cohort {name}": flat.cohort_S == code for code, name in enumerate(meta.cohorts)}
    groups |= {f"mode {name}": flat.mode_S == code for code, name in enumerate(meta.modes)}
    for name, keep_S in groups.items():
        play_N = keep_S[flat.session_N] & (flat.track_N >= 0)
        feedback_P4 = flat.feedback_N4[play_N]
        lines.append({
            "group": name,
            "users": len(flat.user_S[keep_S].unique()),
            "sessions": int(keep_S.sum()),
            "plays": int(play_N.sum()),
            "tracks": len(flat.track_N[play_N].unique()),
            "valence_reports": _given(flat.report_S2[keep_S][:, 0]),
            "arousal_reports": _given(flat.report_S2[keep_S][:, 1]),
            "ratings": _given(feedback_P4[:, 1]),
            "missing_valence_report": _missing(flat.report_S2[keep_S][:, 0]),
            "missing_pre_report": _missing(flat.pre_report_S2[keep_S][:, 0]),
            "missing_rating": _missing(feedback_P4[:, 1]),
            "missing_engagement": _missing(feedback_P4[:, 0]),
        })  # fmt: skip
    return lines


def _given(values: torch.Tensor) -> int:
    return int((~values.isnan()).sum())


def _missing(values: torch.Tensor) -> float:
    return float(values.isnan().float().mean()) if len(values) else 0.0
