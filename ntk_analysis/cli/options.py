"""Options and groups of options that several commands share, and what they all make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from ntk_analysis.cli.effects import check_training, refuse_idle
from ntk_analysis.cli.groups import Group
from ntk_analysis.common.normalizations import INFINITE, TRAINED, row_of

if TYPE_CHECKING:
    from ntk_analysis.layers import Serial
    from ntk_analysis.training.recipe import Recipe

Activation = Annotated[
    str,
    Option(
        help="Activation: relu, leaky_relu(SLOPE), abs, erf, gelu, tanh, sine, identity, sigmoid, silu, softplus, "
        "elu, selu, celu, relu6 or softsign.",
        show_default=True,
    ),
]
NormalizationName = Annotated[str, Option(help=f"Normalisation: {', '.join(INFINITE)}, or another name of these.")]
TRAINED_NAMES = f"{', '.join(TRAINED)}, or another name of these; skip_init and fixup are for ResNets"
WeightVariance = Annotated[
    float | None, Option(help="Variance of weights; default: the one that keeps a layer's variance, 2 for ReLU.")
]
BiasVariance = Annotated[float, Option(help="Variance of biases.")]
DataSet = Annotated[
    str,
    Option(
        metavar="NAME|PATH",
        help="Data set: digits, mnist5k, a folder of MNIST, Fashion-MNIST or CIFAR files, or a .npz with labels.",
    ),
]


@dataclass(frozen=True)
class NetworkOptions(Group, title="Network"):
    """A fully connected network of infinite width."""

    depth: Annotated[int, Option(help="Number of hidden layers.")] = 10
    activation: Activation = "relu"
    normalization: NormalizationName = "none"
    w_var: WeightVariance = None
    b_var: BiasVariance = 0.0
    eps: Annotated[float, Option(help="Number added to the variances of batch and layer normalisations.")] = 0.0

    def network(self, width: int = 1, outputs: int = 1) -> "Serial":
        """The network, with this number of units of a hidden layer."""
        from ntk_analysis import networks

        row = row_of(self.normalization)
        if self.eps and row.infinite not in ("batch", "layer", "layer_post") and not row.last:
            refuse_idle({"eps"}, f"with --normalization {self.normalization}")
        return networks.fully_connected(
            self.depth,
            width,
            self.normalization,
            self.activation,
            outputs=outputs,
            w_var=self.w_var,
            b_var=self.b_var,
            eps=self.eps,
        )


@dataclass(frozen=True)
class ImageOptions(Group, title="Images"):
    """The images of a path, as inputs."""

    count: Annotated[int | None, Option(help="Use this many of the inputs, chosen with --seed; default: all.")] = None
    image_centering: Annotated[
        Literal["none", "dataset"],
        Option(help="What is subtracted from images: nothing, or the mean image of the data set."),
    ] = "none"
    raw: Annotated[
        bool,
        Option("--raw", help="Use the numbers as they are: subtract nothing, and do not scale images to |x|^2 = d."),
    ] = False

    def read(self, path: Path, seed: int) -> tuple[str, Any]:
        """The name of an image set and its images as inputs: float64 (n, d), scaled to |x|^2 = d unless raw.

        Raises:
            DataError: there are no such images, or fewer than `count`.
            ValueError: the images are to be raw and centered at once.
        """
        from ntk_analysis import data

        if self.raw and self.image_centering != "none":
            raise ValueError("--raw and --image-centering dataset contradict each other: leave one out")
        images = data.read_images(path)
        if self.count is not None:
            images = images.subset(self.count, seed)
        pixels = images.images
        if self.raw:
            return images.name, pixels.reshape(len(pixels), -1).astype("float64")
        return images.name, data.preprocess(pixels, image_centering=self.image_centering)


@dataclass(frozen=True)
class ClusterOptions(Group, title="Several processes or machines"):
    """Workers of Dask; ValueError if both are given, or if the scheduler is not an address."""

    workers: Annotated[int | None, Option(help="Number of processes to start on this machine, with Dask.", min=1)] = (
        None
    )
    scheduler: Annotated[
        str | None,
        Option(metavar="ADDRESS", help="Address of a Dask cluster that is running, such as tcp://host:8786."),
    ] = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("--workers starts processes here, --scheduler takes a cluster that runs: give one of them")
        if self.scheduler is not None and not self.scheduler.rpartition(":")[2].isdigit():
            raise ValueError(f"got --scheduler {self.scheduler!r}, expected an address such as tcp://host:8786")


@dataclass(frozen=True)
class ModelOptions(Group, title="Network"):
    """Fields of a `Recipe` that choose the network; None is the recipe's default."""

    model: Annotated[
        str | None,
        Option(help="Network: mlp, vgg16, resnet18, resnet50, squeezenet1_1, shufflenet_v2_x1_0, ... [default: mlp]"),
    ] = None
    depth: Annotated[int | None, Option(help="Number of hidden layers, for mlp only. [default: 5]")] = None
    width: Annotated[
        int | None,
        Option(
            help="Number of units of a hidden layer (mlp [512]), or channels of the first stage (VGG, ResNet [64])."
        ),
    ] = None
    stem: Annotated[
        str | None, Option(help="Images: cifar, about 32 x 32, or imagenet, 224 x 224. [default: cifar]")
    ] = None
    classifier: Annotated[
        str | None,
        Option(help="Last layers of a VGG: linear, one of them, or published, the authors' three. [default: linear]"),
    ] = None
    architecture: Annotated[
        str | None,
        Option(
            help="Details of ResNets, SqueezeNet and ShuffleNet: torchvision, or published, those of the authors' "
            "code. [default: torchvision]"
        ),
    ] = None
    initialization: Annotated[
        str | None, Option(help="Initial laws: he, or published, those of the authors' code. [default: he]")
    ] = None
    gain: Annotated[
        float | None,
        Option(
            help="Variance of centered weights at the start, times fan-in; with --initialization published of all "
            "convolutions without hidden norms. [default: 2.934, or the authors']"
        ),
    ] = None
    skip_scale: Annotated[
        str | None,
        Option(
            help="Scalars of MimicNorm's residual branches: paper (1/sqrt(l)) or authors (their code). [default: paper]"
        ),
    ] = None
    min_fan_in: Annotated[
        int | None, Option(help="Center the weights of layers with at least this fan-in. [default: 51]")
    ] = None
    dense: Annotated[
        bool | None,
        Option("--dense/--no-dense", help="Center hidden dense layers, too. [default: those of an mlp only]"),
    ] = None
    running_variance: Annotated[
        str | None,
        Option(
            help="Variances that batch norms remember for tests: unbiased (PyTorch), biased (Flax). [default: unbiased]"
        ),
    ] = None


@dataclass(frozen=True)
class StepOptions(Group, title="Steps"):
    """Fields of a `Recipe` that say how it is trained; None is the recipe's default."""

    paper: Annotated[
        bool,
        Option(
            "--paper",
            help="Start from the recipe of the paper's authors for CIFAR-100, their network included: resnet18, "
            "mimic_norm, batch 256, 150 epochs, warm-up 2, decay at 82,112,137, weight decay 5e-4, augmented. Other "
            "options change it.",
        ),
    ] = False
    loss: Annotated[str | None, Option(help="Loss: cross_entropy or squared. [default: cross_entropy]")] = None
    optimizer: Annotated[str | None, Option(help="Optimizer: sgd, adam or adamw. [default: sgd]")] = None
    momentum: Annotated[float | None, Option(help="Momentum of SGD, or beta_1 of Adam. [default: 0.9]")] = None
    weight_decay: Annotated[float | None, Option(help="Weight decay of all parameters. [default: 0]")] = None
    nesterov: Annotated[
        bool | None, Option("--nesterov/--no-nesterov", help="Use Nesterov's momentum. [default: no]")
    ] = None
    batch: Annotated[int | None, Option(help="Number of images in a step. [default: 128]")] = None
    drop_last: Annotated[
        bool | None,
        Option("--drop-last/--no-drop-last", help="Drop the images that whole steps leave over. [default: yes]"),
    ] = None
    epochs: Annotated[
        int | None, Option(help="Number of epochs in all; a run that is resumed may be given more. [default: 10]")
    ] = None
    warmup_epochs: Annotated[
        int | None,
        Option("--warmup", help="Number of first epochs in which the learning rate rises from 0. [default: 0]"),
    ] = None
    warmup_start: Annotated[
        float | None, Option(help="Rate of the first step of --warmup. [default: learning rate / number of steps]")
    ] = None
    decay_at: Annotated[
        str | None,
        Option(
            metavar="E,E,...",
            help="Epochs behind which the learning rate is multiplied by --decay-factor. [default: none]",
        ),
    ] = None
    decay_factor: Annotated[
        float | None, Option(help="Factor of the learning rate at each epoch of --decay-at. [default: 0.1]")
    ] = None
    augment: Annotated[
        bool | None, Option("--augment/--no-augment", help="Crop and flip the training images at random. [default: no]")
    ] = None
    rotation: Annotated[
        float | None, Option(help="Turn augmented images by up to so many degrees, too. [default: 0]")
    ] = None
    bfloat16: Annotated[
        bool | None,
        Option("--bfloat16/--no-bfloat16", help="Compute products and activations in bfloat16. [default: no]"),
    ] = None


def recipe_of(network: ModelOptions, steps: StepOptions, normalizations: Sequence[str], **others: Any) -> "Recipe":
    """The recipe of these options, with the first of the normalisations; the paper's where `steps` says so.

    Args:
        network: options that choose the network.
        steps: options that say how it is trained.
        normalizations: names or aliases of the normalisations that it is trained with; empty: the recipe's own.
        others: further fields of the recipe that were given.

    Raises:
        ValueError: an option changes nothing, is out of range, or does not fit the others.
    """
    from ntk_analysis.training.recipe import Recipe

    given = network.given() | steps.given() | others
    paper = given.pop("paper", False)
    if "decay_at" in given:
        given["decay_at"] = numbers("--decay-at", given["decay_at"])
    chosen: dict[str, Any] = {"normalization": normalizations[0]} if normalizations else {}
    recipe = Recipe.cifar100(**given, **chosen) if paper else Recipe(**given, **chosen)
    check_training(given, recipe, normalizations or [recipe.normalization])
    return recipe


def numbers(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers of a list such as 80,110,135; an empty text has none.

    Raises:
        ValueError: the text is not such a list.
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"got {option} {text!r}: expected whole numbers with commas, such as 80,110,135") from None


def refuse(names: set[str], reason: str) -> None:
    """Raises ValueError for options that were given where they have no meaning."""
    if names:
        raise ValueError(f"--{min(names).replace('_', '-')} {reason}")


@dataclass(frozen=True)
class PlanOptions(Group, title="Plan"):
    """The machines to plan for, which need not be at hand."""

    for_inputs: Annotated[
        int | None, Option(help="With --plan: number of inputs to plan for, of the shape of those given.", min=1)
    ] = None
    on_devices: Annotated[
        int | None, Option(help="With --plan: number of devices to plan for, with --memory each.", min=1)
    ] = None
    flops_per_second: Annotated[
        float | None, Option(help="With --plan: operations a second of each device; default: what is measured here.")
    ] = None
    writes_per_second: Annotated[
        float | None, Option(help="With --plan: bytes a second that the storage takes from all devices together.")
    ] = None
