import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import memgpt_lite as ml
from memgpt_lite.memory import UPDATE_RULES, softmax

INFINITY = float("inf")
rows_of_scores = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12)


def linear(layer, x):
    """y = W x + b, number by number."""
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * layer.out_features
    return [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(layer.weight.tolist(), bias)]


def slow_softmax(scores):
    exponentials = [math.exp(z - max(scores)) for z in scores]
    return [e / sum(exponentials) for e in exponentials]


def make_rule(name, width=6, scale=1.0):
    rule = UPDATE_RULES[name](width).double()
    for parameter in rule.parameters():
        parameter.data.normal_(0, scale)
    return rule


def some_input(batch=3, slots=4, length=5, width=6):
    memory, context = torch.randn(batch, slots, width).double(), torch.randn(batch, length, width).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1]])[:batch, :length].bool()
    return memory, context, mask


# ---- initial memory ----


def test_normal_slots_have_mean_0_and_variance_1():
    memory = ml.initial_memory("normal", 50, 20, 30)
    assert memory.shape == (50, 20, 30)
    assert abs(memory.mean()) < 0.03 and abs(memory.std() - 1) < 0.03
    between_texts = (memory[0] * memory[1]).mean()
    assert abs(between_texts) < 0.2  # every text has its own


def test_zero_slots_are_zero_and_stay_equal_to_each_other():
    memory = ml.initial_memory("zeros", 2, 4, 6, dtype=torch.float64)
    assert torch.equal(memory, torch.zeros(2, 4, 6))
    after = make_rule("keep")(memory, torch.randn(2, 5, 6).double()).memory
    assert after.abs().max() > 0.1
    torch.testing.assert_close(after, after[:, :1].expand_as(after))


@pytest.mark.parametrize(("slots", "width"), [(1, 5), (3, 8), (6, 6), (9, 4)])
def test_orthogonal_slots_are_orthogonal_and_as_long_as_normal_ones(slots, width):
    memory = ml.initial_memory("orthogonal", 3, slots, width, dtype=torch.float64)
    assert memory.shape == (3, slots, width)
    for text in memory:
        vectors = text if slots <= width else text.T
        for i, a in enumerate(vectors):
            for j, b in enumerate(vectors):
                assert float(a @ b) == pytest.approx(max(slots, width) if i == j else 0.0, abs=1e-9)
        assert float(text.square().sum(-1).mean()) == pytest.approx(width)  # the mean squared norm of a slot is D


@pytest.mark.parametrize(("slots", "width"), [(3, 8), (8, 3)])
def test_orthogonal_slots_are_drawn_uniformly(slots, width):
    first = ml.initial_memory("orthogonal", 2000, slots, width)[:, 0, 0]
    assert 0.45 < (first > 0).float().mean() < 0.55  # the plain QR decomposition always gives the same sign
    assert abs(first.square().mean() - 1) < 0.15


@pytest.mark.parametrize("kind", ["normal", "orthogonal"])
def test_a_generator_fixes_the_initial_memory(kind):
    draw = [ml.initial_memory(kind, 2, 3, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


@pytest.mark.parametrize("kind", ["gaussian", "learned"])
def test_unknown_initial_memory_is_refused(kind):
    with pytest.raises(ValueError, match=f"unknown memory initialisation '{kind}': choose one of normal, zeros"):
        ml.initial_memory(kind, 1, 2, 3)


# ---- sparsemax ----


@given(rows_of_scores)
def test_sparsemax_is_the_nearest_point_of_the_simplex(project, scores):
    probabilities = ml.sparsemax(torch.tensor(scores, dtype=torch.float64))
    torch.testing.assert_close(probabilities, torch.tensor(project(scores), dtype=torch.float64), atol=1e-9, rtol=0)
    assert (probabilities >= 0).all() and float(probabilities.sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_sparsemax_is_the_nearest_point_for_many_random_rows(project, scale):
    scores = scale * torch.randn(200, 9, dtype=torch.float64)
    expected = torch.tensor([project(row) for row in scores.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ml.sparsemax(scores), expected, atol=1e-9, rtol=0)


@given(rows_of_scores, st.floats(-1e4, 1e4))
def test_sparsemax_does_not_change_when_all_scores_shift(scores, shift):
    scores = torch.tensor(scores, dtype=torch.float64)
    torch.testing.assert_close(ml.sparsemax(scores + shift), ml.sparsemax(scores), atol=1e-10, rtol=0)


@given(rows_of_scores, st.data())
def test_sparsemax_gives_minus_infinity_nothing(project, scores, data):
    out = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)).filter(lambda row: not all(row)))
    scores = [-INFINITY if gone else z for z, gone in zip(scores, out)]
    probabilities = ml.sparsemax(torch.tensor(scores, dtype=torch.float64))
    torch.testing.assert_close(probabilities, torch.tensor(project(scores), dtype=torch.float64), atol=1e-9, rtol=0)
    assert all(p == 0 for p, gone in zip(probabilities.tolist(), out) if gone)


@pytest.mark.parametrize("top", [0.0, 3.0, -7.0, 30_000.0])
@pytest.mark.parametrize("lead", [1.0, 1.5, 1000.0])
def test_sparsemax_gives_exactly_1_to_a_score_that_leads_by_1(top, lead):
    scores = torch.full((20,), top - lead)
    scores[7] = top
    assert torch.equal(ml.sparsemax(scores), torch.eye(20)[7])


def test_sparsemax_shares_when_the_lead_is_less_than_1():
    torch.testing.assert_close(ml.sparsemax(torch.tensor([0.5, 0.0, -9.0])), torch.tensor([0.75, 0.25, 0.0]))


@pytest.mark.parametrize("scores", [[float("nan"), 0.0], [INFINITY, 0.0], [-INFINITY, -INFINITY]])
def test_sparsemax_of_no_numbers_is_no_number_and_leaves_other_rows_alone(scores):
    rows = ml.sparsemax(torch.tensor([scores, [5.0, 1.0]]))
    assert rows[0].isnan().all() and torch.equal(rows[1], torch.tensor([1.0, 0.0]))


def test_sparsemax_works_along_the_last_dimension():
    scores = torch.randn(2, 3, 4, dtype=torch.float64)
    by_row = torch.stack([torch.stack([ml.sparsemax(row) for row in rows]) for rows in scores])
    torch.testing.assert_close(ml.sparsemax(scores), by_row)


# ---- update rules ----


def slow_keep_attention(rule, normalise, memory, context, mask):
    """Slot by slot and token by token, straight from the equation."""
    after, attention = torch.empty_like(memory), torch.zeros(*memory.shape[:2], 1 + context.shape[1], dtype=memory.dtype)
    for b, slots in enumerate(memory.tolist()):
        for j, slot in enumerate(slots):
            real = [t for t in range(context.shape[1]) if mask[b, t]]
            scores, query = linear(rule.keep, slot), linear(rule.query, slot)
            for t in real:
                key = linear(rule.key, context[b, t].tolist())
                scores.append(sum(x * y for x, y in zip(query, key)) / math.sqrt(len(slot)))
            keep, *shares = normalise(scores)
            mixture = [keep * x for x in slot]
            for t, share in zip(real, shares):
                mixture = [x + share * v for x, v in zip(mixture, linear(rule.value, context[b, t].tolist()))]
                attention[b, j, 1 + t] = share
            attention[b, j, 0] = keep
            after[b, j] = torch.tensor(mixture, dtype=memory.dtype)
    return after, attention


def slow_gated_slots(rule, memory, context, mask):
    after, attention = torch.empty_like(memory), torch.zeros(*memory.shape[:2], 1 + context.shape[1], dtype=memory.dtype)
    for b, slots in enumerate(memory.tolist()):
        for j, slot in enumerate(slots):
            real = [t for t in range(context.shape[1]) if mask[b, t]]
            query, scores, update = linear(rule.query, slot), [], [0.0] * len(slot)
            for t in real:
                key = linear(rule.key, context[b, t].tolist())
                scores.append(sum(x * y for x, y in zip(query, key)) / math.sqrt(len(slot)))
            shares = slow_softmax(scores)
            for t, share in zip(real, shares):
                update = [u + share * v for u, v in zip(update, linear(rule.value, context[b, t].tolist()))]
            gate = [1 / (1 + math.exp(-x)) for x in linear(rule.keep, slot + update)]
            mixture = [g * x + (1 - g) * u for g, x, u in zip(gate, slot, update)]
            after[b, j] = torch.tensor(mixture, dtype=memory.dtype)
            attention[b, j, 0] = sum(gate) / len(gate)
            for t, share in zip(real, shares):
                attention[b, j, 1 + t] = share * (1 - sum(gate) / len(gate))
    return after, attention


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["keep", "keep_softmax", "gated"])
def test_rule_equals_the_loop_over_slots_and_tokens(project, name, masked):
    rule, (memory, context, mask) = make_rule(name, scale=0.5), some_input()
    every = torch.ones_like(mask)
    result = rule(memory, context, mask if masked else None)
    if name == "gated":
        expected = slow_gated_slots(rule, memory, context, mask if masked else every)
    else:
        normalise = project if name == "keep" else slow_softmax
        expected = slow_keep_attention(rule, normalise, memory, context, mask if masked else every)
    if name == "keep":
        assert 0.1 < (expected[1] == 0).double().mean() < 0.8  # some exact zeros, some shares
    torch.testing.assert_close(result.memory, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(result.write_attention, expected[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(result.write_attention.sum(-1), torch.ones(3, 4).double())


def test_a_slot_that_keeps_everything_is_unchanged_bit_for_bit():
    rule = make_rule("keep").float()
    rule.keep.weight.data = torch.tensor([[50.0, 0, 0, 0, 0, 0]])
    memory = torch.randn(2, 4, 6)
    memory[:, :2, 0] = 9.0  # these slots' keep score is far ahead
    memory[:, 2:, 0] = -9.0
    before = memory
    for _ in range(300):
        update = rule(memory, torch.randn(2, 5, 6))
        memory = update.memory
        assert (update.write_attention[:, :2, 0] == 1).all()
    assert torch.equal(memory[:, :2], before[:, :2])
    assert (memory[:, 2:] != before[:, 2:]).any(-1).all()


def test_softmax_never_keeps_everything():
    rule = make_rule("keep_softmax").float()
    torch.nn.init.constant_(rule.keep.bias, 8.0)
    assert rule.normalise is softmax
    memory = torch.randn(2, 4, 6)
    assert (rule(memory, torch.randn(2, 5, 6)).memory != memory).any(-1).all()


@pytest.mark.parametrize("name", list(UPDATE_RULES))
def test_a_segment_of_nothing_but_padding_leaves_the_memory_bit_for_bit(name):
    rule, (memory, context, mask) = make_rule(name), some_input()
    mask[1] = False
    after, attention = rule(memory, context, mask)
    assert torch.equal(after[1], memory[1]) and torch.equal(attention[1], torch.eye(6).double()[:1].expand(4, -1))
    assert not torch.equal(after[0], memory[0])


@pytest.mark.parametrize("name", list(UPDATE_RULES))
def test_padding_is_never_written(name):
    rule, (memory, context, mask) = make_rule(name), some_input()
    other = torch.where(mask[..., None], context, 100 * torch.randn_like(context))
    first, second = rule(memory, context, mask), rule(memory, other, mask)
    torch.testing.assert_close(second.memory, first.memory, atol=1e-12, rtol=0)
    assert (first.write_attention[..., 1:].transpose(1, 2)[~mask] == 0).all()


@pytest.mark.parametrize("name", list(UPDATE_RULES))
def test_texts_of_a_batch_do_not_touch_each_other(name):
    rule, (memory, context, _) = make_rule(name), some_input()
    alone = [rule(memory[b : b + 1], context[b : b + 1]).memory for b in range(3)]
    torch.testing.assert_close(rule(memory, context).memory, torch.cat(alone), atol=1e-12, rtol=0)


# ---- provenance ----


def test_provenance_equals_the_loop_over_slots():
    writes = [torch.rand(2, 3, 1 + length).softmax(-1) for length in (4, 1, 3)]
    shares = ml.provenance(writes)
    assert shares.shape == (2, 3, 1 + 8)
    for b in range(2):
        for j in range(3):
            held = [1.0]  # what is left of the initial slot
            for attention in writes:
                keep, *taken = attention[b, j].tolist()
                held = [keep * share for share in held] + taken
            torch.testing.assert_close(shares[b, j], torch.tensor(held), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["keep", "keep_softmax"])
def test_provenance_reproduces_the_slots_after_100_segments(name):
    rule = make_rule(name, scale=0.4).float()
    torch.nn.init.constant_(rule.keep.bias, 0.6)
    initial = memory = torch.randn(2, 4, 6)
    writes, values = [], []
    masks = torch.rand(100, 2, 5) < 0.8
    for mask in masks:
        context = torch.randn(2, 5, 6)
        memory, attention = rule(memory, context, mask)
        writes.append(attention)
        values.append(rule.value(context))
    shares = ml.provenance(writes)  # (2, 4, 1 + 500)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 4), atol=1e-5, rtol=0)
    mixed = shares[..., :1] * initial + shares[..., 1:] @ torch.cat(values, dim=1)
    torch.testing.assert_close(mixed, memory, atol=1e-5, rtol=0)
    padding = ~masks.transpose(0, 1).flatten(1)  # (2, 500)
    assert padding.any() and (shares[..., 1:].transpose(1, 2)[padding] == 0).all()
    if name == "keep":
        assert ((shares[..., 1:] > 0).sum(-1) > 3).any()  # a mixture of several tokens, or else this says little


def test_provenance_of_an_untouched_slot_is_its_initial_value():
    keeps = torch.zeros(1, 2, 5)
    keeps[..., 0] = 1
    shares = ml.provenance([keeps] * 3)
    assert torch.equal(shares[..., 0], torch.ones(1, 2)) and shares[..., 1:].eq(0).all()


@pytest.mark.parametrize("nothing", [[], ()])
def test_provenance_of_nothing_is_refused(nothing):
    with pytest.raises(ValueError, match=r"at least one segment: pass `out.write_attentions`"):
        ml.provenance(nothing)
