"""How well the world model predicts held-out listeners, next to what a statistician would use.

Shape suffixes: N labels, G grid points of a distribution, B batch.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs import baselines, metrics
from amrs.batches import windows
from amrs.calibration import Judged, Yesno, event_rows, level_rows
from amrs.data import SessionDataModule
from amrs.histories import TARGETS
from amrs.models.world_model import EXTRA, WorldModel
from amrs.report import Row
from amrs.splits import TEST, VALIDATION
from amrs.targets import AFFECT, Target, targets, training_mean
from amrs.track_effects import partial_r2, uplift_slope

Known = Literal["forecast", "tracks", "nowcast"]
GRID_G = np.linspace(0, 1, 101)
_BATCH = 256


class Predicted(NamedTuple):
    """Predictions of one signal, one per label."""

    mean_N: np.ndarray
    cdf_NG: np.ndarray
    """P(y <= g) on `GRID_G`, the mixture over members; at g = 1 without the mass on 1 itself."""


@torch.inference_mode()
def predict(
    model: WorldModel, data: SessionDataModule, signal: str, label: Target, known: Known = "tracks"
) -> Predicted:
    """The ensemble's prediction of each label from what is known by then.

    Valence and arousal: "forecast" at the session's start, "tracks" given its list of tracks without any
    feedback to them, "nowcast" after its last track with its feedback. Engagement and rating: given the
    track and everything before it.
    """
    model.eval()
    kind = model.ensemble[0].kinds[signal]
    # P(y < 1) at the last point, so that the mass on 1 is not smeared over the last cell.
    grid_G = torch.from_numpy(GRID_G).float().clamp(max=1 - 1e-6)
    row_N, step_N = torch.from_numpy(label.row), torch.from_numpy(label.step)
    mean_N, cdf_NG = torch.zeros(len(row_N)), torch.zeros(len(row_N), len(grid_G))
    asked = (
        _sessions(model, data, row_N, step_N, known)
        if signal in AFFECT
        else _plays(model, data, row_N, step_N)
    )
    for index, answers in asked:
        mean_N[index] = model.mean(signal, answers[signal])
        cdf_NG[index] = torch.stack([kind.cdf(p, grid_G) for p in answers[signal]]).mean(0)
    return Predicted(mean_N.double().numpy(), cdf_NG.double().numpy())


def _sessions(
    model: WorldModel, data: SessionDataModule, row_N: Tensor, step_N: Tensor, known: Known
) -> Iterator[tuple[Tensor, dict[str, list[Tensor]]]]:
    """Label indices and answers, one history per label."""
    for index in torch.arange(len(row_N)).split(_BATCH):
        yield index, _ask(model, data, row_N[index], step_N[index], known)


def _plays(
    model: WorldModel, data: SessionDataModule, row_N: Tensor, step_N: Tensor
) -> Iterator[tuple[Tensor, dict[str, list[Tensor]]]]:
    """Label indices and answers: every play is asked for once, in windows over whole histories."""
    flat = data.flat
    label_T = torch.full((len(flat.track_N),), -1)
    label_T[flat.first_S[row_N] + step_N] = torch.arange(len(row_N))
    for part in windows(flat, flat.user_S[row_N].unique(), data.history).split(_BATCH // 4):
        batch = data.gather(part)
        token_BL = (part[:, :1] + torch.arange(batch.valid_BL.shape[1])).where(batch.counts_BL, 0)
        at_BL = batch.counts_BL & (label_T[token_BL] >= 0)
        if at_BL.any():
            yield label_T[token_BL[at_BL]], model.predict(batch, at_BL, "track")


def _ask(
    model: WorldModel, data: SessionDataModule, row_B: Tensor, step_B: Tensor, known: Known
) -> dict[str, list[Tensor]]:
    if known == "forecast":
        batch, moment = data.prefix(row_B), "start"
    elif known == "nowcast":
        batch, moment = data.prefix(row_B, step_B + 1), "end"
    else:
        batch, moment = data.prefix(row_B, step_B, hide_own=known == "tracks"), "track"
    last_BL = torch.zeros_like(batch.valid_BL)
    last_BL[torch.arange(len(row_B)), batch.valid_BL.sum(1) - 1] = True
    return model.predict(batch, last_BL, moment)


def fidelity_rows(
    model: WorldModel, data: SessionDataModule, seed: int, draws: int, part: int = TEST
) -> list[Row]:
    """Rows of section `fidelity`: the world model and the baselines on `part`'s users."""
    labels = targets(data.log)
    part_S = data.part_S.numpy().astype(np.int8)
    means = training_mean(labels, part_S)
    others = baselines.predict(data.log, part_S, seed=seed)
    rows = []
    for signal, label in labels.items():
        test_N = part_S[label.row] == part
        if not test_N.any():
            continue
        held_out = kept(label, test_N)
        predicted = predict(model, data, signal, held_out)
        if signal in AFFECT:
            found = {name: p[signal][test_N] for name, p in others.items()}
            rows += _track_rows(model, data, signal, held_out, predicted, found, means[signal], seed, draws)
        everyone = {"world_model": predicted.mean_N} | {n: p[signal][test_N] for n, p in others.items()}
        for subject, found in everyone.items():
            rows += _score(subject, signal, held_out, found, means[signal], data, seed, draws)
        tuning = kept(label, part_S[label.row] == VALIDATION)
        known = predict(model, data, signal, tuning)
        rows += distribution_rows(signal, (tuning, known), (held_out, predicted), seed, draws)
    for name, label in events(data).items():
        sets = [kept(label, part_S[label.row] == of) for of in (VALIDATION, part)]
        if all(len(one.row) for one in sets):
            tuned, tested = ((one, predict(model, data, name, one)) for one in sets)
            rows += distribution_rows(name, tuned, tested, seed, draws)
    # Validation users cannot tell whether what was fitted to them helps others.
    return [row for row in rows if part != VALIDATION or row.subject != "recalibrated"]


def kept(label: Target, keep_N: np.ndarray) -> Target:
    """The labels where `keep_N` is True."""
    return Target(*(getattr(label, name)[keep_N] for name in label.__dataclass_fields__))


def events(data: SessionDataModule) -> dict[str, Target]:
    """Labels of what is learned besides the signals: leaving, and whether ratings and reports are given."""
    flat, found = data.flat, {}
    for name in EXTRA:
        value_N = flat.target_NY[:, TARGETS.index(name)]
        token = (~value_N.isnan()).nonzero()[:, 0]
        row = flat.session_N[token]
        columns = (row, flat.step_N[token], value_N[token].double(), flat.user_S[row], flat.mode_S[row],
                   flat.cohort_S[row])  # fmt: skip
        found[name] = Target(*(column.numpy() for column in columns))
    return found


def model_rows(subject: str, model: WorldModel, data: SessionDataModule, seed: int, draws: int) -> list[Row]:
    """Point figures of one world model on test users, under the name `subject`."""
    labels = targets(data.log)
    part_S = data.part_S.numpy().astype(np.int8)
    means = training_mean(labels, part_S)
    rows = []
    for signal, label in labels.items():
        test_N = part_S[label.row] == TEST
        if test_N.any():
            held_out = kept(label, test_N)
            mean_N = predict(model, data, signal, held_out).mean_N
            rows += _score(subject, signal, held_out, mean_N, means[signal], data, seed, draws)
    return rows


def _track_rows(
    model: WorldModel, data: SessionDataModule, signal: str, label: Target, predicted: Predicted,
    others: dict[str, np.ndarray], train_mean: float, seed: int, draws: int,
) -> list[Row]:  # fmt: skip
    """What knowing the session's tracks adds, and the figures by what is known when predicting."""
    blind_N = predict(model, data, signal, label, "forecast").mean_N
    nowcast_N = predict(model, data, signal, label, "nowcast").mean_N
    y_N, user_N = label.value, label.user
    rows = []
    for subject, group, found_N in (
        ("track_blind", "all", blind_N),
        ("world_model", "known:forecast", blind_N),
        ("world_model", "known:nowcast", nowcast_N),
    ):
        estimate = metrics.r2_interval(y_N, found_N, train_mean, user_N, draws, seed)
        rows.append(Row("fidelity", subject, signal, "r2", "mean", group, *estimate, "fraction"))
    slope = uplift_slope(y_N, predicted.mean_N, blind_N, user_N, draws, seed)
    rows.append(
        Row(
            "fidelity", "world_model", signal, "uplift_slope", "mean", "all", *slope, "residual per predicted"
        )
    )
    for subject, found_N in {"world_model": predicted.mean_N, **others}.items():
        estimate = partial_r2(y_N, found_N, blind_N, user_N, draws, seed)
        rows.append(Row("fidelity", subject, signal, "partial_r2", "mean", "all", *estimate, "fraction"))
    return rows


def _groups(label: Target, data: SessionDataModule) -> Iterator[tuple[str, np.ndarray]]:
    meta = data.log.metadata
    yield "all", np.ones(len(label.value), bool)
    for code, name in enumerate(meta.cohorts):
        yield f"cohort:{name}", label.cohort == code
    for code, name in enumerate(meta.modes):
        yield f"mode:{name}", label.mode == code


def _score(
    subject: str, signal: str, label: Target, mean_N: np.ndarray, train_mean: float,
    data: SessionDataModule, seed: int, draws: int,
) -> list[Row]:  # fmt: skip
    """Point figures of one subject, in all and by cohort and mode."""
    rows = []
    for group, in_group_N in _groups(label, data):
        keep_N = in_group_N & ~np.isnan(mean_N)
        if not keep_N.any():
            continue
        y_N, p_N, user_N = label.value[keep_N], mean_N[keep_N], label.user[keep_N]
        if signal == "rating":
            found = {"auroc": (metrics.auroc_interval(y_N, p_N, user_N, min(draws, 200), seed), "area")}
        else:
            found = {
                "r2": (metrics.r2_interval(y_N, p_N, train_mean, user_N, draws, seed), "fraction"),
                "mae": (metrics.mae_interval(y_N, p_N, user_N, draws, seed), "scale points"),
            }
        rows += [
            Row("fidelity", subject, signal, metric, "mean", group, *estimate, unit)
            for metric, (estimate, unit) in found.items()
        ]
    return rows


def distribution_rows(
    signal: str,
    validation: tuple[Target, Predicted],
    test: tuple[Target, Predicted],
    seed: int,
    draws: int,
    group: str = "all",
) -> list[Row]:
    """Calibration of the world model's distributions: how far they may be trusted, not only their means."""
    if signal in EXTRA or signal == "rating":
        tuned, tested = (
            Yesno(label.value.astype(np.float64), p.mean_N, label.user) for label, p in (validation, test)
        )
        return event_rows(signal, tuned, tested, seed, draws, group)
    known, judged = (
        Judged(label.value.astype(np.float64), p.cdf_NG, label.user) for label, p in (validation, test)
    )
    return level_rows(signal, known, judged, GRID_G, seed, draws, group)
