"""memgpt_lite: a GPT-2 that writes what it must not forget into memory slots, built to be read.

The six steps of the tutorial, one module each: `preprocessing`, `memory`, `model` (forward), `memory` and `model`
(memory update), `backward`, `training`. Beyond them: `rules` (other updates), `teaching`, `generation`, `streaming`. What
models learn from and what they learned: `tasks`, `data`, `checkpoints`, `applications`, `measurements`. Looking inside: `tracing`, `interventions`, `viz`.
For learners: `memgpt_lite.exercises`.
"""

from . import checkpoints, data, measurements, tasks, viz
from .backward import keep_attention_backward, memory_gradients, sparsemax_backward
from .checkpoints import load_pretrained
from .configuration import MemGPTConfig
from .generation import SegmentCache
from .interventions import Dependence, Reading, Source, dependence, swap_slots
from .memory import KeepAttention, MemoryUpdate, initial_memory, provenance, sparsemax
from .model import MemGPT, MemGPTOutput
from .preprocessing import (
    SegmentCollator,
    character_tokenizer,
    gpt2_tokenizer,
    make_segments,
    remove_stop_words,
    stop_words,
    streams,
    train_tokenizer,
    words,
)
from .rules import DeltaRule, EraseAdd, FirstInFirstOut, GatedSlots
from .session import setup
from .streaming import inspect_memory, load_memory, read_ahead, save_memory, stream
from .tracing import MemoryTrace, trace
from .training import History, answer_accuracy, train, train_step
from .viz import MemoryExplorer, MemoryLab

__version__ = "0.1.0"

__all__ = [
    "DeltaRule", "Dependence", "EraseAdd", "FirstInFirstOut", "GatedSlots", "History", "KeepAttention", "MemGPT",
    "MemGPTConfig", "MemGPTOutput", "MemoryExplorer", "MemoryLab", "MemoryTrace", "MemoryUpdate", "Reading", "SegmentCache",
    "SegmentCollator", "Source", "answer_accuracy", "character_tokenizer", "checkpoints", "data", "dependence",
    "gpt2_tokenizer", "initial_memory", "inspect_memory", "keep_attention_backward", "load_memory", "load_pretrained",
    "make_segments", "measurements", "memory_gradients", "provenance", "read_ahead", "remove_stop_words", "save_memory",
    "setup", "sparsemax", "sparsemax_backward", "stop_words", "stream", "streams", "swap_slots", "tasks", "trace", "train",
    "train_step", "train_tokenizer", "viz", "words",
]  # fmt: skip
