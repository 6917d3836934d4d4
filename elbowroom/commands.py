"""What each command reads beside the options of models, engines, guides and objectives.

The command line is made from these declarations, and the Python functions of the same names check
what they are given by them, before data are read; imported without torch, as the engines' are.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from elbowroom.errors import OptionError, shown

LARGEST_SEED = 2**32 - 2
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED, description="random seed")]
RowDraws = Annotated[
    int, Field(ge=1, le=100_000, description="number of draws of each row's latents")
]
WeighedDraws = Annotated[
    int | None,
    Field(
        ge=2,
        le=100_000,
        description="number of draws of each row's latents. Default: 1000, fewer where rows are "
        "many and wide",
    ),
]
Interval = Annotated[
    float,
    Field(
        gt=0,
        lt=1,
        description="probability of each interval; 0.9 gives the 5% and 95% quantiles",
    ),
]


def _share_or_count(size: float | None) -> float | None:
    """Sees that what is one or more is a whole number."""
    if size is not None and size >= 1 and not size.is_integer():
        raise OptionError(
            f"--test-size {shown(size)}: give a share below 1, or a whole number of rows."
        )
    return size


@dataclass(frozen=True)
class SeedOptions:
    """What every fit of a command reads."""

    seed: Annotated[
        int | None,
        Field(ge=0, le=LARGEST_SEED, description="random seed. Default: a new one for each run"),
    ] = None


@dataclass(frozen=True)
class FitOptions(SeedOptions):
    """What 'fit' reads."""

    draws: Annotated[
        int | None,
        Field(
            ge=100,
            le=1_000_000,
            description="number of posterior draws; with fewer than 100 no diagnostic can be "
            "trusted. Default: 4000 with fixed_draws, otherwise 2000; some models set their own, "
            "such as 200 for vae",
        ),
    ] = None


@dataclass(frozen=True)
class CompareOptions(FitOptions):
    """What 'compare' reads."""

    test_size: Annotated[
        float | None,
        Field(
            gt=0,
            le=1_000_000_000,
            description="test rows: a share below 1, or a whole number of rows. No fit uses them. "
            "Each guide (and NUTS) predicts them, and the predictions are scored",
        ),
        AfterValidator(_share_or_count),
    ] = None


@dataclass(frozen=True)
class CheckOptions:
    """What 'check' reads."""

    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=LARGEST_SEED,
            description="random seed. Default: 0; for a model, a new one",
        ),
    ] = None


@dataclass(frozen=True)
class EstimatorOptions(SeedOptions):
    """What 'estimators' reads."""

    gradients: Annotated[
        int,
        Field(
            ge=50,
            le=100_000,
            description="number of gradients for each estimator and stage (start, middle, end)",
        ),
    ] = 300


@dataclass(frozen=True)
class PriorsOptions(SeedOptions):
    """What 'priors' reads."""

    interval: Interval = 0.9


@dataclass(frozen=True)
class ReferenceOptions:
    """What 'reference' reads."""

    draws: Annotated[
        int,
        Field(ge=100, le=100_000, description="draws in each of the four chains, after tuning"),
    ] = 1000
    seed: Annotated[
        int | None,
        Field(ge=0, le=LARGEST_SEED, description="random seed. Default: that of the run"),
    ] = None


@dataclass(frozen=True)
class CompareModelsOptions:
    """What 'compare-models' reads."""

    refit: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="rows of each trusted run that are left out by fitting again, at most: "
            "those whose Pareto k is above the limit, the highest first",
        ),
    ] = 5


@dataclass(frozen=True)
class SummaryOptions:
    """What 'summary' reads."""

    interval: Interval = 0.9


Scale = Literal["response", "linear"]


@dataclass(frozen=True)
class PredictOptions(SummaryOptions):
    """What 'predict' reads."""

    seed: Seed = 0
    new_groups: Annotated[
        Literal["error", "draw"] | None,
        Field(
            description="groups that the fit has not seen: error, or draw, their effects from the "
            "distribution of those of all groups. Default: as the fit was told"
        ),
    ] = None
    scale: Annotated[
        Scale | None,
        Field(
            description="what is described instead of a new row: response, the mean of a "
            "regression's rows (of levels, their probabilities), or linear, its linear predictor"
        ),
    ] = None
    draws: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="write as many draws of each row's prediction, instead of mean, sd and "
            "interval",
        ),
    ] = None


@dataclass(frozen=True)
class EffectsOptions(SummaryOptions):
    """What 'effects' reads beside columns."""

    average: Annotated[
        bool,
        Field(
            description="average means and contrasts over the fitted rows, instead of setting the "
            "other columns to their means and most common levels; slopes are averaged in any case"
        ),
    ] = False
    scale: Annotated[
        Scale,
        Field(
            description="response (probabilities, means of counts, ...) or linear (the linear "
            "predictor)"
        ),
    ] = "response"


@dataclass(frozen=True)
class GenerateOptions:
    """What 'generate' reads."""

    count: Annotated[int, Field(ge=1, le=100_000, description="number of new rows")] = 100
    seed: Seed = 0


@dataclass(frozen=True)
class ReconstructOptions:
    """What 'reconstruct' reads."""

    draws: RowDraws = 100
    seed: Seed = 0


@dataclass(frozen=True)
class InterpolateOptions:
    """What 'interpolate' reads."""

    begin: Annotated[
        int,
        Field(ge=1, le=1_000_000_000, title="from", description="number of the first row, from 1"),
    ]
    end: Annotated[
        int,
        Field(ge=1, le=1_000_000_000, title="to", description="number of the last row, from 1"),
    ]
    steps: Annotated[
        int,
        Field(ge=2, le=100_000, description="number of rows to make, including both ends"),
    ] = 9
    seed: Seed = 0


@dataclass(frozen=True)
class ManifoldOptions:
    """What 'manifold' reads."""

    size: Annotated[
        int, Field(ge=1, le=300, description="number of images on each side of the grid")
    ] = 15


@dataclass(frozen=True)
class ImputeOptions:
    """What 'impute' reads."""

    draws: Annotated[
        int, Field(ge=2, le=100_000, description="number of draws of each missing cell")
    ] = 400
    interval: Interval = 0.9
    seed: Seed = 0


@dataclass(frozen=True)
class EmbedOptions:
    """What 'embed' reads."""

    draws: WeighedDraws = None
    seed: Seed = 0


@dataclass(frozen=True)
class ScoreOptions(EmbedOptions):
    """What 'score' reads."""

    quantile: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="flag rows whose log density is below this quantile of the fitted rows",
        ),
    ] = None


@dataclass(frozen=True)
class ElboOptions:
    """What the ELBO of new rows is estimated from, in Python."""

    draws: Annotated[int, Field(ge=2, le=1_000_000, description="number of draws")] = 1000
    seed: Seed = 0


COMMANDS: dict[str, type] = {
    "fit": FitOptions,
    "compare": CompareOptions,
    "compare-models": CompareModelsOptions,
    "check": CheckOptions,
    "estimators": EstimatorOptions,
    "priors": PriorsOptions,
    "reference": ReferenceOptions,
    "summary": SummaryOptions,
    "predict": PredictOptions,
    "effects": EffectsOptions,
    "generate": GenerateOptions,
    "reconstruct": ReconstructOptions,
    "interpolate": InterpolateOptions,
    "manifold": ManifoldOptions,
    "impute": ImputeOptions,
    "score": ScoreOptions,
    "embed": EmbedOptions,
}
"""The options of each command that has any of its own."""
