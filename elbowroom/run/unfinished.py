"""The folder of a run that has not ended: what was asked, the data, checkpoints, and a lock."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from elbowroom.engines.svi.checkpoint import PARTIAL, atomically
from elbowroom.errors import RunFolderError
from elbowroom.run.files import LIMITS, check_file, damaged, digest_of, read_json
from elbowroom.run.folder import check_format, read_data, write_data
from elbowroom.run.output import (
    BEGUN_FILES,
    CHECKPOINTS,
    LOCK,
    REQUEST,
    RUN_FILES,
    UNFINISHED,
    cause,
    check_listed,
    check_target,
    holds_unfinished,
    locked,
    read_manifest,
    remove_unfinished,
    synchronised,
    write_manifest,
)
from elbowroom.run.schema import FORMAT, Asked, plain


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
    names = RUN_FILES if request is None else BEGUN_FILES
    if inner.is_dir():
        with locked(path):  # another run's folder is not looked at
            pass
    check_target(path, overwrite or request is None, names=names)
    try:
        inner.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error
    with locked(path):
        check_target(
            path, overwrite or request is None, names=names
        )  # another run may have ended in it
        try:
            if request is not None:
                _begin(path, request)
            yield inner / CHECKPOINTS
        except Exception:
            if request is not None and not any((inner / CHECKPOINTS).glob("*.safetensors")):
                discard(path)
            raise


def discard(path: Path) -> None:
    """Removes what was written to go on with a run, and its folder if that is all."""
    with suppress(OSError):  # it holds results
        remove_unfinished(path)
        path.rmdir()


def _begin(path: Path, request: Request) -> None:
    """Writes what was asked; the JSON file last, which says that all is there."""
    inner = path / UNFINISHED
    try:
        remove_unfinished(path, keep=(LOCK,))
        with tempfile.TemporaryDirectory(dir=inner, prefix=PARTIAL) as temporary:
            scalars = write_data(request.data, Path(temporary))
            content = {
                "format": FORMAT, **request.asked, "scalars": scalars,
                "attributes": getattr(request.data, "attrs", {}),
            }  # fmt: skip
            text = json.dumps(content, indent=1, default=plain).encode()
            files = list(Path(temporary).iterdir())
            # The list first: each file is known, whenever the process is killed.
            hashes = {each.name: [digest_of(each)] for each in files}
            write_manifest(inner, {**hashes, REQUEST: [hashlib.sha256(text).hexdigest()]})
            for each in files:
                synchronised(each, is_folder=False)
                os.replace(each, inner / each.name)
        atomically(inner / REQUEST, text)
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error


def change_request(path: Path, changes: dict[str, Any]) -> None:
    """Changes the options of what was asked of the run in a folder, whose lock is held."""
    file = path / UNFINISHED / REQUEST
    content = json.loads(file.read_text(encoding="utf-8"))
    kept = {k: v for k, v in content["options"].items() if k not in ("steps", "epochs")}
    content["options"] = {**kept, **changes}
    text = json.dumps(content, indent=1).encode()
    both = [digest_of(file), hashlib.sha256(text).hexdigest()]
    write_manifest(file.parent, {**read_manifest(file.parent), REQUEST: both})
    atomically(file, text)


def _check_within(inner: Path) -> None:
    """Sees that what is written to a folder's own folder does not go elsewhere by a link.

    Raises:
        RunFolderError: If the folder, its checkpoints or its lock are links, or no plain file.
    """
    for each in (inner, inner / CHECKPOINTS):
        if each.is_symlink():
            raise damaged(each, " is a link, and must be a folder")
    if os.path.lexists(inner / LOCK):
        check_file(inner / LOCK, None)


def read_request(path: Path, trust: bool = False) -> Request:
    """What was asked of the run in a folder; runs no code from it.

    Args:
        path: The run's folder.
        trust: Whether files may be larger than `elbowroom.run.files.LIMITS`.

    Raises:
        RunFolderError: If it holds no run that could go on, or a file is damaged.
    """
    if not holds_unfinished(path):
        ended = (path / "config.json").is_file()
        why = "this folder has no unfinished run; check the path"
        if ended:
            why = f"the run has ended; 'elbowroom summary {path}' shows it"
        raise RunFolderError(f"--resume {path}: {why}.")
    inner = path / UNFINISHED
    _check_within(inner)
    check_format(path, inner / REQUEST)
    most = None if trust else LIMITS.arrays
    file = check_listed(inner, (REQUEST,), most)
    asked = read_json(inner / REQUEST, Asked).model_dump(exclude={"format"})
    data = read_data(file, asked.pop("scalars"), most)
    attributes = asked.pop("attributes")
    if isinstance(data, pd.DataFrame):
        data.attrs.update(attributes)
    return Request(asked, data)
