"""The commands that read and write the repository's own files, and how they say that they are outside of it."""

from benchmarks import ledger
from shared.errors import InputError


def need_checkout() -> None:
    """The package may be installed without its repository: training and evaluation work, the ledger does not.

    Raises:
        InputError: this is no checkout of the repository.
    """
    if not (ledger.ROOT / "pyproject.toml").is_file():
        raise InputError(
            f"{ledger.ROOT} is an installed package, and this command needs a checkout of the repository: clone it "
            "and run it there (python -m papers.<slug>.train and .eval work here, too)"
        )
