"""Whether Transformers takes a `MemGPT` for one of its own: saving, loading, pipeline, GPT-2's checkpoints, `Trainer`."""

import copy
import json
import logging
import math

import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

import memgpt_lite as ml
from memgpt_lite.rules import UPDATE_RULES


@pytest.fixture(autouse=True)
def _no_progress_bars():
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def warned(caplog, recwarn):
    """`warned()`: the warnings of Transformers and of Python so far."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    propagates, logger.propagate = logger.propagate, False  # it does under CI=true, and each warning would come twice
    transformers.utils.logging.warning_once.cache_clear()  # else a warning that another test has had is left out

    def since_the_start():
        logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        return logged + [str(warning.message) for warning in recwarn]

    yield since_the_start
    logger.removeHandler(caplog.handler)
    logger.propagate = propagates


def ids(batch, length, vocabulary=11):
    return torch.randint(0, vocabulary, (batch, length))


def assert_same_model(a, b, vocabulary=11):
    """The same numbers, and the same results from them, bit for bit."""
    state, other = a.state_dict(), b.state_dict()
    assert list(state) == list(other)
    assert all(state[name].dtype == other[name].dtype and torch.equal(state[name], other[name]) for name in state)
    input_ids = ids(2, 10, vocabulary)
    memory = torch.randn(2, a.config.num_memory_slots, a.config.n_embd)
    # Copies, as loading maps a file into memory, where tensors may begin at odd addresses: matrix products then round differently.
    a, b = (copy.deepcopy(model).eval()(input_ids, memory=memory) for model in (a, b))
    assert a.logits.isfinite().all() and a.logits.std() > 0.01
    assert a.logits.dtype == b.logits.dtype and torch.equal(a.logits, b.logits) and torch.equal(a.memory, b.memory)


def tensors_in(file):
    with safe_open(file, "pt") as opened:
        return set(opened.keys())


# ---- saving and loading ----


@pytest.mark.parametrize(
    "options",
    [
        *({"update_rule": rule} for rule in UPDATE_RULES),
        *({"memory_init": kind} for kind in ml.memory.INITIALISATIONS),
        {"read_layers": [1], "context_from_output": False, "keep_bias": 2.0},
        {"tie_word_embeddings": False},
        {"freeze_gpt2": True, "zero_init_read": True, "n_inner": 5, "activation_function": "relu"},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float64, "update_rule": "delta"},
    ],
    ids=str,
)
@pytest.mark.parametrize("load", [ml.MemGPT.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_a_saved_model_comes_back_bit_for_bit(tiny, tmp_path, warned, options, load):
    model = tiny(**options)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    loaded, report = load(tmp_path, output_loading_info=True)
    assert type(loaded) is ml.MemGPT and not loaded.training
    assert all(not entries for entries in report.values()), report
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert loaded.config.to_json_string() == model.config.to_json_string()
    assert_same_model(model, loaded)
    assert warned() == []


def test_tied_embeddings_are_one_tensor_in_the_file_and_after_loading(tiny, tmp_path):
    tiny().save_pretrained(tmp_path)
    names = tensors_in(tmp_path / "model.safetensors")
    assert "transformer.wte.weight" in names and "lm_head.weight" not in names
    loaded = ml.MemGPT.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    with torch.no_grad():
        loaded.transformer.wte.weight[3] = 7.0
    assert (loaded.lm_head.weight[3] == 7.0).all()


def test_untied_embeddings_are_two_tensors(tiny, tmp_path):
    model = tiny(tie_word_embeddings=False)
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    model.save_pretrained(tmp_path)
    assert {"transformer.wte.weight", "lm_head.weight"} <= tensors_in(tmp_path / "model.safetensors")
    loaded = ml.MemGPT.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)


def test_a_model_in_several_files_comes_back(tiny, tmp_path, warned):
    model = tiny()
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    files = {file.name for file in tmp_path.iterdir()}
    assert "model.safetensors.index.json" in files and sum(name.endswith(".safetensors") for name in files) > 3
    assert all(name.endswith((".safetensors", ".json")) for name in files)
    assert_same_model(model, ml.MemGPT.from_pretrained(tmp_path, low_cpu_mem_usage=True, device_map="cpu"))
    assert warned() == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_can_be_loaded_in_another_precision(tiny, tmp_path, dtype):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = ml.MemGPT.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    input_ids, memory = ids(2, 6), torch.randn(2, 3, 8)
    out, expected = loaded(input_ids, memory=memory), model(input_ids, memory=memory)
    assert out.logits.dtype == out.memory.dtype == dtype
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.2, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(out.logits.float(), expected.logits, atol=tolerance, rtol=0)


def test_a_pickle_is_never_opened(tiny, tmp_path):
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return opened.touch, ()

    model = tiny()
    model.config.save_pretrained(tmp_path)
    torch.save({"trap": Trap(), **model.state_dict()}, tmp_path / "pytorch_model.bin")
    for load in (ml.MemGPT.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(OSError, match=r"no file named model\.safetensors found in directory"):
            load(tmp_path)
    assert not opened.exists()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # numbers only, and on request
    assert_same_model(model, ml.MemGPT.from_pretrained(tmp_path, use_safetensors=False))


def test_the_settings_come_back(tiny, tmp_path, warned):
    settings = {
        "segment_length": 3, "n_positions": 7, "num_memory_slots": 5, "update_rule": "gated", "memory_init": "orthogonal", "read_layers": [1],
        "context_from_output": False, "keep_bias": 1.5, "zero_init_read": True, "freeze_gpt2": True, "resid_pdrop": 0.25,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    }  # fmt: skip
    config = ml.MemGPTConfig(n_embd=8, n_layer=2, n_head=2, vocab_size=11, **settings)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "memgpt_lite"
    for load in (ml.MemGPTConfig.from_pretrained, AutoConfig.from_pretrained):
        loaded = load(tmp_path)
        assert type(loaded) is ml.MemGPTConfig and {name: getattr(loaded, name) for name in settings} == settings
        assert loaded.to_json_string() == config.to_json_string()
    changed = AutoConfig.from_pretrained(tmp_path, num_memory_slots=9)
    assert changed.num_memory_slots == 9 and changed.segment_length == 3
    made = AutoConfig.for_model("memgpt_lite", n_embd=8, n_layer=2, n_head=2, vocab_size=11, **settings)
    assert type(made) is ml.MemGPTConfig and made.to_json_string() == config.to_json_string()
    model = AutoModelForCausalLM.from_config(config)
    assert type(model) is ml.MemGPT and model.config.num_memory_slots == 5
    assert warned() == []


def test_settings_for_generating_come_back(tiny, tmp_path):
    model = tiny(eos_token_id=2, pad_token_id=3, memory_init="zeros")
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path)
    loaded = ml.MemGPT.from_pretrained(tmp_path)
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id) == (2, 3)
    prompt = ids(1, 6).clamp(min=4)
    assert torch.equal(loaded.generate(prompt), model.generate(prompt)) and loaded.generate(prompt).size(1) <= 11


@pytest.mark.parametrize("size", [15, 7])
@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_can_grow_and_shrink(tiny, tmp_path, size, tied):
    model = tiny(tie_word_embeddings=tied)
    before, input_ids, memory = copy.deepcopy(model), ids(2, 10, 7), torch.randn(2, 3, 8)
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size and (model.lm_head.weight is model.transformer.wte.weight) == tied
    out = model(torch.full((1, 6), size - 1), labels=torch.full((1, 6), size - 1))
    assert out.logits.shape == (1, 6, size) and out.loss.isfinite()
    with pytest.raises(ValueError, match=f"the vocabulary has 0 to {size - 1}"):
        model(torch.full((1, 6), size))
    first = model(input_ids[:, :4], memory=memory).logits[..., :7]
    torch.testing.assert_close(first, before(input_ids[:, :4], memory=memory).logits[..., :7])
    model.save_pretrained(tmp_path)
    assert_same_model(model, ml.MemGPT.from_pretrained(tmp_path), vocabulary=size)


def test_a_copy_is_the_same_model_and_its_own(tiny):
    model = tiny(memory_init="learned")
    other = copy.deepcopy(model)
    assert_same_model(model, other)
    assert other.lm_head.weight is other.transformer.wte.weight is not model.transformer.wte.weight
    with torch.no_grad():
        other.initial_memory.add_(1)
    assert not torch.equal(other.initial_memory, model.initial_memory)
    fresh = ml.MemGPT(model.config)
    assert fresh.load_state_dict(model.state_dict(), strict=True) is not None
    assert_same_model(model, fresh)


# ---- pipeline ----

TEXT = "the cat sat on the mat and the dog sat on the log. " * 10
PROMPTS = ["the cat sat on the mat and the dog sat on the", "the", "on the log. the cat"]


@pytest.fixture(scope="module")
def tokenizer():
    return ml.train_tokenizer(TEXT, 280)


@pytest.fixture
def speaking(tiny, tokenizer):
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return tiny(vocab_size=len(tokenizer), memory_init="zeros", n_embd=16, **special)


def go_on(model, tokenizer, prompt, new):
    """Greedy, token by token, the whole text read again for each."""
    tokens = tokenizer(prompt).input_ids
    start = len(tokens)
    for _ in range(new):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == tokenizer.eos_token_id:
            break
    return prompt + tokenizer.decode(tokens[start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pipeline_works_from_the_directory_alone(speaking, tokenizer, tmp_path, warned, batch_size):
    speaking.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded(TEXT).input_ids == tokenizer(TEXT).input_ids
    pipe = pipeline("text-generation", model=str(tmp_path))
    assert type(pipe.model) is ml.MemGPT and pipe.tokenizer.padding_side == "left"
    lengths = [len(tokenizer(prompt).input_ids) for prompt in PROMPTS]
    assert max(lengths) > 2 * speaking.config.segment_length and len(set(lengths)) == 3
    answers = pipe(PROMPTS, max_new_tokens=9, do_sample=False, batch_size=batch_size)
    for prompt, answer in zip(PROMPTS, answers):
        assert answer[0]["generated_text"] == go_on(speaking, tokenizer, prompt, 9)
    new = pipe(PROMPTS[0], max_new_tokens=9, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert PROMPTS[0] + new == answers[0][0]["generated_text"]
    assert warned() == []


def test_a_pipeline_works_with_a_model_and_a_tokenizer(speaking, tokenizer, warned):
    pipe = pipeline("text-generation", model=speaking, tokenizer=tokenizer)
    long = TEXT * 3  # many times n_positions
    assert len(tokenizer(long).input_ids) > 50 * speaking.config.n_positions
    answer = pipe(long, max_new_tokens=3, do_sample=False)[0]["generated_text"]
    assert answer == go_on(speaking, tokenizer, long, 3)
    assert (
        len(pipe("", max_new_tokens=3, min_new_tokens=3, return_tensors=True)[0]["generated_token_ids"]) == 4
    )  # with <|endoftext|>
    several = pipe(PROMPTS[0], max_new_tokens=4, num_return_sequences=3, do_sample=True)
    assert len(several) == 3
    assert warned() == []


# ---- GPT-2's checkpoints ----


def gpt2(**options):
    """A GPT-2 whose weights are so large that nothing about it can be forgotten."""
    small = {"vocab_size": 13, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 11, "eos_token_id": 12}
    model = GPT2LMHeadModel(GPT2Config(**{**small, **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.5)
    return model


@torch.no_grad()
def segment_by_segment(model, row, length):
    """What GPT-2 gives for one text (T), each segment on its own."""
    return torch.cat([model(segment[None]).logits[0] for segment in row.split(length)])


def memory_parameters(model):
    """Those that a GPT-2 has not."""
    config = {
        name: getattr(model.config, name) for name in ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "n_inner")
    }
    known = {name for name, _ in GPT2LMHeadModel(GPT2Config(**config, bos_token_id=None, eos_token_id=None)).named_parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if name not in known}


def published_form(model, directory):
    """As GPT-2's weights were published: keys without "transformer.", mask buffers among them, an old configuration."""
    model.transformer.save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    assert "wte.weight" in tensors and "lm_head.weight" not in tensors
    positions = model.config.n_positions
    for n in range(model.config.n_layer):
        tensors[f"h.{n}.attn.bias"] = torch.ones(positions, positions).tril()[None, None]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    settings = {
        name: getattr(model.config, name)
        for name in ("activation_function", "attn_pdrop", "bos_token_id", "embd_pdrop", "eos_token_id", "initializer_range",
                     "layer_norm_epsilon", "n_embd", "n_head", "n_layer", "n_positions", "resid_pdrop", "vocab_size")
    }  # fmt: skip
    settings |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_ctx": positions, "summary_type": "cls_index"}
    settings["task_specific_params"] = {"text-generation": {"do_sample": True, "max_length": 50}}
    (directory / "config.json").write_text(json.dumps(settings))


FORMS = {
    "GPT2LMHeadModel": lambda model, directory: model.save_pretrained(directory),
    "GPT2Model": lambda model, directory: model.transformer.save_pretrained(directory),
    "as published": published_form,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", [{}, {"segment_length": 3, "read_layers": [1], "memory_init": "learned", "update_rule": "delta", "keep_bias": 2.0}]
)
def test_gpt2_with_a_memory_gives_gpt2s_logits(tmp_path, warned, form, options):
    expected = gpt2()
    FORMS[form](expected, tmp_path)
    model, report = ml.MemGPT.from_pretrained(tmp_path, num_memory_slots=5, output_loading_info=True, **options)
    new = memory_parameters(model)
    assert set(report["missing_keys"]) == set(new) and len(new) > 10
    assert not report["unexpected_keys"] and not report["mismatched_keys"] and not report["error_msgs"]
    (said,) = warned()  # the report of what was initialised, as Transformers gives it for any new head
    rows = [line for line in said.splitlines() if " | " in line][1:]
    assert "newly initialized" in said and len(rows) > 10 and all("| MISSING |" in row for row in rows), said
    assert model.lm_head.weight is model.transformer.wte.weight

    length = model.config.segment_length
    assert length == options.get("segment_length", 16) and model.config.num_memory_slots == 5
    for tokens in (1, 2, length):
        input_ids = ids(3, tokens, 13)
        logits = expected(input_ids).logits
        assert logits.std() > 0.5
        torch.testing.assert_close(model(input_ids).logits, logits, atol=1e-5, rtol=0)
    input_ids = ids(2, 2 * length + 2, 13)
    out = model(input_ids)
    for b in range(2):
        torch.testing.assert_close(out.logits[b], segment_by_segment(expected, input_ids[b], length), atol=1e-5, rtol=0)
    assert not torch.equal(out.memory, model(input_ids[:, :length]).memory)  # there is a memory, which is not read yet


@pytest.mark.parametrize("length", [5, 12, 16, 23])
def test_gpt2_with_a_memory_gives_gpt2s_logits_with_padding(tmp_path, length):
    expected = gpt2()
    expected.save_pretrained(tmp_path)
    model = ml.MemGPT.from_pretrained(tmp_path, num_memory_slots=5)
    input_ids = ids(4, length, 13)
    mask = torch.ones_like(input_ids)
    mask[0, :2], mask[1, -2:], mask[2, :-1] = 0, 0, 0
    if length <= 16:
        mask[3, 1:3] = 0  # within a segment padding takes up no position, but room
    logits = model(input_ids, attention_mask=mask).logits
    for b in range(4):
        real = mask[b].bool()
        alone = segment_by_segment(expected, input_ids[b][real], 16)
        torch.testing.assert_close(logits[b][real], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"n_inner": 5},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 0.3},
        {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False},
        {"n_positions": 6},
        {"n_positions": 100},
        {"n_head": 1, "n_layer": 3},
    ],
    ids=str,
)
def test_every_kind_of_gpt2_keeps_its_logits_and_settings(tmp_path, options):
    expected = gpt2(**options)
    expected.save_pretrained(tmp_path)
    model = ml.MemGPT.from_pretrained(tmp_path, num_memory_slots=5)
    assert model.config.segment_length == min(64, expected.config.n_positions)
    input_ids = ids(2, 6, 13)
    torch.testing.assert_close(model(input_ids).logits, expected(input_ids).logits, atol=1e-5, rtol=0)
    ours = {"model_type", "add_cross_attention", "architectures", "_name_or_path", "transformers_version"}
    kept = {name: value for name, value in expected.config.to_dict().items() if name not in ours}
    assert kept["resid_pdrop"] == kept["embd_pdrop"] == kept["attn_pdrop"] == 0.1 and kept["eos_token_id"] == 12
    assert {name: model.config.to_dict()[name] for name in kept} == kept
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (11, 12)
    dropouts = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {0.1}


def test_gpt2_in_double_precision_keeps_its_logits(tmp_path):
    expected = gpt2().double()
    expected.save_pretrained(tmp_path)
    model = ml.MemGPT.from_pretrained(tmp_path, num_memory_slots=5)
    input_ids = ids(2, 6, 13)
    assert model.dtype == torch.float64
    torch.testing.assert_close(model(input_ids).logits, expected(input_ids).logits, atol=1e-12, rtol=0)


def test_what_gpt2_lacks_is_initialised_as_in_a_new_model(tmp_path):
    gpt2(initializer_range=0.05, n_embd=64).save_pretrained(tmp_path)
    model = ml.MemGPT.from_pretrained(tmp_path, num_memory_slots=20, memory_init="learned", keep_bias=3.0, read_layers=[0])
    assert len(memory_parameters(model)) == 20
    for name, parameter in memory_parameters(model).items():
        if name == "initial_memory":
            assert parameter.mean().abs() < 0.1 and abs(parameter.std() - 1) < 0.1
        elif name == "update_rule.keep.bias":
            assert (parameter == 3.0).all()
        elif name.startswith(("ln_memory", "transformer.h.0.ln_cross_attn")):
            assert (parameter == float(name.endswith("weight"))).all()
        elif name.endswith("bias") or name == "transformer.h.0.crossattention.c_proj.weight":
            assert (parameter == 0).all()
        else:
            assert abs(parameter.std() - 0.05) < 0.01, name


def test_a_saved_gpt2_with_a_memory_is_a_memgpt(tmp_path, warned):
    gpt2().save_pretrained(tmp_path / "gpt2")
    model = ml.MemGPT.from_pretrained(tmp_path / "gpt2", num_memory_slots=5, segment_length=4)
    assert len(warned()) == 1
    with torch.no_grad():
        for parameter in memory_parameters(model).values():
            parameter.normal_(0, 0.5)
    model.save_pretrained(tmp_path / "ours")
    settings = json.loads((tmp_path / "ours/config.json").read_text())
    assert settings["model_type"] == "memgpt_lite" and settings["architectures"] == ["MemGPT"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(AutoConfig.from_pretrained(tmp_path / "ours")) is ml.MemGPTConfig
    assert type(loaded) is ml.MemGPT and loaded.config.segment_length == 4
    assert_same_model(model, loaded, vocabulary=13)
    assert len(warned()) == 1
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2")) is GPT2LMHeadModel  # GPT-2's own is left alone


def test_settings_that_do_not_fit_a_gpt2_are_refused(tmp_path):
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"segment_length \(17\) is more than n_positions \(16\): shorten the segments"):
        ml.MemGPT.from_pretrained(tmp_path, segment_length=17)
    with pytest.raises(ValueError, match="unknown update_rule 'lstm': choose one of keep, "):
        ml.MemGPT.from_pretrained(tmp_path, update_rule="lstm")
    with pytest.raises(ValueError, match=r"read_layers must name at least one of the blocks 0 to 1, not \[2\]"):
        ml.MemGPT.from_pretrained(tmp_path, read_layers=[2])
    with pytest.raises(ValueError, match="num_memory_slots must be at least 1, not 0"):
        ml.MemGPT.from_pretrained(tmp_path, num_memory_slots=0)
    with pytest.raises(TypeError, match="num_memory_slot'"):
        ml.MemGPT.from_pretrained(tmp_path, num_memory_slot=5)


def changed_since(before, model):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def adamw(model, weight_decay=0.0):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=weight_decay)


@pytest.mark.parametrize("rule", ["keep", "erase_add", "delta"])
def test_reads_that_start_at_zero_begin_to_learn(tmp_path, rule):
    gpt2().save_pretrained(tmp_path)
    model = ml.MemGPT.from_pretrained(
        tmp_path, num_memory_slots=5, segment_length=4, memory_init="learned", update_rule=rule
    ).train()
    new, input_ids = set(memory_parameters(model)), ids(4, 12, 13)
    before, optimizer = snapshot(model), adamw(model)
    model.train_step(optimizer, input_ids, labels=input_ids)
    first = changed_since(before, model) & new
    assert first == {name for name in new if "crossattention.c_proj" in name}  # W = 0 lets a gradient reach W, and none past it
    for _ in range(4):
        model.train_step(optimizer, input_ids, labels=input_ids)
    assert changed_since(before, model) & new == new


def frozen_by_keyword(directory):
    return ml.MemGPT.from_pretrained(directory, num_memory_slots=5, segment_length=4, freeze_gpt2=True)


def frozen_by_config(directory):
    config = ml.MemGPTConfig.from_pretrained(directory, num_memory_slots=5, segment_length=4)
    config.freeze_gpt2 = True
    return AutoModelForCausalLM.from_pretrained(directory, config=config)


def frozen_and_saved(directory):
    frozen_by_keyword(directory).save_pretrained(directory / "frozen")
    return ml.MemGPT.from_pretrained(directory / "frozen")


def frozen_when_new(directory):
    return ml.MemGPT(ml.MemGPTConfig.from_pretrained(directory, num_memory_slots=5, segment_length=4, freeze_gpt2=True))


FROZEN = [frozen_by_keyword, frozen_by_config, frozen_and_saved, frozen_when_new]


@pytest.mark.parametrize("frozen", FROZEN)
def test_freezing_trains_the_memory_and_nothing_else(tmp_path, frozen):
    gpt2().save_pretrained(tmp_path)
    model = frozen(tmp_path).train()
    assert type(model) is ml.MemGPT
    new = set(memory_parameters(model))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == new and len(new) > 10
    before, optimizer, input_ids = snapshot(model), adamw(model, weight_decay=0.1), ids(4, 12, 13)
    for _ in range(5):
        model.train_step(optimizer, input_ids, labels=input_ids)
    assert changed_since(before, model) == new
    assert torch.equal(model.lm_head.weight, before["transformer.wte.weight"])


def test_a_frozen_model_can_be_thawed(tmp_path):
    gpt2().save_pretrained(tmp_path)
    frozen_by_keyword(tmp_path).save_pretrained(tmp_path / "frozen")
    thawed = ml.MemGPT.from_pretrained(tmp_path / "frozen", freeze_gpt2=False)
    assert all(parameter.requires_grad for parameter in thawed.parameters())


class Documents:
    """One fixed batch, as a stage of `ml.train`."""

    def __init__(self):
        self.input_ids = ids(4, 12, 13)

    def batch(self, batch_size, generator):
        return self.input_ids, self.input_ids


def test_a_frozen_model_trains_with_our_loop(tmp_path):
    gpt2().save_pretrained(tmp_path)
    model = frozen_by_keyword(tmp_path)
    before = snapshot(model)
    history = ml.train(model, [Documents()], steps=30, learning_rate=1e-2, weight_decay=0.1, progress=False)
    assert changed_since(before, model) == set(memory_parameters(model))
    assert min(history.loss[-5:]) < history.loss[0] - 0.1


# ---- Trainer ----

PAD = 10


class Counting(Dataset):
    """Documents of many lengths which count on from a number, 9 before 0: the next token is always certain."""

    def __init__(self, size, longest=13, with_labels=False):
        generator = torch.Generator().manual_seed(size)
        self.documents = []
        for _ in range(size):
            length, start = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((3, longest + 1), (0, 10)))
            self.documents.append({"input_ids": [(start + t) % 10 for t in range(length)], "text": "is left out"})
            if with_labels:
                hidden = int(torch.randint(0, length - 1, (), generator=generator))
                tokens = self.documents[-1]["input_ids"]
                self.documents[-1]["labels"] = [-100] * hidden + tokens[hidden:]

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        return self.documents[index]


@pytest.fixture
def trainer(tmp_path):
    def build(model, data, evaluated=None, **options):
        plain = {
            "output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
            "logging_strategy": "no", "per_device_train_batch_size": 4, "learning_rate": 1e-2, "seed": 0,
        }  # fmt: skip
        others = {name: options.pop(name) for name in ("compute_metrics", "processing_class") if name in options}
        arguments = TrainingArguments(**{**plain, **options})
        collator = ml.SegmentCollator(model.config.segment_length, PAD)
        return Trainer(model, arguments, train_dataset=data, eval_dataset=evaluated, data_collator=collator, **others)

    yield build
    AcceleratorState._reset_state(reset_partial_state=True)  # it holds the precision of the first Trainer in a process


def small(**options):
    shape = {"vocab_size": 11, "segment_length": 4, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_memory_slots": 3}
    return ml.MemGPT(ml.MemGPTConfig(**{**shape, "memory_init": "zeros", **options}))


@torch.no_grad()
def surprises(model, document):
    """−log p of each labelled token of one document, read alone."""
    tokens = document["input_ids"]
    labels = document.get("labels", tokens)
    rows = model.eval()(torch.tensor([tokens])).logits[0].double().tolist()
    return [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(rows, labels[1:]) if label != -100]


def mean_surprise(model, documents):
    every = [x for document in documents for x in surprises(model, document)]
    return sum(every) / len(every)


@pytest.mark.parametrize("with_labels", [False, True])
def test_the_trainer_trains_evaluates_and_predicts(trainer, warned, with_labels):
    data, held_out = Counting(40, with_labels=with_labels), Counting(11, with_labels=with_labels)
    model = small()

    def share_right(prediction):
        guesses, labels = prediction.predictions[:, :-1].argmax(-1), prediction.label_ids[:, 1:]
        return {"right": (guesses == labels)[labels != -100].mean()}

    run = trainer(model, data, held_out, num_train_epochs=12, per_device_eval_batch_size=11, compute_metrics=share_right)
    before = run.evaluate()
    assert before["eval_loss"] == pytest.approx(mean_surprise(model, held_out), rel=1e-5)
    run.train()
    after = run.evaluate()
    assert after["eval_loss"] == pytest.approx(mean_surprise(model, held_out), rel=1e-5)
    assert after["eval_loss"] < 0.4 < 2 < before["eval_loss"] and before["eval_right"] < 0.3 < 0.9 < after["eval_right"]
    assert warned() == []

    predicted = run.predict(held_out)
    longest = max(len(document["input_ids"]) for document in held_out)
    assert predicted.predictions.shape == (11, -(-longest // 4) * 4, 11)
    for row, labels, document in zip(predicted.predictions, predicted.label_ids, held_out):
        tokens = document["input_ids"]
        expected = model(torch.tensor([tokens])).logits[0].detach().numpy()
        np.testing.assert_allclose(row[: len(tokens)], expected, atol=1e-5)
        assert labels.tolist() == document.get("labels", tokens) + [-100] * (len(row) - len(tokens))


def test_evaluation_weighs_batches_by_their_documents(trainer):
    model, held_out = small(), Counting(5)
    run = trainer(model, None, held_out, per_device_eval_batch_size=2)
    means = [mean_surprise(model, [held_out[i] for i in batch]) for batch in ((0, 1), (2, 3), (4,))]
    assert run.evaluate()["eval_loss"] == pytest.approx((2 * means[0] + 2 * means[1] + means[2]) / 5, rel=1e-5)


@pytest.mark.parametrize("rows", [(8, 1), (4, 2), (2, 4)])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(trainer, rows):
    data, model = Counting(8, with_labels=True), small(memory_init="learned").double()
    by_hand = copy.deepcopy(model)
    count = sum(label != -100 for document in data for label in document["labels"][1:])
    for document in data:
        out = by_hand(torch.tensor([document["input_ids"]]), labels=torch.tensor([document["labels"]]), num_items_in_batch=count)
        out.loss.backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.5).step()

    per_step, steps = rows
    run = trainer(
        model, data, max_steps=1, per_device_train_batch_size=per_step, gradient_accumulation_steps=steps, optim="sgd", learning_rate=0.5,
        max_grad_norm=0, lr_scheduler_type="constant",
    )  # fmt: skip
    run.train()
    for (name, parameter), expected in zip(model.named_parameters(), by_hand.parameters()):
        torch.testing.assert_close(parameter, expected, atol=1e-10, rtol=0, msg=name)


def test_label_smoothing_smooths_the_next_token(trainer):
    data, model = Counting(6, with_labels=True), small()
    run = trainer(model, None, data, label_smoothing_factor=0.2, per_device_eval_batch_size=6)
    terms = []
    for document in data:
        log_p = model.eval()(torch.tensor([document["input_ids"]])).logits[0].detach().log_softmax(-1)
        for row, label in zip(log_p, document["labels"][1:]):
            if label != -100:
                terms.append(-0.8 * row[label].item() - 0.2 * row.mean().item())
    assert run.evaluate()["eval_loss"] == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(trainer, tmp_path):
    data = Counting(24)
    options = {"max_steps": 8, "save_steps": 4, "save_strategy": "steps"}
    whole = small(memory_init="normal", resid_pdrop=0.1)
    trainer(whole, data, **options).train()
    assert_same_model(whole, ml.MemGPT.from_pretrained(tmp_path / "run/checkpoint-8"))
    checkpoint = tmp_path / "run/checkpoint-4"
    files = {file.name for file in checkpoint.iterdir()}
    assert "model.safetensors" in files and "pytorch_model.bin" not in files
    torch.manual_seed(99)
    resumed = small(memory_init="normal", resid_pdrop=0.1)
    trainer(resumed, data, **options).train(resume_from_checkpoint=str(checkpoint))
    assert_same_model(whole, resumed)


def test_the_best_checkpoint_is_loaded_at_the_end(trainer, tmp_path):
    data, held_out, model = Counting(24), Counting(6), small()
    run = trainer(
        model, data, held_out, max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, learning_rate=0.3,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", lr_scheduler_type="constant",
    )  # fmt: skip
    run.train()
    losses = {step: mean_surprise(ml.MemGPT.from_pretrained(tmp_path / f"run/checkpoint-{step}"), held_out) for step in (2, 4, 6)}
    best = min(losses, key=losses.get)
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert_same_model(model, ml.MemGPT.from_pretrained(tmp_path / f"run/checkpoint-{best}"))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_trained_model_is_saved_for_a_pipeline(trainer, tmp_path, tokenizer, warned):
    model = small(
        vocab_size=len(tokenizer),
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    )
    data = [{"input_ids": tokenizer(TEXT[i:]).input_ids[:20]} for i in range(0, 50, 5)]
    run = trainer(model, data, num_train_epochs=2, processing_class=tokenizer)
    run.train()
    run.save_model(tmp_path / "trained")
    names = {file.name for file in (tmp_path / "trained").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names and not any(
        name.endswith((".pt", ".pth")) for name in names
    )
    pipe = pipeline("text-generation", model=str(tmp_path / "trained"))
    assert pipe(PROMPTS[0], max_new_tokens=6, do_sample=False)[0]["generated_text"] == go_on(
        model.eval(), tokenizer, PROMPTS[0], 6
    )
    assert warned() == []


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_the_trainer_trains_in_bfloat16(trainer, rule):
    AcceleratorState._reset_state(reset_partial_state=True)
    model, seen = small(update_rule=rule, memory_init="normal"), set()
    model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    held_out = Counting(6)
    run = trainer(model, Counting(16), held_out, bf16=True, num_train_epochs=4)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert seen == {torch.bfloat16} and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert run.evaluate()["eval_loss"] < before - 0.5


def test_activation_checkpointing_gives_the_same_step(trainer):
    data, model = Counting(8), small()
    other = copy.deepcopy(model)
    for each, on in ((model, False), (other, True)):
        run = trainer(each, data, max_steps=2, activation_checkpointing=on)
        run.train()
        assert each.is_activation_checkpointing == on
    for parameter, expected in zip(other.parameters(), model.parameters()):
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("frozen", FROZEN[:3])
def test_the_trainer_keeps_gpt2_frozen(trainer, tmp_path, frozen):
    gpt2().save_pretrained(tmp_path)
    model = frozen(tmp_path)
    before, new = snapshot(model), set(memory_parameters(model))
    trainer(model, Counting(16), num_train_epochs=3, weight_decay=0.1).train()
    assert changed_since(before, model) == new


# ---- SegmentCollator ----


def test_documents_become_whole_segments():
    batch = ml.SegmentCollator(3, PAD)([{"input_ids": [1, 2, 3, 4]}, {"input_ids": [5, 6]}])
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, PAD, PAD], [5, 6, PAD, PAD, PAD, PAD]],
        "attention_mask": [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]],
        "labels": [[1, 2, 3, 4, -100, -100], [5, 6, -100, -100, -100, -100]],
    }
    assert {rows.dtype for rows in batch.values()} == {torch.int64}


def test_labels_say_what_is_asked_and_may_be_left_out():
    features = [{"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4]}, {"input_ids": [5, 6]}]
    expected = [[-100, 2, -100, 4, -100, -100], [5, 6, -100, -100, -100, -100]]
    for order in ((0, 1), (1, 0)):
        batch = ml.SegmentCollator(3, PAD)([features[i] for i in order])
        assert batch["labels"].tolist() == [expected[i] for i in order]


def test_each_part_begins_a_segment():
    features = [{"input_ids": [[1, 2], [3, 4, 5, 6]], "labels": [[-100, -100], [3, 4, 5, -100]]}]
    batch = ml.SegmentCollator(3, PAD)(features)
    assert batch["input_ids"].tolist() == [[1, 2, PAD, 3, 4, 5, 6, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 1, 1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, -100, 4, 5, -100, -100, -100]]  # padding stands before 3


@pytest.mark.parametrize("first", [[1, 2], [1, 2, 3], [1, 2, 3, 4]])
def test_the_trainer_counts_the_labels_that_are_asked(first):
    """The first token of a part is asked where the part before it fills its last segment: then a token stands before it."""
    model = small().eval()
    batch = ml.SegmentCollator(3, PAD)([{"input_ids": [first, [5, 6]]}, {"input_ids": [7, 8]}])
    counted = (batch["labels"][:, 1:] != -100).sum()  # as the Trainer does
    torch.testing.assert_close(model(**batch, num_items_in_batch=counted).loss, model(**batch).loss)
    assert counted == len(first) + (len(first) % 3 == 0) + 1


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple])
@pytest.mark.parametrize("parts", [False, True])
def test_tokens_may_be_a_list_a_tensor_or_an_array(kind, parts):
    plain = {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, -100], "attention_mask": [1, 1, 1, 1]}
    if parts:
        plain = {name: [tokens, tokens[1:]] for name, tokens in plain.items()}
    given = {name: [kind(part) for part in tokens] if parts else kind(tokens) for name, tokens in plain.items()}
    expected, batch = (ml.SegmentCollator(3, PAD)([feature, {"input_ids": [7]}]) for feature in (plain, given))
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_what_a_tokenizer_returns_can_be_collated(tokenizer):
    batch = ml.SegmentCollator(4, tokenizer.pad_token_id)([tokenizer(prompt) for prompt in PROMPTS])
    for row, mask, prompt in zip(batch["input_ids"], batch["attention_mask"], PROMPTS):
        assert tokenizer.decode(row[mask.bool()]) == prompt


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("labels of document 1 must be its tokens, or -100 where nothing is asked", {"input_ids": [1, 2], "labels": [2, -100]}),
        ("labels of document 1 must be its tokens", {"input_ids": [[1, 2], [3]], "labels": [[1, 2], [4]]}),
        ("labels of document 1 must be its tokens", {"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([2, 1])}),
        (r"asked\[1\] must have one entry for each token of document 1", {"input_ids": [1, 2], "labels": [1]}),
        (r"asked\[1\] must have one entry for each token of document 1", {"input_ids": [1, 2], "labels": [1, 2, -100]}),
        (r"asked\[1\] must have one entry", {"input_ids": [[1, 2], [3]], "labels": [[1, 2]]}),
        ("document 1 is empty", {"input_ids": []}),
        ("document 1 is padded, by its attention_mask", {"input_ids": [1, PAD], "attention_mask": [1, 0]}),
        ("document 1 is padded", {"input_ids": [[1], [2, PAD]], "attention_mask": torch.tensor([1, 1, 0])}),
    ],
)
def test_wrong_documents_are_refused(message, wrong):
    with pytest.raises(ValueError, match=message):
        ml.SegmentCollator(3, PAD)([{"input_ids": [1, 2]}, wrong])


def test_no_documents_are_refused():
    with pytest.raises(ValueError, match="there are no documents"):
        ml.SegmentCollator(3, PAD)([])


def test_a_data_loader_gives_batches_for_the_model():
    data, model = Counting(10, with_labels=True), small().eval()
    loader = DataLoader(data, batch_size=4, collate_fn=ml.SegmentCollator(4, PAD))
    batches = list(loader)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    for i, batch in enumerate(batches):
        documents = [data[n] for n in range(4 * i, min(4 * i + 4, 10))]
        assert model(**batch).loss.item() == pytest.approx(mean_surprise(model, documents), rel=1e-5)
