"""Preference pairs in TRL's columns: prompt, chosen, rejected, as text of track ids.

    python examples/trl_pairs.py runs/preferences/FINGERPRINT pairs.parquet

The prompt is what the session had played; no user id is written. Of a list of draws chosen is the best and
rejected the worst. A language model that is trained on it needs a token a track (`<track id>` below) and
knows nothing of how a track sounds.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset

from amrs.data import SessionDataModule
from amrs.logs.histories import played_before
from amrs.logs.splits import TRAIN
from amrs.runs import read_json
from amrs.worlds import open_source


def pairs(preferences: Path, data: SessionDataModule) -> Dataset:
    """The pairs of training users."""
    stored = Dataset.load_from_disk(str(preferences / "pairs"))
    stored = stored.filter(lambda part: part == TRAIN, input_columns="part")
    ids = data.log.catalogue["track_id"][:]
    played_BT = played_before(data.flat, torch.tensor(stored["row"][:]), torch.tensor(stored["step"][:]))
    return Dataset.from_dict({
        "prompt": ["".join(f"<{ids[k]}>" for k in row if k >= 0) for row in played_BT.tolist()],
        "chosen": [f"<{track}>" for track in stored["chosen_id"][:]],
        "rejected": [f"<{track}>" for track in stored["rejected_id"][:]],
    })  # fmt: skip


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    prepared = Path(read_json(folder / "provenance.json")["parents"]["prepare"])
    found = pairs(folder, open_source(prepared).data)
    found.to_parquet(sys.argv[2])
    print(f"{len(found)} pairs to {sys.argv[2]}")
