"""PCL: masks and loss against loops, networks against counted parameters, orientation, augmentation, commands."""

import csv
import math

import numpy as np
import pytest
import torch

from papers.pcl import data as pcl_data
from papers.pcl import eval as pcl_eval
from papers.pcl import layouts, orientation, scores
from papers.pcl.atlas import Atlas
from papers.pcl.augmentation import crop_or_pad, draw_view, smooth, view
from papers.pcl.forest import Forest, pixel_features
from papers.pcl.model import (
    ContrastiveNet,
    Encoder,
    UNet,
    contrastive_loss,
    copy_encoder,
    false_negative_rate,
    instance_mask,
    partition_mask,
    position_mask,
    positive_mask,
    slice_partitions,
    slice_positions,
)
from papers.pcl.threshold import expected_positives
from shared import nifti, resample
from shared.errors import InputError
from tests.smoke import train_in_processes, train_variant

# --- positions, partitions, masks ------------------------------------------------------------------------


def test_positions():
    assert slice_positions(4).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert slice_positions(1).tolist() == [1.0]


def partition_of_the_released_code(i: int, n: int) -> int:
    """Its behaviour: a quarter of the stack, of which the half is rounded up, and three full parts before the last."""
    length = n // 4 + (1 if n % 4 >= 2 else 0)
    return min(i // length, 3)


@pytest.mark.parametrize("slices", range(2, 61))
def test_partitions_round_half_up(slices):
    """Checked against the released code at bf339fc for 2 to 200 slices."""
    expected = [partition_of_the_released_code(i, slices) for i in range(slices)]
    assert slice_partitions(slices).tolist() == expected


def test_partitions_of_stacks_whose_quarter_is_a_half():
    assert slice_partitions(10).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert slice_partitions(18).tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 3
    assert slice_partitions(1).tolist() == [0]


def test_position_mask_is_strict_and_across_volumes():
    positions = torch.cat([slice_positions(10), slice_positions(20)])
    mask = position_mask(positions, 0.3)
    for i, a in enumerate(positions.tolist()):
        for j, b in enumerate(positions.tolist()):
            twentieths = abs(round(a * 20) - round(b * 20))
            assert mask[i, j] == (twentieths < 6), (a, b)  # exactly 0.3 apart is negative, however it is rounded
    assert mask[:10, 10:].any() and not mask[:10, 10:].all()


def test_masks_of_the_three_methods_are_nested_and_symmetric():
    positions, partitions = slice_positions(12), slice_partitions(12)
    masks = {m: positive_mask(m, positions, partitions, 0.26) for m in ("pcl", "gcl", "simclr")}
    for mask in masks.values():
        assert torch.equal(mask, mask.T) and mask.diagonal().all()
    assert torch.equal(masks["simclr"], torch.eye(12, dtype=torch.bool))
    assert (masks["pcl"] | ~masks["gcl"]).all(), "3 slices of 12: a partition lies within t = 0.26"
    assert masks["pcl"].sum() > masks["gcl"].sum() > masks["simclr"].sum()
    with pytest.raises(ValueError, match="method"):
        positive_mask("moco", positions, partitions, 0.2)
    with pytest.raises(ValueError, match="positive"):
        position_mask(positions, 0.0)


def test_false_negative_rate_by_hand():
    positions = torch.tensor([0.25, 0.5, 0.75, 1.0])
    mask = partition_mask(torch.tensor([0, 0, 1, 1]))
    # With t = 0.3 the neighbours are near: 0-1, 1-2, 2-3. The mask misses 1-2.
    assert false_negative_rate(mask, positions, 0.3).tolist() == [0, 0.5, 0.5, 0]
    assert false_negative_rate(position_mask(positions, 0.3), positions, 0.3).tolist() == [0, 0, 0, 0]
    assert false_negative_rate(instance_mask(4), positions, 0.3).tolist() == [1, 1, 1, 1]
    assert torch.isnan(false_negative_rate(mask, positions, 0.1)).all()


# --- loss ------------------------------------------------------------------------------------------------


def loss_by_loops(first, second, mask, t, t0):
    """M8 as it is written, one anchor and one pair at a time."""
    batch = len(first)
    z = [v / np.linalg.norm(v) for v in np.concatenate([first, second]).astype(np.float64)]
    total = 0.0
    for a in range(2 * batch):
        denominator = sum(math.exp(z[a] @ z[q] / t) for q in range(2 * batch) if q != a)
        positives = [p for p in range(2 * batch) if p != a and mask[a % batch, p % batch]]
        total += -sum(math.log(math.exp(z[a] @ z[p] / t) / denominator) for p in positives) / len(positives)
    return t / t0 * total / (2 * batch)


@pytest.mark.parametrize("method", ["pcl", "gcl", "simclr"])
def test_loss_against_loops(method):
    torch.manual_seed(0)
    first, second = torch.randn(7, 5), torch.randn(7, 5)
    positions = torch.tensor([0.1, 0.2, 0.5, 0.55, 0.9, 1.0, 0.15])
    mask = positive_mask(method, positions, (positions * 4).long(), 0.2)
    expected = loss_by_loops(first.numpy(), second.numpy(), mask.numpy(), 0.5, 0.07)
    assert contrastive_loss(first, second, mask, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_loss_with_own_views_only_is_ntxent():
    """SimCLR's mask gives cross-entropy with the other view as the class, up to T / T0."""
    torch.manual_seed(1)
    first, second = torch.randn(6, 8), torch.randn(6, 8)
    z = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    logits = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, (torch.arange(12) + 6) % 12) * 0.1 / 0.07
    torch.testing.assert_close(contrastive_loss(first, second, instance_mask(6)), expected)


def test_loss_at_its_extremes():
    same = torch.ones(4, 3)
    everything = torch.ones(4, 4, dtype=torch.bool)
    # All embeddings alike: every pair has probability 1 / (2B - 1), whatever the mask says.
    for mask in (everything, instance_mask(4)):
        assert contrastive_loss(same, same, mask).item() == pytest.approx(math.log(7) / 0.7, rel=1e-5)
    # Two tight, opposite groups of two slices: three positives each, so the least value is log 3 times T / T0.
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    mask = partition_mask(torch.tensor([0, 0, 1, 1]))
    assert contrastive_loss(apart, apart, mask).item() == pytest.approx(math.log(3) / 0.7, abs=1e-4)


def test_loss_ignores_length_and_has_finite_gradients():
    torch.manual_seed(2)
    first, second = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    mask = position_mask(slice_positions(5), 0.35)
    loss = contrastive_loss(first, second, mask)
    torch.testing.assert_close(loss, contrastive_loss(7 * first, 0.1 * second, mask))
    loss.backward()
    assert first.grad.isfinite().all() and first.grad.abs().sum() > 0
    half = contrastive_loss(first.bfloat16(), second.bfloat16(), mask)
    assert half.dtype == torch.float32


# --- networks --------------------------------------------------------------------------------------------


def counted_encoder(f: int) -> int:
    widths = [1, f, 2 * f, 4 * f, 8 * f]
    levels = sum(9 * a * b + b + 9 * b * b + b + 4 * b for a, b in zip(widths, widths[1:]))
    return levels + 9 * 8 * f * 16 * f + 16 * f + 9 * (16 * f) ** 2 + 16 * f


@pytest.mark.parametrize("f", [32, 48])
def test_parameters_are_those_of_the_description(f):
    assert sum(p.numel() for p in Encoder(width=f).parameters()) == counted_encoder(f)
    head = 16 * f * 16 * f + 16 * f + 16 * f * 512 + 512
    assert sum(p.numel() for p in ContrastiveNet(width=f).parameters()) == counted_encoder(f) + head
    decoder = sum(4 * 2 * w * w + w + 9 * 2 * w * w + w + 9 * w * w + w + 4 * w for w in (8 * f, 4 * f, 2 * f, f))
    assert sum(p.numel() for p in UNet(classes=4, width=f).parameters()) == counted_encoder(f) + decoder + 4 * f


def test_initial_weights():
    torch.manual_seed(0)
    unet = UNet(width=16)
    assert unet.head.bias is None
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in unet.encoder.centre)
    for layer in unet.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3) and layer.weight.numel() > 5000:
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 1.0001 / fan_in), rel=0.05)
            assert not layer.bias.any()


def test_encoder_refuses_other_sizes():
    with pytest.raises(ValueError, match="16"):
        Encoder(width=2)(torch.zeros(1, 1, 40, 48))


def test_encoder_in_somebody_elses_unet():
    """Every level of MONAI's BasicUNet gives our features once our weights are in it."""
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    ours = ContrastiveNet(width=4, embedding=8)
    for _ in range(3):
        ours(torch.randn(4, 1, 32, 32))  # running statistics that are not the initial ones
    ours.eval()
    other = nets.BasicUNet(2, 1, 3, features=(4, 8, 16, 32, 64, 4), act=("leakyrelu", {"negative_slope": 0.01}),
                           norm=("batch", {}), dropout=0.0)  # fmt: skip
    assert len(copy_encoder(ours.encoder, other)) == 10 + 8
    other.eval()
    x = image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        for stage, expected in zip([other.conv_0, other.down_1, other.down_2, other.down_3], ours.encoder(image)):
            x = stage(x)
            torch.testing.assert_close(x, expected)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="shape"):
        copy_encoder(Encoder(width=8), other)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


# --- augmentation ----------------------------------------------------------------------------------------


def test_crop_or_pad():
    image = torch.arange(20.0).reshape(1, 4, 5)
    assert torch.equal(crop_or_pad(image, 2)[0], image[0, 1:3, 1:3])
    padded = crop_or_pad(image, 7)
    assert padded.shape == (1, 7, 7) and torch.equal(padded[0, 1:5, 1:6], image[0]) and padded.sum() == image.sum()
    corners = {float(crop_or_pad(image, 2, random=True)[0, 0, 0]) for _ in range(200)}
    assert corners == {float(image[0, y, x]) for y in range(3) for x in range(4)}


def drawn(count: int, size: int, **settings) -> dict[str, torch.Tensor]:
    views = [draw_view(size, **settings) for _ in range(count)]
    return {name: torch.stack([one[name] for one in views]) for name in views[0]}


def test_elastic_field_is_scipys_gaussian_of_the_noise():
    from scipy.ndimage import gaussian_filter

    torch.manual_seed(0)
    noise, sigma = torch.rand(3, 2, 40, 40) * 2 - 1, torch.tensor([1.3, 4.0, 7.7])
    for one, width, found in zip(noise, sigma, smooth(noise, sigma)):
        expected = [gaussian_filter(part.double().numpy(), float(width), mode="constant") for part in one]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def seen_as_released(image, matrix, strength, field, order):
    """One channel in the order of the released code (bf339fc), by SciPy's splines of that order.

    The patch is mirrored; then the mirror image is seen at scale * rotation * (x + field), x from its middle. Which
    axis was mirrored does not show: along both it is a half turn, so a mirrored view is taken as flipped along rows.
    """
    from scipy.ndimage import map_coordinates

    mirrored = np.linalg.det(matrix) < 0
    cos, sin = (np.diag([-1, 1]) @ matrix if mirrored else matrix)[:, 0]
    scale, angle = math.hypot(cos, sin), math.atan2(sin, cos)
    seen, size = image[::-1] if mirrored else image, len(image)
    places = np.zeros((2, size, size))
    for r in range(size):
        for c in range(size):
            y = r - (size - 1) / 2 + strength * field[0, r, c]
            x = c - (size - 1) / 2 + strength * field[1, r, c]
            places[0, r, c] = scale * (math.cos(angle) * y - math.sin(angle) * x) + (size - 1) / 2
            places[1, r, c] = scale * (math.sin(angle) * y + math.cos(angle) * x) + (size - 1) / 2
    return map_coordinates(seen, places, order=order, mode="constant")


def test_views_of_a_smooth_image_against_loops():
    """Cubic convolution and SciPy's cubic splines agree on a smooth image, away from its border."""
    torch.manual_seed(1)
    y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    image = np.exp(-(((y - 14) / 6) ** 2) - ((x - 18) / 5) ** 2)
    label = (image > 0.4).astype(np.int64)
    settings = drawn(6, 32, probability=1.0, alpha=(10, 34), sigma=(4.4, 5.3))
    seen, moved = view(
        torch.from_numpy(image).float().expand(6, 1, 32, 32), **settings,
        label=torch.from_numpy(label).expand(6, 32, 32),
    )  # fmt: skip
    fields = smooth(settings["noise"], settings["sigma"]).numpy()
    for number in range(6):
        matrix, strength = settings["matrix"][number].numpy(), float(settings["strength"][number])
        expected = seen_as_released(image, matrix, strength, fields[number], 3)
        np.testing.assert_allclose(seen[number, 0].numpy(), expected, atol=0.02)
        expected = seen_as_released(label, matrix, strength, fields[number], 0)
        assert (moved[number].numpy() == expected).mean() > 0.999


def test_views_scale_areas():
    y, x = torch.meshgrid(torch.arange(101.0) - 50, torch.arange(101.0) - 50, indexing="ij")
    disc = (y**2 + x**2 < 20**2).float()[None, None]
    for factor in (0.8, 1.0, 1.25):
        seen, _ = view(disc, **drawn(1, 101, probability=1.0, alpha=(0, 0), scale=(factor, factor)))
        assert seen.sum().item() == pytest.approx(disc.sum().item() / factor**2, rel=0.02)


def test_how_often_and_how_much_views_are_deformed():
    torch.manual_seed(0)
    settings = drawn(4000, 4)
    deformed = settings["strength"] > 0
    assert deformed.float().mean() == pytest.approx(0.67, abs=0.03)
    matrices = settings["matrix"][deformed]
    scale = matrices.det().abs().sqrt()
    assert 0.7 <= scale.min() < 0.71 and 1.29 < scale.max() <= 1.3 and scale.mean() == pytest.approx(1.0, abs=0.01)
    assert (matrices.det() < 0).float().mean() == pytest.approx(0.5, abs=0.04), "mirrored along one axis"
    angle = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])
    assert angle.mean() == pytest.approx(0, abs=0.15) and angle.std() == pytest.approx(2 * math.pi / 12**0.5, rel=0.05)
    strength, sigma = settings["strength"][deformed], settings["sigma"][deformed]
    assert 100 <= strength.min() < 103 and 347 < strength.max() <= 350
    assert 14 <= sigma.min() < 14.1 and 16.9 < sigma.max() <= 17


def test_views_that_are_not_deformed_are_mirror_images():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    mirrored = {tuple(image.flip(axes).flatten().tolist()) for axes in ((), (2,), (3,), (2, 3))}
    torch.manual_seed(0)
    seen, moved = view(
        image.expand(60, 1, 4, 4), **drawn(60, 4, probability=0.0), label=image[:, 0].long().expand(60, 4, 4)
    )
    assert {tuple(one.round().flatten().tolist()) for one in seen} == mirrored
    torch.testing.assert_close(seen[:, 0], moved.float(), atol=1e-3, rtol=0)


# --- data ------------------------------------------------------------------------------------------------


def oblique(spacing, reverse=False):
    """Affine of a short-axis stack (right, down, base to apex)."""
    from benchmarks.standins.pcl import short_axis_affine

    return short_axis_affine(np.random.default_rng(0), (6, 7, 5), spacing, 8.0, base_first=not reverse)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("flips", [(), (2,), (0, 1), (0, 1, 2)])
def test_orientation_does_not_depend_on_the_order_in_the_file(order, flips):
    """The same patient stored in another axis order and direction gives the same stack, and comes back."""
    voxels = np.random.default_rng(1).normal(size=(6, 7, 5)).astype(np.float32)
    affine = oblique(1.5)
    expected = orientation.to_stack(nifti.make_image(voxels, affine))
    moved, matrix = voxels, affine.copy()
    for axis in flips:
        matrix[:3, 3] += matrix[:3, axis] * (moved.shape[axis] - 1)
        matrix[:3, axis] *= -1
        moved = np.flip(moved, axis)
    moved = np.ascontiguousarray(moved.transpose(order))
    image = nifti.make_image(moved, matrix[:, [*order, 3]])
    stack = orientation.to_stack(image)
    np.testing.assert_array_equal(stack.data, expected.data)
    np.testing.assert_allclose(stack.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(resample.resample_to(stack, image).data, moved, atol=1e-5)
    cine = orientation.to_stack(nifti.make_image(np.stack([moved, -moved], -1), image.affine))
    np.testing.assert_array_equal(cine.data, np.stack([expected.data, -expected.data], -1))


def test_stack_runs_from_base_to_apex_as_displayed():
    voxels = np.zeros((6, 7, 5), np.float32)
    voxels[5, 0, 0] = 1  # right, top, base
    for reverse in (False, True):
        stored = voxels[:, :, ::-1] if reverse else voxels
        stack = orientation.to_stack(nifti.make_image(np.ascontiguousarray(stored), oblique(1.5, reverse))).data
        assert stack.shape == (5, 7, 6) and stack[0, 0, 5] == 1


def test_slice_axis():
    iso = np.diag([1.0, 1.0, 1.0, 1.0])
    coronal_file = np.eye(4)[[0, 2, 1, 3]]  # second axis of the file points to the head
    for affine, along, expected in (
        (np.diag([5.0, 1.2, 1.2, 1]), "third", 0), (iso, "third", 2), (iso, "superior", 2),
        (coronal_file, "superior", 1), (coronal_file, "third", 2),
    ):  # fmt: skip
        assert orientation.slice_axis(nifti.make_image(np.zeros((4, 4, 4)), affine), along) == expected


def write_ct(folder, stem_image, stem_label, labels, spacing=(2.0, 2.0, 3.0)):
    rng = np.random.default_rng(0)
    affine = np.diag([*spacing, 1.0])
    nifti.save(folder / stem_image, rng.normal(size=(20, 18, 6)).astype(np.float32), affine=affine)
    values = rng.choice(labels, size=(20, 18, 6)).astype(np.int16)
    nifti.save(folder / stem_label, values, affine=affine)
    return values


@pytest.mark.parametrize(
    "layout, image, label, values, spacing, classes",
    [
        ("chd", "ct_1001_image.nii.gz", "ct_1001_label.nii.gz", [0, 1, 7, 9], None, {0, 1, 7}),
        ("mmwhs", "ct_train_1_image.nii.gz", "ct_train_1_label.nii.gz", [0, 205, 500, 850, 421], 1.0, {0, 1, 3, 7}),
        ("hvsmr", "training_sa_crop_pat3.nii.gz", "training_sa_crop_pat3-label.nii.gz", [0, 1, 2], 0.7, {0, 1, 2}),
    ],
)  # fmt: skip
def test_layouts(tmp_path, layout, image, label, values, spacing, classes):
    write_ct(tmp_path, image, label, values)
    found, patients = layouts.find_patients(tmp_path)
    assert found.name == layout and len(patients) == 1
    (stack,) = pcl_data.read_labelled(patients, found, None)
    in_plane = 2.0 if spacing is None else spacing
    assert stack.spacing_mm == pytest.approx((3.0, in_plane, in_plane))
    assert stack.image.shape == stack.label.shape == (6, round(36 / in_plane), round(40 / in_plane))
    assert set(np.unique(stack.label).tolist()) == classes
    assert stack.image.mean() == pytest.approx(0, abs=1e-4) and stack.image.std() == pytest.approx(1, abs=1e-4)
    for missing, kept in ((label, image), (image, label)):
        (tmp_path / missing).rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match=f"{missing}|{kept} has no image"):
            layouts.find_patients(tmp_path, layout)
        (tmp_path / "elsewhere").rename(tmp_path / missing)


def test_labels_are_turned_with_their_image(smoke_data):
    """The bright blood lies where the labels say, in files stored base first and apex first alike."""
    layout, patients = layouts.find_patients(smoke_data("pcl"))
    assert layout.name == "acdc"
    orders = set()
    for patient in patients:
        affine = nifti.load(patient.volumes[0].image).affine
        orders.add(bool(affine[:3, 2] @ orientation.TO_APEX > 0))
        stack = pcl_data.read_labelled([patient], layout, None)[0]
        assert stack.image[stack.label == 3].mean() > stack.image[stack.label == 2].mean() + 0.5
        area = (stack.label > 0).sum((1, 2))
        middle = len(area) // 2
        assert area[:middle].sum() > area[-middle:].sum(), "base first: the heart is wider there"
    assert orders == {True, False}


def test_cine_frames_are_pretrained_on(smoke_data):
    layout, patients = layouts.find_patients(smoke_data("pcl"), "acdc")
    stacks = pcl_data.read_unlabelled(patients[:1], layout, 8.0)
    assert len(stacks) == 3, "the smoke cine has three phases"
    (frame, *_) = pcl_data.read_unlabelled(patients[:1], layout, 8.0, cine=False)
    np.testing.assert_allclose(frame.image, stacks[0].image, atol=1e-5)
    views = pcl_data.SliceViews(stacks, 32)
    assert len(views) == 3 * len(frame.image)
    item = views[len(frame.image) + 1]
    assert item["image"].shape == (1, 32, 32) and item["noise"].shape == (2, 2, 32, 32)
    assert not torch.equal(*item["matrix"])
    assert item["position"].item() == pytest.approx(2 / len(frame.image))


def test_split_and_draw():
    _, patients = None, [layouts.Patient(f"p{n}", ()) for n in range(20)]
    tested = []
    for fold in range(5):
        training, held_out = pcl_data.split_patients(patients, 5, fold)
        assert len(training) == 16 and not {p.name for p in training} & {p.name for p in held_out}
        tested += [p.name for p in held_out]
    assert sorted(tested) == sorted(p.name for p in patients)
    two, six = (pcl_data.draw_labelled(training, m, 0) for m in (2, 6))
    assert six[:2] == two and len(set(six)) == 6
    assert pcl_data.draw_labelled(training, 6, 1) != six
    with pytest.raises(InputError, match="17"):
        pcl_data.draw_labelled(training, 17, 0)


def test_mistakes_in_acdc_are_named(tmp_path, smoke_data):
    import shutil

    shutil.copytree(smoke_data("pcl") / "acdc", tmp_path / "acdc")
    folder = tmp_path / "acdc" / "patient001"
    (label,) = folder.glob("*_frame01_gt.nii.gz")
    layout, patients = layouts.find_patients(tmp_path)
    image = nifti.load(label)
    nifti.save(label, np.full(image.shape, 7, np.uint8), like=image)
    with pytest.raises(InputError, match="frame01_gt.*0 to 3"):
        pcl_data.read_labelled(patients[:1], layout, None)
    nifti.save(label, np.zeros(image.shape, np.uint8), like=image)
    with pytest.raises(InputError, match="frame01_gt.nii.gz is empty"):
        pcl_data.read_labelled(patients[:1], layout, None)
    nifti.save(label, np.ones(tuple(np.add(image.shape, 1)), np.uint8), affine=image.affine)
    with pytest.raises(InputError, match="frame01_gt.* voxels of .*patient001_frame01"):
        pcl_data.read_labelled(patients[:1], layout, None)
    moved = image.affine.copy()
    moved[:3, 3] += 0.2 * moved[:3, 0]  # a fifth of a voxel
    nifti.save(label, np.ones(image.shape, np.uint8), affine=moved)
    with pytest.raises(InputError, match="frame01_gt.*same affine"):
        pcl_data.read_labelled(patients[:1], layout, None)
    (folder / "Info.cfg").write_text("Group: NOR\n")
    with pytest.raises(InputError, match="Info.cfg has no frame number ED"):
        layouts.find_patients(tmp_path)
    (folder / "Info.cfg").unlink()
    with pytest.raises(InputError, match=r"patient001/Info.cfg"):
        layouts.find_patients(tmp_path)


def test_labels_stored_the_other_way_round_are_put_in_order(tmp_path, smoke_data):
    layout, patients = layouts.find_patients(smoke_data("pcl"), "acdc")
    volume = patients[0].volumes[0]
    before = pcl_data.read_volume(volume, layout, 8.0)
    label = nifti.load(volume.label)
    matrix = label.affine.copy()
    for axis in (0, 2):
        matrix[:3, 3] += matrix[:3, axis] * (label.shape[axis] - 1)
        matrix[:3, axis] *= -1
    nifti.save(tmp_path / "label.nii.gz", np.ascontiguousarray(label.data[::-1, :, ::-1]), affine=matrix)
    after = pcl_data.read_volume(layouts.Volume("a", "a", volume.image, tmp_path / "label.nii.gz"), layout, 8.0)
    np.testing.assert_array_equal(before.label, after.label)


def test_stacks_of_the_same_name_in_two_folders_are_two_patients(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(8, 8, 4)).astype(np.float32)
    for folder in ("a", "b"):
        nifti.save(tmp_path / folder / "heart.nii.gz", voxels, affine=np.diag([2.0, 2.0, 8.0, 1.0]))
    _, patients = layouts.find_patients(tmp_path, "stacks")
    assert [patient.name for patient in patients] == ["a/heart", "b/heart"]
    nifti.save(tmp_path / "a" / "heart.nii", voxels, affine=np.diag([2.0, 2.0, 8.0, 1.0]))
    with pytest.raises(InputError, match="a/heart.*2 times"):
        layouts.find_patients(tmp_path, "stacks")


# --- training and commands -------------------------------------------------------------------------------


def test_two_processes_share_one_contrastive_batch(smoke_data, tmp_path):
    from shared.training_log import read_log

    train_variant("pcl", "pretrain_pcl", smoke_data("pcl"), tmp_path / "one", batch_size=8)
    train_in_processes(2, "pcl", "pretrain_pcl", smoke_data("pcl"), tmp_path / "two", batch_size=8)
    one, two = (read_log(tmp_path / name / "log.csv")["loss"] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)


def test_batch_norm_sees_the_views_one_after_the_other(smoke_run):
    """As in the released code: two passes an update, so twice as many batches in the running statistics."""
    from shared.checkpoints import load_checkpoint

    content = load_checkpoint(smoke_run("pcl", "pretrain_pcl") / "checkpoint.pt")
    seen = [int(v) for name, v in content["models"][0].items() if name.endswith("num_batches_tracked")]
    assert set(seen) == {2 * content["step"]} and content["step"] > 0


def test_fine_tuning_starts_from_the_encoder_and_only_from_its_own(smoke_data, smoke_run, tmp_path):
    from papers.pcl.weights import load_encoder
    from shared.checkpoints import load_checkpoint

    pretrained = smoke_run("pcl", "pretrain_pcl") / "checkpoint.pt"
    train_variant(
        "pcl", "full", smoke_data("pcl"), tmp_path / "a", init=pretrained, finetune_lr=0.0, finetune_lr_end=0.0
    )
    weights = load_checkpoint(tmp_path / "a" / "checkpoint.pt")["models"][0]
    for name, value in load_encoder(pretrained).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(weights[f"encoder.{name}"], value, msg=name)
    for variant, init, expected in (
        ("full", None, "--init"),
        ("gcl_m2", pretrained, "'pcl'"),
        ("full", tmp_path / "a" / "checkpoint.pt", "fine-tuned"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=expected):
            train_variant("pcl", variant, smoke_data("pcl"), tmp_path / "b", init=init)


def test_best_weights_are_kept_and_evaluated(smoke_data, tmp_path):
    from shared.checkpoints import load_checkpoint

    train_variant("pcl", "random_m2", smoke_data("pcl"), tmp_path, select="best", validate_every=1, finetune_steps=6)
    content = load_checkpoint(tmp_path / "checkpoint.pt")
    best = content["objects"]["best"]
    assert 0 <= best["score"] <= 1 and best["weights"].keys() == content["models"][0].keys()
    pcl_eval.evaluate(smoke_data("pcl"), tmp_path / "checkpoint.pt", tmp_path, device="cpu")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert float(rows["fold"]["dice_fold"]) == pytest.approx(best["score"], abs=1e-6)
    assert rows["fold"]["dice"] == "" and rows["fold"]["position_error"] == ""


def test_dice_of_a_fold_is_not_the_mean_over_patients():
    class Copies(torch.nn.Module):
        """Predicts class 1 where the image is positive."""

        def forward(self, image):
            return torch.cat([torch.zeros_like(image), image], 1) * 100

    def stack(name, image, label):
        return pcl_data.Stack(name, name, np.float32(image), np.uint8(label), (8.0, 1.0, 1.0))

    right = np.ones((1, 20, 20))
    half = np.ones((2, 20, 20))
    half[1] = -1
    stacks = [stack("a", right, np.ones((1, 20, 20))), stack("b", half, np.ones((2, 20, 20)))]
    totals = scores.overlap(Copies(), stacks, "cpu", 1)
    assert [scores.dice_of(*totals[name])[0] for name in "ab"] == pytest.approx([1, 2 / 3])
    assert scores.fold_dice(Copies(), stacks, "cpu", 1) == pytest.approx(2 * 800 / (800 + 1200))


def test_atlas_copies_the_labels_of_its_height():
    """Of two stacks that agree at the base and not at the apex, on slices of other sizes than its own."""
    label = np.zeros((2, 4, 6, 6), np.uint8)
    label[:, 0, 2:4, 1:5] = 1
    label[0, 3, 2:4, 2:4] = 2
    stacks = [pcl_data.Stack("a", "a", np.float32(one), one, (8.0, 1.0, 1.0)) for one in label]
    atlas = Atlas(3, 4, heights=8)
    atlas.fill(stacks)
    found = scores.probabilities(atlas, np.zeros((4, 10, 8), np.float32), "cpu", "a")
    expected = np.zeros((4, 10, 8))
    expected[0, 4:6, 2:6] = 1  # the maps are four pixels wide
    np.testing.assert_array_equal(found.argmax(1).numpy(), expected)
    assert found[3, 2, 4, 3].item() == pytest.approx(0.5, abs=0.01)


def test_forest_is_scikit_learns_and_padding_does_not_change_it():
    from scipy.ndimage import gaussian_filter
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.normal(size=(3, 20, 32)), (0, 2, 2)).astype(np.float32) * 5
    label = np.where(image > 0.5, 3, np.where(np.arange(32) > 20, 1, 0)).astype(np.uint8)  # no pixel is of class 2
    forest = Forest(4, seed=5, trees=6, leaves=64)
    forest.fill([pcl_data.Stack("a", "a", image, label, (8.0, 5.0, 5.0))])
    x = pixel_features(image, [1.0, 2.0, 4.0])  # 5, 10 and 20 mm
    assert x.shape == (1920, 6) and x[33].tolist()[4:] == [-8.5, -14.5]
    np.testing.assert_allclose(x[:, 1].reshape(image.shape)[1], gaussian_filter(image[1], 1, mode="constant"))
    order = np.random.default_rng(5).permutation(len(x))
    grown = RandomForestClassifier(6, max_leaf_nodes=64, random_state=5).fit(x[order], label.reshape(-1)[order])
    expected = np.insert(grown.predict_proba(x), 2, 0, axis=1).reshape(*image.shape, 4)
    found = scores.probabilities(forest, image, "cpu", "a")  # 20 rows are padded to 32
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), (expected + 1e-3) / 1.004, atol=1e-5)
    assert (found.argmax(1).numpy() == label).mean() > 0.97


def test_position_probe_on_features_that_hold_the_position():
    class Encoder(torch.nn.Module):
        def forward(self, image):
            angle = image.mean((1, 2, 3)) * 1.5
            return [torch.stack([angle.cos(), angle.sin()], 1)[..., None, None]]

    class Model(torch.nn.Module):
        encoder = Encoder()

    def stacks(count, length):
        positions = slice_positions(length).numpy().astype(np.float32)
        image = np.broadcast_to(positions[:, None, None], (length, 16, 16)).copy()
        return [pcl_data.Stack("p", "p", image, None, (8.0, 1.0, 1.0))] * count

    errors = scores.position_errors(Model(), stacks(10, 10), stacks(1, 10), "cpu")
    assert errors.shape == (10,) and errors.max() < 1e-6


def test_expected_positives_against_drawn_batches():
    lengths, rng = [10, 9, 12], np.random.default_rng(0)
    positions = torch.cat([slice_positions(n) for n in lengths])
    parts = torch.cat([slice_partitions(n) for n in lengths])
    for method in ("pcl", "gcl", "simclr"):
        counts = []
        for _ in range(400):
            drawn = torch.from_numpy(rng.permutation(31)[:8])
            mask = positive_mask(method, positions[drawn], parts[drawn], 0.2)
            counts.append((mask.repeat(2, 2).sum().item() - 16) / 16)
        assert expected_positives(lengths, 8, method, 0.2) == pytest.approx(np.mean(counts), rel=0.04)


def test_commands_for_the_users_own_stacks(smoke_data, smoke_run, tmp_path, capsys):
    stacks = tmp_path / "stacks"
    for number, path in enumerate(sorted(smoke_data("pcl").glob("acdc/*/*_frame01.nii.gz"))):
        image = nifti.load(path)
        nifti.save(stacks / f"case{number}.nii.gz", image.data, like=image)
    pcl_eval.main(["pairs", "--data", str(stacks), "--batch-size", "8"])
    assert "15 stacks (stacks)" in capsys.readouterr().out
    train_variant("pcl", "pretrain_pcl", stacks, tmp_path / "run", layout="stacks")
    pcl_eval.main(
        ["export", "--checkpoint", str(tmp_path / "run" / "checkpoint.pt"), "--output", str(tmp_path / "encoder.pt")]
    )
    encoder = Encoder(width=2)
    encoder.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    with pytest.raises(InputError, match="no labels"):
        train_variant("pcl", "random_m2", stacks, tmp_path / "no", layout="stacks")
    with pytest.raises(SystemExit):
        pcl_eval.main(
            ["export", "--checkpoint", str(smoke_run("pcl") / "checkpoint.pt"), "--output", str(tmp_path / "x.pt")]
        )
    assert "fine-tuned" in capsys.readouterr().err and not (tmp_path / "x.pt").exists()


def test_apply_gives_labels_on_the_grid_of_the_input(smoke_data, smoke_run, tmp_path, monkeypatch):
    """Whatever the axis order of the file, a network that thresholds the image puts labels where it is bright."""

    class Threshold(torch.nn.Module):
        def forward(self, image):
            return torch.cat([torch.zeros_like(image), *[torch.full_like(image, -99)] * 2, (image - 1.0) * 50], 1)

    config, layout = pcl_eval.load_network(smoke_run("pcl") / "checkpoint.pt", "cpu")[1:]
    config.spacing_mm = 3.0
    monkeypatch.setattr(pcl_eval, "load_network", lambda *_: (Threshold(), config, layout))
    path = sorted(smoke_data("pcl").glob("acdc/*/*_4d.nii.gz"))[0]
    image = nifti.load(path)
    pcl_eval.apply(smoke_run("pcl") / "checkpoint.pt", path, tmp_path / "labels.nii.gz", device="cpu")
    labels = nifti.load(tmp_path / "labels.nii.gz")
    assert labels.shape == image.shape and np.allclose(labels.affine, image.affine)
    assert set(np.unique(labels.data).tolist()) == {0, 3}
    frame = image.data[..., 0].astype(float)
    bright = frame > frame.mean() + frame.std()
    assert ((labels.data[..., 0] == 3) == bright).mean() > 0.93


def test_figures(smoke_data, smoke_run, tmp_path):
    from matplotlib.image import imread

    run = smoke_run("pcl")
    pcl_eval.evaluate(smoke_data("pcl"), run / "checkpoint.pt", run, device="cpu")
    pcl_eval.curves(run, tmp_path / "curves.png")
    pcl_eval.embedding(smoke_data("pcl"), [run / "checkpoint.pt"], tmp_path / "tsne.png", device="cpu")
    for name in ("curves", "tsne"):
        assert imread(tmp_path / f"{name}.png").std() > 0.02
    with pytest.raises(InputError, match="no evaluated"):
        pcl_eval.curves(tmp_path / "run", tmp_path / "x.png")


# --- the stand-in ----------------------------------------------------------------------------------------


def test_standin_is_deterministic_and_complete(smoke_data, tmp_path):
    from benchmarks.standins.pcl import generate

    again = generate(tmp_path / "again", seed=0, size="smoke")
    for path in sorted(smoke_data("pcl").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(smoke_data("pcl"))).read_bytes(), path.name
    with pytest.raises(InputError, match="is there already"):
        generate(again, size="smoke")


def test_heart_contracts_as_hearts_do():
    """Stroke volumes, wall thickness and mass by group, from the labels of a fine stack."""
    from benchmarks.standins.heart import Grid, Heart, label

    fractions = {}
    for group in ("NOR", "DCM", "HCM"):
        heart = Heart.random(np.random.default_rng(3), group)
        grid = Grid((100, 100), 1.6, np.arange(-10, 125, 3.0), 3.0)
        diastole, systole = (label(heart, grid, c) for c in (0.0, 1.0))
        volume = 1.6**2 * 3 / 1000  # ml
        cavity = [(x == 3).sum() * volume for x in (diastole, systole)]
        muscle = [(x == 2).sum() * volume for x in (diastole, systole)]
        fractions[group] = 1 - cavity[1] / cavity[0]
        assert 60 < cavity[0] < 400 and 60 < muscle[0] < 330
        assert muscle[1] == pytest.approx(muscle[0], rel=0.3), "myocardium is not compressible"
        assert (diastole == 1).sum() > (systole == 1).sum() > 0
    assert 0.5 < fractions["NOR"] < 0.78 and fractions["DCM"] < 0.4 < fractions["HCM"]


def test_bssfp_signal_and_rician_noise():
    from benchmarks.standins.heart import acquire, bssfp_values

    values = bssfp_values(np.random.default_rng(0), variation=0, flip_degrees=50)
    assert values["blood"] > 1.8 * values["myocardium"] and values["fat"] > values["liver"] > values["lung"]
    noise = acquire(np.zeros((1, 64, 64), np.float32) + 1e-6, np.random.default_rng(0), noise=1e3, bias=0)
    # Without signal the magnitude is Rayleigh: mean over deviation is sqrt(pi / (4 - pi)).
    assert noise.mean() / noise.std() == pytest.approx(math.sqrt(math.pi / (4 - math.pi)), rel=0.05)
