"""Batches, optimizer, schedule and a single step of q1, each against its definition."""

import math
import time

import pytest
import torch

from helpers import budget
from helpers.augment import rand_augment, random_crop_flip, random_erasing
from helpers.config import make_config
from helpers.data import Split
from helpers.device import Compute

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


def make_task(q1, n=64, **changes):
    cfg = make_config(q1.RECIPE, q1.PRESETS, "best", MEASURES | SHORT | dict.fromkeys(OFF, 0) | changes, 0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    data = Split(images, torch.arange(n) % 10)
    scale = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    return q1.Task(
        cfg, Compute(torch.device("cpu"), "CPU", "fp32"), data, Split(images[:8], data.labels[:8]), *scale, 10
    )


def make_state(q1, task, total=8):
    return q1.new_state(q1.ViT(task.cfg, 10), task, budget.Plan(4, total, 2, total))


def batch(q1, task):
    return q1.make_batch(task.train.images[:16], task.train.labels[:16], task)


def test_only_matrices_decay(q1):
    task = make_task(q1)
    model = q1.ViT(task.cfg, 10)
    decay = {
        id(p): group["weight_decay"]
        for group in q1.make_optimizer(model, task.cfg).param_groups
        for p in group["params"]
    }
    matrices = {name for name, p in model.named_parameters() if decay[id(p)] == 0.05}
    layers = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert matrices == {"patch_embed.proj.weight", "head.weight"} | {
        f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers
    }
    assert {decay[id(p)] for name, p in model.named_parameters() if name not in matrices} == {0.0}
    assert len(decay) == len(list(model.parameters()))


def test_layer_decay_multiplies_once_a_layer(q1):
    task = make_task(q1, layer_decay=0.5)
    model = q1.ViT(task.cfg, 10)
    optimizer = q1.make_optimizer(model, task.cfg)
    q1.make_schedule(optimizer, budget.Plan(4, 8, 0, 8), task.cfg).step_update(0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = (
        "pos_embed",
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.1.mlp.fc1.weight",
        "head.weight",
    )
    parameters = dict(model.named_parameters())
    scales = [rate[id(parameters[name])] / 1e-3 for name in names]
    assert scales == pytest.approx([scales[0], scales[0], scales[0], 2 * scales[0], 4 * scales[0], 1.0])
    assert scales[0] < scales[3] < 1


def test_schedule_is_linear_then_cosine(q1):
    task = make_task(q1)
    optimizer = q1.make_optimizer(q1.ViT(task.cfg, 10), task.cfg)
    schedule = q1.make_schedule(optimizer, budget.Plan(10, 100, 20, 100), task.cfg)
    rates = []
    for step in range(101):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    rise = [1e-5 + (1e-3 - 1e-5) * step / 20 for step in range(20)]
    fall = [1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * step / 80)) for step in range(81)]
    assert rates == pytest.approx(rise + fall)


@pytest.mark.parametrize(
    ("affordable", "total", "warmup", "mix_off"),
    [(None, 1000, 100, 900), (10**9, 1000, 100, 900), (100, 100, 10, 90), (0, 1, 0, 1)],
)
def test_plan_shrinks_in_proportion(affordable, total, warmup, mix_off):
    assert budget.make_plan(100, 10, 10, 10, affordable) == budget.Plan(10, total, warmup, mix_off)


def test_warmup_leaves_half_of_the_steps():
    assert budget.make_plan(1, 5, 0, 10) == budget.Plan(10, 10, 5, 10)


def test_affordable_steps_leave_time_for_validation():
    pace = budget.Pace(step=0.5, validation=3.0)
    steps = pace.affordable(100, steps_per_epoch=20)
    taken = 0.5 * steps + 3.0 * math.ceil(steps / 20)
    assert 100 - 0.5 - 3.0 <= taken <= 100
    assert pace.affordable(-5, 20) == 0


def test_targets_are_smoothed_one_hot_without_mixing(q1):
    task = make_task(q1)
    _, targets = batch(q1, task)
    expected = torch.full((16, 10), 0.01)
    expected[torch.arange(16), task.train.labels[:16]] = 0.91
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("which", ["mixup", "cutmix"])
def test_mixed_images_and_targets_share_their_weight(q1, which):
    """Bright images are class 0, dark ones class 1: a mixture is as bright as its target says."""
    task = make_task(q1, **{which: 1.0, "label_smoothing": 0.0})
    images = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
    images[::2] = 255
    seen = set()
    for _ in range(10):
        x, targets = q1.make_batch(images, (torch.arange(16) % 2), task)
        bright = (x * 0.25 + 0.5).mean((1, 2, 3))
        torch.testing.assert_close(bright, targets[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(16))
        seen.add(round(float(targets[0, 0]), 3))
    assert len(seen) > 5
    assert q1.make_batch(images, torch.zeros(16, dtype=torch.long), task, mix=False)[1][:, 0].eq(1).all()


def test_augmentation_is_its_steps_bit_for_bit_and_leaves_the_images_alone(q1):
    """It works in place where that saves memory."""
    task = make_task(q1, randaug_n=2, erase_prob=0.5)
    images, before, draws = task.train.images, task.train.images.clone(), torch.default_generator
    torch.manual_seed(3)
    x = rand_augment(random_crop_flip(images, 4, draws), 2, 9, draws)
    expected = random_erasing((x.float() / 255 - task.mean) / task.std, 0.5, draws)
    torch.manual_seed(3)
    assert torch.equal(q1.augment(images, task), expected) and torch.equal(images, before)
    pixels = images.float()
    assert torch.equal(task.normalise(pixels), task.normalise(images)) and torch.equal(pixels, images.float())


def test_images_are_enlarged_where_asked(q1):
    task = make_task(q1, img_size=48)
    x, _ = batch(q1, task)
    assert x.shape == (16, 3, 48, 48) and x.dtype == torch.float32


def test_gradient_in_parts_is_the_gradient(q1):
    task = make_task(q1)
    state = make_state(q1, task)
    x, y = batch(q1, task)
    torch.nn.functional.cross_entropy(state.model(x), y).backward()
    whole = [p.grad.clone() for p in state.model.parameters()]
    for micro_batch in (16, 8, 5, 1):
        state.optimizer.zero_grad()
        state.micro_batch = micro_batch
        q1.backward(state, x, y, task)
        for p, expected in zip(state.model.parameters(), whole, strict=True):
            torch.testing.assert_close(p.grad, expected, atol=1e-6, rtol=1e-4)


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


def test_out_of_memory_halves_the_parts_not_the_batch(q1, capsys):
    task = make_task(q1)
    state, reference = make_state(q1, task), make_state(q1, task)
    reference.model.load_state_dict(state.model.state_dict())
    state.forward = Greedy(state.model, limit=5)
    x, y = batch(q1, task)
    assert q1.train_step(state, x, y, task) == pytest.approx(float(q1.train_step(reference, x, y, task)), abs=1e-5)
    assert state.forward.seen == [4] * 4 and state.micro_batch == 4
    assert "parts of 4 images, 16 to a step" in capsys.readouterr().out
    for ours, theirs in zip(state.model.parameters(), reference.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)  # one Adam step is about 1e-3


def test_out_of_memory_on_a_single_image_is_an_error(q1):
    task = make_task(q1)
    state = make_state(q1, task)
    state.forward = Greedy(state.model, limit=0)
    with pytest.raises(torch.OutOfMemoryError):
        q1.train_step(state, *batch(q1, task), task)


class Poisoned(torch.nn.Module):
    """Its outputs are NaN (or infinite) in chosen calls."""

    def __init__(self, model, calls, value=math.nan):
        super().__init__()
        self.model, self.calls, self.value, self.count = model, calls, value, 0

    def forward(self, x):
        self.count += 1
        return self.model(x) + (self.value if self.count - 1 in self.calls else 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("micro_batch", [16, 4])
def test_a_bad_loss_is_skipped_and_counted(q1, value, micro_batch):
    task = make_task(q1)
    state = make_state(q1, task)
    state.micro_batch = micro_batch
    state.forward = Poisoned(state.model, {0, 16 // micro_batch}, value)  # a part of each of the first two steps
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    for step in range(3):
        q1.train_step(state, *batch(q1, task), task)
        same = all(torch.equal(v, before[k]) for k, v in state.model.state_dict().items())
        assert same == (step < 2)
    assert state.bad_losses.tolist() == [2, 0, 2]
    assert all(p.isfinite().all() for p in state.ema.module.parameters())


def test_ten_bad_losses_in_a_row_stop_the_run_with_its_state_saved(q1, tmp_path):
    task = make_task(q1, n=512, epochs=1, batch_size=16, ema_decay=0.5)
    state = make_state(q1, task)
    state.plan = budget.make_plan(1, 0, 0, 32)
    state.forward = Poisoned(state.model, set(range(5, 32)))
    with pytest.raises(FloatingPointError, match="ten losses in a row"):
        q1.train(state, task, budget.Pace(0.01), tmp_path, tuple("abcdefghij"))
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    assert 15 <= saved["step"] <= 25
    assert all(v.isfinite().all() for v in saved["model"].values())
    fresh = make_state(q1, task)
    q1.ckpt.unpack(fresh, saved)
    q1.train(fresh, task, budget.Pace(0.01), tmp_path, tuple("abcdefghij"))  # and goes on from there
    assert fresh.step == 32


@pytest.mark.parametrize("saving", [0.0, 2.0, 6.0])
def test_no_epoch_is_begun_that_the_clock_leaves_no_step_for(q1, tmp_path, monkeypatch, saving):
    """On a clock on which a step takes a second, validation as long as was measured, and saving longer."""
    now = [0.0]

    def taking(seconds, function):
        def run(*given, **named):
            now[0] += seconds
            return function(*given, **named)

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    for name, seconds in (("train_step", 1.0), ("validate", 1.0), ("save_last", saving)):
        monkeypatch.setattr(q1, name, taking(seconds, getattr(q1, name)))
    for steps in (13, 17, 22, 30):
        task = make_task(q1, n=64, epochs=30, max_minutes=steps / 60)
        state = make_state(q1, task, total=120)
        now[0] = 0.0
        q1.train(state, task, budget.Pace(1.0, 1.0), tmp_path, tuple("abcdefghij"))
        assert all(math.isfinite(row["loss"]) for row in state.history) and state.stopped_by(30) == "time"
        assert now[0] <= steps + saving


def test_what_ended_a_run(q1):
    state = make_state(q1, make_task(q1), total=8)
    assert state.stopped_by(2) == "interrupted"
    state.step = 8
    assert (state.stopped_by(2), state.stopped_by(3)) == ("epochs", "time")


def test_a_lone_last_checkpoint_still_ends_with_a_best_one(q1, tmp_path):
    task = make_task(q1, n=160, epochs=2)
    state = make_state(q1, task)
    state.plan, state.best_accuracy = budget.make_plan(2, 0, 0, 10), 100.0  # never to be beaten
    q1.train(state, task, budget.Pace(0.01), tmp_path, tuple("abcdefghij"))
    assert (tmp_path / "best_vit_cifar10.pth").is_file()
    (tmp_path / "best_vit_cifar10.pth").unlink()
    q1.train(state, task, budget.Pace(0.01), tmp_path, tuple("abcdefghij"))  # nothing left to train
    best = q1.ckpt.load_checkpoint(tmp_path / "best_vit_cifar10.pth", "model", "config", "mean", "std", "weights")
    assert best["weights"] in ("raw", "ema") and best["classes"] == tuple("abcdefghij")


def test_skipped_steps_do_not_wear_the_scale_down(q1):
    task = make_task(q1)
    state = make_state(q1, task)
    state.forward = Poisoned(state.model, set(range(5)))
    for _ in range(5):
        q1.train_step(state, *batch(q1, task), task)
    assert state.scaler.get_scale() == 1.0 and state.bad_losses.tolist() == [5, 5, 5]


def test_ema_follows_its_definition(q1):
    task = make_task(q1)
    state = make_state(q1, task)
    average = state.model.head.weight.detach().clone()
    for step in range(1, 7):
        q1.train_step(state, *batch(q1, task), task)
        decay = 0.0 if step == 1 else min(0.9, 1 - step ** (-2 / 3))  # warmup: 1 - (1 + (step - 1)) ** -2/3
        average = decay * average + (1 - decay) * state.model.head.weight.detach()
        torch.testing.assert_close(state.ema.module.head.weight, average)


def test_fp16_is_scaled_and_bf16_is_not(q1):
    task = make_task(q1)
    for precision, scale in (("fp16", 2.0**16), ("bf16", 1.0), ("fp32", 1.0)):
        task.compute = Compute(torch.device("cpu"), "CPU", precision)
        assert make_state(q1, task).scaler.get_scale() == scale


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(q1, precision):
    task = make_task(q1, lr=3e-3)
    task.compute = Compute(torch.device("cpu"), "CPU", precision)
    state = make_state(q1, task, total=30)
    x, y = batch(q1, task)
    losses = [float(q1.train_step(state, x, y, task)) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5 and int(state.bad_losses[0]) == 0
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}


def test_measuring_the_pace_leaves_no_trace(q1):
    task = make_task(q1)
    state = make_state(q1, task)
    before, draws = {k: v.clone() for k, v in state.model.state_dict().items()}, torch.get_rng_state()
    step = lambda: q1.train_step(state, *batch(q1, task), task)  # noqa: E731
    state.forward = Greedy(state.model, limit=8)
    pace = budget.measure(state, step, lambda: q1.validate(state, task), task.compute, steps=2)
    assert pace.step > 0 and pace.validation > 0
    assert all(torch.equal(v, before[k]) for k, v in state.model.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in state.ema.module.state_dict().items())
    assert torch.equal(draws, torch.get_rng_state())
    assert state.micro_batch == 8  # what memory allows is not forgotten
    assert state.step == 0 and not state.optimizer.state and state.bad_losses.tolist() == [0, 0, 0]


def test_max_minutes_completes_the_cosine_in_time(q1, tmp_path, monkeypatch):
    """A clock on which a step takes 1 s and a validation 2 s."""
    task = make_task(q1, n=160, epochs=100, batch_size=16, max_minutes=1)
    state = make_state(q1, task)
    state.plan = budget.make_plan(100, 1, 0, 10)
    now = [0.0]
    monkeypatch.setattr(q1.time, "perf_counter", lambda: now[0])
    step, validate = q1.train_step, q1.validate
    monkeypatch.setattr(q1, "train_step", lambda *args: (now.__setitem__(0, now[0] + 1.0), step(*args))[1])

    monkeypatch.setattr(q1, "validate", lambda *args: (now.__setitem__(0, now[0] + 2.0), validate(*args))[1])
    q1.train(state, task, budget.Pace(0.7, 2.0), tmp_path, tuple("abcdefghij"))  # the first guess is a third off
    assert 45 <= now[0] <= 60.5
    assert state.step == state.plan.total
    assert state.history[-1]["lr"] < 2e-5
    assert (tmp_path / "best_vit_cifar10.pth").is_file()
