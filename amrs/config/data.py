"""Settings of the data: which importer, how users are split, and the synthetic platform's own."""

from dataclasses import dataclass, field
from typing import Literal

from amrs.config.checks import check
from amrs.config.platform import PlatformConfig


@dataclass
class SplitConfig:
    seed: int = 0
    """Which Monte Carlo split of the same log; any integer."""
    validation: float = 0.1
    """Share of users that validate, in (0, 1)."""
    test: float = 0.1
    """Share of users that test, in (0, 1)."""
    folds: int | None = None
    """Test on one of so many folds of the users, 2 or more; then a tenth of the other users validates, and
    `validation` and `test` do not count. Null is a Monte Carlo split."""
    fold: int = 0
    """Which of the folds tests, from 0."""

    def __post_init__(self) -> None:
        check(0 < self.validation < 1, "data.split.validation", self.validation, "between 0 and 1")
        check(0 < self.test < 1, "data.split.test", self.test, "between 0 and 1")
        check(
            self.validation + self.test < 1,
            "data.split.validation + data.split.test",
            self.validation + self.test,
            "below 1, so that users are left for training",
        )
        check(self.folds is None or self.folds >= 2, "data.split.folds", self.folds, "2 or more, or null")
        most = 1 if self.folds is None else self.folds
        check(0 <= self.fold < most, "data.split.fold", self.fold, f"0 or more and below {most} folds")


@dataclass
class DataConfig:
    name: Literal["platform", "situnes", "table"] = "platform"
    """Importer: the synthetic platform, SiTunes, or your own CSV/Parquet tables."""
    raw_dir: str | None = None
    """Folder of the raw files (situnes, table)."""
    map: str | None = None
    """YAML file that maps your columns (table); default: `map.yaml` in `data.raw_dir`."""
    embeddings: str | None = None
    """Parquet or npz file of track_id and embedding, in place of the raw catalogue's (situnes, table)."""
    base: str | None = None
    """Run folder of a finished `prepare` to whose log the sessions in `data.raw_dir` are added (table)."""
    split: SplitConfig = field(default_factory=SplitConfig)
    platform: PlatformConfig = field(default_factory=PlatformConfig)

    def __post_init__(self) -> None:
        check(
            self.raw_dir is None or self.name != "platform",
            "data.raw_dir", self.raw_dir,
            "null for data=platform, which reads no files; your own files are read with data=table",
        )  # fmt: skip
        check(self.map is None or self.name == "table", "data.map", self.map, "null, or with data=table")
        check(self.base is None or self.name == "table", "data.base", self.base, "null, or with data=table")
        ours = [key for key, value in vars(PlatformConfig()).items() if getattr(self.platform, key) != value]
        check(
            self.name == "platform" or not ours,
            ", ".join(f"data.platform.{key}" for key in ours),
            ", ".join(str(getattr(self.platform, key)) for key in ours),
            f"left alone with data={self.name}: only data=platform reads the platform's settings",
        )
        check(
            self.embeddings is None or self.name != "platform",
            "data.embeddings", self.embeddings, "null for data=platform, whose tracks have no audio",
        )  # fmt: skip
