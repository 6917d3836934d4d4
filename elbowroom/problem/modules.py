"""The networks of a user's own model and guide, with the values that a fit gave them."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from elbowroom.errors import ModelError, unknown
from elbowroom.problem.isolation import Parameters
from elbowroom.recording.python_state import reached_from

REGISTERED = "$$$"
"""What `pyro.module` puts between the name of a module and that of its parameter."""


def trained_module(
    name: str, functions: Sequence[Callable[..., Any]], parameters: Parameters
) -> nn.Module:
    """A copy of a module with a fit's parameters, in evaluation mode.

    Args:
        name: What `pyro.module` was told, or what the code of the functions calls it.
        functions: The model and the guide.
        parameters: Of the fit.

    Raises:
        OptionError: If there is no such module; the nearest name is suggested.
        ModelError: If there are no modules at all.
    """
    found = modules(functions, parameters)
    if not found:
        raise ModelError(
            "neither the model nor the guide has modules of its own; the values of its parameters "
            "are in fit.model_parameters."
        )
    if name not in found:
        raise unknown("module", name, sorted(found))
    module = found[name]
    names = {id(tensor): each for each, tensor in parameters.state["params"].items()}
    copied = deepcopy(module)
    with torch.no_grad():
        for one, other in zip(module.parameters(), copied.parameters(), strict=True):
            if id(one) in names:
                other.copy_(parameters.values[names[id(one)]])
    return copied.eval()


def modules(
    functions: Sequence[Callable[..., Any]], parameters: Parameters
) -> dict[str, nn.Module]:
    """The modules that functions reach and that a fit has trained, by name.

    Args:
        functions: The model and the guide.
        parameters: Of the fit.

    Returns:
        By what `pyro.module` was told, and by what code calls them: those that a function names,
        and with dots those below them.
    """
    names = {id(tensor): each for each, tensor in parameters.state["params"].items()}
    found: dict[str, nn.Module] = {}
    for path, each in reached_from(*functions):
        if not isinstance(each, nn.Module):
            continue
        own = {names[id(value)] for value in each.parameters() if id(value) in names}
        if not own:
            continue
        registered = {one.partition(REGISTERED)[0] for one in own if REGISTERED in one}
        # All of what was registered by a name is below this module, and nothing else.
        for one in registered:
            whole = {key for key in parameters.state["params"] if key.startswith(one + REGISTERED)}
            if whole == own:
                found.setdefault(one, each)
        below = {
            name: module
            for name, module in each.named_modules()
            if any(id(value) in names for value in module.parameters())
        }
        called, seen = path.removeprefix("self."), {id(module) for module in found.values()}
        for name, module in {called: each, **below}.items():
            # Not what code calls by a number, or torch by the dict that it keeps it in.
            last = name.rpartition(".")[2]
            if not last.isidentifier() or last == "self" or "[" in name:
                continue
            if module is each or id(module) not in seen:
                found.setdefault(name, module)
    return found
