"""Writes the results of verbs to a folder: tables, and pictures where rows are images."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elbowroom.comparison import Comparison
from elbowroom.data.tables import read_table
from elbowroom.errors import DataError
from elbowroom.report.pictures import (
    picture_of_images,
    picture_of_latents,
    picture_of_predictions,
)
from elbowroom.result import Fit
from elbowroom.run.output import writing


@dataclass(frozen=True)
class PictureSizes:
    """How much a picture shows."""

    images: int = 10
    """Images of a reconstruction."""
    panels: int = 6
    """Methods in a picture of predictions."""
    points: int = 200
    """Points along a column in it."""
    beyond: float = 0.5
    """How far it goes beyond either end of the column, in ranges of the column."""
    generated: int = 100
    """New images in their picture."""


PICTURE_SIZES = PictureSizes()
PICTURE = "picture.png"


def write(
    folder: Path, overwrite: bool, tables: dict[str, pd.DataFrame], draw: Callable[[Path], None]
) -> Path:
    """Writes tables as CSV files, and a picture, to a folder: all of them or none.

    Args:
        folder: Where to.
        overwrite: Whether to replace Elbowroom's own files there; others stay.
        tables: By the names of the files; the first one marks the folder.
        draw: Called with the path of the picture, which it may leave out. Where it fails, the
            tables are written without it.

    Raises:
        RunFolderError: As `elbowroom.run.output.check_target`.
    """
    names = [*tables, PICTURE]
    with writing(folder, overwrite, names[0], names) as filled:
        for name, table in tables.items():
            table.to_csv(filled / name, index=False)
        drawn(lambda: draw(filled / PICTURE))
    return folder


def drawn(draw: Callable[[], None]) -> None:
    """Draws a picture; where that fails, says why, since the numbers are what was asked for."""
    try:
        draw()
    except OSError:  # the disk, which the numbers need too
        raise
    except Exception as error:  # whatever a library raises about fonts, signs or sizes
        cause = str(error) or type(error).__name__
        print(f"note: the picture was not drawn: {cause}", file=sys.stderr)


def images(fit: Fit, table: pd.DataFrame) -> np.ndarray | None:
    """The rows as images, (rows, height, width), or None if they are not images."""
    problem = fit.problem
    found = None if problem.model.images is None else problem.model.images(problem.arguments)
    if found is None:
        return None
    shape, top = found
    names = problem.prepared.coords[problem.prepared.dims[problem.observed][-1]]
    pixels = table[list(names)].to_numpy(dtype=float)
    return np.clip(pixels, 0, top or pixels.max()).reshape(len(table), *shape)


def draw_generated(fit: Fit, table: pd.DataFrame) -> Callable[[Path], None]:
    """A picture of new rows."""

    def draw(path: Path) -> None:
        found = images(fit, table.head(PICTURE_SIZES.generated))
        if found is not None:
            title = f"new rows of {fit.problem.model.name}"
            picture_of_images(found, path, min(10, len(found)), title=title)

    return draw


def draw_reconstructed(fit: Fit, data: Any, table: pd.DataFrame) -> Callable[[Path], None]:
    """A picture of rows, each above its reconstruction."""

    def draw(path: Path) -> None:
        found = images(fit, table.head(PICTURE_SIZES.images))
        if found is not None:
            rows = fit.problem.data if data is None else read_table(data, minimum_rows=1)
            given = images(fit, rows.head(PICTURE_SIZES.images))
            assert given is not None
            both = np.concatenate([given, found])
            picture_of_images(both, path, len(found), ["row", "reconstructed"])

    return draw


def draw_line(fit: Fit, table: pd.DataFrame, begin: int, end: int) -> Callable[[Path], None]:
    """A picture of the rows between two."""

    def draw(path: Path) -> None:
        found = images(fit, table)
        if found is not None:
            picture_of_images(found, path, len(found), title=f"from row {begin} to row {end}")

    return draw


def draw_manifold(fit: Fit, table: pd.DataFrame, size: int) -> Callable[[Path], None]:
    """A picture of the grid.

    Raises:
        DataError: If the rows are not images.
    """
    found = images(fit, table)
    if found is None:
        raise DataError("a manifold needs rows that are images; fit with --image-shape.")
    return lambda path: picture_of_images(found, path, size, title="the latents' manifold")


def draw_predictions(comparison: Comparison, folder: Path) -> None:
    """A picture of each method's predictions along the first predictor that is a number.

    The other columns stay near their medians, or at their most common values. Models that do not
    predict a number from columns have no such picture.
    """
    fits = dict(list(comparison.fits.items())[: PICTURE_SIZES.panels])
    problem = next((fit.problem for fit in fits.values()), None)
    if problem is None or problem.prepared.coords.get("class"):
        return
    table = problem.data
    numbers = [
        name
        for name in problem.prepared.coords.get("predictor", ())
        if name in table and pd.api.types.is_numeric_dtype(table[name])
    ]
    if not numbers:
        return
    column = numbers[0]
    low, high = float(table[column].min()), float(table[column].max())
    reach = np.linspace(
        low - PICTURE_SIZES.beyond * (high - low),
        high + PICTURE_SIZES.beyond * (high - low),
        PICTURE_SIZES.points,
    )
    fixed = {name: _typical(table[name]) for name in table.columns if name != column}
    line = pd.DataFrame({**fixed, column: reach}, index=range(PICTURE_SIZES.points))[
        list(table.columns)
    ]
    line.attrs = table.attrs
    panels = {name: fit.predict(line, 0.9) for name, fit in fits.items()}
    observed = problem.arguments[problem.observed].double().cpu().numpy()
    response = getattr(problem.options, "response", None) or problem.observed
    rows = pd.DataFrame({column: table[column].to_numpy(), response: observed})
    others = "" if len(numbers) == 1 else ", the other columns near their medians"
    title = f"{problem.model.name}: predictions along {column}{others}"
    picture_of_predictions(reach, panels, rows, folder / "predictions.png", title)


def _typical(column: pd.Series) -> Any:
    """A typical value of a column: the number nearest to its median, or its most common value."""
    known = column.dropna()
    if known.empty:
        return None
    if pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_bool_dtype(known):
        return known.iloc[(known - known.median()).abs().to_numpy().argmin()]
    return known.mode().iloc[0]


def draw_latents(fit: Fit, data: Any, table: pd.DataFrame) -> Callable[[Path], None]:
    """A picture of the rows' latents, in the colours of their labels."""

    def draw(path: Path) -> None:
        if not any(name.endswith(".mean") for name in table.columns):
            return
        rows = fit.problem.data if data is None else read_table(data, minimum_rows=1)
        roles = getattr(rows, "attrs", {}).get("roles", {})
        label = next((name for name, role in roles.items() if role == "label"), None)
        classes = rows[label].reset_index(drop=True) if label in rows else None
        picture_of_latents(table, path, classes, f"latents of {fit.problem.model.name}")

    return draw
