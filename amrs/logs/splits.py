"""Cold-start splits: no user is shared between parts.

Shape suffix: U users.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from amrs.config.data import SplitConfig

TRAIN, VALIDATION, TEST = 0, 1, 2
LABELLER, JUDGE = 0, 1
FOLD_VALIDATION = 0.1
"""Share of the users outside the test fold that validates."""


class TooFewUsersError(ValueError):
    """A log with too few users to be split between those who train, label, judge and are judged."""


def _ranked(user_ids: list[str], seed: int, purpose: str) -> np.ndarray:
    """Users in the order of a salted hash of their ids."""
    digests = [hashlib.sha256(f"{purpose}:{seed}:{user}".encode()).digest() for user in user_ids]
    return np.array(sorted(range(len(user_ids)), key=digests.__getitem__))


def split_users(user_ids: list[str], config: SplitConfig) -> np.ndarray:
    """TRAIN, VALIDATION or TEST for each user, as (U,): exact counts, at least one user each."""
    count = len(user_ids)
    if count < 3:
        raise TooFewUsersError(f"{count} users cannot be split: training, validation and test need one each")
    part_U = np.full(count, TRAIN, dtype=np.int64)
    order = _ranked(user_ids, config.seed, "split")
    if config.folds is None:
        test = min(max(1, round(config.test * count)), count - 2)
        validation = min(max(1, round(config.validation * count)), count - test - 1)
    else:
        order, test = _fold_first(order, config.folds, config.fold)
        validation = max(1, round(FOLD_VALIDATION * (count - test)))
    part_U[order[:test]] = TEST
    part_U[order[test : test + validation]] = VALIDATION
    return part_U


def _fold_first(order: np.ndarray, folds: int, fold: int) -> tuple[np.ndarray, int]:
    """Users with those of the fold first, and how many it has; the next users in the ring follow.

    Folds are cut from the ranking, so each user is in one fold, and sizes differ by one at most.
    """
    count = len(order)
    if folds > count or count - -(-count // folds) < 2:
        raise TooFewUsersError(
            f"{count} users cannot be split into {folds} folds: each needs a user, and training and "
            "validation one each besides"
        )
    first, stop = (count * k // folds for k in (fold, fold + 1))
    return np.roll(order, -first), stop - first


def split_halves(user_ids: list[str], part_U: np.ndarray, seed: int) -> np.ndarray:
    """LABELLER or JUDGE for each user, as (U,): disjoint halves within every part."""
    half_U = np.zeros(len(user_ids), dtype=np.int64)
    order = _ranked(user_ids, seed, "half")
    for part in (TRAIN, VALIDATION, TEST):
        members = order[part_U[order] == part]
        half_U[members[: len(members) // 2]] = JUDGE
    return half_U


def assigned(
    user_ids: list[str], split: SplitConfig, users: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each user's part and half, and whether `users` ("all", "labeller" or "judge") may use them, as (U,).

    Raises:
        TooFewUsersError: none of `users` is left to train or to validate.
    """
    part_U = split_users(user_ids, split)
    half_U = split_halves(user_ids, part_U, split.seed)
    keep_U = np.ones_like(half_U, bool) if users == "all" else half_U == (users == "judge")
    for name, part in (("training", TRAIN), ("validation", VALIDATION)):
        if not (keep_U & (part_U == part)).any():
            raise TooFewUsersError(
                f"no {name} user is left for world_model.users={users}: the log has {len(part_U)} users, "
                f"of whom {int((part_U == part).sum())} are for {name}; labeller and judge get "
                "half each. Give a log with more users, or raise data.split.validation"
            )
    return part_U, half_U, keep_U


def withheld_artists(names: Sequence[str | None], share: float, seed: int) -> np.ndarray:
    """True at tracks of the share of artists that a salted hash picks, as (K,); at none without artists.

    `names` holds each track's artist.
    """
    artists = sorted({name for name in names if name is not None})
    chosen = {artists[k] for k in _ranked(artists, seed, "artist")[: round(share * len(artists))]}
    return np.array([name in chosen for name in names], dtype=bool)
