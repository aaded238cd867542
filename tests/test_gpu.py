"""What runs on a GPU, without one: a pretended GPU gives what the CPU gives, and the benchmarks of
GPUs run on the CPU."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, train
from pretended_gpu import GPU, on_both, pretended_gpu, there
from tiny_logs import opened, policy, random_log, world_model
from torch import Tensor, nn

from amrs import stages
from amrs.bags import Bags
from amrs.batches import Batch, PairBatch
from amrs.candidates import candidate_utility, entropy_after, next_track_log_probs
from amrs.carry import measure_effects
from amrs.config import parse
from amrs.config.groups import ModelConfig, UtilityConfig
from amrs.config.stages import PreferencesConfig
from amrs.continuations import shortfall
from amrs.data import SessionDataModule
from amrs.devices import chosen_device
from amrs.guidance import GuidedPolicy, best_of, boltzmann, calibrate
from amrs.linear_start import start_linear
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TRAIN
from amrs.noise import hash_keys
from amrs.pairs import SAMPLERS, Labelling
from amrs.policies import FixedPolicy, GreedyPolicy, NeuralPolicy, Scorer
from amrs.propensities import ask, logged_plays
from amrs.report import load
from amrs.rollout import Policy, imagine
from amrs.runs import RunError
from amrs.stages.bc import BehaviourCloning
from amrs.stages.dpo import DirectPreference, KlCheck
from amrs.stages.world_model import WorldModelTraining, label_weights
from amrs.utility import Utility
from benchmarks.gpu import evaluated, trained
from benchmarks.rollouts import closed_loop

HORIZON, CPU = 5, torch.device("cpu")
CLONE = [a for a in TINY if a.startswith(("data", "model", "log", "trainer"))]
CLOSE = {"atol": 2e-5, "rtol": 1e-4, "equal_nan": True}
Move = Callable[[Any], Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"))


@pytest.fixture(scope="module")
def utility(data: SessionDataModule) -> Utility:
    targets = {"calm": {"arousal": 0.3}, "energize": {"arousal": "up"}}
    return Utility(UtilityConfig(modes=targets, entropy=0.1), data.log.metadata.modes,
                   entropy=[0.1] * data.tracks)  # fmt: skip


def test_the_pretended_gpu_refuses_what_a_real_one_would() -> None:
    with pretended_gpu():
        x = there(torch.ones(3))
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


def as_cloned(data: SessionDataModule, utility: Utility, move: Move) -> Policy:
    return NeuralPolicy(move(policy(data, 1)), data, HORIZON)


def as_fixed(data: SessionDataModule, utility: Utility, move: Move) -> Policy:
    return FixedPolicy(move(torch.arange(data.tracks) / 5))


def as_greedy(data: SessionDataModule, utility: Utility, move: Move) -> Policy:
    return GreedyPolicy(Scorer(move(world_model(data, 2)), utility, data, HORIZON))


def as_guided(tilt: Any) -> Callable[[SessionDataModule, Utility, Move], Policy]:
    def made(data: SessionDataModule, utility: Utility, move: Move) -> Policy:
        scorer = Scorer(move(world_model(data, 2)), utility, data, HORIZON)
        clone = NeuralPolicy(move(policy(data, 1)), data, HORIZON)
        guided, row_B = GuidedPolicy(clone, scorer, data.rules(), tilt, 1.0), torch.arange(4)
        listeners = ImaginedListeners(move(world_model(data, 2)), data, HORIZON)
        calibrate(guided, 0.2, listeners, row_B, hash_keys(1, row_B), HORIZON)
        return guided

    return made


ACTING = {"cloned": as_cloned, "fixed": as_fixed, "greedy": as_greedy, "boltzmann": as_guided(boltzmann),
          "best_of": as_guided(best_of)}  # fmt: skip


@pytest.mark.parametrize("where", ["gpu", "policy on the cpu", "listeners on the cpu"])
@pytest.mark.parametrize("name", ACTING)
def test_rollouts_are_the_same_wherever_policy_and_listeners_are(
    data: SessionDataModule, utility: Utility, name: str, where: str
) -> None:
    row_B = torch.arange(12)

    def work(move: Move) -> Any:
        stay: Move = lambda x: x  # noqa: E731
        acts = ACTING[name](data, utility, stay if where == "policy on the cpu" else move)
        model = (stay if where == "listeners on the cpu" else move)(world_model(data, 2))
        world = ImaginedListeners(model, data, HORIZON, utility.targets)
        reference = NeuralPolicy(move(policy(data, 2)), data, HORIZON)
        modes = data.flat.mode_S[row_B]
        return imagine(acts, world, data.rules(), modes, row_B, hash_keys(0, row_B), HORIZON, reference)

    ours, theirs = on_both(work)
    assert torch.equal(ours.track_BT, theirs.track_BT) and torch.equal(ours.left_B, theirs.left_B)
    for a, b in ((ours.kl_BT, theirs.kl_BT), *((x, theirs.expected[k]) for k, x in ours.expected.items())):
        assert b is not None and b.device == CPU
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pairs_are_the_same_wherever_the_models_are(
    data: SessionDataModule, utility: Utility, sampler: str
) -> None:
    def work(move: Move) -> Any:
        models = move(world_model(data, 2)), move(policy(data))
        config = PreferencesConfig(draws=4, margin=0.0)
        source = Labelling(*models, utility, data, data.rules(), config, 0, move(policy(data, 3)))
        return vars(SAMPLERS[sampler](source, data.rows(TRAIN)))

    ours, theirs = on_both(work)
    assert len(ours["row_B"])
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], **CLOSE)


def test_what_is_measured_before_labelling_is_the_same_wherever_the_models_are(
    data: SessionDataModule, utility: Utility
) -> None:
    row_B, step_B = torch.arange(8), torch.zeros(8, dtype=torch.int64)

    def work(move: Move) -> Any:
        model, clone, rules = move(world_model(data, 2)), move(policy(data)), data.rules()
        listeners, reference = ImaginedListeners(model, data, 3), NeuralPolicy(clone, data, 3)
        effects = measure_effects(listeners, reference, rules, data.flat.mode_S[row_B], row_B, 0, 3)
        return [
            torch.tensor([*effects.spread.values(), *chain(*effects.carry.values())]),
            entropy_after(clone, data, rules, row_B[:2]),
            next_track_log_probs(clone, data, rules, row_B, step_B),
            candidate_utility(model, utility, data, row_B, step_B, torch.arange(24).view(8, 3)),
            shortfall(model, utility, data, row_B),
        ]

    for a, b in zip(*on_both(work), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_the_linear_start_is_the_same_on_both(data: SessionDataModule) -> None:
    def work(move: Move) -> list[Tensor]:
        model, weights = world_model(data, 2), label_weights(None)
        device = move(torch.zeros(1)).device
        start_linear(model, data, weights, Bags(0, 2), 0, [50.0, 5.0], device)
        return [x.data for member in model.ensemble for x in (member.head.bias, member.track_linear.weight)]

    ours, theirs = on_both(work)
    assert all(x.any() for x in ours)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_asking_the_log_is_the_same_wherever_the_policy_is(data: SessionDataModule, utility: Utility) -> None:
    logged = logged_plays(data, torch.nonzero(data.flat.length_S > 2)[:6, 0])

    def work(move: Move) -> list[Tensor]:
        acting = [ACTING[name](data, utility, move) for name in ("cloned", "greedy", "best_of")]
        return [ask(acts, data, logged, 2, 0).log_p_ST for acts in acting]

    for a, b in zip(*on_both(work), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3, equal_nan=True)


def test_a_stress_test_says_the_same_on_both(
    evaluated: tuple[Path, CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole stages: an evaluation with guided policies asked about the log, and stress beside it."""
    settings = ["evaluate.policies=[copycat,best_of_n,dpo]", "evaluate.chapters=[policies]",
                "evaluate.off_policy.policies=[copycat,best_of_n]", "stress.policies=[dpo]",
                "stress.sessions=20", "stress.simulations=2", "stress.perturbed=1", "stress.histories=4",
                "stress.candidates=2", "stress.variants=2"]  # fmt: skip
    ours = Path(train("stage=stress", *TINY, *settings, f"runs={evaluated[0]}").stdout.splitlines()[-1])
    theirs = evaluated[0].parent / "on a gpu"
    for stage in ("prepare", "world_model", "bc", "preferences", "dpo"):
        shutil.copytree(evaluated[0] / stage, theirs / stage)
    for module in ("lineup", "judging", "stages.preferences", "stages.world_model"):
        monkeypatch.setattr(f"amrs.{module}.chosen_device", lambda _: GPU)
    with pretended_gpu():
        assert stages.run(parse(["stage=stress", *TINY, *settings, f"runs={theirs}"]).config) == 0
    found = [
        {row.key: row.value for row in load(folder).rows} for folder in (ours, theirs / "stress" / ours.name)
    ]
    assert found[0].keys() == found[1].keys()
    close = [a == pytest.approx(found[1][key], rel=1e-3, abs=1e-3) for key, a in found[0].items()]
    assert sum(close) > 0.99 * len(close)  # rounding turns a sampled track here and there


def stepped(module: Any, batch: Batch | PairBatch, move: Move) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
    """Loss, gradients and validation figures of one batch."""
    module, said = move(module), {}
    module._device = next(module.parameters()).device
    module.log = lambda name, value, **_: said.update({name: value})
    module.log_dict = lambda values, **_: said.update(values)
    loss = module.training_step(batch, 0)
    loss.backward()
    grads = [x.grad.cpu() for x in module.parameters() if x.grad is not None]
    with torch.no_grad():
        module.validation_step(batch, 0)
    return loss.detach().cpu(), grads, {name: float(x) for name, x in module.validation.compute().items()}


def trainings(data: SessionDataModule, config: Any) -> dict[str, nn.Module]:
    clone = policy(data)
    check = KlCheck(policy(data), ImaginedListeners(world_model(data), data, HORIZON), data, config)
    return {
        "world_model": WorldModelTraining(world_model(data, 2), config),
        "bc": BehaviourCloning(clone, data.rules(), config),
        "dpo": DirectPreference(clone, data.rules(), data, check, config, 1.0),
    }


def pairs(data: SessionDataModule) -> dict[str, Tensor]:
    play_P = torch.nonzero(data.flat.track_N >= 0)[:12, 0]
    zero_P, others_PJ = torch.zeros(12), torch.tensor([[1, -1]]).expand(12, -1)
    return {"part": torch.full((12,), TRAIN), "row": data.flat.session_N[play_P],
            "step": data.flat.step_N[play_P] - 1, "chosen": data.flat.track_N[play_P],
            "rejected": torch.zeros(12, dtype=torch.int64), "du": zero_P + 0.1, "ref_chosen": zero_P - 3,
            "ref_rejected": zero_P - 3, "others": others_PJ, "du_others": others_PJ * 0.2,
            "ref_others": others_PJ * 1.0 - 3}  # fmt: skip


@pytest.mark.parametrize("stage", ["world_model", "bc", "dpo"])
def test_losses_gradients_and_validation_are_the_same_on_both(
    tmp_path_factory: pytest.TempPathFactory, stage: str
) -> None:
    data = opened(random_log(tmp_path_factory.mktemp(stage) / "log"), batch_size=12, hide_feedback=0.3)
    config = parse([f"stage={stage}", "model.history=16", "model.dropout=0"]).config
    if stage == "dpo":
        data.pairs = pairs(data)
    units, collate = data._units(TRAIN)
    first = torch.arange(min(units, 12))
    (batch,) = collate(first[None], first[None], 1, 0)
    ours, theirs = on_both(lambda move: stepped(trainings(data, config)[stage], move(batch), move))
    torch.testing.assert_close(ours[0], theirs[0], **CLOSE)
    assert ours[1] and len(ours[1]) == len(theirs[1])
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert ours[2] == pytest.approx(theirs[2], abs=1e-4, nan_ok=True)


def test_rollouts_are_where_the_accelerator_says() -> None:
    assert chosen_device("cpu") == CPU
    if torch.cuda.is_available():
        assert chosen_device("gpu").type == chosen_device("auto").type == "cuda"
    else:
        assert chosen_device("auto") == CPU
        with pytest.raises(RunError, match="accelerator=gpu, but torch sees no GPU here; allowed: cpu"):
            chosen_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed_before_anything_is_made(tmp_path: Path) -> None:
    done = train("stage=bc", *CLONE, "trainer.accelerator=gpu", f"runs={tmp_path}", check=False)
    assert done.returncode == 1 and "torch sees no GPU here" in done.stderr and "prepare" not in done.stderr
    command = [sys.executable, "-m", "benchmarks", "gpu_closed_loop"]
    measured = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert measured.returncode == 2 and "not measured, for torch sees no GPU here" in measured.stderr


def test_what_lightning_refuses_is_told_in_words(tmp_path: Path) -> None:
    settings = ["trainer.strategy=nonsense", f"runs={tmp_path}"]
    done = train("stage=bc", *CLONE, *settings, check=False)
    assert done.returncode == 1 and "trainer.strategy=nonsense" in done.stderr
    assert "Lightning refuses them" in done.stderr and "Traceback" not in done.stderr


def test_a_machine_with_several_gpus_gives_each_process_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "6")
    assert chosen_device("gpu") == torch.device("cuda", 2)


def test_the_closed_loop_of_the_gpu_item_counts_every_step(data: SessionDataModule) -> None:
    row = closed_loop("gpu_closed_loop", 8, data, CPU)
    assert row.unit == "user-steps" and row.wall and row.of_bound


def test_the_training_of_the_gpu_item_is_measured_in_bf16(data: SessionDataModule) -> None:
    shape = ModelConfig(width=16, layers=1, heads=2, history=data.history)
    row = trained("gpu_train_100m", data, shape, CPU, 64)
    assert row.wall and row.of_bound and row.cpu is None
    assert f"windows of {data.history}" in row.note


def test_the_evaluation_of_the_gpu_item_is_one_command(tmp_path: Path) -> None:
    settings = ["stage=prepare", "data.platform.users=20", "data.platform.tracks=100"]
    row = evaluated("gpu_evaluate", *settings)
    assert row.unit == "s" and row.wall and row.wall > 1
