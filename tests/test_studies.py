"""Studies and chapters: what an evaluation stands on, and what its report takes over."""

import pytest

from amrs.config import ConfigError, load
from amrs.runs import Run, merged_studies, plan, splits_of


def planned(*arguments: str) -> Run:
    """The last run of the plan, in a folder where nothing is finished."""
    return plan(load(["stage=evaluate", "runs=/nowhere", *arguments]))[-1]


def test_fidelity_alone_trains_one_world_model() -> None:
    assert list(planned("evaluate.chapters=fidelity").parents) == ["prepare", "world_model"]
    both = planned()
    assert set(both.parents) == {"prepare", "world_model", "labeller", "judge", "bc", "preferences", "dpo"}
    assert "world_model" not in planned("evaluate.chapters=policies").parents


def test_the_utility_makes_no_new_fidelity_run_but_new_policies() -> None:
    def fingerprint(*arguments: str) -> str:
        return planned(*arguments).fingerprint

    other = "utility.weights.engagement=1"
    fidelity = "evaluate.chapters=fidelity"
    assert fingerprint(fidelity) == fingerprint(fidelity, other)
    assert fingerprint() != fingerprint(other)


def test_a_study_is_a_run_of_its_own_that_the_report_stands_on() -> None:
    report = planned("evaluate.chapters=fidelity", "evaluate.studies=ablations")
    study = planned("evaluate.study=ablations")
    assert [run.fingerprint for run in merged_studies(report)] == [study.fingerprint]
    assert report.fingerprint != planned("evaluate.chapters=fidelity").fingerprint
    # What chapters and how many splits a report has is nothing to a study of it.
    assert planned("evaluate.study=ablations", "evaluate.splits=3").fingerprint == study.fingerprint


def test_parts_of_a_study_are_ordinary_runs_with_settings_of_their_own() -> None:
    study = planned("evaluate.study=ablations", "model.width=32")
    part = study.parents["history_8"]
    assert (part.stage, part.config.model.history, part.config.model.width) == ("world_model", 8, 32)
    alone = plan(load(["stage=world_model", "runs=/nowhere", "model.history=8", "model.width=32"]))[-1]
    assert part.fingerprint == alone.fingerprint


def test_a_study_is_made_once_for_all_splits() -> None:
    report = planned("evaluate.chapters=fidelity", "evaluate.studies=ablations", "evaluate.splits=2")
    assert len(splits_of(report)) == 2 and len(merged_studies(report)) == 1
    assert all(not merged_studies(split) for split in splits_of(report))


def test_folds_are_runs_of_their_own_of_the_same_log() -> None:
    whole = planned("evaluate.chapters=fidelity", "evaluate.protocol=kfold", "evaluate.repeats=2")
    splits = splits_of(whole)
    assert len(splits) == 10 and len({split.fingerprint for split in splits}) == 10
    assert len({split.parents["prepare"].fingerprint for split in splits}) == 1
    assert [(s.config.data.split.seed, s.config.data.split.fold) for s in splits[4:6]] == [(0, 4), (1, 0)]


def test_monte_carlo_splits_draw_a_world_each() -> None:
    splits = splits_of(planned("evaluate.chapters=fidelity", "evaluate.splits=3"))
    assert len({split.parents["prepare"].fingerprint for split in splits}) == 3


def test_settings_of_the_other_protocol_make_no_new_run() -> None:
    fidelity = "evaluate.chapters=fidelity"
    assert planned(fidelity, "evaluate.folds=7").fingerprint == planned(fidelity).fingerprint


def test_folds_of_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.chapters=fidelity"):
        planned("evaluate.protocol=kfold")
