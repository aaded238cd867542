"""Splits by user: exact counts, no user in two parts, the log's order does not matter."""

import numpy as np
import pytest

from amrs.config.data import SplitConfig
from amrs.logs.splits import TEST, TRAIN, VALIDATION, split_halves, split_users, withheld_artists

USERS = [f"user {k}" for k in range(939)]


def test_the_published_number_of_users_is_cut_751_94_94() -> None:
    assert np.bincount(split_users(USERS, SplitConfig())).tolist() == [751, 94, 94]


@pytest.mark.parametrize("count", [3, 4, 5, 10, 11])
@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.05, 0.9), (0.9, 0.05), (0.49, 0.49), (0.001, 0.001)])
def test_every_part_has_a_user(count: int, shares: tuple[float, float]) -> None:
    part_U = split_users(USERS[:count], SplitConfig(validation=shares[0], test=shares[1]))
    assert (np.bincount(part_U, minlength=3) > 0).all()


def test_two_users_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="2 users cannot be split"):
        split_users(USERS[:2], SplitConfig())


def test_a_users_part_and_half_do_not_depend_on_the_order_of_the_log() -> None:
    order = np.random.default_rng(0).permutation(len(USERS))
    shuffled = [USERS[k] for k in order]
    part_U, again_U = split_users(USERS, SplitConfig()), split_users(shuffled, SplitConfig())
    assert np.array_equal(part_U[order], again_U)
    assert np.array_equal(split_halves(USERS, part_U, 0)[order], split_halves(shuffled, again_U, 0))


def test_seeds_draw_different_splits_and_all_users_get_tested() -> None:
    tested = np.array([split_users(USERS, SplitConfig(seed=s)) == TEST for s in range(100)])
    assert not np.array_equal(tested[0], tested[1])
    assert tested.any(0).all()
    # Each user is in the test part in a tenth of the splits: standard deviation .03.
    assert abs(tested.mean(0) - 0.1).max() < 0.03 * 4.5


def test_halves_cut_every_part_in_the_middle() -> None:
    part_U = split_users(USERS, SplitConfig())
    half_U = split_halves(USERS, part_U, 0)
    for part, judged in ((TRAIN, 375), (VALIDATION, 47), (TEST, 47)):
        assert half_U[part_U == part].sum() == judged


def test_halves_are_no_function_of_the_split() -> None:
    """The rank that decides the half is another hash than the rank that decides the part."""
    half_by_split = [split_halves(USERS, np.zeros(939, int), s) for s in (0, 1)]
    assert 0.4 < (half_by_split[0] == half_by_split[1]).mean() < 0.6


@pytest.mark.parametrize(("count", "folds"), [(30, 5), (31, 5), (7, 3), (939, 10)])
def test_each_user_is_tested_in_one_fold_of_a_repeat(count: int, folds: int) -> None:
    users = USERS[:count]
    parts = np.array([split_users(users, SplitConfig(seed=2, folds=folds, fold=k)) for k in range(folds)])
    assert ((parts == TEST).sum(0) == 1).all()
    sizes = (parts == TEST).sum(1)
    assert sizes.max() - sizes.min() <= 1
    rest = count - sizes
    assert ((parts == VALIDATION).sum(1) == np.maximum(1, np.round(0.1 * rest))).all()


def test_another_repeat_cuts_other_folds() -> None:
    tested = [split_users(USERS, SplitConfig(seed=s, folds=5)) == TEST for s in (0, 1)]
    assert not np.array_equal(*tested)


def test_too_many_folds_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="3 users cannot be split into 5 folds"):
        split_users(USERS[:3], SplitConfig(folds=5))


def test_withheld_artists_are_whole_and_an_exact_share() -> None:
    names = [f"artist {k % 20}" for k in range(100)] + [None]
    withheld = withheld_artists(names, 0.1, 0)
    chosen = {name for name, gone in zip(names, withheld, strict=True) if gone}
    assert len(chosen) == 2 and withheld.sum() == 10 and not withheld[-1]
    assert not withheld_artists([None, None], 0.5, 0).any()
