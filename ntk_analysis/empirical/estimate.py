"""How long a kernel takes on machines that are not at hand."""

from dataclasses import dataclass

from ntk_analysis.common.memory import gib


@dataclass(frozen=True)
class Estimate:
    """Estimated time and storage of a kernel on a number of devices.

    The estimate assumes that all tiles cost the same; that devices take tiles in rounds, and some are idle in the last
    round; that each device keeps up its rate throughout; and that tiles are written while others are computed. Loading
    inputs and compiling, which take minutes at most, are not included.

    Attributes:
        devices: number of devices.
        tiles: number of tiles to compute.
        rounds: number of tiles that the busiest device computes.
        flops: floating-point operations of the whole kernel.
        flops_per_second: sustained operations per second of each device, as given or measured.
        storage_bytes: bytes of the kernel on disk.
        writes_per_second: bytes per second that the storage takes of all devices together; None if no limit is known.
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
        """Computing time of the busiest device, in seconds."""
        return self.rounds * self.flops / self.tiles / self.flops_per_second

    @property
    def seconds(self) -> float:
        """Computing time or writing time in seconds, whichever is longer."""
        return max(self.compute_seconds, self.storage_bytes / self.writes_per_second if self.writes_per_second else 0)

    @property
    def hours(self) -> float:
        """Computing time or writing time in hours, whichever is longer."""
        return self.seconds / 3600

    def summary(self) -> str:
        """The estimate as one line of text."""
        rate = self.storage_bytes / self.compute_seconds
        if self.writes_per_second is None:
            limit = f"if the storage takes {gib(rate)}/s"
        else:
            limit = f"limited by {'computing' if self.writes_per_second >= rate else 'storage'}"
        return (
            f"{self.tiles} tiles on {self.devices} devices, {self.rounds} for the busiest: about {self.hours:.3g} h at "
            f"{self.flops_per_second:.3g} FLOP/s each, {limit}; {gib(self.storage_bytes)} on disk"
        )
