"""Fine-tune Copycat on preference pairs, within a budget of divergence from it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from amrs.batches import PairBatch
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.listeners import ImaginedListeners
from amrs.losses import DPO_LOSSES
from amrs.models.policy import PolicyModel
from amrs.noise import hash_keys, uniform
from amrs.policies import NeuralPolicy
from amrs.rollout import imagine
from amrs.rules import Rules, log_softmax_allowed
from amrs.runs import Run
from amrs.splits import VALIDATION
from amrs.stages import bc, world_model
from amrs.stages.preferences import load_pairs
from amrs.training import BEST, RatioOfSums, fit

KL_PURPOSE, HORIZON = 500, 10
"""Purpose of the draws of a KL check, and tracks imagined in it."""
_HALVINGS = 6


class KlCheck:
    """Exact KL(policy || Copycat) over the catalogue on the policy's own histories, in nats per track.

    Histories are imagined by the labeller from validation users' session starts, with the same random
    numbers at every check.
    """

    def __init__(
        self, copycat: PolicyModel, listeners: ImaginedListeners, data: SessionDataModule, config: Config
    ) -> None:
        rows = data.rows(VALIDATION)
        self.row_B = rows[uniform(config.seed, KL_PURPOSE, rows).argsort()[: config.dpo.kl_sessions]]
        self.key_B = hash_keys(config.seed, KL_PURPOSE, self.row_B)
        self.data, self.rules, self.listeners = data, data.rules(), listeners
        self.reference = NeuralPolicy(copycat, data, HORIZON)

    def __call__(self, policy: PolicyModel) -> float:
        """Nats per track."""
        rollouts = imagine(
            NeuralPolicy(policy, self.data, HORIZON), self.listeners, self.rules,
            self.data.flat.mode_S[self.row_B], self.row_B, self.key_B, HORIZON, self.reference,
        )  # fmt: skip
        assert rollouts.kl_BT is not None
        return float(rollouts.kl_BT.nansum() / rollouts.played_BT.sum())


class DirectPreference(lightning.LightningModule):
    """Mean preference loss; stops at the KL budget, keeping the best policy within it.

    Dropout is off: the reference's log-probabilities were taken without it, too.
    """

    def __init__(
        self, model: PolicyModel, rules: Rules, data: SessionDataModule, kl: KlCheck, config: Config
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"model": asdict(config.model), "dpo": asdict(config.dpo)})
        self.model, self.rules, self.data, self.kl, self.config = model, rules, data, kl, config
        self.validation = RatioOfSums(["loss", "chosen", "rejected", "accuracy"])
        self.best, self.worse = float("inf"), 0

    def log_probs(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of chosen and rejected, (B,) each, in nats."""
        prefix = batch.prefix
        last_B = prefix.valid_BL.sum(1) - 1
        row = torch.arange(len(last_B), device=self.device)
        logits_BK = self.model.logits(self.model(prefix)[row, last_B])
        allowed_BK = self.rules.to(self.device).allowed(prefix.mode_BL[row, last_B], batch.played_BT)
        log_p_BK = log_softmax_allowed(logits_BK, allowed_BK)
        both = log_p_BK.gather(1, torch.stack([batch.chosen_B, batch.rejected_B], 1))
        return both[:, 0], both[:, 1]

    def _losses(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        section = self.config.dpo
        chosen_B, rejected_B = self.log_probs(batch)
        ratio_B, other_B = chosen_B - batch.ref_chosen_B, rejected_B - batch.ref_rejected_B
        loss_B, margin_B = DPO_LOSSES[section.loss](ratio_B, other_B, batch.du_B, section.beta, section.tau)
        return loss_B, margin_B, ratio_B, other_B

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """One micro-batch; the sum is divided by the pairs of the whole optimiser step."""
        loss_B, margin_B, ratio_B, other_B = self._losses(batch)
        loss = loss_B.sum() / batch.pairs
        values = {"train/loss": loss.detach(), "train/margin": margin_B.mean(),
                  "train/log_ratio/chosen": ratio_B.detach().mean(),
                  "train/log_ratio/rejected": other_B.detach().mean()}  # fmt: skip
        self.log_dict(values, batch_size=len(loss_B), sync_dist=True)
        return loss

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Sums and counts."""
        loss_B, margin_B, ratio_B, other_B = self._losses(batch)
        sums = torch.stack([x.sum() for x in (loss_B, ratio_B, other_B, (margin_B > 0).float())])
        self.validation.update(sums, torch.full((4,), len(loss_B)))

    def on_validation_epoch_end(self) -> None:
        """val/loss, log-ratios apart, the exact KL; then keep, or stop at the budget."""
        found = self.validation.compute()
        self.validation.reset()
        kl = self.kl(self.model)
        self.log_dict(
            {"val/loss": found["loss"], "val/kl": kl, "val/accuracy": found["accuracy"],
             "val/log_ratio/chosen": found["chosen"], "val/log_ratio/rejected": found["rejected"]}
        )  # fmt: skip
        if kl > self.config.dpo.kl_budget:
            self._back_to_budget()
            self.trainer.should_stop = True
        elif found["loss"] < self.best:
            self.best, self.worse = float(found["loss"]), 0
            self._keep()
        else:
            self.worse += 1
            self.trainer.should_stop = self.worse >= self.config.dpo.patience

    def on_fit_start(self) -> None:
        """Copycat itself is the first policy within the budget."""
        if not hasattr(self, "kept"):
            self._keep()

    @property
    def _folder(self) -> Path:
        return Path(str(self.trainer.default_root_dir)) / "checkpoints"

    def _keep(self) -> None:
        """Save the policy as the best within the budget, and remember it for a way back."""
        self.kept = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.trainer.save_checkpoint(self._folder / BEST, weights_only=False)

    def _back_to_budget(self) -> None:
        """Go from the last kept policy towards the present one as far as the budget lets it."""
        present = {key: value.clone() for key, value in self.model.state_dict().items()}
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            self._blend(present, middle)
            low, high = (middle, high) if self.kl(self.model) <= self.config.dpo.kl_budget else (low, middle)
        self._blend(present, low)
        self._keep()

    def _blend(self, present: dict[str, Tensor], share: float) -> None:
        self.model.load_state_dict(
            {key: torch.lerp(old, present[key], share) for key, old in self.kept.items()}
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a resumed run must know besides weights."""
        checkpoint["dpo"] = {"best": self.best, "worse": self.worse, "kept": self.kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The counterpart."""
        for name, value in checkpoint["dpo"].items():
            setattr(self, name, value)

    def configure_optimizers(self) -> Any:
        """AdamW at a constant rate after a short warm-up."""
        section = self.config.dpo
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=section.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 0.1, 1.0, total_iters=10)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def run(run: Run, folder: Path) -> None:
    """Train on the labeller's pairs to `folder`/checkpoints."""
    config, section = run.config, run.config.dpo
    lightning.seed_everything(config.seed, verbose=False)
    data = SessionDataModule(
        run.parents["prepare"].folder / "log", config.data.split, config.model.history, "labeller",
        section.batch_size, config.seed, pairs=load_pairs(run.parents["preferences"].folder),
    )  # fmt: skip
    policy, copycat = (bc.load(run.parents["bc"].folder, data) for _ in range(2))
    listeners = ImaginedListeners(world_model.load(run.parents["labeller"].folder, data), data, HORIZON)
    kl = KlCheck(copycat, listeners, data, config)
    module = DirectPreference(policy, data.rules(), data, kl, config)
    fit(run, folder, module, data, section, section.kl_every, early_stop=False)
