"""How well the world model predicts held-out listeners, next to what a statistician would use.

Shape suffixes: N labels, G grid points of a distribution, B batch.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from amrs.batches import Batch, windows
from amrs.data import SessionDataModule
from amrs.fidelity import baselines
from amrs.fidelity.calibration import Judged, Yesno, event_rows, level_rows
from amrs.fidelity.estimators import Fitted
from amrs.fidelity.predictions import USUAL, fit_rows, table
from amrs.fidelity.targets import AFFECT, Target, targets, training_mean
from amrs.fidelity.track_effects import OTHERS, Usual, other_lists, usual_odds
from amrs.logs.histories import TARGETS
from amrs.logs.schema import SIGNALS_ORDER
from amrs.logs.splits import TEST, VALIDATION
from amrs.models.world_model import EXTRA, WorldModel
from amrs.report import Row

Known = Literal["forecast", "tracks", "nowcast"]
Fits = dict[str, dict[str, Fitted]]
_ASKED: dict[Known, tuple[str, ...] | None] = {"tracks": None, "forecast": AFFECT, "nowcast": AFFECT}
"""Which signals the baselines predict at which moment; None is all of them."""
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
    if signal not in AFFECT:
        return predict_plays(model, data, {signal: label})[signal]
    row_N, step_N = torch.from_numpy(label.row), torch.from_numpy(label.step)
    into = _Answers(model.eval(), signal, len(row_N))
    for index, answers in _sessions(model, data, row_N, step_N, known):
        into.add(index, answers[signal])
    return into.predicted()


@torch.inference_mode()
def predict_plays(
    model: WorldModel, data: SessionDataModule, labels: dict[str, Target]
) -> dict[str, Predicted]:
    """The same for several signals that are asked at single plays; histories are read once for all."""
    flat = data.flat
    token = {name: flat.first_S[label.row] + torch.from_numpy(label.step) for name, label in labels.items()}
    token_U = torch.cat(list(token.values())).unique()
    into = {name: _Answers(model.eval(), name, len(label.row)) for name, label in labels.items()}
    label_U = {name: torch.full((len(token_U),), -1) for name in labels}
    for name, token_N in token.items():
        label_U[name][torch.searchsorted(token_U, token_N)] = torch.arange(len(token_N))
    for index, answers in _plays(model, data, flat.session_N[token_U], flat.step_N[token_U]):
        for name, answer in into.items():
            asked = label_U[name][index]
            answer.add(asked[asked >= 0], [params[asked >= 0] for params in answers[name]])
    return {name: answer.predicted() for name, answer in into.items()}


class _Answers:
    """Where predictions of one signal are put together, label by label."""

    def __init__(self, model: WorldModel, signal: str, count: int) -> None:
        self.model, self.signal = model, signal
        # P(y < 1) at the last point, so that the mass on 1 is not smeared over the last cell.
        self.grid_G = torch.from_numpy(GRID_G).float().clamp(max=1 - 1e-6)
        self.mean_N, self.cdf_NG = torch.zeros(count), torch.zeros(count, len(self.grid_G))

    def add(self, index: Tensor, params: list[Tensor]) -> None:
        """The members' head parameters for labels `index`."""
        kind = self.model.ensemble[0].kinds[self.signal]
        self.mean_N[index] = self.model.mean(self.signal, params)
        self.cdf_NG[index] = torch.stack([kind.cdf(p, self.grid_G) for p in params]).mean(0)

    def predicted(self) -> Predicted:
        """All of them."""
        return Predicted(self.mean_N.double().numpy(), self.cdf_NG.double().numpy())


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


@torch.inference_mode()
def predict_usual(
    model: WorldModel, data: SessionDataModule, row_N: np.ndarray, draw: int = 0
) -> dict[str, Usual]:
    """Expected reports of sessions `row_N` had they had other lists of as many tracks (`other_lists`)."""
    signals = [name for name in AFFECT if name in data.log.metadata.signals]
    odds_MK, flat = usual_odds(data), data.flat
    found: dict[str, list[Tensor]] = {name: [] for name in signals}
    for row_B in torch.from_numpy(row_N).split(_BATCH):
        step_B = flat.length_S[row_B] - 1
        lists_BCT = other_lists(odds_MK[flat.mode_S[row_B]], row_B, int(step_B.max()) + 1, draw)
        logged = data.prefix(row_B, step_B, hide_own=True)
        answers = [_last(model, _replayed(logged, track_BT), "track") for track_BT in lists_BCT.unbind(1)]
        for name in signals:
            found[name].append(torch.stack([model.mean(name, answer[name]) for answer in answers], 1))
    joined = {name: torch.cat(means).double().numpy() for name, means in found.items()}
    return {name: Usual(x_NC.mean(1), x_NC.var(1, ddof=1) / OTHERS) for name, x_NC in joined.items()}


def _replayed(logged: Batch, track_BT: Tensor) -> Batch:
    """Prefixes up to a session's last track, their own feedback hidden, with other tracks in their place."""
    own_BL = logged.hidden_BL
    other_BL = track_BT.gather(1, (logged.step_BL - 1).clamp(min=0) * own_BL)
    last_B = logged.valid_BL.sum(1) - 1
    row_B = torch.arange(len(last_B))
    next_BL = logged.next_track_BL.clone()
    next_BL[row_B, last_B] = track_BT[row_B, logged.step_BL[row_B, last_B]]
    return logged._replace(track_BL=torch.where(own_BL, other_BL, logged.track_BL), next_track_BL=next_BL)


def _ask(
    model: WorldModel, data: SessionDataModule, row_B: Tensor, step_B: Tensor, known: Known
) -> dict[str, list[Tensor]]:
    if known == "forecast":
        batch, moment = data.prefix(row_B), "start"
    elif known == "nowcast":
        batch, moment = data.prefix(row_B, step_B + 1), "end"
    else:
        batch, moment = data.prefix(row_B, step_B, hide_own=known == "tracks"), "track"
    return _last(model, batch, moment)


def _last(model: WorldModel, batch: Batch, moment: str) -> dict[str, list[Tensor]]:
    """Answers at each row's last token."""
    last_BL = torch.zeros_like(batch.valid_BL)
    last_BL[torch.arange(len(last_BL)), batch.valid_BL.sum(1) - 1] = True
    return model.predict(batch, last_BL, moment)


class Fidelity(NamedTuple):
    """How well some users are predicted."""

    rows: list[Row]
    table: pd.DataFrame
    """Predictions of the world model and the baselines; see `amrs.fidelity.predictions`."""
    tuning: dict[str, dict[str, str]]
    """By signal, what the tuning of each baseline chose, and which one is best on validation users."""


def fidelity(
    model: WorldModel, data: SessionDataModule, seed: int, draws: int, part: int = TEST, log: str = ""
) -> Fidelity:
    """The world model and the baselines on `part`'s users; `log` is the fingerprint of the data."""
    labels = targets(data.log)
    part_S = data.part_S.numpy().astype(np.int8)
    means = training_mean(labels, part_S)
    fits = {known: baselines.fit(data.log, part_S, known, seed, signals=of) for known, of in _ASKED.items()}
    asked = held_out_labels(labels, part_S, part)
    usual = usual_columns(model, data, asked)
    rows, tables = [], []
    for signal, held_out in asked.items():
        label, test_N = labels[signal], part_S[labels[signal].row] == part
        predicted = predict(model, data, signal, held_out)
        columns = {"world_model": predicted.mean_N} | _at_moments(model, data, signal, held_out)
        columns |= usual.get(signal, {})
        if signal in AFFECT:
            columns["track_blind"] = columns["world_model@forecast"]
        columns |= {name: value[test_N] for name, value in _baselines(fits, signal).items()}
        tables.append(table(signal, held_out, means[signal], columns, data.log.metadata, log))
        tuning = kept(label, part_S[label.row] == VALIDATION)
        known = predict(model, data, signal, tuning)
        rows += distribution_rows(signal, (tuning, known), (held_out, predicted), seed, draws)
    frame = pd.concat(tables, ignore_index=True)
    rows += fit_rows(frame, draws, seed) + _event_rows(model, data, seed, draws, part)
    # Validation users cannot tell whether what was fitted to them helps others.
    rows = [row for row in rows if part != VALIDATION or row.subject != "recalibrated"]
    return Fidelity(rows, frame, _choices(fits, list(labels)))


def _event_rows(model: WorldModel, data: SessionDataModule, seed: int, draws: int, part: int) -> list[Row]:
    """Calibration of leaving and presence."""
    part_S, rows = data.part_S.numpy(), []
    for name, label in events(data).items():
        sets = [kept(label, part_S[label.row] == of) for of in (VALIDATION, part)]
        if all(len(one.row) for one in sets):
            tuned, tested = ((one, predict(model, data, name, one)) for one in sets)
            rows += distribution_rows(name, tuned, tested, seed, draws)
    return rows


def _at_moments(
    model: WorldModel, data: SessionDataModule, signal: str, label: Target, subject: str = "world_model"
) -> dict[str, np.ndarray]:
    """Expectations of an affect report before its session's tracks are known, and after them all."""
    moments: tuple[Known, ...] = ("forecast", "nowcast") if signal in AFFECT else ()
    return {f"{subject}@{known}": predict(model, data, signal, label, known).mean_N for known in moments}


def usual_columns(
    model: WorldModel, data: SessionDataModule, labels: dict[str, Target]
) -> dict[str, dict[str, np.ndarray]]:
    """Columns `USUAL` of each signal of affect; histories are read once for both."""
    reports = {name: label.row for name, label in labels.items() if name in AFFECT}
    if not reports:
        return {}
    row_N = np.unique(np.concatenate(list(reports.values())))
    found = predict_usual(model, data, row_N)
    return {
        name: dict(zip(USUAL, (x_N[np.searchsorted(row_N, row)] for x_N in found[name]), strict=True))
        for name, row in reports.items()
    }


def _baselines(fits: dict[Known, Fits], signal: str) -> dict[str, np.ndarray]:
    """Every baseline's predictions of all labels, and under `best_baseline` those of the best."""
    columns: dict[str, np.ndarray] = {}
    for known, found in fits.items():
        suffix = "" if known == "tracks" else f"@{known}"
        values = {name: by_signal[signal].value_M for name, by_signal in found.items() if signal in by_signal}
        columns |= {f"{name}{suffix}": value for name, value in values.items()}
        best = baselines.best(found, signal)
        if best is not None:
            columns[f"best_baseline{suffix}"] = values[best]
    return columns


def _choices(fits: dict[Known, Fits], signals: list[str]) -> dict[str, dict[str, str]]:
    found = fits["tracks"]
    return {
        signal: {"best": baselines.best(found, signal) or "none"}
        | {name: by_signal[signal].chosen for name, by_signal in found.items() if signal in by_signal}
        for signal in signals
    }


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


def held_out_labels(labels: dict[str, Target], part_S: np.ndarray, part: int) -> dict[str, Target]:
    """Labels of a part's users, of the signals of which it has any."""
    found = {name: kept(label, part_S[label.row] == part) for name, label in labels.items()}
    return {name: label for name, label in found.items() if len(label.row)}


def model_table(
    subject: str, model: WorldModel, data: SessionDataModule, part: int = TEST, log: str = "",
    signals: Sequence[str] = SIGNALS_ORDER,
) -> pd.DataFrame:  # fmt: skip
    """Predictions of one world model for `part`'s users, under the name `subject`."""
    labels = targets(data.log)
    part_S = data.part_S.numpy().astype(np.int8)
    means, tables = training_mean(labels, part_S), []
    for signal, held_out in held_out_labels(labels, part_S, part).items():
        if signal in signals:
            columns = {subject: predict(model, data, signal, held_out).mean_N}
            columns |= _at_moments(model, data, signal, held_out, subject)
            tables.append(table(signal, held_out, means[signal], columns, data.log.metadata, log))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


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
