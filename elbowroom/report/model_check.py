"""Checks of what a fitted model predicts: printed, and as a picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from rich.text import Text
from scipy.stats import CensoredData, ecdf

from elbowroom.assess.misfit import LEVEL
from elbowroom.assess.quantities import BINARY, COUNTS, LEVELS, TRIALS
from elbowroom.assess.verdict import sentence
from elbowroom.model_check import INTERVAL, ModelCheck
from elbowroom.report.listing import add, console, table
from elbowroom.report.pictures import COLOURS, save
from elbowroom.report.terminal import number
from elbowroom.result import Fit


@dataclass(frozen=True)
class Layout:
    """How much is printed and drawn."""

    rows: int = 5
    """Rows farthest off that are printed."""
    draws: int = 500
    """Replicates behind a band."""
    bins: int = 30
    """Of a histogram."""
    most: int = 40
    """Counts that are shown one by one."""
    beyond: float = 0.3
    """How far a histogram goes beyond the rows at either end, in their range."""
    groups: int = 10
    """Bins of a predictor in which residuals are averaged."""
    levels: int = 15
    """Levels that are shown, at most."""
    head: float = 0.1
    """Room for a legend, in heights of what is drawn."""


LAYOUT = Layout()
DRAWN, SEEN, GREY = COLOURS[0], "black", "#777777"


def show_check(fit: Fit, check: ModelCheck) -> None:
    """Prints the checks, the rows farthest off, and what the model gets wrong."""
    out = console()
    if not fit.verdict.trusted:
        reason = sentence(" ".join(fit.verdict.reasons))
        out.print(Text(f"warning: this run is not trusted, nor is what follows. {reason}\n",
                       style="bold yellow"))  # fmt: skip
    out.print(Text(f"'{check.response}': {len(check.rows):,} rows, {check.kind}\n"))
    ends = tuple(f"{100 * end:g}%" for end in INTERVAL)
    made = table("check", "", "observed", "predicted", *ends, "p", "", right=(
        "observed", "predicted", *ends, "p",
    ))  # fmt: skip
    before = ""
    for line in check.table.to_dict("records"):
        cells = [
            number(float(line[name]), 3) for name in ("observed", "predicted", "lower", "upper")
        ]
        p = "-" if np.isnan(line["p"]) else f"{line['p']:.3f}" if line["p"] >= 0.001 else "<0.001"
        head = line["check"] if line["check"] != before else ""
        add(made, head, line["quantity"], *cells, p, "misfit" if line["flagged"] else "")
        before = line["check"]
    out.print(made)
    names = ("row", "observed", "mean", "sd", "residual")
    far = table(*names, right=names)
    for line in check.farthest(LAYOUT.rows).to_dict("records"):
        add(far, int(line["row"]), *(number(float(line[name])) for name in names[1:-1]),
            f"{line['residual']:.2f}")  # fmt: skip
    out.print(Text("\nRows farthest off", style="bold"))
    out.print(far)
    out.print()
    for each in check.findings:
        out.print(Text(each, style="bold yellow"))
    if not check.findings:
        out.print(Text("No check shows a misfit.", style="green"))
    once = round(1 / (LEVEL.band + LEVEL.others))
    about = (
        f"A right model shows a misfit about once in {once} times, by all checks together. "
        "p-values of the response are conservative, as the same rows were fitted."
    )
    for note in (*check.notes, about):
        out.print(Text(note, style="dim"))


def draw_check(check: ModelCheck) -> Callable[[Path], None]:
    """A picture: the response, LOO-PIT, and residuals along the prediction and a predictor."""
    return lambda path: picture_of_check(check, path)


def picture_of_check(check: ModelCheck, path: Path) -> None:
    """Draws the picture; see `draw_check`.

    Args:
        check: Of `elbowroom.result.Fit.check`.
        path: Of the PNG file.
    """
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    axes = figure.subplots(2, 2)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    _draw_response(axes[0, 0], check)
    _draw_places(axes[0, 1], check)
    _draw_residuals(axes[1, 0], check, "prediction", check.drawn.mean(0), None)
    name = _strongest(check)
    if name is None:
        _draw_quantiles(axes[1, 1], check)
    else:
        _draw_residuals(axes[1, 1], check, name, *check.predictors[name])
    save(figure, path, 130)


def _strongest(check: ModelCheck) -> str | None:
    """The predictor on which residuals depend the most clearly."""
    lines = check.table.sort_values("p")
    named = [str(each).partition(" by ")[2] for each in lines["check"]]
    return next((name for name in named if name in check.predictors), None)


def _replicates(check: ModelCheck) -> np.ndarray:
    """Some draws of the rows, evenly spaced, (draws, rows)."""
    count = len(check.drawn)
    return check.drawn[np.linspace(0, count - 1, min(count, LAYOUT.draws)).astype(int)]


def _draw_response(ax: Any, check: ModelCheck) -> None:
    if check.events is not None:
        _draw_survival(ax, check, check.events)
    elif check.kind == BINARY:
        _draw_calibration(ax, check)
    elif check.kind == LEVELS:
        _draw_levels(ax, check)
    elif check.kind in (COUNTS, TRIALS) and check.observed.max() <= LAYOUT.most:
        _draw_counts(ax, check)
    else:
        _draw_density(ax, check)
    _legend(ax)


def _legend(ax: Any) -> None:
    """Above what is drawn."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + LAYOUT.head * (high - low))
    ax.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)


def _band(ax: Any, x: np.ndarray, draws: np.ndarray, **style: Any) -> None:
    """The middle of draws and where 90% of them are."""
    lower, middle, upper = np.quantile(draws, [INTERVAL[0], 0.5, INTERVAL[1]], axis=0)
    ax.fill_between(x, lower, upper, color=DRAWN, alpha=0.25, lw=0, label="draws, 90%", **style)
    ax.plot(x, middle, color=DRAWN, lw=1.2,
            drawstyle="steps-mid" if style.get("step") == "mid" else "default")  # fmt: skip


def _draw_density(ax: Any, check: ModelCheck) -> None:
    low, high = check.observed.min(), check.observed.max()
    room = LAYOUT.beyond * (high - low or 1.0)
    drawn = _replicates(check)
    least, most = np.quantile(drawn, [0.001, 0.999])
    ends = np.linspace(max(low - room, min(low, least)), min(high + room, max(high, most)),
                       LAYOUT.bins + 1)  # fmt: skip
    middle, width = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    size = len(check.observed)
    found = np.array([np.histogram(each, ends)[0] for each in drawn]) / size / width
    _band(ax, middle, found, step="mid")
    own = np.histogram(check.observed, ends)[0] / size / width
    ax.step(middle, own, where="mid", color=SEEN, lw=1.6, label="the rows")
    ax.set(title="The response", xlabel=check.response, ylabel="density", ylim=(0, None))


def _draw_counts(ax: Any, check: ModelCheck) -> None:
    """A rootogram: frequencies on a scale of square roots (Kleiber and Zeileis, 2016)."""
    drawn = _replicates(check)
    most = int(min(LAYOUT.most, max(check.observed.max(), np.quantile(drawn, 0.999))))
    values = np.arange(most + 1)
    found = np.array([[(each == value).sum() for value in values] for each in drawn])
    _band(ax, values, np.sqrt(found), step="mid")
    own = np.sqrt([(check.observed == value).sum() for value in values])
    ax.vlines(values, 0, own, color=GREY, lw=1)
    ax.plot(values, own, "o", color=SEEN, ms=4, label="the rows")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value**2:.0f}"))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        title="The response: rootogram", xlabel=check.response, ylabel="rows (square root scale)"
    )
    ax.set_ylim(0, None)


def _draw_levels(ax: Any, check: ModelCheck) -> None:
    drawn, names = _replicates(check), check.levels[: LAYOUT.levels]
    x = np.arange(len(names))
    found = np.array([(drawn == k).mean(1) for k in x])  # (levels, draws)
    lower, middle, upper = np.quantile(found, [INTERVAL[0], 0.5, INTERVAL[1]], axis=1)
    ax.bar(x, [(check.observed == k).mean() for k in x], color="#d9d9d9", label="the rows")
    ax.vlines(x, lower, upper, color=DRAWN, lw=2.5, label="draws, 90%")
    ax.plot(x, middle, "o", color=DRAWN, ms=5)
    upright = sum(len(str(name)) for name in names) > LAYOUT.groups * 3
    ax.set_xticks(x, [str(name) for name in names], rotation=45 if upright else 0)
    ax.set(title="The response", xlabel=check.response, ylabel="proportion", ylim=(0, None))


def _draw_calibration(ax: Any, check: ModelCheck) -> None:
    lines = check.table[check.table["quantity"].str.startswith("proportion")]
    binned = lines[lines["quantity"] != "proportion"]
    lines = binned if len(binned) else lines
    x = lines["predicted"].to_numpy()
    ax.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    ax.vlines(x, lines["lower"], lines["upper"], color=DRAWN, lw=2.5, label="draws, 90%")
    ax.plot(x, lines["observed"], "o", color=SEEN, ms=5, label="the rows")
    ax.set(
        title="Calibration",
        xlabel="predicted probability",
        ylabel=f"proportion of {check.response}",
    )
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _draw_survival(ax: Any, check: ModelCheck, events: np.ndarray) -> None:
    drawn = _replicates(check)
    times = np.linspace(0, check.observed.max(), 100)
    found = np.array([(drawn > time).mean(1) for time in times]).T
    _band(ax, times, found)
    known = check.observed
    whole = ecdf(CensoredData(uncensored=known[events], right=known[~events])).sf
    ax.step(np.append(0, whole.quantiles), np.append(1, whole.probabilities), where="post",
            color=SEEN, lw=1.6, label="the rows (Kaplan and Meier)")  # fmt: skip
    ax.set(title="Survival", xlabel=check.response, ylabel="share without an event", ylim=(0, 1.02))


def _draw_places(ax: Any, check: ModelCheck) -> None:
    band = check.band
    ax.axhline(0, color=GREY, lw=0.8, ls=":")
    ax.fill_between(band.at, band.lower - band.at, band.upper - band.at, color=DRAWN, alpha=0.25,
                    lw=0, label=f"uniform, {1 - LEVEL.band:.0%}")  # fmt: skip
    ax.step(band.at, band.share - band.at, where="post", color=SEEN, lw=1.4, label="the rows")
    ax.set(title="LOO-PIT: distribution function less uniform", xlim=(0, 1))
    ax.set(xlabel="place of a row in its prediction", ylabel="difference")
    _legend(ax)


def _draw_residuals(ax: Any, check: ModelCheck, name: str, values: Any, levels: Any) -> None:
    """Residuals along something, with their means."""
    residuals = check.rows["residual"].to_numpy()
    for height in (-2, 0, 2):
        ax.axhline(height, color=GREY, lw=0.8, ls=":")
    if levels is None:
        x = np.asarray(values, dtype=float)
        ends = np.unique(np.quantile(x, np.linspace(0, 1, LAYOUT.groups + 1)))
        groups = np.clip(np.searchsorted(ends, x, side="right") - 1, 0, max(0, len(ends) - 2))
    else:
        shown = list(levels)[: LAYOUT.levels]
        groups = np.array([shown.index(each) if each in shown else -1 for each in values])
        x = groups + np.random.default_rng(0).uniform(-0.25, 0.25, len(groups))
        ax.set_xticks(range(len(shown)), [str(each) for each in shown])
    kept = groups >= 0
    ax.plot(x[kept], residuals[kept], ".", color=DRAWN, alpha=0.35, ms=4)
    means = []
    for group in np.unique(groups[kept]):
        some = residuals[groups == group]
        means.append((x[groups == group].mean() if levels is None else group, some.mean(),
                      2 / np.sqrt(len(some))))  # fmt: skip
    at, middle, error = np.array(means).T
    ax.errorbar(at, middle, error, color=COLOURS[1], fmt="o" if levels is not None else "-o", ms=4,
                lw=1.3, label="means ± 2 standard errors")  # fmt: skip
    ax.set(title=f"Residuals by {name}", xlabel=name, ylabel="quantile residual")
    _legend(ax)


def _draw_quantiles(ax: Any, check: ModelCheck) -> None:
    """Sorted residuals against the quantiles of the standard Normal."""
    from scipy.stats import norm

    own = np.sort(check.rows["residual"].to_numpy())
    x = norm.ppf((np.arange(len(own)) + 0.5) / len(own))
    ax.plot(x, x, color=GREY, lw=0.8, ls=":")
    ax.plot(x, own, ".", color=DRAWN, ms=4)
    ax.set(title="Residuals", xlabel="Normal quantile", ylabel="quantile residual")
