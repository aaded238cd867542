"""Session logs made up for tests: two listeners to work out by hand, and any number of simulated ones."""

from datetime import UTC, datetime, timedelta
from typing import Any

import datasets
import numpy as np

from amrs.fidelity.targets import columns
from amrs.logs.schema import Metadata, SessionLog, catalogue_schema, session_schema

SIGNALS = {"engagement": "bounded", "rating": "binary", "valence": "bounded", "arousal": "bounded"}
METADATA = Metadata("made up", ("calm", "focus"), ("a", "b"), ("heart_rate",), SIGNALS, True, "random")
START = datetime(2024, 1, 1, 10, tzinfo=UTC)
Sessions = list[dict[str, Any]]


def session(user: str, hour: float, tracks: list[int], **known: Any) -> dict[str, Any]:
    """A row of the log: everything that is not given is null."""
    row = dict.fromkeys(session_schema(METADATA)) | {"utc_offset_min": 60}
    row |= {name: [None] * len(tracks) for name in ("engagement", "rating", "track_valence", "track_arousal")}
    row |= {
        "user_id": user,
        "started_at": START + timedelta(hours=hour),
        "track_id": [f"t{k}" for k in tracks],
    }
    return row | known


def make_log(sessions: Sessions, embedding: np.ndarray, metadata: Metadata = METADATA) -> SessionLog:
    rows = [row | {"session_id": f"s{i}"} for i, row in enumerate(sessions)]
    tracks = [
        {
            "track_id": f"t{k}",
            "embedding": x.tolist(),
            "artist": f"a{k // 2}",
            "genre": None,
            "duration_s": None,
            "modes": None,
            "title": None,
        }
        for k, x in enumerate(embedding)
    ]
    return SessionLog(
        datasets.Dataset.from_list(rows, features=session_schema(metadata)),
        datasets.Dataset.from_list(tracks, features=catalogue_schema(metadata, embedding.shape[1])),
        metadata,
        "",
    )


def two_listeners() -> SessionLog:
    compass = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    return make_log(
        [
            session(
                "x",
                0,
                [0, 1, 2],
                engagement=[0.5, None, 1.0],
                rating=[1, None, 0],
                pre_valence=0.4,
                post_valence=0.6,
                mode=1,
                ended="left",
                track_valence=[0.1, 0.2, 0.3],
            ),
            session(
                "x",
                24,
                [1, 2],
                engagement=[0.25, 0.75],
                rating=None,
                post_valence=0.8,
                context=[0.7],
                mode=0,
                ended="completed",
                track_valence=[0.9, 0.7],
            ),
            session("y", 5, [3], post_valence=0.1, pre_valence=0.3, cohort=1),
        ],
        compass,
    )


def simulated(users: int, seed: int = 0, sessions: int = 6) -> Sessions:
    """Listeners whose reports follow their pre-report and the tracks; track k has affect k / 20."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        person, liking = rng.normal(0, 0.1), rng.normal(0, 1)
        for s in range(sessions):
            tracks = rng.integers(20, size=rng.integers(1, 5))
            pre = np.clip(0.5 + person + rng.normal(0, 0.1), 0, 1)
            post = np.clip(pre + 0.4 * (tracks.mean() / 20 - 0.5) + rng.normal(0, 0.05), 0, 1)
            score = liking * (tracks / 20 - 0.5) * 3
            engagement = np.clip(0.6 + 0.3 * np.tanh(score) + rng.normal(0, 0.1, len(tracks)), 0, 1)
            rating = (rng.random(len(tracks)) < 1 / (1 + np.exp(-4 * score))).astype(int)
            rows.append(
                session(
                    f"u{user}",
                    20.0 * s + user % 7,
                    tracks.tolist(),
                    pre_valence=pre,
                    pre_arousal=1 - pre,
                    post_valence=post,
                    post_arousal=1 - post if s % 2 else None,
                    engagement=engagement.tolist(),
                    rating=[None if k % 3 == 2 else int(r) for k, r in enumerate(rating)],
                    mode=s % 2,
                    cohort=user % 2,
                    context=[rng.normal()] if s else None,
                    ended="left" if s % 3 else "completed",
                    track_valence=rng.random(len(tracks)).tolist(),
                    track_arousal=[0.5] * len(tracks),
                )
            )
    return rows


def embedding(dimension: int = 20) -> np.ndarray:
    line = np.linspace(-1, 1, 20)[:, None]
    return np.concatenate([line, np.random.default_rng(9).normal(size=(20, dimension - 1)) / 3], 1).astype(
        np.float32
    )


def parts(log: SessionLog, train: int, validation: int) -> np.ndarray:
    user_S = columns(log).user_S
    return ((user_S >= train).astype(np.int8) + (user_S >= train + validation)).astype(np.int8)
