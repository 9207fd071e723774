"""neural-tangents' layers by their names: each is a triple (init_fn, apply_fn, kernel_fn) of a layer of this library.

Widths, gains and paddings have the defaults that they have there. A layer that is not here yet says so by its name.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis import activations, layers
from ntk_analysis.compat.neural_tangents.kernel import Get, Kernel, as_theirs, taken
from ntk_analysis.compat.neural_tangents.standard import STANDARD, StandardDense, with_rates
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers.base import Params, Shape
from ntk_analysis.layers.branches import Fan

ABSENT = {  # of neural-tangents
    *("Aggregate", "DotGeneral"),
    *("GlobalSelfAttention", "NumericalActivation"),
}


class Triple(tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]):
    """The three functions of a network, which a program takes apart, and the layer that they are of.

    Attributes:
        layer: the layer of this library.
    """

    layer: layers.Layer

    def __new__(cls, layer: layers.Layer) -> "Triple":
        """The triple of a layer."""
        made = super().__new__(cls, (_init(layer), _apply(layer), _kernel(layer)))
        made.layer = layer
        return made

    def __repr__(self) -> str:
        return f"Triple({self.layer!r})"


@dataclass(frozen=True)
class FanOut:
    """The place from which `parallel` branches go out; `serial` takes it together with them."""

    num: int


@dataclass(frozen=True)
class Branches:
    """What `parallel` makes of its branches, until `serial` meets their fan-in."""

    layers: tuple[layers.Layer, ...]


@dataclass(frozen=True)
class FanIn:
    """What joins the branches of `parallel`."""

    fan: Fan


def serial(*parts: Any) -> Triple:
    """Layers one after another; branches stand as FanOut(n), parallel(...), FanInSum().

    Raises:
        TypeError: a part is none of this module's, or FanOut, parallel and a fan-in do not follow each other.
    """
    made: list[layers.Layer] = []
    left = list(parts)
    while left:
        part = left.pop(0)
        if isinstance(part, Triple):
            made.append(part.layer)
            continue
        if not isinstance(part, FanOut):
            raise TypeError(f"got {part!r} in serial, expected layers of this stax, or FanOut before parallel")
        branches, fan = (left.pop(0) if left else None for _ in range(2))
        if not isinstance(branches, Branches) or not isinstance(fan, FanIn) or len(branches.layers) != part.num:
            raise TypeError(
                f"got {part!r} before {branches!r} and {fan!r}, expected FanOut(n), parallel of n branches, and "
                "FanInSum(), FanInProd() or FanInConcat()"
            )
        made.append(layers.Parallel(*branches.layers, fan=fan.fan))
    return Triple(layers.Serial(*made))


def parallel(*branches: Triple) -> Branches:
    """Branches beside each other, for `serial`."""
    return Branches(tuple(branch.layer for branch in branches))


def repeat(layer: Triple, n: int) -> Triple:
    """A layer n times, each with its own parameters."""
    return Triple(layers.Repeat(layer.layer, n))


def FanInSum() -> FanIn:
    """The sum of branches."""
    return FanIn("sum")


def FanInProd() -> FanIn:
    """The product of branches."""
    return FanIn("product")


def FanInConcat(axis: int = -1) -> FanIn:
    """Branches side by side along the channels."""
    if axis not in (-1, 1, 3):
        raise NotImplementedError(f"got axis={axis} of FanInConcat, expected the last one, -1")
    return FanIn("concatenate")


def Identity() -> Triple:
    """The layer that hands its input on."""
    return Triple(layers.Identity())


def Dense(
    out_dim: int, W_std: float = 1.0, b_std: float | None = None, parameterization: str = "ntk", **options: Any
) -> Triple:
    """A dense layer; W_std and b_std are roots of the variances.

    Raises:
        NotImplementedError: an unknown parametrisation, or other options.
    """
    kind = StandardDense if _is_standard(parameterization, options) else layers.Dense
    return Triple(kind(out_dim, W_std**2, (b_std or 0.0) ** 2))


def Conv(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    parameterization: str = "ntk",
    **options: Any,
) -> Triple:
    """A convolution of images (batch, height, width, channels), sequences or volumes.

    Raises:
        NotImplementedError: an unknown parametrisation, or other options.
    """
    return _convolution(layers.Conv, out_chan, filter_shape, strides, padding, W_std, b_std, parameterization, options)


def ConvTranspose(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    parameterization: str = "ntk",
    **options: Any,
) -> Triple:
    """A transposed convolution; errors as of `Conv`."""
    return _convolution(
        layers.ConvTranspose, out_chan, filter_shape, strides, padding, W_std, b_std, parameterization, options
    )


def ConvLocal(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    parameterization: str = "ntk",
    **options: Any,
) -> Triple:
    """A locally connected layer; errors as of `Conv`."""
    return _convolution(
        layers.ConvLocal, out_chan, filter_shape, strides, padding, W_std, b_std, parameterization, options
    )


def AvgPool(
    window_shape: Sequence[int], strides: Sequence[int] | None = None, padding: str = "VALID", **options: Any
) -> Triple:
    """Means over windows."""
    return _pool(layers.AvgPool, window_shape, strides, padding, options)


def SumPool(
    window_shape: Sequence[int], strides: Sequence[int] | None = None, padding: str = "VALID", **options: Any
) -> Triple:
    """Sums over windows."""
    return _pool(layers.SumPool, window_shape, strides, padding, options)


def GlobalAvgPool() -> Triple:
    """Mean over all positions."""
    return Triple(layers.GlobalAvgPool())


def GlobalSumPool() -> Triple:
    """Sum over all positions."""
    return Triple(layers.GlobalSumPool())


def Flatten() -> Triple:
    """Images as vectors."""
    return Triple(layers.Flatten())


def Dropout(rate: float, mode: str = "train") -> Triple:
    """Dropout that KEEPS a unit with probability `rate`; its apply_fn takes new masks from `rng`.

    Raises:
        ValueError: the mode is neither "train" nor "test", or the rate is not in (0, 1].
    """
    if mode not in ("train", "test"):
        raise ValueError(f"got mode={mode!r}, expected 'train' or 'test'")
    return Triple(layers.Dropout(1 - rate, mode == "train"))


class _Slice:
    """Brackets that return what stands in them, for `Index`."""

    def __getitem__(self, index: Any) -> Any:
        return index


Slice = _Slice()


def Index(idx: Any) -> Triple:
    """Some positions of the inputs, Index(Slice[:, :4, 0]); batch and channels stay.

    Raises:
        NotImplementedError: the batch is indexed, too.
    """
    first, *positions = idx if isinstance(idx, tuple) else (idx,)
    if first != slice(None):
        raise NotImplementedError(f"got {first!r} for the batch, expected `:`: take some of the inputs beforehand")
    return Triple(layers.Index(tuple(positions)))


def ImageResize(shape: Sequence[int], method: str, antialias: bool = True) -> Triple:
    """Inputs in another size; -1 in `shape`, which has batch and channels, too, leaves an axis as it is.

    Raises:
        NotImplementedError: batch or channels are resized.
    """
    if shape[0] != -1 or shape[-1] != -1:
        raise NotImplementedError(f"got shape={tuple(shape)}, expected -1 for the batch and for the channels")
    names = {"bilinear": "linear", "trilinear": "linear", "triangle": "linear"}
    return Triple(layers.ImageResize(tuple(shape[1:-1]), names.get(method, method), antialias))  # type: ignore[arg-type]


def LayerNorm(axis: int | tuple[int, ...] = -1, eps: float = 1e-12) -> Triple:
    """Layer normalisation over the channels.

    Raises:
        NotImplementedError: other axes.
    """
    if axis not in (-1, (-1,)):
        raise NotImplementedError(f"got axis={axis} of LayerNorm, expected the channels, -1")
    return Triple(layers.LayerNorm(eps))


def Elementwise(
    fn: Callable[[jax.Array], jax.Array] | None = None,
    nngp_fn: activations.MomentFormula | None = None,
    d_nngp_fn: activations.MomentFormula | None = None,
) -> Triple:
    """Any elementwise function, by this library's own integrals; without one, an activation by its dual.

    Raises:
        ValueError: neither is given.
    """
    if fn is not None:
        return Triple(layers.Activation(fn))
    if nngp_fn is None:
        raise ValueError("got neither fn nor nngp_fn, expected an elementwise function or the formula of its dual")
    return Triple(layers.Activation(activations.by_dual(nngp_fn, slope=d_nngp_fn)))


def ElementwiseNumerical(fn: Callable[[jax.Array], jax.Array], *_: Any, **__: Any) -> Triple:
    """Any elementwise function, by this library's own integrals: nodes and derivative are not needed."""
    return Triple(layers.Activation(fn))


def Relu() -> Triple:
    """max(x, 0)."""
    return Triple(layers.Activation("relu"))


def LeakyRelu(alpha: float) -> Triple:
    """max(x, 0) + alpha min(x, 0)."""
    return Triple(layers.Activation(activations.leaky_relu(alpha)))


def ABRelu(a: float, b: float) -> Triple:
    """a min(x, 0) + b max(x, 0)."""
    return Triple(layers.Activation(activations.piecewise_linear(a, b)))


def Abs() -> Triple:
    """|x|."""
    return Triple(layers.Activation("abs"))


def Gelu(approximate: bool = False) -> Triple:
    """x times the normal distribution function, or its approximation by tanh."""
    return Triple(layers.Activation(_approximate_gelu if approximate else "gelu"))


def Erf(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Triple:
    """a erf(b x) + c."""
    return _wave("erf", jax.scipy.special.erf, a, b, c)


def Sin(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Triple:
    """a sin(b x + c)."""
    if (a, b, c) == (1.0, 1.0, 0.0):
        return Triple(layers.Activation("sine"))
    return _function(lambda x: a * jnp.sin(b * x + c), f"{a:g} sin({b:g} x + {c:g})")


def Cos(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Triple:
    """a cos(b x + c)."""
    return _function(lambda x: a * jnp.cos(b * x + c), f"{a:g} cos({b:g} x + {c:g})")


def Sign() -> Triple:
    """The sign of x, whose slope is 0."""
    return Triple(layers.Activation(jnp.sign))


def Exp(a: float = 1.0, b: float = 1.0) -> Triple:
    """a exp(b x)."""
    return _function(lambda x: a * jnp.exp(b * x), f"{a:g} exp({b:g} x)")


def Gaussian(a: float = 1.0, b: float = -1.0) -> Triple:
    """a exp(b x^2)."""
    return _function(lambda x: a * jnp.exp(b * x**2), f"{a:g} exp({b:g} x^2)")


def Gabor() -> Triple:
    """exp(-x^2) sin(x)."""
    return _function(lambda x: jnp.exp(-(x**2)) * jnp.sin(x), "gabor")


def Rbf(gamma: float = 1.0) -> Triple:
    """sqrt(2) sin(sqrt(2 gamma) x + pi/4), whose dual is exp(-gamma |x - x'|^2 / d) behind weights of variance 1."""
    return Sin(math.sqrt(2), math.sqrt(2 * gamma), math.pi / 4)


def ExpNormalized(gamma: float = 1.0, shift: float = -1.0, do_clip: bool = False) -> Triple:
    """The kernel sqrt(q1 q2) exp(gamma (rho + shift)), of no finite network; correlations need no clipping here."""
    del do_clip
    return Triple(layers.Activation(activations.exponential_normalized(float(gamma), float(shift))))


def Sigmoid_like() -> Triple:
    """(erf(x / 2.4020563531719796) + 1) / 2, which is close to the logistic function."""
    return _function(lambda x: (jax.scipy.special.erf(x / 2.4020563531719796) + 1) / 2, "sigmoid_like")


def Monomial(degree: int) -> Triple:
    """x to a power."""
    return _function(lambda x: x**degree, f"x^{degree}")


def RectifiedMonomial(degree: int) -> Triple:
    """max(x, 0) to a power."""
    return _function(lambda x: jnp.where(x > 0, x, 0) ** degree, f"relu^{degree}")


def Polynomial(coef: Iterable[float]) -> Triple:
    """The polynomial with these coefficients, that of x^0 first."""
    numbers = tuple(float(c) for c in coef)
    return _function(
        lambda x: functools.reduce(lambda total, c: total * x + c, numbers[::-1], jnp.zeros_like(x)), "polynomial"
    )


def Hermite(degree: int) -> Triple:
    """The probabilists' Hermite polynomial, over the root of its mean square under N(0, 1)."""
    powers = np.polynomial.hermite_e.herme2poly([0.0] * degree + [1.0]) / math.sqrt(math.factorial(degree))
    return Polynomial(powers)


def __getattr__(name: str) -> NoReturn:
    if name in ABSENT:
        raise AttributeError(
            f"stax.{name} is not here yet: monte_carlo_kernel_fn and empirical_ntk_fn take any functions (init, apply)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _init(layer: layers.Layer) -> Callable[[jax.Array, Shape], tuple[Shape, Params]]:
    def init_fn(rng: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        return with_rates(layer, tuple(input_shape)).init(rng, tuple(input_shape))

    return init_fn


def _apply(layer: layers.Layer) -> Callable[..., jax.Array]:
    def apply_fn(params: Params, inputs: Any, rng: jax.Array | None = None, **_: Any) -> jax.Array:
        if rng is not None:
            params = layers.with_new_masks(layer, params, rng)
        return with_rates(layer, np.shape(inputs)).apply(params, inputs)

    apply_fn.layer = layer  # type: ignore[attr-defined]
    return apply_fn


def _kernel(layer: layers.Layer) -> Callable[..., Any]:
    def kernel_fn(x1: Any, x2: Any = None, get: Get = None, **_: Any) -> Any:
        """Both kernels of inputs, or of a `Kernel` that another kernel function returned."""
        whole = layer
        if isinstance(x1, Kernel):
            if x1.origin is None:
                raise NotImplementedError(
                    "got a Kernel whose fields were changed: kernel functions go on from one as it was returned"
                )
            before, x1, x2 = x1.origin
            whole = layers.Serial(before, layer)
        return taken(as_theirs(infinite_kernel(with_rates(whole, np.shape(x1)), x1, x2), whole, x1, x2), get)

    return kernel_fn


def _is_standard(parameterization: str, options: dict[str, Any]) -> bool:
    if parameterization not in ("ntk", "standard"):
        raise NotImplementedError(f"got parameterization={parameterization!r}, expected 'ntk' or 'standard'")
    if options:
        raise NotImplementedError(f"got {', '.join(options)}, which is not here: channels are the last axis")
    return parameterization == "standard"


def _convolution(
    kind: Any,
    channels: int,
    size: Sequence[int],
    strides: Sequence[int] | None,
    padding: str,
    w_std: float,
    b_std: float | None,
    parameterization: str,
    options: dict[str, Any],
) -> Triple:
    if _is_standard(parameterization, options):
        kind = STANDARD[kind]
    gains = {"w_var": w_std**2, "b_var": (b_std or 0.0) ** 2}
    return Triple(kind(channels, tuple(size), _steps(strides), padding.lower(), **gains))


def _steps(strides: Sequence[int] | None) -> int | tuple[int, ...]:
    return tuple(strides) if strides else 1


def _pool(
    kind: Any, window: Sequence[int], strides: Sequence[int] | None, padding: str, options: dict[str, Any]
) -> Triple:
    if options.get("normalize_edges"):
        raise NotImplementedError("got normalize_edges=True, which is not here: padding counts as zeros")
    return Triple(kind(tuple(window), _steps(strides), padding.lower()))


def _wave(name: str, function: Callable[[jax.Array], jax.Array], a: float, b: float, c: float) -> Triple:
    if (a, b, c) == (1.0, 1.0, 0.0):
        return Triple(layers.Activation(name))
    return _function(lambda x: a * function(b * x) + c, f"{a:g} {name}({b:g} x) + {c:g}")


def _function(function: Callable[[jax.Array], jax.Array], label: str) -> Triple:
    return Triple(layers.Activation(activations.Quadrature(function, label=label)))


def _approximate_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)
