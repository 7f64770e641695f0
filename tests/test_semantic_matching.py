"""Semantic matching: what is compared with what, the metric by hand, reading batch and single, and what the trained model reaches."""

import json
import math

import numpy as np
import pytest
import torch

import memgpt_lite as ml
from memgpt_lite import applications
from memgpt_lite.applications import semantic_matching as matching
from memgpt_lite.applications.semantic_matching import Matcher, Verse, VersePairs
from memgpt_lite.checkpoints import FOLDER

VERSES = matching.split()
SHORT = "Be not wise in thine own eyes."
LONG = "And it came to pass in the morning, that David wrote a letter to Joab, and sent it by the hand of Uriah the Hittite to the king."


@pytest.fixture(scope="module")
def matcher():
    return Matcher.from_pretrained()


@pytest.fixture(scope="module")
def rows():
    return matching.evaluate(ml.load_pretrained("semantic_matching"), ml.checkpoints.load_tokenizer("semantic_matching"))


# ---- data ----


def test_no_chapter_and_no_verse_is_in_two_splits():
    chapters = {name: {verse.chapter for verse in verses} for name, verses in VERSES.items()}
    texts = {name: {text.lower() for verse in verses for text in verse[1:]} for name, verses in VERSES.items()}
    for groups in (chapters, texts):
        assert not groups["train"] & groups["validation"] and not groups["train"] & groups["test"]
        assert not groups["validation"] & groups["test"]
    assert all(len(VERSES[name]) >= 200 for name in ("validation", "test")) and len(VERSES["train"]) > 2000


def test_no_verse_is_told_twice_and_none_is_worded_alike():
    verses = [verse for part in VERSES.values() for verse in part]
    for side in (1, 2):
        assert len({frozenset(word.lower() for word in ml.words(verse[side])) for verse in verses}) == len(verses)
    assert all(verse.king_james != verse.world_english for verse in verses)


def test_overlap_counts_each_word_once_whatever_its_case():
    assert Verse("A.1.1", "The king and the queen", "the KING, a queen").overlap == 3 / 5
    assert Verse("A.1.1", "smote", "struck").overlap == 0


def test_a_line_up_has_the_partner_its_chapter_and_others():
    verses = VERSES["validation"]
    choice = matching.line_up(verses)
    assert choice.shape == (len(verses), 100) and (choice[:, 0] == np.arange(len(verses))).all()
    assert all(len(set(row)) == 100 for row in choice.tolist())
    for i, row in enumerate(choice.tolist()):
        of_chapter = sum(verse.chapter == verses[i].chapter for verse in verses) - 1
        assert sum(verses[j].chapter == verses[i].chapter for j in row[1:]) == min(25, of_chapter)
    assert (choice == matching.line_up(verses)).all() and (choice != matching.line_up(verses, seed=1)).any()


def test_content_is_what_stop_words_leave():
    assert matching.content("The king and his two sons") == "king sons"
    assert matching.content("and he was") == "and he was"


def test_a_batch_pairs_translations_and_holds_several_verses_of_a_chapter():
    of = {verse.king_james: verse for verse in VERSES["train"]}
    whole = VersePairs(same_chapter=4, word_dropout=0, without_stop_words=0)
    ours, theirs = whole.batch(18, torch.Generator().manual_seed(3))
    verses = [of[" ".join(text.split())] for text in ours]
    assert len(verses) == len(set(verses)) == 18 and theirs == [verse.world_english for verse in verses]
    chapters = [verse.chapter for verse in verses]
    assert max(map(chapters.count, chapters)) == 4
    assert (
        (ours, theirs) == whole.batch(18, torch.Generator().manual_seed(3)) != whole.batch(18, torch.Generator().manual_seed(4))
    )


def test_words_are_dropped_on_both_sides_and_stop_words_on_demand():
    def count(**settings):
        batches = [VersePairs(**settings).batch(64, torch.Generator().manual_seed(s)) for s in range(3)]
        return np.array([[sum(len(text.split()) for text in side) for side in batch] for batch in batches])

    whole = count(word_dropout=0, without_stop_words=0)
    assert count(word_dropout=0.3, without_stop_words=0) / whole == pytest.approx(0.7, abs=0.05)
    stripped, _ = VersePairs(word_dropout=0, without_stop_words=1).batch(64, torch.Generator().manual_seed(0))
    assert sum(len(ml.remove_stop_words(ml.words(text))) == len(ml.words(text)) for text in stripped) >= 62


# ---- reading ----


def test_a_batch_is_read_as_each_text_alone(matcher):
    texts = [SHORT, LONG, f"{LONG} {LONG}", SHORT + " Fear."]
    together = matcher.memories(texts)
    for text, memory in zip(texts, together):
        ids = matcher.tokenizer(text, return_tensors="pt").input_ids
        torch.testing.assert_close(memory, matcher.model(ids).memory[0], atol=1e-5, rtol=1e-4)


def test_cleared_reads_the_last_segment_only(matcher):
    ids = matcher.tokenizer(LONG, return_tensors="pt").input_ids
    last = ids[:, (ids.size(1) - 1) // 16 * 16 :]
    assert 0 < last.size(1) < ids.size(1)
    cleared = matcher.memories([SHORT, LONG], cleared=True)
    torch.testing.assert_close(cleared[1], matcher.model(last).memory[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cleared[0], matcher.memories([SHORT])[0])  # one segment: nothing to clear


def test_embeddings_have_length_1_and_an_explanation_sums_to_the_score(matcher):
    one, other = matcher.embed([LONG, SHORT])
    assert one.norm().item() == pytest.approx(1) and one.shape == (8 * 64,)
    table, tokens, others = matcher.explain(LONG, SHORT)
    assert table.shape == (len(tokens), len(others)) and "".join(tokens[1:]) == LONG and "".join(others[1:]) == SHORT
    assert table.sum().item() == pytest.approx((one @ other).item(), abs=1e-5)
    torch.testing.assert_close(matcher.explain(SHORT, LONG)[0], table.T)


def test_match_puts_the_partner_first(matcher):
    verse, *others = [v for v in VERSES["test"] if v.chapter == "1Sam.17"][:8] or VERSES["test"][:8]
    found = matcher.match(verse.king_james, [other.world_english for other in others] + [verse.world_english])
    assert found[0].text == verse.world_english and [m.score for m in found] == sorted((m.score for m in found), reverse=True)
    assert 0 < found[0].score <= 1 + 1e-6
    assert matcher.match(SHORT, [LONG, SHORT])[0] == pytest.approx((1, SHORT))


@pytest.mark.parametrize(
    ("text", "candidates", "says"),
    [
        ("", [SHORT, LONG], "the text is empty"),
        (" \n", [SHORT, LONG], "the text is empty"),
        (SHORT, [LONG, ""], "candidate 1 is empty"),
        (SHORT, [LONG], "at least two candidates"),
        (SHORT, [], "at least two candidates"),
        (SHORT, LONG, "at least two candidates"),
        ("滚滚长江东逝水", [SHORT, LONG], "the text, '滚滚长江东逝水', has no word that occurs in training"),
        (SHORT, [LONG, "xyzzy 42 !"], "candidate 1, 'xyzzy 42 !', has no word"),
    ],
)
def test_what_cannot_be_matched_is_refused(matcher, text, candidates, says):
    with pytest.raises(ValueError, match=says):
        matcher.match(text, candidates)


# ---- the loss and the metric ----


def test_info_nce_by_hand():
    scores = torch.tensor([[0.5, 0.0], [0.25, 0.75]])
    rows = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1))  # differences 0.5, divided by 0.5
    columns = math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-1.5))
    assert matching.info_nce(scores, 0.5).item() == pytest.approx((rows + columns) / 4)


def test_the_metric_by_hand_with_ties_against_the_partner():
    scores = np.array([[0.9, 0.2, 0.1], [0.5, 0.7, 0.6], [0.3, 0.3, 0.1], [0.0, 0.0, 0.0]])  # ranks 1, 3, 2, 3
    found = matching.measure(scores)
    assert found["top-1"] == 1 / 4 and found["MRR"] == pytest.approx((1 + 1 / 3 + 1 / 2 + 1 / 3) / 4)


def test_a_text_without_a_known_word_has_no_tfidf_score():
    scores = matching.tfidf_scores(["xyzzy", "the king"], ["the king", "a city"])
    assert scores[0].tolist() == [0, 0] and scores[1, 0] == pytest.approx(1) and scores[1, 1] == 0


def test_mean_of_token_embeddings_by_hand(matcher):
    table = matcher.model.transformer.wte.weight.detach()
    one, other = (table[matcher.tokenizer(text).input_ids].mean(0) for text in (LONG, SHORT))
    score = matching.token_scores(matcher, [LONG], [SHORT, LONG])
    assert score[0].tolist() == pytest.approx([torch.cosine_similarity(one, other, dim=0).item(), 1], abs=1e-5)


# ---- training, and the trained model ----


def test_training_learns_and_comes_out_the_same_again():
    runs = [matching.train_model(1, steps=12, batch_size=16, progress=False) for _ in range(2)]
    (model, tokenizer, history), (again, _, _) = runs
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    assert np.mean(history.loss[-3:]) < np.mean(history.loss[:3]) and len(history) == 12 and not model.training
    assert len(tokenizer) == model.config.vocab_size == 2048


def test_the_trained_model_is_as_good_as_its_card_says(rows):
    kept = json.loads((FOLDER / "semantic_matching" / "results.json").read_text("utf-8"))["seeds"]["0"]["rows"]
    assert set(rows) == set(kept)
    card = (FOLDER / "semantic_matching" / "README.md").read_text("utf-8")
    assert all(f"{len(verses):,} {name}" in card for name, verses in VERSES.items())
    for row, metrics in rows.items():
        assert metrics == pytest.approx(kept[row], abs=0.01), row


def test_the_memory_does_it(rows):
    assert rows["memory"]["top-1"] > 0.93 and rows["memory"]["MRR"] > 0.95
    for metric, value in rows["cleared"].items():
        assert value < rows["memory"][metric] - 0.1
    assert rows["memory"]["top-1"] > rows["mean of token embeddings, untrained"]["top-1"]


def test_without_stop_words_it_is_at_least_as_good_as_tfidf(rows):
    assert rows["memory"]["top-1, no stop words"] >= rows["TF-IDF"]["top-1, no stop words"] - 0.01


def test_it_can_be_made_again():
    assert applications.recipe("semantic_matching") is matching.RECIPES["semantic_matching"]
    assert sum(p.numel() for p in ml.load_pretrained("semantic_matching").parameters()) <= 1_000_000
