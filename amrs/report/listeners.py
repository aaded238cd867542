"""How many listeners a report's figures rest on: rows count sessions, reports or plays, intervals draw
users.
"""

from collections.abc import Mapping
from typing import Any

from amrs.report.rows import Report

FEW = 10
"""Listeners below which nothing is concluded: intervals that draw so few users are too narrow."""
TOO_FEW = "too few users"
"""The word for it where a conclusion would stand."""


def listeners(report: Report, chapter: str) -> int | None:
    """Users whom the figures of a chapter (model, policies, harm) rest on, of one split and at most; None
    where the report does not say. Fewer sessions than users are of as many users."""
    evaluate, part = _evaluate(report)
    parts = ("training", "validation", "test") if evaluate.get("protocol") == "kfold" else (part,)
    lines = report.provenance.get("data", [])
    users = [int(line["users"]) for line in lines if line.get("group") in parts and "users" in line]
    sessions = {
        "policies": _part(report.provenance, "protocol").get(f"{part} sessions rolled out"),
        "harm": _part(_part(report.provenance, "config"), "stress").get("sessions"),
    }.get(chapter)
    if not users:
        return None
    return sum(users) if sessions is None else min(sum(users), int(sessions))


def too_few(report: Report, chapter: str) -> bool:
    """Whether so few listeners, over all splits, tell nothing; False where the report does not say."""
    count = listeners(report, chapter)
    return count is not None and count * int(_evaluate(report)[0].get("splits", 1)) < FEW


def in_words(report: Report, chapter: str) -> str:
    """Their number as "94 test users"; empty where the report does not say."""
    count, (evaluate, part) = listeners(report, chapter), _evaluate(report)
    if count is None:
        return ""
    words = f"{count:,} {part} user{'' if count == 1 else 's'}"
    if evaluate.get("protocol") == "kfold":
        return f"{count:,} users, each tested once a repeat"
    splits = evaluate.get("splits", 1)
    return words if splits == 1 else f"{words} in each of {splits} splits"


def headed(caption: str, report: Report, chapter: str) -> str:
    """A table's caption, with the number of listeners where it is known."""
    users = in_words(report, chapter)
    return f"{caption} ({users})" if users else caption


def _evaluate(report: Report) -> tuple[Mapping[str, Any], str]:
    """Settings of the evaluation, and whose sessions it judges."""
    evaluate = _part(_part(report.provenance, "config"), "evaluate")
    return evaluate, str(evaluate.get("users", "test"))


def _part(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping inside another; empty where it is missing or text."""
    found = given.get(name)
    return found if isinstance(found, Mapping) else {}
