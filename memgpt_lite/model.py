"""Step 3: how does a GPT-2 use a memory?

It reads a text one segment at a time. Inside a segment every block does what GPT-2's does, and between its self-attention and
its MLP it also looks into the memory, by the cross-attention that GPT-2 has for an encoder's states:

    h ← h + SelfAttention(LN(h))
    h ← h + CrossAttention(LN(h), LN(memory))        the read
    h ← h + MLP(LN(h))

The last hidden state gives the output distribution of every position; both together give the context vectors, from which
the update rule makes the next segment's memory.

    y_t = softmax(E·h_t)                              (V)
    c_t = h_t + W·(y_t·E)                             (D)   E: token embedding (V, D), W: (D, D)

Shapes: B texts, T tokens of a text, L tokens of a segment, S = ⌈T / L⌉ segments, M slots, D width, V vocabulary, H heads.
GPT-2: Radford et al. 2019. A state carried from segment to segment: Transformer-XL (Dai et al. 2019), RMT (Bulatov et al. 2022).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput

from .backward import is_cut
from .configuration import MemGPTConfig
from .generation import MemoryGenerationMixin, SegmentCache, leading_padding, read_on
from .memory import initial_memory
from .rules import UPDATE_RULES
from .training import train_step


@dataclass
class MemGPTOutput(ModelOutput):
    """What `MemGPT.forward` returns.

    loss: mean cross-entropy over the labelled positions, in nats; when labels were given.
    logits: (B, T, V), or as many of the last positions as `logits_to_keep` says; None with `memory_replay`.
    memory: (B, M, D), after the last segment; when reading with a cache, after the last full one.
    hidden_states: `n_layer + 1` tensors (B, T, D), the last of them after the final layer norm; on request.
    memories: S + 1 tensors (B, M, D), before the first segment and after each; on request, with the hidden states.
    read_attentions: for each block in `read_layers` (B, H, T, M); a position's row sums to 1
        (except in training with `attn_pdrop` > 0: these are the shares after dropout).
    write_attentions: for each segment (B, M, 1 + L), column 0 is keep; a slot's row sums to 1. Segments, and so these columns, are
        counted from a text's first token, also where padding stands in front of it.
    past_key_values: the `SegmentCache` to read on from; when asked for by `use_cache`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    memory: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    memories: tuple[Tensor, ...] | None = None
    read_attentions: tuple[Tensor, ...] | None = None
    write_attentions: tuple[Tensor, ...] | None = None
    past_key_values: SegmentCache | None = None

    @property
    def attentions(self) -> tuple[Tensor, ...] | None:
        """The read attentions, under the name by which Transformers' `generate` asks for attention."""
        return self.read_attentions


class Segment(NamedTuple):
    """One segment, read and written: loss is summed over its labels, the rest as in `MemGPTOutput`."""

    memory: Tensor
    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...]
    read_attentions: tuple[Tensor, ...]
    write_attention: Tensor


class MemGPTBlock(GPT2Block):
    """GPT-2's block, which looks into the memory between its self-attention and its MLP."""

    def __init__(self, config: MemGPTConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        if config.activation_function == "gelu_new":
            self.mlp.act = nn.GELU(approximate="tanh")  # the same function in one kernel instead of eight
        self.reads = layer_idx in config.read_layers
        if not self.reads:
            del self.crossattention, self.ln_cross_attn

    def forward(self, h: Tensor, mask: Tensor | None, slots: Tensor, cache: SegmentCache | None = None):
        """h (B, L, D), slots (B, M, D) → h (B, L, D), read attention (B, H, L, M) or None.

        mask: (B, 1, L, ·), True where a position may look; None: at itself and everything before it.
        """
        h = h + self.attend(self.ln_1(h), mask, cache)
        attention = None
        if self.reads:
            read, attention = self.read(self.ln_cross_attn(h), slots, cache)
            h = h + read
        return h + self.mlp(self.ln_2(h)), attention

    def attend(self, x: Tensor, mask: Tensor | None, cache: SegmentCache | None) -> Tensor:
        """Self-attention, (B, L, D) → (B, L, D), also to what the cache holds of the segment. Weights: GPT2Attention's."""
        gpt2 = self.attn
        q, k, v = (self.heads(y) for y in gpt2.c_attn(x).chunk(3, dim=-1))  # (B, H, L, D/H) each
        if cache is not None:
            k, v = cache.update(k, v, gpt2.layer_idx)
        dropout = gpt2.attn_dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=gpt2.scaling)
        return gpt2.resid_dropout(gpt2.c_proj(mixed.transpose(1, 2).flatten(2).contiguous()))

    def read(self, x: Tensor, slots: Tensor, cache: SegmentCache | None) -> tuple[Tensor, Tensor]:
        """Cross-attention from (B, L, D) to slots (B, M, D) → (B, L, D), attention (B, H, L, M).

        q·k = (W_q x)·k = x·(W_qᵀ k), and W_o Σ a v = Σ a (W_o v): where the slots, counted once for each head, are fewer than the
        width, it is cheaper to apply W_q and W_o to the slots than to every token.
        """
        gpt2, layer = self.crossattention, self.attn.layer_idx
        if cache is not None and layer in cache.slots:
            k, v = cache.slots[layer]
        else:
            k, v = (self.heads(y) for y in gpt2.c_attn(slots).chunk(2, dim=-1))  # (B, H, M, D/H) each
            if cache is not None:
                cache.slots[layer] = k, v
        # A layer that somebody put in the place of one of ours (an adapter, a quantised one) must be called, not looked into.
        folded = gpt2.num_heads * slots.size(1) < x.size(-1) and type(gpt2.q_attn) is type(gpt2.c_proj) is Conv1D
        if not folded:
            scores = self.heads(gpt2.q_attn(x)) @ k.mT  # (B, H, L, M)
            attention = gpt2.attn_dropout((scores * gpt2.scaling).softmax(-1))
            return gpt2.resid_dropout(gpt2.c_proj((attention @ v).transpose(1, 2).flatten(2).contiguous())), attention

        by_head = (gpt2.num_heads, gpt2.head_dim)
        k_in = torch.einsum("bhmd,ehd->bhme", k, gpt2.q_attn.weight.unflatten(1, by_head)).flatten(1, 2)  # (B, H·M, D)
        v_out = torch.einsum("bhmd,hde->bhme", v, gpt2.c_proj.weight.unflatten(0, by_head)).flatten(1, 2)  # (B, H·M, D)
        shift = torch.einsum("bhmd,hd->bhm", k, gpt2.q_attn.bias.unflatten(0, by_head)).flatten(1)  # (B, H·M): what q's bias adds
        scores = (x @ k_in.mT + shift.unsqueeze(1)).unflatten(-1, (gpt2.num_heads, -1))  # (B, L, H, M)
        attention = gpt2.attn_dropout((scores * gpt2.scaling).softmax(-1))
        return gpt2.resid_dropout(attention.flatten(2) @ v_out + gpt2.c_proj.bias), attention.transpose(1, 2)

    def heads(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, H, L, D/H)."""
        return x.unflatten(-1, (self.attn.num_heads, self.attn.head_dim)).transpose(1, 2)


class MemGPT(MemoryGenerationMixin, GPT2LMHeadModel):
    """A GPT-2 with M memory slots, which it reads in every segment and updates after it."""

    config_class = MemGPTConfig
    _no_split_modules = ["MemGPTBlock"]
    # `MemGPTBlock` chooses: a fused kernel for self-attention, none for the read, whose attention is returned to be looked at.
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = False
    accepts_loss_kwargs = True  # the Trainer's num_items_in_batch

    def __init__(self, config: MemGPTConfig):
        config.check()  # again: settings may have been changed since
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # tells the Trainer not to count a text's first label, for which nothing is asked
        width = config.n_embd
        self.transformer.h = nn.ModuleList(MemGPTBlock(config, i) for i in range(config.n_layer))
        self.ln_memory = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.output_to_context = nn.Linear(width, width, bias=False) if config.context_from_output else None  # W
        self.update_rule = UPDATE_RULES[config.update_rule](config)
        if config.memory_init == "learned":
            self.initial_memory = nn.Parameter(torch.empty(config.num_memory_slots, width))
        self.post_init()
        self._no_split_modules = {"MemGPTBlock"}  # `post_init` adds GPT2Block: FSDP would look for one, and there is none
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Transformers' `from_pretrained`, for the folder of a `MemGPT`, or of any GPT-2, which then gets a memory.

        Settings of `MemGPTConfig` may be given by keyword (`num_memory_slots=…`). Weights are read from safetensors only:
        Transformers would fall back to the older .bin files, and these are pickles. `use_safetensors=False` reads such a file
        after all.
        """
        kwargs.setdefault("use_safetensors", True)
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info=True a tuple
        model._freeze()  # loading put new parameters in the place of those that were frozen
        return loaded

    def _freeze(self) -> None:
        if self.config.freeze_gpt2:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not is_gpt2s(name))

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise all weights as Transformers does for its own GPT-2, and those of the memory.

        For a class defined outside Transformers, version 5 skips modules without a parameter of their own, and so leaves out
        GPT-2's smaller weights at the end of each residual branch. The functions of `init` leave loaded weights alone.
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

        Random slots are drawn anew at every call, from `generator` or from PyTorch's own one, which `ml.setup(seed=…)` seeds.
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
        num_items_in_batch: Tensor | int | None = None,
        bptt_segments: int | None = None,
        memory_replay: bool = False,
        past_key_values: SegmentCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        output_attentions: bool = True,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **by_name: Tensor | None,
    ) -> MemGPTOutput:
        """Read a text of any length, `config.segment_length` tokens at a time, carrying the memory along.

        input_ids: (B, T) token numbers; T need not be a multiple of the segment length.
        memory: (B, M, D) to start from, as an earlier call returned it; None starts from `init_memory`.
        attention_mask: (B, T), 1 for tokens and 0 for padding. Padding is never attended to and never written. A row's segments
            are counted from its first token: padding in front of it changes nothing (except the cuts of `bptt_segments`).
        labels: (B, T), as for GPT-2: position t predicts label t + 1, across segments too; −100 and padding are not asked.
        shift_labels: (B, T), already shifted: position t predicts shift_labels t. For windows cut out of a longer text, whose
            last position has a label as well.
        num_items_in_batch: divide the summed loss by this instead of by the number of labels (the `Trainer` sets it).
        bptt_segments: over how many segments a gradient goes back; None is all of them (`backward.is_cut`). In a padded batch
            they are counted from the end of the longest text: a shorter one may be cut at other places than if read alone.
        memory_replay: of each segment keep only the memory that entered it, and read the segment again when the gradient comes
            back. This gives the same gradient in about the space of one segment, for one more reading (Memformer, Wu et al.
            2022). Returns loss and memory only, and `memories` with `output_hidden_states=True`.
        past_key_values, use_cache: read on from a `SegmentCache`, and return it, as `generate` does (`memgpt_lite.generation`).
        logits_to_keep: return the logits of only the last positions, this many; 0 is all.

        Raises `ValueError` or `TypeError` that says what is wrong with an argument.
        """
        # Not in the signature: the Trainer believes that a batch to evaluate must have every name there with "label" in it.
        shift_labels = by_name.pop("shift_labels", None)
        if by_name:
            raise TypeError(f"MemGPT.forward() got an unexpected keyword argument {next(iter(by_name))!r}")
        if past_key_values is not None and attention_mask is not None:
            attention_mask = attention_mask[:, -input_ids.size(1) :]  # `generate` passes the mask of the whole text
        self._check_inputs(input_ids, memory, attention_mask, labels, shift_labels, bptt_segments)
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep must be at least 1, or 0 for all positions, not {logits_to_keep}")
        self._check_modes(memory, labels, shift_labels, memory_replay, past_key_values, use_cache)
        batch_size, length = input_ids.shape
        real = None if attention_mask is None else attention_mask.bool()  # (B, T)
        if past_key_values is None:
            memory = self.init_memory(batch_size) if memory is None else memory.to(self.dtype)
        if use_cache or past_key_values is not None:
            cache = SegmentCache(memory, self.config.segment_length) if past_key_values is None else past_key_values
            logits, hidden_states, reads = read_on(
                self, cache, input_ids, real, logits_to_keep, output_hidden_states, output_attentions
            )
            output = MemGPTOutput(
                logits=logits,
                memory=cache.memory,
                hidden_states=hidden_states or None,
                read_attentions=reads or None,
                past_key_values=cache if use_cache else None,
            )
            return output if return_dict else output.to_tuple()

        if labels is not None:
            if real is not None:
                labels = labels.masked_fill(~real, -100)  # padding is not asked
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)  # (B, T): position t predicts token t + 1
        if real is not None and shift_labels is not None:
            shift_labels = shift_labels.masked_fill(~real, -100)  # padding predicts nothing
        if num_items_in_batch is None and shift_labels is not None:
            num_items_in_batch = (shift_labels != -100).sum().clamp(min=1)
        moved = None  # (B, 1): by how much each row is moved, so that its first token comes first
        if real is not None and (torch.compiler.is_compiling() or not real[:, 0].all()):
            moved = leading_padding(real)[:, None]
            input_ids, real, shift_labels = (_roll(x, -moved, dim=1) for x in (input_ids, real, shift_labels))

        config = self.config
        starts = range(0, length, config.segment_length)
        kept_from = 0 if moved is not None else length - (logits_to_keep or length)
        memories, segments = [memory], []
        for s, start in enumerate(starts):
            if is_cut(s, len(starts), bptt_segments):
                memory = memory.detach()
            end = start + config.segment_length
            inputs = (memory, *(None if x is None else x[:, start:end] for x in (input_ids, real, shift_labels)))
            if memory_replay:
                memory, loss = checkpoint(lambda *x: self._segment(*x)[:2], *inputs, use_reentrant=False)
                segment = Segment(memory, loss, None, (), (), None)
            else:
                segment = self._segment(*inputs)
                memory = segment.memory
            segments.append(
                segment._replace(
                    logits=segment.logits if end > kept_from else None,
                    hidden_states=segment.hidden_states if output_hidden_states else (),
                    read_attentions=segment.read_attentions if output_attentions else (),
                )
            )
            memories.append(memory)

        _, losses, logits, hidden_states, reads, writes = zip(*segments)
        logits = _join([(x,) for x in logits if x is not None], moved, dim=1)
        if logits is not None:
            logits = logits[0][:, -logits_to_keep:] if logits_to_keep else logits[0]  # (B, T, V)
        output = MemGPTOutput(
            loss=None if shift_labels is None else sum(losses) / num_items_in_batch,
            logits=logits,
            memory=memory,
            hidden_states=_join(hidden_states, moved, dim=1),
            memories=tuple(memories) if output_hidden_states else None,
            read_attentions=_join(reads, moved, dim=2),
            write_attentions=writes if output_attentions and not memory_replay else None,
        )
        return output if return_dict else output.to_tuple()

    def _segment(self, memory: Tensor, input_ids: Tensor, real: Tensor | None, shift_labels: Tensor | None) -> Segment:
        """Read one segment and write it into the memory. input_ids, real, shift_labels: (B, L)."""
        hidden_states, reads, logits = self._read_segment(input_ids, real, memory)
        loss = None
        if shift_labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten().long(), ignore_index=-100, reduction="sum")
        update = self.update_rule(memory, self.context_vectors(hidden_states[-1], logits), real)
        return Segment(update.memory, loss, logits, hidden_states, reads, update.write_attention)

    def _read_segment(self, input_ids: Tensor, real: Tensor | None, memory: Tensor, cache: SegmentCache | None = None):
        """Read a segment, or go on in the cache's: hidden states (B, L, D), read attentions (B, H, L, M), logits (B, L, V)."""
        mask = None
        if cache is not None:
            positions, mask = cache.positions(), cache.visible()  # (B, L), (B, 1, L, ·)
        elif real is None:
            positions = torch.arange(input_ids.size(1), device=input_ids.device)  # (L)
        else:
            positions = (real.cumsum(-1) - 1).clamp(min=0)  # (B, L): padding takes up no position
            mask = _visible(real)
        slots = self.ln_memory(memory)  # (B, M, D)
        h = self.transformer.drop(self.transformer.wte(input_ids) + self.transformer.wpe(positions))  # (B, L, D)
        hidden_states, reads = [], []
        for block in self.transformer.h:
            hidden_states.append(h)
            h, attention = block(h, mask, slots, cache)
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
        """The memory after a segment, (B, M, D), from the memory before it (B, M, D) and its context vectors (B, L, D).

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
        for name, tensor in (("labels", labels), ("shift_labels", shift_labels)):
            if tensor is not None and (tensor.dtype == torch.bool or tensor.is_floating_point()):
                raise TypeError(f"{name} must be a tensor of whole numbers (torch.long), not {tensor.dtype}")
        if labels is not None and shift_labels is not None:
            raise ValueError("pass labels or shift_labels, not both: the latter are already moved by one position")
        if bptt_segments is not None and bptt_segments < 1:
            raise ValueError(f"bptt_segments must be at least 1, or None for all segments, not {bptt_segments}")
        if torch.compiler.is_compiling():
            return  # the checks below look at values, which a compiled graph cannot
        if attention_mask is not None:
            strange = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
            if len(strange):
                raise ValueError(
                    f"attention_mask must be 1 at tokens and 0 at padding, but holds {strange[0]}: it is no mask to be added to scores"
                )
        _check_vocabulary("input_ids", input_ids, self.config.vocab_size)
        for name, tensor in (("labels", labels), ("shift_labels", shift_labels)):
            if tensor is not None:
                _check_vocabulary(name, tensor[tensor != -100], self.config.vocab_size)

    def _check_modes(self, memory, labels, shift_labels, memory_replay, past_key_values, use_cache) -> None:
        cached = use_cache or past_key_values is not None
        if cached and (memory_replay or labels is not None or shift_labels is not None):
            raise ValueError("use_cache and past_key_values are for generating: training reads whole texts, without them")
        if past_key_values is None:
            return
        if not isinstance(past_key_values, SegmentCache):
            raise TypeError(
                f"past_key_values must be a SegmentCache, not {type(past_key_values).__name__}: pass on the one that a "
                "call with use_cache=True returned"
            )
        if memory is not None:
            raise ValueError("pass memory or past_key_values, not both: the latter holds a memory of its own")

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


def _visible(real: Tensor) -> Tensor:
    """Where position t may look: at tokens u ≤ t, and at itself, so that padding has somewhere to look. (B, L) → (B, 1, L, L)."""
    length = real.size(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=real.device)
    return ((real[:, None, :] & causal) | itself)[:, None]


def _roll(x: Tensor | None, by: Tensor, dim: int) -> Tensor | None:
    """Move each row's entries on along `dim` by the row's own number in `by` (B, 1); those at the end come to the front."""
    if x is None:
        return None
    index = (torch.arange(x.size(dim), device=x.device) - by) % x.size(dim)  # (B, N)
    return x.take_along_dim(index.view(len(x), *(x.size(i) if i == dim else 1 for i in range(1, x.dim()))), dim)


def _join(segments, moved: Tensor | None, dim: int) -> tuple[Tensor, ...] | None:
    """Segments × layers → layers, the segments of each joined along `dim` and moved back; None where nothing was collected."""
    layers = tuple(torch.cat(layer, dim=dim) for layer in zip(*segments))
    if moved is not None:
        layers = tuple(_roll(layer, moved, dim) for layer in layers)
    return layers or None


def is_gpt2s(name: str) -> bool:
    """Whether a parameter, by its name, is one that GPT-2 has too; the others are the memory's."""
    return name.startswith(("transformer.", "lm_head.")) and "cross" not in name


AutoConfig.register(MemGPTConfig.model_type, MemGPTConfig)
AutoModelForCausalLM.register(MemGPTConfig, MemGPT)
# `register` leaves out this list, which tells the Trainer's label smoothing for which models it has to shift labels.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MemGPTConfig.model_type] = MemGPT.__name__
