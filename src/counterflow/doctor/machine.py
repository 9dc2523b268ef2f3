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
from itertools import pairwise
from pathlib import Path

import torch

from counterflow.doctor.check import Check, Status, with_timeout
from counterflow.doctor.listeners import check_node_listeners
from counterflow.metrics.provenance import torchvision_version
from counterflow.rank_info import RankInfo
from counterflow.transport.rendezvous import interface_addresses, interface_names

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

_DISK_TIMEOUT = 3.0
"""Seconds before a file system counts as unresponsive."""
SLOW_NAME = 1.0
"""Seconds to resolve a name; above this it delays every start."""
_NAME_TIMEOUT = 3.0
"""Seconds before a name counts as unresolved."""
_LOOPBACK = "127.0.0.1"


def check_machine(rank_info: RankInfo, run_dir: Path) -> list[Check]:
    """Run all checks of one node, without any other process."""
    settings = torch.__config__.show()
    cores = len(os.sched_getaffinity(0))
    available = interface_addresses()
    own, seconds, error = resolve(rank_info.host)
    setting = os.environ.get("GLOO_SOCKET_IFNAME", "")
    with suppress(ValueError):  # then it is reported as it stands
        setting = interface_names(setting)
    reason, address = gloo_address(setting, own, available)
    return [
        check_torchvision(),
        check_gloo(settings),
        check_nccl(settings, torch.cuda.device_count(), rank_info.local_size),
        check_cores(cores, rank_info.local_size),
        check_threads(os.environ.get("OMP_NUM_THREADS"), cores, rank_info.local_size),
        check_memory(available_memory(), rank_info.local_size),
        check_host_name(rank_info.host, own, seconds, error),
        check_interface(reason, address, rank_info.one_node, available),
        *([] if address is None else [check_port(address)]),
        *([] if rank_info.size == 1 else [check_node_listeners(rank_info, address, available)]),
        check_shared_memory(),
        check_run_dir(run_dir),
        check_clock(),
    ]


def installed_versions() -> dict[str, str]:
    torchvision = torchvision_version() or "none"
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
    first = next(iter(ranks.values()))
    holders = {
        name: ranks_by_value({rank: versions.get(name, "none") for rank, versions in ranks.items()}) for name in first
    }
    differences = [
        f"{name} " + "; ".join(f"{text} on {holding}" for text, holding in by_text.items())
        for name, by_text in holders.items()
        if len(by_text) > 1
    ]
    on_all = f" on all {len(ranks)} ranks" if len(ranks) > 1 else ""
    same = ", ".join(f"{name} {text}" for name, text in first.items()) + on_all
    return Check.judge(
        "versions",
        " / ".join(differences) or same,
        (len(differences) > 0, Status.FAIL, "install the same versions on every node, and use its Python"),
    )


def check_torchvision() -> Check:
    """Check that torchvision can be imported: one that was built for another torch cannot."""
    try:
        import torchvision
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Check(
            "torchvision", Status.FAIL, f"does not load: {reason}", "install the torchvision that belongs to this torch"
        )
    return Check("torchvision", Status.OK, f"{torchvision.__version__} loads")


def built_with(backend: str, settings: str) -> bool:
    """Return True unless torch's printed build ``settings`` turn ``backend`` off."""
    option = re.search(rf"\bUSE_{backend.upper()}=(\w*)", settings)
    return option is None or option[1].upper() not in ("OFF", "0", "FALSE", "")


def check_gloo(settings: str) -> Check:
    available = built_with("gloo", settings)
    return Check.judge(
        "gloo",
        "part of this torch" if available else "not part of this torch",
        (not available, Status.FAIL, "install torch from https://pytorch.org"),
    )


def check_nccl(settings: str, devices: int, local_ranks: int) -> Check:
    """Check that NCCL can serve the ``devices``, the number of CUDA devices that this node's processes see."""
    available = built_with("nccl", settings)
    result = f"{'available' if available else 'not part of this torch'}; {devices} GPUs for {local_ranks} local ranks"
    one_gpu_each = f"NCCL refuses two ranks on one GPU: --nproc_per_node={devices}, or engine.backend=gloo"
    return Check.judge(
        "nccl",
        result if devices else f"{result}: gloo carries the messages",
        (0 < devices < local_ranks, Status.WARN, one_gpu_each),
        (devices > 0 and not available, Status.WARN, "engine.backend=gloo, or a torch built for CUDA"),
    )


def check_cores(cores: int, local_ranks: int) -> Check:
    """Check that every local rank has one of the ``cores`` that this process may run on."""
    advice = f"ranks take turns on a core and wait longer: --nproc_per_node={cores}, or a wider cpuset"
    return Check.judge(
        "cores", f"{cores} usable for {local_ranks} local ranks", (cores < local_ranks, Status.WARN, advice)
    )


def check_threads(setting: str | None, cores: int, local_ranks: int) -> Check:
    """Check OMP_NUM_THREADS, the ``setting``. Training uses ``engine.threads``; other libraries use this variable."""
    share = max(1, cores // local_ranks)
    if setting is None:
        return Check("threads", Status.OK, "OMP_NUM_THREADS is not set: engine.threads decides")
    if setting.isdecimal() and 1 <= int(setting) <= share:
        return Check("threads", Status.OK, f"OMP_NUM_THREADS={setting}")
    too_many = setting.isdecimal() and int(setting) > share
    problem = f"in {local_ranks} ranks on {cores} cores" if too_many else "is no number of threads"
    return Check("threads", Status.WARN, f"OMP_NUM_THREADS={setting} {problem}", f"OMP_NUM_THREADS={share}")


def check_memory(available: int, local_ranks: int) -> Check:
    """Check that ``available`` bytes are enough for the local ranks."""
    advice = f"free some, or use fewer ranks: each needs at least {RANK_BYTES / 1e9:g} GB"
    return Check.judge(
        "memory",
        f"{available / 1e9:.1f} GB available for {local_ranks} local ranks",
        (available < local_ranks * RANK_BYTES, Status.WARN, advice),
    )


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
    return Check.judge("shared memory", result, (usage.free <= SHARED_BYTES, Status.WARN, advice))


def check_run_dir(folder: Path) -> Check:
    """Check space and speed of ``folder``, or of its nearest existing parent. Leaves no file behind."""
    try:
        place, free, seconds = with_timeout(_DISK_TIMEOUT, lambda: _probe_disk(folder))
    except OSError as error:
        result = f"{folder}: not writable: {error.strerror or error}"
        return Check("run folder", Status.WARN, result, "run.dir=, in a folder of your own")
    created = "" if place == folder else f" (to be made in {place.absolute()})"
    result = f"{folder}{created}: {_size(free)} free, fsync takes {1e3 * seconds:.1f} ms"
    return Check.judge(
        "run folder",
        result,
        (free < FREE_BYTES, Status.WARN, "make room, or run.dir= on another disk"),
        (seconds > SLOW_SYNC, Status.WARN, "run.dir= on a local disk: every saved file waits that long"),
    )


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
    end = time.perf_counter() + 0.2  # longest time to watch the clock
    while len(readings) <= 100 and time.perf_counter() < end:
        readings.add(clock())
    tick = min((after - before for before, after in pairwise(sorted(readings))), default=math.inf)
    if tick <= COARSE_TICK:
        return Check("clock", Status.OK, f"the monotonic clock ticks every {1e6 * tick:.3g} us")
    return Check(
        "clock",
        Status.WARN,
        f"the monotonic clock {'stands still' if tick == math.inf else f'ticks every {1e3 * tick:.3g} ms'}",
        "another clock source of the kernel: waits cannot be measured",
    )


def resolve(name: str) -> tuple[str | None, float, str]:
    """Resolve ``name`` to an address and back to the full name, as torchrun does.

    Returns:
        The address, or None; the seconds that it took; and the reason if there is no address.
    """

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
    return address, time.perf_counter() - start, error


def check_host_name(name: str, address: str | None, seconds: float, error: str) -> Check:
    """Check that torchrun does not wait for this host's ``name``.

    Args:
        name: Name of this host.
        address: First result of `resolve`.
        seconds: Second result of `resolve`.
        error: Third result of `resolve`.
    """
    advice = (
        f"torchrun --local-addr=ADDRESS, of this node or for a job of one node {_LOOPBACK}, or name this host in "
        "/etc/hosts: torchrun waits for it"
    )
    if address is None:
        return Check("host name", Status.WARN, f"{name} does not resolve: {error}", advice)
    result = f"{name} is {address}, found in {1e3 * seconds:.1f} ms"
    return Check.judge("host name", result, (seconds > SLOW_NAME, Status.WARN, advice))


def gloo_address(setting: str | None, own: str | None, available: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the reason for gloo's choice of a listening address, and the address, ``None`` if there is none.

    ``setting`` is GLOO_SOCKET_IFNAME, ``own`` the address of this host's name, ``available`` the addresses of all
    interfaces by name.
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
        available: Addresses of the interfaces of this node, by name.
    """
    known = ", ".join(f"{name} ({text})" for name, text in available.items()) or "none"
    if address is None:
        return Check("interface", Status.FAIL, f"{reason}: no such interface with an address", f"one of {known}")
    name = next((f" ({name})" for name, text in available.items() if text == address), "")
    reached = one_node or not address.startswith("127.")
    return Check.judge(
        "interface",
        f"gloo listens on {address}{name}, by {reason}{'' if reached else ': other nodes cannot reach it'}",
        (not reached, Status.FAIL, f"GLOO_SOCKET_IFNAME=NAME on every node, one of {known}"),
    )


def check_port(address: str) -> Check:
    """Check that a free TCP port is available on ``address``."""
    error = bind_error(address)
    return Check.judge(
        "port",
        f"{address}: {error}" if error else f"a free one is available on {address}",
        (error is not None, Status.FAIL, "free some ports, or another GLOO_SOCKET_IFNAME"),
    )


def bind_error(address: str) -> str | None:
    """Return the reason why no TCP socket can listen on ``address``, or ``None`` if one can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)  # strerror of `create_server` is longer
    return None
