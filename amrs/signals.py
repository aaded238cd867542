"""Kinds of listener response: how a head's numbers become a distribution.

Each kind turns parameters (..., P) into a negative log-likelihood, a mean, a sample and a CDF.
Shape suffixes: P parameters, M mixture components, G grid points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_SCALE = 0.02
_OUTSIDE = 1.0
"""How far outside of [0, 1] the normals lie that stand for the atoms: 50 standard deviations."""
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_LOG2_E = 1 / math.log(2)
"""Powers of two cost a quarter of those of e on a CPU: torch.exp goes to MKL, which is slow on some."""
_phi: Callable[[Tensor], Tensor] = torch.special.ndtr
"""Standard normal distribution function."""
_quantile: Callable[[Tensor], Tensor] = torch.special.ndtri


def ramp(z: Tensor) -> Tensor:
    """The integral of the standard normal's distribution function up to z: z Phi(z) + phi(z)."""
    return F.gelu(z).add(torch.exp2(-0.5 * _LOG2_E * z * z), alpha=math.exp(-_LOG_SQRT_2PI))


def censored_distance(location: Tensor, scale: Tensor, target: float) -> Tensor:
    """E|y - target| of a normal censored to [0, 1]: the integral of F below the target, of 1 - F above it."""

    def area(g: float) -> Tensor:
        return scale * ramp((g - location) / scale)

    return 2 * area(target) - area(0.0) - area(1.0) + (1 - target)


class Kind(Protocol):
    """A likelihood head."""

    @property
    def size(self) -> int:
        """Parameters per prediction."""
        ...

    def initial(self) -> Tensor:
        """Bias (P,) of an untrained head: a wide distribution."""
        ...

    @property
    def moves(self) -> int:
        """Ways in which a linear model can move the distribution."""
        ...

    @property
    def level(self) -> int:
        """Which of the moves tells most of what a track does to everybody."""
        ...

    def moved(self, params: Tensor, shift: Tensor) -> Tensor:
        """Parameters of the distribution moved by `shift` (..., moves)."""
        ...

    def nll(self, params: Tensor, y: Tensor) -> Tensor:
        """Negative log-likelihood in nats of y, elementwise (...)."""
        ...

    def mean(self, params: Tensor) -> Tensor:
        """Expectation (...)."""
        ...

    def variance(self, params: Tensor) -> Tensor:
        """Variance (...)."""
        ...

    def sample(self, params: Tensor, u: Tensor) -> Tensor:
        """A draw made of one uniform `u` in (0, 1), elementwise (...)."""
        ...

    def distance(self, params: Tensor, target: float) -> Tensor:
        """E|y - target| (...)."""
        ...

    def cdf(self, params: Tensor, grid_G: Tensor) -> Tensor:
        """P(y <= g) for each grid point, (..., G)."""
        ...


def _mixed(logit: Tensor, low: float, inner: Tensor, high: float) -> Tensor:
    """Expectation (...) over a mixture of what its atom on 0, its normals (..., M) and its atom on 1 give.

    A softmax of the logits (..., M + 2) would be slow where they do not lie side by side.
    """
    weight = torch.exp2(_LOG2_E * (logit - logit.amax(-1, keepdim=True)))
    total = (weight[..., 1:-1] * inner).sum(-1).add(weight[..., -1], alpha=high)
    mixed: Tensor = (total.add(weight[..., 0], alpha=low) if low else total) / weight.sum(-1)
    return mixed


@dataclass(frozen=True)
class Bounded:
    """A value in [0, 1] that may sit exactly on either end.

    A mixture of an atom on 0, normals censored to [0, 1] (Tobin 1958, two-sided: the mass outside falls on
    the ends) and an atom on 1. Parameters are the logits of them all in this order, then the locations of
    the normals and their raw scales. An atom is a censored normal that lies far outside, so that one set of
    formulae holds for both.
    """

    components: int = 3

    @property
    def size(self) -> int:
        """Three numbers per component, and one per atom."""
        return 3 * self.components + 2

    def initial(self) -> Tensor:
        """Components spread over [0, 1], wide; little on the atoms."""
        location = (torch.arange(self.components) + 0.5) / self.components
        zeros, atom = torch.zeros(self.components), torch.full((1,), -2.0)
        return torch.cat([atom, zeros, atom, location, zeros - 1.5])

    @property
    def moves(self) -> int:
        """Where its components lie, which of them weigh, and how wide they are."""
        return 3

    @property
    def level(self) -> int:
        """The tilt of the weights: a track that is skipped more is not heard a little less."""
        return 1

    def moved(self, params: Tensor, shift: Tensor) -> Tensor:
        """All locations moved, in scale points; the weights tilted towards 1, in logits; raw scales moved.

        Moving alone could not say that a skip is less likely, as plays are whole or far from it; nor that
        less is known of a listener who did not report before the session.
        """
        logit, location, raw = self._split(params)
        by, tilt, wider = shift[..., None].unbind(-2)
        rank = torch.arange(logit.shape[-1], device=params.device) - (logit.shape[-1] - 1) / 2
        return torch.cat([logit + tilt * rank, location + by, raw + wider], -1)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logit, location, raw = params.split([self.components + 2, self.components, self.components], -1)
        return logit, location, raw

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logit, location, raw = self._split(params)
        location = F.pad(F.pad(location, (1, 0), value=-_OUTSIDE), (0, 1), value=1 + _OUTSIDE)
        scale = F.pad(F.softplus(raw) + _MIN_SCALE, (1, 1), value=_MIN_SCALE)
        return logit.log_softmax(-1), location, scale

    def nll(self, params: Tensor, y: Tensor) -> Tensor:
        """Density inside, mass on the ends."""
        log_weight, location, scale = self._parts(params)
        z = (y[..., None] - location) / scale
        log_p = -0.5 * z**2 - scale.log() - _LOG_SQRT_2PI
        for at, outward in ((y <= 0, 1), (y >= 1, -1)):
            if y.device.type == "cpu":  # masses cost ten times as much as densities: only where they count
                log_p[at] = torch.special.log_ndtr(outward * z[at])
            else:  # a GPU would wait to know how many there are
                log_p = torch.where(at[..., None], torch.special.log_ndtr(outward * z), log_p)
        return -(log_weight + log_p).logsumexp(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Closed form of E[clamp(x, 0, 1)] = E[max(x, 0)] - E[max(x - 1, 0)] for each normal, mixed; the
        atoms' means are 0 and 1."""
        logit, location, raw = self._split(params)
        scale = F.softplus(raw) + _MIN_SCALE
        mean = scale * (ramp(location / scale) - ramp((location - 1) / scale))
        return _mixed(logit, 0.0, mean, 1.0)

    def variance(self, params: Tensor) -> Tensor:
        """Closed form of E[clamp(x, 0, 1)^2] for each component, mixed, less the squared mean."""
        log_weight, location, scale = self._parts(params)
        low, high = -location / scale, (1 - location) / scale
        at_low, at_high = (torch.exp(-0.5 * z**2 - _LOG_SQRT_2PI) for z in (low, high))
        inside = _phi(high) - _phi(low)
        square = (
            (location**2 + scale**2) * inside
            + 2 * location * scale * (at_low - at_high)
            + scale**2 * (low * at_low - high * at_high)
            + _phi(-high)
        )
        return ((log_weight.exp() * square).sum(-1) - self.mean(params) ** 2).clamp(min=0.0)

    def sample(self, params: Tensor, u: Tensor) -> Tensor:
        """Pick a component by the first part of `u`, then its quantile by the rest of the same `u`."""
        log_weight, location, scale = self._parts(params)
        weight = log_weight.exp()
        edge = weight.cumsum(-1)
        pick = (u[..., None] > edge[..., :-1]).sum(-1, keepdim=True)
        high = edge.gather(-1, pick)[..., 0]
        width = weight.gather(-1, pick)[..., 0].clamp(min=1e-7)
        inner = ((u - (high - width)) / width).clamp(1e-6, 1 - 1e-6)
        z = _quantile(inner)
        return (location.gather(-1, pick)[..., 0] + scale.gather(-1, pick)[..., 0] * z).clamp(0, 1)

    def distance(self, params: Tensor, target: float) -> Tensor:
        """Closed form of the integral of F below the target and of 1 - F above it; from 0 and from 1 for the
        atoms."""
        logit, location, raw = self._split(params)
        apart = censored_distance(location, F.softplus(raw) + _MIN_SCALE, target)
        return _mixed(logit, target, apart, 1 - target)

    def cdf(self, params: Tensor, grid_G: Tensor) -> Tensor:
        """P(y <= g); 1 from g = 1 on."""
        log_weight, location, scale = self._parts(params)
        z = (grid_G[:, None] - location[..., None, :]) / scale[..., None, :]
        inside = (log_weight.exp()[..., None, :] * _phi(z)).sum(-1)
        return inside.masked_fill(grid_G >= 1, 1.0)


@dataclass(frozen=True)
class Binary:
    """Yes or no: Bernoulli with a logit."""

    @property
    def size(self) -> int:
        """One logit."""
        return 1

    def initial(self) -> Tensor:
        """A fair coin."""
        return torch.zeros(1)

    @property
    def moves(self) -> int:
        """Its logit."""
        return 1

    @property
    def level(self) -> int:
        """Its logit."""
        return 0

    def moved(self, params: Tensor, shift: Tensor) -> Tensor:
        """The logit moved."""
        return params + shift

    def nll(self, params: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the logit: the sigmoid is applied once, here."""
        return F.binary_cross_entropy_with_logits(params[..., 0], y, reduction="none")

    def mean(self, params: Tensor) -> Tensor:
        """Probability of yes."""
        return params[..., 0].sigmoid()

    def variance(self, params: Tensor) -> Tensor:
        """p (1 - p)."""
        yes = self.mean(params)
        return yes * (1 - yes)

    def sample(self, params: Tensor, u: Tensor) -> Tensor:
        """1.0 with the probability of yes."""
        return (u > 1 - self.mean(params)).to(params.dtype)

    def distance(self, params: Tensor, target: float) -> Tensor:
        """Of 0 with the probability of no, of 1 with that of yes."""
        yes = self.mean(params)
        return (1 - yes) * target + yes * (1 - target)

    def cdf(self, params: Tensor, grid_G: Tensor) -> Tensor:
        """P(y <= g) of a 0/1 value."""
        no = (1 - self.mean(params))[..., None]
        return torch.where(grid_G >= 1, torch.ones_like(no), no.expand(*no.shape[:-1], len(grid_G)))


SIGNALS: dict[str, type[Bounded] | type[Binary]] = {"bounded": Bounded, "binary": Binary}
