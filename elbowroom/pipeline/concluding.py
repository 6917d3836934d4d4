"""From a fitted guide to a fit: its draws corrected, in ArviZ's schema, measured and judged."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbowroom.assess.labelling import of_all_labellings
from elbowroom.assess.latent_health import latent_health
from elbowroom.assess.measures import bound, no_loo
from elbowroom.assess.predictive import predictive_checks
from elbowroom.assess.verdict import Evidence, judge, unresolved_quantities
from elbowroom.density.importance import (
    effective_sample_size,
    k_hat_threshold,
    log_mean_exp,
    pareto_k_hat,
)
from elbowroom.density.landscape import Landscape
from elbowroom.density.maximum import LARGEST, why_no_maximum
from elbowroom.density.mixtures import Mixture
from elbowroom.draws.adaptive import sampled
from elbowroom.draws.correction import Correction, reweighted
from elbowroom.draws.coverage import deserted
from elbowroom.draws.groups import posterior_tree, replicated, reported_quantities
from elbowroom.draws.of_guide import Draws, draw
from elbowroom.draws.row_weights import RowCorrection, corrected_rows, weigh_rows
from elbowroom.engines.svi.loop import Trained
from elbowroom.guides import Guide, Start
from elbowroom.guides.roots import factor_of_inverse
from elbowroom.guides.sites import GuideSites
from elbowroom.guides.space import LatentSpace
from elbowroom.pipeline.task import Task
from elbowroom.problem.isolation import Parameters, isolated
from elbowroom.problem.validation import invalid_draws
from elbowroom.result import Fit, canonical_sites
from elbowroom.run import folder as run_folder

DRAWS = 2000
"""Posterior draws by default, of an engine that has none of its own."""
MOST_DRAWS = 8
"""Times as many that are weighed, where the weights are uneven."""
ROW_DRAWS = 4
"""Times as many that are weighed of each row, where all latents are the rows'."""
MOST_NUMBERS = 40_000_000
"""Numbers in those."""
ENOUGH = 1000.0
"""Effective draws at which no more are weighed."""
PRIORS = (
    "read the point parameters as the maximum of their likelihood, or give them priors: "
    "pyro.sample in the place of pyro.param."
)
"""What to do where a model has points alone."""
SPIKE = 5.0
"""Nats of Laplace evidence below the evidence of the draws at which a mode holds no mass."""


@dataclass(frozen=True)
class Fitted:
    """A guide at its optimum.

    Attributes:
        guide: Its declaration.
        callable: The Pyro guide.
        start: What its parameters are relative to.
        parameters: Of it and of the model.
        trained: How the optimiser went.
        objective: The name of the ELBO that was maximised, and why.
        engine: "svi", "fixed_draws" or "em".
        point: Whether it is one point.
        starts: How many starts reached the optimum, and of how many, where there are no modes.
        loss: Nats of ELBO that it is expected to be below the best guide of its form, as far as
            that is known.
        note: On what is not known well.
    """

    guide: Guide
    callable: Callable[..., Any]
    start: Start
    parameters: Parameters
    trained: Trained
    objective: tuple[str, str]
    engine: str
    point: bool = False
    starts: tuple[int, int] | None = None
    loss: float = 0.0
    note: str | None = None


def conclude(
    task: Task,
    fitted: Fitted,
    raw: Draws,
    correction: Correction | RowCorrection | None,
    landscape: Landscape,
) -> Fit:
    """Makes a fit of a guide's draws; to be called in a session with the guide's parameters.

    The posterior holds the corrected draws where they can be had, else the guide's own; the other
    ones lie beside them, in `raw_posterior` or `corrected_posterior`.
    """
    problem, settings, seed = task.problem, task.settings, task.seed
    trained, guide = fitted.trained, fitted.guide
    own = canonical_sites(problem, _as(raw.sites, problem.dtype), None)
    mended = own
    groups: dict[str, Mapping[str, Any]] = {}
    corrected = correction is not None and correction.usable
    if correction is not None:
        mended = canonical_sites(problem, _as(correction.sites, problem.dtype), own)
        if isinstance(correction, Correction):
            weighted = canonical_sites(problem, _as(correction.weighted, problem.dtype), own)
            if problem.reparameterised:  # what counts are the model's own sites
                weighted = reported_quantities(problem, weighted)
            correction = replace(correction, weighted=weighted)
        groups["raw_posterior" if corrected else "corrected_posterior"] = (
            own if corrected else mended
        )
    held, holds = (mended, "corrected") if corrected else (own, "raw")
    source = correction if correction is not None and corrected else raw
    groups["posterior"] = held
    groups["sample_stats"] = {"log_p": source.log_p, "log_q": source.log_q}
    shares, missed = predictive_checks(*replicated(problem, held))
    shown = reported_quantities(problem, own) if problem.reparameterised else own
    evidence, more, labelled = _evidence(fitted, raw, correction, shown, landscape, missed)
    evidence = replace(
        evidence, ladder=problem.model.engine is None, doubts=problem.prepared.doubts,
        invalid=invalid_draws(problem.function, problem.arguments, held) or "",
    )  # fmt: skip
    if fitted.point and not problem.space.sites:
        evidence = replace(evidence, mend=PRIORS)
    attributes = {
        "model": problem.model.name,
        "guide": guide.name,
        "engine": fitted.engine,
        "elbo_objective": fitted.objective[0],
        "seed": seed,
        "converged": int(trained.converged),
        "status": trained.reason,
        "verdict": judge(evidence).level,
        "draws": holds,
        "settings": asdict(settings),
        "versions": run_folder.versions(),
        "options": {} if problem.options is None else asdict(problem.options),
        "elbo_history": _thinned(trained.elbo_history),
    }
    notes = [] if fitted.note is None else [fitted.note]
    if trained.eager is not None:
        notes.append(f"the steps were run as they stand, which is slower: {trained.eager}.")
    if trained.uncompiled is not None:
        notes.append(f"the steps were not compiled: {trained.uncompiled}.")
    if fitted.engine == "svi" and landscape.agreement is not None:
        notes.append(landscape.agreement)
    if landscape.likelihood is not None:
        notes.append(landscape.likelihood.note)
    if labelled is not None:
        notes.append(labelled)
    if landscape.density is not None and landscape.density.note is not None:
        notes.append(landscape.density.note)
    proposal = correction.proposal if isinstance(correction, Correction) else None
    if proposal is not None:
        notes += [said for said in [proposal.description] if said is not None]
    measures = bound(raw, fitted.point, correction, fitted.loss)
    measures.update(seconds=trained.seconds, parameters=trained.parameters)
    measures.update(more, predictive_checks=shares)
    if fitted.point or problem.space.row_latents(raw.sites):
        measures.update(no_loo())

    def complete() -> tuple[Any, list[str]]:
        with problem.session(seed + 2, fitted.parameters):
            return posterior_tree(problem, groups, attributes, task.keep_local)

    return Fit(
        problem, guide, settings, fitted.objective, seed, trained, complete, measures, notes,
        fitted.start, fitted.parameters, fitted.callable, fitted.engine, evidence, holds,
        proposal,
    )  # fmt: skip


def draw_and_conclude(task: Task, fitted: Fitted, sites: GuideSites, landscape: Landscape) -> Fit:
    """Draws from a fitted guide, weighs the draws, and makes a fit of them."""
    problem, space, arguments = task.problem, task.problem.space, task.problem.arguments
    called, parameters, point = fitted.callable, fitted.parameters, fitted.point
    count = DRAWS if task.draws is None else task.draws
    with problem.session(task.seed + 1, parameters):
        random = np.random.default_rng(task.seed)
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
                amortised=fitted.guide.amortised,
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
    evidence, remarks = replace(found.evidence, health=tuple(said)), found.remarks
    if isinstance(correction, Correction) and not point:
        found_more = beyond_the_guide(task, landscape, correction.log_evidence)
        evidence = replace(evidence, elsewhere=found_more)
    if problem.posterior is not None:
        found.measures["log_likelihood"] = float(raw.log_p[0])
        point_values = {site.name: raw.sites[site.name][0] for site in space.sites}
        reason = why_no_maximum(problem, point_values, fitted.start)
        evidence = replace(evidence, maximum=reason or "")
        if space.dimension > LARGEST and fitted.guide.steps is None:  # which see to it themselves
            remarks.append(
                f"whether the likelihood has a maximum there, in {space.dimension} dimensions, was "
                "not looked at."
            )
    return replace(found, evidence=evidence, remarks=remarks)


def beyond_the_guide(
    task: Task, landscape: Landscape, log_evidence: tuple[float, float]
) -> tuple[float, float]:
    """Nats of evidence that draws about every known mode have found beyond a guide's, with error.

    The weights of a guide's draws do not tell of a mode that it left out. It is (0, 0) where there
    are no modes to draw about, or such draws have poor weights.
    """
    density, curvature, modes = landscape.density, landscape.curvature, landscape.proper
    if density is None or curvature is None or not modes or landscape.rows is not None:
        return 0.0, 0.0
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
        found = sampled(density, curvature, first, random, landscape.places)
    if not found.k_hat <= k_hat_threshold(len(found.log_weights)):
        return 0.0, 0.0
    value, error = log_mean_exp(found.log_weights)
    return value - log_evidence[0], float(np.hypot(error, log_evidence[1]))


def _weighed(count: int, space: LatentSpace) -> int:
    """Draws of each row that are weighed: a few times as many, where memory allows."""
    return max(count, min(ROW_DRAWS * count, MOST_NUMBERS // max(space.dimension, 1)))


def _wasteful(drawn: Draws) -> bool:
    """Whether the weights are good, but so uneven that more draws are worth their while."""
    k_hat = pareto_k_hat(drawn.log_weights)
    few = effective_sample_size(drawn.log_weights) < ENOUGH
    return few and k_hat <= k_hat_threshold(len(drawn.log_p))


def _evidence(
    fitted: Fitted,
    raw: Draws,
    correction: Correction | RowCorrection | None,
    own: Mapping[str, Tensor],
    landscape: Landscape,
    sentences: list[str],
) -> tuple[Evidence, dict[str, Any], str | None]:
    """What the verdict is made of, the numbers among it by name, and what log p(data) counts."""
    best, missing = landscape.best, 0.0
    drawn = correction.importance if isinstance(correction, Correction) else None
    coverage = None if drawn is None else drawn.coverage
    looked = landscape.climbed is not None and len(landscape.climbed) > 0
    covered = looked and coverage is not None and coverage.whole
    starts = fitted.starts
    slope = 0.0 if landscape.density is None else landscape.density.slope_error
    if best is not None:
        starts = (best.starts, landscape.tried)
    # The evidence of some of the rows is none of all of them.
    if best is not None and correction is not None and landscape.rows is None:
        missing = best.log_evidence - correction.log_evidence[0]
        higher = max(mode.promise for mode in landscape.modes) - correction.log_evidence[0]
        if missing < -SPIKE:  # a narrow spike, which holds none of the mass
            starts = None
        missing = max(missing, higher)
    if correction is None:
        evidence = Evidence(
            fitted.trained.converged, fitted.trained.reason, fitted.engine == "svi", fitted.point,
            math.inf, len(raw.log_p), 0.0, False, starts=starts, predictive=tuple(sentences),
            endless=landscape.endless, slope=slope,
        )  # fmt: skip
        return evidence, {}, None
    if isinstance(correction, RowCorrection):
        return *_evidence_of_rows(fitted, raw, correction, sentences), None
    weighted = {name: values.double().numpy() for name, values in correction.weighted.items()}
    shapes, unresolved = unresolved_quantities(weighted, correction.weights)
    shift, ratio = _moved(own, weighted, correction.weights)
    (log_evidence, error), labelled = of_all_labellings(
        landscape,
        correction.log_evidence,
        *((drawn.points, drawn.log_p, drawn.log_proposal) if drawn is not None else ()),
    )
    measures = {
        "corrected_k_hat": correction.k_hat,
        "corrected_effective_sample_size": correction.effective,
        "weighted_draws": len(correction.weights),
        "log_evidence": log_evidence,
        "log_evidence_se": error,
        "kl_to_posterior": log_evidence - raw.elbo()[0],
        "raw_mean_shift": shift,
        "raw_sd_log_ratio": ratio,
        "heaviest_tail": max(shapes.values(), default=math.nan),
    }
    left_out = 0.0
    modes = landscape.proper
    labelled_alike = not any(mode.relabelled for mode in modes)  # else draws keep to one labelling
    if drawn is not None and labelled_alike and landscape.density is not None:
        left_out = deserted(
            landscape.density, modes, drawn.points, drawn.weights, correction.log_evidence[0],
            np.random.default_rng(0),
        )  # fmt: skip
    evidence = Evidence(
        fitted.trained.converged, fitted.trained.reason, fitted.engine == "svi", fitted.point,
        correction.k_hat, len(correction.weights), correction.effective, correction.usable,
        shift, ratio, starts, tuple(share for share in correction.modes if share > 0.001),
        best is not None and best.relabelled, tuple(unresolved), tuple(sentences),
        missing=missing, endless=landscape.endless, slope=slope,
        outside=(0.0, 0) if coverage is None else (coverage.share, coverage.chains),
        unfinished=landscape.unfinished, covered=covered,
        lasting=coverage is not None and coverage.lasting,
        own_starts=landscape.own_starts, left_out=left_out,
    )  # fmt: skip
    return evidence, measures, labelled


def _evidence_of_rows(
    fitted: Fitted, raw: Draws, correction: RowCorrection, sentences: list[str]
) -> tuple[Evidence, dict[str, Any]]:
    """The same where each row has weights of its own: what holds for nearly all of the rows."""
    log_evidence, error = correction.log_evidence
    k_hat = correction.worst_k_hat
    shift, ratio = float(np.median(correction.shift)), float(np.median(correction.ratio))
    measures = {
        "corrected_k_hat": k_hat,
        "corrected_effective_sample_size": correction.fewest_effective,
        "weighted_draws": correction.weighted,
        "unreliable_rows": correction.unreliable,
        "log_evidence": log_evidence,
        "log_evidence_se": error,
        "kl_to_posterior": log_evidence - raw.elbo()[0],
        "raw_mean_shift": shift,
        "raw_sd_log_ratio": ratio,
    }
    evidence = Evidence(
        fitted.trained.converged, fitted.trained.reason, fitted.engine == "svi", fitted.point,
        k_hat, correction.weighted, correction.fewest_effective, correction.usable, shift, ratio,
        starts=fitted.starts, predictive=tuple(sentences),
        rows=(len(correction.k_hat), correction.unreliable),
    )  # fmt: skip
    return evidence, measures


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


def _as(sites: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: values.to(dtype) if values.is_floating_point() else values
        for name, values in sites.items()
    }


def _thinned(history: np.ndarray, length: int = 1000) -> list[float]:
    """At most about `length` values, evenly spaced: attributes are small; history.csv has all."""
    step = max(1, math.ceil(len(history) / length))
    return [float(value) for value in history[::step]]
