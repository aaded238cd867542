"""Train a small PPO (stable-baselines3, extra `rl`) in the labeller and compare it with the other policies.

    python examples/ppo.py stage=evaluate experiment=demo [steps=20000]

takes the arguments of `train.py` for an evaluate run that is finished. The PPO learns in the labeller's
world model from sessions of the labeller's training users; judge and platform judge it on test users, as
they do the others. The platform's column is what came true.
"""

import sys
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from amrs.config import load
from amrs.data import SessionDataModule
from amrs.env import AffectiveSessions, AutoresetMode
from amrs.lineup import lineup
from amrs.listeners import HistoryReader, ImaginedListeners, Mind
from amrs.outcomes import choose_sessions, gain_rows, roll_out
from amrs.platform import load_truth
from amrs.rollout import Environment, Feedback, Policy
from amrs.runs import Run, plan
from amrs.stages import world_model
from amrs.stages.prepare import open_data
from amrs.worlds import open_source


class PpoPolicy:
    """The trained network behind the interface of every policy here: this is all that it takes."""

    def __init__(self, ppo: PPO, norm: VecNormalize, reader: HistoryReader) -> None:
        self.ppo, self.norm, self.reader = ppo, norm, reader

    def start(self, row_B: Tensor) -> Mind:
        return self.reader.start(row_B)

    def logits(self, state: Mind) -> Tensor:
        seen = torch.as_tensor(self.norm.normalize_obs(state.h_BD.numpy()))
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


def train(run: Run, data: SessionDataModule, horizon: int, steps: int) -> PpoPolicy:
    """PPO in the labeller's world model."""
    source = open_source(run.parents["labeller"].folder)
    envs = AffectiveSessions(source, 64, run.config.seed, horizon=horizon, autoreset=AutoresetMode.SAME_STEP)
    norm = VecNormalize(Sb3Sessions(envs), norm_reward=False)
    ppo = PPO("MlpPolicy", norm, n_steps=32, batch_size=512, seed=run.config.seed, device="cpu")
    ppo.learn(steps)
    norm.training = False
    assert source.model is not None
    return PpoPolicy(ppo, norm, HistoryReader(source.model.ensemble[0].encoder, data, horizon))


def main(argv: list[str]) -> int:
    """Train, roll all policies out, print gains over Copycat."""
    steps = [int(a.partition("=")[2]) for a in argv if a.startswith("steps=")] or [20_000]
    run = plan(load([a for a in argv if not a.startswith("steps=")]))[-1]
    if run.stage != "evaluate" or not run.finished:
        print(f"make it first: python train.py {' '.join(argv)}", file=sys.stderr)
        return 1
    section, seed, data = run.config.evaluate, run.config.seed, open_data(run)
    sessions = choose_sessions(data, section.sessions, section.horizon, seed)
    policies: dict[str, Policy] = lineup(run, data, sessions.horizon, ["random", "greedy", "dpo"])
    policies["ppo"] = train(run, data, sessions.horizon, steps[0])
    judge = world_model.load(run.parents["judge"].folder, data)
    worlds: dict[str, Environment] = {"predicted": ImaginedListeners(judge, data, sessions.horizon)}
    if (truth := run.parents["prepare"].folder / "truth").exists():
        worlds["realised"] = load_truth(truth).environment()
    print(f"{'gain over copycat':<20}{'signal':<12}" + "".join(f"{name:>20}" for name in list(policies)[1:]))
    for name, world in worlds.items():
        found = roll_out(policies, world, data.rules(), sessions)
        rows = gain_rows(name, found, sessions, data, seed, section.bootstrap)
        for signal in data.log.metadata.signals:
            line = f"{name:<20}{signal:<12}"
            for policy in list(policies)[1:]:
                key = (policy, signal, "gain", "all")
                match = [r for r in rows if (r.subject, r.signal, r.metric, r.group) == key]
                line += f"{match[0].value:+.4f} +-{_half(match[0]):.4f}".rjust(20) if match else "-".rjust(20)
            print(line)
    return 0


def _half(row: Any) -> float:
    return float((row.high - row.low) / 2) if row.low is not None else float("nan")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
