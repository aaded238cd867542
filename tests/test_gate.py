"""The gate: what passes, what fails, and that the realised never enters."""

from dataclasses import replace

import pytest

from amrs.config.groups import GateConfig
from amrs.gate import Check, checks, gate_rows, verdict
from amrs.report import Row


def row(metric: str, value: float, low: float, high: float, **keys: str) -> Row:
    about = {"section": "stress", "subject": "dpo", "signal": "all", "group": "all", **keys}
    return Row(about["section"], about["subject"], about["signal"], metric, "mean", about["group"], value,
               low, high, 90, "fraction")  # fmt: skip


def good() -> list[Row]:
    """A policy that passes everything."""
    rows = [
        row("gain", 0.1, 0.02, 0.2, signal=signal, group=group)
        for signal in ("utility", "valence") for group in ("all", "cohort:clinical")
    ]  # fmt: skip
    rows += [row("harm", 0.02, 0.0, 0.08, signal="valence", group=g) for g in ("all", "cohort:clinical")]
    rows += [row(m, v, v, v, subject="world_model", signal="valence")
             for m, v in (("uplift_slope", 0.7), ("coverage_80", 0.84))]  # fmt: skip
    log = {"subject": "world_model", "signal": "valence"}
    rows += [row("uplift_slope", 0.6, 0.1, 1.0, group="propensities:logged", **log)]
    rows += [row("late_slope", 0.1, -0.3, 0.5, **log)]
    for metric, value in (("effective_tracks", 95.0), ("catalogue_coverage", 0.48), ("entropy", 0.8)):
        rows += [row(metric, value, value, value), row(metric, value, value, value, subject="copycat")]
    return [*rows, row("kl", 0.05, 0.04, 0.06), row("violations", 0.0, 0.0, 0.0)]


def failed(rows: list[Row]) -> list[str]:
    return [check.name for check in checks(rows, "dpo", GateConfig(), ["valence"]) if not check.passed]


def changed(metric: str, group: str = "all", **values: float) -> list[Row]:
    """The good rows with one of DPO's (or the world model's) figures otherwise."""
    return [
        replace(r, **values) if (r.metric, r.group) == (metric, group) and r.subject != "copycat" else r
        for r in good()
    ]


def test_a_policy_that_keeps_every_threshold_passes() -> None:
    found = checks(good(), "dpo", GateConfig(), ["valence"])
    assert failed(good()) == []
    assert verdict("dpo", found) == f"DPO passed all {len(found)} thresholds of the gate."
    assert gate_rows("dpo", found)[0].value == 1.0


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (changed("harm", high=0.2), "harm"),
        (changed("harm", "cohort:clinical", high=0.3), "harm_cohort"),
        (changed("uplift_slope", low=0.0), "uplift_slope"),
        (changed("uplift_slope", "propensities:logged", low=0.0), "weighted_slope"),
        (changed("late_slope", high=-0.01), "late_slope"),
        (changed("coverage_80", value=0.65), "calibration"),
        (changed("effective_tracks", value=80.0), "effective_tracks"),
        (changed("catalogue_coverage", value=0.4), "coverage"),
        (changed("entropy", value=0.7), "entropy"),
        (changed("kl", high=0.11), "kl"),
        (changed("violations", value=0.01), "violations"),
    ],
)
def test_each_threshold_fails_alone(rows: list[Row], name: str) -> None:
    assert failed(rows) == [name]


def test_the_gain_of_every_cohort_counts_by_its_lower_bound() -> None:
    assert failed(changed("gain", "cohort:clinical", low=-0.001)) == ["utility_gain", "valence_gain"]
    # Valence must not fall, utility must rise.
    assert failed(changed("gain", low=0.0)) == ["utility_gain"]


def test_a_figure_that_is_not_there_does_not_pass() -> None:
    rows = [r for r in good() if r.metric != "kl"]
    assert failed(rows) == ["kl"] and "not known" in verdict("dpo", checks(rows, "dpo", GateConfig(), []))


def test_a_log_without_propensities_is_not_asked_for_the_trace_of_a_hidden_cause() -> None:
    rows = [r for r in good() if r.group != "propensities:logged"]
    assert failed(rows) == []
    assert len(checks(good(), "dpo", GateConfig(), [])) == len(checks(rows, "dpo", GateConfig(), [])) + 1


def test_what_was_realised_never_enters() -> None:
    bad = [
        replace(r, section="realised", value=-9.0, low=-9.0, high=9.0)
        for r in good() if r.metric in ("gain", "harm")
    ]  # fmt: skip
    assert checks([*good(), *bad], "dpo", GateConfig(), ["valence"]) == checks(
        good(), "dpo", GateConfig(), ["valence"]
    )


def test_a_margin_is_the_distance_on_the_right_side() -> None:
    check = Check("harm", "valence", "harm", "all", "harm", 0.2, 0.15, False, False, 9, "fraction")
    assert check.margin == pytest.approx(-0.05) and not check.passed
    assert check.words == "harm is 0.2, must be at most 0.15 [gate.harm]"


def test_what_the_judge_is_asked_is_called_the_judges() -> None:
    said = {check.name: check.words for check in checks(good(), "dpo", GateConfig(), ["valence"])}
    assert said["uplift_slope"].startswith("lower bound of the judge's uplift slope of valence is 0.7,")
    assert "coverage of valence by the judge's 80 % intervals" in said["calibration"]
