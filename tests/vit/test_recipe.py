"""q1's batches, optimizer, learning rate and a single step, each against its definition, and what ends a run."""

import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target

from helpers.common.device import Compute
from helpers.vit import engine
from helpers.vit.augment import rand_augment, random_crop_flip, random_erasing
from helpers.vit.clock import Clock
from helpers.vit.config import make_config
from helpers.vit.data import Split

MEASURES = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "pool": "cls",
}
OFF = ("drop_path", "randaug_n", "erase_prob", "mixup", "cutmix", "mix_off_epochs", "tta", "compile")
SHORT = {"epochs": 2, "batch_size": 16, "warmup_epochs": 1, "ema_decay": 0.9, "lr": 1e-3, "max_minutes": 0}
CLASSES = tuple("abcdefghij")


def make_run(q1, n=64, precision="fp32", **changes):
    """A run of a tiny ViT on the CPU, from random images."""
    cfg = make_config(
        q1.RECIPE, q1.PRESETS, "best", MEASURES | SHORT | dict.fromkeys(OFF, 0) | {"seed": 0} | changes, 0
    )
    torch.manual_seed(0)
    data = Split(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n) % 10)
    scale = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    run = q1.Run(cfg, Compute(torch.device("cpu"), "CPU", precision), data, data.first(8), scale, CLASSES)
    run.clock = Clock(round(cfg.epochs * run.steps_per_epoch))
    return run


def batch(q1, run):
    return next(q1.batches(run, torch.arange(16)[None]))


# ------------------------------------------------------------------------------------------ batches


def one_batch(q1, images, labels, cfg, mixing=True):
    scale = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    x, targets = q1.make_batches(images[None], labels[None], cfg, scale, 10, mixing)
    return x[0], targets[0]


def test_targets_are_smoothed_one_hot_without_mixing(q1):
    run = make_run(q1)
    _, targets = batch(q1, run)
    torch.testing.assert_close(targets, mixup_target(run.train.labels[:16], 10, smoothing=0.1))
    assert targets[0].tolist() == pytest.approx([0.91] + 9 * [0.01])


@pytest.mark.parametrize("which", [("mixup",), ("cutmix",), ("mixup", "cutmix")])
def test_mixed_images_and_targets_share_their_weight(q1, which):
    """Bright images are class 0, dark ones class 1: a mixture is as bright as its target says."""
    cfg = make_run(q1, **dict.fromkeys(which, 1.0), label_smoothing=0.0).cfg
    images, labels, seen = torch.zeros(16, 3, 32, 32, dtype=torch.uint8), torch.arange(16) % 2, set()
    images[::2] = 255
    for _ in range(10):
        x, targets = one_batch(q1, images, labels, cfg)
        bright = (x * 0.25 + 0.5).mean((1, 2, 3))
        torch.testing.assert_close(bright, targets[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(16))
        seen.add(round(float(targets[0, 0]), 3))
    assert len(seen) > 5
    assert one_batch(q1, images, torch.zeros(16, dtype=torch.long), cfg, mixing=False)[1][:, 0].eq(1).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_distributed_as_timms(q1, mixup, cutmix):
    """The share that images keep of themselves, over many batches, and how often a rectangle is cut."""
    cfg = make_run(q1, mixup=mixup, cutmix=cutmix, label_smoothing=0.0).cfg
    K = 4000
    x = torch.zeros(K, 2, 1, 32, 32)
    x[:, 0] = 1
    targets = torch.eye(2).expand(K, 2, 2)
    random.seed(0), np.random.seed(0)
    mixed, shares = q1.mix(x, targets, cfg)
    ours, cut = shares[:, 0, 0], (mixed[:, 0] % 1 == 0).flatten(1).all(1)  # whole pixels of one or the other
    mixer, theirs = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=2), []
    for _ in range(K):
        theirs.append(float(mixer(torch.zeros(2, 1, 32, 32), torch.tensor([0, 1]))[1][0, 0]))
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert float(ours.quantile(q)) == pytest.approx(float(np.quantile(theirs, q)), abs=0.05)
    assert float(cut.float().mean()) == pytest.approx(1.0 if not mixup else 0.5 if cutmix else 0.0, abs=0.03)


def test_every_batch_of_a_chunk_is_mixed_by_itself(q1):
    cfg = make_run(q1, mixup=1.0).cfg
    x = torch.rand(6, 4, 3, 32, 32)
    targets = torch.eye(4).expand(6, 4, 4)
    mixed, shares = q1.mix(x, targets, cfg)
    weight = shares[:, 0, 0]
    assert len(set(weight.tolist())) == 6
    for k in range(6):
        torch.testing.assert_close(mixed[k], weight[k] * x[k] + (1 - weight[k]) * x[k].flip(0))


def test_augmentation_is_its_steps_bit_for_bit_and_leaves_the_images_alone(q1):
    """It works in place where that saves memory."""
    run = make_run(q1, randaug_n=2, erase_prob=0.5)
    images, before, draws, (mean, std) = run.train.images, run.train.images.clone(), torch.default_generator, run.scale
    torch.manual_seed(3)
    x = rand_augment(random_crop_flip(images, 4, draws), 2, 9, draws)
    expected = random_erasing((x.float() / 255 - mean) / std, 0.5, draws)
    torch.manual_seed(3)
    assert torch.equal(q1.augment(images, run.cfg, run.scale), expected) and torch.equal(images, before)
    pixels = images.float()
    assert torch.equal(q1.normalise(pixels, run.cfg, run.scale), q1.normalise(images, run.cfg, run.scale))
    assert torch.equal(pixels, images.float())


def test_images_are_enlarged_where_asked(q1):
    x, _ = batch(q1, make_run(q1, img_size=48))
    assert x.shape == (16, 3, 48, 48) and x.dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_of_any_size_give_every_image_once(q1, chunk):
    """The input pipeline works on many batches at once; what comes out are the rows of the order."""
    run = make_run(q1, n=112)
    run.chunk, seen = chunk, []
    run.train.images[:] = (torch.arange(112) * 2).view(-1, 1, 1, 1)  # an image's brightness tells which it is
    order = torch.randperm(112).view(7, 16)
    for images, targets in q1.batches(run, order):
        assert images.shape == (16, 3, 32, 32) and targets.shape == (16, 10)
        number = ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255 / 2).round().long()
        assert torch.equal(targets.argmax(1), number % 10)
        seen.append(number)
    assert torch.equal(torch.stack(seen), order)


def test_mixing_rests_in_the_last_epochs(q1):
    run = make_run(q1, mixup=1.0, epochs=10, mix_off_epochs=2, label_smoothing=0.0)
    for progress, mixed in ((0.0, True), (0.79, True), (0.81, False)):
        run.progress = progress
        assert (batch(q1, run)[1].max(1).values < 1).any() == mixed


# ------------------------------------------------------------------------------------------ optimizer


def test_only_matrices_decay(q1):
    run = make_run(q1)
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    matrices = {name for name, p in run.model.named_parameters() if decay[id(p)] == 0.05}
    layers = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert matrices == {"patch_embed.proj.weight", "head.weight"} | {
        f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers
    }
    assert {decay[id(p)] for name, p in run.model.named_parameters() if name not in matrices} == {0.0}
    assert len(decay) == len(list(run.model.parameters()))


def test_layer_decay_multiplies_once_a_layer(q1):
    run = make_run(q1, layer_decay=0.5, warmup_epochs=0)
    q1.set_rates(run)
    rate = {id(p): group["lr"].item() for group in run.optimizer.param_groups for p in group["params"]}
    names = ("pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    names += ("blocks.1.mlp.fc1.weight", "head.weight")
    parameters = dict(run.model.named_parameters())
    scales = [rate[id(parameters[name])] / 1e-3 for name in names]
    assert scales == pytest.approx([0.125, 0.125, 0.125, 0.25, 0.5, 1.0])


def test_learning_rate_is_linear_then_cosine(q1):
    cfg = make_run(q1, epochs=10, warmup_epochs=2).cfg
    rates = [q1.lr_at(step / 100, cfg) for step in range(101)]
    rise = [1e-5 + (1e-3 - 1e-5) * step / 20 for step in range(20)]
    fall = [1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * step / 80)) for step in range(81)]
    assert rates == pytest.approx(rise + fall)
    cfg.warmup_epochs = 30  # at most half of the run, so that it always comes down again
    assert q1.lr_at(0.5, cfg) == pytest.approx(1e-3) and q1.lr_at(1.0, cfg) == pytest.approx(1e-5)


def test_a_run_with_time_has_exactly_the_epochs_cosine(q1, tmp_path):
    run = make_run(q1, n=160, epochs=3, max_minutes=60)
    used = []
    step = q1.train_step

    def noted(run, images, targets):
        used.append(run.optimizer.param_groups[0]["lr"].item())
        return step(run, images, targets)

    q1.train_step = noted
    try:
        q1.train(run, tmp_path)
    finally:
        q1.train_step = step
    expected = [q1.lr_at(step / 30, run.cfg) for step in range(30)]
    assert used[-30:] == pytest.approx(expected, rel=1e-5)  # before them the rehearsal, which is undone


# ------------------------------------------------------------------------------------------ a step


def test_a_step_is_what_torch_makes_of_its_parts(q1):
    """Against a plain loop over a copy: cross-entropy, clipping, AdamW (not fused), EMA."""
    run = make_run(q1, weight_decay=0.1)
    model, ema = copy.deepcopy(run.model), copy.deepcopy(run.model)
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in ("cls_token", "pos_embed")]
    others = [p for p in model.parameters() if all(p is not q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), foreach=False, fused=False)
    x, y = batch(q1, run)
    for step in range(3):
        q1.set_rates(run)
        for group in optimizer.param_groups:
            group["lr"] = q1.lr_at(run.progress, run.cfg)
        result = q1.train_step(run, x, y)
        run.step, run.progress = step + 1, (step + 1) / 8
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.9, (1 + step) / (10 + step))
        for average, weight in zip(ema.parameters(), model.parameters(), strict=True):
            average.data.mul_(keep).add_(weight.data, alpha=1 - keep)
        assert result.tolist() == pytest.approx([loss.item(), norm.item()], rel=1e-4)
    for ours, theirs in ((run.model, model), (run.ema, ema)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_gradient_in_parts_is_the_gradient(q1):
    whole, x, y = None, *batch(q1, make_run(q1))
    for parts in (1, 2, 3, 16):
        run = make_run(q1)
        run.parts = parts
        result = q1.train_step(run, x, y)
        weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
        if whole is not None:
            assert result.tolist() == pytest.approx(whole[0].tolist(), rel=1e-4)
            torch.testing.assert_close(weights, whole[1], atol=1e-4, rtol=0)  # a step of AdamW is about 1e-3
        whole = whole or (result, weights)


class Greedy(torch.nn.Module):
    """Runs out of memory above a number of images."""

    def __init__(self, model, limit):
        super().__init__()
        self.model, self.limit, self.seen = model, limit, []

    def forward(self, x):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        self.seen.append(len(x))
        return self.model(x)


def prepared(q1, run):
    return engine.prepare(run, q1.train_step, lambda: batch(q1, run))


def test_out_of_memory_is_met_before_training_and_halves_the_parts_not_the_batch(q1, capsys):
    run, reference = make_run(q1), make_run(q1)
    run.forward = Greedy(run.model, limit=5)
    x, y = batch(q1, run)
    step = prepared(q1, run)
    assert run.parts == 4 and run.forward.seen == [4] * 4
    assert "each batch of 16 images is computed in 4 parts" in capsys.readouterr().out
    assert step(x, y).tolist() == pytest.approx(q1.train_step(reference, x, y).tolist(), rel=1e-4)
    for ours, theirs in zip(run.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_out_of_memory_on_a_single_image_is_an_error(q1):
    run = make_run(q1)
    run.forward = Greedy(run.model, limit=0)
    with pytest.raises(torch.OutOfMemoryError):
        prepared(q1, run)


def test_preparing_leaves_no_trace(q1):
    """Weights, EMA, the optimizer's moments and steps, and all random generators are as they were."""
    run = make_run(q1, drop_path=0.2, mixup=0.5)
    for _ in range(2):  # a fresh optimizer, then one with moments
        before, ema = copy.deepcopy(run.model.state_dict()), copy.deepcopy(run.ema.state_dict())
        moments = copy.deepcopy(run.optimizer.state_dict()["state"])
        draws = torch.get_rng_state(), random.getstate()
        step = prepared(q1, run)
        assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
        assert all(torch.equal(value, ema[name]) for name, value in run.ema.state_dict().items())
        assert torch.equal(torch.get_rng_state(), draws[0]) and random.getstate() == draws[1]
        after = run.optimizer.state_dict()["state"]
        for index, state in after.items():
            old = moments.get(index, {name: torch.zeros_like(value) for name, value in state.items()})
            assert all(torch.equal(value, old[name]) for name, value in state.items())
        assert after and all(p.grad is None for p in run.model.parameters())
        step(*batch(q1, run))


class Poisoned(torch.nn.Module):
    """Its outputs are NaN (or infinite) in chosen calls."""

    def __init__(self, model, calls, value=math.nan):
        super().__init__()
        self.model, self.calls, self.value, self.count = model, calls, value, 0

    def forward(self, x):
        self.count += 1
        return self.model(x) + (self.value if self.count - 1 in self.calls else 0.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_without_finite_gradients_changes_nothing(q1, value, parts, precision):
    run = make_run(q1, precision=precision)
    engine._make_state(run.optimizer)
    run.parts = parts
    run.forward = Poisoned(run.model, {0, parts}, value)  # a part of each of the first two steps
    before, moments = copy.deepcopy(run.model.state_dict()), copy.deepcopy(run.optimizer.state_dict()["state"])
    for step in range(3):
        norm = q1.train_step(run, *batch(q1, run))[1]
        same = all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
        state = run.optimizer.state_dict()["state"]
        same_moments = all(torch.equal(v, moments[i][k]) for i, values in state.items() for k, v in values.items())
        assert same == same_moments == (step < 2) == (not norm.isfinite())
    assert all(p.isfinite().all() for p in run.ema.parameters())


def test_skipped_steps_are_counted_and_told(q1, tmp_path, capsys):
    run = make_run(q1, n=160, epochs=2)
    run.forward = Poisoned(run.model, {3, 4, 14})  # call 0 is the rehearsal
    q1.train(run, tmp_path)
    assert run.skipped == 3 and [row["skipped"] for row in run.history] == [2, 1]
    assert "2 steps skipped (gradients not finite)" in capsys.readouterr().out
    assert all(math.isfinite(row["loss"]) for row in run.history)


def test_ten_bad_steps_in_a_row_stop_the_run_with_its_state_saved(q1, tmp_path):
    run = make_run(q1, n=512, epochs=1, ema_decay=0.5)
    run.chunk, run.forward = 4, Poisoned(run.model, set(range(6, 40)))
    with pytest.raises(FloatingPointError, match=r"ten steps in a row were skipped.*resume=True and amp=False"):
        q1.train(run, tmp_path)
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    assert 15 <= saved["step"] <= 20  # it is looked every four steps
    assert all(v.isfinite().all() for v in saved["model"].values())
    fresh = make_run(q1, n=512, epochs=1, ema_decay=0.5)
    q1.ckpt.resume(fresh, tmp_path / "last.pth")
    q1.train(fresh, tmp_path)  # and goes on from there
    assert fresh.step >= 32 and fresh.history[-1]["skipped"] == 0


def test_bad_steps_are_seen_across_short_epochs(q1, tmp_path):
    run = make_run(q1, n=64, epochs=20)  # four steps each
    run.forward = Poisoned(run.model, set(range(3, 100)))
    with pytest.raises(FloatingPointError):
        q1.train(run, tmp_path)
    assert run.step <= 16


def test_a_run_without_a_single_good_step_is_no_success(q1, tmp_path):
    run = make_run(q1, n=64, epochs=2)  # eight steps, fewer than the ten after which a run gives up
    run.forward = Poisoned(run.model, set(range(1, 9)))
    with pytest.raises(FloatingPointError, match="all steps in a row were skipped"):
        q1.train(run, tmp_path)


def test_weights_that_are_not_finite_end_the_run_and_leave_its_files(q1, tmp_path):
    """Weight decay makes them so without a bad gradient before."""
    run = make_run(q1, n=160, epochs=3)
    save_epoch, saved = q1.ckpt.save_epoch, []

    def ruin(run, row, out):
        if saved:
            with torch.no_grad():
                run.model.head.weight[0, 0] = math.inf
        save_epoch(run, row, out)
        saved.append((out / "last.pth").is_file() and torch.load(out / "last.pth", weights_only=True)["step"])

    q1.ckpt.save_epoch = ruin
    try:
        with pytest.raises(FloatingPointError, match="the weights are not finite after epoch 2"):
            q1.train(run, tmp_path)
    finally:
        q1.ckpt.save_epoch = save_epoch
    best = torch.load(tmp_path / "best_vit_cifar10.pth", weights_only=True)
    assert best["epoch"] == 1 and all(value.isfinite().all() for value in best["model"].values())
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 10


def test_fp16_is_scaled_and_the_others_are_not(q1):
    for precision, scale in (("fp16", 2.0**16), ("bf16", 1.0), ("fp32", 1.0)):
        assert make_run(q1, precision=precision).scaler.get_scale() == scale


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(q1, precision):
    run = make_run(q1, precision=precision, lr=3e-3, warmup_epochs=0)
    x, y = batch(q1, run)
    results = [q1.train_step(run, x, y).tolist() for _ in range(30)]
    assert results[-1][0] < results[0][0] - 0.5 and all(math.isfinite(loss) for loss, _ in results)
    skipped = sum(not math.isfinite(norm) for _, norm in results)
    assert skipped <= (3 if precision == "fp16" else 0)  # until the scaler has found its scale
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------------------ what ends a run


@pytest.fixture
def timed(q1, monkeypatch):
    """A clock on which a step takes 1 s, a validation 2 s per 8 images, saving 1 s, and preparing 3 s."""
    now = [0.0]

    def taking(seconds, function):
        def run(*given, **named):
            now[0] += seconds(*given) if callable(seconds) else seconds
            return function(*given, **named)

        return run

    monkeypatch.setattr("helpers.vit.clock.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(q1, "train_step", taking(1.0, q1.train_step))
    monkeypatch.setattr(q1, "validate", taking(lambda run, held_out: len(held_out) / 4, q1.validate))
    monkeypatch.setattr(q1.engine, "prepare", taking(2.0, q1.engine.prepare))  # and the step that it tries
    monkeypatch.setattr(q1.ckpt, "save_last", taking(1.0, q1.ckpt.save_last))
    return now


@pytest.mark.parametrize("seconds", [25, 60, 61, 100, 333])
def test_max_minutes_completes_the_cosine_in_time(q1, tmp_path, timed, seconds):
    run = make_run(q1, n=160, epochs=100, max_minutes=seconds / 60)
    q1.train(run, tmp_path)
    assert (
        run.stopped_by() == "time" and seconds - 3 <= timed[0] <= seconds + 2
    )  # a step, and saving for the first time
    assert run.history[-1]["lr"] < 1e-3 * 0.06 and (tmp_path / "best_vit_cifar10.pth").is_file()
    assert all(math.isfinite(row["loss"]) for row in run.history)  # no epoch without a step
    rates = [row["lr"] for row in run.history]
    assert rates[-1] == min(rates) and run.step < 1000


def test_progress_never_falls_and_steps_govern_where_there_is_time():
    clock = Clock(100, minutes=0)
    assert [clock.progress(step) for step in (0, 25, 100, 200)] == [0, 0.25, 1, 1]
    assert clock.minutes_left(1.0) == 0


def test_time_before_the_start_is_no_progress_but_counts(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("helpers.vit.clock.time.perf_counter", lambda: now[0])
    clock = Clock(1000, minutes=1)  # compiling takes 20 s of the 60, 500 held-out images 4 s: 40 are for 5,000
    now[0] += 20

    def validate(images):
        assert images == 500
        now[0] += 1

    clock.start(validate, 5000)
    assert clock.reserve == 10 and clock.progress(0) == 0
    now[0] += 14.5  # half of what 60 - 21 - 10 leave
    assert clock.progress(0) == pytest.approx(0.5) and clock.seconds() == 35.5
    with clock.reserving():
        now[0] += 5
    assert clock.reserve == 5
    resumed = Clock(1000, minutes=1, seconds=30.0)
    resumed.start(validate, 0)
    assert resumed.progress(0) == pytest.approx(0.5)  # of the minute half was used before


def test_what_ended_a_run(q1):
    run = make_run(q1)
    assert run.stopped_by() == "interrupted"
    run.progress, run.step = 1.0, run.clock.steps
    assert run.stopped_by() == "epochs"
    run.step -= 1
    assert run.stopped_by() == "time"


def test_a_lone_last_checkpoint_still_ends_with_a_best_one(q1, tmp_path, capsys):
    run = make_run(q1, n=160)
    q1.train(run, tmp_path)
    (tmp_path / "best_vit_cifar10.pth").unlink()
    run.best["val_accuracy"] = 100.0  # never to be beaten
    q1.train(run, tmp_path)
    assert "nothing is left to train" in capsys.readouterr().out
    best = q1.ckpt.load_checkpoint(tmp_path / "best_vit_cifar10.pth", "model", "config", "mean", "std", "weights")
    assert best["weights"] in ("raw", "ema") and best["classes"] == CLASSES


def test_without_held_out_images_the_last_ema_is_kept(q1, tmp_path):
    run = make_run(q1)
    run.val = run.train.first(0)
    q1.train(run, tmp_path)
    best = torch.load(tmp_path / "best_vit_cifar10.pth", weights_only=True)
    assert best["weights"] == "ema" and best["val_accuracy"] is None and best["epoch"] == 2
    assert all(torch.equal(value, best["model"][name]) for name, value in run.ema.state_dict().items())


# ------------------------------------------------------------------------------------------ compiled, graphed


def test_what_cannot_be_compiled_trains_as_it_is(q1, monkeypatch, capsys):
    run, reference = make_run(q1, compile=True), make_run(q1)

    def broken(*_, **__):
        raise RuntimeError("no compiler\nfound")

    for block in run.model.blocks:
        monkeypatch.setattr(block, "compile", lambda block=block, **_: setattr(block, "_compiled_call_impl", broken))
    x, y = batch(q1, run)
    step = prepared(q1, run)
    assert "torch.compile does not work here, going on without: no compiler" in capsys.readouterr().out
    assert step(x, y).tolist() == q1.train_step(reference, x, y).tolist()


def test_a_graph_that_computes_something_else_is_not_used(q1, capsys, monkeypatch):
    """What is recorded is held against an eager step; here the recording is a stand-in, since graphs need CUDA."""
    run, x, y = make_run(q1, drop_path=0.2), *batch(q1, make_run(q1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    eager, wrong_batch = (lambda a, b: q1.train_step(run, a, b)), (lambda a, b: q1.train_step(run, a.flip(0), b))
    engine._make_state(run.optimizer)
    before = copy.deepcopy(run.model.state_dict())
    for recorded, used in ((eager, True), (wrong_batch, False), (lambda a, b: torch.zeros(2), False)):
        monkeypatch.setattr(engine, "_capture", lambda *_, recorded=recorded: recorded)
        assert (engine._graphed(run, eager, x, y) is recorded) == used
        assert ("one CUDA graph" if used else "without a CUDA graph: its loss") in capsys.readouterr().out
        assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())

    def failing(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors …")

    monkeypatch.setattr(engine, "_capture", failing)
    assert engine._graphed(run, eager, x, y) is eager
    assert "without a CUDA graph: operation not permitted when stream is capturing\n" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA GPU")
@pytest.mark.parametrize(("precision", "compiled"), [*itertools.product(["fp32", "bf16", "fp16"], [False, True])])
def test_a_graphed_step_is_an_eager_one(q1, precision, compiled, capsys):
    device = torch.device("cuda")
    losses = []
    for graphed in (True, False):
        run = make_run(q1, compile=compiled)
        run.train, run.val = (Split(s.images.to(device), s.labels.to(device)) for s in (run.train, run.val))
        scale = [value.to(device) for value in run.scale]
        run = q1.Run(run.cfg, Compute(device, "GPU", precision), run.train, run.val, scale, CLASSES)
        run.clock = Clock(8)
        x, y = batch(q1, run)
        step = prepared(q1, run) if graphed else lambda a, b, run=run: q1.train_step(run, a, b)
        assert not graphed or "each training step is one CUDA graph" in capsys.readouterr().out
        losses.append(torch.stack([step(x, y) for _ in range(5)]).cpu())
    torch.testing.assert_close(*losses, rtol=2e-2, atol=2e-2)
