"""Training augmentation for small images as batched tensor operations, on the device where the images live.

Every image gets its own crop offset, flip, operations, magnitudes, signs and erased rectangle. The few random numbers
come from one CPU generator, and all sizes are worked out from them on the CPU: nothing here waits for a GPU, and the
same seed gives the same bytes on the same device.

    generator = torch.Generator().manual_seed(0)
    x = random_crop_flip(images, 4, generator)      # uint8 [B, 3, H, W]
    x = rand_augment(x, 2, 9, generator)            # uint8 [B, 3, H, W]
    x = random_erasing(normalise(x), 0.25, generator)  # float [B, 3, H, W], in place

Sources: RandAugment, Cubuk et al. 2020, arXiv 1909.13719, with the operations, ranges and defaults of timm's
'rand-m9-mstd0.5-inc1' (timm/data/auto_augment.py); Random Erasing, Zhong et al. 2020, arXiv 1708.04896, with timm's
defaults (timm/data/random_erasing.py).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

MAGNITUDE_STD = 0.5  # of an image's RandAugment magnitude around m, as timm's mstd0.5
FILL = 128  # grey level of what a warp brings in from outside, in all channels
ERASED_AREA = (0.02, 1 / 3)  # a rectangle's share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # its height / width
ERASING_TRIES = 10


class _Range(NamedTuple):
    """An operation's parameter at a level (magnitude / 10, so 0 to 1): start + slope * level."""

    start: float = 0.0
    slope: float = 0.0
    signed: bool = False  # the level is negated for half of the images
    whole: bool = False  # slope * level is cut to an integer


_RANGES = {
    "Invert": _Range(),  # solarise from 0 on
    "SolarizeIncreasing": _Range(256, -256, whole=True),  # threshold: 256 (nothing) down to 0 (all)
    "SolarizeAdd": _Range(0, 110, whole=True),  # added to the values below 128
    "PosterizeIncreasing": _Range(4, -4, whole=True),  # bits kept: 4 down to 0 (1, see _KERNELS)
    "BrightnessIncreasing": _Range(1, 0.9, signed=True),  # factor: 1 (nothing) to 0.1 or 1.9
    "ContrastIncreasing": _Range(1, 0.9, signed=True),
    "AutoContrast": _Range(),
    "Equalize": _Range(),
    "ColorIncreasing": _Range(1, 0.9, signed=True),
    "SharpnessIncreasing": _Range(1, 0.9, signed=True),
    "Rotate": _Range(0, 30, signed=True),  # degrees, counter-clockwise
    "ShearX": _Range(0, 0.3, signed=True),
    "ShearY": _Range(0, 0.3, signed=True),
    "TranslateXRel": _Range(0, 0.45, signed=True),  # of the width
    "TranslateYRel": _Range(0, 0.45, signed=True),  # of the height
}
OPS: tuple[str, ...] = tuple(_RANGES)
_NONE = len(OPS)  # the op index of an image that a round leaves alone
_RANGE_TABLE = torch.tensor([*_RANGES.values(), _Range()], dtype=torch.float64)  # the last row: nobody reads it


def random_crop_flip(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Crop each image at its own offset out of its reflect-padded self, and mirror half of them.

    images: uint8 [B, C, H, W] (any dtype works: pixels are only moved); returns the same shape and dtype.
    padding: pixels on each side, below min(H, W); offsets are uniform on 0..2*padding in both axes.
    """
    B, C, H, W = images.shape
    offset = torch.randint(-padding, padding + 1, (2, B), generator=generator)
    flip = torch.rand(1, B, generator=generator) < 0.5
    dy, dx, flip = send(images.device, torch.cat((offset, flip)))[0]

    # Where each output row and column comes from; crop, reflection and flip are one look-up per pixel.
    y = torch.arange(H, device=images.device)
    x = torch.arange(W, device=images.device)
    x = torch.where(flip[:, None] == 1, W - 1 - x, x)  # [B, W]
    rows = _reflect(y + dy[:, None], H)  # [B, H]
    columns = _reflect(x + dx[:, None], W)  # [B, W]
    source = (rows[:, :, None] * W + columns[:, None, :]).view(B, 1, H * W).expand(B, C, H * W)
    return images.flatten(2).gather(2, source).view(B, C, H, W)


def rand_augment(images: Tensor, n: int, m: float, generator: torch.Generator, prob: float = 0.5) -> Tensor:
    """RandAugment with n operations, magnitudes and signs drawn for each image, as timm's 'rand-m{m}-mstd0.5-inc1'.

    images: uint8 [B, 3, H, W]; returns the same shape and dtype (with n = 0 or no images: the input itself).
    n: rounds. In each, an image gets one of OPS, all equally likely, with probability prob (timm's default is 0.5;
        Cubuk et al. always apply, which is prob=1), otherwise nothing.
    m: magnitude, 0 to 10, may be fractional; each image's is normal around m, clipped to [0, 10].

    Warps interpolate bilinearly, as Pillow does it, where timm draws bilinear or bicubic: nearest would save 8 % of
    the time of the whole augmentation (measured) for jagged edges.
    """
    if n == 0 or len(images) == 0:
        return images
    return apply_ops(images, *draw_rand_augment(n, len(images), m, generator, prob))


def random_erasing(images: Tensor, prob: float, generator: torch.Generator) -> Tensor:
    """Replace, in place, a random rectangle by standard normal noise in each image with probability prob.

    images: floating point [B, C, H, W], normalised (the noise has mean 0, deviation 1); returned changed.
    Area is uniform, aspect log-uniform, place uniform; a rectangle as high or as wide as the image is drawn again, up
    to ten times, after which the image is left alone. As timm's RandomErasing(prob, mode='pixel').
    """
    B, C, H, W = images.shape
    chosen, boxes = draw_rectangles(B, H, W, prob, generator)
    # Only as much noise as there are pixels to fill: drawing it is what this function costs on a CPU.
    noise = _normal(C * int((boxes[2] * boxes[3]).sum()), images, generator)
    if not len(chosen):
        return images
    chosen, boxes = send(images.device, chosen, boxes)

    top, left, height, width = boxes[:, :, None]  # each [K, 1]
    y = torch.arange(H, device=images.device)
    x = torch.arange(W, device=images.device)
    in_rows = (y >= top) & (y < top + height)  # [K, H]
    in_columns = (x >= left) & (x < left + width)  # [K, W]
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]  # [K, 1, H, W]
    images[chosen] = images.index_select(0, chosen).masked_scatter_(inside, noise)
    return images


# ---- the draws, on the CPU ----


def draw_rand_augment(
    n: int, batch: int, m: float, generator: torch.Generator, prob: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Draw rand_augment's operations (int64 [n, batch], indices into OPS, len(OPS) for none) and their parameters
    (float64 [n, batch], in the units of _RANGES)."""
    ops = torch.randint(len(OPS), (n, batch), generator=generator)
    applied = torch.rand(n, batch, generator=generator) < prob
    level = torch.randn(n, batch, generator=generator, dtype=torch.float64).mul_(MAGNITUDE_STD).add_(m)
    negative = torch.rand(n, batch, generator=generator) < 0.5
    ops = torch.where(applied, ops, _NONE)
    return ops, op_parameters(ops, level.clamp_(0, 10).div_(10), negative)


def op_parameters(ops: Tensor, level: Tensor, negative: Tensor) -> Tensor:
    """The parameters (float64, in the units of _RANGES) of ops (int64) at level (float64, 0 to 1), negative (bool)
    where the sign is drawn so; all of one shape."""
    start, slope, signed, whole = _RANGE_TABLE[ops].unbind(-1)
    change = slope * torch.where(negative & (signed == 1), -level, level)
    return start + torch.where(whole == 1, change.trunc(), change)


def draw_rectangles(
    batch: int, height: int, width: int, prob: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw which images random_erasing erases (int64 [K], ascending) and the rectangles (int64 [4, K]: top, left,
    height, width in pixels)."""
    draws = torch.empty(2, ERASING_TRIES, batch)
    target = draws[0].uniform_(*ERASED_AREA, generator=generator) * (height * width)
    ratio = draws[1].uniform_(*map(math.log, ERASED_ASPECT), generator=generator).exp_()
    h = (target * ratio).sqrt_().round_()
    w = (target / ratio).sqrt_().round_()
    fits = (h < height) & (w < width)
    first = fits.int().argmax(0, keepdim=True)  # the first try that fits, or 0 if none does
    h, w, fits = (t.gather(0, first)[0] for t in (h, w, fits))
    chosen = ((torch.rand(batch, generator=generator) < prob) & fits).nonzero()[:, 0]
    top = torch.rand(batch, generator=generator).mul_(height - h + 1).floor_()
    left = torch.rand(batch, generator=generator).mul_(width - w + 1).floor_()
    return chosen, torch.stack((top, left, h, w))[:, chosen].long()


def _warp_matrices(ops: Tensor, params: Tensor, height: int, width: int) -> Tensor:
    """float32 [..., 2, 3]: from output to input position, in grid_sample's coordinates (-1 to 1 over the image).

    Rotation is around the centre; shears hold the top left corner, as Pillow's affine transform under timm does.
    """

    def values(name: str) -> Tensor:  # the op's parameter where an image gets it, else 0: no effect
        return torch.where(ops == OPS.index(name), params, 0.0)

    angle = values("Rotate").deg2rad_().neg_()
    shear_x, shear_y = values("ShearX") * height / width, values("ShearY") * width / height
    cos, sin = angle.cos(), angle.sin()
    row_x = (cos, sin * height / width + shear_x, shear_x + 2 * values("TranslateXRel"))
    row_y = (shear_y - sin * width / height, cos, shear_y + 2 * values("TranslateYRel"))
    return torch.stack((*row_x, *row_y), -1).unflatten(-1, (2, 3)).float()


# ---- the kernels, on the images' device ----


def apply_ops(images: Tensor, ops: Tensor, params: Tensor) -> Tensor:
    """Apply ops (int64 [n, B], as drawn) with params (float64 [n, B]), round by round, to uint8 [B, 3, H, W].

    In each round every kernel is called once, for all images that get one of its operations.
    """
    # On the CPU: which images these are, one kernel's after the other's, and their parameters in that order.
    order = ops.argsort(dim=1)
    matrices = _warp_matrices(ops.gather(1, order), params := params.gather(1, order), *images.shape[2:])
    counts = [torch.bincount(row, minlength=len(OPS)).tolist() for row in ops]
    order, params, matrices = send(images.device, order, params.float()[..., None, None, None], matrices)

    images = images.clone()
    for i, count in enumerate(counts):
        start = 0
        for names, kernel in _KERNELS.items():
            stop = start + sum(count[OPS.index(name)] for name in names)
            if stop > start:
                group = slice(start, stop)
                chosen = order[i, group]
                done = kernel(images[chosen].float(), params[i, group], matrices[i, group])
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
    _, _, H, W = pixels.shape
    y = (torch.arange(H, device=pixels.device) * 2 + 1) / H - 1  # pixel centres
    x = (torch.arange(W, device=pixels.device) * 2 + 1) / W - 1
    rows = matrices[:, :, 1, None] * y + matrices[:, :, 2, None]  # [G, 2, H]
    columns = matrices[:, :, 0, None] * x  # [G, 2, W]
    # The two coordinates as planes, not pairs: ten times as fast to fill, and no slower to sample with.
    grid = rows[:, :, :, None] + columns[:, :, None, :]  # [G, 2, H, W]
    # Beyond the image the nearest pixel counts, as with padding_mode="border", which Apple's GPUs have from torch 2.13
    # only (github.com/pytorch/pytorch/issues/125098).
    middles = 1 - 1 / torch.tensor([W, H], dtype=torch.float32)  # of the outermost pixels
    (middles,) = send(pixels.device, middles[:, None, None])
    places = grid.clamp(-middles, middles).permute(0, 2, 3, 1)
    warped = F.grid_sample(pixels, places, "bilinear", padding_mode="zeros", align_corners=False)
    # The image's edge is hard, as Pillow has it: no pixel mixes image and fill. A position exactly on the edge
    # is inside at the left and top only, hence the small shift.
    inside = (grid.add_(1e-6).abs_().amax(1, keepdim=True) < 1).to(torch.uint8)  # [G, 1, H, W]
    # Fractions are cut off as Pillow does; without the small addition rounding errors would cut 77 down to 76.
    return warped.add_(1e-3).to(torch.uint8).mul_(inside).add_((1 - inside).mul_(FILL))


def _blend(degenerate: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (pixels - degenerate), within 0..255."""
    return (pixels - degenerate).mul_(factor).add_(degenerate).clamp_(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    """Luma [G, 1, H, W] of float [G, 3, H, W], in whole numbers, with Pillow's 16-bit weights (exact in float32)."""
    r, g, b = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (r * (19595 / 65536)).add_(g, alpha=38470 / 65536).add_(b, alpha=7471 / 65536).add_(0.5).floor_()


def _mean_grey(pixels: Tensor) -> Tensor:
    """Each image's mean luma [G, 1, 1, 1], rounded."""
    return _grey(pixels).mean((2, 3), keepdim=True).add_(0.5).floor_()


def _smooth(pixels: Tensor) -> Tensor:
    """Pillow's SMOOTH filter (3×3, the centre five times, over 13); the outermost pixels are left as they are."""
    out = pixels.clone()
    centre = pixels[..., 1:-1, 1:-1]
    columns = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    box = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    out[..., 1:-1, 1:-1] = box.add_(centre, alpha=4).div_(13).add_(0.5).floor_()
    return out


# Operations, in the order of OPS: their function of pixels (float [G, 3, H, W], whole numbers), parameters [G, 1, 1, 1]
# and warp matrices [G, 2, 3] to pixels within 0..255.
_KERNELS = {
    ("Invert", "SolarizeIncreasing"): lambda x, p, _: torch.where(x >= p, 255 - x, x),
    ("SolarizeAdd",): lambda x, p, _: x + p * (x < 128),  # p <= 110: no overflow
    # timm's range ends at 0 bits, for magnitude 10 alone: a black image, which Pillow refuses from version 13 on.
    ("PosterizeIncreasing",): lambda x, p, _: x - x % torch.exp2(8 - p.clamp(min=1)),
    ("BrightnessIncreasing",): lambda x, p, _: (x * p).clamp_(0, 255),
    ("ContrastIncreasing",): lambda x, p, _: _blend(_mean_grey(x), x, p),
    ("AutoContrast",): lambda x, *_: _auto_contrast(x),
    ("Equalize",): lambda x, *_: tvf.equalize_image(x.to(torch.uint8)),
    ("ColorIncreasing",): lambda x, p, _: _blend(_grey(x), x, p),
    ("SharpnessIncreasing",): lambda x, p, _: _blend(_smooth(x), x, p),
    OPS[10:]: lambda x, _, matrices: _warp(x, matrices),
}


# ---- small things ----


def _reflect(index: Tensor, size: int) -> Tensor:
    """Mirror indices from -(size - 1) to 2 * (size - 1) into 0..size - 1 without repeating the edge."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


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
