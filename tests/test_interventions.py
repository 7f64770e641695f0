import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memgpt_lite as ml

RULES = ["keep", "keep_softmax", "gated", "erase_add", "delta", "fifo"]
FACTS = "so well Ada Kyoto now then Gus Oslo Mia Lima but and Leo Cairo hm oh"
PLACE_OF = {"Ada": "Kyoto", "Gus": "Oslo", "Mia": "Lima", "Leo": "Cairo"}
OTHERS = "um er Ben Lima yet so Eve Fez oh hm Kim Nice well now Joy Bern"


@pytest.fixture
def model(tiny):
    return tiny()


def text(length, seed=0):
    return torch.randint(0, 11, (1, length), generator=torch.Generator().manual_seed(seed))


def ids(words):
    return torch.tensor(ml.tasks.encode(words))


def fields(reading):
    """All that a reading is, copied, so that a change in place would show."""
    values = {field.name: getattr(reading, field.name) for field in dataclasses.fields(reading) if field.name != "model"}
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def same(one, other):
    return all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def slow_answer(model, question, memory):
    """The probability of every next token, (V,)."""
    with torch.no_grad():
        return model(question, memory=memory).logits[0, -1].double().softmax(-1)


class ByHand:
    """The same acts on the slots one by one: vectors, and what they are made of, {(text, position): share}, None for the initial slot."""

    def __init__(self, model, input_ids, memory, name="text"):
        self.model, self.ids, self.name, self.at, self.frozen = model, input_ids, name, 0, set()
        self.initial, self.untouched = list(memory[0]), memory
        self.slots, self.made_of = list(memory[0]), [{None: 1.0} for _ in memory[0]]
        self.origin = list(memory[0])  # the initial slot that None stands for
        self.values = {}  # (text, position): the vector that the rule made of the token

    def read_on(self):
        if self.at >= self.ids.size(1):
            return
        segment = self.ids[:, self.at : self.at + self.model.config.segment_length]
        with torch.no_grad():
            out = self.model(segment, memory=torch.stack(self.slots)[None], output_hidden_states=True)
            if self.model.update_rule.values_mix:
                vectors = self.model.update_rule.value(self.model.context_vectors(out.hidden_states[-1], out.logits))[0]
                self.values |= {(self.name, self.at + t): vector for t, vector in enumerate(vectors)}
            self.untouched = self.model(segment, memory=self.untouched).memory
        for j, (keep, *taken) in enumerate(out.write_attentions[0][0].tolist()):
            if j not in self.frozen:
                self.slots[j] = out.memory[0, j]
                made_of = {token: keep * share for token, share in self.made_of[j].items()}
                self.made_of[j] = made_of | {(self.name, self.at + t): share for t, share in enumerate(taken)}
        self.at += segment.size(1)

    def clear(self, slots):
        for j in slots:
            self.slots[j], self.made_of[j], self.origin[j] = self.initial[j], {None: 1.0}, self.initial[j]

    def scale(self, slots, factor):
        for j in set(slots):
            self.slots[j], self.made_of[j] = self.slots[j] * factor, {k: factor * share for k, share in self.made_of[j].items()}

    def freeze(self, slots):
        self.frozen |= set(slots)

    def thaw(self, slots):
        self.frozen -= set(slots)

    def exchange(self, i, other, j):
        for mine, others in ((self.slots, other.slots), (self.made_of, other.made_of), (self.origin, other.origin)):
            mine[i], others[j] = others[j], mine[i]

    def agrees_with(self, reading):
        torch.testing.assert_close(reading.memory[0], torch.stack(self.slots), rtol=0, atol=0)  # bit for bit
        assert torch.equal(reading.untouched, self.untouched) and torch.equal(reading.initial[0], torch.stack(self.initial))
        assert reading.frozen == self.frozen
        for j, expected in enumerate(self.made_of):
            shares = reading.shares[j].tolist()
            assert len(shares) == 1 + len(reading.sources)
            found = {None: shares[0]}
            for source, share in zip(reading.sources, shares[1:]):
                place = (source.text, source.position)
                found[place] = found.get(place, 0) + share
            assert {k: v for k, v in found.items() if v} == pytest.approx(
                {k: v for k, v in expected.items() if v}, rel=1e-5, abs=1e-9
            )

    def is_a_mixture(self, reading, values):
        """Provenance is exact: the shares, times the values of the tokens, give the slot."""
        table = torch.stack([values[source.text, source.position] for source in reading.sources])
        for j, slot in enumerate(reading.memory[0]):
            mixture = reading.shares[j, 0] * self.origin[j] + reading.shares[j, 1:] @ table
            torch.testing.assert_close(mixture, slot, rtol=1e-4, atol=1e-5)


# ---- reading ----


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("rule", RULES)
def test_reading_is_what_the_model_does(tiny, rule, length):
    model = tiny(update_rule=rule, read_layers=[1] if length % 2 else None)
    input_ids, memory = text(length), model.init_memory(1)
    reading = ml.Reading.start(model, input_ids, memory=memory)
    segments = -(-length // 4)
    assert reading.segments == segments and reading.segments_read == 0 and reading.slots == 3
    assert torch.equal(reading.memory, memory) and reading.shares.tolist() == [[1], [1], [1]] and reading.sources == ()
    after = reading.read_on()
    with torch.no_grad():
        out = model(input_ids, memory=memory)
    assert after.segments_read == segments and after.segments == segments
    for same_memory in (after.memory, after.untouched):
        assert torch.equal(same_memory, out.memory)
    assert torch.equal(after.initial, memory)
    torch.testing.assert_close(after.shares, ml.provenance(out.write_attentions)[0], rtol=1e-5, atol=1e-7)
    assert [source.position for source in after.sources] == list(range(length))
    assert [source.segment for source in after.sources] == [t // 4 for t in range(length)]
    assert [source.word for source in after.sources] == [str(int(i)) for i in input_ids[0]] == list(after.words)


def test_provenance_is_that_of_a_trace(recall):
    batch = ml.tasks.AssociativeRecall(num_segments=5).batch(1, torch.Generator().manual_seed(1)).input_ids
    trace = ml.trace(recall, batch, decode=ml.tasks.decode)
    reading = ml.Reading.start(recall, batch, ml.tasks.decode)
    for after in range(6):
        for slot in range(16):
            ours = {source and source.position: share for source, share in reading.held(slot)}
            assert ours.pop(None, 0) == pytest.approx(float(trace.initial_share[after, slot]), abs=1e-6)
            assert sum(ours.values()) == pytest.approx(1 - float(trace.initial_share[after, slot]), abs=1e-5)
            assert all(ours.get(token, 0) == pytest.approx(share, abs=1e-6) for token, share in trace.held(slot, after))
        assert list(reading.words) == trace.tokens
        reading = reading.read_on(1)


@settings(max_examples=20)
@given(st.integers(1, 14), st.lists(st.integers(0, 3), max_size=5), st.integers(1, 5))
def test_step_by_step_is_the_same_as_at_once(tiny, length, steps, segment_length):
    model = tiny(segment_length=segment_length)
    start = ml.Reading.start(model, text(length, seed=length), memory=torch.ones(1, 3, 8).cumsum(1))
    reading = start
    for n in steps:
        before = reading.segments_read
        reading = reading.read_on(n)
        assert reading.segments_read == min(before + n, reading.segments)
    assert same(fields(reading.read_on()), fields(start.read_on()))
    assert same(fields(start.read_on(sum(steps))), fields(reading))
    assert same(fields(start.read_on().read_on(3)), fields(start.read_on()))  # nothing is left


def test_a_text_may_come_with_or_without_a_batch_dimension(model):
    memory = model.init_memory(1)
    one, other = (ml.Reading.start(model, x, memory=memory).read_on() for x in (text(9), text(9)[0].int()))
    assert torch.equal(one.memory, other.memory) and one.sources == other.sources


@pytest.mark.parametrize("kind", ml.memory.INITIALISATIONS)
def test_without_a_memory_it_starts_where_the_model_does(tiny, kind):
    model = tiny(memory_init=kind)
    torch.manual_seed(5)
    memory = model.init_memory(1)
    torch.manual_seed(5)
    reading = ml.Reading.start(model, text(6))
    assert torch.equal(reading.memory, memory) and torch.equal(reading.read_on().memory, model(text(6), memory=memory).memory)


def test_nothing_of_a_reading_is_the_models_or_has_a_gradient(tiny):
    model = tiny(memory_init="learned")
    given_memory = torch.ones(1, 3, 8, requires_grad=True)
    for memory in (None, given_memory):
        start = ml.Reading.start(model, text(9), memory=memory)
        before = start.memory.clone()
        after = start.read_on()
        for reading in (
            start,
            start.clear([0]),
            start.scale([1], 2),
            after,
            after.clear([0]),
            *ml.swap_slots(start, 0, after, 1),
        ):
            assert not any(x.requires_grad for x in (reading.memory, reading.initial, reading.untouched, reading.shares))
            assert not reading.predict(text(2)).requires_grad and not reading.dependence(text(2)).alone.requires_grad
        with torch.no_grad():
            model.initial_memory.add_(1)
            given_memory.add_(1)
        assert torch.equal(start.memory, before) and torch.equal(after.clear([0, 1, 2]).memory, before)
    assert model.initial_memory.grad is None and model.initial_memory.requires_grad


@pytest.mark.parametrize("mixed", [False, True])
def test_dropout_is_off_while_reading_and_the_model_is_left_in_its_mode(tiny, mixed):
    model = tiny(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    input_ids, memory = text(9), model.init_memory(1)
    expected = model(input_ids, memory=memory).memory
    says = slow_answer(model, text(3), expected)
    model.train()
    if mixed:
        model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    reading = ml.Reading.start(model, input_ids, memory=memory).read_on()
    assert torch.equal(reading.memory, expected)
    torch.testing.assert_close(reading.predict(text(3)).double(), says)
    found = reading.dependence(text(3))
    assert found.probability == pytest.approx(float(says.max()), abs=1e-6)
    with pytest.raises(ValueError, match="token numbers"):
        reading.predict(torch.tensor([11]))
    broken = dataclasses.replace(reading, input_ids=torch.full((1, 9), 11), segments_read=0)
    with pytest.raises(ValueError, match="token numbers"):
        broken.read_on()
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_precision(tiny, dtype):
    model, input_ids = tiny(dtype), text(11)
    memory = model.init_memory(1)
    out = model(input_ids, memory=memory)
    one = ml.Reading.start(model, input_ids, memory=memory.double(), name="one").read_on()
    assert one.memory.dtype == dtype and torch.equal(one.memory, out.memory)
    exact = ml.provenance([write.double() for write in out.write_attentions])[0]
    torch.testing.assert_close(one.shares.double(), exact, rtol=1e-6, atol=1e-7)
    other = ml.Reading.start(model, text(6, 1), memory=memory, name="other").read_on()
    one, other = ml.swap_slots(one, 0, other, 2)
    assert torch.equal(one.memory[:, 0], model(text(6, 1), memory=memory).memory[:, 2])
    torch.testing.assert_close(other.shares[2, [0, *range(1, 12)]].double(), exact[0], rtol=1e-6, atol=1e-7)
    one = one.scale([1], 0.5).freeze([2]).clear([0])
    assert one.memory.dtype == dtype and torch.equal(one.memory[:, 1], out.memory[:, 1] * 0.5)
    says = one.predict(text(3))
    assert says.isfinite().all() and says.sum() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(says.double(), slow_answer(model, text(3), one.memory), rtol=1e-2, atol=1e-3)
    for found in (one.dependence(text(3)), ml.dependence(model, one.memory.double(), text(3), cleared=memory.float())):
        assert found.answer == int(says.argmax()) and found.alone.isfinite().all()


# ---- acts ----


@pytest.mark.parametrize("rule", ["keep", "keep_softmax", "gated"])
def test_frozen_slots_stay_and_the_others_go_on_with_what_the_model_sees(tiny, rule):
    model = tiny(update_rule=rule)
    memory, input_ids = model.init_memory(1), text(19)
    reading = ml.Reading.start(model, input_ids, memory=memory).read_on(2)
    frozen = reading.freeze([0]).freeze([2])
    hand = ByHand(model, input_ids, memory)
    hand.read_on(), hand.read_on(), hand.freeze([0, 2])
    for _ in range(2):
        frozen = frozen.read_on(1)
        hand.read_on()
        hand.agrees_with(frozen)
    assert torch.equal(frozen.memory[:, [0, 2]], reading.memory[:, [0, 2]])
    assert torch.equal(frozen.shares[[0, 2], :9], reading.shares[[0, 2]]) and (frozen.shares[[0, 2], 9:] == 0).all()
    free = reading.read_on(2)
    assert not torch.equal(free.memory[:, 1], frozen.memory[:, 1])  # else nothing was tested: what is frozen is read
    assert torch.equal(free.memory, frozen.untouched)
    thawed = frozen.thaw([2]).read_on(1)
    hand.thaw([2]), hand.read_on()
    hand.agrees_with(thawed)
    assert thawed.frozen == {0} and not torch.equal(thawed.memory[:, 2], frozen.memory[:, 2])


def test_clearing_goes_back_to_what_was_before_the_text(model):
    memory = torch.randn(1, 3, 8)
    reading = ml.Reading.start(model, text(9), memory=memory).read_on(2)
    cleared = reading.clear([2, 0])
    assert torch.equal(cleared.memory[:, [0, 2]], memory[:, [0, 2]]) and torch.equal(cleared.memory[:, 1], reading.memory[:, 1])
    assert cleared.held(0) == cleared.held(2) == [(None, 1.0)] and torch.equal(cleared.shares[1], reading.shares[1])


@pytest.mark.parametrize("factor", [0, 0.5, 1, -2])
def test_scaling(model, factor):
    reading = ml.Reading.start(model, text(9)).read_on(2)
    scaled = reading.scale([1, 1], factor)  # named twice, scaled once
    assert torch.equal(scaled.memory[:, 1], reading.memory[:, 1] * factor)
    assert torch.equal(scaled.shares[1], reading.shares[1] * factor)
    assert scaled.shares[1].sum() == pytest.approx(factor, abs=1e-6)
    for slot in (0, 2):
        assert torch.equal(scaled.memory[:, slot], reading.memory[:, slot]) and torch.equal(
            scaled.shares[slot], reading.shares[slot]
        )


def test_no_method_changes_the_reading_that_it_was_called_on(model):
    one = ml.Reading.start(model, text(15), name="one").read_on(1).freeze([1]).scale([2], 3).read_on(1)
    other = ml.Reading.start(model, text(10, 1), name="other").read_on(2)
    before = fields(one), fields(other)
    made = [
        one.read_on(), one.read_on(1), one.clear([0, 1]), one.scale([0], 5), one.freeze([0]), one.thaw([1]),
        *ml.swap_slots(one, 0, other, 2), *ml.swap_slots(one, 0, one, 2),
    ]  # fmt: skip
    one.predict(text(3)), one.predict(text(3), untouched=True), one.dependence(text(3)), one.held(0), one.share_of("3"), repr(one)
    for reading in made:
        assert not same(fields(reading), before[0]) and not same(fields(reading), before[1])
        reading.clear([0, 1, 2]).scale([0, 1, 2], 9).read_on()
    assert same(fields(one), before[0]) and same(fields(other), before[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.memory = other.memory


some_slots = st.lists(st.integers(0, 2), max_size=3)
acts = st.one_of(
    st.tuples(st.just("read_on")),
    st.tuples(st.sampled_from(["clear", "freeze", "thaw"]), some_slots),
    st.tuples(st.just("scale"), some_slots, st.sampled_from([0.0, 0.5, -1.0, 2.0])),
    st.tuples(st.just("swap"), st.integers(0, 2), st.integers(0, 2)),
)


@given(st.lists(st.tuples(st.integers(0, 1), acts), max_size=14), st.sampled_from(["keep", "keep_softmax"]))
def test_any_acts_on_two_texts(tiny, steps, rule):
    """Against acting by hand: the memories, what they would be without any act, and what the slots are made of, exactly."""
    model = tiny(update_rule=rule)
    memories = torch.randn(2, 1, 3, 8, generator=torch.Generator().manual_seed(1))
    names = ["one", "other"]
    texts = [text(10, 3), text(13, 4)]
    readings = [ml.Reading.start(model, x, memory=memory, name=name) for x, memory, name in zip(texts, memories, names)]
    hands = [ByHand(model, x, memory, name) for x, memory, name in zip(texts, memories, names)]
    for which, (act, *how) in steps:
        if act == "swap":
            i, j = how
            readings = list(ml.swap_slots(readings[0], i, readings[1], j))
            hands[0].exchange(i, hands[1], j)
        else:
            readings[which] = readings[which].read_on(1) if act == "read_on" else getattr(readings[which], act)(*how)
            getattr(hands[which], act)(*how)
    for reading, hand, other in zip(readings, hands, hands[::-1]):
        hand.agrees_with(reading)
        if reading.sources:
            hand.is_a_mixture(reading, hand.values | other.values)
        with torch.no_grad():
            torch.testing.assert_close(
                reading.predict(text(3)).double(), slow_answer(model, text(3), torch.stack(hand.slots)[None])
            )
            says = reading.predict(text(3), untouched=True)
            torch.testing.assert_close(says.double(), slow_answer(model, text(3), hand.untouched))


def test_held_and_share_of(tiny):
    model = tiny(update_rule="keep_softmax")  # every slot takes a little of all
    input_ids = torch.tensor([3, 7, 3, 5, 3])
    reading = ml.Reading.start(model, input_ids, lambda number: f"w{number[0]}", name="A").read_on()
    assert reading.sources[4] == ml.Source("A", 4, 1, "w3")
    for slot in range(3):
        held = reading.held(slot)
        assert [share for _, share in held] == sorted((s for s in reading.shares[slot].tolist() if s), reverse=True)
        by_hand = {None: reading.shares[slot, 0].item()} | {
            s: reading.shares[slot, 1 + i].item() for i, s in enumerate(reading.sources)
        }
        assert dict(held) == {source: share for source, share in by_hand.items() if share} and len(held) > 1
        assert reading.share_of("w3")[slot] == pytest.approx(sum(reading.shares[slot, 1 + t].item() for t in (0, 2, 4)))
        assert reading.share_of("w5")[slot] == pytest.approx(reading.shares[slot, 4].item())
    assert reading.share_of("nothing").tolist() == [0, 0, 0]
    assert reading.share_of("w3").shape == (3,) and reading.share_of("w3").sum() > 0


def test_a_reading_says_what_it_is(model):
    reading = ml.Reading.start(model, text(9), name="a text").read_on(2)
    assert repr(reading) == "<Reading of 'a text': 2 of 3 segments read, 3 slots>"


def test_slots_may_come_from_a_tensor(model):
    reading = ml.Reading.start(model, text(9)).read_on()
    slots = (torch.tensor([0.0, 0.9, 0.8]) > 0.5).nonzero().flatten()
    assert reading.freeze(slots).frozen == {1, 2} and reading.freeze(slots).thaw([1]).frozen == {2}
    assert torch.equal(reading.clear(slots).memory, reading.clear([1, 2]).memory)
    assert reading.clear(slot for slot in (1, 2)).held(1) == [(None, 1.0)]
    assert torch.equal(reading.clear([]).memory, reading.memory)


@pytest.mark.parametrize("slot", [-1, 3])
@pytest.mark.parametrize(
    "act",
    [
        lambda reading, slot: reading.clear([0, slot]), lambda reading, slot: reading.scale([slot], 2),
        lambda reading, slot: reading.freeze([slot]), lambda reading, slot: reading.thaw([slot]), lambda reading, slot: reading.held(slot),
        lambda reading, slot: ml.swap_slots(reading, slot, reading, 0), lambda reading, slot: ml.swap_slots(reading, 0, reading, slot),
        lambda reading, slot: ml.swap_slots(reading.clear([0]), slot, reading, 0),
        lambda reading, slot: ml.swap_slots(reading.clear([0]), 0, reading, slot),
    ],
)  # fmt: skip
def test_there_are_only_so_many_slots(model, act, slot):
    with pytest.raises(IndexError, match=f"there is no slot {slot}: this memory has the slots 0 to 2"):
        act(ml.Reading.start(model, text(9)), slot)


def test_a_mask_is_not_a_list_of_slots(model):
    reading = ml.Reading.start(model, text(9))
    for mask in (torch.tensor([True, False, True]), [True, False, True]):
        with pytest.raises(TypeError, match=r"slots are given by their numbers: of a mask, pass mask\.nonzero\(\)\.flatten\(\)"):
            reading.clear(mask)


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        ({"input_ids": text(4).expand(2, 4)}, ValueError, r"a reading is of one text, but there are 2: pass input_ids\[i\]"),
        ({"input_ids": torch.zeros(1, 2, 4).long()}, ValueError, "must have two dimensions"),
        ({"input_ids": torch.tensor(3)}, ValueError, "must have two dimensions"),
        ({"input_ids": torch.zeros(0).long()}, ValueError, "input_ids is empty"),
        ({"input_ids": [1, 2]}, TypeError, "input_ids must be a tensor of whole numbers"),
        ({"input_ids": torch.tensor([11])}, ValueError, "input_ids holds token numbers from 11 to 11"),
        ({"memory": torch.zeros(2, 3, 8)}, ValueError, "memory must have shape"),
        ({"memory": torch.zeros(3, 8)}, ValueError, "memory must have shape"),
        ({"memory": torch.zeros(1, 3, 8).long()}, TypeError, "memory must hold floating-point numbers"),
        ({"memory": [0.0]}, TypeError, "memory must be a tensor"),
    ],
)
def test_mistakes_are_explained(model, mistake, error, message):
    with pytest.raises(error, match=message):
        ml.Reading.start(model, **{"input_ids": text(4), **mistake})


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        (text(4).expand(2, 4), ValueError, r"one question at a time, not 2: pass question\[i\]"),
        (torch.zeros(1, 2, 4).long(), ValueError, "must have two dimensions"),
        (torch.tensor(3), ValueError, "must have two dimensions"),
        (torch.zeros(0).long(), ValueError, "input_ids is empty"),
        ([1, 2], TypeError, "input_ids must be a tensor of whole numbers"),
        (torch.tensor([11]), ValueError, "input_ids holds token numbers from 11 to 11"),
    ],
)
def test_mistakes_in_a_question_are_explained(model, question, error, message):
    reading = ml.Reading.start(model, text(9)).read_on()
    for ask in (reading.predict, reading.dependence, lambda question: ml.dependence(model, reading.memory, question)):
        with pytest.raises(error, match=message):
            ask(question)


@pytest.mark.parametrize(
    "wrong", [{"memory": torch.zeros(2, 3, 8)}, {"cleared": torch.zeros(3, 8)}, {"cleared": torch.zeros(1, 2, 8)}]
)
def test_a_memory_that_does_not_fit_is_explained(model, wrong):
    with pytest.raises(ValueError, match="memory must have shape"):
        ml.dependence(model, **{"memory": torch.zeros(1, 3, 8), "question": text(2), **wrong})


# ---- exchanging slots ----


@pytest.fixture
def two(model):
    """Two texts of the same model, of different lengths and initial memories, some words in both."""
    decode = lambda number: f"w{number[0]}"  # noqa: E731
    return (
        ml.Reading.start(model, text(10), decode, memory=torch.randn(1, 3, 8), name="one").read_on(),
        ml.Reading.start(model, text(7, 1), decode, memory=torch.randn(1, 3, 8), name="other").read_on(),
    )


def test_exchanging_slots_of_two_texts(two):
    one, other = two
    first, second = ml.swap_slots(one, 0, other, 2)
    assert torch.equal(first.memory[:, 0], other.memory[:, 2]) and torch.equal(second.memory[:, 2], one.memory[:, 0])
    assert torch.equal(first.memory[:, 1:], one.memory[:, 1:]) and torch.equal(second.memory[:, :2], other.memory[:, :2])
    assert first.held(0) == other.held(2) and second.held(2) == one.held(0)
    assert [first.held(j) for j in (1, 2)] == [one.held(j) for j in (1, 2)]
    assert [second.held(j) for j in (0, 1)] == [other.held(j) for j in (0, 1)]
    assert set(first.sources) == set(second.sources) == {*one.sources, *other.sources} and len(first.sources) == 17
    for word in {source.word for source in first.sources}:
        shares = torch.stack([reading.share_of(word) for reading in two])
        assert torch.equal(first.share_of(word), torch.stack([shares[1, 2], shares[0, 1], shares[0, 2]]))
        assert torch.equal(second.share_of(word), torch.stack([shares[1, 0], shares[1, 1], shares[0, 0]]))
    for before, after in zip(two, (first, second)):  # all else is as it was
        same_fields = ("model", "input_ids", "words", "name", "initial", "untouched", "frozen", "segments_read")
        assert all(getattr(before, name) is getattr(after, name) for name in same_fields)


def test_exchanged_twice_all_is_as_at_the_start(two):
    back = ml.swap_slots(*(lambda first, second: (first, 0, second, 2))(*ml.swap_slots(two[0], 0, two[1], 2)))
    for before, after in zip(two, back):
        assert torch.equal(before.memory, after.memory)
        assert [before.held(j) for j in range(3)] == [after.held(j) for j in range(3)]
        assert torch.equal(before.predict(text(3)), after.predict(text(3)))


def test_exchanging_slots_within_one_text(two):
    reading, again = ml.swap_slots(two[0], 0, two[0], 2)
    assert same(fields(reading), fields(again))
    assert torch.equal(reading.memory, two[0].memory[:, [2, 1, 0]]) and torch.equal(reading.shares, two[0].shares[[2, 1, 0]])
    back, _ = ml.swap_slots(reading, 2, reading, 0)
    assert same(fields(back), fields(two[0]))
    assert same(fields(ml.swap_slots(two[0], 1, two[0], 1)[0]), fields(two[0]))


def test_exchanging_slots_of_two_moments_of_one_text(tiny):
    """Its tokens are the same tokens, whichever reading they came with, also when one reads on to what the other has brought."""
    model = tiny(update_rule="keep_softmax")  # every slot keeps a little of all
    early = ml.Reading.start(model, text(12)).read_on(1)
    late = early.read_on(2)
    first, second = ml.swap_slots(early, 0, late, 0)
    assert first.held(0) == late.held(0) and second.held(0) == early.held(0) and len(first.sources) == 12
    first = first.read_on(2)  # the tokens that came along are read now
    assert len(dict(first.held(0))) == len(first.held(0)) == 13  # each token once, and the initial slot
    assert sum(share for _, share in first.held(0)) == pytest.approx(1, abs=1e-5)
    again, taken = ml.swap_slots(first, 0, second, 1)
    assert dict(taken.held(1)) == pytest.approx(dict(first.held(0))) and dict(again.held(1)) == pytest.approx(dict(first.held(1)))
    for word in map(str, range(11)):
        assert taken.share_of(word)[1] == pytest.approx(first.share_of(word)[0].item(), abs=1e-6)


def test_slots_of_two_models_mean_different_things(tiny):
    one, other = (ml.Reading.start(tiny(seed=seed), text(9)).read_on() for seed in (0, 1))
    with pytest.raises(ValueError, match="between two texts of one model, not between two models"):
        ml.swap_slots(one, 0, other, 0)


# ---- what an answer depends on ----


def slow_dependence(model, memory, question, cleared):
    """Slot by slot, one reading of the question at a time."""

    def say(kept):
        changed = memory.clone()
        for j in range(memory.size(1)):
            if j not in kept:
                changed[0, j] = cleared[0, j]
        return slow_answer(model, question, changed)

    every = set(range(memory.size(1)))
    answer = int(say(every).argmax())
    without = [float(say(every - {j})[answer]) for j in every]
    alone = [float(say({j})[answer]) for j in every]
    together, left = [], set(every)
    for j in sorted(every, key=lambda j: -alone[j]):
        left.remove(j)
        together.append(j)
        if int(say(left).argmax()) != answer:
            break
    else:
        together = []
    return answer, float(say(every)[answer]), float(say(set())[answer]), without, alone, together


@pytest.mark.parametrize("rule", ["keep", "delta"])
def test_dependence_is_clearing_slot_by_slot(tiny, rule):
    lengths = set()
    for seed in range(25):
        model = tiny(seed=seed, update_rule=rule, num_memory_slots=4)
        memory, cleared = 3 * torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(seed))
        question = text(1 + seed % 6, seed)  # up to two segments
        found = ml.dependence(model, memory, question[0] if seed % 2 else question, cleared=cleared)
        answer, probability, guessed, without, alone, together = slow_dependence(model, memory, question, cleared)
        assert found.answer == answer and type(found.answer) is int
        assert found.probability == pytest.approx(probability, abs=1e-5) and found.guessed == pytest.approx(guessed, abs=1e-5)
        assert found.without.tolist() == pytest.approx(without, abs=1e-5)
        assert found.alone.tolist() == pytest.approx(alone, abs=1e-5)
        assert found.together == together
        middle = (probability + guessed) / 2
        assert found.necessary == [j for j in range(4) if without[j] < middle and together]
        assert found.sufficient == [j for j in range(4) if alone[j] > middle and together]
        lengths.add(len(together))
    assert {0, 1, 2} <= lengths  # else not everything was tested


def test_a_reading_clears_to_what_its_text_began_with(tiny):
    model = tiny(memory_init="learned")
    began = 3 * torch.randn(1, 3, 8)
    reading = ml.Reading.start(model, text(9), memory=began).read_on()
    asked = text(3)
    for found, cleared in (
        (reading.dependence(asked), began),
        (ml.dependence(model, reading.memory, asked), model.initial_memory[None].detach()),  # without any, to the model's
    ):
        _, probability, guessed, without, alone, _ = slow_dependence(model, reading.memory, asked, cleared)
        assert [found.probability, found.guessed] == pytest.approx([probability, guessed], abs=1e-5)
        assert found.without.tolist() == pytest.approx(without, abs=1e-5) and found.alone.tolist() == pytest.approx(
            alone, abs=1e-5
        )
    assert not torch.allclose(reading.dependence(asked).alone, ml.dependence(model, reading.memory, asked).alone)


def test_an_answer_that_does_not_come_from_the_memory(model):
    with torch.no_grad():
        for block in model.transformer.h:
            block.crossattention.c_proj.weight.zero_()  # what is read has no effect
    reading = ml.Reading.start(model, text(9)).read_on()
    found = reading.dependence(text(3))
    assert found.together == found.necessary == found.sufficient == []
    assert found.without.tolist() == found.alone.tolist() == [pytest.approx(found.probability)] * 3
    assert found.guessed == pytest.approx(found.probability)
    assert "It stays the likeliest word: this answer does not depend on the memory." in found.in_words(
        "w", torch.tensor([0.0, 1, 0])
    )


def test_a_memory_that_is_as_it_began_holds_nothing(model):
    start = ml.Reading.start(model, text(9))
    found = start.dependence(text(3))
    assert found.together == [] and found.probability == pytest.approx(found.guessed, abs=1e-6)


def found_so(without=(0.9, 0.2, 0.9), alone=(0.1, 0.1, 0.8), together=(2, 1), probability=0.9, guessed=0.1):
    return ml.Dependence(7, probability, guessed, torch.tensor(without), torch.tensor(alone), list(together))


def test_necessary_and_sufficient_is_more_than_half_of_the_way():
    found = found_so(without=(0.51, 0.49, 0.0), alone=(0.49, 0.51, 1.0))
    assert found.necessary == [1, 2] and found.sufficient == [1, 2]
    assert found._replace(together=[]).necessary == found._replace(together=[]).sufficient == []


@pytest.mark.parametrize(
    ("found", "held", "says"),
    [
        (
            found_so(),
            (0, 0.1, 0.9),
            "“Paris” has probability 90%, and 10% with all slots cleared. Necessary by itself: slot 1. Sufficient by itself: slot 2. "
            "With slots 1, 2 cleared, another word is likelier. Mostly “Paris”: slot 2; provenance agrees.",
        ),
        (
            found_so(without=(0.9, 0.9, 0.9), alone=(0.1, 0.8, 0.8)),
            (0.6, 0.1, 0.9),
            "“Paris” has probability 90%, and 10% with all slots cleared. Necessary by itself: no slot. Sufficient by itself: slots 1, 2. "
            "With slots 1, 2 cleared, another word is likelier. Mostly “Paris”: slots 0, 2; provenance does not agree.",
        ),
        (
            found_so(alone=(0.1, 0.1, 0.1), together=(0,), probability=0.999, guessed=0.001),
            (0.5, 0.5, 0.5),  # half is not mostly
            "“Paris” has probability over 99%, and under 1% with all slots cleared. Necessary by itself: slot 1. Sufficient by itself: "
            "no slot. With slot 0 cleared, another word is likelier. No slot is mostly “Paris”: provenance says nothing here.",
        ),
        (
            found_so(together=()),
            (0, 0.1, 0.9),
            "“Paris” has probability 90%, and 10% with all slots cleared. It stays the likeliest word: this answer does not depend on the "
            "memory.",
        ),
    ],
)  # fmt: skip
def test_the_findings_in_words(found, held, says):
    assert found.in_words("Paris", torch.tensor(held)) == says


# ---- a model that has learned something ----


@pytest.fixture(scope="module")
def facts(recall):
    torch.set_num_threads(1)
    return ml.Reading.start(recall, ids(FACTS), ml.tasks.decode, name="A").read_on()


@pytest.fixture(scope="module")
def others(recall):
    return ml.Reading.start(recall, ids(OTHERS), ml.tasks.decode, name="B").read_on()


def answer(reading, name):
    return ml.tasks.decode([reading.predict(ids(name)).argmax()])


def holders(reading, word):
    return (reading.share_of(word) > 0.5).nonzero().flatten().tolist()


def test_a_fact_is_held_in_several_slots_of_which_none_is_necessary(facts):
    assert {name: answer(facts, name) for name in PLACE_OF} == PLACE_OF
    found = facts.dependence(ids("Ada"))
    assert ml.tasks.decode([found.answer]) == "Kyoto" and found.probability > 0.95 and found.guessed < 0.5
    assert found.necessary == [] and (found.without > 0.9).all()
    assert len(found.sufficient) > 1 and found.sufficient == holders(facts, "Kyoto")
    assert sorted(found.together) == found.sufficient
    assert found.in_words("Kyoto", facts.share_of("Kyoto")).endswith("provenance agrees.")


def test_clearing_all_that_hold_a_place_takes_that_fact_and_no_other(facts):
    for name, place in PLACE_OF.items():
        cleared = facts.clear(holders(facts, place))
        assert answer(cleared, name) != place
        assert all(answer(cleared, other) == PLACE_OF[other] for other in PLACE_OF if other != name)
        assert [answer(facts.clear([slot]), name) for slot in holders(facts, place)] == [place] * len(holders(facts, place))
        assert cleared.predict(ids(name), untouched=True).argmax() == facts.predict(ids(name)).argmax()


def test_a_fact_moves_with_its_slot_into_the_memory_of_another_text(facts, others):
    assert answer(others, "Ada") != "Kyoto"
    for slot, place in itertools.product(holders(facts, "Kyoto"), (0, 7)):
        given, taken = ml.swap_slots(facts, slot, others, place)
        assert answer(taken, "Ada") == "Kyoto" and answer(given, "Ada") == "Kyoto"  # the other holders are still there
        assert holders(taken, "Kyoto") == [place] and answer(taken.clear([place]), "Ada") != "Kyoto"
        source, share = taken.held(place)[0]
        assert source == ml.Source("A", 3, 0, "Kyoto") and share > 0.5


def test_a_frozen_slot_keeps_the_fact_whatever_is_read(recall):
    noise = ml.tasks.decode(ml.tasks.noise(1, 160, torch.Generator().manual_seed(0))[0])
    reading = ml.Reading.start(recall, ids(f"{FACTS} {noise}"), ml.tasks.decode).read_on(1)
    slots = holders(reading, "Kyoto")
    for after in (reading.freeze(slots).read_on(), reading.read_on()):
        assert after.segments_read == 11 and answer(after, "Ada") == "Kyoto"
    nothing = reading.clear(range(16)).freeze(range(16)).read_on()
    assert torch.equal(nothing.memory, nothing.initial) and answer(nothing, "Ada") != "Kyoto"


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_factor_that_is_not_finite_is_refused(factor):
    model = ml.load_pretrained("recall")
    reading = ml.Reading.start(model, torch.tensor([3, 4]), ml.tasks.decode)
    with pytest.raises(ValueError, match="a finite number, not by"):
        reading.scale([0], factor)


@pytest.mark.parametrize("factor", [1e20, 1e39, -1e39])
def test_a_factor_after_which_nothing_can_be_computed_is_refused(factor):
    model = ml.load_pretrained("recall")
    reading = ml.Reading.start(model, torch.tensor([3, 4]), ml.tasks.decode).read_on()
    with pytest.raises(ValueError, match="a slot is too large to compute with: choose a smaller number"):
        reading.scale([0], factor)
    assert reading.scale([0], factor / abs(factor) * 1e12).predict(torch.tensor([3])).isfinite().all()
