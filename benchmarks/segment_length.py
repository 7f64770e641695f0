"""What is it worth to carry the memory on, by the length of a segment, by the update rule and by how long was trained?

    python benchmarks/segment_length.py

Small models of notebook 08, measured on the validation chapters of Pride and Prejudice. A case takes half a minute of processor time on
one core, the longest training five minutes; those that were measured before are not measured again (memgpt_lite/measurements).
"""

import time

import torch
from tqdm import tqdm

from memgpt_lite import measurements
from memgpt_lite.applications.text_generation import evaluate, train_model

LENGTHS = [(length, "fifo", 400, seed) for seed in (0, 1, 2) for length in (8, 16, 32, 64)]
RULES = [(16, rule, 400, 0) for rule in ("keep", "keep_softmax", "gated")]
STEPS = [(16, "fifo", steps, 0) for steps in (1200, 5000)]


def main() -> None:
    torch.set_num_threads(1)
    names = ("segment_length", "rule", "steps", "seed")
    cases = [dict(zip(names, case)) for case in LENGTHS + RULES + STEPS]
    for case in tqdm(measurements.missing("segment_length", cases)):
        began = time.process_time()
        varied = {"segment_length": case["segment_length"], "update_rule": case["rule"]}
        model, tokenizer, _ = train_model(case["seed"], steps=case["steps"], progress=False, **varied)
        rows = evaluate(model, tokenizer, part="validation")
        bits = {row: values["bits per character"] for row, values in rows.items()}
        measurements.add("segment_length", case | bits | {"seconds": round(time.process_time() - began)})


if __name__ == "__main__":
    main()
