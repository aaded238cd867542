"""Audio files to mono samples at one rate, in windows. Shape suffixes: N samples, W windows, H per window."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amrs.runs import RunError

Floats = npt.NDArray[np.float32]

ENDINGS = frozenset(
    "wav flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 m4a aac mp4 wma wv ape".split()
)
"""Files that are meant as audio; the last few are not read by libsndfile and become failures, not silence."""
_BLOCK = 1 << 18
"""Frames decoded at once: a file is never held in stereo as a whole."""


class AudioError(ValueError):
    """A file that gives no samples, and why."""


def extra(module: str) -> Any:
    """A module of the extra `audio`."""
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: soundfile without its libsndfile
        raise RunError(f"stage=embed needs {module} ({error}): pip install '.[audio]'") from error


def audio_files(folder: Path) -> list[Path]:
    """Every file below `folder` with an audio ending, in the order of its path."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower().lstrip(".") in ENDINGS)


def read_mono(file: Path, rate: int) -> Floats:
    """The samples (N,) of a file, its channels averaged, at `rate` Hz; AudioError where it cannot be read.

    A file that ends before its header says so is refused: half a track is another track.
    """
    soundfile, soxr = extra("soundfile"), extra("soxr")
    parts: list[Floats] = []
    try:
        with soundfile.SoundFile(file) as source:
            promised, frames = source.frames, 0
            stream = soxr.ResampleStream(source.samplerate, rate, 1, dtype="float32")
            # Not source.blocks(): where a file ends early it hands out what was in memory before.
            while len(block := source.read(_BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                parts.append(stream.resample_chunk(np.ascontiguousarray(block.mean(1)), last=False))
            parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    except (soundfile.LibsndfileError, RuntimeError, ValueError, OSError) as error:
        raise AudioError(f"cannot be decoded: {str(error).rpartition(': ')[2]}") from error
    if missing := _missing_bytes(file):
        raise AudioError(f"truncated: its header promises {missing} bytes more than there are")
    if frames < promised:
        raise AudioError(f"truncated: {frames} of {promised} frames could be decoded")
    samples_N = np.concatenate(parts)
    if not np.isfinite(samples_N).all():
        raise AudioError("holds samples that are not finite")
    return samples_N


def _missing_bytes(file: Path) -> int:
    """Bytes that a WAV or AIFF header promises and the file lacks; libsndfile plays what is left of these."""
    with file.open("rb") as source:
        kind, size = source.read(4), source.read(4)
    if kind not in (b"RIFF", b"FORM"):
        return 0
    promised = int.from_bytes(size, "little" if kind == b"RIFF" else "big")
    streamed = promised in (0, 0xFFFFFFFF)  # written to a pipe, its size was never known
    return 0 if streamed else max(0, promised + 8 - file.stat().st_size)


def normalised(samples_N: Floats) -> Floats:
    """Mean 0 and variance 1 over the file, as Wav2Vec2FeatureExtractor does it; silence stays silence."""
    centred_N = samples_N - samples_N.mean(dtype=np.float64)
    deviation = np.sqrt(np.square(centred_N, dtype=np.float64).mean() + 1e-7)
    return np.asarray(centred_N / deviation, dtype=np.float32)


def windows(samples_N: Floats, length: int, shortest: int) -> list[Floats]:
    """Consecutive windows (W, length), then a tail (1, H) where one of `shortest` samples or more is left."""
    whole = len(samples_N) // length
    found = [samples_N[: whole * length].reshape(whole, length)] if whole else []
    tail_H = samples_N[whole * length :]
    return [*found, tail_H[None]] if len(tail_H) >= shortest else found
