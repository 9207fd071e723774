"""How much memory there is, and a clear error before more than that is taken."""

import jax
import psutil


def available_bytes() -> int:
    """Free memory in bytes of JAX's default device, or of the machine if the device is its processor."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"]) - int(statistics.get("bytes_in_use", 0))
    return int(psutil.virtual_memory().available)


def require_memory(needed: int, what: str, cure: str) -> None:
    """Raises MemoryError, with what `what` needs and the `cure`, if that is more than is available."""
    available = available_bytes()
    if needed > available:
        raise MemoryError(f"{what} needs about {gib(needed)}, {gib(available)} are available: {cure}")


def gib(count: int | float) -> str:
    """A number of bytes as text in GiB."""
    return f"{count / 2**30:.3g} GiB"
