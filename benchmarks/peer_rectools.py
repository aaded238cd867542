"""Training speed of RecTools' SASRec / HSTU on a log given as CSV, for side-by-side rows.

In an environment of its own: pip install torch==2.13.0 'rectools[torch]==0.19.0' ('numpy<2').
    python benchmarks/peer_rectools.py LOG.csv [--model sasrec|hstu] [--threads 1] [--reps 5]
LOG.csv has the columns user, item, timestamp (seconds). Width 64, 2 blocks, 2 heads, 50 events,
full softmax, Adam 1e-3, batch 128. Prints one JSON line: positions trained per CPU-second and per
wall second (median, min, max over reps of whole epochs, after one warm-up epoch). RecTools keeps
the last 51 events of a user, so positions per epoch = sum over users of min(n, 51) - 1.
"""

import argparse
import json
import os
import statistics
import time
import warnings

parser = argparse.ArgumentParser()
parser.add_argument("log")
parser.add_argument("--model", default="sasrec", choices=["sasrec", "hstu"])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--reps", type=int, default=5)
args = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
warnings.filterwarnings("ignore")

import pandas as pd  # noqa: E402
import pytorch_lightning as pl  # noqa: E402, TID251  (RecTools imports this name)
import torch  # noqa: E402
from rectools import Columns  # noqa: E402
from rectools.dataset import Dataset  # noqa: E402
from rectools.models import HSTUModel, SASRecModel  # noqa: E402

torch.set_num_threads(args.threads)
log = pd.read_csv(args.log).rename(
    columns={"user": Columns.User, "item": Columns.Item, "timestamp": Columns.Datetime}
)
log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="s")
log[Columns.Weight] = 1
log = log.sort_values([Columns.User, Columns.Datetime], kind="stable")
positions = int((log.groupby(Columns.User).size().clip(upper=51) - 1).sum())
epochs: list[tuple[float, float]] = []


class Clock(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        self.start = (time.perf_counter(), time.process_time())

    def on_train_epoch_end(self, trainer, module):
        epochs.append((time.perf_counter() - self.start[0], time.process_time() - self.start[1]))


def trainer(**_):
    return pl.Trainer(
        max_epochs=1 + args.reps,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[Clock()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


model = {"sasrec": SASRecModel, "hstu": HSTUModel}[args.model](
    n_factors=64,
    n_blocks=2,
    n_heads=2,
    session_max_len=50,
    loss="softmax",
    batch_size=128,
    lr=1e-3,
    dataloader_num_workers=0,
    get_trainer_func=trainer,
    deterministic=False,
)
model.fit(Dataset.construct(log[[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]]))
wall, cpu = ([positions / e[i] for e in epochs[1:]] for i in (0, 1))
print(
    json.dumps(
        {
            "peer": f"rectools_{args.model}",
            "unit": "positions/s",
            "positions_per_epoch": positions,
            "items": int(log[Columns.Item].nunique()),
            "threads": args.threads,
            "reps": args.reps,
            "cpu": [round(f(cpu)) for f in (statistics.median, min, max)],
            "wall": [round(f(wall)) for f in (statistics.median, min, max)],
        }
    )
)
