"""Draws as an `xarray.DataTree` in the ArviZ schema."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import arviz_stats
import numpy as np
import pandas as pd
import xarray
from arviz_base.labels import BaseLabeller
from arviz_base.sel_utils import xarray_var_iter
from torch import Tensor

from elbowroom.errors import OptionError

LARGEST_GROUP = 5_000_000
"""Numbers in one group of a run's posterior beyond which its draws are thinned or left out."""

GROUPS = (
    "posterior",
    "raw_posterior",
    "corrected_posterior",
    "unconstrained_posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "point_parameters",
)
NO_DRAWS = ("observed_data", "constant_data", "point_parameters")


@dataclass(frozen=True)
class Names:
    """Names for the dims of sites and arguments, and labels along them."""

    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, Sequence[Any]]

    def array(self, name: str, values: np.ndarray, leading: tuple[str, ...]) -> xarray.DataArray:
        """Values with their dims named; unnamed ones are called NAME_dim_0 and on."""
        known = self.dims.get(name, ())
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
) -> tuple[xarray.DataTree, list[str]]:
    """Puts groups of named arrays into one tree.

    Args:
        groups: For each ArviZ group, its variables: (draws, ...), without draws in the groups of
            data.
        names: Of dims and coords.
        attributes: Of the root and of the posterior group; those that are not plain are JSON.

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
            step = max(1, -(-size // LARGEST_GROUP))
            if step > 1:
                notes.append(f"the group {group} has one draw in {step}, to save space.")
            variables = {name: values[None, ::step] for name, values in variables.items()}
        # A slash would be a group to NetCDF.
        arrays = {k.replace("/", "."): names.array(k, v, leading) for k, v in variables.items()}
        dataset = xarray.Dataset(arrays)
        if leading:
            dataset = dataset.assign_coords(chain=[0], draw=np.arange(0, draws, step))
        dataset.attrs.update({"inference_library": "elbowroom"})
        if group == "posterior":  # ArviZ's own InferenceData drops the root's attributes
            dataset.attrs.update(plain)
        datasets[f"/{group}"] = dataset
    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs.update(plain)
    return tree, notes


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


def to_arviz(tree: xarray.DataTree) -> Any:
    """The tree as the installed ArviZ takes it: the tree itself, or InferenceData before 1.0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # arviz announces its 1.0 on import
        import arviz
    # ArviZ 1.x keeps the name InferenceData for the tree, and its getattr may warn.
    wanted = vars(arviz).get("InferenceData", xarray.DataTree)
    if issubclass(wanted, xarray.DataTree):
        return tree
    groups: Any = {name: node.to_dataset() for name, node in tree.children.items()}
    return wanted(**groups)


def check_interval(interval: float) -> None:
    """Sees that an interval's probability is one.

    Raises:
        OptionError: If it is not between 0 and 1.
    """
    if not 0 < interval < 1:
        raise OptionError(f"--interval {interval}: give a probability between 0 and 1.")


def labelled_points(tree: xarray.DataTree) -> pd.Series:
    """The model's point parameters, one number a line, labelled as quantities are."""
    if "point_parameters" not in tree.children:
        return pd.Series(dtype=float)
    label: Any = BaseLabeller().make_label_flat
    found: Any = xarray_var_iter(tree["point_parameters"].to_dataset(), skip_dims=set())
    return pd.Series({label(*where): float(value) for *where, value in found}, dtype=float)


def summarise(tree: xarray.DataTree, interval: float = 0.9) -> pd.DataFrame:
    """Mean, sd and an equal-tailed interval of every quantity of the posterior."""
    if not tree["posterior"].data_vars:
        return pd.DataFrame(columns=["mean", "sd"])
    return arviz_stats.summary(tree, kind="stats", ci_kind="eti", ci_prob=interval, round_to="none")
