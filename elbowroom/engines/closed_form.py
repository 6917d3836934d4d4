"""Fits by steps in closed form: what expectation-maximisation and coordinate ascent end with."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbowroom.engines.protocol import Fitted, Trained
from elbowroom.engines.task import Plan, Task
from elbowroom.guides import Start
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import trace_model
from elbowroom.problem.isolation import Parameters, placed_values


def progress_of(task: Task) -> Callable[[int, int, float], None] | None:
    """A task's progress, as steps tell it that have no learning rate."""
    report = task.progress
    if report is None:
        return None
    return lambda step, most, elbo: report(step, most, elbo, math.nan)


def fitted_at(
    plan: Plan,
    values: Mapping[str, Tensor],
    status: str,
    reason: str,
    history: Sequence[float],
    began: float,
    **told: Any,
) -> Fitted:
    """The guide of a plan at the values that its steps reached.

    Args:
        plan: Model, guide, engine and seed.
        values: Of the parameters of model and guide; or, where the guide is one point, of all
            latent sites, which the guide then begins at and stays.
        status: How the steps ended; see `elbowroom.engines.protocol.Trained`.
        reason: The same as a sentence.
        history: The objective after each step.
        began: When the fit began, on the clock of `time.perf_counter`.
        told: What else is known; see `elbowroom.engines.protocol.Fitted`.
    """
    problem, guide = plan.problem, plan.guide
    space = problem.space
    with problem.session(plan.seed) as state:
        known = {name: v.to(problem.device, problem.dtype) for name, v in values.items()}
        of_sites = bool(space.sites) and {site.name for site in space.sites} <= set(known)
        begun = Start(space.unconstrain(known) if of_sites else torch.zeros(space.dimension))
        called = guide.build(space, begun)
        sites = read_guide(called, problem.arguments, space)
        trace_model(problem.function, problem.arguments)  # makes the model's own parameters
        parameters = Parameters(state, placed_values(known))
    climbed = np.asarray(history)
    trained = Trained(
        status,
        reason,
        climbed,
        np.full(len(climbed), np.nan),
        0,
        time.perf_counter() - began,
        space.dimension if of_sites else sum(value.numel() for value in known.values()),
    )
    return Fitted(
        problem=problem,
        guide=guide,
        callable=called,
        sites=sites,
        start=begun,
        parameters=parameters,
        trained=trained,
        objective=plan.objective,
        engine=plan.engine,
        **told,
    )
