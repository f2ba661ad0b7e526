"""Evaluate per case, draw the panel, apply to a user's own file.

python -m papers.template.eval evaluate --data DATA --checkpoint RUN/checkpoint.pt --out RUN
python -m papers.template.eval apply --checkpoint RUN/checkpoint.pt --input case.npz --output clean.npy
"""

from pathlib import Path

from shared.cli import commands
from shared.files import refuse_overwriting_inputs, write_atomically, write_csv
from shared.finite import finite


def model_of(checkpoint: Path, device):
    """The trained network of a checkpoint in evaluation mode, and its configuration.

    Raises:
        InputError: no checkpoint of this paper, or one that does not fit its code.
    """
    from papers.template.train import Config, build_model
    from shared.checkpoints import load_model

    return load_model(checkpoint, "template", Config, build_model, device)


def evaluate(data: Path, checkpoint: Path, out: Path, device: str = "auto") -> None:
    """Write metrics.csv: PSNR in dB for each test case.

    Args:
        data: the data set.
        checkpoint: of any variant.
        out: folder for metrics.csv.
        device: auto, cpu, cuda, ...
    """
    import torch

    from papers.template.data import TemplateDataset
    from shared.gpu import choose_device
    from shared.metrics import psnr

    where = choose_device(device)
    model, _ = model_of(checkpoint, where)
    rows = []
    with torch.no_grad():
        for item in TemplateDataset(data, "test"):
            prediction = finite(model(item["noisy"][None].to(where)).cpu(), f"the denoised image of {item['case']}")
            value = psnr(prediction, item["clean"][None], data_range=1.0).item()
            rows.append({"case": item["case"], "psnr": value})

    write_csv(Path(out) / "metrics.csv", rows)


def panel(data: Path, checkpoints: list[Path], out: Path, device: str = "auto", case: int = 0) -> None:
    """Draw one test case: input, each checkpoint's result, truth.

    Args:
        data: the data set.
        checkpoints: one column each.
        out: a .png file.
        device: auto, cpu, cuda, ...
        case: number of the test case.
    """
    import torch

    from papers.template.data import TemplateDataset
    from shared.figures import grid_of_pictures
    from shared.gpu import choose_device

    where = choose_device(device)
    item = TemplateDataset(data, "test")[case]
    columns = {"input": item["noisy"][0]}
    for path in checkpoints:
        model, config = model_of(path, where)
        with torch.no_grad():
            columns[config.variant] = model(item["noisy"][None].to(where)).cpu()[0, 0]
    columns["truth"] = item["clean"][0]
    grid_of_pictures([list(columns.values())], list(columns), out, window=(0, 1))


def apply(checkpoint: Path, input: Path, output: Path, device: str = "auto") -> None:
    """Denoise a user's own image.

    Args:
        checkpoint: of any variant.
        input: .npz as in the data set.
        output: .npy, (H, W) float32.
        device: auto, cpu, cuda, ...
    """
    import numpy as np
    import torch

    from papers.template.data import read_case
    from shared.gpu import choose_device

    where = choose_device(device)
    refuse_overwriting_inputs(output, input, checkpoint)
    noisy = read_case(Path(input))["noisy"]
    model, _ = model_of(checkpoint, where)
    with torch.no_grad():
        clean = model(torch.from_numpy(noisy)[None, None].to(where))[0, 0].cpu().numpy()
    finite(clean, f"the denoised image of {input}")

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, clean)

    write_atomically(Path(output), write)


def main(argv: list[str] | None = None) -> None:
    commands({"evaluate": evaluate, "panel": panel, "apply": apply}, argv)


if __name__ == "__main__":
    main()
