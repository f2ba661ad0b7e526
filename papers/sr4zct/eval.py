"""Evaluate per image, draw panel and heat-map, and make a user's own CT isotropic.

python -m papers.sr4zct.eval apply --input scan.nii.gz --thickness 5 --output isotropic.nii.gz
python -m papers.sr4zct.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.sr4zct.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.sr4zct.eval heatmap --runs runs/sr4zct/standin-cpu --out heatmap.png
"""

import math
import tempfile
import warnings
from pathlib import Path
from typing import Literal

from shared.cli import commands
from shared.errors import InputError

VIEWS = ("cor", "sag")


def load_networks(checkpoint: Path, device):
    """The trained networks of a checkpoint, (setting, volume or view) -> network, and its configuration.

    Raises:
        InputError: no checkpoint of this paper.
    """
    from papers.sr4zct.train import Config, build_model, networks_of
    from shared.checkpoints import load_checkpoint, load_config

    content = load_checkpoint(checkpoint, "sr4zct")
    config = load_config(content, Config, checkpoint)
    networks = {}
    for name, state in zip(networks_of(config), content["models"], strict=True):
        network = build_model(config)
        network.load_state_dict(state)
        networks[name] = network.to(device).eval()
    return networks, config


def through_plane(volume, view: str):
    """Coronal (Y, Z, X) or sagittal (X, Z, Y) images of a volume (X, Y, Z)."""
    return volume.permute((1, 2, 0) if view == "cor" else (0, 2, 1))


def central_area(reference, geometry, rows: int):
    """Where the metrics are computed: the body's box in x and y; in z without ⌈r^z / r^xy⌉ rows at either end."""
    from papers.sr4zct.data import body_box

    border = math.ceil(geometry.thickness / geometry.pixel)
    return (*body_box(reference), slice(border, rows - border))


def measure(images, truth, data_range: float) -> list[dict[str, float]]:
    """PSNR in dB and SSIM of each image, (N, H, W) in HU."""
    from shared.metrics import psnr
    from shared.similarity import ssim

    images, truth = images.cpu(), truth.cpu()
    values = zip(
        psnr(images, truth, data_range=data_range).tolist(), ssim(images, truth, data_range=data_range).tolist()
    )
    return [{"psnr": decibels, "ssim": similarity} for decibels, similarity in values]


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row per through-plane image with PSNR [dB] and SSIM, named setting/view/volume/position.

    The view "merged" is the mean of the coronal-wise and sagittal-wise results, seen coronally. Rows "slope/..." hold
    the least-squares slope of an image's PSNR over the thicknesses of table 1, dB per pixel (1 mm in the paper). The
    data range is maximum minus minimum of the reference volume.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.sr4zct.data import parse_setting, read_thin_volume
    from papers.sr4zct.model import enhance_images, enhance_volume
    from papers.sr4zct.scaling import upscale
    from papers.sr4zct.train import settings_of
    from shared.files import write_csv
    from shared.gpu import choose_device

    where = choose_device(device)
    networks, config = load_networks(checkpoint, where)
    rows = []
    for name in config.test_volumes:
        volume = read_thin_volume(data, name, config.pixel)
        reference = volume.reference()
        data_range = float(reference.max() - reference.min())
        for setting in settings_of(config):
            geometry = parse_setting(setting, config.pixel)
            blurred = upscale(volume.acquire(geometry), geometry)
            height = min(blurred.shape[2], reference.shape[2])
            blurred = blurred[..., :height].to(where)
            box = central_area(reference, geometry, height)
            results = {}
            for view in VIEWS:
                network = networks.get((setting, view if config.method == "supervised" else name))
                across = box[1] if view == "cor" else box[0]  # which images
                positions = range(across.start + config.image_step // 2, across.stop, config.image_step)
                images = through_plane(blurred, view)[list(positions)]
                results[view] = images if network is None else enhance_images(network, images), positions
            if config.merge:
                network = networks[setting, name]
                merged = sum(enhance_volume(network, blurred, view) for view in VIEWS) / 2
                results["merged"] = through_plane(merged, "cor")[list(results["cor"][1])], results["cor"][1]
            for view, (images, positions) in results.items():
                truth = through_plane(reference, "sag" if view == "sag" else "cor")[list(positions)]
                part = (slice(None), box[2], box[1] if view == "sag" else box[0])
                label = setting.replace("/", "-")
                for position, values in zip(positions, measure(images[part], truth[part], data_range)):
                    rows.append({"case": f"{label}/{view}/{name}/{position:03d}", **values, "slope": ""})
    rows += slopes(rows)

    write_csv(Path(out) / "metrics.csv", rows)


def slopes(rows: list[dict]) -> list[dict]:
    """Rows with the slope of PSNR over thickness, for each image that has the first and the last one of table 1."""
    import numpy as np

    from papers.sr4zct.train import TABLE_1

    thickness = {setting.replace("/", "-"): float(setting.split("/")[0]) for setting in TABLE_1}
    images: dict[str, dict[float, float]] = {}
    for row in rows:
        setting, _, image = row["case"].partition("/")
        if setting in thickness:
            images.setdefault(image, {})[thickness[setting]] = row["psnr"]
    ends = {min(thickness.values()), max(thickness.values())}
    return [
        {"case": f"slope/{image}", "psnr": "", "ssim": "", "slope": np.polyfit(list(by), list(by.values()), 1)[0]}
        for image, by in images.items()
        if ends <= set(by)
    ]


def panel(
    data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0, setting: str = ""
) -> None:
    """Draw a coronal and a sagittal image of one test volume: interpolated, each checkpoint's result, truth.

    Below each is the difference from the truth, ±200 HU.

    Args:
        data: the data set.
        checkpoints: one column each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test volume.
        setting: thickness/overlap in pixels; default: the thickest that all checkpoints know.
    """
    import torch

    from papers.sr4zct.data import parse_setting, read_thin_volume
    from papers.sr4zct.model import enhance_images
    from papers.sr4zct.scaling import upscale
    from papers.sr4zct.train import settings_of
    from shared.figures import pyplot, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    loaded = [load_networks(path, where) for path in checkpoints]
    config = loaded[0][1]
    shared = [one for one in settings_of(config) if all(one in settings_of(other) for _, other in loaded)]
    if setting and setting not in shared or not shared:
        raise InputError(f"the checkpoints have the settings {', '.join(shared) or 'none'} in common, not '{setting}'")
    setting = setting or max(shared, key=lambda text: float(text.split("/")[0]))
    if not 0 <= case < len(config.test_volumes):
        raise InputError(f"there is no test volume number {case}: {checkpoints[0]} has {len(config.test_volumes)}")
    name, geometry = config.test_volumes[case], parse_setting(setting, config.pixel)
    volume = read_thin_volume(data, name, config.pixel)
    reference = volume.reference()
    blurred = upscale(volume.acquire(geometry), geometry)
    height = min(blurred.shape[2], reference.shape[2])
    box = central_area(reference, geometry, height)
    size = (2.5 * (len(checkpoints) + 2), 8)
    figure, axes = pyplot().subplots(4, len(checkpoints) + 2, figsize=size, squeeze=False)
    for number, view in enumerate(VIEWS):
        across = box[1] if view == "cor" else box[0]
        middle = (across.start + across.stop) // 2
        image = through_plane(blurred, view)[middle : middle + 1, :height].to(where)
        truth = through_plane(reference, view)[middle, :height]
        columns = {f"interpolated, {setting}": image[0].cpu()}
        for networks, of in loaded:
            network = networks.get((setting, view if of.method == "supervised" else name))
            columns[of.variant] = (image if network is None else enhance_images(network, image))[0].cpu()
        columns["truth"] = truth
        for column, (title, picture) in enumerate(columns.items()):
            top, below = axes[2 * number, column], axes[2 * number + 1, column]
            top.imshow(torch.flip(picture, (0,)), cmap="gray", vmin=-1050, vmax=250)
            if title != "truth":
                below.imshow(torch.flip(picture - truth, (0,)), cmap="RdBu_r", vmin=-200, vmax=200)
            if number == 0:
                top.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(f"{name}: coronal, its error (±200 HU), sagittal, its error", fontsize=9)
    figure.tight_layout(pad=0.3, rect=(0, 0, 1, 0.98))
    save_figure(figure, out)


def heatmap(runs: Path, out: Path, view: str = "cor") -> None:
    """Draw figure 5: mean PSNR for each thickness and overlap that the training images were modelled with.

    The slices are 5 mm thick and overlap by 2.5 mm; cells without a run stay empty.

    Args:
        runs: folder with VARIANT/seed*/metrics.csv, as `make reproduce` leaves it.
        out: a .png file.
        view: cor, sag.
    """
    import csv

    import numpy as np

    from papers.sr4zct.train import ERRORS, wrong_model
    from shared.figures import pyplot, save_figure

    cells = np.full((len(ERRORS), len(ERRORS)), np.nan)
    for i, thickness in enumerate(ERRORS):
        for j, overlap in enumerate(ERRORS):
            variant = wrong_model(thickness, overlap) if thickness or overlap else "full"
            values = []
            for path in Path(runs).glob(f"{variant}/seed*/metrics.csv"):
                with path.open(newline="") as file:
                    found = [row for row in csv.DictReader(file) if row["case"].startswith(f"5-2.5/{view}/")]
                values += [float(row["psnr"]) for row in found]
            cells[i, j] = np.mean(values) if values else np.nan
    if np.isnan(cells).all():
        raise InputError(f"{runs}: expected VARIANT/seed*/metrics.csv with cases 5-2.5/{view}/..., found none")
    figure, axis = pyplot().subplots(figsize=(4.4, 3.8))
    shown = axis.imshow(cells, cmap="viridis")
    for (i, j), value in np.ndenumerate(cells):
        if np.isfinite(value):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="w", fontsize=8)
    axis.set_xticks(range(len(ERRORS)), [f"{2.5 + error:g}" for error in ERRORS])
    axis.set_yticks(range(len(ERRORS)), [f"{5 + error:g}" for error in ERRORS])
    axis.set_xlabel("modelled overlap [mm] (true: 2.5)")
    axis.set_ylabel("modelled thickness [mm] (true: 5)")
    figure.colorbar(shown, label="PSNR [dB]")
    figure.tight_layout()
    save_figure(figure, out, dpi=110)


def apply(
    input: Path,
    output: Path,
    checkpoint: Path | None = None,
    thickness: float | None = None,
    profile: Literal["auto", "smoke", "cpu", "paper"] = "auto",
    epochs: int | None = None,
    keep: Path | None = None,
    device: str = "auto",
) -> None:
    """Make a CT volume isotropic: in-plane pixels are kept, slices become as thin as these are wide.

    Without a checkpoint a network is trained on the scan itself, which is the method: minutes with profile cpu, hours
    with the paper's recipe. The result is the mean over coronal and sagittal images, on a grid that begins at the
    outer face of the first slice; the affine says so.

    Args:
        input: .nii, .nii.gz, or a folder with one DICOM series.
        output: .nii or .nii.gz; whole HU (int16) if the input has whole numbers.
        checkpoint: of a scan with the same pixels, thickness and spacing, to use as it is (see --keep).
        thickness: of a slice, mm; default: the DICOM header, or SliceThickness in the .json of dcm2niix.
        profile: cpu, or paper, the paper's network and 200 epochs; auto is paper on a GPU.
        epochs: of training, instead of the profile's.
        keep: folder for the trained network (checkpoint.pt); one that was interrupted goes on from there.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a scan that can't be used, or a checkpoint for slices of another geometry.
    """
    import numpy as np
    import torch

    from papers.sr4zct.data import read_scan
    from papers.sr4zct.model import enhance_volume
    from papers.sr4zct.scaling import upscale
    from shared import nifti
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    where = choose_device(device)
    scan = read_scan(input, thickness)
    geometry = scan.geometry
    print(
        f"{input}: {scan.hu.shape[2]} slices of {geometry.thickness:g} mm every {geometry.spacing:g} mm, "
        f"pixels of {geometry.pixel:g} mm"
    )
    if checkpoint is not None:
        network = network_for(checkpoint, geometry, where)
    elif keep is not None:
        network = train_on_scan(scan, Path(keep), profile, epochs, device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            network = train_on_scan(scan, Path(folder), profile, epochs, device)
    blurred = upscale(scan.hu, geometry)
    with torch.no_grad():
        volume = sum(enhance_volume(network, blurred.to(where), view) for view in VIEWS) / 2
    volume = scan.to_file_order(volume.clamp_min(float(scan.hu.min())))
    if scan.image.data.dtype.kind in "iu":
        volume = volume.round().clip(-32768, 32767).astype(np.int16)
    nifti.save(output, volume, affine=scan.isotropic_affine())
    print(f"wrote {output}: {' x '.join(map(str, volume.shape))} voxels of {geometry.pixel:g} mm")


def network_for(checkpoint: Path, geometry, device):
    """A network of a checkpoint that was trained for slices of this geometry, up to the size of its pixels.

    Raises:
        InputError: it has none; one for other slices would make artefacts (section 3, figures 5 and 6).
    """
    from papers.sr4zct.data import parse_setting

    networks, config = load_networks(checkpoint, device)
    known = []
    for (setting, _), network in networks.items():
        trained = parse_setting(setting, config.pixel)
        known.append(f"{trained.thickness:g}/{trained.overlap:g} mm over {trained.pixel:g} mm")
        pairs = ((trained.thickness, geometry.thickness), (trained.spacing, geometry.spacing))
        if all(math.isclose(a / trained.pixel, b / geometry.pixel, rel_tol=0.01) for a, b in pairs):
            return network
    raise InputError(
        f"{checkpoint}: trained for slices of {', '.join(dict.fromkeys(known)) or 'none'}, "
        f"but the scan has {geometry.thickness:g}/{geometry.overlap:g} mm over {geometry.pixel:g} mm; leave "
        "--checkpoint away to train on the scan itself"
    )


def train_on_scan(scan, out: Path, profile: str, epochs: int | None, device: str):
    """SR4ZCT on one scan; the run lies in `out` and goes on from there if it was interrupted."""
    from papers.sr4zct.train import PROFILES, VARIANTS, Config, axial_pairs, fit
    from shared import gpu
    from shared.cli import configure

    where = gpu.choose_device(device)
    if profile == "auto":
        profile = "paper" if where.type == "cuda" else "cpu"
    geometry, name = scan.geometry, scan.image.path.name
    values = {
        "data": scan.image.path, "out": out, "device": device, "resume": True, "pixel": geometry.pixel,
        "settings": (f"{geometry.thickness / geometry.pixel!r}/{geometry.overlap / geometry.pixel!r}",),
        "test_volumes": (name,),
    }  # fmt: skip
    if epochs is not None:
        values |= {"epochs": epochs, "steps": 0}
    config = configure(Config, PROFILES, VARIANTS, profile, "full", **values)
    run = gpu.Run(config, paper="sr4zct")
    fit(config, run, [(config.settings[0], name)], lambda *_: axial_pairs(config, scan.hu, geometry))
    networks, _ = load_networks(run.checkpoint_path, where)
    return networks[config.settings[0], name]


def main(argv: list[str] | None = None) -> None:
    warnings.simplefilter("default", UserWarning)
    commands({"evaluate": evaluate, "panel": panel, "heatmap": heatmap, "apply": apply}, argv)


if __name__ == "__main__":
    main()
