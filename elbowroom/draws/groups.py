"""From draws of a problem's sites to the groups of its ArviZ tree."""

import warnings
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray
from torch import Tensor

from elbowroom.draws.predictive import (
    deterministic_sites,
    evaluate,
    predict_sites,
    prior_sites,
)
from elbowroom.draws.tree import LARGEST_GROUP, Names, build_tree
from elbowroom.errors import ModelError
from elbowroom.guides.parameters import fitted_names
from elbowroom.guides.space import sample_sites, trace_model
from elbowroom.problem.bound import Problem


@dataclass(frozen=True)
class GroupSizes:
    """The sizes of the groups of a posterior."""

    prior_draws: int = 500
    """Draws of the prior."""
    checked_draws: int = 400
    """Draws of the prior predictive and of the log likelihood that a check of the model uses."""
    most_points: int = 1000
    """Point parameters that are stored as a group, at most."""
    fewest_kept: int = 100
    """Draws below which a posterior of large latents is better left out."""


GROUP_SIZES = GroupSizes()
DENSITIES = ("log_p", "log_q")
POSTERIORS = ("posterior", "raw_posterior", "corrected_posterior", "unconstrained_posterior")
UNSAMPLED = (AssertionError, NotImplementedError, ModelError, ValueError, RuntimeError)
"""What a distribution that cannot be sampled raises."""


def posterior_tree(
    problem: Problem,
    drawn: Mapping[str, Mapping[str, Any]],
    attributes: Mapping[str, Any],
    keep_local: bool,
) -> tuple[xarray.DataTree, list[str]]:
    """Every group that follows from draws of the latent sites.

    Args:
        problem: The model bound to its data.
        drawn: "posterior", the draws of every latent site; "sample_stats", for each draw, if the
            other groups are wanted too; "raw_posterior" or "corrected_posterior", the other draws,
            with "raw_stats" or "corrected_stats", for each of them; "row_weights", of each row.
        attributes: Of the tree.
        keep_local: Whether to keep large latents that each row has, and discrete ones.

    Returns:
        The tree, and a line for everything that was left out of it.
    """
    sites, space, arguments = drawn["posterior"], problem.space, problem.arguments
    kept, notes, step_of_posterior = _kept(problem, sites, keep_local)

    groups: dict[str, Mapping[str, Any]] = {"posterior": reported_quantities(problem, sites, kept)}
    for name in ("raw_posterior", "corrected_posterior"):
        if name in drawn:
            groups[name] = {
                **reported_quantities(problem, drawn[name], kept),
                **drawn.get(name.replace("posterior", "stats"), {}),
            }
    if "row_weights" in drawn:
        groups["row_weights"] = drawn["row_weights"]
    if "sample_stats" in drawn:
        groups["sample_stats"] = drawn["sample_stats"]
        groups["unconstrained_posterior"] = {
            site.name: torch.func.vmap(site.transform.inv)(kept[site.name])
            for site in space.sites
            if site.name in kept
        }
        data, constants = _data(problem)
        groups["observed_data"] = in_columns(problem, data)
        groups["constant_data"] = {**constants, **_predictors(problem, constants)}
        groups["point_parameters"] = _points(problem)
        count = len(drawn["sample_stats"]["log_p"])
        step = _thinning(count, data)
        few = {name: values[::step] for name, values in space.given(sites).items()}
        number = len(range(0, count, step))
        unknown = [name for name in space.shared_discrete if name not in few]
        if data and unknown:
            notes.append(
                f"the group posterior_predictive is left out: '{unknown[0]}' is "
                "discrete and shared by several observations."
            )
        elif data:
            drawn_data = _predicted(problem, few, number)
            groups["posterior_predictive"] = in_columns(problem, drawn_data)
            if not drawn_data:
                notes.append(
                    "the group posterior_predictive is left out: the observed sites cannot be "
                    "sampled."
                )
        if data:
            if number < count:
                notes.append(
                    "the groups log_likelihood and posterior_predictive have fewer draws than "
                    "the posterior, to save space."
                )
            scored = evaluate(problem.function, arguments, few, space, count=number)
            pointwise = _log_likelihood(problem, scored.log_likelihood, notes)
            groups["log_likelihood"] = in_columns(problem, pointwise, whole_rows=True)
            if problem.posterior is None:
                prior = scored.log_prior
                groups["log_prior"] = {name: prior[name] for name in kept if name in prior}
        groups.update(_prior(problem, data, notes))
    steps = dict.fromkeys(POSTERIORS, step_of_posterior)
    tree, more = build_tree(groups, names_of(problem), attributes, steps)
    return tree, notes + more


def prior_tree(problem: Problem) -> tuple[xarray.DataTree, list[str]]:
    """Draws of the prior and of what it predicts, beside the data, without a fit.

    Returns:
        The tree, without these groups where the prior cannot be sampled, and lines on what is left
        out.
    """
    notes: list[str] = []
    data, _ = _data(problem)
    groups: dict[str, Mapping[str, Any]] = {**_prior(problem, data, notes)}
    groups["observed_data"] = in_columns(problem, data)
    tree, more = build_tree(groups, names_of(problem), {})
    return tree, notes + more


def names_of(problem: Problem) -> Names:
    """Names of the dims of a problem's sites, arguments and columns."""
    columns, dims = problem.prepared.columns, problem.dims
    rows = dims.get(problem.observed, ())[:1] if problem.space.observed else ()
    held = {
        str(each): dims.get(name, ())[:1]
        for name, own in columns.items()
        for each in ((own,) if isinstance(own, str) else own)
    }
    own_rows = dict.fromkeys([*_of_table(problem), *DENSITIES], rows)
    return Names(dims, problem.prepared.coords, {**own_rows, **held})


def in_columns(
    problem: Problem, values: Mapping[str, Tensor], whole_rows: bool = False
) -> dict[str, Tensor]:
    """What was observed or predicted, by the user's columns.

    Args:
        problem: The model bound to its data.
        values: By site, each (..., rows) or (..., rows, columns).
        whole_rows: Whether a row has one value, whatever its columns, as (..., rows).

    Returns:
        A variable a column, (..., rows), under the column's name. What is of several columns
        together, and sites of which no column is known, keep the site's name.
    """
    named: dict[str, Tensor] = {}
    for name, value in values.items():
        own = problem.prepared.columns.get(name, name)
        if isinstance(own, str):
            named[own] = value
        elif whole_rows:
            named[own[0] if len(own) == 1 else name] = value
        else:
            named.update(zip(own, value.unbind(-1), strict=True))
    return named


def _of_table(problem: Problem) -> dict[str, np.ndarray]:
    """The columns of numbers that are predictors, where they are no argument as they are."""
    table = problem.data
    if not isinstance(table, pd.DataFrame) or problem.model_name is None:
        return {}
    wanted = [name for name in problem.prepared.coords.get("predictor", ()) if name in table]
    return {
        name: table[name].to_numpy(float)
        for name in wanted
        if pd.api.types.is_numeric_dtype(table[name])
    }


def _predictors(problem: Problem, constants: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that hold columns, each column by itself."""
    held = problem.prepared.columns
    arguments = {name: value for name, value in constants.items() if name in held}
    return {**_of_table(problem), **in_columns(problem, arguments)}


def canonical_sites(
    problem: Problem, sites: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Draws with exchangeable parts in the model's canonical order."""
    if problem.model.canonical is None:
        return dict(sites)
    return problem.model.canonical(sites, reference or None, problem.arguments)


def reported_quantities(
    problem: Problem, sites: Mapping[str, Tensor], only: Container[str] | None = None
) -> dict[str, Tensor]:
    """Draws of the sites that a user sees, and of the deterministic ones that follow from them.

    Args:
        problem: The model bound to its data.
        sites: Draws of every latent site, each (draws, ...).
        only: The sites to keep; by default all.
    """
    space = problem.space
    shown = {
        name: values
        for name, values in sites.items()
        if name not in problem.hidden and (only is None or name in only)
    }
    if not space.deterministic_plates:
        return shown
    given = space.given(sites)
    count = None if given else 1
    more = deterministic_sites(problem.function, problem.arguments, given, space, count)
    # What is hidden, and was fitted in other coordinates, is deterministic.
    return shown | {name: values for name, values in more.items() if name not in problem.hidden}


def sites_as_written(problem: Problem, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws of the latent sites of a model as it was written, each (draws, ...).

    Args:
        problem: With some sites in other coordinates; see `Problem.reparameterise`.
        sites: Draws of its own latent sites, alike.
    """
    assert problem.original is not None
    given = problem.space.given(sites)
    rewritten = deterministic_sites(problem.function, problem.arguments, given, problem.space)
    known = {**sites, **rewritten}
    return {site.name: known[site.name] for site in problem.original.space.sites}


def replicated(
    problem: Problem, sites: Mapping[str, Tensor]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What was observed, and draws of the same from the posterior predictive, for checks.

    Both are empty where the model has no data to draw.
    """
    data, _ = _data(problem)
    space = problem.space
    if not data or not sites or space.shared_discrete or space.row_latents(sites):
        return {}, {}
    drawn = {site.name: sites[site.name] for site in problem.space.sites}
    count = len(next(iter(drawn.values())))
    # Every so many-th: draws that were taken several times follow one another.
    step = max(-(-count // GROUP_SIZES.checked_draws), _thinning(count, data))
    few = {name: values[::step] for name, values in drawn.items()}
    return (
        {name: values.numpy() for name, values in in_columns(problem, data).items()},
        {
            name: values.numpy()
            for name, values in in_columns(problem, _predicted(problem, few)).items()
        },
    )


def _predicted(
    problem: Problem, sites: Mapping[str, Tensor], count: int | None = None
) -> dict[str, Tensor]:
    """Draws of the observed sites; empty if a distribution has no sampler for their shapes."""
    try:
        drawn = predict_sites(problem.function, problem.arguments, sites, problem.space, count)
    except UNSAMPLED:
        return {}
    observed, _ = _data(problem)
    return drawn if _alike(drawn, observed) else {}


def _alike(drawn: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> bool:
    """Whether each draw is as long as what was observed, as some samplers cannot know it."""
    return all(
        values[0].numel() == observed[name].numel()
        for name, values in drawn.items()
        if name in observed
    )


def _kept(
    problem: Problem, sites: Mapping[str, Tensor], keep_local: bool
) -> tuple[dict[str, Tensor], list[str], int]:
    """The sites of a posterior, a line for each that is left out, and every how many-th draw."""
    kept: dict[str, Tensor] = {}
    large: dict[str, Tensor] = {}
    for name, values in sites.items():
        local = name in problem.space.local
        beside = name in problem.space.discrete and problem.space.sites
        left_out = local and (beside or values.numel() > LARGEST_GROUP // 5)
        (large if left_out and not keep_local else kept)[name] = values
    if large and not kept and not problem.space.discrete:
        # Nothing but latents of rows: fewer draws of them are better than none.
        numbers = sum(values.numel() for values in large.values())
        step = -(-numbers // (LARGEST_GROUP // 5))
        if len(next(iter(large.values()))) >= step * GROUP_SIZES.fewest_kept:
            return large, [], step
    return kept, [
        f"'{name}', a latent for each row, is left out of the posterior; --keep-local keeps it."
        for name in large
    ], 1  # fmt: skip


def _thinning(count: int, data: Mapping[str, Tensor]) -> int:
    """Every how many-th of some draws a predictive group may hold."""
    numbers = sum(value.numel() for value in data.values())
    return -(-count // max(1, LARGEST_GROUP // max(1, numbers)))


def _data(problem: Problem) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What was observed, by site; and the other arguments that are tensors."""
    with torch.no_grad():
        nodes = dict(sample_sites(trace_model(problem.function, problem.arguments)))
    observed = {name: nodes[name]["value"].cpu() for name in problem.space.observed}
    constants = {
        name: value.cpu()
        for name, value in problem.arguments.items()
        if isinstance(value, Tensor) and not any(value is nodes[o]["value"] for o in observed)
    }
    return observed, {k: v for k, v in constants.items() if k not in observed}


def _points(problem: Problem) -> dict[str, Tensor]:
    """The model's point parameters, unless they are the many of a network."""
    with torch.no_grad():
        trace: Any = trace_model(problem.function, problem.arguments)
    params = {name: trace.nodes[name]["value"] for name in fitted_names(trace)}
    few = sum(value.numel() for value in params.values()) <= GROUP_SIZES.most_points
    return {name: value.detach().cpu().clone() for name, value in params.items() if few}


def _log_likelihood(
    problem: Problem, found: Mapping[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    pointwise = {}
    for name, values in found.items():
        if values.dim() > 1 + len(problem.space.observed_plates[name]):
            notes.append(
                f"the log_likelihood of '{name}' is left out: one of its dims is in no plate, so "
                "its rows may not be independent."
            )
        else:
            if values.dim() < 1 + len(problem.space.observed_plates[name]):
                notes.append(
                    f"the log_likelihood of '{name}' has one value for each group that shares a "
                    "discrete site: elpd leaves out whole groups."
                )
            pointwise[name] = values
    return pointwise


def _prior(
    problem: Problem, data: Mapping[str, Tensor], notes: list[str]
) -> dict[str, dict[str, Tensor]]:
    if problem.posterior is not None:
        notes.append("the groups prior and prior_predictive are left out: the fit has no priors.")
        return {}
    numbers = sum(value.numel() for value in data.values())
    count = max(1, min(GROUP_SIZES.prior_draws, LARGEST_GROUP // max(1, numbers)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unlikely draws of a wide prior
            drawn = prior_sites(problem.function, problem.arguments, problem.space, count)
        if not _alike(drawn, data):
            raise NotImplementedError
    except UNSAMPLED:
        notes.append(
            "the groups prior and prior_predictive are left out: a prior cannot be sampled."
        )
        return {}
    local = set(problem.space.local) | problem.hidden
    prior = {k: v for k, v in drawn.items() if k not in data and k not in local}
    predicted = {name: drawn[name] for name in data}
    return {"prior": prior, "prior_predictive": in_columns(problem, predicted)}
