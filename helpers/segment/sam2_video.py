"""Objects followed through a video with SAM 2 (Ravi et al., 2024, arXiv:2408.00714, section 4), in bounded memory.

The package's video predictor wants all frames at once, 12.6 MB each, and keeps its memories of every frame. Here a
frame is handed over when its turn comes, and what the model will not attend to again is let go; the masks are the same.

    tracker = VideoTracker(segmenter, height, width, frames=len(video))
    tracker.show(0, tracker.prepare(image))           # uint8 [H, W, 3]
    tracker.add(1, box=(20, 30, 80, 90))              # object 1 on this frame
    masks = tracker.track()                           # {1: bool [H, W]}, then show the next frame, and so on
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from helpers.segment.sam2_image import Segmenter

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VideoTracker:
    """The objects of one video. Frames are shown one after the other, in either direction; on each of them objects can
    be added, and all are tracked. SAM 2 scales time by the number of `frames` where there are few."""

    def __init__(self, segmenter: Segmenter, height: int, width: int, frames: int) -> None:
        from sam2 import sam2_video_predictor

        # The package's progress bar would count to the end of a video of unknown length: it is off from here on.
        sam2_video_predictor.tqdm = functools.partial(tqdm, disable=True)
        self._model, self._compute = segmenter.model, segmenter.compute
        pointers = self._model.max_obj_ptrs_in_encoder
        self._reach = max(pointers, self._model.num_maskmem * self._model.memory_temporal_stride_for_eval)
        self._shown = _ShownFrame()
        frames = frames if frames < pointers else 2**40  # the package's loop is to end where the video does
        self._state = _fresh_state(self._shown, frames, height, width, self._compute.device)
        self._walk: Iterator | None = None
        self._backwards = False

    @property
    def numbers(self) -> list[int]:
        """Object numbers, in the order they were added."""
        return list(self._state["obj_ids"])

    def prepare(self, image: np.ndarray) -> Tensor:
        """`image`, uint8 RGB [H, W, 3], as the model takes it, uint8 [3, S, S]; another thread may do it ahead."""
        resized = np.asarray(Image.fromarray(image).resize((self._model.image_size,) * 2))
        # by NumPy: torch would do it with threads, which on a CPU get in the way of the model's
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    def show(self, index: int, prepared: Tensor) -> None:
        """Go to frame `index`, a neighbour of the last one."""
        pixels = prepared.to(self._compute.device).float()
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (_MEAN, _STD))
        self._shown.index, self._shown.pixels = index, pixels.div_(255).sub_(mean).div_(std)

    @torch.inference_mode()
    def add(self, number: int, *, box: Sequence[float] | None = None, mask: np.ndarray | None = None) -> np.ndarray:
        """Add object `number`, a new one, on the frame shown, by its `box` (x0, y0, x1, y1 in pixels) or its `mask`
        (bool [H, W]); returns its mask, bool [H, W]."""
        self._walk = None
        prompt = (self._state, self._shown.index, number)
        with self._compute.autocast():
            if box is not None:
                _, _, logits = self._model.add_new_points_or_box(*prompt, box=np.asarray(box, np.float32))
            else:
                _, _, logits = self._model.add_new_mask(*prompt, mask)
        return (logits[-1, 0] > 0).cpu().numpy()

    def remove(self, number: int) -> None:
        """Forget an object."""
        self._walk = None
        self._model.remove_object(self._state, number, need_output=False)

    @torch.inference_mode()
    def track(self, backwards: bool = False) -> dict[int, np.ndarray]:
        """The mask, bool [H, W], of each object on the frame shown; all False where it cannot be seen. Frames are to be
        shown in order, or `backwards`, from one on which an object was added, that one included."""
        if not self._state["obj_ids"]:
            return {}
        if self._walk is None or backwards != self._backwards:
            self._backwards = backwards
            self._walk = self._model.propagate_in_video(self._state, self._shown.index, reverse=backwards)
        with self._compute.autocast():
            _, numbers, logits = next(self._walk)
        self._forget()
        return dict(zip(numbers, (logits[:, 0] > 0).cpu().numpy(), strict=True))

    def _forget(self) -> None:
        """Let go of what is too far from the frame shown to be attended to again, and keep memories as autocast takes
        them: the package stores bfloat16, which autocast to float16 does not concatenate with its own."""
        for number, outputs in self._state["output_dict_per_obj"].items():
            recent = outputs["non_cond_frame_outputs"]
            for by_frame in (recent, self._state["frames_tracked_per_obj"][number]):
                for frame in [frame for frame in by_frame if abs(frame - self._shown.index) > self._reach]:
                    del by_frame[frame]
            for kept in (*outputs["cond_frame_outputs"].values(), *recent.values()):
                if self._compute.precision == "fp16" and kept["maskmem_features"] is not None:
                    kept["maskmem_features"] = kept["maskmem_features"].half()


class _ShownFrame:
    """Stands in for the package's list of all frames."""

    index: int | None = None
    pixels: Tensor | None = None

    def __getitem__(self, index: int) -> Tensor:
        if index != self.index:
            raise IndexError(f"frame {index} is asked for while frame {self.index} is shown")
        return self.pixels


def _fresh_state(images: _ShownFrame, frames: int, height: int, width: int, device: torch.device) -> dict:
    """The package's own state, for which its `init_state` would read a video from a file."""
    empty = """point_inputs_per_obj mask_inputs_per_obj cached_features constants obj_id_to_idx obj_idx_to_id
        output_dict_per_obj temp_output_dict_per_obj frames_tracked_per_obj"""
    state: dict = {name: {} for name in empty.split()} | {"images": images, "num_frames": frames, "obj_ids": []}
    return state | {"video_height": height, "video_width": width, "device": device, "storage_device": device}
