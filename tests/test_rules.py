import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import memgpt_lite as ml
from memgpt_lite.rules import UPDATE_RULES, stick_breaking

every_rule = pytest.mark.parametrize("name", list(UPDATE_RULES))
SHAPES = [(4, 5), (4, 2), (2, 5), (1, 5), (4, 1), (1, 1)]  # slots, tokens


def make_rule(name, slots=4, width=6, scale=1.0):
    rule = UPDATE_RULES[name](SimpleNamespace(n_embd=width, num_memory_slots=slots, keep_bias=0.0)).double()
    for parameter in rule.parameters():
        parameter.data.normal_(0, scale)
    return rule


def some_input(slots=4, length=5, width=6):
    memory, context = torch.randn(3, slots, width).double(), torch.randn(3, length, width).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1]])[:, :length].bool()
    return memory, context, mask


# ---- the published equations, number by number ----


def linear(layer, x):
    return [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(layer.weight.tolist(), layer.bias.tolist())]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_softmax(scores):
    exponentials = [math.exp(z - max(scores)) for z in scores]
    return [e / sum(exponentials) for e in exponentials]


def slow_stick_breaking(shares):
    """The shares s_1 … s_L of one slot → keep, and what is left of each in the end, by taking from a stick token after token."""
    held = [1.0]
    for share in shares:
        held = [(1 - share) * h for h in held] + [share]
    return held


def slow_keep_attention(rule, slots, tokens, normalise):
    after, rows = [], []
    for slot in slots:
        query = linear(rule.query, slot)
        scores = [dot(query, linear(rule.key, c)) / math.sqrt(len(slot)) for c in tokens]
        keep, *shares = normalise(linear(rule.keep, slot) + scores)
        mixture = [keep * x for x in slot]
        for share, c in zip(shares, tokens):
            mixture = [x + share * v for x, v in zip(mixture, linear(rule.value, c))]
        after.append(mixture)
        rows.append([keep, *shares])
    return after, rows


def slow_gated(rule, slots, tokens):
    after, rows = [], []
    for slot in slots:
        query, update = linear(rule.query, slot), [0.0] * len(slot)
        shares = slow_softmax([dot(query, linear(rule.key, c)) / math.sqrt(len(slot)) for c in tokens])
        for share, c in zip(shares, tokens):
            update = [u + share * v for u, v in zip(update, linear(rule.value, c))]
        gate = [sigmoid(x) for x in linear(rule.keep, slot + update)]
        after.append([g * x + (1 - g) * u for g, x, u in zip(gate, slot, update)])
        keep = sum(gate) / len(gate)
        rows.append([keep, *((1 - keep) * share for share in shares)])
    return after, rows


def slow_erase_add(rule, slots, tokens):
    """Graves et al. 2014: content addressing (equations 5 and 6), erase (3), add (4)."""
    shares = [[] for _ in slots]
    for c in tokens:
        key, strength = linear(rule.key, c), math.log(1 + math.exp(linear(rule.strength, c)[0]))
        erase, add = [1 - sigmoid(x) for x in linear(rule.keep, c)], linear(rule.add, c)
        cosines = [dot(key, m) / math.sqrt(dot(key, key) * dot(m, m)) for m in slots]
        address = slow_softmax([strength * cosine for cosine in cosines])
        for j, w in enumerate(address):
            slots[j] = [x * (1 - w * e) + w * a for x, e, a in zip(slots[j], erase, add)]
            shares[j].append(w * sum(erase) / len(erase))
    return slots, [slow_stick_breaking(row) for row in shares]


def slow_delta(rule, slots, tokens):
    """Schlag et al. 2021: v̄ = W k, then W ← W + β (v − v̄) kᵀ; slot i is column i of W."""
    shares = [[] for _ in slots]
    for c in tokens:
        key, value = slow_softmax(linear(rule.key, c)), linear(rule.value, c)
        beta = 1 - sigmoid(linear(rule.keep, c)[0])
        stored = [sum(k * slot[d] for k, slot in zip(key, slots)) for d in range(len(value))]
        for j, k in enumerate(key):
            slots[j] = [x + beta * (v - s) * k for x, v, s in zip(slots[j], value, stored)]
            shares[j].append(beta * k)
    return slots, [slow_stick_breaking(row) for row in shares]


def slow_fifo(rule, slots, tokens):
    origins = [0] * len(slots)
    for t, c in enumerate(tokens):
        slots, origins = [*slots[1:], c], [*origins[1:], 1 + t]
    return slots, [[float(origin == column) for column in range(1 + len(tokens))] for origin in origins]


def slow_rule(name, rule, project, memory, context, mask):
    """Text by text, with the padding left out and its columns of the write attention put back as zeros."""
    slow = {"gated": slow_gated, "erase_add": slow_erase_add, "delta": slow_delta, "fifo": slow_fifo}.get(name)
    after, attention = torch.empty_like(memory), torch.zeros(*memory.shape[:2], 1 + context.shape[1], dtype=memory.dtype)
    for b in range(len(memory)):
        slots, tokens = memory[b].tolist(), context[b, mask[b]].tolist()
        if slow:
            slots, rows = slow(rule, slots, tokens)
        else:
            slots, rows = slow_keep_attention(rule, slots, tokens, project if name == "keep" else slow_softmax)
        after[b] = torch.tensor(slots, dtype=memory.dtype)
        attention[b][:, F.pad(mask[b], (1, 0), value=True)] = torch.tensor(rows, dtype=memory.dtype)
    return after, attention


@every_rule
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("slots", "length"), SHAPES)
def test_rule_equals_the_loop_over_its_published_equation(project, name, masked, slots, length):
    rule, (memory, context, mask) = make_rule(name, slots, scale=0.5), some_input(slots, length)
    if not masked:
        mask = torch.ones_like(mask)
    mask[~mask.any(-1)] = True  # what a text of nothing but padding does has a test of its own
    after, attention = slow_rule(name, rule, project, memory, context, mask)
    result = rule(memory, context, mask if masked else None)
    torch.testing.assert_close(result.memory, after, atol=1e-12, rtol=0)
    torch.testing.assert_close(result.write_attention, attention, atol=1e-12, rtol=0)
    if name == "keep" and (slots, length) == (4, 5):
        assert 0.1 < (attention == 0).double().mean() < 0.8  # some exact zeros, some shares


def test_delta_is_exact_over_a_long_segment():
    """1,024 strong writes in one triangular solve, in single precision, against the loop in double precision."""
    rule, memory, context = (
        make_rule("delta", 8, 16, scale=0.5),
        torch.randn(1, 8, 16).double(),
        torch.randn(1, 1024, 16).double(),
    )
    rule.key.weight.data *= 3
    rule.keep.bias.data -= 4  # β around 0.98
    slots, k, v = memory[0], rule.key(context)[0].softmax(-1), rule.value(context)[0]
    for t, b in enumerate(torch.sigmoid(-rule.keep(context))[0]):
        slots = slots + b * torch.outer(k[t], v[t] - k[t] @ slots)
    found = rule.float()(memory.float(), context.float()).memory[0]
    torch.testing.assert_close(found.double(), slots, atol=1e-4, rtol=0)


def test_delta_never_moves_two_memories_apart_and_grows_by_no_more_than_the_step():
    rule, context = make_rule("delta", scale=2.0), torch.randn(50, 1, 6).double()
    memory, other = torch.randn(2, 50, 4, 6).double()
    after, after_other = rule(memory, context).memory, rule(other, context).memory
    assert ((after - after_other).norm(dim=(1, 2)) <= (memory - other).norm(dim=(1, 2))).all()
    step = (torch.sigmoid(-rule.keep(context)) * rule.value(context).norm(dim=-1, keepdim=True)).flatten()
    grown = after.norm(dim=(1, 2)) - memory.norm(dim=(1, 2))
    assert (grown <= step).all() and (grown > 0).any()


@pytest.mark.parametrize("name", ["keep_softmax", "gated", "erase_add", "delta"])
def test_these_rules_change_every_slot_in_every_segment(name):
    rule, (memory, context, _) = make_rule(name), some_input()
    nn.init.constant_(rule.keep.bias, 8.0)
    after, attention = rule(memory, context)
    assert (after != memory).any(-1).all() and (attention[..., 0] < 1).all()


@pytest.mark.parametrize("name", ["keep", "gated", "erase_add"])
def test_equal_slots_stay_equal_under_rules_that_go_by_content(name):
    rule, (memory, context, mask) = make_rule(name), some_input()
    after = rule(memory[:, :1].expand(-1, 4, -1), context, mask).memory
    torch.testing.assert_close(after, after[:, :1].expand_as(after), atol=1e-12, rtol=0)


def test_erase_add_scores_an_empty_slot_zero_and_its_gradient_is_finite():
    rule, (_, context, _) = make_rule("erase_add"), some_input()
    memory = torch.zeros(3, 4, 6).double().requires_grad_()
    after, attention = rule(memory, context)
    torch.testing.assert_close(after, after[:, :1].expand_as(after))  # equal slots stay equal
    first = torch.sigmoid(-rule.keep(context[:, :1])).mean(-1) / 4  # cosine 0 everywhere: every slot is addressed by 1/4
    torch.testing.assert_close(rule(memory, context[:, :1]).write_attention[..., 1], first.expand(3, 4))
    loss = (after * torch.randn_like(after)).sum() + (attention * torch.randn_like(attention)).sum()
    (gradient,) = torch.autograd.grad(loss, memory)
    assert gradient.isfinite().all() and 0 < gradient.abs().max() < 100


def test_fifo_holds_the_last_slots_tokens_of_many_segments_bit_for_bit():
    rule, memory = make_rule("fifo"), torch.randn(2, 7, 3)
    masks, contexts = torch.rand(20, 2, 4) < 0.6, torch.randn(20, 2, 4, 3)
    expected = [list(memory[b]) for b in range(2)]
    for mask, context in zip(masks, contexts):
        memory = rule(memory, context, mask).memory
        for b in range(2):
            expected[b] = [*expected[b], *context[b, mask[b]]][-7:]
            assert torch.equal(memory[b], torch.stack(expected[b]))


# ---- stick-breaking ----


def test_stick_breaking_equals_the_loop():
    shares = torch.rand(2, 3, 7).double()
    shares[0, 0, 3], shares[0, 1, 2] = 1.0, 0.0  # one that takes all, one that takes nothing
    expected = [[slow_stick_breaking(row) for row in rows] for rows in shares.tolist()]
    torch.testing.assert_close(stick_breaking(shares), torch.tensor(expected, dtype=torch.float64), atol=1e-14, rtol=0)


def one_hot_addresses(rule, context, strength):
    """Makes a token address the slot that its first three numbers point at, and nothing else."""
    for layer in (rule.key, *([rule.strength] if hasattr(rule, "strength") else [])):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    slot = torch.randint(0, 3, context.shape[:2])
    context[..., :3] = F.one_hot(slot, 3).double()
    rule.key.weight.data[:3, :3] = strength * torch.eye(3).double()
    return slot


def test_write_attention_of_delta_is_exact_for_one_hot_addresses():
    rule, memory, context = make_rule("delta", slots=3), torch.randn(2, 3, 6).double(), torch.randn(2, 9, 6).double()
    slot = one_hot_addresses(rule, context, 1000.0)
    after, attention = rule(memory, context)
    torch.testing.assert_close(after, attention[..., :1] * memory + attention[..., 1:] @ rule.value(context), atol=1e-12, rtol=0)
    assert ((attention[..., 1:] > 0) == F.one_hot(slot, 3).mT.bool()).all()  # β is never 0


def test_write_attention_of_erase_add_is_exact_for_one_hot_addresses_and_even_erasing():
    rule, context = make_rule("erase_add"), torch.randn(2, 9, 6).double()
    memory = torch.eye(6).double()[:3].repeat(2, 1, 1)  # slot j points at j, and goes on doing so:
    slot = one_hot_addresses(rule, context, 1.0)
    rule.add.weight.data[:3], rule.add.bias.data[:3] = 0, 0  # nothing is added in the directions that addresses go by,
    rule.add.weight.data *= 0.1
    rule.add.bias.data *= 0.1
    nn.init.constant_(rule.strength.bias, 5000.0)
    rule.keep.weight.data[:] = rule.keep.weight.data[:1] * 0.3  # and every dimension is erased alike
    rule.keep.bias.data[:] = 1.0
    after, attention = rule(memory, context)
    values = rule.add(context) / torch.sigmoid(-rule.keep(context))  # a_t is what the share e_t took in
    torch.testing.assert_close(after, attention[..., :1] * memory + attention[..., 1:] @ values, atol=1e-12, rtol=0)
    assert ((attention[..., 1:] > 0) == F.one_hot(slot, 3).mT.bool()).all()


# ---- what holds for every rule ----


@every_rule
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("slots", "length"), [(3, 4), (1, 1)])
def test_gradient_equals_difference_quotients(name, masked, slots, length):
    rule, (memory, context, mask) = make_rule(name, slots, width=4, scale=0.7), some_input(slots, length, width=4)
    memory, context = memory[1:].requires_grad_(), context[1:].requires_grad_()  # with padding, and with padding in between
    mask = mask[1:] if masked else None
    names, parameters = zip(*rule.named_parameters()) if name != "fifo" else ((), ())

    def function(memory, context, *parameters):
        update = torch.func.functional_call(rule, dict(zip(names, parameters)), (memory, context, mask))
        return update if name != "fifo" else update.memory  # its write attention is a matter of counting

    assert torch.autograd.gradcheck(function, (memory, context, *parameters), atol=1e-6, rtol=1e-4)
    gradients = torch.autograd.grad(rule(memory, context, mask).memory.square().sum(), (memory, context))
    assert gradients[0].abs().amax((1, 2)).max() > 1e-3 or (name == "fifo" and length >= slots)
    assert gradients[1].abs().max() > 1e-3
    if masked:
        assert (gradients[1][~mask] == 0).all()


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_segment_of_nothing_but_padding_leaves_the_memory_bit_for_bit(name, dtype):
    rule, (memory, context, mask) = make_rule(name).to(dtype), some_input()
    mask[1] = False
    memory = memory.to(dtype)
    after, attention = rule(memory, context.to(dtype), mask)
    assert torch.equal(after[1], memory[1]) and torch.equal(attention[1], torch.eye(6, dtype=dtype)[:1].expand(4, -1))
    assert not torch.equal(after[0], memory[0])


@every_rule
def test_padding_is_never_written(name):
    rule, (memory, context, mask) = make_rule(name), some_input()
    other = torch.where(mask[..., None], context, 100 * torch.randn_like(context))
    first, second = rule(memory, context, mask), rule(memory, other, mask)
    assert torch.equal(second.memory, first.memory) and torch.equal(second.write_attention, first.write_attention)
    assert (first.write_attention[..., 1:].transpose(1, 2)[~mask] == 0).all()


@every_rule
def test_padding_in_between_changes_nothing(name):
    rule, (memory, context, mask) = make_rule(name), some_input()
    padded = rule(memory, context, mask)
    for b in range(3):
        alone = rule(memory[b : b + 1], context[b : b + 1, mask[b]])
        torch.testing.assert_close(padded.memory[b], alone.memory[0], atol=1e-12, rtol=0)
        columns = F.pad(mask[b], (1, 0), value=True)
        torch.testing.assert_close(padded.write_attention[b][:, columns], alone.write_attention[0], atol=1e-12, rtol=0)


@every_rule
def test_texts_of_a_batch_do_not_touch_each_other(name):
    rule, (memory, context, _) = make_rule(name), some_input()
    alone = [rule(memory[b : b + 1], context[b : b + 1]).memory for b in range(3)]
    torch.testing.assert_close(rule(memory, context).memory, torch.cat(alone), atol=1e-12, rtol=0)


@every_rule
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_rows_of_the_write_attention_are_shares(name, scale):
    rule, (memory, context, mask) = make_rule(name, scale=scale), some_input()
    attention = rule(memory, context, mask).write_attention
    assert attention.shape == (3, 4, 6) and (attention >= 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 4).double(), atol=1e-12, rtol=0)


@every_rule
def test_a_rule_leaves_its_arguments_alone(name):
    rule, (memory, context, mask) = make_rule(name), some_input()
    given = (memory, context, mask)
    before, versions = [tensor.clone() for tensor in given], [tensor._version for tensor in given]
    rule(memory, context, mask)
    assert all(torch.equal(a, b) for a, b in zip(given, before))
    assert [tensor._version for tensor in given] == versions  # nothing was written and then put back


@every_rule
def test_bf16_autocast_gives_the_plain_result_within_its_precision(name):
    rule, (memory, context, mask) = make_rule(name, scale=0.3).float(), some_input()
    memory, context = memory.float(), context.float().requires_grad_()
    plain = rule(memory, context, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after, attention = rule(memory, context, mask)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, plain.memory, atol=0.03, rtol=0.03)
    torch.testing.assert_close(attention.float(), plain.write_attention, atol=0.03, rtol=0)
    torch.testing.assert_close(attention.float().sum(-1), torch.ones(3, 4), atol=0.02, rtol=0)
    after.square().sum().backward()
    assert context.grad.isfinite().all() and context.grad.abs().max() > 0


def test_delta_under_autocast_rounds_its_projections_and_nothing_else():
    rule, (memory, context, _) = make_rule("delta").float(), some_input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        k, v, b = rule.key(context.float()).softmax(-1), rule.value(context.float()), torch.sigmoid(-rule.keep(context.float()))
        after = rule(memory.float(), context.float()).memory
    slots, k, v, b = memory, k.double(), v.double(), b.double()
    for t in range(5):
        slots = slots + b[:, t, None] * k[:, t, :, None] * (v[:, t, None] - k[:, t, None] @ slots)
    torch.testing.assert_close(after.double(), slots, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["erase_add", "delta", "fifo"])
def test_the_memory_keeps_its_type_under_autocast(name):
    rule, (memory, context, mask) = make_rule(name).float(), some_input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rule(memory.bfloat16(), context.float(), mask).memory.dtype == torch.bfloat16


@every_rule
def test_a_rule_in_bf16_gives_bf16(name):
    rule, (memory, context, mask) = make_rule(name, scale=0.3), some_input()
    plain = rule(memory, context, mask)
    after, attention = rule.bfloat16()(memory.bfloat16(), context.bfloat16(), mask)
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after.double(), plain.memory, atol=0.05, rtol=0.05)
    torch.testing.assert_close(attention.double(), plain.write_attention, atol=0.05, rtol=0)


# ---- the table in the module's docstring ----


@every_rule
def test_number_of_parameters_is_that_of_the_table(name):
    m, d = 5, 7
    expected = {"gated": 5 * d * d + 4 * d, "delta": d * d + 2 * d + m * d + m + 1, "fifo": 0}.get(name, 3 * d * d + 4 * d + 1)
    assert sum(parameter.numel() for parameter in make_rule(name, m, d).parameters()) == expected


@pytest.mark.parametrize("name", ["keep", "keep_softmax", "gated", "delta", "fifo"])
def test_number_of_multiply_adds_is_that_of_the_table(name):
    b, length, m, d = 2, 32, 16, 64
    rule = make_rule(name, m, d)
    with FlopCounterMode(display=False) as counter:
        rule(torch.randn(b, m, d).double(), torch.randn(b, length, d).double())
    counted = counter.get_total_flops() / 2 / b  # of matrix products; two operations are one multiply-add
    expected = {
        "gated": (3 * m + 2 * length) * d * d + 2 * length * m * d,
        "delta": length * d * d + 3 * length * m * d + length * length * m,  # the counter does not know triangular solves
        "fifo": 0,
    }.get(name, (m + 2 * length) * d * d + 2 * length * m * d)
    assert counted == pytest.approx(expected, rel=0.02)  # the table leaves out what grows with LD or MD only


# ---- in a model ----


@every_rule
def test_keep_bias_reaches_the_rule(name):
    rule = UPDATE_RULES[name](SimpleNamespace(n_embd=8, num_memory_slots=3, keep_bias=2.5))
    model = ml.MemGPT(ml.MemGPTConfig(vocab_size=11, n_embd=8, n_layer=1, n_head=2, update_rule=name, keep_bias=2.5))
    for one in (rule, model.update_rule):
        assert hasattr(one, "keep_bias") == (name != "fifo")
        assert name == "fifo" or (one.keep.bias == 2.5).all()


@pytest.mark.parametrize("name", [name for name in UPDATE_RULES if name != "fifo"])
def test_a_higher_keep_bias_lets_an_untrained_slot_keep_more(name):
    memory, context = torch.randn(4, 3, 8), torch.randn(4, 5, 8)
    kept = []
    for keep_bias in (-3.0, 0.0, 3.0):
        torch.manual_seed(1)
        rule = UPDATE_RULES[name](SimpleNamespace(n_embd=8, num_memory_slots=3, keep_bias=keep_bias))
        kept.append(float(rule(memory, context).write_attention[..., 0].detach().mean()))
    assert kept[0] < kept[1] - 0.1 < kept[2] - 0.2


@every_rule
def test_train_step_in_a_tiny_model(tiny, name):
    model = tiny(update_rule=name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    input_ids, mask = torch.randint(0, 11, (2, 14)), torch.ones(2, 14, dtype=torch.long)
    mask[1, 9:] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        step = model.train_step(optimizer, input_ids, torch.ones(2, 3, 8), input_ids, attention_mask=mask)
        losses.append(float(step.loss))
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.1
    assert step.memory.isfinite().all()
    for key, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[key]), f"{key} was not trained"


@every_rule
def test_the_loss_of_a_late_segment_reaches_the_embeddings_of_an_early_one(tiny, name):
    model, seen = tiny(torch.float64, update_rule=name), []
    model.transformer.wte.register_forward_hook(lambda module, args, result: seen.append(result))
    input_ids = torch.randint(0, 11, (2, 16))
    labels = input_ids.masked_fill(torch.arange(16) < 13, -100)  # every label is predicted from inside the last segment
    for k, reached in ((None, True), (3, False)):
        seen.clear()
        loss = model(input_ids, torch.randn(2, 3, 8).double(), labels=labels, bptt_segments=k).loss
        gradients = torch.autograd.grad(loss, seen, allow_unused=True, materialize_grads=True)
        first_segment = torch.cat(gradients, dim=1)[:, :4]  # (2, 4, 8)
        assert bool((first_segment.abs().amax((1, 2)) > 1e-12).all()) == reached
        assert reached or (first_segment == 0).all()
