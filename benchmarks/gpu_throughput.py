"""Training throughput in images a second at CIFAR size, beside PyTorch: the same networks, recipe and augmentation."""

import importlib.util
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntk_analysis.training.recipe import Recipe

NETWORKS, NORMALIZATIONS, BATCH, STEPS = ("resnet18", "vgg16"), ("batch_norm", "mimic_norm"), 256, 60


def units(small: bool, dtype: str) -> dict[str, dict[str, Any]]:
    """Networks by normalisation, of JAX and of PyTorch."""
    networks, batch, steps = (("mlp",), 8, 3) if small else (NETWORKS, BATCH, STEPS)
    return {
        f"{side}, {network}, {name}": {
            "side": side,
            "network": network,
            "normalization": name,
            "batch": batch,
            "steps": steps,
            "dtype": dtype,
        }
        for network in networks
        for name in NORMALIZATIONS
        for side in ("jax", "torch")
    }


def measure(side: str, network: str, normalization: str, batch: int, steps: int, dtype: str) -> dict[str, Any]:
    """Images a second of the second and third `steps` steps, and the seconds of the first, which compile."""
    if side == "torch":
        if importlib.util.find_spec("torch") is None:
            return {"not measured": "PyTorch is not installed: uv run --with torch python benchmarks/gpu.py throughput"}
        import gpu_torch

        passes = gpu_torch.passes(network, normalization, batch, steps, dtype)
    else:
        passes = _passes(network, normalization, batch, steps, dtype)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        next(passes)
        seconds.append(time.perf_counter() - start)
    return {"images_per_s": round(batch * steps / min(seconds[1:])), "first_s": round(seconds[0], 2)}


def _passes(network: str, normalization: str, batch: int, steps: int, dtype: str) -> Any:
    """Yields after each pass over the images; the test images are one batch."""
    import jax

    from ntk_analysis.training.loop import Trainer, epoch_key
    from ntk_analysis.training.memory.measuring import noise

    recipe = recipe_of(network, normalization, batch, bfloat16=dtype == "bfloat16")
    trainer = Trainer(recipe, noise(batch * steps, batch))
    state, number = trainer.init(0), 0
    while True:
        number += 1
        state, metrics = trainer.epoch(state, epoch_key(0, number))
        jax.block_until_ready(metrics)
        yield


def recipe_of(network: str, normalization: str, batch: int, *, bfloat16: bool = False) -> "Recipe":
    """SGD with momentum and weight decay on cropped and mirrored images, of torchvision's networks at CIFAR size."""
    from ntk_analysis.training.recipe import Recipe

    return Recipe(
        model=network,
        normalization=normalization,
        min_fan_in=2,
        learning_rate=1e-3,
        weight_decay=5e-4,
        batch=batch,
        augment=True,
        bfloat16=bfloat16,
    )
