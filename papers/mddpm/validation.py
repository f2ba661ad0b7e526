"""Which weights are kept: those with the lowest error on healthy validation slices."""

import torch

from shared.checkpoints import misfit
from shared.gpu import to_device


class BestWeights:
    """The weights with the lowest healthy validation loss, and the size of the slices. Part of the checkpoint."""

    def __init__(self, height: int, width: int):
        self.state = {"validations": 0, "loss": float("inf"), "weights": {}, "size": [height, width]}

    def update(self, loss: float, model) -> None:
        """After each validation: keep the model's weights if they are the best so far."""
        self.state["validations"] += 1
        if loss < self.state["loss"]:
            weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            self.state.update(loss=loss, weights=weights)

    def state_dict(self) -> dict:
        return dict(self.state)

    def load_state_dict(self, state: dict) -> None:
        """Raises a ValueError for what is no such state."""
        found = misfit({**self.state, "weights": None}, {**state, "weights": None})
        if found or state["size"] != self.state["size"] or not isinstance(state["weights"], dict):
            raise ValueError(f"best weights: {found or 'of slices of another size'}")
        self.state = dict(state)


def mean_loss(loss_parts, model, batches: list[dict], device) -> float:
    """Mean of `loss_parts(model, batch)["loss"]` over the validation slices."""
    model.eval()
    total = count = 0
    with torch.no_grad():
        for batch in batches:
            loss = loss_parts(model, to_device(batch, device))["loss"]
            total, count = total + loss.item() * len(batch["clean"]), count + len(batch["clean"])
    model.train()
    return total / count
