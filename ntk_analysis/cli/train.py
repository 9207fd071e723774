"""Finite networks, trained."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ntk_analysis.cli.options import TRAINED_NAMES, DataSet, ModelOptions, StepOptions, recipe_of
from ntk_analysis.cli.progress import Interrupted, progress

if TYPE_CHECKING:
    from ntk_analysis.training.loop import Run, Trainer
    from ntk_analysis.training.metrics import Epoch
    from ntk_analysis.training.recipe import Recipe


@dataclass(frozen=True)
class TrainedModelOptions(ModelOptions, title="Network"):
    """Options of the network; its normalisation is one, and not many as in a sweep."""

    normalization: Annotated[str | None, Option(help=f"Normalisation: {TRAINED_NAMES}. [default: none]")] = None


@dataclass(frozen=True)
class TrainedStepOptions(StepOptions, title="Steps"):
    """Options of its training; learning rate and seed are one each, and not many as in a sweep."""

    learning_rate: Annotated[
        float | None, Option("--lr", help="Learning rate behind warm-up and before decay. [default: 0.1]")
    ] = None
    seed: Annotated[
        int | None,
        Option(help="Seed of the first weights, the order of images, augmentation and dropout. [default: 0]"),
    ] = None


def train(
    data: DataSet = "digits",
    *,
    out: Annotated[
        Path | None,
        Option(
            metavar="DIR", help="Folder for metrics and checkpoints; without it, nothing is kept.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on with the run that is in --out; begin one where there is none.")
    ] = False,
    keep_every: Annotated[
        int | None,
        Option(
            metavar="N", help="Keep the checkpoint of every N-th epoch, too. [default: keep the last two only]", min=1
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        Option(metavar="DIR", help="Folder for files of TensorBoard; this needs tensorboardX.", show_default=False),
    ] = None,
    network: TrainedModelOptions,
    steps: TrainedStepOptions,
) -> None:
    """Trains a network with one of the paper's normalisations; shows losses and accuracies by epoch.

    Training that diverges is a result: it is reported and recorded, and the exit status is 0. With --out DIR the
    metrics are in DIR/metrics.jsonl, and --resume goes on where a run ended or was killed, to the same numbers.
    """
    if resume and out is None:
        raise ValueError("--resume needs --out DIR, the folder of the run")
    if keep_every is not None and out is None:
        raise ValueError("--keep-every needs --out DIR, the folder of the checkpoints")
    recipe = recipe_of(network, steps, [])
    execute(recipe, data, out=out, resume=resume, keep_every=keep_every, tensorboard=tensorboard)


def execute(
    recipe: "Recipe", source: str, *, out: Path | None, resume: bool, keep_every: int | None, tensorboard: Path | None
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


def plan(trainer: "Trainer") -> str:
    """Text on the training that is about to start: data, parameters, steps and memory."""
    recipe, data = trainer.recipe, trainer.dataset
    images, tests = data.train.images, data.test.images
    steps = trainer.steps_per_epoch
    shape = " x ".join(map(str, images.shape[1:]))
    size = "".join(f" {name} {value}" for name in ("depth", "width") if (value := getattr(recipe, name)) is not None)
    size += ", as published" if "published" in (recipe.classifier, recipe.architecture) else ""
    precision = ", bfloat16" if recipe.bfloat16 else ""
    return (
        f"data     {data.name}: {len(images):,} images {shape} to train on, {len(tests):,} to test on, "
        f"{data.classes} classes\n"
        f"network  {recipe.model}{size}, {recipe.normalization}: {trainer.parameters:,} parameters\n"
        f"steps    {recipe.epochs} epochs of {steps} = {recipe.epochs * steps:,} steps of {recipe.batch} images, "
        f"{recipe.optimizer}, learning rate {recipe.learning_rate:g}{precision}\n"
        f"memory   {memory(trainer)}"
    )


def memory(trainer: "Trainer") -> str:
    """Text on the memory that training holds at once, from shapes; the compiler's temporaries come on top."""
    import jax

    from ntk_analysis.common.memory import gib
    from ntk_analysis.training.memory import kept_by

    state = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(trainer.init, 0))]
    images = sum(part.images.nbytes for part in (trainer.dataset.train, trainer.dataset.test))
    with jax.numpy_dtype_promotion("standard"):  # as Flax needs it
        kept = sum(kept_by(trainer.shapes, trainer.input_shape).values())
    return f"{gib(kept)} for the backward pass, {gib(sum(state))} for weights and optimizer, {gib(images)} for images"


def line(epoch: "Epoch", epochs: int, time_left: str) -> str:
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


def summary(run: "Run", out: Path | None) -> str:
    """The line that reports the result of training."""
    from ntk_analysis.common.memory import gib, peak_bytes

    last = run.epochs[-1]
    peak = peak_bytes()
    kept = ("" if peak is None else f"; at most {gib(peak)} on the device") + ("" if out is None else f"; in {out}")
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


def tensorboard_log(folder: Path | None) -> Callable[..., None]:
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

    def log(epoch: "Epoch") -> None:
        for name in ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            writer.add_scalar(name, getattr(epoch, name), epoch.epoch)
        writer.flush()

    return log
