"""Evaluate per volume, draw pictures, make a proposal, and apply to a user's own scan.

python -m papers.cgc.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.cgc.eval make_pseudo --input ID_flair.nii.gz --output P.nii.gz --figure components.png
python -m papers.cgc.eval apply --checkpoint RUN/checkpoint.pt --input ID_flair.nii.gz --output lesion.nii.gz
"""

import csv
from pathlib import Path

from shared.cli import commands
from shared.errors import InputError


def score(prediction, truth, spacing: tuple[float, float, float]) -> dict[str, float]:
    """Dice, sensitivity and ASSD in mm of two bool volumes (D, H, W), spacing (z, y, x) in mm.

    A prediction that is empty where the truth isn't has no surface; its ASSD is set to the diagonal of the volume, so
    that a method can't gain by finding nothing. Volumes without a true lesion have no score (NaN).
    """
    import math

    from shared.metrics import dice, sensitivity
    from shared.surfaces import assd

    diagonal = math.dist((0, 0, 0), [n * mm for n, mm in zip(truth.shape, spacing)])
    p, t = prediction[None], truth[None]
    return {
        "dice": dice(p, t).item(),
        "sensitivity": sensitivity(p, t).item(),
        "assd": assd(p, t, spacing, one_empty=diagonal).item(),
    }


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: Dice, sensitivity and ASSD in mm of every test volume.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.cgc.data import Volumes
    from papers.cgc.inference import load_model, predict_mask
    from papers.cgc.train import least_size
    from shared.files import write_atomically
    from shared.gpu import choose_device

    where = choose_device(device)
    model, config = load_model(checkpoint, where)
    volumes = Volumes(data, "test", config.test_fraction, least_size(config))
    rows = []
    for index, name in enumerate(volumes.names):
        case = volumes[index]
        prediction = predict_mask(model, config, case, where)
        rows.append({"case": name, **score(prediction, volumes.lesion(index), case.spacing)})

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(Path(out) / "metrics.csv", write)


# --- pictures --------------------------------------------------------------------------------------------


def _save(figure, out: Path) -> None:
    import matplotlib.pyplot as plt

    from shared.files import write_atomically

    write_atomically(Path(out), lambda path: figure.savefig(path, dpi=90, format="png"))
    plt.close(figure)


def _show(axis, image, mask=None, truth=None, title="", aspect=1.0) -> None:
    """A slice (y, x) as radiologists see it: anterior up, the patient's right on the left; masks as outlines."""
    import numpy as np

    inside = image[image != 0]
    low, high = np.percentile(inside, (1, 99.5)) if inside.size else (0, 1)
    picture = np.where(image == 0, low, image)
    axis.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect, interpolation="nearest")
    for outline, colour in ((truth, "lime"), (mask, "red")):
        if outline is not None and outline.any() and not outline.all():
            axis.contour(outline.astype(float), [0.5], colors=colour, linewidths=1.0)
    axis.set_title(title, fontsize=8)
    axis.axis("off")


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one test volume in three slices: scan, each checkpoint's lesion (red) and the truth (green).

    Args:
        data: the data set.
        checkpoints: one column each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test volume.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.cgc.data import Volumes
    from papers.cgc.inference import load_model, predict_mask
    from papers.cgc.train import least_size
    from shared.gpu import choose_device

    where = choose_device(device)
    models = [load_model(path, where) for path in checkpoints]
    config = models[0][1]
    volumes = Volumes(data, "test", config.test_fraction, least_size(config))
    if not 0 <= case < len(volumes):
        raise InputError(f"{data}: there is no test volume number {case}, there are {len(volumes)}")
    item, truth = volumes[case], volumes.lesion(case).numpy()
    masks = {_title(of): predict_mask(model, of, item, where).numpy() for model, of in models}
    area = truth.sum((1, 2))
    marked = area.nonzero()[0] if area.any() else range(len(area))
    slices = [marked[len(marked) // 4], int(area.argmax()), marked[3 * len(marked) // 4]]
    bright = item.image[item.modalities.index("flair" if "flair" in item.modalities else "ct")].numpy()
    names = ["scan", *masks, "truth"]
    figure, axes = plt.subplots(3, len(names), figsize=(2.0 * len(names), 7.4), squeeze=False, layout="constrained")
    aspect = item.spacing[1] / item.spacing[2]
    for row, z in enumerate(slices):
        for column, name in enumerate(names):
            mask = masks[name][z] if name in masks else None
            outline = None if name == "scan" else truth[z]
            title = name
            if name in masks:
                title = f"{name}\nDice {score_dice(masks[name], truth):.2f}"
            _show(axes[row, column], bright[z], mask, outline, title if row == 0 else "", aspect)
    figure.suptitle(f"{item.name}: found (red), truth (green)", fontsize=9)
    _save(figure, out)


def _title(config) -> str:
    names = {"gmm": "GMM (P)", "mumford_shah": "Mumford-Shah", "full": "CGC", "ae": "AE"}
    return names.get(config.variant, config.variant)


def score_dice(prediction, truth) -> float:
    """Dice of two bool arrays."""
    return 2 * (prediction & truth).sum() / max(prediction.sum() + truth.sum(), 1)


def embedding(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Draw the embeddings of the test regions' cells in two principal components, by the class that P gives them.

    Args:
        data: the data set.
        checkpoint: of a variant with the fine path.
        out: a .png file.
        device: auto, cpu, cuda, ...
    """
    import matplotlib
    import torch

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.cgc.data import RegionPairs, Volumes
    from papers.cgc.inference import load_model
    from papers.cgc.model import cell_classes
    from papers.cgc.proposal import gmm_proposal
    from papers.cgc.train import cases_of, least_size, proposal_rule, region_rule
    from shared.gpu import choose_device, seed_everything

    where = choose_device(device)
    model, config = load_model(checkpoint, where)
    if config.method != "network" or model.cgc is None or model.cgc.fine is None:
        raise InputError(f"{checkpoint}: variant '{config.variant}' has no embeddings; use one with the fine path")
    volumes = Volumes(data, "test", config.test_fraction, least_size(config))
    masks = [gmm_proposal(case, proposal_rule(config), config.seed) for case in cases_of(volumes)]
    seed_everything(config.seed)
    pairs = RegionPairs(volumes, masks, region_rule(config))
    cells, classes = [], []
    with torch.no_grad():
        for index in range(len(pairs)):
            item = pairs[index]
            _, features = model.backbone(item["image"].to(where))
            cells.append(model.cgc.embed(features[model.level]).cpu().flatten(0, 1))
            classes.append(cell_classes(item["mask"], config.grid, config.cell_lesion, config.cell_normal).flatten())
    cells, classes = torch.cat(cells), torch.cat(classes)
    centred = cells - cells.mean(0)
    points = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T
    figure, axis = plt.subplots(figsize=(5, 4.5))
    for value, name, colour in ((0, "normal cells", "tab:blue"), (1, "lesion cells", "tab:red")):
        of_class = points[classes == value]
        axis.scatter(of_class[:, 0], of_class[:, 1], s=4, alpha=0.5, c=colour, label=f"{name} ({len(of_class)})")
    axis.set_xlabel("first principal component of the unit vectors")
    axis.set_ylabel("second")
    axis.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, out)


# --- a user's own scan -----------------------------------------------------------------------------------


def _check_output(output: Path) -> None:
    if not str(output).endswith((".nii", ".nii.gz")):
        raise InputError(f"{output}: the output is a NIfTI mask, its name must end in .nii or .nii.gz")


def apply(
    checkpoint: Path,
    input: Path,
    output: Path,
    probability: Path | None = None,
    figure: Path | None = None,
    device: str = "auto",
) -> None:
    """Segment a user's own scan; the mask is in the space of the scan.

    Args:
        checkpoint: of any variant.
        input: <ID>_flair.nii.gz with <ID>_{t1,t1ce,t2}.nii.gz beside it as far as the network knows them, or a CT.
        output: .nii or .nii.gz, 1 in the lesion.
        probability: the network's probability as a further volume, if wanted.
        figure: .png of scan, proposal and result, if wanted.
        device: auto, cpu, cuda, ...
    """
    import numpy as np

    from papers.cgc.data import beside, read_case
    from papers.cgc.inference import lesion_probability, load_model, predict_mask
    from papers.cgc.train import least_size
    from shared import nifti
    from shared.gpu import choose_device

    _check_output(output)
    where = choose_device(device)
    files = beside(input)
    model, config = load_model(checkpoint, where)
    case = read_case(files, Path(input).name.split("_flair")[0], least_size(config))
    mask = predict_mask(model, config, case, where)
    if probability is not None:
        _check_output(probability)
        if config.method != "network":
            raise InputError(f"{checkpoint}: variant '{config.variant}' gives no probability; leave --probability out")
        values = lesion_probability(model, config, case, where)
        nifti.save(probability, case.uncrop(values), like=case.original, dtype=np.float32)
    if figure is not None:
        _apply_figure(case, config, mask.numpy(), figure)
    nifti.save(output, case.uncrop(mask), like=case.original, dtype=np.uint8)
    print(f"wrote {output}: {float(mask.sum()) * np.prod(case.spacing) / 1000:.1f} ml of lesion")


def _apply_figure(case, config, mask, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.cgc.proposal import gmm_proposal
    from papers.cgc.train import proposal_rule

    proposal = gmm_proposal(case, proposal_rule(config), config.seed).numpy()
    z = int((mask | proposal).sum((1, 2)).argmax())
    bright = case.image[case.modalities.index("flair" if "flair" in case.modalities else "ct")].numpy()
    figure, axes = plt.subplots(1, 3, figsize=(7, 3))
    for axis, (name, outline) in zip(axes, {"scan": None, "GMM (P)": proposal, config.variant: mask}.items()):
        _show(axis, bright[z], None if outline is None else outline[z], None, name, case.spacing[1] / case.spacing[2])
    figure.tight_layout(pad=0.3)
    _save(figure, out)


def make_pseudo(
    input: Path,
    output: Path,
    figure: Path | None = None,
    components: int | None = None,
    posterior: float = 0.9,
    opening: int = 1,
    seed: int = 0,
) -> None:
    """Make the proposal P of a user's own scan by the Gaussian mixture; no checkpoint is needed.

    Args:
        input: <ID>_flair.nii.gz (with <ID>_t2.nii.gz beside it, if there is one) or a CT after brain extraction.
        output: .nii or .nii.gz, 1 in P.
        figure: .png of all components, the chosen one and P, if wanted.
        components: of the mixture; default 5 for MRI, 4 for CT.
        posterior: P is where the lesion component is likelier than this.
        opening: voxels of the opening that cleans P.
        seed: of the sampled voxels.
    """
    import numpy as np
    import torch

    from papers.cgc.data import beside, read_case
    from papers.cgc.proposal import ProposalRule, clean_up, fit_mixture
    from shared import nifti

    _check_output(output)
    case = read_case(beside(input), Path(input).name.split("_flair")[0])
    rule = ProposalRule(components=components, posterior=posterior, opening=opening)
    mixture = fit_mixture(case, rule, seed)
    mask = clean_up(mixture.posterior[mixture.lesion] > rule.posterior, case.brain.numpy(), rule)
    if figure is not None:
        components_figure(case, mixture, mask, figure)
    nifti.save(output, case.uncrop(torch.from_numpy(mask)), like=case.original, dtype=np.uint8)
    share = mask.sum() / float(case.brain.sum())
    print(f"wrote {output}: component {mixture.lesion + 1}, {share:.1%} of the brain after clean-up")


def components_figure(case, mixture, mask, out: Path) -> None:
    """All components of a mixture on the slice where P is largest, the chosen one marked; last the scan with P."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from papers.cgc.proposal import features_of

    image, names = features_of(case)
    chosen = mask if mask.any() else mixture.posterior[mixture.lesion] > 0.5
    z = int(chosen.sum((1, 2)).argmax())
    count, aspect = len(mixture.share), case.spacing[1] / case.spacing[2]
    order = mixture.means[:, 0].argsort()
    figure, axes = plt.subplots(1, count + 2, figsize=(1.9 * (count + 2), 2.6))
    _show(axes[0], image[0][z], None, None, names[0], aspect)
    for axis, k in zip(axes[1:], order):
        means = ", ".join(f"{name} {value:+.1f}" for name, value in zip(names, mixture.means[k]))
        axis.imshow(mixture.posterior[k][z], cmap="magma", vmin=0, vmax=1, origin="lower", aspect=aspect)
        mark = " (lesion)" if k == mixture.lesion else ""
        axis.set_title(f"{k + 1}{mark}: {mixture.share[k]:.1%}\n{means}", fontsize=7)
        axis.axis("off")
    _show(axes[-1], image[0][z], mask[z], None, "P", aspect)
    figure.tight_layout(pad=0.3)
    _save(figure, out)


def main(argv: list[str] | None = None) -> None:
    functions = {"evaluate": evaluate, "panel": panel, "apply": apply}
    commands(functions | {"make_pseudo": make_pseudo, "embedding": embedding}, argv)


if __name__ == "__main__":
    main()
