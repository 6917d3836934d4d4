"""Models whose latents all belong to rows: every row has importance weights of its own.

Given the point parameters, the rows are independent. Weights of all rows together, as of a model
with shared latents, would be the products of the rows' own, and say nothing of any one row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.guides.space import (
    FixedRows,
    LatentSpace,
    Plate,
    of_each_row,
    plates_of,
    sample_sites,
)
from elbowroom.inference.densities.importance import (
    effective_sample_size,
    log_mean_exp,
    pareto_k_hat,
)
from elbowroom.inference.densities.score import map_draws
from elbowroom.posterior.draws import chunk_size

WEIGHTS_AT_ONCE = 10_000_000
"""Weights that a block of rows may have, for the memory's sake."""


@dataclass(frozen=True)
class RowWeights:
    """Draws of every row's latents from a guide.

    Attributes:
        log_p: Log density of each row and its latents, (draws, rows).
        log_q: Log density of the guide, (draws, rows).
        sites: The latents that were asked for, each (draws, rows, ...).
    """

    log_p: np.ndarray
    log_q: np.ndarray
    sites: dict[str, Tensor]

    @property
    def log_weights(self) -> np.ndarray:
        """Log p - log q, (draws, rows)."""
        return self.log_p - self.log_q

    @property
    def elbo(self) -> np.ndarray:
        """The evidence lower bound of each row in nats, (rows,)."""
        return self.log_weights.mean(0)

    def log_density(self) -> tuple[np.ndarray, np.ndarray]:
        """The log density of each row in nats, and its standard error, each (rows,).

        The log of the mean importance weight: in expectation a lower bound, which rises with the
        draws (Burda, Grosse and Salakhutdinov, 2016, "Importance weighted autoencoders").
        """
        found = [log_mean_exp(row) for row in self.log_weights.T]
        return np.array([value for value, _ in found]), np.array([error for _, error in found])

    def effective(self) -> np.ndarray:
        """Draws that each row's are worth, (rows,)."""
        return np.array([effective_sample_size(row) for row in self.log_weights.T])

    def k_hat(self) -> np.ndarray:
        """The Pareto shape of each row's weights, (rows,)."""
        return np.array([pareto_k_hat(row) for row in self.log_weights.T])


def weigh_rows(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    count: int,
    keep: Sequence[str] = (),
) -> RowWeights:
    """Draws every row's latents from a guide whose parameters are in the active store.

    Args:
        model: The Pyro model.
        guide: The fitted guide.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        count: How many draws of each row.
        keep: Latent sites whose draws are kept.
    """
    plate = _plate_of_rows(guide, arguments, space)
    rows, size = plate.size, max(1, min(plate.size, WEIGHTS_AT_ONCE // count))
    blocks = []
    for block in torch.arange(rows).split(size):
        given = {**arguments, "batch_size": len(block)}

        def at(
            _: dict[str, Tensor], block: Tensor = block, given: dict[str, Any] = given
        ) -> dict[str, Tensor]:
            with FixedRows({plate.name: block}):
                drawn = poutine.trace(guide).get_trace(**given)
                scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**given)
            kept = {name: node["value"] for name, node in sample_sites(drawn) if name in keep}
            return {
                " p": of_each_row(scored, plate).double(),
                " q": of_each_row(drawn, plate).double(),
                **kept,
            }

        share = len(block) / rows
        chunk = max(1, min(count, int(chunk_size(arguments, space) / share)))
        with torch.no_grad():
            found = map_draws(at, {" index": torch.zeros(count)}, chunk)
        blocks.append({name: value.cpu() for name, value in found.items()})
    whole = {name: torch.cat([block[name] for block in blocks], 1) for name in blocks[0]}
    return RowWeights(whole.pop(" p").numpy(), whole.pop(" q").numpy(), whole)


def _plate_of_rows(
    guide: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
) -> Plate:
    """The plate of the rows, as many as the arguments hold."""
    with torch.no_grad():
        nodes = dict(sample_sites(poutine.trace(guide).get_trace(**arguments))).values()
    plates = {plate for node in nodes for plate in plates_of(node)}
    assert space.subsampled is not None
    name = space.subsampled.name
    return next(plate for plate in plates if plate.name == name)
