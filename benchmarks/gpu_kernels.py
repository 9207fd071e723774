"""Kernels on one card: by size, general path, batch norm, empirical, and neural-tangents'; float32 unless said."""

import time
from collections.abc import Callable
from typing import Any

ROUNDS = 5
DEPTH, FEATURES = 50, 784
CHAIN = 200  # multiply-adds on each number in the program that measures the rate of arithmetic
Call = Callable[[], object]


def units(small: bool, dtype: str) -> dict[str, dict[str, Any]]:
    """Measurements by name."""
    del dtype
    counts, general_count, batch, images = ((200,), 60, 16, 8) if small else ((10_000, 40_000), 4000, 512, 256)
    found: dict[str, dict[str, Any]] = {}
    for count in counts:
        for name, normalization in {"straight": "none", "centered": "weight_mean"}.items():
            found[f"{name}, {count}"] = {"what": "by_angle", "count": count, "normalization": normalization}
    found["general path"] = {"what": "general", "count": general_count}
    found["batch norm"] = {"what": "batch_norm", "count": batch}
    for layout in ("trace", "full"):
        found[f"empirical, {layout}"] = {"what": "empirical", "count": images, "layout": layout}
    found["beside neural-tangents"] = {
        "what": "beside_theirs", "count": 200 if small else 2000, "depth": 3 if small else DEPTH,
    }  # fmt: skip
    return found


def measure(what: str, **options: Any) -> dict[str, Any]:
    """One of the measurements below."""
    measurements: dict[str, Callable[..., dict[str, Any]]] = {
        "by_angle": by_angle,
        "general": general,
        "batch_norm": batch_norm,
        "empirical": empirical,
        "beside_theirs": beside_theirs,
    }
    return measurements[what](**options)


def seconds(call: Call, rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of the first call, which compiles, and the least of the others."""
    import jax

    taken = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return {"first_s": round(taken[0], 4), "minimum_s": round(min(taken[1:]), 6)}


def inputs(count: int, features: int = FEATURES, dtype: str = "float32") -> Any:
    """Independent Gaussian inputs (count, features) on the device."""
    import jax.numpy as jnp
    import numpy as np

    return jnp.asarray(np.random.default_rng(0).standard_normal((count, features)), dtype)


def kernels_of(network: Any) -> Callable[[Any], Any]:
    """The compiled NNGP, as distances, and NTK."""
    import jax

    from ntk_analysis.infinite import infinite_kernel

    def kernels(x: Any) -> Any:
        kernel = infinite_kernel(network, x)
        return kernel.distance, kernel.ntk_scaled

    return jax.jit(kernels)


def by_angle(count: int, normalization: str) -> dict[str, Any]:
    """The kernel at depth 50 beside one float32 product of the same inputs and two writes of its size."""
    import jax
    import jax.numpy as jnp

    from ntk_analysis.networks import fully_connected

    x, kernels = inputs(count), kernels_of(fully_connected(DEPTH, 1, normalization))

    @jax.jit
    def product(x: Any) -> Any:
        gram = jnp.matmul(x, x.T, precision="highest")
        return 2 * gram, gram + 1

    least = seconds(lambda: product(x))
    found = seconds(lambda: kernels(x))
    return found | {
        "product_and_writes_s": least["minimum_s"],
        "over_product": round(found["minimum_s"] / least["minimum_s"], 2),
    }


def general(count: int) -> dict[str, Any]:
    """GELU with biases: its time, and what it would take by arithmetic alone and by memory alone."""
    from ntk_analysis.networks import fully_connected

    x = inputs(count)
    kernels = kernels_of(fully_connected(DEPTH, 1, activation="gelu", b_var=0.1))
    found: dict[str, Any] = dict(seconds(lambda: kernels(x), 3))
    return found | bound(kernels, x, found["minimum_s"])


def bound(function: Callable[[Any], Any], x: Any, taken: float) -> dict[str, Any]:
    """Which limit of the device a program is nearer to: elementwise arithmetic, or memory.

    Operations are counted on the program as written, one for each element of each step, and set against the measured
    rate of multiply-adds. Bytes are those of inputs and results of XLA's kernels. The compiler counts a loop as one
    pass, so its bytes are scaled by the operations that it leaves out.
    """
    import jax
    import jax.numpy as jnp

    from ntk_analysis.common.cost import program_cost

    big = jnp.ones(2**26 if jax.default_backend() != "cpu" else 2**20, jnp.float32)

    @jax.jit
    def chain(a: Any) -> Any:
        return jax.lax.fori_loop(0, CHAIN, lambda _, b: b * 0.999 + 0.001, a)

    arithmetic = 2 * CHAIN * big.size / seconds(lambda: chain(big))["minimum_s"]
    memory = 2 * big.nbytes / seconds(lambda: big + 1)["minimum_s"]
    flops = program_cost(function, x)[0].flops
    analysis: Any = jax.jit(function).lower(x).compile().cost_analysis()
    moved = float(analysis["bytes accessed"]) * max(1.0, flops / float(analysis["flops"]))
    by_arithmetic, by_memory = flops / arithmetic, moved / memory
    return {
        "flops": flops,
        "bytes": moved,
        "by_arithmetic_s": by_arithmetic,
        "by_memory_s": by_memory,
        "bound_by": "arithmetic" if by_arithmetic > by_memory else "memory",
        "share_of_the_limit": round(max(by_arithmetic, by_memory) / taken, 2),
    }


def batch_norm(count: int) -> dict[str, Any]:
    """The exact kernel of a batch through 10 layers, float64, and that of few nodes."""
    import jax
    import numpy as np

    from ntk_analysis.infinite import infinite_kernel
    from ntk_analysis.networks import fully_connected

    x, network = np.random.default_rng(0).standard_normal((count, FEATURES)), fully_connected(10, 1, "batch")
    jax.config.update("jax_enable_x64", True)
    return {
        "exact": seconds(lambda: infinite_kernel(network, x).ntk, 3),
        "large_batch": seconds(lambda: infinite_kernel(network, x, batch_norm="large_batch").ntk, 3),
    }


def empirical(count: int, layout: str) -> dict[str, Any]:
    """The empirical NTK of an MLP of 5 x 512 with 10 outputs."""
    import jax

    from ntk_analysis.empirical import empirical_ntk
    from ntk_analysis.networks import fully_connected

    network, x = fully_connected(5, 512, outputs=10), inputs(count)
    params = network.init(jax.random.key(0), x.shape)[1]
    return seconds(lambda: empirical_ntk(network, params, x, layout=layout).values)  # type: ignore[arg-type]


def beside_theirs(count: int, depth: int) -> dict[str, Any]:
    """A straight ReLU network's kernels by both libraries."""
    import importlib.util

    if importlib.util.find_spec("neural_tangents") is None:
        return {"not measured": "neural-tangents is not installed: uv sync --extra reference"}
    import jax

    from ntk_analysis import reference
    from ntk_analysis.networks import fully_connected
    from ntk_analysis.reference.comparison import permissive

    network, x = fully_connected(depth, 1), inputs(count)
    kernel_fn = reference.translate(network)[2]

    @jax.jit
    def theirs(x: Any) -> Any:
        with permissive():
            kernel = kernel_fn(x, None, get=("nngp", "ntk"))
        return kernel.nngp, kernel.ntk

    ours = kernels_of(network)
    both = {"ours": seconds(lambda: ours(x)), "theirs": seconds(lambda: theirs(x), 2)}
    return both | {"faster": {name: round(both["theirs"][name] / both["ours"][name], 1) for name in both["ours"]}}
