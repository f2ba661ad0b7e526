"""Weights that are handed over: the encoder of a pre-training, the best ones of a fine-tuning."""

from pathlib import Path

from shared.errors import InputError


def load_encoder(path: Path, width: int | None = None, method: str | None = None) -> dict:
    """Weights of the encoder out of a pre-training checkpoint, batch-norm statistics included (M4).

    Raises:
        InputError: no checkpoint of pre-training, or of another width or method than asked for.
    """
    from papers.pcl.train import Config
    from shared.checkpoints import load_checkpoint, load_config

    content = load_checkpoint(path, "pcl")
    found = load_config(content, Config, path)
    if found.stage != "pretrain":
        raise InputError(f"{path}: variant '{found.variant}' is fine-tuned; expected a pre-trained encoder")
    if method is not None and found.method != method:
        raise InputError(f"{path}: the encoder is pre-trained by '{found.method}', expected '{method}'")
    if width is not None and found.width != width:
        raise InputError(f"{path}: the encoder has width {found.width}, expected {width}; set --width")
    if len(content["models"]) != 1:
        raise InputError(f"{path}: holds {len(content['models'])} models, expected 1")
    prefix = "encoder."
    weights = content["models"][0]
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


class Best:
    """The weights with the best validation Dice so far; a checkpoint holds it beside the last ones."""

    def __init__(self):
        self.score, self.weights = -1.0, {}

    def offer(self, score: float, model) -> None:
        if score > self.score:
            self.score = score
            self.weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}

    def state_dict(self) -> dict:
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.score, self.weights = state["score"], state["weights"]
