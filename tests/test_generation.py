"""Generation against `forward` without a cache, which tests/test_model.py compares with the equations."""

import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, StoppingCriteria, TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

import memgpt_lite as ml
from memgpt_lite.rules import UPDATE_RULES

L, V = 6, 40  # tokens of a segment, vocabulary
PAD = 0  # no prompt holds it, and where it is declared it is suppressed


def build(seed=1, dtype=torch.float64, **options):
    """A model that writes varied text, which depends on position and memory."""
    small = {"vocab_size": V, "segment_length": L, "n_embd": 32, "n_layer": 2, "n_head": 2, "num_memory_slots": 3}
    torch.manual_seed(seed)
    model = ml.MemGPT(ml.MemGPTConfig(**{**small, "initializer_range": 0.6, **options})).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "wpe" in name:
                parameter.normal_(0, 2)
            elif "crossattention.c_proj" in name:
                parameter.mul_(1.5)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def queue():
    """A model whose memory is the last three tokens that were read: one more or less would show."""
    return build(update_rule="fifo")


def prompts(lengths, seed=1, vocabulary=V):
    """Random prompts, padded on the left: ids (B, T), mask (B, T)."""
    generator, longest = torch.Generator().manual_seed(seed), max(lengths)
    ids = torch.randint(1, vocabulary, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, PAD), mask


def argmax_of_forward(model, ids, mask, memory, steps):
    """Greedy text, token by token, each from `forward` over the whole text: sequences (B, T + steps), logits (steps, B, V)."""
    logits = []
    for _ in range(steps):
        logits.append(model(ids, memory=memory, attention_mask=mask).logits[:, -1].detach())
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids, torch.stack(logits)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-8, rtol=0)


# ---- greedy ----


@pytest.mark.parametrize(
    "options",
    [
        *({"update_rule": name} for name in UPDATE_RULES),
        {"read_layers": [1], "context_from_output": False},
        {"memory_init": "learned"},
        {"n_positions": 20},
    ],
    ids=str,
)
def test_greedy_text_is_the_argmax_of_forward(options):
    model, steps = build(**options), 5 * L + 3
    for lengths in ([7], [1, 5, 6, 14]):
        ids, mask = prompts(lengths)
        memory = model.init_memory(len(ids))
        sequences, logits = argmax_of_forward(model, ids, mask, memory, steps)
        best, second = logits.topk(2).values.unbind(-1)
        assert (best - second).min() > 1e-5  # 1,000 times what `close` allows: no text turns on rounding
        assert sequences[:, -steps:].unique().numel() > len(lengths)
        whole = model(sequences, memory=memory, attention_mask=torch.nn.functional.pad(mask, (0, steps), value=1))
        for use_cache in (True, False):
            out = model.generate(
                ids, memory=memory, attention_mask=mask, max_new_tokens=steps, use_cache=use_cache,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            assert torch.equal(out.sequences, sequences)
            close(torch.stack(out.logits).double(), logits.float().double())  # `generate` rounds them
            close(out.memory, whole.memory)
            assert (out.past_key_values is not None) == use_cache
        for row, length in enumerate(lengths):
            alone = model.generate(ids[row : row + 1, -length:], memory=memory[row : row + 1], max_new_tokens=steps)
            assert torch.equal(alone[0], sequences[row, -length - steps :])


def test_the_text_depends_on_the_memory_from_which_it_starts(model):
    ids, _ = prompts([7])
    first, second = (model.generate(ids, memory=memory, max_new_tokens=20) for memory in model.init_memory(2).split(1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("length", [1, L - 1, L, L + 1, 2 * L, 5 * L + 2])
def test_a_prompt_may_end_anywhere_in_a_segment(model, length):
    ids, mask = prompts([length])
    memory = model.init_memory(1)
    expected, _ = argmax_of_forward(model, ids, mask, memory, 9)
    for chunk in (None, 1, 4, L):
        assert torch.equal(model.generate(ids, memory=memory, max_new_tokens=9, prefill_chunk_size=chunk), expected)


def test_padding_between_tokens_takes_up_columns_as_in_forward(model):
    ids, _ = prompts([4 * L, 4 * L])
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[0, 9:12] = mask[1, 4 : 2 * L] = mask[1, 2 * L + 2 : 3 * L] = (
        0  # in front, within, and a part of each segment
    )
    memory = model.init_memory(2)
    expected, logits = argmax_of_forward(model, ids, mask, memory, 15)
    for use_cache in (True, False):
        out = model.generate(
            ids, memory=memory, attention_mask=mask, max_new_tokens=15, use_cache=use_cache,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        assert torch.equal(out.sequences, expected)
        close(torch.stack(out.logits).double(), logits.float().double())
        close(out.memory, model(expected, memory=memory, attention_mask=torch.cat([mask, mask.new_ones(2, 15)], 1)).memory)


def test_padding_is_seen_in_the_prompt_where_no_mask_is_given(model):
    ids, mask = prompts([3, 9])
    memory = model.init_memory(2)
    expected = model.generate(ids, memory=memory, attention_mask=mask, max_new_tokens=12, return_dict_in_generate=True)
    as_config = GenerationConfig(pad_token_id=PAD, max_new_tokens=12, return_dict_in_generate=True)
    given = model.generate(ids, memory=memory, generation_config=as_config)
    named = model.generate(input_ids=ids, memory=memory, max_new_tokens=12, pad_token_id=PAD, return_dict_in_generate=True)
    own = copy.deepcopy(model)
    own.generation_config.pad_token_id = PAD
    default = own.generate(ids, GenerationConfig(max_new_tokens=12, return_dict_in_generate=True), memory=memory)
    for out in (given, named, default):
        assert torch.equal(out.sequences, expected.sequences)
        assert torch.equal(out.memory, expected.memory)
    without = model.generate(ids, memory=memory, max_new_tokens=12)  # no padding is declared: these are tokens
    assert not torch.equal(without, expected.sequences)


def test_a_padding_token_that_ends_texts_too_is_a_token_of_the_prompt(model):
    ids, _ = prompts([3, 9])
    expected = model.generate(ids, memory=(memory := model.init_memory(2)), max_new_tokens=6, suppress_tokens=[PAD])
    options = {"pad_token_id": PAD, "eos_token_id": PAD, "suppress_tokens": [PAD]}
    assert torch.equal(model.generate(ids, memory=memory, max_new_tokens=6, **options), expected)


def test_the_first_memory_is_drawn_as_init_memory_draws_it(model):
    ids, _ = prompts([7, 7])
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        texts.append(model.generate(ids, max_new_tokens=20, use_cache=use_cache))
    torch.manual_seed(3)
    texts.append(model.generate(ids, max_new_tokens=20, memory=model.init_memory(2)))
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])
    torch.manual_seed(4)
    assert not torch.equal(texts[0], model.generate(ids, max_new_tokens=20))


def test_a_text_can_begin_with_nothing_but_its_bos_token():
    model = build(bos_token_id=7)
    memory = model.init_memory(3)
    expected = model.generate(torch.full((3, 1), 7), memory=memory, max_new_tokens=20, return_dict_in_generate=True)
    out = model.generate(memory=memory, max_new_tokens=20, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected.sequences) and torch.equal(out.memory, expected.memory)
    assert model.generate(max_new_tokens=4).shape == (1, 5)
    with pytest.raises(ValueError, match="`bos_token_id` has to be defined"):
        build().generate(max_new_tokens=4)


def test_unless_told_otherwise_it_writes_20_tokens_after_a_prompt_of_any_length(model):
    for length in (3, 50):
        assert model.generate(prompts([length])[0]).shape == (1, length + 20)
        assert model.generate(prompts([length])[0], max_length=60).shape == (1, 60)


# ---- sampling ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 5, "temperature": 2.0},
        {"top_p": 0.9, "num_return_sequences": 3},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_sampling_gives_the_same_with_and_without_cache(model, options):
    ids, mask = prompts([2, 9])
    memory, outs = model.init_memory(2), []
    for use_cache in (True, False):
        torch.manual_seed(5)
        outs.append(
            model.generate(
                ids,
                memory=memory,
                attention_mask=mask,
                max_new_tokens=4 * L,
                do_sample=True,
                use_cache=use_cache,
                return_dict_in_generate=True,
                **options,
            )
        )  # fmt: skip
    assert torch.equal(outs[0].sequences, outs[1].sequences)
    copies = options.get("num_return_sequences", 1)
    assert outs[0].sequences.unique(dim=0).size(0) == 2 * copies
    full = torch.cat([mask, mask.new_ones(2, 4 * L)], 1)
    start, full = memory.repeat_interleave(copies, 0), full.repeat_interleave(copies, 0)
    close(outs[0].memory, model(outs[0].sequences, memory=start, attention_mask=full).memory)
    if "no_repeat_ngram_size" in options:
        for row in outs[0].sequences[:, 9:].tolist():
            assert len(set(itertools.pairwise(row))) == len(row) - 1


# ---- beams ----


def best_of_forward(model, ids, memory, beams, steps):
    """Beam search for one text, every score from `forward` over whole texts: the best sequences and their mean log-probability."""
    texts, scores = ids, torch.zeros(1, dtype=torch.float64)
    for _ in range(steps):
        logits = model(texts, memory=memory.expand(len(texts), -1, -1)).logits[:, -1].detach()
        total = (scores[:, None] + logits.double().log_softmax(-1)).flatten()
        scores, which = total.topk(beams)
        texts = torch.cat([texts[which // V], (which % V)[:, None]], dim=1)
    return texts, scores / steps


def test_beams_are_those_of_forward_over_whole_texts(model):
    lengths, steps = [2, 5, 11], 4 * L + 1
    ids, mask = prompts(lengths)
    memory = model.init_memory(3)
    outs = [
        model.generate(
            ids, memory=memory, attention_mask=mask, max_new_tokens=steps, num_beams=3, num_return_sequences=3,
            use_cache=use_cache, return_dict_in_generate=True, output_scores=True,
        )
        for use_cache in (True, False)
    ]  # fmt: skip
    moved = 0
    for row, length in enumerate(lengths):
        texts, scores = best_of_forward(model, ids[row : row + 1, -length:], memory[row : row + 1], 3, steps)
        for out in outs:
            assert torch.equal(out.sequences[3 * row : 3 * row + 3, -length - steps :], texts)
            torch.testing.assert_close(out.sequences_scores[3 * row : 3 * row + 3].double(), scores, atol=1e-4, rtol=0)
            close(out.memory[3 * row : 3 * row + 3], model(texts, memory=memory[[row] * 3]).memory)
        moved += (outs[0].beam_indices[3 * row] != outs[0].beam_indices[3 * row, 0]).sum()
        alone = model.generate(ids[row : row + 1, -length:], memory=memory[row : row + 1], max_new_tokens=steps, num_beams=3)
        assert torch.equal(alone, texts[:1])
    assert moved >= 10  # the best texts went from beam to beam
    assert outs[0].past_key_values is None  # it would belong to other texts


def test_sampled_beams_give_the_same_with_and_without_cache(model):
    ids, mask = prompts([2, 9])
    texts, memory = [], model.init_memory(2)
    for use_cache in (True, False):
        torch.manual_seed(2)
        options = {"num_beams": 3, "do_sample": True, "use_cache": use_cache}
        texts.append(model.generate(ids, memory=memory, attention_mask=mask, max_new_tokens=20, **options))
    assert torch.equal(*texts)


# ---- where a text ends ----


def early_end(sequences, start):
    """A token that comes early in one answer and late or never in the others."""
    for token in sequences[0, start:].unique().tolist():
        first = [(row[start:] == token).nonzero()[:1].flatten().tolist() or [99] for row in sequences]
        first = sorted(position for (position,) in first)
        if 0 < first[0] < first[1] and first[0] < 12 and first[1] > first[0] + 2:
            return token
    raise AssertionError("choose another seed")


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"pad_token_id": None}, {"as_config": True}], ids=str)
def test_after_its_end_a_text_is_padding_and_the_memory_does_not_see_it(queue, options):
    lengths = [3, 8, 5]
    ids, mask = prompts(lengths, seed=4)
    memory = queue.init_memory(3)
    settings = {"attention_mask": mask, "max_new_tokens": 30, "suppress_tokens": [PAD, V - 1], "return_dict_in_generate": True}
    free = queue.generate(ids, memory=memory, **settings).sequences
    end = early_end(free, 8)
    config = None
    if "as_config" in options:
        queue = copy.deepcopy(queue)
        queue.generation_config.eos_token_id, queue.generation_config.pad_token_id = [end, V - 1], PAD
        config = GenerationConfig(**{name: settings.pop(name) for name in list(settings) if name != "attention_mask"})
    else:
        settings.update({"eos_token_id": end, "pad_token_id": PAD, **options})
    out = queue.generate(ids, config, memory=memory, **settings)
    ends = []
    for row, length in enumerate(lengths):
        answer = free[row, 8:].tolist()
        ends.append(answer.index(end) + 1 if end in answer else 30)
        text = out.sequences[row, 8 - length : 8 + ends[-1]]
        assert text[length:].tolist() == answer[: ends[-1]]
        assert (out.sequences[row, 8 + ends[-1] :] == (end if "pad_token_id" in options else PAD)).all()
        close(out.memory[row], queue(text[None], memory=memory[row : row + 1]).memory[0])
    assert len(set(ends)) > 1 and min(ends) < 30


def test_beams_that_end_at_different_times(queue):
    ids, mask = prompts([3, 8], seed=4)
    memory, outs = queue.init_memory(2), []
    for use_cache in (True, False):
        outs.append(
            queue.generate(
                ids, memory=memory, attention_mask=mask, max_new_tokens=25, num_beams=4, eos_token_id=[5, 9, 11, 17, 23],
                pad_token_id=V - 1, suppress_tokens=[V - 1], use_cache=use_cache, return_dict_in_generate=True,
                num_return_sequences=4, length_penalty=0.0,
            )
        )  # fmt: skip
    assert torch.equal(outs[0].sequences, outs[1].sequences)
    lengths = []
    for row, text in enumerate(outs[0].sequences):
        real = torch.cat([mask[row // 4].bool(), text[8:] != V - 1])
        lengths.append(int(real.sum()))
        close(outs[0].memory[row], queue(text[real][None], memory=memory[row // 4][None]).memory[0])
    assert len(set(lengths)) > 2


class After(StoppingCriteria):
    """Stops a text when it holds a token."""

    def __init__(self, token, start):
        self.token, self.start = token, start

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, self.start :] == self.token).any(1)


def test_a_stopping_criterion_ends_texts_and_their_padding_is_not_read(queue):
    ids, mask = prompts([3, 8, 5], seed=4)
    memory = queue.init_memory(3)
    settings = {"attention_mask": mask, "max_new_tokens": 30, "suppress_tokens": [PAD, 39], "return_dict_in_generate": True}
    free = queue.generate(ids, memory=memory, **settings).sequences
    stop = early_end(free, 8)
    out = queue.generate(
        ids, memory=memory, stopping_criteria=[After(stop, 8)], eos_token_id=39, pad_token_id=PAD, **settings
    )  # fmt: skip
    shortest = 30
    for row, text in enumerate(out.sequences):
        answer = free[row, 8:].tolist()
        length = answer.index(stop) + 1 if stop in answer else 30
        shortest = min(length, shortest)
        assert text[8 : 8 + length].tolist() == answer[:length] and not text[8 + length :].any()
        real = torch.cat([mask[row].bool(), torch.arange(len(text) - 8) < length])
        close(out.memory[row], queue(text[real][None], memory=memory[row][None]).memory[0])
    assert shortest < 20


@pytest.fixture(scope="module")
def speaker():
    """A model and a tokenizer, and the tokens that spell letters."""
    tokenizer = ml.train_tokenizer("the cat sat on the mat and the dog lay on the log " * 20, vocab_size=280)
    letters = [i for i in range(2, len(tokenizer)) if tokenizer.decode([i]).strip().isalpha() and tokenizer.decode([i]).isascii()]
    return build(vocab_size=len(tokenizer)), tokenizer, letters


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings_end_texts_and_allowed_tokens_make_them(speaker, beams):
    model, tokenizer, letters = speaker
    enc = tokenizer(["the cat", "the dog lay on the mat"], return_tensors="pt", padding=True, padding_side="left")
    memory = model.init_memory(2)

    def write(**options):
        settings = {"max_new_tokens": 4 * L, "num_beams": beams, "prefix_allowed_tokens_fn": lambda batch, ids: letters}
        return model.generate(**enc, memory=memory, **settings, **options)

    start = enc.input_ids.size(1)
    text = tokenizer.batch_decode(write()[:, start:])
    assert all(part.replace(" ", "").isalpha() for part in text)
    stop = text[0].replace(" ", "")[2]
    out = write(stop_strings=[stop], tokenizer=tokenizer, return_dict_in_generate=True)
    lengths = []
    for row, answer in enumerate(out.sequences[:, start:]):
        answer = answer[answer >= 0]  # beam search fills up with −1 where no padding token is given
        lengths.append(len(answer))
        if beams > 1:
            assert stop not in tokenizer.decode(answer[:-1])
        whole = torch.cat([enc.input_ids[row][enc.attention_mask[row] == 1], answer])[None]
        close(out.memory[row], model(whole, memory=memory[row][None]).memory[0])
    assert stop in tokenizer.decode(out.sequences[0, start : start + lengths[0]])
    assert min(lengths) < 4 * L


# ---- streamers, processors, what else is asked for ----


class Recorder(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        assert not self.ended
        self.pieces.append(value.clone())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_streamer_gets_the_prompt_and_then_every_token(model, use_cache):
    ids, _ = prompts([7])
    recorder = Recorder()
    text = model.generate(ids, memory=model.init_memory(1), max_new_tokens=20, streamer=recorder, use_cache=use_cache)
    assert recorder.ended and len(recorder.pieces) == 21
    assert torch.equal(recorder.pieces[0], ids)
    assert torch.equal(torch.cat(recorder.pieces[1:]), text[0, 7:])


def test_text_streamers(speaker, capsys):
    model, tokenizer, letters = speaker
    enc = tokenizer("the cat sat", return_tensors="pt")
    settings = {"memory": model.init_memory(1), "max_new_tokens": 30, "prefix_allowed_tokens_fn": lambda batch, ids: letters}
    iterator = TextIteratorStreamer(tokenizer, skip_prompt=True)
    text = tokenizer.decode(model.generate(**enc, **settings, streamer=iterator)[0, enc.input_ids.size(1) :])
    assert "".join(iterator) == text
    model.generate(**enc, **settings, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == text + "\n"


def test_a_streamer_and_beams_are_refused_as_by_transformers(model):
    with pytest.raises(ValueError, match="`streamer` cannot be used with beam search"):
        model.generate(prompts([3])[0], streamer=Recorder(), num_beams=2, max_new_tokens=2)


class Shift(LogitsProcessor):
    """The second best token instead of the best."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, scores.argmax(-1, keepdim=True), -float("inf"))


def test_a_logits_processor_is_asked_before_each_token(model):
    ids, memory = prompts([4])[0], model.init_memory(1)
    expected = ids
    for _ in range(15):
        second = model(expected, memory=memory).logits[:, -1].topk(2).indices[:, 1:]
        expected = torch.cat([expected, second], 1)
    for use_cache in (True, False):
        settings = {"max_new_tokens": 15, "use_cache": use_cache, "memory": memory}
        assert torch.equal(model.generate(ids, logits_processor=[Shift()], **settings), expected)


def test_a_text_does_not_end_before_min_new_tokens(model):
    ids, memory = prompts([7])[0], model.init_memory(1)
    end = int(model.generate(ids, memory=memory, max_new_tokens=1)[0, -1])
    settings = {"memory": memory, "max_new_tokens": 20, "eos_token_id": end, "pad_token_id": PAD}
    assert model.generate(ids, **settings).shape == (1, 8)
    text = model.generate(ids, **settings, min_new_tokens=9)[0, 7:]
    assert len(text) > 9 and end not in text[:9]


@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_hidden_states_and_attentions_of_every_step(model, use_cache):
    ids, mask = prompts([3, 8])
    memory, steps = model.init_memory(2), 2 * L + 1
    out = model.generate(
        ids, memory=memory, attention_mask=mask, max_new_tokens=steps, use_cache=use_cache, return_dict_in_generate=True,
        output_scores=True, output_logits=True, output_attentions=True, output_hidden_states=True,
    )  # fmt: skip
    whole = model(
        out.sequences, memory=memory, attention_mask=torch.cat([mask, mask.new_ones(2, steps)], 1), output_hidden_states=True
    )  # fmt: skip
    assert len(out.scores) == len(out.logits) == len(out.attentions) == len(out.hidden_states) == steps
    assert torch.equal(torch.stack(out.scores), torch.stack(out.logits))
    for step in range(steps):
        here = slice(0, 8) if step == 0 else slice(7 + step, 8 + step)
        here = here if use_cache else slice(0, 8 + step)
        real = torch.cat([mask, mask.new_ones(2, steps)], 1)[:, here, None]
        close(out.logits[step].double(), whole.logits[:, 7 + step].float().double())
        assert len(out.hidden_states[step]) == 3 and len(out.attentions[step]) == 2
        for found, expected in zip(out.hidden_states[step], whole.hidden_states):
            close(found * real, expected[:, here] * real)
        for found, expected in zip(out.attentions[step], whole.read_attentions):
            close(found * real[:, None], expected[:, :, here] * real[:, None])


def test_attention_is_not_collected_where_nobody_asks(model, monkeypatch):
    forward, asked = ml.MemGPT.forward, []

    @functools.wraps(forward)
    def watched(*args, **kwargs):
        asked.append(kwargs.get("output_attentions", True))
        return forward(*args, **kwargs)

    monkeypatch.setattr(ml.MemGPT, "forward", watched)
    model.generate(prompts([3])[0], max_new_tokens=3, return_dict_in_generate=True)
    assert asked == [False] * 4  # three tokens, and the memory after them
    monkeypatch.undo()
    out = model.generate(prompts([3])[0], max_new_tokens=2, return_dict_in_generate=True)
    assert out.attentions is out.hidden_states is out.logits is None
    cached = model(prompts([3])[0], use_cache=True, output_attentions=False)
    assert cached.read_attentions is cached.hidden_states is None


# ---- the conversation goes on ----


def test_a_memory_goes_on_as_forward_over_the_pieces(queue):
    memory = by_forward = queue.init_memory(2)
    for turn in range(3):
        ids, mask = prompts([3 + 4 * turn, 8], seed=turn)
        out = queue.generate(ids, memory=memory, attention_mask=mask, max_new_tokens=9, return_dict_in_generate=True)
        mask = torch.cat([mask, mask.new_ones(2, 9)], 1)
        by_forward = queue(out.sequences, memory=by_forward, attention_mask=mask).memory
        memory = out.memory
        close(memory, by_forward)
        assert not memory.requires_grad


@pytest.mark.parametrize("again", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_a_cache_goes_on_as_if_all_had_been_written_at_once(model, again):
    ids, mask = prompts([3, 8])
    memory = model.init_memory(2)
    for steps in range(L - 3, L + 3):  # ends before, at and after a segment's end
        first = model.generate(ids, memory=memory, attention_mask=mask, max_new_tokens=steps, return_dict_in_generate=True)
        more = torch.cat([first.sequences, prompts([4, 4], seed=8)[0]], 1)  # something is said
        whole_mask = torch.cat([mask, mask.new_ones(2, steps + 4)], 1)
        settings = {"attention_mask": whole_mask, "max_new_tokens": 2 * L, "return_dict_in_generate": True, **again}
        torch.manual_seed(6)
        expected = model.generate(more, memory=memory, **settings)
        torch.manual_seed(6)
        out = model.generate(more, past_key_values=first.past_key_values, **settings)
        assert torch.equal(out.sequences, expected.sequences)
        close(out.memory, expected.memory)


def test_a_copied_cache_can_go_on_in_two_ways(model):
    ids, memory = prompts([8])[0], model.init_memory(1)
    out = model.generate(ids, memory=memory, max_new_tokens=7, return_dict_in_generate=True)
    for seed in (1, 2):
        more = torch.cat([out.sequences, prompts([5], seed=seed)[0]], 1)
        expected = model.generate(more, memory=memory, max_new_tokens=9)
        assert torch.equal(model.generate(more, past_key_values=copy.deepcopy(out.past_key_values), max_new_tokens=9), expected)


def test_what_cannot_go_on_is_refused(model):
    ids, memory = prompts([8, 8])[0], model.init_memory(2)
    out = model.generate(ids, memory=memory, max_new_tokens=3, return_dict_in_generate=True)
    cache = out.past_key_values
    assert cache.get_seq_length() == 10
    for prompt in (ids, out.sequences[:, :10], None):
        with pytest.raises(
            ValueError, match=r"past_key_values has read 10 columns: pass it with all the tokens so far and at least"
        ):
            model.generate(prompt, past_key_values=cache, max_new_tokens=3)
    with pytest.raises(ValueError, match="without use_cache=False"):
        model.generate(out.sequences, past_key_values=cache, use_cache=False, max_new_tokens=3)
    with pytest.raises(ValueError, match="pass memory or past_key_values, not both"):
        model.generate(out.sequences, past_key_values=cache, memory=memory, max_new_tokens=3)
    with pytest.raises(ValueError, match="pass memory or past_key_values, not both"):
        model(ids, past_key_values=cache, memory=memory)
    with pytest.raises(TypeError, match="past_key_values must be a SegmentCache, not DynamicCache"):
        model.generate(ids, past_key_values=DynamicCache(), max_new_tokens=3)
    with pytest.raises(TypeError, match="past_key_values must be a SegmentCache, not tuple"):
        model(ids, past_key_values=())
    with pytest.raises(ValueError, match="past_key_values holds 2 texts, input_ids 1: batch_select_indices"):
        model.generate(out.sequences[:1], past_key_values=cache, max_new_tokens=3)
    with pytest.raises(ValueError, match="use_cache and past_key_values are for generating"):
        model(ids, labels=ids, use_cache=True)
    with pytest.raises(ValueError, match="use_cache and past_key_values are for generating"):
        model(ids, memory_replay=True, past_key_values=cache)
    assert cache.get_seq_length() == 10  # nothing of all this was read


def test_wrong_arguments_are_refused_with_what_to_do(model):
    ids, mask = prompts([3, 8])
    with pytest.raises(ValueError, match=r"memory must have shape .* = \(2, 3, 32\), not \(1, 3, 32\)"):
        model.generate(ids, memory=model.init_memory(1), max_new_tokens=3)
    with pytest.raises(ValueError, match=r"for a single text write input_ids.unsqueeze\(0\)"):
        model.generate(ids[0], max_new_tokens=3)
    with pytest.raises(TypeError, match="input_ids must be a tensor of whole numbers"):
        model.generate([[1, 2]], max_new_tokens=3)
    with pytest.raises(ValueError, match="input_ids is empty"):
        model.generate(ids[:, :0], max_new_tokens=3)
    with pytest.raises(ValueError, match="attention_mask must have the shape of input_ids"):
        model.generate(ids, attention_mask=mask[:, 1:], max_new_tokens=3)
    with pytest.raises(ValueError, match="row 1 of the prompt is nothing but padding"):
        model.generate(ids, attention_mask=mask * torch.tensor([[1], [0]]), max_new_tokens=3)
    with pytest.raises(ValueError, match=r"not used by the model: \['max_new_token'"):
        model.generate(ids, max_new_token=3)


@pytest.mark.parametrize("how", ["prompt_lookup_num_tokens", "assistant_model"])
def test_assisted_generation_is_refused_by_transformers(model, how):
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models, such as MemGPT"):
        model.generate(prompts([3])[0], max_new_tokens=3, **{how: 2 if how[0] == "p" else model})


# ---- the state ----


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def stored(cache):
    """Bytes of all storages that the cache keeps alive; views of one storage count once."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors(vars(cache))}
    return sum(storages.values())


def test_the_state_is_as_large_after_1000_tokens_as_after_10(tiny):
    model = tiny(segment_length=6)
    before, sizes = set(vars(model)), {}
    for memory in (None, model.init_memory(1)):
        for steps in (10, 1000):
            ids = torch.ones(1, 1, dtype=torch.long)
            out = model.generate(ids, memory=memory, max_new_tokens=steps, return_dict_in_generate=True)
            cache = out.past_key_values
            assert cache.get_seq_length() == steps and not any(x.requires_grad for x in tensors(vars(cache)))
            sizes[steps] = stored(cache)
        assert sizes[10] == sizes[1000]
        width, slots, layers = 8, 3, 2
        numbers = 2 * slots * width + 7 * width * (1 + 2 * layers) + 2 * layers * slots * width
        assert sizes[10] == 4 * numbers + 7 + 1 + 8 + 8  # and real, begun, filled, places
    assert set(vars(model)) == before


def test_reading_with_a_cache_keeps_no_graph(model):
    out = model(prompts([20])[0], use_cache=True)
    assert not out.logits.requires_grad and not any(x.requires_grad for x in tensors(vars(out.past_key_values)))
    learned = build(memory_init="learned")
    cache = learned(prompts([3])[0], use_cache=True).past_key_values
    assert not any(x.requires_grad for x in tensors(vars(cache)))
    copy.deepcopy(cache)


def test_nothing_can_be_taken_back(model):
    cache = model(prompts([8])[0], use_cache=True).past_key_values
    assert not cache.is_croppable and not cache.is_compileable
    with pytest.raises(NotImplementedError, match="a memory cannot be rolled back"):
        cache.crop(1)


# ---- the cache by hand ----


@settings(max_examples=60)
@given(st.data())
def test_chunks_of_any_sizes_give_the_logits_of_one_forward_call(tiny, data):
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 18))
    rule = data.draw(st.sampled_from(sorted(UPDATE_RULES)))
    model = tiny(torch.float64, update_rule=rule, n_positions=data.draw(st.sampled_from([4, 7])))
    ids, memory = torch.randint(0, 11, (batch, length)), model.init_memory(batch)
    mask = None
    if data.draw(st.booleans()):
        rows = st.lists(st.booleans(), min_size=length, max_size=length)
        mask = torch.tensor([data.draw(rows) for _ in range(batch)])
        for row in mask:
            row[: data.draw(st.integers(0, length))] = False
    whole = model(ids, memory=memory, attention_mask=mask, output_hidden_states=True)
    cache, start = None, 0
    while start < length:
        n, keep = data.draw(st.integers(1, length - start)), data.draw(st.integers(0, 5))
        here = slice(start, start + n)
        begin = {"memory": memory} if cache is None else {"past_key_values": cache}
        part_of_mask = None if mask is None else mask[:, here]
        out = model(
            ids[:, here], **begin, attention_mask=part_of_mask, use_cache=True, logits_to_keep=keep, output_hidden_states=True
        )  # fmt: skip
        cache, start = out.past_key_values, start + n
        begun = torch.ones(batch, n) if mask is None else mask.cumsum(1)[:, here].clamp(max=1)
        kept = min(keep or n, n)
        assert out.logits.shape == (batch, kept, 11)
        close(out.logits * begun[:, -kept:, None], whole.logits[:, here][:, -kept:] * begun[:, -kept:, None])
        for found, expected in zip(out.hidden_states, whole.hidden_states):
            close(found * begun[..., None], expected[:, here] * begun[..., None])
        for found, expected in zip(out.read_attentions, whole.read_attentions):
            close(found * begun[:, None, :, None], expected[:, :, here] * begun[:, None, :, None])
    assert cache.get_seq_length() == length
    for row in range(batch):
        first = 0 if mask is None else int((~mask[row]).long().cumprod(0).sum())
        full = first + (length - first) // 4 * 4  # where this text's last full segment ends
        expected = memory[row : row + 1]
        if full > first:
            real = None if mask is None else mask[row : row + 1, first:full]
            expected = model(ids[row : row + 1, first:full], memory=expected, attention_mask=real).memory
        close(cache.memory[row : row + 1], expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_to_keep(model, use_cache):
    ids, mask = prompts([3, 20])
    memory = model.init_memory(2)
    whole = model(ids, memory=memory, attention_mask=mask).logits
    for keep in (1, 2, 3, 7, 20, 25):
        out = model(ids, memory=memory, attention_mask=mask, logits_to_keep=keep, use_cache=use_cache)
        n = min(keep, 20)
        assert out.logits.shape == (2, n, V)
        close(out.logits * mask[:, -n:, None], whole[:, -n:] * mask[:, -n:, None])


def test_texts_can_be_chosen_and_repeated(model):
    ids, mask = prompts([3, 8, 11])
    memory, more = model.init_memory(3), prompts([9] * 6, seed=2)[0]
    whole_mask = torch.cat([mask, mask.new_ones(3, 9)], 1)

    def cache():
        return model(ids, memory=memory, attention_mask=mask, use_cache=True).past_key_values

    for change, rows in (
        (lambda c: c.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
        (lambda c: c.reorder_cache(torch.tensor([1, 1, 0])), [1, 1, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ):
        chosen = cache()
        change(chosen)
        assert chosen.batch_size == len(rows)
        new = more[: len(rows)]
        expected = model(torch.cat([ids[rows], new], 1), memory=memory[rows], attention_mask=whole_mask[rows])
        close(model(new, past_key_values=chosen).logits, expected.logits[:, -9:])
        close(chosen.first_memory, memory[rows])
    begun_again = cache()
    begun_again.reset()
    assert begun_again.get_seq_length() == 0
    close(model(more[:3], past_key_values=begun_again).logits, model(more[:3], memory=memory).logits)


def test_reading_on_changes_no_memory_of_the_caller(model):
    ids, memory = prompts([8, 8])[0], model.init_memory(2)
    before = memory.clone()
    out = model(ids, memory=memory, use_cache=True)
    kept, was = out.memory, out.memory.clone()
    model(ids, past_key_values=out.past_key_values)
    model.generate(ids, memory=memory, max_new_tokens=10)
    assert torch.equal(memory, before) and torch.equal(kept, was)


def test_a_cache_is_returned_where_it_is_asked_for(model):
    ids = prompts([3])[0]
    assert model(ids).past_key_values is None
    out = model(ids, use_cache=True)
    assert isinstance(out.past_key_values, ml.SegmentCache) and out.loss is out.write_attentions is None
    assert model(ids, past_key_values=out.past_key_values).past_key_values is None
    logits, *_, cache = model(ids, use_cache=True, return_dict=False)
    assert torch.is_tensor(logits) and isinstance(cache, ml.SegmentCache)


# ---- in all weathers ----


def test_ordinary_use_gives_no_warning(model, caplog, recwarn):
    logging.warning_once.cache_clear()  # what earlier tests were warned of once, too
    logging.enable_propagation()
    try:
        ids, mask = prompts([3, 8])
        memory = model.init_memory(2)
        model.generate(ids[1:], max_new_tokens=40)
        model.generate(prompts([30])[0])
        model.generate(ids, memory=memory, attention_mask=mask, max_new_tokens=40, do_sample=True, top_k=5)
        model.generate(ids, memory=memory, attention_mask=mask, max_new_tokens=40, num_beams=2, use_cache=False)
        model.generate(ids, attention_mask=mask, max_new_tokens=40, pad_token_id=PAD, eos_token_id=3)
        model.generate(ids, attention_mask=mask, max_new_tokens=40, eos_token_id=3)
        out = model.generate(ids, max_new_tokens=20, pad_token_id=PAD, return_dict_in_generate=True)
        model.generate(out.sequences, attention_mask=torch.ones(2, 28).long(), past_key_values=out.past_key_values, max_length=60)
    finally:
        logging.disable_propagation()
    assert not caplog.records and not recwarn.list


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_precisions(dtype):
    model = build(dtype=dtype)
    ids, mask = prompts([3, 8])
    memory = torch.randn(2, 3, 32)  # float32, whatever the model's
    out = model.generate(
        ids, memory=memory, attention_mask=mask, max_new_tokens=20, return_dict_in_generate=True, output_logits=True
    )  # fmt: skip
    assert out.memory.dtype == out.past_key_values.memory.dtype == dtype
    whole = model(out.sequences, memory=memory, attention_mask=torch.cat([mask, mask.new_ones(2, 20)], 1))
    expected = (
        whole.logits[:, 7:12].transpose(0, 1).float()
    )  # over the first boundary; later, sparsemax enlarges what was rounded
    error = (torch.stack(out.logits[:5]) - expected).abs().max() / expected.abs().max()
    assert error < (0.05 if dtype == torch.bfloat16 else 1e-5)


def test_generation_under_autocast_and_in_inference_mode(model):
    ids, memory = prompts([8])[0], model.init_memory(1)
    expected = model.generate(ids, memory=memory, max_new_tokens=14)
    with torch.inference_mode():
        out = model.generate(ids, memory=memory, max_new_tokens=7, return_dict_in_generate=True)
    assert torch.equal(model.generate(out.sequences, past_key_values=out.past_key_values, max_new_tokens=7), expected)
    single = build(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert single.generate(ids, max_new_tokens=14).shape == (1, 22)


def test_a_model_in_training_writes_with_dropout_and_stays_in_training():
    model = build(resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3).train()
    ids, memory = prompts([8])[0], model.init_memory(1)
    first, second = (model.generate(ids, memory=memory, max_new_tokens=30) for _ in range(2))
    assert model.training and not torch.equal(first, second)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_configuration_can_do_without_a_cache(model):
    without = build(use_cache=False)
    ids, memory = prompts([8])[0], model.init_memory(1)
    out = without.generate(ids, memory=memory, max_new_tokens=20, return_dict_in_generate=True)
    assert torch.equal(out.sequences, model.generate(ids, memory=memory, max_new_tokens=20))


def test_guidance_reads_the_text_with_and_without_its_prompt(model):
    ids = prompts([8])[0]
    texts = []
    for use_cache in (True, False):
        zeros = build(memory_init="zeros")
        texts.append(zeros.generate(ids, max_new_tokens=15, guidance_scale=1.5, use_cache=use_cache))
    assert torch.equal(*texts)
