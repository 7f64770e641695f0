"""The exercises of notebook 05, backward: softmax and a gate by hand, what a cut reaches, memory replay with random numbers."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..configuration import MemGPTConfig
from ..model import MemGPT
from .checking import Exercise, Mistake

# ---- 5.1 ----


def softmax_backward(p: Tensor, g: Tensor) -> Tensor:
    mean = (g * p).sum(-1, keepdim=True)  # (..., 1), weighted by the shares
    return p * (g - mean)


def shares_and_gradients(generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    yield torch.ones(1), torch.tensor([3.0])  # one alone: its share cannot move
    yield torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    yield torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0])  # as far as float32 can see, all to the first
    for shape, dtype in (((5,), torch.float64), ((3, 4), torch.float32), ((2, 3, 6), torch.float64)):
        z, g = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
        yield z.softmax(-1), g


def one_mean_for_all_rows(p: Tensor, g: Tensor) -> Tensor:
    return p * (g - (g * p).sum())


def gradient_in_place(p: Tensor, g: Tensor) -> Tensor:
    g -= (g * p).sum(-1, keepdim=True)
    return p * g


SOFTMAX_BACKWARD = Exercise(
    number="5.1",
    title="Backward through softmax",
    difficulty=1,
    minutes=5,
    solution=softmax_backward,
    cases=shares_and_gradients,
    mistakes=(
        Mistake(
            lambda p, g: p * (1 - p) * g,
            "this is the diagonal alone, i = j: a score moves the *other* shares too, by −pᵢpⱼ. Sum over all of them.",
        ),
        Mistake(
            lambda p, g: p * g, "nothing is subtracted: the −pⱼ of the bracket is missing, and the gradients do not sum to 0."
        ),
        Mistake(
            lambda p, g: g - g.mean(-1, keepdim=True),
            "this is the rule of sparsemax, with all scores in the support: softmax weighs by p, in the mean and outside it.",
        ),
        Mistake(lambda p, g: p * (g - g.mean(-1, keepdim=True)), "the mean that is subtracted must be weighted by p: Σ gᵢpᵢ."),
        Mistake(
            lambda p, g: g - (g * p).sum(-1, keepdim=True), "the mean is right, but the whole bracket must be multiplied by pⱼ."
        ),
        Mistake(
            lambda p, g: p * g - (p * g).sum(-1, keepdim=True),
            "pⱼ multiplies the whole bracket, the sum that is subtracted included.",
        ),
        Mistake(
            lambda p, g: p * ((g * p).sum(-1, keepdim=True) - g),
            "the sign is the wrong way round: a higher score makes its own share grow.",
        ),
        Mistake(one_mean_for_all_rows, "the sum runs over all rows together: every row has its own, .sum(-1, keepdim=True)."),
        Mistake(gradient_in_place, "the gradient that was passed in has changed: write g = g - …, not g -= …"),
    ),
    hints=(
        "The chain rule sums over all shares that score j moves: Σᵢ gᵢ ∂pᵢ/∂zⱼ. Put in ∂pᵢ/∂zⱼ, and take what has no i out of the sum.",
        "Σᵢ gᵢ pᵢ ([i=j] − pⱼ) = pⱼ (gⱼ − Σᵢ gᵢpᵢ). Sparsemax subtracts a mean over the support; softmax one that is weighted by p.",
        "`(g * p).sum(-1, keepdim=True)` is that mean, of each row.",
    ),
    notice="p is never exactly 0, so a score has no gradient only if its g is exactly the weighted mean. And a row's gradients sum to 0, as "
    "with sparsemax: raise all scores alike, and no share changes.",
)


# ---- 5.2 ----


def gate_backward(m: Tensor, c: Tensor, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a = torch.sigmoid(z)
    return a * g, (1 - a) * g, g * (m - c) * a * (1 - a)


def gates_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, ...]]:
    yield tuple(torch.tensor([x]) for x in (3.0, 1.0, 0.0, 1.0))  # a gate of one half
    yield tuple(torch.tensor([x], dtype=torch.float64) for x in (2.0, 2.0, 1.0, -1.0))  # old = new: the gate does not matter
    yield tuple(torch.tensor(x) for x in ([1.0, 1.0], [5.0, 5.0], [40.0, -40.0], [1.0, 2.0]))  # open, and closed, for good
    for shape, dtype in (((4,), torch.float32), ((3, 5), torch.float64), ((2, 3, 4), torch.float32)):
        yield tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(4))


def gate_at(point, slope):
    """A wrong version of the gate's gradient: `point` stands for m − c, `slope` for a (1 − a)."""

    def wrong(m, c, z, g):
        a = torch.sigmoid(z)
        return a * g, (1 - a) * g, g * point(m, c) * slope(a)

    return wrong


def old_and_new_exchanged(m, c, z, g):
    d_memory, d_new, d_gate = gate_backward(m, c, z, g)
    return d_new, d_memory, d_gate


def kept_whole(m, c, z, g):
    return g, *gate_backward(m, c, z, g)[1:]


def squashed_no_gate(m, c, z, g):
    return z * g, (1 - z) * g, g * (m - c)


GATE_BACKWARD = Exercise(
    number="5.2",
    title="Backward through a gate",
    difficulty=2,
    minutes=10,
    solution=gate_backward,
    cases=gates_of_all_kinds,
    mistakes=(
        Mistake(
            gate_at(lambda m, c: m - c, lambda a: 1),
            "that is ∂loss/∂a. One step is missing: from the gate a back to z, through the sigmoid, whose slope is a (1 − a).",
        ),
        Mistake(
            gate_at(lambda m, c: m - c, lambda a: torch.sigmoid(a) * (1 - torch.sigmoid(a))),
            "the sigmoid is taken twice: its slope at z is a (1 − a), and a is the sigmoid already.",
        ),
        Mistake(
            gate_at(lambda m, c: c - m, lambda a: a * (1 - a)),
            "the sign at the gate is wrong: when a grows, more of m comes in, and less of c.",
        ),
        Mistake(
            gate_at(lambda m, c: m, lambda a: a * (1 - a)),
            "the gate stands twice in the equation, before m *and*, as 1 − a, before c: both belong to its gradient.",
        ),
        Mistake(
            gate_at(lambda m, c: 1, lambda a: a * (1 - a)),
            "what the gate weighs is missing from its gradient: if m and c were equal, the gate could not matter at all.",
        ),
        Mistake(old_and_new_exchanged, "the gradients of m and c are exchanged: m entered with the factor a."),
        Mistake(kept_whole, "the gradient at m is the whole of g, but only the share a of m came in."),
        Mistake(squashed_no_gate, "z is taken for the gate: a = sigmoid(z), which lies between 0 and 1."),
    ),
    hints=(
        "Three inputs, three ways back. With which factor did m enter m′, and with which did c?",
        "The gate a multiplies m, and −a multiplies c: ∂loss/∂a = g·(m − c). Then through the sigmoid: da/dz = a (1 − a).",
        "`a = torch.sigmoid(z)`, and the three are `a * g`, `(1 - a) * g` and `g * (m - c) * a * (1 - a)`.",
    ),
    notice="The gradient at the gate has the factor a (1 − a): at most 1/4, nearly 0 where the gate is wide open or shut. And the factor m − c: where "
    "old and new are alike, the gate learns nothing. In a slot of the library z and c are computed from m as well, so all three come back to m.",
)


# ---- 5.3 ----


def reached(S: int, k: int) -> list[int]:
    return list(range(S)) if k >= S else list(range(S - k + 1, S))


def cuts_of_all_kinds(generator: Generator) -> Iterator[tuple[int, int]]:
    yield from ((1, 1), (2, 1), (2, 2), (3, 2), (3, 7), (5, 1), (7, 3))
    for _ in range(4):
        S, k = torch.randint(1, 20, (2,), generator=generator).tolist()
        yield S, k


REACHED = Exercise(
    number="5.3",
    title="What does a cut leave?",
    difficulty=1,
    minutes=5,
    solution=reached,
    cases=cuts_of_all_kinds,
    mistakes=(
        Mistake(
            lambda S, k: list(range(max(0, S - k), S)),
            "one too many: the memory that *enters* the last k segments is where the cut is made, and gets no gradient itself.",
        ),
        Mistake(
            lambda S, k: list(range(max(0, S - k + 1), S)),
            "nearly: with k = S there is no cut at all, since nothing comes before segment 0. So m_0 is reached too.",
        ),
        Mistake(lambda S, k: list(range(max(0, S - k - 1), S)), "two too many: k segments are read after the cut, not k + 1."),
        Mistake(
            lambda S, k: list(range(S)) if k >= S else list(range(S - k + 1, S + 1)),
            "m_S, the memory after the last segment, is read by nobody: the list ends with S − 1.",
        ),
        Mistake(
            lambda S, k: list(range(S)) if k >= S else list(range((S - 1) // k * k + 1, S)),
            "the groups are counted from the *end* of the text: the last one is always whole.",
        ),
        Mistake(
            lambda S, k: list(range(min(S, k))),
            "this is the beginning of the text: the loss is at its end, and so the gradient starts there.",
        ),
        Mistake(lambda S, k: list(range(S)), "this is the list without a cut: k plays no part."),
        Mistake(
            lambda S, k: reached(S, k)[::-1],
            "the list goes from the first segment to the last, not in the order in which the gradient arrives.",
        ),
    ),
    hints=(
        "The last group holds the segments S − k … S − 1. Which memories are handed on *inside* it?",
        "The memory that enters the group's first segment is cut off, unless that is segment 0, where there is nothing to cut.",
    ),
    notice="m_1, which segment 0 writes, is reached only if k is at least S. So a cut shorter than the distance from a fact to its question cannot "
    "teach the writing of that fact. In the library `ml.backward.is_cut` decides it, segment by segment, for every group.",
)


# ---- 5.4 ----


def replay_with_dropout(model: MemGPT, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
    L = model.config.segment_length
    moved = F.pad(labels[:, 1:], (0, 1), value=-100)  # (B, T): position t predicts token t + 1
    segments = list(zip(ids.split(L, dim=1), moved.split(L, dim=1)))  # S pairs of (B, L)
    memories, states = [model.init_memory(len(ids))], [torch.get_rng_state()]
    with torch.no_grad():
        for x, _ in segments[:-1]:
            memories.append(model(x, memory=memories[-1]).memory)
            states.append(torch.get_rng_state())  # the state before the next segment's first reading
    g = torch.zeros_like(memories[0])  # nothing reads the memory after the last segment
    for (x, y), m, state in zip(reversed(segments), reversed(memories), reversed(states)):
        torch.set_rng_state(state)
        m = m.detach().requires_grad_()
        out = model(x, memory=m, shift_labels=y, num_items_in_batch=(moved != -100).sum())
        torch.autograd.backward([out.loss, out.memory], [None, g])
        g = m.grad  # ∂loss/∂m_s, for the segment before
    memories[0].backward(g)  # on into the learned initial slots
    return {name: parameter.grad for name, parameter in model.named_parameters()}


class WholeGraph(RuntimeError):
    """Raised by a model that is to read segment by segment, each with a graph of its own."""


class SegmentBySegment(MemGPT):
    """A MemGPT that refuses a graph over several segments, which is what replay does without."""

    def forward(self, input_ids: Tensor, memory: Tensor | None = None, *others, **by_name):
        if torch.is_grad_enabled() and (input_ids.size(1) > self.config.segment_length or self._has_written(memory)):
            raise WholeGraph("with gradients on, read one segment at a time, from a memory without the graph of another")
        return super().forward(input_ids, memory, *others, **by_name)

    def _has_written(self, memory: Tensor | None) -> bool:
        """Whether a memory brings the graph of an earlier segment along, in which the update rule's parameters take part."""
        rule, seen = set(self.update_rule.parameters()), set()
        left = [memory.grad_fn] if memory is not None else []
        while left:
            node = left.pop()
            if node is not None and node not in seen:
                seen.add(node)
                left += [before for before, _ in node.next_functions]
        return any(getattr(node, "variable", None) in rule for node in seen)


def texts_and_models(generator: Generator) -> Iterator[tuple[MemGPT, Tensor, Tensor]]:
    config = MemGPTConfig(
        vocab_size=7, segment_length=3, n_embd=8, n_layer=1, n_head=1, num_memory_slots=3, memory_init="learned", resid_pdrop=0.3
    )
    for B, S in ((1, 2), (1, 3), (2, 3)):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(1000, (), generator=generator)))  # for the weights
            model = SegmentBySegment(config).double().train()
        ids = torch.randint(7, (B, S * 3), generator=generator)
        labels = ids.clone()
        labels[:, :2] = -100  # the segments differ in how many labels they have
        yield model, ids, labels


def replay_wrongly(own_state=True, late=False, hand_on=True, to_initial=True, whole_count=True, border=True):
    """A wrong version of the replay: the arguments name the steps that are left out, done wrongly or done too late."""

    def wrong(model, ids, labels):
        L = model.config.segment_length
        moved = F.pad(labels[:, 1:], (0, 1), value=-100)
        segments = list(zip(ids.split(L, dim=1), moved.split(L, dim=1), labels.split(L, dim=1)))
        memories, states = [model.init_memory(len(ids))], [torch.get_rng_state()]
        with torch.no_grad():
            for x, *_ in segments[:-1]:
                memories.append(model(x, memory=memories[-1]).memory)
                states.append(torch.get_rng_state())
        states = [*states[1:], states[-1]] if late else states
        g = torch.zeros_like(memories[0])
        for (x, y, inside), m, state in zip(reversed(segments), reversed(memories), reversed(states)):
            if own_state:
                torch.set_rng_state(state if own_state != "first" else states[0])
            m = m.detach().requires_grad_()
            asked = {"shift_labels": y} if border else {"labels": inside}
            count = {"num_items_in_batch": (moved != -100).sum()} if whole_count else {}
            out = model(x, memory=m, **asked, **count)
            torch.autograd.backward([out.loss, out.memory], [None, g])
            g = m.grad if hand_on else g
        if to_initial:
            memories[0].backward(g)
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    return wrong


def without_replay(model, ids, labels):
    model(ids, labels=labels).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


REPLAY = Exercise(
    number="5.4",
    title="The same reading again",
    difficulty=3,
    minutes=20,
    solution=replay_with_dropout,
    cases=texts_and_models,
    mistakes=(
        Mistake(
            without_replay,
            "this is back-propagation through the graph of several segments, which replay does without: read each segment first under torch.no_grad(), "
            "and a second time from m.detach(), when its gradient is due.",
        ),
        Mistake(
            replay_wrongly(own_state=False),
            "the second reading draws afresh: keep torch.get_rng_state() before each first reading, and set it before the second.",
        ),
        Mistake(
            replay_wrongly(late=True),
            "the states are one segment off: what is needed is the state *before* a segment was read first, the initial one for segment 0.",
        ),
        Mistake(
            replay_wrongly(own_state="first"),
            "every segment begins with the state of the first one: each drew other numbers, so each needs its own state.",
        ),
        Mistake(
            replay_wrongly(hand_on=False),
            "no gradient goes from a segment to the one before: set g to m.grad, the gradient at the memory that entered.",
        ),
        Mistake(
            replay_wrongly(to_initial=False),
            "the learned initial slots get nothing: the last g has to go on into memories[0], which was not detached.",
        ),
        Mistake(
            replay_wrongly(whole_count=False),
            "each segment's loss is divided by its own number of labels: pass num_items_in_batch, that of the whole text.",
        ),
        Mistake(
            replay_wrongly(border=False),
            "the labels are moved inside each segment, so no position is asked for a segment's first token: move them before the text is cut.",
        ),
    ),
    hints=(
        "When do you need the state? Whenever a segment is about to be read for the first time. Keep the states in a list, like the memories.",
        "One state for each memory: `states = [torch.get_rng_state()]` beside `memories`, and one more in the loop, after each segment, for the next.",
        "On the way back: `for (x, y), m, state in zip(reversed(segments), reversed(memories), reversed(states))`, and as the first line "
        "`torch.set_rng_state(state)`.",
    ),
    notice="Three lines are new: the list of states, its `append`, and `set_rng_state`. `memory_replay=True` does this for you. "
    "The state is a few kilobytes a segment, next to nothing beside the graph.",
    points=3,
)


# ---- 5.5 ----

TAUGHT = Exercise(
    number="5.5",
    title="Who teaches segment 10? (a prediction)",
    difficulty=2,
    minutes=5,
    solution=1,
    mistakes=(
        Mistake(
            21, "these are all segments after it, 11 to 31, as if nothing were cut. With k = 4 cuts are before 28, 24, 20, …"
        ),
        Mistake(4, "k is the length of a group, not the number of segments that follow. In which group is segment 10?"),
        Mistake(
            3,
            "that would be so if segment 10 were the first of its group. The groups are counted from the end: where does its group begin?",
        ),
        Mistake(
            2,
            "with two you count segment 10's own loss: segment 10 is predicted *before* it writes, so its writing cannot help there.",
        ),
        Mistake(0, "not none: segment 10 is not the last of its group. Count the groups of 4 from the end, 28–31, 24–27, …"),
    ),
    hints=(
        "Groups of four, counted from the end: 28–31, 24–27, and so on. Which holds segment 10, and which segments come after it there?",
        "A segment reads first and writes afterwards. What segment 10 writes can help the segments after it, not itself.",
    ),
    notice="Segment 10 is in the group 8–11, and segment 11 alone comes after it there. On average a write is taught by (k − 1)/2 = 1.5 segments: a cut "
    "is not a horizon of k segments for every write. What the last segment of a group writes is taught by none.",
    points=1,
)

EXERCISES = [SOFTMAX_BACKWARD, GATE_BACKWARD, REACHED, REPLAY, TAUGHT]
