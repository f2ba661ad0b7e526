"""Evaluate on test images, draw the panel and the robustness curves, and take a user's own images apart.

python -m papers.unoranic.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.unoranic.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.unoranic.eval robustness --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out curves.png
python -m papers.unoranic.eval apply --checkpoint RUN/checkpoint.pt --input film.png --output out/restored.png
"""

from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

MOST_PSNR = 60.0  # dB; a corruption may leave an image as it is


def load_networks(checkpoint: Path, device):
    """The networks of a checkpoint by data set, in evaluation mode, and the configuration.

    Raises:
        InputError: no checkpoint of this paper.
    """
    from papers.unoranic.train import Config, KnownTables, build_model
    from shared.checkpoints import load_checkpoint, load_config

    content = load_checkpoint(checkpoint, "unoranic")
    config = load_config(content, Config, checkpoint)
    known = KnownTables()
    known.load_state_dict(content["objects"]["tables"])
    states, networks = iter(content["models"]), {}
    for name, (channels, classes) in known.tables.items():
        networks[name] = build_model(config, channels, classes)
        if networks[name] is not None:
            networks[name].load_state_dict(next(states))
            networks[name].to(device).eval()
    return networks, config, known.tables


def in_batches(function, images, size: int = 256):
    """`function` of images (N, C, H, W) in parts of `size`, without gradients; a tuple of outputs stays one."""
    import torch

    with torch.no_grad():
        parts = [function(part) for part in images.split(size)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(part) for part in zip(*parts))
    return torch.cat(parts)


class Method:
    """One network seen through the same four questions, whatever it is: embeddings, reconstructions, probes."""

    def __init__(self, network, config, table, device):
        self.network, self.config, self.table, self.device = network, config, table, device
        self.probes = {}

    def outputs(self, images) -> tuple:
        """(embedding of the anatomy, of the characteristics, restored image, reconstruction) of images.

        The autoencoder has one embedding and one reconstruction for both purposes.
        """
        images = images.to(self.device)
        if self.config.method == "unoranic":
            return in_batches(lambda part: tuple(self.network(part)), images)
        embedding, reconstruction = in_batches(self.network, images)
        return embedding, embedding, reconstruction, reconstruction

    def embeddings(self, images) -> dict:
        """{"anatomy": E_A, "characteristics": E_C}, without decoding; the same one twice for the autoencoder."""
        images = images.to(self.device)
        if self.config.method == "ae":
            embedding = in_batches(self.network.encoder, images)
            return {"anatomy": embedding, "characteristics": embedding}
        return {
            "anatomy": in_batches(self.network.anatomy_encoder, images),
            "characteristics": in_batches(self.network.characteristic_encoder, images),
        }

    def fit_probes(self) -> None:
        """Linear layers for the disease, on clean images, and for "corrupted or not", on either embedding (M6)."""
        from papers.unoranic.scores import fit_probe

        if self.config.method == "resnet":
            return
        splits = [(self.table.train, 0), (self.table.val, 1)]
        clean = [(self.embeddings(split.images), split.labels.to(self.device)) for split, _ in splits]
        mixed = [detection_images(split.images, number) for split, number in splits]
        mixed = [(self.embeddings(images), labels.to(self.device)) for images, labels in mixed]
        for task, pairs, classes in (("disease", clean, self.table.classes), ("corruption", mixed, 2)):
            for embedding in ("anatomy", "characteristics"):
                train, val = ((found[embedding], labels) for found, labels in pairs)
                self.probes[task, embedding] = fit_probe(train, val, classes)

    def probabilities(self, images, task: str, embedding: str):
        """(N, classes) for the task "disease" or "corruption", from the embedding "anatomy" or "characteristics"."""
        if self.config.method == "resnet":
            return in_batches(getattr(self.network, task), images.to(self.device)).softmax(1)
        if self.config.method == "ae" or embedding == "characteristics":
            encoder = self.network.encoder if self.config.method == "ae" else self.network.characteristic_encoder
        else:
            encoder = self.network.anatomy_encoder
        return self.probes[task, embedding](in_batches(encoder, images.to(self.device))).softmax(1)


def generator(*numbers: int):
    """A generator that is the same for every method, so that all see the same corrupted images."""
    import numpy as np
    import torch

    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def corrupted_by(images, name: str, number: int = 0):
    """Images under one of the twelve corruptions, each with parameters of its own, the same ones at every call."""
    from papers.unoranic.corruptions import CORRUPTIONS, corrupt, draw_one_type

    place = list(CORRUPTIONS).index(name)
    return corrupt(images, draw_one_type(name, len(images), tuple(images.shape[1:]), generator(1, place, number)))


def detection_images(images, split: int) -> tuple:
    """The images of a split, half of them with one corruption, and (N,) which."""
    from papers.unoranic.corruptions import corrupt, draw_detection

    draws = draw_detection(len(images), tuple(images.shape[1:]), generator(2, split))
    return corrupt(images, draws), draws.applied.any(1).long()


def psnr(prediction, truth):
    """PSNR of each image in dB, for a range of 1 and the prediction clipped to it; at most `MOST_PSNR`."""
    from shared import metrics

    prediction, truth = prediction.cpu().clamp(0, 1).flatten(1, 2), truth.cpu().flatten(1, 2)
    return metrics.psnr(prediction, truth, data_range=1.0).clamp(max=MOST_PSNR)


def revision(method: Method) -> dict:
    """PSNR(I, Î_A) of each test image for each corruption, in dB (M8b), and how far E_A moves under corruption.

    "revised_none" is that of the clean image, "revised_mean" and "revised_spread" are mean and standard deviation
    over the twelve corruptions. For variant `corrupted`, Î_A is S itself. "drift" is the squared distance of the
    embeddings of S and I over the mean squared distance of two test images.
    """
    import torch

    from papers.unoranic.corruptions import CORRUPTIONS

    images, nothing = method.table.test.images, method.config.method == "none"
    values, drift = {}, []
    if not nothing:
        anatomy, _, restored, _ = method.outputs(images)
        between = 2 * anatomy.double().var(0).sum()
        values["revised_none"] = psnr(restored, images)
    for name in CORRUPTIONS:
        corrupted = corrupted_by(images, name)
        if nothing:
            values[f"revised_{name}"] = psnr(corrupted, images)
            continue
        moved, _, restored, _ = method.outputs(corrupted)
        values[f"revised_{name}"] = psnr(restored, images)
        drift.append((moved - anatomy).double().square().sum(1) / between)
    each = torch.stack([values[f"revised_{name}"] for name in CORRUPTIONS])
    values |= {"revised_mean": each.mean(0), "revised_spread": each.std(0)}
    return values | ({"drift": torch.stack(drift).mean(0).cpu()} if drift else {})


def classification(method: Method) -> dict:
    """AUC and accuracy of disease and corruption (M8c, d), as values of the images whose mean they are.

    "gap" is how much better the right embedding is than the other: E_A for disease, E_C for corruption.
    """
    from papers.unoranic.scores import auc_values

    test = method.table.test
    mixed, is_corrupted = detection_images(test.images, 2)
    values = {}
    for task, images, labels, right, other in (
        ("disease", test.images, test.labels, "anatomy", "characteristics"),
        ("corruption", mixed, is_corrupted, "characteristics", "anatomy"),
    ):
        found = method.probabilities(images, task, right).cpu()
        values[f"{task}_auc"] = auc_values(found, labels)
        values[f"{task}_acc"] = (found.argmax(1) == labels).double()
        if method.config.method == "unoranic":
            swapped = auc_values(method.probabilities(images, task, other).cpu(), labels)
            values[f"{task}_gap"] = values[f"{task}_auc"] - swapped
    return values


def robustness_values(method: Method) -> dict:
    """AUC of the disease under each common corruption and severity (M8e): {(name, severity): values of the images}."""
    from papers.unoranic.common_corruptions import COMMON_CORRUPTIONS, SEVERITIES, corrupt_at
    from papers.unoranic.scores import auc_values

    test, values = method.table.test, {}
    for number, name in enumerate(COMMON_CORRUPTIONS):
        for severity in SEVERITIES:
            images = corrupt_at(name, test.images, severity, generator(3, number, severity))
            values[name, severity] = auc_values(method.probabilities(images, "disease", "anatomy").cpu(), test.labels)
    return values


def robustness_losses(clean, values: dict) -> dict:
    """Fall of the AUC from the clean images: mean over all corruptions and severities, and over the three noises."""
    import torch

    from papers.unoranic.common_corruptions import NOISES

    mean = torch.stack(list(values.values())).mean(0)
    noise = torch.stack([found for (name, _), found in values.items() if name in NOISES]).mean(0)
    return {"auc_loss": clean - mean, "auc_loss_noise": clean - noise}


def image_values(method: Method) -> dict:
    """All columns of metrics.csv: name -> (N,), a value for each test image."""
    from fnmatch import fnmatch

    values, kind = {}, method.config.method
    if kind in ("unoranic", "ae"):
        test = method.table.test.images
        values["psnr"] = psnr(method.outputs(test)[3], test)
    if kind != "resnet":
        values |= revision(method)
    if kind != "none":
        method.fit_probes()
        values |= classification(method)
        if any(fnmatch(method.table.name, pattern) for pattern in method.config.robustness):
            values |= robustness_losses(values["disease_auc"], robustness_values(method))
    return values


def columns() -> list[str]:
    """The columns of metrics.csv after "case"."""
    from papers.unoranic.corruptions import CORRUPTIONS

    revised = [f"revised_{name}" for name in ("none", *CORRUPTIONS, "mean", "spread")]
    tasks = [f"{task}_{score}" for task in ("disease", "corruption") for score in ("auc", "acc", "gap")]
    return ["psnr", *revised, "drift", *tasks, "auc_loss", "auc_loss_noise"]


def methods_of(data: Path, checkpoint: Path, device) -> dict:
    """A `Method` per data set.

    Raises:
        InputError: the checkpoint is of other data sets or of other images than those in the folder.
    """
    from papers.unoranic.data import read_tables

    networks, config, known = load_networks(checkpoint, device)
    tables = read_tables(data, config.datasets, config.side)
    found = {name: [table.channels, table.classes] for name, table in tables.items()}
    if found != known:
        raise InputError(
            f"{checkpoint}: was trained on {known} and {data} holds {found} (name: channels, classes); these must agree"
        )
    return {name: Method(networks[name], config, table, device) for name, table in tables.items()}


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: a row for each of the equal random parts (blocks) of every data set's test images.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.unoranic.scores import block_means
    from shared.files import write_csv
    from shared.gpu import choose_device

    rows = []
    for name, method in methods_of(data, checkpoint, choose_device(device)).items():
        blocks = min(method.config.blocks, len(method.table.test.images))
        values = {column: block_means(found, blocks) for column, found in image_values(method).items()}
        for block in range(blocks):
            cells = {key: values[key][block].item() if key in values else "" for key in columns()}
            rows.append({"case": f"{name}/{block:02d}", **cells})

    write_csv(Path(out) / "metrics.csv", rows)


# --- pictures --------------------------------------------------------------------------------------------

TITLES = {
    "corrupted": "corrupted image itself",
    "ae": "autoencoder",
    "ae_wide": "autoencoder, wide",
    "resnet": "ResNet-18",
    "resnet_corrupted": "ResNet-18, corrupted images",
    "no_consistency": "unORANIC, λc = 0",
    "full": "unORANIC",
}
SHOWN = ("solarize", "inversion", "colour_jitter", "gaussian_noise", "motion_blur")


def draw_image(axis, image, title: str = "") -> None:
    """(C, H, W) in [0, 1], values beyond clipped."""
    picture = image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one test image of each data set under five corruptions: the image, its corruption, what each checkpoint
    makes of it, and what unORANIC adds to the anatomy (Ŝ - Î_A, grey is none); below, PSNR by corruption.

    Args:
        data: the data set.
        checkpoints: of variants with reconstructions; the last one's Ŝ and residual are shown.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test image.
    """
    import numpy as np

    from papers.unoranic.corruptions import CORRUPTIONS
    from shared.figures import pyplot, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    methods = [methods_of(data, path, where) for path in checkpoints]
    tables = {name: method.table for name, method in methods[0].items()}
    for name, table in tables.items():
        if not 0 <= case < len(table.test.images):
            raise InputError(f"{data}: {name} has no test image number {case}, it has {len(table.test.images)}")
    titles = [TITLES[found[next(iter(tables))].config.variant] for found in methods]
    heads = ["clean I", "corrupted S", *titles, "faithful Ŝ", "Ŝ - restored"]
    rows, width = len(SHOWN) * len(tables), 1.25 * len(heads)
    figure = pyplot().figure(figsize=(width + 0.8, 1.3 * rows + 3.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.3 * rows, 3.2])
    axes = top.subplots(rows, len(heads), squeeze=False)
    below = bottom.subplots(1, len(tables), squeeze=False)[0]
    for number, (name, table) in enumerate(tables.items()):
        image = table.test.images[case : case + 1]
        for k, corruption in enumerate(SHOWN):
            row = axes[number * len(SHOWN) + k]
            corrupted = corrupted_by(image, corruption, case)
            outputs = [found[name].outputs(corrupted) for found in methods]
            _, _, restored, reconstruction = outputs[-1]
            pictures = [image, corrupted, *(found[2] for found in outputs), reconstruction]
            pictures.append(0.5 + (reconstruction - restored) / 2)
            for axis, picture, title in zip(row, pictures, heads):
                draw_image(axis, picture[0], title if not number and not k else "")
            row[0].set_ylabel(corruption.replace("_", "\n"), fontsize=9, rotation=0, ha="right", va="center")
        shown = {"corrupted S": {c: psnr(corrupted_by(table.test.images, c), table.test.images) for c in CORRUPTIONS}}
        for title, found in zip(titles, methods):
            values = revision(found[name])
            shown[title] = {c: values[f"revised_{c}"] for c in CORRUPTIONS}
        for place, (title, values) in enumerate(shown.items()):
            heights = [value.mean().item() for value in values.values()]
            offsets = np.arange(len(heights)) + (place - (len(shown) - 1) / 2) * 0.8 / len(shown)
            colour = "0.7" if not place else None
            below[number].bar(offsets, heights, 0.8 / len(shown), label=title, color=colour)
        below[number].set_xticks(range(len(CORRUPTIONS)), [c.replace("_", " ") for c in CORRUPTIONS])
        below[number].tick_params(axis="x", labelrotation=60, labelsize=8)
        below[number].set_title(f"{name}: PSNR against the clean image, dB", fontsize=9)
    below[0].legend(fontsize=7, loc="upper left")
    save_figure(figure, out)


def robustness(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", dataset: str = "") -> None:
    """Draw the AUC of the disease against the severity of each common corruption (figure 5b), and write the numbers
    to a .csv file of the same name.

    Args:
        data: the data set.
        checkpoints: a curve each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        dataset: name of the data set; empty is the last one in alphabetic order.
    """
    from papers.unoranic.common_corruptions import COMMON_CORRUPTIONS, SEVERITIES
    from papers.unoranic.scores import auc_values
    from shared.figures import pyplot, save_figure
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where, lines = choose_device(device), ["variant,corruption,severity,auc"]
    columns = 5
    rows = -(-len(COMMON_CORRUPTIONS) // columns)
    figure, axes = pyplot().subplots(
        rows, columns, figsize=(2.4 * columns, 2.1 * rows), sharex=True, sharey=True, layout="constrained"
    )
    for checkpoint in checkpoints:
        found = methods_of(data, checkpoint, where)
        name = dataset or list(found)[-1]
        if name not in found or found[name].config.method == "none":
            raise InputError(f"{checkpoint}: has no classifier for '{name}'; it knows {', '.join(found)}")
        method = found[name]
        method.fit_probes()
        test, variant = method.table.test, method.config.variant
        clean = auc_values(method.probabilities(test.images, "disease", "anatomy").cpu(), test.labels).mean().item()
        values = robustness_values(method)
        for axis, corruption in zip(axes.flat, COMMON_CORRUPTIONS):
            curve = [clean, *(values[corruption, severity].mean().item() for severity in SEVERITIES)]
            axis.plot([0, *SEVERITIES], curve, marker="o", markersize=3, label=TITLES[variant])
            axis.set_title(corruption.replace("_", " "), fontsize=9)
            lines += [f"{variant},{corruption},{k},{value:.6f}" for k, value in enumerate(curve)]
    for axis in axes.flat[len(COMMON_CORRUPTIONS) :]:
        axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].legend(handles, labels, loc="center", fontsize=8)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel(f"AUC on {name}", fontsize=9)
    text = "\n".join(lines) + "\n"
    write_atomically(Path(out).with_suffix(".csv"), lambda path: path.write_text(text, "utf-8"))
    save_figure(figure, out)


# --- a user's own images ---------------------------------------------------------------------------------


def apply(
    checkpoint: Path,
    input: Path,
    output: Path,
    device: str = "auto",
    dataset: str | None = None,
    slice: int | None = None,
) -> None:
    """Take images apart into anatomy and characteristics.

    From a picture or a NIfTI slice, `output` is a PNG of the anatomy Î_A; beside it lie NAME_faithful.png (Ŝ),
    NAME_residual.png (Ŝ - Î_A, mid-grey is none), NAME_overview.png and NAME_features.npz. From a MedMNIST table
    (.npz), `output` is an .npz of all its test images. Both .npz hold `anatomy`, `characteristics` (N, latent),
    `restored`, `reconstruction` and `residual` (N, C, H, W).

    Args:
        checkpoint: of variant full or no_consistency.
        input: .png, .jpg, .nii, .nii.gz, or .npz in the layout of MedMNIST. Pictures are cropped to their central
            square and averaged down to the network's size.
        output: .png, or .npz for a table.
        device: auto, cpu, cuda, ...
        dataset: which network of the checkpoint to use; default: the first for this number of channels, and the one of
            the same name for a table.
        slice: number of a NIfTI volume's slice along its third axis; default: the middle one.
    """
    import numpy as np

    from papers.unoranic.data import name_of, read_table
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    networks, config, known = load_networks(checkpoint, where)
    if config.method != "unoranic":
        raise InputError(f"{checkpoint}: variant '{config.variant}' has no two branches: use one of variant 'full'")
    is_table = Path(input).suffix == ".npz"
    if Path(output).suffix != (".npz" if is_table else ".png"):
        raise InputError(f"{output}: expected a name with {'.npz' if is_table else '.png'} for this input")
    if is_table:
        images = read_table(Path(input), config.side).test.images
        dataset = dataset or (name_of(Path(input)) if name_of(Path(input)) in known else None)
    else:
        images = read_own_image(Path(input), config.side, slice)
    channels = images.shape[1]
    fitting = [name for name, (trained, _) in known.items() if trained == channels]
    if dataset is None and fitting:
        dataset = fitting[0]
    if dataset not in fitting:
        kind = "colour" if channels == 3 else "grey"
        raise InputError(f"{checkpoint}: has no network '{dataset}' for {kind} images; it has {', '.join(known)}")
    found = in_batches(lambda part: tuple(networks[dataset](part)), images.to(where))
    anatomy, characteristics, restored, reconstruction = (part.cpu() for part in found)
    arrays = {
        "anatomy": anatomy,
        "characteristics": characteristics,
        "restored": restored,
        "reconstruction": reconstruction,
        "residual": reconstruction - restored,
    }
    arrays = {name: array.numpy() for name, array in arrays.items()}

    def save_arrays(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    if is_table:
        write_atomically(Path(output), save_arrays)
        return
    residual = 0.5 + (reconstruction - restored) / 2
    pictures = {"": restored, "_faithful": reconstruction, "_residual": residual}
    beside = Path(output).with_suffix("")
    write_atomically(Path(f"{beside}_features.npz"), save_arrays)
    overview(images, restored, reconstruction, residual, Path(f"{beside}_overview.png"))
    for ending, picture in reversed(pictures.items()):  # the file that was asked for comes last
        write_png(picture[0], Path(f"{beside}{ending}.png"))


def read_own_image(path: Path, side: int, slice: int | None):
    """A user's image as (1, C, side, side) in [0, 1]: C is 1 if it has no colour.

    A NIfTI slice is scaled from its 1st to its 99th percentile; rows run along its second axis.

    Raises:
        InputError: missing, broken, of another format, too small, or no such slice.
    """
    import numpy as np
    import torch

    from papers.unoranic.data import resized
    from shared import nifti

    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected .png, .jpg, .nii, .nii.gz or .npz")
    if path.name.endswith((".nii", ".nii.gz")):
        voxels = nifti.load(path, ndim={2, 3}).data
        if voxels.ndim == 3:
            number = voxels.shape[2] // 2 if slice is None else slice
            if not 0 <= number < voxels.shape[2]:
                raise InputError(f"{path}: has no slice {number}, it has {voxels.shape[2]} of them")
            voxels = voxels[..., number]
        low, high = np.percentile(voxels, (1, 99))
        pixels = ((voxels.T - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32)[None]
    else:
        from PIL import Image

        try:
            with Image.open(path) as picture:
                if picture.mode.startswith(("I", "F")):
                    raise ValueError("16 bit or floating point")
                pixels = np.asarray(picture.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
        except Exception as error:
            raise InputError(f"{path}: not a readable 8-bit picture (truncated, or another format)") from error
        if np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2]):
            pixels = pixels[:1]
    _, height, width = pixels.shape
    square = min(height, width)
    if square < side:
        raise InputError(f"{path}: has {width} x {height} pixels, fewer than the {side} that the network needs")
    top, left = (height - square) // 2, (width - square) // 2
    pixels = np.ascontiguousarray(pixels[:, top : top + square, left : left + square])
    return resized(torch.from_numpy(pixels)[None], side)


def write_png(image, path: Path) -> None:
    """(C, H, W) in [0, 1] as an 8-bit PNG, values beyond clipped."""
    from PIL import Image

    from shared.files import write_atomically

    levels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def overview(images, restored, reconstruction, residual, path: Path) -> None:
    """The four pictures of `apply` side by side, enlarged."""
    from shared.figures import pyplot, save_figure

    figure, axes = pyplot().subplots(1, 4, figsize=(10, 2.8), layout="constrained")
    titles = ("image S", "anatomy Î_A", "faithful Ŝ", "Ŝ - Î_A (grey: none)")
    for axis, picture, title in zip(axes, (images, restored, reconstruction, residual), titles):
        draw_image(axis, picture[0], title)
    save_figure(figure, path)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "robustness": robustness, "apply": apply}, argv)


if __name__ == "__main__":
    main()
