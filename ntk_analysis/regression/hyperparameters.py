"""What a likelihood is maximised over: positive numbers of a network, by their logarithms, and the regularisation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float64

from ntk_analysis.common.pytrees import is_known
from ntk_analysis.layers import Layer

BOUNDS = (1e-5, 1e5)  # those of scikit-learn's kernels
REGULARIZATION = "regularization"


@dataclass(frozen=True, eq=False)
class Family:
    """Networks by name of their hyperparameters, as the kernel of a `KernelRegressor` with an optimizer.

    Attributes:
        network: function of the hyperparameters as keywords that returns the network, such as lambda w_var, b_var:
            networks.fully_connected(3, 64, w_var=w_var, b_var=b_var).
        start: values of the hyperparameters at the start, by name; all > 0.
        bounds: lowest and highest value by name, or "fixed"; 1e-5 and 1e5 of those that are not named. The name
            "regularization" is the estimator's.
    """

    network: Callable[..., Layer]
    start: Mapping[str, float]
    bounds: Mapping[str, Any] = field(default_factory=dict)

    def of(self, values: Mapping[str, Any]) -> Layer:
        """The network of these values of all hyperparameters."""
        return self.network(**values)

    def at_start(self) -> Layer:
        """The network of the first values."""
        return self.of(self.start)


class Hyperparameters(NamedTuple):
    """The free hyperparameters theta of a kernel, in logarithms.

    Attributes:
        names: names (p,).
        start: first values of theta.
        bounds: lowest and highest theta.
        build: function from values, exp(theta), to the network and the regularisation.
    """

    names: tuple[str, ...]
    start: Float64[np.ndarray, " p"]
    bounds: Float64[np.ndarray, "p 2"]
    build: Callable[[Sequence[Any]], tuple[Layer, Any]]


def hyperparameters_of(kernel: object, regularization: float) -> Hyperparameters:
    """The hyperparameters of a `Family`, or all positive numbers of a network but eps; and a regularisation above 0.

    Raises:
        ValueError: the kernel is neither; nothing is free; or values and bounds do not fit.
    """
    build: Callable[[Mapping[str, Any]], Layer]
    given: Mapping[str, Any] = {}
    if isinstance(kernel, Family):
        start, build, given = dict(kernel.start), kernel.of, kernel.bounds
    elif isinstance(kernel, Layer):
        start, build = _positive_numbers(kernel)
    else:
        raise ValueError(
            f"got a kernel of type {type(kernel).__name__}, which has no hyperparameters to take the likelihood by: "
            "give a network, or a Family of networks"
        )
    start |= {REGULARIZATION: float(regularization)} if regularization else {}
    if unknown := given.keys() - start.keys():
        raise ValueError(f"got bounds of {', '.join(sorted(unknown))}, expected some of {', '.join(start)}")
    bounds = {name: given.get(name, BOUNDS) for name in start}
    free = tuple(name for name in start if not isinstance(bounds[name], str))
    for name, value in bounds.items():
        if value != "fixed":
            _check_bounds(name, start[name], value)
    if not free:
        raise ValueError("no hyperparameter is free: leave out a bound that is 'fixed', or the optimizer")

    def built(values: Sequence[Any]) -> tuple[Layer, Any]:
        found = start | dict(zip(free, values, strict=True))
        r = found.pop(REGULARIZATION, 0.0)
        return build(found), r

    theta = np.log(np.array([start[name] for name in free], np.float64))
    return Hyperparameters(free, theta, np.log(np.array([bounds[name] for name in free], np.float64)), built)


def _positive_numbers(network: Layer) -> tuple[dict[str, float], Callable[[Mapping[str, Any]], Layer]]:
    """The positive numbers of a network by their places, and the network with others there."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(network)
    named: dict[str, Any] = {jax.tree_util.keystr(path): value for path, value in leaves}
    start = {
        name: float(value)
        for name, value in named.items()
        if is_known(value) and value > 0 and not name.endswith(".eps")
    }
    return start, lambda values: jax.tree.unflatten(structure, list((named | dict(values)).values()))


def _check_bounds(name: str, start: float, bounds: Any) -> None:
    lowest, highest = bounds if isinstance(bounds, tuple | list) and len(bounds) == 2 else (0, 0)
    if not 0 < lowest <= start <= highest < np.inf:
        raise ValueError(
            f"{name} starts at {start} with bounds {bounds!r}, expected 0 < lowest <= start <= highest, or 'fixed'"
        )
