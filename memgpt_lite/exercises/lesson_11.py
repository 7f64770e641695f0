"""The exercises of notebook 11, summarising: ROUGE-L, a split that keeps what belongs together, the lead."""

import statistics
from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch
from torch import Generator

from .checking import Exercise, Mistake

# ---- 11.1 ----


def rouge_l(written: list[str], wanted: list[str]) -> float:
    # row[k]: how long the longest common subsequence of `written` so far and the first k words of `wanted` is
    row = [0] * (len(wanted) + 1)
    for word in written:
        above, row = row, [0]
        for k, other in enumerate(wanted):
            row.append(above[k] + 1 if word == other else max(above[k + 1], row[k]))
    common = row[-1]
    if common == 0:
        return 0.0
    precision, recall = common / len(written), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def words_of_all_kinds(generator: Generator) -> Iterator[tuple[list[str], list[str]]]:
    for written, wanted in (
        ("a", "a"),
        ("", "a"),
        ("a b", "c d"),
        ("b a c", "a b c"),
        ("a x b y c", "a b c"),  # not in one piece
        ("the the the the", "the cat"),
        ("b b a c d", "a c d b"),  # taking the first b loses the rest
        ("return the size of the socket", "return the name of the open file"),
    ):
        yield written.split(), wanted.split()
    for n, m in ((6, 9), (8, 5), (7, 7)):
        yield tuple(["abc"[i] for i in torch.randint(3, (k,), generator=generator).tolist()] for k in (n, m))


def _f(common: float, written: list[str], wanted: list[str]) -> float:
    return 2 * common / (len(written) + len(wanted)) if common else 0.0


def _longest_common_subsequence(written: list[str], wanted: list[str]) -> int:
    return round(rouge_l(written, wanted) * (len(written) + len(wanted)) / 2)


def _in_one_piece(written, wanted):
    pieces = (
        end - start
        for start in range(len(written))
        for end in range(start + 1, len(written) + 1)
        for at in range(len(wanted))
        if written[start:end] == wanted[at : at + end - start]
    )
    return _f(max(pieces, default=0), written, wanted)


def _greedy(written, wanted):
    at = common = 0
    for word in written:
        if word in wanted[at:]:
            at = wanted.index(word, at) + 1
            common += 1
    return _f(common, written, wanted)


ROUGE_L = Exercise(
    number="11.1",
    title="The longest common subsequence",
    difficulty=3,
    minutes=25,
    solution=rouge_l,
    cases=words_of_all_kinds,
    mistakes=(
        Mistake(
            _in_one_piece,
            "the words must come in the same order, but need not stand side by side: others may stand between them.",
        ),
        Mistake(
            lambda a, b: _f((Counter(a) & Counter(b)).total(), a, b),
            "the order is not looked at: this is ROUGE-1, of single words.",
        ),
        Mistake(
            lambda a, b: _f(len(set(a) & set(b)), a, b),
            "these are sets: a word that both texts have twice counts once, and the order not at all.",
        ),
        Mistake(
            _greedy,
            "each word takes the first place it finds, and may spoil a longer match: for every pair of beginnings keep the best length, with the word or without it.",
        ),
        Mistake(
            lambda a, b: _longest_common_subsequence(a, b) / max(1, len(a)),
            "this is precision alone: one right word would be a perfect summary.",
        ),
        Mistake(
            lambda a, b: _longest_common_subsequence(a, b) / max(1, len(b)),
            "this is recall alone: the whole body would be a perfect summary.",
        ),
        Mistake(
            lambda a, b: float(_longest_common_subsequence(a, b)),
            "this is the length of the subsequence: F1 is asked for, from its share of each text.",
        ),
        Mistake(
            lambda a, b: rouge_l(a[:-1], b[:-1]) if len(a) > 1 and len(b) > 1 else rouge_l(a, b),
            "the last words are left out: the table needs a row and a column for each word, and one more for the empty beginning.",
        ),
    ),
    hints=(
        "Ask about beginnings first: how long is the longest common subsequence of the first i words of one and the first k of the other?",
        "If word i equals word k, it is one more than for i − 1 and k − 1. If not, take the better of (i − 1, k) and (i, k − 1).",
        "A table of (len(written) + 1) × (len(wanted) + 1) numbers, the first row and column 0. Its last number, divided by the two lengths, gives precision and recall.",
    ),
    notice="Only the row above is ever looked at, so one row is kept. `2·P·R / (P + R)` is twice the common length over the sum of both lengths.",
    points=3,
    tolerance=1e-6,
)


# ---- 11.2 ----


def hold_out(groups: list[str], least: int) -> tuple[list[int], list[int]]:
    held: set[str] = set()
    for group in groups:
        if sum(other in held for other in groups) >= least:
            break
        held.add(group)
    out = [i for i, group in enumerate(groups) if group in held]
    return out, [i for i, group in enumerate(groups) if group not in held]


def groups_of_all_kinds(generator: Generator) -> Iterator[tuple[list[str], int]]:
    yield ["os", "re", "io"], 1
    yield ["os", "os", "re"], 1  # a whole group, more than the least
    yield ["re", "re", "os", "re", "io"], 1  # not side by side
    yield ["re", "os", "re", "io"], 2
    yield ["re", "os", "re", "os", "io"], 3
    yield ["os", "re", "io", "re"], 4  # all of them
    for n, least in ((12, 5), (20, 7), (30, 11)):
        yield ["bcdae"[i] * 2 for i in torch.randint(5, (n,), generator=generator).tolist()], least


def _split_by(groups, chosen):
    out = [i for i, group in enumerate(groups) if group in chosen]
    return out, [i for i, group in enumerate(groups) if group not in chosen]


def _never_more(groups, least):
    chosen: list[str] = []
    for group in dict.fromkeys(groups):
        if sum(groups.count(other) for other in [*chosen, group]) > least:
            break
        chosen.append(group)
    return _split_by(groups, chosen)


def _one_too_many(groups, least):
    chosen: list[str] = []
    for group in dict.fromkeys(groups):
        if sum(groups.count(other) for other in chosen) > least:
            break
        chosen.append(group)
    return _split_by(groups, chosen)


def _as_many_groups(groups, least):
    return _split_by(groups, list(dict.fromkeys(groups))[:least])


def _by_name(groups, least, reverse):
    chosen: list[str] = []
    for group in sorted(set(groups), reverse=reverse):
        if sum(groups.count(other) for other in chosen) >= least:
            break
        chosen.append(group)
    return _split_by(groups, chosen)


def _neighbours_only(groups, least):
    cut = least
    while cut < len(groups) and groups[cut] == groups[cut - 1]:
        cut += 1
    return list(range(cut)), list(range(cut, len(groups)))


HOLD_OUT = Exercise(
    number="11.2",
    title="What belongs together stays together",
    difficulty=2,
    minutes=15,
    solution=hold_out,
    cases=groups_of_all_kinds,
    mistakes=(
        Mistake(
            lambda groups, least: (list(range(least)), list(range(least, len(groups)))),
            "the first records are taken, and a group is cut in two: its other half is then trained on.",
        ),
        Mistake(
            _neighbours_only,
            "a group's records need not stand side by side: look through the whole list for them.",
        ),
        Mistake(_never_more, "too few records: take whole groups until there are *at least* as many as asked for."),
        Mistake(_one_too_many, "one group too many: stop as soon as there are as many records as asked for."),
        Mistake(_as_many_groups, "`least` counts records, not groups."),
        Mistake(partial(_by_name, reverse=False), "the groups are sorted: take them in the order in which they first appear."),
        Mistake(partial(_by_name, reverse=True), "the groups are to be taken in the order in which they first appear."),
        Mistake(
            lambda groups, least: hold_out(groups, least)[::-1],
            "the two lists are exchanged: those held out come first.",
        ),
    ),
    hints=(
        "First decide which groups are held out, then go through the records once more.",
        "`dict.fromkeys(groups)` has each group once, in the order in which they first appear; `groups.count(group)` is how many records it has.",
        "Add groups to a set until it covers at least `least` records; then make two lists of indices: those whose group is in the set, and the others.",
    ),
    notice="The split takes a whole group or none of it, so it can only promise *at least*. A large group may make the held-out part much larger; "
    "shuffling the groups first makes it a fair draw.",
)


# ---- 11.3 ----


def lead(body: str, summaries: list[str]) -> str:
    words = int(statistics.median(len(summary.split()) for summary in summaries))
    return " ".join(body.split()[:words])


def bodies_of_all_kinds(generator: Generator) -> Iterator[tuple[str, list[str]]]:
    yield "one two three", ["a"]
    yield "one two three four five six seven eight nine", ["a", "a b", "a b c d e f g h i"]  # the mean is 4
    yield "one  two\n    three four", ["a b c d e f", "a b", "a b c"]
    yield "one two", ["a b c d e"]  # the body is shorter than that
    yield "one two three four five six", ["a b", "a b c d e"]  # 3.5 is rounded down to 3
    for count in (3, 5, 7):
        lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
        yield " ".join(f"w{i}" for i in range(20)), [" ".join("x" * n) for n in lengths] + [" ".join("x" * 15)] * 2


def _first(body: str, words: int) -> str:
    return " ".join(body.split()[:words])


def _lengths(summaries: list[str]) -> list[int]:
    return [len(summary.split()) for summary in summaries]


LEAD = Exercise(
    number="11.3",
    title="The first words",
    difficulty=1,
    minutes=10,
    solution=lead,
    cases=bodies_of_all_kinds,
    mistakes=(
        Mistake(
            lambda body, summaries: _first(body, int(statistics.fmean(_lengths(summaries)))),
            "this is the mean: a few long summaries make it larger. The median is asked for.",
        ),
        Mistake(
            lambda body, summaries: _first(body, -int(-statistics.median(_lengths(summaries)) // 1)),
            "where the median is between two whole numbers, it is rounded down.",
        ),
        Mistake(
            lambda body, summaries: _first(body, statistics.median_low(_lengths(summaries))),
            "for an even number of lengths this is the lower of the two in the middle, as torch.median gives it: the median is the mean of both.",
        ),
        Mistake(
            lambda body, summaries: body[: int(statistics.median(map(len, summaries)))],
            "these are characters: count words, as `split()` gives them.",
        ),
        Mistake(
            lambda body, summaries: " ".join(body.split(" ")[: int(statistics.median(_lengths(summaries)))]),
            'split(" ") makes an empty word between two spaces, and does not split at the end of a line: use split().',
        ),
        Mistake(
            lambda body, summaries: " ".join(body.split()[-int(statistics.median(_lengths(summaries))) :]),
            "these are the last words: the first are asked for.",
        ),
        Mistake(
            lambda body, summaries: _first(body, max(_lengths(summaries))),
            "this is as long as the longest summary: take the median of the lengths.",
        ),
        Mistake(
            lambda body, summaries: body.split()[: int(statistics.median(_lengths(summaries)))],
            "this is a list: join the words with spaces.",
        ),
    ),
    hints=(
        "How many words does each summary have? Take the median of these numbers, and as many words of the body.",
        "`statistics.median`, and `int` to round down; a text's words are `text.split()`.",
    ),
    notice="Training data decide how long the lead is, never test data. On news, the first three sentences were ahead of the neural summarisers of their day (See et al. 2017).",
)


# ---- 11.4 ----

TWO_OF_THE_KIND = Exercise(
    number="11.4",
    title="Right in all but what it is about (a prediction)",
    difficulty=1,
    minutes=3,
    solution=100 * 4 / 6,
    mistakes=(
        Mistake(0, "what it is about is wrong, but ROUGE-L knows nothing of that: it counts words."),
        Mistake(4, "that is how many words they have in common, in order. Of how many?"),
        Mistake(60, "this is 3 of 5 *different* words: *the* occurs twice in both lines, and counts twice."),
        Mistake(50, "this is 3 of 6 words, and one more agrees, in the same order: *Return*, *the* (both times) and *of*."),
        Mistake(100 * 2 / 6, "all four words that agree count, also the little ones: nothing is left out."),
        Mistake(
            40,
            "words are not taken away from both: precision is 4 of 6 and recall 4 of 6, and F1 of two equal shares is that share.",
        ),
        Mistake(100, "two words differ: *size* instead of *name*, and *socket* instead of *file*."),
    ),
    hints=(
        "Write the two lines one below the other. Which words agree, in the same order?",
        "Four of the six words of each line agree: precision and recall are the same.",
    ),
    notice="Two thirds of all points, for a summary that is wrong. A model that writes *Return the … of the …* whatever it has read collects such points; "
    "the row *another body's memory* of the table says how many.",
    points=1,
    tolerance=2e-3,
)

EXERCISES = [ROUGE_L, HOLD_OUT, LEAD, TWO_OF_THE_KIND]
