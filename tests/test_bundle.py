"""A bundle is read only if every byte is what was written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from harec_deploy.bundle import file_ref, load, read_safetensors
from harec_deploy.errors import BundleError
from harec_deploy.spec import HeadSpec


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "bundle.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))


def rehash(folder: Path, name: str) -> dict:
    ref = file_ref(folder, folder / name)
    return {"path": ref.path, "size": ref.size, "sha256": ref.sha256}


def replace_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights and the hash that guards them."""
    state = load_file(folder / "weights.safetensors")
    change(state)
    save_file(state, folder / "weights.safetensors")
    edit(folder, lambda spec: spec.update(weights=rehash(folder, "weights.safetensors")))


def cut_file(folder: Path, name: str, share: float) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip_last_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)


def leave_folder(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    outside.write_bytes((folder / "onnx-fp32/head.onnx").read_bytes())
    edit(folder, lambda spec: spec["variants"]["onnx-fp32"]["graphs"]["head"].update(path="../outside.onnx"))


def link_outside(folder: Path) -> None:
    inside = folder / "onnx-fp32/head.onnx"
    inside.rename(folder.parent / "elsewhere.onnx")
    inside.symlink_to(folder.parent / "elsewhere.onnx")


def externalise(folder: Path) -> None:
    """Move the encoder's weights into a file beside it, as onnx.save_model does for large models."""
    path = folder / "onnx-fp32/encoder.onnx"
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    new = rehash(folder, "onnx-fp32/encoder.onnx")
    edit(folder, lambda spec: spec["variants"]["onnx-fp32"]["graphs"].update(encoder=new))


DAMAGE = {
    "no bundle.json": (lambda b: (b / "bundle.json").unlink(), "is no bundle"),
    "torn bundle.json": (lambda b: cut_file(b, "bundle.json", 0.5), "is damaged or was edited"),
    "unknown field": (lambda b: edit(b, lambda s: s.update(run_me="x")), "unknown field `run_me`"),
    "unknown schema": (lambda b: edit(b, lambda s: s.update(schema=7)), "schema version 7; this harec-deploy reads 1"),
    "missing graph": (lambda b: (b / "onnx-fp32/head.onnx").unlink(), "head.onnx is missing"),
    "truncated graph": (lambda b: cut_file(b, "onnx-fp32/head.onnx", 0.9), "bytes, not"),
    "flipped bit": (lambda b: flip_last_byte(b, "onnx-fp32/encoder.onnx"), "was changed: its SHA-256"),
    "flipped weight": (lambda b: flip_last_byte(b, "weights.safetensors"), "was changed: its SHA-256"),
    "class too many": (lambda b: edit(b, lambda s: s["classes"].append("fly")), "gives 3 classes, bundle.json names 4"),
    "class twice": (lambda b: edit(b, lambda s: s.update(classes=["a", "a", "b"])), "all different"),
    "class unprintable": (lambda b: edit(b, lambda s: s.update(classes=["a", "b", "\x1b[2J"])), "unprintable"),
    "no frames": (lambda b: edit(b, lambda s: s["sampling"].update(frames=0)), "sampling.frames is 0"),
    "huge frames": (lambda b: edit(b, lambda s: s["size"].update(width=10**6)), "size.width is 1000000"),
    "NaN weights": (
        lambda b: replace_weights(b, lambda s: s["head.classifier.bias"].fill_(float("nan"))),
        "head.classifier.bias holds NaN or infinity",
    ),
    "path leaves": (leave_folder, "leads out of the bundle"),
    "link leaves": (link_outside, "leads out of the bundle"),
    "external data": (externalise, "keeps data in another file"),
    "foreign graphs": (
        lambda b: edit(b, lambda s: s["variants"]["onnx-fp32"]["graphs"].pop("head")),
        "expected encoder and head, or model",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_bad_bundle_is_refused_with_one_line(bundle: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match="(?s)" + message) as caught:
        load(bundle)
    assert "\n" not in str(caught.value)


def test_every_file_is_listed_with_its_hash(exported: Path) -> None:
    listed = {file.path for file in load(exported).spec.files()} | {"bundle.json"}
    assert listed == {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}


def test_fingerprint_follows_what_decides_labels(bundle: Path) -> None:
    before = load(bundle).fingerprint("onnx-fp32")
    edit(bundle, lambda spec: spec["training"].update(note="new words change no label"))
    assert load(bundle).fingerprint("onnx-fp32") == before
    edit(bundle, lambda spec: spec["sampling"].update(span=0.5))
    assert load(bundle).fingerprint("onnx-fp32") != before


def test_head_values_are_checked() -> None:
    with pytest.raises(ValueError, match=r"head\.dropout is 2; allowed are 0 to 0\.95"):
        HeadSpec(dropout=2)


class TestSafetensors:
    def test_reads_what_the_library_wrote(self, tmp_path: Path) -> None:
        tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(2.5)}
        save_file(tensors, tmp_path / "t.safetensors")
        read = dict(read_safetensors(tmp_path / "t.safetensors"))
        assert read.keys() == tensors.keys()
        assert all(np.array_equal(read[name], value.numpy()) for name, value in tensors.items())

    @pytest.mark.parametrize(
        "data",
        [b"\xff" * 8, (1 << 62).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", b"12345678" * 4]
        + [
            len(h).to_bytes(8, "little") + h
            for h in (b'{"a":1}', b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}')
        ],
    )
    def test_a_damaged_header_is_refused(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "bad.safetensors"
        path.write_bytes(data)
        with pytest.raises(BundleError, match="is no safetensors file"):
            list(read_safetensors(path))
