"""Latent sites that are not inferred: values that a mask hides, that follow, or that lead nowhere.

A mask hides those that `obs_mask=` makes for missing observations.

Pyro writes `pyro.sample("y", ..., obs=y, obs_mask=there)` as two sites: `y_observed`, masked where
the value is missing, and the latent `y_unobserved`, masked where it is there. What is masked has no
density, so the posterior of these values alone is not proper, though nothing depends on them.

Where nothing else depends on a masked site, it is integrated out, which leaves the density of all
others: its values are drawn given those. Where something depends on the values that are not
masked, the masked ones are given their prior, which changes nothing for the others either.

A site with a Delta is computed from the others: it is a deterministic one. Discrete values
on which nothing depends, and that cannot be summed over, such as a count that is to be predicted,
are integrated out as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from elbowroom.errors import ElbowroomError
from elbowroom.guides.sites import is_delta
from elbowroom.guides.space import listed_values, sample_sites, trace_model

_at_rest: ContextVar[bool] = ContextVar("at_rest", default=False)


@contextmanager
def at_rest() -> Iterator[None]:
    """A block in which values that are integrated out are not drawn: only densities are wanted."""
    token = _at_rest.set(True)
    try:
        yield
    finally:
        _at_rest.reset(token)


class _IntegratedOut(Messenger):
    """Takes sites out of the density; their values are drawn, and reported."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = set(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.sites or msg["done"]:
            return
        fn, value = msg["fn"], msg["value"]
        if value is None and _at_rest.get():
            value = torch.zeros(fn.shape())
        if value is None:
            with torch.no_grad():
                value = fn.sample()
        msg["fn"] = dist.Delta(value, event_dim=fn.event_dim).mask(False)
        msg["value"], msg["is_observed"], msg["done"] = value, True, True
        msg["infer"] = {**(msg["infer"] or {}), "_deterministic": True}


class _Computed(Messenger):
    """Makes sites with a Delta deterministic ones, whatever value they would be given."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = set(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.sites or msg["is_observed"]:
            return
        fn = msg["fn"]
        msg["value"] = value = fn.rsample()
        msg["fn"] = dist.Delta(value, event_dim=fn.event_dim).mask(False)
        msg["is_observed"] = msg["done"] = True
        msg["infer"] = {**(msg["infer"] or {}), "_deterministic": True}


class _Unmasked(Messenger):
    """Takes the masks of sites away."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = set(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["mask"] = None


class _Moved(Messenger):
    """Gives a site other values where a mask says so."""

    def __init__(self, site: str, where: Tensor, by: float) -> None:
        super().__init__()
        self.site, self.where, self.by = site, where, by

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["value"] = torch.where(self.where, msg["value"] + self.by, msg["value"])


def without_unseen(
    model: Callable[..., Any], arguments: Mapping[str, Any]
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A model whose masked latent values have a density, or are integrated out; and others alike.

    Args:
        model: The Pyro model, to be called in an isolated session.
        arguments: Its keyword arguments.

    Returns:
        The model, itself if it has no such values, and the sites that are no longer inferred.

    Raises:
        ModelError: If the model raises.
    """
    out: list[str] = []
    unmasked: list[str] = []
    computed: list[str] = []
    for name, node in sample_sites(trace_model(model, arguments)):
        mask = node["mask"]
        if node["is_observed"]:
            continue
        if is_delta(node["fn"]):
            if not _weighed(node["fn"]):
                computed.append(name)
            continue
        if getattr(node["fn"].support, "is_discrete", False):
            if not listed_values(node["fn"]) and not _leads_on(model, arguments, name, node):
                out.append(name)
            continue
        if not isinstance(mask, Tensor) or bool(mask.all()):
            continue
        mask = mask.reshape(*mask.shape, *[1] * node["fn"].event_dim)
        if not _depends(model, arguments, name, torch.ones_like(mask)):
            out.append(name)
        elif not _depends(model, arguments, name, ~mask):
            unmasked.append(name)
    if not out and not unmasked and not computed:
        return model, ()

    @wraps(model)
    def function(**given: Any) -> Any:
        with _Computed(computed), _IntegratedOut(out), _Unmasked(unmasked):
            return model(**given)

    return function, (*out, *computed)


def _weighed(delta: Any) -> bool:
    """Whether a Delta has a density of its own where its value is."""
    return bool((delta.log_prob(delta.sample()) != 0).any())


def _leads_on(
    model: Callable[..., Any], arguments: Mapping[str, Any], name: str, node: Any
) -> bool:
    """Whether the density of the other sites depends on a discrete one, as far as can be seen."""
    try:
        return _depends(model, arguments, name, torch.ones_like(node["value"], dtype=torch.bool))
    except ElbowroomError:  # a value in between is none
        return True


def _depends(
    model: Callable[..., Any], arguments: Mapping[str, Any], site: str, where: Tensor
) -> bool:
    """Whether the density of the other sites depends on some values of one."""
    found = []
    for by in (0.0, 0.1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with _Moved(site, where, by):
                trace = trace_model(model, arguments)
        trace.compute_log_prob()
        others = [node["log_prob"] for name, node in sample_sites(trace) if name != site]
        found.append(torch.stack([each.sum() for each in others]))
    return not torch.equal(*found)
