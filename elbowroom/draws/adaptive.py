"""Importance sampling from proposals that adapt to what was drawn."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.special import logsumexp

from elbowroom.density.conditional import Conditional
from elbowroom.density.density import Density
from elbowroom.density.importance import (
    ERRORS,
    effective_sample_size,
    k_hat_interval,
    k_hat_threshold,
    log_mean_exp,
    normalised,
    resampled,
    smoothed,
    standard_errors,
)
from elbowroom.density.labels import Labels, log_mean_proposal, overlapping
from elbowroom.density.mixtures import Mixture, mixed
from elbowroom.draws.chains import Coverage
from elbowroom.draws.proposal import Proposal
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.errors import OutOfTimeError
from elbowroom.guides.roots import factor_of
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Adaptation:
    """Numbers that tune adaptive importance sampling."""

    first_round: int = 1000
    """Draws of the first round."""
    round: int = 4000
    """Draws of a later round."""
    nested_work: int = 2_000_000_000
    """The work of a round, at most, where some coordinates are drawn given the others: a few
    seconds."""
    enough: float = 2500.0
    """The effective sample size at which it ends, where k-hat and the errors are small."""
    plenty: float = 10_000.0
    """The effective sample size at which it ends though k-hat is not small."""
    precise: float = 0.03
    """The Monte Carlo error of every mean and sd, in sds, at which it ends."""
    efficient: float = 0.3
    """Effective draws for each draw above which a proposal is not adapted further."""
    comfortable: float = 0.25
    """The k-hat below which moments of the weighted draws are accurate."""
    heavy_parts: int = 2
    """Components where the earlier proposals were too thin."""
    heavy_share: float = 0.1
    """Their share."""
    high: float = 1.0
    """Nats above a proposal's centres from which a value is checked for lost digits."""
    most_high: int = 100
    """Values that are checked one by one, at most."""
    heaviest_share: float = 0.02
    """The share of the mass in one draw above which its surroundings are examined."""
    clustered: int = 2000
    """Draws that they are made of."""
    adaptations: int = 5
    """Rounds in which a proposal is adapted, at most."""
    rounds: int = 6
    """Rounds of the adapted proposal, at most."""
    unsure_rounds: int = 5
    """Rounds that are drawn where k-hat is not small, though weights and errors are good."""


ADAPTATION = Adaptation()


class AdaptiveImportance:
    """Adaptive multiple importance sampling.

    Each round draws from a mixture of t distributions; all draws so far are weighted by the mixture
    of all rounds' proposals (Cornuet, Marin, Mira and Robert, 2012, "Adaptive multiple importance
    sampling"), and the next proposal's shares, means and covariances are those of the weighted
    draws, component by component (Cappé et al., 2008, "Adaptive importance sampling in general
    mixture classes").

    Attributes:
        cut: Whether it ended since its time was over.
        points: All draws, (draws, D).
        log_p: Log density of the target at each, up to its evidence.
        log_q: Log density of the mixture of all proposals at each.
        log_weights: Of each, not smoothed.
        k_hat: Of the weights.
        adapted: The latest proposal before the draws were begun anew.

    Args:
        density: The log density of the target.
        first: The first proposal.
        random: Of the draws.
        modes: The number of the mode that each of its components belongs to; one each by default.
        conditional: Of the coordinates that are drawn given those of the proposals; by default the
            proposals are of all coordinates.
        labels: Parts whose order says nothing. The weights are then of the mean proposal over all
            their orders: they are right for all that does not depend on the order, wherever in
            these labellings the draws are.
    """

    def __init__(
        self,
        density: Density,
        first: Mixture,
        random: np.random.Generator,
        modes: np.ndarray | None = None,
        conditional: Conditional | None = None,
        labels: Labels | None = None,
    ) -> None:
        self.density, self.random, self.conditional = density, random, conditional
        self.labels = labels
        self.modes = np.arange(len(first.shares)) if modes is None else modes
        self.adapted = first
        self.coverage: Coverage | None = None
        self.cut = False
        means = first.means if conditional is None else conditional.begin(first.means)
        peaks = density.value(means)
        self.peak, self.centre = float(peaks.max()), means[np.argmax(peaks)]
        self._begin(first)

    def _begin(self, first: Mixture) -> None:
        self.proposals = [first]
        self.counts: list[int] = []
        self.points = np.zeros((0, self.density.dimension))
        self.log_p = np.zeros(0)
        self._log_q = np.zeros((0, 0))  # (draws, proposals), without the blocks
        self._log_blocks = np.zeros(0)

    @property
    def rounds(self) -> int:
        """How many proposals there were draws from."""
        return len(self.counts)

    def round(self, count: int) -> None:
        """Draws from the latest proposal, and weighs all draws anew."""
        proposal = self.proposals[-1]
        if len(self.counts) < len(self.proposals):  # the first time
            latest = self._log_densities([proposal], self.points)
            self._log_q = np.concatenate([self._log_q, latest], axis=1)
            self.counts.append(0)
        new, log_blocks = proposal.draw(count, self.random), np.zeros(count)
        if self.conditional is not None:
            new, log_blocks = self.conditional.complete(new, self.random)
        values = self._values(new)
        self.counts[-1] += count
        self._add(new, values, log_blocks)

    def _values(self, points: np.ndarray) -> np.ndarray:
        """The log density; minus infinity where it is high by a loss of digits alone."""
        values = self.density.value(points)
        high = np.flatnonzero(values > self.peak + ADAPTATION.high)
        steady = self.density.steady(points[high[: ADAPTATION.most_high]], self.centre)
        if len(high) > ADAPTATION.most_high:  # one judgement for all
            steady = np.full(len(high), steady.mean() > 0.5)
        values[high[~steady]] = -np.inf
        return values

    def _add(self, points: np.ndarray, log_p: np.ndarray, log_blocks: np.ndarray) -> None:
        log_q = self._log_densities(self.proposals, points)
        self.points = np.concatenate([self.points, points])
        self.log_p = np.concatenate([self.log_p, log_p])
        self._log_q = np.concatenate([self._log_q, log_q])
        self._log_blocks = np.concatenate([self._log_blocks, log_blocks])
        shares = np.array(self.counts) / sum(self.counts)
        self.log_q = logsumexp(self._log_q, axis=1, b=shares) + self._log_blocks
        self.log_weights = self.log_p - self.log_q
        self.log_smoothed, self.k_hat = smoothed(self.log_weights)

    def log_proposal(self, points: np.ndarray) -> np.ndarray:
        """The log density, at any points (n, D), of what the draws were drawn from, (n,)."""
        shares = np.array(self.counts) / sum(self.counts)
        log_q = self._log_densities(self.proposals, points)
        log_blocks = 0.0 if self.conditional is None else self.conditional.log_density(points)
        return logsumexp(log_q, axis=1, b=shares) + log_blocks

    def _log_densities(self, proposals: Sequence[Mixture], points: np.ndarray) -> np.ndarray:
        """The log density of each proposal at any points (n, D), (n, proposals)."""
        if self.labels is None or not len(points):
            outer = self._outer(points)
            return np.stack([each.log_density(outer) for each in proposals], axis=1)
        means = [log_mean_proposal(self.labels, points, each.log_density) for each in proposals]
        return np.stack(means, axis=1)

    def _outer(self, points: np.ndarray) -> np.ndarray:
        """The coordinates that are drawn from the mixtures."""
        return points if self.conditional is None else points[:, self.conditional.split.shared]

    @property
    def weights(self) -> np.ndarray:
        """Pareto-smoothed, summing to one, (draws,)."""
        return normalised(self.log_smoothed)

    @property
    def effective_sample_size(self) -> float:
        """Of the smoothed weights."""
        return effective_sample_size(self.log_smoothed)

    def adapt(self) -> None:
        """Makes the next proposal of the weighted draws.

        A covariance is drawn towards the one before as far as the effective draws are few.
        """
        latest, weights = self.proposals[-1], self.weights
        points = self._outer(self.points)
        size = points.shape[1]
        log_parts = latest.log_densities(points)
        parts = np.exp(log_parts - logsumexp(log_parts, axis=1, keepdims=True)) * weights[:, None]
        means, factors, shares = latest.means.copy(), latest.factors.copy(), parts.sum(0)
        for k, part in enumerate(parts.T):
            total = part.sum()
            if not total > 0:
                continue
            part = part / total
            effective = 1 / np.square(part).sum()
            keep = effective / (effective + 2 * size)
            mean = part @ points
            centred = points - mean
            covariance = keep * (centred * part[:, None]).T @ centred
            covariance += (1 - keep) * factors[k] @ factors[k].T
            try:
                factors[k] = np.linalg.cholesky(covariance)
            except np.linalg.LinAlgError:
                continue
            means[k] = keep * mean + (1 - keep) * means[k]
        least = min(0.02, 0.2 / len(shares))
        shares = np.maximum(shares if np.isfinite(shares).all() else latest.shares, least)
        shares = shares / shares.sum()
        self.proposals.append(replace(latest, shares=shares, means=means, factors=factors))

    @property
    def counting(self) -> np.ndarray:
        """The draws, (draws, D), with the heaviest one in the place of those without any weight.

        Far out a value may overflow.
        """
        weights = self.weights
        return np.where(weights[:, None] > 0, self.points, self.points[np.argmax(weights)])

    def quantities(self) -> np.ndarray:
        """Every scalar of the sites' values at each draw that counts, (draws, quantities)."""
        found = self.density.constrained(self.counting).values()
        return np.concatenate([v.numpy().reshape(len(self.points), -1) for v in found], axis=1)

    @property
    def weighted(self) -> WeightedDraws:
        """The draws that count, in the sites' own spaces."""
        return WeightedDraws(self.density.constrained(self.counting), self.log_p, self.log_q)

    def resample(self, count: int) -> WeightedDraws:
        """Draws of equal weight, which keep the quantity with the heaviest tail best."""
        quantities = self.quantities()
        heaviest = np.argmax(np.nan_to_num(standard_errors(self.weights, quantities)[1]))
        return self.weighted.resample(count, self.random, quantities[:, heaviest])

    @property
    def settled(self) -> bool:
        """Whether the weights are good, and every mean and sd has a small Monte Carlo error.

        The weights are good if k-hat's interval lies below its threshold, with enough effective
        draws.
        """
        draws = len(self.log_weights)
        upper = k_hat_interval(self.k_hat, draws)[1]
        if not (upper < k_hat_threshold(draws) and self.effective_sample_size >= ADAPTATION.enough):
            return False
        errors = standard_errors(self.weights, self.quantities())
        return all(np.nanmax(error, initial=0.0) <= ADAPTATION.precise for error in errors)

    @property
    def efficient(self) -> bool:
        """Whether the latest proposal is good enough to draw from without adapting it."""
        draws = len(self.log_weights)
        upper = k_hat_interval(self.k_hat, draws)[1]
        return (
            upper < k_hat_threshold(draws)
            and self.effective_sample_size > ADAPTATION.efficient * draws
        )

    def freeze(self) -> None:
        """Begins anew with the latest proposal, and a part of the first.

        The weights of draws that a proposal was adapted to are too even, and their evidence too
        low: what is handed out are fresh draws.
        """
        first, self.adapted = self.proposals[0], self.proposals[-1]
        self._begin(mixed([self.adapted, first], [4, 1]))

    @property
    def proposal(self) -> Proposal:
        """What the latest draws were drawn from."""
        if self.conditional is None:
            return Proposal(self.proposals[-1])
        begin = self.conditional
        return Proposal(self.proposals[-1], begin.split.blocks, begin.mean, begin.slope)

    @property
    def whole(self) -> Mixture:
        """What all draws so far were drawn from."""
        return mixed(self.proposals, self.counts)

    def _tiled(self) -> np.ndarray:
        """The mode of each component of `whole`."""
        return np.tile(self.modes, len(self.whole.shares) // len(self.modes))

    def modes_at(self, points: np.ndarray) -> np.ndarray:
        """The mode of the component that is densest at each point, (n,)."""
        return self._tiled()[self.whole.log_densities(points).argmax(1)]

    def anew(self, first: Mixture, modes: np.ndarray) -> "AdaptiveImportance":
        """Sampling of the same density from other components."""
        return AdaptiveImportance(
            self.density, first, self.random, modes, self.conditional, self.labels
        )

    def of_any_order(self) -> "AdaptiveImportance":
        """The same draws with the weights of all orders of their parts, where these overlap.

        Without such parts, or where other coordinates are drawn given these, it is the same.
        """
        if self.conditional is not None or self.labels is not None:
            return self
        labels = overlapping(self.density, self.counting, self.weights, self.log_proposal)
        if labels is None:
            return self
        found = AdaptiveImportance(
            self.density, self.whole, self.random, self._tiled(), labels=labels
        )
        found.counts, found._log_q = [len(self.points)], np.zeros((0, 1))
        found._add(self.points, self.log_p, self._log_blocks)
        found.adapted = self.adapted
        return found

    def joined(self, other: "AdaptiveImportance") -> "AdaptiveImportance":
        """Both samples as one, from the mixture of both proposals.

        What one of them has seen of a tail, the other one's luck does not hide.
        """
        counts = [len(self.points), len(other.points)]
        modes = np.concatenate([self._tiled(), other._tiled()])
        pooled = self.anew(mixed([self.whole, other.whole], counts), modes)
        pooled.counts, pooled._log_q = [sum(counts)], np.zeros((0, 1))
        pooled._add(
            np.concatenate([self.points, other.points]),
            np.concatenate([self.log_p, other.log_p]),
            np.concatenate([self._log_blocks, other._log_blocks]),
        )
        return pooled

    def _affordable(self, draws: int) -> int:
        if self.conditional is None:
            return self.density.affordable(draws, ADAPTATION.first_round)
        cost = self.conditional.cost * self.density.work
        most = min(ADAPTATION.nested_work // cost, SIZES.memory // self.density.dimension)
        return min(draws, max(ADAPTATION.first_round, most))

    def run(self) -> None:
        """Adapts the proposal where it needs it; then draws until the weights are good.

        They may not get so: `settled` tells.
        """
        few = self._affordable(max(ADAPTATION.first_round, 10 * self.adapted.means.shape[1]))
        full = self._affordable(ADAPTATION.round)
        self.round(few)
        for _ in range(ADAPTATION.adaptations):
            if self.efficient:
                break
            self.adapt()
            self.round(full)
        before = vars(self).copy()
        if self.rounds > 1:
            self.freeze()
        try:
            self.finish()
        except OutOfTimeError:
            if not len(self.points):  # the draws before are all there will be
                vars(self).update(before)
            raise

    def finish(self) -> None:
        """Draws until the weights are good, and for longer where they might be so by luck."""
        full = self._affordable(ADAPTATION.round)
        for count in range(ADAPTATION.rounds):
            if self.rounds and (self.comfortable or self.plenty):
                return
            if count >= ADAPTATION.unsure_rounds and self.settled:
                return
            self.round(full)

    @property
    def comfortable(self) -> bool:
        """Whether the weights are so even that another way of drawing has nothing to gain."""
        return self.k_hat < ADAPTATION.comfortable and self.settled

    @property
    def uneven(self) -> bool:
        """Whether one draw holds so much that a narrow part may hide behind it."""
        return bool(normalised(self.log_weights).max() > ADAPTATION.heaviest_share)

    @property
    def plenty(self) -> bool:
        """Whether there are so many effective draws that a k-hat within its limit will do."""
        return self.effective_sample_size >= ADAPTATION.plenty and self.settled

    @property
    def discomfort(self) -> tuple[bool, bool, float]:
        """What is less is better: of two that are settled the tail, else the number of draws."""
        if self.settled:
            return False, False, self.k_hat
        poor = not self.k_hat <= k_hat_threshold(len(self.log_weights))
        return True, poor, -self.effective_sample_size

    def misses(self, other: "AdaptiveImportance") -> bool:
        """Whether another sample of the same density has found more evidence than by chance."""
        own, error = log_mean_exp(self.log_weights)
        value, its_error = log_mean_exp(other.log_weights)
        return bool(value - own > ERRORS * np.hypot(error, its_error))

    def shares(self) -> tuple[float, ...]:
        """The posterior mass of each mode that sampling began with, largest first."""
        parts = self.proposals[-1].log_densities(self._outer(self.points))
        with np.errstate(all="ignore"):  # far out a density may be zero
            parts = np.exp(parts - logsumexp(parts, axis=1, keepdims=True)) * self.weights[:, None]
        # Every round's proposal has the components of the first, in the same order.
        masses = parts.sum(0).reshape(-1, len(self.modes)).sum(0)
        return tuple(sorted(map(float, np.bincount(self.modes, weights=masses)), reverse=True))

    def apart(self, parts: int) -> Mixture:
        """A proposal of several components, which follows bends and skew.

        Each begins at a cluster of the draws, or of those with the largest weights, where the
        proposals are too thin (Hoogerheide, Kaashoek and van Dijk, 2007, "On the shape of posterior
        densities and credible sets in instrumental variable regression models"); as wide as half of
        it and half of the whole.
        """
        points = self._outer(self.points)
        size = points.shape[1]
        main = self.adapted.factors[np.argmax(self.adapted.shares)]
        keep = self.effective_sample_size / (self.effective_sample_size + 2 * size)
        centred = points - self.weights @ points
        whole = keep * (centred * self.weights[:, None]).T @ centred + (1 - keep) * main @ main.T
        drawn = points[resampled(self.weights, ADAPTATION.clustered, self.random)]
        heavy = points[np.argsort(self.log_weights)[-ADAPTATION.clustered // 20 :]]
        scales = np.sqrt(np.diag(whole))
        sizes, means, covariances = [], [], []
        for chosen, most, mass in (
            (drawn, parts, 1 - ADAPTATION.heavy_share),
            (heavy, ADAPTATION.heavy_parts, ADAPTATION.heavy_share),
        ):
            distinct = np.unique(chosen / scales, axis=0)
            start = self.random.choice(distinct, min(most, len(distinct)), replace=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a cluster that is left without draws
                _, labels = kmeans2(chosen / scales, start, minit="matrix")
            for label in np.unique(labels):
                part = chosen[labels == label]
                sizes.append(mass * len(part) / len(chosen))
                means.append(part.mean(0))
                own = np.cov(part, rowvar=False).reshape(size, size) if len(part) > 1 else whole
                covariances.append((own + whole) / 2)
        factors = factor_of(torch.as_tensor(np.stack(covariances))).numpy()
        return replace(self.adapted, shares=np.array(sizes), means=np.stack(means), factors=factors)
