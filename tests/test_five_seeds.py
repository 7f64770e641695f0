"""A memory is learned from scratch whatever the seed: the training of notebook 06, five times. (Seconds: `five_seeds.py`.)"""

import pytest
from five_seeds import learn

import memgpt_lite as ml


@pytest.mark.parametrize("seed", range(5))
def test_learning_from_scratch_reaches_99_percent_on_new_documents(seed):
    model, history = learn(seed)
    assert history.ended == "target"
    assert ml.tasks.measure_recall(model, 4).accuracy >= 0.99
