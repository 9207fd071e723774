"""The fan-in of every array of a network, from its modules: Flax's, PyTorch's, Equinox's, and our own layers."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from ntk_analysis.common.pytrees import Tree
from ntk_analysis.flax_networks.linen import LinenFunction
from ntk_analysis.flax_networks.modes import arguments as mode_arguments
from ntk_analysis.flax_networks.nnx import NNXFunction
from ntk_analysis.layers import BatchNorm, Dense, Dropout, Layer
from ntk_analysis.layers.convolution import Convolution
from ntk_analysis.training.fan_in import NOT_SUMMED, Axes, FanIn, Path, StatedAxes, by_shape, from_table, given, stacked

Read: TypeAlias = Callable[[tuple[int, ...]], FanIn | None]


def fan_in_axes(network: object, x: Tree = None, **arguments: Any) -> Axes:
    """A function that gives the fan-in axes of each array of a network, for `center`, `center_weights` and `selected`.

    Layers that are stacked (`Repeat`, `ResidualChain`, Flax's scan and vmap) are read one by one. Embeddings are looked
    up, not summed over: they have no fan-in. Arrays of modules that the user wrote are read by their shape; in a stack,
    by the shape of one layer.

    Args:
        network: a network of layers, a module of Flax NNX or of Flax Linen, or the f of `networks.from_nnx`,
            `from_linen`, `from_torch` or `from_equinox`.
        x: inputs with which Linen's modules are traced; nothing is computed.
        arguments: further arguments of the Linen module's call, after x; it is traced in evaluation mode.

    Returns:
        Function axes(path, array) that gives the fan-in, or None for arrays whose fan-in is not known.

    Raises:
        TypeError: the network is of another kind.
        ValueError: a Linen module is given without x.
    """
    if isinstance(network, Layer):
        return from_table(dict(_of_layers(network, ())))
    if isinstance(network, NNXFunction):
        network = network.module
    if isinstance(network, nnx.Module):
        return from_table(dict(_of_nnx(network)))
    if isinstance(network, LinenFunction):
        return from_table(_of_linen(network.module, x, dict(network.arguments)))
    if _is_made_by("torch", network):
        from ntk_analysis.training import torch_axes

        return _stated(torch_axes.fan_ins(cast(Any, network).module))
    if _is_made_by("equinox", network):
        from ntk_analysis.training import equinox_axes

        return _stated(equinox_axes.fan_ins(cast(Any, network).module))
    network = getattr(network, "__self__", network)  # model.apply
    if isinstance(network, nn.Module):
        return from_table(_of_linen(network, x, mode_arguments(network.__call__, "eval", arguments)))
    raise TypeError(f"got {type(network).__name__}, expected a network of layers, or a module of Flax")


def as_axes(axes: StatedAxes) -> Axes:
    """The function for a given `axes=`: None, a network that needs no inputs, or what `fan_in.given` takes."""
    if axes is None:
        return by_shape
    if isinstance(axes, nn.Module):
        raise TypeError("got axes=a module of Flax Linen, which is traced with inputs: axes=fan_in_axes(module, x)")
    return fan_in_axes(axes) if isinstance(axes, Layer | nnx.Module | NNXFunction) else given(axes)


def axes_of(network: object, x: Tree, axes: StatedAxes = None) -> Axes:
    """The function for `axes` if they are stated; else for the network's modules, or by shape for a plain function."""
    known = isinstance(network, Layer | nnx.Module | NNXFunction | LinenFunction)
    known = known or _is_made_by("torch", network) or _is_made_by("equinox", network)
    known = known or isinstance(getattr(network, "__self__", None), nn.Module)
    return fan_in_axes(network, x) if axes is None and known else as_axes(axes)


def _is_made_by(library: str, network: object) -> bool:
    """Whether this is an f of `networks.from_torch` or `from_equinox`; a bridge that was not imported has made none."""
    bridge = sys.modules.get(f"ntk_analysis.{library}_networks")
    return bridge is not None and isinstance(network, getattr(bridge, f"{library.capitalize()}Function"))


def _stated(fan_ins: Iterable[tuple[Path, FanIn | None]]) -> Axes:
    return from_table({path: _whatever_the_shape(fan_in) for path, fan_in in fan_ins})


def _whatever_the_shape(fan_in: FanIn | None) -> Read:
    return lambda shape: fan_in


def _of_layers(network: Layer, path: Path, deep: int = 0) -> Iterator[tuple[Path, Read]]:
    """Path and fan-in of the weights of our layers, which have `deep` leading axes of stacked layers."""
    for part, key in zip(network.parts, network.part_keys, strict=True):
        yield from _of_layers(part, (*path, *map(str, key)), deep + network.stacked)
    match network:
        case Dense() | Convolution():
            convolution = isinstance(network, Convolution)
            start = deep + (network.own_axes if isinstance(network, Convolution) else 0)
            yield (*path, "w"), lambda shape: FanIn(tuple(range(start, len(shape) - 1)), convolution)
            yield (*path, "b"), lambda shape: NOT_SUMMED
        case Dropout():
            yield (*path, "masks"), lambda shape: NOT_SUMMED
        case BatchNorm():
            yield from (((*path, name), lambda shape: NOT_SUMMED) for name in ("gamma", "beta"))


def _of_nnx(network: nnx.Module) -> Iterator[tuple[Path, Read]]:
    for path, module in nnx.iter_modules(network):
        for name, variable in vars(module).items():
            if isinstance(variable, nnx.Param):
                here = (*map(str, path), name)
                yield here, _nnx_reading(module, here, tuple(variable.shape))


def _nnx_reading(module: nnx.Module, path: Path, shape: tuple[int, ...]) -> Read:
    match module, path[-1]:
        case nnx.Linear(), "kernel":
            return stacked((module.in_features, module.out_features), (0,))
        case nnx.LinearGeneral(), "kernel":
            batch, summed = tuple(dict(module.batch_axis).values()), module.in_features
            inner = (*batch, *summed, *module.out_features)
            return stacked(inner, tuple(range(len(batch), len(batch) + len(summed))))
        case nnx.Einsum(), "kernel":
            return _einsum(tuple(module.kernel_shape), module.einsum_str)
        case ((nnx.Conv() | nnx.ConvTranspose()), "kernel"):
            return _convolution(tuple(module.kernel_shape), getattr(module, "transpose_kernel", False))
        case nnx.Embed(), "embedding":
            return lambda shape: NOT_SUMMED
    return _by_shape_of_one(path, shape)


def _of_linen(module: nn.Module, x: Any, arguments: Mapping[str, Any]) -> dict[Path, Read]:
    """The fan-in of the arrays by path, for one layer each, as its module sees them inside of scans and maps."""
    if x is None:
        raise ValueError(f"the module {type(module).__name__} of Flax Linen is traced with inputs: give x")
    table: dict[Path, Read] = {}

    def watch(call: Any, args: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **options)
        within = context.module
        if within.scope is not None:
            for name, leaf in within.variables.get("params", {}).items():
                leaf = nn.meta.unbox(leaf)
                if hasattr(leaf, "shape"):
                    path = (*within.path, name)
                    table[path] = _linen_reading(within, path, tuple(leaf.shape), args)
        return y

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: module.init({"params": jax.random.key(0)}, x, **arguments))
    return table


def _linen_reading(module: nn.Module, path: Path, shape: tuple[int, ...], args: Any) -> Read:
    match module, path[-1]:
        case nn.Dense(), "kernel":
            return stacked(shape, (0,))
        case nn.DenseGeneral(), "kernel":
            batch, summed = (value if isinstance(value, tuple | list) else (value,) for value in _axes_of(module))
            return stacked(shape, tuple(range(len(batch), len(batch) + len(summed))))
        case nn.Einsum(), "kernel":
            return _einsum(shape, module.einsum_str or next((a for a in args if isinstance(a, str)), ""))
        case nn.ConvLocal(), "kernel":
            return stacked(shape, (len(shape) - 2,), True)
        case ((nn.Conv() | nn.ConvTranspose()), "kernel"):
            return _convolution(shape, getattr(module, "transpose_kernel", False))
        case nn.Embed(), "embedding":
            return lambda shape: NOT_SUMMED
    return _by_shape_of_one(path, shape)


def _axes_of(module: Any) -> tuple[Any, Any]:
    return module.batch_dims, module.axis


def _einsum(shape: tuple[int, ...], equation: str) -> Read:
    """The fan-in of an einsum's second operand, the kernel: its letters that are not in the result are summed over."""
    operands, _, result = equation.replace(" ", "").partition("->")
    letters = operands.partition(",")[2]
    if "." in letters or len(letters) != len(shape):
        return lambda shape: None
    return stacked(shape, tuple(axis for axis, letter in enumerate(letters) if letter not in result))


def _convolution(shape: tuple[int, ...], transposed: bool) -> Read:
    units = len(shape) - (2 if transposed else 1)
    return stacked(shape, tuple(axis for axis in range(len(shape)) if axis != units), True)


def _by_shape_of_one(path: Path, shape: tuple[int, ...]) -> Read:
    """The fan-in by the shape of one layer, wherever that layer is stacked."""
    if path[-1] in ("bias", "scale"):  # Flax's biases and scales have as many axes as the units
        return lambda shape: NOT_SUMMED
    one = by_shape(path, np.broadcast_to(0.0, shape))
    if one is None:
        return lambda shape: None
    return stacked(shape, one.axes, one.convolution) if one.axes else lambda shape: NOT_SUMMED
