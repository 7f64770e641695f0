"""How does a model write on, token by token, for ever, with a state that never grows?

Inside a segment it does what every GPT does: it keeps the keys and values of the tokens that it has read, so that a new token
costs one position and not all of them. When the segment is full, its context vectors update the memory, and the keys and values
begin again. What is carried along is therefore never more than

    memory (B, M, D) · keys and values of one segment, 2 × n_layer × (B, H, L, D/H) · its context vectors (B, L, D)

`SegmentCache` is that state, in the form that Transformers' `generate` passes on as `past_key_values`, and `read_on` reads
more tokens into it. Every text has its own place in its own segment, so that texts of different lengths, padded on the left to
form a batch, are read exactly as each would be alone.

Shapes: B texts, T new tokens, L tokens of a segment, M slots, D width, H heads, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput


class SegmentCache(Cache):
    """What is carried from token to token while generating. Its size does not depend on the length of any text.

    memory: (B, M, D), as the last full segment left it; first_memory: (B, M, D), from which reading began.
    begun: (B,), whether a text's first token has been read. filled: (B,), how many columns of its segment at hand have been read;
    real: (B, L + 1), which of these are tokens, not padding.
    context_vectors: (B, L + 1, D); keys, values: for each block (B, H, L + 1, D/H). Column L is a bin: what is not part of a text
    is put there, and never looked at.
    seen: how many columns of the batch have been read, padding among them.
    """

    def __init__(self, memory: Tensor, segment_length: int):
        super().__init__(layers=[])
        batch_size, _, width = memory.shape
        self.segment_length = segment_length
        self.seen = 0
        self.memory = self.first_memory = memory.detach()
        self.begun = torch.zeros(batch_size, dtype=torch.bool, device=memory.device)
        self.filled = torch.zeros(batch_size, dtype=torch.long, device=memory.device)
        self.real = torch.zeros(batch_size, segment_length + 1, dtype=torch.bool, device=memory.device)
        self.context_vectors = memory.new_zeros(batch_size, segment_length + 1, width)
        self.keys, self.values = {}, {}
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values of the memory, which change only with it
        self.places = self.filled[:, None]  # (B, n): where in the segment the tokens at hand go

    # ---- used by the blocks ----

    def place(self, real: Tensor, inside: Tensor) -> None:
        """Make room for the next n columns of each text; `inside` (B, n): those that belong to its segment at hand."""
        ahead = torch.arange(inside.size(1), device=inside.device)  # (n)
        self.places = torch.where(inside, self.filled[:, None] + ahead, self.segment_length)  # (B, n)
        self.real = self.real.scatter(1, self.places, real)

    def positions(self) -> Tensor:
        """The position of each token at hand in its segment, (B, n): padding takes up none."""
        return (self.real.cumsum(-1) - 1).clamp(0, self.segment_length - 1).gather(1, self.places)

    def visible(self) -> Tensor:
        """Which of the segment's tokens each token at hand may look at, (B, 1, n, L): the real ones so far, and itself."""
        u = torch.arange(self.segment_length, device=self.places.device)  # (L)
        t = self.places[:, :, None]  # (B, n, 1)
        return ((u <= t) & (self.real[:, None, :-1] | (u == t)))[:, None]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Add the keys and values (B, H, n, D/H) of the tokens at hand; returns those of the segment, (B, H, L, D/H)."""
        result = []
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            if layer_idx not in kept:
                kept[layer_idx] = new.new_zeros(*new.shape[:2], self.segment_length + 1, new.size(-1))
            index = self.places[:, None, :, None].expand_as(new)
            kept[layer_idx] = kept[layer_idx].scatter(2, index, new.to(kept[layer_idx].dtype))
            result.append(kept[layer_idx][:, :, :-1])
        return result[0], result[1]

    def close(self, context_vectors: Tensor, inside: Tensor, update_rule) -> None:
        """Take in the context vectors (B, n, D) of the tokens at hand; a text whose segment is now full updates its memory."""
        index = self.places[:, :, None].expand_as(context_vectors)
        self.context_vectors = self.context_vectors.scatter(1, index, context_vectors.to(self.context_vectors.dtype))
        self.filled = self.filled + inside.sum(1)
        full = self.filled == self.segment_length  # (B)
        if full.any():
            updated = update_rule(self.memory, self.context_vectors[:, :-1], self.real[:, :-1]).memory
            self.memory = torch.where(full[:, None, None], updated, self.memory)
            self.filled = self.filled.masked_fill(full, 0)
            self.slots.clear()

    # ---- used by Transformers ----

    @property
    def batch_size(self) -> int:
        return len(self.filled)

    def __len__(self) -> int:
        """How many blocks it holds keys and values of."""
        return len(self.keys)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many columns have been read, from the first segment on."""
        return self.seen

    @property
    def is_croppable(self) -> bool:
        return False

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a memory cannot be rolled back: what a finished segment wrote stays written")

    def reset(self) -> None:
        """Forget everything: reading begins again, from the first memory."""
        self.__init__(self.first_memory, self.segment_length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these texts, in this order; a text may be named more than once."""
        for name in ("memory", "first_memory", "begun", "filled", "real", "context_vectors", "places"):
            setattr(self, name, getattr(self, name).index_select(0, indices))
        for kept in (self.keys, self.values):
            kept.update({layer: tensor.index_select(0, indices) for layer, tensor in kept.items()})
        self.slots = {layer: tuple(tensor.index_select(0, indices) for tensor in pair) for layer, pair in self.slots.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self.batch_size, device=self.filled.device).repeat_interleave(repeats))


def leading_padding(real: Tensor) -> Tensor:
    """How many columns of padding each row begins with, (B,). real: (B, T), True for tokens."""
    return (~real).long().cumprod(1).sum(1)


@torch.no_grad()  # a graph would reach back to the first token, and grow with every one
def read_on(
    model, cache: SegmentCache, input_ids: Tensor, real: Tensor | None,
    logits_to_keep: int = 0, output_hidden_states: bool = False, output_attentions: bool = False,
):  # fmt: skip
    """Read more tokens into the cache: in each round, every text up to the end of its own segment at hand.

    input_ids: (B, T); real: (B, T), True for tokens. Padding in front of a text's first token is passed over.
    Returns logits (B, T, V), or those of the last `logits_to_keep` positions; on request hidden states, n_layer + 1 of (B, T, D), and
    read attentions, one of (B, H, T, M) for each reading block. They are 0 at the padding that was passed over.

    Raises `ValueError` when the cache holds another number of texts.
    """
    batch_size, length = input_ids.shape
    if batch_size != cache.batch_size:
        raise ValueError(
            f"past_key_values holds {cache.batch_size} texts, input_ids {batch_size}: "
            "batch_select_indices and batch_repeat_interleave select and repeat its texts"
        )
    if real is None:
        real = torch.ones_like(input_ids, dtype=torch.bool)
    done = leading_padding(real).masked_fill(cache.begun, 0)  # (B)
    cache.begun = cache.begun | real.any(1)
    cache.seen += length
    first = max(0, length - (logits_to_keep or length))
    results: list[Tensor] = []
    while not results or (done < length).any():
        count = torch.minimum(length - done, cache.segment_length - cache.filled)  # (B)
        ahead = torch.arange(max(1, int(count.max())), device=done.device)  # (n)
        inside = ahead < count[:, None]  # (B, n)
        columns = (done[:, None] + ahead).clamp(max=length - 1)  # (B, n)
        cache.place(real.gather(1, columns) & inside, inside)
        hidden_states, reads, logits = model._read_segment(input_ids.gather(1, columns), None, cache.memory, cache)
        cache.close(model.context_vectors(hidden_states[-1], logits), inside, model.update_rule)
        done = done + count

        layers = hidden_states if output_hidden_states else ()
        looks = (attention.transpose(1, 2) for attention in reads if output_attentions)
        round_of = [logits, *layers, *looks]  # (B, n, …) each
        starts = [first] + [0] * (len(round_of) - 1)
        if not results:
            results = [x.new_zeros(batch_size, length - start + 1, *x.shape[2:]) for x, start in zip(round_of, starts)]
        for result, x, start in zip(results, round_of, starts):
            place = torch.where(inside & (columns >= start), columns - start, length - start)  # the last column is a bin
            result.scatter_(1, place.view(*place.shape, *[1] * (x.dim() - 2)).expand_as(x), x)
    logits, *rest = (result[:, :-1] for result in results)
    return logits, tuple(rest[: len(layers)]), tuple(x.transpose(1, 2) for x in rest[len(layers) :])


class MemoryGenerationMixin:
    """What `MemGPT` adds to Transformers' `generate`."""

    _is_stateful = True  # assisted generation would have to roll a memory back, which cannot be done

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, memory=None, tokenizer=None, **kwargs):
        if past_key_values is not None:
            memory = None  # the cache holds its own
        kwargs.setdefault("output_attentions", False)
        return super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, memory=memory, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a SegmentCache takes its place

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if cache is not None:
            cache.batch_repeat_interleave(max(generation_config.num_beams, generation_config.num_return_sequences))
        elif generation_config.use_cache:
            memory = model_kwargs["memory"].to(self.device, self.dtype)  # already repeated
            model_kwargs["past_key_values"] = SegmentCache(memory, self.config.segment_length)

    # Transformers limits a text to the number of positions. Here that number limits a segment; nothing limits a text.

    def _prepare_generated_length(self, generation_config, has_default_max_length, **kwargs):
        if has_default_max_length and generation_config.max_new_tokens is None:
            generation_config.max_new_tokens = generation_config.max_length  # Transformers' default, 20
        kwargs["has_default_max_length"] = has_default_max_length
        return super()._prepare_generated_length(generation_config, **kwargs)

    def _get_stopping_criteria(self, *args, **kwargs):
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        for criterion in criteria:
            if hasattr(criterion, "max_position_embeddings"):
                criterion.max_position_embeddings = None
        return criteria

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config=None, *, memory: Tensor | None = None, **kwargs):
        """Transformers' `generate`, with a memory: prompt and answer may run over any number of segments.

        inputs: (B, T), the prompts, shorter ones padded on the left (with `attention_mask`); memory: (B, M, D) to start from, None
        starts from `init_memory`. All else as for GPT-2: `max_new_tokens`, `do_sample`, `num_beams`, `streamer`, …

        With `return_dict_in_generate=True` the output has `.memory` too, (B, M, D): the memory after prompt and answer, as `forward`
        gives it, without what follows an answer's end. Pass it to the next call, and the conversation goes on in a new segment.
        With `.past_key_values` it goes on within the segment: pass them with all the tokens so far, and the `attention_mask` with
        which these were read. (They have read on past the end of an answer that was shorter than others of the batch. Beam search
        returns none.)

        Raises `ValueError` or `TypeError` that says what is wrong with an argument.
        """
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if prompt is not None:
            self._check_inputs(prompt, memory, mask, None, None, None)
        self._check_modes(memory, None, None, False, cache, use_cache=True)

        def setting(name: str):
            """Look where Transformers looks: in the call, the configuration that was passed, the model's own."""
            given = getattr(generation_config, name, None)
            return kwargs[name] if name in kwargs else getattr(self.generation_config, name) if given is None else given

        ends, pad = setting("eos_token_id"), setting("pad_token_id")
        ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
        pad = None if pad in ends else pad  # a token that ends a text is part of the text
        if mask is None and prompt is not None and pad is not None:
            mask = kwargs["attention_mask"] = (prompt != pad).long()  # (B, T)
        if mask is not None and not mask.any(1).all():
            raise ValueError(f"row {int(mask.any(1).long().argmin())} of the prompt is nothing but padding: give it a token")
        if cache is not None:
            if prompt is None or prompt.size(1) <= cache.seen or setting("use_cache") is False:
                raise ValueError(
                    f"past_key_values has read {cache.seen} columns: pass it with all the tokens so far and at least one more, "
                    "and without use_cache=False; or pass memory and only the new tokens"
                )
            memory = cache.first_memory
        elif memory is None:
            memory = self.init_memory(1 if prompt is None else len(prompt))

        output = super().generate(inputs, generation_config, memory=None if cache is not None else memory, **kwargs)
        if isinstance(output, ModelOutput):
            start = 1 if prompt is None else prompt.size(1)
            output["memory"] = self._memory_after(output.sequences, start, memory, mask, ends, pad)
            if "beam_indices" in output:
                output["past_key_values"] = None  # it holds the last beams, not the sequences that are returned
        return output

    def _memory_after(
        self, sequences: Tensor, start: int, memory: Tensor, mask: Tensor | None, ends: list[int], pad: int | None
    ) -> Tensor:
        """The memory after prompts (B, start) and answers, together (B, T), filled up by Transformers behind each answer."""
        answers = sequences[:, start:]
        ended = torch.isin(answers, torch.tensor(ends, device=answers.device, dtype=answers.dtype))
        filler = answers < 0  # by beam search, when there is no end-of-text token
        if ends and pad is not None:
            filler = filler | (answers == pad)
        filler = filler.flip(1).cumprod(1).flip(1)  # (B, T − start): only at the end
        real = torch.ones_like(sequences)
        real[:, start:] = (ended.cumsum(1) - ended.long() == 0) & (filler == 0)
        copies = len(sequences) // len(memory)
        if mask is not None:
            real[:, :start] = mask.repeat_interleave(copies, dim=0)
        sequences, real = (x.to(self.device) for x in (sequences.clamp(min=0), real))
        memory = memory.to(self.device).repeat_interleave(copies, dim=0)
        return self(sequences, memory=memory, attention_mask=real, output_attentions=False, logits_to_keep=1).memory
