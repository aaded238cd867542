"""Random numbers that depend only on what they are drawn for.

A draw is a hash of its keys (seed, session, candidate, step, purpose), so batch size, order and
number of processes never change a simulation, and two policies meet the same luck (common random
numbers).
"""

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = (1 << 64) - 1


def _signed(constant: int) -> int:
    """The 64-bit pattern `constant` as the signed integer that torch stores."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed_number(state: int) -> int:
    """`_mixed` of one number: twenty operators on it as a tensor would take as long as on thousands."""
    state = ((state & _BITS) + _GOLDEN) & _BITS
    state = ((state ^ state >> 30) * _FIRST) & _BITS
    state = ((state ^ state >> 27) * _SECOND) & _BITS
    return _signed(state ^ state >> 31)


def _mixed(state: Tensor) -> Tensor:
    state = state + _signed(_GOLDEN)
    state = (state ^ _shift_right(state, 30)) * _signed(_FIRST)
    state = (state ^ _shift_right(state, 27)) * _signed(_SECOND)
    return state ^ _shift_right(state, 31)


def hash_keys(*keys: int | Tensor) -> Tensor:
    """A 64-bit hash (int64) of the broadcast integer keys: splitmix64 (Steele et al. 2014), chained."""
    state: int | Tensor = 0
    for key in keys:
        state = state ^ (key.long() if isinstance(key, Tensor) else int(key))
        state = _mixed(state) if isinstance(state, Tensor) else _mixed_number(state)
    return torch.as_tensor(state)


def uniform(*keys: int | Tensor) -> Tensor:
    """Uniform float32 in the open interval (0, 1), of the keys' broadcast shape."""
    return (_shift_right(hash_keys(*keys), 41).to(torch.float32) + 0.5) / (1 << 23)


def normal(*keys: int | Tensor) -> Tensor:
    """Standard normal float32, of the keys' broadcast shape."""
    draws: Tensor = torch.special.ndtri(uniform(*keys))
    return draws
