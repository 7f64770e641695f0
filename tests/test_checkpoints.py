import json
import re

import pytest
import torch

import memgpt_lite as ml
from memgpt_lite import applications, storage, tasks
from memgpt_lite.checkpoints import FOLDER, load_results, load_tokenizer, recalling
from memgpt_lite.checkpoints.recipe import Recipe, Results, Trained, run, spread
from memgpt_lite.tasks import measure_recall


@pytest.mark.parametrize(("segments", "documents", "at_least"), [(4, 16_384, 0.999), (2048, 256, 0.999)])
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


@pytest.mark.parametrize(("segments", "documents"), [(4, 1024), (600, 48)])
def test_the_hard_recall_model_finds_facts_in_any_segment_and_writes_nothing_else(segments, documents):
    found = tasks.measure_answers(ml.load_pretrained("hard_recall"), tasks.HardRecall(segments), num_documents=documents, seed=42)
    assert found.questions == 4 * documents and found.accuracy >= 0.995
    assert found.segments_written <= 6.05  # of six facts; some share a segment


def test_without_its_memory_the_hard_recall_model_guesses():
    model = ml.load_pretrained("hard_recall")
    input_ids, labels = tasks.HardRecall(4).batch(256, torch.Generator().manual_seed(77))
    assert ml.answer_accuracy(model(input_ids[:, 48:]).logits, labels[:, 48:]) < 0.2


def test_the_hard_recall_model_of_the_grid_knows_its_grid_only():
    input_ids, labels = tasks.HardRecall(4, on_grid=True).batch(256, torch.Generator().manual_seed(77))
    moved = input_ids.unflatten(1, (4, 16)).clone()
    moved[:, :-1] = moved[:, :-1].roll(1, dims=-1)
    of_grid, of_any = ml.load_pretrained("hard_recall_grid"), ml.load_pretrained("hard_recall")
    assert (
        ml.answer_accuracy(of_grid(input_ids).logits, labels)
        > 0.99
        > 0.5
        > ml.answer_accuracy(of_grid(moved.flatten(1)).logits, labels)
    )
    assert ml.answer_accuracy(of_any(moved.flatten(1)).logits, labels) > 0.99


@pytest.mark.parametrize("rule", [rule for rule in ml.rules.UPDATE_RULES if rule != "keep"])
def test_the_rules_of_the_zoo_recall_as_their_cards_say(rule):
    model = ml.load_pretrained(f"recall_{rule}")
    assert model.config.update_rule == rule
    said = load_results(f"recall_{rule}")
    for segments in (4, 16):
        measured = 100 * measure_recall(model, segments, num_documents=256).accuracy
        assert measured == pytest.approx(
            said[f"{segments} segments, {16 * segments:,} tokens"]["answered rightly, %"][0], abs=0.3
        )


def test_a_loaded_model_is_ready_to_use():
    model = ml.load_pretrained("recall")
    assert isinstance(model, ml.MemGPT) and not model.training
    assert model.config.vocab_size == len(ml.tasks.VOCABULARY) and model.lm_head.weight is model.transformer.wte.weight


NAMES = sorted(folder.parent.name for folder in FOLDER.glob("*/model.safetensors"))


def test_every_application_has_a_model_and_every_model_a_recipe():
    assert set(NAMES) <= {*recalling.RECIPES, *applications.MODULE_OF}
    assert {applications.MODULE_OF[name] for name in NAMES if name not in recalling.RECIPES} == set(
        applications.MODULE_OF.values()
    )
    assert all(isinstance(applications.recipe(name), Recipe) for name in applications.MODULE_OF)


@pytest.mark.parametrize("name", NAMES)
def test_each_model_has_a_card_that_says_what_was_measured(name):
    card, model = (FOLDER / name / "README.md").read_text("utf-8"), ml.load_pretrained(name)
    assert card.startswith(f"# {name}\n") and f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert re.search(rf"python -m memgpt_lite\.checkpoints\.train {name} --seeds \d+", card)
    assert "**Data:**" in card and "**Licence:**" in card and re.search(r"[\d,]+ s of processor time on one core", card)
    assert repr(load_results(name)) in card


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_small_and_was_trained_within_an_hour(name):
    assert (FOLDER / name / "model.safetensors").stat().st_size <= 4_000_000
    runs = json.loads((FOLDER / name / "results.json").read_text("utf-8"))["seeds"]
    assert all(run["seconds"] <= 3600 for run in runs.values())
    assert list(runs) == ["0", "1", "2"]


def test_the_card_says_what_the_model_reaches():
    results = load_results("recall")
    assert list(results) == ["4 segments, 64 tokens", "64 segments, 1,024 tokens", "2,048 segments, 32,768 tokens"]
    measured = measure_recall(ml.load_pretrained("recall"), 4)
    assert 100 * measured.accuracy == pytest.approx(results["4 segments, 64 tokens"]["answered rightly, %"][0], abs=0.06)


def test_a_recipe_is_run_seed_by_seed_and_keeps_the_first(tmp_path, tiny):
    trained = []

    def train(seed):
        trained.append(seed)
        return Trained(tiny(seed=seed).train(), None, f"{seed} steps")

    recipe = Recipe(
        train,
        lambda model, tokenizer: {"row": {"score": model.transformer.wte.weight[0, 0].item()}},
        "About.",
        "Data.",
        "Limits.",
    )
    for seed in (1, 0):
        run("name", recipe, seed, tmp_path / "name")
    results = json.loads((tmp_path / "name" / "results.json").read_text("utf-8"))
    assert trained == [1, 0] and list(results["seeds"]) == ["0", "1"] and results["command"].endswith("train name --seeds 0 1")
    values = [tiny(seed=seed).transformer.wte.weight[0, 0].item() for seed in (0, 1)]
    assert Results(results["seeds"])["row"]["score"] == values
    kept = ml.MemGPT.from_pretrained(tmp_path / "name")
    assert torch.equal(kept.transformer.wte.weight, tiny(seed=0).transformer.wte.weight)
    assert repr(Results(results["seeds"])) in (tmp_path / "name" / "README.md").read_text("utf-8")


def test_a_seed_fixes_what_recall_begins_with(monkeypatch):
    begun = []
    monkeypatch.setattr(recalling, "train", lambda model, *_, **options: begun.append(model) or ml.History())
    for seed in (0, 0, 1):
        torch.rand(1)  # whatever was drawn before
        recalling.train_recall(seed)
    first, again, other = (model.transformer.wte.weight for model in begun)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_results_that_could_not_be_written_leave_the_earlier_ones(tmp_path, tiny, monkeypatch):
    recipe = Recipe(
        lambda seed: Trained(tiny(), None, "no steps"), lambda *_: {"row": {"score": 1.0}}, "About.", "Data.", "Limits."
    )
    run("name", recipe, 1, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(storage.os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        run("name", recipe, 2, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_spread_is_the_mean_and_the_extremes():
    assert spread([1.0, 2.0, 4.5]) == "2.5 (1 to 4.5)" and spread([99.97]) == "99.97" and spread([0.0, 0.0]) == "0"


def test_only_models_that_have_one_have_a_tokenizer():
    assert load_tokenizer("translation_dates").decode(load_tokenizer("translation_dates").encode("2026年")) == "2026年"
    with pytest.raises(
        ValueError, match=r"there is no trained model 'recall' with tokenizer.json: choose one of .*translation_dates"
    ):
        load_tokenizer("recall")


@pytest.mark.parametrize("name", ["memory", "", "..", "__pycache__"])
def test_an_unknown_model_is_refused_with_the_names_there_are(name):
    with pytest.raises(
        ValueError, match=rf"there is no trained model '{re.escape(name)}' with model.safetensors: choose one of .*recall"
    ):
        ml.load_pretrained(name)
