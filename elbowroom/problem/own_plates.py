"""Plates that take rows at random by themselves: the model that is meant has all of the rows.

`pyro.plate("data", n, subsample_size=b)`, and random indices as `subsample=`, estimate the density
of all rows without bias, and a posterior is that of the whole density. So such a plate is given
all of its rows, or those of a minibatch that the fit asks for, whatever it would draw.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from elbowroom.errors import ElbowroomError, ModelError
from elbowroom.guides.space import sample_sites, takes_batches, trace_model
from elbowroom.problem.validation import check_shapes
from elbowroom.sizes import SIZES, numbers_in


@dataclass(frozen=True)
class Subsamples:
    """How rows that are taken at random are told from others."""

    runs: int = 3
    """In which indices, or densities, that are always the same are no random ones."""


SUBSAMPLES = Subsamples()
_USUAL = SubsampleMessenger._subsample
Plain = Callable[[int | None, Any], Any]
"""What Pyro's plate gives for a number of rows, and indices."""


@dataclass(frozen=True)
class OwnPlate:
    """A plate that takes some of its rows at random.

    Attributes:
        name: Of the plate.
        size: All of its rows.
        rows: How many it takes.
        given: Whether the model draws the indices, and gives them to the plate.
    """

    name: str
    size: int
    rows: int
    given: bool


@contextmanager
def _subsampling(take: Callable[..., Any]) -> Iterator[None]:
    """Has plates ask `take` for their rows; sessions take turns, so that it is nobody else's."""
    messenger: Any = SubsampleMessenger
    before = vars(messenger)["_subsample"]

    def asked(
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        subsample: Any = None,
        *where: Any,
        **named: Any,
    ) -> Any:
        def plain(wanted: int | None, rows: Any) -> Any:
            return _USUAL(name, size, wanted, rows, *where, **named)

        return take(plain, name, size, subsample_size, subsample)

    messenger._subsample = staticmethod(asked)
    try:
        yield
    finally:
        messenger._subsample = before


def own_plates(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[OwnPlate, ...]:
    """The plates of a model or guide that take some of their rows at random.

    Args:
        function: To be called in an isolated session.
        arguments: Its keyword arguments.

    Raises:
        ModelError: If it cannot be run.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     with pyro.plate("data", len(y), subsample_size=2) as rows:
        ...         pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[rows])
        >>> own_plates(model, {"y": torch.zeros(5)})
        (OwnPlate(name='data', size=5, rows=2, given=False),)
    """
    drawn: dict[str, OwnPlate] = {}
    given: dict[str, list[list[int]]] = {}

    def take(plain: Plain, name: str, size: int | None, wanted: int | None, rows: Any) -> Any:
        found = plain(wanted, rows)
        if size is not None and found[1] < size:
            drawn[name] = OwnPlate(name, size, found[1], rows is not None)
            if rows is not None:
                given.setdefault(name, []).append([int(row) for row in rows])
        return found

    for _ in range(SUBSAMPLES.runs):
        with torch.random.fork_rng(devices=[]), _subsampling(take):
            torch.seed()
            trace_model(function, arguments)
        if not given:
            break
    fixed = {name for name, rows in given.items() if all(each == rows[0] for each in rows)}
    return tuple(plate for name, plate in drawn.items() if name not in fixed)


class _Rows:
    """The rows of each plate in one run.

    Args:
        plates: That take rows at random.
        sizes: Rows of a minibatch by the plate's name; all of its rows elsewhere.
        any_rows: Whether it is all the same which rows are taken: then the first ones are.

    Attributes:
        as_drawn: Whether the indices that plates were given are the rows that they take.
    """

    def __init__(
        self, plates: Sequence[OwnPlate], sizes: Mapping[str, int], any_rows: bool = False
    ) -> None:
        self.plates = {plate.name: plate for plate in plates}
        self.sizes, self.any_rows, self.as_drawn = sizes, any_rows, True
        self._early: dict[str, Any] = {}

    def take(self, plain: Plain, name: str, size: int | None, wanted: Any, given: Any) -> Any:
        """What a plate asks for."""
        if size is None or not (name in self.plates or name in self.sizes):
            return plain(wanted, given)
        if self.any_rows:
            return plain(None, torch.arange(wanted if given is None else len(given)))
        found = self._early.pop(name, None)
        found = plain(self.sizes.get(name), None) if found is None else found
        if given is not None and not torch.equal(torch.as_tensor(given), found[2]):
            # Whoever indexes the data with them, rather than with what the plate gives.
            self.as_drawn = False
            if isinstance(given, Tensor):
                given.set_(found[2].to(given.dtype))
            elif isinstance(given, list):
                given[:] = found[2].tolist()
        return found

    def before(self, size: int) -> Tensor | None:
        """The rows of a plate that the model draws indices of so many rows for, if there is one."""
        given = [plate for plate in self.plates.values() if plate.given]
        plates = [plate for plate in given if plate.size == size] or given[: len(given) == 1]
        if not plates or size < 2:
            return None
        name = plates[0].name
        if name not in self._early:
            self._early[name] = _USUAL(name, size, self.sizes.get(name), None)
        return self._early[name][2]

    def drawing(self) -> Any:
        """A block in which row numbers that the model draws are those of its plate."""
        needed = any(plate.given for plate in self.plates.values()) and not self.any_rows
        return _Drawn(self) if needed else nullcontext()


class _Drawn(TorchFunctionMode):
    """Gives the rows of a plate where a model draws row numbers, or takes a part of them."""

    _parts: ClassVar[dict[Any, bool]] = {
        Tensor.__getitem__: False, torch.narrow: False, Tensor.narrow: False,
        torch.split: True, Tensor.split: True, torch.chunk: True, Tensor.chunk: True,
    }  # fmt: skip
    """Functions that take a part of a tensor, and whether they give several."""

    def __init__(self, rows: _Rows) -> None:
        super().__init__()
        self._rows, self._drawn = rows, dict[int, Tensor]()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        whole = self._drawn.get(id(args[0])) if function in self._parts and args else None
        if whole is not None:
            return (whole,) if self._parts[function] else whole
        size = _drawn_of(function, args, kwargs or {})
        found = None if size is None else self._rows.before(size)
        if found is None:
            return function(*args, **(kwargs or {}))
        self._drawn[id(found)] = found
        return found


def _drawn_of(function: Any, args: Any, kwargs: Any) -> int | None:
    """Of how many rows a function draws some, if that is what it does."""
    if function is torch.randperm:
        return int(args[0] if args else kwargs["n"])
    if function is torch.randint:
        numbers = [each for each in args if isinstance(each, int)]
        low = kwargs.get("low", numbers[0] if len(numbers) > 1 else 0)
        size = kwargs.get("size", args[-1] if args else ())
        return int(kwargs.get("high", numbers[-1])) if low == 0 and len(size) == 1 else None
    if function is torch.multinomial or function is Tensor.multinomial:
        weights = args[0] if args else kwargs["input"]
        return len(weights) if weights.dim() == 1 and bool((weights == weights[0]).all()) else None
    return None


def with_rows(
    function: Callable[..., Any],
    plates: Sequence[OwnPlate],
    minibatches: str | None = None,
    any_rows: bool = False,
) -> Callable[..., Any]:
    """A model or guide whose plates have all of their rows, or those of a minibatch.

    Args:
        function: The Pyro model or guide.
        plates: That take rows at random.
        minibatches: The plate that `batch_size` subsamples: the function then takes it.
        any_rows: Whether it is all the same which rows are taken.
    """

    @wraps(function)
    def whole(*args: Any, **arguments: Any) -> Any:
        size = None if minibatches is None else arguments.pop("batch_size", None)
        sizes = {} if size is None or minibatches is None else {minibatches: size}
        rows = _Rows(plates, sizes, any_rows)
        with _subsampling(rows.take), rows.drawing():
            return function(*args, **arguments)

    if minibatches is not None:
        signature = inspect.signature(function)
        others = {n: each for n, each in signature.parameters.items() if n != "batch_size"}
        kind = inspect.Parameter.KEYWORD_ONLY
        size = inspect.Parameter("batch_size", kind, default=None)
        parameters = sorted([*others.values(), size], key=lambda each: each.kind)
        whole.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return whole


def with_all_rows(
    model: Callable[..., Any], arguments: Mapping[str, Any], minibatches: bool = False
) -> tuple[Callable[..., Any], tuple[OwnPlate, ...]]:
    """A model whose plates have all of their rows, if they take some at random.

    Args:
        model: The Pyro model, to be called in an isolated session.
        arguments: Its keyword arguments.
        minibatches: Whether it is to take them, however small it is.

    Returns:
        The model, itself if nothing is random, and the plates. It takes `batch_size` for the
        largest of them where it can be run with some of its rows, unless these are few and have
        latents: then all latents are fitted together.

    Raises:
        ModelError: If its density depends on rows that it draws, and it cannot be run with all.
    """
    plates = own_plates(model, arguments)
    if not plates:
        return model, ()
    whole = with_rows(model, plates)
    try:
        # A plate may open others, each by a name of its own.
        while more := own_plates(whole, arguments):
            plates = (*plates, *more)
            whole = with_rows(model, plates)
        check_shapes(whole, arguments)
    except ElbowroomError as error:
        if _same_for_all_rows(model, arguments):
            # The data are a minibatch already.
            return with_rows(model, plates, any_rows=True), ()
        names = ", ".join(f"'{plate.name}'" for plate in plates)
        raise ModelError(
            f"the model draws the rows of the plate {names} at random, and cannot be run with all "
            f"of them: {error} Index the data by what the plate gives, as y[rows] in `with "
            "pyro.plate(name, size, subsample_size=...) as rows`."
        ) from error
    if takes_batches(model) and (
        "batch_size" in arguments
        or inspect.signature(model).parameters["batch_size"].default is None
    ):
        return whole, plates
    largest = max(plates, key=lambda plate: plate.size)
    few = not minibatches and numbers_in(arguments) < SIZES.arguments
    if few and 0 < _latents(whole, arguments, largest) <= SIZES.dense:
        return whole, plates
    if not _takes_some(model, arguments, plates, largest):
        return whole, plates
    return with_rows(model, plates, largest.name), plates


def _latents(model: Callable[..., Any], arguments: Mapping[str, Any], plate: OwnPlate) -> int:
    """The numbers of continuous latents in a plate."""
    return sum(
        node["value"].numel()
        for _, node in sample_sites(trace_model(model, arguments))
        if not node["is_observed"] and node["value"].is_floating_point()
        and any(frame.name == plate.name for frame in node["cond_indep_stack"])
    )  # fmt: skip


def _takes_some(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    plates: Sequence[OwnPlate],
    plate: OwnPlate,
) -> bool:
    """Whether a model can be run with some rows of a plate, and uses no others."""
    rows = _Rows(plates, {plate.name: 1})
    try:
        with torch.random.fork_rng(devices=[]), _subsampling(rows.take), rows.drawing():
            trace = trace_model(model, arguments)
    except ElbowroomError:
        return False
    frames = [f for _, node in sample_sites(trace) for f in node["cond_indep_stack"]]
    return rows.as_drawn and any(f.name == plate.name and f.vectorized for f in frames)


def _same_for_all_rows(model: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Whether a model's density is the same whatever rows its plates take."""
    with torch.random.fork_rng(devices=[]):
        values = {
            name: node["value"]
            for name, node in sample_sites(trace_model(model, arguments))
            if not node["is_observed"]
        }
        found = []
        for _ in range(SUBSAMPLES.runs):
            torch.seed()
            conditioned = poutine.condition(model, data=values)
            try:
                trace = poutine.trace(conditioned).get_trace(**arguments)
                found.append(float(trace.log_prob_sum()))
            except (RuntimeError, ValueError):
                return False
    return all(each == found[0] for each in found)
