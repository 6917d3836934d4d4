"""Which discrete sites the density of each site of a model depends on.

What is computed of the values of discrete sites is followed through every operation that torch
runs, whatever loop, plate or `pyro.markov` the model is written with.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elbowroom.errors import SignalError

MOST = 20
"""Discrete sites that one density may depend on: each takes a dim, of which torch has 64."""

_NONE: frozenset[str] = frozenset()


class _NotFollowedError(SignalError):
    """A value is read out of its tensor, to where no operation follows it."""


class _Followed(TorchDispatchMode):
    """Follows names through operations, by the storages that these read and fill."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, frozenset[str]] = {}
        self.kept: list[Tensor] = []  # so that no two storages share a number

    def of(self, value: Any) -> frozenset[str]:
        """The names that a value follows from."""
        if not isinstance(value, Tensor):
            return _NONE
        return self.names.get(value.untyped_storage()._cdata, _NONE)

    def mark(self, tensor: Tensor, names: frozenset[str]) -> None:
        """Has a tensor follow from names."""
        self.kept.append(tensor)
        self.names[tensor.untyped_storage()._cdata] = names

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        names = _NONE.union(*map(self.of, tree_leaves((args, kwargs))))
        if names and function is torch.ops.aten._local_scalar_dense.default:
            raise _NotFollowedError
        if names:
            for tensor in tree_leaves(found):
                if isinstance(tensor, Tensor):
                    self.mark(tensor, names)  # what is written to is taken as well
        return found


class _Sites(Messenger):
    """Has each discrete latent site's value follow from itself alone; no other site's from any.

    Such a site has one of its values, in a dim left of all others, as if it were summed over.

    Attributes:
        found: For each site, the discrete sites that its density follows from.
    """

    def __init__(self, followed: _Followed, discrete: Collection[str], dim: int) -> None:
        super().__init__()
        self.followed, self.discrete, self.dim = followed, discrete, dim
        self.found: dict[str, frozenset[str]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.discrete:
            value = msg["fn"].enumerate_support(expand=False)[:1]
            msg["value"] = value.reshape(*(1,) * -self.dim, *msg["fn"].event_shape)
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        if not isinstance(msg["fn"], TorchDistributionMixin):
            return
        if name in self.discrete:
            msg["value"] = value = value.clone()
            self.followed.mark(value, frozenset([name]))
        elif not msg["is_observed"]:
            msg["value"] = value = value.clone()
            self.followed.mark(value, _NONE)
        if msg["infer"].get("_deterministic"):
            self.found[name] = _NONE
            return
        parts = [msg["fn"].log_prob(value), msg["mask"], msg["scale"]]
        self.found[name] = _NONE.union(*map(self.followed.of, parts))


def discrete_dependence(
    run: Callable[[], Any], discrete: Collection[str], dim: int
) -> Mapping[str, frozenset[str]] | None:
    """For each site, the discrete latent sites that its density depends on, itself included.

    Args:
        run: Runs the model once.
        discrete: The discrete latent sites.
        dim: The rightmost one that no plate or vector of the model takes, negative.

    Returns:
        None where the model cannot be followed, or a site depends on more than `MOST`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     state = 0
        ...     for t in range(3):
        ...         state = pyro.sample(f"state_{t}", dist.Bernoulli(0.2 + 0.5 * state))
        >>> found = discrete_dependence(model, ["state_0", "state_1", "state_2"], -1)
        >>> sorted(found["state_2"])
        ['state_1', 'state_2']
    """
    if not discrete:
        return {}
    # It fails in as many ways as there are models, which then are enumerated as Pyro does.
    try:
        followed = _Followed()
        sites = _Sites(followed, discrete, dim)
        with torch.no_grad(), pyro.validation_enabled(False), followed, sites:
            run()
    except Exception:
        return None
    if max(map(len, sites.found.values()), default=0) > MOST:
        return None
    return sites.found


def shared_places(dependence: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """A number for each discrete site; two have the same one only if no density depends on both.

    Example:
        >>> sets = {"a": {"a"}, "b": {"a", "b"}, "c": {"b", "c"}}
        >>> shared_places({name: frozenset(each) for name, each in sets.items()})
        {'a': 0, 'b': 1, 'c': 0}
    """
    together: dict[str, set[str]] = {}
    for sites in dependence.values():
        for site in sites:
            together.setdefault(site, set()).update(sites)
    places: dict[str, int] = {}
    for name in dependence:
        if name in together:
            taken = {places.get(other) for other in together[name] if other != name}
            places[name] = next(i for i in range(len(taken) + 1) if i not in taken)
    return places
