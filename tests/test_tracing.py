import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import memgpt_lite as ml
from memgpt_lite import storage
from memgpt_lite.memory import MemoryUpdate

LENGTHS = [1, 3, 4, 5, 8, 11]  # segments have 4 tokens
RULES = ["keep", "keep_softmax", "gated", "erase_add", "delta", "fifo"]
HOSTILE = [
    "", " ", "\0", "a\0b", "\n\r\t", "</script><img onerror=alert(1)>", "\"'`\\", "שלום", "\u202eabc\u202c", "👩‍👧‍👦", "\ud800", "\u2028",
    "é", "e\u0301", "－1", "null", "{}", "x" * 10_000, "\x1b[31m", "\ufeff",
]  # fmt: skip


@pytest.fixture
def model(tiny):
    return tiny()


def text(length, vocabulary=11):
    return torch.randint(0, vocabulary, (1, length))


def assert_close(ours, theirs, atol=1e-6, rtol=1e-6):
    """Both finite, of the same shape and nearly equal."""
    theirs = theirs.detach().double().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape and np.isfinite(ours).all()
    np.testing.assert_allclose(ours.astype(np.float64), theirs, atol=atol, rtol=rtol)


def assert_close_in_half(ours, theirs):
    assert ours.dtype == np.float16
    assert_close(ours, theirs, atol=1e-7, rtol=1e-3)


def assert_same(one, other):
    """Two traces that are equal in every field, types included."""
    for field in dataclasses.fields(ml.MemoryTrace):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert type(a) is type(b), field.name
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), field.name
        else:
            assert a == b, field.name


def full_tables(writes):
    """Straight from the recurrence P ← [keep · P, a]: for each moment (M, 1 + tokens so far), in double precision."""
    slots = writes[0].size(0)
    table = np.ones((slots, 1))
    tables = [table]
    for write in writes:
        rows = []
        for slot in range(slots):
            keep, *taken = write[slot].tolist()
            rows.append([keep * share for share in table[slot]] + taken)
        table = np.array(rows)
        tables.append(table)
    return tables


def assert_strongest(trace, tables, keep, atol=1e-6):
    """The recorded sources are the strongest of the full tables, initial and rest what else there is."""
    assert len(tables) == len(trace.source_tokens)
    for after, table in enumerate(tables):
        assert trace.source_tokens.shape[2] == trace.source_shares.shape[2] == keep
        for slot, (initial, *shares) in enumerate(table):
            tokens, recorded = trace.source_tokens[after, slot], trace.source_shares[after, slot]
            strongest = sorted(shares, reverse=True)[:keep]
            assert_close(recorded[: len(strongest)], strongest, atol)
            assert (recorded[len(strongest) :] == 0).all()
            assert ((tokens == -1) == (recorded == 0)).all() and list(recorded) == sorted(recorded, reverse=True)
            found = tokens[tokens >= 0]
            assert len(set(found.tolist())) == len(found)
            assert_close(recorded[: len(found)], np.array(shares)[found] if len(found) else np.zeros(0), atol)
            assert trace.initial_share[after, slot] == pytest.approx(initial, abs=atol, rel=1e-6)
            assert trace.rest_share[after, slot] == pytest.approx(sum(shares) - sum(strongest), abs=atol, rel=1e-6)


class Prescribed(nn.Module):
    """An update rule that writes what it is told: for each segment the memory (M, D) and the write attention (M, 1 + l)."""

    values_mix = True

    def __init__(self, updates):
        super().__init__()
        self.updates = iter(updates)

    def forward(self, memory, context_vectors, mask=None):
        after, attention = next(self.updates)
        return MemoryUpdate(memory if after is None else after[None].to(memory), attention[None])


# ---- every array, against a plain reading ----


def test_padding_behind_a_part_is_not_written(model):
    ids, mask = text(11), torch.tensor([[1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0]])
    memory = model.init_memory(1)
    trace = ml.trace(model, ids, attention_mask=mask[0], memory=memory, labels=ids)
    with torch.no_grad():
        out = model(ids, memory=memory, attention_mask=mask, output_hidden_states=True)
    assert_close_in_half(trace.memory, torch.cat(out.memories))
    assert_close(
        trace.gradient, ml.memory_gradients(model, ids, ids, memory, attention_mask=mask)[:, 0].norm(dim=-1), atol=1e-6, rtol=1e-5
    )
    padding = np.flatnonzero(mask[0].numpy() == 0)
    assert not np.isin(trace.source_tokens, padding).any() and (trace.write_attention[1, :, 2:] == 0).all()
    assert_same(ml.trace(model, ids, memory=memory), ml.trace(model, ids, memory=memory, attention_mask=torch.ones(11)))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rule", RULES)
def test_a_trace_is_what_a_plain_reading_gives(tiny, rule, length):
    model = tiny(update_rule=rule, read_layers=[1] if length % 2 else None)
    ids, memory = text(length), model.init_memory(1)
    trace = ml.trace(model, ids, memory=memory)
    with torch.no_grad():
        out = model(ids, memory=memory, output_hidden_states=True)
    segments = -(-length // 4)
    assert trace.segment_length == 4 and trace.read_layers == ([1] if length % 2 else [0, 1])
    assert trace.values_mix is (rule in ("keep", "keep_softmax")) and trace.gradient is None
    assert trace.tokens == [str(int(i)) for i in ids[0]]
    assert_close_in_half(trace.memory, torch.cat(out.memories))
    assert_close_in_half(trace.read_attention, torch.cat(out.read_attentions))
    assert trace.write_attention.shape == (segments, 3, 5)
    for s, write in enumerate(out.write_attentions):
        assert_close_in_half(trace.write_attention[s, :, : write.size(2)], write[0])
        assert (trace.write_attention[s, :, write.size(2) :] == 0).all()
    moved = [[float((b[0, j] - a[0, j]).norm()) for j in range(3)] for a, b in itertools.pairwise(out.memories)]
    assert trace.moved.dtype == np.float32
    assert_close(trace.moved, moved, atol=1e-6, rtol=1e-5)
    assert_strongest(trace, full_tables([write[0].double() for write in out.write_attentions]), keep=8)
    assert trace.source_tokens.dtype == np.int32
    assert {x.dtype for x in (trace.source_shares, trace.initial_share, trace.rest_share)} == {np.dtype(np.float32)}

    probabilities = out.logits[0].softmax(-1)
    assert trace.next_tokens.dtype == np.int32 and trace.next_tokens.shape == trace.next_probabilities.shape == (length, 5)
    for t, row in enumerate(probabilities):
        likeliest = sorted(range(11), key=lambda v: -float(row[v]))[:5]
        assert trace.next_tokens[t].tolist() == likeliest
        assert_close_in_half(trace.next_probabilities[t], row[likeliest])
    assert_close(trace.entropy, [-sum(float(p * p.log()) for p in row) for row in probabilities], atol=1e-5)
    assert trace.entropy.dtype == np.float32
    assert trace.next_words == {number: str(number) for number in {int(n) for n in trace.next_tokens.flat}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_precision(tiny, dtype):
    model, ids = tiny(dtype), text(11)
    memory = model.init_memory(1)
    trace = ml.trace(model, ids, memory=memory, labels=ids)
    with torch.no_grad():
        out = model(ids, memory=memory, output_hidden_states=True)
    assert_close_in_half(trace.memory, torch.cat(out.memories))
    assert_close(trace.entropy, torch.distributions.Categorical(logits=out.logits[0].float()).entropy(), atol=1e-5)
    assert_strongest(trace, full_tables([write[0].double() for write in out.write_attentions]), keep=8)
    gradients = ml.memory_gradients(model, ids, ids, memory, memory_replay=True)
    assert_close(trace.gradient, gradients[:, 0].double().square().sum(-1).sqrt())
    assert trace.gradient.dtype == np.float32


@pytest.mark.parametrize("vocabulary", [1, 3, 5, 6])
def test_a_small_vocabulary_has_fewer_next_tokens(tiny, vocabulary):
    trace = ml.trace(tiny(vocab_size=vocabulary), text(6, vocabulary))
    assert trace.next_tokens.shape == trace.next_probabilities.shape == (6, min(5, vocabulary))
    if vocabulary <= 5:
        assert_close(trace.next_probabilities.astype(float).sum(1), np.ones(6), atol=3e-3)
        assert (np.sort(trace.next_tokens, axis=1) == np.arange(vocabulary)).all()


def test_one_text_may_come_with_or_without_a_batch_dimension(model):
    ids, memory = text(9), model.init_memory(1)
    one, other = (ml.trace(model, x, memory=memory, labels=x) for x in (ids, ids[0]))
    assert_same(one, other)
    assert_same(one, ml.trace(model, ids.int(), memory=memory, labels=ids))


@pytest.mark.parametrize("kind", ml.memory.INITIALISATIONS)
def test_without_a_memory_it_starts_where_the_model_does(tiny, kind):
    model, ids = tiny(memory_init=kind), text(6)
    torch.manual_seed(5)
    memory = model.init_memory(1)
    torch.manual_seed(5)
    assert_same(ml.trace(model, ids), ml.trace(model, ids, memory=memory))


def test_the_text_is_read_a_segment_at_a_time(model):
    lengths = []
    model.register_forward_pre_hook(lambda _, args, kwargs: lengths.append(args[0].size(1)), with_kwargs=True)
    ml.trace(model, text(11))
    assert lengths == [4, 4, 3]


def test_numbers_beyond_half_precision_are_cut_off(model):
    far = torch.tensor([[1e6], [-1e6], [3.0]]).expand(3, 8)
    model.update_rule = Prescribed([(far, torch.eye(3, 5))])
    trace = ml.trace(model, text(4))
    assert trace.memory[1, :, 0].tolist() == [65504, -65504, 3]
    assert trace.moved[0, 0] == pytest.approx(1e6 * 8**0.5, rel=1e-4)


# ---- moved ----


def test_a_slot_that_is_left_alone_moves_by_exactly_nothing(recall):
    task = ml.tasks.AssociativeRecall(num_segments=8)
    ids = task.batch(1, torch.Generator().manual_seed(0)).input_ids
    trace = ml.trace(recall, ids)
    with torch.no_grad():
        memories = recall(ids, output_hidden_states=True).memories
    same = np.array([[torch.equal(a[0, j], b[0, j]) for j in range(16)] for a, b in itertools.pairwise(memories)])
    assert 0 < same.sum() < same.size
    assert ((trace.moved == 0) == same).all()


@pytest.mark.parametrize(("dtype", "by"), [(torch.float32, 1e-3), (torch.float32, 1e-44), (torch.float64, 1e-200)])
def test_a_slot_that_moves_ever_so_little_has_moved(tiny, dtype, by):
    model = tiny(dtype)
    step = torch.zeros(3, 8, dtype=dtype)
    step[1, 2] = by  # its square may be 0, and so may it itself in single precision
    model.update_rule = Prescribed([(step, torch.eye(3, 5, dtype=dtype))])
    trace = ml.trace(model, text(4), memory=torch.zeros(1, 3, 8))
    assert trace.moved[0, 1] == pytest.approx(max(by, 1.1754944e-38), rel=0.03, abs=0)  # single precision's least normal number
    assert (trace.moved[0, [0, 2]] == 0).all()


# ---- provenance ----


@given(
    st.integers(1, 20), st.integers(1, 24), st.integers(0, 10**6), st.sampled_from(["keep", "keep_softmax"]), st.integers(1, 5)
)
def test_the_strongest_tokens_are_those_of_the_full_table(tiny, length, keep, seed, rule, segment_length):
    model = tiny(torch.float64, seed, update_rule=rule, segment_length=segment_length)
    ids = torch.randint(0, 11, (length,), generator=torch.Generator().manual_seed(seed))
    memory = model.init_memory(1, generator=torch.Generator().manual_seed(seed))
    trace = ml.trace(model, ids, memory=memory, keep=keep)
    with torch.no_grad():
        writes = model(ids[None], memory=memory).write_attentions
    tables = [ml.provenance(writes[:s])[0].numpy() for s in range(1, len(writes) + 1)]
    assert_strongest(trace, [np.ones((3, 1)), *tables], keep, atol=1e-6)
    total = trace.initial_share + trace.source_shares.sum(-1) + trace.rest_share
    assert_close(total, np.ones_like(total))


rows = st.lists(st.integers(0, 3), min_size=5, max_size=5).filter(any)  # with zeros, ties, all kept and nothing kept
many_writes = st.lists(st.lists(rows, min_size=3, max_size=3), min_size=1, max_size=7)


@given(many_writes, st.integers(1, 12), st.integers(1, 4))
def test_ties_zeros_and_wholes(tiny, writes, keep, last):
    writes = [torch.tensor(write, dtype=torch.float64) for write in writes]  # S times (M, 1 + L)
    writes[-1] = writes[-1][:, : 1 + last]  # a short segment
    writes[-1][:, 0] += writes[-1].sum(-1) == 0  # that keeps all where nothing is left
    writes = [write / write.sum(-1, keepdim=True) for write in writes]
    model = tiny(torch.float64)
    model.update_rule = Prescribed((None, write) for write in writes)
    trace = ml.trace(model, text(4 * len(writes) - 4 + last), keep=keep)
    assert_strongest(trace, full_tables(writes), keep)


def test_of_equally_strong_tokens_the_older_comes_first(model):
    first, second = torch.zeros(3, 5), torch.zeros(3, 5)
    first[:, 1:], second[:, 0], second[:, 2:4] = 0.25, 0.5, 0.25
    model.update_rule = Prescribed([(None, first), (None, second), (None, torch.tensor([[0.5, 0.5]] * 3))])
    trace = ml.trace(model, text(9), keep=8)
    assert trace.source_tokens[1, 0].tolist() == [0, 1, 2, 3, -1, -1, -1, -1]
    assert trace.source_tokens[2, 0].tolist() == [5, 6, 0, 1, 2, 3, -1, -1]
    assert trace.source_tokens[3, 0].tolist() == [8, 5, 6, 0, 1, 2, 3, -1]
    assert trace.held(0) == list(zip([8, 5, 6, 0, 1, 2, 3], [0.5, 0.125, 0.125, *[0.0625] * 4]))


@pytest.mark.parametrize("rule", ["keep", "keep_softmax"])
def test_slots_are_the_mixture_that_their_sources_say(tiny, rule):
    model, ids, values = tiny(torch.float64, update_rule=rule), text(14), []
    model.update_rule.value.register_forward_hook(lambda *x: values.append(x[2][0]))
    memory = model.init_memory(1)
    trace = ml.trace(model, ids, memory=memory, keep=14)
    values = torch.cat(values).numpy()  # (T, D)
    for after in range(5):
        for slot in range(3):
            mixture = trace.initial_share[after, slot] * memory[0, slot].numpy()
            mixture = mixture + sum(share * values[token] for token, share in trace.held(slot, after))
            assert_close_in_half(trace.memory[after, slot], mixture)


def test_sources_that_have_faded_to_nothing_are_not_named(model):
    fading = torch.zeros(3, 5)
    fading[:, 0], fading[:, 1] = 1e-8, 1 - 1e-8
    model.update_rule = Prescribed([(None, fading)] * 8)
    trace = ml.trace(model, text(32))
    assert trace.held(0)[0] == (28, 1.0) and len(trace.held(0)) == 6  # 1e-40 can still be written in single precision
    assert trace.initial_share[8, 0] == 0


# ---- gradient ----


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("asked", ["all", "some"])
def test_the_gradient_is_that_of_the_loss_at_every_slot(model, length, asked):
    ids, memory = text(length), model.init_memory(1)
    labels = ids.clone() if asked == "all" else ids.masked_fill(torch.rand(1, length) < 0.7, -100)
    trace = ml.trace(model, ids, memory=memory, labels=labels)
    gradients = ml.memory_gradients(model, ids, labels, memory)
    assert_close(trace.gradient, gradients[:, 0].square().sum(-1).sqrt(), atol=1e-7, rtol=1e-4)
    assert (trace.gradient[-1] == 0).all() and ((trace.gradient[0] > 0).all() or asked == "some" or length == 1)
    without = ml.trace(model, ids, memory=memory)
    assert without.gradient is None
    assert_same(without, dataclasses.replace(trace, gradient=None))


# ---- the model is left as it was ----


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_reads_without_dropout_and_goes_back_to_its_mode(tiny, fails):
    model = tiny(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5, memory_init="learned")
    ids = text(9)
    expected = ml.trace(model, ids, labels=ids)
    if fails:
        model.update_rule = Prescribed([])
    model.train()
    model.transformer.h[0].eval()  # as one does with what is frozen
    modes = {name: module.training for name, module in model.named_modules()}
    if fails:
        with pytest.raises(StopIteration):
            ml.trace(model, ids)
    else:
        assert_same(ml.trace(model, ids, labels=ids), expected)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_keeps_a_graph_and_gradients_stay_as_they_were(tiny):
    model = tiny(memory_init="learned")
    seen = []
    model.register_forward_hook(lambda *x: seen.append(x[2].memory.requires_grad))
    memory = model.init_memory(1).detach().requires_grad_()
    ml.trace(model, text(9), memory=memory)
    assert seen == [False] * 3 and memory.grad is None and torch.is_grad_enabled()
    with torch.no_grad():
        gradient = ml.trace(model, text(9), memory=memory, labels=text(9)).gradient
        assert (gradient[0] > 0).all() and not torch.is_grad_enabled()
    assert memory.grad is None and all(parameter.grad is None for parameter in model.parameters())


# ---- tokens and words ----


def test_tokens_and_next_words_are_decoded(recall):
    ids = ml.tasks.encode("SET Ada Paris um Ada Oslo ASK Ada")
    trace = ml.trace(recall, torch.tensor(ids), decode=ml.tasks.decode)
    assert trace.tokens == "SET Ada Paris um Ada Oslo ASK Ada".split()
    assert trace.next_words == {int(n): ml.tasks.VOCABULARY[n] for n in trace.next_tokens.flat}
    assert all(type(number) is int for number in trace.next_words)
    given = ml.trace(recall, torch.tensor(ids), tuple("abcdefgh"), decode=ml.tasks.decode)
    assert given.tokens == list("abcdefgh")
    assert_same(dataclasses.replace(given, tokens=trace.tokens), trace)


def test_a_tokenizers_decode_serves(tiny):
    tokenizer = ml.gpt2_tokenizer()
    ids = torch.tensor(tokenizer("Elizabeth was glad.")["input_ids"])
    trace = ml.trace(tiny(vocab_size=len(tokenizer)), ids, decode=tokenizer.decode)
    assert "".join(trace.tokens) == "Elizabeth was glad." and len(trace.tokens) > 3
    assert set(trace.next_words) == {int(n) for n in trace.next_tokens.flat}


def test_every_number_is_decoded_once(model):
    asked = []
    ml.trace(model, torch.tensor([3, 3, 3, 1, 3]), decode=lambda ids: asked.extend(ids) or "x")
    assert len(asked) == len(set(asked))


# ---- what a slot holds, in words ----


def by_hand(moved, sources, shares, initial, rest, tokens=("Ada", "Elizabeth", "Oslo", "um"), values_mix=True):
    """A trace of one slot in segments of two tokens, of which only what is to be said is filled in."""
    states = len(moved) + 1
    nothing = np.zeros(1)
    return ml.MemoryTrace(
        tokens=list(tokens), segment_length=2, read_layers=[0], values_mix=values_mix, memory=np.zeros((states, 1, 4), np.float16),
        write_attention=nothing, read_attention=nothing, moved=np.array([[by] for by in moved], np.float32),
        source_tokens=np.array([sources] * states, np.int32)[:, None], source_shares=np.array([shares] * states, np.float32)[:, None],
        initial_share=np.full((states, 1), initial, np.float32), rest_share=np.full((states, 1), rest, np.float32),
        next_tokens=nothing, next_probabilities=nothing, entropy=nothing, next_words={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("moved", "after", "since"),
    [
        ([0, 0, 0], 3, 0), ([1, 0, 0], 3, 1), ([1, 0, 0], 1, 1), ([1, 0, 0], 0, 0), ([0, 1, 0, 0, 1], 4, 2),
        ([0, 1, 0, 0, 1], 5, 5), ([0, 1, 0, 0, 1], 1, 0), ([1, 1], 2, 2), ([0, 1e-38], None, 2), ([0.1, 0], None, 1),
    ],
)  # fmt: skip
def test_since_when_a_slot_is_unchanged(moved, after, since):
    found = by_hand(moved, [0], [1], 0, 0).unchanged_since(0, after)
    assert found == since and type(found) is int


@pytest.mark.parametrize(
    ("sources", "shares", "initial", "rest", "says"),
    [
        ([1, -1], [0.97, 0], 0.03, 0, "97% “Elizabeth” (segment 0)"),
        ([3, 0], [0.61, 0.3], 0, 0.09, "61% “um” (segment 1), 30% “Ada” (segment 0)"),
        ([3, 0], [0.2, 0.1], 0.7, 0, "70% its initial value, 20% “um” (segment 1), 10% “Ada” (segment 0)"),
        ([3, 0], [0.04, 0.03], 0.03, 0.9, "90% other tokens"),
        ([3, 0], [0.09, 0.08], 0.07, 0.06, "9% “um” (segment 1)"),
        ([0, -1], [0.9999, 0], 0.0001, 0, "over 99% “Ada” (segment 0)"),
        ([0, -1], [0.994, 0], 0.006, 0, "99% “Ada” (segment 0)"),
        ([0, -1], [1, 0], 0, 0, "100% “Ada” (segment 0)"),
        ([-1, -1], [0, 0], 1, 0, "100% its initial value"),
    ],
)
def test_what_a_slot_is_made_of_in_words(sources, shares, initial, rest, says):
    trace = by_hand([1, 0, 0], sources, shares, initial, rest)
    assert trace.in_words(0) == f"slot 0: {says}, unchanged for 2 segments"
    assert trace.in_words(0, 2) == f"slot 0: {says}, unchanged for 1 segment"
    assert trace.in_words(0, 1) == f"slot 0: {says}, changed in segment 0"
    assert trace.in_words(0, 0) == f"slot 0: {says}"


def test_a_long_time_in_words():
    assert by_hand([1] + [0] * 1204, [1], [0.97], 0.03, 0).in_words(0) == (
        "slot 0: 97% “Elizabeth” (segment 0), unchanged for 1,204 segments"
    )
    trace = by_hand([1] * 1205, [1], [0.97], 0.03, 0, values_mix=False)
    assert trace.in_words(0) == "slot 0, by its write attention: 97% “Elizabeth” (segment 0), changed in segment 1204"


def test_a_trace_says_what_it_is(model):
    assert repr(ml.trace(model, text(9))) == "<MemoryTrace: 9 tokens in 3 segments, 3 slots of width 8>"


@pytest.mark.parametrize("method", ["held", "unchanged_since", "in_words"])
def test_there_are_only_so_many_slots_and_segments(model, method):
    trace = ml.trace(model, text(9))
    for slot in (-1, 3):
        with pytest.raises(IndexError, match=f"there is no slot {slot}: this trace has the slots 0 to 2"):
            getattr(trace, method)(slot)
    for after in (-1, 4):
        with pytest.raises(IndexError, match=f"0 to 3 in this trace, not {after}"):
            getattr(trace, method)(0, after)
    for slot in range(3):
        assert getattr(trace, method)(slot) == getattr(trace, method)(slot, 3) == getattr(trace, method)(slot, after=3)


# ---- to a file and back ----


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("length", [1, 11])
def test_a_trace_comes_back_as_it_was_saved(model, tmp_path, with_gradient, length):
    ids = text(length)
    trace = ml.trace(model, ids, labels=ids if with_gradient else None)
    trace.save(tmp_path / "new" / "a.trace")
    trace.save(str(tmp_path / "new" / "a.trace"))  # again, in its place
    assert_same(ml.MemoryTrace.load(tmp_path / "new" / "a.trace"), trace)
    assert_same(ml.MemoryTrace.load(str(tmp_path / "new" / "a.trace")), trace)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.trace"]


def test_hostile_tokens_come_back_as_they_were(model, tmp_path):
    ids = text(len(HOSTILE))
    trace = ml.trace(model, ids, HOSTILE, decode=lambda ids: HOSTILE[ids[0]])
    assert trace.tokens == HOSTILE and set(trace.next_words.values()) <= set(HOSTILE)
    trace.save(tmp_path / "a")
    assert_same(ml.MemoryTrace.load(tmp_path / "a"), trace)


@given(st.lists(st.text(st.characters(exclude_categories=[])), min_size=3, max_size=3))
def test_any_string_comes_back(tmp_path_factory, tokens):
    path = tmp_path_factory.getbasetemp() / "any.trace"
    trace = by_hand([1], [0], [1], 0, 0, tokens)
    trace.save(path)
    assert ml.MemoryTrace.load(path).tokens == tokens


def test_a_damaged_file_is_refused(model, tmp_path):
    path = tmp_path / "a.trace"
    ml.trace(model, text(9)).save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [header, header + 1, (header + len(whole)) // 2, len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"a\.trace is damaged, its checksum does not match"):
            ml.MemoryTrace.load(path)
    for part in (b"", whole[:4], whole[:header], whole[:-1]):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"a\.trace is not a whole safetensors file"):
            ml.MemoryTrace.load(path)


def test_another_kind_of_file_is_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ml.MemoryTrace.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        ml.MemoryTrace.load(tmp_path)
    (tmp_path / "text").write_text("A trace, honestly.")
    with pytest.raises(ValueError, match="text is not a whole safetensors file"):
        ml.MemoryTrace.load(tmp_path / "text")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        ml.MemoryTrace.load(tmp_path / "pickle.npy")
    save_file({"memory": torch.zeros(1)}, tmp_path / "tensors")
    with pytest.raises(ValueError, match=r"but no memgpt_lite trace, version 1 \(its format: None\)"):
        ml.MemoryTrace.load(tmp_path / "tensors")
    ml.save_memory(tmp_path / "memory", model.init_memory(1), model)
    with pytest.raises(ValueError, match="but no memgpt_lite trace"):
        ml.MemoryTrace.load(tmp_path / "memory")


def test_what_is_in_a_file_can_be_read_without_us(model, tmp_path):
    trace = ml.trace(model, text(5), list("abcde"))
    trace.save(tmp_path / "a")
    tensors, header = storage.read(tmp_path / "a", "memgpt_lite trace, version 1")
    about = json.loads(bytes(tensors["about"].tolist()).decode())
    assert about["tokens"] == list("abcde") and about["gradient"] is None
    assert torch.equal(tensors["moved"], torch.from_numpy(trace.moved)) and header == {"format": "memgpt_lite trace, version 1"}


# ---- a long text ----


def test_a_hundred_thousand_tokens(recall, tmp_path):
    batch = ml.tasks.AssociativeRecall(num_segments=6250).batch(1, torch.Generator().manual_seed(0))
    writes = []
    hook = recall.register_forward_hook(lambda *x: writes.append(x[2].write_attentions[0].double()))
    trace = ml.trace(recall, batch.input_ids, decode=ml.tasks.decode)
    hook.remove()
    assert len(trace.tokens) == 100_000 and trace.moved.shape == (6250, 16)
    assert_strongest(_only(trace, 6250), [ml.provenance(writes)[0].numpy()], keep=8)
    with_gradient = dataclasses.replace(trace, gradient=np.ones((6251, 16), np.float32))
    with_gradient.save(tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 50e6


def test_the_strongest_stay_exact_over_many_changes(tiny):
    model = tiny(update_rule="keep_softmax")
    model.update_rule.keep.bias.data.fill_(7)  # a little of every slot is changed by every segment
    ids = text(2000)
    trace = ml.trace(model, ids, memory=torch.zeros(1, 3, 8), keep=5)
    with torch.no_grad():
        writes = [write.double() for write in model(ids, memory=torch.zeros(1, 3, 8)).write_attentions]
    assert (trace.moved > 0).all() and trace.rest_share[-1].min() > 0.5
    for after in (2, 100, 333, 500):
        assert_strongest(_only(trace, after), [ml.provenance(writes[:after])[0].numpy()], keep=5, atol=1e-8)


def _only(trace, after):
    """The provenance of a trace after `after` segments alone."""
    names = ("source_tokens", "source_shares", "initial_share", "rest_share")
    return dataclasses.replace(trace, **{name: getattr(trace, name)[[after]] for name in names})


# ---- mistakes ----


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        ({"input_ids": torch.zeros(2, 4).long()}, ValueError, r"a trace is of one text, but there are 2: pass input_ids\[i\]"),
        ({"input_ids": torch.zeros(2, 4).long(), "memory": torch.zeros(2, 3, 8)}, ValueError, "a trace is of one text"),
        ({"input_ids": torch.zeros(1, 2, 4).long()}, ValueError, "must have two dimensions"),
        ({"input_ids": torch.zeros(0).long()}, ValueError, "input_ids is empty"),
        ({"input_ids": [1, 2]}, TypeError, "input_ids must be a tensor of whole numbers"),
        ({"input_ids": torch.tensor([11])}, ValueError, "input_ids holds token numbers from 11 to 11"),
        ({"tokens": ["a"]}, ValueError, "1 tokens were given for 4 positions: pass one string for each"),
        ({"tokens": ["a"] * 5}, ValueError, "5 tokens were given for 4 positions"),
        ({"tokens": ["a", "b", 3, "d"]}, TypeError, "tokens are shown as strings, but one is 3"),
        (
            {"decode": lambda ids: None},
            TypeError,
            "tokens are shown as strings, but one is None: check `tokens`, or what `decode`",
        ),
        ({"keep": 0}, ValueError, "keep, how many tokens of a slot are recorded, must be at least 1, not 0"),
        ({"memory": torch.zeros(2, 3, 8)}, ValueError, "memory must have shape"),
        ({"memory": torch.zeros(3, 8)}, ValueError, "memory must have shape"),
        (
            {"attention_mask": torch.tensor([1, 0, 1, 1])},
            ValueError,
            "padding stands in front of tokens, in a segment or in the text",
        ),
        (
            {"input_ids": text(8), "attention_mask": torch.tensor([0] * 4 + [1] * 4), "labels": text(8)},
            ValueError,
            "padding stands in front of tokens",
        ),
        ({"attention_mask": torch.ones(5)}, ValueError, "attention_mask must have the shape of input_ids"),
        ({"labels": torch.zeros(5).long()}, ValueError, "labels must have the shape of input_ids"),
        ({"labels": torch.tensor([1, 2, 3, 99])}, ValueError, "labels holds token numbers"),
    ],
)
def test_mistakes_are_explained_before_anything_is_read(model, mistake, error, message):
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was asked to read"))
    with pytest.raises(error, match=message):
        ml.trace(model, **{"input_ids": torch.zeros(4).long(), **mistake})
