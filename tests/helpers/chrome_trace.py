"""Reader of trace files in the Chrome trace event format."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.recorder import DTYPE, NAMES


def read_traces(path: Path) -> list[RankTrace]:
    """Traces of all ranks that `counterflow.trace.rank_trace.write_chrome` wrote to ``path``."""
    lanes: dict[int, dict[int, str]] = defaultdict(dict)
    spans: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for event in json.loads(path.read_text())["traceEvents"]:
        rank, lane, args = event["pid"], event["tid"], event["args"]
        if event["ph"] == "X":
            part = args.get("micro_batch", args.get("test_batch", -1))
            start, end = event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6
            spans[rank].append((NAMES.index(event["name"]), lane, args["batch"], part, start, end))
        elif event["name"] == "thread_name":
            lanes[rank][lane] = args["name"]
    return [RankTrace(rank, lanes[rank], np.array(spans[rank], DTYPE)) for rank in sorted(spans)]
