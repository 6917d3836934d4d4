"""The registry of models: one file a model, found by its name.

A model file contains an ordinary Pyro function and registers a `Model` for it. Listing the
names reads no model file's code (the first line of its docstring is its summary), so that
it costs nothing; `get_model` imports the one file that is asked for.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from elbowroom.errors import ModelError, unknown

ROWS = "rows"
"""The plate of a named model that runs over the table's rows; minibatches subsample it."""


@dataclass(frozen=True)
class Effects:
    """What is expected of a row, and the columns that it follows.

    Attributes:
        columns: Those that the predictors are made of, each with its levels in order, or None if
            it is a number.
        fixed: Of these, the ones whose effect is not fitted, as that of an offset.
        splines: Of these, the numbers that a curve is of, which no data support beyond the rows.
        groups: Columns that are in group effects alone.
        response: What is expected, in words, such as "mean of progression".
        name: Of the response.
    """

    columns: Mapping[str, tuple[Any, ...] | None]
    fixed: tuple[str, ...] = ()
    splines: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    response: str = ""
    name: str = ""


@dataclass(frozen=True)
class Remedies:
    """What to try with a model where the checks of its predictions see a misfit.

    Attributes:
        words: By misfit, as the end of a sentence; the names are those of
            `elbowroom.assess.misfit.WORDS`, and {column} stands for a predictor. A misfit that is
            not there has none.
        quantile: Which quantile the linear predictor is of, where the model's distribution is
            only a means to it, so that nothing else of it is checked.
    """

    words: Mapping[str, str]
    quantile: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A model's keyword arguments, made from a table or a dict, with the names of their dims.

    Attributes:
        arguments: What the Pyro function is called with: tensors, and plain values.
        dims: For a site or argument, the names of its dims, the draws aside.
        coords: For a dim, its labels.
        columns: For a site or argument, the user's column that it holds, or the columns along its
            last dim.
        doubts: What the model may be wrong for in these data, as sentences for the verdict.
        internal: Latent sites that the user sees through deterministic ones, beside the model's.
        effects: What is expected of rows, where the model has an `expected`.
        own_priors: Of a named model, the quantities whose priors are the user's; their names are
            those of the words for priors.
    """

    arguments: dict[str, Any]
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    coords: dict[str, Sequence[Any]] = field(default_factory=dict)
    columns: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    internal: tuple[str, ...] = ()
    effects: Effects | None = None
    own_priors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """What a model was fitted to, for preparing new rows in the same way.

    Attributes:
        table: The table of the fit.
        arguments: The arguments that were made of it; their scaling is reused.
    """

    table: Any
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Small data for a model, and options that make it quick, for the test of every model.

    Attributes:
        table: Makes the data.
        options: Of the model and of the fit.
        local_latents: Whether the model then has continuous latents for each row.
    """

    table: Callable[[], Any]
    options: Mapping[str, Any]
    local_latents: bool = False


@dataclass(frozen=True)
class Model:
    """The declaration of a Pyro model function: all that the engines know about it.

    Attributes:
        name: The name on the command line.
        function: The Pyro model, called as `function(**prepared.arguments)`. If it takes
            `batch_size`, its rows plate subsamples that many rows.
        options: A frozen pydantic dataclass of its options, each field with a description;
            None for a user's own function.
        prepare: `prepare(table, options, training)` gives a `Prepared`; `training` is the
            `Training` of the fit when the table has new rows, else None.
        observed: The observed site.
        predicts: The site that `predict` describes for new rows.
        dataset: The bundled dataset of the examples, or the arguments that a module holds itself.
        internal: Latent sites that the user sees through a deterministic site in their own units.
        starts: `starts(arguments, count, seed)` gives initial values of sites, best guess first.
        canonical: `canonical(sites, reference, arguments)` relabels exchangeable parts of every
            draw to agree with the reference's, or orders them where there is no reference.
        labels: The argument that tells the site `predicts` in some rows, if there is one. New rows
            are described and made without it.
        in_units: `in_units(values, arguments)` gives predicted values in the user's units, where
            the site is in others.
        of_probability: `of_probability(arguments)` tells whether rows are described by the
            probability that the site `predicts` is one, and not by draws of it.
        doubts_of: `doubts_of(arguments, draws)` gives what draws of the posterior, by latent site,
            tell that the model may be wrong for, as sentences for the verdict.
        expected: `expected(distribution, linear_predictor, arguments)` gives what is expected of
            rows, (rows,), or the probability of each level, (rows, levels). The observed site has
            the linear predictor as `infer={"linear_predictor": ...}`. None if there is none.
        of_population: `of_population(arguments)` gives the arguments of the same rows without the
            effects of their groups, each of one trial; what `effects` are of.
        images: `images(arguments)` gives the shape of the images that rows are, height first, and
            the highest value of a pixel, zero where that is not known; None if they are none.
        priors: `priors(arguments, coords)` gives the prior of each quantity that is reported, in
            words and in the units of the table, by its name; see `name_of_prior`.
        needs: `needs(table, options)` names the columns whose cells a row needs: rows that lack one
            are left out, or refused with `options.missing` "error".
        code_in: `code_in(options)` gives the code that preparing a table with these options would
            run, or None: a run folder from elsewhere may run none.
        suggested: Settings of the fit that suit the model better than the general ones.
        engine: Of the guide `auto`, where the general rule suits the model ill.
        continuous: Whether it has continuous latents, which the guides for any model are for.
        verbs: What a fit can do in addition to `predict`; see `elbowroom.rows` and
            `elbowroom.effects`.
        normals: `normals(arguments, sites, points)` gives the distribution of a row at one draw of
            the sites that are not for each row, and at the point parameters: that of a mixture of
            Normals, as weights (K,), means (K, columns) and covariances (K, columns, columns).
        population: Latent sites whose density is no prior, but tells what a population is like, so
            that it is a part of the likelihood; None for those whose density depends on others.
        simpler: `simpler(arguments)` names the option that makes the model simpler, as it is given,
            where its posterior may have more parts than draws can follow; None if there is none.
        remedies: `remedies(arguments)` says what to try where checks of predictions see a misfit;
            None where that is said in general words.
        recipe: What the model is tested with; None for a user's own function.
        picture: `picture(fit)` gives the matplotlib figure of the model's page. `fit` is
            `elbowroom.fit`, which a model does not import. Matplotlib is imported within.
    """

    name: str
    function: Callable[..., Any]
    options: type | None
    prepare: Callable[[Any, Any, Training | None], Prepared]
    observed: str
    predicts: str
    dataset: str | Mapping[str, Any] | None = None
    internal: tuple[str, ...] = ()
    starts: Callable[[Mapping[str, Any], int, int], list[dict[str, Any]]] | None = None
    canonical: Callable[..., dict[str, Any]] | None = None
    labels: str | None = None
    in_units: Callable[[Any, Mapping[str, Any]], Any] | None = None
    of_probability: Callable[[Mapping[str, Any]], bool] | None = None
    doubts_of: Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[str]] | None = None
    expected: Callable[[Any, Any, Mapping[str, Any]], Any] | None = None
    of_population: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    images: Callable[[Mapping[str, Any]], tuple[tuple[int, ...], float] | None] | None = None
    priors: Callable[[Mapping[str, Any], Mapping[str, Sequence[Any]]], Mapping[str, str]] | None = (
        None
    )
    needs: Callable[[Any, Any], Sequence[str]] | None = None
    code_in: Callable[[Any], str | None] | None = None
    suggested: Mapping[str, Any] = field(default_factory=dict)
    engine: str | None = None
    continuous: bool = True
    verbs: tuple[str, ...] = ("score",)
    normals: Callable[..., tuple[Any, Any, Any]] | None = None
    population: tuple[str, ...] | None = None
    simpler: Callable[[Mapping[str, Any]], str | None] | None = None
    remedies: Callable[[Mapping[str, Any]], Remedies] | None = None
    recipe: Recipe | None = None
    picture: Callable[[Callable[..., Any]], Any] | None = None


def name_of_prior(label: str) -> str:
    """What the words for priors call a quantity: without labels, or without a coefficient's class.

    Example:
        >>> name_of_prior("thresholds[low|high]"), name_of_prior("coefficients[b, x]")
        ('thresholds', 'coefficients[x]')
    """
    site, bracket, labels = label.partition("[")
    last = labels.removesuffix("]").rpartition(", ")
    return f"{site}[{last[2]}]" if bracket and last[1] else site


_registered: dict[str, tuple[Model, str]] = {}


def register(model: Model, module: str) -> Model:
    """Adds a model under its name.

    Args:
        model: The declaration.
        module: The `__name__` of the file that declares it.

    Raises:
        ModelError: If another file has registered the name.
    """
    known = _registered.get(model.name)
    if known is not None and known[1] != module:
        raise ModelError(f"the model '{model.name}' is already registered by {known[1]}.")
    _registered[model.name] = (model, module)
    return model


def model_summaries() -> dict[str, str]:
    """The models' names, each with the first line of its file's docstring; imports none of them.

    Example:
        >>> list(model_summaries())[:2]
        ['bayesian_neural_network', 'bayesian_regression']
    """
    return dict(_summaries())


@cache
def _summaries() -> dict[str, str]:
    summaries = {}
    for file in sorted(files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py") and not file.name.startswith("_"):
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            summaries[file.name.removesuffix(".py")] = docstring.splitlines()[0]
    return summaries


def get_model(name: str) -> Model:
    """The declaration of a named model.

    Raises:
        OptionError: If there is no such model; the nearest name is suggested.

    Example:
        >>> get_model("bayesian_regression").observed
        'response'
    """
    names = _summaries()
    if name not in names:
        raise unknown("model", name, names)
    if name not in _registered:
        import_module(f"{__name__}.{name}")
    return _registered[name][0]
