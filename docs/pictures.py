"""The pictures of the model pages: `python docs/pictures.py [NAME ...]`.

Writes `docs/models/NAME.png` for each model, or for those that are named. Each function is named as
its model, fits it by Elbowroom with a fixed seed, and gives the figure. About three minutes in all
on one core.
"""

import argparse
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from PIL import Image
from scipy import stats

import elbowroom as er

FOLDER = Path(__file__).parent / "models"
DPI = 120
COLOURS = 128
"""In a file."""
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


def draws_of(fit: er.Fit, name: str) -> np.ndarray:
    """The posterior draws of a quantity, (draws, ...)."""
    values = fit.posterior["posterior"][name].values
    return values.reshape(-1, *values.shape[2:])


def ellipse(mean: np.ndarray, covariance: np.ndarray, scale: float, **style: Any) -> Ellipse:
    """Where a Normal of two dimensions is `scale` standard deviations from its mean."""
    values, vectors = np.linalg.eigh(covariance)
    width, height = 2 * scale * np.sqrt(values)
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    return Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle, **style)


def band(ax: Any, x: np.ndarray, table: pd.DataFrame, colour: str, label: str) -> None:
    """The interval of predictions."""
    ax.fill_between(x, table["lower"], table["upper"], color=colour, alpha=0.25, lw=0, label=label)


def conjugate() -> Figure:
    """Prior, likelihood and posterior of a mean, and draws of another guide."""
    adults = er.load_dataset("heights").query("group == 'adult'").head(8)
    options = {"prior": (160.0, 4.0), "sigma": 9.0, "response": "height", "seed": 1}
    exact = er.fit("conjugate", adults, **options)
    other = er.fit("conjugate", adults, "mean_field", engine="svi", **options)
    figure, ax = panels()
    grid = np.linspace(145, 186, 400)
    average, error = adults["height"].mean(), 9 / len(adults) ** 0.5
    posterior = draws_of(exact, "mean")
    ax.hist(
        draws_of(other, "mean"), bins=24, density=True, color=PINK, alpha=0.35,
        label="draws of mean_field",
    )  # fmt: skip
    for mean, sd, style, colour, label in (
        (160, 4, "--", ORANGE, "prior"),
        (average, error, ":", BLUE, "likelihood, scaled to area one"),
        (posterior.mean(), posterior.std(), "-", GREEN, "posterior (exact)"),
    ):
        ax.plot(grid, stats.norm(mean, sd).pdf(grid), style, color=colour, lw=2, label=label)
    heights = adults["height"].to_numpy()
    ax.plot(heights, np.full(len(adults), -0.006), "|", color="black", ms=10, label="rows")
    ax.set(xlabel="mean height of adults (cm)", ylabel="density (per cm)", xlim=(145, 186))
    ax.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def bayesian_regression() -> Figure:
    """Rows with the band of their mean and of new rows; intervals of all coefficients."""
    table = er.load_dataset("diabetes")
    fit = er.fit("bayesian_regression", table, formula="progression ~ bmi", seed=1, draws=20_000)
    figure, (left, right) = panels(2, 9.6)
    x = np.linspace(table["bmi"].min(), table["bmi"].max(), 80)
    lines = draws_of(fit, "intercept")[:, None] + draws_of(fit, "coefficients") * x
    left.scatter(table["bmi"], table["progression"], s=9, color=GREY, alpha=0.5, lw=0, label="rows")
    band(left, x, fit.predict(pd.DataFrame({"bmi": x})), BLUE, "a new row, 90 %")
    low, high = np.quantile(lines, [0.05, 0.95], axis=0)
    left.fill_between(x, low, high, color=ORANGE, alpha=0.6, lw=0, label="the mean, 90 %")
    left.plot(x, lines.mean(0), color="black", lw=1)
    left.set(xlabel="body mass index, bmi (kg/m²)", ylabel="disease progression after a year")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    whole = er.fit("bayesian_regression", table, response="progression", seed=1)
    names = list(whole.problem.prepared.coords["predictor"])
    by_sd = draws_of(whole, "coefficients") * table[names].std().to_numpy()
    low, middle, high = np.quantile(by_sd, [0.05, 0.5, 0.95], axis=0)
    places = np.arange(len(names))[::-1]
    right.axvline(0, color=GREY, lw=0.8, ls=":")
    right.hlines(places, low, high, color=BLUE, lw=2.5, label="90 % interval")
    right.plot(middle, places, "o", color=BLUE, ms=5, label="median")
    right.set_yticks(places, names)
    right.set(xlabel="change of progression for one sd of the column", ylabel="predictor")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def hierarchical_normal() -> Figure:
    """Eight schools: each effect as it was measured, and drawn to the population's mean."""
    table = er.load_dataset("eight_schools")
    fit = er.fit("hierarchical_normal", table, seed=1)
    effects, mean = draws_of(fit, "effects"), draws_of(fit, "mean")
    order = np.argsort(table["effect"].to_numpy())
    figure, ax = panels(height=4.4)
    places = np.arange(len(table))
    own, error = table["effect"].to_numpy()[order], table["standard_error"].to_numpy()[order]
    ax.errorbar(
        places - 0.14, own, 1.645 * error, fmt="s", color=ORANGE, ms=5, lw=1.5,
        label="as measured, ± 1.645 standard errors",
    )  # fmt: skip
    low, middle, high = np.quantile(effects[:, order], [0.05, 0.5, 0.95], axis=0)
    ax.errorbar(
        places + 0.14, middle, [middle - low, high - middle], fmt="o", color=BLUE, ms=5, lw=1.5,
        label="posterior median and 90 % interval",
    )  # fmt: skip
    ax.axhline(mean.mean(), color=GREEN, lw=1.2, ls="--", label="population mean (posterior)")
    ax.set_xticks(places, table["school"].to_numpy()[order])
    ax.set(xlabel="school", ylabel="effect of coaching (points)")
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    ax.set_ylim(top=75)
    return figure


def factor_analysis() -> Figure:
    """Where the rows of iris lie among two latents, and what the latents do to each column."""
    table = er.load_dataset("iris")
    fit = er.fit("factor_analysis", table, seed=1)
    placed, loadings = fit.embed(), np.tril(fit.point_parameters["loadings"])
    figure, ax = panels(width=7.2, height=4.8)
    for k, (species, colour) in enumerate(
        zip(sorted(table["species"].unique()), (BLUE, ORANGE, GREEN), strict=True)
    ):
        here = (table["species"] == species).to_numpy()
        ax.scatter(
            placed["z[0].mean"][here], placed["z[1].mean"][here], s=20, marker=MARKERS[k],
            color=colour, alpha=0.75, lw=0, label=species,
        )  # fmt: skip
    # All rows have the same posterior covariance.
    noise = fit.point_parameters["noise"]
    precision = np.eye(2) + loadings.T @ (loadings / np.square(noise)[:, None])
    at = np.array([placed["z[0].mean"][0], placed["z[1].mean"][0]])
    ax.add_patch(
        ellipse(
            at, np.linalg.inv(precision), 2.146, fill=False, ec="black", lw=1.2,
            label="90 % region of row 1",
        )
    )  # fmt: skip
    for name, (one, two) in zip(fit.problem.prepared.coords["column"], loadings, strict=True):
        ends = REACH * one, REACH * two
        ax.annotate("", ends, (0, 0), arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.4})
        across = one if abs(one) > abs(two) else 0.0
        ax.annotate(
            name, ends, SHIFTS.get(name, (0, 0)), textcoords="offset points", fontsize=9,
            ha=("right", "center", "left")[int(np.sign(across)) + 1],
            va="center" if across else "bottom",
        )  # fmt: skip
    ax.plot([], [], color=GREY, lw=1.4, label=f"loadings of a column, times {REACH:g}")
    ax.set(xlabel="first latent, z[0]", ylabel="second latent, z[1]")
    ax.set(xlim=(-4.2, 2.4), ylim=(-3.2, 3.4))
    figure.legend(frameon=False, fontsize=9, loc="outside right center")
    return figure


REACH = 2.9
"""How long the arrows of loadings are."""
SHIFTS = {"petal_width": (-3, 6), "petal_length": (-3, -6), "sepal_length": (-3, 0)}
"""Of their names, in points."""


def gaussian_mixture() -> Figure:
    """Three components of iris in two of its columns, with some draws of each."""
    table = er.load_dataset("iris")
    fit = er.fit("gaussian_mixture", table, components=3, seed=1)
    names = ["sepal_length", "petal_length"]
    columns = [list(fit.problem.prepared.coords["column"]).index(name) for name in names]
    means = draws_of(fit, "means")[..., columns]
    covariances = draws_of(fit, "covariances")[..., columns, :][..., columns]
    probable = fit.predict().filter(like="probability").to_numpy().argmax(1)
    figure, ax = panels(height=4.6)
    some = np.linspace(0, len(means) - 1, 10).astype(int)
    for k, colour in enumerate((BLUE, ORANGE, GREEN)):
        here = probable == k
        ax.scatter(
            table[names[0]][here], table[names[1]][here], s=22, marker=MARKERS[k], color=colour,
            alpha=0.75, lw=0, label=f"rows most likely of component {k}",
        )  # fmt: skip
        for i in some:
            style: dict[str, Any] = {"fill": False, "ec": colour, "lw": 0.6, "alpha": 0.35}
            ax.add_patch(ellipse(means[i, k], covariances[i, k], 2, **style))
        ax.add_patch(
            ellipse(
                means[:, k].mean(0), covariances[:, k].mean(0), 2, fill=False, ec=colour, lw=2.2
            )
        )
    ax.plot([], [], color=GREY, lw=2.2, label="two sds, posterior mean")
    ax.plot([], [], color=GREY, lw=0.6, label="two sds, 10 posterior draws")
    ax.set(xlabel="sepal length (cm)", ylabel="petal length (cm)")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Images of 8 by 8 pixels in rows, ink dark, with a gap of one pixel between them."""
    padded = np.pad(1 - images.reshape(-1, 8, 8), ((0, 0), (0, 1), (0, 1)), constant_values=1.0)
    rows = padded.reshape(-1, columns, 9, 9).swapaxes(1, 2)
    return rows.reshape(-1, 9 * columns)[:-1, :-1]


def vae() -> Figure:
    """The digits that a decoder makes of two latents, and where the rows lie among them."""
    table = er.load_dataset("digits")
    fit = er.fit("vae", table, latent=2, seed=1, epochs=150)
    pixels, size = fit.problem.prepared.coords["column"], 15
    figure, (left, right) = panels(2, 9.6, 4.8)
    grid = fit.manifold(size)
    images = grid[list(pixels)].to_numpy() / 16
    left.imshow(sheet(images, size), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    quantiles = (0, 3, 7, 11, 14)
    labels = [f"{stats.norm.ppf((k + 0.5) / size):.1f}" for k in quantiles]
    left.set_xticks([9 * k + 3.5 for k in quantiles], labels)
    left.set_yticks([9 * k + 3.5 for k in quantiles], labels[::-1])
    left.set(xlabel="z[0], at even quantiles of its prior", ylabel="z[1]")
    left.set_title("what the decoder makes of the latents", fontsize=10)
    placed = fit.embed(draws=50)
    for digit in range(10):
        here = (table["digit"] == digit).to_numpy()
        right.scatter(
            placed["z[0].mean"][here], placed["z[1].mean"][here], s=22, lw=0, alpha=0.8,
            marker=f"${digit}$", color=TEN[digit],
        )  # fmt: skip
    right.set(xlabel="z[0], posterior mean", ylabel="z[1], posterior mean")
    right.set_title("where the rows lie, each written as its digit", fontsize=10)
    return figure


TEN = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8c6d1f",
       "#7a7a7a", "#5a3e9c")  # fmt: skip


def conditional_vae() -> Figure:
    """A row of new images for each label; the same latents stand in each column."""
    fit = er.fit("conditional_vae", "digits", latent=2, seed=1, epochs=100)
    pixels, count = list(fit.problem.prepared.coords["column"]), 16
    rows = [
        fit.generate(count, given={"digit": digit}, expected=True, seed=3)[pixels].to_numpy() / 16
        for digit in range(10)
    ]
    figure, ax = panels(width=7.2, height=4.8)
    ax.imshow(sheet(np.concatenate(rows), count), cmap="gray", vmin=0, vmax=1)
    ax.set_yticks([9 * k + 3.5 for k in range(10)], [str(k) for k in range(10)])
    ax.set_xticks([9 * k + 3.5 for k in range(0, count, 3)], [str(k + 1) for k in range(0, 16, 3)])
    ax.set(xlabel="new image: one draw of the latents a column", ylabel="the label that is given")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def helmholtz_machine() -> Figure:
    """What the units next to the data paint, and new digits."""
    fit = er.fit("helmholtz_machine", "digits", seed=1, epochs=150, schedule="cosine", draws=100,
                 learning_rate=0.03)  # fmt: skip
    pixels, paints = list(fit.problem.prepared.coords["column"]), fit.model_parameters
    weights = paints["generator.0.0.weight"].numpy().T  # (units, pixels)
    shares = 0.5 + 0.5 * np.clip(weights / 4, -1, 1)
    made = fit.generate(60, seed=3)[pixels].to_numpy() / 16
    figure, (left, right) = panels(2, 9.0, 3.9)
    for ax, images, columns, title in (
        (left, shares, 6, "weights of the 30 units of the layer $h_1$"),
        (right, made, 10, "new digits, ink or paper"),
    ):
        ax.imshow(sheet(images, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10)
        ax.spines[:].set_visible(False)
    return figure


def sine_with_gap() -> pd.DataFrame:
    """Eighty rows of a noisy sine, none of them near zero."""
    random = np.random.default_rng(1)
    x = np.sort(np.concatenate([random.uniform(-2, -0.7, 40), random.uniform(0.7, 2, 40)]))
    return pd.DataFrame({"x": x, "y": np.sin(2 * x) + 0.1 * random.normal(size=80)})


def bayesian_neural_network() -> Figure:
    """Predictions of posterior weights, and of the mode alone, in and around the data."""
    table, x = sine_with_gap(), np.linspace(-4, 4, 161)
    figure, (left, right) = panels(2, 9.6)
    for guide, colour, style in (("bayes_by_backprop", BLUE, "-"), ("map", ORANGE, "--")):
        fit = er.fit(
            "bayesian_neural_network", table, guide, response="y", seed=1, steps=4000,
            draws=4000, prior_scale=2.0,
        )  # fmt: skip
        found = fit.predict(pd.DataFrame({"x": x}))
        band(left, x, found, colour, f"{guide}: 90 % interval of a new row")
        left.plot(x, found["mean"], style, color=colour, lw=1.6, label=f"{guide}: mean")
        right.plot(x, found["sd"], style, color=colour, lw=2, label=guide)
    left.plot(x, np.sin(2 * x), color=GREY, lw=1.2, ls=":", label="the curve behind the rows")
    left.plot(table["x"], table["y"], ".", color="black", ms=4, label="rows")
    left.set(xlabel="x", ylabel="y", ylim=(-5.5, 11))
    left.legend(frameon=False, fontsize=8.5, loc="upper right")
    for k, (low, high) in enumerate(((-2, -0.7), (0.7, 2))):
        label = "where rows are" if k == 0 else None
        right.axvspan(low, high, color=GREY, alpha=0.15, lw=0, label=label)
    right.set(xlabel="x", ylabel="sd of a new row's y", ylim=(0, None))
    right.legend(frameon=False, fontsize=9, loc="upper center")
    return figure


def mixture_density_network() -> Figure:
    """An inverse problem: the density of its branches, and a mean that no row is near to."""
    table = er.load_dataset("inverse_problem")
    fit = er.fit(
        "mixture_density_network", table, "map", seed=1, steps=1500, learning_rate=0.02,
        activation="tanh", prior_scale=3.0,
    )  # fmt: skip
    inputs, outputs = np.linspace(0.0, 1.0, 61), np.linspace(-0.1, 1.1, 81)
    pairs = pd.DataFrame(
        {"input": np.repeat(inputs, len(outputs)), "output": np.tile(outputs, len(inputs))}
    )
    density = np.exp(fit.log_density(pairs)).reshape(len(inputs), len(outputs))
    mean = (density * outputs).sum(1) / density.sum(1)
    figure, (left, right) = panels(2, 9.6)
    shades = left.contourf(inputs, outputs, np.minimum(density, 6).T, levels=12, cmap="Blues")
    left.scatter(table["input"], table["output"], s=4, color="black", alpha=0.45, lw=0,
                 label="rows")  # fmt: skip
    left.plot(inputs, mean, color=ORANGE, lw=2, ls="--", label="conditional mean")
    left.set(xlabel="input", ylabel="output", xlim=(0, 1), ylim=(-0.1, 1.1))
    left.legend(frameon=True, framealpha=0.9, fontsize=9, loc="upper left")
    figure.colorbar(shades, ax=left, label="density of the output, cut at 6")
    fine = np.linspace(-0.1, 1.1, 400)
    at = np.exp(fit.log_density(pd.DataFrame({"input": np.full(400, 0.5), "output": fine})))
    near = table.loc[(table["input"] - 0.5).abs() < 0.05, "output"]
    right.hist(
        near, bins=np.linspace(0, 1, 26), density=True, color=GREY, alpha=0.35,
        label=f"{len(near)} rows with an input near 0.5",
    )  # fmt: skip
    right.plot(fine, at, color=BLUE, lw=2, label="density at the input 0.5")
    middle = float(np.interp(0.5, inputs, mean))
    right.vlines(middle, 0, at.max(), color=ORANGE, lw=2, ls="--", label="conditional mean")
    right.set(xlabel="output", ylabel="density", ylim=(0, 1.45 * at.max()))
    right.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    draw.__name__: draw
    for draw in (
        bayesian_neural_network, bayesian_regression, conditional_vae, conjugate, factor_analysis,
        gaussian_mixture, helmholtz_machine, hierarchical_normal, mixture_density_network, vae,
    )
}  # fmt: skip
"""One for each model."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all by default")
    names = parser.parse_args(arguments).names or list(PICTURES)
    unknown = sorted(set(names) - set(PICTURES))
    if unknown:
        parser.error(f"no picture of {', '.join(unknown)}; there are {', '.join(PICTURES)}.")
    for name in names:
        path = FOLDER / f"{name}.png"
        drawn = BytesIO()
        PICTURES[name]().savefig(drawn, dpi=DPI)
        # A palette makes the file a third as large.
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
