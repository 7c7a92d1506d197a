"""An S3 bucket as data.path, through a server that speaks S3."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from made_up_data import a_config, some_documents, write_data
from reading import DOCUMENTS, as_rows, opened, trained

from lcm.config import save_config
from lcm.errors import UserError

pytestmark = [pytest.mark.needs("s3fs", "moto"), pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def endpoint():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("there") / "data", DOCUMENTS, validation=some_documents(25, seed=1))


@pytest.fixture
def bucket(endpoint, folder, monkeypatch):
    """The folder, uploaded. What a user sets in the environment, fsspec has read before this test."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.makedirs("bucket", exist_ok=True)
    files.put(str(folder), "bucket/wiki", recursive=True)
    yield files
    files.rm("bucket", recursive=True)


def test_batches_from_a_bucket_are_those_of_the_local_folder(bucket, folder, tmp_path):
    there = opened(a_config("s3://bucket/wiki", data__rows=1, data__workers=2, data__cache=str(tmp_path / "cache")))
    here = opened(a_config(folder, data__rows=1))
    micro_batches = len(here.order) + 10
    assert as_rows(trained(there, micro_batches)) == as_rows(trained(here, micro_batches))
    assert as_rows(list(there.val_dataloader())) == as_rows(list(here.val_dataloader()))


def test_a_missing_object_is_one_line(bucket, tmp_path):
    with pytest.raises(UserError, match=r"^s3://bucket/nothing/manifest\.json: not found \(tried once\); expected"):
        opened(a_config("s3://bucket/nothing"))
    bucket.rm("bucket/wiki/train-000003.tar")
    data = opened(a_config("s3://bucket/wiki", data__cache=str(tmp_path / "cache")))
    with pytest.raises(UserError, match=r"^s3://bucket/wiki/train-000003\.tar: not found \(tried once\); data\.skip"):
        trained(data)
    bucket.rm("bucket/wiki/train-000002.index.npy")
    trained(opened(a_config("s3://bucket/wiki", data__cache=str(tmp_path / "other"), data__skip_dead=True)), 40)


@pytest.mark.slow
def test_credentials_and_endpoint_come_from_the_environment(bucket, endpoint, tmp_path):
    save_config(a_config("s3://bucket/wiki", data__cache=str(tmp_path / "cache")), tmp_path / "run.yaml")
    command = [sys.executable, "-m", "lcm.cli", "train", "--check", "--config", str(tmp_path / "run.yaml")]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "FSSPEC_S3_ENDPOINT_URL": endpoint, "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "s3://bucket/wiki: " in done.stdout
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        environment.pop(name)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    told = "lcm train: s3://bucket/wiki/manifest.json: NoCredentialsError Unable to locate credentials (tried once); "
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1
