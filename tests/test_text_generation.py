"""Text generation: the novels' split, bits per character, a memory carried and cleared, a window, and what a reader types in."""

import math
import re

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import memgpt_lite as ml
from memgpt_lite.applications import text_generation as tg

LANGUAGES = ("en", "zh")


@pytest.fixture(scope="module")
def tokenizer():
    return tg.book_tokenizer("en")


@pytest.fixture(scope="module")
def small(tokenizer):
    torch.manual_seed(0)
    config = ml.MemGPTConfig(
        vocab_size=len(tokenizer), segment_length=8, n_embd=16, n_layer=1, n_head=2, num_memory_slots=4, memory_init="learned"
    )
    return ml.MemGPT(config).eval()


# ---- the data ----


@pytest.mark.parametrize(("language", "chapters"), [("en", 61), ("zh", 40)])
def test_every_chapter_is_in_one_part(language, chapters):
    parts = tg.split(language)
    together = [*parts["train"], *parts["validation"], *parts["test"]]
    assert len(together) == len(set(together)) == chapters
    book = ml.data.load_text(tg.BOOKS[language].file)
    begins = re.search(tg.BOOKS[language].chapter, book, re.MULTILINE).start()
    assert "".join("".join(together).split()) == "".join(book[begins:].split())  # nothing is lost, but white space


def test_lines_are_joined_and_paragraphs_are_not():
    chapter = tg.split("en")["train"][0]
    assert "in possession of a good fortune" in chapter
    assert chapter.count("\n\n") > 30
    assert not re.search(r"[^\n]\n[^\n]", chapter)


def test_a_language_without_a_novel_is_refused():
    with pytest.raises(ValueError, match=r"no novel in 'fr'.*English.*Chinese"):
        tg.split("fr")


@pytest.mark.parametrize("language", LANGUAGES)
def test_tokens_are_of_the_training_chapters_and_decode_to_them(language):
    tokens = tg.training_tokens(language)
    assert tg.book_tokenizer(language).decode(tokens) == "".join(tg.split(language)["train"])
    assert int(tokens.max()) < len(tg.book_tokenizer(language)) <= tg.BOOKS[language].vocab_size


# ---- measuring ----


def test_bits_of_tokens_by_hand(small, tokenizer):
    texts = ["It is a truth universally acknowledged, that a single man", "She could not"]  # of different lengths
    for text, bits in zip(texts, tg.token_bits(small, tokenizer, texts)):
        ids, memory, expected = tokenizer.encode(text), None, []
        for start in range(0, len(ids), 8):
            with torch.no_grad():
                out = small(torch.tensor([ids[start : start + 8]]), memory=memory)
            memory = out.memory
            following = ids[start + 1 : start + 9]
            expected += [-math.log2(out.logits[0, t].softmax(-1)[token]) for t, token in enumerate(following)]
        assert len(bits) == len(ids) - 1
        torch.testing.assert_close(bits, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_a_long_text_is_read_in_spans_that_carry_the_memory_on(small, tokenizer):
    text = tg.split("en")["validation"][0][:4000]
    ids = torch.tensor([tokenizer.encode(text)])
    assert ids.size(1) > 1024
    with torch.no_grad():
        logits = small(ids[:, :-1]).logits[0]
    expected = F.cross_entropy(logits, ids[0, 1:], reduction="none") / math.log(2)
    torch.testing.assert_close(tg.token_bits(small, tokenizer, [text])[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [48, 1100])
def test_a_span_holds_whole_segments(tokenizer, length):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = ml.MemGPT(ml.MemGPTConfig(**sizes, segment_length=length, num_memory_slots=4, memory_init="learned"))
    window = tg.WindowedGPT2(GPT2Config(**sizes, n_positions=length, bos_token_id=None, eos_token_id=None))
    text = tg.split("en")["validation"][0][:5500]
    ids = torch.tensor([tokenizer.encode(text)])
    assert ids.size(1) > 1152
    for each in (model.eval(), window.eval()):
        with torch.no_grad():
            logits = each(ids[:, :-1]).logits[0]
        expected = F.cross_entropy(logits, ids[0, 1:], reduction="none") / math.log(2)
        torch.testing.assert_close(tg.token_bits(each, tokenizer, [text])[0], expected, rtol=1e-4, atol=1e-4)


def test_bits_per_character_of_a_model_that_knows_nothing(small, tokenizer):
    """Every token is as likely as any other: log₂ V bits each."""
    uniform = tg.cleared(small)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    texts = ["Elizabeth was delighted.", "Mr. Bingley"]
    tokens = [tokenizer.encode(text) for text in texts]
    characters = sum(len(tokenizer.decode(row[1:])) for row in tokens)
    expected = math.log2(len(tokenizer)) * sum(len(row) - 1 for row in tokens) / characters
    assert tg.bits_per_character(uniform, tokenizer, texts) == pytest.approx(expected, rel=1e-5)


def test_cleared_reads_every_segment_as_if_it_were_the_first(small):
    ids = torch.randint(len(tg.book_tokenizer("en")), (2, 24), generator=torch.Generator().manual_seed(0))
    before = small.update_rule
    with torch.no_grad():
        whole = tg.cleared(small)(ids).logits
        parts = torch.cat([small(part).logits for part in ids.split(8, dim=1)], dim=1)
        carried = small(ids).logits
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(carried[:, 8:], parts[:, 8:], atol=1e-3)
    assert small.update_rule is before  # a copy was cleared


# ---- the GPT-2 beside it ----


def windowed(window=4):
    torch.manual_seed(0)
    return tg.WindowedGPT2(
        GPT2Config(vocab_size=11, n_positions=window, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5)
    ).eval()


def test_a_window_is_read_as_by_gpt2_and_knows_nothing_of_the_one_before():
    model = windowed()
    ids = torch.randint(11, (2, 10), generator=torch.Generator().manual_seed(0))  # the last window is shorter
    with torch.no_grad():
        out = model(ids)
        for start in range(0, 10, 4):
            expected = GPT2LMHeadModel.forward(model, ids[:, start : start + 4]).logits
            torch.testing.assert_close(out.logits[:, start : start + 4], expected)
    assert out.memory.shape == (2, 0, 8)


def test_its_loss_asks_every_position_but_the_last():
    model = windowed()
    ids = torch.randint(11, (2, 10), generator=torch.Generator().manual_seed(0))
    out = model(ids, labels=ids)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


def test_it_has_about_as_many_parameters_as_asked_for():
    model = tg.train_gpt2(0, window=16, parameters=200_000, steps=1, progress=False).model
    assert model.num_parameters() == pytest.approx(200_000, rel=0.03)


# ---- training ----


def test_training_lowers_the_loss_and_is_the_same_again():
    runs = [tg.train_model(seed, steps=12, progress=False) for seed in (0, 0, 1)]
    first, again, other = (run.history.loss for run in runs)
    assert first == again != other
    assert first[0] > first[-1] + 0.5
    assert not runs[0].model.training


# ---- names ----


def test_a_passage_has_its_name_in_its_first_half_alone(tokenizer):
    found = tg.passages("en", tokenizer)
    assert len(found) > 50
    for ids, name in found:
        halves = tokenizer.decode(ids[:32]), tokenizer.decode(ids[32:])
        assert [other for other in tg.NAMES["en"] if other in halves[0]] == [name]
        assert not any(other in halves[1] for other in tg.NAMES["en"])


def test_what_comes_back_and_what_would_have_come_anyway():
    texts = ["Ann and Ann came", "Bob saw Ann", "nobody came", "Ann"]
    given = ["Ann", "Bob", "Ann", "Cid"]
    back, chance = tg.comes_back(texts, given)
    assert back == 2 / 4
    assert chance == pytest.approx((2 / 2 + 0 / 3 + 2 / 2 + 0 / 3) / 4)


def test_one_name_alone_has_no_base_rate():
    with pytest.raises(ValueError, match="no base rate"):
        tg.comes_back(["Ann", "Ann"], ["Ann", "Ann"])


def test_going_on_is_the_same_again_with_the_same_seed(small, tokenizer):
    prompts = tg.passages("en", tokenizer)[:2]
    first, again, other = (tg.go_on(small, tokenizer, prompts, 10, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 2


# ---- what comes with the package ----


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_trained_model_does_what_its_card_says(language):
    model, tokenizer = (load(f"text_generation_{language}") for load in (ml.load_pretrained, ml.checkpoints.load_tokenizer))
    results = ml.checkpoints.load_results(f"text_generation_{language}")
    measured = tg.evaluate(model, tokenizer, language)
    for row in ("memory", "cleared"):
        assert measured[row]["bits per character"] == pytest.approx(results[row]["bits per character"][0], abs=0.01)
    assert measured["memory"]["bits per character"] < measured["cleared"]["bits per character"]
    assert results.seeds == ["0", "1", "2"]


@pytest.mark.parametrize(("language", "text"), [("en", "Mr. Darcy"), ("zh", "却说曹操")])
def test_a_text_is_continued(language, text):
    first, again, other = (tg.continue_text(text, language, new_tokens=20, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.startswith(text)
    assert len(first) > len(text) + 10
    random = torch.get_rng_state()
    tg.continue_text(text, language, new_tokens=2)
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    ("text", "language", "says"),
    [
        ("", "en", "the text is empty"),
        (" \n", "zh", "the text is empty"),
        ("却说曹操", "en", 'may be Chinese: pass language="zh"'),
        ("Mr. Darcy", "zh", 'may be English: pass language="en"'),
        ("Добрый день", "en", "never seen .*write English"),
        ("Добрый день", "zh", "never seen .*write Chinese"),
        ("Mr. Darcy", "fr", "no novel in 'fr'"),
    ],
)
def test_what_cannot_be_continued_is_answered_helpfully(text, language, says):
    with pytest.raises(ValueError, match=says):
        tg.continue_text(text, language)


def test_a_foreign_word_among_known_ones_is_let_through():
    tg.check_text("Mr. Darcy said “ñandú” to her", "en")
