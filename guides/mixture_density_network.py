"""The guide written for `mixture_density_network`: that of `bayesian_neural_network`."""

from elbowroom.guides import register
from elbowroom.guides.bayesian_neural_network import bayes_by_backprop

register(
    "bayes_by_backprop",
    "each weight has its own mean and standard deviation",
    model="mixture_density_network",
    elbo="local_reparameterisation",
)(bayes_by_backprop)
