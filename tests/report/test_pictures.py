"""Pictures: what is drawn where, read from the axes and not from the pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from elbowroom.report import pictures
from elbowroom.report.pictures import COLOURS


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved, with their paths, in place of files."""
    saved: list[Any] = []

    def save(figure: Figure, path: Path, **_: Any) -> None:
        figure.draw_without_rendering()  # lays it out
        saved.append((figure, path))

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def only(figures: list[Any], path: Path) -> Any:
    """The figure that was saved at a path; its texts can be read, and lie within it and apart."""
    ((figure, where),) = figures
    assert where == path
    whole = figure.bbox
    texts = [*figure.texts, *(text for each in figure.legends for text in each.get_texts())]
    for ax in figure.axes:
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    texts = [text for text in texts if text.get_text()]
    assert all(8 <= text.get_fontsize() <= 12 for text in texts)  # points, to be read in a page
    boxes = [text.get_window_extent() for text in texts]
    for box in boxes:
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
    return figure


def colour(collection: Any) -> str:
    return str(to_hex(collection.get_facecolor()[0]))


def nearly_square(figure: Any) -> bool:
    """Whether all panels are about as high as wide."""
    boxes = [ax.get_window_extent() for ax in figure.axes]
    return all(0.7 < box.width / box.height < 1.4 for box in boxes)


def spines(ax: Any) -> set[str]:
    return {name for name, spine in ax.spines.items() if spine.get_visible()}


STAGES = pd.DataFrame(
    [
        ("start", 1000, "a", 1.0, 4.0, 0.5),
        ("start", 1000, "b", 2.0, 0.0, 0.5),
        ("end", 20000, "b", 2.0, 2.0, 1e-6),
        ("end", 20000, "a", 3.0, 8.0, 1e-9),
    ],
    columns=["stage", "step", "estimator", "ms", "noise", "signal"],
)


def test_each_estimator_is_a_point_at_its_time_and_noise(figures: list[Any]) -> None:
    pictures.picture_of_estimators(STAGES, Path("e.png"), "a model")
    figure = only(figures, Path("e.png"))
    start, end = figure.axes
    assert nearly_square(figure)
    assert [ax.get_title() for ax in figure.axes] == ["start, step 1,000", "end, step 20,000"]
    assert figure.get_suptitle() == "a model"
    least = 1e-3 * 4.0  # of the median noise above zero, where none is drawn
    at = {ax: [tuple(each.get_offsets()[0]) for each in ax.collections] for ax in figure.axes}
    assert at == {start: [(1.0, 4.0), (2.0, least)], end: [(2.0, 2.0), (3.0, 8.0)]}
    kinds = {ax: [each.get_label() for each in ax.collections] for ax in figure.axes}
    assert kinds == {start: ["a", "b"], end: ["b", "a"]}
    for ax in figure.axes:  # in one colour and shape at both stages
        assert [colour(each) for each in ax.collections] == [
            COLOURS["ab".index(label)] for label in kinds[ax]
        ]
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert ax.get_xlabel() == "milliseconds a step"
        assert spines(ax) == {"left", "bottom"}
    shapes = [[each.get_paths()[0].vertices for each in ax.collections] for ax in figure.axes]
    np.testing.assert_array_equal(shapes[0][0], shapes[1][1])
    assert shapes[0][0].shape != shapes[0][1].shape
    assert start.get_ylim() == end.get_ylim()
    assert (start.get_ylabel(), end.get_ylabel()) == ("noise of a gradient", "")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert legend.get_window_extent().y1 < start.get_window_extent().y0  # below both


def test_the_gradient_itself_is_a_line_where_it_can_be_seen(figures: list[Any]) -> None:
    pictures.picture_of_estimators(STAGES, Path("e.png"), "")
    start, end = figures[0][0].axes
    (line,) = start.lines
    assert set(line.get_ydata()) == {0.5}
    grid = start.get_xgridlines()[0].get_zorder()
    assert grid < line.get_zorder() < min(each.get_zorder() for each in start.collections)
    (text,) = start.texts
    assert (text.get_text(), text.xy) == ("the gradient itself", (0.98, 0.5))
    box = text.get_window_extent()
    x, y = start.transData.transform((1.0, 0.5))
    right = start.get_window_extent().x1
    assert box.y0 >= y  # on the line, within the axes
    assert x < box.x0 < box.x1 < right
    assert not end.lines
    assert not end.texts


def test_more_estimators_than_colours_and_ticks_in_plain_numbers(figures: list[Any]) -> None:
    count = len(COLOURS) + 1
    table = pd.DataFrame(
        {"stage": "start", "step": 1, "estimator": [f"e{i}" for i in range(count)],
         "ms": np.geomspace(0.5, 50, count), "noise": 1.0, "signal": 0.0}
    )  # fmt: skip
    pictures.picture_of_estimators(table, Path("e.png"), "")
    (ax,) = only(figures, Path("e.png")).axes
    colours = [colour(each) for each in ax.collections]
    assert colours[:-1] == list(COLOURS)
    assert colours[-1] == COLOURS[0]
    ticks = {text.get_text() for text in ax.get_xticklabels()}
    assert {"0.5", "1", "2", "5", "10", "20", "50"} <= ticks
    assert not any(text.get_text() for text in ax.get_xticklabels(minor=True))
    assert any(line.get_visible() for line in ax.get_ygridlines())
    pictures.picture_of_estimators(STAGES, Path("e.png"), "")
    one, two = (figure.get_size_inches() for figure, _ in figures)
    np.testing.assert_allclose(two, one * (2, 1))  # each stage has the same room


def test_images_lie_row_by_row_as_ink_on_paper(figures: list[Any]) -> None:
    images = np.stack([np.full((10, 20), value) for value in (2.0, 4.0, 6.0)])
    pictures.picture_of_images(images, Path("i.png"), 2, ["first", "second"], "a title")
    (ax,) = only(figures, Path("i.png")).axes
    (sheet,) = [np.asarray(each.get_array()) for each in ax.images]
    gap = 2  # 8 % of the longer side
    assert sheet.shape == (2 * 10 + gap, 2 * 20 + gap)
    expected = np.ones(sheet.shape)  # paper, between them and in place of the fourth
    expected[:10, :20] = 1.0  # the lowest value
    expected[:10, 22:] = 0.5
    expected[12:, :20] = 0.0
    np.testing.assert_allclose(sheet, expected)
    assert ax.images[0].get_clim() == (0, 1)
    assert ax.images[0].get_cmap().name == "gray"
    assert ax.images[0].get_interpolation() == "nearest"
    labels = {text.get_text(): text.get_position() for text in ax.texts}
    assert labels == {"first": (-gap, 5.0), "second": (-gap, 17.0)}
    assert all(text.get_ha() == "right" and text.get_va() == "center" for text in ax.texts)
    assert ax.get_title() == "a title"
    assert not spines(ax)
    assert [*ax.get_xticks(), *ax.get_yticks()] == []


@pytest.mark.parametrize("labels", [(), ("row", "reconstructed")])
@pytest.mark.parametrize("title", ["", "a title"])
def test_pixels_are_square_and_nothing_is_cut_off(
    labels: Any, title: str, figures: list[Any]
) -> None:
    pictures.picture_of_images(np.ones((10, 8, 8)) * np.eye(8), Path("i.png"), 5, labels, title)
    figure = only(figures, Path("i.png"))
    (ax,) = figure.axes
    box = ax.get_window_extent()
    rows, columns = ax.images[0].get_array().shape
    assert box.width / columns == pytest.approx(box.height / rows)
    inch = figure.dpi
    assert box.width == pytest.approx(5 * 0.62 * inch)
    # A tenth of an inch of paper around it, more where there is text.
    around = (box.x0, figure.bbox.x1 - box.x1, box.y0, figure.bbox.y1 - box.y1)
    left, top = 1.2 if labels else 0.1, 0.35 if title else 0.1
    np.testing.assert_allclose(np.array(around) / inch, (left, 0.1, 0.1, top))
    assert ax.get_title() == title


def test_colours_are_as_they_are_and_equal_images_are_no_error(figures: list[Any]) -> None:
    image = np.zeros((1, 2, 2, 3))
    image[0, 0, 0] = (10.0, 0.0, 5.0)
    pictures.picture_of_images(image, Path("i.png"), 1)
    sheet = np.asarray(figures[0][0].axes[0].images[0].get_array())
    assert sheet.shape == (2, 2, 3)
    assert sheet[0, 0].tolist() == [1.0, 0.0, 0.5]
    pictures.picture_of_images(np.full((2, 4, 4), 3.0), Path("i.png"), 1)
    sheet = np.asarray(figures[1][0].axes[0].images[0].get_array())
    assert sheet.shape == (4 + 1 + 4, 4)  # a gap of one pixel at least
    assert (sheet == 1).all()
    assert figures[1][0].axes[0].images[0].get_clim() == (0, 1)  # so that they are white


def panels(count: int) -> tuple[np.ndarray, dict[str, pd.DataFrame], pd.DataFrame]:
    reach = np.linspace(-1.0, 5.0, 7)
    described = {
        f"g{k}": pd.DataFrame({"mean": reach + k, "lower": reach + k - 1, "upper": reach + k + 2})
        for k in range(count)
    }
    return reach, described, pd.DataFrame({"x": [0.0, 4.0, 1.0], "y": [10.0, 30.0, 20.0]})


def test_predictions_have_a_panel_a_method(figures: list[Any]) -> None:
    reach, described, rows = panels(4)
    pictures.picture_of_predictions(reach, described, rows, Path("p.png"), "a title")
    figure = only(figures, Path("p.png"))
    seen, hidden = figure.axes[:4], figure.axes[4:]
    assert len(hidden) == 2  # two lines of three
    assert not any(ax.get_visible() for ax in hidden)
    assert all(ax.get_visible() for ax in seen)
    assert figure.axes[2].get_subplotspec().rowspan == range(1)
    assert figure.axes[3].get_subplotspec().rowspan == range(1, 2)
    for k, ax in enumerate(seen):
        assert ax.get_title() == f"g{k}"
        (line,) = ax.lines
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([reach, reach + k]))
        points, band = ax.collections
        np.testing.assert_array_equal(points.get_offsets(), rows)
        lower, upper = reach + k - 1, reach + k + 2
        corners = {tuple(each) for each in band.get_paths()[0].vertices}
        assert corners == {*zip(reach, lower, strict=True), *zip(reach, upper, strict=True)}
        assert 0 < band.get_alpha() < 1  # the rows are seen through it
        assert to_hex(line.get_color()) == colour(band) != colour(points)
        (span,) = ax.patches
        assert (span.get_x(), span.get_x() + span.get_width()) == (0.0, 4.0)
        assert span.get_zorder() < band.get_zorder() < points.get_zorder() < line.get_zorder()
        # Three quarters of the rows' range below and above them, whatever is predicted.
        assert ax.get_ylim() == (-5.0, 45.0)
        assert ax.get_xlim() == seen[0].get_xlim()
        assert spines(ax) == {"left", "bottom"}
    assert figure.get_supxlabel() == "x (grey: where the rows lie)"
    assert figure.get_supylabel() == "y: mean and 90% interval"
    assert figure.get_suptitle() == "a title"


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (6, (2, 3))])
def test_panels_are_three_abreast_and_of_one_size(
    count: int, shape: tuple[int, int], figures: list[Any]
) -> None:
    pictures.picture_of_predictions(*panels(count), Path("p.png"), "")
    figure = only(figures, Path("p.png"))
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    last = len(figure.axes) - shape[1]  # inner panels have no numbers of their own
    shown = [ax.xaxis.get_tick_params()["labelbottom"] for ax in figure.axes]
    assert shown == [place >= last for place in range(len(figure.axes))]
    wide, tall = figure.get_size_inches()
    margins = (wide - 3.6 * shape[1], tall - 3.0 * shape[0])
    np.testing.assert_allclose(margins, (0.6, 0.9))


def test_latents_have_the_colours_of_their_classes(figures: list[Any]) -> None:
    table = pd.DataFrame(
        {"z[0].mean": [0.0, 1.0, 2.0], "z[0].sd": 9.0, "z[1].mean": [3.0, 4.0, 5.0],
         "z[1].sd": 9.0, "z[2].mean": 7.0, "k_hat": 0.0}
    )  # fmt: skip
    classes = pd.Series([10, 9, 10], name="digit")
    pictures.picture_of_latents(table, Path("l.png"), classes, "a title")
    figure = only(figures, Path("l.png"))
    (ax,) = figure.axes
    assert nearly_square(figure)
    assert [each.get_label() for each in ax.collections] == ["10", "9"]  # sorted as text
    assert [each.get_offsets().tolist() for each in ax.collections] == [
        [[0.0, 3.0], [2.0, 5.0]], [[1.0, 4.0]],
    ]  # fmt: skip
    assert [colour(each) for each in ax.collections] == list(COLOURS[:2])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("z[0]", "z[1]", "a title")
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "digit"
    assert [text.get_text() for text in legend.get_texts()] == ["10", "9"]
    assert legend.get_window_extent().x0 > ax.get_window_extent().x1  # beside it
    assert spines(ax) == {"left", "bottom"}


def test_latents_without_classes_and_of_one_dimension(figures: list[Any]) -> None:
    table = pd.DataFrame({"z.mean": [0.5, 1.5], "z.sd": 1.0})
    pictures.picture_of_latents(table, Path("l.png"), None, "")
    figure = only(figures, Path("l.png"))
    (ax,) = figure.axes
    (points,) = ax.collections
    assert points.get_offsets().tolist() == [[0.5, 0.0], [1.5, 0.0]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z", "")
    assert not figure.legends


@pytest.mark.parametrize(("more", "legends"), [(0, 1), (1, 0)])
def test_a_legend_is_left_out_where_colours_repeat(
    more: int, legends: int, figures: list[Any]
) -> None:
    count = len(COLOURS) + more
    table = pd.DataFrame({"z.mean": np.arange(float(count))})
    classes = pd.Series(np.arange(100, 100 + count), name="c")
    pictures.picture_of_latents(table, Path("l.png"), classes, "")
    figure = figures[0][0]
    assert len(figure.legends) == legends
    colours = [colour(each) for each in figure.axes[0].collections]
    assert colours == [COLOURS[k % len(COLOURS)] for k in range(count)]


def test_names_of_columns_are_plain_text_in_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither mathematics, which may be none, nor characters that steer a terminal."""
    figures: list[Any] = []
    real = Figure.savefig

    def kept(figure: Figure, *given: Any, **options: Any) -> None:
        figures.append(figure)
        real(figure, *given, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    table = pd.DataFrame({"$\\frac{.mean": [1.0, 2.0], "\x1b[31m$_{.mean": [1.0, 2.0]})
    classes = pd.Series(["$\\x{$", "b\u202e"], name="$^{$")
    pictures.picture_of_latents(table, tmp_path / "p.png", classes, "$\\nothing{$")
    assert (tmp_path / "p.png").stat().st_size > 0
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$\\frac{", r"\x1b[31m$_{")
    assert axes.get_title() == "$\\nothing{$"
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["$\\x{$", r"b\u202e"]
