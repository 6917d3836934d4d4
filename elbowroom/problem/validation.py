"""Whether a model is valid on its data: shapes, observed values and arguments of distributions.

Pyro and torch check these as a model runs, and are told not to while a log density is recorded. So
the plain model is run a few times beforehand with their validation on, at random values of its
latent sites; what they would refuse is refused here, with the site, the rows and the edit. What
they let pass is the number of terms: a value that is broadcast against its distribution, or a mask
against the site's batch, counts more than once.

A shape is wrong at any values of the latents. An argument or an observed value may be invalid at
some of them only: that is an error where it is so at each of many, and a warning elsewhere.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.util import check_site_shape
from torch import Tensor
from torch.distributions import Distribution, constraints

from elbowroom.errors import DataError, ElbowroomError, ModelError, users_code
from elbowroom.guides.space import plates_of, sample_sites, takes_batches, trace_model
from elbowroom.problem.isolation import reseed
from elbowroom.problem.wording import ARGUMENT_EDITS, LISTED, described, rows_of, shown
from elbowroom.sizes import SIZES, numbers_in

WIDTHS = (0.5, 2.0, None)
"""Of the random unconstrained values that a model is run at; None for draws from its priors."""


@dataclass(frozen=True)
class Validation:
    """How often a model is run to check it."""

    most_runs: int = 60
    """Runs at ever wider values before what is invalid in each of them is an error."""
    draws: int = 5
    """Posterior draws at which a fitted model is run again."""


VALIDATION = Validation()


WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
"""Distributions that change another one's shape or mask alone."""

ModelFunction = Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a site: `place` is the same at whatever values of the latents.

    Attributes:
        place: The site and the part of it.
        text: What is said of it.
        kind: Of the error that it is; None for what may be meant so, and is a warning.
        warns: Whether it is worth a warning where it is not so at all values.
    """

    place: tuple[str, str]
    text: str
    kind: type[ElbowroomError] | None = ModelError
    warns: bool = True


@dataclass(frozen=True)
class _Run:
    """One run of a model: what is wrong there, or why it cannot be run there at all."""

    faults: tuple[Fault, ...] = ()
    failure: ElbowroomError | None = None

    def has(self, place: tuple[str, str]) -> bool:
        """Whether something is wrong with it."""
        return any(fault.place == place for fault in self.faults)


def validate(model: ModelFunction, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    r"""Makes the checks of Pyro's and torch's validation; to be called in an isolated session.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.

    Returns:
        Warnings: what is invalid at some values of the latents, each with the edit.

    Raises:
        ModelError: If a shape is wrong, or an argument of a distribution at all values tried.
        DataError: If an observed value has no density at all values tried; rows are named.

    Example:
        >>> def model(y):
        ...     share = pyro.sample("share", dist.Beta(1.0, 1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Bernoulli(share), obs=y)
        >>> validate(model, {"y": torch.tensor([0.0, 1.0])})
        ()
        >>> try:
        ...     validate(model, {"y": torch.tensor([1.0, 2.0])})
        ... except DataError as error:
        ...     print(str(error).replace(": ", ":\n"))
        site 'y':
        1 of 2 values is not in the support of its Bernoulli (0 or 1):
        row 2 (counted from 1) has 2. Its values begin at 1:
        code them from 0, obs=y - 1.
    """
    numbers = numbers_in(arguments)
    widths = WIDTHS[:1] if numbers > SIZES.arguments else WIDTHS
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of runs that are made for their errors alone
        runs = [_run(model, arguments, width, seed) for seed, width in enumerate(widths)]
        failure = runs[0].failure
        if failure is not None and all(run.failure for run in runs):
            raise failure
        if takes_batches(model) and "batch_size" not in arguments:
            _minibatch(model, arguments)
        valid = [run for run in runs if run.failure is None]
        always = _always(model, arguments, valid, len(widths))
    for fault in always[:1]:
        assert fault.kind is not None
        raise fault.kind(fault.text)
    found = {fault.place: fault for run in reversed(valid) for fault in run.faults if fault.warns}
    somewhere = (
        " This happened at some random values of the latents; there the density is not defined."
    )
    return tuple(fault.text + (somewhere if fault.kind else "") for fault in found.values())


def _always(
    model: ModelFunction, arguments: Mapping[str, Any], valid: Sequence[_Run], tried: int
) -> list[Fault]:
    """The errors that every run makes: of the runs so far, and of more, at ever wider values."""
    always = [
        fault for fault in valid[0].faults
        if fault.kind is not None and all(run.has(fault.place) for run in valid)
    ]  # fmt: skip
    for extra in range(tried, VALIDATION.most_runs):
        if not always:
            break
        # Wider and wider, from its priors in between.
        run = _run(model, arguments, None if extra % 3 == 0 else 0.1 * extra, extra)
        if run.failure is None:
            always = [fault for fault in always if run.has(fault.place)]
    return always


def real_observations(model: ModelFunction, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arguments that are observed and are whole numbers or truth values, as real numbers.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.

    Example:
        >>> def model(y):
        ...     pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), obs=y)
        >>> real_observations(model, {"y": torch.tensor(1)})
        {'y': tensor(1.)}
    """
    with torch.random.fork_rng(devices=[]), users_code("the model cannot be run", ModelError):
        trace = poutine.trace(model).get_trace(**arguments)
    observed = {id(node["value"]) for _, node in sample_sites(trace) if node["is_observed"]}
    return {
        name: value.to(torch.get_default_dtype())
        for name, value in arguments.items()
        if isinstance(value, Tensor) and id(value) in observed and not value.is_floating_point()
    }


def has_gradient(model: ModelFunction, arguments: Mapping[str, Any]) -> bool:
    """Whether a model's log density and its gradient are finite at a random point.

    Args:
        model: The Pyro model, to be called in an isolated session.
        arguments: Its keyword arguments.
    """
    try:
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            values = {
                name: node["value"].detach().requires_grad_()
                for name, node in sample_sites(trace_model(model, arguments))
                if not node["is_observed"] and node["value"].is_floating_point()
            }
            conditioned = poutine.condition(model, data=values)
            total = torch.as_tensor(
                poutine.trace(conditioned).get_trace(**arguments).log_prob_sum()
            )
            inputs = [*values.values(), *dict(pyro.get_param_store().named_parameters()).values()]
            found = (
                torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else ()
            )
    except (ElbowroomError, RuntimeError, ValueError):
        return False
    return bool(total.isfinite()) and all(g is None or bool(g.isfinite().all()) for g in found)


def check_shapes(model: ModelFunction, arguments: Mapping[str, Any]) -> None:
    """The shapes alone, at one run; to be called in an isolated session.

    Raises:
        ModelError: If one is wrong, or the model cannot be run.
    """
    with torch.random.fork_rng(devices=[]):
        _shapes(_trace(model, arguments, WIDTHS[0]), arguments)


def invalid_draws(
    model: ModelFunction, arguments: Mapping[str, Any], sites: Mapping[str, Tensor]
) -> str | None:
    """What is invalid at some posterior draws, as a sentence; to be called in a session.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        sites: Draws of its latent sites, each (draws, ...).
    """
    count = len(next(iter(sites.values()), []))
    numbers = numbers_in(arguments)
    chosen = torch.linspace(
        0, count - 1, min(count, 1 if numbers > SIZES.arguments else VALIDATION.draws)
    ).long()
    faults = []
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, index in enumerate(chosen.tolist()):
            values = {name: draws[index] for name, draws in sites.items()}
            conditioned = poutine.condition(model, data=values)
            found = _run(conditioned, arguments, None, seed, latents=set(values)).faults
            faults += [fault for fault in found if fault.warns and fault.kind][:1]
    if not faults:
        return None
    return f"At {len(faults)} of {len(chosen)} posterior draws the model is not valid: " + (
        faults[0].text
    )


def _run(
    model: ModelFunction,
    arguments: Mapping[str, Any],
    width: float | None,
    seed: int,
    latents: set[str] | None = None,
) -> _Run:
    """Runs a model with validation on.

    Raises:
        ModelError: If a shape is wrong.
    """
    reseed(seed)
    try:
        with pyro.validation_enabled(True):
            trace = _trace(model, arguments, width)
    except ElbowroomError as refused:
        # Whether without validation, and which site it was then.
        reseed(seed)
        try:
            with pyro.validation_enabled(False):
                trace = _trace(model, arguments, width)
                _shapes(trace, arguments, latents)
                wrong = tuple(_arguments(trace))
        except ElbowroomError as failure:
            return _Run(failure=_plainer(failure, arguments))
        text = str(refused).split(", but found invalid values")[0]
        edit = "correct this value; if it is right, give the distribution validate_args=False."
        return _Run(wrong or (Fault(("", "run"), f"{text}: {edit}"),))
    loose = _shapes(trace, arguments, latents)
    with pyro.validation_enabled(True):
        observed = [
            (name, node) for name, node in sample_sites(trace)
            if node["is_observed"] and not node["infer"].get("_deterministic")
            and name not in (latents or ()) and not isinstance(node["fn"], dist.Unit)
        ]  # fmt: skip
        faults: list[Fault] = []
        for name, node in observed:
            try:
                with users_code(f"site '{name}': its log density cannot be evaluated", ModelError):
                    faults += list(_values(name, node))
            except ElbowroomError as failure:
                return _Run(failure=_plainer(failure, arguments))
        return _Run((*loose, *faults, *_seen_twice(observed)))


def _trace(model: ModelFunction, arguments: Mapping[str, Any], width: float | None) -> Any:
    if width is not None:
        return trace_model(model, arguments, width)
    with users_code("the model cannot be run", ModelError):
        return poutine.trace(model).get_trace(**arguments)


def _plainer(failure: ElbowroomError, arguments: Mapping[str, Any]) -> ElbowroomError:
    """What a user's model raised, with the edit where the cause is a kind of number."""
    text = str(failure)
    whole = {
        name: f"'{name}' is {str(value.dtype).removeprefix('torch.')}"
        for name, value in arguments.items()
        if isinstance(value, Tensor) and not value.is_floating_point()
    }
    ranges = [
        f"'{name}' goes from {int(value.min())} to {int(value.max())}"
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.numel() and value.dtype == torch.int64
    ]
    if ranges and "out of" in text and "index" in text.lower():
        text = (
            f"{text}. Among the arguments, {', '.join(ranges)}: count groups from 0 without a gap, "
            "and give the model as many as there are."
        )
    elif "Shape mismatch inside plate" in text:
        text = f"{text}. {_shape_edit(arguments)}"
    elif whole and any(word in text for word in ("dtype", "can't be cast", "two bool tensors")):
        text = (
            f"{text} Among the arguments, {', '.join(whole.values())}: convert whole numbers where "
            f"real ones are needed, as in {next(iter(whole))}.double()."
        )
    return failure if text == str(failure) else ModelError(text)


def _minibatch(model: ModelFunction, arguments: Mapping[str, Any]) -> None:
    """The shapes of a minibatch.

    Raises:
        ModelError: If one is wrong.
    """
    try:
        with pyro.validation_enabled(False):
            _shapes(_trace(model, {**arguments, "batch_size": 1}, WIDTHS[0]), arguments)
    except ElbowroomError as error:
        raise ModelError(
            f"In a minibatch of one row: {str(error).split(' Give the value')[0]} Use the rows "
            "of the plate, as y[rows] in `with pyro.plate(..., subsample_size=batch_size) as "
            "rows`, or pyro.subsample(y, event_dim=0)."
        ) from error


# Shapes


def _shapes(
    trace: Any, arguments: Mapping[str, Any], latents: set[str] | None = None
) -> tuple[Fault, ...]:
    """Each site's log probability fits its plates, and has one term for each value.

    Args:
        trace: Of the model.
        arguments: Its keyword arguments.
        latents: Latent sites that were given values.

    Returns:
        Latent vectors whose elements are in no plate: all rows have all of them.

    Raises:
        ModelError: If not.
    """
    loose_latents = []
    sites = list(sample_sites(trace))
    nesting = max((-plate.dim for _, node in sites for plate in plates_of(node)), default=0)
    for name, node in sites:
        if node["infer"].get("_deterministic"):
            continue
        shape = _one_term_each(name, node, arguments)
        if isinstance(node["fn"], dist.Unit):
            _no_pairs(name, node, shape, arguments)
        try:
            # Of the log probability only the shape is read.
            check_site_shape({**node, "log_prob": torch.empty(shape, device="meta")}, nesting)
        except ValueError as error:
            plates = {plate.dim: plate for plate in plates_of(node)}
            loose = [
                dim for dim in range(-min(len(shape), nesting), 0)
                if dim not in plates and shape[dim] > 1
            ]  # fmt: skip
            edit = _shape_edit(arguments)
            if loose and (not node["is_observed"] or name in (latents or ())):
                edit = (
                    f"Dim {loose[0]} of the log probability is in no plate: make it part of the "
                    f"event by .to_event({-loose[0]}), or put the site into a pyro.plate of that "
                    "dim."
                )
                if not node["fn"].support.is_discrete and _fits(node, shape, loose, nesting):
                    text = f"site '{name}': {edit[0].lower()}{edit[1:]}"
                    loose_latents.append(Fault((name, "plate"), text, None))
                    continue
            inside = ", ".join(f"'{p.name}' ({p.size}, dim {p.dim})" for p in plates.values())
            first = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
            raise ModelError(
                f"site '{name}': its log probability has shape {list(shape)}, which does not "
                f"match its plates: {inside or 'it has none'}. {first}. {edit}"
            ) from error
    return tuple(loose_latents)


def _fits(node: Any, shape: torch.Size, loose: Sequence[int], nesting: int) -> bool:
    """Whether a site's log probability fits its plates, some of its dims aside."""
    rest = list(shape)
    for dim in loose:
        rest[dim] = 1
    try:
        check_site_shape({**node, "log_prob": torch.empty(rest, device="meta")}, nesting)
    except ValueError:
        return False
    return True


def _one_term_each(name: str, node: Any, arguments: Mapping[str, Any]) -> torch.Size:
    """The shape of a site's log probability, which has one term for each event of its value."""
    fn, value = node["fn"], node["value"]
    value = torch.as_tensor(value)
    events = value.dim() - fn.event_dim
    batch = value.shape[: max(events, 0)]
    edit = _shape_edit(arguments)
    for plate in plates_of(node):
        if plate.size in batch and plate.dim < -len(batch):
            there = batch.index(plate.size) - len(batch)
            edit = f"The plate '{plate.name}' has dim {plate.dim}, but its rows are in dim {there} "
            edit += f"of the value: write dim={there}."
    if isinstance(fn, dist.Unit):
        edit = "Give the factor one number for each row, or move it out of the plate."
    elif node["is_observed"]:
        edit += f" If the value is meant to count several times, write obs={name}.expand(...)."
    try:
        scored = torch.broadcast_shapes(batch, fn.batch_shape)
    except RuntimeError as error:
        raise ModelError(
            f"site '{name}': the value has batch shape {list(batch)} and its distribution "
            f"{list(fn.batch_shape)}, which do not match. {edit}"
        ) from error
    if events < 0 or value.shape[events:] != _event_shape(fn, value):
        raise ModelError(
            f"site '{name}': the value has shape {list(value.shape)}, but an event of its "
            f"distribution has shape {list(fn.event_shape)}. The value would be repeated, and "
            f"count more than once. {edit}"
        )
    if math.prod(scored) != math.prod(batch):
        raise ModelError(
            f"site '{name}': the value has batch shape {list(batch)} and its distribution "
            f"{list(fn.batch_shape)}, so each value would count {_times(scored, batch)} times. "
            f"{edit}"
        )
    return _widened(name, node, scored)


def _event_shape(fn: Any, value: Tensor) -> torch.Size:
    """The shape of an event of a distribution.

    A hidden Markov model whose steps are all alike takes as many of them as the value has.
    """
    own = fn
    while isinstance(own, WRAPPERS):
        own = own.base_dist
    alike = isinstance(own, HiddenMarkovModel) and own.duration is None
    if not alike and not (hasattr(own, "transition_logits") and own.event_shape[0] == 1):
        return fn.event_shape
    shape = list(fn.event_shape)
    shape[-own.event_dim] = value.shape[-own.event_dim]
    return torch.Size(shape)


def _widened(name: str, node: Any, scored: torch.Size) -> torch.Size:
    """The shape of a site's log probability once its mask and scale are applied."""
    for what in ("mask", "scale"):
        if isinstance(node[what], Tensor):
            try:
                widened = torch.broadcast_shapes(scored, node[what].shape)
            except RuntimeError as error:
                raise ModelError(
                    f"site '{name}': its {what} has shape {list(node[what].shape)} and its batch "
                    f"{list(scored)}, which do not match; give the {what} the shape of the "
                    "batch."
                ) from error
            if math.prod(widened) != math.prod(scored):
                raise ModelError(
                    f"site '{name}': its {what} has shape {list(node[what].shape)} and its batch "
                    f"{list(scored)}, so each value would count {_times(widened, scored)} times; "
                    f"give the {what} the shape of the batch."
                )
            scored = widened
    return scored


def _no_pairs(name: str, node: Any, shape: torch.Size, arguments: Mapping[str, Any]) -> None:
    """A factor has no value to count by, but a number for each pair of rows is reported."""
    outside = shape[: len(shape) + min((plate.dim for plate in plates_of(node)), default=-99)]
    for plate in plates_of(node):
        if plate.size > 1 and plate.size in outside:
            raise ModelError(
                f"site '{name}': the factor has shape {list(shape)}, one number for each pair of "
                f"rows of the plate '{plate.name}'. {_shape_edit(arguments)} If you intend this, "
                "sum it over the other dim."
            )


def _times(many: torch.Size, one: torch.Size) -> str:
    return f"{math.prod(many) / max(1, math.prod(one)):,.0f}"


def _shape_edit(arguments: Mapping[str, Any]) -> str:
    """How to fix the usual cause: a column where vectors are expected."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    columns = [n for n, v in tensors.items() if v.dim() == 2 and v.shape[1] == 1 < v.shape[0]]
    if columns:
        name = columns[0]
        return (
            f"'{name}' has shape {list(tensors[name].shape)}, a single column: write {name}[:, "
            f"0], or {name}.squeeze(-1), where it is combined with vectors."
        )
    shapes = ", ".join(f"'{name}' {list(value.shape)}" for name, value in tensors.items())
    return (
        "Give the value, the arguments of its distribution and its plates the same batch shape; "
        f"the arguments of the model have {shapes}. Set the dim of each plate to its place in the "
        "batch shape, counted from the right (-1 is the last)."
    )


# Arguments of distributions


def _parts(fn: Distribution) -> Iterator[Distribution]:
    """A distribution and those that it is made of."""
    yield fn
    for part in vars(fn).values():
        if isinstance(part, Distribution):
            yield from _parts(part)


def _arguments(trace: Any) -> Iterator[Fault]:
    """Arguments that torch's validation refuses, by site."""
    for name, node in sample_sites(trace):
        for part in _parts(node["fn"]):
            for parameter, constraint in _constraints(part).items():
                if parameter not in vars(part) or constraints.is_dependent(constraint):
                    continue
                value = torch.as_tensor(getattr(part, parameter))
                bad = ~constraint.check(value)
                if bad.any():
                    yield _argument(name, part, parameter, constraint, value, bad)


def _constraints(part: Distribution) -> Mapping[str, Any]:
    try:
        return part.arg_constraints
    except NotImplementedError:
        return {}


def _argument(
    name: str, part: Distribution, parameter: str, constraint: Any, value: Tensor, bad: Tensor
) -> Fault:
    """An argument that breaks its constraint."""
    wanted, edit = described(constraint)
    numbers = value[bad].detach()
    if not _is_zero(getattr(constraint, "lower_bound", getattr(constraint, "upper_bound", 0))):
        edit = "make sure that this holds at all values of the latents."
    # Where exp or a sigmoid is rounded to its limit, or a matrix cannot be factorised, the draw
    # was far; the model is right.
    far = bool((numbers.isinf() | (numbers == 0) | (numbers == 1)).all())
    if constraint.event_dim == 2:
        far = torch.allclose(numbers, numbers.mT) or bool((numbers.triu(1) == 0).all())
    return Fault(
        (name, parameter),
        f"site '{name}': the {parameter} of its {type(part).__name__} is {shown(numbers)}"
        f"{rows_of(bad)}, and must be {wanted}; "
        f"{ARGUMENT_EDITS.get(edit, edit)}",
        warns=not far,
    )


def _is_zero(bound: Any) -> bool:
    return isinstance(bound, (int, float)) and bound == 0


# Observed values


def _seen_twice(observed: list[tuple[str, Any]]) -> Iterator[Fault]:
    """Values that several sites observe, none of them behind a mask."""
    sites: dict[Any, list[tuple[str, Any]]] = {}
    for name, node in observed:
        value = node["value"]
        if isinstance(value, Tensor) and value.numel() > 1:
            sites.setdefault((value.data_ptr(), value.shape), []).append((name, node))
    for same in sites.values():
        if torch.stack([_counted(node).int() for _, node in same]).sum(0).max() > 1:
            names = ", ".join(f"'{name}'" for name, _ in same[:LISTED])
            names += ", ..." if len(same) > LISTED else ""
            yield Fault(
                (same[0][0], "twice"),
                f"sites {names} observe the same values, so each value counts {len(same)} times; "
                "give each site its own values, as in obs=y[i], or leave one site out.",
                None,
            )


def _values(name: str, node: Any) -> Iterator[Fault]:
    """Observed values that Pyro refuses, or that have no finite log density."""
    fn = node["fn"]
    value = torch.as_tensor(node["value"]).detach()
    shape = torch.broadcast_shapes(value.shape, fn.shape())
    value = value.expand(shape)
    counted = _counted(node).expand(shape)
    if not counted.any():
        return
    if not counted.all():
        # Pyro looks at what a mask hides as well: a draw takes its place.
        _hidden_can_be_scored(name, fn, value)
        value = torch.where(counted, value, _draw(fn, value))
    try:
        log_prob = fn.log_prob(value).detach()
    except ValueError as error:
        yield _outside(name, fn, value, str(error))
        return
    events = fn.event_dim
    rows = counted.reshape(*counted.shape[: counted.dim() - events], -1).any(-1)
    if log_prob.shape != rows.shape:
        if log_prob.numel() == rows.numel():
            return
        raise ModelError(
            f"site '{name}': the log_prob of its {type(fn).__name__} has shape "
            f"{list(log_prob.shape)}, and the batch shape is {list(rows.shape)}; make log_prob "
            "sum over the event dims only."
        )
    fractions = _fractions(fn, value)
    if fractions.any():
        yield Fault(
            (name, "support"),
            f"site '{name}': the values of a {_family(fn)} must be whole numbers, but"
            f"{rows_of(fractions, value[fractions])}. Give counts, not shares.",
            DataError,
        )
    bad = rows & ~log_prob.isfinite()
    if bad.any():
        event = value[bad]
        yield Fault(
            (name, "density"),
            f"site '{name}': the log density of its {_family(fn)} is "
            f"{shown(log_prob[bad])} for {shown(event)}{rows_of(bad)}; leave these rows out, move "
            "their values away from the limit of the support, or give the site a distribution with "
            "a density there.",
            DataError,
            # Minus infinity is a density, of values that the latents exclude.
            warns=bool((log_prob[bad] != -math.inf).any()),
        )


def _hidden_can_be_scored(name: str, fn: Any, value: Tensor) -> None:
    """Values behind a mask are evaluated, too, and must not raise an error."""
    try:
        with pyro.validation_enabled(False):
            _unvalidated(fn).log_prob(value)
    except RuntimeError as error:
        raise ModelError(
            f"site '{name}': values behind its mask cannot be evaluated ({error}); fill them "
            "with any value that its distribution can have, such as 0."
        ) from error


def _family(fn: Any) -> str:
    """The name of a distribution, without its wrappers."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return type(fn).__name__.removesuffix("Distribution")


def _unvalidated(fn: Any) -> Any:
    """A distribution whose own parts do not validate either."""
    lax = copy(fn)
    for name, part in vars(fn).items():
        if isinstance(part, Distribution):
            setattr(lax, name, _unvalidated(part))
    lax._validate_args = False
    return lax


def _fractions(fn: Any, value: Tensor) -> Tensor:
    """Which values are not whole numbers but should be: torch accepts those of a Multinomial."""
    try:
        whole = value.is_floating_point() and fn.support.is_discrete
        whole = whole and all(part._validate_args for part in _parts(fn))
    except NotImplementedError:
        whole = False
    return value != value.round() if whole else torch.zeros_like(value, dtype=torch.bool)


def _draw(fn: Any, like: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            return fn.sample().to(like.dtype).expand(like.shape)
    except NotImplementedError:  # a distribution of the user's that has no sampler
        return like


def _counted(node: Any) -> Tensor:
    """Which numbers of a site's value no mask hides, broadcast against the value."""
    fn = node["fn"]
    value = torch.as_tensor(node["value"])
    shape = torch.broadcast_shapes(value.shape, fn.shape())
    counted = torch.ones(shape, dtype=torch.bool, device=value.device)
    masks = [(node["mask"], fn.event_dim)]
    while isinstance(fn, WRAPPERS):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    for mask, events in masks:
        if mask is not None:
            whole = torch.as_tensor(mask, device=counted.device)
            counted = counted & whole.reshape((*whole.shape, *[1] * events))
    return counted


def _outside(name: str, fn: Any, value: Tensor, refusal: str) -> Fault:
    """Values that Pyro refuses: which, and how to fix them."""
    family, events = _family(fn), fn.event_dim
    support: Any = constraints.real
    bad = torch.zeros((), dtype=torch.bool)
    try:
        support = fn.support
        bad = ~support.check(value)
        if isinstance(support, constraints.independent):
            support = support.base_constraint
            bad = ~support.check(value)
    except (NotImplementedError, RuntimeError):
        pass
    wanted, edit = described(support)
    first = not bad.any()
    if first:  # within a part of it, such as what a transform is made of
        bad = _first_refused(fn, value)
        edit = "give values inside its support, or another distribution."
    total, count, numbers = bad.numel(), int(bad.sum()), value[bad]
    if not count:  # for another reason
        cause = f"Pyro refuses its values: {refusal.split(', but found invalid values')[0]}"
        return Fault((name, "support"), f"site '{name}': {cause.rstrip('.')}; {edit}", DataError)
    moved = _from_one(support, value)
    if moved:
        edit = f"Its values begin at 1: code them from 0, obs={name} - 1."
    else:
        edit = f"{edit[:1].upper()}{edit[1:]}"
    event = events and bad.dim() <= value.dim() - events
    outside = (
        f"the first value outside the support of its {family}"
        if first
        else f"{count:,} of {total:,} {'events' if event else 'values'} "
        f"{'is' if count == 1 else 'are'} not in the support of its {family} ({wanted})"
    )
    return Fault(
        (name, "support"),
        f"site '{name}': {outside}:{rows_of(bad, numbers)}. {edit}",
        DataError,
        warns=_nonsense(fn, value, bad),
    )


def _nonsense(fn: Any, value: Tensor, bad: Tensor) -> bool:
    """Whether values outside of the support have another log density than minus infinity."""
    try:
        with pyro.validation_enabled(False):
            log_prob = _unvalidated(fn).log_prob(value)
    except RuntimeError:  # labels that index what is not there
        return True
    events = bad.reshape(*log_prob.shape, -1).any(-1) if bad.dim() else bad
    return bool((log_prob != -math.inf)[events].any())


def _from_one(support: Any, value: Tensor) -> bool:
    """Whether labels are numbered from one instead of zero."""
    try:
        whole = support.is_discrete and bool((value >= 1).all())
        return whole and bool(support.check(value.double() - 1).all())
    except (NotImplementedError, RuntimeError):
        return False


def _first_refused(fn: Any, value: Tensor) -> Tensor:
    """The first row that Pyro refuses, found by halves: draws stand in for the others."""
    shape = value.shape[: value.dim() - fn.event_dim]
    bad = torch.zeros(shape, dtype=torch.bool)
    stand_in = _draw(fn, value)
    index = torch.arange(bad.numel(), device=value.device).reshape(shape)
    index = index.reshape(*shape, *[1] * fn.event_dim)

    def refused(rows: int) -> bool:
        try:
            fn.log_prob(torch.where(index < rows, value, stand_in))
        except ValueError:
            return True
        return False

    low, high = 0, bad.numel()
    if not refused(high) or refused(low):
        return bad
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refused(middle) else (middle, high)
    bad.view(-1)[high - 1] = True
    return bad
