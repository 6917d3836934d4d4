"""Elbowroom fits Pyro models by variational inference and exports posteriors to ArviZ.

Example:
    >>> import elbowroom as er
    >>> fit = er.fit("bayesian_regression", data="diabetes", response="progression", seed=1)
    >>> fit.verdict.trusted
    True
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

if TYPE_CHECKING:
    from elbowroom import sklearn
    from elbowroom.api import check, estimators, fit
    from elbowroom.comparison import Comparison, compare
    from elbowroom.data.bundled import dataset_names, load_dataset
    from elbowroom.data.tables import read_table
    from elbowroom.loading import load, resume
    from elbowroom.model_comparison import ModelComparison, compare_models
    from elbowroom.prior_view import PriorView, priors
    from elbowroom.result import Fit

__version__ = "0.1.0"

# Each public name with the module it comes from, or that it is, imported when it is first used:
# importing elbowroom does not import torch.
_public = {
    "Comparison": "elbowroom.comparison",
    "Fit": "elbowroom.result",
    "ModelComparison": "elbowroom.model_comparison",
    "check": "elbowroom.api",
    "compare": "elbowroom.comparison",
    "compare_models": "elbowroom.model_comparison",
    "dataset_names": "elbowroom.data.bundled",
    "estimators": "elbowroom.api",
    "fit": "elbowroom.api",
    "load": "elbowroom.loading",
    "load_dataset": "elbowroom.data.bundled",
    "PriorView": "elbowroom.prior_view",
    "priors": "elbowroom.prior_view",
    "read_table": "elbowroom.data.tables",
    "resume": "elbowroom.loading",
    "sklearn": "elbowroom.sklearn",
}
__all__ = [
    "Comparison", "Fit", "ModelComparison", "PriorView", "check", "compare", "compare_models",
    "dataset_names", "estimators", "fit", "load", "load_dataset", "priors", "read_table", "resume",
    "sklearn",
]  # fmt: skip

if not (Path(__file__).parent / "models").is_dir():
    raise ImportError(
        "elbowroom/models is not a folder: the checkout's symbolic links did not arrive. Clone "
        "again with 'git clone -c core.symlinks=true', or install with 'pip install elbowroom'."
    )


def __getattr__(name: str) -> Any:
    if name not in _public:
        raise AttributeError(f"module 'elbowroom' has no attribute '{name}'")
    if sys.flags.optimize > 1:
        raise ImportError("Pyro cannot do without docstrings; run Python without -OO.")
    with catch_warnings():  # libraries change what is shown when they are imported
        module = import_module(_public[name])
        value = module if module.__name__ == f"elbowroom.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
