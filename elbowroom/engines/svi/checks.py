"""What can be seen to be wrong with a model, its data and a guide before they are fitted."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from torch import Tensor

from elbowroom import budget
from elbowroom.density.landscape import explore
from elbowroom.engines.settings import Settings
from elbowroom.engines.svi.failure import culprit
from elbowroom.errors import ElbowroomError, GuideError, ModelError, users_code
from elbowroom.guides import Guide
from elbowroom.guides.sites import GuideSites, is_delta, read_guide
from elbowroom.guides.space import FixedRows, sample_sites, takes_batches, trace_model
from elbowroom.objectives.elbo import (
    check_enumerable,
    choose_objective,
    make_objective,
    marked,
)
from elbowroom.objectives.minibatches import Minibatches
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import reseed


@dataclass(frozen=True)
class Checking:
    """How a problem is checked before a run."""

    runs: int = 40
    """Runs in which minibatches are compared with all rows, and draws with supports."""
    errors: float = 5.0
    """Standard errors by which they may differ."""
    share: float = 0.05
    """Of the time that is left, that these runs may take."""
    few_runs: int = 10
    """Runs that are enough where they differ little."""
    doubtful_errors: float = 2.0
    """Standard errors up to which they differ little."""
    scales: float = 1000.0
    """The ratio of two columns' standard deviations from which optimisers have difficulty."""
    starts: int = 5
    """Draws at which the ELBO is looked at where a matrix cannot be factorised at the first."""
    far: float = 1e5
    """Nats of a row's ELBO at the start from which a fit does not recover."""


CHECKING = Checking()


@dataclass(frozen=True)
class Subject:
    """What is checked; the guide's and the model's parameters are in the active store.

    Attributes:
        problem: The model bound to its data.
        guide: The guide's declaration.
        called: The guide itself, where it begins.
        settings: Of the fit.
    """

    problem: Problem
    guide: Guide
    called: Callable[..., Any]
    settings: Settings

    @property
    def objective(self) -> tuple[str, str]:
        """The name of the ELBO, and why."""
        sites = read_guide(self.called, self.problem.arguments, self.problem.space)
        return self.choose(sites)

    def choose(self, sites: GuideSites) -> tuple[str, str]:
        """The same for the guide's sites."""
        settings, space = self.settings, self.problem.space
        return choose_objective(settings.elbo, self.guide.elbo, space, sites, settings.given)


@dataclass(frozen=True)
class Finding:
    """What a check found: its level is "ok", "warning" or "error"."""

    check: str
    level: str
    text: str


def _validity(subject: Subject) -> list[str]:
    """Shapes, arguments and observed values are valid, and each value counts once."""
    return list(subject.problem.doubts)


def _sites(subject: Subject) -> list[str]:
    """The guide has the model's sites, and an objective that suits them."""
    problem = subject.problem
    sites = read_guide(subject.called, problem.arguments, problem.space)
    subject.choose(sites)
    check_enumerable(problem.function, problem.arguments, problem.space, sites)
    return [
        f"site '{name}': the guide's distribution cannot be reparameterised, so the gradient is "
        "estimated by the score function, which is noisy; give the guide's site a distribution "
        "that can be reparameterised."
        for name in sorted(sites.rough)
    ]


def _supports(subject: Subject) -> list[str]:
    """The guide draws values inside the model's support, and can reach all of it."""
    problem = subject.problem
    prior = dict(sample_sites(trace_model(problem.function, problem.arguments)))
    warnings: dict[str, str] = {}
    for _ in _runs(1):
        with torch.no_grad():
            trace = poutine.trace(subject.called).get_trace(**problem.arguments)
            with users_code("the model cannot be run at the guide's draws", ModelError):
                replayed = poutine.trace(poutine.replay(problem.function, trace)).get_trace(
                    **problem.arguments
                )
        for name, node in sample_sites(trace):
            if name not in prior or node["infer"].get("is_auxiliary"):
                continue
            fn: Any = replayed.nodes[name]["fn"]
            support = fn.support
            if not _inside(support, node["value"]):
                raise GuideError(
                    f"site '{name}': the guide's distribution ({type(node['fn']).__name__}) "
                    f"gives values outside the model's support, {support}; give the guide's site "
                    "a distribution on that support, such as a LogNormal for positive values, or "
                    "a TransformedDistribution."
                )
            own = node["fn"]
            if not is_delta(own) and not _inside(own.support, prior[name]["value"]):
                warnings[name] = (
                    f"site '{name}': the guide's distribution ({type(own).__name__}) cannot "
                    f"reach all of the model's support, {support}, so a part of the posterior may "
                    "be missed; give the guide's site a distribution on the whole support."
                )
    return list(warnings.values())


def _runs(least: int) -> Iterator[int]:
    """The numbers of as many runs as there is time for, but of some."""
    end = time.monotonic() + CHECKING.share * budget.left()
    for run in range(CHECKING.runs):
        if run >= least and time.monotonic() > end:
            return
        yield run


def _inside(support: Any, value: Tensor) -> bool:
    try:
        return bool(support.check(value).all())
    except NotImplementedError:
        return True


def _start(subject: Subject) -> list[str]:
    """The ELBO is finite at the start of the fit, and not extremely low."""
    problem = subject.problem
    name, _ = subject.objective
    pair = marked(name, problem.function, subject.called)
    settings = subject.settings
    options = settings.of_objective(name)
    objective = make_objective(name, settings.particles, problem.space, options)
    with users_code("the ELBO cannot be evaluated at the start", ModelError):
        for left in reversed(range(CHECKING.starts)):
            try:
                loss = objective.loss(*pair, **problem.arguments)
                break
            except torch.linalg.LinAlgError:  # at this noise
                if not left:
                    raise
    if not math.isfinite(loss):
        cause = culprit(*pair, problem.arguments, objective)
        raise ModelError(f"the ELBO is not finite at the start. {cause}")
    plates = [p for placed in problem.space.observed_plates.values() for p in placed]
    rows = max([1, *(plate.size for plate in plates)])
    if abs(loss) / rows > CHECKING.far:
        return [
            f"the ELBO begins at {-loss:.2g} nats, {-loss / rows:.2g} nats per row: scale the "
            "data to sds near one, or begin the guide at parameters that fit the data better."
        ]
    return []


def _minibatches(subject: Subject) -> list[str]:
    """The ELBO of minibatches is on average that of all rows, at each site."""
    problem, space = subject.problem, subject.problem.space
    if space.subsampled is None:
        if takes_batches(problem.function):
            return [
                "the model takes batch_size, but no plate uses it: pass it to the plate of the "
                "rows as subsample_size."
            ]
        return []
    plate, asked = space.subsampled, subject.settings.batch_size
    size = asked or max(1, min(100, plate.size // 10))
    if size >= plate.size:
        return []
    batches = Minibatches(plate.size, size)
    some: list[dict[str, _Term]] = []
    every: list[dict[str, _Term]] = []
    for run in _runs(CHECKING.few_runs):
        if run == CHECKING.few_runs and not any(
            _differs(some, every, name, CHECKING.doubtful_errors) for name in every[0]
        ):
            break
        with users_code(
            f"the model or the guide cannot be run on minibatches of {size} rows", ModelError
        ):
            some.append(_terms(subject, run, next(batches), size))
            every.append(_terms(subject, run, torch.arange(plate.size), None))
    warnings = []
    for name, first in every[0].items():
        weight, wanted = _of(some[0], name).scale, first.scale * plate.size / size
        if first.of_rows and name in some[0] and abs(weight / wanted - 1) > 1e-6:
            raise ModelError(
                f"{name}: in minibatches of {size} rows each row has weight {weight:.4g}. The "
                f"weight should be {wanted:.4g}, since it is {first.scale:.4g} with all "
                f"{plate.size} rows. The plate '{plate.name}' with subsample_size=batch_size sets "
                "this weight; remove every other poutine.scale of the rows."
            )
        if not _differs(some, every, name, CHECKING.errors):
            continue
        expected = np.mean([_of(terms, name).value for terms in every])
        found = np.mean([_of(terms, name).value for terms in some])
        text = (
            f"{name}: its mean log density is {found:.4g} in minibatches of {size} rows "
            f"and {expected:.4g} in all {plate.size}; they should be equal on average"
        )
        if not first.of_rows:
            raise ModelError(
                f"{text}. Put each sum over rows into the plate '{plate.name}' with "
                "subsample_size=batch_size, which scales it."
            )
        warnings.append(f"{text}. A few rows dominate the sum: give a larger --batch-size.")
    return warnings


@dataclass(frozen=True)
class _Term:
    """A term of the ELBO: its value, and whether and how much it is scaled in the rows' plate."""

    value: float
    of_rows: bool
    scale: float


def _of(terms: dict[str, _Term], name: str) -> _Term:
    """A site's term; zero where these rows have no such site, as for a step past their ends."""
    return terms.get(name, _Term(0.0, True, 1.0))


def _differs(
    some: list[dict[str, _Term]], every: list[dict[str, _Term]], name: str, errors: float
) -> bool:
    """Whether the means of a term over two lists of runs differ by more than some errors."""
    whole = np.array([_of(terms, name).value for terms in every])
    with np.errstate(invalid="ignore"):  # infinite values differ
        gaps = np.array([_of(terms, name).value for terms in some]) - whole
        error = gaps.std(ddof=1) / len(gaps) ** 0.5
    return not abs(gaps.mean()) <= errors * error + 1e-4 * max(1.0, abs(whole.mean()))


def _terms(subject: Subject, seed: int, rows: Tensor, size: int | None) -> dict[str, _Term]:
    """The terms of the ELBO by site, at the noise of a seed."""
    plate = subject.problem.space.subsampled
    assert plate is not None
    arguments = dict(subject.problem.arguments)
    if size is not None:
        arguments["batch_size"] = size
    reseed(seed)
    found = {}
    with torch.no_grad(), FixedRows({plate.name: rows}):
        guide_trace = poutine.trace(subject.called).get_trace(**arguments)
        model = poutine.replay(subject.problem.function, guide_trace)
        model_trace = poutine.trace(model).get_trace(**arguments)
        for whose, trace in (("model", model_trace), ("guide", guide_trace)):
            trace.compute_log_prob()
            for name, node in sample_sites(trace):
                frames = {frame.name for frame in node["cond_indep_stack"]}
                scale = float(torch.as_tensor(node["scale"]).double().mean())
                found[f"the {whose}'s site '{name}'"] = _Term(
                    float(node["log_prob_sum"]), plate.name in frames, scale
                )
    return found


def _columns(subject: Subject) -> list[str]:
    """The columns have similar scales, and no column is constant.

    The models of the registry scale their columns themselves.
    """
    problem = subject.problem
    if problem.model_name is not None:
        return []
    spreads = column_spreads(problem.arguments, problem.data)
    constant = [name for name, spread in spreads.items() if spread == 0]
    warnings = [
        f"{name} is constant and carries no information; leave it out." for name in constant
    ]
    moving = {name: spread for name, spread in spreads.items() if spread > 0}
    if moving:
        low, high = min(moving, key=lambda n: moving[n]), max(moving, key=lambda n: moving[n])
        if moving[high] > CHECKING.scales * moving[low]:
            warnings.append(
                f"{low} has a standard deviation of {moving[low]:.2g} and {high} one of "
                f"{moving[high]:.2g}: standardise the columns; otherwise stochastic gradients need "
                "very many steps."
            )
    return warnings


def column_spreads(arguments: Mapping[str, Any], data: Any) -> dict[str, float]:
    """The standard deviation of each column of real numbers among a model's arguments."""
    spreads = {}
    table = isinstance(data, pd.DataFrame)
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() < 3:
            continue
        if value.dim() == 1:
            spreads[f"column '{name}'" if table else f"'{name}'"] = float(value.std())
        elif value.dim() == 2:
            for index, spread in enumerate(value.std(0).tolist()):
                spreads[f"column {index} of '{name}'"] = spread
    return spreads


CHECKS: dict[str, Callable[[Subject], list[str]]] = {
    "validity": _validity,
    "sites": _sites,
    "supports": _supports,
    "start": _start,
    "minibatches": _minibatches,
    "columns": _columns,
}


def before_run(subject: Subject) -> list[str]:
    """Runs every check; to be called in a session of the problem.

    Returns:
        Warnings, each with the edit that fixes it; without those that the verdict has.

    Raises:
        GuideError, ModelError, OptionError: At the first error, which names the site.
    """
    warnings = [warning for each in CHECKS.values() for warning in _undisturbed(each, subject)]
    return [each for each in warnings if each not in subject.problem.prepared.doubts]


def _undisturbed(check: Callable[[Subject], list[str]], subject: Subject) -> list[str]:
    """A check that leaves the random numbers as they were."""
    failed = "the model or the guide cannot be run while it is checked"
    with torch.random.fork_rng(devices=[]), users_code(failed, GuideError):
        return check(subject)


def run_checks(problem: Problem, guide: Guide, settings: Settings, seed: int) -> list[Finding]:
    """Every check of a model, its data and a guide, each with what it found."""
    try:
        fitted_to = problem.for_guide(guide)
        landscape = explore(problem, min(settings.restarts, 2), seed)
    except ElbowroomError as error:
        return [Finding("model", "error", str(error))]
    found, problem = [], fitted_to
    with problem.session(seed):
        called = guide.build(problem.space, landscape.start())
        subject = Subject(problem, guide, called, settings)
        for name, check in CHECKS.items():
            try:
                warnings = _undisturbed(check, subject)
            except ElbowroomError as error:
                found.append(Finding(name, "error", str(error)))
                if name == "sites":
                    break  # the others need a guide that runs
            else:
                found += [Finding(name, "warning", text) for text in warnings]
                if not warnings:
                    found.append(Finding(name, "ok", (check.__doc__ or "").split("\n")[0]))
    return found
