"""The folder that holds a whole run, and executes nothing when it is read."""

import json
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray
from safetensors.torch import save as serialised
from torch import Tensor

from elbowroom.errors import RunFolderError
from elbowroom.run import files, formats
from elbowroom.run.output import (
    DATA,
    FILES,
    LOCK,
    UNFINISHED,
    check_listed,
    holds_unfinished,
    own_files,
    writing,
)
from elbowroom.run.schema import FORMAT, Config, Measures, Outcome, plain

PARAMETERS = "params.safetensors"
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

    config: Config
    run: Outcome
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
        if keep and run.run.status in ("interrupted", "budget") and holds_unfinished(path):
            for each in own_files(path):
                if path / UNFINISHED in each.parents and each.name != LOCK:
                    target = folder / each.relative_to(path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(each, target)


def _write(run: Run, folder: Path) -> None:
    # In memory first: HDF5 does not survive a disk that fills up under it.
    (folder / "posterior.nc").write_bytes(formats.packed_posterior(run.posterior))
    parameters = {name: value.clone().contiguous() for name, value in run.parameters.items()}
    (folder / PARAMETERS).write_bytes(serialised(parameters))
    run.history.to_csv(folder / "history.csv", index=False)
    scalars = write_data(run.data, folder)
    _write_json(folder / "config.json", {**run.config.model_dump(), "scalars": scalars})
    _write_json(folder / "diagnostics.json", run.diagnostics)
    verdict = {**asdict(run.run.verdict), "trusted": run.run.verdict.trusted}
    _write_json(folder / "run.json", {**run.run.model_dump(), "verdict": verdict})


def write_data(data: Any, folder: Path) -> dict[str, Any]:
    """Writes a table or arrays by name, and gives what is neither: scalars for a JSON file."""
    if isinstance(data, pd.DataFrame):
        _arrow_ready(data).to_parquet(folder / "data.parquet", index=False)
        return {}
    scalars = {k: v for k, v in data.items() if v is None or isinstance(v, (str, int, float))}
    arrays: Any = {k: np.asarray(v) for k, v in data.items() if k not in scalars}
    np.savez_compressed(folder / "data.npz", **arrays)
    return scalars


def read_data(file: Path, scalars: Mapping[str, Any], most: int | None) -> Any:
    """What `write_data` wrote into a file, if it takes no more than so many bytes."""
    if file.suffix == ".parquet":
        return formats.read_table(file, most)
    return {**scalars, **formats.read_arrays(file, most)}


def _arrow_ready(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns of mixed kinds are text, and whose attributes stay in config.json."""
    mixed = [c for c in table.columns if table[c].dtype == object]
    ready = table.copy(deep=False)
    for name in mixed:  # str of bytes that are no text is what Python shows
        ready[name] = table[name].map(str, na_action="ignore").astype(str)
    ready.attrs = {}
    return ready


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, default=plain) + "\n", encoding="utf-8")


def load(path: str | Path, trust: bool = False, data: bool = True) -> Run:
    """Reads a run folder; runs no code from it.

    Every file goes through its schema or the checks of its format before it is used, so that a
    folder may come from anyone.

    Args:
        path: The folder.
        trust: Whether files may be larger than `elbowroom.run.files.LIMITS`.
        data: Whether to read the data and the parameters, which only predictions need.

    Raises:
        RunFolderError: If it is none, its format is newer, or a file is missing, damaged or not as
            a run writes it; the file and the field are named.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        if holds_unfinished(folder):
            raise RunFolderError(
                f"'{folder}' contains a run that has not ended; continue it with 'elbowroom fit "
                f"--resume {folder}'."
            )
        raise RunFolderError(
            f"'{folder}' is not a run folder: it has no config.json; give a folder that 'elbowroom "
            "fit' or Fit.save has written."
        )
    check_format(folder, folder / "config.json")
    with written_by(folder):
        most = None if trust else files.LIMITS.arrays
        file = check_listed(folder, FILES, most, () if data else (*DATA, PARAMETERS))
        config = files.read_json(folder / "config.json", Config)
        return Run(
            config=config,
            run=files.read_json(folder / "run.json", Outcome),
            diagnostics=files.read_json(folder / "diagnostics.json", Measures).by_name(),
            history=formats.read_history(folder / "history.csv"),
            posterior=formats.read_posterior(folder / "posterior.nc", most),
            parameters=formats.read_parameters(folder / PARAMETERS, most) if data else {},
            data=read_data(file, config.scalars, most) if data else {},
        )


def check_format(folder: Path, file: Path) -> None:
    """Sees that this version of Elbowroom reads a folder, by the number in a JSON file.

    Raises:
        RunFolderError: If the folder is of a newer or an older format.
    """
    content = files.read_bytes(file, files.LIMITS.json)
    with files.reading(file):
        found = files.parse_json(content)
    number = found.get("format", FORMAT) if isinstance(found, dict) else FORMAT
    if type(number) is int and number > FORMAT:
        raise _newer(folder) or RunFolderError(
            f"'{folder}' was written by an elbowroom newer than this {_own_version()} (format "
            f"{number}, and {FORMAT} is the newest that it reads); upgrade with 'pip install "
            "--upgrade elbowroom'."
        )
    if type(number) is int and number < FORMAT:
        posterior = (folder / "posterior.nc").is_file()
        rest = ", or load its posterior.nc with arviz.from_netcdf" if posterior else ""
        raise RunFolderError(
            f"'{folder}' was written by an older version of Elbowroom, which this version "
            f"cannot read; fit again{rest}."
        )


@contextmanager
def written_by(folder: Path) -> Iterator[None]:
    """Says of a folder that cannot be read that its writer is newer, where it is."""
    try:
        yield
    except RunFolderError as error:
        raise _newer(folder) or error from error


def _own_version() -> str:
    return _package_versions()["elbowroom"]


def _newer(folder: Path) -> RunFolderError | None:
    """The error that names the newer version that wrote a folder; None if it was not newer."""
    try:
        content = files.read_bytes(folder / "run.json", files.LIMITS.json)
        writer = files.parse_json(content)["versions"]["elbowroom"]
        newer = _release(writer) > _release(_own_version())
    except (RunFolderError, ValueError, RecursionError, LookupError, TypeError):
        return None
    if not newer:
        return None
    return RunFolderError(
        f"'{folder}' was written by elbowroom {writer[:30]}, newer than this {_own_version()}; "
        "upgrade with 'pip install --upgrade elbowroom'."
    )


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    found = re.match(r"\d{1,9}(\.\d{1,9}){0,3}", version)
    return tuple(map(int, found[0].split("."))) if found else ()
