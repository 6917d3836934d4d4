"""Priors from a TOML file: names of quantities with their priors, such as bmi = "normal(0, 10)"."""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elbowroom.errors import OptionError, shown
from elbowroom.models._priors import read_priors

LARGEST_FILE = 100_000
"""Bytes of a file of priors, and characters of the text that they make."""
EXAMPLE = 'write a line for each prior, such as bmi = "normal(0, 10)"'


def prior_file(options: Mapping[str, Any]) -> Path | None:
    """The file that the option `priors` names, if it names one."""
    given = options.get("priors")
    if isinstance(given, Path):
        return given
    named = isinstance(given, str) and given.endswith(".toml") and "~" not in given
    return Path(str(given)) if named else None


def with_priors_read(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the content of a file of priors in the place of its name, if there is one.

    So the file is a part of the run, which never reads it again.

    Raises:
        OptionError: As for `read_prior_file`.
    """
    path = prior_file(options)
    return dict(options) if path is None else {**options, "priors": read_prior_file(path)}


def read_prior_file(path: Path) -> dict[str, str]:
    r"""The priors in a TOML file, by the names of what they are of.

    Raises:
        OptionError: If it cannot be read, is too large, or a line of it is no prior; the file and
            the name are said.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "priors.toml")
        ...     _ = path.write_text('bmi = "normal(0, 10)"\nsigma = "exponential(0.02)"\n')
        ...     read_prior_file(path)
        {'bmi': 'normal(0, 10)', 'sigma': 'exponential(0.02)'}
    """
    found = _parsed(path)
    if not found:
        raise OptionError(f"--priors {path}: the file has no priors; {EXAMPLE}.")
    for name, text in found.items():
        where = f"--priors {path}, {shown(name)}"
        if not isinstance(text, str):
            kind = "a table" if isinstance(text, dict) else shown(text)
            quote = "; put a name with a dot in double quotes" if isinstance(text, dict) else ""
            raise OptionError(f"{where}: it is {kind}, and no text{quote}; {EXAMPLE}.")
        try:
            read = read_priors(f"{name} ~ {text}")
        except OptionError as error:
            reason = str(error).partition("': ")[2] or str(error)
            raise OptionError(f"{where}: {reason}") from error
        if [*read] != [name.strip()]:
            raise OptionError(f"{where}: {shown(text)} is more than one prior; {EXAMPLE}.")
    return found


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if not path.exists():
            raise OptionError(f"--priors {path}: there is no such file; check the path.")
        if not path.is_file():  # a pipe or a device may have no end
            raise OptionError(f"--priors {path}: it is no file; give a TOML file of priors.")
        if path.stat().st_size > LARGEST_FILE:
            raise OptionError(
                f"--priors {path}: the file has {path.stat().st_size:,} bytes, and "
                f"{LARGEST_FILE:,} are allowed; give priors alone."
            )
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".")
        said = f"--priors {path}: it cannot be read as TOML ({reason}); {EXAMPLE}."
        raise OptionError(said) from error


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Names the file in errors of priors that were read from it."""
    try:
        yield
    except OptionError as error:
        if path is None or not str(error).startswith("--prior '"):
            raise
        raise OptionError(f"{path}: {str(error).removeprefix('--prior ')}") from error
