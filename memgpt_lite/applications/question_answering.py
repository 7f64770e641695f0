"""How does one sentence, read somewhere in a novel, come back hundreds of pages later?

Statements about who is where and who has what stand between the sentences of Pride and Prejudice, some overriding earlier ones. After
the text comes a question, in a segment of its own: it sees nothing of the text but the slots. How the six steps serve it:

    preprocess      sentences become words; a short sentence is never cut by the end of a segment (`lay_out`)
    initialise      learned slots, the same before every novel
    forward         a question reads the slots, and its answer is the next word
    update          a slot takes a statement, and keeps it exactly while the novel goes by
    backward        from the answers to the statement, over all segments between them; and from what each slot is told to take
    train           first on dense statements, then on scattered ones, and finally in the novel (`curriculum`)

How often is the answer right, by the length of the text and the depth of the statement in it? Thus the field tests long contexts
("needle in a haystack", Kamradt 2023; facts between the sentences of books: BABILong, Kuratov et al. 2024, arXiv:2406.10149). The
statements are in the manner of bAbI (Weston et al. 2015, arXiv:1502.05698).

Shapes: B texts, T tokens, L tokens of a segment, M slots, D width, Q questions.
"""

import functools
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from .. import data, tasks
from ..checkpoints import load_pretrained
from ..checkpoints.recipe import Recipe, Rows, Trained
from ..model import MemGPT
from ..teaching import TaughtMemGPT, start_from
from ..training import History, in_mode, train
from .text_generation import WindowedGPT2

# ---- statements and questions ----

THINGS = "lamp drum kite map coin violin kettle mirror".split()
KEYS = {"where": tasks.NAMES, "who": THINGS}  # what is asked about
VALUES = {"where": tasks.PLACES, "who": tasks.NAMES}  # what is answered
STATEMENTS = {
    "where": ("{key} is in {value} .", "{key} went to {value} .", "{key} is now in {value} .", "they saw {key} in {value} ."),
    "who": (
        "the {key} is with {value} .",
        "the {key} went to {value} .",
        "{value} took the {key} .",
        "now {value} has the {key} .",
    ),
}
QUESTIONS = {"where": "Where is {key} ?", "who": "Who has the {key} ?"}
SHORT = 8  # a sentence of at most this many words, like every statement, is never cut by the end of a segment
WORD = re.compile(r"\w+|[^\w\s]")
PAD, UNKNOWN = "<pad>", "<unk>"
SLOTS = [(kind, key) for kind, keys in KEYS.items() for key in keys]  # what each of the M = 24 slots is taught to hold
SEGMENT = 16  # L
WINDOW = 128  # tokens that the GPT-2 without a memory sees at once


class Fact(NamedTuple):
    """What a statement says: kind is "where" (key: a name, value: a place) or "who" (key: a thing, value: a name)."""

    kind: str
    key: str
    value: str


def draw_facts(count: int, overriding: float, rng: random.Random) -> list[Fact]:
    """Facts in the order in which they are told, on average equally many of each kind. With probability `overriding`, and always
    once every key has been told, a fact is about a key that was told before."""
    facts: list[Fact] = []
    while len(facts) < count:
        told = list(dict.fromkeys(fact[:2] for fact in facts))
        new = {kind: [(kind, key) for key in keys if (kind, key) not in told] for kind, keys in KEYS.items()}
        kinds = [kind for kind in KEYS if new[kind]]
        kind = rng.choice(kinds or list(KEYS))
        again = told and (rng.random() < overriding or not kinds)
        kind, key = rng.choice(told if again else new[kind])
        facts.append(Fact(kind, key, rng.choice(VALUES[kind])))
    return facts


# ---- the novel ----


def sentences(text: str) -> list[list[str]]:
    """A text as sentences, each a list of words and punctuation marks; a blank line ends a sentence too."""
    parts = re.split(r'(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)"?\s+|\n\s*\n', text)
    return [WORD.findall(part) for part in parts if WORD.search(part)]


class Split(NamedTuple):
    """The novel's sentences, divided by chapters."""

    train: list[list[str]]
    validation: list[list[str]]
    test: list[list[str]]


@functools.cache
def split() -> Split:
    """Chapters 1–44 to train, 45–49 to make choices, 50–61 to measure at the end."""
    chapters = re.split(r"(?m)^Chapter \d+\s*$", data.load_text("pride_and_prejudice.txt"))[1:]
    return Split(*(sentences("\n\n".join(part)) for part in (chapters[:44], chapters[44:49], chapters[49:])))


@functools.cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words as tokens: those of `tasks.VOCABULARY`, of statements and questions, and the 300 commonest of the training chapters."""
    forms = " ".join((*STATEMENTS["where"], *STATEMENTS["who"], *QUESTIONS.values()))
    common = Counter(word for sentence in split().train for word in sentence).most_common(300)
    known = [*tasks.VOCABULARY, PAD, UNKNOWN, *THINGS, *(w for w in forms.split() if "{" not in w), *(w for w, _ in common)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(known))}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN)


@functools.cache
def encoded(part: str) -> list[list[int]]:
    """A part of the split, or the whole "novel", as token numbers, sentence by sentence."""
    tokenizer = make_tokenizer()
    chosen = [s for each in split() for s in each] if part == "novel" else getattr(split(), part)
    return [tokenizer.convert_tokens_to_ids(sentence) for sentence in chosen]


# ---- documents ----


def lay_out(pieces: list[list[int]], segment_length: int, pad: int, short: int = SHORT) -> list[int]:
    """Sentences one after another; one of at most `short` tokens moves to the next segment rather than being cut."""
    laid: list[int] = []
    for piece in pieces:
        room = -len(laid) % segment_length  # 0: the current segment is full, or none has begun
        if len(piece) <= short and room < len(piece):
            laid += [pad] * room
        laid += piece
    return laid


class Document(NamedTuple):
    """input_ids: T token numbers. told: every statement, in order: the place of its last word, and the fact.

    facts: what is true at the end; depths: where in the text each of these was told, from 0 to 1.
    """

    input_ids: list[int]
    told: list[tuple[int, Fact]]

    @property
    def latest(self) -> dict[tuple[str, str], tuple[int, Fact]]:
        return {fact[:2]: (place, fact) for place, fact in self.told}

    @property
    def facts(self) -> list[Fact]:
        return [fact for _, fact in self.latest.values()]

    @property
    def depths(self) -> list[float]:
        return [place / len(self.input_ids) for place, _ in self.latest.values()]


def make_document(facts: list[Fact], length: int, filler: list[list[int]], share: float, rng: random.Random) -> Document:
    """Statements at random places between successive sentences of `filler`, which fill this `share` of the room that is left.

    length: T, a multiple of 16; what is not filled is padding. Raises `ValueError` where the statements do not fit.
    """
    tokenizer = make_tokenizer()
    pad, mark = tokenizer.pad_token_id, len(tokenizer)
    statements = []
    for fact in facts:
        said = rng.choice(STATEMENTS[fact.kind]).format(**fact._asdict())
        *words, last, stop = tokenizer.convert_tokens_to_ids(said.split())
        statements.append([*words, last + mark, stop])  # marked, to be found again below
    free = length - len(lay_out(statements, SEGMENT, pad))
    if free < 0:
        raise ValueError(f"{len(facts)} statements do not fit into {length} tokens: take a longer text, or fewer statements")
    room = int(share * free)
    at, novel = rng.randrange(len(filler)), []
    while room > 0:
        novel.append(filler[at % len(filler)][:room])
        room, at = room - len(novel[-1]), at + 1
    while True:  # padding between sentences takes room too: leave out sentences until all fits
        places = sorted(rng.randrange(len(novel) + 1) for _ in statements)
        pieces = list(novel)
        for place, statement in reversed(list(zip(places, statements))):
            pieces.insert(place, statement)
        ids = lay_out(pieces, SEGMENT, pad)
        excess = len(ids) - length
        if excess <= 0:
            break
        while excess > 0:
            excess -= len(novel.pop())
    told = [place for place, token in enumerate(ids) if token >= mark]
    return Document([token % mark for token in ids] + [pad] * -excess, list(zip(told, facts)))


def question_of(fact: Fact) -> str:
    return QUESTIONS[fact.kind].format(key=fact.key)


def ask(fact: Fact, answered: bool) -> list[int]:
    """The question about a fact, with or without the answer, as token numbers."""
    return make_tokenizer().convert_tokens_to_ids(question_of(fact).split() + [fact.value] * answered)


# ---- what is learned from ----


@dataclass(frozen=True)
class HiddenFacts:
    """Documents of `segments` segments with `facts` statements (fewest, most), then two segments of questions.

    filler: the share of the room that the novel fills, drawn anew for each document from this range. overriding: how often a statement
    is about a key that was told before. In every question, the answer is labelled.
    """

    segments: int
    facts: tuple[int, int]
    filler: tuple[float, float] = (0.0, 0.0)
    overriding: float = 0.25
    part: str = "train"

    def batch(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """input_ids and labels, (B, (segments + 2)·L); taken (B, segments + 2, M), what each slot should take (`TaughtMemGPT`)."""
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        rows = [self.row(rng) for _ in range(batch_size)]
        return {name: torch.tensor(column) for name, column in zip(("input_ids", "labels", "taken"), zip(*rows))}

    def row(self, rng: random.Random) -> tuple[list[int], list[int], list[list[int]]]:
        facts = self.draw(rng)
        length, tokenizer = self.segments * SEGMENT, make_tokenizer()
        pad, mark = tokenizer.pad_token_id, len(tokenizer)
        document = make_document(facts, length, encoded(self.part), rng.uniform(*self.filler), rng)
        asked = [
            [
                *tokenizer.convert_tokens_to_ids(question.split()),
                *(mark + i for i in tokenizer.convert_tokens_to_ids(answer.split())),
            ]
            for question, answer in self.questions(document, rng)
        ]  # answers are marked, to be labelled below
        questions = lay_out(asked, SEGMENT, pad)
        questions += [pad] * (2 * SEGMENT - len(questions))
        labels = [token - mark if token >= mark else tasks.IGNORED for token in questions]
        taken = [[0] * len(SLOTS) for _ in range(self.segments + 2)]
        for place, fact in document.told:
            taken[place // SEGMENT][SLOTS.index(fact[:2])] = 1 + place % SEGMENT
        return document.input_ids + [token % mark for token in questions], [tasks.IGNORED] * length + labels, taken

    def draw(self, rng: random.Random) -> list[Fact]:
        return draw_facts(rng.randint(*self.facts), self.overriding, rng)

    def questions(self, document: Document, rng: random.Random) -> list[tuple[str, str]]:
        """Questions with their answers; two of them fit into a segment."""
        return [(question_of(fact), fact.value) for fact in rng.sample(document.facts, len(document.facts))[:4]]


@dataclass(frozen=True)
class TwoHops(HiddenFacts):
    """The same documents, with up to three questions that join two facts, *Where is the lamp ?*, and others beside them.

    aloud: the answer names who has it, and then the place: a chain of thought (Wei et al. 2022, arXiv:2201.11903). Otherwise it is the place.
    """

    aloud: bool = True

    def draw(self, rng: random.Random) -> list[Fact]:
        facts = super().draw(rng)
        names = [fact.key for fact in facts if fact.kind == "where"]
        return [fact._replace(value=rng.choice(names)) if names and fact.kind == "who" else fact for fact in facts]

    def questions(self, document: Document, rng: random.Random) -> list[tuple[str, str]]:
        joined = [
            (f"Where is the {thing} ?", f"{holder} {place}" if self.aloud else place)
            for thing, holder, place in two_hops(document)
        ]
        asked = rng.sample(joined, min(3, len(joined))) + super().questions(document, rng)
        return rng.sample(asked[:4], len(asked[:4]))


def two_hops(document: Document) -> list[tuple[str, str, str]]:
    """Things whose holder's place is known: thing, holder, place."""
    place = {fact.key: fact.value for fact in document.facts if fact.kind == "where"}
    return [(fact.key, fact.value, place[fact.value]) for fact in document.facts if fact.kind == "who" and fact.value in place]


def curriculum() -> list[tasks.Mixture]:
    """At first a few statements, closely packed; then more of them, or some of the novel between them; then mostly the novel."""
    dense = HiddenFacts(2, (2, 4), overriding=0.0)
    many = HiddenFacts(5, (5, 9))
    strewn = HiddenFacts(5, (3, 6), filler=(0.0, 1.0))
    diluted = HiddenFacts(8, (3, 6), filler=(0.5, 1.0))
    return [tasks.Mixture(stage) for stage in ((dense,), (many, strewn), (many, diluted))]


# ---- the model, and one without a memory ----


def train_model(seed: int = 0, steps: int = 2000, progress: bool = True) -> tuple[MemGPT, PreTrainedTokenizerFast, History]:
    """A MemGPT that has gone through the curriculum. It starts from the shipped model `recall`, which knows names and places."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    recall = load_pretrained("recall")
    config = recall.config
    config.vocab_size, config.num_memory_slots = len(tokenizer), len(SLOTS)
    taught = TaughtMemGPT(config)
    start_from(taught, recall)
    history = train(taught, curriculum(), steps=steps, batch_size=32, promote_at=0.9, seed=seed, progress=progress)
    model = MemGPT(config)
    model.load_state_dict(taught.state_dict())
    return model.eval(), tokenizer, history


def train_gpt2(model: MemGPT, steps: int = 1000, progress: bool = True) -> WindowedGPT2:
    """A GPT-2 of the same width and layers. It starts with all weights that it has in common with the trained `model`, so it can
    already read statements and questions, and learns to answer from a window."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(make_tokenizer()), n_positions=WINDOW, n_embd=64, n_layer=2, n_head=2, initializer_range=0.1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    gpt2 = WindowedGPT2(config)
    start_from(gpt2, model)
    dense = curriculum()[0]
    strewn = HiddenFacts(WINDOW // SEGMENT - 2, (3, 6), filler=(0.0, 1.0))  # together with its questions it fills the window
    train(gpt2, [dense, tasks.Mixture((dense, strewn))], steps=steps, batch_size=32, promote_at=0.7, progress=progress)
    return gpt2.eval()


# ---- measuring ----

LENGTHS = {"1,000": 1_000, "2,000": 2_000, "4,000": 4_000, "8,000": 8_000, "16,000": 16_000, "whole novel": None}
DEPTHS = 5  # bands of a fifth of the text each


class Asked(NamedTuple):
    """Questions about documents: right (Q,), bool; depth (Q,), where in its document each statement stood, from 0 to 1."""

    right: Tensor
    depth: Tensor


def make_documents(
    length: int | None, count: int, *, facts: int = 8, overriding: float = 0.25, part: str = "test", seed: int = 1_000_000
) -> list[Document]:
    """Documents of about `length` tokens (None: the whole novel) with `facts` statements; about a quarter override others.

    The whole novel contains the chapters that were trained on, but the statements were no part of them: they are new.
    """
    rng = random.Random(seed)
    filler = encoded("novel" if length is None else part)
    if length is None:
        length = len(lay_out(filler, SEGMENT, 0)) + 2 * facts * SHORT
    length = -(-length // SEGMENT) * SEGMENT
    return [make_document(draw_facts(facts, overriding, rng), length, filler, 1.0, rng) for _ in range(count)]


@torch.no_grad()
def read(model: MemGPT, input_ids: Tensor, segments: int = 16) -> Tensor:
    """The memory (B, M, D) after texts (B, T). It reads `segments` segments at a time, so that space does not grow with T."""
    memory = model.init_memory(len(input_ids))
    for part in input_ids.split(segments * model.config.segment_length, dim=1):
        memory = model(part.to(model.device), memory=memory, logits_to_keep=1, output_attentions=False).memory
    return memory


@torch.no_grad()
def ask_all(model: MemGPT, documents: list[Document], memory: Tensor) -> Asked:
    """Every question about every document, each in a segment of its own; memory (B, M, D), after each document."""
    rows = [(b, fact, depth) for b, document in enumerate(documents) for fact, depth in zip(document.facts, document.depths)]
    right = []
    for b, fact, _ in rows:
        ids = torch.tensor([ask(fact, answered=False)], device=model.device)
        logits = model(ids, memory=memory[b : b + 1], output_attentions=False).logits
        right.append(logits[0, -1].argmax().item() == ask(fact, answered=True)[-1])
    return Asked(torch.tensor(right), torch.tensor([depth for *_, depth in rows]))


@torch.no_grad()
def ask_window(model: GPT2LMHeadModel, documents: list[Document]) -> Asked:
    """The same questions to a GPT-2, each after the end of its document, cut so that both fit into the window."""
    right, depths = [], []
    for document in documents:
        for fact, depth in zip(document.facts, document.depths):
            ids = (document.input_ids + ask(fact, answered=False))[-model.config.n_positions :]
            logits = model(torch.tensor([ids], device=model.device)).logits
            right.append(logits[0, -1].argmax().item() == ask(fact, answered=True)[-1])
            depths.append(depth)
    return Asked(torch.tensor(right), torch.tensor(depths))


def by_depth(asked: Asked, bands: int = DEPTHS) -> list[float]:
    """Exact match, in per cent, for statements in each band of the text, from its beginning to its end."""
    band = (asked.depth * bands).long().clamp(max=bands - 1)  # (Q,)
    return [100 * asked.right[band == i].float().mean().item() for i in range(bands)]


def evaluate(model: MemGPT, tokenizer: PreTrainedTokenizerFast, count: int = 40) -> Rows:
    """Exact match, in per cent, by length, for all depths together and for each fifth of the text, on `count` documents of each length."""
    gpt2 = train_gpt2(model, progress=False)
    rows: Rows = {"memory": {}, "cleared": {}, f"GPT-2, window of {WINDOW}": {}}
    with in_mode(model, training=False):
        for name, length in LENGTHS.items():
            documents = make_documents(length, count)
            memory = read(model, torch.tensor([document.input_ids for document in documents]))
            measured = (
                ask_all(model, documents, memory),
                ask_all(model, documents, model.init_memory(count)),
                ask_window(gpt2, documents),
            )
            for row, asked in zip(list(rows)[:3], measured):
                rows[row][name] = 100 * asked.right.float().mean().item()
                if row == "cleared":
                    continue
                for i, share in enumerate(by_depth(asked)):
                    rows.setdefault(f"{row}, fifth {i + 1}", {})[name] = share
    return rows


# ---- a text of the reader's own ----


def encode(text: str, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """A text as token numbers in whole segments, (1, T); words outside the vocabulary become `<unk>`.

    Raises `ValueError` for a text without a word, and for a statement about a name, place or thing that the model does not know.
    """
    found = sentences(text)
    if not found:
        raise ValueError('the text is empty: pass some sentences, such as "Ada is in Cairo . Ben took the lamp ."')
    for kind, form in ((kind, form) for kind, forms in STATEMENTS.items() for form in forms):
        pattern = re.compile(re.escape(form).replace(r"\{key\}", r"(?P<key>\w+)").replace(r"\{value\}", r"(?P<value>\w+)"))
        for said in filter(None, (pattern.fullmatch(" ".join(sentence)) for sentence in found)):
            for word, known, other in (
                (said["key"], KEYS[kind], said["value"] in VALUES[kind]),
                (said["value"], VALUES[kind], said["key"] in KEYS[kind]),
            ):
                if other and word not in known:
                    raise ValueError(f"“{said[0]}”: the model does not know {word!r} here. It knows {', '.join(known)}")
    ids = lay_out([tokenizer.convert_tokens_to_ids(sentence) for sentence in found], SEGMENT, tokenizer.pad_token_id)
    return torch.tensor([ids + [tokenizer.pad_token_id] * (-len(ids) % SEGMENT)])


def encode_question(question: str, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """A question as token numbers, (1, T). Raises `ValueError` for one of another form, or about a word that the model does not know."""
    words = " ".join(WORD.findall(question))
    for kind, form in QUESTIONS.items():
        asked = re.fullmatch(re.escape(form).replace(r"\{key\}", r"(?P<key>\w+)"), words)
        if asked and asked["key"] in KEYS[kind]:
            return torch.tensor([tokenizer.convert_tokens_to_ids(words.split())])
        if asked:
            raise ValueError(f"the model does not know {asked['key']!r}: it can be asked about {', '.join(KEYS[kind])}")
    forms = ", ".join(f"“{form.format(key=KEYS[kind][0])}”" for kind, form in QUESTIONS.items())
    raise ValueError(f"“{question}” is a question of a form that the model was never trained on: ask as in {forms}")


def answer(model: MemGPT, tokenizer: PreTrainedTokenizerFast, text: str, question: str) -> str:
    """The word that the model answers with, after a text of any length.

    Raises `ValueError`, which says what to do, for an empty text, names, places or things that the model does not know, a question of a
    form that it was never trained on, and one about somebody or something that the text does not name.
    """
    asked, ids = encode_question(question, tokenizer), encode(text, tokenizer)
    about = asked[0, -2]
    if not (ids == about).any():
        raise ValueError(f"the text does not name {tokenizer.convert_ids_to_tokens(about.item())}: ask about what it tells of")
    with torch.no_grad(), in_mode(model, training=False):
        logits = model(asked.to(model.device), memory=read(model, ids), output_attentions=False).logits  # (1, T, V)
    return tokenizer.convert_ids_to_tokens(logits[0, -1].argmax().item())


# ---- recipe ----


def _train(seed: int) -> Trained:
    model, tokenizer, history = train_model(seed, progress=False)
    accuracy = history.recent_accuracy(20)
    return Trained(
        model,
        tokenizer,
        f"from `recall` on, {len(history):,} steps of 32 documents, accuracy in the last 20 of them {accuracy:.3f}",
    )


RECIPES = {
    "question_answering": Recipe(
        _train,
        evaluate,
        about="A MemGPT that answers questions about facts hidden in a novel: who is where, and who has what.",
        data="*Pride and Prejudice*, chapters 1–44 for training, 45–49 for choosing, 50–61 for measuring, with statements between its "
        "sentences: two to nine in a training text of at most 128 tokens, eight in a text to measure on, "
        "about a quarter of them overriding others. In training each slot was also told which statements to take (`TaughtMemGPT`). `whole novel` contains the chapters of training too; its statements are new. "
        "Exact match, in per cent, on 40 texts of each length; `fifth 1` is the beginning of the text.",
        limits=f"anything beyond {len(tasks.NAMES)} names, {len(tasks.PLACES)} places, {len(THINGS)} things, four forms of statement and "
        "one of question for each kind. Nor can it use a statement that is cut by the end of a segment, or join two facts. "
        "Asked about what was never told, it guesses.",
    ),
}
