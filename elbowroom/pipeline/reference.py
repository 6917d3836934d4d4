"""A fit compared with a long run of NUTS over the same log density."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray
from torch import Tensor

from elbowroom.assess.measures import leave_one_out
from elbowroom.assess.reference import compare_with_reference, how_well, reference_sentence
from elbowroom.commands import ReferenceOptions
from elbowroom.density.landscape import density_of
from elbowroom.draws.groups import (
    canonical_sites,
    names_of,
    posterior_tree,
    reported_quantities,
)
from elbowroom.draws.tree import build_tree, in_chains
from elbowroom.engines.fixed_draws.engine import why_not
from elbowroom.engines.nuts.sampler import NutsDraws, sample_nuts
from elbowroom.errors import OptionError
from elbowroom.memory import check_memory
from elbowroom.options import check_options
from elbowroom.problem.isolation import checked_seed, constrained_values, isolated
from elbowroom.problem.leaves import kept_buffers
from elbowroom.problem.process import alone
from elbowroom.result import Fit

CHAINS = 4


@alone
def add_reference(
    fit: Fit,
    *,
    draws: int = 1000,
    seed: int | None = None,
    take: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> Fit:
    """Runs NUTS from draws of a fit's posterior, compares the two, and judges the fit anew.

    The chains begin where the fit is: a mode that it has missed, they may miss as well.

    Args:
        fit: Of a model whose log density can be had: no network of point parameters, no
            continuous latents for each row. Point parameters stay at the fit's values.
        draws: Of each of four chains, after tuning.
        seed: Of the sampler; the fit's own by default.
        take: Whether the posterior shall consist of the draws of NUTS, if its chains have mixed.
        progress: As `elbowroom.engines.nuts.sampler.sample_nuts` takes it.

    Returns:
        The fit with the group `reference_posterior` (chain, draw) in its tree, unless these draws
        are its posterior now; a table `reference` in its diagnostics, one line a quantity (see
        `elbowroom.assess.reference.compare_with_reference`); and its verdict.

    Raises:
        OptionError: If the draws or the seed are out of range, or the model's log density cannot be
            had.

    Example:
        >>> from elbowroom.api import fit as fit_model
        >>> fit = fit_model("bayesian_regression", "diabetes", formula="progression ~ bmi", seed=1)
        >>> add_reference(fit, draws=250).evidence.reference[1]
        True
    """
    check_options(ReferenceOptions, draws=draws, seed=seed)
    problem = fit.problem
    if problem.posterior is not None:
        raise OptionError(
            f"the guide '{fit.guide.name}' leaves the priors out, without which there is no "
            "posterior to compare with; fit with another guide."
        )
    reason = why_not(problem)
    if reason is not None:
        raise OptionError(
            f"NUTS cannot be run for this fit: {reason}; compare guides instead ('elbowroom "
            "compare')."
        )
    numbers = CHAINS * problem.space.dimension
    check_memory(
        f"--draws {draws:,} in {CHAINS} chains of {problem.space.dimension:,} latent numbers",
        3 * 8 * draws * numbers, "give fewer --draws", OptionError,
    )  # fmt: skip
    seed = checked_seed(fit.seed if seed is None else seed)
    random = np.random.default_rng(seed)
    tree = fit.posterior.copy()
    unconstrained = tree["unconstrained_posterior"]
    picked = random.choice(unconstrained.sizes["draw"], CHAINS, replace=False)
    parts = [
        unconstrained[site.name.replace("/", ".")].to_numpy()[0, picked].reshape(CHAINS, -1)
        for site in problem.space.sites
    ]
    with (
        kept_buffers(problem.function),
        isolated(seed, dtype=torch.float64, threads=problem.threads),
    ):
        density = density_of(problem, constrained_values(fit.parameters))
        starts = np.concatenate(parts, axis=1).astype(float)
        nuts = sample_nuts(
            density, starts, draws=draws, seed=seed, progress=progress, threads=problem.threads
        )
        flat = density.constrained(nuts.points.reshape(-1, density.dimension))
    sites = {name: values.to(problem.dtype) for name, values in flat.items()}
    with problem.session(seed, fit.parameters):
        sites = canonical_sites(problem, sites, fit.global_sites())
        quantities = reported_quantities(problem, sites)
        made, _ = build_tree({"posterior": quantities}, names_of(problem), {})
    reference = in_chains(made["posterior"].to_dataset(), len(nuts.points))
    table = compare_with_reference(tree["posterior"].to_dataset(), reference)
    tree["reference_posterior"] = reference
    sentence = reference_sentence(table, nuts)
    mixed = how_well(nuts.worst_r_hat, nuts.fewest_effective, nuts.divergences)
    origin, notes, count = fit.origin, list(fit.notes), fit.measures["draws"]
    if take and nuts.converged:
        origin, count = "nuts", nuts.points.shape[0] * nuts.points.shape[1]
        sentence = f"The posterior consists of the draws of NUTS ({mixed}).", True
        tree, more = _taken(fit, sites, tree, nuts)
        notes += more
    evidence = replace(fit.evidence, reference=sentence)
    if sentence is None:
        notes.append(
            f"NUTS has not converged ({mixed}), so it says nothing about the fit; run 'elbowroom "
            "reference RUN' with more --draws."
        )
    measures: dict[str, Any] = {
        **fit.diagnostics,
        "draws": count,
        "reference": table.to_dict("records"),
        "reference_seconds": nuts.seconds,
        "reference_r_hat": nuts.worst_r_hat,
        "reference_effective_sample_size": nuts.fewest_effective,
        "reference_divergences": nuts.divergences,
        "reference_sampler": nuts.sampler,
    }
    if origin == "nuts" and not problem.space.row_latents(sites):
        measures.update(leave_one_out(tree))
    return replace(
        fit,
        complete=lambda: (tree, []),
        remarks=tuple(notes),
        measures=measures,
        evidence=evidence,
        origin=origin,
    )


def _taken(
    fit: Fit, sites: dict[str, Tensor], before: xarray.DataTree, nuts: NutsDraws
) -> tuple[xarray.DataTree, list[str]]:
    """The tree with the draws of NUTS as the posterior, and what was left out of it."""
    count = nuts.points.shape[0] * nuts.points.shape[1]
    statistics: dict[str, Any] = {"log_p": np.full(count, np.nan), "log_q": np.full(count, np.nan)}
    groups: dict[str, Any] = {"posterior": sites, "sample_stats": statistics}
    attributes: dict[Any, Any] = {**before.attrs, "draws": "nuts"}
    attributes.pop("effective_draws", None)  # of the weights, which these draws do not have
    with fit.problem.session(fit.seed, fit.parameters):
        tree, notes = posterior_tree(fit.problem, groups, attributes, keep_local=True)
    for name, node in tree.children.items():
        whole = node.to_dataset()
        if name not in ("prior", "prior_predictive") and whole.sizes.get("draw") == count:
            tree[name] = in_chains(whole, len(nuts.points))
    if "raw_posterior" in before.children:
        tree["raw_posterior"] = before["raw_posterior"].copy()
    else:
        own = before["posterior"].to_dataset()
        tree["raw_posterior"] = own.merge(before["sample_stats"].to_dataset())
    return tree, notes
