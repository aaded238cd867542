"""Logs: batches from the mapped log, and raw tables to a validated log.

Shape suffix: N tokens of the whole log.
"""

import resource
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import torch
import yaml

from amrs import stages
from amrs.batches import StepBatches
from amrs.config import parse
from amrs.config.data import DataConfig
from amrs.importers.table import importer
from amrs.logs.schema import read_log
from amrs.logs.splits import TRAIN
from amrs.runs import plan
from benchmarks.reference import BATCH, MODEL, ROOT, data, platform_log
from benchmarks.timing import Clock, Row, peak_anonymous, row, speed

USERS_1M = 10_000
"""About a million plays and session starts."""


def _batches(name: str, log_dir: Path) -> Row:
    """All windows of training users once, then some of them beside a copy of as many bytes."""
    with peak_anonymous() as gib:
        log = data(log_dir)
        units, collate = log._units(TRAIN)
        stream = iter(StepBatches(units, BATCH, 0, collate, together=log.together))
        first = next(stream)
        for _ in range(units // BATCH - 1):
            next(stream)
    width = sum(x.numel() * x.element_size() for x in first if x.ndim > 1) // first.valid_BL.sum()
    source = torch.zeros(int(first.valid_BL.sum()) * 8, int(width), dtype=torch.uint8)
    target = torch.empty_like(source)

    def run() -> float:
        return float(sum(int(next(stream).valid_BL.sum()) for _ in range(8)))

    def bound() -> float:
        target.copy_(source)
        return float(len(source))

    ours, copy = speed(run, bound)
    note = (
        f"{len(log.flat.track_N):,} tokens of {int(width)} bytes; {BATCH} windows of {MODEL.history}; in "
        f"an epoch of {units:,} {max(gib):.2f} GiB of anonymous memory; bound: a copy of the same bytes"
    )
    return row(name, "events", ours, copy, note)


def batches_1m() -> list[Row]:
    """A log of a million events."""
    return [_batches("batches_1m", platform_log(USERS_1M))]


def _raw(kind: str) -> Path:
    """The million events as raw tables with a column map."""
    folder = ROOT / f"raw-{kind}"
    if (folder / "map.yaml").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    log = read_log(platform_log(USERS_1M))
    sessions = log.sessions.with_format("arrow")[:].combine_chunks()
    catalogue = log.catalogue.with_format("arrow")[:].select(["track_id", "embedding"])
    parent_N = pc.list_parent_indices(sessions["track_id"].combine_chunks())
    position_N = np.arange(len(parent_N)) - np.searchsorted(parent_N.to_numpy(), parent_N.to_numpy())
    plays = {name: pc.list_flatten(sessions[name]) for name in ("track_id", "engagement", "rating")}
    events = pa.table({"session_id": sessions["session_id"].take(parent_N), "position": position_N, **plays})
    shuffled = events.take(pa.array(np.random.default_rng(0).permutation(len(events))))
    names = ["session_id", "user_id", "started_at", "ended_at", "pre_valence", "post_valence"]
    flat = pa.table({"track_id": catalogue["track_id"]})
    vectors = np.stack(catalogue["embedding"].to_numpy())
    for column in range(vectors.shape[1]):
        flat = flat.append_column(f"vec_{column}", pa.array(vectors[:, column]))
    for part, table in (("events", shuffled), ("sessions", sessions.select(names)), ("catalogue", flat)):
        path = str(folder / f"{part}.{kind}")
        (pa.csv.write_csv if kind == "csv" else pa.parquet.write_table)(table, path)
    columns = {
        "sessions": {name: name for name in names}, "events": {name: name for name in events.column_names},
        "catalogue": {"track_id": "track_id", "embedding": {"prefix": "vec_"}},
    }  # fmt: skip
    top = {part: {"file": f"{part}.{kind}", "columns": of} for part, of in columns.items()}
    (folder / "map.yaml").write_text(yaml.safe_dump({"name": "bench", "embedding_is": "synthetic", **top}))
    return folder


def _prepare(kind: str) -> list[Row]:
    folder = _raw(kind)
    files = {part: folder / f"{part}.{kind}" for part in ("events", "sessions", "catalogue")}
    count = float(len(read_log(platform_log(USERS_1M)).sessions))
    scratch = Path(tempfile.mkdtemp(dir=ROOT))

    def run() -> float:
        importer(DataConfig(name="table", raw_dir=str(folder)), scratch / "new")
        shutil.rmtree(scratch / "new")
        return events

    def csv_bound() -> float:
        for path in files.values():
            pa.csv.read_csv(path)
        return events

    def parquet_bound() -> float:
        tables = {part: pa.parquet.read_table(path) for part, path in files.items()}
        keys = [("session_id", "ascending"), ("position", "ascending")]
        tables["events"] = tables["events"].sort_by(keys)
        for part, table in tables.items():
            pa.parquet.write_table(table, scratch / f"{part}.parquet")
        return events

    events = float(pa.parquet.read_metadata(files["events"]).num_rows) if kind == "parquet" else 0.0
    events = events or float(len(pa.csv.read_csv(files["events"])))
    ours, bound = speed(run, csv_bound if kind == "csv" else parquet_bound, seconds=0.0)
    shutil.rmtree(scratch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    of = "pyarrow reads it" if kind == "csv" else "pyarrow reads, sorts and writes it"
    note = f"{events:,.0f} events in random order, {count:,.0f} sessions; peak {peak:.2f} GiB; bound: {of}"
    return [row(f"prepare_{kind}", "events", ours, bound, note)]


def _copies(folder: Path, source: Path, copies: int) -> None:
    """The raw Parquet tables of `source` so many times over, every time with other users and sessions."""
    folder.mkdir(parents=True)
    shutil.copy(source / "map.yaml", folder)
    shutil.copy(source / "catalogue.parquet", folder)
    for part in ("sessions", "events"):
        table = pa.parquet.read_table(source / f"{part}.parquet")
        with pa.parquet.ParquetWriter(folder / f"{part}.parquet", table.schema) as out:
            for n in range(copies):
                ids = [name for name in ("session_id", "user_id") if name in table.column_names]
                other = table
                for name in ids:
                    renamed = pc.binary_join_element_wise(table[name], f"copy {n}", " ")
                    other = other.set_column(table.column_names.index(name), name, renamed)
                out.write_table(other, row_group_size=1 << 18)


def _stage(folder: Path, *settings: str) -> Path:
    """Folder of a run of train.py on the raw tables in `folder`/raw."""
    about = ["log=disabled", f"runs={folder / 'runs'}", "data=table", f"data.raw_dir={folder / 'raw'}"]
    config = parse([*settings, *about]).config
    if status := stages.run(config):
        raise RuntimeError(f"train.py {' '.join(settings)} ended with {status}")
    return plan(config)[-1].folder


def _delivered(name: str, copies: int) -> tuple[Path, list[Row]]:
    """A log of so many copies of a platform log of a million events, prepared from one delivery and read in
    batches; its folder."""
    folder = ROOT / f"delivery-{copies}"
    shutil.rmtree(folder, ignore_errors=True)
    _copies(folder / "raw", _raw("parquet"), copies)
    events = float(pa.parquet.read_metadata(folder / "raw" / "events.parquet").num_rows)
    with peak_anonymous() as gib:
        clock = Clock()
        log_dir = _stage(folder, "stage=prepare") / "log"
        rates = clock.rates(events)
    note = (
        f"{copies} copies of a platform log of a million events, {events:,.0f} in all; {max(gib):.2f} GiB of "
        "anonymous memory"
    )
    return folder, [
        Row(f"delivery_{name}", "events", *rates, note=note),
        _batches(f"batches_{name}", log_dir),
    ]


def batches_20m() -> list[Row]:
    """Twenty million events in one delivery: prepared and mapped, read in batches, trained on; with memory
    at its peak."""
    folder, rows = _delivered("20m", 21)
    settings = [f"model.history={MODEL.history}", f"world_model.batch_size={BATCH}", "world_model.members=1",
                "world_model.max_steps=300", "world_model.validate_every=300",
                "world_model.penalties=[40.0]"]  # fmt: skip
    with peak_anonymous() as gib:
        clock = Clock()
        _stage(folder, "stage=world_model", "trainer.accelerator=cpu", *settings)
        rates = clock.rates(1.0)
    note = f"{' '.join(settings)}; {max(gib):.2f} GiB of anonymous memory"
    shutil.rmtree(folder)
    return [*rows, Row("train_20m", "s", 1 / rates[0], 1 / rates[1], note=note)]


def batches_100m() -> list[Row]:
    """A hundred million events likewise, without training; takes a quarter of an hour and 30 GB of disk."""
    folder, rows = _delivered("100m", 107)
    shutil.rmtree(folder)
    return rows


def prepare_csv() -> list[Row]:
    """CSV tables to a validated log."""
    return _prepare("csv")


def prepare_parquet() -> list[Row]:
    """Parquet tables to a validated log."""
    return _prepare("parquet")
