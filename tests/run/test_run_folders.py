"""Run folders: what is written is what is read, nothing runs, and nothing is lost."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

import elbowroom as er
from elbowroom.errors import ModelError, RunFolderError
from elbowroom.result import Fit
from elbowroom.run import folder as run_folder
from elbowroom.run import output
from elbowroom.run.files import digest_of
from elbowroom.run.output import check_target, read_manifest, write_manifest

FILES = {
    "config.json",
    "run.json",
    "history.csv",
    "params.safetensors",
    "posterior.nc",
    "diagnostics.json",
    "data.parquet",
    "manifest.json",
}


@pytest.mark.parametrize("name", ["regression", "mixture", "autoencoder"])
def test_a_reload_gives_the_same_draws_and_predictions(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fit: Fit = request.getfixturevalue(name)
    again = er.load(fit.save(tmp_path / "run"))
    for group in fit.posterior.children:
        xarray.testing.assert_identical(
            fit.posterior[group].to_dataset(), again.posterior[group].to_dataset()
        )
    xarray.testing.assert_allclose(
        fit.sample(20, seed=7), again.sample(20, seed=7), rtol=1e-5 if name == "autoencoder" else 0
    )
    np.testing.assert_array_equal(fit.elbo_history, again.elbo_history)
    np.testing.assert_allclose(fit.predict(), again.predict(), rtol=1e-4, atol=1e-6)
    assert again.converged == fit.converged
    assert again.seed == fit.seed


def test_own_models_need_their_code_again(own: Fit, tmp_path: Path) -> None:
    path = own.save(tmp_path / "run")
    with pytest.raises(ModelError, match="model="):
        er.load(path)
    again = er.load(path, model=own.problem.function)
    xarray.testing.assert_equal(own.sample(10, seed=1), again.sample(10, seed=1))


def test_the_folder_holds_no_pickle(run: Path) -> None:
    assert {file.name for file in run.iterdir()} == FILES
    for file in run.iterdir():
        assert not file.read_bytes().startswith(b"\x80")
        assert b".pkl" not in file.read_bytes()


def test_a_formula_that_calls_functions_is_not_run_from_a_folder(tmp_path: Path) -> None:
    formula = "progression ~ np.square(bmi)"
    fit = er.fit("bayesian_regression", formula=formula, guide="laplace", seed=1)
    new = er.load_dataset("diabetes").head(3)
    path = fit.save(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"np.square\(bmi\).*trust"):
        er.load(path)
    np.testing.assert_allclose(er.load(path, trust=True).predict(new), fit.predict(new))


def test_an_existing_folder_is_refused_and_a_strangers_is_left_alone(
    regression: Fit, tmp_path: Path
) -> None:
    regression.save(tmp_path / "run")
    with pytest.raises(RunFolderError, match="--overwrite"):
        regression.save(tmp_path / "run")
    regression.save(tmp_path / "run", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(RunFolderError, match="is not replaced"):
        regression.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_full_disk_leaves_the_folder_that_was_there(
    regression: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = regression.save(tmp_path / "run")
    before = (path / "run.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "serialised", full)
    with pytest.raises(RunFolderError, match="disk is full"):
        regression.save(path, overwrite=True)
    monkeypatch.undo()
    assert (path / "run.json").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]

    monkeypatch.setattr(output, "_exchanged", full)
    with pytest.raises(RunFolderError, match="disk is full"):
        regression.save(path, overwrite=True)
    assert (path / "run.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_seen_before_the_fit(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        check_target(tmp_path / "file" / "run", overwrite=False)


@pytest.mark.parametrize("file", sorted(FILES - {"config.json"}))
def test_a_changed_or_missing_file_is_named(run: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    content = (run / file).read_bytes()
    (tmp_path / "run" / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunFolderError, match=file):
        er.load(tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    with pytest.raises(RunFolderError, match=file):
        er.load(tmp_path / "run")


def test_a_newer_format_and_no_run_at_all(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no config\.json"):
        er.load(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for number, said in ((99, "newer"), (1, "older")):
        (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "format": number}))
        with pytest.raises(RunFolderError, match=said):
            er.load(tmp_path / "run")


@pytest.mark.parametrize("evidence", [{}, {"optimum": 3}, [], {"optimum": {"converged": 1}}])
def test_evidence_that_is_damaged_is_told(run: Path, tmp_path: Path, evidence: Any) -> None:
    shutil.copytree(run, tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    whole = {**content["evidence"], **evidence} if evidence else evidence
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps({**content, "evidence": whole}))
    listed = read_manifest(file.parent)
    write_manifest(file.parent, {**listed, file.name: [digest_of(file)]})
    with pytest.raises(RunFolderError, match="evidence"):
        er.load(tmp_path / "run")
