"""Deterministic variational inference: the ELBO over fixed draws, by a quasi-Newton method."""

import time
from dataclasses import replace

import numpy as np
import pyro
import torch
from torch import Tensor

from elbowroom.density.density import Density
from elbowroom.density.landscape import Landscape, density_of, explore, unclimbed
from elbowroom.density.mixtures import Mixture
from elbowroom.density.modes import Mode
from elbowroom.density.point_parameters import Sample, maximise
from elbowroom.draws.refining import sampled
from elbowroom.engines.fixed_draws.approximations import (
    Approximation,
    by_chains,
    fitted,
    linear_response,
    responses,
    wide,
    without_mode,
)
from elbowroom.engines.fixed_draws.optima import PROPOSAL, Draws, Optimum
from elbowroom.engines.protocol import Fitted, Gaussian, Trained
from elbowroom.engines.settings import Settings
from elbowroom.engines.task import Plan, Task
from elbowroom.errors import GuideError, OptionError, OutOfTimeError
from elbowroom.guides import Guide, Start
from elbowroom.guides.families import Flat
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import trace_model
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import Parameters, isolated, placed_values
from elbowroom.sizes import SIZES

FEW_STARTS = 3
"""Where modes are sought again and again."""
OBJECTIVE = ("fixed_draws", "the ELBO over fixed draws, by a quasi-Newton method")


def why_not(problem: Problem, guide: Guide | None = None) -> str | None:
    """Why a problem cannot be fitted over fixed draws by a guide, or by any; None if it can."""
    space = problem.space
    if space.local_continuous:
        return "the model has continuous latents for each row"
    if not space.sites:
        return "the model has no continuous latent"
    if space.parameters.size:
        if space.dimension > SIZES.dense:
            return (
                f"the model has point parameters and {space.dimension} latent dimensions, more "
                f"than {SIZES.dense}"
            )
        if space.parameters.why_not is not None:
            return space.parameters.why_not
    declared = None if guide is None else guide.fixed_draws
    if declared is not None and not declared.wide and space.dimension > SIZES.dense:
        return f"the model has {space.dimension} latent dimensions, more than {SIZES.dense}"
    return None


class FixedDraws:
    """See `elbowroom.engines.protocol.Engine`."""

    name = "fixed_draws"
    draws = 4000
    stochastic = False
    explores = True

    def plan(self, task: Task, guide: Guide) -> Plan:
        """The ELBO over fixed draws, if the engine fits the guide to the model."""
        if guide.fixed_draws is None:
            raise OptionError(f"--engine fixed_draws: the guide '{guide.name}' needs --engine svi.")
        reason = why_not(task.problem, guide)
        if reason is not None:
            raise OptionError(f"--engine fixed_draws: {reason}; fit with --engine svi.")
        return Plan(task.problem, guide, task.settings, OBJECTIVE, task.seed, self.name)

    def start(self, task: Task, guide: Guide) -> Landscape:
        """All modes, with point parameters at their maximum marginal likelihood."""
        declared, points = guide.fixed_draws, task.problem.space.parameters
        if declared is not None and declared.chains and not points.size:
            return unclimbed(task.problem, task.seed, density=task.density)
        return survey(task.problem, task.settings.restarts, task.seed, task.density)

    def fit(self, task: Task, guide: Guide, start: Landscape) -> Fitted:
        """The guide at the optimum of its ELBO over fixed draws."""
        problem, settings, seed = task.problem, task.settings, task.seed
        began, random = time.perf_counter(), np.random.default_rng(seed)
        choice = _choice(start, settings, task.begins)
        # Far out a value may overflow: it is judged by what it gives.
        with (
            isolated(seed, dtype=torch.float64, threads=problem.threads),
            np.errstate(all="ignore"),
        ):
            if guide.fixed_draws is not None and guide.fixed_draws.chains:
                found = by_chains(start, random)
                gaussian = Gaussian(found.distribution, chains=found.chains)
            elif start.starts is not None:
                found = wide(start, guide, random, choice, settings.correlated)
                gaussian = Gaussian(found.distribution, low_rank=found.low_rank)
            else:
                found, proposal = approximate(start, guide, choice, random)
                gaussian = Gaussian(found.distribution, proposal)
        if start.likelihood is not None and not start.likelihood.converged:
            reason = (
                "the maximum of the point parameters' marginal likelihood was not reached in "
                f"{start.likelihood.climbs} rounds."
            )
            found = replace(found, status="budget", reason=reason)
        seconds = start.seconds + time.perf_counter() - began
        fitted = _as_pyro(problem, guide, found, start, seconds, seed)
        errors = found.errors
        if errors is None:
            return replace(fitted, gaussian=gaussian)
        rough = errors.too_rough(choice)
        remarks = (
            (f"the fixed draws are too few: {' and '.join(rough)}. Give more --fixed-draws.",)
            if rough
            else ()
        )
        return replace(fitted, gaussian=gaussian, loss=errors.loss, remarks=remarks)


def approximate(
    landscape: Landscape, guide: Guide, choice: Draws, random: np.random.Generator
) -> tuple[Approximation, Mixture]:
    """Fits a guide, and a proposal: linear response at every mode that matters."""
    declared = guide.fixed_draws
    assert declared is not None
    responding = declared.family is None and declared.search is None
    try:
        optima = responses(landscape, random, choice if responding else PROPOSAL)
    except OutOfTimeError:
        if not (responding and landscape.proper):
            raise
        return _of_curvature(landscape.proper)
    edge = None
    if responding and landscape.best is None and not any(each.reached for each in optima):
        edge = without_mode(landscape, random)
    if edge is not None:
        approximation, optima = edge, []
    elif responding:
        approximation = linear_response(optima)
    else:
        approximation = fitted(landscape, guide, random, choice)
    centres = _centres(optima)
    assert approximation.covariance is not None
    if declared.proposes and approximation.optimum is not None:
        centres[:1] = [(approximation.mean, approximation.covariance, approximation.optimum.elbo)]
    if not centres:
        centres = [(approximation.mean, approximation.covariance, 0.0)]
    return approximation, _proposal(centres)


def _of_curvature(modes: list[Mode]) -> tuple[Approximation, Mixture]:
    """The Normal of the curvature at the best mode, and those at all of them as a proposal."""
    centres = [
        (mode.location, np.linalg.inv(mode.precision), mode.log_evidence)
        for mode in modes
        if mode.precision is not None
    ]
    mean, covariance, _ = centres[0]
    reason = (
        "the time was over before an ELBO had an optimum: the guide is the Normal with the "
        "curvature at the posterior's mode."
    )
    return Approximation(mean, covariance, "budget", reason), _proposal(centres)


Centre = tuple[np.ndarray, np.ndarray, float]
"""Mean, covariance and ELBO of a Normal."""


def _centres(optima: list[Optimum]) -> list[Centre]:
    return [(optimum.mean, optimum.covariance, optimum.elbo) for optimum in optima]


def _proposal(centres: list[Centre]) -> Mixture:
    elbos = np.array([elbo for *_, elbo in centres])
    return Mixture.of(
        np.maximum(np.exp(elbos - elbos.max()), 0.05),
        np.stack([mean for mean, *_ in centres]),
        np.stack([covariance for _, covariance, _ in centres]),
    )


def survey(problem: Problem, restarts: int, seed: int, density: Density | None = None) -> Landscape:
    """The same as `explore`, with point parameters at their maximum marginal likelihood.

    Args:
        problem: The model bound to its data.
        restarts: How many starts.
        seed: Of the starts.
        density: The problem's, where it has no point parameters and is recorded already.

    Raises:
        GuideError: If that cannot be had.
    """
    if not problem.space.parameters.size:
        return explore(problem, restarts, seed, density=density)
    began, random = time.perf_counter(), np.random.default_rng(seed)

    def sample(values: dict[str, Tensor]) -> Sample:
        found = explore(problem, min(restarts, FEW_STARTS), seed, values)
        centres = _centres(responses(found, random, PROPOSAL))
        if not centres or found.density is None or found.curvature is None:
            raise GuideError(
                "given the initial values of the point parameters (pyro.param), the latents "
                "have no mode; choose better initial values, or fit with --engine svi."
            )
        importance = sampled(found.density, found.curvature, _proposal(centres), random)
        return Sample(importance.points, importance.log_q)

    with isolated(seed, dtype=torch.float64, threads=problem.threads):
        joint = density_of(problem, with_parameters=True)
        if joint.how == "one by one":
            raise GuideError(
                "the model cannot be run for many draws at once, so maximising its marginal "
                "likelihood would take too long; fit with --engine svi."
            )
        likelihood = maximise(joint, sample)
    landscape = explore(problem, restarts, seed, likelihood.values)
    return replace(landscape, likelihood=likelihood, seconds=time.perf_counter() - began)


def _choice(landscape: Landscape, settings: Settings, begins: bool) -> Draws:
    """The fixed draws that were asked for, an even number, or the default."""
    if settings.fixed_draws is not None:
        number = settings.fixed_draws + settings.fixed_draws % 2
        return Draws(number, number, means_alone=begins)
    if begins:
        return PROPOSAL
    assert landscape.density is not None
    usual = Draws()
    return replace(usual, most=landscape.density.affordable(usual.most, usual.first))


def _as_pyro(
    problem: Problem,
    guide: Guide,
    found: Approximation,
    landscape: Landscape,
    seconds: float,
    seed: int,
) -> Fitted:
    """The Pyro guide with the parameters that were found."""
    with problem.session(seed) as state:
        if found.low_rank is not None:
            scale = _tensor(found.low_rank.scale, problem)
            factor = _tensor(found.low_rank.factor, problem)
            start = Start(_tensor(found.mean, problem), None, scale, factor)
        elif found.family is None:
            assert found.covariance is not None
            precision = np.linalg.inv(found.covariance)
            start = Start(_tensor(found.mean, problem), _tensor(precision, problem))
        else:
            start = landscape.start()
        called = guide.build(problem.space, start)
        sites = read_guide(called, problem.arguments, problem.space)
        if found.family is not None and found.optimum is not None:
            store = pyro.get_param_store()
            flat = Flat(found.family(problem.space, start))
            values = flat.values(torch.as_tensor(found.optimum.parameters))
            for name, value in values.items():
                store[f"guide.{name}"] = value.to(problem.device, problem.dtype)
        if landscape.likelihood is not None:
            trace_model(problem.function, problem.arguments)  # makes the model's own parameters
        likelihood = landscape.likelihood
        placed = placed_values({} if likelihood is None else likelihood.values)
    history = np.asarray(found.history)
    trained = Trained(
        found.status,
        found.reason,
        history,
        np.full(len(history), np.nan),
        0,
        seconds,
        found.parameters,
    )
    starts = None
    if found.response is not None:
        starts = found.response.agreeing, found.response.tried
    return Fitted(
        problem=problem,
        guide=guide,
        callable=called,
        sites=sites,
        start=start,
        parameters=Parameters(state, placed),
        trained=trained,
        objective=OBJECTIVE,
        engine="fixed_draws",
        starts=starts,
    )


def _tensor(values: np.ndarray, problem: Problem) -> Tensor:
    return torch.as_tensor(values).to(problem.device, problem.dtype)
