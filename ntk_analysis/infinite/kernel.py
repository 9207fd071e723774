"""Kernel, the state that flows through an infinitely wide network, and what layers do to it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.activations.angles import safe_divide
from ntk_analysis.common.files import write_whole
from ntk_analysis.common.numpy_files import read_arrays
from ntk_analysis.common.precision import HeldArray, float_array, is_traced, numpy_in_float64
from ntk_analysis.common.pytrees import Number
from ntk_analysis.infinite.covariances import Covariance

Law: TypeAlias = Literal["inputs", "gaussian", "batch normalized", "activated"]

SAVED_FORMAT = "ntk-analysis kernel 1"
SAVED = (
    *("variance1", "variance2", "distance", "mean1", "mean2", "ntk_scaled", "log_scale", "relative_error"),
    *("within1", "within2", "law", "joint", "approximation_error", "training"),
)
NOT_ALWAYS = {"within1", "within2", "training"}
MOST_DIMENSIONS = 3  # axes of positions: sequences have one, images two, volumes three
LARGEST_SCALED_NTK = 2.0**40  # the NTK is rescaled before it leaves this range; float32 still holds its square


@jax.tree_util.register_static
@dataclass(frozen=True)
class Units:
    """The law of the units, in the form in which a loop or a program hands on what is known while it is traced."""

    law: Law


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchNormalized:
    """Gaussian pre-activations x of one batch, as they were before a batch normalisation with `eps`.

    An activation behind it needs them: (xhat_i, xhat_j) is not Gaussian at finite batch size. B is the number of
    vectors, or of images times that of positions.

    Attributes:
        sigma: (B, B) covariance of x.
        apart: (B, B) Var[x_i - x_j], which holds digits that sigma has lost for near-duplicates.
        ntk_scaled: (B, B) tangent kernel of x, in the scale of the `Kernel` that holds this.
        eps: added to the batch variance.
        train_scale: whether gamma is a parameter.
        train_shift: whether beta is a parameter.
    """

    sigma: HeldArray
    apart: HeldArray
    ntk_scaled: HeldArray
    eps: Number
    train_scale: bool = field(metadata={"static": True})
    train_shift: bool = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Kernel:
    """NNGP and NTK between n1 and n2 inputs at one layer of an infinitely wide network.

    The NNGP is kept as variances and cosine distances (1 - correlation), which hold their digits where a covariance
    matrix has lost them; the NTK is kept as `ntk_scaled` * exp(`log_scale`), so that a depth of 10,000 neither
    overflows nor loses its ratios. All arrays share one floating dtype.

    Vectors have no positions. Images have (height, width) positions, sequences (length,), volumes (depth, height,
    width); their pairs are either the same position in both (which is all that a network with a flattening read-out
    needs) or every position with every position.

    Attributes:
        variance1: (n1, *positions) variance of each unit on the first inputs (second moment, after an activation).
        variance2: (n2, *positions) the same on the second inputs.
        distance: (n1, n2, *pairs) cosine distance 1 - correlation, uncentered after an activation; pairs are () for
            vectors, (h, w) for images at equal positions, (h, w, h, w) at all pairs of positions; sequences and volumes
            likewise.
        mean1: (n1, *positions) mean across channels, which weight centering removes.
        mean2: (n2, *positions) the same on the second inputs.
        ntk_scaled: (n1, n2, *pairs) NTK times exp(-log_scale).
        log_scale: scalar; 0 until the NTK has grown beyond 2^40.
        relative_error: scalar estimate of the largest relative error of `distance` over pairs of different inputs,
            from rounding of the inputs, of every layer, and from quadrature. 0.01 means that an angle has two digits
            for some pair of near-duplicates, in this dtype; above 1, that some pair cannot be told apart in direction.
            Behind a pooling it bounds the roundings of its means, with all that cancels in them; errors from before are
            added as they are, though where correlations cancel those of a quadrature may grow.
        law: what the units are: "inputs", "gaussian" or "batch normalized" pre-activations, or "activated".
        joint: whether the second inputs are the first (one batch with itself), as batch normalisation needs.
        training: number of the first inputs, if their statistics are those of every batch normalisation and the other
            inputs are new points behind them; None: statistics of all inputs.
        nodes: number of nodes that the integrals of a batch normalisation take, while the kernel is computed; None: as
            many as make them exact.
        within1: (n1, *positions, *positions) cosine distance within each first input; None unless all positions are
            paired.
        within2: (n2, *positions, *positions) the same on the second inputs.
        before: the pre-activations before the batch normalisation just passed, else None.
        identical: (n1, n2) 1 where an input is paired with itself, 0 elsewhere; None: no pair is. Layers ask where two
            inputs coincide and could be moved apart; a finished kernel holds None.
        approximation_error: largest error of `distance`, and of `ntk_scaled` relative to its largest entry, of the
            inputs with themselves: as functions of the angle, measured between the nodes of the series that gave them
            (see `angle_series`), or behind batch normalisations of few nodes (see `infinite_kernel`). It is part of
            `relative_error`; 0 if the kernel was taken through all layers exactly. A part of a kernel has it relative
            to the largest entry of the part.
    """

    variance1: Float[HeldArray, "n1 *positions"]
    variance2: Float[HeldArray, "n2 *positions"]
    distance: Float[HeldArray, "n1 n2 *pairs"]
    mean1: Float[HeldArray, "n1 *positions"]
    mean2: Float[HeldArray, "n2 *positions"]
    ntk_scaled: Float[HeldArray, "n1 n2 *pairs"]
    log_scale: HeldArray
    relative_error: HeldArray
    law: Law = field(metadata={"static": True})
    joint: bool = field(default=False, metadata={"static": True})
    training: int | None = field(default=None, metadata={"static": True})
    nodes: int | None = field(default=None, metadata={"static": True})
    within1: HeldArray | None = None
    within2: HeldArray | None = None
    before: BatchNormalized | None = None
    identical: HeldArray | None = None
    approximation_error: float = field(default=0.0, metadata={"static": True})

    @property
    def positions(self) -> tuple[int, ...]:
        """(height, width) of images, one axis for sequences, three for volumes, () for vectors."""
        return self.variance1.shape[1:]

    @property
    def paired(self) -> bool:
        """Whether every position is paired with every position."""
        return self.within1 is not None

    @property
    def covariance(self) -> Covariance:
        """The NNGP as columns against rows: (n1, 1, ...), (1, n2, ...) and (n1, n2, *pairs), which broadcast."""
        return Covariance(self.rows(self.variance1), self.columns(self.variance2), self.distance)

    @property
    def within(self) -> tuple[Covariance, Covariance]:
        """Covariances between the positions of each input, of the first and of the second inputs."""
        assert self.within1 is not None, "positions are not paired"
        assert self.within2 is not None, "positions are not paired"
        return (
            Covariance(tall(self.variance1), wide(self.variance1), self.within1),
            Covariance(tall(self.variance2), wide(self.variance2), self.within2),
        )

    def coincident(self) -> jax.Array:
        """(n1, n2, *pairs) whether units of different inputs, or positions, are one up to a factor, or its sign."""
        return ((self.distance == 0) | (self.distance == 2)) & ~self.itself

    @property
    def itself(self) -> jax.Array:
        """Whether a unit is paired with itself, an input at a position; it broadcasts against `distance`."""
        if self.identical is None:
            return jnp.zeros((), bool)
        itself = self.identical.reshape(*self.identical.shape, *(1,) * (self.distance.ndim - 2)) > 0
        if self.paired:
            places = math.prod(self.positions)
            itself = itself & jnp.eye(places, dtype=bool).reshape(1, 1, *self.positions * 2)
        return itself

    @property
    def known_distance(self) -> jax.Array:
        """`distance` for measures of its error: without derivatives, and 0 between a unit and itself.

        Programs may compute the two sides of such a pair differently, so that their last digits are apart.
        """
        return jnp.where(self.itself, 0, jax.lax.stop_gradient(self.distance))

    def rows(self, values: HeldArray) -> HeldArray:
        """(n1, *positions) as columns of the pairs: (n1, 1, *positions), with a 1 for each paired position."""
        return values.reshape(values.shape[0], 1, *self.positions, *(1,) * self._extra)

    def columns(self, values: HeldArray) -> HeldArray:
        """(n2, *positions) as a row of the pairs: (1, n2, *positions), with a 1 for each paired position."""
        return values.reshape(1, values.shape[0], *(1,) * self._extra, *self.positions)

    @property
    def _extra(self) -> int:
        return len(self.positions) if self.paired else 0

    @property
    @numpy_in_float64
    def nngp(self) -> Float[HeldArray, "n1 n2 *pairs"]:
        """NNGP kernel (n1, n2, *pairs): covariance of the units, or their second moment after an activation."""
        covariance = Covariance(*map(float_array, self.covariance))
        distance = covariance.distance
        # without a variance the distance's derivative is minus that of the covariance, see `zero_inputs`
        slope = jax.lax.stop_gradient(distance) - distance
        without = (covariance.variance1 == 0) | (covariance.variance2 == 0)
        return jnp.where(without, slope, covariance.value)

    @property
    def ntk(self) -> Float[HeldArray, "n1 n2 *pairs"]:
        """NTK (n1, n2, *pairs), its true value, for unit-variance NTK parametrisation and one output.

        Raises:
            OverflowError: the value does not fit the dtype; `ntk_scaled` and `log_scale` always do.
        """
        if not is_traced(self.ntk_scaled, self.log_scale):
            limit = math.log(float(np.finfo(self.ntk_scaled.dtype).max))
            largest = float(np.max(np.abs(self.ntk_scaled)))
            magnitude = float(self.log_scale) + (math.log(largest) if largest > 0 else -math.inf)
            if magnitude >= limit:
                raise OverflowError(
                    f"the NTK reaches exp({magnitude:.1f}), more than {self.ntk_scaled.dtype} holds "
                    f"(exp({limit:.1f})): use .ntk_scaled and .log_scale (ntk = ntk_scaled * exp(log_scale)); "
                    "spectrum does so by itself"
                )
        return self._unscaled_ntk()

    @numpy_in_float64
    def _unscaled_ntk(self) -> Float[HeldArray, "n1 n2 *pairs"]:
        # in two halves: exp(log_scale) alone may overflow where the product does not
        half = jnp.exp(float_array(self.log_scale) / 2)
        return float_array(self.ntk_scaled) * half * half

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The NTK, as `np.asarray(kernel)`; errors as `ntk`."""
        return np.array(self.ntk, dtype=dtype, copy=copy)

    def __getitem__(self, inputs: Any) -> "Kernel":
        """The kernel of some inputs: kernel[rows] or kernel[rows, columns] by slices, integer or boolean arrays.

        A kernel of a batch with itself stays one where rows and columns are the same, as in kernel[:10, :10].

        Raises:
            TypeError: a single number, which would take away an axis (kernel[3:4] keeps it), or more than two indices;
                no IndexError, which would make a loop over a kernel end at once.
        """
        rows, columns = inputs if isinstance(inputs, tuple) and len(inputs) == 2 else (inputs, slice(None))
        for index in (rows, columns):
            if isinstance(index, tuple) or not (isinstance(index, slice) or np.ndim(index) == 1):
                raise TypeError(
                    f"got kernel[{inputs}], expected kernel[rows] or kernel[rows, columns] of slices or arrays: one "
                    "input is a slice, kernel[3:4]"
                )
        (n1, n2), pairs = self.distance.shape[:2], ("distance", "ntk_scaled")
        first, second = np.arange(n1)[rows], np.arange(n2)[columns]
        cut: dict[str, Any] = {name: getattr(self, name)[first][:, second] for name in pairs}
        cut |= {name: getattr(self, name)[first] for name in ("variance1", "mean1")}
        cut |= {name: getattr(self, name)[second] for name in ("variance2", "mean2")}
        if self.paired:
            within1, within2 = self.within
            cut |= {"within1": within1.distance[first], "within2": within2.distance[second]}
        joint = self.joint and np.array_equal(first, second)
        error = self.approximation_error
        if error and not is_traced(self.ntk_scaled) and np.any(cut["ntk_scaled"]):
            error *= float(np.max(np.abs(self.ntk_scaled)) / np.max(np.abs(cut["ntk_scaled"])))
        return replace(self, **cut, joint=joint, before=None, training=None, approximation_error=error)

    @property
    def train(self) -> "Kernel":
        """The kernel (n1, n1) of the training inputs with themselves, of an `infinite_kernel` with `statistics`.

        Raises:
            AttributeError: the kernel is of one set of inputs, or of one against another.
        """
        n = self._trained_on()
        return self[:n, :n]

    @property
    def cross(self) -> "Kernel":
        """The kernel (n2, n1) of the new points with the training inputs, as prediction needs it; errors as `train`."""
        n = self._trained_on()
        return self[n:, :n]

    @property
    def test(self) -> "Kernel":
        """The kernel (n2, n2) of the new points with themselves; errors as `train`."""
        n = self._trained_on()
        return self[n:, n:]

    def _trained_on(self) -> int:
        if self.training is None:
            raise AttributeError(
                "this kernel does not say which of its inputs are training inputs: compute it by "
                'infinite_kernel(network, x1, x2, statistics="x1"), or cut it, as in kernel[:10, :10]'
            )
        return self.training

    def save(self, path: str | Path) -> None:
        """Writes the kernel into an .npz file, which `open_kernel` reads.

        The pre-activations before a batch normalisation just passed are left out: the kernel read back is a result, to
        which no layer is applied.

        Raises:
            ValueError: the path does not end in .npz.
            OSError: the file cannot be written; an older one then stays as it was.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"got {path} to save a kernel, expected a file name that ends in .npz")
        write_whole(path, lambda scratch: np.savez_compressed(scratch, **self.arrays()))

    def arrays(self) -> dict[str, Any]:
        """The NumPy arrays, numbers and words that `save` writes, by name."""
        arrays = {name: getattr(self, name) for name in SAVED}
        found = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
        return found | {"format": np.array(SAVED_FORMAT)}

    @classmethod
    def load(cls, path: str | Path) -> "Kernel":
        """The kernel that `save` wrote, of NumPy arrays.

        Raises:
            FileNotFoundError: there is no such file.
            MemoryError: the kernel needs more memory than is free; nothing was unpacked then.
            ValueError: the file is none of a kernel, or it is damaged.
        """
        try:
            found: dict[str, Any] = read_arrays(Path(path), (*SAVED, "format"))
            if str(found.pop("format", "")) != SAVED_FORMAT or {*SAVED} - {*found} - NOT_ALWAYS:
                raise ValueError("it holds no kernel of this version")
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a kernel ({error}): save one by kernel.save") from error
        plain: dict[str, Any] = {"law": str(found["law"]), "joint": bool(found["joint"])}
        if "training" in found:
            plain["training"] = int(found["training"])
        return cls(**found | plain | {"approximation_error": float(found["approximation_error"])})

    def __repr__(self) -> str:
        n1, n2, *pairs = self.distance.shape
        which = f"{n1} inputs with themselves" if self.joint else f"{n1} x {n2} inputs"
        which += f", the first {self.training} of them training inputs" * (self.training is not None)
        places = f" at {' x '.join(map(str, pairs))} {'pairs of ' * self.paired}positions" if pairs else ""
        return f"<Kernel of {which}{places}, {self.distance.dtype}, units {self.law}>"

    def smallest_eigenvalue(self, which: Literal["nngp", "ntk"] = "ntk") -> float:
        """Smallest eigenvalue of the NNGP or of the scaled NTK (times exp(log_scale) for the true one), in float64.

        The kernel must be square and symmetric: computed with x2 = None.
        """
        matrix = np.asarray(self.nngp if which == "nngp" else self.ntk_scaled, np.float64)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"eigenvalues need a square kernel (x2 = None), got shape {matrix.shape}")
        return float(np.linalg.eigvalsh(matrix)[0])


@runtime_checkable
class HasKernel(Protocol):
    """Anything that maps the kernel of its inputs to the kernel of its outputs; hashable, as every layer is."""

    def __hash__(self) -> int: ...

    def kernel(self, kernel: Kernel) -> Kernel: ...

    @property
    def pairs_positions(self) -> bool:
        """Whether images need all pairs of positions, not equal positions only."""

    @property
    def homogeneous(self) -> bool:
        """Whether the units on s x, s > 0, are s times those on x: a kernel of vectors is one of their angles."""

    @property
    def masks_inputs(self) -> bool:
        """Whether the kernel of an input with itself is not that with an equal input."""

    def most_positions(self, positions: int) -> int:
        """Largest number of positions inside the network, for inputs of so many."""

    @property
    def couples_batch(self) -> bool | None:
        """Whether the kernel of two inputs depends on the others of the batch; None if that is not known."""


def rounding(kernel: Kernel) -> float:
    """Unit roundoff of the kernel's dtype."""
    return float(np.finfo(kernel.distance.dtype).eps)


def map_covariance(
    kernel: Kernel, function: Callable[[Covariance, jax.Array, jax.Array], Covariance], **changes: Any
) -> Kernel:
    """The kernel with another NNGP, function(covariance, mean1, mean2), and other fields changed along with it.

    All three arguments are given as columns against rows, which broadcast; where positions are paired, the function
    also serves the covariances within each input.
    """
    mean1, mean2 = kernel.rows(kernel.mean1), kernel.columns(kernel.mean2)
    new = function(kernel.covariance, mean1, mean2)
    within1 = within2 = None
    if kernel.paired:
        within1, within2 = (
            function(within, tall(mean), wide(mean)).distance
            for within, mean in zip(kernel.within, (kernel.mean1, kernel.mean2), strict=True)
        )
    places = kernel.paired and len(kernel.positions)
    return replace(
        kernel,
        variance1=new.variance1.reshape(new.variance1.shape[:1] + new.variance1.shape[2 : new.variance1.ndim - places]),
        variance2=new.variance2.reshape(new.variance2.shape[1:2] + new.variance2.shape[2 + places :]),
        distance=new.distance,
        within1=within1,
        within2=within2,
        before=None,
        **changes,
    )


def divided(kernel: Kernel, deviation1: jax.Array, deviation2: jax.Array) -> Kernel:
    """Kernel of units that are divided by numbers of their inputs, which do not depend on the unit; correlations stay.

    At infinite width such a number (a norm of all units, say) is known, and its derivative acts along one direction of
    many, so that the NTK is divided, too. Units divided by 0 become 0.

    Args:
        kernel: kernel of the units, pre-activations or activations.
        deviation1: numbers (n1, *positions) that the units of the first inputs are divided by.
        deviation2: numbers (n2, *positions) that the units of the second inputs are divided by.
    """
    both = kernel.rows(deviation1) * kernel.columns(deviation2)
    return replace(
        kernel,
        variance1=safe_divide(kernel.variance1, deviation1**2, 0.0),
        variance2=safe_divide(kernel.variance2, deviation2**2, 0.0),
        mean1=safe_divide(kernel.mean1, deviation1, 0.0),
        mean2=safe_divide(kernel.mean2, deviation2, 0.0),
        ntk_scaled=safe_divide(kernel.ntk_scaled, both, 0.0),
        before=None,
        law="gaussian" if kernel.law == "gaussian" else "activated",
        relative_error=kernel.relative_error + 4 * rounding(kernel),
    )


def tall(values: jax.Array) -> jax.Array:
    """(n, *positions) as rows of pairs of positions within each input: (n, h, w, 1, 1) of images."""
    return values.reshape(*values.shape, *(1,) * (values.ndim - 1))


def wide(values: jax.Array) -> jax.Array:
    """(n, *positions) as columns of pairs of positions within each input: (n, 1, 1, h, w) of images."""
    return values.reshape(len(values), *(1,) * (values.ndim - 1), *values.shape[1:])


def as_one_batch(pairs: jax.Array) -> jax.Array:
    """Pairs (n1, n2, h, w, h, w) of all images and positions as a matrix (n1 h w, n2 h w); one of vectors stays."""
    if pairs.ndim == 2:
        return pairs
    n1, n2, *both = pairs.shape
    first, second = position_axes(pairs.ndim)
    places = math.prod(both[: len(first)])
    return pairs.transpose(0, *first, 1, *second).reshape(n1 * places, n2 * places)


def as_pairs(matrix: jax.Array, n: int, positions: tuple[int, ...]) -> jax.Array:
    """The inverse of `as_one_batch`, for n images with themselves."""
    if not positions:
        return matrix
    k = len(positions)
    axes = (0, k + 1, *range(1, k + 1), *range(k + 2, 2 * k + 2))
    return matrix.reshape(n, *positions, n, *positions).transpose(axes)


def within_inputs(pairs: jax.Array) -> jax.Array:
    """The pairs of positions within each image, (n, h, w, h, w), of pairs of a batch with itself."""
    return jnp.einsum("aa...->a...", pairs)


def equal_positions(pairs: jax.Array, positions: int) -> jax.Array:
    """The pairs of equal positions, (..., h, w) of (..., h, w, h, w); `positions` is the number of their axes."""
    axes = "hwd"[:positions]
    return jnp.einsum(f"...{axes}{axes}->...{axes}", pairs)


def position_axes(ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of the first and of the second inputs' positions in pairs of all positions of so many axes."""
    k = (ndim - 2) // 2
    return tuple(range(2, 2 + k)), tuple(range(2 + k, 2 + 2 * k))


def add_ntk(kernel: Kernel, addition: jax.Array, log_scale: jax.Array | float = 0.0) -> Kernel:
    """The kernel with addition * exp(log_scale) added to its NTK, rescaled if it has grown too large."""
    common = jnp.maximum(kernel.log_scale, log_scale)
    total = kernel.ntk_scaled * jnp.exp(kernel.log_scale - common) + addition * jnp.exp(log_scale - common)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(total)))
    divisor = jnp.where(largest > LARGEST_SCALED_NTK, largest, 1)
    inverse = 1 / divisor  # one number: a quotient for each pair would cost more than the sum
    return replace(kernel, ntk_scaled=total * inverse, log_scale=common + jnp.log(divisor))
