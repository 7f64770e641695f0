"""How much of a sentence fits through M slots?

One segment reads the source. The next writes its translation, and sees nothing of the source but the memory:

    read   [ W e d n e s d a y , … ] → memory (M, D)        write   [ <zh> 2 0 2 6 年 … <end> ] from the memory alone

The sequence-to-sequence model of Sutskever et al. 2014 had one vector between its halves, and that of Bahdanau et al. 2015 as
many as the source has words; here there are M slots, whatever the length. The six steps: both languages are cut into tokens and
segments; slots are initialised; the source is read; its end updates the memory; the loss of the target goes back through the
slots, the only link to the source; batches of both directions train the model.

- Dates, written in full in English and Chinese by the package `babel`. Everything that is needed can be learned.
- Short texts of user interfaces, 2,205 to learn from: far too few to learn a language. The model is compared with
  retrieval of the nearest text.
"""

import datetime
import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..checkpoints import load_pretrained, load_tokenizer
from ..checkpoints.recipe import Recipe, Rows, Trained
from ..data import load_table
from ..model import MemGPT, MemGPTConfig
from ..preprocessing import END, LANGUAGES, character_tokenizer, make_segments, train_tokenizer
from ..training import train

Pair = dict[str, str]  # {"en": …, "zh": …}
TO = {"en": "<en>", "zh": "<zh>"}  # the token that begins a target, and says in which language
OTHER = {"en": "zh", "zh": "en"}
SEGMENT = {"dates": 32, "sentences": 20}  # tokens: a source fits into one segment, and so does a target


# ---- reading and writing ----


def two_parts(rows: Sequence[tuple[list[int], list[int]]], segment_length: int, pad_token_id: int) -> dict[str, Tensor]:
    """Documents of two parts, (B, S·L): what is read, and what is to be written, with the token that begins it.

    In the second part every token but the first is asked for, in the first part none.
    """
    asked = [[[False] * len(source), [False] + [True] * (len(target) - 1)] for source, target in rows]
    return make_segments([[source, target] for source, target in rows], segment_length, pad_token_id=pad_token_id, asked=asked)


@torch.no_grad()
def read(model: MemGPT, batch: dict[str, Tensor]) -> Tensor:
    """What the memory holds, (B, M, D), after texts in whole segments, (B, S·L), as `make_segments` returns them."""
    input_ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
    return model(input_ids, attention_mask=mask, output_attentions=False).memory


def write(model: MemGPT, tokenizer: PreTrainedTokenizerFast, memory: Tensor, start: str, max_new_tokens: int) -> list[str]:
    """What a memory (B, M, D) makes a model write after the token `start`, greedily."""
    ids = model.generate(
        torch.full((len(memory), 1), tokenizer.convert_tokens_to_ids(start), device=model.device), memory=memory, do_sample=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


@dataclass
class Translator:
    """A model that reads in one segment and writes in another, and its tokenizer."""

    model: MemGPT
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def from_pretrained(cls, name: str) -> "Translator":
        return cls(load_pretrained(name), load_tokenizer(name))

    def read(self, texts: Sequence[str]) -> Tensor:
        """What the memory holds after each text, (B, M, D)."""
        return read(self.model, self.sources(texts))

    def sources(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts as whole segments, (B, S·L).

        Raises `ValueError` for an empty text and for characters that training did not have.
        """
        for text in texts:
            if not text.strip():
                raise ValueError("the text is empty: write something to translate")
            ids = self.tokenizer.encode(text)
            if self.tokenizer.unk_token_id in ids:
                unknown = sorted({c for c in text if self.tokenizer.unk_token_id in self.tokenizer.encode(c)})
                raise ValueError(f"{text!r} has characters that the model was not trained on: {' '.join(unknown)}")
        ids = [self.tokenizer.encode(text) for text in texts]
        return make_segments(ids, self.model.config.segment_length, pad_token_id=self.tokenizer.pad_token_id)

    def write(self, memory: Tensor, to: str) -> list[str]:
        """What a memory (B, M, D) makes the model write, greedily, for at most two segments."""
        return write(self.model, self.tokenizer, memory, TO[to], max_new_tokens=2 * self.model.config.segment_length)

    def translate(self, texts: Sequence[str], to: str, *, cleared: bool = False) -> list[str]:
        """Translations of texts. cleared: between reading and writing the memory is initialised again, so that nothing is known.

        Raises `ValueError` for a language other than "en" and "zh", and as `sources` does.
        """
        if to not in TO:
            raise ValueError(f'the model writes {" and ".join(LANGUAGES.values())}: to must be "en" or "zh", not {to!r}')
        written = []
        for start in range(0, len(texts), 256):
            memory = self.read(texts[start : start + 256])
            written += self.write(self.model.init_memory(len(memory)) if cleared else memory, to)
        return written


def alignment(read_attention: Tensor, shares: Tensor) -> Tensor:
    """From which source tokens each position of the target reads, through the slots.

    read_attention: (H, T, M), of one layer; shares: (M, 1 + N), what each slot is made of (`ml.provenance`), column 0 its initial value.
    Returns (T, 1 + N): the mean over the heads of Σ_slots read · share; each row sums to 1.
    """
    return read_attention.mean(0) @ shares


@dataclass
class Pairs:
    """What is learned from: pairs in either direction. The source is a part of its own; only the target is asked for."""

    pairs: list[Pair]
    tokenizer: PreTrainedTokenizerFast
    segment_length: int

    def __repr__(self) -> str:
        return f"Pairs({len(self.pairs)} pairs, {self.segment_length})"

    def batch(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels, each (B, S·L)."""
        chosen = torch.randint(len(self.pairs), (batch_size,), generator=generator).tolist()
        return self.documents([self.pairs[i] for i in chosen], torch.randint(2, (batch_size,), generator=generator).tolist())

    def documents(self, pairs: Sequence[Pair], into_chinese: Sequence[bool]) -> dict[str, Tensor]:
        """As `batch`, for these pairs in these directions."""
        encode = self.tokenizer.encode
        directions = ["zh" if chinese else "en" for chinese in into_chinese]
        rows = [(encode(pair[OTHER[to]]), encode(TO[to] + pair[to] + END)) for pair, to in zip(pairs, directions)]
        return two_parts(rows, self.segment_length, self.tokenizer.pad_token_id)


# ---- dates ----

FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
FORMS = ("full", "long")  # with the day of the week, and without it
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "zh": [f"星期{c}" for c in "一二三四五六日"],
}


def written_date(date: datetime.date, form: str = "full") -> Pair:
    """A date in both languages, as the package `babel` writes it (CLDR)."""
    from babel.dates import format_date

    return {language: format_date(date, form, locale=language) for language in LANGUAGES}


@functools.cache
def split_dates() -> dict[str, list[datetime.date]]:
    """All dates of two centuries: 2,000 to test on, 1,000 to choose by, the rest to train on. No date is in two of them."""
    dates = [FIRST + datetime.timedelta(days) for days in range((LAST - FIRST).days + 1)]
    random.Random(0).shuffle(dates)
    return {"test": dates[:2000], "validation": dates[2000:3000], "train": dates[3000:]}


def date_pairs(dates: Sequence[datetime.date]) -> list[Pair]:
    """Each date in both forms and both languages."""
    return [written_date(date, form) for date in dates for form in FORMS]


def read_date(text: str) -> tuple[datetime.date, str]:
    """The date that a text names, and its language; where it names none, an error that helps.

    Raises `ValueError` for a text that is not a date in a form that was trained on, and for a date that does not exist.
    """
    english = re.fullmatch(r"(?:(\w+), )?(\w+) (\d{1,2}), (\d{4})", text)
    chinese = re.fullmatch(r"(\d{4})年(\d{1,2})月(\d{1,2})日(星期.)?", text)
    if not english and not chinese:
        raise ValueError(f'{text!r} is not a date as the model knows it: write "Friday, March 3, 2023" or "2023年3月3日星期五"')
    if english:
        weekday, name, day, year = english.groups()
        if name not in MONTHS:
            raise ValueError(f"{name!r} is no month: write it in full, such as March")
        month = MONTHS.index(name) + 1
    else:
        year, month, day, weekday = chinese.groups()
    language = "en" if english else "zh"
    try:
        date = datetime.date(int(year), int(month), int(day))
    except ValueError:
        raise ValueError(f"{text!r} does not exist: no month {month} of {year} has a day {day}") from None
    if weekday and weekday != (right := WEEKDAYS[language][date.weekday()]):
        raise ValueError(f"{text!r} does not exist: that day is a {right}, not a {weekday}")
    if not FIRST <= date <= LAST:
        raise ValueError(f"the model was trained on dates from {FIRST.year} to {LAST.year}, not on {date.year}")
    return date, language


def translate_date(translator: Translator, text: str) -> str:
    """A date in the other language. Raises `ValueError` as `read_date` does."""
    _, language = read_date(text.strip())
    return translator.translate([text.strip()], OTHER[language])[0]


def untrained_dates(seed: int) -> tuple[MemGPT, Pairs]:
    """A new model for dates, and what it is to learn from."""
    pairs = date_pairs(split_dates()["train"])
    tokenizer = character_tokenizer([text for pair in pairs[:2000] for text in pair.values()], special=TO.values())
    return _model(seed, tokenizer, SEGMENT["dates"]), Pairs(pairs, tokenizer, SEGMENT["dates"])


def train_dates(seed: int, steps: int = 2500) -> Trained:
    model, task = untrained_dates(seed)
    train(model, [task], steps=steps, batch_size=64, learning_rate=2e-3, seed=seed)
    return Trained(model, task.tokenizer, f"{steps:,} steps of 64 dates in one of two forms and directions")


def _model(seed: int, tokenizer: PreTrainedTokenizerFast, segment_length: int, dropout: float = 0.0) -> MemGPT:
    torch.manual_seed(seed)
    return MemGPT(
        MemGPTConfig(
            vocab_size=len(tokenizer), segment_length=segment_length, n_embd=128, n_layer=2, n_head=4, num_memory_slots=32,
            initializer_range=0.05, keep_bias=0.0, memory_init="learned", resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        )
    )  # fmt: skip


# ---- sentences of user interfaces ----


LONGEST = {"en": 40, "zh": 16}  # characters; cut into byte pairs, such a text fits into a segment


@functools.cache
def split_sentences() -> dict[str, list[Pair]]:
    """Short texts of user interfaces (JupyterLab, Django): 300 to test on, 300 to choose by, the rest to train on.

    No text is in two of these parts, in either language; letter case and all but letters and digits are ignored.
    """

    def keys(pairs: Sequence[Pair]) -> set[str]:
        return {re.sub(r"[\W_]+", "", text).lower() or text for pair in pairs for text in pair.values()}

    pairs = [dict(zip(LONGEST, row)) for row in load_table("ui_en_zh.tsv")]
    pairs = [pair for pair in pairs if all(len(text) <= LONGEST[language] for language, text in pair.items())]
    random.Random(0).shuffle(pairs)
    parts: dict[str, list[Pair]] = {"test": [], "validation": [], "train": []}
    parts["test"] = pairs[:300]
    for name, rest in (("validation", pairs[300:600]), ("train", pairs[600:])):
        taken = keys([pair for part in parts.values() for pair in part])
        parts[name] = [pair for pair in rest if not keys([pair]) & taken]
    return parts


def untrained_sentences(seed: int) -> tuple[MemGPT, Pairs]:
    """A new model for sentences, and what it is to learn from."""
    pairs = split_sentences()["train"]
    tokenizer = train_tokenizer([text for pair in pairs for text in pair.values()], vocab_size=2048)
    tokenizer.add_special_tokens({"extra_special_tokens": list(TO.values())})
    return _model(seed, tokenizer, SEGMENT["sentences"], dropout=0.1), Pairs(pairs, tokenizer, SEGMENT["sentences"])


def train_sentences(seed: int, steps: int = 2000) -> Trained:
    model, task = untrained_sentences(seed)
    train(model, [task], steps=steps, batch_size=32, learning_rate=2e-3, seed=seed)
    return Trained(model, task.tokenizer, f"{steps:,} steps of 32 texts in one of two directions")


# ---- measuring ----


class Nearest:
    """Retrieval: the translation of the training text that looks most like this one (cosine of character n-grams, by TF-IDF)."""

    def __init__(self, pairs: Sequence[Pair]):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.pairs = pairs
        self.vectorizers = {
            language: TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True) for language in LANGUAGES
        }
        self.known = {name: v.fit_transform([pair[name] for pair in pairs]) for name, v in self.vectorizers.items()}

    def translate(self, texts: Sequence[str], to: str) -> list[str]:
        source = OTHER[to]
        nearest = (self.vectorizers[source].transform(texts) @ self.known[source].T).argmax(axis=1)
        return [self.pairs[i][to] for i in nearest.A1]


def score(written: Sequence[str], wanted: Sequence[str], to: str) -> dict[str, float]:
    """Exact match in percent, BLEU and chrF (0 to 100) of translations, by the package `sacrebleu` (Post 2018)."""
    from sacrebleu.metrics import BLEU, CHRF

    exact = 100 * sum(a == b for a, b in zip(written, wanted)) / len(wanted)
    bleu = BLEU(tokenize="zh" if to == "zh" else "13a").corpus_score(written, [wanted]).score
    return {"exact, %": exact, "BLEU": bleu, "chrF": CHRF().corpus_score(written, [wanted]).score}


def evaluate(translator: Translator, pairs: Sequence[Pair], nearest: Nearest) -> Rows:
    """The three rows: with the memory, with the memory cleared between reading and writing, and retrieval; both directions."""
    rows: Rows = {"memory": {}, "cleared": {}, "nearest training text": {}}
    for to, arrow in (("zh", "en → zh"), ("en", "zh → en")):
        sources, wanted = [pair[OTHER[to]] for pair in pairs], [pair[to] for pair in pairs]
        cleared = translator.translate(sources[:1], to, cleared=True) * len(sources)  # the same whatever was read
        written = {
            "memory": translator.translate(sources, to),
            "cleared": cleared,
            "nearest training text": nearest.translate(sources, to),
        }
        for row, texts in written.items():
            rows[row] |= {f"{name}, {arrow}": value for name, value in score(texts, wanted, to).items()}
    return rows


def evaluate_dates(model: MemGPT, tokenizer: PreTrainedTokenizerFast) -> Rows:
    parts = split_dates()
    nearest = Nearest(date_pairs(parts["train"][:10_000]))
    return evaluate(Translator(model, tokenizer), date_pairs(parts["test"]), nearest)


def evaluate_sentences(model: MemGPT, tokenizer: PreTrainedTokenizerFast) -> Rows:
    parts = split_sentences()
    return evaluate(Translator(model, tokenizer), parts["test"], Nearest(parts["train"]))


RECIPES = {
    "translation_dates": Recipe(
        train_dates,
        evaluate_dates,
        about="A MemGPT that translates dates, English to Chinese and back: one segment reads, another writes, from the memory alone.",
        data="every date from 1900 to 2099 in two forms, as `babel` writes it; 2,000 dates are for testing, 1,000 for choosing, and "
        "training sees no form of these dates.",
        limits="anything but dates in these two forms. It does not check that a date exists (`translate_date` does).",
    ),
    "translation_sentences": Recipe(
        train_sentences,
        evaluate_sentences,
        about="A MemGPT that was taught to translate short texts of user interfaces, English to Chinese and back, through its memory.",
        data="`ui_en_zh.tsv`: texts of JupyterLab and Django of at most 40 English and 16 Chinese characters; 300 for testing, 300 for "
        "choosing, none of which shares its English or Chinese text with one that is trained on.",
        limits="texts of any other kind, and many of these: it has seen 2,205. Compare its scores with those of retrieval.",
        licence="BSD-3-Clause, as the texts",
    ),
}
