"""How many slots does a memory need, and how wide? Recall of 1, 2, 4 and 8 facts with different memories, and what they cost.

    python benchmarks/how_many_slots.py

A model of each shape is trained on easy recall of 1 to 8 facts over at most 4 segments, all on the same documents, and measured at each
number of facts. Those as wide as the shipped model `recall` start from it, with as many of its slots as they have; the others learn
what it learned first. A case takes one to six minutes of processor time on one core; what was measured before is not measured again
(memgpt_lite/measurements).
"""

import time

import torch
from tqdm import tqdm

import memgpt_lite as ml
from memgpt_lite import measurements, tasks
from memgpt_lite.teaching import start_from

STEPS, BATCH = 800, 64
FACTS = (1, 2, 4, 8)
# Slots, width, seed
SHAPES = [(slots, 64, seed) for seed in (0, 1) for slots in (1, 2, 4, 8, 16, 32)] + [(16, 32, 0), (16, 128, 0)]
SHAPES += [(slots, 64, 2) for slots in (1, 2, 4, 8, 16, 32)]


def speed(model, segments: int = 64, texts: int = 16) -> float:
    """Tokens that are read a second of processor time."""
    ids = tasks.noise(texts, segments * model.config.segment_length, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(ids, output_attentions=False)
        began = time.process_time()
        model(ids, output_attentions=False)
    return ids.numel() / (time.process_time() - began)


def measure(slots: int, width: int, seed: int) -> dict:
    """Accuracy by number of facts over 4 segments, training time and reading speed."""
    torch.manual_seed(seed)
    config = ml.MemGPTConfig(
        vocab_size=len(tasks.VOCABULARY), segment_length=16, n_embd=width, n_layer=2, n_head=2, num_memory_slots=slots,
        memory_init="learned",
    )  # fmt: skip
    model, began = ml.MemGPT(config), time.process_time()
    recall = ml.load_pretrained("recall")
    if width == recall.config.n_embd:
        start_from(model, recall)
    else:
        ml.train(model, tasks.AssociativeRecall.curriculum(4), steps=1500, batch_size=BATCH, seed=seed, progress=False)
    many = tasks.Mixture(tuple(tasks.AssociativeRecall(segments, facts) for segments in (2, 3, 4) for facts in FACTS))
    ml.train(model, [many], steps=STEPS, batch_size=BATCH, seed=seed, progress=False)
    seconds = time.process_time() - began
    found = {
        facts: tasks.measure_recall(model.eval(), 4, num_documents=512, task=tasks.AssociativeRecall(4, facts)) for facts in FACTS
    }
    return {
        "accuracy": {str(facts): result.accuracy for facts, result in found.items()},
        "seconds": round(seconds),
        "tokens a second": round(speed(model)),
        "parameters": model.num_parameters(),
    }


def main() -> None:
    torch.set_num_threads(1)
    cases = [{"slots": slots, "width": width, "seed": seed} for slots, width, seed in SHAPES]
    for case in tqdm(measurements.missing("how_many_slots", cases)):
        measurements.add("how_many_slots", case | measure(**case))


if __name__ == "__main__":
    main()
