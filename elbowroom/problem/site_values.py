"""Whether the arguments of a site's distribution and its observed values are valid."""

import math
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from elbowroom.errors import DataError, ModelError
from elbowroom.guides.space import sample_sites
from elbowroom.problem.faults import WRAPPERS, Fault
from elbowroom.problem.wording import ARGUMENT_EDITS, LISTED, described, rows_of, shown


def _parts(fn: Distribution) -> Iterator[Distribution]:
    """A distribution and those that it is made of."""
    yield fn
    for part in vars(fn).values():
        if isinstance(part, Distribution):
            yield from _parts(part)


def faults_of_arguments(trace: Any) -> Iterator[Fault]:
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


def seen_twice(observed: list[tuple[str, Any]]) -> Iterator[Fault]:
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


def faults_of_values(name: str, node: Any) -> Iterator[Fault]:
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
