"""Pictures of what was measured."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

COLOURS = ("#3b6ea8", "#c8553d", "#4f8f5b", "#8a5fa3", "#b58a2e", "#4aa3a2", "#6b6b6b", "#d07fa8",
           "#2f3e55", "#9c9c3d", "#7a4b32", "#5b7bd5")  # fmt: skip
MARKERS = "osD^vPpXh<>d"


def picture_of_estimators(table: pd.DataFrame, path: Path, title: str) -> None:
    """The noise of each gradient estimator against its time, at three stages of a fit.

    Args:
        table: As `elbowroom.diagnostics.estimators.measure` gives it.
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
    figure.savefig(path, dpi=130)
