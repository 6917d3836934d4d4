"""Options: dataclasses of pydantic Fields, each declared next to the code that reads it.

The command line, its help, the messages for wrong values and the refusal of options that a fit does
not read all follow from the declarations.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from elbowroom.errors import OptionError


@dataclass(frozen=True)
class Option:
    """An option as it is declared.

    Attributes:
        name: In Python.
        kind: The type of its values.
        description: In a few words.
        default: Its default value; None if there is none to show.
        needs: The options without which it is not read, with the value that each must have. They
            are declared by `json_schema_extra` of its Field.
    """

    name: str
    kind: Any
    description: str
    default: Any
    needs: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return flag(self.name)


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
        plain = get_args(annotation)[0] if notes else annotation
        default = None if field.default in (None, MISSING, ()) else field.default
        description = notes[0].description if notes else None
        needs = notes[0].json_schema_extra if notes else None
        assert not callable(needs)
        found.append(Option(field.name, plain, description or "", default, needs or {}))
    return found


def option_names(kind: type | None) -> list[str]:
    """The names of an options dataclass."""
    return [] if kind is None else [field.name for field in fields(kind)]


def make_options(kind: type, given: Mapping[str, Any]) -> Any:
    """An options dataclass from what a user gave, with errors that name the option.

    Raises:
        OptionError: If a value is out of range or of the wrong kind.
    """
    kinds = {field.name: str(field.type) for field in fields(kind)}
    values = {
        name: _several(value) if "tuple" in kinds[name] else value for name, value in given.items()
    }
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else ""
            cause = problem.get("ctx", {}).get("error")
            if isinstance(cause, OptionError):
                lines.append(str(cause))
            elif problem["type"] == "none_required":
                continue  # the message for the other half of an optional type is better
            else:
                lines.append(f"{flag(name)} {given.get(name)!r}: {problem['msg'].lower()}.")
        raise OptionError("\n".join(dict.fromkeys(lines))) from error


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
