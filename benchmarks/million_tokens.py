"""Do the trained models still answer after a million tokens, and after fifty million?

    python benchmarks/million_tokens.py

Easy and hard recall with the models that come with the package, at one length after the other; a model was trained on texts of at most four
segments. Each case is a set of documents of its own, drawn from its seed. What is recorded took 61 minutes of processor time on
one core; what was measured before is not measured again (memgpt_lite/measurements).
"""

import time

import torch
from tqdm import tqdm

import memgpt_lite as ml
from memgpt_lite import measurements, tasks

# Task, segments of a document, documents, seeds
CASES = [
    ("easy", 4, 256, range(1)),
    ("easy", 64, 256, range(1)),
    ("easy", 1024, 256, range(1)),
    ("easy", 16_384, 64, range(1)),
    ("easy", 65_536, 256, range(1)),
    ("hard", 4, 256, range(1)),
    ("hard", 64, 256, range(1)),
    ("hard", 1024, 256, range(1)),
    ("hard", 16_384, 64, range(1)),
    ("hard", 65_536, 32, range(8)),
    ("hard", 3_125_000, 1, range(1)),
]


def measure(task: str, segments: int, documents: int, seed: int) -> dict[str, float]:
    """Share of the questions answered rightly, their number, and what changed in the memory."""
    if task == "easy":
        model = ml.load_pretrained("recall")
        found = tasks.measure_recall(model, segments, num_documents=documents, seed=1_000_000 + seed)
        return {"accuracy": found.accuracy, "questions": found.questions, "slots changed": found.slots_changed}
    model = ml.load_pretrained("hard_recall")
    batch = max(1, min(documents, 1_000_000 // segments))
    task = tasks.HardRecall(segments)
    found = tasks.measure_answers(model, task, num_documents=documents, batch_size=batch, seed=1_000_000 + seed)
    return {"accuracy": found.accuracy, "questions": found.questions, "segments that wrote": found.segments_written}


def main() -> None:
    torch.set_num_threads(1)
    names = ("task", "segments", "documents", "seed")
    cases = [dict(zip(names, (*case, seed))) for *case, seeds in CASES for seed in seeds]
    for case in tqdm(measurements.missing("million_tokens", cases)):
        began = time.process_time()
        found = measure(**case)
        seconds = time.process_time() - began
        tokens = case["segments"] * case["documents"] * tasks.AssociativeRecall.segment_length
        measurements.add("million_tokens", case | found | {"seconds": round(seconds), "tokens": tokens})


if __name__ == "__main__":
    main()
