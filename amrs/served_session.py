"""A session of a listener as it is given to an exported policy: its fields, and what they may hold.

A history is a list of a listener's sessions, oldest first; the last is the one under way and may hold no
track yet. A session is a dict with the session log's names (amrs/logs/schema.py), every one of them optional
and None where unknown:

started_at, ended_at                        datetime or ISO text; UTC where it has no zone
utc_offset_min                              whole minutes in [-840, 840]
mode, cohort                                text, a name that the policy knows
context                                     list of numbers, as many and in the order as in the log
(pre|post)_(valence|arousal)                number in [0, 1]
ended                                       "left" or "completed"
track_id                                    list of ids in the order played
engagement, track_valence, track_arousal    list of numbers in [0, 1], one a track
rating                                      list of 0 or 1, one a track
propensity                                  list of probabilities in (0, 1], one a track
session_id, user_id, arm                    not read

Numpy arrays and tensors pass for lists. Values outside the log's ranges are refused, as `prepare` does.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from amrs.logs.histories import FEEDBACK

REPORTS = ("pre_valence", "pre_arousal", "post_valence", "post_arousal")
SESSION = ("session_id", "user_id", "started_at", "ended_at", "utc_offset_min", "mode", "cohort", "context",
           *REPORTS, "ended", "track_id", *FEEDBACK, "propensity", "arm")  # fmt: skip
Session = Mapping[str, Any]


class Rule(NamedTuple):
    """What a value of a session may be, in words and as a test."""

    allowed: str
    fits: Callable[[Any], bool]


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, int | float) and low <= value <= high)


EARLIEST, LATEST = (datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000 for year in (1971, 2100))
LARGEST = torch.finfo(torch.float32).max
TIME = Rule(
    "a datetime or ISO text as 2026-05-01T18:30:00+02:00, 1971 up to 2100, or None",
    lambda at: at is None or EARLIEST <= milliseconds(at) < LATEST,
)
UNIT = Rule("a number in [0, 1], or None", _within(0, 1))
RULES: dict[str, Rule] = {
    "started_at": TIME,
    "ended_at": TIME,
    "utc_offset_min": Rule(
        "whole minutes in [-840, 840], or None", lambda m: m is None or m in range(-840, 841)
    ),
    "context": Rule("a finite number, or None", _within(-LARGEST, LARGEST)),
    **dict.fromkeys(REPORTS, UNIT),
    "ended": Rule("left, completed or None", ("left", "completed", None).__contains__),
    "track_id": Rule("an id of the catalogue, as text", lambda name: isinstance(name, str)),
    **dict.fromkeys(FEEDBACK, UNIT),
    "rating": Rule("0, 1 or None", (0, 1, None).__contains__),
    "propensity": Rule("a probability in (0, 1], or None", lambda p: p != 0 and UNIT.fits(p)),
}
"""Those of amrs/logs/validation.py, which needs more than serving may import; a test holds them equal."""
PLAYS = (*FEEDBACK, "propensity")
"""Lists with an item for each track."""


def checked(session: Session, number: int, context: Sequence[str]) -> dict[str, Any]:
    """All fields of `RULES` as plain values that fit, lists with all their items; mode and cohort.

    Args:
        session: as it was given.
        number: its place in the history, from 1.
        context: names of the log's numbers of context.

    Raises:
        ValueError: for a field that sessions do not have, or a value that the log does not allow.
    """
    strange = set(session) - set(SESSION)
    if strange:
        raise ValueError(f"a session has no {', '.join(sorted(strange))}; it may have {', '.join(SESSION)}")
    given: dict[str, Any] = {**dict.fromkeys(RULES), **{name: plain(x) for name, x in session.items()}}
    where = f"in session {number}"
    of_context = f"number of the context ({', '.join(context) or 'none'})"
    given["context"] = _items(given, "context", where, of_context, len(context))
    given["track_id"] = _items(given, "track_id", where, "track")
    for name in PLAYS:
        given[name] = _items(given, name, where, "track", len(given["track_id"]))
    for name, rule in RULES.items():
        listed = name in ("context", "track_id", *PLAYS)
        for i, value in enumerate(given[name] if listed else [given[name]], 1):
            if not rule.fits(value):
                item = f", item {i}" if listed else ""
                raise ValueError(f"{name}={value!r} {where}{item}; allowed: {rule.allowed}")
    return given


def check_order(sessions: Sequence[Mapping[str, Any]]) -> None:
    """Refuse checked sessions that do not follow each other in time, as far as their times are known."""
    for number, (before, session) in enumerate(pairwise(sessions), 2):
        start = milliseconds(session["started_at"])
        for name in ("started_at", "ended_at"):
            if start < milliseconds(before[name]):
                raise ValueError(
                    f"started_at={session['started_at']!r} in session {number}; allowed: not before the "
                    f"{name} of session {number - 1}, for a history is oldest first"
                )


def plain(value: Any) -> Any:
    """Numpy's and torch's values as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _items(given: Session, name: str, where: str, each: str, length: int | None = None) -> list[Any]:
    """The plain items of a list with one for `each`, that is `length` or any number; all None where it is."""
    items = [None] * (length or 0) if given[name] is None else given[name]
    if not isinstance(items, list | tuple):
        raise ValueError(f"{name}={items!r} {where}; allowed: a list with an item for each {each}, or None")
    if length not in (None, len(items)):
        raise ValueError(f"{name} has {len(items)} items {where}; allowed: {length}, one for each {each}")
    return [plain(item) for item in items]


def milliseconds(at: Any) -> float:
    """Milliseconds since 1970 of a datetime or ISO text, NaN of all else; a time without a zone is UTC."""
    try:
        time = datetime.fromisoformat(at) if isinstance(at, str) else at
        return float((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except (AttributeError, ValueError):
        return float("nan")
