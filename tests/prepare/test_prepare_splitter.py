"""`lcm prepare --splitter`: the manifest says which splitter was really used, and nothing falls back unasked."""

import json
import sys

import pytest
from stub_codec import StubCodec, use_codec
from tiny_sat import write_tiny_sat

from lcm.cli import main
from lcm.codec import load_codec
from lcm.codec.sat import SatModel
from lcm.codec.text import SatSettings, Splitter, SplitterSettings, splitter_settings
from lcm.config import CodecRecord
from lcm.data.dataset import PreparedData
from lcm.data.manifest import Manifest, open_dataset
from lcm.data.shards import read_documents
from lcm.errors import UserError
from lcm.prepare.command import prepare
from lcm.prepare.options import PrepareOptions

TEXT = "The sea was calm. 🌊 Nobody spoke and the boat went on " * 3 + "until night\nfell. 日本。"


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    use_codec(monkeypatch)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_tiny_sat(tmp_path_factory.mktemp("tiny-sat")))


def options(tmp_path, **more):
    rows = [{"id": f"d{i}", "text": f"{i} {TEXT}", "split": "train"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PrepareOptions(input=(str(tmp_path / "a.jsonl"),), output=str(tmp_path / "data"), **more)


@pytest.mark.needs("wtpsplit")
def test_a_text_is_cut_by_sat_and_so_are_the_prompts_of_its_models(tiny, tmp_path):
    manifest = prepare(options(tmp_path, splitter="sat", sat_model=tiny, sat_threshold=0.6))
    settings = SatSettings(model=tiny, threshold=0.6, fingerprint=SatModel(tiny).fingerprint)
    assert manifest.splitter == settings
    assert manifest.emojis == 9
    assert open_dataset(tmp_path / "data") == manifest
    record = PreparedData([tmp_path / "data"]).codec
    assert CodecRecord(**json.loads(record.model_dump_json())) == record
    splitter = Splitter(splitter_settings(record.splitter), lambda sentence: len(sentence.split()) <= 40)
    for i, document in enumerate(read_documents(tmp_path / "data", "train")):
        assert document.sentences == [*splitter.split(f"{i} {TEXT}"), "End of text."]
    assert document.sentences != [*Splitter(SplitterSettings()).split(f"{i} {TEXT}"), "End of text."]


def test_without_sat_the_run_ends_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wtpsplit", None)
    with pytest.raises(UserError, match=r"pip install 'lcm-train\[sat\]'.* or prepare with --splitter nupunkt"):
        prepare(options(tmp_path, splitter="sat"))
    assert not (tmp_path / "data").exists()


@pytest.mark.needs("wtpsplit")
def test_falling_back_to_nupunkt_is_optional_reported_and_recorded(tiny, tmp_path, monkeypatch, capsys):
    asked = options(tmp_path, splitter="sat-or-nupunkt", sat_model=str(tmp_path / "none"), max_characters=99)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    manifest = prepare(asked)
    assert manifest.splitter == SplitterSettings(max_characters=99)
    assert manifest.emojis == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "instead" in line]
    assert "splitting by nupunkt instead, as --splitter sat-or-nupunkt allows: SaT model" in line
    (tmp_path / "none").symlink_to(tiny)  # now that the model is there, it would be another data set
    with pytest.raises(UserError, match=r"made with splitter nupunkt, now sat \("):
        prepare(asked)


@pytest.mark.needs("wtpsplit")
def test_another_threshold_or_model_is_refused(tiny, tmp_path):
    prepare(options(tmp_path, splitter="sat", sat_model=tiny))
    with pytest.raises(UserError, match=r"made with splitter sat \(.*threshold 0.02\), now sat \(.*threshold 0.5\)"):
        prepare(options(tmp_path, splitter="sat", sat_model=tiny, sat_threshold=0.5))
    with pytest.raises(UserError, match="now nupunkt"):
        prepare(options(tmp_path))


def test_a_data_set_of_before_still_opens(tmp_path):
    manifest = prepare(options(tmp_path))
    values = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert values["splitter"] == {"name": "nupunkt", "max_characters": 256}
    before = {name: value for name, value in values.items() if name not in ("dataset", "emojis")}
    assert Manifest(**before) == manifest
    with pytest.raises(UserError, match="--sat-threshold=2"):
        options(tmp_path, sat_threshold=2.0)


@pytest.mark.needs("wtpsplit")
def test_the_splitter_of_the_packaged_codec_keeps_its_limit_under_sat(tiny):
    codec = load_codec("mini")
    sentences = Splitter(SatSettings(model=tiny, threshold=1.0), codec.fits).split(
        " ".join("zxqv" * 9 for _ in range(20))
    )
    assert all(codec.fits(sentence) for sentence in sentences)


def test_cuts_without_a_boundary_are_in_the_manifest_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("字" * 100)
    assert main(["prepare", "--input", "a.txt", "--output", "data", "--max-characters", "30"]) == 0
    assert open_dataset(tmp_path / "data").blocks == 3
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["blocks"] == 3
    assert "3 cuts without a boundary: sentences too long with nothing to cut at" in capsys.readouterr().err


def test_a_language_without_stops_is_refused_before_the_work_and_its_rows_by_the_worker(tmp_path, monkeypatch):
    class Thai(StubCodec):
        languages = ("eng_Latn", "tha_Thai")

    use_codec(monkeypatch, lambda name, *, device="cpu", compile_encoder=False: Thai(name))
    with pytest.raises(UserError, match="--lang=tha_Thai: Thai has no mark that ends a sentence"):
        prepare(options(tmp_path, lang="tha_Thai"))
    rows = [{"text": "One.", "l": "eng_Latn", "split": "train"}, {"text": "กรุงเทพ", "l": "tha_Thai"}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = PrepareOptions(input=(str(tmp_path / "b.jsonl"),), output=str(tmp_path / "both"), lang_column="l")
    refused = prepare(asked).refused["language without stops, see --splitter sat"]
    assert (refused.count, refused.first) == (1, "b.jsonl:2: tha_Thai")
