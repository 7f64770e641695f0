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
    block.reads = False
    logits = model(ids).logits.detach()
    block.reads = True
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
    L = model.config.segment_length
    following = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    asked = (following != -100).sum()

    def from_segment(s, memory):
        """∂loss/∂memory of the memory before segment s; the parameters collect theirs."""
        if s * L >= ids.size(1):
            return torch.zeros_like(memory)
        part, state = slice(s * L, (s + 1) * L), torch.get_rng_state()
        with torch.no_grad():
            after = model(ids[:, part], memory=memory).memory
        later = from_segment(s + 1, after)
        torch.set_rng_state(state)
        entered = memory.detach().requires_grad_()
        again = model(ids[:, part], memory=entered, shift_labels=following[:, part], num_items_in_batch=asked)
        (again.loss + (again.memory * later).sum()).backward()
        return entered.grad

    start = model.init_memory(len(ids))
    start.backward(from_segment(0, start.detach()))
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


def two_segments(source, target, start, end, length, pad):
    input_ids, labels = [], []
    for t in range(2 * length):
        asked = False
        if t < length:
            token = source[t] if t < len(source) else pad
        elif t == length:
            token = start
        elif t - length <= len(target):
            token, asked = target[t - length - 1], True
        else:
            asked = t - length == len(target) + 1
            token = end if asked else pad
        input_ids.append(token)
        labels.append(token if asked else -100)
    return input_ids, labels


def alignment(read, shares):
    heads, positions, num_slots = read.shape
    rows = []
    for t in range(positions):
        row = torch.zeros(shares.size(1), dtype=shares.dtype)
        for h in range(heads):
            for m in range(num_slots):
                row = row + read[h, t, m] * shares[m] / heads
        rows.append(row)
    return torch.stack(rows)


def character_f(written, wanted, n, beta=2.0):
    ours, theirs = ([c for c in text if c != " "] for text in (written, wanted))
    ours, theirs = (["".join(text[i : i + n]) for i in range(max(0, len(text) - n + 1))] for text in (ours, theirs))
    left, common = list(theirs), 0
    for gram in ours:
        if gram in left:
            left.remove(gram)
            common += 1
    if not common:
        return 0.0
    # F is the weighted harmonic mean: written with the numbers of hits and misses
    return (1 + beta**2) * common / (beta**2 * len(theirs) + len(ours))


def info_nce(scores, temperature):
    N, total = len(scores), 0.0
    for i in range(N):
        for line in (scores[i], scores[:, i]):
            weights = (line / temperature).exp()
            total = total - (weights[i] / weights.sum()).log()
    return total / (2 * N)


def mean_reciprocal_rank(scores, partner):
    total = 0.0
    for row, own in zip(scores.tolist(), partner.tolist()):
        behind = sorted(range(len(row)), key=lambda c: (-row[c], c == own))  # of equal scores, the partner's last
        total += 1 / (1 + behind.index(own))
    return total / len(scores)


def by_pairs(P, values, Q, others):
    lengths = 1.0
    for shares, vectors in ((P, values), (Q, others)):
        slots = [sum(share * v for share, v in zip(row, vectors)) for row in shares]
        lengths = lengths * sum((slot**2).sum() for slot in slots).sqrt()
    rows = []
    for t in range(len(values)):
        row = [sum(P[j, t] * Q[j, u] for j in range(len(P))) * (values[t] @ others[u]) for u in range(len(others))]
        rows.append(torch.stack(row) / lengths)
    return torch.stack(rows)


def bits_of_a_text(logits, input_ids, lengths):
    bits, characters = 0.0, 0
    for t in range(len(input_ids) - 1):
        token = input_ids[t + 1]
        exponentials = (logits[t] - logits[t].max()).exp()
        bits = bits - (exponentials[token] / exponentials.sum()).log2()
        characters += lengths[token].item()
    return bits / characters


def last_vectors(memory, context_vectors, counts):
    rows = []
    for b in range(len(memory)):
        queue = list(memory[b])
        for t in range(counts[b].item()):
            queue.pop(0)
            queue.append(context_vectors[b, t])
        rows.append(torch.stack(queue))
    return torch.stack(rows)


def back_and_by_chance(texts, given):
    back, chance = 0, 0.0
    for i, name in enumerate(given):
        back += texts[i].find(name) >= 0
        others = [j for j in range(len(texts)) if given[j] != name]
        chance += len([j for j in others if texts[j].find(name) >= 0]) / len(others)
    return back / len(texts), chance / len(texts)


def rouge_l(written, wanted):
    def longest(one, two):
        """Of all ways to leave words out of the shorter one, that which keeps most."""
        one, two = sorted((one, two), key=len)
        for size in range(len(one), 0, -1):
            for kept in itertools.combinations(one, size):
                rest = iter(two)
                if all(word in rest for word in kept):
                    return size
        return 0

    common = longest(written, wanted)
    if not common:
        return 0.0
    return 1 / ((len(written) / common + len(wanted) / common) / 2)  # the harmonic mean of precision and recall


def hold_out(groups, least):
    out, rest = [], list(range(len(groups)))
    while len(out) < least:
        first = rest[0]
        out += [i for i in rest if groups[i] == groups[first]]
        rest = [i for i in rest if groups[i] != groups[first]]
    return sorted(out), rest


def lead(body, summaries):
    lengths = sorted(len(summary.split()) for summary in summaries)
    low, high = lengths[(len(lengths) - 1) // 2], lengths[len(lengths) // 2]
    words = []
    for word in body.split():
        if len(words) == (low + high) // 2:
            break
        words.append(word)
    return " ".join(words)


def whole_sentences(pieces, segment_length, pad, short):
    segments = [[]]  # the last one is at hand

    def put(token):
        if len(segments[-1]) == segment_length:
            segments.append([])
        segments[-1].append(token)

    for piece in pieces:
        room = segment_length - len(segments[-1])
        begun = 0 < len(segments[-1]) < segment_length
        if begun and room < len(piece) <= short:
            while len(segments[-1]) < segment_length:
                put(pad)
        for token in piece:
            put(token)
    return [token for segment in segments for token in segment]


def share_in_each_band(right, depth, bands):
    shares = []
    for band in range(bands):
        hits = []
        for one, at in zip(right.tolist(), depth):
            here = 0
            while here + 1 < bands and at * bands >= here + 1:
                here += 1
            if here == band:
                hits.append(float(one))
        shares.append(torch.tensor(sum(hits) / len(hits)) if hits else torch.tensor(float("nan")))
    return torch.stack(shares)


def last_word(statements):
    found = {}
    for who in {key for key, _ in statements}:
        places = [place for place, (key, _) in enumerate(statements) if key == who]
        found[who] = (statements[max(places)][1], max(places))
    return found


def cost_of_a_memory(slots, width, length):
    products = 0
    for _ in range(slots):
        products += width * width  # its query
        products += length * width  # its scores
        products += length * width  # its mixture
    for _ in range(length):
        products += width * width + width * width  # a token's key and value
    return 4 * sum(width for _ in range(slots)), products


def first_that_reaches(facts, target, draws, guess):
    for slots in range(1, 10_000):
        missed = math.exp(draws * slots * math.log(1 - 1 / facts)) if facts > 1 else 0.0
        if 1 - missed + missed * guess >= target:
            return slots


def holders(shares):
    counts = []
    for column in shares.T:
        total = float(sum(column))
        counts.append(1 / sum((float(p) / total) ** 2 for p in column) if total else 0.0)
    return torch.tensor(counts, dtype=shares.dtype)


def highest_error_rate(errors, questions, confidence):
    def so_few(rate):  # one question after the other: the chances of 0, 1, … errors so far, and of more
        chances = [1.0] + [0.0] * (errors + 1)
        for _ in range(questions):
            more = chances[-1] + chances[-2] * rate
            chances = [chance * (1 - rate) + before * rate for before, chance in zip([0.0, *chances], chances)]
            chances[-1] = more
        return sum(chances[:-1])

    rate, step = 0.0, 0.5
    while step > 1e-9:
        if so_few(min(1.0, rate + step)) > 1 - confidence:
            rate += step
        step /= 2
    return min(1.0, rate)


def segment_after_segment(read, segments, memory, ahead):
    calls, until, known = 0, 0, None
    for s in range(len(segments)):
        if s == until:  # nothing is known of this one yet, or not rightly
            known, start, calls = read(segments[s : s + ahead], memory), s, calls + 1
            until = s + len(known)
        after = known[s - start]
        if not torch.equal(after, memory):
            memory, until = after, s + 1
    return memory, calls


def every_write(write_attention):
    segments, slots, columns = write_attention.shape
    found = []
    for s in range(segments):
        for j in range(slots):
            row = write_attention[s, j].tolist()
            if row[0] < 1:
                strongest = max(range(1, columns), key=row.__getitem__)
                found.append((s, j, s * (columns - 1) + strongest - 1))
    return found


def erased_and_added(memory, address, erase, add):
    rows = []
    for j in range(len(memory)):
        kept = torch.stack([memory[j, d] * (1 - address[j] * erase[d]) for d in range(len(erase))])
        rows.append(kept + address[j] * add)
    return torch.stack(rows)


def corrected(memory, key, value, step):
    says = sum(key[j] * memory[j] for j in range(len(key)))
    return torch.stack([memory[j] + step * key[j] * (value - says) for j in range(len(key))])


def until_half(differences):
    points = torch.stack([torch.arange(len(differences)).double(), torch.ones(len(differences)).double()], dim=1)
    slope = torch.linalg.lstsq(points, differences.double().log()[:, None]).solution[0, 0].item()
    return math.log(0.5) / slope if slope < -1e-12 else math.inf


SLOW = {
    "1.1": decode, "1.2": unpad, "1.3": shift, "1.4": where_predicted, "2.1": spread, "2.2": orthogonal, "2.3": treats_alike,
    "3.1": attention, "3.2": context, "3.3": share_right, "3.4": without_read, "4.1": sparsemax, "4.2": update, "4.3": carry,
    "5.1": softmax_backward, "5.2": gate_backward, "5.3": reached, "5.4": replay, "6.1": clip, "6.2": not_yet_named,
    "6.3": stages, "7.1": keep_only, "7.2": smallest_set, "8.1": bits_of_a_text, "8.2": last_vectors,
    "8.3": back_and_by_chance, "9.1": two_segments, "9.2": alignment, "9.3": character_f,
    "10.1": info_nce, "10.2": mean_reciprocal_rank, "10.3": by_pairs,
    "11.1": rouge_l, "11.2": hold_out, "11.3": lead,
    "12.1": whole_sentences, "12.2": share_in_each_band, "12.3": last_word,
    "13.1": highest_error_rate, "13.2": segment_after_segment, "13.3": every_write,
    "14.1": cost_of_a_memory, "14.2": first_that_reaches, "14.3": holders,
    "15.1": erased_and_added, "15.2": corrected, "15.3": until_half,
}  # fmt: skip
