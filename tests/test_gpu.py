"""What runs on a GPU, without one: nothing mixes devices, and the benchmarks of GPUs run on the CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import GPU, Pretence
from tiny_logs import opened, policy, random_log, world_model

from amrs.config.groups import ModelConfig
from amrs.data import SessionDataModule
from amrs.listeners import ImaginedListeners
from amrs.noise import hash_keys
from amrs.policies import NeuralPolicy
from amrs.rollout import imagine, rollout_device
from amrs.runs import RunError
from benchmarks.gpu import CUDA, evaluated, trained
from benchmarks.rollouts import closed_loop

HORIZON, CPU = 5, torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"))


@dataclass
class _Begun:
    """A policy or listeners whose histories are read already: reading them asks for values."""

    acting: Any
    state: Any

    def start(self, *_: Any) -> Any:
        return self.state

    def __getattr__(self, name: str) -> Any:
        return getattr(self.acting, name)


def begun(pretence: Pretence, device: torch.device, acting: Any, *start: Any) -> _Begun:
    state = acting.start(*start)
    return _Begun(pretence.on(device, acting), pretence.on(device, state))


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("where", [(GPU, GPU, GPU), (CPU, GPU, GPU), (GPU, CPU, CPU)])
def test_a_rollout_mixes_no_devices_wherever_policy_listeners_and_reference_are(
    data: SessionDataModule, where: tuple[torch.device, ...], repeats: bool
) -> None:
    row_B = torch.arange(4)
    key_B, rules, pretence = hash_keys(0, row_B), data.rules(), Pretence()
    rules.repeats = repeats
    listeners = ImaginedListeners(world_model(data, 2), data, HORIZON, [("valence", 0.5)])
    acting = begun(pretence, where[0], NeuralPolicy(policy(data, 1), data, HORIZON), row_B)
    world = begun(pretence, where[1], listeners, row_B, key_B)
    reference = begun(pretence, where[2], NeuralPolicy(policy(data, 2), data, HORIZON), row_B)
    rules, *sessions = pretence.on(CPU, [rules, data.flat.mode_S[row_B], row_B, key_B])
    with pretence.mode:
        found = imagine(acting, world, rules, *sessions, HORIZON, reference)
    assert found.track_BT.device == CPU and found.kl_BT is not None and found.kl_BT.device == CPU
    assert {x.device for x in found.expected.values()} == {CPU}


def test_the_pretended_gpu_refuses_what_a_real_one_would() -> None:
    pretence = Pretence()
    here, there = pretence.on(CPU, torch.ones(3)), pretence.on(GPU, torch.ones(3))
    with pretence.mode, pytest.raises(RuntimeError, match="same device"):
        here + there


def test_rollouts_are_where_the_accelerator_says() -> None:
    assert rollout_device("cpu") == CPU
    if torch.cuda.is_available():
        assert rollout_device("gpu").type == rollout_device("auto").type == "cuda"
    else:
        assert rollout_device("auto") == CPU
        with pytest.raises(RunError, match="accelerator=gpu, but torch sees no GPU here; allowed: cpu"):
            rollout_device("gpu")


def test_a_machine_with_several_gpus_gives_each_process_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("SLURM_LOCALID", "6")
    assert rollout_device("gpu") == torch.device("cuda", 2)


def test_the_closed_loop_of_the_gpu_item_counts_every_step(data: SessionDataModule) -> None:
    assert CUDA.type == "cuda"
    row = closed_loop("gpu_closed_loop", 8, data, CPU)
    assert row.unit == "user-steps" and row.wall and row.of_bound
    assert "all counted" in row.note


def test_the_training_of_the_gpu_item_is_measured_in_bf16(data: SessionDataModule) -> None:
    shape = ModelConfig(width=16, layers=1, heads=2, history=data.history)
    row = trained("gpu_train_100m", data, shape, CPU, 64)
    assert row.wall and row.of_bound and row.cpu is None
    assert f"windows of {data.history}" in row.note


def test_the_evaluation_of_the_gpu_item_is_one_command(tmp_path: Path) -> None:
    settings = ["stage=prepare", "data.platform.users=20", "data.platform.tracks=100"]
    row = evaluated("gpu_evaluate", *settings)
    assert row.unit == "s" and row.wall and row.wall > 1
