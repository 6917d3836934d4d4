"""The guide `auto`: a ladder of guides, climbed until a posterior can be trusted."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from elbowroom import budget
from elbowroom.assess.verdict import PROPER, found_more, improper, sentence
from elbowroom.density.density import Density
from elbowroom.density.importance import ERRORS, k_hat_threshold
from elbowroom.density.landscape import Landscape, unclimbed, unexplored
from elbowroom.engines.registry import ENGINES
from elbowroom.engines.settings import Way, only_read
from elbowroom.engines.task import Task
from elbowroom.errors import GuideError, OutOfTimeError
from elbowroom.guides import Guide, get_guide
from elbowroom.guides.roots import numerical_failures
from elbowroom.pipeline.centring import has_long_vectors, has_own_scales, partly_centred
from elbowroom.problem.bound import Problem
from elbowroom.result import Fit
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Rungs:
    """Where the ladder tries which guide."""

    full_rank: int = 60
    """The largest dimension in which it tries `full_rank`; in more, `markov` comes first."""
    flow: int = 20
    """The largest dimension in which it tries `flow`."""
    flow_steps: int = 5000
    """The steps of `flow`, unless the user gives them."""
    share: float = 0.8
    """Of the time of a fit, after which independent Normals are tried if there is nothing yet."""
    steps: float = 0.5
    """Of the time that is left then, that their steps may take."""
    clearly: float = 0.2
    """How far k-hat must be below its limit for no other guide to be tried."""


RUNGS = Rungs()


FitOne = Callable[[Task, Guide, str, Landscape | None], Fit]
"""Fits one guide by one engine."""


@dataclass
class Ladder:
    """The rungs that were climbed.

    Attributes:
        fit_one: How one guide is fitted.
        report: Called with a line for each rung.
        lines: Those.
        fits: Of the rungs that gave one.
        late: Whether a rung found that there is too little time for it.
    """

    fit_one: FitOne
    report: Callable[[str], None] | None
    lines: list[str] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    late: bool = False

    def rung(self, name: str, task: Task, engine: str, landscape: Landscape | None) -> bool:
        """Fits a guide; whether no other one is worth while.

        Args:
            name: Of the guide.
            task: What is asked.
            engine: That fits it.
            landscape: Where it begins, if that is known.
        """
        guide = get_guide(name, None)
        # What was given for one rung is not read by all.
        suggested, way = task.problem.model.suggested, Way(engine, guide=guide)
        task = replace(task, settings=only_read(task.settings, suggested, way))
        label = _label(name, task.problem)
        try:
            with numerical_failures():
                fit = self.fit_one(task, guide, engine, landscape)
        except GuideError as error:
            self.failed(label, error)
        else:
            self.fits.append(_compared(fit, self.fits))
            verdict = self.fits[-1].verdict
            why = "" if verdict.trusted else f". {verdict.reasons[0]}"
            self.say(f"{label}: {verdict.level}{why}")
        if not self.fits:
            return False
        return self.fits[-1].verdict.trusted or _best_of(self.fits[-1]) or budget.over()

    def failed(self, label: str, error: GuideError) -> None:
        """Keeps why a rung gave nothing."""
        self.late |= isinstance(error, OutOfTimeError)
        self.say(f"{label}: {error}")

    def say(self, line: str) -> None:
        """Keeps a line and reports it."""
        self.lines.append(line)
        if self.report is not None:
            self.report(line)

    def best(self) -> Fit:
        """The fit to return, with all rungs among its remarks.

        Raises:
            GuideError: If no rung gave one.
        """
        if not self.fits:
            raise GuideError(" ".join(self.lines))
        fits = [_compared(fit, self.fits) for fit in self.fits]
        best = max(
            fits,
            key=lambda fit: (fit.verdict.trusted, not found_more(fit.evidence), -_k_hat(fit)),
        )
        if len(self.lines) == 1:
            return best
        climbed = [f"auto: {line}" for line in self.lines]
        return replace(best, remarks=(*climbed, *best.remarks))


def climb_ladder(task: Task, fit_one: FitOne, report: Callable[[str], None] | None = None) -> Fit:
    """Fits the cheapest guide whose posterior can be trusted.

    The rungs: linear response; one Normal with all correlations; the same two with location-scale
    sites non-centred; many Markov chains, which come first for a named model with group effects or
    smooth terms, and for one of the user's own with more dimensions than all correlations are tried
    in, or with a long multivariate Normal site whose covariance is unknown, or with numbers whose
    scales are their own and unknown. Where these fail, since the dimension is large or point
    parameters have no maximum likelihood, independent Normals; in few dimensions a flow. Where none
    is trusted, the one with the best importance weights is returned, with what to do next.

    Raises:
        GuideError: If no rung gave a posterior at all, or there is none.
    """
    ladder = Ladder(fit_one, report)
    _climb(ladder, task)
    return ladder.best()


def _climb(ladder: Ladder, task: Task) -> None:
    with budget.stage("climbing the ladder of guides", RUNGS.share):
        _climb_explored(ladder, task)
    problem = task.problem
    late = ladder.late or budget.current().cut
    if late and not ladder.fits and problem.space.sites:
        # Some steps in what time is left, which their draws need too: the best there is.
        with budget.stage("fitting independent Normals", RUNGS.steps):
            ladder.rung("mean_field", replace(task, announce=None), "svi", unexplored(problem))


def _climb_explored(ladder: Ladder, task: Task) -> None:
    problem = task.problem
    if problem.model_name is None:
        wide = problem.space.dimension > RUNGS.full_rank or has_long_vectors(problem)
    else:  # of those without groups linear response is good, and cheap, in many dimensions
        wide = bool(problem.space.location_scale)
    wide |= has_own_scales(problem)
    if wide and not problem.space.parameters.size:
        ended, density = _many_chains(ladder, task)
        if ended:
            return
        task = replace(task, announce=None, density=density)
    tasks = [task]
    explored: list[Landscape] = []
    if problem.space.location_scale:
        standardised = problem.reparameterise(problem.space.location_scale)
        tasks.append(replace(task, problem=standardised, density=None))
    for each in tasks:
        try:
            with numerical_failures():
                landscape = _start(each)
        except GuideError as error:
            ladder.lines.append(f"search for modes: {error}")
            break
        explored.append(landscape)
        if landscape.endless:
            raise GuideError(f"{improper(landscape.endless)} {sentence(PROPER)}")
        # What is about to be run is announced once.
        begun = replace(each, begins=True, announce=None if ladder.lines else task.announce)
        if ladder.rung("linear_response", begun, "fixed_draws", landscape):
            return
        begun = replace(begun, announce=None)
        correlated = each.problem.space.dimension <= RUNGS.full_rank and landscape.best is not None
        # No one Normal follows a mixture's posterior where linear response does not.
        correlated &= not each.problem.space.discrete
        if correlated and ladder.rung("full_rank", begun, "fixed_draws", landscape):
            return
    if budget.current().cut:
        return
    if not wide and explored and explored[0].density is not None:
        several = len(explored[0].proper) > 1 or problem.space.parameters.size > 0
        known = explored[0] if several else None
        task = replace(task, announce=None, density=explored[0].density)
        if _many_chains(ladder, task, known)[0]:
            return
    if problem.space.parameters.size and not ladder.fits:
        ladder.rung("mean_field", task, "svi", None)
    if problem.space.dimension > SIZES.dense and not ladder.fits:
        ladder.rung("mean_field", replace(task, begins=True), "fixed_draws", _start(task))
    if problem.space.dimension <= RUNGS.flow and not ladder.fits:
        settings = task.settings
        if settings.steps is None and settings.epochs is None:
            settings = replace(settings, steps=RUNGS.flow_steps)
        ladder.rung("flow", replace(tasks[-1], announce=None, settings=settings), "svi", None)


def _many_chains(
    ladder: Ladder, task: Task, landscape: Landscape | None = None
) -> tuple[bool, Density | None]:
    """The rung of Markov chains.

    They begin at several known modes, if there are some, so that chains which stay there are seen;
    else at random.

    Returns:
        Whether no other rung is worth while, and the density of the problem as it is written, if
        the chains are of that.
    """
    problem = task.problem
    changes = problem.space.location_scale or has_long_vectors(problem)
    try:
        with numerical_failures():
            if landscape is None and changes:
                problem, landscape = partly_centred(problem, task.seed)
            elif landscape is None:
                landscape = unclimbed(problem, task.seed, density=task.density)
    except GuideError as error:
        ladder.failed("markov", error)
        return False, None
    ended = ladder.rung("markov", replace(task, problem=problem), "fixed_draws", landscape)
    return ended, landscape.density if problem is task.problem else None


def _label(name: str, problem: Problem) -> str:
    """A rung's guide, and how the sites are written."""
    return f"{name} (non-centred sites)" if problem.reparameterised else name


def _start(task: Task) -> Landscape:
    """Where the rungs of the deterministic engine begin."""
    return ENGINES["fixed_draws"].start(task, get_guide("linear_response", None))


def _compared(fit: Fit, others: list[Fit]) -> Fit:
    """A fit whose evidence tells how much more of it another one has found."""
    own, error = _log_evidence(fit)
    found = [
        (*_log_evidence(other), _label(other.guide.name, other.problem))
        for other in others
        if other is not fit
    ]
    less = [
        (value - own, math.hypot(its_error, error), label)
        for value, its_error, label in found
        if math.isfinite(value) and math.isfinite(own)
    ]
    nats, error, label = max(
        less, key=lambda each: each[0] - ERRORS * each[1], default=(0.0, 0.0, "")
    )
    gaps = replace(fit.evidence.gaps, other_guide=(nats, error), guide=label)
    return replace(fit, evidence=replace(fit.evidence, gaps=gaps))


def _log_evidence(fit: Fit) -> tuple[float, float]:
    measures = fit.measures
    return measures.get("log_evidence", math.nan), measures.get("log_evidence_se", math.nan)


def _k_hat(fit: Fit) -> float:
    return float(fit.measures.get("corrected_k_hat", float("inf")))


def _best_of(fit: Fit) -> bool:
    """Whether the weights are good: what else is wrong, another guide will not change."""
    draws = fit.measures.get("weighted_draws")
    good = draws is not None and _k_hat(fit) < k_hat_threshold(draws) - RUNGS.clearly
    return good and fit.converged and not found_more(fit.evidence)
