"""The world model: what it may see, that one head answers all questions, and what its loss counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_logs import METADATA, letters, opened, random_log, session, world_model, write

from amrs.batches import Batch
from amrs.config.groups import ModelConfig
from amrs.config.stages import WorldModelConfig
from amrs.data import SessionDataModule
from amrs.logs.histories import BLIND_TO, LABELS, TARGETS, static_names
from amrs.logs.splits import TRAIN
from amrs.models.curves import Curves
from amrs.models.summaries import RATIOS
from amrs.models.world_model import masked_sums
from amrs.stages.world_model import build, few_passes, label_counts, label_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"), history=9)


def one(folder: Path, **last: Any) -> SessionDataModule:
    rows = [session("p", 1, "ab", mode="calm", post_valence=0.9, engagement=[0.1, 0.9])]
    rows += [session("p", 9, "cde", **{"engagement": [0.2, 0.3, 0.4], "mode": "calm", **last})]
    return opened(write(folder, [*rows, session("q", 1, "a"), session("r", 1, "a")], letters()))


def test_the_report_of_the_current_session_is_never_an_input(tmp_path: Path) -> None:
    """Nor is how it ended: every answer inside the session is the same whatever was reported."""
    given = [{}, {"post_valence": 0.1, "post_arousal": 0.9, "ended": "left"}, {"post_valence": 0.8}]
    logs = [one(tmp_path / str(k), **columns) for k, columns in enumerate(given)]
    model = world_model(logs[0])
    window = torch.tensor([[0, 7, 0]])
    h = [model.ensemble[0].encoder(log.gather(window)) for log in logs]
    assert torch.equal(h[0], h[1]) and torch.equal(h[0], h[2])


def test_a_track_report_is_seen_after_its_track_and_not_before(tmp_path: Path) -> None:
    logs = [one(tmp_path / str(v), track_valence=[None, v, None]) for v in (0.1, 0.9)]
    model = world_model(logs[0])
    a, b = (model.ensemble[0].encoder(log.gather(torch.tensor([[0, 7, 0]])))[0] for log in logs)
    assert torch.equal(a[:5], b[:5])  # up to and including c, which asks about d
    assert not torch.allclose(a[5:], b[5:])


def test_feedback_to_a_track_is_no_input_to_its_own_prediction(tmp_path: Path) -> None:
    logs = [one(tmp_path / str(v), engagement=[0.2, v, 0.4], rating=[None, int(v), None]) for v in (0.0, 1.0)]
    model = world_model(logs[0])
    a, b = (model.ensemble[0].encoder(log.gather(torch.tensor([[0, 7, 0]])))[0] for log in logs)
    assert torch.equal(a[:5], b[:5])


@torch.inference_mode()
@pytest.mark.parametrize("settings", [{}, {"width": 12}, {"curves": 7}, {"situation": True, "curves": 2}])
def test_scoring_a_catalogue_equals_answering_for_each_track(
    data: SessionDataModule, settings: dict[str, Any]
) -> None:
    member = world_model(data, **settings).ensemble[0]
    for layer in member.linear_layers:
        torch.nn.init.normal_(layer.weight, std=0.1)
    h_BD = torch.randn(5, member.encoder.size)
    score = member.score(h_BD, member.candidates())
    for k in range(data.tracks):
        answer = member.answer(h_BD, member.candidates(torch.full((5,), k)))
        for name in answer:
            torch.testing.assert_close(score[name][:, k], answer[name], atol=1e-5, rtol=1e-4)
    some = torch.tensor([[1, 2, 3]] * 5)
    several = member.answer(h_BD[:, None], member.candidates(some))
    torch.testing.assert_close(several["valence"], score["valence"][:, 1:4], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_track_by_itself_moves_what_follows_its_play_and_no_report(data: SessionDataModule) -> None:
    """A report is of a whole session: the last track, the only one with a label, must not stand for all."""
    member = world_model(data, curves=3, situation=True).ensemble[0]
    h_BD, track_B = torch.randn(5, member.encoder.size), torch.arange(5)
    for layer in (member.track_linear, member.cross_linear, member.situation_linear):
        before = member.answer(h_BD, member.candidates(track_B))
        torch.nn.init.normal_(layer.weight)
        after = member.answer(h_BD, member.candidates(track_B))
        moved = {name for name in after if not torch.equal(before[name], after[name])}
        assert moved == {"engagement", "rating", "left", "rated", "reported"}


def test_curves_are_a_gaussian_kernel() -> None:
    """Their inner product is exp(-d^2 / 2 w^2) at distance d, with w half the root of the channels."""
    x_NE = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)) * 0.7
    found = Curves(4, 40_000)(x_NE)
    expected = (-(torch.cdist(x_NE, x_NE) ** 2) / 2).exp()
    torch.testing.assert_close(found @ found.T / 40_000, expected, atol=0.03, rtol=0)


def test_the_situation_is_the_logged_context_and_nothing_where_it_is_not_asked_for(
    data: SessionDataModule,
) -> None:
    plain, situated = (build(1, 2, ModelConfig(width=16), data, (), 0, asked) for asked in (False, True))
    (member,) = situated.ensemble
    names = static_names(*(getattr(data.log.metadata, x) for x in ("modes", "cohorts", "context")))
    assert [names[k - RATIOS] for k in member.situation] == ["context_noise"]
    assert not [name for name in plain.state_dict() if "situation" in name or "curves" in name]


@torch.inference_mode()
def test_masked_sums_equal_a_loop_over_labels(data: SessionDataModule) -> None:
    member = world_model(data).ensemble[0]
    batch = data.gather(data.windows(TRAIN))
    h_BLD = member.encoder(batch)
    slow = dict.fromkeys(LABELS, 0.0)
    for b, n in torch.nonzero(batch.counts_BL).tolist():
        h_1D = h_BLD[b, n : n + 1]
        if batch.next_track_BL[b, n] >= 0:
            params = member.answer(h_1D, member.candidates(batch.next_track_BL[b, n : n + 1]))
            for y, name in enumerate(TARGETS):
                value = batch.target_BLY[b, n, y]
                if not value.isnan():
                    slow[name] += float(member.kinds[name].nll(params[name][0], value))
        ended = bool(batch.step_BL[b, n] > 0)
        params, moment = member.at_moment(h_1D, ended), "end" if ended else "start"
        for c, name in enumerate(("valence", "arousal")):
            value = batch.report_BL2[b, n, c]
            if not value.isnan():
                slow[f"{moment}_{name}"] += float(member.kinds[name].nll(params[name][0], value))
    found = dict(zip(LABELS, masked_sums(member, batch).tolist(), strict=True))
    assert found == pytest.approx(slow, rel=1e-4)
    assert all(value != 0 for name, value in found.items() if name != "play")


def test_sums_do_not_depend_on_how_windows_are_batched(data: SessionDataModule) -> None:
    member, window_W3 = world_model(data).ensemble[0], data.windows(TRAIN)
    together = masked_sums(member, data.gather(window_W3))
    apart = sum(masked_sums(member, data.gather(part)) for part in window_W3.split(1))
    assert isinstance(apart, torch.Tensor)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-3)


def test_uncounted_targets_and_padding_add_nothing(data: SessionDataModule) -> None:
    member, batch = world_model(data).ensemble[0], data.gather(data.windows(TRAIN))
    target, report = batch.target_BLY.clone(), batch.report_BL2.clone()
    assert (batch.valid_BL & ~batch.counts_BL).any() and (~batch.valid_BL).any()
    target[~batch.counts_BL] = report[~batch.counts_BL] = 0.123
    changed = batch._replace(target_BLY=target, report_BL2=report)
    assert torch.equal(masked_sums(member, batch), masked_sums(member, changed))
    assert torch.equal(label_counts(batch), label_counts(changed))


def test_validation_counts_are_those_of_the_normaliser(data: SessionDataModule) -> None:
    window_W3 = data.windows(TRAIN)
    assert label_counts(data.gather(window_W3)).tolist() == data.label_counts(window_W3).sum(0).tolist()


def test_an_undeclared_signal_is_not_learned(tmp_path: Path) -> None:
    only = replace(METADATA, signals={"rating": "binary"})
    rows = [session(u, 1, "ab", rating=[1, None]) for u in "pqr"]
    data = opened(write(tmp_path / "log", rows, letters(), only))
    model, batch = world_model(data), data.gather(data.windows(TRAIN))
    sums = dict(zip(LABELS, masked_sums(model.ensemble[0], batch).tolist(), strict=True))
    assert sums["rating"] > 0 and sums["engagement"] == sums["end_valence"] == 0
    masked_sums(model.ensemble[0], batch).sum().backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == [], "several processes would wait for these gradients"


def test_the_ensemble_mean_is_the_mean_of_means(data: SessionDataModule) -> None:
    model, batch = world_model(data, members=3), data.gather(data.windows(TRAIN))
    at_BL = batch.next_track_BL >= 0
    params = model.predict(batch, at_BL, "track")["valence"]
    kind = model.ensemble[0].kinds["valence"]
    by_hand = sum(kind.mean(p) for p in params) / 3
    assert len(params) == 3 and not torch.allclose(params[0], params[1])
    torch.testing.assert_close(model.mean("valence", params), by_hand)


def test_sixteen_bit_training_takes_the_same_loss(data: SessionDataModule) -> None:
    member, batch = world_model(data).ensemble[0], data.gather(data.windows(TRAIN))
    with torch.autocast("cpu", torch.bfloat16):
        rough = masked_sums(member, batch)
    torch.testing.assert_close(rough, masked_sums(member, batch), rtol=0.1, atol=1.0)


@pytest.mark.parametrize("blind_to", [name for name in BLIND_TO if name != "levels"])
def test_a_model_without_an_input_answers_the_same_whatever_it_is(tmp_path: Path, blind_to: str) -> None:
    """Masked by name, the input moves no prediction; a model that reads it is moved."""
    data = opened(random_log(tmp_path / "log"))
    names = static_names(*(getattr(data.log.metadata, x) for x in ("modes", "cohorts", "context")))
    row = data.flat.length_S.argmax()[None]
    label_row = data.prefix(row, data.flat.length_S[row] - 1)
    changed = _changed(label_row, blind_to, names)
    for without, same in (((blind_to,), True), ((), False)):
        torch.manual_seed(0)
        model = build(1, 2, ModelConfig(width=16, layers=1, dropout=0.0), data, without).eval()
        member = model.ensemble[0]
        for layer in member.linear_layers:
            torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(member.head.weight)
        last_BL = torch.zeros_like(label_row.valid_BL)
        last_BL[0, int(label_row.valid_BL.sum()) - 1] = True
        one, two = (model.predict(batch, last_BL, "track")["valence"][0] for batch in (label_row, changed))
        assert torch.equal(one, two) == same


def _changed(batch: Batch, name: str, names: list[str]) -> Batch:
    """The batch with one kind of input replaced by something else."""
    static = batch.static_BLF.clone()
    hit = [k for k, column in enumerate(names) if column.startswith(BLIND_TO[name] or ("nothing",))]
    static[..., hit] = 0.123
    batch = batch._replace(static_BLF=static)
    if name == "past_feedback":
        batch = batch._replace(feedback_BL4=torch.full_like(batch.feedback_BL4, 0.9))
    if name in ("past_tracks", "track_embeddings"):
        batch = batch._replace(track_BL=batch.track_BL.where(batch.track_BL < 0, 1))
    if name == "track_embeddings":
        batch = batch._replace(next_track_BL=torch.full_like(batch.next_track_BL, 2))
    return batch


def test_a_model_of_one_signal_is_trained_on_its_labels_alone() -> None:
    weights = label_weights("valence")
    assert {name for name, weight in weights.items() if weight > 0} == {
        "valence", "start_valence", "end_valence"
    }  # fmt: skip
    assert label_weights(None)["rating"] == 1 and label_weights(None)["play"] == 0


def test_few_users_are_passed_64_times_at_most() -> None:
    """27 windows, 32 a step: 64 passes are 54 steps. A thousand users take all that they are given."""
    section = WorldModelConfig(batch_size=32, max_steps=300)
    assert [few_passes(section, windows).max_steps for windows in (0, 27, 1100)] == [1, 54, 300]
