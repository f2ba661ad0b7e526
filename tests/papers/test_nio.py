"""NIO: its mathematics against slow references and analytic cases."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from papers.nio import adaptation, convolutions, measures, model, released
from shared.errors import InputError

torch.set_num_threads(1)


def smooth_image(size, seed=0, knots=4) -> torch.Tensor:
    """(1, 1, X, Y, Z) smooth and in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, knots, knots, knots, generator=generator)
    return F.interpolate(coarse, size=size, mode="trilinear", align_corners=True)


# --- the network -----------------------------------------------------------------------------------------


def test_parameters_of_the_paper_s_network():
    sizes = [sum(p.numel() for p in level.parameters()) for level in model.LapIRN().levels]
    assert [round(total / 1e6, 2) for total in np.cumsum(sizes)] == [0.41, 0.81, 1.22]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("slices", [8, 9, 12, 16])
def test_halved_convolution_is_the_convolution(stride, slices):
    layer, x = convolutions.Conv3d(3, 4, stride), torch.randn(1, 3, slices, 6, 4, requires_grad=True)
    expected = F.conv3d(x, layer.weight, stride=stride, padding=1)
    found = layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weights).sum(), [x, layer.weight])[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_transposed_convolution_as_a_product():
    layer, x = convolutions.UpConv3d(3, 2), torch.randn(2, 3, 3, 4, 5)
    torch.testing.assert_close(layer(x), F.conv_transpose3d(x, layer.weight, stride=2), rtol=1e-4, atol=1e-5)


def test_conditional_norm_against_its_formula():
    layer, x, code = model.ConditionalInstanceNorm(2, 3), torch.randn(2, 2, 3, 4, 5), torch.randn(2, 3)
    gamma, beta = layer.style(code).chunk(2, dim=1)
    for b in range(2):
        for c in range(2):
            values = x[b, c]
            normed = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
            expected = (1 + gamma[b, c]) * normed + beta[b, c]
            torch.testing.assert_close(layer(x, code)[b, c], expected, rtol=1e-4, atol=1e-5)


def test_gain_of_the_conditional_norm_is_one_at_first():
    """cLapIRN sets the bias of both γ and β to zero; resetting the layers by name must not undo it."""
    from shared.gpu import initialise_by_name

    for network in (model.LapIRN((4, 4, 4), blocks=1), initialise_by_name(model.LapIRN((4, 4, 4), blocks=1), 3)):
        norms = [m for m in network.modules() if isinstance(m, model.ConditionalInstanceNorm)]
        assert len(norms) == 6 and not any(norm.style.bias.any() for norm in norms)


def test_widths_of_the_lite_network():
    """The release's lite network has 503 744 parameters."""
    network = model.LapIRN((8, 16, 8))
    assert sum(p.numel() for p in network.parameters()) == 503_744
    assert [level.up.out_channels for level in network.levels] == [16, 16, 8]
    assert network(*torch.rand(2, 1, 1, 16, 16, 16))[-1].shape == (1, 3, 16, 16, 16)


def as_released(network: model.LapIRN) -> dict[str, torch.Tensor]:
    """Weights under the release's names; components of a field from the last axis."""
    turned = {
        name: value.flip(0) if name.endswith("flow.2.weight") else value for name, value in network.state_dict().items()
    }
    for level in (1, 2):
        name = f"levels.{level}.features.0.weight"
        turned[name] = torch.cat([turned[name][:, :2], turned[name][:, 2:].flip(1)], dim=1)
    return {released.released_name(name): value for name, value in turned.items()}


@pytest.mark.parametrize("widths", [(4, 4, 4), (4, 8, 4)])
def test_released_weights_become_our_network(widths, tmp_path):
    network, images = model.LapIRN(widths, blocks=2), torch.rand(2, 1, 1, 16, 16, 24)
    weights = as_released(network)
    assert {"down_conv.weight", "model_lvl2.up.weight", "model_lvl2.model_lvl1.output_lvl1.2.weight"} <= set(weights)
    assert "model_lvl2.resblock_group_lvl1.2.mapping.6.bias" in weights  # the second block
    torch.save(weights, tmp_path / "released.pth")
    found = released.load_clapirn(tmp_path / "released.pth")
    assert len(found.levels[0].blocks) == 2
    for field, expected in zip(found(*images), network(*images), strict=True):
        assert torch.equal(field, expected)


def test_the_release_counts_components_from_the_last_axis():
    network = model.LapIRN((4, 4, 4), blocks=1)
    weights = as_released(network)
    for name, value in weights.items():
        if name.endswith("output_lvl1.2.weight"):
            value[1:] = 0  # the release's component 0 alone, which `grid_sample` takes along the last axis
    field = released.convert(weights)(*torch.rand(2, 1, 1, 16, 16, 16))[-1]
    assert not field[:, :2].any() and field[:, 2].abs().max() > 0


def test_other_weights_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    for path in (tmp_path / "other.pth", tmp_path / "none.pth"):
        with pytest.raises(InputError, match=path.name):
            released.load_clapirn(path)


def test_fields_are_upsampled_and_added():
    network = model.LapIRN((4, 4, 4), blocks=1)
    moving, fixed = smooth_image((16, 16, 24), 1), smooth_image((16, 16, 24), 2)
    fields = network(moving, fixed)
    with torch.no_grad():  # a last level that adds nothing leaves the field of the level before
        network.levels[2].flow[2].weight.zero_()
    again = network(moving, fixed)
    torch.testing.assert_close(again[1], fields[1])
    torch.testing.assert_close(again[2], F.interpolate(fields[1], size=(16, 16, 24), mode="trilinear"))
    assert fields[0].abs().max() <= network.levels[0].range_flow


def test_frozen_levels_get_no_gradient():
    network, images = model.LapIRN((4, 4, 4), blocks=1), torch.rand(2, 1, 1, 16, 16, 16)
    network(images[0], images[1], levels=2, frozen=1)[-1].sum().backward()
    assert all(p.grad is None for p in network.levels[0].parameters())
    assert all(p.grad is not None for p in network.levels[1].parameters())
    assert all(p.grad is None for p in network.levels[2].parameters())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divisible by 8"):
        model.LapIRN((4, 4, 4), blocks=1)(torch.rand(1, 1, 16, 16, 12), torch.rand(1, 1, 16, 16, 12))


# --- fields ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_by_whole_voxels(axis):
    image = torch.rand(1, 1, 6, 7, 8)
    voxels = torch.zeros(1, 3, 6, 7, 8)
    voxels[:, axis] = 2
    warped = model.warp(image, model.voxel_to_unit(voxels))
    n = image.shape[2 + axis]
    torch.testing.assert_close(
        warped.narrow(2 + axis, 0, n - 2), image.narrow(2 + axis, 2, n - 2), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(model.unit_to_voxel(model.voxel_to_unit(voxels)), voxels)


def slow_lncc(a: np.ndarray, b: np.ndarray, window: int, eps: float) -> np.ndarray:
    half, total = window // 2, window**3
    a, b = (np.pad(image, half) for image in (a, b))
    shape = [n - 2 * half for n in a.shape]
    result = np.zeros(shape)
    for i, j, k in np.ndindex(*shape):
        box = (slice(i, i + window), slice(j, j + window), slice(k, k + window))
        da, db = a[box] - a[box].sum() / total, b[box] - b[box].sum() / total
        result[i, j, k] = (da * db).sum() ** 2 / ((da**2).sum() * (db**2).sum() + eps)
    return result


def test_lncc_against_loops():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 5, 7))
    mask = rng.random((6, 5, 7)) > 0.5
    local = slow_lncc(a, b, 3, 1e-5)
    tensors = [torch.from_numpy(x)[None, None] for x in (a, b)]
    assert model.lncc(*tensors, window=3).item() == pytest.approx(-local.mean(), rel=1e-6)
    masked = model.lncc(*tensors, window=3, mask=torch.from_numpy(mask)[None, None].double())
    assert masked.item() == pytest.approx(-local[mask].mean(), rel=1e-6)


def test_lncc_does_not_see_local_gain_and_offset_nor_air():
    image = smooth_image((20, 20, 20)).double() + 0.1 * torch.rand(1, 1, 20, 20, 20, dtype=torch.double)
    inner = torch.zeros_like(image)
    inner[..., 4:-4, 4:-4, 4:-4] = 1  # windows that don't reach the padding
    assert model.lncc(image, 3 * image + 2, 7, inner, eps=0).item() == pytest.approx(-1, abs=1e-6)
    assert model.lncc(image, -0.5 * image, 7, inner, eps=0).item() == pytest.approx(-1, abs=1e-6)
    assert model.lncc(torch.zeros_like(image), image, 7).item() == 0


def test_diffusion_of_a_linear_field():
    size = (6, 7, 8)
    index = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij"))
    slopes = torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.5, 0.0, 0.2]], dtype=torch.double)
    voxels = torch.einsum("ab,bxyz->axyz", slopes, index)[None]  # d u_a / d x_b = slopes[a, b]
    expected = np.mean([(slopes[:, b] ** 2).mean().item() for b in range(3)])
    unit = model.voxel_to_unit(voxels)
    assert model.diffusion(unit, voxel_units=True).item() == pytest.approx(expected, rel=1e-6)
    assert model.diffusion(unit).item() == pytest.approx(4 * expected, rel=1e-6)  # (size - 1) times the unit field


def test_every_level_has_the_same_objective_on_full_size_images():
    moving, fixed = smooth_image((16, 16, 16), 1), smooth_image((16, 16, 16), 2)
    coarse = 0.1 * torch.randn(1, 3, 4, 4, 4)
    full = F.interpolate(coarse, size=(16, 16, 16), mode="trilinear")
    expected = 0.6 * model.lncc(fixed, model.warp(moving, full)) + 0.4 * model.diffusion(full)
    torch.testing.assert_close(model.registration_loss(moving, fixed, coarse), expected)


# --- instance optimisation -------------------------------------------------------------------------------


def shifted_pair(size=(16, 16, 16)):
    """A moving and a fixed image, the second seen through a smooth field."""
    moving = smooth_image(size, 3, knots=6)
    bump = torch.zeros(1, 3, 4, 4, 4)
    bump[:, 0, 1:3, 1:3, 1:3] = 0.25
    field = F.interpolate(bump, size=size, mode="trilinear", align_corners=True)
    return moving, model.warp(moving, field)


@pytest.mark.parametrize("iterations", [(0, 0, 6), (6, 4, 4)])
def test_weights_are_optimised_on_a_copy(iterations):
    torch.manual_seed(0)
    network, (moving, fixed) = model.LapIRN((4, 4, 4), blocks=1), shifted_pair()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = model.registration_loss(moving, fixed, adaptation.predict(network, moving, fixed))
    adapted = adaptation.optimise_weights(network, moving, fixed, iterations, lr=3e-3)
    assert model.registration_loss(moving, fixed, adapted.field) < first - 0.01
    assert len(adapted.losses) == sum(iterations)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    again = adaptation.optimise_weights(network, moving, fixed, iterations, lr=3e-3)  # nothing leaks between pairs
    assert torch.equal(again.field, adapted.field)


def test_coarse_to_fine_trains_the_levels_that_take_part():
    torch.manual_seed(0)
    network, (moving, fixed) = model.LapIRN((4, 4, 4), blocks=1), shifted_pair()
    calls = []

    class Watched(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, moving, fixed, levels=3, lam=0.4):
            calls.append((levels, lam))
            return self.inner(moving, fixed, levels, lam)

    objective = adaptation.Objective(lam=0.3)
    found = adaptation.optimise_weights(Watched(network), moving, fixed, (3, 2, 1), 1e-3, objective)
    assert [levels for levels, _ in calls[:6]] == [1, 1, 1, 2, 2, 3] and {lam for _, lam in calls} == {0.3}
    assert found.field.shape[2:] == fixed.shape[2:]


def test_io_finds_a_field_and_starts_from_the_given_one():
    moving, fixed = shifted_pair()
    start = torch.zeros(1, 3, 16, 16, 16)
    found = adaptation.optimise_field(start, moving, fixed, iterations=25, lr=0.1)
    assert found.losses[-1] < found.losses[0] - 0.02
    assert torch.equal(adaptation.optimise_field(start + 0.1, moving, fixed, iterations=0).field, start + 0.1)
    expected = model.registration_loss(moving, fixed, start).item()
    assert found.losses[0] == pytest.approx(expected, rel=1e-5)


def test_extras_for_lungs():
    moving, fixed = shifted_pair()
    points = adaptation.random_affine((4, 5, 6), 0.0, torch.Generator().manual_seed(0), "cpu")
    torch.testing.assert_close(points, model.identity((4, 5, 6)))
    plain = adaptation.Objective(spline=True)
    affine = adaptation.Objective(spline=True, affine_sd=0.05, seed=3)
    start = 0.05 * torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    runs = [adaptation.optimise_field(start, moving, fixed, 3, 0.1, o, torch.ones_like(fixed)) for o in (plain, affine)]
    assert runs[0].losses != runs[1].losses
    smooth = [model.diffusion(run.field) < 0.3 * model.diffusion(start) for run in runs]
    assert all(smooth)
    constant = torch.full((1, 3, 5, 6, 7), 0.2)
    torch.testing.assert_close(model.spline_smooth(constant), constant)  # no edge that pulls towards zero
    network = model.LapIRN((4, 4, 4), blocks=1)
    for method in (plain, affine):
        found = adaptation.optimise_weights(network, moving, fixed, (1, 1, 1), 1e-3, method, torch.ones_like(fixed))
        assert found.field.isfinite().all()


def test_patience_ends_a_level():
    moving = torch.zeros(1, 1, 16, 16, 16)  # nothing to gain
    found = adaptation.optimise_field(
        torch.zeros(1, 3, 16, 16, 16), moving, moving, 50, 0.1, adaptation.Objective(patience=4)
    )
    assert len(found.losses) == 5


# --- measures --------------------------------------------------------------------------------------------


def test_jacobian_of_a_linear_map():
    matrix = torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.5, 0.0, 0.2]])
    index = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in (5, 6, 7)), indexing="ij"))
    field = model.voxel_to_unit(torch.einsum("ab,bxyz->axyz", matrix, index)[None])
    found = measures.jacobian_determinant(field)
    torch.testing.assert_close(found, torch.full_like(found, torch.linalg.det(torch.eye(3) + matrix).item()))
    folded = model.voxel_to_unit(-2 * index[None])
    assert (measures.jacobian_determinant(folded) < 0).all()


def test_worst_share():
    assert measures.worst_share([0.4, 0.1, 0.3, 0.2, 0.5, 0.6, 0.7]) == [0.1, 0.2]
    assert measures.worst_share([0.4]) == [0.4]


def test_rows_of_the_worst_cases():
    from papers.nio.eval import worst_rows

    scores = [0.9, 0.2, 0.4, 0.8, 0.7, 0.6, 0.5]
    rows = worst_rows("x", [{"dice": score} for score in scores])
    assert [row["case"] for row in rows] == ["x/lowest01", "x/lowest02"]
    assert [row["dice30"] for row in rows] == [0.2, 0.4]
    assert [row["worst_gap"] for row in rows] == pytest.approx([0.2 - np.mean(scores), 0.4 - np.mean(scores)])


def test_dice_of_labels_on_a_finer_grid():
    fixed = np.zeros((16, 16, 16), np.int32)
    fixed[4:10, 4:12, 4:12] = 1
    moving = np.roll(fixed, 4, axis=0)  # what is at x in the fixed scan is at x + 4 in the moving one
    voxels = torch.zeros(1, 3, 8, 8, 8)
    voxels[:, 0] = 2  # on a grid half as fine
    assert measures.mean_dice(moving, fixed, model.voxel_to_unit(voxels), [1, 2]) == 1
    assert measures.mean_dice(moving, fixed, torch.zeros(1, 3, 8, 8, 8), [1]) == pytest.approx(2 * 2 / 12)


def test_landmarks_of_an_anisotropic_grid():
    shape, origin, spacing = (6, 8, 10), (3.0, -5.0, 10.0), (2.0, 1.0, 2.5)
    rng = np.random.default_rng(0)
    inside = rng.uniform(0.2, 0.8, (20, 3)) * (np.array(shape) - 1) * spacing + origin
    voxels = torch.zeros(1, 3, *shape)
    for axis, amount in enumerate((1.0, -0.5, 2.0)):
        voxels[:, axis] = amount
    moved = inside + np.array([1.0, -0.5, 2.0]) * spacing
    field = model.voxel_to_unit(voxels)
    assert measures.landmark_errors(field, inside, moved, origin, spacing).max() < 1e-4
    wrong = measures.landmark_errors(field, moved, inside, origin, spacing)  # from the moving scan: the wrong way
    assert wrong == pytest.approx(2 * np.linalg.norm(np.array([1.0, -0.5, 2.0]) * spacing), rel=1e-4)


# --- the conventional baseline ---------------------------------------------------------------------------


def test_bspline_has_the_sign_and_the_axes_of_the_others():
    from papers.nio.bspline import register_bspline

    moving, fixed = (image[0, 0].numpy() for image in shifted_pair((16, 20, 16)))
    voxels = register_bspline(moving, fixed, (1.0, 1.5, 1.0), knots=3, iterations=8)
    before = model.lncc(*(torch.from_numpy(x)[None, None] for x in (fixed, moving)))
    warped = model.warp(torch.from_numpy(moving)[None, None], model.voxel_to_unit(torch.from_numpy(voxels)[None]))
    after = model.lncc(torch.from_numpy(fixed)[None, None], warped)
    assert after < before - 0.02


def test_bspline_on_a_part_of_the_voxels_is_deterministic():
    """SimpleITK jitters its sampling grid by the clock unless it is given a seed."""
    from papers.nio.bspline import register_bspline

    moving, fixed = (image[0, 0].numpy() for image in shifted_pair((16, 20, 16)))
    fields = [register_bspline(moving, fixed, knots=3, sampled=0.3, iterations=4) for _ in range(3)]
    assert np.array_equal(fields[0], fields[1]) and np.array_equal(fields[0], fields[2])


# --- files -----------------------------------------------------------------------------------------------


def test_displacement_file_is_what_simpleitk_understands(tmp_path):
    """Warping by SimpleITK with the written field gives the warped image that `apply` writes."""
    import SimpleITK as sitk

    from papers.nio import world
    from shared import nifti

    rng = np.random.default_rng(0)
    affine = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])  # turned, anisotropic
    shape = (12, 10, 8)
    fixed = nifti.make_image(rng.random(shape, dtype=np.float32), affine)
    moving = nifti.make_image(rng.random(shape, dtype=np.float32), affine)
    displacement = 2 * rng.standard_normal((3, *shape))
    ours = world.warp_in_world(moving, fixed, displacement)
    path = tmp_path / "field.nii.gz"
    world.save_displacement(displacement, fixed, path)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    theirs = sitk.Resample(nifti.to_sitk(moving), nifti.to_sitk(fixed), transform, sitk.sitkLinear, 0.0)
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(sitk.GetArrayFromImage(theirs).T[inner], ours[inner], atol=1e-3)


def test_world_displacement_of_a_shift():
    from papers.nio import world
    from shared import nifti

    grid = nifti.make_image(np.zeros((8, 8, 8), np.float32), np.diag([2.0, 2, 2, 1]))
    fixed = nifti.make_image(np.zeros((10, 9, 8), np.float32), np.diag([-1.0, 1, 1, 1]) + 0.0)
    voxels = torch.zeros(1, 3, 8, 8, 8)
    voxels[:, 1] = 1.5
    found = world.world_displacement(model.voxel_to_unit(voxels), grid, fixed)
    np.testing.assert_allclose(found[1], 3.0, rtol=1e-5)  # 1.5 voxels of 2 mm
    assert np.abs(found[[0, 2]]).max() < 1e-5


def test_crop_and_pad_about_the_centre():
    from papers.nio.data import fit

    volume = np.arange(5 * 4 * 6).reshape(5, 4, 6)
    fitted = fit(volume, (3, 8, 6))
    assert fitted.shape == (3, 8, 6) and np.array_equal(fitted[:, 2:6], volume[1:4])
    assert fitted[:, :2].sum() == fitted[:, 6:].sum() == 0


@pytest.fixture(scope="module")
def lungs_on_disk(tmp_path_factory):
    from benchmarks.standins import nio as standin

    out = tmp_path_factory.mktemp("lungs")
    standin.write_lungs(out, standin.SETTINGS["smoke"], seed=1)
    return out


def test_the_lung_stand_in_s_landmarks_are_its_motion(lungs_on_disk):
    """The true field takes each landmark of T00 to that of T50, and the reader finds both in the image's frame."""
    from benchmarks.standins import lung_motion
    from benchmarks.standins import nio as standin
    from papers.nio.lungs import Lungs

    lungs, setting = Lungs(lungs_on_disk, (16, 16, 16)), standin.SETTINGS["smoke"]
    pair = lungs.pair(2)
    chest = lung_motion.make_chest(np.random.default_rng([1, 3, 2]), stroke_mm=42.0)
    first = -np.array(setting.lung_spacing_mm) * (np.array(setting.lung_size) - 1) / 2 + (0, 0, 10)
    inspired, expired = (points + first for points in pair.landmarks_mm)
    moved = inspired + lung_motion.displacement(chest, inspired.T, 1.0).T
    np.testing.assert_allclose(moved, expired, atol=0.05)
    assert np.linalg.norm(inspired - expired, axis=1).max() > 10
    assert all(lung_motion.lung_side(expired.T, chest) > 0)


def test_broken_lung_files_are_one_sentence(lungs_on_disk, tmp_path):
    import shutil

    from papers.nio.lungs import Lungs, read_landmarks

    copy = tmp_path / "copy"
    shutil.copytree(lungs_on_disk, copy)
    image = copy / "dirlab" / "Case1Pack" / "Images" / "case1_T00_s.img"
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(InputError, match="case1_T00_s.img"):
        Lungs(copy, (16, 16, 16))[1, "T00"]
    (copy / "dirlab" / "Case2Pack" / "Masks" / "case2_T00.nii.gz").unlink()
    with pytest.raises(InputError, match="lung mask"):
        Lungs(copy, (16, 16, 16))[2, "T00"]
    (tmp_path / "points.txt").write_text("1 2\n3 4\n", "utf-8")
    with pytest.raises(InputError, match="points.txt"):
        read_landmarks(tmp_path / "points.txt")
    (copy / "dirlab" / "geometry.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match="geometry.json"):
        Lungs(copy, (16, 16, 16))


def test_a_case_that_lies_there_twice_is_refused(lungs_on_disk, tmp_path):
    import shutil

    from papers.nio.lungs import Lungs

    shutil.copytree(lungs_on_disk, tmp_path / "copy")
    shutil.copytree(lungs_on_disk / "dirlab" / "Case1Pack", tmp_path / "copy" / "dirlab" / "Case01Pack")
    with pytest.raises(InputError, match="2 times"):
        Lungs(tmp_path / "copy", (16, 16, 16))


@pytest.fixture(scope="module")
def brains_on_disk(tmp_path_factory):
    from benchmarks.standins import nio as standin

    out = tmp_path_factory.mktemp("brains")
    standin.write_brains(out, "oasis", standin.SETTINGS["smoke"], seed=1)
    return out


def test_atlases_of_the_paper(tmp_path):
    """S24 and S25 of LPBA40, case 285 of OASIS; the first scans of a test set that lacks them."""
    from papers.nio.data import Scans

    for number in range(1, 41):
        (tmp_path / "lpba40" / f"S{number:02d}").mkdir(parents=True)
    for number in range(1, 300):
        (tmp_path / "oasis" / f"OASIS_OAS1_{number:04d}_MR1").mkdir(parents=True)
    grid = ((16, 24, 16), 9.0)
    lpba = Scans(tmp_path, "lpba", (20, 3), *grid)
    names = [name for name, _, _ in lpba.pairs("oasis-lpba")]
    assert names[:3] == ["oasis-lpba/S26-S24", "oasis-lpba/S26-S25", "oasis-lpba/S27-S24"] and len(names) == 30
    assert Scans(tmp_path, "lpba", (26, 3), *grid).pairs("x", most=1)[0][0] == "x/S32-S30"
    assert Scans(tmp_path, "oasis", (250, 5), *grid).pairs("x", most=1)[0][0] == "x/0256-0285"
    assert Scans(tmp_path, "oasis", (285, 5), *grid).pairs("x", most=1)[0][0] == "x/0292-0291"


def test_a_split_that_would_mix_training_and_test_is_refused(brains_on_disk):
    from papers.nio.data import Scans

    grid = ((16, 24, 16), 9.0)
    assert len(Scans(brains_on_disk, "oasis", (2, 1), *grid).test) == 2
    with pytest.raises(InputError, match="expected 2 scans"):
        Scans(brains_on_disk, "oasis", (2, -1), *grid)
    with pytest.raises(InputError, match="expected 4 scans"):
        Scans(brains_on_disk, "oasis", (4, 0), *grid)


@pytest.mark.parametrize("damage", ["shape", "fractions", "moved"])
def test_labels_that_do_not_fit_their_image_are_refused(brains_on_disk, tmp_path, damage):
    from papers.nio.data import read_scan, scan_paths
    from shared import nifti

    name, image, labels = scan_paths(brains_on_disk, "oasis")[0]
    assert read_scan(name, image, labels, (16, 24, 16), 9.0).labels.max() > 0
    found = nifti.load(labels)
    data = {"shape": found.data[1:], "fractions": found.data + 0.5, "moved": found.data}[damage]
    affine = found.affine + (np.eye(4, k=3) * 5 if damage == "moved" else 0)  # 5 mm to the side
    nifti.save(tmp_path / "labels.nii.gz", data, affine=affine)
    with pytest.raises(InputError, match="labels.nii.gz"):
        read_scan(name, image, tmp_path / "labels.nii.gz", (16, 24, 16), 9.0)


def test_labels_with_flipped_axes_are_put_in_order(brains_on_disk, tmp_path):
    from papers.nio.data import read_scan, scan_paths
    from shared import nifti

    name, image, labels = scan_paths(brains_on_disk, "oasis")[0]
    found = nifti.load(labels)
    affine = found.affine @ np.array([[-1, 0, 0, found.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nifti.save(tmp_path / "labels.nii.gz", found.data[::-1], affine=affine)
    plain, flipped = (read_scan(name, image, path, (16, 24, 16), 9.0) for path in (labels, tmp_path / "labels.nii.gz"))
    assert np.array_equal(plain.labels, flipped.labels)


def test_nothing_beside_the_output_is_overwritten(tmp_path):
    """`apply` also writes NAME_field.nii.gz and NAME.png: neither may be one of its inputs."""
    from papers.nio.eval import apply

    field = tmp_path / "warped_field.nii.gz"
    field.write_bytes(b"precious")
    with pytest.raises(InputError, match="warped_field"):
        apply(tmp_path / "checkpoint.pt", field, tmp_path / "fixed.nii.gz", tmp_path / "warped.nii.gz")
    assert field.read_bytes() == b"precious"


def test_no_case_is_trained_and_tested_on(lungs_on_disk):
    from papers.nio.lungs import BreathPairs, Lungs

    lungs = Lungs(lungs_on_disk, (16, 16, 16))
    for number, _ in lungs.patients:
        assert number not in BreathPairs(lungs, lungs.fold(number, 2), 2).numbers
