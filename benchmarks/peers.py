"""The cases of `steps.py` in NumPyro and in PyMC, where these are installed.

Each is written as its users would: NumPyro's loop is compiled as a whole (`jax.lax.scan`), PyMC
compiles a step. `pip install 'elbowroom[peers]'` installs both.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import Tensor

Run = Callable[[int], None]
"""Makes so many steps."""

# How many steps NumPyro makes in one compiled call.
CHUNK = 100


def _numpyro(model: Any, guide: Any, loss: Any, rate: float, *arguments: Any) -> Run:
    import jax
    import numpyro

    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(rate), loss)

    @jax.jit
    def steps(state: Any) -> Any:
        return jax.lax.scan(lambda state, _: svi.update(state, *arguments), state, None, CHUNK)

    state = svi.init(jax.random.PRNGKey(0), *arguments)

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count // CHUNK):
            state, losses = steps(state)
        losses.block_until_ready()

    return run


def numpyro_regression(data: dict[str, Tensor], rate: float, guide: str) -> Run:
    """AutoNormal or AutoMultivariateNormal."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    numpyro.enable_x64()

    def model(x: Any, y: Any) -> None:
        b = numpyro.sample("b", dist.Normal(jnp.zeros(4), 10.0).to_event(1))
        s = numpyro.sample("s", dist.HalfNormal(5.0))
        numpyro.sample("y", dist.Normal(x @ b, s), obs=y)

    x, y = jnp.asarray(data["x"].numpy()), jnp.asarray(data["y"].numpy())
    kind = {"mean_field": "AutoNormal", "full_rank": "AutoMultivariateNormal"}[guide]
    own = getattr(numpyro.infer.autoguide, kind)(model)
    return _numpyro(model, own, numpyro.infer.Trace_ELBO(), rate, x, y)


def numpyro_mixture(data: dict[str, Tensor], rate: float, components: int) -> Run:
    """AutoNormal."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    numpyro.enable_x64()
    x = jnp.asarray(data["x"].numpy())
    size = x.shape[1]

    def model(x: Any) -> None:
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(components)))
        with numpyro.plate("components", components):
            means = numpyro.sample("means", dist.Normal(jnp.zeros(size), 5.0).to_event(1))
            scales = numpyro.sample("scales", dist.LogNormal(jnp.zeros(size), 1.0).to_event(1))
        each = dist.Normal(means, scales).to_event(1)
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), each)
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", mixture, obs=x)

    own = numpyro.infer.autoguide.AutoNormal(model)
    return _numpyro(model, own, numpyro.infer.Trace_ELBO(), rate, x)


def numpyro_network(data: dict[str, Tensor], rate: float, hidden: int) -> Run:
    """AutoNormal, with divergences in closed form."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    numpyro.enable_x64()
    x, y = jnp.asarray(data["x"].numpy()), jnp.asarray(data["y"].numpy())
    shape = (x.shape[1] + 1, hidden)

    def model(x: Any, y: Any) -> None:
        first = numpyro.sample("first", dist.Normal(jnp.zeros(shape), 1.0).to_event(2))
        second = numpyro.sample("second", dist.Normal(jnp.zeros(hidden + 1), 1.0).to_event(1))
        mean = jnp.tanh(x @ first[:-1] + first[-1]) @ second[:-1] + second[-1]
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    own = numpyro.infer.autoguide.AutoNormal(model)
    return _numpyro(model, own, numpyro.infer.TraceMeanField_ELBO(), rate, x, y)


def numpyro_vae(data: dict[str, Tensor], rate: float, sizes: tuple[int, int], batch: int) -> Run:
    """Networks of stax, whole epochs in one call."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax

    numpyro.enable_x64(False)
    x = jnp.asarray(data["x"].numpy())
    (rows, pixels), (units, latents) = x.shape, sizes

    def model(seen: Any) -> None:
        networks = stax.serial(stax.Dense(units), stax.Softplus, stax.Dense(pixels))
        decode = numpyro.module("decoder", networks, (batch, latents))
        with numpyro.plate("rows", rows, subsample_size=batch):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latents), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=seen)

    def guide(seen: Any) -> None:
        networks = stax.serial(stax.Dense(units), stax.Softplus, stax.Dense(2 * latents))
        encode = numpyro.module("encoder", networks, (batch, pixels))
        with numpyro.plate("rows", rows, subsample_size=batch):
            mean, raw = jnp.split(encode(seen), 2, axis=-1)
            numpyro.sample("z", dist.Normal(mean, jax.nn.softplus(raw)).to_event(1))

    loss = numpyro.infer.TraceMeanField_ELBO()
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(rate), loss)
    state = svi.init(jax.random.PRNGKey(0), x[:batch])

    @jax.jit
    def epoch(state: Any, key: Any) -> Any:
        order = jax.random.permutation(key, rows)[: rows // batch * batch].reshape(-1, batch)
        return jax.lax.scan(lambda state, chosen: svi.update(state, x[chosen]), state, order)

    def run(count: int) -> None:
        nonlocal state
        for number in range(count // (rows // batch)):
            state, losses = epoch(state, jax.random.PRNGKey(number))
        losses.block_until_ready()

    return run


def _pymc(model: Any, kind: str, rate: float) -> Run:
    import pymc

    with model:
        inference = getattr(pymc, kind)(random_seed=0)
        step = inference.objective.step_function(obj_optimizer=pymc.adam(learning_rate=rate))

    def run(count: int) -> None:
        for _ in range(count):
            step()

    return run


def pymc_regression(data: dict[str, Tensor], rate: float, guide: str) -> Run:
    """ADVI or full-rank ADVI."""
    import pymc

    with pymc.Model() as model:
        b = pymc.Normal("b", 0.0, 10.0, shape=4)
        s = pymc.HalfNormal("s", 5.0)
        pymc.Normal("y", pymc.math.dot(data["x"].numpy(), b), s, observed=data["y"].numpy())
    return _pymc(model, {"mean_field": "ADVI", "full_rank": "FullRankADVI"}[guide], rate)


def pymc_mixture(data: dict[str, Tensor], rate: float, components: int) -> Run:
    """ADVI, with the components summed out by hand."""
    import pymc

    x = data["x"].numpy()
    shape = (components, x.shape[1])
    with pymc.Model() as model:
        weights = pymc.Dirichlet("weights", np.ones(components))
        means = pymc.Normal("means", 0.0, 5.0, shape=shape)
        scales = pymc.LogNormal("scales", 0.0, 1.0, shape=shape)
        each = pymc.logp(pymc.Normal.dist(means, scales), x[:, None]).sum(-1)
        pymc.Potential("x", pymc.math.logsumexp(each + pymc.math.log(weights), axis=1).sum())
    return _pymc(model, "ADVI", rate)


def pymc_network(data: dict[str, Tensor], rate: float, hidden: int) -> Run:
    """ADVI."""
    import pymc

    x, y = data["x"].numpy(), data["y"].numpy()
    with pymc.Model() as model:
        first = pymc.Normal("first", 0.0, 1.0, shape=(x.shape[1] + 1, hidden))
        second = pymc.Normal("second", 0.0, 1.0, shape=hidden + 1)
        inner = pymc.math.tanh(pymc.math.dot(x, first[:-1]) + first[-1])
        pymc.Normal("y", pymc.math.dot(inner, second[:-1]) + second[-1], 1.0, observed=y)
    return _pymc(model, "ADVI", rate)


def installed(library: str) -> bool:
    """Whether a library is there."""
    return find_spec(library) is not None
