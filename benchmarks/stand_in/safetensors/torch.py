"""Reading and writing as the package does, by what every bundle's weights are checked with anyway.

https://github.com/huggingface/safetensors describes the format: eight bytes of length, a JSON header, the tensors. A
test holds this against the package, in both directions.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from harec_deploy.bundle import read_safetensors
from harec_deploy.errors import HarecError
from safetensors import SafetensorError

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}


def save_file(tensors: dict[str, Tensor], path: Path) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    told = json.dumps(header).encode()
    with Path(path).open("wb") as stream:
        stream.write(len(told).to_bytes(8, "little") + told)
        for tensor in tensors.values():
            stream.write(tensor.detach().contiguous().numpy().tobytes())


def load_file(path: Path) -> dict[str, Tensor]:
    try:
        return {name: torch.from_numpy(array.copy()) for name, array in read_safetensors(Path(path))}
    except (HarecError, ValueError) as error:
        raise SafetensorError(str(error)) from None
