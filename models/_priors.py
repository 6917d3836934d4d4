"""Priors in words, such as `bmi ~ normal(0, 10)`: read, checked, and made into distributions."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.errors import OptionError, shown, unknown

LARGEST = 1e100
"""Of a number in a prior, as of every number that is given."""


@dataclass(frozen=True)
class Kind:
    """A distribution that priors may have.

    Attributes:
        arguments: The names of its numbers, in order.
        support: "real", "positive" or "unit" (from 0 to 1).
        make: The distribution, from tensors of these numbers.
    """

    arguments: tuple[str, ...]
    support: str
    make: Callable[..., Any]


def _half_student_t(df: Tensor, scale: Tensor) -> Any:
    return dist.FoldedDistribution(dist.StudentT(df, torch.zeros_like(scale), scale))


KINDS: dict[str, Kind] = {
    "normal": Kind(("location", "scale"), "real", dist.Normal),
    "student_t": Kind(("df", "location", "scale"), "real", dist.StudentT),
    "cauchy": Kind(("location", "scale"), "real", dist.Cauchy),
    "laplace": Kind(("location", "scale"), "real", dist.Laplace),
    "half_normal": Kind(("scale",), "positive", dist.HalfNormal),
    "half_student_t": Kind(("df", "scale"), "positive", _half_student_t),
    "half_cauchy": Kind(("scale",), "positive", dist.HalfCauchy),
    "exponential": Kind(("rate",), "positive", dist.Exponential),
    "gamma": Kind(("shape", "rate"), "positive", dist.Gamma),
    "inverse_gamma": Kind(("shape", "scale"), "positive", dist.InverseGamma),
    "lognormal": Kind(("log_location", "log_scale"), "positive", dist.LogNormal),
    "beta": Kind(("a", "b"), "unit", dist.Beta),
}
"""The distributions of priors, by name."""
SUPPORTS = {"real": "any number", "positive": "numbers above 0", "unit": "numbers from 0 to 1"}
"""What each support holds, in words."""


@dataclass(frozen=True)
class Prior:
    """A prior distribution.

    Attributes:
        kind: A name in `KINDS`.
        numbers: Its numbers, in the order of `Kind.arguments`.

    Example:
        >>> str(Prior("normal", (0.0, 10.0)))
        'normal(0, 10)'
    """

    kind: str
    numbers: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{each:.6g}' for each in self.numbers)})"

    @property
    def support(self) -> str:
        """Of its distribution; see `Kind`."""
        return KINDS[self.kind].support

    def divided(self, unit: float) -> "Prior":
        """The prior of the same quantity, divided by a positive number.

        Example:
            >>> str(Prior("gamma", (2.0, 0.5)).divided(10.0))
            'gamma(2, 5)'
        """
        changed = {
            "location": lambda x: x / unit,
            "scale": lambda x: x / unit,
            "rate": lambda x: x * unit,
            "log_location": lambda x: x - math.log(unit),
        }
        names = KINDS[self.kind].arguments
        return Prior(
            self.kind,
            tuple(
                changed.get(name, lambda x: x)(each)
                for name, each in zip(names, self.numbers, strict=True)
            ),
        )

    def distribution(self, shift: Tensor | float = 0.0) -> Any:
        """As Pyro has it, of one number.

        Args:
            shift: What is added to its location, ().
        """
        kind = KINDS[self.kind]
        numbers = zip(kind.arguments, self.numbers, strict=True)
        return kind.make(
            *(torch.tensor(each) + (shift if name == "location" else 0.0) for name, each in numbers)
        )


SIGMA_PRIOR = Prior("half_student_t", (3.0, 2.5))
"""Of the standard deviation of group effects and smooth terms, standardised as coefficients are."""


class OfSeveralKinds(dist.TorchDistribution):
    """A vector of independent numbers, whose priors are of several kinds.

    Args:
        priors: Of each number, all on the real line.

    Example:
        >>> both = OfSeveralKinds([Prior("normal", (0.0, 1.0)), Prior("cauchy", (0.0, 1.0))])
        >>> both.sample((3,)).shape
        torch.Size([3, 2])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, priors: Sequence[Prior], validate_args: bool | None = None) -> None:
        kinds = dict.fromkeys(each.kind for each in priors)
        places = [[k for k, each in enumerate(priors) if each.kind == kind] for kind in kinds]
        self.places = [torch.tensor(each) for each in places]
        self.parts = [_alike([priors[k] for k in each]) for each in places]
        self._back = torch.cat(self.places).argsort()
        super().__init__(torch.Size(), torch.Size([len(priors)]), validate_args=validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, sample shape + (numbers,)."""
        drawn = [part.rsample(torch.Size(sample_shape)) for part in self.parts]
        return torch.cat(drawn, -1)[..., self._back]

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, of the vector."""
        several = zip(self.parts, self.places, strict=True)
        return sum((part.log_prob(value[..., at]).sum(-1) for part, at in several), torch.zeros(()))


def _alike(priors: Sequence[Prior]) -> Any:
    """Independent numbers with priors of one kind."""
    numbers = zip(*(each.numbers for each in priors), strict=True)
    return KINDS[priors[0].kind].make(*(torch.tensor(each) for each in numbers))


def together(priors: Sequence[Prior]) -> Any:
    """The distribution of a vector, of whose elements each has a prior.

    Example:
        >>> together([Prior("normal", (0.0, 1.0)), Prior("normal", (0.0, 2.0))]).event_shape
        torch.Size([2])
    """
    if len({each.kind for each in priors}) == 1:
        return _alike(priors).to_event(1)
    return OfSeveralKinds(priors)


def read_prior(text: str, where: str) -> Prior:
    """A distribution with its numbers, from words.

    Args:
        text: Such as "normal(0, 10)".
        where: What it was a part of, for messages.

    Raises:
        OptionError: If there is no such distribution, or it does not take these numbers.

    Example:
        >>> read_prior("half_normal(2.5)", "--prior").numbers
        (2.5,)
    """
    found = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text, flags=re.S)
    if found is None:
        raise OptionError(
            f"{where}: '{shown(text.strip())}' is no prior; write one as normal(0, 10)."
        )
    name, inside = found.groups()
    if name not in KINDS:
        raise OptionError(f"{where}: {unknown('prior distribution', name, KINDS)}")
    kind, given = KINDS[name], [each.strip() for each in inside.split(",") if each.strip()]
    usage = f"{name}({', '.join(kind.arguments)})"
    if len(given) != len(kind.arguments):
        raise OptionError(
            f"{where}: {name} has {len(given)} number{'s' * (len(given) != 1)} and takes "
            f"{len(kind.arguments)}; write {usage}."
        )
    numbers = []
    for argument, each in zip(kind.arguments, given, strict=True):
        try:
            number = float(each)
        except ValueError as error:
            raise OptionError(f"{where}: {shown(each)} is no number; write {usage}.") from error
        free = argument in ("location", "log_location")
        if not abs(number) <= LARGEST or (number <= 0 and not free):
            raise OptionError(
                f"{where}: the {argument.replace('_', ' ')} of {name} is {shown(each)} and must be "
                f"{'a number' if free else 'above 0'}, at most {LARGEST:g}; write {usage}."
            )
        numbers.append(number)
    return Prior(name, tuple(numbers))


def read_priors(text: str) -> dict[str, Prior]:
    """Priors by the names of what they are of.

    Args:
        text: One or several, separated by commas, such as "bmi ~ normal(0, 10)".

    Raises:
        OptionError: If a part cannot be read; it is shown.

    Example:
        >>> {name: str(prior) for name, prior in read_priors("a ~ normal(0,1),b ~ cauchy(0,2)").items()}
        {'a': 'normal(0, 1)', 'b': 'cauchy(0, 2)'}
    """  # noqa: E501
    found: dict[str, Prior] = {}
    for part in parts_of(text, "--prior", "write 'NAME ~ normal(0, 10)'."):
        name, tilde, words = part.rpartition("~")
        name = name.strip()
        where = f"--prior '{shown(part)}'"
        if not tilde or not name:
            raise OptionError(f"{where}: write it as 'NAME ~ normal(0, 10)'.")
        if name in found:
            raise OptionError(f"{where}: '{name}' has two priors; give one of them.")
        found[name] = read_prior(words, where)
    return found


def parts_of(text: str, option: str, example: str) -> list[str]:
    """What stands between the commas that are in no parentheses.

    Args:
        text: The parts.
        option: Where they were given, for messages.
        example: What to write, for messages.

    Raises:
        OptionError: If a parenthesis is not closed, or not opened.

    Example:
        >>> parts_of("a ~ normal(0, 1), b ~ cauchy(0, 2)", "--prior", "")
        ['a ~ normal(0, 1)', 'b ~ cauchy(0, 2)']
    """
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if depth < 0:
            break
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    if depth:
        which = "is not closed" if depth > 0 else "is closed and was not opened"
        raise OptionError(f"{option} '{shown(text.strip())}': a parenthesis {which}; {example}")
    return [part.strip() for part in parts if part.strip()]


def as_text(given: Any, option: str = "priors", example: str = "normal(0, 10)") -> Any:
    """Priors or formulas of a dict, such as {"bmi": "normal(0, 10)"}, in one text; else the same.

    Raises:
        OptionError: If a name or what it has is no text.

    Example:
        >>> as_text({"bmi": "normal(0, 10)", "sigma": "exponential(1)"})
        'bmi ~ normal(0, 10), sigma ~ exponential(1)'
    """
    if not isinstance(given, Mapping):
        return given
    for name, text in given.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise OptionError(
                f"{option}: '{shown(name)}' is given {shown(text)}; write it as text, such as "
                f"'{example}'."
            )
    return ", ".join(f"{name} ~ {text}" for name, text in given.items())
