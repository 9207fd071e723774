"""Finite networks, trained."""

import importlib
import time
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ntk_analysis.cli.progress import Interrupted, progress


def train(
    data: Annotated[
        str,
        Option(
            metavar="NAME|PATH",
            help="Data set: digits, mnist5k, a folder of MNIST, Fashion-MNIST or CIFAR files, or a .npz with labels.",
        ),
    ] = "digits",
    out: Annotated[
        Path | None,
        Option(metavar="DIR", help="Folder for metrics and checkpoints; default: nothing is kept.", show_default=False),
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with the run in --out, if there is one.")] = False,
    keep_every: Annotated[
        int | None,
        Option(
            metavar="N", help="Keep the checkpoint of every N-th epoch. [default: only the last two are kept]", min=1
        ),
    ] = None,
    paper: Annotated[
        bool,
        Option(
            "--paper",
            help="Start from the paper's CIFAR-100 recipe: resnet18, mimic_norm, batch 256, 150 epochs, warm-up 2, "
            "decay at 80,110,135, weight decay 5e-4, augmented. Other options change it.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        Option(help="Network: mlp, vgg16, resnet18, resnet50, squeezenet1_1, shufflenet_v2_x1_0, ... [default: mlp]"),
    ] = None,
    depth: Annotated[int | None, Option(help="Number of hidden layers, for mlp only. [default: 5]")] = None,
    width: Annotated[
        int | None,
        Option(help="Units of a hidden layer of mlp [512]; channels of the first stage of VGGs and ResNets [64]."),
    ] = None,
    normalization: Annotated[
        str | None,
        Option(
            help="Normalisation: none, batch_norm, layer_norm, weight_standardization, weight_mean, last_bn or "
            "mimic_norm; for ResNets skip_init and fixup as well. [default: batch_norm]"
        ),
    ] = None,
    min_fan_in: Annotated[int | None, Option(help="Smallest fan-in of a layer that is centred. [default: 51]")] = None,
    gain: Annotated[float | None, Option(help="Gain of centred weights behind a ReLU. [default: 2.934]")] = None,
    skip_scale: Annotated[
        str | None, Option(help="Law of MimicNorm's scalars: paper or authors. [default: paper]")
    ] = None,
    running_variance: Annotated[
        str | None,
        Option(help="Running variances of batch norms: unbiased (PyTorch) or biased (Flax). [default: unbiased]"),
    ] = None,
    loss: Annotated[str | None, Option(help="Loss: cross_entropy or squared. [default: cross_entropy]")] = None,
    optimizer: Annotated[str | None, Option(help="Optimiser: sgd, adam or adamw. [default: sgd]")] = None,
    lr: Annotated[float | None, Option(help="Largest learning rate. [default: 0.1]")] = None,
    momentum: Annotated[float | None, Option(help="Momentum of SGD, or beta_1 of Adam. [default: 0.9]")] = None,
    nesterov: Annotated[
        bool | None, Option("--nesterov/--no-nesterov", help="Use Nesterov's momentum. [default: no]")
    ] = None,
    weight_decay: Annotated[
        float | None, Option(help="Weight decay, the same for all parameters. [default: 0]")
    ] = None,
    batch: Annotated[int | None, Option(help="Number of images in a step. [default: 128]")] = None,
    epochs: Annotated[int | None, Option(help="Number of epochs; a resumed run may have more. [default: 10]")] = None,
    warmup: Annotated[int | None, Option(help="Number of epochs of linear warm-up. [default: 0]")] = None,
    decay_at: Annotated[
        str | None, Option(metavar="E,E,...", help="Epochs at which the learning rate falls. [default: none]")
    ] = None,
    decay_factor: Annotated[
        float | None, Option(help="Factor by which the learning rate falls. [default: 0.1]")
    ] = None,
    augment: Annotated[
        bool | None, Option("--augment/--no-augment", help="Augment images by random crops and flips. [default: no]")
    ] = None,
    bfloat16: Annotated[
        bool | None,
        Option("--bfloat16/--no-bfloat16", help="Compute products and activations in bfloat16. [default: no]"),
    ] = None,
    seed: Annotated[int | None, Option(help="Seed of weights, shuffles and augmentation. [default: 0]")] = None,
    tensorboard: Annotated[
        Path | None,
        Option(metavar="DIR", help="Write TensorBoard's files there; needs tensorboardX.", show_default=False),
    ] = None,
) -> None:
    """Trains a network with one of the paper's normalisations; shows losses and accuracies by epoch.

    Training that diverges is a result: it is reported and recorded, and the exit status is 0. With --out DIR the
    metrics are in DIR/metrics.jsonl, and --resume goes on where a run ended or was killed, to the same numbers.
    """
    given: dict[str, Any] = {
        "model": model,
        "depth": depth,
        "width": width,
        "normalization": normalization,
        "min_fan_in": min_fan_in,
        "gain": gain,
        "skip_scale": skip_scale,
        "running_variance": running_variance,
        "loss": loss,
        "optimizer": optimizer,
        "learning_rate": lr,
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "batch": batch,
        "epochs": epochs,
        "warmup_epochs": warmup,
        "decay_at": None if decay_at is None else numbers("--decay-at", decay_at),
        "decay_factor": decay_factor,
        "augment": augment,
        "bfloat16": bfloat16,
        "seed": seed,
    }
    if resume and out is None:
        raise ValueError("--resume needs --out DIR, the folder of the run")
    if keep_every is not None and out is None:
        raise ValueError("--keep-every needs --out DIR, the folder of the checkpoints")
    from ntk_analysis.training.recipe import Recipe

    make = Recipe.cifar100 if paper else Recipe
    chosen = make(**{name: value for name, value in given.items() if value is not None})
    execute(chosen, data, out, resume, keep_every, tensorboard)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers of a list such as 80,110,135; an empty text has none.

    Raises:
        ValueError: the text is not such a list.
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"got {option} {text!r}: expected whole numbers with commas, such as 80,110,135") from None


def execute(
    recipe: Any, source: str, out: Path | None, resume: bool, keep_every: int | None, tensorboard: Path | None
) -> None:
    """Trains; prints the plan, a line for each epoch, and the result.

    Raises:
        Interrupted: Ctrl-C was pressed, and epochs are kept.
    """
    from ntk_analysis.training.dataset import load_dataset
    from ntk_analysis.training.loop import Trainer, fit

    log = tensorboard_log(tensorboard)
    trainer = Trainer(recipe, load_dataset(source))
    print(plan(trainer), flush=True)
    done = 0
    ends: list[float] = []
    with progress(transient=True) as track:
        bar = iter(track(range(recipe.epochs), "epochs"))
        next(bar)  # the first epoch has begun

        def told(epoch: Any) -> None:
            nonlocal done
            for _ in range(epoch.epoch - done):  # more than one where a run is resumed
                next(bar, None)
            done = epoch.epoch
            ends.append(time.perf_counter())
            print(line(epoch, recipe.epochs, left(ends, epoch.seconds, recipe.epochs - done)), flush=True)
            log(epoch)

        try:
            run = fit(trainer, folder=out, resume=resume, keep_every=keep_every, each=told)
        except KeyboardInterrupt:
            if out is None or not done:
                raise
            raise Interrupted(f"{done} of {recipe.epochs} epochs are in {out}; add --resume to go on") from None
    print(summary(run, out))


def plan(trainer: Any) -> str:
    """Text on the training that is about to start: data, parameters, steps and memory."""
    recipe, data = trainer.recipe, trainer.dataset
    images, tests = data.train.images, data.test.images
    steps = trainer.steps_per_epoch
    shape = " x ".join(map(str, images.shape[1:]))
    size = "".join(f" {name} {value}" for name in ("depth", "width") if (value := getattr(recipe, name)) is not None)
    precision = ", bfloat16" if recipe.bfloat16 else ""
    return (
        f"data     {data.name}: {len(images):,} images {shape} to train on, {len(tests):,} to test on, "
        f"{data.classes} classes\n"
        f"network  {recipe.model}{size}, {recipe.normalization}: {trainer.parameters:,} parameters\n"
        f"steps    {recipe.epochs} epochs of {steps} = {recipe.epochs * steps:,} steps of {recipe.batch} images, "
        f"{recipe.optimizer}, learning rate {recipe.learning_rate:g}{precision}\n"
        f"memory   {memory(trainer)}"
    )


def memory(trainer: Any) -> str:
    """Text on the memory that training holds at once, from shapes; the compiler's temporaries come on top."""
    import jax

    from ntk_analysis.common.memory import gib
    from ntk_analysis.training.memory import kept_by

    state = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(trainer.init, 0))]
    images = sum(part.images.nbytes for part in (trainer.dataset.train, trainer.dataset.test))
    with jax.numpy_dtype_promotion("standard"):  # as Flax needs it
        kept = sum(kept_by(trainer.shapes, trainer.input_shape).values())
    return f"{gib(kept)} for the backward pass, {gib(sum(state))} for weights and optimiser, {gib(images)} for images"


def line(epoch: Any, epochs: int, time_left: str) -> str:
    """The line that reports one epoch."""
    last = epoch.last_bn_variance
    variance = "" if last is None else f"  last BN variance {sum(last) / len(last):.3g}"
    return (
        f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}  loss {epoch.train_loss:.4f} ({epoch.train_accuracy:.1%})  "
        f"test {epoch.test_loss:.4f} ({epoch.test_accuracy:.1%})  lr {epoch.learning_rate:.3g}{variance}  "
        f"{epoch.seconds:.3g} s{time_left}"
    )


def left(ends: list[float], first: float, todo: int) -> str:
    """The time left, from the times at which epochs ended; after one epoch, from its length with compilation."""
    if not todo:
        return ""
    seconds = todo * (first if len(ends) == 1 else (ends[-1] - ends[0]) / (len(ends) - 1))
    told = f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
    return f", {'at most ' if len(ends) == 1 else ''}{told} left"


def summary(run: Any, out: Path | None) -> str:
    """The line that reports the result of training."""
    last = run.epochs[-1]
    kept = "" if out is None else f"; in {out}"
    if run.diverged_at is not None:
        return (
            f"DIVERGED in epoch {last.epoch}: training loss {last.train_loss:.3g}, test loss {last.test_loss:.3g}; "
            f"try a smaller --lr or a longer --warmup{kept}"
        )
    best = max(run.epochs, key=lambda epoch: epoch.test_accuracy)
    return (
        f"test accuracy {last.test_accuracy:.2%} after {last.epoch} epochs, best {best.test_accuracy:.2%} in epoch "
        f"{best.epoch}; training accuracy {last.train_accuracy:.2%}{kept}"
    )


def tensorboard_log(folder: Path | None) -> Any:
    """A function that writes an epoch for TensorBoard; without a folder, one that does nothing.

    Raises:
        ImportError: tensorboardX is not installed.
    """
    if folder is None:
        return lambda epoch: None
    try:
        writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))
    except ImportError as error:
        raise ImportError("--tensorboard needs tensorboardX: pip install tensorboardX, or leave it out") from error

    def log(epoch: Any) -> None:
        for name in ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            writer.add_scalar(name, getattr(epoch, name), epoch.epoch)
        writer.flush()

    return log
