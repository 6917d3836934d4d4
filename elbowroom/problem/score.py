"""A model's log density at given values of its latent sites, discrete sites summed out.

`score` runs the model once at one point; `elbowroom.problem.mapping` does so for many. The sums
over discrete sites are done by `elbowroom.problem.elimination` on the traced log probabilities.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
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

from elbowroom.errors import ModelError
from elbowroom.guides.space import LatentSpace, sample_sites
from elbowroom.problem.elimination import Factor, aligned, eliminate, unrepeated


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


def _trace(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
) -> poutine.Trace:
    """A run of a model at given values, without its densities."""
    enumerated = any(name not in values for name in space.discrete)
    conditioned = poutine.condition(model, data=dict(values))
    if enumerated and space.dependence is not None:
        conditioned = _Enumerate(space)(conditioned)
    elif enumerated:
        conditioned = config_enumerate(conditioned, "parallel")
        conditioned = _AsPyro(first_available_dim=-1 - space.max_plate_nesting)(conditioned)
    return poutine.trace(conditioned).get_trace(**arguments)


def _run(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
) -> poutine.Trace:
    trace = _trace(model, arguments, values, space)
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
    narrow = unrepeated(parameter, range(batch))
    vars(once).update({name: narrow, "_param": narrow, "_batch_shape": narrow.shape[:batch]})
    if "_pyro_categorical_support" in vars(values):
        vars(values).update(_pyro_categorical_support=id(once))
    found = once.log_prob(values)
    return found.expand(torch.broadcast_shapes(found.shape, fn.batch_shape))


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


def _deterministic(trace: poutine.Trace, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: node["value"]
        for name, node in sample_sites(trace)
        if node["infer"].get("_deterministic") and name not in values
    }


def deterministics(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
) -> dict[str, Tensor]:
    """The values of the deterministic sites alone; see `score`, whose densities take longer."""
    return _deterministic(_trace(model, arguments, values, space), values)


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
    deterministics = _deterministic(trace, values)
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
    # A latent that only the observation joins to the others is in more plates than all of them.
    prior = [
        factor.summed_over({*factor.names} - {*joint.names})
        for factor in latents
        if factor.sites < joint.sites
    ]
    return replace(joint, log_prob=joint.log_prob - aligned(prior, joint.names)).scaled().log_prob


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
