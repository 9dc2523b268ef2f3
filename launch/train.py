"""Train: ``torchrun --nproc_per_node=4 launch/train.py [overrides]``, or ``python launch/train.py`` on one process."""

from pathlib import Path

from counterflow.cli.launch import main

if __name__ == "__main__":
    main(Path(__file__).parent.parent / "conf")
