"""Train: ``torchrun --nproc_per_node=4 launch/train.py [overrides]``, or ``python launch/train.py`` on one process."""

from counterflow.cli.train import main

if __name__ == "__main__":
    main()
