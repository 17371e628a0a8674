"""Tokens of captions: one caption for each seed and position, and the tokenizer that is kept beside the shards."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.conftest import run_environment
from tests.platform.data.captioned import captions_of, write_captioned
from tests.platform.data.damage import put, rewrite

from causalfusion import TextConfig, draws
from causalfusion.text.tokenizer import Tokenizer, train_bpe
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data import caption_tokens
from causalfusion_platform.data.caption_tokens import (
    DrawCaptions,
    check_captions,
    find_tokenizer,
    open_tokenizer,
)
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.order import row_order, windows_between
from causalfusion_platform.data.read import Columns, Dataset, local_batches, read_window
from causalfusion_platform.data.shards import is_replaceable
from causalfusion_platform.data.validate import open_shards

ROWS, MAX_TOKENS = 23, 9
TEXT = TextConfig(vocabulary=300, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(itertools.chain(*captions_of(ROWS)), vocabulary=TEXT.vocabulary)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_captioned(tmp_path / "shards", captions_of(ROWS))
    return tmp_path / "shards"


def dataset(folder: Path, tokenizer: Tokenizer, window_rows: int, seed: int = 5) -> Dataset:
    transform = DrawCaptions(tokenizer, MAX_TOKENS, seed)
    return Dataset(
        folder, Manifest.read(folder), seed, window_rows, fields=("captions", "latent"), transform=transform
    )


def by_hand(folder: Path, tokenizer: Tokenizer, window_rows: int, stop: int, seed: int = 5) -> Iterator[list[int]]:
    """The row at each position, and of its captions the one that the seed and the position draw."""
    manifest = Manifest.read(folder)
    first, position = {}, 0
    for shard in manifest.shards:
        for index, count in enumerate(shard.row_groups):
            first[shard.file, index] = position
            position += count
    rows: list[int] = []
    for window in windows_between(manifest, seed, window_rows, 0, stop):
        read = [first[group.file, group.index] + row for group in window.groups for row in range(group.rows)]
        rows += [read[place] for place in row_order(window, seed).tolist()]
    for position, row in enumerate(rows[:stop]):
        captions = captions_of(ROWS)[row]
        [number] = draws.sample_seeds(seed, "caption", range(position, position + 1))
        yield tokenizer.encode(captions[number % len(captions)])


def check_row(columns: Columns, row: int, ids: list[int]) -> None:
    length = min(len(ids), MAX_TOKENS)
    assert columns["lengths"][row] == length
    assert columns["tokens"][row].tolist() == ids[:length] + [0] * (MAX_TOKENS - length)
    assert columns["cut"][row] == (len(ids) > MAX_TOKENS)


@pytest.mark.parametrize("window_rows", [1, 9, 1000])
def test_a_position_has_one_caption_in_any_batches(folder: Path, tokenizer: Tokenizer, window_rows: int) -> None:
    stop = 3 * ROWS
    expected = list(by_hand(folder, tokenizer, window_rows, stop))
    assert {len(ids) > MAX_TOKENS for ids in expected} == {True, False}
    for batch_size, start in ((5, 0), (50, 0), (7, 14)):
        data = dataset(folder, tokenizer, window_rows)
        batches = local_batches(
            data, batch_size=batch_size, start=start, stop=stop, collate=lambda columns, first: (columns, first)
        )
        for columns, first in batches:
            assert "captions" not in columns
            for row in range(len(columns["row_id"])):
                check_row(columns, row, expected[first + row])


def test_other_readers_of_a_window_draw_the_same(folder: Path, tokenizer: Tokenizer) -> None:
    """A task of Ray Data gets the data by pickle. It may read any window, in any order."""
    data = dataset(folder, tokenizer, 9)
    windows = list(data.windows(0, 2 * ROWS))
    others = [read_window(pickle.loads(pickle.dumps(data)), window) for window in reversed(windows)]
    for window, other in zip(windows, reversed(others), strict=True):
        ours = read_window(data, window)
        assert ours.keys() == other.keys() == {"row_id", "latent", "tokens", "lengths", "cut"}
        assert all(np.array_equal(ours[name], other[name]) for name in ours)
        assert ours["tokens"].dtype == ours["lengths"].dtype == ours["cut"].dtype == np.int32


def test_an_image_gets_all_of_its_captions_in_time(folder: Path, tokenizer: Tokenizer) -> None:
    """Each of four captions comes up about as often: 200 epochs, σ of a count is 6."""
    data, seen = dataset(folder, tokenizer, 1000), dict[bytes, int]()
    for window in data.windows(0, 200 * ROWS):
        columns = read_window(data, window)
        for tokens, row in zip(columns["tokens"], columns["row_id"], strict=True):
            if row == 3:
                seen[tokens.tobytes()] = seen.get(tokens.tobytes(), 0) + 1
    assert len(seen) == 4
    assert all(abs(count - 50) < 25 for count in seen.values())


def test_another_seed_draws_other_captions(folder: Path, tokenizer: Tokenizer) -> None:
    rows: Columns = {"row_id": np.arange(50), "captions": np.array([["one", "two", "three"]] * 50, dtype=object)}
    one, other = (DrawCaptions(tokenizer, MAX_TOKENS, seed)(rows, range(50))["tokens"] for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_a_row_without_captions_is_named_where_it_is_read(tokenizer: Tokenizer) -> None:
    rows: Columns = {"row_id": np.array([7, 9]), "captions": np.array([["one"], None], dtype=object)}
    rows["captions"][1] = np.array([], dtype=object)
    with pytest.raises(UserError, match="row_id 9 has no caption"):
        DrawCaptions(tokenizer, MAX_TOKENS, 0)(rows, range(2))


def test_rows_without_captions_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    captions = [[] if row % 2 else texts for row, texts in enumerate(captions_of(ROWS))]
    manifest = write_captioned(tmp_path / "shards", captions)
    with pytest.raises(UserError) as caught:
        check_captions(tmp_path / "shards", manifest)
    assert f"11 of 23 images in {tmp_path}/shards have no caption: key 1, key 3, key 5, key 7, key 9 …" in str(
        caught.value
    )
    rest = manifest.without([shard.file for shard in manifest.shards[1:]])
    with pytest.raises(UserError, match=r"5 of 10 images .*: key 1, key 3, key 5, key 7, key 9\n"):
        check_captions(tmp_path / "shards", rest)


def test_a_missing_text_in_a_list_counts_as_none(folder: Path) -> None:
    rewrite(folder, 0, put("captions", 2, ["a text", None]))
    with pytest.raises(UserError, match=r"1 of 23 images .*: key 2\n"):
        check_captions(folder, Manifest.read(folder))


@pytest.mark.parametrize("empty", [[], [None]])
@pytest.mark.parametrize("statistics", [True, False])
def test_every_way_of_having_no_caption_is_found(
    tmp_path: Path, empty: list[str | None], statistics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever row of a shard it is, and whether or not the file's footer counts nulls."""
    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda *args, **more: write(*args, write_statistics=statistics, **more))
    for row in range(10):
        captions = [empty if place == row else texts for place, texts in enumerate(captions_of(10))]
        folder = tmp_path / str(row)
        manifest = write_captioned(folder, captions)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=rf"1 of 10 images .*: key {row}\n"):
            check_captions(folder, manifest)
    check_captions(folder, write_captioned(folder, captions_of(10)))


def test_captions_of_complete_shards_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_tokens, "read_parquet", None)
    check_captions(folder, Manifest.read(folder))


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob(".tokenizer-*"))


def test_the_tokenizer_is_trained_once_and_kept(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(folder)
    assert find_tokenizer(folder, manifest, TEXT, None) is None
    assert kept(folder) == []
    assert open_tokenizer(folder, manifest, TEXT, None).json == tokenizer.json
    monkeypatch.setattr(caption_tokens, "train_bpe", None)
    for again in (open_tokenizer, find_tokenizer):
        found = again(folder, manifest, TEXT, None)
        assert found is not None
        assert found.json == tokenizer.json
    [path] = kept(folder)
    assert path.read_text() == tokenizer.json
    assert is_replaceable(folder)
    (folder / f".{path.name}.123").touch()  # of a process that was killed while it wrote
    assert is_replaceable(folder)
    checked = open_shards(folder)
    assert not checked.bad
    assert manifest == checked.manifest
    (folder / ".tokenizer-mine.json").touch()
    assert not is_replaceable(folder)


def test_other_sizes_and_other_data_have_their_own(folder: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(folder)
    sizes = [open_tokenizer(folder, manifest, TextConfig(vocabulary=size), None).size for size in (270, 280)]
    assert sizes == [270, 280]
    other = write_captioned(folder, [["entirely", "different", "words"]] * ROWS)
    assert find_tokenizer(folder, other, TextConfig(vocabulary=270), None) is None


def test_another_process_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    ours = open_tokenizer(folder, Manifest.read(folder), TEXT, None)
    code = (
        "import sys; from pathlib import Path; from causalfusion import TextConfig\n"
        "from causalfusion_platform.data.caption_tokens import open_tokenizer\n"
        "from causalfusion_platform.data.manifest import Manifest\n"
        "folder = Path(sys.argv[1])\n"
        f"text = TextConfig(vocabulary={TEXT.vocabulary})\n"
        "print(open_tokenizer(folder, Manifest.read(folder), text, None).digest)"
    )
    environment = run_environment(PYTHONHASHSEED="7", RAYON_NUM_THREADS="3", TOKENIZERS_PARALLELISM="true")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "copy")], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == ours.digest, done.stderr
    assert [path.read_bytes() for path in kept(folder)] == [path.read_bytes() for path in kept(tmp_path / "copy")]


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"'])
def test_a_damaged_one_is_trained_again(folder: Path, tokenizer: Tokenizer, content: str) -> None:
    manifest = Manifest.read(folder)
    open_tokenizer(folder, manifest, TEXT, None)
    [path] = kept(folder)
    path.write_text(content)
    assert open_tokenizer(folder, manifest, TEXT, None).json == tokenizer.json
    assert path.read_text() == tokenizer.json


def test_shards_that_cannot_be_written_get_one_all_the_same(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(caption_tokens, "write_atomically", refuse)
    assert open_tokenizer(folder, Manifest.read(folder), TEXT, None).json == tokenizer.json
    assert log_lines == [f"the tokenizer of {folder} is not kept (Permission denied): others train it again"]
    assert kept(folder) == []


def test_tokenizers_that_do_not_fit(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    manifest, given = Manifest.read(folder), tmp_path / "tokenizer.json"

    def fault(text: TextConfig, path: Path | None) -> str:
        with pytest.raises(UserError) as caught:
            find_tokenizer(folder, manifest, text, path)
        with pytest.raises(UserError) as again:
            open_tokenizer(folder, manifest, text, path)
        assert str(again.value) == str(caught.value)
        assert "data.tokenizer" in str(caught.value)
        return str(caught.value)

    assert f"there is no tokenizer at {given}" in fault(TEXT, given)
    given.write_text("{}")
    assert f"the tokenizer {given} cannot be used" in fault(TEXT, given)
    given.write_text(tokenizer.json)
    for source in (given, tmp_path):
        found = find_tokenizer(folder, manifest, TEXT, source)
        assert found is not None
        assert found.json == tokenizer.json
    size = tokenizer.size
    assert f"has {size} tokens, but the model's table {size - 1}" in fault(TextConfig(vocabulary=size - 1), given)
    assert "is not the tokenizer of the model's training" in fault(
        TextConfig(vocabulary=300, tokenizer_sha256="0" * 64), given
    )
    assert "model.text.vocabulary=257 is too small" in fault(TextConfig(vocabulary=257), None)


def test_a_kept_one_is_checked_too(folder: Path) -> None:
    manifest = Manifest.read(folder)
    open_tokenizer(folder, manifest, TEXT, None)
    other = TextConfig(vocabulary=TEXT.vocabulary, tokenizer_sha256="0" * 64)
    with pytest.raises(UserError, match="is not the tokenizer of the model's training"):
        open_tokenizer(folder, manifest, other, None)
    [path] = kept(folder)
    path.write_text(train_bpe(["larger " * 50, "words of other letters " * 9], vocabulary=310).json)
    tree = json.loads(path.read_text())
    tree["model"]["vocab"]["another"] = 305
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="tokens, but the model's table 300"):
        find_tokenizer(folder, manifest, TEXT, None)


def test_a_shard_that_cannot_be_read_is_named(folder: Path) -> None:
    manifest = Manifest.read(folder)
    (folder / manifest.shards[1].file).unlink()
    for read in (lambda: open_tokenizer(folder, manifest, TEXT, None), lambda: check_captions(folder, manifest)):
        with pytest.raises(UserError, match=f"shard {folder}/{manifest.shards[1].file} cannot be read"):
            read()
