"""The marks of prompts and texts: other sentences than the usual ones, and wishes for a length, from data to model."""

import json
from pathlib import Path

import pytest
import torch
from fakes import FakeCodec
from stub_codec import StubCodec, use_codec

from lcm.codec.text import is_length_wish, length_wish
from lcm.config import BaseLCMConfig, Config, DataConfig
from lcm.data.dataset import PreparedData
from lcm.data.shards import read_documents
from lcm.data.verify import verify
from lcm.errors import UserError
from lcm.evaluation.examples import from_folders
from lcm.inference import LCM, Bank
from lcm.models import build_model
from lcm.prepare.command import prepare
from lcm.prepare.options import PrepareOptions
from lcm.training.finetune import Trained

ROWS = [
    {"id": f"d{i}", "document": "One is. Two is. Three is. Four is.", "summary": "Sum it.", "split": "train"}
    for i in range(40)
]


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    use_codec(monkeypatch)


def prepared(tmp_path, name="data", **more):
    source = tmp_path / f"{name}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    output = str(tmp_path / name)
    prepare(PrepareOptions(**{"input": (str(source),), "output": output, "pairs": True, **more}))
    return output


def test_a_wish_for_the_true_length_begins_the_prompts_of_half_of_the_pairs(tmp_path):
    folder = prepared(tmp_path, lengths=True)
    documents = list(read_documents(Path(folder), "train"))
    wished = [document for document in documents if is_length_wish(document.sentences[0])]
    assert 12 <= len(wished) <= 28
    for document in wished:
        assert document.sentences[:2] == [length_wish(0.25), "One is."]
        assert document.source_length == 6
        alone = StubCodec("").encode([length_wish(0.25)]).half()
        assert torch.equal(torch.from_numpy(document.vectors[:1]), alone)
    again = prepared(tmp_path, "again", lengths=True)
    assert [d.sentences for d in read_documents(Path(again), "train")] == [d.sentences for d in documents]
    assert verify(folder).problems == ()


def test_a_model_knows_the_marks_of_its_data(tmp_path):
    plain = PreparedData([prepared(tmp_path, "plain")]).codec
    assert (plain.prompt_suffix, plain.end_of_text, plain.lengths) == ("[MODEL]:", "End of text.", False)
    folder = prepared(tmp_path, prompt_suffix="Summary:", end_of_text="End of response.", lengths=True)
    record = PreparedData([folder]).codec
    assert (record.prompt_suffix, record.end_of_text, record.lengths) == ("Summary:", "End of response.", True)
    (first, *_) = read_documents(Path(folder), "train")
    assert (first.sentences[first.source_length - 1], first.sentences[-1]) == ("Summary:", "End of response.")
    bank = Bank.from_shards([folder])
    assert sorted(bank.sentences) == sorted(["One is.", "Two is.", "Three is.", "Four is.", "Sum it."])
    tuned = Trained(Config(model={"kind": "base"}, codec=plain), {}, "start").record(record)
    assert (tuned.prompt_suffix, tuned.end_of_text, tuned.lengths) == ("Summary:", "End of response.", True)


def test_a_model_has_one_suffix_and_one_end(tmp_path):
    folder = prepared(tmp_path)
    with pytest.raises(UserError, match=r"end with '\[MODEL\]:', those of .* with 'Summary:', and a model knows only"):
        PreparedData([folder, prepared(tmp_path, "other", prompt_suffix="Summary:")])
    with pytest.raises(UserError, match="end with different vectors"):
        PreparedData([folder, prepared(tmp_path, "third", end_of_text="The end.")])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"pairs": False, "lengths": True}, "--lengths: only --pairs have them"),
        ({"pairs": False, "prompt_suffix": "A:"}, "--prompt-suffix=A:: only --pairs have them"),
        ({"end_of_text": " "}, "--end-of-text= : expected a sentence"),
        ({"prompt_suffix": length_wish(0.1)}, "expected a sentence that no prompt begins with"),
    ],
)
def test_a_mark_that_would_not_be_one_is_refused(given, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        prepared(tmp_path, **given)


def test_an_evaluation_does_not_tell_the_model_how_long_the_reference_is(tmp_path):
    folder = prepared(tmp_path, lengths=True)
    record = PreparedData([folder]).codec
    config = Config(
        model=BaseLCMConfig(kind="base", dim=4, width=8, heads=2, layers=1), data=DataConfig(slots=16), codec=record
    )
    codec = FakeCodec(4)
    codec.fingerprint = record.fingerprint
    examples = from_folders([folder], LCM(build_model(config.model), codec, config), "train", 100, 0)
    for pair in examples.pairs:
        assert pair.document == ["One is.", "Two is.", "Three is.", "Four is."]
        assert len(pair.vectors) == len(pair.sentences) == 7
        assert pair.answer == ["Sum it."]
