"""Step 1: how does text become numbers that a model can read a segment at a time?

    text ──tokenizer──▶ tokens ──make_segments──▶ input_ids (B, S·L), attention_mask, labels      separate documents
                             └───streams────────▶ input_ids (B, T), shift_labels, again and again  one long text

A byte-level BPE tokenizer (Sennrich et al. 2016; on bytes: Radford et al. 2019) splits any Unicode string into pieces that it
knows, and `decode` gives back exactly the string. Stop words (frequent little words) can be removed for matching texts,
never for a language model: notebook 01 measures what this does to each of them.
"""

import base64
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .data import path

END, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
LANGUAGES = {"en": "English", "zh": "Chinese"}


# ---- text → tokens ----


def train_tokenizer(texts: str | Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the given texts.

    It starts from the 256 bytes and two special tokens (end of text, padding), and joins the most frequent pair of neighbours
    again and again until it has `vocab_size` tokens, or no pair occurs twice. `save_pretrained` and `from_pretrained` save and load it.

    Raises `ValueError` when there is no text, or no room for the bytes.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not any(texts):
        raise ValueError("there is no text to train a tokenizer on: pass a string, or several, that are not all empty")
    if vocab_size < 258:
        raise ValueError(f"vocab_size must be at least 258 (256 bytes and 2 special tokens), not {vocab_size}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[END, PAD], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer = _byte_level(models.BPE())
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, pad_token=PAD)


def character_tokenizer(texts: Iterable[str], special: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters: those of the texts, and the `special` tokens. All others become `<|unknown|>`."""
    known = sorted(set().union(*texts))
    if not known:
        raise ValueError("there is no text to take characters from: pass several that are not all empty")
    special = list(dict.fromkeys(special))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([END, PAD, UNKNOWN, *special, *known]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, pad_token=PAD, unk_token=UNKNOWN, extra_special_tokens=special)


@functools.cache
def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's own tokenizer (50,257 tokens), rebuilt offline from the ranks that ship with this package.

    A rank file lists tokens as bytes, in the order in which training joined them. The two parts of a token are found by replaying
    the joins of lower rank on its bytes: what is left, always two pieces, is the merge.
    """
    unicode_of = bytes_to_unicode()
    rank_of: dict[bytes, int] = {}
    for line in path("gpt2.tiktoken").read_text("ascii").splitlines():
        token, rank = line.split()
        rank_of[base64.b64decode(token)] = int(rank)

    def spell(token: bytes) -> str:
        return "".join(unicode_of[byte] for byte in token)

    merges = [
        tuple(spell(part) for part in _replay(token, rank_of, below=rank)) for token, rank in rank_of.items() if len(token) > 1
    ]
    vocabulary = {spell(token): rank for token, rank in rank_of.items()}
    vocabulary[END] = len(vocabulary)
    return _wrap(_byte_level(models.BPE(vocab=vocabulary, merges=merges)))


def _replay(token: bytes, rank_of: dict[bytes, int], below: int) -> list[bytes]:
    """Split into bytes, then join the neighbours of lowest rank, as long as this rank is less than `below`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        ranks = [rank_of.get(a + b, below) for a, b in itertools.pairwise(parts)]
        if not ranks or min(ranks) >= below:
            return parts
        i = ranks.index(min(ranks))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Tokenizer, **special) -> PreTrainedTokenizerFast:
    special = {"bos_token": END, "eos_token": END, "unk_token": END, **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


# ---- words and stop words ----


def words(text: str, language: str = "en") -> list[str]:
    """The words of a text, without punctuation: English by letters, digits and apostrophes, Chinese by jieba's segmentation.

    Raises `ValueError` for a language other than "en" and "zh".
    """
    _check_language(language)
    if language == "zh":
        return [word for word in _jieba().cut(text) if re.search(r"\w", word)]
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text)


@functools.cache
def stop_words(language: str = "en") -> frozenset[str]:
    """The stop words of a language ("en", "zh"), in lower case, as the package `stopwordsiso` lists them."""
    import stopwordsiso

    _check_language(language)
    return frozenset(stopwordsiso.stopwords(language))


def remove_stop_words(words: Iterable[str], language: str = "en") -> list[str]:
    """The words that are not stop words, in their order; upper and lower case count as the same."""
    listed = stop_words(language)
    return [word for word in words if word.lower().replace("’", "'") not in listed]


@functools.cache
def _jieba():
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    return jieba


def _check_language(language: str) -> None:
    if language not in LANGUAGES:
        known = ", ".join(f'"{code}" ({name})' for code, name in LANGUAGES.items())
        raise ValueError(f"unknown language {language!r}: choose one of {known}")


# ---- tokens → segments ----


def make_segments(
    documents: Sequence[Sequence],
    segment_length: int,
    *,
    pad_token_id: int,
    asked: Sequence[Sequence] | None = None,
) -> dict[str, Tensor]:
    """Documents of any length as one batch of whole segments, padded: what `model(**batch)` takes.

    documents: B lists of token numbers, each cut every `segment_length` tokens; or B lists of such lists, each of which begins
        a segment of its own (a source and its translation, say).
    asked: of the same form, True where the token is to be predicted; None asks for every token.

    Returns input_ids (B, S·L), attention_mask (B, S·L) with 1 for tokens and 0 for padding, and labels (B, S·L) with the token
    where it is asked for and −100 elsewhere. S is what the longest document needs. The first token of a part that
    follows padding keeps its label, though nothing can predict it and the model's loss leaves it out: if you count labels, set
    `asked` to False there.

    Raises `ValueError` when there is no document, one is empty, or `asked` has another form.
    """
    if segment_length < 1:
        raise ValueError(f"segment_length must be at least 1, not {segment_length}")
    if not documents:
        raise ValueError("there are no documents: pass at least one list of token numbers")
    if asked is not None and len(asked) != len(documents):
        raise ValueError(f"asked has {len(asked)} entries for {len(documents)} documents: give one for each")
    rows = []
    for index, document in enumerate(documents):
        parts = _parts(document)
        if not all(len(part) for part in parts) or not parts:
            raise ValueError(f"document {index} is empty, or a part of it: every part needs at least one token")
        questions = [[True] * len(part) for part in parts] if asked is None else _parts(asked[index])
        if [len(part) for part in parts] != [len(part) for part in questions]:
            raise ValueError(f"asked[{index}] must have one entry for each token of document {index}")
        ids, mask, labels = [], [], []
        for part, question in zip(parts, questions):
            padding = -len(part) % segment_length
            ids += [*part, *[pad_token_id] * padding]
            mask += [*[1] * len(part), *[0] * padding]
            labels += [*(token if yes else -100 for token, yes in zip(part, question)), *[-100] * padding]
        rows.append((ids, mask, labels))
    longest = max(len(ids) for ids, _, _ in rows)
    fill = {"input_ids": pad_token_id, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([row[i] + [value] * (longest - len(row[i])) for row in rows])
        for i, (name, value) in enumerate(fill.items())
    }


@dataclass
class SegmentCollator:
    """Makes documents, as a data set holds them, into a batch: the `data_collator` of Transformers' `Trainer`.

    Called with B dictionaries, each with `input_ids` (a list of token numbers, or of such lists, as for `make_segments`) and, if not
    every token is to be predicted, `labels` of the same form, −100 where nothing is asked. Returns what `make_segments` returns,
    but with label −100 for a part's first token where padding stands before it: nothing can predict this token, and the Trainer
    divides by the number of labels.

    Raises `ValueError` where a label is neither −100 nor the token at its place (`MemGPT` itself shifts the labels), and where
    the `attention_mask` of a document shows that it is padded already.
    """

    segment_length: int
    pad_token_id: int

    def __call__(self, features: Sequence[dict]) -> dict[str, Tensor]:
        documents, asked = [], []
        for index, feature in enumerate(features):
            parts, labels = (_parts(feature.get(name, feature["input_ids"])) for name in ("input_ids", "labels"))
            if any(label not in (-100, token) for pair in zip(parts, labels) for token, label in zip(*pair)):
                raise ValueError(
                    f"labels of document {index} must be its tokens, or -100 where nothing is asked: the model shifts them itself"
                )
            if any(0 in part for part in _parts(feature.get("attention_mask", [1]))):
                raise ValueError(
                    f"document {index} is padded, by its attention_mask: encode it without padding, which is added here"
                )
            documents.append(parts)
            asked.append([[label != -100 for label in part] for part in labels])
            for before, questions in zip(parts, asked[-1][1:]):
                if questions and len(before) % self.segment_length:  # filled up with padding
                    questions[0] = False
        return make_segments(documents, self.segment_length, pad_token_id=self.pad_token_id, asked=asked)


def _parts(document: Sequence) -> list[list]:
    """A document as a list of parts: itself, where it is one list of numbers. Tensors and arrays become lists."""
    parts = [part.tolist() if hasattr(part, "tolist") else part for part in document]
    return parts if parts and isinstance(parts[0], Sequence) else [parts]


def streams(tokens: Sequence[int] | Tensor, batch_size: int, window: int) -> Iterator[dict[str, Tensor]]:
    """One long text as `batch_size` parallel streams: window after window, so that row b goes on where it stopped.

    The text is cut into B stretches of equal length, and window w holds T tokens of each, from w·T on. Memory is carried along:

        for batch in streams(tokens, batch_size=8, window=256):
            out = model(**batch, memory=memory)
            memory = out.memory.detach()

    Yields input_ids (B, T) and shift_labels (B, T), the token that follows each; the last window may be shorter. Every token is
    predicted exactly once, except the very first, and up to B − 1 left over at the end of the text.

    Raises `ValueError` when the text has fewer than B + 1 tokens.
    """
    tokens = torch.as_tensor(tokens)
    if batch_size < 1 or window < 1:
        raise ValueError(f"batch_size and window must be at least 1, not {batch_size} and {window}")
    length = (len(tokens) - 1) // batch_size
    if tokens.dim() != 1 or length < 1:
        raise ValueError(
            f"{batch_size} streams need one list of at least {batch_size + 1} tokens, not shape {tuple(tokens.shape)}: "
            "take fewer streams or a longer text"
        )
    inputs = tokens[: batch_size * length].view(batch_size, length)  # (B, N)
    following = tokens[1 : batch_size * length + 1].view(batch_size, length)  # (B, N)
    for start in range(0, length, window):
        cut = slice(start, start + window)
        yield {"input_ids": inputs[:, cut], "shift_labels": following[:, cut]}
