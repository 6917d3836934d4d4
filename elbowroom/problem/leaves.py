"""What a model or a guide could be fitted by: the tensors at the ends of its density's graph.

A tensor that requires a gradient is fitted, one that does not is data. Pyro fits those that its
parameter store knows, and passes over the others in silence, such as the weights of a network
that `pyro.module` was never told of; and over those whose gradient is cut off on the way.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from elbowroom.errors import ModelError, users_code
from elbowroom.guides.parameters import Kept, Replaced
from elbowroom.guides.space import trace_model
from elbowroom.recording.python_state import reached_from

PROBE = 0.1
"""How far a parameter is moved to see whether the density depends on it."""
MOST_NAMED = 4
"""Parameters that a sentence names."""


def leaves(tensor: Tensor) -> list[Tensor]:
    """The leaf tensors that require a gradient in the graph of a tensor.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> [leaf is weight for leaf in leaves((weight.exp() * torch.ones(2)).sum())]
        [True]
    """
    if tensor.grad_fn is None:
        return [tensor] if tensor.requires_grad else []
    found, seen, waiting = [], {tensor.grad_fn}, [tensor.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if hasattr(node, "variable"):  # where gradients are gathered
            found.append(node.variable)
        for each, _ in node.next_functions:
            if each is not None and each not in seen:
                seen.add(each)
                waiting.append(each)
    return found


def check_leaves(make: Callable[[], Tensor], whose: Mapping[str, Callable[..., Any]]) -> None:
    """Sees that whatever requires a gradient in a graph is in the active parameter store.

    Tensors that are made anew in each run, such as those of which a model takes derivatives
    itself, are nobody's parameters.

    Args:
        make: Runs the model, or model and guide, to a number.
        whose: What is run, by what it is called.

    Raises:
        ModelError: If something is not; it is named as far as it can be found.
    """
    lasting = _lasting(make)
    if lasting:
        reached = [each for _, each in reached_from(*whose.values())]
        held = {id(each) for fixed in reached if isinstance(fixed, _Fixed) for each in fixed.values}
        lasting = [leaf for leaf in lasting if id(leaf) not in held]
    if lasting:
        raise ModelError(_refusal(lasting, whose))


def _lasting(make: Callable[[], Tensor]) -> list[Tensor]:
    """What requires a gradient, is no parameter, and is the same tensor in each run."""
    unknown = _unknown(leaves(make()))
    again = {id(leaf) for leaf in leaves(make())} if unknown else set()
    return [leaf for leaf in unknown if id(leaf) in again]


@dataclass(frozen=True)
class _Fixed:
    """Values that a model keeps; what it has computed of them once may still lead to them."""

    values: tuple[Tensor, ...]


def with_fixed_values(
    model: Callable[..., Any], arguments: Mapping[str, Any]
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A model whose modules' unregistered values are constants, as they are to Pyro.

    These are values that a user gave to a module of their own or a library's. The weights of
    torch's layers begin at random: a model that leaves them so is not what is meant.

    Args:
        model: The Pyro model, to be called in an isolated session.
        arguments: Its keyword arguments.

    Returns:
        The model, itself if there are none, and a sentence for each of them.
    """
    lasting = _lasting(_density_of(model, arguments))
    found, said = [], []
    for leaf in lasting:
        place = next(_places(leaf, model), None)
        if place is None or not place.given:
            continue
        found.append(leaf)
        said.append(
            f"'{place.path}.{place.name}' requires a gradient but is not registered, so it is kept "
            f"fixed at its value. To fit it, write pyro.module('{place.path}', {place.path}) in "
            "the model."
        )
    if not found:
        return model, ()
    fixed = _Fixed(tuple(found))

    @wraps(model)
    def function(**given: Any) -> Any:
        with Replaced() as replaced:
            for leaf in fixed.values:
                replaced.put(leaf, leaf.detach())
            return model(**given)

    return function, tuple(said)


def _density_of(model: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[[], Tensor]:
    """A model's log density at the same random values in each run."""

    def density() -> Tensor:
        pyro.set_rng_seed(0)
        trace = trace_model(model, arguments)
        with users_code("the model's log density cannot be evaluated", ModelError):
            return torch.as_tensor(trace.log_prob_sum())

    return density


def with_kept_parameters(
    model: Callable[..., Any], arguments: Mapping[str, Any]
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A model without the parameters that its density has no gradient by; nothing else has one.

    Such parameters, as of a network that is run under `torch.no_grad`, are data, if others are
    fitted or they are those of a module.

    Args:
        model: The Pyro model; its parameters are in the active store.
        arguments: Its keyword arguments.

    Returns:
        The model, itself if there are none, and a sentence that names them.

    Raises:
        ModelError: If it has a gradient by a tensor that nothing would fit, or by no parameter.
    """
    density = _density_of(model, arguments)
    check_leaves(density, {"the model": model})
    _, cut = without_gradient(density)
    if not cut:
        return model, ()
    store = pyro.get_param_store()
    every = dict(store.named_parameters())
    if len(cut) == len(every) and not all(isinstance(every[name], nn.Parameter) for name in cut):
        raise ModelError(
            f"the model's density depends on the parameter '{cut[0]}' but has no "
            "gradient with respect to it, so it would not be fitted. Remove the detach() or "
            "torch.no_grad() that cuts it off. To keep it fixed, use a plain tensor, or "
            "requires_grad_(False) for a parameter of a module."
        )
    values = {name: store[name].detach().clone() for name in cut}

    @wraps(model)
    def function(**given: Any) -> Any:
        with Kept(values):
            return model(**given)

    return function, (f"In the model, {unfitted(cut)}",)


def without_gradient(make: Callable[[], Tensor]) -> tuple[list[str], list[str]]:
    """The parameters of the active store that a number has no gradient by.

    Args:
        make: Computes the number, the same one each time.

    Returns:
        Their names, and those of the parameters among them that the number depends on all the same.
    """
    first = make()
    cut = unreached(first)
    if not cut or not torch.equal(make(), first) or not _depends(make, first, cut.values()):
        return [*cut], []
    return [*cut], [name for name in cut if _depends(make, first, [cut[name]])] or [*cut]


def unreached(number: Tensor) -> dict[str, Tensor]:
    """The parameters of the active store that a number's graph does not lead to."""
    used = {id(leaf) for leaf in leaves(number)}
    named = pyro.get_param_store().named_parameters()
    return {n: value for n, value in named if value.requires_grad and id(value) not in used}


def unfitted(names: Sequence[str]) -> str:
    """Says of parameters that they have no gradient.

    Example:
        >>> unfitted(["scale"])[:63]
        "no gradient reaches the parameter 'scale', which stays as it is"
    """
    one, more = len(names) == 1, len(names) - MOST_NAMED
    listed = ", ".join(f"'{name}'" for name in names[:MOST_NAMED])
    return (
        f"no gradient reaches the parameter{'' if one else 's'} {listed}"
        f"{f' and {more} more' if more > 0 else ''}, which stay{'s' if one else ''} as "
        f"{'it is' if one else 'they are'}. To fit {'it' if one else 'them'}, use "
        f"{'it' if one else 'them'} outside of torch.no_grad() and without detach()."
    )


def _depends(density: Callable[[], Tensor], value: Tensor, tensors: Iterable[Tensor]) -> bool:
    """Whether a density is another one where some tensors are."""
    before = [(each, each.detach().clone()) for each in tensors]
    try:
        with torch.no_grad():
            for each, was in before:
                each.copy_(was + PROBE * (1 + was.abs()))
            return not torch.equal(density(), value)
    finally:
        with torch.no_grad():
            for each, was in before:
                each.copy_(was)


def _unknown(found: Iterable[Tensor]) -> list[Tensor]:
    known = {id(value) for _, value in pyro.get_param_store().named_parameters()}
    return [leaf for leaf in found if id(leaf) not in known]


def _refusal(tensors: list[Tensor], whose: Mapping[str, Callable[..., Any]]) -> str:
    for called, function in whose.items():
        for tensor in tensors:
            for place in _places(tensor, function):
                path, shape = place.path, tuple(tensor.shape)
                shown = f"{path}.{place.name}" if place.name else path
                beside = (
                    f", and {len(tensors) - 1} more tensor{'s' if len(tensors) > 2 else ''}"
                    if len(tensors) > 1
                    else ""
                )
                register = (
                    f"pyro.module('{path}', {path})"
                    if place.name
                    else f"pyro.param('{path}', {path})"
                )
                return (
                    f"{called} uses '{shown}' of shape {shape}{beside}, which requires a "
                    "gradient but is not one of its parameters, so it would not be fitted. "
                    f"Register it in {called} with {register}, or keep it fixed with "
                    f"{path}.requires_grad_(False)."
                )
    return (
        f"{' and '.join(whose)} {'use' if len(whose) > 1 else 'uses'} a tensor of shape "
        f"{tuple(tensors[0].shape)} that requires a gradient but is not a parameter, so it would "
        "not be fitted. Register it with pyro.param, or its network with pyro.module; or keep "
        "it fixed with requires_grad_(False)."
    )


@dataclass(frozen=True)
class _Place:
    """Where a function reaches a tensor.

    Attributes:
        path: How code names the tensor, or the module that holds it.
        name: Of the tensor in the module; nothing for one that is in none.
        given: Whether it is a value that a module, which is no layer of torch's, was given.
    """

    path: str
    name: str = ""
    given: bool = False


def _places(tensor: Tensor, function: Callable[..., Any]) -> Iterator[_Place]:
    for path, each in reached_from(function):
        if isinstance(each, nn.Module) and path:
            for name, value in each.named_parameters():
                if value is tensor:
                    holder = type(each.get_submodule(name.rpartition(".")[0]))
                    of_torch = holder.__module__.partition(".")[0] == "torch"
                    yield _Place(path, name, not of_torch)
        elif each is tensor and path:
            yield _Place(path)


@contextmanager
def kept_buffers(*functions: Callable[..., Any]) -> Iterator[None]:
    """Puts back, at the end, what the modules that functions reach keep beside their parameters.

    A normalisation layer in training updates its running means each time that it is run.
    """
    modules = [each for _, each in reached_from(*functions) if isinstance(each, nn.Module)]
    before = [(each, each.detach().clone()) for module in modules for each in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for each, was in before:
                each.copy_(was)
