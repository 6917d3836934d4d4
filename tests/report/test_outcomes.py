"""What verbs write: the tables, and what their pictures are asked to show."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from elbowroom.comparison import Comparison
from elbowroom.errors import DataError, RunFolderError
from elbowroom.report import outcomes

PIXELS = ["p0", "p1", "p2", "p3"]


def fit_of(data: Any = None, top: float = 16.0, images: Any = "2 by 2") -> Any:
    """A made fit whose rows are images of two by two pixels, beside another column."""
    found = ((2, 2), top) if images == "2 by 2" else images
    model = SimpleNamespace(name="m", images=None if images is None else lambda arguments: found)
    prepared = SimpleNamespace(dims={"x": ("row", "pixel")}, coords={"pixel": tuple(PIXELS)})
    problem = SimpleNamespace(
        model=model, arguments={}, prepared=prepared, observed="x", data=data
    )  # fmt: skip
    return SimpleNamespace(problem=problem)


def rows_of(count: int, first: float = 0.0) -> pd.DataFrame:
    """Rows of which each has one value, and the next one more."""
    values = np.repeat(first + np.arange(float(count))[:, None], 4, axis=1)
    table = pd.DataFrame(values, columns=PIXELS)
    return table.assign(label="a")[["label", *PIXELS]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the functions that draw."""
    calls: list[Any] = []
    for name in ("picture_of_images", "picture_of_latents", "picture_of_predictions"):
        monkeypatch.setattr(outcomes, name, lambda *given, **named: calls.append((given, named)))
    return calls


def test_tables_and_a_picture_are_written_together(tmp_path: Path) -> None:
    tables = {"rows.csv": pd.DataFrame({"a": [1, 2]}, index=[5, 6]), "b.csv": pd.DataFrame()}
    folder = outcomes.write(tmp_path / "out", False, tables, lambda path: path.touch())
    assert folder == tmp_path / "out"
    assert {each.name for each in folder.iterdir()} == {
        "rows.csv", "b.csv", "picture.png", "manifest.json",
    }  # fmt: skip
    assert (folder / "rows.csv").read_text() == "a\n1\n2\n"
    with pytest.raises(RunFolderError, match="--overwrite"):
        outcomes.write(folder, False, tables, lambda path: None)
    (folder / "b.csv").unlink()
    outcomes.write(folder, True, tables, lambda path: None)  # the first table marks it
    assert not (folder / "picture.png").exists()
    (folder / "manifest.json").unlink()  # by which it is known whose they are
    with pytest.raises(RunFolderError, match="not written by Elbowroom"):
        outcomes.write(folder, True, tables, lambda path: None)


def test_rows_are_images_within_the_range_of_a_pixel() -> None:
    table = rows_of(1).assign(p0=-1.0, p3=20.0, p1=2.5)
    found = outcomes.images(fit_of(), table)
    np.testing.assert_array_equal(found, [[[0.0, 2.5], [0.0, 16.0]]])
    found = outcomes.images(fit_of(top=0.0), table)  # the highest value is not known
    np.testing.assert_array_equal(found, [[[0.0, 2.5], [0.0, 20.0]]])
    assert outcomes.images(fit_of(images=None), table) is None


def test_rows_that_are_no_images_are_not_drawn(drawn: list[Any], tmp_path: Path) -> None:
    table = rows_of(3)
    model = SimpleNamespace(name="m", images=lambda arguments: None)
    fit: Any = SimpleNamespace(problem=SimpleNamespace(model=model, arguments={}, data=table))
    for draw in (
        outcomes.draw_generated(fit, table),
        outcomes.draw_reconstructed(fit, None, table),
        outcomes.draw_line(fit, table, 1, 3),
    ):
        draw(tmp_path / "p.png")
    assert not drawn
    with pytest.raises(DataError, match="needs rows that are images"):
        outcomes.draw_manifold(fit, table, 2)


@pytest.mark.parametrize(("count", "shown", "columns"), [(3, 3, 3), (12, 12, 10), (120, 100, 10)])
def test_new_rows_are_ten_abreast_and_a_hundred_at_most(
    count: int, shown: int, columns: int, drawn: list[Any]
) -> None:
    outcomes.draw_generated(fit_of(top=1e3), rows_of(count))(Path("p.png"))
    (((images, path, abreast), named),) = drawn
    assert images[:, 0, 0].tolist() == list(range(shown))
    assert (path, abreast, named) == (Path("p.png"), columns, {"title": "new rows of m"})


@pytest.mark.parametrize("given", [False, True])
def test_rows_stand_above_their_reconstructions(given: bool, drawn: list[Any]) -> None:
    own, other = rows_of(12), rows_of(12, first=0.5)
    data = other if given else None
    draw = outcomes.draw_reconstructed(fit_of(own, top=1e3), data, rows_of(12, first=100.0))
    draw(Path("p.png"))
    (((images, path, abreast, labels), named),) = drawn
    above = np.arange(10) + (0.5 if given else 0.0)
    assert images[:, 1, 1].tolist() == [*above, *np.arange(100.0, 110.0)]
    assert (path, abreast, labels, named) == (Path("p.png"), 10, ["row", "reconstructed"], {})


def test_a_single_row_is_reconstructed_too(drawn: list[Any]) -> None:
    outcomes.draw_reconstructed(fit_of(), rows_of(1, first=4.0), rows_of(1))(Path("p.png"))
    assert drawn[0][0][0][:, 0, 0].tolist() == [4.0, 0.0]


def test_a_line_is_one_row_and_a_manifold_a_square(drawn: list[Any]) -> None:
    outcomes.draw_line(fit_of(), rows_of(7), 2, 9)(Path("p.png"))
    outcomes.draw_manifold(fit_of(), rows_of(9), 3)(Path("q.png"))
    line, grid = drawn
    assert line[0][1:] == (Path("p.png"), 7)
    assert line[1] == {"title": "from row 2 to row 9"}
    assert grid[0][1:] == (Path("q.png"), 3)
    assert grid[0][0][:, 0, 0].tolist() == list(range(9))


LATENTS = pd.DataFrame({"z.mean": [1.0, 2.0], "z.sd": 1.0})


def test_latents_have_the_label_among_the_columns(drawn: list[Any]) -> None:
    rows = pd.DataFrame({"x": [1.0, 2.0], "kind": ["a", "b"]}, index=[7, 8])
    rows.attrs = {"roles": {"x": "pixel", "kind": "label"}}
    outcomes.draw_latents(fit_of(rows), None, LATENTS)(Path("p.png"))
    (((table, path, classes, title), _),) = drawn
    assert table is LATENTS
    assert (path, title) == (Path("p.png"), "latents of m")
    assert classes.to_dict() == {0: "a", 1: "b"}  # in the order of the rows, whatever their index
    attrs: Any
    for attrs in ({"roles": {"kind": "id"}}, {"roles": {"gone": "label"}}, {}):
        plain = rows[["x", "kind"]]
        plain.attrs = attrs
        outcomes.draw_latents(fit_of(plain), None, LATENTS)(Path("p.png"))
        assert drawn[-1][0][2] is None
    outcomes.draw_latents(fit_of(rows), rows[["x"]].head(1), LATENTS)(Path("p.png"))  # of a new row
    assert drawn[-1][0][2] is None
    count = len(drawn)
    outcomes.draw_latents(fit_of(rows), None, pd.DataFrame({"p": [1.0]}))(Path("p.png"))
    assert len(drawn) == count  # probabilities of components are no latents


class Predicting:
    """A made fit of y by x, w and others, which notes the rows that it predicts."""

    def __init__(self, data: Any, predictors: tuple[str, ...], **coords: Any) -> None:
        prepared = SimpleNamespace(coords={"predictor": predictors, **coords})
        observed = np.arange(float(len(data)))
        tensor = SimpleNamespace(
            double=lambda: SimpleNamespace(
                cpu=lambda: SimpleNamespace(numpy=lambda: observed)
            )
        )  # fmt: skip
        self.problem = SimpleNamespace(
            model=SimpleNamespace(name="m"), data=data, prepared=prepared, observed="obs",
            arguments={"obs": tensor}, options=SimpleNamespace(response="y"),
        )  # fmt: skip
        self.asked: list[Any] = []

    def predict(self, rows: Any, interval: float) -> Any:
        self.asked.append((rows, interval))
        return rows[["x"]]


def table_of() -> pd.DataFrame:
    table = pd.DataFrame(
        {"text": ["a", "b", "b"], "y": [0.0, 0.0, 0.0], "x": [2.0, 6.0, 3.0], "w": [1.0, 9.0, 4.0]}
    )
    table.attrs = {"roles": {"y": "target"}}
    return table


def compared(**fits: Any) -> Any:
    return Comparison(pd.DataFrame(), pd.DataFrame(), fits, 1)


def test_predictions_run_along_the_first_number_and_beyond_its_ends(drawn: list[Any]) -> None:
    fit = Predicting(table_of(), ("gone", "text", "x", "w"))
    outcomes.draw_predictions(compared(g=fit), Path("out"))
    (((reach, panels, rows, path, title), _),) = drawn
    np.testing.assert_allclose(reach, np.linspace(0.0, 8.0, 200))  # half a range either way
    ((line, interval),) = fit.asked
    assert interval == 0.9
    assert list(line.columns) == ["text", "y", "x", "w"]
    assert line.attrs == table_of().attrs
    np.testing.assert_array_equal(line["x"], reach)
    assert set(line["text"]) == {"b"}
    assert set(line["w"]) == {4.0}
    assert list(panels) == ["g"]
    assert rows.to_dict("list") == {"x": [2.0, 6.0, 3.0], "y": [0.0, 1.0, 2.0]}
    assert path == Path("out/predictions.png")
    assert title == "m: predictions along x, the other columns near their medians"


def test_predictions_of_one_predictor_and_of_many_methods(drawn: list[Any]) -> None:
    fits = {f"g{k}": Predicting(table_of(), ("x",)) for k in range(8)}
    fits["g0"].problem.options = None
    outcomes.draw_predictions(compared(**fits), Path("out"))
    _, panels, rows, _, title = drawn[0][0]
    assert list(panels) == [f"g{k}" for k in range(6)]
    assert list(rows) == ["x", "obs"]  # the response has no name of its own
    assert title == "m: predictions along x"


def test_what_predicts_no_number_from_columns_has_no_picture(drawn: list[Any]) -> None:
    outcomes.draw_predictions(compared(), Path("out"))
    for fit in (
        Predicting(table_of(), ()),
        Predicting(table_of(), ("text",)),
        Predicting(table_of(), ("x",), **{"class": ("a", "b")}),
    ):
        outcomes.draw_predictions(compared(g=fit), Path("out"))
    assert not drawn


@pytest.mark.parametrize(
    ("values", "typical"),
    [
        ([1.0, 2.0, 9.0, 10.0], 2.0),  # the median, 5.5, is no value: the first nearest
        ([3, None, 5, 4], 4.0),
        (["b", "a", "b", None], "b"),
        (["b", "a", "b", "a"], "a"),  # of several that are most common, the first in order
        ([True, False, True], True),
        ([None, None], None),
    ],
)
def test_a_typical_value_is_one_of_the_column(values: list[Any], typical: Any) -> None:
    found = outcomes._typical(pd.Series(values))
    assert found == typical
    assert found is None or found in values
