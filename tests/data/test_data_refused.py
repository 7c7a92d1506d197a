"""Data that cannot be trained on is refused in one line that names it."""

import os
from pathlib import Path

import numpy as np
import pytest
from made_up_data import END, a_config, some_documents, write_data
from reading import DOCUMENTS, opened, trained

from lcm.data.dataset import PreparedData
from lcm.data.manifest import open_dataset
from lcm.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "one", DOCUMENTS, validation=some_documents(25, seed=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_shard_is_named_in_one_line(tmp_path, workers):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    os.truncate(folder / "train-000003.tar", 9000)
    with pytest.raises(UserError, match=r"train-000003\.tar: truncated") as raised:
        trained(opened(a_config(folder, data__workers=workers)), 40)
    assert "\n" not in str(raised.value)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    (folder / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar: No such file"):
        trained(opened(a_config(folder)), 40)


def test_an_index_that_leaves_documents_out_is_refused(tmp_path):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    index = folder / "train-000001.index.npy"
    np.save(index, np.load(index)[:-1])
    with pytest.raises(UserError, match=r"train-000001\.tar: the index lists \(9, "):
        trained(opened(a_config(folder)), 40)


@pytest.mark.parametrize(("column", "value"), [(0, 1), (1, 0), (1, -4), (2, -1), (2, 10**6)])
def test_an_index_that_no_tar_has_is_refused(column, value, tmp_path):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    path = folder / "train-000001.index.npy"
    index = np.load(path)
    index[0, column] += value if column == 0 else value - index[0, column]
    np.save(path, index)
    with pytest.raises(UserError, match=r"train-000001\.index\.npy: not an index; delete it and it is made anew"):
        trained(opened(a_config(folder)), 40)


def test_an_index_with_prompts_that_the_manifest_does_not_count_is_refused(tmp_path):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    path = folder / "train-000001.index.npy"
    index = np.load(path)
    index[0, 2] = 0 if index[0, 2] else 1
    np.save(path, index)
    with pytest.raises(UserError, match=r"train-000001\.tar: the index lists .* documents, pairs and concepts"):
        trained(opened(a_config(folder)), 40)


def test_a_data_set_that_is_named_twice_is_refused_however_it_is_written(tmp_path, folder):
    (tmp_path / "link").symlink_to(folder)
    for again in (folder, f"{folder}/", f"{folder}/../{folder.name}", tmp_path / "link"):
        with pytest.raises(UserError, match=rf"data.path: .* is named twice, also as {folder}; name each"):
            PreparedData([folder, again])
    with pytest.raises(UserError, match=r"data.path: s3://b/x/ is named twice, also as s3://b/x"):
        PreparedData(["s3://b/x", "s3://b/x/"])


def test_data_that_cannot_be_trained_on_is_refused_in_one_line(tmp_path, folder):
    other_codec = write_data(tmp_path / "codec", DOCUMENTS[:9], fingerprint="bad")
    other_end = write_data(tmp_path / "end", DOCUMENTS[:9], end=END + 1)
    narrow = write_data(tmp_path / "narrow", DOCUMENTS[:9], dim=3)
    nothing = write_data(tmp_path / "nothing", [], validation=DOCUMENTS[:9])
    refused = {
        (): "data.path is empty",
        (tmp_path / "nowhere",): "nowhere: no data set there",
        (folder, other_codec): "fingerprint f00, 4 channels.*codec.*fingerprint bad",
        (folder, narrow): "4 channels.*narrow.*3 channels",
        (folder, other_end): "end with different vectors",
        (narrow,): "model.dim=4, but the concepts of .*narrow have 3 channels",
        (nothing,): "no document to train on",
    }
    for folders, expected in refused.items():
        with pytest.raises(UserError, match=expected) as raised:
            opened(a_config(*folders))
        assert "\n" not in str(raised.value)


def test_an_end_of_text_that_is_not_the_manifests_is_refused(tmp_path):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    manifest = open_dataset(folder)
    codec = manifest.codec.model_copy(update={"end_of_text": "0" * 64})
    manifest.model_copy(update={"codec": codec}).save(folder)
    with pytest.raises(UserError, match="does not end with the manifest's"):
        _ = opened(a_config(folder)).end_of_text
