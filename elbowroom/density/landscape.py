"""Where several starts climb to on a problem's log density, before any guide is fitted."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbowroom import budget
from elbowroom.density.conditional import SPLITTING, Conditional, Split
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.modes import Mode, distinct, find_modes
from elbowroom.density.point_parameters import MaximumLikelihood
from elbowroom.density.propriety import endless
from elbowroom.density.starts import Starts
from elbowroom.errors import OutOfTimeError
from elbowroom.guides import Start
from elbowroom.guides.space import FixedRows
from elbowroom.problem.bound import Problem
from elbowroom.problem.given_start import begun
from elbowroom.problem.informed import Shares
from elbowroom.problem.isolation import isolated, placed
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Search:
    """How modes are searched."""

    hopeless: float = 1e5
    """Nats below the first start from which a climb is not begun."""
    wide_starts: int = 2
    """Starts in more dimensions than `SIZES.dense`."""
    enough_rows: int = 20_000
    """Rows that a fit by minibatches uses to find where to begin, at most."""
    searches: int = 4
    """How often climbs begin anew where the known modes explain least."""
    within: float = 12.0
    """Nats of Laplace evidence below the best mode's within which another mode matters."""
    share: float = 0.5
    """Of the time of a fit, at most."""
    most_starts: int = 4
    """The most starts, as a multiple of `restarts`, where only one reaches the best mode."""


SEARCH = Search()


@dataclass(frozen=True)
class Landscape:
    """What was found of a problem's log density.

    Attributes:
        density: Recorded; None where modes say nothing of the posterior: the model has point
            parameters, or continuous latents for each row.
        curvature: Of it.
        modes: The distinct modes, best Laplace evidence first; ends that are no mode last.
        tried: How many starts there were.
        first: The first start, (D,).
        seconds: Wall time.
        starts: Where guides begin, (n, D), if the dimension is too large for modes; or where Markov
            chains do, if draws of the posterior are known, about.
        likelihood: The point parameters of the model that it is the landscape of, if it has any.
        rows: How many rows it is of, where these are not all.
        unfinished: Whether the last climbs still found modes.
        own_starts: Whether climbs began at the model's own starts alone.
        climbed: Where candidates for more climbs came to, (n, D).
        cut: Whether the search ended since its time was over.
        endless: A direction in which the density does not fall, in words, if there is no mode.
    """

    density: Density | None
    curvature: Curvature | None
    modes: list[Mode]
    tried: int
    first: np.ndarray
    seconds: float
    starts: np.ndarray | None = None
    likelihood: MaximumLikelihood | None = None
    rows: int | None = None
    unfinished: bool = False
    own_starts: bool = False
    climbed: np.ndarray | None = None
    endless: str | None = None
    cut: bool = False

    @property
    def proper(self) -> list[Mode]:
        """The modes that matter: with a precision, and evidence near the best one's, that first."""
        return _proper(self.modes)

    @property
    def best(self) -> Mode | None:
        """The mode with the highest Laplace evidence, if there is one."""
        return next(iter(self.proper), None)

    @property
    def places(self) -> np.ndarray:
        """What draws have to cover, (n, D): modes, and where candidates for starts came to."""
        modes = [mode.location for mode in self.proper]
        found = np.stack(modes) if modes else np.zeros((0, len(self.first)))
        # Candidates come to other labellings as well, and the draws keep to one.
        if self.climbed is None or any(mode.relabelled for mode in self.modes):
            return found
        return np.concatenate([found, self.climbed])

    @property
    def agreement(self) -> str | None:
        """How many climbs ended at the best mode, as a sentence."""
        if self.best is None or self.tried < 2:
            return None
        where = "" if self.rows is None else f" of {self.rows:,} rows drawn at random"
        return f"{self.best.starts:,} of {self.tried:,} climbs ended at the best mode{where}."

    def spread(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Places to begin at, far apart, (n, D): all starts or modes, and points near the first.

        Args:
            count: How many, at least.
            random: Of the points.
        """
        assert self.density is not None
        known = np.zeros((0, len(self.first))) if self.starts is None else self.starts
        if self.proper:
            known = np.stack([mode.location for mode in self.proper])
        others = self.first + random.uniform(-1, 1, (max(0, count - len(known)), known.shape[1]))
        if len(others):
            others = _brought_in(self.density, self.first, others)
        return np.concatenate([known, others])

    def start(self) -> Start:
        """Where a guide begins, in the default dtype.

        Without a proper mode the climb may have run off to a boundary: it begins where that began.
        """
        dtype = torch.get_default_dtype()
        if self.best is None:
            return Start(torch.as_tensor(self.first).to(dtype))
        precision = torch.as_tensor(self.best.precision).to(dtype)
        return Start(torch.as_tensor(self.best.location).to(dtype), precision)


def density_of(
    problem: Problem,
    parameters: Mapping[str, Tensor] | None = None,
    with_parameters: bool = False,
    rows: int | None = None,
) -> Density:
    """The log density of a problem, in float64 on the CPU; to be called in such a session.

    Args:
        problem: The model bound to its data.
        parameters: Values of the model's point parameters, if it has any.
        with_parameters: Whether they are coordinates too; see `Density`.
        rows: Of how many rows, drawn at random and weighed for all; of all by default.
    """
    arguments = placed(problem.arguments, torch.float64, torch.device("cpu"))
    function, plate = problem.function, problem.space.subsampled
    if rows is not None and plate is not None:
        chosen = {plate.name: torch.randperm(plate.size)[:rows].sort().values}

        def function(**given: Any) -> Any:
            with FixedRows(chosen):
                return problem.function(**given, batch_size=rows)

    shares = next((form for form in problem.forms.values() if isinstance(form, Shares)), None)
    return Density(function, arguments, problem.space, parameters, with_parameters, shares=shares)


def unclimbed(
    problem: Problem,
    seed: int,
    starts: np.ndarray | None = None,
    density: Density | None = None,
) -> Landscape:
    """The density of a problem without point parameters, and where to begin; no mode is sought.

    Args:
        problem: The model bound to its data.
        seed: Of random points.
        starts: Where to begin, (n, D), if that is known.
        density: The problem's, where it is recorded already.
    """
    began = time.perf_counter()
    with isolated(seed, dtype=torch.float64, threads=problem.threads):
        density = density or density_of(problem)
        first = next(_own_starts(problem, 1, seed), np.zeros(density.dimension))
        first = first if starts is None else starts[0]
        if not np.isfinite(density.value(first[None])).all():
            elsewhere = Starts(density, np.random.default_rng(seed)).feasible()
            first = first if elsewhere is None else elsewhere
    seconds = time.perf_counter() - began
    return Landscape(density, None, [], 0, first, seconds, starts)


def unexplored(problem: Problem) -> Landscape:
    """Where a guide begins without a search: the user's start, or the origin."""
    origin = torch.zeros(problem.space.dimension)
    first = begun(problem.start, problem.space, origin).numpy()
    return Landscape(None, None, [], 0, first, 0.0, cut=True)


def explore(
    problem: Problem,
    restarts: int,
    seed: int,
    parameters: Mapping[str, Tensor] | None = None,
    sampled: bool = False,
    climb: bool = True,
    density: Density | None = None,
) -> Landscape:
    """Climbs from several starts: the user's and the model's own, the origin, and random points.

    Then from where the modes found explain the density least, as long as that finds more of them.

    Models with latents for each row, or point parameters of no known value, begin near the origin
    of the unconstrained space instead: their mode is no guide to their posterior. They begin at
    small random values, since at equal ones a decoder has nothing to tell rows apart by.

    If only one start reaches the best mode, more are tried, up to four times as many. Where
    evaluations are expensive, three starts have to do.

    Args:
        problem: The model bound to its data.
        restarts: How many starts.
        seed: Of the starts.
        parameters: Values of the model's point parameters.
        sampled: Whether some of very many rows are enough, where a fit by minibatches begins: their
            mode is off by a few standard deviations.
        climb: Whether modes are sought at all; if not, the first start is where guides begin.
        density: The problem's of all rows at these parameters, where it is recorded already.
    """
    began, space = time.perf_counter(), problem.space
    unknown = space.parameters.size > 0 and parameters is None
    if unknown or space.local_continuous or not (space.sites and climb):
        with problem.session(seed):
            near = 0.1 * torch.randn(space.dimension)
        first = next(_own_starts(problem, 1, seed, near), near.double().cpu().numpy())
        return Landscape(None, None, [], 0, first, time.perf_counter() - began)
    with (
        isolated(seed, dtype=torch.float64, threads=problem.threads),
        budget.stage("searching for modes", SEARCH.share),
    ):
        many = space.subsampled is not None and space.subsampled.size > SEARCH.enough_rows
        rows = SEARCH.enough_rows if sampled and many else None
        if density is None or rows is not None:
            density = density_of(problem, parameters, rows=rows)
        curvature = Curvature(density)
        others = Starts(density, np.random.default_rng(seed))
        starts = _starts(problem, others, restarts, seed)
        first = next(starts)
        restarts = min(restarts, 3) if density.width > SIZES.cache else restarts
        wide = density.dimension > SIZES.dense
        restarts = min(restarts, SEARCH.wide_starts) if wide else restarts
        batch = np.stack([first, *(next(starts) for _ in range(restarts - 1))])
        there = np.isfinite(density.value(batch))
        if not there[0]:
            elsewhere = batch[there.argmax()] if there.any() else others.feasible()
            if elsewhere is not None:
                first = batch[0] = elsewhere.copy()
        modes: list[Mode] = []
        with suppress(OutOfTimeError):
            batch = _brought_in(density, first, batch)
            batch = _settled(curvature, batch)
            modes = [] if wide else find_modes(density, curvature, batch)
        tried = restarts
        if wide:
            seconds = time.perf_counter() - began
            cut = budget.over()
            return Landscape(density, curvature, [], 0, first, seconds, batch, rows=rows, cut=cut)
        # A model's own starts know where to look, and in very many dimensions no candidate does.
        if restarts > 1 and problem.model.starts is None and density.dimension <= SIZES.products:

            def climbed(points: np.ndarray) -> list[Mode]:
                points = _settled(curvature, _brought_in(density, first, points))
                return find_modes(density, curvature, points)

            modes, came, unfinished = _searched(others, modes, climbed, restarts)
            tried += came
        else:
            unfinished = False
        while restarts > 1 and modes and modes[0].starts == 1:
            # A density without a mode has none for more starts either.
            if tried >= (SEARCH.most_starts if modes[0].reached else 2) * restarts:
                break
            more = np.stack([next(starts) for _ in range(restarts)])
            try:
                more = _settled(curvature, _brought_in(density, first, more))
                modes = distinct([*modes, *find_modes(density, curvature, more)], space)
            except OutOfTimeError:
                unfinished = True
                break
            tried += restarts
        direction = None
        if not _proper(modes) and not budget.over():
            with suppress(OutOfTimeError):
                direction = endless(density, curvature, modes, first)
        cut = budget.over()
    seconds = time.perf_counter() - began
    return Landscape(
        density, curvature, modes, tried, first, seconds, rows=rows, unfinished=unfinished,
        own_starts=problem.model.starts is not None, climbed=others.climbed, endless=direction,
        cut=cut,
    )  # fmt: skip


def _searched(
    others: Starts, modes: list[Mode], climbed: Callable[[np.ndarray], list[Mode]], count: int
) -> tuple[list[Mode], int, bool]:
    """Climbs from where the known modes explain the density least, while that finds more of them.

    Args:
        others: The candidates.
        modes: That are known.
        climbed: The modes that climbs from points (n, D) reach.
        count: Climbs at a time.

    Returns:
        All modes, how many starts and candidates came to one, and whether the last climbs still
        found some.
    """
    tried, unfinished = 0, False
    for _ in range(SEARCH.searches):
        proper = _proper(modes)
        if not proper:
            break
        try:
            more, arrived = others.unexplained(proper, count)
            came = climbed(more) if len(more) else []
        except OutOfTimeError:
            return modes, tried, True
        # The proper modes come first.
        modes[: len(proper)] = [
            replace(mode, starts=mode.starts + int(came))
            for mode, came in zip(proper, arrived, strict=True)
        ]
        tried += int(arrived.sum()) + len(more)
        if not len(more):
            return modes, tried, False
        modes = distinct([*modes, *came], others.density.space)
        unfinished = len(_proper(modes)) > len(proper)
        if not unfinished:
            break
    return modes, tried, unfinished


def _proper(modes: list[Mode]) -> list[Mode]:
    """Those with a precision whose evidence is near the best one's, that first."""
    proper = [mode for mode in modes if mode.reached and mode.precision is not None]
    return [mode for mode in proper if mode.log_evidence > proper[0].log_evidence - SEARCH.within]


def _starts(problem: Problem, others: Starts, count: int, seed: int) -> Iterator[np.ndarray]:
    """The user's start and the model's own; else the origin; then prior draws and random points."""
    own = list(_own_starts(problem, count, seed))
    yield from own
    found = others.first()
    if own:
        next(found)  # the origin
    yield from found


def _own_starts(
    problem: Problem, count: int, seed: int, near: Tensor | None = None
) -> Iterator[np.ndarray]:
    """The user's start, if there is one, and the model's own, if it declares any.

    Sites that the user's leaves out begin near some values, by default the origin.
    """
    if problem.start:
        others = torch.zeros(problem.space.dimension) if near is None else near.cpu()
        yield begun(problem.start, problem.space, others).numpy()
    if problem.model.starts is None:
        return
    for values in problem.model.starts(problem.arguments, count, seed):
        known = {name: value.double().cpu() for name, value in values.items()}
        yield problem.space.unconstrain(known).numpy()


def _brought_in(density: Density, first: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Starts drawn towards the first one as far as their density is hopeless, or none."""
    shares = 0.5 ** np.arange(16)
    points = first + shares[:, None, None] * (starts - first)  # (shares, starts, D)
    values, gradients = density.value_and_gradient(points.reshape(-1, len(first)))
    values = np.where(np.isfinite(gradients).all(1), values, -np.inf).reshape(len(shares), -1)
    (there,) = density.value(first[None])
    enough = values >= there - SEARCH.hopeless if np.isfinite(there) else np.isfinite(values)
    return points[enough.argmax(0), np.arange(len(starts))]


def _settled(curvature: Curvature, starts: np.ndarray) -> np.ndarray:
    """Starts whose groups are at their mode given the parameters that they share.

    Groups that begin alike, though the data tell them apart, draw their spread to zero, from where
    no climb comes back.
    """
    density, structure = curvature.density, curvature.structure
    if not 0 < structure.together.shape[1] <= SPLITTING.most_together:
        return starts
    conditional = Conditional(density, Split(structure.apart, structure.together), starts[0])
    return conditional.settled(starts)[0]
