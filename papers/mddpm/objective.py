"""What is minimised: the noise that a batch gets, and its losses (sections 2.2 and 2.3)."""

import torch

from papers.mddpm.model import reconstruction_loss
from papers.mddpm.noise import draw_noise
from papers.mddpm.vae import kl_divergence


def with_noise(config, batch: dict) -> dict:
    """The batch with `noise`: ε of the forward process (B, 1, H, W), or that of the autoencoder's code (B, latent)."""
    count, _, height, width = batch["clean"].shape
    if config.method == "vae":
        noise = torch.randn(count, config.latent)
    else:
        noise = draw_noise(config.noise, count, height, width, config.wavelength)
    return {**batch, "noise": noise.to(batch["clean"].device)}


def loss_parts(config, model, batch: dict) -> dict:
    """Losses of one batch of `with_noise`; "loss" is what is minimised."""
    if config.method == "vae":
        prediction, mean, spread = model(batch["clean"], batch["noise"])
        error, divergence = reconstruction_loss(prediction, batch["clean"]), kl_divergence(mean, spread)
        return {"loss": error + config.kl_weight * divergence, "error": error, "divergence": divergence}
    box = batch["box"] if config.grid > 1 else None
    prediction = model(batch["masked"], batch["noise"], batch["t"], box)
    return {"loss": reconstruction_loss(prediction, batch["clean"], box)}
