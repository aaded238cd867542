"""Does the ensemble know what it does not know: far embeddings, unseen modes, genres withheld from training.

Shape suffixes: B sessions, C tracks or lists a session, T tracks of a list, M members.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.fidelity.ignorance import (
    caught_interval,
    disagreement,
    far_disagreement,
    least_noise,
    list_moments,
    split_variance,
)
from amrs.fidelity.targets import AFFECT
from amrs.models.world_model import WorldModel
from amrs.noise import uniform
from amrs.outcomes import choose_sessions
from amrs.platform import Platform, load_truth
from amrs.report import Row
from amrs.runs import Run
from amrs.stages import world_model
from amrs.stages.prepare import open_data

FACTORS = (1.0, 1.5, 2.0, 3.0)
"""Distances from the catalogue's centre, in those of the tracks themselves."""
TRACKS, SESSIONS = 16, 200
"""Tracks asked for in each session, and sessions."""
WITHHELD, LISTS, LENGTH = 4, 8, 10
"""Genres that production never plays; lists a session, half of them of those genres; tracks of a list. Lists
are as long as sessions usually are: few logged sessions end after five tracks, and errors there are mostly
the length's."""
DRAWS, PICK = 32, 760
"""Simulations of the truth, and the purpose of the draw."""


def parts(config: Config) -> dict[str, Config]:
    """A world model of the platform whose production never plays some genres."""
    if config.data.name != "platform":
        return {}
    platform = replace(config.data.platform, withheld_genres=WITHHELD)
    data = replace(config.data, platform=platform)
    return {"withheld": replace(config, stage="world_model", data=data)}


def rows(run: Run) -> list[Row]:
    """Rows by `distance:`, `mode:` and `genres:`."""
    data, seed, draws = open_data(run), run.config.seed, run.config.evaluate.bootstrap
    model = world_model.load(run.parents["world_model"].folder, data)
    found = [
        Row("fidelity", "world_model", signal, "ignorance_sd", "mean", group, *estimate, "scale points")
        for group, signal, estimate in spreads(model, data, seed, draws)
    ]
    if "withheld" in run.parents:
        part = run.parents["withheld"]
        data = open_data(part)
        model = world_model.load(part.folder, data)
        found += withheld_rows(model, data, load_truth(part.parents["prepare"].folder / "truth"), seed, draws)
    return found


def spreads(
    model: WorldModel, data: SessionDataModule, seed: int, draws: int
) -> Iterator[tuple[str, str, metrics.Estimate]]:
    """Group, signal and mean disagreement about a session's first track: by distance of its embedding, by
    the session's mode, and in a mode that no session of the log had."""
    sessions = choose_sessions(data, SESSIONS, 1, seed)
    row_B, user_B = sessions.row_B, sessions.user_B.numpy()
    track_C = uniform(seed, PICK, torch.arange(data.tracks)).argsort()[:TRACKS]
    signals = data.log.metadata.signals
    for factor in FACTORS:
        spread = far_disagreement(model, data, row_B, track_C, factor)
        for signal in signals:
            value_B = spread[signal].mean(1).double().numpy()
            yield f"distance:{factor:g}", signal, metrics.mean_interval(value_B, user_B, draws, seed)
            for code, name in enumerate(data.log.metadata.modes if factor == 1 else ()):
                keep_B = sessions.mode_B.numpy() == code
                if keep_B.any():
                    yield (
                        f"mode:{name}",
                        signal,
                        metrics.mean_interval(value_B[keep_B], user_B[keep_B], draws, seed),
                    )
    modes = len(data.log.metadata.modes)
    if modes:
        known_SF = data.flat.static_SF
        data.flat.static_SF = known_SF.clone()
        data.flat.static_SF[row_B, :modes] = 0.0
        spread = far_disagreement(model, data, row_B, track_C, 1.0)
        data.flat.static_SF = known_SF
        for signal in signals:
            value_B = spread[signal].mean(1).double().numpy()
            yield "mode:never seen", signal, metrics.mean_interval(value_B, user_B, draws, seed)


def withheld_rows(
    model: WorldModel, data: SessionDataModule, platform: Platform, seed: int, draws: int
) -> list[Row]:
    """Ignorance and error of lists of seen and of withheld genres; how well the one finds the other. Of
    effects, ignorance is disagreement alone: what is unknown of a listener is the same for all lists."""
    sessions = choose_sessions(data, SESSIONS, 1, seed)
    lists_BCT, withheld_C = mixed_lists(data, platform, sessions.row_B, seed)
    user_N = sessions.user_B.repeat_interleave(LISTS).numpy()
    unseen_N = withheld_C.expand(len(sessions.row_B), -1).flatten().numpy()
    found = []
    for length, signals in ((LENGTH, AFFECT), (1, ("engagement", "rating"))):
        parts = lists_BCT[:, :, :length].unbind(1)
        moments = [list_moments(model, data, sessions.row_B, track_BT, signals) for track_BT in parts]
        truth = [platform.oracle(sessions.row_B, track_BT, DRAWS) for track_BT in parts]
        for signal in signals:
            mean_MBC, variance_MBC = torch.stack([m[signal] for m in moments], 3)
            true_BC = torch.stack([t[signal] for t in truth], 1)
            effect_MBC = mean_MBC - mean_MBC.mean(2, keepdim=True)
            floor = least_noise(variance_MBC) if signal in AFFECT else torch.inf
            for kind, mean, true, unknown in (
                ("", mean_MBC, true_BC, split_variance(mean_MBC, variance_MBC, floor).ignorance.sqrt()),
                (" effect", effect_MBC, true_BC - true_BC.mean(1, keepdim=True),
                 disagreement({signal: effect_MBC})[signal]),
            ):  # fmt: skip
                error_N = (mean.mean(0) - true).abs().flatten().double().numpy()
                spread_N = unknown.flatten().double().numpy()
                found += _caught_rows(signal, kind, error_N, spread_N, unseen_N, user_N, seed, draws)
    return found


def _caught_rows(
    signal: str, kind: str, error_N: np.ndarray, spread_N: np.ndarray, unseen_N: np.ndarray,
    user_N: np.ndarray, seed: int, draws: int,
) -> list[Row]:  # fmt: skip
    found = []
    for name, keep_N in (("all", unseen_N | True), ("seen", ~unseen_N), ("withheld", unseen_N)):
        group, user = f"genres:{name}{kind}", user_N[keep_N]
        for metric, estimate, unit in (
            (
                "ignorance_auroc",
                caught_interval(error_N[keep_N], spread_N[keep_N], user, draws, seed),
                "area",
            ),
            ("ignorance_sd", metrics.mean_interval(spread_N[keep_N], user, draws, seed), "scale points"),
            ("mae", metrics.mean_interval(error_N[keep_N], user, draws, seed), "scale points"),
        ):
            found.append(Row("fidelity", "world_model", signal, metric, "mean", group, *estimate, unit))
    return found


def mixed_lists(
    data: SessionDataModule, platform: Platform, row_B: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Lists of tracks allowed in each session's mode, (B, C, T), and which of the lists (C,) are of withheld
    genres: the second half."""
    config = platform.config
    withheld_K = platform.catalogue.genre_K >= config.genres - config.withheld_genres
    none_B0 = torch.empty(len(row_B), 0, dtype=torch.int64)
    allowed_BK = data.rules().allowed(data.flat.mode_S[row_B], none_B0)
    withheld_C = torch.arange(LISTS) >= LISTS // 2
    lists = []
    for c, unseen in enumerate(withheld_C.tolist()):
        order_BK = uniform(seed, PICK, row_B[:, None], c, torch.arange(data.tracks))
        order_BK = order_BK.masked_fill(~(allowed_BK & (withheld_K == unseen)), -1.0)
        lists.append(order_BK.topk(LENGTH, 1).indices)
    return torch.stack(lists, 1), withheld_C
