"""Many Hamiltonian Markov chains side by side, whose draws are those of the posterior.

A recorded density costs little more at fifty points than at one. The chains therefore adapt
together: each window of their trajectories tells the scales and correlations of the posterior from
all chains at once (as in Hoffman and Sountsov, 2022, "Tuning-free generalized Hamiltonian Monte
Carlo"), by their draws and gradients (Seyboldt, Carlson and Carpenter, 2026, "Preconditioning
Hamiltonian Monte Carlo by minimizing Fisher divergence"). A few dozen trajectories then do what
takes one chain a thousand.

Groups of chains begin at one place each, and have mixed where they have forgotten it; see
`elbowroom.draws.mixing`.

Where the labels of a density's parts mean nothing, as those of a mixture's components, each group
may come to another labelling, and none need forget its own: the draws are put in one order before
they tell a metric, or are judged.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from elbowroom import budget
from elbowroom.density.density import Density
from elbowroom.density.labels import Labels, in_one_order, labels_of
from elbowroom.draws.chains import Chains, State
from elbowroom.draws.metric import Metric, metric_of
from elbowroom.draws.mixing import mixing_of, rough
from elbowroom.draws.weighted import WEIGHING
from elbowroom.errors import OutOfTimeError
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class ManyChains:
    """How many chains run, and for how long."""

    groups: int = 8
    """Places where chains begin."""
    of_group: int = 8
    """Chains that begin at each place, where one evaluation of all costs little more than of one.
    Where it does not, half as many have to be warmed up."""
    windows: tuple[int, ...] = (10, 10, 15, 20, 30)
    """Trajectories after each of which the metric is made anew."""
    arrived: tuple[int, ...] = (15, 25)
    """The same of chains that begin at draws of the posterior."""
    settling: int = 10
    """Trajectories after the last of them, which adapt the step size alone."""
    left_out: float = 0.3
    """The share of a window that tells nothing of the metric: the chains still move."""
    accepted: float = 0.8
    """The mean acceptance that the step size is adapted to."""
    settled: float = 0.9
    """The same of the steps of two stages that come after the windows."""
    adapting: float = 0.6
    """How fast it is adapted."""
    shorter: float = 0.125
    """How much shorter the steps of some trajectories are, by which a chain in a narrow place comes
    out of it."""
    careful: int = 3
    """In the first windows every third trajectory is such a one."""
    often: int = 16
    """Later on it is every sixteenth."""
    least_steps: int = 8
    """Gradients of a trajectory, at the least: chains for which these take more time than there is
    do not begin, so that another guide has it."""
    most_steps: int = 64
    """Gradients of a trajectory, at most."""
    slow: float = 0.5
    """Independent draws that two trajectories are worth, of the slowest coordinate, below which
    every second one goes farther, if that gives more for its steps."""
    farther: tuple[float, float] = (0.9, 5.1)
    """How many times as far: at least and at most, since a trajectory may come back to where it
    began."""
    round: int = 64
    """Trajectories after which the draws are first judged: 64 chains then have made 4,000 draws."""
    more: float = 1.5
    """How many times as many there are when they are judged again."""
    rounds: int = 9
    """How often they are judged, at most, unless they have mixed by then and their draws alone are
    too few."""
    further: int = 3
    """How often they are judged after that."""
    effective: float = 1000.0
    """Effective draws of every coordinate at which the chains end: its mean is known to 0.03 sds.
    Most coordinates have several times as many."""
    costly: float = 1e11
    """Numbers in the operations of all evaluations, of compiled ones six seconds or more, from
    which on fewer effective draws are enough: 400, with which the error of an sd is 4%."""
    hopeless: float = 1.3
    """The nested R-hat above which chains that were judged a few times will not mix."""
    judged: int = 4
    """How often."""
    r_hat: float = 1.01
    """The nested R-hat up to which they have mixed."""
    far: float = 1000.0
    """Nats of energy lost along a trajectory above which it has diverged."""
    stuck: float = 0.1
    """The mean acceptance of a chain below which it is stuck."""


MANY_CHAINS = ManyChains()


@dataclass(frozen=True)
class MixedChains:
    """What many chains have found.

    Attributes:
        points: Their draws, (trajectories, chains, D): some of them, evenly, where they are many.
        values: The log density there, (trajectories, chains).
        r_hat: The largest nested R-hat of a coordinate; see `elbowroom.draws.mixing.of_several`.
        effective: The smallest bulk effective sample size of a coordinate.
        diverged: The share of trajectories that diverged.
        stuck: How many chains moved next to never.
        groups: How many places they began at.
        cut: Whether the time was over before their draws were enough.
    """

    points: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    r_hat: float
    effective: float
    diverged: float
    stuck: int
    groups: int
    cut: bool = False

    @property
    def mixed(self) -> bool:
        """Whether all groups of chains tell the same of every coordinate."""
        return self.r_hat <= MANY_CHAINS.r_hat

    @property
    def chains(self) -> int:
        """How many there are."""
        return self.points.shape[1]

    def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """So many of the draws, evenly, (count, D), and their log density, (count,)."""
        total = self.values.size
        picked = np.linspace(0, total - 1, min(count, total)).round().astype(int)
        return self.points.reshape(total, -1)[picked], self.values.reshape(total)[picked]


def run_many_chains(
    density: Density, starts: np.ndarray, random: np.random.Generator, arrived: bool = False
) -> MixedChains:
    """Runs groups of chains until they have mixed and their draws are enough.

    Args:
        density: The log density.
        starts: Where the groups begin, (groups, D): best far apart.
        random: Of all that is random.
        arrived: Whether the starts are draws of the posterior already, about.

    Returns:
        Their draws. Whether they have mixed is to be asked.

    Raises:
        OutOfTimeError: If the time is over before there are draws to be judged, or would be.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from elbowroom.guides.space import LatentSpace
        >>> from elbowroom.problem.isolation import isolated
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        ...     with pyro.plate("rows", 3):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> arguments = {"y": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
        >>> random = np.random.default_rng(0)
        >>> with isolated(0):
        ...     density = Density(model, arguments, LatentSpace.of(model, arguments))
        ...     found = run_many_chains(density, random.uniform(-2, 2, (8, 1)), random)
        >>> found.mixed, bool(abs(found.points.mean() - 1.5) < 0.05)
        (True, True)
    """
    windows = MANY_CHAINS.arrived if arrived else MANY_CHAINS.windows
    _check_time(density, starts, sum(windows) + MANY_CHAINS.settling + MANY_CHAINS.round)
    labels = labels_among(density, starts)
    chains, _ = warm_up(density, starts, random, windows, labels)
    chains.two_stages = True
    for trajectory in range(MANY_CHAINS.settling):
        _adapted(chains, trajectory)
    sampling = _Sampling(chains, len(starts), labels, _beside(density))
    found, count = None, MANY_CHAINS.round
    try:
        for judged in range(MANY_CHAINS.rounds + MANY_CHAINS.further):
            if found is not None and judged >= MANY_CHAINS.rounds and not found.mixed:
                return found
            sampling.advance(count - sampling.made)
            found = sampling.judged()
            if found.mixed and found.effective >= sampling.wanted:
                return found
            if judged + 1 >= MANY_CHAINS.judged and found.r_hat > MANY_CHAINS.hopeless:
                return found
            sampling.pace()
            if not found.mixed:
                sampling.forget()
            count = int(MANY_CHAINS.more * count)
    except OutOfTimeError:
        if found is None:
            raise
        return replace(found, cut=True)
    assert found is not None
    return found


def labels_among(density: Density, starts: np.ndarray) -> list[Labels]:
    """A mixture's components, if they can be put in any order.

    Other latents that can be, such as those of groups that have the same data, are no labels: each
    has a posterior of its own, which an order would change.

    Args:
        density: The log density.
        starts: Where chains begin, (groups, D).
    """
    states = density.space.states
    if not states or density.how == "one by one":  # whose values cost too much
        return []
    values, gradients = density.value_and_gradient(starts)
    best = int(np.argmax(values))
    if not np.isfinite(values[best]):
        return []
    found = labels_of(density, starts[best], _first_scales(gradients))
    return [labels for labels in found if labels.length in states]


def _first_scales(gradients: np.ndarray) -> np.ndarray:
    """About the standard deviations of coordinates, by gradients (n, D) near the posterior."""
    slopes = np.abs(np.where(np.isfinite(gradients), gradients, 0.0)).mean(0)
    return np.asarray(1 / np.sqrt(1 + slopes))


def _points(density: Density, starts: np.ndarray) -> np.ndarray:
    """Where each chain begins, (chains, D), those of a group beside each other."""
    most = MANY_CHAINS.of_group
    return np.repeat(starts, most if density.batch >= len(starts) * most else most // 2, axis=0)


def _check_time(density: Density, starts: np.ndarray, trajectories: int) -> None:
    """Sees that there may be draws to be judged before the time is over.

    Raises:
        OutOfTimeError: If not.
    """
    wanted = MANY_CHAINS.least_steps * trajectories
    points, seconds = _points(density, starts), budget.left() / wanted
    density.expect(wanted, len(points))  # so that it is machine code, which they will use
    for _ in range(3):  # another process may have had the processor
        began = time.perf_counter()
        density.value_and_gradient(points)
        if time.perf_counter() - began <= seconds:
            return
    raise OutOfTimeError(
        f"{len(points)} Markov chains would take longer than the time that is left; give a longer "
        "--time."
    )


def warm_up(
    density: Density,
    starts: np.ndarray,
    random: np.random.Generator,
    windows: Sequence[int],
    labels: Sequence[Labels] = (),
) -> tuple[Chains, list[State]]:
    """Chains that have come to the posterior, with a metric that suits it.

    Args:
        density: The log density.
        starts: Where groups of chains begin, (groups, D).
        random: Of the chains.
        windows: Trajectories after each of which the metric is made anew, and a chain that was
            stuck goes where another one of its group is.
        labels: Parts whose order says nothing.

    Returns:
        The chains, and where they were in the last window.
    """
    groups, points = len(starts), _points(density, starts)
    density.expect(MANY_CHAINS.least_steps * sum(windows), len(points))
    _, gradients = density.value_and_gradient(starts)
    metric = Metric.of_scales(_first_scales(gradients))
    chains = Chains(density, points, metric, random, MANY_CHAINS.most_steps)
    seen: list[State] = []
    for window, length in enumerate(windows):
        seen, accepted = [], []
        for trajectory in range(length):
            every = MANY_CHAINS.careful if length == windows[0] else MANY_CHAINS.often
            if trajectory % every == every - 1:
                chains.advance(MANY_CHAINS.shorter)
            else:
                _adapted(chains, trajectory)
                accepted.append(chains.accepted)
            if trajectory >= MANY_CHAINS.left_out * length:
                seen.append(chains.state)
        stuck = np.mean(accepted[len(accepted) // 2 :], axis=0) < MANY_CHAINS.stuck
        _freed(chains, stuck.reshape(groups, -1))
        for each in labels:
            seen = _in_one_order(chains, each, seen)
        chains.metric = metric_of(
            np.concatenate([state.points for state in seen]),
            np.concatenate([state.gradients for state in seen]),
            correlated=window > 0,
        )
    return chains, seen


def _freed(chains: Chains, stuck: np.ndarray) -> None:
    """Puts chains that are stuck, (groups, chains), where another one of their group is not."""
    state = chains.state
    own = np.arange(stuck.size).reshape(stuck.shape)
    moving = np.take_along_axis(own, stuck.argmin(1)[:, None], axis=1)
    taken = np.where(stuck, moving, own).ravel()
    chains.state = State(state.points[taken], state.values[taken], state.gradients[taken])


def _in_one_order(chains: Chains, labels: Labels, seen: list[State]) -> list[State]:
    """Puts what was seen of chains in one order of the parts, and goes on from there."""
    states = [*seen, chains.state]
    points = np.concatenate([state.points for state in states])
    moved, _ = in_one_order(labels, points)
    values = np.concatenate([state.values for state in states])
    gradients = np.concatenate([state.gradients for state in states])
    other = (moved != points).any(1)
    if other.any():
        values[other], gradients[other] = chains.evaluated(moved[other])
    *seen, chains.state = (
        State(*each)
        for each in zip(
            *(np.split(part, len(states)) for part in (moved, values, gradients)), strict=True
        )
    )
    return seen


def _adapted(chains: Chains, count: int) -> None:
    """One trajectory, after which the step size follows the acceptance."""
    chains.advance()
    rate = MANY_CHAINS.adapting / (1 + count / 4) ** 0.5
    wanted = MANY_CHAINS.settled if chains.two_stages else MANY_CHAINS.accepted
    chains.step *= float(np.exp(rate * (chains.accepted.mean() - wanted)))


class _Sampling:
    """Chains whose draws are kept, and judged.

    Attributes:
        made: Trajectories so far.
    """

    def __init__(
        self,
        chains: Chains,
        groups: int,
        labels: Sequence[Labels] = (),
        among: np.ndarray | None = None,
    ) -> None:
        self.chains, self.groups, self.labels, self.made = chains, groups, labels, 0
        self.among = among
        self._points: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._every = 1
        self._accepted = np.zeros(len(chains.state.points))
        self._usual, self._diverged = 0, 0.0
        self._latest: list[np.ndarray] = []
        self._steps, self._slowest, self._rate = 0, 0, 0.0
        self._farther = self._settled = False

    def advance(self, count: int) -> None:
        """So many more trajectories, of which as many are kept as memory allows."""
        for _ in range(count):
            self.made += 1
            careful = self.made % MANY_CHAINS.often == 0
            farther = 1.0
            if self._farther and self.made % 2:
                farther = self.chains.random.uniform(*MANY_CHAINS.farther)
            state = self.chains.advance(MANY_CHAINS.shorter if careful else 1.0, farther)
            self._latest.append(state.points)
            self._steps += self.chains.length(farther)
            if not careful:  # those are accepted nearly always
                self._accepted += self.chains.accepted
                self._usual += 1
            self._diverged += float((self.chains.lost > MANY_CHAINS.far).mean())
            if self.made % self._every == 0:
                self._points.append(state.points)
                self._values.append(state.values)
            if len(self._points) * state.points.size > SIZES.memory:
                self._points, self._values = self._points[1::2], self._values[1::2]
                self._every *= 2

    @property
    def wanted(self) -> float:
        """Effective draws that are enough."""
        density = self.chains.density
        costly = density.work * float(density.evaluations) >= MANY_CHAINS.costly
        return WEIGHING.resolved if costly else MANY_CHAINS.effective

    def pace(self) -> None:
        """Has every second trajectory go farther where draws are few, as long as it pays.

        What pays is told by the coordinate whose draws were worth least in the first round.
        """
        (points, _), steps = self._in_one_order(np.stack(self._latest)), self._steps
        self._latest, self._steps = [], 0
        if self._settled:
            return
        if not self._farther:
            centred = points - points.mean((0, 1))
            self._slowest = int(rough(centred, self.groups)[1].argmin())
        new = _new(points[:, :, self._slowest])
        before, self._rate = self._rate, new * len(points) / steps
        slow = new < MANY_CHAINS.slow
        self._settled = self._farther or not slow
        self._farther = self._rate > before if self._farther else slow

    def forget(self) -> None:
        """Leaves out the first half of the draws: the chains had not come to the posterior."""
        half = len(self._points) // 2
        self._points, self._values = self._points[half:], self._values[half:]

    def _in_one_order(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draws (trajectories, chains, D) in one order of their parts, and what that gains them."""
        gained = np.zeros(points.shape[:2])
        for labels in self.labels:
            moved, more = in_one_order(labels, points.reshape(-1, points.shape[-1]))
            points, gained = moved.reshape(points.shape), gained + more.reshape(gained.shape)
        return points, gained

    def judged(self) -> MixedChains:
        """The draws, and whether the chains have mixed."""
        points, gained = self._in_one_order(np.stack(self._points))
        values = np.stack(self._values) + gained
        r_hat, effective = mixing_of(points, self.groups, self.among)
        stuck = int((self._accepted / self._usual < MANY_CHAINS.stuck).sum())
        return MixedChains(
            points, values, r_hat, effective, self._diverged / self.made, stuck, self.groups
        )  # fmt: skip


def _beside(density: Density) -> np.ndarray:
    """How many coordinates the site of each has, (D,); of point parameters, one."""
    sizes = [*density.space.sizes]
    sizes += [1] * (density.dimension - sum(sizes))
    return np.repeat(sizes, sizes)


def _new(draws: np.ndarray) -> float:
    """The independent draws that two trajectories are worth, by how far they move.

    Args:
        draws: Of one coordinate, (trajectories, chains).
    """
    # 1 - r of the autocorrelation r after two, since a short and a long one may take turns.
    moved = np.square(draws[2:] - draws[:-2]).mean() / (2 * draws.var())
    return float(moved / (2 - moved)) if moved < 2 else np.inf
