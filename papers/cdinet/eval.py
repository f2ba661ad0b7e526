"""Evaluate CDI-Net per study, draw the panel, and apply it to a user's own projections (section 3).

python -m papers.cdinet.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.cdinet.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.cdinet.eval apply --checkpoint RUN/checkpoint.pt --input scan.h5 --output ac.nii.gz
"""

import warnings
from pathlib import Path

from shared.cli import commands
from shared.errors import InputError


def load_network(checkpoint: Path, projector, device):
    """The trained network of a checkpoint in evaluation mode, and its configuration.

    Raises:
        InputError: no checkpoint of this paper, or one of another scanner's size.
    """
    from papers.cdinet.train import Config, build_model
    from shared.checkpoints import load_model

    return load_model(checkpoint, "cdinet", Config, lambda config: build_model(config, projector), device)


def reconstruct(projector, projections, mu, iterations, mask=None):
    """AC image (B, 1, X, Y, Z): ML-EM with attenuation from the angles of `mask`, all by default (M10)."""
    from papers.cdinet.mlem import ml_em

    return ml_em(projector, projections, iterations, mu=mu, angles_mask=mask)


def predict_study(model, projector, batch: dict, iterations: int) -> dict:
    """Predicted projections, attenuation map and AC image of one study, a batch of 1.

    The zero-cost input predicts no map: like the paper's "Baseline LD & LA" it is reconstructed from its
    measured angles with the true map.
    """
    from papers.cdinet.model import predict
    from shared.finite import finite

    case = batch["case"][0]
    projections, mu = predict(model, batch["projections_low"], batch["image_low"])
    finite(projections, f"the predicted projection of {case}")
    if mu is not None:
        finite(mu, f"the predicted attenuation map of {case}")
    mask = batch["mask"] if mu is None else None
    image = reconstruct(projector, projections, batch["mu"] if mu is None else mu, iterations, mask)
    return {"projections": projections, "mu": mu, "image": finite(image, f"the AC image of {case}")}


def measure(prediction, truth) -> dict[str, float]:
    """NMSE and NMAE in percent, PSNR in dB and SSIM of (1, 1, ...) volumes (M11).

    The data range is that of the true volume, maximum minus minimum; SSIM is 3D, uniform window of 7.
    """
    from shared.metrics import nmae, nmse, psnr
    from shared.similarity import ssim

    prediction, truth = prediction.double().cpu()[:, 0], truth.double().cpu()[:, 0]
    data_range = float(truth.max() - truth.min())
    return {
        "nmse": 100 * nmse(prediction, truth).item(),
        "nmae": 100 * nmae(prediction, truth).item(),
        "psnr": psnr(prediction, truth, data_range=data_range).item(),
        "ssim": ssim(prediction, truth, data_range=data_range, window="uniform", win_size=7).item(),
    }


def studies(data: Path, projector, config, device, split: str = "test"):
    """Batches of one study each, on the device."""
    from torch.utils.data import DataLoader

    from papers.cdinet.data import CardiacSpectDataset
    from shared.gpu import to_device

    for batch in DataLoader(CardiacSpectDataset(data, split, projector, config.low_dose_scale)):
        yield to_device(batch, device)


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto", split: str = "test") -> None:
    """Write metrics.csv: a row per study with the paper's metrics of projections, attenuation map and AC image.

    The reference of the AC image is ML-EM of the full-dose full-angle projections with the true map.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
        split: folder of the data set to evaluate.
    """
    from papers.cdinet.data import load_projector
    from shared.files import write_csv
    from shared.gpu import choose_device

    where = choose_device(device)
    projector = load_projector(data)
    model, config = load_network(checkpoint, projector, where)
    projector = projector.to(where)
    pinholes = projector.geometry.pinholes  # the padding angle is no measurement
    rows = []
    for batch in studies(data, projector, config, where, split):
        found = predict_study(model, projector, batch, config.mlem_iterations)
        truth = reconstruct(projector, batch["projections_full"], batch["mu"], config.mlem_iterations)
        pairs = {
            "proj": (found["projections"][..., :pinholes], batch["projections_full"][..., :pinholes]),
            "mu": (found["mu"], batch["mu"]),
            "ac": (found["image"], truth),
        }
        row = {"case": batch["case"][0]}
        for name, (prediction, target) in pairs.items():
            values = {} if prediction is None else measure(prediction, target)
            row |= {f"{name}_{key}": values.get(key, "") for key in ("nmse", "nmae", "psnr", "ssim")}
        rows.append(row)

    write_csv(Path(out) / "metrics.csv", rows)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one test study: projections, attenuation map, short axis and polar map, for the input, each
    checkpoint and the truth.

    Args:
        data: the data set.
        checkpoints: one column each, say a baseline and the proposed method.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test study.
    """
    import itertools

    from papers.cdinet import polar_map
    from papers.cdinet.baselines import Passthrough
    from papers.cdinet.data import load_projector
    from papers.cdinet.ventricle import left_ventricle_pose
    from shared.figures import Picture, grid_of_pictures, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    projector = load_projector(data)
    models = [load_network(path, projector, where) for path in checkpoints]
    projector = projector.to(where)
    config = models[0][1]
    batch = next(itertools.islice(studies(data, projector, config, where), case, None), None)
    if batch is None:
        raise InputError(f"{data}: there is no test study number {case}")
    truth_image = reconstruct(projector, batch["projections_full"], batch["mu"], config.mlem_iterations)
    truth = {"projections": batch["projections_full"], "mu": batch["mu"], "image": truth_image}
    columns = {"low dose, 9 angles": predict_study(Passthrough(), projector, batch, config.mlem_iterations)}
    for model, of_model in models:
        columns[of_model.variant] = predict_study(model, projector, batch, of_model.mlem_iterations)
    columns["truth"] = truth

    geometry, voxel_mm = projector.geometry, projector.geometry.voxel_mm
    measured = geometry.measured_angles[len(geometry.measured_angles) // 2]
    unmeasured = next(angle for angle in range(geometry.pinholes) if angle not in geometry.measured_angles)
    pose = left_ventricle_pose(truth_image[0, 0].cpu().numpy(), voxel_mm)
    rows, polars = [[], [], [], []], {}
    for name, found in columns.items():
        projections, image = found["projections"][0, 0].cpu(), found["image"][0, 0].cpu().numpy()
        rows[0].append(projections[:, :, measured].T.flip(0))
        rows[1].append(projections[:, :, unmeasured].T.flip(0))
        none = Picture(text="none predicted")
        rows[2].append(none if found["mu"] is None else found["mu"][0, 0, :, :, geometry.image_shape[2] // 2].cpu().T)
        slices = polar_map.short_axis(image, pose, voxel_mm)
        rows[3].append(slices[len(slices) // 2])
        polars[name] = polar_map.polar_map(image, pose, voxel_mm)
    figure, _, room = grid_of_pictures(
        rows,
        list(columns),
        None,
        row_labels=["measured angle", "unmeasured angle", "attenuation map", "short axis (AC)"],
        window=[(0.0, float(row[-1].max())) for row in rows],  # the truth's
        cmap=["inferno", "inferno", "gray", "inferno"],
        heading=f"{batch['case'][0]}; below: polar maps of the AC images",
        room=("below", 2.2),
    )
    for axis, polar in zip(room.subplots(1, len(polars)), polars.values()):
        polar_map.draw_polar_map(axis, polar, vmax=float(polars["truth"].max()))
    save_figure(figure, out)


def apply(
    checkpoint: Path,
    input: Path,
    output: Path,
    mu_output: Path | None = None,
    scanner: Path | None = None,
    low_dose_scale: float | None = None,
    polar_output: Path | None = None,
    device: str = "auto",
) -> None:
    """Reconstruct a user's own low-dose limited-angle projections: AC volume and attenuation map as NIfTI.

    Args:
        checkpoint: of CDI-Net or a baseline with an attenuation map.
        input: .h5 with `Proj_LD_LA_EM` as in the data set, or NIfTI (U, V, angles) of counts.
        output: AC volume, .nii or .nii.gz, photons per voxel.
        mu_output: attenuation map in cm^-1; default: the output's name with `_mu`.
        scanner: folder with the system matrix (.mat or .npz) and geometry.json that the network was trained
            with; default: the folder of the input or the one above it.
        low_dose_scale: factor to full-dose counts, 10 for a plain 10 % scan; default: as in training.
        polar_output: .png of the 17-segment polar map, if wanted.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file that is missing, broken or doesn't fit the scanner.
    """
    import torch

    from papers.cdinet.data import load_scanner, read_projections
    from papers.cdinet.mlem import ml_em
    from papers.cdinet.model import predict
    from papers.cdinet.ventricle import left_ventricle_pose
    from shared import nifti
    from shared.files import refuse_duplicates, refuse_overwriting_inputs
    from shared.finite import finite
    from shared.gpu import choose_device

    if mu_output is None:
        stem = output.name.removesuffix(".gz").removesuffix(".nii")
        mu_output = output.with_name(f"{stem}_mu{output.name[len(stem) :]}")
    for volume_path in (output, mu_output):
        if not volume_path.name.endswith((".nii", ".nii.gz")):
            raise InputError(f"{volume_path}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    outputs = [path for path in (output, mu_output, polar_output) if path is not None]
    refuse_duplicates([path.resolve() for path in outputs], "outputs")
    for path in outputs:
        refuse_overwriting_inputs(path, input, checkpoint, scanner)
    where = choose_device(device)
    if not Path(input).is_file():
        raise InputError(f"{input}: there is no such file; expected projections as .h5, .nii or .nii.gz")
    projector = load_scanner(input if scanner is None else scanner)
    model, config = load_network(checkpoint, projector, where)
    projector = projector.to(where)
    scale = config.low_dose_scale if low_dose_scale is None else low_dose_scale
    counts = torch.from_numpy(read_projections(input, projector.geometry) * scale)[None, None].to(where)
    mask = projector.geometry.measured_mask().to(where)
    image = ml_em(projector, counts, config.mlem_iterations, angles_mask=mask)
    projections, mu = predict(model, counts * mask, image)
    if mu is None:
        raise InputError(f"{checkpoint}: variant '{config.variant}' predicts no attenuation map; use one that does")
    finite(projections, f"{input}: the predicted projection")
    finite(mu, f"{input}: the predicted attenuation map")
    volume = finite(reconstruct(projector, projections, mu, config.mlem_iterations), f"{input}: the AC image")
    volume, voxel_mm = volume[0, 0].cpu().numpy(), projector.geometry.voxel_mm
    pose = None if polar_output is None else left_ventricle_pose(volume, voxel_mm)  # may refuse: before any writing

    affine = projector.geometry.affine()
    nifti.save(output, volume, affine=affine)
    nifti.save(mu_output, mu[0, 0].cpu().numpy(), affine=affine)
    print(f"wrote {output} (photons per voxel) and {mu_output} (1/cm)")
    if pose is not None:
        draw_polar_map(volume, pose, voxel_mm, polar_output)
        print(f"wrote {polar_output}")


def draw_polar_map(image, pose, voxel_mm: float, out: Path) -> None:
    """The 17-segment polar map of one AC volume (X, Y, Z) as a .png."""
    from papers.cdinet import polar_map
    from shared.figures import pyplot, save_figure

    figure, axis = pyplot().subplots(figsize=(4, 4))
    polar_map.draw_polar_map(axis, polar_map.polar_map(image, pose, voxel_mm))
    save_figure(figure, out, dpi=120)


def main(argv: list[str] | None = None) -> None:
    warnings.simplefilter("default", UserWarning)
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
