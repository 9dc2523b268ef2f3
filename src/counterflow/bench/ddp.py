"""DistributedDataParallel on the network of a job: every rank has all of it, and its share of every batch."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from counterflow.algorithms import EndToEnd
from counterflow.algorithms.muon import hidden_weights
from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.data.batch_loader import BatchKey, Field
from counterflow.data.prefetch import prefetch
from counterflow.engine.job import Job
from counterflow.transport import Communicator


def ddp_updates(job: Job, comm: Communicator) -> Iterator[int]:
    """Train the network of ``job``, a run of backprop on one process, in place. Yields every batch after its update."""
    algorithm = job.algorithm
    assert isinstance(algorithm, EndToEnd), "DDP shares out backprop"
    assert job.optimizer.average == 0, "weights are not averaged here"
    job = replace(job, cut=(len(job.network),), batches=replace(job.batches, replicas=comm.size))
    job.initialize_inputs()
    job.runtime.prepare_module(job.network, ())
    network = DistributedDataParallel(job.network.train())
    hidden = hidden_weights(job.network, is_top=True)
    optimizer = BlockOptimizer(network.parameters(), job.optimizer, job.plan.batches, hidden=hidden)
    share = zip(_share(job, "inputs", comm.rank), _share(job, "labels", comm.rank), strict=True)
    for n, (inputs, labels) in enumerate(prefetch(share)):
        with job.runtime.autocast():
            scores = network(*job.runtime.unpack(job.runtime.arrange((inputs,))))
        loss = F.cross_entropy(scores.float().flatten(0, -2), labels.flatten(), label_smoothing=algorithm.smoothing)
        torch.autograd.backward(loss)
        optimizer.step(n)
        yield n


def ddp_bytes(job: Job, ranks: int) -> float:
    """Bytes that a rank sends for a batch, in the ring of an all-reduce of float32 gradients."""
    parameters = sum(p.numel() for p in job.network.parameters() if p.requires_grad)
    return 2 * 4 * parameters * (ranks - 1) / ranks


def _share(job: Job, field: Field, rank: int) -> Iterator[Tensor]:
    keys = [BatchKey(n, replica=rank) for n in range(job.plan.batches)]
    return job.batches.stream(field, keys, keys)
