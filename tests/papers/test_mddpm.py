"""mDDPM's mathematics, each part against a slow and obvious reference, an analytic case or another library."""

import csv
import doctest
import importlib
import math

import numpy as np
import pytest
import torch

from papers.mddpm import components, data, detection, masking, model, noise, objective, train, unet, vae
from papers.mddpm.detector import Detector
from papers.mddpm.eval import apply, otsu_mask
from shared import nifti
from shared.cli import configure
from shared.errors import InputError


@pytest.mark.parametrize("name", ["noise", "masking", "unet", "model", "vae", "components"])
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"papers.mddpm.{name}"), extraglobs={"torch": torch})
    assert result.failed == 0 and result.attempted


# --- M1: masking -------------------------------------------------------------------------------------------


def slow_filter(image, keep):
    """Eqs. 1, 2 and 7 as sums over frequencies, with frequency (0, 0) at the middle of `keep`."""
    h, w = image.shape
    y, x = np.mgrid[:h, :w]
    result = np.zeros((h, w), complex)
    for row in range(h):
        for column in range(w):
            if keep[row, column]:
                wave = np.exp(2j * np.pi * ((row - h // 2) * y / h + (column - w // 2) * x / w))
                result += wave * np.sum(image * wave.conj()) / (h * w)
    return result.real


@pytest.mark.parametrize("size", [(8, 10), (9, 7), (6, 5)])
def test_frequency_masking_is_the_discrete_fourier_sum(size):
    rng = np.random.default_rng(0)
    image, keep = rng.random(size), rng.random(size) < 0.6
    found = masking.frequency_patch_masking(torch.from_numpy(image), torch.from_numpy(keep)).numpy()
    np.testing.assert_allclose(found, slow_filter(image, keep), atol=1e-12)
    everything = torch.ones(size, dtype=torch.bool)
    torch.testing.assert_close(masking.frequency_patch_masking(torch.from_numpy(image), everything).numpy(), image)


def test_frequency_masking_removes_a_wave_and_keeps_another():
    x = torch.arange(32, dtype=torch.float64)
    low, high = torch.cos(2 * math.pi * 2 * x / 32).expand(32, 32), torch.cos(2 * math.pi * 9 * x / 32).expand(32, 32)
    keep = torch.ones(32, 32, dtype=torch.bool)
    keep[16, [16 - 9, 16 + 9]] = False
    torch.testing.assert_close(masking.frequency_patch_masking(low + high, keep), low.clone())
    torch.testing.assert_close(masking.centred_filter(1 + low + high, 4, low_pass=True), 1 + low)
    torch.testing.assert_close(masking.centred_filter(1 + low + high, 4, low_pass=False), high.clone())


def test_cutmix_is_equation_8():
    torch.manual_seed(0)
    image, filtered, keep = torch.rand(9, 7), torch.randn(9, 7), torch.rand(9, 7) < 0.5
    expected = masking.image_patch_masking(image, keep) + filtered * ~keep
    torch.testing.assert_close(masking.frequency_patch_cutmix(image, filtered, keep), expected)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_rectangles_cover_the_ratio_of_the_foreground(ratio):
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    foreground = ((y - 50) ** 2 / 40**2 + (x - 45) ** 2 / 30**2) < 1
    torch.manual_seed(1)
    shares = []
    for _ in range(10):
        keep = masking.keep_mask(foreground, ratio, (8, 32))
        shares.append(float((~keep & foreground).sum() / foreground.sum()))
        rows, columns = (~keep).any(1).nonzero(), (~keep).any(0).nonzero()
        if len(rows):  # nothing is masked away from the foreground's box
            assert rows.min() >= 11 and rows.max() <= 89 and columns.min() >= 16 and columns.max() <= 74
    assert min(shares) >= ratio and max(shares) <= ratio + 32 * 32 / float(foreground.sum())


def test_one_rectangle_has_the_asked_sides():
    torch.manual_seed(2)
    seen = set()
    for _ in range(60):
        gone = ~masking.keep_mask(torch.ones(40, 40, dtype=torch.bool), 1e-6, (3, 5))
        height, width = int(gone.any(1).sum()), int(gone.any(0).sum())
        assert gone.sum() == height * width
        seen |= {height, width}
    assert seen == {3, 4, 5}


def brain_slice():
    torch.manual_seed(3)
    foreground = torch.zeros(48, 40, dtype=torch.bool)
    foreground[6:42, 5:35] = True
    return torch.where(foreground, 0.2 + 0.8 * torch.rand(48, 40), torch.zeros(())), foreground


def test_kinds_of_masking():
    image, foreground = brain_slice()
    for seed in range(5):
        torch.manual_seed(seed)
        results = {k: masking.MaskingBlock(k, sides=(4, 12), frequency_sides=(2, 8))(image, foreground) for k in
                   ("none", "ipm", "fpm", "fpm_cm")}  # fmt: skip
        for result in results.values():
            assert torch.equal(result[~foreground], image[~foreground])  # the background is left alone
        assert torch.equal(results["none"], image)
        changed = results["ipm"] != image
        assert (results["ipm"][changed] == 0).all() and 0.1 <= changed.sum() / foreground.sum() <= 1
        assert (results["fpm"] != image)[foreground].float().mean() > 0.95
        same = (results["fpm_cm"] == image)[foreground].float().mean()
        assert 0 < same <= 0.9 and not (results["fpm_cm"][foreground] == 0).any()


def test_frequency_masking_keeps_the_mean():
    image, foreground = brain_slice()
    whole = torch.ones_like(foreground)
    torch.manual_seed(0)
    block = masking.MaskingBlock("fpm", ratio=(0.9, 0.9))
    assert float(block(image, whole).mean()) == pytest.approx(float(image.mean()), abs=1e-5)
    assert block(image, whole).std() < 0.8 * image.std()
    assert torch.equal(block(image, foreground & False), image)  # a slice without brain


def test_released_masking_is_a_few_patches_well_inside_of_the_brain():
    """Sides of half of int(0.18 h) to int(0.18 h), h the brain's rows; 5 pixels or more from its bounding box."""
    foreground = torch.zeros(96, 96, dtype=torch.bool)
    foreground[8:83, 13:90] = True  # 75 rows: sides of 6 to 13
    torch.manual_seed(0)
    image = torch.where(foreground, 0.2 + 0.8 * torch.rand(96, 96), torch.zeros(()))
    block, shares, single, touched = masking.MaskingBlock("released"), [], set(), torch.zeros_like(foreground)
    for _ in range(400):
        changed = block(image, foreground) != image
        touched |= changed
        shares.append(float(changed.sum() / foreground.sum()))
        height, width = int(changed.any(1).sum()), int(changed.any(0).sum())
        if height * width == changed.sum() > 0:  # one patch
            single |= {height, width}
    assert min(shares) == 0 and 0.05 < max(shares) < 5 * 13 * 13 / (75 * 77)
    assert 0.1 < shares.count(0.0) / 400 < 0.25  # of 0 to 5 patches, one in six times none
    assert single <= set(range(6, 14)) and {6, 13} <= single
    rows, columns = touched.any(1).nonzero()[:, 0], touched.any(0).nonzero()[:, 0]
    assert (rows[0], rows[-1]) == (13, 82 - 5 - 1) and (columns[0], columns[-1]) == (18, 89 - 5 - 1)
    small = torch.zeros(96, 96, dtype=torch.bool)
    small[40:50, 40:50] = True  # no room for a patch
    assert all(torch.equal(block(image * small, small), image * small) for _ in range(20))


# --- M2: noise and forward process -------------------------------------------------------------------------


RELEASED_STD = 0.592
RELEASED_POWER = {(0, 1): 0.0498, (1, 4): 0.1986, (4, 8): 0.0514, (8, 16): 0.0305, (16, 32): 0.0176, (32, 99): 0.0046}
"""of 40 fields of 96 × 96 pixels that the released code (e76b948) drew: variance in bands of cycles per field"""


def slow_opensimplex(x, y, table):
    """Σ max(0, 2 - d²)⁴ g·d / 47 over all points of the lattice that are anywhere near, in plain Python."""
    eight = [(5, 2), (2, 5), (-5, 2), (-2, 5), (5, -2), (2, -5), (-5, -2), (-2, -5)]
    squish = (math.sqrt(3) - 1) / 2
    around = round((x + y) * (1 / math.sqrt(3) - 1) / 2)
    total = 0.0
    for i in range(round(x) + around - 4, round(x) + around + 5):
        for j in range(round(y) + around - 4, round(y) + around + 5):
            dx, dy = x - i - squish * (i + j), y - j - squish * (i + j)
            gradient = eight[(table[(table[i % 256] + j) % 256] % 16) // 2]
            total += max(2 - dx * dx - dy * dy, 0) ** 4 * (gradient[0] * dx + gradient[1] * dy)
    return total / 47


def test_opensimplex_is_the_sum_over_the_lattice():
    torch.manual_seed(0)
    x, y = 300 * torch.rand(2, 300, dtype=torch.float64) - 40
    table = torch.randperm(256)
    found = noise.opensimplex(x, y, table)
    expected = [slow_opensimplex(a, b, table.tolist()) for a, b in zip(x.tolist(), y.tolist())]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_opensimplex_is_continuous_and_bounded():
    torch.manual_seed(0)
    table = torch.randperm(256)
    line = torch.linspace(0, 40, 40001, dtype=torch.float64)
    values = noise.opensimplex(line, 0.37 * line, table)
    assert values.diff().abs().max() < 0.01 and values.abs().max() <= 1.0001 and values.std() > 0.15


def test_a_field_is_the_sum_of_its_octaves():
    torch.manual_seed(4)
    found = noise.simplex_field(5, 7, octaves=3, persistence=0.5, wavelength=12.0)
    torch.manual_seed(4)
    table = torch.randperm(256).tolist()
    for row in range(5):
        for column in range(7):
            octaves = [0.5**k * slow_opensimplex(column * 2**k / 12, row * 2**k / 12, table) for k in range(3)]
            assert float(found[row, column]) == pytest.approx(sum(octaves), abs=1e-6)
    assert found[0, 0] == 0


def test_amplitude_and_spectrum_of_the_noise_are_those_of_the_released_code():
    """White noise of the same variance would have 0.22 above 32 cycles; 40 fields leave an error of about 5 %."""
    torch.manual_seed(0)
    fields = torch.stack([noise.simplex_field(96, 96) for _ in range(300)]).double()
    assert float(fields.std()) == pytest.approx(RELEASED_STD, rel=0.05)
    power = torch.fft.fft2(fields).abs().square().mean(0) / 96**4
    frequency = torch.fft.fftfreq(96, 1 / 96).double()
    radius = torch.hypot(frequency[:, None], frequency[None])
    for (low, high), released in RELEASED_POWER.items():
        found = float(power[(radius >= low) & (radius < high)].sum())
        assert found == pytest.approx(released, rel=0.2), f"{low} to {high} cycles"


def test_one_field_is_repeated_over_the_batch_and_white_noise_is_not():
    torch.manual_seed(0)
    field, white = noise.draw_noise("simplex", 5, 24, 20), noise.draw_noise("gaussian", 5, 24, 20)
    assert field.shape == white.shape == (5, 1, 24, 20)
    assert all(torch.equal(field[0], other) for other in field) and (white[0] - white[1]).abs().max() > 1
    assert (field - noise.draw_noise("simplex", 5, 24, 20)).abs().max() > 0.5  # another batch, another field
    assert float(white.std()) == pytest.approx(1, abs=0.05)


def test_cosine_schedule():
    alpha_bar = model.cosine_alpha_bar(1000)
    assert (alpha_bar.diff() < 0).all() and alpha_bar[0] > 0.9999 and alpha_bar[-1] < 1e-5
    for t in (0, 250, 500, 900):
        closed = (
            math.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        )
        assert float(alpha_bar[t]) == pytest.approx(closed, rel=1e-4)


class Keep(torch.nn.Module):
    """A network that returns what it is shown, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x.clone(), t.clone()))
        return x


def test_forward_process_is_equation_3():
    torch.manual_seed(0)
    diffusion = model.DirectDiffusion(Keep())
    z, epsilon, t = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([0, 500, 999])
    found = diffusion(z, epsilon, t)
    for k in range(3):
        level = float(model.cosine_alpha_bar()[t[k]])
        expected = math.sqrt(level) * (2 * z[k] - 1) + math.sqrt(1 - level) * epsilon[k]
        torch.testing.assert_close(diffusion.network.seen[0][0][k], expected)
        torch.testing.assert_close(found[k], (expected + 1) / 2)


# --- M3 to M5: network, loss, single pass ------------------------------------------------------------------


def test_unet_has_the_released_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in unet.UNet().parameters()) == 37_513_857


def test_unet_sees_the_time_and_the_whole_slice():
    torch.manual_seed(0)
    net = unet.UNet(8, (1, 2, 2), 1)
    with pytest.raises(ValueError, match="divisible by 4"):
        net(torch.zeros(1, 1, 46, 48), torch.tensor([0]))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    early, late = net(x, torch.tensor([1])), net(x, torch.tensor([900]))
    assert (early - late).abs().max() > 1e-4
    early[0, 0, 0, 0].backward()
    assert (x.grad != 0).all()  # attention in the middle reaches every pixel


def test_attention_is_softmax_over_pixels():
    torch.manual_seed(0)
    block = unet.SelfAttention(8).double()
    torch.nn.init.normal_(block.out.weight)
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x).flatten(2))[0].view(3, 8, 6)
    mixed = torch.stack([sum(w * v[:, j] for j, w in enumerate(torch.softmax(k.T @ q[:, i] / 8**0.5, 0)))
                         for i in range(6)], dim=1)  # fmt: skip
    torch.testing.assert_close(block(x), x + (block.out(mixed[None])).view(1, 8, 2, 3))


def test_loss_compares_with_the_clean_slice_and_counts_the_box_only():
    clean, prediction = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    prediction[..., :2, :2] = 1.0
    assert model.reconstruction_loss(prediction, clean) == pytest.approx((0.5 * 12 + 4) / 16)
    box = model.box_mask(4, 4, 2, 0).expand(2, 1, 4, 4)
    assert model.reconstruction_loss(prediction, clean, box) == 1.0


def test_training_masks_the_input_and_not_the_target():
    config = configure(train.Config, train.PROFILES, train.VARIANTS, "smoke", "ipm", data=".", out=".")
    image, foreground = brain_slice()
    volume = data.Volume("v", image[:, :, None].numpy(), foreground[:, :, None].numpy(), None, None)
    torch.manual_seed(0)
    item = train.slices_of(config, [volume], "ipm")[0]
    plain = train.slices_of(config, [volume], "none")
    torch.manual_seed(0)
    assert torch.equal(plain[0]["t"], item["t"])  # masking draws after what all variants draw
    assert torch.equal(item["clean"][0], image) and (item["masked"] != item["clean"]).any()
    diffusion = model.DirectDiffusion(Keep(), config.timesteps)
    batch = {key: value[None] for key, value in item.items()} | {"noise": torch.zeros(1, 1, 48, 40)}
    batch["t"] = torch.zeros(1, dtype=torch.long)
    loss = objective.loss_parts(config, diffusion, batch)["loss"]
    assert float(loss) == pytest.approx(float((item["masked"] - item["clean"]).abs().mean()), rel=0.05)


def test_single_pass_and_boxes():
    z, epsilon = torch.rand(2, 1, 8, 12), torch.randn(2, 1, 8, 12)
    one = model.DirectDiffusion(Keep())
    found = one.reconstruct(z, epsilon, t=300)
    assert len(one.network.seen) == one.calls_per_slice == 1 and (one.network.seen[0][1] == 300).all()
    four = model.DirectDiffusion(Keep(), grid=2)
    pieces = four.reconstruct(z, epsilon, t=300)
    assert len(four.network.seen) == four.calls_per_slice == 4
    torch.testing.assert_close(pieces, found)  # this network changes nothing, so the boxes fit together
    first = four.network.seen[0][0]
    torch.testing.assert_close(first[..., 4:, :], 2 * z[..., 4:, :] - 1)  # context is clean
    torch.testing.assert_close(first[..., :4, 6:], 2 * z[..., :4, 6:] - 1)
    assert (first[..., :4, :6] != (2 * z - 1)[..., :4, :6]).all()
    cover = sum(model.box_mask(9, 7, 2, k) for k in range(4))
    assert (cover == 1).all()


def test_autoencoder():
    mean, spread = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.2, -0.5]])
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (spread / 2).exp()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(vae.kl_divergence(mean, spread), expected)
    torch.manual_seed(0)
    network = vae.VAE(16, 24, (4, 8), latent=5)
    z = torch.rand(2, 1, 16, 24)
    drawn, mean, spread = network(z, torch.zeros(2, 5))
    torch.testing.assert_close(drawn, network.reconstruct(z))
    torch.testing.assert_close(network(z, torch.ones(2, 5))[0], network.decode(mean + (spread / 2).exp()))


# --- M6: scores --------------------------------------------------------------------------------------------


def test_average_precision_is_that_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    for scale in (1000, 6, 1):  # few and many ties, all tied
        score, truth = rng.integers(0, scale, 500) / 7, rng.random(500) < 0.1
        assert detection.average_precision(score, truth) == pytest.approx(average_precision_score(truth, score))
    assert detection.average_precision(np.ones(10), np.arange(10) < 3) == pytest.approx(0.3)
    assert detection.average_precision(np.arange(10), np.arange(10) > 6) == 1.0
    assert math.isnan(detection.average_precision(np.ones(4), np.zeros(4)))


def test_best_threshold_is_that_of_trying_all():
    rng = np.random.default_rng(1)
    truths = [rng.random((6, 6, 3)) < share for share in (0.1, 0.5)]
    scores = [np.round(rng.random((6, 6, 3)) + 0.7 * truth, 2).astype(np.float32) for truth in truths]
    tried = detection.candidate_thresholds(scores)
    for pooled in (False, True):
        if pooled:
            values = [detection.dice(np.stack(scores) > t, np.stack(truths)) for t in tried]
        else:
            values = [np.mean([detection.dice(s > t, x) for s, x in zip(scores, truths)]) for t in tried]
        assert detection.best_threshold(scores, truths, pooled) == pytest.approx(tried[int(np.argmax(values))])


def test_dice_by_hand():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 1], bool)
    assert detection.dice(a, b) == pytest.approx(2 / 5)
    assert math.isnan(detection.dice(a & False, b & False)) and detection.dice(a & False, b) == 0


def test_anomaly_map_erodes_slices_and_smooths_volumes():
    mask = np.zeros((15, 15, 5), bool)
    mask[2:13, 2:13] = True
    flat = detection.anomaly_map(np.ones(mask.shape, np.float32), mask, erosions=3, median=1)
    expected = np.zeros_like(mask)
    expected[5:10, 5:10] = True  # a square keeps its shape under a cross, in each slice also the outer ones
    assert np.array_equal(flat > 0, expected)
    speck = np.zeros(mask.shape, np.float32)
    speck[7, 7, 2] = 9
    assert detection.anomaly_map(speck, mask, erosions=1, median=3).max() == 0
    column = np.zeros(mask.shape, np.float32)
    column[6:9, 6:9, 1:4] = 5
    smoothed = detection.anomaly_map(column, mask, erosions=1, median=3)
    assert smoothed[7, 7, 2] == 5 and smoothed[6, 6, 1] == 0  # 3-D: a corner has 8 of 27 neighbours


def test_small_components_are_dropped():
    score = np.zeros((12, 12, 3), np.float32)
    score[0, :7, 0] = 1
    score[5, :8, 1] = 1
    assert detection.binarise(score, 0.5, smallest=7).sum() == 8
    assert detection.binarise(score, 0.5, smallest=0).sum() == 15


def volume_of(image, name="v"):
    return data.Volume(name, image, np.ones(image.shape, bool), None, None)


def test_intensity_score_needs_no_network():
    config = configure(train.Config, train.PROFILES, train.VARIANTS, "smoke", "intensity", data=".", out=".")
    image = np.random.default_rng(0).random((9, 9, 4), np.float32)
    detector = Detector(config, None, (0, 0), "cpu")
    healthy, residual, score = detector(volume_of(image))
    assert (healthy == 0).all() and np.array_equal(residual, image) and detector.calls_per_slice == 0
    assert np.array_equal(score[2:-2, 2:-2], image[2:-2, 2:-2])


def test_detector_noises_a_volume_with_one_field_at_index_499():
    config = configure(train.Config, train.PROFILES, train.VARIANTS, "paper", "full", data=".", out=".")
    diffusion = model.DirectDiffusion(Keep(), config.timesteps)
    diffusion.network.divisor = 1
    detector = Detector(config, diffusion, (8, 8), "cpu")
    image = np.random.default_rng(0).random((8, 8, 5), np.float32)
    first = detector.pseudo_healthy(volume_of(image))
    noisy, times = diffusion.network.seen[0]
    level = model.cosine_alpha_bar()[499]
    fields = (noisy - level.sqrt() * (2 * torch.from_numpy(image).permute(2, 0, 1)[:, None] - 1)) / (1 - level).sqrt()
    assert (times == 499).all() and fields.std() > 0.05
    torch.testing.assert_close(fields, fields[:1].expand_as(fields), atol=1e-5, rtol=0)
    assert np.array_equal(first, detector.pseudo_healthy(volume_of(image)))
    assert not np.array_equal(first, detector.pseudo_healthy(volume_of(image, "another patient")))


def test_principal_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    slices, new = rng.random((30, 1, 6, 5), np.float32), rng.random((4, 1, 6, 5), np.float32)
    model_ = components.PrincipalComponents(6, 5, number=7)
    model_.fit(torch.from_numpy(slices))
    other = PCA(7, svd_solver="full").fit(slices.reshape(30, 30))
    expected = other.inverse_transform(other.transform(new.reshape(4, 30))).reshape(new.shape)
    np.testing.assert_allclose(model_.reconstruct(torch.from_numpy(new)).numpy(), expected, atol=1e-5)
    few = components.PrincipalComponents(6, 5, number=7)
    few.fit(torch.from_numpy(slices[:3]))  # three slices have no more than three components
    np.testing.assert_allclose(few.reconstruct(torch.from_numpy(slices[:3])).numpy(), slices[:3], atol=1e-5)


def scans_of(*arrays):
    """(H, W, D) arrays as the mean scan takes them."""
    return [torch.from_numpy(array.transpose(2, 0, 1).copy())[:, None] for array in arrays]


def test_mean_scan_is_the_mean_of_the_healthy_slices():
    rng = np.random.default_rng(0)
    one, two = rng.random((2, 6, 5, 4), np.float32)
    found = components.MeanVolume(6, 5, depth=4)
    found.fit(scans_of(one, two), [torch.arange(4), torch.arange(4)])
    np.testing.assert_allclose(found.reconstruct(4)[:, 0].permute(1, 2, 0), (one + two) / 2, atol=1e-6)
    two[..., 0] = 9  # with lesion, as is slice 3 of both
    found.fit(scans_of(one, two), [torch.tensor([0, 1, 2]), torch.tensor([1, 2])])
    expected = np.stack([one[..., 0], *((one + two) / 2)[..., 1:3].transpose(2, 0, 1)])
    np.testing.assert_allclose(found.mean[:, 0], expected[[0, 1, 2, 2]], atol=1e-6)
    with pytest.raises(InputError, match="nothing healthy"):
        found.fit(scans_of(one), [torch.arange(0)])


def test_mean_scan_of_scans_that_differ_in_depth():
    ramp = np.ones((6, 5, 1), np.float32) * np.linspace(0, 1, 9, dtype=np.float32)
    found = components.MeanVolume(6, 5, depth=9)
    found.fit(scans_of(ramp, ramp[..., ::2]), [torch.arange(9), torch.arange(5)])
    np.testing.assert_allclose(found.mean[:, 0, 2, 3], np.linspace(0, 1, 9), atol=1e-6)
    np.testing.assert_allclose(found.reconstruct(depth=3)[:, 0, 2, 3], [0, 0.5, 1], atol=1e-6)


def test_detector_compares_with_the_mean_scan():
    config = configure(train.Config, train.PROFILES, train.VARIANTS, "smoke", "mean", data=".", out=".")
    healthy = train.build_model(config, 9, 7, depth=4)
    rng = np.random.default_rng(0)
    mean, image = rng.random((2, 9, 7, 4), np.float32)
    healthy.fit(scans_of(mean), [torch.arange(4)])
    detector = Detector(config, healthy, (9, 7), "cpu")
    found, residual, _ = detector(volume_of(image))
    assert np.array_equal(found, mean) and np.array_equal(residual, np.abs(image - mean))
    assert detector.calls_per_slice == 0
    with pytest.raises(InputError, match="trained on 9 x 7"):
        detector(volume_of(image[:8]))


def test_applied_detections_are_dropped_by_their_size_where_they_are_scored(tmp_path, monkeypatch, capsys):
    """On a native grid of half the voxel size everything has eight times as many voxels."""
    config = configure(train.Config, train.PROFILES, train.VARIANTS, "smoke", "intensity", data=".", out=".")
    config.downsample, config.smallest, config.erosions = (2, 2, 2), 7, 0
    monkeypatch.setattr("papers.mddpm.detector.load_detector", lambda *_: Detector(config, None, (0, 0), "cpu"))
    scan = np.ones((32, 32, 16), np.float32)
    scan[4:8, 4:8, 4:6] = 9  # 4 voxels where it is scored, 32 here
    scan[16:24, 16:24, 6:12] = 9
    for name, array in (("t2", scan), ("brain", np.ones(scan.shape, np.uint8))):
        nifti.save(tmp_path / f"{name}.nii.gz", array, affine=np.eye(4))
    apply(tmp_path / "c.pt", tmp_path / "t2.nii.gz", tmp_path / "a.nii.gz", tmp_path / "brain.nii.gz", threshold=0.5)
    found = nifti.load(tmp_path / "a_mask.nii.gz").data
    assert nifti.load(tmp_path / "a.nii.gz").data[5, 5, 4] > 0.5 and not found[:12, :12].any()
    expected = np.zeros_like(found)
    expected[16:24, 16:24, 6:12] = 1
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


# --- data --------------------------------------------------------------------------------------------------


def image_of(array, name="scan.nii.gz"):
    from pathlib import Path

    return nifti.make_image(np.asarray(array), np.diag([2.0, 2.0, 5.0, 1.0]), Path(name))


def test_intensities_run_from_the_1st_to_the_99th_percentile_of_the_brain():
    rng = np.random.default_rng(0)
    scan, mask = rng.normal(500, 50, (20, 20, 6)).astype(np.float32), np.zeros((20, 20, 6), np.uint8)
    mask[4:16, 4:16] = 1
    scan[0, 0, 0] = 1e6  # outside of the brain nothing counts
    volume = data.prepare(image_of(scan), image_of(mask), None, data.Preparation(0, (0, 0, 0), (1, 1, 1)))
    low, high = np.percentile(scan[mask > 0], (1, 99))
    expected = np.where(mask > 0, np.clip((scan - low) / (high - low), 0, 1), 0)
    np.testing.assert_allclose(volume.image, expected, atol=1e-5)
    assert volume.image.dtype == np.float32


def test_percentiles_are_those_of_the_brain_that_is_left_after_cropping():
    """As in the released code: 192 x 192 x 100 voxels first, then the percentiles."""
    rng = np.random.default_rng(0)
    scan, mask = rng.normal(500, 50, (20, 20, 12)).astype(np.float32), np.ones((20, 20, 12), np.uint8)
    scan[..., :4] += 400
    crop = data.Preparation(0, (24, 0, 4), (1, 1, 1))  # cropped, left and padded
    volume = data.prepare(image_of(scan), image_of(mask), None, crop)
    low, high = volume.window
    assert volume.window == pytest.approx(np.percentile(scan[..., 4:8].astype(float), (1, 99)))
    expected = np.pad(np.clip((scan[..., 4:8] - low) / (high - low), 0, 1), ((2, 2), (0, 0), (0, 0)))
    np.testing.assert_allclose(volume.image, expected, atol=1e-5)
    mask[..., 4:8] = 0
    with pytest.raises(InputError, match=r"scan\.nii\.gz: no brain is left in the middle 24 x 20 x 4 voxels.*--crop"):
        data.prepare(image_of(scan), image_of(mask), None, crop)


def test_preparation_keeps_places():
    """A bright block is at the same position in mm after padding, cropping and downsampling."""
    scan, mask = np.full((30, 24, 12), 10, np.float32), np.ones((30, 24, 12), np.uint8)
    scan[7:15, 10:18, 4:8] = 20
    small = data.prepare(image_of(scan), image_of(mask), image_of((scan > 15).astype(np.uint8)),
                         data.Preparation(3, (36, 20, 0), (2, 2, 2)))  # fmt: skip
    assert small.image.shape == (18, 10, 6) and small.grid.spacing == pytest.approx((4, 4, 10))
    wanted = np.array([2 * 10.5, 2 * 13.5, 5 * 5.5])
    for marked in (small.seg, small.image > 0.7):
        centre = small.grid.affine[:3] @ [*np.argwhere(marked).mean(0), 1]
        np.testing.assert_allclose(centre, wanted, atol=1.0)


def test_slices_with_lesion_are_not_trained_on():
    mask = np.ones((4, 4, 6), bool)
    mask[..., 0] = False
    seg = np.zeros((4, 4, 6), bool)
    seg[1, 1, 2:4] = True
    volume = data.Volume("v", np.zeros((4, 4, 6), np.float32), mask, seg, None)
    assert data.healthy_slices(volume).tolist() == [1, 4, 5]
    volume.seg = np.ones_like(seg)
    with pytest.raises(InputError, match="nothing healthy"):
        data.HealthySlices([volume], 6, masking.MaskingBlock("none"), 1000, 1)


def turned(image):
    """The same image at the same places, its axes in the order S, L, P."""
    data_ = np.ascontiguousarray(image.data.transpose(2, 0, 1)[:, ::-1, ::-1])
    affine = image.affine[:, [2, 0, 1, 3]].copy()
    for axis in (1, 2):
        affine[:3, 3] += affine[:3, axis] * (data_.shape[axis] - 1)
        affine[:3, axis] *= -1
    return nifti.make_image(data_, affine, image.path)


def test_volumes_are_brought_to_the_same_axes():
    rng = np.random.default_rng(0)
    scan, mask = image_of(rng.random((12, 10, 6), np.float32)), image_of(np.ones((12, 10, 6), np.uint8))
    seg = image_of((rng.random((12, 10, 6)) > 0.8).astype(np.uint8), "seg.nii.gz")
    preparation = data.Preparation(2, (10, 12, 0), (1, 1, 1))
    expected = data.prepare(scan, mask, seg, preparation)
    for first, second in ((turned(scan), mask), (scan, turned(mask)), (turned(scan), turned(mask))):
        found = data.prepare(first, second, turned(seg), preparation)
        np.testing.assert_allclose(found.image, expected.image, atol=1e-5)
        assert np.array_equal(found.seg, expected.seg) and np.array_equal(found.mask, expected.mask)
        np.testing.assert_allclose(found.grid.affine, expected.grid.affine, atol=1e-6)
    moved = nifti.make_image(seg.data, seg.affine @ np.array(
        [[1, 0, 0, 1.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), seg.path)  # fmt: skip
    with pytest.raises(InputError, match=r"seg\.nii\.gz does not lie on the voxels of scan\.nii\.gz"):
        data.prepare(scan, mask, moved, preparation)


def test_brain_of_a_scan_without_mask():
    scan = np.full((20, 20, 6), -5.0, np.float32)  # some scanners' air is not 0
    scan[4:16, 4:16, 1:5] = 100
    scan[9:11, 9:11, 2:4] = 0  # a dark hole
    scan[1, 1, 0] = 100  # a speck
    expected = np.zeros(scan.shape, np.uint8)
    expected[4:16, 4:16, 1:5] = 1
    assert np.array_equal(otsu_mask(image_of(scan)), expected)
    with pytest.raises(InputError, match="one intensity"):
        otsu_mask(image_of(scan * 0))


def test_tables_that_share_a_subject_are_refused(tmp_path):
    (tmp_path / "splits").mkdir()

    def write(table, *names):
        rows = [[name, f"{name}.nii.gz", "m.nii.gz", ""] for name in names]
        with (tmp_path / "splits" / f"{table}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([data.COLUMNS, *rows])

    tables = ("IXI_train_fold0", ["B_test"], ["IXI_val_fold0", "B_val"])
    write("IXI_train_fold0", "a", "b")
    write("IXI_val_fold0", "c")
    data.refuse_shared_cases(tmp_path, *tables)  # the other tables are not there
    write("B_val", "c", "d")
    write("B_test", "e")
    data.refuse_shared_cases(tmp_path, *tables)  # both for validation: healthy slices and lesions of one patient
    for table, name in (("B_test", "b"), ("B_test", "d"), ("IXI_val_fold0", "a"), ("B_val", "b")):
        before = (tmp_path / "splits" / f"{table}.csv").read_bytes()
        write(table, name)
        with pytest.raises(InputError, match=f"'{name}' is in both"):
            data.refuse_shared_cases(tmp_path, *tables)
        (tmp_path / "splits" / f"{table}.csv").write_bytes(before)


def write_set(root, scan, mask, columns=("img_name", "age", "label", "img_path", "mask_path", "seg_path")):
    (root / "splits").mkdir(parents=True)
    nifti.save(root / "a_t2.nii.gz", scan, affine=np.eye(4))
    nifti.save(root / "a_mask.nii.gz", mask, affine=np.eye(4))
    with (root / "splits" / "IXI_train_fold0.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, ["a", "50", "0", "/a_t2.nii.gz", "a_mask.nii.gz", ""]])


def test_broken_data_is_one_sentence_that_names_the_file(tmp_path):
    plain = data.Preparation(0, (0, 0, 0), (1, 1, 1))
    scan, mask = np.random.default_rng(0).random((8, 8, 3), np.float32), np.ones((8, 8, 3), np.uint8)
    write_set(tmp_path / "good", scan, mask)
    assert data.read_volumes(tmp_path / "good", "IXI_train_fold0", plain)[0].image.max() == 1
    cases = {
        "a_mask": (scan, mask * 0, plain),
        "does not lie on": (scan, mask[:4], plain),
        "one intensity": (scan * 0 + 3, mask, plain),
        "labels": (scan, mask * 7, plain),
    }
    for expected, (image, brain, preparation) in cases.items():
        write_set(tmp_path / expected, image, brain)
        with pytest.raises(InputError, match=expected) as caught:
            data.read_volumes(tmp_path / expected, "IXI_train_fold0", preparation)
        assert "a_" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="IXI_train_fold3.csv"):
        data.read_table(tmp_path / "good", "IXI_train_fold3")
    write_set(tmp_path / "columns", scan, mask, ("name", "age", "label", "image", "mask", "seg"))
    with pytest.raises(InputError, match="img_name"):
        data.read_table(tmp_path / "columns", "IXI_train_fold0")
    table = tmp_path / "good" / "splits" / "IXI_train_fold0.csv"
    heading, row = table.read_text("utf-8").splitlines()
    for rows, expected in (([row, row], "'a' comes 2 times"), ([row, row.replace("a,", "b,", 1)], "img_path"),
                           ([row.replace("a,", ",", 1)], "no img_name")):  # fmt: skip
        table.write_text("\n".join([heading, *rows]), "utf-8")
        with pytest.raises(InputError, match=expected):
            data.read_table(tmp_path / "good", "IXI_train_fold0")
    table.write_text("\n".join([heading, row.replace("/a_t2", "../a_t2")]), "utf-8")
    with pytest.raises(InputError, match="not inside"):
        data.read_volumes(tmp_path / "good", "IXI_train_fold0", plain)


def test_slices_must_fit_the_network():
    config = configure(train.Config, train.PROFILES, train.VARIANTS, "smoke", "full", data=".", out=".")
    with pytest.raises(InputError, match="--crop"):
        train.build_model(config, 30, 28)
