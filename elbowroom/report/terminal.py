"""Prints fits, comparisons and runs on a terminal, and shows progress bars."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from elbowroom import budget
from elbowroom.assess.verdict import CORRECTED, NOT_TRUSTED, TRUSTED, Verdict, sentence
from elbowroom.commands import SummaryOptions
from elbowroom.comparison import Comparison
from elbowroom.density.importance import k_hat_threshold
from elbowroom.draws.tree import labelled_points, summarise
from elbowroom.draws.weighted import WEIGHING
from elbowroom.engines.registry import ENGINES
from elbowroom.engines.settings import length
from elbowroom.engines.svi.checks import Finding
from elbowroom.engines.task import Plan
from elbowroom.model_comparison import ModelComparison
from elbowroom.options import check_options
from elbowroom.report import streams
from elbowroom.report.listing import add, console, table
from elbowroom.result import Fit
from elbowroom.run.folder import Run

LONGEST = 24
"""Rows of a table that are printed; the files have all of them."""
POINT = 1e-12
"""The sd relative to the mean up to which it is rounding: all draws are one point."""

VERDICTS = {TRUSTED: "trusted", CORRECTED: "corrected", NOT_TRUSTED: "no"}
"""Verdicts in one word, for a column of a comparison."""

EXTRA = {
    "active_units": "active",
    "nll": "NLL",
    "good_rows": "good rows",
    "amortisation_gap": "amortised",
    "test_log_density": "test",
    "test_coverage": "coverage",
    "test_spread": "spread",
    "test_calibration_error": "calibration",
}
"""Columns that only some comparisons have, and their names on a terminal."""
EXPLAINED = {
    "active_units": "active: latents of a row that carry information",
    "nll": "NLL: minus the log density of a row by importance sampling, in nats",
    "good_rows": "good rows: share of rows whose importance weights are good",
    "amortisation_gap": "amortised: nats per row lost by sharing one network between the rows",
    "test_log_density": "test: mean log density of a test row (≥: its importance weights are poor)",
    "test_coverage": "coverage: share of test rows inside their 90% intervals",
    "test_spread": "spread: mean sd of the predictions, divided by the sd of the test values",
    "test_calibration_error": "calibration: mean distance between predicted probabilities and "
    "observed frequencies",
}

PARTS = {
    "expected_log_likelihood": "expected log likelihood",
    "kl_to_prior": "- KL divergence from the prior",
    "entropy": "(entropy of the guide)",
}
"""The parts of an ELBO, and their names: the first less the second is the ELBO."""

Report = Callable[[int, int, float, float], None]


def number(value: Any, digits: int = 4) -> str:
    """A number in few characters; a dash where it has no meaning."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if math.isfinite(value) else str(value).replace("inf", "∞")
    return str(value)


def _fixed(value: float) -> str:
    """A number with two decimals; a dash where it has no meaning."""
    return f"{value:.2f}" if math.isfinite(value) else number(value)


@contextmanager
def _bars(*columns: TextColumn | BarColumn) -> Iterator[Progress | None]:
    """Bars on a terminal with the time that remains, and nothing in a pipe."""
    err = Console(stderr=True)
    if not err.is_terminal:
        yield None
        return
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bars:
        yield bars


@contextmanager
def progresses() -> Iterator[Callable[[str], Report | None] | None]:
    """One bar for each fit on a terminal, and nothing in a pipe.

    A bar names the stage of its fit; while an optimiser steps, it shows these.

    Yields:
        For a fit's name, its progress callback.
    """
    with _bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[shown]}"),
    ) as bars:
        if bars is None:
            yield None
            return

        def begin(name: str) -> Report:
            task = bars.add_task(name, total=None, shown="")

            def report(step: int, total: int, elbo: float, rate: float) -> None:
                speed = bars.tasks[task].speed or 0.0
                shown = f"step {step}  ELBO {elbo:.2f}  rate {rate:.1e}  {speed:.0f} steps/s"
                bars.update(task, completed=step, total=total, shown=shown)

            return report

        def stage(name: str) -> None:
            if bars.tasks:  # the fit that was begun last
                bars.update(bars.tasks[-1].id, shown=name)

        with budget.limited(None, stage):
            yield begin


@contextmanager
def progress(name: str) -> Iterator[Report | None]:
    """The progress callback of one fit."""
    with progresses() as begin:
        yield None if begin is None else begin(name)


def show_plan(plan: Plan) -> None:
    """What is about to be run, with every option resolved."""
    problem, settings = plan.problem, plan.settings
    rows = table("", "")
    options = {} if problem.options is None else asdict(problem.options)
    made = problem.prepared.arguments  # where an option follows from the data
    options = {k: made.get(k) if v is None and isinstance(made.get(k), str) else v
               for k, v in options.items()}  # fmt: skip
    shown = {k: v for k, v in options.items() if v not in (None, ())}
    add(rows, "model", f"{problem.model.name} {_pairs(shown)}".strip())
    if isinstance(problem.data, pd.DataFrame):
        add(rows, "data", f"{len(problem.data):,} rows, {problem.data.shape[1]:,} columns")
    add(rows, "guide", f"{plan.guide.name}: {plan.guide.summary}")
    numbers = f"{settings.dtype} on {problem.device.type}"
    if not ENGINES[plan.engine].stochastic:
        add(rows, "engine", f"{plan.objective[0]}: {plan.objective[1]}")
        numbers = f"float64 on cpu, {settings.restarts} starts"
    elif not plan.guide.exact or problem.space.parameters.size:
        plate = problem.space.subsampled
        budget, fixed = length(settings, None if plate is None else plate.size)
        until = f"{budget:,} steps" if fixed else f"until it converges, at most {budget:,} steps"
        batch = f", minibatches of {settings.batch_size:,}" if settings.batch_size else ""
        compiled = ", compiled first" if settings.compile else ""
        add(rows, "engine", "svi: stochastic gradients")
        add(rows, "objective", f"{plan.objective[0]}: {plan.objective[1]}")
        add(
            rows,
            "optimiser",
            f"{settings.optimizer}, rate {settings.learning_rate:g} ({settings.schedule}), "
            f"{until}{batch}{compiled}",
        )
        layers = ", layers in bfloat16" if settings.autocast else ""
        numbers = f"{settings.dtype}{layers} on {problem.device.type}"
    add(rows, "numbers", f"{numbers}, seed {plan.seed}")
    rows.show_header = False
    console().print(rows)


def _pairs(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={_plain(value)}" for name, value in options.items())


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def show_findings(findings: list[Finding]) -> None:
    """What the checks before a run found."""
    styles = {"ok": "green", "warning": "yellow", "error": "bold red"}
    made = table("check", "", "")
    for each in findings:
        made.add_row(each.check, Text(each.level, style=styles[each.level]), Text(each.text))
    console().print(made)


def show_estimators(measured: pd.DataFrame) -> None:
    """Bias, noise and cost of gradient estimators at each stage of a fit."""
    out = console()
    right = ("noise", "bias", "ms", "cost")
    for stage, rows in measured.groupby("stage", sort=False):
        signal = number(float(rows["signal"].max()), 3)
        out.print()
        out.print(
            Text(
                f"{stage}, step {rows['step'].iloc[0]:,}: the gradient has norm {signal}",
                style="bold",
            )
        )
        made = table("estimator", "noise", "bias", "ms", "cost", right=right)
        for row in rows.sort_values("cost").to_dict("records"):
            bias = "-" if math.isnan(row["bias"]) else f"{row['bias']:.1f}"
            add(
                made,
                row["estimator"],
                number(row["noise"], 3),
                bias + (" !" if row["biased"] else ""),
                f"{row['ms']:.2f}" + ("" if row["recorded"] else " e"),
                f"{row['cost']:.3g}",
            )
        out.print(made)
    out.print(
        "noise: square root of the gradients' total variance. bias: distance of their mean from "
        "the exact gradient of the ELBO, in standard errors (about 1 by chance; !: more than "
        "chance; -: the estimator has another objective). ms: milliseconds per step (e: without "
        "a recording). cost: time to the same precision, relative to the best estimator.",
        style="dim",
    )
    evidence = measured.attrs.get("evidence", [])
    if evidence:
        _show_evidence(evidence)


def _show_evidence(lines: list[dict[str, Any]]) -> None:
    """The evidence by draws of the prior and of the guide, and what these waste."""
    out = console()
    out.print()
    out.print(Text(f"log p(data) by {lines[0]['draws']:,} draws", style="bold"))
    made = table(
        "drawn from", "log p(data)", "effective", "wasted", "k-hat",
        right=("log p(data)", "effective", "wasted", "k-hat"),
    )  # fmt: skip
    for line in lines:
        add(
            made,
            line["drawn_from"],
            _with_error(line["log_evidence"], line["log_evidence_se"], 2),
            f"{line['effective_draws']:,.1f}",
            f"{100 * line['wasted']:.1f}%",
            f"{line['k_hat']:.2f}",
        )
    out.print(made)
    out.print(
        "effective: draws of equal weight that the estimate is worth. wasted: share of the draws "
        "that it could do without. A k-hat above 0.7: its error is larger than stated, and it is "
        "likely to be too low.",
        style="dim",
    )


def show_rung(line: str) -> None:
    """One guide that `auto` has tried."""
    console().print(Text(line, style="dim"))


def show_fit(fit: Fit) -> None:
    """How a fit went, its diagnostics and posterior."""
    notes = [note for note in fit.notes if not note.startswith("auto: ")]  # printed already
    points = labelled_points(fit.posterior)
    _show(fit.trained.reason, notes, fit.diagnostics, points, fit.summary())


def show_verdict(verdict: Verdict) -> None:
    """Whether the posterior can be trusted, why, and what to do next: the last thing printed."""
    style = "bold green" if verdict.trusted else "bold yellow"
    out = console()
    out.print()
    out.print(Text.assemble((verdict.level, style), f": {' '.join(verdict.reasons)}"))
    if verdict.advice:
        out.print(Text.assemble(("next", "bold"), f": {verdict.advice}"))


def warn_untrusted(fit: Fit) -> None:
    """A warning before what is said of a run that is not trusted."""
    if not fit.verdict.trusted:
        reason = sentence(" ".join(fit.verdict.reasons))
        said = f"warning: this run is not trusted, nor is what follows. {reason}\n"
        console().print(Text(said, style="bold yellow"))


def show_run(run: Run, interval: float) -> None:
    """How a saved fit went, its diagnostics, posterior and verdict."""
    check_options(SummaryOptions, interval=interval)
    config = run.config
    console().print(Text(f"{config.model}, guide {config.guide}, seed {config.seed}"))
    _show(
        run.run.reason,
        run.run.notes,
        run.diagnostics,
        labelled_points(run.posterior),
        summarise(run.posterior, interval),
    )
    show_verdict(run.run.verdict)


def _show(
    reason: str,
    notes: list[str],
    measures: dict[str, Any],
    points: pd.Series,
    summary: pd.DataFrame,
) -> None:
    out = console()
    out.print()
    out.print(Text(sentence(reason)))
    for note in notes:
        out.print(Text(sentence(note)))
    out.print()
    lines = table("", "")
    lines.show_header = False
    if not math.isnan(measures["elbo"]):
        add(lines, "ELBO", f"{measures['elbo']:.2f} ± {measures['elbo_se']:.2f} nats")
        for name, label in PARTS.items():
            if name in measures:
                amount = _with_error(measures[name], measures[f"{name}_se"], 2)
                add(lines, f"  {label}", f"{amount} nats")
        add(lines, "k-hat of the guide", k_hat_in_words(measures))
    if "log_likelihood" in measures:
        add(lines, "log likelihood", f"{measures['log_likelihood']:.2f} nats")
    if "log_evidence" in measures:
        evidence, error = measures["log_evidence"], measures["log_evidence_se"]
        gap = max(0.0, measures["kl_to_posterior"])
        gap_and_error = _with_error(gap, measures.get("kl_to_posterior_se", math.nan), 2)
        text = (
            f"{evidence:.2f} ± {error:.2f} nats = ELBO + {gap_and_error} (KL divergence of the "
            "guide)"
        )
        if not _weights_tell(measures):
            effective = measures["corrected_effective_sample_size"]
            text = (
                f"unknown: the estimate {evidence:.2f} nats rests on only {effective:,.0f} "
                "effective draws"
            )
        add(lines, "log p(data)", text)
    if not math.isnan(measures["elpd_loo"]):
        high = measures["high_k_rows"]
        caveat = f"; unreliable for {high:.0%} of the rows" if high else ""
        add(
            lines,
            "elpd (LOO)",
            f"{measures['elpd_loo']:.1f} ± {measures['elpd_loo_se']:.1f} nats{caveat}",
        )
    add(lines, "time", f"{measures['seconds']:.1f} s, {measures['parameters']:,} fitted parameters")
    out.print(lines)
    out.print()
    _show_points(points)
    show_summary(summary)


def k_hat_in_words(measures: Mapping[str, Any]) -> str:
    """The k-hat of the guide, and what it says."""
    k_hat, limit = measures["k_hat"], measures["k_hat_threshold"]
    if math.isinf(k_hat) and k_hat < 0:
        return "all importance weights are equal"
    missed = "the guide misses a part of the posterior"
    verdict = "importance sampling can correct it" if k_hat <= limit else missed
    return f"{_fixed(k_hat)} (limit {limit:.2f}: {verdict})"


@contextmanager
def sampling() -> Iterator[Callable[[int, int, int], None] | None]:
    """The progress callback of a sampler: a bar on a terminal, nothing in a pipe."""
    with _bars(
        TextColumn("NUTS"),
        BarColumn(bar_width=24),
        TextColumn("draw {task.completed} of {task.total}"),
        TextColumn("{task.fields[divergences]} divergences"),
    ) as bars:
        if bars is None:
            yield None
            return
        task = bars.add_task("", total=None, divergences=0)

        def report(made: int, total: int, divergences: int) -> None:
            bars.update(task, completed=made, total=total, divergences=divergences)

        yield report


def show_reference(fit: Fit) -> None:
    """How a fit's posterior compares with NUTS's, the most different quantities first."""
    found = pd.DataFrame(fit.diagnostics["reference"])
    order = found["mean_shift"].abs().sort_values(ascending=False).index
    names = ["shift", "sd ratio", "90% covers", "Wasserstein"]
    made = table("quantity", *names, right=tuple(names))
    for row in found.loc[order].head(LONGEST).to_dict("records"):
        add(
            made, row["quantity"], f"{row['mean_shift']:.3f}", f"{row['sd_ratio']:.3f}",
            f"{row['coverage']:.1%}", f"{row['wasserstein']:.3f}",
        )  # fmt: skip
    console().print(made)
    console().print(
        "shift: difference of the means, in sds of NUTS. sd ratio: sd over the sd of NUTS. 90% "
        "covers: share of the draws of NUTS in the fit's 90% interval. Wasserstein: distance, "
        "in sds of NUTS.",
        style="dim",
    )


def _show_points(points: pd.Series) -> None:
    """The model's point parameters, if it has any."""
    if points.empty:
        return
    made = table("point parameter", "value", right=("value",))
    for label, value in points.head(LONGEST).items():
        add(made, label, number(float(value)))
    console().print(made)
    if len(points) > LONGEST:
        console().print(
            f"… and {len(points) - LONGEST:,} more: posterior.nc has all (in Python: "
            "er.load(RUN).point_parameters)."
        )
    console().print()


def show_priors(priors: pd.DataFrame) -> None:
    """The prior of each quantity, and mean, sd and interval of its draws."""
    drawn = [_interval_name(str(name)) for name in priors.columns.drop("prior")]
    worded = bool((priors["prior"] != "").any())
    made = table("quantity", *(["prior"] if worded else []), *drawn, right=tuple(drawn))
    for name, words, *values in priors.head(LONGEST).itertuples():
        cells = ["" if pd.isna(value) else number(value) for value in values]
        add(made, name, *([words] if worded else []), *cells)
    console().print(made)
    if len(priors) > LONGEST:
        console().print(f"… and {len(priors) - LONGEST:,} more: --output FOLDER writes all.")


def show_summary(summary: pd.DataFrame) -> None:
    """Mean, sd and interval of each quantity."""
    if summary.empty:
        console().print(
            "The posterior has no quantities that all rows share. If rows have latents, "
            "--keep-local saves them."
        )
        return
    names = [_interval_name(name) for name in summary.columns]
    made = table("quantity", *names, right=tuple(names))
    for label, row in summary.head(LONGEST).iterrows():
        add(made, label, *_cells_of_quantity(row))
    console().print(made)
    if len(summary) > LONGEST:
        more = len(summary) - LONGEST
        console().print(
            f"… and {more:,} more: posterior.nc has all (in Python: er.load(RUN).summary())."
        )


def _cells_of_quantity(row: pd.Series) -> Iterator[str]:
    """Its mean, sd and interval; a point estimate has no sd."""
    point = row["sd"] <= POINT * max(1.0, abs(row["mean"]))
    for name, value in row.items():
        yield "-" if point and name == "sd" else number(float(value))


def _interval_name(column: str) -> str:
    """'eti90_lb' as '5%'."""
    if not column.startswith("eti"):
        return column
    width, _, side = column.removeprefix("eti").partition("_")
    tail = (100 - float(width)) / 2
    return f"{tail:g}%" if side == "lb" else f"{100 - tail:g}%"


def show_comparison(comparison: Comparison) -> None:
    """The table of a comparison, how far each posterior is off, and which guide to take."""
    out = console()
    problem = next((fit.problem for fit in comparison.fits.values()), None)
    known = [name for name in EXTRA if name in comparison.table]
    extra = {name: EXTRA[name] for name in known if comparison.table[name].notna().any()}
    out.print()
    if problem is not None:
        out.print(Text(f"{problem.model.name}, seed {comparison.seed}", style="bold"))
    whole = _comparison_table(comparison, extra, wide=True)
    room = out.measure(whole, options=out.options.update(max_width=1000)).maximum <= out.width
    out.print(whole if room else _comparison_table(comparison, extra, wide=False))
    if problem is not None:
        out.print(
            "★ best ELBO of the trusted guides, or of all if none is trusted; ! not converged; "
            "corrected: trusted after correction; no: not trusted. ELBO and elpd are in nats. "
            "k-hat: of the guide's draws.",
            style="dim",
        )
        if extra:
            out.print(f"{'. '.join(EXPLAINED[name] for name in extra)}.", style="dim")
        _show_differences(comparison)
    for row in comparison.table.to_dict("records"):
        if row["error"]:
            out.print(Text(f"{row['guide']} failed: {row['error']}", style="yellow"))
    if comparison.recommendation:
        out.print()
        out.print(Text(comparison.recommendation, style="bold"))


def show_model_comparison(comparison: ModelComparison) -> None:
    """The table of a comparison of models, which one to take, and what speaks against it."""
    out, found = console(), comparison.table
    high, refitted = found["high_k_rows"].any(), found["refitted_rows"].any()
    heads = ["verdict", "elpd", "below the best", "p_loo", "weight"]
    heads += ["high k"] * bool(high) + ["refitted"] * bool(refitted)
    made = table("", "model", *heads, right=("", *heads[1:]))
    for place, row in enumerate(found.to_dict("records")):
        cells = [
            "-" if pd.isna(row["rank"]) else str(row["rank"]),
            row["model"],
            VERDICTS[row["verdict"]],
            _with_error(row["elpd_loo"], row["elpd_loo_se"], 1),
            _with_error(row["elpd_diff"], row["elpd_diff_se"], 1) if place else "-",
            _with_error(row["p_loo"], math.nan, 1),
            _with_error(row["weight"], math.nan, 2),
        ]
        cells += [str(row["high_k_rows"])] * bool(high)
        cells += [str(row["refitted_rows"])] * bool(refitted)
        add(made, *cells, style="bold" if row["model"] == comparison.best else "")
    out.print()
    out.print(Text(f"{len(found)} models of the same {found['rows'].iloc[0]:,} rows", style="bold"))
    out.print(made)
    out.print(
        "elpd: sum of the log densities of rows given all others, in nats, ± its standard error. "
        "p_loo: effective number of parameters. weight: of stacking."
        + " high k: rows whose density is unreliable." * bool(high)
        + " refitted: rows left out by fitting again." * bool(refitted),
        style="dim",
    )
    out.print()
    out.print(Text(comparison.recommendation, style="bold"))
    for each in comparison.remarks:
        out.print(Text(each))


def _show_differences(comparison: Comparison) -> None:
    """How far each guide's own draws, and its corrected ones, are from the best reference."""
    if comparison.differences.empty:
        return
    out, baseline = console(), comparison.baseline
    trusted = baseline is not None and comparison.fits[baseline].verdict.trusted
    reference = "NUTS" if baseline == "nuts" else f"{baseline}'s posterior"
    doubt = "" if trusted else ", which is not trusted itself"
    names = ["shift", "sd ratio", "90% covers"]
    heads = [*(f"own {name}" for name in names), *(f"corrected {name}" for name in names)]
    made = table("guide", *heads, right=tuple(heads))
    groups = dict(list(comparison.differences.groupby("guide")))
    for guide in comparison.table["guide"]:
        if guide in groups:
            own, corrected = (_off(groups[guide], prefix) for prefix in ("", "corrected_"))
            add(made, guide, *own, *corrected)
    out.print()
    out.print(Text(f"Draws beside {reference}{doubt}", style="bold"))
    out.print(made)
    out.print(
        "own: the guide's own draws. corrected: by importance weights. shift: largest difference "
        "of a mean, in sds of the reference. sd ratio: smallest and largest sd over the "
        "reference's. 90% covers: smallest and largest share of the reference in a 90% interval.",
        style="dim",
    )


def _off(differences: pd.DataFrame, prefix: str) -> list[str]:
    """The cells of how far all quantities are off; dashes where there are no such draws."""
    shifts, ratios, shares = (
        differences[f"{prefix}{name}"].dropna() for name in ("mean_shift", "sd_ratio", "coverage")
    )
    if shifts.empty:
        return ["-", "-", "-"]
    spread = f"{ratios.min():.2f}…{ratios.max():.2f}" if ratios.max() > POINT else "-"  # a point
    covers = f"{shares.min():.0%}…{shares.max():.0%}" if ratios.max() > POINT else "-"
    return [number(float(shifts.abs().max()), 2), spread, covers]


def _comparison_table(comparison: Comparison, extra: Mapping[str, str], wide: bool) -> Table:
    """One line a guide; with errors, the ELBO's parts and engines if it may be wide."""
    columns: dict[str, Callable[[Any], str]] = {
        "verdict": lambda row: VERDICTS[row["verdict"]],
        "ELBO": lambda row: _with_error(row["elbo"], row["elbo_se"], 2),
    }
    filled = comparison.table.notna().any()
    if wide and filled.get("kl_to_prior", False):
        columns["log likelihood part"] = lambda row: _with_error(
            row["expected_log_likelihood"], math.nan, 2
        )
        columns["KL part"] = lambda row: _with_error(row["kl_to_prior"], math.nan, 2)
    if filled["log_likelihood"]:
        columns["log likelihood"] = lambda row: _with_error(row["log_likelihood"], math.nan, 2)
    columns["k-hat"] = lambda row: _fixed(row["k_hat"])
    if filled["elpd_loo"]:
        columns["elpd"] = lambda row: _with_error(
            row["elpd_loo"], row["elpd_loo_se"] if wide else math.nan, 1
        )
    columns["s"] = lambda row: f"{row['seconds']:.1f}"
    for measure, label in extra.items():
        columns[label] = partial(_extra_cell, measure=measure, wide=wide)
    if wide:
        columns["parameters"] = lambda row: str(int(row["parameters"]))
        columns["fitted by"] = lambda row: row["objective"]
    made = table("guide", *columns, right=tuple(columns))
    for row in comparison.table.to_dict("records"):
        if not row["error"]:
            name = f"{row['guide']}{' ★' if row['best'] else ''}{'' if row['converged'] else ' !'}"
            cells = [cell(row) for cell in columns.values()]
            add(made, name, *cells, style="bold" if row["best"] else "")
    return made


def _extra_cell(row: Mapping[Any, Any], measure: str, wide: bool) -> str:
    """A measure that some guides have; a lower bound where the weights of rows are poor."""
    if measure == "active_units":
        return _with_error(row[measure], math.nan, 0)
    if measure == "good_rows":
        return "-" if math.isnan(row[measure]) else f"{row[measure]:.0%}"
    error = row.get(f"{measure}_se", math.nan) if wide else math.nan
    doubtful = (
        measure == "test_log_density" and row.get("test_unreliable", 0) > WEIGHING.unreliable_rows
    )
    return f"{'≥ ' if doubtful else ''}{_with_error(row[measure], error, 2)}"


def _weights_tell(measures: Mapping[str, Any]) -> bool:
    """Whether importance weights are good enough to estimate the evidence."""
    if "unreliable_rows" in measures:
        return bool(measures["unreliable_rows"] <= WEIGHING.unreliable_rows)
    limit = k_hat_threshold(measures["weighted_draws"])
    enough = measures["corrected_effective_sample_size"] >= WEIGHING.fewest_effective
    return bool(measures["corrected_k_hat"] <= limit and enough)


def _with_error(value: float, error: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def show_heading(title: str, detail: str) -> None:
    """A part of the demonstration."""
    out = console()
    out.print()
    out.print(Text.assemble((title, "bold cyan"), (f": {detail}" if detail else "", "dim")))
    out.print()


def show_answers(found: pd.DataFrame, guide: str) -> None:
    """What a guide would have said of each coefficient, beside a trusted posterior.

    Args:
        found: Of `elbowroom.report.demo.answers`.
        guide: The name of the one that is not trusted.
    """
    out = console()
    names = ["trusted posterior", guide, "sd ratio", ""]
    made = table("coefficient", *names, right=tuple(names[:3]))
    for label, row in found.iterrows():
        right = f"{number(row['trusted_lower'])} to {number(row['trusted_upper'])}"
        wrong = f"{number(row['lower'])} to {number(row['upper'])}"
        mark = "another answer" if row["changed"] else ""
        add(made, str(label), right, wrong, _fixed(row["sd_ratio"]), mark,
            style="bold yellow" if row["changed"] else "")  # fmt: skip
    out.print(made)
    sure = (found["lower"] > 0) | (found["upper"] < 0)
    changed = [str(label) for label in found.index[found["changed"] & sure]]
    if not changed:
        out.print(f"{guide} is sure of no sign that the posterior does not know.")
        return
    several = len(changed) > 1
    listed = f"{', '.join(changed[:-1])} and {changed[-1]}" if several else changed[0]
    out.print(
        f"{guide} is sure of the sign{'s' if several else ''} of {listed}: zero is outside its "
        f"interval{'s' if several else ''}. The posterior has both signs. The guide's sds are as "
        f"small as {found['sd_ratio'].min():.2f} of the right ones, and its verdict says that it "
        "cannot be trusted without knowing these."
    )


def show_saved(path: Path) -> None:
    """Where the results were saved; on standard error, if standard output takes nothing more."""
    console().print(Text(f"\nresults: {path}"))
    if not streams.shown():
        streams.say(f"results: {path}")
