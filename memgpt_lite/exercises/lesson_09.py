"""The exercises of notebook 09, translation: one document of two segments, an alignment through the slots, a score of characters."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ..applications.translation import alignment
from .checking import Exercise, Mistake

# ---- 9.1 ----

IGNORED = -100


def two_segments(
    source: list[int], target: list[int], start: int, end: int, length: int, pad: int
) -> tuple[list[int], list[int]]:
    first = source + [pad] * (length - len(source))
    answer = [*target, end]
    second = [start, *answer]
    rest = length - len(second)
    input_ids = first + second + [pad] * rest
    labels = [IGNORED] * (length + 1) + answer + [IGNORED] * rest
    return input_ids, labels


def pairs_of_all_kinds(generator: Generator) -> Iterator[tuple]:
    """Token numbers are 3 or more; pad, start and end are below 3. Some segments are full, and one pad is not 0."""

    def draw(n: int) -> list[int]:
        return torch.randint(3, 90, (n,), generator=generator).tolist()

    for source, target, length, pad in ((2, 1, 4, 0), (4, 2, 4, 0), (1, 6, 8, 0), (5, 3, 8, 2), (7, 5, 9, 0), (3, 0, 5, 0)):
        start, end = (1, 0) if pad == 2 else (1, 2)
        yield draw(source), draw(target), start, end, length, pad


def _with_labels(change):
    """two_segments with other labels: change gets input_ids, labels and the lengths."""

    def wrong(source, target, start, end, length, pad):
        input_ids, labels = two_segments(source, target, start, end, length, pad)
        return input_ids, change(input_ids, labels, len(source), len(target), length)

    return wrong


def _joined(source, target, start, end, length, pad):
    document = [*source, start, *target, end]
    labels = [IGNORED] * (len(source) + 1) + [*target, end]
    rest = 2 * length - len(document)
    return document + [pad] * rest, labels + [IGNORED] * rest


def _padded_in_front(source, target, start, end, length, pad):
    input_ids, labels = two_segments(source, target, start, end, length, pad)
    return [pad] * (length - len(source)) + source + input_ids[length:], labels


def _without_end(source, target, start, end, length, pad):
    input_ids, labels = two_segments(source, target, start, end, length, pad)
    at = length + 1 + len(target)
    return [*input_ids[:at], pad, *input_ids[at + 1 :]], [*labels[:at], IGNORED, *labels[at + 1 :]]


def _without_start(source, target, start, end, length, pad):
    input_ids, labels = two_segments(source, target, start, end, length, pad)
    return input_ids[:length] + input_ids[length + 1 :] + [pad], labels[:length] + labels[length + 1 :] + [IGNORED]


TWO_SEGMENTS = Exercise(
    number="9.1",
    title="A pair as one document",
    difficulty=1,
    minutes=10,
    solution=two_segments,
    cases=pairs_of_all_kinds,
    mistakes=(
        Mistake(
            _joined,
            "the target begins in the source's own segment, and can look at the source there: pad the source to a whole segment first.",
        ),
        Mistake(
            _with_labels(lambda ids, labels, n, m, length: ids[:n] + labels[n:]),
            "the source is asked for too: the model would learn to continue sources, which nobody asks of it.",
        ),
        Mistake(
            _with_labels(lambda ids, labels, n, m, length: [*labels[:length], ids[length], *labels[length + 1 :]]),
            "the start token is asked for: it says in which language to write, and nothing before it tells which.",
        ),
        Mistake(
            _with_labels(lambda ids, labels, n, m, length: [*labels[: length + 1 + m], IGNORED, *labels[length + 2 + m :]]),
            "the end is not asked for: a model that never learned to end writes on to the end of the segment.",
        ),
        Mistake(_without_end, "the end token is missing: nothing tells the model, or you, that the translation is complete."),
        Mistake(_without_start, "the start token is missing: nothing says in which language to write."),
        Mistake(
            _with_labels(lambda ids, labels, n, m, length: [*labels[1:], IGNORED]),
            "the labels are one place early. `MemGPT` shifts them itself: a token is its own label, at its own place.",
        ),
        Mistake(
            _with_labels(lambda ids, labels, n, m, length: [*labels[: length + 2 + m], *ids[length + 2 + m :]]),
            "padding is asked for: after the end there is nothing to learn, so the labels there are −100.",
        ),
        Mistake(
            _padded_in_front,
            "the source is padded in front, so it begins in the middle of its segment: padding goes after it.",
        ),
    ),
    hints=(
        "Build the two segments one after the other, and give each its padding.",
        "First segment: the source and padding, all labels −100. Second: start, target, end, padding.",
        "Labels of the second segment: −100 for start, then the target and the end as they are, −100 for padding.",
    ),
    notice="Nothing here knows about translation. A document is two segments, and what is asked in the second can only be answered from the memory, "
    "since the first is out of sight by then.",
)


# ---- 9.2 ----


def looks_and_memories(generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Read attention (H, T, M) and shares (M, 1 + N); the numbers of heads, positions, slots and tokens differ."""
    for H, T, M, N, dtype in (
        (1, 1, 2, 1, torch.float32), (2, 1, 3, 2, torch.float32), (2, 3, 5, 4, torch.float32), (4, 6, 3, 2, torch.float64), (3, 2, 4, 6, torch.float32),
    ):  # fmt: skip
        read = torch.randn(H, T, M, generator=generator, dtype=dtype).mul(2).softmax(-1)
        shares = torch.randn(M, 1 + N, generator=generator, dtype=dtype).mul(2).softmax(-1)
        yield read, shares


def _renormalised(read, shares):
    found = alignment(read, shares)[:, 1:]
    return found / found.sum(-1, keepdim=True)


ALIGNMENT = Exercise(
    number="9.2",
    title="From target to source, through the slots",
    difficulty=2,
    minutes=10,
    solution=alignment,
    cases=looks_and_memories,
    mistakes=(
        Mistake(
            lambda read, shares: read.sum(0) @ shares,
            "the heads are added, so a row sums to the number of heads: take the mean of the heads.",
        ),
        Mistake(
            lambda read, shares: read.amax(0) @ shares, "the strongest head is taken at each place: rows no longer sum to 1."
        ),
        Mistake(lambda read, shares: read[0] @ shares, "only the first head is looked at: take the mean of all."),
        Mistake(
            lambda read, shares: alignment(read, shares)[:, 1:],
            "the first column, the share of the initial slots, is gone: keep it, or a row leaves out a part of what was read.",
        ),
        Mistake(_renormalised, "the initial slots are left out and the rest is scaled up: this claims more than was read."),
        Mistake(
            lambda read, shares: alignment(read, shares).mT,
            "rows and columns are exchanged: there is a row for each position that reads.",
        ),
        Mistake(
            lambda read, shares: alignment(read, shares).softmax(-1),
            "there is one softmax too many: both factors are shares already, and so is their product.",
        ),
        Mistake(
            lambda read, shares: shares[read.mean(0).argmax(-1)],
            "only the slot that is read most counts in yours: weigh all slots by how much is read from each.",
        ),
    ),
    hints=(
        "How much of what is read comes from slot 3, and how much of slot 3 is the fifth token? Multiply, and add over the slots.",
        "First the mean over the heads, (T, M). Then a sum over M of two factors: which operation is that?",
        "A matrix product: `read.mean(0) @ shares`.",
    ),
    notice="Both factors are rows of shares, so the product's rows sum to 1 again. The product is exact about what stands in the slots, "
    "but it does not say what the model then makes of it. Notebook 07 asks this, by clearing slots.",
)


# ---- 9.3 ----


def character_f(written: str, wanted: str, n: int, beta: float = 2.0) -> float:
    def grams(text: str) -> Counter:
        text = text.replace(" ", "")
        return Counter(text[i : i + n] for i in range(len(text) - n + 1))

    ours, theirs = grams(written), grams(wanted)
    common = (ours & theirs).total()
    if common == 0:
        return 0.0
    precision, recall = common / ours.total(), common / theirs.total()
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def texts_of_all_kinds(generator: Generator) -> Iterator[tuple[str, str, int] | tuple[str, str, int, float]]:
    yield "a", "a", 1
    yield "", "a", 1
    yield "ab", "cd", 1
    yield "aaaa", "ab", 1  # counted as often as it is wanted, no more
    yield "abc", "abcabc", 2
    yield "a b c d", "ab cd", 2  # spaces are not counted
    yield "ab", "abcdef", 3  # shorter than n
    yield "2026年9月30日", "2026年9月3日星期三", 2
    for _ in range(4):
        letters = torch.randint(3, (2, 12), generator=generator).tolist()
        written, wanted = ("".join("ab c"[i] for i in row) for row in letters)
        yield written + "ab", wanted + "abba", int(torch.randint(1, 4, (1,), generator=generator))
    yield "ab", "abc", 1, 1.0
    yield "abcd", "ab", 2, 0.5


def _grams(text: str, n: int) -> list[str]:
    text = text.replace(" ", "")
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def _f(common: float, ours: int, theirs: int, beta: float) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / ours, common / theirs
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def _as_sets(written, wanted, n, beta=2.0):
    ours, theirs = set(_grams(written, n)), set(_grams(wanted, n))
    return _f(len(ours & theirs), len(ours), len(theirs), beta)


def _not_clipped(written, wanted, n, beta=2.0):
    ours, theirs = _grams(written, n), _grams(wanted, n)
    return _f(sum(gram in theirs for gram in ours), len(ours), len(theirs), beta)


def _with_spaces(written, wanted, n, beta=2.0):
    ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (written, wanted))
    return _f((ours & theirs).total(), ours.total(), theirs.total(), beta)


def _precision(written, wanted, n, beta=2.0):
    ours, theirs = Counter(_grams(written, n)), Counter(_grams(wanted, n))
    return (ours & theirs).total() / max(1, ours.total())


def _one_gram_short(written, wanted, n, beta=2.0):
    ours, theirs = (Counter(_grams(text, n)[:-1]) for text in (written, wanted))
    return _f((ours & theirs).total(), ours.total(), theirs.total(), beta)


CHARACTER_F = Exercise(
    number="9.3",
    title="A score that forgives a wrong ending",
    difficulty=2,
    minutes=20,
    solution=character_f,
    cases=texts_of_all_kinds,
    mistakes=(
        Mistake(
            _as_sets,
            "an n-gram that occurs three times counts once in yours: count how often each occurs (`collections.Counter`).",
        ),
        Mistake(
            _not_clipped,
            "an n-gram written five times and wanted once counts five times: count it as often as *both* texts have it, the smaller of the counts.",
        ),
        Mistake(
            lambda a, b, n, beta=2.0: character_f(a, b, n, 1.0),
            "precision and recall weigh the same in yours: use β, which is 2 unless another value is given.",
        ),
        Mistake(
            lambda a, b, n, beta=2.0: character_f(a, b, n, 1 / beta),
            "β stands on the wrong side: with β = 2 recall counts more, so the denominator is β²·precision + recall.",
        ),
        Mistake(lambda a, b, n, beta=2.0: character_f(a, b, n), "β is always taken to be 2: use `beta`, whatever it is."),
        Mistake(_precision, "this is precision alone: a translation of one right character would be perfect."),
        Mistake(_with_spaces, "spaces are counted as characters: chrF takes them out first."),
        Mistake(_one_gram_short, "the last n-gram is missing: a text of k characters has k − n + 1 of them."),
    ),
    hints=(
        "Three parts: the n-grams of a text with their counts, how many both texts have, and the F-score of precision and recall.",
        "For two `Counter`s, `a & b` keeps the smaller of the two counts of each n-gram, and `.total()` adds them up.",
        "precision = common / those written, recall = common / those wanted, F = (1 + β²)·P·R / (β²·P + R), and 0 where nothing is common.",
    ),
    notice="sacrebleu's chrF takes n from 1 to 6, averages precision and recall over them, and then computes F (Popović 2015). Characters rather than words: a "
    "translation with one wrong ending keeps most of its score, and Chinese needs no cutting into words.",
    points=3,
    tolerance=1e-6,
)


# ---- 9.4 ----

SAME_FOR_ALL = Exercise(
    number="9.4",
    title="What a cleared memory writes (a prediction)",
    difficulty=1,
    minutes=3,
    solution=1,
    mistakes=(
        Mistake(
            0,
            "something is written: the model was trained to write a date after the start token, and knows what dates look like.",
        ),
        Mistake(
            2,
            "the form is part of what is read: after clearing, the model cannot know in which of the two forms the source was.",
        ),
        Mistake(500, "that is how many dates there are, but a cleared memory knows nothing of the date, whichever it was."),
        Mistake(1000, "all 1,000 sources are different, but nothing of them is left when the memory is cleared."),
        Mistake(31, "not the day of the month either: nothing of the source is left when the memory is cleared."),
        Mistake(7, "not the day of the week either: nothing of the source is left when the memory is cleared."),
    ),
    hints=(
        "What does the writing segment see? The start token, and the memory.",
        "After clearing, the memory is the same for every source; and the likeliest token is taken each time, not a random one.",
    ),
    notice="The same date for all: the memory is the only way from source to target, and nothing in decoding is random. That is why the row *cleared* of "
    "the table is all but zero, and this is how you check that nothing leaks.",
    points=1,
)

EXERCISES = [TWO_SEGMENTS, ALIGNMENT, CHARACTER_F, SAME_FOR_ALL]
