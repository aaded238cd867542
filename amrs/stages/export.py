"""Write a policy that passed the gate so that it can be served with torch alone."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from amrs.card import card
from amrs.config.groups import ModelConfig
from amrs.data import SessionDataModule
from amrs.lineup import LINEUP, lineup
from amrs.logs.splits import TRAIN
from amrs.policies import NeuralPolicy
from amrs.report import Report, load
from amrs.runs import Run, RunError, write_json
from amrs.serving import CARD, CATALOGUE, CONFIG, FORMAT, WEIGHTS
from amrs.stages.prepare import open_data


def run(run: Run, folder: Path) -> None:
    """Weights, configuration, catalogue and a model card to `folder`."""
    section = run.config.export
    report = load(run.parents["stress"].folder)
    refuse(report, section.policy, section.force)
    data = open_data(run)
    policy = lineup(run, data, run.config.model.history // 2, [section.policy])[section.policy]
    if not isinstance(policy, NeuralPolicy):
        raise RunError(
            f"export.policy={section.policy} is not one trained network, so torch alone cannot serve it; "
            "dpo and copycat are"
        )
    save(policy, data, run, folder)
    (folder / CARD).write_text(card(report, run, section.policy, section.force), encoding="utf-8")


def refuse(report: Report, policy: str, force: str | None) -> None:
    """Raise RunError for a policy that did not pass, unless there is a reason to export it all the same."""
    if policy not in LINEUP and not policy.startswith("dpo:"):
        raise RunError(
            f"no policy is called {policy}; there are {', '.join(LINEUP)} and those of evaluate.dpo"
        )
    verdict = report.one(section="gate", subject=policy, metric="verdict")
    if (verdict is not None and verdict.value == 1) or force is not None:
        return
    words = verdict_words(report, policy)
    raise RunError(f"{words} Export it all the same with export.force=REASON; the model card will show it.")


def verdict_words(report: Report, policy: str) -> str:
    """What the gate said about it."""
    said: dict[str, str] = report.provenance["verdicts"]
    return said.get(policy, f"The gate has no verdict on {policy}: it was not stressed, or is what others "
                            "are compared with.")  # fmt: skip


def save(policy: NeuralPolicy, data: SessionDataModule, run: Run, folder: Path) -> None:
    """Tensors and settings; nothing is pickled."""
    model, encoder, meta = policy.model, policy.model.encoder, data.log.metadata
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / WEIGHTS)
    rules = data.rules()
    catalogue = {"embedding_KE": encoder.embedding_KE, "mode_MK": rules.mode_MK.to(torch.uint8)}
    save_file({name: x.contiguous() for name, x in catalogue.items()}, folder / CATALOGUE)
    embedding_KE = data.embedding_KE
    centred_KE = embedding_KE - embedding_KE.mean(0)
    smoothing = run.config.bc.popularity_smoothing
    log_plays_K = (data.plays(TRAIN) + smoothing).float().log()
    unheard = (torch.tensor(smoothing).log() - log_plays_K.mean()) / log_plays_K.std().clamp(min=1e-6)
    about: dict[str, Any] = {
        "format": FORMAT, "policy": run.config.export.policy, "model": shape(encoder.config),
        "static_size": data.flat.static_SF.shape[1], "modes": list(meta.modes), "cohorts": list(meta.cohorts),
        "context": list(meta.context), "repeats": meta.repeats,
        "embedding": {"is": meta.embedding, "mean": embedding_KE.mean(0).tolist(),
                      "scale": float(centred_KE.square().mean().sqrt().clamp(min=1e-6))},
        "unheard_log_popularity": float(unheard), "track_ids": data.log.catalogue["track_id"][:],
    }  # fmt: skip
    write_json(folder / CONFIG, about)
    for name in (WEIGHTS, CATALOGUE):  # safetensors lets only their owner read them, whatever the umask
        shutil.copymode(folder / CONFIG, folder / name)


def shape(config: ModelConfig) -> dict[str, Any]:
    """The transformer's shape as plain values."""
    return asdict(config)
