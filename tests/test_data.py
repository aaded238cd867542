"""Histories, windows, batches and their counts, by hand and against slow loops."""

import itertools
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from slow_truth import picked
from tiny_logs import METADATA, letters, opened, random_log, session, write
from torch import Tensor

from amrs.batches import Batch, StepBatches
from amrs.config.data import SplitConfig
from amrs.data import SessionDataModule
from amrs.logs.histories import LABELS, TARGETS, flatten, played_before
from amrs.logs.mapped import open_flat
from amrs.logs.schema import read_log, write_log
from amrs.logs.splits import TEST, TRAIN, VALIDATION, TooFewUsersError

NAN = float("nan")


def hand(folder: Path, **second: Any) -> SessionDataModule:
    """User p has sessions ab and cde (changed by `second`), q has d, r has e."""
    rows = [
        session("p", 1, "ab", mode="calm", engagement=[0.5, 1.0], rating=[1, None], post_valence=0.9,
                ended="completed", utc_offset_min=300, cohort="well"),
        session("p", 9, "cde", **{"mode": "energize", "engagement": [None, 0.25, 0.0], "rating": [None, 0, 1],
                "track_valence": [0.1, None, 0.3], "pre_valence": 0.4, "post_arousal": 0.7, "ended": "left",
                "context": [2.5], **second}),
        session("q", 2, "d", post_valence=0.0),
        session("r", 3, "e"),
    ]  # fmt: skip
    return opened(write(folder, rows, letters()))


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), atol=1e-6, rtol=0, equal_nan=True)


def test_a_history_is_a_start_token_a_session_and_a_token_a_play(tmp_path: Path) -> None:
    flat = hand(tmp_path / "log").flat
    assert flat.track_N.tolist() == [-1, 0, 1, -1, 2, 3, 4, -1, 3, -1, 4]
    assert flat.step_N.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 0, 1]
    assert flat.next_track_N.tolist() == [0, 1, -1, 2, 3, 4, -1, 3, -1, 4, -1]
    assert flat.user_first_U.tolist() == [0, 7, 9] and flat.user_last_U.tolist() == [7, 9, 11]
    assert flat.first_S.tolist() == [0, 3, 7, 9] and flat.row_U.tolist() == [0, 2, 3]


def test_a_play_token_holds_the_feedback_to_its_own_track(tmp_path: Path) -> None:
    flat = hand(tmp_path / "log").flat
    assert same(flat.feedback_N4[4], torch.tensor([NAN, NAN, 0.1, NAN]))
    assert same(flat.feedback_N4[5], torch.tensor([0.25, 0.0, NAN, NAN]))
    assert flat.feedback_N4[[0, 3, 7, 9]].isnan().all()


def test_a_report_on_the_last_track_is_not_read_where_a_final_one_is_asked_for(tmp_path: Path) -> None:
    both = {"track_valence": [0.1, None, 0.3], "track_arousal": [0.2, None, 0.6], "post_valence": 0.35}
    flat = hand(tmp_path / "log", **{**both, "post_arousal": None}).flat
    assert same(flat.feedback_N4[4, 2:], torch.tensor([0.1, 0.2]))
    assert same(flat.feedback_N4[6, 2:], torch.tensor([NAN, 0.6]))
    assert same(flat.target_NY[5, 2:4], torch.tensor([0.35, 0.6]))


def test_targets_at_a_token_are_about_the_play_after_it(tmp_path: Path) -> None:
    target_NY = hand(tmp_path / "log").flat.target_NY
    assert TARGETS == ("engagement", "rating", "valence", "arousal", "left", "rated", "reported")
    expected = [
        [0.5, 1, NAN, NAN, 0, 1, NAN],  # a comes
        [1.0, NAN, 0.9, NAN, 0, 0, 1],  # b is the last: the session's report, completed
        [NAN] * 7,  # nothing follows in the session
        [NAN, NAN, 0.1, NAN, 0, 0, NAN],  # c, with a report after it
        [0.25, 0, NAN, NAN, 0, 1, NAN],
        [0.0, 1, 0.3, 0.7, 1, 1, 1],  # e is the last: valence after the track, arousal of the session, left
        [NAN] * 7,
        [NAN, NAN, 0.0, NAN, NAN, 0, 1],  # d of q: how it ended is unknown
        [NAN] * 7,
        [NAN, NAN, NAN, NAN, NAN, 0, 0],  # e of r: no report was given
        [NAN] * 7,
    ]
    assert same(target_NY, torch.tensor(expected))


def test_session_features_by_hand(tmp_path: Path) -> None:
    static_SF = hand(tmp_path / "log").flat.static_SF
    angle = 6 / 24 * 2 * math.pi  # one o'clock UTC is six o'clock five hours east
    first = [0, 1, 0, 1, NAN, NAN, math.sin(angle), math.cos(angle), NAN, 0, *[NAN] * 10]
    second = [1, 0, 0, 0, 0.4, NAN, NAN, NAN, math.log(9), math.log(2),
              NAN, NAN, 0.9, NAN, 0,  # the session before: its reports, and that nobody left
              NAN, NAN, 0.9, NAN, 2.5]  # means of all earlier reports, context  # fmt: skip
    assert same(static_SF[:2], torch.tensor([first, second]))
    assert static_SF[2, 10:].isnan().all(), "another user's session is no predecessor"


def test_means_of_earlier_reports_equal_a_loop(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log", users=30))
    flat, names = data.flat, 4
    reports_S4 = torch.cat([flat.pre_report_S2, flat.report_S2], 1)
    means_S4 = flat.static_SF[:, -1 - names : -1]
    for s in range(len(flat.mode_S)):
        earlier = reports_S4[int(flat.row_U[flat.user_S[s]]) : s]
        assert same(means_S4[s], earlier.nanmean(0)), s


@pytest.mark.parametrize(
    "changed",
    [{"post_valence": 0.2, "post_arousal": 0.1}, {"ended": "completed"}, {"engagement": [1.0, 1.0, 1.0]},
     {"track_valence": [0.9, 0.9, 0.9]}, {"track_id": list("fbd")}],
)  # fmt: skip
def test_nothing_of_a_session_is_known_when_it_starts(tmp_path: Path, changed: dict[str, Any]) -> None:
    before, after = hand(tmp_path / "a"), hand(tmp_path / "b", **changed)
    row = torch.tensor([1])
    for name in ("static_BLF", "track_BL", "feedback_BL4"):
        assert same(getattr(before.prefix(row), name), getattr(after.prefix(row), name))
    assert same(before.flat.static_SF, after.flat.static_SF)


def test_windows_count_every_token_once_with_half_a_window_before_it(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log", users=20), history=9)
    seen: Counter[int] = Counter()
    window_W3 = torch.cat([data.windows(part) for part in (TRAIN, VALIDATION, TEST)])
    starts, ends = data.flat.user_first_U.tolist(), data.flat.user_last_U.tolist()
    for begin, end, counted in window_W3.tolist():
        assert 0 < end - begin <= 9 and begin <= counted < end
        user = next(u for u, last in enumerate(ends) if begin < last)
        assert starts[user] <= begin and end <= ends[user]
        assert begin == starts[user] or counted - begin >= 4
        seen.update(range(counted, end))
    assert seen == dict.fromkeys(range(len(data.flat.track_N)), 1)


@pytest.mark.parametrize("history", [8, 9, 64])
def test_label_counts_equal_a_loop_over_the_batch(tmp_path: Path, history: int) -> None:
    data = opened(random_log(tmp_path / "log"), history=history)
    window_W3 = data.windows(TRAIN)
    batch = data.gather(window_W3)
    for w in range(len(window_W3)):
        slow = dict.fromkeys(LABELS, 0)
        for n in torch.nonzero(batch.counts_BL[w])[:, 0].tolist():
            for y, name in enumerate(TARGETS):
                slow[name] += not bool(batch.target_BLY[w, n, y].isnan())
            moment = "end" if batch.step_BL[w, n] else "start"
            for c, name in enumerate(("valence", "arousal")):
                slow[f"{moment}_{name}"] += not bool(batch.report_BL2[w, n, c].isnan())
            slow["play"] += bool(batch.next_track_BL[w, n] >= 0)
        assert data.label_counts(window_W3)[w].tolist() == list(slow.values())


def test_final_reports_stand_at_a_sessions_start_and_last_play_only(tmp_path: Path) -> None:
    data = hand(tmp_path / "log")
    report_L2 = data.gather(torch.tensor([[0, 7, 0]])).report_BL2[0]
    assert (~report_L2.isnan()).tolist() == [
        [True, False], [False] * 2, [True, False], [False, True], [False] * 2, [False] * 2, [False, True],
    ]  # fmt: skip


def test_padding_and_company_do_not_change_a_window(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log"), history=8)
    window_W3 = data.windows(TRAIN)
    together = data.gather(window_W3)
    for w in range(len(window_W3)):
        alone = data.gather(window_W3[w : w + 1])
        length = alone.valid_BL.shape[1]
        assert together.user_B[w] == alone.user_B[0]
        for name in alone._fields[:-2]:
            assert same(getattr(together, name)[w, :length], getattr(alone, name)[0]), name
        assert not together.valid_BL[w, length:].any() and not together.counts_BL[w, length:].any()
        assert together.target_BLY[w, length:].isnan().all()


def test_a_prefix_ends_before_the_play_that_is_asked_about(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log"), history=8)
    flat = data.flat
    for row in range(len(flat.length_S)):
        for step in range(int(flat.length_S[row]) + 1):
            batch = data.prefix(torch.tensor([row]), torch.tensor([step]))
            asks = int(flat.first_S[row]) + step
            begin = max(int(flat.user_first_U[flat.user_S[row]]), asks - 7)
            assert batch.track_BL[0].tolist() == flat.track_N[begin : asks + 1].tolist()
            assert same(batch.feedback_BL4[0], flat.feedback_N4[begin : asks + 1])
            assert batch.counts_BL[0].tolist() == [False] * (asks - begin) + [True]


def test_hiding_the_own_feedback_keeps_the_own_tracks_and_earlier_feedback(tmp_path: Path) -> None:
    batch = hand(tmp_path / "log").prefix(torch.tensor([1, 0]), torch.tensor([2, 1]), hide_own=True)
    assert batch.track_BL.tolist() == [[-1, 0, 1, -1, 2, 3], [-1, 0, -1, -1, -1, -1]]
    assert batch.hidden_BL.tolist() == [[False] * 4 + [True] * 2, [False, True] + [False] * 4]
    assert batch.feedback_BL4[0, 1, 0] == 0.5
    assert batch.feedback_BL4[0, 3:].isnan().all() and batch.feedback_BL4[1].isnan().all()


def test_hidden_sessions_are_hidden_whole_and_still_learned_from(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log", users=60), history=32, hide_feedback=0.3)
    window_W3 = data.windows(TRAIN)
    shown, batch = data.gather(window_W3), data.gather(window_W3, hidden_seed=5)
    assert batch.feedback_BL4[batch.hidden_BL].isnan().all()
    assert same(batch.feedback_BL4[~batch.hidden_BL], shown.feedback_BL4[~batch.hidden_BL])
    assert same(batch.target_BLY, shown.target_BLY)
    assert not batch.hidden_BL[batch.step_BL == 0].any()
    session_hidden = batch.hidden_BL[batch.step_BL == 1]
    assert abs(session_hidden.float().mean() - 0.3) < 4 * (0.21 / len(session_hidden)) ** 0.5
    later_BL = batch.step_BL[:, 1:] > 1
    assert torch.equal(batch.hidden_BL[:, 1:][later_BL], batch.hidden_BL[:, :-1][later_BL])


def test_played_before_equals_a_loop(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log"))
    flat = data.flat
    asked = [(s, k) for s in range(len(flat.length_S)) for k in range(int(flat.length_S[s]) + 1)]
    row_B, step_B = torch.tensor(asked).T
    for (s, k), played_T in zip(asked, played_before(flat, row_B, step_B).tolist(), strict=True):
        first = int(flat.first_S[s]) + 1
        assert [x for x in played_T if x >= 0] == flat.track_N[first : first + k].tolist()


def test_labeller_and_judge_share_no_user_and_no_part_shares_one(tmp_path: Path) -> None:
    folder = random_log(tmp_path / "log", users=30)
    everyone, labeller, judge = (opened(folder, users=who) for who in ("all", "labeller", "judge"))
    for part, size in ((TRAIN, 24), (VALIDATION, 3), (TEST, 3)):
        halves = torch.cat([labeller.users(part), judge.users(part)])
        assert halves.sort().values.tolist() == everyone.users(part).tolist() and len(halves) == size
        assert torch.equal(everyone.flat.user_S[everyone.rows(part)].unique(), everyone.users(part))
    sessions = torch.cat([everyone.rows(part) for part in (TRAIN, VALIDATION, TEST)])
    assert sessions.sort().values.tolist() == list(range(len(everyone.flat.mode_S)))


def test_a_log_too_small_for_a_judge_is_refused_in_words(tmp_path: Path) -> None:
    folder = random_log(tmp_path / "log", users=9)
    with pytest.raises(TooFewUsersError, match="no validation user is left"):
        opened(folder, users="judge")


def test_plays_count_the_parts_users_only(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log"))
    users = set(data.users(TRAIN).tolist())
    slow = Counter(
        int(track)
        for track, s in zip(data.flat.track_N, data.flat.session_N, strict=True)
        if track >= 0 and int(data.flat.user_S[s]) in users
    )
    assert data.plays(TRAIN).tolist() == [slow[k] for k in range(data.tracks)]


def test_rules_read_the_catalogues_modes(tmp_path: Path) -> None:
    rows = [session(u, 1, "a") for u in "pqr"]
    data = opened(write(tmp_path / "log", rows, letters(4, {"b": ["calm"], "d": ["energize", "calm"]})))
    assert METADATA.modes == ("energize", "calm")
    assert data.rules().mode_MK.tolist() == [
        [True, False, True, True], [True] * 4, [True] * 4,
    ]  # fmt: skip


class Dealt(NamedTuple):
    units: Tensor
    share: float


def dealt(ranks: int, accumulate: int, steps: int, start: int = 0) -> list[list[Dealt]]:
    """Micro-batches of all ranks by step."""
    streams = [
        iter(StepBatches(10, 7, 3, lambda mine, step, deals, s: [Dealt(mine[0], step.shape[1] / deals)],
                         ranks, rank, accumulate, start))
        for rank in range(ranks)
    ]  # fmt: skip
    return [[next(s) for _ in range(accumulate) for s in streams] for _ in range(steps)]  # type: ignore[misc]


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3), (7, 1)])
def test_ranks_and_accumulation_share_the_same_steps(ranks: int, accumulate: int) -> None:
    for mine, whole in zip(dealt(ranks, accumulate, 6), dealt(1, 1, 6), strict=True):
        assert (
            torch.cat([d.units for d in mine]).sort().values.tolist() == whole[0].units.sort().values.tolist()
        )
        # Lightning divides by accumulation steps, DDP averages over ranks.
        loss = sum(float(d.units.double().sum()) / d.share for d in mine) / (ranks * accumulate)
        assert loss == pytest.approx(float(whole[0].units.double().mean()))


def test_every_epoch_takes_each_unit_once_in_a_new_order() -> None:
    stream = torch.cat([d[0].units for d in dealt(1, 1, 20)])
    epochs = stream.reshape(-1, 10)
    assert (epochs.sort(1).values == torch.arange(10)).all()
    assert len({tuple(e) for e in epochs.tolist()}) == len(epochs)


def test_a_resumed_stream_goes_on_where_it_stopped() -> None:
    whole, rest = dealt(1, 2, 6), dealt(1, 2, 4, start=2)
    for a, b in zip(whole[2:], rest, strict=True):
        assert [d.units.tolist() for d in a] == [d.units.tolist() for d in b]


def trainer(**values: int) -> Any:
    return SimpleNamespace(**{"world_size": 1, "global_rank": 0, "accumulate_grad_batches": 1,
                              "global_step": 0, **values})  # fmt: skip


def test_normalisers_are_the_counts_of_the_whole_step(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log", users=30), history=8, batch_size=6)
    data.trainer = trainer(world_size=2, accumulate_grad_batches=2)
    counts_WZ = data.label_counts(data.windows(TRAIN))
    loader = data.train_dataloader()
    for step, batch in zip((0, 0, 1, 1), loader, strict=False):
        whole_Z = counts_WZ[loader.step_units(step)].sum(0)
        assert same(batch.normaliser_Z * 4, whole_Z.clamp(min=1))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_ranks_validate_on_each_window_once_in_equally_many_batches(tmp_path: Path, batch_size: int) -> None:
    data = SessionDataModule(
        random_log(tmp_path / "log", users=30), SplitConfig(validation=0.3), 8, batch_size=batch_size
    )
    windows = len(data.windows(VALIDATION))
    for ranks in (1, 2, 3, windows):
        lengths, counted = set(), 0
        for rank in range(ranks):
            data.trainer = trainer(world_size=ranks, global_rank=rank)
            batches = list(data.val_dataloader())
            lengths.add(len(batches))
            counted += sum(int(batch.counts_BL.sum()) for batch in batches)
            assert all(len(batch.track_BL) > 0 for batch in batches)
        assert len(lengths) == 1
        assert counted == int(data.gather(data.windows(VALIDATION)).counts_BL.sum())


def test_too_many_processes_are_refused_in_words(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log"), batch_size=4)
    data.trainer = trainer(world_size=1000)
    with pytest.raises(ValueError, match="validation users cannot be shared by 1000 processes"):
        data.val_dataloader()
    with pytest.raises(ValueError, match="raise it to 1000 or more"):
        data.train_dataloader()


def test_withheld_tracks_teach_nothing_of_their_plays_and_stay_in_the_history(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log"))
    before, tracks = data.flat.target_NY.clone(), np.arange(data.tracks) % 3 == 0
    feedback = data.flat.feedback_N4.clone()
    next_N = data.flat.next_track_N
    hit_N = (next_N >= 0) & torch.from_numpy(tracks)[next_N.clamp(min=0)]
    data.withhold(tracks)
    columns = [TARGETS.index(name) for name in ("engagement", "rating", "left", "rated")]
    assert data.flat.target_NY[hit_N][:, columns].isnan().all()
    assert torch.equal(data.flat.target_NY[~hit_N].nan_to_num(-1), before[~hit_N].nan_to_num(-1))
    assert torch.equal(data.flat.feedback_N4.nan_to_num(-1), feedback.nan_to_num(-1))
    whole = torch.tensor([[0, len(next_N), 0]])
    assert data.label_counts(whole)[0, :7].tolist() == (~data.flat.target_NY.isnan()).sum(0).tolist()


def test_the_mapped_log_of_many_shards_equals_the_log_in_memory(tmp_path: Path) -> None:
    whole = read_log(random_log(tmp_path / "whole", users=17))
    table = whole.sessions.with_format("arrow")[:]
    ends = [n for n in range(1, len(table)) if table["user_id"][n] != table["user_id"][n - 1]]
    cuts = [0, ends[2], ends[3], ends[9], len(table)]
    shards = [table.slice(a, b - a) for a, b in itertools.pairwise(cuts)]
    write_log(tmp_path / "log", shards, whole.catalogue.with_format("arrow")[:], whole.metadata, "test")
    log = read_log(tmp_path / "log")
    mapped, truth = open_flat(tmp_path / "log", log), flatten(log)
    for name, values in vars(truth).items():
        if name != "user_ids":
            assert torch.equal(getattr(mapped, name).nan_to_num(-9), values.nan_to_num(-9)), name
    assert mapped.user_ids == truth.user_ids


def test_what_is_written_to_a_mapped_log_stays_in_the_process(tmp_path: Path) -> None:
    folder = random_log(tmp_path / "log")
    opened(folder).flat.token_NR.zero_()
    assert (opened(folder).flat.track_N != 0).any()


def test_a_batch_of_slices_equals_rows_picked_one_by_one(tmp_path: Path) -> None:
    data = opened(random_log(tmp_path / "log", users=30), history=8, hide_feedback=0.5)
    window_W3 = torch.cat([data.windows(part) for part in (TRAIN, VALIDATION, TEST)])
    assert int((window_W3[:, 1] - window_W3[:, 0]).min()) < 8
    for part in [*window_W3.split(5), *window_W3.flip(0).split(7)]:
        for field, fast, slow in zip(Batch._fields, data.gather(part, 3), picked(data, part, 3), strict=True):
            assert same(fast, slow), field


@pytest.mark.parametrize(("ranks", "accumulate", "start"), [(1, 1, 0), (2, 1, 3), (1, 3, 1), (2, 2, 0)])
def test_steps_gathered_together_equal_rows_picked_step_by_step(
    tmp_path: Path, ranks: int, accumulate: int, start: int
) -> None:
    data = opened(random_log(tmp_path / "log", users=30), history=40, batch_size=7, hide_feedback=0.5)
    window_W3, deals = data.windows(TRAIN), ranks * accumulate
    units, collate = data._units(TRAIN)
    steps, lengths = StepBatches(units, 7, data.seed, collate), set()
    for together, rank in itertools.product((1, 4), range(ranks)):
        stream = StepBatches(units, 7, data.seed, collate, ranks, rank, accumulate, start, together)
        for n, batch in enumerate(itertools.islice(stream, 9 * accumulate)):
            step, micro = start + n // accumulate, n % accumulate
            step_W3 = window_W3[steps.step_units(step)]
            slow = picked(data, step_W3[micro * ranks + rank :: deals], step)
            whole_Z = data.label_counts(step_W3).sum(0).clamp(min=1) / deals
            for field, a, b in zip(Batch._fields, batch, slow._replace(normaliser_Z=whole_Z), strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape and same(a, b), field
            lengths.add(batch.valid_BL.shape[1])
    assert len(lengths) > 1


def test_an_epoch_of_steps_takes_every_unit_once() -> None:
    batches = StepBatches(10, 4, 0, lambda *_: None)  # type: ignore[arg-type, return-value]
    units = torch.cat([batches.step_units(step) for step in range(5)])
    assert units[:10].sort().values.tolist() == units[10:].sort().values.tolist() == list(range(10))
    again = StepBatches(10, 4, 0, lambda *_: None)  # type: ignore[arg-type, return-value]
    assert torch.equal(again.step_units(4), units[16:]) and units[:10].tolist() != units[10:].tolist()
