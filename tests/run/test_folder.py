"""The run folder's own file work, on a made run: what is written, replaced, kept and refused."""

import hashlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from safetensors.torch import load_file

from elbowroom.errors import RunFolderError
from elbowroom.run import folder as run_folder
from elbowroom.run.folder import (
    FORMAT,
    LOCK,
    REQUEST,
    UNFINISHED,
    Run,
    cause,
    check_target,
    load,
    read_data,
    save,
    write_data,
    writing,
)

TABLE = pd.DataFrame({"x": [1.5, 2.0, np.pi], "group": ["a", "b", "a"], "n": [1, 2, 3]})
SCALARS = {"n": 3, "rate": 0.25, "name": "a", "nothing": None, "flag": True}


def made(data: Any = TABLE, status: str = "converged", **config: Any) -> Run:
    posterior = xarray.Dataset({"mean": (("chain", "draw"), np.array([[0.5, 1.5]]))})
    return Run(
        config={"model": "m", "seed": 7, **config},
        run={"status": status, "seconds": 1.25},
        history=pd.DataFrame({"step": [1, 2], "elbo": [-3.0, -np.e], "learning_rate": [0.1, 0.01]}),
        parameters={"a": torch.arange(6.0).reshape(2, 3)},
        posterior=xarray.DataTree.from_dict({"posterior": posterior}),
        diagnostics={"elbo": -2.5, "draws": 2},
        data=data,
    )


def begun(path: Path, request: str | None = "{}", lock: bool = True) -> Path:
    """A folder as a process leaves it that was killed; gives the place of its checkpoints."""
    checkpoints = path / UNFINISHED / "checkpoints"
    checkpoints.mkdir(parents=True)
    if request is not None:
        (path / UNFINISHED / REQUEST).write_text(request)
    if lock:
        (path / UNFINISHED / LOCK).touch()
    return checkpoints


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    run = made(where=Path("a/b"))
    save(run, tmp_path / "run")
    found: Any = load(str(tmp_path / "run"))
    assert found.config == {**run.config, "where": "a/b", "format": FORMAT, "scalars": {}}
    assert {k: v for k, v in found.run.items() if k != "sha256"} == run.run
    assert found.diagnostics == run.diagnostics
    pd.testing.assert_frame_equal(found.history, run.history)
    pd.testing.assert_frame_equal(found.data, TABLE)
    assert torch.equal(found.parameters["a"], run.parameters["a"])
    xarray.testing.assert_identical(
        found.posterior["posterior"].to_dataset(), run.posterior["posterior"].to_dataset()
    )
    for name in ("config.json", "run.json", "diagnostics.json"):  # a line for each key
        assert (tmp_path / "run" / name).read_text().startswith('{\n "')


def test_scalars_and_arrays_come_back_as_what_they_were(tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "x": torch.arange(3),
        "y": np.array([[0.5], [1.5]]),
        "z": [1.0, 2.0],
        **SCALARS,
    }
    save(made(data), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["scalars"] == SCALARS
    found: Any = load(tmp_path / "run").data
    assert set(found) == set(data)
    assert {name: found[name] for name in SCALARS} == SCALARS
    assert [type(found[name]) for name in SCALARS] == [int, float, str, type(None), bool]
    for name, values in {"x": np.arange(3), "y": data["y"], "z": np.array([1.0, 2.0])}.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_data(tmp_path, {})


def test_columns_of_mixed_kinds_are_text_and_the_others_stay(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": [1, 2], "mixed": [1, "b"]}, index=[5, 9])
    table.attrs = {"roles": {"x": "label"}}
    assert write_data(table, tmp_path) == {}
    found = read_data(tmp_path, {"not": "read"})
    pd.testing.assert_frame_equal(found, pd.DataFrame({"x": [1, 2], "mixed": ["1", "b"]}))
    assert found.attrs == {}
    assert table.attrs == {"roles": {"x": "label"}}  # the caller's own is left
    plain = table[["x"]]
    plain.attrs = table.attrs
    write_data(plain, tmp_path)
    assert read_data(tmp_path, {}).attrs == {}
    assert plain.attrs == table.attrs


def test_parameters_that_are_views_of_one_tensor_are_whole(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    run = made()
    run.parameters.update(a=whole, b=whole[0], c=whole.T)
    save(run, tmp_path / "run")
    found = load_file(tmp_path / "run" / "params.safetensors")
    assert found["b"].tolist() == [0.0, 1.0, 2.0]
    assert found["c"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_each_file_has_its_hash_but_the_one_that_holds_them(tmp_path: Path) -> None:
    save(made(), tmp_path / "run")
    hashes = json.loads((tmp_path / "run" / "run.json").read_text())["sha256"]
    files = {each.name for each in (tmp_path / "run").iterdir()}
    assert set(hashes) == files - {"run.json"}
    for name, digest in hashes.items():
        assert digest == hashlib.sha256((tmp_path / "run" / name).read_bytes()).hexdigest()


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder._package_versions.cache_clear()
    found = run_folder.versions()
    assert set(found) == {"python", *run_folder.PACKAGES}
    assert {"elbowroom", "pyro-ppl", "torch"} <= set(found)
    assert found["numpy"] == np.__version__
    assert found["pyro-ppl"] == version("pyro-ppl")
    assert found["python"].startswith("3.")

    def absent(package: str) -> str:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(run_folder, "version", absent)
    run_folder._package_versions.cache_clear()
    try:
        assert run_folder.versions()["torch"] == "not installed"
    finally:
        run_folder._package_versions.cache_clear()


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
        assert folder.parent.name.startswith(".run-")
        assert not path.exists()
        (folder / "config.json").write_text("{}")
    assert [each.name for each in path.parent.iterdir()] == ["run"]
    assert [each.name for each in path.iterdir()] == ["config.json"]


def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for before in ([], ["config.json"]):
        with pytest.raises(KeyError), writing(path, overwrite=True) as folder:  # noqa: PT012
            (folder / "new").touch()
            raise KeyError
        assert [each.name for each in path.glob("*")] == before
        assert {each.name for each in tmp_path.iterdir()} <= {"run"}
        with writing(path, overwrite=True) as folder:
            (folder / "config.json").touch()


def test_a_folder_that_could_not_take_its_place_leaves_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "run", os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target) == path and Path(source).name != "before":
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RunFolderError, match="cannot be written: no"):
        save(made(), path)
    monkeypatch.undo()
    save(made(status="first"), path)
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RunFolderError, match="cannot be written: no"):
        save(made(status="second"), path, overwrite=True)
    assert load(path).run["status"] == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_nothing_is_replaced_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "run"
    save(made(status="first"), path)
    with pytest.raises(RunFolderError, match="exists; choose another --output"):
        save(made(status="second"), path)
    assert load(path).run["status"] == "first"
    save(made(status="second"), path, overwrite=True)
    assert load(path).run["status"] == "second"
    begun(path)  # a run that has ended, and one that has not: its results can be read
    with pytest.raises(RunFolderError, match="exists; choose another --output"):
        check_target(path, overwrite=False)
    assert load(path).run["status"] == "second"


def test_a_marker_says_whose_folder_it_is(tmp_path: Path) -> None:
    (tmp_path / "table.csv").touch()
    check_target(tmp_path, overwrite=True, marker="table.csv")
    with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
        check_target(tmp_path, overwrite=True)
    with (
        pytest.raises(RunFolderError, match="was not written by Elbowroom"),
        writing(tmp_path, True, "other.csv"),
    ):
        pass
    with writing(tmp_path / "new", overwrite=False, marker="table.csv"):
        pass
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_has_not_ended_is_replaced_only_if_that_is_asked_for(
    overwrite: bool, tmp_path: Path
) -> None:
    begun(tmp_path / "run")
    if overwrite:
        check_target(tmp_path / "run", overwrite)
        return
    with pytest.raises(RunFolderError, match="not ended; continue it with --resume"):
        check_target(tmp_path / "run", overwrite)
    with pytest.raises(RunFolderError, match="not ended; continue it with 'elbowroom fit --resume"):
        load(tmp_path / "run")


def test_a_folder_in_which_a_run_had_barely_begun_may_be_taken(tmp_path: Path) -> None:
    """Nothing was asked in it, and it holds no checkpoint and nothing else."""
    for name in ("bare", "file", "checkpoint"):
        begun(tmp_path / name, request=None, lock=False)
    check_target(tmp_path / "bare", overwrite=False)
    (tmp_path / "file" / "thesis.txt").touch()
    (tmp_path / "checkpoint" / UNFINISHED / "checkpoints" / "1.safetensors").touch()
    for name in ("file", "checkpoint"):
        with pytest.raises(RunFolderError, match="exists"):
            check_target(tmp_path / name, overwrite=False)
        with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
            check_target(tmp_path / name, overwrite=True)
    with pytest.raises(RunFolderError, match=r"no config\.json"):
        load(tmp_path / "bare")


@pytest.mark.parametrize(
    ("status", "keep", "kept"),
    [
        ("interrupted", True, True),
        ("budget", True, True),
        ("converged", True, False),
        ("budget", False, False),
    ],
)
def test_what_it_takes_to_go_on_is_kept_if_the_run_can(
    status: str, keep: bool, kept: bool, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    (begun(path, '{"a": 1}') / "1.safetensors").write_text("state")
    save(made(status=status), path, overwrite=True, keep=keep)
    assert load(path).run["status"] == status
    inner = path / UNFINISHED
    assert inner.exists() == kept
    if kept:
        assert (inner / REQUEST).read_text() == '{"a": 1}'
        assert (inner / "checkpoints" / "1.safetensors").read_text() == "state"
        assert not (inner / LOCK).exists()  # which the process holds that writes the results


def test_there_is_nothing_to_keep_before_a_run_was_asked_for(tmp_path: Path) -> None:
    save(made(status="budget"), tmp_path / "run", keep=True)
    assert not (tmp_path / "run" / UNFINISHED).exists()
    (begun(tmp_path / "other") / "1.safetensors").touch()
    save(made(status="budget"), tmp_path / "other", overwrite=True)  # `keep` was not asked for
    assert not (tmp_path / "other" / UNFINISHED).exists()


def test_a_full_disk_is_told_from_other_causes(tmp_path: Path) -> None:
    assert "make room" in cause(tmp_path, OSError(28, "No space left on device"))
    assert "Permission denied" in cause(tmp_path, OSError(13, "Permission denied"))
    assert "strange" in cause(tmp_path, OSError("strange"))


def change(folder: Path, name: str, **changes: Any) -> None:
    """Changes a JSON file, and its hash too; None leaves a key out."""
    content = {**json.loads((folder / name).read_text()), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))
    if name != "run.json":
        hashes = json.loads((folder / "run.json").read_text())["sha256"]
        hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        change(folder, "run.json", sha256=hashes)


def test_only_its_own_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run"
    save(made(), path)
    for number, said in ((3, "newer"), (1, "older")):  # that of today is 2
        change(path, "config.json", format=number)
        with pytest.raises(RunFolderError, match=said):
            load(path)
    change(path, "config.json", format=FORMAT)
    assert load(path).config["model"] == "m"
    change(path, "config.json", format=None)  # a folder without a number is of this format
    assert load(path).config["model"] == "m"
    change(path, "config.json", scalars=None)
    with pytest.raises(RunFolderError, match="cannot be read"):
        load(path)


def test_a_file_that_was_changed_is_named(tmp_path: Path) -> None:
    save(made(), tmp_path / "run")
    (tmp_path / "run" / "history.csv").write_text("step,elbo,learning_rate\n1,9,9\n")
    with pytest.raises(RunFolderError, match=r"history\.csv' was changed or damaged"):
        load(tmp_path / "run")
