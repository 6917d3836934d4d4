"""Expectation-maximisation: steps in closed form, from several starts."""

import time

import numpy as np
import torch

from elbowroom.density.landscape import Landscape
from elbowroom.engines.closed_form import fitted_at, progress_of
from elbowroom.engines.em.expectation_maximisation import ASCENT, Found, Steps, best_of
from elbowroom.engines.protocol import Fitted
from elbowroom.engines.task import Plan, Task
from elbowroom.guides import Guide
from elbowroom.problem.isolation import isolated

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
        plan, settings = self.plan(task, guide), task.settings
        problem = plan.problem
        assert guide.steps is not None
        began = time.perf_counter()
        with isolated(task.seed, dtype=torch.float64, threads=problem.threads):
            steps: Steps = guide.steps(problem.arguments, list(problem.prepared.coords["column"]))
            most = settings.steps or ASCENT.budget
            found = best_of(steps, settings.restarts, task.seed, most, progress_of(task))
            reached = steps.sites(found.values)
            remarks = steps.remarks(found.values, found.expected)
        diverged = found.status == "diverged"
        if diverged or remarks:
            remedy = steps.remedy
        else:
            remedy = "" if found.status == "converged" else "give more --steps."
        return fitted_at(
            plan,
            reached,
            found.status,
            _reason(found, guide),
            found.elbo,
            began,
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
