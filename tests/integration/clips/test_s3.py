"""Stills and clips in a real S3-compatible server that checks signatures."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import frozen

from relay.clips.s3 import MAX_RANGE_BYTES, S3Credentials, make_signer
from relay.clips.setup import open_storage
from relay.clips.storage import NotStored, PictureStorage
from relay.doctor.checks import Finding, Outcome
from relay.doctor.pictures import PictureChecks
from relay.errors import ConfigError
from relay.model.alerts.alert_picture import MICROSECONDS_A_DAY, PictureName
from relay.settings.settings import Settings
from tests.integration.relay_process import PATIENCE

boto3 = pytest.importorskip("boto3", reason="needs moto with its server")
pytest.importorskip("moto", reason="needs moto with its server")
pytest.importorskip("flask_cors", reason="needs moto with its server")

ALERT_ID = 20_000 * MICROSECONDS_A_DAY + 17
STILL, CLIP = PictureName(ALERT_ID, "still"), PictureName(ALERT_ID, "clip")
POLICY = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*",'
    ' "Resource": "*"}]}'
)
ACTIONS_BEFORE = 4
"""Of the test itself, which prepares the server; from then on signatures are checked."""


@frozen
class Bucket:
    """A bucket, and who may use it."""

    url: str
    key: str
    secret: str
    folder: Path

    def settings(self, **changes: object) -> Settings:
        file = self.folder / "credentials"
        file.write_text(f"{self.key}\n{self.secret}\n")
        file.chmod(0o600)
        given: dict[str, object] = {
            "picture_s3": f"{self.url}/relay",
            "picture_s3_credentials": file,
            "webhook_networks": ("127.0.0.0/8",),
        }
        return Settings(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(ACTIONS_BEFORE)}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield prepare(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("s3"))
    finally:
        process.kill()
        process.wait()


def prepare(endpoint: str, folder: Path) -> Bucket:
    """Make a bucket, and a user who may use it."""
    login = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **login).create_bucket(Bucket="kept")
    iam = boto3.client("iam", endpoint_url=endpoint, **login)
    iam.create_user(UserName="relay")
    iam.put_user_policy(UserName="relay", PolicyName="all", PolicyDocument=POLICY)
    made = iam.create_access_key(UserName="relay")["AccessKey"]
    return Bucket(f"{endpoint}/kept", made["AccessKeyId"], made["SecretAccessKey"], folder)


@pytest.fixture
async def storage(bucket: Bucket) -> AsyncIterator[PictureStorage]:
    async with open_storage(bucket.settings()) as storage:
        yield storage


async def content_of(storage: PictureStorage, name: PictureName) -> bytes:
    async with storage.open(name) as file:
        found = b""
        while more := await file.read(300_000):
            found += more
        assert file.size == len(found)
        return found


@pytest.mark.parametrize("size", [1, MAX_RANGE_BYTES, 2 * MAX_RANGE_BYTES + 17])
async def test_an_object_is_read_as_it_was_written(storage: PictureStorage, size: int) -> None:
    content = os.urandom(size)
    await storage.write(CLIP, [content[: size // 2], content[size // 2 :]])
    assert await content_of(storage, CLIP) == content


async def test_what_was_removed_is_not_there_and_removing_it_again_is_no_failure(
    storage: PictureStorage,
) -> None:
    await storage.write(STILL, [b"\xff\xd8\xff"])
    await storage.remove([STILL, CLIP])
    await storage.remove([STILL])
    with pytest.raises(NotStored, match=r"404 \(NoSuchKey\)"):
        await content_of(storage, STILL)


async def test_all_who_use_a_bucket_know_it_by_the_same_name(bucket: Bucket) -> None:
    async with (
        open_storage(bucket.settings()) as one,
        open_storage(bucket.settings(picture_s3=f"{bucket.url}/relay/")) as same,
        open_storage(bucket.settings(picture_s3=f"{bucket.url}/other")) as other,
    ):
        assert await one.place() == await same.place() != await other.place()


async def test_a_wrong_secret_is_told_and_not_shown(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wr0ng-secret")
    async with open_storage(bucket.settings(picture_s3_credentials=None)) as storage:
        with pytest.raises(NotStored, match=r"403 \(SignatureDoesNotMatch\)") as caught:
            await storage.write(STILL, [b"\xff\xd8\xff"])
        shown = f"{storage!r} {caught.value!r} {S3Credentials.read(None)!r}"
    assert "wr0ng" not in shown
    assert bucket.key not in shown


async def test_a_storage_that_is_away_or_slow_is_given_up(bucket: Bucket) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/kept"
        async with open_storage(bucket.settings(picture_s3=url)) as storage:
            with trio.move_on_after(0.2) as scope:
                await storage.write(STILL, [b"\xff\xd8\xff"])
            assert scope.cancelled_caught
    async with open_storage(bucket.settings(picture_s3=url)) as storage:
        with pytest.raises(NotStored, match="ConnectError"):
            await storage.write(STILL, [b"\xff\xd8\xff"])


@pytest.mark.parametrize("networks", [(), ("10.0.0.0/8",)])
async def test_private_addresses_are_for_networks_that_are_allowed(
    bucket: Bucket, networks: tuple[str, ...]
) -> None:
    async with open_storage(bucket.settings(webhook_networks=networks)) as storage:
        with pytest.raises(NotStored, match="none that webhooks may call"):
            await storage.write(STILL, [b"\xff\xd8\xff"])


async def test_an_answer_that_is_not_what_was_asked_for_is_no_picture(bucket: Bucket) -> None:
    async def answer_everything(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(
            b"HTTP/1.1 206 OK\r\nContent-Length: 3\r\nContent-Range: bytes 5-7/99\r\n\r\nabc"
        )

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(
            partial(trio.serve_tcp, answer_everything, 0, host="127.0.0.1")
        )
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/kept"
        async with open_storage(bucket.settings(picture_s3=url)) as storage:
            with pytest.raises(NotStored, match="other bytes"):
                await content_of(storage, STILL)
        nursery.cancel_scope.cancel()


def test_credentials_that_others_may_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("key\nsecret\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        S3Credentials.read(file)
    file.chmod(0o600)
    assert S3Credentials.read(file) == S3Credentials("key", "secret")
    for content in ("", "key", "a b c", "key\nsec\xe9ret"):
        file.write_text(content)
        with pytest.raises(ConfigError, match="access key and its secret") as caught:
            S3Credentials.read(file)
        assert "sec" not in str(caught.value).replace("secret", "")
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        S3Credentials.read(None, {})
    with pytest.raises(ConfigError, match="cannot read"):
        S3Credentials.read(tmp_path / "missing")


async def test_the_secret_goes_into_no_header(bucket: Bucket) -> None:
    sign = make_signer(S3Credentials("the-key", "the-secret"), "eu-central-1")
    headers = sign("PUT", "https://s3.example.org/kept/1/2.jpg", {}, b"body")
    assert re.search(r"Credential=the-key/\d{8}/eu-central-1/s3/aws4", headers["Authorization"])
    assert "the-secret" not in str(headers)
    assert len(headers["X-Amz-Content-SHA256"]) == 64


async def test_doctor_says_whether_it_can_be_written_to(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(settings: Settings) -> Finding:
        (check,) = PictureChecks(settings).checks()
        return await check.look()

    assert (await look(bucket.settings())).outcome is Outcome.OK
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wr0ng-secret")
    found = await look(bucket.settings(picture_s3_credentials=None))
    assert found.outcome is Outcome.FAIL
    assert "SignatureDoesNotMatch" in found.said
