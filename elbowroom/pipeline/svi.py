"""The stochastic way through the house: a guide fitted by the shared SVI runner."""

from dataclasses import replace

import pyro
import torch

from elbowroom.assess.checks import Subject, before_run
from elbowroom.density.landscape import Landscape, explore
from elbowroom.engines.settings import Settings, Way, check_read
from elbowroom.engines.svi.loop import run_svi
from elbowroom.errors import OptionError
from elbowroom.guides import Guide, Start, looks_amortised
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import trace_model
from elbowroom.objectives import get_objective
from elbowroom.objectives.elbo import (
    check_enumerable,
    choose_objective,
    make_objective,
    marked,
)
from elbowroom.pipeline.concluding import Fitted, draw_and_conclude
from elbowroom.pipeline.task import Plan, Task
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import (
    Parameters,
    parameter_values,
    set_parameter_values,
)
from elbowroom.result import Fit

UNDECLARED = (
    "the guide '{}' has no parameter for each row: if it is amortised, say so by "
    "guide.amortised = True, and rows held out tell when to stop, and new rows have latents."
)


def fit_stochastic(task: Task, guide: Guide, landscape: Landscape | None = None) -> Fit:
    """Fits a guide by stochastic gradients; see `elbowroom.api.fit`."""
    problem, settings, seed = task.problem, task.settings, task.seed
    fitted_to = problem.for_guide(guide)
    _rehearse(fitted_to, guide, settings, seed)
    sampled = settings.batch_size is not None
    climb = problem.model.engine != "svi"
    landscape = landscape or explore(problem, settings.restarts, seed, None, sampled, climb)
    problem, task = fitted_to, replace(task, problem=fitted_to)
    space, arguments = problem.space, problem.arguments
    with problem.session(seed) as state:
        start = landscape.start()
        called = guide.build(space, start)
        sites = read_guide(called, arguments, space)
        name, why = choose_objective(settings.elbo, guide.elbo, space, sites, settings.given)
        if get_objective(name).of_rows and not guide.amortised:
            raise OptionError(
                f"--elbo {name} shows the guide rows that the model made, and '{guide.name}' is "
                "not declared to be amortised; give an amortised guide (one of your own says so "
                "by guide.amortised = True), or --elbo trace_graph."
            )
        warnings = before_run(Subject(problem, guide, called, settings))
        if task.announce is not None:
            task.announce(Plan(problem, guide, settings, (name, why), seed, "svi"))
        trace_model(problem.function, arguments)  # makes the model's own parameters
        initial = parameter_values()
        local = space.row_latents(sites.names)
        if local and not guide.amortised and looks_amortised(initial, space):
            warnings.append(UNDECLARED.format(guide.name))
        try:
            trained = run_svi(
                *marked(name, problem.function, called),
                arguments,
                make_objective(name, settings.particles, space, settings.of_objective(name)),
                settings,
                space.subsampled,
                local and guide.amortised,
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
    found = draw_and_conclude(task, fitted, sites, landscape)
    return replace(found, remarks=[*found.remarks, *warnings])


def _rehearse(problem: Problem, guide: Guide, settings: Settings, seed: int) -> None:
    """Sees that model, guide and objective go together, before the search for a start."""
    with problem.session(seed):
        called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
        sites = read_guide(called, problem.arguments, problem.space)
        name, why = choose_objective(
            settings.elbo, guide.elbo, problem.space, sites, settings.given
        )
        if get_objective(name).several and settings.particles < 2:
            raise OptionError(
                f"--elbo {name} ({why}) takes several draws; give --particles 2 or more."
            )
        check_read(settings, [Way("svi", name, guide)])
        check_enumerable(problem.function, problem.arguments, problem.space, sites)
