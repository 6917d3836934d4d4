"""From draws to a fit: in ArviZ's schema, measured, with the evidence of its verdict."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbowroom.assess.measures import bound, no_loo
from elbowroom.assess.parts import elbo_parts
from elbowroom.assess.verdict import judge
from elbowroom.density.landscape import Landscape
from elbowroom.draws.groups import canonical_sites, posterior_tree, reported_quantities
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.engines.protocol import Fitted
from elbowroom.engines.task import Task
from elbowroom.pipeline.collecting import Shown, collect
from elbowroom.pipeline.drawing import Drawn
from elbowroom.problem.bound import Problem
from elbowroom.result import Fit
from elbowroom.run import folder as run_folder


def conclude(task: Task, fitted: Fitted, drawn: Drawn, landscape: Landscape) -> Fit:
    """Makes a fit of a guide's draws.

    The posterior consists of the corrected draws where they can be had, else of the guide's own;
    the other ones lie beside them, in `raw_posterior` or `corrected_posterior`.
    """
    problem, weighted = fitted.problem, drawn.weighted
    corrected = drawn.chains is not None or (weighted is not None and weighted.usable)
    with problem.session(task.seed + 1, fitted.parameters):
        own = canonical_sites(problem, _as(drawn.raw.sites, problem.dtype), None)
        posterior = own
        groups: dict[str, Mapping[str, Any]] = {}
        if drawn.corrected is not None:
            other = canonical_sites(problem, _as(drawn.corrected.sites, problem.dtype), own)
            posterior = other if corrected else own
            beside, sites, source = (
                ("raw", own, drawn.raw) if corrected else ("corrected", other, drawn.corrected)
            )
            groups[f"{beside}_posterior"] = sites
            groups[f"{beside}_stats"] = _densities(source)
        together = drawn.together if drawn.chains is None else drawn.corrected
        shown = Shown(_reported(problem, own), _weighted(problem, together, own), posterior)
        collected = collect(task, fitted, drawn, landscape, shown)
    source = drawn.corrected if drawn.corrected is not None and corrected else drawn.raw
    groups["posterior"] = posterior
    groups["sample_stats"] = _densities(source)
    if weighted is not None and weighted.per_row:
        groups["row_weights"] = _densities(weighted)
    origin = "corrected" if corrected else "raw"
    origin = origin if drawn.chains is None else "chains"
    attributes = _attributes(task, fitted, judge(collected.evidence).level, origin)
    if weighted is not None:
        attributes["effective_draws"] = collected.evidence.weights.effective

    def complete() -> tuple[Any, list[str]]:
        with problem.session(task.seed + 2, fitted.parameters):
            return posterior_tree(problem, groups, attributes, task.keep_local)

    def parts() -> dict[str, Any]:
        with problem.session(task.seed + 3, fitted.parameters):
            return elbo_parts(
                problem.function, fitted.callable, problem.arguments, problem.space,
                drawn.raw, unconstrained=fitted.gaussian is not None,
            ).measures()  # fmt: skip

    proposal = None if drawn.importance is None else drawn.importance.proposal
    remarks = [*fitted.remarks, *_of_landscape(landscape), *collected.remarks]
    if proposal is not None and proposal.description is not None:
        remarks.append(proposal.description)
    rows = weighted is not None and weighted.per_row
    measures = bound(drawn.raw, fitted.point, weighted if rows else None, fitted.loss)
    measures.update(seconds=fitted.trained.seconds, parameters=fitted.trained.parameters)
    measures.update(collected.measures)
    if fitted.point or problem.space.row_latents(drawn.raw.sites):
        measures.update(no_loo())
    return Fit(
        fitted=fitted,
        settings=task.settings,
        seed=task.seed,
        evidence=collected.evidence,
        complete=complete,
        measures=measures,
        parts=None if fitted.point else parts,
        remarks=tuple(remarks),
        origin=origin,
        proposal=proposal,
    )


def _densities(draws: WeightedDraws) -> dict[str, np.ndarray]:
    return {"log_p": draws.log_p, "log_q": draws.log_q}


def _reported(problem: Problem, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own quantities, where it was fitted in others."""
    return reported_quantities(problem, sites) if problem.reparameterised else dict(sites)


def _weighted(
    problem: Problem, together: WeightedDraws | None, own: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Weighted draws of all latents together, as the user reads them."""
    if together is None:
        return {}
    sites = canonical_sites(problem, _as(together.sites, problem.dtype), own)
    return {name: values.double().numpy() for name, values in _reported(problem, sites).items()}


def _of_landscape(landscape: Landscape) -> list[str]:
    """What a reader should know of where the fit began."""
    said = [] if landscape.likelihood is None else [landscape.likelihood.note]
    if landscape.density is not None and landscape.density.note is not None:
        said.append(landscape.density.note)
    return said


def _attributes(task: Task, fitted: Fitted, verdict: str, origin: str) -> dict[str, Any]:
    """The attributes of the ArviZ tree."""
    problem, trained = fitted.problem, fitted.trained
    return {
        "model": problem.model.name,
        "guide": fitted.guide.name,
        "engine": fitted.engine,
        "elbo_objective": fitted.objective[0],
        "seed": task.seed,
        "converged": int(trained.converged),
        "status": trained.reason,
        "verdict": verdict,
        "draws": origin,
        "settings": task.settings.flat(),
        "versions": run_folder.versions(),
        "options": {} if problem.options is None else asdict(problem.options),
        "elbo_history": _thinned(trained.elbo_history),
    }


def _as(sites: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: values.to(dtype) if values.is_floating_point() else values
        for name, values in sites.items()
    }


def _thinned(history: np.ndarray, length: int = 1000) -> list[float]:
    """At most about `length` values, evenly spaced: attributes are small; history.csv has all."""
    step = max(1, math.ceil(len(history) / length))
    return [float(value) for value in history[::step]]
