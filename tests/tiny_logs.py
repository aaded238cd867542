"""Small logs with everything missing now and then, and tiny models over them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from amrs.config.data import SplitConfig
from amrs.config.groups import ModelConfig
from amrs.data import SessionDataModule
from amrs.logs.schema import Metadata, write_log
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel

TIME = pa.timestamp("ms", "UTC")
METADATA = Metadata(
    "tiny",
    ("energize", "calm"),
    ("clinical", "well"),
    ("noise",),
    {"engagement": "bounded", "rating": "binary", "valence": "bounded", "arousal": "bounded"},
    False,
    "made up",
)


def at(hours: float) -> datetime:
    return datetime(2024, 5, 1, tzinfo=UTC) + timedelta(hours=hours)


def session(user: str, hours: float, tracks: str, **columns: Any) -> dict[str, Any]:
    """One session: `tracks` are letters; play columns are lists, null where not given."""
    lists = dict.fromkeys(("engagement", "rating", "track_valence", "track_arousal"))
    reports = dict.fromkeys(("pre_valence", "pre_arousal", "post_valence", "post_arousal"))
    others = dict.fromkeys(("mode", "cohort", "context", "ended", "utc_offset_min"))
    row = {
        "session_id": f"{user}-{hours}",
        "user_id": user,
        "started_at": at(hours),
        "track_id": list(tracks),
    }
    return {**row, **lists, **reports, **others, **columns}


def write(
    folder: Path, rows: list[dict[str, Any]], catalogue: pa.Table, metadata: Metadata = METADATA
) -> Path:
    number, numbers = pa.float32(), pa.list_(pa.float32())
    types = {
        "started_at": TIME,
        "rating": pa.list_(pa.int8()),
        "context": numbers,
        "mode": pa.string(),
        "cohort": pa.string(),
        "ended": pa.string(),
        "utc_offset_min": pa.int16(),
        **dict.fromkeys(("engagement", "track_valence", "track_arousal"), numbers),
        **dict.fromkeys(("pre_valence", "pre_arousal", "post_valence", "post_arousal"), number),
    }
    table = pa.table({name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]})
    write_log(folder, [table], catalogue, metadata, "test")
    return folder


def letters(count: int = 6, modes: dict[str, list[str]] | None = None) -> pa.Table:
    """Tracks a, b, c ... with embeddings on a line that bends."""
    names = [chr(97 + k) for k in range(count)]
    return pa.table(
        {
            "track_id": names,
            "embedding": [[float(k), float(k * k), 1.0] for k in range(count)],
            "modes": pa.array([(modes or {}).get(name) for name in names], pa.list_(pa.string())),
            "artist": ["x", "y"] * (count // 2) + ["z"] * (count % 2),
        }
    )


def random_log(
    folder: Path, users: int = 12, tracks: int = 26, seed: int = 0, metadata: Metadata = METADATA
) -> Path:
    """Users with one to five sessions of one to six tracks, in both modes or none."""
    rng = np.random.default_rng(seed)
    names = [chr(97 + k) for k in range(tracks)]
    modes = {names[k]: [["calm"], ["energize", "calm"]][k % 3 - 1] for k in range(tracks) if k % 3}

    def some(value: Any, missing: float = 0.3) -> Any:
        return None if rng.random() < missing else value

    def fraction(missing: float) -> float | None:
        return some(float(rng.choice([0.0, 1.0, rng.random()])), missing)

    rows = []
    for u in range(users):
        for s in range(int(rng.integers(1, 6))):
            mode = some(str(rng.choice(METADATA.modes)))
            fits = [k for k in names if mode is None or mode in modes.get(k, METADATA.modes)]
            played = rng.permutation(fits)[: int(rng.integers(1, 7))].tolist()
            rows.append(
                session(
                    f"u{u}", 30.0 * s + u, "", track_id=played, mode=mode,
                    cohort=str(METADATA.cohorts[u % 2]), context=some([float(rng.normal())]),
                    utc_offset_min=some(60), ended=some(str(rng.choice(["left", "completed"]))),
                    engagement=[fraction(0.2) for _ in played],
                    rating=[some(int(rng.integers(2)), 0.5) for _ in played],
                    track_valence=[fraction(0.7) for _ in played],
                    track_arousal=[fraction(0.7) for _ in played],
                    pre_valence=fraction(0.3), pre_arousal=fraction(0.3),
                    post_valence=fraction(0.3), post_arousal=fraction(0.3),
                )
            )  # fmt: skip
    embedding = rng.normal(size=(tracks, 5)).astype(np.float32).tolist()
    catalogue = letters(tracks, modes).set_column(1, "embedding", pa.array(embedding, pa.list_(pa.float32())))
    return write(folder, rows, catalogue, metadata)


def opened(folder: Path, history: int = 16, users: str = "all", **settings: Any) -> SessionDataModule:
    return SessionDataModule(folder, SplitConfig(), history, users, **settings)


def shape(**settings: Any) -> ModelConfig:
    return ModelConfig(**{"width": 16, "layers": 2, "heads": 2, "history": 16, **settings})


def world_model(
    data: SessionDataModule, members: int = 1, seed: int = 0, curves: int = 0, situation: bool = False,
    **settings: Any,
) -> WorldModel:  # fmt: skip
    """An untrained ensemble with heads that say something."""
    torch.manual_seed(seed)
    config = shape(**settings)
    signals = data.log.metadata.signals
    features = data.flat.static_SF.shape[1]
    logged = range(features - len(data.log.metadata.context), features) if situation else ()
    model = WorldModel(members, config, signals, 2, features, data.embedding_KE, curves, logged)
    for member in model.ensemble:
        torch.nn.init.normal_(member.head.weight, std=0.5)
        torch.nn.init.normal_(member.level_KV)
    return model.eval()


def policy(data: SessionDataModule, seed: int = 0, **settings: Any) -> PolicyModel:
    """An untrained policy that is not indifferent."""
    torch.manual_seed(seed)
    plays_K = torch.arange(data.tracks) + 1.0
    model = PolicyModel(shape(**settings), data.flat.static_SF.shape[1], data.embedding_KE, plays_K)
    torch.nn.init.normal_(model.query.weight, std=1.0)
    return model.eval()
