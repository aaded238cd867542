"""Training items: the Trainer with data loading, next to the same matrix products alone."""

import json
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import lightning
import torch

from amrs.config import parse
from amrs.data import SessionDataModule
from amrs.logs.splits import TRAIN
from amrs.models.policy import PolicyModel
from amrs.stages import dpo, world_model
from amrs.stages.bc import BehaviourCloning
from benchmarks.bounds import flops, products, replay
from benchmarks.reference import BATCH, MODEL, ROOT, data, peer_log, short_log
from benchmarks.timing import REPEATS, Clock, Row, Speed, row, speed

STEPS, WARM = 12, 4
"""Optimiser steps a repeat, and before the first."""
PAIRS = 4000
PEER = ROOT.parent / "peer" / "bin" / "python"


class _Laps(lightning.Callback):
    """Speeds of `REPEATS` laps of `STEPS` optimiser steps."""

    def __init__(self, count: Callable[[Any], float]) -> None:
        self.count, self.steps, self.work, self.speed = count, -WARM, 0.0, Speed([], [])

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """A lap ends every `STEPS` steps."""
        self.steps += 1
        if self.steps > 0:
            self.work += self.count(batch)
        if self.steps % STEPS == 0 and self.steps >= 0:
            if self.steps:
                cpu, wall = self.clock.rates(self.work)
                self.speed.cpu.append(cpu)
                self.speed.wall.append(wall)
            self.clock, self.work = Clock(), 0.0


def _trained(
    name: str, unit: str, module: Any, log: SessionDataModule, count: Callable[[Any], float], note: str
) -> Row:
    laps = _Laps(count)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_steps=WARM + REPEATS * STEPS, max_epochs=-1, logger=False,
            callbacks=[laps], gradient_clip_val=1.0, limit_val_batches=0, num_sanity_val_steps=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=log)
        batch = next(iter(log.train_dataloader()))
        module.log = module.log_dict = lambda *_, **__: None
        pairs = products(lambda: module.training_step(batch, 0).backward())
    run, work = replay(pairs), count(batch)

    def bound() -> float:
        run()
        return work

    found = speed(bound)[0]
    rate = flops(pairs) / work * found.median[0] / 1e9
    return row(name, unit, laps.speed, found, f"{note}; bound: its matrix products, {rate:.0f} GFLOP/s")


def _plays(batch: Any) -> float:
    """Plays that are predicted."""
    return float((batch.counts_BL & (batch.next_track_BL >= 0)).sum())


def _config(stage: str) -> Any:
    return parse([f"stage={stage}", "model.history=50", "trainer.accelerator=cpu"]).config


def _world_model_train(members: int) -> tuple[Any, SessionDataModule]:
    log = data(short_log(), hide_feedback=0.3)
    model = world_model.build(members, 3, MODEL, log)
    return world_model.WorldModelTraining(model, _config("world_model")), log


def _world_model(name: str, members: int) -> list[Row]:
    module, log = _world_model_train(members)
    note = f"plays predicted (x members); {members} member(s), batch {BATCH}, dropout {MODEL.dropout}"
    return [_trained(name, "positions", module, log, lambda batch: members * _plays(batch), note)]


def world_model_train() -> list[Row]:
    """One member."""
    return _world_model("world_model_train", 1)


def world_model_train_5() -> list[Row]:
    """An ensemble of five."""
    return _world_model("world_model_train_5", 5)


def copycat_train() -> list[Row]:
    """Full softmax over 1,683 tracks."""
    log = data(short_log())
    model = PolicyModel(MODEL, log.flat.static_SF.shape[1], log.embedding_KE, log.plays(TRAIN) + 1)
    module = BehaviourCloning(model, log.rules(), _config("bc"))
    note = f"plays predicted; batch {BATCH}, dropout {MODEL.dropout}; all events of a user (RecTools: n - 1)"
    return [_trained("copycat_train", "positions", module, log, _plays, note)]


def dpo_train() -> list[Row]:
    """Made-up pairs at plays of the uncut log."""
    log = data(short_log())
    generator = torch.Generator().manual_seed(0)
    play_P = torch.nonzero(log.flat.step_N > 0)[:, 0]
    play_P = play_P[torch.randperm(len(play_P), generator=generator)[:PAIRS]]
    row_P, step_P = log.flat.session_N[play_P], log.flat.step_N[play_P] - 1
    model = PolicyModel(MODEL, log.flat.static_SF.shape[1], log.embedding_KE, log.plays(TRAIN) + 1)
    zeros = torch.zeros(len(row_P))
    rejected_P = log.flat.track_N[play_P]
    log.pairs = {
        "part": torch.full_like(row_P, TRAIN), "row": row_P, "step": step_P,
        "chosen": (rejected_P + 1) % log.tracks, "rejected": rejected_P, "du": zeros + 0.1,
        "ref_chosen": zeros - 7.0, "ref_rejected": zeros - 7.0,
    }  # fmt: skip
    module = dpo.DirectPreference(model, log.rules(), log, None, _config("dpo"), 1.0)  # type: ignore[arg-type]
    module.on_fit_start = lambda: None  # type: ignore[method-assign]
    note = f"batch {BATCH}, prefixes of up to 50 tokens, full softmax over 1,683 tracks"
    return [_trained("dpo_train", "pairs", module, log, lambda batch: float(len(batch.chosen_B)), note)]


def peer() -> list[Row]:
    """RecTools SASRec on the same plays, in an environment of its own (`make bench` builds it)."""
    if not PEER.exists():
        return [Row("rectools_sasrec", "positions", note=f"not measured: no {PEER.parent.parent.name} env")]
    script = str(ROOT.parents[1] / "benchmarks" / "peer_rectools.py")
    done = subprocess.run([str(PEER), script, str(peer_log())], capture_output=True, text=True, check=False)
    if done.returncode:
        return [Row("rectools_sasrec", "positions", note=f"not measured: {done.stderr.splitlines()[-1]}")]
    found = json.loads(done.stdout.splitlines()[-1])
    cpu, low, high = found["cpu"]
    note = (
        f"{low:,} to {high:,} per CPU-s; batch 128, last 51 events of a user, n - 1 positions each: "
        f"{found['positions_per_epoch']:,} an epoch"
    )
    return [Row("rectools_sasrec", "positions", float(cpu), float(found["wall"][0]), note=note)]
