"""What draws say of data: predictive draws, pointwise log likelihood, reported quantities."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from elbowroom.draws.of_guide import chunk_size
from elbowroom.guides.space import LatentSpace, Unobserved, sample_sites
from elbowroom.problem.mapping import each_tensor, map_draws, map_draws_recorded
from elbowroom.problem.score import (
    Score,
    assignment_probabilities,
    deterministics,
    score,
)

Sites = Mapping[str, Tensor]


def _on_device(sites: Sites, like: Mapping[str, Any]) -> dict[str, Tensor]:
    device = next((v.device for v in like.values() if isinstance(v, Tensor)), torch.device("cpu"))
    return {name: value.to(device) for name, value in sites.items()}


def _evaluate(
    function: Callable[[dict[str, Tensor]], Any],
    sites: Sites,
    arguments: Mapping[str, Any],
    space: LatentSpace,
    count: int | None = None,
    over: Callable[..., Any] = map_draws,
) -> Any:
    chunk = chunk_size(arguments, space)
    with torch.no_grad():
        results = over(function, _on_device(sites, arguments), chunk, count)
    return each_tensor(Tensor.cpu, results)


def predict_sites(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    sites: Sites,
    space: LatentSpace,
    count: int | None = None,
) -> dict[str, Tensor]:
    """Draws of the observed sites given draws of the latent ones, each (draws, ...).

    Latent sites that `sites` lacks, the discrete ones, are drawn from the model. How many draws,
    `count` tells where there are no sites.
    """

    def sample(values: dict[str, Tensor]) -> dict[str, Tensor]:
        # The observations are freed first, inside: the other way round frees the latents too.
        conditioned = poutine.condition(Unobserved()(model), data=values)
        trace = poutine.trace(conditioned).get_trace(**arguments)
        nodes = dict(sample_sites(trace))
        return {name: nodes[name]["value"] for name in space.observed}

    return _evaluate(sample, sites, arguments, space, count)


def probabilities(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    sites: Sites,
    space: LatentSpace,
    site: str,
) -> Tensor:
    """The posterior predictive probability of each value of an observed site, (support, rows)."""

    def of(node: Any) -> Tensor:
        return node["fn"].log_prob(node["fn"].enumerate_support()).exp()

    return of_observed(model, arguments, sites, space, site, of).double().mean(0)


def means(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    sites: Sites,
    space: LatentSpace,
    site: str,
) -> Tensor:
    """The mean of an observed site's distribution at each draw, (draws, rows)."""
    return of_observed(model, arguments, sites, space, site, lambda node: node["fn"].mean)


def of_observed(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    sites: Sites,
    space: LatentSpace,
    site: str,
    wanted: Callable[[Any], Tensor],
    count: int | None = None,
) -> Tensor:
    """Something of an observed site at each draw, such as the mean of its distribution.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        sites: Draws of the latent sites, each (draws, ...).
        space: The model's latent space.
        site: The observed site.
        wanted: Of its node in a trace, whose distribution is `node["fn"]`.
        count: How many draws, where there are no sites.

    Returns:
        (draws, ...).
    """

    def at(values: dict[str, Tensor]) -> dict[str, Tensor]:
        conditioned = poutine.condition(Unobserved()(model), data=values)
        nodes: Any = poutine.trace(conditioned).get_trace(**arguments).nodes
        return {site: wanted(nodes[site])}

    return _evaluate(at, sites, arguments, space, count, map_draws_recorded)[site]


def prior_sites(
    model: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace, count: int
) -> dict[str, Tensor]:
    """Draws of every site, deterministic ones included, from the model without its data.

    Raises:
        NotImplementedError: If a prior is improper, so that it cannot be sampled.
    """

    def sample(_: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = poutine.trace(Unobserved()(model)).get_trace(**arguments)
        wanted = {site.name for site in space.sites} | set(space.observed)
        return {
            name: node["value"]
            for name, node in sample_sites(trace)
            if name in wanted or node["infer"].get("_deterministic")
        }

    return _evaluate(sample, {}, arguments, space, count)


def evaluate(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    sites: Sites,
    space: LatentSpace,
    count: int | None = None,
) -> Score:
    """The model's log joint density, pointwise densities and deterministic sites, at draws.

    Each value has the draws as its leading dim; see `elbowroom.problem.score.Score`.
    How many draws, `count` tells where there are no sites.
    """

    def at(values: dict[str, Tensor]) -> tuple[Any, ...]:
        found = score(model, arguments, values, space)
        return found.log_joint, found.log_likelihood, found.deterministics, found.log_prior

    return Score(*_evaluate(at, sites, arguments, space, count, map_draws_recorded))


def deterministic_sites(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    sites: Sites,
    space: LatentSpace,
    count: int | None = None,
) -> dict[str, Tensor]:
    """The deterministic sites at draws, each (draws, ...); see `evaluate`."""

    def at(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return deterministics(model, arguments, values, space)

    return _evaluate(at, sites, arguments, space, count, map_draws_recorded)


def assignments(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    sites: Sites,
    space: LatentSpace,
    count: int | None = None,
) -> dict[str, Tensor]:
    """The mean posterior probability of each discrete site's values, each (support, plates...)."""

    def probabilities(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return assignment_probabilities(model, arguments, values, space)

    return {
        name: values.mean(0)
        for name, values in _evaluate(probabilities, sites, arguments, space, count).items()
    }
