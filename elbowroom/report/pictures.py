"""Pictures of what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator

from elbowroom.printable import printable

COLOURS = ("#3b6ea8", "#c8553d", "#4f8f5b", "#8a5fa3", "#b58a2e", "#4aa3a2", "#6b6b6b", "#d07fa8",
           "#2f3e55", "#9c9c3d", "#7a4b32", "#5b7bd5")  # fmt: skip
MARKERS = "osD^vPpXh<>d"
CURVES = 50
"""Draws of a prior predictive that are shown."""


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a picture, whose titles and labels are the user's columns: plain text, no formulas."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text():  # those of ticks come when it is drawn
            text.set_text(printable(text.get_text()))
            text.set_parse_math(False)
    figure.savefig(path, dpi=dpi)


def picture_of_priors(predicted: np.ndarray, data: np.ndarray, path: Path, name: str) -> None:
    """What a prior predicts of the data: the shares of values up to each number.

    Args:
        predicted: Draws of the data, (draws, ...).
        data: The data, (...).
        path: Of the PNG file.
        name: Of what is predicted.
    """
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    ax = figure.subplots()
    own = np.sort(data[np.isfinite(data)].ravel())
    flat = predicted.reshape(len(predicted), -1)
    flat = flat[np.isfinite(flat).all(1)][:CURVES]
    shares = (np.arange(own.size) + 1) / own.size
    for k, draw in enumerate(flat):
        ax.step(
            np.sort(draw), (np.arange(draw.size) + 1) / draw.size, where="post", lw=0.7,
            color=COLOURS[0], alpha=0.35, label=None if k else "draws of the prior",
        )  # fmt: skip
    ax.step(own, shares, where="post", color="black", lw=2.0, label="the data")
    low, high = np.quantile(flat, [0.02, 0.98]) if flat.size else (own[0], own[-1])
    low, high = min(low, own[0]), max(high, own[-1])
    edge = 0.03 * (high - low or 1.0)
    ax.set(xlim=(low - edge, high + edge), ylim=(0, 1.02), xlabel=name)
    ax.set(ylabel=f"share of rows up to this {name}", title="What the priors predict")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    save(figure, path, 130)


def picture_of_estimators(table: pd.DataFrame, path: Path, title: str) -> None:
    """The noise of each gradient estimator against its time, at three stages of a fit.

    Args:
        table: As `elbowroom.assess.estimators.measure` gives it.
        path: Of the PNG file.
        title: Of the picture.
    """
    stages = list(table["stage"].unique())
    figure = Figure(figsize=(4.1 * len(stages), 5.2), layout="constrained")
    axes = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    names = list(table["estimator"].unique())
    least = 1e-3 * table.loc[table["noise"] > 0, "noise"].median()
    for ax, stage in zip(axes, stages, strict=True):
        rows = table[table["stage"] == stage]
        for _, row in rows.iterrows():
            index = names.index(row["estimator"])
            ax.scatter(
                row["ms"], max(row["noise"], least), s=70, label=row["estimator"],
                color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
                edgecolor="white", linewidth=0.7, zorder=3,
            )  # fmt: skip
        signal = rows["signal"].max()
        if signal > least:
            ax.axhline(signal, color="black", linewidth=0.8, linestyle=":", zorder=1)
            ax.annotate(
                "the gradient itself", (0.98, signal), xycoords=("axes fraction", "data"),
                ha="right", va="bottom", fontsize=8,
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="milliseconds a step")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.set_title(f"{stage}, step {rows['step'].iloc[0]:,}", fontsize=11)
        ax.grid(which="major", color="#e4e4e4", linewidth=0.7, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("noise of a gradient")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12)
    save(figure, path, 130)


def picture_of_images(
    images: np.ndarray, path: Path, columns: int, labels: Sequence[str] = (), title: str = ""
) -> None:
    """Images side by side in a grid, all on one grey scale.

    Args:
        images: (images, height, width), or (images, height, width, colours).
        path: Of the PNG file.
        columns: Images in a row.
        labels: Of the rows.
        title: Of the picture.
    """
    low, high = float(images.min()), float(images.max())
    shares = (images - low) / ((high - low) or 1.0)
    count = -(-len(images) // columns)
    height, width = images.shape[1:3]
    gap = max(1, round(0.08 * max(height, width)))
    colours = images.shape[3:]
    sheet = np.ones((count * (height + gap) - gap, columns * (width + gap) - gap, *colours))
    for place, image in enumerate(shares):
        row, column = divmod(place, columns)
        top, left = row * (height + gap), column * (width + gap)
        # Grey images are drawn as ink on paper: large values are dark.
        sheet[top : top + height, left : left + width] = image if colours else 1 - image
    wide = 0.62 * columns
    left = 1.2 if labels else 0.1
    tall = wide * sheet.shape[0] / sheet.shape[1]
    figure = Figure(figsize=(wide + left + 0.1, tall + (0.45 if title else 0.2)))
    axes = figure.add_axes(
        (
            left / (wide + left + 0.1), 0.1 / (tall + (0.45 if title else 0.2)),
            wide / (wide + left + 0.1), tall / (tall + (0.45 if title else 0.2)),
        )
    )  # fmt: skip
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for row, label in enumerate(labels):
        middle = row * (height + gap) + height / 2
        axes.text(-gap, middle, label, ha="right", va="center", fontsize=9)
    if title:
        axes.set_title(title, fontsize=10)
    save(figure, path, 160)


def picture_of_predictions(
    reach: np.ndarray,
    panels: Mapping[str, pd.DataFrame],
    rows: pd.DataFrame,
    path: Path,
    title: str,
) -> None:
    """Each method's predictions along one column, within its range and beyond.

    Args:
        reach: Values of the column, in order.
        panels: By the method's name, a line for each of them with mean, lower and upper.
        rows: The column, and what was observed.
        path: Of the PNG file.
        title: Of the picture.
    """
    column, response = rows.columns
    wide = min(3, len(panels))
    tall = -(-len(panels) // wide)
    figure = Figure(figsize=(3.6 * wide + 0.6, 3.0 * tall + 0.9), layout="constrained")
    axes = figure.subplots(tall, wide, sharex=True, sharey=True, squeeze=False)
    low, high = rows[response].min(), rows[response].max()
    for ax, (name, found) in zip(axes.flat, panels.items(), strict=False):
        ax.axvspan(rows[column].min(), rows[column].max(), color="#f1f1f1", zorder=0)
        ax.scatter(rows[column], rows[response], s=7, color="#555555", linewidth=0, zorder=2)
        ax.fill_between(
            reach, found["lower"], found["upper"], color=COLOURS[0], alpha=0.3, linewidth=0,
            zorder=1,
        )  # fmt: skip
        ax.plot(reach, found["mean"], color=COLOURS[0], linewidth=1.6, zorder=3)
        ax.set_title(name, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylim(low - 0.75 * (high - low), high + 0.75 * (high - low))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    figure.supxlabel(f"{column} (grey: where the rows lie)", fontsize=10)
    figure.supylabel(f"{response}: mean and 90% interval", fontsize=10)
    figure.suptitle(title, fontsize=11)
    save(figure, path, 130)


def picture_of_latents(
    table: pd.DataFrame, path: Path, classes: pd.Series | None, title: str
) -> None:
    """The rows' first two latents.

    Args:
        table: As `elbowroom.result.Fit.embed` gives it.
        path: Of the PNG file.
        classes: A label of each row, which gives its colour.
        title: Of the picture.
    """
    names = [name for name in table.columns if name.endswith(".mean")][:2]
    figure = Figure(figsize=(6.2, 5.2), layout="constrained")
    axes = figure.subplots()
    second = table[names[1]] if len(names) > 1 else np.zeros(len(table))
    groups = [None] if classes is None else sorted(classes.unique(), key=str)
    for k, group in enumerate(groups):
        here = np.ones(len(table), bool) if group is None else (classes == group).to_numpy()
        axes.scatter(
            table.loc[here, names[0]], np.asarray(second)[here], s=12, alpha=0.75, linewidth=0,
            color=COLOURS[k % len(COLOURS)], label=None if group is None else str(group),
        )  # fmt: skip
    axes.set_xlabel(names[0].removesuffix(".mean"))
    axes.set_ylabel(names[1].removesuffix(".mean") if len(names) > 1 else "")
    axes.spines[["top", "right"]].set_visible(False)
    if classes is not None and len(groups) <= len(COLOURS):
        figure.legend(title=classes.name, loc="outside right upper", frameon=False, fontsize=9)
    axes.set_title(title, fontsize=11)
    save(figure, path, 140)
