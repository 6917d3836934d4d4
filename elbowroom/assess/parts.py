"""The ELBO in its parts: expected log likelihood, KL divergence from the prior, entropy; by site.

    ELBO = E[log p(x | z)] + E[log p(z)] + H(q) = E[log p(x | z)] - KL(q(z) || p(z))

with z the latent sites as the model has them (not the unconstrained ones), discrete sites that the
guide leaves out summed out of p, and each mean taken over the same draws of the guide, so that the
parts sum to the ELBO of those draws.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.draws.of_guide import chunk_size
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.guides.space import LatentSpace, sample_sites
from elbowroom.problem.mapping import map_draws
from elbowroom.problem.score import log_prior, score

Terms = dict[str, np.ndarray]
"""By site, a number for each draw, (draws,)."""


@dataclass(frozen=True)
class PartSizes:
    """How many draws the parts are taken at."""

    numbers: int = 4_000_000
    """Draws times numbers of the data, at most: those of two thousand images of digits take about
    two seconds."""
    fewest: int = 20
    """Draws that are taken whatever the data; where rows are many, each draw tells much."""
    equal: float = 1e-6
    """The relative difference up to which two sums are the same but for rounding: of float32
    numbers, a few times their precision."""


PART_SIZES = PartSizes()


@dataclass(frozen=True)
class Parts:
    """The terms of the ELBO at each of some draws of a guide.

    Attributes:
        log_likelihood: By observed site; under "factors" what `pyro.factor` adds.
        log_prior: By latent site.
        log_guide: The guide's log density, by latent site where it draws each by itself; else of
            all together, under their names joined by commas.

    Example:
        >>> at = {"x": np.array([-1.0, -3.0])}, {"z": np.array([-2.0, -2.0])}
        >>> parts = Parts(*at, {"z": np.array([-1.0, -1.5])})
        >>> parts.elbo.tolist()
        [-2.0, -3.5]
        >>> measures = parts.measures()
        >>> measures["expected_log_likelihood"], measures["kl_to_prior"], measures["entropy"]
        (-2.0, 0.75, 1.25)
    """

    log_likelihood: Terms
    log_prior: Terms
    log_guide: Terms

    @property
    def elbo(self) -> np.ndarray:
        """At each draw, in nats, (draws,)."""
        return _total(self.log_likelihood) + _total(self.log_prior) - _total(self.log_guide)

    def measures(self) -> dict[str, Any]:
        """The parts' means over the draws in nats, by name.

        Returns:
            expected_log_likelihood, kl_to_prior and entropy, each with its Monte Carlo standard
            error (`_se`); and elbo_parts: the number of draws, their ELBO, and by site the expected
            log_likelihood and log_prior, the entropy, and the kl_to_prior of the sites that have
            both.
        """
        count = len(self.elbo)
        likelihood, prior, guide = (
            _total(terms, count) for terms in (self.log_likelihood, self.log_prior, self.log_guide)
        )
        found: dict[str, Any] = {}
        for name, values in (
            ("expected_log_likelihood", likelihood),
            ("kl_to_prior", guide - prior),
            ("entropy", -guide),
        ):
            found[name] = float(values.mean())
            found[f"{name}_se"] = float(values.std(ddof=1) / len(values) ** 0.5)
        both = [name for name in self.log_guide if name in self.log_prior]
        found["elbo_parts"] = {
            "draws": len(likelihood),
            "elbo": float(self.elbo.mean()),
            "log_likelihood": _means(self.log_likelihood),
            "log_prior": _means(self.log_prior),
            "entropy": {name: -value for name, value in _means(self.log_guide).items()},
            "kl_to_prior": _means({n: self.log_guide[n] - self.log_prior[n] for n in both}),
        }
        return found


def elbo_parts(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    draws: WeightedDraws,
    unconstrained: bool = False,
) -> Parts:
    """The terms of the ELBO at a guide's own draws.

    Args:
        model: The Pyro model, with its parameters in the active store.
        guide: The guide, with its parameters there too.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        draws: Of the guide, of all latents together. Of these the first ones are taken, as many as
            `PART_SIZES` allows.
        unconstrained: Whether the draws' densities are those of unconstrained values.
    """
    numbers = sum(v.numel() for v in arguments.values() if isinstance(v, Tensor))
    draws = draws.first(max(PART_SIZES.fewest, PART_SIZES.numbers // max(1, numbers)))
    like = next((v for v in arguments.values() if isinstance(v, Tensor)), torch.zeros(()))
    sites = {name: value.to(like.device) for name, value in draws.sites.items()}
    chunk, count = chunk_size(arguments, space), len(draws.log_p)

    def of_model(values: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
        found = score(model, arguments, values, space)
        likelihood = {name: each.sum() for name, each in found.log_likelihood.items()}
        return found.log_joint, likelihood, log_prior(model, arguments, values, space)

    def of_guide(values: dict[str, Tensor]) -> dict[str, Tensor]:
        trace: Any = poutine.trace(poutine.condition(guide, data=values)).get_trace(**arguments)
        trace.compute_log_prob()
        return {name: node["log_prob"].sum() for name, node in sample_sites(trace)}

    def jacobian(values: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for site in space.sites:
            u = site.transform.inv(values[site.name])
            total = total + site.transform.log_abs_det_jacobian(u, values[site.name]).sum()
        return total

    with torch.no_grad():
        joint, likelihood, prior = map_draws(of_model, sites, chunk, count)
        log_q = torch.as_tensor(draws.log_q)
        if unconstrained:
            log_q = log_q - map_draws(jacobian, sites, chunk, count).double().cpu()
        own = map_draws(of_guide, sites, chunk, count)
    log_p = _array(joint)
    log_likelihood, log_prior_of = _arrays(likelihood), _arrays(prior)
    rest = log_p - _total(log_prior_of, count)
    if not _same(_total(log_likelihood, count), rest):
        if set(space.discrete) <= set(sites):
            log_likelihood["factors"] = rest - _total(log_likelihood, count)
        else:  # several observed sites may share a discrete one that is summed out
            log_likelihood = {", ".join(log_likelihood): rest}
    log_guide = {name: values for name, values in _arrays(own).items() if name in sites}
    if set(log_guide) != set(sites) or not _same(_total(log_guide, count), log_q.numpy()):
        log_guide = {", ".join(sites): log_q.numpy()}  # they are drawn together
    return Parts(log_likelihood, log_prior_of, log_guide)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(one, other, rtol=PART_SIZES.equal, atol=PART_SIZES.equal))


def _array(values: Tensor) -> np.ndarray:
    return np.asarray(values.double().cpu())


def _arrays(terms: Mapping[str, Tensor]) -> Terms:
    return {name: _array(values) for name, values in terms.items()}


def _total(terms: Terms, count: int | None = None) -> np.ndarray:
    zero: Any = 0.0 if count is None else np.zeros(count)
    return np.asarray(sum(terms.values(), zero))


def _means(terms: Terms) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in terms.items()}
