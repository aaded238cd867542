"""What is fast equals what is plain, values and gradients."""

import copy
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from slow_truth import chosen, plain_encoding
from tiny_logs import opened, policy, random_log, world_model

from amrs import rules
from amrs.batches import Batch
from amrs.config.groups import UtilityConfig
from amrs.data import SessionDataModule
from amrs.listeners import sample_feedback
from amrs.logs.splits import TRAIN
from amrs.models import linear
from amrs.models.dropout import keep_noise
from amrs.models.folded import FoldedHead
from amrs.models.summaries import _decayed, running_sums, summands
from amrs.models.tiles import log_prob_in_tiles
from amrs.models.world_model import WorldModelMember, masked_sums
from amrs.policies import catalogue_utility
from amrs.rollout import choose, distance_to
from amrs.rules import Rules, log_prob_allowed, log_softmax_allowed
from amrs.stages import bc
from amrs.utility import Utility

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"))


@pytest.fixture(scope="module")
def batch(data: SessionDataModule) -> Batch:
    batch = data.gather(data.windows(TRAIN))
    assert not batch.valid_BL.all()
    return batch


def test_packed_tokens_equal_the_padded_encoder(data: SessionDataModule, batch: Batch) -> None:
    for positions in ("none", "learned", "rope"):
        encoder = world_model(data, positions=positions).ensemble[0].encoder.eval()
        slow = plain_encoding(encoder, batch)
        torch.testing.assert_close(encoder(batch)[batch.valid_BL], slow[batch.valid_BL], **CLOSE)
        torch.testing.assert_close(encoder.at(batch, batch.counts_BL), slow[batch.counts_BL], **CLOSE)
        last_B = batch.valid_BL.sum(1) - 1
        torch.testing.assert_close(encoder.last(batch), slow[torch.arange(len(slow)), last_B], **CLOSE)


def test_gradients_of_packed_tokens_equal_those_of_the_padded_encoder(
    data: SessionDataModule, batch: Batch
) -> None:
    encoder = world_model(data).ensemble[0].encoder.eval()
    weight = torch.randn(int(batch.counts_BL.sum()), encoder.size)
    found = []
    for h in (encoder.at(batch, batch.counts_BL), plain_encoding(encoder, batch)[batch.counts_BL]):
        found.append(torch.autograd.grad((h * weight).sum(), list(encoder.parameters())))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-3, rtol=1e-3)


def test_the_loss_is_the_same_however_many_tokens_round_the_number(
    data: SessionDataModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = world_model(data).ensemble[0].eval()
    sums = masked_sums(member, batch)
    monkeypatch.setattr("amrs.models.packed._ROUND", 1)
    torch.testing.assert_close(masked_sums(member, batch), sums, **CLOSE)


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_linear_by_onednn_equals_torch(shape: tuple[int, int]) -> None:
    x = torch.randn(4, linear._FEW, shape[0], requires_grad=True)
    layer, out = linear.Linear(*shape), torch.randn(4, linear._FEW, shape[1])
    leaves = [x, layer.weight, layer.bias]
    fast, slow = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(fast, slow, **CLOSE)
    for a, b in zip(*(torch.autograd.grad((y * out).sum(), leaves) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("grad", [True, False])
def test_linear_by_onednn_reads_columns_of_a_wider_matrix(grad: bool) -> None:
    wide, x = torch.randn(300, 65), torch.randn(linear._FEW, 65)[:, 1:]
    with torch.set_grad_enabled(grad):  # as the policy's tracks: vectors and biases are one matrix
        found = linear.linear(x.requires_grad_(grad), wide[:, :-1], wide[:, -1])
    truth = F.linear(x.double(), wide[:, :-1].double(), wide[:, -1].double())
    torch.testing.assert_close(found.double(), truth, **CLOSE)


def test_dropout_keeps_the_share_and_the_mean_and_every_lane_is_drawn_apart() -> None:
    torch.manual_seed(0)
    noise = keep_noise(torch.Size((40_000, 4)), 0.3)
    assert noise.unique().tolist() == pytest.approx([0, 1 / 0.7], abs=1e-4)
    assert (noise > 0).float().mean(0).tolist() == pytest.approx([0.7] * 4, abs=0.01)  # 4 standard errors
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.025
    assert not torch.equal(noise, keep_noise(noise.shape, 0.3))


def test_log_prob_of_one_allowed_track_equals_the_whole_softmax() -> None:
    allowed, track = torch.rand(5, 9) < 0.7, torch.tensor([0, 3, 8, 2, 2])
    allowed[torch.arange(5), track] = True
    logits, weight = torch.randn(5, 9, requires_grad=True), torch.randn(5)
    fast = log_prob_allowed(logits, allowed, track)
    slow = log_softmax_allowed(logits, allowed).gather(1, track[:, None])[:, 0]
    torch.testing.assert_close(fast, slow)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), logits) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("repeats", [False, True])
def test_a_catalogue_in_tiles_trains_as_the_whole_table_does(
    data: SessionDataModule, batch: Batch, monkeypatch: pytest.MonkeyPatch, repeats: bool
) -> None:
    """In double precision, as on a GPU, logits are one table."""
    model, allowed, found = policy(data).eval(), Rules(data.rules().mode_MK, repeats), []
    monkeypatch.setattr("amrs.models.tiles._ROWS", 7)
    monkeypatch.setattr("amrs.models.tiles._COLUMNS", 4)
    doubled = Batch(*(x.double() if x.dtype == torch.float32 else x for x in batch))
    for cloned, told in ((model, batch), (copy.deepcopy(model).double(), doubled)):
        log_p_N = bc.clone_log_probs(cloned, allowed, told)
        weight_N = torch.linspace(-1, 2, len(log_p_N))
        found.append((log_p_N, *torch.autograd.grad((weight_N * log_p_N).sum(), list(cloned.parameters()))))
    for tiled, whole in zip(*found, strict=True):
        torch.testing.assert_close(tiled.double(), whole, atol=1e-4, rtol=1e-4)


def test_a_track_outside_of_the_mode_or_played_has_no_probability_in_tiles() -> None:
    query, vector, bias = torch.randn(3, 4), torch.randn(6, 4), torch.randn(6)
    allowed = Rules(torch.tensor([[True] * 5 + [False], [True] * 6]), repeats=False)
    asks = torch.tensor([0, 0, -1]), torch.tensor([[2], [-1], [0]]), torch.tensor([2, 5, 5])
    found = log_prob_in_tiles(query, vector, bias, allowed, *asks)
    assert found[:2].tolist() == [-torch.inf, -torch.inf]
    assert found[2] == pytest.approx((query @ vector.T + bias)[2, 1:].log_softmax(0)[4])


def test_logits_in_chunks_train_the_same(
    data: SessionDataModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DPO does, and cloning where there is a GPU."""
    model, found = policy(data).eval(), []
    h_BD, tracks = model.encoder.last(batch).detach(), model.tracks()
    for logits in (rules._LOGITS, 7 * data.tracks):
        monkeypatch.setattr(rules, "_LOGITS", logits)
        out_BK = rules.in_chunks(lambda h_PD: model.logits(h_PD, tracks).log_softmax(-1), [h_BD], data.tracks)
        inputs = [*model.tower.parameters(), *model.query.parameters()]
        found.append((out_BK, *torch.autograd.grad((out_BK**2).sum(), inputs, retain_graph=True)))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-3, rtol=1e-3)


def test_rules_mask_the_first_track_only_where_it_was_played() -> None:
    rules = Rules(torch.tensor([[True, True, True], [False, True, True]]), repeats=False)
    played = torch.tensor([[0, 2], [-1, -1], [1, -1], [-1, -1]])
    found = rules.allowed(torch.tensor([0, 0, 0, 1]), played)
    assert found.int().tolist() == [[0, 1, 0], [1, 1, 1], [1, 0, 1], [0, 1, 1]]


def test_a_catalogue_scored_in_parts_scores_the_same(
    data: SessionDataModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, utility = world_model(data, members=2).eval(), Utility(UtilityConfig(), data.log.metadata.modes)
    h_MBD = [member.encoder.last(batch) for member in model.ensemble]
    mode_B = batch.mode_BL[:, 0]
    whole = catalogue_utility(model, utility, h_MBD, mode_B)
    monkeypatch.setattr("amrs.policies._SCORED", 20)
    halves = [member.candidates() for member in model.ensemble]
    torch.testing.assert_close(catalogue_utility(model, utility, h_MBD, mode_B, halves=halves), whole)


@pytest.mark.parametrize("tracks", [3, 64, 65, 700])
def test_choosing_by_blocks_equals_one_cumulative_sum(tracks: int) -> None:
    torch.manual_seed(tracks)
    log_p_BK = 3 * torch.randn(2000, tracks)
    log_p_BK = log_p_BK.masked_fill(torch.rand(2000, tracks) < 0.6, -torch.inf)
    log_p_BK[torch.arange(2000), torch.randint(tracks, (2000,))] = 0.0
    u_B = torch.rand(2000).clamp(1e-7, 1 - 1e-7)
    found_B = choose(log_p_BK, u_B)
    assert (found_B == chosen(log_p_BK, u_B)).float().mean() > 0.998  # rounding moves an edge now and then
    for u in (1e-30, 0.5, 1 - 2**-24):  # never a track without probability
        found_B = choose(log_p_BK, torch.full((2000,), u))
        assert log_p_BK[torch.arange(2000), found_B].isfinite().all()


@pytest.mark.parametrize("whole", [True, False])
def test_running_sums_token_by_token_equal_those_by_doubling(
    data: SessionDataModule, batch: Batch, whole: bool
) -> None:
    encoder, size = world_model(data).ensemble[0].encoder, data.embedding_KE.shape[1]
    summand = summands(encoder.heard(batch.track_BL, batch.feedback_BL4))
    if not whole:  # a window of one token, within a session
        summand, batch = summand[:, 5:6], batch._replace(step_BL=batch.step_BL[:, 5:6])
    before = summand.clone()
    total, session = running_sums(summand, batch.step_BL, size)
    torch.testing.assert_close(total, summand.cumsum(1), **CLOSE)
    torch.testing.assert_close(session, _decayed(summand[..., -session.shape[-1] :], batch.step_BL), **CLOSE)
    assert torch.equal(summand, before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    program = """
import resource
import numpy as np
from amrs.execution import reuse_freed_memory
reuse_freed_memory()
for n in range(12):
    if n == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(1 << 20) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(subprocess.check_output([sys.executable, "-c", program]))
    assert faults < 100  # ten times 32 MiB; without the setting 20,000


@torch.no_grad()
@pytest.mark.parametrize("asked", [1, 10_000])
@pytest.mark.parametrize("situation", [False, True])
@pytest.mark.parametrize("signals", [None, {"rating": "binary", "valence": "bounded"}])
def test_the_folded_head_equals_answer_sample_and_mean(
    data: SessionDataModule, batch: Batch, asked: int, signals: dict[str, str] | None, situation: bool
) -> None:
    torch.manual_seed(0)
    member = world_model(data, curves=3 * situation, situation=situation).ensemble[0].eval()
    if signals is not None:
        static, shape = data.flat.static_SF.shape[1], member.encoder.config
        member = WorldModelMember(shape, signals, 3, static, data.embedding_KE).eval()
    for weight in member.parameters():
        weight.add_(0.3 * torch.randn_like(weight))
    h_GD, u_G4 = member.encoder.at(batch, batch.valid_BL), torch.rand(int(batch.valid_BL.sum()), 4)
    track_G = torch.randint(data.tracks, (len(h_GD),))
    targets = [("valence", 0.3), ("rating", 1.0)]
    head = FoldedHead(member, ["engagement", "rated", "rating", "left"], targets, asked)
    found_GV = head.respond(h_GD, track_G, u_G4)
    params = member.answer(h_GD, member.candidates(track_G))
    shown, mean = sample_feedback(member, params, u_G4), member.means(params)
    mean |= {distance_to(x, to): member.kinds[x].distance(params[x], to) for x, to in targets}
    assert sorted(head.expected) == sorted(mean)
    found = dict(zip(head.drawn, found_GV.unbind(1), strict=False))
    assert set(found) == {"rated", "rating", "left"} | set(signals or ["engagement"]) - {"valence"}
    if signals is None:
        same = (found["engagement"] - shown.engagement_B).abs() < 1e-4
        assert same.float().mean() > 0.99  # rounding picks another component now and then
    rating_G = found["rating"].where(found["rated"] > 0.5, torch.nan)
    assert ((rating_G == shown.rating_B) | (rating_G.isnan() & shown.rating_B.isnan())).float().mean() > 0.99
    assert ((found["left"] > 0.5) == shown.left_B).float().mean() > 0.99
    for name, column in zip(head.expected, found_GV[:, len(head.drawn) :].unbind(1), strict=True):
        torch.testing.assert_close(column, mean[name], **CLOSE)
