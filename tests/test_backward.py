import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import memgpt_lite as ml
from memgpt_lite.backward import is_cut
from memgpt_lite.memory import KeepAttention, softmax
from memgpt_lite.rules import UPDATE_RULES, GatedSlots


def difference_quotients(function, x, step=1e-6):
    """∂function/∂x by moving one number of x at a time, both ways."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        up, down = x.clone(), x.clone()
        up.view(-1)[i] += step
        down.view(-1)[i] -= step
        gradient.view(-1)[i] = (function(up) - function(down)) / (2 * step)
    return gradient


# ---- by hand ----


@pytest.mark.parametrize("shape", [(1,), (6,), (4, 3, 7)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_sparsemax_backward_equals_autograd_and_difference_quotients(shape, scale):
    scores = (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(shape, dtype=torch.float64)
    probabilities = ml.sparsemax(scores)
    (by_autograd,) = torch.autograd.grad((probabilities * weights).sum(), scores)
    by_hand = ml.sparsemax_backward(probabilities.detach(), weights)
    torch.testing.assert_close(by_hand, by_autograd, atol=1e-9, rtol=0)
    quotients = difference_quotients(lambda z: (ml.sparsemax(z) * weights).sum(), scores.detach())
    torch.testing.assert_close(by_hand, quotients, atol=1e-6, rtol=0)


def test_sparsemax_backward_where_one_score_takes_all_is_zero():
    gradient = ml.sparsemax_backward(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([3.0, -2.0, 5.0]))
    assert torch.equal(gradient, torch.zeros(3))


@pytest.mark.parametrize("masked", [False, True])
def test_keep_attention_backward_equals_autograd(masked):
    rule = KeepAttention(6).double()
    for parameter in rule.parameters():
        parameter.data.normal_(0, 0.5)
    memory = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    context = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(3, 4, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool() if masked else None

    after, attention = rule(memory, context, mask)
    assert 0.1 < (attention[:2] == 0).double().mean() < 0.8  # some exact zeros, some shares
    names, parameters = zip(*rule.named_parameters())
    expected = torch.autograd.grad((after * gradient).sum(), (memory, context, *parameters))
    by_hand = ml.keep_attention_backward(rule, memory, context, gradient, mask)

    assert set(by_hand.parameters) == set(names)
    for found, right in zip((by_hand.memory, by_hand.context_vectors, *(by_hand.parameters[n] for n in names)), expected):
        torch.testing.assert_close(found, right, atol=1e-9, rtol=0)
        assert right.abs().max() > 1e-3 and not found.requires_grad
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("rule", [GatedSlots(6), KeepAttention(6, normalise=softmax)])
def test_keep_attention_backward_of_another_rule_is_refused(rule):
    with pytest.raises(ValueError, match="KeepAttention with sparsemax; use autograd for others"):
        ml.keep_attention_backward(rule, torch.randn(1, 2, 6), torch.randn(1, 3, 6), torch.randn(1, 2, 6))


# ---- truncated back-propagation ----


@given(st.integers(1, 12), st.integers(1, 14))
def test_cuts_leave_groups_of_k_segments_counted_from_the_end(num_segments, k):
    groups, rest = [], list(range(num_segments))
    while rest:
        groups.insert(0, rest[-k:])
        rest = rest[:-k]
    begins = [group[0] for group in groups[1:]]
    assert [s for s in range(num_segments) if is_cut(s, num_segments, k)] == begins
    assert not any(is_cut(s, num_segments, None) for s in range(num_segments))


def only_the_last_segment_labelled(segments, length=4):
    input_ids = torch.randint(0, 11, (2, segments * length))
    labels = torch.full_like(input_ids, -100)
    labels[:, -length + 1 :] = input_ids[:, -length + 1 :]  # every one of them is predicted from inside the last segment
    return input_ids, labels


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_a_gradient_goes_back_exactly_k_segments(tiny, k):
    model, segments = tiny(torch.float64), 5
    input_ids, labels = only_the_last_segment_labelled(segments)
    memory = torch.randn(2, 3, 8, dtype=torch.float64)
    full = ml.memory_gradients(model, input_ids, labels, memory)
    cut = ml.memory_gradients(model, input_ids, labels, memory, bptt_segments=k)
    assert (full[:-1].flatten(1).abs().amax(-1) > 1e-9).all()  # all the way back there is something to cut
    beyond = max(0, segments - k + 1)  # the memory that enters the k-th last segment is cut off from what made it
    if k >= segments:
        assert torch.equal(cut, full)
    else:
        assert (cut[:beyond] == 0).all()
    torch.testing.assert_close(cut[beyond:], full[beyond:], atol=1e-14, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_truncated_parameter_gradients_are_those_of_the_last_k_segments_alone(tiny, k):
    model = tiny(torch.float64)
    input_ids, labels = only_the_last_segment_labelled(4)
    memory = torch.randn(2, 3, 8, dtype=torch.float64)
    begin = max(0, 4 - k) * 4
    with torch.no_grad():
        entering = model(input_ids[:, :begin], memory=memory).memory if begin else memory
    parameters = list(model.parameters())
    losses = (
        model(input_ids, memory=memory, labels=labels, bptt_segments=k).loss,
        model(input_ids[:, begin:], memory=entering, labels=labels[:, begin:]).loss,
    )
    found, expected = (torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True) for loss in losses)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_a_cut_changes_neither_the_loss_nor_the_logits(tiny):
    model = tiny()
    input_ids = torch.randint(0, 11, (2, 16))
    full, cut = (model(input_ids, torch.ones(2, 3, 8), labels=input_ids, bptt_segments=k) for k in (None, 1))
    assert torch.equal(full.logits, cut.logits) and torch.equal(full.loss, cut.loss)


# ---- measured ----


@pytest.mark.parametrize("rule", list(UPDATE_RULES))
def test_memory_gradients_equal_difference_quotients(tiny, rule):
    model, segments = tiny(torch.float64, update_rule=rule), 3
    input_ids = torch.randint(0, 11, (2, segments * 4))
    labels = input_ids.masked_fill(torch.rand(2, segments * 4) < 0.3, -100)
    memory = torch.randn(2, 3, 8, dtype=torch.float64)
    gradients = ml.memory_gradients(model, input_ids, labels, memory)
    assert gradients.shape == (segments + 1, 2, 3, 8) and (gradients[-1] == 0).all()

    memories = model(input_ids, memory=memory, output_hidden_states=True).memories
    following = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    asked = (following != -100).sum()

    def rest_of_the_loss(begin, entering):
        rest = {"input_ids": input_ids[:, begin:], "shift_labels": following[:, begin:]}
        return model(**rest, memory=entering, num_items_in_batch=asked).loss.detach()

    for s in range(segments):
        quotients = difference_quotients(lambda m, s=s: rest_of_the_loss(4 * s, m), memories[s].detach())
        assert quotients.abs().max() > 1e-4
        torch.testing.assert_close(gradients[s], quotients, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", ["normal", "learned"])
def test_memory_gradients_leave_the_parameters_gradients_alone(tiny, kind):
    model = tiny(memory_init=kind)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    input_ids = torch.randint(0, 11, (2, 8))
    with torch.no_grad():  # measures all the same
        gradients = ml.memory_gradients(model, input_ids, input_ids)
    assert gradients[0].abs().max() > 0
    assert all((parameter.grad == 7).all() for parameter in model.parameters())


def test_memory_gradients_leave_the_given_memory_alone(tiny):
    model, memory = tiny(), torch.randn(2, 3, 8)
    before, input_ids = memory.clone(), torch.randint(0, 11, (2, 8))
    ml.memory_gradients(model, input_ids, input_ids, memory)
    assert torch.equal(memory, before) and not memory.requires_grad and memory.grad is None
