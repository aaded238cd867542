"""Random numbers that depend only on what they are drawn for.

A draw is a hash of its keys (seed, session, candidate, step, purpose), so batch size, order and
number of processes never change a simulation, and two policies meet the same luck (common random
numbers).
"""

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    """The 64-bit pattern `constant` as the signed integer that torch stores."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_keys(*keys: int | Tensor) -> Tensor:
    """A 64-bit hash (int64) of the broadcast integer keys: splitmix64 (Steele et al. 2014), chained."""
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        key = torch.as_tensor(key, dtype=torch.int64)
        state = (state.to(key.device) if state.ndim == 0 else state) ^ key
        state = state + _signed(0x9E3779B97F4A7C15)
        state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
        state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
        state = state ^ _shift_right(state, 31)
    return state


def uniform(*keys: int | Tensor) -> Tensor:
    """Uniform float32 in the open interval (0, 1), of the keys' broadcast shape."""
    return (_shift_right(hash_keys(*keys), 41).to(torch.float32) + 0.5) / (1 << 23)


def normal(*keys: int | Tensor) -> Tensor:
    """Standard normal float32, of the keys' broadcast shape."""
    draws: Tensor = torch.special.ndtri(uniform(*keys))
    return draws
