"""unORANIC: corruptions against slow references, losses against loops, scores against scikit-learn, sizes, apply."""

import doctest
import importlib
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from skimage.draw import line as draw_line

from papers.unoranic import baselines, classification, corruptions, data, eval, methods, model, revision, scores, train
from papers.unoranic import common_corruptions as common
from shared import nifti
from shared.cli import configure
from shared.errors import InputError
from shared.gpu import initialise_by_name


def pictures(count=5, channels=3, side=28, seed=0):
    """Smooth random images (B, C, H, W) in [0, 1]."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.standard_normal((count, channels, side, side)), (0, 0.4, 2, 2))
    fields = (fields - fields.min()) / (fields.max() - fields.min())
    return torch.from_numpy(fields.astype(np.float32))


def one(name, images, u, noise=None, field=None):
    """A training corruption with given random numbers, clipped as in `corrupt`."""
    noise = torch.zeros_like(images) if noise is None else noise
    field = torch.full(images[:, 0].shape, 0.5) if field is None else field
    return corruptions.CORRUPTIONS[name](images, u, noise, field).clamp(0, 1)


def uniforms(count=5, seed=1):
    return torch.rand(count, corruptions.PARAMETERS, generator=torch.Generator().manual_seed(seed))


# --- training corruptions --------------------------------------------------------------------------------


def opencv_gaussian(size):
    """What cv2.getGaussianKernel(size, 0) prints; for 3 and 5 pixels the binomial coefficients."""
    if size < 7:
        return np.array([math.comb(size - 1, k) for k in range(size)]) / 2 ** (size - 1)
    return np.array([0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125])


def test_gaussian_blur():
    images, u = pictures(), uniforms()
    u[:4, 0] = torch.tensor([0.1, 0.3, 0.7, 0.99])
    found = one("gaussian_blur", images, u)
    for k in range(len(images)):
        size = [3, 5, 5, 7, 7][int(u[k, 0] * 5)]  # 3 to 7 in Albumentations 1.3, even ones enlarged
        expected = images[k].numpy()
        for axis in (1, 2):
            expected = ndimage.correlate1d(expected, opencv_gaussian(size), axis=axis, mode="mirror")
        np.testing.assert_allclose(found[k], expected, atol=2e-6)


def test_motion_kernels_are_straight_lines():
    kernels = corruptions.motion_kernels(uniforms(500))
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(500))
    sizes = set()
    for kernel, u in zip(kernels.numpy(), uniforms(500).numpy()):
        size = 3 + 2 * int(u[0] * 3)
        sizes.add(size)
        rows, columns = kernel.nonzero()
        assert len(rows) >= 2 and np.ptp(kernel[rows, columns]) < 1e-6
        margin = (7 - size) // 2
        assert min(rows.min(), columns.min()) >= margin and max(rows.max(), columns.max()) < 7 - margin
        x0, y0, x1 = (margin + int(size * value) for value in u[1:4])
        assert kernel[y0, x0] > 0
        ends = [y for y in range(7) if kernel[y, x1] > 0]
        lines = [set(zip(*draw_line(y0, x0, y1, x1))) for y1 in ends]
        points = set(zip(rows.tolist(), columns.tolist()))
        # Where a line passes exactly between two pixels, rasterisers may choose either.
        assert any(len(points) == len(line) and len(points ^ line) <= 4 for line in lines)
    assert sizes == {3, 5, 7}


def test_motion_blur_and_sharpen_filter_each_image():
    images, u = pictures(), uniforms()
    for name, kernels in (
        ("motion_blur", corruptions.motion_kernels(u).numpy()),
        ("sharpen", [sharpening(*u[k, :2].tolist()) for k in range(5)]),
    ):
        found = one(name, images, u)
        for k in range(5):
            for c in range(3):
                expected = ndimage.correlate(images[k, c].numpy(), kernels[k], mode="mirror").clip(0, 1)
                np.testing.assert_allclose(found[k, c], expected, atol=3e-6)


def sharpening(a, b):
    alpha, lightness = 0.2 + 0.3 * a, 0.5 + 0.5 * b
    effect = np.array([[-1, -1, -1], [-1, 8 + lightness, -1], [-1, -1, -1]])
    identity = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    return (1 - alpha) * identity + alpha * effect


def test_hsv_is_matplotlibs():
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    images = torch.cat([torch.rand(4, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.4)])
    expected = rgb_to_hsv(images.permute(0, 2, 3, 1).numpy())
    found = corruptions.rgb_to_hsv(images)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, atol=1e-5)
    back = corruptions.hsv_to_rgb(found)
    np.testing.assert_allclose(back, images, atol=1e-5)
    turned = expected.copy()
    turned[..., 0] = (turned[..., 0] + 0.3) % 1
    mine = corruptions.hsv_to_rgb(torch.from_numpy(turned).permute(0, 3, 1, 2))
    np.testing.assert_allclose(mine.permute(0, 2, 3, 1), hsv_to_rgb(turned), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter(channels):
    from torchvision.transforms import functional as reference

    images, u = pictures(12, channels), uniforms(12)
    found = one("colour_jitter", images, u)
    for k in range(12):
        order = corruptions.ORDERS[int(u[k, 4] * 24)]
        factors, shift = (0.8 + 0.4 * u[k, :3]).tolist(), float(-0.2 + 0.4 * u[k, 3])
        steps = [
            lambda x, f=factors: reference.adjust_brightness(x, f[0]),
            lambda x, f=factors: contrast_without_rounding(x, f[1]),
            lambda x, f=factors: reference.adjust_saturation(x, f[2]) if channels == 3 else x,
            lambda x, s=shift: reference.adjust_hue(x, s) if channels == 3 else x,
        ]
        expected = images[k]
        for number in order:
            expected = steps[number](expected)
        np.testing.assert_allclose(found[k], expected, atol=2e-3)  # torchvision's luma has other last digits


def contrast_without_rounding(x, factor):
    luma = x if len(x) == 1 else (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2])
    return (factor * x + (1 - factor) * luma.mean()).clamp(0, 1)


def area_average(line, edges):
    """Means of a line of pixels over the intervals between neighbouring edges, by a fine grid."""
    fine = 2000
    values = np.repeat(line, fine, axis=0)
    places = [round(edge * fine) for edge in edges]
    return np.array([values[low:high].mean(0) for low, high in zip(places, places[1:])])


def test_downscale():
    """OpenCV's INTER_AREA both ways: a reduced pixel covers 1 / scale pixels, whose number is rounded."""
    images, u = pictures(), uniforms()
    u[:2, 0] = torch.tensor([0.0, 0.999])
    found = one("downscale", images, u)
    for k in range(5):
        scale = 0.5 + 0.4 * float(u[k, 0])
        size = round(28 * scale)
        for c in range(3):
            image = images[k, c].numpy().astype(float)
            for _ in range(2):  # along rows, then along columns
                small = area_average(image, [min(place / scale, 28) for place in range(size + 1)])
                image = area_average(small, [place * size / 28 for place in range(29)]).T
            np.testing.assert_allclose(found[k, c], image, atol=1e-3)


def test_pointwise_corruptions():
    images, u = pictures(), uniforms()
    x, v = images.numpy().astype(float), u.numpy().astype(float)
    noise, field = torch.randn(images.shape), torch.rand(5, 28, 28)
    for name, formula in {
        "inversion": lambda x, v: 1 - x,
        "multiplicative_noise": lambda x, v: x * (0.9 + 0.2 * v[0]),
        "brightness_contrast": lambda x, v: x * (0.8 + 0.4 * v[0]) + (-0.2 + 0.4 * v[1]),
        "gamma": lambda x, v: x ** (0.8 + 0.4 * v[0]),
        "solarize": lambda x, v: np.where(x < 128 / 255, x, 1 - x),
    }.items():
        found = one(name, images, u)
        for k in range(5):
            np.testing.assert_allclose(found[k], formula(x[k], v[k]).clip(0, 1), atol=1e-5, err_msg=name)
    found = one("gaussian_noise", images, u, noise=noise)
    for k in range(5):
        expected = x[k] + noise[k].numpy() * math.sqrt(10 + 40 * v[k, 0]) / 255
        np.testing.assert_allclose(found[k], expected.clip(0, 1), atol=1e-5)
    found = one("pixel_dropout", images, u, field=field)
    for k in range(5):
        dropped = field[k] < 0.01
        assert (found[k][:, dropped] == 0).all() and torch.equal(found[k][:, ~dropped], images[k][:, ~dropped])


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_has_a_draw_of_its_own(channels):
    """Image b depends on row b alone, and equal images become different ones."""
    count = 16
    images = pictures(1, channels).repeat(count, 1, 1, 1)
    for name in corruptions.CORRUPTIONS:
        draws = corruptions.draw_one_type(name, count, images.shape[1:], torch.Generator().manual_seed(3))
        together = corruptions.corrupt(images, draws)
        assert together.min() >= 0 and together.max() <= 1
        for k in (0, 7):
            alone = corruptions.corrupt(images[k : k + 1], corruptions.Draws(*(part[k : k + 1] for part in draws)))
            assert torch.allclose(together[k], alone[0], atol=1e-6), name
        different = len({image.numpy().tobytes() for image in together})
        assert different == 1 if name in ("inversion", "solarize") else different > 2, name


def test_draws():
    draws = corruptions.draw(4000, (1, 2, 2), generator=torch.Generator().manual_seed(0))
    assert abs(draws.applied.float().mean(0) - 0.25).max() < 0.03
    both = (draws.applied[:, 0] & draws.applied[:, 1]).float().mean()
    assert abs(both - 0.0625) < 0.02  # independent of each other
    detection = corruptions.draw_detection(4000, (1, 2, 2), torch.Generator().manual_seed(0))
    assert detection.applied.sum(1).max() == 1 and abs(detection.applied.any(1).float().mean() - 0.5) < 0.03
    assert (detection.applied.float().mean(0) > 0.025).all()
    nothing = corruptions.draw(3, (1, 28, 28), probability=0.0)
    images = pictures(3, 1)
    assert torch.equal(corruptions.corrupt(images, nothing), images)


def test_corruptions_are_applied_in_order():
    images = pictures(2, 1)
    draws = corruptions.draw(2, (1, 28, 28))
    names = list(corruptions.CORRUPTIONS)
    applied = torch.zeros_like(draws.applied)
    applied[0, names.index("inversion")] = applied[0, names.index("solarize")] = True
    found = corruptions.corrupt(images, draws._replace(applied=applied))
    expected = one("solarize", 1 - images[:1], draws.uniform[:1, 0])
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], images[1])


# --- common corruptions ----------------------------------------------------------------------------------


def test_common_corruptions_of_each_severity():
    for channels in (1, 3):
        images = pictures(4, channels)
        for name in common.COMMON_CORRUPTIONS:
            damage = []
            for severity in common.SEVERITIES:
                found = common.corrupt_at(name, images, severity, torch.Generator().manual_seed(0))
                assert found.shape == images.shape and found.isfinite().all() and 0 <= found.min() <= found.max() <= 1
                again = common.corrupt_at(name, images, severity, torch.Generator().manual_seed(0))
                assert torch.equal(found, again)
                damage.append((found - images).square().mean().item())
            assert damage[4] > 1.2 * damage[0] or name in ("snow", "frost"), (name, damage)
    assert len(common.COMMON_CORRUPTIONS) == 14


def test_noises():
    flat = torch.full((200, 1, 28, 28), 0.5)
    draw = torch.Generator().manual_seed(0)
    assert common.gaussian_noise(flat, 2, draw).std() == pytest.approx(0.12, rel=0.01)
    shots = common.shot_noise(flat, 3, draw)
    assert shots.mean() == pytest.approx(0.5, rel=0.01) and shots.var() == pytest.approx(0.5 / 12, rel=0.03)
    impulses = common.impulse_noise(flat, 4, draw)
    assert (impulses != 0.5).float().mean() == pytest.approx(0.17, rel=0.03)
    assert (impulses == 1).float().mean() == pytest.approx(0.085, rel=0.05)


@pytest.mark.parametrize(
    "name, expected",
    {
        "gaussian_noise": (0.0289, 0.0645, 0.1142),
        "shot_noise": (0.0330, 0.0723, 0.1250),
        "impulse_noise": (0.0314, 0.0544, 0.0936),
    }.items(),
)
def test_noise_of_grey_images_is_as_strong_as_released(name, expected):
    """Standard deviations that the released loader has at severities 1, 3 and 5 on a flat image of grey level 128."""
    flat = torch.full((200, 1, 28, 28), 128 / 255)
    for severity, strength in zip((1, 3, 5), expected):
        found = common.corrupt_at(name, flat, severity, torch.Generator().manual_seed(0))
        assert found.std().item() == pytest.approx(strength, rel=0.02)


def test_corrupt_at_enlarges_to_32_pixels_and_keeps_larger_images():
    """Beside averaging by loops, with an operator without chance."""
    image = pictures(1, 1)[0, 0].numpy().astype(float)
    for _ in range(2):  # along rows, then along columns
        image = area_average(image, [place * 28 / 32 for place in range(33)]).T
    image = (image - image.mean()) * 0.2 + image.mean()
    for _ in range(2):
        image = area_average(image, [place * 32 / 28 for place in range(29)]).T
    np.testing.assert_allclose(common.corrupt_at("contrast", pictures(1, 1), 3)[0, 0], image, atol=1e-3)
    colour = pictures(2, 3, 56)
    assert torch.equal(common.corrupt_at("defocus_blur", colour, 2), common.defocus_blur(colour, 2).clamp(0, 1))


def test_defocus_blur():
    images = pictures(2, 1)
    y, x = np.mgrid[-8:9, -8:9]
    disc = (x**2 + y**2 <= 16).astype(float)
    weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * 0.5**2))
    disc = ndimage.correlate(disc / disc.sum(), np.outer(weights, weights) / weights.sum() ** 2, mode="mirror")
    expected = ndimage.correlate(images[0, 0].numpy(), disc, mode="mirror")
    np.testing.assert_allclose(common.defocus_blur(images, 2)[0, 0], expected, atol=1e-5)


def slow_smear(image, radius, sigma, angle):
    """The loop of the published package for one grey image."""
    length = 2 * radius + 1
    kernel = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    point = (length * math.sin(math.radians(angle)), length * math.cos(math.radians(angle)))
    blurred = np.zeros_like(image)
    for i in range(length):
        dy = -math.ceil(i * point[0] / math.hypot(*point) - 0.5)
        dx = -math.ceil(i * point[1] / math.hypot(*point) - 0.5)
        if abs(dy) >= image.shape[0] or abs(dx) >= image.shape[1]:
            break
        rows = (np.arange(28) - dy).clip(0, 27)
        columns = (np.arange(28) - dx).clip(0, 27)
        blurred = blurred + kernel[i] * image[np.ix_(rows, columns)]
    return blurred


def test_smear():
    images, angles = pictures(6, 1), torch.tensor([0.0, 44.0, -31.0, -90.0, -121.0, 13.3])
    found = common.smear(images, 15, 8, angles)
    for k in range(6):
        np.testing.assert_allclose(
            found[k, 0], slow_smear(images[k, 0].double().numpy(), 15, 8, angles[k].item()), atol=1e-5
        )


def test_directions_of_motion_blur_and_snow():
    draws = [torch.Generator().manual_seed(2) for _ in range(4)]
    images = pictures(4, 1)
    angles = -45 + 90 * torch.rand(4, generator=draws[0])
    found = common.motion_blur(images, 3, draws[1])
    for k in range(4):
        expected = slow_smear(images[k, 0].double().numpy(), 15, 8, angles[k].item())
        np.testing.assert_allclose(found[k, 0], expected, atol=1e-5)
    flakes = common.zoomed(0.2 + 0.3 * torch.randn(4, 1, 28, 28, generator=draws[2]), 2)
    flakes = torch.where(flakes < 0.5, 0.0, flakes).clamp(0, 1)
    angles = -135 + 90 * torch.rand(4, generator=draws[2])
    found = common.snow(images, 2, draws[3])
    for k in range(4):
        image = images[k, 0].double().numpy()
        layer = slow_smear(flakes[k, 0].double().numpy(), 12, 4, angles[k].item())
        expected = 0.7 * image + 0.3 * np.maximum(image, 1.5 * image + 0.5) + layer + np.rot90(layer, 2)
        np.testing.assert_allclose(found[k, 0], expected, atol=1e-5)


def test_zoom_blur():
    images = pictures(2, 1)

    def zoomed(image, factor):
        part = math.ceil(28 / factor)
        top = (28 - part) // 2
        larger = ndimage.zoom(image[top : top + part, top : top + part], factor, order=1)
        trim = (larger.shape[0] - 28) // 2
        return larger[trim : trim + 28, trim : trim + 28]

    image = images[0, 0].double().numpy()
    factors = np.arange(1, 1.16, 0.01)
    expected = (image + sum(zoomed(image, factor) for factor in factors)) / (len(factors) + 1)
    np.testing.assert_allclose(common.zoom_blur(images, 2)[0, 0], expected, atol=1e-4)


def slow_plasma(size, decay, numbers):
    """Diamond-square on one field, pixel by pixel; `numbers` are the uniform draws in order of the passes."""
    field = np.zeros((size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2
        for which in range(3):
            noise = wibble * (2 * next(numbers) - 1) * wibble
            for i in range(0, size, step):
                for j in range(0, size, step):
                    if which == 0:
                        y, x = i + half, j + half
                        around = [(i, j), (i + step, j), (i, j + step), (i + step, j + step)]
                    else:
                        y, x = (i, j + half) if which == 1 else (i + half, j)
                        around = [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]
                    total = sum(field[a % size, b % size] for a, b in around)
                    field[y, x] = total / 4 + noise[i // step, j // step]
        step, wibble = half, wibble / decay
    field -= field.min()
    return field / field.max()


def test_plasma_and_fog():
    found = common.plasma(2, 14, 1.7, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)

    def numbers():
        step = 16
        while step >= 2:
            for _ in range(3):
                yield torch.rand(2, 16 // step, 16 // step, generator=draws)[1].double().numpy()
            step //= 2

    np.testing.assert_allclose(found[1], slow_plasma(16, 1.7, numbers())[:14, :14], atol=1e-4)
    images = pictures(2, 1)
    cloud = common.plasma(2, 28, 2.0, torch.Generator().manual_seed(1))[:, None]
    most = images.amax((1, 2, 3), keepdim=True)
    expected = (images + 1.5 * cloud) * most / (most + 1.5)
    assert torch.allclose(common.fog(images, 1, torch.Generator().manual_seed(1)), expected)


def test_smooth_is_scipys():
    field = torch.rand(1, 1, 28, 28)
    for sigma in (0.28, 2.24, 19.6):
        expected = ndimage.gaussian_filter(field[0, 0].double().numpy(), sigma, mode="reflect", truncate=3)
        np.testing.assert_allclose(common.smooth(field, sigma)[0, 0], expected, atol=1e-5)


def test_elastic_transform_without_chance_is_the_identity(monkeypatch):
    monkeypatch.setattr(common.torch, "rand", lambda *size, generator=None: torch.full(size, 0.5))
    images = pictures(2)
    assert torch.allclose(common.elastic_transform(images, 3), images, atol=1e-4)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_elastic_transform(severity):
    """Pixel by pixel from where a smoothed random displacement, drawn before, sends it."""
    side, images = 32, pictures(2, 3, 32)
    displacement = 2 * torch.rand(2, 2, 1, side, side, generator=torch.Generator().manual_seed(4)) - 1
    found = common.elastic_transform(images, severity, torch.Generator().manual_seed(4))
    strength = {1: 12.5, 3: 21.25, 5: 30.0}[severity]
    for k in range(2):
        right, down = (
            strength * ndimage.gaussian_filter(part[k, 0].double().numpy() * 0.16, 0.32, mode="reflect", truncate=3)
            for part in displacement
        )
        rows, columns = np.mgrid[:side, :side]
        for c in range(3):
            image = images[k, c].double().numpy()
            expected = ndimage.map_coordinates(image, [rows + down, columns + right], order=1, mode="reflect")
            np.testing.assert_allclose(found[k, c], expected, atol=1e-4)


def test_pixelate_and_brightness_and_contrast():
    images = pictures(2)
    levels = (images * 255).round()
    for severity, share in ((2, 0.5), (5, 0.25)):
        size = int(28 * share)
        image = Image.fromarray(levels[0].byte().permute(1, 2, 0).numpy())
        image = image.resize((size, size), Image.Resampling.BOX).resize((28, 28), Image.Resampling.NEAREST)
        found = 255 * common.pixelate(levels / 255, severity)[0].permute(1, 2, 0)
        assert np.abs(found.numpy() - np.asarray(image, dtype=float)).max() <= 1.01
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(images[0].permute(1, 2, 0).numpy())
    hsv[..., 2] = (hsv[..., 2] + 0.3).clip(0, 1)
    np.testing.assert_allclose(common.brightness(images, 3)[0].permute(1, 2, 0), hsv_to_rgb(hsv), atol=1e-5)
    x = images[0].numpy()
    expected = (x - x.mean((1, 2), keepdims=True)) * 0.2 + x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(common.contrast(images, 3)[0], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_nearly_pils(channels):
    images = pictures(3, channels)
    for severity, quality in ((1, 25), (5, 7)):
        found = common.jpeg_compression(images, severity)
        for k in range(3):
            levels = (images[k] * 255).round().byte().permute(1, 2, 0).numpy()
            file = io.BytesIO()
            Image.fromarray(levels[..., 0] if channels == 1 else levels).save(file, "JPEG", quality=quality)
            expected = np.asarray(Image.open(file), dtype=float).reshape(28, 28, channels)
            error = np.abs(255 * found[k].permute(1, 2, 0).numpy() - expected)
            before = np.abs(levels - expected).mean()
            assert error.mean() < (0.5 if channels == 1 else 2.5) and error.mean() < 0.5 * before


# --- networks and losses ---------------------------------------------------------------------------------


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_are_the_papers():
    network = model.UnOranic(3)
    assert round(count(network) / 1e6, 2) == 6.61 and round(count(model.UnOranic(1)) / 1e6, 2) == 6.60
    assert round(count(network.anatomy_encoder) / 1e6, 2) == round(count(network.anatomy_decoder) / 1e6, 2) == 1.45
    assert round(count(network.decoder) / 1e6, 2) == 2.27
    assert round(count(model.AutoEncoder(3)) / 1e6, 2) == 2.89


def test_resnet_is_torchvisions_with_a_small_stem():
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=8)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    mine = baselines.resnet18(3, 8)
    assert count(mine) == count(theirs) == 11_172_936
    weights = list(theirs.state_dict().values())
    assert [value.shape for value in weights] == [value.shape for value in mine.state_dict().values()]
    mine.load_state_dict(dict(zip(mine.state_dict(), weights)))
    images = pictures(4)
    for mode in (True, False):
        mine.train(mode)
        theirs.train(mode)
        assert torch.equal(mine(images), theirs(images))
    assert baselines.Classifiers(1, 5, width=8)(images[:, :1], images[:, :1])[0].shape == (4, 5)


def test_principal_components_and_mean_image():
    from sklearn.decomposition import PCA

    training, images = pictures(40, 1, side=8), pictures(6, 1, side=8, seed=1)
    reference = PCA(5).fit(training.flatten(1).numpy())
    embedding, found = baselines.PrincipalComponents(training, 5)(images)
    expected = reference.inverse_transform(reference.transform(images.flatten(1).numpy()))
    np.testing.assert_allclose(found.flatten(1), expected, atol=1e-4)
    np.testing.assert_allclose(np.abs(embedding), np.abs(reference.transform(images.flatten(1).numpy())), atol=1e-4)
    assert baselines.PrincipalComponents(training, 5000).components.shape == (39, 64)
    assert torch.allclose(baselines.MeanImage(training)(images)[1], training.mean(0).expand(6, -1, -1, -1))


def test_shapes_of_all_stages():
    encoder = model.Encoder(3)
    x, seen = pictures(2), []
    for layer in encoder.layers:
        x = layer(x)
        seen.append(tuple(x.shape[1:]))
    assert seen[1::2] == [(32, 14, 14), (64, 7, 7), (128, 3, 3), (256, 1, 1)]
    assert model.Decoder(3)(torch.rand(2, 256)).shape == (2, 3, 28, 28)
    for side in (28, 56):
        found = model.UnOranic(1, 4, 8, side)(torch.rand(2, 1, side, side))
        assert found.restored.shape == found.reconstruction.shape == (2, 1, side, side)
    with pytest.raises(ValueError, match="64"):
        model.Encoder(1, side=64)


def test_released_activation_and_grey_start():
    for linear in (True, False):
        encoder = model.Encoder(1, linear=linear)
        assert all(isinstance(part[2], torch.nn.LeakyReLU) != linear for part in encoder.layers[1::2])
    assert settings().linear_updown, "the released code computes the identity"
    decoder = initialise_by_name(model.Decoder(1, grey_start=True), 0)
    images = decoder(torch.randn(64, 256)).detach()
    assert images.mean() == pytest.approx(0.5, abs=0.1) and 0.1 < images.std() < 0.25


def test_consistency_loss():
    embeddings = torch.randn(4, 3, 7, dtype=torch.float64)
    terms = []
    for i in range(4):
        for j in range(i + 1, 4):
            terms.append(
                np.mean([(float(embeddings[i, b, k] - embeddings[j, b, k])) ** 2 for b in range(3) for k in range(7)])
            )
    assert model.consistency_loss(embeddings).item() == pytest.approx(np.mean(terms))
    assert model.consistency_loss(embeddings[:1].repeat(3, 1, 1)).item() == 0
    assert model.consistency_loss(embeddings[:1]).item() == 0


def test_total_loss_and_who_gets_its_gradient():
    clean, corrupted = pictures(4, 1), pictures(4, 1, seed=1)
    network = model.UnOranic(1, 4, 8)
    found = network(corrupted, pictures(8, 1, seed=2).unflatten(0, (2, 4)))
    parts = model.unoranic_loss(clean, corrupted, found, 2.0, 3.0)
    expected = 2 * (F.mse_loss(found.restored, clean) + F.mse_loss(found.reconstruction, corrupted))
    expected = expected + 3 * model.consistency_loss(found.anatomy)
    assert parts["loss"].item() == pytest.approx(expected.item())
    of_characteristics = list(network.characteristic_encoder.parameters())
    for name, reaches in (("restoration", False), ("consistency", False), ("reconstruction", True)):
        gradients = torch.autograd.grad(parts[name], of_characteristics, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in gradients) == reaches, name
    for name in ("restoration", "reconstruction", "consistency"):
        gradients = torch.autograd.grad(
            parts[name], network.anatomy_encoder.parameters(), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and g.abs().sum() > 0 for g in gradients), name


def test_variants_go_through_the_anatomy_encoder_alone():
    network = model.UnOranic(1, 4, 8).eval()
    images, variants = pictures(3, 1), pictures(6, 1, seed=4).unflatten(0, (2, 3))
    with torch.no_grad():
        found, plain = network(images, variants), network(images)
        assert torch.allclose(found.anatomy[0], plain.anatomy, atol=1e-6)
        assert torch.allclose(found.anatomy[2], network.anatomy_encoder(variants[1]), atol=1e-6)
        both = torch.cat([plain.anatomy, plain.characteristics], 1)
        assert torch.allclose(plain.reconstruction, network.decoder(both))
        assert torch.allclose(plain.restored, network.anatomy_decoder(plain.anatomy))


def settings(**values):
    return configure(train.Config, train.PROFILES, train.VARIANTS, "paper", "full", data="", out="", **values)


def test_each_resnet_has_its_own_learning_rate():
    config = settings(method="resnet", resnet_steps=100, resnet_lr=0.01, resnet_corrupted_lr=0.001)
    assert [train.learning_rate(config, step, 640) for step in (0, 50, 75)] == pytest.approx([1e-2, 1e-3, 1e-4])
    config.resnet_corrupted = True
    assert [train.learning_rate(config, step, 640) for step in (0, 50, 75)] == pytest.approx([1e-3, 1e-4, 1e-5])
    config.resnet_corrupted_lr = None
    assert train.learning_rate(config, 0, 640) == 0.01


def test_learning_rate_is_torchs_cycle():
    config = settings(lr_rise=7, lr_per="batch")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    cycle = torch.optim.lr_scheduler.CyclicLR(
        optimizer, 1e-4, 1e-2, step_size_up=7, mode="triangular2", cycle_momentum=False
    )
    for step in range(60):
        assert train.learning_rate(config, step, 640) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        cycle.step()


def test_schedule_climbs_for_930_epochs_of_full_batches():
    config, images = settings(), 11959  # BloodMNIST: 186 full batches; the released code counts 187, so 935 epochs
    per_epoch = train.batches_per_epoch(config, images)
    assert per_epoch == 186 and train.steps_of(config, images) == 186_000
    rates = [train.learning_rate(config, epoch * per_epoch, images) for epoch in range(1000)]
    assert rates.index(max(rates)) == 5 * 186
    assert train.learning_rate(config, per_epoch - 1, images) == rates[0]


def test_copies_have_corruptions_of_their_own():
    split = data.Split(pictures(6), torch.zeros(6, dtype=torch.long))
    items = [data.CorruptedImages(split, copies=3, probability=1.0)[k] for k in range(4)]
    batch = torch.utils.data.default_collate(items)
    corrupted, touched = train.corrupted_copies(batch)
    assert corrupted.shape == (3, 4, 3, 28, 28) and touched.all()
    for v in range(3):
        for k in range(4):
            draws = corruptions.Draws(*(items[k][name][v : v + 1] for name in corruptions.Draws._fields))
            alone = corruptions.corrupt(split.images[k : k + 1], draws)
            assert torch.allclose(corrupted[v, k], alone[0], atol=1e-6)
    assert not torch.allclose(corrupted[0, 0], corrupted[1, 0])


# --- scores ----------------------------------------------------------------------------------------------


def test_placements_are_the_area_and_delongs_variance():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.3
    values = rng.normal(size=60).round(1) + positive  # with ties
    found = scores.placements(torch.from_numpy(values), torch.from_numpy(positive))
    assert found.mean().item() == pytest.approx(roc_auc_score(positive, values))
    wins = np.array([[(p > n) + 0.5 * (p == n) for n in values[~positive]] for p in values[positive]])
    m, n = wins.shape
    delong = wins.mean(1).var() / m + wins.mean(0).var() / n
    assert found.var(correction=0).item() / 60 == pytest.approx(delong)
    assert scores.placements(torch.ones(3), torch.ones(3, dtype=torch.bool)).isnan().all()


def test_auc_of_several_classes_is_the_macro_mean():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 80)
    chances = rng.dirichlet(np.ones(4), 80)
    found = scores.auc_values(torch.from_numpy(chances), torch.from_numpy(labels)).mean().item()
    assert found == pytest.approx(roc_auc_score(labels, chances, multi_class="ovr"))
    five = torch.cat([torch.from_numpy(chances), torch.rand(80, 1)], 1)  # a class that does not occur
    assert scores.auc_values(five, torch.from_numpy(labels)).mean().item() == pytest.approx(found)


def test_probe_is_logistic_regression():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    embeddings = rng.normal(size=(90, 5)) * [1, 10, 0.1, 1, 1] + labels[:, None] * 0.3
    probe = scores.fit(torch.from_numpy(embeddings), torch.from_numpy(labels), 3, 0.01)
    scaled = (embeddings - embeddings.mean(0)) / embeddings.std(0, ddof=1)
    weights = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    logits = F.linear(torch.from_numpy(scaled), *weights)
    loss = F.cross_entropy(logits, torch.from_numpy(labels)) + 0.01 / 2 * weights[0].square().sum()
    for gradient in torch.autograd.grad(loss, weights):  # at the minimum of the penalised loss
        assert gradient.abs().max() < 1e-4


def test_probe_of_two_classes():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    embeddings = rng.normal(size=(60, 4)) + labels[:, None] * 0.5
    probe = scores.fit(torch.from_numpy(embeddings), torch.from_numpy(labels), 2, 0.01)
    scaled = (embeddings - embeddings.mean(0)) / embeddings.std(0, ddof=1)
    reference = LogisticRegression(C=1 / (0.01 * 60), tol=1e-8).fit(scaled, labels)
    found = probe(torch.from_numpy(embeddings)).softmax(1)
    np.testing.assert_allclose(found, reference.predict_proba(scaled), atol=1e-4)
    one = scores.fit(torch.from_numpy(embeddings), torch.zeros(60, dtype=torch.long), 2, 0.01)
    assert one(torch.from_numpy(embeddings)).softmax(1)[:, 0].min() > 0.999


def test_probe_takes_the_penalty_that_validates_best():
    pair = torch.randn(40, 30), torch.randint(0, 2, (40,))
    chosen = scores.fit_probe(pair, (torch.randn(40, 30), torch.randint(0, 2, (40,))), 2)
    strongest = scores.fit(*pair, 2, max(scores.STRENGTHS))
    assert torch.equal(chosen.weight, strongest.weight)  # noise: the strongest overfits least


def test_robustness_is_an_auc_and_a_loss():
    clean = torch.tensor([0.9, 0.7])
    values = {("fog", 1): torch.tensor([0.5, 0.5]), ("shot_noise", 1): torch.tensor([0.9, 0.3])}
    found = classification.robustness_means(clean, values)
    expected = {
        "auc_corrupted": [0.7, 0.4],
        "auc_noisy": [0.9, 0.3],
        "auc_loss": [0.2, 0.3],
        "auc_loss_noise": [0.0, 0.4],
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx(value, abs=1e-6), name


def test_block_means():
    values = torch.rand(57, dtype=torch.float64)
    found = scores.block_means(values, 10)
    assert found.shape == (10,) and found.mean().item() == pytest.approx(values.mean().item())
    each = torch.stack([scores.block_means(torch.randn(200), 10).var() for _ in range(300)])
    assert each.mean().item() == pytest.approx(10 / 200, rel=0.1)  # the variance of a mean of 20
    assert torch.equal(found, scores.block_means(values, 10))
    same = scores.block_means(torch.arange(20.0), 20)
    assert sorted(same.tolist()) == pytest.approx(list(range(20)))


def test_psnr():
    truth = torch.full((2, 3, 4, 4), 0.5)
    prediction = truth.clone()
    prediction[0] += 0.1
    prediction[1] = 7.0  # clipped to 1
    assert revision.psnr(prediction, truth).tolist() == pytest.approx([20.0, 10 * math.log10(4)], rel=1e-4)
    assert revision.psnr(truth, truth).tolist() == [revision.MOST_PSNR] * 2


# --- data ------------------------------------------------------------------------------------------------


def write_table(path, side=28, channels=(), **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, side, side, *channels), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(number) % 3)[:, None].astype(np.uint8)
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return arrays


def test_tables_are_read_as_published(tmp_path):
    grey = write_table(tmp_path / "breastmnist.npz")
    colour = write_table(tmp_path / "retinamnist_64.npz", 64, (3,))
    tables = data.read_tables(tmp_path)
    assert list(tables) == ["breast", "retina_64"]
    assert tables["breast"].channels == 1 and tables["retina_64"].channels == 3 and tables["breast"].classes == 3
    np.testing.assert_allclose(tables["breast"].test.images[:, 0] * 255, grey["test_images"], atol=1e-4)
    assert tables["breast"].val.labels.tolist() == [0, 1, 2, 0]
    larger = data.read_table(tmp_path / "retinamnist_64.npz", 56).train.images
    assert larger.shape == (12, 3, 56, 56)
    assert larger.mean().item() == pytest.approx(colour["train_images"].mean() / 255, rel=1e-4)
    assert list(data.read_tables(tmp_path, ("breast",))) == ["breast"]
    with pytest.raises(InputError, match="blood"):
        data.read_tables(tmp_path, ("blood",))
    write_table(tmp_path / "breast.npz")
    with pytest.raises(InputError, match="'breast' comes 2 times"):
        data.read_tables(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"test_labels": None},
        {"train_images": np.full((12, 28, 28), 0.5, np.float32)},
        {"train_images": np.full((12, 28, 28), 300)},
        {"test_labels": np.array([0, 1, 2, 0, 1, 9])},
        {"train_images": np.zeros((12, 28, 28, 28), np.uint8)},
        {"train_images": np.zeros((12, 28, 20), np.uint8)},
        {"train_images": np.zeros((12, 14, 14), np.uint8)},
        {"train_images": np.zeros((12, 28, 28, 3), np.uint8)},
        {"train_images": np.zeros((0, 28, 28), np.uint8)},
        {"train_labels": np.zeros((12, 14), np.uint8)},
        {"train_labels": np.zeros((11, 1), np.uint8)},
        {"train_labels": np.full((12, 1), -1)},
        {"train_labels": np.zeros((12, 1), np.uint8)},
        {"train_labels": np.full((12, 1), 0.5)},
    ],
)
def test_broken_tables_are_one_sentence(tmp_path, changes):
    write_table(tmp_path / "breastmnist.npz", **changes)
    with pytest.raises(InputError, match="breastmnist.npz"):
        data.read_tables(tmp_path)


def test_wrong_settings(tmp_path):
    write_table(tmp_path / "breastmnist.npz")
    for values in ({"side": 30}, {"n_variants": 0}):
        config = configure(
            train.Config, train.PROFILES, train.VARIANTS, "smoke", "full", data=tmp_path, out=tmp_path / "run", **values
        )
        with pytest.raises(InputError):
            train.train(config)


# --- a trained network -----------------------------------------------------------------------------------


def test_unoranic_learns_to_undo_inversion(tmp_path):
    """Few images, one corruption: after training, the restored image is closer to the clean one than the negative."""
    torch.manual_seed(0)
    images = pictures(16, 1) * 0.5
    network = model.UnOranic(1, 4, 16, grey_start=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        found = network(1 - images, images[None])
        model.unoranic_loss(images, 1 - images, found)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = network(1 - images)
    undone = revision.psnr(found.restored, images).mean()
    assert undone > revision.psnr(1 - images, images).mean() + 6
    assert revision.psnr(found.reconstruction, 1 - images).mean() > 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A smoke run of unORANIC on a grey and a colour table."""
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder / "breastmnist.npz")
    write_table(folder / "retinamnist.npz", channels=(3,))
    config = configure(
        train.Config, train.PROFILES, train.VARIANTS, "smoke", "full", data=folder, out=folder / "run", device="cpu"
    )
    train.train(config)
    return folder / "run" / "checkpoint.pt"


def test_apply_to_pictures(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(tmp_path / "eye.jpg")
    Image.fromarray(rng.integers(0, 256, (40, 60), dtype=np.uint8)).save(tmp_path / "film.png")
    volume = rng.random((40, 30, 5)).astype(np.float32)
    nifti.save(tmp_path / "scan.nii.gz", volume, affine=np.diag([1.0, 1, 3, 1]))
    for name, channels in (("eye.jpg", 3), ("film.png", 1), ("scan.nii.gz", 1)):
        out = tmp_path / name.split(".")[0] / "clean.png"
        eval.apply(checkpoint, tmp_path / name, out, device="cpu")
        assert {path.name for path in out.parent.iterdir()} == {
            "clean.png",
            "clean_faithful.png",
            "clean_residual.png",
            "clean_overview.png",
            "clean_features.npz",
        }
        assert Image.open(out).size == (28, 28) and len(Image.open(out).getbands()) == channels
        arrays = np.load(out.parent / "clean_features.npz")
        assert arrays["anatomy"].shape == arrays["characteristics"].shape == (1, 8)
        np.testing.assert_allclose(arrays["residual"], arrays["reconstruction"] - arrays["restored"], atol=1e-6)
        levels = np.asarray(Image.open(out), dtype=float).reshape(28, 28, channels)
        np.testing.assert_allclose(levels / 255, arrays["restored"][0].clip(0, 1).transpose(1, 2, 0), atol=0.003)


def test_own_pictures_are_cropped_and_averaged(tmp_path):
    image = np.zeros((56, 84), np.uint8)
    image[:, 14:70] = 200
    Image.fromarray(image).save(tmp_path / "film.png")
    assert torch.allclose(data.read_own_image(tmp_path / "film.png", 28, None), torch.full((1, 1, 28, 28), 200 / 255))
    volume = np.zeros((40, 30, 3), np.float32)
    volume[30:, :, 1] = 5.0  # bright at the end of the first axis, which runs to the left: on the right of the picture
    volume[:, 25:, 1] += 5.0  # and at the back: below
    nifti.save(tmp_path / "scan.nii.gz", volume, affine=np.diag([-1.0, -1, 1, 1]))
    found = data.read_own_image(tmp_path / "scan.nii.gz", 28, None)[0, 0]
    assert found[-3:, -3:].min() == 1 and found[:20, 0].max() == 0 and found[-1, 0] == 0.5
    for flips in ((-1, 1, 1), (1, -1, 1), (-1, -1, -1)):  # stored the other way round
        turned = np.diag([-1.0, -1, 1, 1]) @ np.diag([*map(float, flips), 1])
        turned[:3, 3] = np.diag([-1.0, -1, 1]) @ [(n - 1) * (f < 0) for n, f in zip(volume.shape, flips)]
        other = volume[tuple(np.s_[::f] for f in flips)]
        nifti.save(tmp_path / "other.nii.gz", np.ascontiguousarray(other), affine=turned)
        assert torch.equal(data.read_own_image(tmp_path / "other.nii.gz", 28, None)[0, 0], found)
    nifti.save(tmp_path / "flat.nii.gz", np.ones((40, 30, 3), np.float32), affine=np.eye(4))
    with pytest.raises(InputError, match="flat.nii.gz"):
        data.read_own_image(tmp_path / "flat.nii.gz", 28, None)
    for name, slice in (("scan.nii.gz", 9), ("absent.png", None)):
        with pytest.raises(InputError, match=name):
            data.read_own_image(tmp_path / name, 28, slice)
    Image.fromarray(np.zeros((20, 90), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="small.png"):
        data.read_own_image(tmp_path / "small.png", 28, None)


def test_apply_refuses_what_does_not_fit(checkpoint, tmp_path):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "film.png")
    with pytest.raises(InputError, match="retina"):
        eval.apply(checkpoint, tmp_path / "film.png", tmp_path / "out.png", device="cpu", dataset="retina")
    with pytest.raises(InputError, match="out.nii"):
        eval.apply(checkpoint, tmp_path / "film.png", tmp_path / "out.nii", device="cpu")


def test_files_beside_the_output_do_not_overwrite_the_input(checkpoint, tmp_path):
    Image.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40)).save(tmp_path / "film_faithful.png")
    with pytest.raises(InputError, match="film_faithful.png"):
        eval.apply(checkpoint, tmp_path / "film_faithful.png", tmp_path / "film.png", device="cpu")


def test_methods_without_training(checkpoint, tmp_path):
    """What they give back, and that restoring is measured against the clean image."""
    folder = checkpoint.parent.parent
    for variant in ("corrupted", "mean", "pca"):
        config = configure(
            train.Config, train.PROFILES, train.VARIANTS, "smoke", variant, data=folder, out=tmp_path / variant
        )
        train.train(config)
        method = methods.methods_of(folder, tmp_path / variant / "checkpoint.pt", torch.device("cpu"))["breast"]
        images, negative = method.table.test.images, 1 - method.table.test.images
        expected = {"corrupted": negative, "mean": method.table.train.images.mean(0).expand_as(images)}
        if variant in expected:
            assert torch.allclose(method.outputs(negative)[2], expected[variant])
            found = revision.revision(method)["revised_inversion"]
            assert torch.allclose(found, revision.psnr(expected[variant], images))
        found = revision.revision(method)
        assert ("revised_drop" in found) == (variant != "corrupted")
        if variant == "pca":
            corrupted = sum(found[f"revised_{name}"] for name in corruptions.CORRUPTIONS) / 12
            assert torch.allclose(found["revised_drop"], found["revised_none"] - corrupted)
        assert set(eval.image_values(method)) <= set(eval.columns())


def test_variants_see_the_same_corruption_of_s():
    split = data.Split(pictures(3), torch.zeros(3, dtype=torch.long))
    items = []
    for copies in (1, 3):
        torch.manual_seed(5)
        items.append(data.CorruptedImages(split, copies)[0])
    for name in corruptions.Draws._fields:
        assert torch.equal(items[0][name][0], items[1][name][0])


def test_other_data_sets_are_refused(checkpoint, tmp_path):
    write_table(tmp_path / "bloodmnist.npz", channels=(3,))
    with pytest.raises(InputError, match="checkpoint.pt"):
        eval.evaluate(tmp_path, checkpoint, tmp_path / "out", device="cpu")


def test_robustness_curves(checkpoint, tmp_path):
    eval.robustness(checkpoint.parent.parent, [checkpoint], tmp_path / "curves.png", device="cpu", dataset="breast")
    lines = (tmp_path / "curves.csv").read_text("utf-8").splitlines()
    assert len(lines) == 1 + 14 * 6 and (tmp_path / "curves.png").exists()


# --- simulators ------------------------------------------------------------------------------------------


def test_blood_cells_look_like_their_classes():
    from benchmarks.standins.blood_smear import CLASSES, make_blood_cell

    cells = {
        name: np.stack([make_blood_cell(np.random.default_rng([k, n]), n, 56) for k in range(6)]) / 255.0
        for n, name in enumerate(CLASSES)
    }
    dark = {name: (stack[..., 0] < 0.5).mean() for name, stack in cells.items()}  # nuclei absorb red
    assert dark["platelet"] < 0.02 < 0.08 < dark["neutrophil"] and dark["lymphocyte"] > dark["neutrophil"]
    middle = {name: stack[:, 16:40, 16:40] for name, stack in cells.items()}
    redness = {name: (stack[..., 0] - stack[..., 1]).mean() for name, stack in middle.items()}
    assert max(redness, key=redness.get) == "eosinophil"
    again = make_blood_cell(np.random.default_rng([0, 3]), 3, 56) / 255.0
    assert np.array_equal(again, cells["immature granulocyte"][0])


def test_pneumonia_is_denser_lung():
    from benchmarks.standins.pneumonia_film import make_chest_film

    films = {
        sick: np.stack([make_chest_film(np.random.default_rng(k), sick, 56) for k in range(8)]).astype(float)
        for sick in (False, True)
    }
    assert np.mean(films[True] - films[False]) > 0
    lungs = films[False][:, 15:35, 8:20].mean(), films[False][:, 15:35, 36:48].mean()
    assert max(lungs) < films[False][:, 15:35, 25:31].mean()  # air is dark, the mediastinum bright


def test_doctests():
    for name in ("model", "corruptions", "common_corruptions"):
        found = doctest.testmod(importlib.import_module(f"papers.unoranic.{name}"))
        assert found.failed == 0 and found.attempted > 0
