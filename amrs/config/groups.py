"""Shared groups of settings: read by several stages."""

from dataclasses import dataclass, field
from typing import Literal

from amrs.config.checks import check


@dataclass
class ModelConfig:
    """Shape of the transformers (world model and policies)."""

    width: int = 64
    """Width of the residual stream, in channels; a multiple of `heads`."""
    layers: int = 2
    """Transformer blocks, 1 or more."""
    heads: int = 2
    """Attention heads, 1 or more."""
    history: int = 128
    """Events (plays and session starts) that the model can look back on, 8 or more."""
    positions: Literal["none", "learned", "rope"] = "none"
    """Positional encoding; `none` was best in the publication."""
    dropout: float = 0.3
    """Dropout in training, of inputs and inside; in [0, 1). Reports are few: less overfits them."""

    def __post_init__(self) -> None:
        check(
            self.width > 0 and self.heads > 0 and self.width % self.heads == 0,
            "model.width",
            self.width,
            f"a positive multiple of model.heads={self.heads}",
        )
        check(
            self.positions != "rope" or self.width // self.heads % 2 == 0,
            "model.width / model.heads",
            self.width // self.heads,
            "even for model.positions=rope",
        )
        check(self.layers >= 1, "model.layers", self.layers, "1 or more")
        check(self.history >= 8, "model.history", self.history, "8 or more")
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")


@dataclass
class TrainerConfig:
    """As in lightning.Trainer."""

    max_steps: int | None = None
    """Optimiser steps; null takes the stage's own default (`<stage>.max_steps`)."""
    devices: int = 1
    """Processes (or GPUs) per node."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """How processes share the work: fsdp2 (weights shared out), or a Lightning strategy (auto, ddp, ...)."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Also where the linear start, pairs and rollouts are computed; auto is a GPU where there is one."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    """As Lightning names it. It belongs to what a run is; the accelerator does not."""
    accumulate_grad_batches: int = 1
    """Micro-batches a step; the stage's `batch_size` is split over them."""

    def __post_init__(self) -> None:
        for key in ("devices", "num_nodes", "accumulate_grad_batches"):
            check(getattr(self, key) >= 1, f"trainer.{key}", getattr(self, key), "1 or more")
        check(
            self.max_steps is None or self.max_steps >= 1,
            "trainer.max_steps",
            self.max_steps,
            "1 or more, or null",
        )


@dataclass
class WeightsConfig:
    """Weight of each signal in the utility; a weight of 0 leaves the signal out."""

    engagement: float = 0.0
    rating: float = 0.0
    valence: float = 0.5
    arousal: float = 0.5


@dataclass
class UtilityConfig:
    """What is good for the listener: a weighted sum of predicted signals."""

    weights: WeightsConfig = field(default_factory=WeightsConfig)
    modes: dict[str, dict[str, str]] = field(
        default_factory=lambda: {
            "energize": {"arousal": "up"},
            "calm": {"arousal": "down"},
            "sleep": {"arousal": "down"},
            "focus": {"arousal": "0.5"},
        }
    )
    """Per mode and signal: up, down, or a target in [0, 1]. Signals not named go up; arousal counts
    only where its mode names it."""
    standardise: bool = True
    """Divide each signal by the spread of its predicted effect under Copycat."""
    horizon: Literal["session", "track"] = "session"
    """What a track is judged by: what is left of its effect when the session ends, or its effect at once."""
    pessimism: float = 0.0
    """Lambda, 0 or more: what a standard deviation over the labeller's members takes off the utility; does
    nothing with one member."""
    entropy: float = 0.0
    """0 or more: what a nat of Copycat's entropy after a track adds to its utility, so that a policy does not
    lead where the log knows only a few tracks."""

    def __post_init__(self) -> None:
        for key in ("pessimism", "entropy"):
            check(getattr(self, key) >= 0, f"utility.{key}", getattr(self, key), "0 or more")
        weights = vars(self.weights)
        check(
            all(w >= 0 for w in weights.values()) and any(w > 0 for w in weights.values()),
            "utility.weights",
            weights,
            "0 or more, at least one above 0",
        )
        for mode, directions in self.modes.items():
            for signal, direction in directions.items():
                key = f"utility.modes.{mode}.{signal}"
                check(signal in weights, key, signal, f"one of the signals {', '.join(weights)}")
                check(_is_direction(direction), key, direction, "up, down or a target in [0, 1]")


def _is_direction(text: str) -> bool:
    try:
        return text in ("up", "down") or 0 <= float(text) <= 1
    except ValueError:
        return False


@dataclass
class LogConfig:
    wandb: Literal["auto", "disabled", "offline", "online"] = "auto"
    """W&B mode; auto is online where a login exists, else offline."""
    project: str = "amrs"
    """W&B project."""
    every: int = 10
    """Optimiser steps between logged values, 1 or more."""

    def __post_init__(self) -> None:
        check(self.every >= 1, "log.every", self.every, "1 or more")


@dataclass
class GateConfig:
    """Thresholds before export; configs/gate.yaml gives each with its reason."""

    utility_gain: float = 0.0
    """The lower bound of the judge's gain in utility must be above this, in all and by cohort."""
    valence_gain: float = 0.0
    """The lower bound of the judge's gain in valence must not be below this, in scale points."""
    harm: float = 0.15
    """Most that the upper bound of harm may be, in [0, 1]."""
    harm_cohort: float = 0.25
    """The same in each cohort, in [0, 1]."""
    uplift_slope: float = 0.0
    """The lower bound of the uplift slope must be above this."""
    weighted_slope: float = 0.0
    """The lower bound of valence's uplift slope on plays weighted by logged propensities must be above this;
    not asked where the log has none."""
    late_slope: float = 0.0
    """The upper bound of the slope of reports before sessions on what earlier sessions gave must not be below
    this; not asked where the log has no such reports."""
    calibration: float = 0.1
    """Most distance of the coverage of 80 % intervals from .8, in [0, 1]."""
    effective_tracks: float = 0.9
    """Least share of Copycat's effective tracks, 0 or more."""
    coverage: float = 0.95
    """Least share of Copycat's catalogue coverage, 0 or more."""
    entropy: float = 0.95
    """Least share of Copycat's normalised entropy, 0 or more."""
    kl: float = 0.1
    """Most that the upper bound of KL(policy || Copycat) may be, in nats per track, above 0."""
    violations: float = 0.0
    """Most share of checks of hard properties that may fail, in [0, 1]."""

    def __post_init__(self) -> None:
        for key in ("harm", "harm_cohort", "calibration", "violations"):
            check(0 <= getattr(self, key) <= 1, f"gate.{key}", getattr(self, key), "in [0, 1]")
        for key in ("effective_tracks", "coverage", "entropy"):
            check(getattr(self, key) >= 0, f"gate.{key}", getattr(self, key), "0 or more")
        check(self.kl > 0, "gate.kl", self.kl, "above 0")


@dataclass
class ClusterConfig:
    """Where a command runs; but for `name` only with cluster=slurm or cluster=torchrun."""

    name: Literal["local", "slurm", "torchrun"] = "local"
    """This machine, jobs of Slurm, or a file that every node of another launcher runs."""
    nodes: int = 1
    """Machines of a trained stage, of pairs and of an evaluation, 1 or more; the other stages take one."""
    gpus_per_node: int = 1
    """GPUs, and so processes, a machine of these stages (the others take one); 0 is one process without a
    GPU. A job where torch sees none is refused, unless trainer.accelerator=cpu."""
    cpus_per_task: int = 4
    """CPU cores, and threads, a process, 1 or more."""
    memory: str | None = None
    """Memory a machine as Slurm writes it (64G); null is the partition's default."""
    time: str | None = None
    """Longest time of a job as Slurm writes it (HH:MM:SS), null is the partition's default; a job that
    needs longer is put back in the queue and resumed."""
    partition: str | None = None
    """Slurm partition; null is the cluster's default."""
    account: str | None = None
    """Slurm account."""
    options: list[str] = field(default_factory=list)
    """More options of sbatch, a list such as [qos=high,exclude=node7]."""
    before: str | None = None
    """Shell line run before Python, such as `module load cuda`."""
    submit: bool = True
    """Submit the jobs; false only writes their files (torchrun: they are always only written)."""
    sweep: str | None = None
    """W&B sweep (ENTITY/PROJECT/ID) of which an array of agents is written instead."""
    agents: int = 10
    """Runs of that sweep, one a task of the array, 1 or more."""
    at_once: int = 4
    """Most tasks of the array that run at once, 1 or more."""

    def __post_init__(self) -> None:
        for key in ("nodes", "cpus_per_task", "agents", "at_once"):
            check(getattr(self, key) >= 1, f"cluster.{key}", getattr(self, key), "1 or more")
        check(self.gpus_per_node >= 0, "cluster.gpus_per_node", self.gpus_per_node, "0 or more")
        check(
            self.name != "local" or (self.nodes, self.gpus_per_node) == (1, 1),
            "cluster.nodes, cluster.gpus_per_node",
            (self.nodes, self.gpus_per_node),
            "left alone without cluster=slurm or cluster=torchrun (trainer.devices is for this machine)",
        )
        for key in ("sweep", "memory", "time", "partition", "account"):
            given = getattr(self, key)
            check(
                given is None or self.name == "slurm", f"cluster.{key}", given, "null without cluster=slurm"
            )
        allowed = "left alone without cluster=slurm"
        check(not self.options or self.name == "slurm", "cluster.options", self.options, allowed)

    @property
    def devices(self) -> int:
        """Processes a node."""
        return max(1, self.gpus_per_node)


@dataclass
class ParentsConfig:
    """Pin a finished run folder instead of looking it up by fingerprint."""

    prepare: str | None = None
    world_model: str | None = None
    labeller: str | None = None
    judge: str | None = None
    bc: str | None = None
    preferences: str | None = None
    dpo: str | None = None
    evaluate: str | None = None
    stress: str | None = None
