"""The networks of a user's own model and guide, with the values that a fit gave them."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import wraps
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from elbowroom.errors import ModelError, unknown
from elbowroom.guides.parameters import given_parameter
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


class _SeenParameters(Messenger):
    """Remembers the tensors that a function gives to the parameter store, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, Tensor] = {}

    def _pyro_param(self, msg: Any) -> None:
        given = given_parameter(msg)
        if given is not None:
            self.tensors[msg["name"]] = given


class _Renamed(Messenger):
    """Gives parameters other names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_param(self, msg: Any) -> None:
        name = self.names.get(msg["name"])
        if name is not None:
            msg["name"], msg["args"] = name, (name, *msg["args"][1:])


def with_names_of_its_own(
    guide: Callable[..., Any], model: Callable[..., Any], arguments: Mapping[str, Any]
) -> Callable[..., Any]:
    """A guide whose parameters are none of the model's by the same name.

    Modules are named by what holds them, so that a model and a guide which both have a layer
    `self.net` share its name: Pyro then fits one of the two tensors, and leaves the other as it is.

    Args:
        guide: The user's own, to be called in an isolated session.
        model: The Pyro model.
        arguments: Keyword arguments of both.
    """

    def given(function: Callable[..., Any]) -> dict[str, Tensor]:
        store = pyro.get_param_store().scope()
        with torch.random.fork_rng(devices=[]), store, _SeenParameters() as seen:
            poutine.trace(function).get_trace(**arguments)
        return seen.tensors

    of_guide, of_model = given(guide), given(model)
    shared = {name for name in of_guide if of_guide[name] is not of_model.get(name, of_guide[name])}
    if not shared:
        return guide
    again, model_again = given(guide), given(model)
    names = {
        name: f"guide.{name}"
        for name in shared
        # What is made anew in each run is never the same.
        if again.get(name) is of_guide[name] and model_again.get(name) is of_model[name]
    }

    @wraps(guide)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        with _Renamed(names):
            return guide(*args, **kwargs)

    return renamed
