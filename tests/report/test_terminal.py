"""The terminal's tables: which numbers, rounded how, under which names and in which order."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray

from elbowroom import budget
from elbowroom.assess.verdict import CORRECTED, NOT_TRUSTED, TRUSTED, Verdict
from elbowroom.comparison import Comparison
from elbowroom.engines.settings import make_settings
from elbowroom.engines.svi.checks import Finding
from elbowroom.errors import OptionError
from elbowroom.report import terminal

NAN = math.nan
MEASURES: dict[str, Any] = {
    "elbo": -123.456, "elbo_se": 0.126, "k_hat": 0.456, "k_hat_threshold": 0.7,
    "elpd_loo": -98.76, "elpd_loo_se": 5.44, "high_k_rows": 0.0, "seconds": 1.25, "parameters": 7,
}  # fmt: skip
EVIDENCE: dict[str, Any] = {
    "log_evidence": -120.004, "log_evidence_se": 0.0149, "kl_to_posterior": 3.452,
    "kl_to_posterior_se": 0.127,
    "corrected_effective_sample_size": 1234.0, "corrected_k_hat": 0.3, "weighted_draws": 1000,
}  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that were printed, but for the spaces at their ends."""
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def cells(line: str) -> list[str]:
    """The cells of a line of a table, between which there are two spaces or more."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def value_of(lines: list[str], name: str) -> str:
    """What stands beside a name in a list of names and values; each name is there once."""
    (found,) = [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name}  ")]
    return found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (NAN, "-"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
        (12345.678, "1.235e+04"),
        (0.123456, "0.1235"),
        (3, "3"),
        ("a", "a"),
    ],
)
def test_a_number_has_four_digits(value: Any, text: str) -> None:
    assert terminal.number(value) == text
    assert terminal.number(0.123456, 2) == "0.12"


def fit_of(measures: dict[str, Any], points: Any = None, rows: int = 1) -> Any:
    """A made fit with some diagnostics, point parameters and a summary of some rows."""
    groups: dict[str, Any] = {"posterior": xarray.Dataset()}
    if points is not None:
        groups["point_parameters"] = xarray.Dataset({"p": ("n", points)})
    summary = pd.DataFrame(
        {"mean": [1.0, *[2.0] * (rows - 1)], "sd": 0.25, "eti90_lb": 0.5, "eti90_ub": 1.5},
        index=[f"x[{i}]" for i in range(rows)],
    )
    return SimpleNamespace(
        notes=["auto: printed before", "a note"],
        posterior=xarray.DataTree.from_dict(groups),
        trained=SimpleNamespace(reason="it converged after 3 steps."),
        diagnostics=measures,
        summary=lambda: summary,
    )


def test_a_fit_is_shown_from_its_reason_to_its_posterior(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.show_fit(fit_of({**MEASURES, **EVIDENCE, "log_likelihood": -77.777}))
    lines = printed(capsys)
    assert lines == [
        "",
        "It converged after 3 steps.",
        "A note",
        "",
        "ELBO                -123.46 ± 0.13 nats",
        "k-hat of the guide  0.46 (limit 0.70: importance sampling can correct it)",
        "log likelihood      -77.78 nats",
        "log p(data)         -120.00 ± 0.01 nats = ELBO + 3.45 ± 0.13 (KL divergence of the guide)",
        "elpd (LOO)          -98.8 ± 5.4 nats",
        "time                1.2 s, 7 fitted parameters",
        "",
        "quantity  mean    sd   5%  95%",
        "x[0]         1  0.25  0.5  1.5",
    ]


def test_the_parts_of_the_elbo_are_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"expected_log_likelihood": -100.0, "kl_to_prior": 23.456, "entropy": -4.0}
    errors = {f"{name}_se": 0.126 for name in parts}
    terminal.show_fit(fit_of({**MEASURES, **parts, **errors}))
    assert printed(capsys)[4:9] == [
        "ELBO                              -123.46 ± 0.13 nats",
        "  expected log likelihood         -100.00 ± 0.13 nats",
        "  - KL divergence from the prior  23.46 ± 0.13 nats",
        "  (entropy of the guide)          -4.00 ± 0.13 nats",
        "k-hat of the guide                0.46 (limit 0.70: importance sampling can correct it)",
    ]


def test_a_point_has_a_mean_and_no_sd(capsys: pytest.CaptureFixture[str]) -> None:
    """Below 1e-12, or a relative 1e-12 of larger means, the sd of equal draws is rounding."""
    fit = fit_of(MEASURES, rows=5)
    found = fit.summary()
    found["mean"] = [1.0, 2.0, 2.0, 0.0, 1e6]
    found["sd"] = [0.0, 1e-13, 1e-3, 1e-13, 1e-7]
    fit.summary = lambda: found
    terminal.show_fit(fit)
    assert [cells(line)[1:3] for line in printed(capsys)[-5:]] == [
        ["1", "-"], ["2", "-"], ["2", "0.001"], ["0", "-"], ["1e+06", "-"],
    ]  # fmt: skip


def test_what_has_no_meaning_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_fit(fit_of({**MEASURES, "elbo": NAN, "elpd_loo": NAN}))
    names = [cells(line)[0] for line in printed(capsys) if line]
    assert names == ["It converged after 3 steps.", "A note", "time", "quantity", "x[0]"]


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        (
            {"k_hat": 0.7},
            "k-hat of the guide",
            "0.70 (limit 0.70: importance sampling can correct it)",
        ),
        (
            {"k_hat": 0.701},
            "k-hat of the guide",
            "0.70 (limit 0.70: the guide misses a part of the posterior)",
        ),
        ({"high_k_rows": 0.126}, "elpd (LOO)", "unreliable for 13% of the rows"),
        ({"kl_to_posterior": -0.02}, "log p(data)", "= ELBO + 0.00 ± 0.13 ("),
        ({"kl_to_posterior": 0.5}, "log p(data)", "= ELBO + 0.50 ± 0.13 ("),
    ],
)
def test_a_line_of_a_fit(
    changes: dict[str, Any], name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.show_fit(fit_of({**MEASURES, **EVIDENCE, **changes}))
    assert text in value_of(printed(capsys), name)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, True),
        # 1 - 1 / log10(1000) = 2/3
        ({"corrected_k_hat": 0.66}, True),
        ({"corrected_k_hat": 0.67}, False),
        ({"corrected_effective_sample_size": 100.0}, True),
        ({"corrected_effective_sample_size": 99.0}, False),
        ({"unreliable_rows": 0.05, "corrected_k_hat": 2.0}, True),
        ({"unreliable_rows": 0.06}, False),
    ],
)
def test_the_evidence_is_told_where_its_weights_are_good(
    changes: dict[str, Any], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    measures = {**MEASURES, **EVIDENCE, **changes}
    terminal.show_fit(fit_of(measures))
    shown = value_of(printed(capsys), "log p(data)")
    if told:
        assert shown.startswith("-120.00 ± 0.01 nats")
    else:
        size = f"{measures['corrected_effective_sample_size']:,.0f}"
        assert shown == f"unknown: the estimate -120.00 nats rests on only {size} effective draws"


@pytest.mark.parametrize(
    ("k_hat", "shown"),
    [
        (-np.inf, "all importance weights are equal"),
        (0.7, "0.70 (limit 0.70: importance sampling can correct it)"),
        (0.71, "0.71 (limit 0.70: the guide misses a part of the posterior)"),
        (np.inf, "∞ (limit 0.70: the guide misses a part of the posterior)"),
    ],
)
def test_k_hat_is_shown_with_what_it_says(k_hat: float, shown: str) -> None:
    assert terminal.k_hat_in_words({"k_hat": k_hat, "k_hat_threshold": 0.7}) == shown


def test_long_tables_are_cut_and_say_how_much_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    for count, more in ((24, None), (25, 1), (30, 6)):
        terminal.show_fit(fit_of(MEASURES, np.arange(float(count)), rows=count))
        lines = printed(capsys)
        begin, middle = lines.index("point parameter  value"), lines.index(
            "quantity  mean    sd   5%  95%"
        )  # fmt: skip
        points = [cells(line) for line in lines[begin + 1 : begin + 25]]
        assert points == [[f"p[{i}]", str(i)] for i in range(24)]
        assert [cells(line)[0] for line in lines[middle + 1 : middle + 25]] == [
            f"x[{i}]" for i in range(24)
        ]
        said = [line for line in lines if line.startswith("… and")]
        assert [line.split()[2] for line in said] == ([] if more is None else [str(more)] * 2)
    terminal.show_summary(pd.DataFrame(columns=["mean", "sd"]))
    assert "no quantities that all rows share" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "name"),
    [("eti90_lb", "5%"), ("eti90_ub", "95%"), ("eti95_lb", "2.5%"), ("eti50_ub", "75%"),
     ("mean", "mean")],
)  # fmt: skip
def test_an_interval_is_named_by_its_tails(column: str, name: str) -> None:
    assert terminal._interval_name(column) == name


def test_a_saved_run_is_shown_with_its_verdict_last(capsys: pytest.CaptureFixture[str]) -> None:
    draws = np.random.default_rng(0).normal(size=(1, 400))
    posterior = xarray.Dataset({"x": (("chain", "draw"), draws)})
    tree = xarray.DataTree.from_dict({"posterior": posterior})
    verdict = Verdict(NOT_TRUSTED, ("One.", "Two."), "do this.")
    run: Any = SimpleNamespace(
        config=SimpleNamespace(model="m", guide="g", seed=5),
        run=SimpleNamespace(reason="done.", notes=["auto: kept here"], verdict=verdict),
        diagnostics=MEASURES, posterior=tree,
    )  # fmt: skip
    terminal.show_run(run, 0.5)
    lines = printed(capsys)
    assert lines[:4] == ["m, guide g, seed 5", "", "Done.", "Auto: kept here"]
    assert lines[-3:] == ["", "not trusted: One. Two.", "next: do this."]
    label, *numbers = cells(lines[-4])
    assert label == "x"
    quantiles = [draws.mean(), draws.std(ddof=1), *np.quantile(draws, [0.25, 0.75])]
    np.testing.assert_allclose([float(each) for each in numbers], quantiles, rtol=2e-2)
    assert cells(lines[-5]) == ["quantity", "mean", "sd", "25%", "75%"]
    with pytest.raises(OptionError, match=r"--interval 1\.5"):
        terminal.show_run(run, 1.5)
    assert capsys.readouterr().out == ""
    terminal.show_verdict(Verdict(TRUSTED, ("Fine.",)))
    assert printed(capsys) == ["", "trusted: Fine."]


ROW: dict[str, Any] = {
    "guide": "laplace", "best": True, "objective": "trace", "elbo": -10.126, "elbo_se": 0.014,
    "log_likelihood": NAN, "k_hat": 0.456, "elpd_loo": -9.87, "elpd_loo_se": 1.26, "seconds": 1.25,
    "parameters": 3.0, "converged": True, "verdict": TRUSTED, "error": "",
}  # fmt: skip
OTHER = {**ROW, "guide": "map", "best": False, "elbo": NAN, "k_hat": NAN, "converged": False,
         "verdict": NOT_TRUSTED, "elpd_loo": NAN}  # fmt: skip


def comparison(*rows: dict[str, Any], baseline: str = "laplace") -> Comparison:
    differences = pd.DataFrame(
        {
            "guide": ["laplace", "laplace", "map"],
            "quantity": ["a", "b", "a"],
            "mean_shift": [0.126, -0.5, 0.25],
            "sd_ratio": [0.876, 1.251, 0.0],
            "coverage": [0.455, 0.9, 0.0],
            "corrected_mean_shift": [0.026, 0.0, NAN],
            "corrected_sd_ratio": [1.0, 1.02, NAN],
            "corrected_coverage": [0.9, 0.91, NAN],
        }
    )
    problem = SimpleNamespace(model=SimpleNamespace(name="m"))
    verdict = Verdict(TRUSTED, ())
    fits: Any = {baseline: SimpleNamespace(problem=problem, verdict=verdict)}
    return Comparison(pd.DataFrame(rows), differences, fits, 5, baseline)


def shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *rows: Any, **given: Any
) -> list[str]:
    width = given.pop("width", 120)
    console = terminal.console

    def sized() -> Any:
        made = console()
        made.width = width
        return made

    monkeypatch.setattr(terminal, "console", sized)
    terminal.show_comparison(comparison(*rows, **given))
    monkeypatch.undo()
    return printed(capsys)


def test_a_comparison_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, ROW, OTHER, width=60)
    assert lines[:2] == ["", "m, seed 5"]
    table = [cells(line) for line in lines[2:5]]
    assert table == [
        ["guide", "verdict", "ELBO", "k-hat", "elpd", "s"],
        ["laplace ★", "trusted", "-10.13 ± 0.01", "0.46", "-9.9", "1.2"],
        ["map !", "no", "-", "-", "-", "1.2"],
    ]
    words = ("verdict", "trusted", "no")
    ends = [line.index(word) + len(word) for line, word in zip(lines[2:5], words, strict=True)]
    assert len(set(ends)) == 1  # numbers and words are flush right, names are left
    assert lines[-1] == "Take laplace: it is the only one that is trusted."


def test_own_draws_and_corrected_ones_are_beside_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, ROW, OTHER, width=140)
    at = lines.index("Draws beside laplace's posterior")
    assert [cells(line) for line in lines[at + 1 : at + 4]] == [
        ["guide", "own shift", "own sd ratio", "own 90% covers", "corrected shift",
         "corrected sd ratio", "corrected 90% covers"],
        ["laplace", "0.5", "0.88…1.25", "46%…90%", "0.026", "1.00…1.02", "90%…91%"],
        ["map", "0.25", "-", "-", "-", "-", "-"],
    ]  # fmt: skip
    bare = comparison(ROW, OTHER)
    doubtful = Verdict(NOT_TRUSTED, ())
    bare.fits["laplace"] = SimpleNamespace(  # type: ignore[assignment]
        problem=bare.fits["laplace"].problem, verdict=doubtful
    )
    terminal.show_comparison(bare)
    assert "Draws beside laplace's posterior, which is not trusted itself" in printed(capsys)


def test_a_comparison_on_a_wide_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**ROW, "log_likelihood": -8.126, "verdict": CORRECTED}, OTHER]
    lines = shown(monkeypatch, capsys, *rows)
    assert [cells(line) for line in lines[2:5]] == [
        ["guide", "verdict", "ELBO", "log likelihood", "k-hat", "elpd", "s", "parameters",
         "fitted by"],
        ["laplace ★", "corrected", "-10.13 ± 0.01", "-8.13", "0.46", "-9.9 ± 1.3", "1.2", "3",
         "trace"],
        ["map !", "no", "-", "-", "-", "-", "1.2", "3", "trace"],
    ]  # fmt: skip
    parts = {"expected_log_likelihood": -7.126, "kl_to_prior": 3.0}
    lines = shown(monkeypatch, capsys, {**ROW, **parts}, {**OTHER, "elpd_loo": NAN}, width=150)
    assert cells(lines[2])[2:5] == ["ELBO", "log likelihood part", "KL part"]
    assert cells(lines[3])[2:5] == ["-10.13 ± 0.01", "-7.13", "3.00"]


def test_a_column_without_a_number_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where rows have latents, there is no elpd, but there is what their weights tell."""
    of_rows = {"active_units": 2.0, "nll": 23.824, "nll_se": 0.001, "good_rows": 0.873}
    lines = shown(monkeypatch, capsys, {**ROW, **of_rows, "elpd_loo": NAN}, width=90)
    assert cells(lines[2]) == [
        "guide", "verdict", "ELBO", "k-hat", "s", "active", "NLL", "good rows",
    ]  # fmt: skip
    assert cells(lines[3])[-3:] == ["2", "23.82", "87%"]
    assert "NLL: minus the log density of a row" in " ".join(lines)


def test_columns_that_only_some_comparisons_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"test_log_density": -2.126, "test_log_density_se": 0.126, "test_unreliable": 0.06,
              "amortisation_gap": 0.254}  # fmt: skip
    sure = {**scores, "test_unreliable": 0.05}
    lines = shown(monkeypatch, capsys, {**ROW, **scores}, {**OTHER, **sure}, width=200)
    table = [cells(line) for line in lines[2:5]]
    assert table[0][-4:-2] == ["amortised", "test"]
    assert table[1][-4:-2] == ["0.25", "≥ -2.13 ± 0.13"]
    assert table[2][-4:-2] == ["0.25", "-2.13 ± 0.13"]
    said = " ".join(lines[5:])
    assert said.index("amortised: nats per row") < said.index("test: mean log density")
    assert "coverage:" not in said
    narrow = shown(monkeypatch, capsys, {**ROW, **scores}, width=100)
    assert cells(narrow[3])[-1] == "≥ -2.13"


def test_no_line_of_a_comparison_is_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns that have no room are left out, be it by one character."""
    scores = {"test_log_density": -2.126, "test_log_density_se": 0.126, "test_unreliable": 0.06}
    heads = set()
    for width in range(75, 150):
        lines = shown(monkeypatch, capsys, {**ROW, **scores}, {**OTHER, **scores}, width=width)
        assert [cells(line)[0] for line in lines[2:5]] == ["guide", "laplace ★", "map !"]
        assert lines[5].startswith("★ best ELBO")
        heads.add(cells(lines[2])[-1])
    assert heads == {"test", "fitted by"}


def test_a_guide_that_failed_and_the_sampler_as_baseline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {**OTHER, "guide": "flow", "error": "it does not fit [here]"}
    lines = shown(monkeypatch, capsys, ROW, failed, baseline="nuts")
    assert [cells(line)[0] for line in lines[2:4]] == ["guide", "laplace ★"]
    assert "Draws beside NUTS" in lines
    assert lines[-3] == "flow failed: it does not fit [here]"
    none = Comparison(pd.DataFrame([{**failed, "best": False}]), pd.DataFrame({"guide": []}), {}, 5)
    terminal.show_comparison(none)
    assert printed(capsys)[-1] == "flow failed: it does not fit [here]"


def test_estimators_are_shown_by_cost_at_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    def line(stage: str, estimator: str, cost: float, **given: Any) -> dict[str, Any]:
        usual = {"step": 1000, "signal": 12.345, "noise": 3.4567, "bias": 1.26, "biased": False,
                 "ms": 0.126, "recorded": True}  # fmt: skip
        return {"stage": stage, "estimator": estimator, "cost": cost, **usual, **given}

    table = pd.DataFrame(
        [
            line("start", "slow", 12.345, biased=True, recorded=False, signal=1.0),
            line("start", "quick", 1.0, bias=NAN),
            line("end", "quick", 1.0, signal=0.5),
        ]
    )
    terminal.show_estimators(table)
    lines = printed(capsys)
    assert lines[:5] == [
        "",
        "start, step 1,000: the gradient has norm 12.3",
        "estimator  noise   bias      ms  cost",
        "quick       3.46      -    0.13     1",
        "slow        3.46  1.3 !  0.13 e  12.3",
    ]
    assert lines[5:7] == ["", "end, step 1,000: the gradient has norm 0.5"]
    assert not any("log p(data)" in each for each in lines)
    table.attrs["evidence"] = [
        {"drawn_from": "prior", "draws": 4000, "log_evidence": -12.345, "log_evidence_se": 0.456,
         "effective_draws": 5.67, "wasted": 0.99858, "k_hat": 0.876},
    ]  # fmt: skip
    terminal.show_estimators(table)
    lines = printed(capsys)
    begin = lines.index("log p(data) by 4,000 draws")
    assert lines[begin + 1 : begin + 3] == [
        "drawn from    log p(data)  effective  wasted  k-hat",
        "prior       -12.35 ± 0.46        5.7   99.9%   0.88",
    ]


def test_a_reference_names_the_most_different_first(capsys: pytest.CaptureFixture[str]) -> None:
    count = 30
    table = {
        "quantity": [f"x{i}" for i in range(count)],
        "mean_shift": [(-1) ** i * i / 10 for i in range(count)],
        "sd_ratio": [1.25678] * count, "coverage": [0.8766] * count,
        "wasserstein": [0.0126] * count,
    }  # fmt: skip
    fit: Any = SimpleNamespace(diagnostics={"reference": table})
    terminal.show_reference(fit)
    lines = printed(capsys)
    assert cells(lines[0]) == ["quantity", "shift", "sd ratio", "90% covers", "Wasserstein"]
    assert cells(lines[1]) == ["x29", "-2.900", "1.257", "87.7%", "0.013"]
    named = [cells(line)[0] for line in lines[1:] if line.startswith("x")]
    assert named == [f"x{i}" for i in range(29, 5, -1)]
    assert lines[1].index("-2.900") + 6 == lines[0].index("shift") + 5  # flush right


@dataclass
class Options:
    components: int = 3
    columns: tuple[str, ...] = ("a", "b")
    response: str | None = None
    empty: tuple[str, ...] = ()


def plan_of(
    engine: str = "svi", options: Any = None, exact: bool = False, size: int = 0, rows: Any = None,
    data: Any = None, **settings: Any,
) -> Any:  # fmt: skip
    plate = None if rows is None else SimpleNamespace(size=rows)
    space = SimpleNamespace(subsampled=plate, parameters=SimpleNamespace(size=size))
    return SimpleNamespace(
        problem=SimpleNamespace(
            options=options, data=data, space=space, model=SimpleNamespace(name="m"),
            device=SimpleNamespace(type="cpu"),
            prepared=SimpleNamespace(arguments={"columns": "no"}),
        ),
        guide=SimpleNamespace(name="g", summary="a guide", exact=exact),
        settings=make_settings(settings),
        objective=("trace", "it fits"), seed=5, engine=engine,
    )  # fmt: skip


def plan_shown(capsys: pytest.CaptureFixture[str], **given: Any) -> dict[str, str]:
    terminal.show_plan(plan_of(**given))
    lines = printed(capsys)
    found: dict[str, str] = dict(line.split(maxsplit=1) for line in lines if line)
    assert len(found) == len([line for line in lines if line])
    return found


def test_a_plan_shows_every_option_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"a": [1.0] * 5, "b": 2.0})
    found = plan_shown(
        capsys, options=Options(), data=table, learning_rate=0.02, steps=300, batch_size=50,
        dtype="float32", schedule="constant", rows=100,
    )  # fmt: skip
    assert list(found.items()) == [
        ("model", "m components=3 columns=a,b"),
        ("data", "5 rows, 2 columns"),
        ("guide", "g: a guide"),
        ("engine", "svi: stochastic gradients"),
        ("objective", "trace: it fits"),
        ("optimiser", "Adam, rate 0.02 (constant), 300 steps, minibatches of 50"),
        ("numbers", "float32 on cpu, seed 5"),
    ]


def test_a_plan_without_options_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan_shown(capsys, data={"x": 1}, compile=True, autocast=True)
    assert found["model"] == "m"
    assert "data" not in found
    # 50,000 steps at most, where no batch makes an epoch
    assert "until it converges, at most 50,000 steps, compiled first" in found["optimiser"]
    assert ", layers in bfloat16 on cpu" in found["numbers"]
    found = plan_shown(capsys, rows=1000, batch_size=1)  # 100 epochs of 1,000 batches
    assert "at most 100,000 steps, minibatches of 1" in found["optimiser"]


def test_a_plan_of_a_deterministic_engine(capsys: pytest.CaptureFixture[str]) -> None:
    for engine in ("fixed_draws", "em"):
        found = plan_shown(capsys, engine=engine, restarts=4)
        assert found["engine"] == "trace: it fits"
        assert found["numbers"] == "float64 on cpu, 4 starts, seed 5"
        assert not {"objective", "optimiser"} & set(found)
    exact = plan_shown(capsys, exact=True)
    assert set(exact) == {"model", "guide", "numbers"}  # nothing is optimised
    assert "optimiser" in plan_shown(capsys, exact=True, size=2)  # but the model's parameters


def test_findings_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_findings(
        [Finding("sites", "ok", "all [a] there"), Finding("columns", "error", "no")]
    )
    lines = printed(capsys)
    assert [cells(line) for line in lines] == [
        ["check"], ["sites", "ok", "all [a] there"], ["columns", "error", "no"],
    ]  # fmt: skip


def test_in_a_pipe_there_are_no_bars() -> None:
    for bars in (terminal.progress("g"), terminal.sampling(), terminal.progresses()):
        with bars as report:
            assert report is None


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The bars of a terminal that is none, in the order in which they were made."""
    made: list[Any] = []
    real, progress = terminal.Console, terminal.Progress

    def console(**given: Any) -> Any:
        assert given.pop("stderr")  # results are on standard output
        return real(force_terminal=True, file=io.StringIO(), width=150, **given)

    def kept(*columns: Any, **given: Any) -> Any:
        made.append(progress(*columns, **given))
        return made[-1]

    monkeypatch.setattr(terminal, "Console", console)
    monkeypatch.setattr(terminal, "Progress", kept)
    return made


def line_of(bars: Any) -> list[str]:
    console = terminal.Console(stderr=True)
    with console.capture() as captured:
        console.print(bars.make_tasks_table(bars.tasks))
    return captured.get().split()


def test_a_bar_shows_step_elbo_rate_and_speed(bars: list[Any]) -> None:
    with terminal.progress("guide") as report:
        assert report is not None
        (task,) = bars[0].tasks
        assert (task.total, task.completed) == (None, 0)
        with budget.limited(60.0), budget.stage("searching for modes"):
            assert " searching for modes" in " ".join(line_of(bars[0]))
        report(250, 1000, -12.345, 0.0126)
        assert (task.total, task.completed) == (1000, 250)
        shown = " ".join(line_of(bars[0]))
        for text in ("guide", "step 250", "ELBO -12.35", "rate 1.3e-02", "steps/s"):
            assert text in shown
    assert bars[0].live.transient  # it goes when the fit has ended


def test_a_bar_of_the_sampler_shows_divergences(bars: list[Any]) -> None:
    with terminal.sampling() as report:
        assert report is not None
        assert "0 divergences" in " ".join(line_of(bars[0]))
        assert bars[0].tasks[0].total is None  # not known yet
        report(30, 120, 4)
        shown = " ".join(line_of(bars[0]))
        assert "draw 30 of 120" in shown
        assert "4 divergences" in shown


def test_what_matters_stands_out_and_explanations_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    colours = terminal.Console(
        file=out, force_terminal=True, color_system="standard", width=200, highlight=False
    )
    monkeypatch.setattr(terminal, "console", lambda: colours)
    bold, dim, green, yellow, red = "1", "2", "32", "33", "31"
    table = pd.DataFrame({"stage": ["s"], "step": 1, "estimator": "e", "signal": 1.0, "cost": 1.0,
                          "noise": 1.0, "bias": 1.0, "biased": False, "ms": 1.0,
                          "recorded": True})  # fmt: skip
    reference = {"quantity": ["x"], "mean_shift": [1.0], "sd_ratio": [1.0], "coverage": [1.0],
                 "wasserstein": [1.0]}  # fmt: skip
    terminal.show_verdict(Verdict(TRUSTED, ("Fine.",), "Go."))
    terminal.show_verdict(Verdict(NOT_TRUSTED, ("Odd.",)))
    terminal.show_findings([Finding(level, level, "t") for level in ("ok", "warning", "error")])
    terminal.show_rung("a rung")
    terminal.show_estimators(table)
    terminal.show_reference(SimpleNamespace(diagnostics={"reference": reference}))  # type: ignore[arg-type]
    failed = {**OTHER, "guide": "flow", "error": "no"}
    terminal.show_comparison(comparison({**ROW, "amortisation_gap": 1.0}, OTHER, failed))
    shown = out.getvalue()
    for style, text in (
        (f"{bold};{green}", "trusted"), (bold, "next"), (f"{bold};{yellow}", "not trusted"),
        (green, "ok"), (yellow, "warning"), (f"{bold};{red}", "error"), (dim, "a rung"),
        (bold, "s, step 1"), (dim, "noise: square"), (dim, "own: the guide's own"),
        (bold, "m, seed 5"), (dim, "★ best"), (bold, "laplace ★"), (dim, "amortised: nats"),
        (yellow, "flow failed"),
    ):  # fmt: skip
        assert f"\x1b[{style}m{text}" in shown, text
    assert "\nmap !" in shown  # only the best is bold


def test_where_results_are(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_rung("tried [a]: no")
    terminal.show_saved(Path("a/[b]"))
    assert printed(capsys) == ["tried [a]: no", "", "results: a/[b]"]
