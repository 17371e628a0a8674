"""The transformer: what each token depends on, and its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causalfusion import CausalFusion, CausalFusionConfig
from causalfusion.attention.mask import visible_between
from causalfusion.attention.plan import AttentionPlan
from causalfusion.embed import sinusoids_2d
from causalfusion.factorization.sequence import lay_out

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

ModelMaker = Callable[..., CausalFusion]


class Batch(NamedTuple):
    """The arguments of a training pass."""

    noised: Tensor
    clean: Tensor
    positions: Tensor
    t: Tensor
    labels: Tensor
    plan: AttentionPlan


def random_batch(
    config: CausalFusionConfig,
    sizes: list[int],
    batch: int = 2,
    *,
    copies: int = 1,
    times: int | None = None,
    multiple: int = 1,
) -> Batch:
    """Make a batch with one diffusion time per sample, or with `times` of them."""
    generator = torch.Generator().manual_seed(5)
    length, kept = config.num_tokens, config.num_tokens - sizes[-1]
    layout = lay_out(
        sizes,
        class_tokens=config.num_class_tokens,
        copies=copies,
        time_token=config.time_conditioning == "token",
        multiple=multiple,
    )
    return Batch(
        noised=torch.randn(batch, copies * length, config.token_dim, generator=generator, dtype=torch.float64),
        clean=torch.randn(batch, kept, config.token_dim, generator=generator, dtype=torch.float64),
        positions=torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)]),
        t=torch.randint(1000, (batch,) if times is None else (batch, times), generator=generator),
        labels=torch.arange(batch) % config.num_classes,
        plan=AttentionPlan.of(layout),
    )


def edges(sizes: list[int]) -> list[tuple[int, int]]:
    """Return the first token of each AR step and the one after its last."""
    return [(sum(sizes[:s]), sum(sizes[: s + 1])) for s in range(len(sizes))]


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("sizes", [[3, 1, 7, 5], [16], [1] * 16])
@torch.no_grad()
def test_a_step_sees_its_own_noise_and_earlier_clean_tokens_only(make_model: ModelMaker, sizes: list[int]) -> None:
    """Eq. 5: the prediction for x_{t,κs} does not change, in any bit, with what it must not see."""
    model = make_model()
    batch = random_batch(model.config, sizes)
    before = model(*batch)
    for start, end in edges(sizes):
        noised, clean = batch.noised.clone(), batch.clean.clone()
        noised[:, :start] += 3.0
        noised[:, end:] -= 2.0
        clean[:, start:] += 5.0
        after = model(*batch._replace(noised=noised, clean=clean))
        assert torch.equal(after[:, start:end], before[:, start:end])


@torch.no_grad()
def test_a_step_does_see_what_it_may_see(make_model: ModelMaker) -> None:
    """Each visible thing matters: own noised tokens, every earlier clean token, class, time and positions."""
    model, sizes = make_model(), [3, 1, 7, 5]
    batch = random_batch(model.config, sizes)
    before = model(*batch)

    def changed(start: int, end: int, **inputs: Any) -> bool:
        difference = (model(*batch._replace(**inputs))[:, start:end] - before[:, start:end]).abs()
        return bool(difference.amax(dim=(1, 2)).min() > 1e-6)

    for start, end in edges(sizes):
        for token in range(start):
            clean = batch.clean.clone()
            clean[:, token] += 1.0
            assert changed(start, end, clean=clean)
        for token in range(start, end):
            noised = batch.noised.clone()
            noised[:, token] += 1.0
            assert changed(start, end, noised=noised)
        assert changed(start, end, labels=(batch.labels + 1) % 3)
        assert changed(start, end, t=(batch.t + 100) % 1000)
        assert changed(start, end, positions=batch.positions.flip(1))


@torch.no_grad()
def test_samples_do_not_mix(make_model: ModelMaker) -> None:
    model = make_model()
    batch = random_batch(model.config, [3, 13])
    alone = model(*(x[1:] for x in batch[:5]), batch.plan)
    torch.testing.assert_close(alone, model(*batch)[1:], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("qk_norm", [True, False])
@torch.no_grad()
def test_one_step_is_an_in_context_dit(
    make_model: ModelMaker, naive: type[NaiveTransformer], qk_norm: bool
) -> None:
    """S = 1: [class tokens | noised tokens + time], class tokens see themselves, image tokens see all."""
    model = make_model(qk_norm=qk_norm, class_token_repeat=2)
    config = model.config
    batch = random_batch(config, [16])
    found = model(*batch)
    reference = naive(model)
    classes, length = config.num_class_tokens, config.num_tokens
    visible = [[True] * classes + [False] * length] * classes + [[True] * (classes + length)] * length
    for i in range(2):
        noised = reference.image_tokens(batch.noised[i].numpy(), batch.positions[i].tolist(), int(batch.t[i]))
        tokens = np.concatenate([reference.class_tokens(int(batch.labels[i])), noised])
        expected = reference.predict(reference.run_blocks(tokens, visible)[classes:])
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize(
    ("changes", "copies", "times"),
    [
        ({"position_embedding": "learnable"}, 1, None),
        ({"time_conditioning": "token"}, 1, None),
        ({}, 1, 16),
        ({}, 3, 3),
        ({"qk_norm": False}, 2, 32),
    ],
)
@torch.no_grad()
def test_each_step_of_each_copy_is_a_forward_of_its_own(
    make_model: ModelMaker,
    naive: type[NaiveTransformer],
    changes: dict[str, object],
    copies: int,
    times: int | None,
    multiple: int,
) -> None:
    """One pass over all equals naive passes over [class | earlier clean tokens | time token | noised].

    A diffusion time per sample, per copy, or per token, the same within an AR step.
    """
    model, sizes = make_model(**changes), [4, 1, 6, 5]
    config = model.config
    batch = random_batch(config, sizes, batch=1, copies=copies, times=times, multiple=multiple)
    if times is not None and times > copies:
        step_of = torch.tensor([s for s, size in enumerate(sizes) for _ in range(size)] * copies)
        first = torch.tensor([start for start, _ in edges(sizes)])[step_of] + 16 * (torch.arange(times) // 16)
        batch = batch._replace(t=batch.t[:, first])
    found = model(*batch)[0].numpy()
    reference = naive(model)
    order = batch.positions[0].tolist()
    t_of_token = batch.t.view(1, -1).repeat_interleave(16 * copies // batch.t.numel(), dim=1)[0].tolist()
    for copy in range(copies):
        for step, (start, end) in enumerate(edges(sizes)):
            own = slice(16 * copy + start, 16 * copy + end)
            t = t_of_token[own.start]
            rank = [-1] * config.num_class_tokens  # class tokens come before the first step
            for s in range(step):
                rank += [s] * sizes[s]
            parts = [reference.class_tokens(int(batch.labels[0]))]
            if start:
                parts.append(reference.image_tokens(batch.clean[0, :start].numpy(), order[:start]))
            time_token = config.time_conditioning == "token"
            if time_token:
                parts.append(reference.time(t)[None])
                rank.append(step)
            noised = batch.noised[0, own].numpy()
            parts.append(reference.image_tokens(noised, order[start:end], None if time_token else t))
            rank += [step] * sizes[step]
            visible = [[key <= query for key in rank] for query in rank]
            if time_token:
                place = config.num_class_tokens + start
                visible[place] = [i < config.num_class_tokens or i == place for i in range(len(rank))]
            out = reference.predict(reference.run_blocks(np.concatenate(parts), visible)[-sizes[step] :])
            np.testing.assert_allclose(found[own], out, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize(("changes", "copies"), [({}, 1), ({}, 2), ({"time_conditioning": "token"}, 1)])
def test_the_last_block_computes_what_is_read_only(
    make_model: ModelMaker, changes: dict[str, object], copies: int, planned: bool
) -> None:
    """Outputs and gradients are those of a last block that computes all tokens."""
    model, sizes = make_model(depth=3, **changes), [4, 7, 5]
    plan = random_batch(model.config, sizes, copies=copies, multiple=16).plan
    length, noised = len(plan), 16 * copies
    whole = visible_between(plan.places, plan.places)
    used = plan.mask(torch.device("cpu"), torch.float64, noised) if planned else whole
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, length, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, noised, 16, generator=generator, dtype=torch.float64)
    inputs = [x, *model.blocks.parameters()]
    gradients, outputs = [], []
    for read in (noised, None):
        out = model.run_blocks(x, used, read=read)
        assert out.shape[1] == (length if read is None else noised)
        outputs.append(out[:, -noised:])
        gradients.append(torch.autograd.grad(outputs[-1], inputs, cotangent))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-11)


@torch.no_grad()
def test_without_a_mask_any_number_of_last_tokens_can_be_read(make_model: ModelMaker) -> None:
    model = make_model()
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = model.run_blocks(x, None)
    for read in (0, 1, 4, 6):
        torch.testing.assert_close(model.run_blocks(x, None, read=read), whole[:, 6 - read :], rtol=0, atol=1e-12)


def test_a_time_token_carries_one_time(make_model: ModelMaker) -> None:
    model = make_model(time_conditioning="token")
    for copies, times in ((1, 16), (2, 2)):
        batch = random_batch(model.config, [9, 7], copies=copies, times=times)
        with pytest.raises(ValueError, match="a time token carries one diffusion time per sample"):
            model(*batch)


def test_a_plan_that_is_too_short_is_refused(make_model: ModelMaker) -> None:
    """A plan without the time token would leave it out in silence."""
    model = make_model(time_conditioning="token")
    batch = random_batch(model.config, [9, 7])
    with pytest.raises(ValueError, match="a sequence of 28 tokens cannot have a plan of 27"):
        model(*batch._replace(plan=AttentionPlan.of(lay_out([9, 7], class_tokens=2))))


@torch.no_grad()
def test_the_visiting_order_within_a_step_does_not_matter(make_model: ModelMaker) -> None:
    """|κs| is a set: permuting a step's tokens, with their positions, permutes their predictions."""
    model, sizes = make_model(), [4, 7, 5]
    batch = random_batch(model.config, sizes)
    generator = torch.Generator().manual_seed(2)
    shuffle = torch.cat([start + torch.randperm(end - start, generator=generator) for start, end in edges(sizes)])
    assert not torch.equal(shuffle, torch.arange(16))
    shuffled = model(
        *batch._replace(
            noised=batch.noised[:, shuffle],
            clean=batch.clean[:, shuffle[: batch.clean.shape[1]]],
            positions=batch.positions[:, shuffle],
        )
    )
    torch.testing.assert_close(shuffled, model(*batch)[:, shuffle], rtol=0, atol=1e-12)


@torch.no_grad()
def test_times_per_token(make_model: ModelMaker) -> None:
    """Table 7: t may differ between AR steps; a step sees its own t only."""
    model, sizes = make_model(), [4, 7, 5]
    batch = random_batch(model.config, sizes)
    shared = model(*batch)
    per_token = batch.t[:, None].expand(-1, 16).clone()
    torch.testing.assert_close(model(*batch._replace(t=per_token)), shared, rtol=0, atol=1e-12)
    per_token[:, 4:11] = (per_token[:, 4:11] + 300) % 1000
    after = model(*batch._replace(t=per_token))
    torch.testing.assert_close(after[:, :4], shared[:, :4], rtol=0, atol=1e-12)
    torch.testing.assert_close(after[:, 11:], shared[:, 11:], rtol=0, atol=1e-12)
    assert bool(((after - shared)[:, 4:11].abs().amax(dim=-1) > 1e-6).all())


@torch.no_grad()
def test_a_new_model_predicts_zero(make_config: Callable[..., CausalFusionConfig]) -> None:
    model = CausalFusion(make_config())
    noised, clean, *rest = random_batch(model.config, [3, 13])
    out = model(noised.float(), clean.float(), *rest)
    assert torch.equal(out, torch.zeros(2, 16, 4))


@torch.no_grad()
def test_initial_weights(make_config: Callable[..., CausalFusionConfig]) -> None:
    """Linears are Xavier-uniform with zero bias, class parameters N(0, .02²), norms the identity."""
    model = CausalFusion(make_config(hidden_size=64, num_classes=50, class_token_repeat=16))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.bias is None or not module.bias.any()
            if name != "head":
                fan_out, fan_in = module.weight.shape
                bound = math.sqrt(6 / (fan_in + fan_out))
                assert 0.95 * bound < float(module.weight.abs().max()) <= bound
                # 4 standard errors of the standard deviation of n uniform numbers
                relative = float(module.weight.std()) / (bound / math.sqrt(3)) - 1
                assert abs(relative) < 4 * math.sqrt(0.2 / module.weight.numel())
        elif isinstance(module, nn.LayerNorm):
            assert bool((module.weight == 1).all())
            assert not module.bias.any()
            assert module.eps == 1e-5
    for parameter in (model.class_tokens.table.weight, model.class_tokens.positions):
        n = parameter.numel()
        assert abs(float(parameter.mean())) < 4 * 0.02 / math.sqrt(n)
        assert abs(float(parameter.std()) / 0.02 - 1) < 4 / math.sqrt(2 * n)
    assert [name for name, _ in model.named_parameters() if "qkv" in name and "bias" in name] == []


def test_sinusoidal_positions_are_frozen_and_not_saved(
    make_config: Callable[..., CausalFusionConfig],
) -> None:
    """Table 9."""
    model = CausalFusion(make_config())
    assert "positions" not in dict(model.named_parameters())
    assert "positions" not in model.state_dict()
    assert torch.equal(model.positions, sinusoids_2d(16, 4, 4))


def test_learnable_positions_start_as_sinusoids_and_learn(
    make_config: Callable[..., CausalFusionConfig], make_model: ModelMaker
) -> None:
    """Table 10."""
    new = CausalFusion(make_config(position_embedding="learnable"))
    assert torch.equal(new.positions, sinusoids_2d(16, 4, 4))
    model = make_model(position_embedding="learnable")
    model(*random_batch(model.config, [3, 13])).square().sum().backward()
    assert model.positions.grad is not None
    assert bool((model.positions.grad.abs().amax(dim=1) > 0).all())


@pytest.mark.parametrize("conditioning", ["embedding", "token"])
def test_every_parameter_gets_a_gradient(make_model: ModelMaker, conditioning: str) -> None:
    """Except for rows of classes that are not in the batch, and what all keys share, which changes no softmax."""
    model = make_model(position_embedding="learnable", time_conditioning=conditioning)
    model(*random_batch(model.config, [3, 8, 5])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        used = parameter.grad[:2] if name == "class_tokens.table.weight" else parameter.grad
        assert (float(used.abs().max()) > 1e-6) == ("k_norm.bias" not in name), name


@pytest.mark.usefixtures("attention_form")
@torch.no_grad()
def test_bf16_autocast(make_model: ModelMaker) -> None:
    """Mixed precision runs in both forms of attention and stays near the exact result."""
    model = make_model()
    batch = random_batch(model.config, [3, 8, 5])
    exact = model(*batch)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch.noised.float(), batch.clean.float(), *batch[2:])
    error = (found.double() - exact).square().mean().sqrt()
    assert error < 0.03 * exact.square().mean().sqrt()
