"""What the JSON files of a run folder hold, to the type: `FORMAT` names this version of it.

Evidence and verdict are validated as the dataclasses that the verdict is made from, so that a field
is declared once.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    model_validator,
)

from elbowroom.assess.evidence import Evidence
from elbowroom.assess.verdict import Verdict, judge
from elbowroom.commands import Seed
from elbowroom.engines.options import ENGINES

FORMAT = 3

Scalar = None | bool | int | float | str
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _an_engine(name: str) -> str:
    if name not in ENGINES:
        raise ValueError(f"there is no such engine; known: {', '.join(ENGINES)}")
    return name


def _judged(evidence: Evidence) -> Evidence:
    """Evidence whose numbers a verdict can be made of."""
    try:
        judge(evidence)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"no verdict follows from it ({error})") from error
    return evidence


class Content(BaseModel):
    """A JSON file: every key is declared, and no value is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From Python's own values, as they come back from a file."""
        return cls.model_validate_json(json.dumps(given, default=plain), strict=True)


class Config(Content):
    """config.json: what was asked.

    Attributes:
        format: The version of this schema.
        model: The model's name.
        registered_model: Whether it is one of `elbowroom.models`.
        options: Of the model, by name.
        guide: The guide's name.
        settings: Of the optimiser, by name.
        engine: Its name.
        reparameterised: Sites that were fitted in other coordinates.
        objective: The objective's name, and why it was taken.
        seed: Of all random numbers.
        attributes: Of the table, such as the roles of its columns.
        scalars: Arguments of a user's own model that are no arrays.
    """

    format: int = FORMAT
    model: Name
    registered_model: bool
    options: dict[str, JsonValue]
    guide: Name
    settings: dict[str, JsonValue]
    engine: Annotated[str, AfterValidator(_an_engine)]
    reparameterised: list[str] = []
    objective: tuple[str, str]
    seed: Seed
    attributes: dict[str, JsonValue]
    scalars: dict[str, Scalar] = {}


class Outcome(Content):
    """run.json: how it went.

    Attributes:
        status: As of `elbowroom.engines.protocol.Trained`, like `reason`, `skipped`, `seconds` and
            `parameters`.
        versions: Of the packages, by name.
        notes: What a reader should know.
        verdict: As it was printed.
        evidence: What the verdict follows from.
        origin: What the posterior consists of.
    """

    status: Literal["converged", "budget", "interrupted", "diverged", "exact"]
    reason: str
    skipped: Count
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    parameters: Count
    versions: dict[str, str]
    notes: list[str]
    verdict: Verdict
    evidence: Annotated[Evidence, AfterValidator(_judged)]
    origin: Literal["raw", "corrected", "chains", "nuts"]


TOGETHER = {
    "log_evidence": ("log_evidence_se", "kl_to_posterior", "corrected_effective_sample_size"),
    "corrected_effective_sample_size": ("weighted_draws", "corrected_k_hat"),
    "expected_log_likelihood": ("expected_log_likelihood_se",),
    "kl_to_prior": ("kl_to_prior_se",),
    "entropy": ("entropy_se",),
}
"""Measures that are not read without others."""


class Measures(Content):
    """diagnostics.json: numbers by name; those that are declared are read by the program."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    draws: Annotated[int, Field(ge=1)]
    elbo: float
    elbo_se: float
    k_hat: float
    k_hat_threshold: float
    effective_sample_size: float
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    parameters: Count
    elpd_loo: float
    elpd_loo_se: float
    high_k_rows: float
    log_likelihood: float = math.nan
    log_evidence: float = math.nan
    log_evidence_se: float = math.nan
    kl_to_posterior: float = math.nan
    kl_to_posterior_se: float = math.nan
    corrected_k_hat: float = math.nan
    corrected_effective_sample_size: float = math.nan
    weighted_draws: Annotated[int, Field(ge=1)] = 1
    unreliable_rows: float = math.nan
    expected_log_likelihood: float = math.nan
    expected_log_likelihood_se: float = math.nan
    kl_to_prior: float = math.nan
    kl_to_prior_se: float = math.nan
    entropy: float = math.nan
    entropy_se: float = math.nan

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, others in TOGETHER.items():
            missing = set(others) - self.model_fields_set
            if name in self.model_fields_set and missing:
                raise ValueError(f"'{name}' is there without '{min(missing)}'")
        return self

    def by_name(self) -> dict[str, Any]:
        """Those that are in the file."""
        return self.model_dump(exclude_unset=True)


class Asked(Content):
    """request.json: what was asked of a run that has not ended.

    Attributes:
        format: As of `Config`, like `model`, `registered_model`, `seed`, `attributes`, `scalars`.
        guide: The guide's name; None for a user's own.
        engine: The engine's name, or "auto".
        draws: How many; None for the engine's own number.
        keep_local: As of `elbowroom.fit`, like `reference`, `fallback`, `options` and `start`.
    """

    format: int
    model: Name
    registered_model: bool
    guide: Name | None
    engine: Name
    seed: Seed
    draws: Annotated[int, Field(ge=1)] | None
    keep_local: bool
    reference: bool
    fallback: Literal["nuts"] | None
    options: dict[str, JsonValue]
    start: dict[str, JsonValue] = {}
    scalars: dict[str, Scalar]
    attributes: dict[str, JsonValue]


class Manifest(Content):
    """manifest.json: the list of a folder's files.

    Attributes:
        files: By a file's path in the folder, the hashes that its content may have: two where it is
            about to be changed.
        sha256: The hash of this file, with zeros in the place of the hash.
    """

    files: dict[Name, Annotated[list[Digest], Field(min_length=1, max_length=2)]]
    sha256: Digest


def plain(value: Any) -> Any:
    """What JSON does not know: a dataclass by its fields, numpy's numbers, and the rest as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.item() if isinstance(value, np.generic) else str(value)
