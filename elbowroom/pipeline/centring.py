"""How far each group of a hierarchy is centred, by how much the data tell of it.

Groups that the data know well are drawn best as they are written, those that they hardly know by
their standardised values; between the two the best form lies between (Papaspiliopoulos, Roberts
and Sköld, 2007, "A general framework for the parametrization of hierarchical models"; Gorinova,
Moore and Hoffman, 2020, "Automatic reparameterisation of probabilistic programs"). Multivariate
Normal sites, such as Gaussian processes, are written by what is known of them as a whole; see
`elbowroom.problem.informed`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.density.conditional import Conditional, Split
from elbowroom.density.curvature import CURVATURE
from elbowroom.density.density import Density
from elbowroom.density.landscape import Landscape, density_of, unclimbed
from elbowroom.draws.groups import sites_as_written
from elbowroom.draws.many_chains import MANY_CHAINS, warm_up
from elbowroom.guides.space import LatentSpace, covariance_root, own_family, trace_model
from elbowroom.problem.bound import Problem
from elbowroom.problem.informed import Form, Information, Predicted, Shares
from elbowroom.problem.isolation import isolated
from elbowroom.problem.predictor import Predictor, predictors


@dataclass(frozen=True)
class Centring:
    """How the share of centring is found."""

    windows: tuple[int, ...] = (10, 10, 15)
    """Trajectories of the standardised chains; see `ManyChains.windows`."""
    least: float = 0.3
    """The largest share of a number below which all stay standardised."""
    short: int = 10
    """Numbers of a vector, of many, below which it is either standardised or left as it is, if the
    rest of the model is cheap."""
    algebra: int = 100
    """Numbers that an evaluation of the rest gives for each one of a short vector, below which it
    is cheap beside the matrices of what is known."""
    most: float = 0.5
    """The share of what is known of a short vector that is not of its prior, from which it is."""
    newton: int = 12
    """Newton steps to the mode of vectors given what their covariance depends on, at most."""
    halvings: int = 12
    """How often such a step may be halved."""
    close: float = 1e-3
    """Nats that such a step gains below which it is the last one."""
    evaluations: int = 10_000
    """Of what the rest of the model tells, at most: long vectors are asked of at fewer draws."""
    moving: int = 40
    """Shared numbers, at most, with which what is known of a vector may move."""
    step: float = 0.5
    """The step of differences of gradients at draws, in standard deviations: where a density has
    kinks, short steps see none of them."""
    apart: float = 1e-5
    """Size of an element of an information matrix, relative to its diagonal, that is not zero."""


CENTRING = Centring()


def partly_centred(problem: Problem, seed: int) -> tuple[Problem, Landscape]:
    """A problem with its location-scale sites centred as far as the data tell of each number.

    A few trajectories of the standardised sites z tell: where z is a posteriori given the others,
    the squared slope of the log density is on average 1 + I, where the 1 is the prior's precision
    and I the data's. Where the scale is known, the best share of centring is I / (1 + I). Where it
    may be small, the data tell less of z there, and a share that is too large makes a funnel: I is
    taken where the scale is small, and the share is that of the information beyond the prior's,
    (I - 1) / (I + 1), if there is any.

    Of multivariate Normal sites the same trajectories tell the whole information. They begin with
    that at the modes given random values of the other sites. Short ones in plates, such as the
    correlated effects of a group, stay as they are where the data tell most of them, and are
    standardised where they do not, since either is cheaper.

    Returns:
        The problem, and its density with places to begin at.
    """
    if problem.model.canonical is not None:  # which puts the sites in order as they are written
        return problem, unclimbed(problem, seed)
    vectors = _vectors(problem, seed)
    forms, short = _at_modes(problem, vectors, seed)
    sites = [name for name in problem.space.location_scale if short.get(name, 0.0) < CENTRING.most]
    sites += [name for name in vectors if name not in problem.space.location_scale]
    if not sites:
        return problem, unclimbed(problem, seed)
    forms = {name: form for name, form in forms.items() if name not in short}
    numbers = [name for name in sites if name not in vectors]
    # The shares of numbers are inputs of the density, which then need not be recorded again.
    shapes = {site.name: site.shape for site in problem.space.sites}
    shares = Shares({name: shapes[name] for name in numbers})
    adjustable = forms if vectors else dict.fromkeys(numbers, shares)
    standardised = problem.reparameterise(sites, adjustable)
    landscape = unclimbed(standardised, seed)
    density, random = landscape.density, np.random.default_rng(seed)
    assert density is not None
    with (
        isolated(seed, dtype=torch.float64, threads=problem.threads),
        np.errstate(all="ignore"),
    ):
        starts = landscape.spread(MANY_CHAINS.groups, random)
        chains, seen = warm_up(density, starts, random, CENTRING.windows)
        squares = np.mean([np.square(state.gradients).mean(0) for state in seen], axis=0)
        ends = chains.state.points
        information = standardised.space.split(torch.as_tensor(squares - 1))
        few = ends[:: len(ends) // len(starts)]
        values = density.constrained(ends if forms else few)
    centred: dict[str, Form] = {}
    told = {
        name: information[f"{name}_decentered"] * narrowed
        for name, narrowed in _narrowed(standardised, numbers, few, seed).items()
    }
    shared = {name: ((own - 1) / (own + 1).clip(1e-9)).clip(0.0, 1.0) for name, own in told.items()}
    if max((float(part.max()) for part in shared.values()), default=0.0) >= CENTRING.least:
        centred.update({name: part.to(problem.dtype) for name, part in shared.items()})
    if not (centred or forms):
        plain = problem.reparameterise(sites)
        return plain, unclimbed(plain, seed, few)
    with problem.session(seed):
        written = sites_as_written(standardised, values)
    own = [
        {name: each[i] for name, each in written.items()}
        for i in range(len(ends if forms else few))
    ]
    if forms:
        with problem.session(seed):
            points = torch.stack([problem.space.unconstrain(each) for each in own])
        long = {name: vectors[name] for name in forms}
        centred.update(_known(problem, long, points.double().cpu().numpy(), seed))
    changed = problem.reparameterise(sites, centred)
    with problem.session(seed):
        restated = [problem.restated(sites, centred, each) for each in own[:: len(own) // len(few)]]
        places = torch.stack([changed.space.unconstrain(each) for each in restated])
    if density.shares is None or density.how != "recorded":
        density = None
    else:
        shares.values.copy_(torch.cat([part.flatten() for part in shared.values()]))
    return changed, unclimbed(changed, seed, places.double().cpu().numpy(), density)


def _narrowed(
    problem: Problem, sites: Sequence[str], points: np.ndarray, seed: int
) -> dict[str, Tensor]:
    """How much less the data tell of standardised sites where their scales are small, by name.

    What they tell of a number goes with the square of its scale: this is its smallest, beside its
    mean, over points, (n, D).
    """
    scales: dict[str, list[Tensor]] = {name: [] for name in sites}
    with problem.session(seed), torch.no_grad():
        for point in points:
            values = problem.space.constrain(torch.as_tensor(point).to(problem.dtype))
            given = poutine.condition(problem.function, values)
            nodes: Any = poutine.trace(given).get_trace(**problem.arguments).nodes
            for name, found in scales.items():
                scale = own_family(nodes[f"{name}_decentered"]["fn"]).scale
                found.append(scale.expand(nodes[name]["fn"].shape()))
    squares = {name: torch.stack(found).double().square() for name, found in scales.items()}
    return {name: each.amin(0) / each.mean(0) for name, each in squares.items()}


def has_long_vectors(problem: Problem) -> bool:
    """Whether there is a vector such as a Gaussian process, whose covariance is unknown."""
    if problem.model_name is not None:
        return False
    sizes = {site.name: site.shape[-1] for site in problem.space.sites if site.shape}
    long = any(sizes[name] >= CENTRING.short for name in problem.space.vectors)
    return long or bool(_predictors(problem, 0))


def has_own_scales(problem: Problem) -> bool:
    """Whether there are numbers each of which has a scale of its own that is not known.

    Each of them has a funnel, as under the priors that shrink coefficients: no Normal follows it.
    """
    numbers = set(problem.space.location_scale) - set(problem.space.vectors)
    if not numbers:
        return False
    with problem.session(0):
        nodes: Any = trace_model(problem.function, problem.arguments).nodes
        scales = [own_family(nodes[name]["fn"]).scale.detach().flatten() for name in numbers]
    return any(len(scale) > 1 and bool((scale != scale[0]).any()) for scale in scales)


def _predictors(problem: Problem, seed: int) -> tuple[Predictor, ...]:
    with problem.session(seed):
        return predictors(problem.function, problem.arguments, problem.space)


Values = dict[str, Tensor]


@dataclass(frozen=True)
class _Vector:
    """Normal vectors f = mean + factor z of which the rest of a model tells something.

    Attributes:
        given: They, given all else, as blocks of the density of the rest.
        prior: The mean, (blocks, m), and the factor, (blocks, m, k), given the values of all sites.
        place: The indices of the site, (blocks, k), among all coordinates.
        predictor: Where the site is z, and the blocks are what is added to f; None where it is f.
    """

    given: Conditional
    prior: Callable[[Values], tuple[Tensor, Tensor]]
    place: np.ndarray
    predictor: Predictor | None = None

    @property
    def cheap(self) -> bool:
        """Whether there are several, short, and the rest costs less than their matrices."""
        work = self.given.density.work / self.place.size
        several, short = len(self.place) > 1, self.place.shape[-1] < CENTRING.short
        return several and short and work < CENTRING.algebra

    def whole(self, points: np.ndarray) -> np.ndarray:
        """Points (..., D) as the density of the rest has them."""
        missing = self.given.density.dimension - points.shape[-1]
        return np.concatenate([np.zeros((*points.shape[:-1], missing)), points], axis=-1)

    def priors(self, space: LatentSpace, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean, (n, blocks, m), and the factor, (n, blocks, m, k), at points, (n, D)."""
        with torch.no_grad():
            found = [self.prior(space.constrain(torch.as_tensor(point))) for point in points]
        mean, factor = (torch.stack(each).double().numpy() for each in zip(*found, strict=True))
        return mean, factor


def _vectors(problem: Problem, seed: int) -> dict[str, _Vector]:
    """The multivariate Normal sites whose covariance depends on others, and the like, by name."""
    space, found = problem.space, {}
    linear = _predictors(problem, seed)
    wanted = {*space.vectors, *(predictor.site for predictor in linear)}
    places, begin = {}, 0
    for site, size in zip(space.sites, space.sizes, strict=True):
        if site.name in wanted:
            places[site.name] = np.arange(begin, begin + size).reshape(-1, site.shape[-1])
        begin += size
    if space.vectors:
        with isolated(seed, dtype=torch.float64, threads=problem.threads):
            rest = density_of(problem.without(space.vectors))
        for name in space.vectors:
            given = _given(rest, places[name])
            found[name] = _Vector(given, partial(_prior, problem, name), places[name])
    for predictor in linear:
        name = predictor.site
        moved = problem.without([name]).with_added(predictor)
        with isolated(seed, dtype=torch.float64, threads=problem.threads):
            rest = density_of(moved)
        added = np.arange(rest.dimension - space.dimension)[None]
        prior = partial(_linear, problem, predictor)
        found[name] = _Vector(_given(rest, added), prior, places[name], predictor)
    return found


def _given(rest: Density, blocks: np.ndarray) -> Conditional:
    others = np.setdiff1d(np.arange(rest.dimension), blocks)
    return Conditional(rest, Split(others, blocks), np.zeros(rest.dimension))


def _prior(problem: Problem, name: str, values: Values) -> tuple[Tensor, Tensor]:
    model = poutine.condition(problem.function, values)
    fn: Any = poutine.trace(model).get_trace(**problem.arguments).nodes[name]["fn"]
    loc, root = own_family(fn).loc, covariance_root(fn)
    assert root is not None
    size = loc.shape[-1]
    return loc.reshape(-1, size), root.expand(*loc.shape, size).reshape(-1, size, size)


def _linear(problem: Problem, predictor: Predictor, values: Values) -> tuple[Tensor, Tensor]:
    constant, columns = predictor.at(problem.function, problem.arguments, values)
    return constant[None], columns[None]


def _at_modes(
    problem: Problem, vectors: Mapping[str, _Vector], seed: int
) -> tuple[dict[str, Form], dict[str, float]]:
    """What is known of vectors at their modes given others that are near zero, unconstrained.

    Returns:
        That, and of short ones, which share of what is known is not of their prior.
    """
    space, short = problem.space, {}
    points = np.random.default_rng(seed).uniform(-1, 1, (MANY_CHAINS.groups, space.dimension))
    for name, vector in vectors.items():
        with (
            isolated(seed, dtype=torch.float64, threads=problem.threads),
            np.errstate(all="ignore"),
        ):
            mean, factor = vector.priors(space, points)
            points = _climbed(vector, points, mean, factor)
            if vector.cheap:
                _, _, curvature = vector.given.quadratic(vector.whole(points))
                left = np.trace(np.linalg.inv(_precision(curvature, factor)), axis1=-2, axis2=-1)
                short[name] = 1 - float(np.mean(left)) / mean.shape[-1]
    return _known(problem, vectors, points, seed), short


def _known(
    problem: Problem, vectors: Mapping[str, _Vector], points: np.ndarray, seed: int
) -> dict[str, Form]:
    """What is known of vectors on average over points, (n, D)."""
    shapes = {site.name: site.shape for site in problem.space.sites}
    found: dict[str, Form] = {}
    with isolated(seed, dtype=torch.float64, threads=problem.threads), np.errstate(all="ignore"):
        for name, vector in vectors.items():
            evaluations = len(points) * vector.given.cost
            few = points[:: -(-evaluations // CENTRING.evaluations)]
            own = few[:, vector.place]
            if vector.predictor is not None:
                mean, factor = vector.priors(problem.space, few)
                own = mean + (factor @ own[..., None])[..., 0]
            before = {} if vector.predictor else _before(problem.space, name)
            places = np.concatenate([*before.values(), np.zeros(0, dtype=int)])
            root, slope, moves = _information(vector.given, vector.whole(few), own, places)
            shape = vector.predictor.shape if vector.predictor else shapes[name]
            size = root.shape[-1]
            known = Information(
                torch.as_tensor(root).reshape(*shape[:-1], size, size),
                torch.as_tensor(slope).reshape(*shape[:-1], size),
                {
                    each: torch.as_tensor(part).reshape(*shape[:-1], size, -1)
                    for each, part in zip(before, _split(moves, before), strict=True)
                },
            )
            found[name] = Predicted(vector.predictor, known) if vector.predictor else known
    return found


def _precision(curvature: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Of standardised vectors, (n, blocks, k, k), with what is not negative of a curvature."""
    usable = np.isfinite(curvature).all((1, 2, 3), keepdims=True)
    values, vectors = np.linalg.eigh(np.where(usable, curvature, 0.0))
    seen = np.sqrt(np.maximum(values, 0.0))[..., None] * (np.swapaxes(vectors, -1, -2) @ factor)
    return np.asarray(np.eye(factor.shape[-1]) + np.swapaxes(seen, -1, -2) @ seen)


def _climbed(
    vector: _Vector, points: np.ndarray, mean: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """Points (n, D) with vectors at their mode given the others.

    Args:
        vector: Those.
        points: Where to begin.
        mean: Of the priors, (n, blocks, m).
        factor: Their factors, (n, blocks, m, k).
    """
    z = np.zeros((len(points), *factor.shape[1:2], factor.shape[-1]))
    shares = 0.5 ** np.arange(CENTRING.halvings)[:, None, None, None]

    def at(z: np.ndarray) -> np.ndarray:
        moved = np.repeat(points[None], len(z), axis=0)
        own = z if vector.predictor else mean + (factor @ z[..., None])[..., 0]
        moved[..., vector.place] = own
        return moved

    def values_at(z: np.ndarray) -> np.ndarray:
        whole = vector.whole(at(z)).reshape(-1, vector.given.density.dimension)
        return vector.given.density.value(whole).reshape(len(z), -1) - 0.5 * np.square(z).sum(
            (2, 3)
        )

    for _ in range(CENTRING.newton):
        _, gradients, curvature = vector.given.quadratic(vector.whole(at(z[None])[0]))
        transposed = np.swapaxes(factor, -1, -2)
        uphill = (transposed @ np.nan_to_num(gradients)[..., None])[..., 0] - z
        steps = np.linalg.solve(_precision(curvature, factor), uphill[..., None])[..., 0]
        tried = z + shares * steps  # (halvings, n, blocks, k)
        values = values_at(tried)
        gained = values.max(0) - values_at(z[None])[0]
        best = tried[values.argmax(0), np.arange(len(z))]
        z = np.where((gained > 0)[:, None, None], best, z)
        if not (gained > CENTRING.close).any():
            break
    return at(z[None])[0]


def _before(space: LatentSpace, name: str) -> dict[str, np.ndarray]:
    """The coordinates of real sites that are sampled before one and shared by all its vectors."""
    found: dict[str, np.ndarray] = {}
    begin = 0
    for site, size in zip(space.sites, space.sizes, strict=True):
        if site.name == name:
            break
        if site.real and not site.plates and site.name not in space.location_scale:
            found[site.name] = np.arange(begin, begin + size)
        begin += size
    return found if sum(map(len, found.values())) <= CENTRING.moving else {}


def _split(moves: np.ndarray, places: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([len(each) for each in places.values()])[:-1]
    return np.split(moves, ends, axis=-1) if places else []


def _information(
    given: Conditional, points: np.ndarray, own: np.ndarray, moving: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The root R, (blocks, m, m), slope, (blocks, m), of the information on average, and its moves.

    Args:
        given: The vectors given all else.
        points: (n, D).
        own: The vectors there, (n, blocks, m).
        moving: The coordinates that the slope moves with, (S,).

    Returns:
        The root and the slope where those coordinates are zero, and V, (blocks, m, S).
    """
    values, gradients, curvature = given.quadratic(points, _steps(own) / CURVATURE.step)
    usable = np.isfinite(values) & np.isfinite(curvature).all((1, 2, 3))
    if not usable.any():
        size = given.split.blocks.shape
        return np.zeros((*size, size[1])), np.zeros(size), np.zeros((*size, len(moving)))
    precision = curvature[usable].mean(0)
    sizes = np.sqrt(np.abs(np.diagonal(precision, axis1=-2, axis2=-1)))
    small = CENTRING.apart * sizes[..., :, None] * sizes[..., None, :]
    precision = np.where(np.abs(precision) > small, precision, 0.0)
    values, vectors = np.linalg.eigh(precision)
    sizes = np.diagonal(precision, axis1=-2, axis2=-1)
    eye = np.eye(sizes.shape[-1], dtype=bool)
    if not precision[..., ~eye].any():
        root = np.sqrt(np.maximum(sizes, 0.0))[..., None] * eye
    else:
        root = np.sqrt(np.maximum(values, 0.0))[..., None] * np.swapaxes(vectors, -1, -2)
    whole = np.swapaxes(root, -1, -2) @ root
    points, own = points[usable], own[usable]
    moves = _moves(given, points, moving)
    slope = gradients[usable].mean(0) + (whole @ own.mean(0)[..., None])[..., 0]
    return root, slope + moves @ points[:, moving].mean(0), moves


def _steps(draws: np.ndarray) -> np.ndarray:
    """Steps of differences at draws, (n, ...), alike; short ones where there is but one draw."""
    spread = np.broadcast_to(draws.std(0), draws.shape)
    short = CURVATURE.step * np.maximum(1.0, np.abs(draws))
    return np.where(spread > 0, CENTRING.step * spread, short)


def _moves(given: Conditional, points: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """How far the gradients of vectors fall with other coordinates, (blocks, m, S), on average."""
    found = np.zeros((*given.split.blocks.shape, len(moving)))
    for j, place in enumerate(moving):
        step = _steps(points[:, place])
        ahead, behind = points.copy(), points.copy()
        ahead[:, place] += step
        behind[:, place] -= step
        _, gradients = given.density.value_and_gradient(np.concatenate([ahead, behind]))
        up, down = np.split(gradients[:, given.split.blocks], 2)
        falls = (down - up) / (2 * step[:, None, None])
        found[..., j] = falls[np.isfinite(falls).all((1, 2))].mean(0)
    return found
