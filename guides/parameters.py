"""The point parameters of a model, and the flat unconstrained vector of them.

One rule tells parameters and data apart, whether they are made by `pyro.param`, registered by
`pyro.module`, or attributes of a `PyroModule`: a tensor that requires a gradient is fitted, one
that does not is data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.overrides import TorchFunctionMode

MOST = 60
"""The most numbers that are fitted by their marginal likelihood."""
HELD = "_elbowroom_held"
"""Marks a parameter in a trace that is fixed at some value."""
ASKED = (Tensor.requires_grad.__get__, Tensor.is_leaf.__get__)  # type: ignore[attr-defined]
"""Functions that see the tensor itself, even where another one has replaced it."""


@dataclass(frozen=True)
class PointParameters:
    """The point parameters of a model, in the order in which it makes them.

    Attributes:
        initial: Unconstrained values by name, float64, where the model begins.
        constraints: By name.

    Example:
        >>> positive = torch.distributions.constraints.positive
        >>> parameters = PointParameters({"scale": torch.zeros(2)}, {"scale": positive})
        >>> parameters.size, parameters.constrained(torch.zeros(2))
        (2, {'scale': tensor([1., 1.])})
    """

    initial: Mapping[str, Tensor] = field(default_factory=dict)
    constraints: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Any) -> "PointParameters":
        """Those of a run of the model, each tensor once, by its first name.

        Those that are fixed at some values do not count.
        """
        store = pyro.get_param_store()
        values, constraints = dict(store.named_parameters()), store.get_state()["constraints"]
        names = fitted_names(trace)
        return cls(
            {name: values[name].detach().double().cpu().clone() for name in names},
            {name: constraints[name] for name in names},
        )

    @cached_property
    def size(self) -> int:
        """The length P of the flat vector."""
        return sum(value.numel() for value in self.initial.values())

    @property
    def start(self) -> np.ndarray:
        """The flat vector where the model begins, (P,)."""
        return torch.cat([value.reshape(-1) for value in self.initial.values()]).numpy()

    @property
    def why_not(self) -> str | None:
        """Why they cannot be fitted by their marginal likelihood; None if they can."""
        matrices = sum(value.dim() > 1 for value in self.initial.values())
        if matrices > 1:
            return (
                f"the model has {matrices} matrices of point parameters, as a network of several "
                "layers has, whose likelihood may have many maxima"
            )
        if self.size > MOST:
            return f"the model has {self.size} numbers in point parameters, more than {MOST}"
        return None

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The unconstrained parameters of a flat vector, (P,)."""
        parts = flat.split([value.numel() for value in self.initial.values()])
        return {
            name: part.reshape(value.shape)
            for (name, value), part in zip(self.initial.items(), parts, strict=True)
        }

    def constrained(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters' values of a flat vector, (P,)."""
        return {
            name: transform_to(self.constraints[name])(part)
            for name, part in self.split(flat).items()
        }


def fitted_names(trace: Any) -> list[str]:
    """The names of the parameters in a trace that are fitted, not those fixed at some values.

    A tensor of several names has the first.
    """
    store = dict(pyro.get_param_store().named_parameters())
    first: dict[int, str] = {}
    for name, node in trace.nodes.items():
        if node["type"] == "param" and name in store and not node["infer"].get(HELD):
            first.setdefault(id(store[name]), name)
    return list(first.values())


def _initial(msg: Any) -> Any:
    """What a parameter is made of, as it was given to `pyro.param`; None if it was not."""
    return msg["args"][1] if len(msg["args"]) > 1 else msg["kwargs"].get("init_tensor")


def given_parameter(msg: Any) -> Tensor | None:
    """The tensor that a message of `pyro.param` gives to be fitted itself, if it gives one."""
    initial = _initial(msg)
    return initial if _own_leaf(initial) else None


def _own_leaf(initial: Any) -> bool:
    """Whether what was given is the tensor that is to be fitted, and not where one begins."""
    return isinstance(initial, Tensor) and initial.is_leaf and initial.requires_grad


class FittedAlone(Messenger):
    """Keeps the parameter store to what is fitted.

    Pyro's store has every tensor that it is given require a gradient: a `torch.nn.Parameter` that
    its user has frozen, and a tensor that is a start and also a constant of the model.

    Example:
        >>> weight = nn.Parameter(torch.ones(1), requires_grad=False)
        >>> with FittedAlone(), pyro.get_param_store().scope():
        ...     value = pyro.param("weight", weight)
        ...     list(pyro.get_param_store()), value.requires_grad
        ([], False)
    """

    def _pyro_param(self, msg: Any) -> None:
        if msg["done"]:
            return
        store, name, initial = pyro.get_param_store(), msg["name"], _initial(msg)
        if isinstance(initial, nn.Parameter) and not initial.requires_grad:
            msg["value"], msg["done"] = initial, True
        elif name in store:
            # A PyroModule puts its constrained parameters there by itself.
            if not dict(store.named_parameters())[name].requires_grad:
                msg["value"], msg["done"] = store[name], True
                del store[name]
        elif isinstance(initial, Tensor) and not _own_leaf(initial):
            msg["args"] = (name, initial.detach().clone(), *msg["args"][2:])
            msg["kwargs"].pop("init_tensor", None)


class Kept(Messenger):
    """Has parameters be data, which stay as they begin: nothing fits them in this model.

    Args:
        values: Constrained, by name; of those that are given as tensors, these are taken.

    Example:
        >>> with FittedAlone(), pyro.get_param_store().scope(), Kept({"weight": torch.ones(1)}):
        ...     value = pyro.param("weight", lambda: torch.randn(1))
        ...     list(pyro.get_param_store()), value.item()
        ([], 1.0)
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def __enter__(self) -> Any:
        self._before = set(pyro.get_param_store())
        return super().__enter__()

    def _pyro_param(self, msg: Any) -> None:
        store, name, initial = pyro.get_param_store(), msg["name"], _initial(msg)
        if name not in self.values or msg["done"]:
            return
        msg["value"] = initial if isinstance(initial, Tensor) else self.values[name]
        msg["infer"][HELD] = msg["done"] = True
        if name in store and name not in self._before:  # by a PyroModule
            del store[name]


class Held(Messenger):
    """Fixes parameters at some values while a model runs, wherever the model reads them.

    A `PyroModule` and the layers of a network read their own tensors, whatever `pyro.param` gives
    them: these are replaced in each operation that they go into, and in distributions.

    Args:
        values: Constrained, by name.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def __enter__(self) -> Any:
        self._replaced = Replaced()
        self._replaced.__enter__()
        self._before = set(pyro.get_param_store())
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._replaced.__exit__(*error)

    def _pyro_param(self, msg: Any) -> None:
        store, name, initial = pyro.get_param_store(), msg["name"], _initial(msg)
        held = name in self.values
        if held and _own_leaf(initial):
            self._replaced.put(initial, self.values[name])
        if held or self._replaced.has(initial):
            msg["value"] = initial if self._replaced.has(initial) else self.values[name]
            msg["infer"][HELD] = msg["done"] = True
            if name in store and name not in self._before:  # by a PyroModule
                del store[name]

    def _pyro_sample(self, msg: Any) -> None:
        msg["value"], fn = self._replaced.of(msg["value"]), msg["fn"]
        while hasattr(fn, "__dict__"):  # some distributions keep a tensor as it was given
            for name, value in vars(fn).items():
                if self._replaced.has(value):
                    setattr(fn, name, self._replaced.of(value))
            fn = getattr(fn, "base_dist", None)


class Replaced(TorchFunctionMode):
    """Puts other tensors in the place of some in whatever operation these go into."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[int, tuple[Tensor, Tensor]] = {}

    def put(self, tensor: Tensor, value: Tensor) -> None:
        """Has a value in the place of a tensor."""
        self._values[id(tensor)] = tensor, value

    def has(self, each: Any) -> bool:
        """Whether it is one of the tensors."""
        return id(each) in self._values

    def of(self, each: Any) -> Any:
        """The same with the tensors replaced, in lists, tuples and dicts too."""
        if id(each) in self._values:
            return self._values[id(each)][1]
        if type(each) in (list, tuple):
            return type(each)(map(self.of, each))
        return {key: self.of(value) for key, value in each.items()} if type(each) is dict else each

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self._values and function not in ASKED:
            args, kwargs = self.of(args), self.of(kwargs or {})
        return function(*args, **(kwargs or {}))


def held(model: Callable[..., Any], values: Mapping[str, Tensor]) -> Callable[..., Any]:
    """A model with parameters fixed at some values; see `Held`.

    Example:
        >>> from pyro.nn import PyroModule
        >>> module = PyroModule()
        >>> module.layer = nn.Linear(1, 1, bias=False)
        >>> module.forward = lambda x: module.layer(x)
        >>> with FittedAlone(), pyro.get_param_store().scope():
        ...     held(module, {"layer$$$weight": torch.tensor([[2.0]])})(torch.ones(1)).item()
        2.0
    """
    return Held(values)(model)
