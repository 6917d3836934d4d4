"""Short Markov chains that leave a density as it is: where its draws may move to."""

from dataclasses import dataclass

import numpy as np
import torch

from elbowroom.density.density import Density
from elbowroom.draws.metric import DenseMetric, Metric


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
    first: float = 0.21178
    """The part of a step of two stages that the momenta begin with."""


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
    "MCMC using Hamiltonian dynamics"). Its steps are those of the leapfrog, or of two stages, which
    lose about a tenth of the energy where they can be as long, but come apart sooner (Blanes, Casas
    and Sanz-Serna, 2014, "Numerical integrators for the hybrid Monte Carlo method").

    Args:
        density: The log density.
        points: Where the chains begin, (chains, D).
        metric: About the posterior's covariance: the momenta are standard Normal in the units of
            its root.
        random: Of the momenta.
        steps: Gradients of a trajectory, at most; an even number.

    Attributes:
        state: Where they are.
        step: How far a trajectory goes by one gradient, in standard deviations.
        two_stages: Whether its steps take two gradients.
        accepted: The probability that each latest trajectory was accepted, (chains,).
        lost: Nats of energy that it lost, (chains,).
    """

    def __init__(
        self,
        density: Density,
        points: np.ndarray,
        metric: Metric | DenseMetric,
        random: np.random.Generator,
        steps: int,
    ) -> None:
        self.density, self.metric, self.random, self.steps = density, metric, random, steps
        self.two_stages = False
        self.state = State(points, *self.evaluated(points))
        self.accepted, self.lost = np.ones(len(points)), np.zeros(len(points))
        self.step = points.shape[1] ** -0.25
        while (
            _probability(self._moved(self.step, TRAJECTORIES.tried)[1]).mean()
            < TRAJECTORIES.accepted
            and self.step > TRAJECTORIES.smallest
        ):
            self.step /= TRAJECTORIES.smaller

    def length(self, farther: float = 1.0) -> int:
        """Gradients of a trajectory, or of one that goes so many times as far."""
        stages = 2 if self.two_stages else 1
        steps = int(np.ceil(farther * TRAJECTORIES.length / (stages * self.step)))
        return min(stages * steps, self.steps)

    def evaluated(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log density and its gradient; minus infinity and zero where there is none."""
        values, gradients = self.density.value_and_gradient(points)
        with np.errstate(all="ignore"):
            whole = values.sum() + gradients.sum()
        if np.isfinite(whole):  # nearly always, and quick to see
            return values, gradients
        usable = np.isfinite(values) & np.isfinite(gradients).all(1)
        return np.where(usable, values, -np.inf), np.where(usable[:, None], gradients, 0.0)

    def _moved(self, step: float, steps: int) -> tuple[State, np.ndarray]:
        """The ends of trajectories, and the energy that each has lost, (chains,).

        The momenta, in the units of the metric's root, are known at the ends alone: on the way
        the velocities are all that is needed, which take one product with the covariance a step.
        """
        begin = self.state
        momenta = self.random.standard_normal(begin.points.shape)
        energy = begin.values - 0.5 * np.square(momenta).sum(1)
        points, values, gradients = begin.points.copy(), begin.values, begin.gradients
        impulse, velocities = np.zeros_like(points), self.metric.times(momenta)
        # In place: the arrays of many chains are too long for the processor's cache.
        at, moving, pushed = (torch.from_numpy(each) for each in (points, velocities, impulse))
        *kicks, last = step * _kicks(steps, self.two_stages)
        for kick in kicks:
            pushed.add_(torch.from_numpy(gradients), alpha=kick)
            self.metric.accelerate(moving, torch.from_numpy(gradients), kick)
            at.add_(moving, alpha=step)
            values, gradients = self.evaluated(points)
        with np.errstate(all="ignore"):  # a trajectory that runs away is not accepted
            impulse += last * gradients
            momenta = momenta + self.metric.times(impulse, transposed=True)
            lost = energy - values + 0.5 * np.square(momenta).sum(1)
        return State(points, values, gradients), np.nan_to_num(lost, nan=np.inf)

    def advance(self, shorter: float = 1.0, farther: float = 1.0) -> State:
        """One trajectory of every chain.

        Args:
            shorter: How many times as long as usual its steps are.
            farther: How many times as far it goes.
        """
        step = self.step * self.random.uniform(0.8, 1.2) * shorter
        end, self.lost = self._moved(step, self.length(farther))
        self.accepted = _probability(self.lost)
        taken = self.random.uniform(size=len(self.accepted)) < self.accepted
        self.state = State(
            np.where(taken[:, None], end.points, self.state.points),
            np.where(taken, end.values, self.state.values),
            np.where(taken[:, None], end.gradients, self.state.gradients),
        )
        return self.state


def _kicks(steps: int, two_stages: bool) -> np.ndarray:
    """For how many steps gradients push before each move of a trajectory, and after the last."""
    kicks = np.ones(steps + 1)
    if two_stages:
        kicks[::2], kicks[1::2] = 4 * TRAJECTORIES.first, 2 - 4 * TRAJECTORIES.first
    kicks[[0, -1]] /= 2
    return kicks


def _probability(lost: np.ndarray) -> np.ndarray:
    """That a trajectory is accepted, by the energy that it has lost."""
    return np.exp(-np.maximum(lost, 0.0))


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
