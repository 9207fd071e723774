"""The network that is checked, and what `diagnose` measures on it, once for all checks."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.diagnosis import Diagnosis, diagnose, load_network
from ntk_analysis.diagnosis.checks import chosen_inputs, precision_of
from ntk_analysis.empirical.functions import Flat, flattened
from ntk_analysis.layers.base import Params
from ntk_analysis.training.fan_in import Axes, FanIn
from ntk_analysis.training.module_axes import axes_of

from .contract import Setting


class Subject(NamedTuple):
    """A network and its inputs.

    Attributes:
        network: what the user gives: a function, or a network of layers.
        f: this network with flattened outputs, f(params, x) -> (n, C).
        params: any tree of float arrays.
        x: (n, ...) the inputs that were chosen.
        found: what `diagnose` says of the network.
        axes: the fan-in of its arrays, by its modules, or as the user states it.
    """

    network: Any
    f: Flat
    params: Params
    x: np.ndarray
    found: Diagnosis
    axes: Axes

    @property
    def precision(self) -> AbstractContextManager[Any]:
        """The precision in which to call f: float64 for NumPy float64, else what JAX's flag says."""
        return precision_of(self.params, self.x)

    @property
    def weights(self) -> dict[str, jax.Array]:
        """Every array of two or more axes by its path: these are the weights, as biases and scales have one axis."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        named = {jax.tree_util.keystr(path, simple=True, separator="."): jnp.asarray(leaf) for path, leaf in leaves}
        return {name: leaf for name, leaf in named.items() if leaf.ndim >= 2}

    @property
    def fan_ins(self) -> dict[str, FanIn | None]:
        """The fan-in of each array of `weights`; None where it is not known."""
        return {name: self.axes(tuple(name.split(".")), leaf) for name, leaf in self.weights.items()}

    @property
    def longest_sum(self) -> int:
        """Upper bound on the terms of a sum over weights; an unknown fan-in counts as all axes but the shortest."""
        read = self.fan_ins
        return max((_terms(leaf, read[name]) for name, leaf in self.weights.items()), default=1)

    @property
    def rounding(self) -> float:
        """Bound on a forward pass's relative rounding: eps for each term of each sum, for all products in a row."""
        dtype = jnp.result_type(*jax.tree.leaves(self.params))
        return float(self.longest_sum * max(self.found.products, 1) * jnp.finfo(dtype).eps)


def _terms(leaf: jax.Array, fan_in: FanIn | None) -> int:
    return leaf.size // min(leaf.shape) if fan_in is None else max(fan_in.size(leaf), 1)


def subject_of(target: str, setting: Setting, axes: Mapping[str, tuple[int, ...]] | None = None) -> Subject:
    """Loads MODULE:FUNCTION and measures it on up to 64 inputs, 256 in full.

    Args:
        target: MODULE:FUNCTION, see `load_network`.
        setting: sizes and seed.
        axes: the fan-in of arrays by the end of their path, as for `training.center`; None: its modules say.

    Raises:
        ImportError, TypeError, ValueError: as `load_network` and `diagnose` raise them.
    """
    network, params, x = load_network(target)
    count = min(len(x), setting.size(64, 256)) if np.ndim(x) else None
    found = diagnose(network, params, x, count=count, seed=setting.seed)
    chosen = chosen_inputs(x, count, setting.seed)
    return Subject(network, flattened(network), params, chosen, found, axes_of(network, chosen, axes))
