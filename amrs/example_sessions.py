"""Sessions to look at: the same listener and luck, once with Copycat and once with another policy.

One session a mode, and not the best: the one whose gain in valence is the median of its mode.
Shape suffixes: B sessions, T tracks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.fidelity.targets import AFFECT
from amrs.outcomes import Sessions
from amrs.rollout import Rollouts

SHOWN = ("copycat", "dpo")


def example_sessions(
    found: Mapping[str, Rollouts], sessions: Sessions, data: SessionDataModule
) -> list[dict[str, Any]]:
    """One entry per mode and policy: `mode`, `policy`, `start` (affect before the session, or null),
    `path` (expected valence and arousal if the session ended after each track) and `tracks` (titles).

    Sessions with a report before them are preferred. Nothing in it tells who the listener is.
    """
    if not all(name in found for name in SHOWN):
        return []
    gain_B = found["dpo"].final("valence") - found["copycat"].final("valence")
    start_B2 = data.flat.pre_report_S2[sessions.row_B]
    names = _track_names(data)
    examples = []
    for mode, row in _typical(gain_B, ~start_B2.isnan().any(1), sessions, data):
        for policy in SHOWN:
            rollouts = found[policy]
            played_T = rollouts.played_BT[row]
            path_T2 = torch.stack([rollouts.expected[signal][row][played_T] for signal in AFFECT], 1)
            start_2 = start_B2[row].tolist()
            examples.append(
                {
                    "mode": mode,
                    "policy": policy,
                    "start": None if start_B2[row].isnan().any() else [round(x, 3) for x in start_2],
                    "path": [[round(x, 3) for x in point] for point in path_T2.tolist()],
                    "tracks": [names[k] for k in rollouts.track_BT[row][played_T].tolist()],
                }
            )
    return examples


def _typical(
    gain_B: Tensor, known_B: Tensor, sessions: Sessions, data: SessionDataModule
) -> Iterator[tuple[str, int]]:
    """(mode, session) with the median gain, among sessions with a report before them where there are any."""
    modes = dict(enumerate(data.log.metadata.modes)) or {-1: "all"}
    for code, mode in modes.items():
        here_B = sessions.mode_B == code
        here_B = here_B & known_B if (here_B & known_B).any() else here_B
        index = torch.nonzero(here_B & ~gain_B.isnan())[:, 0]
        if len(index):
            yield mode, int(index[gain_B[index].argsort()[(len(index) - 1) // 2]])


def _track_names(data: SessionDataModule) -> list[str]:
    """Title and artist where the catalogue has them, else the track's id."""
    catalogue = data.log.catalogue
    ids = catalogue["track_id"][:]
    titles = catalogue["title"][:] if "title" in catalogue.column_names else [None] * len(ids)
    artists = catalogue["artist"][:] if "artist" in catalogue.column_names else [None] * len(ids)
    named = [title or track for title, track in zip(titles, ids, strict=True)]
    return [f"{name} ({artist})" if artist else name for name, artist in zip(named, artists, strict=True)]
