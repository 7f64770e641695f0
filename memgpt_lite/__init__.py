"""memgpt_lite: a GPT-2 that writes what it must not forget into memory slots, built to be read.

The six steps of the tutorial, one module each: `preprocessing`, `memory`, `model` (forward), `memory` and `model`
(memory update), `backward`, `training`. What is learned from: `tasks`, `data`, `checkpoints`. Looking inside: `viz`.
"""

from . import data, tasks, viz
from .backward import keep_attention_backward, memory_gradients, sparsemax_backward
from .checkpoints import load_pretrained
from .memory import GatedSlots, KeepAttention, MemoryUpdate, initial_memory, provenance, sparsemax
from .model import MemGPT, MemGPTConfig, MemGPTOutput
from .preprocessing import (
    gpt2_tokenizer,
    make_segments,
    remove_stop_words,
    stop_words,
    streams,
    train_tokenizer,
    words,
)
from .session import setup
from .training import History, answer_accuracy, train, train_step

__version__ = "0.1.0"

__all__ = [
    "GatedSlots", "History", "KeepAttention", "MemGPT", "MemGPTConfig", "MemGPTOutput", "MemoryUpdate", "answer_accuracy", "data",
    "gpt2_tokenizer", "initial_memory", "keep_attention_backward", "load_pretrained", "make_segments", "memory_gradients",
    "provenance", "remove_stop_words", "setup", "sparsemax", "sparsemax_backward", "stop_words", "streams", "tasks", "train",
    "train_step", "train_tokenizer", "viz", "words",
]  # fmt: skip
