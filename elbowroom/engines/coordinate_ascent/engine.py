"""Coordinate ascent variational inference: updates in closed form, from several starts."""

import time

import pyro.distributions as dist
import torch
from torch.distributions import Wishart

from elbowroom.density.landscape import Landscape, explore
from elbowroom.engines.closed_form import fitted_at, progress_of
from elbowroom.engines.coordinate_ascent.ascent import (
    SWEEPING,
    Ascended,
    Coordinates,
    best_of,
)
from elbowroom.engines.protocol import Fitted
from elbowroom.engines.task import Plan, Task
from elbowroom.errors import OptionError
from elbowroom.guides import Guide, guides_for
from elbowroom.guides.space import base_of, trace_model
from elbowroom.models import model_summaries
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated

OBJECTIVE = ("coordinate_ascent", "the ELBO in closed form, by coordinate ascent")


class CoordinateAscent:
    """See `elbowroom.engines.protocol.Engine`."""

    name = "coordinate_ascent"
    draws = 2000
    stochastic = False
    explores = True

    def plan(self, task: Task, guide: Guide) -> Plan:
        """The updates that the guide declares."""
        return Plan(task.problem, guide, task.settings, OBJECTIVE, task.seed, self.name)

    def start(self, task: Task, guide: Guide) -> Landscape:
        """The modes of the density, which its draws have to cover; the updates begin elsewhere."""
        return explore(task.problem, task.settings.restarts, task.seed)

    def fit(self, task: Task, guide: Guide, start: Landscape) -> Fitted:
        """The best optimum that the updates reach from several starts."""
        plan, settings = self.plan(task, guide), task.settings
        problem = plan.problem
        assert guide.coordinates is not None
        began = time.perf_counter()
        with isolated(task.seed, dtype=torch.float64, threads=problem.threads):
            coordinates: Coordinates = guide.coordinates(problem.arguments)
            sweeps = settings.steps or SWEEPING.sweeps
            found = best_of(coordinates, settings.restarts, task.seed, sweeps, progress_of(task))
            reached = coordinates.parameters(found.factors)
            remarks = [] if found.status == "diverged" else coordinates.remarks(found.factors)
        several = found.tried > 1 and found.status != "diverged"
        return fitted_at(
            plan,
            {f"guide.{name}": value for name, value in reached.items()},
            found.status,
            _reason(found),
            found.elbo,
            began,
            starts=(found.reached, found.tried) if several else None,
            remarks=(*remarks, *([_of_starts(found)] if several else [])),
            remedy=_remedy(found),
            adapts=True,
        )


CONJUGATE = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal, dist.Gamma,
             dist.Exponential, dist.InverseGamma, dist.Beta, dist.Dirichlet, Wishart)  # fmt: skip
"""Priors that are conjugate to some likelihood."""


def check_updates(problem: Problem) -> None:
    """Sees that there are updates in closed form for a model.

    Raises:
        OptionError: If not. A site whose prior is conjugate to nothing is named.
    """
    writers = [
        name
        for name in model_summaries()
        if any(guide.coordinates is not None for guide in guides_for(name).values())
    ]
    if problem.model_name in writers:
        return
    with problem.session(0):
        nodes = trace_model(problem.function, problem.arguments).nodes
    priors = {site.name: base_of(nodes[site.name]["fn"]) for site in problem.space.sites}
    strange = [name for name, prior in priors.items() if not isinstance(prior, CONJUGATE)]
    why = "no updates in closed form are written for "
    why += problem.model_name or "a model of your own"
    if strange:
        kind = type(priors[strange[0]]).__name__
        why += f", and the prior of '{strange[0]}', {kind}, is conjugate to no likelihood"
    raise OptionError(
        f"--engine coordinate_ascent: {why}. Fit with --engine auto, or take a model with updates: "
        f"{', '.join(writers)}."
    )


def _of_starts(found: Ascended) -> str:
    """What became of the starts."""
    return f"{found.reached} of {found.tried} starts ended at the best ELBO of coordinate ascent."


def _remedy(found: Ascended) -> str:
    if found.status != "budget":
        return ""
    return "give a longer --time." if found.cut else "give more --steps."


def _reason(found: Ascended) -> str:
    count = len(found.elbo) - 1
    swept = f"{count:,} sweep{'' if count == 1 else 's'}"
    over = "its time was over" if found.cut else "that was the budget"
    return {
        "converged": f"converged after {swept}: the ELBO no longer rose.",
        "budget": f"stopped after {swept}, since {over}: the ELBO still rose.",
        "interrupted": f"interrupted after {swept}; what was fitted so far is kept.",
        "diverged": f"coordinate ascent has no optimum after {swept}: {found.cause}",
    }[found.status]
