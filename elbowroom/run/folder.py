"""The folder that holds a whole run, and executes nothing when it is read."""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor

from elbowroom.errors import RunFolderError
from elbowroom.run.output import LOCK, UNFINISHED, holds_unfinished, own_files, writing

FORMAT = 2
PACKAGES = ("elbowroom", "pyro-ppl", "torch", "arviz-base", "numpy", "pandas")


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        config: What was asked: model, options, guide, settings, seed.
        run: How it went: status, versions, time.
        history: step, elbo, learning_rate.
        parameters: Tensors by name, the start's included.
        posterior: The ArviZ tree.
        diagnostics: Numbers by name.
        data: The table, or the arrays of a user's own model.
    """

    config: dict[str, Any]
    run: dict[str, Any]
    history: pd.DataFrame
    parameters: dict[str, Tensor]
    posterior: xarray.DataTree
    diagnostics: dict[str, Any]
    data: pd.DataFrame | dict[str, Any]


def versions() -> dict[str, str]:
    """The versions that a run was made with."""
    return {"python": platform.python_version(), **_package_versions()}


@cache
def _package_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:  # run from a checkout that was not installed
            found[package] = "not installed"
    return found


def save(run: Run, path: Path, overwrite: bool = False, keep: bool = False) -> None:
    """Writes a run folder: whole, or not at all.

    Args:
        run: What it shall hold.
        path: The folder.
        overwrite: Whether to replace Elbowroom's own files in one that is there.
        keep: Whether to keep what it takes to go on with a run that did not converge.

    Raises:
        RunFolderError: If it cannot be written, or exists and `overwrite` is not given.
    """
    with writing(path, overwrite) as folder:
        _write(run, folder)
        if keep and run.run["status"] in ("interrupted", "budget") and holds_unfinished(path):
            for each in own_files(path):
                if path / UNFINISHED in each.parents and each.name != LOCK:
                    target = folder / each.relative_to(path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(each, target)


def _write(run: Run, folder: Path) -> None:
    # In memory first: HDF5 does not survive a disk that fills up under it.
    (folder / "posterior.nc").write_bytes(run.posterior.to_netcdf(None, engine="h5netcdf"))
    parameters = {name: value.clone().contiguous() for name, value in run.parameters.items()}
    (folder / "params.safetensors").write_bytes(serialised(parameters))
    run.history.to_csv(folder / "history.csv", index=False)
    scalars = write_data(run.data, folder)
    _write_json(folder / "config.json", {"format": FORMAT, **run.config, "scalars": scalars})
    _write_json(folder / "diagnostics.json", run.diagnostics)
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }
    _write_json(folder / "run.json", {**run.run, "sha256": hashes})


def write_data(data: Any, folder: Path) -> dict[str, Any]:
    """Writes a table or arrays by name, and gives what is neither: scalars for a JSON file."""
    if isinstance(data, pd.DataFrame):
        _arrow_ready(data).to_parquet(folder / "data.parquet", index=False)
        return {}
    scalars = {k: v for k, v in data.items() if v is None or isinstance(v, (str, int, float))}
    arrays: Any = {k: np.asarray(v) for k, v in data.items() if k not in scalars}
    np.savez_compressed(folder / "data.npz", **arrays)
    return scalars


def read_data(folder: Path, scalars: dict[str, Any]) -> Any:
    """What `write_data` wrote."""
    table = folder / "data.parquet"
    if table.exists():
        return pd.read_parquet(table)
    with np.load(folder / "data.npz", allow_pickle=False) as arrays:
        return {**scalars, **{name: arrays[name] for name in arrays.files}}


def _arrow_ready(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns of mixed kinds are text, and whose attributes stay in config.json."""
    mixed = [c for c in table.columns if table[c].dtype == object]
    ready = table.astype(dict.fromkeys(mixed, str)) if mixed else table.copy(deep=False)
    ready.attrs = {}
    return ready


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def load(path: str | Path) -> Run:
    """Reads a run folder; runs no code from it.

    Raises:
        RunFolderError: If it is none, a file is missing or damaged, or its format is newer.
    """
    folder = Path(path)
    if holds_unfinished(folder) and not (folder / "config.json").is_file():
        raise RunFolderError(
            f"'{folder}' contains a run that has not ended; continue it with 'elbowroom fit "
            f"--resume {folder}'."
        )
    if not (folder / "config.json").is_file():
        raise RunFolderError(
            f"'{folder}' is not a run folder: it has no config.json; give a folder that 'elbowroom "
            "fit' or Fit.save has written."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("format", FORMAT) > FORMAT:
            raise RunFolderError(
                f"'{folder}' was written by a newer version of Elbowroom; upgrade with 'pip "
                "install --upgrade elbowroom'."
            )
        if config.get("format", FORMAT) < FORMAT:
            raise RunFolderError(
                f"'{folder}' was written by an older version of Elbowroom, which this version "
                "cannot read. Fit again, or load posterior.nc with arviz.from_netcdf."
            )
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        for name, digest in run["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise RunFolderError(
                    f"'{folder / name}' was changed or damaged after the run; restore it, or fit "
                    "again."
                )
        data = read_data(folder, config["scalars"])
        with xarray.open_datatree(folder / "posterior.nc", engine="h5netcdf") as tree:
            posterior = tree.load()
        for node in (posterior, *posterior.children.values()):  # numbers as they were, not numpy's
            node.attrs.update({k: v.item() for k, v in node.attrs.items() if hasattr(v, "item")})
        return Run(
            config=config,
            run=run,
            history=pd.read_csv(folder / "history.csv"),
            parameters=load_file(folder / "params.safetensors"),
            posterior=posterior,
            diagnostics=json.loads((folder / "diagnostics.json").read_text(encoding="utf-8")),
            data=data,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunFolderError(
            f"'{folder}' cannot be read ({error}); check that the folder is complete, or fit again."
        ) from error
