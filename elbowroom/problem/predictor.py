"""What a model makes of a standard Normal vector, as far as it is linear in it.

A Gaussian process that is written by standard Normal values z enters the model as f = c + A z,
whose A follows the scales and lengths that are sampled before, by a Cholesky factor for one. What
the data tell of z then follows them too; see `elbowroom.problem.informed`. The model is run with z
and the tensors that it computes of it are followed, to find the last one that is linear in z.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.overrides import TorchFunctionMode

from elbowroom.errors import SignalError
from elbowroom.guides.space import LatentSpace, own_family, trace_model
from elbowroom.recording.operations import leaves


@dataclass(frozen=True)
class Predicting:
    """Which vectors are looked at."""

    least: int = 10
    """Numbers of a vector, at least."""
    most: int = 150
    """The same at most, since a factorisation of that size is added to each evaluation."""
    linear: float = 1e3
    """The largest relative difference from a linear function that is rounding, in roundings."""


PREDICTING = Predicting()


class _ReachedError(SignalError):
    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result


class _Followed(TorchFunctionMode):
    """Follows what is computed of one tensor.

    Args:
        end: The number of the result at which the model is left, or to which something is added.
        added: That.

    Attributes:
        results: All of them, in order.
    """

    def __init__(self, end: int | None = None, added: Tensor | None = None) -> None:
        super().__init__()
        self.end, self.added = end, added
        self.results: list[Tensor] = []
        self._followed: dict[int, Tensor] = {}

    def follow(self, tensor: Tensor) -> None:
        """Follows a tensor, which is kept so that no other one takes its place in memory."""
        self._followed[id(tensor)] = tensor

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        taken = [each for each in leaves((args, kwargs or {})) if isinstance(each, Tensor)]
        if not any(id(each) in self._followed for each in taken):
            return result
        if isinstance(result, Tensor) and result.is_floating_point():
            self.results.append(result)
            if len(self.results) - 1 == self.end:
                if self.added is None:
                    raise _ReachedError(result)
                result = result + self.added
        for each in leaves(result):
            if isinstance(each, Tensor):
                self.follow(each)
        return result


class _Begins(Messenger):
    """Tells what follows a site where its value is."""

    def __init__(self, name: str, followed: _Followed) -> None:
        super().__init__()
        self.name, self.followed = name, followed

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            self.followed.follow(msg["value"])


@contextmanager
def _alone() -> Iterator[None]:
    """A block in which no handler is active: a model is run that is being run already."""
    active = [*_PYRO_STACK]
    _PYRO_STACK.clear()
    try:
        yield
    finally:
        _PYRO_STACK[:] = active


@dataclass(frozen=True)
class Predictor:
    """The last result that is linear in a standard Normal site.

    Attributes:
        site: Its name.
        index: The number of the result.
        shape: Of it.
    """

    site: str
    index: int
    shape: torch.Size

    def moved(self, model: Callable[..., Any], added: Tensor) -> Callable[..., Any]:
        """A model in which something is added to the result."""

        def function(**arguments: Any) -> Any:
            followed = _Followed(self.index, added)
            with _Begins(self.site, followed), followed:
                return model(**arguments)

        return function

    def at(
        self, model: Callable[..., Any], arguments: Mapping[str, Any], values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """c, (m,), and A, (m, k), given the values of all other sites."""
        others = {name: value for name, value in values.items() if name != self.site}

        def result(z: Tensor) -> Tensor:
            return _result(self, model, arguments, {**others, self.site: z}).reshape(-1)

        origin = torch.zeros_like(values[self.site])
        size = len(origin)
        tried = torch.eye(size + 1, size).roll(1, 0).to(origin)  # zero, and a one in each place
        with _alone():
            found = torch.func.vmap(result, out_dims=-1)(tried)  # (m, 1 + k)
        constant = found[:, 0]
        return constant, found[:, 1:] - constant.unsqueeze(-1)


def _result(
    predictor: Predictor,
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
) -> Tensor:
    followed = _Followed(predictor.index)
    try:
        with _Begins(predictor.site, followed), followed:
            poutine.condition(model, dict(values))(**arguments)
    except _ReachedError as reached:
        return reached.result
    raise RuntimeError(f"the model does not compute what it did of '{predictor.site}'.")


def predictors(
    model: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
) -> tuple[Predictor, ...]:
    """What a model makes of its long standard Normal vectors, where that follows other sites.

    Where A is a number times a fixed matrix, it is left: no matrix is computed at each point then,
    and a factorisation of one would cost far more than all else.

    Example:
        >>> import pyro
        >>> def model(y):
        ...     size = pyro.sample("size", dist.LogNormal(torch.zeros(()), 1.0))
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(10), 1.0).to_event(1))
        ...     sizes = size ** torch.arange(10)
        ...     pyro.sample("y", dist.Poisson((2 + sizes * z).exp()).to_event(1), obs=y)
        >>> arguments = {"y": torch.ones(10)}
        >>> (found,) = predictors(model, arguments, LatentSpace.of(model, arguments))
        >>> values = {"size": torch.tensor(3.0), "z": torch.zeros(10)}
        >>> constant, columns = found.at(model, arguments, values)
        >>> float(constant[0]), float(columns[1, 1]), float(columns[0, 1])
        (2.0, 3.0, 0.0)
    """
    if space.discrete or space.subsampled is not None or space.parameters.size:
        return ()
    nodes = trace_model(model, arguments).nodes
    found = []
    for site in space.sites:
        fn = own_family(nodes[site.name]["fn"])
        plain = isinstance(fn, dist.Normal) and not site.plates and len(site.shape) == 1
        if not plain or not PREDICTING.least <= site.shape[0] <= PREDICTING.most:
            continue
        if not (torch.all(fn.loc == 0) and torch.all(fn.scale == 1)):
            continue
        # It fails in as many ways as there are models, whose sites then stay as they are.
        predictor = None
        with suppress(Exception):
            predictor = _last_linear(model, arguments, space, site.name)
        if predictor is not None:
            found.append(predictor)
    return tuple(found)


def _last_linear(
    model: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace, name: str
) -> Predictor | None:
    generator = torch.Generator().manual_seed(0)

    def values() -> dict[str, Tensor]:
        u = torch.rand(space.dimension, generator=generator) - 0.5
        return space.constrain(u.to(torch.get_default_dtype()))

    def results(z: Tensor) -> list[Tensor]:
        followed = _Followed()
        with torch.no_grad(), _Begins(name, followed), followed:
            poutine.condition(model, {**own, name: z})(**arguments)
        return followed.results

    own, other = values(), values()
    names = [site.name for site in space.sites]
    later = names[names.index(name) + 1 :]
    one, two = own[name], other[name]
    runs = [results(z) for z in (torch.zeros_like(one), one, two, one + two)]
    if len({len(run) for run in runs}) > 1:
        return None
    for index, (zero, first, second, both) in reversed([*enumerate(zip(*runs, strict=True))]):
        if not PREDICTING.least <= zero.numel() <= PREDICTING.most:
            continue
        apart = (both - first - second + zero).abs().max()
        moved = (first - zero).abs().max()
        rounding = PREDICTING.linear * torch.finfo(zero.dtype).eps
        if moved > 0 and apart <= rounding * moved:
            predictor = Predictor(name, index, zero.shape)
            with torch.no_grad():
                constant, here = predictor.at(model, arguments, own)
                after = predictor.at(model, arguments, own | {each: other[each] for each in later})
                _, there = predictor.at(model, arguments, other)
            if not (torch.equal(constant, after[0]) and torch.equal(here, after[1])):
                continue  # it follows sites that are not known where z is sampled
            same = torch.allclose(here / here.norm(), there / there.norm(), atol=rounding)
            return None if same else predictor
    return None
