"""Infinite-width kernels of networks that are no function of the angle alone, beside neural-tangents'.

    uv run python benchmarks/recursion.py

writes benchmarks/results/recursion.json: 2,000 vectors through 50 layers with biases or smooth activations, and 128
images of 32 x 32 x 3 through 5 convolutions; float32. Both libraries compile the whole function once, NNGP and NTK from
the inputs on, and take turns in one process: ours takes every pair through all layers. The inputs are noise, on which
neither's time depends. Called plainly, ours takes vectors of one norm by their angles: that is the third call, of the
same vectors scaled to |x|^2 = d. neural-tangents needs up to a minute a call. On a machine that others use, compare
the processor's seconds (cpu).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from timing import OURS, THEIRS, Call, faster, finished, header, in_turns, write

from ntk_analysis import reference
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Layer
from ntk_analysis.networks import convolutional, fully_connected
from ntk_analysis.reference.comparison import permissive

ONE_NORM = "ntk_analysis, one norm"
VECTORS, IMAGES = (2000, 784), (128, 32, 32, 3)
WORK: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "erf, bias, depth 50": (fully_connected(50, 1, activation="erf", b_var=0.1), VECTORS),
    "relu, bias, depth 50": (fully_connected(50, 1, b_var=0.1), VECTORS),
    "gelu, depth 50": (fully_connected(50, 1, activation="gelu"), VECTORS),
    "CNN, 5 layers, flatten": (convolutional(5, 1), IMAGES),
}


def calls(network: Layer, shape: tuple[int, ...]) -> dict[str, Call]:
    """The call that returns the finished NNGP and NTK, by library; ours of vectors of one norm, too."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    kernel_fn = reference.translate(network)[2]

    @jax.jit
    def ours(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = infinite_kernel(network, x)
        return kernel.nngp, kernel.ntk

    @jax.jit
    def theirs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        with permissive():
            kernel = kernel_fn(x, None, get=("nngp", "ntk"))
        return kernel.nngp, kernel.ntk

    both = {OURS: finished(ours, x), THEIRS: finished(theirs, x)}
    if x.ndim != 2:
        return both
    scaled = x * jnp.sqrt(shape[1]) / jnp.linalg.norm(x, axis=1, keepdims=True)

    def by_angle(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = infinite_kernel(network, x)
        assert kernel.approximation_error > 0, "the kernel was not taken by the angles"
        return kernel.nngp, kernel.ntk

    return both | {ONE_NORM: finished(by_angle, scaled)}


def compared(network: Layer, shape: tuple[int, ...], rounds: int) -> dict[str, object]:
    """Times of both libraries, how many times faster ours is, and how far they differ, of the largest entry."""
    both = calls(network, shape)
    times = in_turns(both, rounds)
    kernels = zip(("nngp", "ntk"), both[OURS](), both[THEIRS](), strict=True)  # type: ignore[call-overload]
    differences = {
        f"{name}_difference": float(jnp.max(jnp.abs(mine - yours)) / jnp.max(jnp.abs(yours)))
        for name, mine, yours in kernels
    }
    ratios = {"faster": faster(times)}
    if ONE_NORM in times:
        ratios["faster at one norm"] = faster({OURS: times[ONE_NORM], THEIRS: times[THEIRS]})
    return {**times, **ratios, **differences}


def main() -> None:
    """Measures all and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=WORK, default=list(WORK))
    options = parser.parse_args()
    found = header("NNGP and NTK, float32, jitted", options.rounds)
    found |= {name: compared(*WORK[name], options.rounds) for name in options.only}
    write("recursion", found)


if __name__ == "__main__":
    main()
