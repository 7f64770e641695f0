"""Does learning from scratch, as in notebook 06, depend on luck? Five runs that differ in the seed only.

    python tests/five_seeds.py              # about four minutes on one core
    python tests/five_seeds.py 0 7          # other seeds

For each seed: the step at which the target was reached ("not reached" if it was not), the processor seconds that took, and
the share of 4,096 questions about new documents of 4 segments that the model then answers rightly.
"""

import sys
import time

import torch

import memgpt_lite as ml


def learn(seed: int) -> tuple[ml.MemGPT, ml.History]:
    """The training of notebook 06, from another seed."""
    torch.manual_seed(seed)
    config = ml.MemGPTConfig(
        vocab_size=66, segment_length=16, n_embd=64, n_layer=2, n_head=2, num_memory_slots=16, memory_init="learned"
    )
    model = ml.MemGPT(config)
    stages = ml.tasks.AssociativeRecall.curriculum(4)
    history = ml.train(model, stages, steps=1500, learning_rate=2e-3, batch_size=64, target=0.998, seed=seed, progress=False)
    return model, history


def main(seeds: list[int]) -> None:
    torch.set_num_threads(1)
    print("seed  step reached  seconds  accuracy at 4 segments")
    for seed in seeds:
        began = time.process_time()
        model, history = learn(seed)
        seconds = time.process_time() - began
        reached = f"{len(history):,}" if history.ended == "target" else "not reached"
        print(f"{seed:4}  {reached:>12}  {seconds:7.0f}  {ml.tasks.measure_recall(model, 4).accuracy:22.2%}", flush=True)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or list(range(5)))
