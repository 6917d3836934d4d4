"""The way through the house by steps in closed form: expectation-maximisation of several starts."""

import math
import time
from dataclasses import replace

import numpy as np
import torch

from elbowroom.density.landscape import Landscape
from elbowroom.engines.em.expectation_maximisation import BUDGET, Found, Steps, best_of
from elbowroom.engines.svi.loop import Trained
from elbowroom.guides import Guide, Start
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import trace_model
from elbowroom.pipeline.concluding import Fitted, draw_and_conclude
from elbowroom.pipeline.task import Plan, Task
from elbowroom.problem.isolation import Parameters, isolated, placed_values
from elbowroom.result import Fit

EM = "em"
"""The name of the engine, and of the guides that it fits."""
OBJECTIVE = (EM, "the log likelihood, by expectation and maximisation in turn")


def fit_em(task: Task, guide: Guide) -> Fit:
    """Fits a guide whose steps are known in closed form; see `elbowroom.api.fit`.

    Raises:
        OptionError: If a setting asks for what the steps do not have.
    """
    problem, settings, seed = task.problem.for_guide(guide), task.settings, task.seed
    task = replace(task, problem=problem)
    assert guide.steps is not None
    if task.announce is not None:
        task.announce(Plan(problem, guide, settings, OBJECTIVE, seed, EM))
    began = time.perf_counter()

    def report(step: int, budget: int, elbo: float) -> None:
        if task.progress is not None:
            task.progress(step, budget, elbo, math.nan)

    with isolated(seed, dtype=torch.float64, threads=problem.threads):
        steps: Steps = guide.steps(problem.arguments, list(problem.prepared.coords["column"]))
        found = best_of(steps, settings.restarts, seed, settings.steps or BUDGET, report)
        reached, remarks = steps.sites(found.values), steps.remarks(found.values, found.expected)
    closing = bool(remarks)
    if found.status == "diverged":
        remarks = []
    elif found.dropped:
        remarks.append(
            f"{found.dropped} of {found.tried} starts were dropped: a part of the model closed in "
            "on few rows, where the likelihood grows without end."
        )
    if guide.point and found.status != "diverged":
        remarks.append(f"{found.reached} of {found.tried} starts reached the best maximum.")
    with problem.session(seed) as state:
        space = problem.space
        values = {k: v.to(problem.device, problem.dtype) for k, v in reached.items()}
        of_sites = {site.name for site in space.sites} <= set(values)
        location = space.unconstrain(values) if of_sites else torch.zeros(space.dimension)
        start = Start(location)
        called = guide.build(space, start)
        sites = read_guide(called, problem.arguments, space)
        trace_model(problem.function, problem.arguments)  # makes the model's own parameters
        parameters = Parameters(state, placed_values(values))
    history = np.asarray(found.elbo)
    free = space.dimension if of_sites else space.parameters.size
    trained = Trained(
        found.status, _reason(found, steps), history, np.full(len(history), np.nan), 0,
        time.perf_counter() - began, free,
    )  # fmt: skip
    agreeing = None if found.status == "diverged" else (found.reached, found.tried)
    fitted = Fitted(guide, called, start, parameters, trained, OBJECTIVE, EM, guide.point, agreeing)
    first = location.double().cpu().numpy()
    fit = draw_and_conclude(task, fitted, sites, Landscape(None, None, [], 0, first, 0.0))
    doubtful = found.status == "diverged" or closing
    more = "" if found.status == "converged" else "give more --steps."
    mend = steps.mend if doubtful else more
    maximum = fit.evidence.maximum if found.status == "converged" else ""  # or the status says it
    evidence = replace(fit.evidence, mend=mend, maximum=maximum)
    return replace(fit, remarks=[*fit.remarks, *remarks], evidence=evidence)


def _reason(found: Found, steps: Steps) -> str:
    count = len(found.elbo)
    if found.status == "diverged":
        return (
            f"the likelihood has no maximum: from each of {found.tried} starts a part closed in; "
            f"from the first, {found.cause} {steps.mend[:1].upper()}{steps.mend[1:]}"
        )
    return {
        "converged": f"the log likelihood no longer rose after {count} steps.",
        "budget": f"stopped at the budget of {count} steps: the log likelihood still rose; give "
        "more with --steps.",
        "interrupted": f"interrupted after {count} steps; what was fitted so far is kept.",
    }[found.status]
