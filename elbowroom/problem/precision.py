"""Floating-point types: which one a model is fitted in, and models that mix them.

A network is made in float32 unless its user says otherwise, and a table holds float64. Torch
multiplies no matrices of different types. A model is therefore fitted in the type of its networks;
where types still meet, the numbers of the smaller type become those of the larger.
"""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from elbowroom.recording.python_state import reached_from

MIXED = re.compile("dtype(?!=)|scalar type|data type|same type")
"""What torch says where it refuses to mix types; `dtype=` is of a tensor that a message shows."""


def suited_dtype(*functions: Callable[..., Any]) -> torch.dtype:
    """The type in which a model and its guide are fitted: float32 if all of their networks are.

    Args:
        *functions: The Pyro model, and the guide if it is the user's own.

    Example:
        >>> layer = nn.Linear(1, 1).float()
        >>> suited_dtype(layer), suited_dtype(lambda x: 2 * x)
        (torch.float32, torch.float64)
    """
    modules = [each for _, each in reached_from(*functions) if isinstance(each, nn.Module)]
    dtypes = {p.dtype for module in modules for p in module.parameters() if p.is_floating_point()}
    return torch.float32 if dtypes == {torch.float32} else torch.float64


def resolve_dtype(name: str, *functions: Callable[..., Any]) -> torch.dtype:
    """The floating-point type of a name: float32, float64, or auto, for the one that suits."""
    return suited_dtype(*functions) if name == "auto" else DTYPES[name]


DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Promoted(TorchFunctionMode):
    """Makes an operation that torch refuses for its mixed types in the largest of them.

    Example:
        >>> one, two = torch.ones(1, 1).float(), torch.ones(1, 1).double()
        >>> with Promoted():
        ...     product = one @ two
        >>> product.dtype
        torch.float64
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            return function(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            found = _dtypes((args, kwargs))
            if len(found) < 2 or not MIXED.search(str(error)):
                raise
        if _in_place(function):  # the tensor that is filled keeps its type
            given = [_to(args[0].dtype, each) for each in args[1:]]
            return function(args[0], *given, **_to(args[0].dtype, kwargs))
        largest = max(found, key=lambda dtype: dtype.itemsize)
        return function(*_to(largest, args), **_to(largest, kwargs))


class _PromotedSites(Messenger):
    """Gives distributions whose numbers are of a smaller type those of the default one."""

    def _pyro_sample(self, msg: Any) -> None:
        dtype, fn = torch.get_default_dtype(), msg["fn"]
        if "log_prob" not in vars(fn):  # which is evaluated when the model has been run
            fn.log_prob = _promoted(fn.log_prob)
        while hasattr(fn, "__dict__"):
            for name, value in vars(fn).items():
                if isinstance(value, Tensor) and value.dtype != dtype:
                    setattr(fn, name, _to(dtype, value))
            fn = getattr(fn, "base_dist", None)


def _promoted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def promoted(*given: Any, **named: Any) -> Any:
        with Promoted():
            return function(*given, **named)

    return promoted


def _in_place(function: Any) -> bool:
    name = str(getattr(function, "__name__", ""))
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _dtypes(each: Any) -> set[torch.dtype]:
    """The floating-point types of the tensors in lists, tuples and dicts."""
    if isinstance(each, Tensor):
        return {each.dtype} if each.is_floating_point() else set()
    if isinstance(each, Mapping):
        each = list(each.values())
    return set().union(*map(_dtypes, each)) if isinstance(each, (list, tuple)) else set()


def _to(dtype: torch.dtype, each: Any) -> Any:
    """The same with its floating-point tensors in a type."""
    if isinstance(each, Tensor):
        return each.to(dtype) if each.is_floating_point() else each
    if type(each) in (list, tuple):
        return type(each)(_to(dtype, part) for part in each)
    return {name: _to(dtype, part) for name, part in each.items()} if type(each) is dict else each


def unmixed(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """A model or guide that may mix types; itself if it can be run as it is.

    Args:
        function: The Pyro model or guide, to be called in an isolated session.
        arguments: Its keyword arguments.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            poutine.trace(function).get_trace(**arguments).compute_log_prob()
        return function
    except (RuntimeError, ValueError) as error:
        if not MIXED.search(str(error)):
            return function
    except Exception:  # whatever else is wrong is said when it is run
        return function

    @wraps(function)
    def promoted(*given: Any, **named: Any) -> Any:
        with Promoted(), _PromotedSites():
            return function(*given, **named)

    return promoted
