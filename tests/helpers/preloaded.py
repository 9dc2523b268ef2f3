"""Imports of the server that the processes of tests are forked from.

All that a run needs, with hydra's parser warm, and what the modules import in which tests define tasks.
"""

# ruff: noqa: E402, F401

import gc

import counterflow.cli  # before torch, which reads the level of its log that this sets

gc.disable()  # it would walk all that is imported time and again

import hypothesis
import pytest
import sklearn.datasets
import sklearn.model_selection
import tensorboard.summary.writer.event_file_writer
import torch.distributed.launcher.api
import torchvision.models

import counterflow.bench.case
import counterflow.cli.train
import counterflow.engine.pipelined
import counterflow.trace.timeline
import tests.helpers.elastic
from counterflow.cli.hydra_app import load_config

load_config([])  # the first composition takes three times as long as the others
gc.collect()
gc.freeze()  # no process walks, and so copies, what all of them share
gc.enable()
