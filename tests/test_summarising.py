import collections

import pytest
import torch

import memgpt_lite as ml
from memgpt_lite.applications import summarising
from memgpt_lite.applications.summarising import AGAIN, SEGMENT, SUMMARY, Docstrings, Nearest, Summariser, lead, plain, score
from memgpt_lite.exercises import lesson_11
from memgpt_lite.exercises.lesson_11 import rouge_l

BODY = "When the lock is held by another thread, this method waits until it is released or until the timeout has passed. " * 2


@pytest.fixture(scope="module")
def summariser():
    return Summariser.from_pretrained()


@pytest.fixture(scope="module")
def written(summariser):
    """Each row's summaries of the test docstrings, and what they should be."""
    records = summarising.split()["test"]
    return summarising.write_all(summariser, records), [record["summary"] for record in records]


# ---- data ----


def test_no_module_package_or_body_is_in_two_parts():
    parts = summarising.split()
    assert {name: len(records) for name, records in parts.items()} == {"test": 253, "validation": 159, "train": 1320}
    everything = ml.data.load_records("python_docstrings.jsonl")
    assert len(everything) == 1732 and set(everything[0]) == {"module", "name", "body", "summary"}
    for of in (
        lambda record: record["module"],
        lambda record: record["module"].removesuffix(".py").split("/")[0],
        lambda record: plain(record["body"]).lower(),
        lambda record: record["summary"],
    ):
        where = collections.defaultdict(set)
        for name, records in parts.items():
            for record in records:
                where[of(record)].add(name)
        assert all(len(names) == 1 for names in where.values())


def test_an_unknown_data_file_is_answered_with_the_names():
    with pytest.raises(ValueError, match=r"no data file 'docstrings.jsonl': choose one of .*python_docstrings\.jsonl"):
        ml.data.load_records("docstrings.jsonl")


def task(tokenizer, again: float) -> Docstrings:
    return Docstrings(summarising.split()["train"][:60], tokenizer, again, longest=2 * SEGMENT)


def test_a_summary_is_asked_for_in_a_segment_of_its_own(summariser):
    t = summariser.tokenizer
    source, target = summarising.encode(t, BODY), summarising.encode(t, "Wait\n  for the lock.")
    assert t.decode(target) == " Wait for the lock."
    batch = task(t, 0.0).documents([(source, SUMMARY, target), (source[:5], SUMMARY, list(range(300, 340)))])
    segments = -(-len(source) // SEGMENT)
    assert segments > 1 and batch["input_ids"].shape == (2, SEGMENT * (segments + 1))
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    start = SEGMENT * segments
    assert ids[: len(source)] == source and set(ids[len(source) : start]) <= {t.pad_token_id}
    whole = [t.convert_tokens_to_ids(SUMMARY), *target, t.eos_token_id]
    assert ids[start : start + len(whole)] == whole
    assert labels[: start + 1] == [-100] * (start + 1) and labels[start + 1 : start + len(whole)] == whole[1:]
    assert set(labels[start + len(whole) :]) <= {-100}
    cut = batch["labels"][1][batch["labels"][1] != -100].tolist()
    assert cut == list(range(300, 300 + SEGMENT - 1))  # the end token is not asked for where the end was cut off


def test_a_batch_is_of_summaries_and_of_stretches_written_back(summariser):
    t = summariser.tokenizer
    starts = {name: t.convert_tokens_to_ids(name) for name in (SUMMARY, AGAIN)}
    for again, wanted in ((0.0, {SUMMARY}), (1.0, {AGAIN}), (0.5, {SUMMARY, AGAIN})):
        learned, seen = task(t, again), set()
        for seed in range(6):
            batch, same = (learned.batch(5, torch.Generator().manual_seed(seed)) for _ in range(2))
            assert all(torch.equal(batch[name], same[name]) for name in batch)
            bodies = set()
            for row in batch["input_ids"].tolist():
                kind, at = next((kind, row.index(start)) for kind, start in starts.items() if start in row)
                seen.add(kind)
                assert at % SEGMENT == 0 and 0 < at <= (summarising.LONGEST if kind == SUMMARY else 2 * SEGMENT)
                target = [i for i in row[at + 1 :] if i not in (t.pad_token_id, t.eos_token_id)]
                if kind == AGAIN:
                    assert target == row[: len(target)] and len(target) > 3
                else:
                    number = next(i for i, s in enumerate(learned.summaries) if s[: SEGMENT - 1] == target)
                    assert row[: min(at, len(learned.bodies[number]))] == learned.bodies[number][:at]
                    bodies.add(at)
            assert len(bodies) <= 1  # as many segments each: no padding between a body and its summary's segment
        assert seen == wanted


def test_training_is_the_same_for_the_same_seed():
    histories = []
    for seed in (0, 0, 1):
        model, stages = summarising.untrained(seed)
        histories.append(ml.train(model, stages, steps=2, batch_size=2, seed=seed, progress=False).loss)
    assert histories[0] == histories[1] != histories[2]


# ---- the model ----


def test_the_results_say_what_the_shipped_model_reaches(written):
    rows, wanted = written
    results = ml.checkpoints.load_results("summarising")
    assert results.seeds == ["0", "1", "2"] and list(results) == list(rows)
    for row, texts in rows.items():
        for name, value in score(texts, wanted).items():
            assert value == pytest.approx(results[row][name][0], abs=0.5)


def test_nothing_gets_past_the_memory(summariser, written):
    rows, _ = written
    assert len(set(rows["cleared"])) == 1
    assert len(set(rows["memory"])) > 20
    assert rows["memory"] != rows["last segment alone"]
    assert rows["another body's memory"] == rows["memory"][-1:] + rows["memory"][:-1] != rows["memory"]
    assert rows["first words of the body"][0].split() == summarising.split()["test"][0]["body"].split()[:8]


def test_the_memory_makes_the_summaries_of_unseen_bodies_likelier(summariser):
    """In nats a token: with the memory, and with that of another body."""
    records = summarising.split()["test"][:120]
    learned = Docstrings(records, summariser.tokenizer)
    rows = [(body[: summarising.LONGEST], SUMMARY, summary) for body, summary in zip(learned.bodies, learned.summaries)]
    own = learned.documents(rows)
    others = learned.documents([(body, SUMMARY, summary) for (body, _, _), (_, _, summary) in zip(rows, rows[40:] + rows[:40])])
    with torch.no_grad():
        losses = [summariser.model(**batch, output_attentions=False).loss.item() for batch in (own, others)]
    assert losses[0] < losses[1] - 0.03


def test_the_beginning_of_an_unseen_body_is_in_the_memory(summariser):
    """After up to four segments, written back; nothing of it from a memory that has read nothing."""
    t, bodies = summariser.tokenizer, [record["body"] for record in summarising.split()["test"][:80]]
    beginnings = [t.decode(summarising.encode(t, body)[: SEGMENT - 1]) for body in bodies]
    written = summariser.write(summariser.read(bodies), start=AGAIN)
    assert score(written, beginnings)["ROUGE-L"] > 80
    cleared = summariser.write(summariser.model.init_memory(1), start=AGAIN) * len(bodies)
    assert score(cleared, beginnings)["ROUGE-L"] < 20


def test_a_body_is_summarised_as_in_a_batch(summariser):
    bodies = [record["body"] for record in summarising.split()["validation"][:6]]
    together = summariser.write(summariser.read(bodies))
    assert together == [summariser.summarise(body) for body in bodies]


def test_a_body_of_one_segment_has_no_other_than_its_last(summariser):
    short, long = "The lock must be held by this thread, or else nothing happens.", BODY * 3
    assert len(summarising.encode(summariser.tokenizer, short)) <= SEGMENT
    torch.testing.assert_close(summariser.read([short], last_segment=True), summariser.read([short]))
    assert not torch.allclose(summariser.read([long], last_segment=True), summariser.read([long]))
    ids = summarising.encode(summariser.tokenizer, long)[: summarising.LONGEST]
    alone = summariser.model(torch.tensor([ids[-SEGMENT:]])).memory
    torch.testing.assert_close(summariser.read([long, short], last_segment=True)[:1], alone, rtol=1e-4, atol=1e-5)


def test_of_a_long_text_the_beginning_is_read(summariser):
    assert summariser.sources([BODY * 20])["input_ids"].shape == (1, summarising.LONGEST)
    torch.testing.assert_close(summariser.read([BODY * 20]), summariser.read([BODY * 19]))


# ---- helpful answers ----


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        (
            "锁被另一个线程持有时，该方法会一直等待。",
            r"a script that the model was not trained on \(一 .*\): write it in English",
        ),
        ("Возвращает имя файла, если он открыт для чтения, иначе ничего нет", "not trained on"),
        ("Wait.", "the text has 1 word: write at least 10"),
        ("Return the name of the file.", "the text has 6 words: write at least 10"),
    ],
)
def test_what_cannot_be_summarised_is_said(summariser, text, says):
    with pytest.raises(ValueError, match=says):
        summariser.summarise(text)


def test_a_text_of_ones_own_gets_a_line(summariser):
    line = summariser.summarise(BODY)
    assert line and "\n" not in line and "<" not in line


# ---- measuring ----


def test_rouge_l_is_that_of_the_exercise():
    for one, two in (
        ("return the size of the socket", "return the name of the file"),
        ("a b c d", "d c b a"),
        ("the the the", "the cat"),
        ("nothing", "in common"),
    ):
        by_hand = 100 * rouge_l(one.split(), two.split())
        assert score([one], [two])["ROUGE-L"] == pytest.approx(by_hand)
    assert score(["a b c d"], ["d c b a"]) == pytest.approx({"ROUGE-L": 25.0, "ROUGE-1": 100.0})
    assert score(["Return a, b.", "x"], ["return A b", "y"]) == pytest.approx({"ROUGE-L": 50.0, "ROUGE-1": 50.0})  # the mean


def test_the_lead_is_as_long_as_summaries_are():
    records = [{"summary": "one two three"}, {"summary": "one"}, {"summary": "a b c d e f g"}]
    assert summarising.lead_length(records) == 3
    assert lead("Four  words\nare here", 3) == "Four words are"
    assert lesson_11.lead("Four  words\nare here", [record["summary"] for record in records]) == "Four words are"


def test_retrieval_gives_the_summary_of_the_most_similar_body():
    known = [
        {"body": "the socket is closed by the peer", "summary": "Close it."},
        {"body": "a file name with a suffix", "summary": "Name it."},
    ]
    assert Nearest(known).summarise(["suffix of the name", "the socket"]) == ["Name it.", "Close it."]
