"""How alike two kernels are, and how well a kernel fits the targets: distance, change, alignment, centred alignment.

A kernel is a NumPy or JAX array, (n1, n2) or in the full layout (n1, n2, C, C) of networks with C outputs, a `Kernel`,
or an `EmpiricalKernel`; all are compared entry by entry in float64. Distance and alignments do not see the scale of a
kernel, so that an NTK beyond float64 needs no care.
"""

import math
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64

from ntk_analysis.arrays import concrete
from ntk_analysis.empirical import EmpiricalKernel
from ntk_analysis.kernel import Kernel
from ntk_analysis.precision import AnyArray

ComparableKernel: TypeAlias = Kernel | EmpiricalKernel | AnyArray


def entries(kernel: ComparableKernel, which: str = "ntk") -> tuple[np.ndarray, float]:
    """(values, log_scale) with kernel = values * exp(log_scale); values keep their dtype.

    The trace of an empirical kernel with C outputs, which is their sum, is divided by C.

    Raises:
        ValueError: neither (n1, n2) nor (n1, n2, C, C); no, NaN or infinite entries; an unknown `which`.
        AttributeError: an empirical kernel that is not the one `which` names.
        TypeError: not real numbers, or inside a JAX transformation.
    """
    if which not in ("ntk", "nngp"):
        raise ValueError(f"which={which!r} is not a kernel: use 'ntk' or 'nngp'")
    log_scale = 0.0
    if isinstance(kernel, Kernel):
        values = concrete(kernel.ntk_scaled if which == "ntk" else kernel.nngp, "kernel")
        log_scale = float(concrete(kernel.log_scale, "log_scale")) if which == "ntk" else 0.0
    elif isinstance(kernel, EmpiricalKernel):
        values = kernel.ntk if which == "ntk" else kernel.nngp
        values = values / np.asarray(kernel.plan.features, values.dtype) if kernel.outputs == "trace" else values
    else:
        values = concrete(kernel, "kernel")
    if values.ndim not in (2, 4) or (values.ndim == 4 and values.shape[2] != values.shape[3]) or values.size == 0:
        raise ValueError(f"kernel has shape {values.shape}, expected (n1, n2), or (n1, n2, C, C) for C outputs")
    if not np.isfinite(values).all():
        raise ValueError("kernel has NaN or infinite entries, expected finite ones: check how it was computed")
    return values, log_scale


def kernel_distance(kernel1: ComparableKernel, kernel2: ComparableKernel, *, which: str = "ntk") -> float:
    """1 - <K1, K2>_F / (|K1|_F |K2|_F), in [0, 2], and in [0, 1] for positive semi-definite kernels.

    As in Fort et al. 2020 (2010.15110): between the empirical NTKs of two times of training it says how much of
    the kernel the training has turned. Small distances keep their digits.

    Args:
        kernel1: (n1, n2) or (n1, n2, C, C).
        kernel2: of the same shape.
        which: the part of a `Kernel` or `EmpiricalKernel` to take.

    Raises:
        ValueError: shapes that differ, or a kernel that is zero; as `entries`.
    """
    first, second = _pair(kernel1, kernel2, which)
    # half the squared distance of unit vectors is 1 - cosine without its cancellation
    return float(np.sum((_unit(first) - _unit(second)) ** 2)) / 2


def relative_change(before: ComparableKernel, after: ComparableKernel, *, which: str = "ntk") -> float:
    """|after - before|_F / |before|_F: unlike the distance, it sees a change of scale.

    Raises:
        ValueError: as `kernel_distance`.
        OverflowError: the kernels' scales differ by more than float64 holds.
    """
    first, second = _pair(before, after, which)
    ratio = entries(after, which)[1] - entries(before, which)[1]
    if ratio > math.log(np.finfo(np.float64).max) - 100:  # the squared entries need room, too
        raise OverflowError(f"after is exp({ratio:.1f}) times before, which float64 does not hold: compare directions")
    size = np.max(np.abs(first))
    change = np.linalg.norm(second / size * math.exp(ratio) - first / size)
    return float(change / np.linalg.norm(first / size))


def alignment(kernel1: ComparableKernel, kernel2: ComparableKernel, *, which: str = "ntk") -> float:
    """<K1, K2>_F / (|K1|_F |K2|_F), in [-1, 1], as in Cristianini et al. 2001. Errors as `kernel_distance`."""
    first, second = _pair(kernel1, kernel2, which)
    return _cosine(first, second)


def centered_alignment(kernel1: ComparableKernel, kernel2: ComparableKernel, *, which: str = "ntk") -> float:
    """Alignment of H K1 H and H K2 H with H = I - 11'/n, as in Cortes et al. 2012.

    Also known as CKA (Kornblith et al. 2019). Centring is over inputs, of each pair of outputs. It takes out the
    constant mode, which in a deep network without normalisation outweighs everything else and aligns any two kernels.

    Raises:
        ValueError: as `kernel_distance`; a kernel that is zero once centred.
    """
    first, second = (_centered(kernel) for kernel in _pair(kernel1, kernel2, which))
    return _cosine(first, second)


def target_alignment(
    kernel: ComparableKernel, targets: AnyArray, *, centered: bool = True, which: str = "ntk"
) -> float:
    """Alignment of a kernel with the targets' Y Y': 1 where the kernel knows the labels and nothing else.

    Args:
        kernel: (n, n), or (n, n, C, C), which is aligned with the products Y[a, c] Y[b, d].
        targets: (n,) integers are class labels, Y = one-hot - 1/classes; floats (n,) or (n, C) are Y itself. Two
            classes give half the y y' of labels -1 and 1, and so the same alignment.
        centered: centre both kernels over inputs (Cortes et al. 2012) or not (Cristianini et al. 2001).
        which: the part of a `Kernel` or `EmpiricalKernel` to take.

    Raises:
        ValueError: targets that do not fit the kernel; fewer than two classes; as `centered_alignment`.
    """
    values = entries(kernel, which)[0]
    if values.shape[0] != values.shape[1]:
        raise ValueError(f"kernel has shape {values.shape}, expected one set of inputs against itself")
    y = _targets(targets, len(values))
    if values.ndim == 4 and y.shape[1] != values.shape[2]:
        raise ValueError(f"targets of {y.shape[1]} outputs against a kernel of {values.shape[2]}: expected as many")
    wanted = np.einsum("ac,bd->abcd", y, y) if values.ndim == 4 else y @ y.T
    return (centered_alignment if centered else alignment)(values, wanted)


def centered_one_hot(labels: np.ndarray) -> Float64[np.ndarray, "n classes"]:
    """One-hot targets minus 1/classes, so that each row sums to 0; columns are the sorted classes that occur.

    Raises:
        ValueError: fewer than two classes.
    """
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels have {len(classes)} class, expected at least 2: nothing to tell apart")
    targets: np.ndarray = np.eye(len(classes))[indices] - 1 / len(classes)
    return targets


def _targets(targets: AnyArray, n: int) -> Float64[np.ndarray, "n outputs"]:
    given = concrete(targets, "targets")
    if given.ndim not in (1, 2) or len(given) != n:
        raise ValueError(f"targets have shape {given.shape}, expected ({n},) or ({n}, outputs): one row per input")
    if given.ndim == 1 and np.issubdtype(given.dtype, np.integer):
        return centered_one_hot(given)
    if not np.isfinite(given).all():
        raise ValueError("targets have NaN or infinite values, expected finite ones: clean them")
    return given.astype(np.float64).reshape(n, -1)


def _pair(kernel1: ComparableKernel, kernel2: ComparableKernel, which: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = (entries(kernel, which)[0].astype(np.float64) for kernel in (kernel1, kernel2))
    if first.shape != second.shape:
        raise ValueError(f"kernels have shapes {first.shape} and {second.shape}, expected the same inputs and layout")
    if not first.any() or not second.any():
        raise ValueError("a kernel is zero everywhere, which has no direction: check inputs and variances")
    return first, second


def _centered(kernel: np.ndarray) -> np.ndarray:
    rows = kernel - kernel.mean(axis=0, keepdims=True)
    centered: np.ndarray = rows - rows.mean(axis=1, keepdims=True)
    rounding = len(kernel) * np.finfo(np.float64).eps * np.max(np.abs(kernel))
    if np.max(np.abs(centered)) <= rounding:
        raise ValueError("a kernel is zero once centred, the same for all inputs: it has no direction left")
    return centered


def _unit(kernel: np.ndarray) -> np.ndarray:
    scaled = kernel / np.max(np.abs(kernel))  # first, so that no square leaves float64's range
    unit: np.ndarray = scaled / np.linalg.norm(scaled)
    return unit


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    cosine = float(np.sum(_unit(first) * _unit(second)))
    return min(1.0, max(-1.0, cosine))  # rounding
