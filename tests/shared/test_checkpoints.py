"""Checkpoints: what is damaged, edited or cut short is noticed and said in one sentence; nothing runs code."""

import errno
import os
import resource

import pytest
import torch
from torch import nn

from shared import checkpoints
from shared.checkpoints import (
    fitting,
    load_all_weights,
    load_checkpoint,
    load_model,
    load_tensors,
    load_weights,
    save_checkpoint,
    save_tensors,
)
from shared.errors import InputError
from tests.edits import edits
from tests.shared.toy import Config, Net, build_model, config, train, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a finished training of the toy."""
    folder = tmp_path_factory.mktemp("toy")
    train(config(folder))
    return folder / "run"


def refused(call) -> str | None:
    """The one sentence of an InputError, or None where there is no error."""
    try:
        call()
    except InputError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 700, message
        return message
    return None


def test_examples_in_docstrings():
    import doctest

    found = doctest.testmod(checkpoints, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0 and found.attempted > 0


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_unreadable_checkpoints(tmp_path, trained, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((trained / "checkpoint.pt").read_bytes()[:-200] if content is None else content)
    with pytest.raises(InputError, match="checkpoint.pt: not a readable checkpoint"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="no checkpoint"):
        load_checkpoint(tmp_path)


def test_checkpoint_of_another_paper_or_variant(trained):
    path = trained / "checkpoint.pt"
    with pytest.raises(InputError, match="'toy', expected one of 'other'"):
        load_checkpoint(path, "other")
    with pytest.raises(InputError, match="variant 'full', expected 'unet'"):
        load_checkpoint(path, "toy", "unet")


def test_checkpoints_hold_no_pickled_objects(trained, tmp_path):
    assert torch.load(trained / "checkpoint.pt", weights_only=True)["step"] == 8
    torch.save({**weights(trained), "paper": Net(0.0)}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_damage_anywhere_is_noticed(trained, tmp_path):
    """A changed byte makes the file unreadable, is seen by the digest, or lies where nothing is stored."""
    whole = (trained / "checkpoint.pt").read_bytes()
    expected, path, noticed = weights(trained), tmp_path / "checkpoint.pt", 0
    # Every byte of the weights' storages matters; of the rest, a few hundred places.
    bias = expected["models"][0]["layers.4.bias"].numpy().tobytes()
    assert whole.count(bias) == 1
    places = [*range(whole.index(bias), whole.index(bias) + len(bias)), *range(0, len(whole), 211)]
    for number, place in enumerate(places):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        message = refused(lambda: load_checkpoint(path, "toy"))
        assert message is not None or number >= len(bias), f"byte {place} of a weight was changed unnoticed"
        noticed += message is not None
        if message is None:
            assert checkpoints.digest_of(load_checkpoint(path)) == checkpoints.digest_of(expected)
    assert noticed > len(places) / 4


def test_every_edit_is_refused_in_one_sentence(trained, tmp_path):
    """Resuming needs all of a checkpoint, evaluating its settings and models."""
    content, run = weights(trained), tmp_path / "run"
    settings = config(tmp_path, resume=True)
    settings.data = content["config"]["data"]
    unseen, count = [], 0
    run.mkdir()
    for what, edited in edits(content):
        save_checkpoint(run / "checkpoint.pt", edited)
        evaluated = refused(lambda: load_model(run / "checkpoint.pt", "toy", Config, build_model))
        resumed = refused(lambda: train(settings))
        part = what.split()[0]
        needed = part not in ("no", "optimizer", "scheduler", "object", "rng", "another", "objects", "scaler")
        if resumed is None or (evaluated is None and needed):
            unseen.append((what, evaluated, resumed))
        count += 1
    assert not unseen
    assert count > 250
    save_checkpoint(run / "checkpoint.pt", content)
    assert refused(lambda: train(settings)) is None  # what was not edited is taken


def test_a_model_comes_back_with_its_settings(trained):
    model, settings = load_model(trained / "checkpoint.pt", "toy", Config, build_model)
    assert not model.training and settings.steps == 8
    assert torch.equal(model.state_dict()["layers.0.weight"], weights(trained)["models"][0]["layers.0.weight"])
    with pytest.raises(InputError, match="holds 1 models, expected 2"):
        load_model(trained / "checkpoint.pt", "toy", Config, build_model, which=1, of=2)


def test_settings_that_make_no_model(trained):
    def build(settings):
        return nn.Linear(-1, 3)

    with pytest.raises(InputError, match="checkpoint.pt: its content does not fit this version .*train anew"):
        load_model(trained / "checkpoint.pt", "toy", Config, build)


def test_several_models_and_other_contents(tmp_path):
    path = tmp_path / "checkpoint.pt"
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    load_all_weights([one], [two.state_dict()], path)
    assert torch.equal(one.weight, two.weight)
    with pytest.raises(InputError, match="checkpoint.pt: holds 1 models, expected 2"):
        load_all_weights([one, two], [one.state_dict()], path)
    with pytest.raises(InputError, match="checkpoint.pt: its weights don't fit the Linear .*weight is .3, 2."):
        load_weights(one, nn.Linear(2, 3).state_dict(), path)
    selected = {"weight": torch.full((2, 2), float("nan")), "bias": torch.zeros(2)}  # among the objects, say
    with pytest.raises(InputError, match="checkpoint.pt: its weights weight are not finite"):
        load_weights(one, selected, path)
    with pytest.raises(InputError, match=r"checkpoint.pt.*KeyError: 'best'"), fitting(path):
        {}["best"]
    save_tensors(path, dict(one.state_dict()))  # for other programs: nothing but what was given
    assert torch.load(path, weights_only=True).keys() == {"weight", "bias"} == load_tensors(path).keys()
    with pytest.raises(InputError, match="lacks paper"):
        load_checkpoint(path)
    save_tensors(path, [1, 2])
    with pytest.raises(InputError, match="holds a list"):
        load_tensors(path)


def test_a_digest_sees_every_type_name_shape_and_value():
    one = {"a": torch.arange(6).reshape(2, 3), "b": [1, "x", None], "c": (1.0, True)}
    others = [
        {**one, "a": torch.arange(6).reshape(3, 2)},
        {**one, "a": torch.arange(6.0).reshape(2, 3)},
        {**one, "b": ["1", "x", None]},
        {**one, "b": [1, "x"]},
        {**one, "b": (1, "x", None)},
        {**one, "c": (1.0, 1)},
        {**one, "d": {}},
        {"z" if key == "a" else key: value for key, value in one.items()},
    ]
    digests = {checkpoints.digest_of(item) for item in (one, *others)}
    assert len(digests) == 1 + len(others)
    strided = {**one, "a": torch.arange(6).reshape(3, 2).T.contiguous().T.reshape(2, 3)}
    assert checkpoints.digest_of(strided) == checkpoints.digest_of(one)


@pytest.fixture
def small_files_only():
    """The system lets no file grow beyond 200 kB: writes fail in their midst, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failing_write_keeps_the_old_checkpoint(trained, tmp_path, small_files_only):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, weights(trained))
    kept = path.read_bytes()
    with pytest.raises(OSError) as failed:
        save_checkpoint(path, {**weights(trained), "objects": {"large": torch.zeros(100_000)}})
    assert failed.value.errno == errno.EFBIG and os.path.samefile(failed.value.filename, path)
    assert path.read_bytes() == kept and list(tmp_path.iterdir()) == [path]
