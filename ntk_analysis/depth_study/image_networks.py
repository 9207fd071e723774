"""VGG- and ResNet-like networks at infinite width: what each layer of weights makes of a batch of images, by norm.

They have the blocks of the finite networks and average pooling: maximum pooling has no kernel. What stands behind a
layer of weights is read out by the mean over equal positions, as by a flattening read-out.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ntk_analysis import last_batch_norm, spectrum
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers import AvgPool, Conv, Dense, Flatten, GlobalAvgPool, Layer, Residual, Serial
from ntk_analysis.networks import fully_connected
from ntk_analysis.networks.by_depth import kernels_by_depth


class _Parts(NamedTuple):
    """What the layers of one normalisation are made of: activations, weights behind them, and the read-out."""

    activated: tuple[Layer, ...]
    dense: Dense

    def conv(self, size: int = 3, stride: int = 1) -> Conv:
        return Conv(1, size, stride, w_var=self.dense.w_var, center=self.dense.center)


def _parts(normalization: str) -> _Parts:
    _, *activated, dense = fully_connected(1, 1, normalization).layers
    assert isinstance(dense, Dense)
    return _Parts(tuple(activated), dense)


def vgg_like(normalization: str) -> Serial:
    """Three stages of two 3 x 3 convolutions and 2 x 2 average pooling, and a read-out, for images of 8 x 8."""
    parts = _parts(normalization)
    later = (parts.conv(), *parts.activated)
    return Serial(
        *(Conv(1, 3), *parts.activated, *later, AvgPool(2)),
        *(*later, *later, AvgPool(2), *later, *later, Flatten(), parts.dense),
    )


def resnet_like(normalization: str) -> Serial:
    """Three stages of two residual branches x + conv(act(x)) / sqrt(l), halved by stride 2, a pooled read-out.

    l counts the branches from 1 on, as in MimicNorm; a branch that halves the image has a 1 x 1 shortcut.
    """
    parts, blocks = _parts(normalization), []
    for number in range(1, 7):
        stride = 2 if number in (3, 5) else 1
        branch = Serial(*parts.activated, parts.conv(3, stride))
        blocks.append(Residual(branch, number**-0.5, parts.conv(1, 2) if stride == 2 else None))
    return Serial(Conv(1, 3), *blocks, *parts.activated, GlobalAvgPool(), parts.dense)


NETWORKS: dict[str, Callable[[str], Serial]] = {"VGG-like": vgg_like, "ResNet-like": resnet_like}


class Behind(NamedTuple):
    """Kernels behind one layer of weights, read out by the mean over equal positions.

    Attributes:
        nngp: (m, m) NNGP.
        ntk: (m, m) NTK times exp(-log_scale).
        log_scale: logarithm of the NTK's scale.
    """

    nngp: np.ndarray
    ntk: np.ndarray
    log_scale: float

    @property
    def correlation(self) -> float:
        """Mean correlation of two images."""
        deviation = np.sqrt(np.diagonal(self.nngp))
        correlations = self.nngp / np.outer(deviation, deviation)
        return float(correlations[~np.eye(len(correlations), dtype=bool)].mean())

    @property
    def condition_number(self) -> float:
        """Condition number of the NTK."""
        return float(spectrum.condition_number(self.ntk))

    def condition_number_behind_last(self, seed: int) -> float:
        """Condition number of the NTK behind a last batch norm, on its range, for one draw of outputs."""
        outputs = last_batch_norm.sample_outputs(self.nngp, 1, seed)
        matrix = np.asarray(last_batch_norm.ntk(self.ntk, outputs))[:, :, 0, 0]
        return float(spectrum.condition_number(matrix, without=np.asarray(last_batch_norm.null_space(outputs))))

    @property
    def growth(self) -> float:
        """Mean of the NTK's diagonal over that of the NNGP's: by how much tangents have outgrown units."""
        return float(np.trace(self.ntk) / np.trace(self.nngp) * np.exp(self.log_scale))


def behind_weights(network: Layer, x: np.ndarray) -> Iterator[Behind]:
    """Yields the kernels behind every layer of weights but a shortcut's, of images x (m, height, width, channels)."""
    for layer, kernel in kernels_by_depth(network, x):
        if isinstance(layer, Conv | Dense | Residual):
            nngp, ntk = (_read_out(kernel, np.asarray(part)) for part in (kernel.nngp, kernel.ntk_scaled))
            yield Behind(nngp, ntk, float(kernel.log_scale))


def _read_out(kernel: Kernel, pairs: np.ndarray) -> np.ndarray:
    if not kernel.positions:
        return pairs
    subscripts = "abijij->ab" if kernel.paired else "abij->ab"
    total: np.ndarray = np.einsum(subscripts, pairs)
    return total / np.prod(kernel.positions)
