"""The guides written for `conditional_vae`: those of `vae`, which also see the known columns."""

from elbowroom.guides import register
from elbowroom.guides.vae import QUICK, encoder, local

register(
    "encoder",
    "amortised: a network gives each row's mean and scale",
    model="conditional_vae",
    elbo="trace_mean_field",
    amortised=True,
)(encoder)
register(
    "local",
    "each row has its own mean and scale; no network",
    model="conditional_vae",
    elbo="trace_mean_field",
    replaces="mean_field",
    suggested=QUICK,
)(local)
