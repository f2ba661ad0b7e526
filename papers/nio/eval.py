"""Register the test pairs, measure them, draw the panel; register two images of one's own.

python -m papers.nio.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.nio.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.nio.eval apply --checkpoint RUN/checkpoint.pt --input moving.nii.gz --fixed fixed.nii.gz \
    --output out/warped.nii.gz
"""

import hashlib
from pathlib import Path

from shared.cli import commands
from shared.errors import InputError
from shared.files import refuse_overwriting_inputs, write_atomically, write_csv

COLUMNS = ("dice", "dice30", "worst_gap", "tre", "below_1p2", "std_jac", "folding")
SHOWN = 2
"""Test pair of each setting whose field is kept for the panel; in the stand-in the third one is an outlier"""


def measure(pair, field, labels) -> dict[str, float | str]:
    """A row of metrics.csv."""
    import torch

    from papers.nio.measures import jacobian_determinant, landmark_errors, mean_dice

    row = dict.fromkeys(COLUMNS, "")
    determinant = jacobian_determinant(field)
    if pair.landmarks_mm is None:
        row["dice"] = mean_dice(pair.moving.labels, pair.fixed.labels, field, labels)
    else:
        errors = landmark_errors(field, *pair.landmarks_mm, pair.fixed.origin_mm, pair.fixed.spacing_mm)
        row["tre"], row["below_1p2"] = errors.mean(), 100 * (errors < 1.2).mean()
        determinant = determinant[:, torch.from_numpy(pair.mask[:-1, :-1, :-1])]
    row["std_jac"], row["folding"] = float(determinant.std()), 100 * float((determinant <= 0).float().mean())
    return row


def worst_rows(setting: str, rows: list[dict]) -> list[dict]:
    """A row for each of the 30 % of cases with the lowest Dice, in ascending order, so that their mean is DSC30.

    The k-th lowest case of one method thus stands against the k-th lowest of another. `worst_gap` is its distance to
    the mean Dice of the setting: a method gains more in DSC30 than in Dice if this rises.
    """
    from papers.nio.measures import worst_share

    scores = [row["dice"] for row in rows]
    mean = sum(scores) / len(scores)
    return [
        {"case": f"{setting}/lowest{k:02d}", "dice30": score, "worst_gap": score - mean}
        for k, score in enumerate(worst_share(scores), 1)
    ]


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Register all test pairs and write metrics.csv, a row per pair, and seconds.csv, the time of each.

    Further rows `SETTING/lowest01` … hold the lowest 30 % of the Dice (DSC30). Also written are the fields of each
    setting's pair in the panel (fields.npz).

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    import time

    from papers.nio.experiments import SETTINGS, Domains
    from papers.nio.registration import load_networks, register_pair
    from shared.gpu import choose_device

    where = choose_device(device)
    networks, config = load_networks(checkpoint, where)
    config.data = data
    domains = Domains(config)
    rows, seconds, fields = [], [], {}
    for setting in domains.settings:
        brains = setting != "lung"
        labels = domains.scans[SETTINGS[setting][1]].labels() if brains else []
        of_setting = []
        for number, pair in enumerate(domains.pairs(setting, config.max_pairs)):
            start = time.perf_counter()
            field, _ = register_pair(config, networks, domains, setting, pair, where)
            seconds.append({"case": pair.name, "seconds": round(time.perf_counter() - start, 3)})
            of_setting.append({"case": pair.name, **measure(pair, field, labels)})
            if number == SHOWN:
                fields[pair.name] = field
        rows += of_setting + (worst_rows(setting, of_setting) if brains else [])
    save_fields(Path(out) / "fields.npz", fields, checkpoint)
    write_csv(Path(out) / "seconds.csv", seconds)
    write_csv(Path(out) / "metrics.csv", rows, ["case", *COLUMNS])


def digest(checkpoint: Path) -> str:
    return hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()


def save_fields(out: Path, fields: dict, checkpoint: Path) -> None:
    """Unit fields (1, 3, X, Y, Z) by case, and the digest of the checkpoint that they belong to."""
    import numpy as np

    arrays = {name.replace("/", "|"): field[0].numpy().astype(np.float16) for name, field in fields.items()}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, digest=np.array(digest(checkpoint)), **arrays)

    write_atomically(out, write)


def stored_field(checkpoint: Path, case: str):
    """The field (1, 3, X, Y, Z) that `evaluate` left beside a checkpoint, or None."""
    import numpy as np
    import torch

    path = Path(checkpoint).parent / "fields.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        if str(file["digest"]) != digest(checkpoint) or case.replace("/", "|") not in file:
            return None
        return torch.from_numpy(file[case.replace("/", "|")].astype(np.float32))[None]


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = SHOWN) -> None:
    """Draw a test pair of each setting: fixed, moving, and for each checkpoint the warped image and its grid.

    Red is the warped image, cyan the fixed one, so that what agrees is grey.

    Args:
        data: the data set.
        checkpoints: one column each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test pair.
    """
    from papers.nio.experiments import Domains
    from papers.nio.pictures import draw_panel
    from papers.nio.registration import load_networks, register_pair
    from shared.gpu import choose_device

    where = choose_device(device)
    loaded = [(path, *load_networks(path, where)) for path in checkpoints]
    config = loaded[0][2]
    config.data = data
    domains = Domains(config)
    rows = []
    for setting in domains.settings:
        pair = list(domains.pairs(setting, case + 1))[-1]
        fields = []
        for path, networks, own in loaded:
            field = stored_field(path, pair.name)
            if field is None:
                field, _ = register_pair(own, networks, domains, setting, pair, where)
            fields.append(field)
        rows.append((pair, fields, 1 if setting == "lung" else 2))  # coronal, axial
    draw_panel(rows, [own.variant for _, _, own in loaded], out)


def apply(
    checkpoint: Path,
    input: Path,
    fixed: Path,
    output: Path,
    method: str | None = None,
    source: str | None = None,
    spacing_mm: float | None = None,
    patience: int = 0,
    device: str = "auto",
) -> None:
    """Register a moving image onto a fixed one, optimising the network for this pair.

    Beside `output` (`warped.nii.gz`, say) are written warped_field.nii.gz, the displacement field in mm that
    SimpleITK reads as a DisplacementFieldTransform (fixed -> moving, in its own coordinates), and warped.png: both
    images before and after, the deformed grid, |J| and the loss at each iteration.

    Both images must lie roughly on each other in world coordinates: align them affinely first. They are brought to
    the fixed image's axes, resampled to `spacing_mm`, and padded.

    Args:
        checkpoint: of a variant with networks.
        input: moving image, .nii or .nii.gz, without skull or table.
        fixed: fixed image.
        output: warped moving image on the fixed image's grid, .nii or .nii.gz.
        method: initial, bspline, lapirn, io, nio or nio_m; default: that of the checkpoint.
        source: network to start from, e.g. oasis; default: the checkpoint's first.
        spacing_mm: voxel size to work at; default: that of the training.
        patience: end a level when its loss has not fallen for so many iterations; 0: run all iterations.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file that is missing or broken, images that don't overlap, an unknown method or source.
    """
    import numpy as np
    import torch

    from papers.nio import world
    from papers.nio.data import normalise, on_grid
    from papers.nio.pictures import draw_pair
    from papers.nio.registration import load_networks, network_for, register
    from shared import nifti, resample
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI image, its name must end in .nii or .nii.gz")
    methods = ("initial", "bspline", "lapirn", "io", "nio", "nio_m")
    if method is not None and method not in methods:
        raise InputError(f"--method {method}: choose one of {', '.join(methods)}")
    stem = output.name.removesuffix(".gz").removesuffix(".nii")
    suffix = output.name[len(stem) :]
    field_path, picture = output.with_name(f"{stem}_field{suffix}"), output.with_name(f"{stem}.png")
    for path in (output, field_path, picture):
        refuse_overwriting_inputs(path, input, fixed, checkpoint)
    moving_image, fixed_image = nifti.load(input, ndim=3), nifti.load(fixed, ndim=3)
    where = choose_device(device)
    networks, config = load_networks(checkpoint, where)
    config.method = method or config.method
    step = config.spacing_mm if spacing_mm is None else spacing_mm
    if not 0 < step < float("inf"):
        raise InputError(f"--spacing-mm {step}: expected a positive number of millimetres")
    source = source or next(iter(networks), "")
    network = network_for(config, networks, source)

    grid = world.pad_to_multiple(on_grid(fixed_image, step, label=False), 8)
    covered = resample.resample_to(on_grid(moving_image, step, label=False), grid, fill=0.0)
    if not np.any(covered.data):
        raise InputError(f"{input} and {fixed} don't overlap in world coordinates; align them affinely first")
    pair = [torch.from_numpy(normalise(np.asarray(image.data)))[None, None].to(where) for image in (covered, grid)]
    field, losses = register(config, network, *pair, None, grid.spacing, source.startswith("lung"), patience)

    displacement = world.world_displacement(field, grid, fixed_image)
    warped = world.warp_in_world(moving_image, fixed_image, displacement)
    draw_pair(*(image[0, 0].cpu().numpy() for image in pair), field, losses, picture)
    world.save_displacement(displacement, fixed_image, field_path)
    nifti.save(output, warped, affine=fixed_image.affine)
    length = np.linalg.norm(displacement, axis=0)
    print(f"wrote {output}: {config.method}, mean displacement {length.mean():.2f} mm, largest {length.max():.2f} mm")


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
