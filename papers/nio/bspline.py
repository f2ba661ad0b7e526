"""The conventional baseline: a multi-resolution free-form deformation (cubic B-spline) by SimpleITK.

The paper compares with NiftyReg, the same family of method (Rueckert et al. 1999), which is a program of its own.
"""

from collections.abc import Sequence

import numpy as np


def register_bspline(
    moving: np.ndarray,
    fixed: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    knots: int = 6,
    bins: int = 32,
    sampled: float = 1.0,
    iterations: int = 30,
) -> np.ndarray:
    """Displacement field in voxels, float32 (3, X, Y, Z): what is at x in `fixed` is at x + u(x) in `moving`.

    Mutual information (NiftyReg's default is a kind of it), maximised by L-BFGS-B at half and full resolution.
    Smoothness comes from the grid of knots.

    Args:
        moving, fixed: float32 (X, Y, Z).
        spacing_mm: voxel size.
        knots: spans of the grid along the longest axis.
        bins: of the joint histogram, along each axis.
        sampled: share of the voxels that the histogram is made of, on a jittered regular grid.
        iterations: of L-BFGS-B at each resolution.

    Example:
        >>> image = np.random.default_rng(0).random((12, 12, 12), dtype=np.float32)
        >>> register_bspline(image, image, knots=2, iterations=2).shape
        (3, 12, 12, 12)
    """
    import SimpleITK as sitk

    spacing = [float(value) for value in spacing_mm]

    def to_itk(volume: np.ndarray):
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))
        image.SetSpacing(spacing)
        return image

    fixed_image, moving_image = to_itk(fixed.astype(np.float32)), to_itk(moving.astype(np.float32))
    lengths = [n * mm for n, mm in zip(fixed.shape, spacing)]
    mesh = [max(1, round(knots * length / max(lengths))) for length in lengths]
    transform = sitk.BSplineTransformInitializer(fixed_image, mesh, order=3)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # the sum over threads would depend on how many there are
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=bins)
    if sampled < 1:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(sampled, seed=1)  # the grid is jittered, by default from the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-8,
        numberOfIterations=iterations,
        maximumNumberOfFunctionEvaluations=2 * iterations,
        costFunctionConvergenceFactor=1e5,
    )
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(transform, inPlace=True)
    result = method.Execute(fixed_image, moving_image)
    field = sitk.TransformToDisplacementField(
        result,
        sitk.sitkVectorFloat32,
        fixed_image.GetSize(),
        fixed_image.GetOrigin(),
        fixed_image.GetSpacing(),
        fixed_image.GetDirection(),
    )
    millimetres = sitk.GetArrayFromImage(field).T  # (3, X, Y, Z): ITK's x is the array's last axis
    return (millimetres / np.reshape(spacing, (3, 1, 1, 1))).astype(np.float32)
