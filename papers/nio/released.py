"""Weights that the authors of the base network released (github.com/cwmok/Conditional_LapIRN), for NIO to start from.

    network = load_clapirn(Path("LDR_OASIS_NCC_unit_disp_add_fea4_reg01_10_lite_stagelvl3_60000.pth"))
    field = optimise_weights(network, moving, fixed, objective=Objective(lam=0.1)).field

The release counts the components of a field from the last axis, as `grid_sample` does, and `model.LapIRN` from the
first: channels of a field are turned round where they enter and leave a level.
"""

from pathlib import Path

from torch import Tensor

from papers.nio.model import LEVELS, LapIRN
from shared.errors import InputError

NAMES = {
    "features": "input_encoder_lvl1", "down": "down_conv", "up": "up", "flow": "output_lvl1",
    "mapping": "mapping", "norm1.style": "ai1.style", "norm2.style": "ai2.style", "conv1": "conv1", "conv2": "conv2",
}  # fmt: skip
"""Module here -> module there. The release's list of blocks holds a LeakyReLU after each block."""


def released_name(name: str) -> str:
    """Name of a parameter in the release's finest level, which holds the coarser ones.

    Example:
        >>> released_name("levels.0.blocks.1.norm1.style.bias")
        'model_lvl2.model_lvl1.resblock_group_lvl1.2.ai1.style.bias'
    """
    _, level, rest = name.split(".", 2)
    inside = "".join(f"model_lvl{k}." for k in range(LEVELS - 1, int(level), -1))
    if rest.startswith("blocks."):
        _, block, rest = rest.split(".", 2)
        inside += f"resblock_group_lvl1.{2 * int(block)}."
    for ours, theirs in NAMES.items():
        if rest.startswith(ours + "."):
            return inside + theirs + rest[len(ours) :]
    raise KeyError(name)


def convert(released: dict[str, Tensor]) -> LapIRN:
    """A network of the release's widths with its weights.

    Raises:
        KeyError, RuntimeError: other weights than those of a three-level cLapIRN.
    """
    widths = [
        released["input_encoder_lvl1.0.weight"].shape[0], released["down_conv.weight"].shape[0],
        released["up.weight"].shape[1],
    ]  # fmt: skip
    blocks = sum(name.startswith("resblock_group_lvl1.") and name.endswith("conv1.weight") for name in released)
    network, state = LapIRN(widths, blocks), {}
    for name in network.state_dict():
        value = released[released_name(name)]
        if name.endswith("flow.2.weight"):
            value = value.flip(0)
        elif name.endswith("features.0.weight") and value.shape[1] == 5:
            value = value[:, [0, 1, 4, 3, 2]]
        state[name] = value
    network.load_state_dict(state)
    return network


def load_clapirn(path: Path) -> LapIRN:
    """The network in a released `.pth` file of three levels, full or lite.

    Raises:
        InputError: no such file, or other weights.
    """
    import torch

    try:
        return convert(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise InputError(f"{path}: expected the weights of a three-level network of Conditional_LapIRN") from error
