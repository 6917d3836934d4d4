"""Coordinate ascent variational inference: updates in closed form, from several starts."""

import math
import time

import numpy as np
import pyro.distributions as dist
import torch
from torch.distributions import Wishart

from elbowroom.density.landscape import Landscape, explore
from elbowroom.engines.coordinate_ascent.ascent import (
    SWEEPING,
    Ascended,
    Coordinates,
    best_of,
)
from elbowroom.engines.protocol import Fitted, Trained
from elbowroom.engines.task import Plan, Task
from elbowroom.errors import OptionError
from elbowroom.guides import Guide, Start, guides_for
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import base_of, trace_model
from elbowroom.models import model_summaries
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import Parameters, isolated, placed_values

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
        problem, settings, seed = task.problem, task.settings, task.seed
        assert guide.coordinates is not None
        began = time.perf_counter()

        def report(sweep: int, most: int, elbo: float) -> None:
            if task.progress is not None:
                task.progress(sweep, most, elbo, math.nan)

        with isolated(seed, dtype=torch.float64, threads=problem.threads):
            coordinates: Coordinates = guide.coordinates(problem.arguments)
            sweeps = settings.steps or SWEEPING.sweeps
            found = best_of(coordinates, settings.restarts, seed, sweeps, report)
            reached = coordinates.parameters(found.factors)
            remarks = [] if found.status == "diverged" else coordinates.remarks(found.factors)
        with problem.session(seed) as state:
            begun = Start(torch.zeros(problem.space.dimension))
            called = guide.build(problem.space, begun)
            sites = read_guide(called, problem.arguments, problem.space)
            values = {
                f"guide.{name}": value.to(problem.device, problem.dtype)
                for name, value in reached.items()
            }
            parameters = Parameters(state, placed_values(values))
        history = np.asarray(found.elbo)
        several = found.tried > 1 and found.status != "diverged"
        return Fitted(
            problem=problem,
            guide=guide,
            callable=called,
            sites=sites,
            start=begun,
            parameters=parameters,
            trained=Trained(
                found.status,
                _reason(found),
                history,
                np.full(len(history), np.nan),
                0,
                time.perf_counter() - began,
                sum(value.numel() for value in reached.values()),
            ),
            objective=OBJECTIVE,
            engine=self.name,
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
