"""The settings of a fit."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, field, replace
from dataclasses import dataclass as plain_dataclass
from typing import Any

import torch
from pydantic.dataclasses import dataclass

from elbowroom.engines.options import (
    ENGINES,
    AscentOptions,
    DeterministicOptions,
    NumberOptions,
    StochasticOptions,
)
from elbowroom.errors import OptionError, unknown
from elbowroom.guides import Guide, guide_options, guides_reading
from elbowroom.objectives import get_objective, objective_options, objectives
from elbowroom.options import (
    Option,
    declared,
    flag,
    make_options,
    option_names,
    refuse_unread,
    split_options,
)

SECONDS = 300.0
"""That a fit may take, unless `time`, `steps` or `epochs` say otherwise."""
MAXIMUM_STEPS = 50_000
"""Where a run gives up, unless `steps` or `epochs` say otherwise; or after so many epochs:"""
MAXIMUM_EPOCHS = 100


@dataclass(frozen=True)
class Settings(StochasticOptions, DeterministicOptions, AscentOptions, NumberOptions):
    """All that is asked of a fit, whoever reads it; see `elbowroom.engines.options`.

    Attributes:
        of_objectives: The options of objectives that are set, by name.
        given: The names of the options that the user gave, be it at their defaults.
    """

    of_objectives: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise OptionError(
                "--steps and --epochs both set the length of the run; give only one of them."
            )
        optimizer_class(self.optimizer)
        if self.elbo is None:
            return
        objective = get_objective(self.elbo)
        if objective.several and self.particles < 2:
            raise OptionError(
                f"--elbo {self.elbo} needs several draws; give --particles 2 or more."
            )
        if self.kl_warm_up and objective.of_rows:  # whose guide learns from the model's rows
            raise OptionError(
                f"--kl-warm-up changes the weight of the KL term, and --elbo {self.elbo} has no "
                "KL term; leave --kl-warm-up out."
            )

    def of_objective(self, name: str) -> Any:
        """The options of an objective, of its own class; None if it reads none."""
        kind = get_objective(name).options_kind
        own = {k: v for k, v in self.of_objectives.items() if k in option_names(kind)}
        return None if kind is None else make_options(kind, own)

    def flat(self) -> dict[str, Any]:
        """Every option by its name, those of objectives where they are set."""
        options = asdict(self)
        del options["of_objectives"], options["given"]
        return {**options, **self.of_objectives}


def setting_kinds() -> list[type]:
    """The dataclasses of all options of a fit: the engines' and the objectives'."""
    return [*ENGINES.values(), NumberOptions, *objective_options()]


def setting_names() -> list[str]:
    """Every option of a fit, once."""
    return [option.name for option in _declared()]


def split_settings(
    options: Mapping[str, Any], kind: type | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sorts options to a model's, of the class `kind`, and to a fit's.

    Raises:
        OptionError: If neither has one; the nearest name is suggested.
    """
    own, *others = split_options(options, kind, *setting_kinds())
    return own, {name: value for found in others for name, value in found.items()}


def make_settings(given: Mapping[str, Any], suggested: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a fit, with every value looked at by who reads it.

    Args:
        given: What the user gave, by name.
        suggested: Beneath it, what the model suggests, or what a run folder holds.

    Raises:
        OptionError: If a value is out of range or of the wrong kind.
    """
    values = {**(suggested or {}), **given}
    engines = {name for kind in (*ENGINES.values(), NumberOptions) for name in option_names(kind)}
    settings = make_options(Settings, {k: v for k, v in values.items() if k in engines})
    own: dict[str, Any] = {}
    asked = [get_objective(settings.elbo).options_kind] if settings.elbo else objective_options()
    for kind in asked:
        known = {k: v for k, v in values.items() if k in option_names(kind)}
        if kind is not None and known:
            made = make_options(kind, known)
            own.update((name, getattr(made, name)) for name in known)
    # Those of another objective than the one that is asked for, which a fit refuses.
    others = {k: v for k, v in values.items() if k not in engines and k not in own}
    made_of = {**others, **own}
    return replace(settings, of_objectives=made_of, given=frozenset(given))


@plain_dataclass(frozen=True)
class Way:
    """How a fit is made, which tells the options that it reads.

    Attributes:
        engine: Its name.
        objective: Its name, where it is known: any may be chosen still.
        guide: Its declaration; None for the guide `auto`, which takes several.
    """

    engine: str
    objective: str | None = None
    guide: Guide | None = None

    @property
    def reads(self) -> set[str]:
        """The names of the options that a fit made so reads."""
        found = {*option_names(NumberOptions), *option_names(ENGINES[self.engine])}
        if self.guide is not None:
            for kind in guide_options():
                if kind not in self.guide.reads:
                    found -= set(option_names(kind))
        if "elbo" in found:
            kinds = (
                objective_options()
                if self.objective is None
                else [get_objective(self.objective).options_kind]
            )
            found |= {name for kind in kinds for name in option_names(kind)}
        return found


def check_read(settings: Settings, ways: Iterable[Way]) -> None:
    """Sees that one of several fits reads every option that the user gave.

    Args:
        settings: Of the fits.
        ways: How they are made.

    Raises:
        OptionError: If none reads it; who does is said.
    """
    ways = list(ways)
    used = {way.engine for way in ways}
    models = {way.guide.model for way in ways if way.guide is not None}
    everyone: dict[str, Collection[str]] = {
        f"--engine {name}": option_names(kind) for name, kind in ENGINES.items() if name not in used
    }
    # What an engine of these has, and its guide does not read, is of other guides.
    own = {name for engine in used for name in option_names(ENGINES[engine])}
    for kind in guide_options():
        everyone[guides_reading(kind, models)] = own.intersection(option_names(kind))
    for name, objective in objectives().items():
        everyone[f"--elbo {name}"] = option_names(objective.options_kind)
    refuse_unread(_ordered(settings.given), {name for way in ways for name in way.reads}, everyone)
    for option in _declared():
        for other, value in option.needs.items():
            if option.name in settings.given and getattr(settings, other) != value:
                refuse_unread([option.name], [], {f"{flag(other)} {value}": [option.name]})


def only_read(settings: Settings, suggested: Mapping[str, Any], way: Way) -> Settings:
    """Settings in which all that a fit does not read is as if it had not been given."""
    unread = settings.given - way.reads
    usual = Settings()
    of_engines = [name for name in unread if hasattr(usual, name)]
    left = {name: suggested.get(name, getattr(usual, name)) for name in of_engines}
    own = {name: value for name, value in settings.of_objectives.items() if name not in unread}
    return replace(settings, **left, of_objectives=own, given=settings.given - unread)


def _declared() -> list[Option]:
    """Every option of a fit, once."""
    found = {option.name: option for kind in setting_kinds() for option in declared(kind)}
    return list(found.values())


def _ordered(names: Collection[str]) -> list[str]:
    return [name for name in setting_names() if name in names]


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


def seconds_allowed(settings: Settings) -> float | None:
    """The seconds that a fit may take; None for no limit."""
    fixed = not settings.given.isdisjoint(("steps", "epochs"))
    return settings.time or (None if fixed else SECONDS)


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
