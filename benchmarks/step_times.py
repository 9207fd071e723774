"""Time of a training step with MimicNorm beside batch norm's on this device, in turns.

    uv run python benchmarks/step_times.py vgg16 resnet18

writes benchmarks/results/step_times.json: the processors' seconds of whole steps, with augmentation, gradient and
update, of both normalisations in turns, and of each pair of neighbours the ratio.
"""

import argparse

import jax
import numpy as np
from gpu_throughput import recipe_of
from timing import Call, header, timed, write

from ntk_analysis.training.loop import Trainer, epoch_key
from ntk_analysis.training.memory.measuring import noise

NETWORKS = ("vgg16", "resnet18", "shufflenet_v2_x1_0")


def step(network: str, normalization: str, batch: int) -> Call:
    """A call that takes one step of training and waits for it."""
    trainer = Trainer(recipe_of(network, normalization, batch), noise(batch, 2))
    batches, keys = trainer.order(epoch_key(0, 1))
    state = trainer.init(0)

    def call() -> object:
        nonlocal state
        state, metrics = jax.block_until_ready(trainer.step(state, (batches[0], keys[0])))
        return metrics

    return call


def compared(network: str, batch: int, rounds: int) -> dict[str, object]:
    """Processors' seconds of a step by normalisation, and MimicNorm's over batch norm's in each round."""
    calls = {name: step(network, name, batch) for name in ("batch_norm", "mimic_norm")}
    for call in calls.values():
        call()  # compiles
    seconds = np.array([[timed(call)[1] for call in calls.values()] for _ in range(rounds)])
    ratios = np.sort(seconds[:, 1] / seconds[:, 0])
    return {
        "network": network,
        "batch": batch,
        **{f"{name}_cpu_s": round(float(each), 2) for name, each in zip(calls, np.median(seconds, 0), strict=True)},
        "mimic_over_batch_norm": {
            name: round(float(value), 3)
            for name, value in (("median", np.median(ratios)), ("least", ratios[0]), ("largest", ratios[-1]))
        },
    }


def main() -> None:
    """Measures the networks that are named and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    found = header("whole steps of training at CIFAR size, float32", options.rounds)
    write("step_times", found | {"rows": [compared(name, options.batch, options.rounds) for name in options.networks]})


if __name__ == "__main__":
    main()
