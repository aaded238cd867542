"""A small good log, for tests that break it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from amrs.logs.schema import Metadata

TIME = pa.timestamp("ms", "UTC")
METADATA = Metadata(
    "test",
    ("calm", "focus"),
    ("clinical",),
    ("noise", "heart"),
    {"engagement": "bounded", "rating": "binary", "valence": "bounded"},
    False,
    "made up",
)


def hour(h: float) -> datetime:
    return datetime(2024, 5, 1, tzinfo=UTC) + timedelta(hours=h)


def sessions(**columns: Any) -> pa.Table:
    """Three sessions of two users: secret-1 has s1 and s2, secret-2 has s3."""
    given: dict[str, Any] = {
        "session_id": ["s1", "s2", "s3"],
        "user_id": ["secret-1", "secret-1", "secret-2"],
        "started_at": pa.array([hour(1), hour(5), hour(2)], TIME),
        "ended_at": pa.array([hour(2), hour(6), None], TIME),
        "utc_offset_min": [60, None, -120],
        "mode": ["calm", None, "focus"],
        "cohort": ["clinical", None, None],
        "context": [[0.5, 70.0], None, [None, 80.0]],
        "pre_valence": [0.1, None, 1.0],
        "post_valence": [None, 0.0, 0.3],
        "ended": ["left", "completed", None],
        "track_id": [["a", "b"], ["c"], ["b", "c"]],
        "engagement": [[0.5, None], None, [1.0, 0.0]],
        "rating": [[1, 0], [None], None],
        "track_valence": [None, [0.4], None],
        "propensity": [[1.0, 0.01], None, [None, 0.5]],
    } | columns
    return pa.table({name: values for name, values in given.items() if values is not None})


def catalogue(**columns: Any) -> pa.Table:
    given: dict[str, Any] = {
        "track_id": ["a", "b", "c"],
        "embedding": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
        "duration_s": [180.0, None, 200.0],
        "modes": [["calm"], None, ["calm", "focus"]],
    } | columns
    return pa.table(given)


def many(count: int) -> pa.Table:
    """`count` users with one session of track b each."""
    return pa.table(
        {
            "session_id": [f"s{i}" for i in range(count)],
            "user_id": [f"u{i}" for i in range(count)],
            "started_at": pa.array([hour(1)] * count, TIME),
            "pre_valence": [2.0] * count,
            "track_id": [["b"]] * count,
        }
    )
