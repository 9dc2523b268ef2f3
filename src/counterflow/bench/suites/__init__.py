"""The suites: each has ``measure(brief) -> Result``, and ``draw(note, folder)`` of what the result noted."""

from counterflow.bench.suites import cpu2, emulated, flops, jitter, memory, scaling, slowlink, timeline, transport

_MODULES = (cpu2, emulated, slowlink, jitter, transport, memory, scaling, timeline, flops)
SUITES = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
