"""Which memory learns to recall, how soon, and over what length? One core, one thread, about 0.157 M parameters.

    python benchmarks/side_by_side.py [--systems …] [--tasks …] [--seeds 0 1 2] [--budget 120 600]
    python benchmarks/side_by_side.py --report

Ours with every update rule, GPT-2 with full attention and with a sliding window, and five published packages learn the same tasks from
the same documents in the same order, with the same optimiser, in the same processor time. A case is one system, one task, one
seed and one budget. Those that were not measured yet are run and added to memgpt_lite/measurements one by one, each in a process of its
own, so that a run may be ended at any time and gone on with. `--report` writes side_by_side.md from what there is.

Why each system has the settings it has, and what the figures mean: README.md in this directory.

Symbols: V vocabulary, D width, B texts, T tokens of a text, L tokens of a segment, M memory slots.
"""

import argparse
import math
import platform
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from memgpt_lite import MemGPT, MemGPTConfig, measurements
from memgpt_lite.checkpoints.recalling import taken
from memgpt_lite.rules import UPDATE_RULES
from memgpt_lite.tasks import IGNORED, MQAR, NAMES, PLACES, SET, VOCABULARY, AssociativeRecall, Batch, Copy, HardRecall, Mixture
from memgpt_lite.teaching import TaughtMemGPT
from memgpt_lite.training import answer_accuracy, one_cycle

PAGE = Path(__file__).with_suffix(".md")
V, D, LAYERS, HEADS = len(VOCABULARY), 64, 2, 2
L, M = 16, 16
TRAINED = 4  # segments of the longest training text, 64 tokens
BATCH = 64
TOLERANCE = 0.05  # how far a parameter count may be from ours


# ---- systems ----


class System(nn.Module):
    """A language model that reads a text as a whole, to be trained, or segment by segment, with a state that it carries on.

    longest: tokens that it can read, None where nothing in it runs out; `why` says what does.
    """

    longest: int | None = None
    why = ""

    def forward(self, ids: Tensor) -> Tensor:
        """A whole text, (B, T) → logits (B, T, V); the gradient goes back over all of it."""
        logits, state = [], None
        for segment in ids.split(L, dim=1):
            y, state = self.read(segment, state)
            logits.append(y)
        return torch.cat(logits, dim=1)

    def read(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next segment, (B, L), after the state that the one before left, None at first → logits (B, L, V) and the new state."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """What training makes smaller: the answers' cross-entropy."""
        return answer_loss(self(batch.input_ids), batch.labels)


class Ours(System):
    """memgpt_lite, with the settings of the model `recall` that comes with it."""

    def __init__(self, width: int, rule: str):
        super().__init__()
        config = MemGPTConfig(
            vocab_size=V, n_embd=D, n_layer=LAYERS, n_head=HEADS, n_inner=width, segment_length=L, num_memory_slots=M,
            memory_init="learned", update_rule=rule,
        )  # fmt: skip
        self.model = MemGPT(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids, output_attentions=False).logits

    def read(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        out = self.model(ids, memory=state, output_attentions=False)
        return out.logits, out.memory


class Told(Ours):
    """memgpt_lite that is told, in training, which token each slot should take (memgpt_lite.teaching). When it is measured, it is told nothing.

    It is told where documents say what counts, by SET: there slot n should take what is said of the n-th name. No other system is told
    more than the answers.
    """

    def __init__(self, width: int):
        super().__init__(width, "keep")
        self.model = TaughtMemGPT(self.model.config)

    def loss(self, batch: Batch) -> Tensor:
        if not (batch.input_ids == SET).any():
            return super().loss(batch)
        return self.model(batch.input_ids, labels=batch.labels, taken=taken(batch.input_ids), output_attentions=False).loss


class FullAttention(System):
    """Transformers' GPT-2, which sees the whole text at once. Its state is all keys and values, (B, H, T, D/H) twice for each block."""

    longest, why = TRAINED * L, "its positions end where the training texts do"

    def __init__(self, width: int):
        super().__init__()
        config = GPT2Config(
            vocab_size=V, n_embd=D, n_layer=LAYERS, n_head=HEADS, n_inner=width, n_positions=TRAINED * L,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
            activation_function="gelu_pytorch_tanh", initializer_range=0.8 / D**0.5, attn_implementation="sdpa",
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=False).logits

    def read(self, ids: Tensor, state: list | None) -> tuple[Tensor, list]:
        out = self.model(ids, past_key_values=DynamicCache(state), use_cache=True)
        return out.logits, [(layer.keys, layer.values) for layer in out.past_key_values.layers]


class SlidingWindow(FullAttention):
    """GPT-2 with a window: a token sees its own segment and the one before it, up to itself, which is 17 to 32 tokens.

    Positions go round from 0 to 2L − 1, so that those within a window all differ, in a text of any length. The state is the keys and
    values of one segment.
    """

    longest, why = None, ""

    def forward(self, ids: Tensor) -> Tensor:
        at = torch.arange(ids.size(1))
        seen = (at[:, None] >= at) & (at[:, None] // L - at // L <= 1)  # (T, T)
        return self.model(ids, attention_mask=_additive(seen), position_ids=(at % (2 * L))[None], use_cache=False).logits

    def read(self, ids: Tensor, state: tuple[int, list] | None) -> tuple[Tensor, tuple[int, list]]:
        segments, before = (0, None) if state is None else state
        at = torch.arange(ids.size(1))
        seen = F.pad(at[:, None] >= at, (0 if before is None else L, 0), value=True)  # (L, L) or (L, 2L)
        positions = segments % 2 * L + at
        out = self.model(
            ids,
            attention_mask=_additive(seen),
            position_ids=positions[None],
            past_key_values=DynamicCache(before),
            use_cache=True,
        )
        kept = [(layer.keys[:, :, -L:], layer.values[:, :, -L:]) for layer in out.past_key_values.layers]
        return out.logits, (segments + 1, kept)


def _additive(seen: Tensor) -> Tensor:
    """What GPT-2 adds to its scores so that a token sees these, (T, ·) → (1, 1, T, ·)."""
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


class RecurrentMemory(System):
    """RMT (Bulatov et al. 2022) of recurrent-memory-transformer-pytorch. The state is its 8 memory tokens."""

    def __init__(self, width: int):
        super().__init__()
        from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer

        self.model = RecurrentMemoryTransformer(
            num_tokens=V, dim=D, depth=LAYERS, heads=HEADS, dim_head=64, ff_mult=ff_mult(width), seq_len=L,
            num_memory_tokens=8, add_write_to_next_write_mem=True, next_write_mem_stop_grad=False,
            use_flash_attn=True, use_xl_memories=False, num_residual_streams=1,
        )  # fmt: skip

    def read(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, memory, _ = self.model(ids, state)
        return logits, memory


class BlockRecurrent(System):
    """Block-Recurrent Transformer (Hutchins et al. 2022) of block-recurrent-transformer-pytorch.

    The state is M state vectors, and the keys and values of one segment in each layer. The package detaches both at the end of a call
    and not between the blocks within one, so that a training text is one call.
    """

    def __init__(self, width: int):
        super().__init__()
        from block_recurrent_transformer_pytorch import BlockRecurrentTransformer

        self.model = BlockRecurrentTransformer(
            num_tokens=V, dim=D, depth=LAYERS, heads=HEADS, dim_head=64, ff_mult=ff_mult(width), max_seq_len=TRAINED * L,
            block_width=L, num_state_vectors=M, recurrent_layers=(LAYERS,),
        )  # fmt: skip

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)[0]

    def read(self, ids: Tensor, state: tuple | None) -> tuple[Tensor, tuple]:
        memories, states = ([], []) if state is None else state
        logits, memories, states = self.model(ids, xl_memories=memories, states=states, return_memories_and_states=True)
        return logits, (memories, states)


class InfiniAttention(System):
    """Infini-Transformer (Munkhdalai et al. 2024) of infini-transformer-pytorch. The state is a matrix, 64 × 64, for each head."""

    def __init__(self, width: int):
        super().__init__()
        from infini_transformer_pytorch import InfiniTransformer

        self.model = InfiniTransformer(
            num_tokens=V, dim=D, depth=LAYERS, heads=HEADS, dim_head=64, ff_mult=ff_mult(width), use_mem_delta_rule=True
        )
        for attention, _ in self.model.layers:
            nn.init.zeros_(attention.fastweight_mem.head_gates)  # 10, the package's, is a memory that is hardly read

    def read(self, ids: Tensor, state: list | None) -> tuple[Tensor, list]:
        logits, _, memories = self.model(ids, past_memories=state, return_new_memories=True)
        return logits, memories


class Titans(System):
    """Titans, memory as context (Behrouz et al. 2025) of titans-pytorch: a network whose weights are the memory, trained as it reads.

    The package reads on from a state one token at a time, from the text as a whole. `read` calls its parts for a segment instead.
    """

    def __init__(self, width: int):
        super().__init__()
        from titans_pytorch import MemoryAsContextTransformer, MemoryMLP

        self.model = MemoryAsContextTransformer(
            num_tokens=V, dim=D, depth=LAYERS, heads=HEADS, dim_head=32, ff_mult=ff_mult(width), segment_len=L,
            num_persist_mem_tokens=4, num_longterm_mem_tokens=4, neural_memory_layers=(2,),
            neural_memory_model=MemoryMLP(dim=D, depth=2), num_residual_streams=1,
        )  # fmt: skip
        for *_, memory, _, _ in self.model.layers:
            if memory is not None:
                memory.memory_model.requires_grad_(False)  # a template: what is trained are copies of its weights

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def read(self, ids: Tensor, state: tuple[int, list] | None) -> tuple[Tensor, tuple[int, list]]:
        model = self.model
        segments, states = (0, [None] * LAYERS) if state is None else state
        window = model.attn_window_size  # L + 4: the segment and its long-term memory tokens
        x = torch.cat([model.token_emb(ids), model.longterm_mems.expand(len(ids), -1, -1)], dim=1)  # (B, L + 4, D)
        places = segments % TRAINED * window + torch.arange(window)  # the positions that training knew, over and over
        x = model.expand_streams(x + model.axial_pos_emb.forward_with_pos(places, (window,)))
        first_values, after = None, []
        for (memory_stream, attention_stream, mlp_stream, _, memory, attention, mlp), before in zip(model.layers, states):
            if memory is not None:
                inputs, add = memory_stream(x)
                retrieved, before = memory(torch.stack([inputs] * 3), state=before)
                x = add(retrieved)
                # Not carried: updates, for layers above it, and what the weights were at first, which all texts begin with.
                before = before._replace(updates=None, weights=None)
            after.append(before)
            inputs, add = attention_stream(x)
            out, (values, _) = attention(inputs, value_residual=first_values)
            first_values = values if first_values is None else first_values
            x = add(out)
            inputs, add = mlp_stream(x)
            x = add(mlp(inputs))
        x = model.reduce_streams(x)[:, : ids.size(1)]
        return model.to_logits(model.norm(x)), (segments + 1, after)


class Memorizing(System):
    """Memorizing Transformer (Wu et al. 2022) of memorizing-transformers-pytorch: keys and values of all tokens, of which it finds some.

    The state is an object for each text, which a segment adds to. No gradient goes into it, as in the paper.
    """

    longest, why = 16_384, "it was given room for the keys and values of so many tokens"

    def __init__(self, width: int):
        super().__init__()
        from memorizing_transformers_pytorch import MemorizingTransformer

        self._folder = tempfile.TemporaryDirectory()
        self.model = MemorizingTransformer(
            num_tokens=V, dim=D, depth=LAYERS, heads=HEADS, dim_head=64, ff_mult=width // D, memorizing_layers=(2,),
            max_knn_memories=self.longest, num_retrieved_memories=32, knn_memories_directory=self._folder.name,
        )  # fmt: skip
        self._memories = {}  # batch size → memories that are used again: making their files takes longer than a segment

    def read(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is None:
            state = self._memories.setdefault(len(ids), None) or self.model.create_knn_memories(batch_size=len(ids))
            self._memories[len(ids)] = state
            state.clear_memory()
        return self.model(ids, knn_memories=state), state


def ff_mult(width: int) -> float:
    """The setting from which most of these packages make a feed-forward of this width: int(D · mult · 2 / 3)."""
    return (width + 0.5) / D * 3 / 2


class Entry(NamedTuple):
    """name: as a table gives it; build: feed-forward width → system; step: of the widths that it can have; packages: what it is of;
    tasks: what it is measured on, all if there are none; rival: whether it learns from the answers alone, as the others do."""

    name: str
    build: Callable[[int], System]
    step: int = 8
    packages: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    rival: bool = True

    def learns(self, task: str) -> bool:
        return not self.tasks or task in self.tasks


SYSTEMS = {
    **{rule: Entry(f"memgpt_lite, {rule}", partial(Ours, rule=rule)) for rule in UPDATE_RULES},
    "told": Entry("memgpt_lite, keep, told what to take", Told, tasks=("hard", "overwriting"), rival=False),
    "full": Entry("GPT-2, full attention", FullAttention, packages=("transformers",)),
    "window": Entry("GPT-2, window of 32", SlidingWindow, packages=("transformers",)),
    "rmt": Entry("RMT", RecurrentMemory, packages=("recurrent-memory-transformer-pytorch",)),
    "block_recurrent": Entry("Block-Recurrent", BlockRecurrent, packages=("block-recurrent-transformer-pytorch",)),
    "infini": Entry("Infini-attention", InfiniAttention, packages=("infini-transformer-pytorch",)),
    "titans": Entry("Titans", Titans, packages=("titans-pytorch",)),
    "memorizing": Entry("Memorizing", Memorizing, step=D, packages=("memorizing-transformers-pytorch",)),
}
TARGET = ("keep", 4 * D)  # whose parameters all others have too


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def build(system: str, seed: int) -> System:
    """The system with as many parameters as the model `recall`, by the width of its feed-forward, on which they depend linearly.

    Raises `RuntimeError` where they are more than 5% off.
    """
    entry = SYSTEMS[system]
    target = count_parameters(SYSTEMS[TARGET[0]].build(TARGET[1]))
    one, two = (count_parameters(entry.build(n * entry.step)) for n in (1, 2))
    width = entry.step * max(1, round(1 + (target - one) / (two - one)))
    torch.manual_seed(seed)
    model = entry.build(width)
    model.width, parameters = width, count_parameters(model)
    if abs(parameters / target - 1) > TOLERANCE:
        raise RuntimeError(f"{system} has {parameters:,} parameters at width {width}: not within 5% of {target:,}")
    return model


# ---- tasks ----


class Task(NamedTuple):
    """name: as a table gives it; stages: what is trained on, from easy to hard; at: number of segments → what is measured on;
    words: of which one is the answer, so that guessing is right once in so many times."""

    name: str
    stages: list[Mixture]
    at: Callable[[int], Any]
    words: int = len(PLACES)


def _overwriting(segments: int, facts: int = 12) -> HardRecall:
    return HardRecall(segments, min(facts, 5 * (segments - 1)), 4, L, distractors=False)


def _growing(task: Callable[[int], Any], first: int) -> list[Mixture]:
    """Texts of `first` segments; then of one more or as many; and so on, up to the longest."""
    return [Mixture(tuple(task(s) for s in range(first, most + 1))) for most in range(first, TRAINED + 1)]


# Looking up is learned within one segment: who begins with facts and questions in two stays long with guessing (notebook 06).
LOOKING_UP = AssociativeRecall.curriculum(2, on_grid=True)
FACTS, _, CORRECTIONS = HardRecall.curriculum(TRAINED)[-3:]
TASKS = {
    "easy": Task(
        "Easy recall", AssociativeRecall.curriculum(TRAINED, on_grid=True), lambda s: AssociativeRecall(s, on_grid=True)
    ),
    "hard": Task("Hard recall", [*LOOKING_UP, FACTS, CORRECTIONS], lambda s: HardRecall(s)),
    "hard_at_once": Task("Hard recall at once", HardRecall.curriculum(TRAINED), lambda s: HardRecall(s)),
    "overwriting": Task(
        "Overwriting",
        [*LOOKING_UP, _growing(partial(_overwriting, facts=4), 2)[-1], _growing(_overwriting, 2)[-1]],
        _overwriting,
    ),
    "copying": Task("Copying", _growing(Copy, 2), Copy, words=len(NAMES) + len(PLACES)),
    "mqar_mini": Task("MQAR mini", _growing(MQAR, 1), MQAR),
}
FIRST_STAGE, LAST_STAGE = 0.3, 0.6  # shares of the budget: the first stage ends, the last one begins


class Lessons:
    """The batches of a task in their order. Each stage has an order of its own: who is faster sees more of it, nobody sees another."""

    def __init__(self, task: str, seed: int):
        self.stages = TASKS[task].stages
        self.generators = [torch.Generator().manual_seed(1000 * seed + stage) for stage in range(len(self.stages))]

    def next(self, done: float) -> Batch:
        """The next batch, when this share of the budget is used up."""
        last = len(self.stages) - 1
        between = (done - FIRST_STAGE) / (LAST_STAGE - FIRST_STAGE)
        stage = 0 if between < 0 else min(last, 1 + int(between * (last - 1)))
        return self.stages[stage].batch(BATCH, self.generators[stage])


# ---- training ----

VALIDATION, TEST = 500_000, 1_000_000  # seeds of documents that nobody is trained on


class Spent:
    """Processor time of this process, as a context that adds up what passes within it."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self._begin = time.process_time()

    def __exit__(self, *_):
        self.seconds += time.process_time() - self._begin


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the labelled positions, in nats. logits (B, T, V), labels (B, T): position t answers with label t + 1."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


class Trained(NamedTuple):
    """seconds and tokens: of training alone; curve: (seconds, accuracy on 4 segments) every few seconds; loss: the last on the same."""

    steps: int
    seconds: float
    tokens: int
    curve: list[tuple[float, float]]
    loss: float


def train(model: System, task: str, seed: int, rate: float, budget: float) -> Trained:
    """Train for `budget` seconds of processor time. A loss that is not finite ends it; the last loss is then infinite."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    lessons, spent, steps, tokens, curve = Lessons(task, seed), Spent(), 0, 0, []
    held_out = TASKS[task].at(TRAINED).batch(64, torch.Generator().manual_seed(VALIDATION))

    def validate() -> float:
        model.eval()
        with torch.no_grad():
            logits = model(held_out.input_ids)
        model.train()
        curve.append((round(spent.seconds, 2), answer_accuracy(logits, held_out.labels)))
        return answer_loss(logits, held_out.labels).item()

    model.train()
    while spent.seconds < budget:
        batch = lessons.next(spent.seconds / budget)
        with spent:
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(round(1e6 * spent.seconds / budget), 1_000_000, rate)
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
            if finite:
                optimizer.step()
        if not finite:
            return Trained(steps, spent.seconds, tokens, curve, math.inf)
        steps, tokens = steps + 1, tokens + batch.input_ids.numel()
        if spent.seconds > (len(curve) + 1) * budget / 60 and spent.seconds < budget:
            validate()
    loss = validate()
    return Trained(steps, spent.seconds, tokens, curve, loss if math.isfinite(loss) else math.inf)


# ---- the learning rate ----

RATES = (5e-4, 2e-3, 5e-3)
SEARCH = 60.0  # seconds of processor time that each of them is tried for


def search(system: str, task: str) -> dict:
    """Try each learning rate on seed 0; the best is that with the lowest loss on held-out documents of 4 segments."""
    tried = {}
    for rate in RATES:
        result = train(build(system, 0), task, 0, rate, SEARCH)
        tried[rate] = (result.loss, result.curve[-1][1] if result.curve else 0.0)
    best = min(tried, key=lambda rate: tried[rate][0])
    return {
        "system": system, "task": task, "seconds": SEARCH, "best": best,
        "tried": [{"rate": rate, "loss": loss if math.isfinite(loss) else None, "accuracy": right} for rate, (loss, right) in tried.items()],
    }  # fmt: skip


# ---- reading ----

LENGTHS = {1: 256, 4: 256, 16: 64, 256: 64, 4096: 16}  # times the training length → documents
READING = 120.0  # seconds of processor time that reading one length may take


class Reading(NamedTuple):
    """right: share of the questions; seconds: of reading alone; state: what is carried after the last segment."""

    right: float
    questions: int
    seconds: float
    state: Any


@torch.no_grad()
def read_documents(model: System, documents: Batch) -> Reading:
    """Read documents segment by segment, carrying the state along, and count the right answers."""
    model.eval()
    right = asked = 0
    state, spent = None, Spent()
    for ids, labels in zip(documents.input_ids.split(L, dim=1), documents.labels.split(L, dim=1)):
        with spent:
            logits, state = model.read(ids, state)
        there = labels[:, 1:] != IGNORED
        if (labels[:, 0] != IGNORED).any():
            raise ValueError("a segment begins with an answer: it would be given by the segment before")
        if there.any():
            right += (logits[:, :-1].argmax(-1) == labels[:, 1:])[there].sum().item()
            asked += there.sum().item()
    return Reading(right / asked, asked, spent.seconds, state)


def tensors(state: Any) -> Iterable[Tensor]:
    """All tensors within lists, tuples, dictionaries and the like."""
    if isinstance(state, Tensor):
        yield state
    elif hasattr(state, "items"):
        for _, value in state.items():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)


def state_bytes(state: Any, texts: int) -> int:
    """Bytes of state for each text."""
    if hasattr(state, "clear_memory"):  # of memorizing-transformers-pytorch: a file of keys and values, and an index of the keys
        import faiss

        files = sum(int(m.db_offsets[0]) * 2 * m.dim * 4 for m in state)
        return files + sum(faiss.serialize_index(m.knns[0].index).nbytes for m in state)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(state)) // texts


def measure(model: System, task: str) -> dict:
    """Accuracy at each length, or why there is none; tokens a second; bytes of state."""
    rows, rate = {}, None
    for times, documents in LENGTHS.items():
        segments = TRAINED * times
        tokens = documents * segments * L
        if model.longest is not None and segments * L > model.longest:
            rows[str(times)] = {"none": model.why}
            continue
        if rate is not None and tokens / rate > READING:
            rows[str(times)] = {"none": f"it would take {tokens / rate / 60:.1f} minutes"}
            continue
        reading = read_documents(model, TASKS[task].at(segments).batch(documents, torch.Generator().manual_seed(TEST + times)))
        rate = tokens / reading.seconds
        rows[str(times)] = {
            "accuracy": reading.right, "questions": reading.questions, "documents": documents, "tokens_per_second": rate,
            "state_bytes": state_bytes(reading.state, documents),
        }  # fmt: skip
    return rows


# ---- cases ----


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_case(system: str, task: str, seed: int, budget: float, rate: float) -> dict:
    """Train one system and measure it."""
    model = build(system, seed)
    before = peak()
    result = train(model, task, seed, rate, budget)
    trained = peak()
    reached = [seconds for seconds, right in result.curve if right >= 0.99]
    return {
        "system": system, "task": task, "seed": seed, "budget": budget, "rate": rate,
        "parameters": count_parameters(model), "width": model.width, "steps": result.steps, "finite": math.isfinite(result.loss),
        "tokens_per_second": result.tokens / result.seconds, "seconds_to_99": reached[0] if reached else None,
        "curve": result.curve, "lengths": measure(model, task), "training_bytes": trained - before,
    }  # fmt: skip


FILES = {"searches": "side_by_side_rates", "cases": "side_by_side"}  # of memgpt_lite.measurements


def load() -> dict[str, list[dict]]:
    there = {kind: (measurements.FOLDER / f"{name}.jsonl").exists() for kind, name in FILES.items()}
    return {kind: measurements.load(name) if there[kind] else [] for kind, name in FILES.items()}


def add(kind: str, entry: dict) -> None:
    """Add a search or a case to the results, with what it was made with."""
    measurements.add(FILES[kind], {**entry, "where": where(SYSTEMS[entry["system"]].packages)})


def processor() -> str:
    """The name of the processor's model, as Linux gives it, or what Python knows of it elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def where(packages: Iterable[str]) -> str:
    """The processor and the versions that a result was made with."""
    return ", ".join([processor(), *(f"{package} {version(package)}" for package in ("torch", *packages))])


def find(entries: list[dict], **wanted: Any) -> dict | None:
    return next((e for e in entries if all(e[key] == value for key, value in wanted.items())), None)


def _prepare() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # from packages that call PyTorch by an old name


def in_own_process(function: Callable, *arguments: Any) -> Any:
    """Call a function in a fresh process: what one system leaves behind is no other's, and its peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare) as pool:
        return pool.submit(function, *arguments).result()


def run(systems: list[str], tasks: list[str], seeds: list[int], budgets: list[float]) -> None:
    """All cases that are not there yet, in the order of value: seeds, then budgets, then tasks, then systems."""
    for seed in seeds:
        for budget in budgets:
            for task in tasks:
                for system in (each for each in systems if SYSTEMS[each].learns(task)):
                    case = {"system": system, "task": task, "seed": seed, "budget": budget}
                    if find(load()["cases"], **case):
                        continue
                    try:
                        known = find(load()["searches"], system=system, task=task)
                        if known is None:
                            known = in_own_process(search, system, task)
                            add("searches", known)
                            print(f"{system}, {task}: learning rate {known['best']:g} of {known['tried']}", flush=True)
                        result = in_own_process(run_case, system, task, seed, budget, known["best"])
                    except Exception as error:  # the others go on; a later run tries this one again
                        print(f"{system}, {task}, seed {seed}, {budget:g} s: {type(error).__name__}: {error}", flush=True)
                        continue
                    add("cases", result)
                    print(_line(result), flush=True)


def _line(case: dict) -> str:
    lengths = ", ".join(
        f"{times}×: {row['accuracy']:.3f}" if "accuracy" in row else f"{times}×: –" for times, row in case["lengths"].items()
    )
    return f"{case['system']}, {case['task']}, seed {case['seed']}, {case['budget']:g} s, {case['steps']:,} steps: {lengths}"


# ---- the report ----


def best(values: list[float | None], largest: bool = True) -> float | None:
    there = [value for value in values if value is not None]
    return (max if largest else min)(there) if there else None


class Column(NamedTuple):
    """value: case → number, or None where there is none; form: as `format` takes it; largest: whether that is the best, None: neither is.

    least: what a value must exceed to be called the best."""

    title: str
    value: Callable[[dict], float | None]
    form: str
    largest: bool | None = True
    least: float = -math.inf


def summary(cases: list[dict], column: Column) -> str:
    """The median over the cases and, if they differ, the range; how many of them have a value, if not all; – if none has."""
    values = [value for value in map(column.value, cases) if value is not None]
    if not values:
        return "–"
    text, *ends = (format(value, column.form) for value in (statistics.median(values), min(values), max(values)))
    if ends[0] != ends[1]:
        text += f" ({'–'.join(ends)})"
    return text if len(values) == len(cases) else f"{text}, {len(values)} of {len(cases)}"


def _at(times: int, key: str, scale: float = 1) -> Callable[[dict], float | None]:
    def value(case: dict) -> float | None:
        found = case["lengths"].get(str(times), {}).get(key)
        return None if found is None else scale * found

    return value


def accuracy_columns(words: int, asked: dict[str, int]) -> list[Column]:
    """words: see `Task`; asked: the number of questions at each length. The best must be three standard deviations above guessing."""
    guess = 1 / words
    lucky = {times: 100 * (guess + 3 * math.sqrt(guess * (1 - guess) / count)) for times, count in asked.items()}
    return [Column(f"{times:,}×", _at(times, "accuracy", 100), ".1f", least=lucky.get(str(times), 0)) for times in LENGTHS]


EFFORT = [
    Column("99% after, s", lambda case: case["seconds_to_99"], ".0f", largest=None),
    Column("steps", lambda case: case["steps"], ",.0f", largest=None),
    Column("trains on, tokens/s", lambda case: case["tokens_per_second"], ",.0f", largest=None),
    Column("reads, tokens/s", _at(4, "tokens_per_second"), ",.0f", largest=None),
    Column("state at 1×, bytes", _at(1, "state_bytes"), ",.0f", largest=False),
    Column("state at 4×, bytes", _at(4, "state_bytes"), ",.0f", largest=False),
    Column("training memory, MB", lambda case: case["training_bytes"] / 1e6, ".0f", largest=False),
]


def table(groups: dict[str, list[dict]], columns: list[Column]) -> list[str]:
    """A row for each system, with the median and the range over its cases; the best median of a column, among rivals, in bold."""
    medians = {}
    for system, cases in groups.items():
        values = [[v for v in map(column.value, cases) if v is not None] for column in columns]
        # Where a seed has no value (it never reached 99%), the median over all would be that of the better ones only.
        medians[system] = [statistics.median(v) if len(v) == len(cases) else None for v in values]
    best_of = [
        None if column.largest is None else best([m[i] for system, m in medians.items() if SYSTEMS[system].rival], column.largest)
        for i, column in enumerate(columns)
    ]
    lines = ["| system | seeds | " + " | ".join(c.title for c in columns) + " |", "| --- " * (len(columns) + 2) + "|"]
    for system, cases in groups.items():
        cells = []
        for i, column in enumerate(columns):
            text, whole = summary(cases, column), medians[system][i]
            known = SYSTEMS[system].rival and None not in (whole, best_of[i]) and whole > column.least
            cells.append(f"**{text}**" if known and format(whole, column.form) == format(best_of[i], column.form) else text)
        lines.append(f"| {SYSTEMS[system].name} | {len(cases)} | " + " | ".join(cells) + " |")
    return lines


def asked_in_words(asked: dict[str, tuple[int, int]]) -> str:
    """asked: at each length, how many questions of how many documents."""
    said = ", ".join(f"{int(t):,}×: {q:,} ({n:,})" for t, (q, n) in sorted(asked.items(), key=lambda item: int(item[0])))
    return f"Questions (documents) for each system and seed: {said}."


def report(results: dict) -> str:
    """The page: for each task and budget two tables, what has no figure and why, and the learning rates that were tried."""
    page = [
        "# Side by side",
        "",
        "Made by `python benchmarks/side_by_side.py --report`; README.md in this directory says what is compared.",
    ]
    page += [
        "",
        "Median and, in brackets, the range over the seeds. Bold: the best median of a column; of accuracies only where guessing would hardly "
        "reach it (three standard deviations), and not of who was told more than the answers; none for times and speeds, which depend on what else the machine did. Accuracy in per cent "
        "of the questions.",
    ]
    for task, description in TASKS.items():
        of_task = [case for case in results["cases"] if case["task"] == task]
        for budget in sorted({case["budget"] for case in of_task}):
            of_budget = [case for case in of_task if case["budget"] == budget]
            groups = {s: [case for case in of_budget if case["system"] == s] for s in SYSTEMS}
            groups = {system: cases for system, cases in groups.items() if cases}
            rows = [item for case in of_budget for item in case["lengths"].items() if "accuracy" in item[1]]
            asked = {times: (row["questions"], row["documents"]) for times, row in rows}
            page += [
                "",
                f"## {description.name}, {budget:g} s",
                "",
                f"Accuracy at so many times the training length of {TRAINED * L} tokens. {asked_in_words(asked)} Guessing: "
                f"{100 / description.words:.1f}.",
                "",
            ]
            page += table(groups, accuracy_columns(description.words, {times: count for times, (count, _) in asked.items()}))
            page += ["", *table(groups, EFFORT), ""]
            reasons: dict[str, list[str]] = {}
            for system, cases in groups.items():
                for case in cases:
                    for times, row in case["lengths"].items():
                        if "none" in row:
                            at = reasons.setdefault(f"{SYSTEMS[system].name}: {row['none']}", [])
                            at += [f"{int(times):,}×"] if f"{int(times):,}×" not in at else []
                if not all(case["finite"] for case in cases):
                    reasons.setdefault(f"{SYSTEMS[system].name}: a loss that was not finite ended the training of a seed", [])
            page += [f"- No figure for {reason}{' (' + ', '.join(at) + ')' if at else ''}." for reason, at in reasons.items()]
            absent = [SYSTEMS[system].name for system, entry in SYSTEMS.items() if system not in groups and entry.learns(task)]
            page += [f"- Not run yet: {', '.join(absent)}."] if absent else []
    missing = [task.name for name, task in TASKS.items() if not any(case["task"] == name for case in results["cases"])]
    page += ["", f"Tasks that have not been run yet: {', '.join(missing)}."] if missing else []
    page += [
        "",
        "## Learning rates",
        "",
        "Tried on seed 0; the loss on held-out documents of 4 segments, in nats (accuracy in per cent).",
        "",
    ]
    page += [
        "| task | system | seconds each | " + " | ".join(f"{rate:g}" for rate in RATES) + " |",
        "| --- " * (3 + len(RATES)) + "|",
    ]
    for found in results["searches"]:
        cells = []
        for tried in found["tried"]:
            cell = "not finite" if tried["loss"] is None else f"{tried['loss']:.3f} ({100 * tried['accuracy']:.0f})"
            cells.append(f"**{cell}**" if tried["rate"] == found["best"] else cell)
        name = SYSTEMS[found["system"]].name
        page.append(f"| {TASKS[found['task']].name} | {name} | {found['seconds']:g} | " + " | ".join(cells) + " |")
    made_with = sorted({case["where"] for case in results["cases"]})
    page += ["", "One thread. Made with:", "", *(f"- {line}" for line in made_with)]
    return "\n".join(page) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--budget", type=float, nargs="+", default=[120, 600], help="seconds of processor time for training (120 600)"
    )
    parser.add_argument("--report", action="store_true", help="write side_by_side.md from the results, and run nothing")
    options = parser.parse_args()
    if options.report:
        PAGE.write_text(report(load()), encoding="utf-8")
    else:
        run(options.systems, options.tasks, options.seeds, options.budget)


if __name__ == "__main__":
    main()
