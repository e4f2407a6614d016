"""Give the rates of one device and its host: presets with their source, and what is fitted to measurements.

Arithmetic alone.

P parameters, B windows, C*D inputs.
"""

import math
from dataclasses import dataclass

from spkid_dist.config.network import NetworkOptions

STACKED_VALUE_BYTES = 4  # batches are float32


@dataclass(frozen=True, kw_only=True)
class DeviceRates:
    """Rates of one process and its device, for one network and one size of window; `source` says where they are from.

    Args:
        step_overhead_seconds: of a step, whatever its size: launches, the optimiser, the loop.
        compute_windows_per_second: forward and backward, beyond the overhead.
        stack_windows_per_second: stacking of batches.
        fill_windows_per_second: reading from memory, checking and laying out of pools, in the background.
        bus_bytes_per_second: of frames from the host to the device; None where they share memory.
        allreduce_hop_seconds: of an all-reduce among the processes, for each doubling of their number.
        first_batch_seconds: from a process with its imports to its first batch, of a dataset of no size.
        process_bytes: host memory of a process, besides its pools.
    """

    source: str
    step_overhead_seconds: float
    compute_windows_per_second: float
    stack_windows_per_second: float
    fill_windows_per_second: float
    bus_bytes_per_second: float | None
    allreduce_hop_seconds: float
    first_batch_seconds: float
    process_bytes: int


@dataclass(frozen=True, kw_only=True)
class DevicePreset:
    """A device by its data sheet, and what a host of it takes; units as in `DeviceRates`."""

    source: str
    flops: float
    memory_bytes_per_second: float
    bus_bytes_per_second: float
    step_overhead_seconds: float
    fill_windows_per_second: float
    allreduce_hop_seconds: float
    first_batch_seconds: float
    process_bytes: int

    def rates(self, network: NetworkOptions) -> DeviceRates:
        """The rates for a network; on the device, a stacked value is read once and written once."""
        return DeviceRates(
            source=self.source,
            step_overhead_seconds=self.step_overhead_seconds,
            compute_windows_per_second=self.flops / network.flops_per_window,
            stack_windows_per_second=self.memory_bytes_per_second / 2 / (STACKED_VALUE_BYTES * network.in_features),
            fill_windows_per_second=self.fill_windows_per_second,
            bus_bytes_per_second=self.bus_bytes_per_second,
            allreduce_hop_seconds=self.allreduce_hop_seconds,
            first_batch_seconds=self.first_batch_seconds,
            process_bytes=self.process_bytes,
        )


PRESETS = {
    # 67 TFLOP/s of fp32 and 3.35 TB/s: NVIDIA H100 SXM data sheet. 54 GB/s of the bus: what PCIe 5.0 x16 carries of its 63.
    # Steps of 1,000 windows of 840 values as one CUDA graph: 11 to 16 M windows/s by arithmetic, 74 us, of which compute and
    # stacking take 10. (Eager steps: 3 to 6 M, bound by launches.)
    # Filling, all-reduce, start-up and memory of a process are assumptions, to be replaced by the flags.
    "h100": DevicePreset(
        source="one H100 SXM by its data sheet, a step as one CUDA graph by arithmetic; host, all-reduce and start-up assumed",
        flops=67e12,
        memory_bytes_per_second=3.35e12,
        bus_bytes_per_second=54e9,
        step_overhead_seconds=64e-6,
        fill_windows_per_second=16e6,
        allreduce_hop_seconds=10e-6,
        first_batch_seconds=1.0,
        process_bytes=3_000_000_000,
    ),
}


def fit_step(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Overhead in seconds and windows a second, of the seconds that steps of two sizes took: (windows, seconds) each.

    The larger one is met exactly. Where the smaller took as long, or longer in proportion, there is only overhead, or none.
    """
    (few, few_seconds), (many, many_seconds) = small, large
    if few == many or many_seconds <= few_seconds:
        return (0.0, many / many_seconds) if few == many else (many_seconds, math.inf)
    rate = (many - few) / (many_seconds - few_seconds)
    overhead = many_seconds - many / rate
    return (overhead, rate) if overhead >= 0 else (0.0, many / many_seconds)
