"""Which users each member of an ensemble learns from, and how often it counts them.

Members that share all their data agree about whatever the data left open. So each member has a bag of
its own: users drawn with replacement (bagging, Breiman 1996; by Poisson counts, Oza and Russell 2001).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amrs.noise import uniform

_BAG = 31
"""Purpose of the draw."""
_POISSON = (0.367879, 0.735759, 0.919699, 0.981012, 0.996340, 0.999406)
"""Distribution function of the Poisson law of mean 1 at 0, 1, ..., 5."""


class Bags(NamedTuple):
    """The bags of `members` members; a single member learns from everybody once."""

    seed: int
    members: int

    def times(self, member: int, user: Tensor) -> Tensor:
        """How often the member counts each user, of the shape of `user`, as float: 0 to 6."""
        if self.members == 1:
            return torch.ones(user.shape, device=user.device)
        drawn = uniform(self.seed, _BAG, member, user)
        return torch.bucketize(drawn, torch.tensor(_POISSON, device=user.device)).float()
