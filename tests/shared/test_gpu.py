"""Runs: stopping, resuming, losses, the folder that they write to. The contract tests them through every paper too."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shared import gpu
from shared.checkpoints import save_checkpoint
from shared.errors import InputError
from shared.training_log import read_log
from tests.shared import toy
from tests.shared.toy import Noisy, config, same, train, weights

ROOT = Path(__file__).parents[2]


def test_ctrl_c_then_resume_is_bit_exact(tmp_path):
    train(config(tmp_path, "whole"))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        train(config(tmp_path, "cut"), interrupt_at=2)
    assert weights(tmp_path / "cut")["step"] == 3
    train(config(tmp_path, "cut", resume=True))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    whole, cut = (read_log(tmp_path / name / "log.csv") for name in ("whole", "cut"))
    assert whole == cut and whole["step"] == list(range(1, 9))


def test_without_the_random_state_resume_would_differ(tmp_path, monkeypatch):
    """The test above can fail: leave out the random state, and dropout differs."""
    train(config(tmp_path, "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, "cut"), interrupt_at=2)
    monkeypatch.setattr(gpu, "set_rng_state", lambda state, device: None)
    train(config(tmp_path, "cut", resume=True))
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_log_rows_after_the_checkpoint_are_dropped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, "cut"), interrupt_at=2)
    with (tmp_path / "cut" / "log.csv").open("a") as file:
        file.write("4,0.123\n5,0.4")  # a kill while writing, after the last checkpoint
    train(config(tmp_path, "cut", resume=True))
    assert read_log(tmp_path / "cut" / "log.csv")["step"] == list(range(1, 9))


def test_resume_with_other_settings_is_refused(tmp_path):
    train(config(tmp_path))
    with pytest.raises(InputError, match="dropout was 0.3 and is now 0.5"):
        train(config(tmp_path, resume=True, dropout=0.5))


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    train(config(tmp_path))
    kept = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    content = weights(tmp_path / "run")
    content["config"].update(steps=12, poison=10)
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", content)
    kept = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(gpu.TrainingStopped, match="step 11.*kept"):
        train(config(tmp_path, resume=True, steps=12, poison=10))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == kept


def test_resume_without_a_checkpoint_starts_anew(tmp_path):
    train(config(tmp_path, "one", resume=True))
    train(config(tmp_path, "two"))
    assert read_log(tmp_path / "one" / "log.csv") == read_log(tmp_path / "two" / "log.csv")


def test_a_checkpoint_is_lost_only_where_that_was_asked_for(tmp_path):
    train(config(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="checkpoint.pt is there already: .*--resume.*--overwrite.*--out"):
        train(config(tmp_path, steps=4))
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    train(config(tmp_path, steps=4, overwrite=True))
    assert weights(tmp_path / "run")["step"] == 4
    assert read_log(tmp_path / "run" / "log.csv")["step"] == [1, 2, 3, 4]


def test_the_data_set_and_the_starting_point_are_not_overwritten(tmp_path):
    train(config(tmp_path))
    settings = config(tmp_path, overwrite=True, init=tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(InputError, match="input itself"):
        train(settings)
    settings.init, settings.data = None, settings.out
    with pytest.raises(InputError, match="input itself"):
        train(settings)
    assert weights(tmp_path / "run")["step"] == 8


@pytest.mark.parametrize("values, message", [
    ({"seed": -1}, "--seed -1 is negative"), ({"steps": -3}, "--steps -3 is negative"),
    ({"batch_size": 0}, "--batch-size"),
    ({"dropout": float("nan")}, "--dropout nan is not finite"), ({"accumulate": 0}, "--accumulate"),
    ({"checkpoint_every": -1.0}, "--checkpoint-every"),
])  # fmt: skip
def test_settings_out_of_range(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        train(config(tmp_path, **values))
    assert not (tmp_path / "run").exists()


# --- two trainings, and the command that goes on ----------------------------------------------------------


def start(*argv):
    """The toy's command line in a process of its own, once it has trained a step."""
    argv = [str(part) for part in argv]
    out = Path(argv[argv.index("--out") + 1])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.shared.toy", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    while process.poll() is None and not (out / "log.csv").exists():
        time.sleep(0.05)
    return process


def test_the_second_training_in_a_folder_gets_a_sentence(tmp_path):
    out = tmp_path / "run"
    first = start("--data", tmp_path, "--out", out, "--pause", "0.05", "--steps", "2000")
    try:
        for values in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError, match="in use by another training"):
                train(config(tmp_path, **values))
    finally:
        first.kill()
        first.communicate()
    train(config(tmp_path))  # the lock is gone with the process
    assert weights(out)["step"] == 8


@pytest.mark.parametrize("argv, values", [
    (("--variant", "dry", "--profile", "smoke", "--dropout", "0.1", "--no-resume"),
     {"variant": "dry", "profile": "smoke", "dropout": 0.1}),
    (("--overwrite",), {}),
])  # fmt: skip
def test_what_the_interrupt_message_says_works_as_typed(tmp_path, argv, values):
    out, data = tmp_path / "my run's $HOME", tmp_path / "some data"
    data.mkdir()
    process = start("--data", data, "--out", out, *argv, "--pause", "0.1", "--steps", "30")
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    assert process.returncode == 130 and message.count("\n") == 1
    assert 0 < weights(out)["step"] < 30
    command = message.split("go on with: ")[1].strip()
    assert command.endswith(" --resume") and "--overwrite" not in command and "--no-resume" not in command
    subprocess.run(command, shell=True, cwd=ROOT, check=True)
    assert weights(out)["step"] == 30
    train(config(tmp_path, "whole", steps=30, **values))
    assert same(weights(out), weights(tmp_path / "whole"))


@pytest.mark.parametrize("limit, what", [(20_000, "checkpoint.pt"), (300, "config.json")])
def test_a_full_disk_ends_a_training_with_a_sentence(tmp_path, capsys, limit, what):
    """What was written is whole, and the training goes on from it when there is space again."""
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--device", "cpu"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(SystemExit) as stopped:
            toy.main(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1 and f"run/{what}: " in message
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == ({".lock", "config.json", "log.csv"} if what == "checkpoint.pt" else {".lock"})
    toy.main([*argv, "--resume"])
    assert weights(tmp_path / "run")["step"] == 8 and read_log(tmp_path / "run" / "log.csv")["step"] == list(
        range(1, 9)
    )


# --- weights and random draws by seed ---------------------------------------------------------------------


class Branches(nn.Module):
    """Two parts, in this order or the other, the second with another width."""

    def __init__(self, names, extra=False):
        super().__init__()
        layers = {"a": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), "b": nn.Linear(5, 3)}
        self.parts = nn.ModuleDict({name: layers[name] for name in names})
        self.attention = nn.MultiheadAttention(4, 2)
        if extra:
            self.extra = nn.Linear(7, 7)


def test_initial_weights_depend_on_names_and_not_on_what_else_there_is():
    torch.manual_seed(5)
    one = gpu.initialise_by_name(Branches("ab"), seed=3).state_dict()
    torch.manual_seed(6)
    two = gpu.initialise_by_name(Branches("ba", extra=True), seed=3).state_dict()
    other = gpu.initialise_by_name(Branches("ab"), seed=4).state_dict()
    assert set(one) < set(two)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["parts.b.weight"], other["parts.b.weight"])
    twins = gpu.initialise_by_name(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), seed=3)
    assert not torch.equal(twins[0].weight, twins[1].weight)  # another name, other numbers
    assert one["parts.a.0.weight"].abs().max() <= 1 / 3  # still torch's own range, 1 / sqrt(fan in)


def test_own_initialisation_comes_after_the_layers_and_under_its_own_name():
    def init(module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=10.0)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = gpu.initialise_by_name(Branches("ab"), 3, init).state_dict()
    two = gpu.initialise_by_name(Branches("b", extra=True), 3, init).state_dict()
    assert torch.equal(one["parts.b.weight"], two["parts.b.weight"]) and one["parts.b.weight"].std() > 3
    model = Branches("ab")
    torch.set_rng_state(before)
    gpu.initialise_by_name(model, 3, init)
    assert torch.equal(torch.get_rng_state(), before)


def test_parents_have_the_last_word():
    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 3)

        def reset_parameters(self):
            nn.init.zeros_(self.last.weight)

    assert not gpu.initialise_by_name(nn.Sequential(Zero()), 0)[0].last.weight.any()


def test_draws_in_the_loop_do_not_depend_on_what_the_model_drew(tmp_path):
    def draws(name, width, **values):
        run = gpu.Run(config(tmp_path, name, **values), paper="toy")
        model = run.prepare(nn.Linear(5, width))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.restore(optimizer=optimizer)
        seen = []
        for part in (3, 6):  # two phases: seeded before the first step alone
            for _, batch in run.batches(Noisy(), part):
                seen.append((torch.rand(1).item(), np.random.rand()))
                run.update(model(batch["x"]).mean(), optimizer)
        return seen

    one, two = draws("one", 2), draws("two", 300)
    assert one == two and len(set(one)) == 6
    assert draws("three", 2, seed=1) != one


# --- losses, gradients and precision ---------------------------------------------------------------------


def test_weights_that_are_not_finite_stop_and_keep_the_checkpoint(tmp_path):
    """The loss of the last step is finite, the weights after it are not: they must not replace the good ones."""
    settings = config(tmp_path, checkpoint_every=0.0)
    run = gpu.Run(settings, paper="toy")
    model = run.prepare(nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.restore(optimizer=optimizer)
    with pytest.raises(gpu.TrainingStopped, match="weights weight became nan by step 3; .*kept"):
        for step, batch in run.batches(Noisy(), 3):
            run.update(model(batch["x"]).mean(), optimizer)
            if step == 2:
                with torch.no_grad():
                    model.weight.fill_(float("nan"))
    assert weights(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_gradients_are_clipped_in_their_own_scale(tmp_path, precision):
    """With a gradient scaler that is on, the gradient has to be unscaled before its norm is compared."""
    run = gpu.Run(config(tmp_path, precision=precision), paper="toy")
    assert run.scaler.is_enabled() == (precision == "fp16")
    model = run.prepare(nn.Linear(5, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run.restore(optimizer=optimizer)
    before = model.weight.detach().clone()
    x = torch.tensor([[3.0, 0.0, 4.0, 0.0, 0.0]])  # the gradient, of norm 5
    run.update(model(x).sum(), optimizer, clip=0.5)
    torch.testing.assert_close(before - model.weight.detach(), 0.5 * x / 5, rtol=1e-3, atol=1e-6)


def test_samples_depend_on_the_step_alone(tmp_path):
    """Same order and same augmentation whatever the number of workers, and after a resume."""
    one, two, cut = [], [], []
    train(config(tmp_path, "a"), one)
    train(config(tmp_path, "b", workers=2), two)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, "c"), cut, interrupt_at=4)
    train(config(tmp_path, "c", resume=True), cut)
    assert one == two == cut
    assert one[0][2] != one[3][2]


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    """Without batch norm, two halves are one batch."""

    def run_one(accumulate):
        settings = config(tmp_path, f"a{accumulate}", accumulate=accumulate)
        run = gpu.Run(settings, paper="toy")
        model = run.prepare(nn.Linear(5, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.restore(optimizer=optimizer)
        for _, batch in run.batches(Noisy(), 3):
            run.update((model(batch["x"])[:, 0] - batch["y"]).square().mean(), optimizer)
        return model.weight.detach(), read_log(settings.out / "log.csv")["loss"]

    (one, log_one), (two, log_two) = run_one(1), run_one(2)
    torch.testing.assert_close(one, two)
    assert log_one == pytest.approx(log_two, rel=1e-5)


def test_batch_that_can_not_be_divided(tmp_path):
    with pytest.raises(InputError, match="--batch-size 4 can't be divided"):
        gpu.Run(config(tmp_path, accumulate=3), paper="toy")


def test_unknown_device(tmp_path):
    for name in ("tpu9", "cuda:77"):
        with pytest.raises(InputError, match=name):
            gpu.choose_device(name)


def test_bf16_runs_on_cpu(tmp_path):
    train(config(tmp_path, precision="bf16"))
    assert np.isfinite(read_log(tmp_path / "run" / "log.csv")["loss"]).all()


def test_channels_last_changes_the_layout_alone(tmp_path):
    run = gpu.Run(config(tmp_path, channels_last=True), paper="toy")
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 4, 3)
    before = conv.weight.detach().clone()
    conv = run.prepare(conv)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(conv.weight, before)
