"""A model's log density at given values of its latent sites, discrete sites summed out.

`score` runs the model once at one point; `map_draws` does so for many, in one batched call where
the model allows it. The sums over discrete sites are done by variable elimination on the traced
log probabilities, plates included (Obermeyer et al., 2019, "Tensor variable elimination for plated
factor graphs").
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate
from pyro.ops import special
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from elbowroom import budget
from elbowroom.errors import ModelError
from elbowroom.guides.space import LatentSpace, sample_sites


class _Enumerate(EnumMessenger):
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


def _joined(factors: list[Factor]) -> Factor:
    names = tuple(dict.fromkeys(name for factor in factors for name in factor.names))
    sites = frozenset().union(*(factor.sites for factor in factors))
    scales = [factor.scale for factor in factors]
    if any(not _same(scales[0], scale) for scale in scales[1:]):
        raise ModelError(
            f"sites {', '.join(map(repr, sorted(sites)[:4]))} are summed over together, but "
            "poutine.scale multiplies them by different numbers; put one poutine.scale around all "
            "of them."
        )
    return Factor(_aligned(factors, names), names, sites, scales[0])


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


def eliminate(factors: list[Factor], plates_of: Mapping[int, frozenset[str]]) -> list[Factor]:
    """Sums enumerated sites out, the most deeply plated first.

    Args:
        factors: Of the model.
        plates_of: For the id of each enumerated site, the plates it lies in.

    Returns:
        Factors whose dims are all plates.

    Raises:
        ModelError: If discrete sites lie in crossed plates, where no order of summing is right.
    """
    remaining = set(plates_of)
    while remaining:
        # The deepest first; of those, the one whose joined factor has the fewest dims.
        joined_names = {
            index: {n for factor in factors if index in factor.names for n in factor.names}
            for index in remaining
        }
        index = min(remaining, key=lambda i: (-len(plates_of[i]), len(joined_names[i])))
        touching = []
        for factor in factors:
            if index in factor.names:
                extra = {n for n in factor.names if isinstance(n, str)} - plates_of[index]
                others = {n for n in factor.names if n in remaining and n != index}
                if any(extra & plates_of[other] for other in others):
                    raise ModelError(
                        f"site '{min(factor.sites)}' depends on discrete sites in crossed plates "
                        f"({', '.join(sorted(extra | plates_of[index]))}), which cannot be summed "
                        "over; sample them in a hand-written guide."
                    )
                touching.append(factor.summed_over(extra))
        rest = [factor for factor in factors if index not in factor.names]
        joined = _joined(touching)
        dim = joined.names.index(index)
        names = tuple(name for name in joined.names if name != index)
        factors = [*rest, replace(joined, log_prob=joined.log_prob.logsumexp(dim), names=names)]
        remaining.discard(index)
    return factors


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
    if enumerated:
        conditioned = config_enumerate(conditioned, "parallel")
        conditioned = _Enumerate(first_available_dim=-1 - space.max_plate_nesting)(conditioned)
    trace = poutine.trace(conditioned).get_trace(**arguments)
    trace.compute_log_prob()
    return trace


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
    log_joint = torch.stack([factor.scaled().log_prob.sum() for factor in remaining]).sum()
    for name in likelihood:
        joint = next(factor for factor in remaining if name in factor.sites)
        if joint.sites & set(space.observed) == {name}:
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
    others = [factor for factor in factors if name not in factor.sites]
    kept = {index for factor in others for index in factor.names} & set(plates_of)
    latents = eliminate(others, {index: plates_of[index] for index in kept})
    prior = [factor for factor in latents if factor.sites < joint.sites]
    return replace(joint, log_prob=joint.log_prob - _aligned(prior, joint.names)).scaled().log_prob


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


def supports(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: Mapping[str, Tensor],
    space: LatentSpace,
) -> dict[str, Tensor]:
    """The values that each discrete site may have given the others', (support, event...)."""
    found = {}
    for name, node in sample_sites(_run(model, arguments, values, space)):
        if "_enumerate_dim" in node["infer"]:
            support, fn = node["fn"].enumerate_support(expand=False), node["fn"]
            found[name] = support.reshape(len(support), *fn.event_shape)
    return found


def _picked(index: Any) -> tuple[Any, ...] | None:
    """An index that begins with whole numbers in scalar tensors, these as vectors of length one."""
    parts = index if isinstance(index, tuple) else (index,)
    scalars = [
        isinstance(part, Tensor) and part.dim() == 0 and part.dtype in _WHOLE for part in parts
    ]
    first = scalars.index(False) if False in scalars else len(scalars)
    if first == 0 or any(isinstance(part, (Tensor, list)) for part in parts[first:]):
        return None
    return (*(part.reshape(1) for part in parts[:first]), *parts[first:])


_WHOLE = (torch.int64, torch.int32)


def _safe_log(x: Tensor) -> Tensor:
    """Pyro's `safe_log`, whose gradient at zero is finite: of operations that can be batched."""
    least = torch.finfo(x.dtype).eps
    near = x.detach().log() + (x - x.detach()) / least
    return torch.where(x > least, torch.where(x > least, x, 1.0).log(), near)


class Batchable(TorchFunctionMode):
    """Says in another way what `vmap` refuses.

    Random numbers are made anew where torch fills a tensor in place, a boolean mask is filled where
    it is indexed, a scalar tensor indexes as a vector of one, what a normalisation layer in
    training keeps of a batch is not updated. Pyro's `safe_log` and clamping in place, which its
    hidden Markov models are made of, are written out.

    Args:
        batched: A scalar zero of the batch. What a model makes to be filled in place is then made
            in the batch as well.
    """

    _normalising = frozenset({torch.batch_norm, torch.instance_norm})
    _blank = frozenset({torch.zeros, torch.ones, torch.empty, torch.full})
    _looped: ClassVar[dict[Any, Callable[..., Tensor]]] = {
        Tensor.clamp_: torch.clamp,
        Tensor.clamp_min_: torch.clamp_min,
        Tensor.clamp_max_: torch.clamp_max,
    }
    """In place, of which `vmap` makes a loop over the batch; and the same out of place."""

    def __init__(self, batched: Tensor | None = None) -> None:
        super().__init__()
        self.batched = batched
        self._wrote = False

    def __enter__(self) -> Any:
        # A subclass of autograd.Function, which no mode sees. Sessions take turns.
        self._wrote = "apply" not in vars(special._SafeLog)
        if self._wrote:
            special._SafeLog.apply = staticmethod(_safe_log)  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._wrote:
            del special._SafeLog.apply
        super().__exit__(*error)

    _made: ClassVar[dict[Any, Callable[..., Tensor]]] = {
        Tensor.normal_: lambda like, mean=0.0, std=1.0, generator=None: (
            mean + std * torch.randn_like(like)
        ),
        Tensor.uniform_: lambda like, low=0.0, high=1.0, generator=None: (
            low + (high - low) * torch.rand_like(like)
        ),
        Tensor.exponential_: lambda like, lambd=1.0, generator=None: (
            -torch.log1p(-torch.rand_like(like)) / lambd
        ),
        Tensor.cauchy_: lambda like, median=0.0, sigma=1.0, generator=None: (
            median + sigma * torch.tan(torch.pi * (torch.rand_like(like) - 0.5))
        ),
    }

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__setitem__:
            tensor, index, value = args
            masked = isinstance(index, Tensor) and index.dtype == torch.bool
            if masked and index.shape == tensor.shape and isinstance(value, (int, float)):
                tensor.masked_fill_(index, value)
                return None
        if function is Tensor.__getitem__ and (index := _picked(args[1])) is not None:
            return function(args[0], index).squeeze(0)
        if function in self._looped:
            return args[0].copy_(self._looped[function](*args, **(kwargs or {})))
        if function in self._normalising and args[5]:
            args = (*args[:3], None, None, *args[5:])
        if function is Tensor.add_ and args[0].dtype is torch.int64 and args[1:] == (1,):
            return args[0]  # such a layer's count of its batches
        made = self._made.get(function, function)(*args, **(kwargs or {}))
        if self.batched is not None and function in self._blank and made.is_floating_point():
            return made + self.batched.to(made.dtype)
        return made


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
        least: Of draws one by one, how many there are at least where the time is over; by default
            all.

    Returns:
        The same as `function`, with a leading dim for the draws.
    """
    count = len(next(iter(draws.values()))) if count is None else count
    state = torch.get_rng_state()
    try:
        return vmapped(function, draws, chunk, count)
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
