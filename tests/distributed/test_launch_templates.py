"""The templates of ``launch/``: well-formed, consistent, and their commands train with the bits of one process.

Neither Slurm, nor Kubernetes, nor Docker is here. Nodes, pods and containers are processes on the loopback interface.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from counterflow.config import CheckpointConfig
from tests.helpers.launch import PROGRAM, ROOT, forked
from tests.helpers.ports import free_port

LAUNCH = ROOT / "launch"
QUICK = ("train.steps=12", "train.batch_size=32", "engine.threads=1", "run.display=false")
GRACE = CheckpointConfig().grace


def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return service, job


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((LAUNCH / "compose.yaml").read_text())
    return found


def sbatch_options() -> dict[str, str]:
    """Directives of the Slurm script."""
    text = (LAUNCH / "slurm.sbatch").read_text()
    before, _, _ = text.partition("set -euo pipefail")  # Slurm reads those before the first command alone
    directives = re.findall(r"^#SBATCH (.*)$", before, re.MULTILINE)
    assert text.count("\n#SBATCH") == len(directives)
    return dict(re.fullmatch(r"--([a-z-]+)(?:=(\S+))?", line).groups("") for line in directives)  # type: ignore[union-attr]


# --- what the files say ----------------------------------------------------------------------------------------------


def test_kubernetes_accepts_the_file_and_would_refuse_a_slip() -> None:
    for resource in kubernetes():
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
    _, job = kubernetes()
    job["spec"]["completionsMode"] = job["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError, match="completionsMode"):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_pods_find_each_other() -> None:
    service, job = kubernetes()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(re.findall(r"^--([\w-]+)=(.*)$", "\n".join(container["args"]), re.MULTILINE))
    assert spec["completions"] == spec["parallelism"] == int(options["nnodes"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert options["master-addr"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert [int(options["master-port"])] == [port["port"] for port in service["spec"]["ports"]]
    assert pod["terminationGracePeriodSeconds"] > GRACE
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def check_compose(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_compose_accepts_the_file_and_would_refuse_a_slip(tmp_path: Path) -> None:
    done = check_compose(LAUNCH / "compose.yaml")
    assert done.returncode == 0, done.stdout
    wrong = compose()
    wrong["services"]["rank0"]["enviroment"] = wrong["services"]["rank0"].pop("environment")
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(wrong))
    done = check_compose(tmp_path / "compose.yaml")
    assert done.returncode == 1
    assert "enviroment" in done.stdout


def test_containers_find_each_other() -> None:
    services = compose()["services"]
    for rank, (name, service) in enumerate(services.items()):
        environment = service["environment"]
        assert (name, environment["RANK"]) == (f"rank{rank}", str(rank))
        assert int(environment["WORLD_SIZE"]) == len(services)
        assert environment["MASTER_ADDR"] == "rank0"
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE


def test_the_slurm_script_is_bash_with_directives_that_fit() -> None:
    done = subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sbatch")], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    options = sbatch_options()
    assert options["ntasks-per-node"] == "1", "torchrun starts the ranks of a node"
    signal, seconds = options["signal"].split("@")  # without "B:", which would go to the script alone
    assert signal == "TERM"
    assert int(seconds) > GRACE
    assert {"requeue", "nodes", "time"} <= options.keys()


# --- what their commands do ------------------------------------------------------------------------------------------


@contextmanager
def processes(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], cwd: Path
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a process for each command, with an environment on top of this one, in a session of its own each."""
    common = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    try:
        for command, environment in zip(commands, environments, strict=True):
            started.append(
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=common | environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def run_to_the_end(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], cwd: Path, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    with processes(commands, environments, cwd) as started:
        for process in started:
            output, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            assert process.returncode == 0, output


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """That of one process."""
    folder = tmp_path_factory.mktemp("one")
    done = forked(PROGRAM, *QUICK, f"run.dir={folder / 'run'}", cwd=folder)
    assert done.returncode == 0, done.stderr
    found: str = summary(folder / "run")["fingerprint"]
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with ``launch/``, in which runs may lie."""
    (tmp_path / "launch").symlink_to(LAUNCH)
    return tmp_path


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_of_the_pods_trains(checkout: Path, fingerprint: str) -> None:
    _, job = kubernetes()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["torchrun"]
    port, run_dir = free_port(), checkout / "run"

    def arguments(pod: int) -> list[str]:
        text = "\n".join(container["args"]).replace("$(NODE_RANK)", str(pod))
        text = text.replace("counterflow-0.counterflow", "127.0.0.1").replace("29500", str(port))
        return text.replace("/counterflow/runs/kubernetes", str(run_dir)).splitlines()

    pods = range(job["spec"]["completions"])
    local = "--local-addr=127.0.0.1"  # in a pod, the machine's name resolves
    commands = [[*TORCHRUN, local, *arguments(pod), *QUICK] for pod in pods]
    run_to_the_end(commands, [{}] * len(pods), checkout, 300)
    assert summary(run_dir)["fingerprint"] == fingerprint
    assert summary(run_dir)["ranks"] == len(pods)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_commands_of_the_containers_train(checkout: Path, fingerprint: str) -> None:
    services = list(compose()["services"].values())
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # Each container is a machine of its own with one rank.
    environments = [service["environment"] | address | {"LOCAL_WORLD_SIZE": "1"} for service in services]
    commands = []
    for service in services:
        interpreter, *program = service["entrypoint"]
        assert interpreter == "python"
        overrides = [text.replace("/counterflow/runs", str(checkout)) for text in service["command"]]
        commands.append([sys.executable, *program, *overrides, *QUICK])
    run_to_the_end(commands, environments, checkout, 300)
    assert summary(checkout / "compose")["fingerprint"] == fingerprint
    assert summary(checkout / "compose")["ranks"] == len(services)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_slurm_script_trains_on_one_node(checkout: Path, fingerprint: str) -> None:
    tools = checkout / "bin"
    tools.mkdir()
    (tools / "srun").write_text('#!/bin/sh\nSLURM_NODEID=0 exec "$@"\n')
    (tools / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(free_port()),  # the script makes a port of it
        "SLURM_JOB_NUM_NODES": "1",
        "RANKS_PER_NODE": "2",
        "HEAD": "127.0.0.1",
    }
    run_to_the_end([["bash", "launch/slurm.sbatch", *QUICK]], [environment], checkout, 300)
    (run_dir,) = (checkout / "runs").iterdir()
    assert summary(run_dir)["fingerprint"] == fingerprint
    assert summary(run_dir)["ranks"] == 2
