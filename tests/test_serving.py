"""Export and serving: the served policy is the judged one, with torch alone; a policy that failed stays."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import TINY, train
from safetensors.torch import load_file
from small_log import METADATA, TIME, catalogue, sessions
from test_stress import SMALL

import amrs
from amrs.config.data import SplitConfig
from amrs.data import SessionDataModule
from amrs.logs.histories import FEEDBACK
from amrs.logs.schema import LogError, validate
from amrs.report import Report, Row, load
from amrs.runs import RunError
from amrs.served_session import REPORTS, RULES
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
        (
            [{"track_id": [], "rating": [1]}],
            None,
            "rating has 1 items in session 1; allowed: 0, one for each",
        ),
    ],
)
def test_what_the_policy_does_not_know_is_refused(
    exported: Path, sessions: Any, mode: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        amrs.load(exported).recommend(sessions, mode)


NAN, INF = float("nan"), float("inf")
UNIT = [-0.01, 0.0, 1.0, 1.01, NAN, INF, None]
TIMES = [datetime(*day, tzinfo=UTC) for day in ((1970, 12, 31), (1971, 1, 1), (2099, 12, 31), (2100, 1, 1))]
EDGES: dict[str, list[Any]] = {
    "started_at": TIMES, "ended_at": [*TIMES, None], "utc_offset_min": [-841, -840, 0, 840, 841, None],
    "context": [-5.0, 1e38, 1e39, NAN, INF, None], **dict.fromkeys(REPORTS, UNIT),
    "ended": ["left", "completed", "closed", None], "track_id": ["a", "b", None],
    **dict.fromkeys(FEEDBACK, UNIT), "rating": [-1, 0, 1, 2, 5, None],
    "propensity": [-0.1, 0.0, 0.001, 1.0, 1.1, NAN, None],
}  # fmt: skip
LISTS = ("context", "track_id", "propensity", *FEEDBACK)


def in_a_log(name: str, value: Any) -> bool:
    """Whether `prepare` accepts a log whose first session holds the value."""
    cell = [value, {"context": 1.0, "track_id": "c"}.get(name)] if name in LISTS else value
    given = {"mode": [None] * 3, "ended_at": pa.nulls(3, TIME), name: [cell, None, None]}
    if name in ("started_at", "ended_at"):
        times = pa.array([value] * 3, TIME)
        given |= {name: times} if value is None else {"started_at": times, name: times}
    try:
        validate(sessions(**given).slice(0, 1), catalogue(), METADATA, "a log")
    except LogError:
        return False
    return True


def test_a_history_may_hold_what_a_log_may() -> None:
    served = {name: [RULES[name].fits(value) for value in values] for name, values in EDGES.items()}
    assert served == {name: [in_a_log(name, value) for value in values] for name, values in EDGES.items()}
    assert set(served) == set(RULES)


TRACKS = ["track-00000", "track-00001"]


@pytest.mark.parametrize(
    ("session", "words"),
    [
        (
            {"track_id": TRACKS, "engagement": [None, 180]},
            r"engagement=180 in session 2, item 2; .* \[0, 1\]",
        ),
        ({"track_id": TRACKS, "rating": [5, 0]}, "rating=5 in session 2, item 1; allowed: 0, 1 or None"),
        ({"track_id": TRACKS, "rating": ["hoch", 0]}, "rating='hoch' in session 2, item 1; allowed: 0, 1 or"),
        (
            {"track_id": TRACKS, "rating": 1},
            "rating=1 in session 2; allowed: a list with an item for each track",
        ),
        ({"track_id": TRACKS[0]}, "track_id='track-00000' in session 2; allowed: a list"),
        ({"track_id": [7]}, "track_id=7 in session 2, item 1; allowed: an id of the catalogue, as text"),
        ({"post_valence": 6}, r"post_valence=6 in session 2; allowed: a number in \[0, 1\], or None"),
        ({"pre_valence": -5}, r"pre_valence=-5 in session 2; allowed: a number in \[0, 1\], or None"),
        ({"pre_valence": [0.5]}, r"pre_valence=\[0.5\] in session 2; allowed: a number"),
        ({"ended": "closed"}, "ended='closed' in session 2; allowed: left, completed or None"),
        ({"started_at": "yesterday"}, "started_at='yesterday' in session 2; allowed: a datetime or ISO text"),
        (
            {"started_at": 1_777_777_777},
            "started_at=1777777777 in session 2; allowed: a datetime or ISO text",
        ),
        ({"context": {"pulse": 60}}, r"context=.* allowed: a list .* number of the context \(noise, heart\)"),
        (
            {"context": [60]},
            r"context has 1 items in session 2; allowed: 2, one for each number of the context",
        ),
    ],
)
def test_a_value_that_no_log_may_hold_is_refused_without_the_users_id(
    exported: Path, session: dict[str, Any], words: str
) -> None:
    served = amrs.load(exported)
    served.about["context"] = ["noise", "heart"]
    with pytest.raises(ValueError, match=words) as error:
        served.recommend([{}, {"user_id": "secret-1", **session}], None)
    assert "secret-1" not in str(error.value)


@pytest.mark.parametrize("history", [{"track_id": []}, None, ["track-00000"]])
def test_a_history_that_is_no_list_of_sessions_is_refused(exported: Path, history: Any) -> None:
    with pytest.raises(ValueError, match="a history is a list of sessions, each a dict"):
        amrs.load(exported).recommend(history, None)


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({"started_at": "2026-05-02T08:00Z"}, "allowed: not before the started_at of session 1"),
        (
            {"started_at": "2026-05-01T08:00Z", "ended_at": "2026-05-02T07:00Z"},
            "started_at='2026-05-02T06:00Z' in session 2; allowed: not before the ended_at of session 1",
        ),
    ],
)
def test_sessions_out_of_order_are_refused(exported: Path, before: dict[str, Any], words: str) -> None:
    served, now = amrs.load(exported), {"started_at": "2026-05-02T06:00Z"}
    with pytest.raises(ValueError, match=words):
        served.recommend([before, now], None)
    assert served.recommend([{**before, "ended_at": None, "started_at": None}, now], None)


def test_modes_of_new_tracks_are_as_many_as_they(exported: Path, data: SessionDataModule) -> None:
    served = amrs.load(exported)
    with pytest.raises(ValueError, match="modes has 1 items; allowed: 2, one for each track"):
        served.add_tracks(["one", "two"], data.embedding_KE[:2], [["calm"]])


def test_iso_text_and_arrays_pass_for_datetimes_and_lists(exported: Path) -> None:
    served = amrs.load(exported)
    at = {"started_at": datetime(2026, 5, 1, 16, 30, tzinfo=UTC), "utc_offset_min": 120}
    plain = {**at, "track_id": TRACKS, "rating": [1, None], "engagement": [0.5, 0.25]}
    arrays = {"started_at": "2026-05-01T18:30:00+02:00", "utc_offset_min": np.int16(120),
              "track_id": np.array(TRACKS), "rating": (np.int8(1), None),
              "engagement": torch.tensor([0.5, 0.25])}  # fmt: skip
    expected = served.log_probs([plain, at], "calm")
    assert torch.equal(served.log_probs([arrays, at], "calm"), expected)
    assert not torch.equal(served.log_probs([{**arrays, "started_at": None}, at], "calm"), expected)


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", True])
def test_fewer_than_one_track_or_a_part_of_one_is_refused(exported: Path, k: Any) -> None:
    with pytest.raises(ValueError, match=f"k={k!r}; allowed: a whole number of tracks, 1 or more"):
        amrs.load(exported).recommend([], None, k=k)


def test_embeddings_may_be_a_tensor_an_array_or_lists(exported: Path, data: SessionDataModule) -> None:
    served = amrs.load(exported)
    rows = data.embedding_KE[:1]
    for name, given in (("tensor", rows), ("array", rows.double().numpy()), ("lists", rows.tolist())):
        served.add_tracks([name], given)
    tensor, array, lists = served.log_probs([], None)[-3:].tolist()
    assert tensor == pytest.approx(array) and tensor == pytest.approx(lists)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda x: [[NAN, *x[0][1:]], x[1]],
            "number 1 of the embedding of track 'one' is nan; allowed: finite",
        ),
        (lambda x: [x[0], [*x[1][:-1], INF]], "of the embedding of track 'two' is inf; allowed: finite"),
        (lambda x: x[:1], r"embeddings of shape \(1, .*; allowed: \(2, .*numbers for each of the tracks"),
        (lambda x: [x[0], x[1][1:]], r"embeddings are no table of numbers .*; allowed: \(2, "),
        (lambda x: [x[0], ["loud"] * len(x[0])], r"embeddings are no table of numbers .*; allowed: \(2, "),
    ],
)
def test_embeddings_that_cannot_be_ranked_are_refused_and_nothing_is_added(
    exported: Path, data: SessionDataModule, change: Any, words: str
) -> None:
    served = amrs.load(exported)
    known = len(served.track_ids)
    with pytest.raises(ValueError, match=words):
        served.add_tracks(["one", "two"], change(data.embedding_KE[:2].tolist()))
    assert len(served.track_ids) == known


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


def test_exported_files_may_be_read_by_whom_the_umask_lets(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    assert {path.name for path in exported.iterdir() if path.stat().st_mode != usual} == set()


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
