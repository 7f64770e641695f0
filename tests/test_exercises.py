"""Every exercise: ours is right, an untouched stub is not attempted, every named mistake is refused by its name."""

import dataclasses
import inspect
import itertools
import math
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from slow_versions import SLOW
from transformers.convert_slow_tokenizer import bytes_to_unicode

import memgpt_lite as ml
from memgpt_lite import exercises
from memgpt_lite.applications import text_generation
from memgpt_lite.exercises import EXERCISES, check, checking, hint, solution
from memgpt_lite.exercises.checking import Exercise, Mistake, examine
from memgpt_lite.rules import direction
from memgpt_lite.viz.lab import FACTS

SEEDS = (0, 1, 2)
FUNCTIONS = [exercise for exercise in EXERCISES.values() if exercise.cases is not None]
MISTAKES = [
    pytest.param(exercise, mistake, id=f"{exercise.number}-{i}")
    for exercise in EXERCISES.values()
    for i, mistake in enumerate(exercise.mistakes)
]


@pytest.fixture(params=EXERCISES.values(), ids=lambda exercise: exercise.number)
def exercise(request):
    return request.param


def test_every_notebook_but_the_first_has_at_least_three_to_check():
    lessons = [number.split(".")[0] for number in EXERCISES]
    assert all(lessons.count(str(lesson)) >= 3 for lesson in range(1, 16))


def test_ours_is_right(exercise):
    for seed in SEEDS:
        assert examine(exercise, exercise.solution, seed).status == "right"


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda exercise: exercise.number)
def test_ours_leaves_its_arguments_as_they_were(exercise):
    for arguments in exercise.cases(torch.Generator().manual_seed(0)):
        assert not checking._run(exercise.solution, arguments, time.monotonic() + 60).changed


def test_an_untouched_stub_is_not_attempted(exercise):
    for untouched in (None, ...):
        assert examine(exercise, untouched, 0).status == "not attempted"
    if exercise.cases is not None:
        assert examine(exercise, lambda *arguments: ..., 0).status == "not attempted"


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda exercise: exercise.number)
def test_a_function_that_returns_nothing_is_told_so(exercise):
    result = examine(exercise, lambda *arguments: None, 0)
    assert result.status == "wrong"
    assert "is a return missing" in result.says


def test_has_four_mistakes_with_a_diagnosis_each(exercise):
    assert len(exercise.mistakes) >= 4
    assert len({mistake.says for mistake in exercise.mistakes}) == len(exercise.mistakes)


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES)
def test_a_mistake_is_refused_by_its_name(exercise, mistake):
    for seed in SEEDS:
        result = examine(exercise, mistake.attempt, seed)
        assert result.status == "wrong"
        assert mistake.says in result.says
        assert result.best is exercise.solution


def test_mistakes_caught_are_all_of_them():
    caught = [examine(e.values[0], e.values[1].attempt, 7).status == "wrong" for e in MISTAKES]
    assert sum(caught) == len(caught) >= 4 * len(EXERCISES)


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda exercise: exercise.number)
def test_a_slow_but_right_version_passes(exercise):
    for seed in SEEDS:
        result = examine(exercise, SLOW[exercise.number], seed)
        assert result.status == "right", result.says


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda exercise: exercise.number)
def test_inputs_are_drawn_afresh_the_same_for_the_same_seed(exercise):
    def draw(seed):
        return list(exercise.cases(torch.Generator().manual_seed(seed)))

    assert str(draw(3)) == str(draw(3)) or any(isinstance(x, torch.nn.Module) for case in draw(3) for x in case)
    assert len(draw(3)) >= 3


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda exercise: exercise.number)
def test_an_attempt_that_raises_is_told_so(exercise):
    def broken(*arguments):
        raise ZeroDivisionError("on purpose")

    result = examine(exercise, broken, 0)
    assert result.status == "wrong"
    assert "ZeroDivisionError: on purpose" in result.says


def test_hints_are_shown_one_more_each_time_and_stop_at_the_last(exercise, monkeypatch):
    monkeypatch.setattr(exercises, "_hints_given", {})
    assert 1 <= len(exercise.hints) <= 3
    for given in (*range(1, len(exercise.hints) + 1), len(exercise.hints)):
        shown = hint(exercise.number).data
        assert [text in shown for text in exercise.hints] == [i < given for i in range(len(exercise.hints))]
    assert "last" in hint(exercise.number).data


def test_a_solution_shows_ours_and_what_to_notice(exercise):
    shown = solution(exercise.number).data
    assert exercise.notice in shown
    ours = exercise.solution
    assert (inspect.getsource(ours) if callable(ours) else repr(ours)) in shown


# ---- the machinery ----


def double(x):
    return 2 * x


def cases(generator):
    yield (torch.randn(3, generator=generator, requires_grad=True),)
    yield (torch.randn(2, 5, generator=generator, dtype=torch.float64).requires_grad_(),)


EXAMPLE = Exercise(
    "0.0", "Double", 1, 1, double, ("a",), "b", cases, (Mistake(lambda x: 3 * x, "three times"),)
)  # fmt: skip


def in_place(x):
    result = 2 * x
    x.data.add_(1)
    return result


def right_but_wrong_gradient(x):
    return x + x.detach()


def in_place_on_the_way(x):
    zero = x.exp()
    zero -= x.detach().exp()
    return 2 * x + zero - zero.detach()


def argument_in_place(x):
    x *= 2
    return x


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda x: 3 * x, "three times"),
        (lambda x: 2.5 * x, "yours:"),
        (lambda x: (2 * x).sum(), "the shape should be (3,), but is ()"),
        (lambda x: (2 * x).double(), "the dtype should be torch.float32, but is torch.float64"),
        (lambda x: (2 * x).tolist(), "a tensor of shape (3,) was expected, but list"),
        (lambda x: (2 * x).detach(), "no gradient reaches x"),
        (right_but_wrong_gradient, "the gradient at x is not"),
        (in_place, "x was changed in place: whoever passed it in still needs it. Begin with x = x.clone()"),
        (in_place_on_the_way, "the values are there, but autograd cannot go back"),
        (argument_in_place, "an argument is changed in place"),
        (lambda x: 2 * x if x.dim() == 1 else None, "returned None"),
        (lambda x, y: 2 * x, "raised TypeError"),
        (7, "a function is asked for, not int 7"),
    ],
)
def test_what_is_wrong_is_said(attempt, says):
    result = examine(EXAMPLE, attempt, 0)
    assert result.status == "wrong"
    assert says in result.says


@pytest.mark.parametrize(("argument", "spoil"), [([1, 2], list.pop), ({"a": 1}, dict.clear)])
def test_an_argument_without_a_clone_is_to_be_copied(argument, spoil):
    def attempt(given):
        spoil(given)
        return 1

    asks = dataclasses.replace(EXAMPLE, solution=lambda given: 1, cases=lambda generator: [(argument,)], mistakes=())
    assert examine(asks, attempt, 0).says.endswith("Begin with given = copy.deepcopy(given)")


def put_a_hook(layer):
    layer.register_forward_hook(lambda module, given, made: None)


@pytest.mark.parametrize("spoil", [torch.nn.Module.eval, put_a_hook, lambda layer: setattr(layer, "forward", layer.forward)])
def test_a_model_is_left_as_it_was_in_its_switches_hooks_and_methods(spoil):
    def attempt(layer):
        spoil(layer)
        return 1

    asks = dataclasses.replace(EXAMPLE, cases=lambda generator: [(torch.nn.Linear(2, 2),)], mistakes=())
    asks = dataclasses.replace(asks, solution=lambda layer: 1 + 0 * int(layer(torch.ones(2)).sum()))
    assert examine(asks, asks.solution, 0).status == "right"
    assert examine(asks, attempt, 0).says.endswith("Set back whatever you changed in it: weights, switches, hooks")


def test_a_whole_check_has_one_limit(monkeypatch):
    monkeypatch.setattr(checking, "SECONDS", 0.5)
    many = dataclasses.replace(EXAMPLE, cases=lambda generator: ((torch.ones(1),) for _ in range(50)))

    def slow(x):
        time.sleep(0.1)
        return 2 * x

    began = time.monotonic()
    assert "had not come to an end after 0.5 s" in examine(many, slow, 0).says
    assert time.monotonic() - began < 3


def test_ours_is_there_to_compare_with_however_late_it_is(monkeypatch):
    monkeypatch.setattr(checking, "SECONDS", 0.5)
    many = dataclasses.replace(EXAMPLE, solution=lambda x: (time.sleep(0.01), 2 * x)[1])
    many = dataclasses.replace(many, cases=lambda generator: ((torch.ones(1),) for _ in range(4)))
    calls = iter((0, 0.7))

    def slow_once(x):
        time.sleep(next(calls, 0))
        return 2 * x

    assert "had not come to an end" in examine(many, slow_once, 0).says


def test_a_wrong_value_is_told_at_once_though_other_inputs_never_end(monkeypatch):
    monkeypatch.setattr(checking, "NAMING", 1)

    def attempt(facts, target, draws, guess):
        slots = 1
        while (held := 1 - (1 / facts) ** (draws * slots)) + (1 - held) * guess < target:
            slots += 1
        return slots

    began = time.monotonic()
    assert "1/F is the chance that a draw *takes* this fact" in check("14.2", attempt, seed=0).says
    assert time.monotonic() - began < 4


def test_errors_are_alike_only_if_they_say_the_same():
    def attempt(ids, piece_of, byte_of):
        return bytes(byte_of[letter] for i in ids for letter in piece_of[i]).decode("ascii")

    says = check("1.1", attempt, seed=0).says
    assert "'ascii' codec can't decode" in says
    assert "each token is decoded by itself" not in says


def test_a_search_that_stops_too_early_is_near():
    def attempt(errors, questions, confidence):
        low, high = 0.0, 1.0
        while high - low > 1e-5:
            rate = (low + high) / 2
            so_few = sum(math.comb(questions, i) * rate**i * (1 - rate) ** (questions - i) for i in range(errors + 1))
            low, high = (rate, high) if so_few > 1 - confidence else (low, rate)
        return high

    assert "nearly, by less than a thousandth: does a search stop too early" in check("13.1", attempt, seed=0).says
    assert "nearly" not in check("13.1", lambda errors, questions, confidence: 0.5, seed=0).says


def test_what_is_said_is_marked_up_for_a_page_and_plain_otherwise():
    marked = exercises.Result(EXAMPLE, "wrong", "`a*b*c` is <not> what *you say*, 2 * 3 ** 4 * 5", double)
    shown, _ = marked._repr_mimebundle_()
    assert "<code>a*b*c</code> is &lt;not&gt; what <em>you say</em>, 2 * 3 ** 4 * 5" in shown["text/html"]
    assert shown["text/plain"] == "exercise 0.0 · wrong: a*b*c is <not> what you say, 2 * 3 ** 4 * 5"


def test_gradients_are_compared_where_a_notebook_has_switched_them_off():
    with torch.no_grad():
        assert "no gradient reaches x" in examine(EXAMPLE, lambda x: (2 * x).detach(), 0).says
        assert examine(EXAMPLE, double, 0).status == "right"


@pytest.mark.parametrize("truth", [True, np.True_, torch.tensor(True)])
def test_a_truth_value_is_one_whatever_it_is_kept_in(truth):
    asks = dataclasses.replace(EXAMPLE, solution=lambda x: True)
    assert examine(asks, lambda x: truth, 0).status == "right"
    for wrong in (False, np.False_, torch.tensor(False), 1, torch.tensor(1.0), "True"):
        assert examine(asks, lambda x, w=wrong: w, 0).status == "wrong"
        assert examine(dataclasses.replace(EXAMPLE, solution=lambda x: 1), lambda x: truth, 0).status == "wrong"


def test_no_gpu_is_seeded_by_a_check(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's random numbers were changed"))
    before = torch.get_rng_state()
    asks = dataclasses.replace(EXAMPLE, solution=lambda x: torch.rand(3), mistakes=())
    assert examine(asks, lambda x: torch.rand(3), 0).status == "right"  # both draw the same
    assert torch.equal(torch.get_rng_state(), before)


def test_arrays_are_compared_by_their_numbers():
    asks = dataclasses.replace(EXAMPLE, solution=lambda x: np.arange(6.0).reshape(2, 3), mistakes=())
    backwards = np.array([[5.0, 4, 3], [2, 1, 0]])
    assert examine(asks, lambda x: backwards[::-1, ::-1], 0).status == "right"
    for wrong in (np.zeros((2, 3)), np.arange(6.0), np.arange(6).reshape(2, 3), np.arange(6.0).reshape(2, 3) + 1e-3):
        assert examine(asks, lambda x, w=wrong: w, 0).status == "wrong"
    words = dataclasses.replace(asks, solution=lambda x: np.array(["a", "b"]))
    assert examine(words, lambda x: np.array(["a", "b"]), 0).status == "right"
    assert examine(words, lambda x: np.array(["a", "c"]), 0).status == "wrong"


def test_a_small_error_is_an_error_in_both_dtypes():
    assert examine(EXAMPLE, lambda x: 2 * x * (1 + 2e-7), 0).status == "wrong"  # in float64, that is no rounding
    assert examine(EXAMPLE, lambda x: x + x, 0).status == "right"


def test_the_attempt_is_what_best_gives_once_it_is_right():
    def mine(x):
        return x + x

    assert examine(EXAMPLE, mine, 0).best is mine
    assert examine(EXAMPLE, ..., 0).best is double


def test_yours_against_target_is_drawn_with_a_text():
    result = check("4.3", lambda shares, write: torch.zeros(shares.size(0), shares.size(1) + write.size(1) - 1), seed=0)
    assert "Two heat maps" in result.picture.alt
    shown, _ = result._repr_mimebundle_()
    assert 'alt="Two heat maps' in shown["text/html"]


def test_what_an_attempt_says_never_becomes_markup():
    def hostile(scores):
        raise ValueError("<script>alert(1)</script>")

    shown, _ = check("4.1", hostile)._repr_mimebundle_()
    assert "<script>" not in shown["text/html"]
    assert "<script>" in shown["text/plain"]


def test_an_unknown_number_is_refused():
    for function in (hint, solution, lambda number: check(number, ...)):
        with pytest.raises(ValueError, match=r"there is no exercise '9.9': choose one of 1\.1"):
            function("9.9")


@pytest.fixture(scope="module")
def start_here():
    """What the exercises of notebook 00 need of it, and the sources of its cells."""
    path = Path(__file__).parents[1] / "notebooks/00_start_here.ipynb"
    cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    names = {"torch": torch, "ml": ml}
    for cell in ("f58d4565", "e41d854d"):
        exec(cells[cell], names)
    exec("told = model(ids(facts))\nfact_words = facts.split()", names)
    names["made_of"] = lambda s: ml.provenance([*names["told"].write_attentions])[0]
    return names, cells


@pytest.mark.parametrize(
    ("facts", "asked", "says"),
    [
        ("", "", "not attempted yet"),
        ("Ada Paris Gus Oslo", "Ada Gus", "Ada Paris: right, try on\nGus Oslo: right, try on"),
        ("Ada well well well well well well Paris Gus er er er er er er Oslo", "Gus", "wrong, well found!"),
        ("Ada Paris so well Ada Oslo", "Ada", "Ada Paris: right"),  # the first place of a name counts
        ("Ada Paris", "Mia", "never told, so it is a guess"),
        ("so " * 17, "Ada", "more words than the 16 of a segment"),
        ("Ada Berlin", "Ada", "the tasks' vocabulary lacks Berlin"),
    ],
)
def test_own_facts_in_notebook_00_are_judged_name_by_name(start_here, capsys, facts, asked, says):
    names, cells = start_here
    with torch.no_grad():
        exec(cells["a50edd3b"], names | {"my_facts": facts, "my_names": asked})
    assert says in capsys.readouterr().out


def forget_with(copy, column):
    def forget(names, memory, word):
        changed = copy(memory)
        holds = names["made_of"](0)[:, column + names["fact_words"].index(word)] > 0
        changed[:, holds] = names["model"].init_memory(1)[:, holds]
        return changed

    return forget


@pytest.mark.parametrize(
    ("forget", "says"),
    [
        (lambda names, memory, word: memory.clone(), "not attempted yet"),
        (forget_with(torch.clone, 0), "not attempted yet"),
        (forget_with(torch.clone, 1), "without Paris:"),
        (forget_with(lambda memory: memory, 1), "you changed the memory itself"),
        (lambda names, memory, word: names["model"].init_memory(1), "a slot without Paris has changed"),
    ],
)
def test_forgetting_in_notebook_00_is_checked_and_spoils_nothing(start_here, capsys, forget, says):
    names, cells = start_here
    before = names["told"].memory.clone()
    with torch.no_grad():
        try:
            exec(cells["eb431262"], names | {"names": "Ada", "forget": lambda memory, word: forget(names, memory, word)})
        except AssertionError as error:
            print(error)
    assert says in capsys.readouterr().out
    assert torch.equal(names["told"].memory, before)


def test_where_nbgrader_grades_what_is_not_right_fails(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert check("4.4", 69).status == "right"
    for attempt in (..., 50):
        with pytest.raises(exercises.NotRight, match=r"exercise 4\.4"):
            check("4.4", attempt)


# ---- our solutions are the library's steps ----


def test_the_update_is_that_of_keep_attention():
    torch.manual_seed(0)
    rule = ml.KeepAttention(8).double()
    memory, context = torch.randn(3, 4, 8).double(), torch.randn(3, 6, 8).double()
    mask = torch.rand(3, 6) > 0.3
    ours = EXERCISES["4.2"].solution(memory, rule.keep(memory), rule.query(memory), rule.key(context), rule.value(context), mask)
    torch.testing.assert_close(ours, rule(memory, context, mask).memory)


def test_provenance_is_carried_as_the_library_does():
    writes = [torch.randn(1, 3, 1 + n).softmax(-1) for n in (4, 2, 5)]
    shares = torch.ones(3, 1)
    for write in writes:
        shares = EXERCISES["4.3"].solution(shares, write[0])
    torch.testing.assert_close(shares, ml.provenance(writes)[0])


@pytest.mark.parametrize("text", ["the hat", "naïve 😀\n\t中文", " �", ""])
def test_decoding_by_hand_is_the_tokenizers(text):
    tokenizer = ml.train_tokenizer("the cat sat on the mat", vocab_size=300)
    piece_of = {number: piece for piece, number in tokenizer.get_vocab().items()}
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    assert (
        EXERCISES["1.1"].solution(tokenizer.encode(text), piece_of, byte_of) == text == tokenizer.decode(tokenizer.encode(text))
    )


def test_taking_the_padding_away_undoes_make_segments():
    documents, asked = [[5, 6, 7, 5, 0], [0, 9]], [[True, False, False, True, True], [False, True]]
    batch = ml.make_segments(documents, segment_length=3, pad_token_id=0, asked=asked)
    assert EXERCISES["1.2"].solution(batch) == [([5, 6, 7, 5, 0], 3), ([0, 9], 1)]


def test_labels_are_shifted_as_the_model_does():
    torch.manual_seed(0)
    model = ml.MemGPT(ml.MemGPTConfig(vocab_size=9, segment_length=3, n_embd=8, n_layer=1, n_head=1, memory_init="learned"))
    batch = ml.make_segments([[[1, 2, 3, 4, 5], [6, 7]], [[3], [4, 5]]], 3, pad_token_id=0)
    shifted = EXERCISES["1.3"].solution(batch["labels"], batch["attention_mask"], 3)
    out = model(**batch)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), shifted.flatten()), out.loss)
    assert shifted[0].tolist() == [2, 3, 4, 5, -100, -100, 7, -100, -100]  # across the border; 6 follows padding


@pytest.mark.parametrize(("n", "batch_size", "window"), [(36, 3, 4), (29, 4, 7), (12, 1, 5), (2, 1, 1)])
def test_a_token_is_predicted_where_the_streams_have_it(n, batch_size, window):
    truth = dict.fromkeys(range(n), "never")
    for w, part in enumerate(ml.streams(list(range(n)), batch_size, window)):
        truth |= {int(token): (w, *place) for place, token in np.ndenumerate(part["shift_labels"].numpy())}
    assert {token: EXERCISES["1.4"].solution(token, n, batch_size, window) for token in range(n)} == truth


def test_the_hat_takes_as_many_tokens_as_predicted():
    tokenizer = ml.train_tokenizer("the cat sat on the mat, the rat sat on the cat", vocab_size=1024)  # as in notebook 01
    assert len(tokenizer.encode("the hat on 猫")) == EXERCISES["1.5"].solution


def test_spread_is_the_largest_distance_of_two_slots():
    memory = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(EXERCISES["2.1"].solution(memory), torch.stack([torch.pdist(slots).max() for slots in memory]))


@pytest.mark.parametrize(("num_slots", "width"), [(1, 2), (3, 7), (5, 6)])
def test_right_angles_are_those_of_the_librarys_orthogonal_memory(num_slots, width):
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    normal, ours = (
        ml.initial_memory(kind, 4, num_slots, width, generator=draw, dtype=torch.float64)
        for kind, draw in zip(("normal", "orthogonal"), draws)
    )
    torch.testing.assert_close(EXERCISES["2.2"].solution(normal), ours)


@pytest.mark.parametrize(("name", "alike"), [("keep", True), ("keep_softmax", True), ("gated", True), ("erase_add", True), ("delta", False), ("fifo", False)])  # fmt: skip
def test_the_rules_of_the_library_are_told_apart(name, alike):
    torch.manual_seed(0)
    rule = ml.MemGPT(
        ml.MemGPTConfig(vocab_size=9, n_embd=8, n_layer=1, n_head=1, num_memory_slots=4, update_rule=name)
    ).update_rule
    assert EXERCISES["2.3"].solution(rule, torch.randn(2, 4, 8), torch.randn(2, 6, 8)) is alike


def test_two_kinds_of_slots_stay_as_many_as_predicted():
    torch.manual_seed(0)
    config = ml.MemGPTConfig(vocab_size=9, segment_length=4, n_embd=16, n_layer=1, n_head=1, keep_bias=2.0)
    model = ml.MemGPT(config)  # which keeps something: slots that took all from the same tokens would be alike
    memory = torch.randn(1, 2, 16).repeat_interleave(8, dim=1)  # 16 slots: eight copies of one, eight of another
    after = model(torch.randint(9, (1, 40)), memory=memory).memory[0].detach()
    equal = torch.cdist(after, after) < 0.01  # (M, M)
    assert len({tuple(row) for row in equal.tolist()}) == EXERCISES["2.4"].solution


def test_the_backward_steps_by_hand_are_those_of_autograd():
    torch.manual_seed(0)
    z, m, c, g = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(4))
    (right,) = torch.autograd.grad(z.softmax(-1), z, g)
    torch.testing.assert_close(EXERCISES["5.1"].solution(z.softmax(-1), g), right)
    mixed = z.sigmoid() * m + (1 - z.sigmoid()) * c
    torch.testing.assert_close(EXERCISES["5.2"].solution(m, c, z, g), torch.autograd.grad(mixed, (m, c, z), g))


@pytest.fixture
def small_model():
    torch.manual_seed(0)
    settings = {"n_embd": 8, "n_layer": 1, "n_head": 1, "num_memory_slots": 3, "memory_init": "learned", "resid_pdrop": 0.3}
    return ml.MemGPT(ml.MemGPTConfig(vocab_size=7, segment_length=3, **settings)).double().train()


def test_a_graph_over_several_segments_is_no_replay():
    def handed_on(model, ids, labels):
        L, memory, loss = model.config.segment_length, None, 0
        moved = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        for part, asked in zip(ids.split(L, dim=1), moved.split(L, dim=1)):
            out = model(part, memory=memory, shift_labels=asked, num_items_in_batch=(moved != -100).sum())
            memory, loss = out.memory, loss + out.loss
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    assert "which replay does without" in check("5.4", handed_on, seed=0).says


def test_a_switch_that_is_not_set_back_leaves_the_model_blind():
    def attempt(model, block_number, ids):
        model.transformer.h[block_number].reads = False
        return model(ids).logits

    assert "the model is left blind" in check("3.4", attempt, seed=0).says


def test_a_memory_that_is_written_over_is_told_so():
    def attempt(memory, address, erase, add):
        memory *= 1 - address[:, None] * erase
        memory += address[:, None] * add
        return memory

    assert "an argument is changed in place" in check("15.1", attempt, seed=0).says


@pytest.mark.parametrize(("S", "k"), [(1, 1), (4, 1), (4, 3), (4, 4), (4, 9), (5, 2)])
def test_a_cut_leaves_what_the_library_leaves(small_model, S, k):
    ids = torch.randint(7, (1, 3 * S))
    labels = torch.where(torch.arange(3 * S) > 3 * (S - 1), ids, -100)  # asked in the last segment alone
    gradients = ml.memory_gradients(small_model.eval(), ids, labels, bptt_segments=k)
    assert EXERCISES["5.3"].solution(S, k) == [s for s in range(S) if gradients[s].abs().max() > 0]


def test_replay_by_hand_with_dropout_is_plain_back_propagation(small_model):
    ids = torch.randint(7, (2, 12))
    torch.manual_seed(1)
    small_model(ids, labels=ids).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in small_model.named_parameters()}
    small_model.zero_grad()
    torch.manual_seed(1)
    torch.testing.assert_close(EXERCISES["5.4"].solution(small_model, ids, ids), plain)


def test_one_segment_teaches_segment_10_as_predicted(small_model):
    ids = torch.randint(7, (1, 3 * 32))
    teaches = 0
    for s in range(32):
        labels = torch.full_like(ids, -100)
        labels[:, 3 * s + 1 : 3 * s + 3] = ids[:, 3 * s + 1 : 3 * s + 3]  # asked in segment s alone
        teaches += bool(ml.memory_gradients(small_model.eval(), ids, labels, bptt_segments=4)[11].abs().max() > 0)
    assert teaches == EXERCISES["5.5"].solution


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_by_hand_is_that_of_pytorch(num_heads):
    q, k, v = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    cut = [x.view(2, 5, num_heads, -1).transpose(1, 2) for x in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(*cut, is_causal=True).transpose(1, 2).reshape(2, 5, 8)
    torch.testing.assert_close(EXERCISES["3.1"].solution(q, k, v, num_heads), theirs)


def tiny_model(**settings):
    torch.manual_seed(0)
    config = ml.MemGPTConfig(vocab_size=9, n_embd=8, n_layer=2, n_head=2, num_memory_slots=4, memory_init="learned", **settings)
    return ml.MemGPT(config).eval().requires_grad_(False)


def test_context_vectors_by_hand_are_the_models():
    model = tiny_model()
    hidden, logits = torch.randn(2, 5, 8), torch.randn(2, 5, 9)
    ours = EXERCISES["3.2"].solution(hidden, logits, model.transformer.wte.weight, model.output_to_context.weight)
    torch.testing.assert_close(ours, model.context_vectors(hidden, logits))


@pytest.mark.parametrize("block_number", [0, 1])
def test_a_blindfolded_block_is_one_that_does_not_read(block_number):
    model, ids = tiny_model(segment_length=4), torch.randint(9, (2, 11))
    before = model(ids).logits
    ours = EXERCISES["3.4"].solution(model, block_number, ids)
    assert torch.equal(model(ids).logits, before)
    model.transformer.h[block_number].reads = False
    torch.testing.assert_close(ours, model(ids).logits)
    assert not torch.allclose(ours, before)


def test_a_token_reaches_as_far_as_predicted():
    model, ids = tiny_model(segment_length=16, update_rule="keep_softmax"), torch.randint(9, (1, 40))
    changed = ids.clone()
    changed[0, 20] = (ids[0, 20] + 1) % 9
    differs = (model(changed).logits != model(ids).logits).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == list(range(20, 40))
    assert EXERCISES["3.5"].solution == 20


@pytest.mark.parametrize("max_norm", [1.0, 1000.0])
def test_clipping_is_that_of_pytorch(max_norm):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 3), (5,))]
    for p in parameters:
        p.grad = torch.randn_like(p)
    ours, norm = EXERCISES["6.1"].solution([p.grad.clone() for p in parameters], max_norm)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(parameters, max_norm).item(), rel=1e-5)
    torch.testing.assert_close(ours, [p.grad for p in parameters], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_facts", "num_places"), [(1, 3), (3, 2), (4, 16), (5, 7)])
def test_guessing_scores_what_the_formula_says(num_facts, num_places):
    torch.manual_seed(0)
    places = torch.randint(num_places, (40_000, num_facts))  # those asked for at question 1, 2, …, as good as any order
    right = [  # at question i the guess is one of those from i on
        places.gather(1, torch.randint(i, num_facts, (len(places), 1)))[:, 0] == places[:, i] for i in range(num_facts)
    ]
    measured = torch.stack(right).float().mean().item()
    assert measured == pytest.approx(EXERCISES["6.2"].solution(num_facts, num_places), abs=0.01)


def test_a_stage_is_passed_when_the_library_passes_it(monkeypatch):
    accuracies = (torch.randint(2, 5, (30,), generator=torch.Generator().manual_seed(1)) / 4).tolist()
    coming = iter(accuracies)
    monkeypatch.setattr("memgpt_lite.training.answer_accuracy", lambda logits, labels: next(coming))
    model = ml.MemGPT(ml.MemGPTConfig(vocab_size=66, segment_length=16, n_embd=8, n_layer=1, n_head=1, num_memory_slots=2))
    stages = [ml.tasks.AssociativeRecall(1, num_facts=facts) for facts in (1, 2, 3, 4)]
    history = ml.train(model, stages, steps=30, batch_size=1, promote_at=0.75, window=3, progress=False)
    assert len(set(history.stage)) > 2
    assert EXERCISES["6.3"].solution(accuracies, 4, 0.75, 3) == history.stage


def test_a_quarter_costs_the_loss_that_was_predicted():
    logits = torch.full((4, 66), -torch.inf)
    logits[:, 20:24] = 1.0
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([20, 21, 22, 23])).item()
    assert loss == pytest.approx(EXERCISES["6.4"].solution)


# ---- 07: on the shipped model, with the text of the notebook ----


@pytest.fixture(scope="module")
def told():
    return ml.Reading.start(ml.load_pretrained("recall"), torch.tensor(ml.tasks.encode(FACTS)), ml.tasks.decode).read_on()


def question(name):
    return torch.tensor(ml.tasks.encode(name))


def test_keeping_some_is_clearing_the_others(told):
    others = [j for j in range(told.slots) if j not in (3, 8)]
    ours = EXERCISES["7.1"].solution(told.memory, told.initial, [8, 3])
    assert torch.equal(ours, told.clear(others).memory)


@pytest.mark.parametrize("name", ["Ada", "Gus", "Leo"])
def test_no_smaller_set_changes_the_answer(told, name):
    answer = told.predict(question(name)).argmax()

    def changes(slots):
        return bool(told.clear(slots).predict(question(name)).argmax() != answer)

    smallest = EXERCISES["7.2"].solution(told.slots, changes, 4)
    assert 1 < len(smallest) <= len(told.dependence(question(name)).together)
    assert changes(smallest)
    assert not any(changes(slots) for slots in itertools.combinations(range(told.slots), len(smallest) - 1))


def test_a_copy_becomes_necessary_when_as_many_are_cleared_as_predicted(told):
    copies = told.dependence(question("Leo")).sufficient
    assert len(copies) == 4
    for n in range(4):
        for cleared in itertools.combinations(copies, n):
            necessary = told.clear(cleared).dependence(question("Leo")).necessary
            assert necessary == ([j for j in copies if j not in cleared] if n == EXERCISES["7.3"].solution else [])


def test_ours_of_lesson_10_is_what_the_matcher_does():
    from memgpt_lite.applications import semantic_matching as matching

    scores = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).round(decimals=0)  # with ties
    ours = EXERCISES["10.2"].solution(scores, torch.zeros(20, dtype=torch.long))
    assert ours == pytest.approx(matching.measure(scores.numpy())["MRR"])

    matcher = matching.Matcher.from_pretrained()
    texts = (
        "The king spake unto David.",
        "And the king answered and spoke to his servants, saying, Fear not, for I will return tomorrow.",
    )
    parts = []
    for text in texts:
        out = matcher.model(matcher.tokenizer(text, return_tensors="pt").input_ids, output_hidden_states=True)
        values = matcher.model.update_rule.value(matcher.model.context_vectors(out.hidden_states[-1], out.logits))[0]
        parts += [ml.provenance(out.write_attentions)[0, :, 1:], values]
    table = EXERCISES["10.3"].solution(*parts)
    whole = matcher.explain(*texts)[0][1:, 1:]  # the same but for the initial slots, which change the two lengths only
    torch.testing.assert_close(table / table.sum(), whole / whole.sum(), atol=1e-5, rtol=1e-3)


def test_our_cache_is_the_librarys_rule():
    for memory, context_vectors, counts in EXERCISES["8.2"].cases(torch.Generator().manual_seed(0)):
        mask = torch.arange(context_vectors.size(1)) < counts[:, None]
        expected = ml.FirstInFirstOut()(memory, context_vectors, mask).memory
        torch.testing.assert_close(EXERCISES["8.2"].solution(memory, context_vectors, counts), expected)


def test_our_bits_per_character_are_the_librarys():
    tokenizer, text = ml.train_tokenizer("to be or not to be, that is the question", 270), "to be, or to question that"
    torch.manual_seed(0)
    model = ml.MemGPT(ml.MemGPTConfig(vocab_size=len(tokenizer), segment_length=4, n_embd=8, n_layer=1, n_head=2)).eval()
    ids = torch.tensor(tokenizer.encode(text))
    lengths = torch.tensor([len(tokenizer.decode([i])) for i in range(len(tokenizer))])
    torch.manual_seed(1)  # the slots are drawn
    ours = EXERCISES["8.1"].solution(model(ids[None]).logits[0].detach(), ids, lengths)
    torch.manual_seed(1)
    assert text_generation.bits_per_character(model, tokenizer, [text]) == pytest.approx(ours.item(), rel=1e-5)


def test_ours_of_lesson_13_is_the_librarys_and_the_formula():
    assert EXERCISES["13.1"].solution(0, 1024, 0.95) == pytest.approx(1 - 0.05 ** (1 / 1024))
    model = ml.load_pretrained("recall")
    text = ml.tasks.AssociativeRecall(12).batch(1, torch.Generator().manual_seed(0)).input_ids

    def read(segments, memory):
        with torch.no_grad():
            return model(segments, memory=memory.expand(len(segments), -1, -1), output_attentions=False).memory

    memory, _ = EXERCISES["13.2"].solution(read, text.view(-1, 16), model.init_memory(1)[0].detach(), 5)
    torch.testing.assert_close(memory, ml.read_ahead(model, text).memory[0])


def test_the_tokens_of_lesson_15_make_up_the_librarys_rules():
    torch.manual_seed(0)
    memory, context = torch.randn(5, 8), torch.randn(1, 6, 8)
    erase_add, delta = ml.rules.EraseAdd(8), ml.rules.DeltaRule(8, 5)
    written = corrected = memory
    for c in context[0]:
        address = (
            torch.nn.functional.softplus(erase_add.strength(c)) * (direction(written) @ direction(erase_add.key(c)))
        ).softmax(0)
        written = EXERCISES["15.1"].solution(written, address, torch.sigmoid(-erase_add.keep(c)), erase_add.add(c))
        corrected = EXERCISES["15.2"].solution(corrected, delta.key(c).softmax(-1), delta.value(c), torch.sigmoid(-delta.keep(c)))
    torch.testing.assert_close(written, erase_add(memory[None], context).memory[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(corrected, delta(memory[None], context).memory[0], atol=1e-5, rtol=1e-5)


def test_a_half_life_is_found_again():
    left = 3 * 0.5 ** (torch.arange(20, dtype=torch.float64) / 7)
    assert EXERCISES["15.3"].solution(left) == pytest.approx(7) and EXERCISES["15.3"].solution(torch.ones(4)) == float("inf")
