"""The files of a run folder that are not JSON, each checked before it is unpacked.

A file says how large its arrays are. Libraries believe it, follow links to other files, and unpack
whatever fits into a small file; so shapes, sizes and links are looked at first.
"""

import math
import mmap
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet
import pyarrow.types
import xarray
from safetensors import safe_open
from torch import Tensor

from elbowroom.draws.tree import GROUPS, NO_DRAWS
from elbowroom.run.files import LIMITS, check_file, damaged, reading, too_large

NUMBERS = "biuf"
"""Kinds of numpy's numbers: Booleans, integers of both signs, and floats."""
MEMBERS = 50_000
"""Variables of a posterior and their attributes, some six to a variable, in a file that is not
trusted: they take 0.07 ms each."""
ARRAYS = 10_000
"""Arrays of any other file that is not trusted: a network has several for each layer."""

KNOWN = (*GROUPS, "reference_posterior")
"""Groups of a posterior: those of a fit, and the draws of NUTS that `reference` adds."""
HEAP = b"GCOL\x01"
"""How a heap of texts begins in HDF5, with the version of its layout."""
NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
"""How NetCDF marks the array of a dim that has a length and no labels."""
DIM, DIMS = "_Netcdf4Dimid", "_Netcdf4Coordinates"
"""Attributes in which h5netcdf writes the number of a dim, and those of all dims of a variable."""
OF_LAYOUT = (
    "CLASS", "DIMENSION_LIST", "NAME", "REFERENCE_LIST", "_FillValue", "_NCProperties", DIM, DIMS,
)  # fmt: skip
"""Attributes of NetCDF's own layout in HDF5."""


def read_history(path: Path) -> pd.DataFrame:
    """history.csv: step, elbo and learning_rate, and more columns of numbers.

    Raises:
        RunFolderError: If it is not so.
    """
    check_file(path, LIMITS.table)
    with reading(path):
        with path.open("rb") as file:
            names = file.readline(LIMITS.reason).decode("utf-8").strip().split(",")
        if names[:3] != ["step", "elbo", "learning_rate"] or len(set(names)) < len(names):
            raise damaged(path, " has other columns than step, elbo and learning_rate")
        kinds = {**dict.fromkeys(names, np.float64), "step": np.int64}
        history = pd.read_csv(path, dtype=kinds)
        if not isinstance(history.index, pd.RangeIndex):  # what pandas makes of longer lines
            raise damaged(path, " has lines that are longer than the first")
        return history


def read_parameters(path: Path, most: int | None = LIMITS.arrays) -> dict[str, Tensor]:
    """Tensors by name; safetensors itself checks shapes and offsets.

    Raises:
        RunFolderError: If the file is damaged.
    """
    check_file(path, most)
    with reading(path), safe_open(path, "pt") as file:
        names = list(file.keys())
        _check_number(path, len(names), "tensors", most, ARRAYS)
        return {name: file.get_tensor(name) for name in names}


def read_table(path: Path, most: int | None = LIMITS.arrays) -> pd.DataFrame:
    """A table in Parquet, whose columns are of plain kinds.

    Raises:
        RunFolderError: If it is damaged, or unpacks to more than is allowed.
    """
    check_file(path, most)
    with reading(path), pyarrow.parquet.ParquetFile(path) as file:
        kinds = [field.type for field in file.schema_arrow]
        for name, kind in zip(file.schema_arrow.names, kinds, strict=True):
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if pyarrow.types.is_nested(kind) or hasattr(kind, "extension_name"):
                raise damaged(path, f", column '{name}': {kind} is no kind of a column")
        # A run of equal values takes no bytes: what counts is what the cells will take.
        cells = file.metadata.num_rows * len(kinds) * 8
        _check_unpacked(path, max(cells, _unpacked(file.metadata)), most)
        table = file.read().to_pandas(self_destruct=True)  # no second copy
    table.attrs = {}
    return table


def _unpacked(metadata: Any) -> int:
    groups = (metadata.row_group(k) for k in range(metadata.num_row_groups))
    return sum(group.total_byte_size for group in groups)


def _check_unpacked(path: Path, size: int, most: int | None) -> None:
    if most is not None and size > max(most, LIMITS.packed * path.stat().st_size):
        raise too_large(path, f"unpacks to {size:,} bytes", most)


def _check_number(path: Path, number: int, what: str, most: int | None, allowed: int) -> None:
    if most is not None and number > allowed:
        raise too_large(path, f"has {number:,} {what}", allowed)


def read_arrays(path: Path, most: int | None = LIMITS.arrays) -> dict[str, np.ndarray]:
    """Arrays by name, of an npz file.

    Raises:
        RunFolderError: If a member is no array, holds objects, is there twice, has another size
            than its shape says, or all unpack to more than is allowed.
    """
    check_file(path, most)
    with reading(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise damaged(path, " has an array twice")
        _check_number(path, len(members), "arrays", most, ARRAYS)
        _check_unpacked(path, sum(member.file_size for member in members), most)
        found = {}
        for member in members:
            name, dot, kind = member.filename.rpartition(".")
            if (dot + kind, member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) != (
                ".npy", True,
            ):  # fmt: skip
                raise damaged(path, f", '{member.filename}': it is no array")
            with reading(path, f"'{name}'"), archive.open(member) as file:
                found[name] = _array(file, member.file_size)
    return found


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """An array whose bytes are as many as its shape says.

    Raises:
        ValueError: If they are not, or it holds objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is not known")
    first = version == (1, 0)
    header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = header(file)
    if dtype.hasobject or dtype.names or not dtype.itemsize:
        raise ValueError(f"{dtype} is no kind of number or text")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"its size is not that of the shape {shape}")
    flat = np.frombuffer(file.read(), dtype=dtype).copy()
    return flat.reshape(shape, order="F" if columns_first else "C")


def read_posterior(path: Path, most: int | None = LIMITS.arrays) -> xarray.DataTree:
    """posterior.nc: the groups of ArviZ's schema that a run writes.

    Raises:
        RunFolderError: If it is damaged, or not as a run writes it: links, other groups, arrays in
            other files, packed arrays, and variables that are no draws of numbers.
    """
    check_file(path, most)
    with reading(path):
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            _check_groups(path, file, most)
            groups = {name: _group(path, group) for name, group in file.items()}
            tree = xarray.DataTree(xarray.Dataset(attrs=_attributes(file)))
        posterior = xarray.DataTree.from_dict({"/": tree.to_dataset(), **groups})
        _check_draws(path, posterior)
    return posterior


def _group(path: Path, group: h5py.Group) -> xarray.Dataset:
    """A group as xarray has it.

    xarray's own reader looks for the name of every dim of every variable among all objects of the
    file: 90 s for the twelve groups of a model of 600 sites.
    """
    arrays = dict(group.items())
    numbers = {int(each.attrs[DIM]): name for name, each in arrays.items() if "CLASS" in each.attrs}
    labels: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        if _is_no_variable(array):
            continue
        with reading(path, f"'{group.name[1:]}/{name}'"):
            dims = [numbers[int(number)] for number in array.attrs.get(DIMS, ())]
            text = h5py.check_string_dtype(array.dtype)
            values = (array if text is None else array.asstr())[()]
            attributes = _attributes(array)
            kind = attributes.pop("dtype", None)
            values = values.astype(bool) if kind == "bool" else values
            into = labels if name in dims else variables
            into[name] = (dims, values, attributes)
    return xarray.Dataset(variables, labels, _attributes(group))


def _attributes(found: Any) -> dict[str, Any]:
    """Numbers and texts, as Python has them where they are single."""
    given = {name: found.attrs[name] for name in found.attrs if name not in OF_LAYOUT}
    return {k: v.item() if np.size(v) == 1 and hasattr(v, "item") else v for k, v in given.items()}


def _is_no_variable(array: h5py.Dataset) -> bool:
    """Whether it stands for a dim that has a length and no labels."""
    return bytes(array.attrs.get("NAME", b"")).startswith(NO_VARIABLE)


def _check_heaps(path: Path) -> None:
    """Sees that the heaps of texts end, in each of which HDF5 goes from one text to the next.

    A free place of length 0 keeps it there for ever, in its own code, which nothing can stop. The
    layout is that of "Disk Format: Level 1E - Global Heap" of the HDF5 File Format Specification.
    """
    if not path.stat().st_size:  # which cannot be mapped
        raise damaged(path, " is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        begin = content.find(HEAP)
        while begin >= 0:
            end = begin + int.from_bytes(content[begin + 8 : begin + 16], "little")
            if end > len(content):  # chance bytes of draws; HDF5 itself refuses such a heap
                end = 0
            place = begin + 16
            while place + 16 <= end:
                index = int.from_bytes(content[place : place + 2], "little")
                size = int.from_bytes(content[place + 8 : place + 16], "little")
                if index == 0:  # what is left is free
                    if size != end - place:
                        raise damaged(path, " has a heap that does not end")
                    break
                place += 16 + -(-size // 8) * 8
            if place > end > 0:
                raise damaged(path, " has a heap that is longer than its place")
            begin = content.find(HEAP, begin + len(HEAP))


def _check_groups(path: Path, file: h5py.File, most: int | None) -> None:
    """Sees that a NetCDF file is one level of groups of arrays that lie in it as they are."""
    if len(file) > len(KNOWN):
        raise damaged(path, f" has {len(file):,} groups, and a run has {len(KNOWN)} at most")
    seen = {_address(file)}
    members = _check_attributes(path, "/", file)
    for name in file:
        if name not in KNOWN:
            raise damaged(path, f", '{name}': a run has no such group")
        group = _member(path, file, name, name, seen)
        if not isinstance(group, h5py.Group):
            raise damaged(path, f", '{name}' is no group")
        members += len(group) + _check_attributes(path, name, group)
        for inner in group:
            label = f"{name}/{inner}"
            variable = _member(path, group, inner, label, seen)
            if not isinstance(variable, h5py.Dataset):
                raise damaged(path, f", '{label}' is no array")
            members += _check_attributes(path, label, variable)
            _check_number(path, members, "variables and attributes", most, MEMBERS)
            _check_array(path, label, variable)


def _address(found: Any) -> int:
    return int(h5py.h5o.get_info(found.id).addr)


def _member(path: Path, parent: h5py.Group, name: str, label: str, seen: set[int]) -> Any:
    """What a name stands for, if that lies in the file and has no other name."""
    if parent.get(name, getclass=True, getlink=True) is not h5py.HardLink:
        raise damaged(path, f", '{label}' is a link")
    found = parent[name]
    address = _address(found)
    if address in seen:
        raise damaged(path, f", '{label}' is a link")
    seen.add(address)
    return found


def _check_attributes(path: Path, label: str, found: Any) -> int:
    """Attributes are single texts or numbers, beside HDF5's own lists of dims; gives how many."""
    number = len(found.attrs)
    if number > MEMBERS:  # trusted or not: NetCDF has no such variable
        raise damaged(path, f", '{label}' has {number:,} attributes")
    for name in found.attrs:
        attribute = found.attrs.get_id(name)
        text = isinstance(attribute.get_type(), h5py.h5t.TypeStringID)
        if text and math.prod(attribute.shape) > 1:
            raise damaged(path, f", '{label}', attribute '{name}' is a list of texts")
    return number


def _check_array(path: Path, label: str, variable: h5py.Dataset) -> None:
    plan = variable.id.get_create_plist()
    plain = plan.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    plain |= variable.shape is not None and 0 in variable.shape  # such as the weights of one part
    if not plain or plan.get_external_count() or plan.get_nfilters():
        raise damaged(path, f", '{label}' is packed, in parts or in another file")
    text = h5py.check_string_dtype(variable.dtype)
    if text is None and variable.dtype.kind not in NUMBERS:
        raise damaged(path, f", '{label}': {variable.dtype} is neither number nor text")
    if _is_no_variable(variable):
        return  # whose values are not read
    shape = (LIMITS.arrays,) if variable.shape is None else variable.shape
    space = math.prod(max(1, length) for length in shape) * variable.dtype.itemsize
    if space > LIMITS.arrays or variable.nbytes > variable.id.get_storage_size():
        raise damaged(path, f", '{label}': the file does not hold all of its values")
    if text is not None and text.length is None:
        _check_texts(path, label, variable)


def _check_texts(path: Path, label: str, variable: h5py.Dataset) -> None:
    """Texts that together are not longer than the file, as they would be if many were one."""
    room = path.stat().st_size
    step = max(1, LIMITS.arrays // (4 * room))  # each may be as long as the file
    for part in _parts(variable, step):
        room -= sum(map(len, part))
        if room < 0:
            raise damaged(path, f", '{label}': its texts are longer than the file")


def _parts(variable: h5py.Dataset, step: int) -> Iterator[list[bytes]]:
    if variable.ndim != 1:
        raise ValueError("texts that are no list of labels")
    for begin in range(0, variable.size, step):
        yield list(variable[begin : begin + step])


def _check_draws(path: Path, tree: xarray.DataTree) -> None:
    """Sees that the groups of draws have draws, of numbers."""
    if "posterior" not in tree.children:
        raise damaged(path, " has no group 'posterior'")
    for name, group in tree.children.items():
        for variable, values in group.variables.items():  # each of data_vars is made from all
            label = f", '{name}/{variable}'"
            if variable in group.coords:
                continue
            if name not in NO_DRAWS and (
                values.dims[:2] != ("chain", "draw") or 0 in values.shape[:2]
            ):
                raise damaged(path, f"{label} is not a number of draws in chains")
            if values.dtype.kind not in NUMBERS and name not in ("observed_data", "constant_data"):
                raise damaged(path, f"{label} has no numbers")


def by_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
