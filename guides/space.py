"""A model's latent sites, and the unconstrained coordinates in which guides describe them."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor
from torch.distributions import Transform

from elbowroom.errors import ModelError, users_code
from elbowroom.guides.dependence import discrete_dependence, shared_places
from elbowroom.guides.parameters import PointParameters
from elbowroom.guides.transforms import bijection

ANGLES = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)
"""Distributions on circles, whose support is the real line to torch."""


@dataclass(frozen=True)
class Plate:
    """A plate of a model: its name, dim (negative, from the right) and full size."""

    name: str
    dim: int
    size: int


@dataclass(frozen=True)
class Site:
    """A continuous latent site.

    Attributes:
        name: Its name.
        shape: Of its value.
        event_dim: How many rightmost dims of the value are one event.
        unconstrained_shape: Of its unconstrained value.
        transform: From the unconstrained value to the value.
        plates: The plates it is in, from the left dim to the right.
        support: Of its distribution.
        angles: Whether that is one of angles, whose density is the same a turn farther.
    """

    name: str
    shape: torch.Size
    event_dim: int
    unconstrained_shape: torch.Size
    transform: Transform
    plates: tuple[Plate, ...]
    support: Any = None
    angles: bool = False

    @property
    def real(self) -> bool:
        """Whether the site is its own unconstrained value."""
        probe = torch.linspace(-1.0, 1.0, prod(self.unconstrained_shape))
        probe = probe.reshape(self.unconstrained_shape)
        return self.unconstrained_shape == self.shape and torch.equal(self.transform(probe), probe)

    def log_abs_det_jacobian(self, unconstrained: Tensor, value: Tensor) -> Tensor:
        """Log Jacobian of the transform, summed over the event: the site's batch shape."""
        log_jacobian = self.transform.log_abs_det_jacobian(unconstrained, value)
        batch_dims = value.dim() - self.event_dim
        return sum_rightmost(log_jacobian, log_jacobian.dim() - batch_dims)


class _UnconstrainedValues(Messenger):
    """Gives each continuous latent site the value of a random unconstrained point near zero.

    Priors are not sampled, because an improper one cannot be.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        distribution = msg["fn"]
        if getattr(distribution.support, "is_discrete", False):
            return
        transform, shape = _transform(msg["name"], distribution.support, distribution.shape())
        msg["value"] = transform(self.width * (2 * torch.rand(shape) - 1))


def _transform(name: str, support: Any, shape: Any) -> tuple[Transform, torch.Size]:
    """A site's transform from unconstrained values, and their shape; or an error that names it."""
    try:
        transform = bijection(support)
        probe = torch.zeros(transform.inverse_shape(shape))
        transform.log_abs_det_jacobian(probe, transform(probe))
    except NotImplementedError as error:
        raise ModelError(
            f"site '{name}': there are no unconstrained coordinates for the support {support}; "
            "compute the site from other sites, with supports such as real or positive numbers."
        ) from error
    return transform, probe.shape


def trace_model(
    model: Callable[..., Any], arguments: Mapping[str, Any], width: float = 0.5
) -> poutine.Trace:
    """Runs a model at a random point near the origin of its unconstrained space.

    Raises:
        ModelError: If the model raises.
    """
    try:
        with users_code("the model cannot be run", ModelError), _UnconstrainedValues(width):
            return poutine.trace(model).get_trace(**arguments)
    except ModelError as error:
        if "same dtype" in str(error):
            own = str(torch.get_default_dtype()).partition(".")[2]
            raise ModelError(
                f"{error}; the fit uses {own}: convert networks with network.to(torch.{own}), or "
                "give their type as --dtype."
            ) from error
        raise


def sample_sites(trace: Any) -> Iterator[tuple[str, Any]]:
    """The sample sites of a trace by name, those that a plate makes for itself aside."""
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not isinstance(node["fn"], _Subsample):
            yield name, node


def plates_of(node: Any) -> tuple[Plate, ...]:
    """The plates that a site is in, at their full size, from the left dim to the right."""
    frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
    frames.sort(key=lambda frame: frame.dim)
    return tuple(Plate(frame.name, frame.dim, frame.full_size or frame.size) for frame in frames)


def dim_names(name: str, plates: tuple[Plate, ...]) -> tuple[str, ...]:
    """Names of a site's batch dims, from the left; those of no plate are NAME_dim_0 and on."""
    at = {plate.dim: plate.name for plate in plates}
    depth = -min(at, default=0)
    return tuple(at.get(dim, f"{name}_dim_{dim + depth}") for dim in range(-depth, 0))


@dataclass(frozen=True)
class LatentSpace:
    """The latent sites of a model on given arguments, and the flat vector u of their values.

    Attributes:
        sites: The continuous latent sites, in the order of the model.
        discrete: Discrete latent sites, each with its plates.
        unweighted: Of these, the ones whose whole density `poutine.mask(mask=False)` takes out.
        states: The numbers of values that discrete sites have, where these can be listed.
        dependence: For each site, the discrete sites that its density depends on; None if that
            cannot be told.
        observed: The observed sites' names.
        observed_plates: For each of them, its plates.
        deterministic_plates: For each deterministic site, the same.
        subsampled: The plate that `batch_size` subsamples, if there is one.
        parameters: The model's point parameters (`pyro.param`).
        max_plate_nesting: The number of dims that plates, and vectors in no plate, take.
        location_scale: Sites of a location-scale family on the real line, or multivariate Normal
            ones, whose scale or covariance depends on another latent site.
        vectors: Of these, the multivariate Normal ones.
        layers: Layers of a network whose weights are latent sites, by name.

    Example:
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
        ...     pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> space = LatentSpace.of(model, {"y": torch.tensor(0.5)})
        >>> space.dimension, space.observed
        (1, ('y',))
        >>> {name: float(value) for name, value in space.constrain(torch.zeros(1)).items()}
        {'scale': 1.0}
    """

    sites: tuple[Site, ...]
    discrete: Mapping[str, tuple[Plate, ...]]
    observed: tuple[str, ...]
    subsampled: Plate | None = None
    parameters: PointParameters = field(default_factory=PointParameters)
    max_plate_nesting: int = 0
    observed_plates: Mapping[str, tuple[Plate, ...]] = field(default_factory=dict)
    deterministic_plates: Mapping[str, tuple[Plate, ...]] = field(default_factory=dict)
    location_scale: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    unweighted: tuple[str, ...] = ()
    states: frozenset[int] = frozenset()
    dependence: Mapping[str, frozenset[str]] | None = None
    sizes: tuple[int, ...] = field(init=False)
    places: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", shared_places(self.dependence or {}))
        object.__setattr__(self, "sizes", tuple(prod(s.unconstrained_shape) for s in self.sites))

    @classmethod
    def of(cls, model: Callable[..., Any], arguments: Mapping[str, Any]) -> "LatentSpace":
        """Reads the sites off two runs of the model at random values of its latent sites.

        Raises:
            ModelError: If the model raises; if it has nothing to infer; if the
                support of a site depends on another latent site, so that no fixed change of
                coordinates is right.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with _SeenLayers() as seen:
                trace = trace_model(model, arguments)
            other = trace_model(model, arguments)
            subsampled = _subsampled_plate(model, arguments)
        sites, discrete, observed, deterministic = [], {}, {}, {}
        deepest = 0
        for name, node in sample_sites(trace):
            plates = plates_of(node)
            # Dims of vectors in no plate as well: values that are summed over go to their left.
            deepest = max([deepest, len(node["fn"].batch_shape), *(-p.dim for p in plates)])
            if node["is_observed"]:
                if node["infer"].get("_deterministic"):
                    deterministic[name] = plates
                elif not isinstance(node["fn"], dist.Unit):  # of a factor
                    observed[name] = plates
            elif node["fn"].support.is_discrete:
                discrete[name] = plates
            else:
                sites.append(_site(name, node, other.nodes.get(name), plates))
        scaled = tuple(site.name for site in sites if _scaled_by_latents(site.name, trace, other))
        nodes: Any = trace.nodes
        vectors = [name for name in scaled if covariance_root(nodes[name]["fn"]) is not None]
        parameters = PointParameters.of(trace)
        with torch.random.fork_rng(devices=[]):
            dependence = discrete_dependence(
                lambda: trace_model(model, arguments), discrete, -1 - deepest
            )
        if not sites and not discrete and not parameters.size:
            raise ModelError(
                "the model has no latent site and no parameter: there is nothing to infer. Add a "
                "pyro.sample without obs=, or a pyro.param."
            )
        return cls(
            sites=tuple(sites),
            discrete=discrete,
            observed=tuple(observed),
            subsampled=subsampled,
            parameters=parameters,
            max_plate_nesting=deepest,
            observed_plates=observed,
            deterministic_plates=deterministic,
            location_scale=scaled,
            vectors=tuple(vectors),
            layers=tuple(seen.names),
            unweighted=tuple(name for name in discrete if trace.nodes[name]["mask"] is False),
            states=frozenset(listed_values(nodes[name]["fn"]) for name in discrete) - {0},
            dependence=dependence,
        )

    def with_coordinates_of(self, other: "LatentSpace") -> "LatentSpace":
        """The same with the coordinates that another space has of its sites."""
        known = {(site.name, site.shape): site.transform for site in other.sites}
        sites = [
            replace(site, transform=known.get((site.name, site.shape), site.transform))
            for site in self.sites
        ]
        return replace(self, sites=tuple(sites))

    @property
    def dimension(self) -> int:
        """The length D of the flat unconstrained vector."""
        return sum(self.sizes)

    @property
    def local(self) -> tuple[str, ...]:
        """The latent sites, continuous and discrete, with a value for each row."""
        placed = {**{site.name: site.plates for site in self.sites}, **self.discrete}
        return tuple(name for name, plates in placed.items() if self.subsampled in plates)

    @property
    def per_observation(self) -> tuple[str, ...]:
        """The continuous sites with a value for each observation."""
        wholes = [set(plates) for plates in self.observed_plates.values() if plates]
        return tuple(s.name for s in self.sites if any(w <= set(s.plates) for w in wholes))

    @property
    def shared_discrete(self) -> tuple[str, ...]:
        """The discrete sites that several observations share."""
        wholes = [set(plates) for plates in self.observed_plates.values()]
        return tuple(
            name for name, plates in self.discrete.items() if any(w - set(plates) for w in wholes)
        )

    @property
    def local_continuous(self) -> bool:
        """Whether a continuous site has a value for each row."""
        return any(self.subsampled in site.plates for site in self.sites)

    def row_latents(self, drawn: Iterable[str]) -> bool:
        """Whether rows have latents that a guide draws, and which are not summed over given others.

        Args:
            drawn: The sites that the guide draws.
        """
        alone = not self.sites and not set(self.discrete).isdisjoint(drawn)
        return self.local_continuous or alone

    @property
    def rows_only(self) -> bool:
        """Whether every latent, and all that is observed, belongs to a row."""
        latents = {site.name for site in self.sites} | set(self.discrete)
        observed = all(self.subsampled in plates for plates in self.observed_plates.values())
        return self.subsampled is not None and latents == set(self.local) and observed

    def given(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of draws, those given which discrete sites are summed over; all, if all are discrete."""
        known = {site.name: sites[site.name] for site in self.sites if site.name in sites}
        return known or dict(sites)

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """The unconstrained value of each site, from the flat vector u of shape (D,)."""
        parts = u.split(self.sizes, -1)
        return {
            site.name: part.reshape(site.unconstrained_shape)
            for site, part in zip(self.sites, parts, strict=True)
        }

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """The value of each site, from the flat vector u of shape (D,)."""
        parts = self.split(u)
        return {site.name: site.transform(parts[site.name]) for site in self.sites}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """The flat vector (D,) of the sites' values; the inverse of `constrain`."""
        parts = [site.transform.inv(values[site.name]).reshape(-1) for site in self.sites]
        return torch.cat(parts)

    def row_plate(self, batch_size: int | None = None, **arguments: Any) -> Any:
        """The plate that `batch_size` subsamples, for one call of a guide of Pyro's."""
        assert self.subsampled is not None
        plate = self.subsampled
        return pyro.plate(plate.name, plate.size, subsample_size=batch_size, dim=plate.dim)

    def plates(self, arguments: Mapping[str, Any]) -> "OpenPlates":
        """The plates of one call of a guide, subsampled as `batch_size` in its arguments says."""
        return OpenPlates(self.subsampled, arguments.get("batch_size"))


class OpenPlates:
    """Opens plates in a guide as the model does; each is made once a call, as Pyro asks."""

    def __init__(self, subsampled: Plate | None, batch_size: int | None) -> None:
        self.subsampled, self.batch_size = subsampled, batch_size
        self.made: dict[str, Any] = {}

    @contextmanager
    def __call__(self, plates: tuple[Plate, ...]) -> Iterator[None]:
        """Enters some plates together."""
        with ExitStack() as stack:
            for plate in plates:
                if plate.name not in self.made:
                    size = self.batch_size if plate == self.subsampled else None
                    self.made[plate.name] = pyro.plate(
                        plate.name, plate.size, subsample_size=size, dim=plate.dim
                    )
                stack.enter_context(self.made[plate.name])
            yield


class FixedRows(Messenger):
    """Sets the rows of a minibatch in the subsampling plates of the model and the guide.

    Args:
        rows: By the plate's name.
    """

    def __init__(self, rows: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.rows = rows

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.rows and isinstance(msg["fn"], _Subsample):
            msg["value"] = self.rows[msg["name"]]


class SeenRows(Messenger):
    """Remembers the rows that plates have drawn.

    Attributes:
        rows: By the plate's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self.rows[msg["name"]] = msg["value"]


class Unobserved(UnconditionMessenger):
    """Draws what was observed, but leaves deterministic values: Pyro observes these too.

    A hidden Markov model whose steps are all alike is drawn for as many as were observed.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("_deterministic"):
            return
        fn, value = msg["fn"], msg["value"]
        if msg["is_observed"] and isinstance(fn, HiddenMarkovModel) and fn.duration is None:
            steps = value.shape[-fn.event_dim]
            msg["fn"] = fn = copy(fn)
            fn._duration, fn._event_shape = steps, torch.Size([steps, *fn.event_shape[1:]])
        super()._pyro_sample(msg)


def of_each_row(trace: Any, plate: Plate, names: Collection[str] | None = None) -> Tensor:
    """The log density of each row's own sites in a trace, (rows,), of a minibatch too.

    Sites outside of the plate of the rows are left out, and the scale of a minibatch.

    Args:
        trace: Of a model or a guide.
        plate: Of the rows.
        names: Of the sites that count, by default all.
    """
    trace.compute_log_prob()
    total: Any = 0.0
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or isinstance(node["fn"], _Subsample):
            continue
        if names is not None and name not in names:
            continue
        size = {frame.name: frame.size for frame in node["cond_indep_stack"]}.get(plate.name)
        if size is not None:
            term = (node["log_prob"] * (size / plate.size)).movedim(plate.dim, -1)
            total = total + term.reshape(-1, term.shape[-1]).sum(0)
    return total


def _site(name: str, node: Any, other: Any, plates: tuple[Plate, ...]) -> Site:
    distribution, value = node["fn"], node["value"]
    transform, shape = _transform(name, distribution.support, value.shape)
    probe = torch.linspace(-1.0, 1.5, prod(shape)).reshape(shape)
    if other is None or not torch.equal(transform(probe), bijection(other["fn"].support)(probe)):
        raise ModelError(
            f"site '{name}': its support, or whether it exists, depends on another latent site; "
            "give it a fixed support, for example as a fraction in (0, 1) times the bound."
        )
    return Site(
        name, value.shape, distribution.event_dim, shape, transform, plates, distribution.support,
        _of_angles(distribution),
    )  # fmt: skip


def _of_angles(fn: Any) -> bool:
    while not isinstance(fn, ANGLES) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, ANGLES)


def listed_values(fn: Any) -> int:
    """How many values a discrete distribution has; 0 where they cannot be listed.

    Example:
        >>> listed_values(dist.Categorical(torch.ones(3))), listed_values(dist.Poisson(1.0))
        (3, 0)
    """
    if not fn.has_enumerate_support:
        return 0
    # Several counts at once, or a vector, have no list.
    with suppress(NotImplementedError, AttributeError):
        return len(fn.enumerate_support(expand=False))
    return 0


def own_family(fn: Any) -> Any:
    """A distribution without what was made of its dims."""
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def covariance_root(fn: Any) -> Tensor | None:
    """The lower Cholesky factor of a multivariate Normal's covariance; None of another family.

    Example:
        >>> covariance_root(dist.MultivariateNormal(torch.zeros(1), 4 * torch.eye(1)))
        tensor([[2.]])
    """
    own = own_family(fn)
    if isinstance(own, torch.distributions.MultivariateNormal):
        return own._unbroadcasted_scale_tril
    if isinstance(own, torch.distributions.LowRankMultivariateNormal):
        return torch.linalg.cholesky(own.covariance_matrix)
    return None


def _scaled_by_latents(name: str, trace: Any, other: Any) -> bool:
    """Whether a site is `loc` plus `scale` times noise, with a scale that two runs differ in.

    One that is masked or scaled has another density when it is written by its standardised values.
    """
    node = trace.nodes[name]
    if node["mask"] is not None or not (torch.as_tensor(node["scale"]) == 1).all():
        return False
    first, second = own_family(node["fn"]), own_family(other.nodes[name]["fn"])
    root, again = (covariance_root(each) for each in (first, second))
    if root is not None and again is not None:
        return not torch.equal(root, again)
    families = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace)
    return isinstance(first, families) and not torch.equal(first.scale, second.scale)


def dependent_sites(
    model: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace, runs: int = 8
) -> tuple[str, ...]:
    """The continuous sites whose density depends on other latent sites, or on point parameters.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        space: Its latent space.
        runs: At random values; a dependence on a discrete site may be missed in a few.

    Example:
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     effect = pyro.sample("effect", dist.Normal(0.0, scale))
        ...     pyro.sample("y", dist.Normal(effect, 1.0), obs=y)
        >>> arguments = {"y": torch.tensor(0.5)}
        >>> dependent_sites(model, arguments, LatentSpace.of(model, arguments))
        ('effect',)
    """
    first, *others = [trace_model(model, arguments).nodes for _ in range(runs)]
    found = []
    for site in space.sites:
        node: Any = first[site.name]
        density = node["fn"].log_prob(node["value"].detach())
        fns: list[Any] = [other[site.name]["fn"] for other in others]
        again = [fn.log_prob(node["value"].detach()) for fn in fns]
        if density.requires_grad or not all(torch.equal(density, each) for each in again):
            found.append(site.name)
    return tuple(found)


def takes_batches(model: Callable[..., Any]) -> bool:
    """Whether a model takes `batch_size`, the rows of a minibatch."""
    return "batch_size" in inspect.signature(model).parameters


class _SeenLayers(Messenger):
    """The names of the layers that a model runs rows through; see `elbowroom.models._layers`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_layer(self, msg: Any) -> None:
        self.names.append(msg["name"])


def base_of(fn: Any) -> Any:
    """A distribution without the dims that were made part of its event.

    Example:
        >>> base_of(dist.Normal(torch.zeros(3), 1.0).to_event(1)).batch_shape
        torch.Size([3])
    """
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _subsampled_plate(model: Callable[..., Any], arguments: Mapping[str, Any]) -> Plate | None:
    if not takes_batches(model) or "batch_size" in arguments:  # or one of the model's own
        return None
    small = trace_model(model, {**arguments, "batch_size": 1})
    for _, node in sample_sites(small):
        sizes = {f.name: f.size for f in node["cond_indep_stack"] if f.vectorized}
        for plate in plates_of(node):
            if sizes[plate.name] == 1 < plate.size:
                return plate
    return None
