"""torchcodec decodes and makes small, a video ahead of PyTorch eager in channels last."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize
from trained import asked, network, ready, tell, times_s

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def read(video, spec):
    """Return the frames of a clip: uint8 (T, H, W, 3)."""
    small = Resize((spec.size.height, spec.size.width))
    decoder = VideoDecoder(video, transforms=[small], dimension_order="NHWC")
    times = times_s(spec, decoder.metadata.duration_seconds) + decoder.metadata.begin_stream_seconds
    return decoder.get_frames_played_at(seconds=times.tolist()).data


def main():
    bundle, spec, videos, _ = asked()
    encoder, head = network(bundle, memory_format=torch.channels_last)
    ready()
    with ThreadPoolExecutor(1) as pool, torch.inference_mode():
        for video, frames in zip(videos, pool.map(lambda path: read(path, spec), videos), strict=True):
            pixels = ((frames / 255 - MEAN) / STD).permute(0, 3, 1, 2)
            tell(video, spec.classes, head(encoder(pixels)[None]).softmax(-1)[0])


if __name__ == "__main__":
    main()
