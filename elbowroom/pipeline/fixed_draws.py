"""The deterministic way through the house: the ELBO over fixed draws, then importance sampling."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyro
import torch
from torch import Tensor

from elbowroom.density.density import Density
from elbowroom.density.landscape import LARGEST, Landscape, density_of, explore
from elbowroom.density.mixtures import Mixture
from elbowroom.density.point_parameters import Sample, maximise
from elbowroom.draws.adaptive import sampled, sampled_nested
from elbowroom.draws.correction import Correction, adapted, reweighted
from elbowroom.draws.of_guide import Draws
from elbowroom.engines.fixed_draws.approximations import (
    METHODS,
    SINGLE,
    WIDE,
    Approximation,
    linear_response,
    responses,
    wide,
)
from elbowroom.engines.fixed_draws.optima import PROPOSAL, Optimum
from elbowroom.engines.fixed_draws.optima import Draws as FixedDraws
from elbowroom.engines.settings import Settings
from elbowroom.engines.svi.loop import Trained
from elbowroom.errors import GuideError, OptionError
from elbowroom.guides import Guide, Start
from elbowroom.guides.auto import cholesky, scales, whitened
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import trace_model
from elbowroom.pipeline.concluding import Fitted, conclude
from elbowroom.pipeline.task import Plan, Task
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import Parameters, isolated, placed_values
from elbowroom.result import Fit

FEW_STARTS = 3
"""Where modes are sought again and again."""
DRAWS = 4000
"""Posterior draws by default."""
EVEN = 0.7
"""Effective draws for each draw of a wide guide with which no other draws are sought."""
MOST_NUMBERS = 20_000_000
"""In the draws of a posterior that is too wide for its covariance."""
OBJECTIVE = ("fixed_draws", "the ELBO over fixed draws, by a quasi-Newton method")


def why_not(problem: Problem, guide: Guide | None = None) -> str | None:
    """Why a problem cannot be fitted over fixed draws by a guide, or by any; None if it can."""
    space = problem.space
    if space.local_continuous:
        return "the model has continuous latents for each row"
    if not space.sites:
        return "the model has no continuous latent"
    if space.parameters.size:
        if space.dimension > LARGEST:
            return f"it has point parameters beside {space.dimension} latent dimensions"
        if space.parameters.why_not is not None:
            return space.parameters.why_not
    if guide is not None and guide.name not in WIDE and space.dimension > LARGEST:
        return f"the model has {space.dimension} latent dimensions, more than {LARGEST}"
    return None


def fit_fixed_draws(
    task: Task, guide: Guide, landscape: Landscape | None = None, begins: bool = False
) -> Fit:
    """Fits a Gaussian guide without stochastic gradients; see `elbowroom.api.fit`.

    Args:
        task: What is asked.
        guide: One of `METHODS`.
        landscape: If it is known.
        begins: Whether the guide was not asked for, and only begins importance sampling.

    Raises:
        OptionError: If the problem or the guide is for the other engine.
        GuideError: If the guide has no optimum.
    """
    if guide.name not in METHODS:
        raise OptionError(f"--engine fixed_draws: the guide '{guide.name}' needs --engine svi.")
    problem, settings, seed = task.problem, task.settings, task.seed
    reason = why_not(problem, guide)
    if reason is not None:
        raise OptionError(f"--engine fixed_draws: {reason}; fit with --engine svi.")
    if task.announce is not None:
        task.announce(Plan(problem, guide, settings, OBJECTIVE, seed, "fixed_draws"))
    landscape = landscape or survey(problem, settings.restarts, seed)
    began, random = time.perf_counter(), np.random.default_rng(seed)
    count = DRAWS if task.draws is None else task.draws
    choice = _choice(landscape, settings, begins)
    # Far out a value may overflow: it is judged by what it gives.
    with isolated(seed, dtype=torch.float64, threads=problem.threads), np.errstate(all="ignore"):
        if landscape.starts is not None:
            approximation, raw, correction = _wide(
                landscape, guide, settings, choice, count, random
            )
        else:
            found = approximate(landscape, guide.name, choice, random)
            approximation = found.approximation
            few = found.density.affordable(2 * count, 1000) // 2
            raw = _raw(found.density, approximation, few, random)
            assert landscape.curvature is not None
            importance = sampled(
                found.density, landscape.curvature, found.proposal, random, landscape.places
            )
            correction = adapted(importance, count)
    if landscape.likelihood is not None and not landscape.likelihood.converged:
        reason = f"{landscape.likelihood.climbs} climbs of the marginal likelihood were not enough."
        approximation = replace(approximation, status="budget", reason=reason)
    seconds = landscape.seconds + time.perf_counter() - began
    fitted = _as_pyro(problem, guide, approximation, landscape, seconds, seed)
    errors = approximation.errors
    if errors is not None:
        lacking = errors.lacking(choice)
        note = (
            f"the fixed draws tell {' and '.join(lacking)}: give more with --fixed-draws."
            if lacking
            else None
        )
        fitted = replace(fitted, loss=errors.loss, note=note)
    with problem.session(seed + 1, fitted.parameters):
        return conclude(task, fitted, raw, correction, landscape)


@dataclass(frozen=True)
class Approximated:
    """A Gaussian guide, and where importance sampling begins."""

    density: Density
    approximation: Approximation
    proposal: Mixture


def approximate(
    landscape: Landscape, method: str, choice: FixedDraws, random: np.random.Generator
) -> Approximated:
    """Fits a guide by name, and a proposal: linear response at every mode that matters."""
    assert landscape.density is not None
    asked = choice if method == "linear_response" else PROPOSAL
    optima = responses(landscape, random, asked)
    if method == "linear_response":
        approximation = linear_response(optima)
    else:
        approximation = SINGLE[method](landscape, random, choice)
    centres = _centres(optima)
    assert approximation.covariance is not None
    if method == "full_rank" and approximation.optimum is not None:
        centres[:1] = [(approximation.mean, approximation.covariance, approximation.optimum.elbo)]
    if not centres:
        centres = [(approximation.mean, approximation.covariance, 0.0)]
    return Approximated(landscape.density, approximation, _proposal(centres))


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


def survey(problem: Problem, restarts: int, seed: int) -> Landscape:
    """The same as `explore`, with point parameters at their maximum marginal likelihood.

    Raises:
        GuideError: If that cannot be had.
    """
    if not problem.space.parameters.size:
        return explore(problem, restarts, seed)
    began, random = time.perf_counter(), np.random.default_rng(seed)

    def sample(values: dict[str, Tensor]) -> Sample:
        found = explore(problem, min(restarts, FEW_STARTS), seed, values)
        centres = _centres(responses(found, random, PROPOSAL))
        if not centres or found.density is None or found.curvature is None:
            raise GuideError(
                "the latents have no mode given the point parameters (pyro.param); begin these at "
                "likelier values, or fit with --engine svi."
            )
        importance = sampled(found.density, found.curvature, _proposal(centres), random)
        return Sample(importance.points, importance.log_q)

    with isolated(seed, dtype=torch.float64, threads=problem.threads):
        joint = density_of(problem, with_parameters=True)
        if joint.how == "one by one":
            raise GuideError(
                "the model cannot be run for many draws at once, so that its marginal likelihood "
                "would take too long to maximise; fit with --engine svi."
            )
        likelihood = maximise(joint, sample)
    landscape = explore(problem, restarts, seed, likelihood.values)
    return replace(landscape, likelihood=likelihood, seconds=time.perf_counter() - began)


def _raw(
    density: Density, approximation: Approximation, count: int, random: np.random.Generator
) -> Draws:
    """Draws of a Normal."""
    distribution = approximation.distribution
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**62)))
        points = distribution.sample((count,))
    log_q = distribution.log_prob(points).numpy()
    return Draws(density.constrained(points.numpy()), density.value(points.numpy()), log_q)


def _wide(
    landscape: Landscape,
    guide: Guide,
    settings: Settings,
    choice: FixedDraws,
    count: int,
    random: np.random.Generator,
) -> tuple[Approximation, Draws, Correction]:
    """A guide, its draws and the corrected ones, where no covariance can be held whole."""
    density, curvature = landscape.density, landscape.curvature
    assert density is not None
    assert curvature is not None
    approximation = wide(landscape, guide.name, random, choice, settings.correlated)
    few = min(density.affordable(count, 1000), max(1000, MOST_NUMBERS // density.dimension))
    raw = _raw(density, approximation, few, random)
    assert approximation.response is not None
    correction = reweighted(raw.sites, raw.log_p, raw.log_q, few, random)
    if not (correction.usable and correction.effective > EVEN * few):
        nested = sampled_nested(density, curvature, approximation.response.normal, random)
        if nested is not None:
            correction = adapted(nested, min(count, few))
    return approximation, raw, correction


def _choice(landscape: Landscape, settings: Settings, begins: bool) -> FixedDraws:
    """The fixed draws that were asked for, an even number, or the default."""
    if settings.fixed_draws is not None:
        number = settings.fixed_draws + settings.fixed_draws % 2
        return FixedDraws(number, number, means_alone=begins)
    if begins:
        return PROPOSAL
    assert landscape.density is not None
    usual = FixedDraws()
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
        if found.response is not None:
            scale = _tensor(found.response.normal.scale, problem)
            factor = _tensor(found.response.normal.factor, problem)
            start = Start(_tensor(found.mean, problem), None, scale, factor)
        elif found.optimum is None or guide.name == "linear_response":
            assert found.covariance is not None
            precision = np.linalg.inv(found.covariance)
            start = Start(_tensor(found.mean, problem), _tensor(precision, problem))
        else:
            start = landscape.start()
        called = guide.build(problem.space, start)
        read_guide(called, problem.arguments, problem.space)
        if found.optimum is not None and guide.name in PARAMETERS:
            store = pyro.get_param_store()
            parameters = PARAMETERS[guide.name](problem, start, found.optimum.parameters)
            for name, value in parameters.items():
                store[name] = _tensor(value, problem).reshape(store[name].shape)
        if landscape.likelihood is not None:
            trace_model(problem.function, problem.arguments)  # makes the model's own parameters
        likelihood = landscape.likelihood
        values = placed_values({} if likelihood is None else likelihood.values)
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
        guide, called, start, Parameters(state, values), trained, OBJECTIVE, "fixed_draws",
        starts=starts,
    )  # fmt: skip


def _tensor(values: np.ndarray, problem: Problem) -> Tensor:
    return torch.as_tensor(values).to(problem.device, problem.dtype)


def _mean_field(problem: Problem, start: Start, parameters: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters of the guide of that name in `elbowroom.guides.auto`."""
    offset, log_ratio = map(torch.as_tensor, np.split(parameters, 2))
    free = {"log_ratio": log_ratio}
    found = {}
    if whitened(problem.space, start):
        found["guide.offset"] = _whitened(start, offset).numpy()
    else:
        free["offset"] = offset
    for name, values in free.items():
        for site, part in problem.space.split(values).items():
            found[f"guide.{site}.{name}"] = part.numpy()
    return found


def _whitened(start: Start, offset: Tensor) -> Tensor:
    """An offset in units of the scales at the start, in whitened coordinates."""
    moved = scales(start).cpu().double() * offset
    root = cholesky(start).cpu().double()
    return torch.linalg.solve_triangular(root, moved.unsqueeze(-1), upper=False).squeeze(-1)


def _full_rank(problem: Problem, start: Start, parameters: np.ndarray) -> dict[str, np.ndarray]:
    size = problem.space.dimension
    factor = np.diag(np.exp(parameters[size : 2 * size]))
    factor[np.tril_indices(size, -1)] = parameters[2 * size :]
    return {"guide.offset": parameters[:size], "guide.factor": factor}


def _low_rank(problem: Problem, start: Start, parameters: np.ndarray) -> dict[str, np.ndarray]:
    size = problem.space.dimension
    return {
        "guide.offset": _whitened(start, torch.as_tensor(parameters[:size])).numpy(),
        "guide.log_ratio": parameters[size : 2 * size],
        "guide.factor": parameters[2 * size :],
    }


PARAMETERS: dict[str, Callable[[Problem, Start, np.ndarray], dict[str, np.ndarray]]] = {
    "mean_field": _mean_field,
    "full_rank": _full_rank,
    "low_rank": _low_rank,
}
