"""Train the world model: an ensemble on all training users, or on the labeller's or judge's half."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from amrs.bags import Bags
from amrs.batches import Batch
from amrs.cluster.sharding import ShardedModule
from amrs.config.graph import Config
from amrs.config.groups import ModelConfig
from amrs.config.stages import WorldModelConfig
from amrs.data import SessionDataModule
from amrs.devices import chosen_device
from amrs.levels import start_levels
from amrs.linear_start import start_linear
from amrs.logs.histories import BLIND_TO, LABELS, static_names
from amrs.logs.splits import TRAIN, withheld_artists
from amrs.models.world_model import WorldModel, masked_sums
from amrs.runs import Run, read_config
from amrs.stages.prepare import open_data
from amrs.training import LAST, RatioOfSums, fit, linear_schedule, load_weights
from amrs.utility import Utility

_WEIGHT = {"start_valence": 0.5, "start_arousal": 0.5, "end_valence": 0.5, "end_arousal": 0.5, "play": 0.0}
"""Weights of labels in the loss; 1 where not named."""
_PASSES = 64
"""Most passes over the training users' windows. A few dozen users would be passed hundreds of times in the
steps that a thousand users need, and two or three validation users cannot say when to stop."""


class WorldModelTraining(ShardedModule):
    """Sum over signals of their mean negative log-likelihood, summed over members."""

    weight_Z: Tensor

    def __init__(self, model: WorldModel, config: Config) -> None:
        super().__init__()
        self.save_hyperparameters({"model": asdict(config.model), "world_model": asdict(config.world_model)})
        self.model, self.config = model, config
        self.weights = label_weights(config.world_model.only)
        self.register_buffer("weight_Z", torch.tensor([self.weights[z] for z in LABELS]), persistent=False)
        self.validation = RatioOfSums(LABELS)
        self.bags = Bags(config.seed, len(model.ensemble))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One micro-batch; sums are divided by the label counts of the whole optimiser step."""
        times = (self.bags.times(m, batch.user_B) for m in range(len(self.model.ensemble)))
        pairs = zip(self.model.ensemble, times, strict=True)
        sums_MZ = torch.stack([masked_sums(member, batch, times_B) for member, times_B in pairs])
        loss = (sums_MZ * self.weight_Z / batch.normaliser_Z).sum()
        self.log("train/loss", loss.detach() / len(sums_MZ), batch_size=len(batch.track_BL), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sums over members and labels; counts once."""
        sums_MZ = torch.stack([masked_sums(member, batch) for member in self.model.ensemble])
        self.validation.update(sums_MZ.mean(0), label_counts(batch))

    def on_validation_epoch_end(self) -> None:
        """val/loss, and the likelihood of each signal in nats."""
        nll = self.validation.compute()
        self.validation.reset()
        loss = sum(self.weights[name] * value for name, value in nll.items())
        self.log_dict({"val/loss": loss, **{f"val/nll/{name}": value for name, value in nll.items()}})

    def configure_optimizers(self) -> Any:
        """AdamW, one cycle."""
        section = self.config.world_model
        return linear_schedule(self, section, self.config.trainer.max_steps or section.max_steps)


def label_weights(only: str | None) -> dict[str, float]:
    """Weight of each of `LABELS` in the loss; those of one signal where only that is trained."""
    kept = [name for name in LABELS if only is None or name.split("_")[-1] == only]
    return {name: _WEIGHT.get(name, 1.0) if name in kept else 0.0 for name in LABELS}


def label_counts(batch: Batch) -> Tensor:
    """Counted labels of a batch, as (Z,), from the masks."""
    counts_BL1 = batch.counts_BL[..., None]
    known_BL2 = ~batch.report_BL2.isnan() & counts_BL1
    start_BL1 = (batch.step_BL == 0)[..., None]
    parts = [
        (~batch.target_BLY.isnan() & counts_BL1).sum((0, 1)),
        (known_BL2 & start_BL1).sum((0, 1)),
        (known_BL2 & ~start_BL1).sum((0, 1)),
        (batch.counts_BL & (batch.next_track_BL >= 0)).sum()[None],
    ]
    return torch.cat(parts)


def build(
    members: int, components: int, model: ModelConfig, data: SessionDataModule, without: Sequence[str] = (),
    curves: int = 0, situation: bool = False,
) -> WorldModel:  # fmt: skip
    """An untrained ensemble for this data set; `without` names inputs that it never reads, `curves` and
    `situation` are those of `WorldModelConfig`."""
    meta = data.log.metadata
    names = static_names(meta.modes, meta.cohorts, meta.context)
    logged = [k for k, name in enumerate(names) if situation and name.startswith("context_")]
    made = WorldModel(members, model, meta.signals, components, len(names), data.embedding_KE, curves, logged)
    starts = tuple(start for name in without for start in BLIND_TO[name])
    for member in made.ensemble:
        member.encoder.blind(without, torch.tensor([name.startswith(starts) for name in names]))
    return made


def few_passes(section: WorldModelConfig, windows: int) -> WorldModelConfig:
    """The section with no more steps than `_PASSES` passes over so many windows take."""
    most = max(_PASSES * windows // section.batch_size, 1)
    return replace(section, max_steps=min(section.max_steps, most))


def run(run: Run, folder: Path) -> None:
    """Train to `folder`/checkpoints."""
    config, section = run.config, run.config.world_model
    lightning.seed_everything(config.seed, verbose=False)
    data = open_data(run, section.users, section.batch_size, section.hide_feedback)
    Utility(config.utility, data.log.metadata.modes)  # a mode that is not there is told before the training
    if section.withheld_artists:
        artists, split = data.log.catalogue["artist"][:], config.data.split
        data.withhold(withheld_artists(artists, section.withheld_artists, split.seed))
    section = few_passes(section, data.units(TRAIN))
    config = replace(config, world_model=section)
    model = build(section.members, section.components, config.model, data, section.without, section.curves,
                  section.situation)  # fmt: skip
    for member in model.ensemble:
        member.encoder.fit_statistics(data.flat.static_SF[data.rows(TRAIN)])
    if not (folder / "checkpoints" / LAST).exists():
        bags = Bags(config.seed, section.members)
        weights = label_weights(section.only)
        device = chosen_device(config.trainer.accelerator)
        fitted = start_linear(model, data, weights, bags, config.seed, section.penalties, device)
        start_levels(model, data, fitted, bags, config.seed)
    fit(run, folder, WorldModelTraining(model, config), data, section, section.validate_every)


def load(folder: Path, data: SessionDataModule) -> WorldModel:
    """A trained ensemble from its run folder, in eval mode."""
    found = read_config(folder)
    section, shape = found["world_model"], ModelConfig(**found["model"])
    inputs = (section.get("without", []), section.get("curves", 0), section.get("situation", False))
    model = build(section["members"], section["components"], shape, data, *inputs)
    load_weights(folder, model, "model.")
    return model.eval()
