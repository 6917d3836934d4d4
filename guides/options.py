"""What guides read, beside what their engine does; imported without torch, as the engines' are."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from elbowroom.options import Name


@dataclass(frozen=True)
class FixedDrawsOptions:
    """What a guide reads whose ELBO is taken over fixed draws."""

    readers: ClassVar[str] = "a guide whose ELBO is taken over fixed draws"

    fixed_draws: Annotated[
        int | None,
        Field(
            ge=4,
            le=100_000,
            description="number of fixed draws for the ELBO; by default as many as its precision "
            "needs",
        ),
    ] = None


@dataclass(frozen=True)
class CorrelatedOptions:
    """What a guide reads that takes covariances of chosen sites."""

    readers: ClassVar[str] = "a guide that takes covariances of chosen sites"

    correlated: Annotated[
        Name | None,
        Field(
            description="for models with over 2,000 latent dimensions: sites, separated by commas, "
            "whose covariance linear_response computes (by default those that all groups share)"
        ),
    ] = None


@dataclass(frozen=True)
class HeldOutOptions:
    """What an amortised guide reads: about the rows that decide when it stops."""

    readers: ClassVar[str] = "an amortised guide"

    held_out: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="for an amortised guide: share of rows to set aside, whose ELBO decides "
            "when the fit ends",
            json_schema_extra={"schedule": "plateau"},
        ),
    ] = 0.1
    patience: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="for an amortised guide: number of checks without a rise of the held-out "
            "ELBO before the learning rate is cut",
            json_schema_extra={"schedule": "plateau"},
        ),
    ] = 10
