"""What a task adds to a backbone, as a file that another run on the same backbone can take over."""

from pathlib import Path

import torch

from papers.m3ad.model import M3AD, load_task_state, task_state
from papers.m3ad.vocabulary import Vocabulary
from shared.checkpoints import digest_of, fitting, load_tensors, refuse_nan, save_tensors
from shared.cli import config_to_dict
from shared.errors import InputError


def backbone_digest(model: M3AD) -> str:
    """SHA-256 of all that a task leaves as it was: models with the same one can swap their tasks."""
    added = task_state(model).keys()
    return digest_of({name: value for name, value in model.state_dict().items() if name not in added})


def write_task(path: Path, model: M3AD, config, vocabulary: Vocabulary) -> int:
    """Write the trained tensors, the answers, the configuration and a digest of the backbone.

    Returns:
        how many numbers the tensors hold.
    """
    content = {
        "paper": "m3ad", "config": config_to_dict(config), "answers": vocabulary.answers, "task": task_state(model),
        "backbone": backbone_digest(model),
    }  # fmt: skip
    save_tensors(path, content)
    return sum(value.numel() for value in content["task"].values())


def swap_task(model: M3AD, vocabulary: Vocabulary, path: Path, device: torch.device) -> None:
    """Put the adapters, the head and the answers of a file of `write_task` in place of the model's own.

    Raises:
        InputError: no such file, or one of other adapters or of another backbone.
    """
    content = load_tensors(path)
    with fitting(path):
        if content["backbone"] != backbone_digest(model):
            raise InputError(
                f"{path}: was exported from a run on another backbone, or that trains other parts of it; expected one "
                "that was tuned in the same way as --checkpoint, from the same --init"
            )
        vocabulary.load_state_dict({**vocabulary.state_dict(), "answers": content["answers"]})
        refuse_nan([content["task"]], path)
        model.head[-1] = torch.nn.Linear(model.head[-1].in_features, len(vocabulary.answers)).to(device)
        load_task_state(model, content["task"])
