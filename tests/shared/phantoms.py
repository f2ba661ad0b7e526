"""Images with known world positions, headers and messages, for the tests of volumes."""

import itertools

import nibabel
import numpy as np

from shared import nifti
from shared.errors import InputError

AXIS_CODES = [
    codes for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]  # all 48


# axis codes that show a mistake in any permutation or flip
GRIDS = [("R", "A", "S"), ("L", "P", "S"), ("L", "A", "S"), ("S", "R", "P"), ("P", "I", "L"), ("A", "S", "L")]
TILT = nibabel.eulerangles.euler2mat(0.1, -0.15, 0.2)


def affine_of(codes=("R", "A", "S"), spacing=(0.8, 1.5, 2.5), oblique=True, origin=(-37.0, 12.5, 90.25)):
    """Affine with the given axis codes and spacing (mm), turned by about 15 degrees if oblique."""
    affine = np.eye(4)
    signs = nibabel.orientations.axcodes2ornt(codes)
    axes = np.zeros((3, 3))
    for voxel_axis, (world_axis, sign) in enumerate(signs):
        axes[int(world_axis), voxel_axis] = sign
    affine[:3, :3] = (TILT if oblique else np.eye(3)) @ axes * spacing
    affine[:3, 3] = origin
    return affine


def world(affine, shape):
    """World positions in mm of all voxels, shape (*shape, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


GRADIENT = np.array([0.7, -1.3, 0.4])


def linear_image(affine, shape):
    """Float32 image whose value is the same linear function of the world position everywhere."""
    return nifti.make_image((world(affine, shape) @ GRADIENT + 5).astype(np.float32), affine)


def noise(shape, dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def same_header(first, second):
    """Every field, except those that only say where and how the voxels are stored."""
    ignored = {"scl_slope", "scl_inter", "vox_offset", "sizeof_hdr", "magic"}
    for key in first.keys():
        if key not in ignored:
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert [(e.get_code(), e.content) for e in first.extensions] == [
        (e.get_code(), e.content) for e in second.extensions
    ]


def check_sentence(error, path):
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 400 + len(str(path)) * 2
    assert type(error.value) is InputError


SHEARED = affine_of() + np.array([[0, 0.5, 0, 0], *[[0] * 4] * 3])
