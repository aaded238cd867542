"""Batches: what they hold, the windows they are cut from, and the order in which they come.

Shape suffixes: W windows, B batch, L window length, F session features, Y targets, Z labels, A steps
gathered together, M units of a micro-batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from amrs.logs.histories import FlatLog
from amrs.noise import uniform


class BatchSizeError(ValueError):
    """A batch that cannot be dealt out to all processes and accumulation steps."""


class Batch(NamedTuple):
    """B windows of L tokens, right-padded; targets are about the play after each token."""

    static_BLF: Tensor
    """Features of each token's session, NaN where missing."""
    track_BL: Tensor
    """int64 track of a play token, -1 at session starts and padding."""
    feedback_BL4: Tensor
    """`FEEDBACK` of a play token, NaN where missing or hidden."""
    hidden_BL: Tensor
    """True at plays whose feedback is hidden from the model, with that to all of their session."""
    valid_BL: Tensor
    """False at padding."""
    counts_BL: Tensor
    """True where the token's targets count in the loss (windows overlap, targets do not)."""
    next_track_BL: Tensor
    """int64 track played right after the token in the same session, -1 where none."""
    mode_BL: Tensor
    """int64 mode of the session, -1 where null."""
    step_BL: Tensor
    """int64 number of plays of this session up to and including the token."""
    target_BLY: Tensor
    """`TARGETS` of the next play, NaN where unknown."""
    report_BL2: Tensor
    """The session's own final report (valence, arousal), at its start token and its last play only."""
    user_B: Tensor
    """int64 number of each window's user."""
    normaliser_Z: Tensor
    """Counts of `LABELS` in the whole optimiser step, per process and micro-batch; see `StepBatches`."""

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(*(x.to(device) for x in self))


class PairBatch(NamedTuple):
    """B preference pairs; the prefix ends at the token whose output ranks the two tracks."""

    prefix: Batch
    played_BT: Tensor
    """Tracks of the session before the play, -1 for none."""
    chosen_B: Tensor
    rejected_B: Tensor
    du_B: Tensor
    """Predicted utility of chosen minus rejected, above 0."""
    ref_chosen_B: Tensor
    """Copycat's log-probability of the chosen track, in nats."""
    ref_rejected_B: Tensor
    others_BJ: Tensor
    """More rejected tracks of the pair, -1 for none; J may be 0."""
    du_others_BJ: Tensor
    """Predicted utility of chosen minus each of those."""
    ref_others_BJ: Tensor
    pairs: Tensor
    """Pairs in the whole optimiser step, per process and micro-batch."""


def windows(flat: FlatLog, users: Tensor, length: int) -> Tensor:
    """Windows over the users' whole histories, as int64 (W, 3): first token, end, first that counts.

    Windows overlap by half; every token counts in exactly one window, and beyond the first window
    it has at least `length // 2` tokens before it.
    """
    begin_U, end_U = flat.user_first_U[users], flat.user_last_U[users]
    stride = length - length // 2
    more_U = (end_U - begin_U - length).clamp(min=0)
    count_U = 1 + (more_U + stride - 1) // stride
    user_W = torch.repeat_interleave(torch.arange(len(users)), count_U)
    number_W = torch.arange(len(user_W)) - (count_U.cumsum(0) - count_U)[user_W]
    begin_W, end_W = begin_U[user_W], end_U[user_W]
    stop_W = torch.minimum(begin_W + length + number_W * stride, end_W)
    counted_W = (begin_W + length + (number_W - 1) * stride).where(number_W > 0, begin_W)
    return torch.stack([torch.maximum(stop_W - length, begin_W), stop_W, counted_W], 1)


@dataclass
class StepBatches:
    """An endless stream of micro-batches, the same optimiser steps for any number of processes.

    Step s takes the same `batch_size` units whatever the ranks and accumulation steps; they are
    dealt out to (micro-batch, rank). `collate` gets the units and the label counts of the whole step
    divided by the number of deals, so that Lightning's division by accumulation steps and DDP's mean
    over ranks leave a sum divided by the step's count. Units are shuffled anew each epoch. How many
    steps are collated together changes no batch.
    """

    units: int
    batch_size: int
    seed: int
    collate: Callable[[Tensor, Tensor, int, int], Iterable[NamedTuple]]
    """(units of A steps' micro-batches (A, M), of the steps (A, B), deals, first step) -> a batch a step"""
    ranks: int = 1
    rank: int = 0
    accumulate: int = 1
    start_step: int = 0
    together: int = 1
    """Steps that are collated together."""
    _orders: dict[int, Tensor] = field(default_factory=dict, repr=False)
    """Order of the units in the epochs of the last step."""

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders.pop(epoch - 2, None)
            self._orders[epoch] = uniform(self.seed, epoch, torch.arange(self.units)).argsort()
        return self._orders[epoch]

    def step_units(self, step: int) -> Tensor:
        """Units of optimiser step `step`, as (batch_size,)."""
        first, stop = step * self.batch_size, (step + 1) * self.batch_size
        epochs = range(first // self.units, (stop - 1) // self.units + 1)
        parts = [self._order(e)[max(first - e * self.units, 0) : stop - e * self.units] for e in epochs]
        return torch.cat(parts)

    def __iter__(self) -> Iterator[NamedTuple]:
        deals = self.ranks * self.accumulate
        step = self.start_step
        while True:
            units_AB = torch.stack([self.step_units(step + a) for a in range(self.together)])
            mine = [units_AB[:, micro * self.ranks + self.rank :: deals] for micro in range(self.accumulate)]
            micros = [self.collate(mine_AM, units_AB, deals, step) for mine_AM in mine]
            for batches in zip(*micros, strict=True):
                yield from batches
            step += self.together


@dataclass
class Batches:
    """One batch for each part of the units (Lightning takes a plain list for several loaders)."""

    parts: Sequence[Tensor]
    collate: Callable[[Tensor, Tensor, int, int], Iterable[NamedTuple]]

    def __iter__(self) -> Iterator[NamedTuple]:
        for part in self.parts:
            yield from self.collate(part[None], part[None], 1, -1)

    def __len__(self) -> int:
        return len(self.parts)
