"""Many steps of a recorded run in one call of compiled code.

A recording is given its random numbers, the parameters and the rows, and is put with the rule of
the optimiser into a loop (`torch.while_loop`) that `torch.compile` turns into one function: Python
is entered once for some dozens of steps.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._python_dispatch import TorchDispatchMode

from elbowroom.inference.operations import READ, Operation, is_random, name_of
from elbowroom.inference.replay import Replay
from elbowroom.inference.stepping import FlatParameters, alike

NORMAL = ("normal_.default", "randn.default", "randn_like.default")
UNIFORM = ("rand.default", "rand_like.default", "uniform_.default")
LONGEST = 100
"""Steps of a loop."""
LARGE = 50_000
"""Parameters from which a step takes much longer than to enter Python, and is made in place."""


class NotCompilableError(Exception):
    """A run cannot be compiled; why not."""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What torch.compile says of its own ways is of no use to who fits a model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Drawn(TorchDispatchMode):
    """Keeps the random numbers that are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.values.append(found.clone())
        return found


class Given:
    """A recorded step as a function of the parameters, the rows and its random numbers.

    Attributes:
        drawn: The random numbers of one step.
        normal: Which of them are Normal; the others are uniform.

    Args:
        replay: The recording.
        parameters: That it reads.
        example: What it is called with.

    Raises:
        NotCompilableError: If it draws anything but Normal and uniform numbers.
    """

    def __init__(
        self, replay: Replay, parameters: Sequence[Tensor], example: Sequence[Tensor]
    ) -> None:
        self.replay, self.example = replay, example
        operations = replay.needed(replay.results)
        drawing = [each for each in operations if is_random(each)]
        noise = [each.outputs[0] for each in drawing]
        self.normal = [self._is_normal(each) for each in drawing]
        self.drawn = self.noise()
        slots = {id(value): index for index, value in replay.constants.items()}
        read = [slots.get(id(value)) for value in parameters]
        self._read = [i for i, slot in enumerate(read) if slot is not None]
        entries = [slot for slot in read if slot is not None]
        used = {index for operation in operations for index in operation.taken}.union(
            replay.results
        )
        constants = _apart({i: replay.constants[i] for i in used & set(replay.constants)})
        constants = {i: value for i, value in constants.items() if i not in entries}
        branches = [each for each in operations if each.function is READ]
        self.answers = [bool(each.arguments[1]) for each in branches]
        kept = [
            each for each in operations
            if not is_random(each) and each.function is not READ
            and not set(each.outputs).intersection(noise)
        ]  # fmt: skip
        results = [*replay.results, *(each.arguments[0].index for each in branches)]
        self._function = Replay(
            kept, constants, [*entries, *replay.entries, *noise], results, batched=False
        ).function()

    @staticmethod
    def _is_normal(operation: Operation) -> bool:
        name = name_of(operation)
        numbers = [x for x in operation.arguments[1:] if isinstance(x, (int, float))]
        standard = (0, 1) if name.endswith("_.default") else ()
        if name not in NORMAL + UNIFORM or tuple(numbers) not in ((), standard):
            raise NotCompilableError(
                f"{name.partition('.')[0]} draws random numbers of its own kind"
            )
        return name in NORMAL

    def noise(self) -> list[Tensor]:
        """The random numbers of one step, as the recording draws them."""
        with _Drawn() as drawn:
            self.replay(*self.example)
        return drawn.values

    def __call__(
        self, parameters: Sequence[Tensor], rows: Sequence[Tensor], noise: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The loss and the gradients, and whether each branch is the recorded one."""
        read = [parameters[i] for i in self._read]
        found = list(self._function(*read, *rows, *noise))
        count = len(found) - len(self.answers)
        right = [taken == answer for taken, answer in zip(found[count:], self.answers, strict=True)]
        return found[:count], right


def compile_steps(
    replay: Replay | None,
    parameters: FlatParameters,
    example: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None,
) -> tuple["Compiled | None", str | None]:
    """The steps of a run compiled, or why they are not; see `Compiled`.

    Args:
        replay: The recording, if there is one.
        parameters: That are optimised.
        example: The rows of a minibatch, if there are any.
        optimizer: Of torch, over the parameters' vector.
        clip_norm: The largest norm of a gradient.
    """
    if replay is None:
        return None, "they could not be recorded"
    tensors = [value for group in parameters.groups for value in group]
    try:
        with _silent():
            given = Given(replay, tensors, example)
            return Compiled(given, parameters, optimizer, clip_norm), None
    except NotCompilableError as error:
        return None, str(error)
    # It fails in as many ways as there are compilers, and the steps are run without.
    except Exception as error:
        return None, f"torch.compile failed ({type(error).__name__})"


def _anew(method: Any) -> Any:
    """A method as code of its own: `torch.compile` keeps no more than a few versions of one."""
    own = method.__func__
    function = FunctionType(own.__code__.replace(), own.__globals__, own.__name__)
    function.__kwdefaults__ = own.__kwdefaults__
    return MethodType(function, method.__self__)


def _repeat(going: Callable[..., Tensor], step: Callable[..., Any], carried: Any) -> Any:
    """What `while_loop` does, as it stands."""
    while going(*carried):
        carried = step(*carried)
    return carried


def _apart(constants: dict[int, Tensor]) -> dict[int, Tensor]:
    """Constants of which no two share their memory, as loops want them."""
    seen: set[int] = set()
    found = {}
    for index, value in constants.items():
        place = value.untyped_storage().data_ptr()
        found[index] = value.detach().clone() if place in seen else value.detach()
        seen.add(place)
    return found


class Adam:
    """One step of torch's Adam, or of its AdamW, as a function of its state.

    Args:
        options: Of the optimiser.
    """

    names = ("exp_avg", "exp_avg_sq")

    def __init__(self, options: dict[str, Any]) -> None:
        self.betas, self.epsilon = options["betas"], options["eps"]
        self.decay = options["weight_decay"]

    def numbers(self, rates: Tensor, times: Tensor) -> list[Tensor]:
        """What follows the rates and the numbers of the steps, (K,) each."""
        one, two = self.betas
        return [1 - rates * self.decay, rates / (1 - one**times), (1 - two**times).rsqrt()]

    def __call__(
        self, vector: Tensor, gradient: Tensor, state: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The parameters and the state after a step."""
        (one, two), (first, second), (left, rate, wider) = self.betas, state, numbers
        first = torch.lerp(first, gradient, 1 - one)
        second = two * second + (1 - two) * gradient * gradient
        move = rate * first / (second.sqrt() * wider + self.epsilon)
        return (vector * left if self.decay else vector) - move, (first, second)


class GradientDescent:
    """One step of torch's SGD.

    Args:
        options: Of the optimiser.
    """

    names = ()

    def __init__(self, options: dict[str, Any]) -> None:
        pass

    def numbers(self, rates: Tensor, times: Tensor) -> list[Tensor]:
        """What follows the rates and the numbers of the steps, (K,) each."""
        return [rates]

    def __call__(
        self, vector: Tensor, gradient: Tensor, state: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The parameters and the state after a step."""
        return vector - numbers[0] * gradient, ()


RULES: dict[str, Any] = {"Adam": Adam, "AdamW": Adam, "SGD": GradientDescent}
"""The optimisers that there are compiled."""


@dataclass(frozen=True)
class Steps:
    """What some steps in one call gave.

    Attributes:
        losses: Of each step that was made.
        start: (P,): the parameters before the first of them.
        sums: (P,) each, of a loop: the sums of their deviations from it, and of the squares.
        stopped: The random numbers of the first step that could not be made, if there is one: it is
            not finite, or takes another branch. It must be made with these, as it stands: with
            others, what is rare would be rarer.
    """

    losses: list[float]
    start: Tensor
    sums: tuple[Tensor, ...]
    stopped: list[Tensor] | None


class Compiled:
    """The steps of a recorded run, compiled: those of a small one in a loop.

    Args:
        given: The recorded step.
        parameters: That are optimised, all of one dtype on one device.
        optimizer: Of torch, over their vector.
        clip_norm: The largest norm of a gradient.

    Attributes:
        longest: Steps of a call, at most.

    Raises:
        NotCompilableError: If there are several vectors, the optimiser is none of `RULES`, or the
            compiled steps give other numbers.
    """

    def __init__(
        self,
        given: Given,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None = None,
    ) -> None:
        kind = type(optimizer).__name__
        if kind not in RULES:
            raise NotCompilableError(f"there is no compiled {kind}; there is {', '.join(RULES)}")
        if len(parameters.vectors) != 1:
            raise NotCompilableError("the parameters have several dtypes")
        (self.vector,) = parameters.vectors
        if any((each.dtype, each.device) != (self.vector.dtype, self.vector.device)
               for each in given.drawn):  # fmt: skip
            raise NotCompilableError("random numbers have another dtype than the parameters")
        self.given, self.clip_norm = given, clip_norm
        kinds = list(zip(given.normal, given.drawn, strict=True))
        self.normals = sum(each.numel() for normal, each in kinds if normal)
        self.uniforms = sum(each.numel() for normal, each in kinds if not normal)
        self.shapes = [value.shape for group in parameters.groups for value in group]
        self.update = RULES[kind](optimizer.param_groups[0])
        self.longest = LONGEST if parameters.count < LARGE else 1
        steps = self._loop if self.longest > 1 else self._single
        plain = partial(self._loop, repeat=_repeat) if self.longest > 1 else self._single
        options: Any = {
            "cpp_wrapper": self.vector.device.type == "cpu",
            "emulate_precision_casts": True,
        }
        self._steps: Callable[..., Any] = torch.compile(
            _anew(steps), fullgraph=True, dynamic=False, options=options
        )
        self._compare(plain)

    def _compare(self, plain: Callable[..., Any]) -> None:
        """Compares steps with the recording, and compiled steps with the same as they stand."""
        torch.manual_seed(0)
        noise = self.given.noise()
        torch.manual_seed(0)
        wanted = self.given.replay(*self.given.example)
        parts = self.vector.detach().split([prod(shape) for shape in self.shapes])
        values = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        same, _ = self.given(values, self.given.example, noise)
        if not all(map(alike, same, wanted)):
            raise NotCompilableError("they give other numbers from the same random ones")
        count = min(3, self.longest)
        rows = [list(self.given.example)] * count
        inputs = self._inputs(rows, [1e-3] * count, 0)
        found = []
        for function in (self._steps, plain):
            # Not from zeros, where Adam makes a whole step of the rounding of a small gradient.
            state = [torch.ones_like(self.vector) for _ in self.update.names]
            vector = self.vector.detach().clone()
            with torch.no_grad():
                _, losses, *_ = function(*inputs, vector, state)
            found.append([losses, vector, *state])
        if not all(alike(one, two) for one, two in zip(*found, strict=True)):
            raise NotCompilableError("compiled, they give other numbers")

    def _noise(self, normals: Tensor, uniforms: Tensor) -> list[Tensor]:
        """The random numbers of a step out of those of its kind in a row."""
        rest = {True: normals, False: uniforms}
        pieces = []
        for normal, each in zip(self.given.normal, self.given.drawn, strict=True):
            pieces.append(rest[normal][: each.numel()].view(each.shape))
            rest[normal] = rest[normal][each.numel() :]
        return pieces

    def _step(
        self, numbers: Sequence[Tensor], rows: Sequence[Tensor], normals: Tensor,
        uniforms: Tensor, vector: Tensor, state: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]:  # fmt: skip
        """Whether a step can be made, its loss, and the parameters and the state after it."""
        parts = vector.split([prod(shape) for shape in self.shapes])
        values = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        (loss, *gradients), answers = self.given(values, rows, self._noise(normals, uniforms))
        gradient = torch.cat([each.reshape(-1) for each in gradients])
        norm = torch.linalg.vector_norm(gradient)
        right = torch.isfinite(loss) & torch.isfinite(norm)
        for answer in answers:
            right = right & answer
        if self.clip_norm is not None:
            gradient = gradient * (self.clip_norm / norm).clamp(max=1.0)
        vector, state = self.update(vector, gradient, state, numbers)
        return right, loss.to(vector.dtype), vector, state

    def _single(
        self, count: Tensor, numbers: Sequence[Tensor], rows: Sequence[Tensor], normals: Tensor,
        uniforms: Tensor, vector: Tensor, state: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """One step in place, which does nothing where it cannot be made."""
        fine, loss, new, states = self._step(
            [each[0] for each in numbers], [each[0] for each in rows], normals[0], uniforms[0],
            vector, state,
        )  # fmt: skip
        for old, value in zip([vector, *state], [new, *states], strict=True):
            old.copy_(torch.where(fine, value, old))
        return fine.to(torch.int64), loss.reshape(1)

    def _loop(
        self, count: Tensor, numbers: Sequence[Tensor], rows: Sequence[Tensor], normals: Tensor,
        uniforms: Tensor, vector: Tensor, state: Sequence[Tensor], *,
        repeat: Callable[..., Any] = while_loop,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Steps up to the first that cannot be made; how many were."""
        start = vector.clone()
        positions = torch.arange(self.longest, device=start.device)

        def going(position: Tensor, right: Tensor, *carried: Any) -> Tensor:
            return (position < count) & right

        def step(
            position: Tensor, right: Tensor, losses: Tensor, total: Tensor, squares: Tensor,
            vector: Tensor, state: Sequence[Tensor],
        ) -> Any:  # fmt: skip
            at = position.reshape(1)
            numbers_now, rows_now = (
                [each.index_select(0, at)[0] for each in group] for group in (numbers, rows)
            )
            fine, loss, new, states = self._step(
                numbers_now, rows_now, normals.index_select(0, at)[0],
                uniforms.index_select(0, at)[0], vector, state,
            )  # fmt: skip
            deviation = torch.where(fine, new - start, 0.0)
            return (
                position + fine, fine, torch.where(positions == position, loss, losses),
                total + deviation, squares + deviation * deviation,
                torch.where(fine, new, vector),
                tuple(torch.where(fine, a, b) for a, b in zip(states, state, strict=True)),
            )  # fmt: skip

        zeros = torch.zeros(self.longest, dtype=start.dtype, device=start.device)
        right = torch.ones((), dtype=torch.bool, device=start.device)
        begin = torch.zeros((), dtype=torch.int64, device=start.device)
        made, _, losses, total, squares, after, states = repeat(
            going, step,
            (begin, right, zeros, torch.zeros_like(start), torch.zeros_like(start), start.clone(),
             tuple(each.clone() for each in state)),
        )  # fmt: skip
        for old, value in zip([vector, *state], [after, *states], strict=True):
            old.copy_(value)
        return made, losses, total, squares

    def _inputs(
        self, rows: Sequence[Sequence[Tensor]], rates: Sequence[float], begun: int
    ) -> list[Any]:
        """What steps are called with, filled up to the longest call."""
        count, vector = len(rates), self.vector
        times = 1.0 + begun + torch.arange(count, dtype=torch.float64)

        def filled(values: Tensor) -> Tensor:
            rest = values[:1].expand(self.longest - count, *values.shape[1:])
            return torch.cat([values, rest]) if len(rest) else values

        numbers = self.update.numbers(torch.tensor(rates, dtype=torch.float64), times)
        made: dict[str, Any] = {"dtype": vector.dtype, "device": vector.device}
        return [
            torch.tensor(count, device=vector.device),
            [filled(each).to(**made) for each in numbers],
            [filled(torch.stack(each)) for each in zip(*rows, strict=True)],
            filled(torch.randn(count, self.normals, **made)),
            filled(torch.rand(count, self.uniforms, **made)),
        ]

    def __call__(
        self,
        rows: Sequence[Sequence[Tensor]],
        rates: Sequence[float],
        optimizer: torch.optim.Optimizer,
    ) -> Steps:
        """Makes some steps, up to the first that cannot be made.

        Args:
            rows: Of each step, if it takes some.
            rates: The learning rate of each.
            optimizer: Whose state is used, and kept up.
        """
        kept = optimizer.state[self.vector]
        if self.update.names and not kept:
            kept["step"] = torch.tensor(0.0, dtype=torch.float32, device=self.vector.device)
            kept.update({name: torch.zeros_like(self.vector) for name in self.update.names})
        vector = self.vector.detach()
        start = vector.clone() if self.longest > 1 else vector
        inputs = self._inputs(rows, rates, int(kept["step"]) if kept else 0)
        with torch.no_grad():
            found, losses, *sums = self._steps(
                *inputs, vector, [kept[name] for name in self.update.names]
            )
        made, stopped = int(found), None
        if made < len(rates):
            normals, uniforms = inputs[-2:]
            stopped = self._noise(normals[made], uniforms[made])
        if kept:
            kept["step"] += made
        return Steps(losses[:made].tolist(), start, tuple(sums), stopped)
