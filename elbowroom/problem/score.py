"""A model's log density at given values of its latent sites, discrete sites summed out.

`score` runs the model once at one point; `map_draws` does so for many, in one batched call where
the model allows it. The sums over discrete sites are done by variable elimination on the traced
log probabilities, plates included (Obermeyer et al., 2019, "Tensor variable elimination for plated
factor graphs").
"""

import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.func import vmap

from elbowroom import budget
from elbowroom.errors import ModelError
from elbowroom.guides.space import LatentSpace, sample_sites
from elbowroom.problem.batchable import Batchable
from elbowroom.problem.chains import log_total


class _Enumerate(Messenger):
    """Gives each discrete site all of its values, in a dim that no site near it has.

    As Pyro's enumeration, but two sites share a dim where no density depends on both, whether or
    not the model says so by `pyro.markov`. So rows, or steps of a chain, in a Python loop take as
    many dims as one of them.

    Args:
        space: The model's latent space.
    """

    def __init__(self, space: LatentSpace) -> None:
        super().__init__()
        self.first = -1 - space.max_plate_nesting
        self.dependence, self.places = space.dependence or {}, space.places
        self.ids = {name: i for i, name in enumerate(self.places)}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if msg["done"] or not isinstance(fn, TorchDistributionMixin):
            return
        depends = self.dependence[name]
        msg["infer"]["_dim_to_id"] = {self.first - self.places[n]: self.ids[n] for n in depends}
        if msg["is_observed"] or name not in self.places:
            return
        dim = self.first - self.places[name]
        support = fn.enumerate_support(expand=False)
        value = support.reshape(len(support), *(1,) * (-1 - dim), *fn.event_shape)
        if "_pyro_categorical_support" in vars(support):  # makes Categorical's density faster
            vars(value).update(vars(support))
        msg["infer"]["_enumerate_dim"] = dim
        msg["value"], msg["done"] = value, True


class _AsPyro(EnumMessenger):
    """Pyro's enumeration, under `vmap` too: there the base class may not look at a value."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, Tensor):
            msg["value"] = torch.empty(value.shape, device="meta")  # only its shape is read
            super()._pyro_post_sample(msg)
            msg["value"] = value


@dataclass
class Factor:
    """A log probability whose dims have names: plates' names, and ids of enumerated sites.

    Attributes:
        log_prob: One dim for each name.
        names: Of the dims; a plate's is a string, an enumerated site's an integer.
        sites: The sites whose log probability it holds.
        scale: What the log probability is multiplied by once nothing is left to sum over; its dims
            are plates.
    """

    log_prob: Tensor
    names: tuple[Any, ...]
    sites: frozenset[str]
    scale: "Factor | None" = None

    def summed_over(self, drop: set[Any]) -> "Factor":
        """The product over some plates."""
        dims = [i for i, name in enumerate(self.names) if name in drop]
        kept = tuple(name for name in self.names if name not in drop)
        return replace(
            self, log_prob=self.log_prob.sum(dims) if dims else self.log_prob, names=kept
        )

    def scaled(self) -> "Factor":
        """The same, multiplied by its scale.

        Raises:
            ModelError: If the scale differs within a plate that was multiplied over.
        """
        if self.scale is None:
            return self
        lost = set(self.scale.names) - set(self.names)
        if lost:
            raise ModelError(
                f"site '{min(self.sites)}': poutine.scale differs within plate "
                f"'{min(lost)}', whose members share a discrete site that is summed over; "
                "give one number."
            )
        return replace(
            self, log_prob=self.log_prob * _aligned([self.scale], self.names), scale=None
        )


def _aligned(factors: list[Factor], names: tuple[Any, ...]) -> Tensor:
    """The sum of factors, broadcast over the named dims."""
    total: Any = 0.0
    for factor in factors:
        order = [factor.names.index(name) for name in names if name in factor.names]
        shape = iter(factor.log_prob.permute(order).shape)
        view = [next(shape) if name in factor.names else 1 for name in names]
        total = total + factor.log_prob.permute(order).reshape(view)
    return total


def _common(factors: list[Factor]) -> tuple[frozenset[str], Factor | None, tuple[Any, ...]]:
    """The sites of factors that are multiplied, their scale, and their names."""
    names = tuple(dict.fromkeys(name for factor in factors for name in factor.names))
    sites = frozenset().union(*(factor.sites for factor in factors))
    scales = [factor.scale for factor in factors]
    if any(not _same(scales[0], scale) for scale in scales[1:]):
        raise ModelError(
            f"sites {', '.join(map(repr, sorted(sites)[:4]))} are summed over together, but "
            "poutine.scale multiplies them by different numbers; put one poutine.scale around all "
            "of them."
        )
    return sites, scales[0], names


def _same(first: Factor | None, second: Factor | None) -> bool:
    """Whether two scales are the same."""
    if first is second:
        return True
    one = Factor(torch.ones(()), (), frozenset())
    first, second = first or one, second or one
    if first.names != second.names:
        return False
    with suppress(RuntimeError):  # the numbers of a batch cannot be read; those of a point can
        return bool((first.log_prob == second.log_prob).all())
    return True


def eliminate(
    factors: list[Factor],
    plates_of: Mapping[int, frozenset[str]],
    joined: dict[int, Factor] | None = None,
) -> list[Factor]:
    """Sums enumerated sites out, the most deeply plated first.

    Args:
        factors: Of the model.
        plates_of: For the id of each enumerated site, the plates it lies in.
        joined: Filled with the product of factors that each site was summed out of, in the order
            of the sums, the site's dim the last one; chains are summed over one by one then.

    Returns:
        Factors whose dims are all plates.

    Raises:
        ModelError: If discrete sites lie in crossed plates, where no order of summing is right.
    """
    held, numbers = dict(enumerate(factors)), itertools.count(len(factors))
    touching: dict[int, dict[int, None]] = {index: {} for index in plates_of}
    for number, factor in held.items():
        for name in factor.names:
            if name in touching:
                touching[name][number] = None

    def rank(index: int) -> tuple[int, int, int]:
        """The deepest first; of those, the one whose joined factor has the fewest dims."""
        names = {name for number in touching[index] for name in held[number].names}
        return -len(plates_of[index]), len(names), index

    ranks = {index: rank(index) for index in plates_of}
    waiting = [*ranks.values()]
    heapify(waiting)
    while waiting:
        first = heappop(waiting)
        index = first[-1]
        if ranks.get(index) != first:  # another one by now, or summed over
            continue
        chain = [index]
        if joined is None:
            chain = _chain_from(index, held, touching, plates_of, ranks)
        for each in chain:
            del ranks[each]
        used = dict.fromkeys(i for each in chain for i in touching.pop(each))
        parts = [_within(held[i], index, plates_of, ranks) for i in used]
        changed = {name for i in used for name in held[i].names if name in ranks}
        for i in used:
            for name in held.pop(i).names:
                if name in ranks:
                    touching[name].pop(i, None)
        if joined is not None:
            sites, scale, every = _common(parts)
            names = (*(name for name in every if name != index), index)
            joined[index] = Factor(_aligned(parts, names), names, sites, scale)
        number = next(numbers)
        held[number] = made = _summed_over(chain, parts)
        for name in made.names:
            if name in ranks:
                touching[name][number] = None
        for name in changed:
            ranks[name] = rank(name)
            heappush(waiting, ranks[name])
    return [*held.values()]


@dataclass(frozen=True)
class Chains:
    """Which discrete sites are summed over as a chain."""

    shortest: int = 8
    """Sites of a chain: fewer are summed over one by one."""
    hub: int = 4
    """Neighbours up to which a site may be one of a chain: one with more is beside it."""


CHAINS = Chains()


def _chain_from(
    index: int,
    held: Mapping[int, Factor],
    touching: Mapping[int, Mapping[int, None]],
    plates_of: Mapping[int, frozenset[str]],
    remaining: Collection[int],
) -> list[int]:
    """The sites that are a chain with one at its end, each sharing factors with its neighbours.

    They may all share factors with a site beside the chain, such as one that tells its kind.

    Args:
        index: Of the site.
        held: The factors, by their numbers.
        touching: For each site, the numbers of the factors that it is in.
        plates_of: For each site, the plates that it is in.
        remaining: The sites that are not summed over yet.

    Returns:
        Those sites in order; the site alone where these are few, or no chain.
    """

    def near(site: int) -> set[int]:
        names = {name for i in touching[site] for name in held[i].names if name in remaining}
        return names - {site}

    def beside(site: int) -> set[int]:
        return {other for other in near(site) if len(near(other)) <= CHAINS.hub}

    def form(site: int) -> tuple[int, frozenset[str]]:
        factor = held[next(iter(touching[site]))]
        return factor.log_prob.shape[factor.names.index(site)], plates_of[site]

    chain, further = [index], beside(index)
    while len(further) == 1:
        (site,) = further
        if form(site) != form(index):
            return [index]
        chain.append(site)
        further = beside(site) - {chain[-2]}
    return chain if not further and len(chain) >= CHAINS.shortest else [index]


def _summed_over(chain: list[int], parts: list[Factor]) -> Factor:
    """The product of factors, summed over one site or over those of a chain.

    Args:
        chain: The sites, in order.
        parts: All factors of these, each of one or of two beside each other.
    """
    sites, scale, every = _common(parts)
    names = tuple(name for name in every if name not in chain)
    if len(chain) == 1:
        log_prob = _aligned(parts, (*names, *chain)).logsumexp(-1)
        return Factor(log_prob, names, sites, scale)
    position = {site: step for step, site in enumerate(chain)}
    states = next(p.log_prob.shape[p.names.index(chain[0])] for p in parts if chain[0] in p.names)
    blank = Factor(parts[0].log_prob.new_zeros(states), (chain[0],), frozenset())
    single: list[list[Factor]] = [[replace(blank, names=(site,))] for site in chain]
    pairs: list[list[Factor]] = [[] for _ in chain[1:]]
    for part in parts:
        steps = [position[name] for name in part.names if name in position]
        (single if len(steps) == 1 else pairs)[min(steps)].append(part)

    def stacked(lists: list[list[Factor]], width: int) -> Tensor:
        lists = [[_once(factor) for factor in each] for each in lists]
        ends = (chain[step : step + width] for step in range(len(lists)))
        found = [_aligned(each, (*names, *own)) for each, own in zip(lists, ends, strict=True)]
        return torch.stack(torch.broadcast_tensors(*found))

    sizes = {n: k for part in parts for n, k in zip(part.names, part.log_prob.shape, strict=True)}
    total = log_total(stacked(single, 1), stacked(pairs, 2))
    return Factor(total.expand([sizes[name] for name in names]), names, sites, scale)


def _once(factor: Factor) -> Factor:
    """A factor with one of the numbers that a plate repeats, for all."""
    dims = [dim for dim, name in enumerate(factor.names) if isinstance(name, str)]
    return replace(factor, log_prob=_unrepeated(factor.log_prob, dims))


def _within(
    factor: Factor,
    index: int,
    plates_of: Mapping[int, frozenset[str]],
    remaining: Collection[int],
) -> Factor:
    """A factor with the product taken over the plates that a site to be summed over is not in.

    Raises:
        ModelError: If another site to be summed over is in one of these.
    """
    extra = {name for name in factor.names if isinstance(name, str)} - plates_of[index]
    if any(name in remaining and extra & plates_of[name] for name in factor.names):
        raise ModelError(
            f"site '{min(factor.sites)}' depends on discrete sites in crossed plates "
            f"({', '.join(sorted(extra | plates_of[index]))}), which cannot be summed "
            "over; sample them in a hand-written guide."
        )
    return factor.summed_over(extra)


@dataclass(frozen=True)
class Score:
    """What one run of a model at given values gives.

    Attributes:
        log_joint: The log density of the observed and the given sites, discrete ones summed out.
        log_likelihood: For each observed site, the log density of each of its events given the
            latent values, its row's discrete sites summed out.
        deterministics: The values of the deterministic sites.
        log_prior: For each continuous latent site, its log density given the sites that it depends
            on, unless that is a mixture over discrete ones.
    """

    log_joint: Tensor
    log_likelihood: dict[str, Tensor]
    deterministics: dict[str, Tensor]
    log_prior: dict[str, Tensor]


def _run(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
) -> poutine.Trace:
    enumerated = any(name not in values for name in space.discrete)
    conditioned = poutine.condition(model, data=dict(values))
    if enumerated and space.dependence is not None:
        conditioned = _Enumerate(space)(conditioned)
    elif enumerated:
        conditioned = config_enumerate(conditioned, "parallel")
        conditioned = _AsPyro(first_available_dim=-1 - space.max_plate_nesting)(conditioned)
    trace = poutine.trace(conditioned).get_trace(**arguments)
    for _, node in sample_sites(trace):
        if "_enumerate_dim" in node["infer"]:
            node["unscaled_log_prob"] = of_values = _of_values(node["fn"], node["value"])
            node["log_prob"] = scale_and_mask(of_values, node["scale"], node["mask"])
    trace.compute_log_prob()
    return trace


def _of_values(fn: Any, values: Tensor) -> Tensor:
    """The log probability of an enumerated site's values.

    Where a plate repeats its parameters, those are looked at once, and what is found is repeated.
    """
    name = next((name for name in ("probs", "logits") if name in vars(fn)), "")
    if type(fn) not in (dist.Categorical, dist.Bernoulli) or not name:
        return fn.log_prob(values)
    once, parameter = copy(fn), vars(fn)[name]
    for lazy in ("probs", "logits"):
        vars(once).pop(lazy, None)
    batch = len(fn.batch_shape)
    narrow = _unrepeated(parameter, range(batch))
    vars(once).update({name: narrow, "_param": narrow, "_batch_shape": narrow.shape[:batch]})
    if "_pyro_categorical_support" in vars(values):
        vars(values).update(_pyro_categorical_support=id(once))
    found = once.log_prob(values)
    return found.expand(torch.broadcast_shapes(found.shape, fn.batch_shape))


def _unrepeated(tensor: Tensor, dims: Iterable[int]) -> Tensor:
    """A tensor with one of the numbers that are repeated along dims, in the place of all.

    It is their mean: the gradient of taking the first would be a tensor of zeros as large as all.
    """
    for dim in dims:
        size = tensor.shape[dim]
        if size > 1 and tensor.stride(dim) == 0:
            tensor = tensor.sum(dim, keepdim=True) / size
    return tensor


def _factor(name: str, node: Any, space: LatentSpace, weighted: bool) -> Factor:
    """A site's log probability, with names of its dims.

    As in Pyro's `TraceEnum_ELBO`, what depends on a site that is summed over is masked inside the
    sum, and scaled outside of it. The site itself is not masked: where all that depends on it is,
    its probabilities add up to one.

    Args:
        name: Of the site.
        node: Of the site, in a trace.
        space: The model's latent space.
        weighted: Whether scales count.
    """
    if "_enumerate_dim" in node["infer"]:
        tensor, names = _named(name, node, node["unscaled_log_prob"], space)
        summed = True
    else:
        tensor, names = _named(name, node, node["log_prob"], space)
        summed = any(not isinstance(each, str) for each in names)
        if summed:
            masked = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
            tensor, names = _named(name, node, masked, space)
    factor = Factor(tensor, names, frozenset([name]))
    plain = not isinstance(node["scale"], Tensor) and node["scale"] == 1
    if not summed or plain or not weighted:
        return factor
    scale, of = _named(name, node, torch.as_tensor(node["scale"], dtype=tensor.dtype), space)
    return replace(factor, scale=Factor(scale, of, factor.sites))


def _named(
    name: str, node: Any, tensor: Tensor, space: LatentSpace
) -> tuple[Tensor, tuple[Any, ...]]:
    """A tensor of a site's batch with the dims of plates and enumerated sites alone, and these.

    The elements of a latent vector in no plate are added up.
    """
    ids = node["infer"].get("_dim_to_id", {})
    plates = {frame.dim: frame.name for frame in node["cond_indep_stack"] if frame.vectorized}
    names, shape, loose = [], [], []
    for dim in range(-tensor.dim(), 0):
        enumerated = dim < -space.max_plate_nesting
        if enumerated and tensor.shape[dim] > 1 and dim in ids:
            names.append(ids[dim])
        elif dim in plates and not enumerated:
            names.append(plates[dim])
        elif tensor.shape[dim] > 1:
            loose.append(dim)
            continue
        else:
            continue
        shape.append(tensor.shape[dim])
    if loose and (
        name in space.observed
        or loose[0] < -space.max_plate_nesting
        or any(not isinstance(each, str) for each in names)
        or "_enumerate_dim" in node["infer"]
    ):
        raise ModelError(
            f"site '{name}': dim {loose[0]} of its log probability belongs to no plate; "
            "declare it with .to_event(), or put the site in a plate."
        )
    return (tensor.sum(loose) if loose else tensor).reshape(shape), tuple(names)


def score(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
    tilt: Mapping[str, Tensor] | None = None,
) -> Score:
    """Runs a model at given values of its latent sites.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        values: Of every continuous latent site, and of the discrete ones that are not to be
            summed out.
        space: The model's latent space.
        tilt: For enumerated sites, added to the log probability of their values, each
            (support, plates...); its gradient is their marginals, because the log density is then
            the one without the scales of what is summed over.

    Raises:
        ModelError: If a dim of a log probability belongs to no plate, or sites that are summed over
            together have different scales.
    """
    trace = _run(model, arguments, values, space)
    ids = {
        name: node["infer"]["_dim_to_id"][node["infer"]["_enumerate_dim"]]
        for name, node in sample_sites(trace)
        if "_enumerate_dim" in node["infer"]
    }
    deterministics = {
        name: node["value"]
        for name, node in sample_sites(trace)
        if node["infer"].get("_deterministic") and name not in values
    }
    scored = [(name, node) for name, node in sample_sites(trace) if name not in deterministics]
    likelihood = {name: node["log_prob"] for name, node in scored if name in space.observed}
    latent = {site.name for site in space.sites}
    prior = {
        name: node["log_prob"]
        for name, node in scored
        if name in latent and node["log_prob"].dim() <= space.max_plate_nesting
    }
    if not ids:
        total = sum(node["log_prob"].sum() for _, node in scored)
        return Score(total, likelihood, deterministics, prior)
    factors = [_factor(name, node, space, weighted=tilt is None) for name, node in scored]
    for name, tensor in (tilt or {}).items():
        names = (ids[name], *(plate.name for plate in space.discrete[name]))
        factors.append(Factor(tensor, names, frozenset([name])))
    present = {name for factor in factors for name in factor.names}
    plates_of = {
        ids[name]: frozenset(plate.name for plate in space.discrete[name])
        for name in ids
        if ids[name] in present  # a site with a single value has no dim to sum over
    }
    remaining = eliminate(factors, plates_of)
    log_joint = sum((factor.scaled().log_prob.sum() for factor in remaining), torch.zeros(()))
    joined = {name: factor for factor in remaining for name in factor.sites}
    observed = set(space.observed)
    for name in likelihood:
        joint = joined[name]
        if joint.sites & observed == {name}:
            likelihood[name] = _of_observed(name, joint, factors, plates_of)
    return Score(log_joint, likelihood, deterministics, prior)


def log_prior(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
) -> dict[str, Tensor]:
    """The log density of each given latent site, the discrete ones that are not given summed out.

    Sites that depend on the same summed-out ones have one density together, under their names
    joined by commas.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        values: As for `score`.
        space: The model's latent space.
    """
    nodes = dict(sample_sites(_run(model, arguments, values, space)))
    latent = {site.name for site in space.sites} | set(space.discrete)
    summed = {n: nodes[n]["infer"] for n in nodes if "_enumerate_dim" in nodes[n]["infer"]}
    if not summed:
        return {name: nodes[name]["log_prob"].sum() for name in nodes if name in latent}
    factors = [_factor(name, nodes[name], space, True) for name in nodes if name in latent]
    present = {name for factor in factors for name in factor.names}
    plates_of = {
        infer["_dim_to_id"][infer["_enumerate_dim"]]: frozenset(
            plate.name for plate in space.discrete[name]
        )
        for name, infer in summed.items()
    }
    found: dict[str, Tensor] = {}
    for factor in eliminate(factors, {i: p for i, p in plates_of.items() if i in present}):
        given = factor.sites & set(values)
        if given:  # the others sum to one
            name = ", ".join(sorted(given))
            found[name] = found.get(name, torch.zeros(())) + factor.scaled().log_prob.sum()
    return found


def _of_observed(
    name: str,
    joint: Factor,
    factors: list[Factor],
    plates_of: Mapping[Any, frozenset[str]],
) -> Tensor:
    """The log likelihood of an observed site, the latents that it shares a factor with summed out.

    What is left without the observation is the density of the latents themselves.
    """
    near = [factor for factor in factors if factor.sites <= joint.sites]
    others = [factor for factor in near if name not in factor.sites]
    kept = {index for factor in others for index in factor.names} & set(plates_of)
    latents = eliminate(others, {index: plates_of[index] for index in kept})
    prior = [factor for factor in latents if factor.sites < joint.sites]
    return replace(joint, log_prob=joint.log_prob - _aligned(prior, joint.names)).scaled().log_prob


@dataclass(frozen=True)
class Conditional:
    """A discrete site given others, as the posterior has it.

    Attributes:
        values: Those that it may have, (support, event...).
        given: The other sites.
        plates: The names of plates that the probabilities differ in.
        log_prob: Of each value, up to a number that is the same for all: (plates..., a dim for each
            of the others, support).
    """

    values: Tensor
    given: tuple[str, ...]
    plates: tuple[str, ...]
    log_prob: Tensor


def conditionals(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
) -> dict[str, Conditional]:
    """Each discrete site given those before it in the result, all others summed over.

    Their product is the joint posterior: drawing one after the other filters a hidden Markov model
    in one direction and samples it in the other (Frühwirth-Schnatter, 1994, "Data augmentation and
    dynamic linear models").

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        values: Of the sites that are known.
        space: The model's latent space.
    """
    nodes = dict(sample_sites(_run(model, arguments, values, space)))
    known = [name for name, node in nodes.items() if node["infer"].get("_deterministic")]
    factors = [_factor(n, node, space, False) for n, node in nodes.items() if n not in known]
    infer = {n: node["infer"] for n, node in nodes.items() if "_enumerate_dim" in node["infer"]}
    sites = {each["_dim_to_id"][each["_enumerate_dim"]]: name for name, each in infer.items()}
    present = {name for factor in factors for name in factor.names}
    plates_of = {
        index: frozenset(plate.name for plate in space.discrete[name])
        for index, name in sites.items()
        if index in present
    }
    joined: dict[int, Factor] = {}
    eliminate(factors, plates_of, joined)
    found = {}
    for index in sites.keys() - joined.keys():  # sites with a single value
        joined[index] = Factor(torch.zeros(1), (index,), frozenset())
    for index, factor in reversed(joined.items()):
        plates = tuple(name for name in factor.names if isinstance(name, str))
        given = tuple(name for name in factor.names[:-1] if name not in plates)
        order = [factor.names.index(name) for name in (*plates, *given, index)]
        fn = nodes[sites[index]]["fn"]
        support = fn.enumerate_support(expand=False)
        found[sites[index]] = Conditional(
            support.reshape(len(support), *fn.event_shape),
            tuple(sites[each] for each in given),
            plates,
            factor.log_prob.permute(order),
        )
    return found


def assignment_probabilities(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
) -> dict[str, Tensor]:
    """The posterior probabilities of each discrete site's values, given the others' values.

    They are the derivative of the log density with respect to the site's log probability.

    Returns:
        For each discrete site, (support, plates...).
    """
    trace = _run(model, arguments, values, space)
    tilts = {}
    for name, node in sample_sites(trace):
        if "_enumerate_dim" in node["infer"]:
            support = node["fn"].enumerate_support(expand=False).shape[0]
            frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
            tilts[name] = torch.zeros(support, *(frame.size for frame in frames))

    def log_joint(tilt: dict[str, Tensor]) -> Tensor:
        return score(model, arguments, values, space, tilt).log_joint

    return torch.func.grad(log_joint)(tilts)


def map_draws(
    function: Callable[[dict[str, Tensor]], Any],
    draws: Mapping[str, Tensor],
    chunk: int = 100,
    count: int | None = None,
    least: int | None = None,
) -> Any:
    """`function` of each draw: batched by `vmap` where its code allows, one by one elsewhere.

    Args:
        function: Of a dict of tensors without the draws' dim, to a tensor, or to tuples and dicts
            of tensors.
        draws: Each (draws, ...); empty if the function needs none, such as one that draws itself.
        chunk: Draws in one batched call, for the memory's sake.
        count: How many draws; needed only where `draws` is empty.
        least: How many draws there are at least where the time is over; by default all.

    Returns:
        The same as `function`, with a leading dim for the draws.
    """
    count = len(next(iter(draws.values()))) if count is None else count
    state = torch.get_rng_state()
    try:
        if least is None or count <= chunk:
            return vmapped(function, draws, chunk, count)
        parts = []
        for begin in range(0, count, chunk):
            if begin >= least and budget.over():
                break
            end = min(begin + chunk, count)
            some = {name: value[begin:end] for name, value in draws.items()}
            parts.append(vmapped(function, some, chunk, end - begin))
        return each_tensor(lambda *each: torch.cat(each), *parts)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        torch.set_rng_state(state)
    results = []
    for i in range(count):
        if least is not None and i >= least and budget.over():
            break
        results.append(function({name: value[i] for name, value in draws.items()}))
    return each_tensor(lambda *each: torch.stack(each), *results)


def vmapped(
    function: Callable[[dict[str, Tensor]], Any],
    draws: Mapping[str, Tensor],
    chunk: int,
    count: int,
) -> Any:
    """The same by `vmap` alone, which raises what it raises where the code does not allow it.

    Args:
        function: See `map_draws`.
        draws: See `map_draws`.
        chunk: See `map_draws`.
        count: How many draws.
    """

    def of_one(values: dict[str, Tensor], _: Tensor) -> Any:
        return function(values)

    numbers = torch.zeros(count)  # vmap needs something to batch
    with warnings.catch_warnings(), Batchable():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        warnings.filterwarnings("ignore", "An output with one or more", UserWarning)
        batched = vmap(of_one, randomness="different", chunk_size=chunk)
        return batched(dict(draws), numbers)


def each_tensor(function: Callable[..., Tensor], *trees: Any) -> Any:
    """`function` of the tensors that have the same place in tuples and dicts of the same form.

    Example:
        >>> each_tensor(torch.add, ({"a": torch.ones(())}, torch.zeros(())), ({"a": 2}, 3))
        ({'a': tensor(3.)}, tensor(3.))
    """
    first = trees[0]
    if isinstance(first, dict):
        return {name: each_tensor(function, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, tuple):
        return tuple(each_tensor(function, *parts) for parts in zip(*trees, strict=True))
    return function(*trees)
