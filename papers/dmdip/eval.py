"""Measure fits against the high-resolution sections, draw them, and super-resolve a user's own volume.

python -m papers.dmdip.eval apply --input t1.nii.gz --second t2.nii.gz --factor 2 --output fine_t1.nii.gz
python -m papers.dmdip.eval replace --input fine.nii.gz --low t1.nii.gz --output better.nii.gz
python -m papers.dmdip.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.dmdip.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.dmdip.eval curves --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out curves.png
"""

import tempfile
from pathlib import Path
from typing import Literal

from shared.cli import commands
from shared.errors import InputError

ROWS = ("t1", "t2", "both")


def read_results(data: Path, checkpoint: Path):
    """Trajectory, settings and pairs of a checkpoint, on the CPU."""
    from papers.dmdip.data import read_pairs
    from papers.dmdip.fitted import load_trajectory

    return load_trajectory(checkpoint, lambda config: read_pairs(data, config.sections, config.size, config.factor))


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: rows t1/PAIR, t2/PAIR and both/PAIR, the mean of the two, with what `measures.summary` lists.

    What is reported is the last result of the fit; `best` is for those who could look at the truth. PSNR takes the
    99.9th percentile of the high-resolution section as its peak.

    Args:
        data: the data set that the checkpoint was fitted to.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: where the results are transformed: auto, cpu, cuda, ...
    """
    from papers.dmdip.measures import summary, trajectory_psnr
    from papers.dmdip.train import fits
    from shared.files import write_csv
    from shared.gpu import choose_device
    from shared.similarity import ssim

    trajectory, config, pairs = read_results(data, checkpoint)
    trajectory = trajectory.to(choose_device(device))
    rows = {name: [] for name in ROWS}
    for number, pair in enumerate(pairs):
        images = trajectory.results(number, config.replace, pair.name).cpu()
        raw = trajectory.results(number, False, pair.name).cpu()
        values = trajectory_psnr(images, pair.high)
        found = summary(values, trajectory_psnr(raw, pair.high), config.factor)
        if not fits(config):  # there is nothing to stop
            found = {name: value if name == "psnr" else [""] * 3 for name, value in found.items()}
        last = ssim(images[-1], pair.high, data_range=pair.high.flatten(1).amax(1).double()).tolist()
        found["ssim"] = [*last, sum(last) / len(last)]
        for place, name in enumerate(ROWS):
            rows[name].append({"case": f"{name}/{pair.name}", **{key: value[place] for key, value in found.items()}})
    write_csv(Path(out) / "metrics.csv", [row for name in ROWS for row in rows[name]])


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one pair: each checkpoint's result, the truth, errors, and the logarithm of k-space magnitude.

    Args:
        data: the data set.
        checkpoints: one column each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the pair.
    """
    import torch

    from papers.dmdip.data import CONTRASTS
    from shared.figures import Picture, grid_of_pictures
    from shared.gpu import choose_device

    where, columns = choose_device(device), {}
    for path in checkpoints:
        trajectory, config, pairs = read_results(data, path)
        if not 0 <= case < len(pairs):
            raise InputError(f"there is no pair number {case}: {data} has {len(pairs)}")
        results = trajectory.to(where).results(case, config.replace, pairs[case].name)
        columns[f"{config.variant}, r={config.factor}"] = results[-1].cpu()
    truth = pairs[case].high
    rows, labels = [], []
    for number, contrast in enumerate(CONTRASTS):
        images, top = [image[number] for image in columns.values()], float(truth[number].max())
        spectra = [(torch.fft.fftshift(torch.fft.fft2(x)).abs() + 1e-6).log() for x in (*images, truth[number])]
        low, high = spectra[-1].quantile(0.05).item(), spectra[-1].max().item()
        rows.append([Picture(image, window=(0, top)) for image in (*images, truth[number])])
        rows.append([Picture(x - truth[number], cmap="RdBu_r", window=(-0.2 * top, 0.2 * top)) for x in images])
        rows.append([Picture(spectrum, window=(low, high)) for spectrum in spectra])
        labels += [contrast, "error, ±20 %", "log k-space"]
    grid_of_pictures(rows, [*columns, "truth"], out, row_labels=labels, heading=pairs[case].name)


def curves(data: Path, checkpoints: list[Path], out: Path, device: str = "auto") -> None:
    """Draw figure 5: mean PSNR over the updates, with and without k-space replacement.

    Args:
        data: the data set.
        checkpoints: of variants with fits.
        out: a .png file.
        device: auto, cpu, cuda, ...
    """
    import torch

    from papers.dmdip.data import CONTRASTS
    from papers.dmdip.measures import trajectory_psnr
    from papers.dmdip.train import fits
    from shared.figures import pyplot, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    figure, axes = pyplot().subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for path in checkpoints:
        trajectory, config, pairs = read_results(data, path)
        trajectory = trajectory.to(where)
        if not fits(config):
            raise InputError(f"{path}: variant {config.variant} has no course over updates; leave it out")
        steps = [(k + 1) * config.steps // config.snapshots for k in range(config.snapshots)]
        for replace, style in ((True, "-"), (False, "--")):
            values = [
                trajectory_psnr(trajectory.results(k, replace, pair.name).cpu(), pair.high)
                for k, pair in enumerate(pairs)
            ]
            mean = torch.stack(values).mean(0)
            for number, axis in enumerate(axes):
                name = f"{config.method}, r={config.factor}, {'with' if replace else 'without'} KR"
                axis.plot(steps, mean[:, number], style, label=name, linewidth=1.2)
    for axis, contrast in zip(axes, CONTRASTS):
        axis.set(title=contrast, xlabel="updates", ylabel="PSNR [dB]")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    save_figure(figure, out, dpi=110)


def apply(
    input: Path,
    output: Path,
    second: Path | None = None,
    second_output: Path | None = None,
    checkpoint: Path | None = None,
    factor: int | None = None,
    plane: Literal["coronal", "axial", "sagittal"] = "coronal",
    profile: Literal["smoke", "cpu", "study", "paper"] = "paper",
    steps: int | None = None,
    replacement: bool = True,
    device: str = "auto",
) -> None:
    """Super-resolve each section of a volume in its plane; with a second contrast of the same head, both together.

    Networks are fitted to each section alone. The volumes that are written have R, A, S order, float32, and voxels
    that are `factor` times smaller in the plane; the first voxel's centre stays where it was.

    Args:
        input: .nii or .nii.gz, T1w say.
        output: .nii or .nii.gz.
        second: the other contrast, on the same voxels; without it each section has a vanilla DIP with replacement.
        second_output: where the finer second contrast goes.
        checkpoint: settings of that run, and the weights of its last pair to start from; default: random weights, the
            paper's way.
        factor: r; default: the checkpoint's, or 2.
        plane: of the sections.
        profile: settings where there is no checkpoint; paper takes hours for each section without a GPU.
        steps: updates for each section, instead of the settings'.
        replacement: put the input's k-space into the centre of the result's.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: files that can't be used, or contrasts that don't belong together.
    """
    import torch

    from papers.dmdip.applied import fit_sections, settings_for
    from papers.dmdip.volume import read_sections, write_sections
    from shared.files import refuse_overwriting_inputs
    from shared.finite import finite

    outputs = [output] if second_output is None else [output, second_output]
    for path in outputs:
        if not str(path).endswith((".nii", ".nii.gz")):
            raise InputError(f"{path}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
        refuse_overwriting_inputs(path, input, second, checkpoint)
    if second_output is not None and (second is None or Path(second_output).resolve() == Path(output).resolve()):
        raise InputError(f"{second_output}: --second-output needs --second, and another name than --output")
    contrasts = [read_sections(input, plane)]
    if second is not None:
        contrasts.append(read_sections(second, plane, contrasts[0]))
    with tempfile.TemporaryDirectory() as folder:
        config = settings_for(checkpoint, profile, len(contrasts), factor, steps, Path(folder), device)
        low = torch.stack([sections.tensor() for sections in contrasts], dim=1)
        fine = finite(fit_sections(config, low, replacement), f"the finer volume of {input}")
    for number, (path, sections) in enumerate(zip(outputs, contrasts)):
        write_sections(path, sections, fine[:, number], config.factor)
        print(f"wrote {path}: {' x '.join(map(str, fine[:, number].shape))} (sections x pixels)")


def replace(input: Path, low: Path, output: Path, plane: Literal["coronal", "axial", "sagittal"] = "coronal") -> None:
    """Central k-space replacement alone, after any super-resolution in the plane of the sections.

    Args:
        input: the super-resolved volume; sample 0 of each row lies on sample 0 of the low one.
        low: the volume that it was made from.
        output: .nii or .nii.gz, on the voxels of the input (R, A, S order).
        plane: of the sections.

    Raises:
        InputError: sizes that aren't a whole multiple, voxels at other places, or files that can't be used.
    """
    from papers.dmdip.kspace import replace_centre
    from papers.dmdip.volume import check_lies_on, read_sections, write_sections
    from shared.files import refuse_overwriting_inputs

    refuse_overwriting_inputs(output, input, low)
    fine, coarse = read_sections(input, plane), read_sections(low, plane)
    check_lies_on(fine, coarse)
    write_sections(output, fine, replace_centre(fine.tensor(), coarse.tensor()), 1)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "curves": curves, "apply": apply, "replace": replace}, argv)


if __name__ == "__main__":
    main()
