"""Register the test pairs, measure them, draw the panel; register two images of one's own.

python -m papers.nio.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.nio.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.nio.eval apply --checkpoint RUN/checkpoint.pt --input moving.nii.gz --fixed fixed.nii.gz \
    --output out/warped.nii.gz
"""

import csv
import hashlib
from pathlib import Path

from shared.cli import commands, config_from_dict
from shared.errors import InputError


def load_networks(checkpoint: Path, device):
    """The networks of a checkpoint by source, in evaluation mode with their best weights, and the configuration.

    A variant without networks has none.

    Raises:
        InputError: no checkpoint of this paper, or one that its configuration doesn't fit.
    """
    from papers.nio.model import LEVELS
    from papers.nio.train import Config, build_model
    from shared.checkpoints import load_checkpoint

    content = load_checkpoint(checkpoint, "nio")
    config = config_from_dict(Config, content["config"])
    sources = [name.removeprefix("optimizer_") for name in content["objects"] if name.startswith("optimizer_")]
    networks = {}
    try:
        for number, source in enumerate(sources):
            network = build_model(config)
            weights = content["objects"].get(f"best_{source}", {}).get("weights")
            if weights:
                network.load_state_dict(weights)
            else:
                states = content["models"][LEVELS * number : LEVELS * (number + 1)]
                for level, state in zip(network.levels, states, strict=True):
                    level.load_state_dict(state)
            networks[source] = network.to(device).eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{checkpoint}: its weights don't fit its configuration") from error
    return networks, config


def register(config, network, moving, fixed, mask=None, spacing_mm=(1.0, 1.0, 1.0), lung=False, patience=0):
    """Register one pair with the method of a configuration.

    Args:
        config: of the run.
        network: f_θ0, or None for methods without one.
        moving, fixed: float32 (1, 1, X, Y, Z) in [0, 1] on the network's device.
        mask: (1, 1, X, Y, Z), lungs of the fixed image, or None.
        spacing_mm: voxel size.
        lung: with B-spline smoothing and random affine matrices at test time (M9).
        patience: see `adaptation.Objective`.

    Returns:
        unit field (1, 3, X, Y, Z) on the CPU, and the loss at each iteration (empty without optimisation).
    """
    import torch

    from papers.nio.adaptation import Objective, optimise_field, optimise_weights, predict
    from papers.nio.bspline import register_bspline
    from papers.nio.model import voxel_to_unit

    if config.method == "initial":
        return torch.zeros(1, 3, *fixed.shape[2:]), []
    if config.method == "bspline":
        # Without the mask: what is outside of the lungs is 0 already, and their outline guides a method this coarse.
        arrays = [image[0, 0].cpu().numpy() for image in (moving, fixed)]
        options = {"knots": config.bspline_knots, "iterations": config.bspline_iterations}
        voxels = register_bspline(*arrays, spacing_mm, **options, sampled=config.bspline_sampled)
        return voxel_to_unit(torch.from_numpy(voxels)[None]), []
    extras = {"spline": True, "affine_sd": config.affine_sd} if lung else {}
    objective = Objective(config.lam, config.window, config.voxel_units, seed=config.seed, patience=patience, **extras)
    if config.method == "lapirn":
        return predict(network, moving, fixed, objective).cpu(), []
    if config.method == "io":
        start = predict(network, moving, fixed, objective)
        found = optimise_field(start, moving, fixed, config.io_iterations, config.io_lr, objective, mask)
    else:
        levels = config.nio_m_iterations_lung if lung else config.nio_m_iterations
        iterations = (0, 0, config.nio_iterations) if config.method == "nio" else levels
        found = optimise_weights(network, moving, fixed, iterations, config.adapt_lr, objective, mask)
    return found.field.cpu(), found.losses


def network_for(config, networks: dict, source: str):
    """The network of a source, or None for methods without one.

    Raises:
        InputError: the checkpoint has none of this source.
    """
    from papers.nio.train import uses_network

    if not uses_network(config):
        return None
    if source not in networks:
        raise InputError(
            f"the checkpoint has no network '{source}', it has {', '.join(networks)}; train on this data set"
        )
    return networks[source]


def register_pair(config, networks: dict, domains, setting: str, pair, device):
    """Unit field (1, 3, X, Y, Z) and losses of a `data.Pair`, with the network of its setting."""
    import torch

    from papers.nio.train import SETTINGS

    lung = setting == "lung"
    source = f"lung{domains.lungs.fold(int(pair.name[-2:]), domains.folds)}" if lung else SETTINGS[setting][0]
    images = [torch.from_numpy(scan.image)[None, None].to(device) for scan in (pair.moving, pair.fixed)]
    mask = torch.from_numpy(pair.mask.astype("float32"))[None, None].to(device) if lung else None
    network = network_for(config, networks, source)
    return register(config, network, *images, mask, pair.fixed.spacing_mm, lung)


def pairs_of(config, domains, setting: str):
    """The test pairs of a setting, one after another."""
    from papers.nio.data import Pair
    from papers.nio.train import SETTINGS

    if setting == "lung":
        numbers = [number for number, _ in domains.lungs.patients][: config.max_pairs or None]
        yield from (domains.lungs.pair(number) for number in numbers)
        return
    scans = domains.scans[SETTINGS[setting][1]]
    for name, moving, fixed in scans.pairs(setting, most=config.max_pairs):
        yield Pair(name, scans[moving], scans[fixed])


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


COLUMNS = ("dice", "dice30", "worst_gap", "tre", "below_1p2", "std_jac", "folding")


def worst_rows(setting: str, rows: list[dict]) -> list[dict]:
    """A row for each of the 30 % of cases with the lowest Dice, in ascending order, so that their mean is DSC30.

    The k-th lowest case of one method thus stands against the k-th lowest of another. `worst_gap` is its distance to
    the mean Dice of the setting: a method gains more in DSC30 than in Dice if this rises.
    """
    from papers.nio.measures import worst_share

    scores = [row["dice"] for row in rows]
    mean = sum(scores) / len(scores)
    return [
        {**dict.fromkeys(COLUMNS, ""), "case": f"{setting}/lowest{k:02d}", "dice30": score, "worst_gap": score - mean}
        for k, score in enumerate(worst_share(scores), 1)
    ]


def digest(checkpoint: Path) -> str:
    return hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()


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

    import numpy as np

    from papers.nio.train import SETTINGS, Domains
    from shared.files import write_atomically
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
        for number, pair in enumerate(pairs_of(config, domains, setting)):
            start = time.perf_counter()
            field, _ = register_pair(config, networks, domains, setting, pair, where)
            seconds.append({"case": pair.name, "seconds": round(time.perf_counter() - start, 3)})
            of_setting.append({"case": pair.name, **measure(pair, field, labels)})
            if number in SHOWN:
                fields[pair.name] = field[0].numpy().astype(np.float16)
        rows += of_setting + (worst_rows(setting, of_setting) if brains else [])
    write_atomically(Path(out) / "fields.npz", lambda path: save_fields(path, fields, digest(checkpoint)))
    for name, table in (("seconds.csv", seconds), ("metrics.csv", rows)):
        write_atomically(Path(out) / name, lambda path, table=table: write_table(path, table))


SHOWN = (1,)
"""Test pairs of each setting whose fields are kept for the panel; in the stand-in the second one is an outlier"""


def save_fields(path: Path, fields: dict, digest: str) -> None:
    """Unit fields (3, X, Y, Z) by case, and the digest of the checkpoint that they belong to."""
    import numpy as np

    with path.open("wb") as file:
        np.savez_compressed(file, digest=np.array(digest), **{name.replace("/", "|"): f for name, f in fields.items()})


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


def write_table(path: Path, rows: list[dict]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 1) -> None:
    """Draw a test pair of each setting: fixed, moving, and for each checkpoint the warped image and its grid.

    Red is the warped image, cyan the fixed one, so that what agrees is grey.

    Args:
        data: the data set.
        checkpoints: one column each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test pair.
    """
    import matplotlib
    import torch

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.nio.model import warp
    from papers.nio.train import Domains
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    loaded = [(path, *load_networks(path, where)) for path in checkpoints]
    config = loaded[0][2]
    config.data = data
    domains = Domains(config)
    titles = ["fixed", "moving", *(c.variant for _, _, c in loaded)]
    rows = 2 * len(domains.settings)
    figure, axes = plt.subplots(rows, len(titles), figsize=(1.6 * len(titles), 1.75 * rows), squeeze=False)
    for number, setting in enumerate(domains.settings):
        pairs = list(pairs_of(config, domains, setting))
        pair = pairs[min(case, len(pairs) - 1)]
        upper, lower = axes[2 * number], axes[2 * number + 1]
        axis = 1 if setting == "lung" else 2  # coronal, axial
        fixed, moving = slice_of(pair.fixed.image, axis), slice_of(pair.moving.image, axis)
        for a, picture in zip(upper, (fixed, moving)):
            a.imshow(picture.T, cmap="gray", vmin=0, vmax=1, origin="lower")
        lower[0].imshow(overlay(moving, fixed), origin="lower")
        lower[0].set_title("before", fontsize=7)
        upper[0].set_ylabel(pair.name, fontsize=6)
        image = torch.from_numpy(pair.moving.image)[None, None]
        for column, (path, networks, own) in enumerate(loaded, 2):
            field = stored_field(path, pair.name)
            if field is None:
                field, _ = register_pair(own, networks, domains, setting, pair, where)
            warped = slice_of(warp(image, field)[0, 0].numpy(), axis)
            upper[column].imshow(overlay(warped, fixed), origin="lower")
            draw_grid(lower[column], field, axis)
    for a in axes.flat:
        a.set_xticks([])
        a.set_yticks([])
        a.set_frame_on(False)
    for a, title in zip(axes[0], titles):
        a.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=100, format="png"))
    plt.close(figure)


def slice_of(volume, axis: int):
    """The middle slice across an axis."""
    return volume.take(volume.shape[axis] // 2, axis=axis)


def overlay(warped, fixed):
    """(rows, columns, 3): the warped image in red, the fixed one in green and blue."""
    import numpy as np

    return np.stack([warped.T, fixed.T, fixed.T], axis=-1).clip(0, 1)


def draw_grid(axis_of_plot, field, across: int, step: int = 1) -> None:
    """The lines of the voxel grid, bent by Φ, in the middle slice across an axis."""
    import numpy as np

    from papers.nio.model import unit_to_voxel

    voxels = unit_to_voxel(field)[0].numpy()
    first, second = [a for a in range(3) if a != across]
    u, v = slice_of(voxels[first], across), slice_of(voxels[second], across)
    x, y = np.meshgrid(np.arange(u.shape[0]), np.arange(u.shape[1]), indexing="ij")
    axis_of_plot.plot((x + u)[::step].T, (y + v)[::step].T, color="black", linewidth=0.35)
    axis_of_plot.plot((x + u)[:, ::step], (y + v)[:, ::step], color="black", linewidth=0.35)
    axis_of_plot.set_aspect("equal")
    axis_of_plot.set_xlim(-0.5, u.shape[0] - 0.5)
    axis_of_plot.set_ylim(-0.5, u.shape[1] - 0.5)


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

    from papers.nio.data import normalise, on_grid
    from shared import nifti, resample
    from shared.gpu import choose_device

    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI image, its name must end in .nii or .nii.gz")
    methods = ("initial", "bspline", "lapirn", "io", "nio", "nio_m")
    if method is not None and method not in methods:
        raise InputError(f"--method {method}: choose one of {', '.join(methods)}")
    moving_image, fixed_image = nifti.load(input, ndim=3), nifti.load(fixed, ndim=3)
    where = choose_device(device)
    networks, config = load_networks(checkpoint, where)
    config.method = method or config.method
    step = config.spacing_mm if spacing_mm is None else spacing_mm
    if step <= 0:
        raise InputError(f"--spacing-mm {step}: expected a positive number of millimetres")
    source = source or next(iter(networks), "")
    network = network_for(config, networks, source)

    grid = pad_to_multiple(on_grid(fixed_image, step, label=False), 8)
    covered = resample.resample_to(on_grid(moving_image, step, label=False), grid, fill=0.0)
    if not np.any(covered.data):
        raise InputError(f"{input} and {fixed} don't overlap in world coordinates; align them affinely first")
    pair = [torch.from_numpy(normalise(np.asarray(image.data)))[None, None].to(where) for image in (covered, grid)]
    field, losses = register(config, network, *pair, None, grid.spacing, source.startswith("lung"), patience)

    displacement = world_displacement(field, grid, fixed_image)
    warped = warp_in_world(moving_image, fixed_image, displacement)
    stem = output.name.removesuffix(".gz").removesuffix(".nii")
    suffix = output.name[len(stem) :]
    draw_pair(*(image[0, 0].cpu().numpy() for image in pair), field, losses, output.with_name(f"{stem}.png"))
    save_displacement(displacement, fixed_image, output.with_name(f"{stem}_field{suffix}"))
    nifti.save(output, warped, affine=fixed_image.affine)
    length = np.linalg.norm(displacement, axis=0)
    print(f"wrote {output}: {config.method}, mean displacement {length.mean():.2f} mm, largest {length.max():.2f} mm")


def pad_to_multiple(image, multiple: int):
    """A volume with zeros at the end of its axes, so that all sizes are multiples."""
    from dataclasses import replace

    import numpy as np

    margins = [(0, -size % multiple) for size in image.shape]
    return replace(image, data=np.pad(image.data, margins))


def world_displacement(field, grid, fixed):
    """Displacement (3, X, Y, Z) [mm, RAS] at the voxels of the fixed image, from a unit field on `grid`."""
    import numpy as np
    import torch

    from papers.nio.model import sample, unit_to_voxel

    indices = np.stack(np.meshgrid(*(np.arange(n) for n in fixed.shape), indexing="ij")).reshape(3, -1)
    to_grid = np.linalg.inv(grid.affine) @ fixed.affine
    index = (to_grid[:3, :3] @ indices + to_grid[:3, 3:]).reshape(3, *fixed.shape)
    sizes = np.reshape(grid.shape, (3, 1, 1, 1))
    points = torch.from_numpy((2 * index / (sizes - 1) - 1).astype(np.float32))[None]
    voxels = sample(unit_to_voxel(field), points)[0].numpy().astype(np.float64)
    return np.einsum("ab,bxyz->axyz", grid.affine[:3, :3], voxels)


def warp_in_world(moving, fixed, displacement):
    """The moving image at x + u(x), float32 on the fixed image's grid; 0 outside of the moving image."""
    import numpy as np
    from scipy.ndimage import map_coordinates

    indices = np.stack(np.meshgrid(*(np.arange(n) for n in fixed.shape), indexing="ij")).reshape(3, -1)
    world = fixed.affine[:3, :3] @ indices + fixed.affine[:3, 3:] + displacement.reshape(3, -1)
    back = np.linalg.inv(moving.affine)
    index = (back[:3, :3] @ world + back[:3, 3:]).reshape(3, *fixed.shape)
    return map_coordinates(np.asarray(moving.data, np.float32), index, order=1, mode="constant", cval=0.0)


def save_displacement(displacement, fixed, path: Path) -> None:
    """Write a field (3, X, Y, Z) [mm, RAS] as the vector image that SimpleITK and ITK read (components in LPS)."""
    import numpy as np
    import SimpleITK as sitk

    from shared import nifti
    from shared.files import write_atomically

    lps = displacement * np.reshape([-1.0, -1.0, 1.0], (3, 1, 1, 1))
    like = nifti.to_sitk(fixed)
    image = sitk.GetImageFromArray(np.ascontiguousarray(lps.transpose(3, 2, 1, 0)).astype(np.float32), isVector=True)
    image.CopyInformation(like)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".nii.gz") else ".nii"

    def write(temporary: Path) -> None:
        named = temporary.with_name(temporary.name + suffix)  # ITK chooses the format by the suffix
        sitk.WriteImage(image, str(named))
        named.replace(temporary)

    write_atomically(path, write)


def draw_pair(moving, fixed, field, losses: list[float], out: Path) -> None:
    """A figure of one registration: images, overlays before and after, grid, |J|, loss at each iteration."""
    import matplotlib
    import torch

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.nio.measures import jacobian_determinant
    from papers.nio.model import warp
    from shared.files import write_atomically

    warped = warp(torch.from_numpy(moving)[None, None], field)[0, 0].numpy()
    determinant = jacobian_determinant(field)[0].numpy()
    figure, axes = plt.subplots(2, 4, figsize=(11, 6))
    m, f, w = (slice_of(volume, 2) for volume in (moving, fixed, warped))
    for axis, title, picture in zip(axes[0], ("fixed", "moving", "warped"), (f, m, w)):
        axis.imshow(picture.T, cmap="gray", vmin=0, vmax=1, origin="lower")
        axis.set_title(title, fontsize=9)
    axes[1, 0].imshow(overlay(m, f), origin="lower")
    axes[1, 0].set_title("before: moving red, fixed cyan", fontsize=9)
    axes[1, 1].imshow(overlay(w, f), origin="lower")
    axes[1, 1].set_title("after", fontsize=9)
    draw_grid(axes[1, 2], field, 2, step=max(1, max(f.shape) // 40))
    axes[1, 2].set_title("deformed grid", fontsize=9)
    shown = axes[0, 3].imshow(slice_of(determinant, 2).T, cmap="RdBu_r", vmin=0, vmax=2, origin="lower")
    axes[0, 3].set_title("|J|", fontsize=9)
    figure.colorbar(shown, ax=axes[0, 3], fraction=0.05)
    for axis in axes.flat[:7]:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[1, 3].plot(range(1, len(losses) + 1), losses, linewidth=1)
    axes[1, 3].set_title("loss at each iteration", fontsize=9)
    figure.tight_layout(pad=0.5)
    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=90, format="png"))
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
