"""The picture of a run: one test case as the variants show it."""

import hashlib

from benchmarks import ledger
from benchmarks.data import relative, say
from benchmarks.fingerprint import changed, digest_of_file, read_marker, remove, write_marker
from benchmarks.plan import Training
from benchmarks.runs import Setup
from shared.errors import InputError


def draw_panel(setup: Setup, paper: dict) -> str | None:
    """Draw panel.png from the first seed's checkpoints, unless it is up to date.

    It shows those of the paper's choice of variants (`panel`) that were run, or is left out if it needs the others.

    Returns:
        what went wrong, if anything.
    """
    every = [setup.checkpoint(Training(name, 0)) for name in paper["panel"]]
    checkpoints = [path for path in every if path.is_file()]
    if not checkpoints:
        return None
    parts = [ledger.digest_of_code(ledger.paper_files(setup.slug)), setup.data.fingerprint]
    parts += [f"{path.parent.parent.name} {digest_of_file(path)}" for path in checkpoints]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    picture, marker = setup.root / "panel.png", setup.root / "panel.json"
    state = read_marker(marker)
    if state.get("digest") != digest or changed(setup.root, state["files"]):
        remove(picture)
        remove(marker)
        arguments = {
            "data": setup.data.folder,
            "checkpoints": checkpoints,
            "out": picture,
            "device": setup.device,
        }
        try:
            setup.steps.run(f"papers.{setup.slug}.eval", "panel", arguments, setup.root)
        except (RuntimeError, InputError) as error:
            if len(checkpoints) < len(every):
                say(f"picture    none, for it needs more variants: {error}")
                return None
            return f"panel: {error}"
        write_marker(marker, {"digest": digest, "files": {picture.name: digest_of_file(picture)}})
    say(f"picture    {relative(picture)}")
    return None
