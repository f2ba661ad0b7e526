"""WaveFormer's mathematics, each part against a slow and obvious reference, an analytic case or another library."""

import dataclasses
import doctest
import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from papers.waveformer import baselines, losses, spectrum
from papers.waveformer import train as training
from papers.waveformer.attention import FET, EfficientAttention, StandardAttention, efficient_attention
from papers.waveformer.model import MSCE, MixFFN, PatchExpand, WaveFormer
from papers.waveformer.wavelet import BoundaryAttention, HaarDWT2d, gaussian_kernel, laplacian_pyramid
from shared.cli import configure

TINY = {"dims": (8, 16, 32), "heads": (2, 4, 8), "decoder_heads": (2, 4)}
FOUR = {"dims": (64, 128, 320, 512), "heads": (2, 4, 10, 16), "decoder_heads": (16, 8, 4)}


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


@pytest.mark.parametrize("variant", [name for name, v in training.VARIANTS.items() if "network" not in v])
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


def slow_gaussian(image, reach, sigma):
    """Convolution with a normalised Gaussian of (2 reach + 1)² taps, pixel by pixel; zeros beyond the edges."""
    steps = range(-reach, reach + 1)
    weights = {(i, j): math.exp(-(i * i + j * j) / (2 * sigma**2)) for i in steps for j in steps}
    total, out = sum(weights.values()), torch.zeros_like(image)
    height, width = image.shape
    for y in range(height):
        for x in range(width):
            for (i, j), weight in weights.items():
                if 0 <= y + i < height and 0 <= x + j < width:
                    out[y, x] += weight / total * image[y + i, x + j]
    return out


def slow_pyramid(image, levels):
    """Released: sigma 1.6 · 2^(l/3) with 3 x 3 and 5 x 5 taps, each level from G0; bands are differences."""
    smooth = [image] + [slow_gaussian(image, level, 1.6 * 2 ** (level / 3)) for level in range(1, levels)]
    return [image] + [before - after for before, after in zip(smooth, smooth[1:])]


def test_gaussian_kernels_and_pyramid():
    for level, side, sigma in ((1, 3, 2.0159), (2, 5, 2.5398)):
        kernel = gaussian_kernel(level)
        assert kernel.shape == (side, side) and kernel.sum().item() == pytest.approx(1)
        ratio = kernel[level, level] / kernel[level, level + 1]
        assert math.sqrt(0.5 / math.log(ratio)) == pytest.approx(sigma, abs=1e-4)
    x = torch.randn(1, 2, 9, 7)
    bands = laplacian_pyramid(x, 3)
    for channel in range(2):
        expected = torch.stack(slow_pyramid(x[0, channel], 3))
        torch.testing.assert_close(bands[0, channel], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("levels", [1, 3])
def test_boundary_attention_is_its_convolutions(levels):
    layer = randomise(BoundaryAttention(16, levels))
    bands = torch.randn(2, 3, 4, 5, 6)
    stacked = bands.transpose(1, 2)  # (B, C, 3, h, w), as a 3-D convolution takes it
    mixed = F.conv3d(stacked, layer.mix_bands.weight, groups=4)[:, :, 0]
    pyramid = torch.stack([torch.stack([torch.stack(slow_pyramid(c, levels)) for c in image]) for image in mixed])
    mixed = F.conv3d(pyramid, layer.mix_levels.weight, groups=4)[:, :, 0]
    expected = torch.sigmoid(layer.expand(mixed.flatten(2).transpose(1, 2)))
    torch.testing.assert_close(layer(bands), expected, atol=1e-5, rtol=1e-5)


# --- attention ---------------------------------------------------------------------------------------------


def slow_attention(query, key, value):
    """Equation 1 for one head and one image, token by token."""
    rows = []
    for q in query:
        weights = torch.stack([(q @ k / math.sqrt(len(q))).exp() for k in key])
        rows.append((weights[:, None] * value).sum(0) / weights.sum())
    return torch.stack(rows)


def slow_efficient(query, key, value, softmax_context=False, over_tokens=False):
    """Equation 2 for one image, entry by entry: one D x D context."""
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


def scrambled(tokens, heads):
    """What the released code makes of (N, D): split into heads, then read out head after head into N rows of D."""
    per_head = tokens.shape[1] // heads
    numbers = [tokens[n, h * per_head + c] for h in range(heads) for n in range(len(tokens)) for c in range(per_head)]
    return torch.stack(numbers).reshape(tokens.shape)


@pytest.mark.parametrize("softmax_context", [False, True])
@pytest.mark.parametrize("over_tokens", [False, True])
def test_efficient_attention_is_equation_2(softmax_context, over_tokens):
    query, key, value = torch.randn(2, 6, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    found = efficient_attention(query, key, value, softmax_context, over_tokens)
    for b in range(2):
        expected = slow_efficient(query[b], key[b], value[b], softmax_context, over_tokens)
        torch.testing.assert_close(found[b], expected, atol=1e-5, rtol=1e-5)


def test_the_baseline_s_attention_is_equation_2():
    layer = randomise(EfficientAttention(6))
    tokens = torch.randn(1, 5, 6)
    parts = (tokens[0] @ layer.query_key_value.weight.T + layer.query_key_value.bias).split(6, dim=1)
    expected = slow_efficient(*parts) @ layer.output.weight.T + layer.output.bias
    torch.testing.assert_close(layer(tokens)[0], expected, atol=1e-5, rtol=1e-5)


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
    """M3 to M7 for one image, head by head, with pywt's band order and loops for both attentions; `legacy` is what the
    released code does: one context of scrambled tokens, queries normalised over the tokens."""
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
    given = [scrambled(x, heads) if legacy else x for x in (query, key, value)]
    efficient = slow_efficient(*given, softmax_context=compact, over_tokens=legacy)
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
    layer, tokens, order = EfficientAttention(8), torch.randn(1, 10, 8), torch.randperm(10)
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
    """Section 2.3 with what the released code adds to what: efficient attention to the *normalised* tokens; the query
    from that sum, keys and values from its second norm; the end added to the sum."""
    attentions = [Remember(), Remember()]
    bridge = randomise(MSCE((4, 8), attentions, legacy))
    fine, coarse = torch.randn(2, 12, 4), torch.randn(2, 3, 8)
    found = bridge([(fine, 4, 3), (coarse, 1, 3)])
    tokens = torch.cat([fine, coarse.reshape(2, 6, 4)], dim=1)  # 12 + 3·8/4 tokens of 4 channels
    normed = F.layer_norm(tokens, (4,), bridge.input_norm.weight, bridge.input_norm.bias)
    parts = (normed @ bridge.context.query_key_value.weight.T + bridge.context.query_key_value.bias).split(4, dim=2)
    context = torch.stack([slow_efficient(*(part[b] for part in parts)) for b in range(2)])
    summed = normed + context @ bridge.context.output.weight.T + bridge.context.output.bias
    attended = F.layer_norm(summed, (4,), bridge.output_norm.weight, bridge.output_norm.bias)
    squeeze, _, excite, _ = bridge.excite
    gate = torch.sigmoid(excite(F.gelu(squeeze(summed.mean(1)))))
    query = summed * gate[:, None]
    own = [query[:, :12], query[:, 12:]]
    if legacy:  # each stage's part lies channels first when it is reshaped
        own = [torch.stack([part[b].T.flatten() for b in range(2)]) for part in own]
    own = own[0].reshape(2, 12, 4), own[1].reshape(2, 3, 8)
    torch.testing.assert_close(attentions[0].given[0], attended[:, :12], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attentions[0].given[1], own[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attentions[1].given[1], own[1], atol=1e-5, rtol=1e-5)
    first = summed[:, :12] + bridge.ffns[0](own[0], 4, 3)
    second = summed[:, 12:] + bridge.ffns[1](own[1], 1, 3).reshape(2, 6, 4)
    torch.testing.assert_close(found[0][0], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1][0], second.reshape(2, 3, 8), atol=1e-5, rtol=1e-5)
    assert found[0][1:] == (4, 3) and found[1][1:] == (1, 3)


def noise(count: int, phase: float) -> torch.Tensor:
    """Numbers in -1..1 that are the same on every machine."""
    x = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + phase) * 43758.5453
    return 2 * (x - x.floor()) - 1


def filled(module: nn.Module) -> nn.Module:
    for number, (name, value) in enumerate(sorted(module.state_dict().items())):
        if value.is_floating_point():
            numbers = 0.5 * noise(value.numel(), number).reshape(value.shape)
            value.copy_(1 + numbers if name.endswith("running_var") else numbers)
    return module.eval()


def some(tokens: torch.Tensor) -> list[float]:
    flat = tokens.detach().flatten()
    step = flat.numel() // 6 + 1 - flat.numel() // 6 % 2  # odd: not the same channel each time
    return [float(flat[k]) for k in range(0, flat.numel(), step)][:6]


# What the released code at a3e2f8f0 gives for the same weights and inputs.
FET_RELEASED = {
    (True, 1): [0.02602, -0.01861, -0.61944, -0.2464, 0.0257, -0.08974],
    (True, 3): [0.026, -0.01861, -0.61945, -0.24639, 0.02576, -0.08977],
    (False, 1): [-0.59091, 0.33343, -0.38755, 0.27178, -1.08774, -0.35065],
    (False, 3): [-0.5922, 0.33434, -0.38873, 0.27195, -1.08704, -0.35072],
}
MSCE_RELEASED = [
    [-0.77867, -0.96185, -1.04432, 1.4774, -0.00674, -0.84979],
    [0.38039, 0.85856, -1.92787, 0.95302, -0.27763, -0.04306],
    [-0.17712, -0.94904, -0.92515, -0.26227, -1.53924, 0.17105],
]


@pytest.mark.parametrize(("compact", "levels"), FET_RELEASED)
def test_legacy_fet_gives_the_released_numbers(compact, levels):
    layer = filled(FET(16, 2, levels, compact=compact, legacy=True))
    tokens = 2 * noise(24 * 16, 0.3).float().reshape(1, 24, 16)
    assert some(layer(tokens, 4, 6)) == pytest.approx(FET_RELEASED[compact, levels], abs=2e-5)


def test_legacy_bridge_gives_the_released_numbers():
    dims, sides = (8, 20, 32), (56, 28, 14)
    layers = [FET(dim, heads, with_query=False, legacy=True) for dim, heads in zip(dims, (2, 5, 4))]
    bridge = filled(MSCE(dims, layers, legacy=True))
    stages = [
        (2 * noise(side**2 * dim, number).float().reshape(1, side**2, dim), side, side)
        for number, (side, dim) in enumerate(zip(sides, dims))
    ]
    for (found, _, _), expected in zip(bridge(stages), MSCE_RELEASED):
        assert some(found) == pytest.approx(expected, abs=5e-5)


def test_initial_weights_are_the_released_ones():
    """Decoder: Xavier. Attention: 0.02, or by the fan-out. The rest: PyTorch's defaults."""
    torch.manual_seed(0)
    network = WaveFormer(dims=(64, 128, 256), heads=(2, 4, 8), decoder_heads=(2, 4))
    weights = dict(network.named_parameters())
    expected = {
        "decoder.merges.0.weight": math.sqrt(2 / (256 + 128)),
        "decoder.blocks.1.0.attention.query.weight": math.sqrt(2 / 128),
        "decoder.blocks.0.0.attention.filter.0.weight": math.sqrt(2 / (9 * 256)),
        "decoder.blocks.0.0.ffn.depthwise.weight": math.sqrt(2 / (9 + 9 * 512)),
        "decoder.last_expand.project.weight": math.sqrt(2 / (17 * 64)),
        "encoder.blocks.1.0.attention.merge.weight": 0.02,
        "encoder.blocks.2.1.attention.reduce.0.weight": math.sqrt(2 / 64),
        "bridge.attentions.0.filter.0.weight": math.sqrt(2 / (9 * 64)),
        "bridge.context.query_key_value.weight": math.sqrt(1 / (3 * 64)),
        "encoder.blocks.0.0.ffn.expand.weight": math.sqrt(1 / (3 * 64)),
        "encoder.embeddings.1.project.weight": math.sqrt(1 / (3 * 9 * 64)),
    }
    for name, deviation in expected.items():
        assert weights[name].std().item() == pytest.approx(deviation, rel=0.05), name
    zero = [name for name, value in weights.items() if name.endswith("bias") and not value.any()]
    assert "decoder.merges.0.bias" in zero and "encoder.blocks.0.0.attention.query.bias" in zero
    assert "encoder.blocks.0.0.ffn.expand.bias" not in zero and "bridge.context.output.bias" not in zero


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
    assert seen == [(0, (8, 8, 16))] * 3 + [(1, (16, 4, 8))] * 3 + [(2, (32, 2, 4))] * 3


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


def test_what_a_stage_keeps_is_relative_to_its_input():
    shares = torch.tensor([[0.5, 0.7], [0.9, 0.9], [0.3, 0.3], [0.2, 0.6], [0.0, 0.0], [0.1, 0.1]])
    assert spectrum.kept_in_stage(shares, 0) == pytest.approx(0.3 / 0.6)
    assert spectrum.kept_in_stage(shares, 1) == pytest.approx(0.1 / 0.4)
    assert math.isnan(spectrum.kept_in_stage(shares, 2)) and math.isnan(spectrum.kept_in_stage(shares[:0], 0))


# --- controls ----------------------------------------------------------------------------------------------


def test_places_and_brightness_decide_by_bayes_rule():
    """Bright below and dark above; a class that is only told by its place, and one only by its brightness."""
    label = torch.zeros(32, 32, dtype=torch.long)
    label[16:] = 1
    image = torch.full((3, 32, 32), -0.8)
    image[:, ::2, :] = 0.8
    label[::2] = 2
    model = baselines.PositionAndBrightness(3, 32)
    model.fit([{"image": image, "label": label}] * 3)
    found = model(torch.stack([image, -image])).argmax(1)
    torch.testing.assert_close(found[0], label)
    assert set(found[1][:12:2].unique().tolist()) == {0} and set(found[1][20::2].unique().tolist()) == {1}
    probability = model(image[None]).exp()[0, :, 3, 5]
    place = F.avg_pool2d(F.one_hot(label, 3).permute(2, 0, 1)[None].float() * 3, 5, 1)[0, :, 1, 3] + 1e-3
    dark = torch.tensor([16 * 16 * 3 * 2 / 2, 16 * 16 * 3 * 2 / 2, 0]) + 1
    likelihood = dark / (torch.tensor([256 * 3, 256 * 3, 512 * 3]) + 32.0)
    torch.testing.assert_close(probability, place / place.sum() * likelihood, rtol=1e-4, atol=1e-7)


def test_the_u_net_takes_the_same_inputs():
    assert baselines.UNet(4, 4)(torch.rand(2, 3, 32, 64)).shape == (2, 4, 32, 64)
