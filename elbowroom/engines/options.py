"""What each engine reads; imported without torch, so that help and wrong usage need not wait."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from elbowroom.guides.options import CorrelatedOptions, FixedDrawsOptions, HeldOutOptions
from elbowroom.options import Name


@dataclass(frozen=True)
class NumberOptions:
    """What every engine reads."""

    device: Annotated[Name, Field(description="where to compute: auto, cpu, cuda or mps")] = "auto"
    dtype: Annotated[
        Literal["auto", "float64", "float32"],
        Field(
            description="type of all numbers: float64, float32, or auto (that of the model's "
            "networks, else float64)"
        ),
    ] = "auto"
    time: Annotated[
        float | None,
        Field(
            gt=0,
            le=1_000_000_000,
            description="maximum time of the fit in seconds; it then ends with the best result so "
            "far, which is not trusted. Default: 300 (some models set more), or no limit with "
            "--steps or --epochs",
        ),
    ] = None


@dataclass(frozen=True)
class SearchOptions:
    """What the search for modes reads."""

    restarts: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="number of starts of the search for modes, at most 3 where an evaluation "
            "of the density is expensive; more are added if these may have missed a mode",
        ),
    ] = 8


@dataclass(frozen=True)
class StochasticOptions(HeldOutOptions, SearchOptions):
    """What stochastic gradients read."""

    steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description="maximum number of steps; a fit that converges ends earlier. Default: "
            "50,000 steps or 100 epochs, whichever is more",
        ),
    ] = None
    epochs: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description="maximum number of passes over the rows; give it instead of --steps",
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Field(ge=1, le=1_000_000_000, description="rows in a minibatch; by default all rows"),
    ] = None
    learning_rate: Annotated[
        float,
        Field(
            gt=0,
            le=1_000_000,
            description="learning rate at the start; the general guides scale their parameters "
            "by the curvature of the log density",
        ),
    ] = 0.02
    optimizer: Annotated[
        Name, Field(description="optimiser, as the name of a class in torch.optim")
    ] = "Adam"
    schedule: Annotated[
        Literal["plateau", "constant", "cosine"],
        Field(
            description="schedule of the learning rate: plateau (cut to a quarter when progress "
            "stops), constant or cosine"
        ),
    ] = "plateau"
    tolerance: Annotated[
        float,
        Field(
            gt=0,
            le=1000,
            description="largest distance from the optimum that counts as converged, in "
            "posterior sds",
            json_schema_extra={"schedule": "plateau"},
        ),
    ] = 0.1
    clip_norm: Annotated[
        float | None,
        Field(
            gt=0,
            le=1e100,
            description="clip the gradient to this norm; by default it is not clipped",
        ),
    ] = None
    particles: Annotated[
        int, Field(ge=1, le=10_000, description="number of draws in each estimate of the ELBO")
    ] = 1
    elbo: Annotated[
        Name | None,
        Field(
            description="the objective ('elbowroom objectives' lists them); by default one that "
            "suits the model and the guide"
        ),
    ] = None
    kl_warm_up: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description="number of steps over which the weight of the KL term rises to one",
        ),
    ] = None
    compile: Annotated[
        bool,
        Field(
            description="use torch.compile, for long runs: compiling takes half a minute, and "
            "needs a C++ compiler"
        ),
    ] = False
    autocast: Annotated[bool, Field(description="compute the layers of networks in bfloat16")] = (
        False
    )


@dataclass(frozen=True)
class DeterministicOptions(CorrelatedOptions, FixedDrawsOptions, SearchOptions):
    """What the deterministic engine reads."""


@dataclass(frozen=True)
class AscentOptions(SearchOptions):
    """What expectation-maximisation and coordinate ascent read."""

    steps: Annotated[
        int | None,
        Field(ge=1, le=1_000_000_000, description="maximum number of steps from each start"),
    ] = None


ENGINES: dict[str, type] = {
    "fixed_draws": DeterministicOptions,
    "svi": StochasticOptions,
    "em": AscentOptions,
    "coordinate_ascent": AscentOptions,
}
"""What each engine reads, beside `NumberOptions`.

What an options class has from `elbowroom.guides.options` is read by the guides that declare it.
"""
