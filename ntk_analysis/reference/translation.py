"""Our layers in neural-tangents' words. A new layer is one function and one row of `TRANSLATIONS`."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ntk_analysis import activations
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    Conv,
    ConvLocal,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalSumPool,
    Identity,
    ImageResize,
    Index,
    Layer,
    LayerNorm,
    Parallel,
    Residual,
    ResidualChain,
    Serial,
    SumPool,
)
from ntk_analysis.layers.convolution import Convolution
from ntk_analysis.reference.loading import load

Triple: TypeAlias = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]

DEGREE = 64
"""Nodes of neural-tangents' quadrature in each of two dimensions; memory is 64^2 kernels of the inputs."""


def translate(network: Layer) -> Triple:
    """The functions (init_fn, apply_fn, kernel_fn) of neural-tangents for the same network.

    The network is the same in law, not in parameters: both libraries draw N(0, 1) and scale in the forward pass, but
    split keys differently.

    Activations with a closed form on both sides (piecewise linear, erf, GELU, sine) use neural-tangents' own. Others
    use its two-dimensional Gauss-Hermite quadrature with 64 nodes a side, whose relative error for tanh at variance 1
    is 1e-8 in the NNGP and 1e-7 in the NTK.

    neural-tangents does not center weights. So an activation right before a centered or standardised Dense becomes the
    activation minus its mean, with the closed form written below; kernel_fn is then exact, while apply_fn raises an
    error.

    Raises:
        ImportError: neural-tangents cannot be loaded.
        NotImplementedError: neural-tangents has no such layer; the message says which one.
    """
    stax = load().stax
    return stax.serial(*[_translated(stax, layer) for layer in _uncentered(network.in_order())])


def _translated(stax: Any, layer: Layer) -> Triple:
    row = TRANSLATIONS.get(type(layer))
    if row is None:
        known = sorted(kind.__name__ for kind in TRANSLATIONS if kind is not _Centered)
        raise NotImplementedError(
            f"neural-tangents has no {type(layer).__name__}: it can check networks of {', '.join(known)}, in Serial "
            "and Repeat"
        )
    return row(stax, layer)


def _uncentered(layers: Iterator[Layer]) -> list[Layer]:
    """The layers with the centering of each Dense moved into the activation before it, as W P phi = W (P phi).

    A convolution subtracts its mean over positions, too, which no activation can do.
    """
    moved: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Dense | Convolution) and layer.weights.centered:
            if isinstance(layer, Convolution) or not moved or not isinstance(moved[-1], Activation):
                raise NotImplementedError(
                    f"neural-tangents has no weight centering, and only in a Dense right after an Activation can "
                    f"something stand in for it: got {layer}"
                )
            moved[-1] = _Centered(moved[-1].activation)
            layer = replace(layer, center=False, standardize=False)
        moved.append(layer)
    return moved


@dataclass(frozen=True)
class _Centered(Activation):
    """An activation minus its mean over the Gaussian pre-activations."""


def _gains(layer: Dense | Convolution) -> dict[str, float | None]:
    if (layer.w_rate, layer.b_rate) != (1, 1):
        raise NotImplementedError(f"layers with rates of their own are not translated, got {layer}")
    return {"W_std": layer.w_var**0.5, "b_std": layer.b_var**0.5 if layer.b_var > 0 else None}


def _dense(stax: Any, layer: Dense) -> Triple:
    return stax.Dense(layer.width, **_gains(layer))


def _convolution(stax: Any, layer: Convolution) -> Triple:
    window = layer.window
    if getattr(layer, "groups", 1) > 1 or max(window.dilation) > 1:
        raise NotImplementedError(f"neural-tangents has no groups and no dilation: got {layer}")
    theirs = getattr(stax, type(layer).__name__)
    return theirs(layer.channels, window.size, window.stride, window.padding.upper(), **_gains(layer))


def _avg_pool(stax: Any, layer: AvgPool) -> Triple:
    window = layer.moving
    return stax.AvgPool(window.size, window.stride, window.padding.upper())


def _layer_norm(stax: Any, layer: LayerNorm) -> Triple:
    return stax.LayerNorm(axis=-1, eps=layer.eps)


def _residual(stax: Any, layer: Residual) -> Triple:
    """neural-tangents' residual layer: it cannot scale a branch, but the gains of the branch's last weights can."""
    branch = list(layer.branch.in_order())
    last, square = branch[-1], layer.scale**2
    if not isinstance(last, Dense | Convolution):
        raise NotImplementedError(f"neural-tangents needs a residual branch that ends in Dense or Conv, got {last}")
    branch[-1] = replace(last, w_var=square * last.w_var, b_var=square * last.b_var)
    shortcut = stax.Identity() if layer.shortcut is None else translate(layer.shortcut)
    return stax.serial(stax.FanOut(2), stax.parallel(translate(Serial(*branch)), shortcut), stax.FanInSum())


def _residual_chain(stax: Any, layer: ResidualChain) -> Triple:
    return stax.serial(*[_residual(stax, Residual(layer.branch, scale)) for scale in layer.scales])


def _parallel(stax: Any, layer: Parallel) -> Triple:
    fan = {"sum": stax.FanInSum, "product": stax.FanInProd, "concatenate": lambda: stax.FanInConcat(-1)}[layer.fan]()
    branches = stax.parallel(*map(translate, layer.branches))
    return stax.serial(stax.FanOut(len(layer.branches)), branches, fan)


def _sum_pool(stax: Any, layer: SumPool) -> Triple:
    window = layer.moving
    return stax.SumPool(window.size, window.stride, window.padding.upper())


def _index(stax: Any, layer: Index) -> Triple:
    return stax.Index((slice(None), *(slice(*one) if isinstance(one, tuple) else one for one in layer.index)))


def _dropout(stax: Any, layer: Dropout) -> Triple:
    return stax.Dropout(1 - layer.rate, "train" if layer.training else "test")  # theirs is the rate of what is kept


def _activation(stax: Any, layer: Activation) -> Triple:
    match layer.activation:
        case activations.PiecewiseLinear(linear, bent):
            return stax.ABRelu(linear - bent, linear + bent)
        case activations.Erf():
            return stax.Erf()
        case activations.Gelu():
            return stax.Gelu()
        case activations.Sine():
            return stax.Sin()
        case phi:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that quadrature has an error, which `translate` states
                return stax.ElementwiseNumerical(phi, DEGREE, lambda x: jax.jvp(phi, (x,), (jnp.ones_like(x),))[1])


def _centered_activation(stax: Any, layer: _Centered) -> Triple:
    match layer.activation:
        case activations.PiecewiseLinear(linear, bent):
            return stax.Elementwise(_apply_centered, *_centered_duals(linear, bent))
        case activations.Erf() | activations.Sine():  # odd: the mean is zero
            return _activation(stax, layer)
        case phi:
            raise NotImplementedError(
                f"neural-tangents has no weight centering, and {phi.name} has no closed form to stand in for it: use a "
                "piecewise linear activation, erf or sine"
            )


def _apply_centered(x: jax.Array) -> jax.Array:
    raise NotImplementedError("neural-tangents has no weight centering: of this translation only kernel_fn can be used")


Dual: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _centered_duals(linear: float, bent: float) -> tuple[Dual, Dual]:
    """E[f(u) f(v)] and E[phi'(u) phi'(v)] for f = phi - E[phi], phi(x) = linear x + bent |x|, any variances.

    With c the correlation, a = arcsin(c) and s = sqrt(q1 q2):
        E[f f]       = s (linear^2 c + (2/pi) bent^2 (sqrt(1 - c^2) + a c - 1)),
        E[phi' phi'] = linear^2 + (2/pi) bent^2 a.
    At linear = bent = 1/2 and q = 1, f is the ReLU less sqrt(1/(2 pi)). The first moment is insensitive to rounding of
    c, whose error enters the root and the arcsine with opposite signs; the second keeps half of the digits near c = 1.
    """
    weight = 2 / math.pi * bent**2

    def correlation(k: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
        product = q1 * q2
        return jnp.where(product > 0, jnp.clip(k / jnp.sqrt(jnp.where(product > 0, product, 1)), -1, 1), 0)

    def dual(k: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
        c = correlation(k, q1, q2)
        lost = jnp.sqrt((1 - c) * (1 + c)) + jnp.arcsin(c) * c - 1
        return jnp.sqrt(q1 * q2) * (linear**2 * c + weight * lost)

    def derivative_dual(k: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
        return linear**2 + weight * jnp.arcsin(correlation(k, q1, q2))

    return dual, derivative_dual


TRANSLATIONS: dict[type[Layer], Callable[[Any, Any], Triple]] = {
    Dense: _dense,
    Conv: _convolution,
    ConvTranspose: _convolution,
    ConvLocal: _convolution,
    Activation: _activation,
    _Centered: _centered_activation,
    LayerNorm: _layer_norm,
    AvgPool: _avg_pool,
    GlobalAvgPool: lambda stax, _: stax.GlobalAvgPool(),
    Flatten: lambda stax, _: stax.Flatten(),
    Residual: _residual,
    ResidualChain: _residual_chain,
    Identity: lambda stax, _: stax.Identity(),
    Index: _index,
    ImageResize: lambda stax, layer: stax.ImageResize((-1, *layer.shape, -1), layer.method, layer.antialias),
    Dropout: _dropout,
    Parallel: _parallel,
    SumPool: _sum_pool,
    GlobalSumPool: lambda stax, _: stax.GlobalSumPool(),
}
