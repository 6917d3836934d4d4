"""The demonstration: a comparison of guides for three models, on bundled data."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elbowroom.comparison import Comparison, compare

SEED = 1
COMPARISONS: dict[str, list[str]] = {
    "bayesian_regression": [
        "linear_response", "structured", "full_rank", "low_rank", "mean_field", "laplace", "map",
    ],
    "gaussian_mixture": [
        "linear_response", "collapsed", "local", "local:trace_graph", "mean_field", "laplace",
    ],
    "vae": ["encoder", "local"],
}  # fmt: skip
"""The guides of each comparison: all but the slowest."""


def run_demo(
    folder: Path, progress: Callable[[str], Any] | None = None
) -> Iterator[tuple[Comparison, Path]]:
    """Compares guides on each model's own dataset.

    Args:
        folder: Where the comparisons are written. Those of an earlier demonstration are replaced.
        progress: As `elbowroom.compare` takes it.

    Yields:
        Each comparison, and its folder.
    """
    for model, guides in COMPARISONS.items():
        result = compare(model, guides=guides, seed=SEED, progress=progress)
        yield result, result.save(folder / model, overwrite=True)
