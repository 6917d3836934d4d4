"""Verbs on rows, of made fits whose answers are known: means, units, order, bounds and seeds."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from elbowroom import rows as verbs
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.errors import DataError, ModelError, OptionError
from elbowroom.guides.space import Plate
from elbowroom.models import ROWS, get_model, model_summaries

WEIGHTS = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
"""Of two latents, for three cells."""
CELLS = ("a", "b", "c")
LABELS = (0.0, 100.0, 200.0, 300.0)
"""Of the fitted rows: what is known of them, and is added to each cell."""


def model(
    x: Tensor | None = None,
    label: Tensor | None = None,
    rows: int | None = None,
    batch_size: int | None = None,
) -> None:
    """Cells of next to no noise about WEIGHTS z + level + label."""
    level = pyro.sample("level", dist.Normal(torch.tensor(-7.0, dtype=torch.float64), 1e-9))
    assert label is not None
    with pyro.plate("rows", len(label)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        mean = z @ WEIGHTS + level + label[:, None]
        pyro.sample("x", dist.Normal(mean, 1e-9).to_event(1), obs=x)


def guide(x: Tensor, label: Tensor, **_: Any) -> None:
    """The latents of a row are its number."""
    pyro.sample("level", dist.Delta(torch.tensor(0.0, dtype=torch.float64)))
    z = torch.arange(float(len(x)), dtype=torch.float64)[:, None].expand(-1, 2)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Delta(z, event_dim=1))


class Made:
    """A made fit of four rows."""

    def __init__(self, function: Any = model, **given: Any) -> None:
        arguments = {
            "x": torch.zeros(4, 3, dtype=torch.float64),
            "label": torch.tensor(LABELS, dtype=torch.float64),
        }
        self.guide: Any = given.pop("guide", guide)
        self.sites: dict[str, Tensor] = given.pop("posterior", {})
        self.row_latents = given.pop("row_latents", True)
        self.parameters: Any = "the parameters"
        self.point_parameters: dict[str, np.ndarray] = {"p": np.array(3.0)}
        self.asked: list[Any] = []
        declared = {
            "name": "m", "predicts": "x", "in_units": None, "normals": None, "labels": None,
            "verbs": ("embed", "reconstruct", "generate", "interpolate", "manifold", "impute"),
        }  # fmt: skip
        declared.update({name: given.pop(name) for name in list(given) if name in declared})
        space = {
            "discrete": (), "local": ("z",), "rows_only": True, "dimension": 8,
            "subsampled": Plate(ROWS, -1, 4),
            "sites": [SimpleNamespace(name="z", shape=torch.Size([2]))],
        }  # fmt: skip
        space.update({name: given.pop(name) for name in list(given) if name in space})
        prepared = SimpleNamespace(
            dims={"x": (ROWS, "cell"), "label": (ROWS,), "z": (ROWS, "axis")},
            coords={"cell": CELLS, "known": ("label=0", "label=100")},
            arguments="as they were prepared",
        )
        self.problem: Any = SimpleNamespace(
            model=SimpleNamespace(**declared), space=SimpleNamespace(**space), prepared=prepared,
            function=function, arguments=arguments, hidden=set(), observed="x",
            data=pd.DataFrame({"label": LABELS, "a": 1.0}), device=torch.device("cpu"),
            model_name="m", dtype=torch.float64,
            session=self.session, new_arguments=self.new_arguments,
        )  # fmt: skip
        self.problem.data.attrs = {"roles": {"a": "cell"}}
        vars(self.problem).update(given)

    @contextmanager
    def session(self, seed: int, parameters: Any) -> Iterator[None]:
        assert parameters == self.parameters
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield

    @contextmanager
    def active(self, seed: int) -> Iterator[Any]:
        with self.session(seed, self.parameters):
            yield self.guide

    guide_of_rows = active

    def new_arguments(self, table: Any) -> tuple[dict[str, Any], bool]:
        self.asked.append(table)
        label = torch.tensor(table["label"].to_numpy(dtype=float))
        return {"x": torch.ones(len(table), 3), "label": label}, False

    def row_arguments(self, data: Any) -> dict[str, Any]:
        self.asked.append(data)
        given = self.problem.arguments
        return given if data is None else {k: v[: len(data)] for k, v in given.items()}

    def global_sites(self) -> dict[str, Tensor]:
        return self.sites

    def predict(self, data: Any = None) -> Any:
        return ("described", data)

    def moments_of_rows(self, data: Any, sites: Any, draws: int, seed: int) -> Any:
        """Row i has the latents (i, 10 i), and sds a tenth of that."""
        self.asked.append((data, list(sites), draws, seed))
        centre = torch.arange(4.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 10.0])
        return {"z": (centre, centre / 10)}

    def weigh_rows(self, data: Any, draws: int | None, seed: int, keep: Any = ()) -> WeightedDraws:
        """Draws of equal weight: row i has the latents (i, 10 i) and more with each draw."""
        self.asked.append((data, draws, seed, list(keep)))
        assert draws is not None
        centre = torch.arange(4.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 10.0])
        away = torch.linspace(-1, 1, draws, dtype=torch.float64)[:, None, None]
        zeros = np.zeros((draws, 4))
        return WeightedDraws({"z": centre + away}, zeros, zeros, axes={"z": 0})


def test_a_verb_that_a_model_lacks_names_those_that_have_it() -> None:
    verbs.check_verb(Made(), "impute")
    having = [name for name in model_summaries() if "impute" in get_model(name).verbs]
    assert 0 < len(having) < len(model_summaries())
    said = f"'m' has no command 'impute'; these models have it: {', '.join(having)}"
    with pytest.raises(ModelError, match=said):
        verbs.check_verb(Made(verbs=("embed",)), "impute")
    for call in (
        lambda fit: verbs.embed(fit, None, 9, 0),
        lambda fit: verbs.reconstruct(fit, None, 9, 0),
        lambda fit: verbs.generate(fit, 1, None, None, False, False, 0),
        lambda fit: verbs.interpolate(fit, 1, 2, 3, None, 0),
        lambda fit: verbs.manifold(fit, 3),
        lambda fit: verbs.impute(fit, None, 9, 0.9, 0),
    ):
        with pytest.raises(ModelError, match="the model 'm' has no command '"):
            call(Made(verbs=()))


def test_latents_of_rows_are_described_by_their_draws() -> None:
    fit = Made()
    found = verbs.embed(fit, "rows", 5, 7)
    assert fit.asked == [("rows", 5, 7, ["z"])]
    assert list(found) == ["z[0].mean", "z[0].sd", "z[1].mean", "z[1].sd", "k_hat"]
    np.testing.assert_allclose(found["z[0].mean"], [0, 1, 2, 3], atol=1e-12)
    np.testing.assert_allclose(found["z[1].mean"], [0, 10, 20, 30], atol=1e-12)
    away = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(found["z[1].sd"], away.std(ddof=1))
    fit = Made(local=("noise", "z"), hidden={"noise"})
    verbs.embed(fit, None, 5, 7)
    assert fit.asked == [(None, 5, 7, ["z"])]  # what the user does not see is not kept
    fit = Made(predicts="kind", discrete=("kind",))
    assert verbs.embed(fit, "rows", 5, 7) == ("described", "rows")


@pytest.mark.parametrize(
    ("site", "dims", "coords", "count", "labels"),
    [
        ("u", {}, {}, 1, ["u"]),
        ("u", {}, {}, 2, ["u[0]", "u[1]"]),
        ("u", {"u": ("rows", "axis")}, {"axis": ("p", "q")}, 2, ["u[p]", "u[q]"]),
        ("u", {"u": ("rows", "axis")}, {"axis": ("p",)}, 1, ["u[p]"]),
        ("u", {"u": ("rows", "axis")}, {"axis": ("p", "q", "r")}, 2, ["u[0]", "u[1]"]),
    ],
)
def test_a_number_of_a_latent_has_its_name(
    site: str, dims: Any, coords: Any, count: int, labels: list[str]
) -> None:
    fit = Made(prepared=SimpleNamespace(dims=dims, coords=coords))
    assert verbs._labels(fit, site, count) == labels


def test_a_reconstruction_is_the_mean_over_the_draws_in_units() -> None:
    """Draw k of the latents is k: the mean of 1, ..., 5 is 3; the first run shows the plates."""
    drawn = iter(range(100))

    def counting(x: Tensor, label: Tensor, batch_size: int | None = None) -> None:
        float(torch.rand(()))  # which no batch of draws has
        pyro.sample("level", dist.Delta(torch.tensor(0.0, dtype=torch.float64)))
        z = torch.full((len(x), 2), float(next(drawn)), dtype=torch.float64)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Delta(z, event_dim=1))

    def in_units(values: Tensor, arguments: Any) -> Tensor:
        assert arguments == "as they were prepared"
        return 10 * values + 1

    fit = Made(guide=counting, in_units=in_units)
    found = verbs.reconstruct(fit, None, 5, 0)
    assert list(found) == list(CELLS)
    cells = 3 * WEIGHTS.sum(0).numpy() + np.array(LABELS)[:, None]
    np.testing.assert_allclose(found, 10 * cells + 1)
    assert next(drawn) == 6


def test_a_draw_stands_for_a_mean_that_is_unknown_and_one_cell_is_a_column() -> None:
    class Odd(dist.Normal):
        @property
        def mean(self) -> Tensor:
            raise NotImplementedError

    def odd(x: Any = None, **_: Any) -> None:
        pyro.sample("x", Odd(torch.full((3,), 4.0), 1e-9), obs=x)

    fit = Made(odd)
    values = verbs._expected(fit, odd, {"x": torch.zeros(3)})
    np.testing.assert_allclose(values, 4.0, atol=1e-6)
    assert verbs._table(fit, values).to_dict("list") == {"x": [4.0] * 3}


def arguments_of(fit: Made, index: list[int], given: Any = None) -> Any:
    return verbs._new_rows(fit, torch.tensor(index), given)


def test_new_rows_have_what_is_known_of_fitted_ones() -> None:
    extra = {"weight": torch.arange(4.0), "spread": torch.arange(3.0), "flag": True}
    fit = Made()
    fit.problem.arguments.update(extra)
    fit.problem.arguments["mask"] = torch.ones(4, 3)
    fit.problem.prepared.dims.update(weight=(ROWS, "k"), spread=("cell",), mask=(ROWS, "cell"))
    made, known = arguments_of(fit, [2, 0])
    assert (made["x"], made["mask"], made["rows"], made["flag"]) == (None, None, 2, True)
    assert made["label"].tolist() == [200.0, 0.0]
    assert made["weight"].tolist() == [2.0, 0.0]
    assert made["spread"].tolist() == [0.0, 1.0, 2.0]
    assert known.to_dict("list") == {"label": [200.0, 0.0]}
    assert known.index.tolist() == [0, 1]
    assert not fit.asked
    assert fit.problem.arguments["x"] is not None  # the fit's own stay
    made, known = arguments_of(fit, [2, 0, 1], {"label": 5.0})
    (table,) = fit.asked
    assert table.attrs == {"roles": {"a": "cell"}}
    assert made["label"].tolist() == [5.0, 5.0, 5.0]
    assert (made["x"], made["rows"]) == (None, 3)
    assert known["label"].tolist() == [5.0] * 3
    with pytest.raises(OptionError, match=r"the known columns are label\."):
        arguments_of(fit, [0], {"a": 1.0})
    del fit.problem.prepared.coords["known"]
    with pytest.raises(OptionError, match="this model has no known columns"):
        arguments_of(fit, [0], {"a": 1.0})


def made_by(
    fit: Made, count: int, data: Any = None, given: Any = None, seed: int = 3, **flags: bool
) -> Any:
    flags = {"expected": False, "prior": False, **flags}
    return verbs.generate(fit, count, data, given, flags["expected"], flags["prior"], seed)


def test_rows_are_made_from_latents_of_their_prior() -> None:
    """z Normal(0, 1): a cell's variance is the sum of squares of its weights."""
    fit = Made()
    found = made_by(fit, 4000)
    assert list(found) == ["label", *CELLS]
    assert set(found["label"]) == set(LABELS)
    apart = found[list(CELLS)].to_numpy() - found[["label"]].to_numpy() + 7.0
    covariance = WEIGHTS.T.numpy() @ WEIGHTS.numpy()
    np.testing.assert_allclose(np.cov(apart.T), covariance, atol=5 * 5 * np.sqrt(2 / 4000))
    assert np.abs(apart.mean(0)).max() < 5 * np.sqrt(5 / 4000)
    pd.testing.assert_frame_equal(made_by(fit, 4000), found)
    assert not made_by(fit, 4000, seed=4).equals(found)
    assert set(made_by(fit, 20, given={"label": 5.0})["label"]) == {5.0}


def test_without_known_columns_there_are_the_cells_alone() -> None:
    fit = Made()
    del fit.problem.prepared.coords["known"]
    assert list(made_by(fit, 3)) == list(CELLS)


@pytest.mark.parametrize("expected", [False, True])
def test_rows_are_made_at_draws_of_the_posterior_or_of_the_prior(expected: bool) -> None:
    def shared(x: Any = None, label: Any = None, rows: Any = None) -> None:
        level = pyro.sample("level", dist.Normal(torch.tensor(-7.0, dtype=torch.float64), 1e-9))
        with pyro.plate("rows", len(label)):
            pyro.sample("x", dist.Normal(level + label, 1.0), obs=x)

    levels = 1000 * torch.arange(1.0, 4.0, dtype=torch.float64)
    fit = Made(shared, posterior={"level": levels}, rows_only=False)
    found = made_by(fit, 60, expected=expected)["x"].to_numpy()
    nearest = np.round(found / 100) * 100
    noise = found - nearest
    assert (noise == 0).all() == expected
    assert 0.6 < noise.std() < 1.5 or expected
    hundreds, thousands = nearest % 1000, nearest // 1000
    assert set(thousands) == {1, 2, 3}  # each row has a draw of its own
    assert set(hundreds) == set(LABELS)
    prior = made_by(fit, 60, expected=expected, prior=True)["x"].to_numpy()
    assert set(np.round(prior / 100) * 100) == set(LABELS)
    np.testing.assert_allclose(prior % 100, 93, atol=5.0)
    bare = made_by(Made(shared, rows_only=False), 4, expected=True)["x"]  # points only
    np.testing.assert_allclose(bare % 100, 93)


def test_rows_near_given_ones_take_them_in_turn() -> None:
    fit = Made()
    found = made_by(fit, 7, data=[1, 2, 3])
    latents = np.array([0, 1, 2, 0, 1, 2, 0])
    cells = latents[:, None] * WEIGHTS.sum(0).numpy() + np.array(LABELS)[latents][:, None]
    np.testing.assert_allclose(found, cells, atol=1e-6)
    assert list(found) == list(CELLS)
    np.testing.assert_allclose(made_by(fit, 3, data=[1, 2, 3], expected=True), cells[:3])
    assert len(made_by(fit, 1, data=[1, 2, 3])) == 1


def test_how_many_rows_can_be_made_and_from_what() -> None:
    fit = Made()
    for count in (0, -1, 100_001):
        with pytest.raises(OptionError, match=f"--count {count}: give a whole number from 1 to"):
            made_by(fit, count)
    assert len(made_by(fit, 1)) == 1
    for given in ({"prior": True}, {"given": {"label": 1.0}}):
        with pytest.raises(OptionError, match="leave --prior and --given out"):
            made_by(fit, 1, data=[1], **given)
    with pytest.raises(OptionError, match="no latents for each row"):
        made_by(Made(row_latents=False), 1, data=[1])
    assert len(made_by(Made(rows_only=True), 100_000)) == 100_000


def test_rows_on_a_line_begin_at_one_row_and_end_at_another() -> None:
    fit = Made()
    found = verbs.interpolate(fit, 2, 4, 5, None, 7)
    assert fit.asked[-1] == (None, ["z"], 200, 7)
    z = found[["z[0]", "z[1]"]].to_numpy()
    np.testing.assert_allclose(z, np.linspace([1, 10], [3, 30], 5), atol=1e-12)
    label = np.array([100.0, 100, 100, 300, 300])  # what is known is that of the nearer end
    cells = z @ WEIGHTS.numpy() + label[:, None] - 7
    np.testing.assert_allclose(found[list(CELLS)], cells, atol=1e-6)
    assert list(found) == ["z[0]", "z[1]", *CELLS]
    assert len(verbs.interpolate(fit, 1, 4, 2, None, 7)) == 2
    for begin, end, steps, said in (
        (0, 4, 3, "--from 0: give a whole number from 1 to"),
        (5, 4, 3, "--from 5: the rows are numbered from 1 to 4"),
        (1, 5, 3, "--to 5: the rows are numbered from 1 to 4"),
        (1, 4, 1, "--steps 1: give a whole number from 2 to 100,000"),
    ):
        with pytest.raises(OptionError, match=said):
            verbs.interpolate(fit, begin, end, steps, None, 7)
    with pytest.raises(OptionError, match="from 1 to 2"):
        verbs.interpolate(fit, 1, 3, 3, [1, 2], 7)  # of the rows that are given


def test_rows_on_a_line_have_what_is_known_of_the_rows_that_are_given() -> None:
    fit = Made()
    fit.row_arguments = lambda data: {  # type: ignore[method-assign]
        "x": torch.zeros(6, 3), "label": torch.arange(6, dtype=torch.float64) * 7
    }  # fmt: skip
    fit.moments_of_rows = lambda *_: {  # type: ignore[method-assign]
        "z": (torch.zeros(6, 2, dtype=torch.float64), None)
    }
    found = verbs.interpolate(fit, 6, 2, 2, "rows", 7)
    np.testing.assert_allclose(found[list(CELLS)], [[35 - 7] * 3, [7 - 7] * 3], atol=1e-6)


def test_the_guides_own_moments_stand_for_weighed_draws_where_these_would_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The arguments have 16 numbers."""
    fit = Made()
    for budget, draws in ((16_000, 1000), (16 * 170, 170), (16 * 100, 100)):
        monkeypatch.setattr(verbs, "SIZES", SimpleNamespace(evaluated=budget))
        assert verbs.embed(fit, None, None, 7)["k_hat"].notna().all()
        assert fit.asked[-1] == (None, draws, 7, ["z"])
    monkeypatch.setattr(verbs, "SIZES", SimpleNamespace(evaluated=16 * 100 - 1))
    found = verbs.embed(fit, None, None, 7)
    assert fit.asked[-1] == (None, ["z"], verbs.VERBS.own, 7)
    np.testing.assert_allclose(found["z[1].mean"], [0, 10, 20, 30])
    np.testing.assert_allclose(found["z[1].sd"], [0, 1, 2, 3])
    assert found["k_hat"].isna().all()
    verbs.embed(fit, None, 60, 7)  # as many as are asked for
    assert fit.asked[-1] == (None, 60, 7, ["z"])


def test_a_manifold_is_a_square_of_quantiles() -> None:
    found = verbs.manifold(Made(), 4)
    line = norm.ppf((np.arange(4) + 0.5) / 4)
    z = np.array([[right, down] for down in -line for right in line])
    np.testing.assert_allclose(found[["z[0]", "z[1]"]], z, atol=1e-7)
    np.testing.assert_allclose(found[list(CELLS)], z @ WEIGHTS.numpy() - 7, atol=1e-6)

    def one(x: Any = None, label: Any = None, rows: Any = None) -> None:
        with pyro.plate("rows", len(label)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ torch.ones(1, 3).to(z), 1.0).to_event(1), obs=x)

    hidden = SimpleNamespace(name="noise", shape=(9,))
    sites = [hidden, SimpleNamespace(name="z", shape=torch.Size([1]))]
    fit = Made(one, sites=sites, local=("noise", "z"), hidden={"noise"})
    found = verbs.manifold(fit, 5)
    np.testing.assert_allclose(found["z[0]"], norm.ppf((np.arange(5) + 0.5) / 5), atol=1e-7)
    sites = [SimpleNamespace(name="z", shape=torch.Size([3]))]
    with pytest.raises(ModelError, match="one or two latents, and the model has 3"):
        verbs.manifold(Made(sites=sites), 5)


GIVEN = pd.DataFrame({"other": ["u", "v"], "a": [1, 2], "b": [3.0, np.nan], "c": [np.nan, np.nan]})


def test_imputed_cells_are_described_by_their_draws() -> None:
    missing = GIVEN[list(CELLS)].isna().to_numpy()
    draws = np.random.default_rng(0).normal(size=(50, 2, 3))
    found = verbs._imputed(GIVEN, list(CELLS), missing, draws, 0.5, 0.25)
    cells = {"1.c": draws[:, 0, 2], "2.b": draws[:, 1, 1], "2.c": draws[:, 1, 2]}
    assert found.cells["row"].tolist() == [1, 2, 2]
    assert found.cells["column"].tolist() == ["c", "b", "c"]
    assert list(found.draws) == list(cells)
    for line, (name, values) in zip(found.cells.to_dict("records"), cells.items(), strict=True):
        np.testing.assert_array_equal(found.draws[name], values)
        expected = [values.mean(), values.std(), *np.quantile(values, [0.25, 0.75])]
        np.testing.assert_allclose([line[k] for k in ("mean", "sd", "lower", "upper")], expected)
    assert found.acceptance == 0.25
    completed = GIVEN.assign(
        b=[3.0, cells["2.b"].mean()], c=[cells["1.c"].mean(), cells["2.c"].mean()]
    )
    pd.testing.assert_frame_equal(found.completed, completed)
    assert np.isnan(GIVEN["c"]).all()  # the caller's table stays
    assert verbs._imputed(GIVEN, list(CELLS), missing, draws, 0.5, None).acceptance is None


def test_cells_of_normals_are_drawn_at_draws_of_the_posterior() -> None:
    """Of next to no spread: each draw shows which posterior draw it was made from."""
    asked: list[Any] = []

    def normals(arguments: Any, sites: Any, points: Any) -> Any:
        asked.append(points)
        mean = np.full((1, 3), float(sites["level"]) if sites else 9.0)
        return np.ones(1), mean, 1e-12 * np.eye(3)[None]

    levels = torch.tensor([10.0, 20.0, 30.0])
    fit = Made(normals=normals, posterior={"level": levels})
    found = verbs.impute(fit, GIVEN, 40, 0.9, 7)
    assert found.acceptance is None
    assert asked == [fit.point_parameters] * 3  # once for each posterior draw
    picked = np.random.default_rng(7).integers(0, 3, 40)
    for column in found.draws:
        np.testing.assert_allclose(found.draws[column], levels.numpy()[picked], atol=1e-4)
    pd.testing.assert_frame_equal(verbs.impute(fit, GIVEN, 40, 0.9, 7).draws, found.draws)
    points = verbs.impute(Made(normals=normals), GIVEN, 5, 0.9, 7)
    np.testing.assert_allclose(points.draws, 9.0, atol=1e-4)
    with pytest.raises(OptionError, match="--interval 1"):
        verbs.impute(fit, GIVEN, 40, 1.0, 7)
    with pytest.raises(DataError, match="nothing to impute"):
        verbs.impute(fit, GIVEN.fillna(0.0), 40, 0.9, 7)
    with pytest.raises(DataError, match="a column of the rows is not numeric"):
        verbs.impute(fit, GIVEN.assign(a=["u", "v"]), 40, 0.9, 7)
    one = verbs.impute(fit, GIVEN.tail(1), 10, 0.9, 7)  # a single row will do
    assert one.cells["row"].tolist() == [1, 1]


def test_other_cells_come_from_chains_that_begin_at_medians(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def chains(function: Any, guide: Any, arguments: Any, *given: Any) -> Any:
        asked.update(arguments=arguments, given=given, guide=guide, function=function)
        return np.full((given[3], 2, 3), 0.5), 0.25

    def in_units(values: Tensor, arguments: Any) -> Tensor:
        assert arguments == "as they were prepared"
        return 10 * values

    monkeypatch.setattr(verbs, "from_chains", chains)
    monkeypatch.setattr(verbs, "dispersion_of_shares", lambda *given: dispersion)
    dispersion: float | None = None
    fitted = pd.DataFrame({"a": [0.0] * 4, "b": [1.0, 4.0, 4.0, 40.0], "c": [5.0, 6.0, 8.0, 9.0]})
    rows = GIVEN.copy()
    rows.attrs = {"roles": {"other": "id"}}
    for units, value in ((in_units, 5.0), (None, 0.5)):
        fit = Made(data=fitted, in_units=units)
        found = verbs.impute(fit, rows, 6, 0.9, 7)
        assert found.acceptance == 0.25
        assert found.draws.to_numpy().tolist() == [[value] * 3] * 6
        (complete,) = fit.asked
        assert complete["b"].tolist() == [3.0, 4.0]  # the median, of which the column has one
        assert set(complete["c"]) <= {6.0, 8.0}  # or, of two in the middle, one of them
        assert complete["other"].tolist() == ["u", "v"]
        assert complete.attrs == rows.attrs
        observed, missing, space, count, spread = asked["given"]
        assert spread is None
        assert (observed, space, count) == ("x", fit.problem.space, 6)
        assert missing.tolist() == [[False, False, True], [False, True, True]]
        assert asked["guide"] is fit.guide
        assert asked["function"] is fit.problem.function
    # Shares of whole numbers come as whole numbers, for which the chain is told their dispersion.
    dispersion = 0.1
    for table, value in ((fitted, 0.0), (fitted + 0.5, 0.5)):
        found = verbs.impute(Made(data=table), rows, 6, 0.9, 7)
        assert asked["given"][-1] == 0.1
        assert found.draws.to_numpy().tolist() == [[value] * 3] * 6
