"""Averages over finite networks, with their standard errors, for comparison with infinite-width kernels."""

import jax
import jax.numpy as jnp
import numpy as np

FEATURES = 6
STANDARD_ERRORS = 5


def pairs(seed=0):
    """Four inputs of different norms: two generic, a duplicate, an antiparallel one of another length."""
    a, b = np.random.default_rng(seed).standard_normal((2, FEATURES))
    return np.stack([a, 1.4 * b, a, -0.8 * b])


def one_batch(seed=0):
    """Seven generic inputs: E|Gx|^-4, the variance of a batch normalised tangent kernel, needs at least 6."""
    return np.random.default_rng(seed).standard_normal((7, 9)) + 0.3


def images(seed=0):
    """Three images of 3 x 4 positions and 2 channels, the last one a multiple of the first, with a black corner."""
    a, b = np.random.default_rng(seed).standard_normal((2, 3, 4, 2)) + 0.3
    a[:2, 0] = 0
    return np.stack([a, b, 0.5 * a])


def row_by_row(function):
    """jax.jacrev without vmap."""

    def jacobian(params):
        return jax.lax.map(lambda i: jax.grad(lambda p: function(p)[i])(params), jnp.arange(3))

    return jacobian


def finite_average(network, x, draws, seed=0):
    """Mean and standard error over draws of finite networks: NNGP over all outputs, NTK of the first; (2, n, n) both.

    Outputs of one draw share their hidden units, so only the draws count as independent.
    """

    def one_draw(params):
        y = network.apply(params, x)
        jacobian = jacobian_of(lambda p: network.apply(p, x)[:, 0])(params)
        flat = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)]
        return jnp.stack([y @ y.T / y.shape[1], sum(leaf @ leaf.T for leaf in flat)])

    keys = jax.random.split(jax.random.key(seed), draws)
    params = jax.vmap(lambda key: network.init(key, x.shape)[1])(keys)
    batch, jacobian_of = 250, jax.jacrev
    if x.ndim == 4:
        # on a CPU convolutions are naive loops in float64, and with many kernels at once, one for each draw or output;
        # float32 rounds far below the standard errors
        params, batch, jacobian_of = jax.tree.map(lambda leaf: leaf.astype(np.float32), params), None, row_by_row
    # compiling takes longer than running here: leave the expensive passes out
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    average = jax.jit(lambda p: jax.lax.map(one_draw, p, batch_size=batch), compiler_options=options)
    samples = np.asarray(average(params), np.float64)
    return np.mean(samples, axis=0), np.std(samples, axis=0) / np.sqrt(draws)


def extrapolated(make, x):
    """Intercept and its standard error of mean(width) = kernel + a / width, fitted by weighted least squares."""
    widths, work = ((16, 32, 64), 64_000) if x.ndim == 2 else ((8, 16, 32), 20_000)
    averages = [finite_average(make(w), x, work // w, seed=w) for w in widths]
    means, errors = (np.stack(part) for part in zip(*averages, strict=True))
    weight = 1 / errors**2
    design = (1.0 / np.array(widths))[:, None, None, None]
    s0, s1, s2 = (np.sum(weight * design**k, axis=0) for k in range(3))
    t0, t1 = (np.sum(weight * design**k * means, axis=0) for k in range(2))
    determinant = s0 * s2 - s1**2
    return (s2 * t0 - s1 * t1) / determinant, np.sqrt(s2 / determinant)


def deviation(expected, mean, error):
    """Worst entry of |mean - expected| in standard errors; entries without spread count their rounding."""
    return np.max(np.abs(mean - expected) / (error + 1e-12 * np.max(np.abs(expected))))


def resolution(expected, error):
    """Largest standard error relative to the diagonal: whether a comparison can tell anything."""
    return np.max(error / np.sqrt(np.einsum("kii,kjj->kij", expected, expected)))


def both(kernel):
    """NNGP and NTK, (2, n, n)."""
    return np.stack([kernel.nngp, kernel.ntk])
