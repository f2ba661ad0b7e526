"""dmDIP: k-space and networks against slow references written from the equations, the theorem of the replacement, fits,
and a user's own volumes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from papers.dmdip import data, eval, kspace, measures, model
from papers.dmdip.applied import weights_of_last
from papers.dmdip.train import PROFILES, VARIANTS, Config, train
from papers.dmdip.volume import read_sections, write_sections
from shared import nifti
from shared.cli import configure
from shared.errors import InputError

# --- k-space -----------------------------------------------------------------------------------------------


def slow_centre(image: np.ndarray, low: tuple[int, int]) -> dict[tuple[int, int], complex]:
    """Frequencies |k| < h / 2, |l| < w / 2 of an image by the sum that defines them, over the number of pixels."""
    height, width = image.shape
    found = {}
    for k in range(-height // 2, height // 2 + 1):
        for m in range(-width // 2, width // 2 + 1):
            if abs(k) < low[0] / 2 and abs(m) < low[1] / 2:
                rows, columns = np.arange(height)[:, None], np.arange(width)
                wave = np.exp(-2j * np.pi * (k * rows / height + m * columns / width))
                found[k, m] = (image * wave).sum() / image.size
    return found


def slow_image(frequencies: dict[tuple[int, int], complex], size: tuple[int, int]) -> np.ndarray:
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
    return sum(
        value * np.exp(2j * np.pi * (k * rows / size[0] + m * columns / size[1]))
        for (k, m), value in frequencies.items()
    )


@pytest.mark.parametrize(("size", "factor"), [((8, 12), 2), ((12, 8), 4), ((10, 6), 2), ((15, 9), 3)])
def test_the_downsampler_keeps_the_central_kspace(size, factor):
    """Even and odd sizes, even and odd low sizes; what comes out is real without a part being thrown away."""
    image = np.random.default_rng(0).random(size)
    low = (size[0] // factor, size[1] // factor)
    expected = slow_image(slow_centre(image, low), low)
    assert np.abs(expected.imag).max() < 1e-12
    found = kspace.downsample(torch.from_numpy(image), factor)
    np.testing.assert_allclose(found.numpy(), expected.real, atol=1e-12)
    upsampled = slow_image(slow_centre(expected.real, low), size)
    np.testing.assert_allclose(kspace.sinc(found, factor).numpy(), upsampled.real, atol=1e-12)
    np.testing.assert_allclose(kspace.downsample(kspace.sinc(found, factor), factor), found, atol=1e-12)


@pytest.mark.parametrize(("size", "factor"), [((16, 24), 2), ((16, 24), 4), ((15, 9), 3)])
def test_replacement_never_lowers_psnr(size, factor):
    """The theorem behind C2, to 1e-4 dB in float32, for guesses good and bad; the error that stays is the outer one."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, *size, generator=generator)
    low = kspace.downsample(truth, factor)
    for spread in (1e-3, 0.1, 10.0):
        guess = truth + spread * torch.randn(truth.shape, generator=generator)
        replaced = kspace.replace_centre(guess, low)
        before, after = (measures.trajectory_psnr(x[None], truth) for x in (guess, replaced))
        assert (after >= before - 1e-4).all() and (after > before).any()
        torch.testing.assert_close(kspace.downsample(replaced, factor), low, rtol=1e-4, atol=1e-5 * (1 + spread))
        error = (guess - truth)[0].double().numpy()
        inner = sum(abs(value) ** 2 for value in slow_centre(error, low.shape[-2:]).values())
        outer = (error**2).mean() - inner  # Parseval
        assert float((replaced - truth)[0].double().square().mean()) == pytest.approx(outer, rel=1e-4)


def test_replacement_in_the_loss_would_teach_nothing():
    truth = torch.rand(1, 1, 2, 16, 16)
    low = kspace.downsample(truth, 2)
    image = torch.rand(1, 1, 2, 16, 16, requires_grad=True)
    model.fidelity(kspace.replace_centre(image, low), low, 2).backward()
    assert image.grad.abs().max() < 1e-7
    image.grad = None
    model.fidelity(image, low, 2).backward()
    assert image.grad.abs().max() > 1e-5


def test_bicubic_lies_on_the_same_grid():
    """Sample n of the low image is sample r n of the high one; quadratics are met inside, as Keys' kernel does."""
    low = torch.rand(2, 6, 9)
    torch.testing.assert_close(kspace.bicubic(low, 4)[:, ::4, ::4], low)
    coarse, fine = torch.arange(8.0), torch.arange(0, 8, 0.25)
    parabola = coarse[:, None] ** 2 - coarse * coarse[:, None] + 2 * coarse
    expected = fine[:, None] ** 2 - fine * fine[:, None] + 2 * fine
    inside = slice(8, 20)
    torch.testing.assert_close(kspace.bicubic(parabola, 4)[inside, inside], expected[inside, inside])
    # On torch's grid, which is shifted by (r - 1) / 2 samples, its own bicubic gives the same at an odd factor.
    theirs = F.interpolate(low[None], scale_factor=3, mode="bicubic", antialias=True)[0]  # with Keys' own value
    torch.testing.assert_close(kspace.bicubic(low, 3)[:, 3:-5, 3:-5], theirs[:, 4:-4, 4:-4])


# --- networks ----------------------------------------------------------------------------------------------


def slow_skipnet(net: model.SkipNet, x: torch.Tensor) -> torch.Tensor:
    """Figure 1b and the released DIP's recipe, scale by scale, with plain functions. One pair."""

    def conv_bn_act(x, sequential, stride=1):
        convolution, normalisation, _ = sequential
        pad = convolution.weight.shape[-1] // 2
        x = F.pad(x, (pad,) * 4, mode="reflect") if pad else x
        x = F.conv2d(x, convolution.weight, convolution.bias, stride)
        return F.leaky_relu(bn(x, normalisation), 0.2)

    def bn(x, normalisation):
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        scale, shift = (p[None, :, None, None] for p in (normalisation.weight, normalisation.bias))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def at(depth, x):
        if depth == len(net.blocks):
            return x
        block = net.blocks[depth]
        skip = conv_bn_act(x, block.skip)
        deep = conv_bn_act(conv_bn_act(x, block.down[0], 2), block.down[1])
        deep = F.interpolate(at(depth + 1, deep), scale_factor=2, mode="bilinear")
        joined = bn(torch.cat([skip, deep], 1), block.norm)
        return conv_bn_act(conv_bn_act(joined, block.up[0]), block.up[1])

    last = net.head[0]
    return torch.sigmoid(F.conv2d(at(0, x), last.weight, last.bias))


def test_skipnet_against_a_slow_reference():
    torch.manual_seed(0)
    net = model.SkipNet(3, 1, width=6, skip=2, blocks=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.rand(1, 3, 16, 24)
    torch.testing.assert_close(net(x), slow_skipnet(net, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.train()(x), net.eval()(x))


def count(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_of_the_papers_networks():
    """The released DIP with 32 input channels and one output has as many; the three of dmDIP are put together of it."""
    with torch.device("meta"):
        assert count(model.SkipNet(32, 1, 128, 4, 5)) == RELEASED_DIP
        prior = model.DualModalDIP(32, 128, 4, 2, 6)
    assert [round(count(f) / 1e6, 2) for f in (prior.f1, prior.f2, prior.f3)] == [0.82, 2.79, 2.79]


RELEASED_DIP = 2217573


def chunk_of(grouped, single, number: int, pairs: int) -> None:
    """Give `single` the weights of one pair of `grouped`."""
    single.load_state_dict({name: value.chunk(pairs)[number] for name, value in grouped.state_dict().items()})


@pytest.mark.parametrize("kind", [model.DualModalDIP, model.Cascade])
def test_pairs_that_are_fitted_together_do_not_meet(kind):
    """Three pairs in one grouped network are three networks: the same images and, with Adam, the same updates.

    In float64, for Adam's first updates are as large where a gradient is nothing but rounding.
    """
    torch.manual_seed(0)
    pairs, low = 3, torch.rand(3, 2, 8, 8).double()
    z = 0.1 * torch.rand(1, pairs * 4, 16, 16).double()
    grouped = kind(4, 6, 2, 1, 2, pairs).double()
    singles = [kind(4, 6, 2, 1, 2).double() for _ in range(pairs)]
    for number, single in enumerate(singles):
        chunk_of(grouped, single, number, pairs)
    for networks, of in ((grouped, None), *((single, number) for number, single in enumerate(singles))):
        optimizer = torch.optim.Adam(networks.parameters(), lr=0.01)
        own = slice(None) if of is None else slice(of, of + 1)
        noise = z if of is None else z[:, 4 * of : 4 * of + 4]
        for _ in range(3):
            optimizer.zero_grad()
            model.fidelity(networks(noise), low[None, own], 2).backward()
            optimizer.step()
    together = grouped(z)
    assert together.shape == (1, pairs, 2, 16, 16)
    for number, single in enumerate(singles):
        apart = single(z[:, 4 * number : 4 * number + 4])
        torch.testing.assert_close(together[:, number], apart[:, 0], rtol=1e-5, atol=1e-6)


def test_the_arms_share_their_maps_and_the_loss_is_that_of_equation_2():
    torch.manual_seed(0)
    prior = model.DualModalDIP(4, 6, 2, 1, 2)
    z = torch.rand(1, 4, 16, 16)
    pair = prior(z)
    torch.testing.assert_close(pair[0, 0, 0], prior.f2(prior.f1(z))[0, 0])
    torch.testing.assert_close(pair[0, 0, 1], prior.f3(prior.f1(z))[0, 0])
    low = torch.rand(1, 1, 2, 4, 4)
    t1w, t2w = (((low[0, 0, k] - kspace.downsample(pair[0, 0, k], 4)) ** 2).mean() for k in (0, 1))
    torch.testing.assert_close(model.fidelity(pair, low, 4), t1w + t2w)
    alone = model.Cascade(4, 6, 2, 1, 2)(z)
    assert alone.shape == pair.shape and not torch.allclose(alone[:, :, 0], alone[:, :, 1])


# --- measures ----------------------------------------------------------------------------------------------


def test_summary_of_a_trajectory():
    values = torch.tensor([[20.0, 24, 26, 25, 23, 21, 22], [10.0, 11, 12, 13, 14, 15, 16]]).T
    found = measures.summary(values.double(), values.double() - 0.5, 4)  # the first 2 of 7 are early
    assert found["psnr"] == [22.0, 16.0, 19.0] and found["best"] == [26.0, 16.0, 21.0]
    assert found["fall"] == [4.0, 0.0, 2.0] and found["gain"] == pytest.approx([0.5] * 3)
    assert found["lowered"] == [0.0, 0.0, 0.0]
    worse = measures.summary(values.double(), values.double() + torch.tensor([[0.5, 0.0]]) * (values < 22.5), 4)
    assert worse["lowered"] == pytest.approx([3 / 7, 0.0, 1.5 / 7])
    assert found["early"][:2] == [22.0, 10.5] and found["late"][:2] == pytest.approx([23.4, 14.0])
    assert found["wobble"][0] == pytest.approx(np.std([25, 23, 21, 22]))


def test_psnr_takes_the_quantile_of_the_truth_as_its_peak():
    truth = torch.linspace(0, 100, 32 * 32).reshape(1, 32, 32)
    expected = 20 * np.log10(np.quantile(truth.numpy(), 0.999) / 5)
    assert measures.trajectory_psnr(truth[None] + 5, truth).item() == pytest.approx(expected, abs=1e-4)


# --- the stand-in ------------------------------------------------------------------------------------------


def test_contrast_turns_over_in_the_first_year():
    from benchmarks.standins.infant_slice import GREY, T1W, T2W, WHITE, relaxation, signal

    def ratio(months, sequence):
        return signal(*relaxation(WHITE, months), sequence) / signal(*relaxation(GREY, months), sequence)

    assert ratio(0.5, T1W) < 0.95 and ratio(12, T1W) > 1.1
    assert ratio(0.5, T2W) > 1.1 and ratio(12, T2W) < 0.95
    assert ratio(6, T1W) == pytest.approx(1, abs=0.05) and ratio(6, T2W) == pytest.approx(1, abs=0.05)


def who_knows_the_tissues(low: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """The tissues' shares of each pixel (K, r h, r w), fitted to the low image (h, w), with replacement."""
    factor = maps.shape[1] // low.shape[0]
    columns = kspace.downsample(maps, factor).flatten(1).T.double()
    weights = torch.linalg.lstsq(columns, low.flatten()[:, None].double()).solution[:, 0]
    return kspace.replace_centre(torch.einsum("k,khw->hw", weights.to(maps), maps), low)


def test_who_knows_the_anatomy_gains():
    """The mechanism of the paper: both contrasts are functions of one anatomy, which a prior can share."""
    from benchmarks.standins import infant_slice

    side, pixel, factor = 48, 2.8, 4
    rng = np.random.default_rng(5)
    infant = infant_slice.Infant.random(rng, 12)
    pair = infant_slice.section(infant, rng, -18.0, side, pixel)
    again = infant_slice.section(infant, np.random.default_rng(1), -18.0, side, pixel)
    assert np.abs(pair["T1w"] - again["T1w"]).mean() < 0.1 * pair["T1w"].mean()  # bias and noise only
    finer = infant_slice.FINER
    maps, _ = infant_slice.tissue_maps(infant, -18.0, finer * side, pixel / finer)
    shares = kspace.downsample(torch.from_numpy(np.stack(list(maps.values())).astype(np.float32)), finer)
    for image in pair.values():
        truth = torch.from_numpy(image)
        low = kspace.downsample(truth, factor)
        plain, knowing = (
            measures.trajectory_psnr(x[None, None], truth[None]).item()
            for x in (kspace.sinc(low, factor), who_knows_the_tissues(low, shares))
        )
        assert knowing > plain + 5


# --- data --------------------------------------------------------------------------------------------------


def write_session(root, number: int, shape=(20, 9, 22), affine=None, contrasts=data.CONTRASTS, seed=0):
    rng = np.random.default_rng([seed, number])
    folder = root / f"sub-{number:02d}" / "ses-030" / "anat"
    for contrast in contrasts:
        volume = np.zeros(shape, np.float32)
        volume[4:-4, 2:-2, 4:-4] = rng.uniform(50, 100, tuple(n - m for n, m in zip(shape, (8, 4, 8))))
        matrix = np.diag([2.0, 3.0, 2.0, 1.0]) if affine is None else affine
        nifti.save(folder / f"sub-{number:02d}_ses-030_{contrast}.nii.gz", volume, affine=matrix)
    return folder


def test_t2w_is_that_beside_t1w_whatever_the_order_of_names(tmp_path):
    """In the order of names "T1w" comes before "T1x_...", and "T2w" after it."""
    for name in ("sub-1_", "sub-1_T1x_"):
        for contrast in data.CONTRASTS:
            path = tmp_path / "sub-1" / "anat" / f"{name}{contrast}.nii.gz"
            nifti.save(path, np.ones((8, 3, 8), np.float32), affine=np.eye(4))
    assert [[path.name for path in pair] for pair in data.volumes_of(tmp_path)] == [
        [f"{name}{contrast}.nii.gz" for contrast in data.CONTRASTS] for name in ("sub-1_", "sub-1_T1x_")
    ]
    for contrast in data.CONTRASTS:
        path = tmp_path / "sub-2" / "anat" / f"sub-1_{contrast}.nii.gz"
        nifti.save(path, np.ones((8, 3, 8), np.float32), affine=np.eye(4))
    with pytest.raises(InputError, match="'sub-1_T1w.nii.gz' comes 2 times"):
        data.volumes_of(tmp_path)


def test_sections_are_coronal_whatever_the_order_of_the_voxels(tmp_path):
    import nibabel

    folder = write_session(tmp_path / "a", 1)
    pairs = data.read_pairs(tmp_path / "a", 2, 24, 2)
    again = data.read_pairs(tmp_path / "a", 2, 24, 2)
    assert [p.name for p in pairs] == [p.name for p in again] and len({p.name for p in pairs}) == 2
    assert pairs[0].high.shape == (2, 24, 24)
    index = int(pairs[0].name[-3:])
    stored = nifti.load(folder / "sub-01_ses-030_T1w.nii.gz").data
    np.testing.assert_array_equal(pairs[0].high[0, 1:-1, 2:-2], stored[:, index].T[::-1])
    for path in folder.iterdir():  # another order on disk, at the same places
        image = nibabel.load(path)
        nibabel.save(image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])), path)
    for one, other in zip(pairs, data.read_pairs(tmp_path / "a", 2, 24, 2)):
        torch.testing.assert_close(one.high, other.high)
    cropped = data.read_pairs(tmp_path / "a", 1, 16, 2)[0].high
    assert cropped.shape == (2, 16, 16) and cropped.min() >= 0


def test_what_is_wrong_with_a_data_set(tmp_path):
    with pytest.raises(InputError, match="absent"):
        data.read_pairs(tmp_path / "absent", 1, 16, 2)
    write_session(tmp_path / "one", 1, contrasts=("T1w",))
    with pytest.raises(InputError, match="sub-01_ses-030_T2w"):
        data.read_pairs(tmp_path / "one", 1, 16, 2)
    folder = write_session(tmp_path / "moved", 2)
    volume = nifti.load(folder / "sub-02_ses-030_T2w.nii.gz")
    nifti.save(folder / "sub-02_ses-030_T2w.nii.gz", volume.data, affine=volume.affine @ np.diag([-1, 1, 1, 1.0]))
    with pytest.raises(InputError, match="sub-02_ses-030_T2w"):
        data.read_pairs(tmp_path / "moved", 1, 16, 2)
    write_session(tmp_path / "few", 3)
    with pytest.raises(InputError, match="only 5 coronal sections"):
        data.read_pairs(tmp_path / "few", 6, 16, 2)
    with pytest.raises(InputError, match="divide --size"):
        data.read_pairs(tmp_path / "few", 1, 18, 4)
    folder = write_session(tmp_path / "dark", 4)
    nifti.save(folder / "sub-04_ses-030_T2w.nii.gz", np.zeros((20, 9, 22), np.float32), affine=np.diag([2, 3, 2, 1.0]))
    with pytest.raises(InputError, match="sub-04_ses-030_T2w.*no value above zero"):
        data.read_pairs(tmp_path / "dark", 1, 16, 2)


# --- fits --------------------------------------------------------------------------------------------------


def fitted(root, out, variant="full", **values):
    given = {"data": root, "out": out, "device": "cpu", "size": 16, **values}
    train(configure(Config, PROFILES, VARIANTS, "smoke", variant, **given))
    return out / "checkpoint.pt"


@pytest.fixture(scope="module")
def three_pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for number in (1, 2, 3):
        write_session(root, number)
    return root


def test_a_fit_gets_nearer_to_its_low_image_and_each_pair_is_fitted_anew(three_pairs, tmp_path):
    """Three pairs, two at a time: the incomplete group as well. With seed and pair alike, fits are alike."""
    from papers.dmdip.fitted import load_trajectory
    from shared.training_log import read_log

    values = {"steps": 60, "snapshots": 3, "factor": 2, "width": 8, "lr": 0.02}
    checkpoint = fitted(three_pairs, tmp_path / "run", **values)
    loss = read_log(tmp_path / "run" / "log.csv")["loss"]
    assert len(loss) == 120 and np.mean(loss[50:60]) < 0.5 * loss[0]
    assert loss[60] > 2 * np.mean(loss[50:60]), "the second group starts from weights of its own"
    pairs = data.read_pairs(three_pairs, 1, 16, 2)
    trajectory, _, _ = load_trajectory(checkpoint, lambda config: pairs)
    assert trajectory.images.shape == (3, 3, 2, 16, 16) and (trajectory.images > 0).all()
    low = data.low_resolution(pairs, 2)
    apart = [
        (kspace.downsample(trajectory.results(n, False, "x"), 2) - low[n]).square().mean((1, 2, 3)) for n in range(3)
    ]
    assert all(errors[-1] < errors[0] for errors in apart)
    replaced = trajectory.results(1, True, "x")
    torch.testing.assert_close(kspace.downsample(replaced, 2), low[1].expand(3, 2, 8, 8), rtol=1e-3, atol=1e-2)


def test_the_same_fits_without_replacement_and_of_other_images(three_pairs, tmp_path):
    import csv

    checkpoint = fitted(three_pairs, tmp_path / "full", factor=2)
    raw = fitted(three_pairs, tmp_path / "raw", "full_raw", factor=2, init=checkpoint)
    tables = []
    for path in (checkpoint, raw):
        eval.evaluate(three_pairs, path, path.parent, device="cpu")
        with (path.parent / "metrics.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert [row["case"] for row in tables[0]] == [row["case"] for row in tables[1]] and len(tables[0]) == 9
    for one, other in zip(*tables):
        assert float(one["psnr"]) >= float(other["psnr"]) - 1e-4
        assert float(one["gain"]) >= -1e-4 and float(other["gain"]) == 0
    with pytest.raises(InputError, match="variant 'full'"):
        fitted(three_pairs, tmp_path / "none", "full_raw", factor=2)
    for number in (1, 2, 3):
        write_session(tmp_path / "other", number, seed=1)
    with pytest.raises(InputError, match="sub-01_ses-030_T1w.*another image"):
        eval.evaluate(tmp_path / "other", checkpoint, tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match="other images"):
        fitted(tmp_path / "other", tmp_path / "x", "full_raw", factor=2, init=checkpoint)
    eval.curves(three_pairs, [checkpoint], tmp_path / "curves.png", device="cpu")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_images_too_small_for_the_blocks_and_settings_that_fit_nothing(three_pairs, tmp_path):
    with pytest.raises(InputError, match="--arm-blocks"):
        fitted(three_pairs, tmp_path / "a", arm_blocks=4)
    with pytest.raises(InputError, match="--snapshots"):
        fitted(three_pairs, tmp_path / "a", snapshots=5)
    with pytest.raises(InputError, match="--together"):
        fitted(three_pairs, tmp_path / "a", together=0)


# --- a user's own volume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["coronal", "axial", "sagittal"])
def test_voxels_stay_where_they_are(tmp_path, plane):
    """An oblique volume in another order: each old voxel is found in the finer volume at its place in the world."""
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (-2.0, 3.0, 2.5)
    affine[:3, 3] = (30, -20, 10)
    volume = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32)
    nifti.save(tmp_path / "a.nii.gz", volume, affine=affine)
    sections = read_sections(tmp_path / "a.nii.gz", plane)
    fine = kspace.bicubic(sections.tensor(), 2)  # keeps old samples as they are
    write_sections(tmp_path / "b.nii.gz", sections, fine, 2)
    result = nifti.load(tmp_path / "b.nii.gz")
    assert sorted(result.shape) == sorted(n * (1 if k == sections.axis else 2) for k, n in enumerate(volume.shape))
    inverse = np.linalg.inv(result.affine)
    for index in np.random.default_rng(1).integers(0, (8, 9, 10), (40, 3)):
        place = inverse @ affine @ [*index, 1]
        found = np.round(place[:3]).astype(int)
        np.testing.assert_allclose(place[:3], found, atol=1e-3)
        assert result.data[tuple(found)] == pytest.approx(volume[tuple(index)], abs=1e-5)


def small_volumes(folder, shape=(16, 3, 16)):
    rng = np.random.default_rng(3)
    for name in ("t1", "t2"):
        volume = np.zeros(shape, np.float32)
        volume[3:-3, :2, 3:-3] = rng.uniform(0.5, 1, (shape[0] - 6, 2, shape[2] - 6))
        nifti.save(folder / f"{name}.nii.gz", volume, affine=np.diag([2.0, 4.0, 2.0, 1.0]))
    return folder / "t1.nii.gz", folder / "t2.nii.gz"


def test_apply_and_replacement_alone(tmp_path, three_pairs):
    t1, t2 = small_volumes(tmp_path)
    outputs = [tmp_path / name for name in ("one.nii.gz", "two.nii.gz", "single.nii.gz", "raw.nii.gz", "kr.nii.gz")]
    eval.apply(t1, outputs[0], t2, outputs[1], profile="smoke", device="cpu")
    eval.apply(t1, outputs[2], profile="smoke", device="cpu")
    for given, path in zip((t1, t2, t1), outputs):
        fine, low = nifti.load(path), nifti.load(given)
        assert fine.shape == (32, 3, 32) and fine.spacing == pytest.approx((1, 4, 1))
        for section in range(3):
            found = kspace.downsample(torch.from_numpy(fine.data[:, section].copy()), 2)
            expected = kspace.downsample(kspace.sinc(torch.from_numpy(low.data[:, section].copy()), 2), 2)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert np.abs(fine.data[:, 2]).max() < 1e-6, "an empty section stays empty"
    eval.apply(t1, outputs[3], profile="smoke", replacement=False, device="cpu")
    eval.replace(outputs[3], t1, outputs[4])
    np.testing.assert_allclose(nifti.load(outputs[4]).data, nifti.load(outputs[2]).data, atol=1e-5)
    with pytest.raises(InputError, match="whole multiple"):
        eval.replace(t1, outputs[3], tmp_path / "x.nii.gz")
    fine = nifti.load(outputs[3])
    for apart in ([-0.5, 0, -0.5], [30, 0, 0]):  # outer corners on each other; another place
        moved = fine.affine.copy()
        moved[:3, 3] += apart
        nifti.save(tmp_path / "elsewhere.nii.gz", fine.data, affine=moved)
        with pytest.raises(InputError, match="elsewhere.nii.gz does not lie on .*t1.nii.gz"):
            eval.replace(tmp_path / "elsewhere.nii.gz", t1, tmp_path / "x.nii.gz")
    flipped = fine.affine @ np.diag([-1, 1, 1, 1.0])  # another order on disk, at the same places
    flipped[:3, 3] += fine.affine[:3, 0] * (fine.shape[0] - 1)
    nifti.save(tmp_path / "flipped.nii.gz", fine.data[::-1].copy(), affine=flipped)
    eval.replace(tmp_path / "flipped.nii.gz", t1, tmp_path / "same.nii.gz")
    np.testing.assert_array_equal(nifti.load(tmp_path / "same.nii.gz").data, nifti.load(outputs[4]).data)
    with pytest.raises(InputError, match="needs --second"):
        eval.apply(t1, tmp_path / "x.nii.gz", second_output=tmp_path / "y.nii.gz", profile="smoke", device="cpu")
    checkpoint = fitted(three_pairs, tmp_path / "run", factor=2)
    eval.apply(t1, tmp_path / "warm.nii.gz", t2, checkpoint=checkpoint, steps=1, device="cpu")
    assert nifti.load(tmp_path / "warm.nii.gz").shape == (32, 3, 32)
    with pytest.raises(InputError, match="give --second"):
        eval.apply(t1, tmp_path / "x.nii.gz", checkpoint=checkpoint, device="cpu")
    nifti.save(tmp_path / "moved.nii.gz", nifti.load(t2).data, affine=np.diag([2.0, 4.0, 2.5, 1.0]))
    with pytest.raises(InputError, match="moved.nii.gz"):
        eval.apply(t1, tmp_path / "x.nii.gz", tmp_path / "moved.nii.gz", profile="smoke", device="cpu")
    assert not (tmp_path / "x.nii.gz").exists()


def test_weights_to_start_from_are_those_of_the_last_pair(three_pairs, tmp_path):
    from shared.checkpoints import load_checkpoint, load_config

    checkpoint = fitted(three_pairs, tmp_path / "run", factor=2)
    content = load_checkpoint(checkpoint)
    config = load_config(content, Config, checkpoint)
    repeated = weights_of_last(checkpoint, config, 3)
    for name, value in content["models"][0].items():
        for part in repeated[name].chunk(3):
            assert torch.equal(part, value.chunk(2)[1]), name
