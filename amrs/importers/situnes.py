"""SiTunes, a public study of situational music listening with 30 users: stages 1 (lab) and 2 (field).

Source: Grigorev et al., SiTunes: A Situational Music Recommendation Dataset with Physiological and
Psychological Signals, CHIIR 2024. Letters: N records of a file.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amrs import importers
from amrs.config.data import DataConfig
from amrs.importers.embeddings import embedding_is, with_embeddings
from amrs.importers.reading import Floats, Raw, read_raw, scaled
from amrs.logs.faults import Faults, Ints, LogError
from amrs.logs.schema import Metadata, write_log
from amrs.logs.validation import REPORTS

ADVICE = importers.ADVICE["situnes"]
UTC_OFFSET_MIN = 8 * 60
SPOTIFY = "loudness danceability energy speechiness acousticness instrumentalness valence tempo".split()
OPENSMILE = (
    "F0final_sma_amean F0final_sma_stddev audspec_lengthL1norm_sma_stddev pcm_RMSenergy_sma_stddev "
    "pcm_fftMag_psySharpness_sma_amean pcm_fftMag_psySharpness_sma_stddev "
    "pcm_zcr_sma_amean pcm_zcr_sma_stddev"
).split()
EMBEDDING = (
    "17 audio features, 9 of Spotify (key as sine and cosine, no popularity) and 8 of openSMILE, "
    "standardised over the catalogue; not a learned embedding such as MERT"
)
ACTIVITIES = ("still", "coming_to_rest", "walking", "unknown", "lying", "running")
CONTEXT = (
    *("heart_rate_mean", "heart_rate_sd", "activity_intensity_mean", "steps_sum"),
    *(f"share_{name}" for name in ACTIVITIES),
    *("morning", "afternoon", "evening", "sunny", "cloudy", "rainy"),
    *("pressure_hpa", "temperature_c", "humidity_percent"),
)
"""Of the 30 minutes before a record (bracelet, one value a minute) and at the record (time, weather).

The heart rate was normalised for each user by the study's authors."""


def importer(config: DataConfig, folder: Path) -> None:
    """Write `folder/log` from the raw files in `data.raw_dir`.

    A session of stage 1 is a user's 20 tracks in the lab, with a report after each track; its times stamp the
    start of a track (the gap to the next one fits its `duration`). A session of stage 2 is one record: one
    track, with a report before and after; its time stamps the end, so it starts `duration` earlier (at the
    stamp itself where that is missing, and then `ended_at` is null). Stage-2 `duration` is dwell time, which
    outlasts a third of the songs, so it is no engagement.
    """
    if config.raw_dir is None:
        raise LogError(f"data.raw_dir is not given: {ADVICE}")
    root = Path(config.raw_dir)
    music = _music(root)
    sessions = pa.concat_tables([_stage1(root, music), _stage2(root)])
    user = np.asarray(sessions["user_id"].to_numpy()).astype(int)
    start = np.asarray(sessions["started_at"].cast(pa.int64()).to_numpy())
    sessions = sessions.take(pa.array(np.lexsort((start, user))))
    plays = [len(set(tracks)) < len(tracks) for tracks in sessions["track_id"].to_pylist()]
    metadata = Metadata(
        name="situnes",
        modes=(),
        cohorts=(),
        context=CONTEXT,
        repeats=any(plays),
        embedding=embedding_is(config.embeddings) or EMBEDDING,
        signals={"engagement": "bounded", "rating": "binary", "valence": "bounded", "arousal": "bounded"},
    )
    catalogue = with_embeddings(music.drop_columns(["item_id"]), config.embeddings)
    write_log(folder / "log", [sessions], catalogue, metadata, str(root))


def _music(root: Path) -> pa.Table:
    """The catalogue, with the raw `item_id` as a further column; the row of item -1 (no song) is dropped."""
    raw = read_raw(root / "music_metadata" / "music_info.csv", ADVICE)
    (item,) = raw.integers("item_id")
    raw = Raw(raw.file, raw.table.filter(pa.array(item >= 0)))
    key, milliseconds, *features = raw.floats("key", "duration", *SPOTIFY, *OPENSMILE)
    angle = key * (2 * np.pi / 12)  # pitch class 0-11, circular
    values = np.column_stack([*features, np.sin(angle), np.cos(angle)])
    spread = values.std(0)
    values = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    item = item[item >= 0]
    return pa.table(
        {
            "item_id": item,
            "track_id": pa.array(item.astype(str)),
            "embedding": pa.array(list(values.astype(np.float32)), pa.list_(pa.float32())),
            "genre": raw.text("general_genre"),
            "duration_s": milliseconds / 1000,
        }
    )


def _binary(raw: Raw) -> Floats:
    """Rating 1-5 as like (4 and up, 1.0), dislike (2 and down, 0.0), or NaN for 3."""
    (stars,) = raw.floats("rating")
    faults = Faults(str(raw.file))
    bad, no_ids = ~np.isin(stars, [1, 2, 3, 4, 5]), pa.nulls(len(stars), pa.string())
    faults.add_rows("rating", bad, no_ids, raw.column("rating"), "1, 2, 3, 4 or 5")
    faults.raise_any()
    return np.select([stars >= 4, stars <= 2], [1.0, 0.0], np.nan)


def _affect(raw: Raw, name: str) -> pa.Array:
    """A column of affect in [-1, 1], mapped to [0, 1]."""
    faults = Faults(str(raw.file))
    value = scaled(raw, name, -1, 1, name, pa.nulls(len(raw.table), pa.string()), faults)
    faults.raise_any()
    return value.cast(pa.float32())


def _lists(values: pa.Array, offset: Ints) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offset, pa.int32()), values)


def _stage1(root: Path, music: pa.Table) -> pa.Table:
    """One session per user: the lab's tracks in the order of `No.`."""
    raw = read_raw(root / "Stage1" / "interactions.csv", ADVICE)
    user, number = raw.integers("user_id", "No.")
    raw = Raw(raw.file, raw.table.take(pa.array(np.lexsort((number, user)))))
    user, item, stamp_s = raw.integers("user_id", "item_id", "timestamp")
    (seconds,) = raw.floats("duration")
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    offset = np.r_[first, len(user)]
    end_s = (stamp_s + np.nan_to_num(seconds))[offset[1:] - 1]
    rating = pa.array(_binary(raw), from_pandas=True).cast(pa.int8())
    # Numbered by time, so that a session's name does not tell its user.
    rank = np.argsort(np.argsort(stamp_s[first])) + 1
    return pa.table(
        {
            "session_id": [f"stage1-{k:02d}" for k in rank],
            "user_id": user[first].astype(str),
            "started_at": _times(stamp_s[first]),
            "ended_at": _times(end_s),
            "utc_offset_min": np.full(len(first), UTC_OFFSET_MIN),
            "context": pa.nulls(len(first), pa.list_(pa.float32())),
            **{name: pa.nulls(len(first), pa.float32()) for name in REPORTS},
            "ended": ["completed"] * len(first),
            "track_id": _lists(pa.array(item.astype(str)), offset),
            "engagement": _lists(_fraction(seconds, item, music), offset),
            "rating": _lists(rating, offset),
            "track_valence": _lists(_affect(raw, "emo_valence"), offset),
            "track_arousal": _lists(_affect(raw, "emo_arousal"), offset),
            "arm": pa.nulls(len(first), pa.string()),
        }
    )


def _fraction(seconds: Floats, item: Ints, music: pa.Table) -> pa.Array:
    """Fraction of the track played, cut at 1 (20 plays of stage 1 outlast their track); null if unknown."""
    length_s = dict(zip(music["item_id"].to_pylist(), music["duration_s"].to_pylist(), strict=True))
    whole = np.array([length_s.get(i) for i in item.tolist()], dtype=float)
    return pa.array(np.clip(seconds / whole, 0, 1), pa.float32(), from_pandas=True)


def _stage2(root: Path) -> pa.Table:
    """One session per record, without those that repeat an earlier one (user, item, time and rating)."""
    raw = read_raw(root / "Stage2" / "interactions.csv", ADVICE)
    key = np.column_stack(raw.integers("user_id", "item_id", "timestamp", "rating"))
    kept = np.sort(np.unique(key, axis=0, return_index=True)[1])
    raw = Raw(raw.file, raw.table.take(pa.array(kept)))
    record, user, item, stamp_s = raw.integers("inter_id", "user_id", "item_id", "timestamp")
    (seconds,) = raw.floats("duration")
    rating = pa.array(_binary(raw), from_pandas=True).cast(pa.int8())
    one = np.arange(len(record) + 1)
    unknown = _lists(pa.nulls(len(record), pa.float32()), one)
    return pa.table(
        {
            "session_id": [f"stage2-{k:03d}" for k in record],
            "user_id": user.astype(str),
            "started_at": _times(stamp_s - np.nan_to_num(seconds)),
            "ended_at": _times(np.where(np.isnan(seconds), np.nan, stamp_s)),
            "utc_offset_min": np.full(len(record), UTC_OFFSET_MIN),
            "context": pa.array(list(_context(root, record)), pa.list_(pa.float32())),
            **{name: _affect(raw, f"emo_{name}") for name in REPORTS},
            "ended": pa.nulls(len(record), pa.string()),
            "track_id": _lists(pa.array(item.astype(str)), one),
            "engagement": unknown,
            "rating": _lists(rating, one),
            "track_valence": unknown,
            "track_arousal": unknown,
            "arm": raw.text("rec_type"),
        }
    )


def _times(seconds: Floats | Ints) -> pa.Array:
    """Seconds since 1970, NaN where unknown, as timestamp[ms, UTC]."""
    unknown = np.isnan(seconds)
    milliseconds = np.round(np.where(unknown, 0, seconds) * 1000).astype(np.int64)
    return pa.array(milliseconds, mask=unknown).cast(pa.timestamp("ms", "UTC"))


def _context(root: Path, record: Ints) -> NDArray[np.float32]:
    """`CONTEXT` of each record, (N, 19). Places (GPS) are not read."""
    file, env_file = root / "Stage2" / "wrist.npy", root / "Stage2" / "env.json"
    for path in (file, env_file):
        if not path.is_file():
            raise LogError(f"{path.name} is missing in {path.parent}; {ADVICE}")
    try:
        wrist = np.load(file, allow_pickle=False)[record - 1]  # row i belongs to record i + 1
        heart, intensity, steps, kind = np.moveaxis(wrist.astype(float), -1, 0)
        env = json.loads(env_file.read_text())
        moments = [env[str(k)] for k in record.tolist()]
        period, weather = np.array([m["time"] for m in moments]), np.array([m["weather"] for m in moments])
        sky, *air = weather.astype(float).T
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise LogError(
            f"{file} and {env_file.name} do not fit the records of Stage2/interactions.csv "
            f"({type(error).__name__}: {error}); {ADVICE}"
        ) from error
    shares = [(kind == code).mean(1) for code in range(len(ACTIVITIES))]
    return np.column_stack(
        [
            heart.mean(1),
            heart.std(1),
            intensity.mean(1),
            steps.sum(1),
            *shares,
            *(period == code for code in (1, 2, 3)),
            *(sky == code for code in (0, 1, 2)),
            *air,
        ]
    ).astype(np.float32)
