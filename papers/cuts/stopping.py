"""When training stops, and which weights count: the best by validation loss."""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset, default_collate

from shared.gpu import Run, to_device


class EarlyStopping:
    """The best weights by validation loss, and when to stop. Part of the checkpoint."""

    def __init__(self, epochs: int, patience: int):
        self.epochs, self.patience = epochs, patience
        self.state = {"first_step": -1, "epoch": 0, "best_epoch": 0, "best_loss": float("inf"), "weights": {}}

    @property
    def finished(self) -> bool:
        state = self.state
        return state["epoch"] >= self.epochs or state["epoch"] - state["best_epoch"] >= self.patience

    def update(self, loss: float, model) -> None:
        """After each epoch."""
        self.state["epoch"] += 1
        if loss < self.state["best_loss"]:
            self.state.update(best_loss=loss, best_epoch=self.state["epoch"])
            self.keep(model)

    def keep(self, model) -> None:
        """The weights that count from now on."""
        self.state["weights"] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def state_dict(self) -> dict:
        return dict(self.state)

    def load_state_dict(self, state: dict) -> None:
        self.state = dict(state)


def validation_loss(losses: Callable[[dict], dict], model, dataset: Dataset, batch_size: int, run: Run) -> float:
    """Mean loss over a data set, in evaluation mode and with the same random draws every time."""
    model.eval()
    total = 0.0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for first in range(0, len(dataset), batch_size):
            items = [dataset[k] for k in range(first, min(first + batch_size, len(dataset)))]
            with run.autocast():
                loss = losses(to_device(default_collate(items), run.device))["loss"]
            total += loss.item() * len(items)
    model.train()
    return total / len(dataset)


def labels_in_use(model, dataset: Dataset, device: torch.device) -> float:
    """Mean number of labels that DFC gives to an image."""
    model.eval()
    with torch.no_grad():
        images = (dataset[k]["image"].to(device)[None] for k in range(len(dataset)))
        counts = [len(model(image).argmax(1).unique()) for image in images]
    model.train()
    return sum(counts) / len(counts)
