"""One step of stochastic variational inference: the loss and its gradient, recorded if it can be.

All parameters are views of one flat vector, and so are their gradients, so that the optimiser, the
clipping and the bookkeeping see one tensor.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pyro.util
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from elbowroom import budget
from elbowroom.guides.space import FixedRows, Plate
from elbowroom.models._fresh import Fresh
from elbowroom.objectives import baselines
from elbowroom.objectives import warm_up as warming
from elbowroom.objectives.estimators import Objective
from elbowroom.problem.isolation import reseed
from elbowroom.recording.python_state import python_numbers
from elbowroom.recording.record import alike, record_step
from elbowroom.recording.replay import BranchError, Replay

ELEMENTWISE = (
    "ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop",
    "SGD",
)  # fmt: skip
"""Optimisers for which one flat vector is the same as its parts."""


KEEPS = "the model or the guide keeps numbers outside of tensors between runs"
LARGE = 10_000
"""Numbers of a parameter from which its gradient is computed in its place."""
TRIES = 20
"""Seeds at which a recording is tried, until it takes the recorded branch."""


class FlatParameters:
    """The optimised parameters as one vector for each dtype and device, mostly one.

    Attributes:
        named: Each parameter, a view of a vector; by its first name, if it has several.
        vectors: (P,), each with its gradient.
        parts: The gradient of each parameter, in the order of `groups`, views of those.
    """

    def __init__(self, named: dict[str, Tensor]) -> None:
        distinct = {id(value): name for name, value in reversed(named.items())}
        self.named = {
            name: value
            for name, value in named.items()
            if value.requires_grad and distinct[id(value)] == name
        }
        self.groups: list[list[Tensor]] = []
        self.vectors: list[torch.nn.Parameter] = []
        self.parts: list[Tensor] = []
        kinds = {(value.dtype, value.device) for value in self.named.values()}
        for kind in sorted(kinds, key=str):
            group = [each for each in self.named.values() if (each.dtype, each.device) == kind]
            whole = torch.cat([value.detach().reshape(-1) for value in group])
            vector = torch.nn.Parameter(whole)
            vector.grad = torch.zeros_like(whole)
            begin = 0
            for value in group:
                part = slice(begin, begin + value.numel())
                value.data = whole[part].view(value.shape)
                value.grad = vector.grad[part].view(value.shape)
                self.parts.append(value.grad)
                begin += value.numel()
            self.groups.append(group)
            self.vectors.append(vector)

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(vector.numel() for vector in self.vectors)

    @property
    def cuda(self) -> list[torch.device]:
        """The GPUs that they are on, whose random states are kept."""
        return [vector.device for vector in self.vectors if vector.device.type == "cuda"]

    def jitter(self) -> None:
        """Moves them all a little."""
        with torch.no_grad():
            for vector in self.vectors:
                vector.add_(1e-3 * (vector.abs() + 0.1) * torch.randn_like(vector))

    @property
    def gradients(self) -> list[Tensor]:
        """Of the loss, one for each vector."""
        return [vector.grad for vector in self.vectors if vector.grad is not None]

    def copy(self) -> list[Tensor]:
        """The values of all of them."""
        return [vector.detach().clone() for vector in self.vectors]

    def assign(self, values: list[Tensor]) -> None:
        """Fills them."""
        with torch.no_grad():
            for vector, value in zip(self.vectors, values, strict=True):
                vector.copy_(value)

    def release(self) -> None:
        """Gives every parameter a memory of its own again."""
        for value in self.named.values():
            value.data, value.grad = value.data.clone(), None


LAYERS = {
    getattr(functional, name)
    for name in (
        "linear", "conv1d", "conv2d", "conv3d",
        "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    )
}  # fmt: skip


class BFloat16Layers(TorchFunctionMode):
    """Has the layers of networks multiply in bfloat16, and all else in its own precision.

    Unlike under `torch.autocast`, what a layer gives is of single precision again: densities, and
    draws by their means and scales, have all their digits.

    Example:
        >>> weight, x = torch.ones(1, 2), torch.tensor([[1.0, 1e-3]])
        >>> with BFloat16Layers():
        ...     functional.linear(x, weight).item(), (x @ weight.T).item()
        (1.0, 1.0010000467300415)
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in LAYERS:
            return function(*args, **kwargs)
        whole = (args[0] if args else kwargs["input"]).dtype

        def cut(each: Any) -> Any:
            floating = isinstance(each, Tensor) and each.is_floating_point()
            return each.bfloat16() if floating else each

        found = function(*map(cut, args), **{name: cut(each) for name, each in kwargs.items()})
        return found.to(whole)


class Step:
    """The loss and its gradient at fresh noise, for some rows.

    The step is run twice, recorded, and compared with itself as it stands from the same random
    state; where it cannot be recorded, or differs, it is run as it stands.

    Attributes:
        recorded: Whether it is.
        replay: The recording, if it is.
        reason: Why it is not.
        branches: Steps that took another branch than the recorded one, and were run as they stand.
        memory: Names of what baselines keep from one recorded step to the next.

    Args:
        objective: The estimate of the ELBO.
        model: The Pyro model.
        guide: The guide.
        arguments: Keyword arguments of both.
        parameters: That are optimised.
        plate: The plate that minibatches subsample.
        size: Rows of a minibatch; all of them by default.
        autocast: Whether the layers of networks are taken in bfloat16.
        warm_up: Steps in which the divergence from the prior comes in.
    """

    def __init__(
        self,
        objective: Objective,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        arguments: dict[str, Any],
        parameters: FlatParameters,
        plate: Plate | None = None,
        size: int | None = None,
        autocast: bool = False,
        warm_up: int | None = None,
    ) -> None:
        self.autocast, self.warm_up = autocast, warm_up
        if warm_up is not None:
            warming.begin()
        self.objective, self.model, self.guide = objective, model, guide
        self.arguments, self.parameters = arguments, parameters
        self.plate, self.size = plate, size
        self._tensors = [value for group in parameters.groups for value in group]
        self.reason: str | None = None
        self.replay: Replay | None = None
        self.branches = 0
        self.memory: tuple[str, ...] = ()
        self._placed: set[int] = set()
        self._seed = 0x5EED_0000

    @property
    def recorded(self) -> bool:
        """Whether the step is replayed."""
        return self.replay is not None

    def _loss_and_surrogate(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._at(self.objective.loss_and_surrogate, rows)

    def _at(
        self, evaluate: Callable[..., Any], rows: Tensor | None, size: int | None = None
    ) -> Any:
        """What is evaluated of the model, the guide and the arguments for some rows."""
        with ExitStack() as around:
            if self.autocast:
                around.enter_context(BFloat16Layers())
            if torch.is_grad_enabled():  # else nothing is learned, as of held-out rows
                around.enter_context(Fresh())
                if self.warm_up is not None:
                    around.enter_context(warming.Weighed(warming.next_weight(self.warm_up)))
            if rows is None or self.plate is None:
                return evaluate(self.model, self.guide, self.arguments)
            with FixedRows({self.plate.name: rows}):
                given = {**self.arguments, "batch_size": size or self.size}
                return evaluate(self.model, self.guide, given)

    def _inputs(self, rows: Tensor | None) -> list[Tensor]:
        """What a step takes: its rows, if there are any, and what the baselines keep."""
        memory = baselines.kept() if self.memory else {}
        return [*([] if rows is None else [rows]), *(memory[name] for name in self.memory)]

    def _whole(self, *inputs: Tensor) -> list[Tensor]:
        """The loss, the gradient of each parameter, and what the baselines keep then."""
        count = len(inputs) - len(self.memory)
        baselines.keep(dict(zip(self.memory, inputs[count:], strict=True)))
        loss, surrogate = self._loss_and_surrogate(inputs[0] if count else None)
        gradients = torch.autograd.grad(surrogate, self._tensors, materialize_grads=True)
        after = baselines.kept() if self.memory else {}
        return [loss, *gradients, *(after[name] for name in self.memory)]

    def _random_states(self) -> list[tuple[Callable[[Tensor], None], Tensor]]:
        states: list[tuple[Callable[[Tensor], None], Tensor]] = [
            (torch.random.set_rng_state, torch.random.get_rng_state())
        ]
        for device in self.parameters.cuda:
            put = partial(torch.cuda.set_rng_state, device=device)
            states.append((put, torch.cuda.get_rng_state(device)))
        return states

    def _place(self, replay: Replay) -> None:
        """Has large gradients computed where they are wanted, which saves a pass over them."""
        parts = enumerate(self.parameters.parts, start=1)
        self._placed = replay.place({i: part for i, part in parts if part.numel() >= LARGE})

    def _put(self, found: list[Tensor]) -> None:
        """Fills the gradients of the vectors by those of the parameters."""
        if self._placed:
            pairs = enumerate(zip(self.parameters.parts, found, strict=True), start=1)
            for part, each in (pair for i, pair in pairs if i not in self._placed):
                part.copy_(each)
            return
        begin = 0
        for group, gradient in zip(self.parameters.groups, self.parameters.gradients, strict=True):
            parts = [each.reshape(-1) for each in found[begin : begin + len(group)]]
            torch.cat(parts, out=gradient)
            begin += len(group)

    def record(self, rows: Callable[[], Tensor] | None, pays_from: int = 0) -> None:
        """Records the step, for rows as `rows` draws them, and compares it with itself.

        Args:
            rows: Draws those of a step, if it has any.
            pays_from: Steps from which recording saves time: without time for so many, none is.
        """
        if is_validation_enabled():
            self.reason = "validation is on"
            return
        self.memory = tuple(baselines.kept())
        inputs = [self._inputs(None if rows is None else rows()) for _ in range(3)]
        values, memory = self.parameters.copy(), baselines.kept()
        numbers = python_numbers(self.model, self.guide)
        with torch.random.fork_rng(devices=self.parameters.cuda):
            try:
                began = time.perf_counter()
                with torch.random.fork_rng(devices=self.parameters.cuda):
                    self._whole(*inputs[0])
                if budget.left() < pays_from * (time.perf_counter() - began):
                    self.reason = "there is only time for a few of them"
                    return
                with _quiet():
                    replay = record_step(
                        self._whole, inputs[0], inputs[1], list(self.parameters.named.values()),
                        self.parameters.jitter,
                    )  # fmt: skip
                self.parameters.jitter()
                if python_numbers(self.model, self.guide) != numbers:
                    self.reason = KEEPS
                else:
                    self._place(replay)
                    if self._agrees(replay, inputs[2]):
                        self.replay = replay
                    else:
                        self.reason = "a recording of the steps gives other numbers"
            # A step fails to be recorded in as many ways as there are models, which then are run.
            except Exception as error:
                self.reason = f"the steps cannot be recorded ({type(error).__name__})"
            finally:
                self.parameters.assign(values)
                baselines.keep(memory)

    def _agrees(self, replay: Replay, inputs: list[Tensor]) -> bool:
        """Compares a replay and the step, at seeds that no model sets itself, for one branch."""
        for _ in range(TRIES):
            self._seed += 1
            reseed(self._seed)
            try:
                found = replay(*inputs)
            except BranchError:
                continue
            after = torch.random.get_rng_state()
            reseed(self._seed)
            expected = self._whole(*inputs)
            count = len(self._tensors)
            self._put(found[1 : count + 1])  # what the optimiser reads is compared
            given = [found[0], *self.parameters.parts, *found[count + 1 :]]
            close = all(alike(one, two) for one, two in zip(given, expected, strict=True))
            return close and torch.equal(after, torch.random.get_rng_state())
        return True  # every step takes another branch, and is run as it stands

    def holds(self, rows: Tensor | None) -> bool:
        """Compares the recording with the step as it stands once more; if it differs, gives it up.

        What a model keeps outside of tensors between its runs, no recording sees.
        """
        if self.replay is None:
            return True
        memory = baselines.kept()
        with torch.random.fork_rng(devices=self.parameters.cuda):
            same = self._agrees(self.replay, self._inputs(rows))
        baselines.keep(memory)
        if not same:
            self.give_up(KEEPS)
        return same

    def give_up(self, reason: str | None) -> None:
        """Runs the steps as they stand from now on."""
        self.replay, self.reason = None, reason

    def loss(self, rows: Tensor | None, seed: int) -> float:
        """Minus what is maximised, at the noise of a seed."""
        size = None if rows is None else len(rows)
        fork = torch.random.fork_rng(devices=self.parameters.cuda)
        with _unwarned(), fork, torch.no_grad():
            reseed(seed)
            try:
                return -float(self._at(self.objective.goal, rows, size))
            except torch.linalg.LinAlgError:
                return math.inf

    def __call__(self, rows: Tensor | None = None) -> float:
        """The loss; its gradient is put into the parameters'.

        Where a matrix cannot be factorised the loss is infinite: such a step is left out.
        """
        if self.replay is not None:
            states = self._random_states() if self.replay.branches else []
            try:
                loss, *found = self.replay(*self._inputs(rows))
            except torch.linalg.LinAlgError:
                return math.inf
            except BranchError:  # this step is run as it stands, with the same noise
                self.branches += 1
                for restore, state in states:
                    restore(state)
            else:
                count = len(self._tensors)
                self._put(found[:count])
                value = loss.item()
                if self.memory and math.isfinite(value):
                    baselines.keep(dict(zip(self.memory, found[count:], strict=True)))
                return value
        return self.as_it_stands(rows)

    def as_it_stands(self, rows: Tensor | None = None) -> float:
        """The same without the recording."""
        for gradient in self.parameters.gradients:
            gradient.zero_()
        memory = baselines.kept()
        with _unwarned():
            try:
                loss, surrogate = self._loss_and_surrogate(rows)
                if surrogate.requires_grad:
                    surrogate.backward()
                value = float(loss)
            except torch.linalg.LinAlgError:
                value = math.inf
        if not math.isfinite(value):  # it would never be again
            baselines.keep(memory)
        return value


@contextmanager
def _unwarned() -> Iterator[None]:
    """Pyro warns of what is not a number; a run counts it, and goes on without it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Pyro's own looks for NaN read numbers out of tensors, which no recording follows."""
    looked = pyro.util.torch_isnan
    pyro.util.torch_isnan = lambda value: False  # type: ignore[assignment]
    try:
        yield
    finally:
        pyro.util.torch_isnan = looked
