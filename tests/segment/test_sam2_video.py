"""helpers/segment/sam2_video.py: against the package's own video predictor, which keeps everything."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from test_sam2_image import mini_config, shake

from helpers.common.device import Compute
from helpers.segment.sam2_image import Segmenter, load_sam2
from helpers.segment.sam2_video import VideoTracker

CPU = Compute(torch.device("cpu"), "CPU", "fp32")
HEIGHT, WIDTH = 50, 70
FRAMES = 26  # the miniature attends to 16
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*", "ignore:.*cannot import name '_C'.*")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A miniature with random weights whose objects appear on every frame."""
    folder, config = tmp_path_factory.mktemp("mini"), mini_config()
    torch.manual_seed(1)
    model = shake(instantiate(config))
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
        model.memory_encoder.fuser.layers[0].gamma.fill_(0.5)
    save_file(model.state_dict(), folder / "model.safetensors")
    OmegaConf.save({"model": config}, folder / "config.yaml")
    return load_sam2(folder, CPU)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """FRAMES frames as a folder of JPEG files, and the same frames as they are read again."""
    folder, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    background = rng.integers(0, 256, (HEIGHT, WIDTH, 3))
    frames = []
    for i in range(FRAMES):
        image = background.copy()
        image[10 + i // 4 : 25 + i // 4, 5 + i // 2 : 25 + i // 2] = (250, 20, 20)
        image[30:42, 50 - i // 3 : 64 - i // 3] = (20, 20, 250)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:05}.jpg")
        frames.append(np.array(Image.open(folder / f"{i:05}.jpg").convert("RGB")))
    return folder, frames


BOXES = {1: (5, 10, 25, 25), 2: (50, 30, 64, 42), 7: (12, 12, 40, 38)}


def plain(segmenter, folder, prompts, start, backwards=False):
    """{frame: {number: mask}} of the package's own loop over a folder."""
    model = segmenter.model
    state = model.init_state(str(folder))
    for number in prompts:
        model.add_new_points_or_box(state, start, number, box=np.float32(BOXES[number]))
    walk = model.propagate_in_video(state, reverse=backwards)
    return {i: dict(zip(numbers, (logits[:, 0] > 0).numpy(), strict=True)) for i, numbers, logits in walk}


def ours(tracker, frames, prompts, order, backwards=False):
    found = {}
    for i in order:
        tracker.show(i, tracker.prepare(frames[i]))
        if i == order[0]:
            for number in prompts:
                tracker.add(number, box=BOXES[number])
        found[i] = tracker.track(backwards)
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for i, masks in expected.items():
        assert list(found[i]) == list(masks)
        for number, mask in masks.items():
            assert found[i][number].dtype == bool
            np.testing.assert_array_equal(found[i][number], mask, err_msg=f"frame {i}, object {number}")


def test_masks_are_those_of_the_package_that_forgets_nothing(segmenter, clip):
    folder, frames = clip
    expected = plain(segmenter, folder, (1, 2), 0)
    tracker = VideoTracker(segmenter, HEIGHT, WIDTH, len(frames))
    same(ours(tracker, frames, (1, 2), range(FRAMES)), expected)
    areas = [masks[1].mean() for masks in expected.values()]
    assert 0.01 < np.mean(areas) < 0.99 and np.std(areas) > 1e-3  # not trivially equal


def test_what_is_kept_does_not_grow(segmenter, clip):
    """Bytes of the tensors that a tracker holds on to, directly or by any of its containers."""

    def size(node):
        if isinstance(node, torch.Tensor):
            return node.numel() * node.element_size()
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
        return sum(map(size, children))

    tracker, sizes = VideoTracker(segmenter, HEIGHT, WIDTH, FRAMES), []
    for i, frame in enumerate(clip[1]):
        tracker.show(i, tracker.prepare(frame))
        if i == 0:
            tracker.add(1, box=BOXES[1])
        tracker.track()
        sizes.append(size(vars(tracker)))
    assert sizes[0] < sizes[5] < sizes[15] <= sizes[-1] == sizes[-5]


def test_memory_matters_to_these_masks(segmenter, clip, monkeypatch):
    """The first test would not notice what is forgotten if the model did not attend to it."""
    folder, frames = clip
    expected = plain(segmenter, folder, (1,), 0)
    monkeypatch.setattr(segmenter.model, "max_obj_ptrs_in_encoder", 3)
    monkeypatch.setattr(segmenter.model, "num_maskmem", 3)
    found = ours(VideoTracker(segmenter, HEIGHT, WIDTH, FRAMES), frames, (1,), range(FRAMES))
    assert any((found[i][1] != expected[i][1]).any() for i in range(FRAMES))


def test_backwards_to_the_first_frame(segmenter, clip):
    folder, frames = clip
    expected = plain(segmenter, folder, (1, 2), 20, backwards=True)
    tracker = VideoTracker(segmenter, HEIGHT, WIDTH, len(frames))
    same(ours(tracker, frames, (1, 2), range(20, -1, -1), backwards=True), expected)


def test_few_frames(segmenter, clip, tmp_path):
    """SAM 2 scales the time of its pointers by the length of a short clip."""
    folder, frames = clip
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes((folder / f"{i:05}.jpg").read_bytes())
    expected = plain(segmenter, tmp_path, (1,), 0)
    same(ours(VideoTracker(segmenter, HEIGHT, WIDTH, 6), frames, (1,), range(6)), expected)


def test_an_object_added_and_one_removed_on_the_way(segmenter, clip):
    """The others go on as they were, and what is added is as if it had been alone."""
    folder, frames = clip
    expected = plain(segmenter, folder, (1, 2), 0)
    late = plain(segmenter, folder, (7,), 10)
    tracker = VideoTracker(segmenter, HEIGHT, WIDTH, len(frames))
    for i in range(FRAMES):
        tracker.show(i, tracker.prepare(frames[i]))
        if i == 0:
            masks = {number: tracker.add(number, box=BOXES[number]) for number in (1, 2)}
            np.testing.assert_array_equal(masks[2], expected[0][2])
        found = tracker.track()
        if i == 10:
            np.testing.assert_array_equal(tracker.add(7, box=BOXES[7]), late[10][7])
        if i == 15:
            tracker.remove(1)
        assert list(found) == ([1, 2] if i <= 10 else [1, 2, 7] if i <= 15 else [2, 7])
        for number, mask in found.items():
            np.testing.assert_array_equal(mask, (late if number == 7 else expected)[i][number], err_msg=f"frame {i}")
    assert tracker.numbers == [2, 7]


def test_an_object_given_by_its_mask(segmenter, clip):
    _, frames = clip
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:25, 5:25] = True
    tracker = VideoTracker(segmenter, HEIGHT, WIDTH, len(frames))
    tracker.show(0, tracker.prepare(frames[0]))
    given = tracker.add(3, mask=mask)
    assert (given & mask).sum() / (given | mask).sum() > 0.7  # it passes through the mask's coarse grid
    assert set(tracker.track()) == {3}


def at_precision(segmenter, precision):
    return Segmenter(segmenter.model, segmenter.name, replace(CPU, precision=precision))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(segmenter, clip, precision):
    """As on a GPU: fp16 on a T4, where the package's own loop stops at the second frame."""
    _, frames = clip
    half = at_precision(segmenter, precision)
    expected, found = (
        ours(VideoTracker(each, HEIGHT, WIDTH, len(frames)), frames, (1, 2), range(12)) for each in (segmenter, half)
    )
    shares = [(found[i][number] == expected[i][number]).mean() for i in range(12) for number in (1, 2)]
    assert np.mean(shares) > 0.9 and shares[0] > 0.97


def test_half_precision_where_objects_come_later_and_backwards(segmenter, clip):
    _, frames = clip
    tracker = VideoTracker(at_precision(segmenter, "fp16"), HEIGHT, WIDTH, len(frames))
    for i in range(12):
        tracker.show(i, tracker.prepare(frames[i]))
        if i == 0:
            tracker.add(1, box=BOXES[1])
        if i == 5:
            tracker.add(2, mask=np.pad(np.ones((12, 14), bool), ((30, 8), (48, 8))))
        assert list(tracker.track()) == ([1] if i < 5 else [1, 2])
    order = range(11, -1, -1)
    backwards = VideoTracker(at_precision(segmenter, "fp16"), HEIGHT, WIDTH, len(frames))
    assert list(ours(backwards, frames, (1, 7), order, backwards=True)) == list(order)


def test_no_progress_bar_and_no_warning(segmenter, clip, capfd, recwarn):
    ours(VideoTracker(segmenter, HEIGHT, WIDTH, FRAMES), clip[1], (1,), range(3))
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_a_frame_out_of_order(segmenter, clip):
    tracker = VideoTracker(segmenter, HEIGHT, WIDTH, FRAMES)
    tracker.show(0, tracker.prepare(clip[1][0]))
    assert tracker.track() == {}
    tracker.add(1, box=BOXES[1])
    tracker.track()
    tracker.show(2, tracker.prepare(clip[1][2]))
    with pytest.raises(IndexError, match="frame 1 is asked for while frame 2 is shown"):
        tracker.track()
