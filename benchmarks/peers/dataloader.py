"""What a good engineer writes in an afternoon: a DataLoader whose workers decode with OpenCV, and batches of clips."""

import os
from contextlib import nullcontext

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
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


class Clips(Dataset):
    """The clips of videos, with their paths."""

    def __init__(self, videos, spec):
        self.videos, self.spec = videos, spec

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, place):
        return self.videos[place], torch.from_numpy(read(self.videos[place], self.spec))


def main():
    bundle, spec, videos, options = asked("bf16")
    encoder, head = network(bundle, memory_format=torch.channels_last)
    precision = torch.autocast("cpu", torch.bfloat16) if "bf16" in options else nullcontext()
    loader = DataLoader(Clips(videos, spec), batch_size=4, num_workers=os.cpu_count(), prefetch_factor=2)
    ready()
    with torch.inference_mode(), precision:
        for paths, clips in loader:
            pixels = ((clips.flatten(0, 1) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
            scores = head(encoder(pixels).unflatten(0, clips.shape[:2])).float().softmax(-1)
            for path, own in zip(paths, scores, strict=True):
                tell(path, spec.classes, own)


if __name__ == "__main__":
    main()
