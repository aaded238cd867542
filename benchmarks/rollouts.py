"""Imagination: the closed loop of policy and world model, and the scoring of large catalogues."""

from dataclasses import replace

import torch

from amrs.config.groups import UtilityConfig
from amrs.data import SessionDataModule
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TRAIN
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.noise import hash_keys
from amrs.policies import NeuralPolicy, catalogue_utility
from amrs.rollout import imagine
from amrs.utility import Utility
from benchmarks.bounds import flops, products, replay
from benchmarks.reference import MODEL, data, short_log
from benchmarks.timing import CPU, Row, row, speed

HORIZON = 40


def closed_loop(name: str, listeners: int, log: SessionDataModule, device: torch.device = CPU) -> Row:
    """User-steps of so many listeners at a time, next to the same matrix products alone."""
    static = log.flat.static_SF.shape[1]
    policy = PolicyModel(MODEL, static, log.embedding_KE, log.plays(TRAIN) + 1)
    model = WorldModel(1, MODEL, log.log.metadata.signals, 3, static, log.embedding_KE)
    row_B = log.rows(TRAIN)[torch.arange(listeners) % len(log.rows(TRAIN))]
    key_B, mode_B, rules = hash_keys(0, torch.arange(listeners)), log.flat.mode_S[row_B], log.rules()
    acting = (NeuralPolicy(policy.to(device), log, HORIZON),
              ImaginedListeners(model.to(device), log, HORIZON))  # fmt: skip

    def run() -> float:
        imagine(*acting, rules, mode_B, row_B, key_B, HORIZON)
        return float(listeners * HORIZON)

    pairs = products(run)
    again = replay(pairs, device)

    def bound() -> float:
        again()
        return float(listeners * HORIZON)

    ours, alone = speed(run, bound)
    by_wall = device.type == "cuda"
    rate = flops(pairs) / (listeners * HORIZON) * alone.median[int(by_wall)] / 1e9
    note = (
        f"{HORIZON} tracks after up to {MODEL.history - HORIZON} tokens read, all counted; {log.tracks:,} "
        f"tracks; bound: its matrix products, {rate:,.0f} GFLOP/s"
    )
    found = row(name, "user-steps", ours, alone, note, by_wall)
    return replace(found, cpu=None) if by_wall else found


def closed_loop_64() -> list[Row]:
    """64 listeners at a time."""
    return [closed_loop("closed_loop_64", 64, data(short_log()))]


def closed_loop_1024() -> list[Row]:
    """1,024 listeners at a time."""
    return [closed_loop("closed_loop_1024", 1024, data(short_log()))]


def _score(name: str, tracks: int) -> list[Row]:
    log = data(short_log())
    generator = torch.Generator().manual_seed(0)
    embedding_KE = torch.randn(tracks, log.embedding_KE.shape[1], generator=generator)
    model = WorldModel(1, MODEL, log.log.metadata.signals, 3, log.flat.static_SF.shape[1], embedding_KE)
    member = model.eval().ensemble[0]
    utility = Utility(UtilityConfig(), log.log.metadata.modes)
    h_BD, mode_B = torch.randn(1, member.encoder.size), torch.tensor([0])
    candidates = member.candidates()

    @torch.inference_mode()
    def run() -> float:
        catalogue_utility(model, utility, [h_BD], mode_B, halves=[candidates]).topk(100)
        return 1.0

    @torch.inference_mode()
    def bound() -> float:
        for half in candidates:
            half.sum()
        return 1.0

    ours, alone = speed(run, bound)
    floats = sum(half[0].numel() for half in candidates)
    note = (
        f"valence and arousal; {1000 * alone.median[1] ** -1:.3g} ms for one sum over {floats} floats a track"
    )
    return [row(name, "histories", ours, alone, note, by_wall=True)]


def score_6k() -> list[Row]:
    """The published catalogue."""
    return _score("score_6k", 6_000)


def score_100k() -> list[Row]:
    """A large one."""
    return _score("score_100k", 100_000)


def score_1m() -> list[Row]:
    """A million tracks."""
    return _score("score_1m", 1_000_000)
