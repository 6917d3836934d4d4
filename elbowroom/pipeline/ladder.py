"""The guide `auto`: a ladder of guides, climbed until a posterior can be trusted."""

import math
from collections.abc import Callable
from dataclasses import replace

from elbowroom.assess.verdict import improper
from elbowroom.density.importance import ERRORS, k_hat_threshold
from elbowroom.density.landscape import LARGEST, Landscape
from elbowroom.errors import GuideError
from elbowroom.guides import get_guide
from elbowroom.guides.roots import numerical_failures
from elbowroom.pipeline.fixed_draws import fit_fixed_draws, survey
from elbowroom.pipeline.svi import fit_stochastic
from elbowroom.pipeline.task import Task
from elbowroom.problem.bound import Problem
from elbowroom.result import Fit

FULL_RANK = 60
"""The largest dimension in which the ladder tries `full_rank`."""
FLOW, FLOW_STEPS = 20, 5000
"""The largest dimension in which it tries `flow`, and the steps it gives it, unless told."""


def climb_ladder(task: Task, report: Callable[[str], None] | None = None) -> Fit:
    """Fits the cheapest guide whose posterior can be trusted.

    The rungs: linear response; one Normal with all correlations; the same two with location-scale
    sites written by their standardised values. Where the first fail, since the dimension is large
    or point parameters have no maximum likelihood, independent Normals; in few dimensions a flow.
    Where none is trusted, the one with the best importance weights is returned, with what to do
    next.

    Raises:
        GuideError: If no rung gave a posterior at all, or there is none.
    """
    problem = task.problem
    climbed: list[str] = []
    found: list[Fit] = []

    def rung(name: str, attempt: Callable[[], Fit]) -> bool:
        try:
            with numerical_failures():
                fit = attempt()
        except GuideError as error:
            line = f"{name}: {error}"
        else:
            fit = _compared(fit, found)
            found.append(fit)
            line = f"{name}: {fit.verdict.level}"
            if not fit.verdict.trusted:
                line += f", {fit.verdict.reasons[0]}"
        climbed.append(line)
        if report is not None:
            report(line)
        return bool(found) and (found[-1].verdict.trusted or _mended(found[-1]))

    def deterministic(name: str, where: Problem, landscape: Landscape) -> Callable[[], Fit]:
        guide = get_guide(name, where.model_name, False)
        # What is about to be run is said once.
        said = None if climbed else task.announce
        return lambda: fit_fixed_draws(
            replace(task, problem=where, announce=said), guide, landscape, begins=True
        )

    def climb() -> None:
        places = [problem]
        if problem.space.location_scale and problem.model_name is None:
            places.append(problem.reparameterise(problem.space.location_scale))
        for place in places:
            try:
                with numerical_failures():
                    landscape = survey(place, task.settings.restarts, task.seed)
            except GuideError as error:
                climbed.append(f"before any guide: {error}")
                break
            if landscape.endless:
                raise GuideError(
                    f"{improper(landscape.endless)} Give each of these sites a proper prior, or "
                    "leave one of them out."
                )
            where = " of the standardised sites" if place.reparameterised else ""
            if rung(f"linear_response{where}", deterministic("linear_response", place, landscape)):
                return
            correlated = place.space.dimension <= FULL_RANK and landscape.best is not None
            if correlated and rung(
                f"full_rank{where}", deterministic("full_rank", place, landscape)
            ):
                return
        if problem.space.parameters.size and not found:
            rung("mean_field", lambda: fit_stochastic(task, get_guide("mean_field", None, False)))
        if problem.space.dimension > LARGEST and not found:
            landscape = survey(problem, task.settings.restarts, task.seed)
            rung("mean_field", deterministic("mean_field", problem, landscape))
        if problem.space.dimension <= FLOW and not found:
            flow = get_guide("flow", problem.model_name, False)
            settings = task.settings
            if settings.steps is None and settings.epochs is None:
                settings = replace(settings, steps=FLOW_STEPS)
            last = replace(task, problem=places[-1], announce=None, settings=settings)
            rung("flow", lambda: fit_stochastic(last, flow))

    climb()
    if not found:
        raise GuideError(" ".join(climbed))
    found = [_compared(fit, found) for fit in found]
    best = max(found, key=lambda fit: (fit.verdict.trusted, not fit.evidence.lacking, -_k_hat(fit)))
    if len(climbed) > 1:
        best.remarks[:0] = [f"auto: {line}" for line in climbed]
    return best


def _compared(fit: Fit, others: list[Fit]) -> Fit:
    """A fit whose evidence tells how much more of it another one has found."""
    own, error = _log_evidence(fit)
    found = [_log_evidence(other) for other in others if other is not fit]
    less = [
        (value - own, math.hypot(its_error, error))
        for value, its_error in found
        if math.isfinite(value) and math.isfinite(own)
    ]
    worst = max(less, key=lambda pair: pair[0] - ERRORS * pair[1], default=(0.0, 0.0))
    return replace(fit, evidence=replace(fit.evidence, less=worst))


def _log_evidence(fit: Fit) -> tuple[float, float]:
    measures = fit.measures
    return measures.get("log_evidence", math.nan), measures.get("log_evidence_se", math.nan)


def _k_hat(fit: Fit) -> float:
    return float(fit.measures.get("corrected_k_hat", float("inf")))


def _mended(fit: Fit) -> bool:
    """Whether the weights are good: what else is wrong, another guide will not mend."""
    draws = fit.measures.get("weighted_draws")
    good = draws is not None and _k_hat(fit) < k_hat_threshold(draws) - 0.2
    return good and fit.converged and not fit.evidence.lacking
