"""The 2-D mixed-scale dense network of SR4ZCT (Pelt & Sethian 2018), without a copy of its growing stack of features.

Layer i sees the input and the features of all layers before it. Written with `torch.cat`, each layer copies (and
autograd keeps) everything before it: O(n²) maps for n layers. Here all features lie in one buffer, channels first, so
that "everything before layer i" is a contiguous slice of it. A layer of width 1 is then one matrix product: its kernel
taps (9, i) times the maps (i, B H W) are nine maps, whose sum under nine shifts is the dilated convolution. Its
backward pass is two products of the same kind. A training step holds 2 (n + 1) maps in all.

Images are (B, 1, H, W) in Hounsfield units (HU).
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def pad_symmetric(x: Tensor, margin: int) -> Tensor:
    """Reflect at the outer pixel edge, so that the edge pixel is repeated: (..., H, W) -> (..., H + 2m, W + 2m).

    NumPy calls it "symmetric"; `torch.nn.functional.pad` only has the reflection at the pixel's centre.

    Raises:
        ValueError: an image smaller than the margin.

    Example:
        >>> pad_symmetric(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 1)[0]
        tensor([1., 1., 2., 2.])
    """
    if min(x.shape[-2:]) < margin:
        raise ValueError(f"an image of {tuple(x.shape[-2:])} pixels can't be padded by {margin}")
    padded = x.new_empty((*x.shape[:-2], x.shape[-2] + 2 * margin, x.shape[-1] + 2 * margin))
    _middle(padded, margin).copy_(x)
    return _fill_border(padded, margin)


def _middle(padded: Tensor, margin: int) -> Tensor:
    """View of the image within its padding."""
    return padded[..., margin : padded.shape[-2] - margin, margin : padded.shape[-1] - margin]


def _fill_border(padded: Tensor, margin: int) -> Tensor:
    """Symmetric padding of the image in the middle of `padded`, in place."""
    if margin:
        padded[..., :margin] = padded[..., margin : 2 * margin].flip(-1)
        padded[..., -margin:] = padded[..., -2 * margin : -margin].flip(-1)
        padded[..., :margin, :] = padded[..., margin : 2 * margin, :].flip(-2)
        padded[..., -margin:, :] = padded[..., -2 * margin : -margin, :].flip(-2)
    return padded


def _fold_border(padded: Tensor, margin: int) -> Tensor:
    """Adjoint of `pad_symmetric`: the border's gradients go to the pixels that it copies, in place."""
    if margin:
        padded[..., margin : 2 * margin, :] += padded[..., :margin, :].flip(-2)
        padded[..., -2 * margin : -margin, :] += padded[..., -margin:, :].flip(-2)
        padded[..., margin : 2 * margin] += padded[..., :margin].flip(-1)
        padded[..., -2 * margin : -margin] += padded[..., -margin:].flip(-1)
    return _middle(padded, margin)


def _taps(maps: Tensor, dilation: int, margin: int) -> list[Tensor]:
    """Nine views (B, H, W) of nine padded maps (9, B, H + 2m, W + 2m): what each tap of a kernel sees at each place."""
    height, width = maps.shape[2] - 2 * margin, maps.shape[3] - 2 * margin
    starts = [margin + dilation * step for step in (-1, 0, 1)]
    corners = [(row, column) for row in starts for column in starts]
    return [maps[tap, :, r : r + height, c : c + width] for tap, (r, c) in enumerate(corners)]


class _DenseLayers(Function):
    """All hidden layers in one buffer: image (B, 1, H, W) -> features (B, n + 1, H, W), the image first.

    `kernels` (9, n (n + 1) / 2) holds the taps (9, i) of layer i = 1, 2, ... side by side.
    """

    @staticmethod
    def forward(ctx, image: Tensor, kernels: Tensor, biases: Tensor, dilations: tuple[int, ...]) -> Tensor:
        batch, _, height, width = image.shape
        margin = max(dilations, default=0)
        features = image.new_empty(len(dilations) + 1, batch, height + 2 * margin, width + 2 * margin)
        inside, flat = _middle(features, margin), features.flatten(1)
        products = image.new_empty(9, *features.shape[1:])
        total = image.new_empty(batch, height, width)
        inside[0] = image[:, 0]
        _fill_border(features[0], margin)
        for layer, (taps, dilation) in enumerate(zip(_split(kernels, len(dilations)), dilations), 1):
            torch.mm(taps, flat[:layer], out=products.view(9, -1))
            total.copy_(biases[layer - 1])
            for shifted in _taps(products, dilation, margin):
                total.add_(shifted)
            torch.clamp_min(total, 0, out=inside[layer])  # ReLU
            _fill_border(features[layer], margin)
        ctx.save_for_backward(features, kernels)
        ctx.dilations = dilations
        return inside.transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        features, kernels = ctx.saved_tensors
        margin = max(ctx.dilations, default=0)
        flat, gradients = features.flatten(1), torch.zeros_like(features)
        _middle(gradients, margin).copy_(gradient.transpose(0, 1))
        flat_gradients = gradients.flatten(1)
        products = features.new_empty(9, *features.shape[1:])
        flat_products = products.view(9, -1)
        for_kernels, for_biases = torch.empty_like(kernels), kernels.new_empty(len(ctx.dilations))
        layers = list(zip(_split(kernels, len(ctx.dilations)), _split(for_kernels, len(ctx.dilations)), ctx.dilations))
        for layer, (taps, for_taps, dilation) in reversed(list(enumerate(layers, 1))):
            local = _fold_border(gradients[layer], margin) * (_middle(features[layer], margin) > 0)
            for_biases[layer - 1] = local.sum()
            products.zero_()
            for shifted in _taps(products, dilation, margin):
                shifted.copy_(local)
            torch.mm(flat_products, flat[:layer].T, out=for_taps)
            flat_gradients[:layer].addmm_(taps.T, flat_products)
        return _fold_border(gradients[0], margin)[:, None], for_kernels, for_biases, None


def _split(kernels: Tensor, depth: int) -> list[Tensor]:
    """Views (9, i) of the kernels, for the layers i = 1 to depth."""
    return list(kernels.split(list(range(1, depth + 1)), dim=1))


class MSD(nn.Module):
    """Mixed-scale dense network, width 1, one channel in and out (M5; Pelt & Sethian, PNAS 2018).

    Layer i is ReLU of the sum, over the input and all features before it, of 3 x 3 convolutions with the dilation
    1 + (i mod `dilations`), symmetric padding, plus a bias; the output is a 1 x 1 convolution of all maps. At depth
    100 it has 45,652 parameters.

    Input and output are in HU; fixed scale layers standardise them (see `set_scale`). The arithmetic is float32
    whatever the precision of a surrounding autocast: the 8 bits of bf16 are as coarse as 4 HU at 1000 HU.

    Args:
        depth: layers n (paper: 100).
        dilations: the dilation of layer i is 1 + (i mod dilations) (released code: 10).
        identity: start as the identity, the output's weight of the image being 1 (released code: 0, a constant image).

    Raises:
        InputError: depth or dilations below 1.
        ValueError: (forward) an image with a side below the largest dilation.

    Example:
        >>> network = MSD(depth=5, dilations=3)
        >>> network(torch.rand(2, 1, 16, 12)).shape
        torch.Size([2, 1, 16, 12])
        >>> sum(p.numel() for p in MSD(100).parameters())
        45652
    """

    def __init__(self, depth: int = 100, dilations: int = 10, identity: bool = False):
        from shared.errors import InputError

        super().__init__()
        if depth < 1 or dilations < 1:
            raise InputError(f"an MS-D network needs depth and dilations of at least 1, got {depth} and {dilations}")
        self.identity, self.dilations = identity, tuple(1 + layer % dilations for layer in range(depth))
        self.kernels = nn.Parameter(torch.empty(9, depth * (depth + 1) // 2))
        self.biases = nn.Parameter(torch.empty(depth))
        self.output_weights = nn.Parameter(torch.empty(depth + 1))
        self.output_bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()
        for name in ("input_mean", "target_mean"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("input_deviation", "target_deviation"):
            self.register_buffer(name, torch.ones(()))

    def reset_parameters(self) -> None:
        depth = len(self.dilations)
        nn.init.normal_(self.kernels, std=math.sqrt(2 / (9 * depth + 1)))  # 9 taps of depth maps, and one output
        for parameter in (self.biases, self.output_weights, self.output_bias):
            nn.init.zeros_(parameter)
        if self.identity:
            self.output_weights.data[0] = 1.0

    def set_scale(self, inputs: Tensor, targets: Tensor) -> None:
        """Fix the scale layers by the mean and standard deviation of training images, in HU."""
        for name, images in (("input", inputs), ("target", targets)):
            getattr(self, f"{name}_mean").copy_(images.mean())
            getattr(self, f"{name}_deviation").copy_(images.std().clamp_min(1e-6))

    def features(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) standardised -> (B, depth + 1, H, W): the image, then the features of all layers."""
        if min(image.shape[2:]) < max(self.dilations):
            raise ValueError(f"an image of {tuple(image.shape[2:])} pixels is smaller than a dilation of this network")
        return _DenseLayers.apply(image, self.kernels, self.biases, self.dilations)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 1, H, W), both in HU."""
        with torch.autocast(image.device.type, enabled=False):
            features = self.features((image.float() - self.input_mean) / self.input_deviation)
            output = (self.output_weights @ features.flatten(2) + self.output_bias).view_as(image)  # 1 x 1 convolution
            return output * self.target_deviation + self.target_mean


def l2_loss(network: MSD, prediction: Tensor, target: Tensor) -> Tensor:
    """L of equation 1 as a mean over pixels, in units of the target's variance: it means the same in any scan."""
    return ((prediction - target) / network.target_deviation).square().mean()


@torch.no_grad()
def enhance_images(network: nn.Module, images: Tensor, pixels_at_once: int = 2**18) -> Tensor:
    """Apply the network to images (N, H, W) in HU, as many at a time as memory allows."""
    step = max(1, pixels_at_once // (images.shape[1] * images.shape[2]))
    return torch.cat([network(part[:, None])[:, 0] for part in images.split(step)])


def enhance_volume(network: nn.Module, volume: Tensor, view: str) -> Tensor:
    """Apply the network to all coronal ("cor") or sagittal ("sag") images of an upscaled volume (M7).

    Args:
        volume: (X, Y, Z) in HU with isotropic voxels, as `scaling.upscale` gives it.
        view: coronal images are (z, x), sagittal ones (z, y): the blurred axis is the vertical one, as in training.

    Example:
        >>> enhance_volume(MSD(depth=2, dilations=2), torch.rand(6, 7, 8), "cor").shape
        torch.Size([6, 7, 8])
    """
    order = {"cor": (1, 2, 0), "sag": (0, 2, 1)}[view]
    images = enhance_images(network, volume.permute(order))
    return images.permute([order.index(axis) for axis in range(3)])
