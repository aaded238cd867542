"""Preference pairs: what is negative, by hand; what is chosen, against a search over all candidates."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_logs import letters, opened, policy, random_log, session, world_model, write

from amrs.candidates import candidate_answers, candidate_utility, next_track_log_probs
from amrs.config.groups import UtilityConfig, WeightsConfig
from amrs.config.stages import NegativeConfig, PreferencesConfig
from amrs.data import SessionDataModule
from amrs.logs.splits import TEST, TRAIN, VALIDATION
from amrs.models.world_model import WorldModel
from amrs.negatives import negative_plays
from amrs.noise import uniform
from amrs.pairs import DRAWS, EXPLORE, Labelling, Pairs, corrective, margin, nearest_tracks
from amrs.rollout import choose
from amrs.utility import Utility

MODES = ("energize", "calm")
OFF = NegativeConfig(rating=False, engagement_below=0.0, track_report=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log", users=20))


def by_hand(folder: Path) -> SessionDataModule:
    """One session of calm and one of energize; q and r are there to be split off."""
    rows = [
        session("p", 1, "abcd", mode="calm", engagement=[0.29, 0.3, None, 1.0], rating=[1, 0, None, 0],
                pre_valence=0.5, track_valence=[0.6, 0.5, None, 0.1], track_arousal=[0.2, 0.3, 0.3, None],
                pre_arousal=0.1, post_valence=0.4, post_arousal=0.1),
        session("p", 9, "ef", mode="energize", pre_arousal=0.5, track_arousal=[0.4, 0.9], post_arousal=0.5),
        session("p", 20, "ab", pre_arousal=0.5, track_arousal=[0.4, 0.9], post_arousal=0.1),
    ]  # fmt: skip
    return opened(write(folder, [*rows, session("q", 1, "a"), session("r", 1, "a")], letters()))


@pytest.mark.parametrize(
    ("config", "negative"),
    [
        (NegativeConfig(rating=True, engagement_below=0.0, track_report=False), "b d"),
        (NegativeConfig(rating=False, engagement_below=0.3, track_report=False), "a"),
        # Valence fell at b; at d it fell since nobody knows when. Calm wants arousal down: up at a and b.
        # Energize wants it up: down at e. Without a mode arousal does not count.
        (NegativeConfig(rating=False, engagement_below=0.0, track_report=True), "a b e"),
        # Valence fell from .5 to .4 in the first session; arousal stayed in both, and the third has no mode.
        (NegativeConfig(rating=False, engagement_below=0.0, track_report=False, session_report=2), "c d"),
        (NegativeConfig(rating=True, engagement_below=0.3, track_report=False), "a b d"),
        (OFF, ""),
    ],
)
def test_negative_feedback_by_hand(tmp_path: Path, config: NegativeConfig, negative: str) -> None:
    flat = by_hand(tmp_path / "log").flat
    found = negative_plays(flat, config, Utility(UtilityConfig(), MODES))
    first_user = int(flat.user_last_U[0])
    assert not found[first_user:].any()
    assert [chr(97 + int(k)) for k in flat.track_N[:first_user][found[:first_user]]] == negative.split()


def test_a_signal_without_weight_moves_nothing_wrong(tmp_path: Path) -> None:
    flat = by_hand(tmp_path / "log").flat
    utility = Utility(UtilityConfig(weights=WeightsConfig(valence=1.0, arousal=0.0)), MODES)
    config = NegativeConfig(rating=False, engagement_below=0.0, track_report=True)
    assert flat.track_N[negative_plays(flat, config, utility)].tolist() == [1]  # b alone


def test_away_from_a_target_is_the_wrong_way(tmp_path: Path) -> None:
    utility = Utility(
        UtilityConfig(modes={"calm": {"arousal": "0.25"}, "energize": {"arousal": "0.8"}}), MODES
    )
    flat = by_hand(tmp_path / "log").flat
    config = NegativeConfig(rating=False, engagement_below=0.0, track_report=True)
    # a: .1 -> .2 nears .25; b: .2 -> .3 is as far (valence fell); e: .5 -> .4 leaves .8.
    found = flat.track_N[negative_plays(flat, config, utility)].tolist()
    assert found == [1, 4]


def test_nearest_tracks_by_cosine_of_centred_embeddings() -> None:
    angle = torch.tensor([0.0, 0.1, 0.3, 3.1, 3.4])
    embedding_KE = (
        torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0])[:, None]
    )
    centred = embedding_KE - embedding_KE.mean(0)
    cosine = torch.nn.functional.cosine_similarity(centred[:, None], centred[None], dim=-1)
    found = nearest_tracks(embedding_KE + 7.0, torch.arange(5), 2)
    for k in range(5):
        order = [j for j in cosine[k].argsort(descending=True).tolist() if j != k]
        assert found[k].tolist() == order[:2]


def labelling(
    data: SessionDataModule, config: PreferencesConfig, model: WorldModel | None = None, seed: int = 0
) -> Labelling:
    utility = Utility(UtilityConfig(), MODES)
    return Labelling(model or world_model(data), policy(data), utility, data, data.rules(), config, seed)


def make(
    data: SessionDataModule, **settings: Any
) -> tuple[Pairs, Callable[..., torch.Tensor], PreferencesConfig]:
    model, utility = world_model(data, 2), Utility(UtilityConfig(), MODES)
    config = replace(PreferencesConfig(neighbours=4, explore=6), **settings)
    rows = torch.cat([data.rows(TRAIN), data.rows(VALIDATION)])
    pairs = corrective(labelling(data, config, model, seed=3), rows)
    return pairs, lambda *where: candidate_utility(model, utility, data, *where), config


def test_pairs_equal_a_search_over_candidates_one_by_one(data: SessionDataModule) -> None:
    pairs, score, config = make(data)
    flat, rules = data.flat, data.rules()
    utility = Utility(UtilityConfig(), MODES)
    used = set(torch.cat([data.rows(TRAIN), data.rows(VALIDATION)]).tolist())
    expected = {}
    for n in torch.nonzero(negative_plays(flat, config.negative, utility))[:, 0].tolist():
        row, step, rejected = int(flat.session_N[n]), int(flat.step_N[n]) - 1, int(flat.track_N[n])
        if row not in used:
            continue
        near = nearest_tracks(data.embedding_KE, torch.tensor([rejected]), 4)[0].tolist()
        explored = [int(uniform(3, EXPLORE, n, c) * data.tracks) for c in range(6)]
        played = flat.track_N[int(flat.first_S[row]) + 1 : n].tolist()
        fits = [
            k for k in {*near, *explored}
            if rules.mode_MK[flat.mode_S[row], k] and k not in played and k != rejected
        ]  # fmt: skip
        where = torch.tensor([row]), torch.tensor([step])
        worth = {k: float(score(*where, torch.tensor([[k]]))) for k in [*fits, rejected]}
        best = max(fits, key=lambda k: worth[k], default=rejected)
        if worth[best] > worth[rejected]:
            expected[row, step] = (best, rejected, worth[best] - worth[rejected])
    found = {
        (int(r), int(s)): (int(c), int(j), float(d))
        for r, s, c, j, d in zip(
            pairs.row_B, pairs.step_B, pairs.chosen_B, pairs.rejected_B, pairs.du_B, strict=True
        )
    }
    assert len(expected) > 20 and found.keys() == expected.keys()
    for key, (chosen, rejected, du) in expected.items():
        assert found[key][:2] == (chosen, rejected)
        assert found[key][2] == pytest.approx(du, abs=1e-5)


def test_pairs_are_allowed_improve_and_come_from_the_given_users(data: SessionDataModule) -> None:
    pairs, _, _ = make(data, explore=300)
    assert (pairs.du_B > 0).all() and (pairs.chosen_B != pairs.rejected_B).all()
    mode_B = data.flat.mode_S[pairs.row_B]
    assert data.rules().mode_MK[mode_B, pairs.chosen_B].all()
    assert not (data.part_S[pairs.row_B] == TEST).any()


def test_pairs_depend_on_nothing_but_their_own_play(data: SessionDataModule) -> None:
    """Fewer rows, the same pairs for those that are left."""
    source, rows = labelling(data, PreferencesConfig()), data.rows(TRAIN)
    few, many = (corrective(source, r) for r in (rows[:9], rows))
    kept = many[torch.isin(many.row_B, rows[:9])]
    for name in ("row_B", "step_B", "chosen_B", "rejected_B"):
        assert torch.equal(getattr(few, name), getattr(kept, name))


def test_no_negative_feedback_gives_no_pairs(data: SessionDataModule) -> None:
    pairs = corrective(labelling(data, PreferencesConfig(negative=OFF)), data.rows(TRAIN))
    assert len(pairs.row_B) == 0


def test_candidates_are_judged_from_before_the_play(data: SessionDataModule) -> None:
    """Utility of a candidate equals the model's answer at the token that the play follows."""
    model = world_model(data)
    window = data.windows(TRAIN)[:1]
    batch, member = data.gather(window), model.ensemble[0]
    asked = torch.nonzero(batch.next_track_BL[0] >= 0)[:, 0]
    token_N = window[0, 0] + asked
    row_B, step_B = data.flat.session_N[token_N], data.flat.step_N[token_N]
    with torch.inference_mode():
        slow = member.answer(
            member.encoder(batch)[0, asked], member.candidates(batch.next_track_BL[0, asked])
        )
    found = candidate_answers(model, data, row_B, step_B, batch.next_track_BL[0, asked][:, None])[0]
    torch.testing.assert_close(found["valence"][:, 0], slow["valence"], atol=2e-5, rtol=1e-4)


def test_margin_takes_the_best_and_worst_of_copycats_draws_by_brute_force(data: SessionDataModule) -> None:
    source = labelling(data, PreferencesConfig(draws=6, margin=0.0), world_model(data, 2))
    rows = data.rows(TRAIN)
    pairs = margin(source, rows)
    asked = [(int(row), step) for row in rows for step in range(int(data.flat.length_S[row]))]
    made = list(zip(pairs.row_B.tolist(), pairs.step_B.tolist(), strict=True))

    def draws(row: int, step: int) -> list[int]:
        log_p_1K = next_track_log_probs(
            source.copycat, data, source.rules, torch.tensor([row]), torch.tensor([step])
        )
        token = data.flat.first_S[[row]] + step + 1
        drawn = [int(choose(log_p_1K, uniform(source.seed, DRAWS, token, c))) for c in range(6)]
        assert (log_p_1K[0, drawn] > -torch.inf).all()
        return drawn

    assert len(made) > 100 and set(made) <= set(asked)
    for play in set(asked) - set(made):
        assert len(set(draws(*play))) == 1, "only where all draws are one track is there no pair"
    for b in range(0, len(made), 37):
        where, drawn = (pairs.row_B[b : b + 1], pairs.step_B[b : b + 1]), draws(*made[b])
        worth = {
            k: float(candidate_utility(source.model, source.utility, data, *where, torch.tensor([[k]])))
            for k in drawn
        }
        assert worth[int(pairs.chosen_B[b])] == pytest.approx(max(worth.values()), abs=1e-5)
        assert worth[int(pairs.rejected_B[b])] == pytest.approx(min(worth.values()), abs=1e-5)
        assert float(pairs.du_B[b]) == pytest.approx(max(worth.values()) - min(worth.values()), abs=1e-5)


def test_a_wide_margin_drops_the_pairs_that_members_disagree_about(data: SessionDataModule) -> None:
    model, rows = world_model(data, 3), data.rows(TRAIN)
    kept = [
        len(margin(labelling(data, PreferencesConfig(draws=6, margin=m), model), rows).row_B)
        for m in (0, 2, 1e6)
    ]
    assert kept[0] > kept[1] > kept[2] == 0


def test_fewer_histories_are_a_part_of_all(data: SessionDataModule) -> None:
    rows = data.rows(TRAIN)
    few, many = (margin(labelling(data, PreferencesConfig(histories=h)), rows) for h in (9, 10_000))
    found = set(zip(many.row_B.tolist(), many.step_B.tolist(), many.chosen_B.tolist(), strict=True))
    some = list(zip(few.row_B.tolist(), few.step_B.tolist(), few.chosen_B.tolist(), strict=True))
    assert 0 < len(some) <= 9 and set(some) <= found
