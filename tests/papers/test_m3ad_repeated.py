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
    """Bit for bit, whatever was drawn before in the process and for any number of threads."""
    init = smoke_run("m3ad", "pretrain") / "checkpoint.pt" if variant != "pretrain" else None
    threads = torch.get_num_threads()
    for number in (1, 2):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        torch.set_num_threads(number)
        try:
            train_variant("m3ad", variant, smoke_data("m3ad"), tmp_path / str(number), init=init)
        finally:
            torch.set_num_threads(threads)
    runs = [tmp_path / "1", tmp_path / "2", smoke_run("m3ad", variant)]
    one, *others = (load_checkpoint(run / "checkpoint.pt")["models"][0] for run in runs)
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_another_processor_rounds_otherwise_and_no_more(smoke_data, smoke_run, tmp_path):
    """Torch's kernels without vector instructions, as on an old processor: the same losses but for the last digits."""
    argv = ["--data", smoke_data("m3ad"), "--out", tmp_path / "run", "--profile", "smoke", "--variant", "pretrain"]
    subprocess.run(
        [sys.executable, "-m", "papers.m3ad.train", *map(str, argv), "--device", "cpu"],
        cwd=ledger.ROOT, env={**os.environ, "ATEN_CPU_CAPABILITY": "default"}, check=True,
    )  # fmt: skip
    here, there = (read_log(run / "log.csv")["loss"] for run in (smoke_run("m3ad", "pretrain"), tmp_path / "run"))
    assert there == pytest.approx(here, rel=1e-4)
