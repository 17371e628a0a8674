"""Random training sequences, and who sees whom in them, in words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Token(NamedTuple):
    """A token by what it is, rather than by numbers that a mask is computed from."""

    kind: str
    """class, before (text), clean, time, noised, after (text) or padding."""
    step: int = 0
    """AR step of an image token; place of a text token within its text."""
    copy: int = 0
    """Noised copy."""


def sees(query: Token, key: Token) -> bool:
    """Say in words who sees whom (Section 3, Appendix A; text as in Section 6, copies as in Table 7)."""
    if "padding" in (query.kind, key.kind):
        return query.kind == key.kind
    if query.kind == "class":
        return key.kind == "class"
    if key.kind == "class":
        return True
    if query.kind == "before":
        return key.kind == "before" and key.step <= query.step
    if key.kind == "before":
        return True
    if query.kind == "time":
        return key.kind == "time"
    if query.kind == "clean":
        return key.kind == "clean" and key.step <= query.step
    if query.kind == "noised":
        if key.kind == "noised":
            return key.copy == query.copy and key.step == query.step
        return key.kind == "time" or (key.kind == "clean" and key.step < query.step)
    return key.kind == "clean" or (key.kind == "after" and key.step <= query.step)


def sequence(
    sizes: list[int],
    *,
    class_tokens: int,
    text_before: int = 0,
    text_after: int = 0,
    copies: int = 1,
    time_token: bool = False,
    multiple: int = 1,
    length: int | None = None,
) -> list[Token]:
    """Write out the tokens of a training sequence, of whose text before the image `length` tokens are there."""
    tokens = [Token("class")] * class_tokens
    tokens += [
        Token("before", place) if length is None or place < length else Token("padding")
        for place in range(text_before)
    ]
    for step, size in enumerate(sizes):
        if step < len(sizes) - 1 or text_after:
            tokens += [Token("clean", step)] * size
    tokens += [Token("after", place) for place in range(text_after)]
    tokens += [Token("time")] * time_token
    noised = [
        Token("noised", step, copy)
        for copy in range(copies)
        for step, size in enumerate(sizes)
        for _ in range(size)
    ]
    while (len(tokens) + len(noised)) % multiple and (len(sizes) > 1 or text_before + text_after):
        tokens.append(Token("padding"))
    return tokens + noised


def random_sequences(count: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Draw compositions of up to 20 image tokens, S = 1 and S = L often, and the other parts of a sequence."""
    rng = random.Random(0)
    for _ in range(count):
        length = rng.randint(1, 20)
        steps = rng.choice([1, length, rng.randint(1, length), rng.randint(1, length)])
        cuts = [0, *sorted(rng.sample(range(1, length), steps - 1)), length]
        yield (
            [cuts[i + 1] - cuts[i] for i in range(steps)],
            {
                "class_tokens": rng.randint(0, 3),
                "text_before": rng.choice([0, 0, 1, 3]),
                "text_after": rng.choice([0, 0, 1, 3]),
                "copies": rng.choice([1, 1, 2, 3]),
                "time_token": rng.random() < 0.3,
                "multiple": rng.choice([1, 1, 8, 13]),
            },
        )


def law(tokens: list[Token]) -> Tensor:
    """Return who sees whom: (N, N), bool. Tokens that are the same see, and are seen by, the same."""
    distinct = list(dict.fromkeys(tokens))
    table = torch.tensor([[sees(query, key) for key in distinct] for query in distinct])
    places = torch.tensor([distinct.index(token) for token in tokens])
    return table[places][:, places]
