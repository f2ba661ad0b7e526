"""`make data`: make a paper's stand-in data set, and say where the real one is to be had."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks import ledger
from benchmarks.checkout import need_checkout
from benchmarks.fingerprint import fingerprint_of_data, read_marker, remove, write_marker
from benchmarks.lock import locked
from benchmarks.steps import Steps
from shared.cli import run_main
from shared.errors import InputError


@dataclass
class Options:
    """Make the stand-in data of a paper."""

    paper: str
    """slug of the paper"""
    profile: str = "cpu"
    """size of the stand-in: smoke, cpu, study or paper"""


@dataclass(frozen=True)
class DataSet:
    """A data set that lies on disk."""

    folder: Path
    fingerprint: str
    """digest of the names and contents of its files"""
    seconds: float | None = None
    """that making it took, for a stand-in"""


def say(text: str) -> None:
    print(text, flush=True)


def relative(path: Path) -> str:
    """A path as a user of the repository writes it."""
    path = Path(path)
    return str(path.relative_to(ledger.ROOT)) if path.is_relative_to(ledger.ROOT) else str(path)


def load_paper(slug: str, profile: str) -> dict:
    """A paper.toml that has a profile.

    Raises:
        InputError: there is no such paper, or it has no such profile.
    """
    if slug not in ledger.slugs():
        raise InputError(f"there is no paper '{slug}': `make list` shows all")
    paper = ledger.load_paper(slug)
    if profile not in paper["profiles"]:
        raise InputError(f"there is no profile '{profile}': choose one of {', '.join(paper['profiles'])}")
    return paper


def make_standin(slug: str, profile: str, steps: Steps) -> DataSet:
    """Generate the stand-in of the profile's size under `data/`, unless it is there, whole and up to date.

    Raises:
        InputError: another process is making it.
    """
    folder = ledger.ROOT / "data" / slug / f"standin-{profile}"
    marker = folder.with_name(f".{folder.name}.json")
    code = ledger.digest_of_code(ledger.standin_files(slug) + ledger.paper_files(slug))
    sentence = f"{relative(folder)} is being made by another process: wait for it or stop it"
    with locked(folder.with_name(f".{folder.name}.lock"), sentence):
        made = read_marker(marker)
        if made.get("code") == code and folder.is_dir() and fingerprint_of_data(folder) == made["fingerprint"]:
            say(f"data       {relative(folder)} is up to date")
            return DataSet(folder, made["fingerprint"], made["seconds"])
        remove(folder)
        remove(marker)
        for left in folder.parent.glob(f".{folder.name}[.-]*"):  # by one that was killed
            if left.is_dir():
                remove(left)
        say(f"data       making the stand-in {relative(folder)} ...")
        arguments = {"out": folder, "size": profile, "seed": 0}
        seconds = steps.run(f"benchmarks.standins.{slug}", "generate", arguments, folder.parent)["seconds"]
        fingerprint = fingerprint_of_data(folder)
        write_marker(marker, {"code": code, "fingerprint": fingerprint, "seconds": seconds})
    say(f"data       made in {seconds:.0f} s")
    return DataSet(folder, fingerprint, seconds)


def real_data(folder: Path) -> DataSet:
    """The user's own data set.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; DATA must be the folder of the data set")
    return DataSet(folder, fingerprint_of_data(folder))


def main(argv: list[str] | None = None) -> None:
    import tyro

    def run() -> None:
        options = tyro.cli(Options, args=argv)
        need_checkout()
        paper = load_paper(options.paper, options.profile)
        make_standin(options.paper, options.profile, Steps(["numpy", "torch", "benchmarks.steps"]))
        print(f"The stand-in: {' '.join(paper['standin'].split())}")
        for dataset in paper["datasets"]:
            print(f"The real data: {dataset['name']} ({dataset['n']}), access: {dataset['access']}, {dataset['url']}")
        print(f"Its layout on disk: papers/{options.paper}/README.md, and papers/{options.paper}/data.py")

    run_main(run)


if __name__ == "__main__":
    main()
