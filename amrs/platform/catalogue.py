"""The platform's catalogue: embeddings in genres and artists, and what a track truly does to affect.

Shape suffixes: K tracks, A artists, G genres, D channels of the embedding, H hidden units,
L latent dimensions of taste, P features of production's similarity, M modes, 2 = (valence, arousal).
"""

import math
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform.draws import ALWAYS, Draw, normal, uniform

MODES = ("energize", "focus", "calm", "sleep")
COHORTS = ("clinical", "consumer")
ENERGY_RANGE = ((0.35, 1.0), (0.15, 0.85), (0.0, 0.7), (0.0, 0.55))
"""Energy tags (quantiles in the catalogue) that may be played in each mode; choice."""
EDITORIAL = 0.05
"""Share of tracks that editors add to a mode whatever their energy; choice."""
CLUSTERS = (0.45, 0.3, 0.25)
"""Shares of an embedding's variance between genres, a genre's artists, an artist's tracks; choice."""
TAG_NOISE = 1.0
"""Noise of the energy tag, in standard deviations of arousal; choice."""
HIDDEN_UNITS = 24
FEATURES = 8
"""Dimensions of production's similarity (principal components of the embedding)."""


class Catalogue(NamedTuple):
    """Every track's row, observed and hidden."""

    embedding_KD: Tensor
    """Standardised columns; observed."""
    genre_K: Tensor
    artist_K: Tensor
    duration_K: Tensor
    """Seconds."""
    allowed_KM: Tensor
    """Whether the track may be played in the mode; observed."""
    affect_K2: Tensor
    """True valence and arousal, in (0, 1); hidden."""
    affect_after_K2: Tensor
    """The same after the logs; differs under drift only."""
    usual_M: Tensor
    """Mean valence of what is popular in each mode; surfeit under late_harm is counted from there."""
    style_KL: Tensor
    """Unit vectors in the space of taste; hidden."""
    appeal_K: Tensor
    """What everybody likes, standard normal; hidden."""
    log_popularity_K: Tensor
    """Log of the Zipf weight, 0 for the most popular; known to production."""
    energy_K: Tensor
    """Production's noisy tag, the quantile of arousal in [0, 1]."""
    feature_KP: Tensor
    """Unit vectors in which production compares tracks."""


def draw_catalogue(config: PlatformConfig) -> Catalogue:
    """The catalogue of the world `config.seed`."""
    seed, track_K = config.seed, torch.arange(config.tracks)
    genre_K, artist_K, embedding_KD = _embeddings(config)
    mood_K2 = _mood(config, embedding_KD, Draw.AFFECT_IN)
    after_K2 = _drifted(config, embedding_KD, mood_K2) if config.variant == "drift" else mood_K2
    affect_K2, after_K2 = (torch.sigmoid(config.affect_spread * x_K2) for x_K2 in (mood_K2, after_K2))
    rank_K = (-normal(seed, ALWAYS, Draw.POPULARITY, track_K)).argsort().argsort()
    log_popularity_K = -config.zipf * (rank_K + 1).float().log()
    appeal_K = 0.4 * -_standardise(rank_K.float()) + 0.9 * normal(seed, ALWAYS, Draw.APPEAL, track_K)
    tag_K = _standardise(affect_K2[:, 1]) + TAG_NOISE * normal(seed, ALWAYS, Draw.ENERGY, track_K)
    energy_K = tag_K.argsort().argsort().float() / (config.tracks - 1)
    style_DL = normal(
        seed, ALWAYS, Draw.STYLE, torch.arange(config.dimension)[:, None], torch.arange(config.latent)
    )
    allowed_KM = _allowed(config, energy_K)
    play_KM = (config.popularity_weight * log_popularity_K).exp()[:, None] * allowed_KM
    return Catalogue(
        embedding_KD,
        genre_K,
        artist_K,
        (210 * (0.3 * normal(seed, ALWAYS, Draw.DURATION, track_K)).exp()).clamp(60, 900),
        allowed_KM,
        affect_K2,
        after_K2,
        (play_KM * affect_K2[:, :1]).sum(0) / play_KM.sum(0),
        _unit(_exact(embedding_KD, style_DL)),
        appeal_K,
        log_popularity_K,
        energy_K,
        _unit(_principal(embedding_KD)),
    )


def _embeddings(config: PlatformConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Genre (K,), artist (K,) and standardised embedding (K, D) of every track."""
    seed, channel_D = config.seed, torch.arange(config.dimension)
    track_K, artist_A = torch.arange(config.tracks), torch.arange(config.artists)
    genre_A = (config.genres * uniform(seed, ALWAYS, Draw.ARTIST_GENRE, artist_A) ** 1.3).long()
    artist_K = (config.artists * uniform(seed, ALWAYS, Draw.TRACK_ARTIST, track_K) ** 1.4).long()
    genre_K = genre_A[artist_K]
    between, within, rest = (math.sqrt(share) for share in CLUSTERS)
    embedding_KD = (
        between * normal(seed, ALWAYS, Draw.GENRE, genre_K[:, None], channel_D)
        + within * normal(seed, ALWAYS, Draw.ARTIST, artist_K[:, None], channel_D)
        + rest * normal(seed, ALWAYS, Draw.TRACK, track_K[:, None], channel_D)
    )
    return genre_K, artist_K, _standardise(embedding_KD)


def _network(config: PlatformConfig, embedding_KD: Tensor, purpose: Draw) -> Tensor:
    """A fixed random tanh network of the embedding, standardised over the catalogue, as (K, 2)."""
    channel_D, unit_H = torch.arange(config.dimension), torch.arange(HIDDEN_UNITS)
    weight_DH = normal(config.seed, ALWAYS, purpose, channel_D[:, None], unit_H)
    bias_H = normal(config.seed, ALWAYS, purpose, -1, unit_H)
    out_H2 = normal(config.seed, ALWAYS, Draw.AFFECT_OUT, purpose, unit_H[:, None], torch.arange(2))
    hidden_KH = (_exact(embedding_KD, weight_DH) / math.sqrt(config.dimension) + 0.5 * bias_H).tanh()
    return _standardise(_exact(hidden_KH, out_H2))


def _mood(config: PlatformConfig, embedding_KD: Tensor, purpose: Draw) -> Tensor:
    """Standardised valence and arousal, (K, 2): what the embedding tells, and what nobody can know."""
    track_K1 = torch.arange(config.tracks)[:, None]
    unknown_K2 = normal(config.seed, ALWAYS, Draw.UNKNOWABLE, purpose, track_K1, torch.arange(2))
    known_K2 = math.sqrt(1 - config.unknowable) * _network(config, embedding_KD, purpose)
    return known_K2 + math.sqrt(config.unknowable) * unknown_K2


def _drifted(config: PlatformConfig, embedding_KD: Tensor, mood_K2: Tensor) -> Tensor:
    """Another function of the embedding, whose correlation with `mood_K2` is as set."""
    old_K2, other_K2 = _standardise(mood_K2), _mood(config, embedding_KD, Draw.AFFECT_AFTER)
    other_K2 = _standardise(other_K2 - (other_K2 * old_K2).mean(0) * old_K2)
    kept = config.drift_correlation
    return kept * old_K2 + math.sqrt(1 - kept**2) * other_K2


def _allowed(config: PlatformConfig, energy_K: Tensor) -> Tensor:
    """Modes a track may be played in, (K, M); each track in one at least."""
    low_M, high_M = torch.tensor(ENERGY_RANGE).unbind(1)
    fits_KM = (energy_K[:, None] >= low_M) & (energy_K[:, None] <= high_M)
    track_K1 = torch.arange(config.tracks)[:, None]
    added_KM = uniform(config.seed, ALWAYS, Draw.EDITORIAL, track_K1, torch.arange(len(MODES))) < EDITORIAL
    return fits_KM | added_KM


def _principal(embedding_KD: Tensor) -> Tensor:
    """Scores on the first principal components, (K, P)."""
    _, vector_DD = torch.linalg.eigh(embedding_KD.double().T @ embedding_KD.double())
    return _exact(embedding_KD, vector_DD[:, -FEATURES:])


def _exact(x: Tensor, y: Tensor) -> Tensor:
    """The product x @ y in double precision, as float32: the number of threads leaves no trace in a world."""
    product: Tensor = x.double() @ y.double()
    return product.float()


def _standardise(x: Tensor) -> Tensor:
    standard: Tensor = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-6)
    return standard


def _unit(x: Tensor) -> Tensor:
    unit: Tensor = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return unit


def catalogue_table(catalogue: Catalogue) -> pa.Table:
    """The observed columns, in the log's catalogue format."""
    count, dimension = catalogue.embedding_KD.shape
    modes = [[MODES[m] for m in row.nonzero()[:, 0].tolist()] for row in catalogue.allowed_KM]
    flat = pa.array(catalogue.embedding_KD.flatten().numpy(), pa.float32())
    return pa.table(
        {
            "track_id": [track_id(k) for k in range(count)],
            "embedding": pa.FixedSizeListArray.from_arrays(flat, dimension),
            "artist": [f"artist-{a:04d}" for a in catalogue.artist_K.tolist()],
            "genre": [f"genre-{g:02d}" for g in catalogue.genre_K.tolist()],
            "duration_s": pa.array(catalogue.duration_K.numpy(), pa.float32()),
            "modes": pa.array(modes, pa.list_(pa.string())),
            "title": [f"Piece {k}" for k in range(count)],
        }
    )


def track_id(track: int) -> str:
    """The id of a row of the catalogue."""
    return f"track-{track:05d}"
