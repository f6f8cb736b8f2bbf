"""The cache of compiled functions: listing, bounds, and archives of it. No compiler runs here."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from torchcc import cache, cli, package, package_reader, package_writer
from torchcc.errors import ArgumentError, PackageError
from torchcc.signature import Signature, Value


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHCC_CACHE", str(tmp_path / "torchcc"))
    cache.make_folder(cache.folder())
    return cache.folder()


def add(key: str, age: float = 0, size: int = 1000) -> Path:
    """An entry whose code is ``size`` zeros."""
    code = cache.folder().parent / "model.so"
    code.write_bytes(bytes(size))
    signature = Signature("step", (Value("x", "float32", (2, 3)),), (Value("out", "float32", (2,)),))
    file = cache.folder() / f"{key}.pt2"
    function = package.Function(signature, None, [package.Variant([str(code)])])
    package_writer.write(file, [function], {package.KEY: key}, private=True)
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def keys() -> list[str]:
    return [entry.key for entry in cache.entries()]


def test_entries_are_private_and_sorted_by_use() -> None:
    add("old", age=50)
    add("new")
    assert keys() == ["new", "old"]
    assert cache.folder().stat().st_mode & 0o777 == 0o700
    assert {entry.file.stat().st_mode & 0o777 for entry in cache.entries()} == {0o600}
    assert [one for one in cache.folder().iterdir() if one.suffix != ".pt2"] == []


def test_what_is_unused_for_longest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [add(key, age) for key, age in (("c", 30), ("b", 20), ("a", 10))]
    size = files[0].stat().st_size
    cache.evict()
    assert keys() == ["a", "b", "c"]
    monkeypatch.setenv("TORCHCC_CACHE_LIMIT", str(2 * size))
    cache.evict()
    assert keys() == ["a", "b"]
    monkeypatch.setenv("TORCHCC_CACHE_LIMIT", "1")
    cache.evict(keep=cache.folder() / ".." / "compiled" / "b.pt2")
    assert keys() == ["b"]
    monkeypatch.setenv("TORCHCC_CACHE_LIMIT", "1 GB")
    with pytest.raises(ArgumentError, match="not a number"):
        cache.evict()


def test_what_killed_processes_left_goes_after_a_while() -> None:
    for name, age in ((".torchcc-1-old", 4000), (".torchcc-2-new", 0)):
        left = cache.folder() / name
        left.mkdir()
        (left / "half.pt2").write_text("half")
        os.utime(left, (time.time() - age, time.time() - age))
    cache.evict()
    assert [one.name for one in cache.folder().iterdir()] == [".torchcc-2-new"]


def test_clear() -> None:
    size = add("a").stat().st_size
    (cache.folder() / "b.slower").write_text("eager is faster\n")
    assert cache.clear() == size
    assert list(cache.folder().iterdir()) == []
    cache.folder().rmdir()
    assert cache.clear() == 0


def test_an_archive_brings_the_entries_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {key: add(key).read_bytes() for key in ("a", "b-frozen")}
    archive = tmp_path / "shipped.tar"
    (cache.folder() / "c.slower").write_text("eager is faster\n")
    assert cache.export_to(archive) == 2
    assert sorted(tmp_path.iterdir()) == [archive, tmp_path / "torchcc"]
    monkeypatch.setenv("TORCHCC_CACHE", str(tmp_path / "elsewhere"))
    assert cache.import_from(archive) == 2
    assert {entry.key: entry.file.read_bytes() for entry in cache.entries()} == contents
    assert (cache.folder() / "c.slower").read_text() == "eager is faster\n"
    assert {entry.file.stat().st_mode & 0o777 for entry in cache.entries()} == {0o600}
    assert cache.folder().stat().st_mode & 0o777 == 0o700
    with pytest.raises(ArgumentError, match="it cannot be written"):
        cache.export_to(tmp_path / "none" / "shipped.tar")


def member(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


@pytest.mark.parametrize(
    "evil",
    [
        member("../escaped.pt2"),
        member("/tmp/escaped.pt2"),
        member("sub/escaped.pt2"),
        member(".hidden.pt2"),
        member("a.so"),
        member("link.pt2", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard.pt2", type=tarfile.LNKTYPE, linkname="good.pt2"),
        member("folder.pt2", type=tarfile.DIRTYPE),
        member("pipe.pt2", type=tarfile.FIFOTYPE),
        member("text.pt2", b"no archive"),
        member("good.pt2", b"twice"),
        member("long.slower", b"x" * 5000),
    ],
    ids=lambda one: one[0].name,
)
def test_an_archive_with_something_else_is_refused_whole(evil: tuple[tarfile.TarInfo, bytes], tmp_path: Path) -> None:
    good = add("good")
    content = good.read_bytes()
    good.unlink()
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as opened:
        for info, data in (member("good.pt2", content), evil):
            opened.addfile(info, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((PackageError, ArgumentError)):
        cache.import_from(archive)
    assert sorted(tmp_path.rglob("*")) == before
    assert keys() == []


def test_a_damaged_entry_is_refused(tmp_path: Path) -> None:
    file = add("a")
    content = bytearray(file.read_bytes())
    content[content.index(bytes(500)) + 250] = 1
    file.write_bytes(content)
    with pytest.raises(PackageError, match="it cannot be read"):
        package_reader.check(file)
    cache.export_to(tmp_path / "a.tar")
    cache.clear()
    with pytest.raises(PackageError):
        cache.import_from(tmp_path / "a.tar")
    for text in (b"", content[:400]):
        file.write_bytes(text)
        with pytest.raises(PackageError):
            package_reader.check(file)


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("nothing")
    for file in (tmp_path / "x.tar", tmp_path / "missing.tar"):
        with pytest.raises(ArgumentError, match="it cannot be imported"):
            cache.import_from(file)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli.app, ["cache", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_command(tmp_path: Path) -> None:
    add("a")
    (cache.folder() / "broken.pt2").write_text("half")
    text = run("list")
    assert f"{cache.folder()}: 2 entries" in text
    assert "frozen   step(x: float32[2, 3]) -> float32[2]" in text
    assert "damaged  broken" in text
    listed = json.loads(run("list", "--json"))
    assert [(one["key"], one.get("signature")) for one in listed["entries"]] == [
        ("broken", None),
        ("a", "step(x: float32[2, 3]) -> float32[2]"),
    ]
    (cache.folder() / "broken.pt2").unlink()
    assert "1 entries written" in run("export", tmp_path / "x.tar")
    assert "removed" in run("clear")
    assert "1 entries added" in run("import", tmp_path / "x.tar")
    assert keys() == ["a"]
