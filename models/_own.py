"""A user's own Pyro function as a model: its arguments come from a dict or from columns by name."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from elbowroom.data.columns import category_levels
from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import DataError, ModelError, OptionError, shown
from elbowroom.models import Model, Prepared, Training
from elbowroom.models._columns import LISTED, codes


def own_model(function: Callable[..., Any], name: str | None = None) -> Model:
    """A declaration for a Pyro function or module that has none.

    A module is run by its `forward`, or by its `model` where it has no `forward`. A Gaussian
    process of `pyro.contrib.gp` has both, of which `model` is the model; its data are its own.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> own_model(model).prepare({"y": [1.0, 2.0]}, None, None).arguments
        {'y': tensor([1., 2.], dtype=torch.float64)}

    Raises:
        OptionError: For what is no function of a user's, with what to give.
    """
    _check_runs(function)
    label = name or str(getattr(function, "__name__", type(function).__name__))
    process = _gaussian_process(function)
    held = None if process is None else _held_data(process)
    if isinstance(function, nn.Module):
        function = _entry(function)

    def prepare(data: Any, options: Any, training: Training | None = None) -> Prepared:
        if training is not None and process is not None:
            raise ModelError(
                "the rows of a Gaussian process depend on each other, so new rows need the old "
                f"ones; run {type(process).__name__}.forward at the parameters of the fit."
            )
        coords: dict[str, Sequence[Any]] = {}
        levels: dict[str, list[Any]] = {}
        if isinstance(data, pd.DataFrame) and (name := _of_table(function, data)):
            coords = {"column": [str(column) for column in data.columns]}
            data = {name: numeric_columns(data, allow_constant=True).to_numpy("float64", copy=True)}
        elif isinstance(data, pd.DataFrame):
            source = data if training is None else training.table
            levels = _levels(function, source if isinstance(source, pd.DataFrame) else data)
            data = _columns_by_name(function, data, levels, partial=training is not None)
        return Prepared(
            arguments={key: _argument(key, value) for key, value in data.items()},
            coords={**coords, **levels},
            doubts=tuple(_coded(name, known) for name, known in levels.items()),
        )

    return Model(
        label, function, None, prepare, observed="", predicts="", dataset=held, verbs=("score",)
    )


def _check_runs(model: Any) -> None:
    """Sees that a model is something of a user's that can be run as one."""
    if isinstance(model, type):
        raise OptionError(
            f"'{model.__name__}' is a class: give an instance of it, as {model.__name__}(...), or "
            "a method of one."
        )
    if isinstance(model, torch.distributions.Distribution):
        raise OptionError(
            f"{shown(repr(model))} is a distribution, and no model: give a function that draws "
            "from it with pyro.sample."
        )
    if not callable(model) or inspect.isbuiltin(model):
        raise OptionError(
            f"{shown(repr(model))} is no model: give the name of one, FILE.py:FUNCTION, or a Pyro "
            "model function itself, not what it returns."
        )


def own_guide(guide: Callable[..., Any]) -> Callable[..., Any]:
    """A guide that is called as the model is, from one that may be a Gaussian process' own."""
    process = _gaussian_process(getattr(guide, "__self__", None))
    return guide if process is None else _with_data(process, guide)


def _gaussian_process(module: Any) -> Any | None:
    """The Gaussian process that a module is, if it is one of Pyro's."""
    # Whoever has one has imported it; to import it here would cost everybody else's time.
    pyros = sys.modules.get("pyro.contrib.gp.models.model")
    return module if pyros is not None and isinstance(module, pyros.GPModel) else None


def _entry(module: nn.Module) -> Callable[..., Any]:
    """The Pyro function that a module is fitted by."""
    model: Any = getattr(module, "model", None)
    if _gaussian_process(module) is not None:
        return _with_data(module, model)
    if type(module).forward is nn.Module.forward and callable(model):
        return model

    self = module  # so that what is said of its parts names them as its own code does

    @wraps(module.forward)
    def function(*args: Any, **arguments: Any) -> Any:
        return self(*args, **arguments)

    return function


def _held_data(process: Any) -> dict[str, torch.Tensor]:
    """The data that a Gaussian process holds; its inputs may be a latent site instead."""
    held = {name: vars(process).get(name) for name in ("X", "y")}
    return {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}


def _with_data(process: Any, method: Callable[[], Any]) -> Callable[..., Any]:
    """A method of a Gaussian process as a function of its data, which it holds again afterwards."""

    def function(**data: torch.Tensor) -> Any:
        before = {name: getattr(process, name) for name in data}
        try:
            for name, value in data.items():
                setattr(process, name, value)
            return method()
        finally:
            for name, value in before.items():
                setattr(process, name, value)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [inspect.Parameter(name, kind) for name in _held_data(process)]
    function.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    return function


def _levels(function: Callable[..., Any], table: pd.DataFrame) -> dict[str, list[Any]]:
    """The levels of the columns of categories that a model takes."""
    taken = [p.name for p in _named(function) if p.name in table.columns]
    found = {name: category_levels(table[name]) for name in taken}
    return {name: levels for name, levels in found.items() if levels is not None}


def _coded(name: str, levels: list[Any]) -> str:
    """How a column of categories was coded, as a sentence."""
    shown = ", ".join(f"{code} = {level}" for code, level in enumerate(levels[:LISTED]))
    more = ", …" if len(levels) > LISTED else ""
    return f"Column '{name}' has categories, which the model takes as codes: {shown}{more}."


def _of_table(function: Callable[..., Any], table: pd.DataFrame) -> str | None:
    """The argument that a table of several columns is: the only one, where none has its name."""
    needed = required(function)
    alone = len(needed) == 1 and not any(p.name in table.columns for p in _named(function))
    return needed[0] if alone and len(table.columns) > 1 else None


def _columns_by_name(
    function: Callable[..., Any],
    table: pd.DataFrame,
    levels: Mapping[str, list[Any]],
    partial: bool,
) -> Mapping[str, Any]:
    wanted = [p.name for p in _named(function) if p.default is p.empty or p.name in table.columns]
    if partial:
        wanted = [name for name in wanted if name in table.columns]
    if not wanted:
        raise DataError(
            "no argument of the model has the name of a column; give arguments and columns the "
            "same names, or give data as a dict."
        )
    table = align_columns(table, wanted)
    coded = {name: codes(table[name], levels[name]).numpy() for name in wanted if name in levels}
    table = table.assign(**coded)
    chosen = numeric_columns(table, allow_constant=True)
    # Whole numbers are kept whole: they are counts, or indices of groups.
    integers = {name for name in wanted if pd.api.types.is_integer_dtype(table[name])}
    return {
        name: chosen[name].to_numpy(dtype="int64" if name in integers else "float64", copy=True)
        for name in wanted
    }


def required(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a model cannot be run without.

    Example:
        >>> required(lambda x, y=None: None)
        ['x']
    """
    return [p.name for p in _named(function) if p.default is p.empty]


def unmatched(function: Callable[..., Any], names: Collection[str]) -> str:
    """What to do where the names of data are not those of a model's arguments; empty if they are.

    Example:
        >>> unmatched(lambda x: None, ["x"]), unmatched(lambda: None, ["y"])[:29]
        ('', "The model has no argument 'y'")
    """
    taken = inspect.signature(function).parameters.values()
    known = [p.name for p in _named(function)]
    any_name = any(p.kind is p.VAR_KEYWORD for p in taken)
    extra = [] if any_name else [name for name in names if name not in known]
    if extra:
        name = shown(extra[0])
        return (
            f"The model has no argument '{name}': add it to the function, or leave '{name}' out "
            "of the data."
        )
    lacking = [name for name in required(function) if name not in names]
    return f"The model takes '{lacking[0]}': add it to the data." if lacking else ""


def _named(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments that have names; those of `forward`, of a module."""
    called = function.forward if isinstance(function, torch.nn.Module) else function
    parameters = inspect.signature(called).parameters.values()
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _argument(name: str, value: Any) -> Any:
    # A tuple of named parts, such as torch's packed sequences, is what the model makes of it.
    plain = type(value) in (list, tuple)
    if plain or isinstance(value, (np.ndarray, np.generic, pd.Series)):
        try:
            array = np.array(value)
        except ValueError as error:
            raise DataError(
                f"data['{name}'] has rows of different lengths; pad them, or split it."
            ) from error
        if array.dtype.kind not in "biuf":
            raise DataError(f"data['{name}'] is not numeric; encode it as numbers.")
        value = torch.as_tensor(array)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise DataError(
            f"data['{name}'] requires a gradient, but data are not fitted: give its values with "
            ".detach(), or make it a parameter in the model with pyro.param."
        )
    if isinstance(value, torch.Tensor):
        value = value.clone()  # the user may change theirs after the fit
    return value


def load_function(path: str) -> Callable[..., Any]:
    """The function of `FILE.py:FUNCTION`, from the user's own file, which is run.

    Raises:
        OptionError: If the file or the function is not there.
        ModelError: If the file raises when it is run.
    """
    file, _, attribute = path.rpartition(":")
    try:
        there = Path(file).is_file()
    except OSError:  # its name is too long
        there = False
    if not there:
        raise OptionError(f"there is no file '{shown(file)}' for the model '{shown(path)}'.")
    specification = importlib.util.spec_from_file_location(Path(file).stem, file)
    if specification is None or specification.loader is None:
        raise OptionError(f"'{file}' is not a Python file; give FILE.py:FUNCTION.")
    module = importlib.util.module_from_spec(specification)
    sys.modules.setdefault(specification.name, module)
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises is theirs to read
        raise ModelError(f"'{file}' raised {type(error).__name__}: {error}") from error
    if not callable(getattr(module, attribute, None)):
        raise OptionError(f"'{file}' has no function '{attribute}'.")
    return getattr(module, attribute)
