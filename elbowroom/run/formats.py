"""The files of a run folder that are not JSON, each checked before it is unpacked.

A file says how large its arrays are. Libraries believe it, follow links to other files, and unpack
whatever fits into a small file; so shapes, sizes and links are looked at first.
"""

import io
import math
import zipfile
from collections.abc import Mapping
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
NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
"""How NetCDF marks the array of a dim that has a length and no labels."""
DIM, DIMS = "_Netcdf4Dimid", "_Netcdf4Coordinates"
"""Attributes in which h5netcdf writes the number of a dim, and those of all dims of a variable; its
first versions write the latter only where there are several."""
OF_LAYOUT = (
    "CLASS", "DIMENSION_LIST", "NAME", "REFERENCE_LIST", "_FillValue", "_NCProperties", DIM, DIMS,
)  # fmt: skip
"""Attributes of NetCDF's own layout in HDF5."""
NOT_READ = ("DIMENSION_LIST", "REFERENCE_LIST")
"""Those that are of variable length."""
TEXT = 100
"""Bytes that Python takes for a text beside its characters."""


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
    if most is not None and size > most:
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
    flat = np.empty(math.prod(shape), dtype=dtype)
    room, begin = flat.view(np.uint8), 0  # into which it is read, so that there is no second copy
    while begin < len(room):
        got = file.readinto(room[begin:])  # type: ignore[attr-defined]
        if not got:
            raise ValueError("it ends before its last number")
        begin += got
    return flat.reshape(shape, order="F" if columns_first else "C")


def packed_posterior(tree: xarray.DataTree) -> bytes:
    """The content of posterior.nc: NetCDF whose texts all have a fixed length.

    A text of variable length lies in a heap, with its length beside it. HDF5 believes that length,
    and those of the heap, before anyone can look at them: it allocates 4 GB for a changed byte.
    """
    encoding = {group.path: _characters(group.to_dataset()) for group in tree.subtree}
    content = io.BytesIO(tree.to_netcdf(None, engine="h5netcdf", encoding=encoding))
    with h5py.File(content, "r+") as file:
        _fix_texts(file)
        for group in file.values():
            _fix_texts(group)
            for array in group.values():
                _fix_texts(array)
    return content.getvalue()


def _characters(group: xarray.Dataset) -> dict[str, dict[str, str]]:
    """How xarray shall write texts: as characters, along a dim with a name of its own."""
    dim, found = "string", {}
    while any(str(name).startswith(dim) for name in (*group.variables, *group.sizes)):
        dim += "_"
    for name, variable in group.variables.items():
        kind = variable.dtype.kind
        values = variable.values.flat if kind in "OTU" else ()
        lengths = [len(each.encode()) for each in values if isinstance(each, str)]
        if lengths or kind in "TU":  # xarray makes numbers of objects that are none
            found[str(name)] = {"dtype": "S1", "char_dim_name": f"{dim}{max([1, *lengths])}"}
    return found


def _fix_texts(found: Any) -> None:
    """Gives attributes that are texts a fixed length."""
    for name in found.attrs:
        kind = found.attrs.get_id(name).get_type()
        if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
            text = found.attrs[name]
            if isinstance(text, str):  # and no list of texts, which none of a run's trees has
                length = max(1, len(text.encode()))
                found.attrs.create(name, text.encode(), dtype=h5py.string_dtype("utf-8", length))


def read_posterior(path: Path, most: int | None = LIMITS.arrays) -> xarray.DataTree:
    """posterior.nc: the groups of ArviZ's schema that a run writes.

    Raises:
        RunFolderError: If it is damaged, or not as a run writes it: links, other groups, arrays in
            other files, packed arrays, texts of variable length, and variables that are no draws
            of numbers.
    """
    check_file(path, most)
    with reading(path):
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
            numbered = array.attrs.get(DIMS, array.attrs.get(DIM, ()))
            dims = [numbers[int(number)] for number in np.ravel(numbered)]
            attributes = _attributes(array)
            values = array[()]
            if values.dtype.kind == "S":
                *dims, _ = dims
                values = _joined(values, attributes.pop("_Encoding", None))
            kind = attributes.pop("dtype", None)
            values = values.astype(bool) if kind == "bool" else values
            into = labels if name in dims else variables
            into[name] = (dims, values, attributes)
    return xarray.Dataset(variables, labels, _attributes(group))


def _joined(characters: np.ndarray, encoding: Any) -> np.ndarray:
    """Texts, whose characters (UTF-8) lie along the last dim."""
    if encoding != "utf-8":
        raise ValueError(f"characters whose encoding is {encoding!r}, not 'utf-8'")
    *shape, length = characters.shape
    joined = np.ascontiguousarray(characters).view(f"S{length}").reshape(shape)
    return np.strings.decode(joined, "utf-8")


def _attributes(found: Any) -> dict[str, Any]:
    """Numbers and texts, as Python has them where they are single."""
    given = {name: found.attrs[name] for name in found.attrs if name not in OF_LAYOUT}
    single = {k: v.item() if np.size(v) == 1 else v for k, v in given.items()}
    return {k: v.decode("utf-8") if isinstance(v, bytes) else v for k, v in single.items()}


def _is_no_variable(array: h5py.Dataset) -> bool:
    """Whether it stands for a dim that has a length and no labels."""
    return bytes(array.attrs.get("NAME", b"")).startswith(NO_VARIABLE)


def _check_groups(path: Path, file: h5py.File, most: int | None) -> None:
    """Sees that a NetCDF file is one level of groups of arrays that lie in it as they are."""
    if len(file) > len(KNOWN):
        raise damaged(path, f" has {len(file):,} groups, and a run has {len(KNOWN)} at most")
    seen, room = {_address(file)}, path.stat().st_size
    members, space = len(file.attrs), _check_attributes(path, "/", file, room)
    for name in file:
        if name not in KNOWN:
            raise damaged(path, f", '{name}': a run has no such group")
        group = _member(path, file, name, name, seen)
        if not isinstance(group, h5py.Group):
            raise damaged(path, f", '{name}' is no group")
        members += len(group) + len(group.attrs)
        space += _check_attributes(path, name, group, room)
        for inner in group:
            label = f"{name}/{inner}"
            variable = _member(path, group, inner, label, seen)
            if not isinstance(variable, h5py.Dataset):
                raise damaged(path, f", '{label}' is no array")
            members += len(variable.attrs)
            space += _check_attributes(path, label, variable, room)
            _check_number(path, members, "variables and attributes", most, MEMBERS)
            space += _check_array(path, label, variable, room)
            if most is not None and space > most:
                raise too_large(path, f"takes {space:,} bytes of memory and more", most)


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


def _check_attributes(path: Path, label: str, found: Any, room: int) -> int:
    """Attributes are numbers and single texts that fit into the file; gives their bytes."""
    number, space = len(found.attrs), 0
    if number > MEMBERS:  # trusted or not: NetCDF has no such variable
        raise damaged(path, f", '{label}' has {number:,} attributes")
    for name in found.attrs:
        if name in NOT_READ:
            continue
        attribute = found.attrs.get_id(name)
        kind, shape = attribute.get_type(), attribute.shape
        what = f", '{label}', attribute '{name}'"
        text = isinstance(kind, h5py.h5t.TypeStringID)
        plain = text or isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID))
        if not plain or shape is None or (text and kind.is_variable_str()):
            raise damaged(path, f"{what} is neither a number nor a text of a fixed length")
        if text and math.prod(shape) > 1:
            raise damaged(path, f"{what} is a list of texts")
        size = math.prod(shape) * kind.get_size()
        if size > room:
            raise damaged(path, f"{what} is longer than the file")
        space += size
    return space


def _check_array(path: Path, label: str, variable: h5py.Dataset, room: int) -> int:
    """Arrays are numbers or characters that lie in the file; gives their bytes in memory."""
    plan = variable.id.get_create_plist()
    plain = plan.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    plain |= variable.shape is not None and 0 in variable.shape  # such as the weights of one part
    if not plain or plan.get_external_count() or plan.get_nfilters():
        raise damaged(path, f", '{label}' is packed, in parts or in another file")
    dtype, shape = variable.dtype, variable.shape
    text = dtype == "S1" and bool(shape)
    if not text and dtype.kind not in NUMBERS:
        raise damaged(path, f", '{label}': {dtype} is neither number nor text of a fixed length")
    if _is_no_variable(variable):
        return 0  # whose values are not read
    if shape is None or variable.nbytes > min(room, variable.id.get_storage_size()):
        raise damaged(path, f", '{label}': the file does not hold all of its values")
    space = math.prod(max(1, length) for length in shape) * dtype.itemsize
    if 0 in shape and space > LIMITS.arrays:
        raise damaged(path, f", '{label}' has no values along huge dims")
    # Four bytes for each character: in the decoding, in numpy's array, and in the index of labels.
    return space * 13 + math.prod(shape[:-1]) * TEXT if text else space


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
