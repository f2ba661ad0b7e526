"""Two processes are one: batch norm, gathered batches, stopping and resuming."""

import pytest
import torch
from torch import nn

from shared import distributed
from shared.distributed import SyncedBatchNorm, gather, synchronise_batch_norm
from shared.training_log import read_log
from tests.shared.toy import config, in_processes, same, train, weights


def _train_rank(rank, settings):
    train(settings)


def test_two_processes_follow_one_with_batch_norm(tmp_path):
    train(config(tmp_path, "one", dropout=0.0))
    in_processes(_train_rank, config(tmp_path, "two", dropout=0.0))
    one, two = (read_log(tmp_path / name / "log.csv")["loss"] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in a["models"][0].items():
        torch.testing.assert_close(b["models"][0][key], value, rtol=1e-4, atol=1e-6)


def _resume_rank(rank, settings):
    settings.resume = True
    train(settings)


def test_two_processes_resume_bit_exactly(tmp_path):
    settings = config(tmp_path, "whole")
    in_processes(_train_rank, settings)
    in_processes(_stop_rank, config(tmp_path, "cut"))
    assert weights(tmp_path / "cut")["step"] == 3
    in_processes(_resume_rank, config(tmp_path, "cut"))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def _stop_rank(rank, settings):
    with pytest.raises(KeyboardInterrupt):
        train(settings, interrupt_at=2 if rank == 1 else None)  # one process is told, both stop


def _gather_rank(rank, folder):
    torch.distributed.init_process_group("gloo")
    x = torch.full((2, 3), float(rank + 1), requires_grad=True)
    everything = gather(x)
    assert everything.shape == (4, 3)
    everything.square().sum().backward()
    # Both processes compute the loss, so each element's gradient arrives from both.
    torch.testing.assert_close(x.grad, 2 * 2 * torch.full((2, 3), float(rank + 1)))
    torch.distributed.destroy_process_group()


def test_gather_is_differentiable(tmp_path):
    x = torch.ones(2, 3)
    assert gather(x) is x
    in_processes(_gather_rank, tmp_path)


def test_synced_batch_norm_in_one_process_is_batch_norm(monkeypatch):
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    plain = nn.BatchNorm3d(4)
    nn.init.normal_(plain.weight)
    synced = synchronise_batch_norm(nn.Sequential(plain), torch.device("cpu"))[0]
    assert isinstance(synced, SyncedBatchNorm)
    x = 3 + 2 * torch.randn(2, 4, 3, 3, 3)
    torch.testing.assert_close(synced(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(synced.running_var, plain.running_var, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(synced.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
