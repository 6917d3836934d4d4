"""Draws as an `xarray.DataTree` in the ArviZ schema."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import arviz_stats
import numpy as np
import pandas as pd
import xarray
from arviz_base.labels import BaseLabeller
from arviz_base.sel_utils import xarray_var_iter
from torch import Tensor

from elbowroom.errors import OptionError, RunFolderError

LARGEST_GROUP = 5_000_000
"""Numbers in one group of a run's posterior beyond which its draws are thinned or left out."""

GROUPS = (
    "posterior",
    "raw_posterior",
    "corrected_posterior",
    "unconstrained_posterior",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "sample_stats",
    "row_weights",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "point_parameters",
)
OF_DATA = (
    "posterior_predictive", "log_likelihood", "prior_predictive", "observed_data", "constant_data",
    "row_weights",
)  # fmt: skip
"""The groups whose variables have the names of the user's columns."""
NO_DRAWS = ("observed_data", "constant_data", "point_parameters")


@dataclass(frozen=True)
class Names:
    """Names for the dims of sites and arguments, and labels along them.

    Attributes:
        dims: By site or argument.
        coords: By dim.
        columns: The dims of the user's columns, by column.
    """

    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, Sequence[Any]]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def array(
        self, name: str, values: np.ndarray, leading: tuple[str, ...], of_data: bool = False
    ) -> xarray.DataArray:
        """Values with their dims named; unnamed ones are called NAME_dim_0 and on."""
        known = self.dims.get(name, ())
        if of_data:
            known = self.columns.get(name, known)
        inner = values.ndim - len(leading)
        dims = [*known[:inner], *(f"{name}_dim_{i}" for i in range(len(known), inner))]
        # A variable may not have a dim of its own name, unless it is that dim's index.
        dims = [f"{dim}_index" if dim in (name, *leading) else dim for dim in dims]
        labels = {}
        for dim, size in zip(dims, values.shape[len(leading) :], strict=True):
            known_labels = list(self.coords.get(dim, ()))
            labels[dim] = known_labels if len(known_labels) == size else list(range(size))
        return xarray.DataArray(values, dims=[*leading, *dims], coords=labels)


def _numbers(values: Tensor | np.ndarray) -> np.ndarray:
    return values.numpy() if isinstance(values, Tensor) else np.asarray(values)


def build_tree(
    groups: Mapping[str, Mapping[str, Tensor | np.ndarray]],
    names: Names,
    attributes: Mapping[str, Any],
    steps: Mapping[str, int] | None = None,
) -> tuple[xarray.DataTree, list[str]]:
    """Puts groups of named arrays into one tree.

    Args:
        groups: For each ArviZ group, its variables: (draws, ...), without draws in the groups of
            data.
        names: Of dims and coords.
        attributes: Of the root and of the posterior group; those that are not plain are JSON.
        steps: Of a group, every how many-th draw it has at most.

    Returns:
        The tree, and a line for each group that was thinned or left out for its size.
    """
    plain = {
        key: value if isinstance(value, (str, int, float)) else json.dumps(value, default=str)
        for key, value in attributes.items()
    }
    notes, datasets = [], {}
    for group in GROUPS:
        variables = {name: _numbers(values) for name, values in groups.get(group, {}).items()}
        if not variables and group not in ("posterior", "sample_stats"):
            continue
        leading = () if group in NO_DRAWS else ("chain", "draw")
        draws = next((len(v) for v in variables.values()), 0) if leading else 0
        step = 1
        if leading:
            size = sum(values.size for values in variables.values())
            step = max(1, -(-size // LARGEST_GROUP), (steps or {}).get(group, 1))
            if step > 1:
                notes.append(f"the group {group} has one draw in {step}, to save space.")
            variables = {name: values[None, ::step] for name, values in variables.items()}
        # A slash would be a group to NetCDF.
        of_data = group in OF_DATA
        arrays = {
            k.replace("/", "."): names.array(k, v, leading, of_data) for k, v in variables.items()
        }
        dataset = xarray.Dataset(_apart(arrays))
        if leading:
            dataset = dataset.assign_coords(chain=[0], draw=np.arange(0, draws, step))
        dataset.attrs.update({"inference_library": "elbowroom"})
        if group == "posterior":  # ArviZ's own InferenceData drops the root's attributes
            dataset.attrs.update(plain)
        datasets[f"/{group}"] = dataset
    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs.update(plain)
    return tree, notes


def _apart(arrays: Mapping[str, xarray.DataArray]) -> dict[str, xarray.DataArray]:
    """Variables none of which has the name of another one's dim, such as a column 'draw'."""
    dims = {dim for array in arrays.values() for dim in array.dims}
    return {f"{name}_column" if name in dims else name: array for name, array in arrays.items()}


def in_chains(dataset: xarray.Dataset, chains: int) -> xarray.Dataset:
    """A group of one chain as one of several, which follow one another in it."""
    draws = dataset.sizes["draw"] // chains
    parts = [
        dataset.isel(chain=0, drop=True)
        .isel(draw=slice(k * draws, (k + 1) * draws))
        .assign_coords(draw=np.arange(draws))
        for k in range(chains)
    ]
    return xarray.concat(parts, dim="chain").assign_coords(chain=np.arange(chains))


def _no_chains(record: logging.LogRecord) -> bool:
    """Whether a line of ArviZ's log is about something else than that one chain has no R-hat.

    Draws that are no Markov chain's have none anyway; ArviZ 1.x does not say so either.
    """
    return not record.getMessage().startswith("Shape validation failed: input_shape: (1,")


def to_arviz(tree: xarray.DataTree) -> Any:
    """The tree as the installed ArviZ takes it: the tree itself, or InferenceData before 1.0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # arviz announces its 1.0 on import
        import arviz
    # ArviZ 1.x keeps the name InferenceData for the tree, and its getattr may warn.
    wanted = vars(arviz).get("InferenceData", xarray.DataTree)
    if issubclass(wanted, xarray.DataTree):
        return tree
    log = vars(arviz).get("_log")  # its own logger, which logging.getLogger does not know
    if isinstance(log, logging.Logger) and _no_chains not in log.filters:
        log.addFilter(_no_chains)
    groups: Any = {name: node.to_dataset() for name, node in tree.children.items()}
    return wanted(**groups)


def to_zarr(tree: xarray.DataTree, path: str | Path) -> Path:
    """Writes the tree as a Zarr store.

    In the format's version 2: the third has no specification of text yet, which the labels are.

    Raises:
        OptionError: If Zarr is not installed.
        RunFolderError: If there is something at the path already, or it cannot be written.
    """
    where = Path(path)
    if find_spec("zarr") is None:
        raise OptionError("Zarr is not installed; install it with 'pip install zarr'.")
    if where.exists():
        raise RunFolderError(f"'{where}' exists; choose another path, or remove it first.")
    try:
        tree.to_zarr(where, mode="w-", zarr_format=2)
    except OSError as error:
        raise RunFolderError(
            f"'{where}' cannot be written: {error.strerror or error}; choose another path."
        ) from error
    return where


def labelled_points(tree: xarray.DataTree) -> pd.Series:
    """The model's point parameters, one number a line, labelled as quantities are."""
    if "point_parameters" not in tree.children:
        return pd.Series(dtype=float)
    label: Any = BaseLabeller().make_label_flat
    found: Any = xarray_var_iter(tree["point_parameters"].to_dataset(), skip_dims=set())
    return pd.Series({label(*where): float(value) for *where, value in found}, dtype=float)


def summarise(
    tree: xarray.DataTree, interval: float = 0.9, group: str = "posterior"
) -> pd.DataFrame:
    """Mean, sd and an equal-tailed interval of every quantity of the posterior, or the prior."""
    if not tree[group].data_vars:
        return pd.DataFrame(columns=["mean", "sd"])
    return arviz_stats.summary(
        tree, group=group, kind="stats", ci_kind="eti", ci_prob=interval, round_to="none"
    )
