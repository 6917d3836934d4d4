"""What every registered model and guide must do together; a new one is tested by being registered.

Each model declares a recipe, the small data that it is fitted to here: one that has none fails.
"""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

import elbowroom as er
from elbowroom.density.landscape import Landscape, explore
from elbowroom.engines.settings import Settings
from elbowroom.engines.task import Task
from elbowroom.errors import ElbowroomError
from elbowroom.guides import Guide, Needs, guides_for
from elbowroom.guides.sites import read_guide
from elbowroom.models import Recipe, get_model, model_summaries
from elbowroom.objectives import objectives
from elbowroom.objectives.elbo import (
    choose_objective,
    make_objective,
    marked,
)
from elbowroom.pipeline.fitting import bind_model, fit_task
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated
from elbowroom.result import Fit

STEPS, DRAWS, SEED = 30, 100, 1
ESTIMATES = 30
"""Of the ELBO, to compare objectives by."""
PRESENT = {
    "helmholtz_machine": {"recognition"},
    "mixture_density_network": {"bayes_by_backprop"},
    "bayesian_neural_network": {"bayes_by_backprop"},
    "bayesian_regression": {"coordinate_ascent", "structured"},
    "conjugate": {"coordinate_ascent", "exact"},
    "factor_analysis": {"coordinate_ascent", "em", "exact", "linear", "local"},
    "gaussian_mixture": {"collapsed", "coordinate_ascent", "em", "local"},
    "hierarchical_normal": set(),
    "conditional_vae": {"encoder", "local"},
    "vae": {"encoder", "local"},
}
DENSE = {"full_rank", "low_rank", "linear_response", "laplace", "pathfinder", "markov", "flow"}
GENERAL = {"map", "mle", "mean_field"} | DENSE
LIKELIHOOD = {"mle"}
"""Those that leave priors out."""
MODELS = list(model_summaries())


def recipe_of(model: str) -> Recipe:
    """What a model declares to be tested with."""
    recipe = get_model(model).recipe
    assert recipe is not None, f"models/{model}.py: give Model(...) a `recipe`"
    return recipe


LOCAL = {model for model in MODELS if recipe_of(model).local_latents}
"""Models with continuous latents for each row."""
GROUPED = {model for model in MODELS if get_model(model).population}
"""Models with groups, whose effects have no prior."""
FREE = sorted(GENERAL)


def often(model: str, guide: str) -> bool:
    """Whether a pair is tried where time is short: a model's own guides and some general ones.

    Each of those meets a few models, and each model a few of them.
    """
    if (model, guide) == ("factor_analysis", "coordinate_ascent"):  # twenty seconds
        return False
    own = guide not in GENERAL or guide in PRESENT.get(model, set())
    return own or (FREE.index(guide) + MODELS.index(model)) % 5 == 0


PAIRS = [
    pytest.param(
        model, guide, id=f"{model}-{guide}", marks=[pytest.mark.slow] * (not often(model, guide))
    )
    for model in MODELS
    for guide in guides_for(model, local_latents=model in LOCAL)
]


@cache
def begun(model: str, needs: Needs | None = None) -> tuple[Problem, Settings, Landscape]:
    """A model bound to its recipe, with what a guide needs, and where its fits begin."""
    recipe = recipe_of(model)
    options = {**recipe.options, "steps": STEPS}
    if needs is not None:
        options[needs.option] = needs.value
    problem, settings, _ = bind_model(model, recipe.table(), options)
    return problem, settings, explore(problem, settings.restarts, SEED)


def guide_of(model: str, name: str) -> Guide:
    return guides_for(model, local_latents=model in LOCAL)[name]


@cache
def fitted(model: str, guide: str) -> Fit:
    """The fit of a pair, which the test of what it leaves behind is the first to ask for."""
    declared = guide_of(model, guide)
    problem, settings, begin = begun(model, declared.needs)
    if "svi" not in declared.engines:
        settings = replace(settings, steps=None, given=settings.given - {"steps"})
    return fit_task(Task(problem, settings, SEED, DRAWS), declared, landscape=begin)


def test_no_model_or_guide_has_gone() -> None:
    assert set(model_summaries()) >= set(PRESENT)
    for model, own in PRESENT.items():
        general = GENERAL - DENSE - {"mean_field"} if model in LOCAL else GENERAL
        if model in LOCAL | GROUPED:
            general = general - LIKELIHOOD
        general = general if get_model(model).continuous else set()
        assert set(guides_for(model, local_latents=model in LOCAL)) >= own | general, model
    assert set(guides_for(None)) >= GENERAL
    assert set(objectives()) >= {"trace", "trace_graph", "trace_enum", "trace_mean_field"}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_recipe_and_says_whether_its_latents_are_local(model: str) -> None:
    problem, _, _ = begun(model)
    assert problem.space.local_continuous == (model in LOCAL)
    assert problem.space.subsampled is not None
    assert problem.space.subsampled.name == "rows"
    assert problem.observed in problem.space.observed


@pytest.mark.parametrize("model", MODELS)
def test_every_declaration_agrees_with_its_function(model: str) -> None:
    declared, (problem, _, _) = get_model(model), begun(model)
    known = {site.name for site in problem.space.sites} | set(problem.space.discrete)
    optional = set(problem.prepared.dims)
    for guide in guides_for(model, local_latents=model in LOCAL).values():
        optional |= {site.name for site in begun(model, guide.needs)[0].space.sites}
    assert set(declared.internal) <= known | optional
    assert declared.predicts in known | set(problem.space.observed)
    assert declared.dataset in er.dataset_names()
    assert model_summaries()[model].endswith(".")


def process_state() -> dict[str, Any]:
    return {
        "parameters": {k: v.detach().clone() for k, v in pyro.get_param_store().items()},
        "torch random": torch.get_rng_state(),
        "numpy random": np.random.get_state(legacy=False)["state"],
        "python random": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "torch validates": torch.distributions.Distribution._validate_args,
        "pyro settings": pyro.settings.get(),
    }


def same(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)
    return before == after


def check_schema(fit: Fit, guide: Guide) -> None:
    posterior = fit.posterior["posterior"]
    assert posterior.sizes["chain"] == 1
    assert posterior.sizes["draw"] == DRAWS
    assert list(posterior["draw"].values) == list(range(DRAWS))
    for name, values in posterior.data_vars.items():
        assert values.dims[:2] == ("chain", "draw"), name
        assert np.isfinite(values).all(), name
    assert {"log_p", "log_q"} <= set(fit.posterior["sample_stats"].data_vars)
    for group in ("observed_data", "posterior_predictive", "log_likelihood"):
        assert group in fit.posterior.children, group
    assert ("prior_predictive" in fit.posterior.children) != guide.likelihood
    assert (fit.problem.posterior is not None) == guide.likelihood
    observed = fit.problem.prepared.columns.get(fit.problem.observed, fit.problem.observed)
    for name in [observed] if isinstance(observed, str) else observed:
        predicted = fit.posterior["posterior_predictive"][name]
        assert predicted.dims == ("chain", "draw", *fit.posterior["observed_data"][name].dims)
    assert not set(posterior.data_vars) & set(fit.problem.model.internal)


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_every_pair_fits_saves_loads_and_leaves_no_trace(
    model: str, guide: str, tmp_path: Path
) -> None:
    declared = guide_of(model, guide)
    pyro.clear_param_store()
    pyro.param("the caller's", torch.tensor(3.0))
    begun(model, declared.needs)
    before = process_state()
    fit = fitted(model, guide)
    path = fit.save(tmp_path / "run")
    loaded = er.load(path)
    first, again = fit.sample(20, seed=3), loaded.sample(20, seed=3)
    after = process_state()
    for name in before:
        assert same(before[name], after[name]), name
    pyro.clear_param_store()

    assert fit.trained.status in ("budget", "converged", "exact")
    assert (fit.trained.parameters == 0) == (fit.trained.status == "exact")
    assert fit.engine in declared.engines
    if fit.engine == "svi":
        assert len(fit.elbo_history) == (0 if fit.trained.status == "exact" else STEPS)
    assert fit.verdict.reasons
    assert np.isfinite(fit.elbo_history).all()
    assert np.isnan(fit.diagnostics["elbo"]) == declared.point
    assert np.isfinite(fit.diagnostics["elbo"]) or declared.point
    check_schema(fit, declared)
    assert set(first.data_vars) == set(again.data_vars)
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name], again[name], err_msg=str(name))
    assert loaded.diagnostics.keys() == fit.diagnostics.keys()
    assert loaded.objective == tuple(fit.objective)


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_every_objective_that_a_guide_is_allowed_estimates_the_same_elbo(
    model: str, guide: str
) -> None:
    """Where the guide begins; one that left a term out would be off by more than its noise."""
    declared = guide_of(model, guide)
    problem, _, begin = begun(model, declared.needs)
    problem = problem.for_guide(declared)
    space, arguments = problem.space, problem.arguments
    estimates = {}
    with isolated(SEED, None, problem.dtype, problem.device):
        called = declared.build(space, begin.start())
        sites = read_guide(called, arguments, space)
        continuous = {site.name for site in space.sites}
        assert continuous <= sites.names <= continuous | set(space.discrete)
        chosen, _ = choose_objective(None, declared.elbo, space, sites)
        for name in objectives():
            try:
                choose_objective(name, declared.elbo, space, sites)
            except ElbowroomError:
                continue
            objective, pair = make_objective(name, 1, space), marked(name, problem.function, called)
            elbo = [-objective.loss(*pair, **arguments) for _ in range(ESTIMATES)]
            estimates[name] = np.mean(elbo), np.std(elbo) / ESTIMATES**0.5
    assert chosen in estimates
    wanted, wanted_error = estimates[chosen]
    assert np.isfinite(wanted)
    for name, (found, error) in estimates.items():
        # Of exact estimates, the rounding of some hundred float32 terms.
        noise = 4 * np.hypot(error, wanted_error) + 1e-4 * abs(wanted)
        assert abs(found - wanted) < noise, name


@pytest.mark.parametrize("model", MODELS)
def test_every_model_predicts_new_rows_with_its_own_guide(model: str) -> None:
    fit = fitted(model, next(iter(guides_for(model, model in LOCAL))))
    new = recipe_of(model).table().iloc[:7]
    predicted = fit.predict(new)
    assert len(predicted) == 7
    assert np.isfinite(predicted.to_numpy(dtype=float)).all()
    pd.testing.assert_frame_equal(predicted, fit.predict(new))
