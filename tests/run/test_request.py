"""The folder of a run that has not ended, without a fit: what is begun, kept, cleared and read."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from elbowroom.errors import RunFolderError
from elbowroom.run.files import digest_of
from elbowroom.run.folder import FORMAT
from elbowroom.run.output import (
    LOCK,
    MANIFEST,
    REQUEST,
    UNFINISHED,
    read_manifest,
    write_manifest,
    writing,
)
from elbowroom.run.unfinished import Request, change_request, discard, read_request, unfinished

TABLE = pd.DataFrame({"x": [1.0, 2.0]})
OPTIONS = {"steps": 3, "epochs": 4, "learning_rate": 0.1}


ASKED = {
    "model": "m", "registered_model": False, "guide": None, "engine": "svi", "seed": 1,
    "draws": 100, "keep_local": False, "reference": False, "fallback": None, "options": OPTIONS,
    "start": {},
}  # fmt: skip


def request(**asked: object) -> Request:
    return Request({**ASKED, **asked}, TABLE)


def test_a_block_that_raises_before_a_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyError), unfinished(path, request()) as checkpoints:  # noqa: PT012
        assert checkpoints == path / UNFINISHED / "checkpoints"
        raise KeyError
    assert not path.exists()
    with writing(path, overwrite=False) as folder:
        (folder / "config.json").touch()
    (path / "note.txt").touch()
    before = {each.name for each in path.iterdir()}
    with pytest.raises(KeyError), unfinished(path, request(), overwrite=True):
        raise KeyError
    assert {each.name for each in path.iterdir()} == before  # results stay, and what is somebody's


def test_a_block_that_raises_after_a_checkpoint_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyError), unfinished(path, request()) as checkpoints:  # noqa: PT012
        checkpoints.mkdir()
        (checkpoints / "1.safetensors").touch()
        raise KeyError
    assert read_request(path).asked["options"] == OPTIONS
    (checkpoints / "1.safetensors").unlink()
    with pytest.raises(KeyError), unfinished(path, None):  # what was asked is not this block's
        raise KeyError
    assert read_request(path).asked["options"] == OPTIONS


def test_a_new_request_clears_what_an_older_one_left(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with unfinished(path, request(seed=1)) as checkpoints:
        checkpoints.mkdir()
        state = checkpoints / f"run0-step01-{hashlib.sha256(b'').hexdigest()}.safetensors"
        state.touch()
        (checkpoints.parent / "note.txt").touch()
    with pytest.raises(RunFolderError, match="not ended"), unfinished(path, request(seed=2)):
        pass
    assert state.exists()
    with unfinished(path, None):
        assert state.exists()
    with unfinished(path, request(seed=2), overwrite=True):
        left = {each.name for each in (path / UNFINISHED).iterdir()}
    assert left == {"data.parquet", MANIFEST, REQUEST, LOCK, "note.txt"}
    assert read_request(path).asked["seed"] == 2


def test_a_folder_is_made_with_those_above_it_or_the_cause_is_told(tmp_path: Path) -> None:
    with unfinished(tmp_path / "a" / "b" / "run", request()):
        pass
    assert read_request(tmp_path / "a" / "b" / "run").asked["model"] == "m"
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunFolderError, match="cannot be written"),
        unfinished(tmp_path / "file" / "run", None),
    ):
        pass


def test_steps_that_are_changed_take_the_place_of_steps_and_epochs(tmp_path: Path) -> None:
    with unfinished(tmp_path / "run", request()):
        change_request(tmp_path / "run", {"epochs": 9})
    asked = read_request(tmp_path / "run").asked
    assert asked == {**ASKED, "options": {"learning_rate": 0.1, "epochs": 9}}
    text = (tmp_path / "run" / UNFINISHED / REQUEST).read_text()
    assert text.startswith('{\n "')  # a line for each key


def test_what_is_discarded_is_only_what_it_takes_to_go_on(tmp_path: Path) -> None:
    discard(tmp_path / "none")  # there is nothing, and nothing is said
    with unfinished(tmp_path / "run", request()):
        pass
    (tmp_path / "run" / "config.json").touch()
    discard(tmp_path / "run")
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["config.json"]
    (tmp_path / "run" / "config.json").unlink()
    discard(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_why_there_is_nothing_to_continue(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no unfinished run"):
        read_request(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(RunFolderError, match="the run has ended"):
        read_request(tmp_path)


def test_a_request_of_a_newer_format_or_damaged_is_refused(tmp_path: Path) -> None:
    with unfinished(tmp_path / "run", request(start={"where": Path("a/b")})):
        pass
    file = tmp_path / "run" / UNFINISHED / REQUEST
    content = json.loads(file.read_text())
    assert (content["format"], content["start"]["where"]) == (FORMAT, "a/b")
    assert file.read_text().startswith('{\n "')  # a line for each key
    file.write_text(json.dumps({**content, "format": FORMAT + 1}))
    with pytest.raises(RunFolderError, match="an elbowroom newer than this"):
        read_request(tmp_path / "run")
    for name in ("format", "scalars", "attributes"):
        file.write_text(json.dumps({k: v for k, v in content.items() if k != name}))
        listed = read_manifest(file.parent)
        write_manifest(file.parent, {**listed, REQUEST: [digest_of(file)]})
        with pytest.raises(RunFolderError, match=rf"request\.json', {name}: field required"):
            read_request(tmp_path / "run")
