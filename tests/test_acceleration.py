"""What makes training faster or smaller changes nothing, or no more than is stated here: compiled, in half precision, recomputed."""

import runpy
from pathlib import Path

import pytest
import torch

import memgpt_lite as ml
from memgpt_lite.rules import UPDATE_RULES

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "replay_memory.py"))
LiveBytes, measure_memory = BENCHMARK["LiveBytes"], BENCHMARK["measure_memory"]
DROPOUT = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}
every_rule = pytest.mark.parametrize("rule", list(UPDATE_RULES))


def some_texts(length=23, rows=3):
    """Texts that end in the middle of a segment, padded in front, behind and in between."""
    input_ids = torch.randint(0, 11, (rows, length))
    mask = torch.ones_like(input_ids)
    mask[0, :6], mask[1, 15:], mask[2, 9:11] = 0, 0, 0
    return input_ids, mask


def training_step(model, input_ids, memory, **options):
    """Loss, final memory, and the gradient of every parameter and of the initial memory; the same dropout at every call."""
    torch.manual_seed(7)
    model.zero_grad()
    memory = memory.detach().requires_grad_()
    out = model(input_ids, memory=memory, labels=input_ids, **options)
    out.loss.backward()
    return out.loss.detach(), out.memory.detach(), {**{n: p.grad for n, p in model.named_parameters()}, "memory": memory.grad}


def assert_same_step(found, expected, tolerance):
    for a, b in zip(found[:2], expected[:2]):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
    for name, right in expected[2].items():
        assert (found[2][name] is None) == (right is None), name
        if right is not None:
            torch.testing.assert_close(found[2][name], right, atol=tolerance, rtol=0)


# ---- torch.compile ----


@pytest.fixture
def forgetful():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def differences(compiled, model, input_ids, **options):
    """How far the compiled model is from the plain one: its result's greatest differences, by name."""
    outs = [m(input_ids, **options) for m in (compiled, model)]
    results = [{"memory": out.memory, "logits": out.logits, "loss": out.loss} for out in outs]
    parameters = dict(model.named_parameters())
    for result, out in zip(results, outs):
        goal = out.memory.square().sum() if out.loss is None else out.loss
        gradients = torch.autograd.grad(goal, list(parameters.values()), allow_unused=True)
        result.update({f"gradient of {name}": g for name, g in zip(parameters, gradients)})
    found, expected = results
    assert {name for name in found if found[name] is None} == {name for name in expected if expected[name] is None}
    return {name: float((found[name] - right).detach().abs().max()) for name, right in expected.items() if right is not None}


@pytest.mark.parametrize("case", ["no labels", "labels and padding", "replayed and cut"])
def test_a_compiled_model_gives_the_plain_result_in_one_graph(tiny, forgetful, case):
    model = tiny(torch.float64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def batch():
        input_ids, mask = some_texts(length=11)
        memory = torch.randn(3, 3, 8, dtype=torch.float64)
        options = {
            "no labels": {},
            "labels and padding": {"labels": input_ids, "attention_mask": mask},
            "replayed and cut": {"labels": input_ids, "memory_replay": True, "bptt_segments": 2},
        }
        return {"input_ids": input_ids, "memory": memory, **options[case]}

    found = differences(compiled, model, **batch())
    assert max(found.values()) < 1e-12 and len(found) > 30
    with torch.compiler.set_stance("fail_on_recompile"):  # a second batch of the same shape
        assert max(differences(compiled, model, **batch()).values()) < 1e-12


def test_pytorchs_own_compiler_gives_the_plain_result(tiny, forgetful):
    """The default backend, inductor, which writes C++: slow to compile, so one small model, forward and backward."""
    model = tiny(n_layer=1, memory_init="learned")
    compiled = torch.compile(model, fullgraph=True)
    text = torch.randint(0, 11, (2, 7))
    found, gradients = [], []
    for one in (model, compiled):
        model.zero_grad()
        out = one(text, labels=text)
        out.loss.backward()
        found.append((out.loss, out.logits, out.memory))
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


@every_rule
def test_a_compiled_update_rule_gives_the_plain_result_in_one_graph(tiny, forgetful, rule):
    rule = tiny(torch.float64, update_rule=rule).update_rule
    memory, context = torch.randn(3, 3, 8, dtype=torch.float64), torch.randn(3, 4, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    compiled = torch.compile(rule, backend="aot_eager", fullgraph=True)
    for found, right in zip(compiled(memory, context, mask), rule(memory, context, mask)):
        torch.testing.assert_close(found, right, atol=1e-12, rtol=0)


def test_replay_draws_again_what_a_dropout_of_the_users_own_drew(tiny):
    """One that no setting tells of, such as an adapter's."""
    model = tiny(torch.float64, memory_init="learned").train()
    model.transformer.h[0].mlp.dropout = torch.nn.Dropout(0.5)
    text, gradients = torch.randint(0, 11, (2, 13)), []
    for replay in (False, True):
        model.zero_grad()
        torch.manual_seed(0)
        model(text, labels=text, memory_replay=replay).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-10, rtol=0)


# ---- half precision ----


@every_rule
@pytest.mark.parametrize("replay", [False, True])
def test_bf16_autocast_stays_near_float32_and_the_memory_stays_float32(tiny, rule, replay):
    """For a model as it is initialised: loss to 1 %, cosine between the gradients above 0.99."""
    model = ml.MemGPT(tiny(update_rule=rule, n_embd=32, num_memory_slots=8).config)
    input_ids, memory = torch.randint(0, 11, (3, 24)), torch.randn(3, 8, 32)
    loss, _, gradients = training_step(model, input_ids, memory)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near, after, near_gradients = training_step(model, input_ids, memory, memory_replay=replay)
    assert near != loss and near.dtype == after.dtype == torch.float32
    torch.testing.assert_close(near, loss, rtol=1e-2, atol=0)
    a, b = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, near_gradients))
    assert b.isfinite().all() and after.isfinite().all()
    assert torch.cosine_similarity(a, b, dim=0) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_rule
def test_a_whole_model_in_half_precision_trains_and_generates(tiny, rule, dtype):
    model = tiny(update_rule=rule, n_embd=32, num_memory_slots=8)
    input_ids, memory = torch.randint(0, 11, (3, 23)), torch.randn(3, 8, 32)
    plain = model(input_ids, memory=memory, labels=input_ids).loss
    model.to(dtype)
    out = model(input_ids, memory=memory, labels=input_ids)
    assert out.memory.dtype == out.logits.dtype == dtype
    torch.testing.assert_close(out.loss.float(), plain, rtol=2e-2, atol=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    losses = [model.train_step(optimizer, input_ids, memory, input_ids).loss for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1
    text = model.generate(input_ids[:, :5], memory=memory.to(dtype), max_new_tokens=9, do_sample=False)
    assert text.shape == (3, 14) and (text >= 0).all() and (text < 11).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_sparsemax_in_half_precision_is_that_of_float32_rounded(dtype, scale):
    scores = (scale * torch.randn(200, 65)).to(dtype).requires_grad_()
    weights = torch.randn(200, 65)
    single = scores.detach().float().requires_grad_()
    found, expected = ml.sparsemax(scores), ml.sparsemax(single)
    assert found.dtype == dtype and torch.equal(found, expected.to(dtype))
    assert (found.float().sum(-1) - 1).abs().max() <= torch.finfo(dtype).eps / 2  # what rounding 65 numbers that sum to 1 can do
    (found.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(scores.grad.float(), single.grad, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_too_a_slot_that_keeps_everything_is_unchanged_bit_for_bit(dtype):
    rule = ml.KeepAttention(6, keep_bias=30.0)
    memory, context = torch.randn(2, 4, 6), torch.randn(2, 5, 6)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(rule(memory, context).memory, memory)
    assert torch.equal(rule.to(dtype)(memory.to(dtype), context.to(dtype)).memory, memory.to(dtype))


# ---- activation checkpointing ----


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"update_rule": "delta", "freeze_gpt2": True}])
def test_activation_checkpointing_gives_the_plain_gradient_with_dropout_too(tiny, options, reentrant):
    model = tiny(torch.float64, **DROPOUT, **options).train()
    input_ids, mask = some_texts()
    memory = torch.randn(3, 3, 8, dtype=torch.float64)
    expected = training_step(model, input_ids, memory, attention_mask=mask)
    calls = []
    model.transformer.h[0].ln_1.register_forward_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_step(training_step(model, input_ids, memory, attention_mask=mask), expected, 1e-10)
    assert len(calls) == 2 * 6  # every one of the 6 segments is read twice
    replayed = training_step(model, input_ids, memory, attention_mask=mask, memory_replay=True)
    assert_same_step(replayed, expected, 1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_keeps_less_for_the_backward_pass(tiny, reentrant):
    model = tiny(n_layer=4, n_embd=16).train()
    input_ids, memory = torch.randint(0, 11, (4, 32)), torch.randn(4, 3, 16)
    plain = measure_memory(model, input_ids, memory)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = measure_memory(model, input_ids, memory)
    assert checkpointed.kept < plain.kept / 3 and checkpointed.peak < plain.peak / 2


# ---- memory replay ----


@every_rule
@pytest.mark.parametrize("bptt_segments", [None, 1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_memory_replay_gives_the_gradient_of_full_back_propagation_with_dropout_too(tiny, rule, bptt_segments, masked):
    model = tiny(torch.float64, update_rule=rule, memory_init="learned", **DROPOUT).train()
    input_ids, mask = some_texts()
    options = {"bptt_segments": bptt_segments, "attention_mask": mask if masked else None}
    memory = torch.randn(3, 3, 8, dtype=torch.float64)
    expected = training_step(model, input_ids, memory, **options)
    assert_same_step(training_step(model, input_ids, memory, memory_replay=True, **options), expected, 1e-10)
    assert expected[2]["memory"].abs().max() > 1e-3


def test_memory_replay_reaches_learned_slots(tiny):
    model = tiny(torch.float64, memory_init="learned", **DROPOUT).train()
    input_ids, _ = some_texts()
    gradients = []
    for replay in (False, True):
        torch.manual_seed(7)
        loss = model(input_ids, labels=input_ids, memory_replay=replay).loss
        gradients.append(torch.autograd.grad(loss, model.initial_memory)[0])
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


def memory_for(tiny, segments, rows=2, length=8, slots=3, width=16, **options):
    model = tiny(segment_length=length, n_embd=width, num_memory_slots=slots, n_layer=1).train()
    input_ids, memory = torch.randint(0, 11, (rows, segments * length)), torch.randn(rows, slots, width)
    return measure_memory(model, input_ids, memory, **options)


@pytest.mark.parametrize("masked", [False, True])
def test_with_memory_replay_a_segment_costs_one_memory_and_its_token_numbers(tiny, masked):
    def measured(segments, replay):
        mask = torch.ones(2, segments * 8, dtype=torch.long) if masked else None
        return memory_for(tiny, segments, attention_mask=mask, memory_replay=replay)

    state, loss = 2 * 3 * 16 * 4, 4  # bytes of a memory (B, M, D) in float32, and of a number
    numbers = 2 * 8 * (8 + masked)  # (B, L): where each predicts which label, and its mask
    four, sixteen, sixty_four = (measured(segments, replay=True) for segments in (4, 16, 64))
    for less, more, segments in ((four, sixteen, 12), (sixteen, sixty_four, 48)):
        for a, b in zip(less, more):  # kept for the backward pass, and the peak
            assert state <= (b - a) / segments <= state + numbers + 2 * loss
    for a, b in zip(measured(4, replay=False), measured(16, replay=False)):
        assert (b - a) / 12 > 20 * state


def test_the_bytes_counted_are_those_that_pytorchs_profiler_sees(tiny):
    model = tiny(segment_length=8, n_embd=16).train()
    memory, random_state = torch.randn(2, 3, 16), torch.get_rng_state().nbytes
    for replay in (False, True):
        counted, seen = [], []
        for segments in (4, 16):
            input_ids = torch.randint(0, 11, (2, segments * 8))
            counted.append(measure_memory(model, input_ids, memory, memory_replay=replay).peak)
            model.zero_grad()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
                model(input_ids, memory=memory, labels=input_ids, output_attentions=False, memory_replay=replay).loss.backward()
            events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
            sizes = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
            seen.append(int(sizes.cumsum(0).max()))
        if not replay:
            assert all(0.95 < a / b < 1.05 for a, b in zip(counted, seen))
        unseen = (
            (seen[1] - seen[0]) - (counted[1] - counted[0])
        ) / 12  # with replay, PyTorch's random state, which dropout needs
        assert abs(unseen) < random_state + 200


def test_live_bytes_counts_what_is_alive_and_not_views_or_what_was_there():
    before = torch.zeros(1000)
    with LiveBytes() as counter:
        view = before.view(10, 100)
        a = torch.zeros(100)
        assert counter.live == counter.peak == 400
        b, same = a + 1, a[:50]
        assert counter.live == 800
        del a
        assert counter.live == 800  # the view still holds it
        del same
        assert counter.live == 400 and counter.peak == 800
        del b
    assert counter.live == 0 and view.shape == (10, 100)


# ---- truncated back-propagation ----


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_every_segments_loss_reaches_its_own_group_of_k_segments_and_no_other(tiny, k, replay):
    model, segments = tiny(torch.float64), 5
    input_ids, memory = torch.randint(0, 11, (2, segments * 4)), torch.randn(2, 3, 8, dtype=torch.float64)
    for r in range(segments):
        labels = torch.full_like(input_ids, -100)
        labels[:, 4 * r + 1 : 4 * r + 4] = input_ids[:, 4 * r + 1 : 4 * r + 4]  # predicted inside segment r
        full = ml.memory_gradients(model, input_ids, labels, memory)
        cut = ml.memory_gradients(model, input_ids, labels, memory, bptt_segments=k, memory_replay=replay)
        for s in range(segments + 1):
            wrote = max(s - 1, 0)  # the segment that memory s comes from; the initial memory belongs to segment 0
            if s <= r and (segments - 1 - wrote) // k == (segments - 1 - r) // k:
                assert full[s].abs().max() > 1e-9
                torch.testing.assert_close(cut[s], full[s], atol=1e-14, rtol=1e-9)
            else:
                assert (cut[s] == 0).all()


# ---- deterministic algorithms ----


@every_rule
def test_it_runs_with_deterministic_algorithms(tiny, rule):
    model = tiny(update_rule=rule, **DROPOUT).train()
    input_ids, mask = some_texts()
    memory = torch.randn(3, 3, 8)
    torch.use_deterministic_algorithms(True)
    try:
        steps = [training_step(model, input_ids, memory, attention_mask=mask) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_step(*steps, 0.0)
