"""The recommender and the rules: exact probabilities over the tracks that are allowed."""

from pathlib import Path

import pytest
import torch
from tiny_logs import METADATA, opened, policy, random_log

from amrs.candidates import entropy_after, next_track_log_probs
from amrs.data import SessionDataModule
from amrs.listeners import HistoryReader
from amrs.logs.splits import TRAIN
from amrs.models.policy import played_so_far
from amrs.rollout import Feedback
from amrs.rules import Rules, log_softmax_allowed
from amrs.stages.bc import clone_log_probs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"), history=64)


def test_rules_allow_the_modes_tracks_that_were_not_played() -> None:
    mode_MK = torch.tensor([[True, True, False, False], [False, True, True, True], [True] * 4])
    mode_P, played_PT = torch.tensor([0, 1, 1, -1]), torch.tensor([[-1, -1], [1, 3], [-1, 2], [0, -1]])
    expected = [[True, True, False, False], [False, False, True, False], [False, True, False, True],
                [False, True, True, True]]  # fmt: skip
    assert Rules(mode_MK, False).allowed(mode_P, played_PT).tolist() == expected
    assert Rules(mode_MK, True).allowed(mode_P, played_PT).tolist() == mode_MK[mode_P].tolist()
    assert mode_MK.sum() == 9, "the rules themselves are not changed by a call"


def test_log_softmax_over_allowed_tracks_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]]).log()
    found = log_softmax_allowed(logits, torch.tensor([[True, False, True]])).exp()
    assert found[0].tolist() == pytest.approx([1 / 3, 0, 2 / 3])


@torch.inference_mode()
def test_logits_are_inner_products_plus_a_bias(data: SessionDataModule) -> None:
    model, h_PD = policy(data), torch.randn(3, policy(data).encoder.size)
    vector_KD, bias_K = model.tracks()
    slow = [[float(model.query(h) @ v + b) for v, b in zip(vector_KD, bias_K, strict=True)] for h in h_PD]
    torch.testing.assert_close(model.logits(h_PD), torch.tensor(slow), atol=1e-5, rtol=1e-4)


def test_played_so_far_equals_a_loop(data: SessionDataModule) -> None:
    batch = data.gather(data.windows(TRAIN))
    played_BLT = played_so_far(batch)
    for b in range(len(batch.track_BL)):
        own: list[int] = []
        for n in range(int(batch.valid_BL[b].sum())):
            track = int(batch.track_BL[b, n])
            own = [] if track < 0 else [*own, track]
            assert sorted(k for k in played_BLT[b, n].tolist() if k >= 0) == sorted(own)


def test_the_logged_next_track_is_always_allowed(data: SessionDataModule) -> None:
    log_p_N = clone_log_probs(policy(data), data.rules(), data.gather(data.windows(TRAIN)))
    assert log_p_N.isfinite().all() and (log_p_N < 0).all()


def test_training_scores_what_the_policy_says_when_asked_play_by_play(data: SessionDataModule) -> None:
    """One pass over windows equals a prefix, the mask and a softmax for each logged play."""
    model, rules, flat = policy(data), data.rules(), data.flat
    window_W3 = data.windows(TRAIN)
    assert (flat.user_last_U - flat.user_first_U <= 64).all(), "each user is one window here"
    found = clone_log_probs(model, rules, data.gather(window_W3))
    asked = [
        n for begin, end, _ in window_W3.tolist() for n in range(begin, end) if flat.next_track_N[n] >= 0
    ]
    token_N = torch.tensor(asked)
    log_p_NK = next_track_log_probs(model, data, rules, flat.session_N[token_N], flat.step_N[token_N])
    slow = log_p_NK.gather(1, flat.next_track_N[token_N][:, None])[:, 0]
    torch.testing.assert_close(found, slow, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(log_p_NK.exp().sum(1), torch.ones(len(asked)))


@torch.inference_mode()
def test_entropy_after_a_track_equals_asking_one_by_one(data: SessionDataModule) -> None:
    model, rules = policy(data, history=64), data.rules()
    rows = data.rows(TRAIN)[[0, 5, 9]]
    known: dict[int, list[float]] = {}
    for row in rows.tolist():
        mode = int(data.flat.mode_S[row])
        for k in rules.mode_MK[mode].nonzero()[:, 0].tolist():
            reader, one = HistoryReader(model.encoder, data, 1), torch.ones(1)
            feedback = Feedback(one, torch.full((1,), torch.nan), one < 0)
            mind = reader.append(reader.start(torch.tensor([row])), torch.tensor([k]), feedback)
            free = [j for j in rules.mode_MK[mode].nonzero()[:, 0].tolist() if j != k]
            law = torch.distributions.Categorical(logits=model.logits(mind.h_BD)[0, free])
            known.setdefault(k, []).append(float(law.entropy()))
    found = entropy_after(model, data, rules, rows)
    everywhere = [h for each in known.values() for h in each]
    for k in range(data.tracks):
        each = known.get(k, everywhere)
        assert float(found[k]) == pytest.approx(sum(each) / len(each), abs=1e-4)
    assert found.std() > 0


def test_a_session_without_a_mode_may_play_any_track(data: SessionDataModule) -> None:
    rules = data.rules()
    assert rules.mode_MK.shape == (len(METADATA.modes) + 1, data.tracks)
    assert rules.allowed(torch.tensor([-1]), torch.zeros(1, 0).long()).all()


@pytest.mark.parametrize("logits", [1 << 26, 100])
def test_pairs_are_scored_under_the_mode_of_their_own_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logits: int
) -> None:
    """A prefix begins in earlier sessions of other modes; before any step, policy and reference agree."""
    from types import SimpleNamespace

    from amrs.pairs import Pairs
    from amrs.stages.dpo import DirectPreference
    from amrs.stages.preferences import _reference

    monkeypatch.setattr("amrs.rules._LOGITS", logits)
    data = opened(random_log(tmp_path / "log", users=30), history=64)
    flat, model, rules = data.flat, policy(data), data.rules()
    token_B = torch.nonzero(flat.track_N >= 0)[:, 0]
    row_B, step_B, rejected_B = flat.session_N[token_B], flat.step_N[token_B] - 1, flat.track_N[token_B]
    log_p_BK = next_track_log_probs(model, data, rules, row_B, step_B)
    chosen_B = log_p_BK.scatter(1, rejected_B[:, None], -torch.inf).argmax(1)
    pairs = Pairs(row_B, step_B, chosen_B, rejected_B, torch.ones(len(row_B)), rejected_B[:, None][:, :0],
                  torch.zeros(len(row_B), 0))  # fmt: skip
    reference_B2 = _reference(model, data, rules, pairs)
    data.pairs = {"row": row_B, "step": step_B, "chosen": chosen_B, "rejected": rejected_B, "du": pairs.du_B,
                  "ref_chosen": reference_B2[:, 0], "ref_rejected": reference_B2[:, 1],
                  "part": torch.full((len(row_B),), TRAIN)}  # fmt: skip
    batch = data._pair_batch(torch.arange(len(row_B)), len(row_B))
    first_mode_B = batch.prefix.mode_BL[:, 0]
    assert (first_mode_B != flat.mode_S[row_B]).any()
    training = SimpleNamespace(model=model, rules=rules, device=torch.device("cpu"))
    chosen, rejected, _ = DirectPreference.log_probs(training, batch)  # type: ignore[arg-type]
    torch.testing.assert_close(chosen, batch.ref_chosen_B, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(rejected, batch.ref_rejected_B, atol=2e-5, rtol=1e-4)
