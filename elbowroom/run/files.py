"""Files of a folder that anyone may have written: looked at before they are read."""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from elbowroom.errors import RunFolderError

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class ReadLimits:
    """What a file of a folder that is not trusted may take."""

    json: int = 16 * 2**20
    """Bytes of a JSON file: the diagnostics of 50,000 quantities beside NUTS."""
    table: int = 64 * 2**20
    """Bytes of history.csv: of a million steps."""
    arrays: int = 576 * 2**20
    """Bytes of any other file, and of what it unpacks to: a posterior with all its groups
    at their largest, or 60,000 images. With the libraries, a gigabyte of memory holds it."""
    integer: int = 2**64
    """Where whole numbers of a JSON file end: those of tensors do, too."""
    reason: int = 300
    """Characters of what a library says of a damaged file, which may quote the file."""


LIMITS = ReadLimits()


@contextmanager
def reading(path: Path, field: str = "") -> Iterator[None]:
    """Turns whatever a damaged file makes a library raise into a sentence that names the file.

    Args:
        path: The file, or the folder.
        field: What of it is read.

    Raises:
        RunFolderError: In place of every other exception.

    Example:
        >>> with reading(Path("run/config.json"), "seed"):
        ...     int("x")
        Traceback (most recent call last):
        elbowroom.errors.RunFolderError: 'run/config.json', seed, cannot be used: invalid ...
    """
    try:
        yield
    except RunFolderError:
        raise
    except Exception as error:  # a damaged file makes libraries raise exceptions of any kind
        raise unusable(path, error, field) from error


def unusable(path: Path, error: Exception, field: str = "") -> RunFolderError:
    """The error for a file or folder with which something failed that a run does not make fail."""
    reason = " ".join(str(error).split())[: LIMITS.reason].rstrip(". ") or type(error).__name__
    where = f"'{path}', {field}," if field else f"'{path}'"
    return RunFolderError(f"{where} cannot be used: {reason}; restore it, or fit again.")


def damaged(path: Path, what: str) -> RunFolderError:
    """The error for a file that is not as it was written."""
    return RunFolderError(f"'{path}'{what}; restore it, or fit again.")


def too_large(path: Path, what: str, most: int) -> RunFolderError:
    """The error for a file that takes more than one that is not trusted may."""
    return RunFolderError(
        f"'{path}' {what}, and {most:,} are allowed; if you trust the run, give --trust, or "
        "er.load(path, trust=True)."
    )


def check_file(path: Path, most: int | None) -> None:
    """Sees that a file is one that can be read to its end.

    Args:
        path: The file.
        most: Bytes that it may have; None for any number.

    Raises:
        RunFolderError: If it is missing, too large, or not a plain file: a link may lead out of the
            folder, and a pipe or a device may have no end.
    """
    with reading(path):
        try:
            found = os.lstat(path)
        except FileNotFoundError as error:
            raise damaged(path, " is missing") from error
    if not stat.S_ISREG(found.st_mode):
        raise damaged(path, " is a link, folder, pipe or device, and must be a plain file")
    if most is not None and found.st_size > most:
        raise too_large(path, f"has {found.st_size:,} bytes", most)


def read_bytes(path: Path, most: int | None) -> bytes:
    """The content of a plain file.

    Raises:
        RunFolderError: As for `check_file`.
    """
    check_file(path, most)
    with reading(path):
        return path.read_bytes()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, digests: Collection[str]) -> None:
    """Sees that a file is what was written, by its SHA-256.

    Args:
        path: The file.
        digests: The hashes that it may have.

    Raises:
        RunFolderError: If it was changed or damaged.
    """
    with reading(path):
        found = digest_of(path)
    if found not in digests:
        raise damaged(path, " was changed or damaged after the run")


def parse_json(content: bytes) -> Any:
    """What JSON means, if it has one meaning: no key is there twice, and numbers end somewhere.

    Raises:
        ValueError: If it has none.
        RecursionError: If it is nested too deeply.

    Example:
        >>> parse_json(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' is there twice
    """
    return json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_int=_whole)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key '{name}' is there twice")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    if len(digits) > len(str(LIMITS.integer)) or abs(int(digits)) >= LIMITS.integer:
        raise ValueError(f"the number {digits[:20]}... is too large")
    return int(digits)


def read_json(path: Path, kind: type[Model]) -> Model:
    """A JSON file as its schema has it, to the type.

    Raises:
        RunFolderError: If it is not so; the message names the field.
    """
    content = read_bytes(path, LIMITS.json)
    with reading(path):
        parsed = parse_json(content)
    try:
        found = kind.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[: LIMITS.reason]
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise damaged(path, f"{f', {field}' if field else ''}: {message}") from error
    for name in parsed:
        for field in _left_out(name, found, parsed):
            raise damaged(path, f", {field}: field required")
    return found


def _left_out(name: str, parent: Any, raw: Mapping[str, Any]) -> Iterator[str]:
    """The fields of dataclasses that a file leaves to their defaults: evidence has none."""
    value, given = getattr(parent, name, None), raw[name]
    if is_dataclass(value):
        for field in fields(value):
            if field.name not in given:
                yield f"{name}.{field.name}"
            else:
                yield from (f"{name}.{each}" for each in _left_out(field.name, value, given))
