"""Options that several commands share, and what they all make of them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

Activation = Annotated[
    str,
    Option(
        help="Activation: relu, leaky_relu(SLOPE), abs, erf, gelu, tanh, sine, identity, sigmoid, silu, softplus, "
        "elu, selu, celu, relu6 or softsign.",
        show_default=True,
    ),
]
NormalizationName = Annotated[
    str,
    Option(
        help="Normalisation: none, weight_mean, weight_standardization, batch, layer or layer_post, or another name "
        "of these."
    ),
]
Eps = Annotated[float, Option(help="Number added to the variances of batch and layer normalisations.")]
WeightVariance = Annotated[float | None, Option(help="Weight variance; default: the activation's stable gain.")]
BiasVariance = Annotated[float, Option(help="Bias variance.")]
Count = Annotated[int | None, Option(help="Use this many inputs, chosen with the seed; default: all.")]
ImageCentering = Annotated[
    Literal["none", "dataset"], Option(help="What images lose: nothing, or the data set's mean image.")
]
Raw = Annotated[bool, Option("--raw", help="Take the numbers as they are: no centering, no scaling to |x|^2 = d.")]
WorkerCount = Annotated[int | None, Option("--workers", help="Number of processes that Dask starts here.", min=1)]
Scheduler = Annotated[
    str | None, Option(metavar="ADDRESS", help="Address of a running Dask cluster, such as tcp://host:8786.")
]


def check_workers(workers: int | None, scheduler: str | None) -> None:
    """Raises ValueError if both are given, or if the scheduler is not an address."""
    if workers is not None and scheduler is not None:
        raise ValueError("--workers starts processes here, --scheduler takes a cluster that runs: give one of them")
    if scheduler is not None and not scheduler.rpartition(":")[2].isdigit():
        raise ValueError(f"got --scheduler {scheduler!r}, expected an address such as tcp://host:8786")


def read_inputs(
    path: Path, count: int | None, seed: int, centering: Literal["none", "dataset"], raw: bool
) -> tuple[str, Any]:
    """The name of an image set and its images as inputs: float64 (n, d), scaled to |x|^2 = d unless raw.

    Raises:
        DataError: there are no such images, or fewer than `count`.
        ValueError: the images are to be raw and centered at once.
    """
    from ntk_analysis import data

    if raw and centering != "none":
        raise ValueError("--raw and --image-centering dataset contradict each other: leave one out")
    images = data.read_images(path)
    if count is not None:
        images = images.subset(count, seed)
    pixels = images.images
    if raw:
        return images.name, pixels.reshape(len(pixels), -1).astype("float64")
    return images.name, data.preprocess(pixels, image_centering=centering)
