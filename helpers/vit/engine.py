"""A training step made ready for its device: the batch in as many parts as memory asks for, the model's blocks
compiled, and on CUDA all of the step recorded as one graph (Ng et al. 2021, "Accelerating PyTorch with CUDA Graphs",
and torch.cuda.CUDAGraph), which the host starts with a single call instead of a thousand."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from helpers.common import distributed
from helpers.common.device import compile_if_possible, seed_everything
from helpers.common.files import reason
from helpers.vit.checkpoint import get_rng_state, set_rng_state

Step = Callable[[Tensor, Tensor], Tensor]


def prepare(run: Any, train_step: Callable[..., Tensor], example: Callable[[], tuple[Tensor, Tensor]]) -> Step:
    """Return `train_step(run, images, targets)` as a function of a batch shaped like that of `example()`, and set
    `run.parts` and `run.forward` to what this device and these processes allow; else leaves the run as it was.

    Prints a line for whatever is not possible here; the result is the same, slower. Raises `torch.OutOfMemoryError`
    where not even single images fit.
    """
    eager = partial(train_step, run)
    run.model.train()
    _make_state(run.optimizer)
    with rehearsal(run):
        images, targets = example()
        fit = partial(_fit, run, eager, images, targets)
        if not (run.cfg.compile and compile_if_possible(run.model.blocks, fit)):
            fit()
        step = _graphed(run, eager, images, targets) if run.compute.device.type == "cuda" else eager
    run.forward = distributed.wrap(run.forward)
    return step


def epoch_order(run: Any) -> Tensor:
    """Draw an epoch's order, int64 [steps, batch_size], one for all processes; all else each draws by its own seed."""
    order = distributed.broadcast(torch.randperm(len(run.train)))
    if not distributed.is_main():
        seed_everything(distributed.own_seed(run.cfg.seed, run.step))
    return order[: run.steps_per_epoch * run.cfg.batch_size].view(-1, run.cfg.batch_size)


def stop_if_lost(run: Any, results: list[Tensor]) -> None:
    """Raise `FloatingPointError` where none of the last ten steps, `results` the latest, had finite gradients, or none
    of a run that ends with fewer."""
    last = (run.recent + results)[-10:]
    enough = len(last) == 10 or (run.progress >= 1 and len(last) == run.step)
    if enough and not torch.stack(last)[:, 1].isfinite().any():
        count = "ten" if len(last) == 10 else "all"
        raise FloatingPointError(
            f"{count} steps in a row were skipped, since their gradients were not finite: go on from last.pth with "
            "resume=True and amp=False, or start anew with a lower lr"
        )


def epoch_row(run: Any, results: list[Tensor], clock: Callable[[], float]) -> dict[str, float]:
    """Sum up what an epoch's steps returned, and by `clock` how long they took; counts them into `run`."""
    stop_if_lost(run, results)  # waits for the device, so that the clock is right
    seconds = clock()
    run.recent = (run.recent + results)[-10:]
    losses, norms = torch.stack(results).unbind(1)
    losses, skipped = distributed.all_reduce_sum(losses) / distributed.size(), int((~norms.isfinite()).sum())
    run.train_seconds, run.skipped = run.train_seconds + seconds, run.skipped + skipped
    return {
        "loss": losses.nanmean().item(),
        "gradient_norm": norms.median().item(),
        "skipped": skipped,
        "lr": max(group["lr"].item() for group in run.optimizer.param_groups),
        "images_per_second": len(results) * run.cfg.batch_size / seconds,
    }


@contextlib.contextmanager
def rehearsal(run: Any) -> Iterator[None]:
    """Undo at its end what the block does to weights, optimizer, scaler and random generators, in place."""
    state = [value for values in run.optimizer.state.values() for value in values.values()]
    tensors = [*run.model.parameters(), *run.ema.parameters(), *state]
    before = [tensor.detach().clone() for tensor in tensors]
    scaler, draws = run.scaler.state_dict(), get_rng_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
        run.optimizer.zero_grad()
        run.scaler.load_state_dict(scaler)  # nothing where it is not enabled
        set_rng_state(draws)


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let AdamW allocate its moments, where it has none yet, by a step that it is told to skip."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    if parameters:
        optimizer.found_inf = torch.ones((), device=parameters[0].device)
        optimizer.step()
        optimizer.zero_grad()


def _fit(run: Any, eager: Step, images: Tensor, targets: Tensor) -> None:
    """Double `run.parts` until a step fits into the memory of every process."""
    while True:
        run.optimizer.zero_grad()  # of a step that failed
        full = False
        try:
            eager(images, targets)
        except torch.OutOfMemoryError:
            full = True
            if run.parts == len(images):
                raise
        # from here on outside the except block, which would keep the failed step's tensors alive
        if not distributed.any_rank(full):
            return
        run.parts = min(2 * run.parts, len(images))
        print(f"out of memory: each batch of {run.cfg.batch_size} images is computed in {run.parts} parts")
        if images.is_cuda:
            torch.cuda.empty_cache()


def _graphed(run: Any, eager: Step, images: Tensor, targets: Tensor) -> Step:
    """The step as a CUDA graph, if its result equals the eager step's; else `eager`, and why is printed."""
    if distributed.size() > 1:
        print("several processes: the step is not recorded as a CUDA graph")  # their exchanges would not be
        return eager
    try:
        step = _capture(eager, images, targets)
        problem = _difference(run, eager, step, images, targets)
    except Exception as error:  # what cannot be recorded is known only once it is tried
        problem = reason(error)
    if problem:
        print(f"training without a CUDA graph: {problem}")
        torch.cuda.synchronize()
        return eager
    print("each training step is one CUDA graph")
    return step


def _capture(eager: Step, images: Tensor, targets: Tensor) -> Step:
    """Record a step; a call copies its batch to where the recorded one lay, and runs everything again from there."""
    images, targets = images.clone(), targets.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a stream of its own, as recording demands; libraries set themselves up
        for _ in range(3):
            eager(images, targets)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = eager(images, targets)

    def step(new_images: Tensor, new_targets: Tensor) -> Tensor:
        images.copy_(new_images)
        targets.copy_(new_targets)
        graph.replay()
        return result.clone()

    return step


def _difference(run: Any, eager: Step, graphed: Step, images: Tensor, targets: Tensor) -> str:
    """Difference of a graphed step from an eager one, from the present weights, beyond rounding; empty if none."""
    flat = torch.nn.utils.parameters_to_vector
    results, weights, start = [], [], flat(run.model.parameters()).detach()
    for step in (eager, graphed):
        with rehearsal(run):
            torch.manual_seed(0)  # the same blocks are dropped
            results.append(step(images, targets).tolist())
            weights.append(flat(run.model.parameters()).detach())
    (expected, got), moved = results, (weights[0] - start).norm()
    close = all(a == b or abs(a - b) <= 1e-2 * abs(a) + 1e-4 for a, b in zip(expected, got, strict=True))
    # AdamW moves a weight whose gradient is nearly 0 by its sign, which rounding may turn: hence not each on its own.
    if close and (weights[1] - weights[0]).norm() <= 0.1 * moved:
        return ""
    return f"its loss and gradient norm were {got}, {expected} without, and weights differ by more than rounding"
