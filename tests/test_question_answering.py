"""Facts hidden in a novel: what is asked and answered, the documents, and the shipped model."""

import random
import re

import pytest
import torch

import memgpt_lite as ml
from memgpt_lite.applications import question_answering as qa
from memgpt_lite.exercises.lesson_12 import holds_at_the_end, match_by_depth

PAD = qa.make_tokenizer().pad_token_id


@pytest.fixture(scope="module")
def shipped():
    return ml.load_pretrained("question_answering"), ml.checkpoints.load_tokenizer("question_answering")


@pytest.fixture(scope="module")
def read_documents(shipped):
    documents = qa.make_documents(2_000, 24)
    return documents, qa.read(shipped[0], torch.tensor([document.input_ids for document in documents]))


# ---- data ----


def test_the_parts_are_chapters_that_share_no_sentence_of_some_length():
    parts = [{" ".join(sentence) for sentence in part if len(sentence) > qa.SHORT} for part in qa.split()]
    assert all(len(part) > 300 for part in parts)
    for i, part in enumerate(parts):
        assert not any(part & other for other in parts[i + 1 :])


def test_the_parts_together_are_the_novel():
    words = [word for part in qa.split() for sentence in part for word in sentence]
    text = ml.data.load_text("pride_and_prejudice.txt")
    written = qa.WORD.findall(text[text.index("It is a truth") :])
    assert abs(len(words) - len(written)) < 0.03 * len(
        written
    )  # headings of chapters, and quotation marks at the end of sentences
    assert "".join(words[:10]) == "".join(written[:10])


def test_no_word_that_is_asked_or_answered_stands_in_the_novel():
    said = {word for part in qa.split() for sentence in part for word in sentence}
    assert not said & {word for words in (*qa.KEYS.values(), *qa.VALUES.values()) for word in words}


def test_the_tokenizer_knows_recall_s_words_by_the_same_numbers_and_learns_from_the_training_chapters_only():
    tokenizer = qa.make_tokenizer()
    assert tokenizer.convert_ids_to_tokens(range(len(ml.tasks.VOCABULARY))) == list(ml.tasks.VOCABULARY)
    forms = {word for forms in (*qa.STATEMENTS.values(), qa.QUESTIONS.values()) for form in forms for word in form.split()}
    trained = {word for sentence in qa.split().train for word in sentence}
    own = set(tokenizer.get_vocab()) - {qa.PAD, qa.UNKNOWN, *ml.tasks.VOCABULARY, *qa.THINGS} - forms
    assert len(own) > 200 and own <= trained
    assert tokenizer.encode("Mia took the lamp .") == tokenizer.convert_tokens_to_ids("Mia took the lamp .".split())


def test_every_statement_is_short_and_known():
    tokenizer = qa.make_tokenizer()
    for fact in qa.draw_facts(24, 0.0, random.Random(0)):
        for form in qa.STATEMENTS[fact.kind]:
            words = form.format(**fact._asdict()).split()
            assert len(words) <= qa.SHORT
            assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(words)


def test_lay_out_keeps_short_sentences_whole():
    assert qa.lay_out([[1] * 3, [2] * 2, [3] * 6], 4, 0, short=3) == [1, 1, 1, 0, 2, 2, 3, 3, 3, 3, 3, 3]
    assert qa.lay_out([[1] * 2, [2] * 3], 4, 0, short=3) == [1, 1, 0, 0, 2, 2, 2]
    assert qa.lay_out([[1] * 4, [2] * 4], 4, 0, short=4) == [1] * 4 + [2] * 4  # a full segment: nothing to fill up


def test_overriding():
    rng = random.Random(0)
    assert len({fact[:2] for fact in qa.draw_facts(24, 0.0, rng)}) == 24
    repeated = [6 - len({fact[:2] for fact in qa.draw_facts(6, 0.25, rng)}) for _ in range(400)]
    assert sum(repeated) / 400 == pytest.approx(5 * 0.25, abs=0.2)


def test_a_document_says_what_holds_at_the_end_and_how_deep_it_stands():
    """Against the text itself, in which the forms are looked for word by word."""
    tokenizer, rng = qa.make_tokenizer(), random.Random(1)
    for _ in range(20):
        document = qa.make_document(qa.draw_facts(8, 0.5, rng), 1024, qa.encoded("test"), 1.0, rng)
        text = tokenizer.convert_ids_to_tokens(document.input_ids)
        found = {}
        for start in range(1024):
            for kind, forms in qa.STATEMENTS.items():
                for form in forms:
                    words = form.split()
                    here = text[start : start + len(words)]
                    by_name = {w: h for w, h in zip(words, here) if "{" in w}
                    fits = len(here) == len(words) and all(w == h or "{" in w for w, h in zip(words, here))
                    if fits and by_name["{key}"] in qa.KEYS[kind] and by_name["{value}"] in qa.VALUES[kind]:
                        found[kind, by_name["{key}"]] = by_name["{value}"], start
                        assert start // qa.SEGMENT == (start + len(words) - 1) // qa.SEGMENT  # whole
        assert {fact[:2]: fact.value for fact in document.facts} == {key: value for key, (value, _) in found.items()}
        places = torch.tensor([found[fact[:2]][1] / 1024 for fact in document.facts])
        torch.testing.assert_close(torch.tensor(document.depths), places, atol=qa.SHORT / 1024, rtol=0)
        for place, fact in document.told:
            assert text[place] in (fact.key, fact.value) and text[place + 1] == "."
        assert len(document.input_ids) == 1024 and text.count(qa.PAD) < 200


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_a_document_without_room_is_refused(share):
    with pytest.raises(ValueError, match="8 statements do not fit into 16 tokens"):
        qa.make_document(qa.draw_facts(8, 0.0, random.Random(0)), 16, qa.encoded("test"), share, random.Random(0))


def test_a_batch_asks_at_the_answers_only_and_is_fixed_by_its_seed():
    task = qa.HiddenFacts(4, (3, 5), filler=(0.0, 1.0))
    batch, again, other = (task.batch(8, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert batch["input_ids"].shape == batch["labels"].shape == (8, 6 * qa.SEGMENT)
    assert torch.equal(batch["input_ids"], again["input_ids"]) and not torch.equal(batch["input_ids"], other["input_ids"])
    asked = batch["labels"] != ml.tasks.IGNORED
    assert torch.equal(batch["labels"][asked], batch["input_ids"][asked])
    assert not asked[:, : 4 * qa.SEGMENT].any() and (asked.sum(1) >= 1).all()
    before = batch["input_ids"].roll(1, 1)[asked]
    assert (before == qa.make_tokenizer().convert_tokens_to_ids("?")).all()
    values = qa.make_tokenizer().convert_tokens_to_ids([*qa.VALUES["where"], *qa.VALUES["who"]])
    assert torch.isin(batch["labels"][asked], torch.tensor(values)).all()


def test_a_slot_is_taught_to_take_the_last_word_of_a_statement_about_its_key_and_else_to_keep():
    batch, tokenizer = qa.HiddenFacts(4, (3, 5), overriding=0.0).batch(8, torch.Generator().manual_seed(3)), qa.make_tokenizer()
    assert batch["taken"].shape == (8, 6, 24) and not batch["taken"][:, 4:].any()
    for b, s, j in batch["taken"].nonzero().tolist():
        segment = tokenizer.convert_ids_to_tokens(batch["input_ids"].view(8, 6, 16)[b, s])
        last = batch["taken"][b, s, j].item() - 1
        assert segment[last + 1] == "." and qa.SLOTS[j][1] in segment[max(0, last - 4) : last + 1]
    asked = (batch["labels"] != ml.tasks.IGNORED).sum(1)
    assert torch.equal((batch["taken"] > 0).sum((1, 2)).clamp(max=4), asked)


@pytest.mark.parametrize("aloud", [True, False])
def test_two_hops_ask_for_the_place_of_the_holder(aloud):
    tokenizer, seen, others = qa.make_tokenizer(), 0, 0
    forms = [(kind, re.escape(form[:-2])) for kind in qa.STATEMENTS for form in qa.STATEMENTS[kind]]
    patterns = [
        (k, re.compile(f.replace(r"\{key\}", r"(?P<key>\w+)").replace(r"\{value\}", r"(?P<value>\w+)"))) for k, f in forms
    ]
    batch = qa.TwoHops(4, (4, 8), overriding=0.3, aloud=aloud).batch(100, torch.Generator().manual_seed(0))
    for ids, labels in zip(batch["input_ids"], batch["labels"].tolist()):
        words, place, holder = tokenizer.convert_ids_to_tokens(ids), {}, {}
        for sentence in " ".join(word for word in words[:64] if word != qa.PAD).split(" ."):  # what holds at the end
            for kind, said in ((kind, pattern.fullmatch(sentence.strip())) for kind, pattern in patterns):
                if said and said["key"] in qa.KEYS[kind] and said["value"] in qa.VALUES[kind]:
                    (place if kind == "where" else holder)[said["key"]] = said["value"]
        answers = [t for t, label in enumerate(labels) if label >= 0]
        assert all(labels[t] == ids[t] for t in answers) and min(answers) >= 64
        for t in range(64, 96):
            if words[t - 5 : t - 2] == ["Where", "is", "the"] and words[t - 1] == "?":
                thing = words[t - 2]
                expected = [holder[thing], place[holder[thing]]][not aloud :]
                assert words[t : t + len(expected)] == expected and set(range(t, t + len(expected))) <= set(answers)
                assert t + len(expected) not in answers
                seen += 1
            elif words[t - 4 : t - 2] == ["Where", "is"] and words[t - 1] == "?":
                assert words[t] == place[words[t - 2]] and t in answers
                others += 1
    assert seen > 100 and others > 30


def test_what_slots_are_told_moves_what_they_take():
    """With nothing but the teaching, slots learn to write where they are told to, and nowhere else."""
    torch.manual_seed(0)
    config = ml.load_pretrained("recall").config
    config.vocab_size, config.num_memory_slots = len(qa.make_tokenizer()), len(qa.SLOTS)
    model = qa.TaughtMemGPT(config)
    batch = qa.HiddenFacts(2, (2, 2), overriding=0.0).batch(4, torch.Generator().manual_seed(0))
    batch["labels"][:, 1:] = ml.tasks.IGNORED
    batch["labels"][:, 1] = batch["input_ids"][:, 1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = [model.train_step(optimizer, **batch, max_grad_norm=1.0, bptt_segments=None).loss.item() for _ in range(40)]
    attention = torch.stack(model(batch["input_ids"]).write_attentions, dim=1)  # (B, S, M, 1 + L)
    assert losses[-1] < losses[0] / 10
    assert (attention.argmax(-1) == batch["taken"]).float().mean() > 0.99


# ---- the start, and the model without a memory ----


def test_a_model_starts_with_what_recall_knows():
    recall = ml.load_pretrained("recall")
    config = ml.load_pretrained("recall").config
    config.vocab_size = len(qa.make_tokenizer())
    model = ml.MemGPT(config)
    qa.start_from(model, recall)
    words = len(ml.tasks.VOCABULARY)
    torch.testing.assert_close(model.transformer.wte.weight[:words], recall.transformer.wte.weight)
    document = ml.tasks.AssociativeRecall(2).batch(32, torch.Generator().manual_seed(0))
    logits = model(document.input_ids).logits[..., :words]
    assert ml.answer_accuracy(logits, document.labels) > 0.9


def test_the_window_starts_from_the_model_learns_by_the_same_loop_and_sees_nothing_beyond_itself(shipped):
    gpt2 = qa.train_gpt2(shipped[0], steps=1, progress=False)  # a first step is small
    assert gpt2.config.n_positions == qa.WINDOW
    torch.testing.assert_close(gpt2.transformer.wte.weight, shipped[0].transformer.wte.weight, atol=1e-3, rtol=0)
    assert not torch.equal(gpt2.transformer.wte.weight, shipped[0].transformer.wte.weight)
    documents = qa.make_documents(1_000, 1)
    changed = [documents[0]._replace(input_ids=[PAD] * 800 + documents[0].input_ids[800:])]
    seen, mark = [], qa.make_tokenizer().convert_tokens_to_ids("?")

    def look(module, inputs, out):
        assert inputs[0].shape == (1, qa.WINDOW) and inputs[0][0, -1] == mark
        seen.append(out.logits[0, -1])

    gpt2.register_forward_hook(look)
    for each in (documents, changed):
        qa.ask_window(gpt2, each)
    half = len(seen) // 2
    assert half > 3
    torch.testing.assert_close(torch.stack(seen[:half]), torch.stack(seen[half:]), rtol=0, atol=0)


# ---- measuring ----


def test_exact_match_by_depth_by_hand():
    asked = qa.Asked(torch.tensor([True, False, True, True, False]), torch.tensor([0.0, 0.3, 0.5, 0.99, 1.0]))
    assert qa.by_depth(asked, 2) == [50.0, pytest.approx(200 / 3)]
    torch.testing.assert_close(match_by_depth(*asked, 2) * 100, torch.tensor(qa.by_depth(asked, 2)))


def test_what_holds_at_the_end_as_the_exercise_has_it():
    facts = qa.draw_facts(12, 0.5, random.Random(5))
    document = qa.make_document(facts, 256, qa.encoded("test"), 1.0, random.Random(6))
    found = holds_at_the_end([(fact[:2], fact.value) for fact in facts])
    assert {fact[:2]: fact.value for fact in document.facts} == {key: value for key, (value, _) in found.items()}


def test_reading_in_parts_is_reading_at_once(shipped):
    ids = torch.tensor([qa.make_documents(1_000, 1)[0].input_ids])
    torch.testing.assert_close(qa.read(shipped[0], ids, segments=7), shipped[0](ids).memory.detach(), rtol=1e-4, atol=1e-4)


# ---- the shipped model ----


def test_the_shipped_model_reaches_its_card(shipped, read_documents):
    documents, memory = read_documents
    right = qa.ask_all(shipped[0], documents, memory).right.float().mean().item()
    card = ml.checkpoints.load_results("question_answering")["memory"]["2,000"][0]
    assert 100 * right == pytest.approx(card, abs=1.5)


def test_without_its_memory_it_guesses(shipped, read_documents):
    documents, _ = read_documents
    cleared = qa.ask_all(shipped[0], documents, shipped[0].init_memory(len(documents)).detach()).right.float().mean().item()
    assert cleared < 0.2


def test_results_have_every_length_and_depth():
    results = ml.checkpoints.load_results("question_answering")
    assert len(results.seeds) == 3
    for row in ("memory", "cleared", f"GPT-2, window of {qa.WINDOW}", *(f"memory, fifth {i}" for i in range(1, 6))):
        assert list(results[row]) == list(qa.LENGTHS)


# ---- a text of the reader's own ----

TEXT = 'Mia took the lamp. Ada is in Cairo.\n\n"How do you do?" said she. Ada went to Oslo. They say that Ben is well.'


def test_answers_to_a_text_of_one_s_own(shipped):
    assert qa.answer(*shipped, TEXT, "Where is Ada?") == "Oslo"
    assert qa.answer(*shipped, TEXT, "Who has the lamp ?") == "Mia"


@pytest.mark.parametrize(
    ("text", "question", "says"),
    [
        ("", "Where is Ada ?", "the text is empty"),
        ("  \n ", "Where is Ada ?", "the text is empty"),
        (TEXT, "Where is Zoe ?", "does not know 'Zoe'.*Ada, Ben"),
        (TEXT, "Who has the teapot ?", "does not know 'teapot'.*lamp, drum"),
        (TEXT, "Why is Ada in Oslo ?", "never trained on.*Where is Ada.*Who has the lamp"),
        (TEXT, "", "never trained on"),
        (TEXT, "Where is Cleo ?", "the text does not name Cleo"),
        ("Ada is in Rome .", "Where is Ada ?", "does not know 'Rome' here.*Athens"),
        ("Zoe took the lamp.", "Who has the lamp ?", "does not know 'Zoe' here.*Ada"),
    ],
)
def test_what_it_cannot_answer_is_explained(shipped, text, question, says):
    with pytest.raises(ValueError, match=says):
        qa.answer(*shipped, text, question)


def test_sentences_of_the_novel_in_the_same_form_are_no_error():
    assert qa.encode("She is in love. He took the hint. She went to London.", qa.make_tokenizer()).shape == (1, 16)
