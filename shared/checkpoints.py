"""Checkpoints: written whole, read without running code, and put into the models that they belong to."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.cli import config_from_dict
from shared.errors import InputError
from shared.files import write_atomically


def save_checkpoint(path: Path, content: dict) -> None:
    """`torch.save`, atomically. `content` holds tensors and plain Python types only."""
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_checkpoint(path: Path, paper: str | None = None, variant: str | None = None) -> dict:
    """Read a checkpoint written by `Run`, onto the CPU, with `weights_only=True`.

    Returns:
        dictionary with `paper`, `config` (a dictionary), `step`, `models`, `objects`, `scaler`, `rng`.

    Raises:
        InputError: the file is missing, truncated, not a checkpoint, or of another paper or variant.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no checkpoint here; train first, or give the path of a checkpoint.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found_paper, found_variant = content["paper"], content["config"]["variant"]
    except Exception as error:
        raise InputError(f"{path}: not a readable checkpoint of this project (truncated, or another format)") from error
    if paper is not None and found_paper != paper:
        raise InputError(f"{path}: this is a checkpoint of '{found_paper}', expected one of '{paper}'")
    if variant is not None and found_variant != variant:
        raise InputError(f"{path}: this is a checkpoint of variant '{found_variant}', expected '{variant}'")
    return content


def load_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """`model.load_state_dict(state)`, every misfit in one sentence that names `path`.

    Raises:
        InputError: parameters are missing, left over or of another shape.
    """
    try:
        model.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: the weights don't fit the {type(model).__name__} of this version") from error
    return model


def load_model(
    path: Path,
    paper: str,
    config_class: type,
    build: Callable,
    device: torch.device | str = "cpu",
    which: int = 0,
) -> tuple[nn.Module, object]:
    """The trained model of a checkpoint in evaluation mode, and its configuration.

    Args:
        path: the checkpoint.
        paper: slug that it must be of.
        config_class: the paper's `Config`.
        build: makes the model of a configuration, on the CPU.
        device: where the model goes.
        which: number of the model, in the order of `Run.prepare`.

    Raises:
        InputError: no checkpoint of this paper, or one that does not fit this version of its code.
    """
    content = load_checkpoint(path, paper)
    config = config_from_dict(config_class, content["config"])
    model = load_weights(build(config), content["models"][which], path)
    return model.to(device).eval(), config
