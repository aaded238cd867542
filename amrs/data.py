"""The SessionDataModule shared by all stages: batches gathered from the flat log.

Shape suffixes: W windows, B batch, L window length, F session features, Y targets, Z labels, A steps
gathered together, M units of a micro-batch.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor

from amrs.batches import Batch, Batches, BatchSizeError, PairBatch, StepBatches, windows
from amrs.config.data import SplitConfig
from amrs.gathering import SESSION, TRACK, gathered
from amrs.logs.histories import TARGETS, TOKEN, FlatLog, cumulative_labels, played_before
from amrs.logs.mapped import open_flat
from amrs.logs.schema import SessionLog, read_log
from amrs.logs.splits import TRAIN, VALIDATION, assigned
from amrs.noise import uniform
from amrs.rules import Rules

_HIDE = 1
_TOKENS = 1 << 20
"""Tokens looked at together where the whole log is gone through."""
_GATHERED = 50 << 10
"""Tokens gathered together, some 9 MB: small batches cost more in calls than in copying."""


class SessionDataModule(lightning.LightningDataModule):
    """Session logs for every stage: user splits, windows, prefixes, pairs.

    Args:
        log_dir: folder of a validated session log (never the platform's hidden truth).
        split: the user split.
        history: tokens in a window.
        users: "all" training and validation users, or the "labeller" or "judge" half of them.
        batch_size: windows (or pairs) per optimiser step over all ranks and accumulation steps.
        seed: seeds shuffling and hiding.
        hide_feedback: share of sessions whose own feedback is hidden.
        pairs: columns of a preference data set; batches are then pairs instead of windows.

    Raises:
        TooFewUsersError: a half of the users, or a part of it, is empty.
    """

    def __init__(
        self,
        log_dir: Path,
        split: SplitConfig,
        history: int,
        users: str = "all",
        batch_size: int = 32,
        seed: int = 0,
        hide_feedback: float = 0.0,
        pairs: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.log: SessionLog = read_log(log_dir)
        self.flat: FlatLog = open_flat(log_dir, self.log)
        self.history, self.batch_size, self.seed = history, batch_size, seed
        self.hide_feedback, self.pairs = hide_feedback, pairs
        part_U, half_U, keep_U = assigned(self.flat.user_ids, split, users)
        self.part_U, self.half_U = torch.from_numpy(part_U), torch.from_numpy(half_U)
        self.part_S = self.part_U[self.flat.user_S]
        self.used_U = torch.from_numpy(keep_U)

    def withhold(self, track_K: np.ndarray) -> None:
        """Learn nothing about the plays of these tracks (True in (K,)) but the report at the session's end.

        Engagement, ratings, leaving and whether a rating is given are no labels there; as history, the plays
        stay what they were.
        """
        next_N = self.flat.next_track_N
        withheld_N = (next_N >= 0) & torch.from_numpy(track_K)[next_N.clamp(min=0)]
        for name in ("engagement", "rating", "left", "rated"):
            self.flat.target_NY[withheld_N, TARGETS.index(name)] = torch.nan
        token_N = self.flat.token_NR.numpy().view(TOKEN)[:, 0]
        self.flat.labels_NZ = torch.from_numpy(cumulative_labels(token_N))

    @property
    def tracks(self) -> int:
        """Tracks in the catalogue."""
        return len(self.log.catalogue)

    @property
    def embedding_KE(self) -> Tensor:
        """The catalogue's embeddings, as in the log."""
        column = self.log.catalogue.with_format("arrow")[:]["embedding"]
        return torch.tensor(column.combine_chunks().flatten().to_numpy()).reshape(self.tracks, -1)

    def rules(self) -> Rules:
        """Which tracks may be played when: the catalogue's modes, and no repeats unless logs have them."""
        modes = self.log.metadata.modes
        mode_MK = torch.ones(len(modes) + 1, self.tracks, dtype=torch.bool)
        for k, allowed in enumerate(self.log.catalogue["modes"]):
            if allowed is not None:
                mode_MK[:-1, k] = torch.tensor([mode in allowed for mode in modes], dtype=torch.bool)
        return Rules(mode_MK, self.log.metadata.repeats)

    def plays(self, part: int) -> Tensor:
        """Plays of each track by the part's users, as (K,)."""
        rows_S = torch.zeros(len(self.part_S), dtype=torch.bool)
        rows_S[self.rows(part)] = True
        plays_K = torch.zeros(self.tracks + 1, dtype=torch.int64)  # starts are -1, the last
        for token_XR in self.flat.token_NR[:-1].split(_TOKENS):
            mine_X = rows_S[token_XR[:, SESSION]]
            track_X = token_XR[:, TRACK][mine_X]
            plays_K += torch.bincount(track_X.where(track_X >= 0, self.tracks), minlength=self.tracks + 1)
        return plays_K[:-1]

    def users(self, part: int) -> Tensor:
        """Users of a part that this module may use, as int64 indices."""
        return torch.nonzero((self.part_U == part) & self.used_U)[:, 0]

    def rows(self, part: int) -> Tensor:
        """Sessions of the part's users, as int64 rows of the log."""
        keep_S = (self.part_S == part) & self.used_U[self.flat.user_S]
        return torch.nonzero(keep_S)[:, 0]

    def windows(self, part: int) -> Tensor:
        """Windows (W, 3) over the histories of the part's users."""
        return windows(self.flat, self.users(part), self.history)

    def label_counts(self, window_W3: Tensor) -> Tensor:
        """Counts of `LABELS` in each window's counted tokens, as (W, Z)."""
        before_NZ = self.flat.labels_NZ.numpy()
        before_W2Z = torch.from_numpy(before_NZ.take(window_W3[:, 1:].numpy(), 0))
        return before_W2Z[:, 0] - before_W2Z[:, 1]

    def gather(self, window_B3: Tensor, hidden_seed: int | Tensor | None = None) -> Batch:
        """The windows as a padded batch; feedback of some sessions hidden if a seed is given, one or one a
        window (B, 1)."""
        if hidden_seed is None or self.hide_feedback == 0:
            return gathered(self.flat, window_B3)
        return gathered(
            self.flat,
            window_B3,
            lambda s_BL: uniform(self.seed, _HIDE, hidden_seed, s_BL) < self.hide_feedback,
        )

    def prefix(
        self, row_B: Tensor, step_B: Tensor | int = 0, length: int | None = None, hide_own: bool = False
    ) -> Batch:
        """What came before play `step_B` (from 0) of sessions `row_B`; the last valid token asks.

        At most `length` tokens (default `history`); nothing of the play itself or later is in it. With
        `hide_own` the session's own tracks are known and the feedback to them is not.
        """
        asks_B = self.flat.first_S[row_B] + step_B
        first_B = self.flat.user_first_U[self.flat.user_S[row_B]]
        begin_B = torch.maximum(first_B, asks_B + 1 - (length or self.history))
        batch = self.gather(torch.stack([begin_B, asks_B + 1, asks_B], 1))
        if not hide_own:
            return batch
        from_end_BL = batch.valid_BL.sum(1, keepdim=True) - 1 - torch.arange(batch.valid_BL.shape[1])
        own_BL = (from_end_BL >= 0) & (from_end_BL < torch.as_tensor(step_B).reshape(-1, 1))
        feedback_BL4 = batch.feedback_BL4.masked_fill(own_BL[..., None], torch.nan)
        return batch._replace(feedback_BL4=feedback_BL4, hidden_BL=own_BL)

    def train_dataloader(self) -> StepBatches:
        """Endless micro-batches from the current optimiser step on."""
        trainer = self.trainer
        assert trainer is not None
        deals = trainer.world_size * trainer.accumulate_grad_batches
        if self.batch_size < deals:
            raise BatchSizeError(
                f"batch_size={self.batch_size} cannot be split over {trainer.world_size} processes x "
                f"{trainer.accumulate_grad_batches} accumulation steps: raise it to {deals} or more"
            )
        units, collate = self._units(TRAIN)
        return StepBatches(
            units, self.batch_size, self.seed, collate, trainer.world_size, trainer.global_rank,
            trainer.accumulate_grad_batches, trainer.global_step, self.together,
        )  # fmt: skip

    def val_dataloader(self) -> "Batches":
        """This rank's share of the validation users' windows (or pairs), in batches.

        Every rank gets the same number of batches, none of them empty: processes wait for each other.
        """
        trainer = self.trainer
        assert trainer is not None
        units, collate = self._units(VALIDATION)
        if units < trainer.world_size:
            raise BatchSizeError(
                f"{units} windows (or pairs) of validation users cannot be shared by {trainer.world_size} "
                "processes: raise data.split.validation, or use fewer processes"
            )
        mine = torch.arange(units)[trainer.global_rank :: trainer.world_size]
        parts = mine.tensor_split(-(-(units // trainer.world_size) // self.batch_size))
        return Batches(parts, collate)

    def units(self, part: int) -> int:
        """Windows (or pairs) of the part's users."""
        return self._units(part)[0]

    @property
    def together(self) -> int:
        """Optimiser steps whose windows are gathered in one call."""
        return max(1, _GATHERED // (self.batch_size * self.history))

    def _units(self, part: int) -> tuple[int, Callable[[Tensor, Tensor, int, int], Iterable[NamedTuple]]]:
        if self.pairs is not None:
            chosen = torch.nonzero(self.pairs["part"] == part)[:, 0]
            return len(chosen), lambda mine_AM, units_AB, deals, _: (
                self._pair_batch(chosen[mine_M], units_AB.shape[1] / deals) for mine_M in mine_AM
            )
        window_W3 = self.windows(part)

        def collate(mine_AM: Tensor, units_AB: Tensor, deals: int, step: int) -> Iterator[Batch]:
            steps, micro = mine_AM.shape
            count_XZ = self.label_counts(window_W3[units_AB.flatten()])
            normaliser_AZ = count_XZ.unflatten(0, (steps, -1)).sum(1).clamp(min=1) / deals
            window_X3 = window_W3[mine_AM.flatten()]
            step_X1 = torch.arange(step, step + steps).repeat_interleave(micro)[:, None]
            batch = self.gather(window_X3, hidden_seed=step_X1)
            length_A = (window_X3[:, 1] - window_X3[:, 0]).view(steps, -1).amax(1).tolist()
            fields = (x.split(micro) for x in batch[:-1])
            for length, *parts in zip(length_A, *fields, normaliser_AZ, strict=True):
                if length < batch.valid_BL.shape[1]:
                    parts = [x[:, :length] if x.ndim > 1 else x for x in parts]
                yield Batch(*parts)

        return len(window_W3), collate

    def _pair_batch(self, pair_B: Tensor, count: float) -> PairBatch:
        columns: dict[str, Any] = {name: values[pair_B] for name, values in (self.pairs or {}).items()}
        prefix = self.prefix(columns["row"], columns["step"])
        played_BT = played_before(self.flat, columns["row"], columns["step"])
        none_B0 = torch.zeros(len(pair_B), 0)
        return PairBatch(
            prefix, played_BT, columns["chosen"], columns["rejected"], columns["du"], columns["ref_chosen"],
            columns["ref_rejected"], columns.get("others", none_B0.long()),
            columns.get("du_others", none_B0), columns.get("ref_others", none_B0), torch.tensor(count),
        )  # fmt: skip
