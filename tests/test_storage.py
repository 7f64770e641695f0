"""The file format itself. That checkpoints survive crashes and full disks is in test_training, that of memories in test_streaming."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from memgpt_lite import storage

FORM = "a test, version 1"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool,
]  # fmt: skip
SHAPES = [(), (0,), (1,), (7,), (2, 0, 3), (3, 4, 5)]


def write(path, tensors=None, **header):
    storage.write(path, {"x": torch.arange(6.0)} if tensors is None else tensors, {"format": FORM} | header)


# ---- digest ----


def test_the_digest_is_sha256_over_what_it_says():
    x, y = torch.tensor([[1.5, -2.0]]), torch.tensor(7, dtype=torch.int16)
    expected = hashlib.sha256(b'{"a": "1", "b": "2"}')
    expected.update(b"x torch.float32 (1, 2)" + b"\x00\x00\xc0\x3f\x00\x00\x00\xc0")  # IEEE 754, the low byte first
    expected.update(b"y torch.int16 ()" + b"\x07\x00")
    assert storage.digest({"y": y, "x": x}, {"b": "2", "a": "1"}) == expected.hexdigest()


def test_the_digest_does_not_depend_on_the_order_or_on_how_a_tensor_lies():
    x = torch.randn(4, 6)
    digests = {
        storage.digest({"x": x, "y": x[:2]}, {"a": "1", "b": "2"}),
        storage.digest({"y": x[:2].clone(), "x": x.clone()}, {"b": "2", "a": "1"}),
        storage.digest({"y": x[:2].mT.contiguous().mT, "x": x.mT.contiguous().mT}, {"b": "2", "a": "1"}),
        storage.digest({"x": x.clone().requires_grad_(), "y": torch.nn.Parameter(x[:2])}, {"a": "1", "b": "2"}),
    }
    assert len(digests) == 1
    assert storage.digest({"x": x[0, ::2]}) == storage.digest({"x": x[0, ::2].clone()})
    assert storage.digest({"x": x[:1].expand(3, -1)}) == storage.digest({"x": x[:1].repeat(3, 1)})


def test_the_digest_depends_on_all_else():
    x = torch.arange(6.0)
    tensors = [
        {}, {"x": x}, {"y": x}, {"x": x, "y": x}, {"x": x.view(2, 3)}, {"x": x.view(3, 2)}, {"x": x.view(1, 6)}, {"x": x.double()},
        {"x": x.view(torch.int32)}, {"x": x.flip(0)}, {"x": -x}, {"x": x[:5]}, {"x": torch.nextafter(x, x + 1)}, {"x": x[:0]},
    ]  # fmt: skip
    headers = [None, {"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": "1"}]
    digests = [storage.digest(t, h) for t in tensors for h in headers]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
    assert storage.digest({"x": x}) == storage.digest({"x": x}, {})


# ---- write and read ----


def test_tensors_of_every_kind_and_shape_come_back(tmp_path):
    tensors = {f"{dtype} {shape}": (torch.randn(shape) * 50).to(dtype) for dtype in DTYPES for shape in SHAPES}
    tensors |= {"紅 樓.夢": torch.tensor([float("nan"), float("inf"), -0.0]), "transposed": torch.randn(3, 5).mT}
    write(tmp_path / "f", tensors, note='"\\\n紅😀', empty="")
    back, header = storage.read(tmp_path / "f", FORM)
    assert header == {"format": FORM, "note": '"\\\n紅😀', "empty": ""}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_no_tensors_at_all(tmp_path):
    write(tmp_path / "f", {})
    assert storage.read(tmp_path / "f", FORM) == ({}, {"format": FORM})


def test_what_was_given_is_not_changed(tmp_path):
    tensors, header = {"x": torch.randn(2, 3).mT}, {"format": FORM}
    x, before = tensors["x"], tensors["x"].clone()
    storage.write(tmp_path / "f", tensors, header)
    assert header == {"format": FORM} and tensors["x"] is x and torch.equal(x, before) and x.stride() == (1, 3)


def test_the_file_is_safetensors_with_its_checksum_in_the_header(tmp_path):
    write(tmp_path / "f", a="1")
    with safe_open(tmp_path / "f", framework="pt") as file:
        header = file.metadata()
    assert header == {"format": FORM, "a": "1", "sha256": storage.digest({"x": torch.arange(6.0)}, {"format": FORM, "a": "1"})}


@pytest.mark.parametrize("pad", range(8))
def test_tensors_lie_where_pytorch_puts_its_own(tmp_path, pad):
    """A product of the same numbers can differ in its last bits where they lie elsewhere; then a resumed run is not the same."""
    write(tmp_path / "f", {"a": torch.zeros(pad), "b": torch.randn(3, 8), "c": torch.randn(5)}, note="x" * pad)
    tensors, _ = storage.read(tmp_path / "f", FORM)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors.values() if tensor.numel())


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    write(tmp_path / "f", {"x": torch.ones(1000)})
    tensors, _ = storage.read(tmp_path / "f", FORM)
    with open(tmp_path / "f", "r+b") as file:
        file.write(bytes(os.path.getsize(tmp_path / "f")))
    assert torch.equal(tensors["x"], torch.ones(1000))
    tensors["x"].zero_()  # nor does the file with what was read
    write(tmp_path / "f", {"x": torch.ones(1000)})
    storage.read(tmp_path / "f", FORM)[0]["x"].zero_()
    assert torch.equal(storage.read(tmp_path / "f", FORM)[0]["x"], torch.ones(1000))


def test_a_written_file_takes_the_place_of_any_other(tmp_path):
    path = tmp_path / "a" / "b" / "f.safetensors"
    for size in (5, 500, 1):
        write(path, {"x": torch.ones(size)})
        assert len(storage.read(path, FORM)[0]["x"]) == size and list(path.parent.iterdir()) == [path]
    path.write_text("something else")
    write(path)
    assert storage.read(path, FORM)[1] == {"format": FORM}


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("f"))
    storage.read(Path("f"), FORM)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_reader_finds_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path, found, save, replace = tmp_path / "f", [], storage.save_file, storage.os.replace

    def look(function):
        def step(*arguments, **options):
            found.append(float(storage.read(path, FORM)[0]["x"]))
            result = function(*arguments, **options)
            found.append(float(storage.read(path, FORM)[0]["x"]))
            return result

        return step

    write(path, {"x": torch.tensor(1.0)})
    monkeypatch.setattr(storage, "save_file", look(save))
    monkeypatch.setattr(storage.os, "replace", look(replace))
    write(path, {"x": torch.tensor(2.0)})
    assert found == [1, 1, 1, 2]  # before and after it is written, before and after it is moved


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
@pytest.mark.parametrize("step", ["save_file", "replace", "fsync"])
def test_an_interrupted_write_leaves_no_trace(tmp_path, monkeypatch, error, step):
    def interrupted(*arguments, **options):
        raise error

    for path, is_new in ((tmp_path / "old", False), (tmp_path / "new", True)):
        if not is_new:
            write(path)
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        with monkeypatch.context() as patched:
            patched.setattr(storage if step == "save_file" else storage.os, step, interrupted)
            with pytest.raises(error):
                write(path, {"x": torch.zeros(9)})
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_header_that_safetensors_cannot_read_again_is_not_written(tmp_path):
    write(tmp_path / "f")
    good = (tmp_path / "f").read_bytes()
    with pytest.raises(OSError, match=r"f was not written \(.*header too large\), an earlier one is untouched"):
        write(tmp_path / "f", note="x" * 100_000_001)
    assert (tmp_path / "f").read_bytes() == good and len(list(tmp_path.iterdir())) == 1


# ---- refused ----


def test_a_folder_is_refused_both_ways_and_left_alone(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("precious")
    for action in (lambda: write(folder), lambda: storage.read(folder, FORM)):
        with pytest.raises(IsADirectoryError, match=r"folder is a folder: name a file in it"):
            action()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and (folder / "mine").read_text() == "precious"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none"):
        storage.read(tmp_path / "none", FORM)
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*link"):
        storage.read(tmp_path / "link", FORM)


@pytest.mark.parametrize("keep", [0, 5, 50, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path, keep):
    write(tmp_path / "f")
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"f is not a whole safetensors file \(.+\): take an earlier copy"):
        storage.read(tmp_path / "f", FORM)


@pytest.mark.parametrize("form", ["a test, version 2", "", "a test, version 1 "])
def test_another_format_is_refused(tmp_path, form):
    write(tmp_path / "f")
    with pytest.raises(ValueError, match=rf"is a safetensors file, but no {form} \(its format: 'a test, version 1'\)"):
        storage.read(tmp_path / "f", form)


@pytest.mark.parametrize(
    "change",
    [
        lambda t, h: h.pop("sha256"),
        lambda t, h: h.update(sha256="0" * 64),
        lambda t, h: h.update(sha256=""),
        lambda t, h: h.update(a="2"),
        lambda t, h: h.update(b="1"),
        lambda t, h: h.pop("a"),
        lambda t, h: t["x"].neg_(),
        lambda t, h: t.update(y=torch.ones(1)),
        lambda t, h: t.update(y=torch.ones(0)),
        lambda t, h: t.update(y=t.pop("x")),
        lambda t, h: t.pop("x"),
        lambda t, h: t.update(x=t["x"].view(2, 3)),
        lambda t, h: t.update(x=t["x"].view(torch.int32)),
    ],
)
def test_contents_that_do_not_fit_the_checksum_are_refused(tmp_path, change):
    write(tmp_path / "f", a="1")
    with safe_open(tmp_path / "f", framework="pt") as file:
        header, tensors = file.metadata(), {"x": file.get_tensor("x").clone()}
    storage.save_file(tensors, tmp_path / "f", metadata=header)
    assert storage.read(tmp_path / "f", FORM)[1] == {"format": FORM, "a": "1"}  # copied as it is, it is good
    change(tensors, header)
    storage.save_file(tensors, tmp_path / "f", metadata=header)
    with pytest.raises(ValueError, match="is damaged, its checksum does not match: take an earlier copy"):
        storage.read(tmp_path / "f", FORM)


def test_a_file_without_a_header_is_refused(tmp_path):
    storage.save_file({"x": torch.ones(2)}, tmp_path / "f")
    with pytest.raises(ValueError, match=r"no a test, version 1 \(its format: None\)"):
        storage.read(tmp_path / "f", FORM)
    content = json.dumps({"__metadata__": {"format": FORM}}).encode()
    (tmp_path / "f").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(ValueError, match="checksum does not match"):
        storage.read(tmp_path / "f", FORM)
