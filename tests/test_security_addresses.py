"""Addresses of shards: the few kinds that are followed, and secrets that are not repeated."""

import io
import urllib.request
from importlib import import_module
from pathlib import Path
from unittest import mock

import fsspec
import pytest

import toolkit.train
from evaluation import fid as fid_command
from evaluation.sources.opening import open_source
from shards.inspect import __main__ as inspect_command
from shards.report import __main__ as report_command
from tests.shard_server import send, serving
from toolkit.config import ResolvedConfig
from toolkit.data import fetching
from toolkit.data.addresses import check_address
from toolkit.data.fetching import fetch
from toolkit.data.remote_shards import open_shards
from toolkit.data.shard_reader import ShardSet
from toolkit.errors import UserError

REFUSED = (
    "ftp://host/x", "ssh://host/x", "sftp://host/x", "hf://datasets/x/y", "file:///etc/passwd", "memory://x",
    "pipe:curl https://host/x", "pipe://x", "data://x", "git://host/x", "gcs://bucket/x", "http://host/x",
    "http://127.0.0.1.host/x", "http://127.0.0.2/x", "http://169.254.169.254/latest", "simplecache::s3://bucket/x",
    "s3://bucket/x::memory://y", "zip://x::https://host/y", "https://host/{000..999}", "s3://bucket/*", "s3://$BUCKET/x",
    "gs://bucket/`touch canary`", "gs://bucket/$(touch canary)", "https://host/a b", "https://host/a\nb", "https://",
    "https:///x", "s3://", "s3://bucket:80/x", "https://host:port/x", "https://[::1/x", "https://host\\x/y", "://x",
)  # fmt: skip


@pytest.mark.parametrize("location", REFUSED)
def test_nothing_else_is_followed(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXT_GAN_CACHE", str(tmp_path / "cache"))
    with (
        mock.patch("subprocess.Popen") as popen,
        mock.patch("os.system") as system,
        mock.patch("os.posix_spawn") as spawn,
        mock.patch("socket.socket.connect") as connect,
        mock.patch("socket.getaddrinfo") as lookup,
        mock.patch.object(urllib.request, "urlopen") as urlopen,
        mock.patch.object(fsspec, "filesystem") as filesystem,
    ):
        for ask in (
            lambda: toolkit.train.main(ResolvedConfig(data=location, out_dir="run")),
            lambda: inspect_command.main(inspect_command.InspectOptions(location, verify=True)),
            lambda: report_command.main(report_command.ReportOptions(location)),
            lambda: open_shards(location),
        ):
            with pytest.raises(UserError, match="pass a") as refused:
                ask()
            assert "\n" not in str(refused.value)
    for called in (popen, system, spawn, connect, lookup, urlopen, filesystem):
        called.assert_not_called()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://host/a/b/", "https://host/a/b"),
        ("HTTPS://host:8443/a", "https://host:8443/a"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("gs://bucket", "gs://bucket"),
        ("http://localhost:80/a", "http://localhost:80/a"),
        ("http://127.0.0.1:80/a", "http://127.0.0.1:80/a"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
    ],
)
def test_these_are(location, expected):
    assert check_address(location) == expected


SECRET = "t0psecret"


@pytest.mark.parametrize(
    "location",
    [
        f"https://user:{SECRET}@host/x",
        f"https://{SECRET}@host/x",
        f"s3://key:{SECRET}@bucket/x",
        f"https://host/x?X-Amz-Signature={SECRET}",
        f"https://host/x#token={SECRET}",
        f"ftp://user:{SECRET}@host/x",
        f"simplecache::s3://key:{SECRET}@bucket/x",
        f"https://user:{SECRET}/more@host/x",
        f"{SECRET}://user@host/x",
    ],
)
def test_secrets_in_an_address_are_refused_and_not_repeated(location, capsys):
    for ask in (
        lambda: open_shards(location),
        lambda: open_source(location),
        lambda: inspect_command.main(inspect_command.InspectOptions(location)),
        lambda: fid_command.fid(fid_command.FidOptions(real=location, fake="runs")),
    ):
        with pytest.raises(UserError) as refused:
            ask()
        assert SECRET not in str(refused.value)
        assert "credentials belong in the environment" in str(refused.value)
    assert SECRET not in "".join(capsys.readouterr())


def test_a_signed_address_that_a_server_leads_to_is_not_repeated(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(fetching, "PAUSES", ())
    with serving(tmp_path) as server:
        where = f"{server.address}/signed?X-Amz-Signature={SECRET}"
        server.answers["manifest.json"] = lambda handler, data: send(handler, 302, b"", Location=where)
        server.answers[f"signed?X-Amz-Signature={SECRET}"] = lambda handler, data: send(handler, 403, b"")
        with pytest.raises(UserError, match="403") as refused:
            fetch(f"{server.address}/manifest.json", tmp_path / "x", 1, 10)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("target", ["http://host.invalid/x", "http://169.254.169.254/x", "ftp://host.invalid/x"])
def test_redirects_out_of_safety_are_not_followed(tmp_path, monkeypatch, target):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(fetching, "PAUSES", ())
    with serving(tmp_path) as server:
        server.answers["x"] = lambda handler, data: send(handler, 301, b"", Location=target)
        with pytest.raises(UserError, match="redirects to .*, which is not followed"):
            fetch(f"{server.address}/x", tmp_path / "x", 1, 10)


@pytest.mark.parametrize(("address", "package"), [("s3://bucket/x", "s3fs"), ("https://host/x", "aiohttp")])
def test_a_missing_package_is_named(monkeypatch, tmp_path, address, package):
    def missing(kind):
        raise ImportError("no module")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=f"needs the package {package}: pip install {package}"):
        fetch(address, tmp_path / "x", 1, 10)


class Bucket(fsspec.AbstractFileSystem):
    """Stands for s3fs: a local folder under the names of a bucket."""

    protocol = ("s3",)
    root = Path()

    def _open(self, path: str, mode: str = "rb", **kwargs) -> io.FileIO:
        if not (self.root / path).is_file():
            raise FileNotFoundError(path)
        return (self.root / path).open("rb")


def test_shards_in_a_bucket(tmp_path, monkeypatch, shard_folder):
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "dishes").symlink_to(shard_folder)
    monkeypatch.setitem(import_module("fsspec.registry")._registry, "s3", Bucket)
    monkeypatch.setattr(Bucket, "root", tmp_path)
    monkeypatch.setenv("TEXT_GAN_CACHE", str(tmp_path / "cache"))
    there, here = open_shards("s3://bucket/dishes/"), ShardSet(shard_folder)
    assert [there.read(i)[:2] for i in range(24)] == [here.read(i)[:2] for i in range(24)]
    source = open_source("s3://bucket/dishes", count=4)
    assert (source.name, source.kind) == ("s3://bucket/dishes", "shards")
    assert source.captions == open_source(shard_folder, count=4).captions
    with pytest.raises(UserError, match="s3://bucket/none/manifest.json cannot be fetched .no such file"):
        open_shards("s3://bucket/none")
