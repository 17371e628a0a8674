"""Checkpoint files: tensors come out bit for bit, code never runs, faults are told apart."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.malicious import MakesFolder
from torch import Tensor

from causalfusion.weights.checkpoint_file import CheckpointNotice, read_state, report_mismatch

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3).bfloat16(), "steps": torch.tensor(7)}
OTHER = {"a.weight": torch.zeros(1)}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert not found[name].requires_grad
        assert torch.equal(found[name], tensor)


class Stranger:
    """A class that only this file knows."""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict(tmp_path: Path, zipped: bool) -> None:
    """Both of torch.save's formats; an ordered dict of parameters is a state dict too."""
    parameters: dict[str, Tensor] = OrderedDict(a=torch.nn.Parameter(torch.ones(2)))
    states: dict[str, dict[str, Tensor]] = {"plain.pt": STATE, "parameters.pt": parameters}
    for name, state in states.items():
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert_same(read_state(tmp_path / name), {key: value.detach() for key, value in state.items()})


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert_same(read_state(tmp_path / "model.safetensors", prefer=("ema",)), STATE)


def test_tensors_saved_on_a_gpu_come_to_the_cpu(tmp_path: Path) -> None:
    """The file differs from one saved on a CPU by the name of the device, which is written once and referred to."""
    path = tmp_path / "model.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    saved = path.read_bytes()
    assert saved.count(b"\x03\x00\x00\x00cpu") == 1
    path.write_bytes(saved.replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0"))
    found = read_state(path)
    assert {tensor.device.type for tensor in found.values()} == {"cpu"}
    assert_same(found, STATE)


def test_the_first_preferred_entry_that_is_there_is_taken(tmp_path: Path) -> None:
    torch.save({"model": OTHER, "ema": STATE, "epoch": 3}, tmp_path / "both.pt")
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "one.pt")
    assert_same(read_state(tmp_path / "both.pt", prefer=("ema", "model")), STATE)
    assert_same(read_state(tmp_path / "both.pt", prefer=("model", "ema")), OTHER)
    assert_same(read_state(tmp_path / "one.pt", prefer=("ema", "model")), STATE)


WRAPPED = {
    "module.a.b": ["module."],
    "_orig_mod.a.b": ["_orig_mod."],
    "module._orig_mod.a.b": ["module.", "_orig_mod."],
    "_orig_mod.module.a.b": ["module.", "_orig_mod."],
    "module.module.a.b": ["module."],
    "a._orig_mod.b": ["_orig_mod."],
    "_fsdp_wrapped_module.a._checkpoint_wrapped_module.b": [
        "_fsdp_wrapped_module.",
        "_checkpoint_wrapped_module.",
    ],
}


@pytest.mark.parametrize("name", WRAPPED)
def test_names_of_wrappers_are_left_out_and_it_is_said(tmp_path: Path, name: str) -> None:
    other = name.removesuffix("b") + "c"
    torch.save({"ema": {name: torch.ones(2), other: torch.zeros(1)}}, tmp_path / "model.pt")
    with pytest.warns(CheckpointNotice) as said:
        found = read_state(tmp_path / "model.pt", prefer=("ema",))
    assert_same(found, {"a.b": torch.ones(2), "a.c": torch.zeros(1)})
    (notice,) = said
    assert str(notice.message).startswith(f"entry 'ema' of {tmp_path / 'model.pt'}: ")
    assert str(notice.message).endswith(f": {', '.join(WRAPPED[name])}")


def test_wrappers_of_torch_itself(tmp_path: Path) -> None:
    """Their own state dicts, with the counter of an average."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    inner = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = {
        "parallel": torch.nn.DataParallel(model),
        "average": torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(model)),
    }
    assert "n_averaged" in wrapped["average"].state_dict()
    for name, module in wrapped.items():
        torch.save(module.state_dict(), tmp_path / name)
        with pytest.warns(CheckpointNotice):
            assert_same(read_state(tmp_path / name), inner)


def test_a_name_that_only_some_tensors_begin_with_is_the_models_own(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.zeros(1), "submodule.c": torch.zeros(1)}
    torch.save(state, tmp_path / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(read_state(tmp_path / "model.pt"), state)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    torch.save({"a._orig_mod.b": torch.ones(1), "a.b": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"two tensors of one name, if _orig_mod\. are left out"):
        read_state(tmp_path / "model.pt")


def release_checkpoint(**args: object) -> dict[str, object]:
    """What the paper's training script saves: tensors, an optimizer's and a schedule's state, and its arguments."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return {
        "model": model.state_dict(),
        "ema": STATE,
        "opt": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "train_steps": 50_000,
        "start_epoch": 41,
        "args": argparse.Namespace(model="CausalFusion-XL", lr=1e-4, ckpt=None, distributed=True, **args),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_arguments_beside_the_tensors_are_let_through(tmp_path: Path, zipped: bool) -> None:
    torch.save(release_checkpoint(), tmp_path / "0050000.pt", _use_new_zipfile_serialization=zipped)
    assert_same(read_state(tmp_path / "0050000.pt", prefer=("ema", "model")), STATE)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["top", "beside", "in the arguments"])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, where: str, zipped: bool) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "model.pt"
    command = MakesFolder(marker)
    content: dict[str, object] = {
        "top": command,
        "beside": STATE | {"extra": command},
        "in the arguments": release_checkpoint(hook=command),
    }
    torch.save(content[where], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"refused: it needs pickled code \(posix\.mkdir\).*plain tensors"
    ) as error:
        read_state(path, prefer=("ema",))
    assert str(path) in str(error.value)
    assert "weights_only" not in str(error.value)
    assert not marker.exists()

    # The same file does run its command where pickles are trusted.
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(MakesFolder(marker), protocol=2))
    with pytest.raises(ValueError, match=r"model\.pkl is "):
        read_state(tmp_path / "model.pkl")
    assert not marker.exists()


def test_other_classes_are_refused(tmp_path: Path) -> None:
    """A harmless class, a path among the arguments: their code would have to be run to know."""
    for name, value in {"stranger": Stranger(), "path": Path("data")}.items():
        torch.save(release_checkpoint(extra=value), tmp_path / name)
        with pytest.raises(ValueError, match=r"refused: it needs pickled code \(\S+(Stranger|Path)\)"):
            read_state(tmp_path / name, prefer=("ema",))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            read_state(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"epoch": 3, "args": argparse.Namespace(a=1)},
            r"2 of 2 .*none of the entries ema is there.*: args, epoch$",
        ),
        (
            STATE | {"epoch": 3},
            r"1 of 3 entries are something else \(epoch\).*keys of the file: a\.weight, epoch, steps$",
        ),
        ({"ema": {"shadow": STATE}, "step": 3}, r"entry 'ema' of .* \(shadow\); keys of the file: ema, step$"),
        ({"ema": None, "model": STATE}, r"entry 'ema' of .* is a NoneType"),
        ({}, r"0 of 0 entries"),
        ({7: torch.ones(1)}, r"1 of 1 entries are something else \(7\)"),
        ([torch.ones(1)], r"holds a list; a dict of tensors is wanted"),
        ({f"k{k:02}": k for k in range(20)}, r"keys of the file: k00, (k\d\d, ){10}k11 … and 8 more$"),
    ],
)
def test_a_file_without_tensors_is_described(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / "model.pt", prefer=("ema",))


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        read_state(path)


@given(content=st.binary(max_size=64))
def test_any_bytes_are_answered_in_words(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt (is|holds|needs)"):
        read_state(path)


def test_equal_names_and_shapes_pass() -> None:
    report_mismatch({"a": (2, 3), "b": ()}, {"b": torch.Size([]), "a": torch.Size([2, 3])}, "a file")


def test_a_mismatch_lists_each_kind_in_order() -> None:
    wanted = {"z": (1,), "a": (2,), "same": (3,), "bent": (4, 5)}
    found = {"same": (3,), "bent": (5, 4), "y": (1,), "x": (1,)}
    with pytest.raises(ValueError) as error:
        report_mismatch(wanted, found, "some/file.pt")
    assert str(error.value).splitlines() == [
        "some/file.pt does not hold the tensors that are wanted.",
        "  missing (2): a, z",
        "  unknown (2): x, y",
        "  wrong shape (1): bent is (5, 4), wanted (4, 5)",
    ]


def test_a_long_mismatch_is_cut() -> None:
    """Twelve of a kind are listed, and the rest is counted."""
    twelve = {f"k{k:02}": (1,) for k in range(12)}
    with pytest.raises(ValueError, match=r"missing \(12\): k00, (k\d\d, ){10}k11$"):
        report_mismatch(twelve, {}, "file")
    with pytest.raises(ValueError, match=r"unknown \(13\): k00, (k\d\d, ){10}k11 … and 1 more$"):
        report_mismatch({}, twelve | {"k12": (1,)}, "file")
