"""What must hold on any history. Shape suffixes: Q histories, K tracks, T steps, S sessions, M neighbours.

Hard properties hold always: no track outside the mode, no repeat where the service has none, finite
probabilities that sum to 1, invariance to renamed ids and to a shift of whole weeks. A statistical property
holds mostly, and its violations are counted.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.noise import hash_keys
from amrs.rollout import Feedback, Policy, imagine
from amrs.rules import log_softmax_allowed
from amrs.stress import counterfactual
from amrs.stress.counterfactual import Histories, as_data, reading, rows_of

PROBE = 910
"""Purpose of the draws of a probe's tracks."""
_STEPS, _NEIGHBOURS = 3, 10
_SUM, _SAME, _MORE = 1e-4, 1e-3, 1e-3
"""Tolerances: of a sum of probabilities, of the total variation between probabilities that should be equal,
and of a rise of log-probability that counts (a tenth of a percent)."""


class Found(NamedTuple):
    """Checks of one property on some histories."""

    violations: int
    checks: int
    worst: float
    """Largest size of a violation; 0 without one."""

    def __add__(self, other: "Found") -> "Found":  # type: ignore[override]
        return Found(
            self.violations + other.violations, self.checks + other.checks, max(self.worst, other.worst)
        )


NONE = Found(0, 0, 0.0)


class Unmoved:
    """Listeners who hear half of each track and say nothing: a probe of policies needs no more."""

    def start(self, row_B: Tensor, key_B: Tensor) -> int:
        """Nothing to know."""
        return len(row_B)

    def step(self, state: int, track_B: Tensor, t: int) -> tuple[int, Feedback, dict[str, Tensor]]:
        """Half heard."""
        nothing = torch.full((state,), torch.nan)
        return state, Feedback(torch.full((state,), 0.5), nothing, torch.zeros(state, dtype=torch.bool)), {}


@torch.inference_mode()
def first_log_probs(policy: Policy, view: SessionDataModule, row_Q: Tensor) -> Tensor:
    """Log-probabilities (Q, K) of the first track of the sessions under way."""
    nothing = torch.zeros(len(row_Q), 0, dtype=torch.int64)
    allowed_QK = view.rules().allowed(view.flat.mode_S[row_Q], nothing)
    return log_softmax_allowed(policy.logits(policy.start(row_Q)).cpu(), allowed_QK)


def hard(policy: Policy, data: SessionDataModule, histories: Histories, seed: int) -> dict[str, Found]:
    """Every hard property on these histories, by name; the policy reads `data`."""
    view, row_Q = as_data(data, histories), rows_of(histories)
    probe = reading(policy, data, view)
    log_p_QK = first_log_probs(probe, view, row_Q)
    mode_Q, rules = view.flat.mode_S[row_Q], view.rules()
    tracks_QT = imagine(
        probe, Unmoved(), rules, mode_Q, row_Q, hash_keys(seed, PROBE, row_Q), _STEPS
    ).track_BT  # fmt: skip
    outside_QT = ~rules.mode_MK[mode_Q[:, None], tracks_QT.clamp(min=0)] & (tracks_QT >= 0)
    ordered_QT = tracks_QT.sort(1).values
    repeated_Q = ((ordered_QT[:, 1:] == ordered_QT[:, :-1]) & (ordered_QT[:, 1:] >= 0)).any(1)
    found = {
        "outside_mode": _count(outside_QT.any(1).float(), 0.5),
        "probabilities": _count(_off(log_p_QK), _SUM),
        "renamed": _changed(policy, data, counterfactual.reversed_users(histories), log_p_QK.flip(0)),
        "weeks_later": _changed(policy, data, counterfactual.weeks_later(histories), log_p_QK),
    }
    if not rules.repeats:
        found["repeated"] = _count(repeated_Q.float(), 0.5)
    return found


def _off(log_p_QK: Tensor) -> Tensor:
    """How far probabilities (Q,) are from summing to 1; infinite where one is not a number."""
    total_Q = log_p_QK.double().exp().sum(1)
    return torch.where(total_Q.isfinite(), (total_Q - 1).abs(), torch.inf)


def _changed(policy: Policy, data: SessionDataModule, histories: Histories, before_QK: Tensor) -> Found:
    """Total variation between the probabilities before and on histories that should not matter."""
    view = as_data(data, histories)
    after_QK = first_log_probs(reading(policy, data, view), view, rows_of(histories))
    return _count((after_QK.exp() - before_QK.exp()).abs().sum(1) / 2, _SAME)


def _count(size_Q: Tensor, tolerance: float) -> Found:
    bad_Q = ~(size_Q <= tolerance)
    worst = float(size_Q[bad_Q].max()) if bad_Q.any() else 0.0
    return Found(int(bad_Q.sum()), len(size_Q), worst)


def worse_feedback(policy: Policy, data: SessionDataModule, histories: Histories) -> Found:
    """After worse feedback on a track, it and its neighbours become no more likely in the next session.

    Of each history, the last earlier track with good feedback (heard to the end or liked) gets bad feedback
    instead (not heard, disliked where it was rated). Size: rise of the log-probability of the track and
    its nearest neighbours (cosine), as far as the mode allows them, as the next session's first track.
    """
    index_Q, play_Q = _good_plays(histories)
    if len(index_Q) == 0:
        return NONE
    play_N = {name: value_N.copy() for name, value_N in histories.columns.play_N.items()}
    play_N["engagement"][play_Q] = 0.0
    given_Q = ~np.isnan(play_N["rating"][play_Q])
    play_N["rating"][play_Q[given_Q]] = 0.0
    worse = Histories(replace(histories.columns, play_N=play_N), histories.row_Q)
    near_QM = _neighbours(data.embedding_KE, torch.from_numpy(histories.columns.track_N[play_Q]))
    log_p = []
    for version in (histories, worse):
        view = as_data(data, version)
        row_Q = rows_of(version)[index_Q]
        log_p.append(first_log_probs(reading(policy, data, view), view, row_Q).gather(1, near_QM))
    before_Q, after_Q = (x_QM.logsumexp(1) for x_QM in log_p)
    known_Q = before_Q.isfinite() & after_Q.isfinite()
    return _count((after_Q - before_Q)[known_Q], _MORE)


def _good_plays(histories: Histories) -> tuple[Tensor, np.ndarray]:
    """Histories that hold an earlier play with good feedback, and the last such play of each."""
    columns = histories.columns
    play_N = columns.play_N
    good_N = ((play_N["engagement"] >= 0.99) | (play_N["rating"] == 1)) & histories.earlier_N
    play, owner = np.flatnonzero(good_N), columns.user_S[columns.row_N[good_N]]
    last_Q = {int(q): int(n) for q, n in zip(owner, play, strict=True)}
    return torch.tensor(list(last_Q), dtype=torch.int64), np.array(list(last_Q.values()), dtype=np.int64)


def _neighbours(embedding_KE: Tensor, track_Q: Tensor) -> Tensor:
    """Each track and its nearest neighbours by cosine, (Q, M + 1)."""
    centred_KE = torch.nn.functional.normalize(embedding_KE - embedding_KE.mean(0), dim=1)
    near_QK = centred_KE[track_Q] @ centred_KE.T
    near_QK.scatter_(1, track_Q[:, None], torch.inf)  # the track itself comes first
    return near_QK.topk(min(_NEIGHBOURS + 1, len(embedding_KE)), 1).indices
