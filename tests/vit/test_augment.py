"""helpers/vit/augment.py against Pillow (through timm's operations), and the distribution of what it draws.

The statistical tests have fixed seeds. Their bounds are about five standard deviations wide, so that another seed, or
another version's random numbers, would pass them too.
"""

import math
import random

import numpy as np
import pytest
import timm.data.auto_augment as timm_aa
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing

from helpers.vit import augment
from helpers.vit.augment import OPS, apply_ops, op_parameters, rand_augment, random_crop_flip, random_erasing

UNSIGNED = {"AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"}


@pytest.fixture(autouse=True)
def posterize_keeps_a_bit(monkeypatch):
    """At magnitude 10 timm asks for 0 bits: black before Pillow 13, an error since. Ours keeps 1 (see augment.py)."""
    bits = {"PosterizeIncreasing": lambda level, _: (max(1, 4 - int(level / 10 * 4)),)}
    monkeypatch.setattr(timm_aa, "LEVEL_TO_ARG", timm_aa.LEVEL_TO_ARG | bits)


@pytest.fixture
def always(monkeypatch):
    """Every round changes every image."""
    monkeypatch.setattr(augment, "APPLY_PROB", 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Like photographs: coarse structure, fine texture, differing brightness and contrast. uint8 [count, 3, H, W]."""
    g = generator(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=g)
    fine = torch.rand(count, 1, height // 2, width // 2, generator=g)
    mix = 0.75 * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    mix += 0.25 * torch.nn.functional.interpolate(fine, size=(height, width), mode="bilinear")
    contrast = torch.empty(count, 1, 1, 1).uniform_(120, 330, generator=g)
    return ((mix - 0.5) * contrast + torch.empty(count, 1, 1, 1).uniform_(80, 170, generator=g)).clamp(0, 255).byte()


def noise(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator(1))


def degenerate() -> torch.Tensor:
    """One colour everywhere; one colour but for one pixel of one channel; two colours."""
    images = torch.full((3, 3, 32, 32), 77, dtype=torch.uint8)
    images[1, 0, 3, 4] = 200
    images[2, :, :, :10] = 3
    return images


PICTURES = {
    "photos": photos(8),
    "not square": photos(6, 48, 64),
    "noise, odd": noise(6, 25, 40),
    "degenerate": degenerate(),
}


def pillow(images: torch.Tensor, name: str, magnitude: float, sign: int, monkeypatch) -> torch.Tensor:
    """timm's operation on each image, on Pillow images, bilinear."""
    monkeypatch.setattr(timm_aa, "_randomly_negate", lambda value: sign * value)
    level = timm_aa.LEVEL_TO_ARG[name]
    arguments = level(magnitude, {}) if level else ()
    operation = timm_aa.NAME_TO_OP[name]
    out = []
    for image in images.permute(0, 2, 3, 1).numpy():
        done = operation(
            Image.fromarray(image), *arguments, fillcolor=(augment.FILL,) * 3, resample=Image.Resampling.BILINEAR
        )
        out.append(torch.from_numpy(np.array(done)).permute(2, 0, 1))
    return torch.stack(out)


def ours(images: torch.Tensor, name: str, magnitude: float, sign: int) -> torch.Tensor:
    ops = torch.full((1, len(images)), OPS.index(name))
    level = torch.full(ops.shape, magnitude / 10, dtype=torch.float64)
    return apply_ops(images, ops, op_parameters(ops, level, torch.full(ops.shape, sign < 0)))


def assert_uniform(counts: torch.Tensor) -> None:
    """Chi-square against equal frequencies: mean df, variance 2 df; five deviations allowed."""
    expected = counts.sum() / len(counts)
    chi_square, df = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    assert chi_square < df + 5 * math.sqrt(2 * df), counts.tolist()


def assert_uncorrelated(a: torch.Tensor, b: torch.Tensor) -> None:
    """Five standard deviations of the correlation of len(a) independent pairs."""
    correlation = torch.corrcoef(torch.stack((a, b)).double())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(len(a)), float(correlation)


# ---- the operations ----


def test_ops_are_timms():
    assert sorted(OPS) == sorted(timm_aa._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", OPS)
def test_operation_equals_pillow(name, picture, monkeypatch):
    """To one grey level: Pillow computes warps and contrast in double precision and cuts fractions off, so that a value
    within rounding of a whole number may land on the other side. All else is exact."""
    images = PICTURES[picture]
    tolerance = int(name == "AutoContrast" or name.startswith(("Rotate", "Shear", "Translate")))
    for magnitude in (0, 0.7, 2.5, 5, 7.3, 9, 10):
        for sign in (1,) if name in UNSIGNED else (1, -1):
            expected = pillow(images, name, magnitude, sign, monkeypatch).int()
            difference = (ours(images, name, magnitude, sign).int() - expected).abs()
            assert difference.max() <= tolerance, (magnitude, sign)
            assert (difference > 0).float().mean() < 0.1, (magnitude, sign)


@pytest.mark.parametrize("name", sorted(set(OPS) - UNSIGNED))
def test_signs_differ(name):
    """The comparison with Pillow would not see a sign that neither side uses."""
    images = photos(4)
    assert (ours(images, name, 9, 1) != ours(images, name, 9, -1)).float().mean() > 0.3


def test_mixed_batch_equals_one_image_at_a_time(monkeypatch):
    """Sorting by operation, applying by group and sorting back must bring each image its own operations."""
    images = photos(200)
    monkeypatch.setattr(augment, "APPLY_PROB", 0.8)
    ops, params = augment.draw_rand_augment(3, 200, 7, generator())
    together = apply_ops(images, ops, params)
    alone = [apply_ops(images[i : i + 1], ops[:, i : i + 1], params[:, i : i + 1]) for i in range(200)]
    assert torch.equal(together, torch.cat(alone))
    assert (together != images).flatten(1).any(1).float().mean() > 0.8


# ---- what is drawn ----


def test_black_box_operations_and_signs(always, monkeypatch):
    """One photograph, 6,000 times, with a fixed magnitude: which operation was applied is read off the result."""
    image = photos(1, seed=3)
    names = [(name, sign) for name in OPS for sign in ((1,) if name in UNSIGNED else (1, -1))]
    possible = torch.cat([pillow(image, name, 7.3, sign, monkeypatch) for name, sign in names]).flatten(1).float()
    monkeypatch.setattr(augment, "MAGNITUDE_STD", 0)
    out = rand_augment(image.expand(6000, -1, -1, -1), 1, 7.3, generator())
    distance = torch.cdist(out.flatten(1).float(), possible)
    nearest, which = distance.min(1)
    assert nearest.max() < math.sqrt(3 * 32 * 32)  # within one grey level of one of them
    assert distance.sort(1).values[:, 1].min() > 5 * nearest.max()  # and of no other
    op = torch.tensor([OPS.index(name) for name, _ in names])[which]
    sign = torch.tensor([sign for _, sign in names])[which]
    assert_uniform(torch.bincount(op, minlength=len(OPS)))
    signed = torch.tensor([name not in UNSIGNED for name in OPS])[op]
    assert abs(sign[signed].float().mean()) < 5 / math.sqrt(signed.sum())
    assert_uncorrelated(sign[signed][1:], sign[signed][:-1])
    for lag in (1, 2, 8):  # neighbours in the batch
        assert_uncorrelated(op[lag:], op[:-lag])
        same = (op[lag:] == op[:-lag]).float()
        assert abs(same.mean() - 1 / len(OPS)) < 5 * math.sqrt(1 / len(OPS) / len(same))


def test_half_of_the_rounds_do_nothing():
    """An image stays as it was if neither of two rounds applies: one in four."""
    image = photos(1, seed=3)
    assert all((ours(image, name, 9, 1) != image).any() for name in OPS)  # so that "unchanged" means "not applied"
    out = rand_augment(image.expand(4000, -1, -1, -1), 2, 9, generator())
    unchanged = (out == image).flatten(1).all(1).float()
    assert abs(unchanged.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)
    assert_uncorrelated(unchanged[1:], unchanged[:-1])


def test_draws_of_rounds_and_images_are_independent(always):
    ops, params = augment.draw_rand_augment(3, 20_000, 5, generator())
    for row in ops:
        assert_uniform(torch.bincount(row, minlength=len(OPS)))
        assert_uncorrelated(row[1:], row[:-1])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert_uncorrelated(ops[i], ops[j])
        assert_uniform(torch.bincount(ops[i] * len(OPS) + ops[j], minlength=len(OPS) ** 2))
        both = (ops[i] == OPS.index("Rotate")) & (ops[j] == OPS.index("Rotate"))
        assert both.sum() > 30
        assert (params[i][both] != params[j][both]).all()  # magnitudes are drawn for each round, too


def test_magnitudes(always):
    """Normal around m with deviation 0.5 (30 degrees are magnitude 10), and a sign of its own."""
    ops, params = augment.draw_rand_augment(2, 60_000, 4.5, generator())
    degrees = params[ops == OPS.index("Rotate")]
    magnitude = degrees.abs() / 3
    count = len(magnitude)
    assert count > 7000
    assert abs(magnitude.mean() - 4.5) < 5 * 0.5 / math.sqrt(count)
    assert abs(magnitude.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * count)
    assert abs(((magnitude - 4.5).abs() < 0.5).double().mean() - 0.6827) < 0.03  # normal, not uniform
    assert abs(degrees.sign().mean()) < 5 / math.sqrt(count)
    assert_uncorrelated(magnitude[1:], magnitude[:-1])
    assert_uncorrelated(magnitude, degrees.sign())


def test_magnitudes_are_clipped(always):
    ops, params = augment.draw_rand_augment(1, 20_000, 10, generator())
    magnitude = params[ops == OPS.index("Rotate")].abs() / 3
    assert magnitude.max() == pytest.approx(10)
    assert abs((magnitude > 10 - 1e-9).double().mean() - 0.5) < 0.08


SLOW = pytest.mark.slow


@pytest.mark.parametrize(("n", "m"), [(2, 9), pytest.param(3, 6, marks=SLOW), pytest.param(2, 4, marks=SLOW)])
def test_as_strong_as_timm(n, m):
    """The mean absolute change of a pixel, over many draws for 300 photographs, within 6 per cent of timm's."""
    images = photos(300, seed=5)
    transform = timm_aa.rand_augment_transform(f"rand-m{m}-n{n}-mstd0.5-inc1", {"img_mean": (128, 128, 128)})
    np.random.seed(0)
    random.seed(0)
    pixels = images.permute(0, 2, 3, 1).numpy()
    theirs = [
        np.abs(np.asarray(transform(Image.fromarray(p)), dtype=np.int16) - p).mean() for p in pixels for _ in range(30)
    ]
    g = generator()
    many = torch.cat([rand_augment(images, n, m, g) for _ in range(40)])
    mine = (many.int() - images.repeat(40, 1, 1, 1).int()).abs().float().mean((1, 2, 3))
    assert mine.mean() == pytest.approx(np.mean(theirs), rel=0.06)
    assert mine.std() == pytest.approx(np.std(theirs), rel=0.06)


# ---- crop and flip ----


def test_crop_and_flip_equal_numpy_and_are_uniform():
    """Two channels hold each pixel's row and column: offset and flip are read off the result, then redone in NumPy."""
    H, W, padding, count = 24, 32, 4, 9000
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    image = torch.stack((rows, columns, rows + columns)).byte()
    out = random_crop_flip(image.expand(count, -1, -1, -1), padding, generator())
    assert out.dtype == torch.uint8
    flip = out[:, 1, H // 2, W // 2] > out[:, 1, H // 2, W // 2 + 1]
    dy = out[:, 0, H // 2, 0].long() - H // 2 + padding
    column = torch.where(flip, out[:, 1, 0, W - 1 - W // 2], out[:, 1, 0, W // 2])
    dx = column.long() - W // 2 + padding
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    for i in range(300):
        crop = padded[:, dy[i] : dy[i] + H, dx[i] : dx[i] + W]
        assert np.array_equal(out[i].numpy(), crop[:, :, ::-1] if flip[i] else crop)
    assert (dy.min(), dy.max(), dx.min(), dx.max()) == (0, 2 * padding, 0, 2 * padding)
    assert_uniform(torch.bincount(dy * 9 + dx, minlength=81))
    assert abs(flip.float().mean() - 0.5) < 2.5 / math.sqrt(count)
    for drawn in (dy, dx, flip):
        assert_uncorrelated(drawn[1:], drawn[:-1])
    assert_uncorrelated(dx, flip)


def test_no_padding_only_flips():
    images = photos(50)
    out = random_crop_flip(images, 0, generator())
    same, mirrored = ((out == x).flatten(1).all(1) for x in (images, images.flip(-1)))
    assert (same ^ mirrored).all()
    assert 10 < mirrored.sum() < 40


# ---- erasing ----


PLAIN = 100.0  # a pixel that noise never equals (it does give a 0 now and then)


def erased_boxes(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which images of a batch of PLAIN were erased, and their rectangles [K, 4] (top, left, height, width)."""
    changed = (out != PLAIN).all(1)
    assert torch.equal(changed, (out != PLAIN).any(1))  # all channels alike
    chosen = changed.flatten(1).any(1)
    boxes = []
    for mask in changed[chosen]:
        y, x = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        boxes.append((int(y[0]), int(x[0]), len(y), len(x)))
        assert mask.sum() == len(y) * len(x) == (y[-1] - y[0] + 1) * (x[-1] - x[0] + 1)  # a full rectangle
    return chosen, torch.tensor(boxes)


@pytest.fixture(scope="module")
def erased() -> torch.Tensor:
    return random_erasing(torch.full((4000, 3, 32, 32), PLAIN), 0.6, generator())


def test_erasing_frequency_area_aspect_place(erased):
    chosen, boxes = erased_boxes(erased)
    assert abs(chosen.float().mean() - 0.6) < 5 * math.sqrt(0.24 / 4000)
    assert_uncorrelated(chosen[1:], chosen[:-1])
    top, left, height, width = boxes.double().unbind(1)
    area, log_aspect = height * width / 1024, (height / width).log()
    # timm's own, for the mean of what remains after the retries and the rounding
    torch.manual_seed(0)
    timm_erasing = RandomErasing(1, mode="pixel", device="cpu")
    random.seed(0)
    reference = timm_erasing(torch.full((2400, 3, 32, 32), PLAIN))
    _, theirs = erased_boxes(reference)
    their_area = theirs[:, 2] * theirs[:, 3] / 1024
    assert area.mean() == pytest.approx(float(their_area.mean()), rel=0.06)
    assert area.std() == pytest.approx(float(their_area.std()), rel=0.06)
    assert 0.015 < area.min() < 0.03 and 0.31 < area.max() < 0.36
    assert abs(log_aspect.mean()) < 0.08
    assert log_aspect.std() == pytest.approx(float((theirs[:, 2] / theirs[:, 3]).log().std()), rel=0.06)
    # every place where it fits is as likely as any other
    for place in (top / (32 - height), left / (32 - width)):
        assert place.min() == 0 and place.max() == 1
        assert place.mean() == pytest.approx(0.5, abs=5 * 0.33 / math.sqrt(len(place)))
    assert_uncorrelated(top / (32 - height), left / (32 - width))


def test_erasing_noise_is_normal_per_pixel(erased):
    values = erased[erased != PLAIN]
    assert abs(values.mean()) < 5 / math.sqrt(len(values))
    assert abs(values.std() - 1) < 5 / math.sqrt(2 * len(values))
    assert len(values.unique()) > 0.9 * len(values)  # not one colour per rectangle


def test_erasing_leaves_the_rest_alone():
    images = torch.randn(400, 3, 20, 30, generator=generator(2), dtype=torch.float64)
    out = random_erasing(images.clone(), 1, generator())
    same = (out == images).float().mean((1, 2, 3))
    assert (same.max() < 1) and (same.min() > 0.6) and out.dtype == torch.float64
    assert torch.equal(random_erasing(images.clone(), 0, generator()), images)


def test_erasing_in_place():
    images = torch.zeros(20, 3, 32, 32)
    assert random_erasing(images, 0.5, generator()) is images and images.any()


def test_erasing_gives_up_on_what_never_fits():
    """In an image one pixel high every rectangle is as high as the image."""
    images = torch.randn(5, 3, 1, 8, generator=generator())
    assert torch.equal(random_erasing(images.clone(), 1, generator()), images)


# ---- all of them ----

PIPELINE = {
    "crop": lambda x, g: random_crop_flip(x, 3, g),
    "rand_augment": lambda x, g: rand_augment(x, 2, 9.5, g),
    "erasing": lambda x, g: random_erasing(x.float(), 0.5, g),
}


@pytest.mark.parametrize("step", PIPELINE)
def test_same_seed_same_bytes_and_input_untouched(step):
    images = photos(101, 48, 40)
    before = images.clone()
    first, second, other = (PIPELINE[step](images, generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(images, before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == images.shape


@pytest.mark.parametrize("step", PIPELINE)
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (7, 3, 48, 48), (2, 3, 64, 64), (3, 3, 9, 5)])
def test_any_size(step, shape):
    g = generator()
    images = noise(shape[0], *shape[2:])
    outs = [PIPELINE[step](images, g) for _ in range(20)]
    assert all(out.shape == shape for out in outs)
    assert any((out != images).any() for out in outs)


def test_not_contiguous_input():
    """Images that lie as rows of interleaved channels, as Pillow and NumPy have them."""
    images = photos(30)
    interleaved = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not interleaved.is_contiguous()
    for step in PIPELINE.values():
        assert torch.equal(step(images, generator()), step(interleaved, generator()))


def test_no_rounds_no_images():
    images = photos(3)
    assert rand_augment(images, 0, 9, generator()) is images
    assert rand_augment(images[:0], 2, 9, generator()).shape == (0, 3, 32, 32)
    assert random_crop_flip(images[:0], 4, generator()).shape == (0, 3, 32, 32)
    assert random_erasing(images[:0].float(), 0.5, generator()).shape == (0, 3, 32, 32)


def test_fill():
    """Grey is shifted in from outside."""
    ops, params = torch.full((1, 1), OPS.index("TranslateXRel")), torch.full((1, 1), 0.25, dtype=torch.float64)
    out = apply_ops(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ops, params)
    assert (out[..., 24:] == 128).all() and not out[..., :24].any()


def test_nothing_reads_values_back_from_the_device(monkeypatch):
    """On the meta device tensors have shapes but no values: whatever would make the host wait for a GPU fails there."""
    images = torch.empty(300, 3, 32, 32, dtype=torch.uint8, device="meta")
    assert random_crop_flip(images, 4, generator()).is_meta
    assert rand_augment(images, 2, 9, generator()).is_meta
    # the meta device has no generator
    monkeypatch.setattr(augment, "_normal", lambda count, like, _: torch.empty(count, dtype=like.dtype, device="meta"))
    assert random_erasing(images.float(), 0.5, generator()).is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        images.max().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_equals_cpu_without_waiting():
    images = photos(600)
    on_gpu = images.cuda()
    steps = [lambda x, g: random_crop_flip(x, 4, g), lambda x, g: rand_augment(x, 2, 9, g)]
    for step in steps:
        step(on_gpu, generator())  # loads kernels
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = step(on_gpu, generator())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        difference = (out.cpu().int() - step(images, generator()).int()).abs()
        # fused multiply-adds differ in the last bit; equal but for a few roundings
        assert (difference > 1).float().mean() < 1e-3
    erased = random_erasing(on_gpu.float(), 0.5, generator()).cpu() != images.float()
    assert torch.equal(erased.any(1), (random_erasing(images.float(), 0.5, generator()) != images.float()).any(1))
