"""What is written: Elbowroom's own files are replaced, everybody else's stay."""

import errno
import hashlib
import itertools
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from elbowroom.errors import RunFolderError
from elbowroom.run import output
from elbowroom.run.output import (
    BEGUN_FILES,
    CHECKPOINTS,
    LOCK,
    MANIFEST,
    REQUEST,
    UNFINISHED,
    cause,
    check_file,
    check_target,
    foreign,
    holds_unfinished,
    own_files,
    read_manifest,
    remove_unfinished,
    resolved,
    write_file,
    write_manifest,
    writing,
)
from elbowroom.run.unfinished import Request, change_request, unfinished

FILES = {"config.json": "{}", "posterior.nc": "draws", "guide/config.json": "{}"}
REQUESTED = Request({"options": {"steps": 3}}, pd.DataFrame({"x": [1.0]}))


def written(path: Path, overwrite: bool = False, mark: str = "", **given: Any) -> Path:
    with writing(path, overwrite, **given) as folder:
        for name, text in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text + mark)
    return path


def contents(path: Path) -> dict[str, Any]:
    """Everything in a folder: the text of files, where links point to, None for folders."""
    found: dict[str, Any] = {}
    for each in sorted(path.rglob("*")):
        name = each.relative_to(path).as_posix()
        if each.is_symlink():
            found[name] = os.readlink(each)
        else:
            found[name] = each.read_bytes() if each.is_file() else None
    return found


def checkpoint(path: Path, content: bytes = b"state", step: int = 1) -> Path:
    digest = hashlib.sha256(content).hexdigest()
    file = path / UNFINISHED / CHECKPOINTS / f"run0-step{step:010d}-{digest}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def begun(path: Path) -> Path:
    """A folder as a process leaves it that was killed after its first checkpoint."""
    with unfinished(path, REQUESTED):
        checkpoint(path)
    return path


@pytest.fixture(autouse=True)
def synchronised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is written to the disk before anything goes on, which may take long, is counted only."""
    done: list[int] = []
    monkeypatch.setattr(os, "fsync", done.append)
    return done


class Killed(BaseException):
    """What ends a process at once."""


def killed(patch: pytest.MonkeyPatch, moment: int, *names: str) -> None:
    """From that call of functions of `os` on, none of them does anything more."""
    calls = itertools.count()
    for name in names:
        function = getattr(os, name)

        def call(*given: Any, real: Any = function, **named: Any) -> Any:
            if next(calls) >= moment:
                raise Killed
            return real(*given, **named)

        patch.setattr(os, name, call)


def test_a_list_knows_each_file_by_its_hash_and_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "run")
    own = {path / name for name in (*FILES, MANIFEST)}
    assert own_files(path) == own
    assert foreign(path, own) == []
    content = json.loads((path / MANIFEST).read_text())
    for name, text in FILES.items():
        assert content["files"][name] == [hashlib.sha256(text.encode()).hexdigest()]
    (path / "config.json").write_text("{ }")
    (path / "guide" / "note.txt").touch()
    (path / "guide" / "empty").mkdir()
    assert own_files(path) == own - {path / "config.json"}
    assert {each.name for each in foreign(path, own_files(path))} == {
        "config.json", "note.txt", "empty",
    }  # fmt: skip
    content["files"]["guide/note.txt"] = [hashlib.sha256(b"").hexdigest()]
    (path / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    with pytest.raises(RunFolderError, match=r"manifest\.json', sha256: it is not the hash"):
        read_manifest(path)  # somebody has written into it
    assert own_files(path) == set()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3, "sha256": "x"}', "[" * 100_000])
def test_a_list_that_is_none_makes_nothing_ones_own(text: str, tmp_path: Path) -> None:
    written(tmp_path / "run")
    (tmp_path / "run" / MANIFEST).write_text(text)
    assert own_files(tmp_path / "run") == set()
    with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
        check_target(tmp_path / "run", overwrite=True)


def test_a_list_from_a_stranger_names_nothing_outside_and_no_links(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "link").symlink_to(tmp_path)
    (path / "posterior.nc").symlink_to(tmp_path / "thesis.txt")
    os.mkfifo(path / "history.csv")  # which would wait for a writer
    digest = [hashlib.sha256(b"all of it").hexdigest()]
    names = ("../thesis.txt", "link/thesis.txt", "posterior.nc", "history.csv")
    hashes = {**dict.fromkeys(names, digest), str(tmp_path / "thesis.txt"): digest}
    write_manifest(path, {**hashes, "config.json": [hashlib.sha256(b"{}").hexdigest()]})
    assert own_files(path) == {path / MANIFEST, path / "config.json"}
    with pytest.raises(RunFolderError, match=r"history\.csv' was not written by Elbowroom"):
        check_target(path, overwrite=True)


def given(path: Path, there: Path, case: str) -> None:
    """Puts something into a folder."""
    notes, inner = path / "notes", path / UNFINISHED
    match case:
        case "files":
            (path / "note.txt").write_text("mine")
            (path / ".note").write_text("mine")
            (path / "data.csv").write_text("x\n1\n")
            (path / "guide" / "mine.csv").write_text("mine")
        case "folders":
            (notes / "deep").mkdir(parents=True)
            (notes / "a").write_text("mine")
        case "links":
            (path / "link").symlink_to(there)
            (path / "to nothing").symlink_to("nowhere")
            os.link(there / "thesis.txt", path / "t.txt")
        case "another run":
            written(path / "inner")
        case "in what goes on":
            begun(path / "x")
            os.rename(path / "x" / UNFINISHED, inner)
            (path / "x").rmdir()
            (inner / "note.txt").write_text("mine")
        case "beside checkpoints":
            state = checkpoint(path)
            state.with_name("mine.safetensors").write_text("mine")
            state.with_name(f"run0-step0000000009-{'a' * 64}.safetensors").touch()


CASES = ("files", "folders", "links", "another run", "in what goes on", "beside checkpoints")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_what_is_somebodys_stays(
    case: str, exchange: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a disk without second names, and a system that cannot swap folders at once."""
    there = tmp_path / "elsewhere"
    there.mkdir()
    (there / "thesis.txt").write_text("all of it")
    path = written(tmp_path / "run")
    given(path, there, case)
    own = {each.relative_to(path).as_posix() for each in own_files(path)}
    before = contents(path)

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    if not exchange:
        monkeypatch.setattr(output, "_EXCHANGE", 1 << 20)  # of which no system knows
    written(path, overwrite=True, mark="new")
    after = contents(path)
    assert {k: v for k, v in before.items() if k not in own and v is not None}.items() <= (
        after.items()
    )
    for name, text in FILES.items():
        assert after[name] == f"{text}new".encode()
    assert contents(there) == {"thesis.txt": b"all of it"}
    assert {each.name for each in tmp_path.iterdir()} == {"run", "elsewhere"}
    if case == "in what goes on":
        assert {name for name in after if name.startswith(UNFINISHED)} == {
            UNFINISHED, f"{UNFINISHED}/note.txt",
        }  # fmt: skip
    written(path, overwrite=True)  # and may be replaced again


@pytest.mark.parametrize("name", [*FILES, MANIFEST, "data.parquet", "unfinished"])
def test_a_file_that_was_changed_or_is_somebodys_is_no_longer_replaced(
    name: str, tmp_path: Path
) -> None:
    """It has a name that is needed, so that the command is refused before any work."""
    path = written(tmp_path / "run")
    (path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
        check_target(path, overwrite=True, names=BEGUN_FILES)
    with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
        written(path, overwrite=True, names=BEGUN_FILES)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["note.txt", "config.json", "guide"])
def test_what_comes_while_the_folder_is_filled_is_not_lost_either(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    for first in (True, False):
        if not first:
            written(path)
            (path / "guide" / "config.json").unlink()
            (path / "guide").rmdir()

        def fill(path: Path = path) -> None:
            with writing(path, overwrite=True) as folder:
                (folder / "config.json").write_text("new")
                (folder / "guide").mkdir()
                (folder / "guide" / "config.json").write_text("new")
                path.mkdir(exist_ok=True)
                (path / name).write_text("mine")

        if first or name != "note.txt":
            with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
                fill()
        else:
            fill()
            assert (path / "config.json").read_text() == "new"
        assert (path / name).read_text() == "mine"
        assert [each.name for each in tmp_path.iterdir()] == ["run"]
        for each in path.iterdir():
            if each.is_file():
                each.unlink()
        if (path / "guide").exists():
            (path / "guide" / "config.json").unlink()
            (path / "guide").rmdir()
        path.rmdir()


def test_what_comes_between_the_last_look_and_the_swap_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = written(tmp_path / "run"), output._exchanged

    def late(folder: Path, place: Path) -> Path:
        (place / "note.txt").write_text("mine")
        (place / "posterior.nc").write_text("edited")
        return real(folder, place)

    monkeypatch.setattr(output, "_exchanged", late)
    with pytest.raises(RunFolderError, match="the rest is in '") as caught:
        written(path, overwrite=True, mark="new")
    assert (path / "note.txt").read_text() == "mine"
    assert (path / "posterior.nc").read_text() == "drawsnew"
    rest = Path(str(caught.value).rpartition("in '")[2].removesuffix("'."))
    assert contents(rest) == {"posterior.nc": b"edited"}


def test_a_folder_is_made_with_those_above_it_and_beside_its_place_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a folder on the same disk can be renamed at once; the system's own may be another."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such place"))
    path = tmp_path / "a" / "b" / "run"
    check_target(path, overwrite=False)
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]
    with writing(path, overwrite=False) as folder:
        assert folder.parent.parent == path.parent
        assert not path.exists()
        (folder / "config.json").write_text("{}")
    assert [each.name for each in path.parent.iterdir()] == ["run"]
    assert {each.name for each in path.iterdir()} == {"config.json", MANIFEST}


def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for _ in range(2):
        before = contents(tmp_path)
        with pytest.raises(KeyError), writing(path, overwrite=True) as folder:  # noqa: PT012
            (folder / "new").touch()
            raise KeyError
        assert contents(tmp_path) == before
        written(path, overwrite=True)
        (path / "note.txt").write_text("mine")


def test_a_folder_that_could_not_take_its_place_leaves_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "run", os.rename

    def failing(source: Any, target: Any) -> None:
        if Path(target) == path and Path(source).name != "before":
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(output, "_EXCHANGE", 1 << 20)
    for _ in range(2):
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", failing)
            with pytest.raises(RunFolderError, match="cannot be written: no"):
                written(path, overwrite=True, mark="new")
        assert contents(tmp_path) == before
        written(path, overwrite=True)
        (path / "note.txt").write_text("mine")


def test_a_kill_at_any_moment_of_the_swap_leaves_the_note_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each call that changes names; where folders can be swapped at once."""

    for moment in range(100):
        path = written(tmp_path / str(moment) / "run")
        (path / "note.txt").write_text("mine")
        with monkeypatch.context() as patch:
            killed(patch, moment, "link", "rename", "unlink", "rmdir", "replace")
            try:
                written(path, overwrite=True, mark="new")
            except Killed:
                pass
            else:
                break
        assert (path / "note.txt").read_text() == "mine"
        found = {(path / name).read_text() for name in ("config.json", "posterior.nc")}
        assert found in ({"{}", "draws"}, {"{}new", "drawsnew"})
    assert 5 < moment < 99


def test_every_file_is_on_the_disk_before_the_folder_takes_its_place(
    tmp_path: Path, synchronised: list[int]
) -> None:
    """Four files, three folders of which one is written into twice, and the list at its making."""
    written(tmp_path / "run")
    assert len(synchronised) >= len(FILES) + len(("list", "its folder", "guide", "folder", "above"))


def test_a_link_stays_and_its_folder_is_written(tmp_path: Path) -> None:
    written(tmp_path / "there")
    (tmp_path / "latest").symlink_to("there")
    written(tmp_path / "latest", overwrite=True, mark="new")
    assert os.readlink(tmp_path / "latest") == "there"
    assert (tmp_path / "there" / "config.json").read_text() == "{}new"
    (tmp_path / "dangling").symlink_to("not yet")
    written(tmp_path / "dangling")
    assert (tmp_path / "not yet" / "config.json").exists()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(RunFolderError, match="cannot be written"):
        check_target(tmp_path / "circle", overwrite=True)
    with pytest.raises(RunFolderError, match="cannot be written"):
        check_target(tmp_path / "a\0b", overwrite=True)
    assert resolved(tmp_path / "latest") == tmp_path / "there"


def test_a_folder_keeps_who_may_read_it(tmp_path: Path) -> None:
    path = written(tmp_path / "run")
    (path / "notes").mkdir(mode=0o700)
    path.chmod(0o750)
    written(path, overwrite=True)
    assert path.stat().st_mode & 0o777 == 0o750
    assert (path / "notes").stat().st_mode & 0o777 == 0o700


def test_nothing_is_replaced_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "run")
    with pytest.raises(RunFolderError, match="exists; choose another --output, or give --over"):
        written(path, mark="new")
    assert (path / "config.json").read_text() == "{}"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for name in ("theirs", "file", "."):
        for overwrite in (False, True):
            with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
                written(tmp_path / name, overwrite)
    with pytest.raises(RunFolderError, match="cannot be written"):
        check_target(tmp_path / "file" / "run", overwrite=True)
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()  # in which there is nothing to lose
    written(tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_no_kind_of_folder_replaces_another(tmp_path: Path) -> None:
    path = written(tmp_path / "run")
    with pytest.raises(RunFolderError, match="not by this command"):
        check_target(path, overwrite=True, marker="rows.csv", names=("rows.csv",))
    with writing(tmp_path / "rows", False, "rows.csv", ("rows.csv",)) as folder:
        (folder / "rows.csv").touch()
    check_target(tmp_path / "rows", True, "rows.csv", ("rows.csv",))
    with pytest.raises(RunFolderError, match="not by this command"):
        check_target(tmp_path / "rows", overwrite=True)


def test_what_is_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "run")
    (path / "data.csv").write_text("x\n1\n")
    monkeypatch.chdir(path)
    for given in (None, 3, "digits", "data.csv", path / "data.csv", "\0", "~nobody/x"):
        check_target(path, overwrite=True, inputs=(given,))
    (tmp_path / "link").symlink_to(path / "posterior.nc")
    for given in ("posterior.nc", path / "posterior.nc", str(tmp_path / "link")):
        with pytest.raises(RunFolderError, match=r"posterior\.nc' is read, and would be replaced"):
            check_target(path, overwrite=True, inputs=("iris", given))
    with writing(tmp_path / "arrays", False) as folder:
        (folder / "config.json").touch()
        np.savez(folder / "data.npz", x=np.ones(2))
    with pytest.raises(RunFolderError, match=r"data\.npz' is read"):
        check_target(tmp_path / "arrays", True, inputs=(f"{tmp_path}/arrays/data.npz:x",))


def test_a_run_that_has_not_ended_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    path = begun(tmp_path / "run")
    assert holds_unfinished(path)
    with pytest.raises(RunFolderError, match="not ended; continue it with --resume"):
        check_target(path, overwrite=False)
    check_target(path, overwrite=True)
    written(path, overwrite=True)
    assert not (path / UNFINISHED).exists()


@pytest.mark.parametrize("name", [REQUEST, "data.parquet", MANIFEST, LOCK])
def test_what_was_asked_and_then_changed_by_somebody_is_not_replaced(
    name: str, tmp_path: Path
) -> None:
    path = begun(tmp_path / "run")
    (path / UNFINISHED / name).write_text("mine")
    before = contents(path)
    with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
        check_target(path, overwrite=True, names=BEGUN_FILES)
    remove_unfinished(path)
    assert contents(path)[f"{UNFINISHED}/{name}"] == before[f"{UNFINISHED}/{name}"]


def test_a_request_is_known_before_and_after_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = begun(tmp_path / "run")
    file = path / UNFINISHED / REQUEST
    before = file.read_bytes()
    change_request(path, {"steps": 9})
    assert file.read_bytes() != before
    assert file in own_files(path)
    file.write_bytes(before)  # killed between the list and the file
    assert file in own_files(path)


def test_a_run_that_was_killed_at_its_beginning_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each call that changes names, until what was asked is there."""

    for moment in range(50):
        path = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            killed(patch, moment, "replace", "rmdir", "unlink", "mkdir")
            try:
                with unfinished(path, REQUESTED):
                    pass
            except Killed:
                pass
            else:
                break
        if holds_unfinished(path):
            continue
        check_target(path, overwrite=False)
        with unfinished(path, REQUESTED):
            pass
        remove_unfinished(path)
        assert list(path.iterdir()) == []
    assert 3 < moment < 49


def test_what_a_killed_run_leaves_of_the_one_before_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it has removed: the list of the files goes last."""
    for moment in range(50):
        path = begun(tmp_path / str(moment))
        with monkeypatch.context() as patch:
            killed(patch, moment, "replace", "rmdir", "unlink", "mkdir")
            try:
                with unfinished(path, REQUESTED, overwrite=True):
                    pass
            except Killed:
                pass
            else:
                break
        check_target(path, overwrite=True, names=BEGUN_FILES)
        assert foreign(path, own_files(path)) == []
    assert 8 < moment < 49


def test_another_run_in_the_folder_is_left_alone_when_results_are_written(tmp_path: Path) -> None:
    path = written(tmp_path / "run")
    with (
        unfinished(path, REQUESTED, overwrite=True),
        pytest.raises(RunFolderError, match="another run is writing to"),
    ):
        written(path, overwrite=True)
    written(path, overwrite=True)


def test_a_file_is_written_where_none_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.csv"
    check_file(path)
    write_file(path, b"x\n1\n")
    assert path.read_bytes() == b"x\n1\n"
    (tmp_path / "link").symlink_to("nowhere")
    before = contents(tmp_path)
    for each in (path, tmp_path / "link", tmp_path):
        with pytest.raises(RunFolderError, match="exists, and a file is never replaced"):
            check_file(each)
        with pytest.raises(RunFolderError, match="exists, and a file is never replaced"):
            write_file(each, b"")
    for each in (tmp_path / "none" / "p.csv", path / "p.csv"):
        with pytest.raises(RunFolderError, match="cannot be written"):
            check_file(each)
    write_file(Path(os.devnull), b"x")  # nothing is lost in it
    monkeypatch.setattr(output, "check_file", lambda path: None)  # it came in the meantime
    with pytest.raises(RunFolderError, match="File exists"):
        write_file(path, b"")
    assert contents(tmp_path) == before

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(RunFolderError, match="File exists"):
        write_file(path, b"")
    write_file(tmp_path / "q.csv", b"y")
    assert contents(tmp_path) == {**before, "q.csv": b"y"}


def test_a_full_disk_is_told_from_other_causes(tmp_path: Path) -> None:
    assert "make room" in cause(tmp_path, OSError(28, "No space left on device"))
    assert "Permission denied" in cause(tmp_path, OSError(13, "Permission denied"))
    assert "strange" in cause(tmp_path, OSError("strange"))


def test_a_list_may_be_read_by_whoever_may_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with writing(tmp_path / "run", overwrite=False) as folder:
            (folder / "config.json").write_text("{}")
    finally:
        os.umask(before)
    modes = {each.stat().st_mode & 0o777 for each in (tmp_path / "run").iterdir()}
    assert modes == {0o640}


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="files have no bound here")
def test_a_file_that_gets_too_large_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest still stands in the buffer of a file, and fails again when that is closed."""
    from resource import RLIMIT_FSIZE, getrlimit, setrlimit

    def no_names(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    limit = getrlimit(RLIMIT_FSIZE)
    reads = Path.read_bytes
    setrlimit(RLIMIT_FSIZE, (40_960, limit[1]))
    try:
        for size in (41_000, 45_000, 90_000):
            with pytest.raises(RunFolderError, match="File too large") as seen:
                write_file(tmp_path / "p.csv", bytes(size))
            assert list(tmp_path.iterdir()) == [], seen  # while the error holds what it came from
        monkeypatch.setattr(os, "link", no_names)
        monkeypatch.setattr(Path, "read_bytes", lambda path: reads(path) * 4500)
        with pytest.raises(RunFolderError, match="File too large"):
            write_file(tmp_path / "p.csv", bytes(10))
        assert list(tmp_path.iterdir()) == []
    finally:
        setrlimit(RLIMIT_FSIZE, limit)
