"""`make data`: make a paper's stand-in data set, and say where the real one is to be had."""

from dataclasses import dataclass

from benchmarks import ledger
from shared.cli import run_main
from shared.errors import InputError


@dataclass
class Options:
    """Make the stand-in data of a paper."""

    paper: str
    """slug of the paper"""
    profile: str = "cpu"
    """size of the stand-in: smoke, cpu or paper"""


def main(argv: list[str] | None = None) -> None:
    import tyro

    def run() -> None:
        from benchmarks.reproduce import Steps, make_standin

        options = tyro.cli(Options, args=argv)
        if options.paper not in ledger.slugs():
            raise InputError(f"there is no paper '{options.paper}': `make list` shows all")
        paper = ledger.load_paper(options.paper)
        if options.profile not in paper["profiles"]:
            raise InputError(f"there is no profile '{options.profile}': choose from {', '.join(paper['profiles'])}")
        make_standin(options.paper, options.profile, Steps(["numpy", "torch"]))
        print(f"The stand-in: {' '.join(paper['standin'].split())}")
        for dataset in paper["datasets"]:
            print(f"The real data: {dataset['name']} ({dataset['n']}), access: {dataset['access']}, {dataset['url']}")
        print(f"Its layout on disk: papers/{options.paper}/README.md, and papers/{options.paper}/data.py")

    run_main(run)


if __name__ == "__main__":
    main()
