"""For every exercise that asks for a function, one that is right and slow: loops and other ways than ours, as a learner might write it."""

import itertools
import math
import random

import torch

import memgpt_lite as ml


def decode(ids, piece_of, byte_of):
    numbers = []
    for i in ids:
        for letter in piece_of[i]:
            numbers.append(byte_of[letter])
    return bytearray(numbers).decode()


def unpad(batch):
    found = []
    for row in range(len(batch["input_ids"])):
        document, asked = [], 0
        for t in range(batch["input_ids"].size(1)):
            if batch["attention_mask"][row, t] == 1:
                document.append(batch["input_ids"][row, t].item())
            asked += batch["labels"][row, t].item() != -100
        found.append((document, asked))
    return found


def shift(labels, mask, segment_length):
    shifted = torch.full_like(labels, -100)
    for row in range(labels.size(0)):
        for t in range(labels.size(1) - 1):
            if mask[row, t]:
                shifted[row, t] = labels[row, t + 1]
    return shifted


def where_predicted(token, n, batch_size, window):
    for w, part in enumerate(ml.streams(list(range(n)), batch_size, window)):
        for row, labels in enumerate(part["shift_labels"].tolist()):
            if token in labels:
                return (w, row, labels.index(token))
    return "never"


def spread(memory):
    largest = torch.zeros(memory.size(0), dtype=memory.dtype)
    for b, slots in enumerate(memory):
        for one, two in itertools.product(slots, slots):
            largest[b] = max(largest[b], ((one - two) ** 2).sum().sqrt())
    return largest


def orthogonal(normal):
    q, r = torch.linalg.qr(normal.mT)  # columns at right angles
    signs = r.diagonal(dim1=-2, dim2=-1).sign()[
        :, None
    ]  # the first keeps its direction, and so do the others what is left of theirs
    return (q * signs).mT * math.sqrt(normal.size(-1))


def treats_alike(rule, memory, context_vectors):
    after = rule(memory, context_vectors).memory
    orders = itertools.permutations(range(memory.size(1)))
    return all(
        torch.allclose(rule(memory[:, list(order)], context_vectors).memory, after[:, list(order)], atol=1e-4)
        for order in itertools.islice(orders, 130)
    )


def attention(q, k, v, num_heads):
    (B, L), d = q.shape[:2], q.size(-1) // num_heads
    texts = []
    for b in range(B):
        rows = []
        for t in range(L):
            parts = []
            for h in range(num_heads):
                part = slice(h * d, (h + 1) * d)
                scores = torch.stack([q[b, t, part] @ k[b, u, part] / math.sqrt(d) for u in range(t + 1)])
                parts.append(sum(share * v[b, u, part] for u, share in enumerate(scores.softmax(0))))
            rows.append(torch.cat(parts))
        texts.append(torch.stack(rows))
    return torch.stack(texts)


def context(hidden, logits, E, W):
    texts = []
    for b in range(hidden.size(0)):
        rows = []
        for t in range(hidden.size(1)):
            weights = logits[b, t].exp() / logits[b, t].exp().sum()
            rows.append(hidden[b, t] + W @ sum(weight * E[i] for i, weight in enumerate(weights)))
        texts.append(torch.stack(rows))
    return torch.stack(texts)


def share_right(logits, labels):
    right = asked = 0
    for row in range(labels.size(0)):
        for t in range(1, labels.size(1)):
            if labels[row, t] != -100:
                asked += 1
                right += int(logits[row, t - 1].argmax() == labels[row, t])
    return right / asked


def without_read(model, block_number, ids):
    block = model.transformer.h[block_number]
    hook = block.crossattention.c_proj.register_forward_hook(lambda module, given, made: torch.zeros_like(made))
    reads, block.reads = block.reads, False
    logits = model(ids).logits.detach()
    block.reads = reads
    hook.remove()
    return logits


def sparsemax(scores):
    rows = []
    for z in scores.reshape(-1, scores.size(-1)):
        alive = list(range(len(z)))
        while True:
            threshold = (z[alive].sum() - 1) / len(alive)
            left = [i for i in alive if z[i] > threshold]
            if left == alive or not left:
                break
            alive = left
        rows.append(torch.stack([z[i] - threshold if i in alive else 0 * z[i] for i in range(len(z))]))
    return torch.stack(rows).reshape(scores.shape)


def update(memory, keep, q, k, v, mask):
    texts = []
    for b in range(memory.size(0)):
        slots = []
        for j in range(memory.size(1)):
            tokens = [t for t in range(v.size(1)) if mask[b, t]]
            scores = [keep[b, j, 0], *(q[b, j] @ k[b, t] / math.sqrt(q.size(-1)) for t in tokens)]
            shares = sparsemax(torch.stack(scores))
            slots.append(shares[0] * memory[b, j] + sum(share * v[b, t] for share, t in zip(shares[1:], tokens)))
        texts.append(torch.stack(slots))
    return torch.stack(texts)


def carry(shares, write):
    rows = []
    for before, now in zip(shares, write):
        rows.append(torch.stack([*(now[0] * share for share in before), *now[1:]]))
    return torch.stack(rows)


def softmax_backward(p, g):
    rows = []
    for share, gradient in zip(p.reshape(-1, p.size(-1)), g.reshape(-1, g.size(-1))):
        jacobian = torch.diag(share) - torch.outer(share, share)  # ∂p_i/∂z_j
        rows.append(jacobian.T @ gradient)
    return torch.stack(rows).reshape(p.shape)


def gate_backward(m, c, z, g):
    inputs = [x.detach().clone().requires_grad_() for x in (m, c, z)]
    a = inputs[2].sigmoid()
    return torch.autograd.grad(a * inputs[0] + (1 - a) * inputs[1], inputs, g)


def reached(S, k):
    found = []
    for s in range(S):
        if k >= S or s > S - k:
            found.append(s)
    return found


def replay(model, ids, labels):
    model(ids, labels=labels).loss.backward()  # the full graph, which is what replay saves
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def clip(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    if norm <= max_norm:
        return [g.clone() for g in gradients], norm
    return [g / norm * max_norm for g in gradients], norm


def not_yet_named(num_facts, num_places):
    total = 0.0
    for asked in range(num_facts):
        left = num_facts - asked
        total += 1 / left + (left - 1) / left / num_places
    return total / num_facts


def stages(accuracy, num_stages, promote_at, window):
    found, stage, recent = [], 0, []
    for value in accuracy:
        found.append(stage)
        recent.append(value)
        if len(recent) >= window and sum(recent[-window:]) / window >= promote_at and stage < num_stages - 1:
            stage, recent = stage + 1, []
    return found


def keep_only(memory, start, slots):
    return torch.stack([memory[:, j] if j in slots else start[:, j] for j in range(memory.size(1))], dim=1)


def smallest_set(num_slots, changes, most):
    sets = [[j for j in range(num_slots) if number >> j & 1] for number in range(1, 2**num_slots)]
    random.Random(0).shuffle(sets)
    for slots in sorted(sets, key=lambda slots: (len(slots), slots)):
        if len(slots) <= most and changes(slots):
            return slots
    return []


SLOW = {
    "1.1": decode, "1.2": unpad, "1.3": shift, "1.4": where_predicted, "2.1": spread, "2.2": orthogonal, "2.3": treats_alike,
    "3.1": attention, "3.2": context, "3.3": share_right, "3.4": without_read, "4.1": sparsemax, "4.2": update, "4.3": carry,
    "5.1": softmax_backward, "5.2": gate_backward, "5.3": reached, "5.4": replay, "6.1": clip, "6.2": not_yet_named,
    "6.3": stages, "7.1": keep_only, "7.2": smallest_set,
}  # fmt: skip
