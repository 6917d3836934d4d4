"""What each engine reads; imported without torch, so that help and wrong usage need not wait."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from elbowroom.guides.options import CorrelatedOptions, FixedDrawsOptions, HeldOutOptions


@dataclass(frozen=True)
class NumberOptions:
    """What every engine reads."""

    device: Annotated[str, Field(description="auto, cpu, cuda or mps")] = "auto"
    dtype: Annotated[Literal["float64", "float32"], Field(description="of all numbers")] = "float64"


@dataclass(frozen=True)
class SearchOptions:
    """What the search for modes reads."""

    restarts: Annotated[int, Field(ge=1, description="starts to choose the best from")] = 8


@dataclass(frozen=True)
class StochasticOptions(HeldOutOptions, SearchOptions):
    """What stochastic gradients read."""

    steps: Annotated[
        int | None,
        Field(ge=1, description="most optimiser steps; by default until convergence, ≤ 50000"),
    ] = None
    epochs: Annotated[
        int | None, Field(ge=1, description="most passes over the rows, instead of --steps")
    ] = None
    batch_size: Annotated[
        int | None, Field(ge=1, description="rows of a minibatch; by default all of them")
    ] = None
    learning_rate: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="of the first step, in scaled coordinates"),
    ] = 0.02
    optimizer: Annotated[str, Field(description="any class of torch.optim")] = "Adam"
    schedule: Annotated[
        Literal["plateau", "constant", "cosine"],
        Field(
            description="plateau (cut to a quarter until a cut no longer moves the guide, or "
            "raises the ELBO of rows held out), constant or cosine"
        ),
    ] = "plateau"
    tolerance: Annotated[
        float, Field(gt=0, description="posterior sds that the guide may be off its optimum")
    ] = 0.1
    clip_norm: Annotated[
        float | None, Field(gt=0, description="largest norm of the gradient; by default any")
    ] = None
    particles: Annotated[int, Field(ge=1, description="draws in each estimate of the ELBO")] = 1
    elbo: Annotated[
        str | None,
        Field(
            description="an objective ('elbowroom objectives' lists them); by default what suits "
            "model and guide"
        ),
    ] = None
    kl_warm_up: Annotated[
        int | None, Field(ge=1, description="steps in which the divergence from the prior comes in")
    ] = None
    compile: Annotated[
        bool,
        Field(
            description="steps by torch.compile, dozens in one call: for long runs, since it takes "
            "half a minute to begin, and a C++ compiler"
        ),
    ] = False
    autocast: Annotated[
        bool, Field(description="layers of networks in bfloat16, all else as it is")
    ] = False


@dataclass(frozen=True)
class DeterministicOptions(CorrelatedOptions, FixedDrawsOptions, SearchOptions):
    """What the deterministic engine reads."""


@dataclass(frozen=True)
class ExpectationOptions(SearchOptions):
    """What expectation-maximisation reads."""

    steps: Annotated[int | None, Field(ge=1, description="most steps from each start")] = None


ENGINES: dict[str, type] = {
    "fixed_draws": DeterministicOptions,
    "svi": StochasticOptions,
    "em": ExpectationOptions,
}
"""What each engine reads, beside `NumberOptions`.

What an options class has from `elbowroom.guides.options` is read by the guides that declare it.
"""
