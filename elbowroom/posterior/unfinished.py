"""The folder of a run that has not ended: what was asked, the data, checkpoints, and a lock."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from elbowroom.errors import RunFolderError
from elbowroom.inference.checkpoint import atomically
from elbowroom.posterior.run_folder import (
    CHECKPOINTS,
    FORMAT,
    REQUEST,
    cause,
    check_target,
    read_data,
    write_data,
)


@dataclass(frozen=True)
class Request:
    """What was asked of a run.

    Attributes:
        asked: The arguments of `elbowroom.fit` but the data, as JSON holds them.
        data: As the model took it.
    """

    asked: dict[str, Any]
    data: Any


@contextmanager
def unfinished(path: Path, request: Request | None, overwrite: bool = False) -> Iterator[Path]:
    """A folder for a run, locked while the block runs, so that two runs cannot write into one.

    The lock goes with the process that holds it. A block that raises before there is a checkpoint
    leaves no folder behind.

    Args:
        path: The folder.
        request: What is asked; None goes on with what the folder holds.
        overwrite: Whether to replace what is there.

    Yields:
        Where checkpoints belong.

    Raises:
        RunFolderError: If another run writes into it, it exists and `overwrite` is not given, or it
            cannot be written.
    """
    if path.is_dir():
        with _locked(path):  # another run's folder is not looked at
            pass
    if request is not None:
        check_target(path, overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error
    with _locked(path):
        if request is not None:
            _begin(path, request)
        try:
            yield path / CHECKPOINTS
        except Exception:
            if request is not None and not any((path / CHECKPOINTS).glob("*.safetensors")):
                discard(path)
            raise


def discard(path: Path) -> None:
    """Removes a folder that holds no results, but what it takes to go on with a run."""
    if (path / REQUEST).exists() and not (path / "config.json").exists():
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            f"another run is writing into '{path}'; choose another --output, or wait for its end."
        ) from error
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error
    try:
        yield
    finally:
        lock.release()


def _begin(path: Path, request: Request) -> None:
    """Writes what was asked; the JSON file last, which says that all is there."""
    try:
        for each in path.iterdir():
            if each.name != "lock":
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        scalars = write_data(request.data, path)
        content = {
            "format": FORMAT, **request.asked, "scalars": scalars,
            "attributes": getattr(request.data, "attrs", {}),
        }  # fmt: skip
        atomically(path / REQUEST, json.dumps(content, indent=1, default=str).encode())
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error


def read_request(path: Path) -> Request:
    """What was asked of the run in a folder; runs no code from it.

    Raises:
        RunFolderError: If it holds no run that could go on.
    """
    if not (path / REQUEST).is_file():
        ended = " ended; see elbowroom summary" if (path / "config.json").is_file() else " is none"
        raise RunFolderError(f"--resume {path}: the run{ended}. There is nothing to go on with.")
    try:
        asked = json.loads((path / REQUEST).read_text(encoding="utf-8"))
        if asked.pop("format") > FORMAT:
            raise RunFolderError(
                f"'{path}' was written by a newer Elbowroom: pip install --upgrade elbowroom."
            )
        data = read_data(path, asked.pop("scalars"))
        attributes = asked.pop("attributes")
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"'{path}' cannot be read: {error}") from error
    if isinstance(data, pd.DataFrame):
        data.attrs.update(attributes)
    return Request(asked, data)
