"""Train LapIRN, without labels, on each source domain; the other variants take these networks and train nothing.

python -m papers.nio.train --data DATA --out runs/mine --profile cpu --variant full
"""

from dataclasses import dataclass
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """NIO: optimise the weights of a registration network for each pair of images."""

    method: Literal["initial", "bspline", "lapirn", "io", "nio", "nio_m"] = "nio_m"
    """how a pair is registered: not at all, B-spline (SimpleITK), one pass of the network, IO, NIO or NIO_m"""
    start: Literal["trained", "random"] = "trained"
    """weights that NIO starts from: the trained ones, or random ones (a control that the paper lacks)"""
    reuse: bool = False
    """take the networks of the checkpoint `init` as they are and train nothing"""
    settings: tuple[str, ...] = ("oasis-lpba", "lpba-oasis", "lpba-lpba", "hippocampus-hippocampus", "lung")
    """experiments, of those whose data lie in the folder: source-target, or lung"""
    shape: tuple[int, int, int] = (144, 192, 160)
    """voxels of a brain along R, A, S; each divisible by 8 (paper: 144 x 160 x 192 in the order of its files)"""
    spacing_mm: float = 1.0
    """voxel size of a brain [mm] (paper: 1)"""
    hippocampus_spacing_mm: float = 1.0
    """voxel size of a hippocampus, on a grid of the same shape [mm] (not in the paper)"""
    label_zoom: int = 1
    """Dice is computed on a grid so many times finer than the network's (paper: 1)"""
    lung_shape: tuple[int, int, int] = (192, 144, 192)
    """voxels of the box around the lungs; each divisible by 8 (the paper does not give it)"""
    oasis_split: tuple[int, int] = (250, 5)
    """OASIS scans for training and validation; the rest is the test set (paper: 250, 5)"""
    lpba_split: tuple[int, int] = (20, 3)
    """LPBA40 scans for training and validation (paper: 20, 3)"""
    hippocampus_split: tuple[int, int] = (60, 6)
    """hippocampus scans for training and validation (not in the paper)"""
    max_pairs: int = 0
    """test pairs per setting; 0 is all (paper: all)"""
    folds: int = 10
    """lung cases are tested in so many folds; the number of cases is leave-one-out (paper: 10)"""
    widths: tuple[int, int, int] = (28, 28, 28)
    """channels at a level's own size, of its blocks, of the last embedding (cLapIRN: 28 28 28, cLapIRN lite: 8 16 8)"""
    blocks: int = 5
    """residual blocks of each level (cLapIRN: 5)"""
    range_flow: float = 0.4
    """largest displacement that a level adds, in unit coordinates (cLapIRN: 0.4)"""
    lam: float = 0.4
    """lambda of eq. 3 (paper: 0.4)"""
    window: int = 7
    """side of the cubes of LNCC [voxels] (paper: 7)"""
    voxel_units: bool = False
    """smoothness of voxel displacements instead of twice that (cLapIRN: twice)"""
    steps: tuple[int, int, int] = (30000, 30000, 90000)
    """updates with one, two and three levels (paper: 150000 in all)"""
    freeze: int = 3000
    """first updates of a new level, in which the levels before are not trained (cLapIRN: 3000)"""
    validate_every: int = 2000
    """updates between two validations once all levels are there; the best weights are kept (brains)"""
    lr: float = 1e-4
    """learning rate of Adam in training (paper: 1e-4)"""
    io_iterations: int = 200
    """iterations of IO (paper: 50 and 200)"""
    io_lr: float = 0.1
    """learning rate of Adam on the field [voxels] (not in the paper)"""
    nio_iterations: int = 50
    """iterations of NIO (paper: 50)"""
    nio_m_iterations: tuple[int, int, int] = (100, 60, 30)
    """iterations of NIO_m on brains with one, two and three levels (paper: 100, 60, 30)"""
    nio_m_iterations_lung: tuple[int, int, int] = (100, 60, 60)
    """the same on lungs (paper: 100, 60, 60)"""
    nio_lr: float = 1e-4
    """learning rate of Adam on the weights in NIO (paper: 1e-4)"""
    nio_m_lr: float = 1e-4
    """learning rate of Adam on the weights in NIO_m (paper: 1e-4)"""
    affine_sd: float = 0.03
    """random affine matrices at test time on lungs: standard deviation of each entry; 0: none"""
    bspline_knots: int = 12
    """spans of the B-spline's grid along the longest axis"""
    bspline_iterations: int = 50
    """iterations of L-BFGS-B at each of two resolutions"""
    bspline_sampled: float = 1.0
    """share of the voxels that its mutual information is computed from"""


SMALL = {
    "shape": (24, 32, 24), "spacing_mm": 6.0, "hippocampus_spacing_mm": 2.0, "label_zoom": 2,
    "lung_shape": (32, 24, 32), "oasis_split": (60, 4), "lpba_split": (60, 4), "max_pairs": 20, "folds": 2,
    "widths": (8, 8, 8), "blocks": 3, "window": 5, "settings": ("oasis-lpba", "hippocampus-hippocampus"),
    "freeze": 30, "validate_every": 100, "lr": 1e-3, "io_iterations": 60, "io_lr": 1.0, "nio_iterations": 15,
    "nio_lr": 3e-3, "nio_m_iterations": (30, 18, 9), "nio_m_iterations_lung": (30, 18, 18), "nio_m_lr": 1e-3,
    "bspline_knots": 5, "bspline_iterations": 12, "bspline_sampled": 0.25,
}  # fmt: skip
"""What the profiles `cpu` and `study` share"""

PROFILES = {
    "smoke": {
        "shape": (16, 24, 16), "spacing_mm": 9.0, "lung_shape": (16, 16, 16), "oasis_split": (2, 1),
        "lpba_split": (2, 1), "max_pairs": 1, "folds": 2, "widths": (4, 4, 4), "blocks": 1, "window": 3,
        "settings": ("oasis-lpba", "hippocampus-hippocampus", "lung"),
        "steps": (1, 1, 1), "freeze": 0, "validate_every": 1, "lr": 1e-3, "nio_lr": 1e-3, "nio_m_lr": 1e-3,
        "io_iterations": 2, "nio_iterations": 1, "nio_m_iterations": (1, 1, 1),
        "nio_m_iterations_lung": (1, 1, 1), "bspline_knots": 2, "bspline_iterations": 1, "bspline_sampled": 0.1,
    },
    "cpu": {**SMALL, "steps": (200, 200, 600)},
    "study": {**SMALL, "steps": (300, 300, 900)},
    "paper": {},
}  # fmt: skip

VARIANTS = {
    "full": {},
    "initial": {"method": "initial"},
    "bspline": {"method": "bspline"},
    "lapirn": {"method": "lapirn", "reuse": True},
    "io50": {"method": "io", "io_iterations": 50, "reuse": True},
    "io": {"method": "io", "reuse": True},
    "nio": {"method": "nio", "reuse": True},
    "random": {"method": "nio_m", "start": "random"},
}


def uses_network(config: Config) -> bool:
    """Whether a configuration needs networks at all."""
    return config.method not in ("initial", "bspline")


def build_model(config: Config):
    """A network of a configuration, on the CPU."""
    from papers.nio.model import LapIRN

    return LapIRN(config.widths, config.blocks, config.range_flow)


class Best:
    """The weights with the highest Dice in validation, and the step of the last one. Part of the checkpoint."""

    def __init__(self):
        self.state = {"step": 0, "dice": -1.0, "weights": {}}

    def update(self, step: int, dice: float, model) -> None:
        self.state["step"] = step
        if dice > self.state["dice"]:
            weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            self.state.update(dice=dice, weights=weights)

    def state_dict(self) -> dict:
        return dict(self.state)

    def load_state_dict(self, state: dict) -> None:
        self.state = dict(state)


def validation_dice(model, scans, device) -> float:
    """Mean Dice of the validation scans of a domain, registered to the first training scan by one pass."""
    import torch

    from papers.nio.adaptation import predict
    from papers.nio.measures import mean_dice

    fixed, scores = scans[scans.train[0]], []
    structures = sorted(set(fixed.labels.ravel().tolist()) - {0})
    for index in scans.valid:
        moving = scans[index]
        pair = [torch.from_numpy(scan.image)[None, None].to(device) for scan in (moving, fixed)]
        field = predict(model, *pair).cpu()
        scores.append(mean_dice(moving.labels, fixed.labels, field, structures))
    return sum(scores) / len(scores)


def train(config: Config) -> None:
    """Train a network per source, level by level (M5); writes config.json, checkpoint.pt and log.csv."""
    import torch

    from papers.nio.experiments import Domains
    from papers.nio.model import LEVELS, LapIRN, registration_loss
    from shared import gpu

    domains = Domains(config)
    run = gpu.Run(config, paper="nio")
    networks, wrapped = {}, {}
    if uses_network(config):
        for source in domains.sources():
            networks[source] = gpu.initialise_by_name(build_model(config), config.seed)
            # Levels are trained one after another, so each is prepared alone.
            wrapped[source] = LapIRN.from_levels([run.prepare(level) for level in networks[source].levels])
    optimizers = {
        name: torch.optim.Adam(network.parameters(), lr=config.lr, fused=True) for name, network in networks.items()
    }
    best = {name: Best() for name in networks if not name.startswith("lung")}
    objects = {f"optimizer_{name}": item for name, item in optimizers.items()}
    run.restore(**objects, **{f"best_{name}": item for name, item in best.items()})
    if config.reuse:
        load_networks(config, run.models, best)
    if config.reuse or config.start == "random" or not networks:
        run.save()
        return

    end = 0
    for source, network in wrapped.items():
        dataset, optimizer = domains.training_pairs(source), optimizers[source]
        for level, steps in enumerate(config.steps, 1):
            first, end = end, end + steps
            validated = level == LEVELS and source in best and len(domains.scans[source].valid) > 0
            every = config.validate_every if validated else steps
            for stop in [*range(first + every, end, every), end]:
                if run.step > stop:
                    continue
                for step, batch in run.batches(dataset, stop):
                    frozen = level - 1 if step - first < config.freeze else 0
                    with run.autocast():
                        fields = network(batch["moving"], batch["fixed"], level, config.lam, frozen)
                    loss = registration_loss(
                        batch["moving"], batch["fixed"], fields[-1].float(), config.lam, config.window,
                        batch.get("mask"), config.voxel_units,
                    )  # fmt: skip
                    run.update(loss, optimizer)
                if validated and best[source].state["step"] < stop:
                    dice = validation_dice(networks[source], domains.scans[source], run.device)
                    best[source].update(stop, dice, networks[source])
    if best:
        run.save()


def load_networks(config: Config, levels: list, best: dict[str, Best]) -> None:
    """Networks of the checkpoint `config.init`, for another way to use the same training.

    Raises:
        InputError: no checkpoint given, or one of other networks.
    """
    from shared.checkpoints import load_checkpoint, load_weights

    if config.init is None:
        raise InputError("this variant trains nothing: give the checkpoint of variant 'full' as --init")
    content = load_checkpoint(config.init, "nio")
    if len(levels) != len(content["models"]) or not {f"best_{name}" for name in best} <= set(content["objects"]):
        raise InputError(f"{config.init}: its networks are not those of this configuration and data set")
    for level, state in zip(levels, content["models"]):
        load_weights(level, state, config.init)
    for name, item in best.items():
        item.load_state_dict(content["objects"][f"best_{name}"])


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
