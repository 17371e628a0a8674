"""The generalized causal mask (Appendix A)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalfusion.mask import generalized_causal_mask

step_sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(step_sizes, st.integers(1, 4))
def test_against_the_law_in_words(sizes: list[int], class_tokens: int) -> None:
    """Section 3: each kind of token sees what Appendix A says, and nothing else."""
    tokens = [("class", 0)] * class_tokens
    for step in range(len(sizes) - 1):
        tokens += [("clean", step)] * sizes[step]
    for step, size in enumerate(sizes):
        tokens += [("noised", step)] * size

    mask = generalized_causal_mask(sizes, class_tokens)
    assert mask.shape == (len(tokens), len(tokens))
    for i, (kind, step) in enumerate(tokens):
        for j, (other_kind, other_step) in enumerate(tokens):
            if kind == "class":
                sees = other_kind == "class"
            elif kind == "clean":
                sees = other_kind == "class" or (other_kind == "clean" and other_step <= step)
            else:
                sees = (
                    other_kind == "class"
                    or (other_kind == "clean" and other_step < step)
                    or (other_kind == "noised" and other_step == step)
                )
            assert bool(mask[i, j]) == sees, f"token {i} ({kind} {step}) to {j} ({other_kind} {other_step})"


def algorithm_1(sumk: list[int], ctx_len: int, x_len: int) -> npt.NDArray[np.int64]:
    """Transcribe Algorithm 1, after its sampling of `sumk`: 1 is masked, 0 is not."""
    seq_len = ctx_len + x_len
    attn_mask = np.ones((seq_len, seq_len), dtype=np.int64)
    m1 = np.ones((ctx_len, ctx_len), dtype=np.int64)
    m2 = np.ones((x_len, ctx_len), dtype=np.int64)
    m3 = np.ones((x_len, x_len), dtype=np.int64)
    for i in range(len(sumk) - 2):
        m1[sumk[i] : sumk[i + 1], 0 : sumk[i + 1]] = 0
        m2[sumk[i + 1] : sumk[i + 2], 0 : sumk[i + 1]] = 0
    for i in range(len(sumk) - 1):
        m3[sumk[i] : sumk[i + 1], sumk[i] : sumk[i + 1]] = 0
    attn_mask[:ctx_len, :ctx_len] = m1
    attn_mask[ctx_len:, :ctx_len] = m2
    attn_mask[ctx_len:, ctx_len:] = m3
    return attn_mask


@given(step_sizes, st.integers(1, 4))
def test_image_tokens_against_algorithm_1(sizes: list[int], class_tokens: int) -> None:
    """With ctx_len at the start of the last step, Algorithm 1 gives the mask between image tokens."""
    sumk = [0]
    for size in sizes:
        sumk.append(sumk[-1] + size)
    expected = algorithm_1(sumk, ctx_len=sumk[-2], x_len=sumk[-1]) == 0
    found = generalized_causal_mask(sizes, class_tokens)[class_tokens:, class_tokens:]
    np.testing.assert_array_equal(found.numpy(), expected)


def test_figure_6() -> None:
    """Figure 6: three AR steps of 2, 2 and 3 tokens; columns are class | x0 κ1, κ2 | xt κ1, κ2, κ3."""
    figure = """
        #|..|..|..|..|...
        #|##|..|..|..|...
        #|##|..|..|..|...
        #|##|##|..|..|...
        #|##|##|..|..|...
        #|..|..|##|..|...
        #|..|..|##|..|...
        #|##|..|..|##|...
        #|##|..|..|##|...
        #|##|##|..|..|###
        #|##|##|..|..|###
        #|##|##|..|..|###
    """
    expected = [[cell == "#" for cell in row.replace("|", "")] for row in figure.split()]
    assert generalized_causal_mask([2, 2, 3], 1).tolist() == expected


@pytest.mark.parametrize("sizes", [[16], [5, 1, 10], [1] * 16])
def test_no_row_is_fully_masked(sizes: list[int]) -> None:
    """A fully masked row would make a softmax of nothing, hence NaN."""
    mask = generalized_causal_mask(sizes, 2)
    assert bool(mask.any(dim=1).all())
    assert len(mask) == 2 + 2 * 16 - sizes[-1]


def test_one_step_is_the_in_context_dit() -> None:
    """S = 1: image tokens see everything, class tokens see class tokens, and there are no clean tokens."""
    mask = generalized_causal_mask([4], 3).tolist()
    assert mask == [[True] * 3 + [False] * 4] * 3 + [[True] * 7] * 4
