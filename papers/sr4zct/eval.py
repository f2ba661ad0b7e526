"""Evaluate per image, draw panel and heat-map, and make a user's own CT isotropic.

python -m papers.sr4zct.eval apply --input scan.nii.gz --thickness 5 --output isotropic.nii.gz
python -m papers.sr4zct.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.sr4zct.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.sr4zct.eval heatmap --runs runs/sr4zct/standin-cpu --out heatmap.png
"""

import tempfile
import warnings
from pathlib import Path
from typing import Literal

from shared.cli import commands
from shared.errors import InputError

VIEWS = ("cor", "sag")


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row per through-plane image with PSNR [dB] and SSIM, named setting/view/volume/position.

    The view "merged" is the mean of the coronal-wise and sagittal-wise results, seen coronally. Rows "slope/..." hold
    what an image's PSNR changes by from the thinnest to the thickest slices of table 1, dB per pixel of thickness
    (1 mm in the paper). The data range is maximum minus minimum of the reference volume.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.sr4zct.data import parse_setting, read_thin_volume
    from papers.sr4zct.model import enhance_volume
    from papers.sr4zct.through_plane import compared_volumes, measure, positions_of, through_plane
    from papers.sr4zct.train import settings_of
    from papers.sr4zct.trained import enhanced, load_networks
    from shared.files import write_csv
    from shared.finite import finite
    from shared.gpu import choose_device

    where = choose_device(device)
    networks, config = load_networks(checkpoint, where)
    rows = []
    for name in config.test_volumes:
        volume = read_thin_volume(data, name, config.pixel)
        for setting in settings_of(config):
            blurred, reference, box = compared_volumes(volume, parse_setting(setting, config.pixel))
            data_range = float(volume.reference().max() - volume.reference().min())
            results = {}
            for view in config.views:
                network = networks.get((setting, view if config.method == "supervised" else name))
                positions = positions_of(box, view, config.image_step)
                images = through_plane(blurred, view)[positions].to(where)
                results[view] = enhanced(network, images, f"{name}, {setting}, {view}"), positions
            if config.merge:
                network, positions = networks[setting, name], positions_of(box, "cor", config.image_step)
                merged = sum(enhance_volume(network, blurred.to(where), view) for view in VIEWS) / 2
                images = through_plane(finite(merged, f"{name}, {setting}, merged"), "cor")[positions]
                results["merged"] = images, positions
            for view, (images, positions) in results.items():
                truth = through_plane(reference, "sag" if view == "sag" else "cor")[positions]
                part = (slice(None), box[2], box[1] if view == "sag" else box[0])
                label = setting.replace("/", "-")
                for position, values in zip(positions, measure(images[part], truth[part], data_range)):
                    rows.append({"case": f"{label}/{view}/{name}/{position:03d}", **values, "slope": ""})
    write_csv(Path(out) / "metrics.csv", rows + slopes(rows))


def slopes(rows: list[dict]) -> list[dict]:
    """Rows with the change of PSNR over thickness, for each image that has the thinnest and the thickest of table 1."""
    from papers.sr4zct.train import TABLE_1

    thin, thick = (TABLE_1[end].replace("/", "-") for end in (0, -1))
    images: dict[str, dict[str, float]] = {}
    for row in rows:
        setting, _, image = row["case"].partition("/")
        images.setdefault(image, {})[setting] = row["psnr"]
    step = float(TABLE_1[-1].split("/")[0]) - float(TABLE_1[0].split("/")[0])
    return [
        {"case": f"slope/{image}", "psnr": "", "ssim": "", "slope": (by[thick] - by[thin]) / step}
        for image, by in images.items()
        if {thin, thick} <= set(by)
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
    from papers.sr4zct.data import parse_setting, read_thin_volume
    from papers.sr4zct.through_plane import compared_volumes, through_plane
    from papers.sr4zct.train import settings_of
    from papers.sr4zct.trained import enhanced, load_networks
    from shared.figures import Picture, grid_of_pictures
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
    name = config.test_volumes[case]
    volume = read_thin_volume(data, name, config.pixel)
    blurred, reference, box = compared_volumes(volume, parse_setting(setting, config.pixel))
    views = [view for view in VIEWS if all(view in of.views for _, of in loaded)]
    rows = []
    for view in views:
        across = box[1] if view == "cor" else box[0]
        middle = (across.start + across.stop) // 2
        image, truth = (through_plane(one, view)[middle : middle + 1] for one in (blurred, reference))
        columns = [image]
        for networks, of in loaded:
            network = networks.get((setting, view if of.method == "supervised" else name))
            columns.append(enhanced(network, image.to(where), f"{of.variant}, {view}").cpu())
        rows.append([found[0].flip(0) for found in (*columns, truth)])
        errors = [found[0].flip(0) - truth[0].flip(0) for found in columns]
        rows.append([Picture(error, cmap="RdBu_r", window=(-200, 200)) for error in errors])
    labels = {"cor": ("coronal", "its error, ±200 HU"), "sag": ("sagittal", "its error, ±200 HU")}
    grid_of_pictures(
        rows,
        [f"interpolated, {setting}", *(of.variant for _, of in loaded), "truth"],
        out,
        row_labels=[label for view in views for label in labels[view]],
        window=(-1050, 250),
        heading=name,
    )


def heatmap(runs: Path, out: Path, view: str = "cor") -> None:
    """Draw figure 5: mean PSNR for each thickness and overlap that the training images were modelled with.

    The slices are 5 mm thick and overlap by 2.5 mm; cells without a run stay empty.

    Args:
        runs: folder with VARIANT/seed*/metrics.csv, as `make reproduce` leaves it.
        out: a .png file.
        view: cor, sag.
    """
    import numpy as np

    from papers.sr4zct.train import ERRORS, wrong_model
    from shared.figures import grid_of_pictures, save_figure
    from shared.text_files import number, read_csv_rows

    cells = np.full((len(ERRORS), len(ERRORS)), np.nan)
    for i, thickness in enumerate(ERRORS):
        for j, overlap in enumerate(ERRORS):
            variant = wrong_model(thickness, overlap) if thickness or overlap else "full"
            values = []
            for path in sorted(Path(runs).glob(f"{variant}/seed*/metrics.csv")):
                found = [
                    row for row in read_csv_rows(path, ("case", "psnr")) if row["case"].startswith(f"5-2.5/{view}/")
                ]
                values += [number(row["psnr"], f"{path}: psnr") for row in found]
            cells[i, j] = np.mean(values) if values else np.nan
    if np.isnan(cells).all():
        raise InputError(f"{runs}: expected VARIANT/seed*/metrics.csv with cases 5-2.5/{view}/..., found none")
    figure, axes, _ = grid_of_pictures([[cells]], ["PSNR [dB]"], None, cmap="viridis", inches=4.0)
    axis = axes[0, 0]
    for (i, j), value in np.ndenumerate(cells):
        if np.isfinite(value):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="w", fontsize=8)
    axis.set_xticks(range(len(ERRORS)), [f"{2.5 + error:g}" for error in ERRORS])
    axis.set_yticks(range(len(ERRORS)), [f"{5 + error:g}" for error in ERRORS])
    axis.set_xlabel("modelled overlap [mm] (true: 2.5)")
    axis.set_ylabel("modelled thickness [mm] (true: 5)")
    save_figure(figure, out, dpi=110)


def apply(
    input: Path,
    output: Path,
    checkpoint: Path | None = None,
    thickness: float | None = None,
    series_uid: str | None = None,
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
        input: .nii, .nii.gz, a folder with a DICOM series, or a DICOM file.
        output: .nii or .nii.gz; whole HU (int16) if the input has whole numbers.
        checkpoint: of a scan with the same pixels, thickness and spacing, to use as it is (see --keep).
        thickness: of a slice, mm; default: the DICOM header, or SliceThickness in the .json of dcm2niix.
        series_uid: which series to read from a folder with several.
        profile: cpu, or paper, the paper's network and 200 epochs; auto is paper on a GPU.
        epochs: of training, instead of the profile's.
        keep: folder for the trained network (checkpoint.pt); one that was interrupted goes on from there.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a scan that can't be used, or a checkpoint for slices of another geometry.
    """
    import numpy as np
    import torch

    from papers.sr4zct.model import enhance_volume
    from papers.sr4zct.scaling import upscale
    from papers.sr4zct.scan import read_scan
    from papers.sr4zct.trained import network_for, train_on_scan
    from shared import nifti
    from shared.files import refuse_overwriting_inputs
    from shared.finite import finite
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    refuse_overwriting_inputs(output, input, checkpoint)
    where = choose_device(device)
    scan = read_scan(input, thickness, series_uid)
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
    finite(volume, f"the enhanced volume of {input}")
    volume = scan.to_file_order(volume.clamp_min(float(scan.hu.min())))
    if scan.image.data.dtype.kind in "iu":
        volume = volume.round().clip(-32768, 32767).astype(np.int16)
    nifti.save(output, volume, affine=scan.isotropic_affine())
    print(f"wrote {output}: {' x '.join(map(str, volume.shape))} voxels of {geometry.pixel:g} mm")


def main(argv: list[str] | None = None) -> None:
    warnings.simplefilter("default", UserWarning)
    commands({"evaluate": evaluate, "panel": panel, "heatmap": heatmap, "apply": apply}, argv)


if __name__ == "__main__":
    main()
