"""How does a model learn where to write, when its answers alone do not teach it?

It is told, while it is trained, which token each slot should take and which slots should keep. Answers teach this too, but late,
and through every segment in between; and where a slot keeps with a share of exactly 1, its scores get no gradient at all. What the
model is told acts on the scores directly. Once it is trained, it is told nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from .model import MemGPT, MemGPTOutput


def start_from(model: GPT2LMHeadModel, other: MemGPT) -> None:
    """Take over what another model has learned, as far as the two have the same parameters.

    A longer vocabulary begins with the other's words, a longer window with its positions; of the slots, as many are taken over
    as both models have.

    Raises `ValueError` for a model of another width.
    """
    if model.config.n_embd != other.config.n_embd:
        raise ValueError(
            f"the other model is {other.config.n_embd} wide, this one {model.config.n_embd}: take one of the same width, n_embd"
        )
    own = model.state_dict()
    for name, learned in other.state_dict().items():
        if name in own and own[name].shape[1:] == learned.shape[1:]:
            count = min(len(own[name]), len(learned))
            own[name][:count] = learned[:count]  # in place: the model's own parameters


class TaughtMemGPT(MemGPT):
    """A MemGPT that is told, while it is trained, not only the answers but also which token each slot should take.

    `taken` (B, S, M): for each segment and slot the right column of the write attention, 0 to keep or 1 + t to take token t. The
    scores before sparsemax are trained by cross-entropy, which still pulls where sparsemax is at exactly 0 or 1 and gives no
    gradient. (Supervised attention: Mi et al. 2016; supporting facts as a second supervision: Weston et al. 2015,
    arXiv:1410.3916.)

    Its parameters are those of a `MemGPT`, which takes them by `load_state_dict` once they are trained.
    """

    teaching = 5.0  # weight of what the slots are told, beside the answers

    def forward(self, input_ids: Tensor, *args, taken: Tensor | None = None, **options) -> MemGPTOutput:
        if taken is None:
            return super().forward(input_ids, *args, **options)
        with self._listening() as scores:
            out = super().forward(input_ids, *args, **options)
        z = torch.stack(scores, dim=1)  # (B, S, M, 1 + L)
        out.loss = out.loss + self.teaching * F.cross_entropy(z.flatten(0, 2), taken.flatten())
        return out

    @torch.no_grad()
    def lead(self, input_ids: Tensor, taken: Tensor) -> Tensor:
        """How far the score of the right column is ahead of the best other one, (B, S, M); below 1 sparsemax gives others a share."""
        with self._listening() as scores:
            super().forward(input_ids, output_attentions=False)
        z, right = torch.stack(scores, dim=1), taken.unsqueeze(-1)  # (B, S, M, 1 + L), (B, S, M, 1)
        return z.gather(-1, right)[..., 0] - z.scatter(-1, right, -torch.inf).amax(-1)

    @contextmanager
    def _listening(self) -> Iterator[list[Tensor]]:
        """Collect the scores of all segments that are read inside the `with` block."""
        scores = []
        hook = self.update_rule.register_forward_hook(lambda rule, inputs, _: scores.append(rule.scores(*inputs)))
        try:
            yield scores
        finally:
            hook.remove()
