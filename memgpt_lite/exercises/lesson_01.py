"""The exercises of notebook 01, preprocessing: decoding, padding, shifted labels, streams, the length of a text in tokens."""

import random
from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..preprocessing import make_segments
from .checking import Exercise, Mistake

# ---- 1.1 ----


def decode(ids: list[int], piece_of: dict[int, str], byte_of: dict[str, int]) -> str:
    letters = "".join(piece_of[i] for i in ids)
    return bytes(byte_of[letter] for letter in letters).decode("utf-8")


def texts_in_pieces(generator: Generator) -> Iterator[tuple[list[int], dict[int, str], dict[str, int]]]:
    """Texts as a tokenizer might have cut them; the tables hold only what this one text needs."""
    letter_of = bytes_to_unicode()
    byte_of = {letter: byte for byte, letter in letter_of.items()}
    draw = random.Random(_a_seed(generator))
    signs = " \n\xa0aAeézß中回😀ש"
    drawn = ["".join(draw.choices(signs, k=n)) for n in (2, 5, 12)]
    for i, text in enumerate(["a", "é", "a\ta", " the 中 😀", *drawn]):
        letters = "".join(letter_of[byte] for byte in text.encode())
        pieces = []
        while letters:  # single letters first, so that é is in two pieces; then pieces of up to four
            size = 1 if i < 3 else draw.randint(1, 4)
            pieces, letters = [*pieces, letters[:size]], letters[size:]
        numbers = draw.sample(range(258, 999), len(set(pieces)))
        number_of = dict(zip(dict.fromkeys(pieces), numbers))
        piece_of = {number: piece for piece, number in number_of.items()}
        yield [number_of[piece] for piece in pieces], piece_of, {x: byte_of[x] for piece in piece_of.values() for x in piece}


def _a_seed(generator: Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


DECODE = Exercise(
    number="1.1",
    title="Decode by hand",
    difficulty=1,
    minutes=5,
    solution=decode,
    cases=texts_in_pieces,
    mistakes=(
        Mistake(
            lambda ids, piece_of, byte_of: "".join(piece_of[i] for i in ids),
            "these are the letters, not yet the text: a Ġ stands for the byte of a space. Turn every letter into its byte with byte_of.",
        ),
        Mistake(
            lambda ids, piece_of, byte_of: "".join(piece_of[i] for i in ids).replace("Ġ", " ").replace("Ċ", "\n"),
            "the space and the line break come back, the bytes above 127 do not: Ġ and Ċ are only two letters of 256. Take byte_of for all.",
        ),
        Mistake(
            lambda ids, piece_of, byte_of: "".join(bytes(byte_of[x] for x in piece_of[i]).decode("utf-8") for i in ids),
            "each token is decoded by itself, but the bytes of one character may lie in two tokens. Collect all bytes, and decode once.",
        ),
        Mistake(
            lambda ids, piece_of, byte_of: "".join(
                bytes(byte_of[x] for x in piece_of[i]).decode("utf-8", errors="replace") for i in ids
            ),
            "a � stands where half a character was decoded: errors=… hides that the bytes of one character lie in two tokens.",
        ),
        Mistake(
            lambda ids, piece_of, byte_of: "".join(chr(byte_of[x]) for i in ids for x in piece_of[i]),
            "each byte has become a character of its own (chr, or the decoding “latin-1”). In UTF-8 é is two bytes, 中 three.",
        ),
        Mistake(
            lambda ids, piece_of, byte_of: b" ".join(bytes(byte_of[x] for x in piece_of[i]) for i in ids).decode(
                "utf-8", "replace"
            ),
            "there are spaces that were not in the text: join the tokens with nothing between them; they bring their own spaces.",
        ),
        Mistake(
            lambda ids, piece_of, byte_of: bytes(byte_of[x] for i in ids for x in piece_of[i]),
            'these are the right bytes, and not yet a text: .decode("utf-8") makes characters of them.',
        ),
    ),
    hints=(
        "Three steps: the letters of all tokens, the byte of each letter, the text. Which of them may be done token by token, and which may not?",
        "A character's bytes may lie in several tokens. Collect the bytes of all tokens first, make one `bytes([…])` of them, and "
        "decode once.",
    ),
    notice="It decodes once, at the very end. Until then there are bytes and no characters, so it cannot matter where the tokenizer cut.",
)


# ---- 1.2 ----


def unpad(batch: dict[str, Tensor]) -> list[tuple[list[int], int]]:
    rows = zip(batch["input_ids"], batch["attention_mask"], batch["labels"])
    return [(ids[mask.bool()].tolist(), int((labels != -100).sum())) for ids, mask, labels in rows]


def batches_of_all_kinds(generator: Generator) -> Iterator[tuple[dict[str, Tensor]]]:
    def drawn(length):
        return torch.randint(9, (length,), generator=generator).tolist()  # 0, the padding's number, is a token too

    yield (make_segments([[7]], 2, pad_token_id=0),)
    yield (make_segments([[5, 0]], 4, pad_token_id=0, asked=[[False, True]]),)
    yield (make_segments([[[4], [6, 8]], [[3, 2]]], 2, pad_token_id=0, asked=[[[False], [True, True]], [[False, False]]]),)
    for lengths in ((4, 7, 1), (9, 12)):
        documents = [drawn(length) for length in lengths]
        asked = [[token % 3 == 0 for token in document] for document in documents]
        batch = make_segments(documents, 4, pad_token_id=0, asked=asked)
        yield (batch,)
        yield ({name: tensor.flip(1) for name, tensor in batch.items()},)  # with the padding in front


def _rows(batch):
    return list(zip(batch["input_ids"], batch["attention_mask"], batch["labels"]))


UNPAD = Exercise(
    number="1.2",
    title="Take the padding away",
    difficulty=2,
    minutes=10,
    solution=unpad,
    cases=batches_of_all_kinds,
    mistakes=(
        Mistake(
            lambda batch: [(ids.tolist(), int((labels != -100).sum())) for ids, _, labels in _rows(batch)],
            "the padding is still there: keep the places where the mask is 1.",
        ),
        Mistake(
            lambda batch: [(ids[ids != 0].tolist(), int((labels != -100).sum())) for ids, _, labels in _rows(batch)],
            "a token that has the padding's number has gone with the padding: go by the mask, not by the number.",
        ),
        Mistake(
            lambda batch: [(ids[: mask.sum()].tolist(), int((labels != -100).sum())) for ids, mask, labels in _rows(batch)],
            "padding is not always at the end: it may stand in front of a text, or at the end of each of its parts.",
        ),
        Mistake(
            lambda batch: [(ids[mask.bool()].tolist(), int((labels > 0).sum())) for ids, mask, labels in _rows(batch)],
            "a label may be 0, since 0 is a token: count the labels that are not −100.",
        ),
        Mistake(
            lambda batch: [(ids[mask.bool()].tolist(), int(mask.sum())) for ids, mask, _ in _rows(batch)],
            "you count all tokens; count only those with a label, since not every token has one.",
        ),
        Mistake(
            lambda batch: [(ids[mask.bool()].tolist(), int((batch["labels"] != -100).sum())) for ids, mask, _ in _rows(batch)],
            "you count the labels of the whole batch for every document: count row by row.",
        ),
        Mistake(
            lambda batch: [(ids[labels != -100].tolist(), int((labels != -100).sum())) for ids, _, labels in _rows(batch)],
            "tokens that are only read have gone too: −100 in the labels says “not asked”, not “padding”.",
        ),
    ),
    hints=(
        "Which of the three tensors says where the tokens are? And which one says where something is asked?",
        "A tensor can be indexed by a tensor of truth values of the same shape: `ids[mask.bool()]`.",
        'Go through the rows: `for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"])`. Count with '
        "`(labels != -100).sum()`.",
    ),
    notice="The code never asks for the number of the padding token. Only the mask can say what is padding, because any number may be a token.",
)


# ---- 1.3 ----


def shift(labels: Tensor, mask: Tensor, segment_length: int) -> Tensor:
    following = F.pad(labels[:, 1:], (0, 1), value=-100)  # (B, T): nothing follows the last position
    return following.masked_fill(mask == 0, -100)


def labels_of_all_kinds(generator: Generator) -> Iterator[tuple[Tensor, Tensor, int]]:
    yield torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.long), 2
    yield torch.tensor([[1, 2, 3, 4, 5]]), torch.ones(1, 5, dtype=torch.long), 2
    for rows, length in ((2, 4), (3, 3), (2, 5)):
        documents = [
            torch.randint(1, 99, (n,), generator=generator).tolist() for n in (2 * length + 1, length, length + 2)[:rows]
        ]
        documents[-1] = [documents[-1][:2], documents[-1][2:]]  # in two parts, so that padding stands between them
        batch = make_segments(documents, length, pad_token_id=0)
        yield batch["labels"], batch["attention_mask"], length
        some = batch["labels"].clone()
        some[:, ::3] = -100
        yield some, batch["attention_mask"], length
        yield some.flip(1), batch["attention_mask"].flip(1), length  # with the padding in front


def nothing_from_padding(shifted: Tensor, mask: Tensor) -> Tensor:
    return shifted.masked_fill(mask == 0, -100)


def by_segment(labels: Tensor, mask: Tensor, segment_length: int) -> Tensor:
    parts = labels.split(segment_length, dim=1)
    return nothing_from_padding(torch.cat([F.pad(part[:, 1:], (0, 1), value=-100) for part in parts], dim=1), mask)


def shifted_in_place(labels: Tensor, mask: Tensor, segment_length: int) -> Tensor:
    labels[:, :-1] = labels[:, 1:].clone()
    labels[:, -1] = -100
    return nothing_from_padding(labels, mask)


SHIFT = Exercise(
    number="1.3",
    title="Shift the labels",
    difficulty=2,
    minutes=10,
    solution=shift,
    cases=labels_of_all_kinds,
    mistakes=(
        Mistake(
            lambda labels, mask, segment_length: labels.clone(),
            "nothing is shifted: a position would be asked for the token that it has just read.",
        ),
        Mistake(
            lambda labels, mask, segment_length: nothing_from_padding(F.pad(labels[:, :-1], (1, 0), value=-100), mask),
            "off by one in the wrong direction: position t must be asked for token t + 1, not for token t − 1.",
        ),
        Mistake(
            lambda labels, mask, segment_length: nothing_from_padding(F.pad(labels[:, 2:], (0, 2), value=-100), mask),
            "shifted twice: position t must be asked for token t + 1, not for token t + 2.",
        ),
        Mistake(
            lambda labels, mask, segment_length: nothing_from_padding(labels.roll(-1, 1), mask),
            "torch.roll moves in a circle and asks the last position for the first token. Where nothing follows, put −100.",
        ),
        Mistake(
            lambda labels, mask, segment_length: labels.roll(-1, 1),
            "two things: torch.roll moves in a circle, but nothing follows the last position; and where the mask is 0, nothing may be asked.",
        ),
        Mistake(
            by_segment,
            "each segment is shifted by itself, so its last position is asked nothing. But it must predict the next segment's first token.",
        ),
        Mistake(
            lambda labels, mask, segment_length: F.pad(labels[:, 1:], (0, 1), value=-100),
            "padding is asked: where the mask is 0 nothing has been read, so nothing can be predicted, even if a token follows.",
        ),
        Mistake(
            lambda labels, mask, segment_length: nothing_from_padding(labels[:, 1:], mask[:, :-1]),
            "one position is missing: the shape stays (B, T), and the last position gets −100.",
        ),
        Mistake(
            lambda labels, mask, segment_length: nothing_from_padding(F.pad(labels[:, 1:], (0, 1)), mask),
            "the last position gets a 0, but 0 is a token: only −100 says “not asked”.",
        ),
        Mistake(shifted_in_place, "the right labels, but written into those that were passed in: make a new tensor."),
    ),
    hints=(
        "Write down for the tokens A B C D what each position is asked for. What is the last one asked for? Does a border of a segment change anything?",
        "`labels[:, 1:]` is what the positions 0 … T − 2 are asked for. One column is missing at the end: `torch.nn.functional.pad(…, (0, 1), "
        "value=-100)`.",
        "Then `.masked_fill(mask == 0, -100)`: padding is asked nothing. `segment_length` is not needed at all.",
    ),
    notice="The segment length appears nowhere: the last position of a segment predicts the first token of the next. That is why `MemGPT` shifts the "
    "whole text before it cuts it.",
)


# ---- 1.4 ----


def where_predicted(token: int, n: int, batch_size: int, window: int) -> tuple[int, int, int] | str:
    length = (n - 1) // batch_size
    row, place = divmod(token - 1, length)
    if token == 0 or row >= batch_size:
        return "never"
    return (place // window, row, place % window)


def tokens_of_all_kinds(generator: Generator) -> Iterator[tuple[int, int, int, int]]:
    yield from ((token, 2, 1, 1) for token in (1, 0))
    yield from ((token, 12, 3, 2) for token in range(12))  # 3 rows of (12 − 1) // 3 = 3 tokens, though 12 is 3 times 4
    for _ in range(2):
        batch_size, window = (int(torch.randint(2, high, (), generator=generator)) for high in (4, 5))
        n = batch_size * (2 * window + 1) + 2  # two windows and a bit in each row, and one token left over
        yield from ((token, n, batch_size, window) for token in range(n))


def placed(token, n, batch_size, window, length=None):
    row, place = divmod(token - 1, (n - 1) // batch_size if length is None else length)
    return (place // window, row, place % window)


def one_window_a_row(token, n, batch_size, window):
    found = where_predicted(token, n, batch_size, window)
    if found == "never":
        return found
    windows = -(-((n - 1) // batch_size) // window)
    return (found[1] * windows + found[0], *found[1:])


def column_of_the_row(token, n, batch_size, window):
    found = where_predicted(token, n, batch_size, window)
    return found if found == "never" else (*found[:2], found[0] * window + found[2])


def rows_first(token, n, batch_size, window):
    place, row = divmod(token - 1, batch_size)
    if token == 0 or place >= (n - 1) // batch_size:
        return "never"
    return (place // window, row, place % window)


WHERE = Exercise(
    number="1.4",
    title="Where is it predicted?",
    difficulty=2,
    minutes=10,
    solution=where_predicted,
    cases=tokens_of_all_kinds,
    mistakes=(
        Mistake(
            lambda token, n, batch_size, window: (
                "never" if token >= (n - 1) // batch_size * batch_size else placed(token + 1, n, batch_size, window)
            ),
            "that is where the token is read, not where it is predicted: token t is the label where token t − 1 is the input.",
        ),
        Mistake(
            lambda token, n, batch_size, window: (
                "never"
                if token == 0 or token > n // batch_size * batch_size
                else placed(token, n, batch_size, window, n // batch_size)
            ),
            "a row has N = (n − 1) // batch_size tokens, not n // batch_size: the last token is only predicted, never read.",
        ),
        Mistake(
            lambda token, n, batch_size, window: (
                placed(token, n, batch_size, window) if token <= (n - 1) // batch_size * batch_size else "never"
            ),
            'token 0 has nothing before it that could predict it: answer "never". (divmod(−1, N) goes to row −1.)',
        ),
        Mistake(
            lambda token, n, batch_size, window: "never" if token == 0 else placed(token, n, batch_size, window),
            "there are only the rows 0 … batch_size − 1: tokens left over at the end are never predicted.",
        ),
        Mistake(
            rows_first,
            "the text is not dealt out token by token, as cards are: each row is one stretch of the text, N tokens long.",
        ),
        Mistake(column_of_the_row, "the column is counted within the window: in each window it begins at 0 again."),
        Mistake(
            one_window_a_row,
            "windows are counted over all rows at once: window 0 holds the first `window` columns of *every* row.",
        ),
    ),
    hints=(
        "Where token `token` is the label, token `token - 1` is the input. So look for the place of `token - 1`.",
        "How many whole rows of N = (n − 1) // batch_size come before it? What is left is its place in the row; dividing this place by the window gives "
        "window and column (`divmod`).",
        "`row, place = divmod(token - 1, N)`. Two kinds of token are never predicted: token 0, and those with `row >= batch_size`.",
    ),
    notice="Divide twice: by N for the row, by the window for the rest. A token near the start of a row is predicted from a memory that has read little, "
    "even in the middle of the text.",
)


# ---- 1.5 ----

TOKENS = Exercise(
    number="1.5",
    title="How many tokens? (a prediction)",
    difficulty=1,
    minutes=3,
    points=1,
    solution=9,
    mistakes=(
        Mistake(
            4,
            "those are the words. A word is one token only if merges lead all the way to it; no merge makes “ hat” or “ 猫” whole.",
        ),
        Mistake(6, "nearly: but 猫 is no token. Nothing has joined its three bytes, and the space before it is one more."),
        Mistake(7, "nearly: but 猫 is not one token; nothing has joined its three bytes."),
        Mistake(8, "nearly: does the space before 猫 count? It is a byte like any other, and no merge joins it to what follows."),
        Mistake(10, "nearly: is there a merge that shortens “ hat”? The very first one does."),
        Mistake(11, "nearly: “the” is a single token. The merges h + e and t + he lead all the way to it."),
        Mistake(14, "those are the bytes, before any merge."),
    ),
    hints=(
        "Go word by word, each with the space before it: `the`, `Ġhat`, `Ġon`, `Ġ猫`. Which of the ten merges apply?",
        "猫 takes three bytes, and the tiny text had none of them. `a`+`t` applies in “ hat”.",
    ),
    notice="the | Ġ h at | Ġon | Ġ and three bytes of 猫: 1 + 3 + 1 + 4. What the tokenizer has not seen is not lost, but costs a token for each byte.",
)

EXERCISES = [DECODE, UNPAD, SHIFT, WHERE, TOKENS]
