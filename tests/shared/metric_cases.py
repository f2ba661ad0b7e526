"""Random masks, label maps and images for the tests of the metrics, and how close is close."""

import math

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CLOSE = {"rtol": 1e-6, "atol": 1e-9, "equal_nan": True}
NAN, INF = math.nan, math.inf
KINDS = ("random", "dense", "sparse", "empty", "full", "voxel", "plane", "box", "corner")

SOME = torch.zeros(1, 4, 4, dtype=torch.bool)
SOME[0, 1, 2] = True
NONE = torch.zeros_like(SOME)
INTEGERS = torch.ones(1, 12, 12, dtype=torch.int64)
MASK = INTEGERS.bool()
IMAGE = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))


def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def close(actual, expected, **tolerance):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), **{**CLOSE, **tolerance})


def one(mask):
    """A NumPy array as a batch of one."""
    return torch.from_numpy(np.ascontiguousarray(mask))[None]


def make_mask(kind, shape, rng):
    mask = np.zeros(shape, dtype=bool)
    if kind in ("random", "dense", "sparse"):
        mask = rng.random(shape) < {"random": 0.5, "dense": 0.9, "sparse": 0.08}[kind]
    elif kind == "full":
        mask[...] = True
    elif kind == "voxel":
        mask[tuple(rng.integers(n) for n in shape)] = True
    elif kind == "plane":
        axis = rng.integers(len(shape))
        np.moveaxis(mask, axis, 0)[rng.integers(shape[axis])] = True
    elif kind == "box":
        low = [rng.integers(n) for n in shape]
        mask[tuple(slice(a, rng.integers(a, n) + 1) for a, n in zip(low, shape))] = True
    elif kind == "corner":
        mask[tuple(slice(0, (n + 1) // 2) for n in shape)] = True
    return mask


@st.composite
def mask_pairs(draw, kinds=KINDS, nonempty=False):
    """Prediction, truth and spacing, in two or three dimensions, anisotropic, degenerate in every way."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p, t = (make_mask(draw(st.sampled_from(kinds)), shape, rng) for _ in range(2))
    relation = draw(st.sampled_from(("any", "any", "any", "same", "disjoint", "inside")))
    if relation == "same":
        p = t.copy()
    elif relation == "disjoint":
        p &= ~t
    elif relation == "inside":
        p &= t
    if nonempty:
        for mask in (p, t):
            if not mask.any():
                mask[tuple(rng.integers(n) for n in shape)] = True
    spacing = draw(st.lists(st.sampled_from((0.3, 0.7, 1.0, 1.25, 3.0, 8.0)), min_size=len(shape), max_size=len(shape)))
    return p, t, tuple(spacing)


@st.composite
def label_pairs(draw):
    """Two batches of label maps (B, *spatial), labels that may be absent, and a spacing."""
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=2, max_size=3)))
    batch = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.array(draw(st.sampled_from(((0, 1), (0, 1, 2, 3), (0, 2, 5, 9, 11, 200), (0, -1, 4, 70000)))))
    weights = rng.dirichlet(np.ones(len(values)))
    p, t = (rng.choice(values, (batch, *shape), p=weights) for _ in range(2))
    pool = sorted({1, 2, 3, 4, 5, 9, 13, 200, *values.tolist()})
    labels = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=8, unique=True))
    dtype = draw(st.sampled_from((torch.int64, torch.int32)))
    spacing = tuple(draw(st.sampled_from((0.5, 1.0, 2.5))) for _ in shape)
    return torch.from_numpy(p).to(dtype), torch.from_numpy(t).to(dtype), labels, spacing


@st.composite
def image_pairs(draw, smallest=1):
    shape = tuple(draw(st.lists(st.integers(smallest, smallest + 8), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from((1e-3, 1.0, 3000.0)))
    offset = draw(st.sampled_from((0.0, 0.5, -1.0)))
    y = scale * (rng.random(shape) + offset)
    x = y + scale * draw(st.sampled_from((0.0, 0.01, 0.3, 2.0))) * rng.standard_normal(shape)
    return x, y, scale
