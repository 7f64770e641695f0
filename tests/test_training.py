import copy
import json
import math
import os
import signal
import stat
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import memgpt_lite as ml
from memgpt_lite import storage, training
from memgpt_lite.tasks import AssociativeRecall, Copy
from memgpt_lite.training import one_cycle

STAGES = [Copy(2, 1, 4), Copy(2, 2, 4)]
SMALL = {"steps": 12, "batch_size": 4, "promote_at": 0.0, "window": 3, "progress": False}


def small_model(seed=0, **options):
    torch.manual_seed(seed)
    size = {"vocab_size": 66, "segment_length": 4, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_memory_slots": 4}
    return ml.MemGPT(ml.MemGPTConfig(**{**size, **options}))


def copies(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(model, others):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), others, strict=True))


def a_batch():
    return Copy(2, 2, 4).batch(4, torch.Generator().manual_seed(0))


# ---- train_step ----


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_a_step_clips_the_gradient_and_updates_the_parameters(limit):
    model, (input_ids, labels), memory = small_model(), a_batch(), torch.randn(4, 4, 16)
    before = copies(model)
    expected = model(input_ids, memory=memory, labels=labels)
    gradients = torch.autograd.grad(expected.loss, list(model.parameters()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    assert 0.1 < norm < 1e6
    result = model.train_step(torch.optim.SGD(model.parameters(), lr=0.5), input_ids, memory, labels, max_grad_norm=limit)
    for old, gradient, new in zip(before, gradients, model.parameters()):
        torch.testing.assert_close(new.detach(), old - 0.5 * min(1.0, limit / norm) * gradient, atol=1e-6, rtol=1e-4)
    assert result.gradient_norm.item() == pytest.approx(norm, rel=1e-4)
    assert torch.equal(result.loss, expected.loss) and torch.equal(result.memory, expected.memory)
    assert torch.equal(result.logits, expected.logits)
    assert not any(tensor.requires_grad for tensor in result)


def test_a_step_forgets_the_gradient_of_the_step_before():
    first, second, (input_ids, labels), memory = small_model(), small_model(), a_batch(), torch.randn(4, 4, 16)
    for parameter in second.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for model in (first, second):
        ml.train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), input_ids, memory, labels)
    assert same(first, second.parameters())


def test_options_of_a_step_reach_the_model():
    model, (input_ids, labels), memory = small_model(), a_batch(), torch.randn(4, 4, 16)
    mask = torch.ones_like(input_ids).index_fill(1, torch.tensor([3]), 0)
    following = torch.cat([labels[:, 1:], torch.full((4, 1), -100)], dim=1)
    expected = model(input_ids, memory=memory, labels=labels, attention_mask=mask).loss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    assert torch.equal(model.train_step(optimizer, input_ids, memory, shift_labels=following, attention_mask=mask).loss, expected)


RANDOM = {"memory_init": "normal", "resid_pdrop": 0.2, "attn_pdrop": 0.1, "embd_pdrop": 0.1}
AT_FAULT = {
    "loss": r"the loss is nan.* The parameters are finite, and as they were before this step\. Try a lower learning rate or max",
    "gradient": r"its gradient's norm inf\. The parameters are finite, .*\. Try a lower learning rate or max_grad_norm, a longer",
    "parameters": r"in 1 of the parameters before this step, transformer\.ln_f\.bias the first of them: go back to an earlier copy",
    "memory": r"was in the memory that was passed in, in no parameter: start from model\.init_memory again",
}


@pytest.mark.parametrize("where", AT_FAULT)
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been_taken(where):
    (model, twin), (input_ids, labels), ln_f = (small_model(**RANDOM).train() for _ in range(2)), a_batch(), "transformer.ln_f"
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1) for m in (model, twin)]
    for m, optimizer in zip((model, twin), optimizers):
        torch.manual_seed(5)
        m.train_step(optimizer, input_ids, None, labels)

    bias, memory = model.get_submodule(ln_f).bias, None
    good = bias.detach().clone()
    if where == "loss":
        bias.data[0] = 1e38  # finite, but what comes out of it is not
    elif where == "gradient":
        hook = bias.register_hook(lambda gradient: gradient * torch.inf)
    elif where == "parameters":
        bias.data[3] = -torch.inf
    else:
        memory = torch.randn(4, 4, 16).index_fill(1, torch.tensor([2]), torch.nan)
    before, random, state = copies(model), torch.get_rng_state(), copy.deepcopy(optimizers[0].state_dict())
    with pytest.raises(FloatingPointError, match=AT_FAULT[where]):
        model.train_step(optimizers[0], input_ids, memory, labels)
    assert same(model, before) and torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    after = optimizers[0].state_dict()
    assert after["param_groups"] == state["param_groups"] and after["state"].keys() == state["state"].keys()
    for index, tensors in state["state"].items():
        assert all(torch.equal(after["state"][index][name], tensor) for name, tensor in tensors.items())

    bias.data.copy_(good)
    if where == "gradient":
        hook.remove()
    results = []
    for m, optimizer in zip((model, twin), optimizers):  # the first goes on as if nothing had happened
        torch.set_rng_state(random if m is twin else torch.get_rng_state())
        results.append(m.train_step(optimizer, input_ids, None, labels).loss)
    assert torch.equal(*results) and same(model, twin.parameters())


def test_parameters_that_the_optimizer_does_not_train_do_not_add_up_in_the_norm():
    model, (input_ids, labels), memory = small_model(), a_batch(), torch.randn(4, 4, 16)
    optimizer = torch.optim.SGD(model.transformer.ln_f.parameters(), lr=0.0)
    norms = [model.train_step(optimizer, input_ids, memory, labels).gradient_norm for _ in range(3)]
    assert norms[0] > 0 and torch.equal(norms[0], norms[1]) and torch.equal(norms[0], norms[2])


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_of_the_gradient_that_would_spoil_it_is_refused(limit):
    model, (input_ids, labels) = small_model(), a_batch()
    before = copies(model)
    with pytest.raises(ValueError, match=r"max_grad_norm must be above 0, not .*: pass float\('inf'\) to leave gradients"):
        model.train_step(torch.optim.SGD(model.parameters(), lr=0.1), input_ids, None, labels, max_grad_norm=limit)
    assert same(model, before)


def test_a_step_without_labels_is_refused():
    model, (input_ids, _) = small_model(), a_batch()
    with pytest.raises(ValueError, match="a training step needs labels: pass labels=input_ids"):
        model.train_step(torch.optim.SGD(model.parameters(), lr=0.1), input_ids)


def test_train_still_switches_dropout():
    model = small_model()
    assert model.train() is model and model.training and not model.eval().training


# ---- accuracy, learning rate, history ----


def test_accuracy_equals_the_loop_over_answers():
    logits, labels = torch.randn(5, 6, 3), torch.randint(0, 3, (5, 6)).masked_fill(torch.rand(5, 6) < 0.5, -100)
    right = asked = 0
    for row, answers in zip(logits.tolist(), labels.tolist()):
        for t in range(1, 6):
            if answers[t] != -100:
                asked += 1
                right += row[t - 1].index(max(row[t - 1])) == answers[t]
    assert 0 < right < asked and ml.answer_accuracy(logits, labels) == pytest.approx(right / asked)


def test_accuracy_of_no_answers_is_refused():
    labels = torch.full((1, 4), -100)
    labels[0, 0] = 2  # the first token has no position before it
    with pytest.raises(ValueError, match="no position is labelled: accuracy needs at least one label other than -100"):
        ml.answer_accuracy(torch.randn(1, 4, 3), labels)


@pytest.mark.parametrize("steps", [1, 7, 100, 1000])
def test_the_learning_rate_rises_for_a_tenth_of_the_steps_then_falls(steps):
    rates = [one_cycle(step, steps, peak=3.0) for step in range(steps + 1)]
    top = max(1, round(steps / 10))
    assert rates[0] == pytest.approx(3 / 25) and rates[top] == pytest.approx(3.0)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    if steps > 10:
        assert rates[steps] == pytest.approx(0, abs=1e-9)
        assert rates[top // 2 * 2 // 2] == pytest.approx(3 / 25 + (3 - 3 / 25) * (1 - math.cos(math.pi * (top // 2) / top)) / 2)
        assert rates[(steps + top) // 2] == pytest.approx(1.5, rel=0.01)


def test_recent_accuracy_is_the_mean_of_the_present_stage():
    history = ml.History(accuracy=[1.0, 0.0, 0.5, 0.7], stage=[0, 1, 1, 1])
    assert history.recent_accuracy(2) == pytest.approx(0.6) and history.recent_accuracy(3) == pytest.approx(0.4)
    assert history.recent_accuracy(4) == 0 and ml.History().recent_accuracy(1) == 0


# ---- the curriculum ----


def recording(stage, name, drawn):
    def batch(batch_size, generator):
        drawn.append((name, batch_size))
        return stage.batch(batch_size, generator)

    return SimpleNamespace(batch=batch)


def test_stages_follow_when_the_mean_of_a_window_is_reached(monkeypatch):
    script = iter([0.9, 0.9, 0.8, 1.0, 0.9, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9])
    monkeypatch.setattr(training, "answer_accuracy", lambda *_: next(script))
    drawn = []
    stages = [recording(Copy(2, 1, 4), name, drawn) for name in "abc"]
    history = ml.train(small_model(), stages, **{**SMALL, "promote_at": 0.89})
    assert history.stage == [0] * 4 + [1] * 3 + [2] * 5 and history.ended == "steps" and len(history) == 12
    assert drawn == [("abc"[stage], 4) for stage in history.stage]


def test_a_stage_goes_on_until_it_is_learned():
    easy = SimpleNamespace(batch=lambda size, _: (torch.full((size, 8), 5), torch.full((size, 8), 5)))  # always the same word
    seen = []
    history = ml.train(
        small_model(), [easy, STAGES[0]], steps=60, batch_size=4, window=3, progress=False, learning_rate=1e-2,
        on_step=lambda h: seen.append((h.stage[-1], h.recent_accuracy(3))),
    )  # fmt: skip
    change = history.stage.index(1)
    assert change > 3 and history.accuracy[0] < 0.5
    assert all(recent < 0.95 for _, recent in seen[: change - 1]) and seen[change - 1][1] >= 0.95
    never = ml.train(small_model(), STAGES, **{**SMALL, "promote_at": 1.01})
    assert never.stage == [0] * 12


def test_a_target_ends_the_run_on_the_last_stage_only(monkeypatch):
    monkeypatch.setattr(training, "answer_accuracy", lambda *_: 1.0)
    history = ml.train(small_model(), STAGES, **{**SMALL, "promote_at": 1.0}, target=1.0)
    assert history.ended == "target" and history.stage == [0] * 3 + [1] * 3


def test_history_holds_what_each_step_did():
    model = small_model()
    history = ml.train(model, STAGES, **SMALL, seed=3, learning_rate=1e-3)
    assert history.learning_rate == [one_cycle(step, 12, 1e-3) for step in range(12)]
    twin = small_model()
    optimizer = torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(3)
    for step in range(12):  # the same by hand
        optimizer.param_groups[0]["lr"] = one_cycle(step, 12, 1e-3)
        input_ids, labels = STAGES[history.stage[step]].batch(4, generator)
        result = twin.train_step(optimizer, input_ids, None, labels)
        assert history.loss[step] == result.loss.item() and history.gradient_norm[step] == result.gradient_norm.item()
        assert history.accuracy[step] == ml.answer_accuracy(result.logits, labels)
    assert same(model, twin.parameters())


def test_it_learns_to_carry_a_word_through_its_memory():
    model = small_model(n_embd=32, memory_init="learned")
    history = ml.train(model, [Copy(2, 1, 4)], steps=300, batch_size=32, learning_rate=5e-3, target=0.98, progress=False)
    assert history.ended == "target" and history.loss[-1] < 0.5 < 3 < history.loss[0]
    input_ids, labels = Copy(2, 1, 4).batch(200, torch.Generator().manual_seed(99))
    assert ml.answer_accuracy(model(input_ids).logits, labels) > 0.97
    forgetful = model(input_ids[:, 4:])
    assert ml.answer_accuracy(forgetful.logits, labels[:, 4:]) < 0.2  # without the memory it can but guess


def test_the_same_seed_gives_the_same_numbers():
    models, histories = [], []
    for seed, seed_of_documents in ((1, 5), (1, 5), (1, 6), (2, 5)):
        models.append(small_model(seed=seed))
        histories.append(ml.train(models[-1], STAGES, **SMALL, seed=seed_of_documents))
    assert histories[0] == histories[1] and same(models[0], models[1].parameters())
    assert histories[0].loss != histories[2].loss and histories[0].loss != histories[3].loss


def test_bptt_segments_reach_the_model():
    def parameters_after(**options):
        model = small_model(memory_init="learned")
        ml.train(model, [AssociativeRecall(3, 1, 4)], **SMALL, **options)
        return copies(model)

    full = parameters_after()
    assert all(torch.equal(a, b) for a, b in zip(full, parameters_after(bptt_segments=3)))
    assert not all(torch.equal(a, b) for a, b in zip(full, parameters_after(bptt_segments=1)))


@pytest.mark.parametrize("training_before", [True, False])
def test_training_mode_is_as_it_was(training_before):
    model, modes = small_model().train(training_before), []
    ml.train(model, STAGES, **SMALL, on_step=lambda _: modes.append(model.training))
    assert modes == [True] * 12 and model.training == training_before


def test_a_bar_shows_progress_unless_told_not_to(capsys):
    ml.train(small_model(), STAGES, **SMALL)
    assert not capsys.readouterr().out
    ml.train(small_model(), STAGES, **{**SMALL, "progress": True})
    assert "12/12" in capsys.readouterr().out


def test_no_stage_is_refused():
    with pytest.raises(ValueError, match="train needs at least one stage: an object with a method batch"):
        ml.train(small_model(), [], steps=3)


@pytest.mark.parametrize("name", ["window", "checkpoint_every"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_number_of_steps_below_1_is_refused(name, value, tmp_path):
    model = small_model()
    before = copies(model)
    with pytest.raises(ValueError, match=f"{name} must be at least 1 step, not {value}"):
        ml.train(model, STAGES, **{**SMALL, name: value}, checkpoint=tmp_path / "run.safetensors")
    assert same(model, before) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("value", [math.inf, math.nan, -0.1])
def test_a_rate_that_would_spoil_the_parameters_is_refused(name, value):
    model = small_model()
    before = copies(model)
    with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0, not {value}"):
        ml.train(model, STAGES, **SMALL, **{name: value})
    assert same(model, before)


# ---- numbers that are not finite ----


def spoil_gradients(model):
    model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("every", "kept"),
    [
        (None, r"No checkpoint was written yet"),
        (100, r"No checkpoint was written yet"),
        (2, r"run\.safetensors holds the run up to step 3"),
        (1, r"run\.safetensors holds the run up to step 4"),
    ],
)
def test_a_step_that_is_not_finite_is_named_and_the_last_good_state_is_kept(tmp_path, every, kept):
    file, whole, model, reached = tmp_path / "run.safetensors", small_model(**RANDOM), small_model(**RANDOM), []
    options = {} if every is None else {"checkpoint": file, "checkpoint_every": every}

    def spoil(history):
        if len(history) == 5:
            reached.extend([*copies(model), torch.get_rng_state(), file.exists() and file.read_bytes()])
            spoil_gradients(model)

    torch.manual_seed(1)
    expected = ml.train(whole, STAGES, **SMALL)
    torch.manual_seed(1)
    with pytest.raises(FloatingPointError, match=rf"^in step 5 of stage 1, the loss is .*inf\. .* Try a lower .*\. .*{kept}$"):
        ml.train(model, STAGES, **SMALL, **options, on_step=spoil)
    *parameters, random, _ = reached
    assert same(model, parameters) and torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    if every in (1, 2):
        other = small_model(seed=9, **RANDOM)
        assert ml.train(other, STAGES, **SMALL, **options, resume=True) == expected and same(other, whole.parameters())
    else:
        assert not file.exists()


def test_a_resumed_run_knows_what_its_checkpoint_holds(run):
    model, good = small_model(), run.read_bytes()
    spoil_gradients(model)
    with pytest.raises(FloatingPointError, match=r"^in step 5 of stage 1, .*run\.safetensors holds the run up to step 4$"):
        ml.train(model, STAGES, **SMALL, checkpoint=run, resume=True)
    assert run.read_bytes() == good


def test_parameters_that_are_not_finite_are_not_called_good():
    model = small_model()

    def spoil(history):
        if len(history) == 2:
            model.transformer.ln_f.weight.data.fill_(torch.nan)

    message = (
        r"in step 2 of stage 1, the loss is nan, .* before this step, transformer\.ln_f\.weight the first .* an earlier copy"
    )
    with pytest.raises(FloatingPointError, match=message) as error:
        ml.train(model, STAGES, **SMALL, on_step=spoil)
    assert "parameters are finite" not in str(error.value)


def test_parameters_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path):
    model, file, good = small_model(), tmp_path / "run.safetensors", []

    def spoil(history):
        if len(history) == 2:
            good.append(file.read_bytes())  # of the step before
            model.transformer.ln_f.weight.data[0] = torch.inf

    message = (
        r"^after step 1 there is NaN or infinity in transformer\.ln_f\.weight: .*run\.safetensors was left as it was\. Look at"
    )
    with pytest.raises(FloatingPointError, match=message):
        ml.train(model, STAGES, **SMALL, checkpoint=file, checkpoint_every=1, on_step=spoil)
    assert [file.read_bytes()] == good and list(tmp_path.iterdir()) == [file]
    expected = ml.train(small_model(), STAGES, **SMALL)
    assert ml.train(small_model(seed=9), STAGES, **SMALL, checkpoint=file, resume=True) == expected


def test_a_finite_gradient_whose_square_is_not_is_refused_too():
    """AdamW keeps the square, and a parameter for which it is infinite would never move again."""
    model, (input_ids, labels) = small_model(), a_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.update_rule.keep.bias.register_hook(
        lambda gradient: torch.full_like(gradient, 1e25)
    )  # the only one that is a single number
    with pytest.raises(FloatingPointError, match="its gradient's norm inf"):
        model.train_step(optimizer, input_ids, None, labels, max_grad_norm=math.inf)
    assert not optimizer.state


# ---- Ctrl-C ----


def interrupt_at(step):
    return lambda history: signal.raise_signal(signal.SIGINT) if len(history) == step else None


@pytest.mark.parametrize("step", [1, 4, 12])  # after step 1 the next stage begins
def test_ctrl_c_keeps_what_was_reached_and_gives_the_handler_back(tmp_path, step):
    before, file, model, reached = signal.getsignal(signal.SIGINT), tmp_path / "run.safetensors", small_model(), []

    def on_step(history):
        interrupt_at(step)(history)
        if len(history) == step:
            reached.extend(copies(model))

    history = ml.train(model, [STAGES[0]] * 3, **SMALL, checkpoint=file, on_step=on_step)
    assert history.ended == "interrupted" and len(history) == step
    assert same(model, reached) and signal.getsignal(signal.SIGINT) is before
    other = small_model(seed=7)
    resumed = ml.train(other, [STAGES[0]] * 3, **SMALL, checkpoint=file, resume=True, on_step=interrupt_at(step + 1))
    assert resumed.loss[:step] == history.loss and len(resumed) == min(12, step + 1)


def test_the_handler_comes_back_after_an_error_too():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError):
        ml.train(small_model(), STAGES, **SMALL, on_step=lambda _: {}["nothing"])
    assert signal.getsignal(signal.SIGINT) is before


def test_it_trains_in_another_thread_where_there_are_no_signals():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(ml.train(small_model(), STAGES, **SMALL)))
    thread.start()
    thread.join()
    assert len(histories[0]) == 12


# ---- checkpoints ----

VARIANTS = [
    {"memory_init": "learned"},
    {"memory_init": "normal"},
    {"memory_init": "normal", "resid_pdrop": 0.2, "attn_pdrop": 0.1, "embd_pdrop": 0.1},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, options, stop):
    file, whole = tmp_path / "deep" / "run.safetensors", small_model(**options)
    expected = ml.train(whole, STAGES, **SMALL, seed=2)
    ml.train(small_model(**options), STAGES, **SMALL, seed=2, checkpoint=file, on_step=interrupt_at(stop))
    other = small_model(seed=9, **options)  # another start, another state of the random numbers
    history = ml.train(other, STAGES, **SMALL, seed=2, checkpoint=file, resume=True)
    assert same(other, whole.parameters()) and history == expected


def test_checkpoints_are_written_every_so_many_steps_and_at_the_end(tmp_path, monkeypatch):
    written, replace = [], storage.os.replace
    monkeypatch.setattr(storage.os, "replace", lambda a, b: (written.append(len(seen)), replace(a, b)))
    seen = []
    ml.train(small_model(), STAGES, **SMALL, checkpoint=tmp_path / "run", checkpoint_every=5, on_step=lambda _: seen.append(1))
    assert written == [5, 10, 12] and [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("target", [None, 0.0])
def test_a_run_that_has_ended_stays_as_it_is_when_resumed(tmp_path, target):
    file, model = tmp_path / "run", small_model()
    first = ml.train(model, STAGES, **SMALL, target=target, checkpoint=file)
    other = small_model(seed=4)
    again = ml.train(other, STAGES, **SMALL, target=target, checkpoint=file, resume=True)
    assert again == first and same(other, model.parameters())


def test_a_run_does_not_write_over_another(tmp_path):
    file, model = tmp_path / "run.safetensors", small_model()
    file.write_bytes(b"mine")
    before = copies(model)
    with pytest.raises(
        FileExistsError, match=r"run\.safetensors exists: pass resume=True to go on from it, or name another file"
    ):
        ml.train(model, STAGES, **SMALL, checkpoint=file)
    assert same(model, before) and file.read_bytes() == b"mine"


@pytest.fixture
def run(tmp_path):
    """The checkpoint of a run that was interrupted at step 5."""
    file = tmp_path / "run.safetensors"
    ml.train(small_model(), STAGES, **SMALL, checkpoint=file, on_step=interrupt_at(5))
    return file


def assert_refused(file, error, message, model=None, **changed):
    model = model or small_model(seed=3)
    before, random = copies(model), torch.get_rng_state()
    folder = {path: path.read_bytes() for path in file.parent.iterdir()}
    with pytest.raises(error, match=message):
        ml.train(model, **{"stages": STAGES, **SMALL, "checkpoint": file, "resume": True, **changed})
    assert same(model, before) and torch.equal(torch.get_rng_state(), random)
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == folder  # no file was touched, none left behind


def test_a_missing_checkpoint_is_refused(tmp_path):
    assert_refused(tmp_path / "none", FileNotFoundError, "there is no checkpoint at .*none: pass resume=False to start")


def test_resuming_without_a_checkpoint_is_refused():
    with pytest.raises(ValueError, match="resume=True goes on from a checkpoint: pass checkpoint="):
        ml.train(small_model(), STAGES, **SMALL, resume=True)


def test_a_truncated_checkpoint_is_refused(run):
    data, model = run.read_bytes(), small_model(seed=3)
    header = 8 + int.from_bytes(data[:8], "little")
    for length in {
        *range(12),
        *range(12, len(data), len(data) // 100),
        *range(header - 3, header + 4),
        *range(len(data) - 9, len(data)),
    }:
        run.write_bytes(data[:length])
        message = r"run\.safetensors is not a whole safetensors file .*: take an earlier copy"
        assert_refused(run, ValueError, message, model)


def test_a_checkpoint_of_which_a_power_cut_left_zeros_is_refused(run):
    data, model = run.read_bytes(), small_model(seed=3)
    for length in range(0, len(data), 4096):
        run.write_bytes(data[:length] + bytes(len(data) - length))
        assert_refused(run, ValueError, "take an earlier copy", model)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_is_no_checkpoint(tmp_path, resume):
    with pytest.raises(IsADirectoryError, match=r"is a folder: name a file in it, such as .*run\.safetensors"):
        ml.train(small_model(), STAGES, **SMALL, checkpoint=tmp_path, resume=resume)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_run_was_writing_does_not_hurt(run, kind):
    whole, writing = small_model(), run.with_name("run.safetensors.writing")
    expected = ml.train(whole, STAGES, **SMALL)
    model = small_model(seed=5)
    if kind == "folder":
        writing.mkdir()
        (writing / ".tmp4NxQ8z").write_bytes(b"half")
        (writing / "run.safetensors").write_bytes(run.read_bytes() * 2)
    else:
        writing.write_bytes(b"half" * 10**6)
    run.rename(run.with_name("mine"))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):  # what was being written is none
        ml.train(model, STAGES, **SMALL, checkpoint=run, resume=True)
    run.with_name("mine").rename(run)
    assert ml.train(model, STAGES, **SMALL, checkpoint=run, resume=True) == expected and same(model, whole.parameters())
    assert list(run.parent.iterdir()) == [run]


def test_a_checkpoint_with_a_flipped_bit_is_refused(run):
    data, model = run.read_bytes(), small_model(seed=3)
    header = int.from_bytes(data[:8], "little")
    generator = torch.Generator().manual_seed(0)
    inside = torch.randint(8, 8 + header, (60,), generator=generator).tolist()
    after = torch.randint(8 + header, len(data), (30,), generator=generator).tolist()
    for place in (0, 1, 5, *inside, 8 + header, *after, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        run.write_bytes(damaged)
        assert_refused(run, ValueError, "take an earlier copy|no memgpt_lite training checkpoint, version 1", model)


def test_a_foreign_file_is_refused(run):
    small_model().save_pretrained(run.parent / "model")
    (run.parent / "model" / "model.safetensors").replace(run)
    (run.parent / "model" / "config.json").unlink()
    for file in (run.parent / "model").iterdir():
        file.unlink()
    (run.parent / "model").rmdir()
    assert_refused(run, ValueError, r"no memgpt_lite training checkpoint, version 1")
    save_file({"x": torch.zeros(1)}, run)
    assert_refused(run, ValueError, r"no memgpt_lite training checkpoint, version 1 \(its format: None\)")
    run.write_text("Dear diary, today I trained a model. " * 100)
    assert_refused(run, ValueError, "is not a whole safetensors file")
    torch.save({"step": 5}, run)
    assert_refused(run, ValueError, "is not a whole safetensors file")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 1.0}, r"other settings \(learning_rate: 0\.002 saved, 1\.0 now\): pass the same, or start anew"),
        ({"steps": 13}, "steps: 12 saved, 13 now"),
        ({"seed": 1}, "seed: 0 saved, 1 now"),
        ({"bptt_segments": 1}, "bptt_segments: None saved, 1 now"),
        ({"stages": [Copy(2, 1, 4)]}, r"stages: \['Copy\(num_segments=2, num_words=1"),
        ({"batch_size": 5, "window": 4}, "batch_size: 4 saved, 5 now; window: 3 saved, 4 now"),
    ],
)
def test_a_checkpoint_of_a_run_with_other_settings_is_refused(run, changed, message):
    assert_refused(run, ValueError, message, **changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 8}, "n_embd: 16 saved, 8 now"),
        ({"n_head": 4}, "n_head: 2 saved, 4 now"),  # parameters of the same shapes, another model
        ({"update_rule": "keep_softmax"}, "update_rule: 'keep' saved, 'keep_softmax' now"),
        ({"memory_init": "zeros"}, "memory_init: 'normal' saved, 'zeros' now"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(run, options, message):
    assert_refused(run, ValueError, message, small_model(seed=3, **options))


def test_a_checkpoint_of_other_parameters_is_refused(run):
    model = small_model(seed=3)
    model.extra = torch.nn.Linear(2, 2)
    assert_refused(run, ValueError, "holds a model of other parameters or shapes: build the model", model)


def test_a_checkpoint_of_another_precision_is_refused(run):
    message = r"holds a model of another precision \(torch\.float32 saved, torch\.bfloat16 now\): convert this one first"
    assert_refused(run, ValueError, message, small_model(seed=3).bfloat16())


def test_a_checkpoint_fits_a_model_that_was_saved_in_between(run, tmp_path):
    model = small_model(seed=3)
    model.save_pretrained(tmp_path / "model")
    model = ml.MemGPT.from_pretrained(tmp_path / "model")
    assert len(ml.train(model, STAGES, **SMALL, checkpoint=run, resume=True)) == 12


def test_a_stage_without_a_description_is_known_by_its_class(tmp_path):
    """Python describes an object that says nothing of itself by where it lies in memory, which is elsewhere in every process."""

    class Plain:
        def batch(self, batch_size, generator):
            return Copy(2, 1, 4).batch(batch_size, generator)

    class Other(Plain):
        pass

    file, stages = tmp_path / "run.safetensors", [Plain()]
    ml.train(small_model(), stages, **SMALL, checkpoint=file, on_step=interrupt_at(5))
    assert_refused(file, ValueError, r"stages: \[.*Plain'\] saved, \[.*Other'\] now", stages=[Other()])
    assert len(ml.train(small_model(), [Plain()], **SMALL, checkpoint=file, resume=True)) == 12


@pytest.mark.parametrize("crash", ["save_file", "replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_checkpoint_good(run, monkeypatch, crash):
    good = run.read_bytes()

    def full(*arguments, **options):
        if crash == "save_file":
            arguments[1].write_bytes(b"half")
            arguments[1].with_name(".tmp7pQx2a").write_bytes(b"half")  # safetensors' own, which a kill leaves behind
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage if crash == "save_file" else storage.os, crash, full)
        with pytest.raises(OSError, match="no space left"):
            ml.train(small_model(), STAGES, **SMALL, checkpoint=run, resume=True)
    assert run.read_bytes() == good and list(run.parent.iterdir()) == [run]
    whole = small_model()
    ml.train(whole, STAGES, **SMALL)
    resumed = small_model(seed=5)
    ml.train(resumed, STAGES, **SMALL, checkpoint=run, resume=True)
    assert same(resumed, whole.parameters())


def test_a_disk_that_is_full_leaves_the_old_checkpoint_good(run):
    resource = pytest.importorskip("resource")
    good, limits = run.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 100, 5000, len(good) // 2, len(good) - 1):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # a file cannot grow beyond this
            with pytest.raises(
                OSError, match=r"run\.safetensors was not written \(.*File too large.*\), an earlier one is untouched: free"
            ):
                ml.train(small_model(), STAGES, **SMALL, checkpoint=run, resume=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert run.read_bytes() == good and list(run.parent.iterdir()) == [run]
    whole = small_model()
    expected = ml.train(whole, STAGES, **SMALL)
    resumed = small_model(seed=5)
    assert ml.train(resumed, STAGES, **SMALL, checkpoint=run, resume=True) == expected and same(resumed, whole.parameters())


@pytest.mark.parametrize("refused", [False, True])
def test_the_disk_has_the_file_before_it_is_moved_and_the_move_before_the_run_goes_on(tmp_path, monkeypatch, refused):
    file, events, replace, fsync = tmp_path / "run", [], storage.os.replace, storage.os.fsync

    def sync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("folder" if is_folder else f"file of {os.fstat(descriptor).st_size} bytes")
        if is_folder and refused:
            raise OSError(22, "Invalid argument")  # some file systems cannot
        fsync(descriptor)

    monkeypatch.setattr(storage.os, "fsync", sync)
    monkeypatch.setattr(storage.os, "replace", lambda a, b: (events.append("moved"), replace(a, b)))
    ml.train(small_model(), STAGES, **SMALL, checkpoint=file)
    assert events == [f"file of {file.stat().st_size} bytes", "moved", "folder"]
    assert len(ml.train(small_model(), STAGES, **SMALL, checkpoint=file, resume=True)) == 12


def test_a_checkpoint_holds_its_configuration_and_history(run):
    from safetensors import safe_open

    with safe_open(run, framework="pt") as file:
        header = file.metadata()
    assert json.loads(header["config"])["n_embd"] == 16 and len(json.loads(header["history"])["loss"]) == 5


def test_a_step_with_memory_replay_is_the_same_step(tiny):
    text = torch.randint(0, 11, (2, 13))
    steps = []
    for replay in (False, True):
        model = tiny(memory_init="learned")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        result = model.train_step(optimizer, text, None, text, memory_replay=replay)
        assert (result.logits is None) == replay
        steps.append((result, model.state_dict()))
    (plain, parameters), (replayed, same) = steps
    torch.testing.assert_close(
        (replayed.loss, replayed.memory, replayed.gradient_norm), (plain.loss, plain.memory, plain.gradient_norm)
    )
    torch.testing.assert_close(same, parameters)
