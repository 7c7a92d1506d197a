"""Held-out text never reaches training, and nothing else is lost."""

import json

import pytest
from tiny_codec import settings_for, write_corpus

from lcm.codec.text import Splitter, SplitterSettings
from lcm.codec_lab.corpus import Corpus, HeldOut, Translation, read_corpus, tokenize
from lcm.codec_lab.start import make_start
from lcm.errors import UserError


def corpus_of(folder, *overrides):
    return read_corpus(settings_for(folder, *overrides).data)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_missing_file_is_reported_under_the_setting_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"^data\.text=nowhere\.txt: no such file"):
        corpus_of(tmp_path, "data.text=nowhere.txt")


def test_a_document_with_a_held_out_sentence_is_left_out_whole(tmp_path):
    rows = [
        {"id": "a", "text": "A first sentence. The secret one.", "split": "train"},
        {"id": "b", "text": "Another document. It stays here.", "split": "train"},
    ]
    text = write_rows(tmp_path / "corpus.jsonl", rows)
    (tmp_path / "held.tsv").write_text("web\tThe  secret one.\n", encoding="utf-8")
    corpus = corpus_of(tmp_path, f"data.text={text}", f"data.held_out={tmp_path / 'held.tsv'}")
    assert [sentence for sentence, _ in corpus.sentences] == ["Another document.", "It stays here."]
    assert corpus.validation == [("The secret one.", "eng_Latn")]
    assert (corpus.documents, corpus.left_out) == (2, 1)


def test_a_held_out_sentence_that_is_cut_is_found_by_all_its_parts_in_a_row():
    splitter = Splitter(SplitterSettings(max_characters=20))
    long = "one two three four, five six seven eight"
    assert len(splitter.split(long)) > 1
    held_out = HeldOut([long], splitter)
    assert held_out.touches(["Before.", *splitter.split(long), "After."])
    assert not held_out.touches([splitter.split(long)[0], "something else"]), "a beginning alone says little"


def test_validation_documents_are_not_trained_and_sentences_are_distinct(tmp_path):
    texts = write_corpus(tmp_path / "corpus.jsonl")
    corpus = corpus_of(tmp_path)
    trained = [sentence for sentence, _ in corpus.sentences]
    watched = {sentence for sentence, _ in corpus.validation}
    assert len(set(trained)) == len(trained)
    assert not watched & set(trained)
    for number, text in enumerate(texts):
        for sentence in (part if part.endswith(".") else f"{part}." for part in text.split(". ")):
            assert sentence in watched or (number % 5 != 3 and sentence in trained)


def test_files_have_languages(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    french = write_rows(tmp_path / "fr.jsonl", [{"id": "f", "text": "Le roi dort.", "split": "train"}])
    entries = json.dumps([{"files": str(tmp_path / "corpus.jsonl")}, {"files": french, "lang": "fra_Latn"}])
    corpus = corpus_of(tmp_path, "--data.text", entries)
    assert corpus.languages == ["eng_Latn", "fra_Latn"]
    assert ("Le roi dort.", "fra_Latn") in corpus.sentences


PAIR = {"source": "The king sleeps.", "target": "Le roi dort.", "source_lang": "eng_Latn", "target_lang": "fra_Latn"}


def test_pairs_are_read_and_held_out_with_either_side(tmp_path):
    other = {**PAIR, "source": "The fox sees.", "target": "Le renard voit."}
    pairs = write_rows(tmp_path / "pairs.jsonl", [PAIR, other])
    (tmp_path / "held.txt").write_text("Le roi dort.\n", encoding="utf-8")
    corpus = corpus_of(tmp_path, f"data.pairs={pairs}", f"data.held_out={tmp_path / 'held.txt'}")
    assert [pair.target for pair in corpus.pairs] == ["Le renard voit."]
    assert corpus.pairs[0].turned.source_lang == "fra_Latn"


@pytest.mark.parametrize("row", [{**PAIR, "target": " "}, {"source": "x"}, ["no", "object"]])
def test_a_bad_pair_is_named_with_its_line(tmp_path, row):
    pairs = write_rows(tmp_path / "pairs.jsonl", [PAIR, row])
    with pytest.raises(UserError, match=r"pairs\.jsonl:2"):
        corpus_of(tmp_path, f"data.pairs={pairs}")


def test_a_corpus_without_a_sentence_to_train_on_is_refused(tmp_path):
    text = write_rows(tmp_path / "corpus.jsonl", [{"id": "a", "text": "Only this.", "split": "test"}])
    with pytest.raises(UserError, match="no sentence to train on: 1 documents"):
        corpus_of(tmp_path, f"data.text={text}")


def test_translations_go_both_ways_and_those_over_the_limit_on_either_side_are_left_out(tmp_path):
    settings = settings_for(tmp_path)
    start = make_start(settings, [text for text, _ in read_corpus(settings.data).sentences], ["eng_Latn", "fra_Latn"])
    long = "A red fox sees. " * 9
    assert len(start.tokenizer.encode([long])[0]) > start.max_pieces
    pairs = [Translation("A fox.", other, "eng_Latn", "fra_Latn") for other in ("A boat.", long)]
    corpus = Corpus(sentences=[("A red fox sees.", "eng_Latn")], pairs=pairs)
    _, *translations = tokenize(corpus, start, settings.data).train
    languages = {code: start.tokenizer.language(code) for code in ("eng_Latn", "fra_Latn")}
    fox, boat = (tuple(pieces) for pieces in start.tokenizer.encode(["A fox.", "A boat."]))
    assert [(e.source, e.target, e.source_lang, e.target_lang) for e in translations] == [
        (fox, boat, languages["eng_Latn"], languages["fra_Latn"]),
        (boat, fox, languages["fra_Latn"], languages["eng_Latn"]),
    ]
    assert all(e.is_translation for e in translations)
    assert {kind: entry.count for kind, entry in corpus.refused.entries.items()} == {"translation over max_pieces": 2}


def test_a_start_forgets_what_its_codec_says_of_weights_that_training_changes(tmp_path):
    config = make_start(settings_for(tmp_path, "start=mini"), [], ["eng_Latn"]).config
    assert not {"training", "held_out"} & set(config)
    assert config["max_pieces"] == 61


def test_new_languages_get_the_next_reserved_ids_until_none_is_left(start):
    settings = settings_for(start.parent.parent, f"start={start}")
    codes = ["eng_Latn", *(f"x{number:02}_Latn" for number in range(168))]
    made = make_start(settings, [], codes[:168])
    assert made.config["languages"] == dict(zip(codes[:168], range(32, 200), strict=True))
    with pytest.raises(UserError, match=r"has no reserved id left for .*x167_Latn"):
        make_start(settings, [], codes)
