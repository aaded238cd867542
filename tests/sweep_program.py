"""A stand-in for train.py in sweeps: real settings, and val/loss logged as a training would, in no time.

The loss begins at dpo.beta and falls by a tenth a step. seed=666 fails. The file `hold` beside the runs keeps
it running.
"""

import sys
import time
from pathlib import Path

from amrs.config import load
from amrs.runs import plan

config = load(sys.argv[1:])
run = plan(config)[-1]
if config.seed == 666:
    sys.exit("no such luck")
run.partial.mkdir(parents=True, exist_ok=True)
with (run.partial / "metrics.csv").open("w") as file:
    file.write("step,train/loss,val/loss\n")
    for step in range(config.dpo.max_steps):
        file.write(f"{step},1,\n{step},,{config.dpo.beta * 0.9**step}\n")
        file.flush()
        time.sleep(0.02)
while (Path(config.runs) / "hold").exists():
    time.sleep(0.02)
run.partial.rename(run.folder)
print(run.folder)
