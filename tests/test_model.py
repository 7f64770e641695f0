import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import memgpt_lite as ml


def ids(batch, length, vocabulary=11):
    return torch.randint(0, vocabulary, (batch, length))


# ---- forward, written again from the equations ----


def normalised(x, weight, bias):
    return weight * (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() + bias


def attend(query, keys, values):
    """One head, one position: softmax(q·k/√d) over the keys, and the mixture of the values."""
    scores = [(query @ key).item() / math.sqrt(len(query)) for key in keys]
    total = sum(math.exp(s) for s in scores)
    weights = [math.exp(s) / total for s in scores]
    return sum(w * v for w, v in zip(weights, values)), weights


def slow_segment(model, tokens, slots):
    """One text, one segment, position by position: logits (L, V), context vectors (L, D), read attention (layers, H, L, M)."""
    w, config = model.state_dict(), model.config
    width, heads = config.n_embd, config.n_head
    parts = [slice(i * width // heads, (i + 1) * width // heads) for i in range(heads)]
    embedding = w["transformer.wte.weight"]
    h = [embedding[token] + w["transformer.wpe.weight"][t] for t, token in enumerate(tokens)]
    memory = [normalised(slot, w["ln_memory.weight"], w["ln_memory.bias"]) for slot in slots]
    reads = []

    for layer in range(config.n_layer):

        def conv(x, name, layer=layer):
            return x @ w[f"transformer.h.{layer}.{name}.weight"] + w[f"transformer.h.{layer}.{name}.bias"]

        def norm(x, name, layer=layer):
            return normalised(x, w[f"transformer.h.{layer}.{name}.weight"], w[f"transformer.h.{layer}.{name}.bias"])

        q, k, v = zip(*(conv(norm(x, "ln_1"), "attn.c_attn").split(width) for x in h))
        for t in range(len(h)):
            mixed = [attend(q[t][p], [y[p] for y in k[: t + 1]], [y[p] for y in v[: t + 1]])[0] for p in parts]
            h[t] = h[t] + conv(torch.cat(mixed), "attn.c_proj")
        if layer in config.read_layers:
            k, v = zip(*(conv(slot, "crossattention.c_attn").split(width) for slot in memory))
            q = [conv(norm(x, "ln_cross_attn"), "crossattention.q_attn") for x in h]
            rows = [[attend(q[t][p], [y[p] for y in k], [y[p] for y in v]) for p in parts] for t in range(len(h))]
            h = [x + conv(torch.cat([mixed for mixed, _ in row]), "crossattention.c_proj") for x, row in zip(h, rows)]
            reads.append([[row[i][1] for row in rows] for i in range(heads)])
        for t, x in enumerate(h):
            inner = conv(norm(x, "ln_2"), "mlp.c_fc")
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            h[t] = x + conv(inner, "mlp.c_proj")

    h = [normalised(x, w["transformer.ln_f.weight"], w["transformer.ln_f.bias"]) for x in h]
    logits = [torch.stack([x @ row for row in embedding]) for x in h]
    context = h
    if config.context_from_output:
        expected = [sum(p * row for p, row in zip((y - y.max()).exp() / (y - y.max()).exp().sum(), embedding)) for y in logits]
        context = [x + w["output_to_context.weight"] @ e for x, e in zip(h, expected)]
    return torch.stack(logits), torch.stack(context), torch.tensor(reads)


@pytest.mark.parametrize("options", [{}, {"read_layers": [1], "context_from_output": False}, {"update_rule": "gated"}])
def test_forward_equals_the_equations_segment_by_segment(tiny, options):
    model = tiny(torch.float64, **options)
    input_ids, start = ids(2, 11), torch.randn(2, 3, 8, dtype=torch.float64)  # segments of 4, 4 and 3 tokens
    out = model(input_ids, memory=start, output_hidden_states=True)
    assert out.logits.shape == (2, 11, 11) and len(out.write_attentions) == 3 and len(out.memories) == 4
    for b in range(2):
        memory = start[b]
        for s, cut in enumerate((slice(0, 4), slice(4, 8), slice(8, 11))):
            torch.testing.assert_close(out.memories[s][b], memory)
            logits, context, reads = slow_segment(model, input_ids[b, cut], memory)
            torch.testing.assert_close(out.logits[b, cut], logits, atol=1e-6, rtol=0)
            for layer, read in enumerate(out.read_attentions):
                expected = reads[layer].to(read.dtype)
                torch.testing.assert_close(read[b, :, cut], expected, atol=1e-6, rtol=0)
            update = model.update_rule(memory[None], context[None])  # equals a loop: tests/test_memory.py
            torch.testing.assert_close(out.write_attentions[s][b], update.write_attention[0], atol=1e-6, rtol=0)
            memory = update.memory[0]
        torch.testing.assert_close(out.memory[b], memory, atol=1e-6, rtol=0)


def test_hidden_states_begin_with_the_embeddings_and_end_before_the_logits(tiny):
    model, input_ids = tiny(), ids(2, 6)
    out = model(input_ids, output_hidden_states=True)
    embeddings = model.transformer
    first = embeddings.wte.weight[input_ids] + embeddings.wpe.weight[[0, 1, 2, 3, 0, 1]]
    assert len(out.hidden_states) == 3
    torch.testing.assert_close(out.hidden_states[0], first)
    torch.testing.assert_close(out.hidden_states[-1] @ embeddings.wte.weight.T, out.logits)
    assert torch.equal(out.memories[-1], out.memory)


def test_what_is_not_requested_is_not_returned(tiny):
    out = tiny()(ids(1, 6), output_attentions=False)
    assert out.loss is out.hidden_states is out.memories is out.read_attentions is out.write_attentions is None
    logits, memory, *_ = tiny(memory_init="zeros")(ids(1, 6), return_dict=False)
    assert logits.shape == (1, 6, 11) and memory.shape == (1, 3, 8)


@given(st.data())
def test_shapes_and_rows_for_any_size(data):
    batch, length, slots, heads, segment = (data.draw(st.integers(1, n)) for n in (3, 13, 6, 3, 5))
    width, segments = heads * data.draw(st.integers(1, 4)), math.ceil(length / segment)
    config = ml.MemGPTConfig(
        vocab_size=data.draw(st.integers(1, 9)), segment_length=segment, n_embd=width, n_layer=2, n_head=heads,
        num_memory_slots=slots, update_rule=data.draw(st.sampled_from(["keep", "keep_softmax", "gated"])),
        memory_init=data.draw(st.sampled_from(["normal", "zeros", "orthogonal", "learned"])),
        read_layers=data.draw(st.sampled_from([None, [0], [1]])),
    )  # fmt: skip
    out = ml.MemGPT(config)(ids(batch, length, config.vocab_size), output_hidden_states=True)
    assert out.logits.shape == (batch, length, config.vocab_size) and out.logits.isfinite().all()
    assert out.memory.shape == (batch, slots, width) and out.memory.isfinite().all()
    assert [m.shape for m in out.memories] == [(batch, slots, width)] * (segments + 1)
    assert [h.shape for h in out.hidden_states] == [(batch, length, width)] * 3
    assert [r.shape for r in out.read_attentions] == [(batch, heads, length, slots)] * len(config.read_layers)
    last = length - (segments - 1) * segment
    assert [w.shape for w in out.write_attentions] == [(batch, slots, 1 + n) for n in [segment] * (segments - 1) + [last]]
    for rows in (*out.read_attentions, *out.write_attentions):
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-5, rtol=0)
        assert (rows >= 0).all()


# ---- what does not change anything ----


def test_texts_of_a_batch_never_influence_each_other(tiny):
    model, input_ids, memory = tiny(), ids(3, 10), torch.randn(3, 3, 8)
    whole = model(input_ids, memory=memory)
    for b in range(3):
        alone = model(input_ids[b : b + 1], memory=memory[b : b + 1])
        torch.testing.assert_close(whole.logits[b], alone.logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(whole.memory[b], alone.memory[0], atol=1e-5, rtol=0)
    memory[1] = torch.nan
    poisoned = model(input_ids, memory=memory)
    assert poisoned.logits[1].isnan().all() and torch.equal(poisoned.logits[[0, 2]], whole.logits[[0, 2]])


@pytest.mark.parametrize("changed", [1, 3, 4, 9, 12])
def test_a_later_token_changes_nothing_before_it(tiny, changed):
    model, first = tiny(), ids(2, 13)
    second = first.clone()
    second[:, changed] = (first[:, changed] + 1) % 11
    memory = torch.randn(2, 3, 8)
    a, b = (model(x, memory=memory) for x in (first, second))
    assert torch.equal(a.logits[:, :changed], b.logits[:, :changed])
    assert (a.logits[:, changed:] != b.logits[:, changed:]).any(-1).all()  # and something in every position after it
    for s in range(changed // 4):
        assert torch.equal(a.write_attentions[s], b.write_attentions[s])


@pytest.mark.parametrize("kind", ["normal", "learned"])
@pytest.mark.parametrize("cut", [4, 8])
def test_a_text_in_two_halves_with_the_memory_passed_on_equals_the_whole(tiny, cut, kind):
    model, input_ids = tiny(memory_init=kind), ids(2, 10)
    memory = model.init_memory(2)
    whole, first = model(input_ids, memory=memory), model(input_ids[:, :cut], memory=memory)
    second = model(input_ids[:, cut:], memory=first.memory)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(second.memory, whole.memory, atol=1e-6, rtol=0)
    forgetful = model(input_ids[:, cut:], memory=memory)
    assert (forgetful.logits - whole.logits[:, cut:]).abs().max() > 1e-3


@pytest.mark.parametrize("rule", ["keep", "keep_softmax", "gated"])
def test_a_segment_of_padding_leaves_the_memory_bit_for_bit(tiny, rule):
    model, memory = tiny(update_rule=rule), torch.randn(2, 3, 8)
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    out = model(ids(2, 4), memory=memory, attention_mask=mask)
    assert torch.equal(out.memory[0], memory[0]) and not torch.equal(out.memory[1], memory[1])
    assert out.logits.isfinite().all()


PADDED = {  # a text of 7 real tokens, in segments of 4 with padding before or after them; same real tokens in each segment
    "right": [[1, 1, 1, 1], [1, 1, 1, 0]],
    "left": [[1, 1, 1, 1], [0, 1, 1, 1]],
    "right, then more": [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]],
    "left, after more": [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1]],
}


@pytest.mark.parametrize("rule", ["keep", "gated"])
@pytest.mark.parametrize("side", PADDED)
def test_padding_changes_nothing_at_the_real_tokens(tiny, side, rule):
    model, text, memory = tiny(update_rule=rule), ids(2, 7), torch.randn(2, 3, 8)
    mask = torch.tensor(PADDED[side]).flatten()
    plain = model(text, memory=memory)
    for pad in (0, 5):
        padded = torch.full((2, len(mask)), pad)
        padded[:, mask.bool()] = text
        out = model(padded, memory=memory, attention_mask=mask.expand(2, -1))
        torch.testing.assert_close(out.logits[:, mask.bool()], plain.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(out.memory, plain.memory, atol=1e-5, rtol=0)
        written = torch.cat([write[..., 1:] for write in out.write_attentions], dim=-1)
        leading = int(mask.argmax())  # segments, and so these columns, are counted from the first token
        assert (written[..., ~mask.roll(-leading).bool()] == 0).all()


def test_reading_slots_by_their_own_projections_is_the_same_as_calling_the_layers(tiny):
    """Few slots are read in another order of multiplication; a layer that somebody replaced is called all the same."""

    class Replaced(Conv1D):
        pass

    folded = tiny(n_layer=2).double()
    for parameter in folded.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and layer norms too
    called = copy.deepcopy(folded)
    assert folded.config.n_head * folded.config.num_memory_slots < folded.config.n_embd  # few
    for block in called.transformer.h:
        block.crossattention.q_attn.__class__ = Replaced
    text, memory = ids(2, 11), torch.randn(2, 3, 8).double()
    outs = [model(text, memory=memory, labels=text) for model in (folded, called)]
    for out in outs:
        out.loss.backward()
    torch.testing.assert_close(outs[0].logits, outs[1].logits, atol=1e-12, rtol=0)
    for one, other in zip(outs[0].read_attentions, outs[1].read_attentions):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    for (name, one), (_, other) in zip(folded.named_parameters(), called.named_parameters()):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-12, rtol=0, msg=name)

    block = called.transformer.h[0]
    block.crossattention.q_attn.forward = lambda x: torch.zeros_like(x)  # attention becomes even: the layer is called
    torch.testing.assert_close(called(text, memory=memory).read_attentions[0], torch.full((2, 2, 11, 3), 1 / 3).double())


def test_padding_in_front_moves_no_segment_boundary(tiny):
    """Every row is read as it would be alone: its segments begin at its first token, wherever that stands."""
    model, memory = tiny(), torch.randn(4, 3, 8)
    lengths, longest = (11, 3, 9, 8), 11
    padded, mask = torch.full((4, longest), 5), torch.zeros(4, longest, dtype=torch.long)
    texts = [ids(1, n)[0] for n in lengths]
    for b, text in enumerate(texts):
        padded[b, longest - len(text) :] = text
        mask[b, longest - len(text) :] = 1
    labels = padded.masked_fill(mask == 0, -100)
    together = model(padded, memory=memory, attention_mask=mask, labels=labels, output_hidden_states=True)
    losses = []
    for b, text in enumerate(texts):
        alone = model(text[None], memory=memory[b : b + 1], labels=text[None], output_hidden_states=True)
        torch.testing.assert_close(together.logits[b, -len(text) :], alone.logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.memory[b], alone.memory[0], atol=1e-5, rtol=0)
        for layer, one in zip(together.hidden_states, alone.hidden_states):
            torch.testing.assert_close(layer[b, -len(text) :], one[0], atol=1e-5, rtol=0)
        for layer, one in zip(together.read_attentions, alone.read_attentions):
            torch.testing.assert_close(layer[b, :, -len(text) :], one[0], atol=1e-5, rtol=0)
        losses.append(alone.loss * (len(text) - 1))
    torch.testing.assert_close(together.loss, sum(losses) / (sum(lengths) - 4), atol=1e-5, rtol=0)


def test_the_mask_differs_from_text_to_text(tiny):
    model, text, memory = tiny(), ids(2, 4), torch.randn(2, 3, 8)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    out = model(text, memory=memory, attention_mask=mask)
    for b, length in enumerate((2, 4)):
        alone = model(text[b : b + 1, :length], memory=memory[b : b + 1])
        torch.testing.assert_close(out.logits[b, :length], alone.logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(out.memory[b], alone.memory[0], atol=1e-5, rtol=0)


# ---- a GPT-2 that reads nothing ----

GPT2 = {"vocab_size": 11, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None}


def random_gpt2():
    gpt2 = GPT2LMHeadModel(GPT2Config(**GPT2)).eval()
    for parameter in gpt2.parameters():
        parameter.data.normal_(0, 0.5)
    return gpt2


def test_with_reading_switched_off_it_gives_the_logits_of_gpt2():
    gpt2, model = random_gpt2(), ml.MemGPT(ml.MemGPTConfig(**GPT2, segment_length=16, zero_init_read=True)).eval()
    missing, unexpected = model.load_state_dict(gpt2.state_dict(), strict=False)
    assert not unexpected and all(
        "cross" in n or n.split(".")[0] in ("ln_memory", "output_to_context", "update_rule") for n in missing
    )
    input_ids = ids(3, 16)
    torch.testing.assert_close(model(input_ids).logits, gpt2(input_ids).logits, atol=1e-5, rtol=0)
    mask = torch.ones(3, 16, dtype=torch.long)
    mask[:, 12:] = 0
    masked = [m(input_ids, attention_mask=mask).logits[:, :12] for m in (model, gpt2)]
    torch.testing.assert_close(*masked, atol=1e-5, rtol=0)
    assert model(input_ids, labels=input_ids).loss.item() == pytest.approx(
        gpt2(input_ids, labels=input_ids).loss.item(), abs=1e-5
    )


def test_without_zero_init_read_the_memory_changes_the_logits():
    gpt2, model = random_gpt2(), ml.MemGPT(ml.MemGPTConfig(**GPT2, segment_length=16)).eval()
    model.load_state_dict(gpt2.state_dict(), strict=False)
    input_ids = ids(3, 16)
    assert (model(input_ids).logits - gpt2(input_ids).logits).abs().max() > 1e-2


def test_a_saved_gpt2_loads_with_its_weights_and_a_fresh_memory(tmp_path):
    gpt2 = random_gpt2()
    gpt2.save_pretrained(tmp_path)
    config = ml.MemGPTConfig.from_dict({**gpt2.config.to_dict(), "segment_length": 8, "zero_init_read": True, "keep_bias": 3.0})
    model = ml.MemGPT.from_pretrained(tmp_path, config=config).eval()
    input_ids = ids(2, 8)
    torch.testing.assert_close(model(input_ids).logits, gpt2(input_ids).logits, atol=1e-5, rtol=0)
    assert model.update_rule.keep.bias.item() == 3 and model.update_rule.query.weight.std() > 0


# ---- initialisation ----


@pytest.mark.parametrize("given", [None, 0.02])
def test_initial_weights_are_as_wide_as_gpt2_has_them(given):
    config = ml.MemGPTConfig(
        vocab_size=200,
        n_embd=64,
        n_layer=4,
        n_head=4,
        initializer_range=given,
        memory_init="learned",
        num_memory_slots=64,
        keep_bias=2,
    )
    model, std = ml.MemGPT(config), 0.8 / math.sqrt(64) if given is None else given
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(std / math.sqrt(2 * 4), rel=0.06), name
        elif name == "initial_memory":
            assert parameter.std().item() == pytest.approx(1, rel=0.06) and parameter.shape == (64, 64)
        elif name == "update_rule.keep.bias":
            assert parameter.item() == 2
        elif "ln_" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(std, rel=0.06 if parameter.numel() > 1000 else 0.4), name
    reads = [n for n, _ in model.named_parameters() if "crossattention.c_proj.weight" in n]
    assert len(reads) == 4


def test_zero_init_read_starts_only_the_read_at_zero(tiny):
    config = tiny().config
    config.zero_init_read = True
    for name, parameter in ml.MemGPT(config).named_parameters():
        if name.endswith("c_proj.weight"):
            assert (parameter == 0).all() == ("crossattention" in name), name


def test_keep_bias_sets_the_gate_of_gated_slots():
    config = ml.MemGPTConfig(vocab_size=5, n_embd=8, n_layer=1, n_head=1, update_rule="gated", keep_bias=1.5)
    assert (ml.MemGPT(config).update_rule.keep.bias == 1.5).all()


@pytest.mark.parametrize("kind", ["normal", "zeros", "orthogonal", "learned"])
def test_memory_starts_as_configured(tiny, kind):
    model = tiny(memory_init=kind)
    memory = model.init_memory(2, generator=torch.Generator().manual_seed(3))
    if kind == "learned":
        assert torch.equal(memory, model.initial_memory.expand(2, 3, 8))
        model(ids(2, 4), labels=ids(2, 4)).loss.backward()
        assert model.initial_memory.grad.abs().max() > 0
    else:
        assert torch.equal(memory, ml.initial_memory(kind, 2, 3, 8, generator=torch.Generator().manual_seed(3)))
    torch.manual_seed(5)
    without = model(ids(2, 6)).logits
    torch.manual_seed(5)
    input_ids = ids(2, 6)
    assert torch.equal(without, model(input_ids, memory=model.init_memory(2)).logits)


def test_memory_for_no_text_is_refused(tiny):
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        tiny().init_memory(0)


@pytest.mark.parametrize(
    "options", [{"memory_init": "learned", "read_layers": [1]}, {"update_rule": "gated", "context_from_output": False}]
)
def test_saved_and_loaded_it_gives_the_same_logits(tiny, tmp_path, options):
    model, input_ids, memory = tiny(**options), ids(2, 10), torch.randn(2, 3, 8)
    model.save_pretrained(tmp_path)
    loaded = ml.MemGPT.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(input_ids, memory=memory).logits, model(input_ids, memory=memory).logits)
    before, after = model.config.to_dict(), loaded.config.to_dict()
    assert {name: after[name] for name in after if name != "_name_or_path"} == {
        n: before[n] for n in after if n != "_name_or_path"
    }
    assert loaded.lm_head.weight is loaded.transformer.wte.weight  # tied
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


# ---- configuration ----


def test_defaults_follow_from_the_other_settings():
    config = ml.MemGPTConfig(vocab_size=9, segment_length=20, n_embd=100, n_layer=3, n_head=2)
    assert config.n_positions == 20 and config.initializer_range == pytest.approx(0.08) and config.read_layers == [0, 1, 2]
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0


def test_whole_numbers_do_for_settings_that_are_not_whole():
    config = ml.MemGPTConfig(vocab_size=9, n_embd=8, n_head=2, keep_bias=2, initializer_range=1)
    assert config.keep_bias == 2 and config.initializer_range == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(
            ({name: 0}, f"{name} must be at least 1, not 0")
            for name in ("vocab_size", "n_embd", "n_layer", "n_head", "segment_length")
        ),
        ({"num_memory_slots": -1}, "num_memory_slots must be at least 1, not -1"),
        ({"n_embd": 9}, r"n_embd \(9\) must be a multiple of n_head \(2\)"),
        ({"segment_length": 9, "n_positions": 8}, r"segment_length \(9\) is more than n_positions \(8\): shorten"),
        ({"update_rule": "lstm"}, "unknown update_rule 'lstm': choose one of keep, keep_softmax, gated"),
        ({"memory_init": "ones"}, "unknown memory_init 'ones': choose one of normal, zeros, orthogonal, learned"),
        ({"read_layers": [2]}, r"read_layers must name at least one of the blocks 0 to 1, not \[2\]"),
        ({"read_layers": [-1]}, r"read_layers must name .* not \[-1\]"),
        ({"read_layers": []}, r"read_layers must name at least one of the blocks 0 to 1, not \[\]"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ml.MemGPTConfig(**{"vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, **wrong})


@pytest.mark.parametrize("wrong", [{"segment_length": "4"}, {"num_memory_slots": 2.5}, {"update_rule": None}])
def test_settings_of_the_wrong_type_are_refused(wrong):
    with pytest.raises(Exception, match=f"field '{next(iter(wrong))}'"):
        ml.MemGPTConfig(**wrong)


# ---- loss ----


def mean_surprise(logits, labels):
    """−log of the probability given to each label by the position before it, averaged with a loop."""
    surprises = []
    for row, asked in zip(logits.tolist(), labels.tolist()):
        for t in range(len(asked) - 1):
            if asked[t + 1] != -100:
                surprises.append(math.log(sum(math.exp(z) for z in row[t])) - row[t][asked[t + 1]])
    return sum(surprises) / len(surprises), len(surprises)


def test_loss_equals_the_loop_over_labelled_positions(tiny):
    model, input_ids, memory = tiny(), ids(3, 10), torch.randn(3, 3, 8)
    labels = ids(3, 10).masked_fill(torch.rand(3, 10) < 0.4, -100)
    labels[:, 0] = 3  # nothing comes before the first token: its label is never asked
    labels[:, 4] = 3  # the second segment's first token is predicted by the first segment's last
    out = model(input_ids, memory=memory, labels=labels)
    expected, count = mean_surprise(out.logits, labels)
    assert out.loss.item() == pytest.approx(expected, abs=1e-5)
    for items in (7, torch.tensor(7)):
        given = model(input_ids, memory=memory, labels=labels, num_items_in_batch=items).loss.item()
        assert given == pytest.approx(expected * count / 7, rel=1e-5)
    shifted = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], dim=1)
    assert torch.equal(model(input_ids, memory=memory, shift_labels=shifted).loss, out.loss)
    assert torch.equal(model(input_ids, memory=memory, labels=labels.int()).loss, out.loss)


def test_shift_labels_ask_the_last_position_too(tiny):
    model, input_ids, memory = tiny(), ids(2, 5), torch.randn(2, 3, 8)
    last = torch.full((2, 5), -100)
    last[:, -1] = torch.tensor([2, 9])
    out = model(input_ids, memory=memory, shift_labels=last)
    probabilities = out.logits[:, -1].softmax(-1)
    expected = -(probabilities[0, 2].log() + probabilities[1, 9].log()) / 2
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("side", PADDED)
def test_padding_is_not_asked(tiny, side):
    """Labels at padding count for nothing: what is asked are the tokens that have a token before them."""
    model, memory = tiny(), torch.randn(2, 3, 8)
    mask = torch.tensor(PADDED[side]).flatten().expand(2, -1)
    text = ids(2, mask.size(1))
    out = model(text, memory=memory, attention_mask=mask, labels=text)
    asked = mask[:, :-1].bool() & mask[:, 1:].bool()
    surprises = torch.nn.functional.cross_entropy(out.logits[:, :-1].transpose(1, 2), text[:, 1:], reduction="none")
    torch.testing.assert_close(out.loss, surprises[asked].mean(), atol=1e-6, rtol=0)
    as_usual = {"memory": memory, "attention_mask": mask, "labels": text.masked_fill(mask == 0, -100)}
    assert torch.equal(model(text, **as_usual).loss, out.loss)
    assert torch.equal(model(text, **as_usual | {"labels": text}, memory_replay=True).loss, out.loss)
    torch.testing.assert_close(model(text, **as_usual | {"labels": text}, num_items_in_batch=5).loss, surprises[asked].sum() / 5)
    following = torch.nn.functional.pad(text[:, 1:].masked_fill(~asked, -100), (0, 1), value=-100)
    assert torch.equal(model(text, memory=memory, attention_mask=mask, shift_labels=following).loss, out.loss)


def test_where_nothing_is_asked_the_loss_and_its_gradient_are_0(tiny):
    model, input_ids = tiny(), ids(2, 6)
    out = model(input_ids, labels=torch.full_like(input_ids, -100))
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    assert model.transformer.wte.weight.grad is not None


# ---- context vectors and update ----


def test_context_vectors_equal_the_loop_over_positions(tiny):
    model, hidden, logits = tiny(), torch.randn(2, 3, 8), torch.randn(2, 3, 11)
    context = model.context_vectors(hidden, logits)
    for b in range(2):
        for t in range(3):
            y = [math.exp(z) for z in logits[b, t].tolist()]
            expected = sum(p / sum(y) * model.transformer.wte.weight[token] for token, p in enumerate(y))
            torch.testing.assert_close(context[b, t], hidden[b, t] + model.output_to_context.weight @ expected, atol=1e-6, rtol=0)
    without = tiny(context_from_output=False)
    assert without.output_to_context is None and torch.equal(without.context_vectors(hidden, logits), hidden)


def test_update_memory_is_what_forward_does_after_a_segment(tiny):
    model, input_ids, memory = tiny(), ids(2, 4), torch.randn(2, 3, 8)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    out = model(input_ids, memory=memory, attention_mask=mask, output_hidden_states=True)
    context = model.context_vectors(out.hidden_states[-1], out.logits)
    torch.testing.assert_close(model.update_memory(memory, context, mask), out.memory)
    assert (model.update_memory(memory, context)[0] != out.memory[0]).any()


@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 8)])
def test_context_vectors_of_the_wrong_shape_are_refused(tiny, shape):
    message = r"context_vectors must have shape \(B, L, 8\), not .*: model.context_vectors\(hidden_states, logits\) makes them"
    with pytest.raises(ValueError, match=message):
        tiny().update_memory(torch.zeros(2, 3, 8), torch.zeros(shape))


def test_update_memory_refuses_a_memory_of_another_batch(tiny):
    with pytest.raises(ValueError, match=r"memory must have shape \(batch, slots, width\) = \(2, 3, 8\), not \(1, 3, 8\)"):
        tiny().update_memory(torch.zeros(1, 3, 8), torch.zeros(2, 4, 8))


# ---- wrong input ----

TOKENS = torch.zeros(2, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("error", "message", "wrong"),
    [
        (TypeError, r"tensor of whole numbers \(torch.long\), not torch.float32", {"input_ids": TOKENS.float()}),
        (TypeError, r"tensor of whole numbers \(torch.long\), not list", {"input_ids": [[1, 2]]}),
        (TypeError, r"tensor of whole numbers \(torch.long\), not torch.bool", {"input_ids": TOKENS.bool()}),
        (ValueError, r"two dimensions, .* not shape \(5,\); for a single text write input_ids.unsqueeze\(0\)", {"input_ids": TOKENS[0]}),
        (ValueError, r"two dimensions, .* not shape \(1, 2, 5\)", {"input_ids": TOKENS[None]}),
        (ValueError, r"input_ids is empty, shape \(2, 0\): pass at least one text", {"input_ids": TOKENS[:, :0]}),
        (ValueError, r"input_ids is empty, shape \(0, 5\)", {"input_ids": TOKENS[:0]}),
        (ValueError, r"input_ids holds token numbers from 0 to 11, but the vocabulary has 0 to 10", {"input_ids": TOKENS.index_fill(1, TOKENS[0, :1], 11)}),
        (ValueError, r"input_ids holds token numbers from -1 to -1, .* tokenizer", {"input_ids": TOKENS - 1}),
        (TypeError, r"memory must be a tensor of shape \(2, 3, 8\), not list", {"memory": [[0.0]]}),
        (TypeError, r"memory must hold floating-point numbers, not torch.int64", {"memory": torch.zeros(2, 3, 8).long()}),
        (ValueError, r"= \(2, 3, 8\), not \(1, 3, 8\): start from model.init_memory\(2\)", {"memory": torch.zeros(1, 3, 8)}),
        (ValueError, r"= \(2, 3, 8\), not \(2, 8, 3\)", {"memory": torch.zeros(2, 8, 3)}),
        (ValueError, r"= \(2, 3, 8\), not \(3, 8\)", {"memory": torch.zeros(3, 8)}),
        (ValueError, r"attention_mask must have the shape of input_ids, \(2, 5\), not \(2, 4\)", {"attention_mask": TOKENS[:, :4]}),
        (ValueError, r"labels must have the shape of input_ids, \(2, 5\), not \(2, 4\)", {"labels": TOKENS[:, :4]}),
        (ValueError, r"shift_labels must have the shape of input_ids, \(2, 5\), not \(1, 5\)", {"shift_labels": TOKENS[:1]}),
        (ValueError, r"labels or shift_labels, not both", {"labels": TOKENS, "shift_labels": TOKENS}),
        (TypeError, r"labels must be a tensor of whole numbers \(torch.long\), not torch.float32", {"labels": TOKENS.float()}),
        (TypeError, r"shift_labels must be a tensor of whole numbers \(torch.long\), not torch.bool", {"shift_labels": TOKENS.bool()}),
        (ValueError, r"attention_mask must be 1 at tokens and 0 at padding, but holds -inf: .* no mask to be added to scores", {"attention_mask": TOKENS.float().index_fill(1, TOKENS[0, :1], -torch.inf)}),
        (ValueError, r"attention_mask must be 1 at tokens and 0 at padding, but holds 2", {"attention_mask": TOKENS + 2}),
        (ValueError, r"labels holds token numbers from 11 to 11", {"labels": TOKENS + 11}),
        (ValueError, r"shift_labels holds token numbers from -1 to -1", {"shift_labels": TOKENS - 1}),
        (ValueError, r"bptt_segments must be at least 1, or None for all segments, not 0", {"bptt_segments": 0}),
        (ValueError, r"logits_to_keep must be at least 1, or 0 for all positions, not -1", {"logits_to_keep": -1}),
        (ValueError, r"logits_to_keep must be at least 1, or 0 for all positions, not -2", {"logits_to_keep": -2, "use_cache": True}),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_with_advice(tiny, error, message, wrong):
    with pytest.raises(error, match=message):
        tiny()(**{"input_ids": TOKENS, **wrong})


def test_whole_numbers_of_either_size_are_tokens(tiny):
    model, memory, input_ids = tiny(), torch.randn(2, 3, 8), ids(2, 5)
    assert torch.equal(model(input_ids.int(), memory=memory).logits, model(input_ids, memory=memory).logits)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16])
def test_a_mask_of_any_type_is_the_same_mask(tiny, dtype):
    model, memory, input_ids = tiny(), torch.randn(2, 3, 8), ids(2, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = model(input_ids, memory=memory, attention_mask=mask).logits
    assert torch.equal(model(input_ids, memory=memory, attention_mask=mask.to(dtype)).logits, expected)


# ---- PyTorch's own conventions ----


def test_dropout_works_in_training_and_not_in_evaluation(tiny):
    model, input_ids, memory = tiny(resid_pdrop=0.5, embd_pdrop=0.5), ids(2, 5), torch.randn(2, 3, 8)
    assert torch.equal(model(input_ids, memory=memory).logits, model(input_ids, memory=memory).logits)
    model.train()
    assert not torch.equal(model(input_ids, memory=memory).logits, model(input_ids, memory=memory).logits)


def test_the_same_seed_gives_the_same_model_and_memory(tiny):
    def numbers(seed):
        torch.manual_seed(seed)
        model = ml.MemGPT(tiny().config)
        return torch.cat([p.flatten() for p in model.parameters()] + [model.init_memory(1).flatten()])

    assert torch.equal(numbers(1), numbers(1)) and not torch.equal(numbers(1), numbers(2))
