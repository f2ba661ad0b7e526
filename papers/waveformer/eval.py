"""Evaluate per case, draw the panel, apply to a user's own CT or photograph, prepare BTCV.

python -m papers.waveformer.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.waveformer.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.waveformer.eval apply --checkpoint RUN/checkpoint.pt --input ct.nii.gz --output organs.nii.gz
python -m papers.waveformer.eval prepare --raw RawData/Training --out DATA
"""

import csv
from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

BATCH = 16  # slices that go through the network at a time


def load_model(checkpoint: Path, device):
    """The trained network of a checkpoint in evaluation mode, and its configuration.

    Raises:
        InputError: no checkpoint of this paper.
    """
    from papers.waveformer.train import Config, build_model
    from shared.checkpoints import load_checkpoint, load_config

    content = load_checkpoint(checkpoint, "waveformer")
    config = load_config(content, Config, checkpoint)
    model = build_model(config)
    model.load_state_dict(content["models"][0])
    return model.to(device).eval(), config


def predict(model, config, images, device):
    """Labels of slices, and the spectra inside the network.

    Args:
        images: (D, H, W) or (D, H, W, 3) in 0..1.

    Returns:
        labels, uint8 (D, H, W), at the size of the images; and (blocks, D), the share of high frequencies after each
        block of the encoder.
    """
    import numpy as np
    import torch

    from papers.waveformer.data import resize, to_input
    from papers.waveformer.spectrum import high_frequency_share

    labels, shares = [], []
    with torch.no_grad():
        for first in range(0, len(images), BATCH):
            batch = torch.stack([to_input(image, config.image_size) for image in images[first : first + BATCH]])
            spectra: list = []

            def note(stage, maps, spectra=spectra):
                spectra.append(high_frequency_share(maps).cpu())

            logits = model(batch.to(device), note)
            found = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
            labels += [resize(label, images.shape[1:3], 0) for label in found]
            shares.append(torch.stack(spectra))
    return np.stack(labels), torch.cat(shares, dim=1).numpy()


def measure(config, case, prediction) -> dict[str, float]:
    """The scores of a case: a row of metrics.csv without its name and spectrum; NaN where a column has no meaning."""
    import numpy as np

    from papers.waveformer.data import CLASSES, ORGANS
    from papers.waveformer.scores import plain_scores, transunet_scores

    labels = list(range(1, CLASSES[config.dataset]))
    if config.dataset == "isic":
        found, truth = prediction[0], case.label[0]
        plain = plain_scores(found, truth, labels, (1.0, 1.0))
        both = float(((found == 1) & (truth == 1)).sum())
        neither = float(((found == 0) & (truth == 0)).sum())
        return {
            **dict.fromkeys(("dice", "dice_transunet", "hd95", "hd95_mm"), float("nan")),
            **dict.fromkeys((*(f"dice_{name}" for name in ORGANS), "pancreas_lag"), float("nan")),
            "lesion_dice": plain["dice"][0],
            "lesion_hd95": plain["hd95_mm"][0],  # the spacing of a photograph is a pixel
            "lesion_sensitivity": 100 * both / max(1, (truth == 1).sum()),
            "lesion_specificity": 100 * neither / max(1, (truth == 0).sum()),
            "lesion_accuracy": 100 * (both + neither) / truth.size,
        }
    protocol = transunet_scores(prediction, case.label, labels)
    plain = plain_scores(prediction, case.label, labels, case.spacing or config.spacing_mm)
    organs = dict(zip(ORGANS, plain["dice"]))
    others = [value for name, value in organs.items() if name != "pancreas"]
    present = bool(np.isfinite(plain["dice"]).any())
    return {
        "dice": float(np.nanmean(plain["dice"])) if present else float("nan"),
        "dice_transunet": float(np.mean(protocol["dice"])),
        "hd95": float(np.mean(protocol["hd95"])),
        "hd95_mm": float(np.nanmean(plain["hd95_mm"])) if present else float("nan"),
        **{f"dice_{name}": value for name, value in organs.items()},
        "pancreas_lag": float(np.nanmean(others)) - organs["pancreas"] if np.isfinite(others).any() else float("nan"),
        **{f"lesion_{name}": float("nan") for name in ("dice", "hd95", "sensitivity", "specificity", "accuracy")},
    }


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto", split: str = "test") -> None:
    """Write metrics.csv: a row per volume (or photograph).

    CT: `dice` [%] and `hd95_mm` are means over the organs that the truth or the prediction has; `dice_transunet` [%]
    and `hd95` [voxels] follow TransUNet's protocol; `dice_<organ>` [%]; `pancreas_lag` is how far the pancreas lies
    behind the mean of the other organs, in points. Photographs: `lesion_...` [%, pixels]. Both: `hf_share` [%], the
    energy above half the Nyquist frequency in the features after the third stage.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
        split: test; of ISIC also valid.
    """
    from papers.waveformer.data import test_cases
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    model, config = load_model(checkpoint, where)
    if split not in ("test", "valid") or (split == "valid" and config.dataset == "synapse"):
        raise InputError(f"--split {split}: expected test, or valid for ISIC")
    rows = []
    for read in test_cases(data, config.dataset, split):
        case = read()
        prediction, shares = predict(model, config, case.images, where)
        spectrum = 100 * float(shares[5].mean())  # after the second block of the third stage
        rows.append({"case": case.name, **measure(config, case, prediction), "hf_share": spectrum})

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            # an organ that a case lacks leaves its cell empty
            writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)

    write_atomically(Path(out) / "metrics.csv", write)


COLOURS = ("#e6550d", "#31a354", "#3182bd", "#9ecae1", "#a1584d", "#fdd049", "#9467bd", "#e377c2")


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one test case: two slices with the labels of the truth and of each checkpoint, a close-up of the pancreas,
    and the share of high frequencies along the encoder.

    Args:
        data: the data set.
        checkpoints: one column each, all of one data set.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test case.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    from papers.waveformer.data import CLASSES, ORGANS, test_cases
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    models = [load_model(path, where) for path in checkpoints]
    datasets = {config.dataset for _, config in models}
    if len(datasets) != 1:
        raise InputError("the checkpoints are of different data sets; a panel shows one")
    dataset = datasets.pop()
    cases = test_cases(data, dataset)
    if not 0 <= case < len(cases):
        raise InputError(f"{data}: there is no test case number {case}, there are {len(cases)}")
    shown = cases[case]()
    predictions, spectra = {}, {}
    for model, config in models:
        labels, shares = predict(model, config, shown.images, where)
        predictions[config.variant], spectra[config.variant] = labels, 100 * shares.mean(axis=1)

    classes = CLASSES[dataset]
    colours = ListedColormap(COLOURS[: classes - 1])
    per_slice = np.stack([(shown.label == c).sum(axis=(1, 2)) for c in range(1, classes)])
    if dataset == "synapse":
        middle = int(per_slice[5].argmax())  # most pancreas
        other = int((per_slice[[1, 2, 3, 7]] > 0).sum(axis=0).argmax())  # gallbladder, kidneys and stomach
        if other == middle:
            other = min(middle + max(1, len(shown.label) // 6), len(shown.label) - 1)
        place = np.argwhere(shown.label[middle] == 6)
        centre = place.mean(axis=0) if len(place) else np.array(shown.label.shape[1:]) / 2
        half = shown.label.shape[1] // 5
        low = np.clip(centre - half, 0, np.array(shown.label.shape[1:]) - 2 * half - 1).astype(int)
        crop = (slice(low[0], low[0] + 2 * half), slice(low[1], low[1] + 2 * half))
        whole = (slice(None), slice(None))
        views = {"upper or lower slice": (other, whole), "slice": (middle, whole), "close-up": (middle, crop)}
    else:
        views = {"photograph": (0, (slice(None), slice(None)))}

    columns = {"image": None, "truth": shown.label, **predictions}
    fig = plt.figure(figsize=(2.1 * len(columns) + 3.4, 2.15 * max(len(views), 1) + 0.6))
    grid = fig.add_gridspec(len(views), len(columns) + 2, width_ratios=[1] * len(columns) + [0.28, 1.45])
    for column, (name, labels) in enumerate(columns.items()):
        for row, (view, (z, part)) in enumerate(views.items()):
            axis = fig.add_subplot(grid[row, column])
            image = shown.images[z][part]
            if dataset == "synapse":  # columns of the published arrays run to the back: turn the patient upright
                image = image.T
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            if labels is not None:
                overlay = labels[z][part].T if dataset == "synapse" else labels[z][part]
                overlay = np.ma.masked_equal(overlay, 0)
                axis.imshow(overlay, cmap=colours, vmin=0.5, vmax=classes - 0.5, alpha=0.62, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                score = ""
                if name in predictions:
                    config = next(config for _, config in models if config.variant == name)
                    scores = measure(config, shown, labels)
                    score = f"\nDice {scores['dice' if dataset == 'synapse' else 'lesion_dice']:.1f} %"
                axis.set_title(name + score, fontsize=9)
            if column == 0:
                axis.set_ylabel(view, fontsize=8)
    axis = fig.add_subplot(grid[: max(1, 2 * len(views) // 3), -1])
    for name, shares in spectra.items():
        axis.plot(range(1, len(shares) + 1), shares, marker="o", markersize=3, label=name)
    blocks = len(next(iter(spectra.values())))
    axis.set_xticks(range(1, blocks + 1), [f"{1 + k // 2}.{1 + k % 2}" for k in range(blocks)], fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("depth: stage.block of the encoder", fontsize=8)
    axis.set_title("energy above half Nyquist [%]", fontsize=9)
    axis.legend(fontsize=7)
    names = [name.replace("_", " ") for name in ORGANS] if dataset == "synapse" else ["lesion"]
    handles = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, names)]
    fig.legend(handles=handles, loc="lower right", ncols=2, fontsize=8, frameon=False)
    fig.subplots_adjust(0.02, 0.03, 0.985, 0.9, 0.04, 0.05)
    write_atomically(Path(out), lambda path: fig.savefig(path, dpi=90, format="png"))
    plt.close(fig)


def apply(checkpoint: Path, input: Path, output: Path, boundary: Path | None = None, device: str = "auto") -> None:
    """Segment a user's own CT, or photograph.

    A CT is clipped to the training window, segmented slice by slice and stacked again: the label map has the scan's own
    grid, spacing and affine (1 aorta, 2 gallbladder, 3 left kidney, 4 right kidney, 5 liver, 6 pancreas, 7 spleen,
    8 stomach). A photograph gives a mask of 0 and 255.

    Args:
        checkpoint: of any variant; the data set that it was trained on decides what `input` is.
        input: CT in HU, axial, .nii or .nii.gz, or a test volume .npy.h5; or a photograph, .jpg or .png.
        output: .nii or .nii.gz, or .png for a photograph.
        boundary: .nii or .nii.gz for the mean boundary attention of the first block, of a CT, if wanted.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file that is missing, broken or of the wrong kind; a checkpoint without boundary attention.
    """
    import numpy as np

    from papers.waveformer.data import WINDOW, read_photo, read_volume
    from shared import nifti, resample
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    model, config = load_model(checkpoint, where)
    if boundary is not None and (config.attention != "fet" or not config.boundary or config.dataset != "synapse"):
        raise InputError(f"{checkpoint}: variant '{config.variant}' has no boundary attention; leave out --boundary")
    if config.dataset == "isic":
        if Path(output).suffix.lower() != ".png":
            raise InputError(f"{output}: the mask of a photograph is a picture, its name must end in .png")
        from PIL import Image

        labels, _ = predict(model, config, read_photo(Path(input))[None], where)
        write_atomically(Path(output), lambda path: Image.fromarray(255 * labels[0]).save(path, format="png"))
        return
    for path in (output, boundary):
        if path is not None and not str(path).endswith((".nii", ".nii.gz")):
            raise InputError(f"{path}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    if str(input).endswith(".h5"):
        case = read_volume(Path(input))
        depth, height, width = case.spacing or config.spacing_mm
        scan = nifti.make_image(np.moveaxis(case.images, 0, 2), np.diag([-height, -width, depth, 1.0]), Path(input))
        images = case.images
    else:
        scan = nifti.load(input, ndim=3, dtype=np.float32)
        if scan.data.min() >= WINDOW[1] or scan.data.max() <= WINDOW[0] or scan.data.std() == 0:
            raise InputError(f"{input}: no voxel lies within {WINDOW[0]:g} to {WINDOW[1]:g}; expected a CT in HU")
        images = from_ras(resample.to_ras(scan).data)
        images = (np.clip(images, *WINDOW) - np.float32(WINDOW[0])) / np.float32(WINDOW[1] - WINDOW[0])
    maps = {output: predict(model, config, images, where)[0]}
    if boundary is not None:
        maps[boundary] = boundary_map(model, config, images, where)
    grid = resample.to_ras(scan)
    for path, found in maps.items():
        on_grid = nifti.make_image(from_ras(found, back=True), grid.affine, Path(path))
        nifti.save(path, resample.restore_orientation(on_grid, scan).data, like=scan, dtype=found.dtype)


def from_ras(volume, back: bool = False):
    """(R, A, S) voxels to the published (slice, x to the left, y to the back), or back."""
    import numpy as np

    if back:
        return np.ascontiguousarray(np.moveaxis(volume, 0, 2)[::-1, ::-1])
    return np.ascontiguousarray(np.moveaxis(volume[::-1, ::-1], 2, 0))


def boundary_map(model, config, images, device):
    """Mean over the channels of B_att in the encoder's first block, float32 (D, H, W) in 0..1."""
    import numpy as np
    import torch

    from papers.waveformer.data import resize, to_input

    found = []
    with torch.no_grad():
        for image in images:
            tokens, height, width = model.encoder.embeddings[0](to_input(image, config.image_size)[None].to(device))
            block = model.encoder.blocks[0][0]
            attention = block.attention.boundary_attention(block.attention_norm(tokens), height, width)
            found.append(resize(attention[0].mean(dim=0).float().cpu().numpy(), image.shape[:2], 1))
    return np.stack(found).astype(np.float32)


def prepare(raw: Path, out: Path) -> None:
    """BTCV as downloaded to TransUNet's layout: clip to -125..275 HU, scale to 0..1, eight organs.

    Args:
        raw: RawData/Training, with img/img0001.nii.gz and label/label0001.nii.gz.
        out: folder for Synapse/ and lists/.
    """
    from papers.waveformer.btcv import prepare_btcv

    training, test = prepare_btcv(Path(raw), Path(out))
    print(f"{out}: {training} training slices, {test} test volumes")


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply, "prepare": prepare}, argv)


if __name__ == "__main__":
    main()
