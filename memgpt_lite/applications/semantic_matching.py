"""How do you find a text that says the same in other words?

Read both, and compare what is left in the memory: M slots of width D, however long the text is.

    e(text) = vec(memory after the text) / |memory after the text|        (M·D), of length 1
    score(a, b) = e(a) · e(b)                                             a cosine

The six steps: two translations of a verse are cut into tokens and segments; slots are initialised; each text is read; the memory that
its segments wrote is its embedding; the loss compares embeddings only and reaches every segment through the slots; training draws
the two translations of a verse together and pushes all others of the batch apart (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748;
in both directions, as in CLIP, Radford et al. 2021, arXiv:2103.00020):

    loss = ½ · mean_i [ −log softmax_j(s_ij / τ)_i − log softmax_j(s_ji / τ)_i ]        s_ij = e(a_i) · e(b_j)

Shapes: N texts or verses, T tokens of a text, M slots, D width.
"""

import functools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ..checkpoints import load_pretrained, load_tokenizer
from ..checkpoints.recipe import Recipe, Rows, Trained
from ..data import load_table
from ..memory import provenance
from ..model import MemGPT, MemGPTConfig
from ..preprocessing import make_segments, remove_stop_words, train_tokenizer, words
from ..training import History, one_cycle

CANDIDATES, SAME_CHAPTER = 100, 25  # of 100 candidates one is the partner and up to 25 are other verses of its chapter


# ---- the data ----


class Verse(NamedTuple):
    """The same verse in two translations: King James (1611) and World English (2000)."""

    reference: str  # such as "Ruth.1.16"
    king_james: str
    world_english: str

    @property
    def chapter(self) -> str:
        return self.reference.rpartition(".")[0]

    @property
    def overlap(self) -> float:
        """The share of the two translations' words that occur in both (Jaccard); upper and lower case count as the same."""
        a, b = ({word.lower() for word in words(text)} for text in (self.king_james, self.world_english))
        return len(a & b) / len(a | b)


@functools.cache
def split() -> dict[str, tuple[Verse, ...]]:
    """The verses of "train", "validation" and "test": every sixth chapter is for testing, every twelfth for validation.

    Left out are verses that both translations word alike, and verses that either translation words like an earlier verse (a few
    proverbs are told twice), since these could stand on both sides of the split.
    """
    verses, seen = [], set()
    for verse in map(Verse._make, load_table("kjv_web_narrative.tsv")):
        texts = [frozenset(word.lower() for word in words(text)) for text in verse[1:]]
        if verse.king_james != verse.world_english and not seen.intersection(texts):
            verses.append(verse)
        seen.update(texts)
    chapters = list(dict.fromkeys(verse.chapter for verse in verses))
    part = {c: "test" if i % 6 == 5 else "validation" if i % 12 == 2 else "train" for i, c in enumerate(chapters)}
    return {name: tuple(v for v in verses if part[v.chapter] == name) for name in ("train", "validation", "test")}


def line_up(verses: Sequence[Verse], seed: int = 0) -> np.ndarray:
    """For each verse 100 candidates, by number: its own first, then up to 25 of its chapter, then others. (N, 100)."""
    generator, rows = random.Random(seed), []
    for i, verse in enumerate(verses):
        near = [j for j, other in enumerate(verses) if other.chapter == verse.chapter and j != i]
        far = [j for j, other in enumerate(verses) if other.chapter != verse.chapter]
        near = generator.sample(near, min(SAME_CHAPTER, len(near)))
        rows.append([i, *near, *generator.sample(far, CANDIDATES - 1 - len(near))])
    return np.array(rows)


def content(text: str) -> str:
    """A text without its stop words; the text itself where it has no other words."""
    return " ".join(remove_stop_words(words(text))) or text


# ---- reading, and what is read on demand ----


class Match(NamedTuple):
    score: float
    text: str


@dataclass
class Matcher:
    """A model whose memory is the embedding of a text, and its tokenizer."""

    model: MemGPT
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def from_pretrained(cls, name: str = "semantic_matching") -> "Matcher":
        return cls(load_pretrained(name), load_tokenizer(name))

    def memories(self, texts: Sequence[str], *, cleared: bool = False) -> Tensor:
        """The memory after each text, (N, M, D). cleared: start every segment from the initial slots, so that only the last counts.

        A text that has ended is read no further, so that short texts do not wait for the longest.
        """
        length = self.model.config.segment_length
        ids = self.tokenizer(list(texts)).input_ids
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        batch = make_segments([ids[i] for i in order], length, pad_token_id=self.tokenizer.pad_token_id)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        memory, done = self.model.init_memory(len(ids)), []
        for start in range(0, batch["input_ids"].size(1), length):
            mask = batch["attention_mask"][:, start : start + length]
            going_on = int(mask[:, 0].sum())  # the longest come first
            done.insert(0, memory[going_on:])
            memory = self.model.init_memory(going_on) if cleared else memory[:going_on]
            tokens = batch["input_ids"][:going_on, start : start + length]
            memory = self.model(tokens, memory, mask[:going_on], output_attentions=False, logits_to_keep=1).memory
        return torch.cat([memory, *done])[torch.tensor(order).argsort()]

    def embed(self, texts: Sequence[str], *, cleared: bool = False) -> Tensor:
        """Embeddings of length 1, (N, M·D)."""
        return F.normalize(self.memories(texts, cleared=cleared).flatten(1), dim=-1)

    @torch.no_grad()
    def match(self, text: str, candidates: Sequence[str]) -> list[Match]:
        """The candidates, the best match first, each with its score: a cosine, at most 1.

        Raises `ValueError` for fewer than two candidates, an empty text, and one without a word of the training verses.
        """
        if isinstance(candidates, str) or len(candidates) < 2:
            raise ValueError("there must be at least two candidates to choose from: pass a list of two texts or more")
        for name, each in (("the text", text), *((f"candidate {i}", c) for i, c in enumerate(candidates))):
            if not each.strip():
                raise ValueError(f"{name} is empty: write a sentence or two")
            if not any(word.lower() in _known_words() for word in words(each)):
                raise ValueError(
                    f"{name}, {each[:40]!r}, has no word that occurs in training: the model knows the English of two Bible translations"
                )
        scores = (self.embed([text]) @ self.embed(candidates).T)[0].tolist()
        return sorted((Match(score, candidate) for score, candidate in zip(scores, candidates)), reverse=True)

    @torch.no_grad()
    def explain(self, a: str, b: str) -> tuple[Tensor, list[str], list[str]]:
        """Which tokens make up the score of two texts? Returns a table that sums to exactly the score, and the tokens of a and b.

        A slot is a mixture of the values of tokens, m_j = Σ_t P_jt v_t (`ml.provenance`; t = 0 is the initial slot). So

            score = Σ_tu [ Σ_j P_jt P'_ju · v_t·v'_u ] / (|m| |m'|)        (1 + T, 1 + T')

        It holds for the update rules that mix values ("keep", "keep_softmax").
        """
        (parts_a, tokens_a), (parts_b, tokens_b) = self._parts(a), self._parts(b)
        return torch.einsum("mtd,mud->tu", parts_a, parts_b), ["(start)", *tokens_a], ["(start)", *tokens_b]

    def _parts(self, text: str) -> tuple[Tensor, list[str]]:
        """What each token puts into each slot of the embedding, (M, 1 + T, D): the sum over tokens is the embedding."""
        ids = self.tokenizer(text, return_tensors="pt").input_ids.to(self.model.device)  # (1, T)
        out = self.model(ids, output_hidden_states=True)
        context = self.model.context_vectors(out.hidden_states[-1], out.logits)
        values = self.model.update_rule.value(context)[0]  # (T, D)
        start = self.model.init_memory(1)[0].unsqueeze(1)  # (M, 1, D)
        values = torch.cat([start, values.expand(len(start), -1, -1)], dim=1)  # (M, 1 + T, D)
        parts = provenance(out.write_attentions)[0].unsqueeze(-1) * values
        return parts / out.memory.norm(), [self.tokenizer.decode([token]) for token in ids[0].tolist()]


@functools.cache
def _known_words() -> frozenset[str]:
    return frozenset(word.lower() for verse in split()["train"] for text in verse[1:] for word in words(text))


# ---- training ----


@dataclass(frozen=True)
class VersePairs:
    """Pairs of the training split. A batch has `same_chapter` verses of each of its chapters: names alone do not tell them apart.

    word_dropout: the share of words that are left out, different ones every time, since 2,200 pairs are few. without_stop_words:
    the share of batches that have no stop words, so that the model can read such texts too.
    """

    same_chapter: int = 8
    word_dropout: float = 0.3
    without_stop_words: float = 0.3

    def batch(self, batch_size: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
        """`batch_size` verses as two lists of texts, King James and World English, in the same order."""
        chapters = defaultdict(list)
        for verse in split()["train"]:
            chapters[verse.chapter].append(verse)
        chapters, verses = list(chapters.values()), []
        for i in torch.randperm(len(chapters), generator=generator).tolist():
            chosen = torch.randperm(len(chapters[i]), generator=generator)[: self.same_chapter]
            verses += [chapters[i][j] for j in chosen.tolist()]
        strip = content if torch.rand((), generator=generator) < self.without_stop_words else str

        def drop(text: str) -> str:
            parts = strip(text).split()
            kept = torch.rand(len(parts), generator=generator) >= self.word_dropout
            return " ".join(part for part, keep in zip(parts, kept) if keep) or text

        return tuple([drop(verse[side]) for verse in verses[:batch_size]] for side in (1, 2))


def info_nce(scores: Tensor, temperature: float) -> Tensor:
    """The loss in nats, small where each text surely finds its partner in the batch. scores: (N, N), partners on the diagonal."""
    right = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores / temperature, right) + F.cross_entropy(scores.T / temperature, right)) / 2


def new_model(tokenizer: PreTrainedTokenizerFast) -> MemGPT:
    return MemGPT(
        MemGPTConfig(
            vocab_size=len(tokenizer), segment_length=16, n_embd=64, n_layer=2, n_head=2, num_memory_slots=8, memory_init="learned",
            context_from_output=False, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def train_model(
    seed: int = 0, *, steps: int = 1700, batch_size: int = 64, learning_rate: float = 2e-3, temperature: float = 0.05,
    pairs: VersePairs | None = None, on_step: Callable[[History], None] | None = None, progress: bool = True,
) -> tuple[MemGPT, PreTrainedTokenizerFast, History]:  # fmt: skip
    """Train from scratch. The history's accuracy is the share of a batch's verses that find their partner in it."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = train_tokenizer([text for verse in split()["train"] for text in verse[1:]], vocab_size=2048)
    matcher = Matcher(new_model(tokenizer).train(), tokenizer)
    pairs, history = pairs or VersePairs(), History(ended="steps")
    optimizer = torch.optim.AdamW(matcher.model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in tqdm(range(steps), disable=not progress, mininterval=0.5, ncols=100):
        rate = one_cycle(step, steps, learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        one, other = pairs.batch(batch_size, generator)
        embeddings = matcher.embed(one + other)  # (2N, M·D)
        scores = embeddings[: len(one)] @ embeddings[len(one) :].T  # (N, N)
        loss = info_nce(scores, temperature)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(matcher.model.parameters(), 1.0)
        optimizer.step()
        history.loss.append(loss.item())
        history.accuracy.append((scores.argmax(1).cpu() == torch.arange(len(one))).float().mean().item())
        history.gradient_norm.append(norm.item())
        history.learning_rate.append(rate)
        history.stage.append(0)
        if on_step is not None:
            on_step(history)
    return matcher.model.eval(), tokenizer, history


# ---- measuring ----


def measure(scores: np.ndarray) -> dict[str, float]:
    """Top-1 and mean reciprocal rank (MRR) of scores (N, 100), the partner's first. In a tie the partner ranks behind.

    >>> measure(np.array([[0.9, 0.1, 0.2], [0.5, 0.7, 0.6]]))  # ranks 1 and 3: (1 + 0) / 2, (1 + 1/3) / 2
    {'top-1': 0.5, 'MRR': 0.6666666666666666}
    """
    from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score  # slow to import

    partner = np.zeros_like(scores, dtype=int)
    partner[:, 0] = 1
    top = top_k_accuracy_score(np.zeros(len(scores)), scores, k=1, labels=np.arange(scores.shape[1]))
    return {"top-1": float(top), "MRR": float(label_ranking_average_precision_score(partner, scores))}


def tfidf_scores(queries: Sequence[str], texts: Sequence[str], *, tuned: bool = False) -> np.ndarray:
    """Cosines of TF-IDF vectors, (N, N'): the baseline. The words' weights come from the verses of training.

    tuned: with pairs of words too, counts on a logarithmic scale, and weights from these texts as well; chosen on validation.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = [text for verse in split()["train"] for text in verse[1:]]
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)) if tuned else TfidfVectorizer()
    vectorizer.fit([*known, *queries, *texts] if tuned else known)
    return (vectorizer.transform(queries) @ vectorizer.transform(texts).T).toarray()


@torch.no_grad()
def token_scores(matcher: Matcher, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Cosines of mean token embeddings, (N, N')."""
    table = matcher.model.transformer.wte.weight
    one, other = (
        F.normalize(torch.stack([table[ids].mean(0) for ids in matcher.tokenizer(list(part)).input_ids]), dim=-1)
        for part in (queries, texts)
    )
    return (one @ other.T).cpu().numpy()


@torch.no_grad()
def all_scores(matcher: Matcher, queries: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """row → scores of every query with every text, (N, N')."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        untrained = Matcher(new_model(matcher.tokenizer), matcher.tokenizer)
    ours = {
        name: (matcher.embed(queries, cleared=c) @ matcher.embed(texts, cleared=c).T).cpu().numpy() for name, c in ROWS.items()
    }
    tfidf = tfidf_scores(queries, texts)
    return ours | {
        "TF-IDF": tfidf,
        "TF-IDF, tuned": tfidf_scores(queries, texts, tuned=True),
        "mean of token embeddings": token_scores(matcher, queries, texts),
        "mean of token embeddings, untrained": token_scores(untrained, queries, texts),
        "memory + TF-IDF": ours["memory"] + tfidf,
    }


ROWS = {"memory": False, "cleared": True}  # row → whether the memory is cleared before every segment


def evaluate(model: MemGPT, tokenizer: PreTrainedTokenizerFast, part: str = "test") -> Rows:
    """Find the World English verse of each King James verse among 100, with all words and without stop words.

    "top-1, unlike quarter": of that quarter of the verses whose translations share the fewest words (`Verse.overlap`).
    """
    verses = split()[part]
    choice = line_up(verses)
    overlap = np.array([verse.overlap for verse in verses])
    unlike = overlap <= np.quantile(overlap, 0.25)
    rows = defaultdict(dict)
    for ending, change in (("", str), (", no stop words", content)):
        queries, texts = ([change(verse[side]) for verse in verses] for side in (1, 2))
        for row, scores in all_scores(Matcher(model, tokenizer), queries, texts).items():
            scores = np.take_along_axis(scores, choice, axis=1)  # (N, 100)
            rows[row] |= {name + ending: value for name, value in measure(scores).items()}
            rows[row]["top-1, unlike quarter" + ending] = measure(scores[unlike])["top-1"]
    return dict(rows)


def _train(seed: int) -> Trained:
    model, tokenizer, history = train_model(seed)
    return Trained(model, tokenizer, f"{len(history):,} steps of 64 pairs, contrastive (InfoNCE), from scratch")


RECIPES = {
    "semantic_matching": Recipe(
        train=_train,
        evaluate=evaluate,
        about="A MemGPT whose memory after a verse is the verse's embedding: it finds the same verse in another translation.",
        data="`kjv_web_narrative.tsv`, Bible verses in the King James and the World English version, split by chapter "
        "(2,162 train, 215 validation, 539 test). Each King James verse of the test chapters looks for "
        "its partner among 100: its own, up to 25 of the same chapter, and others from the other test chapters.",
        limits="texts unlike these two translations; who did what to whom (it hardly notices two names that change places, or a *not* "
        "that is taken away: notebook 10). It gives scores, not probabilities.",
    )
}
