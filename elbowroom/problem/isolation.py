"""A fit leaves no trace: parameters, random state, defaults and flags are put back."""

import random
import secrets
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyro
import torch
from threadpoolctl import ThreadpoolController
from torch.distributions import Distribution, transform_to

from elbowroom.commands import SeedOptions
from elbowroom.errors import OptionError, unknown
from elbowroom.guides.parameters import FittedAlone
from elbowroom.options import make_options

_ONE_AT_A_TIME = threading.RLock()
"""Pyro's store, torch's defaults and the seeds belong to the process: threads take turns."""


def checked_seed(seed: int | None) -> int:
    """The seed of a run, drawn if it is None.

    Raises:
        OptionError: If it is out of range.
    """
    if seed is None:
        return secrets.randbelow(2**31)
    return int(make_options(SeedOptions, {"seed": seed}).seed)


def reseed(seed: int) -> None:
    """Seeds torch's generators, those of CUDA only where it is in use.

    Before it is, `torch.manual_seed` puts the call aside with the stack's text: slow, and never
    freed on a machine that has no GPU.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def resolve_device(name: str) -> torch.device:
    """The device of a name: auto takes a GPU where there is one.

    Raises:
        OptionError: If the device is not there.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    kind, _, index = name.partition(":")
    if kind not in available or (index and not index.isdigit()):
        raise unknown("device", name, ["auto", *available])
    if not available[name.partition(":")[0]]:
        raise OptionError(f"--device {name}: this machine has no such device; give --device cpu.")
    return torch.device(name)


@dataclass(frozen=True)
class Parameters:
    """The parameters of a fit: a parameter store's state, and the fitted values.

    The tensors in the state may belong to a network of the user's, which other fits use too; the
    values are the fit's own, and are in the tensors only while a block runs.
    """

    state: dict[str, Any]
    values: dict[str, torch.Tensor]


def parameter_values(state: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Copies of all unconstrained parameters of the active store, or of a state."""
    named = dict(pyro.get_param_store().named_parameters()) if state is None else state["params"]
    return {name: value.detach().clone() for name, value in named.items()}


def constrained_values(parameters: Parameters) -> dict[str, torch.Tensor]:
    """The values of a fit's parameters in their own space, float64 on the CPU."""
    constraints = parameters.state["constraints"]
    return {
        name: transform_to(constraints[name])(value.double().cpu())
        for name, value in parameters.values.items()
    }


def placed_values(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All unconstrained parameters of the active store, with some in the place of what it holds.

    The store's tensors, which may be those of a network of the user's, stay as they are.

    Args:
        values: Constrained, by name.
    """
    store = pyro.get_param_store()
    named, constraints = dict(store.named_parameters()), store.get_state()["constraints"]
    # By the tensor: one may have several names.
    new = {
        id(named[name]): transform_to(constraints[name]).inv(value).to(named[name])
        for name, value in values.items()
        if name in named
    }
    return {name: new.get(id(each), each).detach().clone() for name, each in named.items()}


def set_parameter_values(tensors: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
    """Fills parameters in place."""
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)


@contextmanager
def isolated(
    seed: int,
    parameters: Parameters | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    validate: bool = False,
    threads: int | None = None,
) -> Iterator[Any]:
    """Runs Pyro code in a parameter store, random state and defaults of its own.

    Args:
        seed: Of Python's, numpy's and torch's random numbers.
        parameters: Of a fit, to begin from; what else uses their tensors finds them as they were.
        dtype: Default floating-point type.
        device: Default device.
        validate: Whether Pyro and torch check every distribution's arguments.
        threads: Of torch and BLAS; by default as they are.

    Yields:
        The state of the block's parameter store, filled when the block ends.

    Example:
        >>> pyro.clear_param_store()
        >>> with isolated(seed=0) as state:
        ...     _ = pyro.param("scale", torch.tensor(1.0))
        >>> list(pyro.get_param_store().keys()), list(state["params"])
        ([], ['scale'])
    """
    with _ONE_AT_A_TIME:
        yield from _isolated(seed, parameters, dtype, device, validate, threads)


@cache
def _thread_pools() -> ThreadpoolController:
    """The libraries with threads of their own; looking for them takes milliseconds."""
    return ThreadpoolController()


def _isolated(
    seed: int,
    parameters: Parameters | None,
    dtype: torch.dtype,
    device: torch.device | None,
    validate: bool,
    threads: int | None,
) -> Iterator[Any]:
    random_state = pyro.util.get_rng_state()
    default_dtype = torch.get_default_dtype()
    torch_validates = Distribution._validate_args
    # torch.device as a context slows every call down, so the CPU goes without.
    on_device = nullcontext() if device is None or device.type == "cpu" else device
    torch_threads = torch.get_num_threads()
    store: Any = None if parameters is None else parameters.state
    before = {} if parameters is None else parameter_values(parameters.state)
    try:
        torch.set_default_dtype(dtype)
        if threads is not None:
            torch.set_num_threads(threads)
        with (
            nullcontext() if threads is None else _thread_pools().limit(limits=threads),
            pyro.validation_enabled(validate),
            on_device,
            pyro.settings.context(module_local_params=False),
            pyro.get_param_store().scope(store) as state,
            FittedAlone(),
            warnings.catch_warnings(),
        ):
            # A frozen parameter of a module is data, of which there is nothing to warn.
            warnings.filterwarnings(
                "ignore", ".*was not registered in the param store", UserWarning
            )
            if parameters is not None:
                set_parameter_values(state["params"], parameters.values)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            reseed(seed)
            yield state
    finally:
        if parameters is not None:
            set_parameter_values(parameters.state["params"], before)
        torch.set_num_threads(torch_threads)
        torch.set_default_dtype(default_dtype)
        Distribution.set_default_validate_args(torch_validates)
        pyro.util.set_rng_state(random_state)


def placed(arguments: dict[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments with their floating-point tensors in a dtype and all tensors on a device.

    Those in lists, tuples and dicts as well: of another type they would lose digits.

    Example:
        >>> half = torch.tensor(0.5, dtype=torch.float32)
        >>> found = placed({"y": {"a": [half]}}, torch.float64, torch.device("cpu"))
        >>> found["y"]["a"][0].dtype
        torch.float64
    """
    return {name: _placed(value, dtype, device) for name, value in arguments.items()}


def _placed(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype if value.is_floating_point() else value.dtype)
    if type(value) in (list, tuple):
        return type(value)(_placed(each, dtype, device) for each in value)
    return placed(value, dtype, device) if type(value) is dict else value
