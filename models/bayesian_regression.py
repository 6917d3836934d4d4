"""Regression: a linear predictor, a link and a family, with priors scaled to the data.

With z the predictors, each centred and divided by its standard deviation, o the offset, and m, s
the level and the unit of the linear predictor,

    y[i] ~ Family(η[i], parameters)
    η[i] = m + s (a + z[i]·b) + o[i]
    a, b[j] ~ Normal(0, 2.5)

the weakly informative defaults of rstanarm (Goodrich, Gabry, Ali and Brilleman, 2020, "rstanarm:
Bayesian applied regression modeling via Stan"). For families whose link is the identity, m and s
are the mean and the standard deviation of the response (of its logarithm, for `lognormal`); where
the link is the logarithm, m is that of the mean response, and s is one; for probabilities m is zero
and s is one. What is reported is in the user's units: `intercept`, `coefficients` (the change of η
for one unit of the column) and the family's parameters. Without an intercept nothing is centred,
and m is zero. For the family `normal`, the default,

    y[i] ~ Normal(η[i], s τ)
    τ ~ Exponential(1)

With `--priors conjugate`, the posterior and each update of coordinate ascent have a closed form:

    τ² ~ InverseGamma(0.5, 0.01)
    a, b[j] ~ Normal(0, 2.5 τ)

so that τ is between 0.06 and 4.5 with prior probability 0.95.

Group effects add w[i]·u[g[i]] to η[i], with u[g] ~ Normal(0, diag(τ) R diag(τ)): of each effect's
standard deviation, in units of s / sd(w), the prior is a half t of 3 degrees of freedom and scale
2.5; of the correlations R it is LKJ(1). Classes with linear predictors of their own have their own
u, τ and R.

Smooth terms add functions of a column with random coefficients; see `_smooth_bases` and
`_smooth_effects`.

Of a censored row the probability of what is known of it takes the place of the density; of a row
that is truncated to [l[i], h[i]] the density is divided by P(l[i] ≤ y[i] ≤ h[i]).

A formula of a parameter θ of the family, such as `sigma ~ x`, gives each row its own: with f the
logarithm, the logit for probabilities, or the identity for any number,

    f(θ[i]) = f(θ) + z[i]·c,  c[j] ~ Normal(0, 2.5)

where θ has the prior that it has without a formula.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from elbowroom.data.bundled import load_dataset
from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import OptionError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._columns import cells
from elbowroom.models._distributions import Weighted
from elbowroom.models._expectations import effects_of, expected, of_population
from elbowroom.models._families import FAMILIES, Family, Predicted, thresholds_of
from elbowroom.models._formula import (
    Design,
    columns_of,
    columns_used,
    read_design,
)
from elbowroom.models._formula_text import code_in, columns_named
from elbowroom.models._group_effects import added, described, sample_group_effects
from elbowroom.models._groups import Groups
from elbowroom.models._limits import Censored, Truncated
from elbowroom.models._outcome_checks import (
    chosen_family,
    chosen_link,
    doubts_of,
    limits_of,
    scaling_of,
)
from elbowroom.models._parameter_formulas import (
    ParameterFormula,
    ParameterRows,
    dims_of,
    read_parameters,
    sample_formulas,
)
from elbowroom.models._prior_words import own_priors, priors_in_words
from elbowroom.models._recipes import line
from elbowroom.models._regression_options import Options
from elbowroom.models._remedies import remedies
from elbowroom.models._responses import check_rows
from elbowroom.models._shrinkage import WEIGHTS, noise_of, read_r2d2
from elbowroom.models._smooth_effects import described as smooths_described
from elbowroom.models._smooth_effects import sample_smooths, too_few_functions
from elbowroom.models._smooths import Smooth
from elbowroom.models._term_priors import CONJUGATE, PRIOR_SCALE, Priors, priors_of

SCALING = (
    *("centre", "spread", "response_centre", "response_spread", "response_mean"),
    *("parameter_centre", "parameter_spread"),
)
"""Arguments that new rows have from the fitted ones."""
CHOSEN = (
    *("conjugate", "family", "link", "quantile", "term_priors", "groups", "smooths"),
    "parameter_formulas",
)
"""Arguments that say which model it is."""


def bayesian_regression(
    predictors: Tensor,
    response: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    response_centre: Tensor,
    response_spread: Tensor,
    has_intercept: bool = True,
    conjugate: bool = False,
    family: str = "normal",
    link: str = "identity",
    quantile: float = 0.5,
    term_priors: Priors = Priors(),  # noqa: B008  frozen
    groups: tuple[Groups, ...] = (),
    group_codes: Tensor | None = None,
    group_values: Tensor | None = None,
    smooths: tuple[Smooth, ...] = (),
    smooth_values: Tensor | None = None,
    parameter_formulas: tuple[ParameterFormula, ...] = (),
    parameter_predictors: Tensor | None = None,
    parameter_centre: Tensor | None = None,
    parameter_spread: Tensor | None = None,
    response_mean: Tensor | None = None,
    offset: Tensor | None = None,
    weights: Tensor | None = None,
    trials: Tensor | None = None,
    levels: int = 0,
    status: Tensor | None = None,
    upper: Tensor | None = None,
    truncated_lower: Tensor | None = None,
    truncated_upper: Tensor | None = None,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        predictors: The design matrix without its intercept, in the user's units, (rows, columns).
        response: (rows,), or None to draw it.
        centre: What is subtracted from each predictor, (columns,).
        spread: What each predictor is divided by, (columns,).
        response_centre: The level of the linear predictor, m, ().
        response_spread: Its unit, s, ().
        has_intercept: Whether there is an intercept.
        conjugate: Whether the priors are conjugate.
        family: A name in `elbowroom.models._families.FAMILIES`.
        link: One of its links.
        quantile: That the family `quantile` predicts.
        term_priors: Those that are not the defaults.
        groups: The group effects.
        group_codes: The group of each row, (rows, groups).
        group_values: What the effects of a row are multiplied by, (rows, effects).
        smooths: The smooth terms, of which splines have a slope among the predictors.
        smooth_values: Of their functions beside each other, (rows, functions).
        parameter_formulas: Those of the family's parameters that differ between rows.
        parameter_predictors: The columns of these formulas beside each other, (rows, their number).
        parameter_centre: What is subtracted from each, (their number,).
        parameter_spread: What each is divided by, (their number,).
        response_mean: The mean of the response, where it is the unit of a parameter, ().
        offset: What is added to the linear predictor, (rows,).
        weights: How often each row counts, (rows,).
        trials: Of which the response counts successes, (rows,).
        levels: How many there are of the response, if it is one of several. Between those in an
            order, thresholds are in the place of the intercept; classes have a linear predictor
            each but for the first one, and intercepts and coefficients of their own.
        status: What is known of each response, (rows,); see `elbowroom.models._limits`.
        upper: The upper ends of those known by an interval, (rows,).
        truncated_lower: Below which there are no rows, (rows,).
        truncated_upper: Above which there are none, (rows,).
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    rows, columns = predictors.shape
    own = FAMILIES[family]
    each_class = (levels - 1,) if own.classes else ()
    level = response_centre
    width: Any = PRIOR_SCALE
    parameters: dict[str, Any] = {}
    if conjugate:
        inverse_gamma = dist.InverseGamma(torch.tensor(CONJUGATE.shape), CONJUGATE.scale)
        noise = pyro.sample("standardised_variance", inverse_gamma).sqrt()
        width, parameters["sigma"] = PRIOR_SCALE * noise, noise
    elif term_priors.shrinkage is not None:  # in units of the noise
        parameters |= term_priors.sampled(own.parameters)
    if own.levels:
        shares = pyro.sample("baseline", dist.Dirichlet(torch.ones(levels)))
        parameters["thresholds"] = thresholds_of(shares, link)
    elif has_intercept and term_priors.intercept is None:
        prior = dist.Normal(torch.zeros(each_class), width).to_event(len(each_class))
        height = pyro.sample("standardised_intercept", prior)
        level = response_centre + response_spread * height
    noise_sd = noise_of(own, link, parameters)
    slopes = term_priors.slopes((*each_class, columns), width, noise_sd)
    coefficients = response_spread * slopes / spread  # (columns,), or (classes - 1, columns)
    if has_intercept and term_priors.intercept is not None:
        away = (coefficients * centre).sum(-1) - response_centre
        shift = term_priors.intercept.distribution(away / response_spread)
        prior = shift.to_event(len(each_class))
        height = pyro.sample("standardised_intercept", prior)
        level = response_centre + response_spread * height
    effects = sample_group_effects(groups, response_spread, term_priors, *each_class)
    curves = sample_smooths(smooths, response_spread, term_priors)
    units: dict[str, Any] = {"spread": response_spread, "mean": response_mean}
    if not conjugate and term_priors.shrinkage is None:
        parameters |= term_priors.sampled(own.parameters)
    if own.levels:
        thresholds = parameters["thresholds"] + (coefficients * centre).sum(-1)
        pyro.deterministic("thresholds", thresholds)
    elif has_intercept:
        pyro.deterministic("intercept", level - (coefficients * centre).sum(-1))
    if columns:
        pyro.deterministic("coefficients", coefficients)
    varying = sample_formulas(
        parameter_formulas, own, parameter_centre, parameter_spread, term_priors
    )
    constant = {each.name for each in own.parameters} - {each.formula.name for each in varying}
    for each in own.parameters:
        if each.unit:
            parameters[each.name] = units[each.unit] * parameters[each.name]
            if each.name in constant:
                pyro.deterministic(each.name, parameters[each.name])
    for sampled in varying:
        sampled.report(parameters[sampled.formula.name])
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        x = pyro.subsample(predictors, event_dim=1)
        eta = level + (x - centre) @ (coefficients.mT if each_class else coefficients)
        if group_codes is not None and group_values is not None:
            codes, values = (pyro.subsample(x, event_dim=1) for x in (group_codes, group_values))
            eta = eta + added(groups, effects, codes, values)
        if smooth_values is not None:
            functions = pyro.subsample(smooth_values, event_dim=1)
            eta = eta + functions @ torch.cat(curves)
        if offset is not None:
            known = _of_rows(offset)
            eta = eta + (known.unsqueeze(-1) if each_class else known)
        if parameter_predictors is not None:
            z = pyro.subsample(parameter_predictors, event_dim=1)
            for sampled in varying:
                name = sampled.formula.name
                parameters[name] = sampled.of_rows(parameters[name], z)
        fn = own.distribution(Predicted(eta, link, parameters, _of_rows(trials), quantile))
        tails: Any = own.tails
        if status is not None:
            fn = Censored(fn, tails, _of_rows(status), _of_rows(upper))
        if truncated_lower is not None:
            limits = _of_rows(truncated_lower), _of_rows(truncated_upper)
            fn = Truncated(fn, tails, *limits)
        if weights is not None:
            fn = Weighted(fn, _of_rows(weights))
        told: Any = {"linear_predictor": eta}
        pyro.sample("response", fn, obs=_of_rows(response), infer=told)


def _of_rows(values: Tensor | None) -> Any:
    """Those of the rows that are drawn, (rows,)."""
    return None if values is None else pyro.subsample(values, event_dim=0)


def responses(
    arguments: Mapping[str, Any], quantities: Mapping[str, Tensor], predictors: Tensor
) -> Any:
    """The distribution of the response of rows at each draw, (draws, rows).

    Args:
        arguments: Of the model that was fitted, without formulas of parameters, group effects,
            offset or trials.
        quantities: Draws of what is reported, each (draws, ...).
        predictors: New rows, in the user's units, (rows, columns).
    """
    family = FAMILIES[arguments["family"]]
    parameters = {each.name: quantities[each.name].unsqueeze(-1) for each in family.parameters}
    eta = quantities["intercept"].unsqueeze(-1) + quantities["coefficients"] @ predictors.mT
    eta = eta.mT if family.classes else eta  # (draws, rows), or (draws, rows, classes - 1)
    return family.distribution(
        Predicted(eta, arguments["link"], parameters, quantile=arguments["quantile"])
    )


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used; the message names it.
        OptionError: If both `formula` and `response` are given, or neither, or the family does not
            take the response.
    """
    known = [] if options.weights is None else [options.weights]
    several = None if options.family is None else FAMILIES[options.family].several
    design = read_design(
        table, options, training, "bayesian_regression", leave_out=known, several=several,
        grouped=True, draw_groups=options.new_groups == "draw",
    )  # fmt: skip
    if options.new_groups == "draw" and design.groups is None:
        raise OptionError(
            "--new-groups draw would have no effect: the formula has no group effects; leave it "
            "out."
        )
    family = chosen_family(options.family, design)
    formulas = _parameter_rows(table, options, training, family, design)
    arguments: dict[str, Any] = {"predictors": design.predictors, "response": design.response}
    if training is None:
        link = chosen_link(options.link, family)
        _check_conjugate(options, design, family.name)
        scaling = {**scaling_of(design, family, link), **formulas.scaling()}
        chosen = {
            "conjugate": options.priors == "conjugate", "family": family.name, "link": link,
            "quantile": 0.5 if options.quantile is None else options.quantile,
            "term_priors": priors_of(
                options.own_priors, design, family, scaling, formulas.spreads(),
                read_r2d2(options.priors),
            ),
            "parameter_formulas": formulas.formulas,
            "groups": () if design.groups is None else design.groups.groups,
            "smooths": () if design.smooths is None else design.smooths.smooths,
        }  # fmt: skip
        if options.quantile is not None and family.name != "quantile":
            raise OptionError("--quantile would have no effect: it is for --family quantile.")
        doubts = doubts_of(design, family, options.family is not None)
    else:
        scaling = {name: v for name, v in training.arguments.items() if name in SCALING}
        chosen, doubts = {name: training.arguments[name] for name in CHOSEN}, ()
        if design.groups is not None:
            chosen["groups"] = design.groups.groups
    arguments |= {**scaling, "has_intercept": design.has_intercept, **chosen, **design.rows}
    arguments |= limits_of(design, family)
    if family.several:
        arguments["levels"] = len(design.levels)
    if design.offset is not None:
        arguments["offset"] = design.offset
    if design.groups is not None:
        arguments |= {"group_codes": design.groups.codes, "group_values": design.groups.values}
        doubts = (*design.groups.said, *doubts)
    if design.smooths is not None:
        arguments["smooth_values"] = design.smooths.values
    if formulas.predictors is not None:
        arguments["parameter_predictors"] = formulas.predictors
    if known:
        arguments["weights"] = _weights(table, known[0], training is not None)
    classes = len(design.levels) - 1 if family.classes else 0
    dims, coords, internal = described(arguments["groups"], classes)
    of_smooths, hidden = smooths_described(arguments["smooths"])
    if family.levels:
        coords |= {"threshold": _between(design)}
    of_class = ("level",) if family.classes else ()
    if family.classes:
        coords |= {"level": list(design.levels[1:])}
    return Prepared(
        arguments=arguments,
        dims={
            **dims,
            **of_smooths,
            "predictors": (ROWS, "predictor"),
            "centre": ("predictor",),
            "spread": ("predictor",),
            "coefficients": (*of_class, "predictor"),
            "standardised_coefficients": (*of_class, "predictor"),
            **dict.fromkeys(("response", "offset", "weights", *design.rows), (ROWS,)),
            **dict.fromkeys(INTERNAL[2:], ()),
            **dict.fromkeys(("intercept", "standardised_intercept"), of_class),
            **dims_of(formulas.formulas),
            WEIGHTS: ("predictor",),
            "thresholds": ("threshold",),
            "baseline": ("class",),
        },
        coords={
            "predictor": design.columns,
            **{each.dim: each.columns for each in formulas.formulas},
            **coords,
            **({"class": list(design.levels)} if family.several else {}),
        },
        columns={"response": design.name, "predictors": tuple(design.columns)},
        doubts=(*design.said, *doubts),
        internal=(
            *internal,
            *hidden,
            WEIGHTS,
            *(name for each in formulas.formulas for name in each.hidden),
        ),
        own_priors=own_priors(arguments, {"predictor": design.columns}),
        effects=effects_of(
            table if training is None else training.table, options.parameter, design, arguments
        ),
    )


def _parameter_rows(
    table: pd.DataFrame,
    options: Options,
    training: Training | None,
    family: Family,
    design: Design,
) -> ParameterRows:
    """The columns of the formulas of the family's parameters."""
    source, new = (table, None) if training is None else (training.table, table)
    of = partial(columns_of, source, new, "bayesian_regression")
    response = [design.name, *columns_named([design.name], source)]
    return read_parameters(options.parameter, family, of, new is not None, response)


def _between(design: Design) -> list[str]:
    """The names of thresholds, such as low|high."""
    return [f"{low}|{high}" for low, high in pairwise(design.levels)]


def _check_conjugate(options: Options, design: Design, family: str) -> None:
    """Sees that nothing is asked for beside conjugate priors that has no closed form with them."""
    if options.priors != "conjugate":
        return
    others = {
        f"--family {family}": family != "normal", "--prior": options.prior is not None,
        "--weights": options.weights is not None, "offset()": design.offset is not None,
        "censored()": design.form == "censored", "truncated()": design.form == "truncated",
        "group effects": design.groups is not None, "smooth terms": design.smooths is not None,
        "--parameter": options.parameter is not None,
    }  # fmt: skip
    for name, given in others.items():
        if given:
            raise OptionError(
                f"--priors conjugate goes with the family normal and nothing else; leave out "
                f"{name}, or give --priors weak."
            )


def _weights(table: pd.DataFrame, name: str, new: bool) -> Tensor:
    """The weights of rows, (rows,); new ones may have none."""
    if new and name not in table:
        return torch.ones(len(table), dtype=torch.float64)
    weights = cells(numeric_columns(align_columns(table, [name]), allow_constant=True))[:, 0]
    check_rows(weights < 0, weights, name, "a weight must be 0 or more.")
    return weights


def picture(fit: Callable[..., Any]) -> Any:
    """Rows with the band of their mean and of new rows; intervals of all coefficients."""
    from elbowroom.models._pictures import BLUE, GREY, ORANGE, band, draws_of, panels

    table = load_dataset("diabetes")
    own = fit("bayesian_regression", table, formula="progression ~ bmi", seed=1, draws=20_000)
    figure, (left, right) = panels(2, 9.6)
    x = np.linspace(table["bmi"].min(), table["bmi"].max(), 80)
    lines = draws_of(own, "intercept")[:, None] + draws_of(own, "coefficients") * x
    left.scatter(table["bmi"], table["progression"], s=9, color=GREY, alpha=0.5, lw=0, label="rows")
    band(left, x, own.predict(pd.DataFrame({"bmi": x})), BLUE, "a new row, 90%")
    low, high = np.quantile(lines, [0.05, 0.95], axis=0)
    left.fill_between(x, low, high, color=ORANGE, alpha=0.6, lw=0, label="the mean, 90%")
    left.plot(x, lines.mean(0), color="black", lw=1)
    left.set(xlabel="body mass index, bmi (kg/m²)", ylabel="disease progression after a year")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    whole = fit("bayesian_regression", table, response="progression", seed=1)
    names = list(whole.problem.prepared.coords["predictor"])
    by_sd = draws_of(whole, "coefficients") * table[names].std().to_numpy()
    low, middle, high = np.quantile(by_sd, [0.05, 0.5, 0.95], axis=0)
    places = np.arange(len(names))[::-1]
    right.axvline(0, color=GREY, lw=0.8, ls=":")
    right.hlines(places, low, high, color=BLUE, lw=2.5, label="90% interval")
    right.plot(middle, places, "o", color=BLUE, ms=5, label="median")
    right.set_yticks(places, names)
    right.set(xlabel="change of progression for one sd of the column", ylabel="predictor")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


INTERNAL = (
    *("standardised_coefficients", "baseline", "standardised_intercept", "standardised_variance"),
    *sorted({p.site for family in FAMILIES.values() for p in family.parameters if p.unit}),
)
"""Latent sites that the user sees in their own units."""

register(
    Model(
        name="bayesian_regression",
        function=bayesian_regression,
        options=Options,
        prepare=prepare,
        observed="response",
        predicts="response",
        dataset="diabetes",
        needs=lambda table, options: columns_used(
            table, options, options.parameter, options.weights
        ),
        priors=priors_in_words,
        code_in=code_in,
        internal=INTERNAL,
        doubts_of=lambda arguments, draws: too_few_functions(arguments["smooths"], draws),
        expected=expected,
        of_population=of_population,
        verbs=("score", "effects"),
        of_probability=lambda arguments: FAMILIES[arguments["family"]].of_probability,
        population=(),  # the variance scales the coefficients' prior, and is the rows' own
        remedies=remedies,
        recipe=Recipe(line, {"formula": "y ~ a + b"}),
        picture=picture,
    ),
    __name__,
)
