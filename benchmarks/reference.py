"""The reference shape and the logs that every item measures on, made once under build/benchmarks.

Shape suffix: S sessions.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from amrs.config.data import DataConfig, SplitConfig
from amrs.config.groups import ModelConfig
from amrs.config.platform import PlatformConfig
from amrs.data import SessionDataModule
from amrs.importers.platform import importer
from amrs.logs.schema import read_log, write_log
from amrs.logs.splits import TRAIN

HISTORY, BATCH, TRACKS = 50, 128, 1683
SESSIONS = PlatformConfig().sessions_per_user
MODEL = ModelConfig(width=64, layers=2, heads=2, history=HISTORY)
ROOT = Path(__file__).parents[1] / "build" / "benchmarks"


def platform_log(users: int, tracks: int = TRACKS, sessions: float = SESSIONS) -> Path:
    """Folder of a platform log of so many users, with so many sessions each on average, under `ROOT`."""
    folder = ROOT / f"platform-{users}-{tracks}{f'-{sessions:g}' if sessions != SESSIONS else ''}"
    if not (folder / "log" / "metadata.json").exists():
        platform = PlatformConfig(users=users, tracks=tracks, sessions_per_user=sessions)
        importer(DataConfig(platform=platform), folder)
    return folder / "log"


def short_log() -> Path:
    """The default platform with 1,683 tracks, cut to each user's last whole sessions within `HISTORY` tokens.

    RecTools keeps a user's last 51 events, so the cut gives both sides the same events.
    """
    folder = ROOT / f"short-{HISTORY}-{TRACKS}" / "log"
    if not folder.exists():
        log = read_log(platform_log(939))
        sessions = log.sessions.with_format("arrow")[:]
        user_S = sessions["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        tokens_S = pc.list_value_length(sessions["track_id"]).to_numpy() + 1
        after_S = np.cumsum(tokens_S[::-1])[::-1]  # tokens from this session to the end of the log
        last_S = np.flatnonzero(np.r_[user_S[1:] != user_S[:-1], True])
        ends_S = (after_S - tokens_S)[last_S][np.searchsorted(last_S, np.arange(len(user_S)))]
        kept = sessions.filter(pa.array(after_S - ends_S <= HISTORY))
        write_log(folder, [kept], log.catalogue.with_format("arrow")[:], log.metadata, "the platform")
    return folder


def data(folder: Path, **settings: Any) -> SessionDataModule:
    """A DataModule at the reference shape."""
    return SessionDataModule(folder, SplitConfig(), HISTORY, **{"batch_size": BATCH, **settings})


def peer_log() -> Path:
    """The training users' plays of `short_log` as CSV: user, item, timestamp (seconds)."""
    path = ROOT / "peer.csv"
    if not path.exists():
        module = data(short_log())
        rows = module.rows(TRAIN)
        with path.with_suffix(".tmp").open("w") as out:
            out.write("user,item,timestamp\n")
            for at, row in enumerate(rows.tolist()):
                first, length = int(module.flat.first_S[row]), int(module.flat.length_S[row])
                for n, track in enumerate(module.flat.track_N[first + 1 : first + 1 + length].tolist()):
                    out.write(f"{int(module.flat.user_S[row])},{track},{at * 10_000 + n}\n")
        os.replace(path.with_suffix(".tmp"), path)
    return path


def one_thread() -> None:
    """Pin this process's pools to one thread."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
