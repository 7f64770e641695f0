import gc
import itertools
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import memgpt_lite as ml
from memgpt_lite import storage

LENGTHS = [1, 2, 3, 4, 5, 8, 9, 23]  # segments have 4 tokens


@pytest.fixture
def model(tiny):
    return tiny()


def texts(length, batch=1):
    return torch.randint(0, 11, (batch, length))


def columns(ids):
    """(B, T) → T times B token numbers; one text: T token numbers."""
    return ids[0].tolist() if len(ids) == 1 else ids.T.tolist()


def assert_equals_one_call(segments, out, ids):
    """What was streamed is what one forward call gives, bit for bit."""
    assert torch.equal(torch.cat([s.input_ids for s in segments], dim=1), ids)
    assert torch.equal(torch.cat([s.logits for s in segments], dim=1), out.logits)
    assert torch.equal(segments[-1].memory, out.memory)
    if out.memories is not None:
        assert len(segments) == len(out.memories) - 1
        assert all(torch.equal(s.memory, m) for s, m in zip(segments, out.memories[1:]))
    assert len(segments) == len(out.write_attentions)
    assert all(torch.equal(s.write_attention, w) for s, w in zip(segments, out.write_attentions))


class Counted:
    """An iterator that counts how often it was asked; it may fail at one of its items."""

    def __init__(self, items, fails_at=None):
        self.items, self.pulls, self.fails_at = iter(items), 0, fails_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.pulls == self.fails_at:
            raise ConnectionError("the line is down")
        self.pulls += 1
        return next(self.items)


# ---- what comes out ----


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_streamed_text_equals_one_forward_call(model, length, batch):
    ids, memory = texts(length, batch), model.init_memory(batch)
    out = model(ids, memory=memory, output_hidden_states=True)
    segments = list(ml.stream(model, columns(ids), memory))
    assert_equals_one_call(segments, out, ids)
    assert [s.tokens_read for s in segments] == [min(4 * (i + 1), length) for i in range(-(-length // 4))]
    last = segments[-1]
    width = length - 4 * (len(segments) - 1)
    assert last.input_ids.shape == (batch, width) and last.logits.shape == (batch, width, 11)
    assert last.memory.shape == (batch, 3, 8) and last.write_attention.shape == (batch, 3, 1 + width)


@pytest.mark.parametrize("rule", ["keep_softmax", "gated", "erase_add", "delta", "fifo"])
def test_every_update_rule_streams(tiny, rule):
    model = tiny(update_rule=rule)
    ids, memory = texts(11, 2), model.init_memory(2)
    out = model(ids, memory=memory, output_hidden_states=True)
    assert_equals_one_call(list(ml.stream(model, columns(ids), memory)), out, ids)


@pytest.mark.parametrize(
    "form",
    [
        list, tuple, iter, torch.tensor, np.array, lambda x: (t for t in x), lambda x: np.array(x, dtype=np.uint16),
        lambda x: np.array(x, dtype=np.int32), lambda x: torch.tensor(x, dtype=torch.int32), lambda x: list(np.array(x)),
        lambda x: list(torch.tensor(x)), lambda x: list(np.array(x, dtype=np.uint8)), lambda x: (np.array(t) for t in x),
        lambda x: (torch.tensor(t) for t in x),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_may_come_in_any_form(model, form, batch):
    ids, memory = texts(9, batch), model.init_memory(batch)
    out = model(ids, memory=memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equals_one_call(list(ml.stream(model, form(columns(ids)), memory)), out, ids)


def test_one_text_may_come_as_rows_of_one_token(model):
    ids, memory = texts(9), model.init_memory(1)
    assert_equals_one_call(list(ml.stream(model, ids.T, memory)), model(ids, memory=memory), ids)


def test_tokens_may_come_from_a_file_that_is_mapped(model, tmp_path):
    ids, memory = texts(9), model.init_memory(1)
    ids[0].numpy().astype(np.uint16).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r")
    assert_equals_one_call(list(ml.stream(model, tokens, memory)), model(ids, memory=memory), ids)


@pytest.mark.parametrize("nothing", [[], (), torch.tensor([], dtype=torch.long), np.array([]), iter(())])
@pytest.mark.parametrize("with_memory", [False, True])
def test_nothing_in_gives_nothing(model, nothing, with_memory):
    assert list(ml.stream(model, nothing, model.init_memory(1) if with_memory else None)) == []


@pytest.mark.parametrize("kind", ml.memory.INITIALISATIONS)
@pytest.mark.parametrize("batch", [1, 2])
def test_without_a_memory_it_starts_where_the_model_does(tiny, kind, batch):
    model, ids = tiny(memory_init=kind), texts(10, batch)
    torch.manual_seed(5)
    out = model(ids)
    torch.manual_seed(5)
    segments = list(ml.stream(model, columns(ids)))
    assert_equals_one_call(segments, out, ids)
    assert not any(x.requires_grad for s in segments for x in s[:4])


def test_the_memory_that_was_passed_in_is_left_alone(model):
    memory = model.init_memory(1)
    before = memory.clone()
    list(ml.stream(model, [1, 2, 3, 4, 5], memory))
    assert torch.equal(memory, before)


def test_half_precision(tiny):
    model = tiny(torch.bfloat16)
    ids, memory = texts(9), model.init_memory(1)
    segments = list(ml.stream(model, columns(ids), memory))
    assert segments[-1].memory.dtype == torch.bfloat16
    assert_equals_one_call(segments, model(ids, memory=memory), ids)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_reads_in_the_mode_that_it_is_in(tiny, training):
    model = tiny(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train(training)
    ids, memory = texts(10), model.init_memory(1)
    torch.manual_seed(3)
    out = model(ids, memory=memory)
    torch.manual_seed(3)
    assert_equals_one_call(list(ml.stream(model, columns(ids), memory)), out, ids)
    again = list(ml.stream(model, columns(ids), memory))
    assert torch.equal(again[-1].memory, out.memory) != training and model.training == training


def test_the_loss_of_a_streamed_text_is_that_of_forward(model):
    ids, memory = texts(23), model.init_memory(1)
    total, count, last = 0.0, 0, None
    for segment in ml.stream(model, columns(ids), memory):
        before = segment.logits[:, :-1] if last is None else torch.cat([last, segment.logits[:, :-1]], dim=1)
        asked = segment.input_ids[:, 1:] if last is None else segment.input_ids
        total += F.cross_entropy(before[0], asked[0], reduction="sum").item()
        count += asked.numel()
        last = segment.logits[:, -1:]
    assert total / count == pytest.approx(model(ids, memory=memory, labels=ids).loss.item(), rel=1e-6)


def test_generation_goes_on_from_a_streamed_memory(model):
    ids, memory = texts(12), model.init_memory(1)
    prompt, full = texts(3), ids
    *_, last = ml.stream(model, columns(ids), memory)
    text = model.generate(prompt, memory=last.memory, max_new_tokens=10, do_sample=False)
    full = torch.cat([ids, prompt], dim=1)
    for _ in range(10):  # 12 is a multiple of the segment length: the prompt begins a segment here as there
        full = torch.cat([full, model(full, memory=memory).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(text, full[:, 12:])


# ---- no token too early, and nothing kept ----


@pytest.mark.parametrize("skip", [0, 4, 8])
def test_no_token_is_read_before_its_segment(model, skip):
    tokens = Counted(columns(texts(15)))
    reading = ml.stream(model, tokens, model.init_memory(1), skip=skip)
    assert tokens.pulls == 0
    for segments, _ in enumerate(itertools.islice(reading, (15 - skip) // 4), start=1):
        assert tokens.pulls == skip + 4 * segments
    assert next(reading).input_ids.shape == (1, 3)
    assert list(reading) == []


def test_an_endless_text_can_be_read(model):
    segments = list(itertools.islice(ml.stream(model, itertools.cycle([3, 1, 4, 1, 5])), 50))
    assert len(segments) == 50 and segments[-1].tokens_read == 200


def test_an_iterator_that_fails_leaves_what_was_read_good(model):
    ids, memory = texts(12), model.init_memory(1)
    out, read = model(ids, memory=memory, output_hidden_states=True), []
    reading = ml.stream(model, Counted(columns(ids), fails_at=10), memory)
    with pytest.raises(ConnectionError, match=r"^the line is down$"):
        for segment in reading:
            read.append(segment)
    assert [s.tokens_read for s in read] == [4, 8] and list(reading) == []
    assert all(torch.equal(s.memory, m) for s, m in zip(read, out.memories[1:]))
    read += ml.stream(model, columns(ids), read[-1].memory, skip=read[-1].tokens_read)
    assert_equals_one_call(read, out, ids)


def live_storages():
    """The size in bytes of everything that tensors keep alive, by its place; views of one storage count once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects of other libraries warn when they are asked what they are
        storages = [thing.untyped_storage() for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def live_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_the_space_does_not_grow_with_the_text(tiny):
    model, sizes = tiny(memory_init="learned", n_layer=1), {}  # a graph from the first slots on would be kept
    for number, segment in enumerate(ml.stream(model, (i * i % 11 for i in range(4 * 2048))), start=1):
        assert segment.memory.grad_fn is segment.logits.grad_fn is segment.write_attention.grad_fn is None
        if number in (10, 500, 2048):
            sizes[number] = sum(live_storages().values())
    assert set(sizes) == {10, 500, 2048} and len(set(sizes.values())) == 1


def test_a_tensor_of_tokens_is_not_taken_apart_all_at_once(model):
    before = live_tensors()
    reading = ml.stream(model, torch.zeros(100_000, dtype=torch.long))
    next(reading)
    assert live_tensors() < before + 100


def test_gradients_are_off_inside_and_as_they_were_outside(model):
    memory = model.init_memory(1).requires_grad_()
    reading = ml.stream(model, [1, 2, 3, 4, 5], memory)
    assert torch.is_grad_enabled()
    for segment in reading:
        assert torch.is_grad_enabled() and not segment.memory.requires_grad and not segment.logits.requires_grad
    assert torch.is_grad_enabled()


# ---- many segments at once ----


def keeps_often(tiny):
    """A model some of whose segments write and some of whose do not: which, depends on what was written before."""
    model = tiny(torch.float64, num_memory_slots=2, memory_init="learned")  # rounding adds up over many segments
    with torch.no_grad():
        model.update_rule.key.weight.mul_(6)
        model.update_rule.keep.weight.mul_(0.1)
        model.update_rule.keep.bias.fill_(1.8)
    return model


@pytest.mark.parametrize("ahead", [1, 2, 7, 256])
@pytest.mark.parametrize("length", [3, 4, 161, 400])
def test_reading_ahead_leaves_the_memory_that_reading_leaves(tiny, ahead, length):
    model, ids = keeps_often(tiny), texts(length, batch=3)
    with torch.no_grad():
        memory = model(texts(8, batch=3)).memory
        out = model(ids, memory=memory, output_hidden_states=True)
    written = torch.stack([(b != a).flatten(1).any(1) for a, b in zip(out.memories, out.memories[1:])], dim=1)
    if length == 400:
        assert 0.1 < written.float().mean() < 0.9
    read = ml.read_ahead(model, ids, memory, ahead=ahead)
    assert torch.equal(read.written, written)
    torch.testing.assert_close(read.memory, out.memory)
    assert read.memory.grad_fn is None


def test_reading_ahead_starts_where_the_model_does_and_leaves_what_it_was_given(tiny):
    model, ids = keeps_often(tiny), texts(40)
    torch.testing.assert_close(ml.read_ahead(model, ids).memory, model(ids).memory)
    memory = torch.zeros(1, 2, 8, dtype=torch.float64)
    ml.read_ahead(model, ids, memory)
    assert not memory.any()


def test_segments_that_write_nothing_are_read_together(tiny):
    model, calls = tiny(), []
    with torch.no_grad():
        model.update_rule.keep.weight.zero_()
        model.update_rule.keep.bias.fill_(1e4)  # every slot keeps, whatever comes
    model.register_forward_hook(lambda *_: calls.append(1))
    read = ml.read_ahead(model, texts(4 * 1000))
    assert not read.written.any() and len(calls) < 20


def test_a_rule_that_changes_all_a_little_is_read_rightly_too(tiny):
    model, ids = tiny(update_rule="gated"), texts(50)
    read = ml.read_ahead(model, ids, torch.zeros(1, 3, 8))
    assert read.written.all()
    torch.testing.assert_close(read.memory, model(ids, memory=torch.zeros(1, 3, 8)).memory)


def test_reading_ahead_refuses_what_it_cannot_do(model):
    with pytest.raises(ValueError, match="ahead must be at least 1"):
        ml.read_ahead(model, texts(8), ahead=0)
    with pytest.raises(ValueError, match="vocabulary"):
        ml.read_ahead(model, torch.full((1, 8), 11))
    with pytest.raises(ValueError, match="memory must have shape"):
        ml.read_ahead(model, texts(8), torch.zeros(1, 9, 8))
    with pytest.raises(ValueError, match="two dimensions"):
        ml.read_ahead(model, texts(8)[0])


# ---- interrupted and resumed ----


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [8, 23])
def test_a_reading_interrupted_at_every_segment_gives_the_same_bits(model, tmp_path, batch, length):
    file, ids, memory = tmp_path / "reading.safetensors", texts(length, batch), model.init_memory(batch)
    out, read = model(ids, memory=memory, output_hidden_states=True), []
    ml.save_memory(file, memory, model, tokens_read=0)
    while True:
        saved = ml.load_memory(file, model)
        reading = ml.stream(model, iter(columns(ids)), saved.memory, skip=saved.notes["tokens_read"])
        segment = next(reading, None)
        if segment is None:
            break
        ml.save_memory(file, segment.memory, model, tokens_read=segment.tokens_read)
        read.append(segment)
    assert_equals_one_call(read, out, ids)
    assert read[-1].tokens_read == length


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_reading_resumed_by_another_process_gives_the_same_bits(tiny, tmp_path, stop):
    ids, model = texts(23), tiny()
    whole = list(ml.stream(model, columns(ids), model.init_memory(1, generator=torch.Generator().manual_seed(1))))
    ml.save_memory(tmp_path / "m", whole[stop - 1].memory, model, tokens_read=whole[stop - 1].tokens_read)
    model = tiny()  # the same parameters, built anew
    saved = ml.load_memory(tmp_path / "m", model)
    rest = list(ml.stream(model, columns(ids), saved.memory, skip=saved.notes["tokens_read"]))
    assert len(rest) == len(whole) - stop
    for one, other in zip(rest, whole[stop:]):
        assert one.tokens_read == other.tokens_read and all(torch.equal(a, b) for a, b in zip(one[:4], other[:4]))


def test_after_a_partial_segment_what_follows_begins_a_new_one(model):
    ids, memory = texts(15), model.init_memory(1)
    *_, last = ml.stream(model, columns(ids[:, :6]), memory)  # the text went on later
    rest = list(ml.stream(model, columns(ids), last.memory, skip=last.tokens_read))
    assert last.tokens_read == 6 and [s.tokens_read for s in rest] == [10, 14, 15]
    out = model(ids[:, 6:], memory=model(ids[:, :6], memory=memory).memory)
    assert_equals_one_call(rest, out, ids[:, 6:])
    assert not torch.equal(rest[-1].memory, model(ids, memory=memory).memory)  # not as if it had been one text


def test_all_of_a_text_may_have_been_read(model):
    assert list(ml.stream(model, [1, 2, 3, 4, 5], model.init_memory(1), skip=5)) == []


def test_more_than_the_text_cannot_have_been_read(model):
    with pytest.raises(ValueError, match=r"skip=6 tokens were read before, but there are 5: pass the same text, from its begin"):
        next(ml.stream(model, iter([1, 2, 3, 4, 5]), model.init_memory(1), skip=6))


@pytest.mark.parametrize(("skip", "with_memory"), [(4, False), (-1, False), (-4, True)])
def test_a_wrong_skip_is_refused_at_once(model, skip, with_memory):
    tokens = Counted([1, 2, 3])
    with pytest.raises(ValueError, match=rf"skip={skip} tokens were read before: pass the memory that they left, and a number"):
        ml.stream(model, tokens, model.init_memory(1) if with_memory else None, skip=skip)
    assert tokens.pulls == 0


# ---- errors that say where ----


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (
            [1, 2, 3, 4, 5, 11, 7],
            ValueError,
            r"^in tokens 4 to 6: input_ids holds token numbers from 5 to 11, but the vocabulary",
        ),
        ([-1], ValueError, r"^in tokens 0 to 0: input_ids holds token numbers from -1 to -1"),
        ([1, 2, 3, 4.5], TypeError, r"^in tokens 0 to 3: input_ids must be a tensor of whole numbers"),
        (["a", "b"], TypeError, r"^in tokens 0 to 1: .*'str'"),
        (
            [[1, 2]] * 4 + [[3, 4], [3]],
            ValueError,
            r"^in tokens 4 to 5: the number of texts differs between positions: shapes \[\(2,\), \(1,\)\]",
        ),
        ([1] * 4 + [[3, 4]], ValueError, r"^in tokens 4 to 4: memory must have shape .* = \(2, 3, 8\), not \(1, 3, 8\)"),
        ([[[1, 2]], [[3, 4]]], ValueError, r"^in tokens 0 to 1: input_ids must have two dimensions, .* not shape \(1, 2, 2\)"),
        (torch.zeros(1, 0, dtype=torch.long), ValueError, r"^in tokens 0 to 0: input_ids is empty"),
    ],
)
def test_tokens_that_are_none_are_refused_with_their_place(model, tokens, error, message):
    read = []
    with pytest.raises(error, match=message):
        for segment in ml.stream(model, tokens):
            read.append(segment.tokens_read)
    assert read == ([4] if " 4 to " in message else [])  # what came before was yielded


def test_places_are_counted_from_the_beginning_of_the_text(model):
    with pytest.raises(ValueError, match=r"^in tokens 8 to 9: input_ids holds"):
        list(ml.stream(model, [1] * 9 + [99], model.init_memory(1), skip=4))


@pytest.mark.parametrize(
    ("memory", "error", "message"),
    [
        (torch.zeros(1, 3, 9), ValueError, r"memory must have shape .* = \(1, 3, 8\), not \(1, 3, 9\)"),
        (torch.zeros(2, 3, 8), ValueError, r"memory must have shape .* = \(1, 3, 8\), not \(2, 3, 8\)"),
        (np.zeros((1, 3, 8)), TypeError, "memory must be a tensor of shape"),
        (torch.zeros(1, 3, 8, dtype=torch.long), TypeError, "memory must hold floating-point numbers"),
    ],
)
def test_a_wrong_memory_is_refused(model, memory, error, message):
    with pytest.raises(error, match=message):
        next(ml.stream(model, [1, 2], memory))


@pytest.mark.parametrize("thing", [None, 5])
def test_what_cannot_be_iterated_is_refused_at_once(model, thing):
    with pytest.raises(TypeError, match="not iterable"):
        ml.stream(model, thing)


# ---- a memory's file ----


@pytest.fixture
def file(tmp_path, model):
    """A good file, and the only one in its folder."""
    path = tmp_path / "folder" / "memory.safetensors"
    ml.save_memory(path, model.init_memory(2), model, tokens_read=40, title="Emma")
    return path


def assert_no_memory(path, model, error, message):
    for read in (ml.inspect_memory, lambda path: ml.load_memory(path, model)):
        with pytest.raises(error, match=message):
            read(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_memory_comes_back_as_it_was(tiny, tmp_path, dtype, batch, as_text):
    model, path = tiny(dtype), tmp_path / "not" / "yet" / "there.safetensors"
    path = str(path) if as_text else path
    memory = model.init_memory(batch)
    before = memory.clone()
    assert ml.save_memory(path, memory, model) is None
    saved = ml.load_memory(path, model)
    assert saved.memory.dtype == dtype and saved.memory.device == model.device and saved.notes == {}
    assert torch.equal(saved.memory, before) and torch.equal(memory, before)
    assert ml.inspect_memory(path) == {
        "shape": (batch, 3, 8), "dtype": dtype, "model": storage.digest(dict(model.named_parameters())), "notes": {},
    }  # fmt: skip


@pytest.mark.parametrize("width", [0.0, 1e-45, 3e38, -0.0])
def test_odd_numbers_come_back_bit_for_bit(model, tmp_path, width):
    memory = torch.full((1, 3, 8), width)
    ml.save_memory(tmp_path / "m", memory, model)
    assert torch.equal(ml.load_memory(tmp_path / "m", model).memory.view(torch.int32), memory.view(torch.int32))


@pytest.mark.parametrize(
    "view", [lambda x: x[1:3], lambda x: x[::2], lambda x: x[:1].expand(4, -1, -1), lambda x: x.mT.clone().mT]
)
def test_a_part_of_a_memory_is_saved_alone(model, tmp_path, view):
    memory = view(model.init_memory(5))
    ml.save_memory(tmp_path / "m", memory, model)
    assert torch.equal(ml.load_memory(tmp_path / "m", model).memory, memory)
    assert (tmp_path / "m").stat().st_size < 900 + 4 * memory.numel()


def test_a_memory_with_a_gradient_is_saved_without(tiny, tmp_path):
    model = tiny(memory_init="learned")
    out = model(texts(9))
    assert out.memory.requires_grad
    for memory in (out.memory, model.init_memory(2)):
        ml.save_memory(tmp_path / "m", memory, model)
        loaded = ml.load_memory(tmp_path / "m", model).memory
        assert torch.equal(loaded, memory) and not loaded.requires_grad


def test_the_file_is_plain_safetensors(file, model):
    assert torch.equal(load_file(file)["memory"], ml.load_memory(file, model).memory)
    assert list(load_file(file)) == ["memory"] and list(file.parent.iterdir()) == [file]


NOTES = {
    "tokens_read": 2**60, "loss": 0.1 + 0.2, "title": "紅樓夢 \"\\ \n\x00 😀", "done": True, "nothing": None, "list": [1, [2.5, "a"]],
    "nested": {"a": {"b": []}}, "small": 5e-324, "infinite": float("inf"), "empty": "", "format": "mine", "sha256": "0", "notes": "n",
}  # fmt: skip


def test_notes_come_back_as_they_were(model, tmp_path):
    ml.save_memory(tmp_path / "m", model.init_memory(1), model, **NOTES)
    assert ml.load_memory(tmp_path / "m", model).notes == ml.inspect_memory(tmp_path / "m")["notes"] == NOTES


def test_a_tuple_comes_back_as_a_list(model, tmp_path):
    ml.save_memory(tmp_path / "m", model.init_memory(1), model, shape=(2, 3))
    assert ml.load_memory(tmp_path / "m", model).notes == {"shape": [2, 3]}


circle = []
circle.append(circle)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (torch.ones(2), "Tensor"), (np.int64(3), "int64"), ({1, 2}, "set"), (b"raw", "bytes"), ({"a": [object()]}, "object"),
        ({(1, 2): 3}, "keys must be str"), (circle, "Circular"),
    ],
)  # fmt: skip
def test_notes_that_are_not_json_are_refused_before_anything_is_written(file, model, note, message):
    good = file.read_bytes()
    for path in (file, file.parent / "new" / "m"):
        with pytest.raises(TypeError, match=rf"notes may hold what JSON can, numbers, texts, lists .*: .*{message}"):
            ml.save_memory(path, model.init_memory(1), model, note=note)
    assert file.read_bytes() == good and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("memory", "error", "message"),
    [
        (torch.zeros(1, 4, 8), ValueError, r"must have shape \(batch, slots, width\) = \(1, 3, 8\), not \(1, 4, 8\)"),
        (torch.zeros(2, 3, 9), ValueError, r"= \(2, 3, 8\), not \(2, 3, 9\)"),
        (torch.zeros(3, 8), ValueError, r"not \(3, 8\)"),
        (torch.tensor(1.0), ValueError, r"not \(\)"),
        (torch.zeros(1, 3, 8, dtype=torch.long), TypeError, "must hold floating-point numbers, not torch.int64"),
        (np.zeros((1, 3, 8)), TypeError, "must be a tensor of shape .* not ndarray"),
        (None, TypeError, "must be a tensor of shape .* not NoneType"),
        (
            torch.zeros(1, 3, 8).index_fill(1, torch.tensor(2), float("nan")),
            FloatingPointError,
            "NaN or infinity is in the memory",
        ),
        (torch.zeros(1, 3, 8).index_fill(2, torch.tensor(7), -float("inf")), FloatingPointError, "m.* was left as it was"),
    ],
)
def test_what_is_no_memory_of_the_model_is_not_saved(file, model, memory, error, message):
    good = file.read_bytes()
    for path in (file, file.parent / "new" / "m"):
        with pytest.raises(error, match=message):
            ml.save_memory(path, memory, model)
    assert file.read_bytes() == good and list(file.parent.iterdir()) == [file]


def test_the_output_in_place_of_its_memory_is_not_saved(file, model):
    with pytest.raises(TypeError, match=r"must be a tensor of shape .* not MemGPTOutput"):
        ml.save_memory(file, model(texts(3)), model)


def test_a_newer_memory_takes_the_place_of_the_old(file, model):
    memory = model.init_memory(5)
    ml.save_memory(file, memory, model, tokens_read=80)
    assert torch.equal(ml.load_memory(file, model).memory, memory) and ml.inspect_memory(file)["notes"] == {"tokens_read": 80}
    assert list(file.parent.iterdir()) == [file]


def test_a_write_that_fails_keeps_the_old_memory(file, model, monkeypatch):
    good, memory = file.read_bytes(), ml.load_memory(file, model).memory

    def full(tensors, path, **options):
        path.write_bytes(good[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        ml.save_memory(file, model.init_memory(2), model)
    assert file.read_bytes() == good and list(file.parent.iterdir()) == [file]
    assert torch.equal(ml.load_memory(file, model).memory, memory)


# ---- of another model ----


@pytest.mark.parametrize("name", ["transformer.wte.weight", "ln_memory.bias", "update_rule.keep.bias"])
def test_a_memory_is_refused_once_its_model_has_changed(file, model, name):
    with torch.no_grad():
        parameter = model.get_parameter(name).view(-1)
        parameter[-1] = torch.nextafter(parameter[-1], torch.tensor(9.0))
    with pytest.raises(ValueError, match=r"memory\.safetensors was written by a model with other parameters"):
        ml.load_memory(file, model)
    assert ml.inspect_memory(file)["shape"] == (2, 3, 8)


@pytest.mark.parametrize("options", [{"seed": 1}, {"n_layer": 3}, {"update_rule": "gated"}, {"dtype": torch.float64}])
def test_a_memory_of_another_model_is_refused(file, tiny, options):
    with pytest.raises(ValueError, match="was written by a model with other parameters"):
        ml.load_memory(file, tiny(**options))


def test_a_memory_of_other_slots_is_refused(file, tiny):
    with pytest.raises(ValueError, match=r"memory must have shape .* = \(2, 5, 8\), not \(2, 3, 8\)"):  # same parameters
        ml.load_memory(file, tiny(num_memory_slots=5))


def test_a_memory_fits_its_model_in_training_mode_frozen_or_copied(file, model, tiny):
    memory = ml.load_memory(file, model).memory
    for same in (model.train(), model.requires_grad_(False), tiny()):
        assert torch.equal(ml.load_memory(file, same).memory, memory)


# ---- damaged, or something else ----

REFUSED = r"take an earlier copy|is a safetensors file, but no memgpt_lite memory, version 1"


def test_a_flipped_bit_in_any_byte_is_noticed(file, model):
    data = file.read_bytes()
    for place in range(len(data)):
        for bit, read in ((place % 8, ml.inspect_memory), ((place + 3) % 8, lambda path: ml.load_memory(path, model))):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=REFUSED):
                read(file)


def test_damage_to_several_bytes_is_noticed(file):
    data, random = file.read_bytes(), np.random.default_rng(0)
    for _ in range(500):
        damaged, start = bytearray(data), random.integers(len(data))
        length = random.integers(1, 40)
        damaged[start : start + length] = random.bytes(length)[: len(data) - start]
        if damaged != data:
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=REFUSED):
                ml.inspect_memory(file)


def test_every_cut_is_noticed(file, model):
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        assert_no_memory(file, model, ValueError, r"memory\.safetensors is not a whole safetensors file .*: take an earlier copy")
    file.write_bytes(data + b"\0")
    assert_no_memory(file, model, ValueError, REFUSED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"shape":[2,3,8]', b'"shape":[2,8,3]'),  # as many numbers, another memory
        (b'"shape":[2,3,8]', b'"shape":[6,1,8]'),
        (b'"dtype":"F32"', b'"dtype":"I32"'),
        (b": 40", b": 44"),
        (b"Emma", b"Anna"),
        (b"version 1", b"version 2"),
        (b'"sha256"', b'"sha257"'),
        (b'"memory":{', b'"memorY":{'),
        (b"tokens_read", b"tokens_reed"),
    ],
)
def test_a_changed_header_is_noticed(file, model, old, new):
    data = file.read_bytes()
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))
    assert_no_memory(file, model, ValueError, REFUSED)


def test_the_checksum_of_another_memory_does_not_fit(file, model):
    data = file.read_bytes()
    ml.save_memory(file, model.init_memory(2), model, tokens_read=40, title="Emma")
    other = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(data[:header] + other[header:])
    assert_no_memory(file, model, ValueError, "is damaged, its checksum does not match: take an earlier copy")


def test_a_missing_file_and_a_folder(tmp_path, model):
    assert_no_memory(tmp_path / "none", model, FileNotFoundError, "there is no file .*none")
    assert_no_memory(str(tmp_path / "none"), model, FileNotFoundError, "there is no file .*none")
    assert_no_memory(tmp_path, model, IsADirectoryError, "is a folder: name a file in it")
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        ml.save_memory(tmp_path, model.init_memory(1), model)
    assert not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob("*.writing"))


def test_other_files_are_no_memories(file, model):
    no_memory = r"is a safetensors file, but no memgpt_lite memory, version 1"
    save_file({"memory": torch.zeros(1, 3, 8)}, file)
    assert_no_memory(file, model, ValueError, no_memory + r" \(its format: None\)")
    save_file({"memory": torch.zeros(1, 3, 8)}, file, metadata={"format": "pt"})
    assert_no_memory(file, model, ValueError, no_memory + r" \(its format: 'pt'\)")
    storage.write(file, {"memory": torch.zeros(1, 3, 8)}, {"format": "memgpt_lite training checkpoint, version 1"})
    assert_no_memory(file, model, ValueError, no_memory)
    model.save_pretrained(file.parent)
    assert_no_memory(file.parent / "model.safetensors", model, ValueError, no_memory)
    whole = "is not a whole safetensors file"
    torch.save({"memory": torch.zeros(1, 3, 8)}, file)
    assert_no_memory(file, model, ValueError, whole)
    for content in (b"", b"Dear diary, " * 100, b"\0" * 500, b"\xff" * 500):
        file.write_bytes(content)
        assert_no_memory(file, model, ValueError, whole)
