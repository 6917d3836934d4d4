"""A model's log density over its flat unconstrained vector, as one recorded function.

Discrete sites are summed out and the Jacobians of the changes of coordinates are included. The
model is run twice to record the operations of its log density and gradient, which are then
replayed for batches of points at a small part of the cost of running the model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.overrides import TorchFunctionMode

from elbowroom import budget
from elbowroom.density.alike_rows import kinds_of_rows
from elbowroom.density.branches import Branch
from elbowroom.errors import ModelError, users_code
from elbowroom.guides.parameters import held
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.batchable import Batchable
from elbowroom.problem.informed import Shares
from elbowroom.problem.leaves import leaves
from elbowroom.problem.precision import MIXED
from elbowroom.problem.score import score
from elbowroom.problem.unseen import at_rest
from elbowroom.recording.kernel.switching import SwitchingReplay
from elbowroom.recording.record import BATCHES, record
from elbowroom.sizes import SIZES, numbers_in


@dataclass(frozen=True)
class Batching:
    """How a density is evaluated at many points."""

    affordable: int = 400_000_000
    """Numbers in all evaluations of a sample, at most: a few seconds' work."""
    one_by_one: int = 1_000_000
    """The work of an evaluation that runs the model itself, in the numbers of a recorded one."""
    largest: int = 4_000_000
    """Numbers of one operation on a batch, at most: it bounds the memory of intermediate values."""
    most: int = 1024
    """Points of a batch, at most."""
    wide: int = 24
    """How many times as wide as one of a row the widest operation may be: where a loop's turns are
    done at once, few operations are, and calls of the others for fewer points would cost more."""
    unsteady: float = 0.5
    """Nats by which a value that has lost its digits jumps."""
    along: int = 32
    """Places on the way to it at which values are compared."""
    agreement: float = 1e-8
    """The largest relative difference between the recorded and the model's own values."""
    agreement_in_single: float = 1e-5
    """The same where a part of it, such as a constant of the model, has the digits of float32."""


BATCHING = Batching()


@contextmanager
def _evaluated() -> Iterator[None]:
    """Says why a log density cannot be evaluated, and what to do where that is its type."""
    try:
        with users_code("the model's log density cannot be evaluated", ModelError):
            yield
    except ModelError as error:
        if not MIXED.search(str(error.__cause__)):
            raise
        raise ModelError(
            f"{error}; log densities are evaluated in float64: convert networks with "
            "network.double(), and fit with --dtype float64."
        ) from error


class _Singles(TorchFunctionMode):
    """Sees whether something is computed in float32.

    Attributes:
        seen: Whether it is.
    """

    seen = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        self.seen |= isinstance(found, Tensor) and found.dtype == torch.float32
        return found


class Density:
    """The log density of the flat unconstrained vector, and its gradient.

    All numbers are float64. Points where the model gives NaN, or cannot factorise a matrix, have
    log density minus infinity.

    Attributes:
        dimension: Of the vector, D.
        how: "recorded"; "batched", if the model could not be recorded but can be batched; "one by
            one", if it can be neither.
        unsteady: Points that were found to have a value without digits.
        evaluations: Points at which the gradient or the value was taken.
        work: Numbers that the operations of one gradient give: about as many nanoseconds.
        slope_error: The largest difference of the gradient from differences of the value in random
            directions, relative to its size; 0 where there is no value to compare with.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments, their numbers in float64 on the CPU.
        space: Its latent space.
        parameters: Values of its point parameters, constrained, if it has any.
        with_parameters: Whether they are coordinates of the vector, after those of the latent
            sites, without the Jacobians of their changes of coordinates.
        branch: The term that stands for the whole of a density that is a sum; see
            `elbowroom.density.branches`.
        shares: Those of the model's sites that may be changed: the recording takes them as inputs.

    Raises:
        ModelError: If two runs of the model at one point differ, since it draws random numbers.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> arguments = {"y": torch.tensor(2.0, dtype=torch.float64)}
        >>> density = Density(model, arguments, LatentSpace.of(model, arguments))
        >>> values, gradients = density.value_and_gradient(np.array([[1.0], [0.0]]))
        >>> values.round(3), gradients
        (array([-2.838, -3.838]), array([[0.],
               [2.]]))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        arguments: Mapping[str, Any],
        space: LatentSpace,
        parameters: Mapping[str, Tensor] | None = None,
        with_parameters: bool = False,
        branch: int | None = None,
        shares: Shares | None = None,
    ) -> None:
        self.branch, self.shares = branch, shares
        self.model, self.arguments, self.space = model, arguments, space
        self.with_parameters = with_parameters
        self._holds = bool(parameters) or with_parameters
        if parameters:
            self.model = held(model, parameters)
        self.dimension = space.dimension + (space.parameters.size if with_parameters else 0)
        self.evaluations = self.unsteady = 0
        numbers = numbers_in(arguments)
        self.width = max([1, space.dimension, *self._widths(numbers)])
        self.work, self._matrix = BATCHING.one_by_one, 0
        self.how, self._function = self._prepared()
        self.slope_error = self._slope_error()

    def _widths(self, numbers: int) -> list[int]:
        """Numbers of one operation at one point, as far as they can be told beforehand."""
        sizes = [plate.size for plates in self.space.observed_plates.values() for plate in plates]
        return sizes or [numbers]

    def __call__(self, u: Tensor) -> Tensor:
        """The log density at one point by the model itself, (D,) to ()."""
        model = self.model
        if self.with_parameters:
            u, beside = u[: self.space.dimension], u[self.space.dimension :]
            model = held(model, self.space.parameters.constrained(beside))
        parts = self.space.split(u)
        values = {site.name: site.transform(parts[site.name]) for site in self.space.sites}
        with nullcontext() if self.branch is None else Branch(self.branch), at_rest():
            total = score(model, self.arguments, values, self.space).log_joint
        for site in self.space.sites:
            total = total + site.log_abs_det_jacobian(parts[site.name], values[site.name]).sum()
        return total

    def branches(self) -> int:
        """The terms of the largest sum that the density is made of; 0 if it is none."""
        with Branch(None) as seen, torch.no_grad():
            self(torch.zeros(self.dimension, dtype=torch.float64))
        return seen.terms

    def _given(self, inputs: Tensor) -> tuple[tuple[Tensor, ...], Callable[..., Tensor]]:
        """The vectors among inputs, (n, D), and the density of one, with what it follows beside."""
        shares = self.shares
        if shares is None:
            return (inputs,), self

        def density(u: Tensor, values: Tensor) -> Tensor:
            with shares.given(values):
                return self(u)

        return inputs.split([self.dimension, len(shares.values)], dim=-1), density

    def _batched(self, inputs: Tensor) -> Any:
        vectors, density = self._given(inputs)
        with Batchable():
            gradients, values = vmap(grad_and_value(density))(*vectors)
        return values, gradients

    def _filled(self, inputs: Tensor) -> Any:
        """The same for a model that fills tensors in place."""
        vectors, density = self._given(inputs)

        def filled(u: Tensor, *beside: Tensor) -> Tensor:
            with Batchable(torch.zeros_like(u[0])):
                return density(u, *beside)

        gradients, values = vmap(grad_and_value(filled))(*vectors)
        return values, gradients

    def _one_by_one(self, inputs: Tensor) -> Any:
        values, gradients = [], []
        (points, *beside), density = self._given(inputs)
        for point, *others in zip(points, *beside, strict=True):
            budget.check()
            with torch.enable_grad():
                u = point.clone().requires_grad_()
                try:
                    value = density(u, *others)
                    gradient = torch.zeros_like(u)
                    if value.requires_grad:
                        (gradient,) = torch.autograd.grad(value, u, materialize_grads=True)
                except torch.linalg.LinAlgError:
                    value, gradient = u.new_tensor(torch.nan), torch.full_like(u, torch.nan)
            values.append(value.detach())
            gradients.append(gradient)
        return torch.stack(values), torch.stack(gradients)

    def _prepared(self) -> tuple[str, Callable[..., Any]]:
        generator = torch.Generator().manual_seed(0)
        count = sum(BATCHES)
        points = torch.randn(count + 2, self.dimension, generator=generator, dtype=torch.float64)
        points = 0.3 * points
        if self.shares is not None:
            size = (len(points), len(self.shares.values))
            shares = torch.rand(size, generator=generator, dtype=torch.float64)
            points = torch.cat([points, shares], dim=1)
        probes = points[count:]
        with _evaluated():
            with _Singles() as singles:
                expected = self._one_by_one(probes)
            self._check_held(probes[0, : self.dimension])
        near = BATCHING.agreement_in_single if singles.seen else BATCHING.agreement
        if not _agree(self._one_by_one(probes[:1]), [each[:1] for each in expected], near):
            raise ModelError(
                "the model's log density is random: two runs at the same point differ. Draw "
                "random numbers only with pyro.sample; for minibatches, give the model an argument "
                "batch_size, and the plate of the rows subsample_size=batch_size."
            )
        # Recording and batching fail in as many ways as there are models, which then are run.
        batched = (self._batched, self._filled)
        kinds = self._of_kinds(
            points * torch.where(torch.arange(points.shape[1]) < self.dimension, 3, 1)
        )
        if kinds is not None:
            return "recorded", kinds
        for function in batched:
            try:
                recorded = record(function, points[:count])
                if _agree(recorded(probes), expected, near):
                    self.work = recorded.numbers
                    self.width = max(self.width, recorded.widest // BATCHING.wide)
                    self._matrix = recorded.matrix
                    return "recorded", SwitchingReplay(recorded, probes)
            except Exception:
                continue
        for function in batched:
            try:
                if _agree(function(probes), expected, near):
                    return "batched", function
            except Exception:
                continue
        return "one by one", self._one_by_one

    def _of_kinds(self, points: Tensor) -> Callable[..., Any] | None:
        """The density by the kinds of the rows, recorded; None where it is not the model's.

        Args:
            points: At which it has to have the model's values and gradients.
        """
        kinds = kinds_of_rows(self.model, self.arguments, self.space)
        if kinds is None or self.branch is not None:
            return None
        whole = vars(self).copy()
        # It fails in as many ways as there are models, whose rows then are taken one by one.
        try:
            expected = self._one_by_one(points)
            self.model, self.arguments, count = kinds
            recorded = record(self._batched, points[: sum(BATCHES)])
            if _agree(recorded(points), expected, BATCHING.agreement):
                self.work, self.width = recorded.numbers, max(1, self.space.dimension, count)
                return SwitchingReplay(recorded, points[-2:])
        except Exception:
            return None
        finally:
            self.model, self.arguments = whole["model"], whole["arguments"]
        return None

    def _check_held(self, point: Tensor) -> None:
        """Sees that no network is left whose own tensors went in where others were given."""
        with suppress(torch.linalg.LinAlgError), torch.enable_grad():
            for leaf in leaves(self(point)):
                if self._holds and isinstance(leaf, nn.Parameter):
                    raise ModelError(
                        f"a parameter of shape {tuple(leaf.shape)} is used before it is "
                        "registered with pyro.param or pyro.module, or inside torch.jit, which "
                        "hides it. Register it at the beginning of the model, or fit with "
                        "--engine svi."
                    )

    def _slope_error(self) -> float:
        random = np.random.default_rng(0)
        # Long steps bend, short ones drown in rounding: one of them shows the slope.
        sizes = np.array([1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
        worst = 0.0
        for point in 0.3 * random.standard_normal((2, self.dimension)):
            _, gradient = self.at(point)
            direction = random.standard_normal(self.dimension)
            scale = np.abs(gradient * direction).max(initial=0.0)
            moves = sizes[:, None] * direction
            with np.errstate(invalid="ignore"):
                slopes = (self.value(point + moves) - self.value(point - moves)) / (2 * sizes)
                errors = np.abs(slopes - gradient @ direction) / (scale if scale else 1.0)
            errors = errors[np.isfinite(errors)]
            if errors.size:
                worst = max(worst, float(errors.min()))
        return worst

    @property
    def note(self) -> str | None:
        """What a user should know of how the density is evaluated."""
        if self.how == "recorded" and self.unsteady:
            return (
                f"at {self.unsteady} draws the model's log density was a difference of huge "
                "numbers, and had lost its precision; these draws were left out."
            )
        if self.how == "recorded":
            return None
        reason = "its operations depend on the values of its sites or cannot be batched"
        return f"the model could not be recorded, so the fit was slower: {reason} ({self.how})."

    def affordable(self, wanted: int, least: int) -> int:
        """As many points of those wanted as can be evaluated in a few seconds, but some."""
        return min(wanted, max(least, BATCHING.affordable // self.width))

    @property
    def batch(self) -> int:
        """The number of points of which a recording is evaluated at once."""
        # Of the factors of matrices, one of each point is in use at a time.
        width = max(self.width, self._matrix)
        return max(1, min(BATCHING.most, max(SIZES.cache // width, 4), BATCHING.largest // width))

    def value_and_gradient(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density and gradient at each row of `points`, (n, D): (n,) and (n, D)."""
        parts = [self._evaluate(chunk) for chunk in self._chunks(points)]
        # A batch may lie column by column, and samplers take each point's numbers side by side.
        values, gradients = (
            np.ascontiguousarray(each[0] if len(each) == 1 else np.concatenate(each))
            for each in zip(*parts, strict=True)
        )
        return np.where(np.isnan(values), -np.inf, values), gradients

    def expect(self, calls: int, points: int) -> None:
        """Says that so many calls at so many points will come, which is worth preparing for."""
        if isinstance(self._function, SwitchingReplay):
            chunks = -(-points // self.batch)
            self._function.expect(calls * chunks, -(-points // chunks))

    def at(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Log density and gradient at one point, (D,): a number and (D,)."""
        values, gradients = self.value_and_gradient(point[None])
        return float(values[0]), gradients[0]

    def value(self, points: np.ndarray) -> np.ndarray:
        """Log density at each row of `points`, (n, D) to (n,)."""
        parts = [self._evaluate(chunk, gradient=False)[0] for chunk in self._chunks(points)]
        values = np.concatenate(parts)
        return np.where(np.isnan(values), -np.inf, values)

    def steady(self, points: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Whether the log density keeps its digits from a centre, (D,), to points, (n, D): (n,).

        Far out it may be a difference of huge numbers: it jumps by more than a nat where its
        argument hardly moves, and beyond is a constant.
        """
        if not len(points):
            return np.zeros(0, dtype=bool)
        shares = np.linspace(0.0, 1.0, BATCHING.along + 1)[1:, None, None]
        way = centre + shares * (points - centre)  # (`BATCHING.along`, n, D)
        moves = 1e-10 * (1 + np.abs(way))
        values = self.value(np.concatenate([way - moves, way + moves]).reshape(-1, self.dimension))
        behind, ahead = values.reshape(2, BATCHING.along, len(points))
        with np.errstate(invalid="ignore"):
            found = ~(np.abs(ahead - behind) > BATCHING.unsteady).any(0)
        self.unsteady += int((~found).sum())
        return found

    @property
    def at_once(self) -> int:
        """The number of points that are evaluated at once from now on: more by machine code."""
        if not isinstance(self._function, SwitchingReplay) or self._function.kernel is None:
            return self.batch
        # It keeps the intermediate values of a few points whatever their number.
        return max(1, min(BATCHING.most, BATCHING.largest // self.dimension))

    def _chunks(self, points: np.ndarray) -> Iterator[np.ndarray]:
        most = self.at_once
        # Even ones: a small one costs nearly as much as a whole one.
        size = -(-len(points) // max(1, -(-len(points) // most))) if len(points) else 1
        for i in range(0, len(points), size):
            budget.check()
            chunk = points[i : i + size]
            self.evaluations += len(chunk)
            yield chunk

    def _evaluate(self, points: np.ndarray, gradient: bool = True) -> list[np.ndarray]:
        batch = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float64))
        if self.shares is not None:
            batch = torch.cat([batch, self.shares.values.expand(len(batch), -1)], dim=1)
        try:
            if self.how == "recorded":
                found = self._function(batch, outputs=None if gradient else (0,))
            else:
                found = self._function(batch)
        except torch.linalg.LinAlgError:
            found = self._one_by_one(batch)
        return [each.detach().numpy() for each in found]

    def constrained(self, points: np.ndarray) -> dict[str, Tensor]:
        """The sites' values at each row of `points`, each (n, ...)."""
        kept = points[:, : self.space.dimension]
        flat = torch.from_numpy(np.ascontiguousarray(kept, dtype=np.float64))
        return vmap(self.space.constrain)(flat)


def _agree(found: Any, expected: Any, near: float) -> bool:
    return all(
        torch.allclose(one, two, rtol=near, atol=near, equal_nan=True)
        for one, two in zip(found, expected, strict=True)
    )
