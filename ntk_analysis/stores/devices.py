"""Tiles on all devices of this machine: one tile for each at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ntk_analysis.common.progress import Track
from ntk_analysis.stores.grid import Tile
from ntk_analysis.stores.runs import Job, Runner, Sink, Steps, kept


@dataclass(frozen=True)
class Devices(Runner):
    """Computes tiles on devices of this machine.

    Attributes:
        chosen: devices to use; None takes all that JAX sees, or the one that `jax.default_device` names.
    """

    chosen: tuple[jax.Device, ...] | None = None

    @property
    def devices(self) -> list[jax.Device]:
        """The devices that compute tiles."""
        if self.chosen is not None:
            return list(self.chosen)
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        return jax.local_devices() if default is None else [jnp.zeros(()).device]

    @property
    def parallel(self) -> int:
        """Number of devices: each computes one tile at a time."""
        return len(self.devices)

    @property
    def share(self) -> int:
        """Number of tiles in one memory: 1 if devices have their own memory; processors share the machine's."""
        return len(self.devices) if self.devices[0].platform == "cpu" else 1

    def run(self, job: Job, todo: Sequence[Tile], sink: Sink, track: Track) -> None:
        """Computes these tiles, as many at a time as there are devices."""
        devices = self.devices
        if len(devices) > 1 and len(todo) > 1:
            steps = Steps(job.several(todo, devices), len(todo))
            kept(track(steps, job.description), sink)
            return
        with jax.default_device(devices[0]):
            tiles = job.tiles()
            kept(((tile, tiles(*tile)) for tile in track(todo, job.description)), sink)
