"""Voxel grids in all papers: labels belong to their image or are refused; results of `apply` lie where its input lay.

A paper whose data set has labels or masks as NIfTI says where they are in paper.toml, `[contract] label = "*_seg.nii"`:
a pattern below the stand-in or a list of patterns, each of which matches those of the test set. A paper takes part in
the tests of `apply` if its input and output are both NIfTI.
"""

import csv
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks import ledger
from shared import nifti, resample
from shared.errors import InputError
from tests.test_contract import assert_one_sentence, module


def papers(wanted):
    """The slugs of the papers for which `wanted(paper.toml)` is true, for `parametrize`."""
    found = [slug for slug in ledger.slugs() if wanted(ledger.load_paper(slug))]
    return pytest.mark.parametrize("slug", [pytest.param(slug, marks=pytest.mark.xdist_group(slug)) for slug in found])


def rewrite(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI file again, in its type, with other data and another place."""
    header = nibabel.load(path).header.copy()
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    nibabel.save(nibabel.Nifti1Image(data, affine, header, dtype=header.get_data_dtype()), path)


def stored(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a file."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def move(path: Path) -> None:
    """The header says that the labels lie three voxels further on."""
    data, affine = stored(path)
    affine[:3, 3] += affine[:3, :3] @ [3, 3, 1]
    rewrite(path, data, affine)


def mirror_header(path: Path) -> None:
    """The header says that the x axis runs the other way, over the same box; the voxels are as before."""
    data, affine = stored(path)
    affine[:3, 3] += affine[:3, 0] * (data.shape[0] - 1)
    affine[:3, 0] *= -1
    rewrite(path, data, affine)


def mirror(path: Path) -> None:
    """The same labels at the same places, stored in the other order along x and y."""
    data, affine = stored(path)
    for axis in (0, 1):
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
        affine[:3, axis] *= -1
    rewrite(path, data[::-1, ::-1], affine)


def patterns(paper: dict) -> list[str]:
    """Where the labels of a paper are: one pattern or a list."""
    found = paper["contract"].get("label", [])
    return [found] if isinstance(found, str) else found


def measured(slug, data: Path, checkpoint: Path, out: Path) -> list[dict]:
    module(slug, "eval").evaluate(data, checkpoint, out, device="cpu")
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@papers(patterns)
def test_a_label_belongs_to_its_image(slug, smoke_data, smoke_run, tmp_path):
    """Labels that lie elsewhere are refused by name, or change the scores; labels in another order change nothing."""
    checkpoint = smoke_run(slug) / "checkpoint.pt"
    before = measured(slug, smoke_data(slug), checkpoint, tmp_path / "before")
    paper = ledger.load_paper(slug)
    for pattern in patterns(paper):
        for change, same in ((move, False), (mirror_header, False), (mirror, True)):
            copy, out = tmp_path / "data", tmp_path / "scores"
            shutil.copytree(smoke_data(slug), copy)
            labels = sorted(copy.glob(pattern))
            assert labels, f"paper.toml: contract.label = '{pattern}' matches nothing"
            # Where pairs are compared, a fault of both sides could cancel out: every second one is changed.
            for path in labels[:: 2 if paper["task"] == "registration" else 1]:
                change(path)
            try:
                after = measured(slug, copy, checkpoint, out)
            except InputError as error:
                assert any(path.name in str(error) for path in labels), f"the message names no label: {error}"
            else:
                what = f"{change.__name__} of {pattern}: labels were paired with voxels where they don't lie"
                assert (after == before) == same, what
            for folder in (copy, out):
                shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("slug", ledger.slugs())
def test_papers_with_labels_say_so(slug, smoke_data):
    """So that no paper is left out of the test above by silence."""
    labels = [path for path in smoke_data(slug).rglob("*.nii*") if re.search("seg|label|_gt|mask", path.name)]
    assert not labels or patterns(ledger.load_paper(slug)), (
        f"[contract] label is missing, but there is {labels[0].name}"
    )


def volumes(paper: dict) -> bool:
    return all(paper.get("apply", {}).get(end, "").endswith((".nii", ".nii.gz")) for end in ("input", "output"))


def reorder(path: Path) -> None:
    """The same image at the same places, with its axes in another order and direction."""
    data, affine = stored(path)
    image = nibabel.Nifti1Image(data, affine, nibabel.load(path).header, dtype=data.dtype)
    turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    rewrite(path, np.asarray(turned.dataobj), turned.affine)


@pytest.mark.slow
@papers(volumes)
@pytest.mark.parametrize("change", [mirror, reorder])
def test_apply_keeps_the_place(slug, change, smoke_data, smoke_run, tmp_path, capsys):
    """An image at the same places, with its voxels in another order, gives a result there or is refused."""
    paper = ledger.load_paper(slug)
    outputs = []
    for copy in (tmp_path / "as it is", tmp_path / "changed"):
        shutil.copytree(smoke_data(slug), copy)
        given = next(iter(sorted(copy.glob(paper["apply"]["input"]))))
        if copy.name == "changed":
            for path in sorted(given.parent.glob("*.nii*")):  # with the other modalities of its patient
                change(path)
        outputs.append(tmp_path / f"{copy.name}-{paper['apply']['output']}")
        flags = {
            "--checkpoint": smoke_run(slug) / "checkpoint.pt",
            "--input": given,
            "--output": outputs[-1],
            "--device": "cpu",
        }
        argv = ["apply", *[str(part) for pair in flags.items() for part in pair]]
        argv += [part.format(data=copy) for part in paper["apply"].get("arguments", [])]
        try:
            module(slug, "eval").main(argv)
        except SystemExit as stopped:
            assert copy.name == "changed", "apply refuses the stand-in"
            assert_one_sentence(stopped.code, capsys.readouterr().err)
            return
    one, two = (resample.to_ras(nifti.load(path)) for path in outputs)
    nifti.same_grid(two, one)
    for axis in range(3):  # two networks' views of one image may differ, but not as an image and its mirror image do
        flipped = np.flip(two.data, axis)
        if not np.allclose(one.data, np.flip(one.data, axis)):
            assert unlike(one.data, two.data) < unlike(one.data, flipped), f"mirrored along axis {axis} of R, A, S"


def unlike(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float64) - two.astype(np.float64)).mean())
