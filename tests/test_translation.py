import datetime
import random

import pytest
import torch

import memgpt_lite as ml
from memgpt_lite.applications import translation
from memgpt_lite.applications.translation import OTHER, Nearest, Pairs, Translator, read_date, score, translate_date, written_date


@pytest.fixture(scope="module")
def dates():
    return Translator.from_pretrained("translation_dates")


@pytest.fixture(scope="module")
def sentences():
    return Translator.from_pretrained("translation_sentences")


# ---- data ----


def test_no_date_is_in_two_parts_and_all_are_in_one():
    parts = translation.split_dates()
    sets = {name: set(part) for name, part in parts.items()}
    assert {name: len(part) for name, part in sets.items() if name != "train"} == {"test": 2000, "validation": 1000}
    assert sum(map(len, sets.values())) == len(set().union(*sets.values())) == 73_049  # days of 200 years, 49 of them leap years
    assert min(set().union(*sets.values())) == datetime.date(1900, 1, 1)


def test_a_date_is_written_as_babel_writes_it():
    date = datetime.date(2024, 2, 29)
    assert written_date(date) == {"en": "Thursday, February 29, 2024", "zh": "2024年2月29日星期四"}
    assert written_date(date, "long") == {"en": "February 29, 2024", "zh": "2024年2月29日"}


def test_no_sentence_is_in_two_parts_in_either_language():
    parts = translation.split_sentences()
    assert len(parts["test"]) == 300 and len(parts["validation"]) > 280 and len(parts["train"]) > 2000
    for one, other in (("test", "validation"), ("test", "train"), ("validation", "train")):
        for language in ("en", "zh"):
            texts = [
                {"".join(filter(str.isalnum, pair[language])).lower() for pair in parts[name]} - {""} for name in (one, other)
            ]
            assert not texts[0] & texts[1]


def test_a_batch_asks_for_the_target_in_a_segment_of_its_own(dates):
    pairs = translation.date_pairs([datetime.date(2024, 2, 29)])
    batch = Pairs(pairs[:1], dates.tokenizer, 32).documents(pairs[:1] * 2, [True, False])
    assert batch["input_ids"].shape == (2, 64)
    for row, (source, target, start) in enumerate((("en", "zh", "<zh>"), ("zh", "en", "<en>"))):
        source, target = (dates.tokenizer.encode(pairs[0][language]) for language in (source, target))
        ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
        assert ids[: len(source)] == source and set(ids[len(source) : 32]) == {dates.tokenizer.pad_token_id}
        assert ids[32 : 34 + len(target)] == [dates.tokenizer.convert_tokens_to_ids(start), *target, dates.tokenizer.eos_token_id]
        assert [label for label in labels if label != -100] == [*target, dates.tokenizer.eos_token_id]
        assert labels.index(target[0]) == 33
    assert not batch["attention_mask"][batch["input_ids"] == dates.tokenizer.pad_token_id].any()


def test_batches_go_both_ways_and_are_the_same_for_the_same_seed(dates):
    task = Pairs(translation.date_pairs(translation.split_dates()["train"][:50]), dates.tokenizer, 32)
    one, two = (task.batch(16, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    starts = {dates.tokenizer.decode(ids) for ids in one["input_ids"][:, 32]}
    assert starts == {"<zh>", "<en>"}


# ---- the models ----


@pytest.mark.parametrize("to", ["zh", "en"])
def test_dates_that_were_never_seen_are_translated(dates, to):
    pairs = translation.date_pairs(translation.split_dates()["test"][:150])
    sources, wanted = [pair[OTHER[to]] for pair in pairs], [pair[to] for pair in pairs]
    assert score(dates.translate(sources, to), wanted, to)["exact, %"] >= 99
    assert len(set(dates.translate(sources[:20], to, cleared=True))) == 1  # nothing gets past the memory


def test_the_results_say_what_the_shipped_models_reach(dates, sentences):
    for translator, name, pairs in (
        (dates, "translation_dates", translation.date_pairs(translation.split_dates()["test"][:100])),
        (sentences, "translation_sentences", translation.split_sentences()["test"]),
    ):
        results = ml.checkpoints.load_results(name)
        assert results.seeds == ["0", "1", "2"]
        for to, arrow in (("zh", "en → zh"), ("en", "zh → en")):
            measured = score(translator.translate([pair[OTHER[to]] for pair in pairs], to), [pair[to] for pair in pairs], to)
            assert measured["chrF"] == pytest.approx(results["memory"][f"chrF, {arrow}"][0], abs=1.0)
            assert results["memory"][f"chrF, {arrow}"][0] > results["cleared"][f"chrF, {arrow}"][0] + 10


def test_a_batch_is_translated_as_each_text_alone(dates):
    texts = ["Friday, March 3, 2023", "March 3, 2023", "2023年3月3日"]
    for to, chosen in (("zh", texts[:2]), ("en", texts[2:])):
        assert dates.translate(chosen, to) == [dates.translate([text], to)[0] for text in chosen]


def test_a_target_reads_its_source_through_the_slots(dates):
    """Where one of the last two digits of the year is to be written, most of what is read comes from that digit of the source."""
    source, target = "Friday, March 3, 2023", "<zh>2023年3月3日星期五"
    first, second = (dates.tokenizer.encode(text) for text in (source, target))
    batch = ml.make_segments([[first, second]], 32, pad_token_id=dates.tokenizer.pad_token_id)
    out = dates.model(batch["input_ids"], attention_mask=batch["attention_mask"])
    shares = ml.provenance(out.write_attentions[:1])[0]
    found = translation.alignment(out.read_attentions[-1][0][:, 32 : 32 + len(second)], shares)
    torch.testing.assert_close(found.sum(-1), torch.ones(len(second)))
    assert found.shape == (len(second), 33)
    for t, n in ((2, 19), (3, 20)):  # the positions before the last two digits of the year, and where these stand in the source
        assert target.removeprefix("<zh>")[t] == source[n] and found[t].argmax() == 1 + n and found[t, 1 + n] > 0.5


# ---- helpful answers ----


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a date as the model knows it"),
        ("tomorrow", "not a date as the model knows it"),
        ("Marz 3, 2023", "'Marz' is no month: write it in full"),
        ("February 29, 2023", "'February 29, 2023' does not exist: no month 2 of 2023 has a day 29"),
        ("2023年13月1日", "does not exist: no month 13"),
        ("Monday, March 3, 2023", "does not exist: that day is a Friday, not a Monday"),
        ("2023年3月3日星期一", "that day is a 星期五"),
        ("Friday, March 3, 1815", "trained on dates from 1900 to 2099, not on 1815"),
    ],
)
def test_what_is_no_date_is_answered_helpfully(dates, text, says):
    with pytest.raises(ValueError, match=says):
        translate_date(dates, text)


def test_a_typed_date_is_translated_into_the_other_language(dates):
    assert read_date("March 3, 2023") == (datetime.date(2023, 3, 3), "en")
    assert translate_date(dates, " Friday, March 3, 2023\n") == "2023年3月3日星期五"
    assert translate_date(dates, "2023年3月3日星期五") == "Friday, March 3, 2023"


@pytest.mark.parametrize(
    ("texts", "to", "says"),
    [
        ([""], "zh", "the text is empty"),
        (["März 3, 2023"], "zh", "not trained on: z ä"),
        (["March 3, 2023"], "de", 'must be "en" or "zh", not \'de\''),
    ],
)
def test_what_cannot_be_translated_is_said(dates, texts, to, says):
    with pytest.raises(ValueError, match=says):
        dates.translate(texts, to)


# ---- measuring ----


def test_retrieval_gives_the_translation_of_the_most_similar_text():
    pairs = [{"en": "Save the file", "zh": "保存文件"}, {"en": "Close all tabs", "zh": "关闭所有标签"}]
    nearest = Nearest(pairs)
    assert nearest.translate(["Close the tabs", "Save file"], "zh") == ["关闭所有标签", "保存文件"]
    assert nearest.translate(["保存"], "en") == ["Save the file"]


def test_scores_are_those_of_the_field():
    assert score(["a b c d e", "x"], ["a b c d e", "y z w"], "en")["exact, %"] == 50
    perfect = score(["the cat is on the mat"], ["the cat is on the mat"], "en")
    assert perfect["BLEU"] == pytest.approx(100) and perfect["chrF"] == pytest.approx(100)
    from sacrebleu.metrics import CHRF

    from memgpt_lite.exercises.lesson_09 import character_f

    generator = random.Random(0)
    for _ in range(5):
        one, two = ("".join(generator.choices("ab c", k=15)) + "a" for _ in range(2))
        assert 100 * character_f(one, two, 1) == pytest.approx(CHRF(char_order=1).sentence_score(one, [two]).score)


def test_training_is_the_same_for_the_same_seed():
    histories = []
    for seed in (0, 0, 1):
        model, task = translation.untrained_dates(seed)
        histories.append(ml.train(model, [task], steps=2, batch_size=4, seed=seed, progress=False).loss)
    assert histories[0] == histories[1] != histories[2]
