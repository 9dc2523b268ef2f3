"""Plan a run: number of blocks, cut, lag and depth, and how fast the run would be on these machines::

    python launch/plan.py model=resnet18 data=cifar10 data.root=DIR train.batch_size=128 \\
        machines.ranks=8 machines.bandwidth_gbps=1 machines.latency_ms=10

It takes the options of ``launch/train.py`` and of the machines, measures every layer here, and simulates the rest.
"""

from counterflow.planner.cli import main

if __name__ == "__main__":
    main()
