"""Template: tests of its mathematics."""

import torch

from papers.template.model import Denoiser


def test_the_noise_is_subtracted():
    model = Denoiser(width=4, depth=2)
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(image) + model.noise(image), image)
