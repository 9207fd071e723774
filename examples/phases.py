"""Deep tanh networks whose phase is known: `ntk-analysis diagnose` finds it in 12 layers.

`ntk-analysis diagnose examples/phases.py:ordered`, and the same with `critical` and `chaotic`. By mean-field theory
ln chi_1 is -0.276, 0 and 0.309 (`ntk-analysis meanfield --activation tanh --w-var 1 --b-var 0.05`).
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ntk_analysis import spectrum
from ntk_analysis.data import load_digits, preprocess
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.layers import Layer
from ntk_analysis.networks import fully_connected

Drawn: TypeAlias = tuple[Layer, Any, jax.Array]
"""(f, params, x), as `ntk-analysis diagnose` takes them."""


def drawn(w_var: float, b_var: float) -> Drawn:
    """A network of 12 layers of 128 tanh units, with weights drawn at these variances."""
    x = jnp.asarray(preprocess(load_digits().subset(32, seed=0).images, image_centering="dataset"), jnp.float32)
    network = fully_connected(12, 128, "none", "tanh", outputs=10, w_var=w_var, b_var=b_var)
    _, params = network.init(jax.random.key(0), x.shape)
    return network, params, x


def ordered() -> Drawn:
    """Small weights and some bias: differences of inputs die on the way, and all outputs become alike."""
    return drawn(1.0, 0.05)


def critical() -> Drawn:
    """The edge of chaos."""
    return drawn(1.0, 0.0)


def chaotic() -> Drawn:
    """Large weights: differences of inputs grow on the way, and outputs forget how alike inputs were."""
    return drawn(4.0, 0.0)


network = ordered

if __name__ == "__main__":
    kernel = empirical_ntk(*network())
    print(kernel.summary())
    print(f"condition number {spectrum.condition_number(kernel):.4g}")
