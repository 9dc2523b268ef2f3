"""Checks of what the processes of one node share: software, cores, memory, network, storage and clock."""

import math
import os
import platform
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from counterflow.doctor.check import Check, Status, with_timeout
from counterflow.metrics.provenance import torchvision_version
from counterflow.rank_info import RankInfo
from counterflow.transport.rendezvous import address

RANK_BYTES = 10**9
"""Least memory of a rank: torch itself, data and a small """
SHARED_BYTES = 64 * 2**20
"""Docker's default size of /dev/shm; more than this has to be free."""
FREE_BYTES = 10**9
"""Least free disk space for runs."""
SLOW_SYNC = 0.1
"""Seconds of an fsync; above this every saved file costs noticeable time."""
COARSE_TICK = 1e-3
"""Seconds between two ticks of the clock; above this waits cannot be measured."""

_CLOCK_SECONDS = 0.2
"""Longest time to watch the clock."""
_DISK_TIMEOUT = 3.0
"""Seconds before a file system counts as unresponsive."""
SLOW_NAME = 1.0
"""Seconds to resolve a name; above this it delays every start."""
_NAME_TIMEOUT = 3.0
"""Seconds before a name counts as unresolved."""
_LOOPBACK = "127.0.0.1"
_NONE = "none"


def check_machine(rank_info: RankInfo, run_dir: Path) -> list[Check]:
    """Run all checks of one node, without any other process."""
    settings = torch.__config__.show()
    cores = len(os.sched_getaffinity(0))
    available = interfaces()
    lookup = resolve(rank_info.host)
    reason, address = gloo_address(os.environ.get("GLOO_SOCKET_IFNAME"), lookup.address, available)
    return [
        check_torchvision(),
        check_gloo(settings),
        check_nccl(settings, torch.cuda.device_count(), rank_info.local_size),
        check_cores(cores, rank_info.local_size),
        check_threads(os.environ.get("OMP_NUM_THREADS"), cores, rank_info.local_size),
        check_memory(available_memory(), rank_info.local_size),
        check_host_name(lookup),
        check_interface(reason, address, rank_info.one_node, available),
        *([] if address is None else [check_port(address)]),
        check_shared_memory(),
        check_run_dir(run_dir),
        check_clock(),
    ]


def installed_versions() -> dict[str, str]:
    torchvision = torchvision_version() or _NONE
    return {"Python": platform.python_version(), "torch": str(torch.__version__), "torchvision": torchvision}


def ranks_by_value(values: Mapping[int, str]) -> dict[str, str]:
    """The ranks of every value, by value, such as ``rank 0, 2``."""
    return {
        value: f"rank {', '.join(str(rank) for rank in values if values[rank] == value)}" for value in values.values()
    }


def compare_versions(ranks: Mapping[int, Mapping[str, str]]) -> Check:
    """Check that all ranks have the same `installed_versions`.

    Other versions round differently, and may use another format of messages.
    """
    differences = []
    first = next(iter(ranks.values()))
    for name in first:
        holders = ranks_by_value({rank: versions.get(name, _NONE) for rank, versions in ranks.items()})
        if len(holders) > 1:
            differences.append(f"{name} " + "; ".join(f"{text} on {holding}" for text, holding in holders.items()))
    if differences:
        advice = "install the same versions on every node, and use its Python"
        return Check("versions", Status.FAIL, " / ".join(differences), advice)
    on_all = f" on all {len(ranks)} ranks" if len(ranks) > 1 else ""
    return Check("versions", Status.OK, ", ".join(f"{name} {text}" for name, text in first.items()) + on_all)


def check_torchvision() -> Check:
    """Check that torchvision can be imported: one that was built for another torch cannot."""
    try:
        import torchvision
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "install the torchvision that belongs to this torch"
        return Check("torchvision", Status.FAIL, f"does not load: {reason}", advice)
    return Check("torchvision", Status.OK, f"{torchvision.__version__} loads")


def built_with(backend: str, settings: str) -> bool:
    """Return True unless torch's printed build ``settings`` turn ``backend`` off."""
    option = re.search(rf"\bUSE_{backend.upper()}=(\w*)", settings)
    return option is None or option[1].upper() not in ("OFF", "0", "FALSE", "")


def check_gloo(settings: str) -> Check:
    if built_with("gloo", settings):
        return Check("gloo", Status.OK, "part of this torch")
    return Check("gloo", Status.FAIL, "not part of this torch", "install torch from https://pytorch.org")


def check_nccl(settings: str, devices: int, local_ranks: int) -> Check:
    """Check that NCCL can serve the ``devices``, the number of CUDA devices that this node's processes see."""
    available = built_with("nccl", settings)
    result = f"{'available' if available else 'not part of this torch'}; {devices} GPUs for {local_ranks} local ranks"
    if 0 < devices < local_ranks:
        advice = f"NCCL refuses two ranks on one GPU: --nproc_per_node={devices}, or engine.backend=gloo"
        return Check("nccl", Status.WARN, result, advice)
    if devices and not available:
        return Check("nccl", Status.WARN, result, "engine.backend=gloo, or a torch built for CUDA")
    return Check("nccl", Status.OK, result + ("" if devices else ": gloo carries the messages"))


def check_cores(cores: int, local_ranks: int) -> Check:
    """Check that every local rank has one of the ``cores`` that this process may run on."""
    advice = f"ranks take turns on a core and wait longer: --nproc_per_node={cores}, or a wider cpuset"
    return Check.warn_if(cores < local_ranks, "cores", f"{cores} usable for {local_ranks} local ranks", advice)


def check_threads(setting: str | None, cores: int, local_ranks: int) -> Check:
    """Check OMP_NUM_THREADS, the ``setting``. Training uses ``engine.threads``; other libraries use this variable."""
    if setting is None:
        return Check("threads", Status.OK, "OMP_NUM_THREADS is not set: engine.threads decides")
    share = max(1, cores // local_ranks)
    problem = ""
    if not setting.isdecimal() or int(setting) < 1:
        problem = " is no number of threads"
    elif int(setting) > share:
        problem = f" in {local_ranks} ranks on {cores} cores"
    return Check.warn_if(problem != "", "threads", f"OMP_NUM_THREADS={setting}{problem}", f"OMP_NUM_THREADS={share}")


def check_memory(available: int, local_ranks: int) -> Check:
    """Check that ``available`` bytes are enough for the local ranks."""
    result = f"{available / 1e9:.1f} GB available for {local_ranks} local ranks"
    advice = f"free some, or use fewer ranks: each needs at least {RANK_BYTES / 1e9:g} GB"
    return Check.warn_if(available < local_ranks * RANK_BYTES, "memory", result, advice)


def available_memory(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that are free or can be freed: of the machine, or of the container if its limit leaves fewer."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = 1024 * int(fields["MemAvailable"].split()[0])
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except OSError:  # no container, or cgroups of version 1
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    advice = "docker run --shm-size=1g, or mount a larger tmpfs: data loaders and NCCL need it"
    try:
        usage = with_timeout(_DISK_TIMEOUT, lambda: shutil.disk_usage(folder))
    except OSError as error:
        return Check("shared memory", Status.WARN, f"{folder}: {error.strerror or error}", advice)
    result = f"{folder}: {_size(usage.free)} free of {_size(usage.total)}"
    return Check.warn_if(usage.free <= SHARED_BYTES, "shared memory", result, advice)


def check_run_dir(folder: Path) -> Check:
    """Check space and speed of ``folder``, or of its nearest existing parent. Leaves no file behind."""
    try:
        place, free, seconds = with_timeout(_DISK_TIMEOUT, lambda: _probe_disk(folder))
    except OSError as error:
        reason = f"{folder}: not writable: {error.strerror or error}"
        return Check("run folder", Status.WARN, reason, "run.dir=, in a folder of your own")
    created = "" if place == folder else f" (to be made in {place.absolute()})"
    result = f"{folder}{created}: {_size(free)} free, fsync takes {1e3 * seconds:.1f} ms"
    if free < FREE_BYTES:
        return Check("run folder", Status.WARN, result, "make room, or run.dir= on another disk")
    advice = "run.dir= on a local disk: every saved file waits that long"
    return Check.warn_if(seconds > SLOW_SYNC, "run folder", result, advice)


def _probe_disk(folder: Path) -> tuple[Path, int, float]:
    """Return ``folder`` or its nearest existing parent, free bytes there, and seconds of the slowest of three fsyncs.

    Raises ``NotADirectoryError`` if that parent is a file.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise NotADirectoryError(None, "a file is in its place", str(place))
    seconds = []
    with tempfile.TemporaryFile(dir=place) as file:
        for _ in range(3):
            file.write(bytes(4096))
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - start)
    return place, shutil.disk_usage(place).free, max(seconds)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 2**20:.0f} MiB"


def check_clock(clock: Callable[[], float] = time.monotonic) -> Check:
    """Check that the clock ticks often enough to measure waits."""
    readings = {clock()}
    end = time.perf_counter() + _CLOCK_SECONDS
    while len(readings) <= 100 and time.perf_counter() < end:
        readings.add(clock())
    tick = min((after - before for before, after in pairwise(sorted(readings))), default=math.inf)
    if tick <= COARSE_TICK:
        return Check("clock", Status.OK, f"the monotonic clock ticks every {1e6 * tick:.3g} us")
    result = "stands still" if tick == math.inf else f"ticks every {1e3 * tick:.3g} ms"
    return Check(
        "clock",
        Status.WARN,
        f"the monotonic clock {result}",
        "another clock source of the kernel: waits cannot be measured",
    )


@dataclass(frozen=True)
class NameLookup:
    """Result of resolving a host name."""

    name: str
    address: str | None
    seconds: float
    error: str = ""


def resolve(name: str) -> NameLookup:
    """Resolve ``name`` to an address and back to the full name, as torchrun does."""

    def both_ways() -> str:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
        socket.getfqdn(name)
        return address

    start = time.perf_counter()
    address, error = None, ""
    try:
        address = with_timeout(_NAME_TIMEOUT, both_ways)
    except (OSError, UnicodeError) as failure:  # TimeoutError is an OSError
        error = getattr(failure, "strerror", None) or str(failure)
    return NameLookup(name, address, time.perf_counter() - start, error)


def check_host_name(lookup: NameLookup) -> Check:
    advice = f"torchrun --local-addr={_LOOPBACK} on one node, or name this host in /etc/hosts: torchrun waits for it"
    if lookup.address is None:
        return Check("host name", Status.WARN, f"{lookup.name} does not resolve: {lookup.error}", advice)
    result = f"{lookup.name} is {lookup.address}, found in {1e3 * lookup.seconds:.1f} ms"
    return Check.warn_if(lookup.seconds > SLOW_NAME, "host name", result, advice)


def interfaces() -> dict[str, str]:
    """IPv4 addresses of this node's network interfaces, by name."""
    addresses = {}
    for _, name in socket.if_nameindex():
        with suppress(OSError):  # raised for an interface without an IPv4 address
            addresses[name] = address({"GLOO_SOCKET_IFNAME": name})
    return addresses


def gloo_address(setting: str | None, own: str | None, available: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the reason for gloo's choice of a listening address, and the address, ``None`` if there is none.

    ``setting`` is GLOO_SOCKET_IFNAME, ``own`` the address of this host's name, ``available`` the `interfaces`.
    Without ``setting`` gloo takes ``own`` if this host can listen there, otherwise the loopback address.
    """
    if setting:
        addresses = [available.get(name) for name in setting.split(",")]
        return f"GLOO_SOCKET_IFNAME={setting}", None if None in addresses else addresses[0]
    if own is not None and bind_error(own) is None:
        return "the host's name", own
    return "nothing else to be found", _LOOPBACK


def check_interface(reason: str, address: str | None, one_node: bool, available: Mapping[str, str]) -> Check:
    """Check that gloo listens on an interface that the other ranks reach.

    Args:
        reason: First result of `gloo_address`.
        address: Second result of `gloo_address`.
        one_node: True if all ranks run on this node.
        available: The `interfaces` of this node.
    """
    known = ", ".join(f"{name} ({text})" for name, text in available.items()) or "none"
    if address is None:
        return Check("interface", Status.FAIL, f"{reason}: no such interface with an address", f"one of {known}")
    name = next((f" ({name})" for name, text in available.items() if text == address), "")
    result = f"gloo listens on {address}{name}, by {reason}"
    if one_node or not address.startswith("127."):
        return Check("interface", Status.OK, result)
    advice = f"GLOO_SOCKET_IFNAME=NAME on every node, one of {known}"
    return Check("interface", Status.FAIL, f"{result}: other nodes cannot reach it", advice)


def check_port(address: str) -> Check:
    """Check that a free TCP port is available on ``address``."""
    error = bind_error(address)
    if error is None:
        return Check("port", Status.OK, f"a free one is available on {address}")
    return Check("port", Status.FAIL, f"{address}: {error}", "free some ports, or another GLOO_SOCKET_IFNAME")


def bind_error(address: str) -> str | None:
    """Return the reason why no TCP socket can listen on ``address``, or ``None`` if one can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)  # strerror of `create_server` is longer
    return None
