"""Imagined continuations, disappointing sessions, and the samplers that use them."""

import pytest
import torch
from tiny_logs import opened, policy, random_log, world_model

from amrs.candidates import band, candidate_answers, candidate_utility
from amrs.config.groups import UtilityConfig, WeightsConfig
from amrs.config.stages import PreferencesConfig
from amrs.continuations import continued_utility, shortfall
from amrs.data import SessionDataModule
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TRAIN
from amrs.noise import hash_keys
from amrs.pairs import Labelling, best_worst, credited, margin, on_policy
from amrs.utility import Utility

MODES = ("energize", "calm")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log", users=20), history=64)


def labelling(data: SessionDataModule, members: int = 1, **settings: object) -> Labelling:
    config = PreferencesConfig(**{"draws": 4, "margin": 0.0, **settings})  # type: ignore[arg-type]
    utility = Utility(UtilityConfig(standardise=False), MODES)
    return Labelling(world_model(data, members), policy(data), utility, data, data.rules(), config, 0)


def plays(data: SessionDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    token_B = torch.nonzero(data.flat.track_N >= 0)[:30, 0]
    return data.flat.session_N[token_B], data.flat.step_N[token_B] - 1


def test_without_a_continuation_the_outcome_is_that_of_the_candidate(data: SessionDataModule) -> None:
    """Slow truth: a horizon of one track leaves nothing to imagine; one member, no target, one signal."""
    (row_B, step_B), model = plays(data), world_model(data, history=64)
    config = UtilityConfig(standardise=False, weights=WeightsConfig(valence=1.0, arousal=0.0))
    utility, track_BC = Utility(config, MODES), torch.arange(60).reshape(30, 2) % data.tracks
    found = continued_utility(
        model, policy(data, history=64), utility, data, data.rules(), row_B, step_B, track_BC, 0, 1
    )
    slow = candidate_utility(model, utility, data, row_B, step_B, track_BC)
    torch.testing.assert_close(found, slow, atol=2e-5, rtol=1e-4)


def test_the_same_candidate_meets_the_same_luck_beside_whatever_others(data: SessionDataModule) -> None:
    (row_B, step_B), source = plays(data), labelling(data)
    track_BC = torch.arange(90).reshape(30, 3) % data.tracks
    parts = (source.model, source.copycat, source.utility, data, source.rules)
    together = continued_utility(*parts, row_B, step_B, track_BC, 0, 5)
    alone = continued_utility(*parts, row_B[7:9], step_B[7:9], track_BC[7:9, 1:2], 0, 5)
    torch.testing.assert_close(alone, together[7:9, 1:2], atol=2e-5, rtol=1e-4)
    twice = continued_utility(*parts, row_B, step_B, track_BC[:, :1].expand(-1, 2), 0, 5)
    assert torch.equal(twice[:, 0], twice[:, 1])


def test_listeners_that_start_in_mid_session_are_those_who_heard_its_beginning(
    data: SessionDataModule,
) -> None:
    row_B = torch.nonzero(data.flat.length_S >= 3)[:6, 0]
    key_B, listeners = hash_keys(0, row_B), ImaginedListeners(world_model(data, history=64), data, 4)
    state = listeners.start(row_B, key_B, torch.full_like(row_B, 2))
    track_B = data.flat.track_N[data.flat.first_S[row_B] + 3]
    _, _, expected = listeners.step(state, track_B, 2)
    utility = Utility(UtilityConfig(weights=WeightsConfig(valence=1.0, arousal=0.0)), MODES)
    slow = candidate_utility(
        world_model(data, history=64), utility, data, row_B, torch.full_like(row_B, 2), track_B[:, None]
    )
    torch.testing.assert_close(expected["valence"], slow[:, 0], atol=2e-5, rtol=1e-4)


def test_shortfall_by_hand(data: SessionDataModule) -> None:
    model, row_B = world_model(data, 2), torch.arange(len(data.flat.mode_S))
    utility = Utility(UtilityConfig(standardise=False), MODES)
    found = shortfall(model, utility, data, row_B)
    checked = 0
    for b in row_B.tolist():
        batch = data.prefix(row_B[b : b + 1])
        at_BL = torch.zeros_like(batch.valid_BL)
        at_BL[0, -1] = True
        with torch.inference_mode():
            forecast = model.predict(batch, at_BL, "start")
        gap, mode = [], int(data.flat.mode_S[b])
        for column, name in enumerate(("valence", "arousal")):
            sign = 1 if name == "valence" else {-1: 0, 0: 1, 1: -1}[mode]
            report = float(data.flat.report_S2[b, column])
            if report == report:
                gap.append(0.5 * sign * (float(model.mean(name, forecast[name])) - report))
        if gap:
            assert float(found[b]) == pytest.approx(sum(gap), abs=1e-5)
            checked += 1
        else:
            assert found[b].isnan()
    assert checked > 20


def test_credited_corrects_worse_than_usual_tracks_of_disappointing_sessions(data: SessionDataModule) -> None:
    source, rows = labelling(data), data.rows(TRAIN)
    pairs = credited(source, rows)
    fell = shortfall(source.model, source.utility, data, pairs.row_B)
    assert len(pairs.row_B) > 5 and (fell > 0).all() and (pairs.du_B > 0).all()
    token_B = data.flat.first_S[pairs.row_B] + pairs.step_B + 1
    assert torch.equal(data.flat.track_N[token_B], pairs.rejected_B)


def test_best_worst_orders_candidates_by_how_their_sessions_end(data: SessionDataModule) -> None:
    source = labelling(data, histories=15)
    pairs = best_worst(source, data.rows(TRAIN))
    horizon = int(data.flat.length_S[data.rows(TRAIN)].double().median())
    u_B2 = continued_utility(
        source.model, source.copycat, source.utility, data, source.rules, pairs.row_B, pairs.step_B,
        torch.stack([pairs.chosen_B, pairs.rejected_B], 1), 0, horizon,
    )  # fmt: skip
    assert len(pairs.row_B) > 5
    torch.testing.assert_close(u_B2[:, 0] - u_B2[:, 1], pairs.du_B, atol=5e-5, rtol=1e-3)


def test_on_policy_draws_from_the_given_policy(data: SessionDataModule) -> None:
    source, rows = labelling(data), data.rows(TRAIN)
    source.behaviour = policy(data, 9)
    other = labelling(data)
    other.copycat = source.behaviour
    found, expected, copycats = on_policy(source, rows), margin(other, rows), margin(source, rows)
    assert torch.equal(found.chosen_B, expected.chosen_B)
    assert not torch.equal(found.chosen_B, copycats.chosen_B)


def test_more_rejected_tracks_are_the_next_worst_and_never_the_chosen(data: SessionDataModule) -> None:
    pairs = margin(labelling(data, rejected=3), data.rows(TRAIN))
    assert pairs.others_BJ.shape[1] == 2
    assert not (pairs.others_BJ == pairs.chosen_B[:, None]).any()
    source = labelling(data)
    asked_B3 = torch.cat([pairs.chosen_B[:, None], pairs.others_BJ.clamp(min=0)], 1)
    u_B3 = candidate_utility(source.model, source.utility, data, pairs.row_B, pairs.step_B, asked_B3)
    named_B2 = pairs.others_BJ >= 0
    expected_B2 = (u_B3[:, :1] - u_B3[:, 1:])[named_B2]
    torch.testing.assert_close(pairs.du_others_BJ[named_B2], expected_B2, atol=1e-4, rtol=1e-4)


def test_a_band_holds_the_middle_of_what_the_members_would_draw(data: SessionDataModule) -> None:
    """Slow truth: quantiles of draws of all members together."""
    (row_B, step_B), model = plays(data), world_model(data, members=3, history=64)
    answers = candidate_answers(model, data, row_B[:4], step_B[:4], torch.arange(5).expand(4, 5))
    found = band(model, answers, "valence", level=0.8)
    kind = model.ensemble[0].kinds["valence"]
    u_R11 = (torch.arange(4000) + 0.5)[:, None, None] / 4000
    drawn_NBC = torch.cat([kind.sample(a["valence"].expand(4000, -1, -1, -1), u_R11.expand(-1, 4, 5))
                           for a in answers])  # fmt: skip
    for ends_BC, level in ((found.low_BC, 0.1), (found.high_BC, 0.9)):
        torch.testing.assert_close(ends_BC.float(), drawn_NBC.quantile(level, 0), atol=0.01, rtol=0)
    for member, answer in zip(found.member_MBC, answers, strict=True):
        torch.testing.assert_close(member, kind.mean(answer["valence"]))
