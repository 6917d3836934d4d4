"""What a model says before it has seen a response: its priors, and what they predict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray

from elbowroom.commands import PriorsOptions
from elbowroom.draws.groups import prior_tree
from elbowroom.draws.tree import summarise
from elbowroom.errors import ModelError
from elbowroom.models import Model, name_of_prior
from elbowroom.options import check_options
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.isolation import checked_seed
from elbowroom.problem.process import alone


@dataclass(frozen=True)
class PriorView:
    """The priors of a model, and what they predict.

    Attributes:
        table: For each quantity its prior in words, empty where there is none, and of draws the
            mean, the sd and an equal-tailed interval.
        tree: The groups `prior`, `prior_predictive` and `observed_data`, as ArviZ takes them.
        observed: The site of the data that the picture shows.
    """

    table: pd.DataFrame
    tree: xarray.DataTree
    observed: str

    @property
    def predicted(self) -> np.ndarray:
        """Draws of what is observed, (draws, ...)."""
        return np.asarray(self.tree["prior_predictive"][self.observed].to_numpy()[0])

    @property
    def data(self) -> np.ndarray:
        """What was observed."""
        return np.asarray(self.tree["observed_data"][self.observed].to_numpy())


@alone
def priors(
    model: str | Callable[..., Any] | Model,
    data: Any = None,
    *,
    seed: int | None = None,
    interval: float = PriorsOptions.interval,
    **options: Any,
) -> PriorView:
    """States the priors of a model in the units of its data, and draws from them without a fit.

    Args:
        model: As for `elbowroom.fit`.
        data: As for `elbowroom.fit`; the priors of some models follow the data's scale.
        seed: Of the draws.
        interval: Probability of the equal-tailed intervals.
        **options: Of the model, as for `elbowroom.fit`.

    Raises:
        DataError: If the data cannot be used; the column is named.
        OptionError: If an option is unknown or out of range.
        ModelError: If a prior cannot be sampled, or the model has none.

    Example:
        >>> import elbowroom as er
        >>> view = er.priors("bayesian_regression", "diabetes", formula="progression ~ bmi", seed=1)
        >>> view.table["prior"]["coefficients[bmi]"]
        'normal(0, 43.6232)'
    """
    check_options(PriorsOptions, seed=seed, interval=interval)
    problem, _, _ = bind_model(model, data, options, "auto")
    with problem.session(checked_seed(seed)):
        tree, notes = prior_tree(problem)
    if "prior" not in tree.children:
        why = notes[-1] if notes else (
            "only latents of rows have priors, and none is stated for them; fit it, and draw rows "
            "by 'elbowroom generate RUN'."
        )  # fmt: skip
        raise ModelError(f"the model {problem.model.name}: {why}")
    words = {} if problem.model.priors is None else problem.model.priors(
        problem.prepared.arguments, problem.prepared.coords
    )  # fmt: skip
    table = summarise(tree, interval, group="prior")
    return PriorView(_with_words(table, words), tree, _shown(tree, problem.observed))


def _with_words(table: pd.DataFrame, words: Mapping[str, str]) -> pd.DataFrame:
    """The priors beside the draws of each quantity; those without draws of their own come last."""
    said = [words.get(name, words.get(name_of_prior(name), "")) for name in map(str, table.index)]
    found = table.assign(prior=said)[["prior", *table.columns]]
    there = {*table.index, *map(name_of_prior, map(str, table.index))}
    rest = {name: text for name, text in words.items() if name not in there}
    more = pd.DataFrame({"prior": rest.values()}, index=list(rest))
    return pd.concat([found, more]) if rest else found


def _shown(tree: xarray.DataTree, observed: str) -> str:
    """The variable of the prior predictive that is shown."""
    names = list(tree["prior_predictive"].data_vars)
    return observed if observed in names else str(names[0])
