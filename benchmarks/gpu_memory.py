"""Memory of one training step: the allocator's peak, and the temporaries of the compiled gradient."""

from typing import Any

NETWORKS, NORMALIZATIONS, BATCHES = (
    ("vgg16", "resnet18", "shufflenet_v2_x1_0"),
    ("batch_norm", "mimic_norm"),
    (256, 1024),
)
MIB = 2**20


def units(small: bool, dtype: str) -> dict[str, dict[str, Any]]:
    """Networks by normalisation and batch; the account is one of float32."""
    del dtype
    networks, batches = (("mlp",), (8,)) if small else (NETWORKS, BATCHES)
    return {
        f"{network}, {name}, batch {batch}": {"network": network, "normalization": name, "batch": batch}
        for batch in batches
        for network in networks
        for name in NORMALIZATIONS
    }


def measure(network: str, normalization: str, batch: int) -> dict[str, Any]:
    """MiB of one step's peak, with weights, optimizer and images, where the device tells it; and of temporaries."""
    from gpu_throughput import recipe_of

    from ntk_analysis.training.memory import account
    from ntk_analysis.training.memory.measuring import peak_of_step

    peak = peak_of_step(recipe_of(network, normalization, batch))
    compiled = account(network, normalization, batch=batch, compiled=True)
    found = {"peak": peak, "temporaries": compiled.temporaries, "kept": compiled.kept}
    return {f"{name}_mib": None if size is None else round(size / MIB, 1) for name, size in found.items()}
