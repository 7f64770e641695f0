"""The models of made-up tasks: `recall` (facts come first), for every update rule, and `hard_recall` (facts in any segment)."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .. import tasks
from ..model import MemGPT, MemGPTConfig
from ..rules import UPDATE_RULES
from ..teaching import TaughtMemGPT, start_from
from ..training import train
from . import load_pretrained
from .recipe import Recipe, Rows, Trained

# ---- easy recall ----


def train_recall(seed: int, rule: str = "keep") -> Trained:
    config = MemGPTConfig(
        vocab_size=len(tasks.VOCABULARY),
        segment_length=16,
        n_embd=64,
        n_layer=2,
        n_head=2,
        num_memory_slots=16,
        memory_init="learned",
        update_rule=rule,
    )
    torch.manual_seed(seed)
    model = MemGPT(config)
    history = train(model, tasks.AssociativeRecall.curriculum(4), steps=3000, batch_size=64, seed=seed, progress=False)
    accuracy = history.recent_accuracy(20)
    return Trained(model, None, f"{len(history):,} steps of 64 documents, accuracy in the last 20 of them {accuracy:.4f}")


def evaluate_recall(model: MemGPT, tokenizer: None) -> Rows:
    rows = {}
    for segments in (4, 64, 2048):
        result = tasks.measure_recall(model, segments)
        row = {
            "questions": result.questions,
            "answered rightly, %": 100 * result.accuracy,
            "slots changed, %": 100 * result.slots_changed,
        }
        rows[f"{segments:,} segments, {16 * segments:,} tokens"] = row
    return rows


RECALL = Recipe(
    train_recall,
    evaluate_recall,
    about="A MemGPT that recalls facts: four names with their places in the first segment, noise, four questions in the last.",
    data=f"`memgpt_lite.tasks.AssociativeRecall`, made up during training; vocabulary of {len(tasks.VOCABULARY)} words; 1 to 4 segments. "
    "Measured on 1,024 documents from a seed that training does not use (`memgpt_lite.tasks.measure_recall`).",
    limits=f"anything else. It knows {len(tasks.VOCABULARY)} words, and was never asked about more than four facts, or told a second "
    "fact about the same name.",
)


# ---- easy recall with the other rules ----


def evaluate_rule(model: MemGPT, tokenizer: None) -> Rows:
    rows = {}
    for segments in (2, 4, 8, 16, 64, 256):
        result = tasks.measure_recall(model, segments, num_documents=256)
        row = {"questions": result.questions, "answered rightly, %": 100 * result.accuracy}
        rows[f"{segments:,} segments, {16 * segments:,} tokens"] = row
    return rows


def rule_recipe(rule: str) -> Recipe:
    return Recipe(
        partial(train_recall, rule=rule),
        evaluate_rule,
        about=f"Like the model `recall`, but its memory is updated by the rule `{rule}`: one of the animals of notebook 15.",
        data=f"`memgpt_lite.tasks.AssociativeRecall`, made up during training; vocabulary of {len(tasks.VOCABULARY)} words; 1 to 4 segments, "
        "a longer text once 95% of the questions of the shorter ones are answered rightly. "
        "Measured on 256 documents of each length, from a seed that training does not use (`memgpt_lite.tasks.measure_recall`).",
        limits="anything else. It is here to be compared with the other rules, trained alike (the learning rate, 2e-3, is that of `recall`).",
    )


# ---- hard recall ----


@dataclass(frozen=True)
class Told:
    """Documents of hard recall, with what each slot should take (`TaughtMemGPT`); there are as many slots as names.

    Slot n belongs to the n-th of `tasks.NAMES`: it takes the place that is told of this name, after SET, and keeps otherwise.
    """

    task: tasks.HardRecall | tasks.Mixture

    def batch(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        ids, labels = self.task.batch(batch_size, generator)
        return {"input_ids": ids, "labels": labels, "taken": taken(ids)}


@dataclass(frozen=True)
class Hardest:
    """Draws `among` times as many documents and keeps those in which a slot of the model is nearest to doing the wrong thing.

    What goes wrong once in ten thousand segments is hardly ever met by chance, and so never mended. (Hard example mining: Sung & Poggio
    1994; Shrivastava et al. 2016, arXiv:1604.03540.)
    """

    told: Told
    model: TaughtMemGPT = field(repr=False)
    among: int = 8

    def batch(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        many = self.told.batch(self.among * batch_size, generator)
        lead = self.model.lead(many["input_ids"], many["taken"]).flatten(1).amin(-1)  # (among · B)
        nearest = lead.argsort()[:batch_size]
        return {name: tensor[nearest] for name, tensor in many.items()}


def taken(ids: Tensor, length: int = tasks.HardRecall.segment_length) -> Tensor:
    """(B, S·L) → (B, S, M): 0 to keep, 1 + t to take the segment's token t. Of two facts about a name in one segment the later counts."""
    segments, slots = ids.size(1) // length, len(tasks.NAMES)
    text, at = (ids == tasks.SET).nonzero(as_tuple=True)
    name, place = ids[text, at + 1] - tasks.FIRST_NAME, at + 2
    columns = torch.zeros(len(ids) * segments * slots, dtype=torch.long)
    index = (text * segments + place // length) * slots + name
    return columns.scatter_reduce(0, index, 1 + place % length, "amax").view(len(ids), segments, slots)


def train_hard_recall(seed: int, on_grid: bool = False) -> Trained:
    """Starts from the shipped `recall`, which knows how to answer but not what SET means; its slots begin anew, one per name.

    Where facts stand at any word, training ends with the hardest documents (notebook 13 shows why).
    """
    recall = load_pretrained("recall")
    torch.manual_seed(seed)
    taught = TaughtMemGPT(recall.config)
    slots = taught.initial_memory.detach().clone()
    start_from(taught, recall)
    with torch.no_grad():
        taught.initial_memory.copy_(slots)
    *_, with_distractors, last = tasks.HardRecall.curriculum(4, on_grid=on_grid)
    history = train(taught, [Told(with_distractors), Told(last)], steps=2000, batch_size=64, seed=seed, progress=False)
    said = f"{len(history):,} steps of 64 documents, accuracy in the last 20 of them {history.recent_accuracy(20):.4f}"
    if not on_grid:
        train(
            taught, [Hardest(Told(last), taught)], steps=500, batch_size=64, learning_rate=1e-3, seed=100 + seed, progress=False
        )
        said += ", then 500 steps on the 64 hardest of 512"
    model = MemGPT(recall.config)
    model.load_state_dict(taught.state_dict())
    return Trained(model, None, said)


def evaluate_hard_recall(model: MemGPT, tokenizer: None, on_grid: bool = False) -> Rows:
    rows = {}
    for segments, documents in ((4, 1024), (64, 1024), (256, 1024), (4096, 256)):
        result = tasks.measure_answers(model, tasks.HardRecall(segments, on_grid=on_grid), num_documents=documents)
        rows[f"{segments:,} segments, {16 * segments:,} tokens"] = {
            "questions": result.questions,
            "answered rightly, %": 100 * result.accuracy,
            "segments that wrote": result.segments_written,
        }
    return rows


def hard_recipe(on_grid: bool) -> Recipe:
    where = "HardRecall(on_grid=True)" if on_grid else "HardRecall"
    words = f"It knows {len(tasks.VOCABULARY)} words and one form of a fact: SET, a name, a place."
    return Recipe(
        partial(train_hard_recall, on_grid=on_grid),
        partial(evaluate_hard_recall, on_grid=on_grid),
        about="A MemGPT that recalls facts from any segment, among distractors; some facts override earlier ones: six facts about four names."
        + on_grid
        * " In its documents facts begin only at every third word of a segment; it is here to show what it learned from that.",
        data=f"`memgpt_lite.tasks.{where}`, made up during training, 2 to 4 segments, starting from the weights of `recall`. During training it is told "
        "which place each slot should take (`memgpt_lite.teaching`), afterwards it is told nothing. Measured on documents from a seed that training "
        "does not use (`memgpt_lite.tasks.measure_answers`); the last column is the mean number of segments per document that changed a slot.",
        limits="anything else. "
        + words
        + on_grid * " When all words are shifted by one, most of its answers are wrong (notebook 13).",
    )


RECIPES = {
    "recall": RECALL,
    **{f"recall_{rule}": rule_recipe(rule) for rule in UPDATE_RULES if rule != "keep"},
    "hard_recall": hard_recipe(on_grid=False),
    "hard_recall_grid": hard_recipe(on_grid=True),
}
