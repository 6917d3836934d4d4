"""The exact posterior of a model whose latents are all discrete, by summing over them."""

from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from elbowroom.guides.space import LatentSpace, Plate
from elbowroom.problem.score import assignment_probabilities, supports


class OneOf(TorchDistribution):
    """One of several values, each with its probability.

    Args:
        values: (K, event...).
        probabilities: (batch..., K).

    Example:
        >>> two = OneOf(torch.tensor([3.0, 5.0]), torch.tensor([[0.0, 1.0], [0.75, 0.25]]))
        >>> two.sample()[0].item(), two.log_prob(torch.tensor([5.0, 3.0])).exp().tolist()
        (5.0, [1.0, 0.75])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, values: Tensor, probabilities: Tensor) -> None:
        self.values, self.probabilities = values, probabilities
        super().__init__(probabilities.shape[:-1], values.shape[1:], validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, sample_shape + batch + event."""
        index = torch.distributions.Categorical(self.probabilities, validate_args=False)
        return self.values[index.sample(torch.Size(sample_shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability of values among those, batch."""
        events = self.values.dim() - 1
        same = value.unsqueeze(-1 - events) == self.values  # (batch..., K, event...)
        same = same.flatten(same.dim() - events).all(-1) if events else same
        return (self.probabilities * same).sum(-1).log()


def enumerated(model: Callable[..., Any], space: LatentSpace) -> Callable[..., Any]:
    """A guide that draws the discrete sites of a model from their exact posterior.

    It draws one site after the other, each given those before it. Given what is outside a plate,
    the values in it are independent, so the sites in fewer plates come first.

    Args:
        model: A Pyro model without continuous latents.
        space: Its latent space.
    """
    order = sorted(space.discrete, key=lambda name: len(space.discrete[name]))

    def guide(**arguments: Any) -> None:
        known: dict[str, Tensor] = {}
        open_plates = space.plates(arguments)
        for name in order:
            with poutine.block():
                values = supports(model, arguments, known, space)[name]
                shares = assignment_probabilities(model, arguments, known, space)[name]
            plates = space.discrete[name]
            with open_plates(plates):
                known[name] = pyro.sample(name, OneOf(values, _in_place(shares, plates)))

    return guide


def _in_place(shares: Tensor, plates: tuple[Plate, ...]) -> Tensor:
    """Probabilities (support, plates...) with each plate at its dim, (batch..., support)."""
    at = {plate.dim: plate.size for plate in plates}
    shape = [at.get(dim, 1) for dim in range(min(at, default=0), 0)]
    return shares.movedim(0, -1).reshape(*shape, len(shares))
