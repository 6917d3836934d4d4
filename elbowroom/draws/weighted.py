"""Draws with importance weights: of a whole posterior, or of each row's latents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from elbowroom.density.importance import (
    effective_sample_size,
    k_hat_threshold,
    log_mean_exp,
    normalised,
    resampled,
    side_by_side,
    smoothed,
)


@dataclass(frozen=True)
class Weighing:
    """When weighted draws are good enough."""

    fewest_effective: float = 100.0
    """Effective draws below which corrected draws are worth less than the guide's own."""
    resolved: float = 400.0
    """Effective draws from which means and sds are resolved, and R-hat is meaningful (Vehtari,
    Gelman, Simpson, Carpenter and Bürkner, 2021)."""
    fewest_of_row: float = 50.0
    """Effective draws of a row below which its mean is off by more than a seventh of its sd."""
    drawn_once: float = 0.02
    """The share of a row's weight on discrete values that were drawn once, up to which the values
    that were not drawn hardly count."""
    tries: int = 10
    """Resamplings, at most, until the sd of the quantity with the heaviest tail is close to that of
    the weighted draws. By chance a resampling may pick one far draw of almost no weight."""
    close: float = 0.02
    """The log ratio of sds that is close."""
    unreliable_rows: float = 0.05
    """The share of rows with unreliable weights from which a guide is not trusted."""


WEIGHING = Weighing()


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of a guide, or of another proposal, with the importance weights p/q.

    Where all latents belong to rows, the rows are independent given the point parameters, and each
    has weights of its own. Weights of all rows together would be the products of the rows' own, and
    say nothing of any one row. `log_p` and `log_q` then have an axis of rows, and so has whatever
    is told of the weights: "each row" below is the one posterior, with shape (), where there is no
    such axis.

    Attributes:
        sites: The value of each latent site, on the CPU: (draws, ...), or (draws, rows, ...).
        log_p: Log density of the data and the sites, in nats, discrete ones that were not drawn
            summed out: (draws,) or (draws, rows).
        log_q: Log density of what they were drawn from, of the same shape.
        rest: What the model adds outside of the rows, such as a penalty of parameters, (draws,).
        axes: Where the dim of the rows is among the dims of a site's value.
        discrete: Whether all latents are discrete, so that values may be drawn again and again.
        source: The draws that these were resampled from; the weights are then equal, and of the
            evidence and the bound the source tells.

    Example:
        >>> log_p = np.log(np.array([1.0, 3.0]))
        >>> found = WeightedDraws({}, log_p, np.zeros(2))
        >>> round(found.log_evidence[0], 3)  # log 2
        0.693
    """

    sites: dict[str, Tensor]
    log_p: np.ndarray
    log_q: np.ndarray
    rest: np.ndarray | float = 0.0
    axes: Mapping[str, int] = field(default_factory=dict)
    discrete: bool = False
    source: "WeightedDraws | None" = None

    @property
    def per_row(self) -> bool:
        """Whether each row has weights of its own."""
        return self.log_p.ndim == 2

    @property
    def log_weights(self) -> np.ndarray:
        """Log p - log q of each draw, before smoothing; 0 if they were resampled; as `log_p`."""
        return self.log_p - self.log_q if self.source is None else np.zeros_like(self.log_p)

    @property
    def weights(self) -> np.ndarray:
        """Pareto-smoothed weights that sum to one in each row, of the shape of `log_p`."""
        return self._smoothing[0]

    @property
    def k_hat(self) -> np.ndarray:
        """The Pareto shape of each row's weights, () or (rows,).

        Where nearly all of the weight lies on discrete values that were drawn more than once, there
        is no tail to speak of, and the shape is minus infinity: what was drawn once tells how much
        was not drawn at all (Good, 1953, "The population frequencies of species and the estimation
        of population parameters").
        """
        return self._smoothing[1]

    @cached_property
    def _smoothing(self) -> tuple[np.ndarray, np.ndarray]:
        weights, k_hat = np.empty(self.log_p.shape), np.empty(self.log_p.shape[1:])
        log_weights = self.log_weights
        with np.errstate(all="ignore"):  # a draw far out may have no density
            for row in np.ndindex(k_hat.shape):
                log_smoothed, k_hat[row] = self._smoothed(log_weights[:, *row])
                weights[:, *row] = normalised(log_smoothed)
        return weights, k_hat

    def _smoothed(self, log_weights: np.ndarray) -> tuple[np.ndarray, float]:
        """A row's log weights after smoothing, and their shape."""
        if self.discrete and np.isfinite(log_weights).all():
            _, index, times = np.unique(log_weights, return_inverse=True, return_counts=True)
            if normalised(log_weights)[times[index] == 1].sum() <= WEIGHING.drawn_once:
                return log_weights - logsumexp(log_weights), float("-inf")
        return smoothed(log_weights)

    @cached_property
    def effective_sample_size(self) -> np.ndarray:
        """Kish's effective number of draws of each row by its smoothed weights, () or (rows,)."""
        return np.asarray(1 / np.square(self.weights).sum(0))

    @cached_property
    def unsmoothed_effective_sample_size(self) -> np.ndarray:
        """The same by the weights as they are, which the log density is estimated by."""
        return self._of_each_row(effective_sample_size)

    def _of_each_row(self, function: Callable[[np.ndarray], Any]) -> np.ndarray:
        """A number of each row's log weights, () or (rows,); or several, (several, ...)."""
        log_weights, shape = self.log_weights, self.log_p.shape[1:]
        with np.errstate(all="ignore"):
            found = [function(log_weights[:, *row]) for row in np.ndindex(shape)]
        return np.moveaxis(np.array(found), 0, -1).reshape((*np.shape(found[0]), *shape))

    def log_density(self) -> tuple[np.ndarray, np.ndarray]:
        """The log density of each row in nats, and its standard error, each () or (rows,).

        The log of the mean importance weight: in expectation a lower bound, which rises with the
        draws (Burda, Grosse and Salakhutdinov, 2016, "Importance weighted autoencoders").
        """
        value, error = (self.source or self)._of_each_row(log_mean_exp)
        return value, error

    @cached_property
    def log_evidence(self) -> tuple[float, float]:
        """Log p(data) of all rows in nats, and its standard error."""
        value, error = self.log_density()
        rest = float(np.mean((self.source or self).rest))
        return float(value.sum()) + rest, float(np.hypot.reduce(np.ravel(error)))

    def elbo(self) -> tuple[float, float]:
        """The evidence lower bound of all rows in nats, and its Monte Carlo standard error."""
        weights = (self.source or self).together.log_weights
        with np.errstate(invalid="ignore"):  # a draw without a density
            return float(weights.mean()), float(weights.std(ddof=1) / len(weights) ** 0.5)

    @property
    def row_elbo(self) -> np.ndarray:
        """The evidence lower bound of each row in nats, () or (rows,)."""
        return np.asarray((self.source or self).log_weights.mean(0))

    @property
    def reliable(self) -> np.ndarray:
        """Whether each row's weights can correct its draws, () or (rows,)."""
        return self._reliable(self.effective_sample_size)

    def _reliable(self, effective: np.ndarray) -> np.ndarray:
        fewest = WEIGHING.fewest_of_row if self.per_row else WEIGHING.fewest_effective
        return (self.k_hat <= k_hat_threshold(len(self.log_p))) & (effective >= fewest)

    @property
    def unreliable(self) -> float:
        """The share of the rows whose weights cannot correct their draws."""
        return float(np.mean(~self.reliable))

    @property
    def unreliable_density(self) -> float:
        """The share of the rows whose weights are not good enough for their log density."""
        return float(np.mean(~self._reliable(self.unsmoothed_effective_sample_size)))

    @property
    def usable(self) -> bool:
        """Whether corrected draws are likely to be better than these themselves."""
        return self.unreliable <= WEIGHING.unreliable_rows

    @property
    def worst_k_hat(self) -> float:
        """The Pareto shape that all rows but a few have at most."""
        return _all_but_a_few(self.k_hat)

    @property
    def fewest_effective(self) -> float:
        """The draws that those of all rows but a few are worth at least."""
        return -_all_but_a_few(-self.effective_sample_size)

    def first(self, count: int) -> "WeightedDraws":
        """The first of these draws."""
        sites = {name: values[:count] for name, values in self.sites.items()}
        log_p, log_q, rest = (each[:count] for each in self._densities)
        return replace(self, sites=sites, log_p=log_p, log_q=log_q, rest=rest)

    def followed_by(self, more: "WeightedDraws") -> "WeightedDraws":
        """These draws and more from the same proposal."""
        sites = {name: torch.cat([values, more.sites[name]]) for name, values in self.sites.items()}
        both = zip(self._densities, more._densities, strict=True)
        log_p, log_q, rest = (np.concatenate(each) for each in both)
        return replace(self, sites=sites, log_p=log_p, log_q=log_q, rest=rest)

    @property
    def _densities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.log_p, self.log_q, np.broadcast_to(self.rest, len(self.log_p))

    @property
    def together(self) -> "WeightedDraws":
        """The same as draws of all rows together."""
        if not self.per_row:
            return self
        log_p, log_q = self.log_p.sum(1) + self.rest, self.log_q.sum(1)
        return WeightedDraws(self._placed(self.sites), log_p, log_q)

    def _placed(self, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values of the sites with the rows in their own place, not right after the draws."""
        if not self.per_row:
            return sites
        return {name: value.movedim(1, 1 + self.axes[name]) for name, value in sites.items()}

    def resample(
        self, count: int, random: np.random.Generator, along: np.ndarray | None = None
    ) -> "WeightedDraws":
        """Draws of equal weight by importance resampling, of all rows together.

        A row whose weights are unreliable keeps its draws as they are, beside those that are
        corrected.

        Args:
            count: How many.
            random: Of the resampling.
            along: A quantity of each draw that is to keep its distribution best, (draws,).
        """
        draws, rows = len(self.log_p), self.log_p.shape[1:]
        picked = np.empty((count, *rows), dtype=int)
        corrected = self.reliable if self.per_row else np.asarray(True)
        for row in np.ndindex(rows):
            if corrected[row]:
                picked[:, *row] = side_by_side(_picked(self.weights[:, *row], count, random, along))
            else:
                picked[:, *row] = np.arange(count) % draws
        index = (torch.as_tensor(picked), *(torch.arange(size) for size in rows))
        log_p, log_q = (np.take_along_axis(each, picked, 0) for each in (self.log_p, self.log_q))
        taken = WeightedDraws({}, log_p, log_q, float(np.mean(self.rest))).together
        sites = self._placed({name: values[index] for name, values in self.sites.items()})
        return replace(taken, sites=sites, source=self)

    def moved(self) -> tuple[np.ndarray, np.ndarray]:
        """How far the weights move each row's means and sds, each () or (rows,).

        Of what is zero or one, a shift is in units of the largest sd that it can have, a half,
        and there is no ratio: of an unlikely one, the sd itself says nothing.

        Returns:
            The largest distance of a mean of the draws from the weighted one, in sds, and the
            largest log ratio of their sd to the weighted one, either way.
        """
        draws, rows = len(self.log_p), self.log_p.shape[1:]
        weights = torch.as_tensor(self.weights).reshape(draws, -1)
        shift, ratio = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for values in self.sites.values():
            flat = values.reshape(*weights.shape, -1)
            precise = weights.to(flat) if flat.is_floating_point() else weights
            moved, widened = _moved(flat.double(), precise.double())
            shift, ratio = np.maximum(shift, moved), np.maximum(ratio, widened)
        return shift.reshape(rows), ratio.reshape(rows)


def _picked(
    weights: np.ndarray, count: int, random: np.random.Generator, along: np.ndarray | None
) -> np.ndarray:
    """Which draws a resampling takes, (count,); the best of several where a quantity is given."""
    picked = resampled(weights, count, random, along)
    if along is None:
        return picked
    sd = np.sqrt(weights @ np.square(along - weights @ along))

    def off(taken: np.ndarray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = abs(np.log(along[taken].std() / sd))
        return float(np.nan_to_num(ratio, nan=0.0))

    for _ in range(WEIGHING.tries - 1):
        if off(picked) <= WEIGHING.close:
            break
        picked = min(picked, resampled(weights, count, random, along), key=off)
    return picked


def _moved(values: Tensor, weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same of one site.

    Args:
        values: (draws, rows, numbers).
        weights: Summing to one in each row, (draws, rows).
    """
    mean = torch.einsum("dr,drn->rn", weights, values)
    square = torch.einsum("dr,drn->rn", weights, (values - mean).square())
    sd = square.sqrt().clamp_min(1e-300)
    moved = (values.mean(0) - mean).abs()
    if bool(((values == 0) | (values == 1)).all()):
        return 2 * moved.amax(-1).numpy(), np.zeros(values.shape[1])
    shift = (moved / sd).amax(-1)
    ratio = (values.std(0).clamp_min(1e-300) / sd).log().abs().amax(-1)
    return shift.numpy(), ratio.numpy()


def _all_but_a_few(values: np.ndarray) -> float:
    """The largest of them when the share that may be unreliable is left out."""
    values = np.sort(np.ravel(values))
    return float(values[int(np.ceil((1 - WEIGHING.unreliable_rows) * len(values))) - 1])
