"""Fuzzed command lines of the training program, and how their ranks end."""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.distributed import TCPStore

import counterflow.cli.hydra_app  # noqa: F401  # registers the schemas
from counterflow.config import TrainConfig
from tests.helpers.processes import CONF, Fresh, run_rank

LIMIT = 60.0
"""Seconds that a run of three batches may take on a busy machine, before it counts as hanging."""

ALL_END = 10.0
"""Seconds in which a rank has to notice that another one ended."""

MEMORY = 12 * 2**30
"""Bytes of address space of each process, torch's libraries included: what is too large fails at once, and here."""


# -- the processes of a run, as torchrun would start them


@dataclass(frozen=True)
class Rank:
    """The end of one rank."""

    status: int | None
    """None where it was ended because another one had refused the configuration, as torchrun's agent does."""
    stderr: str


def as_rank(rank: int, ranks: int, store_path: str, port: int, overrides: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run_rank(rank, ranks, store_path, port, overrides, agent=True)


def result(ranks: int, overrides: list[str]) -> list[Rank]:
    """Run ``train.py overrides`` on every rank; the end of each. Fails if one does not end, or leaves a process."""
    # Torchrun's agent hosts the store, so that it outlives the rank that reads from it last.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if ranks > 1 else None
    with Fresh(ranks, as_rank, store.port if store is not None else 0, overrides) as run:
        until = run.started + LIMIT
        while alive := run.poll(until - time.monotonic()):
            if 2 in run.statuses:
                break
            if any(run.statuses):
                until = min(until, time.monotonic() + ALL_END)
            if time.monotonic() > until:
                pytest.fail(f"{overrides} on {ranks} ranks: {len(alive)} still run; {run.texts()}")
        statuses = [None if rank in alive else status for rank, status in enumerate(run.statuses)]
        run.kill()
        left = [pid for leader in run.pids for pid in session(leader)]
        assert not left, f"{overrides} on {ranks} ranks: processes {left} are left"
        return [Rank(status, run.text(rank)) for rank, status in enumerate(statuses)]


def session(leader: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = path.read_text().rpartition(")")[2].split()  # state, parent, group, session, ..
        except OSError:
            continue
        if after[3] == str(leader) and after[0] != "Z":
            found.append(int(path.parent.name))
    return found


def check(ranks: int, overrides: list[str]) -> None:
    """Run the command, and assert that it trains or ends with one line."""
    ends = result(ranks, overrides)
    context = f"{overrides} on {ranks} ranks: {ends}"
    for rank, end in enumerate(ends):
        lines = end.stderr.splitlines()
        assert end.status in (0, 1, 2, None), context
        assert "Traceback" not in end.stderr, context
        if end.status == 0 or (end.status == 2 and rank > 0):  # the first process of a node prints a refusal for all
            assert not lines, context
        elif end.status is not None:
            assert len(lines) == 1, context
            assert lines[0].startswith("error: "), context
            assert len(lines[0]) < 2000, context
    statuses = {end.status for end in ends}
    assert 2 not in statuses or ends[0].status == 2, context
    assert 2 not in statuses or 0 not in statuses, context  # a refusal comes before any rank trains


# -- what to type


@cache
def choices(group: str) -> tuple[str, ...]:
    """Names of a group: files of ``conf/``, and schemas that hydra knows without one."""
    stored = ConfigStore.instance().repo[group]
    files = (CONF / group).glob("*.yaml")
    return tuple(sorted({*(path.stem for path in files), *(name.removesuffix(".yaml") for name in stored)}))


@cache
def schema(group: str, choice: str) -> Any:
    """The dataclass of a choice. A file of ``conf/`` names it, or another file, first in its defaults."""
    stored = ConfigStore.instance().repo[group].get(f"{choice}.yaml")
    if stored is not None:
        return OmegaConf.get_type(stored.node)
    (first, *_) = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())["defaults"]
    return schema(group, first)


GROUPS = ("algorithm", "model", "data", "optimizer")


def keys(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a dataclass with its type, but for the groups, whose dataclasses depend on what is chosen."""
    hints = get_type_hints(node)
    for field in fields(node):
        hint = hints[field.name]
        if prefix + field.name in GROUPS:
            continue
        if is_dataclass(hint):
            yield from keys(hint, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


# What every type is given. Some of it is right for some keys: the program has to say for which.
ANYTHING = (
    "null",
    "''",
    "none",
    "?",
    "???",
    "[]",
    "{}",
    "[1,2]",
    "{a:1}",
    "true",
    "grün",
    "${seed}",
    "${no}",
    "${no:}",
)
NUMBERS = (
    "-1",
    "0",
    "1",
    "2",
    "3",
    "-0.0",
    "0.5",
    "1e-300",
    "1e300",
    "nan",
    "inf",
    "-inf",
    "1_0",
    "0x10",
    "\uff11\uff12",
)
HUGE = (str(2**31), str(2**63 - 1), str(2**63), str(-(2**63)), str(10**30))
LISTS = ("[1]", "[2,2]", "[1,1,1]", "[2,1,1,1]", "[0]", "[-1,1]", "[0.5,0.5]", "[nan,0.9]", "[a,b]", "[[1]]", "[null]")
WORDS = ("auto", "exact", "free", "gpipe", "cpu", "linear", "batch", "bf16", "a b", "../x", "x" * 300)
MALFORMED = (
    "nope=1", "model.nope=1", "model.nope.nope=1", "+nope=1", "+model.nope=1", "++seed=3", "~seed", "~model", "~nope",
    "seed", "seed=", "=1", "seed==1", "a b=1", "seed=[1", "seed='1", "seed=1,2", "seed=range(1,3)", "seed=${", "@x=1",
    "seed.x=1", "model=[mlp,cnn]", "model=nope", "model=", "algorithm=BLL", "optimizer=null", "data=../data/digits",
    "optimizer@model=sgd", "schema=1", "experiment=nope", "scale=nope", "scale=smoke", "\uff33\uff25\uff25\uff24=1",
)  # fmt: skip

# What is not drawn, because it would not be refused, and takes memory or minutes: so many layers, buffers and threads,
# all made one by one; VGGs of several times their width; more batches than one epoch of `SMALL`; torch.compile, which
# calls a compiler; and downloads.
COUNTS = ("model.hidden", "model.layers", "engine.depth", "engine.target_depth", "engine.threads")
NEVER = ("engine.compile", "data.download")

SMALL = (
    "train.steps=3",
    "train.epochs=1",
    "train.batch_size=8",
    "data.limit=64",
    "engine.threads=1",
    "engine.timeout=30",
    "device=cpu",
    "run.display=false",
)
SMALL_MODELS = {
    "mlp": ("model.width=8",),
    "fastcnn": ("model.widths=[4,4]",),
    "cnn": ("model.channels=[4,4]", "model.strides=[2,2]"),
    "vgg": ("model.width=0.03", "model.hidden=[8]"),
    "resnet": ("model.width=2", "model.stages=[1,1]"),
    "transformer": ("data=reverse", "model.width=8", "model.hidden=8", "model.layers=2"),
    "custom": ("model.target=torch.nn.Sequential",),
}


@dataclass(frozen=True)
class Command:
    ranks: int
    overrides: tuple[str, ...]


def values(key: str, hint: Any) -> st.SearchStrategy[str]:
    """Right and wrong values of a key, most of them of its type."""
    text = str(hint)
    typed = [
        *(NUMBERS if any(name in text for name in ("int", "float", "Any")) else ()),
        *(HUGE if any(name in text for name in ("int", "float")) and "list" not in text and key not in COUNTS else ()),
        *(LISTS if "list" in text or hint is Any else ()),
        *(WORDS if "str" in text or hint is Any else ()),
        *(("true", "false", "yes", "2") if hint is bool else ()),
    ]
    if key in NEVER:
        return st.sampled_from(["false", "maybe", "null", "[]", "2.5", "nan"])
    wild = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)
    return st.one_of(st.sampled_from(typed), st.sampled_from(typed), st.sampled_from(ANYTHING), wild)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """A small run on one to three ranks, with up to two things changed, most of which are wrong."""
    chosen = {group: draw(st.sampled_from(choices(group))) for group in ("algorithm", "model", "optimizer")}
    small = next(sizes for part, sizes in SMALL_MODELS.items() if part in chosen["model"])
    overrides = [*SMALL, *(f"{group}={choice}" for group, choice in chosen.items()), *small]
    overrides.append(f"blocks={draw(st.integers(1, 3))}")
    known = list(keys(TrainConfig))
    for group, choice in {**chosen, "data": "digits"}.items():
        known += keys(schema(group, choice), f"{group}.")
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        if draw(st.integers(0, 4)) == 0:
            overrides.append(draw(st.sampled_from([*MALFORMED, *(f"data={name}" for name in choices("data"))])))
        else:
            key, hint = draw(st.sampled_from(known))
            value = draw(values(key, hint))
            if not (key == "model.width" and hint is float and value in ("1", "2", "3", "1_0", "0x10")):
                overrides.append(f"{key}={value}")
    return Command(draw(st.sampled_from([1, 1, 2, 3])), tuple(overrides))


OPTIONS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # a command is short enough as it is
)


def small(*overrides: str, ranks: int = 1) -> Command:
    return Command(ranks, (*SMALL, *SMALL_MODELS["mlp"], "blocks=2", *overrides))
