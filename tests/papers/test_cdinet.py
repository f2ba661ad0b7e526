"""CDI-Net's mathematics, each part against a slow and obvious reference, an identity or an analytic case."""

import doctest
import importlib
import itertools
import math

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from benchmarks.standins import cdinet as standin
from benchmarks.standins import emission
from benchmarks.standins.torso import LABELS, Torso
from papers.cdinet import backbones, baselines, data, model
from papers.cdinet.geometry import PinholeGeometry
from papers.cdinet.mlem import ml_em
from papers.cdinet.projector import Projector, attenuation_factors
from papers.cdinet.system_matrix import load_system_matrix, pinhole_matrix, save_system_matrix
from shared.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")

GEOMETRY = PinholeGeometry.ge570c(image_shape=(12, 10, 8), voxel_mm=22.0, detector_shape=(8, 6))
X, Y, Z = GEOMETRY.image_shape
U, V, A = GEOMETRY.projection_shape


@pytest.fixture(scope="module")
def projector():
    return Projector.from_geometry(GEOMETRY)


@pytest.fixture(scope="module")
def dense():
    return torch.from_numpy(pinhole_matrix(GEOMETRY).toarray()).double()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return standin.generate(tmp_path_factory.mktemp("standin") / "cdinet", seed=3, size="smoke")


def random_image(cases=2, seed=0):
    return torch.rand(cases, 1, X, Y, Z, generator=torch.Generator().manual_seed(seed))


def random_projections(cases=2, seed=0):
    return torch.rand(cases, 1, U, V, A, generator=torch.Generator().manual_seed(seed))


def as_rows(projections):
    """(B, 1, U, V, A) -> (B, A*U*V) by loops: the order that the projector documents."""
    rows = torch.zeros(len(projections), A * U * V, dtype=projections.dtype)
    for a, u, v in itertools.product(range(A), range(U), range(V)):
        rows[:, (a * U + u) * V + v] = projections[:, 0, u, v, a]
    return rows


def networks(**settings):
    defaults = dict(iterations=3, backbone="unet", width=2, projection_depth=2, image_depth=2)
    projector = Projector.from_geometry(PinholeGeometry.ge570c((8, 8, 4), 32.0, (8, 6)))
    return model.CDINet(projector, **(defaults | settings))


def small_inputs(cases=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(cases, 1, 8, 6, 20, generator=generator) * 50, torch.rand(cases, 1, 8, 8, 4, generator=generator)


# ---------------------------------------------------------------------------------------------- geometry


def test_nineteen_pinholes_on_a_cylinder_look_at_the_centre():
    positions, axes = np.array(GEOMETRY.pinhole_positions), np.array(GEOMETRY.pinhole_axes)
    assert positions.shape == (19, 3) and GEOMETRY.angles == 20
    np.testing.assert_allclose(np.hypot(positions[:, 0], positions[:, 1]), 220.0)
    np.testing.assert_allclose(np.cross(positions, axes), 0.0, atol=1e-9)  # the axis points at the centre
    assert (np.sum(positions * axes, axis=1) < 0).all()
    central = GEOMETRY.measured_angles
    assert len(central) == 9 and (positions[list(central), 2] == 0).all()
    assert positions[:, 0].mean() > 0 and positions[:, 1].mean() < 0  # left anterior, where the heart is
    assert GEOMETRY.measured_mask().sum() == 9


def test_geometry_survives_json(tmp_path):
    GEOMETRY.save(tmp_path / "geometry.json")
    assert PinholeGeometry.load(tmp_path / "geometry.json") == GEOMETRY
    (tmp_path / "geometry.json").write_text("{}")
    with pytest.raises(InputError, match="geometry.json"):
        PinholeGeometry.load(tmp_path / "geometry.json")


def test_a_point_in_the_centre_is_seen_in_the_middle_with_the_pinhole_formula():
    geometry = PinholeGeometry.ge570c((3, 3, 3), 0.5, (31, 31))
    column = pinhole_matrix(geometry)[:, 13].toarray().reshape(A, 31, 31)  # voxel (1, 1, 1)
    for angle in range(19):
        image = column[angle]
        assert np.unravel_index(image.argmax(), image.shape) == (15, 15)
        distance = math.dist(geometry.pinhole_positions[angle], (0, 0, 0))
        assert image.sum() == pytest.approx(5.1**2 / (16 * distance**2), rel=0.02)  # on the axis cos = 1
    assert column[19].sum() == 0


def test_sensitivity_off_axis_falls_with_the_cube_of_the_cosine():
    geometry = PinholeGeometry.ge570c((9, 1, 1), 10.0, (64, 64))
    anterior = 5 + 2  # 45 degrees right + 2 * 22.5 degrees: straight in front, so that x runs along the detector
    sums = pinhole_matrix(geometry)[anterior * 64 * 64 : (anterior + 1) * 64 * 64].sum(axis=0)
    cosine = 220.0 / np.hypot(220.0, (np.arange(9) - 4) * 10.0)
    np.testing.assert_allclose(np.asarray(sums).ravel() / sums.max(), cosine**3, rtol=5e-3)


def test_orientation_left_is_right_of_the_anterior_view_and_head_is_up(projector):
    anterior = 7
    for axis, voxel, towards in ((0, (9, 5, 4), "u"), (2, (6, 5, 6), "v")):
        image = torch.zeros(1, 1, X, Y, Z)
        image[(0, 0, *voxel)] = 1.0
        view = projector.forward_project(image)[0, 0, :, :, anterior]
        profile = view.sum(dim=1 if towards == "u" else 0)
        centre = (profile * torch.arange(len(profile))).sum() / profile.sum()
        assert centre > (len(profile) - 1) / 2 + 0.5, axis


# ---------------------------------------------------------------------------------------- T_f and T_b (M2)


def test_projector_is_the_dense_matrix_in_the_documented_order(projector, dense):
    image, projections = random_image(), random_projections()
    expected = image.double().flatten(1) @ dense.T
    torch.testing.assert_close(as_rows(projector.forward_project(image)).double(), expected, rtol=1e-5, atol=1e-9)
    expected = as_rows(projections).double() @ dense
    back = projector.back_project(projections)
    torch.testing.assert_close(back.flatten(1).double(), expected, rtol=1e-5, atol=1e-9)
    assert projector.forward_project(image)[..., 19].abs().max() == 0  # the padding angle


def test_adjoint_identity(projector):
    image, projections = random_image(), random_projections()
    left = (projector.forward_project(image).double() * projections).sum()
    right = (image.double() * projector.back_project(projections)).sum()
    assert abs(left - right) / abs(left) < 1e-5


def test_gradients_are_the_transposes(projector):
    image, projections = random_image().requires_grad_(), random_projections().requires_grad_()
    (gradient,) = torch.autograd.grad(projector.forward_project(image), image, projections)
    torch.testing.assert_close(gradient, projector.back_project(projections))
    (gradient,) = torch.autograd.grad(projector.back_project(projections), projections, image)
    torch.testing.assert_close(gradient, projector.forward_project(image))


def test_projector_keeps_float32_under_autocast_and_out_of_the_state_dict(projector):
    image = random_image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = projector.forward_project(image.bfloat16())
    assert projected.dtype == torch.float32
    torch.testing.assert_close(projected, projector.forward_project(image.bfloat16().float()))
    assert not projector.state_dict()


def test_wrong_shapes_are_the_users_mistake(projector):
    with pytest.raises(InputError, match="image"):
        projector.forward_project(torch.zeros(1, 1, Y, X, Z))
    with pytest.raises(InputError, match="projections"):
        projector.back_project(torch.zeros(1, 1, A, U, V))
    with pytest.raises(InputError, match="matrix"):
        Projector(scipy.sparse.csr_matrix((3, 3)), GEOMETRY)


# -------------------------------------------------------------------------------------------- attenuation


def test_attenuation_through_a_uniform_block_is_exponential_in_the_path():
    factors = attenuation_factors(torch.full((1, 1, X, Y, Z), 0.15), GEOMETRY)[0]
    half = np.array(GEOMETRY.image_shape) * GEOMETRY.voxel_mm / 2
    centres = GEOMETRY.voxel_centres()
    for angle, voxel in [(7, 0), (7, 500), (2, 333), (16, 77), (12, 959)]:
        start, end = centres[voxel].astype(float), np.array(GEOMETRY.pinhole_positions[angle])
        fractions = np.linspace(0, 1, 200_001)
        inside = (np.abs(start + fractions[:, None] * (end - start)) <= half).all(axis=1).mean()
        path_cm = inside * np.linalg.norm(end - start) / 10
        assert factors[angle, voxel].item() == pytest.approx(math.exp(-0.15 * path_cm), rel=1e-3)
    assert (factors[19] == 1).all()


def test_attenuation_through_a_cylinder_converges_to_the_chord():
    geometry = PinholeGeometry.ge570c((48, 48, 3), 5.0, (8, 8))
    centres = geometry.voxel_centres().reshape(48, 48, 3, 3)
    radius = 80.0
    inside = np.clip(0.5 - (np.hypot(centres[..., 0], centres[..., 1]) - radius) / 5.0, 0, 1)
    mu = torch.from_numpy(0.15 * inside).float()[None, None]
    factors = attenuation_factors(mu, geometry, samples=80).reshape(1, A, 48, 48, 3)[0, :, 24, 24, 1]
    start = centres[24, 24, 1].astype(float)
    for angle in range(5, 14):  # pinholes in the plane z = 0
        direction = np.array(geometry.pinhole_positions[angle]) - start
        direction /= np.linalg.norm(direction)
        b = start[:2] @ direction[:2]
        chord_mm = -b + math.sqrt(b**2 + radius**2 - start[:2] @ start[:2])
        assert factors[angle].item() == pytest.approx(math.exp(-0.15 * chord_mm / 10), rel=0.01)


def test_attenuated_projector_is_the_dense_matrix_times_the_factors(projector, dense):
    mu, image, projections = 0.2 * random_image(seed=1), random_image(), random_projections()
    attenuated = projector.with_attenuation(mu)
    forward, back = attenuated.forward_project(image), attenuated.back_project(projections)
    for case in range(2):
        factors = attenuation_factors(mu[case : case + 1], GEOMETRY)[0].double()  # (A, voxels)
        matrix = dense * factors.repeat_interleave(U * V, dim=0)
        expected = matrix @ image[case].double().flatten()
        torch.testing.assert_close(as_rows(forward)[case].double(), expected, rtol=1e-5, atol=1e-9)
        expected = as_rows(projections)[case].double() @ matrix
        torch.testing.assert_close(back[case].flatten().double(), expected, rtol=1e-5, atol=1e-9)


# ------------------------------------------------------------------------------------------ ML-EM (M1, M10)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("attenuated", [False, True])
def test_ml_em_is_the_textbook_loop(projector, dense, limited, attenuated):
    mu = 0.2 * random_image(seed=1)
    counts = projector.forward_project(random_image()) * 1e5
    mask = GEOMETRY.measured_mask() if limited else None
    result = ml_em(projector, counts, iterations=4, mu=mu if attenuated else None, angles_mask=mask)
    for case in range(2):
        matrix = dense
        if attenuated:
            factors = attenuation_factors(mu[case : case + 1], GEOMETRY)[0].double()
            matrix = dense * factors.repeat_interleave(U * V, dim=0)
        rows = slice(5 * U * V, 14 * U * V) if limited else slice(0, 19 * U * V)
        matrix, measured = matrix[rows], as_rows(counts)[case, rows].double()
        sensitivity = matrix.sum(dim=0)
        image = (sensitivity > 0).double()
        for _ in range(4):
            ratio = torch.nan_to_num(measured / (matrix @ image))
            image = torch.nan_to_num(image / sensitivity * (matrix.T @ ratio))
        torch.testing.assert_close(result[case].flatten().double(), image, rtol=1e-3, atol=1e-3 * image.mean().item())


def test_ml_em_keeps_counts_and_is_not_negative(projector):
    counts = torch.poisson(projector.forward_project(random_image()) * 1e5)
    for mask in (None, GEOMETRY.measured_mask()):
        measured = counts if mask is None else counts * mask
        seen = projector.forward_project(torch.ones(2, 1, X, Y, Z)) > 0
        image = None
        for _ in range(5):  # after every update
            image = ml_em(projector, counts, iterations=1, angles_mask=mask, initial=image)
            expected = projector.forward_project(image) * (1 if mask is None else mask)
            torch.testing.assert_close(
                expected.sum((1, 2, 3, 4)), (measured * seen).sum((1, 2, 3, 4)), rtol=1e-5, atol=0
            )
            assert image.min() >= 0 and torch.isfinite(image).all()


def test_ml_em_puts_the_heart_where_it_is():
    geometry = PinholeGeometry.ge570c((28, 28, 16), 10.0, (16, 16))
    projector = Projector.from_geometry(geometry)
    truth = torch.full((1, 1, 28, 28, 16), 0.02)
    truth[0, 0, 17:20, 9:12, 6:8] = 1.0
    image = ml_em(projector, projector.forward_project(truth))[0, 0]
    peak = np.unravel_index(image[8:24, 6:20, 3:13].argmax(), (16, 14, 10))
    assert 17 <= peak[0] + 8 < 20 and 9 <= peak[1] + 6 < 12 and 6 <= peak[2] + 3 < 8
    assert image[17:20, 9:12, 6:8].mean() > 0.6


def test_ml_em_of_nothing_is_nothing_and_bad_counts_are_refused(projector):
    zeros = torch.zeros(1, 1, U, V, A)
    assert ml_em(projector, zeros).abs().max() == 0
    for value in (-1.0, float("nan")):
        with pytest.raises(InputError, match="not negative"):
            ml_em(projector, zeros + value)


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
        full = model.CDINet(Projector.from_geometry(GEOMETRY).to("meta"))
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


# ------------------------------------------------------------------------------------------------- data


def test_layout_round_trip_with_matlabs_axis_order(tmp_path):
    generator = np.random.default_rng(0)
    full = generator.poisson(50, GEOMETRY.projection_shape).astype(np.float32)
    mask = emission.limited_angle_mask(GEOMETRY)
    study = {"mu": generator.random(GEOMETRY.image_shape, dtype=np.float32), "projections_full": full}
    study |= {"image_low": generator.random(GEOMETRY.image_shape, dtype=np.float32)}
    study |= {"projections_low": full * mask, "mask": mask}
    data.write_study(tmp_path / "study.h5", study)
    with h5py.File(tmp_path / "study.h5") as file:
        assert file["Amap"].shape == (Z, Y, X) and file["Proj_FD_FA_EM"].shape == (A, V, U)
        assert file["Amap"][1, 2, 3] == study["mu"][3, 2, 1]
    read = data.read_study(tmp_path / "study.h5", GEOMETRY)
    assert read.keys() == study.keys()
    for name in study:
        np.testing.assert_array_equal(read[name], study[name])


@pytest.mark.parametrize("version", ["v5", "v7.3", "npz"])
def test_system_matrix_files(tmp_path, version):
    matrix = pinhole_matrix(GEOMETRY)
    if version == "npz":
        path = tmp_path / "sm.npz"
        scipy.sparse.save_npz(path, matrix)
    elif version == "v7.3":
        path = tmp_path / "sm.mat"
        save_system_matrix(path, matrix, GEOMETRY)
    else:  # written by hand: MATLAB's linear index has the first axis fastest, and the image is turned and flipped
        path = tmp_path / "sm.mat"
        tensor = matrix.toarray().reshape(A, U, V, X, Y, Z)[..., ::-1, ::-1, ::-1]
        by_matlab = tensor.transpose(0, 2, 1, 5, 4, 3).reshape(A * V * U, Z * Y * X)
        scipy.io.savemat(path, {"sm": scipy.sparse.csc_matrix(by_matlab.astype(np.float64))})
    loaded = load_system_matrix(path, GEOMETRY)
    assert loaded.dtype == np.float32 and abs(loaded - matrix).max() == 0
    other = PinholeGeometry.ge570c((12, 10, 8), 22.0, (8, 8))
    with pytest.raises(InputError, match=r"sm\.(mat|npz)"):
        load_system_matrix(path, other)


def test_broken_system_matrices(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_system_matrix(tmp_path / "sm.mat", GEOMETRY)
    (tmp_path / "sm.mat").write_bytes(b"not a matrix")
    with pytest.raises(InputError, match="system matrix"):
        load_system_matrix(tmp_path / "sm.mat", GEOMETRY)
    scipy.io.savemat(tmp_path / "other.mat", {"A": np.eye(3)})
    with pytest.raises(InputError, match="no sparse variable sm"):
        load_system_matrix(tmp_path / "other.mat", GEOMETRY)


def test_data_set_items(smoke):
    projector = data.load_projector(smoke)
    dataset = data.CardiacSpectDataset(smoke, "train", projector)
    item = dataset[0]
    assert len(dataset) == 4 and item["case"] == "study000"
    assert item["mu"].shape == (1, 12, 12, 8) and item["projections_low"].shape == (1, 8, 8, 20)
    assert torch.equal(dataset[0]["mu"], item["mu"])
    # I_L is recomputed from P_L where the file lacks it.
    counts, mask = item["projections_low"][None], item["mask"][None]
    torch.testing.assert_close(ml_em(projector, counts, angles_mask=mask)[0], item["image_low"], rtol=1e-3, atol=1.0)


def test_missing_image_geometry_and_matrix_are_replaced(smoke, tmp_path):
    (tmp_path / "train").mkdir()
    with (
        h5py.File(smoke / "train" / "study000.h5") as source,
        h5py.File(tmp_path / "train" / "a.h5", "w") as target,
    ):
        for key in set(source) - {"Recon_LD_LA_EM"}:
            source.copy(key, target)
    with pytest.warns(UserWarning, match="geometry.json|system matrix"):
        projector = data.load_projector(tmp_path)
    item = data.CardiacSpectDataset(tmp_path, "train", projector)[0]
    assert item["image_low"].shape == (1, 12, 12, 8) and item["image_low"].sum() > 0


def break_study(path, key, change):
    with h5py.File(path, "r+") as file:
        array = file[key][()]
        del file[key]
        if change is not None:
            file[key] = change(array)


def with_value(value):
    def change(array):
        array[0, 0, 0] = value
        return array

    return change


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("Amap", None, "no array .Amap"),
        ("Amap", lambda a: a.T, "expected"),
        ("Proj_FD_FA_EM", with_value(np.nan), "NaN"),
        ("Proj_LD_LA_EM", with_value(-1), "at least 0"),
        ("Mask_Proj", with_value(0.5), "1 where measured"),
        ("Proj_LD_LA_EM", lambda a: a * 0.1, "low-dose scale"),
    ],
)
def test_broken_studies(smoke, tmp_path, key, change, message):
    path = tmp_path / "study.h5"
    path.write_bytes((smoke / "test" / "study000.h5").read_bytes())
    break_study(path, key, change)
    with pytest.raises(InputError, match=message) as error:
        data.read_study(path, data.load_projector(smoke).geometry)
    assert "study.h5" in str(error.value)


def test_missing_and_truncated_files(smoke, tmp_path):
    projector = data.load_projector(smoke)
    with pytest.raises(InputError, match="doesn't exist"):
        data.CardiacSpectDataset(tmp_path / "nowhere", "train", projector)
    with pytest.raises(InputError, match="empty"):
        data.CardiacSpectDataset(tmp_path, "train", projector)
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="train/"):
        data.CardiacSpectDataset(tmp_path, "train", projector)
    with pytest.raises(InputError, match="no .h5"):
        data.CardiacSpectDataset(tmp_path, "test", projector)
    whole = (smoke / "test" / "study000.h5").read_bytes()
    (tmp_path / "test" / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut.h5"):
        data.CardiacSpectDataset(tmp_path, "test", projector)[0]


# ---------------------------------------------------------------------------------------------- stand-in


def test_low_dose_is_thinned_from_the_very_counts_of_the_full_dose(smoke):
    projector = data.load_projector(smoke)
    for item in data.CardiacSpectDataset(smoke, "train", projector):
        full, low, mask = (item[k].double() for k in ("projections_full", "projections_low", "mask"))
        kept = low * 0.1
        torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
        assert (kept.round() <= full).all() and (low * (1 - mask)).sum() == 0
        measured = (full * mask).sum()
        assert 1.9e6 < full.sum() < 4.1e6
        assert abs(kept.sum() - 0.1 * measured) < 5 * math.sqrt(0.09 * measured)  # binomial


def test_binomial_thinning_statistics():
    counts = np.full(200_000, 80)
    kept = emission.thin(counts, 0.1, np.random.default_rng(0))
    assert kept.mean() == pytest.approx(8.0, abs=0.05) and (kept <= counts).all()
    assert kept.var() == pytest.approx(80 * 0.1 * 0.9, rel=0.02)
    poisson, scale = emission.poisson_counts(np.full(100_000, 2.0), 5e6, np.random.default_rng(0))
    assert scale == pytest.approx(25.0) and poisson.mean() == pytest.approx(50, rel=0.01)
    kept = emission.thin(poisson, 0.1, np.random.default_rng(1))
    assert kept.var() == pytest.approx(kept.mean(), rel=0.03)  # a thinned Poisson variable is Poisson
    assert np.corrcoef(kept, poisson)[0, 1] == pytest.approx(math.sqrt(0.1), abs=0.02)  # of the same counts


def test_expected_counts_agree_with_the_attenuated_projector():
    geometry = PinholeGeometry.ge570c((14, 14, 8), 20.0, (8, 8))
    torso = Torso.random(np.random.default_rng(0))
    anatomy = torso.render((28, 28, 16), 10.0, torso.heart_centre)
    mu = torch.nn.functional.avg_pool3d(torch.from_numpy(anatomy.mu_map)[None, None], 2)
    activity = torch.from_numpy(anatomy.activity)[None, None]
    fine = emission.expected_counts(activity, mu, geometry)
    coarse = Projector.from_geometry(geometry).with_attenuation(mu)
    coarse = coarse.forward_project(8 * torch.nn.functional.avg_pool3d(activity, 2))
    difference = ((fine - coarse) ** 2).sum() / (coarse**2).sum()
    assert 1e-6 < difference < 0.01  # near, but no inverse crime


def test_torso_anatomy():
    for seed in range(5):
        torso = Torso.random(np.random.default_rng(seed))
        assert torso == Torso.random(np.random.default_rng(seed))
        anatomy = torso.render((64, 56, 40), 5.0, torso.heart_centre)
        place = {
            name: np.argwhere(anatomy.labels == label).mean(axis=0)
            for name, label in LABELS.items()
            if (anatomy.labels == label).any()
        }
        middle = np.array([31.5, 27.5, 19.5])
        assert np.abs(place["myocardium"] - middle).max() < 6  # the heart is in the centre of the view
        assert place["liver"][0] < place["myocardium"][0] - 5  # to the right
        assert place["liver"][2] < place["myocardium"][2] - 4  # and below
        assert place["spine"][1] > place["myocardium"][1] + 10  # behind
        assert place["sternum"][1] < place["spine"][1]
        wall = anatomy.activity[anatomy.labels == LABELS["myocardium"]]
        assert 0.8 < np.median(wall) < 1.1
        assert anatomy.mu_map.min() >= 0 and anatomy.mu_map.max() <= 0.26
        assert 0.03 < np.median(anatomy.mu_map[anatomy.labels == LABELS["lung"]]) < 0.06
        floor = np.argwhere(anatomy.labels == LABELS["myocardium"])[:, 2].min()
        assert abs(np.argwhere(anatomy.labels == LABELS["liver"])[:, 2].max() - floor) * 5 <= 40  # they touch


def test_stand_in_is_deterministic_and_atomic(smoke, tmp_path):
    again = standin.generate(tmp_path / "again", seed=3, size="smoke")
    other = standin.generate(tmp_path / "other", seed=4, size="smoke")
    geometry = data.load_projector(again).geometry
    first, second, third = (data.read_study(root / "test" / "study001.h5", geometry) for root in (smoke, again, other))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert (first["mu"] != third["mu"]).any()
    assert not list(tmp_path.glob(".*"))  # no unfinished folder left
    with pytest.raises(InputError, match="there already"):
        standin.generate(again, seed=3, size="smoke")
    with pytest.raises(InputError, match="size"):
        standin.generate(tmp_path / "x", size="huge")


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


# --------------------------------------------------------------------------------------- a user's files


def test_affine_is_ras_and_centred():
    geometry = PinholeGeometry.ge570c((12, 12, 8), 24.0, (8, 8))
    world = np.c_[np.argwhere(np.ones((12, 12, 8))), np.ones(12 * 12 * 8)] @ geometry.affine().T
    lps = geometry.voxel_centres()
    np.testing.assert_allclose(world[:, :3], lps * [-1, -1, 1], atol=1e-4)


def test_own_projections_as_h5_and_nifti(tmp_path):
    from shared import nifti

    geometry = PinholeGeometry.ge570c((12, 12, 8), 24.0, (8, 8))
    counts = np.random.default_rng(0).poisson(5.0, (8, 8, 20)).astype(np.float32)
    data.write_study(tmp_path / "a.h5", {"projections_low": counts})
    nifti.save(tmp_path / "a.nii.gz", counts[:, :, :19], affine=np.eye(4))  # without the padding angle
    np.testing.assert_array_equal(data.read_projections(tmp_path / "a.h5", geometry), counts)
    read = data.read_projections(tmp_path / "a.nii.gz", geometry)
    np.testing.assert_array_equal(read[:, :, :19], counts[:, :, :19])
    assert read.shape == (8, 8, 20) and not read[:, :, 19].any()


@pytest.mark.parametrize("counts, message", [
    (np.zeros((8, 8, 7)), "the counts are"), (np.full((8, 8, 20), -1.0), "at least 0"),
])  # fmt: skip
def test_own_projections_that_can_not_be(tmp_path, counts, message):
    geometry = PinholeGeometry.ge570c((12, 12, 8), 24.0, (8, 8))
    data.write_study(tmp_path / "mine.h5", {"projections_low": counts})
    with pytest.raises(InputError, match=f"mine.h5.*{message}"):
        data.read_projections(tmp_path / "mine.h5", geometry)
    with pytest.raises(InputError, match="no geometry.json"):
        data.load_scanner(tmp_path / "mine.h5")
