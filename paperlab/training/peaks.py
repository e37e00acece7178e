"""Peak dense bfloat16 FLOP/s of accelerators, for the model FLOPs utilisation. Vendors' data sheets, without sparsity.

Unknown devices (and CPUs) have no entry: then no utilisation is shown, rather than a wrong one.
"""

from typing import Any

PEAKS = {
    "NVIDIA B200": 2.25e15,
    "NVIDIA GB200": 2.5e15,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device: Any) -> float | None:
    """By the longest name that begins the device's kind; None where none does. A TPU v2 or v3 device is one core."""
    kind = device.device_kind
    known = [name for name in PEAKS if kind == name or kind.startswith((name + " ", name + "-"))]
    return PEAKS[max(known, key=len)] if known else None
