"""Whole simulated sessions against logged ones: how different they are, and whether they can be told apart.

Both begin at the same sessions of held-out users. In a simulation the listener leaves when the model says
so; what neither leaves nor ends otherwise ends when the listener is done, which is drawn from how long
training users' sessions last (the hazard of Kaplan and Meier 1958, leaving counted as censored).
Shape suffixes: B sessions, T steps, X features, P plays, E embedding, W rows of both sides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.fidelity.targets import AFFECT
from amrs.listeners import ImaginedListeners
from amrs.logs.histories import played_before
from amrs.logs.splits import TRAIN
from amrs.metrics.fidelity import Floats, Ints
from amrs.noise import uniform
from amrs.platform import PlatformEnvironment
from amrs.platform.draws import Draw
from amrs.platform.dynamics import State, report
from amrs.platform.reports import post_given
from amrs.rollout import Feedback, Rollouts

DONE, REPORTED, REPORT = 740, 741, 742
"""Purposes of draws."""
SKIPPED = 0.3
"""A play whose fraction is below this counts as skipped."""
DIRECTIONS = 8
"""Principal components of the catalogue that the classifier sees."""
_FOLDS = 5


class Told(NamedTuple):
    """Sessions as a service sees them; NaN where nothing was given, -1 behind the last track."""

    track_BT: Tensor
    engagement_BT: Tensor
    rating_BT: Tensor
    left_B: Tensor
    report_B2: Tensor


def logged_sessions(data: SessionDataModule, row_B: Tensor) -> Told:
    """The sessions as they are in the log."""
    flat = data.flat
    track_BT = played_before(flat, row_B, flat.length_S[row_B])
    token_BT = flat.first_S[row_B][:, None] + 1 + torch.arange(track_BT.shape[1])
    feedback_BT4 = flat.feedback_N4[token_BT.where(track_BT >= 0, 0)]
    feedback_BT4 = feedback_BT4.where((track_BT >= 0)[..., None], torch.nan)
    last_B = flat.first_S[row_B] + flat.length_S[row_B] - 1
    left_B = flat.target_NY[last_B, 4] == 1
    return Told(track_BT, feedback_BT4[..., 0], feedback_BT4[..., 1], left_B, flat.report_S2[row_B])


def done_hazard(data: SessionDataModule) -> Tensor:
    """Chance that a training user's session is over after its t-th track if it was not left then, (T,)."""
    flat, row = data.flat, data.rows(TRAIN)
    length, left = flat.length_S[row], logged_sessions(data, row).left_B
    longest = int(length.max())
    done_T = torch.bincount(length[~left] - 1, minlength=longest).double()
    left_T = torch.bincount(length[left] - 1, minlength=longest).double()
    reached_T = (done_T + left_T).flip(0).cumsum(0).flip(0)
    return (done_T / (reached_T - left_T).clamp(min=1)).float()


def ended(rollouts: Rollouts, done_B: Tensor) -> Told:
    """The sessions of rollouts, cut where the listener left or, from `done_B` tracks on, was done.

    `rollouts.expected` must hold the draws of `Reporting` or `PlatformReporting`.
    """
    played_BT = rollouts.played_BT & (torch.arange(rollouts.played_BT.shape[1]) < done_B[:, None])
    last_B1 = played_BT.sum(1, keepdim=True) - 1
    left_B = rollouts.left_B & (rollouts.played_BT.sum(1) == played_BT.sum(1)) & (done_B > played_BT.sum(1))
    drawn = rollouts.expected
    report_B2 = torch.stack([drawn[f"drawn_{name}"].gather(1, last_B1)[:, 0] for name in AFFECT], 1)
    given = "given_left" if "given_left" in drawn else "given"
    gives_B = torch.where(
        left_B, drawn[given].gather(1, last_B1)[:, 0], drawn["given"].gather(1, last_B1)[:, 0]
    )
    return Told(
        rollouts.track_BT.where(played_BT, -1),
        rollouts.engagement_BT.where(played_BT, torch.nan),
        rollouts.rating_BT.where(played_BT, torch.nan),
        left_B,
        report_B2.where(gives_B[:, None] > 0.5, torch.nan),
    )


def drawn_done(hazard_T: Tensor, left_B: Tensor, length_B: Tensor, key_B: Tensor) -> Tensor:
    """After how many tracks each listener is done, (B,): the first step whose draw is under the hazard; one
    who leaves at a step is not done at it."""
    step_T = torch.arange(len(hazard_T))
    over_BT = uniform(key_B[:, None], DONE, step_T) < hazard_T
    over_BT &= ~(left_B[:, None] & (step_T == length_B[:, None] - 1))
    return torch.where(over_BT.any(1), over_BT.float().argmax(1) + 1, len(hazard_T) + 1)


class Reporting(ImaginedListeners):
    """Imagined listeners whose final report, and whether it is given, is drawn at every step."""

    @torch.inference_mode()
    def step(self, state: Any, track_B: Tensor, t: int) -> tuple[Any, Feedback, dict[str, Tensor]]:
        """As for `ImaginedListeners`, with `drawn_valence`, `drawn_arousal` and `given` besides."""
        drawn = {name: torch.full((len(track_B),), torch.nan) for name in ("drawn_valence", "drawn_arousal")}
        drawn["given"] = torch.zeros(len(track_B))
        for group in state:
            member, index_G = group.member, group.index_G
            params = member.answer(group.mind.h_BD, member.candidates(track_B[index_G]))
            for number, name in enumerate(AFFECT):
                if name in params:
                    u_G = uniform(group.key_G, t, REPORT + number)
                    drawn[f"drawn_{name}"][index_G] = member.kinds[name].sample(params[name], u_G)
            given_G = member.kinds["reported"].mean(params["reported"])
            drawn["given"][index_G] = (uniform(group.key_G, t, REPORTED) < given_G).float()
        state, feedback, expected = super().step(state, track_B, t)
        return state, feedback, expected | drawn


@dataclass(frozen=True)
class PlatformReporting:
    """True listeners whose final report, and whether it is given, is drawn at every step."""

    environment: PlatformEnvironment
    pre_valence_S: Tensor

    def start(self, row_B: Tensor, key_B: Tensor) -> tuple[State, Tensor, Tensor]:
        """State, report before the session, and engagement summed so far."""
        return self.environment.start(row_B, key_B), self.pre_valence_S[row_B], torch.zeros(len(row_B))

    def step(
        self, state: tuple[State, Tensor, Tensor], track_B: Tensor, t: int
    ) -> tuple[tuple[State, Tensor, Tensor], Feedback, dict[str, Tensor]]:
        """As for `Reporting`; those who leave report less often, so `given_left` stands beside `given`."""
        inner, pre_B, total_B = state
        inner, feedback, expected = self.environment.step(inner, track_B, t)
        total_B = total_B + feedback.engagement_B
        config = self.environment.config
        drawn_B2 = report(config, inner.affect_B2, inner.key_B + t, Draw.POST_NOISE)
        u_B = uniform(inner.key_B, t, REPORTED)
        stays_B = torch.zeros_like(feedback.left_B)
        for name, left_B in (("given", stays_B), ("given_left", ~stays_B)):
            chance_B = post_given(config, inner, left_B.float(), pre_B, total_B / (t + 1))
            expected[name] = (u_B < chance_B).float()
        expected |= {f"drawn_{name}": drawn_B2[:, number] for number, name in enumerate(AFFECT)}
        return (inner, pre_B, total_B), feedback, expected


def gaps(x_N: Floats, y_N: Floats) -> tuple[float, float]:
    """Wasserstein-1 distance and Kolmogorov-Smirnov distance of two samples; NaN where one is empty."""
    x_N, y_N = x_N[~np.isnan(x_N)], y_N[~np.isnan(y_N)]
    if not (len(x_N) and len(y_N)):
        return float("nan"), float("nan")
    place_N = np.unique(np.concatenate([x_N, y_N]))
    below = [np.searchsorted(np.sort(z_N), place_N, side="right") / len(z_N) for z_N in (x_N, y_N)]
    apart_N = np.abs(below[0] - below[1])
    return float((apart_N[:-1] * np.diff(place_N)).sum()), float(apart_N.max())


def compared(one: Told, other: Told) -> Iterator[tuple[str, str, float, float, int]]:
    """Signal, what is compared, Wasserstein-1 and Kolmogorov-Smirnov distance, and number of sessions."""
    views = [_views(told) for told in (one, other)]
    for key in views[0]:
        yield *key, *gaps(views[0][key], views[1][key]), len(one.left_B)


def _views(told: Told) -> dict[tuple[str, str], Floats]:
    """Values of each signal: of single plays, of successive ones (their difference), of sessions."""
    found: dict[tuple[str, str], Tensor] = {}
    for name, value_BT in (("engagement", told.engagement_BT), ("rating", told.rating_BT)):
        found[name, "marginal"] = value_BT.flatten()
        found[name, "lag1"] = value_BT.diff(dim=1).flatten()
        found[name, "session"] = value_BT.nanmean(1)
    for number, name in enumerate(AFFECT):
        found[name, "session"] = told.report_B2[:, number]
    found["left", "session"] = told.left_B.float()
    found["reported", "session"] = (~told.report_B2.isnan()).any(1).float()
    found["all", "session"] = (told.track_BT >= 0).sum(1).float()  # the session's length
    return {key: value.double().numpy() for key, value in found.items()}


def features(told: Told, data: SessionDataModule) -> Floats:
    """What a classifier sees of each session, (B, X): length, feedback, reports, and where its tracks lie."""
    played_BT = told.track_BT >= 0
    count_B = played_BT.sum(1)
    e_BT, last_B1 = told.engagement_BT, (count_B - 1)[:, None]
    # About the session's own mean: one of the whole side would name the side wherever all was heard out.
    apart_BT = e_BT - e_BT.nanmean(1, keepdim=True)
    pair_BT = apart_BT[:, 1:] * apart_BT[:, :-1]
    centred_KE = data.embedding_KE - data.embedding_KE.mean(0)
    unit_KE = torch.nn.functional.normalize(centred_KE, dim=1)
    _, _, axes_EE = torch.linalg.svd(centred_KE, full_matrices=False)
    track_BT = told.track_BT.clamp(min=0)
    alike_BT = (
        (unit_KE[track_BT[:, 1:]] * unit_KE[track_BT[:, :-1]]).sum(-1).where(played_BT[:, 1:], torch.nan)
    )
    plays_BT = (data.plays(TRAIN)[track_BT] + 1).log().where(played_BT, torch.nan)
    place_BTX = (centred_KE @ axes_EE[:DIRECTIONS].T)[track_BT].where(played_BT[..., None], torch.nan)
    nan = torch.isnan
    columns = [
        count_B, told.left_B, e_BT.nanmean(1), e_BT[:, 0], e_BT.gather(1, last_B1)[:, 0],
        (e_BT < SKIPPED).sum(1) / count_B, (e_BT == 1).sum(1) / count_B, pair_BT.nanmean(1),
        (~nan(told.rating_BT)).sum(1) / count_B, told.rating_BT.nanmean(1), ~nan(told.report_B2[:, 0]),
        told.report_B2[:, 0], told.report_B2[:, 1], alike_BT.nanmean(1), plays_BT.nanmean(1),
    ]  # fmt: skip
    table_BX = torch.cat([torch.stack([c.float() for c in columns], 1), place_BTX.nanmean(1)], 1)
    return table_BX.double().numpy()


def told_apart(one_BX: Floats, other_BX: Floats, user_B: Ints, seed: int) -> tuple[Floats, Floats, Ints]:
    """Labels, cross-fitted scores and users, (W,) each, of boosted trees that tell one from the other.

    Row b of both sides belongs to `user_B[b]`; no user is fitted and scored at once. Scores are about .5
    where nothing is learned, so an AUROC of .5 says that the two cannot be told apart.
    """
    x_WX, user_W = np.concatenate([one_BX, other_BX]), np.concatenate([user_B, user_B])
    y_W = np.repeat([0.0, 1.0], len(user_B))
    score_W = np.full(len(y_W), 0.5)
    folds = GroupKFold(min(_FOLDS, len(np.unique(user_B))))
    for fit, held in folds.split(x_WX, y_W, user_W):
        model = HistGradientBoostingClassifier(
            max_iter=100, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=10, random_state=seed
        )
        score_W[held] = model.fit(x_WX[fit], y_W[fit]).predict_proba(x_WX[held])[:, 1]
    return y_W, score_W, user_W
