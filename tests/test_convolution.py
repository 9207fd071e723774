"""Convolutions, pooling and residual networks of images: a dense recursion in NumPy, 50 digits, finite networks."""

import copy
import functools
import itertools
import math
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from ntk_analysis.common import quick_compilation
from ntk_analysis.infinite import Kernel, image_tiles, infinite_kernel
from ntk_analysis.infinite.compute import account, input_kernel, task_of
from ntk_analysis.infinite.image_tiles import kernel_in_tiles
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    ConvLocal,
    ConvTranspose,
    Dense,
    Flatten,
    GlobalAvgPool,
    Repeat,
    Residual,
    ResidualChain,
    Serial,
)
from ntk_analysis.networks import convolutional, fully_connected, residual

from .averages import STANDARD_ERRORS, both, deviation, finite_average, images, resolution
from .test_kernel import equations
from .tiers import full

ROUNDING = 1e-12  # relative to the largest entry: a few hundred roundings of float64, for kernels of a few layers
RELU = Activation("relu")
EXACT_BITS = pytest.mark.skipif(
    quick_compilation.OLD_EMITTERS in os.environ["XLA_FLAGS"],
    reason="bits depend on how XLA fuses: run with EXACT_BITS=1, as CI does",
)


def photos(seed=0, n=3, shape=(4, 5, 2), shift=0.2):
    """Generic images, no two patches parallel, the first one with a black patch."""
    x = np.random.default_rng(seed).standard_normal((n, *shape)) + shift
    x[0, :2, :2] = 0
    return x


def close(actual, expected, tolerance=ROUNDING):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


# --- the same recursion by explicit loops ----------------------------------------------------------------------------


def seen(image, size, stride, padding, dilation=(1, 1)):
    """For each output position, the input position behind each place of the window; None is a zero of the padding."""

    def along(n, k, step, apart):
        span = (k - 1) * apart + 1
        outputs = (n - span) // step + 1 if padding == "valid" else -(-n // step)
        before = 0 if padding == "valid" else max((outputs - 1) * step + span - n, 0) // 2  # XLA's SAME
        table = np.arange(outputs)[:, None] * step + np.arange(0, span, apart) - before
        if padding == "circular":
            return (table % n).tolist()
        return [[i if 0 <= i < n else None for i in row] for row in table.tolist()]

    rows, columns = (along(*axis) for axis in zip(image, size, stride, dilation, strict=True))
    return [
        [[None if i is None or j is None else (i, j) for i, j in itertools.product(r, c)] for c in columns]
        for r in rows
    ]


class LoopedKernel:
    """Covariance K and tangent kernel T (n, n, h, w, h, w) and channel means m (n, h, w); theory.md section 2.

    In the numbers of x: float64, or mpmath's, given their functions.
    """

    def __init__(self, x, functions=np):
        self.f = functions
        self.k = np.einsum("ahwc,bijc->abhwij", x, x) / x.shape[-1]
        self.t = self.k * 0
        self.m = self.k[:, 0, :, :, 0, 0] * 0

    def window(self, size, stride, padding, dilation=(1, 1), *, in_step):
        """Means over windows: both at the same place (convolution) or each over all of its own (pooling)."""
        places, count = seen(self.m.shape[1:], size, stride, padding, dilation), math.prod(size)
        n, h, w = len(self.m), len(places), len(places[0])
        k, t = (np.zeros((n, n, h, w, h, w), self.k.dtype) for _ in range(2))
        m = np.zeros((n, h, w), self.k.dtype)
        for r, c in np.ndindex(h, w):
            for place in filter(None, places[r][c]):
                m[:, r, c] += self.m[:, *place] / count
            for i, j in np.ndindex(h, w):
                pairs = (zip if in_step else itertools.product)(places[r][c], places[i][j])
                for here, there in pairs:
                    if here is not None and there is not None:
                        k[:, :, r, c, i, j] += self.k[:, :, *here, *there] / (count if in_step else count**2)
                        t[:, :, r, c, i, j] += self.t[:, :, *here, *there] / (count if in_step else count**2)
        self.k, self.t, self.m = k, t, m

    def weights(self, layer):
        mean = np.einsum("ahw,bij->abhwij", self.m, self.m) if layer.center or layer.standardize else 0
        self.k = layer.w_var * (self.k - mean) + layer.b_var
        self.t = self.k + layer.w_var * self.t
        self.m = self.m * 0

    def relu(self):
        f, q = self.f, np.einsum("aahwhw->ahw", self.k)
        norms = f.sqrt(np.einsum("ahw,bij->abhwij", q, q))
        root = f.sqrt(np.maximum((norms - self.k) * (norms + self.k), 0))
        for a, i, j in np.ndindex(q.shape):
            root[a, a, i, j, i, j] = 0
        step = (f.pi - f.arctan2(root, self.k)) / (2 * f.pi)
        self.k, self.t, self.m = root / (2 * f.pi) + self.k * step, step * self.t, f.sqrt(q / (2 * f.pi))

    def vectors(self, k, t, m):
        self.k, self.t, self.m = k[:, :, None, None, None, None], t[:, :, None, None, None, None], m[:, None, None]

    def branch(self, branch, scale, shortcut=None):
        skip, branched = copy.copy(self), copy.copy(self).apply(branch)
        if shortcut is not None:
            skip.apply(shortcut)
        self.k, self.t, self.m = skip.k + scale**2 * branched.k, skip.t + scale**2 * branched.t, skip.m

    def apply(self, layer):
        match layer:
            case Serial():
                for inner in layer.layers:
                    self.apply(inner)
            case Repeat():
                for _ in range(layer.times):
                    self.apply(layer.block)
            case Residual():
                self.branch(layer.branch, layer.scale, layer.shortcut)
            case ResidualChain():
                for scale in layer.scales:
                    self.branch(layer.branch, scale)
            case Conv():
                self.window(layer.window.size, layer.window.stride, layer.padding, layer.window.dilation, in_step=True)
                self.weights(layer)
            case AvgPool():
                self.window(layer.moving.size, layer.moving.stride, layer.padding, in_step=False)
            case GlobalAvgPool():
                self.vectors(self.k.mean((2, 3, 4, 5)), self.t.mean((2, 3, 4, 5)), self.m.mean((1, 2)))
            case Flatten():
                k, t = (np.einsum("abhwhw->ab", pairs) / self.m[0].size for pairs in (self.k, self.t))
                self.vectors(k, t, self.m.mean((1, 2)))
            case Dense():
                self.weights(layer)
            case Activation("relu"):
                self.relu()
        return self


def looped(network, x):
    """NNGP and NTK, (2, n, n, h, w, h, w)."""
    kernel = LoopedKernel(x).apply(network)
    return np.stack([kernel.k, kernel.t])


def spatial(network, x, *, paired):
    """NNGP and NTK with their positions, of a network that ends in images."""

    @jax.jit
    def computed(x):
        kernel = network.kernel(input_kernel(x, paired=paired))
        return kernel.nngp, kernel.ntk

    return computed(x)


LOOPS = {
    "same": Serial(Conv(4, 3), RELU, Conv(4, (1, 3), w_var=1.7, b_var=0.1)),
    "same, even": Serial(Conv(4, 2, b_var=0.1), RELU, Conv(4, (4, 2), center=True)),
    "same, stride": Serial(Conv(4, (3, 2), (2, 1)), RELU, Conv(4, 2, 2, center=True, b_var=0.2)),
    "same, larger than the image": Serial(Conv(4, (6, 1), (1, 3)), RELU, Conv(4, (1, 5), center=True)),
    "valid": Serial(Conv(4, (3, 2), padding="valid"), RELU, Conv(4, 2, (1, 2), "valid", w_var=2.9, center=True)),
    "circular": Serial(Conv(4, (1, 4), padding="circular"), RELU, Conv(4, 2, 1, "circular", standardize=True)),
    "circular, stride": Serial(
        Conv(4, (2, 1), (2, 3), "circular"), RELU, Conv(4, 2, 1, "circular", center=True, dilation=(1, 2))
    ),
    "dilated": Serial(Conv(4, (2, 3), dilation=2), RELU, Conv(4, 2, (1, 2), "valid", dilation=(3, 2), center=True)),
}


@pytest.mark.parametrize(
    "name",
    [
        "same, stride",
        *full("valid", "circular, stride", "same", "same, even", "same, larger than the image", "circular", "dilated"),
    ],
)
def test_all_pairs_of_positions_against_loops(name):
    x = photos()
    for actual, expected in zip(spatial(LOOPS[name], x, paired=True), looped(LOOPS[name], x), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("name", ["circular, stride", *full("same", "valid")])
def test_equal_positions_against_loops(name):
    x = photos()
    for actual, expected in zip(spatial(LOOPS[name], x, paired=False), looped(LOOPS[name], x), strict=True):
        close(actual, np.einsum("abhwhw->abhw", expected))


def test_loops_tell_where_odd_padding_goes():
    """The comparisons above would notice the other convention: its kernel is another one."""
    x, network = photos(), Serial(Conv(4, 2), RELU, Conv(4, 2))
    mirrored = looped(network, x[:, ::-1, ::-1])[..., ::-1, ::-1, ::-1, ::-1]
    assert np.max(np.abs(mirrored - looped(network, x))) > 0.1 * np.max(mirrored)


ENDS = {
    "global": Serial(Conv(4, (3, 2)), RELU, GlobalAvgPool(), Dense(3, 2.9, 0.1, center=True)),
    "pool and flatten": Serial(
        Conv(4, 2, padding="circular"),
        AvgPool((3, 1), 2, "circular"),
        RELU,
        AvgPool((1, 2), 1, "same"),
        Flatten(),
        Dense(3, center=True),
    ),
    "centered": convolutional(3, 4, "weight_mean", b_var=0.1, kernel_size=2),
    "shortcut": Serial(
        Conv(4, 2),
        Residual(Serial(RELU, Conv(4, 3, 2)), 0.7, Conv(4, 1, 2, w_var=1.3)),
        RELU,
        Residual(Conv(4, (2, 1), b_var=0.2, center=True), 0.5),
        Flatten(),
        Dense(3, center=True),
    ),
    "residual": residual(3, 4, "weight_mean", kernel_size=2, b_var=0.1, scale="1/sqrt(l)"),
}


@pytest.mark.parametrize(
    ("name", "rows"),
    [("pool and flatten", 1), *full(("shortcut", 3), ("global", 3), ("centered", 1), ("residual", 2))],
)
def test_vectors_against_loops(name, rows):
    """Inputs among themselves or two sets of them: blocks of the same kernel."""
    x, network = photos(), ENDS[name]
    expected = looped(network, x)[..., 0, 0, 0, 0]
    kernel = infinite_kernel(network, x) if rows == len(x) else infinite_kernel(network, x[:rows], x)
    for actual, wanted in zip(both(kernel), expected, strict=True):
        close(actual, wanted[:rows])
    close(kernel.variance2, np.diagonal(expected[0]))


# --- sequences and volumes: images with an axis less or more -----------------------------------------------------


def of_dimensions(k, axis=0):
    """A network of images whose windows have size 1 along the second axis; or with `axis` placed there, of k axes."""

    def sizes(n, other=1):
        if k == 1:
            return (n,)
        return (n, other) if k == 2 else tuple(np.insert((n, other), axis, 1).tolist())

    return Serial(
        Conv(4, sizes(3), sizes(2), b_var=0.1),
        RELU,
        AvgPool(sizes(2), sizes(1), "circular"),
        Conv(4, sizes(2), dilation=sizes(2), center=False),
        BatchNorm(0.1),
        RELU,
        GlobalAvgPool(),
        Dense(3, center=True),
    )


@pytest.mark.full
def test_sequences_are_images_of_one_column():
    x = photos(shape=(5, 1, 2))
    of_images, of_sequences = infinite_kernel(of_dimensions(2), x), infinite_kernel(of_dimensions(1), x[:, :, 0])
    for field in ("nngp", "ntk", "mean1"):
        close(getattr(of_sequences, field), getattr(of_images, field))


@pytest.mark.parametrize("k", [1, *full(3)])
def test_convolutions_of_sequences_and_volumes_by_hand(k):
    x = photos(shape=(5, 2))
    conv = Conv(4, (3,) + (1,) * (k - 1), (2,) + (1,) * (k - 1), w_var=1.7)
    shape, params = conv.init(jax.random.key(0), (3, 5, *(1,) * (k - 1), 2))
    w = np.asarray(params["w"]).reshape(3, 2, 4)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    by_hand = [np.einsum("nkc,kco->no", padded[:, start : start + 3], w) for start in (0, 2, 4)]
    y = conv.apply(params, x.reshape(3, 5, *(1,) * (k - 1), 2))
    assert y.shape == shape
    close(y.reshape(3, 3, 4), np.stack(by_hand, 1) * np.sqrt(1.7 / 6))


@pytest.mark.full
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_are_images_where_one_axis_has_length_one(axis):
    x = photos(shape=(5, 3, 2))
    of_images, of_volumes = (
        infinite_kernel(of_dimensions(2), x),
        infinite_kernel(of_dimensions(3, axis), np.expand_dims(x, axis + 1)),
    )
    for field in ("nngp", "ntk", "mean1"):
        close(getattr(of_volumes, field), getattr(of_images, field))


@pytest.mark.full
def test_windows_of_volumes_go_along_each_axis():
    """To turn the volume and the window is to turn the kernel."""
    x = photos(shape=(3, 4, 2, 2))
    network = Serial(Conv(4, (1, 2, 2), (1, 2, 1)), RELU, Conv(4, (3, 1, 2), padding="valid", center=True))
    turned = Serial(Conv(4, (2, 2, 1), (2, 1, 1)), RELU, Conv(4, (1, 2, 3), padding="valid", center=True))
    kernels, others = spatial(network, x, paired=True), spatial(turned, x.transpose(0, 2, 3, 1, 4), paired=True)
    for kernel, other in zip(kernels, others, strict=True):
        close(kernel.transpose(0, 1, 3, 4, 2, 6, 7, 5), other)


LINEAR = {
    "conv": Conv(2, (2, 3), (1, 2), dilation=2, w_var=1.7, b_var=0.2),
    "local": ConvLocal(2, (3, 2), (2, 1), w_var=1.7, b_var=0.2),
    "transposed, same": ConvTranspose(2, (3, 2), 2, w_var=1.7, b_var=0.2),
    "local, valid": ConvLocal(2, 2, (1, 2), "valid", dilation=(1, 2)),
    "transposed, valid": ConvTranspose(2, (1, 3), (2, 1), "valid"),
    "transposed, circular": ConvTranspose(2, (4, 2), (2, 3), "circular", b_var=0.3),
}


EVERY = [(name, paired) for name in LINEAR for paired in (True, False)]
TELLING = [("local", True), ("transposed, same", False)]


@pytest.mark.parametrize(("name", "paired"), [*TELLING, *full(*(case for case in EVERY if case not in TELLING))])
def test_kernels_of_one_linear_layer_are_those_of_its_gradients(name, paired):
    """One layer of weights on the inputs: NNGP and NTK are products of its gradients at every width, pair by pair."""
    x, layer = jnp.asarray(photos(n=2, shape=(3, 4, 2))), LINEAR[name]
    shape, params = layer.init(jax.random.key(0), x.shape)
    gradients = jax.jit(jax.jacobian(lambda p: layer.apply(p, x)[..., 0]))(params)
    flat = np.concatenate([leaf.reshape(math.prod(shape[:-1]), -1) for leaf in jax.tree.leaves(gradients)], -1)
    wanted = (flat @ flat.T).reshape(*shape[:-1], *shape[:-1]).transpose(0, 3, 1, 2, 4, 5)
    for found in spatial(layer, x, paired=paired):
        close(found, wanted if paired else np.einsum("abhwhw->abhw", wanted))


@pytest.mark.parametrize("padding", full("same", "valid", "circular"))
def test_transposed_convolutions_are_those_of_jax(padding):
    x = jnp.asarray(photos(n=2, shape=(3, 4, 2)))
    for size, stride in (((3, 2), (2, 2)), ((1, 4), (2, 1)), ((2, 5), (3, 2))):
        layer = ConvTranspose(3, size, stride, padding)
        shape, params = layer.init(jax.random.key(0), x.shape)
        y = layer.apply(params, x)
        assert y.shape == shape
        w = params["w"] * np.sqrt(1 / params["w"][..., 0].size)
        if padding != "circular":
            close(y, jax.lax.conv_transpose(x, w, stride, padding.upper()))
        else:  # far from the edges a torus of three images has no edge
            tiled = jax.lax.conv_transpose(jnp.tile(x, (1, 3, 3, 1)), w, stride, "SAME")
            close(y, tiled[:, shape[1] : 2 * shape[1], shape[2] : 2 * shape[2]])


@pytest.mark.parametrize("layer", full(ConvLocal(3, 2, (1, 2), center=True), ConvLocal(3, 2, standardize=True)))
def test_a_local_convolution_has_the_weights_of_its_position(layer):
    """Where all its positions have the same weights, it is a convolution."""
    x = jnp.asarray(photos(n=2, shape=(3, 4, 2)))
    same = Conv(3, 2, layer.stride, center=layer.center, standardize=layer.standardize)
    shape, params = same.init(jax.random.key(0), x.shape)
    local_shape, local = layer.init(jax.random.key(0), x.shape)
    assert local_shape == shape
    assert local["w"].shape == (*shape[1:3], 8, 3)
    copied = jnp.broadcast_to(params["w"].reshape(8, 3), local["w"].shape)
    close(layer.apply({"w": copied}, x), same.apply(params, x))


@pytest.mark.full
def test_memory_is_stated_for_the_largest_image_inside():
    x = np.ones((40, 4, 5, 2))
    small, large = Serial(Conv(2), GlobalAvgPool()), Serial(Conv(2), ConvTranspose(2, 3, 3), GlobalAvgPool())
    taken = [account(task_of(of, x, None, statistics=None, batch_norm="exact", exact=False)) for of in (small, large)]
    assert large.most_positions(20) == 180
    assert taken[1].memory_bytes > taken[0].memory_bytes


def test_groups_are_convolutions_beside_each_other():
    x = jnp.asarray(photos(shape=(4, 5, 6)))
    conv = Conv(4, (3, 2), (2, 1), w_var=1.7, center=True, groups=2, dilation=(1, 2))
    shape, params = conv.init(jax.random.key(0), x.shape)
    halves = [
        replace(conv, channels=2, groups=1).apply({"w": w}, part)
        for w, part in zip(np.split(params["w"], 2, -1), np.split(x, 2, -1), strict=True)
    ]
    assert params["w"].shape == (3, 2, 3, 4)
    close(conv.apply(params, x), np.concatenate(halves, -1))
    assert shape == (3, 2, 5, 4)


# --- finite convolutions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["same", "valid", "circular"])
def test_convolution_by_hand(padding):
    x = photos()
    for size, stride in (((3, 3), (1, 1)), ((2, 2), (1, 1)), ((3, 2), (2, 1)), ((2, 4), (3, 2))):
        conv = Conv(6, size, stride, padding, w_var=1.7, b_var=0.4)
        shape, params = conv.init(jax.random.key(0), (-1, *x.shape[1:]))
        w, places = np.asarray(params["w"]), seen(x.shape[1:3], size, stride, padding)
        by_hand = np.zeros((len(x), len(places), len(places[0]), 6)) + np.sqrt(0.4) * np.asarray(params["b"])
        for r, c in np.ndindex(len(places), len(places[0])):
            for place, (i, j) in zip(places[r][c], np.ndindex(size), strict=True):
                if place is not None:
                    by_hand[:, r, c] += x[:, *place] @ w[i, j] * np.sqrt(1.7 / w[..., 0].size)
        assert shape == (-1, *by_hand.shape[1:])
        close(conv.apply(params, x), by_hand)
        if padding == "same":
            xla = jax.lax.conv_general_dilated(x, w, stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            close(
                conv.apply(params, x),
                np.asarray(xla) * np.sqrt(1.7 / w[..., 0].size) + np.sqrt(0.4) * np.asarray(params["b"]),
            )


@pytest.mark.parametrize(("padding", "window"), [("same", (2, 3)), ("valid", (2, 2)), ("circular", (3, 2))])
def test_pooling_by_hand(padding, window):
    x, pool = photos(), AvgPool(window, (2, 1), padding)
    places = seen(x.shape[1:3], window, (2, 1), padding)
    by_hand = np.array([[sum(x[:, *p] for p in place if p is not None) for place in row] for row in places])
    close(pool.apply((), x), np.moveaxis(by_hand, 2, 0) / math.prod(window))
    assert pool.init(jax.random.key(0), x.shape) == ((3, *by_hand.shape[:2], 2), ())


@pytest.mark.full
def test_centered_variances_at_the_border():
    """One hidden layer: the average over draws is exact at every width, at every position; wrong means are not."""
    x = photos(n=1, shape=(4, 4, 2))
    network = Serial(Conv(3, 3), RELU, Conv(4, 3, w_var=1.5, center=True))

    def variances(key):
        y = network.apply(network.init(key, x.shape)[1], x)
        return jnp.mean(y**2, axis=-1)

    draws = jax.random.split(jax.random.key(0), 10_000)
    samples = jax.jit(lambda keys: jax.lax.map(variances, keys, batch_size=1_000))(draws)
    mean, error = np.mean(samples, axis=0), np.std(samples, axis=0) / np.sqrt(len(samples))
    kernel = jax.jit(lambda z: network.kernel(input_kernel(z)))(jnp.asarray(x)).variance1
    assert np.max(error / mean) < 0.05
    hidden = LoopedKernel(x).apply(Serial(*network.layers[:2]))
    moment, places = np.einsum("aahwhw->ahw", hidden.k), seen((4, 4), (3, 3), (1, 1), "same")

    def theory(moments_over, means_over):
        """1.5 (sum of moments / one count - (sum of means / another)^2), the counts given how many places are seen."""
        values = np.empty(moment.shape)
        for r, c in np.ndindex(4, 4):
            inside = [p for p in places[r][c] if p is not None]
            m, mm = (sum(array[:, *p] for p in inside) for array in (hidden.m, moment))
            values[:, r, c] = 1.5 * (mm / moments_over(len(inside)) - (m / means_over(len(inside))) ** 2)
        return values

    nine, inside = (lambda count: 9), (lambda count: count)
    right = theory(nine, nine)
    close(kernel, right)
    for name, r, c in (("corner", 0, 0), ("corner", 3, 3), ("edge", 0, 2), ("edge", 2, 3), ("interior", 1, 2)):
        assert deviation(right[:, r, c], mean[:, r, c], error[:, r, c]) < STANDARD_ERRORS, name
    for wrong in (theory(nine, inside), theory(inside, inside), theory(nine, lambda count: np.inf)):
        for r, c in ((0, 0), (3, 3)):
            assert deviation(wrong[:, r, c], mean[:, r, c], error[:, r, c]) > STANDARD_ERRORS
    for wrong in (theory(nine, inside), theory(inside, inside)):  # no border there: all agree
        close(wrong[:, 1:3, 1:3], right[:, 1:3, 1:3])


@pytest.mark.slow
def test_shortcuts_with_strides_on_images():
    """One hidden layer beside a linear shortcut; a scale that is not squared, or correlated branches, are far away."""
    x = images()
    branch, shortcut = Serial(RELU, Conv(3, 2, 2, w_var=1.5)), Conv(3, 1, 2)
    network = Serial(Conv(3, 2), Residual(branch, 0.6, shortcut), Flatten(), Dense(2))
    mean, error = finite_average(network, x, draws=4_000)
    expected = both(infinite_kernel(network, x))
    assert resolution(expected, error) < 0.05
    assert deviation(expected, mean, error) < STANDARD_ERRORS
    unsquared = Serial(Conv(3, 2), Residual(branch, 0.6**0.5, shortcut), Flatten(), Dense(2))
    assert deviation(looped(unsquared, x)[..., 0, 0, 0, 0], mean, error) > 2 * STANDARD_ERRORS


# --- identities ------------------------------------------------------------------------------------------------------


def same_kernel(left, right):
    close(left.distance, right.distance)
    for one, other in zip(both(left), both(right), strict=True):
        close(one, other)


@pytest.mark.parametrize("readout", [pytest.param("flatten", marks=pytest.mark.slow), *full("pool")])
def test_constant_images_are_one_position(readout):
    """Circular convolutions of constant images, and 1 x 1 convolutions of 1 x 1 images, are dense networks."""
    colors = photos(n=4, shape=(1, 1, 5), shift=0)
    arguments = {"normalization": "weight_mean", "b_var": 0.1}
    dense = infinite_kernel(fully_connected(2, 8, **arguments), colors[:, 0, 0])
    constant = np.broadcast_to(colors, (4, 2, 3, 5))
    same_kernel(
        infinite_kernel(convolutional(2, 8, **arguments, padding="circular", kernel_size=2, readout=readout), constant),
        dense,
    )
    same_kernel(infinite_kernel(convolutional(2, 8, **arguments, kernel_size=1, readout=readout), colors), dense)


@pytest.mark.slow
def test_circular_pooled_kernels_do_not_see_where_things_are():
    x = photos(n=2)
    rolled = np.roll(x, (1, 2), axis=(1, 2))
    for network, invariant in ((CIRCULAR, True), (FLAT, False)):
        kernel, other = infinite_kernel(network, x, x), infinite_kernel(network, x, rolled)
        difference = np.max(np.abs(both(kernel) - both(other)), axis=(1, 2)) / np.max(both(kernel), axis=(1, 2))
        assert np.all(difference < ROUNDING) if invariant else np.all(difference > 0.01)


FLAT = convolutional(2, 4, "weight_mean", kernel_size=2)
CIRCULAR = convolutional(2, 4, "weight_mean", kernel_size=2, padding="circular", readout="pool")


# --- digits ----------------------------------------------------------------------------------------------------------


class Digits:
    """The functions that `LoopedKernel` needs, of mpmath's numbers."""

    pi = mpmath.mp.pi
    sqrt = staticmethod(np.frompyfunc(mpmath.sqrt, 1, 1))
    arctan2 = staticmethod(np.frompyfunc(mpmath.atan2, 2, 1))


def precise_distance(network, x):
    """1 - correlation of two inputs, from the floats as given."""
    with mpmath.workdps(50):
        k = (
            LoopedKernel(np.frompyfunc(lambda v: mpmath.mpf(float(v)), 1, 1)(x), Digits)
            .apply(network)
            .k[..., 0, 0, 0, 0]
        )
        return float(1 - k[0, 1] / mpmath.sqrt(k[0, 0] * k[1, 1]))


DEEP = {
    "centered": convolutional(5, 4, "weight_mean", kernel_size=2, b_var=0.1),
    "residual": residual(4, 4, kernel_size=2),
}


@EXACT_BITS
@pytest.mark.parametrize(
    ("name", "channels", "dtype"),
    [
        ("centered", 2, np.float64),
        *full(("centered", 2, np.float32), ("centered", 1, np.float64), ("centered", 1, np.float32)),
        *full(("residual", 2, np.float64), ("residual", 2, np.float32)),
    ],
)
def test_near_duplicate_images_keep_their_digits(name, channels, dtype):
    """The distance of images, against 50 digits: within the stated error, which is not a fantasy."""
    network = DEEP[name]
    a, noise = photos(5, 2, (2, 3, channels))  # where a is black, the change is one of direction and of brightness
    for change in (1e-3, 1e-5, 1e-7, 1e-9):
        x = np.stack([a, a + change * noise]).astype(dtype)
        if np.all(x[0] == x[1]):
            continue
        kernel = infinite_kernel(network, x)
        expected, stated = precise_distance(network, x), float(kernel.relative_error)
        actual = abs(float(kernel.distance[0, 1]) / expected - 1)
        assert actual <= stated
        assert stated <= 1000 * max(actual, float(np.finfo(dtype).eps) / change)


@pytest.mark.parametrize("dtype", full(np.float64, np.float32))
def test_pooled_kernels_state_their_error(dtype):
    """Means of correlations keep no more than their rounding; what is below it is 0, and the stated error says so."""
    a, noise = photos(5, 2, (2, 3, 2))
    for change in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9):
        x = np.stack([a, a + change * noise]).astype(dtype)
        if np.all(x[0] == x[1]):
            continue
        kernel = infinite_kernel(CIRCULAR, x)
        expected, stated = precise_distance(CIRCULAR, x), float(kernel.relative_error)
        actual = abs(float(kernel.distance[0, 1]) / expected - 1)
        assert actual <= stated
        assert stated <= 1000 * max(actual, float(np.finfo(dtype).eps) / expected)


def features(dtype, n=3, image=(3, 4), alike=0.03):
    """Random features of images whose mean over positions is small beside them, as behind an odd activation."""
    y = np.random.default_rng(6).standard_normal((n, *image, 40))
    return (y - (1 - alike) * y.mean((1, 2), keepdims=True)).astype(dtype)


def kernel_of_features(y, noise):
    """Their kernel in which units and themselves are a rounding apart, as in programs that compute either side anew."""
    q = np.mean(y.astype(float) ** 2, -1)
    unit = y.astype(float) / np.sqrt(q * y.shape[-1])[..., None]
    distance = (1 - np.einsum("ahwc,bijc->abhwij", unit, unit)).clip(0)
    distance = np.where(distance < 1e-12, noise, distance).astype(y.dtype)
    within = jnp.asarray(np.einsum("aahwij->ahwij", distance))
    sides = {"variance1": q, "variance2": q, "mean1": 0 * q, "mean2": 0 * q}
    return Kernel(
        **{name: jnp.asarray(value.astype(y.dtype)) for name, value in sides.items()},
        distance=jnp.asarray(distance),
        ntk_scaled=jnp.zeros_like(distance),
        log_scale=jnp.zeros((), y.dtype),
        relative_error=jnp.zeros((), y.dtype),
        law="activated",
        joint=True,
        within1=within,
        within2=within,
        identical=jnp.eye(len(y), dtype=y.dtype),
    )


def test_pooling_bounds_its_rounding_where_correlations_cancel():
    """Against means in float64: the error is stated of pairs of images, not of an image and itself."""
    y, noise = features(np.float32), float(np.finfo(np.float32).eps) ** 2
    kernel = jax.jit(GlobalAvgPool().kernel)(kernel_of_features(y, noise))
    mean = y.astype(float).mean((1, 2))
    unit = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    expected, others = 1 - unit @ unit.T, ~np.eye(3, dtype=bool)
    actual = np.max(np.abs(np.asarray(kernel.distance) / np.where(others, expected, 1) - 1)[others])
    assert np.all(np.diag(kernel.distance) == 0)
    assert 1e-5 < actual <= float(kernel.relative_error) < 1


POOLED = {
    "centered": convolutional(1, 1, "weight_mean", "erf", padding="circular", readout="pool"),
    "biased": convolutional(1, 1, "weight_mean", "sine", b_var=0.1, readout="pool"),
    "by parts": Serial(Conv(1), RELU, AvgPool(2), Conv(1), RELU, GlobalAvgPool(), Dense(1)),
    "batch": convolutional(1, 1, "batch", padding="circular", kernel_size=2, readout="pool"),
    "flat": convolutional(1, 1, "weight_mean", "erf", padding="circular"),
}


@pytest.mark.parametrize("name", full(*POOLED))
def test_stated_errors_of_few_images(name):
    """Float32 against float64: duplicates are not apart, and the worst of all other pairs is within what is stated."""
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 3)).astype(np.float32)
    x = np.concatenate([x, x[:1]])
    kernel, precise = infinite_kernel(POOLED[name], x), infinite_kernel(POOLED[name], x.astype(float))
    found, expected = np.asarray(kernel.distance), np.asarray(precise.distance)
    assert found[0, 3] == expected[0, 3] == 0
    assert np.all(np.diag(found) == 0)
    others = expected > 0
    actual = np.max(np.abs(found[others] / expected[others] - 1))
    assert actual <= float(kernel.relative_error) <= max(5000 * actual, 1e-3)
    assert precise.relative_error < 1e-10


# --- edges -----------------------------------------------------------------------------------------------------------

EDGES = {"flatten": residual(2, 4, "weight_mean", kernel_size=2), "pool": CIRCULAR}


def edge_images(dtype=np.float64):
    """Two photos, the first again, its negative, a black image and a constant one."""
    a, b = photos(n=2, shape=(2, 3, 2))
    return np.stack([a, b, a, -a, 0 * a, 0 * a + 2]).astype(dtype)


@pytest.mark.parametrize(
    ("name", "dtype", "rows"),
    full(*((name, dtype, n) for name in ("flatten", "pool") for dtype, n in ((np.float32, 3), (np.float64, 6)))),
)
def test_duplicates_negatives_black_and_constant_images(name, dtype, rows):
    x = edge_images(dtype)
    kernel = infinite_kernel(EDGES[name], x) if rows == len(x) else infinite_kernel(EDGES[name], x[:rows], x)
    assert kernel.distance[0, 2] == kernel.distance[2, 0] == 0
    for matrix in both(kernel):
        assert matrix.dtype == dtype
        assert np.all(np.isfinite(matrix))
        np.testing.assert_array_equal(matrix[0], matrix[2])
        assert np.all(matrix[:, 4] == 0)
    assert np.isfinite(kernel.relative_error)


@pytest.mark.slow
@pytest.mark.parametrize("network", EDGES.values(), ids=EDGES)
def test_kernels_scale_with_the_images(network):
    x = photos(n=4, shape=(2, 3, 2))
    kernel = infinite_kernel(network, x)
    for factor in (1e150, 1e-140):  # squares of the smallest pixels must not underflow
        scaled = infinite_kernel(network, x * factor)
        close(scaled.distance, kernel.distance)
        for one, other in ((kernel.nngp, scaled.nngp), (kernel.ntk, scaled.ntk)):
            close(other / factor / factor, one)
    x, large = x.astype(np.float32), np.float32(1e15)
    single, scaled = infinite_kernel(network, x), infinite_kernel(network, x * large)
    close(scaled.distance, single.distance, 1e-5)
    close(scaled.ntk / large / large, kernel.ntk, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", EDGES.values(), ids=EDGES)
def test_gradients_of_image_kernels(network):
    """Against differences of second order; finite at duplicates, negatives, black and constant images."""
    gradient = jax.jit(jax.value_and_grad(lambda z: jnp.sum(infinite_kernel(network, z).ntk)))
    x, step = jnp.asarray(photos(n=6, shape=(2, 3, 2))), 1e-5
    assert np.all(np.isfinite(gradient(jnp.asarray(edge_images()))[1]))
    direction = jnp.asarray(photos(1, n=6, shape=(2, 3, 2)))
    numeric = float(gradient(x + step * direction)[0] - gradient(x - step * direction)[0]) / (2 * step)
    assert float(jnp.sum(gradient(x)[1] * direction)) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flatten", "pool"])
def test_vmap_and_dtypes_of_image_kernels(name):
    network, x = EDGES[name], photos(n=4, shape=(2, 3, 2))
    expected = infinite_kernel(network, x)
    mapped = jax.vmap(lambda z: infinite_kernel(network, z).ntk)(jnp.stack([jnp.asarray(x), 2 * jnp.asarray(x)]))
    close(mapped, np.stack([expected.ntk, 4 * expected.ntk]))
    with jax.enable_x64(False):
        kernel = infinite_kernel(network, x)
        for value in jax.tree.leaves(kernel):
            assert isinstance(value, np.ndarray | np.float64)
            assert value.dtype == np.float64
        single = infinite_kernel(network, jnp.asarray(x))
        assert {value.dtype for value in jax.tree.leaves(single)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(kernel.ntk, expected.ntk)
    close(single.ntk, expected.ntk, 1e-5)


@pytest.mark.parametrize(
    ("readout", "normalization"),
    [*full(("flatten", "weight_mean"), ("flatten", "none"), ("pool", "none"), ("pool", "weight_mean"))],
)
def test_the_program_of_a_convolutional_network_does_not_grow_with_depth(readout, normalization):
    x = jnp.asarray(photos(n=2))

    def counts(depth):
        network = convolutional(depth, 4, normalization, readout=readout, kernel_size=2)
        params = jax.eval_shape(lambda key: network.init(key, x.shape)[1], jax.random.key(0))
        kernel = jax.make_jaxpr(lambda z: network.kernel(input_kernel(z, paired=network.pairs_positions)).ntk_scaled)
        apply = jax.make_jaxpr(lambda p: network.apply(p, x))
        return [equations(program.jaxpr) for program in (kernel(x), apply(params))]

    shallow = counts(10)
    assert shallow == counts(50)
    assert min(shallow) > 5


# --- residual networks -----------------------------------------------------------------------------------------------


def chain_and_blocks(scales):
    branch = Serial(Conv(2, 2, b_var=0.1), RELU, Conv(2, 2, w_var=1.5))
    return ResidualChain(branch, scales), Serial(*(Residual(branch, scale) for scale in scales))


@pytest.mark.parametrize("scales", full(((0.7, 0.5),), ((1.0, 0.7, 0.5),)))
def test_the_kernel_of_a_residual_chain_is_that_of_its_blocks(scales):
    x = photos(n=2, shape=(3, 4, 2))
    same_kernel(*(infinite_kernel(Serial(layer, Flatten()), x) for layer in chain_and_blocks(scales)))


@pytest.mark.full
def test_a_residual_chain_is_its_blocks_one_after_another():
    x, scales = photos(n=2, shape=(3, 4, 2)), (1.0, 0.7, 0.5)
    chain, blocks = chain_and_blocks(scales)
    branch = chain.branch
    shape, params = chain.init(jax.random.key(0), x.shape)
    unrolled = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(3))
    assert shape == x.shape
    assert np.std(params[0]["b"], axis=0).min() > 0
    y, by_hand = jnp.asarray(x), []
    for scale, (first, _, last) in zip(scales, unrolled, strict=True):
        hidden = branch.layers[0].apply(first, y)
        inner = [hidden, jnp.maximum(hidden, 0), branch.layers[2].apply(last, jnp.maximum(hidden, 0))]
        y = y + scale * inner[-1]
        by_hand += [*inner, y]
    for network, weights in ((chain, params), (blocks, unrolled)):
        close(network.apply(weights, x), y)
        walked = list(network.walk(network.activations(weights, x)))
        assert [layer for layer, _ in walked] == [
            layer for scale in scales for layer in (*branch.layers, Residual(branch, scale))
        ]
        for (_, output), expected in zip(walked, by_hand, strict=True):
            close(output, expected)


@pytest.mark.full
def test_a_shortcut_stands_before_its_branch():
    x = photos(n=2)
    branch, shortcut = Serial(Conv(4, 3, 2), RELU, Conv(3, 2)), Serial(AvgPool(2, 2), Conv(3, 1))
    with pytest.raises(ValueError, match=r"shape of the skip \(2, 2, 2, 3\), got \(2, 2, 3, 3\)"):
        Residual(branch, 0.5, shortcut).init(jax.random.key(0), x.shape)
    shortcut = Serial(AvgPool(2, 2, "same"), Conv(3, 1))
    block = Residual(branch, 0.5, shortcut)
    shape, params = block.init(jax.random.key(0), x.shape)
    walked = list(block.walk(block.activations(params, x)))
    assert [layer for layer, _ in walked] == [*shortcut.layers, *branch.layers, block]
    skip, last = shortcut.apply(params[1], x), branch.apply(params[0], x)
    for (_, output), expected in zip((walked[1], walked[4], walked[5]), (skip, last, skip + 0.5 * last), strict=True):
        close(output, expected)
    close(block.apply(params, x), walked[-1][1])
    assert shape == walked[-1][1].shape
    assert block.pairs_positions
    assert not ResidualChain(branch, (1.0,)).pairs_positions


@pytest.mark.parametrize(
    ("scale", "normalization"),
    [
        *full(("1/sqrt(l)", "weight_mean"), ("1/sqrt(l)", "none"), ("1/sqrt(L)", "none"), ("1/sqrt(L)", "weight_mean")),
        *full((0.5, "none"), (0.5, "weight_mean")),
    ],
)
def test_variance_of_a_residual_network_grows_as_it_should(scale, normalization):
    """q_L = q_1 prod(1 + scale_l^2) at the stable gain."""
    blocks, x = 20, photos(n=2, shape=(1, 1, 3), shift=1.0)[:, 0, 0] + 0.1
    growth = {"1/sqrt(l)": blocks + 1, "1/sqrt(L)": (1 + 1 / blocks) ** blocks, 0.5: 1.25**blocks}[scale]
    rounding = 20 * blocks * float(np.finfo(float).eps)
    kernel = infinite_kernel(residual(blocks, 4, normalization, scale=scale), x)
    np.testing.assert_allclose(kernel.variance1, np.mean(x**2, axis=1) * growth, rtol=rounding)


@pytest.mark.full
def test_variance_of_a_residual_network_of_images():
    """With circular padding it is the mean over positions that grows so; centering keeps more where they differ."""
    x = photos(n=2, shape=(2, 3, 2))
    arguments = {"scale": 0.5, "kernel_size": 2, "padding": "circular"}
    straight, centered = (infinite_kernel(residual(6, 4, n, **arguments), x).variance1 for n in ("none", "weight_mean"))
    close(straight, np.mean(x**2, axis=(1, 2, 3)) * 1.25**6)
    assert np.all(centered > 1.005 * straight)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        (Conv(3), (2, 16), "do not flatten them"),
        (AvgPool(), (2, 16), "do not flatten them"),
        (GlobalAvgPool(), (2, 16), "do not flatten them"),
        (Conv(3), (2, 4, 4), r"give grey ones a channel with x\[..., None\]"),
        (Dense(3), (2, 4, 4, 1), r"put Flatten\(\) or GlobalAvgPool\(\) before it"),
        (Conv(3, 5, padding="valid"), (2, 4, 6, 1), r"window of \(5, 5\) does not fit on an image of \(4, 6\)"),
        (AvgPool(5), (2, 6, 4, 1), r"window of \(5, 5\) does not fit on an image of \(6, 4\)"),
        (Conv(3, 9, padding="circular"), (2, 3, 3, 1), "does not fit on an image"),
        (Residual(Conv(3, 2, 2)), (2, 4, 4, 1), "positions of the skip"),
        (ResidualChain(Conv(3, 2, padding="valid"), (1.0, 1.0)), (2, 4, 4, 1), "positions of the skip"),
        (Residual(Serial(AvgPool(), Conv(3)), 1.0, Conv(3, 1, 3)), (2, 4, 6, 1), "positions of the skip"),
    ],
)
def test_wrong_images_are_one_clear_line(network, shape, words):
    with pytest.raises(ValueError, match=words) as caught:
        infinite_kernel(network, np.ones(shape))
    assert "\n" not in str(caught.value)


# --- tiles -----------------------------------------------------------------------------------------------------------

TILED = {
    "flatten": convolutional(3, 1, b_var=0.1),
    "centered": convolutional(3, 1, "weight_mean"),
    "no read-out, stride": Serial(Conv(1, 3, stride=2), RELU, Conv(1, (1, 2), padding="circular"), RELU),
    "pool": convolutional(2, 1, "weight_mean", b_var=0.1, kernel_size=2, readout="pool"),
    "pool, no read-out": Serial(Conv(1, 2), RELU, AvgPool(2), Conv(1, 2)),
    "growing": convolutional(40, 1, w_var=4.0),  # the NTK passes 2^40 and is rescaled, in each tile by its own factor
}


def whole(network):
    start = functools.partial(input_kernel, paired=network.pairs_positions)
    return lambda x1, x2, identical=None: network.kernel(replace(start(x1, x2), identical=identical))


@pytest.fixture
def tiles_of_three(monkeypatch):
    """Tiles of 3 x 3 images of 4 x 5, and of 4 x 4 where positions are paired."""
    monkeypatch.setattr(image_tiles, "PLACES", 9 * 20)


@EXACT_BITS
@pytest.mark.usefixtures("tiles_of_three")
@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("flatten", 5),
        ("no read-out, stride", None),
        *full(("flatten", None), ("no read-out, stride", 5)),
        *full(
            *((name, second) for name in ("centered", "growing", "pool", "pool, no read-out") for second in (None, 5))
        ),
    ],
)
def test_tiles_are_the_whole_kernel(name, second):
    """Up to rounding, with the last tiles filled up; a batch with itself is exactly symmetric."""
    network, x, y = TILED[name], photos(n=7), None
    x[4] = photos()[1]
    if second is not None:
        y = photos(1, n=second)
        y[2] = x[6]
    in_tiles = jax.jit(lambda x, y: kernel_in_tiles(whole(network), x, y, paired=network.pairs_positions))
    at_once = jax.jit(whole(network))
    tiled, expected = in_tiles(x, y), at_once(x, x if y is None else y)
    within = ("within1", "within2") if expected.paired else ()
    for field in ("nngp", "ntk", "distance", "variance1", "variance2", "mean1", "mean2", *within):
        close(getattr(tiled, field), getattr(expected, field))
    assert (tiled.law, tiled.joint) == (expected.law, y is None)
    if y is None:
        mirrored = (1, 0, 4, 5, 2, 3) if expected.paired else (1, 0, *range(2, tiled.distance.ndim))
        rounding = 1e-14 if expected.paired else 0.0  # positions of one image are not mirrored
        np.testing.assert_allclose(tiled.ntk_scaled, tiled.ntk_scaled.transpose(mirrored), rtol=rounding)
        # duplicates are not apart at all, within a tile and between two
        apart = np.einsum("abijij->abij", tiled.distance) if expected.paired else tiled.distance
        assert np.all(apart[np.arange(7), np.arange(7)] == 0)
        assert np.all(apart[1, 4] == 0)
    else:
        # a duplicate known as such has distance 0; measured between two sets, a rounding in the angle
        apart = np.einsum("abijij->abij", tiled.distance) if expected.paired else tiled.distance
        assert np.all(apart[6, 2] <= np.finfo(float).eps ** 2)
        # of images that differ: duplicates are apart by less than a rounding, or not at all, as XLA fuses their program
        errors = (float(compute(x, photos(1, n=second)).relative_error) for compute in (in_tiles, at_once))
        assert next(errors) == pytest.approx(next(errors), rel=1e-9)


@pytest.mark.usefixtures("tiles_of_three")
@pytest.mark.full
def test_gradients_of_tiles():
    x = jnp.asarray(photos(n=4))

    def loss(compute, x):
        kernel = compute(x)
        return jnp.sum(jnp.sin(kernel.nngp)) + jnp.sum(kernel.ntk)

    network = convolutional(1, 1, b_var=0.1, kernel_size=2)
    tiled = jax.jit(jax.grad(lambda x: loss(lambda x: kernel_in_tiles(whole(network), x), x)))(x)
    expected = jax.jit(jax.grad(lambda x: loss(lambda x: whole(network)(x, x), x)))(x)
    close(tiled, expected, 1e-10)  # through angles, whose derivative grows like 1/sine


@pytest.mark.usefixtures("tiles_of_three")
def test_what_tiles_refuse():
    with pytest.raises(NotImplementedError, match="one joint batch"):
        kernel_in_tiles(whole(Serial(Conv(1), RELU, Flatten(), Dense(1), BatchNorm())), jnp.asarray(photos(n=4)))
