"""Trained networks: those of a checkpoint, the one that fits a scan, and one trained on a scan itself."""

import math
from pathlib import Path

import torch
from torch import Tensor

from papers.sr4zct.data import parse_setting
from papers.sr4zct.model import MSD, enhance_images
from papers.sr4zct.scaling import SliceGeometry
from papers.sr4zct.scan import Scan
from papers.sr4zct.train import PROFILES, VARIANTS, Config, axial_pairs, build_model, fit, networks_of
from shared import gpu
from shared.checkpoints import fitting, load_all_weights, load_checkpoint, load_config
from shared.cli import configure
from shared.errors import InputError
from shared.finite import finite


def load_networks(checkpoint: Path, device: torch.device) -> tuple[dict[tuple[str, str], MSD], Config]:
    """The trained networks of a checkpoint, (setting, volume or view) -> network, and its configuration.

    Raises:
        InputError: no checkpoint of this paper.
    """
    content = load_checkpoint(checkpoint, "sr4zct")
    config = load_config(content, Config, checkpoint)
    with fitting(checkpoint):
        networks = {name: build_model(config) for name in networks_of(config)}
    load_all_weights(list(networks.values()), content["models"], checkpoint)
    return {name: network.to(device).eval() for name, network in networks.items()}, config


def enhanced(network: MSD | None, images: Tensor, what: str) -> Tensor:
    """Images (N, H, W) as the network makes them; as they are without a network, which is interpolation.

    Raises:
        InputError: a result is not finite.
    """
    return finite(images if network is None else enhance_images(network, images), what)


def network_for(checkpoint: Path, geometry: SliceGeometry, device: torch.device) -> MSD:
    """A network of a checkpoint that was trained for slices of this geometry, up to the size of its pixels.

    Raises:
        InputError: it has none; one for other slices would make artefacts (section 3, figures 5 and 6).
    """
    networks, config = load_networks(checkpoint, device)
    known = []
    for (setting, _), network in networks.items():
        trained = parse_setting(setting, config.pixel)
        known.append(f"{trained.thickness:g}/{trained.overlap:g} mm over {trained.pixel:g} mm")
        pairs = ((trained.thickness, geometry.thickness), (trained.spacing, geometry.spacing))
        if all(math.isclose(a / trained.pixel, b / geometry.pixel, rel_tol=0.01) for a, b in pairs):
            return network
    raise InputError(
        f"{checkpoint}: trained for slices of {', '.join(dict.fromkeys(known)) or 'none'}, "
        f"but the scan has {geometry.thickness:g}/{geometry.overlap:g} mm over {geometry.pixel:g} mm; leave "
        "--checkpoint away to train on the scan itself"
    )


def train_on_scan(scan: Scan, out: Path, profile: str, epochs: int | None, device: str) -> MSD:
    """SR4ZCT on one scan; the run lies in `out` and goes on from there if it was interrupted."""
    where = gpu.choose_device(device)
    if profile == "auto":
        profile = "paper" if where.type == "cuda" else "cpu"
    geometry, name = scan.geometry, scan.image.path.name
    values = {
        "data": scan.image.path, "out": out, "device": device, "resume": True, "pixel": geometry.pixel,
        "settings": (f"{geometry.thickness / geometry.pixel!r}/{geometry.overlap / geometry.pixel!r}",),
        "test_volumes": (name,), "left_out": (),
    }  # fmt: skip
    if epochs is not None:
        values |= {"epochs": epochs, "steps": 0}
    config = configure(Config, PROFILES, VARIANTS, profile, "full", **values)
    run = gpu.Run(config, paper="sr4zct")
    fit(config, run, [(config.settings[0], name)], lambda *_: axial_pairs(config, scan.hu, geometry))
    networks, _ = load_networks(run.checkpoint_path, where)
    return networks[config.settings[0], name]
