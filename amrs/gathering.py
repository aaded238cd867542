"""Windows of the mapped log as a padded batch: slices of tokens, each one piece of memory.

Shape suffixes: B batch, L window length, F session features, N tokens of the log, R columns of a token, V its
values of 4 bytes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from amrs.batches import Batch
from amrs.logs.histories import LABELS, TOKEN, FlatLog

SESSION, TRACK, _STEP, _MODE = range(4)
"""Columns of a token as 8-byte integers; what follows are the values, 4 bytes each."""
_FEEDBACK, _TARGET, _REPORT = slice(8, 12), slice(12, 19), slice(19, 21)


def _padding() -> np.ndarray:
    token = np.zeros(1, TOKEN)
    token["track"], token["mode"] = -1, -1
    for name in ("feedback", "target", "report"):
        token[name] = np.nan
    return token


_PADDING, _NO_FEEDBACK = _padding().tobytes(), _padding()["feedback"].tobytes()


def gathered(flat: FlatLog, window_B3: Tensor, hides: Callable[[Tensor], Tensor] | None = None) -> Batch:
    """The windows (first token, end, first that counts) as a padded batch.

    What comes from tokens is a view of one copy of them; padding is a start of session 0. `hides` says of
    sessions (B, L) whether the feedback to their plays is hidden.
    """
    begin_B, end_B, counted_B = window_B3.unbind(1)
    length_B = end_B - begin_B
    shortest, length = (int(n) for n in length_B.aminmax())
    place_L = torch.arange(length)
    valid_BL = place_L < length_B[:, None]
    token_BLR = _slices(flat.token_NR, begin_B, length)
    next_track_BL = token_BLR[:, 1:, TRACK]
    token_BLR = token_BLR[:, :-1]
    if shortest < length:
        next_track_BL = next_track_BL.where(valid_BL, -1)
        _put(token_BLR, ~valid_BL, _PADDING)
    session_BL = token_BLR[..., SESSION]
    value_BLV = token_BLR.view(torch.float32)
    feedback_BL4 = value_BLV[..., _FEEDBACK]
    hidden_BL = torch.zeros_like(valid_BL)
    if hides is not None:
        # A start has nothing to hide, and rollouts read it before they know whether feedback will be.
        hidden_BL = hides(session_BL) & (token_BLR[..., _STEP] > 0)
        _put(feedback_BL4, hidden_BL, _NO_FEEDBACK)
    # numpy takes strided rows without a copy of their numbers, and small rows faster.
    static_BLF = torch.from_numpy(flat.static_SF.numpy().take(session_BL.numpy(), 0))
    return Batch(
        static_BLF=static_BLF,
        track_BL=token_BLR[..., TRACK],
        feedback_BL4=feedback_BL4,
        hidden_BL=hidden_BL,
        valid_BL=valid_BL,
        counts_BL=(place_L >= (counted_B - begin_B)[:, None]) & valid_BL,
        next_track_BL=next_track_BL,
        mode_BL=token_BLR[..., _MODE],
        step_BL=token_BLR[..., _STEP],
        target_BLY=value_BLV[..., _TARGET],
        report_BL2=value_BLV[..., _REPORT],
        user_B=flat.user_S[token_BLR[:, 0, SESSION]],
        normaliser_Z=torch.ones(len(LABELS)),
    )


def _slices(token_NR: Tensor, begin_B: Tensor, length: int) -> Tensor:
    """A copy of `length` tokens and the one after them from each of `begin_B` on, (B, length + 1, R).

    Near the end of the log there are fewer: the rest is arbitrary there.
    """
    count, size = token_NR.shape
    last = count - 1 - length
    slice_NX = token_NR.as_strided((last + 1, (length + 1) * size), (size, 1))
    if int(begin_B.max()) <= last:
        return slice_NX.index_select(0, begin_B).view(-1, length + 1, size)
    token_BLR = slice_NX.index_select(0, begin_B.clamp(max=last)).view(-1, length + 1, size)
    for b in torch.nonzero(begin_B > last)[:, 0].tolist():
        token_BLR[b] = token_BLR[b].roll(int(last - begin_B[b]), 0)
    return token_BLR


def _put(row_BLR: Tensor, at_BL: Tensor, value: bytes) -> None:
    """Write `value`, a row's bytes, over the rows at `at_BL`: as one piece, not number by number."""
    piece = f"V{len(value)}"
    row_BLR.numpy().view(piece)[..., 0][at_BL.numpy()] = np.frombuffer(value, piece)
