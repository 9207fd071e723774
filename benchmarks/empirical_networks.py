"""Empirical kernels of networks other than straight MLPs beside neural-tangents' and torch.func's.

    uv run --with torch python benchmarks/empirical_networks.py

writes benchmarks/results/empirical_networks.json. All get the same parameters and images in float32 and take turns in
one process; kernels are compared before they are timed. The fastest of neural-tangents' implementations is timed;
torch.func computes Jacobians in reverse mode, mapped over inputs where these do not share statistics, and contracts
them.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import OURS, THEIRS, Call, finished, header, in_turns, timed, write

from ntk_analysis import data, reference
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.empirical.layouts import Layout
from ntk_analysis.layers import Activation, BatchNorm, Conv, Dense, GlobalAvgPool, Layer, Residual, Serial

TORCH = "torch.func"
LAYOUTS: tuple[Layout, ...] = ("full", "trace")
THEIR_WAYS = ("contraction", "structured")  # NTK-vector products take them half a minute on these CNNs
TOLERANCE = 1e-4  # of the largest entry: float32 in other orders
RELU = Activation("relu")
READ_OUT = (GlobalAvgPool(), Dense(10))
BLOCK = Residual(Serial(RELU, Conv(32, w_var=2.0), RELU, Conv(32, w_var=2.0)))
NETWORKS: dict[str, tuple[Layer, int]] = {
    "CNN, 3 x 32 channels": (
        Serial(Conv(32), RELU, Conv(32, w_var=2.0), RELU, Conv(32, w_var=2.0), RELU, *READ_OUT),
        32,
    ),
    "ResNet block, 32 channels": (Serial(Conv(32), BLOCK, RELU, *READ_OUT), 32),
    "batch-norm MLP, 3 x 256": (Serial(*[Dense(256), BatchNorm(), RELU] * 3, Dense(10, 2.0)), 64),
    "last-batch-norm MLP, 3 x 256": (Serial(*[Dense(256, 2.0), RELU] * 3, Dense(10, 2.0), BatchNorm()), 64),
}
"""What is measured, and on how many images: 28 x 28 MNIST for convolutions, 8 x 8 digits for the MLP."""


def translated(layer: Layer) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """The network as a PyTorch function of (params, x), images (n, channels, height, width)."""
    match layer:
        case Serial(layers=layers):
            parts = [translated(part) for part in layers]

            def serial(params: Any, x: torch.Tensor) -> torch.Tensor:
                for part, own in zip(parts, params, strict=True):
                    x = part(own, x)
                return x

            return serial
        case Residual(branch=branch, shortcut=None):
            inner = translated(branch)
            return lambda params, x: x + layer.scale * inner(params, x)
        case Dense(w_var=w_var):
            return lambda params, x: (w_var / len(params["w"])) ** 0.5 * (x @ params["w"])
        case Conv(w_var=w_var):
            return lambda params, x: torch.nn.functional.conv2d(
                x, (w_var / params["w"][..., 0].numel()) ** 0.5 * params["w"].permute(3, 2, 0, 1), padding="same"
            )
        case Activation():
            return lambda params, x: torch.relu(x)
        case GlobalAvgPool():
            return lambda params, x: x.mean((2, 3))
        case BatchNorm(eps=eps):
            return lambda params, x: (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + eps)
    raise NotImplementedError(layer)


def torch_call(network: Layer, params: Any, x: np.ndarray, coupled: bool, layout: Layout) -> Call:
    """The kernel by Jacobians of torch.func."""
    f = translated(network)
    weights = jax.tree.map(lambda leaf: torch.tensor(np.array(leaf)), params)
    inputs = torch.tensor(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)
    equation = {"full": "ncp,mdp->nmcd", "trace": "ncp,mcp->nm"}[layout]

    def jacobian() -> list[torch.Tensor]:
        if coupled:
            found = torch.func.jacrev(f)(weights, inputs)
        else:
            one = torch.func.jacrev(lambda params, image: f(params, image[None])[0])
            found = torch.func.vmap(one, (None, 0))(weights, inputs)
        return [leaf.flatten(2) for leaf in torch.utils._pytree.tree_leaves(found)]

    return lambda: sum(torch.einsum(equation, leaf, leaf) for leaf in jacobian()).numpy()


def calls(network: Layer, count: int, layout: Layout) -> dict[str, Call]:
    """The call that returns the finished kernel, by library; neural-tangents has its fastest implementation."""
    images = data.load_mnist5k() if isinstance(network.layers[0], Conv) else data.load_digits()  # type: ignore[attr-defined]
    chosen = images.subset(count, seed=0)
    x = (chosen.images / 127.5 - 1 if images.images.dtype == np.uint8 else chosen.images).astype(np.float32)
    x = x if isinstance(network.layers[0], Conv) else x.reshape(count, -1)  # type: ignore[attr-defined]
    coupled = any(isinstance(layer, BatchNorm) for layer in network.layers)  # type: ignore[attr-defined]
    params = network.init(jax.random.key(0), x.shape)[1]
    on_device = jnp.asarray(x)
    found: dict[str, Call] = {
        OURS: lambda: empirical_ntk(network, params, x, layout=layout).values,
        TORCH: torch_call(network, params, x, coupled, layout),
    }
    theirs: dict[str, Call] = {}
    for name in THEIR_WAYS:
        kernel = reference.empirical_ntk_fn(network.apply, layout=layout, implementation=name, coupled=coupled)
        theirs[name] = finished(kernel, params, on_device)
    taken = {}
    for name, call in theirs.items():
        call()
        taken[name] = timed(call)[0]
        print(f"  neural-tangents, {name}: {taken[name]:.3f} s", flush=True)
    best = min(taken, key=taken.__getitem__)
    return found | {f"{THEIRS}, {best}": theirs[best]}


def measured(network: Layer, count: int, layout: Layout, rounds: int) -> dict[str, Any]:
    """Times of each library, in turns, and our part of each of the others'."""
    found = calls(network, count, layout)
    ours, *others = (np.asarray(call()) for call in found.values())
    for name, other in zip(list(found)[1:], others, strict=True):
        np.testing.assert_allclose(ours, other, atol=TOLERANCE * np.abs(ours).max(), rtol=0, err_msg=name)
    times = in_turns(found, rounds)
    median = {name: facts["median_s"] for name, facts in times.items()}
    part = {name: round(median[OURS] / seconds, 3) for name, seconds in median.items() if name != OURS}
    return {**times, "our part of": part}


def main() -> None:
    """Measures all and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    found = header("empirical NTK with itself, 10 outputs, float32", options.rounds) | {"torch": torch.__version__}
    for name, (network, count) in NETWORKS.items():
        if name in options.only:
            print(name, flush=True)
            found[f"{name}, {count} images"] = {
                layout: measured(network, count, layout, options.rounds) for layout in LAYOUTS
            }
    write("empirical_networks", found)


if __name__ == "__main__":
    main()
