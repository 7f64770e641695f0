import pytest
import torch

import memgpt_lite as ml
from memgpt_lite import tasks
from memgpt_lite.tasks import MQAR, NAMES, NOISE, PLACES, VOCABULARY, AssociativeRecall, Copy, HardRecall, Mixture


def draw(task, batch_size=200, seed=0):
    """Documents as words, and as {place of a label: word}."""
    input_ids, labels = task.batch(batch_size, torch.Generator().manual_seed(seed))
    assert input_ids.shape == labels.shape == (batch_size, task.num_segments * task.segment_length)
    documents = []
    for ids, asked in zip(input_ids.tolist(), labels.tolist()):
        words = [VOCABULARY[i] for i in ids]
        assert tasks.decode(ids) == " ".join(words) and tasks.encode(" ".join(words)) == ids
        documents.append((words, {t: VOCABULARY[token] for t, token in enumerate(asked) if token != -100}))
    return documents


# ---- easy recall ----


@pytest.mark.parametrize(
    "task",
    [
        AssociativeRecall(),
        AssociativeRecall(1, 4, 16),
        AssociativeRecall(2, 8, 16),
        AssociativeRecall(7, 1, 2),
        AssociativeRecall(3, 2, 5),
        AssociativeRecall(1, 1, 7),
        AssociativeRecall(on_grid=True),
        AssociativeRecall(1, 4, 16, on_grid=True),
        AssociativeRecall(3, 2, 5, on_grid=True),
    ],
)
def test_easy_recall_asks_for_what_was_told(task):
    length, told_in, asked_in, wheres, same_place = task.segment_length, set(), set(), set(), []
    for words, labels in draw(task):
        known, answers, told_at = {}, {}, {}
        begin = length // 2 if task.num_segments == 1 else (task.num_segments - 1) * length
        for t, word in enumerate(words):
            if word in NAMES:
                assert words[t + 1] in PLACES
                if t < begin:
                    assert word not in known and t < (length if task.num_segments > 1 else begin)
                    known[word] = words[t + 1]
                    told_in.add(t)
                    told_at[word] = t
                else:
                    answers[t + 1] = known.pop(word)  # asked once
                    asked_in.add(t - begin)
                    same_place.append(told_at[word] == t - begin)
                    wheres.add((t - begin, answers[t + 1]))
            elif word in PLACES:
                assert words[t - 1] in NAMES
            else:
                assert word in NOISE
        assert not known and len(answers) == task.num_facts and answers == labels
        assert all(words[t] == word for t, word in labels.items())
    room = length // 2 if task.num_segments == 1 else length
    full = 2 * task.num_facts == room  # no noise between them
    where = range(0, room - 1, 2 if task.on_grid or full else 1)
    assert told_in == asked_in == set(where)  # anywhere in the first and in the last
    assert len(wheres) > 15 and sum(same_place) / len(same_place) == pytest.approx(1 / len(where), abs=0.1)  # in another order


def test_all_ways_to_lay_facts_into_a_segment_are_equally_likely():
    task = AssociativeRecall(2, 2, 6)
    ids = task.batch(6000, torch.Generator().manual_seed(0)).input_ids[:, :6]
    told = (ids >= VOCABULARY.index(NAMES[0])) & (ids <= VOCABULARY.index(NAMES[-1]))
    ways, counts = told.unique(dim=0, return_counts=True)
    assert len(ways) == 6  # two pairs among two other tokens: 4 over 2
    assert counts.float() / 6000 == pytest.approx(torch.full((6,), 1 / 6).numpy(), abs=0.02)


@pytest.mark.parametrize(
    "wrong", [{"num_segments": 0}, {"num_facts": 0}, {"num_facts": 9}, {"num_segments": 1, "num_facts": 5}, {"segment_length": 1}]
)
def test_easy_recall_refuses_what_does_not_fit(wrong):
    with pytest.raises(
        ValueError, match=r"facts do not fit into \d segment\(s\) of \d+ tokens: take at least 1 segment, and 1 to"
    ):
        AssociativeRecall(**wrong)


def test_no_more_facts_than_names():
    with pytest.raises(ValueError, match=r"17 facts do not fit .* and 1 to 16 facts"):
        AssociativeRecall(num_segments=2, num_facts=17, segment_length=64)


# ---- hard recall ----

HARD = [
    HardRecall(),
    HardRecall(2, 5, 4),
    HardRecall(6, 20, 3, 16),
    HardRecall(3, 4, 4, distractors=False),
    HardRecall(4, 5, 1, 11),
    HardRecall(on_grid=True),
    HardRecall(3, 7, 3, 20, on_grid=True),
]


@pytest.mark.parametrize("task", HARD)
def test_hard_recall_asks_for_what_was_told_last(task):
    overridden, false, others, facts_in, asked_in = 0, 0, 0, set(), set()
    last = (task.num_segments - 1) * task.segment_length
    for words, labels in draw(task):
        known, answers, told = {}, {}, 0
        for t, word in enumerate(words):
            if word == "SET":
                assert t < last
                overridden += known.get(words[t + 1], words[t + 2]) != words[t + 2]
                known[words[t + 1]] = words[t + 2]
                facts_in.add(t)
                told += 1
            elif word == "ASK":
                assert t >= last
                answers[t + 2] = known.pop(words[t + 1])
                asked_in.add(t - last)
            elif word in NAMES and words[t - 1] not in ("SET", "ASK"):
                assert words[t + 1] in PLACES and words[t - 1] in NOISE and t < last
                false += 1
        assert told == task.num_facts and not known and len(answers) == task.num_names
        assert answers == labels and all(words[t] == word for t, word in labels.items())
        others += (task.num_segments - 1) * (task.segment_length // 3) - told
        assert sum(word in PLACES for word in words) == sum(word in NAMES for word in words)
    assert (overridden > 50) == (task.num_facts > task.num_names)
    assert others == 0 or false / others == pytest.approx(0.5 if task.distractors else 0.0, abs=0.05)
    grid = {3 * i for i in range(task.segment_length // 3)}
    grids = {s * task.segment_length + t for s in range(task.num_segments - 1) for t in grid}
    if task.on_grid:
        assert facts_in == grids and asked_in == grid
    else:
        assert facts_in > grids and asked_in > grid


def test_the_facts_of_hard_recall_stand_at_every_token():
    ids, labels = HardRecall(3).batch(4000, torch.Generator().manual_seed(0))
    begin = (ids == VOCABULARY.index("SET")).unflatten(1, (3, 16)).sum((0, 1))
    assert begin[:14].min() > 0.3 * begin[:14].float().mean() and not begin[14:].any()
    asked = (labels != -100).unflatten(1, (3, 16)).sum((0, 1))
    assert asked[2:].min() > 0.2 * asked[2:].float().mean() and not asked[:2].any()


@pytest.mark.parametrize(
    "wrong", [{"num_segments": 1}, {"num_names": 6}, {"num_names": 0}, {"num_facts": 3}, {"num_facts": 16}, {"num_segments": 2}]
)
def test_hard_recall_refuses_what_does_not_fit(wrong):
    with pytest.raises(
        ValueError, match=r"facts about \d names do not fit into \d segments of 16 tokens: take 1 to 5 names, and"
    ):
        HardRecall(**wrong)


# ---- copy ----


@pytest.mark.parametrize("task", [Copy(), Copy(5, 15, 16), Copy(2, 1, 2)])
def test_copy_asks_for_the_words_after_set_in_order(task):
    last, length = (task.num_segments - 1) * task.segment_length, task.num_words
    for words, labels in draw(task, 50):
        told = words[1 : 1 + length]
        assert words[0] == "SET" and words[last] == "ASK" and all(word in NAMES + PLACES for word in told)
        assert words[last + 1 : last + 1 + length] == told
        assert labels == {last + 1 + i: word for i, word in enumerate(told)}
        assert all(word in NOISE for word in words[1 + length : last] + words[last + 1 + length :])


@pytest.mark.parametrize("wrong", [{"num_segments": 1}, {"num_words": 0}, {"num_words": 16}])
def test_copy_refuses_what_does_not_fit(wrong):
    with pytest.raises(
        ValueError, match=r"words do not fit into \d segment\(s\) of 16 tokens: take at least 2 segments, and 1 to 15 words"
    ):
        Copy(**wrong)


# ---- multi-query associative recall ----


@pytest.mark.parametrize("task", [MQAR(), MQAR(1), MQAR(4, 16), MQAR(1, 1, 4), MQAR(2, 3, 15)])
def test_mqar_asks_once_for_every_pair(task):
    begin, length, whole = 2 * task.num_pairs, task.num_segments * task.segment_length, set()
    for words, labels in draw(task):
        known = dict(zip(words[:begin:2], words[1:begin:2]))
        assert len(known) == len(set(known.values())) == task.num_pairs  # no two names, and no two places, alike
        assert set(known) <= set(NAMES) and set(known.values()) <= set(PLACES)
        asked = {t: word for t, word in enumerate(words[begin:], begin) if word not in NOISE}
        assert all(t % 2 == 0 for t in asked) and sorted(asked.values()) == sorted(known)
        assert labels == {t + 1: known[word] for t, word in asked.items()}
        whole |= set(asked)
    if task.num_pairs > 1 and length < 20:
        assert whole == set(range(begin, length - 1, 2))


def test_mqar_asks_soon_rather_than_late():
    """A single pair is asked for at the k-th place with a probability that falls as k^(power − 1)."""
    for power in (0.01, 1.0):
        labels = MQAR(4, 1, power=power).batch(20_000, torch.Generator().manual_seed(0)).labels
        counts = (labels != -100).sum(0)[3::2].double()  # (31): the answer's place is that after the name's
        expected = torch.arange(1, 32).double() ** (power - 1)
        assert counts.sum() == 20_000
        torch.testing.assert_close(counts / 20_000, expected / expected.sum(), atol=0.01, rtol=0)


@pytest.mark.parametrize("wrong", [{"num_segments": 0}, {"num_pairs": 0}, {"num_pairs": 17}, {"num_segments": 1, "num_pairs": 5}])
def test_mqar_refuses_what_does_not_fit(wrong):
    with pytest.raises(
        ValueError,
        match=r"pairs and as many questions do not fit into \d segment\(s\) of 16 tokens: take at least 1 segment, and 1 to \d+ pairs",
    ):
        MQAR(**wrong)


# ---- all of them ----


@pytest.mark.parametrize("task", [AssociativeRecall(), HardRecall(), Copy(), MQAR(), *HardRecall.curriculum()])
def test_a_seed_fixes_the_documents_whatever_else_is_random(task):
    def batch(seed):
        torch.rand(3)
        return task.batch(5, torch.Generator().manual_seed(seed))

    first, again, other = batch(1), batch(1), batch(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again)) and first.input_ids.dtype == torch.int64
    assert first.input_ids.shape != other.input_ids.shape or not torch.equal(first.input_ids, other.input_ids)


def test_the_vocabulary_has_66_different_words():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 66 == 2 + len(NAMES) + len(PLACES) + len(NOISE)
    assert tasks.encode("SET Ada  Athens\nso ASK") == [0, 2, 18, 34, 1]
    assert tasks.decode(torch.tensor([1, 65])) == "ASK always" and tasks.decode([]) == ""


def test_a_word_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the tasks' vocabulary lacks Zoe, Rome; it has SET, ASK, Ada"):
        tasks.encode("SET Zoe Rome")


def test_a_mixture_draws_from_all_its_tasks():
    mixture = Mixture((AssociativeRecall(2), AssociativeRecall(3), AssociativeRecall(4)))
    generator = torch.Generator().manual_seed(0)
    lengths = [mixture.batch(1, generator).input_ids.size(1) // 16 for _ in range(300)]
    assert all(70 < lengths.count(s) < 130 for s in (2, 3, 4)) and set(lengths) == {2, 3, 4}


def test_the_easy_curriculum_grows_by_a_segment_at_a_time():
    stages = AssociativeRecall.curriculum(3, num_facts=2, segment_length=8)
    assert [stage.tasks for stage in stages] == [tuple(AssociativeRecall(s, 2, 8) for s in range(1, n + 1)) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "options", [{}, {"segment_length": 12}, {"segment_length": 31, "num_names": 3}, {"num_names": 2, "num_facts": 9}]
)
def test_the_hard_curriculum_lengthens_then_distracts_then_overrides(options):
    stages = HardRecall.curriculum(4, **options)
    names = options.get("num_names", 4)
    assert [{task.num_segments for task in stage.tasks} for stage in stages] == [{2}, {2, 3}, {2, 3, 4}, {2, 3, 4}, {2, 3, 4}]
    assert [{task.distractors for task in stage.tasks} for stage in stages] == [{False}] * 3 + [{True}] * 2
    assert all(task.num_facts == task.num_names == names for stage in stages[:4] for task in stage.tasks)
    assert stages[4].tasks[-1].num_facts == options.get("num_facts", names + 2) > names
    for stage in stages:
        for task in stage.tasks:
            assert task.segment_length == options.get("segment_length", 16)
            draw(task, 3)


def test_a_hard_curriculum_of_one_segment_is_refused():
    with pytest.raises(ValueError, match=r"max_segments must be at least 2 \(facts and questions\), not 1"):
        HardRecall.curriculum(1)


# ---- measuring ----


@pytest.mark.parametrize("segments", [2, 3, 69])
def test_measured_recall_is_that_of_whole_documents(segments):
    model, task = ml.load_pretrained("recall"), AssociativeRecall(num_facts=8)  # more facts than it was trained on
    result = tasks.measure_recall(model, segments, num_documents=40, batch_size=40, seed=5, task=task)
    generator = torch.Generator().manual_seed(5)
    input_ids, labels = AssociativeRecall(2, 8).batch(40, generator)
    parts = [tasks.noise(40, 16 * n, generator) for n in (min(64, segments - 2), segments - 66) if n > 0]
    between = torch.cat(parts, dim=1) if parts else input_ids[:, :0]
    out = model(torch.cat([input_ids[:, :16], between, input_ids[:, 16:]], dim=1), output_hidden_states=True)
    labels = torch.cat([labels[:, :16], torch.full_like(between, -100), labels[:, 16:]], dim=1)
    assert 0.2 < result.accuracy < 0.999 and result.questions == 320
    assert result.accuracy == pytest.approx(ml.answer_accuracy(out.logits, labels), abs=0.004)  # one answer, where two tie
    changed = (out.memories[-2] != out.memories[1]).any(-1).float().mean().item()
    assert result.slots_changed == pytest.approx(changed, abs=0.004)


def test_measuring_takes_every_document_once_and_leaves_the_model_as_it_was():
    config = ml.MemGPTConfig(
        vocab_size=66,
        segment_length=16,
        n_embd=8,
        n_layer=1,
        n_head=1,
        resid_pdrop=0.5,
        update_rule="gated",
        memory_init="learned",
    )
    model = ml.MemGPT(config).train()
    first, again = (tasks.measure_recall(model, 4, num_documents=10, batch_size=4) for _ in range(2))
    assert first == again and first.questions == 40 and first.slots_changed == 1  # no dropout; a gate never keeps everything
    assert model.training and all(p.grad is None for p in model.parameters())
    tasks.measure_recall(model.eval(), 4, num_documents=4)
    assert not model.training


def test_measuring_a_single_segment_is_refused():
    with pytest.raises(ValueError, match=r"num_segments must be at least 2 \(facts and questions\), not 1"):
        tasks.measure_recall(None, 1)
