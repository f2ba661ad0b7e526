"""SR4ZCT's mathematics, each part against a slow and obvious reference, an analytic case or another library."""

import csv
import doctest
import importlib
import json
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import ledger
from papers.sr4zct import data, eval, model, scaling, through_plane
from papers.sr4zct.scaling import SliceGeometry
from papers.sr4zct.scan import read_scan
from papers.sr4zct.train import (
    PROFILES,
    SETTINGS,
    VARIANTS,
    Config,
    axial_pairs,
    learning_rate,
    networks_of,
    settings_of,
)
from shared import nifti
from shared.cli import configure
from shared.errors import InputError

GEOMETRIES = [SliceGeometry(1.0, 5.0, 2.5), SliceGeometry(0.74, 3.0, 1.0), SliceGeometry(1.0, 6.25, 3.125)]
GEOMETRIES += [SliceGeometry(0.8, 4.7, 0.0), SliceGeometry(0.9, 2.3, -0.6)]  # no overlap, a gap


@pytest.mark.parametrize("name", ["model", "scaling", "data"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"papers.sr4zct.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0 and result.attempted


# --- the model of resolution and overlap -------------------------------------------------------------------


def slow_downscale(column: list[float], geometry: SliceGeometry, samples: int) -> list[float]:
    """F_down of one column, point by point, as figure 2 shows it."""
    r, thickness, spacing = geometry.pixel, geometry.thickness, geometry.spacing
    found, k = [], 0
    while k * spacing + thickness <= len(column) * r + 1e-6:
        values = []
        for j in range(samples):
            position = (k * spacing + thickness * (j + 0.5) / samples) / r - 0.5  # in pixels, from the first centre
            left = min(max(math.floor(position), 0), len(column) - 2)
            values.append(column[left] + (position - left) * (column[left + 1] - column[left]))
        found.append(sum(values) / samples)
        k += 1
    return found


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_downscaling_against_loops(geometry):
    column = torch.rand(37, generator=torch.Generator().manual_seed(0))
    found = scaling.downscale_matrix(37, geometry) @ column[:, None]
    expected = slow_downscale(column.double().tolist(), geometry, 9)
    assert len(expected) == geometry.rows(37)
    torch.testing.assert_close(found[:, 0], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_matched_stride_of_smore_is_what_slices_are_made_with():
    """Stride 3 at 5/2 mm and stride 2 at 5/3 mm: the evaluation's own operator, on pixels of 1 mm, up to rounding."""
    for stride, overlap in ((3, 2.0), (2, 3.0)):
        made = scaling.box_matrix(41, SliceGeometry(1.0, 5.0, overlap)).to_dense()
        torch.testing.assert_close(scaling.convolution_matrix(41, 5, stride).to_dense(), made)
    made = scaling.box_matrix(41, SliceGeometry(1.0, 5.0, 2.5)).to_dense()
    for stride in (2, 3):
        known = scaling.convolution_matrix(41, 5, stride).to_dense()
        assert len(known) != len(made) and (known[3] - made[3]).abs().max() > 0.1


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_upscaling_is_numpy_s_interpolation(geometry):
    rows = geometry.rows(60)
    values = np.random.default_rng(0).random(rows)
    found = (scaling.upscale_matrix(rows, 60, geometry) @ torch.from_numpy(values).float()[:, None])[:, 0].numpy()
    places = geometry.thickness / 2 + geometry.spacing * np.arange(rows)
    centres = (np.arange(60) + 0.5) * geometry.pixel
    between = (centres >= places[0]) & (centres <= places[-1])
    np.testing.assert_allclose(found[between], np.interp(centres[between], places, values), rtol=1e-5, atol=1e-6)
    slope = (values[1] - values[0]) / geometry.spacing
    before = centres < places[0]
    expected = values[0] + slope * (centres[before] - places[0])
    np.testing.assert_allclose(found[before], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_straight_lines_stay_where_they_are(geometry):
    """A shift of half a slice between first slice and first pixel would show here."""
    ramp = torch.arange(50.0)[:, None].expand(50, 40).contiguous()
    torch.testing.assert_close(scaling.degrade(ramp, geometry, -2), ramp, rtol=0, atol=1e-3)
    torch.testing.assert_close(scaling.degrade(ramp.T.contiguous(), geometry, -1), ramp.T, rtol=0, atol=1e-3)
    thick = scaling.multiply_along(scaling.downscale_matrix(50, geometry), ramp, 0)
    up = scaling.upscale(thick, geometry, axis=0)
    torch.testing.assert_close(up, ramp[: len(up)].clamp(thick.min(), thick.max()), rtol=0, atol=1e-3)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_adjoint_of_the_operators(geometry):
    generator = torch.Generator().manual_seed(1)
    matrix = scaling.downscale_matrix(41, geometry)
    x, y = torch.rand(41, 6, generator=generator), torch.rand(matrix.shape[0], 6, generator=generator)
    assert ((matrix @ x) * y).sum().item() == pytest.approx((x * (matrix.t() @ y)).sum().item(), rel=1e-5)
    x.requires_grad_()
    (scaling.multiply_along(matrix, x, 0) * y).sum().backward()
    torch.testing.assert_close(x.grad, matrix.to_dense().T @ y)


def test_degradation_acts_along_one_axis_only():
    image = torch.zeros(40, 40)
    image[:, 20:] = 1.0
    torch.testing.assert_close(scaling.degrade(image, GEOMETRIES[0], -2), image)
    assert (scaling.degrade(image, GEOMETRIES[0], -1) - image).abs().max() > 0.2


def test_degradation_stays_in_the_image_s_range():
    image = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).round()
    blurred = scaling.degrade(image, GEOMETRIES[0], -2)
    assert blurred.min() >= 0 and blurred.max() <= 1


def test_smore_with_stride_3_is_nearly_5_mm_with_2_mm_of_overlap():
    """Section 3: width 5 and stride 3 on 1 mm pixels are a resolution of 5 mm and an overlap of 2 mm."""
    image = torch.rand(60, 50, generator=torch.Generator().manual_seed(0))
    smore = scaling.degrade(image, SliceGeometry(1.0, 5.0, 2.5), -2, smore_stride=3)
    ours = scaling.degrade(image, SliceGeometry(1.0, 5.0, 2.0), -2)
    other = scaling.degrade(image, SliceGeometry(1.0, 5.0, 2.5), -2)
    inside = slice(5, -5)
    assert (smore - ours)[inside].square().mean() < 0.2 * (smore - other)[inside].square().mean()


def test_smore_is_a_strided_convolution():
    column = torch.rand(1, 1, 33)
    expected = F.conv1d(column, torch.full((1, 1, 5), 0.2), stride=3)[0, 0]
    torch.testing.assert_close((scaling.convolution_matrix(33, 5, 3) @ column[0].T)[:, 0], expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_exact_integrals_against_a_fine_sum(geometry):
    column, parts = torch.rand(30).double(), 2000
    fine = column.repeat_interleave(parts)
    found = scaling.box_matrix(30, geometry) @ column.float()[:, None]
    scale = parts / geometry.pixel
    for k in range(geometry.rows(30)):
        first = round(k * geometry.spacing * scale)
        mean = fine[first : first + round(geometry.thickness * scale)].mean()
        assert found[k, 0].item() == pytest.approx(mean.item(), abs=2e-3)
    torch.testing.assert_close(scaling.box_matrix(30, geometry).to_dense().sum(1), torch.ones(geometry.rows(30)))


def test_operators_are_made_once_for_each_geometry():
    first, again = (scaling.degradation_matrix(64, SliceGeometry(1.0, 5.0, 2.0)) for _ in range(2))
    assert first is again and first is not scaling.degradation_matrix(64, SliceGeometry(1.0, 5.0, 2.5))


@pytest.mark.parametrize("lengths", [(1, 5, 5), (1, 5, 6), (0, 5, 2), (1, math.nan, 0), (1, -2, -5)])
def test_impossible_geometries(lengths):
    with pytest.raises(InputError, match="positive"):
        SliceGeometry(*lengths)


def test_an_image_too_short_for_two_slices():
    with pytest.raises(InputError, match="too short"):
        scaling.downscale_matrix(7, GEOMETRIES[0])
    assert scaling.downscale_matrix(8, GEOMETRIES[0]).shape == (2, 8)


# --- the network -------------------------------------------------------------------------------------------


def slow_msd(network: model.MSD, image: torch.Tensor) -> torch.Tensor:
    """The definition, with `torch.cat`, NumPy's padding (no gradient there) and a convolution for each layer."""
    features, start = (image - network.input_mean) / network.input_deviation, 0
    for layer, dilation in enumerate(network.dilations, 1):
        index = np.pad(np.arange(image.shape[2]), dilation, "symmetric")
        columns = np.pad(np.arange(image.shape[3]), dilation, "symmetric")
        padded = features[:, :, index][:, :, :, columns]
        taps = network.kernels[:, start : start + layer].reshape(3, 3, layer)
        start += layer
        new = F.conv2d(padded, taps.permute(2, 0, 1)[None], network.biases[layer - 1 : layer], dilation=dilation)
        features = torch.cat([features, new.relu()], dim=1)
    output = F.conv2d(features, network.output_weights[None, :, None, None], network.output_bias)
    return output * network.target_deviation + network.target_mean


@pytest.mark.parametrize(
    ("depth", "dilations", "shape"), [(7, 3, (2, 9, 14)), (12, 10, (1, 10, 21)), (1, 1, (3, 4, 4))]
)
def test_msd_is_the_definition_with_all_gradients(depth, dilations, shape):
    torch.manual_seed(0)
    network = model.MSD(depth, dilations).double()
    for parameter in (network.biases, network.output_weights):
        torch.nn.init.normal_(parameter, std=0.3)
    image = torch.randn(shape[0], 1, *shape[1:], dtype=torch.float64, requires_grad=True)
    network.set_scale(image.detach() * 3 - 2, image.detach() * 5 + 1)
    weights = torch.randn(image.shape, dtype=torch.float64)
    inputs = (image, *network.parameters())
    # forward() itself computes in float32: take the same steps in float64
    features = network.features((image - network.input_mean) / network.input_deviation)
    found = (network.output_weights @ features.flatten(2) + network.output_bias).view_as(image)
    found = found * network.target_deviation + network.target_mean
    expected = slow_msd(network, image)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    single = network.float()
    torch.testing.assert_close(single(image.float()), expected.float(), rtol=1e-4, atol=1e-4)


def test_paper_s_size_and_initial_weights():
    torch.manual_seed(0)
    network = model.MSD()
    assert sum(parameter.numel() for parameter in network.parameters()) == 45_652
    assert network.dilations[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2)
    assert network.kernels.std().item() == pytest.approx(math.sqrt(2 / 901), rel=0.02)
    assert not network.biases.any() and not network.output_weights.any() and not network.output_bias.any()


def test_identity_start_and_scale_layers():
    image = 300 * torch.randn(2, 1, 12, 12) - 400
    network = model.MSD(4, 3, identity=True)
    network.set_scale(image, image)
    torch.testing.assert_close(network(image), image, rtol=0, atol=1e-2)
    assert model.l2_loss(network, image + network.target_deviation, image).item() == pytest.approx(1, rel=1e-5)


def test_network_keeps_float32_under_autocast():
    network = model.MSD(4, 3, identity=True)
    image = torch.full((1, 1, 8, 8), 1001.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(image).dtype == torch.float32
        assert network(image)[0, 0, 4, 4].item() == pytest.approx(1001, abs=0.01)


def test_symmetric_padding_and_its_adjoint():
    x = torch.rand(2, 5, 7, dtype=torch.float64)
    padded = model.pad_symmetric(x, 3)
    np.testing.assert_array_equal(padded.numpy(), np.pad(x.numpy(), ((0, 0), (3, 3), (3, 3)), "symmetric"))
    y = torch.rand_like(padded)
    expected = (padded * y).sum().item()
    assert (x * model._fold_border(y.clone(), 3)).sum().item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="padded"):
        model.pad_symmetric(x, 6)
    with pytest.raises(ValueError, match="smaller"):
        model.MSD(4, 4)(torch.rand(1, 1, 3, 9))


def test_a_volume_is_taken_image_by_image_the_right_way_up():
    class Shift(torch.nn.Module):
        """Moves an image down by one row, so that it shows which axis is vertical."""

        def forward(self, images):
            return images.roll(1, dims=2)

    volume = torch.rand(4, 5, 6)
    for view in ("cor", "sag"):
        torch.testing.assert_close(model.enhance_volume(Shift(), volume, view), volume.roll(1, dims=2))
        images = through_plane.through_plane(volume, view)
        index = (slice(None), 2) if view == "cor" else (2, slice(None))
        torch.testing.assert_close(images[2], volume[index].T)
    batched = model.enhance_images(Shift(), torch.rand(7, 6, 4), pixels_at_once=50)
    assert batched.shape == (7, 6, 4)


# --- training pairs ----------------------------------------------------------------------------------------


def test_axial_pairs_are_blurred_vertically_and_match_their_targets():
    volume = torch.rand(40, 36, 3, generator=torch.Generator().manual_seed(0))
    geometry = GEOMETRIES[0]
    pairs = data.AxialPairs(volume, geometry)
    assert len(pairs) == 6
    for number in range(3):
        axial = volume[:, :, number].T  # (Y, X)
        degraded, target = pairs.pair(2 * number)
        torch.testing.assert_close(target, axial)
        torch.testing.assert_close(degraded, scaling.degrade(axial, geometry, -2))
        degraded, target = pairs.pair(2 * number + 1)
        torch.testing.assert_close(target, torch.rot90(axial))
        # rotated by 90 degrees, what was horizontal is vertical; from the other end, as rot90 turns columns upside down
        torch.testing.assert_close(torch.rot90(degraded, -1), scaling.degrade(axial, geometry, -1))
        torch.testing.assert_close(pairs.pair(2 * number + 1)[0], degraded)  # again, out of memory
    for index in range(6):  # what was blurred is the vertical axis
        degraded, target = pairs.pair(index)
        assert (degraded.diff(dim=0).square().mean() / degraded.diff(dim=1).square().mean()) < 0.5


def test_crops_of_a_pair_stay_together():
    torch.manual_seed(0)
    image = torch.arange(600.0).view(20, 30)
    for side in (8, 25, 40):
        first, second = data.random_crop((image, image + 1000), side)
        assert first.shape == (min(side, 20), min(side, 30))
        torch.testing.assert_close(second, first + 1000)
    assert len({data.random_crop((image, image), 8)[0][0, 0].item() for _ in range(40)}) > 20


def test_supervised_pairs_are_aligned():
    """Where the volume is a ramp along z, interpolated and true images agree: no shift between the two."""
    ramp = (torch.arange(60.0) * 0.5 + 0.25)[None, None].expand(12, 13, 60).contiguous()
    volume = data.ThinVolume("ramp", ramp, pixel=1.0, slice_mm=0.5)
    torch.testing.assert_close(volume.reference()[0, 0, :3], torch.tensor([0.5, 1.5, 2.5]))
    for view, count in (("cor", 13), ("sag", 12)):
        pairs = data.ThroughPlanePairs([volume], SliceGeometry(1.0, 5.0, 2.5), view)
        assert len(pairs) == count
        low, high = pairs.pair(0)
        torch.testing.assert_close(low[3:-3], high[3:-3], rtol=0, atol=1e-3)
        assert (high.diff(dim=0) > 0.9).all() and high.diff(dim=1).abs().max() < 1e-5


def test_wrong_models_and_smore_change_the_pairs_only():
    volume, geometry = torch.rand(40, 40, 3), GEOMETRIES[0]
    seen = {}
    for variant in ("full", "wrong_5.5_2.5", "wrong_5_3", "wrong_5.5_3", "smore2", "smore3"):
        config = configure(Config, PROFILES, VARIANTS, "paper", variant, data=None, out=None)
        seen[variant] = axial_pairs(config, volume, geometry).pair(0)[0]
    names = list(seen)
    for position, name in enumerate(names):
        for other in names[position + 1 :]:
            assert not torch.allclose(seen[name], seen[other], atol=1e-3), (name, other)
    expected = scaling.degrade(volume[:, :, 0].T.contiguous(), SliceGeometry(1.0, 5.5, 2.5), -2)
    torch.testing.assert_close(seen["wrong_5.5_2.5"], expected)


def test_variants_take_part_where_the_paper_has_them():
    def configured(variant):
        return configure(Config, PROFILES, VARIANTS, "paper", variant, data=None, out=None)

    assert settings_of(configured("full")) == ("5/2.5",) == settings_of(configured("smore3"))
    assert {"5/2.5", *settings_of(configured("full_other"))} == set(SETTINGS) and len(SETTINGS) == 6
    assert settings_of(configured("smore2_other")) == ("5/2", "5/3")
    assert settings_of(configured("wrong_4.5_3")) == ("5/2.5",)
    assert len(networks_of(configured("supervised"))) == 8
    assert len([name for name in VARIANTS if name.startswith("wrong")]) == 24


def test_all_that_learn_from_the_scan_itself_share_a_learning_rate():
    def rate(profile, variant):
        return learning_rate(configure(Config, PROFILES, VARIANTS, profile, variant, data=None, out=None), 0.0)

    own = dict.fromkeys(("full", "wrong_5_2.25", "smore2_other", "smore3", "smore3_other"), 3e-3) | {"supervised": 1e-2}
    for profile in ("cpu", "study"):
        assert {variant: rate(profile, variant) for variant in own} == pytest.approx(own)
    assert {rate("paper", variant) for variant in own} == {1e-3}


def test_errors_in_both_are_compared_with_the_same_errors_alone():
    weights = next(claim for claim in ledger.load_paper("sr4zct")["claim"] if claim["id"] == "C3b")["weights"]
    errors = [(float(d) - 5, float(o) - 2.5) for _, d, o in (name.split("_") for name in weights)]
    both = [(t, o) for t, o in errors if t and o]
    assert sorted(errors) == sorted(both + [(t, 0.0) for t, _ in both] + [(0.0, o) for _, o in both])
    assert sum(weights.values()) == 0 and len(both) == 2


# --- evaluation --------------------------------------------------------------------------------------------


def test_central_area_and_slopes():
    reference = torch.full((20, 16, 40), -1000.0)
    reference[3:12, 5:16, 7] = 0.0
    box = through_plane.central_area(reference, SliceGeometry(1.0, 6.25, 3.125), 38)
    assert box == (slice(3, 12), slice(5, 16), slice(7, 31))
    assert data.body_box(torch.full((4, 5, 6), -1000.0)) == (slice(0, 4), slice(0, 5))
    rows = [
        {"case": f"{label}/cor/a/001", "psnr": 40 - 2 * thickness, "ssim": 1, "slope": ""}
        for label, thickness in (("2.5-1.25", 2.5), ("5-2.5", 5), ("6.25-3.125", 6.25), ("5-2", 99))
    ]
    found = eval.slopes(rows)
    assert [row["case"] for row in found] == ["slope/cor/a/001"] and found[0]["slope"] == pytest.approx(-2)
    assert eval.slopes(rows[1:]) == [], "both ends are needed"
    assert through_plane.positions_of(box, "cor", 4) == [7, 11, 15] and through_plane.positions_of(box, "sag", 5) == [
        5,
        10,
    ]


def test_heatmap_needs_runs(tmp_path):
    with pytest.raises(InputError, match="metrics.csv"):
        eval.heatmap(tmp_path, tmp_path / "map.png")
    for variant, value in (("full", 30), ("wrong_5.5_2.5", 28)):
        folder = tmp_path / variant / "seed0"
        folder.mkdir(parents=True)
        with (folder / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["case", "psnr"], ["5-2.5/cor/a/001", value], ["5-2/cor/a/001", 1]])
    eval.heatmap(tmp_path, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


# --- a user's own scan -------------------------------------------------------------------------------------


def phantom(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """HU that are a smooth function of world position, at the voxels of a grid."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return 3 * world[..., 0] - 2 * world[..., 1] + 7 * world[..., 2]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flip", [1, -1])
def test_apply_puts_every_voxel_where_it_was(tmp_path, axis, flip):
    """HU linear in world position come back linear in world position, whatever the slice axis and its direction."""
    from shared import gpu

    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    spacing = np.full(3, 0.9)
    spacing[axis] = 2.5 * flip
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = (-40, 12, 300)
    shape = np.array([20, 21, 22])
    shape[axis] = 9
    nifti.save(tmp_path / "scan.nii.gz", phantom(affine, tuple(shape)).astype(np.float32), affine=affine)
    values = {"data": tmp_path, "out": tmp_path / "run", "settings": ("5/2.2222222",), "pixel": 0.9, "identity": True}
    config = configure(Config, PROFILES, VARIANTS, "smoke", "full", **values)
    run = gpu.Run(config, paper="sr4zct")
    run.prepare(model.MSD(config.depth, config.dilations, identity=True))
    run.save()
    out = tmp_path / "iso.nii.gz"
    eval.apply(tmp_path / "scan.nii.gz", out, run.checkpoint_path, thickness=4.5, device="cpu")
    result = nifti.load(out)
    assert result.spacing == pytest.approx((0.9, 0.9, 0.9))
    expected = phantom(result.affine, result.shape)
    assert result.shape[axis] == math.floor((8 * 2.5 + 4.5) / 0.9 + 1e-6)
    inside = np.moveaxis(np.abs(result.data - expected), axis, 0)[2:-3]  # beyond the outer centres it is clipped
    inside = inside[:, 1:-1, 1:-1]
    low, high = phantom(affine, tuple(shape)).min(), phantom(affine, tuple(shape)).max()
    clipped = np.moveaxis((expected <= low) | (expected >= high), axis, 0)[2:-3, 1:-1, 1:-1]
    assert inside[~clipped].max() < 0.05
    # the outer face of the first slice is where it was
    face = affine[:3, 3] - affine[:3, axis] / 2.5 * 4.5 / 2
    ours = result.affine[:3, 3] - result.affine[:3, axis] / 2
    np.testing.assert_allclose(ours, face, atol=1e-4)


def anisotropic(path, thickness=None, spacing=2.5, shape=(16, 16, 8), pixel=1.0):
    hu = np.random.default_rng(0).integers(-1000, 200, shape).astype(np.int16)
    nifti.save(path, hu, affine=np.diag([pixel, pixel, spacing, 1.0]))
    if thickness is not None:
        sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
        sidecar.write_text(json.dumps({"SliceThickness": thickness}), "utf-8")
    return path


def test_thickness_comes_from_the_user_the_sidecar_or_with_a_warning_the_spacing(tmp_path):
    path = anisotropic(tmp_path / "a.nii.gz", thickness=5.0)
    assert read_scan(path).geometry == SliceGeometry(1.0, 5.0, 2.5)
    assert read_scan(path, 4.0).geometry == SliceGeometry(1.0, 4.0, 1.5)
    bare = anisotropic(tmp_path / "b.nii.gz")
    with pytest.warns(UserWarning, match="thick"):
        assert read_scan(bare).geometry == SliceGeometry(1.0, 2.5, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_scan(bare, 3.0)
    (tmp_path / "a.json").write_text("{broken", "utf-8")
    with pytest.raises(InputError, match="a.json"):
        read_scan(path)


def test_scans_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="nothing to enhance"):
        read_scan(anisotropic(tmp_path / "iso.nii.gz", spacing=1.0), 1.0)
    with pytest.raises(InputError, match="three slices"):
        read_scan(anisotropic(tmp_path / "two.nii.gz", shape=(16, 16, 2), spacing=20.0), 20.0)
    path = tmp_path / "oblong.nii.gz"
    nifti.save(path, np.zeros((9, 9, 9), np.int16), affine=np.diag([1, 1.4, 5, 1.0]))
    with pytest.raises(InputError, match="square"):
        read_scan(path, 5.0)


def write_dicom(folder, hu: np.ndarray, thickness: float | None, spacing: float, series: int = 7) -> None:
    """A CT series (X, Y, K), axial, one file a slice, with names that are out of order."""
    import SimpleITK as sitk

    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(hu.shape[2]):
        image = sitk.GetImageFromArray(hu[:, :, k].T[None])
        image.SetSpacing((0.8, 0.8, spacing))
        tags = {
            "0008|0060": "CT", "0020|000d": "1.2.826.0.1.3680043.2.1125.8",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{series}",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{series}.{k + 1}", "0020|0013": str(k + 1),
            "0020|0032": f"-10\\-20\\{100 + k * spacing}", "0020|0037": "1\\0\\0\\0\\1\\0",
        }  # fmt: skip
        if thickness is not None:
            tags["0018|0050"] = str(thickness)
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{series}_{(7 * k) % hu.shape[2]:03d}.dcm"))
        writer.Execute(image)


def test_dicom_series_with_its_thickness(tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 200, (12, 10, 6)).astype(np.int16)
    write_dicom(tmp_path / "series", hu, thickness=3.0, spacing=2.0)
    scan = read_scan(tmp_path / "series")
    assert scan.geometry == SliceGeometry(0.8, 3.0, 1.0) and scan.slice_axis == 2
    np.testing.assert_array_equal(scan.hu.numpy(), hu)
    affine = scan.isotropic_affine()
    np.testing.assert_allclose(affine[:3, 3], (10, 20, 100 + (0.8 - 3.0) / 2), atol=1e-6)  # LPS to RAS
    np.testing.assert_allclose(np.diag(affine), (-0.8, -0.8, 0.8, 1))


def test_one_of_several_dicom_series(tmp_path, capsys):
    rng = np.random.default_rng(0)
    hu = [rng.integers(-1000, 200, (20, 20, 6)).astype(np.int16) for _ in range(2)]
    for number, (volume, thickness) in enumerate(zip(hu, (3.0, 4.0))):
        write_dicom(tmp_path / "both", volume, thickness, spacing=2.0, series=number + 1)
    with pytest.raises(InputError, match="--series-uid"):
        read_scan(tmp_path / "both")
    for number, thickness in enumerate((3.0, 4.0)):
        scan = read_scan(tmp_path / "both", series_uid=f"1.2.826.0.1.3680043.2.1125.{number + 1}")
        np.testing.assert_array_equal(scan.hu.numpy(), hu[number])
        assert scan.geometry == SliceGeometry(0.8, thickness, thickness - 2.0), "the thickness is that of the series"
    argv = ["apply", "--input", tmp_path / "both", "--output", tmp_path / "iso.nii.gz", "--profile", "smoke"]
    eval.main([*map(str, argv), "--series-uid", "1.2.826.0.1.3680043.2.1125.2", "--device", "cpu"])
    assert nifti.load(tmp_path / "iso.nii.gz").shape == (20, 20, 17)  # (5 x 2 + 4) mm


def test_numbers_that_are_no_hounsfield_units(tmp_path):
    hu = np.random.default_rng(0).uniform(-1000, 200, (16, 16, 8)).astype(np.float32)
    hu[3, 4, 5] = 1e30
    nifti.save(tmp_path / "a.nii.gz", hu, affine=np.diag([1, 1, 2.5, 1.0]))
    with pytest.raises(InputError, match="a.nii.gz.*CT numbers"):
        read_scan(tmp_path / "a.nii.gz", 5.0)
    import nibabel

    nibabel.save(nibabel.Nifti1Image(hu.astype(np.complex64), np.diag([1, 1, 2.5, 1.0])), tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match="b.nii.gz.*complex"):
        read_scan(tmp_path / "b.nii.gz", 5.0)


def test_apply_trains_on_the_scan_and_its_network_can_be_used_again(tmp_path):
    first = anisotropic(tmp_path / "first.nii.gz", thickness=5.0, shape=(24, 24, 9))
    keep = tmp_path / "keep"
    eval.apply(first, tmp_path / "one.nii.gz", profile="smoke", keep=keep, device="cpu")
    eval.apply(first, tmp_path / "two.nii.gz", keep / "checkpoint.pt", device="cpu")
    one, two = nifti.load(tmp_path / "one.nii.gz"), nifti.load(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(one.data, two.data)
    assert one.data.dtype == np.int16 and one.shape == (24, 24, 25)
    # the same slices in units of another pixel are the same problem; other slices are not
    scaled = anisotropic(tmp_path / "scaled.nii.gz", thickness=3.5, spacing=1.75, pixel=0.7, shape=(24, 24, 9))
    eval.apply(scaled, tmp_path / "three.nii.gz", keep / "checkpoint.pt", device="cpu")
    with pytest.raises(InputError, match="trained for slices of 5/2.5 mm"):
        eval.apply(first, tmp_path / "four.nii.gz", keep / "checkpoint.pt", thickness=4.0, device="cpu")
    assert not (tmp_path / "four.nii.gz").exists()


# --- data sets ---------------------------------------------------------------------------------------------


def test_thin_volumes_are_averaged_to_the_wanted_pixel(tmp_path):
    affine = np.diag([-0.5, -0.5, 0.6, 1.0])
    hu = np.random.default_rng(0).integers(-1000, 1000, (20, 24, 15)).astype(np.int16)
    nifti.save(tmp_path / "imagesTr" / "lung_001.nii.gz", hu, affine=affine)
    volume = data.read_thin_volume(tmp_path, "lung_001", 1.0)
    assert volume.hu.shape == (10, 12, 15) and volume.slice_mm == pytest.approx(0.6)
    expected = hu[::-1, ::-1].reshape(10, 2, 12, 2, 15).mean(axis=(1, 3))  # RAS
    np.testing.assert_allclose(volume.hu.numpy(), expected, atol=1e-3)
    assert volume.reference().shape[2] == 9
    with pytest.raises(InputError, match="too large"):
        data.read_thin_volume(tmp_path, "lung_001", 0.5)
    nifti.save(tmp_path / "imagesTr" / "lung_002.nii.gz", np.zeros((20, 20, 20), np.int16), affine=affine)
    with pytest.raises(InputError, match="lung_002"):
        data.read_thin_volume(tmp_path, "lung_002", 1.0)


def test_supervised_volumes_of_the_standin_come_from_other_scans(tmp_path):
    """Larger voxels, a softer kernel, more noise; the same place."""
    from benchmarks.standins.sr4zct import Protocol, generate, scanned

    folder = generate(tmp_path / "data", size="smoke") / "imagesTr"
    train, test = (nifti.load(folder / f"lung_{number}.nii.gz") for number in ("006", "023"))
    assert test.spacing == pytest.approx((0.75,) * 3) and train.spacing == pytest.approx((0.975,) * 3)
    corners = [one.affine[:3, 3] - one.affine[:3, :3].sum(1) / 2 for one in (train, test)]
    np.testing.assert_allclose(*corners, atol=1e-4)
    rng, edge = np.random.default_rng(0), np.full((40, 40, 30), -800, np.int16)
    edge[20:] = 0
    np.testing.assert_array_equal(scanned(edge, 1.0, Protocol(), rng), edge)
    soft = scanned(edge, 1.0, Protocol(kernel_mm=1.0), rng)
    assert soft[19].mean() == pytest.approx(-800 * 0.69, abs=60) and soft[:10].std() == 0
    assert scanned(edge, 1.0, Protocol(noise_hu=20.0), rng)[:20].std() == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("text", ["5", "5/x", "a/b", "5/2/1"])
def test_settings_are_two_numbers(text):
    with pytest.raises(InputError, match="thickness/overlap"):
        data.parse_setting(text, 1.0)


def test_standin_is_deterministic_and_its_trees_reach_their_targets():
    from benchmarks.standins.chest_ct import chest_ct, grow_tree

    first, second = (chest_ct(np.random.default_rng(3), (30, 28, 26), 1.5, (-80.0, 0.0, 4.0)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.int16 and first.min() >= -1024
    assert np.median(first[first < -500]) == pytest.approx(-860, abs=60), "lung"
    targets = np.random.default_rng(0).uniform(-50, 50, (60, 3))
    tree = grow_tree(np.zeros(3), targets, 0.5)
    assert {tuple(end) for end in tree.end.round(6)} == {tuple(target) for target in targets.round(6)}
    roots = (tree.start == 0).all(axis=1)
    assert (tree.radius[roots] ** 3).sum() == pytest.approx(60 * 0.5**3)
