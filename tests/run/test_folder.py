"""The run folder's own file work, on a made run: what is written, replaced, kept and refused."""

import hashlib
import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from safetensors.torch import load_file

from elbowroom.assess.evidence import Evidence, Optimum, Weights
from elbowroom.assess.verdict import Verdict
from elbowroom.errors import RunFolderError
from elbowroom.result import Fit
from elbowroom.run import folder as run_folder
from elbowroom.run import formats
from elbowroom.run.files import digest_of
from elbowroom.run.folder import FORMAT, Run, load, read_data, save, write_data
from elbowroom.run.formats import packed_posterior, read_posterior
from elbowroom.run.output import (
    LOCK,
    MANIFEST,
    REQUEST,
    UNFINISHED,
    read_manifest,
    write_manifest,
)
from elbowroom.run.schema import Config, Outcome
from elbowroom.run.unfinished import Request, unfinished

TABLE = pd.DataFrame({"x": [1.5, 2.0, np.pi], "group": ["a", "b", "a"], "n": [1, 2, 3]})
SCALARS = {"n": 3, "rate": 0.25, "name": "a", "nothing": None, "flag": True}


CONFIG = {
    "model": "m", "registered_model": False, "options": {}, "guide": "g", "settings": {},
    "engine": "svi", "objective": ["elbo", "it fits."], "seed": 7, "attributes": {},
}  # fmt: skip
OUTCOME = {
    "status": "converged", "reason": "done.", "skipped": 0, "seconds": 1.25, "parameters": 6,
    "versions": {}, "notes": [], "verdict": Verdict("trusted", ("all is well.",)),
    "evidence": Evidence(Optimum(True, "done."), Weights(0.1, 4000, 3000.0, True)), "origin": "raw",
}  # fmt: skip
MEASURES = {
    "draws": 2, "elbo": -2.5, "elbo_se": 0.1, "k_hat": float("inf"), "k_hat_threshold": 0.5,
    "effective_sample_size": 2.0, "seconds": 1.25, "parameters": 6, "elpd_loo": -3.0,
    "elpd_loo_se": 0.5, "high_k_rows": 0.0,
}  # fmt: skip


def made(data: Any = TABLE, status: str = "converged", **config: Any) -> Run:
    posterior = xarray.Dataset({"mean": (("chain", "draw"), np.array([[0.5, 1.5]]))})
    return Run(
        config=Config.of({**CONFIG, **config}),
        run=Outcome.of({**OUTCOME, "status": status}),
        history=pd.DataFrame({"step": [1, 2], "elbo": [-3.0, -np.e], "learning_rate": [0.1, 0.01]}),
        parameters={"a": torch.arange(6.0).reshape(2, 3)},
        posterior=xarray.DataTree.from_dict({"posterior": posterior}),
        diagnostics=MEASURES,
        data=data,
    )


def begun(path: Path) -> str:
    """A folder as a process leaves it that was killed; gives the name of its checkpoint."""
    name = f"run0-step0000000001-{hashlib.sha256(b'state').hexdigest()}.safetensors"
    with unfinished(path, Request({"a": 1}, TABLE), overwrite=True) as checkpoints:
        checkpoints.mkdir()
        (checkpoints / name).write_text("state")
    return name


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    run = made(attributes={"where": Path("a/b")}, options={"sizes": (2, 3)})
    save(run, tmp_path / "run")
    found: Any = load(str(tmp_path / "run"))
    assert found.config == run.config
    assert (found.config.format, found.config.attributes) == (FORMAT, {"where": "a/b"})
    assert found.config.options == {"sizes": [2, 3]}
    assert found.run == run.run
    assert found.diagnostics == run.diagnostics
    pd.testing.assert_frame_equal(found.history, run.history)
    pd.testing.assert_frame_equal(found.data, TABLE)
    assert torch.equal(found.parameters["a"], run.parameters["a"])
    xarray.testing.assert_identical(
        found.posterior["posterior"].to_dataset(), run.posterior["posterior"].to_dataset()
    )
    for name in ("config.json", "run.json", "diagnostics.json"):  # a line for each key
        assert (tmp_path / "run" / name).read_text().startswith('{\n "')


EMOJI = "\u00e9 \U0001f642"


def test_a_posterior_is_what_xarray_reads(regression: Fit, tmp_path: Path) -> None:
    """Labels of text and of numbers, a dim of none, whole numbers, Booleans, attributes, NaN."""
    leading = ("chain", "draw")
    variables = {
        "kinds": ((*leading, "kind"), np.arange(6).reshape(1, 2, 3)),
        "flags": (leading, np.array([[True, False]])),
        "numbers": ((*leading, "bare"), np.array([[[1.5, np.nan]] * 2]), {"unit": "m", "n": 3}),
        "none": ((*leading, "nothing"), np.zeros((1, 2, 0), dtype=np.float32)),
        "string2": ((*leading, "string"), np.zeros((1, 2, 2))),  # xarray's name of a dim of texts
    }
    labels = {"kind": ["a", "b", EMOJI], "draw": [4, 7], "string": ["ab", "cd"]}
    attributes = {"seed": 3, "rate": 0.5, "name": EMOJI, "two": [1, 2], "empty": "", "one": "a"}
    made = xarray.Dataset(variables, labels, attributes)
    texts = {
        "level": (("rows",), ["p", EMOJI]),
        "empty": (("rows",), ["", ""]),
        "objects": (("rows",), np.array(["p", "q"], dtype=object)),
        "table": (("rows", "more"), [["a", "bc"], ["", EMOJI]], {"unit": EMOJI}),
        "single": ((), EMOJI),
        "none": (("nothing",), np.array([], dtype=str)),
        "no_objects": (("nothing",), np.array([], dtype=object)),
    }
    observed = xarray.Dataset({"one": ((), 1.0), **texts}, {"more": pd.Index(["x", EMOJI])})
    observed = observed.assign_coords(string5=pd.Index([EMOJI, "b"], dtype="string"))
    trees = (
        xarray.DataTree.from_dict(
            {"/": xarray.Dataset(attrs=attributes), "/posterior": made, "/observed_data": observed}
        ),
        regression.posterior,
    )
    for number, tree in enumerate(trees):
        path = tmp_path / f"{number}.nc"  # xarray may keep a file of the same name open
        path.write_bytes(packed_posterior(tree))
        found = read_posterior(path)
        with xarray.open_datatree(path, engine="h5netcdf") as expected:
            xarray.testing.assert_identical(found, expected.load())
        xarray.testing.assert_identical(found, tree)
        with h5py.File(path) as file:
            file.visititems(lambda _, each: has_no_variable_length(each))
            has_no_variable_length(file)


def test_texts_of_every_kind_are_written_as_characters() -> None:
    kinds: tuple[Any, ...] = ("U", object, np.dtypes.StringDType())  # the last not by every xarray
    for kind in kinds:
        dataset = xarray.Dataset({"x": (("rows",), np.array(["p", EMOJI], dtype=kind))})
        length = len(EMOJI.encode())
        expected = {"x": {"dtype": "S1", "char_dim_name": f"string{length}"}}
        assert formats._characters(dataset) == expected


def test_a_single_dim_need_not_be_in_a_list_of_dims(regression: Fit, tmp_path: Path) -> None:
    """The first versions of h5netcdf write none for it."""
    path = tmp_path / "posterior.nc"
    path.write_bytes(packed_posterior(regression.posterior))
    expected = read_posterior(path)
    with h5py.File(path, "r+") as file:
        single = [each for group in file.values() for each in group.values() if each.ndim == 1]
        for each in single:
            each.attrs.pop("_Netcdf4Coordinates", None)
    xarray.testing.assert_identical(read_posterior(path), expected)


def has_no_variable_length(found: Any) -> None:
    """Sees that texts of a file have a fixed length, beside NetCDF's own lists of dims."""
    names = set(found.attrs) - {"DIMENSION_LIST", "REFERENCE_LIST"}
    dtypes = [found.attrs.get_id(name).dtype for name in names]
    dtypes += [found.dtype] if isinstance(found, h5py.Dataset) else []
    assert not [dtype for dtype in dtypes if dtype.hasobject], found.name


def test_arviz_reads_the_texts_of_a_posterior(tmp_path: Path) -> None:
    labels, attributes = ["a", EMOJI], {"model": "m", "empty": "", "more": EMOJI}
    variables = {"x": (("chain", "draw", "kind"), np.zeros((1, 3, 2)))}
    made = xarray.Dataset(variables, {"kind": labels}, attributes)
    path = tmp_path / "posterior.nc"
    path.write_bytes(packed_posterior(xarray.DataTree.from_dict({"/posterior": made})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # arviz announces its 1.0 on import
        import arviz
    found = arviz.from_netcdf(path).posterior
    assert list(found["kind"].values) == labels
    assert {name: found.attrs[name] for name in attributes} == attributes


def test_a_model_of_many_sites_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {f"x_{k}": (("chain", "draw"), np.array([[0.5, k]])) for k in range(1100)}
    tree = xarray.DataTree.from_dict({"/posterior": xarray.Dataset(variables)})
    path = tmp_path / "posterior.nc"
    path.write_bytes(packed_posterior(tree))
    np.testing.assert_array_equal(read_posterior(path)["posterior/x_1099"], [[0.5, 1099]])
    monkeypatch.setattr(formats, "MEMBERS", 2000)
    with pytest.raises(RunFolderError, match=r"variables and attributes.*trust=True"):
        read_posterior(path)
    assert len(read_posterior(path, most=None)["posterior"].data_vars) == 1100


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
    with pytest.raises(RunFolderError, match=r"data\.npz', 'x', .*no kind of number or text"):
        read_data(tmp_path / "data.npz", {}, None)


def test_columns_of_mixed_kinds_are_text_and_the_others_stay(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": [1, 2], "mixed": [1, "b"]}, index=[5, 9])
    table.attrs = {"roles": {"x": "label"}}
    assert write_data(table, tmp_path) == {}
    found = read_data(tmp_path / "data.parquet", {"not": "read"}, None)
    pd.testing.assert_frame_equal(found, pd.DataFrame({"x": [1, 2], "mixed": ["1", "b"]}))
    assert found.attrs == {}
    assert table.attrs == {"roles": {"x": "label"}}  # the caller's own is left
    plain = table[["x"]]
    plain.attrs = table.attrs
    write_data(plain, tmp_path)
    assert read_data(tmp_path / "data.parquet", {}, None).attrs == {}
    assert plain.attrs == table.attrs


def test_parameters_that_are_views_of_one_tensor_are_whole(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    run = made()
    run.parameters.update(a=whole, b=whole[0], c=whole.T)
    save(run, tmp_path / "run")
    found = load_file(tmp_path / "run" / "params.safetensors")
    assert found["b"].tolist() == [0.0, 1.0, 2.0]
    assert found["c"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_each_file_has_its_hash_in_the_list_alone(tmp_path: Path) -> None:
    save(made(), tmp_path / "run")
    hashes = json.loads((tmp_path / "run" / MANIFEST).read_text())["files"]
    files = {each.name for each in (tmp_path / "run").iterdir()}
    assert set(hashes) == files - {MANIFEST}
    assert "sha256" not in json.loads((tmp_path / "run" / "run.json").read_text())
    for name, (digest,) in hashes.items():
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
    name = begun(path)
    save(made(status=status), path, overwrite=True, keep=keep)
    assert load(path).run.status == status
    inner = path / UNFINISHED
    assert inner.exists() == kept
    if kept:
        assert json.loads((inner / REQUEST).read_text())["a"] == 1
        assert (inner / "checkpoints" / name).read_text() == "state"
        assert not (inner / LOCK).exists()  # which the process holds that writes the results
        save(made(status="converged"), path, overwrite=True)  # they are known, and go
        assert not inner.exists()


def test_there_is_nothing_to_keep_before_a_run_was_asked_for(tmp_path: Path) -> None:
    save(made(status="budget"), tmp_path / "run", keep=True)
    assert not (tmp_path / "run" / UNFINISHED).exists()


def test_results_can_be_read_beside_a_run_that_has_not_ended(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    with pytest.raises(RunFolderError, match="not ended; continue it with 'elbowroom fit --resume"):
        load(tmp_path / "run")
    save(made(status="budget"), tmp_path / "run", overwrite=True)
    begun(tmp_path / "run")
    assert load(tmp_path / "run").run.status == "budget"
    with pytest.raises(RunFolderError, match="exists; choose another --output"):
        save(made(), tmp_path / "run")


def change(folder: Path, name: str, **changes: Any) -> None:
    """Changes a JSON file, and its hash too; None leaves a key out."""
    content = {**json.loads((folder / name).read_text()), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))
    write_manifest(folder, {**read_manifest(folder), name: [digest_of(folder / name)]})


def test_only_its_own_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run"
    save(made(), path)
    older = r"older .* fit again, or load its posterior\.nc with"
    for number, said in ((FORMAT + 1, "newer"), (FORMAT - 1, older)):
        change(path, "config.json", format=number)
        with pytest.raises(RunFolderError, match=said):
            load(path)
    (path / "posterior.nc").unlink()
    with pytest.raises(RunFolderError, match=r"cannot read; fit again\.$"):
        load(path)
    save(made(), path, overwrite=True)
    change(path, "config.json", format=FORMAT)
    assert load(path).config.model == "m"
    change(path, "config.json", format=None)  # a folder without a number is of this format
    assert load(path).config.model == "m"
    change(path, "config.json", model=None)
    with pytest.raises(RunFolderError, match=r"config\.json', model: field required"):
        load(path)


def test_a_newer_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own number where the folder has it, whatever it is that cannot be read."""
    monkeypatch.setattr(run_folder, "_own_version", lambda: "0.9.1")
    path = tmp_path / "run"
    save(made(), path)
    change(path, "run.json", versions={"elbowroom": "0.10.0"})
    assert load(path).config.model == "m"  # what it can read, it reads
    for changes in ({"format": FORMAT + 1}, {"another": 1}):
        change(path, "config.json", **changes)
        with pytest.raises(
            RunFolderError, match=r"by elbowroom 0\.10\.0, newer than this 0\.9\.1; upgrade"
        ):
            load(path)
    change(path, "run.json", versions={"elbowroom": "0.9.0"})
    change(path, "config.json", format=FORMAT)
    with pytest.raises(RunFolderError, match="another: extra inputs"):
        load(path)


def test_a_file_that_was_changed_is_named(tmp_path: Path) -> None:
    save(made(), tmp_path / "run")
    (tmp_path / "run" / "history.csv").write_text("step,elbo,learning_rate\n1,9,9\n")
    with pytest.raises(RunFolderError, match=r"history\.csv' was changed or damaged"):
        load(tmp_path / "run")
