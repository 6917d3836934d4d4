"""The stochastic way through the house: a guide fitted by the shared SVI runner."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from elbowroom.concluding import Fitted, conclude
from elbowroom.diagnostics.checks import Subject, before_run
from elbowroom.diagnostics.latent_health import latent_health
from elbowroom.errors import OptionError
from elbowroom.fitted import Fit
from elbowroom.guides import Guide, Start
from elbowroom.guides.space import LatentSpace, trace_model
from elbowroom.inference.densities.importance import (
    effective_sample_size,
    k_hat_threshold,
    pareto_k_hat,
)
from elbowroom.inference.densities.landscape import Landscape, explore
from elbowroom.inference.isolation import (
    Parameters,
    parameter_values,
    set_parameter_values,
)
from elbowroom.inference.problem import Problem
from elbowroom.inference.stochastic.elbo import (
    OBJECTIVES,
    check_enumerable,
    choose_objective,
    make_objective,
    marked,
    read_guide,
)
from elbowroom.inference.stochastic.settings import Settings
from elbowroom.inference.stochastic.svi import run_svi
from elbowroom.plan import Plan, Task
from elbowroom.posterior.correction import Correction, reweighted
from elbowroom.posterior.draws import Draws, draw
from elbowroom.posterior.row_weights import (
    RowCorrection,
    corrected_rows,
    weigh_rows,
)

DRAWS = 2000
"""Posterior draws by default."""
MOST_DRAWS = 8
"""Times as many that are weighed, where the weights are uneven."""
ROW_DRAWS = 4
"""Times as many that are weighed of each row, where all latents are the rows'."""
MOST_NUMBERS = 40_000_000
"""Numbers in those."""
ENOUGH = 1000.0
"""Effective draws at which no more are weighed."""


def fit_stochastic(task: Task, guide: Guide, landscape: Landscape | None = None) -> Fit:
    """Fits a guide by stochastic gradients; see `elbowroom.fitting.fit`."""
    problem, settings, seed = task.problem, task.settings, task.seed
    _rehearse(problem, guide, settings, seed)
    sampled = settings.batch_size is not None
    climb = problem.model.engine != "svi"
    landscape = landscape or explore(problem, settings.restarts, seed, None, sampled, climb)
    space, arguments = problem.space, problem.arguments
    with problem.session(seed) as state:
        start = landscape.start()
        called = guide.build(space, start)
        sites = read_guide(called, arguments, space)
        name, why = choose_objective(settings.elbo, guide.elbo, space, sites, settings.free_bits)
        if OBJECTIVES[name].of_rows and not _amortised(guide, parameter_values(), space):
            raise OptionError(
                f"--elbo {name} shows the guide rows that the model made, and '{guide.name}' has "
                "parameters for each fitted row; give an amortised guide, or --elbo trace_graph."
            )
        warnings = before_run(Subject(problem, guide, called, settings))
        if task.announce is not None:
            task.announce(Plan(problem, guide, settings, (name, why), seed, "svi"))
        trace_model(problem.function, arguments)  # makes the model's own parameters
        initial = parameter_values()
        try:
            trained = run_svi(
                *marked(name, problem.function, called),
                arguments,
                make_objective(
                    name, settings.particles, space, alpha=settings.alpha,
                    baseline=settings.baseline, free_bits=settings.free_bits,
                    insomnia=settings.insomnia,
                ),
                settings,
                space.subsampled,
                space.row_latents,
                task.progress,
                task.checkpoints,
            )  # fmt: skip
            values = parameter_values()
        finally:  # a network of the user's is left as it was
            set_parameter_values(dict(pyro.get_param_store().named_parameters()), initial)
    trained = replace(trained, seconds=trained.seconds + landscape.seconds)
    parameters = Parameters(state, values)
    point = guide.point or sites.point
    fitted = Fitted(guide, called, start, parameters, trained, (name, why), "svi", point)
    count = DRAWS if task.draws is None else task.draws
    with problem.session(seed + 1, parameters):
        random = np.random.default_rng(seed)
        correction: Correction | RowCorrection | None = None
        health: dict[str, Any] = {}
        said: list[str] = []
        if space.rows_only and not point and set(space.discrete) <= sites.discrete:
            weighed = weigh_rows(
                problem.function, called, arguments, space, _weighed(count, space),
                space.local,
            )  # fmt: skip
            raw = weighed.together.first(count)
            correction = corrected_rows(weighed, count, random)
            health, said = latent_health(
                problem.function, called, arguments, space, weighed,
                amortised=_amortised(guide, values, space),
            )  # fmt: skip
        else:
            raw = draw(problem.function, called, arguments, space, count)
            if not point:
                more = raw
                while _wasteful(more) and len(more.log_p) < MOST_DRAWS * count:
                    again = draw(problem.function, called, arguments, space, len(more.log_p))
                    more = more.followed_by(again)
                correction = reweighted(more.sites, more.log_p, more.log_q, count, random)
        found = conclude(task, fitted, raw, correction, landscape)
    found.measures.update(health)
    evidence = replace(found.evidence, health=tuple(said))
    return replace(found, remarks=[*found.remarks, *warnings], evidence=evidence)


def _amortised(guide: Guide, parameters: Mapping[str, Tensor], space: LatentSpace) -> bool:
    """Whether a guide is declared to be amortised, or no parameter has a part for each row."""
    rows = space.subsampled
    shapes = [value.shape for value in parameters.values()]
    return guide.amortised or rows is None or not any(rows.size in shape for shape in shapes)


def _weighed(count: int, space: LatentSpace) -> int:
    """Draws of each row that are weighed: a few times as many, where memory allows."""
    return max(count, min(ROW_DRAWS * count, MOST_NUMBERS // max(space.dimension, 1)))


def _wasteful(drawn: Draws) -> bool:
    """Whether the weights are good, but so uneven that more draws are worth their while."""
    k_hat = pareto_k_hat(drawn.log_weights)
    few = effective_sample_size(drawn.log_weights) < ENOUGH
    return few and k_hat <= k_hat_threshold(len(drawn.log_p))


def _rehearse(problem: Problem, guide: Guide, settings: Settings, seed: int) -> None:
    """Sees that model, guide and objective go together, before the search for a start."""
    with problem.session(seed):
        called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
        sites = read_guide(called, problem.arguments, problem.space)
        name, why = choose_objective(
            settings.elbo, guide.elbo, problem.space, sites, settings.free_bits
        )
        if OBJECTIVES[name].several and settings.particles < 2:
            raise OptionError(
                f"--elbo {name} ({why}) takes several draws; give --particles 2 or more."
            )
        check_enumerable(problem.function, problem.arguments, problem.space, sites)
