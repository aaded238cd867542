"""Audio files to one embedding each, which a catalogue can use."""

import csv
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from amrs.audio import AudioError, audio_files, normalised, read_mono, windows
from amrs.config.stages import EmbedConfig
from amrs.models.audio_towers import RATE, ClampAudioTower, Mert, find_weights
from amrs.runs import Run, RunError

WINDOW, SHORTEST = 5 * RATE, RATE
"""Samples of a window, and of the shortest tail that is kept: 5 s and 1 s."""
PARTS = "parts"
"""Where rows of files lie while the run is under way; a resumed run tries only those again that failed."""
_SAVE_EVERY = 50
_SCHEMA = pa.schema([
    ("track_id", pa.string()), ("file", pa.string()), ("seconds", pa.float32()), ("windows", pa.int32()),
    ("embedding", pa.list_(pa.float32())), ("why", pa.string()),
])  # fmt: skip
"""A row a file; `why` says of a bad one what is wrong with it, and then it has no embedding."""


class Tower:
    """From a file to its row."""

    def __init__(self, section: EmbedConfig, accelerator: str) -> None:
        cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self.mert = Mert(find_weights(section.weights), section.layer, section.pooling).to(self.device)
        self.clamp: ClampAudioTower | None = None
        if section.model == "clamp3":
            self.clamp = ClampAudioTower(Path(section.clamp3_weights or "")).to(self.device)
        self.batch_size = section.batch_size

    def __call__(self, file: Path) -> tuple[float, int, Tensor]:
        """Seconds, windows and embedding (E,); AudioError where there is none."""
        samples_N = read_mono(file, RATE)
        seconds = len(samples_N) / RATE
        if len(samples_N) < SHORTEST:
            raise AudioError(f"shorter than {SHORTEST / RATE:g} s: {seconds:.3f} s")
        if self.mert.normalise:
            samples_N = normalised(samples_N)
        window_WE = torch.cat([
            self.mert(batch_WN.to(self.device))
            for part_WN in windows(samples_N, WINDOW, SHORTEST)
            for batch_WN in torch.from_numpy(part_WN).split(self.batch_size)
        ])  # fmt: skip
        embedding_E = window_WE.mean(0) if self.clamp is None else self.clamp(window_WE)
        if not embedding_E.isfinite().all():
            raise AudioError("its embedding is not finite")
        return seconds, len(window_WE), embedding_E.cpu()


def run(run: Run, folder: Path) -> None:
    """Embeddings of `embed.audio_dir` to `folder`/embeddings.parquet, bad files to failures.csv."""
    section = run.config.embed
    assert section.audio_dir is not None  # refused by the plan
    root = Path(section.audio_dir)
    files = audio_files(root)
    if not files:
        raise RunError(
            f"embed.audio_dir={root}: no file with an audio ending (wav, flac, ogg, mp3, ...) in it"
        )
    tower = Tower(section, run.config.trainer.accelerator)
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    done = {row["file"] for part in parts.glob("*.parquet") for row in _known(part) if row["why"] is None}
    todo = [file for file in files if str(file.relative_to(root)) not in done]
    seen: dict[str, str] = {}
    for file in files:  # the first of two files with one id has it
        seen.setdefault(_track_id(file, root), str(file.relative_to(root)))
    rows = []
    for file in tqdm(todo, "embed", unit="file", initial=len(done), total=len(files), disable=None):
        rows.append(_row(tower, file, root, seen))
        if len(rows) == _SAVE_EVERY:
            _save(parts, rows)
            rows = []
    if rows:
        _save(parts, rows)
    _finish(folder)


def _track_id(file: Path, root: Path) -> str:
    return file.relative_to(root).with_suffix("").as_posix()


def _row(tower: Tower, file: Path, root: Path, seen: dict[str, str]) -> dict[str, object]:
    name, track_id = str(file.relative_to(root)), _track_id(file, root)
    row: dict[str, object] = {"track_id": track_id, "file": name}
    try:
        if seen[track_id] != name:
            raise AudioError(f"has the track id of {seen[track_id]}")
        seconds, count, embedding_E = tower(file)
    except AudioError as error:
        return row | {"why": str(error)}
    return row | {"seconds": seconds, "windows": count, "embedding": embedding_E.tolist()}


def _save(parts: Path, rows: list[dict[str, object]]) -> None:
    """A part appears whole or not at all."""
    temporary = parts / "part.tmp"
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary)
    os.replace(temporary, parts / f"part-{len(list(parts.glob('*.parquet'))):06d}.parquet")


def _known(part: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(part, columns=["file", "why"]).to_pylist()
    return found


def _finish(folder: Path) -> None:
    """All parts as one table and one list of failures; of a file that was tried again, the last row."""
    parts = folder / PARTS
    table = pa.concat_tables([pq.read_table(part) for part in sorted(parts.glob("*.parquet"))])
    last = {name: index for index, name in enumerate(table["file"].to_pylist())}
    table = table.take(list(last.values())).sort_by("file")
    bad = pa.compute.is_valid(table["why"])
    failures, good = table.filter(bad), table.filter(pa.compute.invert(bad)).drop_columns(["why"])
    (folder / "failures.csv").write_text("".join(_lines(failures)), encoding="utf-8")
    print(f"embedded {len(good)} of {len(table)} files; {len(failures)} failed, see failures.csv")
    if not len(good):
        shutil.rmtree(parts)  # whatever is mended, the files are tried again
        raise RunError(f"no file could be embedded; {failures['file'][0]}: {failures['why'][0]}")
    pq.write_table(good, folder / "embeddings.parquet")
    shutil.rmtree(parts)


def _lines(failures: pa.Table) -> Iterator[str]:
    for line in [["file", "why"], *([row["file"], row["why"]] for row in failures.to_pylist())]:
        text = io.StringIO()
        csv.writer(text).writerow(line)
        yield text.getvalue()
