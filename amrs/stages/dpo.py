"""Fine-tune Copycat on preference pairs, within a budget of divergence from it."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from amrs.batches import PairBatch
from amrs.cluster.sharding import ShardedModule, is_sharded, set_whole_state, whole_state
from amrs.config.graph import Config
from amrs.config.stages import DpoConfig
from amrs.data import SessionDataModule
from amrs.guidance import boltzmann
from amrs.lineup import Parts, guided
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import VALIDATION
from amrs.losses import DPO_LOSSES, LISTED, TEMPERED
from amrs.models.policy import PolicyModel
from amrs.noise import hash_keys, uniform
from amrs.policies import NeuralPolicy
from amrs.rollout import imagine
from amrs.rules import Rules, in_chunks, log_softmax_allowed
from amrs.runs import Run
from amrs.stages import bc
from amrs.stages.preferences import load_pairs
from amrs.training import BEST, RatioOfSums, fit

KL_PURPOSE, HORIZON = 500, 10
"""Purpose of the draws of a KL check, and tracks imagined in it."""
_HALVINGS = 6


_CHOSEN_FALLS = -0.1
"""Mean log-ratio of the chosen tracks, in nats, below which they lose likelihood in earnest."""


class Divergence(NamedTuple):
    """KL(policy || Copycat) in nats."""

    track: float
    session: float
    """Summed over a session of HORIZON tracks, or fewer where the listener leaves."""

    def within(self, section: DpoConfig) -> bool:
        """Whether both budgets are kept."""
        return self.track <= section.kl_budget and self.session <= section.kl_session_budget


class KlCheck:
    """Exact KL(policy || Copycat) over the catalogue on the policy's own histories.

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

    def __call__(self, policy: PolicyModel) -> Divergence:
        """Per track and per session."""
        rollouts = imagine(
            NeuralPolicy(policy, self.data, HORIZON), self.listeners, self.rules,
            self.data.flat.mode_S[self.row_B], self.row_B, self.key_B, HORIZON, self.reference,
        )  # fmt: skip
        track = rollouts.divergence()
        return Divergence(track, track * int(rollouts.played_BT.sum()) / len(self.row_B))


def falling_chosen(chosen: float, section: DpoConfig) -> str | None:
    """What to do where the mean log-ratio of the chosen tracks falls, in nats; None where it does not."""
    if chosen >= _CHOSEN_FALLS:
        return None
    return (
        f"the chosen tracks' likelihood has fallen by {-chosen:.2f} nats: both tracks of a pair lose to the "
        "rest of the catalogue, and the margin grows all the same. Raise dpo.tau or dpo.beta, lower "
        f"dpo.kl_budget, or take dpo.loss=soft or regression (now {section.loss})"
    )


class DirectPreference(ShardedModule):
    """Mean preference loss; keeps the best policy within the KL budgets.

    A policy is on its way to the optimum noisier than there, so it may be over the budget for a while. If it
    is at the end, or stays so for `patience` checks with labels that have no temperature, the way from the
    kept policy towards it is gone as far as the budget lets it.

    Dropout is off: the reference's log-probabilities were taken without it, too.
    """

    def __init__(
        self, model: PolicyModel, rules: Rules, data: SessionDataModule, kl: KlCheck, config: Config,
        tau: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters({"model": asdict(config.model), "dpo": {**asdict(config.dpo), "tau": tau}})
        self.model, self.rules, self.data, self.kl, self.config = model, rules, data, kl, config
        self.tau = tau
        self.validation = RatioOfSums(["loss", "chosen", "rejected", "accuracy", "copycat"])
        self.best, self.worse, self.over = float("inf"), 0, 0
        self.ahead, self.warned = False, False

    def log_probs(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of chosen and rejected, (B,) each, and of other rejected (B, J), in nats."""
        prefix = batch.prefix
        last_B = prefix.valid_BL.sum(1) - 1
        row = torch.arange(len(last_B), device=self.device)
        rules, tracks = self.rules.to(self.device), self.model.tracks()

        def score(h_BD: Tensor, mode_B: Tensor, played_BT: Tensor, track_BJ: Tensor) -> Tensor:
            log_p_BK = log_softmax_allowed(self.model.logits(h_BD, tracks), rules.allowed(mode_B, played_BT))
            return log_p_BK.gather(1, track_BJ)

        asked = torch.cat(
            [batch.chosen_B[:, None], batch.rejected_B[:, None], batch.others_BJ.clamp(min=0)], 1
        )
        rows = self.model.encoder.last(prefix), prefix.mode_BL[row, last_B], batch.played_BT, asked
        found = in_chunks(score, rows, len(tracks[1]))
        return found[:, 0], found[:, 1], found[:, 2:]

    def _losses(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen_B, rejected_B, others_BJ = self.log_probs(batch)
        ratio_B, other_B = chosen_B - batch.ref_chosen_B, rejected_B - batch.ref_rejected_B
        loss_B, margin_B = self._compared(batch, ratio_B, other_B, others_BJ - batch.ref_others_BJ)
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

    def _copycat_losses(self, batch: PairBatch) -> Tensor:
        """What the loss of these pairs is where the policy is Copycat: every log-ratio is 0."""
        none_B, none_BJ = torch.zeros_like(batch.ref_chosen_B), torch.zeros_like(batch.ref_others_BJ)
        return self._compared(batch, none_B, none_B, none_BJ)[0]

    def _compared(
        self, batch: PairBatch, chosen_B: Tensor, rejected_B: Tensor, others_BJ: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and margin (B,) from the log-ratios."""
        section, rejected, du = self.config.dpo, rejected_B, batch.du_B
        if section.loss in LISTED:
            more_BJ = others_BJ.masked_fill(batch.others_BJ < 0, -torch.inf)
            rejected = torch.cat([rejected_B[:, None], more_BJ], 1)
            du = torch.cat([batch.du_B[:, None], batch.du_others_BJ], 1)
        return DPO_LOSSES[section.loss](chosen_B, rejected, du, section.beta, self.tau)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Sums and counts."""
        loss_B, margin_B, ratio_B, other_B = self._losses(batch)
        columns = (loss_B, ratio_B, other_B, (margin_B > 0).float(), self._copycat_losses(batch))
        self.validation.update(torch.stack([x.sum() for x in columns]), torch.full((5,), len(loss_B)))

    def on_validation_epoch_end(self) -> None:
        """val/loss, log-ratios apart, the exact KL; then keep, or stop at the budget."""
        found = self.validation.compute()
        self.validation.reset()
        kl = self._kl()
        loss, chosen = float(found["loss"]), float(found["chosen"])
        self.log_dict(
            {"val/loss": loss, "val/kl": kl.track, "val/kl_session": kl.session,
             "val/accuracy": found["accuracy"], "val/tau": self.tau, "val/log_ratio/chosen": chosen,
             "val/log_ratio/rejected": found["rejected"]}
        )  # fmt: skip
        advice = falling_chosen(chosen, self.config.dpo)
        if advice is not None and not self.warned:
            self.warned = True
            rank_zero_warn(advice)
        self.best = min(self.best, float(found["copycat"]))
        within = kl.within(self.config.dpo)
        self.over = 0 if within else self.over + 1
        self.ahead = not within and loss < self.best
        if within and loss < self.best:
            self.best, self.worse = loss, 0
            self._keep()
        elif within:
            self.worse += 1
        # Labels with a temperature have an optimum at the budget: the way there may lead beyond it.
        endless = self.config.dpo.loss not in TEMPERED
        self.trainer.should_stop = max(self.worse, endless * self.over) >= self.config.dpo.patience

    def on_train_end(self) -> None:
        """A better policy that lies beyond the budget is met on the way, at the budget."""
        if self.ahead:
            self._back_to_budget()

    def _kl(self) -> Divergence:
        """Of the policy as it is now; where its weights are shared out, of a whole copy on each process."""
        policy = self.model
        if is_sharded(policy):
            policy = copy.deepcopy(self.kl.reference.model)
            policy.load_state_dict(whole_state(self.model))
        return self.kl(policy)

    def on_fit_start(self) -> None:
        """Copycat itself is the first policy within the budget: what replaces it has a lower loss."""
        if not hasattr(self, "kept"):
            self._keep()

    @property
    def _folder(self) -> Path:
        return Path(str(self.trainer.default_root_dir)) / "checkpoints"

    def _keep(self) -> None:
        """Save the policy as the best within the budget, and remember it for a way back."""
        self.kept = whole_state(self.model)
        self.trainer.save_checkpoint(self._folder / BEST, weights_only=True)

    def _back_to_budget(self) -> None:
        """Go from the last kept policy towards the present one as far as the budget lets it."""
        present = whole_state(self.model)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            self._blend(present, middle)
            low, high = (middle, high) if self._kl().within(self.config.dpo) else (low, middle)
        self._blend(present, low)
        self._keep()

    def _blend(self, present: dict[str, Tensor], share: float) -> None:
        # What is kept comes from a checkpoint on the CPU, where the run was resumed.
        kept = {key: old.to(present[key].device) for key, old in self.kept.items()}
        blend = {key: torch.lerp(old, present[key], share) for key, old in kept.items()}
        set_whole_state(self.model, blend)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a resumed run must know besides weights."""
        names = ("best", "worse", "over", "ahead", "kept")
        checkpoint["dpo"] = {name: getattr(self, name) for name in names}

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


def label_temperature(parts: Parts) -> float:
    """tau of the labels: as set, or that at which their optimum spends the budget (`guidance.calibrate`).

    At the optimum beta x margin = dU / tau, so the policy is Copycat x exp(U / (beta tau)).
    """
    section = parts.run.config.dpo
    if section.tau is not None or section.loss not in TEMPERED:
        return section.tau or 1.0
    return 1 / (section.beta * guided(parts, boltzmann, parts.utility, section.kl_budget).strength)


def run(run: Run, folder: Path) -> None:
    """Train on the labeller's pairs to `folder`/checkpoints."""
    config, section = run.config, run.config.dpo
    lightning.seed_everything(config.seed, verbose=False)
    data = SessionDataModule(
        run.parents["prepare"].folder / "log", config.data.split, config.model.history, "labeller",
        section.batch_size, config.seed, pairs=load_pairs(run.parents["preferences"].folder),
    )  # fmt: skip
    parts = Parts(run, data, HORIZON)
    policy = bc.load(run.parents["bc"].folder, data)
    kl = KlCheck(parts.copycat, ImaginedListeners(parts.labeller, data, HORIZON), data, config)
    module = DirectPreference(policy, data.rules(), data, kl, config, label_temperature(parts))
    fit(run, folder, module, data, section, section.kl_every, early_stop=False)
