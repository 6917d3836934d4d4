"""Models whose latents all belong to rows: every row has importance weights of its own.

Given the point parameters, the rows are independent. Weights of all rows together, as of a model
with shared latents, would be the products of the rows' own, and say nothing of any one row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from scipy.special import logsumexp
from torch import Tensor

from elbowroom.density.importance import (
    effective_sample_size,
    k_hat_threshold,
    log_mean_exp,
    normalised,
    resampled,
    smoothed,
)
from elbowroom.draws.of_guide import Draws, chunk_size
from elbowroom.guides.space import (
    FixedRows,
    LatentSpace,
    Plate,
    of_each_row,
    plates_of,
    sample_sites,
)
from elbowroom.problem.score import map_draws

WEIGHTS_AT_ONCE = 10_000_000
"""Weights that a block of rows may have, for the memory's sake."""
FEWEST_EFFECTIVE = 50.0
"""Effective draws below which a row's mean is off by more than a seventh of its sd."""
DRAWN_ONCE = 0.02
"""The share of a row's weight on discrete values drawn once, up to which others hardly count."""
UNRELIABLE = 0.05
"""The share of rows with unreliable weights from which a guide is not trusted."""


@dataclass(frozen=True)
class RowWeights:
    """Draws of every row's latents from a guide.

    Attributes:
        log_p: Log density of each row and its latents, (draws, rows).
        log_q: Log density of the guide, (draws, rows).
        sites: The latents that were asked for, each (draws, rows, ...).
        rest: What the model adds outside of the rows, such as a penalty of parameters, (draws,).
        axes: Where the dim of the rows is among the dims of a site's value.
        discrete: Whether all latents are discrete, so that values may be drawn again and again.
    """

    log_p: np.ndarray
    log_q: np.ndarray
    sites: dict[str, Tensor]
    rest: np.ndarray | float = 0.0
    axes: Mapping[str, int] = field(default_factory=dict)
    discrete: bool = False

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
        """The Pareto shape of each row's weights, (rows,); see `smoothed`."""
        return np.array([self.smoothed(row)[1] for row in self.log_weights.T])

    def unreliable(self) -> float:
        """The share of the rows whose weights are not good enough for their log density."""
        reliable = _reliable(self.k_hat(), self.effective(), len(self.log_p))
        return float(np.mean(~reliable))

    def smoothed(self, log_weights: np.ndarray) -> tuple[np.ndarray, float]:
        """A row's Pareto-smoothed log weights, and their shape.

        Where nearly all of the weight lies on discrete values that were drawn more than once, there
        is no tail to speak of, and the shape is minus infinity: what was drawn once tells how much
        was not drawn at all (Good, 1953, "The population frequencies of species and the estimation
        of population parameters").
        """
        if self.discrete and np.isfinite(log_weights).all():
            _, index, times = np.unique(log_weights, return_inverse=True, return_counts=True)
            if normalised(log_weights)[times[index] == 1].sum() <= DRAWN_ONCE:
                return log_weights - logsumexp(log_weights), float("-inf")
        return smoothed(log_weights)

    @property
    def together(self) -> Draws:
        """The same as draws of all rows together."""
        return Draws(self.placed(self.sites), self.log_p.sum(1) + self.rest, self.log_q.sum(1))

    def placed(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the sites with the rows in their own place, not right after the draws."""
        return {name: value.movedim(1, 1 + self.axes[name]) for name, value in sites.items()}


@dataclass(frozen=True)
class RowCorrection:
    """Draws of equal weight, by importance resampling in each row.

    Attributes:
        sites: The value of each latent site, (draws, rows, ...); the guide's own in the rows whose
            weights are unreliable.
        log_p: Log density of all rows and their latents, (draws,).
        log_q: Log density of the guide, (draws,).
        weighted: How many draws were weighed in each row.
        k_hat: The Pareto shape of each row's weights, (rows,).
        effective: Draws that each row's are worth, (rows,).
        shift: The largest distance of a raw mean from the weighted one, in sds, (rows,).
        ratio: The largest log ratio of a raw sd to the weighted one, either way, (rows,).
        log_evidence: Of all rows, and its standard error.
    """

    sites: dict[str, Tensor]
    log_p: np.ndarray
    log_q: np.ndarray
    weighted: int
    k_hat: np.ndarray
    effective: np.ndarray
    shift: np.ndarray
    ratio: np.ndarray
    log_evidence: tuple[float, float]

    @property
    def unreliable(self) -> float:
        """The share of the rows whose weights cannot mend the guide's draws."""
        return float(np.mean(~_reliable(self.k_hat, self.effective, self.weighted)))

    @property
    def usable(self) -> bool:
        """Whether the corrected draws are likely to be better than the guide's own."""
        return self.unreliable <= UNRELIABLE

    @property
    def worst_k_hat(self) -> float:
        """The Pareto shape that all rows but a few have at most."""
        return _but_a_few(self.k_hat)

    @property
    def fewest_effective(self) -> float:
        """The draws that those of all rows but a few are worth at least."""
        return -_but_a_few(-self.effective)


def _but_a_few(values: np.ndarray) -> float:
    """The largest of them when the share that may be unreliable is left out."""
    return float(np.sort(values)[int(np.ceil((1 - UNRELIABLE) * len(values))) - 1])


def _reliable(k_hat: np.ndarray, effective: np.ndarray, draws: int) -> np.ndarray:
    return (k_hat <= k_hat_threshold(draws)) & (effective >= FEWEST_EFFECTIVE)


def corrected_rows(found: RowWeights, count: int, random: np.random.Generator) -> RowCorrection:
    """Corrects each row's draws by Pareto-smoothed importance sampling of its own.

    Args:
        found: Draws of every site.
        count: How many corrected draws.
        random: Of the resampling.
    """
    draws, rows = found.log_p.shape
    weights, picked = np.empty((draws, rows)), np.empty((count, rows), dtype=int)
    k_hat = np.empty(rows)
    own = np.arange(count) % draws
    for i, row in enumerate(found.log_weights.T):
        log_weights, k_hat[i] = found.smoothed(row)
        weights[:, i] = normalised(log_weights)
    effective = 1 / np.square(weights).sum(0)
    reliable = _reliable(k_hat, effective, draws)
    for i in range(rows):
        picked[:, i] = resampled(weights[:, i], count, random) if reliable[i] else own
    index = torch.as_tensor(picked)
    sites, shift, ratio = {}, np.zeros(rows), np.zeros(rows)
    for name, values in found.sites.items():
        flat = values.reshape(draws, rows, -1)
        moved, widened = _moved(flat, torch.as_tensor(weights).to(flat))
        shift, ratio = np.maximum(shift, moved), np.maximum(ratio, widened)
        taken = index.unsqueeze(-1).expand(-1, -1, flat.shape[-1])
        sites[name] = flat.gather(0, taken).reshape(count, *values.shape[1:])
    log_density, error = found.log_density()
    rest = float(np.mean(found.rest))
    return RowCorrection(
        found.placed(sites),
        np.take_along_axis(found.log_p, picked, 0).sum(1) + rest,
        np.take_along_axis(found.log_q, picked, 0).sum(1),
        draws, k_hat, effective, shift, ratio,
        (float(log_density.sum()) + rest, float(np.hypot.reduce(error))),
    )  # fmt: skip


def _moved(values: Tensor, weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The largest shift of a row's raw means from the weighted ones, and log ratio of the sds.

    Of what is nought or one, the shift is in units of the largest sd that it can have, a half, and
    there is no ratio: of an unlikely one, the sd itself says nothing.

    Args:
        values: (draws, rows, numbers).
        weights: Summing to one in each row, (draws, rows).
    """
    values = values.double()
    mean = torch.einsum("dr,drn->rn", weights.double(), values)
    square = torch.einsum("dr,drn->rn", weights.double(), (values - mean).square())
    sd = square.sqrt().clamp_min(1e-300)
    moved = (values.mean(0) - mean).abs()
    if bool(((values == 0) | (values == 1)).all()):
        return 2 * moved.amax(-1).numpy(), np.zeros(values.shape[1])
    shift = (moved / sd).amax(-1)
    ratio = (values.std(0).clamp_min(1e-300) / sd).log().abs().amax(-1)
    return shift.numpy(), ratio.numpy()


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
    plate = plate_of_rows(guide, arguments, space)
    rows, size = plate.size, max(1, min(plate.size, WEIGHTS_AT_ONCE // count))
    blocks, axes = [], {}
    for block in torch.arange(rows).split(size):
        given = {**arguments, "batch_size": len(block)}

        def at(
            _: dict[str, Tensor], block: Tensor = block, given: dict[str, Any] = given
        ) -> dict[str, Tensor]:
            with FixedRows({plate.name: block}):
                drawn = poutine.trace(guide).get_trace(**given)
                scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**given)
            kept = {}
            for name, node in sample_sites(drawn):
                if name in keep:
                    axes[name] = len(node["fn"].batch_shape) + plate.dim
                    kept[name] = node["value"].movedim(axes[name], 0)
            return {
                " p": of_each_row(scored, plate).double(),
                " rest": _of_no_row(scored, plate).double(),
                " q": of_each_row(drawn, plate).double(),
                **kept,
            }

        share = len(block) / rows
        chunk = max(1, min(count, int(chunk_size(arguments, space) / share)))
        with torch.no_grad():
            found = map_draws(at, {" index": torch.zeros(count)}, chunk)
        rest = found.pop(" rest").cpu().numpy()
        blocks.append({name: value.cpu() for name, value in found.items()})
    whole = {name: torch.cat([block[name] for block in blocks], 1) for name in blocks[0]}
    log_p, log_q = whole.pop(" p").numpy(), whole.pop(" q").numpy()
    return RowWeights(log_p, log_q, whole, rest, axes, discrete=not space.sites)


def _of_no_row(trace: Any, plate: Plate) -> Tensor:
    """The log density of the sites of a trace that belong to no row, ()."""
    nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
    outside = [
        node["log_prob_sum"]
        for node in nodes
        if plate.name not in {frame.name for frame in node["cond_indep_stack"]}
        and not isinstance(node["fn"], _Subsample)
    ]
    return torch.as_tensor(sum(outside, 0.0))


def plate_of_rows(
    guide: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
) -> Plate:
    """The plate of the rows, as many as the arguments hold."""
    with torch.no_grad():
        nodes = dict(sample_sites(poutine.trace(guide).get_trace(**arguments))).values()
    plates = {plate for node in nodes for plate in plates_of(node)}
    assert space.subsampled is not None
    name = space.subsampled.name
    return next(plate for plate in plates if plate.name == name)
