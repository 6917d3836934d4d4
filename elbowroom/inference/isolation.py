"""A fit leaves no trace: parameters, random state, defaults and flags are put back."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from threadpoolctl import threadpool_limits
from torch.distributions import Distribution

from elbowroom.errors import OptionError, unknown

DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
    if name.partition(":")[0] not in available:
        raise unknown("device", name, ["auto", *available])
    if not available[name.partition(":")[0]]:
        raise OptionError(f"--device {name}: this machine has none; give --device cpu.")
    return torch.device(name)


def resolve_dtype(name: str) -> torch.dtype:
    """The floating-point type of a name, float32 or float64."""
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


@contextmanager
def isolated(
    seed: int,
    parameters: Any = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    validate: bool = False,
    threads: int | None = None,
) -> Iterator[Any]:
    """Runs Pyro code in a parameter store, random state and defaults of its own.

    Args:
        seed: Of Python's, numpy's and torch's random numbers.
        parameters: State of a parameter store to begin from, as an earlier block gave it.
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
    random_state = pyro.util.get_rng_state()
    default_dtype = torch.get_default_dtype()
    torch_validates = Distribution._validate_args
    # torch.device as a context slows every call down, so the CPU goes without.
    on_device = nullcontext() if device is None or device.type == "cpu" else device
    torch_threads = torch.get_num_threads()
    try:
        torch.set_default_dtype(dtype)
        if threads is not None:
            torch.set_num_threads(threads)
        with (
            threadpool_limits(threads),
            pyro.validation_enabled(validate),
            on_device,
            pyro.get_param_store().scope(parameters) as state,
        ):
            pyro.set_rng_seed(seed)
            yield state
    finally:
        torch.set_num_threads(torch_threads)
        torch.set_default_dtype(default_dtype)
        Distribution.set_default_validate_args(torch_validates)
        pyro.util.set_rng_state(random_state)


def placed(arguments: dict[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments with their floating-point tensors in a dtype and all tensors on a device."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }
