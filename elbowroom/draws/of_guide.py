"""Draws from a fitted guide, each with the log density of the model and of the guide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.guides.space import LatentSpace, sample_sites
from elbowroom.problem.score import map_draws, score

VALUES_AT_ONCE = 20_000_000
"""Numbers that one batched evaluation may hold, for the memory's sake."""


@dataclass(frozen=True)
class Draws:
    """Draws of a guide.

    Attributes:
        sites: The value of each latent site of the guide, (draws, ...), on the CPU.
        log_p: Log density of the data and the sites, discrete ones outside the guide summed out.
        log_q: Log density of the guide.
    """

    sites: dict[str, Tensor]
    log_p: np.ndarray
    log_q: np.ndarray

    @property
    def log_weights(self) -> np.ndarray:
        """Log p - log q of each draw, (draws,)."""
        return self.log_p - self.log_q

    def first(self, count: int) -> "Draws":
        """The first of these draws."""
        sites = {name: values[:count] for name, values in self.sites.items()}
        return Draws(sites, self.log_p[:count], self.log_q[:count])

    def followed_by(self, more: "Draws") -> "Draws":
        """These draws and more of the same guide."""
        return Draws(
            {name: torch.cat([values, more.sites[name]]) for name, values in self.sites.items()},
            np.concatenate([self.log_p, more.log_p]),
            np.concatenate([self.log_q, more.log_q]),
        )

    def elbo(self) -> tuple[float, float]:
        """The evidence lower bound in nats, and its Monte Carlo standard error."""
        weights = self.log_weights
        with np.errstate(invalid="ignore"):  # a draw without a density
            return float(weights.mean()), float(weights.std(ddof=1) / len(weights) ** 0.5)


def chunk_size(arguments: Mapping[str, Any], space: LatentSpace) -> int:
    """How many draws to evaluate at once."""
    numbers = sum(v.numel() for v in arguments.values() if isinstance(v, Tensor))
    return max(1, min(1000, VALUES_AT_ONCE // (20 * (numbers + space.dimension + 1))))


def draw(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    count: int,
) -> Draws:
    """Draws from a guide whose parameters are in the active parameter store.

    Args:
        model: The Pyro model.
        guide: The fitted guide.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        count: How many draws.
    """
    names = {site.name for site in space.sites} | set(space.discrete)

    def sample(_: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = poutine.trace(guide).get_trace(**arguments)
        sampled = {name: node["value"] for name, node in sample_sites(trace) if name in names}
        return {**sampled, " log_q": torch.as_tensor(trace.log_prob_sum())}

    def log_joint(values: dict[str, Tensor]) -> Tensor:
        return score(model, arguments, values, space).log_joint

    chunk = chunk_size(arguments, space)
    with torch.no_grad():
        index = {" index": torch.zeros(count)}
        sites = map_draws(sample, index, chunk)
        log_q = sites.pop(" log_q")
        log_p = map_draws(log_joint, sites or index, chunk)
    return Draws(
        {name: value.cpu() for name, value in sites.items()},
        log_p.double().cpu().numpy(),
        log_q.double().cpu().numpy(),
    )
