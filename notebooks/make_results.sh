#!/usr/bin/env bash
# The small runs that the notebooks read when AMRS_RUNS is not set: a small platform, one evaluation on test users,
# and a sweep over utility weights on validation users; and the report of the demo's stress test, since few users say
# little of harm. What no notebook reads is removed afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf notebooks/results
settings=(runs=notebooks/results data.platform.users=240 data.platform.tracks=600 data.platform.artists=80 model=tiny
  world_model.members=3 world_model.max_steps=300 bc.max_steps=200 log=disabled evaluate.sessions=200
  evaluate.bootstrap=200)
python train.py stage=evaluate "${settings[@]}"
python -m amrs.sweep sweeps/utility_grid.yaml --count 20 "${settings[@]}"
python train.py stage=stress experiment=demo runs=build/demo_runs
mkdir -p notebooks/results/stress
cp -r build/demo_runs/stress/*/ notebooks/results/stress/
cd notebooks/results
rm -rf sweeps prepare/*/truth preferences/*/pairs bc/*/checkpoints dpo/*/checkpoints
find . \( -name last.ckpt -o -name '*.lock' -o -name predictions.parquet -o -name report.html \) -delete
python - <<'END'
# Of checkpoints only the weights of the world model on all users are read, of reports only that on test users.
import json
from pathlib import Path

import torch

for path in Path().glob("world_model/*/checkpoints/best.ckpt"):
    if json.loads((path.parents[1] / "provenance.json").read_text())["role"] == "world_model":
        torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"]}, path)
    else:
        path.unlink()
for path in Path().glob("evaluate/*/report.json"):
    if json.loads(path.read_text())["provenance"]["config"]["evaluate"]["users"] != "test":
        path.unlink()
END
