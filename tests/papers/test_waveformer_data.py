"""WaveFormer's data, scores, files and simulators."""

import math

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.standins import abdomen_ct, skin_lesion
from benchmarks.standins import waveformer as standin
from papers.waveformer import augmentation, btcv, data, scan, scores
from papers.waveformer import eval as evaluation
from papers.waveformer import train as training
from shared import nifti
from shared.cli import configure
from shared.errors import InputError


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return standin.generate(tmp_path_factory.mktemp("standin") / "waveformer", seed=3, size="smoke")


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
    assert found["dice"][:3] == pytest.approx([100 / 3, 0, 0]) and math.isnan(found["dice"][3])
    assert found["hd95_mm"][0] == pytest.approx(1.0) and all(math.isnan(value) for value in found["hd95_mm"][1:])
    assert found["missed"] == [0, 1, 1, 0]
    row = scores.score_volume(prediction, truth, (5.0, 1.0, 0.5), ("a", "b", "c", "d"))
    assert row["dice"] == pytest.approx(100 / 9) and row["hd95_mm"] == pytest.approx(1.0) and row["missed"] == 2
    assert row["dice_c"] == 0 and math.isnan(row["dice_d"])


# --- data --------------------------------------------------------------------------------------------------


def test_image_and_label_are_augmented_alike():
    torch.manual_seed(0)
    image = torch.zeros(3, 40, 40) - 1
    label = torch.zeros(40, 40, dtype=torch.uint8)
    image[:, 12:26, 8:30], label[12:26, 8:30] = 1.0, 3
    for name in augmentation.GEOMETRIC:
        moved = 0
        for _ in range(12):
            new_image, new_label = augmentation.augment(image, label, [name], 1)
            assert set(new_label.unique().tolist()) <= {0, 3} and new_label.dtype == torch.uint8
            agreement = ((new_image[0] > 0) == (new_label == 3)).float().mean()
            assert agreement > 0.97, name
            moved += int(not torch.equal(new_label, label))
        assert 0 < moved < 12, name  # none of the allowed ones is drawn half of the time
    for name in ("noise", "contrast"):
        changed = [augmentation.augment(image, label, [name], 1) for _ in range(12)]
        assert all(torch.equal(new_label, label) for _, new_label in changed)
        assert any(not torch.equal(new_image, image) for new_image, _ in changed)
    with pytest.raises(ValueError, match="unknown"):
        augmentation.augment(image, label, ["twist"])


def test_strengths_of_the_augmentations():
    """Ranges of the released list; what happens to a corner of the image says how strong each is."""
    torch.manual_seed(0)
    maps = {name: torch.stack([augmentation.affine(name) for _ in range(400)]) for name in augmentation.GEOMETRIC}
    flips = maps["flip_ud"][:, 1, 1]
    assert set(flips.tolist()) == {-1, 1} and 0.4 < (flips < 0).float().mean() < 0.6
    assert (maps["flip_ud"][:, 0, 0] == 1).all() and (maps["flip_lr"][:, 1, 1] == 1).all()
    scales = 1 / maps["scale"].diagonal(dim1=1, dim2=2)[:, :2]
    assert (
        0.5 <= scales.min() < 0.55
        and 1.95 < scales.max() <= 2
        and scales.mean().item() == pytest.approx(1.25, abs=0.05)
    )
    assert abs(torch.corrcoef(scales.T)[0, 1].item()) < 0.2  # each direction by itself
    angles = torch.rad2deg(torch.atan2(maps["rotate"][:, 1, 0], maps["rotate"][:, 0, 0]))
    assert 36 < angles.abs().max() <= 40.001 and torch.linalg.det(maps["rotate"]).allclose(torch.ones(400))
    shear = torch.rad2deg(maps["shear"][:, 0, 1].atan())
    assert 14 < shear.abs().max() <= 16.001
    shift = maps["translate"][:, :2, 2] / 2  # the image is 2 wide
    assert 0.18 < shift.abs().max() <= 0.2
    image = torch.rand(3, 64, 64) - 0.5
    label = torch.zeros(64, 64, dtype=torch.uint8)
    outcomes = {
        name: [augmentation.augment(image, label, [name], 1)[0] for _ in range(60)] for name in ("contrast", "noise")
    }
    factors = torch.stack([((new + 1) / (image + 1)).mean() for new in outcomes["contrast"]])
    assert 0.5 <= factors.min() < 0.6 and 1.4 < factors.max() <= 1.5  # about the lowest value
    added = max((new - image).std().item() for new in outcomes["noise"])
    assert added == pytest.approx(0.01, rel=0.05)  # 0.005 of the range of 2


def test_counts_are_those_of_a_draw_of_none_to_four():
    torch.manual_seed(0)
    image, label = torch.rand(3, 8, 8), torch.zeros(8, 8, dtype=torch.uint8)
    draws = [augmentation.augment(image, label, augmentation.ALL, 4)[0] for _ in range(400)]
    same = sum(torch.allclose(new, image, atol=1e-5) for new in draws)
    # none in a fifth of the draws; of single ones, a flip changes nothing half of the time, and neither does blur
    assert 0.18 < same / 400 < 0.3


def test_blur_is_a_gaussian():
    image = torch.zeros(1, 21, 21)
    image[0, 10, 10] = 1
    found = augmentation.blurred(image, 1.5)[0]
    y, x = torch.meshgrid(torch.arange(-10.0, 11), torch.arange(-10.0, 11), indexing="ij")
    expected = torch.exp(-(x**2 + y**2) / (2 * 1.5**2))
    torch.testing.assert_close(found, expected / expected.sum(), atol=2e-3, rtol=0)
    torch.testing.assert_close(augmentation.blurred(torch.ones(3, 9, 9), 2.0), torch.ones(3, 9, 9))
    torch.manual_seed(0)
    slice_ = torch.rand(3, 512, 512)
    ratios = [augmentation.augment(slice_, slice_[0].byte(), ["blur"], 1)[0].std() / slice_.std() for _ in range(6)]
    assert min(ratios).item() == pytest.approx(1 / math.sqrt(4 * math.pi), abs=0.02)  # white noise, sigma of a pixel


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
    (tmp_path / "train.txt").write_text("../../case0005_slice000\n", "utf-8")
    with pytest.raises(InputError, match="not inside this folder"):
        data.find_synapse(tmp_path, "train")


def test_a_case_is_for_training_or_for_tests(tmp_path):
    for folder, name in (("train_npz", "case0005_slice000.npz"), ("test_vol_h5", "case0005.npy.h5")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    with pytest.raises(InputError, match="'case0005' is in both"):
        data.find_synapse(tmp_path, "test")


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.full((4, 4), 300.0), np.zeros((4, 4)), "expected 0 to 1"),
        (np.zeros((4, 4)), np.full((4, 4), 9.0), "'label' holds 9, expected values from 0 to 8"),
        (np.zeros((4, 4)), np.zeros((4, 5)), "must agree"),
        (np.full((4, 4), np.nan), np.zeros((4, 4)), "NaN"),
        (np.zeros(4), np.zeros(4), "expected 2"),
    ],
)
def test_broken_slices_are_named(image, label, message, tmp_path):
    path = tmp_path / "case0005_slice000.npz"
    np.savez(path, image=image, label=label)
    with pytest.raises(InputError, match=message) as error:
        data.read_slice(path)
    assert "case0005_slice000.npz" in str(error.value)


def test_isic_split_is_that_of_the_protocol(tmp_path):
    for folder, ending in ((data.PHOTOS, ".jpg"), (data.MASKS, "_segmentation.png")):
        (tmp_path / folder).mkdir()
        for number in range(2594):
            (tmp_path / folder / f"ISIC_{number:07d}{ending}").touch()
    sizes = [len(data.find_isic(tmp_path, split)) for split in ("train", "valid", "test")]
    assert sizes == [1815, 259, 520]
    first = data.find_isic(tmp_path, "test")[0]
    with pytest.raises(InputError, match="ISIC_0002074.jpg"):
        data.read_photo_and_mask(first)
    (tmp_path / data.PHOTOS / "ISIC_0000003.png").touch()
    with pytest.raises(InputError, match="'ISIC_0000003' comes 2 times"):
        data.find_isic(tmp_path, "test")
    (tmp_path / data.PHOTOS / "ISIC_0000003.png").unlink()
    (tmp_path / data.PHOTOS / "ISIC_0000007.jpg").unlink()
    with pytest.raises(InputError, match="the photograph of .*ISIC_0000007_segmentation.png is missing"):
        data.find_isic(tmp_path, "test")


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
    assert mask.shape == np.asarray(Image.open(photo)).shape[:2] and set(np.unique(mask)) <= {0, 255}
    with pytest.raises(InputError, match=".png"):
        evaluation.apply(tmp_path / "checkpoint.pt", photo, tmp_path / "mask.nii.gz", device="cpu")
    evaluation.panel(smoke, [tmp_path / "checkpoint.pt"], tmp_path / "panel.png", device="cpu")
    assert (tmp_path / "panel.png").stat().st_size > 5000


class Threshold(nn.Module):
    """Stands for a network: everything brighter than 0 is liver (5)."""

    def forward(self, image, look=None):
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
    monkeypatch.setattr(evaluation, "load_network", lambda *_: (Threshold(), config))
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
    path = next(iter(sorted((smoke / "RawData/Training/img").glob("*.nii.gz"))))
    stored, images = scan.read_scan(path, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(images, volume.images, atol=1e-6)
    assert volume.spacing == pytest.approx((stored.spacing[2], *stored.spacing[:2]))
    of_volume, same = scan.read_scan(data.find_synapse(smoke, "test")[0], (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(same, volume.images)
    assert of_volume.spacing == pytest.approx(stored.spacing)
    array = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(scan.from_ras(scan.from_ras(array), back=True), array)


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
    with pytest.raises(InputError, match="is there already"):
        btcv.prepare_btcv(raw, tmp_path / "out")


def test_labels_of_btcv_lie_on_their_scans(tmp_path):
    """Stored mirrored with the affine that says so: the same files. Moved, or of another size: refused."""
    rng = np.random.default_rng(0)
    hu, labels = rng.integers(-200, 300, (6, 5, 3)).astype(np.int16), rng.integers(0, 14, (6, 5, 3)).astype(np.uint8)
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    mirrored = np.diag([-0.8, 0.8, 3.0, 1.0])
    mirrored[0, 3] = 0.8 * 5
    moved = affine.copy()
    moved[0, 3] = 2.0
    whole = {"as it is": (labels, affine), "stored mirrored": (labels[::-1], mirrored)}
    for name, (stored, place) in whole.items():
        raw = tmp_path / name
        nifti.save(raw / "img" / "img0001.nii.gz", hu, affine=affine)
        nifti.save(raw / "label" / "label0001.nii.gz", stored, affine=place)
        btcv.prepare_btcv(raw, tmp_path / f"{name}, prepared")
    one, two = (data.test_cases(tmp_path / f"{name}, prepared", "synapse")[0]() for name in whole)
    np.testing.assert_array_equal(one.label, two.label)
    np.testing.assert_array_equal(one.images, two.images)
    for number, (stored, place) in enumerate(((labels, mirrored), (labels, moved), (labels[:-1], affine))):
        nifti.save(raw / "label" / "label0001.nii.gz", stored, affine=place)
        if number == 0:  # a label that says that it lies mirrored is taken at its word
            btcv.prepare_btcv(raw, tmp_path / "mirrored")
            third = data.test_cases(tmp_path / "mirrored", "synapse")[0]()
            assert not np.array_equal(one.label, third.label)
            continue
        with pytest.raises(InputError, match="label0001.nii.gz does not lie on the voxels of"):
            btcv.prepare_btcv(raw, tmp_path / f"broken {number}")
        assert not (tmp_path / f"broken {number}").exists()
    (raw / "img" / "img0001.nii.gz").rename(raw / "img" / "img0002.nii.gz")
    with pytest.raises(InputError, match="its scan img/img0001.nii.gz is missing"):
        btcv.prepare_btcv(raw, tmp_path / "lonely")


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
    with pytest.raises(InputError, match="is there already"):
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
        ({"unet_width": 0}, "1 or more"),
        ({"dims": (24, 8, 8), "heads": (2, 2, 2), "decoder_heads": (2, 2)}, "must divide"),
        ({"augmentations": ("twist",)}, "choose from"),
    ],
)
def test_settings_that_can_t_work_are_one_sentence(settings, message, tmp_path):
    modules = (training.Config, training.PROFILES, training.VARIANTS)
    config = configure(*modules, "smoke", "full", data=tmp_path, out=tmp_path, **settings)
    with pytest.raises(InputError, match=message):
        training.build_model(config)
