"""What the baselines of score functions keep from step to step, in the parameter store.

Pyro names its own so, and these are no parameters: the optimiser leaves them alone.
"""

import pyro
import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

PREFIX = "__baseline"


def kept() -> dict[str, Tensor]:
    """What is kept now, by name; no step changes these tensors, but puts others in their place.

    Example:
        >>> keep({"__baseline_mean_z": torch.tensor(2.0)})
        >>> kept()
        {'__baseline_mean_z': tensor(2.)}
        >>> pyro.clear_param_store()
    """
    named = pyro.get_param_store().named_parameters()
    return {
        name: detach_provenance(value).detach() for name, value in named if name.startswith(PREFIX)
    }


def keep(values: dict[str, Tensor]) -> None:
    """Puts numbers in their place."""
    store = pyro.get_param_store()
    with torch.no_grad():
        for name, value in values.items():
            store[name] = value.detach()
