"""Memory and peak of known devices, by the names that plans use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.config.errors import ConfigError
from retro.train.peak import known_gpu

GIB, MIB = 2**30, 2**20

#: Name -> (name in the table of peaks, GiB that a process finds: the driver reports somewhat less than the vendor's
#: figure, whose GB are GiB for most).
KNOWN_DEVICES: dict[str, tuple[str, float]] = {
    "A100-40": ("A100", 39.4),
    "A100-80": ("A100", 79.1),
    "H100": ("H100", 79.1),
    "H100-PCIe": ("H100 PCIe", 79.1),
    "H100-NVL": ("H100 NVL", 93.1),
    "H200": ("H200", 139.8),
    "GH200": ("GH200", 94.5),
    "B200": ("B200", 178.3),
    "A30": ("A30", 23.5),
    "A40": ("A40", 44.3),
    "L4": ("L4", 22.0),
    "L40S": ("L40S", 44.4),
    "RTX-3090": ("RTX 3090", 23.6),
    "RTX-4090": ("RTX 4090", 23.5),
    "RTX-A6000": ("RTX A6000", 47.4),
}


@dataclass(frozen=True)
class Device:
    """What a plan knows of one device: memory in bytes, peak in 10^12 operations per second of the run's precision;
    None = not known. on_cpu: it is no GPU."""

    name: str
    memory: int | None
    tflops: float | None
    on_cpu: bool


def find_device(
    name: str | None, memory_gib: float | None, precision: Literal["fp32", "bf16"], tflops: float | None, on_cpu: bool
) -> Device:
    """The device `name` ("cpu", one of KNOWN_DEVICES in any case, None = some GPU, or on_cpu); memory_gib and tflops
    take precedence over the table's. Raises ConfigError for an unknown name."""
    memory = None if memory_gib is None else round(memory_gib * GIB)
    if name is None or name.lower() == "cpu":
        on_cpu = on_cpu or name is not None
        return Device("CPU" if on_cpu else "GPU", memory, tflops, on_cpu)
    known = {known.lower(): known for known in KNOWN_DEVICES}.get(name.lower())
    if known is None:
        raise ConfigError(
            f"plan.device: {name!r} is not known; known: cpu, {', '.join(KNOWN_DEVICES)}; for another one set "
            "plan.memory_gib and peak_tflops instead"
        )
    if on_cpu:
        raise ConfigError(f"plan.device: {known} is a GPU, but the configuration has device: cpu; change one of them")
    listed, gib = KNOWN_DEVICES[known]
    return Device(
        known,
        round(gib * GIB) if memory is None else memory,
        known_gpu(listed, precision) if tflops is None else tflops,
        on_cpu=False,
    )
