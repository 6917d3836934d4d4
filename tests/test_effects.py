"""Adjusted predictions, slopes and contrasts: by hand from draws, and beside statsmodels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit, ndtr
from typer.testing import CliRunner

import elbowroom as er
from elbowroom.cli import app
from elbowroom.errors import ElbowroomError, ModelError, OptionError
from elbowroom.result import Fit


@dataclass(frozen=True)
class Made:
    """The rows that the fits are of."""

    rows: int = 300
    of_logit: int = 2000
    """Of the logistic regression: its posterior mean is then close to the estimate of maximum
    likelihood."""
    close: float = 1e-7
    """What differences of a function leave of its derivative's digits."""


MADE = Made()


def table(rows: int = MADE.rows, seed: int = 3) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    made = pd.DataFrame(
        {
            "x": random.normal(40, 8, rows), "z": random.normal(2, 1, rows),
            "c": random.choice(["mid", "low", "up"], rows, p=[0.5, 0.3, 0.2]),
            "t": random.random(rows) < 0.4, "g": random.choice([*"abcdef"], rows),
            "time": random.uniform(1, 5, rows), "n": random.integers(3, 9, rows),
            "w": random.choice([1.0, 2.0], rows), "k": random.choice([1, 2, 3], rows),
        }
    )  # fmt: skip
    eta = 0.05 * (made["x"] - 40) * made["z"] + (made["c"] == "up") - 0.7 * made["t"]
    made["y"] = 3 + eta + 0.3 * random.normal(size=rows)
    made["ill"] = np.where(random.random(rows) < expit(eta), "yes", "no")
    made["count"] = random.poisson(np.exp(eta / 3) * made["time"])
    made["hits"] = random.binomial(made["n"], expit(eta))
    made["grade"] = np.digitize(eta + random.logistic(size=rows), [-1.0, 1.0]).astype(float)
    return made


def fitted(formula: str, rows: pd.DataFrame | None = None, **options: Any) -> Fit:
    data = table() if rows is None else rows
    return er.fit("bayesian_regression", data, formula=formula, seed=1, draws=1000, **options)


@pytest.fixture(scope="module")
def linear() -> Fit:
    return fitted("y ~ x * z + c + t")


@pytest.fixture(scope="module")
def logistic() -> Fit:
    wide = {"coefficients": "normal(0, 100)", "intercept": "normal(0, 100)"}
    return fitted("ill ~ x + z + t + c", table(MADE.of_logit), priors=wide)


@pytest.fixture(scope="module")
def grouped() -> Fit:
    return fitted("count ~ x + c + offset(log(time)) + (0 + z | g)", family="poisson")


@pytest.fixture(scope="module")
def ordinal() -> Fit:
    return fitted("grade ~ x + c", family="ordinal", weights="w")


def drawn(fit: Fit, name: str, label: str | None = None) -> np.ndarray:
    values = fit.posterior["posterior"][name]
    chosen = values if label is None else values.sel(predictor=label)
    return chosen.values.reshape(-1, *chosen.shape[2:])


def same(found: pd.Series, draws: np.ndarray, rtol: float = MADE.close) -> bool:
    """Whether a line describes these draws."""
    lower, upper = np.quantile(draws, [0.05, 0.95])
    described = [draws.mean(), draws.std(), lower, upper]
    return np.allclose(found[["mean", "sd", "lower", "upper"]].astype(float), described, rtol=rtol,
                       atol=rtol * draws.std())  # fmt: skip


def line(effects: pd.DataFrame, **wanted: Any) -> pd.Series:
    """The only line with these cells."""
    chosen = effects[np.all([effects[name] == value for name, value in wanted.items()], axis=0)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_slopes_and_contrasts_of_a_linear_regression_are_its_coefficients(linear: Fit) -> None:
    b = {name: drawn(linear, "coefficients", name)
         for name in ("x", "x:z", "c[mid]", "c[up]", "t")}  # fmt: skip
    slopes = linear.effects(slopes="x", by="z=0,3")
    assert same(line(slopes, z=0.0), b["x"])
    assert same(line(slopes, z=3.0), b["x"] + 3 * b["x:z"])
    averaged = linear.effects(slopes=["x", "t"])
    assert same(line(averaged, column="x"), b["x"] + linear.problem.data["z"].mean() * b["x:z"])
    assert same(line(averaged, value="True - False"), b["t"])
    contrasts = linear.effects(contrasts=["c", "x=30,50"])
    assert contrasts["value"].tolist() == ["mid - low", "up - low", "up - mid", "50 - 30"]
    assert same(line(contrasts, value="up - low"), b["c[up]"])
    assert same(line(contrasts, value="up - mid"), b["c[up]"] - b["c[mid]"])
    middle = linear.problem.data["z"].mean()
    assert same(line(contrasts, value="50 - 30"), 20 * (b["x"] + middle * b["x:z"]))
    first = linear.effects(slopes="c")
    assert first["value"].tolist() == ["mid - low", "up - low"]
    assert "averaged over the 300 fitted rows" in first.attrs["notes"][0]


def test_means_are_at_the_means_and_the_most_common_levels(linear: Fit) -> None:
    data = linear.problem.data
    mean = drawn(linear, "intercept") + drawn(linear, "coefficients", "c[mid]")  # t is False
    names, values = ["x", "z", "x:z"], [45.0, data["z"].mean(), 45 * data["z"].mean()]
    for name, value in zip(names, values, strict=True):
        mean = mean + value * drawn(linear, "coefficients", name)
    found = linear.effects({"x": [45]})
    assert same(found.iloc[0], mean)
    noted = f"Means are at z = {data['z'].mean():.5g}, c = mid, t = False."
    assert found.attrs["notes"] == [noted]
    whole = linear.effects()
    assert whole["column"].unique().tolist() == ["x", "z", "c", "t"]
    x = whole[whole["column"] == "x"]["value"].astype(float)
    assert (x.min(), x.max()) == (data["x"].min(), data["x"].max())
    assert np.allclose(np.diff(x), np.diff(x)[0])
    by = linear.effects(means="c", by="z")["z"].unique()
    assert np.allclose(by, data["z"].mean() + data["z"].std() * np.array([-1, 0, 1]))


def probabilities(fit: Fit, rows: pd.DataFrame) -> np.ndarray:
    """Of the logistic regression, row by row, (draws, rows)."""
    columns = {"x": rows["x"], "z": rows["z"], "t": rows["t"] * 1.0}
    columns |= {f"c[{level}]": (rows["c"] == level) * 1.0 for level in ("mid", "up")}
    slopes = np.stack([drawn(fit, "coefficients", name) for name in columns], 1)
    design = np.stack([np.asarray(column) for column in columns.values()], 1)
    level = drawn(fit, "intercept")
    return np.stack([expit(level + slopes @ row) for row in design], 1)


def test_average_marginal_effects_of_a_logistic_regression(logistic: Fit) -> None:
    """By hand, and beside those of maximum likelihood, since the priors are wide."""
    data = logistic.problem.data
    found = logistic.effects(slopes=["x", "z"])
    p = probabilities(logistic, data)
    for name in ("x", "z"):
        slope = (p * (1 - p)).mean(1) * drawn(logistic, "coefficients", name)
        assert same(line(found, column=name), slope)
    design = sm.add_constant(
        data[["x", "z"]].assign(t=data["t"] * 1.0, mid=data["c"] == "mid", up=data["c"] == "up")
    )  # fmt: skip
    reference = sm.Logit((data["ill"] == "yes") * 1.0, design * 1.0).fit(disp=0).get_margeff()
    shift = (found["mean"] - reference.margeff[:2]) / reference.margeff_se[:2]
    assert np.abs(shift).max() < 0.1
    assert np.allclose(found["sd"], reference.margeff_se[:2], rtol=0.1)


def test_averages_are_those_of_a_loop_over_rows(logistic: Fit) -> None:
    data = logistic.problem.data
    up, low = (probabilities(logistic, data.assign(c=level)).mean(1) for level in ("up", "low"))
    found = logistic.effects("c", contrasts="c=low,up", average=True)
    assert same(line(found, value="up"), up)
    assert same(line(found, value="up - low"), up - low)
    assert same(line(logistic.effects(slopes="c"), value="up - low"), up - low)
    half = logistic.effects("c=up", average=True, interval=0.5).iloc[0]
    assert np.allclose([half["lower"], half["upper"]], np.quantile(up, [0.25, 0.75]))
    assert found.attrs["notes"] == ["Means and contrasts are averaged over the 2,000 fitted rows."]
    linear = logistic.effects("c=up", scale="linear", average=True)
    p = probabilities(logistic, data.assign(c="up"))
    assert same(linear.iloc[0], np.log(p / (1 - p)).mean(1))
    assert found.attrs["response"] == "probability that ill is yes"


def test_groups_are_typical_and_an_offset_is_at_its_column_s_mean(grouped: Fit) -> None:
    time = grouped.problem.data["time"].mean()
    eta = drawn(grouped, "intercept") + 42 * drawn(grouped, "coefficients", "x")
    eta = eta + drawn(grouped, "coefficients", "c[mid]")
    found = grouped.effects("x=42")
    assert same(found.iloc[0], time * np.exp(eta))
    assert same(grouped.effects("time=2", by="x=42").iloc[0], 2 * np.exp(eta))
    assert "Group effects (g) are zero: this is a typical group." in found.attrs["notes"]
    assert found.attrs["response"] == "mean of count"
    assert grouped.effects()["column"].unique().tolist() == ["x", "c"]


def test_levels_have_a_probability_each(ordinal: Fit) -> None:
    """Averages are of weighted rows."""
    data = ordinal.problem.data
    slope, up = (drawn(ordinal, "coefficients", name) for name in ("x", "c[up]"))
    ends = drawn(ordinal, "thresholds")  # (draws, 2)

    def by_hand(x: float) -> list[np.ndarray]:
        below = expit(ends - (slope * x + up)[:, None])
        return [below[:, 0], below[:, 1] - below[:, 0], 1 - below[:, 1]]

    found = ordinal.effects({"x": [50.0]}, by={"c": ["up"]})
    assert [found.columns.tolist()[:5]] == [["effect", "column", "value", "c", "level"]]
    for level, expected in zip(["0", "1", "2"], by_hand(50.0), strict=True):
        assert same(line(found, level=level), expected)
    averaged = ordinal.effects("c=up", average=True)
    rows = np.stack([np.stack(by_hand(x)) for x in data["x"]])  # (rows, levels, draws)
    weighted = np.average(rows, axis=0, weights=data["w"])
    assert all(same(averaged.iloc[k], weighted[k]) for k in range(3))
    at = np.average(data["x"], weights=data["w"])
    assert f"x = {at:.5g}" in ordinal.effects("c").attrs["notes"][0]


def test_curves_numbers_in_c_and_trials() -> None:
    fit = fitted("p(hits, n) ~ x + I(x**2) + C(k)", link="probit")
    eta = [drawn(fit, "coefficients", name) for name in ("x", "I(x ** 2)")]
    slope = eta[0] + 2 * fit.problem.data["x"].mean() * eta[1]
    assert same(fit.effects(slopes="x", scale="linear").iloc[0], slope, 1e-5)
    found = fit.effects(["k", "x=40"])
    assert found["value"].tolist() == ["1", "2", "3", 40.0]
    assert found.attrs["response"] == "probability of hits"
    eta = drawn(fit, "intercept") + 40 * eta[0] + 1600 * eta[1]
    most = fit.problem.data["k"].mode()[0]
    if most > 1:
        eta = eta + drawn(fit, "coefficients", f"C(k)[{most}]")
    assert same(found.iloc[3], ndtr(eta))
    assert fit.effects(contrasts="k=3,1")["value"].tolist() == ["1 - 3"]


def test_ordered_categories_and_a_quantile_are_as_they_are() -> None:
    levels = pd.CategoricalDtype(["up", "mid", "low"], ordered=True)
    data = table().assign(value=lambda rows: rows["c"].astype(levels))
    fit = fitted("y ~ value + x", data, family="quantile", quantile=0.9)
    found = fit.effects(slopes="x", by="value")
    assert found["value (by)"].tolist() == ["up", "mid", "low"]
    assert found.attrs["response"] == "0.9 quantile of y"
    assert fit.effects(slopes="value")["value"].tolist() == ["mid - up", "low - up"]
    mean = fit.effects("value=up", by="x=40").iloc[0]
    assert same(mean, drawn(fit, "intercept") + 40 * drawn(fit, "coefficients", "x"))


def test_a_negative_binomial_model_has_them_with_its_exposure() -> None:
    fit = er.fit(
        "negative_binomial", table(), formula="count ~ z", exposure="time", seed=1, draws=500
    )
    eta = drawn(fit, "intercept") + drawn(fit, "coefficients", "z") * 2
    found = fit.effects("z=2", by="time=3")
    assert same(found.iloc[0], 3 * np.exp(eta))
    assert same(fit.effects("z=2", by="time=3", scale="linear").iloc[0], eta + np.log(3))


def test_fewer_draws_and_rows_at_once_give_the_same(
    linear: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    import elbowroom.effects as module

    whole = linear.effects("c", average=True)
    monkeypatch.setattr(module, "SIZES", module.Sizes(rows=1))
    assert np.allclose(linear.effects("c", average=True)["mean"], whole["mean"])
    monkeypatch.setattr(module, "SIZES", module.Sizes(work=1.0))
    fewer = linear.effects("c", average=True)
    assert not np.allclose(fewer["mean"], whole["mean"], rtol=1e-9)
    assert "averages are of 400 of" in fewer.attrs["notes"][-1]
    assert not any("averages are of" in note for note in whole.attrs["notes"])
    assert np.abs((fewer["mean"] - whole["mean"]) / whole["sd"]).max() < 5 / np.sqrt(400)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"means": "xx"}, ["--means xx", "not among the predictors", "did you mean 'x'", "x, c"]),
        ({"slopes": "g"}, ["--slopes g", "group effects alone", "summary RUN"]),
        ({"means": "z"}, ["--means z", "group effects alone"]),
        ({"means": "c=upp"}, ["'c' is a category", "did you mean 'up'", "low, mid, up"]),
        ({"contrasts": "c=1,2"}, ["c=1", "no fitted row has this level", "low, mid, up"]),
        ({"means": "x=high"}, ["x=high: 'x' is a number; give numbers, such as x=1,2"]),
        ({"means": "x=nan"}, ["x=nan", "is a number"]),
        ({"means": "x="}, ["--means x=", "write values"]),
        ({"contrasts": "x"}, ["--contrasts x", "write two values, x=LOW,HIGH"]),
        ({"contrasts": "x=3,3"}, ["--contrasts x: two different values"]),
        ({"contrasts": "c=up"}, ["two different values"]),
        ({"slopes": "x=1"}, ["--slopes x", "leave out the values", "--contrasts x=LOW,HIGH"]),
        ({"means": "x", "by": "x"}, ["--by x is the column of --means x; leave it out"]),
        ({"by": ["x=1", "x=2"]}, ["--by: a column is given twice"]),
        ({"by": ["x", "c"]}, ["no column of the formula", "leave out --by"]),
        ({"interval": 1.0}, ["--interval 1.0", "above 0 to below 1"]),
        ({"scale": "logit"}, ["--scale logit", "response or linear"]),
        ({"by": {"time": [*range(2000)], "x": [*range(2000)]}}, ["GB of memory", "fewer values"]),
    ],
)
def test_what_cannot_be_asked_is_said(grouped: Fit, asked: Any, words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        grouped.effects(**asked)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_other_models_are_refused_and_what_is_beyond_the_rows_is_said(mixture: Fit) -> None:
    with pytest.raises(ModelError, match=r"no command 'effects'.*regression, negative_.*predict"):
        mixture.effects()
    with pytest.raises(ModelError, match=r"--scale linear: .*no linear predictor.*Leave it out"):
        mixture.predict(scale="linear")
    with pytest.raises(ModelError, match=r"--draws: .*probabilities of components"):
        mixture.predict(draws=3)
    fit = fitted("y ~ bs(x, df=4) + z")
    asked: Any
    for asked in ({"means": "x=40,99"}, {"means": "z", "by": "x=40,99"}):
        notes = fit.effects(**asked).attrs["notes"]
        assert any("Beyond the fitted rows" in note and "x = 99:" in note for note in notes)
    assert np.isfinite(fit.effects(slopes="x").iloc[0]["mean"])
    with pytest.raises(OptionError, match=r"cannot be computed for every value of x .*: x from "):
        fitted("y ~ log(x) + z").effects("x=-1,40")
    constant = fitted("y ~ 1")
    with pytest.raises(OptionError, match="no column of the formula"):
        constant.effects()


def test_predict_has_scales_and_draws(logistic: Fit, ordinal: Fit, linear: Fit) -> None:
    rows = logistic.problem.data.head(4)
    p = probabilities(logistic, rows)
    response, eta = (logistic.predict(rows, scale=scale) for scale in ("response", "linear"))
    assert all(same(response.iloc[k], p[:, k]) for k in range(4))
    assert all(same(eta.iloc[k], np.log(p / (1 - p))[:, k]) for k in range(4))
    draws = logistic.predict(rows, scale="linear", draws=1000)
    assert draws.columns.tolist() == ["row", "draw", "prediction"]
    third = draws[draws["row"] == 3]
    assert third["draw"].tolist() == [*range(1, 1001)]
    assert np.allclose(np.sort(third["prediction"]), np.sort(np.log(p / (1 - p))[:, 2]))
    levels = ordinal.predict(ordinal.problem.data.head(2), draws=500)
    shares = ordinal.predict(ordinal.problem.data.head(2))
    seen = (levels[levels["row"] == 1]["prediction"] == "2").mean()
    assert abs(seen - shares["probability[2]"][0]) < 4 * np.sqrt(0.25 / 500)
    each = ordinal.predict(ordinal.problem.data.head(2), scale="response")
    assert np.allclose(each["2.mean"], shares["probability[2]"])
    apart = ordinal.predict(ordinal.problem.data.head(2), scale="response", draws=7)
    assert apart.columns.tolist() == ["row", "draw", "0", "1", "2"]
    assert np.allclose(apart[["0", "1", "2"]].sum(axis=1), 1)
    new = linear.predict(linear.problem.data.head(1), draws=1000)["prediction"]
    noise = drawn(linear, "sigma").mean()
    sd = np.hypot(noise, linear.predict(linear.problem.data.head(1), scale="linear")["sd"][0])
    assert abs(new.std() / sd - 1) < 4 / np.sqrt(2 * 1000)
    with pytest.raises(OptionError, match="--draws 1,001: the run has 1,000 draws"):
        linear.predict(draws=1001)


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    if isinstance(done.exception, ElbowroomError):
        return 1, str(done.exception)
    return done.exit_code, done.output


def test_the_command_prints_and_writes(
    grouped: Fit, ordinal: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = grouped.save(tmp_path / "run"), tmp_path / "effects"
    code, text = call(
        "effects", str(run), "--means", ".", "--slopes", "x", "--contrasts", "c",
        "--by", "time=1,2", "--interval", "0.8", "--output", str(out),
    )  # fmt: skip
    assert code == 0, text
    lines = [row.split() for row in text.splitlines()]
    assert ["x", "time", "mean", "sd", "10%", "90%"] in lines
    assert ["column", "value", "time", "mean", "sd", "10%", "90%"] in lines
    assert "Mean of count, 80% intervals" in text
    assert "Group effects (g) are zero" in text
    assert sum(row[:1] == ["c"] for row in lines) == 1 + 6  # a heading, and the contrasts
    written = pd.read_csv(out / "effects.csv")
    again = grouped.effects(".", "x", "c", by="time=1,2", interval=0.8)
    assert written["mean"].to_numpy() == pytest.approx(again["mean"].to_numpy())
    assert len(written) == 2 * (61 + 3 + 1 + 3)
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    code, text = call("effects", str(run), "--means", "x=42", "--scale", "linear", "--average")
    assert "Linear predictor of count" in text
    assert "warning" not in text
    assert call("effects", str(run), "--means", "xx")[0] == 1
    doubtful = er.fit(
        "bayesian_regression", table(), "mean_field", formula="y ~ x + z", seed=1, steps=1,
        draws=100, engine="svi",
    )  # fmt: skip
    code, text = call("effects", str(doubtful.save(tmp_path / "doubtful")))
    assert code == 0
    assert text.startswith("warning: this run is not trusted")
    code, text = call("predict", str(run), "--data", "x.csv", "--scale", "odds")
    assert code == 1
    assert "--scale odds: give response or linear" in text


Panels = Callable[..., list[Any]]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Panels:
    """The panels of a picture that is not written."""
    from elbowroom.report import effects as pictures

    def drawn_panels(fit: Fit, *asked: Any, **named: Any) -> list[Any]:
        figures: list[Any] = []
        monkeypatch.setattr(pictures, "save", lambda figure, *_: figures.append(figure))
        pictures.draw_effects(fit, fit.effects(*asked, **named))(tmp_path / "picture.png")
        return [ax for ax in figures[0].axes if ax.get_visible()]

    return drawn_panels


def test_a_picture_has_lines_for_numbers_and_points_for_levels(
    linear: Fit, ordinal: Fit, panels: Panels
) -> None:
    x, c = panels(linear, ["x", "c"], by="t")
    assert [len(each.get_xdata()) for each in x.lines[:2]] == [61, 61]
    assert len(x.collections) == 2  # bands
    assert [tick.get_text() for tick in c.get_xticklabels()] == ["low", "mid", "up"]
    found = linear.effects("c", by="t")
    assert c.lines[1].get_ydata() == pytest.approx(found["mean"].iloc[3:].to_numpy())
    assert x.get_ylim() == c.get_ylim()
    (differences,) = panels(linear, contrasts="c")
    assert [tick.get_text() for tick in differences.get_yticklabels()] == [
        "mid - low", "up - low", "up - mid"
    ]  # fmt: skip
    titles = [ax.get_title() for ax in panels(ordinal, "x", by="c")]
    assert titles == ["c = low", "c = mid", "c = up"]
