"""A run of M3AD can be repeated: nothing is drawn unseeded, and another processor changes it by rounding alone."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import ledger
from shared.checkpoints import load_checkpoint
from shared.training_log import read_log
from tests.smoke import train_variant


@pytest.mark.parametrize("variant", ["pretrain", "full"])
def test_same_seed_same_weights(variant, smoke_data, smoke_run, tmp_path):
    """Bit for bit, whatever was drawn in the process before."""
    init = smoke_run("m3ad", "pretrain") / "checkpoint.pt" if variant != "pretrain" else None
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    train_variant("m3ad", variant, smoke_data("m3ad"), tmp_path, init=init)
    one, other = (load_checkpoint(run / "checkpoint.pt")["models"][0] for run in (tmp_path, smoke_run("m3ad", variant)))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_another_number_of_threads_rounds_otherwise_and_no_more(smoke_data, smoke_run, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))  # 1 and 2
    try:
        train_variant("m3ad", "pretrain", smoke_data("m3ad"), tmp_path)
    finally:
        torch.set_num_threads(threads)
    here, there = (read_log(run / "log.csv")["loss"] for run in (smoke_run("m3ad", "pretrain"), tmp_path))
    assert there == pytest.approx(here, rel=1e-4)


def test_another_processor_rounds_otherwise_and_no_more(smoke_data, smoke_run, tmp_path):
    """Torch's kernels without vector instructions, as on an old processor: the same losses but for the last digits."""
    argv = ["--data", smoke_data("m3ad"), "--out", tmp_path / "run", "--profile", "smoke", "--variant", "pretrain"]
    subprocess.run(
        [sys.executable, "-m", "papers.m3ad.train", *map(str, argv), "--device", "cpu"],
        cwd=ledger.ROOT, env={**os.environ, "ATEN_CPU_CAPABILITY": "default"}, check=True,
    )  # fmt: skip
    here, there = (read_log(run / "log.csv")["loss"] for run in (smoke_run("m3ad", "pretrain"), tmp_path / "run"))
    assert there == pytest.approx(here, rel=1e-4)
