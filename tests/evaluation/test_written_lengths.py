"""Summaries that an evaluation has a model write: their length, and documents longer than the model reads."""

import pytest
from fakes import FakeCodec, write_dataset
from test_evaluate import ANSWER, STORY, TRAIN, knowing

from lcm.errors import UserError
from lcm.evaluation.command import EvaluateOptions, evaluate


@pytest.mark.parametrize(("long", "sentences", "counts"), [(None, ANSWER, (1, 0)), ("chunks", ANSWER * 2, (0, 1))])
def test_a_document_longer_than_the_slots_is_summarized_in_part_or_in_chunks(long, sentences, counts, tmp_path, capsys):
    document = [f"Sentence {i}." for i in range(20)]
    write_dataset(tmp_path, FakeCodec(), {"train": TRAIN, "test": [(document, ANSWER)]})
    evaluation = evaluate(knowing(), EvaluateOptions(data=(str(tmp_path),), long=long))
    assert ("1 of 1 texts are longer than the model reads" in capsys.readouterr().err) == (long is None)
    assert evaluation.rows[0]["model"] == sentences
    found = evaluation.results["counts"]
    assert (found["read_in_part"], found["read_in_chunks"]) == counts


def test_summaries_have_the_length_that_is_asked_for_or_the_model_is_not_tuned_to_it(tmp_path):
    pairs = [(STORY[:2], ANSWER), (STORY[:3], ANSWER)]
    write_dataset(tmp_path, FakeCodec(), {"train": TRAIN, "test": pairs})
    lengths = EvaluateOptions(data=(str(tmp_path),), length=0.34)
    with pytest.raises(UserError, match=r"--length=0\.34: the model was not tuned to lengths"):
        evaluate(knowing(), lengths)
    summaries = [row["model"] for row in evaluate(knowing(lengths=True), lengths).rows if row["kind"] == "summary"]
    assert sorted(map(len, summaries)) == [1, 2], "of two sentences, and of three"
    cut = evaluate(knowing(), EvaluateOptions(data=(str(tmp_path),), max_sentences=1))
    assert {len(row["model"]) for row in cut.rows if row["kind"] == "summary"} == {1}
