"""The exact kernel of a batch-normalised network beside Monte Carlo: B = 128 of 784 features, 10 layers, float64.

    uv run python benchmarks/batch_norm.py

also times one layer behind the statistics of a training batch, 512 inputs of which 384 train, once compiled, and
writes benchmarks/results/batch_norm.json. The error is that of the quadrature: the distance from the same recursion
with a rule of finer steps. Monte Carlo draws finite networks; its time to a relative error of 1e-3 is the measured
time of a draw times (spread / 1e-3)^2. That counts the spread alone: the bias of finite width comes on top. LAPACK has
one thread, because those of OpenBLAS wait for each other wherever other programs run.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy and SciPy are imported

import jax
import jax.numpy as jnp
import numpy as np
from timing import finished, header, timed, write

from ntk_analysis import batch_norm
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.networks import fully_connected

BATCH, FEATURES, LAYERS, WIDTH = 128, 784, 10, 256
ROUNDS, DRAWS, TARGET = 20, 30, 1e-3
INPUTS, TRAINING, LAYER_ROUNDS = 512, 384, 5


def recursion(x: np.ndarray, rule: batch_norm.Rule) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK layer by layer, with this rule."""
    sigma = theta = x @ x.T / x.shape[1]
    for _ in range(LAYERS):
        found = batch_norm.propagate(sigma, theta, rule=rule)
        sigma, theta = 2 * found.nngp, 2 * (found.nngp + found.pushed)
    return sigma, theta


def deviation(values: np.ndarray, exact: np.ndarray) -> float:
    """Largest difference of an entry, relative to the largest entry."""
    return float(np.max(np.abs(values - exact)) / np.max(np.abs(exact)))


def exact(x: np.ndarray) -> dict[str, float]:
    """Time and quadrature error of the kernel, each relative to its largest entry."""
    network = fully_connected(LAYERS, 1, "batch")
    kernel = infinite_kernel(network, x)
    nngp, ntk = recursion(x, batch_norm.FINE)
    times = np.array([timed(lambda: infinite_kernel(network, x)) for _ in range(ROUNDS)])
    return {
        "minimum_wall_s": round(float(times[:, 0].min()), 4),
        "median_wall_s": round(float(np.median(times[:, 0])), 4),
        "minimum_cpu_s": round(float(times[:, 1].min()), 4),
        "nngp_error": deviation(np.asarray(kernel.nngp), nngp),
        "ntk_error": deviation(np.asarray(kernel.ntk), ntk),
    }


def layer() -> dict[str, float]:
    """Time of one layer's NNGP, pushed tangent kernel, mean and slopes where some of the inputs make the statistics."""
    x = np.random.default_rng(0).standard_normal((INPUTS, FEATURES))
    sigma, weights = x @ x.T / FEATURES, np.where(np.arange(INPUTS) < TRAINING, 1 / TRAINING, 0)
    first = timed(lambda: batch_norm.propagate(sigma, sigma, weights=weights))[0]
    times = np.array([timed(lambda: batch_norm.propagate(sigma, sigma, weights=weights)) for _ in range(LAYER_ROUNDS)])
    return {
        "inputs": INPUTS,
        "training_inputs": TRAINING,
        "first_s": round(first, 2),
        "minimum_wall_s": round(float(times[:, 0].min()), 3),
        "median_wall_s": round(float(np.median(times[:, 0])), 3),
        "minimum_cpu_s": round(float(times[:, 1].min()), 3),
        "quadrature_error": batch_norm.quadrature_error(sigma, sigma, weights=weights),
    }


def monte_carlo(x: np.ndarray) -> dict[str, float]:
    """Time of a draw of a finite network's NTK, float32, its spread relative to the mean, and the time to TARGET."""
    network, inputs = fully_connected(LAYERS, WIDTH, "batch"), jnp.asarray(x, jnp.float32)

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        params = network.init(key, inputs.shape)[1]
        jacobian = jax.jacrev(lambda p: network.apply(p, inputs)[:, 0])(params)
        rows = [leaf.reshape(len(inputs), -1) for leaf in jax.tree.leaves(jacobian)]
        return sum((row @ row.T for row in rows), jnp.zeros(()))

    keys = jax.random.split(jax.random.key(0), DRAWS)
    samples = np.stack([np.asarray(draw(key)) for key in keys])
    seconds = min(timed(finished(draw, key))[0] for key in keys[:5])
    spread = float(np.sqrt(np.mean(samples.var(axis=0, ddof=1)) / np.mean(samples.mean(axis=0) ** 2)))
    return {
        "width": WIDTH,
        "seconds_per_draw": round(seconds, 4),
        "relative_spread": round(spread, 4),
        "draws_to_target": round((spread / TARGET) ** 2),
        "seconds_to_target": round(seconds * (spread / TARGET) ** 2, 1),
    }


def main() -> None:
    """Measures all and writes it down."""
    x = np.random.default_rng(0).standard_normal((BATCH, FEATURES))
    work = f"NNGP and NTK of one batch of {BATCH} inputs of {FEATURES} features, {LAYERS} layers, float64"
    found = header(work, ROUNDS)
    found["exact"], found["monte_carlo"] = ours, theirs = exact(x), monte_carlo(x)
    found["faster_than_monte_carlo"] = round(theirs["seconds_to_target"] / ours["minimum_wall_s"])
    found["layer_behind_a_training_batch"] = layer()
    write("batch_norm", found)


if __name__ == "__main__":
    main()
