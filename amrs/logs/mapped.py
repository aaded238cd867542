"""The flat log on disk, memory-mapped: what a process reads of it is the system's to keep or drop.

Made once, one shard in memory at a time: by stage=prepare, or where an older log is first opened.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from amrs.fidelity.targets import columns
from amrs.logs.histories import LABELS, TOKEN, FlatLog, flat_arrays, static_names
from amrs.logs.schema import Metadata, SessionLog, read_shards

FLAT_VERSION = 2
_USERS = "user_ids.json"
_COUNTED_FROM = {"user_S": "user", "row_U": "session", "first_S": "token", "user_first_U": "token",
                 "user_last_U": "token"}  # fmt: skip
"""Arrays of numbers that are counted from the first user, session or token of the log."""


def open_flat(folder: Path, log: SessionLog) -> FlatLog:
    """The flat log of the session log in `folder`; what is written to its tensors stays in this process."""
    path = folder / f"flat-{FLAT_VERSION}-{log.fingerprint}"
    if not path.exists():
        _make(path, log.metadata, read_shards(folder, log))
    arrays = {name: _map(path / f"{name}.bin", *kind) for name, kind in _layout(log.metadata).items()}
    return FlatLog.of(arrays, json.loads((path / _USERS).read_text()))


def _layout(metadata: Metadata) -> dict[str, tuple[np.dtype, int]]:
    """Type of every array, and its columns (0 where it has one dimension)."""
    numbers = ("user_S", "mode_S", "cohort_S", "first_S", "length_S", "user_first_U", "user_last_U", "row_U")
    features = len(static_names(metadata.modes, metadata.cohorts, metadata.context))
    value = np.dtype(np.float32)
    return {
        **dict.fromkeys(numbers, (np.dtype(np.int64), 0)), "static_SF": (value, features),
        "report_S2": (value, 2), "pre_report_S2": (value, 2), "token_N": (TOKEN, 0),
        "labels_NZ": (np.dtype(np.int16), len(LABELS)),
    }  # fmt: skip


def _map(file: Path, kind: np.dtype, width: int) -> np.ndarray:
    array: np.ndarray = np.memmap(file, kind, mode="c")  # copied on a write
    return array.reshape(-1, width) if width else array


def _make(path: Path, metadata: Metadata, shards: Iterable[SessionLog]) -> None:
    """Write all arrays, then rename; another process may do the same meanwhile."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        _write(partial, metadata, shards)
        os.rename(partial, path)
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, metadata: Metadata, shards: Iterable[SessionLog]) -> None:
    users: list[str] = []
    before = {"user": 0, "session": 0, "token": 0}
    labels_Z, last = np.zeros(len(LABELS), np.int16), np.zeros(0, TOKEN)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _layout(metadata)}
        for shard in shards:
            arrays = flat_arrays(columns(shard), len(metadata.modes), len(metadata.cohorts))
            users += shard.sessions.select_columns(["user_id"])[arrays["row_U"].tolist()]["user_id"]
            for name, of in _COUNTED_FROM.items():
                arrays[name] = arrays[name] + before[of]
            arrays["token_N"]["session"][:-1] += before["session"]
            labels_NZ = arrays["labels_NZ"] + labels_Z
            tokens, labels_Z = arrays.pop("token_N"), labels_NZ[-1]
            last, arrays["token_N"], arrays["labels_NZ"] = tokens[-1:], tokens[:-1], labels_NZ[:-1]
            for name, values in arrays.items():
                values.tofile(files[name])
            before = {"user": len(users), "session": before["session"] + len(arrays["user_S"]),
                      "token": before["token"] + len(arrays["token_N"])}  # fmt: skip
        last.tofile(files["token_N"])
        labels_Z.tofile(files["labels_NZ"])
    (folder / _USERS).write_text(json.dumps(users))
