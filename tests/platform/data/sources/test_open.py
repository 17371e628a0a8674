"""What a location is taken for, and patterns of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.platform.data.sources.makers import STRICT, digit, keys_of, write_files, write_tar

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.sources import open_source
from causalfusion_platform.data.sources.files import list_files
from causalfusion_platform.data.sources.pattern import expand_braces, split_pattern


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.png", "part.tar"], r"1 tars \(part\.tar\), 1 images \(a/1\.png\)\n.*--kind"),
        (["a.parquet", "part.tar"], r"1 tars \(part\.tar\), 1 Parquet files \(a\.parquet\)\n.*--kind"),
        (["1.png", "2.png"], r"0 class folders and 0 files that may hold labels\n.*--labels FILE\.csv"),
        (["00/1.png", "dataset.json"], r"1 class folders and 1 files that .*\n.*--labels s/dataset\.json"),
        ([".git/1.png", "1.png"], "0 class folders"),
    ],
)
def test_unclear_folders_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    write_files(tmp_path / "s", dict.fromkeys(names, digit(0)))
    with pytest.raises(UserError, match=message):
        open_source("s/", policies=STRICT)


def test_a_kind_that_is_named_decides(tmp_path: Path) -> None:
    write_files(tmp_path / "s", {"a/1.png": digit(0), "a/x.parquet": b"none"})
    write_tar(tmp_path / "s/a/part.tar", [("0.png", digit(1)), ("0.cls", "0")])
    listing = open_source("s", kind="webdataset", policies=STRICT).listing()
    assert keys_of(listing) == ["a/part.tar/0.png"]
    listing = open_source("s", kind="folders", policies=STRICT).listing()
    assert keys_of(listing) == ["a/1.png", "a/part.tar", "a/x.parquet"]
    (tmp_path / "s/a/part.tar").rename(tmp_path / "odd.name")
    listing = open_source("odd.name", kind="webdataset", policies=STRICT).listing()
    assert keys_of(listing) == ["odd.name/0.png"]
    with pytest.raises(UserError, match=r"holds no \.tar file"):
        open_source("s", kind="webdataset", policies=STRICT)


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        ("nowhere", {}, "nowhere does not exist"),
        ("memory://nowhere-at-all/x", {}, "does not exist"),
        ("nope://x/y", {}, "nope://x/y cannot be opened"),
        ("empty", {}, "empty holds no file"),
        ("s", {"kind": "zip"}, "'zip' is not a kind of source"),
        ("s", {"kind": "flat"}, "needs a file of labels"),
        ("s", {"kind": "folders", "labels": "l.csv"}, "folders sources have their labels inside"),
        ("s/a/1.png", {}, r"1\.png is not a source of images"),
        ("s/a/1.png", {"kind": "folders"}, "is a file, not a folder"),
        ("s/*/1.png", {"kind": "flat", "labels": "l.csv"}, "is a pattern, not a folder"),
        ("s/*.tar", {}, r"s/\*\.tar matches no file"),
        ("no/*.tar", {}, "there is no folder no"),
        ("s/{0..3}.tar", {}, r"4 of 4 files are not there, such as 0\.tar"),
        ("s/{0..3.tar", {}, "brace without its partner"),
        ("s/{3..0}.tar", {}, r"\{3\.\.0\} is not a range"),
        ("s/{0..9999999}.tar", {}, "is not a range of at most"),
        ("s/{0..9999}{0..9999}.tar", {}, "stands for more than"),
        ("s/[z-a].tar", {}, "is not a pattern"),
    ],
)
def test_faults_are_named(tmp_path: Path, location: str, options: dict[str, str], message: str) -> None:
    write_files(tmp_path / "s", {"a/1.png": digit(0)})
    (tmp_path / "empty/inside").mkdir(parents=True)
    with pytest.raises(UserError, match=message) as error:
        open_source(location, policies=STRICT, **options)  # type: ignore[arg-type]
    assert "\n  " in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{000..003}.tar", ["a000.tar", "a001.tar", "a002.tar", "a003.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{x,yyy}-{0..1}.t", ["x-0.t", "x-1.t", "yyy-0.t", "yyy-1.t"]),
        ("{a,{b,c}}{,.}", ["a", "a.", "b", "b.", "c", "c."]),
        ("{a,a}", ["a"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    """As a shell expands them, without repetitions."""
    assert sorted(expand_braces(pattern)) == sorted(names)


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("/d/e/part-{0..3}.tar", ("/d/e", "part-{0..3}.tar")),
        ("/d/*/x-?.tar", ("/d", "*/x-?.tar")),
        ("*.tar", (".", "*.tar")),
        ("/*.tar", ("/", "*.tar")),
        ("s3://bucket/*.tar", ("s3://bucket", "*.tar")),
        ("s3://bucket/d/a-[01].tar?region=eu-west-1", ("s3://bucket/d?region=eu-west-1", "a-[01].tar")),
        ("zip://*.tar::file:///tmp/[x].zip", ("zip://::file:///tmp/[x].zip", "*.tar")),
        ("zip://d/{a,b}.tar::s3://b/x.zip?anon=1", ("zip://d::s3://b/x.zip?anon=1", "{a,b}.tar")),
    ],
)
def test_a_pattern_splits_at_its_first_wildcard(location: str, parts: tuple[str, str]) -> None:
    assert split_pattern(location) == parts


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.tar", ["a.tar", "b.tar"]),
        ("?.tar", ["a.tar", "b.tar"]),
        ("[!a].tar", ["b.tar"]),
        ("*/a.tar", ["d/a.tar"]),
        ("**/a.tar", ["a.tar", "d/a.tar", "d/e/a.tar"]),
        ("d/**", ["d/a.tar", "d/e/a.tar"]),
        ("{a,b}.t*r", ["a.tar", "b.tar"]),
        ("a.tar", ["a.tar"]),
    ],
)
def test_wildcards_stay_inside_one_folder(tmp_path: Path, pattern: str, names: list[str]) -> None:
    write_files(tmp_path / "s", dict.fromkeys(["a.tar", "b.tar", "atar", "d/a.tar", "d/e/a.tar"], b"x"))
    files = list_files(f"s/{pattern}")
    assert sorted(files.path(name) for name in files.names) == [str(tmp_path / "s" / name) for name in names]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    write_files(tmp_path / "s[1]{2}*", {"a/1.png": digit(0)})
    assert keys_of(open_source("s[1]{2}*", policies=STRICT).listing()) == ["a/1.png"]
    assert keys_of(open_source(str(tmp_path / "s[1]{2}*"), policies=STRICT).listing()) == ["a/1.png"]
