"""A run folder read back as a fit that predicts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from elbowroom.assess.evidence import Evidence
from elbowroom.density.circles import cut_opposite
from elbowroom.draws.proposal import Proposal
from elbowroom.engines.protocol import Fitted, Trained
from elbowroom.engines.settings import make_settings
from elbowroom.engines.task import Plan, Progress, Task
from elbowroom.errors import ModelError, OptionError, RunFolderError
from elbowroom.guides import Guide, Start, guides_for
from elbowroom.guides.sites import GuideSites, read_guide
from elbowroom.guides.space import trace_model
from elbowroom.models import Model, get_model
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
from elbowroom.result import Fit
from elbowroom.run import folder as run_folder
from elbowroom.run.unfinished import read_request


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
    run = run_folder.load(path)
    config = run.config
    if config["registered_model"]:
        declaration = get_model(config["model"])
    elif model is None:
        raise ModelError(
            f"'{path}' is a run of your own model '{config['model']}', and a run folder contains "
            "no code; give the model by --model FILE.py:FUNCTION, or er.load(path, model=...)."
        )
    else:
        declaration = resolve_model(model)
    options = trusted_options(path, declaration, config["options"], trust)
    settings = make_settings({}, config["settings"])
    if isinstance(run.data, pd.DataFrame):
        run.data.attrs.update(config["attributes"])
    dtype = resolve_dtype(settings.dtype, declaration.function)
    batches = settings.batch_size is not None
    problem = bind(declaration, run.data, options, dtype, torch.device("cpu"), batches)
    problem = cut_opposite(problem)
    forms = restored(
        {
            name.removeprefix("form."): value
            for name, value in run.parameters.items()
            if name.startswith("form.")
        }
    )
    problem = problem.reparameterise(config.get("reparameterised", ()), forms)
    start = Start(
        **{
            name.removeprefix("start."): value
            for name, value in run.parameters.items()
            if name.startswith("start.")
        }
    )
    named = {*guides_for(problem.model_name), ENUMERATION}
    if guide is None and config["guide"] not in named:
        raise ModelError(
            f"'{path}' was fitted with your own guide '{config['guide']}', whose code is not in "
            "the run folder; give it as er.load(path, guide=...)."
        )
    fitted_guide = resolve_guide(guide or config["guide"], problem)
    problem = problem.for_guide(fitted_guide)
    parameters, called, sites = _restored(problem, fitted_guide, start, run.parameters)
    history = run.history
    trained = Trained(
        run.run["status"],
        run.run["reason"],
        history["elbo"].to_numpy(),
        history["learning_rate"].to_numpy(),
        run.run["skipped"],
        run.run["seconds"],
        run.run["parameters"],
    )
    name, why = config["objective"]
    fitted = Fitted(
        problem=problem,
        guide=fitted_guide,
        callable=called,
        sites=sites,
        start=start,
        parameters=parameters,
        trained=trained,
        objective=(name, why),
        engine=config["engine"],
        point=fitted_guide.point or sites.point,
    )
    return Fit(
        fitted=by_row(fitted),
        settings=settings,
        seed=config["seed"],
        evidence=_evidence(path, run.run["evidence"]),
        complete=lambda: (run.posterior, []),
        measures=run.diagnostics,
        remarks=tuple(run.run["notes"]),
        origin=run.run["origin"],
        proposal=_proposal(run.parameters),
    )


def _evidence(path: str | Path, plain: Mapping[str, Any]) -> Evidence:
    try:
        return Evidence.read(plain)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"'{path}': the evidence in run.json is damaged ({error!r}); fit again."
        ) from error


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
    request = read_request(Path(path))
    asked = request.asked
    other = sorted(set(changes) - {"steps", "epochs"})
    if other:
        raise OptionError(
            f"--{other[0].replace('_', '-')} cannot be changed with --resume; leave it out. Only "
            "--steps and --epochs can be changed."
        )
    if asked["registered_model"]:
        declaration = get_model(asked["model"])
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
    problem, settings, _ = bind_model(declaration, request.data, options, guide)
    problem = started(problem, asked.get("start"), guide)
    task = Task(
        problem, settings, asked["seed"], asked["draws"], asked["keep_local"], announce, progress
    )
    work = Work(
        guide or asked["guide"], asked["engine"], asked["reference"], asked["fallback"], report
    )
    return work.kept(task, Path(path), None, changes=changes)


def _proposal(saved: Mapping[str, Tensor]) -> Proposal | None:
    arrays = {
        name.removeprefix("proposal."): value.numpy()
        for name, value in saved.items()
        if name.startswith("proposal.")
    }
    return Proposal.of(arrays) if arrays else None


def _restored(
    problem: Problem, guide: Guide, start: Start, saved: Mapping[str, Tensor]
) -> tuple[Parameters, Callable[..., Any], GuideSites]:
    """Builds a guide again, and lets it and the model make their parameters."""
    values = {
        name.removeprefix("parameter."): value
        for name, value in saved.items()
        if name.startswith("parameter.")
    }
    with problem.session(0) as state:
        called = guide.build(problem.space, start)
        sites = read_guide(called, problem.arguments, problem.space)
        trace_model(problem.function, problem.arguments)
        store = dict(pyro.get_param_store().named_parameters())
        missing = sorted(set(store) - set(values))
        if missing:
            raise RunFolderError(
                f"the guide's parameter '{missing[0]}' is missing in the run folder; give the "
                "guide that was fitted, or fit again."
            )
    return Parameters(state, {name: values[name] for name in store}), called, sites
