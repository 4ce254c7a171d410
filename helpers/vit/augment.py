"""Training augmentation for small images as batched tensor operations, on the device where the images live.

Every image gets its own crop, flip, operations, magnitudes and erased rectangle. Random numbers come from one CPU
generator, and sizes are worked out on the CPU: nothing here waits for a GPU, and a seed gives the same bytes again.

Sources: RandAugment, Cubuk et al. 2020, arXiv 1909.13719, with the operations, ranges and defaults of timm's
'rand-m9-mstd0.5-inc1' (timm/data/auto_augment.py); Random Erasing, Zhong et al. 2020, arXiv 1708.04896, with timm's
defaults (timm/data/random_erasing.py).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

APPLY_PROB = 0.5  # that a round of RandAugment changes an image: timm's default, where Cubuk et al. always do
MAGNITUDE_STD = 0.5  # of an image's RandAugment magnitude around m, as timm's mstd0.5
FILL = 128  # grey level of what a warp brings in from outside, in all channels
ERASED_AREA = (0.02, 1 / 3)  # a rectangle's share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # its height / width


# An operation's parameter at a level (magnitude / 10, so 0 to 1) is start + slope * level.
_RANGES = {  # (start, slope, is the level negated for half of the images, is slope * level cut to an integer)
    "Invert": (0, 0, False, False),  # solarise from 0 on
    "SolarizeIncreasing": (256, -256, False, True),  # threshold: 256 (nothing) down to 0 (all)
    "SolarizeAdd": (0, 110, False, True),  # added to the values below 128
    "PosterizeIncreasing": (4, -4, False, True),  # bits kept: 4 down to 0 (1, see _KERNELS)
    "BrightnessIncreasing": (1, 0.9, True, False),  # factor: 1 (nothing) to 0.1 or 1.9
    "ContrastIncreasing": (1, 0.9, True, False),
    "AutoContrast": (0, 0, False, False),
    "Equalize": (0, 0, False, False),
    "ColorIncreasing": (1, 0.9, True, False),
    "SharpnessIncreasing": (1, 0.9, True, False),
    "Rotate": (0, 30, True, False),  # degrees, counter-clockwise
    "ShearX": (0, 0.3, True, False),
    "ShearY": (0, 0.3, True, False),
    "TranslateXRel": (0, 0.45, True, False),  # of the width
    "TranslateYRel": (0, 0.45, True, False),  # of the height
}
OPS: tuple[str, ...] = tuple(_RANGES)
_RANGE_TABLE = torch.tensor([*_RANGES.values(), (0, 0, 0, 0)], dtype=torch.float64)  # the last row: of no operation


def random_crop_flip(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Crop each image (uint8 [B, C, H, W]) at its own offset out of its reflect-padded self, and mirror half of them.

    padding: pixels on each side, below min(H, W); offsets are uniform on 0..2*padding in both axes.
    """
    B, C, H, W = images.shape
    offset = torch.randint(-padding, padding + 1, (2, B), generator=generator)
    flip = torch.rand(1, B, generator=generator) < 0.5
    (draws,) = send(images.device, torch.cat((offset, flip))[..., None])
    dy, dx, flip = draws  # each [B, 1]

    # Where each output row and column comes from; crop, reflection and flip are one look-up per pixel.
    y, x = (torch.arange(size, device=images.device) for size in (H, W))
    x = torch.where(flip == 1, W - 1 - x, x)  # [B, W]
    rows = (H - 1) - ((H - 1) - (y + dy).abs()).abs()  # [B, H]; -1, -2 become 1, 2, and H, H + 1 become H - 2, H - 3
    columns = (W - 1) - ((W - 1) - (x + dx).abs()).abs()
    source = (rows[:, :, None] * W + columns[:, None, :]).view(B, 1, H * W).expand(B, C, H * W)
    return images.flatten(2).gather(2, source).view(B, C, H, W)


def rand_augment(images: Tensor, n: int, m: float, generator: torch.Generator) -> Tensor:
    """RandAugment with n rounds, of one of OPS or none for each image, on uint8 [B, 3, H, W].

    m: magnitude, 0 to 10; each image's is normal around it, clipped to [0, 10]. Warps interpolate bilinearly, as Pillow
    does it, where timm draws bilinear or bicubic.
    """
    if n == 0 or len(images) == 0:
        return images
    return apply_ops(images, *draw_rand_augment(n, len(images), m, generator))


def random_erasing(images: Tensor, prob: float, generator: torch.Generator) -> Tensor:
    """Replace, in place, a random rectangle by standard normal noise in each image with probability prob.

    images: floating point [B, C, H, W], normalised. Area is uniform, aspect log-uniform, place uniform; a rectangle as
    high or as wide as the image is drawn again, up to ten times, after which the image is left alone.
    """
    B, C, H, W = images.shape
    # On the CPU: which images are erased ([K]), and their rectangles (top, left, height, width).
    draws = torch.empty(2, 10, B)
    target = draws[0].uniform_(*ERASED_AREA, generator=generator) * (H * W)
    ratio = draws[1].uniform_(*map(math.log, ERASED_ASPECT), generator=generator).exp_()
    height, width = (target * ratio).sqrt_().round_(), (target / ratio).sqrt_().round_()
    fits = (height < H) & (width < W)
    first = fits.int().argmax(0, keepdim=True)  # the first try that fits, or 0 if none does
    height, width, fits = (t.gather(0, first)[0] for t in (height, width, fits))
    chosen = ((torch.rand(B, generator=generator) < prob) & fits).nonzero()[:, 0]
    top = torch.rand(B, generator=generator).mul_(H - height + 1).floor_()
    left = torch.rand(B, generator=generator).mul_(W - width + 1).floor_()
    boxes = torch.stack((top, left, height, width))[:, chosen].long()
    # Only as much noise as there are pixels to fill: drawing it is what this function costs on a CPU.
    noise = _normal(C * int((boxes[2] * boxes[3]).sum()), images, generator)
    if not len(chosen):
        return images

    chosen, boxes = send(images.device, chosen, boxes)
    top, left, height, width = boxes[:, :, None]  # each [K, 1]
    y, x = (torch.arange(size, device=images.device) for size in (H, W))
    in_rows = (y >= top) & (y < top + height)  # [K, H]
    in_columns = (x >= left) & (x < left + width)  # [K, W]
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]  # [K, 1, H, W]
    images[chosen] = images.index_select(0, chosen).masked_scatter_(inside, noise)
    return images


def send(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Move small CPU tensors to device without waiting for what is queued there (a pageable copy would wait)."""
    if device.type == "cuda":
        return [t.pin_memory().to(device, non_blocking=True) for t in tensors]
    return [t.to(device) for t in tensors]


def _normal(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of like's dtype, drawn on like's device: too much to draw elsewhere and move."""
    if like.device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=like.dtype, device=like.device)


def draw_rand_augment(n: int, batch: int, m: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw operations (int64 [n, batch], indices into OPS, len(OPS) for none) and their parameters (float64)."""
    ops = torch.randint(len(OPS), (n, batch), generator=generator)
    applied = torch.rand(n, batch, generator=generator) < APPLY_PROB
    level = torch.randn(n, batch, generator=generator, dtype=torch.float64).mul_(MAGNITUDE_STD).add_(m)
    negative = torch.rand(n, batch, generator=generator) < 0.5
    ops = torch.where(applied, ops, len(OPS))
    return ops, op_parameters(ops, level.clamp_(0, 10).div_(10), negative)


def op_parameters(ops: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    """Parameters, in the units of _RANGES, of ops at level (float64, 0 to 1), negated where the sign is drawn so."""
    start, slope, signed, whole = _RANGE_TABLE[ops].unbind(-1)
    change = slope * torch.where(negative & (signed == 1), -level, level)
    return start + torch.where(whole == 1, change.trunc(), change)


def _warp_matrices(ops: Tensor, params: Tensor, height: int, width: int) -> Tensor:
    """float32 [..., 2, 3]: from output to input position, in grid_sample's coordinates (-1 to 1 over the image).

    Rotation is around the centre; shears hold the top left corner, as Pillow's affine transform under timm does.
    """
    values = [torch.where(ops == OPS.index(name), params, 0.0) for name in OPS[10:]]  # 0 has no effect
    angle, shear_x, shear_y, move_x, move_y = values
    angle, shear_x, shear_y = angle.deg2rad().neg(), shear_x * height / width, shear_y * width / height
    cos, sin = angle.cos(), angle.sin()
    row_x = (cos, sin * height / width + shear_x, shear_x + 2 * move_x)
    row_y = (shear_y - sin * width / height, cos, shear_y + 2 * move_y)
    return torch.stack((*row_x, *row_y), -1).unflatten(-1, (2, 3)).float()


def apply_ops(images: Tensor, ops: Tensor, params: Tensor) -> Tensor:
    """Apply ops with params (as drawn), round by round; each calls every kernel once, for all images that need it."""
    # On the CPU: which images these are, one kernel's after the other's, and their parameters in that order.
    order = ops.argsort(dim=1)
    params = params.gather(1, order)
    matrices = _warp_matrices(ops.gather(1, order), params, *images.shape[2:])
    counts = [torch.bincount(row, minlength=len(OPS)).tolist() for row in ops]
    order, params, matrices = send(images.device, order, params.float()[..., None, None, None], matrices)

    images = images.clone()
    for i, count in enumerate(counts):
        start = 0
        for names, kernel in _KERNELS.items():
            stop = start + sum(count[OPS.index(name)] for name in names)
            if stop > start:
                chosen = order[i, start:stop]
                done = kernel(images[chosen].float(), params[i, start:stop], matrices[i, start:stop])
                images[chosen] = done.to(torch.uint8)  # fractions are cut off, as Pillow cuts them
            start = stop
    return images


def _auto_contrast(pixels: Tensor) -> Tensor:
    """Stretch each channel to 0..255. Own code: torchvision's assigns by a boolean mask, which may wait for a GPU."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)  # [G, 3, 1, 1]
    flat = low == high  # nothing to stretch: left as it is
    scale = torch.where(flat, 1.0, 255 / (high - low))
    return pixels.sub(low.masked_fill(flat, 0)).mul(scale).clamp_(0, 255)


def _warp(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Rotation, shears and translations: one bilinear sampling along each image's matrix."""
    H, W = pixels.shape[2:]
    y, x = ((torch.arange(size, device=pixels.device) * 2 + 1) / size - 1 for size in (H, W))  # pixel centres
    rows = matrices[:, :, 1, None] * y + matrices[:, :, 2, None]  # [G, 2, H]
    columns = matrices[:, :, 0, None] * x  # [G, 2, W]
    # The two coordinates as planes, not pairs: ten times as fast to fill, and no slower to sample with.
    grid = rows[:, :, :, None] + columns[:, :, None, :]  # [G, 2, H, W]
    # The image's edge is hard, as Pillow has it: no pixel mixes image and fill. A position exactly on the edge
    # is inside at the left and top only, hence the small shift.
    inside = (grid + 1e-6).abs_().amax(1, keepdim=True) < 1  # [G, 1, H, W]
    # Up to the edge the outermost pixel counts. padding_mode="border" would do it, but Apple's GPUs have that from
    # torch 2.13 only (github.com/pytorch/pytorch/issues/125098).
    for axis, size in enumerate((W, H)):
        grid[:, axis].clamp_(1 / size - 1, 1 - 1 / size)
    warped = F.grid_sample(pixels, grid.permute(0, 2, 3, 1), "bilinear", align_corners=False)
    # Fractions are cut off as Pillow does; without the small addition rounding errors would cut 77 down to 76.
    return torch.where(inside, warped.add_(1e-3), FILL)


def _blend(degenerate: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels - degenerate).mul_(factor).add_(degenerate).clamp_(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    """Luma [G, 1, H, W] in whole numbers, with Pillow's 16-bit weights (exact in float32)."""
    r, g, b = pixels.split(1, 1)
    return (r * (19595 / 65536)).add_(g, alpha=38470 / 65536).add_(b, alpha=7471 / 65536).add_(0.5).floor_()


def _smooth(pixels: Tensor) -> Tensor:
    """Pillow's SMOOTH filter (3×3, the centre five times, over 13); the outermost pixels are left as they are."""
    out, box = pixels.clone(), F.avg_pool2d(pixels, 3, 1, divisor_override=1)  # sums of 3x3
    out[..., 1:-1, 1:-1] = box.add_(pixels[..., 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()
    return out


# Operations, in the order of OPS: their function of pixels (float [G, 3, H, W], whole numbers), parameters [G, 1, 1, 1]
# and warp matrices [G, 2, 3] to pixels within 0..255.
_KERNELS = {
    ("Invert", "SolarizeIncreasing"): lambda x, p, _: torch.where(x >= p, 255 - x, x),
    ("SolarizeAdd",): lambda x, p, _: x + p * (x < 128),  # p <= 110: no overflow
    # timm's range ends at 0 bits, for magnitude 10 alone: a black image, which Pillow refuses from version 13 on.
    ("PosterizeIncreasing",): lambda x, p, _: x - x % torch.exp2(8 - p.clamp(min=1)),
    ("BrightnessIncreasing",): lambda x, p, _: (x * p).clamp_(0, 255),
    ("ContrastIncreasing",): lambda x, p, _: _blend(_grey(x).mean((2, 3), keepdim=True).add_(0.5).floor_(), x, p),
    ("AutoContrast",): lambda x, *_: _auto_contrast(x),
    ("Equalize",): lambda x, *_: tvf.equalize_image(x.to(torch.uint8)),
    ("ColorIncreasing",): lambda x, p, _: _blend(_grey(x), x, p),
    ("SharpnessIncreasing",): lambda x, p, _: _blend(_smooth(x), x, p),
    OPS[10:]: lambda x, _, matrices: _warp(x, matrices),
}
