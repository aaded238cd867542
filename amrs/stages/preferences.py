"""Make preference pairs with the labeller and store them with Copycat's log-probabilities."""

from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from torch import Tensor

from amrs.candidates import entropy_after, next_track_log_probs
from amrs.carry import Effects, measure_effects
from amrs.cluster.shares import Share, alone, shared
from amrs.config.graph import Config
from amrs.config.groups import UtilityConfig
from amrs.data import SessionDataModule
from amrs.devices import chosen_device
from amrs.execution import process_rank
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TRAIN, VALIDATION
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.negatives import negative_plays
from amrs.noise import uniform
from amrs.pairs import SAMPLERS, Labelling, Pairs
from amrs.policies import NeuralPolicy
from amrs.rules import Rules, histories_at_once
from amrs.runs import Run, RunError, write_json
from amrs.stages import bc, world_model
from amrs.stages.prepare import open_data
from amrs.utility import Utility

EFFECT_SESSIONS, EFFECTS = 256, 400
"""Sessions that the effects of tracks are measured on; the draw's purpose."""
ENTROPY_SESSIONS, ENTROPY = 16, 401
"""The same for Copycat's entropy after each track."""
_CHUNK = 256
_MORE = {
    "corrective": "Widen what counts as negative (preferences.negative.*)",
    "credited": "Take another sampler (few sessions have reports that disappoint)",
    **dict.fromkeys(
        ("margin", "on_policy", "best_worst"), "Raise preferences.histories or lower preferences.margin"
    ),
}
"""What gives a sampler more pairs."""


def run(run: Run, folder: Path) -> None:
    """Pairs of the labeller's users to `folder`/pairs (a Hugging Face data set) and a summary."""
    config, section = run.config, run.config.preferences
    data = open_data(run, users="labeller")
    device, rules = chosen_device(config.trainer.accelerator), data.rules()
    labeller = world_model.load(run.parents["labeller"].folder, data).to(device)
    copycat = bc.load(run.parents["bc"].folder, data).to(device)
    rows = torch.cat([data.rows(TRAIN), data.rows(VALIDATION)])
    effects = measure(labeller, copycat, data, config.utility, config.seed)
    entropy = _entropy_after(copycat, data, rules, config)
    utility = Utility(config.utility, data.log.metadata.modes, *effects, entropy)
    behaviour = None
    if section.policy is not None:
        behaviour = bc.load(Path(section.policy), data, run.parents["bc"].folder).to(device)
    share = shared(run, folder)
    source = Labelling(labeller, copycat, utility, data, rules, section, config.seed, behaviour, share)
    pairs = SAMPLERS[section.sampler](source, rows)
    part_B = data.part_S[pairs.row_B]
    training = int((part_B == TRAIN).sum())
    if training < section.min_pairs:
        raise RunError(
            f"the sampler {section.sampler} found {training} pairs among training users, fewer than "
            f"preferences.min_pairs={section.min_pairs}: too few to train on. {_MORE[section.sampler]}, "
            "or lower min_pairs if you accept training on noise"
        )
    reference = _reference(copycat, data, rules, pairs, share)
    if process_rank() > 0:
        return
    _store(folder, pairs, reference, data, part_B)
    summary = {**_summary(pairs, part_B, source, effects), "entropy_after": entropy}
    write_json(folder / "summary.json", summary)


def measure(
    labeller: WorldModel, copycat: PolicyModel, data: SessionDataModule, utility: UtilityConfig, seed: int
) -> Effects:
    """Spread and carry of predicted effects, on starts of the labeller's training users' sessions."""
    rows = data.rows(TRAIN)
    row_B = rows[uniform(seed, EFFECTS, rows).argsort()[:EFFECT_SESSIONS]]
    horizon = max(1, int(data.flat.length_S[rows].double().median()))
    horizon = min(horizon, data.history - 1)
    listeners = ImaginedListeners(labeller, data, horizon)
    reference = NeuralPolicy(copycat, data, horizon)
    found = measure_effects(
        listeners, reference, data.rules(), data.flat.mode_S[row_B], row_B, seed, horizon,
        utility.horizon == "session",
    )  # fmt: skip
    names = data.log.metadata.signals
    return Effects(
        {name: value for name, value in found.spread.items() if name in names},
        {name: value for name, value in found.carry.items() if name in names},
    )


def _entropy_after(
    copycat: PolicyModel, data: SessionDataModule, rules: Rules, config: Config
) -> list[float]:
    """Copycat's entropy after each track, from starts of training users' sessions; none where it counts for
    nothing."""
    if config.utility.entropy == 0:
        return []
    rows = data.rows(TRAIN)
    row_B = rows[uniform(config.seed, ENTROPY, rows).argsort()[:ENTROPY_SESSIONS]]
    found: list[float] = entropy_after(copycat, data, rules, row_B).tolist()
    return found


def _reference(
    copycat: PolicyModel, data: SessionDataModule, rules: Rules, pairs: Pairs, share: Share = alone
) -> Tensor:
    """Copycat's log-probability of chosen, rejected and the other rejected, (B, 2 + J); 0 for none."""
    index = torch.arange(len(pairs.row_B)).split(histories_at_once(data.tracks, _CHUNK))
    with torch.inference_mode():
        tracks = copycat.tracks()

    def log_probs(unit: int) -> Tensor:
        part = pairs[index[unit]]
        log_p_BK = next_track_log_probs(copycat, data, rules, part.row_B, part.step_B, tracks)
        track = torch.cat([part.chosen_B[:, None], part.rejected_B[:, None], part.others_BJ], 1)
        return log_p_BK.gather(1, track.clamp(min=0)).masked_fill(track < 0, 0.0)

    return torch.cat(share("reference", len(index), log_probs))


def _store(folder: Path, pairs: Pairs, reference: Tensor, data: SessionDataModule, part_B: Tensor) -> None:
    ids = data.log.catalogue["track_id"][:]
    sessions = data.log.sessions.select_columns(["session_id", "user_id"])[pairs.row_B.tolist()]
    columns = {
        "session_id": sessions["session_id"],
        "user_id": sessions["user_id"],
        "row": pairs.row_B.tolist(),
        "step": pairs.step_B.tolist(),
        "chosen": pairs.chosen_B.tolist(),
        "rejected": pairs.rejected_B.tolist(),
        "chosen_id": [ids[k] for k in pairs.chosen_B.tolist()],
        "rejected_id": [ids[k] for k in pairs.rejected_B.tolist()],
        "du": pairs.du_B.tolist(),
        "ref_chosen": reference[:, 0].tolist(),
        "ref_rejected": reference[:, 1].tolist(),
        "others": pairs.others_BJ.tolist(),
        "du_others": pairs.du_others_BJ.tolist(),
        "ref_others": reference[:, 2:].tolist(),
        "part": part_B.tolist(),
    }
    disable_progress_bars()
    Dataset.from_dict(columns).save_to_disk(str(folder / "pairs"))


def _summary(pairs: Pairs, part_B: Tensor, source: Labelling, effects: Effects) -> dict[str, object]:
    data = source.data
    flat = data.flat
    users = data.users(TRAIN)
    rows = torch.cat([data.rows(TRAIN), data.rows(VALIDATION)])
    used_S = torch.zeros(len(flat.mode_S), dtype=torch.bool)
    used_S[rows] = True
    play_N = used_S[flat.session_N] & (flat.track_N >= 0)
    negative_N = negative_plays(flat, source.config.negative, source.utility)
    log_plays = (data.plays(TRAIN) + 1).log()
    shift = (log_plays[pairs.chosen_B] - log_plays[pairs.rejected_B]).mean()
    covered = flat.user_S[pairs.row_B[part_B == TRAIN]].unique()
    return {
        "pairs": {"train": int((part_B == TRAIN).sum()), "validation": int((part_B == VALIDATION).sum())},
        "plays_that_count_as_negative": float(negative_N[play_N].float().mean()),
        "du_quartiles": pairs.du_B.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist(),
        "pairs_per_play": len(pairs.row_B) / int(flat.length_S[rows].sum()),
        "log_popularity_shift": float(shift),
        "share_of_users_covered": len(covered) / len(users),
        "effect_spread": effects.spread,
        "carry": effects.carry,
    }


def load_pairs(folder: Path) -> dict[str, Tensor]:
    """Numeric columns of stored pairs as tensors."""
    table = Dataset.load_from_disk(str(folder / "pairs")).with_format("torch")
    names = ("row", "step", "chosen", "rejected", "du", "ref_chosen", "ref_rejected", "part")
    found = {name: torch.as_tensor(table[name][:]) for name in names}
    if len(table) and len(table[0]["others"]):
        found |= {name: torch.stack(list(table[name][:])) for name in ("others", "du_others", "ref_others")}
    return found
