"""`make new PAPER=slug`: copy `benchmarks/template/` to where a paper's files go.

The template is a whole, small paper (a denoiser of simulated discs), so that the scaffold passes the
contract tests as it is; what to replace is listed at the end.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ledger
from benchmarks.checkout import need_checkout
from shared.cli import run_main
from shared.errors import InputError

TEMPLATE = Path(__file__).resolve().parent / "template"

TO_DO = """\
Created papers/{slug}/, benchmarks/standins/{slug}.py and tests/papers/test_{slug}.py: a small denoiser that
passes the contract. Now make it the paper, in this order:
  1. papers/{slug}/paper.toml          citation, reported numbers, variants, metrics, claims, what each profile runs
  2. benchmarks/standins/{slug}.py     a stand-in in the real data set's layout, on the shared simulators
  3. papers/{slug}/data.py             read that layout
  4. papers/{slug}/model.py            the method, and tests of its mathematics
  5. papers/{slug}/train.py, eval.py   configuration, profiles, variants, loop; metrics, panel, apply
  6. papers/{slug}/README.md           part table, deviations and choices, errata
  7. a pilot for the length of the study (CONTRIBUTING.md), then
     make reproduce PAPER={slug} RECORD=1, the same with PROFILE=study, and look at the panels"""


@dataclass
class Options:
    """Make a scaffold for a new paper."""

    slug: str
    """short lower-case name: letters and digits"""


def create(slug: str, root: Path = ledger.ROOT) -> None:
    """Copy the template under `root`, with its name replaced.

    Raises:
        InputError: the name can't be that of a Python package, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*", slug):
        raise InputError(f"'{slug}' can't be a slug: lower-case letters and digits, a letter first")
    folder = root / "papers" / slug
    if folder.exists():
        raise InputError(f"papers/{slug} is there already")
    places = {"standin.py": root / "benchmarks" / "standins" / f"{slug}.py"}
    places["test_paper.py"] = root / "tests" / "papers" / f"test_{slug}.py"
    for source in sorted(TEMPLATE.iterdir()):
        if source.is_file():
            target = places.get(source.name, folder / source.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text("utf-8").replace("template", slug), "utf-8")


def main(argv: list[str] | None = None) -> None:
    import tyro

    def run() -> None:
        slug = tyro.cli(Options, args=argv).slug
        need_checkout()
        create(slug)
        print(TO_DO.format(slug=slug))

    run_main(run)


if __name__ == "__main__":
    main()
