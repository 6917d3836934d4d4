"""Many steps of a recorded run in one call of compiled code.

A recording is given its random numbers, the parameters and the rows, and is put with the rule of
the optimiser into a loop (`torch.while_loop`) that `torch.compile` turns into one function: Python
is entered once for some dozens of steps. Large steps are compiled alone, and made in place.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from operator import itemgetter
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._python_dispatch import TorchDispatchMode

from elbowroom.engines.svi.stepping import FlatParameters, alike
from elbowroom.errors import SignalError
from elbowroom.recording.operations import READ, Operation, is_random, name_of
from elbowroom.recording.replay import Replay

NORMAL = ("normal_.default", "randn.default", "randn_like.default")
UNIFORM = ("rand.default", "rand_like.default", "uniform_.default")


@dataclass(frozen=True)
class CompiledCalls:
    """How steps are compiled."""

    longest: int = 100
    """Steps of a compiled loop, at most."""
    few: int = 10
    """Steps of a call where each is compiled alone."""
    large: int = 50_000
    """Parameters from which a step takes much longer than to enter Python, and is made in place."""


CALLS = CompiledCalls()


class NotCompilableError(SignalError):
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
                f"{name.partition('.')[0]} draws random numbers in a way that cannot be compiled"
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
        return None, "the steps could not be recorded"
    tensors = [value for group in parameters.groups for value in group]
    try:
        with _silent():
            given = Given(replay, tensors, example)
            kind = Looped if parameters.count < CALLS.large else InPlace
            return kind(given, parameters, optimizer, clip_norm), None
    except NotCompilableError as error:
        return None, str(error)
    # It fails in as many ways as there are compilers, and the steps are run without.
    except Exception as error:
        return None, f"torch.compile failed ({type(error).__name__})"


def _anew(method: Any) -> Any:
    """A method as code of its own: `torch.compile` keeps no more than a few versions of one."""
    own = method.__func__
    code, defaults = own.__code__.replace(), own.__defaults__
    function = FunctionType(code, own.__globals__, own.__name__, defaults)
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


class Inputs(NamedTuple):
    """What a step takes, or each of several, with a leading dim for these.

    Attributes:
        numbers: Of the optimiser.
        rows: Of the minibatch.
        normals: All Normal random numbers, in a row.
        uniforms: All uniform ones.
    """

    numbers: list[Tensor]
    rows: list[Tensor]
    normals: Tensor
    uniforms: Tensor

    def each(self, changed: Callable[[Tensor], Tensor]) -> "Inputs":
        """Every tensor changed."""
        return Inputs(
            [changed(each) for each in self.numbers], [changed(each) for each in self.rows],
            changed(self.normals), changed(self.uniforms),
        )  # fmt: skip


@dataclass(frozen=True)
class Steps:
    """What some steps in one call gave.

    Attributes:
        losses: Of each step that was made.
        seen: Of a loop, (P,) each: the parameters before the first of them, the sum of the
            deviations from these, and that of the squares.
        stopped: The random numbers of the first step that could not be made, if there is one: it is
            not finite, or takes another branch. It must be made with these, as it stands: with
            others, what is rare would be rarer.
    """

    losses: list[float]
    seen: tuple[Tensor, ...]
    stopped: list[Tensor] | None


class Compiled:
    """The steps of a recorded run, compiled.

    Args:
        given: The recorded step.
        parameters: That are optimised, all of one dtype on one device.
        optimizer: Of torch, over their vector.
        clip_norm: The largest norm of a gradient.

    Attributes:
        longest: Steps of a call, at most.
        steps: What is compiled; given `repeat`, it runs as it stands.

    Raises:
        NotCompilableError: If there are several vectors, the optimiser is none of `RULES`, or the
            compiled steps give other numbers.
    """

    longest: int
    steps: Callable[..., Any]

    def __init__(
        self,
        given: Given,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None = None,
    ) -> None:
        kind = type(optimizer).__name__
        if kind not in RULES:
            raise NotCompilableError(f"only {', '.join(RULES)} can be compiled, not {kind}")
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
        self.sizes = [prod(shape) for shape in self.shapes]
        self.update = RULES[kind](optimizer.param_groups[0])
        options: Any = {
            "cpp_wrapper": self.vector.device.type == "cpu",
            "emulate_precision_casts": True,
        }
        self._steps: Callable[..., Any] = torch.compile(
            _anew(self.steps), fullgraph=True, dynamic=False, options=options
        )
        self._compare()

    def make(
        self,
        steps: Callable[..., Any],
        inputs: Inputs,
        whole: list[Tensor],
        after: Callable[[], None],
    ) -> tuple[list[float], tuple[Tensor, ...]]:
        """Makes steps of one call, by a function, on the parameters and the optimiser's state.

        Returns:
            The loss of each that was made, and what `Steps` holds of the parameters on the way.
        """
        raise NotImplementedError

    def _compare(self) -> None:
        """Compares steps with the recording, and compiled steps with the same as they stand."""
        torch.manual_seed(0)
        noise = self.given.noise()
        torch.manual_seed(0)
        wanted = self.given.replay(*self.given.example)
        parts = self.vector.detach().split(self.sizes)
        values = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        same, _ = self.given(values, self.given.example, noise)
        if not all(map(alike, same, wanted)):
            raise NotCompilableError("a recording gives other results from the same random numbers")
        inputs = self._inputs([list(self.given.example)] * 3, [1e-3] * 3, 0)
        found = []
        for steps in (self._steps, partial(self.steps, repeat=_repeat)):
            # Not from zeros, where Adam makes a whole step of the rounding of a small gradient.
            state = [torch.ones_like(self.vector) for _ in self.update.names]
            whole = [self.vector.detach().clone(), *state]
            with torch.no_grad():
                losses, _ = self.make(steps, inputs, whole, lambda: None)
            found.append([torch.tensor(losses), *whole])
        if not all(alike(one, two) for one, two in zip(*found, strict=True)):
            raise NotCompilableError("the compiled steps give other numbers")

    def _noise(self, normals: Tensor, uniforms: Tensor) -> list[Tensor]:
        """The random numbers of a step out of those of its kind in a row."""
        rest = {True: normals, False: uniforms}
        pieces = []
        for normal, each in zip(self.given.normal, self.given.drawn, strict=True):
            pieces.append(rest[normal][: each.numel()].view(each.shape))
            rest[normal] = rest[normal][each.numel() :]
        return pieces

    def gradient(
        self, inputs: Inputs, parts: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Whether a step can be made, its loss, and the gradients, flat as the parts are."""
        values = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        noise = self._noise(inputs.normals, inputs.uniforms)
        (loss, *found), answers = self.given(values, inputs.rows, noise)
        gradients = [each.reshape(-1) for each in found]
        norms = torch.stack([torch.linalg.vector_norm(each) for each in gradients])
        norm = torch.linalg.vector_norm(norms)
        right = torch.isfinite(loss) & torch.isfinite(norm)
        for answer in answers:
            right = right & answer
        if self.clip_norm is not None:
            share = (self.clip_norm / norm).clamp(max=1.0)
            gradients = [each * share for each in gradients]
        return right, loss.to(parts[0].dtype), gradients

    def _inputs(
        self, rows: Sequence[Sequence[Tensor]], rates: Sequence[float], begun: int
    ) -> Inputs:
        """What the steps of a call take."""
        count, vector = len(rates), self.vector
        times = 1.0 + begun + torch.arange(count, dtype=torch.float64)
        numbers = self.update.numbers(torch.tensor(rates, dtype=torch.float64), times)
        made: dict[str, Any] = {"dtype": vector.dtype, "device": vector.device}
        return Inputs(
            [each.to(**made) for each in numbers],
            [torch.stack(each) for each in zip(*rows, strict=True)],
            torch.randn(count, self.normals, **made),
            torch.rand(count, self.uniforms, **made),
        )

    def __call__(
        self,
        rows: Sequence[Sequence[Tensor]],
        rates: Sequence[float],
        optimizer: torch.optim.Optimizer,
        after: Callable[[], None] = lambda: None,
    ) -> Steps:
        """Makes some steps, up to the first that cannot be made.

        Args:
            rows: Of each step, if it takes some.
            rates: The learning rate of each.
            optimizer: Whose state is used, and kept up.
            after: Called after each step, unless what `Steps` holds tells of all of them.
        """
        kept = optimizer.state[self.vector]
        if self.update.names and not kept:
            kept["step"] = torch.tensor(0.0, dtype=torch.float32, device=self.vector.device)
            kept.update({name: torch.zeros_like(self.vector) for name in self.update.names})
        inputs = self._inputs(rows, rates, int(kept["step"]) if kept else 0)
        whole = [self.vector.detach(), *(kept[name] for name in self.update.names)]
        with torch.no_grad():
            losses, seen = self.make(self._steps, inputs, whole, after)
        made, stopped = len(losses), None
        if made < len(rates):
            stopped = self._noise(inputs.normals[made], inputs.uniforms[made])
        if kept:
            kept["step"] += made
        return Steps(losses, seen, stopped)


class Looped(Compiled):
    """A loop of small steps, in one call; see `Compiled`."""

    longest = CALLS.longest

    def make(
        self,
        steps: Callable[..., Any],
        inputs: Inputs,
        whole: list[Tensor],
        after: Callable[[], None],
    ) -> tuple[list[float], tuple[Tensor, ...]]:
        """Makes steps of one call, by a function, on the parameters and the optimiser's state."""
        count = len(inputs.normals)

        def filled(values: Tensor) -> Tensor:
            rest = values[:1].expand(self.longest - count, *values.shape[1:])
            return torch.cat([values, rest]) if len(rest) else values

        start = whole[0].clone()
        made, losses, *sums = steps(
            torch.tensor(count, device=start.device), inputs.each(filled), whole
        )
        return losses[: int(made)].tolist(), (start, *sums)

    def steps(
        self, count: Tensor, inputs: Inputs, whole: Sequence[Tensor],
        repeat: Callable[..., Any] = while_loop,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Steps up to the first that cannot be made; how many were."""
        start = whole[0].clone()
        positions = torch.arange(self.longest, device=start.device)

        def going(position: Tensor, right: Tensor, *carried: Any) -> Tensor:
            return (position < count) & right

        def step(
            position: Tensor, right: Tensor, losses: Tensor, total: Tensor, squares: Tensor,
            vector: Tensor, state: Sequence[Tensor],
        ) -> Any:  # fmt: skip
            at = position.reshape(1)
            now = inputs.each(lambda values: values.index_select(0, at)[0])
            fine, loss, gradients = self.gradient(now, vector.split(self.sizes))
            new, states = self.update(vector, torch.cat(gradients), state, now.numbers)
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
             tuple(each.clone() for each in whole[1:])),
        )  # fmt: skip
        for old, value in zip(whole, [after, *states], strict=True):
            old.copy_(value)
        return made, losses, total, squares


class InPlace(Compiled):
    """Large steps, each alone and its parameters part by part; see `Compiled`."""

    longest = CALLS.few

    def make(
        self,
        steps: Callable[..., Any],
        inputs: Inputs,
        whole: list[Tensor],
        after: Callable[[], None],
    ) -> tuple[list[float], tuple[Tensor, ...]]:
        """Makes steps of one call, by a function, on the parameters and the optimiser's state."""
        parts = [each.split(self.sizes) for each in whole]
        losses: list[float] = []
        for i in range(len(inputs.normals)):
            fine, loss = steps(inputs.each(itemgetter(i)), parts)
            if not fine:
                break
            losses.append(loss.item())
            after()
        return losses, ()

    def steps(
        self, inputs: Inputs, parts: Sequence[Sequence[Tensor]],
        repeat: Callable[..., Any] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One step, which does nothing where it cannot be made."""
        fine, loss, gradients = self.gradient(inputs, parts[0])
        for gradient, part, *state in zip(gradients, *parts, strict=True):
            new, states = self.update(part, gradient, state, inputs.numbers)
            for old, value in zip([part, *state], [new, *states], strict=True):
                old.copy_(torch.where(fine, value, old))
        return fine, loss
