import re

import pytest
import torch

import memgpt_lite as ml
from memgpt_lite.checkpoints import FOLDER
from memgpt_lite.checkpoints.train import TRAINERS
from memgpt_lite.tasks import measure_recall


@pytest.mark.parametrize(("segments", "documents", "at_least"), [(4, 16_384, 0.999), (2048, 1024, 0.999)])
def test_the_recall_model_recalls(segments, documents, at_least):
    result = measure_recall(ml.load_pretrained("recall"), segments, num_documents=documents, batch_size=min(documents, 512))
    assert result.questions == 4 * documents and result.accuracy >= at_least
    assert result.slots_changed < 0.02


def test_the_recall_model_does_it_with_its_memory():
    model = ml.load_pretrained("recall")
    input_ids, labels = ml.tasks.AssociativeRecall(4).batch(256, torch.Generator().manual_seed(77))
    assert ml.answer_accuracy(model(input_ids).logits, labels) > 0.99
    forgetful = model(input_ids[:, 48:])  # the questions alone
    assert ml.answer_accuracy(forgetful.logits, labels[:, 48:]) < 0.2


def test_a_loaded_model_is_ready_to_use():
    model = ml.load_pretrained("recall")
    assert isinstance(model, ml.MemGPT) and not model.training
    assert model.config.vocab_size == len(ml.tasks.VOCABULARY) and model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("name", sorted(folder.parent.name for folder in FOLDER.glob("*/model.safetensors")))
def test_each_model_has_a_card_and_the_command_that_makes_it(name):
    assert name in TRAINERS
    card, model = (FOLDER / name / "README.md").read_text("utf-8"), ml.load_pretrained(name)
    assert card.startswith(f"# {name}\n") and f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert re.search(rf"python -m memgpt_lite\.checkpoints\.train {name} --seed \d+", card)
    assert "**Data:**" in card and "**Licence:**" in card and re.search(r"\d+ s on one core", card)


def test_the_card_says_what_the_model_reaches():
    card = (FOLDER / "recall" / "README.md").read_text("utf-8")
    rows = {int(a.replace(",", "")): float(b) for a, b in re.findall(r"\| ([\d,]+) \| [\d,]+ \| ([\d.]+)% of 4,096", card)}
    assert set(rows) == {4, 64, 2048}
    measured = measure_recall(ml.load_pretrained("recall"), 4)
    assert 100 * measured.accuracy == pytest.approx(rows[4], abs=0.06)  # two answers, on another processor


@pytest.mark.parametrize("name", ["memory", "", "..", "__pycache__"])
def test_an_unknown_model_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=rf"there is no trained model '{re.escape(name)}': choose one of .*recall"):
        ml.load_pretrained(name)
