"""What can be chosen: GPT-2's settings, and those of its memory."""

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config

from .memory import INITIALISATIONS
from .rules import UPDATE_RULES


@strict
class MemGPTConfig(GPT2Config):
    """GPT-2's configuration, and that of the memory.

    segment_length: tokens read at once (L); None means 64, or GPT-2's `n_positions` where that is less. Positions start again in
        every segment.
    num_memory_slots: M.
    update_rule: "keep" (sparsemax), or another of `rules.UPDATE_RULES`; the module `rules` compares them.
    memory_init: "normal", "zeros", "orthogonal" or "learned".
    read_layers: the blocks that read the memory, counted from 0; None means all of them.
    context_from_output: False leaves the output distribution out of the context vectors, so that c_t = h_t.
    keep_bias: where the bias of the keep score starts; the higher it is, the less the slots of an untrained model take.
    zero_init_read: start the read's output at zero, so that a pretrained GPT-2 gives the logits it gave before, up to rounding.
    freeze_gpt2: train nothing but the memory: the reads, the context vectors, the update rule and learned initial slots.

    A configuration of plain GPT-2, as in the folder of a pretrained model, is taken over with its own settings and
    `zero_init_read=True`.

    Some of GPT-2's own settings have another default, one that suits small models trained from scratch: no dropout,
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

    segment_length: int | None = None
    num_memory_slots: int = 16
    update_rule: str = "keep"
    memory_init: str = "normal"
    read_layers: list[int] | None = None
    context_from_output: bool = True
    keep_bias: float | int = 0.0
    zero_init_read: bool = False
    freeze_gpt2: bool = False

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        settings, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if settings.get("model_type") == GPT2Config.model_type:
            settings = settings | {"model_type": cls.model_type, "zero_init_read": True}
        return settings, kwargs

    def __post_init__(self, **kwargs):
        if self.segment_length is None:
            self.segment_length = min(64, self.n_positions or 64)
        if self.n_positions is None:
            self.n_positions = self.segment_length
        if self.read_layers is None:
            self.read_layers = list(range(self.n_layer))
        self.add_cross_attention = True  # a plain GPT-2's saved configuration says False
        self.check()
        if self.initializer_range is None:
            self.initializer_range = 0.8 / self.n_embd**0.5
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """Raise `ValueError`, which says what to do, where a setting cannot be used or two do not fit each other."""
        for name in ("vocab_size", "n_embd", "n_layer", "n_head", "segment_length", "num_memory_slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head}): heads share the width evenly")
        if self.segment_length > self.n_positions:
            raise ValueError(
                f"segment_length ({self.segment_length}) is more than n_positions ({self.n_positions}): "
                "shorten the segments, or leave n_positions out"
            )
        if self.update_rule not in UPDATE_RULES:
            raise ValueError(f"unknown update_rule {self.update_rule!r}: choose one of {', '.join(UPDATE_RULES)}")
        if self.memory_init not in INITIALISATIONS:
            raise ValueError(f"unknown memory_init {self.memory_init!r}: choose one of {', '.join(INITIALISATIONS)}")
        if not self.read_layers or not set(self.read_layers) <= set(range(self.n_layer)):
            raise ValueError(f"read_layers must name at least one of the blocks 0 to {self.n_layer - 1}, not {self.read_layers}")
