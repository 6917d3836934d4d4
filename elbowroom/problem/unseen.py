"""Latent values that a mask hides, such as those that `obs_mask=` makes for missing observations.

Pyro writes `pyro.sample("y", ..., obs=y, obs_mask=there)` as two sites: `y_observed`, masked where
the value is missing, and the latent `y_unobserved`, masked where it is there. What is masked has no
density, so the posterior of these values alone is not proper, though nothing depends on them.

Where nothing else depends on a masked site, it is integrated out, which leaves the density of all
others: its values are drawn given those. Where something depends on the values that are not
masked, the masked ones are given their prior, which changes nothing for the others either.
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

from elbowroom.guides.space import sample_sites, trace_model

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
    """A model whose masked latent values have a density, or are integrated out.

    Args:
        model: The Pyro model, to be called in an isolated session.
        arguments: Its keyword arguments.

    Returns:
        The model, itself if nothing is masked, and the sites that are integrated out.

    Raises:
        ModelError: If the model raises.
    """
    out: list[str] = []
    unmasked: list[str] = []
    for name, node in sample_sites(trace_model(model, arguments)):
        mask = node["mask"]
        if node["is_observed"] or not isinstance(mask, Tensor) or bool(mask.all()):
            continue
        if getattr(node["fn"].support, "is_discrete", False):
            continue
        mask = mask.reshape(*mask.shape, *[1] * node["fn"].event_dim)
        if not _depends(model, arguments, name, torch.ones_like(mask)):
            out.append(name)
        elif not _depends(model, arguments, name, ~mask):
            unmasked.append(name)
    if not out and not unmasked:
        return model, ()

    @wraps(model)
    def function(**given: Any) -> Any:
        with _IntegratedOut(out), _Unmasked(unmasked):
            return model(**given)

    return function, tuple(out)


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
