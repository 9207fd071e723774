"""Section 3: weight mean whitens activations; of samples and of channels."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t

from ntk_analysis import correlation, data
from ntk_analysis.networks import fully_connected

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import OPTIMISED
from ..tolerances import Tolerance, sampling

Theory: TypeAlias = Callable[[int, int], float]

CLAIM = Claim(
    id="whitens",
    title="whitening",
    statement="Weight mean whitens activations: behind it samples are less correlated with one another, and so are "
    "channels.",
    source="Sections 1 and 3",
    scope="Fully connected ReLU networks of width 300 and depth 50 at initialisation.",
    formula=r"\operatorname{corr}(h_a, h_b) \to 0 \quad (a \ne b)",
    recorded=Verdict.HOLDS,
    summary="Both fall: from layer 1 to layer 50 the root mean square correlation of two samples from .28 to .10, and "
    "of two channels over 400 digits from .26 to .11; without normalisation they rise to .99 and .51. But channels do "
    "not become white: the spread of the samples' correlations leaves them at least (1/400 + 1.47^2/width)^(1/2), "
    "twice what 400 independent samples have. Under batch norm channels are at their least, .11, at layer 10, and at "
    ".24 at layer 50.",
    figures=("supp2",),
)


def remaining(samples: int, width: int) -> float:
    """Returns the root mean square correlation of channels over samples whose correlations have the predicted spread.

    Channels are independent draws from the covariance S of the samples, so the mean square is tr(S^2) / tr(S)^2, with
    1 on the diagonal of S and a spread of 1.471/sqrt(width) beside it.
    """
    return float(np.sqrt(1 / (samples - 1) + correlation.predicted_spread(width) ** 2))


THEORY: Theory = remaining
WRONG: dict[str, Theory] = {
    "the noise of 50 layers adds up": lambda samples, width: (50 / width) ** 0.5,
    "channels stay as correlated as pixels": lambda samples, width: 0.25,
}
WIDTH, DEPTH = 300, 50
NAMES = {"none": "no normalisation", "batch": "batch norm"}


@functools.cache  # measured once for all theories
def correlations(normalization: str, samples: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns root mean square correlations of pre-activations by network and layer, (draws, depth) each.

    The first are those of two samples over the channels, the second those of two channels over the samples.
    """
    images = data.load_digits().subset(samples, seed).images
    x = data.preprocess(images, image_centering="dataset").astype(np.float32)
    network = fully_connected(DEPTH, WIDTH, normalization)

    def of_rows(h: jax.Array) -> jax.Array:
        centered = h - jnp.mean(h, axis=1, keepdims=True)
        unit = centered / jnp.linalg.norm(centered, axis=1, keepdims=True)
        return jnp.sqrt((jnp.sum((unit @ unit.T) ** 2) - len(h)) / (len(h) * (len(h) - 1)))

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def networks(keys: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            *_, first, _, repeated, _ = network.activations(network.init(key, x.shape)[1], x)
            layers = jnp.concatenate([first[None], repeated[-2]])
            return jax.lax.map(lambda h: jnp.stack([of_rows(h), of_rows(h.T)]), layers)

        return jax.lax.map(one, keys)

    found = np.asarray(networks(jax.random.split(jax.random.key(seed), draws)), np.float64)
    return found[:, :, 0], found[:, :, 1]


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the last layer with the first, of samples and of channels, with and without weight mean."""
    evidence = Evidence()
    samples, draws = setting.size((200, 8), (400, 24))
    found = {
        name: correlations(name, samples, draws, setting.seed)
        for name in setting.track(("weight_mean", "none", "batch"), "whitens: networks")
    }
    for part, values in zip(("samples", "channels"), found["weight_mean"], strict=True):
        falls(evidence.stated, f"of {part}", values, "weight mean", part=part)
    for name, words in NAMES.items():
        for part, values in zip(("samples", "channels"), found[name], strict=True):
            falls(evidence.varied, f"of {part}", values, words)
    channels = found["weight_mean"][1][:, -1]
    condition = f"weight mean, layer {DEPTH}, width {WIDTH}, {samples} digits"
    evidence.corrected(
        "root mean square correlation of channels, of which the spread of samples leaves at least",
        expected=theory(samples, WIDTH),
        measured=channels.mean(),
        tolerance=interval(channels),
        relation=Relation.AT_LEAST,
        condition=condition,
    )
    evidence.varied(
        "root mean square correlation of channels, against that of independent samples",
        expected=(samples - 1) ** -0.5,
        measured=channels.mean(),
        tolerance=interval(channels),
        condition=condition,
    )
    for name, (rows, columns) in found.items():
        shown = ", ".join(
            f"{layer}: {rows[:, layer - 1].mean():.3f} and {columns[:, layer - 1].mean():.3f}"
            for layer in (1, 5, 10, 20, DEPTH)
        )
        evidence.note(f"{name}, {samples} digits: of samples and of channels by layer, {shown}")
    return evidence


def falls(row: Callable[..., object], whose: str, values: np.ndarray, words: str, **more: str) -> None:
    """Adds a row: the last layer's correlation is at most the first one's, in the same networks."""
    change = values[:, -1] - values[:, 0]
    row(
        f"root mean square correlation {whose}, last layer less first",
        expected=0.0,
        measured=change.mean(),
        tolerance=interval(change),
        relation=Relation.AT_MOST,
        condition=f"{words}, width {WIDTH}, depth {DEPTH}",
        **more,
    )


def interval(values: np.ndarray) -> Tolerance:
    """Returns the error of a mean over networks, for one in 10,000."""
    size = t.isf(0.00005, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return sampling(float(size), f"Student's t for 1 in 10,000, {len(values)} networks", len(values))
