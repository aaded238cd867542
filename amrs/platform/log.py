"""From simulated sessions to the rows of the session log.

Shape suffixes: S sessions, N steps of a session.
"""

import datetime

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from amrs.platform.catalogue import COHORTS, MODES, Catalogue, track_id
from amrs.platform.listeners import take
from amrs.platform.service import Shard

FIRST_DAY_MS = int(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()) * 1000
DAY_MS = 86_400_000
TIME = pa.timestamp("ms", "UTC")


def session_table(catalogue: Catalogue, shard: Shard, first_user: int, prefix: str) -> pa.Table:
    """The shard's rows; listeners are named `prefix` and their number from `first_user` on."""
    who, starts, plays = take(shard.listeners, shard.user_S), shard.starts, shard.plays
    played_SN = plays.track_SN >= 0
    started_S, ended_S = _times(catalogue, shard, who.offset_min_U)
    users = [f"{prefix}{number:07d}" for number in range(first_user, first_user + len(shard.listeners.key_U))]
    user_ids = pa.array(users).take(pa.array(shard.user_S.numpy()))
    tracks = pa.array([track_id(k) for k in range(len(catalogue.genre_K))])
    counts_S = played_SN.sum(1)
    return pa.table(
        {
            "session_id": [f"{users[u]}-{n:04d}" for u, n in zip(*_numbers(shard.user_S), strict=True)],
            "user_id": user_ids,
            "started_at": pa.array(started_S.numpy()).cast(TIME),
            "ended_at": pa.array(ended_S.numpy()).cast(TIME),
            "utc_offset_min": pa.array(who.offset_min_U.numpy(), pa.int16()),
            "mode": pa.array(MODES).take(pa.array(starts.mode_S.numpy())),
            "cohort": pa.array(COHORTS).take(pa.array((~who.clinical_U).long().numpy())),
            **{
                f"{when}_{what}": _nullable(report_S2[:, column])
                for when, report_S2 in (("pre", plays.pre_S2), ("post", plays.post_S2))
                for column, what in enumerate(("valence", "arousal"))
            },
            "ended": pa.array(["completed", "left"]).take(pa.array(plays.left_S.long().numpy())),
            "track_id": _lists(tracks.take(pa.array(plays.track_SN[played_SN].numpy())), counts_S),
            "engagement": _lists(_nullable(plays.engagement_SN[played_SN]), counts_S),
            "rating": _lists(_nullable(plays.rating_SN[played_SN]).cast(pa.int8()), counts_S),
            "propensity": _lists(_nullable(plays.propensity_SN[played_SN]), counts_S),
            "arm": pa.array(["production"] * len(counts_S)),
        }
    )


def _times(catalogue: Catalogue, shard: Shard, offset_S: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end in ms since 1970 (UTC); a session lasts as long as its tracks were heard."""
    local_S = shard.starts.day_S * DAY_MS + (shard.starts.hour_S.double() * 3600).long() * 1000
    started_S = FIRST_DAY_MS + local_S - offset_S * 60_000
    heard_SN = catalogue.duration_K[shard.plays.track_SN] * shard.plays.engagement_SN.nan_to_num(0.0)
    return started_S, started_S + (heard_SN.sum(1).double() * 1000).long()


def _numbers(user_S: Tensor) -> tuple[list[int], list[int]]:
    """Listener's row and number of the session among the listener's own."""
    first_U = torch.cat([user_S.new_zeros(1), torch.bincount(user_S).cumsum(0)])
    return user_S.tolist(), (torch.arange(len(user_S)) - first_U[user_S]).tolist()


def _nullable(x: Tensor) -> pa.Array:
    values = x.float().numpy()
    return pa.array(values, pa.float32(), mask=np.isnan(values))


def _lists(values: pa.Array, counts_S: Tensor) -> pa.ListArray:
    offset_S = torch.cat([counts_S.new_zeros(1), counts_S.cumsum(0)])
    return pa.ListArray.from_arrays(pa.array(offset_S.numpy(), pa.int32()), values)
