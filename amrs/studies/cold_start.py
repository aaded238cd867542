"""Cold start by what is known of a listener: how many sessions and reports came before, and a report now.

From the stored predictions of an evaluation. A group of few listeners is no ground for a claim: it is named
with its number of listeners and gets no figure.
Shape suffixes: N labels, S sessions.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.fidelity.fit import model_table
from amrs.fidelity.predictions import KEYS, fit_rows, labels, pooled
from amrs.fidelity.targets import AFFECT, Columns, Floats, Ints, columns
from amrs.logs.splits import withheld_artists
from amrs.report import Row
from amrs.runs import Run
from amrs.stages import world_model
from amrs.stages.prepare import open_data

SUBJECTS = ("world_model", "track_blind", "best_baseline")
BINS = ((0, "0"), (1, "1"), (2, "2-4"), (5, "5+"))
"""Least number of each bin, and its name."""
WITHHELD = 0.1
"""Share of artists about whose plays the second model learns nothing."""
FEWEST = 10
"""Listeners below which a group gets no figure."""


def parts(config: Config) -> dict[str, Config]:
    """The evaluation whose predictions are read, and a world model that knows some artists by sound alone."""
    section = replace(
        config.evaluate, chapters=["fidelity"], study=None, studies=[], protocol="mccv", splits=1
    )
    unheard = replace(config.world_model, withheld_artists=WITHHELD)
    return {
        "fidelity": replace(config, stage="evaluate", evaluate=section),
        "artists": replace(config, stage="world_model", world_model=unheard),
    }


def rows(run: Run) -> list[Row]:
    """Figures by what was known, of the world model, its track-blind self and the best baseline."""
    frame = pooled([run.parents["fidelity"].folder])
    frame = frame[[name for name in frame if name in (*KEYS, "part", *SUBJECTS)]]
    data = open_data(run)
    found = []
    for signal, mine in frame.groupby("signal", sort=False):
        for group, keep_N in groups(str(signal), mine, data):
            found += group_rows(mine[keep_N], group, run.config.evaluate.bootstrap, run.config.seed)
        for kind in ("cohort", "mode"):  # their figures stand in the report already
            for name, part in mine.groupby(kind):
                if str(name) and part["user"].nunique() < FEWEST:
                    found.append(_too_few(part, f"{kind}:{name!s}"))
    return found + artist_rows(run, data)


def artist_rows(run: Run, data: SessionDataModule) -> list[Row]:
    """Plays by withheld artists, by the model that learned nothing about them and by the one that did."""
    names = data.log.catalogue["artist"][:]
    withheld_K = withheld_artists(names, WITHHELD, run.config.data.split.seed)
    flat, found, draws = columns(data.log), [], run.config.evaluate.bootstrap
    for subject, role in (("ablation:artists", "artists"), ("world_model", "world_model")):
        model = world_model.load(run.parents[role].folder, data)
        frame = model_table(subject, model, data, signals=("engagement", "rating"))
        for _, mine in frame.groupby("signal", sort=False):
            play_N = flat.first_S[mine["row"]] + mine["step"].to_numpy()
            keep_N = withheld_K[flat.track_N[play_N]]
            measured = group_rows(mine[keep_N], "artists:withheld", draws, run.config.seed)
            found += [row for row in measured if row.subject == subject]
    return found


def groups(signal: str, frame: pd.DataFrame, data: SessionDataModule) -> Iterator[tuple[str, np.ndarray]]:
    """Names of the groups and the rows of each."""
    flat = columns(data.log)
    row_N = frame["row"].to_numpy()
    reported_S = flat.session_S[f"post_{signal}"] if signal in AFFECT else flat.session_S["post_valence"]
    for kind, count_N in (
        ("sessions", before(np.ones(len(flat.user_S)), flat.user_S)[row_N]),
        ("reports", before(~np.isnan(reported_S), flat.user_S)[row_N]),
    ):
        bin_N = np.searchsorted([least for least, _ in BINS], count_N, side="right") - 1
        for code, (_, name) in enumerate(BINS):
            yield f"{kind}:{name}", bin_N == code
    given_N = ~np.isnan(_pre_report(flat, signal)[row_N])
    yield "pre_report:given", given_N
    yield "pre_report:missing", ~given_N


def _pre_report(flat: Columns, signal: str) -> Floats:
    return flat.session_S[f"pre_{signal}"] if signal in AFFECT else flat.session_S["pre_valence"]


def before(counts_S: np.ndarray, user_S: Ints) -> Ints:
    """How much counted in each user's earlier sessions, (S,); users' sessions stand together, in time."""
    total_S = np.concatenate([[0], np.cumsum(counts_S)])[:-1]
    earlier_S: Ints = (total_S - total_S[np.searchsorted(user_S, user_S)]).astype(np.int64)
    return earlier_S


def group_rows(frame: pd.DataFrame, group: str, draws: int, seed: int) -> list[Row]:
    """Main figures of one group, or one row that names it as too small."""
    if frame.empty:
        return []
    if frame["user"].nunique() < FEWEST:
        return [_too_few(frame, group)]
    whole = frame.assign(cohort="", mode="")
    return [
        replace(row, group=group) for row in fit_rows(whole, draws, seed) if row.metric in ("r2", "auroc")
    ]


def _too_few(frame: pd.DataFrame, group: str) -> Row:
    signal, users = str(frame["signal"].iloc[0]), frame["user"].nunique()
    return Row("fidelity", "world_model", signal, "too_few_users", "mean", group, float(users), None, None,
               labels(frame), "users")  # fmt: skip
