"""The tables that come with Elbowroom: their names, what is in them, and the tables themselves.

Every table is a `NAME.csv` next to this file with a sidecar `NAME.json`; both are written by
`elbowroom.data.generate`. Only `load_dataset` imports pandas, so that listing
the tables is instant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from elbowroom.errors import unknown

if TYPE_CHECKING:
    import pandas

_FOLDER = files("elbowroom.data")


@dataclass(frozen=True)
class Column:
    """One column of a bundled table.

    Attributes:
        name: The name in the CSV's header.
        unit: The unit of measurement; empty where there is none.
        description: What is in the column.
        role: `feature` (a model's input), `response` (what a regression explains), `label`
            (a truth to check against, never fitted), `identifier`, or `known_scale` (a standard
            error that is given, not estimated).
    """

    name: str
    unit: str
    description: str
    role: str


@dataclass(frozen=True)
class Dataset:
    """What a bundled table is, without the table.

    Attributes:
        name: The name to load it by.
        title: One line.
        description: What was measured and why the table is here.
        source: Authors, year and address.
        licence: The terms under which the values are handed on.
        rows: The number of rows.
        columns: Every column, in the order of the file.
        extra: What only some tables have: `image_shape`, `value_range`, `truth`.
    """

    name: str
    title: str
    description: str
    source: str
    licence: str
    rows: int
    columns: tuple[Column, ...]
    extra: dict[str, Any] = field(default_factory=dict)


def dataset_names() -> list[str]:
    """The names of the bundled tables, sorted.

    Example:
        >>> dataset_names()[:4]
        ['breast_cancer', 'diabetes', 'digits', 'eight_schools']
    """
    entries = (entry.name for entry in _FOLDER.iterdir())
    return sorted(name.removesuffix(".json") for name in entries if name.endswith(".json"))


def describe(name: str) -> Dataset:
    """What is in a bundled table, from its sidecar.

    Raises:
        OptionError: No bundled table has this name.

    Example:
        >>> schools = describe("eight_schools")
        >>> schools.rows, [(column.name, column.role) for column in schools.columns]
        (8, [('school', 'identifier'), ('effect', 'response'), ('standard_error', 'known_scale')])
    """
    if name not in (names := dataset_names()):
        raise unknown("dataset", name, names)
    sidecar = json.loads(_FOLDER.joinpath(f"{name}.json").read_text(encoding="utf-8"))
    columns = tuple(Column(**column) for column in sidecar.pop("columns"))
    known = {key: sidecar.pop(key) for key in Dataset.__dataclass_fields__ if key in sidecar}
    return Dataset(**known, columns=columns, extra=sidecar)


def load_dataset(name: str) -> pandas.DataFrame:
    """A bundled table.

    Its `attrs` have `dataset` (the name), `roles` (column to role) and, for images, `image_shape`
    and `value_range`.

    Raises:
        OptionError: No bundled table has this name.

    Example:
        >>> iris = load_dataset("iris")
        >>> iris.shape
        (150, 5)
        >>> iris.attrs["roles"]["species"]
        'label'
    """
    from elbowroom.data.files import read_file

    about = describe(name)
    with as_file(_FOLDER.joinpath(f"{name}.csv")) as path:
        table = read_file(path)
    table.attrs["dataset"] = name
    table.attrs["roles"] = {column.name: column.role for column in about.columns}
    for key in ("image_shape", "value_range"):
        if key in about.extra:
            table.attrs[key] = about.extra[key]
    return table
