"""The network that is checked, and what `diagnose` measures on it, once for all checks."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.diagnosis import Diagnosis, diagnose, load_network
from ntk_analysis.diagnosis.checks import chosen_inputs, precision_of
from ntk_analysis.empirical.functions import Flat, flattened
from ntk_analysis.layers.base import Params
from ntk_analysis.training.centering import fan_in
from paper_checks.contract import Setting


class Subject(NamedTuple):
    """A network and its inputs.

    Attributes:
        network: as the user gives it: a function, or a network of layers.
        f: the same with flattened outputs, f(params, x) -> (n, C).
        params: any tree of float arrays.
        x: (n, ...) the inputs that were chosen.
        found: what `diagnose` says of it.
    """

    network: Any
    f: Flat
    params: Params
    x: np.ndarray
    found: Diagnosis

    @property
    def precision(self) -> AbstractContextManager[Any]:
        """In which to call f: float64 for NumPy float64, else what JAX's flag says."""
        return precision_of(self.params, self.x)

    @property
    def weights(self) -> dict[str, jax.Array]:
        """Every array of two or more axes by its path: weights, where biases and scales have one axis."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        named = {jax.tree_util.keystr(path, simple=True, separator="."): jnp.asarray(leaf) for path, leaf in leaves}
        return {name: leaf for name, leaf in named.items() if leaf.ndim >= 2}

    @property
    def rounding(self) -> float:
        """Bound of a forward pass's relative rounding: eps for each term of each sum in each product in a row."""
        longest = max((fan_in(leaf) for leaf in self.weights.values()), default=1)
        dtype = jnp.result_type(*jax.tree.leaves(self.params))
        return float(longest * max(self.found.products, 1) * jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def subject_of(target: str, setting: Setting) -> Subject:
    """Loads MODULE:FUNCTION and measures it on up to 64 inputs, 256 in full.

    Raises:
        ImportError, TypeError, ValueError: as `load_network` and `diagnose` raise them.
    """
    network, params, x = load_network(target)
    count = min(len(x), setting.size(64, 256)) if np.ndim(x) else None
    found = diagnose(network, params, x, count=count, seed=setting.seed)
    return Subject(network, flattened(network), params, chosen_inputs(x, count, setting.seed), found)
