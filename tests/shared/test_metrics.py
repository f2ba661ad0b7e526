"""`shared.metrics` against independent libraries and its own documentation."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given

from shared import metrics, similarity, surfaces
from tests.shared.metric_cases import (
    IMAGE,
    INF,
    INTEGERS,
    MASK,
    NAN,
    NONE,
    SOME,
    close,
    examples,
    image_pairs,
    label_pairs,
    mask_pairs,
    one,
)

OVERLAP = (metrics.dice, metrics.iou, metrics.sensitivity, metrics.precision)


@examples(200)
@given(label_pairs())
def test_overlap_follows_its_definition(case):
    p, t, labels, _ = case
    ours = [metric(p, t, labels) for metric in OVERLAP]
    for b in range(len(p)):
        for l, label in enumerate(labels):
            a, c = (x[b].numpy() == label for x in (p, t))
            both = (a & c).sum()
            fractions = (
                (2 * both, a.sum() + c.sum()),
                (both, (a | c).sum()),
                (both, c.sum()),
                (both, a.sum()),
            )
            for value, (top, bottom) in zip(ours, fractions):
                close(value[b, l], top / bottom if bottom else NAN)


@examples(80)
@given(label_pairs())
def test_overlap_agrees_with_simpleitk(case):
    import SimpleITK as sitk

    p, t, labels, _ = case
    reference = sitk.LabelOverlapMeasuresImageFilter()
    for b in range(len(p)):
        images = [sitk.GetImageFromArray(x[b].numpy().astype(np.int32)) for x in (p, t)]
        reference.Execute(*images)
        for label in labels:
            a, c = p[b : b + 1], t[b : b + 1]
            if label == 0 or not (a == label).any() or not (c == label).any():
                continue
            close(metrics.dice(a, c, [label]), [[reference.GetDiceCoefficient(label)]])
            close(metrics.iou(a, c, [label]), [[reference.GetJaccardCoefficient(label)]])
            # Its source is our prediction and its errors are fractions of the target and the source.
            close(metrics.sensitivity(a, c, [label]), [[1 - reference.GetFalseNegativeError(label)]])


@examples(80)
@given(mask_pairs(nonempty=True))
def test_overlap_agrees_with_monai(pair):
    from monai.metrics import compute_dice, compute_iou

    P, T = (one(mask) for mask in pair[:2])
    close(metrics.dice(P, T), compute_dice(P[None].float(), T[None].float()))
    close(metrics.iou(P, T), compute_iou(P[None].float(), T[None].float()))


@examples(80)
@given(mask_pairs(nonempty=True))
def test_overlap_agrees_with_medpy(pair):
    medpy = pytest.importorskip("medpy.metric.binary", reason="medpy is installed for benchmarks only")

    p, t, _ = pair
    P, T = one(p), one(t)
    close(metrics.dice(P, T), [[medpy.dc(p, t)]])
    close(metrics.iou(P, T), [[medpy.jc(p, t)]])
    close(metrics.sensitivity(P, T), [[medpy.recall(p, t)]])
    close(metrics.precision(P, T), [[medpy.precision(p, t)]])


UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *UNSIGNED])
def test_overlap_of_every_integer_type(dtype):
    torch.manual_seed(0)
    p, t = torch.randint(0, 4, (2, 2, 5, 6, 7))
    labels = [3, 1, 0, 9, 1000, -5]
    for metric in OVERLAP:
        close(metric(p.to(dtype), t.to(dtype), labels), metric(p, t, labels))
    for some in (labels, [3, 2, 1, 9, 1000]):  # found one by one, found by index
        close(surfaces.hd95(p.to(dtype), t.to(dtype), (1, 1, 1), some), surfaces.hd95(p, t, (1, 1, 1), some))


@pytest.mark.parametrize(
    ("dtype", "top"), [(torch.uint16, 2**16 - 1), (torch.uint32, 2**32 - 1), (torch.uint64, 2**63 - 1)]
)
def test_the_largest_labels_of_unsigned_types(dtype, top):
    """Read as signed, 65535 would be -1."""
    p = torch.tensor([[[0, 1, top, top]]]).to(dtype)
    t = torch.tensor([[[0, top, top, 1]]]).to(dtype)
    close(metrics.dice(p, t, [1, top, -1, 0]), [[0.0, 0.5, NAN, 1.0]])
    close(surfaces.hausdorff_distance(p, t, (1, 2), [top]), [[2.0]])


def test_labels_beyond_63_bits_are_refused():
    maps = torch.tensor([[[0, 2**64 - 1]]], dtype=torch.uint64)
    with pytest.raises(ValueError, match="below 2\^63"):
        metrics.dice(maps, maps, [1])


def test_bool_masks_have_the_labels_of_their_integers():
    torch.manual_seed(0)
    p, t = torch.rand(2, 3, 6, 7) > 0.6
    labels = [0, 1, 2]
    for metric in OVERLAP:
        close(metric(p, t, labels), metric(p.long(), t.long(), labels))
        close(metric(p, t), metric(p, t, [1]))
        close(metric(p, t), metric(p.long(), t.long(), [1]))
    close(surfaces.hd95(p, t, (1, 2), labels), surfaces.hd95(p.long(), t.long(), (1, 2), labels))


def test_the_other_order_of_the_arguments():
    torch.manual_seed(0)
    p, t = torch.rand(2, 3, 6, 7) > 0.6
    close(metrics.precision(p, t), metrics.sensitivity(t, p))
    close(metrics.dice(p, t), metrics.dice(t, p))
    close(metrics.iou(p, t), metrics.iou(t, p))


@pytest.mark.parametrize(
    ("metric", "both", "no_prediction", "no_truth"),
    [
        (metrics.dice, NAN, 0, 0),
        (metrics.iou, NAN, 0, 0),
        (metrics.sensitivity, NAN, 0, NAN),
        (metrics.precision, NAN, NAN, 0),
    ],
)
def test_overlap_of_empty_masks(metric, both, no_prediction, no_truth):
    for (p, t), expected in {(NONE, NONE): both, (NONE, SOME): no_prediction, (SOME, NONE): no_truth}.items():
        close(metric(p, t), [[expected]])
        close(metric(p, t, undefined=1.0), [[1.0 if math.isnan(expected) else expected]])


@examples(150)
@given(image_pairs())
def test_errors_agree_with_their_definitions_and_scikit_image(images):
    from skimage.metrics import peak_signal_noise_ratio

    x, y, scale = images
    X, Y = one(x), one(y)
    close(metrics.mae(X, Y), [np.abs(x - y).mean()], atol=0)
    close(metrics.nmae(X, Y), [np.abs(x - y).sum() / np.abs(y).sum()], atol=0)
    close(metrics.nmse(X, Y), [np.linalg.norm(x - y) ** 2 / np.linalg.norm(y) ** 2], atol=0)
    with np.errstate(divide="ignore"):
        close(metrics.psnr(X, Y, data_range=scale), [peak_signal_noise_ratio(y, x, data_range=scale)])


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.int8, torch.int16, torch.int32, *UNSIGNED],
)
def test_image_metrics_are_exact_for_every_type(dtype):
    torch.manual_seed(0)
    span = 100 if dtype == torch.int8 else 60000 if dtype in UNSIGNED else 200
    x, y = (span * torch.rand(2, 2, 14, 15)).to(dtype)
    for metric in (metrics.mae, metrics.nmae, metrics.nmse):
        close(metric(x, y), metric(x.double(), y.double()), rtol=1e-12)
    for metric in (metrics.psnr, similarity.ssim):
        close(metric(x, y, data_range=255), metric(x.double(), y.double(), data_range=255), rtol=1e-10)


def test_image_metrics_of_a_batch_are_those_of_its_cases():
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 13, 14)
    spans = torch.tensor([1.0, 2.0, 5.0])
    for metric in (metrics.mae, metrics.nmae, metrics.nmse):
        close(metric(x, y), [metric(a[None], b[None]).item() for a, b in zip(x, y)], rtol=1e-12)
    for metric in (metrics.psnr, similarity.ssim):
        each = [metric(a[None], b[None], data_range=float(r)).item() for a, b, r in zip(x, y, spans)]
        close(metric(x, y, data_range=spans), each, rtol=1e-12)


def test_identical_images():
    x = torch.rand(2, 12, 12) + 0.1
    assert metrics.psnr(x, x, data_range=1.0).tolist() == [INF, INF]
    close(similarity.ssim(x, x, data_range=1.0), [1.0, 1.0], rtol=1e-12)
    for metric in (metrics.mae, metrics.nmae, metrics.nmse):
        assert metric(x, x).tolist() == [0.0, 0.0]


def test_a_truth_of_zeros():
    zero, x = torch.zeros(1, 4, 4), torch.rand(1, 4, 4)
    for metric in (metrics.nmse, metrics.nmae):
        assert metric(x, zero).item() == INF
        assert math.isnan(metric(zero, zero).item())


def test_errors_are_differentiable_in_float32():
    x = torch.rand(2, 12, 13, requires_grad=True)
    y = torch.rand(2, 12, 13)
    for loss in (
        metrics.mae(x, y),
        metrics.nmse(x, y),
        metrics.psnr(x, y, data_range=1),
        similarity.ssim(x, y, data_range=1),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert gradient.dtype == torch.float32 and gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.dice(MASK, MASK[:, 1:]), "same shape"),
        (lambda: metrics.dice(MASK.numpy(), MASK), "torch tensor"),
        (lambda: metrics.dice(IMAGE, MASK), "bool mask"),
        (lambda: metrics.dice(INTEGERS, MASK, [1]), "both integer"),
        (lambda: metrics.dice(INTEGERS, INTEGERS), "labels is required"),
        (lambda: metrics.dice(INTEGERS, INTEGERS, []), "labels must be"),
        (lambda: metrics.dice(INTEGERS, INTEGERS, [1, 1]), "labels must be"),
        (lambda: metrics.dice(MASK[0, 0], MASK[0, 0]), "spatial"),
        (lambda: metrics.dice(MASK[:, :0], MASK[:, :0]), "voxels"),
        (lambda: metrics.mae(IMAGE, IMAGE[:, 1:]), "same shape"),
        (lambda: metrics.mae(IMAGE * NAN, IMAGE), "prediction has NaN"),
        (lambda: metrics.nmse(IMAGE, IMAGE / 0), "truth has NaN or infinite"),
        (lambda: metrics.mae(IMAGE.to(torch.complex64), IMAGE), "magnitude"),
        (lambda: metrics.mae(IMAGE.numpy(), IMAGE), "torch tensor"),
        (lambda: metrics.mae(IMAGE[0, 0], IMAGE[0, 0]), "spatial"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=None), "data_range is required"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=0.0), "data_range must be positive"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=torch.ones(2)), "one per case"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("metric", [metrics.psnr, similarity.ssim])
def test_data_range_has_no_default(metric):
    with pytest.raises(TypeError, match="data_range"):
        metric(IMAGE, IMAGE)


def test_the_examples_of_the_documentation():
    result = doctest.testmod(metrics, verbose=False)
    assert result.attempted >= 2 and result.failed == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu_as_on_the_cpu():
    torch.manual_seed(0)
    p, t = torch.randint(0, 4, (2, 2, 12, 13, 14))
    x, y = torch.rand(2, 2, 12, 13, 14)
    labels = [1, 2, 3, 9, 100000]
    for metric in OVERLAP:
        unsigned = [(p.to(dtype), t.to(dtype), labels) for dtype in UNSIGNED]
        for a, b, some in ((p, t, labels[:4]), (p, t, labels), (p > 1, t > 1, None), *unsigned):
            found = metric(a.cuda(), b.cuda(), some)
            assert found.is_cuda
            close(found.cpu(), metric(a, b, some))
    for name, value in surfaces.surface_metrics(p.cuda(), t.cuda(), (1, 2, 3), labels, nsd_tolerance=1).items():
        assert value.is_cuda
        close(value.cpu(), surfaces.surface_metrics(p, t, (1, 2, 3), labels, nsd_tolerance=1)[name])
    for metric in (metrics.mae, metrics.nmae, metrics.nmse):
        close(metric(x.cuda(), y.cuda()).cpu(), metric(x, y))
    for metric in (metrics.psnr, similarity.ssim):
        found = metric(x.cuda(), y.cuda(), data_range=1)
        assert found.is_cuda
        close(found.cpu(), metric(x, y, data_range=1))


def test_arguments_are_left_as_they_were():
    torch.manual_seed(0)
    p, t = torch.randint(0, 9, (2, 1, 9, 9))
    x, y = torch.rand(2, 1, 12, 12)
    before = [v.clone() for v in (p, t, x, y)]
    metrics.dice(p, t, [1, 2])
    surfaces.surface_metrics(p, t, (1, 1), [1, 2, 3, 4, 5, 6])
    similarity.ssim(x, y, data_range=1)
    assert all(torch.equal(a, b) for a, b in zip(before, (p, t, x, y)))
