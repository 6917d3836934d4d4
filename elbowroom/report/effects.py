"""Adjusted predictions, slopes and contrasts: printed, and as a picture."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.text import Text

from elbowroom.report.listing import add, console, table
from elbowroom.report.pictures import COLOURS, save
from elbowroom.report.terminal import LONGEST, number, warn_untrusted
from elbowroom.result import Fit


@dataclass(frozen=True)
class Layout:
    """How much is printed and drawn, and how large."""

    printed: int = 7
    """Points of a column of numbers that are printed for each line of a picture."""
    wide: int = 3
    """Panels side by side, at most."""
    panels: int = 30
    """Panels of a picture, at most; the table has all."""
    series: int = 12
    """Lines of a panel, at most: colours that can be told apart."""
    width: float = 3.7
    """Of a panel, in inches."""
    height: float = 3.0
    """Of a panel of means."""
    line: float = 0.3
    """Height of a slope or contrast beside another, in inches."""
    spread: float = 0.5
    """Share of the room of a level that its points of several colours take, at most."""
    apart: float = 0.2
    """The same for two of them."""
    rug: int = 400
    """Fitted rows that are marked below a line."""
    letters: int = 30
    """In all labels below a panel, up to which they stand upright."""
    inch: float = 17.0
    """Letters of the caption in an inch."""


LAYOUT = Layout()
HEADS = {"mean": "Means", "slope": "Slopes", "contrast": "Contrasts"}
QUANTITIES = ("mean", "sd", "lower", "upper")


def show_effects(fit: Fit, effects: pd.DataFrame) -> None:
    """Prints them: a warning if the run is not trusted, a table for each column, and what they are.

    Args:
        fit: The fit.
        effects: Of `elbowroom.result.Fit.effects`.
    """
    out = console()
    warn_untrusted(fit)
    left_out = False
    interval = effects.attrs["interval"]
    ends = (f"{100 * (1 - interval) / 2:g}%", f"{100 * (1 + interval) / 2:g}%")
    out.print(Text(f"{_capital(effects.attrs['response'])}, {interval:.0%} intervals"))
    for effect, rows in effects.groupby("effect", sort=False):
        columns = rows["column"].unique() if effect == "mean" else [""]
        for column in map(str, columns):
            some = rows[rows["column"] == column] if column else rows
            kept = _printed(some, effects.attrs["by"])
            left_out |= len(kept) < len(some)
            others = [name for name in (*effects.attrs["by"], "level") if name in some]
            names = [column] if column else ["column", "value"]
            heads = [*names, *others, "mean", "sd", *ends]
            made = table(*heads, right=(*heads[-4:],))
            for row in kept.to_dict("records"):
                told = [row["value"]] if column else [row["column"], row["value"]]
                cells = [*told, *(row[name] for name in others), *(row[q] for q in QUANTITIES)]
                add(made, *map(number, cells))
            out.print(Text(f"\n{HEADS[str(effect)]}{f' by {column}' if column else ''}",
                           style="bold"))  # fmt: skip
            out.print(made)
    out.print()
    if left_out:
        out.print("Some lines of long tables are left out; --output writes all.", style="dim")
    for note in effects.attrs["notes"]:
        out.print(Text(note, style="dim"))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _printed(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows of a table that are printed: of a grid, some that are evenly spaced."""
    numbers = pd.api.types.is_numeric_dtype(rows["value"].infer_objects())
    if numbers and rows["value"].nunique() > 2 * LAYOUT.printed:
        values = np.sort(rows["value"].unique().astype(float))
        kept = values[np.linspace(0, len(values) - 1, LAYOUT.printed).round().astype(int)]
        rows = rows[rows["value"].isin(kept)]
    return rows if by or numbers else rows.head(LONGEST)


def draw_effects(fit: Fit, effects: pd.DataFrame) -> Callable[[Path], None]:
    """A picture of them: lines with bands for numbers, points with intervals for all else.

    Args:
        fit: The fit, whose rows are marked below lines.
        effects: Of `elbowroom.result.Fit.effects`.
    """
    return lambda path: picture_of_effects(effects, fit.problem.data, path)


def picture_of_effects(effects: pd.DataFrame, data: pd.DataFrame, path: Path) -> None:
    """Draws the picture; see `draw_effects`.

    Args:
        effects: Of `elbowroom.result.Fit.effects`.
        data: The fitted rows.
        path: Of the PNG file.
    """
    panels = list(_panels(effects))[: LAYOUT.panels]
    means = [rows["effect"].iloc[0] == "mean" for _, rows in panels]
    wide = 2 if len(panels) == 4 else min(LAYOUT.wide, len(panels))
    tall = -(-len(panels) // wide)
    rest = max((len(rows) for (_, rows), mean in zip(panels, means, strict=True) if not mean),
               default=0)  # fmt: skip
    height = max(LAYOUT.height if any(means) else 0.0, 1.1 + LAYOUT.line * rest)
    figure = Figure(
        figsize=(LAYOUT.width * max(wide, 1.5) + 0.4, height * tall + 0.6), layout="constrained"
    )
    axes = figure.subplots(tall, wide, squeeze=False)
    series, about = _series(effects), effects.attrs
    response = _capital(about["response"])
    for ax, (title, rows), mean in zip(axes.flat, panels, means, strict=False):
        ax.set_title(title, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.grid(axis="y" if mean else "x", color="#e9e9e9", lw=0.7)
        ax.set_axisbelow(True)
        (_draw_means if mean else _draw_differences)(ax, rows, series, about["by"], data)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    shown = [ax for ax, mean in zip(axes.flat, means, strict=False) if mean]
    ends = [end for ax in shown for end in ax.get_ylim()]
    for ax in shown:  # so that the effects of columns can be compared
        ax.set_ylim(min(ends), max(ends))
    if all(means):
        figure.supylabel(response, fontsize=10)
    elif len(series) == 1:
        figure.suptitle(response, fontsize=11)
    notes = " ".join([f"{about['interval']:.0%} intervals.", *about["notes"]])
    caption = textwrap.fill(notes, int(LAYOUT.inch * figure.get_figwidth()))
    figure.supxlabel(caption, fontsize=8, color="#6b6b6b")
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if len(series) > 1:
        order = [label for label in series if label in handles]
        figure.legend(
            [handles[label] for label in order], order, loc="outside upper center",
            title=None if all(means) else response, title_fontsize=11,
            ncols=min(6, len(order)), frameon=False, fontsize=9,
        )  # fmt: skip
    save(figure, path, 150)


def _panels(effects: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """A title and rows for each column, and of levels for each group beside them."""
    apart = [name for name in effects.attrs["by"] if "level" in effects]
    for (effect, column), rows in effects.groupby(["effect", "column"], sort=False):
        head = "" if effect == "mean" else f"{effect} of {column}"
        if not apart:
            yield head, rows
            continue
        for _, some in rows.groupby(apart, sort=False):
            told = _told(some.iloc[0], apart)
            yield f"{head}, {told}" if head else told, some


def _told(row: pd.Series, names: Sequence[str]) -> str:
    return ", ".join(f"{name} = {number(row[name])}" for name in names)


def _label(row: pd.Series, by: Sequence[str]) -> str:
    """The series that a row belongs to: a level of the response, or a group."""
    return str(row["level"]) if "level" in row else _told(row, by)


def _series(effects: pd.DataFrame) -> dict[str, str]:
    """The colour of each series."""
    labels = dict.fromkeys(_label(row, effects.attrs["by"]) for _, row in effects.iterrows())
    return {label: COLOURS[k % len(COLOURS)] for k, label in enumerate(labels)}


def _split(
    rows: pd.DataFrame, series: dict[str, str], by: Sequence[str]
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    labels = pd.Series([_label(row, by) for _, row in rows.iterrows()], index=rows.index)
    for label in list(dict.fromkeys(labels))[: LAYOUT.series]:
        yield label, series[label], rows[labels == label]


def _draw_means(
    ax: Any, rows: pd.DataFrame, series: dict[str, str], by: Sequence[str], data: pd.DataFrame
) -> None:
    """Lines with bands over numbers; points with intervals at levels, or at a few numbers."""
    column, values = str(rows["column"].iloc[0]), list(dict.fromkeys(rows["value"]))
    parts = list(_split(rows, series, by))
    ax.set_xlabel(column, fontsize=9)
    if all(isinstance(value, float) for value in values) and len(values) > LAYOUT.printed:
        for label, colour, some in parts:
            x = some["value"].to_numpy(dtype=float)
            ax.fill_between(x, some["lower"], some["upper"], color=colour, alpha=0.18, lw=0)
            ax.plot(x, some["mean"], color=colour, lw=1.8, label=label)
        marks = data[column].to_numpy(dtype=float)
        picked = np.linspace(0, len(marks) - 1, min(len(marks), LAYOUT.rug)).astype(int)
        ax.plot(marks[picked], np.full(len(picked), 0.012), "|", ms=5, mew=0.6, color="#777777",
                alpha=0.5, transform=ax.get_xaxis_transform())  # fmt: skip
        return
    for (label, colour, some), shift in zip(parts, _shifts(len(parts)), strict=True):
        x = np.array([values.index(value) for value in some["value"]]) + shift
        ax.vlines(x, some["lower"], some["upper"], color=colour, lw=2.2, alpha=0.75)
        ax.plot(x, some["mean"], "o", color=colour, ms=6, mec="white", mew=0.8, label=label)
    names = [number(value) for value in values]
    crowded = sum(map(len, names)) > LAYOUT.letters
    turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(values)), names, **(turned if crowded else {}))
    ax.set_xlim(-0.6, len(values) - 0.4)


def _shifts(count: int) -> np.ndarray:
    """Where points of several colours stand beside one another."""
    room = min(LAYOUT.spread, LAYOUT.apart * (count - 1))
    return np.linspace(-0.5, 0.5, count) * room if count > 1 else np.zeros(1)


def _draw_differences(
    ax: Any, rows: pd.DataFrame, series: dict[str, str], by: Sequence[str], data: pd.DataFrame
) -> None:
    """Points with intervals, one below the other, beside zero."""
    values = list(dict.fromkeys(rows["value"]))
    parts = list(_split(rows, series, by))
    ax.axvline(0, color="#6b6b6b", lw=0.9, ls=":")
    for (label, colour, some), shift in zip(parts, _shifts(len(parts)), strict=True):
        y = np.array([values.index(value) for value in some["value"]]) + shift
        ax.hlines(y, some["lower"], some["upper"], color=colour, lw=2.2, alpha=0.75)
        ax.plot(some["mean"], y, "o", color=colour, ms=6, mec="white", mew=0.8, label=label)
    ax.set_yticks(range(len(values)), values if values != ["slope"] else [""])
    ax.set_ylim(len(values) - 0.4, -0.6)
    single = values == ["slope"]
    ax.set_xlabel(f"change for one unit of {rows['column'].iloc[0]}" if single else "difference",
                  fontsize=9)  # fmt: skip
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
