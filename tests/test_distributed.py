"""Two processes on this machine, which speak gloo, against one process that has the joined batch."""

import multiprocessing
import time

import pytest
import torch
from distributed_worker import gradients_of, half, pack, serve, trained, unpack

import memgpt_lite as ml

SECONDS = 150  # for one job, on a machine that is busy with other things too


class TwoProcesses:
    """Two processes that do jobs. Whatever goes wrong, they are killed, and the next job gets new ones."""

    def __init__(self, folder):
        self.folder = folder
        self.processes, self.ends, self.started = [], [], 0

    def start(self):
        context = multiprocessing.get_context("spawn")
        self.started += 1
        meeting = self.folder / str(self.started)
        meeting.mkdir()
        self.processes, self.ends = [], []
        for rank in range(2):
            mine, its = context.Pipe()
            self.processes.append(context.Process(target=serve, args=(rank, its, str(meeting)), daemon=True))
            self.processes[-1].start()
            its.close()
            self.ends.append(mine)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []

    def run(self, job, **arguments):
        """Both processes' results, or their errors."""
        if not self.processes:
            self.start()
        answers, until = [], time.monotonic() + SECONDS
        try:
            for end in self.ends:
                end.send_bytes(pack((job, arguments)))
            for rank, end in enumerate(self.ends):
                if not end.poll(max(0.0, until - time.monotonic())):
                    pytest.fail(f"process {rank} did not finish {job} within {SECONDS} seconds")
                answers.append(unpack(end.recv_bytes()))
        except EOFError:
            pytest.fail(f"process {rank} ended before {job} was done; its last words are in the captured output")
        finally:
            if len(answers) < 2:
                self.stop()
        return answers

    def results(self, job, **arguments):
        answers = self.run(job, **arguments)
        assert not any("error" in answer for answer in answers), answers
        return [answer["result"] for answer in answers]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    processes = TwoProcesses(tmp_path_factory.mktemp("processes"))
    yield processes
    processes.stop()


@pytest.fixture
def saved(tiny, tmp_path):
    """`saved(**settings)`: a small model, and the folder that holds it."""

    def save(**options):
        model = tiny(**{"memory_init": "learned", **options})
        model.save_pretrained(tmp_path / "model")
        return model, str(tmp_path / "model")

    return save


def texts(segments, rows=4, length=4):
    input_ids = torch.randint(0, 11, (rows, segments * length))
    return {"input_ids": input_ids, "labels": input_ids}


def unequal_texts(segments):
    """Few labels in the first half of the batch, many in the second; texts of different lengths, padded on either side."""
    batch = texts(segments)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, :5] = 0
    batch["attention_mask"][1, -9:] = 0
    batch["attention_mask"][:2, -6:] = 0
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    batch["labels"][0, 3:30] = -100
    asked = (batch["labels"][:, 1:] != -100).sum(1)
    assert asked[:2].sum() < asked[2:].sum() - 10
    return batch


def descend(model, batch, steps=1, **options):
    """Each step's gradients, in this process, with the joined batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, **options).loss.backward()
        gradients.append(gradients_of(model))
        optimizer.step()
    return gradients


def assert_same(found, expected, tolerance=1e-6, without=()):
    """Dictionaries of tensors, equal to the tolerance; the same have no gradient: those of the modules in `without`."""
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] is None} == {name for name in expected if expected[name] is None}
    for name, right in expected.items():
        assert (right is None) == name.startswith(tuple(without)), name
        if right is not None:
            torch.testing.assert_close(found[name], right, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


# ---- Accelerate ----


@pytest.mark.parametrize(
    "options",
    [{}, {"memory_replay": True}, {"bptt_segments": 5}, {"memory_replay": True, "bptt_segments": 5}],
    ids=["full", "replayed", "cut", "replayed and cut"],
)
@pytest.mark.parametrize("rule", ["keep", "gated"])
def test_two_processes_give_the_gradient_of_the_joined_batch(two_processes, saved, rule, options):
    model, folder = saved(update_rule=rule)
    batch = texts(segments=12)
    expected = descend(model, batch, steps=2, **options)
    sizes = {name: g.abs().max() for name, g in expected[0].items()}
    assert min(size for name, size in sizes.items() if name != "update_rule.key.bias") > 5e-5  # 50 times the tolerance
    for gradients in two_processes.results("accelerated", folder=folder, batch=batch, options=options, ddp={}, steps=2):
        for found, right in zip(gradients, expected):
            assert_same(found, right)


@pytest.mark.parametrize("rule", ["keep_softmax", "erase_add", "delta", "fifo"])
def test_so_it_is_with_the_other_rules_and_a_memory_passed_in(two_processes, saved, rule):
    model, folder = saved(update_rule=rule, memory_init="normal")
    batch = {**texts(segments=12), "memory": torch.randn(4, 3, 8)}
    (expected,) = descend(model, batch)
    for (found,) in two_processes.results("accelerated", folder=folder, batch=batch, options={}, ddp={}):
        assert_same(found, expected)


@pytest.mark.parametrize("replay", [False, True])
def test_unequal_numbers_of_labels_are_divided_by_all_of_them(two_processes, saved, replay):
    model, folder = saved()
    batch = unequal_texts(segments=12)
    (expected,) = descend(model, batch)
    work = {"folder": folder, "batch": batch, "options": {"memory_replay": replay}, "ddp": {}}
    for (found,) in two_processes.results("accelerated", **work, count_all=True):
        assert_same(found, expected)
    (each_its_own,), _ = two_processes.results("accelerated", **work)  # the mean of two means is another number
    assert max((each_its_own[name] - g).abs().max() for name, g in expected.items()) > 1e-2


WRITES = ("update_rule.", "output_to_context.")  # what a loss depends on through the memory alone


@pytest.mark.parametrize(("segments", "options"), [(1, {}), (12, {"bptt_segments": 1})], ids=["one segment", "cut after one"])
def test_where_no_gradient_reaches_the_update_rule_ddp_must_look_for_unused_parameters(two_processes, saved, segments, options):
    model, folder = saved()
    batch = texts(segments)
    expected = descend(model, batch, steps=3, **options)
    work = {"folder": folder, "batch": batch, "options": options, "steps": 3}
    answers = two_processes.run("accelerated", **work, ddp={})
    assert any("find_unused_parameters=True" in answer["error"] for answer in answers)
    for gradients in two_processes.results("accelerated", **work, ddp={"find_unused_parameters": True}):
        for found, right in zip(gradients, expected):
            assert_same(found, right, without=WRITES)


def test_one_process_may_have_texts_of_one_segment_and_the_other_longer_ones(two_processes, saved):
    model, folder = saved()
    batch = texts(segments=12)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][:2, 4:] = 0
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    assert [half(batch, rank)["input_ids"].shape for rank in range(2)] == [(2, 4), (2, 48)]
    (expected,) = descend(model, batch)
    work = {"folder": folder, "batch": batch, "options": {}, "count_all": True}
    for (found,) in two_processes.results("accelerated", **work, ddp={"find_unused_parameters": True}):
        assert_same(found, expected)


# ---- Transformers' Trainer ----


@pytest.mark.parametrize("segments", [12, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trainers_step_in_two_processes_is_one_with_the_joined_batch(two_processes, saved, tmp_path, segments, checkpointing):
    model, folder = saved()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = unequal_texts(segments) if segments > 1 else texts(segments)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(4)]
    settings = {
        "output_dir": str(tmp_path / "trainer"), "max_steps": 1, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "activation_checkpointing": checkpointing,
    }  # fmt: skip
    if checkpointing and segments == 1:  # the Trainer looks for unused parameters by itself, but not when it checkpoints
        settings["ddp_find_unused_parameters"] = True
    alone = trained(0, folder, rows, {**settings, "per_device_train_batch_size": 4})
    assert alone["processes"] == 1
    both = two_processes.results("trained", folder=folder, rows=rows, arguments={**settings, "per_device_train_batch_size": 2})
    for result in both:
        assert result["processes"] == 2
        assert_same(result["parameters"], alone["parameters"])
    moved = max((alone["parameters"][name] - p).abs().max() for name, p in before.items())
    assert moved > 1e-2


def test_the_trainer_accumulates_over_several_batches_in_two_processes(two_processes, saved, tmp_path):
    _, folder = saved()
    batch = unequal_texts(12)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(4)]
    settings = {
        "output_dir": str(tmp_path / "trainer"), "max_steps": 1, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    alone = trained(0, folder, rows, {**settings, "per_device_train_batch_size": 4})
    one_by_one = {**settings, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    for result in two_processes.results("trained", folder=folder, rows=rows, arguments=one_by_one):
        assert_same(result["parameters"], alone["parameters"])


# ---- FSDP ----


@pytest.mark.parametrize(
    ("options", "reentrant"),
    [({}, None), ({"memory_replay": True}, None), ({"bptt_segments": 5, "memory_replay": True}, True)],
    ids=["full", "replayed", "replayed, cut and checkpointed"],
)
def test_an_fsdp_run_equals_one_process_and_its_checkpoint_loads_in_one(two_processes, saved, tmp_path, options, reentrant):
    model, folder = saved()
    batch, checkpoint = texts(segments=12), str(tmp_path / "checkpoint")
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(model(**batch, **options).loss)
        losses[-1].backward()
        optimizer.step()
    (expected,) = descend(ml.MemGPT.from_pretrained(folder), batch, **options)

    work = {"folder": folder, "batch": batch, "options": options, "steps": 3, "save_to": checkpoint, "reentrant": reentrant}
    both = two_processes.results("sharded", **work)
    for result in both:
        torch.testing.assert_close(torch.tensor(result["losses"]), torch.stack(losses).detach(), atol=1e-4, rtol=0)
        assert_same(result["gradients"], expected)
        assert result["wrapped"] == ["FSDPMemGPTBlock"] * 2
    assert sum(result["held"] for result in both) == sum(p.numel() for p in model.parameters())  # each process holds its part
    assert losses[0] - losses[-1] > 0.05
    assert both[0]["files"] == ["config.json", "generation_config.json", "model.safetensors"]

    loaded = ml.MemGPT.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        out = loaded(**batch)
    for result in both:
        torch.testing.assert_close(out.logits, result["logits"], atol=1e-6, rtol=0)
        torch.testing.assert_close(out.memory, result["memory"], atol=1e-6, rtol=0)
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), atol=1e-4, rtol=0)
