"""What the networks gave on the way of a fit, as a part of the checkpoint."""

import torch
from torch import Tensor, nn

from papers.dmdip.data import scale_of
from papers.dmdip.kspace import replace_centre
from shared.checkpoints import load_checkpoint, load_weights
from shared.errors import InputError
from shared.finite import finite


class Trajectory(nn.Module):
    """Images that the networks of each pair gave after so many updates, and the low images that they were fitted to.

    Args:
        snapshots: recorded per pair, evenly over the updates.
        low: (N, contrasts, h, w), in the units of the files.
        factor: r.
    """

    def __init__(self, snapshots: int, low: Tensor, factor: int):
        super().__init__()
        count, contrasts, height, width = low.shape
        self.register_buffer("low", low.float().clone())
        images = torch.zeros(count, snapshots, contrasts, height * factor, width * factor)
        self.register_buffer("images", images)  # (N, snapshots, contrasts, H, W), in units of `scale_of(low)`

    def results(self, number: int, replace: bool, name: str) -> Tensor:
        """Snapshots of one pair, (snapshots, contrasts, H, W), in the units of the files, maybe with replacement (M6).

        Args:
            number: of the pair.
            replace: put the low image's k-space into the centre of each.
            name: of the pair.

        Raises:
            InputError: they are not finite.
        """
        low = self.low[number]
        images = self.images[number] * scale_of(low)
        return finite(replace_centre(images, low) if replace else images, f"the result for {name}")


def copy_results(config, models: list[nn.Module], low: Tensor) -> None:
    """Fill networks and trajectory from the checkpoint `config.init`, for a variant that reuses them.

    Raises:
        InputError: no checkpoint given, or one of another method or of other images.
    """
    if config.init is None:
        kept = config.variant.replace("_raw", "")
        raise InputError(f"this variant fits nothing: give the checkpoint of variant '{kept}' as --init")
    content = load_checkpoint(config.init, "dmdip")
    if len(content["models"]) != len(models):
        raise InputError(f"{config.init}: holds {len(content['models'])} models, expected {len(models)}")
    for model, state in zip(models, content["models"]):
        load_weights(model, state, config.init)
    if not torch.allclose(models[-1].low.cpu(), low, rtol=1e-3, atol=1e-3 * float(low.abs().max())):
        raise InputError(f"{config.init}: was fitted to other images than those of {config.data}")
