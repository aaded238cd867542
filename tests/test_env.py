"""The Gymnasium environment: the sessions that imagine() gives, by Gymnasium's rules."""

import contextlib
import runpy
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from datasets import Dataset
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_stages import Done, folders

from amrs import worlds
from amrs.config.groups import ModelConfig, UtilityConfig, WeightsConfig
from amrs.env import LUCK, AffectiveSession, AffectiveSessions
from amrs.judging import judged
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TRAIN
from amrs.noise import hash_keys
from amrs.policies import FixedPolicy
from amrs.report import load
from amrs.rollout import Feedback, imagine
from amrs.runs import RunError
from amrs.stages import world_model
from amrs.utility import Utility
from amrs.worlds import Source, open_source

HORIZON = 4


@pytest.fixture(scope="module")
def source(evaluated: Done) -> Source:
    """Three untrained members (they disagree and listeners leave), on the log of the tiny run."""
    found = open_source(folders(evaluated[0], "world_model")[0])
    torch.manual_seed(0)
    model = world_model.build(3, 2, ModelConfig(width=16, layers=1, history=32), found.data)
    return Source(found.folder, found.data, model.eval(), found.prepared)


@pytest.fixture(scope="module")
def platform(evaluated: Done) -> Source:
    return open_source(folders(evaluated[0], "prepare")[0])


def same(left: Any, right: Any) -> None:
    """Two observations or infos, batch or not, agree to float rounding of other batch sizes."""
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, np.ndarray) and left.dtype == object:
        for a, b in zip(left, right, strict=True):
            same(a, b)
    elif left is None or right is None:
        assert left is right
    elif np.asarray(left).dtype == bool:
        np.testing.assert_array_equal(left, right)
    else:
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("observation", ["encoded", "raw"])
def test_the_single_view_passes_gymnasiums_checker(source: Source, observation: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*infinity.*")  # an encoding has no bounds
        warnings.filterwarnings("ignore", ".*not within the observation space.*spec.*")
        check_env(AffectiveSession(source, horizon=HORIZON, observation=observation), skip_render_check=True)


def test_the_platforms_true_listeners_pass_it_too(platform: Source) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*infinity.*")
        check_env(AffectiveSession(platform, horizon=HORIZON, observation="raw"), skip_render_check=True)


def test_sessions_are_those_of_imagine_under_the_same_keys(source: Source) -> None:
    assert source.model is not None
    envs = AffectiveSessions(source, 40, seed=7, horizon=HORIZON)
    envs.reset()
    seed_B, mode_S = torch.arange(7, 47), source.data.flat.mode_S
    key_B, row_B = hash_keys(seed_B, LUCK, 0), envs.rows_of(seed_B, torch.zeros(40, dtype=torch.int64))
    world = ImaginedListeners(source.model, source.data, HORIZON)
    policy = FixedPolicy(torch.zeros(source.data.tracks))
    truth = imagine(policy, world, envs.rules, mode_S[row_B], row_B, key_B, HORIZON)
    here, gone = np.ones(40, bool), np.zeros(40, bool)
    for t in range(HORIZON):
        np.testing.assert_array_equal(here, truth.played_BT[:, t].numpy())
        _, _, left, over, info = envs.step(truth.track_BT[:, t].clamp(min=0).numpy())
        assert not info["masked_action"][here].any()
        for name, value_BT in truth.expected.items():
            np.testing.assert_allclose(info["expected"][name][here], value_BT[here, t], rtol=1e-4, atol=1e-6)
        same(info["feedback"]["engagement"][here], truth.engagement_BT[here, t].numpy())
        gone |= here & left
        here &= ~(left | over)  # who has ended begins another session, which is not compared
    np.testing.assert_array_equal(gone, truth.left_B.numpy())
    assert 0 < gone.sum() < 40


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("observation", ["encoded", "raw"])
def test_the_vector_form_does_what_gymnasiums_own_does_with_single_views(
    source: Source, mode: AutoresetMode, observation: str
) -> None:
    options: dict[str, Any] = {"horizon": 2, "observation": observation}
    fast = AffectiveSessions(source, 5, autoreset=mode, **options)
    slow = SyncVectorEnv([lambda: AffectiveSession(source, **options)] * 5, autoreset_mode=mode)
    seen, info = fast.reset(seed=3)
    expected, other = slow.reset(seed=3)
    same(seen, expected)
    same(info, other)
    actions, ends, leaves = np.random.default_rng(0), 0, 0
    for _ in range(3 * HORIZON):
        action = actions.integers(source.data.tracks, size=5)
        found, truth = fast.step(action), slow.step(action)
        for got, want in zip(found[:4], truth[:4], strict=True):
            same(got, want)
        for key in ("action_mask", "masked_action", "final_obs"):
            if key in truth[4]:
                marks = truth[4][f"_{key}"]
                np.testing.assert_array_equal(found[4][f"_{key}"] & marks, marks)
                same(found[4][key][marks], truth[4][key][marks])
        for group, name in (("expected", "valence"), ("feedback", "rating"), ("ignorance", "arousal")):
            marks = truth[4].get(group, {}).get(f"_{name}", np.zeros(5, bool))
            np.testing.assert_array_equal(found[4][group][f"_{name}"], marks)
            if marks.any():
                same(found[4][group][name][marks], truth[4][group][name][marks])
        ends += int((found[2] | found[3]).sum())
        leaves += int(found[2].sum())
    assert ends > leaves > 0, "sessions ended in both ways"


@pytest.mark.parametrize("leaves", [False, True])
def test_leaving_terminates_at_once_and_the_horizon_truncates(
    source: Source, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = worlds.sample_feedback

    def all_alike(*given: Any) -> Feedback:
        feedback = drawn(*given)
        return feedback._replace(left_B=torch.full_like(feedback.left_B, leaves))

    monkeypatch.setattr(worlds, "sample_feedback", all_alike)
    envs = AffectiveSessions(source, 6, horizon=3, autoreset=AutoresetMode.DISABLED)
    envs.reset()
    for step in range(1 if leaves else 3):
        _, _, terminated, truncated, _ = envs.step(np.full(6, step))
        ended = (terminated.any(), truncated.any())
        assert ended == ((True, False) if leaves else (False, step == 2))
    assert (terminated | truncated).all()
    with pytest.raises(ValueError, match="call reset"):
        envs.step(np.zeros(6, int))


def test_a_repeated_track_is_played_and_flagged(source: Source) -> None:
    session = AffectiveSession(source, horizon=HORIZON)
    for seed in range(20):
        _, info = session.reset(seed=seed)
        track = int(np.flatnonzero(info["action_mask"])[0])
        _, _, left, over, info = session.step(track)
        assert not info["masked_action"] and not info["action_mask"][track]
        if not (left or over):
            break
    _, _, _, _, info = session.step(track)
    assert info["masked_action"] and np.isfinite(info["expected"]["valence"])


def test_ignorance_is_between_members_and_nothing_for_one(source: Source) -> None:
    assert source.model is not None
    single = world_model.build(1, 2, ModelConfig(width=16, layers=1, history=32), source.data)
    found = {}
    for name, model in {"three": source.model, "one": single}.items():
        envs = AffectiveSessions(Source(source.folder, source.data, model, source.prepared), 4, horizon=2)
        envs.reset()
        found[name] = envs.step(np.zeros(4, int))[4]["ignorance"]["valence"]
    assert (found["three"] > 0).all() and (found["one"] == 0).all()


def test_a_part_of_the_environments_can_be_reset(source: Source) -> None:
    envs = AffectiveSessions(source, 4, horizon=HORIZON, autoreset=AutoresetMode.DISABLED)
    first, _ = envs.reset(seed=1)
    seen, _, left, over, _ = envs.step(np.zeros(4, int))
    mask = np.array([True, False, False, True]) | left | over
    again, info = envs.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(info["_action_mask"], mask)
    np.testing.assert_array_equal(again[~mask], seen[~mask])
    assert (envs.episode_N == mask).all()
    same(envs.reset(seed=1)[0], first)


def test_reward_on_the_platform_is_the_utility_of_expected_signals(platform: Source) -> None:
    envs = AffectiveSessions(platform, 6, observation="raw", horizon=HORIZON)
    envs.reset()
    modes = envs.cohorts[0].mode_B
    _, reward, _, _, info = envs.step(np.arange(6))
    by_hand = 0.5 * info["expected"]["valence"] + 0.5 * np.where(modes >= 0, info["expected"]["arousal"], 0)
    np.testing.assert_allclose(reward, by_hand, rtol=1e-5)


def test_reward_of_a_later_track_counts_what_is_left_of_its_effect(source: Source, platform: Source) -> None:
    modes = source.data.log.metadata.modes
    weights = WeightsConfig(valence=1.0, arousal=0.0)
    config = UtilityConfig(weights=weights, standardise=False)
    utility = Utility(config, modes, carry={"valence": [0.25, 0.5]})  # the last holds for all after it
    for world, observation in ((source, "encoded"), (platform, "raw")):
        envs = AffectiveSessions(world, 4, utility=utility, observation=observation, horizon=HORIZON)
        envs.reset()
        here = np.ones(4, bool)
        for step, carry in enumerate((0.25, 0.5, 0.5)):
            _, reward, left, over, info = envs.step(np.full(4, step))
            np.testing.assert_allclose(reward[here], carry * info["expected"]["valence"][here], rtol=1e-5)
            here &= ~(left | over)
            assert here.any() or step


def test_what_cannot_be_is_refused_in_words(source: Source, platform: Source, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run"):
        AffectiveSessions(tmp_path)
    with pytest.raises(RunError, match="spread"):
        AffectiveSessions(source, utility="default")
    with pytest.raises(RunError, match="users=all"):
        AffectiveSessions(source, users="all")
    with pytest.raises(RunError, match="observation='raw'"):
        AffectiveSessions(platform)
    with pytest.raises(gymnasium.error.ResetNeeded):
        AffectiveSessions(source).step(np.zeros(1, int))


def example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example as a user runs it, in this process: the libraries are read already."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_pairs_are_exported_in_trls_columns_without_user_ids(
    evaluated: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder, *_) = folders(evaluated[0], "preferences")
    example("trl_pairs.py", str(folder), str(tmp_path / "p.parquet"), monkeypatch=monkeypatch)
    found = Dataset.from_parquet(str(tmp_path / "p.parquet"), cache_dir=str(tmp_path))
    stored = Dataset.load_from_disk(str(folder / "pairs")).filter(lambda row: row["part"] == TRAIN)
    assert found.column_names == ["prompt", "chosen", "rejected"]
    assert found["chosen"][:] == [f"<{track}>" for track in stored["chosen_id"]]
    assert [text.count("<") for text in found["prompt"][:]] == stored["step"][:]


def test_a_ppo_of_another_library_is_in_the_comparison(
    evaluated: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["stage=evaluate", *TINY, f"runs={evaluated[0]}", "steps=64"]
    example("ppo.py", *arguments, monkeypatch=monkeypatch)
    blocks = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    assert [" ".join(block[0].split()[:2]).rstrip(",") for block in blocks] == [
        "gain, realised", "gain, predicted", "gain, predicted", "diversity Effective",
    ]  # fmt: skip
    assert [block[-1].startswith("Own (ppo)") for block in blocks] == [True] * 4


def test_judged_gives_a_policy_the_rows_that_the_evaluation_has(evaluated: Done) -> None:
    arguments = ["stage=evaluate", *TINY, f"runs={evaluated[0]}"]
    report = judged(
        arguments, {"uniform": lambda parts: FixedPolicy(torch.zeros(parts.data.tracks))}, ["dpo"]
    )
    before = load(folders(evaluated[0], "evaluate")[0])
    mine = {row.key: row for row in report.rows if row.subject == "own:uniform"}
    truth = {row.key: row for row in before.rows if row.subject == "random"}
    shared = [(replace(truth[k], subject="own:uniform"), row) for row in mine.values()
              if (k := (row.section, "random", *row.key[2:])) in truth]  # fmt: skip
    assert len(shared) > 100
    for known, row in shared:
        if (
            row.section != "diversity" or row.metric == "kl"
        ):  # lists are cut to the shortest of those compared
            assert (row.key, row.n, row.unit) == (known.key, known.n, known.unit)
            same([row.value, row.low or 0, row.high or 0], [known.value, known.low or 0, known.high or 0])
    with pytest.raises(RunError, match="make it first"):
        judged([*arguments, "seed=99"], {})
