"""Densities that are zero outside of their support, also where nothing validates the values.

Torch's Exponential gives log(rate) - rate * value for whatever value, and its Weibull squares a
negative one; both leave it to validation to refuse these. So a value that a latent shifts below
zero, or a Pareto value below a latent scale, would be the more probable the farther out it is.
"""

from collections.abc import Callable
from copy import copy
from functools import wraps
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Exponential, Weibull


def _within(fn: Any) -> Any:
    """A distribution that is zero below zero where it is made of one that is not; else itself."""
    if isinstance(fn, (Exponential, Weibull)):
        if "log_prob" in vars(fn):
            return fn
        found, usual = copy(fn), fn.log_prob

        def log_prob(value: Tensor) -> Tensor:
            return torch.where(value >= 0, usual(value), -torch.inf)

        found.log_prob = log_prob  # type: ignore[method-assign]
        return found
    base = vars(fn).get("base_dist") if hasattr(fn, "__dict__") else None
    if base is None or isinstance(fn, dist.Delta):
        return fn
    inner = _within(base)
    if inner is base:
        return fn
    found = copy(fn)
    found.base_dist = inner
    return found


class _InSupport(Messenger):
    """Makes the distributions of all sites zero outside of their support."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = _within(msg["fn"])


def within_supports(model: Callable[..., Any]) -> Callable[..., Any]:
    """A model whose densities are zero outside of their supports.

    Example:
        >>> import pyro
        >>> from pyro import poutine
        >>> def model():
        ...     pyro.sample("y", dist.Pareto(2.0, 1.0), obs=torch.tensor(1.0))
        >>> with pyro.validation_enabled(False):
        ...     [float(poutine.trace(each).get_trace().log_prob_sum()) > 0
        ...      for each in (model, within_supports(model))]
        [True, False]
    """

    @wraps(model)
    def function(*args: Any, **given: Any) -> Any:
        with _InSupport():
            return model(*args, **given)

    return function
