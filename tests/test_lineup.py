"""DPO policies of several samplers and losses in one report, and over the utility's weights."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY, train
from test_stages import Done

from amrs.config import load
from amrs.lineup import LINEUP, Parts
from amrs.policies import NeuralPolicy
from amrs.report import load as load_report
from amrs.rollout import imagine
from amrs.runs import Run, RunError, dpo_variants, plan
from amrs.stages.prepare import open_data
from amrs.studies import front


def planned(*arguments: str) -> Run:
    return plan(load(["runs=/nowhere", *arguments]))[-1]


def test_variants_share_all_but_what_differs() -> None:
    run = planned("stage=evaluate", "evaluate.dpo=[margin:list,margin:hard,corrective:hard,credited]")
    parents = run.parents
    assert parents["dpo:margin:list"].fingerprint == parents["dpo"].fingerprint, "the default, by its name"
    hard, corrective = parents["dpo:margin:hard"], parents["dpo:corrective:hard"]
    assert hard.parents["preferences"].fingerprint == parents["preferences"].fingerprint
    assert corrective.parents["preferences"].fingerprint != parents["preferences"].fingerprint
    assert corrective.parents["labeller"].fingerprint == parents["labeller"].fingerprint
    settings = {name: (part.config.preferences.sampler, part.config.dpo.loss)
                for name, part in parents.items() if name.startswith("dpo:")}  # fmt: skip
    assert settings["dpo:corrective:hard"] == ("corrective", "hard")
    assert settings["dpo:credited"] == ("credited", "list")


def test_s_dpo_gets_several_rejected_and_the_others_share_the_pairs() -> None:
    config = load(["stage=evaluate", "evaluate.dpo=[margin:s_dpo,margin:ipo,margin:list]"])
    found = dpo_variants(config)
    assert [part.preferences.rejected for part in found.values()] == [4, None, None]
    asked = replace(config, preferences=replace(config.preferences, rejected=2))
    assert [part.preferences.rejected for part in dpo_variants(asked).values()] == [2, 2, 2]


def test_a_variant_is_stressed_and_can_be_exported() -> None:
    for stage in ("stress", "export"):
        run = planned(f"stage={stage}", "evaluate.dpo=corrective:hard")
        assert "dpo:corrective:hard" in run.parents
        assert "dpo:corrective:hard" not in planned(f"stage={stage}").parents


def test_a_pinned_policy_is_not_taken_for_another() -> None:
    config = load(["stage=evaluate", "evaluate.dpo=margin:hard", "parents.dpo=/x", "parents.preferences=/y"])
    (variant,) = dpo_variants(config).values()
    assert (variant.parents.dpo, variant.parents.preferences) == (None, None)


def test_the_front_shares_the_weight_out_and_the_default_is_one_of_its_points() -> None:
    run = planned("stage=evaluate", "evaluate.study=front", "utility.weights.rating=0.2")
    weights = {name: part.config.utility.weights for name, part in run.parents.items() if "front" in name}
    assert [(w.valence, w.arousal, w.rating) for w in weights.values()] == [
        (0.0, 1.0, 0.2), (0.25, 0.75, 0.2), (0.5, 0.5, 0.2), (0.75, 0.25, 0.2), (1.0, 0.0, 0.2),
    ]  # fmt: skip
    default = planned("stage=dpo", "utility.weights.rating=0.2")
    assert run.parents["front:0.5"].fingerprint == default.fingerprint


def test_a_front_without_weights_to_share_is_refused() -> None:
    none = ["utility.weights.valence=0", "utility.weights.arousal=0", "utility.weights.rating=1"]
    with pytest.raises(RunError, match="gives neither any"):
        front.parts(load(["stage=evaluate", "evaluate.study=front", *none]))


@pytest.mark.parametrize("name", ["boltzmann", "best_of_n"])
def test_guided_policies_go_as_far_from_copycat_as_dpo_does(evaluated: Done, name: str) -> None:
    run = planned("stage=evaluate", *TINY, f"runs={evaluated[0]}")
    parts = Parts(run, open_data(run, users="labeller"), 10)
    found = imagine(
        LINEUP[name](parts), parts.listeners, parts.data.rules(), parts.data.flat.mode_S[parts.starts.row_B],
        *parts.starts, parts.horizon, NeuralPolicy(parts.copycat, parts.data, parts.horizon),
    )  # fmt: skip
    divergence = found.divergence()
    assert divergence == pytest.approx(parts.divergence, rel=0.15)
    assert divergence != pytest.approx(run.config.dpo.kl_budget, rel=0.15), "the test tells the two apart"


def test_one_report_holds_the_variants_and_the_front(evaluated: Done) -> None:
    runs, _ = evaluated
    done = train(
        "stage=evaluate", *TINY, f"runs={runs}", "evaluate.chapters=policies", "evaluate.policies=dpo",
        "evaluate.off_policy.policies=dpo", "evaluate.dpo=[corrective:hard,margin]", "evaluate.studies=front",
        "evaluate.front=[0,0.5]",
    )  # fmt: skip
    folder = Path(done.stdout.splitlines()[-1])
    report = load_report(folder)
    for section in ("realised", "predicted", "predicted_labeller"):
        gains = {r.subject: r.value for r in report.find(section=section, signal="valence", metric="gain")}
        assert gains["dpo:margin"] == gains["dpo"] != gains["dpo:corrective:hard"]
    sized = {row.subject for row in report.find(section="off_policy", signal="valence", metric="ess")}
    assert {"dpo:corrective:hard", "dpo"} <= sized
    point = {r.signal: r for r in report.find(section="realised", subject="front:0.5", metric="gain")}
    dpo = {r.signal: r for r in report.find(section="realised", subject="dpo", metric="gain")}
    assert point["valence"].value == dpo["valence"].value, "the same policy, sessions and luck"
    page = (folder / "report.html").read_text()
    assert "DPO (corrective, hard)" in page and "The front: DPO policies by what the utility weighs" in page
