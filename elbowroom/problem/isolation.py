"""A fit leaves no trace: parameters, random state, defaults and flags are put back."""

import random
import secrets
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch.distributions import transform_to

from elbowroom.commands import SeedOptions
from elbowroom.errors import OptionError, unknown
from elbowroom.guides.parameters import FittedAlone
from elbowroom.options import make_options
from elbowroom.problem.process import TURN, ProcessState, is_alone, limit_threads


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


def isolated(
    seed: int,
    parameters: Parameters | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    validate: bool = False,
    threads: int | None = None,
) -> AbstractContextManager[dict[str, Any]]:
    """Runs Pyro code in a parameter store, random state and defaults of its own.

    Args:
        seed: Of Python's, numpy's and torch's random numbers.
        parameters: Of a fit, to begin from; what else uses their tensors finds them as they were.
        dtype: Default floating-point type.
        device: Default device.
        validate: Whether Pyro and torch check every distribution's arguments.
        threads: Of torch and BLAS; by default as they are.

    Returns:
        A block. It gives the state of its parameter store, filled when the block ends.

    Example:
        >>> pyro.clear_param_store()
        >>> with isolated(seed=0) as state:
        ...     _ = pyro.param("scale", torch.tensor(1.0))
        >>> list(pyro.get_param_store().keys()), list(state["params"])
        ([], ['scale'])
    """
    # torch.device as a context slows every call down, so the CPU goes without.
    on_device = None if device is None or device.type == "cpu" else device
    return _Isolated(seed, parameters, dtype, on_device, validate, threads)


class _Isolated(AbstractContextManager[dict[str, Any]]):
    """See `isolated`. No generator: one that is interrupted would end at some later time."""

    def __init__(
        self,
        seed: int,
        parameters: Parameters | None,
        dtype: torch.dtype,
        device: torch.device | None,
        validate: bool,
        threads: int | None,
    ) -> None:
        self.seed, self.parameters, self.dtype = seed, parameters, dtype
        self.device, self.validate, self.threads = device, validate, threads
        self.turn = None if is_alone() else TURN.lock

    def __enter__(self) -> dict[str, Any]:
        if self.turn is not None:
            self.turn.acquire()
        self.before = ProcessState()
        try:
            return self._begun()
        except BaseException:
            self._end()
            raise

    def _begun(self) -> dict[str, Any]:
        torch.set_default_dtype(self.dtype)
        if self.threads is not None:
            limit_threads(self.threads)
        pyro.enable_validation(self.validate)
        pyro.settings.set(module_local_params=False)
        store = pyro.get_param_store()
        vars(store).update(vars(type(store)()))
        self.state: dict[str, Any] = {"params": {}, "constraints": {}}
        if self.parameters is not None:
            self.state = self.parameters.state
            self.values = parameter_values(self.state)
            TURN.unfinished.append(self._put_back)
            store.set_state(self.state)  # type: ignore[arg-type]
            set_parameter_values(self.state["params"], self.parameters.values)
        if self.device is not None:
            self.device.__enter__()
        FittedAlone().__enter__()
        warnings.filters = list(warnings.filters)
        # A frozen parameter of a module is data, of which there is nothing to warn.
        warnings.filterwarnings("ignore", ".*was not registered in the param store", UserWarning)
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        reseed(self.seed)
        return self.state

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.state.update(pyro.get_param_store().get_state())
        self._end()

    def _put_back(self) -> None:
        set_parameter_values(self.state["params"], self.values)

    def _end(self) -> None:
        try:
            if self._put_back in TURN.unfinished:
                self._put_back()
                TURN.unfinished.remove(self._put_back)
            self.before.restore()
        finally:
            if self.turn is not None:
                self.turn.release()


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
