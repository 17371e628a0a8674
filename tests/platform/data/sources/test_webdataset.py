"""Tars of samples."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest
from tests.platform.data.sources.makers import (
    STRICT,
    allow,
    contents_of,
    digit,
    keys_of,
    labels_of,
    photograph,
    write_tar,
)

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.faults import FaultStop
from causalfusion_platform.data.sources import open_source

LONG = "a folder/" + "x" * 120 + "é"


def two_tars(folder: Path) -> dict[str, bytes]:
    """Write two tars; return key → image."""
    write_tar(
        folder / "part-001.tar",
        [("n/0002.jpg", photograph("china")), ("n/0002.cls", "3"), ("0001.cls", " 1\n"), ("0001.png", digit(0))],
    )
    write_tar(folder / "part-000.tar", [(f"{LONG}.cls", "0"), (f"{LONG}.JPEG", photograph("flower"))])
    return {
        "part-001.tar/n/0002.jpg": photograph("china"),
        "part-001.tar/0001.png": digit(0),
        f"part-000.tar/{LONG}.JPEG": photograph("flower"),
    }


def test_samples_of_a_folder_of_tars(tmp_path: Path) -> None:
    images = two_tars(tmp_path / "tars")
    (tmp_path / "tars" / "sizes.json").write_text("{}")
    source = open_source("tars", policies=STRICT)
    listing = source.listing()
    assert (listing.kind, listing.shuffled, listing.class_names) == ("webdataset", False, ["0", "1", "2", "3"])
    assert keys_of(listing) == sorted(images, key=str.encode)
    assert labels_of(listing) == {
        "part-001.tar/n/0002.jpg": "3",
        "part-001.tar/0001.png": "1",
        f"part-000.tar/{LONG}.JPEG": "0",
    }
    assert contents_of(source) == images
    for row in listing.table.to_pylist():  # the places, against the bytes of the tars
        stored = Path(row["file"]).read_bytes()[row["offset"] :][: row["size"]]
        assert stored == images[row["key"]]
        assert row["row_group"] == -1


def test_a_tar_a_pattern_and_a_folder_agree(tmp_path: Path) -> None:
    images = two_tars(tmp_path / "tars")
    whole = open_source("tars", policies=STRICT).listing()
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "tars").iterdir():
        memory.pipe(f"/sources-wds/{path.name}", path.read_bytes())
    try:
        for place in (
            "tars/part-{000..001}.tar",
            "tars/part-*.tar",
            str(tmp_path / "tars" / "part-00[01].tar"),
            f"file://{tmp_path}/tars/*.tar",
            "memory://sources-wds/*.tar",
            "memory://sources-wds/part-{001,000}.tar",
        ):
            source = open_source(place, policies=STRICT)
            assert source.listing().digest == whole.digest, place
            assert contents_of(source) == images, place
    finally:
        memory.rm("/sources-wds", recursive=True)
    one = open_source("tars/part-001.tar", policies=STRICT).listing()
    assert keys_of(one) == [key for key in keys_of(whole) if key.startswith("part-001.tar/")]


def test_the_reader_jumps_between_tars_after_pickling(tmp_path: Path) -> None:
    images = two_tars(tmp_path / "tars")
    source = open_source("tars", policies=STRICT)
    table = source.listing().table.take([2, 0, 1, 0, 2])
    reader = pickle.loads(pickle.dumps(source.reader()))
    assert list(reader.read(table)) == [images[key] for key in table["key"].to_pylist()]


def test_labels_and_captions_in_json(tmp_path: Path) -> None:
    def sample(name: str, content: object) -> list[tuple[str, bytes | str]]:
        return [(f"{name}.png", digit(0)), (f"{name}.json", json.dumps(content))]

    write_tar(
        tmp_path / "t.tar",
        sample("a", {"label": "dog", "kind": 5, "text": "one"})
        + sample("b", {"label": "cat", "kind": 7, "text": ["two", "three"]})
        + sample("c", {"label": "dog", "kind": 0}),
    )
    listing = open_source("t.tar", caption_column="text", policies=STRICT).listing()
    assert listing.class_names == ["cat", "dog"]
    assert labels_of(listing) == {"t.tar/a.png": "dog", "t.tar/b.png": "cat", "t.tar/c.png": "dog"}
    assert listing.table["captions"].to_pylist() == [["one"], ["two", "three"], []]
    listing = open_source("t.tar", label_column="kind", policies=STRICT).listing()
    assert listing.table["label"].to_pylist() == [5, 7, 0]
    with pytest.raises(FaultStop, match=r"no integer or name 'knd' \(and 2 more\)"):
        open_source("t.tar", label_column="knd", policies=STRICT).listing()
    with pytest.raises(UserError, match=r"no sample of t\.tar has the caption 'txet'"):
        open_source("t.tar", caption_column="txet", policies=STRICT).listing()
    with pytest.raises(UserError, match="'kind' is neither text nor a list of texts"):
        open_source("t.tar", caption_column="kind", policies=STRICT).listing()


def test_cls_comes_before_json_and_captions_from_txt(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "t.tar",
        [
            ("a.jpg", photograph("china")),
            ("a.cls", "2"),
            ("a.json", '{"label": 9}'),
            ("a.txt", " a temple \n"),
            ("b.jpg", photograph("flower")),
            ("b.cls", "0"),
            ("b.json", '{"label": 8}'),
        ],
    )
    listing = open_source("t.tar", caption_column="txt", policies=STRICT).listing()
    assert listing.table["label"].to_pylist() == [2, 0]
    assert listing.table["captions"].to_pylist() == [["a temple"], []]
    by_key = open_source("t.tar", label_column="label", policies=STRICT).listing()
    assert by_key.table["label"].to_pylist() == [9, 8]


def test_a_name_ends_at_its_first_dot(tmp_path: Path) -> None:
    """The mask a.seg.png belongs to sample a, whose image is a.png; b.v2.png is the only image of b."""
    write_tar(
        tmp_path / "t.tar",
        [
            ("d.x/a.seg.png", digit(0)),
            ("d.x/a.png", digit(1)),
            ("d.x/a.cls", "0"),
            ("b.v2.png", digit(2)),
            ("b.cls", "0"),
        ],
    )
    source = open_source("t.tar", policies=STRICT)
    assert contents_of(source) == {"t.tar/b.v2.png": digit(2), "t.tar/d.x/a.png": digit(1)}


def test_dots_in_names_are_named(tmp_path: Path) -> None:
    """As two pictures of one sample, or as a label that is not found."""
    pairs = [(f"d.x/22.0{row}.{end}", digit(row)) for row in range(2) for end in ("png", "cls")]
    write_tar(tmp_path / "t.tar", pairs)
    with pytest.raises(UserError) as caught:
        open_source("t.tar", policies=STRICT).listing()
    assert str(caught.value).startswith(
        "t.tar: d.x/22.00.png and d.x/22.01.png are images of one sample: d.x/22.00.png has several dots, "
    )
    assert "with other names, such as d.x/22_00.png. Or name the extension" in str(caught.value)
    assert "--image-column 00.png" in str(caught.value)
    write_tar(tmp_path / "u.tar", [("a.v1.png", digit(0)), ("a.v1.cls", "0"), ("b.png", digit(1)), ("b.cls", "0")])
    with pytest.raises(FaultStop, match=r"^u\.tar/a\.v1\.png: .*a\.v1\.cls has several dots, and WebDataset ends"):
        open_source("u.tar", policies=STRICT).listing()
    write_tar(tmp_path / "v.tar", [("a.v1.png", digit(0)), ("a.v1.txt", "a text")])
    with pytest.raises(UserError, match=r"caption 'txt': a\.v1\.txt has several dots"):
        open_source("v.tar", caption_column="txt", policies=STRICT).listing()


def test_two_images_in_one_sample_need_a_choice(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a.jpg", photograph("china")), ("a.png", digit(1)), ("a.cls", "0")])
    with pytest.raises(UserError, match=r"a\.jpg and a\.png are images of one sample\n.*--image-column jpg"):
        open_source("t.tar", policies=STRICT).listing()
    source = open_source("t.tar", image_column="png", policies=STRICT)
    assert contents_of(source) == {"t.tar/a.png": digit(1)}


def test_incomplete_samples_stop_or_are_counted(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "t.tar",
        [
            ("ok.png", digit(0)),
            ("ok.cls", "1"),
            ("nolabel.png", digit(1)),
            ("bad.png", digit(2)),
            ("bad.cls", "dog"),
            ("minus.png", digit(3)),
            ("minus.cls", "-1"),
            ("noimage.cls", "4"),
            ("README", "hello"),
            ("half.png", digit(4)),
            ("half.json", '{"label": 3.5}'),
            ("broken.png", digit(5)),
            ("broken.json", "{"),
        ],
    )
    with pytest.raises(FaultStop, match=r"^t\.tar/README: unlabelled: the sample has no image.*and 5 more"):
        open_source("t.tar", policies=STRICT).listing()
    with pytest.raises(FaultStop, match=r"^t\.tar/noimage: missing: the sample has no image, only \.cls$"):
        open_source("t.tar", policies=allow("unlabelled=skip")).listing()
    listing = open_source("t.tar", policies=allow("unlabelled=skip", "missing=skip")).listing()
    assert {key: (finding.kind, finding.detail) for key, finding in listing.findings} == {
        "t.tar/README": ("unlabelled", "the sample has no image, only ."),
        "t.tar/bad.png": ("unlabelled", "its .cls holds 'dog', no class number"),
        "t.tar/broken.png": ("unlabelled", "its .json has no integer or name 'label'"),
        "t.tar/half.png": ("unlabelled", "its .json has no integer or name 'label'"),
        "t.tar/minus.png": ("unlabelled", "its label is negative"),
        "t.tar/noimage": ("missing", "the sample has no image, only .cls"),
        "t.tar/nolabel.png": ("unlabelled", "the sample has no label"),
    }
    assert len(listing.findings) == 7
    assert keys_of(listing) == ["t.tar/ok.png"]


def test_a_member_may_be_there_once_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a.png", digit(0)), ("a.cls", "0"), ("a.png", digit(1))])
    with pytest.raises(UserError, match=r"holds a\.png twice"):
        open_source("t.tar", policies=STRICT).listing()


def test_every_cut_of_a_tar_is_found(tmp_path: Path) -> None:
    """Cut inside content, inside a header, between members, and before the end mark."""
    path = write_tar(tmp_path / "t.tar", [("a.png", digit(0)), ("a.cls", "0"), ("b.png", digit(1)), ("b.cls", "1")])
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + 512
    cuts = [cut for member in members for cut in (member.offset, member.offset + 100, member.offset_data + 1)][1:]
    for cut in [*cuts, end, end + 100]:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"t\.tar.*(cut off|damaged)"):
            open_source("t.tar", policies=STRICT).listing()
    path.write_bytes(whole[: end + 512])  # one block of zeros ends it already
    assert open_source("t.tar", policies=STRICT).listing().table.num_rows == 2


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.png", digit(0)), ("a.cls", "0"), ("b.png", digit(1)), ("b.cls", "1")])
    with tarfile.open(path) as tar:
        offset = tar.getmember("b.png").offset
    content = bytearray(path.read_bytes())
    content[offset + 110] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"cut off or damaged after 2 files, at byte {offset}"):
        open_source("t.tar", policies=STRICT).listing()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_members_without_content_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "t.tar", [("d/a.png", digit(0)), ("d/a.cls", "0")])
    with tarfile.open(path, "a") as tar:
        header = tarfile.TarInfo("d/b.png")
        header.type, header.linkname = kind, "d/a.png"
        tar.addfile(header)
    with pytest.raises(UserError, match=r"t\.tar: member d/b\.png is a link"):
        open_source("t.tar", policies=STRICT).listing()


def test_folders_in_tars_and_leading_dots(tmp_path: Path) -> None:
    """As `tar cf t.tar .` writes them."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        folder = tarfile.TarInfo("./d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in (("./d/a.png", digit(0)), ("./d/a.cls", b"0")):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    assert contents_of(open_source("t.tar", policies=STRICT)) == {"t.tar/d/a.png": digit(0)}


def test_a_tar_that_shrinks_after_listing_cannot_be_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.png", digit(0)), ("a.cls", "0")])
    source = open_source("t.tar", policies=STRICT)
    table = source.listing().table
    path.write_bytes(path.read_bytes()[: 512 + 20])
    [content] = source.reader().read(table)
    assert isinstance(content, OSError)
    assert f"ends {len(digit(0)) - 20} bytes before" in str(content)


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.TAR.ZST", "t.tar.xz", "t.tar.bz2"])
@pytest.mark.parametrize("kind", ["auto", "webdataset"])
def test_compressed_tars_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    write_tar(tmp_path / "s" / "good.tar", [("a.png", digit(0)), ("a.cls", "0")])
    (tmp_path / "s" / name).write_bytes(b"\x1f\x8b")
    for place in ("s", f"s/{name}"):
        with pytest.raises(UserError, match=r"is compressed.*\n.*unpack it"):
            open_source(place, kind=kind, policies=STRICT)  # type: ignore[arg-type]
