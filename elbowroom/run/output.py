"""The files and folders that are written: nothing is replaced but what Elbowroom wrote.

A folder has a list of its files with their hashes, `manifest.json`. A file with that name and that
hash is Elbowroom's own. Everything else in the folder is somebody's, and stays.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from elbowroom.engines.svi.checkpoint import CHECKPOINT, PARTIAL, atomically, permissions
from elbowroom.errors import RunFolderError
from elbowroom.run.files import (
    LIMITS,
    check_digest,
    damaged,
    digest_of,
    read_bytes,
    read_json,
)
from elbowroom.run.files import check_file as check_plain
from elbowroom.run.schema import Manifest

MANIFEST = "manifest.json"
"""The list of a folder's files."""
UNFINISHED = "unfinished"
"""What it takes to go on with a run, a folder in the run's own with a list of its own."""
REQUEST = "request.json"
"""What was asked of it, in that folder."""
LOCK = "lock"
"""The empty file there that a process holds while it runs."""
CHECKPOINTS = "checkpoints"
"""The folder there of the optimiser's states, whose names hold their hashes."""
FILES = (
    "config.json", "diagnostics.json", "history.csv", "params.safetensors", "posterior.nc",
    "run.json",
)  # fmt: skip
"""What a run folder holds beside the data."""
DATA = ("data.parquet", "data.npz")
"""The data, in one of these."""
RUN_FILES = (*FILES, *DATA)
"""What a run folder holds."""
BEGUN_FILES = (
    *RUN_FILES, UNFINISHED,
    *(
        f"{UNFINISHED}/{name}"
        for name in (CHECKPOINTS, LOCK, MANIFEST, REQUEST, *DATA)
    ),
)  # fmt: skip
"""Also those of a run that has not ended."""
_BLANK = "0" * 64
_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux's renameat2."""
_HERE = -100
"""AT_FDCWD: paths are relative to the current folder."""


def write_manifest(folder: Path, hashes: Mapping[str, Collection[str]]) -> None:
    """Writes the list of a folder's files, which has a hash of itself, too.

    Args:
        folder: Theirs.
        hashes: By a file's path in it, the hashes that its content may have: two where it is about
            to be changed, so that it is known whenever the process is killed.
    """
    content = {"files": {name: sorted(each) for name, each in hashes.items()}, "sha256": _BLANK}
    text = json.dumps(content, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    atomically(folder / MANIFEST, text.replace(_BLANK, digest).encode())


def read_manifest(folder: Path) -> dict[str, list[str]]:
    """The hashes of a folder's files by their paths in it.

    Raises:
        RunFolderError: If there is no list, or it is not as it was written.
    """
    path = folder / MANIFEST
    found = read_json(path, Manifest)
    blank = read_bytes(path, LIMITS.json).replace(found.sha256.encode(), _BLANK.encode())
    if hashlib.sha256(blank).hexdigest() != found.sha256:
        raise damaged(path, ", sha256: it is not the hash of this list")
    return found.files


def _manifest(folder: Path) -> dict[str, list[str]] | None:
    """The same; None where it cannot be read, so that nothing in the folder is Elbowroom's."""
    try:
        return read_manifest(folder)
    except RunFolderError:
        return None


def check_listed(
    folder: Path, names: Collection[str], most: int | None, left_out: Collection[str] = ()
) -> Path:
    """Sees that a folder's files are plain ones, as they were written, and that no other is listed.

    Args:
        folder: Theirs.
        names: Of the files that there must be beside one with the data.
        most: Bytes that each may have; None for any number.
        left_out: Files that are not looked at.

    Returns:
        The file with the data.

    Raises:
        RunFolderError: If one is missing, too large, damaged, or not listed; it is named.
    """
    listed = read_manifest(folder)
    data = next((name for name in DATA if name in listed), " or ".join(DATA))
    for name in (*names, data):
        if name not in listed:
            raise damaged(folder / MANIFEST, f", files: {name} is missing in the list")
    for name in listed:
        if name not in (*names, data):
            raise damaged(folder / MANIFEST, f", files: '{name[:100]}' does not belong to a run")
    for name in listed:
        if name not in left_out:
            check_plain(folder / name, most)
            check_digest(folder / name, listed[name])
    return folder / data


def _regular(path: Path) -> bool:
    """Whether it is a file itself: no link, which is somebody's, and no device, which may wait."""
    return stat.S_ISREG(path.lstat().st_mode)


def _has(path: Path, digests: Collection[str]) -> bool:
    try:
        return _regular(path) and bool(digests) and digest_of(path) in digests
    except OSError:
        return False


def _entries(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Every entry below a folder, and whether it is a folder; a link to one is not."""
    for each in sorted(folder.iterdir()):
        inner = each.is_dir() and not each.is_symlink()
        yield each, inner
        if inner:
            yield from _entries(each)


def own_files(folder: Path) -> set[Path]:
    """The files in a folder that Elbowroom wrote, and that nobody has changed since."""
    own = _listed(folder)
    inner = folder / UNFINISHED
    if not inner.is_dir() or inner.is_symlink():
        return own
    own |= _listed(inner)
    for each, is_folder in _entries(inner):
        name = CHECKPOINT.fullmatch(each.name)
        if not is_folder and (
            (each == inner / LOCK and _regular(each) and each.stat().st_size == 0)
            or (each.parent == inner / CHECKPOINTS and name and _has(each, name.groups()[-1:]))
            or (_partial(each, inner) and _regular(each))
        ):
            own.add(each)
    return own


def _partial(path: Path, folder: Path) -> bool:
    """Whether it was cut short by a kill: it has a name that nobody else gives."""
    return any(part.startswith(PARTIAL) for part in path.relative_to(folder).parts)


def _listed(folder: Path) -> set[Path]:
    found = _manifest(folder)
    if found is None:
        return set()
    # Entries are looked up in the list, not the other way round: a list names nothing outside.
    tops = {name.partition("/")[0] for name in found}
    own = {folder / MANIFEST}
    for top in sorted(folder.iterdir()):
        if top.name in tops:
            inner = top.is_dir() and not top.is_symlink()
            for each in [top, *(each for each, _ in _entries(top))] if inner else [top]:
                if _has(each, found.get(each.relative_to(folder).as_posix(), ())):
                    own.add(each)
    return own


def foreign(folder: Path, own: Collection[Path]) -> list[Path]:
    """What is in a folder beside Elbowroom's own files, and the folders of these."""
    needed = {parent for each in own for parent in each.parents}
    needed |= {folder / UNFINISHED, folder / UNFINISHED / CHECKPOINTS}
    return [
        each
        for each, is_folder in _entries(folder)
        if each not in own and not (is_folder and (each in needed or _partial(each, folder)))
    ]


def resolved(path: Path) -> Path:
    """A path without links: what a link points to is written, and the link stays.

    Raises:
        RunFolderError: If there can be no such path, as links go round in a circle.
    """
    try:
        return path.resolve()
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error
    except (RuntimeError, ValueError) as error:
        raise RunFolderError(
            f"'{path}' cannot be written: {error}; choose another --output."
        ) from error


def check_target(
    path: Path,
    overwrite: bool,
    marker: str = "config.json",
    names: Collection[str] = RUN_FILES,
    inputs: Collection[Any] = (),
) -> None:
    """Sees before any work that a folder can be written, and that nobody's files are in the way.

    Args:
        path: The folder to be.
        overwrite: Whether to replace Elbowroom's files in one that is there. Others stay.
        marker: A file that tells the kind of the folder: no kind replaces another.
        names: Of the files and folders that will be written.
        inputs: Files that are read, or other values, which are not looked at.

    Raises:
        RunFolderError: If it exists and `overwrite` is not given, is not Elbowroom's, has another's
            file under a name that is needed or a file that is read, or cannot be written.
    """
    path = resolved(path)
    if os.path.lexists(path):
        _check_existing(path, overwrite, marker, names, inputs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PARTIAL) as probe:
            (Path(probe) / path.name).mkdir()
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error


def _check_existing(
    path: Path,
    overwrite: bool,
    marker: str,
    names: Collection[str],
    inputs: Collection[Any],
) -> None:
    if not path.is_dir():
        raise RunFolderError(
            f"'{path}' exists and was not written by Elbowroom: it is a file; choose another "
            "--output."
        )
    try:
        own = own_files(path)
        others = foreign(path, own)
    except OSError as error:
        raise RunFolderError(f"{cause(path, error)}") from error
    barely = _barely_begun(path, others)
    listed = _manifest(path)
    ended = listed is not None and marker in listed
    unended = any(path / UNFINISHED in each.parents for each in own)
    if not overwrite and not ended and holds_unfinished(path):
        raise RunFolderError(
            f"'{path}' contains a run that has not ended; continue it with --resume {path}, "
            "choose another --output, or give --overwrite."
        )
    if not (ended or barely or (unended and listed is None)):
        raise RunFolderError(
            f"'{path}' exists and was not written by Elbowroom, or not by this command, so it is "
            "not replaced; choose another --output."
        )
    if not (overwrite or barely):
        raise RunFolderError(f"'{path}' exists; choose another --output, or give --overwrite.")
    taken = {*names, *(listed or ()), MANIFEST, marker}
    for each in others:
        if each.relative_to(path).as_posix() in taken:
            raise _in_the_way(each)
    for each in inputs:
        read = _input_in(each, own)
        if read is not None:
            raise RunFolderError(
                f"'{read}' is read, and would be replaced; copy it elsewhere, or choose another "
                "--output."
            )


def _input_in(given: Any, own: Collection[Path]) -> Path | None:
    """The file that is read, if it is among others."""
    if not isinstance(given, (str, Path)):
        return None
    text = str(given)
    for each in (text, text.rpartition(".npz:")[0] + ".npz"):
        with suppress(OSError, RuntimeError, ValueError):
            file = Path(each).expanduser().resolve()
            if file in own:
                return file
    return None


def _barely_begun(path: Path, others: Collection[Path]) -> bool:
    """Whether it is empty, or a run was killed in it before it had written what was asked."""
    inner = path / UNFINISHED
    alone = {each.name for each in path.iterdir()} <= {UNFINISHED}
    begun = holds_unfinished(path) or any((inner / CHECKPOINTS).glob("*"))
    return alone and not others and not begun


def holds_unfinished(path: Path) -> bool:
    """Whether a folder holds a run that can go on."""
    return (path / UNFINISHED / REQUEST).is_file()


def cause(path: Path, error: OSError) -> str:
    """Why something cannot be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full: '{path}' cannot be written; make room, or choose another --output."
        )
    return f"'{path}' cannot be written: {error.strerror or error}; choose another --output."


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs.

    Raises:
        RunFolderError: If another process has it.
    """
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


@contextmanager
def writing(
    path: Path, overwrite: bool, marker: str = "config.json", names: Collection[str] = RUN_FILES
) -> Iterator[Path]:
    """A folder to fill, which takes its place at `path` when the block ends, whole or not at all.

    Of a folder that is there, Elbowroom's own files are replaced, and everything else stays.

    Args:
        path: The folder to be.
        overwrite: As for `check_target`.
        marker: As for `check_target`.
        names: As for `check_target`.

    Raises:
        RunFolderError: As `check_target`.
    """
    path = resolved(path)
    check_target(path, overwrite, marker, names)
    try:
        with locked(path) if (path / UNFINISHED).is_dir() else nullcontext():
            beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=PARTIAL))
            folder = beside / path.name
            folder.mkdir()
            made = folder.stat()
            try:
                yield folder
                _list_files(folder)
                if os.path.lexists(path):  # it may have come, or changed, in the meantime
                    _check_existing(path, overwrite, marker, names, ())
                    _carry(path, folder)
                synchronised(folder, is_folder=True)
                _take_place(folder, path)
            finally:
                with suppress(OSError):
                    if os.path.samestat(folder.stat(), made):  # it has not taken its place
                        shutil.rmtree(folder)
                with suppress(OSError):
                    beside.rmdir()
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error


def _list_files(folder: Path) -> None:
    """Writes the list of a filled folder; what it takes to go on with a run has its own."""
    hashes = {}
    for each, is_folder in _entries(folder):
        if not is_folder and folder / UNFINISHED not in each.parents:
            hashes[each.relative_to(folder).as_posix()] = [digest_of(each)]
        synchronised(each, is_folder)
    write_manifest(folder, hashes)


def _carry(path: Path, folder: Path) -> None:
    """Gives what is not Elbowroom's in a folder another name in the one that replaces it."""
    shutil.copymode(path, folder)
    folders = []
    for each in foreign(path, own_files(path)):
        target = folder / each.relative_to(path)
        if each.is_dir() and not each.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
            folders.append((each, target))
        elif os.path.lexists(target):
            raise _in_the_way(each)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a disk without such names: it is moved, later
                os.link(each, target, follow_symlinks=False)
    for each, target in reversed(folders):
        shutil.copystat(each, target)


def _in_the_way(path: Path) -> RunFolderError:
    return RunFolderError(
        f"'{path}' was not written by Elbowroom, or was changed since, so it is not replaced; move "
        "it elsewhere, or choose another --output."
    )


def _take_place(folder: Path, path: Path) -> None:
    """Puts a filled folder at a path, and removes what it replaces there."""
    if not os.path.lexists(path):
        os.rename(folder, path)
        synchronised(path.parent, is_folder=True)
        return
    old = _exchanged(folder, path)
    synchronised(path.parent, is_folder=True)
    for each in own_files(old):
        each.unlink()
    for each, is_folder in reversed(list(_entries(old))):  # a folder after what is in it
        target = path / each.relative_to(old)
        with suppress(OSError):  # it stays
            if is_folder:
                each.rmdir()
            elif not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(each, target)
            elif os.path.samestat(each.lstat(), target.lstat()):
                each.unlink()
    try:
        old.rmdir()
    except OSError as error:
        raise RunFolderError(
            f"the results are in '{path}', but not all that was there could be moved with them: "
            f"the rest is in '{old}'."
        ) from error


def _exchanged(folder: Path, path: Path) -> Path:
    """Swaps two folders, at once where the system can; gives where the second one is now."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    places = (os.fsencode(folder), os.fsencode(path))
    if rename is not None and not rename(_HERE, places[0], _HERE, places[1], _EXCHANGE):
        return folder
    before = folder.with_name("before")
    os.rename(path, before)
    try:
        os.rename(folder, path)
    except OSError:
        os.rename(before, path)
        raise
    return before


def synchronised(path: Path, is_folder: bool) -> None:
    """Sees that a file's content, or the names in a folder, outlive a loss of power."""
    if is_folder and not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(path: Path, keep: Collection[str] = ()) -> None:
    """Removes Elbowroom's files of a run that has not ended, and the folders that are then empty.

    Args:
        path: The run's folder.
        keep: Names of files that stay.
    """
    inner = path / UNFINISHED
    # What was asked goes first, so that nothing goes on with a part; the list, by which the others
    # are known, goes last, since a kill may fall between any two.
    order = {REQUEST: -1, MANIFEST: 1}
    for each in sorted(own_files(path), key=lambda each: order.get(each.name, 0)):
        if inner in each.parents and each.name not in keep:
            each.unlink(missing_ok=True)
    if inner.is_dir():
        for each, is_folder in reversed([(inner, True), *_entries(inner)]):
            with suppress(OSError):  # something is left in it
                if is_folder:
                    each.rmdir()


def check_file(path: Path) -> None:
    """Sees before any work that a file can be written where none is.

    Raises:
        RunFolderError: If there is one, since no list tells whose it is, or it cannot be written.
    """
    if _takes_all(path):
        return
    if os.path.lexists(path):
        raise RunFolderError(
            f"'{path}' exists, and a file is never replaced; choose another --output, or remove it."
        )
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=PARTIAL):
            pass
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error


def write_file(path: Path, content: bytes) -> None:
    """Writes a file where none is, whole or not at all.

    Raises:
        RunFolderError: As `check_file`.
    """
    check_file(path)
    try:
        if _takes_all(path):
            path.write_bytes(content)
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=PARTIAL, delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                _name(Path(file.name), path)
            finally:
                os.unlink(file.name)
        with suppress(OSError):
            os.chmod(path, permissions())
    except OSError as error:
        raise RunFolderError(cause(path, error)) from error


def _name(file: Path, path: Path) -> None:
    """Gives a file a second name, which nothing has."""
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without such names
        with path.open("xb") as stream:
            try:
                stream.write(file.read_bytes())
                stream.flush()
            except OSError:
                path.unlink()
                raise


def _takes_all(path: Path) -> bool:
    """Whether it is a pipe or a terminal, in which nothing is lost."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
