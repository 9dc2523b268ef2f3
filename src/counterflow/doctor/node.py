"""Everything that one node's processes share, looked at by one of them."""

import os
from pathlib import Path

import torch

from counterflow.doctor import clock, cores, network, software, storage
from counterflow.doctor.check import Check
from counterflow.doctor.place import Place


def look(place: Place, run_dir: Path) -> list[Check]:
    """Needs no other process."""
    settings = torch.__config__.show()
    usable = len(os.sched_getaffinity(0))
    available = network.interfaces()
    resolution = network.resolve(place.host)
    way, address = network.gloo_address(os.environ.get("GLOO_SOCKET_IFNAME"), resolution.address, available)
    checks = [
        software.torchvision_loads(),
        software.gloo(settings),
        software.nccl(settings, torch.cuda.device_count(), place.local_size),
        cores.cores(usable, place.local_size),
        cores.threads(os.environ.get("OMP_NUM_THREADS"), usable, place.local_size),
        cores.memory(cores.available_memory(), place.local_size),
        network.host_name(resolution),
        network.interface(way, address, place.one_node, available),
    ]
    if address is not None:
        checks.append(network.port(address))
    return [*checks, storage.shared_memory(), storage.run_folder(run_dir), clock.resolution()]
