"""Options: dataclasses of pydantic Fields, each declared next to the code that reads it.

The command line, its help, the messages for wrong values and the refusal of options that a fit does
not read all follow from the declarations. A number has both ends of its range in its declaration,
so that no value is left to whatever it would make run out.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from elbowroom.errors import OptionError, shown

Name = Annotated[str, Field(min_length=1, max_length=1000)]
"""A name that a user gives, such as that of a column."""
Location = Annotated[float, Field(ge=-1e100, le=1e100)]
"""A number on the data's own scale."""
Scale = Annotated[float, Field(gt=0, le=1e100)]
"""A width on the data's own scale."""
Width = Annotated[int, Field(ge=1, le=10_000)]
"""How many units, latents or pixels there are side by side."""


@dataclass(frozen=True)
class Option:
    """An option as it is declared.

    Attributes:
        name: In Python.
        kind: The type of its values, with the constraints on them.
        description: In a few words.
        default: Its default value; None if there is none to show.
        needs: The options without which it is not read, with the value that each must have. They
            are declared by `json_schema_extra` of its Field.
        title: Its name on the command line, where that is a word of Python's; the Field's title.
    """

    name: str
    kind: Any
    description: str
    default: Any
    needs: Mapping[str, Any]
    title: str | None = None

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return flag(self.title or self.name)

    @property
    def plain(self) -> type:
        """The type of a value on the command line: int, float, bool, or str for all else."""
        kind = _parts(self.kind)[0]
        return kind if kind in (int, float, bool) else str

    @property
    def range(self) -> str:
        """The numbers that it takes, such as "1 to 9"; empty where it takes something else."""
        return _range(self.kind)

    @property
    def expected(self) -> str:
        """What it takes, in words, such as "a whole number from 1 to 9"."""
        return _expected(self.kind)


@dataclass(frozen=True)
class _Limits:
    """What a Field says of the values of a type, each None where it says nothing."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None

    @property
    def range(self) -> str:
        """Both ends of a range of numbers; empty where one is open."""
        if (self.ge is None and self.gt is None) or (self.le is None and self.lt is None):
            return ""
        begin = _number(self.ge) if self.ge is not None else f"above {_number(self.gt)}"
        end = _number(self.le) if self.le is not None else f"below {_number(self.lt)}"
        return f"{begin} to {end}"


def _parts(kind: Any) -> tuple[Any, _Limits]:
    """A type without None, and the limits of its values, those of all layers of annotations."""
    plain, found = kind, dict[str, Any]()
    while get_origin(plain) in (Annotated, Union, UnionType):
        if get_origin(plain) is not Annotated:
            kinds = [each for each in get_args(plain) if each is not type(None)]
            if len(kinds) > 1:
                break
            plain = kinds[0]
            continue
        plain, *notes = get_args(plain)
        of_fields = [note for note in notes if isinstance(note, FieldInfo)]
        for each in [*notes, *(limit for note in of_fields for limit in note.metadata)]:
            for name in option_names(_Limits):
                if not isinstance(each, FieldInfo) and getattr(each, name, None) is not None:
                    found.setdefault(name, getattr(each, name))
    return plain, _Limits(**found)


def _number(value: Any) -> str:
    """A number as it is read: 1,000, 0.5 or 1e+100."""
    whole = float(value).is_integer() and abs(value) < 1e15
    return f"{int(value):,}" if whole else f"{value:g}"


def _range(kind: Any) -> str:
    plain, limits = _parts(kind)
    if get_origin(plain) is tuple:
        return _range(get_args(plain)[0])
    return limits.range if plain in (int, float) else ""


def _expected(kind: Any) -> str:
    plain, limits = _parts(kind)
    if plain in (int, float):
        article = "a whole number" if plain is int else "a number"
        start = "" if limits.range.startswith("above") else "from "
        return f"{article} {start}{limits.range}" if limits.range else article
    if get_origin(plain) is Literal:
        *others, last = get_args(plain)
        return f"{', '.join(others)} or {last}" if others else str(last)
    if get_origin(plain) is tuple:
        each, *more = get_args(plain)
        if more != [...]:
            return f"{len(more) + 1} values separated by a comma, each {_expected(each)}"
        count = "values" if limits.max_length is None else f"at most {limits.max_length:,} values"
        return f"{count} separated by commas, each {_expected(each)}"
    if plain is bool:
        return "true or false"
    if limits.max_length is None:
        return "text"
    return f"text of {limits.min_length or 0:,} to {limits.max_length:,} characters"


def flag(name: str) -> str:
    """An option's name on the command line.

    Example:
        >>> flag("batch_size")
        '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def declared(kind: type | None) -> list[Option]:
    """The options of a dataclass."""
    if kind is None:
        return []
    hints, found = get_type_hints(kind, include_extras=True), []
    for field in fields(kind):
        annotation = hints[field.name]
        notes = [note for note in get_args(annotation)[1:] if isinstance(note, FieldInfo)]
        note = notes[-1] if notes else FieldInfo()
        default = None if field.default in (None, MISSING, ()) else field.default
        needs = note.json_schema_extra
        assert not callable(needs)
        found.append(
            Option(
                field.name, annotation, note.description or "", default, needs or {}, note.title
            )
        )  # fmt: skip
    return found


def option_names(kind: type | None) -> list[str]:
    """The names of an options dataclass."""
    return [] if kind is None else [field.name for field in fields(kind)]


def make_options(kind: type, given: Mapping[str, Any]) -> Any:
    """An options dataclass from what a user gave, with errors that name the option.

    Raises:
        OptionError: If a value is out of range or of the wrong kind.
    """
    options = {option.name: option for option in declared(kind)}
    values = {
        name: _several(value) if get_origin(_parts(options[name].kind)[0]) is tuple else value
        for name, value in given.items()
    }
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            cause = problem.get("ctx", {}).get("error")
            if isinstance(cause, OptionError):
                lines.append(str(cause))
                continue
            option = options[str(problem["loc"][0])]
            value = shown(given.get(option.name))
            lines.append(f"{option.flag} {value}: give {option.expected}.")
        raise OptionError("\n".join(dict.fromkeys(lines))) from error


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def check_options(kind: type, **given: Any) -> None:
    """Sees that some values are those that an options dataclass takes.

    Raises:
        OptionError: If one is out of range or of the wrong kind.

    Example:
        >>> @dataclass
        ... class Asked:
        ...     draws: Annotated[int, Field(ge=100, le=1000)] = 200
        >>> check_options(Asked, draws=0)
        Traceback (most recent call last):
        elbowroom.errors.OptionError: --draws 0: give a whole number from 100 to 1,000.
    """
    make_options(kind, given)


def _several(value: Any) -> Any:
    """The values of an option that takes several, given as `"a,b"`, as a list or as one value."""
    if isinstance(value, str):
        return value.split(",")
    return [value] if isinstance(value, (int, float)) else value


def split_options(given: Mapping[str, Any], *kinds: type | None) -> list[dict[str, Any]]:
    """Splits options between the dataclasses that declare them.

    Raises:
        OptionError: If none has one; the nearest name is suggested.
    """
    known = [option_names(kind) for kind in kinds]
    for name in given:
        if not any(name in names for names in known):
            raise _unknown(name, [each for names in known for each in names])
    return [{k: v for k, v in given.items() if k in names} for names in known]


def _unknown(name: str, known: list[str]) -> OptionError:
    near = get_close_matches(name, sorted(set(known)), n=1)
    hint = f"; did you mean '{flag(near[0])}'?" if near else "."
    return OptionError(
        f"there is no option '{flag(name)}'{hint} 'elbowroom fit --help', 'elbowroom models MODEL' "
        "and 'elbowroom objectives' list the options."
    )


def refuse_unread(
    given: Iterable[str], read: Collection[str], everyone: Mapping[str, Collection[str]]
) -> None:
    """Refuses an option that nothing in the fit reads.

    Args:
        given: Names of the options that the user gave.
        read: Those that the fit reads.
        everyone: Those that something else reads, by the setting or guide that reads them.

    Raises:
        OptionError: At the first one; it says who reads it.

    Example:
        >>> refuse_unread(["alpha"], ["alpha"], {})
        >>> refuse_unread(["alpha"], [], {"--elbo renyi": ["alpha"]})
        Traceback (most recent call last):
        elbowroom.errors.OptionError: --alpha would have no effect: it is for --elbo renyi; ...
    """
    for name in given:
        if name not in read:
            owners = [who for who, names in everyone.items() if name in names]
            raise OptionError(
                f"{flag(name)} would have no effect: it is for {' and '.join(owners)}; leave "
                f"it out, or give {' or '.join(owners)}."
            )
