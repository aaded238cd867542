"""Raw files (or the synthetic platform) to a validated session log."""

import shutil
from pathlib import Path

from amrs.data import SessionDataModule
from amrs.importers import IMPORTERS
from amrs.mapped import open_flat
from amrs.runs import Run
from amrs.schema import read_log


def run(run: Run, folder: Path) -> None:
    """Import into `folder`/log; what an earlier, killed attempt left is removed first."""
    shutil.rmtree(folder)
    folder.mkdir()
    IMPORTERS[run.config.data.name](run.config.data, folder)
    open_flat(folder / "log", read_log(folder / "log"))


def open_data(
    run: Run, users: str = "all", batch_size: int = 32, hide_feedback: float = 0.0, history: int | None = None
) -> SessionDataModule:
    """The DataModule over the log that `run` stands on."""
    config = run.config
    return SessionDataModule(
        run.parents["prepare"].folder / "log",
        config.data.split,
        history or config.model.history,
        users,
        batch_size,
        config.seed,
        hide_feedback,
    )
