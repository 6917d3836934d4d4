"""A run folder read back as a fit that predicts."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from elbowroom.density.circles import cut_opposite
from elbowroom.draws.proposal import Proposal
from elbowroom.engines.protocol import Fitted, Trained
from elbowroom.engines.settings import make_settings
from elbowroom.engines.task import Plan, Progress, Task
from elbowroom.errors import ModelError, OptionError, RunFolderError, unknown
from elbowroom.guides import Guide, Start, guides_for
from elbowroom.guides.sites import GuideSites, read_guide
from elbowroom.guides.space import trace_model
from elbowroom.models import Model, get_model, model_summaries
from elbowroom.options import make_options, option_names
from elbowroom.pipeline.fitting import ENUMERATION, Work, bind_model, by_row, resolve_guide, started
from elbowroom.problem.bound import (
    Problem,
    bind,
    resolve_model,
)
from elbowroom.problem.informed import restored
from elbowroom.problem.isolation import Parameters
from elbowroom.problem.precision import resolve_dtype
from elbowroom.problem.process import alone
from elbowroom.result import Fit
from elbowroom.run import folder as run_folder
from elbowroom.run.files import reading, unusable
from elbowroom.run.formats import by_prefix
from elbowroom.run.output import REQUEST, UNFINISHED
from elbowroom.run.unfinished import read_request

SMALL = 1000
"""A size that any option may have."""


def names_run(target: str) -> bool:
    """Whether a word of the command line is a run folder, or the path of one, and not a model.

    Example:
        >>> names_run("runs/regression"), names_run("vae"), names_run("models/own.py:model")
        (True, False, False)
    """
    if target in model_summaries() or ".py" in Path(target).name:
        return (Path(target) / "config.json").is_file()
    return Path(target).is_dir() or len(Path(target).parts) > 1


@alone
def load(
    path: str | Path,
    model: Callable[..., Any] | None = None,
    guide: Any = None,
    trust: bool = False,
) -> Fit:
    """Reads a run folder back as a fit that predicts. No code in the folder is run.

    Args:
        path: The run folder.
        model: The Pyro function, if the run was of a user's own model.
        guide: The guide function or AutoGuide class, if it was the user's own.
        trust: Whether to evaluate options of the run that contain code, such as a formula with
            function calls.

    Raises:
        RunFolderError: If the folder cannot be read, or contains code and `trust` is not given.
        ModelError: If the run is of a user's own model or guide, and it is not given.
    """
    run = run_folder.load(path, trust)
    config, folder = run.config, Path(path)
    asked_in, fitted_in = folder / "config.json", folder / "params.safetensors"
    if config.registered_model:
        with reading(asked_in, "model"):
            declaration = get_model(config.model)
    elif model is None:
        raise ModelError(
            f"'{path}' is a run of your own model '{config.model}', and a run folder contains "
            "no code; give the model by --model FILE.py:FUNCTION, or er.load(path, model=...)."
        )
    else:
        declaration = resolve_model(model)
    with reading(asked_in, "options"):
        options = trusted_options(path, declaration, config.options, trust)
        if not trust and options is not None:
            _check_sizes(vars(options), run)
    with reading(asked_in, "settings"):
        settings = make_settings({}, config.settings)
    if isinstance(run.data, pd.DataFrame):
        run.data.attrs.update(config.attributes)
    dtype = resolve_dtype(settings.dtype, declaration.function)
    device, size = torch.device("cpu"), settings.batch_size
    with reading(folder, "its data and options"):
        problem = bind(declaration, run.data, options, dtype, device, size)
        problem = cut_opposite(problem)
    with reading(asked_in, "reparameterised"):
        sites_of_model = [site.name for site in problem.space.sites]
        for name in config.reparameterised:
            if name not in sites_of_model:
                raise unknown("latent site", name, sites_of_model)
    with reading(fitted_in, "form"):
        forms = restored(by_prefix(run.parameters, "form"))
        problem = problem.reparameterise(config.reparameterised, forms)
    with reading(fitted_in, "start"):
        start = Start(**by_prefix(run.parameters, "start"))
    named = {*guides_for(problem.model_name), ENUMERATION}
    if guide is None and config.guide not in named:
        raise ModelError(
            f"'{path}' was fitted with your own guide '{config.guide}', whose code is not in "
            "the run folder; give it as er.load(path, guide=...)."
        )
    with reading(asked_in, "guide"):
        fitted_guide = resolve_guide(guide or config.guide, problem)
        problem = problem.for_guide(fitted_guide)
    with reading(fitted_in):
        parameters, called, sites = _restored(problem, fitted_guide, start, run.parameters)
    with reading(fitted_in, "proposal"):
        proposal = _proposal(run.parameters)
    outcome = run.run
    trained = Trained(
        outcome.status,
        outcome.reason,
        run.history["elbo"].to_numpy(),
        run.history["learning_rate"].to_numpy(),
        outcome.skipped,
        outcome.seconds,
        outcome.parameters,
    )
    fitted = Fitted(
        problem=problem,
        guide=fitted_guide,
        callable=called,
        sites=sites,
        start=start,
        parameters=parameters,
        trained=trained,
        objective=config.objective,
        engine=config.engine,
        point=fitted_guide.point or sites.point,
    )
    return Fit(
        fitted=by_row(fitted),
        settings=settings,
        seed=config.seed,
        evidence=outcome.evidence,
        complete=lambda: (run.posterior, []),
        measures=run.diagnostics,
        remarks=tuple(outcome.notes),
        origin=outcome.origin,
        proposal=proposal,
    )


def _check_sizes(options: Mapping[str, Any], run: run_folder.Run) -> None:
    """Sees that no option asks for more than the folder holds numbers.

    Sizes of layers and numbers of components are options, from which a model makes its parameters:
    these are in the folder, so that none can be larger, nor the weights between two layers.

    Raises:
        OptionError: If one is.
    """
    cells = run.data.size if isinstance(run.data, pd.DataFrame) else 0
    most = SMALL + cells + sum(value.numel() for value in run.parameters.values())
    for name, value in options.items():
        sizes = [v for v in (value if isinstance(value, tuple) else [value]) if type(v) is int]
        pairs = [first * second for first, second in pairwise(sizes)]
        if max([*sizes, *pairs], default=0) > most:
            raise OptionError(f"'{name}' is larger than what was fitted")


def trusted_options(
    path: str | Path, declaration: Model, given: Mapping[str, Any], trust: bool
) -> Any:
    """The options of the model in a run folder; other settings among them are left out.

    Raises:
        RunFolderError: If they contain code, such as a formula with function calls, and `trust` is
            not given.
    """
    if declaration.options is None:
        return None
    known = option_names(declaration.options)
    options = make_options(declaration.options, {k: v for k, v in given.items() if k in known})
    code = declaration.code_in(options) if declaration.code_in is not None else None
    if code is not None and not trust:
        raise RunFolderError(
            f"loading '{path}' would run code, '{code}'; if you trust the run, give --trust, or "
            "er.load(path, trust=True)."
        )
    return options


@alone
def resume(
    path: str | Path,
    model: str | Callable[..., Any] | Model | None = None,
    guide: Any = None,
    trust: bool = False,
    *,
    announce: Callable[[Plan], None] | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
    **changes: Any,
) -> Fit:
    """Continues a run that was killed, was interrupted, or used up its steps.

    On a CPU the result is the same, bit for bit, as without the interruption; with other `steps`,
    up to the end of the first budget, where the run was checked for convergence.

    Args:
        path: The folder that `fit` kept its checkpoints in, or the run folder that took its place.
        model: The Pyro function, if the run was of a user's own model.
        guide: The guide function or AutoGuide class, if it was the user's own.
        trust: Whether to evaluate options of the run that contain code, such as a formula with
            function calls.
        announce: As for `fit`.
        progress: As for `fit`.
        report: As for `fit`.
        **changes: `steps` or `epochs`, to change where the run ends.

    Raises:
        RunFolderError: If there is nothing to continue, or another process continues it.
        ModelError: If the run is of a user's own model or guide, and it is not given.
    """
    request = read_request(Path(path), trust)
    asked, asked_in = request.asked, Path(path) / UNFINISHED / REQUEST
    other = sorted(set(changes) - {"steps", "epochs"})
    if other:
        raise OptionError(
            f"--{other[0].replace('_', '-')} cannot be changed with --resume; leave it out. Only "
            "--steps and --epochs can be changed."
        )
    if asked["registered_model"]:
        with reading(asked_in, "model"):
            declaration = get_model(asked["model"])
        with reading(asked_in, "options"):
            trusted_options(path, declaration, asked["options"], trust)
    elif model is None:
        raise ModelError(
            f"'{path}' is a run of your own model '{asked['model']}', and a run folder contains "
            f"no code; run 'elbowroom fit FILE.py:FUNCTION --resume {path}', or er.resume(path, "
            "model=...)."
        )
    else:
        declaration = resolve_model(model)
    if guide is None and asked["guide"] is None:
        raise ModelError(
            f"'{path}' was fitted with your own guide, whose code is not in the run folder; give "
            "it as er.resume(path, guide=...)."
        )
    options = dict(asked["options"])
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        options = {k: v for k, v in options.items() if k not in ("steps", "epochs")} | changes
    with reading(asked_in):
        problem, settings, _ = bind_model(declaration, request.data, options, guide)
        problem = started(problem, asked["start"], guide)
    task = Task(
        problem, settings, asked["seed"], asked["draws"], asked["keep_local"], announce, progress
    )
    work = Work(
        guide or asked["guide"], asked["engine"], asked["reference"], asked["fallback"], report
    )
    try:
        return work.kept(task, Path(path), None, changes=changes)
    except OptionError as error:
        if changes or guide is not None:  # which may be what is wrong
            raise
        raise unusable(asked_in, error) from error


def _proposal(saved: Mapping[str, Tensor]) -> Proposal | None:
    arrays = {name: value.numpy() for name, value in by_prefix(saved, "proposal").items()}
    return Proposal.of(arrays) if arrays else None


def _restored(
    problem: Problem, guide: Guide, start: Start, saved: Mapping[str, Tensor]
) -> tuple[Parameters, Callable[..., Any], GuideSites]:
    """Builds a guide again, and lets it and the model make their parameters."""
    values = by_prefix(saved, "parameter")
    with problem.session(0) as state:
        called = guide.build(problem.space, start)
        sites = read_guide(called, problem.arguments, problem.space)
        trace_model(problem.function, problem.arguments)
        store = dict(pyro.get_param_store().named_parameters())
        missing = sorted(set(store) - set(values))
        if missing:
            raise ValueError(
                f"the guide's parameter '{missing[0]}' is missing; is it the guide that was fitted?"
            )
        for name, made in store.items():
            if values[name].shape != made.shape or not values[name].isfinite().all():
                raise ValueError(
                    f"the parameter '{name}' has the shape {tuple(values[name].shape)} where the "
                    f"guide's has {tuple(made.shape)}, or is not finite"
                )
    return Parameters(state, {name: values[name] for name in store}), called, sites
