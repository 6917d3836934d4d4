"""Short Markov chains that leave a density as it is: where its draws may move to."""

from dataclasses import dataclass

import numpy as np

from elbowroom.density.density import Density


@dataclass(frozen=True)
class Trajectories:
    """How a chain moves."""

    accepted: float = 0.8
    """The mean acceptance that a step size must have."""
    smaller: float = 1.6
    """The factor by which a step size is cut."""
    smallest: float = 2e-3
    """The smallest step size, in standard deviations; below it the chains do not move far enough to
    tell anything."""
    length: float = 1.5
    """The length of a trajectory, in standard deviations."""
    tried: int = 3
    """Steps by which a step size is judged."""


TRAJECTORIES = Trajectories()


@dataclass(frozen=True)
class State:
    """Where the chains are.

    Attributes:
        points: (chains, D).
        values: The log density there, (chains,).
        gradients: Its gradient there, (chains, D).
    """

    points: np.ndarray
    values: np.ndarray
    gradients: np.ndarray


class Chains:
    """Hamiltonian Monte Carlo by several chains together.

    Each trajectory keeps the density: draws of it before are draws of it afterwards (Neal, 2011,
    "MCMC using Hamiltonian dynamics").

    Args:
        density: The log density.
        points: Where the chains begin, (chains, D).
        factor: Lower Cholesky factor of the posterior's covariance, (D, D), or its standard
            deviations, (D,): the momenta are standard Normal in these units.
        random: Of the momenta.
        steps: Leapfrog steps of a trajectory, at most.

    Attributes:
        state: Where they are.
        step: Of the leapfrog steps, in standard deviations.
        length: How many there are in a trajectory.
    """

    def __init__(
        self,
        density: Density,
        points: np.ndarray,
        factor: np.ndarray,
        random: np.random.Generator,
        steps: int,
    ) -> None:
        self.density, self.factor, self.random = density, factor, random
        self.state = State(points, *self._evaluated(points))
        self.step = points.shape[1] ** -0.25
        while (
            self._moved(self.step, TRAJECTORIES.tried)[1].mean() < TRAJECTORIES.accepted
            and self.step > TRAJECTORIES.smallest
        ):
            self.step /= TRAJECTORIES.smaller
        self.length = min(int(np.ceil(TRAJECTORIES.length / self.step)), steps)

    def _evaluated(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = self.density.value_and_gradient(points)
        usable = np.isfinite(values) & np.isfinite(gradients).all(1)
        return np.where(usable, values, -np.inf), np.where(usable[:, None], gradients, 0.0)

    def _times(self, vectors: np.ndarray, transposed: bool = False) -> np.ndarray:
        if self.factor.ndim == 1:
            return vectors * self.factor
        return vectors @ (self.factor if transposed else self.factor.T)

    def _moved(self, step: float, steps: int) -> tuple[State, np.ndarray]:
        """The ends of trajectories, and the probability that each is accepted, (chains,)."""
        begin = self.state
        momenta = self.random.standard_normal(begin.points.shape)
        energy = begin.values - 0.5 * np.square(momenta).sum(1)
        points, gradients = begin.points, begin.gradients
        with np.errstate(all="ignore"):  # a trajectory that runs away is not accepted
            for _ in range(steps):
                momenta = momenta + 0.5 * step * self._times(gradients, transposed=True)
                points = points + step * self._times(momenta)
                values, gradients = self._evaluated(points)
                momenta = momenta + 0.5 * step * self._times(gradients, transposed=True)
            gain = values - 0.5 * np.square(momenta).sum(1) - energy
        accepted = np.exp(np.minimum(np.nan_to_num(gain, nan=-np.inf), 0.0))
        return State(points, values, gradients), accepted

    def advance(self) -> State:
        """One trajectory of every chain."""
        step = self.step * self.random.uniform(0.8, 1.2)
        end, probability = self._moved(step, self.length)
        taken = self.random.uniform(size=len(probability)) < probability
        self.state = State(
            np.where(taken[:, None], end.points, self.state.points),
            np.where(taken, end.values, self.state.values),
            np.where(taken[:, None], end.gradients, self.state.gradients),
        )
        return self.state


@dataclass(frozen=True)
class Coverage:
    """What chains that began at importance draws have found.

    Attributes:
        outside: Places whose weights would exceed those of all draws, (n, D).
        share: The posterior's mass that the chains there stand for.
        chains: How many chains came to such a place.
        places: How many of the places that were to be covered are not.
        lasting: Whether this is so though components were made there again and again.
    """

    outside: np.ndarray
    share: float
    chains: int
    places: int
    lasting: bool = False

    @property
    def whole(self) -> bool:
        """Whether the draws are everywhere."""
        return not (self.chains or self.places)
