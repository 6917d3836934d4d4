"""Why an ELBO or its gradient is not finite: the site, what is wrong with it, and the rows."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.guides.space import sample_sites
from elbowroom.objectives.estimators import Objective

TRIES = 20
"""Runs in which what is not finite is looked for."""
MOST_ROWS = 5
"""Rows that are named."""


def culprit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: dict[str, Any],
    objective: Objective,
) -> str:
    """What is not finite at the parameters of the active store, as a sentence.

    Args:
        model: The Pyro model.
        guide: The guide.
        arguments: Keyword arguments of both; all rows are looked at.
        objective: The estimate of the ELBO.
    """
    for name, value in pyro.get_param_store().named_parameters():
        if not torch.isfinite(value).all():
            return f"The parameter '{name}' is not finite."
    for _ in range(TRIES):
        try:
            objective.loss(model, guide, **arguments)
        except torch.linalg.LinAlgError as error:
            return (
                f"{str(error).split(' (')[0].rstrip('.')}. Add a larger number to the diagonal of "
                "the matrix, such as a jitter of 1e-4, or fit with --dtype float64."
            )
        with torch.no_grad():
            guide_trace = poutine.trace(guide).get_trace(**arguments)
            model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(**arguments)
        for whose, trace in (("guide's", guide_trace), ("model's", model_trace)):
            for name, node in sample_sites(trace):
                found = _at_site(whose, name, node)
                if found is not None:
                    return found
    for _ in range(TRIES):
        for name, gradient in _gradients(model, guide, arguments, objective):
            if not torch.isfinite(gradient).all():
                return (
                    "The ELBO is finite, but its gradient with respect to the parameter "
                    f"'{name}' is not: look for a square root, a norm or a power at zero."
                )
    return f"In {TRIES} further runs the ELBO and its gradient were finite."


def _at_site(whose: str, name: str, node: Any) -> str | None:
    value, fn = node["value"], node["fn"]
    if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
        drawn = "observed value" if node["is_observed"] else "draw"
        return f"The {whose} {drawn} of site '{name}' is not finite{_described(fn)}."
    with torch.no_grad():
        log_prob = fn.log_prob(value)
    bad = ~torch.isfinite(log_prob)
    if not bad.any():
        return None
    where = torch.nonzero(bad)
    at = ""
    if bad.dim():
        rows = (where[:, -1].unique() + 1).tolist()
        shown = ", ".join(map(str, rows[:MOST_ROWS])) + (", …" if len(rows) > MOST_ROWS else "")
        at = f" at {'rows' if len(rows) > 1 else 'row'} {shown} (counted from 1)"
    support = _outside(fn, value)
    return f"The {whose} log density of site '{name}' is not finite{at}{_described(fn)}{support}."


def _outside(fn: Any, value: Tensor) -> str:
    """Whether a value is none that the distribution gives."""
    try:
        inside = fn.support.check(value)
    except NotImplementedError:
        return ""
    return "" if bool(inside.all()) else f"; a value there is outside its support, {fn.support}"


def _described(fn: Any) -> str:
    """The ranges of a distribution's parameters."""
    while not getattr(fn, "arg_constraints", None) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    parts = []
    for name in getattr(fn, "arg_constraints", {}):
        if name not in vars(fn):
            continue
        value = vars(fn)[name].detach()
        low, high = float(value.min()), float(value.max())
        parts.append(f"{name} {low:.3g}" if low == high else f"{name} {low:.3g} to {high:.3g}")
    return f": {type(fn).__name__} with {', '.join(parts)}" if parts else ""


def _gradients(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: dict[str, Any],
    objective: Objective,
) -> Iterator[tuple[str, Tensor]]:
    named = {n: v for n, v in pyro.get_param_store().named_parameters() if v.requires_grad}
    _, surrogate = objective.loss_and_surrogate(model, guide, arguments)
    found = torch.autograd.grad(surrogate, list(named.values()), materialize_grads=True)
    return zip(named, found, strict=True)
