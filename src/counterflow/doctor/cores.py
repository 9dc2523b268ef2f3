"""Cores, threads and memory, for the ranks of one node."""

from pathlib import Path

from counterflow.doctor.check import Check, Status

RANK_BYTES = 10**9
"""Memory that a rank needs at least: torch itself, data and a small network."""


def cores(usable: int, local_ranks: int) -> Check:
    """``usable``: cores that this process may run on."""
    found = f"{usable} usable for {local_ranks} local ranks"
    if usable < local_ranks:
        advice = f"ranks take turns on a core and wait longer: --nproc_per_node={usable}, or a wider cpuset"
        return Check("cores", Status.WARN, found, advice)
    return Check("cores", Status.OK, found)


def threads(setting: str | None, usable: int, local_ranks: int) -> Check:
    """``setting``: OMP_NUM_THREADS. Training itself computes with ``engine.threads``; other libraries obey this one."""
    if setting is None:
        return Check("threads", Status.OK, "OMP_NUM_THREADS is not set: engine.threads decides")
    found = f"OMP_NUM_THREADS={setting}"
    share = max(1, usable // local_ranks)
    if not setting.isdecimal() or int(setting) < 1:
        return Check("threads", Status.WARN, f"{found} is no number of threads", f"OMP_NUM_THREADS={share}")
    if int(setting) > share:
        return Check(
            "threads", Status.WARN, f"{found} in {local_ranks} ranks on {usable} cores", f"OMP_NUM_THREADS={share}"
        )
    return Check("threads", Status.OK, found)


def memory(available: int, local_ranks: int) -> Check:
    """``available``: bytes."""
    found = f"{available / 1e9:.1f} GB available for {local_ranks} local ranks"
    if available < local_ranks * RANK_BYTES:
        advice = f"free some, or fewer ranks: {RANK_BYTES / 1e9:g} GB for each is the least"
        return Check("memory", Status.WARN, found, advice)
    return Check("memory", Status.OK, found)


def available_memory(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that are free, or can be made so: of the machine, or of the container where that has a limit."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = 1024 * int(fields["MemAvailable"].split()[0])
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except OSError:  # no container, or one of the older kind
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))
