import pytest
import torch

import memgpt_lite as ml
from memgpt_lite import tasks
from memgpt_lite.checkpoints.recalling import Hardest, Told, taken
from memgpt_lite.teaching import TaughtMemGPT, start_from


def model_and_batch():
    torch.manual_seed(0)
    config = ml.MemGPTConfig(
        vocab_size=len(tasks.VOCABULARY), segment_length=16, n_embd=16, n_layer=1, n_head=2, num_memory_slots=16,
        memory_init="learned",
    )  # fmt: skip
    model = TaughtMemGPT(config)
    return model, Told(tasks.HardRecall(3)).batch(4, torch.Generator().manual_seed(0))


def test_what_a_slot_should_take_is_the_place_last_told_of_its_name():
    ids, _ = tasks.HardRecall(5, num_facts=12, num_names=3).batch(200, torch.Generator().manual_seed(0))
    columns, twice = taken(ids), 0
    for text, told in zip(ids.view(200, 5, 16).tolist(), columns.tolist()):
        for segment, slots in zip(text, told):
            expected = [0] * len(tasks.NAMES)
            for t in range(14):
                if segment[t] == tasks.SET:
                    name = segment[t + 1] - tasks.FIRST_NAME
                    twice += expected[name] > 0
                    expected[name] = 1 + t + 2
            assert slots == expected
    assert twice > 100  # segments that tell of a name twice, where the later counts


def test_without_a_fact_every_slot_keeps():
    assert not taken(tasks.noise(2, 32, torch.Generator().manual_seed(0))).any()


def test_the_teaching_is_the_cross_entropy_of_the_scores():
    model, batch = model_and_batch()
    out = model(**batch)
    plain = ml.MemGPT(model.config)
    plain.load_state_dict(model.state_dict())
    answers = plain(batch["input_ids"], labels=batch["labels"], output_hidden_states=True)
    nats = []
    for s, memory in enumerate(answers.memories[:-1]):
        piece = slice(16 * s, 16 * s + 16)
        context = plain.context_vectors(answers.hidden_states[-1][:, piece], answers.logits[:, piece])
        log_share = plain.update_rule.scores(memory, context).log_softmax(-1)  # (B, M, 1 + L)
        nats.append(-log_share.gather(-1, batch["taken"][:, s, :, None]).mean())
    torch.testing.assert_close(out.loss, answers.loss + 5.0 * sum(nats) / len(nats))
    torch.testing.assert_close(model(batch["input_ids"], labels=batch["labels"]).loss, answers.loss)


def test_a_hook_that_listens_is_gone_afterwards():
    model, batch = model_and_batch()
    model(**batch)
    with pytest.raises(ValueError, match="vocabulary"):
        model(**batch | {"input_ids": batch["input_ids"] + 66})
    assert not model.update_rule._forward_hooks


def test_what_two_models_have_in_common_is_taken_over():
    small, large = (
        ml.MemGPT(
            ml.MemGPTConfig(
                vocab_size=v, segment_length=4, n_embd=8, n_layer=1, n_head=2, num_memory_slots=m, memory_init="learned"
            )
        )
        for v, m in ((11, 3), (13, 5))
    )
    before = large.transformer.wte.weight[11:].clone()
    start_from(large, small)
    torch.testing.assert_close(large.transformer.wte.weight[:11], small.transformer.wte.weight)
    torch.testing.assert_close(large.transformer.wte.weight[11:], before)
    torch.testing.assert_close(large.initial_memory[:3], small.initial_memory)
    torch.testing.assert_close(large.update_rule.key.weight, small.update_rule.key.weight)
    start_from(small, large)
    torch.testing.assert_close(small.initial_memory, large.initial_memory[:3])


def test_a_model_of_another_width_takes_nothing_over():
    narrow, wide = (
        ml.MemGPT(ml.MemGPTConfig(vocab_size=11, segment_length=4, n_embd=d, n_layer=1, n_head=2, num_memory_slots=3))
        for d in (8, 16)
    )
    before = [parameter.clone() for parameter in wide.parameters()]
    with pytest.raises(ValueError, match="the other model is 8 wide, this one 16: take one of the same width, n_embd"):
        start_from(wide, narrow)
    assert all(torch.equal(*pair) for pair in zip(wide.parameters(), before))


def test_answers_over_many_segments_are_those_of_whole_documents():
    model = ml.load_pretrained("recall")
    task = tasks.AssociativeRecall(20)
    found = tasks.measure_answers(model, task, num_documents=24, batch_size=10, seed=5)
    generator, right, written = torch.Generator().manual_seed(5), [], 0
    for count in (10, 10, 4):
        ids, labels = task.batch(count, generator)
        out = model(ids, output_hidden_states=True)
        asked = labels[:, 1:] != -100
        right += (out.logits[:, :-1].argmax(-1) == labels[:, 1:])[asked].tolist()
        changed = [(after != before).flatten(1).any(1) for before, after in zip(out.memories[:-2], out.memories[1:-1])]
        written += torch.stack(changed).sum().item()
    assert found.accuracy == pytest.approx(sum(right) / len(right)) and found.questions == len(right)
    assert found.segments_written == written / 24


def test_the_lead_is_that_of_the_right_column_over_the_best_other():
    model, batch = model_and_batch()
    with torch.no_grad():
        out = model(batch["input_ids"], output_hidden_states=True)
    lead = model.lead(batch["input_ids"], batch["taken"])
    assert lead.shape == batch["taken"].shape
    for s, memory in enumerate(out.memories[:-1]):
        piece = slice(16 * s, 16 * s + 16)
        context = model.context_vectors(out.hidden_states[-1][:, piece], out.logits[:, piece])
        scores = model.update_rule.scores(memory, context)
        for b in range(len(scores)):
            for j in range(16):
                row, right = scores[b, j].tolist(), int(batch["taken"][b, s, j])
                best = max(score for column, score in enumerate(row) if column != right)
                assert lead[b, s, j].item() == pytest.approx(row[right] - best, abs=1e-4)


def test_the_hardest_documents_are_those_nearest_to_a_wrong_write():
    model, _ = model_and_batch()
    told = Told(tasks.HardRecall(3))
    many = told.batch(24, torch.Generator().manual_seed(3))
    leads = model.lead(many["input_ids"], many["taken"]).flatten(1).amin(-1)
    chosen = Hardest(told, model, among=4).batch(6, torch.Generator().manual_seed(3))
    rows = leads.sort().indices[:6]
    assert all(torch.equal(chosen[name], many[name][rows]) for name in many)
    assert not model.update_rule._forward_hooks
