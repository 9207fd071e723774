"""How much memory there is, within all limits of this process, and a clear error before more than that is taken."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}


def available_bytes() -> int:
    """Free memory in bytes of JAX's default device, or `host_bytes` if the device is the processor."""
    import jax  # which readers of images do without

    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"]) - int(statistics.get("bytes_in_use", 0))
    return host_bytes()


def peak_bytes() -> int | None:
    """Largest memory in bytes that JAX's default device has held for this process at once; None if it does not tell."""
    import jax

    told = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if told is None else int(told)


def host_bytes() -> int:
    """Memory in bytes that this process may still take: free on the machine, within its control groups and limits."""
    return max(0, min(int(psutil.virtual_memory().available), *_left_in_groups(), *_left_to_process()))


def require_memory(needed: int, what: str, cure: str) -> None:
    """Raises MemoryError, with what `what` needs and the `cure`, if that is more than is available."""
    available = available_bytes()
    if needed > available:
        raise MemoryError(f"{what} needs about {gib(needed)}, {gib(available)} are available: {cure}")


def gib(count: int | float) -> str:
    """A number of bytes as text in GiB."""
    return f"{count / 2**30:.3g} GiB"


def _left_to_process() -> Iterator[int]:
    """Bytes left below the limit of the process's address space (`ulimit -v`), if it has one."""
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            yield limit - int(psutil.Process().memory_info().vms)


def _left_in_groups(process: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes left in each control group of Linux that limits this process, as containers and batch systems make them.

    Files that the system caches are in a group's use, and are given up when memory is wanted.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if not controllers:  # version 2
            root, limit, use, cache = mounted, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, use = mounted / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = root / place.lstrip("/")
        for folder in (group, *group.parents):  # a limit holds for all groups below
            if not folder.is_relative_to(root):
                break
            try:
                told = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                yield int((folder / limit).read_text()) - int((folder / use).read_text()) + int(told.get(cache, 0))
            except (OSError, ValueError):  # the group has no limit, or lies outside of what a container sees
                continue


def memory_budget(memory: str | int | None) -> int:
    """Number of bytes of an amount of memory: a number, "4GiB" or "500 MB", or for None half of what is free.

    Raises:
        ValueError: the text is not an amount of memory, or it is not positive.
    """
    if memory is None:
        return available_bytes() // 2
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", str(memory))
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise ValueError(f"got memory={memory!r}, expected bytes or an amount such as '4GiB' or '500MB'")
    return int(float(match[1]) * UNITS[match[2]])
