"""A device in four numbers, and the devices whose numbers are known. README.md says where each comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from handlens_export.errors import UnsupportedError
from handlens_runtime.verdicts import cache_folder

DESKTOP = "this-desktop"
CALIBRATION = "device.json"


@dataclass(frozen=True)
class Device:
    """What is known of a device. `note` says what its numbers speak of."""

    name: str
    bandwidth: float
    """Bytes a second between memory and processor: the data sheet's, or what this machine reads."""
    int8: float
    """Operations a second in products of int8 weights, two to a multiplication with its addition."""
    memory: int
    """Bytes that one app may take."""
    efficiency: float
    """Share of `bandwidth` and of `int8` that a network's pass reaches."""
    note: str = ""

    @property
    def read_rate(self) -> float:
        """Bytes of weights a second that decoding really reads."""
        return self.bandwidth * self.efficiency

    @property
    def product_rate(self) -> float:
        """Operations a second that prefill and the vision encoder really do."""
        return self.int8 * self.efficiency


PHONE_EFFICIENCY = 0.438
NPU = "figures of the NPU with its maker's compiler; HandLens's programs run on the CPU and prefill slower"
CPU = "figures of the CPU, which is what HandLens's programs run on"
SHIPPED: tuple[Device, ...] = (
    Device("dimensity-9300", 76.8e9, 7.9e12, 6_000_000_000, PHONE_EFFICIENCY, NPU),
    Device("snapdragon-8-gen-3", 76.8e9, 1.16e12, 4_000_000_000, PHONE_EFFICIENCY, CPU),
    Device("snapdragon-8-gen-3-npu", 76.8e9, 11.7e12, 4_000_000_000, PHONE_EFFICIENCY, NPU),
    Device("snapdragon-8-elite", 85.3e9, 1.87e12, 6_000_000_000, PHONE_EFFICIENCY, CPU),
    Device("snapdragon-8-elite-npu", 85.3e9, 12.7e12, 6_000_000_000, PHONE_EFFICIENCY, NPU),
)
"""Fitted by `evidence.fit`, which a test repeats; half of the memory that the smallest such phone is sold with."""


def names() -> tuple[str, ...]:
    """What `--device` takes."""
    return (*(device.name for device in SHIPPED), DESKTOP)


def find(name: str) -> Device:
    """The device called `name`. Raises UnsupportedError for an unknown one and for a desktop not calibrated yet."""
    for device in SHIPPED:
        if device.name == name:
            return device
    if name == DESKTOP:
        return _calibrated()
    raise UnsupportedError(f"There is no device {name}; choose one of {', '.join(names())}.")


def keep(device: Device) -> Path:
    """Write this machine's numbers into the cache folder, for `find`; returns the file."""
    path = cache_folder() / CALIBRATION
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {name: getattr(device, name) for name in ("bandwidth", "int8", "memory", "efficiency", "note")}
    path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return path


def _calibrated() -> Device:
    path = cache_folder() / CALIBRATION
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        numbers = {name: float(kept[name]) for name in ("bandwidth", "int8", "efficiency")}
        memory, note = int(kept["memory"]), str(kept["note"])
        if min(*numbers.values(), memory) <= 0:
            raise ValueError("a number that is not positive")
    except FileNotFoundError:
        raise UnsupportedError(
            f"{DESKTOP} has not been measured yet; run `handlens plan --calibrate` while nothing else runs."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedError(
            f"{path} is no calibration ({type(error).__name__}: {error}); run `handlens plan --calibrate` again."
        ) from None
    return Device(DESKTOP, numbers["bandwidth"], numbers["int8"], memory, numbers["efficiency"], note)
