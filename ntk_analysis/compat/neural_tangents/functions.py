"""neural-tangents' functions of finite networks: empirical kernels, averages over draws, and batching."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.compat.neural_tangents.kernel import Get, Kernel, taken
from ntk_analysis.compat.neural_tangents.standard import with_rates
from ntk_analysis.empirical import empirical_nngp, empirical_ntk
from ntk_analysis.empirical.functions import Network
from ntk_analysis.empirical.kernels import EmpiricalKernel
from ntk_analysis.empirical.layouts import Layout
from ntk_analysis.layers.base import Params
from ntk_analysis.monte_carlo import KernelEstimate, monte_carlo_kernel, monte_carlo_kernels
from ntk_analysis.monte_carlo.ensemble import Init

LAYOUTS: dict[tuple[tuple[int, ...], tuple[int, ...]], Layout] = {
    ((-1,), ()): "trace",
    ((), ()): "full",
    ((), (-1,)): "diagonal",
}


def batch(kernel_fn: Callable[..., Any], batch_size: int = 0, device_count: int = -1, **options: Any) -> Any:
    """The kernel function itself: this library cuts every kernel into tiles and uses all devices without being told."""
    del batch_size, device_count, options
    return kernel_fn


def empirical_ntk_fn(
    f: Network, trace_axes: tuple[int, ...] = (-1,), diagonal_axes: tuple[int, ...] = (), **options: Any
) -> Callable[..., Any]:
    """A function (x1, x2, params) -> NTK of the finite network f(params, x), without a store.

    Args:
        f: function or network.
        trace_axes: (-1,) for the MEAN over outputs (n1, n2); () for all of them, (n1, n2, C, C).
        diagonal_axes: (-1,), with `trace_axes` (), for equal outputs only, (n1, n2, C).
        options: neural-tangents' other options, of which this library needs none.

    Raises:
        NotImplementedError: other axes.
    """
    del options
    return _empirical(empirical_ntk, "ntk", f, trace_axes, diagonal_axes)


def empirical_nngp_fn(
    f: Network, trace_axes: tuple[int, ...] = (-1,), diagonal_axes: tuple[int, ...] = (), **options: Any
) -> Callable[..., Any]:
    """A function (x1, x2, params) -> products of outputs of the finite network; arguments as for `empirical_ntk_fn`."""
    del options
    return _empirical(empirical_nngp, "nngp", f, trace_axes, diagonal_axes)


def empirical_kernel_fn(
    f: Network, trace_axes: tuple[int, ...] = (-1,), diagonal_axes: tuple[int, ...] = (), **options: Any
) -> Callable[..., Any]:
    """A function (x1, x2, get, params) -> what `get` names of NNGP and NTK; arguments as for `empirical_ntk_fn`."""
    del options
    makers = {"nngp": empirical_nngp, "ntk": empirical_ntk}
    each = {name: _empirical(make, name, f, trace_axes, diagonal_axes) for name, make in makers.items()}

    def kernel_fn(x1: Any, x2: Any, get: Get, params: Params) -> Any:
        names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else get
        found = {name: each[name](x1, x2, params) for name in names if name in each}
        return taken(_kernel(x1, x2, **found), get)

    return kernel_fn


def monte_carlo_kernel_fn(
    init_fn: Init,
    apply_fn: Network,
    key: jax.Array,
    n_samples: int | Iterable[int],
    trace_axes: tuple[int, ...] = (-1,),
    diagonal_axes: tuple[int, ...] = (),
    **options: Any,
) -> Callable[..., Any]:
    """A function (x1, x2=None, get=None) -> average of NNGP and NTK over draws, or an iterator for several numbers.

    The result has the fields of `monte_carlo.KernelEstimate`, standard errors among them.

    Args:
        init_fn: function (key, input_shape) -> (output_shape, params).
        apply_fn: function (params, x) -> outputs.
        key: key of JAX; its last word is the seed of the draws.
        n_samples: number of draws, or several, ascending, for an iterator over estimates.
        trace_axes: (-1,), the mean over outputs; there are no others here.
        diagonal_axes: ().
        options: neural-tangents' other options, of which this library needs none.

    Raises:
        NotImplementedError: other axes.
    """
    del options
    if (trace_axes, diagonal_axes) != ((-1,), ()):
        raise NotImplementedError(
            f"got trace_axes={trace_axes} and diagonal_axes={diagonal_axes}, expected (-1,) and ()"
        )
    seed = _seed(key)

    def kernel_fn(x1: Any, x2: Any = None, get: Get = None) -> Any:
        network = (init_fn, own_network(apply_fn, x1))
        if isinstance(n_samples, int):
            return taken(monte_carlo_kernel(network, x1, x2, draws=n_samples, seed=seed), get)
        return _each(monte_carlo_kernels(network, x1, x2, draws=tuple(n_samples), seed=seed), get)

    return kernel_fn


def own_network(f: Any, x: Any) -> Network:
    """The network of layers that an `apply_fn` of this `stax` computes on such inputs, or the function itself."""
    layer = getattr(f, "layer", None)
    return f if layer is None else with_rates(layer, np.shape(x))


def _each(estimates: Iterator[KernelEstimate], get: Get) -> Iterator[Any]:
    return (taken(estimate, get) for estimate in estimates)


def _seed(key: jax.Array) -> int:
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return int(np.asarray(words).ravel()[-1])


def _empirical(
    compute: Callable[..., EmpiricalKernel], which: str, f: Network, trace_axes: tuple[int, ...], diagonal_axes: Any
) -> Callable[..., Any]:
    layout = LAYOUTS.get((tuple(trace_axes), tuple(diagonal_axes)))
    if layout is None:
        raise NotImplementedError(
            f"got trace_axes={trace_axes} and diagonal_axes={diagonal_axes}: outputs are one axis here, so that they "
            "are (-1,) and (), () and (), or () and (-1,)"
        )

    def kernel_fn(x1: Any, x2: Any, params: Params) -> Any:
        kernel = compute(own_network(f, x1), params, x1, x2, layout=layout)
        values = getattr(kernel, which)
        return values / kernel.plan.outputs if layout == "trace" else values

    return kernel_fn


def _kernel(x1: Any, x2: Any, nngp: Any = None, ntk: Any = None) -> Kernel:
    shape1, shape2 = np.shape(x1), np.shape(x1 if x2 is None else x2)
    return Kernel(nngp, ntk, None, None, x2 is None, False, shape1, shape2)
