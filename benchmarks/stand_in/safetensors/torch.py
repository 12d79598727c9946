"""The safetensors format: eight bytes of length, a JSON header, then the tensors one behind the other.

https://github.com/huggingface/safetensors describes it. A test holds this against the package, in both directions.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safetensors import SafetensorError

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def save_file(tensors: dict[str, Tensor], path: Path) -> None:
    names = {kind: name for name, kind in TYPES.items()}
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as stream:
        stream.write(len(told).to_bytes(8, "little") + told)
        for tensor in tensors.values():
            stream.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())


def load_file(path: Path) -> dict[str, Tensor]:
    content = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        return {name: _tensor(content, start, facts) for name, facts in header.items()}
    except (ValueError, KeyError, RuntimeError) as error:
        raise SafetensorError(f"{path} is no safetensors file: {error}") from None


def _tensor(content: bytearray, start: int, facts: dict[str, Any]) -> Tensor:
    (begin, end), kind = facts["data_offsets"], TYPES[facts["dtype"]]
    if begin == end:
        return torch.empty(facts["shape"], dtype=kind)
    # By way of bytes of its own, for a view into the file would have to lie at a multiple of its size.
    return torch.frombuffer(content[start + begin : start + end], dtype=kind).reshape(facts["shape"])
