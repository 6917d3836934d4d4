"""The shared SVI runner: any model, guide and objective; it never loses what it has fitted."""

import contextlib
import math
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import field
from inspect import signature
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from elbowroom.errors import ModelError, OptionError, unknown, users_code
from elbowroom.guides.space import Plate
from elbowroom.inference.estimators import OBJECTIVES, Objective
from elbowroom.inference.failure import culprit
from elbowroom.inference.stepping import ELEMENTWISE, FlatParameters, Step
from elbowroom.inference.stopping import trend

CUT = 0.25
"""What the plateau schedule cuts the learning rate to when the ELBO is first flat."""
AVERAGED_STEPS = 1500
"""The fewest steps after the cut, whose parameters are averaged.

In whitened coordinates the mean of T of them is about 1/√T posterior standard deviations off,
whatever the rate (Polyak and Juditsky, 1992, "Acceleration of stochastic approximation by
averaging").
"""
MAXIMUM_STEPS = 10_000
"""Where the plateau schedule gives up, unless `steps` or `epochs` say otherwise."""
RECORDED_FROM = 100
"""Steps from which it is worth while to record one."""
UNUSABLE_STEPS = 5
"""Steps in a row with a non-finite ELBO or gradient, after which a run goes back."""
RETURNS = 4
"""Times that it goes back to parameters that were good, at half the rate, before it ends."""


@dataclass(frozen=True)
class Settings:
    """Settings of a fit; `restarts`, `fixed_draws` and `correlated` are not of `svi` alone."""

    steps: Annotated[
        int | None, Field(ge=1, description="optimiser steps; by default until the ELBO is flat")
    ] = None
    epochs: Annotated[
        int | None, Field(ge=1, description="passes over the rows, instead of --steps")
    ] = None
    batch_size: Annotated[
        int | None, Field(ge=1, description="rows of a minibatch; by default all of them")
    ] = None
    learning_rate: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="of the first step")
    ] = 0.02
    optimizer: Annotated[str, Field(description="any class of torch.optim")] = "Adam"
    schedule: Annotated[
        Literal["plateau", "constant", "cosine"],
        Field(description="plateau: a quarter once the ELBO is flat, and the rest averaged"),
    ] = "plateau"
    clip_norm: Annotated[
        float | None, Field(gt=0, description="largest norm of the gradient; by default any")
    ] = None
    particles: Annotated[int, Field(ge=1, description="draws in each estimate of the ELBO")] = 1
    elbo: Annotated[
        str | None, Field(description="trace, trace_graph, trace_enum or trace_mean_field")
    ] = None
    restarts: Annotated[int, Field(ge=1, description="starts to choose the best from")] = 8
    fixed_draws: Annotated[
        int | None, Field(ge=4, description="draws of the ELBO of the engine of that name")
    ] = None
    correlated: Annotated[
        str | None,
        Field(description="sites, by commas, whose covariance a model of over 2,000 latents gets"),
    ] = None
    device: Annotated[str, Field(description="auto, cpu, cuda or mps")] = "auto"
    dtype: Annotated[Literal["float64", "float32"], Field(description="of all numbers")] = "float64"

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise OptionError("--steps and --epochs both set the length of the run; give one.")
        optimizer_class(self.optimizer)
        if self.elbo is not None and self.elbo not in OBJECTIVES:
            raise unknown("objective", self.elbo, OBJECTIVES)


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class Trained:
    """How a run of the optimiser went.

    Attributes:
        status: "converged", "budget", "interrupted", "diverged" or "exact" (nothing to optimise).
        reason: The same as a sentence.
        elbo_history: An estimate for each step, in nats.
        learning_rates: Of each step.
        skipped: Steps left out for a non-finite ELBO or gradient.
        seconds: Wall time.
        parameters: The number of optimised numbers.
        eager: Why the steps were run as they stand, if they were not recorded.
    """

    status: str
    reason: str
    elbo_history: np.ndarray = field(repr=False)
    learning_rates: np.ndarray = field(repr=False)
    skipped: int
    seconds: float
    parameters: int
    eager: str | None = None

    @property
    def converged(self) -> bool:
        """Whether the optimum was reached as far as the noise allows to tell."""
        return self.status in ("converged", "exact")


def optimizer_class(name: str) -> Any:
    """A class of torch.optim by its name.

    Raises:
        OptionError: If there is none, or it wants more than a gradient.
    """
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value not in (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    }
    if name not in known:
        raise unknown("optimizer", name, known)
    return known[name]


def _minibatches(rows: int, size: int) -> Iterator[Tensor]:
    """Rows without replacement, shuffled anew for each epoch; a last incomplete batch is left."""
    while True:
        order = torch.randperm(rows)
        yield from order[: rows - rows % size].split(size)


def _rate(settings: Settings, step: int, budget: int, cut: bool) -> float:
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + np.cos(np.pi * step / budget))
    if settings.schedule == "plateau":
        return settings.learning_rate * (CUT if cut else 1.0)
    return settings.learning_rate


def _unconstrained() -> dict[str, Tensor]:
    """The optimised tensors of the parameter store; Pyro keeps its baselines there too."""
    named = pyro.get_param_store().named_parameters()
    return {name: value for name, value in named if not name.startswith("__baseline")}


class _Average:
    """The running mean of all parameters after the cut."""

    def __init__(self) -> None:
        self.count = 0
        self.means: list[Tensor] = []

    def add(self, parameters: FlatParameters) -> None:
        self.count += 1
        if not self.means:
            self.means = parameters.copy()
        for mean, value in zip(self.means, parameters.vectors, strict=True):
            mean.lerp_(value.detach(), 1 / self.count)


def make_optimizer(settings: Settings, parameters: FlatParameters) -> torch.optim.Optimizer:
    """The optimiser of a run, over whole vectors where that is the same, in one kernel if it can.

    Raises:
        OptionError: If it does not take a learning rate alone.
    """
    kind = optimizer_class(settings.optimizer)
    whole = settings.optimizer in ELEMENTWISE
    over: list[Any] = list(parameters.vectors if whole else parameters.named.values())
    try:
        if "fused" in signature(kind).parameters:
            try:
                return kind(over, lr=settings.learning_rate, fused=True)
            except RuntimeError:  # not on this device
                pass
        return kind(over, lr=settings.learning_rate)
    except (ValueError, TypeError) as error:
        raise OptionError(f"--optimizer {settings.optimizer} cannot be used: {error}") from error


def _clipped(gradients: list[Tensor], largest: float | None) -> float:
    """The norm of the gradient, which is cut to the largest."""
    norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    if largest is not None and norm > largest:
        for gradient in gradients:
            gradient.mul_(largest / norm)
    return norm


def length(settings: Settings, rows: int | None) -> tuple[int, bool]:
    """The number of steps allowed, and whether the user fixed it."""
    if settings.steps is not None:
        return settings.steps, True
    if settings.epochs is not None:
        batches = 1
        if rows is not None and settings.batch_size is not None:
            batches = max(1, rows // settings.batch_size)
        return settings.epochs * batches, True
    return MAXIMUM_STEPS, False


def run_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: dict[str, Any],
    objective: Objective,
    settings: Settings,
    plate: Plate | None = None,
    progress: Callable[[int, int, float, float], None] | None = None,
) -> Trained:
    """Maximises the ELBO by stochastic gradients, in the parameter store that is active.

    Args:
        model: The Pyro model.
        guide: The guide.
        arguments: Keyword arguments of both.
        objective: Of `elbowroom.inference.estimators`.
        settings: Of the run.
        plate: The plate that minibatches subsample.
        progress: Called with the step, the budget, the smoothed ELBO and the learning rate.

    Returns:
        How it went. A run that is interrupted (Ctrl-C) or diverges keeps its parameters.

    Raises:
        OptionError: If `batch_size` is larger than the rows, or the model takes no minibatches.
        ModelError: If the first evaluation of the ELBO raises.
    """
    began = time.perf_counter()
    size = settings.batch_size
    if size is not None and plate is None:
        raise OptionError(
            "--batch-size: the model takes no minibatches; give its function an argument "
            "batch_size and pass it to its plate as subsample_size."
        )
    if size is not None and plate is not None and size > plate.size:
        raise OptionError(f"--batch-size {size} is more than the {plate.size} rows.")
    batches = _minibatches(plate.size, size) if plate is not None and size is not None else None
    budget, fixed = length(settings, plate.size if plate else None)
    window = max(200, plate.size // size if plate is not None and size else 0)

    elbo, rates = array("d"), array("d")
    cut_at, skipped, in_a_row, returns, smoothed = 0, 0, 0, 0, float("nan")
    average, status, cause = _Average(), "budget", ""
    _first_evaluation(objective, model, guide, arguments, (batches is not None and size) or None)
    parameters = FlatParameters(_unconstrained())
    if parameters.count == 0:
        return Trained(
            "exact", "the guide has nothing to optimise.", np.array([]), np.array([]), 0,
            time.perf_counter() - began, 0,
        )  # fmt: skip
    evaluate = Step(objective, model, guide, arguments, parameters, plate, size)
    good, step, good_at = parameters.copy(), 0, 0
    try:
        optimizer = make_optimizer(settings, parameters)
        if budget >= RECORDED_FROM:
            evaluate.record(None if batches is None else lambda: next(batches))
        while step < budget:
            rate = _rate(settings, step, budget, cut_at > 0) * 0.5**returns
            for group in optimizer.param_groups:
                group["lr"] = rate
            with users_code(f"step {step + 1} of the optimiser failed", ModelError):
                loss = evaluate(None if batches is None else next(batches))
            norm = _clipped(parameters.gradients, settings.clip_norm)
            step += 1
            elbo.append(-loss)
            rates.append(rate)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                skipped, in_a_row = skipped + 1, in_a_row + 1
                if in_a_row >= UNUSABLE_STEPS:
                    if returns >= RETURNS:
                        status = "diverged"
                        break
                    parameters.assign(good)
                    optimizer = make_optimizer(settings, parameters)
                    returns, in_a_row = returns + 1, 0
                continue
            in_a_row = 0
            optimizer.step()
            smoothed = -loss if smoothed != smoothed else smoothed + 0.02 * (-loss - smoothed)
            if cut_at:
                average.add(parameters)
            if progress is not None:
                progress(step, budget, smoothed, rate)
            if (step - cut_at) % window == 0 or step == budget:
                with users_code(f"step {step} of the optimiser failed", ModelError):
                    holds = evaluate.holds(None if batches is None else next(batches))
                if not holds:  # what was done since is done again, as it stands
                    parameters.assign(good)
                    optimizer = make_optimizer(settings, parameters)
                    average, step = _Average(), good_at
                    del elbo[good_at:], rates[good_at:]
                    continue
                good, good_at = parameters.copy(), step
                found = trend(elbo[cut_at:], window)
                flat = settings.schedule == "plateau" and found is not None and found.flat
                if flat and not cut_at:
                    cut_at = step
                elif flat and average.count >= AVERAGED_STEPS:
                    status = "converged"
                    break
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        if status == "diverged":
            with contextlib.suppress(Exception):  # a cause that cannot be found is no failure
                cause = culprit(model, guide, arguments, objective)
            parameters.assign(good)
        elif average.count >= window:
            parameters.assign(average.means)
        parameters.release()
    # A cosine rate ends flat whatever is left to gain: its end is no sign of convergence.
    if status == "budget" and fixed and settings.schedule != "cosine":
        found = trend(elbo, max(window, len(elbo) // 10))
        if found is not None and found.flat:
            status = "converged"
    return Trained(
        status,
        " ".join([_reason(status, settings.schedule, len(elbo), skipped), cause]).strip(),
        np.asarray(elbo),
        np.asarray(rates),
        skipped,
        time.perf_counter() - began,
        parameters.count,
        evaluate.reason,
    )


def _first_evaluation(
    objective: Any,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: dict[str, Any],
    batch_size: int | None,
) -> None:
    """Evaluates the ELBO once with every check on, which also makes the parameters."""
    extra = {} if batch_size is None else {"batch_size": batch_size}
    with (
        users_code("the ELBO cannot be evaluated at the start", ModelError),
        pyro.validation_enabled(True),
        torch.random.fork_rng(devices=[]),
    ):
        objective.loss(model, guide, **arguments, **extra)


def _reason(status: str, schedule: str, steps: int, skipped: int) -> str:
    text = {
        "converged": f"the ELBO was flat within its noise after {steps} steps.",
        "budget": f"the ELBO was not seen to be flat in {steps} steps; give more with --steps."
        if schedule != "cosine"
        else f"ran the {steps} steps of a cosine schedule, which ends flat whatever is left to "
        "gain; compare its ELBO with a longer run's.",
        "interrupted": f"interrupted after {steps} steps; what was fitted so far is kept.",
        "diverged": f"the ELBO or its gradient was not finite {UNUSABLE_STEPS} times in a row up "
        f"to step {steps}, from good parameters at half the rate too; those are kept. Try a "
        "smaller --learning-rate.",
    }[status]
    if skipped and status != "diverged":
        text += f" {skipped} steps with a non-finite ELBO or gradient were left out."
    return text
