"""The ``counterflow`` command: one word for each program, and ``train`` on several processes."""

import sys
from importlib import import_module

from counterflow.cli.console import closed_pipe_allowed

_COMMANDS = {
    "train": ("counterflow.cli.launch", "train a network, on one process or with --ranks N on several"),
    "sweep": ("counterflow.cli.stages", "train every combination of options, one after the other"),
    "tokenize": ("counterflow.cli.tokenize", "train a tokenizer on a text, for data.tokenizer"),
    "plan": ("counterflow.planner.cli", "choose blocks, cut, lag and depth for a set of machines"),
    "bench": ("counterflow.bench.cli", "measure cases side by side"),
    "doctor": ("counterflow.doctor.cli", "check a machine before a run"),
    "report": ("counterflow.report.cli", "write tables, figures and a page of finished runs"),
    "export": ("counterflow.cli.export", "write the network of a run for use elsewhere"),
    "predict": ("counterflow.cli.predict", "predict classes of files by the network of a run"),
    "generate": ("counterflow.cli.generate", "continue a text by the language model of a run"),
    "evaluate": ("counterflow.cli.evaluate", "measure the network of a run on test data"),
}
_HYDRA = ("plan", "bench")
"""Programs whose arguments hydra reads."""
_USAGE = """\
usage: counterflow COMMAND [OPTIONS]

  counterflow train --ranks 4 algorithm=bll model=mlp
  counterflow report runs/* --out runs/report

commands (each has --help):
{commands}"""


def main() -> None:
    """Run the command that the first argument names."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in _COMMANDS:
        module, _ = _COMMANDS[command]
        sys.argv = [f"counterflow {command}", *sys.argv[2:]]
        program = import_module(module).main
        sys.exit(program() if command in _HYDRA else program(sys.argv[1:]))
    usage = _USAGE.format(commands="\n".join(f"  {name:8} {text}" for name, (_, text) in _COMMANDS.items()))
    if command in ("--help", "-h"):
        with closed_pipe_allowed():
            print(usage)
        return
    print(f"error: {command}: no such command, allowed are {', '.join(_COMMANDS)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
