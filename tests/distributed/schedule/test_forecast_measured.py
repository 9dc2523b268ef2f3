"""Forecasts held against the schedules of torch.distributed.pipelining, run by real processes whose stages sleep."""

import time
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining

from counterflow.schedule.forecast import LinkSpec, StageCost, Workload, forecast
from counterflow.schedule.pipeline_schedules import owners
from tests.helpers.processes import Pool

FORWARD, BACKWARD, UPDATE = 0.02, 0.04, 0.01  # seconds; the first two of a micro-batch
WARM_UP = 2


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        time.sleep(FORWARD)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        time.sleep(BACKWARD)
        return gradients[0], gradients[0].sum()


class _Sleeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return _Sleep.apply(x, self.weight)  # type: ignore[no-any-return, no-untyped-call]


class _Stage(pipelining.PipelineStage):
    """Notes how long its passes take."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.took: dict[str, list[float]] = {"forward": [], "backward": []}

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        output = super().forward_one_chunk(*args, **kwargs)
        self.took["forward"].append(time.perf_counter() - start)
        return output

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        super().backward_one_chunk(*args, **kwargs)
        self.took["backward"].append(time.perf_counter() - start)


def train(
    rank: int, ranks: int, store_path: str, schedule: str, stages: int, microbatches: int, batches: int
) -> tuple[list[float], dict[int, dict[str, float]]]:
    """End of each update, and the usual seconds of a pass through each of the rank's stages."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store_path, ranks), rank=rank, world_size=ranks)
    example = torch.ones(1, 16, requires_grad=True)
    mine = [
        _Stage(_Sleeper(), stage, stages, torch.device("cpu"), input_args=example, output_args=example)
        for stage, owner in enumerate(owners(schedule, ranks, stages))
        if owner == rank
    ]
    options: dict[str, Any] = {"n_microbatches": microbatches, "loss_fn": lambda output, target: output.sum()}
    run: Any
    if schedule == "interleaved1f1b":
        run = pipelining.ScheduleInterleaved1F1B(list(mine), **options)
    else:
        run = {"gpipe": pipelining.ScheduleGPipe, "1f1b": pipelining.Schedule1F1B}[schedule](mine[0], **options)
    batch = torch.ones(microbatches, 16)
    ends = []
    for _ in range(batches):
        arguments = (batch,) if rank == 0 else ()
        if rank == (stages - 1) % ranks:
            run.step(*arguments, target=batch)
        else:
            run.step(*arguments)
        time.sleep(UPDATE)
        ends.append(time.perf_counter())
    dist.barrier()
    dist.destroy_process_group()
    return ends, {stage.stage_index: {what: median(took) for what, took in stage.took.items()} for stage in mine}


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [4, 8])
@pytest.mark.parametrize(("schedule", "stages"), [("gpipe", 4), ("1f1b", 4), ("interleaved1f1b", 8)])
def test_torch_takes_as_long_as_forecast(pool: Pool, schedule: str, stages: int, microbatches: int) -> None:
    """Within 5 % on a quiet machine; here with some room for what else its cores do."""
    ranks, batches = 4, 8
    results = pool.run(ranks, train, schedule, stages, microbatches, batches)
    # What else the cores do can only add: the quickest batch is the least disturbed one.
    measured = max(min(b - a for a, b in pairwise(ends[WARM_UP:])) for ends, _ in results)
    times = {stage: took for _, own in results for stage, took in own.items()}
    update = UPDATE * ranks / stages
    workload = Workload(
        [
            StageCost(times[s]["forward"] * microbatches, times[s]["backward"] * microbatches, update)
            for s in range(stages)
        ],
        up=[64 * microbatches] * (stages - 1),
    )
    predicted = forecast(schedule, workload, ranks=ranks, batches=batches, microbatches=microbatches, link=LinkSpec())
    print(
        f"{schedule} {stages} stages on {ranks} ranks, {microbatches} micro-batches: measured {1e3 * measured:.1f} ms, "
        f"forecast {1e3 * predicted.seconds_per_batch:.1f} ms, {measured / predicted.seconds_per_batch - 1:+.1%}"
    )
    assert measured == pytest.approx(predicted.seconds_per_batch, rel=0.1)
