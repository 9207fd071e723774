"""How weights start, and which of them MimicNorm centers (2010.09278, "weight mean").

He's law by fan-in keeps the second moment behind ReLU: gain 2. Centered weights see a ReLU's variance only, a fraction
1 - 1/pi of its second moment, and need the gain 2/(1 - 1/pi) = 2.934, that is 1.2112 times larger weights. The paper
rounds the factor to 1.2, and to 2.8 the gain of VGG's convolutions.

The authors' code has these laws for some networks only; `PUBLISHED` tells which law it has for which network.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from ntk_analysis.training.centering import MIN_FAN_IN, READ_OUTS, Mask
from ntk_analysis.training.fan_in import Axes, Path, named
from ntk_analysis.training.module_axes import fan_in_axes

HE_GAIN = 2.0
CENTERED_GAIN = HE_GAIN / (1 - 1 / math.pi)
VGG_GAIN = 2.8  # the authors' rounding of the gain, used for VGG's convolutions

Initializer: TypeAlias = Callable[..., jax.Array]
"""Function init(key, shape, dtype) that draws weights with the units on the last axis."""


def he_normal(gain: float = HE_GAIN) -> Initializer:
    """Independent normal weights of variance gain/fan-in (He et al. 2015)."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return math.sqrt(gain / _fan_in(shape, at_least=1)) * jax.random.normal(key, shape, dtype)

    return init


def centered_init(gain: float = CENTERED_GAIN) -> Initializer:
    """Normal weights of variance gain/n, whose mean over the fan-in n is 0 for each unit.

    They are drawn with variance gain/(n - 1), because subtracting the mean leaves (n - 1)/n of it.

    Raises:
        ValueError: the initialiser meets a fan-in of 1, where one weight minus its mean is zero.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fan_in = _fan_in(shape, at_least=2)
        drawn = math.sqrt(gain / (fan_in - 1)) * jax.random.normal(key, shape, dtype)
        return drawn - jnp.mean(drawn, tuple(range(len(shape) - 1)), keepdims=True)

    return init


def torch_default(fan_in: int | None = None) -> Initializer:
    """Independent weights, uniform within +-1/sqrt(fan-in), of variance 1/(3 fan-in): PyTorch's default.

    Args:
        fan_in: fan-in of the layer, for its biases, which PyTorch draws from the same law; None: that of the shape.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        end = 1 / math.sqrt(_fan_in(shape, at_least=1) if fan_in is None else fan_in)
        return jax.random.uniform(key, shape, dtype, -end, end)

    return init


@dataclass(frozen=True)
class Laws:
    """The initial laws that the authors' code has for one family of networks; biases are 0 but for PyTorch's default.

    Attributes:
        gain: gain of every convolution where no hidden layer is normalised, the first one and those that are not
            centered included. Dense layers have gain 2, the read-out too.
        least_channels: number of input channels as which a smaller one counts in the fan-in of these convolutions.
        torch_default: whether a network with hidden norms starts by PyTorch's default, in place of He's law.
    """

    gain: float
    least_channels: int = 1
    torch_default: bool = False


PUBLISHED = {
    "vgg": Laws(VGG_GAIN),
    "resnet": Laws(HE_GAIN, torch_default=True),
    "squeezenet": Laws(VGG_GAIN, least_channels=4),
    "shufflenet": Laws(HE_GAIN, least_channels=4, torch_default=True),
}
"""The authors' laws by family of networks, which is how their names begin. The gain of 2 in ResNets and ShuffleNets
goes with scalars that carry the correction of 1.2 for each convolution."""
INITIALIZATIONS = ("he", "published")
"""Names of initial laws: "he" is He's, corrected where weights are centered; "published" the authors', `PUBLISHED`."""


def published_laws(model: str) -> Laws:
    """The authors' laws for a network.

    Raises:
        ValueError: the authors trained no such network.
    """
    for family, laws in PUBLISHED.items():
        if model.startswith(family):
            return laws
    raise ValueError(f"{model} has no published initialization: choose he, or a network of {', '.join(PUBLISHED)}")


def _fan_in(shape: Sequence[int], at_least: int) -> int:
    fan_in = math.prod(shape[:-1])
    if fan_in < at_least or len(shape) < 2:
        raise ValueError(f"weights of shape {tuple(shape)}, units last: expected a fan-in of at least {at_least}")
    return fan_in


@dataclass(frozen=True)
class Centering:
    """Choice of the layers to center. The defaults leave out a first 3 x 3 convolution of RGB images (27 weights).

    Two kinds are never centered: depthwise convolutions, and a layer named "first", such as that of our MLP, whose
    inputs had no ReLU. The authors' code centers convolutions only, whichever they are: `Centering(dense=False,
    read_out=True)`.

    Attributes:
        min_fan_in: smallest fan-in of a centered layer; the authors' code centers above 50, the paper's text sets no
            bound (2).
        dense: whether dense layers are centered; the authors' code centers none.
        read_out: whether the read-out is centered, if the other rules select it; the authors' code centers that of
            SqueezeNet, which is a convolution.
    """

    min_fan_in: int = MIN_FAN_IN
    dense: bool = True
    read_out: bool = False

    def __post_init__(self) -> None:
        if self.min_fan_in < 2:
            raise ValueError(f"got min_fan_in={self.min_fan_in}: one weight minus its mean is zero, expected 2 or more")

    def selects(self, kernel_shape: Sequence[int], groups: int = 1) -> bool:
        """Whether a kernel (fan-in axes, units) of a layer with this number of groups is centered."""
        if len(kernel_shape) == 2 and not self.dense:
            return False
        depthwise = groups > 1 and kernel_shape[-2] == 1
        return not depthwise and math.prod(kernel_shape[:-1]) >= self.min_fan_in


DEFAULT_CENTERING = Centering()
FIRST = "first"  # name of our MLP's first layer


def centering_mask(model: nnx.Module, centering: Centering = DEFAULT_CENTERING, *, read_out: str | None = None) -> Mask:
    """The mask for `center` and `center_weights` on this model's `nnx.state(model, nnx.Param)`.

    Args:
        model: any Flax NNX model, whose nnx.Conv and nnx.Linear layers are looked at.
        centering: choice of the layers that are centered; for a model of `build`, the one that `build` was given.
        read_out: path of the read-out or the end of it, as for `read_out_path`.

    Raises:
        ValueError: `read_out_path` finds no unique read-out.
    """
    excluded = None if centering.read_out else read_out_path(model, read_out)
    kernels = frozenset(
        (*path, "kernel")
        for path, layer in linear_layers(model).items()
        if path != excluded and FIRST not in path and centering.selects(kernel_shape(layer), _groups(layer))
    )
    return _Kernels(kernels, fan_in_axes(model))


@dataclass(frozen=True)
class _Kernels:
    """The mask that selects the given kernels of a model, with the model's fan-in axes."""

    paths: frozenset[Path]
    axes: Axes

    def __call__(self, path: Path, weights: Any) -> bool:
        del weights
        return named(path) in self.paths


def kernel_shape(layer: nnx.Conv | nnx.Linear) -> tuple[int, ...]:
    """Shape of the kernel of one layer, even if the array holds many that are stacked."""
    return tuple(layer.kernel_shape) if isinstance(layer, nnx.Conv) else (layer.in_features, layer.out_features)


def linear_layers(model: nnx.Module) -> dict[Path, nnx.Conv | nnx.Linear]:
    """The convolutions and dense layers of a model, by their path."""
    return {
        tuple(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Conv | nnx.Linear)
    }


def read_out_path(model: nnx.Module, name: str | None = None) -> Path:
    """Path of the layer that gives the logits.

    Args:
        model: any Flax NNX model.
        name: the path of that layer or the end of it, "classifier/layers/6". None: the layer called head, classifier,
            ..., or the only dense one.
            only dense one.

    Raises:
        ValueError: there is no such layer, or more than one.
    """
    layers = linear_layers(model)
    if name is not None:
        end = tuple(name.split("/"))
        found = [path for path in layers if path[-len(end) :] == end]
    else:
        found = [path for path in layers if set(path) & set(READ_OUTS)]
        found = found or [path for path, layer in layers.items() if isinstance(layer, nnx.Linear)]
    if len(found) != 1:
        wanted = "the read-out by itself" if name is None else f"the read-out {name!r}"
        choices = ", ".join("/".join(path) for path in layers) or "none: no nnx.Linear or nnx.Conv"
        raise ValueError(f"{wanted} fits {len(found)} layers: give read_out=, the path of one of these: {choices}")
    return found[0]


def _groups(layer: nnx.Conv | nnx.Linear) -> int:
    return layer.feature_group_count if isinstance(layer, nnx.Conv) else 1
