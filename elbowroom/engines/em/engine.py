"""Expectation-maximisation: steps in closed form, from several starts."""

import math
import time

import numpy as np
import torch

from elbowroom.density.landscape import Landscape
from elbowroom.engines.em.expectation_maximisation import ASCENT, Found, Steps, best_of
from elbowroom.engines.protocol import Fitted, Trained
from elbowroom.engines.task import Plan, Task
from elbowroom.guides import Guide, Start
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import trace_model
from elbowroom.problem.isolation import Parameters, isolated, placed_values

OBJECTIVE = ("em", "the log likelihood, by expectation-maximisation")
HARD = ("em", "the log likelihood of rows and components, by hard expectation-maximisation")


def _objective(guide: Guide) -> tuple[str, str]:
    return HARD if guide.hard else OBJECTIVE


class ExpectationMaximisation:
    """See `elbowroom.engines.protocol.Engine`."""

    name = "em"
    draws = 2000
    stochastic = False
    explores = False

    def plan(self, task: Task, guide: Guide) -> Plan:
        """The steps that the guide declares."""
        problem = task.problem.for_guide(guide)
        objective = _objective(guide)
        return Plan(problem, guide, task.settings, objective, task.seed, self.name)

    def start(self, task: Task, guide: Guide) -> Landscape:
        """The origin: the steps have starts of their own."""
        first = np.zeros(task.problem.for_guide(guide).space.dimension)
        return Landscape(None, None, [], 0, first, 0.0)

    def fit(self, task: Task, guide: Guide, start: Landscape) -> Fitted:
        """The best maximum that several starts reach."""
        problem, settings, seed = task.problem.for_guide(guide), task.settings, task.seed
        assert guide.steps is not None
        began = time.perf_counter()

        def report(step: int, budget: int, elbo: float) -> None:
            if task.progress is not None:
                task.progress(step, budget, elbo, math.nan)

        with isolated(seed, dtype=torch.float64, threads=problem.threads):
            steps: Steps = guide.steps(problem.arguments, list(problem.prepared.coords["column"]))
            found = best_of(steps, settings.restarts, seed, settings.steps or ASCENT.budget, report)
            reached = steps.sites(found.values)
            remarks = steps.remarks(found.values, found.expected)
        with problem.session(seed) as state:
            space = problem.space
            values = {k: v.to(problem.device, problem.dtype) for k, v in reached.items()}
            of_sites = {site.name for site in space.sites} <= set(values)
            location = space.unconstrain(values) if of_sites else torch.zeros(space.dimension)
            begun = Start(location)
            called = guide.build(space, begun)
            sites = read_guide(called, problem.arguments, space)
            trace_model(problem.function, problem.arguments)  # makes the model's own parameters
            parameters = Parameters(state, placed_values(values))
        history = np.asarray(found.elbo)
        diverged = found.status == "diverged"
        if diverged or remarks:
            remedy = steps.remedy
        else:
            remedy = "" if found.status == "converged" else "give more --steps."
        return Fitted(
            problem=problem,
            guide=guide,
            callable=called,
            sites=sites,
            start=begun,
            parameters=parameters,
            trained=Trained(
                found.status,
                _reason(found, guide),
                history,
                np.full(len(history), np.nan),
                0,
                time.perf_counter() - began,
                space.dimension if of_sites else space.parameters.size,
            ),
            objective=_objective(guide),
            engine=self.name,
            point=guide.point,
            starts=None if diverged else (found.reached, found.tried),
            remarks=() if diverged else (*remarks, *_of_starts(found, guide)),
            remedy=remedy,
            # Else the status says it; and hard steps do not seek that of the likelihood.
            seeks_maximum=found.status == "converged" and not guide.hard,
        )


def _of_starts(found: Found, guide: Guide) -> list[str]:
    """What became of the starts."""
    said = []
    if found.dropped:
        said.append(
            f"{found.dropped} of {found.tried} climbs were dropped: a part of the model "
            "collapsed, and the likelihood grew without limit."
        )
    if guide.point:
        said.append(f"{found.reached} of {found.tried} climbs ended at the best maximum.")
    return said


def _reason(found: Found, guide: Guide) -> str:
    count = len(found.elbo)
    risen = "log likelihood of rows and components" if guide.hard else "log likelihood"
    if found.status == "diverged":
        return (
            "the likelihood has no maximum: a part of the model collapsed in each of "
            f"{found.tried} climbs. In the first, {found.cause}"
        )
    return {
        "converged": f"converged after {count:,} steps: the {risen} no longer rose.",
        "budget": f"stopped at the budget of {count:,} steps: the {risen} still rose.",
        "interrupted": f"interrupted after {count:,} steps; what was fitted so far is kept.",
    }[found.status]
