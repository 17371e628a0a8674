"""System metrics of this machine, with the names and units of MLflow's own."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch


class System:
    """Read the load of this machine. Without a GPU a reading takes under a millisecond.

    Megabytes are 10⁶ bytes, as MLflow's are.

    Args:
        folder: its disk is read.
        device: this worker's. Other GPUs are not read, since that would take memory on them.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        psutil.cpu_percent()  # a reading is the average since the last one
        self._network = psutil.net_io_counters()

    def read(self) -> dict[str, float]:
        """Return the present metrics. The CPU's is the average since the last reading."""
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
        }
        with suppress(OSError):  # the mount is away
            disk = psutil.disk_usage(str(self.folder))
            values |= {
                "disk_usage_percentage": disk.percent,
                "disk_usage_megabytes": disk.used / 1e6,
                "disk_available_megabytes": disk.free / 1e6,
            }
        if self._network and (network := psutil.net_io_counters()):  # some containers have none
            values |= {
                "network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv) / 1e6,
                "network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent) / 1e6,
            }
        if self.device.type == "cuda":
            values |= _gpu(self.device)
        return {f"system/{name}": value for name, value in values.items()}


def _gpu(device: torch.device) -> dict[str, float]:
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    values = {
        "memory_usage_megabytes": (total - free) / 1e6,
        "memory_usage_percentage": 100 * (total - free) / total,
    }
    # Without NVIDIA's library, or where it does not know this device, these two are left out.
    with suppress(Exception):
        values["utilization_percentage"] = torch.cuda.utilization(index)
        values["power_usage_watts"] = torch.cuda.power_draw(index) / 1000
    return {f"gpu_{index}_{name}": value for name, value in values.items()}
