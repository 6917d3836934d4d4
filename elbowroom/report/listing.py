"""Prints the lists of models, guides, objectives and datasets; of models, without torch."""

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from elbowroom.data.bundled import dataset_names, describe
from elbowroom.guides import Guide, guides_for
from elbowroom.models import get_model, model_summaries
from elbowroom.options import declared
from elbowroom.printable import printable
from elbowroom.report.streams import legible


def console() -> Console:
    """Standard output. Wide in a pipe, where lines should not be wrapped.

    Names and notes may come from files: whatever is printed is cleaned here of what would steer the
    terminal.
    """
    out = Console(highlight=False)
    out.push_render_hook(_Cleaning())
    if not out.is_terminal:
        out.width = 200
    return out


class _Cleaning(RenderHook):
    """Lets text through as it may be shown, and the console's own codes as they are."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Cleaned(each) for each in renderables]


class _Cleaned:
    def __init__(self, shown: ConsoleRenderable) -> None:
        self.shown = shown

    def __rich_console__(self, out: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in out.render(self.shown, options):
            clean = segment.text if segment.control else printable(segment.text)
            yield Segment(clean, segment.style, segment.control)

    def __rich_measure__(self, out: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(out, options, self.shown)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table in the house's style."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left")
    return made


def add(made: Table, *cells: Any, style: str = "") -> None:
    """Adds a row of plain text: names contain brackets, which rich would read as markup."""
    made.add_row(*(Text(_aligned(cell)) for cell in cells), style=style)


def _aligned(cell: Any) -> str:
    """A cell as standard output will show it, which may be wider: the table is laid out for it."""
    return legible(printable(str(cell)), getattr(sys.stdout, "encoding", None) or "utf-8")


def show_models() -> None:
    """Every model with its summary."""
    made = table("model", "description")
    for name, summary in model_summaries().items():
        add(made, name, summary)
    console().print(made)
    console().print("\n'elbowroom models MODEL' describes a model and its options.", style="dim")


def show_model(name: str) -> None:
    """One model: its page, options, guides and dataset."""
    model = get_model(name)
    out = console()
    out.print(Text(f"{name}\n\n{sys.modules[model.function.__module__].__doc__ or ''}".strip()))
    options = table("option", "default", "range", "description")
    for option in declared(model.options):
        add(options, option.flag, _shown(option.default), option.range, option.description)
    out.print()
    out.print(options)
    out.print()
    out.print(_guide_table(fitting_guides(name)))
    out.print(Text(f"\ncommands: {', '.join(('predict', *model.verbs))}"))
    out.print(Text(f"dataset: {model.dataset}"))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _guide_table(found: Any) -> Table:
    made = table("guide", "for", "description")
    guide: Guide
    for guide in found.values():
        add(made, guide.name, guide.model or "any model", guide.summary)
    return made


def show_guides(model: str | None) -> None:
    """The guides that fit a model; all guides, if no model is named."""
    if model is not None:
        declaration = get_model(model)
        console().print(_guide_table(fitting_guides(declaration.name)))
        return
    found = {}
    for name in model_summaries():
        found.update({(guide.model, guide.name): guide for guide in guides_for(name).values()})
    order = sorted(found.items(), key=lambda item: item[0][0] is None)  # those of a model first
    console().print(_guide_table(dict(order)))


def show_objectives() -> None:
    """Every objective for stochastic gradients, and its options."""
    from elbowroom.objectives import objectives

    out = console()
    made = table("objective", "description")
    options = table("option", "objective", "default", "range", "description")
    for name, kind in objectives().items():
        summary = (kind.__doc__ or "").splitlines()[0].partition(f": `{name}`")[0]
        add(made, name, f"{summary.removesuffix('.')}.")
        for option in declared(kind.options_kind):
            add(
                options, option.flag, name, _shown(option.default), option.range, option.description
            )
    out.print(made)
    out.print()
    out.print(options)
    out.print(
        "\nTo use one: 'elbowroom fit' with --elbo OBJECTIVE, or 'elbowroom compare' with "
        "--guide GUIDE:OBJECTIVE.",
        style="dim",
    )


def fitting_guides(model: str) -> Any:
    """The guides that fit a model on its own dataset."""
    from elbowroom.pipeline.fitting import bind_model

    local = False
    declaration = get_model(model)
    if declaration.dataset is not None:
        local = bind_model(model, None, {})[0].space.local_continuous
    return guides_for(model, local)


def show_datasets() -> None:
    """The bundled datasets."""
    names = ("dataset", "rows", "columns", "title", "source", "licence")
    made = table(*names, right=("rows", "columns"))
    for name in dataset_names():
        found = describe(name)
        add(made, name, found.rows, len(found.columns), found.title, found.source, found.licence)
    console().print(made)
