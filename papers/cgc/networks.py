"""The networks of a configuration, and what they know about the volumes that they were trained on."""

from dataclasses import dataclass

import torch
from torch import nn

from papers.cgc.autoencoder import AutoEncoder
from papers.cgc.boosting import BoostedVoxels
from papers.cgc.brightness import BrightnessThreshold
from papers.cgc.data import Case
from papers.cgc.model import Segmenter, UNet3d
from papers.cgc.mumford_shah import MumfordShahNet
from papers.cgc.proposal import channels_of
from shared import gpu
from shared.errors import InputError


@dataclass
class Scanned:
    """Modalities and spacing of the volumes that a network was trained on; kept in its checkpoint."""

    modalities: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    """along z, y, x"""

    def state_dict(self) -> dict:
        return {"modalities": list(self.modalities), "spacing_mm": list(self.spacing_mm)}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if these are not a network's modalities and spacing."""
        modalities, spacing = tuple(state["modalities"]), tuple(float(mm) for mm in state["spacing_mm"])
        if not modalities or not all(isinstance(name, str) for name in modalities) or len(spacing) != 3:
            raise ValueError(f"modalities {modalities}, spacing {spacing}")
        self.modalities, self.spacing_mm = modalities, spacing

    def check_fits(self, case: Case) -> None:
        """The volume has the modalities and about the spacing of the training.

        Raises:
            InputError: it has not.
        """
        if tuple(case.modalities) != self.modalities:
            raise InputError(
                f"{case.original.path}: the network was trained with the {len(self.modalities)} modalities "
                f"{', '.join(self.modalities)}, here are {', '.join(case.modalities)}"
            )
        if any(not 0.7 < mm / trained_mm < 1.43 for mm, trained_mm in zip(case.spacing, self.spacing_mm)):
            found, expected = (" x ".join(f"{mm:.2g}" for mm in grid) for grid in (case.spacing, self.spacing_mm))
            raise InputError(
                f"{case.original.path}: the spacing is {found} mm (z, y, x) and the network was trained at {expected} "
                "mm; resample the scan first (shared.resample.resample_to_spacing)"
            )


def build_model(config, modalities: tuple[str, ...]) -> nn.Module:
    """The network of a configuration for these modalities, on the CPU, initialised by the configuration's seed."""
    channels = len(modalities)
    if config.method == "brightness":
        return BrightnessThreshold()
    if config.method == "boosting":
        return BoostedVoxels(channels, config.boosting_voxels)
    if config.method == "autoencoder":
        model = AutoEncoder(channels, config.patch, config.widths, config.code)
    elif config.method == "mumford_shah":
        model = MumfordShahNet(channels, channels_of(modalities), config.segments, config.widths, config.norm)
    else:
        cgc = {
            "grid": config.grid,
            "embedding": config.embedding,
            "temperature": config.temperature,
            "coarse": config.use_coarse,
            "fine": config.use_fine,
            "sim": config.sim,
            "anchors": config.anchors,
            "coverage": (config.lesion_coverage, config.normal_coverage),
            "cell_coverage": (config.cell_lesion, config.cell_normal),
        }
        backbone = UNet3d(channels, 2, config.widths, config.norm)
        model = Segmenter(backbone, config.patch, cgc if config.use_coarse or config.use_fine else None)
    model = gpu.initialise_by_name(model, config.seed)
    return model.to(memory_format=torch.channels_last_3d)  # 1.4 times as fast on a CPU
