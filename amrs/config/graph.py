"""All settings of a run, the graph of its stages, and which settings a stage accepts."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from amrs.config.checks import check
from amrs.config.data import DataConfig
from amrs.config.groups import (
    ClusterConfig,
    GateConfig,
    LogConfig,
    ModelConfig,
    ParentsConfig,
    TrainerConfig,
    UtilityConfig,
)
from amrs.config.stages import (
    BcConfig,
    DpoConfig,
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    PreferencesConfig,
    StressConfig,
    WorldModelConfig,
)

Stage = Literal[
    "prepare", "world_model", "bc", "preferences", "dpo", "evaluate", "stress", "export", "embed"
]  # fmt: skip
STAGES: tuple[Stage, ...] = get_args(Stage)

PARENTS: dict[Stage, tuple[Stage, ...]] = {
    "prepare": (),
    "world_model": ("prepare",),
    "bc": ("prepare",),
    "preferences": ("prepare", "world_model", "bc"),
    "dpo": ("prepare", "world_model", "bc", "preferences"),
    "evaluate": ("prepare", "world_model", "bc", "preferences", "dpo"),
    "stress": ("prepare", "world_model", "bc", "preferences", "dpo", "evaluate"),
    "export": ("prepare", "world_model", "bc", "preferences", "dpo", "evaluate", "stress"),
    "embed": (),
}
"""Stages whose run folders a stage reads, in the order in which they can be trained."""

SHARED = ("data", "model", "trainer", "utility", "gate", "log", "cluster", "parents")
"""Groups of settings that every stage accepts."""


@dataclass
class Config:
    """All settings of one command; sections that `stage` does not accept hold their defaults."""

    stage: Stage
    """What to make; missing parents are made first."""
    seed: int = 0
    """Seed of training and of imagined sessions, any integer."""
    runs: str = "runs"
    """Folder of run folders: <runs>/<stage>/<fingerprint>."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    utility: UtilityConfig = field(default_factory=UtilityConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    log: LogConfig = field(default_factory=LogConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    parents: ParentsConfig = field(default_factory=ParentsConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    bc: BcConfig = field(default_factory=BcConfig)
    preferences: PreferencesConfig = field(default_factory=PreferencesConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    stress: StressConfig = field(default_factory=StressConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)

    def __post_init__(self) -> None:
        check(
            self.cluster.name == "local" or (self.trainer.devices, self.trainer.num_nodes) == (1, 1),
            "trainer.devices, trainer.num_nodes",
            (self.trainer.devices, self.trainer.num_nodes),
            f"left alone with cluster={self.cluster.name}: give cluster.gpus_per_node and cluster.nodes",
        )


def ancestors(stage: Stage) -> tuple[Stage, ...]:
    """Every stage that `stage` needs, directly or not, parents before children."""
    needed = set(PARENTS[stage])
    for parent in PARENTS[stage]:
        needed.update(ancestors(parent))
    return tuple(other for other in STAGES if other in needed)


def accepted(stage: Stage) -> tuple[str, ...]:
    """First parts of the keys that `stage` accepts, in the order of `Config`."""
    sections = {"stage", "seed", "runs", *SHARED, stage, *ancestors(stage)}
    return tuple(name for name in Config.__dataclass_fields__ if name in sections)
