"""What must be kept of a text to say in a line what it is about?

    read   [ When the lock is … ] → [ … until notified ] → … → memory (M, D)        write   [ <summary> Wait until … <end> ]

A docstring's body is read in up to four segments; its first line is written in a segment of its own, which sees nothing of
the body but the memory. The six steps: a body is cut into tokens and segments; slots are initialised; the body is read; the memory is
updated after each of its segments, and must keep what later segments would overwrite; the loss of the summary goes back through
all of them; batches of two kinds train it.

1,700 docstrings are very few: summarisers are trained on hundreds of thousands of texts (See et al. 2017 on 287,000). So the model
also learns to write a stretch of a body back from the memory, which teaches it to carry words through the slots; there is
no shortage of such stretches.
"""

import functools
import random
import statistics
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..checkpoints import load_pretrained, load_tokenizer
from ..checkpoints.recipe import Recipe, Rows, Trained
from ..data import load_records
from ..model import MemGPT, MemGPTConfig
from ..preprocessing import make_segments, train_tokenizer
from ..training import train
from .translation import read, two_parts, write

Record = dict[str, str]  # {"module": …, "name": …, "body": …, "summary": …}
SUMMARY, AGAIN = "<summary>", "<again>"  # the token that begins a summary, and the one that begins a stretch written back
SEGMENT = 32  # tokens; a summary is written into one segment
LONGEST = 4 * SEGMENT  # tokens of a body that are read: its beginning
SHORTEST = 10  # words that a text must have


# ---- data ----


@functools.cache
def split() -> dict[str, list[Record]]:
    """Docstrings of Python's standard library: about 250 to test on, 150 to choose by, the rest to train on.

    They are divided by package (`email/message.py` is of `email`), so that no module is in two parts; nor is any body.
    """
    groups = defaultdict(list)
    for record in load_records("python_docstrings.jsonl"):
        groups[record["module"].removesuffix(".py").split("/")[0]].append(record)
    packages = sorted(groups)
    random.Random(0).shuffle(packages)
    parts: dict[str, list[Record]] = {"test": [], "validation": [], "train": []}
    for package in packages:
        name = "test" if len(parts["test"]) < 250 else "validation" if len(parts["validation"]) < 150 else "train"
        parts[name] += groups[package]
    taken: set[str] = set()
    for name, records in parts.items():
        parts[name] = [record for record in records if plain(record["body"]).lower() not in taken]
        taken |= {plain(record["body"]).lower() for record in records}
    return parts


def plain(text: str) -> str:
    """The text with single spaces for all white space: indentation says little of what a docstring is about."""
    return " ".join(text.split())


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token numbers. A space goes in front, so that a text's first word becomes the same token as elsewhere."""
    return tokenizer.encode(" " + plain(text))


# ---- reading and writing ----


@dataclass
class Summariser:
    """A model that reads a body in some segments and writes its summary in another, and its tokenizer."""

    model: MemGPT
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def from_pretrained(cls, name: str = "summarising") -> "Summariser":
        return cls(load_pretrained(name), load_tokenizer(name))

    def sources(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The first `LONGEST` tokens of each text as whole segments, (B, S·L).

        Raises `ValueError` for a text that is empty, too short, or written in letters that training did not have.
        """
        for text in texts:
            check(text)
        ids = [encode(self.tokenizer, text)[:LONGEST] for text in texts]
        return make_segments(ids, self.model.config.segment_length, pad_token_id=self.tokenizer.pad_token_id)

    def read(self, texts: Sequence[str], *, last_segment: bool = False) -> Tensor:
        """What the memory holds after each text, (B, M, D). last_segment: only a text's last segment is read."""
        batch = self.sources(texts)
        if last_segment:
            L = self.model.config.segment_length
            starts = (batch["attention_mask"].sum(1) - 1) // L * L  # (B)
            columns = starts[:, None] + torch.arange(L)  # (B, L)
            batch = {name: tensor.gather(1, columns) for name, tensor in batch.items()}
        return read(self.model, batch)

    def write(self, memory: Tensor, start: str = SUMMARY) -> list[str]:
        """What a memory (B, M, D) makes the model write, greedily, for one segment at most."""
        return write(self.model, self.tokenizer, memory, start, max_new_tokens=self.model.config.segment_length - 1)

    def summarise(self, text: str) -> str:
        """A line that says what a text is about, or tries to. Of a long text the first `LONGEST` tokens are read.

        Raises `ValueError` as `sources` does.
        """
        return self.write(self.read([text]))[0]


def check(text: str) -> None:
    """Raises `ValueError` for a text that is empty, too short, or written in letters that training did not have."""
    if not text.strip():
        raise ValueError("the text is empty: write something to summarise")
    foreign = sorted({c for c in text if c.isalpha() and not unicodedata.name(c, "").startswith("LATIN")})
    if foreign:
        shown = " ".join(foreign[:8])
        raise ValueError(f"the text has letters of a script that the model was not trained on ({shown}): write it in English")
    if (count := len(text.split())) < SHORTEST:
        raise ValueError(
            f"the text has {count} word{'s' * (count > 1)}: write at least {SHORTEST}, or there is nothing to leave out"
        )


# ---- what is learned from ----


@dataclass
class Docstrings:
    """What is learned from: bodies and their summaries; or, for a share of them (`again`), stretches of bodies, to be written back.

    A stretch begins anywhere in a body and has at most `longest` tokens; those that fit into a segment are written back.
    """

    records: list[Record]
    tokenizer: PreTrainedTokenizerFast
    again: float = 0.0
    longest: int = LONGEST

    def __post_init__(self):
        self.bodies = [encode(self.tokenizer, record["body"]) for record in self.records]
        self.summaries = [encode(self.tokenizer, record["summary"]) for record in self.records]
        self.segments = [-(-len(body[:LONGEST]) // SEGMENT) for body in self.bodies]

    def __repr__(self) -> str:
        return f"Docstrings({len(self.records)} records, {self.again}, {self.longest})"

    def batch(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels, each (B, S·L). The bodies of a batch have the same number of segments: less padding."""
        chosen = torch.randint(len(self.records), (batch_size,), generator=generator).tolist()
        alike = [i for i, count in enumerate(self.segments) if count == self.segments[chosen[0]]]
        rows = []
        for i in (alike[i % len(alike)] for i in chosen):
            body = self.bodies[i]
            if torch.rand(1, generator=generator) < self.again:
                start = int(torch.randint(max(1, len(body) - SEGMENT), (1,), generator=generator))
                stretch = body[start : start + self.longest]
                rows.append((stretch, AGAIN, stretch))
            else:
                rows.append((body[:LONGEST], SUMMARY, self.summaries[i]))
        return self.documents(rows)

    def documents(self, rows: Sequence[tuple[list[int], str, list[int]]]) -> dict[str, Tensor]:
        """Each row (what is read, the start token, what is to be written) as one document; only what is to be written is asked for.

        What does not fit into the writing segment is left out, and so is the end token then.
        """
        number, end = self.tokenizer.convert_tokens_to_ids, self.tokenizer.eos_token_id
        parts = [(source, [number(start), *target, end][:SEGMENT]) for source, start, target in rows]
        return two_parts(parts, SEGMENT, self.tokenizer.pad_token_id)


def untrained(seed: int) -> tuple[MemGPT, list[Docstrings]]:
    """A new model, and what it is to learn from, in two stages: to carry words through the slots, then to summarise too."""
    records = split()["train"]
    tokenizer = train_tokenizer(
        [" " + plain(record[part]) for record in records for part in ("body", "summary")], vocab_size=2048
    )
    tokenizer.add_special_tokens({"extra_special_tokens": [SUMMARY, AGAIN]})
    torch.manual_seed(seed)
    model = MemGPT(
        MemGPTConfig(
            vocab_size=len(tokenizer), segment_length=SEGMENT, n_embd=64, n_layer=2, n_head=2, num_memory_slots=32,
            memory_init="learned",
        )
    )  # fmt: skip
    return model, [Docstrings(records, tokenizer, again=1.0, longest=SEGMENT), Docstrings(records, tokenizer, again=0.35)]


def train_model(seed: int, steps: int = 700) -> Trained:
    model, stages = untrained(seed)
    history = train(model, stages, steps=steps, batch_size=32, learning_rate=3e-3, promote_at=0.85, seed=seed)
    first = history.stage.count(0)
    training = f"{first:,} steps of 32 stretches to be written back, {steps - first:,} of stretches and summaries"
    return Trained(model, stages[0].tokenizer, training)


# ---- measuring ----


def lead(text: str, words: int) -> str:
    """The first words of a text: the baseline that news summarisers find hard to beat."""
    return " ".join(text.split()[:words])


def lead_length(records: Sequence[Record]) -> int:
    """The median number of words in a summary."""
    return int(statistics.median(len(record["summary"].split()) for record in records))


class Nearest:
    """Retrieval: the summary of the training body whose words are most like the text's, by TF-IDF."""

    def __init__(self, records: Sequence[Record]):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.records = records
        self.vectorizer = TfidfVectorizer(sublinear_tf=True)
        self.known = self.vectorizer.fit_transform([record["body"] for record in records])

    def summarise(self, texts: Sequence[str]) -> list[str]:
        return [self.records[i]["summary"] for i in (self.vectorizer.transform(texts) @ self.known.T).argmax(axis=1).A1]


def scores(written: Sequence[str], wanted: Sequence[str]) -> list[dict[str, float]]:
    """ROUGE-1 and ROUGE-L (F1, 0 to 100) of each summary, by the package `rouge-score` (Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"])
    found = [scorer.score(target, prediction) for prediction, target in zip(written, wanted, strict=True)]
    return [{"ROUGE-L": 100 * each["rougeL"].fmeasure, "ROUGE-1": 100 * each["rouge1"].fmeasure} for each in found]


def score(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """The means of `scores`."""
    found = scores(written, wanted)
    return {name: statistics.fmean(each[name] for each in found) for name in found[0]}


def write_all(summariser: Summariser, records: Sequence[Record]) -> dict[str, list[str]]:
    """For each row of the table, the summaries of all records' bodies. “Another body” is that of the previous record."""
    known = split()["train"]
    bodies = [record["body"] for record in records]
    words = lead_length(known)
    read = summariser.read(bodies)  # (B, M, D)
    return {
        "memory": summariser.write(read),
        "another body's memory": summariser.write(read.roll(1, 0)),
        "last segment alone": summariser.write(summariser.read(bodies, last_segment=True)),
        "cleared": summariser.write(summariser.model.init_memory(1)) * len(bodies),  # the same whatever was read
        "first words of the body": [lead(body, words) for body in bodies],
        "nearest training body": Nearest(known).summarise(bodies),
    }


def evaluate(model: MemGPT, tokenizer: PreTrainedTokenizerFast) -> Rows:
    """Each row's ROUGE on the test docstrings."""
    records = split()["test"]
    wanted = [record["summary"] for record in records]
    written = write_all(Summariser(model, tokenizer), records)
    return {row: score(texts, wanted) for row, texts in written.items()}


RECIPES = {
    "summarising": Recipe(
        train_model,
        evaluate,
        about="A MemGPT that was taught to write a docstring's first line from its body, through its memory alone. It can reproduce "
        "the beginning of an unseen body; its summaries are weak.",
        data="`python_docstrings.jsonl`: docstrings of Python 3.11's standard library, divided by package; 253 of 41 modules for testing, "
        "159 of 32 for choosing, 1,320 of 218 to train on. The first 128 tokens of a body are read.",
        limits="summarise. It writes lines in the style of this library, nearly the same whatever it has read: compare its scores with those "
        "for another body's memory, and for the first words of the body.",
        licence="MIT, as the package; the texts are CPython's (Python Software Foundation License)",
    ),
}
