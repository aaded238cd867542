"""Preference-pair samplers: which track should have followed, and which should not.

Shape suffixes: B pairs or histories, C candidates, K tracks, S sessions, N tokens of the log, M members.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from amrs.candidates import candidate_utility, member_utilities, next_track_log_probs
from amrs.cluster.shares import Share, alone
from amrs.config.stages import PreferencesConfig
from amrs.continuations import continued_utility, shortfall
from amrs.data import SessionDataModule
from amrs.logs.histories import FlatLog, played_before
from amrs.logs.splits import TRAIN
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.negatives import negative_plays
from amrs.noise import uniform
from amrs.rollout import choose
from amrs.rules import Rules, histories_at_once
from amrs.utility import Utility

EXPLORE, HISTORIES, DRAWS = 300, 301, 302
"""Purposes of draws: exploration candidates, histories, and Copycat's candidates."""
_CHUNK = 128


@dataclass
class Pairs:
    """Preference pairs: before play `step_B` (from 0) of session `row_B`, chosen beats rejected."""

    row_B: Tensor
    step_B: Tensor
    chosen_B: Tensor
    rejected_B: Tensor
    du_B: Tensor
    """Predicted utility of chosen minus rejected."""
    others_BJ: Tensor
    """More rejected tracks, all worse than the chosen; -1 for none. J may be 0."""
    du_others_BJ: Tensor
    """Predicted utility of chosen minus each of those."""

    def __getitem__(self, keep_B: Tensor) -> "Pairs":
        return Pairs(*(getattr(self, name)[keep_B] for name in self.__dataclass_fields__))


def whitened(embedding_KE: Tensor) -> Tensor:
    """Embeddings rotated to their principal axes and scaled to variance 1 along each, as (K, axes).

    Axes with less than a thousandth of the largest standard deviation are noise (or none at all, where there
    are fewer tracks than dimensions) and are left out.
    """
    centred_KE = (embedding_KE - embedding_KE.mean(0)).double()
    u_KA, s_A, _ = torch.linalg.svd(centred_KE, full_matrices=False)
    kept = s_A > 1e-3 * s_A[0]
    white_KA: Tensor = (u_KA[:, kept] * len(embedding_KE) ** 0.5).to(embedding_KE.dtype)
    return white_KA


@lru_cache(maxsize=1)
def neighbour_space(data: SessionDataModule, whiten: bool) -> Tensor:
    """Where tracks are near one another, as (K, axes); worked out once for all batches of pairs."""
    return whitened(data.embedding_KE) if whiten else data.embedding_KE


def nearest_tracks(embedding_KE: Tensor, track_B: Tensor, count: int) -> Tensor:
    """The `count` nearest other tracks by cosine of centred embeddings, as (B, count)."""
    unit_KE = torch.nn.functional.normalize(embedding_KE - embedding_KE.mean(0), dim=1)
    similarity_BK = unit_KE[track_B] @ unit_KE.T
    similarity_BK[torch.arange(len(track_B)), track_B] = -torch.inf
    return similarity_BK.topk(count, dim=1).indices


@dataclass
class Labelling:
    """What pairs are made of."""

    model: WorldModel
    """The labeller."""
    copycat: PolicyModel
    utility: Utility
    data: SessionDataModule
    rules: Rules
    config: PreferencesConfig
    seed: int
    behaviour: PolicyModel | None = None
    """Whose draws are the candidates of `on_policy`."""
    share: Share = alone
    """How processes share the plays."""

    @cached_property
    def tracks(self) -> tuple[Tensor, Tensor]:
        """Copycat's, for all batches of pairs: of a large catalogue they are dear."""
        with torch.inference_mode():
            return self.copycat.tracks()


def corrective(source: Labelling, rows: Tensor) -> Pairs:
    """Negative-feedback corrective sampling (Chan et al. 2026).

    Rejected is a track that got negative feedback; chosen is the track of highest predicted utility
    among its nearest neighbours and a random exploration set, all allowed at that moment. A pair without
    predicted improvement is dropped.
    """
    flat = source.data.flat
    negative_N = negative_plays(flat, source.config.negative, source.utility) & _of_rows(flat, rows)
    return _in_chunks(source, torch.nonzero(negative_N)[:, 0], _corrections)


def margin(source: Labelling, rows: Tensor) -> Pairs:
    """The best against the others of `draws` tracks that Copycat might have played, at any play of the log.

    Kept where the utilities of best and worst differ by more than `margin` standard deviations over members.
    Draws from the reference are where a policy near it will be, so the pairs teach the tilt that maximises
    utility less divergence: log pi / pi_ref = U / tau + const. (Negative feedback says where the reference
    did badly, not what it may do instead.) At most `histories` plays, by a draw of their own.
    """
    return _in_chunks(source, _some_plays(source, rows), _extremes)


def _some_plays(source: Labelling, rows: Tensor) -> Tensor:
    """At most `histories` play tokens of the sessions `rows`, by a draw of each play's own."""
    flat = source.data.flat
    token_N = torch.nonzero(_of_rows(flat, rows) & (flat.track_N >= 0))[:, 0]
    order = uniform(source.seed, HISTORIES, token_N).argsort()
    return token_N[order[: source.config.histories]].sort().values


def _draws(source: Labelling, token_B: Tensor) -> Tensor:
    """Tracks (B, C) that Copycat might have played instead."""
    row_B, step_B = source.data.flat.session_N[token_B], source.data.flat.step_N[token_B] - 1
    log_p_BK = next_track_log_probs(source.copycat, source.data, source.rules, row_B, step_B, source.tracks)
    return choose(log_p_BK, uniform(source.seed, DRAWS, token_B[:, None], torch.arange(source.config.draws)))


def on_policy(source: Labelling, rows: Tensor) -> Pairs:
    """As `margin`, but the candidates are drawn from an earlier round's policy (`preferences.policy`).

    The reference stays Copycat. Where the policy has moved, its own draws say more about what it should do
    next than Copycat's (as in iterated DPO: Xu et al. 2023).
    """
    assert source.behaviour is not None
    return margin(replace(source, copycat=source.behaviour), rows)


def best_worst(source: Labelling, rows: Tensor) -> Pairs:
    """The best first track against the others of `draws` continuations that the labeller imagines.

    Candidates are Copycat's, at plays of the log; Copycat goes on to the end of the session, and all of a
    history meet the same luck. Dearer and noisier than `margin`, but it trusts no linear carry.
    """
    return _in_chunks(source, _some_plays(source, rows), _continued)


def credited(source: Labelling, rows: Tensor) -> Pairs:
    """Corrections of the tracks that a disappointing session is put down to.

    A session disappoints where its report fell below what its start let expect (`shortfall` above 0). The
    labeller credits each of its tracks with what it left at the end compared with Copycat's draws there,
    c(s) (u(track) - mean u(draw)); those below 0 are rejected, and corrected as in `corrective`.
    """
    flat = source.data.flat
    chunks = [row_B for row_B in rows.split(_CHUNK) if len(row_B)]

    def fallen(unit: int) -> Tensor:
        return shortfall(source.model, source.utility, source.data, chunks[unit])

    fell = source.share("shortfalls", len(chunks), fallen)
    fell_S = torch.full((len(flat.mode_S),), torch.nan)
    if chunks:
        fell_S[rows] = torch.cat(fell)
    token_N = torch.nonzero((fell_S > 0)[flat.session_N] & (flat.track_N >= 0))[:, 0]
    parts = [token_B for token_B in token_N.split(_CHUNK) if len(token_B)]
    blamed = source.share("credits", len(parts), lambda unit: parts[unit][_credit(source, parts[unit]) < 0])
    return _in_chunks(source, torch.cat(blamed) if blamed else token_N, _corrections)


def _credit(source: Labelling, token_B: Tensor) -> Tensor:
    """Utility of the track that was played less the mean over Copycat's draws there, (B,)."""
    data = source.data
    row_B, step_B = data.flat.session_N[token_B], data.flat.step_N[token_B] - 1
    candidate_BC = torch.cat([data.flat.track_N[token_B][:, None], _draws(source, token_B)], 1)
    u_BC = candidate_utility(source.model, source.utility, data, row_B, step_B, candidate_BC)
    return u_BC[:, 0] - u_BC[:, 1:].mean(1)


def _continued(source: Labelling, token_B: Tensor) -> Pairs:
    data = source.data
    row_B, step_B = data.flat.session_N[token_B], data.flat.step_N[token_B] - 1
    candidate_BC = _draws(source, token_B)
    horizon = int(data.flat.length_S[data.rows(TRAIN)].double().median())
    u_BC = continued_utility(
        source.model, source.copycat, source.utility, data, source.rules, row_B, step_B, candidate_BC,
        source.seed, horizon,
    )  # fmt: skip
    u_BC = u_BC + source.utility.bonus(candidate_BC)
    return _best_and_worst(source, row_B, step_B, candidate_BC, u_BC)


def _of_rows(flat: FlatLog, rows: Tensor) -> Tensor:
    used_S = torch.zeros(len(flat.mode_S), dtype=torch.bool)
    used_S[rows] = True
    return used_S[flat.session_N]


def _in_chunks(source: Labelling, token_N: Tensor, make: Callable[[Labelling, Tensor], Pairs]) -> Pairs:
    """Pairs at the plays `token_N`; those without predicted improvement are dropped."""
    size = histories_at_once(source.data.tracks, _CHUNK)
    chunks = [token_B for token_B in token_N.split(size) if len(token_B)]

    def unit(number: int) -> list[Tensor]:
        made = make(source, chunks[number])
        return [getattr(made, name) for name in Pairs.__dataclass_fields__]

    found = source.share("pairs", len(chunks), unit)
    if not found:
        empty = torch.zeros(0, dtype=torch.int64)
        return Pairs(empty, empty, empty, empty, torch.zeros(0), empty[:, None][:, :0], torch.zeros(0, 0))
    pairs = Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return pairs[pairs.du_B > 0]


def _extremes(source: Labelling, token_B: Tensor) -> Pairs:
    data = source.data
    row_B, step_B = data.flat.session_N[token_B], data.flat.step_N[token_B] - 1
    candidate_BC = _draws(source, token_B)
    u_MBC = member_utilities(source.model, source.utility, data, row_B, step_B, candidate_BC)
    pairs = _best_and_worst(source, row_B, step_B, candidate_BC, source.utility.joined(u_MBC, candidate_BC))
    if source.config.margin > 0 and len(u_MBC) > 1:
        at_B2 = torch.stack([(candidate_BC == k[:, None]).int().argmax(1)
                             for k in (pairs.chosen_B, pairs.rejected_B)], 1)  # fmt: skip
        u_MB2 = u_MBC.gather(2, at_B2.expand(len(u_MBC), -1, -1))
        doubt_B = (u_MB2[..., 0] - u_MB2[..., 1]).std(0)
        pairs.du_B = pairs.du_B.where(pairs.du_B > source.config.margin * doubt_B, -1.0)
    return pairs


def _best_and_worst(
    source: Labelling, row_B: Tensor, step_B: Tensor, candidate_BC: Tensor, u_BC: Tensor
) -> Pairs:
    order_BC = u_BC.argsort(dim=1, stable=True)
    sorted_BC, u_BC = candidate_BC.gather(1, order_BC), u_BC.gather(1, order_BC)
    chosen_B = sorted_BC[:, -1]
    rejected = candidate_BC.shape[1] - 1 if source.config.rejected is None else source.config.rejected
    others_BJ = sorted_BC[:, 1:rejected]
    others_BJ = others_BJ.masked_fill(others_BJ == chosen_B[:, None], -1)
    du_BC = u_BC[:, -1:] - u_BC
    return Pairs(row_B, step_B, chosen_B, sorted_BC[:, 0], du_BC[:, 0], others_BJ,
                 du_BC[:, 1:rejected])  # fmt: skip


def _corrections(source: Labelling, token_B: Tensor) -> Pairs:
    data, config = source.data, source.config
    flat = data.flat
    row_B, step_B, rejected_B = flat.session_N[token_B], flat.step_N[token_B] - 1, flat.track_N[token_B]
    near_BC = nearest_tracks(
        neighbour_space(data, config.whiten), rejected_B, min(config.neighbours, data.tracks - 1)
    )
    column = torch.arange(config.explore)
    random_BC = (uniform(source.seed, EXPLORE, token_B[:, None], column) * data.tracks).long()
    candidate_BC = torch.cat([rejected_B[:, None], near_BC, random_BC], 1)
    u_BC = candidate_utility(source.model, source.utility, data, row_B, step_B, candidate_BC)
    allowed_BK = source.rules.allowed(flat.mode_S[row_B], played_before(flat, row_B, step_B))
    legal_BC = allowed_BK.gather(1, candidate_BC)
    legal_BC &= candidate_BC != rejected_B[:, None]  # exploration may draw the rejected track itself
    best_B = u_BC.masked_fill(~legal_BC, -torch.inf).argmax(1, keepdim=True)
    du_B = u_BC.gather(1, best_B)[:, 0] - u_BC[:, 0]
    du_B = du_B.where(legal_BC.any(1), -1.0)
    none_B0 = rejected_B[:, None][:, :0]
    chosen_B = candidate_BC.gather(1, best_B)[:, 0]
    return Pairs(row_B, step_B, chosen_B, rejected_B, du_B, none_B0, none_B0.float())


SAMPLERS: dict[str, Callable[[Labelling, Tensor], Pairs]] = {
    "margin": margin,
    "corrective": corrective,
    "credited": credited,
    "best_worst": best_worst,
    "on_policy": on_policy,
}
