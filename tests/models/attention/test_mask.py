"""The generalized causal mask (Appendix A)."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.attention.sequences import law, random_sequences, sequence

from causalfusion.attention.mask import attention_mask
from causalfusion.factorization.sequence import lay_out

step_sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def test_a_thousand_sequences_against_the_law_in_words() -> None:
    """Every pair of tokens; no row is fully masked; only padding sees padding."""
    kinds, single, every = set(), 0, 0
    for sizes, options in random_sequences(1000):
        tokens = sequence(sizes, **options)
        layout = lay_out(sizes, **options)
        found, expected = attention_mask(layout), law(tokens)
        assert found.dtype == torch.bool
        assert torch.equal(found, expected), (sizes, options)
        assert bool(found.any(dim=1).all())
        padding = torch.tensor([token.kind == "padding" for token in tokens])
        assert not bool(found[~padding][:, padding].any())
        assert not bool(found[padding][:, ~padding].any())
        kinds |= {token.kind for token in tokens}
        single += len(sizes) == 1
        every += len(sizes) == sum(sizes)
    assert kinds == {"class", "before", "clean", "time", "noised", "after", "padding"}
    assert min(single, every) > 200


def test_shorter_texts_of_a_batch_are_padded_sample_by_sample() -> None:
    """Tokens behind a text's length are padding in its sample alone."""
    rng = random.Random(1)
    for sizes, options in random_sequences(200):
        lengths = [rng.randint(0, options["text_before"]) for _ in range(3)]
        found = attention_mask(lay_out(sizes, **options), lengths=torch.tensor(lengths))
        for row, length in enumerate(lengths):
            assert torch.equal(found[row], law(sequence(sizes, **options, length=length))), (sizes, options, length)


@given(step_sizes, st.integers(0, 4))
def test_the_papers_mask_against_the_law_in_words(sizes: list[int], class_tokens: int) -> None:
    tokens = sequence(sizes, class_tokens=class_tokens)
    assert torch.equal(attention_mask(lay_out(sizes, class_tokens=class_tokens)), law(tokens))


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
    found = attention_mask(lay_out(sizes, class_tokens=class_tokens))[class_tokens:, class_tokens:]
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
    assert attention_mask(lay_out([2, 2, 3], class_tokens=1)).tolist() == expected


def test_copies_text_time_and_padding_drawn() -> None:
    """Columns: class | text | x0 κ1, κ2 | text | time | padding | xt κ1, κ2 of copy 1 | of copy 2."""
    figure = """
        #|.|.|..|.|.|..|.|..|.|..
        #|#|.|..|.|.|..|.|..|.|..
        #|#|#|..|.|.|..|.|..|.|..
        #|#|#|##|.|.|..|.|..|.|..
        #|#|#|##|.|.|..|.|..|.|..
        #|#|#|##|#|.|..|.|..|.|..
        #|#|.|..|.|#|..|.|..|.|..
        .|.|.|..|.|.|##|.|..|.|..
        .|.|.|..|.|.|##|.|..|.|..
        #|#|.|..|.|#|..|#|..|.|..
        #|#|#|..|.|#|..|.|##|.|..
        #|#|#|..|.|#|..|.|##|.|..
        #|#|.|..|.|#|..|.|..|#|..
        #|#|#|..|.|#|..|.|..|.|##
        #|#|#|..|.|#|..|.|..|.|##
    """
    expected = [[cell == "#" for cell in row.replace("|", "")] for row in figure.split()]
    layout = lay_out([1, 2], class_tokens=1, text_before=1, text_after=1, copies=2, time_token=True, multiple=5)
    assert attention_mask(layout).tolist() == expected


@pytest.mark.parametrize("sizes", [[16], [5, 1, 10], [1] * 16])
def test_the_length_leaves_the_last_steps_clean_tokens_out(sizes: list[int]) -> None:
    assert attention_mask(lay_out(sizes, class_tokens=2)).shape == (2 + 2 * 16 - sizes[-1],) * 2


def test_one_step_is_the_in_context_dit() -> None:
    """S = 1: image tokens see everything, class tokens see class tokens, and there are no clean tokens."""
    mask = attention_mask(lay_out([4], class_tokens=3)).tolist()
    assert mask == [[True] * 3 + [False] * 4] * 3 + [[True] * 7] * 4
