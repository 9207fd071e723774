"""What results were made by: versions of the software and the device."""

import os
import platform
from importlib.metadata import version


def versions(*packages: str) -> dict[str, str]:
    """Version of Python and of each package by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def made_by(*packages: str) -> dict[str, str]:
    """Versions of the software, and the name of the device that JAX computes with."""
    import jax  # versions alone are told without it

    kind = jax.local_devices()[0].device_kind
    return {**versions(*packages), "device": f"{kind} ({platform.machine()}, {os.cpu_count()} cores)"}
