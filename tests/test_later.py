"""Harm after several sessions: slopes by hand, usual effects one by one, and the trap that must be found."""

from pathlib import Path

import numpy as np
import pytest
import torch
from platform_worlds import tracks, world
from tiny_logs import opened, random_log, world_model

from amrs.candidates import candidate_answers
from amrs.data import SessionDataModule
from amrs.stress.later import earlier, late_slope, session_effects, usual_effects

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
    found = late_slope(report, past, user, 100, 0)
    assert found is not None and found.value == pytest.approx(-0.25) and found.n == 160
    assert found.low == pytest.approx(-0.25) and found.high == pytest.approx(-0.25)
    report[[7, 10]] = np.nan  # a later session, and a first one
    fewer = late_slope(report, past, user, 100, 0)
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
    found = late_slope(report, past, user, 100, 0)
    assert found is not None and found.value == pytest.approx(expected) and found.n == len(rows)


def test_too_little_to_tell_is_no_slope() -> None:
    report, past, user = sessions()
    assert late_slope(np.full(len(report), np.nan), past, user, 100, 0) is None
    assert late_slope(report[:5], past[:5], user[:5], 100, 0) is None, "four reports, four other predictors"
    assert late_slope(report, 2.0 * (np.arange(len(user)) % 5), user, 100, 0) is None, "all is number"


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
        expected_K = total_K / len(row_H)
        torch.testing.assert_close(found_MK[mode], expected_K - expected_K.mean(), atol=1e-5, rtol=1e-4)


def test_a_sessions_effect_is_the_sum_over_its_tracks_about_its_modes_plays(data: SessionDataModule) -> None:
    flat, effect_MK = data.flat, torch.rand(3, data.tracks, generator=torch.Generator().manual_seed(0))
    lists = data.log.sessions["track_id"][:]
    number = {name: k for k, name in enumerate(data.log.catalogue["track_id"][:])}
    values = [[float(effect_MK[mode, number[k]]) for k in names]
              for names, mode in zip(lists, flat.mode_S.tolist(), strict=True)]  # fmt: skip
    pool = {m: [x for each, mode in zip(values, flat.mode_S.tolist(), strict=True) if mode == m for x in each]
            for m in (-1, 0, 1)}  # fmt: skip
    expected = [sum(x - np.mean(pool[mode]) for x in each)
                for each, mode in zip(values, flat.mode_S.tolist(), strict=True)]  # fmt: skip
    assert session_effects(data, effect_MK) == pytest.approx(expected, abs=1e-5)


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
    found = late_slope(report_S, earlier(e_S, user_S), user_S, 300, 0)
    assert found is not None and found.low is not None and found.high is not None
    assert found.high < 0 if paid else found.high > 0
