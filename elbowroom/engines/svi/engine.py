"""Stochastic variational inference: any model, guide and objective, by the shared SVI runner."""

from dataclasses import replace

import pyro
import torch

from elbowroom import budget
from elbowroom.density.landscape import Landscape, explore, unexplored
from elbowroom.engines.protocol import Fitted
from elbowroom.engines.settings import Way, check_read
from elbowroom.engines.svi.checks import Subject, before_run
from elbowroom.engines.svi.loop import run_svi
from elbowroom.engines.task import Plan, Task
from elbowroom.errors import OptionError, OutOfTimeError
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
from elbowroom.problem.isolation import (
    Parameters,
    parameter_values,
    set_parameter_values,
)
from elbowroom.problem.leaves import unfitted

UNDECLARED = (
    "the guide '{}' has no parameters of its own for each row. If it is amortised, set "
    "guide.amortised = True: held-out rows then decide when to stop."
)


class Stochastic:
    """See `elbowroom.engines.protocol.Engine`."""

    name = "svi"
    draws = 2000
    stochastic = True
    explores = True

    def plan(self, task: Task, guide: Guide) -> Plan:
        """The objective, if model, guide and options go together."""
        problem, settings = task.problem.for_guide(guide), task.settings
        with problem.session(task.seed):
            called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
            sites = read_guide(called, problem.arguments, problem.space)
            name, why = choose_objective(
                settings.elbo, guide.elbo, problem.space, sites, settings.given
            )
            if get_objective(name).several and settings.particles < 2:
                raise OptionError(
                    f"--elbo {name} ({why}) needs several draws; give --particles 2 or more."
                )
            check_read(settings, [Way(self.name, name, guide)])
            check_enumerable(problem.function, problem.arguments, problem.space, sites)
        return Plan(problem, guide, settings, (name, why), task.seed, self.name)

    def start(self, task: Task, guide: Guide) -> Landscape:
        """The best mode that climbs find, of some of the rows where these are very many."""
        problem, settings = task.problem, task.settings
        sampled, climb = settings.batch_size is not None, problem.model.engine != self.name
        try:
            return explore(problem, settings.restarts, task.seed, None, sampled, climb)
        except OutOfTimeError:
            return unexplored(problem)

    def fit(self, task: Task, guide: Guide, start: Landscape) -> Fitted:
        """The guide where the ELBO no longer rises, as far as its noise allows to tell."""
        problem, settings, seed = task.problem.for_guide(guide), task.settings, task.seed
        space, arguments = problem.space, problem.arguments
        with problem.session(seed) as state:
            begun = start.start()
            called = guide.build(space, begun)
            sites = read_guide(called, arguments, space)
            name, why = choose_objective(settings.elbo, guide.elbo, space, sites, settings.given)
            if get_objective(name).of_rows and not guide.amortised:
                raise OptionError(
                    f"--elbo {name} trains the guide on rows drawn from the model, which needs "
                    f"an amortised guide, and '{guide.name}' is not declared to be one. Give an "
                    "amortised guide (for your own, set guide.amortised = True), or --elbo "
                    "trace_graph."
                )
            warnings = before_run(Subject(problem, guide, called, settings))
            trace_model(problem.function, arguments)  # makes the model's own parameters
            initial = parameter_values()
            local = space.row_latents(sites.names)
            if local and not guide.amortised and looks_amortised(initial, space):
                warnings.append(UNDECLARED.format(guide.name))
            try:
                trained = run_svi(
                    *marked(name, problem.function, called),
                    arguments,
                    make_objective(
                        name, settings.particles, space, settings.of_objective(name)
                    ),
                    settings,
                    space.subsampled,
                    local and guide.amortised,
                    task.progress,
                    task.checkpoints,
                )  # fmt: skip
                values = parameter_values()
            finally:  # a network of the user's is left as it was
                set_parameter_values(dict(pyro.get_param_store().named_parameters()), initial)
        cut = trained.status == "budget" and budget.over()
        said = get_objective(name).said(settings.of_objective(name))
        notes = list(warnings)
        if trained.eager is not None:
            notes.append(
                f"the steps ran without a recording, so the fit was slower: {trained.eager}."
            )
        if trained.uncompiled is not None:
            notes.append(f"the steps were not compiled: {trained.uncompiled}.")
        if trained.unfitted:
            said_of = unfitted(trained.unfitted)
            notes.append(said_of[0].upper() + said_of[1:])
        if start.agreement is not None:
            notes.append(start.agreement)
        return Fitted(
            problem=problem,
            guide=guide,
            callable=called,
            sites=sites,
            start=begun,
            parameters=Parameters(state, values),
            trained=replace(trained, seconds=trained.seconds + start.seconds),
            objective=(name, why),
            engine=self.name,
            point=guide.point or sites.point,
            remarks=tuple(notes),
            remedy="give a longer --time." if cut else "",
            said=(said,) if said else (),
        )
