"""What each of two processes does in test_distributed.py: one function for each job, called in both of them with its rank."""

import io
import os
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

import memgpt_lite as ml


def pack(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def unpack(content: bytes):
    return torch.load(io.BytesIO(content))


def serve(rank: int, connection: Connection, folder: str) -> None:
    """Do the jobs that come, (name, arguments), each in a process group of its own, and send back what they return."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", HF_HUB_OFFLINE="1")
    environment = dict(os.environ)
    number = 0
    while True:
        name, arguments = unpack(connection.recv_bytes())
        number += 1
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{number}", rank=rank, world_size=2)
        try:
            answer = {"result": globals()[name](rank, **arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        connection.send_bytes(pack(answer))
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.clear()
        os.environ.update(environment)


def half(batch: dict, rank: int) -> dict:
    """This process's texts out of the joined batch, cut off where all the rest is padding."""
    mine = {name: tensor.chunk(2)[rank] for name, tensor in batch.items()}
    length = int(mine["attention_mask"].any(0).nonzero().max()) + 1 if "attention_mask" in mine else None
    return {name: tensor[:, :length] if name != "memory" else tensor for name, tensor in mine.items()}


def gradients_of(model) -> dict:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def accelerated(rank: int, folder: str, batch: dict, options: dict, ddp: dict, steps: int = 1, count_all: bool = False):
    """Steps of gradient descent with Accelerate; with `count_all`, the loss is divided by all processes' labels, as the Trainer does.

    Returns each step's gradients.
    """
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(**ddp)])
    model = ml.MemGPT.from_pretrained(folder).train()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    mine, gradients = half(batch, rank), []
    for _ in range(steps):
        optimizer.zero_grad()
        if count_all:
            items = accelerator.reduce((mine["labels"][:, 1:] != -100).sum())
            loss = model(**mine, **options, num_items_in_batch=items).loss * accelerator.num_processes
        else:
            loss = model(**mine, **options).loss
        accelerator.backward(loss)
        gradients.append(gradients_of(model.module))
        optimizer.step()
    return gradients


def trained(rank: int, folder: str, rows: list, arguments: dict):
    """What Transformers' Trainer makes of a model: the parameters after training, and how many processes it saw."""
    model = ml.MemGPT.from_pretrained(folder)
    arguments = TrainingArguments(use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, **arguments)
    Trainer(model, arguments, train_dataset=rows).train()
    return {"parameters": {name: p.detach() for name, p in model.named_parameters()}, "processes": arguments.world_size}


def sharded(rank: int, folder: str, batch: dict, options: dict, steps: int, save_to: str, reentrant: bool | None = None):
    """Steps of gradient descent with FSDP2, wrapped where Accelerate would, and a checkpoint of the whole model."""
    model = ml.MemGPT.from_pretrained(folder).train()
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    mesh = init_device_mesh("cpu", (2,))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    wrapped = [module for module in model.modules() if fsdp2_prepare_auto_wrap_policy(plugin, model)(module)]
    for module in (*wrapped, model):
        fully_shard(module, mesh=mesh)
    held = sum(p.to_local().numel() for p in model.parameters())  # by this process
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mine, losses, gradients = half(batch, rank), [], None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**mine, **options).loss
        loss.backward()
        gradients = gradients or {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        optimizer.step()
        dist.all_reduce(loss.detach_())
        losses.append(loss.item() / 2)

    parameters = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        ml.MemGPT.from_pretrained(folder).save_pretrained(save_to, state_dict=parameters)
    with torch.no_grad():
        out = model.eval()(**batch)
    return {
        "losses": losses,
        "gradients": gradients,
        "logits": out.logits,
        "memory": out.memory,
        "wrapped": [type(module).__name__ for module in wrapped],
        "held": held,
        "files": sorted(path.name for path in Path(save_to).iterdir()) if rank == 0 else [],
    }
