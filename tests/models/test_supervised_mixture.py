"""Mixtures of which some rows are labelled, beside sums over all assignments and quadrature."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import stats
from scipy.special import gammaln, logsumexp
from torch import Tensor

import elbowroom as er
from elbowroom.engines.em.expectation_maximisation import best_of
from elbowroom.errors import DataError, OptionError
from elbowroom.guides import Start, get_guide
from elbowroom.guides.gaussian_mixture import MixtureSteps
from elbowroom.models.gaussian_mixture import canonical, normals, starts
from elbowroom.objectives.elbo import make_objective, marked
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated
from elbowroom.problem.score import assignment_probabilities, score

ROUNDING = 1e-9
SHAPES = ("full", "diagonal", "spherical")
KINDS = ["north", None, "east", "north", "", "east", "north"]
"""Of seven rows, of which two have no label."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def few(kinds: list[Any] = KINDS) -> pd.DataFrame:
    x = np.random.default_rng(4).normal(size=(len(kinds), 2)) * [1.0, 20.0]
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": kinds})


def bound(table: pd.DataFrame, **options: Any) -> Problem:
    return bind_model("gaussian_mixture", table, {"labels": "kind", **options})[0]


def at_random(problem: Problem, count: int = 1) -> list[dict[str, Tensor]]:
    return [problem.space.constrain(torch.randn(problem.space.dimension)) for _ in range(count)]


def log_prior(values: dict[str, Tensor], shape: str) -> float:
    """Of the parameters, by scipy; an LKJ of two columns is flat over the correlation."""
    k = len(values["weights"])
    total = stats.dirichlet(np.ones(k)).logpdf(values["weights"].numpy())
    total += stats.norm(0, 2).logpdf(values["standardised_means"].numpy()).sum()
    scales = values["standardised_scales"].numpy()
    total += stats.lognorm(s=1, scale=np.exp(-1)).logpdf(scales).sum()
    return float(total - k * np.log(2) * (shape == "full"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("components", [2, 3])
def test_the_density_is_the_sum_over_all_assignments_that_the_labels_allow(
    shape: str, components: int
) -> None:
    problem = bound(few(), covariance_type=shape, components=components)
    assert problem.arguments["levels"] == ("east", "north")
    x = few()[["a", "b"]].to_numpy()
    own = [{"north": [1], "east": [0]}.get(kind or "", range(components)) for kind in KINDS]
    for values in at_random(problem, 3):
        weights, means, covariances = normals(problem.arguments, values, {})
        terms = [
            [
                np.log(weights[k]) + stats.multivariate_normal(means[k], covariances[k]).logpdf(row)
                for k in range(components)
            ]
            for row in x
        ]
        every = [
            sum(terms[row][k] for row, k in enumerate(assigned))
            for assigned in itertools.product(*own)
        ]
        assert len(every) == components**2
        found = score(problem.function, problem.arguments, values, problem.space)
        expected = logsumexp(every) + log_prior(values, shape)
        assert float(found.log_joint) == pytest.approx(expected, rel=ROUNDING)
        # The rows' own terms are their densities given their labels.
        rows = [
            logsumexp([terms[row][k] for k in each]) - (np.log(weights[each[0]]) if label else 0)
            for row, (each, label) in enumerate(zip(own, KINDS, strict=True))
        ]
        np.testing.assert_allclose(found.log_likelihood["x"], rows, rtol=1e-7)
        shares = assignment_probabilities(
            problem.function, problem.arguments, values, problem.space
        )["assignments"].T  # (rows, components)
        exact = [
            [
                np.exp(of_row[k] - logsumexp([of_row[j] for j in each])) * (k in each)
                for k in range(components)
            ]
            for of_row, each in zip(terms, own, strict=True)
        ]
        np.testing.assert_allclose(shares, exact, atol=1e-7)


def test_a_labelled_row_is_never_of_another_component_however_much_nearer_it_is() -> None:
    far = few()
    far.loc[0, ["a", "b"]] = 1e4, 1e5  # and labelled "north"
    problem = bound(far, covariance_type="diagonal")
    (values,) = at_random(problem)
    values["standardised_means"][0] = torch.tensor([2.2, 2.2])
    values["standardised_means"][1] = torch.tensor([-2.2, -2.2])
    values["standardised_scales"][:] = 0.01
    shares = assignment_probabilities(problem.function, problem.arguments, values, problem.space)
    assert shares["assignments"][:, 0].tolist() == [0.0, 1.0]
    gradient = torch.func.grad(
        lambda u: (
            score(
                problem.function, problem.arguments, problem.space.constrain(u), problem.space
            ).log_joint
        )
    )(problem.space.unconstrain(values))
    assert torch.isfinite(gradient).all()


def apart(unknown: float = 0.0) -> pd.DataFrame:
    """Two kinds whose order by name is not that of their column; some labels are left out."""
    random = np.random.default_rng(5)
    x = np.concatenate([random.normal(2.5, 1, 14), random.normal(0, 2, 26)])
    kinds = pd.Series(["low"] * 14 + ["side"] * 26)
    return pd.DataFrame({"x": x, "kind": kinds.mask(random.uniform(size=40) < unknown)})


def by_quadrature(table: pd.DataFrame) -> tuple[float, dict[str, float]]:
    """The log evidence of a fully labelled column, and the posterior mean of each kind's mean."""
    x = ((table["x"] - table["x"].mean()) / table["x"].std()).to_numpy()
    m, log_t = np.linspace(-4, 4, 1601)[:, None], np.linspace(-4, 2.5, 801)
    total, means = 0.0, {}
    for kind, rows in pd.Series(x).groupby(table["kind"].to_numpy()):
        each, t = rows.to_numpy(), np.exp(log_t)
        squares = ((each - each.mean()) ** 2).sum() + len(each) * (each.mean() - m) ** 2
        log_p = -0.5 * squares / t**2 - len(each) * (log_t + 0.5 * np.log(2 * np.pi))
        log_p = log_p + stats.norm(0, 2).logpdf(m) + stats.norm(-1, 1).logpdf(log_t)
        log_p += np.log((m[1, 0] - m[0, 0]) * (log_t[1] - log_t[0]))
        total += logsumexp(log_p)
        means[str(kind)] = float((np.exp(log_p - logsumexp(log_p)) * m).sum())
    counts = table["kind"].value_counts().to_numpy()
    k, n = len(counts), counts.sum()
    total += gammaln(k) - gammaln(n + k) + gammaln(counts + 1).sum()  # the labels, w integrated out
    scale = table["x"].std()
    return total - n * np.log(scale), {kind: table["x"].mean() + scale * mean for kind, mean in
                                       means.items()}  # fmt: skip


def test_with_all_labels_the_posterior_is_that_of_each_kind_by_itself() -> None:
    table = apart()
    evidence, means = by_quadrature(table)
    fit = er.fit(
        "gaussian_mixture", table, "full_rank", labels="kind", restarts=1, seed=1, draws=1000
    )
    found = fit.diagnostics
    assert abs(found["log_evidence"] - evidence) < 4 * found["log_evidence_se"] + 1e-3
    assert not any("labelling" in note for note in fit.notes)
    posterior = fit.posterior["posterior"]
    assert posterior["component"].values.tolist() == ["low", "side"]
    effective = 0.3 * 1000  # at least so many of the draws
    for kind, mean in means.items():
        draws = posterior["means"].sel(component=kind).values.ravel()
        assert draws.mean() == pytest.approx(mean, abs=4 * draws.std() / effective**0.5)
    # Dirichlet(1 + counts)
    share = stats.beta(15, 27)
    draws = posterior["weights"].sel(component="low").values.ravel()
    assert draws.mean() == pytest.approx(share.mean(), abs=4 * share.std() / effective**0.5)
    assert draws.std() == pytest.approx(share.std(), rel=4 / (2 * effective) ** 0.5)


def test_some_labels_name_the_components_and_new_rows_are_told_without_them() -> None:
    fit = er.fit(
        "gaussian_mixture", apart(0.7), "laplace", labels="kind", restarts=2, seed=1, draws=200
    )
    means = fit.posterior["posterior"]["means"]
    low, side = (means.sel(component=kind).values.ravel() for kind in ("low", "side"))
    assert (low > side).all()
    table = apart()
    predicted = fit.predict(table)
    assert list(predicted)[:3] == ["assignments", "probability[low]", "probability[side]"]
    right = (predicted["assignments"] == table["kind"]).mean()
    assert 0.7 < right < 1  # the kinds overlap
    pd.testing.assert_frame_equal(predicted, fit.predict(table[["x"]]))
    pd.testing.assert_frame_equal(predicted, fit.predict(table.assign(kind="unheard of")))
    # The fit's own rows are what the labels say.
    known, own = apart(0.7)["kind"], fit.predict()
    assert (own["assignments"] == known)[known.notna()].all()
    assert own["probability[low]"][known == "low"].to_numpy() == pytest.approx(1.0, abs=1e-12)
    assert (predicted["probability[low]"][known == "low"] < 1 - 1e-6).all()
    made = fit.generate(40, seed=3)
    assert list(made) == ["kind", "x"]
    assert set(made["kind"]) == {"low", "side"}
    assert (fit.generate(5, given={"kind": "side"})["kind"] == "side").all()
    with pytest.raises(DataError, match="the label 'top' did not occur in the fitted rows"):
        fit.generate(1, given={"kind": "top"})


def test_components_beyond_the_labels_are_numbered_and_the_others_stay() -> None:
    problem = bound(few(), components=4)
    assert problem.prepared.coords["component"] == [
        "east", "north", "unlabelled 1", "unlabelled 2",
    ]  # fmt: skip
    found = at_random(problem, 20)
    sites = {name: torch.stack([values[name] for values in found]) for name in found[0]}
    means = sites["standardised_means"]
    means[:, :, 0] = torch.tensor([3.0, 2.0, 1.0, 0.0]) + 0.1 * torch.randn(20, 4)
    sites["assignments"] = torch.arange(4).expand(20, 4)
    turned = canonical(sites, None, problem.arguments)
    assert torch.equal(turned["standardised_means"], means[:, [0, 1, 3, 2]])
    assert torch.equal(turned["weights"], sites["weights"][:, [0, 1, 3, 2]])
    assert turned["assignments"][0].tolist() == [0, 1, 3, 2]
    again = canonical(sites, turned, problem.arguments)
    assert torch.equal(again["weights"], turned["weights"])


def test_labels_of_any_kind_are_taken() -> None:
    numbers = bound(few([2, np.nan, 10, 2, np.nan, 10, 2]))
    assert numbers.prepared.coords["component"] == [2, 10]
    assert numbers.arguments["labels"].tolist() == [0, -1, 1, 0, -1, 1, 0]
    ordered = few()
    ordered["kind"] = pd.Categorical(ordered["kind"].replace("", None), ["north", "none", "east"])
    assert bound(ordered).arguments["levels"] == ("north", "east")
    assert bound(few([True, None, False] * 2)).arguments["levels"] == ("False", "True")
    only = bound(few(["one", None, None, "one"]), components=2)
    assert only.prepared.coords["component"] == ["one", "unlabelled"]
    every = bound(few(["u", "v", "u", "v"]), components=3)
    assert "the other 1 of the 3 components have no rows" in every.prepared.doubts[0]


@pytest.mark.parametrize(
    ("kinds", "options", "error", "said"),
    [
        (KINDS, {"labels": "sort"}, DataError, r"--labels sort: the table has no column 'sort'"),
        (["", " ", None], {}, DataError, r"--labels kind: the column is blank in every row; label"),
        (KINDS, {"columns": "a,kind"}, OptionError, "'kind' is in --labels; leave it out of --col"),
        (KINDS, {"components": 1}, OptionError,
         r"fewer than the 2 labels of column 'kind' \(east, north\); give 2 or more"),
        ([1.5, 2.0, 1.5], {}, DataError, "has 2 different values, such as 1.5; labels are text or"),
        (list(range(101)), {}, DataError, "has 101 different values"),
    ],
)  # fmt: skip
def test_wrong_labels_are_refused_with_the_edit(
    kinds: list[Any], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        bound(few(kinds), **options)


def test_every_start_has_the_labelled_rows_in_their_components() -> None:
    table = apart(0.5)
    problem = bound(table, components=3)
    found = starts(problem.arguments, 4, 0)
    assert len(found) == 4
    for values in found:
        low, side, _ = values["standardised_means"][:, 0].tolist()
        assert low > side
        joint = score(problem.function, problem.arguments, values, problem.space).log_joint
        assert torch.isfinite(joint)


@pytest.mark.parametrize("hard", [False, True])
def test_expectation_maximisation_keeps_the_labels(hard: bool) -> None:
    guide = "hard_em" if hard else "em"
    problem = bound(apart(0.5)).for_guide(get_guide(guide, "gaussian_mixture"))
    steps = MixtureSteps.of(problem.arguments, ["x"], hard)
    found = best_of(steps, 3, 0)
    assert found.status == "converged"
    assert (np.diff(found.elbo) > -1e-9).all()
    labels = problem.arguments["labels"]
    assert (found.expected.argmax(1) == labels)[labels >= 0].all()
    if not hard:
        sites = steps.sites(found.values)
        joint = score(problem.function, problem.arguments, sites, problem.space).log_joint
        assert found.elbo[-1] == pytest.approx(float(joint), rel=ROUNDING)


def test_with_all_labels_expectation_maximisation_is_each_kinds_own_moments() -> None:
    table = apart()
    fit = er.fit("gaussian_mixture", table, "em", labels="kind", restarts=1, seed=1, draws=100)
    own = fit.posterior["posterior"].isel(chain=0, draw=0)
    groups = table.groupby("kind")["x"]
    np.testing.assert_allclose(own["means"].values[:, 0], groups.mean(), rtol=1e-9)
    np.testing.assert_allclose(
        own["standard_deviations"].values[:, 0], groups.std(ddof=0), rtol=1e-9
    )
    np.testing.assert_allclose(own["weights"], groups.size() / 40, rtol=1e-9)


def test_a_label_with_too_few_rows_is_named_where_the_likelihood_alone_counts() -> None:
    table = few(["u", "u", "u", "v", "u", "u", "u"])
    fit = er.fit("gaussian_mixture", table, "em", labels="kind", restarts=1, seed=1, draws=100)
    assert "component 'v' collapses onto 1 row (4)" in str(fit.verdict)
    assert "label more rows, --covariance-type diagonal, or --guide map" in fit.verdict.advice


def test_probabilities_of_each_row_leave_the_labels_alone() -> None:
    problem = bound(apart(0.5))
    (begin,) = starts(problem.arguments, 1, 0)
    space, given = problem.space, {**problem.arguments, "batch_size": 20}
    guide = get_guide("local", "gaussian_mixture").build(
        space, Start(space.unconstrain(begin), torch.eye(space.dimension))
    )
    found = {}
    for name in ("trace_enum", "trace_graph"):
        objective = make_objective(name, 1, space)
        pair = marked(name, problem.function, guide)
        losses = [objective.loss(*pair, **given) for _ in range(80)]
        found[name] = np.mean(losses), np.std(losses) / 80**0.5
        _, surrogate = objective.loss_and_surrogate(*pair, given)
        inputs = list(dict(pyro.get_param_store().named_parameters()).values())
        for gradient in torch.autograd.grad(surrogate, inputs, materialize_grads=True):
            assert torch.isfinite(gradient).all()
    (one, its), (other, others) = found.values()
    assert np.isfinite(one)
    assert abs(one - other) < 4 * np.hypot(its, others)


def test_the_steps_of_a_sum_with_labels_are_recorded() -> None:
    fit = er.fit(
        "gaussian_mixture", apart(0.5), "local", labels="kind", steps=100, restarts=1, draws=100,
        seed=1, keep_local=True,
    )  # fmt: skip
    assert fit.trained.eager is None
    known = apart(0.5)["kind"].map({"low": 0, "side": 1})
    drawn = fit.posterior["posterior"]["assignments"].values[0]
    assert (drawn == known.to_numpy())[:, known.notna()].all()
