"""Export and serving: the served policy is the judged one, with torch alone; a policy that failed stays."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, train
from safetensors.torch import load_file
from test_stress import SMALL

import amrs
from amrs.config.data import SplitConfig
from amrs.data import SessionDataModule
from amrs.report import Report, Row, load
from amrs.runs import RunError
from amrs.serving import Recommender
from amrs.stages import bc
from amrs.stages.export import refuse
from amrs.stages.preferences import next_track_log_probs

REASON = "a test of the export itself"
Done = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def exported(evaluated: Done) -> Path:
    """A DPO policy that did not pass, exported by force."""
    command = ["stage=export", *TINY, *SMALL, f"runs={evaluated[0]}", f"export.force={REASON}"]
    return Path(train(*command).stdout.splitlines()[-1])


def parent(folder: Path, role: str) -> Path:
    return Path(json.loads((folder / "provenance.json").read_text())["parents"][role])


@pytest.fixture(scope="module")
def data(exported: Path) -> SessionDataModule:
    history = json.loads((exported / "config.json").read_text())["model"]["history"]
    return SessionDataModule(parent(exported, "prepare") / "log", SplitConfig(), history)


def history(data: SessionDataModule, row: int, step: int) -> tuple[list[dict[str, Any]], str | None]:
    """The listener's sessions up to play `step` of session `row`, as a service would hand them in."""
    first = int(data.flat.row_U[data.flat.user_S[row]])
    features = data.log.sessions.features
    sessions = [dict(data.log.sessions[r]) for r in range(first, row + 1)]
    for session in sessions:
        for name in ("mode", "cohort"):
            session[name] = None if session[name] is None else features[name].int2str(session[name])
    under_way = sessions[-1]
    for name in ("track_id", "engagement", "rating", "track_valence", "track_arousal"):
        under_way[name] = None if under_way[name] is None else under_way[name][:step]
    for name in ("post_valence", "post_arousal", "ended", "ended_at", "propensity"):
        under_way[name] = None
    return sessions, under_way["mode"]


def test_served_log_probs_are_the_policys_own(exported: Path, data: SessionDataModule) -> None:
    model = bc.load(parent(exported, "dpo"), data, parent(exported, "bc"))
    served = amrs.load(exported)
    long = int(data.flat.row_U[1:].diff().argmax()) + 1  # a listener with many sessions
    last = int(data.flat.row_U[long + 1]) - 1
    for row, step in ((0, 0), (last, 0), (last, 2), (last - 1, 1)):
        own = next_track_log_probs(model, data, data.rules(), torch.tensor([row]), torch.tensor([step]))[0]
        found = served.log_probs(*history(data, row, step))
        assert torch.equal(own.isfinite(), found.isfinite())
        torch.testing.assert_close(own, found, atol=1e-4, rtol=1e-4)


def test_recommendations_are_allowed_repeatable_and_carry_their_probability(
    exported: Path, data: SessionDataModule
) -> None:
    served = amrs.load(exported)
    sessions, mode = history(data, 3, 2)
    found = served.recommend(sessions, mode, k=5, seed=1)
    assert found == served.recommend(sessions, mode, k=5, seed=1) and len({r.track_id for r in found}) == 5
    log_p = served.log_probs(sessions, mode)
    assert all(r.probability == pytest.approx(float(log_p[served.number[r.track_id]].exp())) for r in found)
    assert not {r.track_id for r in found} & set(sessions[-1]["track_id"])
    assert sum(r.probability for r in served.recommend([], None, k=10_000)) == pytest.approx(1, abs=1e-4)


def test_serving_imports_neither_lightning_nor_datasets(exported: Path) -> None:
    code = (
        f"import sys, amrs; r = amrs.load({str(exported)!r}).recommend([{{'track_id': []}}], None, 3)\n"
        "heavy = ('lightning', 'datasets', 'pyarrow', 'pandas', 'omegaconf', 'torchmetrics', 'wandb',"
        " 'sklearn', 'scipy', 'einops')\n"
        "assert len(r) == 3; print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_track_added_afterwards_is_ranked_by_its_embedding(exported: Path, data: SessionDataModule) -> None:
    served = amrs.load(exported)
    before = served.log_probs([], "calm")
    twin = int((data.plays(0) == data.plays(0).min()).nonzero()[0])  # among the least played
    modes = data.log.catalogue["modes"][twin]
    served.add_tracks(["twin", "quiet"], data.embedding_KE[[twin, twin]], [modes, ["sleep"]])
    after = served.log_probs([], "calm")
    assert after[-1] == -torch.inf, "not for this mode"
    # The old tracks keep their relative probabilities.
    shift = (after[:-2] - before)[before.isfinite()]
    torch.testing.assert_close(shift, shift[:1].expand(len(shift)), atol=1e-4, rtol=0)
    if modes is None or "calm" in modes:
        unheard = float(served.about["unheard_log_popularity"])
        same = abs(float(served.model.log_popularity_K[twin]) - unheard) < 1e-6
        assert not same or after[-2] == pytest.approx(float(after[twin]), abs=1e-4)
    with pytest.raises(ValueError, match="given again: twin"):
        served.add_tracks(["twin"], data.embedding_KE[:1])


@pytest.mark.parametrize(
    ("sessions", "mode", "words"),
    [
        ([], "party", "mode='party' is unknown; the policy knows"),
        ([{"track_id": ["nobody-knows"]}], None, "not in the catalogue: add it"),
        ([{"track_id": [], "mood": 1}], None, "a session has no mood"),
        ([{"track_id": [], "rating": [1]}], None, "rating has 1 items for 0 tracks"),
    ],
)
def test_what_the_policy_does_not_know_is_refused(
    exported: Path, sessions: Any, mode: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        amrs.load(exported).recommend(sessions, mode)


def test_the_card_shows_data_gains_verdict_and_the_reason_for_force(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    assert f"Exported by force. Reason given: {REASON}" in text and "DPO failed" in text
    for heading in ("## Data", "## Protocol", "## Gains over Copycat, and harm", "## The gate", "## Limits"):
        assert heading in text
    assert (
        "**failed**" in text and "[gate.harm]" in text and "- Valence harm, predicted by the judge:" in text
    )


def test_nothing_exported_is_pickled_or_names_a_user(exported: Path) -> None:
    assert {path.suffix for path in exported.iterdir()} <= {".safetensors", ".json", ".md", ".yaml"}
    assert load_file(exported / "policy.safetensors") and load_file(exported / "catalogue.safetensors")
    users = set(amrs_users(exported))
    texts = [(exported / name).read_text() for name in ("README.md", "config.json")]
    assert not [user for user in users for text in texts if user in text]


def amrs_users(exported: Path) -> list[str]:
    from amrs.logs.schema import read_log

    return list(read_log(parent(exported, "prepare") / "log").sessions["user_id"][:])


def test_a_policy_that_failed_is_refused_with_each_threshold_and_its_figure(exported: Path) -> None:
    report = load(parent(exported, "stress"))
    with pytest.raises(RunError, match=r"Greedy failed .*is 0\.\d+, must be at least 0\.9 \[gate\.eff"):
        refuse(report, "greedy", None)
    with pytest.raises(RunError, match=r"export\.force=REASON"):
        refuse(report, "copycat", None)
    with pytest.raises(RunError, match="no policy is called dppo"):
        refuse(report, "dppo", None)


def test_a_policy_that_passed_needs_no_force() -> None:
    passed = Row("gate", "dpo", "all", "verdict", "mean", "all", 1.0, None, None, 18, "1 passed")
    refuse(Report([passed], {"verdicts": {}}), "dpo", None)


def test_a_folder_without_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the run folder of stage export"):
        Recommender(tmp_path)
