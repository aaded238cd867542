"""Utility by mode, by hand."""

import math

import pytest
import torch

from amrs.config.groups import UtilityConfig, WeightsConfig
from amrs.runs import RunError
from amrs.signals import Binary, Kind
from amrs.utility import Utility

MODES = ("energize", "calm", "focus", "sleep")
KINDS: dict[str, Kind] = {"rating": Binary(), "valence": Binary(), "arousal": Binary()}
"""Yes-or-no heads stand in for every signal: their mean is a sigmoid and E|y - t| is worked at once."""


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def found(mode: int, spread: dict[str, float] | None = None, **weights: float) -> float:
    """Utility where P(rating) = .9, P(valence) = .8, P(arousal) = .3."""
    config = UtilityConfig(weights=WeightsConfig(**{"valence": 0.5, "arousal": 0.5, **weights}))
    values = {"rating": 0.9, "valence": 0.8, "arousal": 0.3}
    params = {name: torch.tensor([[[logit(p)]]]) for name, p in values.items()}
    return Utility(config, MODES, spread)(KINDS, params, torch.tensor([mode])).item()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0, 0.5 * 0.8 + 0.5 * 0.3),  # energize: up
        (1, 0.5 * 0.8 + 0.5 * 0.7),  # calm: down
        (3, 0.5 * 0.8 + 0.5 * 0.7),  # sleep: down
        (2, 0.5 * 0.8 + 0.5 * 0.5),  # focus: 0 and 1 are both half a scale from the target
        (-1, 0.5 * 0.8),  # no mode: valence alone
    ],
)
def test_what_is_good_depends_on_the_mode(mode: int, expected: float) -> None:
    assert found(mode) == pytest.approx(expected, abs=1e-6)


def test_signals_that_a_mode_does_not_name_go_up() -> None:
    assert found(1, rating=2.0, valence=0.0, arousal=0.0) == pytest.approx(1.8)


def test_each_signal_is_divided_by_its_own_spread() -> None:
    assert found(0, {"valence": 0.1, "arousal": 0.02}) == pytest.approx(0.5 * 0.8 / 0.1 + 0.5 * 0.3 / 0.02)


def test_a_signal_without_predicted_effect_stays_finite() -> None:
    assert math.isfinite(found(0, {"valence": 0.0, "arousal": 0.02}))


def test_spread_is_not_used_where_standardisation_is_off() -> None:
    config = UtilityConfig(standardise=False)
    assert Utility(config, MODES, {"valence": 0.1}).spread == {}


def test_rows_of_different_modes_do_not_mix_and_candidates_keep_their_place() -> None:
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.randn(6, 4, 1, generator=generator) for name in KINDS}
    mode_B = torch.tensor([0, 1, 2, 3, -1, 1])
    utility = Utility(UtilityConfig(), MODES)
    together = utility(KINDS, params, mode_B)
    for b in range(6):
        for c in range(4):
            alone = utility(KINDS, {n: p[b : b + 1, c : c + 1] for n, p in params.items()}, mode_B[b : b + 1])
            assert together[b, c].item() == pytest.approx(alone.item(), abs=1e-6)


def test_weights_that_name_no_signal_of_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the signals that this data set has: rating"):
        Utility(UtilityConfig(), MODES)(
            {"rating": Binary()}, {"rating": torch.zeros(1, 1)}, torch.zeros(1).long()
        )


def test_an_effect_counts_with_what_is_left_of_it_at_the_end() -> None:
    """Track 0 of calm keeps a quarter of its valence and half of its arousal; the last figure holds on."""
    carry = {"valence": [0.25, 1.0], "arousal": [0.5, 1.0]}
    utility = Utility(UtilityConfig(standardise=False), MODES, carry=carry)
    params = {"valence": torch.full((3, 2, 1), logit(0.8)), "arousal": torch.full((3, 2, 1), logit(0.3))}
    found = utility(KINDS, params, torch.tensor([1, 1, 1]), torch.tensor([0, 1, 7]))
    assert found[:, 0].tolist() == pytest.approx([0.5 * 0.25 * 0.8 + 0.5 * 0.5 * 0.7, 0.75, 0.75])


def test_pessimism_takes_off_what_members_disagree_about_between_candidates() -> None:
    """Members say (0, 2) and (11, 11): relative to their means -1, 1 and 0, 0; sd over members 1 / sqrt 2."""
    u_MBC = torch.tensor([[[0.0, 2.0]], [[11.0, 11.0]]])
    utility, two = Utility(UtilityConfig(pessimism=2.0), MODES), torch.arange(2)
    expected = [5.5 - math.sqrt(2), 6.5 - math.sqrt(2)]
    assert utility.joined(u_MBC, two)[0].tolist() == pytest.approx(expected)
    assert Utility(UtilityConfig(), MODES).joined(u_MBC, two)[0].tolist() == [5.5, 6.5]
    assert utility.joined(u_MBC[:1], two).tolist() == u_MBC[0].tolist()


def test_entropy_after_a_track_adds_to_it_whoever_else_is_compared() -> None:
    """Half a point a nat: track 2, after which Copycat has 3 nats, gets 1.5."""
    utility = Utility(UtilityConfig(entropy=0.5), MODES, entropy=[1.0, 2.0, 3.0])
    u_MBC = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    assert utility.joined(u_MBC, torch.tensor([[2, 0]]))[0].tolist() == [3.5, 0.5]
    assert utility.joined(u_MBC, torch.tensor([0, 1]))[0].tolist() == [2.5, 1.0]
    assert Utility(UtilityConfig(), MODES, entropy=[1.0, 2.0]).bonus(torch.tensor(1)) == 0
    assert Utility(UtilityConfig(entropy=0.5), MODES).bonus(torch.tensor(1)) == 0


def test_an_unknown_mode_is_refused_by_name() -> None:
    with pytest.raises(RunError, match=r"utility\.modes names commute, but the modes .* energize, calm"):
        Utility(UtilityConfig(modes={"commute": {"arousal": "up"}}), MODES)
