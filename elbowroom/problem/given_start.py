"""Where a user has a fit begin: values of latent sites, checked against the model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbowroom.errors import OptionError, unknown
from elbowroom.guides.space import LatentSpace, Site
from elbowroom.problem.wording import described, rows_of, shown

WHOLE = "give start=... as a dict of values by site, or --start FILE.json with such values"


def given_start(given: Mapping[str, Any] | str | Path, space: LatentSpace) -> dict[str, Tensor]:
    """The values of continuous latent sites that a fit is to begin at, float64 on the CPU.

    Args:
        given: By site, or a JSON file of them. Sites that are left out begin at the origin of
            their unconstrained coordinates.
        space: Of the model.

    Raises:
        OptionError: If there is no such site, or a value has another shape or is outside of the
            site's support; the site is named.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
        >>> given_start({"scale": 2.0}, LatentSpace.of(model, {}))
        {'scale': tensor(2., dtype=torch.float64)}
    """
    if isinstance(given, (str, Path)):
        given = _read(Path(given))
    if not isinstance(given, Mapping):
        raise OptionError(f"start: it is a {type(given).__name__}; {WHOLE}.")
    sites = {site.name: site for site in space.sites}
    return {name: _value(name, value, sites, space) for name, value in given.items()}


def _read(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may have no end
            raise OptionError(f"--start {path}: it is no file; {WHOLE}.")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise OptionError(f"--start {path}: it cannot be read as JSON ({reason}).") from error


def _value(name: str, value: Any, sites: Mapping[str, Site], space: LatentSpace) -> Tensor:
    if name in space.discrete:
        raise OptionError(f"start: site '{name}' is discrete and is summed over; leave it out.")
    if name not in sites:
        raise unknown("latent site", name, sites)
    site = sites[name]
    try:
        found = torch.as_tensor(
            value if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)
        )
    except (ValueError, TypeError) as error:
        raise OptionError(f"start: the value of site '{name}' is not numeric; {WHOLE}.") from error
    found = found.detach().double().cpu()
    if found.shape != site.shape:
        raise OptionError(
            f"start: the value of site '{name}' has shape {tuple(found.shape)}, and the site "
            f"{tuple(site.shape)}; give a number for each of its elements."
        )
    with torch.no_grad():
        there = site.transform(site.transform.inv(found)).to(found)
    inside = torch.isclose(there, found, rtol=1e-6, atol=1e-9)
    if not inside.all():
        wanted, _ = described(site.support)
        bad = ~inside
        raise OptionError(
            f"start: the value of site '{name}' is {shown(found[bad])}"
            f"{rows_of(bad)}, and must be {wanted}."
        )
    return found


def begun(start: Mapping[str, Tensor], space: LatentSpace, others: Tensor) -> Tensor:
    """The flat unconstrained vector of a start, (D,).

    Args:
        start: Values by site; those of sites that the space does not have are left out.
        space: Of the model.
        others: The vector of the sites that the start leaves out, (D,).
    """
    parts = space.split(others.double())
    with torch.no_grad():
        for site in space.sites:
            if site.name in start:
                parts[site.name] = site.transform.inv(start[site.name])
    return torch.cat([parts[site.name].reshape(-1) for site in space.sites])
