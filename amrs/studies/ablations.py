"""What each part of the world model contributes: models trained without it, scored on the same test users."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from amrs.config.graph import Config
from amrs.fidelity.fit import model_table
from amrs.fidelity.predictions import fit_rows
from amrs.logs.schema import SIGNALS_ORDER
from amrs.report import Row
from amrs.runs import Run
from amrs.stages import world_model
from amrs.stages.prepare import open_data

VARIANTS: dict[str, dict[str, Any]] = {
    "past_feedback": {"world_model": {"without": ["past_feedback"]}},
    "past_tracks": {"world_model": {"without": ["past_tracks"]}},
    "track_embeddings": {"world_model": {"without": ["track_embeddings"]}},
    "levels": {"world_model": {"without": ["levels"]}},
    "pre_report_and_context": {"world_model": {"without": ["pre_report", "context"]}},
    "mode": {"world_model": {"without": ["mode"]}},
    "pre_report_and_past_feedback": {"world_model": {"without": ["past_feedback", "pre_report"]}},
    "positions_learned": {"model": {"positions": "learned"}},
    "positions_rope": {"model": {"positions": "rope"}},
    "history_8": {"model": {"history": 8}},
    "history_32": {"model": {"history": 32}},
    "one_member": {"world_model": {"members": 1}},
}
"""Settings by section that make each variant of the world model; its subject is `ablation:<name>`."""
HEADS = SIGNALS_ORDER
"""Each signal by a model of its own: together the variant `one_head`."""


def parts(config: Config) -> dict[str, Config]:
    """One world model for each variant, and one for each signal alone."""
    alone = {f"only_{name}": {"world_model": {"only": name}} for name in HEADS}
    return {name: variant(config, changes) for name, changes in {**VARIANTS, **alone}.items()}


def variant(config: Config, changes: dict[str, Any]) -> Config:
    """A world model on all training users with some settings changed, as a command of its own."""
    sections = {name: replace(getattr(config, name), **values) for name, values in changes.items()}
    return replace(config, stage="world_model", **sections)


def rows(run: Run) -> list[Row]:
    """Fit of each variant on test users; the whole model's stands in the report under `world_model`."""
    section, found = run.config.evaluate, []
    for name in VARIANTS:
        frame = predicted(run.parents[name], name)
        found += fit_rows(frame, section.bootstrap, run.config.seed)
    for signal in HEADS:
        frame = predicted(run.parents[f"only_{signal}"], "one_head", (signal,))
        found += fit_rows(frame, section.bootstrap, run.config.seed) if len(frame) else []
    return found


def predicted(part: Run, name: str, signals: Sequence[str] = SIGNALS_ORDER) -> pd.DataFrame:
    """Predictions of a variant for test users."""
    data = open_data(part)
    return model_table(f"ablation:{name}", world_model.load(part.folder, data), data, signals=signals)
