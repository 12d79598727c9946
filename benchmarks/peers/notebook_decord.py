"""The loop of a notebook with decord, which also makes the frames small; PyTorch eager, channels last."""

import decord
import torch
from trained import asked, network, places, ready, tell

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def read(video, spec):
    """Return the frames of a clip: uint8 (T, H, W, 3)."""
    reader = decord.VideoReader(video, width=spec.size.width, height=spec.size.height)
    return reader.get_batch(places(spec, len(reader), reader.get_avg_fps())).asnumpy()


def main():
    bundle, spec, videos, _ = asked()
    encoder, head = network(bundle, memory_format=torch.channels_last)
    ready()
    for video in videos:
        frames = torch.from_numpy(read(video, spec))
        pixels = ((frames / 255 - MEAN) / STD).permute(0, 3, 1, 2)
        with torch.inference_mode():
            scores = head(encoder(pixels)[None]).softmax(-1)[0]
        tell(video, spec.classes, scores)


if __name__ == "__main__":
    main()
