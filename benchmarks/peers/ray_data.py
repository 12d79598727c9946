"""Ray Data on one machine: map decodes with OpenCV, map_batches runs PyTorch in an actor that keeps the model."""

import os

import cv2
import numpy as np
import ray
import torch
from trained import asked, network, places, ready, tell

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def read(video, spec):
    """Return the frames of a clip: uint8 (T, H, W, 3)."""
    capture = cv2.VideoCapture(video, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = places(spec, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS))
    frames = []
    for place in range(wanted[-1] + 1):
        if not capture.grab():
            break
        if place in wanted:
            small = cv2.resize(capture.retrieve()[1], (spec.size.width, spec.size.height))
            frames.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


class Recogniser:
    """The model in an actor."""

    def __init__(self, bundle):
        torch.set_num_threads(os.cpu_count())
        self.encoder, self.head = network(bundle, memory_format=torch.channels_last)
        ready()

    def __call__(self, batch):
        clips = torch.from_numpy(np.stack(batch.pop("clip")))
        with torch.inference_mode():
            pixels = ((clips.flatten(0, 1) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
            scores = self.head(self.encoder(pixels).unflatten(0, clips.shape[:2])).softmax(-1)
        return {**batch, "scores": scores.numpy()}


def main():
    bundle, spec, videos, _ = asked()
    ray.init(num_cpus=os.cpu_count() + 1, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"path": video} for video in videos], override_num_blocks=len(videos))
    # Another share of a processor than the actor's keeps Ray from fusing both, and decoding beside the model.
    clips = rows.map(lambda row: {**row, "clip": read(row["path"], spec)}, num_cpus=0.5)
    labelled = clips.map_batches(
        Recogniser, fn_constructor_args=[bundle], batch_size=2, compute=ray.data.ActorPoolStrategy(size=1)
    )
    for row in labelled.iter_rows():
        tell(row["path"], spec.classes, row["scores"])


if __name__ == "__main__":
    main()
