"""Exact log-probabilities over the catalogue, a tile of the table of logits at a time.

The table, positions by tracks, is never written out: a tile stays in a core's cache through all that is
done to it, and is made again for the gradients. Positions are taken mode by mode against the mode's own
tracks, so that nothing is barred within a tile but what a session has played.

Shape suffixes: P positions, K tracks, M modes, D width, T plays of a session, R rows and C columns of a tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from amrs.models.linear import linear
from amrs.rules import Rules

_ROWS, _COLUMNS = 256, 2048
"""Of a tile: 2 MiB."""


def _columns(rules: Rules, mode_P: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Tracks of a mode, some at a time and in order, each with all rows of that mode, some at a time."""
    for mode in mode_P.unique().tolist():
        rows = torch.nonzero(mode_P == mode)[:, 0].split(_ROWS)
        for track_C in torch.nonzero(rules.mode_MK[mode])[:, 0].split(_COLUMNS):
            yield track_C, rows


def _cells(track_C: Tensor, asked_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column, (N,) each, of those tracks of (R, T) that are among the tile's."""
    column_RT = torch.searchsorted(track_C, asked_RT).clamp_(max=len(track_C) - 1)
    inside_RT = track_C[column_RT] == asked_RT
    return torch.nonzero(inside_RT)[:, 0], column_RT[inside_RT]


class _InTiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_PD: Tensor, vector_KD: Tensor, bias_K: Tensor, *asks: Any) -> Tensor:
        rules, mode_P, played_PT, track_P = asks
        total_P = query_PD.new_full((len(query_PD),), -torch.inf)
        chosen_P = total_P.clone()
        for track_C, rows in _columns(rules, mode_P):
            vector_CD, bias_C = vector_KD[track_C], bias_K[track_C]
            for row_R in rows:
                logits_RC = linear(query_PD[row_R], vector_CD, bias_C)
                if not rules.repeats:
                    logits_RC[_cells(track_C, played_PT[row_R])] = -torch.inf
                cells = _cells(track_C, track_P[row_R, None])
                chosen_P[row_R[cells[0]]] = logits_RC[cells]
                total_P[row_R] = torch.logaddexp(total_P[row_R], logits_RC.logsumexp(1))
        ctx.save_for_backward(query_PD, vector_KD, bias_K, mode_P, played_PT, track_P, total_P)
        ctx.rules = rules
        return chosen_P - total_P

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_PD, vector_KD, bias_K, mode_P, played_PT, track_P, total_P = ctx.saved_tensors
        into_query_PD, into_vector_KD, into_bias_K = map(torch.zeros_like, (query_PD, vector_KD, bias_K))
        for track_C, rows in _columns(ctx.rules, mode_P):
            vector_CD, bias_C = vector_KD[track_C], bias_K[track_C]
            into_vector_CD, into_bias_C = torch.zeros_like(vector_CD), torch.zeros_like(bias_C)
            for row_R in rows:
                query_RD, grad_R = query_PD[row_R], grads[0][row_R]
                table_RC = linear(query_RD, vector_CD, bias_C)
                if not ctx.rules.repeats:
                    table_RC[_cells(track_C, played_PT[row_R])] = -torch.inf
                table_RC.sub_(total_P[row_R, None]).exp_().mul_(-grad_R[:, None])
                cells = _cells(track_C, track_P[row_R, None])
                table_RC[cells] += grad_R[cells[0]]
                into_query_PD[row_R] += linear(table_RC, vector_CD.T)
                into_vector_CD += linear(query_RD.T, table_RC.T).T
                into_bias_C += table_RC.sum(0)
            into_vector_KD[track_C] += into_vector_CD
            into_bias_K[track_C] += into_bias_C
        return into_query_PD, into_vector_KD, into_bias_K, None, None, None, None


def log_prob_in_tiles(
    query_PD: Tensor, vector_KD: Tensor, bias_K: Tensor, rules: Rules, mode_P: Tensor, played_PT: Tensor,
    track_P: Tensor,
) -> Tensor:  # fmt: skip
    """(P,) log-probability in nats of one allowed track each, where logits are query x vector + bias.

    As `rules.log_prob_allowed` of these logits and `rules.allowed`, to float rounding. For CPUs: each tile is
    too little work for a GPU.
    """
    asks = rules, mode_P, played_PT, track_P
    found: Tensor = _InTiles.apply(query_PD, vector_KD, bias_K, *asks)  # type: ignore[no-untyped-call]
    return found
