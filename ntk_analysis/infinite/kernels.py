"""`infinite_kernel`: from inputs to the NNGP and NTK of an infinitely wide network, in memory or in a store."""

from pathlib import Path
from typing import Literal, overload

from jaxtyping import Float

from ntk_analysis.common.memory import available_bytes
from ntk_analysis.common.precision import AnyArray, numpy_in_float64
from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.infinite.compute import Task, kernel_of, task_of
from ntk_analysis.infinite.kernel import HasKernel, Kernel
from ntk_analysis.infinite.store_plan import StorePlan
from ntk_analysis.infinite.stored import StoredKernel
from ntk_analysis.infinite.tiling import job_of
from ntk_analysis.stores.devices import Devices
from ntk_analysis.stores.manifest import kind_of, read_manifest
from ntk_analysis.stores.runs import Runner, budget
from ntk_analysis.stores.store import computed, require_room


@overload
def infinite_kernel(
    network: HasKernel,
    x1: Float[AnyArray, "n1 *features"],
    x2: Float[AnyArray, "n2 *features"] | None = ...,
    *,
    statistics: Literal["x1"] | None = None,
    batch_norm: Literal["exact", "large_batch"] = "exact",
    exact: bool = False,
    memory: str | int | None = None,
    store: None = None,
    on: Runner | None = None,
    track: Track = untracked,
) -> Kernel: ...


@overload
def infinite_kernel(
    network: HasKernel,
    x1: Float[AnyArray, "n1 *features"],
    x2: Float[AnyArray, "n2 *features"] | None = ...,
    *,
    statistics: Literal["x1"] | None = None,
    batch_norm: Literal["exact", "large_batch"] = "exact",
    exact: bool = False,
    memory: str | int | None = None,
    store: str | Path,
    on: Runner | None = None,
    track: Track = untracked,
) -> StoredKernel: ...


@numpy_in_float64
def infinite_kernel(
    network: HasKernel,
    x1: Float[AnyArray, "n1 *features"],
    x2: Float[AnyArray, "n2 *features"] | None = None,
    *,
    statistics: Literal["x1"] | None = None,
    batch_norm: Literal["exact", "large_batch"] = "exact",
    exact: bool = False,
    memory: str | int | None = None,
    store: str | Path | None = None,
    on: Runner | None = None,
    track: Track = untracked,
) -> Kernel | StoredKernel:
    """NNGP and NTK of an infinitely wide network between inputs x1 and x2 (x2 = None: x1 with itself).

    Works under jit, grad and vmap. NumPy float64 inputs are computed and returned in float64 whatever JAX's flag.
    Inputs are not rescaled: the first dense layer's kernel is w_var x.x'/d + b_var, d the number of features.
    Duplicated inputs are legal (their rows are equal, to the last bit of the distance, and the kernel is singular); an
    input of zeros has variance 0 and, without biases, a kernel of 0 with everything.

    The kernel of a batch-normalised network is that of ONE joint batch, x1 with itself. A network that predicts has the
    mean and the variance of its training batch, in training and for new points: statistics="x1" takes x1 as this batch
    and x2 as new points, and returns one kernel of the joined inputs [x1; x2] with themselves, whose blocks are
    `Kernel.train`, `Kernel.cross` and `Kernel.test`. The statistics are those of the layer's pre-activations on x1, and
    they move with the parameters. New points do not see one another. At eps = 0 this exists where the centered
    covariance of x1 has rank 5 in every layer (6 distinct inputs), or all of x2 lies in its span; with eps > 0 unless
    x1 are all alike. The blocks share one `log_scale`: in a deep float32 network the training block may underflow
    beside new points, whose NTK grows faster.

    Batch normalisation of M inputs, or images times positions, takes some 30 nodes of a quadrature, each with products
    of (M, M) matrices. A large batch does with three, see `batch_norm.few_nodes`: batch_norm="large_batch" takes two
    fifths of the time at M = 1,024. The network is computed with two nodes, too, and `approximation_error` is twice the
    largest change: of a distance, of a variance over itself, of the NTK over its largest entry. It is a bound where the
    third node takes away a third of the error, as it did in all of 400 drawn batches of 16 to 128 inputs and rank 7 or
    more. It tells of single entries: eigenvalues far below the largest entry may be known less.

    A homogeneous network, without biases and with piecewise linear activations, has a kernel that is a function of
    the angle between two vectors; any network has on vectors of one norm. From 128 x 128 pairs on, or 1,024 x 1,024
    of one norm outside of transformations (2,048 x 2,048 where an activation is integrated), it is computed as such
    at a price that does not depend on the depth, and `approximation_error` says how exact the function is: 2e-6 at
    most in float32, 2e-12 in float64. Derivatives are those of the recursion through all layers.

    It can also be differentiated by the network's numbers, compiled with the network as an argument and mapped over
    them: a network is a pytree (see `pytrees`), and where numbers are traced the kernel is taken through all layers.
    Derivatives by a bias variance of 0 are NaN if an input, or a patch, is all zeros: behind an activation they are
    infinite there; so are those by a weight variance of 0 without biases.

    Derivatives by the inputs are right at inputs of zeros and at black pixels too. Where an input or a whole patch of
    zeros is a kink, as for ReLU without biases, the first derivative is the symmetric one, that of central differences,
    and a second derivative, which does not exist, is NaN. The NTK of an activation whose slope jumps (ReLU) has a kink
    of the same kind where two inputs, or patches of two images, coincide, are opposite, or are multiples of each other
    without biases before; an input with itself has all its derivatives. Forward mode (`jax.jacfwd` twice) keeps NaN to
    the pairs that have it; reverse mode, as in `jax.hessian`, multiplies it by 0 into other pairs and into the NNGP.

    Args:
        network: a layer or a composition of layers.
        x1: (n1, d) vectors, (n1, height, width, channels) images, or sequences and volumes, which have one and three
            axes of positions; float32 or float64; see `arrays` for all else.
        x2: (n2, ...) inputs of the same features and dtype, or None.
        statistics: "x1": every batch normalisation has the statistics of x1, and the kernel is that of [x1; x2]. None:
            those of the one joint batch. A network without batch normalisation has the same kernel either way.
        batch_norm: "exact", or "large_batch" for few nodes and their measured error, outside of transformations.
        exact: take the kernel of every pair through all layers.
        memory: memory that one tile may take, with a store: bytes, "4GiB", or None for half of what is free.
        store: folder on disk for the kernel, which is computed tile by tile and returned as a `StoredKernel`; None
            computes it in memory. The same call continues a store that was interrupted, with the store's tiles, and
            ends with the same bits. Tiles agree with the kernel in memory to rounding. The kernel of a network that
            couples the batch, as batch normalisation does, is one tile.
        on: runner that computes the tiles: None for all devices of this machine, `Devices(...)` for some of them,
            `Cluster("tcp://...")` or `Cluster(workers=3)` for many machines or processes; only with a store.
        track: function that draws a progress bar, with a store: it is called once with the tiles and a description,
            and yields the tiles.

    Raises:
        ValueError: wrong shapes, no inputs, NaN or infinite inputs; another word for `batch_norm`; a batch too small
            for its batch normalisation; a variance beyond what an activation given as a function is known for; a store
            of another kernel, or one whose manifest is damaged; `memory` or `on` without a store.
        OverflowError: the pre-activation variance left the dtype's range (a gain too large for the depth).
        MemoryError: the kernel does not fit, as of images at all pairs of positions; or a tile does not, with a store.
        NotImplementedError: the network has a layer without an infinite-width kernel here, and the message says why;
            batch_norm="large_batch" inside a transformation; or the kernel ends at positions, which no store keeps.
        TypeError: the network is none of layers, such as an array, as where arguments are swapped; or a store is given
            inside a transformation.
        FileExistsError: there is something at `store` that is not a store; it is left as it is.
        OSError: the disk is full, or too small for the kernel.
        BlockingIOError: another process computes the kernel in this store.

    Warns:
        UserWarning: tiles of the store are damaged: they are computed again.
    """
    task = task_of(network, x1, x2, statistics=statistics, batch_norm=batch_norm, exact=exact)
    if store is not None:
        return _in_store(task, Path(store), memory, on or Devices(), track)
    if memory is not None or on is not None:
        raise ValueError("memory= and on= are for tiles, which go into a store: give store=PATH, or leave them out")
    return kernel_of(task)


def _in_store(task: Task, path: Path, memory: str | int | None, on: Runner, track: Track) -> StoredKernel:
    found = read_manifest(path)
    begun = StorePlan.of(found) if found is not None and kind_of(found) == StorePlan.kind else None
    job = job_of(task, memory=budget(memory, on), parallel=on.parallel, begun=begun)
    if begun is not None and begun.shape == job.plan.shape:
        # half of what is free changes from call to call: tiles that fit are good enough
        require_room(path, job.plan, available_bytes() // on.share if memory is None else job.plan.budget_bytes)
    return StoredKernel(computed(job, path, on, track))
