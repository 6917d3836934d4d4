"""The folder of a run that has not ended: what was asked, the data, checkpoints, and a lock."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from elbowroom.engines.svi.checkpoint import atomically
from elbowroom.errors import RunFolderError
from elbowroom.run.folder import (
    FORMAT,
    LOCK,
    REQUEST,
    UNFINISHED,
    cause,
    check_target,
    holds_unfinished,
    read_data,
    write_data,
)

CHECKPOINTS = "checkpoints"


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
    """A place in a run's folder for what it takes to go on, locked while the block runs.

    The lock keeps two runs out of one folder, and goes with the process that holds it. What else
    the folder holds stays as it is. A block that raises before there is a checkpoint leaves nothing
    behind.

    Args:
        path: The run's folder.
        request: What is asked; None goes on with what the folder holds.
        overwrite: Whether the folder's results are to be replaced, when there are new ones.

    Yields:
        Where checkpoints belong.

    Raises:
        RunFolderError: If another run writes into it, it exists and `overwrite` is not given, or it
            cannot be written.
    """
    inner = path / UNFINISHED
    if inner.is_dir():
        with _locked(path):  # another run's folder is not looked at
            pass
    if request is not None:
        check_target(path, overwrite)
    try:
        inner.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error
    with _locked(path):
        try:
            if request is not None:
                _begin(path, request)
            yield inner / CHECKPOINTS
        except Exception:
            if request is not None and not any((inner / CHECKPOINTS).glob("*.safetensors")):
                discard(path)
            raise


def discard(path: Path) -> None:
    """Removes what it takes to go on with a run, and its folder if that is all."""
    shutil.rmtree(path / UNFINISHED, ignore_errors=True)
    with suppress(OSError):  # it holds results
        path.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / UNFINISHED / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            f"another run is writing to '{path}'; choose another --output, or wait until that "
            "run ends."
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
        inner = path / UNFINISHED
        for each in inner.iterdir():
            if each.name != LOCK:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        scalars = write_data(request.data, inner)
        content = {
            "format": FORMAT, **request.asked, "scalars": scalars,
            "attributes": getattr(request.data, "attrs", {}),
        }  # fmt: skip
        atomically(inner / REQUEST, json.dumps(content, indent=1, default=str).encode())
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error


def change_request(path: Path, changes: dict[str, Any]) -> None:
    """Changes the options of what was asked of the run in a folder, whose lock is held."""
    file = path / UNFINISHED / REQUEST
    content = json.loads(file.read_text(encoding="utf-8"))
    kept = {k: v for k, v in content["options"].items() if k not in ("steps", "epochs")}
    content["options"] = {**kept, **changes}
    atomically(file, json.dumps(content, indent=1).encode())


def read_request(path: Path) -> Request:
    """What was asked of the run in a folder; runs no code from it.

    Raises:
        RunFolderError: If it holds no run that could go on.
    """
    if not holds_unfinished(path):
        ended = (path / "config.json").is_file()
        why = "this folder has no unfinished run; check the path"
        if ended:
            why = f"the run has ended; 'elbowroom summary {path}' shows it"
        raise RunFolderError(f"--resume {path}: {why}.")
    try:
        asked = json.loads((path / UNFINISHED / REQUEST).read_text(encoding="utf-8"))
        if asked.pop("format") > FORMAT:
            raise RunFolderError(
                f"'{path}' was written by a newer version of Elbowroom; upgrade with 'pip "
                "install --upgrade elbowroom'."
            )
        data = read_data(path / UNFINISHED, asked.pop("scalars"))
        attributes = asked.pop("attributes")
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(
            f"'{path}' cannot be read ({error}); check that the folder is complete, or fit again."
        ) from error
    if isinstance(data, pd.DataFrame):
        data.attrs.update(attributes)
    return Request(asked, data)
