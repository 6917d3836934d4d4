"""The settings of a fit."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic.dataclasses import dataclass

from elbowroom.engines.options import (
    ENGINES,
    ExpectationOptions,
    FixedDrawsOptions,
    NumberOptions,
    StochasticOptions,
)
from elbowroom.errors import OptionError, unknown
from elbowroom.objectives.elbo import OBJECTIVES, objective_options
from elbowroom.options import option_names, refuse_unread

MAXIMUM_STEPS = 50_000
"""Where a run gives up, unless `steps` or `epochs` say otherwise; or after so many epochs:"""
MAXIMUM_EPOCHS = 100


@dataclass(frozen=True)
class Settings(
    StochasticOptions,
    FixedDrawsOptions,
    ExpectationOptions,
    NumberOptions,
    *objective_options(),  # type: ignore[misc]
):
    """All options of a fit, whoever reads them; see `elbowroom.engines.options`."""

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


def asked(settings: Settings, suggested: Mapping[str, Any]) -> list[str]:
    """The options that are neither at their default nor as the model suggests them."""
    usual = Settings()
    return [
        name
        for name in option_names(Settings)
        if getattr(settings, name) not in (getattr(usual, name), suggested.get(name))
    ]


def check_read(
    settings: Settings,
    suggested: Mapping[str, Any],
    fits: Iterable[tuple[str, str | None]],
) -> None:
    """Sees that one of several fits reads every option that was asked for.

    Args:
        settings: Of the fits.
        suggested: Those of them that the model suggests.
        fits: The engine of each, and its objective where that is known.

    Raises:
        OptionError: If none reads it; who does is said.
    """
    readers = [kind for engine, objective in fits for kind in _readers(engine, objective)]
    everyone = {
        **{f"--engine {name}": kind for name, kind in ENGINES.items()},
        **{f"--elbo {name}": kind.options_kind for name, kind in OBJECTIVES.items()},
    }
    refuse_unread(asked(settings, suggested), readers, everyone)


def only_read(
    settings: Settings, suggested: Mapping[str, Any], engine: str, objective: str | None = None
) -> Settings:
    """Settings in which all that a fit does not read is as if it had not been asked for."""
    read = {name for kind in _readers(engine, objective) for name in option_names(kind)}
    usual = Settings()
    unread = [name for name in asked(settings, suggested) if name not in read]
    left = {name: suggested.get(name, getattr(usual, name)) for name in unread}
    return replace(settings, **left)


def _readers(engine: str, objective: str | None) -> list[type | None]:
    """The options that a fit reads; those of all objectives where its own is not known."""
    found: list[type | None] = [NumberOptions, ENGINES[engine]]
    if engine == "svi":
        found += objective_options() if objective is None else [OBJECTIVES[objective].options_kind]
    return found


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
