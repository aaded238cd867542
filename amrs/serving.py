"""An exported policy that recommends: torch and numpy are enough, no Lightning, no data sets.

recommender = amrs.load("runs/export/FINGERPRINT")
recommender.recommend(history, mode="calm", k=10)

A history is a list of a listener's sessions, as amrs/served_session.py says.
Shape suffixes: L tokens, S sessions, N plays, K tracks, E embedding.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from amrs.batches import Batch
from amrs.config.groups import ModelConfig
from amrs.logs.histories import FEEDBACK, LABELS, TARGETS, FlatLog, flatten_columns
from amrs.models.policy import PolicyModel
from amrs.rules import Rules, log_softmax_allowed
from amrs.served_session import REPORTS, Session, check_order, checked, milliseconds, plain

FORMAT = 3
"""Version of exported folders."""
WEIGHTS, CATALOGUE, CONFIG, CARD = "policy.safetensors", "catalogue.safetensors", "config.json", "README.md"


class Recommendation(NamedTuple):
    """A track and the policy's probability of playing it next."""

    track_id: str
    probability: float


class Recommender:
    """An exported policy.

    Args:
        folder: as `stage=export` wrote it.

    Raises:
        ValueError: for a folder that holds no export of this format.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / CONFIG
        if not path.exists():
            raise ValueError(f"{folder} holds no {CONFIG}: give the run folder of stage export")
        self.about: dict[str, Any] = json.loads(path.read_text())
        if self.about["format"] != FORMAT:
            raise ValueError(f"{folder} has format {self.about['format']}, this program reads {FORMAT}")
        catalogue = load_file(folder / CATALOGUE)
        self.track_ids: list[str] = list(self.about["track_ids"])
        embedding_KE = catalogue["embedding_KE"]
        self.model = PolicyModel(
            ModelConfig(**self.about["model"]), self.about["static_size"], embedding_KE,
            torch.arange(1.0, len(embedding_KE) + 1),
        )  # fmt: skip
        self.model.load_state_dict(load_file(folder / WEIGHTS))
        self.model.encoder.embedding_KE = embedding_KE  # standardised once, as the policy was trained
        self.model.eval()
        self.rules = Rules(catalogue["mode_MK"].bool(), self.about["repeats"])
        self._index()

    def _index(self) -> None:
        self.number = {name: k for k, name in enumerate(self.track_ids)}
        with torch.inference_mode():
            self.tracks = self.model.tracks()

    def recommend(
        self, history: Sequence[Session], mode: str | None, k: int = 10, seed: int | None = None
    ) -> list[Recommendation]:
        """Up to `k` tracks to play next, drawn without replacement, in the order drawn.

        They are drawn, not the most probable ones: what was judged draws, and always playing the most
        probable would give everybody the same few tracks. `seed` makes the draw repeatable.

        Args:
            history: the listener's sessions, oldest first, as amrs/served_session.py says.
            mode: mode of the session under way.
            k: 1 or more.
            seed: any whole number.

        Raises:
            ValueError: for a mode, a track or a field that the policy does not know, a value that the log
                does not allow, or `k` below 1.
        """
        k = plain(k)
        if type(k) is not int or k < 1:
            raise ValueError(f"k={k!r}; allowed: a whole number of tracks, 1 or more")
        log_p_K = self.log_probs(history, mode)
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None else generator.seed()
        gumbel_K = -torch.log(-torch.log(torch.rand(len(log_p_K), generator=generator)))
        order = (log_p_K + gumbel_K).topk(min(k, int(log_p_K.isfinite().sum()))).indices.tolist()
        return [Recommendation(self.track_ids[i], float(log_p_K[i].exp())) for i in order]

    @torch.inference_mode()
    def log_probs(self, history: Sequence[Session], mode: str | None) -> Tensor:
        """Log-probability of each track as the next one, (K,) in nats, -inf where it is not allowed.

        Raises:
            ValueError: as `recommend`.
        """
        if mode is not None and mode not in self.about["modes"]:
            raise ValueError(f"mode={mode!r} is unknown; the policy knows {', '.join(self.about['modes'])}")
        if not isinstance(history, Sequence) or not all(isinstance(s, Mapping) for s in history):
            raise ValueError("a history is a list of sessions, each a dict; give [] where there are none")
        sessions = [*history[:-1], {**(history[-1] if history else {}), "mode": mode}]
        given = [checked(session, i, self.about["context"]) for i, session in enumerate(sessions, 1)]
        check_order(given)
        flat = self._flat(given)
        h_D = self.model(_batch(flat, self.about["model"]["history"]))[0, -1]
        own = flat.track_N[flat.first_S[-1] + 1 :]
        allowed_1K = self.rules.allowed(flat.mode_S[-1:], own[None])
        return log_softmax_allowed(self.model.logits(h_D[None], self.tracks), allowed_1K)[0]

    def add_tracks(
        self,
        track_ids: Sequence[str],
        embedding_KE: Tensor | np.ndarray | Sequence[Sequence[float]],
        modes: Sequence[Sequence[str] | None] | None = None,
    ) -> None:
        """Add tracks that the policy never saw: it knows tracks by their embedding only.

        Args:
            track_ids: new ids.
            embedding_KE: their embeddings, of the kind that the catalogue has, (K, E), finite.
            modes: modes in which each may be played; None for every mode.

        Raises:
            ValueError: for ids that are there already, embeddings of another size or not finite, unknown
                modes, or not as many as tracks.
        """
        known, size = set(self.track_ids), self.model.encoder.embedding_KE.shape[1]
        twice = [name for i, name in enumerate(track_ids) if name in known or name in track_ids[:i]]
        if twice:
            raise ValueError(f"track ids must be new and different; given again: {', '.join(twice)}")
        if modes is not None and len(modes) != len(track_ids):
            raise ValueError(f"modes has {len(modes)} items; allowed: {len(track_ids)}, one for each track")
        given_KE = _embeddings(embedding_KE, track_ids, size)
        allowed_MK = torch.ones(len(self.about["modes"]) + 1, len(track_ids), dtype=torch.bool)
        for k, names in enumerate(modes or []):
            unknown = set(names or []) - set(self.about["modes"])
            if unknown:
                raise ValueError(f"modes {sorted(unknown)} are unknown; there are {self.about['modes']}")
            if names is not None:
                allowed_MK[:-1, k] = torch.tensor([name in names for name in self.about["modes"]])
        scale = self.about["embedding"]
        scaled_KE = (given_KE - torch.tensor(scale["mean"])) / scale["scale"]
        encoder = self.model.encoder
        encoder.embedding_KE = torch.cat([encoder.embedding_KE, scaled_KE])
        unheard_K = torch.full((len(track_ids),), float(self.about["unheard_log_popularity"]))
        self.model.log_popularity_K = torch.cat([self.model.log_popularity_K, unheard_K])
        self.rules = Rules(torch.cat([self.rules.mode_MK, allowed_MK], 1), self.rules.repeats)
        self.track_ids += list(track_ids)
        self._index()

    def _flat(self, sessions: Sequence[Session]) -> FlatLog:
        """Checked sessions as tokens, with the very features that the policy was trained on."""
        length_S = np.array([len(s["track_id"]) for s in sessions])
        columns = SimpleNamespace(
            user_S=np.zeros(len(sessions), dtype=np.int64),
            start_S=np.array([milliseconds(s["started_at"]) for s in sessions]),
            offset_S=_numbers(sessions, "utc_offset_min"),
            mode_S=np.array([_code(s.get("mode"), self.about["modes"], "mode") for s in sessions]),
            cohort_S=np.array([_code(s.get("cohort"), self.about["cohorts"], "cohort") for s in sessions]),
            context_SC=_numbers(sessions, "context"),
            session_S={**{name: _numbers(sessions, name) for name in REPORTS}, "left": _left(sessions)},
            first_S=np.cumsum(length_S) - length_S,
            length_S=length_S,
            track_N=np.array(self._numbers_of(sessions), dtype=np.int64),
            play_N={name: _per_play(sessions, name) for name in FEEDBACK},
        )  # fmt: skip
        return flatten_columns(cast(Any, columns), len(self.about["modes"]), len(self.about["cohorts"]), [""])

    def _numbers_of(self, sessions: Sequence[Session]) -> list[int]:
        played = [name for session in sessions for name in session["track_id"]]
        unknown = [name for name in played if name not in self.number]
        if unknown:
            raise ValueError(f"track {unknown[0]!r} is not in the catalogue: add it with add_tracks first")
        return [self.number[name] for name in played]


def _batch(flat: FlatLog, window: int) -> Batch:
    """The last `window` tokens as a batch of one."""
    last = slice(-window, None)
    session_L = flat.session_N[last]
    track_1L = flat.track_N[last][None]
    nothing_1L = torch.zeros_like(track_1L, dtype=torch.bool)
    return Batch(
        static_BLF=flat.static_SF[session_L][None], track_BL=track_1L,
        feedback_BL4=flat.feedback_N4[last][None], hidden_BL=nothing_1L, valid_BL=~nothing_1L,
        counts_BL=nothing_1L, next_track_BL=torch.full_like(track_1L, -1),
        mode_BL=flat.mode_S[session_L][None], step_BL=flat.step_N[last][None],
        target_BLY=torch.full((*track_1L.shape, len(TARGETS)), torch.nan),
        report_BL2=torch.full((*track_1L.shape, 2), torch.nan), user_B=flat.user_S[session_L[:1]],
        normaliser_Z=torch.ones(len(LABELS)),
    )  # fmt: skip


def _embeddings(given: Any, track_ids: Sequence[str], size: int) -> Tensor:
    """What was given as finite float32, (K, E)."""
    allowed = f"allowed: {(len(track_ids), size)}, that is {size} numbers for each of the tracks"
    try:
        given_KE = torch.as_tensor(given, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"embeddings are no table of numbers ({error}); {allowed}") from error
    if given_KE.shape != (len(track_ids), size):
        raise ValueError(f"embeddings of shape {tuple(given_KE.shape)}; {allowed}")
    bad_N2 = (~given_KE.isfinite()).nonzero().tolist()
    if bad_N2:
        k, e = bad_N2[0]
        number = f"number {e + 1} of the embedding of track {track_ids[k]!r}"
        raise ValueError(f"{number} is {given_KE[k, e]:g}; allowed: finite numbers")
    return given_KE


def _code(name: str | None, names: Sequence[str], what: str) -> int:
    if name is None:
        return -1
    if name not in names:
        raise ValueError(f"{what}={name!r} is unknown; the policy knows {', '.join(names) or 'none'}")
    return list(names).index(name)


def _numbers(sessions: Sequence[Session], name: str) -> np.ndarray:
    """A field of each session, NaN where it is None."""
    return np.array([s[name] for s in sessions], dtype=np.float32)


def _left(sessions: Sequence[Session]) -> np.ndarray:
    """1 where the listener left, 0 where the session ended otherwise, NaN where unknown."""
    return np.array([None if s["ended"] is None else s["ended"] == "left" for s in sessions], np.float32)


def _per_play(sessions: Sequence[Session], name: str) -> np.ndarray:
    return np.array([value for s in sessions for value in s[name]], dtype=np.float32)
