"""A trained world model (or the platform) as a Gymnasium vector environment of listening sessions.

A listener is drawn from the log, one of the ensemble's members answers for it, and its feedback is sampled
and fed back, as in `amrs.rollout.imagine`: the same keys give the same sessions. Listeners that begin
together share a cache (a cohort) until the last of them is gone.
Shape suffixes: B listeners of a cohort, L the live ones of them, N environments, K tracks, D width,
T tracks of a session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from amrs.noise import hash_keys, uniform
from amrs.outcomes import choose_sessions
from amrs.utility import Utility
from amrs.worlds import ImaginedWorld, Source, TrueWorld, open_source

SESSION, LUCK = 600, 601
"""Purposes of the draws of a session of the log and of an episode's own luck."""
_GROUPS = ("expected", "feedback", "ignorance")
Observation = Literal["encoded", "raw"]


@dataclass
class _Cohort:
    """Environments whose sessions began at the same call."""

    env_B: np.ndarray
    """Environment of each listener; the number of environments where it has gone on to another."""
    state: Any
    mode_B: Tensor
    track_BT: Tensor
    raw_BL3: Tensor
    t: int = 0


class AffectiveSessions(VectorEnv[Any, Any, Any]):
    """Sessions of many listeners at once. An action is the index of the next track.

    The reward of a step is the utility of what the listener is expected to show and feel after that track
    (valence and arousal: the report if the session ended there), so a listener who leaves gives no more.
    `terminated`: the listener left. `truncated`: the horizon has come, or no track is allowed any more.
    `info` has `action_mask` (N, K), and of the step just made `masked_action` (the track was not allowed; it
    was played all the same), `expected` signals, sampled `feedback` (NaN where not given) and `ignorance`
    (standard deviation between the ensemble's members, scale points); a key `_x` marks where x holds.

    Args:
        run: a world model's run folder, or a prepare run of the platform for its true listeners.
        num_envs: listeners at once.
        seed: environment i draws its listeners and their luck from (seed + i, episode).
        utility: a name in configs/utility, or a Utility of your own.
        horizon: most tracks of a session; None is the median length of logged ones.
        users: whose sessions are begun: train, validation or test. Only train is for training.
        observation: "encoded", what the first member's encoder makes of the history, (D,); "raw", the last
            tokens as plays (L, 3) = track, engagement, rating, -1 where unknown, and the mode.
        autoreset: when an environment that has ended begins anew, as Gymnasium defines it.
        tokens: L of raw observations.
        spread: s_x by signal for a utility that is standardised.

    Raises:
        RunError: no such run, or a setting that the run cannot serve.
    """

    def __init__(
        self,
        run: Path | str | Source,
        num_envs: int = 1,
        seed: int = 0,
        utility: str | Utility = "published",
        *,
        horizon: int | None = None,
        users: str = "train",
        observation: Observation = "encoded",
        autoreset: AutoresetMode = AutoresetMode.NEXT_STEP,
        tokens: int = 32,
        spread: Mapping[str, float] | None = None,
    ) -> None:
        self.source = run if isinstance(run, Source) else open_source(Path(run))
        chosen = self.source.utility(utility, spread) if isinstance(utility, str) else utility
        data = self.source.data
        sessions = choose_sessions(data, len(data.part_S), horizon, 0, self.source.part(users))
        self.horizon, self.row_S, self.rules = sessions.horizon, sessions.row_B, data.rules()
        self.world = (
            ImaginedWorld(self.source.model, data, self.horizon, chosen)
            if self.source.model is not None
            else TrueWorld(self.source.platform(observation), data, chosen)
        )
        self.observation, self.tokens, self.num_envs = observation, tokens, num_envs
        self.metadata = {"autoreset_mode": autoreset}
        self.autoreset = autoreset
        self.single_action_space = spaces.Discrete(data.tracks)
        self.single_observation_space = self._space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.seed_N = seed + np.arange(num_envs)
        self.episode_N = np.full(num_envs, -1)
        self.ended_N = np.zeros(num_envs, bool)
        self.cohorts: list[_Cohort] = []
        self.mask_NK = np.ones((num_envs, data.tracks), bool)
        self.seen: dict[str, np.ndarray] = {}

    def _space(self) -> spaces.Space[Any]:
        tracks, modes = self.source.data.tracks, len(self.source.data.log.metadata.modes)
        if self.observation == "encoded":
            return spaces.Box(-np.inf, np.inf, (self.world.width,), np.float32)
        plays = spaces.Box(-1.0, float(tracks), (self.tokens, 3), np.float32)
        return spaces.Dict({"plays": plays, "mode": spaces.Discrete(modes + 1)})

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a session in every environment, or where `options["reset_mask"]` (N,) is True."""
        mask_N = np.ones(self.num_envs, bool) if options is None else options.get("reset_mask")
        mask_N = np.ones(self.num_envs, bool) if mask_N is None else np.asarray(mask_N)
        if mask_N.shape != (self.num_envs,) or mask_N.dtype != np.bool_ or not mask_N.any():
            raise ValueError(f"reset_mask must be {self.num_envs} booleans, at least one of them True")
        if seed is not None:
            if isinstance(seed, int | np.integer):
                super().reset(seed=int(seed))
            given_N = np.broadcast_to(np.asarray(seed), (self.num_envs,))
            step_N = np.arange(self.num_envs) if np.ndim(seed) == 0 else 0
            self.seed_N = np.where(mask_N, given_N + step_N, self.seed_N)
            self.episode_N[mask_N] = -1
        self._begin(mask_N)
        info = {"action_mask": self.mask_NK.copy()}
        return self._copy(), _marked(info, np.zeros(self.num_envs, bool), mask_N)

    @torch.inference_mode()
    def _begin(self, mask_N: np.ndarray) -> None:
        """A cohort of new sessions in the environments of the mask."""
        env_B = np.flatnonzero(mask_N)
        self.episode_N[env_B] += 1
        self.ended_N[env_B] = False
        for cohort in self.cohorts:
            cohort.env_B = np.where(np.append(mask_N, False)[cohort.env_B], self.num_envs, cohort.env_B)
        seed_B, episode_B = torch.from_numpy(self.seed_N[env_B]), torch.from_numpy(self.episode_N[env_B])
        row_B = self.rows_of(seed_B, episode_B)
        state = self.world.start(row_B, hash_keys(seed_B, LUCK, episode_B))
        none_BT = torch.full((len(env_B), self.horizon), -1)
        cohort = _Cohort(env_B, state, self.source.data.flat.mode_S[row_B], none_BT, self._logged(row_B))
        self.cohorts = [c for c in self.cohorts if self._live(c).any()] + [cohort]
        self._look(cohort)

    def rows_of(self, seed_B: Tensor, episode_B: Tensor) -> Tensor:
        """Sessions of the log (B,) whose start an episode is."""
        draw_B = uniform(seed_B, SESSION, episode_B)
        return self.row_S[(draw_B * len(self.row_S)).long().clamp(max=len(self.row_S) - 1)]

    def _logged(self, row_B: Tensor) -> Tensor:
        """The last tokens before each session as (B, L, 3), the newest last."""
        if self.observation != "raw":
            return torch.empty(0)
        batch = self.source.data.prefix(row_B, length=self.tokens)
        plays_BL3 = torch.cat([batch.track_BL[..., None].float(), batch.feedback_BL4[..., :2]], 2)
        missing_BL = batch.valid_BL.shape[1] - batch.valid_BL.sum(1)
        padded_BL3 = torch.full((len(row_B), self.tokens, 3), -1.0)
        padded_BL3[:, self.tokens - plays_BL3.shape[1] :] = plays_BL3.nan_to_num(-1.0)
        index_BL = (torch.arange(self.tokens) - missing_BL[:, None]) % self.tokens
        return padded_BL3.gather(1, index_BL[..., None].expand(-1, -1, 3))

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play a track to every listener; those that had ended begin anew instead (next-step autoreset)."""
        action_N = np.asarray(actions).reshape(self.num_envs)
        if (self.episode_N < 0).any():
            raise gymnasium.error.ResetNeeded("call reset before step")
        again_N = self.ended_N.copy()
        if again_N.any() and self.autoreset == AutoresetMode.DISABLED:
            raise ValueError("a session has ended: call reset, with options={'reset_mask': ...} for some")
        info, reward_N = dict[str, Any]({name: {} for name in _GROUPS}), np.zeros(self.num_envs, np.float32)
        left_N, over_N = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        info["masked_action"] = ~self.mask_NK[np.arange(self.num_envs), action_N] & ~again_N
        for cohort in self.cohorts:
            self._play(cohort, action_N, again_N, info, reward_N, left_N, over_N)
        self.ended_N = left_N | over_N
        self.cohorts = [cohort for cohort in self.cohorts if self._live(cohort).any()]
        stepped_N = ~again_N
        if self.autoreset == AutoresetMode.SAME_STEP and self.ended_N.any():
            info |= self._final(info)
            stepped_N &= ~self.ended_N  # what they got is in final_info
            self._begin(self.ended_N.copy())
        if again_N.any():
            self._begin(again_N)
        info["action_mask"] = self.mask_NK.copy()
        return self._copy(), reward_N, left_N, over_N, _marked(info, stepped_N, np.ones(self.num_envs, bool))

    def _live(self, cohort: _Cohort) -> np.ndarray:
        """Which of a cohort's listeners are still in their session, (B,)."""
        live_B: np.ndarray = ~np.append(self.ended_N, True)[cohort.env_B]
        return live_B

    @torch.inference_mode()
    def _play(
        self, cohort: _Cohort, action_N: np.ndarray, again_N: np.ndarray, info: dict[str, Any],
        reward_N: np.ndarray, left_N: np.ndarray, over_N: np.ndarray,
    ) -> None:  # fmt: skip
        """One step of a cohort; what its ended members get is thrown away."""
        live_B = self._live(cohort)
        env_L, t = cohort.env_B[live_B], cohort.t
        track_B = torch.from_numpy(np.where(live_B, np.append(action_N, 0)[cohort.env_B], 0)).long()
        found = self.world.step(cohort.state, track_B, t)
        cohort.state, feedback, expected, reward_B, ignorance = found
        cohort.track_BT[:, t] = track_B
        cohort.t += 1
        if self.observation == "raw":
            values = torch.stack([track_B.float(), feedback.engagement_B, feedback.rating_B], 1)
            newest_B13 = values.nan_to_num(-1.0)[:, None]
            cohort.raw_BL3 = torch.cat([cohort.raw_BL3[:, 1:], newest_B13], 1)
        self._look(cohort)
        reward_N[env_L] = reward_B.numpy()[live_B]
        left_N[env_L] = feedback.left_B.numpy()[live_B]
        last_L = (cohort.t >= self.horizon) | ~self.mask_NK[env_L].any(1)
        over_N[env_L] = last_L & ~left_N[env_L]
        played = {"engagement": feedback.engagement_B, "rating": feedback.rating_B}
        for group, values_B in {"expected": expected, "feedback": played, "ignorance": ignorance}.items():
            for name, value_B in values_B.items():
                whole_N = info[group].setdefault(name, np.full(self.num_envs, np.nan, np.float32))
                whole_N[env_L] = value_B.float().numpy()[live_B]

    def _look(self, cohort: _Cohort) -> None:
        """Observations and masks of a cohort's live members."""
        live_B = self._live(cohort)
        env_L, here_B = cohort.env_B[live_B], torch.from_numpy(live_B)
        allowed_BK = self.rules.allowed(cohort.mode_B[here_B], cohort.track_BT[here_B, : cohort.t])
        self.mask_NK[env_L] = allowed_BK.numpy()
        if self.observation == "encoded":
            assert isinstance(self.world, ImaginedWorld)
            self._see("encoded", env_L, self.world.encoded(cohort.state)[here_B].float())
        else:
            self._see("plays", env_L, cohort.raw_BL3[here_B])
            modes = len(self.source.data.log.metadata.modes)
            self._see("mode", env_L, cohort.mode_B[here_B].where(cohort.mode_B[here_B] >= 0, modes))

    def _see(self, name: str, env_L: np.ndarray, value: Tensor) -> None:
        array = value.cpu().numpy()
        whole = self.seen.setdefault(name, np.zeros((self.num_envs, *array.shape[1:]), array.dtype))
        whole[env_L] = array

    def _copy(self) -> Any:
        if self.observation == "encoded":
            return self.seen["encoded"].copy()
        return {name: value.copy() for name, value in self.seen.items()}

    def _final(self, info: dict[str, Any]) -> dict[str, Any]:
        """The last observation and info of sessions that are begun anew within the same step."""
        seen, final = self._copy(), np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(self.ended_N):
            final[i] = seen[i] if self.observation == "encoded" else {k: v[i] for k, v in seen.items()}
        last: dict[str, Any] = {name: _marked(info[name], self.ended_N, self.ended_N) for name in _GROUPS}
        last |= {"masked_action": info["masked_action"].copy(), "_masked_action": self.ended_N.copy()}
        return {"final_obs": final, "_final_obs": self.ended_N.copy(),
                "final_info": last, "_final_info": self.ended_N.copy()}  # fmt: skip


def _marked(info: dict[str, Any], stepped_N: np.ndarray, shown_N: np.ndarray) -> dict[str, Any]:
    """Info with Gymnasium's `_key` beside every key, True where there is such a value."""
    found: dict[str, Any] = {}
    for key, value in info.items():
        found[key] = value
        if key.startswith(("_", "final")):
            continue
        if isinstance(value, dict):
            found[key] = _marked(value, stepped_N, shown_N)
        held_N = shown_N if key == "action_mask" else stepped_N
        given = np.isfinite(value) if key != "action_mask" and not isinstance(value, dict) else True
        found[f"_{key}"] = held_N & given
    return found


class AffectiveSession(gymnasium.Env[Any, Any]):
    """One listener at a time, for libraries that want a plain environment; arguments as above."""

    def __init__(self, run: Path | str | Source, seed: int = 0, utility: str | Utility = "published",
                 **options: Any) -> None:  # fmt: skip
        self.vector = AffectiveSessions(run, 1, seed, utility, autoreset=AutoresetMode.DISABLED, **options)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a session."""
        super().reset(seed=seed)
        observation, info = self.vector.reset(seed=seed)
        return _first(observation), _first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play a track."""
        observation, reward, left, over, info = self.vector.step(np.asarray([action]))
        return _first(observation), float(reward[0]), bool(left[0]), bool(over[0]), _first(info)

    def action_masks(self) -> np.ndarray:
        """Tracks allowed now, (K,), as libraries with masked policies ask for them."""
        mask: np.ndarray = self.vector.mask_NK[0].copy()
        return mask


def _first(value: Any) -> Any:
    """Entry 0 of arrays, also inside dicts; what is not known (a rating not given) is left out."""
    if not isinstance(value, dict):
        return value[0]
    known = {key: inner for key, inner in value.items() if not key.startswith("_")}
    return {key: _first(inner) for key, inner in known.items() if value.get(f"_{key}", [True])[0]}
