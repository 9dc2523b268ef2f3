"""Checks of the CUDA paths that one GPU allows: ``make gpu``, or ``python -m tests.gpu.checks --out gpu.json``.

Every check trains a small network through the public Trainer and is compared with the same run in one process on the
same device. The results, with what was measured, go into one JSON file. Without a GPU the file says why it was skipped.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import counterflow as cf
from counterflow.checkpoint import CheckpointDirectory, CheckpointWriter
from counterflow.message import HEADER_BYTES
from counterflow.trace.recorder import NAMES
from counterflow.trainer.job_builder import load_job
from counterflow.transport import MessageLayout, TensorSpec
from counterflow.transport.buffers import CudaGloo, CudaNccl
from counterflow.transport.cuda_device import CudaDevice
from tests.helpers.chrome_trace import read_traces

TOLERANCE = 0.03
"""Largest difference of accuracies between runs whose bits may differ."""
LIMIT = 540.0
"""Seconds for all checks together; those that would begin later are skipped."""


def images(samples: int = 4096, side: int = 16) -> tuple[Tensor, Tensor]:
    """Noisy prototypes of ten classes, uint8 ``[M, 3, side, side]``, and their labels."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randint(64, 192, (10, 3, side, side), generator=generator)
    labels = torch.randint(10, (samples,), generator=generator)
    noise = torch.randint(-60, 61, (samples, 3, side, side), generator=generator)
    return (prototypes[labels] + noise).clamp(0, 255).to(torch.uint8), labels


def network() -> nn.Sequential:
    def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(layer(3, 32, 1), layer(32, 64, 2), layer(64, 64, 1), layer(64, 64, 2), head)


def train(
    device: str,
    *,
    rule: Any = None,
    schedule: str = "auto",
    blocks: int = 4,
    steps: int = 60,
    run_dir: Path | None = None,
    resume: str = "auto",
    checkpoint: cf.CheckpointConfig | None = None,
    trace: bool = False,
    **engine: Any,
) -> dict[str, Any]:
    """The summary of a small run on ``device``."""
    x, y = images()
    trainer = cf.Trainer(
        network,
        rule=rule,
        optimizer=cf.AdamW(lr=3e-3),
        blocks=blocks,
        schedule=schedule,
        device=device,
        engine=cf.EngineConfig(threads=1, **engine),
    )
    result = trainer.fit(
        (x[:3072], y[:3072]),
        (x[3072:], y[3072:]),
        epochs=100,
        steps=steps,
        batch_size=64,
        run_dir=run_dir,
        resume=resume,
        checkpoint=checkpoint,
        trace=trace,
    )
    return dict(result.summary)


class Checks:
    """The checks, by name; each returns what it measured, and fails by an ``AssertionError``."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._baseline: dict[str, Any] | None = None

    @property
    def baseline(self) -> dict[str, Any]:
        """One process, BLL, float32."""
        if self._baseline is None:
            self._baseline = train(self.device)
        return self._baseline

    def one_process(self) -> dict[str, Any]:
        first, again = self.baseline, train(self.device)
        assert first["test_accuracy"] > 0.9, first["test_accuracy"]
        assert first["device"] == self.device, first["device"]
        return {**_figures(again), "repeatable": first["fingerprint"] == again["fingerprint"]}

    def every_rule(self) -> dict[str, Any]:
        rules = {
            "al": train(self.device, rule=cf.AL(), steps=150),
            "predsim": train(self.device, rule=cf.PredSim()),
            "bp": train(self.device, rule=cf.Backprop()),
            "fa": train(self.device, rule=cf.FeedbackAlignment(), steps=150),
            "naive": train(self.device, rule=cf.Backprop(), schedule="naive"),
        }
        for name, summary in rules.items():
            assert summary["test_accuracy"] > 0.3, (name, summary["test_accuracy"])
        return {name: _figures(summary) for name, summary in rules.items()}

    def two_ranks_staged(self) -> dict[str, Any]:
        return self._ranks(2)

    def four_ranks_staged(self) -> dict[str, Any]:
        return self._ranks(4)

    def two_ranks_al(self) -> dict[str, Any]:
        alone, two = (self._spawned(ranks, rule=cf.AL()) for ranks in (1, 2))
        assert abs(alone["test_accuracy"] - two["test_accuracy"]) <= TOLERANCE
        return {**_figures(two), "equal_bits": alone["fingerprint"] == two["fingerprint"]}

    def bf16(self) -> dict[str, Any]:
        return self._variant(precision="bf16")

    def channels_last(self) -> dict[str, Any]:
        return self._variant(channels_last=True)

    def bf16_channels_last_two_ranks(self) -> dict[str, Any]:
        options = {"precision": "bf16", "channels_last": True}
        alone, two = (self._spawned(ranks, **options) for ranks in (1, 2))
        assert abs(alone["test_accuracy"] - two["test_accuracy"]) <= TOLERANCE
        return {**_figures(two), "equal_bits": alone["fingerprint"] == two["fingerprint"]}

    def int8_wire_two_ranks(self) -> dict[str, Any]:
        alone, two = (self._spawned(ranks, wire="int8") for ranks in (1, 2))
        assert abs(alone["test_accuracy"] - two["test_accuracy"]) <= TOLERANCE
        up = [wide["bytes_per_batch"]["up"] for wide in (two, self.baseline)]
        assert all(small <= 0.27 * large for small, large in zip(*up, strict=True)), up
        return {**_figures(two), "equal_bits": alone["fingerprint"] == two["fingerprint"]}

    def compiled(self) -> dict[str, Any]:
        return self._variant(compile=True)

    def resident_data(self) -> dict[str, Any]:
        """The data lies on the device, and batches are the same as those prepared on the CPU."""
        from counterflow.cli.hydra_app import load_config

        there, here = (
            load_job(load_config([f"device={device}", "data.augment=true"])) for device in (self.device, "cpu")
        )
        assert there.batches.resident == (self.device == "cuda")
        same = all(torch.equal(there.batches.inputs(n).cpu(), here.batches.inputs(n)) for n in (0, 7, 41))
        close = all(torch.allclose(there.batches.inputs(n).cpu(), here.batches.inputs(n), atol=1e-6) for n in (0, 7))
        assert close
        return {"resident": there.batches.resident, "equal_bits_with_cpu": same}

    def traced(self) -> dict[str, Any]:
        """Spans by events of the stream lie within the run, within each other, and fill most of it."""
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            train(self.device, run_dir=Path(folder), trace=True)
            seconds = time.perf_counter() - begin
            (trace,) = read_traces(Path(folder) / "trace.json")
        spans = trace.spans
        lengths = spans["end"] - spans["start"]
        assert (lengths >= 0).all()
        assert spans["end"].max() - spans["start"].min() <= seconds
        found = {name: float(lengths[spans["name"] == i].sum()) for i, name in enumerate(NAMES)}
        assert found["forward"] > 0
        assert found["backward"] + found["update"] + found["loss"] <= found["learn"] * 1.01
        return {"seconds": found}

    def nccl_alone(self) -> dict[str, Any]:
        """NCCL initialises with one rank, where torch has it; more need a GPU each (`nccl_ranks`)."""
        if self.device == "cpu" or not dist.is_nccl_available():
            return {"skipped": "no NCCL"}
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
        try:
            number = torch.ones(1, device=self.device)
            work = dist.all_reduce(number, async_op=True)
            assert work is not None
            CudaNccl(CudaDevice(number.device)).complete(work, 60.0)
            assert number.item() == 1.0
        finally:
            dist.destroy_process_group()
        return {"version": torch.cuda.nccl.version()}  # type: ignore[no-untyped-call]

    def nccl_ranks(self) -> dict[str, Any]:
        """A rank for each GPU over NCCL, up to four: the edges in both directions at once."""
        ranks = min(4, torch.cuda.device_count()) if self.device == "cuda" else 0
        if ranks < 2:
            return {"skipped": f"{ranks} GPUs"}
        summary = self._spawned(ranks, backend="nccl")
        assert summary["backend"] == "nccl"
        assert abs(summary["test_accuracy"] - self.baseline["test_accuracy"]) <= TOLERANCE
        return {**_figures(summary), "equal_bits": summary["fingerprint"] == self.baseline["fingerprint"]}

    def staged_buffers(self) -> dict[str, Any]:
        """Messages in pinned memory while the stream is busy: what is read is what kernels wrote last."""
        if self.device == "cpu":
            return {"skipped": "no GPU"}
        device = CudaDevice(torch.device("cuda", 0))
        buffers, layout = CudaGloo(device), MessageLayout((TensorSpec((512, 512)),))
        buffer, source = buffers.buffer(layout.nbytes), torch.zeros(512, 512, device="cuda")
        for n in range(50):
            for _ in range(20):
                source = (source @ source) * 0 + n  # the copy has to come after these
            written = buffers.write(buffer, layout, bytes(HEADER_BYTES), (source,))
            source = source + 1  # and before this, whose memory may be that of the last source
            written.synchronize()
            (received,) = buffers.read(buffer, layout)
            buffer.zero_()  # free again once `read` returns
            assert bool((received == n).all()), n
        return {"messages": 50}

    def checkpoints(self) -> dict[str, Any]:
        """A run goes on from its checkpoint to the same end; the files load on the CPU; another device is refused."""
        with tempfile.TemporaryDirectory() as folder:
            whole, part = Path(folder) / "whole", Path(folder) / "part"
            every = cf.CheckpointConfig(every=30, keep=9)
            end = train(self.device, run_dir=whole, checkpoint=every)
            saved = whole / "checkpoints" / "batch-00000030"
            other = "cpu" if self.device == "cuda" else "cuda"
            resumed = train(self.device, run_dir=part, resume=str(saved), checkpoint=every)
            states = [CheckpointWriter(CheckpointDirectory(whole), saved).restore(block) for block in range(1, 5)]
            tensors = [value for state in states if state for value in state.rule.values() if isinstance(value, Tensor)]
            assert tensors
            assert all(tensor.device.type == "cpu" for tensor in tensors)
            refusal = ""
            if torch.cuda.is_available():
                try:
                    train(other, run_dir=Path(folder) / "other", resume=str(saved), checkpoint=every)
                except ValueError as error:
                    refusal = str(error)
                assert "device" in refusal, refusal
            assert abs(resumed["test_accuracy"] - end["test_accuracy"]) <= TOLERANCE
            return {**_figures(resumed), "equal_bits": resumed["fingerprint"] == end["fingerprint"], "refusal": refusal}

    def weights_leave(self) -> dict[str, Any]:
        """The gathered weights are on the CPU, and give the accuracy of the run there."""
        x, y = (part[:1024] for part in images())
        trainer = cf.Trainer(
            network, device=self.device, optimizer=cf.AdamW(lr=3e-3), engine=cf.EngineConfig(threads=1)
        )
        result = trainer.fit((x.float() / 255, y), (x.float() / 255, y), epochs=6, batch_size=64)
        model = network()
        model.load_state_dict(result.state_dict())
        with torch.no_grad():
            accuracy = (model.eval()(x.float() / 255).argmax(1) == y).double().mean().item()
        assert result.test_accuracy is not None
        assert abs(accuracy - result.test_accuracy) <= 2 / len(y), (accuracy, result.test_accuracy)
        return {"accuracy_on_cpu": accuracy, "accuracy_of_the_run": result.test_accuracy}

    def _spawned(self, ranks: int, **options: Any) -> dict[str, Any]:
        device = self.device
        summary = cf.spawn(lambda: train(device, **options), ranks=ranks)
        assert isinstance(summary, dict)
        return summary

    def _ranks(self, ranks: int) -> dict[str, Any]:
        summary = self._spawned(ranks, backend="gloo")
        assert summary["ranks"] == ranks
        assert summary["backend"] == "gloo"
        assert abs(summary["test_accuracy"] - self.baseline["test_accuracy"]) <= TOLERANCE
        return {**_figures(summary), "equal_bits": summary["fingerprint"] == self.baseline["fingerprint"]}

    def _variant(self, **engine: Any) -> dict[str, Any]:
        summary = train(self.device, **engine)
        assert abs(summary["test_accuracy"] - self.baseline["test_accuracy"]) <= TOLERANCE
        return _figures(summary)


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    names = ("test_accuracy", "block_accuracy", "samples_per_second", "wait_fraction", "fingerprint", "precision")
    return {name: summary[name] for name in names}


def names_of_checks() -> list[str]:
    return [name for name in vars(Checks) if not name.startswith("_") and name != "baseline"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON file")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the checks themselves")
    parser.add_argument("--only", nargs="*", default=names_of_checks(), help="names of checks")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"torch": str(torch.__version__), "python": platform.python_version(), "checks": {}}
    if options.device == "cuda" and not torch.cuda.is_available():
        report["skipped"] = "no CUDA device is available"
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        print(f"skipped: {report['skipped']}")
        return 0
    report["device"] = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    checks, begin = Checks(options.device), time.monotonic()
    for name in options.only:
        start = time.monotonic()
        entry: dict[str, Any] = {"ok": False}
        report["checks"][name] = entry
        if start - begin > LIMIT:
            entry["error"] = f"not begun: {LIMIT:g} s are over"
        else:
            try:
                entry.update(ok=True, **getattr(checks, name)())
            except Exception as error:
                entry.update(ok=False, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        entry["seconds"] = round(time.monotonic() - start, 2)
        print(f"{'ok  ' if entry['ok'] else 'FAIL'} {name} {entry['seconds']} s {entry.get('error', '')}", flush=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")  # a killed run leaves what it found
    return 0 if all(entry["ok"] for entry in report["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
