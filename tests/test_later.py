"""Harm after several sessions: slopes by hand, usual effects one by one, and the trap that must be found."""

from pathlib import Path

import numpy as np
import pytest
import torch
from platform_worlds import tracks, world
from tiny_logs import opened, random_log, world_model

from amrs.candidates import candidate_answers
from amrs.data import SessionDataModule
from amrs.outcomes import Sessions
from amrs.rollout import Feedback
from amrs.rules import Rules
from amrs.stress.later import Following, earlier, late_slope, session_effects, usual_effects, valence_to_come

USER_S = np.array([0, 0, 0, 1, 2, 2])


def test_earlier_sessions_are_the_listeners_own() -> None:
    assert earlier(np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), USER_S).tolist() == [0, 1, 3, 0, 0, 16]


def sessions(users: int = 40, each: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reports of listeners with a level of their own and a trend; what they were given hangs on both."""
    random = np.random.default_rng(0)
    user_S, number_S = np.repeat(np.arange(users), each), np.tile(np.arange(each), users)
    level_S, given_S = random.normal(size=users)[user_S], random.normal(size=users * each)
    past_S = earlier(given_S + 0.5 * level_S, user_S) + 0.3 * number_S
    return 0.7 + level_S - 0.1 * number_S - 0.25 * past_S, past_S, user_S


def test_the_slope_is_that_of_later_reports_at_equal_first_reports_and_numbers_of_sessions() -> None:
    report, past, user = sessions()
    found = late_slope(report, past, user)
    assert found is not None and found.value == pytest.approx(-0.25) and found.n == 160
    assert found.low == pytest.approx(-0.25) and found.high == pytest.approx(-0.25)
    report[[7, 10]] = np.nan  # a later session, and a first one
    fewer = late_slope(report, past, user)
    assert fewer is not None and fewer.n == 159


def test_the_late_slope_is_the_coefficient_of_the_whole_regression() -> None:
    report, past, user = sessions()
    random = np.random.default_rng(1)
    report = report + random.normal(size=len(report))
    report[random.random(len(report)) < 0.3] = np.nan
    first = np.searchsorted(user, user)
    rows = [s for s in range(len(user)) if s != first[s] and np.isfinite(report[s])]
    table = [[past[s], 1.0, s - first[s], np.nan_to_num(report[first[s]]), np.isfinite(report[first[s]])]
             for s in rows]  # fmt: skip
    expected = np.linalg.lstsq(np.array(table, float), report[rows], rcond=None)[0][0]
    found = late_slope(report, past, user)
    assert found is not None and found.value == pytest.approx(expected) and found.n == len(rows)


def test_too_little_to_tell_is_no_slope() -> None:
    report, past, user = sessions()
    assert late_slope(np.full(len(report), np.nan), past, user) is None
    assert late_slope(report[:5], past[:5], user[:5]) is None, "four reports, four other predictors"
    assert late_slope(report, 2.0 * (np.arange(len(user)) % 5), user) is None, "all is number"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    folder: Path = tmp_path_factory.mktemp("log") / "log"
    return opened(random_log(folder), history=64)


@torch.inference_mode()
def test_usual_effects_equal_asking_session_by_session(data: SessionDataModule) -> None:
    model, row_S = world_model(data, 2, history=64), torch.arange(len(data.part_S))
    found_MK = usual_effects(model, data, row_S, 0)
    assert len(found_MK) == len(data.log.metadata.modes) + 1
    for mode in (-1, 0, 1):
        row_H = row_S[data.flat.mode_S == mode]
        assert 1 < len(row_H) <= 32, "all of them are asked"
        total_K = torch.zeros(data.tracks)
        for row in row_H:
            answers = candidate_answers(
                model, data, row[None], torch.zeros(1).long(), torch.arange(data.tracks)[None]
            )
            total_K += model.mean("valence", [answer["valence"] for answer in answers])[0]
        torch.testing.assert_close(found_MK[mode], total_K / len(row_H), atol=1e-5, rtol=1e-4)


def test_a_sessions_effect_is_what_its_tracks_gave_beyond_copycats_choices_by_hand() -> None:
    """Mode 0: tracks 2 and 1 (effects 3, 1), means of choices 2 and .5. No mode: track 0 (7), mean 8."""
    effect_MK = torch.tensor([[0.0, 1.0, 3.0], [9.0, 9.0, 9.0], [7.0, 8.0, 9.0]])
    track_ST = torch.tensor([[2, 1], [0, -1]])
    choice_STC = torch.tensor([[[1, 2], [0, 1]], [[0, 2], [-1, -1]]])
    found = session_effects(effect_MK, torch.tensor([0, -1]), track_ST, choice_STC)
    assert found.tolist() == [(3 - 2) + (1 - 0.5), 7 - 8]


def test_who_feels_well_may_be_played_other_music_without_hiding_harm() -> None:
    """What is played hangs on the listener's level, and there is harm: beyond the expected choice the slope
    is right, of all that was played it is hidden."""
    random = np.random.default_rng(0)
    user_S = np.repeat(np.arange(300), 9)
    level_S, luck_S = random.normal(size=300)[user_S], random.normal(size=300 * 9)
    report_S = level_S - 0.1 * earlier(luck_S + 0.3 * level_S, user_S) + random.normal(size=300 * 9)
    right, hidden = (late_slope(report_S, earlier(e_S, user_S), user_S)
                     for e_S in (luck_S, luck_S + 0.3 * level_S))  # fmt: skip
    assert right is not None and right.low is not None and right.high is not None
    assert right.low < -0.1 < right.high < 0
    assert hidden is not None and hidden.value > right.value + 0.03


@pytest.mark.parametrize(("variant", "paid"), [("late_harm", True), (None, False)])
def test_tracks_true_valence_shows_late_harm_and_nothing_else(variant: str | None, paid: bool) -> None:
    platform, log = world(users=200, seed=3, variant=variant)
    track_ST = tracks(log)
    value_ST = (
        platform.catalogue.affect_K2[track_ST.clamp(min=0), 0]
        - platform.catalogue.usual_M[platform.starts.mode_S, None]
    )
    e_S = value_ST.where(track_ST >= 0, 0.0).sum(1).double().numpy() / 10
    user_S = platform.user_S.numpy()
    report_S = np.array(log["pre_valence"].to_pylist(), dtype=np.float64)
    found = late_slope(report_S, earlier(e_S, user_S), user_S)
    assert found is not None and found.low is not None and found.high is not None
    assert found.high < 0 if paid else found.high > 0


class Gives:
    """A policy that plays one of two tracks."""

    def __init__(self, track: int) -> None:
        self.logits_K = torch.full((500,), -torch.inf)
        self.logits_K[track] = 0.0

    def start(self, row_B: torch.Tensor) -> int:
        return len(row_B)

    def logits(self, state: int) -> torch.Tensor:
        return self.logits_K.expand(state, -1)

    def observe(self, state: int, track_B: torch.Tensor, feedback: Feedback) -> int:
        return state


@pytest.mark.parametrize(("strength", "better"), [(0.0, True), (2.4, False)])
def test_the_most_pleasant_track_for_twenty_sessions(strength: float, better: bool) -> None:
    platform, _ = world(users=40, seed=3, variant="late_harm", late_harm=strength)
    valence_K = platform.catalogue.affect_K2[:, 0]
    row_B = torch.arange(0, len(platform.user_S), 4)
    sessions = Sessions(row_B, row_B + 1, torch.zeros_like(row_B), platform.user_S[row_B], row_B, 5)
    rules = Rules(torch.ones(2, 500, dtype=torch.bool), True)
    most, usual = (
        valence_to_come(Gives(int(track)), platform.environment(), rules, sessions, 0).mean()
        for track in (valence_K.argmax(), valence_K.argsort()[250])
    )
    assert most > usual + 0.05 if better else most < usual - 0.05


def test_who_has_left_is_not_moved_by_what_is_played_on() -> None:
    platform, _ = world(users=40, seed=3, variant="late_harm")
    following, row_B = Following(platform.environment()), torch.arange(30)
    state = following.start(row_B, row_B)
    for t in range(12):
        gone_B, before = following.left_B.clone(), state
        state, _, _ = following.step(state, torch.full((30,), 7), t)
        assert torch.equal(state.affect_B2[gone_B], before.affect_B2[gone_B])
        assert torch.equal(state.strain_B[gone_B], before.strain_B[gone_B])
        assert not torch.equal(state.affect_B2[~gone_B], before.affect_B2[~gone_B])
    assert 0 < gone_B.sum() < 30
    again = following.start(row_B, row_B + 99)
    torch.testing.assert_close(again.strain_B, 0.9 * state.strain_B)
