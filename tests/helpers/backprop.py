"""The plain backprop loop that local learning is held against: same network, data, order, optimizer and budget."""

import copy

import torch
import torch.nn.functional as F

from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.engine.job import Job


def accuracy_of_backprop(job: Job) -> float:
    """Train a copy of ``job.network`` end to end on cross entropy; its accuracy on the test data."""
    network = copy.deepcopy(job.network)
    optimizer = BlockOptimizer(network.parameters(), job.optimizer, job.plan.batches)
    for n in range(job.plan.batches):
        loss = F.cross_entropy(network(job.batches.inputs(n)), job.batches.labels(n))
        torch.autograd.backward(loss)
        optimizer.step(n)
    network.eval()
    with torch.no_grad():
        predictions = [network(job.batches.evaluation_inputs(e)).argmax(-1) for e in job.batches.test]
    return float((torch.cat(predictions) == job.batches.labels_of(job.batches.test)).float().mean())
