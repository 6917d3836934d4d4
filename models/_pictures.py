"""What the pictures of the models share: panels, colours, posterior draws.

Imports matplotlib, so that a model file imports it within its picture only.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6b6b6b"
"""Of the palette of Okabe and Ito, which the colour-blind can tell apart."""
MARKERS = "o^s"


def panels(columns: int = 1, width: float = 7.2, height: float = 4.2) -> tuple[Figure, Any]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes[0] if columns == 1 else axes


def draws_of(fit: Any, name: str) -> np.ndarray:
    """The posterior draws of a quantity, (draws, ...)."""
    values = fit.posterior["posterior"][name].values
    chains, draws, *shape = values.shape
    return values.reshape(chains * draws, *shape)


def ellipse(mean: np.ndarray, covariance: np.ndarray, scale: float, **style: Any) -> Ellipse:
    """Where a Normal of two dimensions is `scale` standard deviations from its mean."""
    values, vectors = np.linalg.eigh(covariance)
    width, height = 2 * scale * np.sqrt(values)
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    return Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle, **style)


def band(ax: Any, x: np.ndarray, table: pd.DataFrame, colour: str, label: str) -> None:
    """The interval of predictions."""
    ax.fill_between(x, table["lower"], table["upper"], color=colour, alpha=0.25, lw=0, label=label)


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Images of 8 by 8 pixels in rows, ink dark, with a gap of one pixel between them."""
    padded = np.pad(1 - images.reshape(-1, 8, 8), ((0, 0), (0, 1), (0, 1)), constant_values=1.0)
    rows = padded.reshape(-1, columns, 9, 9).swapaxes(1, 2)
    return rows.reshape(-1, 9 * columns)[:-1, :-1]
