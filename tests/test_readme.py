"""What the README shows is run, as it stands there."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
from transformers import GPT2Config, GPT2LMHeadModel

import memgpt_lite as ml

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_every_example_runs(tmp_path, monkeypatch):
    """In the order in which they stand, in a folder with a small GPT-2 of the name "gpt2" and a book."""
    text = ml.data.load_text("pride_and_prejudice.txt")
    tokenizer = ml.train_tokenizer(text[:20_000], vocab_size=300)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=1, n_head=2))
    gpt2.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "book.txt").write_text(text[:6_000], "utf-8")
    monkeypatch.chdir(tmp_path)

    names = {}
    for block in BLOCKS:
        exec(block, names)
    plt.close("all")
    assert len(BLOCKS) == 5
    assert len(names["words"]) == 64
    assert names["answer"].sequences.shape[1] > 200
    assert names["answer"].memory.shape == (1, 16, 16)
    assert names["trainer"].state.global_step == 2
    assert names["saved"].notes["tokens_read"] == names["segment"].tokens_read // 1_280 * 1_280 > 0
    trained = {name for name, parameter in names["model"].named_parameters() if parameter.requires_grad}
    assert trained
    assert not any("wte" in name or "mlp" in name for name in trained)
