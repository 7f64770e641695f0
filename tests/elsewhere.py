"""A pretended accelerator, for machines without one: a device whose tensors live in main memory, but do not mix with those of the CPU.

What a GPU refuses, it refuses too: an operation on tensors of two devices, with PyTorch's own exceptions (a number without dimensions,
and the index of a lookup, may be on the CPU), and NumPy's view of a tensor. So code that forgets to move a tensor fails here as it would there.

PyTorch lets Python stand in for a backend ("PrivateUse1") once and for all in a process: run this file in one of its own.
`python tests/elsewhere.py` does every job of `JOBS`, or those that are named, on the CPU and on this device, or on a real one
(`--device cuda`), and prints as JSON what differed or failed.
"""

import argparse
import contextlib
import json
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import memgpt_lite as ml
from memgpt_lite.applications import question_answering, semantic_matching, summarising, text_generation, translation
from memgpt_lite.checkpoints import load_tokenizer, recalling
from memgpt_lite.teaching import TaughtMemGPT, start_from


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: int) -> Tensor:  # its random numbers are those of the CPU
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: int) -> None:
        torch.set_rng_state(state)


CPU = torch.device("cpu")
aten = torch.ops.aten


class Elsewhere(torch.Tensor):
    """A tensor of the device: a shell around one in main memory."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device=torch.device("elsewhere", 0))

    def __init__(self, inner: Tensor):
        self.inner = inner

    def __repr__(self):
        return f"Elsewhere({self.inner})"

    def tolist(self) -> list:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def here(x):
    """What stands in main memory for a tensor of the device, or for the device."""
    return x.inner if isinstance(x, Elsewhere) else CPU if isinstance(x, torch.device) and x.type == "elsewhere" else x


def compute(operation, args: tuple, kwargs: dict):
    """Do an operation in main memory; its result is of the device that is asked for, or of that of the tensors."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    ours = {id(x.inner): x for x in tensors if isinstance(x, Elsewhere)}
    crosses = operation in (aten._to_copy.default, aten.copy_.default)
    lookup = operation in (aten.index.Tensor, aten.index_put_.default)
    if ours and not crosses:
        for x in (args[0], *args[2:3]) if lookup else tensors:
            if not isinstance(x, Elsewhere) and x.dim():
                raise RuntimeError(f"{operation}: tensors of two devices; the one of shape {tuple(x.shape)} is on the CPU")
    device = kwargs.get("device")
    stays = isinstance(args[0], Elsewhere) if operation is aten.copy_.default else bool(ours)
    away = stays if device is None else torch.device(device).type == "elsewhere"
    result = operation(*tree_map(here, args), **tree_map(here, kwargs))
    if not away:
        return result
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{operation}: the generator is on the CPU")
    return tree_map(lambda x: ours[id(x)] if id(x) in ours else Elsewhere(x) if isinstance(x, Tensor) else x, result)


class Device(TorchDispatchMode):
    """While it is on, operations that name the device make tensors of it."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    here(target).copy_(here(source))
    return target


def _empty(size, *args, **kwargs) -> Tensor:
    return Elsewhere(torch.empty(size, dtype=kwargs.get("dtype")))


def _empty_strided(size, stride, *args, **kwargs) -> Tensor:
    return Elsewhere(torch.empty_strided(size, stride, dtype=kwargs.get("dtype")))


def pretend() -> torch.library.Library:
    """Makes the device known to this process, as its accelerator: a real one does not work beside it. It lasts as long as what is returned."""
    _setup_privateuseone_for_python_backend("elsewhere", backend_module=Backend())
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that parameters which two modules share stay shared
    kernels = torch.library.Library("aten", "IMPL")  # what `torch.tensor(..., device=...)` calls where a mode does not see it
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    kernels.impl("empty.memory_format", _empty, "PrivateUse1")
    kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
    return kernels


# ---- jobs: each is done on both devices, and must give the same ----

TEXT = "Ada is in Cairo . Ben took the lamp . Ada went to Oslo ."
DOCSTRING = "Return the number of seconds that have passed since the program began to run, as a floating point number."


def small(device: torch.device, **settings) -> ml.MemGPT:
    """Its slots begin alike everywhere: those that are drawn are others on each device."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 70, "segment_length": 4, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_memory_slots": 3}
    return ml.MemGPT(ml.MemGPTConfig(**sizes | {"memory_init": "learned"} | settings)).to(device)


def pretrained(name: str, device: torch.device) -> ml.MemGPT:
    return ml.load_pretrained(name).to(device)


def random_state(device: torch.device) -> Tensor:
    """Where the device's random numbers are."""
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device.index or 0)


def document() -> Tensor:
    return ml.tasks.AssociativeRecall(3).batch(1, torch.Generator().manual_seed(0)).input_ids  # (1, T)


def stop(history: ml.History) -> None:
    if len(history) == 3:
        raise StopIteration


def trained(device: torch.device, rule: str = "keep", **settings):
    model = small(device, update_rule=rule, segment_length=16, **settings)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "steps": 4,
            "batch_size": 4,
            "progress": False,
            "checkpoint": Path(folder, "run.safetensors"),
            "checkpoint_every": 1,
        }
        with contextlib.suppress(StopIteration):
            ml.train(model, [ml.tasks.AssociativeRecall(2)], **options, on_step=stop)
        history = ml.train(model, [ml.tasks.AssociativeRecall(2)], **options, resume=True)
    return history.loss, history.gradient_norm, model.eval()(document().to(device)).logits


def taught(device: torch.device):
    recall = ml.load_pretrained("recall")
    model = TaughtMemGPT(recall.config)
    start_from(model, recall)
    return ml.train(model.to(device), [recalling.Told(ml.tasks.HardRecall(3))], steps=2, batch_size=4, progress=False).loss


def generated(device: torch.device):
    model = small(device).eval()
    memory = model(torch.arange(8, device=device)[None]).memory
    options = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": 69}
    prompts = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]], device=device)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=device).flip(1)
    return [
        model.generate(prompts[:1], memory=memory, do_sample=False, **options),
        model.generate(prompts.flip(1), attention_mask=mask, num_beams=3, **options),
        model.generate(prompts[:1], do_sample=True, top_k=1, num_return_sequences=2, **options),
    ]


def begun(device: torch.device):
    models = [small(device, memory_init=kind) for kind in ml.memory.INITIALISATIONS]
    assert all(model.init_memory(2).device.type == device.type for model in models)
    return [model.init_memory(2, generator=torch.Generator().manual_seed(0)) for model in models]


def streamed(device: torch.device):
    model = pretrained("recall", device)
    ids = document()
    steps = list(ml.stream(model, ids[0].tolist()))
    with tempfile.TemporaryDirectory() as folder:
        ml.save_memory(Path(folder, "memory"), steps[-1].memory, model)
        memory = ml.load_memory(Path(folder, "memory"), model).memory
    return steps[-1].logits, memory, ml.read_ahead(model, ids.to(device))


def looked_into(device: torch.device):
    model = pretrained("recall", device)
    ids = document()
    one, other = (ml.Reading.start(model, x, name=name).read_on() for name, x in (("one", ids), ("other", ids.flip(1))))
    one = ml.swap_slots(one.clear([0]).freeze([1]).scale([2], 0.5), 3, other, 4)[0]
    trace = ml.trace(model, ids, labels=ids)
    explorer = ml.MemoryExplorer(trace)
    return one.memory, one.shares, one.dependence(ids[:, -4:]), vars(trace), explorer.in_words()


def laboratory(device: torch.device):
    lab = ml.MemoryLab(pretrained("recall", device))
    lab.read_on("A", None)
    return lab.picture("A").alt


def measured(device: torch.device):
    return (
        ml.tasks.measure_recall(pretrained("recall", device), 4, num_documents=4),
        ml.tasks.measure_answers(pretrained("hard_recall", device), ml.tasks.HardRecall(4), num_documents=4),
    )


def novel_written(device: torch.device):
    tokenizer = load_tokenizer("text_generation_en")
    model = pretrained("text_generation_en", device)
    passages = text_generation.passages("en", tokenizer)[:2]
    gpt2 = text_generation.train_gpt2(0, window=16, parameters=20_000, steps=1, progress=False).model.to(device)
    chapter = [
        "It is a truth universally acknowledged, that a single man in possession of a good fortune must be in want of a wife."
    ]
    before = random_state(device)
    one, other, another = (text_generation.go_on(model, tokenizer, passages, 8, seed=seed) for seed in (0, 0, 1))
    return (
        (one == other, one == another, torch.equal(before, random_state(device))),
        [text_generation.bits_per_character(each, tokenizer, chapter) for each in (model, text_generation.cleared(model), gpt2)],
    )


def translated(device: torch.device):
    name = "translation_dates"
    translator = translation.Translator(pretrained(name, device), load_tokenizer(name))
    date = "Friday, March 3, 2023"
    return translation.translate_date(translator, date), translator.translate([date], "zh", cleared=True)


def matched(device: torch.device):
    name = "semantic_matching"
    matcher = semantic_matching.Matcher(pretrained(name, device), load_tokenizer(name))
    verses = ["And God said, Let there be light.", "God said that there should be light.", "He went down to the river."]
    shares, *_ = matcher.explain(*verses[:2])
    scores = semantic_matching.all_scores(matcher, verses[:1], verses[1:])
    batch = semantic_matching.VersePairs().batch(4, torch.Generator().manual_seed(0))
    one, other = (matcher.embed(part) for part in batch)
    return matcher.match(verses[0], verses[1:]), shares, scores, semantic_matching.info_nce(one @ other.T, 0.05)


def summarised(device: torch.device):
    summariser = summarising.Summariser(pretrained("summarising", device), load_tokenizer("summarising"))
    return summariser.summarise(DOCSTRING), summariser.write(summariser.read([DOCSTRING], last_segment=True))


def answered(device: torch.device):
    name = "question_answering"
    model, tokenizer = pretrained(name, device), load_tokenizer(name)
    documents = question_answering.make_documents(64, 2, facts=3)
    memory = question_answering.read(model, torch.tensor([each.input_ids for each in documents]))
    gpt2 = question_answering.train_gpt2(ml.load_pretrained(name), steps=1, progress=False).to(device)
    return (
        question_answering.answer(model, tokenizer, TEXT, "Where is Ada ?"),
        question_answering.ask_all(model, documents, memory),
        question_answering.ask_window(gpt2, documents),
    )


JOBS: dict[str, Callable] = {
    **{f"train, {rule}": lambda device, rule=rule: trained(device, rule) for rule in ml.configuration.UPDATE_RULES},
    "train, memory replayed": lambda device: trained(device, memory_replay=True),
    "train, taught": taught,
    "initialise": begun,
    "generate": generated,
    "stream": streamed,
    "look into": looked_into,
    "laboratory": laboratory,
    "measure": measured,
    "text generation": novel_written,
    "translation": translated,
    "semantic matching": matched,
    "summarising": summarised,
    "question answering": answered,
}


def numbers(x) -> Iterable:
    """All that stands in a result, one after the other, tensors and arrays as arrays."""
    if isinstance(x, Tensor):
        yield x.detach().cpu().numpy()
    elif isinstance(x, dict):
        yield from (y for each in x.values() for y in numbers(each))
    elif isinstance(x, (list, tuple, set)):
        yield from (y for each in x for y in numbers(each))
    elif is_dataclass(x):
        yield from (y for field in fields(x) for y in numbers(getattr(x, field.name)))
    else:
        yield x


def done(job: Callable, device: torch.device) -> list:
    torch.manual_seed(0)
    return list(numbers(job(device)))


def difference(job: Callable, device: torch.device) -> str:
    """What differs between the CPU and the device, or what failed on this one; nothing where all is well."""
    try:
        expected = done(job, CPU)
        with Device() if device.type == "elsewhere" else contextlib.nullcontext():
            found = done(job, device)
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected):
            if isinstance(one, (np.ndarray, float)):
                half = getattr(one, "dtype", None) == np.float16  # what a trace keeps; the next such number is a thousandth away
                np.testing.assert_allclose(one, other, rtol=1e-3 if half else 1e-4, atol=3e-5)
            else:
                assert one == other
    except Exception:
        return traceback.format_exc(limit=-6)
    return ""


def refuses(act: Callable) -> bool:
    try:
        act()
    except (RuntimeError, TypeError):
        return True
    return False


def refused(device: torch.device) -> dict[str, bool]:
    """Whether the device refuses what a GPU refuses."""
    with Device() if device.type == "elsewhere" else contextlib.nullcontext():
        ones = torch.ones(2, device=device)
        acts = {
            "adding": lambda: ones + torch.ones(2),
            "writing into": lambda: ones.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
            "drawing": lambda: torch.randn(2, device=device, generator=torch.Generator()),
            "NumPy": ones.numpy,
        }
        return {name: refuses(act) for name, act in acts.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", default=list(JOBS), help="names of JOBS (default: all)")
    parser.add_argument("--device", default="elsewhere", help="such as cuda (default: the pretended one)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels = pretend() if options.device == "elsewhere" else None
    device = torch.device(options.device)
    differences = {name: difference(JOBS[name], device) for name in options.jobs}
    print(json.dumps({"refused": refused(device), "jobs": differences}))
