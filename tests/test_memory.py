import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import memgpt_lite as ml
from memgpt_lite.memory import softmax

INFINITY = float("inf")
rows_of_scores = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12)


def make_rule(normalise=ml.sparsemax, scale=1.0):
    rule = ml.KeepAttention(6, normalise=normalise).double()
    for parameter in rule.parameters():
        parameter.data.normal_(0, scale)
    return rule


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
    after = make_rule()(memory, torch.randn(2, 5, 6).double()).memory
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("slots", "width"), [(3, 8), (9, 4)])
def test_orthogonal_slots_in_half_precision_are_orthogonal_to_its_digits(dtype, slots, width):
    memory = ml.initial_memory("orthogonal", 2, slots, width, dtype=dtype)
    assert memory.dtype == dtype
    vectors = memory.float() if slots <= width else memory.float().mT
    expected = max(slots, width) * torch.eye(min(slots, width)).expand(2, -1, -1)
    torch.testing.assert_close(vectors @ vectors.mT, expected, atol=max(slots, width) * torch.finfo(dtype).eps, rtol=0)


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


# ---- keep-attention ----


def test_a_slot_that_keeps_everything_is_unchanged_bit_for_bit():
    rule = make_rule().float()
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
    rule = make_rule(softmax).float()
    torch.nn.init.constant_(rule.keep.bias, 8.0)
    assert rule.normalise is softmax
    memory = torch.randn(2, 4, 6)
    assert (rule(memory, torch.randn(2, 5, 6)).memory != memory).any(-1).all()


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


@pytest.mark.parametrize("normalise", [ml.sparsemax, softmax])
def test_provenance_reproduces_the_slots_after_100_segments(normalise):
    rule = make_rule(normalise, scale=0.4).float()
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
    if normalise is ml.sparsemax:
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
