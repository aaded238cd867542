"""The history encoder: causal, blind to padding, and the same token by token."""

import math

import pytest
import torch
from tiny_logs import opened, random_log, shape

from amrs.batches import Batch
from amrs.data import SessionDataModule
from amrs.logs.splits import TRAIN
from amrs.models.packed import Packed
from amrs.models.summaries import DECAY, SHARE, summarise
from amrs.models.transformer import Block, HistoryEncoder

POSITIONS = ("none", "learned", "rope")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"))


def encoder(data: SessionDataModule, positions: str, layers: int = 2) -> HistoryEncoder:
    torch.manual_seed(0)
    made = HistoryEncoder(
        shape(positions=positions, layers=layers), data.flat.static_SF.shape[1], data.embedding_KE
    )
    made.fit_statistics(data.flat.static_SF[data.rows(TRAIN)])
    return made.eval()


def whole(data: SessionDataModule) -> Batch:
    return data.gather(data.windows(TRAIN))


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_future_never_changes_the_past(data: SessionDataModule, positions: str) -> None:
    model, batch = encoder(data, positions), whole(data)
    cut = 7
    names = ("track_BL", "feedback_BL4", "static_BLF")
    changed = batch._replace(**{name: getattr(batch, name).clone() for name in names})
    changed.track_BL[:, cut:], changed.feedback_BL4[:, cut:], changed.static_BLF[:, cut:] = 3, 0.5, 7.0
    before, after = model(batch), model(changed)
    assert torch.equal(before[:, :cut], after[:, :cut])
    assert not torch.allclose(before[:, cut], after[:, cut])


@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_and_batch_size_do_not_matter(data: SessionDataModule, positions: str) -> None:
    model, window_W3 = encoder(data, positions), data.windows(TRAIN)
    together = model(whole(data))
    for w in range(len(window_W3)):
        alone = model(data.gather(window_W3[w : w + 1]))[0]
        torch.testing.assert_close(together[w, : len(alone)], alone, **CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("positions", POSITIONS)
def test_appending_play_by_play_equals_reading_at_once(data: SessionDataModule, positions: str) -> None:
    """Listeners of different history lengths; the same number of plays of their own session is added."""
    model, flat, added = encoder(data, positions), data.flat, 4
    row_B = torch.nonzero(flat.length_S >= added)[:, 0]
    start = data.prefix(row_B, length=16 - added)
    assert len(start.valid_BL.sum(1).unique()) > 2
    h_BD, cache = model.prefill(start, added)
    for k in range(added + 1):
        if k:
            token_B = flat.first_S[row_B] + k
            static_BF = model.standardised(flat.static_SF[row_B])
            h_BD = model.append(static_BF, flat.track_N[token_B], flat.feedback_N4[token_B], cache)
        whole = data.prefix(row_B, k, length=16 - added + k)
        slow = model(whole)[torch.arange(len(row_B)), whole.valid_BL.sum(1) - 1]
        torch.testing.assert_close(h_BD, slow, **CLOSE)


@torch.inference_mode()
def test_appending_across_a_sessions_start_equals_reading_at_once(data: SessionDataModule) -> None:
    model, flat = encoder(data, "none"), data.flat
    row = flat.row_U[0]
    first, last = int(flat.first_S[row]), int(flat.user_last_U[0])
    assert (flat.track_N[first + 1 : last] < 0).any(), "the first listener came once"
    h_BD, cache = model.prefill(data.prefix(row[None]), last - first)
    for token in range(first + 1, last):
        index = torch.tensor([token])
        static_BF = model.standardised(flat.static_SF[flat.session_N[index]])
        h_BD = model.append(static_BF, flat.track_N[index], flat.feedback_N4[index], cache)
        window = torch.tensor([[first, token + 1, first]])
        torch.testing.assert_close(h_BD, model(data.gather(window))[:, -1], **CLOSE)


@torch.inference_mode()
def test_attention_tells_positions_apart_only_where_they_are_encoded() -> None:
    """Without positions the last token sees a set; with rotary ones a sequence, whatever its offset."""
    x, order, position = torch.randn(1, 6, 16), torch.tensor([2, 0, 4, 1, 3, 5]), torch.arange(6)[None]
    for positions, alike in (("none", True), ("rope", False)):
        torch.manual_seed(0)
        block = Block(shape(positions=positions)).eval()
        whole = Packed((1, 6), None)
        before = block(x[0], whole, position)[0]
        assert torch.allclose(before[-1], block(x[0, order], whole, position)[0][-1], atol=1e-5) == alike
        torch.testing.assert_close(before, block(x[0], whole, position + 9)[0], **CLOSE)


@torch.inference_mode()
def test_missing_feedback_and_features_are_told_from_a_middling_value(data: SessionDataModule) -> None:
    model, batch = encoder(data, "none"), data.gather(torch.tensor([[0, 2, 0]]))
    static = model.static_mean.expand(batch.static_BLF.shape).clone()
    base = batch._replace(static_BLF=static, feedback_BL4=torch.full_like(batch.feedback_BL4, 0.5))
    found = [model(base)]
    for c in range(4):
        feedback = base.feedback_BL4.clone()
        feedback[..., c] = torch.nan
        found.append(model(base._replace(feedback_BL4=feedback)))
    static = static.clone()
    static[..., 0] = torch.nan
    found += [
        model(base._replace(static_BLF=static)),
        model(base._replace(hidden_BL=torch.ones(1, 2).bool())),
    ]
    for i, a in enumerate(found):
        assert a.isfinite().all() and not any(torch.allclose(a, b, atol=1e-4) for b in found[:i])


def test_running_summaries_equal_a_loop(data: SessionDataModule) -> None:
    """Means, covariances and what is unusual in this session, from the plays up to each token."""
    model, batch = encoder(data, "none"), data.gather(data.windows(TRAIN))
    summary = summarise(*model.sums(batch), model.embedding_KE.shape[1])
    for n in range(int(batch.valid_BL[0].sum())):
        plays = [k for k in range(n + 1) if batch.track_BL[0, k] >= 0]
        own = plays[len(plays) - int(batch.step_BL[0, n]) :]
        tracks = model.embedding_KE[batch.track_BL[0]]
        values = (2 * batch.feedback_BL4[0] - 1).T
        heard = [[k for k in plays if not value[k].isnan()] for value in values]
        means = [
            float(value[known].sum()) / (len(known) + 3) for value, known in zip(values, heard, strict=True)
        ]
        counts = [math.log1p(len(known)) for known in heard]
        ratios = [math.log1p(len(plays)), means[0], counts[0], means[1], counts[1], *means[2:], counts[2]]
        tastes = [tracks[plays].sum(0) / (len(plays) + 30)]
        for value, known, mean in zip(values[:2], heard, means, strict=False):
            tastes.append(((value[known] - mean)[:, None] * tracks[known]).sum(0) / (len(known) + 30))
        weight = {k: DECAY ** (len(own) - i) for i, k in enumerate(own)}
        ratios.append(math.log1p(sum(weight.values())))
        for value, known, mean in zip(values[:2], heard, means, strict=False):
            here = [k for k in known if k in own]
            unusual = sum(weight[k] * (float(value[k]) - mean) for k in here)
            ratios.append(unusual / (sum(weight[k] for k in here) + 1))
        for value, known in zip(values[:2], heard, strict=False):
            ratios.append(float(value[known].sum()) / (len(known) + 30))
        total = sum((weight[k] * tracks[k] for k in own), torch.zeros(tracks.shape[1]))
        tastes.append(SHARE * total)
        assert summary.ratio_BLR[0, n].tolist() == pytest.approx(ratios, abs=1e-5)
        torch.testing.assert_close(summary.taste_BLTE[0, n], torch.stack(tastes), **CLOSE)


def test_statistics_ignore_missing_values_and_constant_features_do_not_explode(
    data: SessionDataModule,
) -> None:
    model = HistoryEncoder(shape(), 3, data.embedding_KE)
    nan = float("nan")
    model.fit_statistics(torch.tensor([[1.0, 0.0, nan], [3.0, 0.0, nan], [nan, 0.0, nan]]))
    assert model.static_mean.tolist() == [2, 0, 0]
    assert model.static_std.tolist() == [1, 1, 1]


def test_catalogue_is_scaled_by_one_number_whatever_its_offset() -> None:
    torch.manual_seed(0)
    embedding_KE = torch.randn(50, 4) * torch.tensor([1.0, 2.0, 0.5, 1.0])
    plain, moved = (HistoryEncoder(shape(), 2, e) for e in (embedding_KE, 3 * embedding_KE + 100.0))
    torch.testing.assert_close(plain.embedding_KE, moved.embedding_KE, atol=1e-3, rtol=0)
    assert plain.embedding_KE.square().mean().item() == pytest.approx(1)
    ratio = plain.embedding_KE.std(0) / embedding_KE.std(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(4))
