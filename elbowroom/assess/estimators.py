"""Bias, noise and cost of every gradient estimator that a model and a guide can have."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch

from elbowroom.assess.prior_sampling import evidence_by_sampling
from elbowroom.commands import EstimatorOptions
from elbowroom.density.landscape import explore
from elbowroom.engines.settings import Settings
from elbowroom.engines.svi.loop import Optimisation, unconstrained_parameters
from elbowroom.engines.svi.stepping import FlatParameters, Step
from elbowroom.errors import OptionError
from elbowroom.guides import Guide
from elbowroom.guides.sites import GuideSites, read_guide
from elbowroom.guides.space import trace_model
from elbowroom.objectives import baselines, get_objective, objectives
from elbowroom.objectives.elbo import (
    choose_objective,
    make_objective,
    marked,
    refusals,
)
from elbowroom.objectives.minibatches import Minibatches
from elbowroom.problem.bound import Problem


@dataclass(frozen=True)
class Sampling:
    """How many gradients are drawn."""

    exact_factor: int = 5
    """The gradients of the least noisy estimator whose mean stands for the exact gradient, as a
    multiple of those of each estimator."""
    several_draws: int = 8
    """Draws of the bounds that take several."""
    warm_up: int = 300
    """Evaluations before those that count, in which baselines are learned."""
    evidence_draws: int = 4000
    """Draws of the prior, and of the guide at the end, by which the evidence is estimated."""
    biased_errors: float = 3.5
    """Standard errors of a mean gradient from the exact one above which it is called biased."""


SAMPLING = Sampling()

OWN = "baseline."
"""What the names of a baseline's own parameters begin with."""


@dataclass(frozen=True)
class Estimator:
    """A way to estimate a gradient.

    Attributes:
        objective: Its name.
        options: The objective's own.
        variant: What these are called, among others of the objective; "" for the only ones.
        particles: Draws of each estimate.
    """

    objective: str
    options: Any = None
    variant: str = ""
    particles: int = 1

    @property
    def name(self) -> str:
        """As it is shown."""
        several = f"{self.particles} draws" if self.particles > 1 else ""
        return ", ".join(part for part in (self.objective, self.variant, several) if part)

    @property
    def of_the_elbo(self) -> bool:
        """Whether it estimates the gradient of the ELBO, and not of another bound."""
        return not get_objective(self.objective).several


def applicable(problem: Problem, sites: GuideSites, settings: Settings) -> list[Estimator]:
    """The estimators that a model and a guide can have."""
    found = []
    for name, kind in objectives().items():
        if not kind.of_its_loss:
            continue
        if kind.of_scores and not (sites.discrete or sites.rough):
            continue  # the same as trace
        if any(refusals(kind, problem.space, sites)):
            continue
        several = (
            max(settings.particles, SAMPLING.several_draws) if kind.several else settings.particles
        )
        variants = kind.variants() or {"": settings.of_objective(name)}
        for variant, options in variants.items():
            found.append(Estimator(name, options, variant, several))
    return found


@dataclass(frozen=True)
class _Sampled:
    gradients: np.ndarray  # (draws, P)
    milliseconds: float
    recorded: bool


class _Stages:
    """The parameters at the start, the middle and the end of a fit."""

    def __init__(self, run: Optimisation) -> None:
        self.run = run
        self.kept: dict[int, list[torch.Tensor]] = {0: run.parameters.copy()}
        self._next = 1.0

    def __call__(self, step: int, *_: Any) -> None:
        if step >= self._next:
            self.kept[step] = self.run.parameters.copy()
            self._next = 1.2 * step

    def chosen(self) -> dict[str, tuple[int, list[torch.Tensor]]]:
        steps = len(self.run.elbo)
        middle = min(self.kept, key=lambda step: abs(step - steps / 2))
        groups = self.run.parameters.groups
        end = [torch.cat([value.detach().reshape(-1) for value in group]) for group in groups]
        return {
            "start": (0, self.kept[0]),
            "middle": (middle, self.kept[middle]),
            "end": (steps, end),
        }


def measure(
    problem: Problem,
    guide: Guide,
    settings: Settings,
    seed: int,
    gradients: int = EstimatorOptions.gradients,
) -> pd.DataFrame:
    """Measures every estimator at the start, the middle and the end of a fit.

    Args:
        problem: The model bound to its data.
        guide: The guide's declaration.
        settings: Of the fit, whose objective leads the way.
        seed: Of all random numbers.
        gradients: Of each estimator at each stage.

    Returns:
        A row for each stage and estimator. `step` is the stage's; `signal` the norm of the exact
        gradient; `noise` the root of the gradients' total variance; `bias` the distance of their
        mean from the exact gradient, as a multiple of its own error (about 1 by chance), NaN for
        another bound than the ELBO; `biased` whether that is more than chance would do; `ms` the
        median time of a step; `recorded` whether it is recorded; `cost` noise² x ms, as a multiple
        of the stage's lowest: how much longer it takes to the same precision.

        Its `attrs["evidence"]` are the lines of
        `elbowroom.assess.prior_sampling.evidence_by_sampling` as dicts: the evidence by draws of
        the prior and of the guide at the end, and what these waste.
    """
    landscape = explore(problem, settings.restarts, seed)
    rows: list[dict[str, Any]] = []
    with problem.session(seed):
        called = guide.build(problem.space, landscape.start())
        sites = read_guide(called, problem.arguments, problem.space)
        estimators = applicable(problem, sites, settings)
        if not estimators or sites.point:
            raise OptionError(
                f"the guide '{guide.name}' is a point, whose gradients have no noise to measure; "
                "give another --guide."
            )
        name, _ = choose_objective(settings.elbo, guide.elbo, problem.space, sites, settings.given)
        trace_model(problem.function, problem.arguments)
        # The parameters of a stage are to be the guide's alone.
        options = get_objective(name).without_parameters(settings.of_objective(name))
        run = Optimisation(
            *marked(name, problem.function, called), problem.arguments,
            make_objective(name, settings.particles, problem.space, options),
            settings, problem.space.subsampled,
            problem.space.row_latents(sites.names) and guide.amortised,
        )  # fmt: skip
        stages = _Stages(run)
        run.run(stages)
        for stage, (step, values) in stages.chosen().items():
            found = {}
            for each in estimators:
                found[each] = _gradients(
                    problem, called, each, settings.batch_size, values, gradients, seed
                )
            rows += _rows(stage, step, found, problem, called, settings.batch_size, values, seed)
        torch.manual_seed(seed)  # the parameters are those of the end, the last that were measured
        evidence = evidence_by_sampling(problem, called, sites, SAMPLING.evidence_draws)
    table = pd.DataFrame(rows)
    table.attrs["evidence"] = [asdict(line) for line in evidence]
    return table


def _forget() -> None:
    """Takes what baselines have learnt out of the active store."""
    for name in list(pyro.get_param_store().keys()):
        if name.startswith((OWN, baselines.PREFIX)):
            del pyro.get_param_store()[name]


def _gradients(
    problem: Problem,
    guide: Any,
    estimator: Estimator,
    size: int | None,
    values: list[torch.Tensor],
    count: int,
    seed: int,
) -> _Sampled:
    """Gradients of one estimator at given parameters, and the time of one."""
    _forget()
    objective = make_objective(
        estimator.objective, estimator.particles, problem.space, estimator.options
    )
    pair = marked(estimator.objective, problem.function, guide)
    plate = problem.space.subsampled
    batches = None if plate is None or size is None else Minibatches(plate.size, size)

    def draw() -> torch.Tensor | None:
        return None if batches is None else next(batches)  # as a fit takes them

    torch.manual_seed(seed)
    batch = {} if size is None else {"batch_size": size}
    # Makes the baselines' parameters.
    objective.loss_and_surrogate(*pair, {**problem.arguments, **batch})
    named = unconstrained_parameters()
    parameters = FlatParameters({k: v for k, v in named.items() if not k.startswith(OWN)})
    own = [value for name, value in named.items() if name.startswith(OWN)]
    try:
        parameters.assign(values)
        step = Step(objective, *pair, problem.arguments, parameters, plate, size)
        if own or baselines.kept():
            optimizer = torch.optim.Adam(own, lr=0.05) if own else None
            for _ in range(SAMPLING.warm_up):
                _learn(step, draw(), optimizer)
        step.record(None if batches is None else batches.draw)
        found, times = [], []
        for _ in range(count):
            rows = draw()
            began = time.perf_counter()
            step(rows)
            times.append(time.perf_counter() - began)
            found.append(torch.cat([g.double().cpu().clone() for g in parameters.gradients]))
    finally:
        parameters.release()
        _forget()
    return _Sampled(torch.stack(found).numpy(), 1e3 * float(np.median(times)), step.recorded)


def _learn(step: Step, rows: torch.Tensor | None, optimizer: Any) -> None:
    """One step of a baseline alone."""
    if optimizer is not None:
        optimizer.zero_grad()
    step(rows)
    if optimizer is not None:
        optimizer.step()


def _rows(
    stage: str,
    step: int,
    found: dict[Estimator, _Sampled],
    problem: Problem,
    guide: Any,
    size: int | None,
    values: list[torch.Tensor],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The table's rows of one stage."""
    noise = {each: float(s.gradients.var(0, ddof=1).sum()) for each, s in found.items()}
    best = min((e for e in found if e.of_the_elbo), key=lambda e: noise[e])
    count = SAMPLING.exact_factor * len(found[best].gradients)
    exact = _gradients(problem, guide, best, size, values, count, seed + 1).gradients
    reference, its_error = exact.mean(0), exact.std(0, ddof=1) / len(exact) ** 0.5
    costs = {each: noise[each] * s.milliseconds for each, s in found.items()}
    lowest = min(cost for each, cost in costs.items() if each.of_the_elbo)
    floor = 1e-9 * max(1.0, float(np.abs(reference).max()))  # rounding is no bias
    for each, sampled in found.items():
        error = sampled.gradients.std(0, ddof=1) / len(sampled.gradients) ** 0.5
        distance = float(np.linalg.norm(sampled.gradients.mean(0) - reference))
        bias = distance / (float(np.linalg.norm(np.hypot(error, its_error))) + floor)
        yield {
            "stage": stage,
            "step": step,
            "estimator": each.name,
            "signal": float(np.linalg.norm(reference)) if each.of_the_elbo else np.nan,
            "noise": noise[each] ** 0.5,
            "bias": bias if each.of_the_elbo else np.nan,
            "biased": each.of_the_elbo and bias > SAMPLING.biased_errors,
            "ms": sampled.milliseconds,
            "recorded": sampled.recorded,
            "cost": costs[each] / lowest if lowest > 0 else np.nan,
        }
