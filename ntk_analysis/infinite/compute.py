"""What `infinite_kernel` computes and how: a checked task, its memory, its program, and what is wrong with a result."""

import math
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.activations.angles import safe_divide
from ntk_analysis.batch_norm.rules import LARGE_BATCH
from ntk_analysis.common.finite import all_finite, require_finite
from ntk_analysis.common.memory import require_memory
from ntk_analysis.common.precision import AnyArray, float_array, is_traced
from ntk_analysis.common.pytrees import filled, joined, split
from ntk_analysis.infinite.angle_fit import angular_function
from ntk_analysis.infinite.angle_series import AngularFunction, angular_kernel
from ntk_analysis.infinite.distances import channel_distance, rounding_error, unit_vectors, vector_distance
from ntk_analysis.infinite.image_tiles import PLACES, is_cut, kernel_in_tiles, side_of
from ntk_analysis.infinite.kernel import MOST_DIMENSIONS, HasKernel, Kernel
from ntk_analysis.infinite.vector_tiles import TILE, propagate_in_tiles
from ntk_analysis.infinite.zero_inputs import Numbers, may_hold_zeros, with_derivatives_at_zeros

# arrays of the kernel's size that are alive at once while convolutions are computed: most that XLA was seen to hold is
# 20 at equal positions (residual blocks), of a tile where there are several, 10 at all pairs, and 19 where those are
# batch normalised; a quadrature's nodes come on top. Results of all tiles, and what they are made into. Vectors: by
# their angles, pair by pair in tiles (3.3 and 5.3 in XLA's account), or all at once, where a normalisation couples the
# batch (18.2); new points behind a training batch take 4 more
ARRAYS = {
    "equal": 16, "paired": 12, "normalized": 20, "results": 6, "by angle": 4, "vectors": 6, "coupled": 19,
    "new points": 4,
}  # fmt: skip
FEWEST_PAIRS = 2**14  # of vectors, from which on the kernel as a function of the angle is worth its fit
# the same for networks that are not homogeneous: inputs of another norm need another fit and program; and where the fit
# itself has to be compiled, it takes as long as the recursion of so many pairs
FEWEST_AT_ONE_NORM, FEWEST_FOR_A_COMPILED_FIT = 2**20, 2**22
EQUAL = 16  # roundings by which norms may differ to be one


class Task(NamedTuple):
    """One kernel to compute: the checked arguments of `propagate`, in its order.

    Attributes:
        network: the network without its traced numbers.
        exact: whether every pair is taken through all layers.
        norm: |x|^2 / d of all inputs where it is one and the inputs are many; None where norms differ or do not matter.
        zeros: whether inputs of zeros are differentiated by, see `zero_inputs`.
        training: number of training inputs, see `Kernel`.
        nodes: number of nodes of a batch normalisation, see `Kernel`.
        numbers: the traced numbers of the network.
        x1: first inputs.
        x2: second inputs, or None.
    """

    network: HasKernel
    exact: bool
    norm: float | None
    zeros: bool
    training: int | None
    nodes: int | None
    numbers: Numbers
    x1: jax.Array
    x2: jax.Array | None

    @property
    def by_angle(self) -> bool:
        """Whether the kernel may be taken as a function of the angle between two vectors."""
        return self.norm is not None or (self.network.homogeneous and not self.exact)


def task_of(
    network: HasKernel, x1: AnyArray, x2: AnyArray | None, *, statistics: str | None, batch_norm: str, exact: bool
) -> Task:
    """The kernel to compute for these arguments; errors are those of `infinite_kernel`."""
    check_network(network)
    first, second, training = one_batch(*checked_inputs(x1, x2), statistics)
    network, numbers = split(network)
    exact = exact or bool(numbers)  # a fit needs to know all numbers
    norm = None if exact or network.homogeneous else _one_norm(network, first, second)
    traced = is_traced(first, second)
    nodes = nodes_of(network, batch_norm, traced=traced or bool(numbers))
    return Task(network, exact, norm, traced and may_hold_zeros(first, second), training, nodes, numbers, first, second)


def kernel_of(task: Task) -> Kernel:
    """The kernel of a task, all at once; errors are those of `infinite_kernel`."""
    memory = account(task)
    require_memory(memory.memory_bytes, memory.what, memory.cure)
    kernel = propagate(*task)
    if task.nodes is not None:
        kernel = with_measured_error(kernel, propagate(*task._replace(nodes=task.nodes - 1)))
    if not (is_traced(task.x1, task.x2) or task.numbers):
        require_sound(task.network, kernel, task.x1, task.x2)
    return kernel


def require_sound(
    network: HasKernel, kernel: Kernel, x1: AnyArray, x2: AnyArray | None, *, corner: tuple[int, int] = (0, 0)
) -> None:
    """Raises the errors of `infinite_kernel` about results: digits that were lost, and what is not finite.

    Args:
        network: network of the kernel.
        kernel: kernel, or a tile of one.
        x1: its first inputs.
        x2: its second inputs, or None.
        corner: numbers of the first and second inputs before those of the tile, for messages.
    """
    # underflow comes first: where a distance is not finite, it may be why
    _check_underflow(network, kernel, x1, x2, corner)
    _check_finite(kernel, corner, images=x1.ndim > 2)


def nodes_of(network: HasKernel, batch_norm: str, *, traced: bool) -> int | None:
    """The number of nodes of a batch normalisation by the name of the choice; None: as many as are exact."""
    if batch_norm not in ("exact", "large_batch"):
        raise ValueError(f"got batch_norm={batch_norm!r}, expected 'exact' or 'large_batch'")
    if batch_norm == "exact" or network.couples_batch is False:
        return None
    if traced:
        raise NotImplementedError(
            "batch_norm='large_batch' measures its error, which takes values: call it outside jit, grad and vmap, or "
            "leave it out"
        )
    return LARGE_BATCH.count


def with_measured_error(kernel: Kernel, fewer: Kernel) -> Kernel:
    """The kernel with twice its change from one node fewer as its error."""
    apart = jnp.abs(kernel.distance - fewer.distance)
    of_variance = jnp.max(jnp.abs(safe_divide(fewer.variance1, kernel.variance1, 1.0) - 1))
    rescaled = fewer.ntk_scaled * jnp.exp(fewer.log_scale - kernel.log_scale)
    of_ntk = jnp.max(jnp.abs(kernel.ntk_scaled - rescaled)) / jnp.max(jnp.abs(kernel.ntk_scaled))
    relative = jnp.max(safe_divide(apart, kernel.distance, 0.0))
    return replace(
        kernel,
        nodes=None,
        approximation_error=2 * float(jnp.max(jnp.stack([jnp.max(apart), of_ntk, of_variance]))),
        relative_error=kernel.relative_error + 2 * relative,
    )


def check_network(network: object) -> None:
    """Raises TypeError for what is no network of layers: a function, an array in the place of the network."""
    if not hasattr(network, "kernel"):
        kind = type(network).__name__
        hint = "a function has an empirical_ntk" if callable(network) else "it comes before the inputs"
        raise TypeError(
            f"network is a {kind}, expected a network of layers, as networks.fully_connected makes it; {hint}"
        )


def _one_norm(network: HasKernel, x1: jax.Array, x2: jax.Array | None) -> float | None:
    """|x|^2 / d of all these vectors if it is the same, they are many, and the kernel is a function of their angle."""
    pairs = len(x1) * len(x1 if x2 is None else x2)
    if x1.ndim != 2 or pairs < FEWEST_AT_ONE_NORM or is_traced(x1, x2):
        return None
    arrays = [np.asarray(x) for x in (x1, x2) if x is not None]
    norms = np.concatenate([np.einsum("nd,nd->n", x, x, dtype=np.float64) for x in arrays]) / x1.shape[1]
    least, largest = float(norms.min()), float(norms.max())
    within = EQUAL * float(np.finfo(x1.dtype).eps)
    if not 0 < largest <= least * (1 + within):
        return None
    short = float(f"{largest:.6g}")  # 1 of any inputs of |x|^2 = d, which then share a fit and a program
    norm = short if abs(short - largest) <= within * largest else largest
    return None if series_of(network, x1, x2, exact=False, norm=norm) is None else norm


def one_batch(
    x1: jax.Array, x2: jax.Array | None, statistics: str | None
) -> tuple[jax.Array, jax.Array | None, int | None]:
    """The inputs, joined if x1 is a training batch, and then its size; errors are those of `infinite_kernel`."""
    if statistics is None:
        return x1, x2, None
    if statistics != "x1":
        raise ValueError(f"got statistics={statistics!r}, expected 'x1', the training batch, or None")
    if x2 is None:
        raise ValueError("statistics='x1' needs new points x2, got none: for the training batch alone leave it out")
    return jnp.concatenate([x1, x2]), None, len(x1)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def propagate(
    network: HasKernel,
    exact: bool,
    norm: float | None,
    zeros: bool,
    training: int | None,
    nodes: int | None,
    numbers: Numbers,
    x1: jax.Array,
    x2: jax.Array | None,
) -> Kernel:
    """Kernel of a `Task`, without checks."""
    function = series_of(network, x1, x2, exact=exact, norm=norm)
    return through(network, function, x1, x2, zeros=zeros, training=training, nodes=nodes, numbers=numbers)


def series_of(
    network: HasKernel, x1: jax.Array, x2: jax.Array | None, *, exact: bool, norm: float | None
) -> AngularFunction | None:
    """The function of the angle that the kernel of these vectors is; None if every pair is taken through all layers."""
    pairs = len(x1) * len(x1 if x2 is None else x2)
    by_angle = norm is not None or (network.homogeneous and not exact)
    if not by_angle or x1.ndim != 2 or pairs < FEWEST_PAIRS:
        return None
    compiled = norm is None or pairs >= FEWEST_FOR_A_COMPILED_FIT
    return angular_function(network, str(x1.dtype), norm or 1.0, compiled=compiled)


def through(
    network: HasKernel,
    function: AngularFunction | None,
    x1: jax.Array,
    x2: jax.Array | None,
    *,
    zeros: bool = False,
    training: int | None = None,
    nodes: int | None = None,
    numbers: Numbers = (),
) -> Kernel:
    """The kernel by a function of the angle, or through all layers; the other arguments are those of `Task`."""
    _check_numbers(network)
    numbers = tuple(number.astype(x1.dtype) for number in numbers)
    if function is None:
        return _recursion(network, zeros, training, nodes, numbers, x1, x2)
    arrays = _angular(network, function, zeros, x1, x2)
    known: dict[str, Any] = {"law": function.law, "joint": x2 is None, "training": training}
    return Kernel(**arrays, **known, approximation_error=function.error)


def _check_numbers(network: HasKernel) -> None:
    """Raises what the layers raise when they are made: a step of `jax.tree.map` passes by their checks."""
    getattr(network, "__post_init__", lambda: None)()
    for part in getattr(network, "parts", ()):
        _check_numbers(part)


def _recursion(
    network: HasKernel,
    zeros: bool,
    training: int | None,
    nodes: int | None,
    numbers: Numbers,
    x1: jax.Array,
    x2: jax.Array | None,
) -> Kernel:
    """Every pair through all layers."""
    kernel_of = partial(_through_layers, network, training, nodes)
    return with_derivatives_at_zeros(kernel_of, numbers, x1, x2) if zeros else kernel_of(numbers, x1, x2)


def _through_layers(
    network: HasKernel,
    training: int | None,
    nodes: int | None,
    numbers: Numbers,
    x1: jax.Array,
    x2: jax.Array | None,
) -> Kernel:
    """Many pairs tile by tile, where layers treat each by itself."""
    paired, second = network.pairs_positions, x1 if x2 is None else x2
    apart = network.couples_batch is False
    network = joined(network, numbers)
    if apart:
        if x1.ndim == 2 and max(len(x1), len(second)) > TILE:
            return replace(propagate_in_tiles(network.kernel, input_kernel(x1, x2)), training=training)
        places = network.most_positions(math.prod(x1.shape[1:-1]))
        if x1.ndim > 2 and is_cut(len(x1), len(second), places, paired=paired):

            def tile(first: jax.Array, second: jax.Array, identical: jax.Array) -> Kernel:
                return network.kernel(input_kernel(first, second, paired=paired, identical=identical))

            return replace(kernel_in_tiles(tile, x1, x2, paired=paired, places=places), training=training)
    start = replace(input_kernel(x1, x2, paired=paired), training=training, nodes=nodes)
    return replace(network.kernel(start), identical=None)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _angular(
    network: HasKernel, function: AngularFunction, zeros: bool, x1: jax.Array, x2: jax.Array | None
) -> dict[str, Any]:
    """Arrays of the kernel as a function of the angle, by field."""
    return _arrays(angular_kernel(function, x1, x2))


def _arrays(kernel: Kernel) -> dict[str, Any]:
    """Without the types of `Kernel`, which what JAX puts in place of arrays would not pass."""
    return {name: value for name, value in vars(kernel).items() if isinstance(value, jax.Array)}


@_angular.defjvp
def _angular_jvp(network: HasKernel, function: AngularFunction, zeros: bool, primals: Any, tangents: Any) -> Any:
    """The recursion's values and derivatives: series are good for values only, and at angle 0 not differentiable."""
    return jax.jvp(lambda x1, x2: _arrays(_recursion(network, zeros, None, None, (), x1, x2)), primals, tangents)


def checked_inputs(x1: AnyArray, x2: AnyArray | None) -> tuple[jax.Array, jax.Array | None]:
    """Both sets of inputs as JAX arrays; errors are those of `infinite_kernel`."""
    first = _checked(x1, "x1")
    second = None if x2 is None else _checked(x2, "x2")
    if second is not None and (second.shape[1:] != first.shape[1:] or second.dtype != first.dtype):
        raise ValueError(
            f"x2 must have the features and the dtype of x1: got {second.shape[1:]} {second.dtype} against "
            f"{first.shape[1:]} {first.dtype}"
        )
    return first, second


def _checked(x: Any, name: str) -> jax.Array:
    array = float_array(x, name)
    if not 2 <= array.ndim <= 2 + MOST_DIMENSIONS:
        raise ValueError(
            f"{name} must have shape (inputs, features) or (inputs, *positions, channels) with one to three axes of "
            f"positions, as of images, got {array.shape}: x.reshape(len(x), -1) flattens"
        )
    if 0 in array.shape:
        raise ValueError(f"{name} holds no inputs: got shape {array.shape}")
    if not is_traced(array) and not all_finite(array):
        bad = np.flatnonzero(~np.isfinite(np.asarray(array).reshape(len(array), -1)).all(axis=1))
        raise ValueError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(array)} inputs, first in row {bad[0]}"
        )
    return array


class Account(NamedTuple):
    """The memory that a kernel takes, in the words of the error that refuses it.

    Attributes:
        memory_bytes: number of bytes.
        what: what takes them.
        cure: what takes less.
        way: how the kernel is computed.
    """

    memory_bytes: int
    what: str
    cure: str
    way: str


def account(task: Task) -> Account:
    """The memory that a kernel takes, of vectors or of images."""
    return _vector_account(task) if task.x1.ndim == 2 else _image_account(task)


def _image_account(task: Task) -> Account:
    network, x1 = task.network, task.x1
    (n1, *image, _), n2 = x1.shape, len(x1 if task.x2 is None else task.x2)
    places, paired = network.most_positions(math.prod(image)), network.pairs_positions
    normalized = paired and network.couples_batch is not False
    cut = is_cut(n1, n2, places, paired=paired)
    left = _positions_left(network, x1.shape[1:], str(x1.dtype)) if cut else None
    if normalized:
        kept = "all pairs of positions, for a batch normalization"
        numbers = (ARRAYS["normalized"] + _of_new_points(task)) * n1 * n2 * places**2
    elif paired:
        side = side_of(places, paired=True)
        rows, columns = (n1, n2) if left is None else (min(n1, side), min(n2, side))
        kept = "all pairs of positions, for a pooling read-out"
        numbers = ARRAYS["paired"] * (rows * columns + rows + columns) * places**2
    else:
        kept, numbers = "equal positions", ARRAYS["equal"] * (n1 * n2 * places if left is None else PLACES)
    if left is not None:
        numbers += ARRAYS["results"] * n1 * n2 * left
    return Account(
        numbers * x1.dtype.itemsize,
        f"the kernel of {n1} x {n2} images of {' x '.join(map(str, image))} at {kept},",
        "use fewer images at a time, smaller images"
        + ", or a flattening read-out" * (network.pairs_positions and not normalized),
        f"at {kept}",
    )


def _vector_account(task: Task) -> Account:
    network, x1, by_angle = task.network, task.x1, task.by_angle
    n1, n2 = len(x1), len(x1 if task.x2 is None else task.x2)
    kind = "coupled" if network.couples_batch else "by angle" if by_angle and task.x2 is None else "vectors"
    cure = "use fewer inputs" if network.couples_batch else "use fewer inputs at a time"
    narrower = ", or float32" * (x1.dtype.itemsize > 4)
    of_angle = by_angle and n1 * n2 >= FEWEST_PAIRS
    way = "as one joint batch" if network.couples_batch else "by their angles" if of_angle else "pair by pair"
    arrays = ARRAYS[kind] + (_of_new_points(task) if network.couples_batch else 0)
    needed = arrays * n1 * n2 * x1.dtype.itemsize
    return Account(needed, f"the kernel of {n1} x {n2} inputs", cure + narrower, way)


def _of_new_points(task: Task) -> int:
    """The arrays that new points behind a training batch add."""
    return 0 if task.training is None else ARRAYS["new points"]


@lru_cache(maxsize=64)
def _positions_left(network: HasKernel, shape: tuple[int, ...], dtype: str) -> int | None:
    """Positions of images of this shape behind a network that takes tiles of them; None where it takes all at once."""
    if network.couples_batch is not False:
        return None
    image: Any = jax.ShapeDtypeStruct((1, *shape), dtype)
    start: Any = partial(input_kernel, paired=network.pairs_positions)
    pairs = jax.eval_shape(lambda x: filled(network).kernel(start(x, x)).distance, image)
    return math.prod(pairs.shape)


def _check_finite(kernel: Kernel, corner: tuple[int, int], *, images: bool) -> None:
    if any(np.isnan(np.asarray(q)).any() for q in (kernel.variance1, kernel.variance2)):
        raise ValueError(
            "a variance is not a number: an activation given as a function is known up to some variance only "
            "(`activations.get(function).largest_variance`), and pre-activations reach beyond; use a smaller w_var or "
            "inputs of |x|^2 = d"
        )
    if not all(all_finite(q) for q in (kernel.variance1, kernel.variance2)):
        raise OverflowError(
            f"a pre-activation variance left {kernel.variance1.dtype}'s range: gain or inputs are too large; "
            "use the stable gain (w_var=None), a smaller w_var, fewer layers, or inputs of |x|^2 = d"
        )
    # the NNGP is sqrt(q1 q2) (1 - distance), finite where these are; the NTK's own overflow is `Kernel.ntk`'s to report
    for values, name in ((kernel.distance, "cosine distance"), (kernel.ntk_scaled, "scaled NTK")):
        if not all_finite(values):
            require_finite(
                values,
                f"the {name} of this network",
                rows=corner[0],
                columns=corner[1],
                why=lambda row, column: _why_not_finite(kernel, images),
            )


def _check_underflow(
    network: HasKernel, kernel: Kernel, x1: AnyArray, x2: AnyArray | None, corner: tuple[int, int]
) -> None:
    """Raises where the squares of inputs, or variances behind the layers, are so small that they have lost digits."""
    dtype = np.finfo(x1.dtype)
    resolved = float(dtype.tiny / dtype.eps)
    for x, variance, name, before in (
        (x1, kernel.variance1, "x1", corner[0]),
        (x2, kernel.variance2, "x2", corner[1]),
    ):
        if x is None:
            continue
        largest = np.max(np.abs(np.asarray(x).reshape(len(x), -1)), axis=1, initial=0)
        small = (largest > 0) & (largest < math.sqrt(resolved))
        if small.any():
            row = int(np.argmax(small))
            raise ValueError(
                f"{name}[{before + row}] has no number above {largest[row]:.3g}, and {x1.dtype} does not resolve the "
                "square of that: multiply the inputs by a constant"
            )
        left = np.asarray(variance).reshape(len(x), -1).max(axis=1)
        lost = (largest > 0) & (left < resolved)
        if network.couples_batch is not False:
            lost &= left > 0  # inputs at the mean of their batch have variance 0, and rightly
        if lost.any() and not _has_zeros(network):
            row = int(np.argmax(lost))
            raise ValueError(
                f"behind the layers the variance of {name}[{before + row}] is {left[row]:.3g}, which {x1.dtype} does "
                "not resolve: use a larger w_var (None is the stable gain), a bias, or fewer layers"
            )


def _has_zeros(network: Any) -> bool:
    """Whether a layer multiplies by 0, so that variances of 0 are right."""
    own = getattr(network, "w_var", 1) == 0 or getattr(network, "scale", 1) == 0
    return own or any(map(_has_zeros, getattr(network, "parts", ())))


def _why_not_finite(kernel: Kernel, images: bool) -> str:
    if not bool(jnp.isfinite(kernel.log_scale)):
        return f"the NTK left {kernel.ntk_scaled.dtype}'s range within one layer; use a smaller w_var, or float64"
    if not kernel.joint:
        return ""
    inputs = "positions of all images" if images else "inputs"
    if kernel.training is not None:
        return (
            f"statistics of {kernel.training} training inputs give a kernel of new points only if these are not all "
            "alike, no input lies at their mean, and, at eps = 0, their centered covariance has rank >= 5: use at "
            f"least 6 distinct training {inputs}, or eps > 0"
        )
    return (
        f"at eps = 0 a batch normalisation of {len(kernel.variance1)} has a kernel only if the centered covariance of "
        f"its {inputs} has rank >= 3 and none lies at the mean of the batch; use at least 4 distinct {inputs}, more of "
        "them, or eps > 0; without one, check the inputs and the activations there"
    )


def input_kernel(
    x1: Float[jax.Array, "n1 *features"],
    x2: Float[jax.Array, "n2 *features"] | None = None,
    *,
    paired: bool = False,
    identical: Float[jax.Array, "n1 n2"] | None = None,
) -> Kernel:
    """Kernel of the raw inputs: x.x'/d over the features, or over the channels at each position; no NTK yet.

    Args:
        x1: (n1, d) or (n1, *positions, channels).
        x2: the second inputs, or None.
        paired: whether images keep all pairs of positions.
        identical: 1 where a second input is one of the first ones, as where both are parts of a batch; else 0.
    """
    other = x1 if x2 is None else x2
    within1 = within2 = None
    if x1.ndim == 2:
        distance = vector_distance(unit_vectors(x1), unit_vectors(other), same=x2 is None)
    elif paired:
        ones = (1,) * (x1.ndim - 2)
        down1, down2 = (x.reshape(*x.shape[:-1], *ones, x.shape[-1]) for x in (x1, other))
        across1, across2 = (x.reshape(len(x), *ones, *x.shape[1:]) for x in (x1, other))
        distance = channel_distance(down1[:, None], across2[None])
        within1, within2 = channel_distance(down1, across1), channel_distance(down2, across2)
    else:
        distance = channel_distance(x1[:, None], other[None])
    variance1, variance2 = jnp.mean(x1**2, axis=-1), jnp.mean(other**2, axis=-1)
    kernel = Kernel(
        variance1=variance1,
        variance2=variance2,
        distance=distance,
        mean1=jnp.zeros_like(variance1),
        mean2=jnp.zeros_like(variance2),
        ntk_scaled=jnp.zeros_like(distance),
        log_scale=jnp.zeros((), distance.dtype),
        relative_error=jnp.zeros((), distance.dtype),
        law="inputs",
        joint=x2 is None,
        within1=within1,
        within2=within2,
        identical=jnp.eye(len(x1), dtype=distance.dtype) if x2 is None else identical,
    )
    return replace(kernel, relative_error=rounding_error(kernel.known_distance))
