"""Behaviour-clone the production recommender: Copycat, the frozen reference of everything after."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from amrs.batches import Batch
from amrs.cluster.sharding import ShardedModule
from amrs.config.graph import Config
from amrs.config.groups import ModelConfig
from amrs.data import SessionDataModule
from amrs.logs.splits import TRAIN
from amrs.models.packed import rounded
from amrs.models.policy import PolicyModel, played_so_far
from amrs.models.tiles import log_prob_in_tiles
from amrs.rules import Rules, in_chunks, log_prob_allowed
from amrs.runs import Run, read_config
from amrs.stages.prepare import open_data
from amrs.training import RatioOfSums, fit, linear_schedule, load_weights


def clone_log_probs(model: PolicyModel, rules: Rules, batch: Batch) -> Tensor:
    """Log-probability in nats of each counted play that followed, as (N,): InfoNCE (van den Oord et al.
    2018) with every allowed track as a candidate, which makes it an exact softmax likelihood."""
    asked_BL = batch.counts_BL & (batch.next_track_BL >= 0)
    wanted_BL = rounded(asked_BL)
    parts = [x[wanted_BL] for x in (batch.mode_BL, played_so_far(batch), batch.next_track_BL.clamp(min=0))]
    h_ND, tracks, asked_N = model.encoder.at(batch, wanted_BL), model.tracks(), asked_BL[wanted_BL]
    if h_ND.device.type == "cpu" and tracks[0].dtype == torch.float32:
        return log_prob_in_tiles(model.query(h_ND), *tracks, rules, *parts)[asked_N]

    def score(h_ND: Tensor, mode_N: Tensor, played_NT: Tensor, next_N: Tensor) -> Tensor:
        allowed_NK = rules.allowed(mode_N, played_NT)
        return log_prob_allowed(model.logits(h_ND, tracks), allowed_NK, next_N)

    return in_chunks(score, [h_ND, *parts], len(tracks[1]))[asked_N]


class BehaviourCloning(ShardedModule):
    """Mean negative log-probability of the logged next track."""

    def __init__(self, model: PolicyModel, rules: Rules, config: Config) -> None:
        super().__init__()
        self.save_hyperparameters({"model": asdict(config.model), "bc": asdict(config.bc)})
        self.model, self.rules, self.config = model, rules, config
        self.validation = RatioOfSums(["loss"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One micro-batch; the sum is divided by the plays of the whole optimiser step."""
        loss = -clone_log_probs(self.model, self.rules.to(self.device), batch).sum() / batch.normaliser_Z[-1]
        self.log("train/loss", loss.detach(), batch_size=len(batch.track_BL), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum and count."""
        log_p_N = clone_log_probs(self.model, self.rules.to(self.device), batch)
        self.validation.update(-log_p_N.sum()[None], torch.tensor([len(log_p_N)]))

    def on_validation_epoch_end(self) -> None:
        """val/loss in nats per play."""
        self.log("val/loss", self.validation.compute()["loss"])
        self.validation.reset()

    def configure_optimizers(self) -> Any:
        """AdamW, one cycle."""
        section = self.config.bc
        return linear_schedule(self, section, self.config.trainer.max_steps or section.max_steps)


def build(model: ModelConfig, data: SessionDataModule, plays_K: Tensor) -> PolicyModel:
    """An untrained policy for this data set."""
    return PolicyModel(model, data.flat.static_SF.shape[1], data.embedding_KE, plays_K)


def run(run: Run, folder: Path) -> None:
    """Train on all training users to `folder`/checkpoints."""
    config, section = run.config, run.config.bc
    lightning.seed_everything(config.seed, verbose=False)
    data = open_data(run, batch_size=section.batch_size)
    model = build(config.model, data, data.plays(TRAIN) + section.popularity_smoothing)
    model.encoder.fit_statistics(data.flat.static_SF[data.rows(TRAIN)])
    fit(run, folder, BehaviourCloning(model, data.rules(), config), data, section, section.validate_every)


def load(folder: Path, data: SessionDataModule, shape: Path | None = None) -> PolicyModel:
    """A trained policy from its run folder, in eval mode; `shape` is the run that says its shape."""
    model = build(ModelConfig(**read_config(shape or folder)["model"]), data, torch.ones(data.tracks))
    load_weights(folder, model, "model.")
    return model.eval()
