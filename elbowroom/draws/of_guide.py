"""Draws from a fitted guide, each with the log density of the model and of the guide."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from elbowroom.draws.weighted import WeightedDraws
from elbowroom.guides.space import LatentSpace, sample_sites
from elbowroom.problem.mapping import map_draws
from elbowroom.problem.score import score
from elbowroom.sizes import SIZES

FEWEST = 100
"""Draws that are made though the time is over."""


def chunk_size(arguments: Mapping[str, Any], space: LatentSpace) -> int:
    """How many draws to evaluate at once."""
    numbers = sum(v.numel() for v in arguments.values() if isinstance(v, Tensor))
    return max(1, min(1000, SIZES.memory // (20 * (numbers + space.dimension + 1))))


def draw(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    count: int,
) -> WeightedDraws:
    """Draws from a guide whose parameters are in the active parameter store.

    Args:
        model: The Pyro model.
        guide: The fitted guide.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        count: How many draws; some are left out where the time is over.
    """
    names = {site.name for site in space.sites} | set(space.discrete)

    def sample(_: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        trace = poutine.trace(guide).get_trace(**arguments)
        sampled = {name: node["value"] for name, node in sample_sites(trace) if name in names}
        return sampled, torch.as_tensor(trace.log_prob_sum())

    def log_joint(values: dict[str, Tensor]) -> Tensor:
        return score(model, arguments, values, space).log_joint

    chunk = chunk_size(arguments, space)
    with torch.no_grad():
        sites, log_q = map_draws(sample, {}, chunk, count, FEWEST)
        log_p = map_draws(log_joint, sites, chunk, len(log_q), FEWEST)
    made = len(log_p)
    return WeightedDraws(
        {name: value[:made].cpu() for name, value in sites.items()},
        log_p.double().cpu().numpy(),
        log_q[:made].double().cpu().numpy(),
    )
