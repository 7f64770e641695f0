import base64
import json

import pytest
import regex
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import memgpt_lite as ml
from memgpt_lite import data

# ---- tokenizers ----

TRAINED = ml.train_tokenizer(ml.data.load_text("pride_and_prejudice.txt")[:60_000], 600)
TOKENIZERS = {"trained": lambda: TRAINED, "gpt2": ml.gpt2_tokenizer}
STRANGE = [
    "", " ", "\n", "\x00", "a\x00b", "🙂", "👩‍👩‍👧‍👦 family", "שלום עולם", "مرحبا بالعالم", "\u202eright to left\u202c", "三国演义，第一回", "e\u0301 é", "\ufeff",
    "<|endoftext|>", "a <|endoftext|> b", "<|pad|>", " <|pad|><|endoftext|>  x", "<|endoftext", "don't  stop ,  now .", "\r\n\ttab ", "\U0010ffff", "�",
]  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", STRANGE)
def test_strange_texts_come_back_from_tokens(name, text):
    tokenizer = TOKENIZERS[name]()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_text_comes_back_from_tokens(name):
    tokenizer = TOKENIZERS[name]()

    @given(st.text() | st.text("ab .,'<|>endoftxp\n "))
    @example("<|endoftext|>".join("<|pad|>🙂"))
    def check(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < len(tokenizer) for i in ids)

    check()


def test_training_joins_the_most_frequent_pair_until_none_occurs_twice():
    tokenizer = ml.train_tokenizer("ab ab ab ab abc abc xyz", 300)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert vocabulary[:2] == ["<|endoftext|>", "<|pad|>"]
    assert vocabulary[258:] == ["ab", "Ġab", "Ġabc"]  # 6, 5 and 2 times; no other pair occurs twice
    assert [tokenizer.decode(i) for i in tokenizer.encode("ab abc cab")] == ["ab", " abc", " ", "c", "ab"]


@pytest.mark.parametrize("size", [258, 259, 400])
def test_a_trained_tokenizer_has_the_size_asked_for(size):
    text = ml.data.load_text("pride_and_prejudice.txt")[:20_000]
    assert len(ml.train_tokenizer(text, size)) == size
    assert ml.train_tokenizer(text, size).get_vocab() == ml.train_tokenizer([text], size).get_vocab()


def test_special_tokens_are_known():
    assert (TRAINED.eos_token_id, TRAINED.pad_token_id) == (0, 1)
    assert TRAINED.encode("<|endoftext|><|pad|>") == [0, 1]
    assert TRAINED.decode([0, 1], skip_special_tokens=True) == ""


@pytest.mark.parametrize("texts", ["", [], ["", ""]])
def test_no_text_to_train_on_is_refused(texts):
    with pytest.raises(ValueError, match="there is no text to train a tokenizer on: pass a string"):
        ml.train_tokenizer(texts)


def test_no_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size must be at least 258 \(256 bytes and 2 special tokens\), not 257"):
        ml.train_tokenizer("text", 257)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("load", [PreTrainedTokenizerFast, AutoTokenizer])
def test_a_saved_tokenizer_does_the_same_when_loaded(name, load, tmp_path):
    tokenizer = TOKENIZERS[name]()
    tokenizer.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.special_tokens_map == tokenizer.special_tokens_map
    for text in [*STRANGE, ml.data.load_text("pride_and_prejudice.txt")[5000:7000]]:
        assert loaded.encode(text) == tokenizer.encode(text) and loaded.decode(loaded.encode(text)) == text


def test_gpt2_tokenizer_has_gpt2s_size():
    tokenizer = ml.gpt2_tokenizer()
    assert len(tokenizer) == 50_257 and sorted(tokenizer.get_vocab().values()) == list(range(50_257))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert len(merges) == 50_000 and merges[0] == ["Ġ", "t"]  # the first lines of GPT-2's own list
    assert merges[:4] == [["Ġ", "t"], ["Ġ", "a"], ["h", "e"], ["i", "n"]]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("<|endoftext|>", [50256]),
        ("Hello, my dog is cute", [15496, 11, 616, 3290, 318, 13779]),
        ("Every effort moves you", [6109, 3626, 6100, 345]),
        ("The quick brown fox jumps over the lazy dog.", [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13]),
    ],
)
def test_gpt2_tokenizer_knows_these(text, ids):
    assert ml.gpt2_tokenizer().encode(text) == ids


def test_gpt2_tokenizer_equals_the_joining_of_lowest_ranks():
    lines = data.path("gpt2.tiktoken").read_text("ascii").splitlines()
    rank = {base64.b64decode(token): int(number) for token, number in map(str.split, lines)}
    pieces = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    texts = [data.load_text(name)[9000:14_000] for name in ("pride_and_prejudice.txt", "sanguo_ch1-40.txt")]
    for text in (*texts, "x = [1, 22,333]\n\n\tdon't 🙂🙂 naïve"):
        expected = []
        for piece in pieces.findall(text):
            parts = [bytes([byte]) for byte in piece.encode()]
            while len(parts) > 1:
                best = min(range(len(parts) - 1), key=lambda i: rank.get(parts[i] + parts[i + 1], 10**9))
                if parts[best] + parts[best + 1] not in rank:
                    break
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            expected += [rank[part] for part in parts]
        assert ml.gpt2_tokenizer().encode(text) == expected


# ---- words ----


def test_english_words_have_letters_and_apostrophes():
    text = "“Mr. Bennet’s girls,” she said — don't_you see 22 well-known naïve cafés?"
    expected = ["Mr", "Bennet’s", "girls", "she", "said", "don't", "you", "see", "22", "well", "known", "naïve", "cafés"]
    assert ml.words(text) == expected


def test_chinese_words_are_those_of_jieba():
    assert ml.words("我来到北京清华大学，很好！", "zh") == ["我", "来到", "北京", "清华大学", "很", "好"]


def test_stop_words_are_removed_and_nothing_else():
    text = ["The", "truth", "OF", "it", "don’t", "Elizabeth", "and", "truth"]
    assert ml.remove_stop_words(text) == ["truth", "Elizabeth", "truth"]
    assert ml.remove_stop_words(["曹操", "的", "大军"], "zh") == ["曹操", "大军"]
    assert {"the", "and", "don't"} <= ml.stop_words() and "的" in ml.stop_words("zh") and "的" not in ml.stop_words("en")
    assert all(word == word.lower() for word in ml.stop_words())


@pytest.mark.parametrize(
    "function", [ml.stop_words, lambda language: ml.words("x", language), lambda language: ml.remove_stop_words([], language)]
)
def test_an_unknown_language_is_refused(function):
    with pytest.raises(ValueError, match=r"unknown language 'fr': choose one of \"en\" \(English\), \"zh\" \(Chinese\)"):
        function("fr")


# ---- segments ----

tokens = st.lists(st.integers(2, 99), min_size=1, max_size=9)


@given(st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=4), st.integers(1, 5), st.booleans(), st.data())
def test_segments_hold_the_documents_and_nothing_else(documents, length, flat, data):
    if flat:
        documents = [[document[0]] for document in documents]
    asked = [[[data.draw(st.booleans()) for _ in part] for part in document] for document in documents]
    ask = data.draw(st.booleans())
    shape = [document[0] for document in documents] if flat else documents
    form = ([questions[0] for questions in asked] if flat else asked) if ask else None
    batch = ml.make_segments(shape, length, pad_token_id=1, asked=form)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    rows, width = batch["input_ids"].shape
    needed = [sum(-(-len(part) // length) for part in document) for document in documents]
    assert rows == len(documents) and width == max(needed) * length
    assert all(tensor.shape == (rows, width) and tensor.dtype == torch.int64 for tensor in batch.values())
    for row, document in enumerate(documents):
        ids, mask, labels = (batch[name][row].tolist() for name in ("input_ids", "attention_mask", "labels"))
        place = 0
        for part, questions in zip(document, asked[row]):
            for t, token in enumerate(part):
                assert (ids[place + t], mask[place + t]) == (token, 1)
                assert labels[place + t] == (token if questions[t] or not ask else -100)
            real = place + len(part)
            place += -(-len(part) // length) * length
            assert ids[real:place] == [1] * (place - real)
            assert mask[real:place] == [0] * (place - real) and labels[real:place] == [-100] * (place - real)
        rest = width - place
        assert (ids[place:], mask[place:], labels[place:]) == ([1] * rest, [0] * rest, [-100] * rest)


def test_segments_take_tensors_too():
    lists = ml.make_segments([[5, 6, 7], [8]], 2, pad_token_id=0)
    tensors = ml.make_segments([torch.tensor([5, 6, 7]), torch.tensor([8])], 2, pad_token_id=0)
    assert all(torch.equal(lists[name], tensors[name]) for name in lists)
    parts = ml.make_segments([[torch.tensor([5]), torch.tensor([6, 7])]], 2, pad_token_id=0)
    assert parts["input_ids"].tolist() == [[5, 0, 6, 7]]


def test_segments_are_what_the_model_takes(tiny):
    model, memory = tiny(), torch.randn(2, 3, 8)
    batch = ml.make_segments([[2, 3, 4, 5, 6], [7, 8]], 4, pad_token_id=1)
    out = model(**batch, memory=memory)
    alone = model(torch.tensor([[7, 8]]), memory=memory[1:])
    torch.testing.assert_close(out.logits[1, :2], alone.logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.memory[1], alone.memory[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "there are no documents: pass at least one list of token numbers"),
        ([[1], []], {}, "document 1 is empty, or a part of it: every part needs at least one token"),
        ([[[1], []]], {}, "document 0 is empty, or a part of it"),
        ([[1, 2]], {"segment_length": 0}, "segment_length must be at least 1, not 0"),
        ([[1, 2]], {"asked": []}, "asked has 0 entries for 1 documents: give one for each"),
        ([[1, 2], [3]], {"asked": [[True, True], [True, False]]}, r"asked\[1\] must have one entry for each token of document 1"),
        ([[[1, 2], [3]]], {"asked": [[[True, True]]]}, r"asked\[0\] must have one entry for each token of document 0"),
    ],
)
def test_wrong_documents_are_refused(documents, options, message):
    with pytest.raises(ValueError, match=message):
        ml.make_segments(documents, **{"segment_length": 4, "pad_token_id": 0, **options})


# ---- streams ----


@given(st.integers(2, 60), st.integers(1, 7), st.integers(1, 9), st.booleans())
def test_streams_give_back_the_text_and_ask_every_token_once(length, batch_size, window, as_tensor):
    text = list(range(100, 100 + length))
    if length < batch_size + 1:
        with pytest.raises(ValueError, match=f"{batch_size} streams need one list of at least {batch_size + 1} tokens"):
            list(ml.streams(text, batch_size, window))
        return
    batches = list(ml.streams(torch.tensor(text) if as_tensor else text, batch_size, window))
    read, asked = (
        [token for b in range(batch_size) for w in batches for token in w[name][b].tolist()]
        for name in ("input_ids", "shift_labels")
    )
    assert read == text[: len(read)]  # row after row, window after window, it is the text
    assert asked == text[1 : 1 + len(asked)] and len(asked) == len(read)
    assert len(text) - 1 - len(asked) < batch_size  # what is left over
    assert [w["input_ids"].shape for w in batches[:-1]] == [(batch_size, window)] * (len(batches) - 1)
    assert batches[-1]["input_ids"].shape == batches[-1]["shift_labels"].shape and 1 <= batches[-1]["input_ids"].size(1) <= window


def test_streams_with_the_memory_carried_on_equal_one_long_text(tiny):
    model, text = tiny(), torch.randint(0, 11, (33,))
    memory = start = torch.randn(2, 3, 8)
    total = 0.0
    for batch in ml.streams(text, batch_size=2, window=8):  # a multiple of the segment length
        out = model(**batch, memory=memory)
        memory, total = out.memory, total + out.loss.item() * batch["input_ids"].numel()
    whole = model(text[:32].view(2, 16), memory=start, shift_labels=text[1:33].view(2, 16))
    assert total / 32 == pytest.approx(whole.loss.item(), abs=1e-5)
    torch.testing.assert_close(memory, whole.memory, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("text", "batch_size", "window", "message"),
    [
        ([1, 2, 3], 0, 4, "batch_size and window must be at least 1, not 0 and 4"),
        ([1, 2, 3], 1, 0, "batch_size and window must be at least 1, not 1 and 0"),
        ([], 1, 4, r"1 streams need one list of at least 2 tokens, not shape \(0,\)"),
        ([[1, 2, 3], [4, 5, 6]], 1, 4, r"need one list of .* not shape \(2, 3\): take fewer streams or a longer text"),
    ],
)
def test_wrong_streams_are_refused(text, batch_size, window, message):
    with pytest.raises(ValueError, match=message):
        next(ml.streams(text, batch_size, window))


# ---- the texts that come along ----


def test_texts_and_tables_load():
    assert "It is a truth universally acknowledged" in data.load_text("pride_and_prejudice.txt")
    assert "曹操" in data.load_text("sanguo_ch1-40.txt")
    rows = data.load_table("kjv_web_narrative.tsv")
    assert len({len(row) for row in rows}) == 1 and len(rows) > 100 and all(all(cell.strip() for cell in row) for row in rows)
    records = data.load_records("python_docstrings.jsonl")
    assert len(records) == 1732 and all(set(record) == {"module", "name", "body", "summary"} for record in records)


@pytest.mark.parametrize("name", ["moby_dick.txt", "README.md", "../model.py", ""])
def test_an_unknown_text_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=r"there is no data file .*: choose one of .*pride_and_prejudice\.txt, .*sanguo"):
        data.load_text(name)


def test_characters_are_tokens_and_come_back():
    tokenizer = ml.character_tokenizer(["2026年", "May 3\n"], special=["<zh>"])
    text = "<zh>May 2026\n年"
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == ["<zh>", *"May 2026\n年"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text.removeprefix("<zh>")
    assert len(tokenizer) == 4 + len(set("2026年May 3\n"))  # end, padding, unknown, <zh>


@pytest.mark.parametrize("special", [["<zh>", "<zh>"], ["b"], ["<|pad|>"]])
def test_a_character_and_a_special_token_have_one_number_each(special):
    tokenizer = ml.character_tokenizer(["abc"], special)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(f"a{special[0]}c")) == ["a", special[0], "c"]
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"


def test_an_unknown_character_is_told_and_does_not_stop_the_rest(tmp_path):
    tokenizer = ml.character_tokenizer(["abc"])
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, type(tokenizer).from_pretrained(tmp_path)):
        assert each.encode("aéc") == [each.encode("a")[0], each.unk_token_id, each.encode("c")[0]]
        assert each.unk_token_id not in (each.eos_token_id, each.pad_token_id)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_a_tokenizer_of_characters_needs_some(texts):
    with pytest.raises(ValueError, match="no text to take characters from"):
        ml.character_tokenizer(texts)
