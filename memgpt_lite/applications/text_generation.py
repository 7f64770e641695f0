"""How does a novel stay in M slots?

A language model predicts every token of a text from those before it. Ours sees the segment at hand, at most L tokens; of all that
came before, a page or a book, it knows only what M slots hold. What is it worth to carry these slots on?

    preprocess    the lines of a paragraph are joined, the text becomes byte pairs, and is read L tokens at a time
    initialise    the slots are learned, and the same before every text
    forward       every token reads the slots: what was the text about before this segment began?
    update        after a segment the slots take in what may be wanted later
    backward      through eight segments, so that writing is learned from what later segments read
    train         on the training chapters, read side by side from eight places; the memory goes on from step to step

The measure is bits per character, −Σ log₂ p(token) / characters: it stays comparable where texts are cut into different tokens
(Mielke 2019). The model is compared with itself, its memory cleared before every segment, and with a GPT-2 without memory.

Shapes: B texts, T tokens of a text, L tokens of a segment, M slots, D width, V vocabulary.
"""

import copy
import functools
import math
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ..checkpoints import load_pretrained, load_tokenizer
from ..checkpoints.recipe import Recipe, Rows, Trained
from ..data import load_text
from ..memory import MemoryUpdate
from ..model import MemGPT, MemGPTConfig, MemGPTOutput
from ..preprocessing import LANGUAGES, make_segments, streams, train_tokenizer
from ..training import History, one_cycle, train_step

# ---- the data ----


class Book(NamedTuple):
    """A novel: its file, how a chapter begins, how many chapters are for training and for validation, how many kinds of tokens it is cut
    into, and for how many steps models are trained on it (chosen on the validation chapters)."""

    file: str
    chapter: str
    train: int
    validation: int
    vocab_size: int
    steps: int


BOOKS = {
    "en": Book("pride_and_prejudice.txt", r"^Chapter \d+$", train=49, validation=6, vocab_size=1024, steps=5000),
    "zh": Book("sanguo_ch1-40.txt", r"^第[一二三四五六七八九十]+回 ", train=32, validation=4, vocab_size=2048, steps=1200),
}


@functools.cache
def split(language: str = "en") -> dict[str, list[str]]:
    """The chapters of a novel, a string each: the first to train on, the next to choose by, the last to test on.

    Lines that were broken at 70 characters are joined again, since where they break is not worth predicting.

    Raises `ValueError` for a language other than "en" and "zh".
    """
    if language not in BOOKS:
        known = ", ".join(f'"{code}" ({name})' for code, name in LANGUAGES.items())
        raise ValueError(f"there is no novel in {language!r}: choose one of {known}")
    book = BOOKS[language]
    text = load_text(book.file)
    starts = [match.start() for match in re.finditer(book.chapter, text, re.MULTILINE)]
    chapters = [text[start:end].strip() + "\n\n" for start, end in zip(starts, [*starts[1:], len(text)])]
    if language == "en":
        chapters = [re.sub(r"(?<!\n)\n(?!\n)", " ", chapter) for chapter in chapters]
    chapters = [re.sub(r"\n{3,}", "\n\n", chapter) for chapter in chapters]
    first, last = book.train, book.train + book.validation
    return {"train": chapters[:first], "validation": chapters[first:last], "test": chapters[last:]}


@functools.cache
def book_tokenizer(language: str = "en") -> PreTrainedTokenizerFast:
    """The byte pairs of a novel's training chapters."""
    return train_tokenizer(split(language)["train"], BOOKS[language].vocab_size)


@functools.cache
def training_tokens(language: str = "en") -> Tensor:
    """The training chapters as one row of token numbers."""
    return torch.tensor(book_tokenizer(language).encode("".join(split(language)["train"])))


# ---- training ----


class WindowedGPT2(GPT2LMHeadModel):
    """A GPT-2 that is called like ours. Of a text it knows only the window at hand: `n_positions` tokens, read by themselves.

    Its memory is empty, (B, 0, D).
    """

    train_step = train_step

    def forward(self, input_ids, memory=None, attention_mask=None, labels=None, *, shift_labels=None, **options) -> MemGPTOutput:
        batch_size, length = input_ids.shape
        window = min(self.config.n_positions, length)
        windows = F.pad(input_ids, (0, -length % window)).view(-1, window)  # padding comes last, where no token sees it
        logits = super().forward(windows).logits  # (windows, W, V)
        logits = logits.view(batch_size, -1, logits.size(-1))[:, :length]  # (B, T, V)
        if labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)  # (B, T)
        loss = None if shift_labels is None else F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten())
        return MemGPTOutput(loss=loss, logits=logits, memory=logits.new_zeros(batch_size, 0, self.config.n_embd))


class Learned(NamedTuple):
    """What `train_model` and `train_gpt2` return. The history has no accuracies and no stages."""

    model: MemGPT | WindowedGPT2
    tokenizer: PreTrainedTokenizerFast
    history: History


TOKENS, WINDOW = 1024, 128  # tokens of a step, and of each of its streams


def train_model(seed: int, language: str = "en", *, steps: int | None = None, progress: bool = True, **settings) -> Learned:
    """Our model. settings: those of `MemGPTConfig` that should differ from the recipe's."""
    tokenizer = book_tokenizer(language)
    recipe = {
        "segment_length": 16, "num_memory_slots": 16, "update_rule": "fifo", "memory_init": "learned", "context_from_output": False,
        "zero_init_read": True, "n_embd": 64, "n_layer": 2, "n_head": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = MemGPT(MemGPTConfig(vocab_size=len(tokenizer), **recipe | settings))
    return Learned(model, tokenizer, _train(model, language, seed, steps, max(WINDOW, 8 * model.config.segment_length), progress))


def train_gpt2(
    seed: int, language: str = "en", *, window: int, parameters: int, steps: int | None = None, progress: bool = True
) -> Learned:
    """A GPT-2 without memory, trained on as many tokens; its width is chosen to give it about as many `parameters`."""
    tokenizer = book_tokenizer(language)

    def gpt2(width: int) -> WindowedGPT2:
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=window, n_embd=width, n_layer=2, n_head=2, initializer_range=0.8 / width**0.5,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return WindowedGPT2(config)

    with torch.device("meta"):  # to count parameters without storing any
        width = min(range(32, 257, 2), key=lambda width: abs(gpt2(width).num_parameters() - parameters))
    torch.manual_seed(seed)
    model = gpt2(width)
    return Learned(model, tokenizer, _train(model, language, seed, steps, max(WINDOW, window), progress))


def _train(model, language: str, seed: int, steps: int | None, window: int, progress: bool) -> History:
    """`TOKENS` tokens a step, from `streams` along which the memory is carried; each round through the chapters begins elsewhere."""
    steps = steps or BOOKS[language].steps
    tokens, generator, history = training_tokens(language), torch.Generator().manual_seed(seed), History(ended="steps")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    batches = iter(())
    model.train()
    for step in trange(steps, disable=not progress, file=sys.stdout, mininterval=0.5, ncols=100):
        batch = next(batches, None)
        if batch is None:
            start = torch.randint(len(tokens), (), generator=generator).item()
            batches, memory = streams(tokens.roll(-start), TOKENS // window, window), None
            batch = next(batches)
        optimizer.param_groups[0]["lr"] = rate = one_cycle(step, steps, peak=4e-3)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        result = model.train_step(optimizer, **batch, memory=memory, output_attentions=False)
        memory = result.memory
        history.loss.append(result.loss.item())
        history.gradient_norm.append(result.gradient_norm.item())
        history.learning_rate.append(rate)
    model.eval()
    return history


# ---- measuring ----


class Forget(nn.Module):
    """An update rule that keeps nothing: after every segment the slots are again what they were before the text."""

    values_mix = False

    def __init__(self, start: Tensor):
        super().__init__()
        self.register_buffer("start", start.detach().clone())  # (1, M, D)

    def forward(self, memory: Tensor, context_vectors: Tensor, mask: Tensor | None = None) -> MemoryUpdate:
        attention = memory.new_zeros(*memory.shape[:2], 1 + context_vectors.size(1))
        attention[..., 0] = 1
        return MemoryUpdate(self.start.expand_as(memory), attention)


def cleared(model: MemGPT) -> MemGPT:
    """The same model, its memory cleared before every segment."""
    result = copy.deepcopy(model)
    result.update_rule = Forget(model.init_memory(1))
    return result.eval()


@torch.no_grad()
def token_bits(model, tokenizer: PreTrainedTokenizerFast, chapters: Sequence[str]) -> list[Tensor]:
    """−log₂ p(token) of every token of each chapter except the first, which has nothing before it: (T − 1) for each chapter.

    model: ours, or a `WindowedGPT2`; without dropout (`model.eval()`). All chapters are read side by side.
    """
    ids = [tokenizer.encode(chapter) for chapter in chapters]
    batch = make_segments(ids, 1, pad_token_id=tokenizer.pad_token_id)  # (B, T) each
    following = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)  # (B, T)
    memory, nats = None, []
    length = model.config.n_positions if isinstance(model, WindowedGPT2) else model.config.segment_length
    span = max(1, 1024 // length) * length  # about 1,024 tokens, in whole segments
    spans = (x.to(model.device).split(span, dim=1) for x in (batch["input_ids"], batch["attention_mask"], following))
    for input_ids, mask, labels in zip(*spans):
        out = model(input_ids, memory=memory, attention_mask=mask, output_attentions=False)
        memory = out.memory
        nats.append(F.cross_entropy(out.logits.transpose(1, 2), labels, reduction="none").cpu())  # (B, up to a span)
    return [row[: len(tokens) - 1] / math.log(2) for row, tokens in zip(torch.cat(nats, dim=1), ids)]


def bits_per_character(model, tokenizer: PreTrainedTokenizerFast, chapters: Sequence[str]) -> float:
    """The bits of all tokens but the first of each chapter, over the characters that these tokens stand for."""
    bits = sum(row.sum().item() for row in token_bits(model, tokenizer, chapters))
    first = sum(len(tokenizer.decode(tokenizer.encode(chapter)[:1])) for chapter in chapters)
    return bits / (sum(map(len, chapters)) - first)


def evaluate(model: MemGPT, tokenizer: PreTrainedTokenizerFast, language: str = "en", part: str = "test") -> Rows:
    """Bits per character on held-out chapters, with the memory carried on and with it cleared before every segment."""
    chapters = split(language)[part]
    rows = {"memory": model, "cleared": cleared(model)}
    return {row: {"bits per character": bits_per_character(each, tokenizer, chapters)} for row, each in rows.items()}


# ---- writing ----


@functools.cache
def _trained(language: str) -> tuple[MemGPT, PreTrainedTokenizerFast]:
    name = f"text_generation_{language}"
    return load_pretrained(name), load_tokenizer(name)


def check_text(text: str, language: str) -> None:
    """Raise a `ValueError` that says what to do about a text that a novel's model cannot continue."""
    known = {other: set("".join(split(other)["train"])) for other in LANGUAGES}
    if language not in known:
        split(language)  # raises an error that says which there are
    letters = [character for character in text if not character.isspace()]
    if not letters:
        raise ValueError("the text is empty: write how it begins, a few words at least")
    unknown = sorted({character for character in letters if character not in known[language]})
    if 2 * sum(character in unknown for character in letters) <= len(letters):
        return
    for other in LANGUAGES:
        if other != language and all(character in known[other] for character in unknown):
            raise ValueError(
                f"{text!r} is not {LANGUAGES[language]}, which this model was trained on, but may be {LANGUAGES[other]}: "
                f'pass language="{other}"'
            )
    raise ValueError(
        f"most of {text!r} is in characters that the model has never seen ({' '.join(unknown[:10])}): "
        f"write {LANGUAGES[language]}, as in the novel"
    )


def continue_text(
    text: str, language: str = "en", *, new_tokens: int = 100, temperature: float = 0.8, seed: int = 0, carry: bool = True
) -> str:
    """The text, and its continuation by the trained model of a novel: sampled, and the same again with the same seed.

    language: "en" for Pride and Prejudice, "zh" for 三国演义. carry: False clears the memory before every segment.

    Raises `ValueError` for an empty text, a text in another script than the novel's, and a language without a model.
    """
    check_text(text, language)
    model, tokenizer = _trained(language)
    model = model if carry else cleared(model)
    input_ids = torch.tensor([tokenizer.encode(text)], device=model.device)  # (1, T)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        written = model.generate(
            input_ids,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            max_new_tokens=new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.decode(written[0])


# ---- does what was introduced come back? ----

NAMES = {
    "en": ("Bingley", "Wickham", "Collins", "Lydia", "Charlotte", "Gardiner", "Catherine", "Jane"),
    "zh": ("吕布", "袁绍", "刘表", "孙策", "赵云", "孔明", "张飞", "关公"),
}


class Passage(NamedTuple):
    """Token numbers, and the one name that stands in their first half."""

    ids: list[int]
    name: str


def passages(language: str, tokenizer: PreTrainedTokenizerFast, length: int = 64) -> list[Passage]:
    """All passages of the held-out chapters that have one of `NAMES` in their first half, and none in their second."""
    found = []
    for chapter in split(language)["validation"] + split(language)["test"]:
        ids = tokenizer.encode(chapter)
        for start in range(0, len(ids) - length + 1, length // 2):
            halves = ids[start : start + length // 2], ids[start + length // 2 : start + length]
            first, second = ({name for name in NAMES[language] if name in tokenizer.decode(half)} for half in halves)
            if len(first) == 1 and not second:
                found.append(Passage(halves[0] + halves[1], first.pop()))
    return found


def go_on(model: MemGPT, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Passage], new_tokens: int, seed: int) -> list[str]:
    """What a model samples after each of the passages, all of them side by side."""
    input_ids = torch.tensor([prompt.ids for prompt in prompts], device=model.device)  # (B, T)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        written = model.generate(
            input_ids, do_sample=True, top_k=0, max_new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id
        )
    return tokenizer.batch_decode(written[:, input_ids.size(1) :])


def comes_back(texts: Sequence[str], given: Sequence[str]) -> tuple[float, float]:
    """The share of texts that have the name given to them, and of those given *another* name, the share that have it anyway.

    The second, the base rate, is a mean over the texts: for each, of the texts with another name, the share that have this one's.

    Raises `ValueError` when all texts were given the same name.
    """
    if len(set(given)) < 2:
        raise ValueError("there is no base rate, since all texts were given the same name: take passages with several names")
    back = [name in text for text, name in zip(texts, given)]
    rate = {
        name: [name in text for text, other in zip(texts, given) if other != name] for name in set(given)
    }  # fmt: skip
    chance = [sum(rate[name]) / len(rate[name]) for name in given]
    return sum(back) / len(back), sum(chance) / len(chance)


# ---- the models that come with the package ----


def _recipe(language: str, title: str, limits: str) -> Recipe:
    def learn(seed: int) -> Trained:
        model, tokenizer, history = train_model(seed, language, progress=False)
        return Trained(model, tokenizer, f"{len(history):,} steps of {TOKENS:,} tokens")

    def measure(model: MemGPT, tokenizer: PreTrainedTokenizerFast) -> Rows:
        """The model, and beside it two GPT-2s of its size, trained here with the same seed on the same number of tokens."""
        rows, seed = evaluate(model, tokenizer, language), torch.initial_seed()
        for window in (model.config.segment_length, 256):
            gpt2 = train_gpt2(seed, language, window=window, parameters=model.num_parameters(), progress=False).model
            bits = bits_per_character(gpt2, tokenizer, split(language)["test"])
            rows[f"GPT-2, window of {window}"] = {"bits per character": bits}
        return rows

    book = BOOKS[language]
    last = book.train + book.validation
    return Recipe(
        learn,
        measure,
        about=f"A MemGPT that continues {title}: a language model that reads 16 tokens at a time.",
        data=f"`{book.file}`: chapters 1 to {book.train} for training, the next {book.validation} for choosing the recipe, those from "
        f"{last + 1} on for testing. The tokens are {book.vocab_size:,} byte pairs of the training chapters. *cleared* is the same model, its memory "
        "initialised again before every segment; the GPT-2s have about as many parameters, and saw as many tokens of the same "
        "chapters; learning rate and steps are those chosen for ours.",
        limits=limits,
    )


RECIPES = {
    "text_generation_en": _recipe(
        "en",
        "*Pride and Prejudice*",
        "anything but this novel's English. It has style, and nothing to say: sentences, not a story.",
    ),
    "text_generation_zh": _recipe(
        "zh", "*三国演义*", "anything but this novel's Chinese. It has style, and nothing to say: phrases, not a story."
    ),
}
