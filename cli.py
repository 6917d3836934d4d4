"""The command line: parses, calls the API, prints. No logic of its own."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from datetime import datetime
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any
from unicodedata import category

import typer

import elbowroom
from elbowroom.commands import COMMANDS
from elbowroom.engines.options import ENGINES, NumberOptions
from elbowroom.errors import ElbowroomError, OptionError, RunFolderError, shown
from elbowroom.options import declared, flag, make_options
from elbowroom.printable import printable
from elbowroom.report import streams

NOT_TRUSTED = 3

app = typer.Typer(
    name="elbowroom",
    help="Fit Pyro models by variational inference, compare guides, and export posteriors to "
    "ArviZ.",
    epilog="Exit codes: 0 done, 1 error, 2 wrong usage, 3 finished but not trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}

OwnModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="A model's name ('elbowroom models' lists them), or FILE.py:FUNCTION."
    ),
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model's name ('elbowroom models' lists them), or FILE.py:FUNCTION."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="A CSV, TSV, Parquet, .npy, .npz or IDX file; a bundled dataset ('elbowroom "
        "datasets' lists them); or mnist, fashion_mnist or omniglot, which are downloaded. "
        "Default: the model's example dataset."
    ),
]
GuideName = Annotated[
    str, typer.Option(help="A guide's name ('elbowroom guides MODEL' lists them).")
]
Engine = Annotated[
    str,
    typer.Option(
        help="How the guide is fitted: fixed_draws (deterministic), svi (stochastic gradients), em "
        "(expectation-maximisation) or coordinate_ascent (updates in closed form, for conjugate "
        "priors). auto uses fixed_draws where it can."
    ),
]
StartFile = Annotated[
    Path | None,
    typer.Option(
        "--start",
        metavar="FILE.json",
        help="Values of latent sites, by site, that a fit begins at, as a JSON file.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        metavar="",
        help="If the output folder exists, replace the files in it that Elbowroom wrote. All other "
        "files stay; one that is in the way is an error, before any work.",
    ),
]
Function = Annotated[
    str | None,
    typer.Option(
        "--model", help="The model as FILE.py:FUNCTION, if the run is of a model of your own."
    ),
]
TRUST = (
    "Let the formula saved in the run execute code, and read files of any size. Use it only for "
    "runs whose origin you trust."
)
Printed = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder to write (default: print the table alone)."),
]
Trust = Annotated[bool, typer.Option("--trust", metavar="", help=TRUST)]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
RowsOrFitted = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Rows to use; a file or dataset, as for 'elbowroom fit' (default: the fitted rows).",
    ),
]


def _output(default: str) -> Any:
    """The option for the folder that a command writes."""
    return typer.Option("--output", "-o", help=f"Folder to write (default: {default}).")


def _model_options(arguments: list[str]) -> dict[str, Any]:
    """The options that the command itself does not know: the model's and the objective's."""
    found: dict[str, Any] = {}
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise OptionError(f"unexpected '{word}'; write options as --OPTION VALUE.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise OptionError(f"--{name} needs a value.")
            value = queue.pop(0)
        key = name.replace("-", "_")
        found[key] = value if key not in found else f"{found[key]},{value}"
    return found


def _parameters(kinds: Iterable[type]) -> dict[str, Parameter]:
    """The options of some dataclasses, as the command line takes them."""
    found: dict[str, Parameter] = {}
    for kind in kinds:
        required = {field.name for field in fields(kind) if field.default is MISSING}
        for option in declared(kind):
            text = option.description[:1].upper() + option.description[1:]
            plain: Any = option.plain
            if plain is bool:
                made = typer.Option(option.flag, metavar="", help=f"{text}.")
            else:
                usual = "" if option.default is None else f" (default: {option.default})"
                allowed = f" Range: {option.range}." if option.range else ""
                names = [option.flag, *SHORT.get(option.name, ())]
                made = typer.Option(*names, help=f"{text}{usual}.{allowed}")
            found.setdefault(
                option.name,
                Parameter(
                    option.name,
                    Parameter.KEYWORD_ONLY,
                    default=Parameter.empty if option.name in required else None,
                    annotation=Annotated[plain if option.name in required else plain | None, made],
                ),
            )
    return found


SHORT = {"count": ("-n",)}
"""Short names of options."""
SETTINGS = _parameters((*ENGINES.values(), NumberOptions))
"""The options of engines, which 'fit', 'compare', 'check' and 'estimators' share."""


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the engines' options, and the model's and objective's own, as `options`."""

    @wraps(command)
    def wrapped(context: typer.Context, **values: Any) -> None:
        given = {name: values.pop(name) for name in SETTINGS}
        settings = {name: value for name, value in given.items() if value is not None}
        command(context, options={**_model_options(context.args), **settings}, **values)

    known = [p for p in signature(command).parameters.values() if p.name != "options"]
    parameters = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in known[1:]]
    return _signed(wrapped, [known[0], *parameters, *SETTINGS.values()])


def _reading(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command what its dataclass declares, looked at before the command begins.

    They come in the place of the command's argument `asked`, which has their values by name.
    """
    kind = COMMANDS[name]
    own = _parameters([kind])

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(*arguments: Any, **values: Any) -> None:
            given = {name: values.pop(name) for name in own}
            made = make_options(kind, {k: v for k, v in given.items() if v is not None})
            command(*arguments, asked={name: getattr(made, name) for name in own}, **values)

        parameters: list[Parameter] = []
        for each in signature(command).parameters.values():
            parameters += own.values() if each.name == "asked" else [each]
        return _signed(wrapped, parameters)

    return decorate


def _signed(command: Any, parameters: Sequence[Parameter]) -> Callable[..., None]:
    """A command with other parameters than its function's, for typer to read."""
    named = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = Signature(named)
    command.__annotations__ = {p.name: p.annotation for p in named}
    return command


def _asking(function: Callable[..., Any], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a model or an objective, none of them an argument of the Python function.

    Raises:
        OptionError: At one that is.
    """
    for name in options:
        if name in signature(function).parameters:
            raise OptionError(f"there is no option '{flag(name)}' of this command.")
    return options


def _folder(output: Path | None, model: str, guide: str) -> Path:
    stem = (Path(model.rpartition(":")[0]).stem or model)[:100]
    return output or Path("runs") / f"{stem}-{guide}-{datetime.now():%Y%m%d-%H%M%S}"


def _kept(
    write: Callable[[Path, bool], Any], folder: Path, overwrite: bool
) -> tuple[Path | None, RunFolderError | None]:
    """Writes results; if their folder cannot be written, in a temporary one.

    Returns:
        Where they are, if they could be written at all, and why they are not in their folder.
    """
    try:
        write(folder, overwrite)
        return folder, None
    except RunFolderError as error:
        spare = _spare(write, folder.name)
        where = "could not be saved anywhere else, either"
        if spare is not None:
            where = f"were saved in '{spare}' instead"
        return spare, RunFolderError(f"{error} The results {where}.")


def _spare(write: Callable[[Path, bool], Any], name: str) -> Path | None:
    """Writes results to a temporary folder, or to the current one where there is none."""
    for place in (None, "."):
        with suppress(OSError, RunFolderError):
            spare = Path(tempfile.mkdtemp(prefix="elbowroom-", dir=place)).absolute()
            try:
                write(spare / name, False)
                return spare / name
            except RunFolderError:
                spare.rmdir()
    return None


def _end(saved: Path | None, error: RunFolderError | None) -> None:
    """Prints where results are; raises if they are not where they belong."""
    from elbowroom.report import terminal

    if saved is not None:
        terminal.show_saved(saved)
    if error is not None:
        raise error


def _only_resume(context: typer.Context) -> None:
    """Refuses options that a resumed run cannot change."""
    allowed = {"model", "resume", "trust", "steps", "epochs"}
    for name in sorted(set(context.params) - allowed):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise OptionError(
                f"--{name.replace('_', '-')} cannot be changed with --resume; leave it out. Only "
                "--steps and --epochs can be changed."
            )


@app.command(context_settings=EXTRA)
@_with_settings
@_reading("fit")
def fit(
    context: typer.Context,
    options: dict[str, Any],
    model: OwnModelName = None,
    data: Data = None,
    guide: Annotated[
        str,
        typer.Option(
            help="A guide's name ('elbowroom guides MODEL' lists them). auto uses the cheapest one "
            "whose posterior can be trusted."
        ),
    ] = "auto",
    engine: Engine = "auto",
    *,
    asked: dict[str, Any],
    keep_local: Annotated[
        bool,
        typer.Option(
            "--keep-local",
            metavar="",
            help="Save the draws of each row's latents, too, even if they are many.",
        ),
    ] = False,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            metavar="",
            help="Run NUTS after the fit, and compare the posterior with it.",
        ),
    ] = False,
    fallback: Annotated[
        str | None,
        typer.Option(help="Sampler to use if no guide is trusted: nuts."),
    ] = None,
    start: StartFile = None,
    output: Annotated[Path | None, _output("runs/MODEL-GUIDE-TIME")] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue a run that was killed, was interrupted or used up its steps. Only "
            "--steps and --epochs can be changed. For a model of your own, give MODEL as well.",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", metavar="", help=f"Only with --resume. {TRUST}")
    ] = False,
) -> None:
    """Fit a guide to a model's posterior, and save the run in a folder.

    Models have options of their own, such as --formula; 'elbowroom models MODEL' lists them.

    Objectives have options, too, such as --alpha; 'elbowroom objectives' lists them.
    """
    from elbowroom.api import fit as run_fit
    from elbowroom.loading import resume as run_resume
    from elbowroom.report import terminal
    from elbowroom.run.unfinished import discard

    if model is None and resume is None:
        raise OptionError("give a MODEL ('elbowroom models' lists them), or --resume RUN.")
    folder = resume or _folder(output, model or "", guide)
    with terminal.progress(guide if resume is None else "resumed") as report:
        shown: dict[str, Any] = {
            "announce": terminal.show_plan, "progress": report, "report": terminal.show_rung,
        }  # fmt: skip
        if resume is not None:
            _only_resume(context)
            result = run_resume(resume, model, trust=trust, **shown, **_asking(run_resume, options))
        else:
            result = run_fit(
                model or "",
                data,
                guide,
                engine=engine,
                keep_local=keep_local,
                reference=reference,
                fallback=fallback,
                start=start,
                checkpoints=folder,
                overwrite=overwrite,
                **shown,
                **asked,
                **_asking(run_fit, options),
            )
    saved, error = _kept(result.save, folder, overwrite)
    if error is not None and result.converged:
        discard(folder)
    terminal.show_fit(result)
    if saved is not None:
        terminal.show_saved(saved)
    terminal.show_verdict(result.verdict)
    if error is not None:
        raise error
    if not result.verdict.trusted:
        raise typer.Exit(NOT_TRUSTED)


@app.command(context_settings=EXTRA)
@_with_settings
@_reading("compare")
def compare(
    context: typer.Context,
    model: ModelName,
    options: dict[str, Any],
    data: Data = None,
    guide: Annotated[
        list[str] | None,
        typer.Option(
            help="A guide, a guide with an objective (GUIDE:OBJECTIVE, such as "
            "local:trace_graph), or nuts for the sampler. Repeat --guide for each of them. "
            "Default: every guide that can be used with the model."
        ),
    ] = None,
    engine: Engine = "auto",
    *,
    asked: dict[str, Any],
    start: StartFile = None,
    output: Annotated[Path | None, _output("runs/MODEL-comparison-TIME")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit several guides to the same data with the same seed, and print one table.

    Models have options of their own, such as --formula; 'elbowroom models MODEL' lists them.

    Objectives have options, too, such as --alpha; 'elbowroom objectives' lists them.
    """
    from elbowroom.comparison import check_comparison
    from elbowroom.comparison import compare as run_compare
    from elbowroom.report import outcomes, terminal

    folder = _folder(output, model, "comparison")
    check_comparison(folder, overwrite, model, guide, (data, start))
    with terminal.progresses() as report:
        result = run_compare(
            model, data, guide, engine=engine, start=start, progress=report, **asked,
            **_asking(run_compare, options),
        )  # fmt: skip

    def write(where: Path, again: bool) -> None:
        def draw(filled: Path) -> None:
            outcomes.drawn(lambda: outcomes.draw_predictions(result, filled))

        result.save(where, again, also=draw)

    saved, error = _kept(write, folder, overwrite)
    terminal.show_comparison(result)
    _end(saved, error)
    if not result.fits:
        raise typer.Exit(1)
    if not any(each.verdict.trusted for each in result.fits.values()):
        raise typer.Exit(NOT_TRUSTED)


@app.command(context_settings=EXTRA)
@_with_settings
@_reading("check")
def check(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run folder, or a model that is not yet fitted: a name ('elbowroom models' "
            "lists them), or FILE.py:FUNCTION.",
        ),
    ],
    options: dict[str, Any],
    data: Data = None,
    guide: GuideName = "auto",
    *,
    asked: dict[str, Any],
    output: Printed = None,
    overwrite: Overwrite = False,
    model: Function = None,
    trust: Trust = False,
) -> None:
    """Check a run's predictions; or a model, its data and a guide, without fitting them.

    RUN: posterior predictive checks, LOO-PIT and residuals, and what to try against a misfit.

    Only --output, --overwrite, --model, --trust and --seed are for a run.

    MODEL: models have options of their own, such as --formula; 'elbowroom models MODEL' lists them.

    Objectives have options, too, such as --alpha; 'elbowroom objectives' lists them.
    """
    from elbowroom.loading import names_run

    if output is not None or names_run(target):
        what = "a run, which has its model, data and guide"
        _no_effect(context, target, what, options, RUN_READS)
        _of_run(_check_run)(
            run=Path(target), asked=asked, output=output, overwrite=overwrite, model=model,
            trust=trust,
        )  # fmt: skip
        return
    _no_effect(context, target, "a model, not a run", {}, MODEL_READS)
    from elbowroom.api import check as run_check
    from elbowroom.report import terminal

    findings = run_check(target, data, guide, **asked, **_asking(run_check, options))
    terminal.show_findings(findings)
    if any(each.level == "error" for each in findings):
        raise typer.Exit(1)


RUN_READS = frozenset({"output", "overwrite", "model", "trust", "seed", "target"})
"""What 'check' reads for a run."""
MODEL_READS = frozenset({"data", "guide", "seed", "target", *SETTINGS})
"""What 'check' reads for a model, beside the options of that model."""


def _no_effect(
    context: typer.Context, target: str, what: str, more: Mapping[str, Any], reads: frozenset[str]
) -> None:
    """Refuses options that are for another kind of target.

    Raises:
        OptionError: At the first one.
    """
    given = [
        name for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]  # fmt: skip
    for name in sorted({*given, *more} - reads):
        raise OptionError(f"{flag(name)} would have no effect: '{target}' is {what}; leave it out.")


def _check_run(
    run: Path,
    asked: dict[str, Any],
    output: Path | None,
    overwrite: bool,
    model: str | None,
    trust: bool,
) -> None:
    from elbowroom.report import model_check as shown_check

    names = ("checks.csv", "rows.csv")
    if output is not None:
        _target(run, "checked", output, overwrite, names, None)
    fit = _loaded(run, model, trust)
    found = fit.check(**{name: value for name, value in asked.items() if value is not None})
    tables = dict(zip(names, (found.table, found.rows), strict=True))
    show = partial(shown_check.show_check, fit, found)
    _printed(show, output, overwrite, tables, shown_check.draw_check(found))


@app.command(context_settings=EXTRA)
@_with_settings
@_reading("priors")
def priors(
    context: typer.Context,
    model: ModelName,
    options: dict[str, Any],
    data: Data = None,
    *,
    asked: dict[str, Any],
    output: Printed = None,
    overwrite: Overwrite = False,
) -> None:
    """State a model's priors in the units of the data, and what they predict, without a fit.

    Models have options of their own, such as --formula; 'elbowroom models MODEL' lists them.
    """
    from elbowroom.prior_view import priors as run_priors
    from elbowroom.report import pictures, terminal

    if output is not None:
        _target(output, "", output, overwrite, ("priors.csv",), data)
    view = run_priors(model, data, **asked, **_asking(run_priors, options))
    tables = {"priors.csv": view.table.rename_axis("quantity").reset_index()}

    def draw(path: Path) -> None:
        pictures.picture_of_priors(view.predicted, view.data, path, view.observed)

    _printed(lambda: terminal.show_priors(view.table), output, overwrite, tables, draw)


@app.command(context_settings=EXTRA)
@_with_settings
@_reading("estimators")
def estimators(
    context: typer.Context,
    model: ModelName,
    options: dict[str, Any],
    data: Data = None,
    guide: GuideName = "auto",
    *,
    asked: dict[str, Any],
    output: Annotated[Path | None, _output("runs/MODEL-estimators-TIME")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure the gradient estimators that suit a model and a guide: bias, noise and cost.

    At the end, also log p(data) by draws of the prior and of the guide, and what these waste.

    Models have options of their own, such as --formula; 'elbowroom models MODEL' lists them.

    Objectives have options, too, such as --alpha; 'elbowroom objectives' lists them.
    """
    import pandas as pd

    from elbowroom.api import estimators as run_estimators
    from elbowroom.report import outcomes, pictures, terminal
    from elbowroom.run.output import check_target, writing

    folder = _folder(output, model, "estimators")
    names = ("estimators.csv", "evidence.csv", "estimators.png")
    check_target(folder, overwrite, names[0], names, (data,))
    table = run_estimators(model, data, guide, **asked, **_asking(run_estimators, options))

    def write(where: Path, again: bool) -> None:
        with writing(where, again, names[0], names) as filled:
            table.to_csv(filled / names[0], index=False)
            pd.DataFrame(table.attrs["evidence"]).to_csv(filled / names[1], index=False)
            picture, title = filled / names[2], f"{model}, {guide}"
            outcomes.drawn(lambda: pictures.picture_of_estimators(table, picture, title))

    saved, error = _kept(write, folder, overwrite)
    terminal.show_estimators(table)
    _end(saved, error)


def _of_run(command: Callable[..., None]) -> Callable[..., None]:
    """A command on a run folder: whatever its numbers make fail is a sentence that names it."""

    @wraps(command)
    def wrapped(**values: Any) -> None:
        try:
            command(**values)
        except (ElbowroomError, OSError, typer.Exit):
            raise
        except Exception as error:
            from elbowroom.run.files import unusable

            raise unusable(values["run"], error) from error

    return wrapped


def _loaded(run: Path, model: str | None, trust: bool) -> Any:
    from elbowroom.loading import load
    from elbowroom.models._own import load_function

    return load(run, model=None if model is None else load_function(model), trust=trust)


@app.command()
@_of_run
@_reading("reference")
def reference(
    run: Run,
    asked: dict[str, Any],
    model: Function = None,
    trust: Trust = False,
) -> None:
    """Compare a run's posterior with NUTS, and update its verdict."""
    from elbowroom.pipeline.reference import add_reference
    from elbowroom.report import terminal
    from elbowroom.run.output import check_target

    check_target(run, overwrite=True)
    fit = _loaded(run, model, trust)
    with terminal.sampling() as progress:
        result = add_reference(fit, progress=progress, **asked)
    saved, error = _kept(replace(result, folder=run).save, run, True)
    terminal.show_reference(result)
    terminal.show_verdict(result.verdict)
    _end(saved, error)
    if not result.verdict.trusted:
        raise typer.Exit(NOT_TRUSTED)


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model to describe.")
    ] = None,
) -> None:
    """List the models, or describe one: its priors, options and guides."""
    from elbowroom.report import listing

    if name is None:
        listing.show_models()
    else:
        listing.show_model(name)


@app.command()
def guides(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="List only this model's guides.")
    ] = None,
) -> None:
    """List all guides, or those that can be used with a model."""
    from elbowroom.report import listing

    listing.show_guides(model)


@app.command()
def objectives() -> None:
    """List the objectives for stochastic gradients, and their options."""
    from elbowroom.report import listing

    listing.show_objectives()


@app.command()
def datasets() -> None:
    """List the bundled datasets, with sources and licences."""
    from elbowroom.report import listing

    listing.show_datasets()


@app.command()
@_of_run
@_reading("summary")
def summary(run: Run, asked: dict[str, Any], trust: Trust = False) -> None:
    """Print a run's diagnostics, posterior and verdict."""
    from elbowroom.report import terminal
    from elbowroom.run.folder import load

    terminal.show_run(load(run, trust, data=False), **asked)


@app.command()
@_reading("compare-models")
def compare_models(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Two or more run folders of the same observations."),
    ],
    asked: dict[str, Any],
    trust: Trust = False,
    output: Printed = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare models fitted to the same observations by leave-one-out predictive densities."""
    from elbowroom.model_comparison import compare_models as run_compare
    from elbowroom.report import terminal

    names = ("models.csv", "rows.csv")
    if output is not None:
        _target(output, "", output, overwrite, names, None)
    result = run_compare(runs, trust=trust, report=terminal.show_rung, **asked)
    tables = dict(zip(names, (result.table, result.rows), strict=True))
    _printed(lambda: terminal.show_model_comparison(result), output, overwrite, tables)
    if result.best is None:
        raise typer.Exit(NOT_TRUSTED)


@app.command()
@_of_run
@_reading("predict")
def predict(
    run: Run,
    data: Annotated[str, typer.Option(help="New rows; a file or dataset, as for 'elbowroom fit'.")],
    asked: dict[str, Any],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="CSV file to write, under a name that is free (default: print it).",
        ),
    ] = None,
    model: Function = None,
    trust: Trust = False,
) -> None:
    """Predict new rows: mean, sd and interval; for a mixture, each row's component."""
    from elbowroom.run.output import check_file, write_file

    if output is not None:
        check_file(output)
    elif sys.stdout is None:
        raise OptionError("standard output is closed; give --output FILE.")
    table = _loaded(run, model, trust).predict(data, **asked)
    _say_notes(table)
    text = table.to_csv(index=False)

    def write(where: Path, again: bool) -> None:
        write_file(where, text.encode())

    if output is None:
        typer.echo(printable(text), nl=False)
        if not streams.shown() and streams.failure() is not None:
            spare = _spare(write, "predictions.csv")
            streams.say(f"results: {spare}" if spare else "The results could not be saved, either.")
        return
    saved, error = _kept(write, output, False)
    if error is not None:
        raise error
    typer.echo(printable(f"{len(table)} rows written to {saved}"))


def _say_notes(table: Any) -> None:
    """Prints what is to be known of a table, beside it."""
    for note in table.attrs["notes"]:
        streams.say(printable(f"note: {note}"))


def _of_columns(what: str, form: str = "COLUMN[=VALUES]") -> Any:
    """An option that names columns, with values or without."""
    return typer.Option(metavar=form, help=f"{what} Repeat it for several columns.")


@app.command()
@_of_run
@_reading("effects")
def effects(
    run: Run,
    means: Annotated[
        list[str] | None,
        _of_columns(
            "What is expected at each level of a category, over the range of a number, or at "
            "values, such as bmi=20,30. '.' stands for every column, here and below."
        ),
    ] = None,
    slopes: Annotated[
        list[str] | None,
        _of_columns(
            "Derivative by a number, averaged over the fitted rows (average marginal effect); for "
            "a category, its levels less the first one.",
            "COLUMN",
        ),
    ] = None,
    contrasts: Annotated[
        list[str] | None,
        _of_columns(
            "Differences between all levels of a category, or between values, such as bmi=20,30."
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        _of_columns(
            "Give all of it for each level of another column, or at values; of a number, by "
            "default its mean, and an sd below and above it."
        ),
    ] = None,
    *,
    asked: dict[str, Any],
    output: Printed = None,
    overwrite: Overwrite = False,
    model: Function = None,
    trust: Trust = False,
) -> None:
    """What a regression says of its columns: adjusted predictions, slopes and contrasts.

    Without --means, --slopes and --contrasts: the means of every column of the formula.

    Effects of groups are zero: these are of a typical group.
    """
    from elbowroom.report import effects as shown_effects

    if output is not None:
        _target(run, "effects", output, overwrite, ("effects.csv",), None)
    fit = _loaded(run, model, trust)
    table = fit.effects(means, slopes, contrasts, by=by, **asked)
    draw = shown_effects.draw_effects(fit, table)
    show = partial(shown_effects.show_effects, fit, table)
    _printed(show, output, overwrite, {"effects.csv": table}, draw)


@app.command()
@_of_run
def sensitivity(
    run: Run,
    output: Printed = None,
    overwrite: Overwrite = False,
    model: Function = None,
    trust: Trust = False,
) -> None:
    """How much each quantity follows its prior and the data, by power-scaling.

    Nothing is fitted again.
    """
    from elbowroom.report.sensitivity import show_sensitivity

    if output is not None:
        _target(run, "sensitivity", output, overwrite, ("sensitivity.csv",), None)
    fit = _loaded(run, model, trust)
    table = fit.sensitivity()
    tables = {"sensitivity.csv": table.reset_index()}
    _printed(lambda: show_sensitivity(fit, table), output, overwrite, tables)


def _target(
    run: Path, done: str, output: Path | None, overwrite: bool, names: tuple[str, ...], data: Any
) -> Path:
    """The folder of a command's results, RUN-DONE, once it is seen that it can be written."""
    from elbowroom.run.output import check_target

    folder = output or run.with_name(f"{run.name}-{done}")
    check_target(folder, overwrite, names[0], (*names, "picture.png"), (data,))
    return folder


def _printed(
    show: Callable[[], None],
    output: Path | None,
    overwrite: bool,
    tables: dict[str, Any],
    draw: Callable[[Path], None] = lambda path: None,
) -> None:
    """Prints the result of a command, once it is written to its folder, if it has one."""
    from elbowroom.report import outcomes

    saved, error = None, None
    if output is not None:
        saved, error = _kept(
            lambda w, again: outcomes.write(w, again, tables, draw), output, overwrite
        )
    show()
    _end(saved, error)


def _written(folder: Path, overwrite: bool, tables: dict[str, Any], draw: Any) -> None:
    """Writes the result of a command to its folder, and prints where it is."""
    from elbowroom.report import outcomes

    _end(*_kept(lambda w, again: outcomes.write(w, again, tables, draw), folder, overwrite))


@app.command()
@_of_run
@_reading("generate")
def generate(
    run: Run,
    asked: dict[str, Any],
    data: Annotated[
        str | None,
        typer.Option(help="Make rows similar to these; a file or dataset, as for 'elbowroom fit'."),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Value of a known column, such as a label, for all new rows. Repeat it for "
            "several columns.",
        ),
    ] = None,
    expected: Annotated[
        bool,
        typer.Option(
            "--expected", metavar="", help="Write the mean of each cell instead of a draw."
        ),
    ] = False,
    prior: Annotated[
        bool,
        typer.Option(
            "--prior",
            metavar="",
            help="Draw the parameters from their prior instead of the posterior.",
        ),
    ] = False,
    model: Function = None,
    trust: Trust = False,
    output: Annotated[Path | None, _output("RUN-generated")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make new rows or images; with --data, rows similar to those in the file."""
    from elbowroom.report import outcomes

    known = {}
    for each in given or ():
        column, mark, value = each.partition("=")
        if not mark:
            raise OptionError(f"--given {each}: write COLUMN=VALUE.")
        known[column] = _number(value)
    folder = _target(run, "generated", output, overwrite, ("rows.csv",), data)
    fit = _loaded(run, model, trust)
    count, seed = asked["count"], asked["seed"]
    table = fit.generate(count, data, given=known, expected=expected, prior=prior, seed=seed)
    draw = outcomes.draw_generated(fit, table)
    _written(folder, overwrite, {"rows.csv": table}, draw)


def _number(text: str) -> Any:
    """A value of the command line as a number, if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@app.command()
@_of_run
@_reading("reconstruct")
def reconstruct(
    run: Run,
    data: RowsOrFitted = None,
    *,
    asked: dict[str, Any],
    model: Function = None,
    trust: Trust = False,
    output: Annotated[Path | None, _output("RUN-reconstructed")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Encode rows as latents, and decode them again."""
    from elbowroom.report import outcomes

    folder = _target(run, "reconstructed", output, overwrite, ("rows.csv",), data)
    fit = _loaded(run, model, trust)
    table = fit.reconstruct(data, **asked)
    draw = outcomes.draw_reconstructed(fit, data, table)
    _written(folder, overwrite, {"rows.csv": table}, draw)


@app.command()
@_of_run
@_reading("interpolate")
def interpolate(
    run: Run,
    asked: dict[str, Any],
    data: RowsOrFitted = None,
    model: Function = None,
    trust: Trust = False,
    output: Annotated[Path | None, _output("RUN-interpolated")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make rows along the line between the latents of two rows."""
    from elbowroom.report import outcomes

    folder = _target(run, "interpolated", output, overwrite, ("steps.csv",), data)
    fit = _loaded(run, model, trust)
    table = fit.interpolate(data=data, **asked)
    draw = outcomes.draw_line(fit, table, asked["begin"], asked["end"])
    _written(folder, overwrite, {"steps.csv": table}, draw)


@app.command()
@_of_run
@_reading("manifold")
def manifold(
    run: Run,
    asked: dict[str, Any],
    model: Function = None,
    trust: Trust = False,
    output: Annotated[Path | None, _output("RUN-manifold")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw images on a grid of one or two latents."""
    from elbowroom.report import outcomes

    folder = _target(run, "manifold", output, overwrite, ("grid.csv",), None)
    fit = _loaded(run, model, trust)
    table = fit.manifold(**asked)
    draw = outcomes.draw_manifold(fit, table, asked["size"])
    _written(folder, overwrite, {"grid.csv": table}, draw)


@app.command()
@_of_run
@_reading("impute")
def impute(
    run: Run,
    data: Annotated[
        str,
        typer.Option(help="Rows with missing cells; a file or dataset, as for 'elbowroom fit'."),
    ],
    asked: dict[str, Any],
    model: Function = None,
    trust: Trust = False,
    output: Annotated[Path | None, _output("RUN-imputed")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fill missing cells with posterior means, and write draws and intervals."""
    names = ("completed.csv", "cells.csv", "draws.csv")
    folder = _target(run, "imputed", output, overwrite, names, data)
    found = _loaded(run, model, trust).impute(data, **asked)
    tables = dict(zip(names, (found.completed, found.cells, found.draws), strict=True))
    _written(folder, overwrite, tables, lambda path: None)


@app.command()
@_of_run
@_reading("score")
def score(
    run: Run,
    data: RowsOrFitted = None,
    *,
    asked: dict[str, Any],
    model: Function = None,
    trust: Trust = False,
    output: Annotated[Path | None, _output("RUN-scored")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate log p(x) of each row with its error, to find unusual rows."""
    folder = _target(run, "scored", output, overwrite, ("scores.csv",), data)
    table = _loaded(run, model, trust).score(data, **asked)
    _say_notes(table)
    _written(folder, overwrite, {"scores.csv": table}, lambda path: None)
    if asked["quantile"] is not None:
        typer.echo(f"{int(table['flagged'].sum())} of {len(table)} rows are flagged.")


@app.command()
@_of_run
@_reading("embed")
def embed(
    run: Run,
    data: RowsOrFitted = None,
    *,
    asked: dict[str, Any],
    model: Function = None,
    trust: Trust = False,
    output: Annotated[Path | None, _output("RUN-embedded")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write each row's latents, as means and sds; for a mixture, its components' probabilities."""
    from elbowroom.report import outcomes

    folder = _target(run, "embedded", output, overwrite, ("latents.csv",), data)
    fit = _loaded(run, model, trust)
    table = fit.embed(data, **asked)
    if "k_hat" in table and table["k_hat"].isna().all():
        typer.echo(
            "note: these are the guide's own means and sds, which no weights correct, as the rows "
            "are many and wide; give --draws 200 to have them corrected, which takes longer."
        )
    draw = outcomes.draw_latents(fit, data, table)
    _written(folder, overwrite, {"latents.csv": table}, draw)


@app.command()
def demo(output: Annotated[Path | None, _output("runs/demo")] = None) -> None:
    """Fit a regression twice: by a guide to trust, and by one not to trust (under a minute)."""
    from elbowroom.report import demo, terminal
    from elbowroom.run.output import check_target

    folder = output or Path("runs") / "demo"
    for name in demo.FOLDERS:
        check_target(folder / name, overwrite=True)
    terminal.show_heading("1. A fit that is trusted", f"{demo.MODEL}, {demo.SHOWN.formula}")
    trusted = demo.trusted_fit(folder)
    terminal.show_summary(trusted.summary())
    terminal.show_verdict(trusted.verdict)
    terminal.show_heading(
        "2. A guide that is not", f"{demo.SHOWN.guide} by stochastic gradients, the same data"
    )
    with terminal.progress(demo.SHOWN.guide) as report:
        doubtful = demo.doubtful_fit(folder, report)
    terminal.show_verdict(doubtful.verdict)
    terminal.show_heading("3. What it would have done to the answer", "90% intervals")
    terminal.show_answers(demo.answers(trusted, doubtful), demo.SHOWN.guide)
    terminal.show_saved(folder)
    terminal.show_heading("Go on with", "")
    for command in demo.COMMANDS:
        typer.echo(f"  {command}")


def main() -> None:
    """Runs the command line; a user's mistake is one line, without a traceback."""
    _with_docstrings()
    with streams.guarded():
        code = _run()
        if not streams.shown() and streams.failure() is not None:
            streams.say(f"error: standard output could not be written: {streams.failure()}.")
            code = code or 1
    sys.exit(code)


def _run() -> Any:
    """Runs the command; gives its exit code."""
    try:
        _check_arguments(sys.argv[1:])
        _check_place()
        app(prog_name="elbowroom")
    except ElbowroomError as error:
        return _failed(str(error), 2 if isinstance(error, OptionError) else 1)
    except OSError as error:  # of what no reader or writer has said
        cause = error.strerror or str(error)
        named = f"{error.filename}: {cause}" if error.filename else cause
        return _failed(f"{named.rstrip('.')}.", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        return _failed("the memory is used up; give fewer draws, rows or latents.", 1)
    except SystemExit as leaving:
        return leaving.code
    return 0


OUT_OF_MEMORY = "out of memory|allocate memory|not enough memory"
"""What torch says of memory that it does not get, as a regular expression."""


def _failed(message: str, code: int) -> int:
    streams.say(printable(f"error: {message}"))
    return code


def _check_arguments(arguments: Iterable[str]) -> None:
    """Refuses control characters, which messages would hand on to the terminal.

    Raises:
        OptionError: At the first argument with some.
    """
    for each in arguments:
        if any(category(letter) == "Cc" and letter not in "\t\n\r" for letter in each):
            raise OptionError(
                f"the argument '{shown(each)}' has control characters; leave them out, or rename "
                "the file or column."
            )


def _check_place() -> None:
    """Refuses to begin in a folder that is gone, where libraries end the process.

    Raises:
        RunFolderError: If it is.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise RunFolderError(
            "the current folder was removed or cannot be read; change to another (cd)."
        ) from error


def _with_docstrings() -> None:
    """Starts Python again where it has left out docstrings (-OO), which Pyro cannot do without."""
    if sys.flags.optimize > 1:
        folder = str(Path(elbowroom.__file__).parents[1])
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        changed = {"PYTHONOPTIMIZE": "", "PYTHONPATH": os.pathsep.join(paths)}
        words = [sys.executable, "-P", "-m", "elbowroom", *sys.argv[1:]]
        os.execve(sys.executable, words, {**os.environ, **changed})


if __name__ == "__main__":
    main()
