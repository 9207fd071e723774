"""How long a kernel takes on machines that are not at hand."""

from dataclasses import dataclass

from ntk_analysis.memory import gib


@dataclass(frozen=True)
class Estimate:
    """Time and storage of a kernel on so many devices.

    Assumes that all tiles cost the same and that devices take them in rounds, idle at the end of the last; that each
    device keeps up its rate throughout; and that tiles are written while others are computed. Loading inputs and
    compiling, minutes at most, are not in it.

    Attributes:
        devices: number of them.
        tiles: to compute.
        rounds: tiles that the busiest device computes.
        flops: of the whole kernel.
        flops_per_second: of each device, sustained, as given or measured.
        storage_bytes: of the kernel on disk.
        writes_per_second: bytes that the storage takes of all devices together; None if it is not known to be a limit.
    """

    devices: int
    tiles: int
    rounds: int
    flops: float
    flops_per_second: float
    storage_bytes: int
    writes_per_second: float | None = None

    @property
    def compute_seconds(self) -> float:
        """Time of the busiest device."""
        return self.rounds * self.flops / self.tiles / self.flops_per_second

    @property
    def seconds(self) -> float:
        """Time of computing or of writing, whichever is longer."""
        return max(self.compute_seconds, self.storage_bytes / self.writes_per_second if self.writes_per_second else 0)

    @property
    def hours(self) -> float:
        """The same in hours."""
        return self.seconds / 3600

    def summary(self) -> str:
        """One line."""
        rate = self.storage_bytes / self.compute_seconds
        if self.writes_per_second is None:
            limit = f"if the storage takes {gib(rate)}/s"
        else:
            limit = f"limited by {'computing' if self.writes_per_second >= rate else 'storage'}"
        return (
            f"{self.tiles} tiles on {self.devices} devices, {self.rounds} for the busiest: about {self.hours:.3g} h at "
            f"{self.flops_per_second:.3g} FLOP/s each, {limit}; {gib(self.storage_bytes)} on disk"
        )
