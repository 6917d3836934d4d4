"""Draws that importance weights have corrected, and what the weights tell."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elbowroom.density.importance import (
    effective_sample_size,
    k_hat_threshold,
    log_mean_exp,
    normalised,
    resampled,
    smoothed,
    standard_errors,
)
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.draws.proposal import Proposal

FEWEST_EFFECTIVE = 100.0
"""Effective draws below which corrected draws are worth less than the guide's own."""


@dataclass(frozen=True)
class Correction:
    """Draws of equal weight by importance resampling.

    Attributes:
        sites: The value of each latent site, (draws, ...).
        log_p: Log density of the data and the sites of each draw, (draws,).
        log_q: Of what they were drawn from, (draws,).
        weighted: The same sites before resampling, (weighted draws, ...).
        weights: Of those, Pareto-smoothed, summing to one.
        k_hat: Of the weights.
        effective: Draws that the weighted ones are worth.
        log_evidence: Log p(data), and its standard error.
        modes: The shares of the mass of the parts that the draws came from, largest first.
        proposal: What fresh draws can be made from, if not the guide.
        importance: What they were picked from, where it was adaptive importance sampling.
    """

    sites: dict[str, Tensor]
    log_p: np.ndarray
    log_q: np.ndarray
    weighted: dict[str, Tensor]
    weights: np.ndarray
    k_hat: float
    effective: float
    log_evidence: tuple[float, float]
    modes: tuple[float, ...] = ()
    proposal: Proposal | None = None
    importance: AdaptiveImportance | None = None

    @property
    def usable(self) -> bool:
        """Whether the corrected draws are likely to be better than the guide's own."""
        limit = k_hat_threshold(len(self.weights))
        return self.k_hat <= limit and self.effective >= FEWEST_EFFECTIVE


def reweighted(
    sites: dict[str, Tensor],
    log_p: np.ndarray,
    log_q: np.ndarray,
    count: int,
    random: np.random.Generator,
) -> Correction:
    """Corrects the draws of a guide by Pareto-smoothed importance sampling.

    Args:
        sites: Of the guide's draws, (draws, ...).
        log_p: Of each.
        log_q: Of each.
        count: How many corrected draws.
        random: Of the resampling.
    """
    log_weights, k_hat = smoothed(log_p - log_q)
    weights = normalised(log_weights)
    picked = resampled(weights, count, random)
    index = torch.as_tensor(picked)
    return Correction(
        {name: values[index] for name, values in sites.items()},
        log_p[picked],
        log_q[picked],
        sites,
        weights,
        k_hat,
        effective_sample_size(log_weights),
        log_mean_exp(log_p - log_q),
    )


def adapted(importance: AdaptiveImportance, count: int) -> Correction:
    """Draws of adaptive importance sampling."""
    weighted = importance.density.constrained(importance.counting)
    quantities = importance.quantities()
    heaviest = np.argmax(np.nan_to_num(standard_errors(importance.weights, quantities)[1]))
    picked = resampled(importance.weights, count, importance.random, quantities[:, heaviest])
    index = torch.as_tensor(picked)
    return Correction(
        {name: values[index] for name, values in weighted.items()},
        importance.log_p[picked],
        importance.log_q[picked],
        weighted,
        importance.weights,
        importance.k_hat,
        importance.effective_sample_size,
        log_mean_exp(importance.log_weights),
        importance.shares(),
        importance.proposal,
        importance,
    )
