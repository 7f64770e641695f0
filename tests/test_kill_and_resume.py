"""A killed and resumed run ends with the same bits: five kills. (Fifty: `kill_and_resume.py`.)"""

import os
import subprocess
import sys
from pathlib import Path

import kill_and_resume
import pytest
import torch
from safetensors.torch import save_file


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script copies its process, which Windows cannot")
def test_a_run_that_is_killed_five_times_and_resumed_ends_with_the_same_bits():
    # In a process of its own: a copy of this one, which has computed with PyTorch and may have threads, might hang.
    script = Path(kill_and_resume.__file__)
    result = subprocess.run([sys.executable, script, "--kills", "5"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("5 kills in ") and "\nPASS: " in result.stdout and "FAIL" not in result.stdout


def test_the_script_sees_every_difference(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    tensors = {"a": torch.tensor([1.0, -0.0, torch.nan]), "b": torch.arange(4), "c": torch.zeros(())}
    save_file(tensors, one, metadata={"history": "x", "stage": "1"})
    save_file(tensors, other, metadata={"stage": "1", "history": "x"})
    assert kill_and_resume.differences(one, other) == []  # NaN is the same bits too
    a = tensors["a"].clone()
    a[1] = 0.0
    changed = {"a": a, "b": tensors["b"].int(), "d": torch.zeros(())}
    save_file(changed, other, metadata={"history": "x", "stage": "2", "more": ""})
    assert kill_and_resume.differences(one, other) == ["more", "stage", "a", "b", "c", "d"]


@pytest.mark.parametrize(("different", "status", "verdict"), [([], 0, "PASS"), (["history", "random.torch"], 1, "FAIL")])
def test_the_script_says_what_it_found(monkeypatch, capsys, different, status, verdict):
    report = kill_and_resume.Report([(3, ""), (3, "half"), (7, "whole")], 1, different)
    monkeypatch.setattr(kill_and_resume, "kill_and_resume", lambda *_: report)
    assert kill_and_resume.main(["--kills", "3"]) == status
    said = capsys.readouterr().out
    assert "3 kills in 1 run(s)" in said and "3 (2 times), 7" in said and "2 of them while a checkpoint was being written" in said
    assert f"\n{verdict}" in said and all(name in said for name in different)
