"""The settings of a fit."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from elbowroom.errors import OptionError, unknown
from elbowroom.inference.stochastic.elbo import OBJECTIVES
from elbowroom.inference.stochastic.score_function import BASELINES

MAXIMUM_STEPS = 50_000
"""Where a run gives up, unless `steps` or `epochs` say otherwise; or after so many epochs:"""
MAXIMUM_EPOCHS = 100


@dataclass(frozen=True)
class Settings:
    """Settings of a fit; `restarts`, `fixed_draws` and `correlated` are not of `svi` alone."""

    steps: Annotated[
        int | None, Field(ge=1, description="most optimiser steps; by default until convergence")
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
        Field(description="plateau: cut to a quarter until a cut no longer moves the guide"),
    ] = "plateau"
    tolerance: Annotated[
        float, Field(gt=0, description="posterior sds that the guide may be off its optimum")
    ] = 0.1
    held_out: Annotated[
        float,
        Field(ge=0, lt=1, description="fraction of rows that stop the fit of an amortised guide"),
    ] = 0.1
    patience: Annotated[
        int, Field(ge=1, description="looks at rows held out, without a rise, before a cut")
    ] = 10
    clip_norm: Annotated[
        float | None, Field(gt=0, description="largest norm of the gradient; by default any")
    ] = None
    particles: Annotated[int, Field(ge=1, description="draws in each estimate of the ELBO")] = 1
    elbo: Annotated[
        str | None, Field(description="an objective; by default what suits model and guide")
    ] = None
    alpha: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="order of the divergence of renyi")
    ] = 0.5
    baseline: Annotated[
        str, Field(description="of score_function: none, running, decaying or neural")
    ] = "decaying"
    insomnia: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the guide's gradient of reweighted_wake_sleep that "
            "comes from data, not from dreams",
        ),
    ] = 1.0
    kl_warm_up: Annotated[
        int | None, Field(ge=1, description="steps in which the divergence from the prior comes in")
    ] = None
    free_bits: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="nats of each latent that cost nothing"),
    ] = 0.0
    restarts: Annotated[int, Field(ge=1, description="starts to choose the best from")] = 8
    fixed_draws: Annotated[
        int | None, Field(ge=4, description="draws of the ELBO of the engine of that name")
    ] = None
    correlated: Annotated[
        str | None,
        Field(description="sites, by commas, whose covariance a model of over 2,000 latents gets"),
    ] = None
    compile: Annotated[
        bool, Field(description="steps by torch.compile, dozens in one call; for long runs")
    ] = False
    autocast: Annotated[
        bool, Field(description="layers of networks in bfloat16, all else as it is")
    ] = False
    device: Annotated[str, Field(description="auto, cpu, cuda or mps")] = "auto"
    dtype: Annotated[Literal["float64", "float32"], Field(description="of all numbers")] = "float64"

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise OptionError("--steps and --epochs both set the length of the run; give one.")
        optimizer_class(self.optimizer)
        if self.elbo is not None and self.elbo not in OBJECTIVES:
            raise unknown("objective", self.elbo, OBJECTIVES)
        if self.elbo is not None and OBJECTIVES[self.elbo].several and self.particles < 2:
            raise OptionError(f"--elbo {self.elbo} takes several draws together; give --particles.")
        if self.elbo is not None and self.kl_warm_up and not OBJECTIVES[self.elbo].of_its_loss:
            raise OptionError(
                f"--kl-warm-up weighs a divergence of the ELBO, which --elbo {self.elbo} has not; "
                "leave it out."
            )
        if self.alpha == 1:
            raise OptionError("--alpha 1 is the ELBO itself; give --elbo trace.")
        if self.baseline not in BASELINES:
            raise unknown("baseline", self.baseline, BASELINES)


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


def length(settings: Settings, rows: int | None) -> tuple[int, bool]:
    """The number of steps allowed, and whether the user fixed it."""
    batches = 1
    if rows is not None and settings.batch_size is not None:
        batches = max(1, rows // settings.batch_size)
    if settings.steps is not None:
        return settings.steps, True
    if settings.epochs is not None:
        return settings.epochs * batches, True
    return max(MAXIMUM_STEPS, MAXIMUM_EPOCHS * batches), False
