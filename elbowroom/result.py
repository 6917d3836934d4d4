"""A fit: what it found, and what it can be asked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elbowroom import rows as verbs
from elbowroom.assess.evidence import Evidence
from elbowroom.assess.measures import leave_one_out
from elbowroom.assess.verdict import Verdict, judge
from elbowroom.commands import (
    CheckOptions,
    ElboOptions,
    PredictOptions,
    ScoreOptions,
    SummaryOptions,
)
from elbowroom.density.landscape import density_of
from elbowroom.draws import row_weights
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.draws.groups import canonical_sites, posterior_tree, sites_as_written
from elbowroom.draws.of_guide import draw
from elbowroom.draws.predict import log_density_of_rows, predict_rows, row_log_likelihood
from elbowroom.draws.proposal import Proposal
from elbowroom.draws.tree import summarise, to_arviz, to_zarr
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.effects import Columns, effects_of
from elbowroom.engines.protocol import Fitted, Trained
from elbowroom.engines.settings import Settings
from elbowroom.errors import DataError, GuideError, as_given, users_code
from elbowroom.guides import Guide, Start, guides_for
from elbowroom.guides.parameters import fitted_names
from elbowroom.guides.space import trace_model
from elbowroom.model_check import ModelCheck, check_fit
from elbowroom.objectives import baselines
from elbowroom.options import check_options, flag
from elbowroom.problem.beyond import rows_beyond
from elbowroom.problem.bound import Problem
from elbowroom.problem.informed import stored
from elbowroom.problem.isolation import (
    Parameters,
    checked_seed,
    constrained_values,
    isolated,
)
from elbowroom.problem.leaves import kept_buffers
from elbowroom.problem.modules import trained_module
from elbowroom.problem.process import alone
from elbowroom.rows import Imputed
from elbowroom.run import folder as run_folder
from elbowroom.run.schema import Config, Outcome
from elbowroom.sensitivity import sensitivity_of
from elbowroom.sizes import SIZES

SIGNED = 100
"""Draws of a guide that tell which signs and labels its parts have."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Fit:
    """A fitted guide and its posterior.

    Attributes:
        fitted: The guide at its optimum.
        settings: Of the optimiser.
        seed: Of all random numbers.
        evidence: What the verdict follows from.
        complete: Gives the ArviZ tree, and a line for everything left out of it.
        parts: Gives the parts of the ELBO, by name; None where it has none.
        measures: Numbers that were taken at the fit, by name; `diagnostics` has them all.
        remarks: What a reader should know about the fit; `notes` adds those of the tree.
        origin: What the posterior consists of: "raw", the guide's own draws; "corrected"; "chains"
            or "nuts", those of Markov chains.
        proposal: What the corrected draws of the posterior were drawn from, if not the guide.
        folder: Where its checkpoints are; `save` may replace it.
    """

    fitted: Fitted
    settings: Settings
    seed: int
    evidence: Evidence
    complete: Callable[[], tuple[Any, list[str]]]
    measures: Mapping[str, Any]
    parts: Callable[[], Mapping[str, Any]] | None = None
    remarks: tuple[str, ...] = ()
    origin: str = "raw"
    proposal: Proposal | None = None
    folder: Path | None = None

    @property
    def problem(self) -> Problem:
        """The model bound to its data."""
        return self.fitted.problem

    @property
    def guide(self) -> Guide:
        """The guide's declaration."""
        return self.fitted.guide

    @property
    def callable(self) -> Callable[..., Any]:
        """The Pyro guide itself."""
        return as_given(self.fitted.callable)

    @property
    def start(self) -> Start:
        """Where the guide began, which its parameters are relative to."""
        return self.fitted.start

    @property
    def parameters(self) -> Parameters:
        """Of the guide and the model, as fitted."""
        return self.fitted.parameters

    @property
    def trained(self) -> Trained:
        """How the optimiser went; its history is `elbo_history`."""
        return self.fitted.trained

    @property
    def objective(self) -> tuple[str, str]:
        """The name of the objective that was maximised, and why."""
        return self.fitted.objective

    @property
    def engine(self) -> str:
        """The engine's name: "svi", "fixed_draws", "em" or "coordinate_ascent"."""
        return self.fitted.engine

    def with_remarks(self, *remarks: str) -> "Fit":
        """The same fit, with more that a reader should know."""
        return replace(self, remarks=(*self.remarks, *remarks))

    def __repr__(self) -> str:
        return (
            f"Fit({self.problem.model.name}, {self.guide.name}, {self.verdict.level}, "
            f"seed={self.seed})"
        )

    @property
    def verdict(self) -> Verdict:
        """Whether the posterior can be trusted, why, and what to do next."""
        return judge(self.evidence)

    @property
    def row_latents(self) -> bool:
        """Whether rows have latents that the guide draws."""
        return self.problem.space.local_continuous or self.evidence.weights.rows is not None

    @property
    def rows_apart(self) -> bool:
        """Whether observations have latents, which the guide gives those that it was fitted to."""
        return bool(self.problem.space.per_observation) or self.evidence.weights.rows is not None

    @property
    @alone
    def amortised(self) -> bool:
        """Whether the guide gives the latents of other rows too, or they have none to be given."""
        if not self.problem.space.rows_only:
            return bool(self._shared.names) and self.guide.amortised and not self.fitted.point
        return self.guide.amortised or not self.rows_apart or self._serves_all_rows

    @cached_property
    def _shared(self) -> row_weights.Shared:
        """The latents that rows share, where they have continuous ones of their own as well."""
        problem, space = self.problem, self.problem.space
        if not space.local_continuous:
            return row_weights.Shared()
        names = [site.name for site in space.sites if site.name not in space.local]

        def placed(sites: dict[str, Tensor]) -> dict[str, Tensor]:
            return canonical_sites(problem, sites, self.global_sites())

        return row_weights.Shared(names, placed)

    @cached_property
    def _shared_draws(self) -> dict[str, Tensor]:
        """The posterior's draws of these, with the signs and labels that the guide has."""
        names = self._shared.names
        if not names:
            return {}
        known, own = self.global_sites(), self.draw(SIGNED, 0).sites
        return canonical_sites(self.problem, {name: known[name] for name in names}, own)

    @contextmanager
    def guide_of_rows(self, seed: int) -> Iterator[Callable[..., Any]]:
        """The guide of the rows' latents, given draws of the posterior of what rows share."""
        shared = self._shared_draws
        with self.active(seed) as guide:
            held = {name: value.to(self.problem.device) for name, value in shared.items()}
            yield row_weights.given(guide, held)

    @cached_property
    def _serves_all_rows(self) -> bool:
        """Whether a guide that does not declare it is seen to be amortised."""
        problem = self.problem
        with self.active(0) as guide:
            return row_weights.serves_few_rows(guide, problem.arguments, problem.space)

    @property
    @alone
    def model_parameters(self) -> dict[str, Tensor]:
        """The values of the model's own point parameters (`pyro.param`), float64."""
        values = constrained_values(self.parameters)
        return {name: values[name] for name in self.problem.space.parameters.initial}

    @cached_property
    def _completed(self) -> tuple[Any, list[str]]:
        tree, notes = self.complete()
        for node in (tree, *tree.children.values()):
            if "verdict" in node.attrs:  # more evidence may have come in since it was made
                node.attrs["verdict"] = self.verdict.level
        return tree, notes

    @property
    @alone
    def posterior(self) -> Any:
        """The `xarray.DataTree` in the ArviZ schema.

        The groups that follow from the draws (predictive, log likelihood, prior) are filled when
        it is first asked for.
        """
        return self._completed[0]

    @property
    @alone
    def notes(self) -> list[str]:
        """What a reader should know: groups left out, guides that `auto` tried."""
        return [*self.remarks, *self._completed[1]]

    @property
    @alone
    def diagnostics(self) -> dict[str, Any]:
        """elbo, its parts, k_hat, log_evidence, elpd_loo and more, by name.

        The parts of the ELBO and the leave-one-out ones are taken when they are first asked for.
        """
        return self._diagnostics

    @cached_property
    def _diagnostics(self) -> dict[str, Any]:
        found = dict(self.measures)
        if self.parts is not None and "elbo_parts" not in found:
            found.update(self.parts())
        if "elpd_loo" not in found:
            found.update(leave_one_out(self.posterior))
        return found

    @property
    def converged(self) -> bool:
        """Whether the optimum was reached, as far as the noise shows."""
        return self.trained.converged

    @property
    def elbo_history(self) -> np.ndarray:
        """An estimate of the ELBO for each step, in nats."""
        return self.trained.elbo_history

    @property
    @alone
    def point_parameters(self) -> dict[str, np.ndarray]:
        """The model's own point parameters (`pyro.param`), as fitted, by name."""
        problem = self.problem
        with problem.session(0, self.parameters):
            trace: Any = trace_model(problem.function, problem.arguments)
            return {
                name: trace.nodes[name]["value"].detach().cpu().numpy().copy()
                for name in fitted_names(trace)
            }

    @contextmanager
    def active(self, seed: int) -> Iterator[Callable[..., Any]]:
        """The guide, with its parameters in the active store."""
        with self.problem.session(seed, self.parameters):
            yield self.fitted.callable

    @alone
    def draw(self, count: int, seed: int = 0, data: Any = None) -> WeightedDraws:
        """Fresh draws of the guide's sites, with log p and log q of each.

        Args:
            count: How many.
            seed: Of the draws.
            data: New rows, for an amortised guide; by default the fit's own.
        """
        arguments = self.problem.arguments
        if data is not None:
            self._check_amortised()
            arguments, _ = self.problem.new_arguments(data)
        with self.active(seed) as guide:
            return draw(self.problem.function, guide, arguments, self.problem.space, count)

    @alone
    def module(self, name: str) -> torch.nn.Module:
        """A trained network of the user's own model or guide: a copy with the fit's parameters.

        Args:
            name: What `pyro.module` was told, or what the model's or guide's code calls it.

        Raises:
            OptionError: If there is no such module; the nearest name is suggested.
            ModelError: If model and guide have none.

        Example:
            >>> import elbowroom as er, pyro, pyro.distributions as dist, torch
            >>> def line_with(slope):
            ...     def model(x, y):
            ...         pyro.module("slope", slope)
            ...         level = pyro.sample("level", dist.Normal(0.0, 1.0))
            ...         with pyro.plate("rows", len(y)):
            ...             mean = level + slope(x[:, None])[:, 0]
            ...             pyro.sample("y", dist.Normal(mean, 0.1), obs=y)
            ...     return model
            >>> model = line_with(torch.nn.Linear(1, 1, bias=False).double())
            >>> x = torch.linspace(-1, 1, 50)
            >>> fit = er.fit(model, {"x": x, "y": 3 * x}, seed=1)
            >>> fit.module("slope").weight.round(decimals=3).tolist()
            [[3.0]]
        """
        return trained_module(name, [self.problem.function, self.callable], self.parameters)

    def _check_amortised(self) -> None:
        if not self.amortised:
            fitting = guides_for(self.problem.model_name, True).values()
            others = [each for each in fitting if each.amortised and each.name != self.guide.name]
            names = " or ".join(guide.name for guide in others)
            space = self.problem.space
            shared = [site.name for site in space.sites if site.name not in space.local]
            if self.guide.amortised and shared:
                needed = next((each.needs for each in others if each.needs is not None), None)
                option = "" if needed is None else f" and {flag(needed.option)} {needed.value}"
                instead = f"fit with --guide {names}{option}" if names else "use the fitted rows"
                raise GuideError(
                    f"the site '{shared[0]}' is shared by all rows, so the latents of single rows "
                    f"have no weights of their own; {instead}."
                )
            other = f"--guide {names}" if names else "an amortised guide"
            raise GuideError(
                f"the guide '{self.guide.name}' knows only the fitted rows; for new rows, fit "
                f"with {other} (for a guide of your own, set guide.amortised = True)."
            )

    @alone
    def sample(self, n: int = 1000, seed: int = 0) -> Any:
        """Fresh posterior draws, as an `xarray.Dataset` with dims chain and draw.

        They are corrected by importance weights where the posterior's are.

        Args:
            n: How many.
            seed: Of the draws; the same seed gives the same draws, after a reload too.
        """
        drawn = canonical_sites(self.problem, self._fresh(n, seed), self.global_sites())
        with self.active(seed):
            tree, _ = posterior_tree(self.problem, {"posterior": drawn}, {}, keep_local=True)
        return tree["posterior"].to_dataset()

    def _fresh(self, count: int, seed: int) -> dict[str, Tensor]:
        """Fresh draws of the latent sites, corrected if the posterior's are."""
        if self.origin == "raw":
            return self.draw(count, seed).sites
        random = np.random.default_rng(seed)
        if self.origin in ("chains", "nuts"):
            kept = self.global_sites()
            total = len(next(iter(kept.values())))
            picked = torch.as_tensor(random.integers(0, total, count))
            return {name: values[picked] for name, values in kept.items()}
        if self.evidence.weights.rows is not None:
            weighed = self.weigh_rows(None, 4 * count, seed, self.problem.space.local)
            return weighed.resample(count, random).sites
        if self.proposal is None:
            return self.draw(4 * count, seed).resample(count, random).sites
        problem = self.problem
        with (
            kept_buffers(problem.function),
            isolated(seed, dtype=torch.float64, threads=problem.threads),
        ):
            density = density_of(problem, constrained_values(self.parameters))
            importance = AdaptiveImportance(
                density, self.proposal.mixture, random, None, self.proposal.conditional(density)
            )
            importance.round(4 * count)
            sites = importance.of_any_order().resample(count).sites
        return {name: values.to(problem.dtype) for name, values in sites.items()}

    @alone
    def global_sites(self) -> dict[str, Tensor]:
        """The posterior's draws of the sites that are not for each row, (draws, ...)."""
        space = self.problem.space
        if not space.sites:  # discrete ones alone
            drawn = self.posterior["posterior"]
            names = [name for name in space.discrete if name in drawn.data_vars]
            return {name: self._tensor(drawn[name].values) for name in names}
        group = self.posterior.children.get("unconstrained_posterior")
        if group is None:
            return {}
        sites = {}
        for site in space.sites:
            name = site.name.replace("/", ".")
            if name in group.data_vars:
                flat = self._tensor(group[name].values).to(self.problem.dtype)
                sites[site.name] = site.transform(flat)
        return sites

    @alone
    def as_written(self, sites: dict[str, Tensor]) -> tuple[Problem, dict[str, Tensor]]:
        """The problem as the user wrote it, and draws of its own sites.

        What stands for a site in other coordinates means another value where the arguments differ.
        """
        problem = self.problem
        if problem.original is None:
            return problem, sites
        with problem.session(0, self.parameters):
            return problem.original, sites_as_written(problem, sites)

    @staticmethod
    def _tensor(values: np.ndarray) -> Tensor:
        """Draws of all chains in one row, (draws, ...)."""
        chains, draws, *shape = values.shape
        return torch.tensor(values.reshape(chains * draws, *shape))

    @alone
    def predict(
        self,
        data: Any = None,
        interval: float = 0.9,
        seed: int = 0,
        new_groups: str | None = None,
        scale: str | None = None,
        draws: int | None = None,
    ) -> pd.DataFrame:
        """Describes each new row: mean, sd, and an equal-tailed interval of its prediction.

        For a mixture, the probabilities of the row's component instead; where labels are known, the
        fitted rows keep theirs, and new rows are described without theirs. `log_density` is the log
        posterior predictive density of the row, if the row has what was observed. `attrs["notes"]`
        says which columns of a spline or the like are beyond the fitted rows.

        Args:
            data: New rows, as the fit took them; by default the fit's own.
            interval: Probability of the interval.
            seed: Of the predictive draws.
            new_groups: What is done with rows of groups that the fit has not seen: "error", or
                "draw", their effects from the distribution of those of all groups; by default what
                the fit's options say.
            scale: Of a regression, what is described instead of a new row: "response", what is
                expected of it (its mean; of levels, their probabilities), or "linear", its linear
                predictor.
            draws: As many draws of each row's prediction instead: a table with a line for each row
                and draw, and the columns row, draw and prediction.

        Raises:
            DataError: If a column is missing or cannot be used.
            ModelError: If `scale` is given for a model without a linear predictor, or `draws` for
                one that predicts the probabilities of components.
            OptionError: If `new_groups` is given for a model without group effects, or the
                posterior has fewer draws.
            GuideError: If the guide has no latents for new rows.

        Example:
            >>> import elbowroom as er
            >>> fit = er.fit("bayesian_regression", formula="progression ~ bmi", seed=1)
            >>> rows = er.load_dataset("diabetes").head(2)
            >>> fit.predict(rows).columns.tolist()  # of new rows, with their noise
            ['mean', 'sd', 'lower', 'upper', 'log_density']
            >>> fit.predict(rows, scale="linear")["sd"].round(0).tolist()  # without it
            [5.0, 4.0]
            >>> fit.predict(rows, draws=3)["draw"].tolist()
            [1, 2, 3, 1, 2, 3]
        """
        check_options(
            PredictOptions, interval=interval, seed=seed, new_groups=new_groups, scale=scale,
            draws=draws,
        )  # fmt: skip
        problem, observed = self.problem, True
        arguments = problem.arguments
        data, said = rows_beyond(problem, data)
        if data is not None:
            arguments, observed = problem.new_arguments(data, new_groups)
            if self.rows_apart:
                self._check_amortised()
        count = self.measures["draws"]
        if self._shared.names:
            with self.guide_of_rows(seed) as guide:
                sites = draw(problem.function, guide, arguments, problem.space, count).sites
        elif self.row_latents:
            sites = self.draw(count, seed, data).sites
        else:
            sites = self.global_sites()
        if data is not None:
            problem, sites = self.as_written(sites)
        with (
            users_code("the model cannot be run on the new data", DataError),
            problem.session(checked_seed(seed), self.parameters),
        ):
            found = predict_rows(problem, arguments, sites, interval, observed, scale, draws)
        found.attrs["notes"] = said
        return found

    @alone
    def effects(
        self,
        means: Columns = None,
        slopes: Columns = None,
        contrasts: Columns = None,
        *,
        by: Columns = None,
        average: bool = False,
        scale: str = "response",
        interval: float = 0.9,
    ) -> pd.DataFrame:
        """What a regression says of its columns: adjusted predictions, slopes and contrasts.

        See `elbowroom.effects`, which says what each of them is. With neither means, slopes nor
        contrasts, the means of every column whose effect is fitted.

        Args:
            means: Columns of which the expected response is described at each level, or over a
                grid of numbers: a name, several, `"."` for all, `"bmi=20,30"` for values of one's
                own, or a dict of values.
            slopes: Columns by which the expected response is differentiated, averaged over the
                fitted rows; for a category its levels less the first one.
            contrasts: Columns of which all levels, or the values that are given, are compared in
                pairs: the later one less the earlier one.
            by: Columns for each of whose levels, or values, all of this is given: of a number, its
                mean, and an sd below and above it.
            average: Whether means and contrasts are averaged over the fitted rows; by default the
                other columns are at their means and most common levels.
            scale: "response", or "linear" for the linear predictor.
            interval: Probability of the intervals.

        Returns:
            A line for each: effect ("mean", "slope" or "contrast"), column, value, the columns of
            `by`, for an ordinal response its level; mean, sd, lower, upper. `attrs["notes"]` says
            what they are of.

        Raises:
            ModelError: If the model is no regression.
            OptionError: If a column is not in the formula, or has no such level or value.

        Example:
            >>> import elbowroom as er
            >>> fit = er.fit("bayesian_regression", formula="progression ~ bmi + bp", seed=1)
            >>> fit.effects(slopes="bmi", contrasts="bmi=20,30")["mean"].round(0).tolist()
            [9.0, 85.0]
        """
        asked = {"means": means, "slopes": slopes, "contrasts": contrasts}
        return effects_of(self, asked, by, average, scale, interval)

    @alone
    def sensitivity(self) -> pd.DataFrame:
        """How much each quantity follows the prior and the likelihood, by power-scaling.

        See `elbowroom.sensitivity`. Draws of a posterior that is not trusted tell of themselves.

        Returns:
            A line a quantity: the sensitivity to its `prior` and to the `likelihood`, which count
            from 0.05 on; and the `diagnosis`: "prior-data conflict" where both do, "strong prior
            / weak likelihood" where the prior does alone, else empty.

        Raises:
            ModelError: If the fit has no priors, is one point, or has latents of rows.

        Example:
            >>> import elbowroom as er
            >>> formula, priors = "progression ~ bmi + bp", {"bmi": "normal(0, 1)"}
            >>> fit = er.fit("bayesian_regression", formula=formula, priors=priors, seed=1)
            >>> fit.sensitivity()["diagnosis"]["coefficients[bmi]"]
            'prior-data conflict'
        """
        return sensitivity_of(self)

    @alone
    def check(self, seed: int = 0) -> ModelCheck:
        """Whether the model predicts the fitted rows as they are, and what to try if not.

        Posterior predictive checks by the kind of the response; each row beside what is predicted
        of it given the others (LOO-PIT), and what the residuals depend on. See
        `elbowroom.model_check`.

        Args:
            seed: Of the places of equal values, and of the sample of very many rows.

        Raises:
            ModelError: If the model has latents for each row, or does not observe one response.
            OptionError: If the seed is out of range.

        Example:
            >>> import elbowroom as er
            >>> fit = er.fit("bayesian_regression", formula="progression ~ bmi", seed=1)
            >>> fit.check().findings[0].partition(":")[0]
            "All of 'progression' is above 0, and 2% of the model's draws are not"
        """
        check_options(CheckOptions, seed=seed)
        return check_fit(self, seed)

    @alone
    def log_density(self, data: Any) -> np.ndarray:
        """The log posterior predictive density of each new row, in nats and the user's units.

        Raises:
            GuideError: If the model has latents for each row: their bound is `elbo`.
        """
        if self.row_latents:
            raise GuideError(
                "a model with latents for each row has no exact density; use its bound, "
                "Fit.elbo(data)."
            )
        if self.rows_apart:
            self._check_amortised()
        arguments, observed = self.problem.new_arguments(data)
        if not observed:
            raise DataError(
                "the new rows lack the observed column, whose density is to be computed; add it."
            )
        problem, sites = self.as_written(self.global_sites())
        with problem.session(0, self.parameters):
            return log_density_of_rows(problem, arguments, sites)

    @alone
    def score(
        self,
        data: Any = None,
        draws: int | None = None,
        seed: int = 0,
        quantile: float | None = None,
    ) -> pd.DataFrame:
        """The log density of each row by importance sampling, for example to find unusual rows.

        Args:
            data: New rows, for an amortised guide; by default the fit's own.
            draws: Of each row's latents; by default 1,000, or fewer, at least 100, where rows are
                so many and wide that this would take minutes. Where a model has none, the
                posterior's draws are taken.
            seed: Of the draws.
            quantile: Flags the rows less likely than this share of the fitted ones.

        Returns:
            A line a row: log_density in nats, in expectation a lower bound that rises with the
            draws; its standard_error; effective_sample_size and k_hat of the row's weights; with a
            quantile, whether the row is `flagged`. `attrs["notes"]` says which columns of a spline
            or the like are beyond the fitted rows.

        Raises:
            DataError: If the new rows have no observed values.
            GuideError: If the guide has no latents for new rows, or the model has both latents of
                rows and others.
            OptionError: If the draws, the seed or the quantile are out of range.

        Example:
            >>> import elbowroom as er
            >>> iris = er.load_dataset("iris")
            >>> result = er.fit("factor_analysis", iris, engine="em", seed=1)
            >>> result.score(iris.head(2)).round(2)  # exact: all weights are equal
               log_density  standard_error  effective_sample_size  k_hat
            0        -2.06             0.0                 1000.0   -inf
            1        -2.33             0.0                 1000.0   -inf
        """
        check_options(ScoreOptions, draws=draws, seed=seed, quantile=quantile)
        verbs.check_verb(self, "score")
        data, said = rows_beyond(self.problem, data)
        weights = self.weigh_rows(data, draws, seed)
        value, error = weights.log_density()
        table = pd.DataFrame(
            {
                "log_density": value,
                "standard_error": error,
                "effective_sample_size": weights.unsmoothed_effective_sample_size,
                "k_hat": weights.k_hat,
            }
        )
        if quantile is not None:
            fitted = value if data is None else self.weigh_rows(None, draws, seed).log_density()[0]
            table["flagged"] = value < np.quantile(fitted, quantile)
        table.attrs["notes"] = said
        return table

    @alone
    def embed(self, data: Any = None, draws: int | None = None, seed: int = 0) -> pd.DataFrame:
        """Each row's latents: their posterior means and standard deviations.

        The draws are corrected by importance weights if the row's weights are reliable, which
        `k_hat` shows. Of a mixture, the probability of each component instead.

        Args:
            data: New rows, for an amortised guide; by default the fit's own.
            draws: Of each row's latents; by default 1,000, or fewer where rows are so many and wide
                that these would take more than some seconds. Where even 100 of each would, as of
                4,000 images of 28 x 28 pixels, the guide's own means and sds are given, which no
                weights correct, and `k_hat` is missing.
            seed: Of the draws.

        Raises:
            DataError: If a column is missing or cannot be used.
            GuideError: If the guide has no latents for new rows.
            ModelError: If rows have no latents in the model.

        Example:
            >>> import elbowroom as er
            >>> result = er.fit("factor_analysis", "iris", engine="em", seed=1)
            >>> result.embed().columns.tolist()
            ['z[0].mean', 'z[0].sd', 'z[1].mean', 'z[1].sd', 'k_hat']
        """
        return verbs.embed(self, data, draws, seed)

    @alone
    def reconstruct(self, data: Any = None, draws: int = 100, seed: int = 0) -> pd.DataFrame:
        """Each row's expected cells, averaged over the posterior of its latents.

        Args:
            data: New rows, for an amortised guide; by default the fit's own.
            draws: Of each row's latents.
            seed: Of the draws.

        Raises:
            DataError, GuideError, ModelError: As for `embed`.
        """
        return verbs.reconstruct(self, data, draws, seed)

    @alone
    def generate(
        self,
        n: int = 1,
        data: Any = None,
        *,
        given: Mapping[str, Any] | None = None,
        expected: bool = False,
        prior: bool = False,
        seed: int = 0,
    ) -> pd.DataFrame:
        """New rows, in the user's units.

        If all latents belong to rows, they are drawn from their prior, or with `data` from their
        posterior. Parameters with a posterior are drawn from it, or with `prior`
        from their prior. Known columns, such as a label, are those of a fitted row, unless they
        are given.

        Args:
            n: How many.
            data: Rows that the new ones should be similar to.
            given: Values of known columns, such as a label, for all rows.
            expected: Whether to give the means of the cells, not draws of them.
            prior: Whether parameters are drawn from their prior.
            seed: Of the draws.

        Raises:
            ModelError: If rows cannot be drawn from the model.
            OptionError: If the options contradict each other.

        Example:
            >>> import elbowroom as er
            >>> er.fit("factor_analysis", "iris", engine="em", seed=1).generate(3).shape
            (3, 4)
        """
        return verbs.generate(self, n, data, given, expected, prior, seed)

    @alone
    def interpolate(
        self, begin: int, end: int, steps: int = 9, data: Any = None, seed: int = 0
    ) -> pd.DataFrame:
        """Expected rows on the line between the latents of two rows.

        Args:
            begin: The number of the first row, from 1.
            end: Of the last.
            steps: Rows, those two with them.
            data: The rows; by default the fit's own.
            seed: Of the latents.

        Returns:
            A line a step: the latents, and the expected cells.

        Raises:
            DataError, GuideError, ModelError: As for `embed`.
            OptionError: If there is no such row.
        """
        return verbs.interpolate(self, begin, end, steps, data, seed)

    @alone
    def manifold(self, size: int = 15) -> pd.DataFrame:
        """Expected rows on a grid of one or two latents, at even quantiles of their prior.

        Args:
            size: Points of the grid for each latent.

        Raises:
            ModelError: If there are more latents, or none.
        """
        return verbs.manifold(self, size)

    @alone
    def impute(self, data: Any, draws: int = 400, interval: float = 0.9, seed: int = 0) -> Imputed:
        """Fills missing cells: posterior draws of each, their mean, sd and interval.

        For mixtures of Normals and factor analysis they are exact. Otherwise they come from a
        Markov chain for each row, with proposals from the guide.

        Args:
            data: Rows with missing cells (NaN).
            draws: Of each cell.
            interval: Probability of the intervals.
            seed: Of the draws.

        Raises:
            DataError: If no cell is missing, or a column is.
            GuideError, ModelError: As for `embed`.

        Example:
            >>> import elbowroom as er
            >>> iris = er.load_dataset("iris")
            >>> rows = iris.head(2).copy()
            >>> rows.loc[0, "petal_width"] = float("nan")
            >>> found = er.fit("factor_analysis", iris, engine="em", seed=1).impute(rows)
            >>> found.cells[["row", "column"]].values.tolist()
            [[1, 'petal_width']]
        """
        return verbs.impute(self, data, draws, interval, seed)

    @alone
    def row_arguments(self, data: Any) -> dict[str, Any]:
        """The model's arguments for rows whose latents the guide gives; None for the fit's own.

        Raises:
            DataError: If the rows have no observed values.
            GuideError: If the guide knows the fitted rows only.
        """
        if data is None:
            return self.problem.arguments
        if self.rows_apart:
            self._check_amortised()
        arguments, observed = self.problem.new_arguments(data)
        if not observed:
            raise DataError(
                "the rows lack the observed columns, and their latents depend on these; add them."
            )
        return arguments

    @alone
    def weigh_rows(
        self, data: Any, draws: int | None, seed: int, keep: Sequence[str] = ()
    ) -> WeightedDraws:
        """Draws of the rows' latents; or, where there are none, the rows at the posterior's.

        Args:
            data: New rows; None for the fit's own.
            draws: Of each row; None for as many as a minute allows.
            seed: Of the draws.
            keep: Latent sites whose draws are kept.
        """
        problem, arguments = self.problem, self.row_arguments(data)
        if draws is None:
            draws = row_weights.draws_of_rows(
                arguments, verbs.VERBS.draws, verbs.VERBS.fewest,
                verbs.VERBS.scored * SIZES.evaluated,
            )  # fmt: skip
        verbs.check_size(self, f"--draws {draws:,}", draws, arguments, keep, "fewer --draws")
        if self.evidence.weights.rows is not None or (self._shared.names and self.amortised):
            with self.guide_of_rows(checked_seed(seed)) as guide:
                return row_weights.weigh_rows(
                    problem.function, guide, arguments, problem.space, draws, keep, self._shared
                )
        if self.row_latents:
            raise GuideError(
                "this run has no importance weights for single rows: the guide "
                f"'{self.guide.name}' is a point, or the model also has latents that rows share. "
                "Fit with a guide that is not a point, if the model has one."
            )
        problem, sites = self.as_written(self.global_sites())
        with problem.session(0, self.parameters):
            values = row_log_likelihood(problem, arguments, sites)
        return WeightedDraws({}, values, np.zeros_like(values))

    @alone
    def moments_of_rows(
        self, data: Any, sites: Sequence[str], draws: int, seed: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The guide's own means and sds of rows' latents, by site, each (rows, ...).

        Args:
            data: New rows; None for the fit's own.
            sites: Which latents.
            draws: Of each row, where the guide's distributions have no means and sds.
            seed: Of these.
        """
        problem, arguments = self.problem, self.row_arguments(data)
        with self.guide_of_rows(checked_seed(seed)) as guide:
            return row_weights.moments_of_rows(
                problem.function, guide, arguments, problem.space, sites, draws, self._shared
            )

    @alone
    def elbo(self, data: Any = None, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """The evidence lower bound in nats and its standard error, from fresh draws.

        Args:
            data: New rows for an amortised guide; by default the fit's own.
            draws: How many.
            seed: Of the draws.
        """
        check_options(ElboOptions, draws=draws, seed=seed)
        return self.draw(draws, seed, data).elbo()

    @alone
    def summary(self, interval: float = 0.9) -> pd.DataFrame:
        """Mean, sd and an equal-tailed interval of every quantity."""
        check_options(SummaryOptions, interval=interval)
        return summarise(self.posterior, interval)

    @alone
    def to_arviz(self) -> Any:
        """The posterior as the installed ArviZ takes it: InferenceData on 0.x, the tree on 1.x."""
        return to_arviz(self.posterior)

    @alone
    def to_zarr(self, path: str | Path) -> Path:
        """Writes the posterior as a Zarr store, which `xarray.open_datatree` opens.

        Raises:
            OptionError: If Zarr is not installed.
            RunFolderError: If there is something at the path already, or it cannot be written.
        """
        return to_zarr(self.posterior, path)

    @alone
    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes the run folder, completely or not at all.

        Args:
            path: Of the folder.
            overwrite: Whether to replace Elbowroom's own files, if it exists. All other files stay.

        Raises:
            RunFolderError: If it cannot be written, exists and `overwrite` is not given, or has a
                file under a name that is needed that was changed or is not Elbowroom's.
        """
        own = self.folder == Path(path)
        run_folder.save(self._run(), Path(path), overwrite or own, keep=own)
        return Path(path)

    def _run(self) -> run_folder.Run:
        parameters = {
            f"parameter.{name}": value.cpu()
            for name, value in self.parameters.values.items()
            if not name.startswith(baselines.PREFIX)
        }
        parameters |= {
            f"start.{name}": value.cpu()
            for name, value in vars(self.start).items()
            if value is not None
        }
        parameters |= {f"form.{name}": value.cpu() for name, value in stored(self.problem.forms)}
        if self.proposal is not None:
            parameters.update(
                {
                    f"proposal.{name}": torch.as_tensor(value)
                    for name, value in self.proposal.arrays().items()
                }
            )
        options = {} if self.problem.options is None else asdict(self.problem.options)
        trained = self.trained
        history = pd.DataFrame(
            {
                "step": np.arange(1, len(trained.elbo_history) + 1),
                "elbo": trained.elbo_history,
                "learning_rate": trained.learning_rates,
            }
        )
        # At each step they would have to be told apart; they are taken once, at the end.
        for name in ("expected_log_likelihood", "kl_to_prior"):
            if name in self.diagnostics and len(history):
                history.loc[history.index[-1], name] = self.diagnostics[name]
        return run_folder.Run(
            config=Config.of(
                {
                    "model": self.problem.model.name,
                    "registered_model": self.problem.model_name is not None,
                    "options": options,
                    "guide": self.guide.name,
                    "settings": self.settings.flat(),
                    "engine": self.engine,
                    "reparameterised": list(self.problem.reparameterised),
                    "objective": list(self.objective),
                    "seed": self.seed,
                    "attributes": getattr(self.problem.data, "attrs", {}),
                }
            ),
            run=Outcome.of(
                {
                    "status": trained.status,
                    "reason": trained.reason,
                    "skipped": trained.skipped,
                    "seconds": trained.seconds,
                    "parameters": trained.parameters,
                    "versions": run_folder.versions(),
                    "notes": self.notes,
                    "verdict": self.verdict,
                    "evidence": self.evidence,
                    "origin": self.origin,
                }
            ),
            history=history,
            parameters=parameters,
            posterior=self.posterior,
            diagnostics=self.diagnostics,
            data=self.problem.data,
        )
