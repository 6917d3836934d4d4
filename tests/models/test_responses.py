"""The left side of a formula, and the families that take it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import elbowroom as er
from elbowroom.errors import DataError, ElbowroomError, OptionError
from elbowroom.models import Prepared, Training
from elbowroom.models._families import FAMILIES, LINKS, NUMBERS
from elbowroom.models._formula_text import code_in, spelled_out
from elbowroom.models._priors import read_prior
from elbowroom.models.bayesian_regression import Options, prepare
from elbowroom.options import declared, make_options
from elbowroom.problem.isolation import isolated
from elbowroom.report.terminal import show_plan


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def table(rows: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(0)
    x = random.normal(size=rows)
    found = pd.DataFrame({"x": x, "my column": random.normal(size=rows)})
    found["one"] = (random.random(rows) < 1 / (1 + np.exp(-x))).astype(int)
    found["answer"] = np.where(found["one"] == 1, "yes", "no")
    found["flag"] = found["one"] == 1
    found["kind"] = np.resize(["a", "b", "c"], rows)
    found["trials"] = random.integers(3, 9, rows)
    found["hits"] = random.binomial(found["trials"], 0.4).clip(1)
    found["count"], found["time"] = random.poisson(3, rows), random.exponential(size=rows)
    found["share"], found["number"] = random.beta(2, 2, rows), random.normal(size=rows)
    found["status"] = np.resize([0, 1, 0], rows)
    return found


def made(formula: str, new: pd.DataFrame | None = None, **options: Any) -> Prepared:
    given = make_options(Options, {"formula": formula, **options})
    first = prepare(table(), given)
    return first if new is None else prepare(new, given, Training(table(), first.arguments))


@pytest.mark.parametrize(
    ("left", "family", "ones"),
    [
        ('answer["no"]', "bernoulli", lambda t: t["answer"] == "no"),
        ("answer", "bernoulli", lambda t: t["answer"] == "yes"),
        ("flag", "bernoulli", lambda t: t["flag"]),
        ('kind["b"]', "bernoulli", lambda t: t["kind"] == "b"),
        ("p(hits, trials)", "binomial", lambda t: t["hits"]),
        ("proportion(hits, 9)", "binomial", lambda t: t["hits"]),
        ("number", "normal", lambda t: t["number"]),
        ("one", "normal", lambda t: t["one"]),
        ("np.log(time)", "normal", lambda t: np.log(t["time"])),
    ],
)
def test_the_family_follows_the_response(left: str, family: str, ones: Any) -> None:
    found = made(f"{left} ~ x")
    assert found.arguments["family"] == family
    assert found.arguments["link"] == FAMILIES[family].links[0]
    np.testing.assert_allclose(found.arguments["response"], ones(table()).astype(float))


def test_what_counts_as_one_is_said_where_it_was_not_written() -> None:
    (said,) = made("answer ~ x").doubts
    assert "'yes' counts as 1, and 'no' as 0" in said
    assert 'write answer["no"]' in said
    assert made('answer["yes"] ~ x').doubts == ()
    ordered = table().assign(answer=pd.Categorical(table()["answer"], ["yes", "no"]))
    found = prepare(ordered, Options(response="answer", columns=("x",)))
    assert "'no' counts as 1" in found.doubts[0]


def test_numbers_of_two_values_are_said_to_have_a_family() -> None:
    assert "--family bernoulli" in made("one ~ x").doubts[0]
    assert made("one ~ x", family="normal").doubts == ()
    assert made("one ~ x", family="bernoulli").doubts == ()


@pytest.mark.parametrize(
    ("formula", "options", "message"),
    [
        ("kind ~ x", {"family": "bernoulli"}, r'write kind\["a"\] ~'),
        ('kind["d"] ~ x', {}, "no level 'd'; its levels are a, b, c"),
        ("number ~ x", {"family": "gamma"}, "row 1: .* numbers above 0. .* --family normal"),
        ("number ~ x", {"family": "poisson"}, "takes counts: .* --family normal"),
        ("count ~ x", {"family": "beta"}, "without the ends.* --family poisson"),
        ("one ~ x", {"family": "beta"}, "without the ends.* --family bernoulli"),
        ("count ~ x", {"family": "bernoulli"}, "0 and 1.* --family poisson"),
        ("time ~ x", {"family": "poisson"}, r"takes counts.* --family gamma \(or lognormal"),
        ("hits ~ x", {"family": "binomial"}, r"write p\(hits, trials\)"),
        ("p(hits, trials) ~ x", {"family": "poisson"}, "give --family binomial"),
        ("p(trials, hits) ~ x", {}, r"more successes than trials.*p\(hits, trials\)"),
        ("p(time, trials) ~ x", {}, "column 'time', row 1: .* successes are counts"),
        ("p(hits, x) ~ x", {}, "column 'x', row .* trials are counts"),
        ("p(hits, 0) ~ x", {}, "column '0', row 1: 0; trials are counts"),
        ("p(hits) ~ x", {}, r"write p\(successes, trials\)"),
        ("p(hits, trials + 1) ~ x", {}, "add a column"),
        ("p(hits, trial) ~ x", {}, "'trial'"),
        ("answer ~ x", {"family": "gamma"}, "give --family bernoulli"),
        ("censored(time, status) ~ x", {}, "several families can be meant; give --family normal"),
        ("censored(one, status) ~ x", {"family": "bernoulli"}, "does not take censored"),
        ("truncated(number, 0) ~ x", {}, r"row 1: -1.5\d+; truncated\(number, 0\) says"),
        ("truncated(number, upper=x) ~ x", {}, "no row is above x: leave this row out"),
        ("truncated(one, 0) ~ x", {"family": "bernoulli"}, "does not take truncated"),
        ("truncated(number) ~ x", {}, r"write truncated\(y, lower=0, upper=10\)"),
        ("truncated(number, low=0) ~ x", {}, "did you mean 'lower'"),
        ("truncated(number, -x) ~ x", {}, "add a column"),
        ("truncated(number, -9) ~ x", {"priors": "conjugate"}, r"leave out truncated\(\)"),
        ("censored(time, count) ~ x", {"family": "weibull"}, "a status is one of none"),
        ("censored(time, kind) ~ x", {"family": "weibull"}, "the status 'a' is none of"),
        ("censored(number, status) ~ x", {"family": "weibull"}, "takes numbers above 0"),
        ("censored(time, 3) ~ x", {"family": "weibull"}, "the column of the status"),
        ("kind ~ x", {"family": "bernoulli"}, "categorical, or ordinal if they have an order"),
        ("one ~ x", {"family": "categorical"}, "are three or more; of two, give --family bern"),
        ("answer ~ x", {"family": "ordinal"}, "has 2 levels .* give --family bernoulli"),
        ("kind ~ 0 + x", {"family": "ordinal"}, "thresholds in the place of the intercept"),
        ("np.log(time) ~ x", {"family": "ordinal"}, "write the column alone"),
        ("kind ~ x", {"family": "ordinal", "prior": "intercept ~ normal(0, 1)"}, "'intercept'"),
        ("number ~ x", {"family": "norml"}, "did you mean 'normal'"),
        ("number ~ x", {"family": "normal", "link": "log"}, "has the link identity"),
        ("number ~ x", {"link": "logt"}, "did you mean 'logit'"),
        ("number ~ x", {"quantile": 0.3}, "it is for --family quantile"),
        ("number ~ x", {"weights": "weight"}, "'weight'"),
        ("number ~ x", {"weights": "number"}, "a weight must be 0 or more"),
    ],
)
def test_a_response_that_the_family_does_not_take_is_refused(
    formula: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ElbowroomError, match=message):
        made(formula, **options)


def test_a_response_of_one_level_is_refused() -> None:
    data = table().assign(answer="yes")
    with pytest.raises(DataError, match="same level in every row"):
        prepare(data, Options(formula="answer ~ x"))
    with pytest.raises(DataError, match="'one'"):
        prepare(table().assign(one=1), Options(formula="one ~ x", family="bernoulli"))


def test_intervals_need_two_ends() -> None:
    data = table().assign(known="interval", upper=table()["time"] + 1)
    with pytest.raises(DataError, match="an interval has two ends"):
        prepare(data, Options(formula="censored(time, known) ~ x", family="weibull"))
    options = Options(formula="censored(time, upper, known) ~ x", family="weibull")
    np.testing.assert_allclose(prepare(data, options).arguments["upper"], data["upper"])
    with pytest.raises(DataError, match="must be above the lower one"):
        prepare(data.assign(upper=data["time"]), options)


@pytest.mark.parametrize(
    "left", ["truncated(time, 0.5, None)", "truncated(time, lower=.5)", "truncated(time, lb=0.5)"]
)
def test_limits_are_given_by_place_or_name(left: str) -> None:
    data = table()
    data["time"] += 0.5
    found = prepare(data, Options(formula=f"{left} ~ x", family="gamma")).arguments
    assert found["truncated_lower"].tolist() == [0.5] * len(data)
    assert found["truncated_upper"].isinf().all()
    new = Training(data, found)
    again = prepare(data[["x"]].head(2), Options(formula=f"{left} ~ x", family="gamma"), new)
    assert again.arguments["truncated_lower"].tolist() == [0.5, 0.5]
    assert again.arguments["response"] is None


def test_limits_that_a_family_has_anyway_are_left_out() -> None:
    found = made("truncated(count, -2, 30) ~ x", family="poisson").arguments
    assert found["truncated_lower"].isinf().all()
    assert set(found["truncated_upper"].tolist()) == {30.5}
    found = made("truncated(share, 0, 1) ~ x", family="beta").arguments
    assert found["truncated_lower"].isinf().all()
    assert found["truncated_upper"].isinf().all()
    found = made("truncated(number, upper=9, lower=-9) ~ x").arguments
    assert found["family"] == "normal"
    assert set(found["truncated_lower"].tolist()) == {-9.0}


def test_what_a_status_of_numbers_means_is_said() -> None:
    (said,) = made("censored(time, status) ~ x", family="weibull").doubts
    assert "13 of 40 rows are censored" in said
    words = table().assign(status=np.where(table()["status"] == 1, "right", "none"))
    found = prepare(words, Options(formula="censored(time, status) ~ x", family="weibull"))
    assert found.doubts == ()
    assert float(found.arguments["status"].sum()) == 13


def test_new_rows_need_trials_and_no_response_status_or_weights() -> None:
    new = table().head(3)
    found = made("p(hits, trials) ~ x", new[["x", "trials"]]).arguments
    assert found["response"] is None
    np.testing.assert_array_equal(found["trials"], new["trials"])
    with pytest.raises(DataError, match="'trials'"):
        made("p(hits, trials) ~ x", new[["x"]])
    found = made("censored(time, status) ~ x", new[["x"]], family="weibull").arguments
    assert found["response"] is None
    assert not found["status"].any()
    found = made("number ~ x", new[["x"]], weights="trials").arguments
    assert torch.equal(found["weights"], torch.ones(3, dtype=torch.float64))
    found = made("answer ~ x", new.assign(answer=["yes", "no", "yes"])).arguments
    assert found["response"].tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(DataError, match="'maybe' did not occur"):
        made("answer ~ x", new.assign(answer=["yes", "maybe", "yes"]))
    with pytest.raises(DataError, match="row 2: the level is missing"):
        made("answer ~ x", new.assign(answer=["yes", np.nan, "yes"]))


def test_a_dot_is_every_other_column() -> None:
    data = table()[["x", "my column", "one", "trials"]]
    assert spelled_out("one ~ .", data) == "one ~ (x + `my column` + trials)"
    assert spelled_out("one ~ . - x + np.log(trials)", data).endswith(" - x + np.log(trials)")
    assert spelled_out("one ~ x + 0.5:trials", data) == "one ~ x + 0.5:trials"
    assert spelled_out("one ~ .", data, ["trials"]) == "one ~ (x + `my column`)"
    found = prepare(data, Options(formula="one ~ . - trials", family="bernoulli"))
    assert list(found.coords["predictor"]) == ["x", "my column"]
    cancer = er.load_dataset("breast_cancer")
    names = prepare(cancer, Options(formula="diagnosis ~ .")).coords["predictor"]
    assert len(names) == 30


def test_an_intercept_alone_is_fitted() -> None:
    fit = er.fit("bayesian_regression", table(), formula="count ~ 1", family="poisson", seed=1)
    assert fit.verdict.trusted
    assert "coefficients" not in fit.posterior["posterior"]
    mean = np.exp(fit.summary()["mean"]["intercept"])
    assert mean == pytest.approx(table()["count"].mean(), rel=0.05)
    assert len(fit.predict(table().head(2))) == 2


def test_a_probability_is_predicted_with_its_interval(tmp_path: Path) -> None:
    """By the draws of the coefficients, not by draws of 0 and 1; also by a run that is loaded."""
    fit = er.fit("bayesian_regression", table(), formula='answer["yes"] ~ x', seed=1)
    new = pd.DataFrame({"x": [-1.0, 2.0]})
    found = fit.predict(new, interval=0.8)
    assert list(found) == ["probability", "sd", "lower", "upper"]
    draws = fit.posterior["posterior"]
    eta = draws["intercept"].values[0] + new[["x"]].to_numpy() * draws["coefficients"].values[0].T
    shares = 1 / (1 + np.exp(-eta))  # (rows, draws)
    np.testing.assert_allclose(found["probability"], shares.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found["sd"], shares.std(1), rtol=1e-6)
    np.testing.assert_allclose(found["lower"], np.quantile(shares, 0.1, axis=1), rtol=1e-6)
    loaded = er.load(fit.save(tmp_path / "run"))
    pd.testing.assert_frame_equal(loaded.predict(new, interval=0.8), found)


@pytest.mark.parametrize(
    ("formula", "code"),
    [
        ('answer["yes"] ~ x', False),
        ("answer['yes please'] ~ x", False),
        ("p(hits, trials) ~ x + offset(log(time))", False),
        ("censored(time, status) ~ `my column` + log10(x)", False),
        ("truncated(time, lower=0, ub=`my column`) ~ x", False),
        ("truncated(time, lower=open(x)) ~ x", True),
        ('answer[open("file")] ~ x', True),
        ('x ~ answer["yes"]', True),
        ("one ~ x.log(time)", True),
        ("one ~ `x` + open(x)", True),
    ],
)
def test_a_loaded_formula_runs_no_code(formula: str, code: bool) -> None:
    assert (code_in(Options(formula=formula)) is not None) == code


def test_levels_have_the_order_of_numbers_of_a_category_or_of_the_alphabet() -> None:
    found = made("kind ~ x", family="ordinal")
    assert found.coords["threshold"] == ["a|b", "b|c"]
    assert "a < b < c" in found.doubts[0]
    assert "intercept" not in found.arguments
    data = table().assign(kind=pd.Categorical(table()["kind"], ["c", "a", "b"]))
    found = prepare(data, Options(formula="kind ~ x", family="ordinal"))
    assert found.coords["class"] == ["c", "a", "b"]
    assert found.doubts == ()
    data = table().assign(kind=np.resize([10, 2, 5], 40))
    found = prepare(data, Options(response="kind", columns=("x",), family="ordinal"))
    assert found.coords["threshold"] == ["2|5", "5|10"]
    assert found.arguments["response"][:3].tolist() == [2, 0, 1]
    options = Options(formula="kind ~ x", family="ordinal")
    training = Training(data, prepare(data, options).arguments)
    with pytest.raises(DataError, match=r"'7' did not occur"):
        prepare(data.head(2).assign(kind=[5, 7]), options, training)


def test_separation_and_collinearity_are_named() -> None:
    data = table().assign(twice=2 * table()["x"] + 1, tell=table()["one"] + 0.01 * table()["x"])
    (said,) = prepare(data, Options(formula="one ~ tell", family="bernoulli")).doubts
    assert "'tell' separates the rows of 'one' perfectly" in said
    (said,) = prepare(data, Options(formula="number ~ x + twice")).doubts
    assert "'twice' is a linear function of other predictors" in said


def test_some_rows_and_rows_of_a_class_that_are_separated_are_named() -> None:
    """A level whose rows are all alike, two columns together, and a class."""
    data = table()
    level = np.where(np.arange(40) < 4, "rare", "usual")
    data = data.assign(level=level, one=np.where(level == "rare", 1, data["one"]))
    (said,) = prepare(data, Options(formula="one ~ level", family="bernoulli")).doubts
    assert "'level[usual]' separates some rows of 'one' perfectly" in said
    data["rest"] = data["one"] - 0.3 * data["x"]
    (said,) = prepare(data, Options(formula="one ~ x + rest", family="bernoulli")).doubts
    assert "'x', 'rest' together separate the rows of 'one' perfectly" in said
    data["is_c"] = (data["kind"] == "c") + 0.001 * data["x"]
    said, reference = prepare(data, Options(formula="kind ~ is_c")).doubts[::-1]
    assert "'is_c' separates the rows of 'c' perfectly" in said
    assert "each class of 'kind' with 'a'" in reference
    assert prepare(data, Options(formula="kind ~ x")).doubts == (reference,)


def test_text_of_three_levels_is_of_classes_and_an_ordered_category_of_levels() -> None:
    assert made("kind ~ x").arguments["family"] == "categorical"
    order = pd.CategoricalDtype(["b", "c", "a"], ordered=True)
    data = table().assign(kind=table()["kind"].astype(order))
    assert prepare(data, Options(formula="kind ~ x")).arguments["family"] == "ordinal"
    data["kind"] = data["kind"].astype(pd.CategoricalDtype(["b", "c", "a"]))
    found = prepare(data, Options(response="kind", columns=("x",)))
    assert found.coords["level"] == ["c", "a"]
    assert found.dims["coefficients"] == ("level", "predictor")


def test_a_response_without_noise_is_named() -> None:
    x = np.random.default_rng(1).normal(size=(30, 2))
    data = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": 1e3 + x @ [3, -1], "z": x[:, 0].round(6)})
    (said,) = prepare(data, Options(formula="y ~ a + b")).doubts
    assert "'y' without an error" in said
    assert "--priors conjugate" in said
    assert prepare(data, Options(formula="z ~ a + b")).doubts == ()
    assert prepare(data.head(3), Options(formula="y ~ a + b")).doubts == ()
    (said,) = prepare(
        data.assign(y=np.exp(x[:, 0])), Options(formula="y ~ a", family="lognormal")
    ).doubts
    assert "'y' without an error" in said


def test_help_lists_every_family_and_link() -> None:
    text = {option.name: option.description for option in declared(Options)}
    assert all(name in text["family"] for name in FAMILIES)
    assert all(name in text["link"] for name in LINKS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_declared_whole(name: str) -> None:
    family = FAMILIES[name]
    assert family.name == name
    assert family.takes in NUMBERS
    assert set(family.links) <= set(LINKS)
    for parameter in family.parameters:
        assert parameter.unit in ("", "spread", "mean")
        assert str(read_prior(parameter.prior, name)) == parameter.prior


def test_a_guide_for_normal_noise_is_refused_for_another_family() -> None:
    """Also where the family follows from the data."""
    with pytest.raises(OptionError, match=r"'structured': .* give --family normal"):
        er.fit("bayesian_regression", table(), "structured", formula="answer ~ x", seed=1)


def test_what_follows_from_the_data_is_shown_before_the_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    er.fit(
        "bayesian_regression", table(), "laplace", formula="answer ~ x", seed=1, draws=100,
        announce=show_plan,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "family=bernoulli" in shown
    assert "link=logit" in shown
