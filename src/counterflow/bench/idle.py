"""A block that sleeps, and no engine: what remains of a batch without one."""

from time import perf_counter, process_time

from counterflow.bench.contender import Contender
from counterflow.bench.sleeping import SleepingColumn
from counterflow.transport import Communicator


def idle(comm: Communicator, contender: Contender) -> tuple[float, float]:
    """Seconds a batch, by the clock and of processors, of this rank's block of ``contender``, whose messages are made
    and go nowhere. All ranks of ``comm`` begin at the same time."""
    assert contender.sleep is not None
    config = contender.config
    column = SleepingColumn(config.blocks, contender.sleep, config.optimizer, contender.batches)
    rule = column.rule(comm.rank + 1)
    comm.all_gather(None, "the start")
    start, cpu = perf_counter(), process_time()
    for n in range(contender.batches):
        rule.forward_message(())
        rule.update(n, (), ())
    return (perf_counter() - start) / contender.batches, (process_time() - cpu) / contender.batches
