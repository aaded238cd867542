"""Raw files (or the synthetic platform) to a validated session log."""

import difflib
import shutil
import sys
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from amrs.config.groups import UtilityConfig
from amrs.data import SessionDataModule
from amrs.importers import IMPORTERS
from amrs.logs.mapped import open_flat
from amrs.logs.schema import read_log
from amrs.logs.summary import sessions_in_modes, summary
from amrs.runs import Run


def run(run: Run, folder: Path) -> None:
    """Import into `folder`/log; what an earlier, killed attempt left is removed first."""
    shutil.rmtree(folder)
    folder.mkdir()
    IMPORTERS[run.config.data.name](run.config.data, folder)
    log = read_log(folder / "log")
    listeners = len(open_flat(folder / "log", log).user_ids)  # made here, for all stages
    doubts = doubtful_modes(log.metadata.modes, sessions_in_modes(log), run.config.utility)
    for line in (*summary(log, listeners), *doubts):
        print(f"prepare: {line}", file=sys.stderr)


def doubtful_modes(
    modes: Sequence[str], played: Container[str | None], utility: UtilityConfig
) -> Iterator[str]:
    """What may be a slip of the pen among the log's modes: each is a mode of its own, whatever it is called.

    Args:
        modes: those of the log, of sessions or catalogue.
        played: those that a session is in.
        utility: says which way arousal should go in which mode.
    """
    for mode in modes:
        if "arousal" not in utility.modes.get(mode, {}):
            near = difflib.get_close_matches(mode, utility.modes, 1)
            yield (
                f"mode {mode} is new to the utility, so arousal does not count in it."
                + (f" Did you mean {near[0]}?" if near else "")
                + f" Else say what is good there, such as utility.modes.{mode}.arousal=down"
            )
        if mode not in played:
            yield f"mode {mode} is in the catalogue, but no session is in it"


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
