"""Train a small PPO (stable-baselines3, extra `rl`) in the labeller and compare it with the other policies.

    python examples/ppo.py stage=evaluate experiment=demo [steps=20000]

takes the arguments of `train.py` for an evaluation that is finished. The PPO learns in the labeller's world
model from sessions of the labeller's training users; judge and platform judge it on test users, as they do
the others: it is the line "Own (ppo)" of the comparison.
"""

import sys
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from amrs.config import ConfigError
from amrs.env import AffectiveSessions, AutoresetMode
from amrs.judging import judged
from amrs.lineup import Parts
from amrs.listeners import HistoryReader, Mind
from amrs.report import terminal_table
from amrs.rollout import Feedback
from amrs.runs import RunError
from amrs.worlds import open_source


class PpoPolicy:
    """The trained network behind the interface of every policy here: this is all that it takes."""

    def __init__(self, ppo: PPO, norm: VecNormalize, reader: HistoryReader) -> None:
        self.ppo, self.norm, self.reader = ppo, norm, reader

    def start(self, row_B: Tensor) -> Mind:
        return self.reader.start(row_B)

    def logits(self, state: Mind) -> Tensor:
        seen = torch.as_tensor(self.norm.normalize_obs(state.h_BD.cpu().numpy()))
        return self.ppo.policy.get_distribution(seen).distribution.logits.detach()

    def observe(self, state: Mind, track_B: Tensor, feedback: Feedback) -> Mind:
        return self.reader.append(state, track_B, feedback)


class Sb3Sessions(VecEnv):
    """Our vector environment as stable-baselines3 wants it."""

    def __init__(self, envs: AffectiveSessions) -> None:
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.envs = envs

    def reset(self) -> np.ndarray:
        return self.envs.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        seen, reward, left, over, info = self.envs.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(left | over):
            infos[i] = {"terminal_observation": info["final_obs"][i], "TimeLimit.truncated": bool(over[i])}
        return seen, reward, left | over, infos

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, name, None)] * self.num_envs

    def set_attr(self, name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError(name)

    def env_method(self, name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def train(parts: Parts, steps: int) -> PpoPolicy:
    """PPO in the labeller's world model."""
    source, seed = open_source(parts.run.parents["labeller"].folder), parts.run.config.seed
    envs = AffectiveSessions(source, 64, seed, horizon=parts.horizon, autoreset=AutoresetMode.SAME_STEP)
    norm = VecNormalize(Sb3Sessions(envs), norm_reward=False)
    ppo = PPO("MlpPolicy", norm, n_steps=32, batch_size=512, seed=seed, device="cpu")
    ppo.learn(steps)
    norm.training = False
    reader = HistoryReader(parts.labeller.ensemble[0].encoder, parts.data, parts.horizon)
    return PpoPolicy(ppo, norm, reader)


def main(argv: list[str]) -> int:
    """Train, judge all policies on the same sessions, print the comparison."""
    steps = [int(a.partition("=")[2]) for a in argv if a.startswith("steps=")] or [20_000]
    arguments = [a for a in argv if not a.startswith("steps=")]
    try:
        report = judged(arguments, {"ppo": lambda parts: train(parts, steps[0])})
    except (ConfigError, RunError) as error:
        print(f"ppo.py: {error}", file=sys.stderr)
        return 1
    print(terminal_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
