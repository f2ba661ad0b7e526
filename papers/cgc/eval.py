"""Evaluate per volume, draw pictures, make a proposal, and apply to a user's own scan.

python -m papers.cgc.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.cgc.eval make_pseudo --input ID_flair.nii.gz --output P.nii.gz --figure components.png
python -m papers.cgc.eval apply --checkpoint RUN/checkpoint.pt --input ID_flair.nii.gz --output lesion.nii.gz
"""

from pathlib import Path

from shared.cli import commands
from shared.errors import InputError
from shared.files import refuse_duplicates, refuse_overwriting_inputs, write_csv


def score(prediction, truth, spacing: tuple[float, float, float]) -> tuple[dict[str, float], dict[str, float] | None]:
    """Dice, sensitivity and whether nothing was found; apart from them ASSD in mm, of bool volumes (D, H, W).

    An empty mask has no surface, so it has no ASSD: None. Any number in its place, the diagonal of the volume, say,
    would outweigh all other cases.

    Args:
        prediction: what was found.
        truth: the lesion, not empty.
        spacing: mm along z, y, x.
    """
    from shared.metrics import dice, sensitivity
    from shared.surfaces import assd

    p, t, empty = prediction[None], truth[None], not prediction.any()
    overlap = {"dice": dice(p, t).item(), "sensitivity": sensitivity(p, t).item(), "empty": float(empty)}
    return overlap, None if empty else {"assd": assd(p, t, spacing).item()}


def volumes_of(data: Path, config):
    """The volumes of the test split as a network sees them."""
    from papers.cgc.data import Volumes
    from papers.cgc.regions import least_size

    return Volumes(data, "test", config.test_fraction, least_size(config))


def segment(loaded, case, device):
    """The mask of a volume by what `load_network` gave, bool (D, H, W).

    Raises:
        InputError: the volume has other modalities or another spacing than those of the training.
    """
    from papers.cgc.inference import predict_mask

    model, config, scanned = loaded
    if scanned is not None:
        scanned.check_fits(case)
    return predict_mask(model, config, case, device)


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: rows `mask/CASE` with Dice, sensitivity and 1 for an empty mask, `surface/CASE` with ASSD.

    A case in which nothing was found has no row `surface/CASE`.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    from papers.cgc.train import load_network
    from shared.gpu import choose_device

    where = choose_device(device)
    loaded = load_network(checkpoint, where)
    volumes = volumes_of(data, loaded[1])
    overlaps, surfaces = [], []
    for index, name in enumerate(volumes.names):
        case = volumes[index]
        overlap, surface = score(segment(loaded, case, where), volumes.lesion(index), case.spacing)
        overlaps.append({"case": f"mask/{name}", **overlap})
        if surface:
            surfaces.append({"case": f"surface/{name}", **surface})
    columns = ["case", "dice", "sensitivity", "empty", "assd"]
    write_csv(Path(out) / "metrics.csv", overlaps + surfaces, columns)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one test volume in three slices: scan, each checkpoint's lesion and the truth.

    Args:
        data: the data set.
        checkpoints: one column each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test volume.
    """
    from papers.cgc.pictures import draw_panel
    from papers.cgc.train import load_network
    from shared.gpu import choose_device

    where = choose_device(device)
    every = [load_network(path, where) for path in checkpoints]
    volumes = volumes_of(data, every[0][1])
    if not 0 <= case < len(volumes):
        raise InputError(f"{data}: there is no test volume number {case}, there are {len(volumes)}")
    masks = [(loaded[1].variant, segment(loaded, volumes[case], where).numpy()) for loaded in every]
    draw_panel(volumes[case], masks, volumes.lesion(case).numpy(), out)


def embedding(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Draw the embeddings of the test regions' cells in two principal components, by the class that P gives them.

    Args:
        data: the data set.
        checkpoint: of a variant with the fine path.
        out: a .png file.
        device: auto, cpu, cuda, ...
    """
    import torch

    from papers.cgc.model import cell_classes
    from papers.cgc.pictures import draw_cells
    from papers.cgc.proposal import ProposalRule, gmm_proposal
    from papers.cgc.regions import RegionPairs, RegionRule
    from papers.cgc.train import load_network
    from shared.finite import finite
    from shared.gpu import choose_device, seed_everything

    where = choose_device(device)
    model, config, scanned = load_network(checkpoint, where)
    if config.method != "network" or model.cgc is None or model.cgc.fine is None:
        raise InputError(f"{checkpoint}: variant '{config.variant}' has no embeddings; use one with the fine path")
    volumes = volumes_of(data, config)
    for case in volumes.cases():
        scanned.check_fits(case)
    masks = [gmm_proposal(case, ProposalRule.of(config)) for case in volumes.cases()]
    seed_everything(config.seed)
    pairs = RegionPairs(volumes, masks, RegionRule.of(config))
    cells, classes = [], []
    with torch.no_grad():
        for index in range(len(pairs)):
            item = pairs[index]
            _, features = model.backbone(item["image"].to(where))
            cells.append(model.cgc.embed(features[model.level]).cpu().flatten(0, 1))
            classes.append(cell_classes(item["mask"], config.grid, config.cell_lesion, config.cell_normal).flatten())
    draw_cells(finite(torch.cat(cells), f"{checkpoint}: the embedding"), torch.cat(classes), out)


# --- a user's own scan -----------------------------------------------------------------------------------


def name_of(path: Path) -> str:
    """Of the case in a user's file."""
    return Path(path).name.removesuffix(".gz").removesuffix(".nii").removesuffix("_flair")


def check_outputs(masks: list[Path], others: list[Path], inputs: list[Path]) -> None:
    """Volumes are .nii or .nii.gz, each output is another file, none is an input.

    Raises:
        InputError: not so.
    """
    for path in masks:
        if not str(path).endswith((".nii", ".nii.gz")):
            raise InputError(f"{path}: the output is a NIfTI volume, its name must end in .nii or .nii.gz")
    refuse_duplicates([Path(path).resolve() for path in masks + others], "outputs")
    for path in masks + others:
        refuse_overwriting_inputs(path, *inputs)


def apply(
    checkpoint: Path,
    input: Path,
    output: Path,
    probability_output: Path | None = None,
    figure: Path | None = None,
    device: str = "auto",
) -> None:
    """Segment a user's own scan; the mask is in the space of the scan.

    Args:
        checkpoint: of any variant.
        input: <ID>_flair.nii.gz with <ID>_{t1,t1ce,t2}.nii.gz beside it as far as the network knows them, or a CT.
        output: .nii or .nii.gz, 1 in the lesion.
        probability_output: the network's probability as a further volume, if wanted.
        figure: .png of scan, proposal and result, if wanted.
        device: auto, cpu, cuda, ...
    """
    import numpy as np

    from papers.cgc.data import beside, read_case
    from papers.cgc.inference import lesion_probability
    from papers.cgc.pictures import draw_result
    from papers.cgc.proposal import ProposalRule, gmm_proposal
    from papers.cgc.regions import least_size
    from papers.cgc.train import load_network
    from shared import nifti
    from shared.gpu import choose_device

    files = beside(input)
    volumes = [output] + [probability_output] * (probability_output is not None)
    check_outputs(volumes, [figure] * (figure is not None), [checkpoint, *files.values()])
    where = choose_device(device)
    loaded = model, config, _ = load_network(checkpoint, where)
    if probability_output is not None and config.method not in ("network", "boosting"):
        raise InputError(f"{checkpoint}: '{config.variant}' gives no probability; leave --probability-output out")
    case = read_case(files, name_of(input), least_size(config))
    mask = segment(loaded, case, where)
    if probability_output is not None:
        values = lesion_probability(model, config, case, where)
        nifti.save(probability_output, case.uncrop(values), like=case.original, dtype=np.float32)
    if figure is not None:
        proposal = gmm_proposal(case, ProposalRule.of(config))
        draw_result(case, proposal.numpy(), mask.numpy(), config.variant, figure)
    nifti.save(output, case.uncrop(mask), like=case.original, dtype=np.uint8)
    print(f"wrote {output}: {float(mask.sum()) * np.prod(case.spacing) / 1000:.1f} ml of lesion")


def make_pseudo(
    input: Path,
    output: Path,
    figure: Path | None = None,
    components: int | None = None,
    posterior: float = 0.9,
    median: int = 3,
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
        median: voxels of the median filter that cleans P, an odd number; 1 is none. At 4 mm leave it out.
        opening: voxels of the opening that cleans P; 0 is none. At 4 mm leave it out.
        seed: of the sampled voxels.
    """
    import numpy as np
    import torch

    from papers.cgc.data import beside, read_case
    from papers.cgc.pictures import draw_components
    from papers.cgc.proposal import ProposalRule, clean_up, fit_mixture
    from shared import nifti

    files = beside(input)
    check_outputs([output], [figure] * (figure is not None), list(files.values()))
    case = read_case(files, name_of(input))
    rule = ProposalRule(components=components, posterior=posterior, median=median, opening=opening, seed=seed)
    mixture = fit_mixture(case, rule)
    mask = clean_up(mixture.posterior[mixture.lesion] > rule.posterior, case.brain.numpy(), rule)
    if figure is not None:
        draw_components(case, mixture, mask, figure)
    nifti.save(output, case.uncrop(torch.from_numpy(mask)), like=case.original, dtype=np.uint8)
    share = mask.sum() / float(case.brain.sum())
    print(f"wrote {output}: component {mixture.lesion + 1}, {share:.1%} of the brain after clean-up")


def main(argv: list[str] | None = None) -> None:
    functions = {"evaluate": evaluate, "panel": panel, "apply": apply}
    commands(functions | {"make_pseudo": make_pseudo, "embedding": embedding}, argv)


if __name__ == "__main__":
    main()
