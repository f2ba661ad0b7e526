"""WaveFormer's mathematics, each part against a slow and obvious reference, an analytic case or another library."""

import dataclasses
import doctest
import importlib
import math

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.standins import abdomen_ct, skin_lesion
from benchmarks.standins import waveformer as standin
from papers.waveformer import augmentation, btcv, data, losses, scores, spectrum
from papers.waveformer import eval as evaluation
from papers.waveformer import train as training
from papers.waveformer.attention import FET, EfficientAttention, StandardAttention, efficient_attention
from papers.waveformer.model import MSCE, MixFFN, PatchExpand, WaveFormer
from papers.waveformer.wavelet import BoundaryAttention, HaarDWT2d, gaussian_kernel, laplacian_pyramid
from shared import nifti, resample
from shared.cli import configure
from shared.errors import InputError

TINY = {"dims": (8, 16, 32), "heads": (2, 4, 8), "decoder_heads": (2, 4)}
FOUR = {"dims": (64, 128, 320, 512), "heads": (2, 4, 10, 16), "decoder_heads": (2, 4, 10)}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return standin.generate(tmp_path_factory.mktemp("standin") / "waveformer", seed=3, size="smoke")


@pytest.mark.parametrize("name", ["wavelet", "attention", "model", "losses", "spectrum"])
def test_examples_in_docstrings(name):
    names = {"torch": torch, "F": F}
    result = doctest.testmod(importlib.import_module(f"papers.waveformer.{name}"), extraglobs=names)
    assert result.failed == 0 and result.attempted


def randomise(module: nn.Module) -> nn.Module:
    """Weights large enough that every branch matters, and batch-norm statistics that are not 0 and 1."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.4)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module.eval()


# --- sizes -------------------------------------------------------------------------------------------------


def parameters(**settings) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in WaveFormer(**settings).parameters())


def test_parameter_counts_of_the_paper():
    assert parameters(legacy_params=True) == 47_011_673  # table 1: FET 47.01 M
    assert round(parameters(**FOUR, bridge=False, levels=3, legacy_params=True) / 1e6, 2) == 33.00  # without MSCE
    assert round((parameters(legacy_params=True) - parameters()) / 1e6, 1) == 12.9  # never called


def test_the_paper_profile_has_the_paper_s_sizes(tmp_path):
    modules = (training.Config, training.PROFILES, training.VARIANTS)
    config = configure(*modules, "paper", "full", data=tmp_path, out=tmp_path, legacy_params=True)
    with torch.device("meta"):
        network = training.build_model(config)
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 9, 224, 224)
    assert sum(p.numel() for p in network.parameters()) == 47_011_673
    assert (config.batch_size, config.epochs, config.lr, config.optimizer) == (24, 400, 0.05, "sgd")
    assert (config.image_size, config.weight_decay, config.dice_weight) == (224, 1e-4, 0.6)


def test_four_stages_run_at_their_size():
    with torch.device("meta"):
        network = WaveFormer(**FOUR)
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 9, 224, 224)
    assert isinstance(network.encoder.blocks[3][0].attention, StandardAttention)


@pytest.mark.parametrize("variant", training.VARIANTS)
def test_variants_differ_in_what_they_name_only(variant, tmp_path):
    modules = (training.Config, training.PROFILES, training.VARIANTS)
    settings = {"data": tmp_path, "out": tmp_path}
    config = configure(*modules, "cpu", variant, **settings)
    full = configure(*modules, "cpu", "full", **settings)
    differing = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(full, f.name)}
    assert differing <= {"variant", "attention", "bridge", "boundary", "levels"}

    def backbone(config):  # embeddings, feed-forward networks, decoder: all but attention and bridge
        named = training.build_model(config).named_parameters()
        return [(name, tuple(p.shape)) for name, p in named if ".attention." not in name and "bridge" not in name]

    assert backbone(config) == backbone(full)


# --- wavelet and boundary ----------------------------------------------------------------------------------


def test_haar_transform_is_that_of_pywavelets():
    import pywt

    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    ll, (lh, hl, hh) = pywt.dwt2(x.numpy(), "haar")
    found = HaarDWT2d()(x)
    for ours, theirs in zip(found.unbind(1), (ll, lh, hl, hh)):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)
    assert found.square().sum().item() == pytest.approx(x.square().sum().item())  # orthonormal
    with pytest.raises(ValueError, match="even"):
        HaarDWT2d()(torch.rand(1, 1, 5, 4))


def test_gaussian_kernels_and_pyramid():
    for level, side in ((1, 3), (2, 5)):
        kernel = gaussian_kernel(level)
        assert kernel.shape == (side, side) and kernel.sum().item() == pytest.approx(1)
        ratio = kernel[level, level] / kernel[level, level + 1]
        assert math.sqrt(0.5 / math.log(ratio)) == pytest.approx({1: 2.02, 2: 2.54}[level], abs=1e-4)
    x = torch.randn(1, 2, 9, 7)
    bands = laplacian_pyramid(x, 3)
    torch.testing.assert_close(bands[:, :, 0], x)
    # one pixel by hand: G1 at (4, 3) of channel 1, then L1 = G0 - G1
    g1 = (gaussian_kernel(1) * x[0, 1, 3:6, 2:5]).sum()
    torch.testing.assert_close(bands[0, 1, 1, 4, 3], x[0, 1, 4, 3] - g1)
    # the bands L1 and L2 add up to what both filters remove
    wide = F.conv2d(F.pad(x, [1] * 4, mode="replicate"), gaussian_kernel(1).expand(2, 1, 3, 3), groups=2)
    wide = F.conv2d(F.pad(wide, [2] * 4, mode="replicate"), gaussian_kernel(2).expand(2, 1, 5, 5), groups=2)
    torch.testing.assert_close(bands[:, :, 1] + bands[:, :, 2], x - wide, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("levels", [1, 3])
def test_boundary_attention_is_its_convolutions(levels):
    layer = randomise(BoundaryAttention(16, levels))
    bands = torch.randn(2, 3, 4, 5, 6)
    stacked = bands.transpose(1, 2)  # (B, C, 3, h, w), as a 3-D convolution takes it
    mixed = F.conv3d(stacked, layer.mix_bands.weight, groups=4)[:, :, 0]
    pyramid = laplacian_pyramid(mixed, levels)
    mixed = F.conv3d(pyramid, layer.mix_levels.weight, groups=4)[:, :, 0]
    expected = torch.sigmoid(layer.expand(mixed.flatten(2).transpose(1, 2)))
    torch.testing.assert_close(layer(bands), expected)


# --- attention ---------------------------------------------------------------------------------------------


def slow_attention(query, key, value):
    """Equation 1 for one head and one image, token by token."""
    rows = []
    for q in query:
        weights = torch.stack([(q @ k / math.sqrt(len(q))).exp() for k in key])
        rows.append((weights[:, None] * value).sum(0) / weights.sum())
    return torch.stack(rows)


def slow_efficient(query, key, value, softmax_context, over_tokens):
    """Equation 2 for one head and one image, entry by entry."""
    tokens, width = query.shape
    context = torch.zeros(width, width)
    for i in range(width):
        weights = key[:, i].exp() / key[:, i].exp().sum()
        for m in range(len(key)):
            context[i] += weights[m] * value[m]
    if softmax_context:
        context = torch.stack([row.exp() / row.exp().sum() for row in context])
    out = torch.zeros(tokens, width)
    for n in range(tokens):
        for i in range(width):
            all_of_it = query[:, i].exp().sum() if over_tokens else query[n].exp().sum()
            out[n] += query[n, i].exp() / all_of_it * context[i]
    return out


@pytest.mark.parametrize("softmax_context", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_efficient_attention_is_equation_2(softmax_context, legacy):
    query, key, value = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    found = efficient_attention(query, key, value, softmax_context, legacy)
    for b in range(2):
        for h in range(3):
            expected = slow_efficient(query[b, h], key[b, h], value[b, h], softmax_context, legacy)
            torch.testing.assert_close(found[b, h], expected, atol=1e-5, rtol=1e-5)


def test_standard_attention_is_equation_1():
    layer = randomise(StandardAttention(6, 2))
    tokens = torch.randn(1, 5, 6)
    query = tokens[0] @ layer.query.weight.T + layer.query.bias
    key, value = (tokens[0] @ layer.key_value.weight.T + layer.key_value.bias).split(6, dim=1)
    heads = [slow_attention(query[:, s], key[:, s], value[:, s]) for s in (slice(0, 3), slice(3, 6))]
    expected = torch.cat(heads, dim=1) @ layer.output.weight.T + layer.output.bias
    torch.testing.assert_close(layer(tokens, 1, 5)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_fet_is_the_figure(boundary, compact, legacy):
    """M3 to M7 for one image, head by head, with pywt's band order and loops for both attentions."""
    height, width, channels, heads = 4, 6, 16, 2
    layer = randomise(FET(channels, heads, 1, boundary, compact, legacy=legacy))
    tokens = torch.randn(1, height * width, channels)
    maps = tokens[0].T.reshape(1, channels, height, width)
    conv, norm, _ = layer.reduce
    reduced = F.batch_norm(conv(maps), norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    a, b, c, d = (reduced[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    ll, lh, hl, hh = (a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2
    assert all((band.flatten(2).std(2) > 0.1).any() for band in (ll, lh, hl, hh))  # not all cut off by the ReLU
    conv, norm, _ = layer.filter
    mixed = conv(torch.cat([ll, lh, hl, hh], dim=1))
    mixed = F.batch_norm(mixed, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    key, value = layer.key_value(mixed[0].flatten(1).T).split(channels, dim=1)
    query = layer.query(tokens)[0]
    added = torch.zeros_like(value)
    if boundary:
        weight = layer.boundary.mix_bands.weight.flatten(1)
        g0 = sum(weight[:, k, None, None] * band[0] for k, band in enumerate((lh, hl, hh)))
        g0 = layer.boundary.mix_levels.weight.flatten()[:, None, None] * g0
        added = layer.boundary.expand(g0.flatten(1).T).sigmoid()
    per_head = [slice(0, 8), slice(8, 16)]
    spatial = torch.cat([slow_attention(query[:, s], key[:, s], (value + added)[:, s]) for s in per_head], dim=1)
    global_ = [slow_efficient(query[:, s], key[:, s], value[:, s], compact, legacy) for s in per_head]
    efficient = torch.stack(global_).reshape(height * width, channels) if legacy else torch.cat(global_, dim=1)
    if compact:
        both = torch.cat([layer.spatial_norm(spatial), layer.efficient_norm(efficient)], dim=1)
        expected = layer.output_norm(layer.merge(layer.merge_norm(both)))
    else:
        expected = layer.merge(torch.cat([spatial, efficient], dim=1))
    torch.testing.assert_close(layer(tokens, height, width)[0], expected, atol=2e-4, rtol=2e-4)


def test_fet_keeps_images_of_a_batch_and_heads_apart():
    layer = randomise(FET(8, 2))
    tokens = torch.randn(3, 16, 8)
    changed = tokens.clone()
    changed[1] += 1
    before, after = layer(tokens, 4, 4), layer(changed, 4, 4)
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_attention_without_positions_follows_a_permutation():
    layer, tokens, order = EfficientAttention(8, 2), torch.randn(1, 10, 8), torch.randperm(10)
    torch.testing.assert_close(layer(tokens)[:, order], layer(tokens[:, order]))


# --- feed-forward network, bridge, decoder -----------------------------------------------------------------


def test_mix_ffn_is_its_formula():
    layer = randomise(MixFFN(4))
    tokens = torch.randn(2, 6, 4)
    hidden = layer.expand(tokens)
    maps = hidden.transpose(1, 2).reshape(2, 16, 2, 3)
    padded, local = F.pad(maps, [1] * 4), torch.zeros_like(maps)
    for i in range(2):
        for j in range(3):
            window = padded[:, :, i : i + 3, j : j + 3]
            local[:, :, i, j] = (window * layer.depthwise.weight[:, 0]).sum((2, 3)) + layer.depthwise.bias
    summed = hidden + local.flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(tokens, 2, 3), layer.contract(F.gelu(layer.norm(summed))), atol=1e-4, rtol=1e-4)


class Remember(nn.Module):
    """An attention that returns the query and keeps what it was given."""

    def forward(self, tokens, height, width, query):
        self.given = tokens, query
        return query


@pytest.mark.parametrize("legacy", [False, True])
def test_msce_step_by_step(legacy):
    attentions = [Remember(), Remember()]
    bridge = randomise(MSCE((4, 8), attentions, legacy))
    fine, coarse = torch.randn(2, 12, 4), torch.randn(2, 3, 8)
    found = bridge([(fine, 4, 3), (coarse, 1, 3)])
    tokens = torch.cat([fine, coarse.reshape(2, 6, 4)], dim=1)  # 12 + 3·8/4 tokens of 4 channels
    tokens = tokens + bridge.context(bridge.input_norm(tokens))
    attended = bridge.output_norm(tokens)
    squeeze, _, excite, _ = bridge.excite
    gate = torch.sigmoid(excite(F.gelu(squeeze(attended.mean(1)))))
    query = attended * gate[:, None]
    if legacy:
        query = query.transpose(1, 2).reshape(2, 18, 4)
    torch.testing.assert_close(attentions[0].given[0], attended[:, :12])
    torch.testing.assert_close(attentions[1].given[1], query[:, 12:].reshape(2, 3, 8))
    first = tokens[:, :12] + bridge.ffns[0](query[:, :12], 4, 3)
    second = tokens[:, 12:] + bridge.ffns[1](query[:, 12:].reshape(2, 3, 8), 1, 3).reshape(2, 6, 4)
    torch.testing.assert_close(found[0][0], first)
    torch.testing.assert_close(found[1][0], second.reshape(2, 3, 8))
    assert found[0][1:] == (4, 3) and found[1][1:] == (1, 3)


def test_patch_expand_puts_pixels_where_they_belong():
    layer = PatchExpand(3, 2, 5)
    tokens = torch.randn(1, 6, 3)
    found = layer(tokens, 2, 3).reshape(4, 6, 5)
    weight = layer.project.weight.reshape(2, 2, 5, 3)
    for i in range(4):
        for j in range(6):
            expected = weight[i % 2, j % 2] @ tokens[0, (i // 2) * 3 + j // 2]
            torch.testing.assert_close(found[i, j], F.layer_norm(expected, (5,)), atol=1e-5, rtol=1e-5)


def test_network_takes_any_multiple_of_32_and_nothing_else():
    network = WaveFormer(classes=4, **TINY).eval()
    assert network(torch.rand(1, 3, 32, 96)).shape == (1, 4, 32, 96)
    with pytest.raises(ValueError, match="divisible by 32"):
        network(torch.rand(1, 3, 48, 32))
    seen = []
    network(torch.rand(1, 3, 32, 64), lambda stage, maps: seen.append((stage, tuple(maps.shape[1:]))))
    assert seen == [(0, (8, 8, 16))] * 2 + [(1, (16, 4, 8))] * 2 + [(2, (32, 2, 4))] * 2


def test_without_boundary_is_not_the_same():
    torch.manual_seed(0)
    full = WaveFormer(**TINY)
    assert any("boundary" in name for name, _ in full.named_parameters())
    assert not any("boundary" in name for name, _ in WaveFormer(boundary=False, **TINY).named_parameters())
    assert not any("unused" in name for name, _ in full.named_parameters())


# --- loss and spectrum -------------------------------------------------------------------------------------


def test_loss_is_its_formula():
    logits, label = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    probability = logits.softmax(1)
    dices = []
    for k in range(3):
        p, t = probability[:, k], (label == k).float()
        dices.append((2 * (p * t).sum() + 1e-5) / ((p * p).sum() + (t * t).sum() + 1e-5))
    log = logits.log_softmax(1)
    picked = [log[b, label[b, i, j], i, j] for b in range(2) for i in range(4) for j in range(5)]
    dice, cross_entropy = 1 - sum(dices) / 3, -sum(picked) / len(picked)
    found = losses.segmentation_loss(logits, label)
    torch.testing.assert_close(torch.stack(found), torch.stack([0.6 * dice + 0.4 * cross_entropy, dice, cross_entropy]))


def test_loss_of_a_class_that_is_nowhere_is_finite():
    logits = torch.full((1, 3, 4, 4), -50.0)
    logits[:, 0] = 50.0
    found = losses.dice_loss(logits, torch.zeros(1, 4, 4, dtype=torch.long))
    assert found.item() == pytest.approx(0, abs=1e-4)


def test_spectrum_of_waves_and_noise():
    n = torch.arange(16)
    slow, fast = (torch.cos(2 * math.pi * cycles * n / 16).expand(1, 1, 16, 16) for cycles in (4, 5))
    assert spectrum.high_frequency_share(slow).item() == pytest.approx(0, abs=1e-6)  # at half Nyquist, not above
    assert spectrum.high_frequency_share(fast).item() == pytest.approx(1, abs=1e-6)
    mixed = slow + 2 * fast + 100
    assert spectrum.high_frequency_share(mixed).item() == pytest.approx(4 / 5, abs=1e-5)
    assert spectrum.high_frequency_share(torch.full((2, 3, 6, 6), 7.0)).tolist() == pytest.approx([0, 0], abs=1e-5)
    white = spectrum.high_frequency_share(torch.randn(4, 200, 6, 6))
    radius = [math.hypot(min(i, 6 - i), min(j, 6 - j)) / 6 for i in range(6) for j in range(6)]
    expected = sum(r > 0.25 for r in radius) / sum(r > 0 for r in radius)
    assert white.mean().item() == pytest.approx(expected, abs=0.01)


# --- scores ------------------------------------------------------------------------------------------------


def test_transunet_protocol_is_that_of_medpy_and_its_edge_cases():
    """54.237 and 2 are what dc and hd95 of medpy 0.5.2 give for label 1."""
    truth, prediction = np.zeros((4, 12, 12), np.uint8), np.zeros((4, 12, 12), np.uint8)
    truth[1:3, 2:8, 2:8] = 1
    prediction[1:4, 4:9, 1:8] = 1
    prediction[0, 0, 0] = 2  # only predicted
    truth[3, 10, 10] = 3  # only true; 4 is nowhere
    found = scores.transunet_scores(prediction, truth, [1, 2, 3, 4])
    assert found["dice"] == pytest.approx([54.2372881356, 100, 0, 0])
    assert found["hd95"] == pytest.approx([2, 0, 0, 0])


def test_plain_scores_in_mm_and_their_edge_cases():
    truth = np.zeros((3, 10, 10), np.uint8)
    truth[1, 2:5, 2:5] = 1
    truth[1, 8, 8] = 3
    prediction = np.roll(np.where(truth == 1, 1, 0), 2, axis=2).astype(np.uint8)
    prediction[0, 0, 0] = 2
    found = scores.plain_scores(prediction, truth, [1, 2, 3, 4], (5.0, 1.0, 0.5))
    diagonal = math.hypot(15, 10, 5)
    assert found["dice"][:3] == pytest.approx([100 / 3, 0, 0]) and math.isnan(found["dice"][3])
    assert found["hd95_mm"][:3] == pytest.approx([1.0, diagonal, diagonal]) and math.isnan(found["hd95_mm"][3])


# --- data --------------------------------------------------------------------------------------------------


def test_image_and_label_are_augmented_alike():
    image = torch.zeros(3, 40, 40) - 1
    label = torch.zeros(40, 40, dtype=torch.uint8)
    image[:, 12:26, 8:30], label[12:26, 8:30] = 1.0, 3
    moved = 0
    for name in ("flip", "scale", "rotate", "shear", "piecewise", "translate"):
        for _ in range(6):
            new_image, new_label = augmentation.augment(image, label, [name], 1)
            assert set(new_label.unique().tolist()) <= {0, 3} and new_label.dtype == torch.uint8
            agreement = ((new_image[0] > 0) == (new_label == 3)).float().mean()
            assert agreement > 0.97, name
            moved += int(not torch.equal(new_label, label))
    assert moved > 8
    for name in ("noise", "blur", "contrast"):
        changed = [augmentation.augment(image, label, [name], 1) for _ in range(6)]
        assert all(torch.equal(new_label, label) for _, new_label in changed)
        assert any(not torch.equal(new_image, image) for new_image, _ in changed)
    with pytest.raises(ValueError, match="unknown"):
        augmentation.augment(image, label, ["twist"])


def test_rotation_keeps_distances():
    for _ in range(5):
        grid = augmentation.geometry(["rotate"], 21, 21)
        assert torch.linalg.norm(grid[10, 20] - grid[10, 10]).item() == pytest.approx(20 / 21, abs=1e-5)
        assert float(torch.linalg.norm(grid[10, 20] - grid[20, 10])) == pytest.approx(math.sqrt(2) * 20 / 21, abs=1e-5)


def test_resizing_is_cubic_for_images_and_nearest_for_labels():
    ramp = np.linspace(0, 1, 32, dtype=np.float32)[:, None].repeat(32, axis=1)
    small = data.to_input(ramp, 16)
    assert small.shape == (3, 16, 16)
    np.testing.assert_allclose(small[0, :, 3], 2 * np.linspace(0, 1, 16) - 1, atol=2e-3)
    label = np.zeros((32, 32), np.uint8)
    label[:, 16:] = 8
    assert set(np.unique(data.resize(label, (16, 16), 0))) == {0, 8}
    photo = np.zeros((20, 30, 3), np.float32)
    photo[..., 2] = 1
    assert data.to_input(photo, 32)[:, 5, 5].tolist() == pytest.approx([-1, -1, 1], abs=1e-5)


def test_lists_decide_and_a_missing_file_is_named(smoke, tmp_path):
    assert len(data.find_synapse(smoke, "train")) == 12 and len(data.find_synapse(smoke, "test")) == 2
    base = data.find_synapse(smoke / "Synapse", "train")  # without lists: all files
    assert [p.name for p in base] == [p.name for p in data.find_synapse(smoke, "train")]
    (tmp_path / "train_npz").mkdir()
    (tmp_path / "train.txt").write_text("case0005_slice000\n", "utf-8")
    with pytest.raises(InputError, match="case0005_slice000.npz is missing"):
        data.find_synapse(tmp_path, "train")


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.full((4, 4), 300.0), np.zeros((4, 4)), "expected 0 to 1"),
        (np.zeros((4, 4)), np.full((4, 4), 9.0), "'label' must hold 0 to 8"),
        (np.zeros((4, 4)), np.zeros((4, 5)), "has the shape"),
        (np.full((4, 4), np.nan), np.zeros((4, 4)), "NaN"),
        (np.zeros(4), np.zeros(4), "2 dimensions"),
    ],
)
def test_broken_slices_are_named(image, label, message, tmp_path):
    path = tmp_path / "case0005_slice000.npz"
    np.savez(path, image=image, label=label)
    with pytest.raises(InputError, match=message) as error:
        data.read_slice(path)
    assert "case0005_slice000.npz" in str(error.value)


def test_isic_split_is_that_of_the_protocol(tmp_path):
    (tmp_path / data.PHOTOS).mkdir()
    for number in range(2594):
        (tmp_path / data.PHOTOS / f"ISIC_{number:07d}.jpg").touch()
    sizes = [len(data.find_isic(tmp_path, split)) for split in ("train", "valid", "test")]
    assert sizes == [1815, 259, 520]
    first = data.find_isic(tmp_path, "test")[0]
    with pytest.raises(InputError, match="ISIC_0002074.jpg"):
        data.read_photo_and_mask(first)


def test_isic_trains_evaluates_and_applies(smoke, tmp_path):
    modules = (training.Config, training.PROFILES, training.VARIANTS)
    config = configure(*modules, "smoke", "full", data=smoke, out=tmp_path, device="cpu", dataset="isic", steps=2)
    training.train(config)
    evaluation.evaluate(smoke, tmp_path / "checkpoint.pt", tmp_path, device="cpu")
    rows = (tmp_path / "metrics.csv").read_text("utf-8").splitlines()
    assert len(rows) == 1 + len(data.find_isic(smoke, "test")) and "lesion_dice" in rows[0]
    photo = data.find_isic(smoke, "test")[0]
    evaluation.apply(tmp_path / "checkpoint.pt", photo, tmp_path / "mask.png", device="cpu")
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == data.read_photo(photo).shape[:2] and set(np.unique(mask)) <= {0, 255}
    with pytest.raises(InputError, match=".png"):
        evaluation.apply(tmp_path / "checkpoint.pt", photo, tmp_path / "mask.nii.gz", device="cpu")
    evaluation.panel(smoke, [tmp_path / "checkpoint.pt"], tmp_path / "panel.png", device="cpu")
    assert (tmp_path / "panel.png").stat().st_size > 5000


class Threshold(nn.Module):
    """Stands for a network: everything brighter than 0 is liver (5)."""

    def forward(self, image, after_block=None):
        for _ in range(6):
            after_block(0, image)
        bright = (image[:, :1] > 0).float()
        return torch.cat([1 - bright, bright.new_zeros(len(image), 4, *image.shape[2:]), bright], dim=1)


@pytest.mark.parametrize("orientation", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_apply_gives_back_the_scan_s_own_grid(orientation, tmp_path, monkeypatch):
    hu = np.full((40, 50, 3), -100.0, np.float32)
    hu[5:20, 8:30, 1] = 200.0
    affine = np.diag([orientation[0] * 1.5, orientation[1] * 1.25, orientation[2] * 5.0, 1.0])
    affine[:3, 3] = (11, -7, 30)
    path, out = tmp_path / "ct.nii.gz", tmp_path / "organs.nii.gz"
    nifti.save(path, hu, affine=affine)
    modules = (training.Config, training.PROFILES, training.VARIANTS)
    config = configure(*modules, "smoke", "full", data=tmp_path, out=tmp_path, image_size=64)
    monkeypatch.setattr(evaluation, "load_model", lambda *_: (Threshold(), config))
    evaluation.apply(tmp_path / "checkpoint.pt", path, out, device="cpu")
    found = nifti.load(out)
    np.testing.assert_allclose(found.affine, affine)
    assert found.shape == hu.shape and set(np.unique(found.data)) == {0, 5}
    wrong = (found.data == 5) != (hu > 75)
    assert wrong.sum() < 0.05 * (hu > 75).sum() + 40  # but for the resampled border
    np.savez(tmp_path / "x.npz", hu)
    nifti.save(path, np.full((8, 8, 2), 900.0, np.float32) + np.arange(2, dtype=np.float32), affine=affine)
    with pytest.raises(InputError, match="expected a CT in HU"):
        evaluation.apply(tmp_path / "checkpoint.pt", path, out, device="cpu")


def test_what_the_network_sees_of_a_nifti_is_what_was_prepared(smoke):
    volume = data.read_volume(data.find_synapse(smoke, "test")[0])
    scan = nifti.load(next(iter(sorted((smoke / "RawData/Training/img").glob("*.nii.gz")))))
    images = (np.clip(evaluation.from_ras(resample.to_ras(scan).data), -125, 275) + 125) / 400
    np.testing.assert_allclose(images, volume.images, atol=1e-6)
    assert volume.spacing == pytest.approx((scan.spacing[2], *scan.spacing[:2]))
    array = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(evaluation.from_ras(evaluation.from_ras(array), back=True), array)


def test_btcv_is_prepared_as_transunet_did(tmp_path):
    raw = tmp_path / "Training"
    labels = np.zeros((6, 5, 2), np.uint8)
    labels[0, 0, 0], labels[5, 4, 1], labels[2, 2, 0], labels[3, 1, 1] = 8, 6, 13, 2
    hu = np.full((6, 5, 2), -300, np.int16)
    hu[0, 0, 0], hu[5, 4, 1], hu[2, 2, 0] = 75, 900, 275
    for number in ("0005", "0001"):
        affine = np.diag([0.8, 0.8, 3.0, 1.0])  # RAS
        nifti.save(raw / "img" / f"img{number}.nii.gz", hu, affine=affine)
        nifti.save(raw / "label" / f"label{number}.nii.gz", labels, affine=affine)
    assert btcv.prepare_btcv(raw, tmp_path / "out") == (2, 1)
    case = data.read_volume(data.find_synapse(tmp_path / "out", "test")[0])
    assert case.name == "case0001" and case.spacing == pytest.approx((3.0, 0.8, 0.8))
    assert case.images.shape == (2, 6, 5)
    assert (case.images[0, 5, 4], case.label[0, 5, 4]) == (0.5, 1)  # aorta, now last to the left and back
    assert (case.images[1, 0, 0], case.label[1, 0, 0]) == (1.0, 5)  # liver
    assert case.label[0, 3, 2] == 0 and case.label[1, 2, 3] == 4  # adrenal gland, right kidney
    image, label = data.read_slice(data.find_synapse(tmp_path / "out", "train")[0])
    np.testing.assert_array_equal(image, case.images[0])
    np.testing.assert_array_equal(label, case.label[0])


# --- simulators --------------------------------------------------------------------------------------------


def test_abdomen_has_organs_where_they_belong():
    scan = abdomen_ct.abdomen_ct(np.random.default_rng(4), 64, 8)
    again = abdomen_ct.abdomen_ct(np.random.default_rng(4), 64, 8)
    np.testing.assert_array_equal(scan.hu, again.hu)
    assert scan.hu.shape == scan.labels.shape == (64, 64, 8) and scan.hu.dtype == np.int16
    middle = {c: np.argwhere(scan.labels == c).mean(0) for c in range(1, 9) if (scan.labels == c).any()}
    assert set(middle) >= {1, 3, 4, 5, 6, 7, 8}
    assert middle[3][0] > 32 > middle[4][0] and middle[7][0] > 32 > middle[5][0]  # x to the left
    assert middle[8][1] < middle[1][1] and middle[6][1] < middle[3][1]  # stomach in front of the aorta
    assert middle[5][2] > middle[4][2]  # liver above the right kidney
    for organ, low, high in ((5, 50, 125), (7, 70, 140), (1, 110, 300)):
        assert low < np.median(scan.hu[scan.labels == organ]) < high, organ


def test_noise_of_filtered_back_projection():
    """Blue at low frequencies (the ramp), streaked along the rays that meet bone."""
    rng = np.random.default_rng(0)
    water = np.full((64, 64, 6), -1000.0, np.float32)
    y, x = np.mgrid[:64, :64] - 31.5
    water[np.hypot(x, y) < 26] = 0.0
    noise = abdomen_ct.fbp_noise(water, 5.0, rng, 15.0)
    assert noise.std() == pytest.approx(15, rel=1e-3)
    power = (np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2).mean(2)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    low, mid = (power[(radius > a) & (radius < b)].mean() for a, b in ((0.01, 0.05), (0.15, 0.25)))
    assert low < 0.7 * mid  # white noise: equal
    bone = water.copy()
    bone[29:35, 5:59] = 1200.0  # a bar along the second axis
    noise = abdomen_ct.fbp_noise(bone, 5.0, rng, 15.0)
    along = np.corrcoef(noise[32, 10:53].ravel(), noise[32, 11:54].ravel())[0, 1]
    across = np.corrcoef(noise[10:53, 32].ravel(), noise[11:54, 32].ravel())[0, 1]
    assert along > across + 0.1


def test_lesions_are_darker_and_in_one_piece():
    from scipy import ndimage

    for seed in range(4):
        photo, mask = skin_lesion.skin_lesion(np.random.default_rng(seed), 96, 128)
        assert photo.shape == (96, 128, 3) and photo.dtype == np.uint8
        assert ndimage.label(mask)[1] == 1 and 0.01 < mask.mean() < 0.6
        ring = ndimage.binary_dilation(mask, iterations=12) & ~ndimage.binary_dilation(mask, iterations=4)
        assert np.median(photo[mask][:, 2]) < np.median(photo[ring][:, 2])  # melanin absorbs blue most


def test_the_standin_is_complete_or_absent(smoke, tmp_path):
    with h5py.File(data.find_synapse(smoke, "test")[0]) as file:
        assert file["image"].dtype == np.float32 and set(np.unique(file["label"])) <= set(range(9))
        assert 0 <= file["image"][...].min() and file["image"][...].max() <= 1
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    with pytest.raises(InputError, match="already holds"):
        standin.generate(tmp_path / "there", size="smoke")
    with pytest.raises(InputError, match="no size"):
        standin.generate(tmp_path / "new", size="huge")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 48}, "multiple of 32"),
        ({"dims": (8, 16)}, "3 or 4"),
        ({"dims": (8, 18, 32)}, "divisible by 4"),
        ({"levels": 0}, "1 or more"),
        ({"augmentations": ("twist",)}, "choose from"),
    ],
)
def test_settings_that_can_t_work_are_one_sentence(settings, message, tmp_path):
    modules = (training.Config, training.PROFILES, training.VARIANTS)
    config = configure(*modules, "smoke", "full", data=tmp_path, out=tmp_path, **settings)
    with pytest.raises(InputError, match=message):
        training.check(config)
