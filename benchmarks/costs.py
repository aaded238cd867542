"""What an epoch of every stage costs as users or tracks grow: CPU time and anonymous memory.

Each stage works on a part, whose time is that of an epoch divided by the part's share of it. Items are
cost_users_1, _10, _100 (times the published number of users) and cost_tracks_1, _10, _100 (times 6,000).
Shape suffix: P plays.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from amrs.batches import StepBatches
from amrs.config import parse
from amrs.config.groups import UtilityConfig
from amrs.config.stages import PreferencesConfig
from amrs.data import SessionDataModule
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TEST, TRAIN
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.outcomes import choose_sessions, roll_out
from amrs.pairs import Labelling, _extremes
from amrs.policies import NeuralPolicy
from amrs.rules import histories_at_once
from amrs.stages import dpo, world_model
from amrs.stages.bc import BehaviourCloning
from amrs.utility import Utility
from benchmarks.reference import BATCH, MODEL, ROOT, data, platform_log
from benchmarks.timing import Clock, Row, peak_anonymous

USERS, TRACKS = 939, 6_000
"""The published scale."""
_SECONDS = 5.0
"""At least, for a part of a stage; and one batch more, before."""
Part = Callable[[], float]
"""Does a part of an epoch; returns its share of it."""


def _measured(work: Part, seconds: float = _SECONDS) -> tuple[float, float, float]:
    """CPU and wall seconds of an epoch, and GiB of anonymous memory at the most."""
    with peak_anonymous() as gib:
        if seconds:
            work()
        clock, done = Clock(), work()
        while time.perf_counter() - clock.wall < seconds and done < 1:
            done += work()
        cpu, wall = clock.rates(done)
    return 1 / cpu, 1 / wall, max(gib)


def _steps(module: Any, log: SessionDataModule, share: Callable[[Any], float]) -> Part:
    """Forward, backward and AdamW, batch after batch."""
    module.log = module.log_dict = lambda *_, **__: None
    optimiser = torch.optim.AdamW(module.parameters())
    units, collate = log._units(TRAIN)
    batches = iter(StepBatches(units, BATCH, 0, collate, together=log.together))

    def work() -> float:
        batch = next(batches)
        optimiser.zero_grad()
        module.training_step(batch, 0).backward()
        optimiser.step()
        return share(batch) / units

    return work


def _config(stage: str) -> Any:
    return parse([f"stage={stage}", "model.history=50", "trainer.accelerator=cpu"]).config


def _play_pairs(log: SessionDataModule) -> dict[str, torch.Tensor]:
    """A pair at every play of training users."""
    rows_S = torch.zeros(len(log.part_S), dtype=torch.bool)
    rows_S[log.rows(TRAIN)] = True
    play_P = torch.nonzero(rows_S[log.flat.session_N] & (log.flat.track_N >= 0))[:, 0]
    track_P, zero_P = log.flat.track_N[play_P].clone(), torch.zeros(len(play_P))
    return {
        "part": torch.full_like(play_P, TRAIN), "row": log.flat.session_N[play_P].clone(),
        "step": log.flat.step_N[play_P] - 1, "chosen": (track_P + 1) % log.tracks, "rejected": track_P,
        "du": zero_P + 0.1, "ref_chosen": zero_P - 7, "ref_rejected": zero_P - 7,
    }  # fmt: skip


def _stages(log: SessionDataModule) -> Iterator[tuple[str, Part]]:
    """A part of every stage but prepare."""
    static, rules, plays = log.flat.static_SF.shape[1], log.rules(), log.plays(TRAIN)
    listeners = WorldModel(1, MODEL, log.log.metadata.signals, 3, static, log.embedding_KE)
    policy = PolicyModel(MODEL, static, log.embedding_KE, plays + 1)
    training = world_model.WorldModelTraining(listeners, _config("world_model"))
    yield "world_model", _steps(training, log, lambda batch: len(batch.track_BL))
    yield "bc", _steps(BehaviourCloning(policy, rules, _config("bc")), log, lambda batch: len(batch.track_BL))
    utility = Utility(UtilityConfig(), log.log.metadata.modes)
    source = Labelling(listeners.eval(), policy.eval(), utility, log, rules, PreferencesConfig(), 0)
    token_B = torch.nonzero(log.flat.step_N[:10_000])[:, 0][: histories_at_once(log.tracks, 128)]

    def pairs() -> float:
        _extremes(source, token_B)
        return len(token_B) / float(plays.sum())

    yield "preferences", pairs
    log.pairs = _play_pairs(log)
    module = dpo.DirectPreference(policy.train(), rules, log, None, _config("dpo"), 1.0)  # type: ignore[arg-type]
    yield "dpo", _steps(module, log, lambda batch: len(batch.chosen_B))
    sessions = choose_sessions(log, 256, 10, 0, TEST)
    worlds = ImaginedListeners(listeners, log, 10)

    def rollouts() -> float:
        roll_out({"copycat": NeuralPolicy(policy, log, 10)}, worlds, rules, sessions)
        return len(sessions.row_B) / len(log.rows(TEST))

    yield "evaluate", rollouts


def cost(kind: str, times: int) -> list[Row]:
    """Every stage at so many times the published users or tracks."""
    users, tracks = (USERS * times, TRACKS) if kind == "users" else (USERS, TRACKS * times)
    name = f"cost_{kind}_{times}"
    shutil.rmtree(ROOT / f"platform-{users}-{tracks}", ignore_errors=True)

    def prepare() -> float:
        data(platform_log(users, tracks))
        return 1.0

    found = {"prepare": _measured(prepare, 0)}
    log = data(platform_log(users, tracks))
    found |= {stage: _measured(work) for stage, work in _stages(log)}
    about = f"{users:,} users, {tracks:,} tracks, {len(log.flat.track_N):,} tokens"
    return [
        Row(f"{name}_{stage}", "s an epoch", cpu, wall, note=f"{about}; {gib:.2f} GiB of anonymous memory")
        for stage, (cpu, wall, gib) in found.items()
    ]


def fit(path: Path) -> dict[str, float]:
    """Exponent of the CPU time of each stage over users and tracks, from a file of results; draws them."""
    figure, exponents = Figure(figsize=(8, 4), layout="constrained"), {}
    rows = {row["name"]: row["cpu"] for row in json.loads(path.read_text())["rows"] if "cpu" in row}
    for axes, kind in zip(figure.subplots(1, 2), ("users", "tracks"), strict=True):
        for stage in ("prepare", "world_model", "bc", "preferences", "dpo", "evaluate"):
            names = {times: f"cost_{kind}_{times}_{stage}" for times in (1, 10, 100)}
            points = [(times, rows[name]) for times, name in names.items() if name in rows]
            if len(points) > 1:
                x, y = np.log10(np.array(points)).T
                exponents[f"{kind}, {stage}"] = float(np.polyfit(x, y, 1)[0])
                axes.loglog(*zip(*points, strict=True), "o-", label=stage)
        axes.set(xlabel=f"times the published {kind}", ylabel="CPU seconds an epoch")
        axes.legend()
    figure.savefig(path.with_suffix(".costs.svg"))
    return exponents
