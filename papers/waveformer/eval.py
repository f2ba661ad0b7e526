"""Evaluate per case, draw the panel, apply to a user's own CT or photograph, prepare BTCV.

python -m papers.waveformer.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.waveformer.eval panel --data DATA --checkpoints A/checkpoint.pt B/checkpoint.pt --out panel.png
python -m papers.waveformer.eval apply --checkpoint RUN/checkpoint.pt --input ct.nii.gz --output organs.nii.gz
python -m papers.waveformer.eval prepare --raw RawData/Training --out DATA
"""

from pathlib import Path

from shared.cli import commands
from shared.errors import InputError

BATCH = 16  # slices that go through the network at a time


def load_network(checkpoint: Path, device):
    """The trained network of a checkpoint in evaluation mode, and its configuration.

    Raises:
        InputError: no checkpoint of this paper, or one that does not fit this version.
    """
    from papers.waveformer.train import Config, build_model
    from shared.checkpoints import load_model

    return load_model(checkpoint, "waveformer", Config, build_model, device)


def predict(model, config, images, device, name: str):
    """Labels of slices, and the spectra inside the network.

    Args:
        images: (D, H, W) or (D, H, W, 3) in 0..1.
        name: of the case, for messages.

    Returns:
        labels, uint8 (D, H, W), at the size of the images; and (looks, D), the share of high frequencies at the input
        of each stage of the encoder and after each of its blocks, (0, D) for a network without stages.

    Raises:
        InputError: a prediction is not finite.
    """
    import numpy as np
    import torch

    from papers.waveformer.data import resize, to_input
    from papers.waveformer.spectrum import high_frequency_share
    from shared.finite import finite

    labels, shares = [], []
    with torch.no_grad():
        for first in range(0, len(images), BATCH):
            batch = torch.stack([to_input(image, config.image_size) for image in images[first : first + BATCH]])
            spectra: list = []

            def note(stage, maps, spectra=spectra):
                spectra.append(high_frequency_share(maps).cpu())

            logits = finite(model(batch.to(device), note), f"{name}: the segmentation")
            found = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
            labels += [resize(label, images.shape[1:3], 0) for label in found]
            shares.append(torch.stack(spectra) if spectra else torch.zeros(0, len(batch)))
    return np.stack(labels), torch.cat(shares, dim=1).numpy()


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto", split: str = "test") -> None:
    """Write metrics.csv: a row per volume (or photograph).

    CT: `dice` [%] is the mean over the organs that truth or prediction has, `hd95_mm` over those that both have, and
    `missed` counts those that only one has; `dice_transunet` [%] and `hd95` [voxels] follow TransUNet's protocol;
    `dice_<organ>` [%]. Photographs: `lesion_...` [%, pixels]. Both: `hf_kept` [%], the share of energy above half the
    Nyquist frequency after the third stage's blocks, in percent of that in the stage's input.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
        split: test; of ISIC also valid.
    """
    from papers.waveformer.data import ORGANS, test_cases
    from papers.waveformer.scores import score_lesion, score_volume
    from papers.waveformer.spectrum import kept_in_stage
    from shared.files import write_csv
    from shared.gpu import choose_device

    where = choose_device(device)
    model, config = load_network(checkpoint, where)
    if split not in ("test", "valid") or (split == "valid" and config.dataset == "synapse"):
        raise InputError(f"--split {split}: expected test, or valid for ISIC")
    columns = ["dice", "dice_transunet", "hd95", "hd95_mm", *(f"dice_{name}" for name in ORGANS)]
    columns += [f"lesion_{name}" for name in ("dice", "hd95", "sensitivity", "specificity", "accuracy")]
    rows = []
    for read in test_cases(data, config.dataset, split):
        case = read()
        prediction, shares = predict(model, config, case.images, where, case.name)
        if config.dataset == "isic":
            row = score_lesion(prediction[0], case.label[0])
        else:
            row = score_volume(prediction, case.label, case.spacing or config.spacing_mm, ORGANS)
        row["hf_kept"] = 100 * kept_in_stage(shares, 2)
        # an organ that a case lacks leaves its cell empty
        rows.append({"case": case.name, **{name: "" if value != value else value for name, value in row.items()}})
    write_csv(Path(out) / "metrics.csv", rows, ["case", *columns, "missed", "hf_kept"])


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
    import numpy as np

    from papers.waveformer.data import CLASSES, ORGANS, test_cases
    from papers.waveformer.panel import draw_spectra, views
    from shared.figures import grid_of_pictures, save_figure
    from shared.gpu import choose_device

    where = choose_device(device)
    models = [load_network(path, where) for path in checkpoints]
    datasets = {config.dataset for _, config in models}
    if len(datasets) != 1:
        raise InputError("the checkpoints are of different data sets; a panel shows one")
    dataset = datasets.pop()
    cases = test_cases(data, dataset)
    if not 0 <= case < len(cases):
        raise InputError(f"{data}: there is no test case number {case}, there are {len(cases)}")
    shown = cases[case]()
    columns, spectra = {"input": np.zeros_like(shown.label), "truth": shown.label}, {}
    for model, config in models:
        columns[config.variant], shares = predict(model, config, shown.images, where, shown.name)
        if len(shares):
            spectra[config.variant] = 100 * shares.mean(axis=1)

    rows = views(shown, columns, CLASSES[dataset] - 1)
    names = [name.replace("_", " ") for name in ORGANS] if dataset == "synapse" else []
    texts = {"row_labels": list(rows), "heading": shown.name, "label_names": names}
    figure, _, room = grid_of_pictures(list(rows.values()), list(columns), None, **texts, room=("below", 2.4))
    draw_spectra(room.subplots(), spectra)
    save_figure(figure, out)


def apply(checkpoint: Path, input: Path, output: Path, boundary_output: Path | None = None, device: str = "auto"):
    """Segment a user's own CT, or photograph.

    A CT is clipped to the training window, segmented slice by slice and stacked again: the label map has the scan's own
    grid, spacing and affine (1 aorta, 2 gallbladder, 3 left kidney, 4 right kidney, 5 liver, 6 pancreas, 7 spleen,
    8 stomach). A photograph gives a mask of 0 and 255.

    Args:
        checkpoint: of any variant; the data set that it was trained on decides what `input` is.
        input: CT in HU, axial, .nii or .nii.gz, or a test volume .npy.h5; or a photograph, .jpg or .png.
        output: .nii or .nii.gz, or .png for a photograph.
        boundary_output: .nii or .nii.gz for the mean boundary attention of the first block, of a CT, if wanted.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a file that is missing, broken or of the wrong kind; a checkpoint without boundary attention.
    """
    from papers.waveformer.scan import boundary_map, read_scan, save_on_scan
    from shared.files import refuse_duplicates, refuse_overwriting_inputs
    from shared.gpu import choose_device

    outputs = [path for path in (output, boundary_output) if path is not None]
    refuse_duplicates([Path(path).resolve() for path in outputs], "outputs")
    for path in outputs:
        refuse_overwriting_inputs(path, input, checkpoint)
    where = choose_device(device)
    model, config = load_network(checkpoint, where)
    attends = config.network == "waveformer" and config.attention == "fet" and config.boundary
    if boundary_output is not None and (not attends or config.dataset != "synapse"):
        raise InputError(
            f"{checkpoint}: variant '{config.variant}' has no boundary attention; leave out --boundary-output"
        )
    if config.dataset == "isic":
        apply_to_photo(model, config, Path(input), Path(output), where)
        return
    for path in outputs:
        if not str(path).endswith((".nii", ".nii.gz")):
            raise InputError(f"{path}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    scan, images = read_scan(Path(input), config.spacing_mm)
    maps = {output: predict(model, config, images, where, str(input))[0]}
    if boundary_output is not None:
        maps[boundary_output] = boundary_map(model, config, images, where, str(input))
    for path, found in maps.items():
        save_on_scan(Path(path), found, scan)


def apply_to_photo(model, config, input: Path, output: Path, device) -> None:
    """A mask of 0 and 255 for one photograph."""
    from PIL import Image

    from shared.files import write_atomically
    from shared.photo import read_photo

    if output.suffix.lower() != ".png":
        raise InputError(f"{output}: the mask of a photograph is a picture, its name must end in .png")
    labels, _ = predict(model, config, read_photo(input)[None], device, str(input))
    write_atomically(output, lambda path: Image.fromarray(255 * labels[0]).save(path, format="png"))


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
