"""How sessions of the log might have gone on: one track replaced, the rest by Copycat, in the labeller.

Shape suffixes: B histories, C candidates, R = B x C continuations, K tracks, T plays of the session.
"""

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.fidelity.targets import AFFECT
from amrs.listeners import ImaginedListeners
from amrs.logs.histories import played_before
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.noise import hash_keys, uniform
from amrs.policies import NeuralPolicy
from amrs.rollout import choose, distance_to
from amrs.rules import Rules, log_softmax_allowed
from amrs.utility import Utility

CONTINUATION = 420
"""Purpose of the draws; they do not depend on the candidate, so all of a history meet the same luck."""


@torch.inference_mode()
def continued_utility(
    model: WorldModel, copycat: PolicyModel, utility: Utility, data: SessionDataModule, rules: Rules,
    row_B: Tensor, step_B: Tensor, candidate_BC: Tensor, seed: int, horizon: int,
) -> Tensor:  # fmt: skip
    """Utility (B, C) of the session's outcome if each candidate were play `step_B` and Copycat went on.

    Sessions go on to `horizon` tracks in all (one more where they are longer already); nobody leaves.
    Valence and arousal count as expected after the last track, other signals as their mean from here on.
    """
    row_R, step_R = (x.repeat_interleave(candidate_BC.shape[1]) for x in (row_B, step_B))
    key_R, mode_R = hash_keys(seed, CONTINUATION, row_R, step_R), data.flat.mode_S[row_R]
    left_R = (horizon - step_R).clamp(min=1)
    longest = int(left_R.max())
    listeners = ImaginedListeners(model, data, longest, utility.targets)
    reference = NeuralPolicy(copycat, data, longest)
    world, mind = listeners.start(row_R, key_R, step_R), reference.start(row_R, step_R)
    track_R, played_RT = candidate_BC.reshape(-1), played_before(data.flat, row_R, step_R)
    record: list[dict[str, Tensor]] = []
    for t in range(longest):
        world, feedback, expected = listeners.step(world, track_R, t)
        record.append({name: value_R.cpu() for name, value_R in expected.items()})
        mind = reference.observe(mind, track_R, feedback)
        played_RT = torch.cat([played_RT, track_R[:, None]], 1)
        allowed_RK = rules.allowed(mode_R, played_RT)
        allowed_RK = allowed_RK | ~allowed_RK.any(1, keepdim=True)
        log_p_RK = log_softmax_allowed(reference.logits(mind).cpu(), allowed_RK)
        track_R = choose(log_p_RK, uniform(key_R, t, CONTINUATION))
    outcome = {name: _outcome(name, [step[name] for step in record], left_R) for name in record[0]}
    return utility.of_values(outcome, mode_R).reshape(candidate_BC.shape)


def _outcome(name: str, steps: list[Tensor], left_R: Tensor) -> Tensor:
    x_RT = torch.stack(steps, 1)
    if name.startswith(AFFECT):
        return x_RT.gather(1, left_R[:, None] - 1)[:, 0]
    inside_RT = torch.arange(x_RT.shape[1]) < left_R[:, None]
    return x_RT.where(inside_RT, 0.0).sum(1) / left_R


@torch.inference_mode()
def shortfall(model: WorldModel, utility: Utility, data: SessionDataModule, row_B: Tensor) -> Tensor:
    """How far each session's final report fell below what was expected at its start, in utility, (B,).

    The expectation is the labeller's forecast given history, pre-report and mode, under the tracks that
    production usually plays; above 0 is a disappointment, NaN where no report counts.
    """
    batch = data.prefix(row_B)
    at_BL = torch.arange(batch.valid_BL.shape[1]) == batch.valid_BL.sum(1, keepdim=True) - 1
    forecast = model.predict(batch, at_BL, "start")
    mode_B, total_B, known_B = data.flat.mode_S[row_B], torch.zeros(len(row_B)), torch.zeros(len(row_B))
    for column, name in enumerate(AFFECT):
        if name not in forecast or utility.weights.get(name, 0) <= 0:
            continue
        report_B = data.flat.report_S2[row_B, column]
        expected, told = {name: model.mean(name, forecast[name])}, {name: report_B}
        for target in [target for signal, target in utility.targets if signal == name]:
            expected[distance_to(name, target)] = model.distance(name, forecast[name], target)
            told[distance_to(name, target)] = (report_B - target).abs()
        gap_B = utility.of_values(expected, mode_B) - utility.of_values(told, mode_B)
        total_B, known_B = total_B + gap_B.nan_to_num(0.0), known_B + ~report_B.isnan()
    return total_B.where(known_B > 0, torch.nan)
