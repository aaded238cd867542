"""Embeddings from a table of their own in place of the raw catalogue's.

Parquet with the columns `track_id` and `embedding` (lists of numbers), as `stage=embed` writes it, or npz
with the arrays `track_id` (text) and `embedding` (a row a track).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from amrs.logs.faults import Faults, LogError
from amrs.logs.validation import mask


def with_embeddings(catalogue: pa.Table, file: str | None) -> pa.Table:
    """The catalogue with each track's embedding from `file`; as it is where None is given."""
    if file is None:
        return catalogue
    ids, vectors = read_embeddings(Path(file))
    track_ids = catalogue["track_id"].combine_chunks().cast(pa.string())
    at = pc.index_in(track_ids, value_set=ids)
    faults = Faults(file)
    faults.add_rows("catalogue.track_id", mask(pc.is_null(at)), track_ids, "no embedding in the table",
                    "one for every track of the catalogue")  # fmt: skip
    faults.raise_any()
    if "embedding" in catalogue.column_names:
        catalogue = catalogue.drop_columns(["embedding"])
    return catalogue.append_column("embedding", vectors.take(at))


def embedding_is(file: str | None) -> str | None:
    """What a log's metadata say of embeddings from `file`."""
    return None if file is None else f"from {Path(file).name}"


def read_embeddings(file: Path) -> tuple[pa.Array, pa.Array]:
    """Track ids and vectors; LogError where the file is no such table."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                ids, rows = (
                    pa.array(arrays["track_id"].astype(str)),
                    np.asarray(arrays["embedding"], np.float32),
                )
            if rows.ndim != 2:
                raise ValueError(f"embedding has shape {rows.shape}")
            vectors = pa.array(list(rows), pa.list_(pa.float32()))
        else:
            table = pq.read_table(file, columns=["track_id", "embedding"])
            ids = table["track_id"].combine_chunks().cast(pa.string())
            vectors = table["embedding"].combine_chunks().cast(pa.list_(pa.float32()))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise LogError(
            f"data.embeddings={file}: {error}; allowed: Parquet with the columns track_id and embedding, "
            "or npz with arrays of these names, a row a track"
        ) from error
    if len(ids) != len(vectors) or len(ids) != len(pc.unique(ids)):
        raise LogError(
            f"data.embeddings={file}: {len(ids)} track ids, {len(pc.unique(ids))} of them different, and "
            f"{len(vectors)} embeddings; allowed: one embedding for each of different ids"
        )
    return ids, vectors
