"""A manifest with exactly one bad field, whichever, is refused by its name; values that only look right, too."""

import json
import os

import numpy as np
import pytest
from made_up_data import a_config, some_documents, write_data
from reading import DOCUMENTS, opened, trained

from lcm.data.manifest import InputFile, open_dataset
from lcm.data.shards import Shard, read_sample, read_shard
from lcm.data.verify import verify
from lcm.errors import UserError
from lcm.ledger import Entry


@pytest.fixture
def data(tmp_path):
    folder = write_data(tmp_path / "data", some_documents(12), some_documents(3, seed=1))
    entry, file = Entry(count=2, first="a.txt:7"), InputFile(path="a.txt", bytes=3, sha256="0" * 64)
    open_dataset(folder).model_copy(update={"refused": {"empty": entry}, "inputs": (file,)}).save(folder)
    return folder


def places_of(value, place=()):
    """Every value of a manifest, down to single numbers and strings."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*place, key)
        yield from places_of(child, (*place, key))


def refused(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError) as error:
        open_dataset(folder)
    assert "\n" not in str(error.value)
    assert str(folder / "manifest.json") in str(error.value)
    return str(error.value)


def changed(text, place):
    """A manifest, and the dict or list that holds the value at `place`."""
    manifest = json.loads(text)
    holder = manifest
    for key in place[:-1]:
        holder = holder[key]
    return manifest, holder


def places(text):
    """All but the options and the splitter's settings, which are many things."""
    return [place for place in places_of(json.loads(text)) if place[0] not in ("options", "splitter")]


def test_exactly_one_bad_field_is_refused_whichever_it_is(data):
    text = (data / "manifest.json").read_text()
    assert len(places(text)) > 50
    for place in places(text):
        manifest, holder = changed(text, place)
        good = holder[place[-1]]
        for bad in (None, [None], {"surplus": None}, True, 7 if isinstance(good, str) else "7"):
            holder[place[-1]] = bad
            if good is not bad:
                assert str(place[0]) in refused(data, manifest), (place, bad)


def test_a_missing_field_is_refused_unless_it_has_a_default(data):
    text = (data / "manifest.json").read_text()
    found = set()
    for place in places(text):
        manifest, holder = changed(text, place)
        if isinstance(holder, dict):
            del holder[place[-1]]
            (data / "manifest.json").write_text(json.dumps(manifest))
            try:
                open_dataset(data)
                found.add(".".join(map(str, place)))
            except UserError:
                pass
    splits = {"splits", "splits.train", "splits.validation", "splits.test"}
    assert found == {"dataset", "emojis", "refused.empty", *splits}


def test_a_surplus_field_is_refused_wherever_it_is(data):
    text = (data / "manifest.json").read_text()
    for place in [(), *places(text)]:
        manifest, holder = changed(text, (*place, "surplus"))
        if isinstance(holder, dict):
            holder["surplus"] = 1
            refused(data, manifest)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("codec.dim", 0),
        ("codec.dim", 5),
        ("codec.stop_threshold", float("nan")),
        ("codec.end_of_text", "0" * 63),
        ("emojis", -1),
        ("inputs.0.bytes", -3),
        ("inputs.0.sha256", "g" * 64),
        ("refused.empty.count", -1),
        ("splits.train.0.name", "../train-000000.tar"),
        ("splits.train.1.name", "train-000000.tar"),
        ("splits.train.0.name", "test-000000.tar"),
        ("splits.train.0.documents", -1),
        ("splits.train.0.documents", 10**9),
        ("splits.train.0.pairs", 11),
        ("splits.train.0.bytes", -1),
        ("splits.train.0.sha256", ""),
        ("splits.tain", []),
        ("normalizer.location", [0.0]),
        ("normalizer.location.0", float("nan")),
        ("normalizer.scale.3", float("inf")),
        ("normalizer.scale.0", 0.0),
        ("normalizer.scale.0", -1.0),
    ],
)
def test_a_value_of_the_right_type_that_no_data_set_has_is_refused(place, value, data):
    manifest = json.loads((data / "manifest.json").read_text())
    *way, last = (int(key) if key.isdigit() else key for key in place.split("."))
    holder = manifest
    for key in way:
        holder = holder[key]
    holder[last] = value
    refused(data, manifest)


def set_nan(folder, document):
    """NaN in a vector of the first shard, behind the back of its checksum. Returns the shard."""
    manifest = open_dataset(folder)
    shard = Shard(folder, manifest.shards("train")[0])
    offset = int(shard.load()[document, 0])
    with shard.path.open("r+b") as file:
        file.seek(offset)
        file.write(np.array([np.nan], np.float16).tobytes())
    return shard


def test_a_vector_that_is_not_finite_ends_whatever_reads_it(tmp_path):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    shard = set_nan(folder, 0)
    offset, concepts, _ = shard.load()[0].tolist()
    message = r"train-000000\.tar: a vector is not finite; 'lcm verify .*' says what is broken"
    with pytest.raises(UserError, match=message):
        shard.read(offset, concepts, 4)
    with pytest.raises(UserError, match=message):
        read_sample(shard.path, 0)
    with pytest.raises(UserError, match=message):
        list(read_shard(shard.path))
    assert [problem for problem in verify(folder).problems if "a vector is not finite" in problem]
    for workers in (0, 2):
        with pytest.raises(UserError, match=message):
            trained(opened(a_config(folder, data__workers=workers)), 40)


def test_a_tar_of_another_size_and_an_index_without_order_are_refused(tmp_path):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    shards = [Shard(folder, record) for record in open_dataset(folder).shards("train")]
    os.truncate(shards[0].path, shards[0].record.bytes - 1)
    with pytest.raises(UserError, match=r"train-000000\.tar: truncated: .* bytes, the manifest has"):
        shards[0].load()
    with shards[1].path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"train-000001\.tar: longer than it was"):
        shards[1].load()
    index = shards[2].load().copy()
    np.save(folder / "train-000002.index.npy", index[::-1])
    with pytest.raises(UserError, match=r"train-000002\.index\.npy: not an index; delete it and it is made anew"):
        shards[2].load()
