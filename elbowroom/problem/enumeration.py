"""The exact posterior of a model whose latents are all discrete, by summing over them."""

from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from elbowroom.guides.space import LatentSpace, Plate
from elbowroom.problem.score import Conditional, conditionals


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

    One run of the model gives each site's probabilities given those that are drawn before it.

    Args:
        model: A Pyro model without continuous latents.
        space: Its latent space.
    """

    def guide(**arguments: Any) -> None:
        with poutine.block():
            parts = conditionals(model, arguments, {}, space)
        places: dict[str, Tensor] = {}
        open_plates = space.plates(arguments)
        for name, part in parts.items():
            plates = space.discrete[name]
            shares = _given(part, places, space).softmax(-1)
            with open_plates(plates):
                drawn = pyro.sample(name, OneOf(part.values, _in_place(shares, plates)))
            places[name] = _place(drawn, part.values)

    return guide


def _given(part: Conditional, places: dict[str, Tensor], space: LatentSpace) -> Tensor:
    """A site's log probabilities in all its plates, given the places of the values of others.

    Args:
        part: The site.
        places: Of the values of the sites before it, each with a dim for each plate's dim.
        space: The model's latent space.

    Returns:
        (plates' dims..., support); a plate in which they are the same may have size one.
    """
    dims = {plate.name: plate.dim for plates in space.discrete.values() for plate in plates}
    deepest = -min((dims[name] for name in part.plates), default=0)
    # The plates at their dims, in the order of these.
    order = sorted(range(len(part.plates)), key=lambda i: dims[part.plates[i]])
    found = part.log_prob.permute(*order, *range(len(order), part.log_prob.dim()))
    at = {dims[part.plates[i]]: found.shape[k] for k, i in enumerate(order)}
    shape = [at.get(dim, 1) for dim in range(-deepest, 0)]
    found = found.reshape(*shape, *found.shape[len(order) :])
    for i, name in enumerate(part.given):
        rest = found.shape[found.dim() - len(part.given) + i - 1 :]
        batch = torch.broadcast_shapes(places[name].shape, found.shape[: found.dim() - len(rest)])
        index = places[name].expand(batch).reshape(*batch, *(1,) * len(rest))
        found = found.expand(*batch, *rest)
        found = found.gather(len(batch), index.expand(*batch, 1, *rest[1:])).squeeze(len(batch))
    return found


def _place(drawn: Tensor, values: Tensor) -> Tensor:
    """Where among a site's values, (support, event...), the drawn ones are, (batch...)."""
    events = values.dim() - 1
    same = drawn.unsqueeze(-1 - events) == values
    same = same.flatten(same.dim() - events).all(-1) if events else same
    return same.to(torch.int64).argmax(-1)


def _in_place(shares: Tensor, plates: tuple[Plate, ...]) -> Tensor:
    """Probabilities (plates' dims..., support) in plates of full size."""
    at = {plate.dim: plate.size for plate in plates}
    shape = [at.get(dim, 1) for dim in range(min(at, default=0), 0)]
    return shares.expand(*shape, shares.shape[-1])
