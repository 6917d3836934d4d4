"""The Normal that Markov chains tell of, for any model with continuous latents.

Naesseth, Lindsten and Blei, 2020, "Markovian score climbing: variational inference with KL(p||q)".
The Normal with the smallest inclusive divergence from the posterior has the posterior's own mean
and covariance; the chains' draws give these, and are themselves what is handed out.
"""

from collections.abc import Callable
from typing import Any

from elbowroom.guides import Start, register
from elbowroom.guides.auto import start_normal
from elbowroom.guides.families import FixedDraws
from elbowroom.guides.space import LatentSpace


@register(
    "markov",
    "the Normal with the moments of many Markov chains, whose draws are the posterior",
    dense=True,
    engines=("fixed_draws",),
    fixed_draws=FixedDraws(chains=True, wide=True),
)
def markov(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Naesseth, Lindsten and Blei, 2020, "Markovian score climbing"."""
    return start_normal(space, start)
