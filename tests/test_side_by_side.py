"""The harness of benchmarks/side_by_side.py, with the systems that need no package but ours and Transformers."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from memgpt_lite.tasks import IGNORED, Batch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "side_by_side.py"
HERE = ["keep", "keep_softmax", "gated", "erase_add", "delta", "fifo", "told", "full", "window"]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("side_by_side", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents(bench, task="easy", segments=4, count=3, seed=0):
    return bench.TASKS[task].at(segments).batch(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("system", HERE)
def test_reading_by_segments_is_reading_the_whole(bench, system):
    model = bench.build(system, 0).eval()
    ids = documents(bench).input_ids
    with torch.no_grad():
        whole, parts, state = model(ids), [], None
        for segment in ids.split(bench.L, dim=1):
            logits, state = model.read(segment, state)
            parts.append(logits)
        alone = model.read(segment, None)[0]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=0)
    assert (alone - parts[-1]).abs().max() > 1e-2  # what was carried counts


@pytest.mark.parametrize("system", HERE)
def test_all_systems_have_as_many_parameters_and_train_all_of_them(bench, system):
    model = bench.build(system, 0)
    assert bench.count_parameters(model) == pytest.approx(156_673, rel=0.05)
    ids, labels = documents(bench)
    bench.answer_loss(model(ids), labels).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    again, other = bench.build(system, 0), bench.build(system, 1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))


def test_who_is_told_what_to_take_is_told_where_documents_say_what_counts(bench):
    model = bench.build("told", 0)
    for task, more in (("easy", False), ("hard", True), ("overwriting", True)):
        batch = documents(bench, task)
        told, answers = model.loss(batch), bench.answer_loss(model(batch.input_ids), batch.labels)
        assert told > answers + 1 if more else torch.equal(told, answers)
        entry = bench.SYSTEMS["told"]
        assert entry.learns(task) == more and bench.SYSTEMS["keep"].learns(task)


def test_no_system_of_another_size_is_compared(bench, monkeypatch):
    monkeypatch.setitem(bench.SYSTEMS, "fifo", bench.SYSTEMS["fifo"]._replace(step=2000))
    with pytest.raises(RuntimeError, match=r"fifo has [\d,]+ parameters at width 2000: not within 5% of 156,673"):
        bench.build("fifo", 0)


def test_the_window_sees_this_segment_and_the_one_before(bench):
    model = bench.build("window", 0).eval()
    ids = documents(bench, segments=6, count=1).input_ids
    reach = bench.LAYERS * bench.L  # a layer looks back to the beginning of the segment before
    with torch.no_grad():
        before = model(ids)
        changed = ids.clone()
        changed[0, 40] = (changed[0, 40] + 1) % bench.V
        differs = (model(changed) != before).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == list(range(40, 32 + bench.L + reach))


def test_state_is_counted_in_bytes_for_each_text(bench):
    expected = {"keep": 16 * 64 * 4, "full": 2 * 2 * 64 * 64 * 4, "window": 2 * 2 * 16 * 64 * 4}
    for system, size in expected.items():
        reading = bench.read_documents(bench.build(system, 0), documents(bench))
        assert bench.state_bytes(reading.state, 3) == size


def test_reading_counts_the_right_answers(bench):
    class Oracle(torch.nn.Module):
        """Says at t what stands at t + 1, but for the first text, and carries on how many segments it has read."""

        def read(self, ids, state):
            logits = torch.nn.functional.one_hot(ids.roll(-1, 1), bench.V).float()
            logits[0] = 0.0
            return logits, (state or 0) + 1

    reading = bench.read_documents(Oracle(), documents(bench, segments=5, count=4))
    assert (reading.right, reading.questions, reading.state) == (0.75, 16, 5)
    with pytest.raises(ValueError, match="a segment begins with an answer"):
        labels = torch.full((1, 32), IGNORED)
        labels[0, 16] = 5
        bench.read_documents(Oracle(), Batch(torch.zeros(1, 32, dtype=torch.long), labels))


@pytest.mark.parametrize("task", ["easy", "hard", "hard_at_once", "overwriting", "copying", "mqar_mini"])
def test_lessons_come_in_the_same_order_whoever_is_faster(bench, task):
    def batches(times):
        lessons = bench.Lessons(task, seed=3)
        return [lessons.next(done) for done in times]

    slow, fast = batches([0.0, 0.2, 0.7, 0.9]), batches([0.0, 0.1, 0.2, 0.25, 0.29, 0.61, 0.7, 0.99])
    for one, other in [(slow[0], fast[0]), (slow[1], fast[1]), (slow[2], fast[5]), (slow[3], fast[6])]:
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
    assert not torch.equal(slow[0].input_ids, batches([0.5])[0].input_ids[:, : slow[0].input_ids.size(1)])
    assert all(b.input_ids.size(1) <= 64 and len(b.input_ids) == 64 for b in slow + fast)
    last = [batch.input_ids.size(1) for batch in batches([0.99] * 30)]
    assert max(last) == 64 and len(set(last)) > 2
    assert len(first := {batch.input_ids.size(1) for batch in batches([0.1] * 9)}) == 1 and max(first) <= min(last)


def test_a_case_is_run_once_and_reported(bench, monkeypatch, tmp_path, capsys):
    """The whole way, with a budget of a second, in this process, with short texts to read."""
    monkeypatch.setattr(bench.measurements, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "LENGTHS", {1: 8, 4: 8})
    monkeypatch.setattr(bench, "SEARCH", 0.1)
    monkeypatch.setattr(bench, "in_own_process", lambda function, *arguments: function(*arguments))
    bench.run(["keep", "full"], ["easy"], [0], [0.4])
    results = bench.load()
    keep, full = results["cases"]
    for case in (keep, full):
        assert case["steps"] > 1 and case["finite"] and case["seconds_to_99"] is None and 0.4 <= case["curve"][-1][0] < 2
        assert case["lengths"]["1"]["questions"] == 32 and 0 <= case["lengths"]["1"]["accuracy"] < 0.9
        assert case["rate"] in bench.RATES and case["tokens_per_second"] > 100
    assert keep["lengths"]["4"]["state_bytes"] == 4096
    assert full["lengths"]["4"] == {"none": "its positions end where the training texts do"}
    for found in results["searches"]:
        assert found["best"] == min(found["tried"], key=lambda tried: tried["loss"])["rate"] and found["seconds"] == 0.1
    before, _ = bench.load(), capsys.readouterr()
    monkeypatch.setattr(bench, "train", None)  # nothing is trained again
    bench.run(["keep", "full"], ["easy"], [0], [0.4])
    assert bench.load() == before and capsys.readouterr().out == ""
    page = bench.report(results)
    assert "| memgpt_lite, keep | 1 |" in page and "Not run yet: memgpt_lite, keep_softmax" in page
    assert "- No figure for GPT-2, full attention: its positions end where the training texts do (4×)." in page
    assert "Tasks that have not been run yet: Hard recall, Hard recall at once, Overwriting, Copying, MQAR mini." in page


def test_a_loss_that_is_not_finite_ends_the_training(bench):
    model = bench.build("keep", 0)
    with torch.no_grad():
        model.model.transformer.ln_f.bias.fill_(math.nan)
    result = bench.train(model, "easy", 0, 2e-3, 5.0)
    assert result.steps == 0 and result.loss == math.inf


def test_a_case_that_fails_is_said_and_not_kept(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.measurements, "FOLDER", tmp_path)

    def fails(*_):
        raise ImportError("no such package")

    monkeypatch.setattr(bench, "in_own_process", fails)
    bench.run(["titans"], ["easy"], [0], [0.4])
    assert capsys.readouterr().out == "titans, easy, seed 0, 0.4 s: ImportError: no such package\n"
    assert not list(tmp_path.iterdir())


def test_the_best_median_is_bold_and_a_seed_without_a_figure_is_counted(bench):
    column = bench.Column("99% after, s", lambda case: case["at"], ".0f", largest=False)
    groups = {"keep": [{"at": 30}, {"at": 10}, {"at": 20}], "gated": [{"at": 5}, {"at": None}], "full": [{"at": 40}, {"at": 40}]}
    assert bench.table(groups, [column])[2:] == [
        "| memgpt_lite, keep | 3 | **20 (10–30)** |",
        "| memgpt_lite, gated | 2 | 5, 1 of 2 |",
        "| GPT-2, full attention | 2 | 40 |",
    ]


def test_what_guessing_may_reach_is_not_called_the_best(bench):
    case = {"lengths": {"1": {"accuracy": 0.9}, "4096": {"accuracy": 0.125}}}
    worse = {"lengths": {"1": {"accuracy": 0.1}, "4096": {"accuracy": 0.0}}}
    columns = bench.accuracy_columns(16, {"1": 1024, "4096": 64})
    row = bench.table({"keep": [case], "full": [worse]}, [columns[0], columns[-1]])[2]
    assert row == "| memgpt_lite, keep | 1 | **90.0** | 12.5 |"
    told, keep = bench.table({"told": [case], "keep": [worse]}, [columns[0]._replace(least=0)])[2:]
    assert told == "| memgpt_lite, keep, told what to take | 1 | 90.0 |" and keep == "| memgpt_lite, keep | 1 | **10.0** |"
    assert bench.table({"keep": [case]}, [bench.EFFORT[2]._replace(value=lambda case: 7)])[2] == "| memgpt_lite, keep | 1 | 7 |"


def test_the_script_needs_no_published_package_to_say_what_it_can(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        bench.main()
    out = capsys.readouterr().out
    assert "block_recurrent" in out and "mqar_mini" in out
    assert not [name for name in sys.modules if name.endswith("_pytorch")]


def test_the_report_is_written_of_what_there_is(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.measurements, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "PAGE", tmp_path / "side_by_side.md")
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--report"])
    bench.main()
    page = bench.PAGE.read_text()
    assert (
        "Tasks that have not been run yet: Easy recall, Hard recall, Hard recall at once, Overwriting, Copying, MQAR mini."
        in page
    )


def test_the_tables_of_the_page_and_of_the_readme_are_those_of_the_measurements(bench):
    assert bench.PAGE.read_text("utf-8") == bench.report(bench.load())
    rows = (Path(__file__).parent.parent / "README.md").read_text("utf-8").split("## Beside others")[1].splitlines()
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in rows
        if row.startswith("| ") and "×" not in row.split("|")[2]
    ]
    names = {"memgpt_lite": "keep", **{entry.name: system for system, entry in bench.SYSTEMS.items()}}
    cases = [case for case in bench.load()["cases"] if case["task"] == "easy" and case["budget"] == 120]
    compared = [row for row in rows if row[0] in names]
    assert len(compared) == 7
    for name, *accuracy, state, trains in compared:
        found = [case for case in cases if case["system"] == names[name]]
        number, _, at = state.partition(" at ")
        size = bench.Column("", bench._at(int(at.rstrip("×") or 1), "state_bytes"), ",.0f")
        columns = [*bench.accuracy_columns(16, {}), size, bench.EFFORT[2]]
        assert [*accuracy, number, trains] == [bench.summary(found, column) for column in columns]
