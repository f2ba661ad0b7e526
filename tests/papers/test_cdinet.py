"""CDI-Net's networks and loss, each part against a slow and obvious reference or an identity."""

import doctest
import importlib
import math

import numpy as np
import pytest
import torch

from papers.cdinet import backbones, baselines, model
from papers.cdinet.geometry import PinholeGeometry
from papers.cdinet.projector import Projector
from shared.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")


def networks(**settings):
    defaults = dict(iterations=3, backbone="unet", width=2, projection_depth=2, image_depth=2)
    projector = Projector.from_geometry(PinholeGeometry.ge570c((8, 8, 4), 32.0, (8, 6)))
    return model.CDINet(projector, **(defaults | settings))


def small_inputs(cases=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(cases, 1, 8, 6, 20, generator=generator) * 50, torch.rand(cases, 1, 8, 8, 4, generator=generator)


# ------------------------------------------------------------------------------------ networks (M3, M4, M7)


def test_fast_convolution_is_the_plain_one():
    for slices, channels in ((8, 3), (9, 2), (28, 4)):
        conv = backbones.Conv3d(channels, 5)
        x = torch.rand(1, channels, slices, 6, 5, requires_grad=True)
        expected = torch.nn.functional.conv3d(x, conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)
        weights = torch.rand_like(expected)
        inputs = (x, conv.weight, conv.bias)
        gradients = torch.autograd.grad((conv(x) * weights).sum(), inputs)
        references = torch.autograd.grad((expected * weights).sum(), inputs)
        for gradient, reference in zip(gradients, references):
            torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3)


def test_parameter_counts_of_the_released_backbone():
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    with torch.device("meta"):
        full = model.CDINet(networks().projector.to("meta"))
    for m, network in enumerate(full.projection_networks, start=1):
        assert 3.07e6 < count(network) < 3.085e6, m
    for m, network in enumerate(full.image_networks, start=1):
        assert 4.315e6 < count(network) < 4.33e6, m
    assert count(full) == pytest.approx(37.0e6, rel=0.002)


@pytest.mark.parametrize(
    "settings, projection_channels, image_channels",
    [
        ({}, [1, 3, 5], [2, 4, 6]),  # 2m - 1 and 2m
        ({"use_awr": False}, [1, 3, 5], [2, 4, 6]),
        ({"use_cidc": False}, [1, 2, 3], [2, 3, 4]),
        ({"use_cdrc": False}, [1, 2, 3], [1, 2, 3]),
    ],
)
def test_input_channels_of_every_iteration(settings, projection_channels, image_channels):
    net = networks(**settings)
    first = lambda n: n.backbone.down[0][0].in_channels  # noqa: E731
    assert [first(n) for n in net.projection_networks] == projection_channels
    assert [first(n) for n in net.image_networks] == image_channels
    assert len(net(*small_inputs())) == 3
    for network in (*net.projection_networks, *net.image_networks):
        recalibrated = isinstance(network.awr, model.AdaptiveWeightRecalibrator)
        assert recalibrated == (first(network) > 1 and settings.get("use_awr", True))


def test_awr_is_the_formula():
    awr = model.AdaptiveWeightRecalibrator(3)
    features = torch.randn(2, 3, 4, 5, 6)
    output = awr(features)
    assert awr.hidden.out_features == 6
    for b in range(2):
        embedding = torch.stack([features[b, c].sum() / 120 for c in range(3)])
        hidden = torch.clamp(awr.hidden.weight @ embedding + awr.hidden.bias, min=0)
        alpha = 1 / (1 + torch.exp(-(awr.weight.weight @ hidden + awr.weight.bias)))
        for c in range(3):
            torch.testing.assert_close(output[b, c], features[b, c] * alpha[c] + features[b, c])
    released = model.AdaptiveWeightRecalibrator(3, residual=False)
    released.load_state_dict(awr.state_dict())
    torch.testing.assert_close(released(features) + features, output)


def test_exchanged_features_are_normalised_and_in_the_papers_order():
    """M5, M6, M8: records what enters every network and rebuilds it from the outputs."""
    net = networks().eval()
    seen = {}
    for domain in ("projection", "image"):
        for m, network in enumerate(getattr(net, f"{domain}_networks")):
            network.register_forward_hook(lambda _, inputs, out, key=(domain, m): seen.update({key: (inputs[0], out)}))
    low, image = small_inputs(cases=2)
    predictions = net(low, image)
    outputs = {key: output for key, (_, output) in seen.items()}

    def unit(t):  # each case over the mean of its absolute value
        return torch.stack([case / case.abs().mean() for case in t])

    low_unit = torch.stack([case / case.mean() for case in low])
    back = [net.projector.back_project(outputs["projection", m]) for m in range(3)]
    forward = [net.projector.forward_project(outputs["image", m]) for m in range(3)]
    for m in range(3):
        expected = (
            [low_unit] + [unit(outputs["projection", j]) for j in range(m)] + [unit(forward[j]) for j in range(m)]
        )
        torch.testing.assert_close(seen["projection", m][0], torch.cat(expected, 1))
        expected = [unit(image)] + [unit(outputs["image", j]) for j in range(m)] + [unit(back[j]) for j in range(m + 1)]
        torch.testing.assert_close(seen["image", m][0], torch.cat(expected, 1))
        # The unnormalised outputs go to the loss, in counts and cm^-1.
        torch.testing.assert_close(predictions[m][0], outputs["projection", m] * low.mean((1, 2, 3, 4), keepdim=True))
        torch.testing.assert_close(predictions[m][1], outputs["image", m] * 0.15)


def test_normalisation_has_mean_one_and_a_detached_divisor():
    feature = torch.rand(2, 1, 4, 4, 4, requires_grad=True)
    normalised = model.normalise_mean(feature)
    torch.testing.assert_close(normalised.mean((1, 2, 3, 4)), torch.ones(2))
    (gradient,) = torch.autograd.grad(normalised.sum(), feature)
    expected = (1 / feature.mean((1, 2, 3, 4), keepdim=True)).expand_as(feature)
    torch.testing.assert_close(gradient, expected)  # would be 0 if the divisor weren't detached
    assert torch.isfinite(model.normalise_mean(torch.zeros(1, 1, 2, 2, 2))).all()


def test_predictions_scale_with_the_counts():
    net = networks().eval()
    low, image = small_inputs()
    (once, mu), (tenfold, same_mu) = net(low, image)[-1], net(10 * low, 10 * image)[-1]
    torch.testing.assert_close(tenfold, 10 * once, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(same_mu, mu, rtol=1e-4, atol=1e-6)


def test_gradient_reaches_the_first_networks_through_the_projector():
    net = networks(use_cidc=False)  # without dense connections, T_b and T_f are the only way back
    low, image = small_inputs()
    predictions = net(low, image)
    predictions[-1][1].abs().mean().backward()  # only the last attenuation map
    assert net.projection_networks[0].backbone.out.weight.grad.abs().sum() > 0
    assert net.image_networks[0].backbone.out.weight.grad.abs().sum() > 0
    net = networks(use_cdrc=False)
    net(low, image)[-1][1].abs().mean().backward()  # two separate chains
    assert all(p.grad is None for p in net.projection_networks.parameters())
    assert net.image_networks[0].backbone.out.weight.grad.abs().sum() > 0


def test_gaussian_initialisation_touches_weights_alone():
    """As the released function: biases and batch norm keep PyTorch's."""
    net = networks(width=16)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.apply(backbones.init_gaussian)
    for name, module in net.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, torch.nn.BatchNorm3d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        elif "weight" in own:
            assert not torch.equal(own["weight"], before[f"{name}.weight"])
            assert "bias" not in own or torch.equal(own["bias"], before[f"{name}.bias"])
            if own["weight"].numel() > 5000:
                assert own["weight"].std().item() == pytest.approx(0.02, rel=0.05), name


@pytest.mark.parametrize("settings", [{"backbone": "vnet"}, {"iterations": 0}, {"width": 0}, {"image_depth": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(InputError):
        networks(**settings)


def test_model_refuses_shapes_that_cannot_work():
    low, image = small_inputs()
    with pytest.raises(InputError, match="needs projections"):
        networks()(low.transpose(2, 4), image)
    with pytest.raises(InputError, match="divisible by 8"):
        networks(projection_depth=4)(low, image)


# ---------------------------------------------------------------------------------------- loss, baselines


def test_loss_is_equation_8():
    generator = torch.Generator().manual_seed(0)
    predictions = [
        (torch.rand(2, 1, 3, 3, 4, generator=generator), torch.rand(2, 1, 2, 2, 2, generator=generator))
        for _ in range(5)
    ]
    full, mu = torch.rand(2, 1, 3, 3, 4, generator=generator), torch.rand(2, 1, 2, 2, 2, generator=generator)
    unit = torch.tensor([2.0, 5.0])
    total = 0.0
    for predicted, predicted_mu in predictions:
        for b in range(2):
            total += 0.7 * ((predicted[b] - full[b]).abs() / unit[b]).sum().item() / (2 * 36)
            total += 1.3 * ((predicted_mu[b] - mu[b]).abs() / 0.15).sum().item() / (2 * 8)
    settings = dict(count_unit=unit.view(2, 1, 1, 1, 1), projection_weight=0.7, mu_weight=1.3)
    assert model.cdi_loss(predictions, full, mu, **settings).item() == pytest.approx(total, rel=1e-5)
    with pytest.raises(ValueError):
        model.cdi_loss([(full, None)], full, mu)


def test_baselines_have_the_same_interface():
    low, image = small_inputs()
    projector = networks().projector
    for net in (
        baselines.SeparateNets(projector, "unet", 2, 2, 2),
        baselines.SeparateNets(projector, "attention", 2, 2, 2),
        baselines.DuDoSS(projector, "unet", 2, 2, 2),
    ):
        for full, mu in net(low, image):
            assert full.shape == low.shape and mu.shape == image.shape
        model.cdi_loss(net(low, image), low, image).backward()
        assert all(p.grad is not None for p in net.parameters())
        full, mu = model.predict(net, low, image)
        assert full.min() >= 0 and mu.min() >= 0 and net.training
    full, mu = model.predict(baselines.Passthrough(), low, image)
    assert torch.equal(full, low) and mu is None


def test_separate_nets_share_nothing():
    net = baselines.SeparateNets(networks().projector, "unet", 2, 2, 2).eval()
    low, image = small_inputs()
    other_low, other_image = small_inputs(seed=1)
    assert torch.equal(net(low, image)[0][0], net(low, other_image)[0][0])
    assert torch.equal(net(low, image)[0][1], net(other_low, image)[0][1])


def test_dudoss_prior_is_a_forward_projection_in_counts():
    net = baselines.DuDoSS(networks().projector, "unet", 2, 2, 2).eval()
    low, image = small_inputs()
    prior = net(low, image)[0][0]
    emission_image = net.emission_network(image / image.mean()) * image.mean()
    torch.testing.assert_close(prior, net.projector.forward_project(emission_image))


def test_reprojected_image_is_fitted_to_the_training_studies():
    """Noise of one voxel asks for smoothing; a clean image for none."""
    projector = networks().projector
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros(3, 1, 8, 8, 4)
    clean[:, :, 2:6, 2:6, 1:3] = 1.0 + torch.rand(3, 1, 1, 1, 1, generator=generator)
    mu = torch.rand(3, 1, 8, 8, 4, generator=generator)
    full = projector.forward_project(clean)
    control = baselines.ReprojectedImage(projector)

    def fit(images):
        control.fit({"image_low": i, "projections_full": f, "mu": m} for i, f, m in zip(images, full, mu))
        return control(full, images)[0]

    reprojected, mean = fit(clean)
    assert control.sigma == 0.0
    torch.testing.assert_close(reprojected, full)
    torch.testing.assert_close(mean, mu.mean(dim=0, keepdim=True).expand_as(mu))
    noisy = clean * 2 * torch.rand(clean.shape, generator=generator)
    reprojected, _ = fit(noisy)
    assert control.sigma > 0
    assert (reprojected - full).norm() < (projector.forward_project(noisy) - full).norm()


def test_smoothing_is_scipys():
    from scipy.ndimage import gaussian_filter

    image = torch.rand(2, 1, 9, 7, 5)
    for sigma in (0.0, 0.5, 1.25):
        for case, smoothed in zip(image[:, 0], baselines.smooth(image, sigma)[:, 0]):
            expected = gaussian_filter(case.numpy(), sigma, mode="nearest", radius=math.ceil(3 * sigma))
            np.testing.assert_allclose(smoothed.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_separate_networks_have_as_many_parameters_as_cdi_net_or_more():
    from papers.cdinet.train import PROFILES, Config, build_model, epochs_of

    projector = Projector.from_geometry(PinholeGeometry.ge570c((8, 8, 8), 32.0, (8, 8))).to("meta")
    for profile in ("smoke", "cpu", "study"):
        settings = PROFILES[profile]
        with torch.device("meta"):
            full, separate, narrow = (
                sum(p.numel() for p in build_model(Config(None, None, **(settings | change)), projector).parameters())
                for change in (
                    {},
                    {"network": "separate", "backbone": "unet"},
                    {"network": "separate", "backbone": "unet", "separate_as_wide": True},
                )
            )
        assert narrow < full <= separate, profile
    config = Config(None, None, epochs=5, separate_epochs=7)
    lengths = {"cdinet": 5, "separate": 7, "dudoss": 7, "passthrough": 0, "reprojection": 0}
    for network, epochs in lengths.items():
        config.network = network
        assert epochs_of(config) == epochs
    config.network, config.separate_as_long = "separate", True
    assert epochs_of(config) == 5


@pytest.mark.parametrize(
    "name",
    [
        "papers.cdinet.geometry",
        "papers.cdinet.projector",
        "papers.cdinet.mlem",
        "papers.cdinet.backbones",
        "papers.cdinet.baselines",
        "papers.cdinet.model",
        "papers.cdinet.data",
        "benchmarks.standins.torso",
    ],
)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    failures, examples = doctest.testmod(module)
    assert examples and not failures
