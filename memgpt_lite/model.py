"""Step 3: how does a GPT-2 use a memory?

It reads a text one segment at a time. Inside a segment every block does what GPT-2's does, and between its self-attention and
its MLP it also looks into the memory, by the cross-attention that GPT-2 has for an encoder's states:

    h ← h + SelfAttention(LN(h))
    h ← h + CrossAttention(LN(h), LN(memory))        the read
    h ← h + MLP(LN(h))

From the last hidden state come the output distribution of every position and, out of both, the context vectors; from these
the update rule makes the next segment's memory.

    y_t = softmax(E·h_t)                              (V)
    c_t = h_t + W·(y_t·E)                             (D)   E: token embedding (V, D), W: (D, D)

Shapes: B texts, T tokens of a text, L tokens of a segment, S = ⌈T / L⌉ segments, M slots, D width, V vocabulary, H heads.
GPT-2: Radford et al. 2019. A state carried from segment to segment: Transformer-XL (Dai et al. 2019), RMT (Bulatov et al. 2022).
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers import initialization as init
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.utils import ModelOutput

from .backward import is_cut
from .memory import INITIALISATIONS, UPDATE_RULES, initial_memory
from .training import train_step


@strict
class MemGPTConfig(GPT2Config):
    """GPT-2's configuration, and that of the memory.

    segment_length: tokens read at once (L). Positions start again in every segment.
    num_memory_slots: M.
    update_rule: "keep" (sparsemax), "keep_softmax" or "gated".
    memory_init: "normal", "zeros", "orthogonal" or "learned".
    read_layers: the blocks that read the memory, counted from 0; None means all of them.
    context_from_output: False leaves the output distribution out of the context vectors, so that c_t = h_t.
    keep_bias: where the bias of the keep score starts; the higher, the less an untrained slot takes.
    zero_init_read: start the read's output at zero, so that a pretrained GPT-2 gives exactly the logits it gave before.

    Three of GPT-2's own settings have another default, because they serve small models trained from scratch: no dropout,
    `n_positions` (None: as many as a segment has tokens) and `initializer_range` (None: 0.8 / √n_embd, which is GPT-2's 0.02
    for a width of 1,600, and 0.1 for one of 64).
    """

    model_type = "memgpt_lite"
    keys_to_ignore_at_inference = [
        "memory", "memories", "hidden_states", "read_attentions", "write_attentions", "past_key_values",
    ]  # fmt: skip

    n_positions: int | None = None
    initializer_range: float | int | None = None
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    add_cross_attention: bool = True

    segment_length: int = 64
    num_memory_slots: int = 16
    update_rule: str = "keep"
    memory_init: str = "normal"
    read_layers: list[int] | None = None
    context_from_output: bool = True
    keep_bias: float | int = 0.0
    zero_init_read: bool = False

    def __post_init__(self, **kwargs):
        if self.n_positions is None:
            self.n_positions = self.segment_length
        if self.read_layers is None:
            self.read_layers = list(range(self.n_layer))
        self.add_cross_attention = True  # a plain GPT-2's saved configuration says False
        _check_config(self)
        if self.initializer_range is None:
            self.initializer_range = 0.8 / self.n_embd**0.5
        super().__post_init__(**kwargs)


def _check_config(config: MemGPTConfig) -> None:
    for name in ("vocab_size", "n_embd", "n_layer", "n_head", "segment_length", "num_memory_slots"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")
    if config.n_embd % config.n_head:
        raise ValueError(f"n_embd ({config.n_embd}) must be a multiple of n_head ({config.n_head}): heads share the width evenly")
    if config.segment_length > config.n_positions:
        raise ValueError(
            f"segment_length ({config.segment_length}) is more than n_positions ({config.n_positions}): "
            "shorten the segments, or leave n_positions out"
        )
    if config.update_rule not in UPDATE_RULES:
        raise ValueError(f"unknown update_rule {config.update_rule!r}: choose one of {', '.join(UPDATE_RULES)}")
    if config.memory_init not in INITIALISATIONS:
        raise ValueError(f"unknown memory_init {config.memory_init!r}: choose one of {', '.join(INITIALISATIONS)}")
    if not config.read_layers or not set(config.read_layers) <= set(range(config.n_layer)):
        raise ValueError(f"read_layers must name at least one of the blocks 0 to {config.n_layer - 1}, not {config.read_layers}")


@dataclass
class MemGPTOutput(ModelOutput):
    """What `MemGPT.forward` returns.

    loss: mean cross-entropy over the labelled positions, in nats; when labels were given.
    logits: (B, T, V).
    memory: (B, M, D), after the last segment.
    hidden_states: `n_layer + 1` tensors (B, T, D), the last of them after the final layer norm; on request.
    memories: S + 1 tensors (B, M, D), before the first segment and after each; on request, with the hidden states.
    read_attentions: for each block in `read_layers` (B, H, T, M); a position's row sums to 1
        (except in training with `attn_pdrop` > 0: these are the shares after dropout).
    write_attentions: for each segment (B, M, 1 + L), column 0 is keep; a slot's row sums to 1.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    memory: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    memories: tuple[Tensor, ...] | None = None
    read_attentions: tuple[Tensor, ...] | None = None
    write_attentions: tuple[Tensor, ...] | None = None


class MemGPTBlock(GPT2Block):
    """GPT-2's block, which looks into the memory between its self-attention and its MLP."""

    def __init__(self, config: MemGPTConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.reads = layer_idx in config.read_layers
        if not self.reads:
            del self.crossattention, self.ln_cross_attn

    def forward(self, h: Tensor, mask: Tensor, slots: Tensor) -> tuple[Tensor, Tensor | None]:
        """h (B, L, D), additive mask (·, 1, L, L), slots (B, M, D) → h (B, L, D), read attention (B, H, L, M)."""
        h = h + self.attn(self.ln_1(h), attention_mask=mask)[0]
        attention = None
        if self.reads:
            read, attention = self.crossattention(self.ln_cross_attn(h), encoder_hidden_states=slots)
            h = h + read
        return h + self.mlp(self.ln_2(h)), attention


class MemGPT(GPT2LMHeadModel):
    """A GPT-2 with M memory slots, which it reads in every segment and updates after it."""

    config_class = MemGPTConfig
    _no_split_modules = ["MemGPTBlock"]
    # Read attention is something to look at, and the fused kernels do not return it.
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = False

    def __init__(self, config: MemGPTConfig):
        super().__init__(config)
        width = config.n_embd
        self.transformer.h = nn.ModuleList(MemGPTBlock(config, i) for i in range(config.n_layer))
        self.ln_memory = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.output_to_context = nn.Linear(width, width, bias=False) if config.context_from_output else None  # W
        self.update_rule = UPDATE_RULES[config.update_rule](width, keep_bias=config.keep_bias)
        if config.memory_init == "learned":
            self.initial_memory = nn.Parameter(torch.empty(config.num_memory_slots, width))
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """What Transformers does for its own GPT-2, and for the memory.

        For a class that is defined outside of it, Transformers 5 passes over modules without a parameter of their own, and so
        over GPT-2's smaller weights at the end of each residual branch. The functions of `init` leave loaded weights alone.
        """
        super().initialize_weights()
        branch_std = self.config.initializer_range / (2 * self.config.n_layer) ** 0.5
        for module in self.modules():
            if isinstance(module, GPT2Attention | GPT2MLP):
                zero = self.config.zero_init_read and getattr(module, "is_cross_attention", False)
                init.normal_(module.c_proj.weight, std=0.0 if zero else branch_std)
            elif hasattr(module, "keep_bias"):
                init.constant_(module.keep.bias, module.keep_bias)
        if hasattr(self, "initial_memory"):
            init.normal_(self.initial_memory)

    # ---- step 2: memory initialisation ----

    def init_memory(self, batch_size: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The slots before the first segment, (B, M, D), as `config.memory_init` says.

        Random ones are drawn anew at every call, from `generator` or from PyTorch's own (`ml.setup(seed=…)` seeds that one).
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if self.config.memory_init == "learned":
            return self.initial_memory.expand(batch_size, -1, -1)
        return initial_memory(
            self.config.memory_init, batch_size, self.config.num_memory_slots, self.config.n_embd,
            generator=generator, device=self.device, dtype=self.dtype,
        )  # fmt: skip

    # ---- step 3: forward ----

    def forward(
        self,
        input_ids: Tensor,
        memory: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        bptt_segments: int | None = None,
        output_attentions: bool = True,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> MemGPTOutput:
        """Read a text of any length, `config.segment_length` tokens at a time, carrying the memory along.

        input_ids: (B, T) token numbers; T need not be a multiple of the segment length.
        memory: (B, M, D) to start from, as an earlier call returned it; None starts from `init_memory`.
        attention_mask: (B, T), 1 for tokens and 0 for padding. Padding is never attended to and never written.
        labels: (B, T), as for GPT-2: position t predicts label t + 1, across segments too; −100 is not asked.
        shift_labels: (B, T), already shifted: position t predicts shift_labels t. For windows cut out of a longer text, whose
            last position has a label as well.
        num_items_in_batch: divide the summed loss by this instead of by the number of labels (the `Trainer` sets it).
        bptt_segments: how many segments a gradient goes back over; None is all of them (`backward.is_cut`).

        Raises `ValueError` or `TypeError` that says what is wrong with an argument.
        """
        self._check_inputs(input_ids, memory, attention_mask, labels, shift_labels, bptt_segments)
        batch_size, length = input_ids.shape
        if memory is None:
            memory = self.init_memory(batch_size)
        real = None if attention_mask is None else attention_mask.bool()  # (B, T)

        starts = range(0, length, self.config.segment_length)
        memories, segments, writes = [memory], [], []
        for s, start in enumerate(starts):
            cut = slice(start, start + self.config.segment_length)
            segment_mask = None if real is None else real[:, cut]
            if is_cut(s, len(starts), bptt_segments):
                memory = memory.detach()
            hidden_states, reads, logits = self._read_segment(input_ids[:, cut], segment_mask, memory)
            update = self.update_rule(memory, self.context_vectors(hidden_states[-1], logits), segment_mask)
            memory = update.memory
            segments.append((logits, hidden_states if output_hidden_states else (), reads if output_attentions else ()))
            writes.append(update.write_attention)
            memories.append(memory)

        logits, hidden_states, reads = zip(*segments)
        logits = torch.cat(logits, dim=1)  # (B, T, V)
        output = MemGPTOutput(
            loss=_cross_entropy(logits, labels, shift_labels, num_items_in_batch),
            logits=logits,
            memory=memory,
            hidden_states=_join(hidden_states, dim=1),
            memories=tuple(memories) if output_hidden_states else None,
            read_attentions=_join(reads, dim=2),
            write_attentions=tuple(writes) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _read_segment(self, input_ids: Tensor, real: Tensor | None, memory: Tensor):
        """One segment through the blocks: hidden states of each layer (B, L, D), read attentions (B, H, L, M), logits (B, L, V)."""
        if real is None:
            positions = torch.arange(input_ids.size(1), device=input_ids.device)  # (L)
        else:
            positions = (real.cumsum(-1) - 1).clamp(min=0)  # (B, L): padding takes up no position
        mask = _attention_bias(input_ids.size(1), real, self.dtype, input_ids.device)
        slots = self.ln_memory(memory)  # (B, M, D)
        h = self.transformer.drop(self.transformer.wte(input_ids) + self.transformer.wpe(positions))  # (B, L, D)
        hidden_states, reads = [], []
        for block in self.transformer.h:
            hidden_states.append(h)
            h, attention = block(h, mask, slots)
            if attention is not None:
                reads.append(attention)
        h = self.transformer.ln_f(h)
        return (*hidden_states, h), tuple(reads), self.lm_head(h)

    # ---- step 4: memory update ----

    def context_vectors(self, hidden_states: Tensor, logits: Tensor) -> Tensor:
        """c_t = h_t + W·(softmax(logits_t)·E): what a position has read, and what it expects next.

        hidden_states: (B, L, D), the last layer's; logits: (B, L, V). Returns (B, L, D).
        """
        if self.output_to_context is None:
            return hidden_states
        expected = logits.softmax(-1) @ self.transformer.wte.weight  # (B, L, V) @ (V, D) → (B, L, D)
        return hidden_states + self.output_to_context(expected)

    def update_memory(self, memory: Tensor, context_vectors: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The memory after a segment, (B, M, D), from the one before it (B, M, D) and its context vectors (B, L, D).

        attention_mask (B, L): 1 for tokens, 0 for padding, which is never written. `model.update_rule` does the same and also
        says what was written where.
        """
        self._check_memory(memory, context_vectors.size(0))
        if context_vectors.dim() != 3 or context_vectors.size(-1) != self.config.n_embd:
            raise ValueError(
                f"context_vectors must have shape (B, L, {self.config.n_embd}), not {tuple(context_vectors.shape)}: "
                "model.context_vectors(hidden_states, logits) makes them"
            )
        mask = None if attention_mask is None else attention_mask.bool()
        return self.update_rule(memory, context_vectors, mask).memory

    # ---- step 6: training (step 5, backward, is loss.backward()) ----

    train_step = train_step

    # ---- checks ----

    def _check_inputs(self, input_ids, memory, attention_mask, labels, shift_labels, bptt_segments) -> None:
        if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int64, torch.int32):
            kind = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
            raise TypeError(f"input_ids must be a tensor of whole numbers (torch.long), not {kind}")
        if input_ids.dim() != 2:
            raise ValueError(
                f"input_ids must have two dimensions, texts × tokens, not shape {tuple(input_ids.shape)}; "
                "for a single text write input_ids.unsqueeze(0), for segments input_ids.flatten(1)"
            )
        if 0 in input_ids.shape:
            raise ValueError(f"input_ids is empty, shape {tuple(input_ids.shape)}: pass at least one text of one token")
        if memory is not None:
            self._check_memory(memory, input_ids.size(0))
        for name, tensor in (("attention_mask", attention_mask), ("labels", labels), ("shift_labels", shift_labels)):
            if tensor is not None and tensor.shape != input_ids.shape:
                raise ValueError(f"{name} must have the shape of input_ids, {tuple(input_ids.shape)}, not {tuple(tensor.shape)}")
        if labels is not None and shift_labels is not None:
            raise ValueError("pass labels or shift_labels, not both: the latter are already moved by one position")
        if bptt_segments is not None and bptt_segments < 1:
            raise ValueError(f"bptt_segments must be at least 1, or None for all segments, not {bptt_segments}")
        if torch.compiler.is_compiling():
            return  # the checks below look at values, which a compiled graph cannot
        _check_vocabulary("input_ids", input_ids, self.config.vocab_size)
        for name, tensor in (("labels", labels), ("shift_labels", shift_labels)):
            if tensor is not None:
                _check_vocabulary(name, tensor[tensor != -100], self.config.vocab_size)

    def _check_memory(self, memory: Tensor, batch_size: int) -> None:
        expected = (batch_size, self.config.num_memory_slots, self.config.n_embd)
        if not isinstance(memory, Tensor):
            raise TypeError(f"memory must be a tensor of shape {expected}, not {type(memory).__name__}")
        if memory.shape != expected:
            raise ValueError(
                f"memory must have shape (batch, slots, width) = {expected}, not {tuple(memory.shape)}: "
                f"start from model.init_memory({batch_size}), or pass on the .memory of a batch of the same size"
            )
        if not memory.is_floating_point():
            raise TypeError(f"memory must hold floating-point numbers, not {memory.dtype}")


def _check_vocabulary(name: str, ids: Tensor, vocab_size: int) -> None:
    if ids.numel() and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"{name} holds token numbers from {ids.min()} to {ids.max()}, but the vocabulary has 0 to {vocab_size - 1}: "
            "was the text encoded with the tokenizer that this model was trained with?"
        )


def _attention_bias(length: int, real: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the self-attention's scores: 0 where position t may look at u ≤ t, the lowest number elsewhere.

    Returns (1, 1, L, L), or (B, 1, L, L) with padding.
    """
    visible = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]  # (1, 1, L, L)
    if real is not None:
        visible = visible & real[:, None, None, :]  # (B, 1, L, L)
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def _cross_entropy(logits: Tensor, labels, shift_labels, num_items) -> Tensor | None:
    """Mean cross-entropy in nats, or the sum divided by `num_items`; 0, with gradient 0, where nothing is asked."""
    if labels is not None:
        shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)  # (B, T): position t predicts token t + 1
    if shift_labels is None:
        return None
    total = F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten().long(), ignore_index=-100, reduction="sum")
    if num_items is None:
        num_items = (shift_labels != -100).sum().clamp(min=1)
    return total / num_items


def _join(segments: tuple[tuple[Tensor, ...], ...], dim: int) -> tuple[Tensor, ...] | None:
    """Segments × layers → layers, the segments of each joined along `dim`; None where nothing was collected."""
    return tuple(torch.cat(layer, dim=dim) for layer in zip(*segments)) or None
