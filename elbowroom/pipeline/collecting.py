"""The evidence of a verdict, collected once, and the numbers among it by name."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbowroom import budget
from elbowroom.assess.evidence import (
    Chains,
    Evidence,
    Gaps,
    Mixing,
    Modes,
    Optimum,
    Remarks,
    Target,
    Weights,
)
from elbowroom.assess.labelling import of_all_labellings
from elbowroom.assess.predictive import flat_predictions, predictive_checks
from elbowroom.assess.prior_conflict import Posterior, has_own_priors, prior_conflicts
from elbowroom.assess.resolution import unresolved_quantities
from elbowroom.density.importance import k_hat_threshold, log_mean_exp
from elbowroom.density.landscape import Landscape
from elbowroom.density.maximum import why_no_maximum
from elbowroom.density.mixtures import Mixture
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.draws.coverage import deserted
from elbowroom.draws.groups import replicated
from elbowroom.draws.many_chains import MixedChains
from elbowroom.draws.refining import sampled
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.engines.protocol import Fitted
from elbowroom.engines.registry import ENGINES
from elbowroom.engines.settings import seconds_allowed
from elbowroom.engines.task import Task
from elbowroom.errors import OutOfTimeError
from elbowroom.guides.roots import factor_of_inverse
from elbowroom.pipeline.drawing import Drawn
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated
from elbowroom.problem.validation import invalid_draws
from elbowroom.sizes import SIZES

PRIORS = (
    "read the point parameters as the maximum of their likelihood, or give them priors, with "
    "pyro.sample instead of pyro.param."
)
"""What to do where a model has points alone."""
SPIKE = 5.0
"""Nats of Laplace evidence below the evidence of the draws at which a mode has no mass."""
SMALLEST = 0.001
"""The share of the mass of a mode that is told."""


@dataclass(frozen=True)
class Collected:
    """The evidence of a verdict.

    Attributes:
        evidence: What the verdict is made of.
        measures: The numbers among it, by name.
        remarks: What a reader should know of them.
    """

    evidence: Evidence
    measures: dict[str, Any]
    remarks: list[str]


@dataclass(frozen=True)
class Shown:
    """Draws as the user reads them.

    Attributes:
        own: The guide's own, by site.
        weighted: Weighted ones, by site; none where no weights correct the guide, or rows have
            weights of their own.
        posterior: What the posterior consists of, by site.
    """

    own: Mapping[str, Tensor]
    weighted: Mapping[str, np.ndarray]
    posterior: Mapping[str, Tensor]


def collect(
    task: Task, fitted: Fitted, drawn: Drawn, landscape: Landscape, shown: Shown
) -> Collected:
    """Collects all evidence; to be called in a session with the guide's parameters."""
    problem = fitted.problem
    seen = ({}, {}) if budget.over() else replicated(problem, shown.posterior)
    shares, missed = predictive_checks(*seen)
    if problem.space.layers:
        missed += flat_predictions(*seen)
    weighed = _weighed(fitted, drawn, landscape, shown)
    no_maximum, remarks = _maximum(fitted, drawn)
    evidence = Evidence(
        Optimum(
            fitted.trained.converged,
            fitted.trained.reason,
            ENGINES[fitted.engine].stochastic,
            fitted.point,
            no_maximum,
            PRIORS if fitted.point and not problem.space.sites else fitted.remedy,
        ),
        weighed.weights,
        _modes(fitted, drawn, landscape),
        _chains(drawn, landscape),
        Target(
            0.0 if landscape.density is None else landscape.density.slope_error,
            landscape.endless,
            invalid_draws(problem.function, problem.arguments, shown.posterior) or "",
        ),
        Gaps(all_modes=_of_all_modes(task, fitted, drawn, landscape)),
        tuple(weighed.unresolved),
        Remarks(
            (*_doubts(problem, shown), *fitted.said, *_conflicts(fitted, landscape, shown)),
            drawn.said,
            tuple(missed),
        ),
        ladder=problem.model.engine is None,
        auto=task.auto,
        mixing=_mixing(drawn.chains),
        out_of_time=_out_of_time(task, drawn, landscape),
        simpler=_simpler(problem),
    )
    measures = {**weighed.measures, "predictive_checks": shares, **drawn.health}
    if problem.posterior is not None:
        measures["log_likelihood"] = float(drawn.raw.log_p[0])
    return Collected(evidence, measures, [*weighed.remarks, *remarks])


def _doubts(problem: Problem, shown: Shown) -> list[str]:
    """What the model may be wrong for, by its data and by its posterior."""
    told, doubts_of = list(problem.prepared.doubts), problem.model.doubts_of
    return told if doubts_of is None else [*told, *doubts_of(problem.arguments, shown.posterior)]


def _conflicts(fitted: Fitted, landscape: Landscape, shown: Shown) -> list[str]:
    """What the priors and the data disagree about, as sentences."""
    problem, space = fitted.problem, fitted.problem.space
    none = fitted.point or problem.posterior is not None or not space.sites
    if none or not has_own_priors(problem) or space.local_continuous or budget.over():
        return []
    known = Posterior.at(landscape)
    if known is None:
        values = {site.name: shown.posterior[site.name].double().cpu() for site in space.sites}
        known = Posterior.of(torch.vmap(space.unconstrain)(values).numpy())  # (draws, D)
    return prior_conflicts(problem, known)


def _simpler(problem: Problem) -> str:
    """The option that makes a model simpler, as it is given; empty if there is none."""
    simpler = problem.model.simpler
    return "" if simpler is None else simpler(problem.arguments) or ""


def _out_of_time(task: Task, drawn: Drawn, landscape: Landscape) -> str:
    """What was cut short since the time of the fit was over, as a sentence."""
    importance = drawn.importance
    stages = [
        name
        for name, cut in (
            ("the search for modes", landscape.cut),
            ("drawing from the posterior", importance is not None and importance.cut),
            ("the Markov chains", drawn.chains is not None and drawn.chains.cut),
            ("checking the draws", budget.over()),
        )
        if cut
    ]
    if not stages:
        return ""
    seconds = seconds_allowed(task.settings)
    return f"The time of the fit, {seconds or 0:g} s, was over before {' and '.join(stages)} ended."


@dataclass(frozen=True)
class _Weighed:
    """What the weights tell."""

    weights: Weights
    measures: dict[str, Any] = field(default_factory=dict)
    unresolved: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def _weighed(fitted: Fitted, drawn: Drawn, landscape: Landscape, shown: Shown) -> _Weighed:
    weighted = drawn.weighted
    if drawn.chains is not None:
        return _of_chains(drawn, drawn.chains, shown)
    if weighted is None:
        return _Weighed(Weights(math.inf, len(drawn.raw.log_p), 0.0, usable=False))
    if weighted.per_row:
        shift, ratio = (float(np.median(each)) for each in weighted.moved())
        weights = _weights(weighted, shift, ratio, (len(weighted.k_hat), weighted.unreliable))
        measures = _measured(weights, weighted.log_evidence, drawn.raw)
        return _Weighed(weights, {**measures, "unreliable_rows": weighted.unreliable})
    shapes, unresolved = unresolved_quantities(shown.weighted, weighted.weights)
    importance = drawn.importance
    log_evidence, labelled = of_all_labellings(
        landscape,
        weighted.log_evidence,
        *(
            (
                importance.points,
                importance.log_p,
                importance.log_proposal,
                importance.labels is not None,
            )
            if importance is not None
            else ()
        ),
    )
    weights = _weights(weighted, *_moved(shown.own, shown.weighted, weighted.weights))
    measures = _measured(weights, log_evidence, drawn.raw)
    measures["heaviest_tail"] = max(shapes.values(), default=math.nan)
    return _Weighed(weights, measures, unresolved, [] if labelled is None else [labelled])


def _of_chains(drawn: Drawn, chains: MixedChains, shown: Shown) -> _Weighed:
    """What is told of draws of Markov chains, beside the guide that has their moments."""
    raw, count = drawn.raw, len(next(iter(shown.posterior.values())))
    equal = np.full(count, 1 / count)
    shapes, unresolved = unresolved_quantities(shown.weighted, equal)
    moved = _moved(shown.own, shown.weighted, equal)
    effective = min(chains.effective, float(count))
    weights = Weights(raw.worst_k_hat, len(raw.log_p), effective, True, *moved)
    evidence = raw.log_evidence if raw.usable else (math.nan, math.nan)
    measures = _measured(weights, evidence, raw)
    measures |= {"heaviest_tail": max(shapes.values(), default=math.nan), "r_hat": chains.r_hat}
    return _Weighed(weights, measures, unresolved)


def _mixing(chains: MixedChains | None) -> Mixing | None:
    if chains is None:
        return None
    return Mixing(chains.chains, chains.groups, chains.r_hat, chains.diverged, chains.stuck)


def _weights(
    weighted: WeightedDraws, shift: float, ratio: float, rows: tuple[int, float] | None = None
) -> Weights:
    """Weights as evidence; where each row has its own, what is true of nearly all of the rows."""
    return Weights(
        weighted.worst_k_hat,
        len(weighted.log_p),
        weighted.fewest_effective,
        weighted.usable,
        shift,
        ratio,
        rows,
    )


def _measured(
    weights: Weights, evidence: tuple[float, float], raw: WeightedDraws
) -> dict[str, Any]:
    """The numbers that any weights have."""
    elbo, elbo_error = raw.elbo()
    return {
        "corrected_k_hat": weights.k_hat,
        "corrected_effective_sample_size": weights.effective,
        "weighted_draws": weights.draws,
        "log_evidence": evidence[0],
        "log_evidence_se": evidence[1],
        "kl_to_posterior": evidence[0] - elbo,
        # As of independent draws: with the same ones in both, it is smaller.
        "kl_to_posterior_se": float(np.hypot(evidence[1], elbo_error)),
        "raw_mean_shift": weights.shift,
        "raw_sd_log_ratio": weights.ratio,
    }


def _maximum(fitted: Fitted, drawn: Drawn) -> tuple[str, list[str]]:
    """Why the likelihood has no maximum at the fit, where priors are left out; and remarks."""
    problem = fitted.problem
    if problem.posterior is None:
        return "", []
    remarks = []
    # Engines with steps of their own see to it themselves.
    if problem.space.dimension > SIZES.products and fitted.guide.steps is None:
        remarks.append(
            f"it was not checked whether the likelihood has a maximum: {problem.space.dimension} "
            "dimensions are too many for the check."
        )
    if not fitted.seeks_maximum:
        return "", remarks
    point = {site.name: drawn.raw.sites[site.name][0] for site in problem.space.sites}
    return why_no_maximum(problem, point, fitted.start) or "", remarks


def _modes(fitted: Fitted, drawn: Drawn, landscape: Landscape) -> Modes:
    """Where starts came to."""
    best, missing, starts = landscape.best, 0.0, fitted.starts
    together, importance = drawn.together, drawn.importance
    if best is not None:
        starts = (best.starts, landscape.tried)
    # The evidence of some of the rows is none of all of them.
    weighed = together is not None and drawn.chains is None
    if best is not None and weighed and landscape.rows is None:
        assert together is not None
        evidence = together.log_evidence[0]
        if importance is not None and importance.labels is not None:
            evidence -= importance.labels.log_orders  # a mode has one labelling
        missing = best.log_evidence - evidence
        if missing < -SPIKE:  # a narrow spike, which has none of the mass
            starts = None
        missing = max(missing, max(mode.promise for mode in landscape.modes) - evidence)
    shares = () if importance is None else importance.shares()
    return Modes(
        starts,
        tuple(share for share in shares if share > SMALLEST),
        best is not None and best.relabelled,
        landscape.own_starts,
        landscape.unfinished,
        missing,
        _left_out(drawn, landscape),
    )


def _left_out(drawn: Drawn, landscape: Landscape) -> float:
    """The share of the posterior at the largest known mode that has too few draws."""
    together, importance = drawn.together, drawn.importance
    # Where modes differ in labels alone, draws stay at one labelling.
    alike = any(mode.relabelled for mode in landscape.proper)
    alike |= importance is not None and importance.labels is not None
    if importance is None or together is None or alike or landscape.density is None:
        return 0.0
    with suppress(OutOfTimeError):
        return deserted(
            landscape.density, landscape.proper, importance.points, importance.weights,
            together.log_evidence[0], np.random.default_rng(0),
        )  # fmt: skip
    return 0.0


def _chains(drawn: Drawn, landscape: Landscape) -> Chains:
    """Where Markov chains that began at the draws came to."""
    coverage = None if drawn.importance is None else drawn.importance.coverage
    if coverage is None:
        return Chains()
    looked = landscape.climbed is not None and len(landscape.climbed) > 0
    return Chains(coverage.share, coverage.chains, coverage.lasting, looked and coverage.whole)


def _of_all_modes(
    task: Task, fitted: Fitted, drawn: Drawn, landscape: Landscape
) -> tuple[float, float]:
    """Nats of evidence that draws about every known mode have found beyond a guide's, with error.

    The weights of a guide's draws do not tell of a mode that it left out. It is (0, 0) where the
    draws are about all modes anyway, there are no modes to draw about, or such draws have poor
    weights.
    """
    together = drawn.together
    importance = drawn.importance
    if fitted.gaussian is not None or importance is not None or together is None:
        return 0.0, 0.0
    try:
        found = _about_all_modes(task, landscape)
    except OutOfTimeError:
        return 0.0, 0.0
    if found is None or not found.k_hat <= k_hat_threshold(len(found.log_weights)):
        return 0.0, 0.0
    value, error = log_mean_exp(found.log_weights)
    evidence, own_error = together.log_evidence
    return value - evidence, float(np.hypot(error, own_error))


def _about_all_modes(task: Task, landscape: Landscape) -> AdaptiveImportance | None:
    """Importance draws that begin at every known mode, if there are any."""
    density, curvature, modes = landscape.density, landscape.curvature, landscape.proper
    if density is None or curvature is None or not modes or landscape.rows is not None:
        return None
    promises = np.array([mode.promise for mode in modes])
    precisions = torch.as_tensor(np.stack([np.asarray(mode.precision) for mode in modes]))
    roots = factor_of_inverse(precisions)
    first = Mixture.of(
        np.maximum(np.exp(promises - promises.max()), 0.05),
        np.stack([mode.location for mode in modes]),
        (roots @ roots.mT).numpy(),
    )
    random = np.random.default_rng(task.seed)
    threads = task.problem.threads
    with isolated(task.seed, dtype=torch.float64, threads=threads), np.errstate(all="ignore"):
        return sampled(density, curvature, first, random, landscape.places)


def _moved(
    own: Mapping[str, Tensor], weighted: Mapping[str, np.ndarray], weights: np.ndarray
) -> tuple[float, float]:
    """The largest shift of a raw mean from the weighted one, in sds, and log ratio of the sds."""
    shift, ratio = 0.0, 0.0
    for name, values in weighted.items():
        flat = values.reshape(len(weights), -1)
        guide = own[name].double().numpy().reshape(len(own[name]), -1)
        mean = weights @ flat
        with np.errstate(invalid="ignore"):
            sd = np.sqrt(weights @ np.square(flat - mean))
            tiny = 1e-12 * np.maximum(1.0, np.abs(mean))
            used = ~((sd <= tiny) & (guide.std(0) <= tiny))  # constants are no quantity
        if used.any():
            with np.errstate(divide="ignore", invalid="ignore"):
                moved = np.abs(guide.mean(0) - mean)[used] / sd[used]
                widened = np.abs(np.log(guide.std(0)[used] / sd[used]))
            shift = max(shift, float(np.max(np.nan_to_num(moved, nan=np.inf))))
            ratio = max(ratio, float(np.max(np.nan_to_num(widened, nan=np.inf))))
    return shift, ratio
