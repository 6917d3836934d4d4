"""Whether a likelihood has a maximum where a fit ended: it falls on the way from there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from elbowroom.guides import Start
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated, placed
from elbowroom.problem.score import score
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class MaximumTest:
    """When a likelihood has a maximum."""

    fall: float = 0.1
    """Nats by which the likelihood must fall along the flattest direction."""
    far: float = 10.0
    """How far along it: in standard deviations of the posterior, or in unconstrained units without
    one."""


MAXIMUM = MaximumTest()


def why_no_maximum(problem: Problem, sites: dict[str, Tensor], start: Start) -> str | None:
    """Why a point is no maximum of a likelihood that tells it from far ones; None if it is one.

    The likelihood is looked at along its flattest way through the point, and along a Newton step.
    It does not fall there where it has no maximum, as at a component of a mixture that collapses
    onto a row or at classes that a plane separates, and where sites can make up for each other.

    Args:
        problem: Without priors.
        sites: The point's value at each continuous site.
        start: Where the fit began, whose curvature is the posterior's.

    Returns:
        A sentence that names the site which the way leads along.
    """
    space = problem.space
    if space.dimension > SIZES.products:
        return None
    with isolated(0, dtype=torch.float64, threads=problem.threads):
        arguments = placed(problem.arguments, torch.float64, torch.device("cpu"))
        centre = space.unconstrain({name: value.double() for name, value in sites.items()})
        if not torch.isfinite(centre).all():
            name = next(s for s, v in space.split(centre).items() if not torch.isfinite(v).all())
            return f"The likelihood has no maximum: '{name}' is at the edge of its support."
        root = torch.eye(space.dimension)
        if start.precision is not None:
            root = torch.linalg.cholesky(torch.linalg.inv(start.precision.double().cpu()))

        def log_likelihood(offset: Tensor) -> Tensor:
            values = space.constrain(centre + root @ offset)
            return score(problem.function, arguments, values, space).log_joint

        origin = torch.zeros(space.dimension, requires_grad=True)
        here = log_likelihood(origin)
        (gradient,) = torch.autograd.grad(here, origin, materialize_grads=True)
        precision = -hessian(log_likelihood, origin.detach())
        if not torch.isfinite(precision).all():
            return "The likelihood has no maximum: its curvature is not finite where the fit ended."
        values, vectors = torch.linalg.eigh(precision)
        newton = vectors @ ((vectors.T @ gradient) / values.abs().clamp(min=1e-9))
        size = float(newton.norm())
        ways = [vectors[:, 0], -vectors[:, 0], *([newton / size] if size > 0 else [])]
        numbered = space.split(torch.arange(space.dimension))
        for i, way in enumerate(ways):
            # Where sites make up for each other on a curve, the curvature alone shows it.
            flat = i == 0 and 0.5 * float(values[0]) * MAXIMUM.far**2 < MAXIMUM.fall
            if flat or not _falls(log_likelihood, float(here.detach()), way):
                moved = (root @ way).abs() / root.norm(dim=1)
                number = int(moved.argmax())
                name = next(s for s, part in numbered.items() if (part == number).any())
                unit = "posterior standard deviations"
                if start.precision is None:
                    unit = "units of the unconstrained coordinates"
                return (
                    "The likelihood has no maximum that far points show: over a distance of "
                    f"{MAXIMUM.far:g} {unit} along '{name}' it falls by less than {MAXIMUM.fall} "
                    "nats."
                )
    return None


def _falls(log_likelihood: Callable[[Tensor], Tensor], here: float, way: Tensor) -> bool:
    """Whether a function falls on a way somewhere, or ends there."""
    with torch.no_grad():
        for far in (MAXIMUM.far / 3, MAXIMUM.far):
            try:
                there = float(log_likelihood(far * way))
            except (ArithmeticError, RuntimeError, ValueError):
                return True
            if not np.isfinite(there) or there < here - MAXIMUM.fall:
                return True
    return False
