"""Averages over finite networks, with their standard errors, for comparison with infinite-width kernels."""

import jax
import jax.numpy as jnp
import numpy as np

FEATURES = 6
STANDARD_ERRORS = 5
BATCH = 250  # networks at once: more would take gigabytes


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


def sequences(seed=0):
    """The images with their 12 positions on one axis."""
    return images(seed).reshape(3, 12, 2)


def volumes(seed=0):
    """The images with their 12 positions on three axes."""
    return images(seed).reshape(3, 3, 2, 2, 2)


def of_one_corner(seed=0):
    """The first two rows and columns of the images, for layers that make them larger."""
    return images(seed)[:, :2, 1:3]


def drawn(network, shape, draws, generator):
    """Parameters of so many networks, by NumPy: `init` compiles each of its steps anew for each network.

    Those of images in float32, which rounds far below the standard errors: on a CPU convolutions are naive loops in
    float64.
    """
    _, params = jax.eval_shape(lambda key: network.init(key, shape), jax.random.key(0))
    dtype = np.float64 if len(shape) == 2 else np.float32

    def values(path, leaf):
        constant = {"gamma": 1, "beta": 0}.get(path[-1].key)
        if constant is not None:
            return np.full((draws, *leaf.shape), constant, dtype)
        return generator.standard_normal((draws, *leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(values, params)


def finite_average(network, x, draws, seed=0):
    """Mean and standard error over draws of finite networks: NNGP over all outputs, NTK of the first; (2, n, n) both.

    Outputs of one draw share their hidden units, so only the draws count as independent.
    """
    rows = np.arange(len(x))

    def one_draw(params):
        y, pullback = jax.vjp(lambda p: network.apply(p, x), params)
        (jacobian,) = jax.vmap(pullback)(jnp.zeros((len(x), *y.shape), y.dtype).at[rows, rows, 0].set(1))
        flat = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)]
        return jnp.stack([y @ y.T / y.shape[1], sum(leaf @ leaf.T for leaf in flat)])

    average, generator = jax.jit(jax.vmap(one_draw)), np.random.default_rng(seed)
    batches = [average(drawn(network, x.shape, BATCH, generator)) for _ in range(-(-draws // BATCH))]
    samples = np.concatenate(batches).astype(np.float64)
    return np.mean(samples, axis=0), np.std(samples, axis=0) / np.sqrt(len(samples))


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
