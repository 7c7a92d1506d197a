"""Whole runs, tiny ones: they learn, resume to the bit, keep what is frozen, and leave a codec that loads."""

import json
import shutil

import pytest
import torch
from tiny_codec import FakeTeacher, fake_teacher, settings_for

from lcm.codec import load_codec
from lcm.codec_lab import terms, training
from lcm.codec_lab.analytic import feed_forward
from lcm.codec_lab.batches import fixed_batches
from lcm.codec_lab.corpus import read_corpus
from lcm.codec_lab.training import ablate, variants
from lcm.errors import UserError


def weights(folder):
    codec = load_codec(folder, device="cpu", dtype=torch.float32)
    return {name: value.clone() for name, value in codec.model.state_dict().items()}


@pytest.fixture(autouse=True)
def public_encoder(monkeypatch):
    for module in (terms, training):
        monkeypatch.setattr(module, "load_public_encoder", fake_teacher)


@pytest.fixture
def no_public_encoder(monkeypatch):
    monkeypatch.setattr(terms, "load_public_encoder", lambda folder: pytest.fail("the public encoder is not needed"))


def trained(folder, *overrides):
    return training.train_codec(settings_for(folder, *overrides))


def test_a_tiny_run_learns_and_leaves_a_codec_that_reconstructs(start):
    rows = (start.parent / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/loss")
    losses = [float(value) for row in rows[1:] if (value := row.split(",")[column])]
    assert losses[-1] < 0.6 * losses[0]
    codec = load_codec(start, device="cpu")
    sentences = [text for text, _ in read_corpus(settings_for(start.parent.parent).data).sentences if codec.fits(text)]
    back = codec.decode(codec.encode(sentences))
    assert sum(a == b for a, b in zip(back, sentences, strict=True)) > 0.5 * len(sentences)


def test_the_codec_says_how_it_was_trained(start):
    config = load_codec(start, device="cpu").config
    record = config["training"]
    assert (record["steps"], record["start"]) == (60, "analytic")
    assert record["target_pieces"] > 60 * 40
    assert record["settings"]["terms"]["noise"] == 0.3
    assert record["validation"]["accuracy"] > 0.5
    assert config["max_pieces"] == 14
    assert json.loads((start / "card.json").read_text())["training"] == record


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    terms = ("terms.denoise=0.5", "terms.similarity=1", "terms.unknown=0.1")
    expected = trained(whole, *terms)
    step = training.CodecModule.training_step

    def dies(self, batch, batch_idx):
        if self.global_step == 4:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(training.CodecModule, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        trained(part, *terms)
    assert not (part / "run" / "codec").exists()
    monkeypatch.undo()
    found = weights(trained(part, *terms))
    assert all(torch.equal(value, found[name]) for name, value in weights(expected).items())
    records = [json.loads((folder / "run/codec/card.json").read_text())["training"] for folder in (whole, part)]
    assert records[0]["target_pieces"] == records[1]["target_pieces"]
    steps = [int(line.split(",")[0]) for line in (part / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]


def test_the_pieces_that_are_counted_are_those_of_the_batches_with_their_ends(tmp_path, no_public_encoder):
    settings = settings_for(tmp_path, "limit.steps=3", "trainer.log_every=3")
    run = training.prepare_run(settings, None)
    run.fit(None)
    batches = [batch for batch, _ in zip(run.order.batches(run.rows.train), range(3), strict=False)]
    assert run.module.pieces == sum(int((batch.target_lengths + 1).sum()) for batch in batches)


def test_training_that_diverges_ends_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(training.CodecModule, "loss", lambda self, batch: self.model.encoder.embed.weight.sum() * 1e39)
    with pytest.raises(UserError, match=r"training has diverged; lower optimizer\.lr"):
        trained(tmp_path)


def test_a_finished_run_trains_no_step_more(tmp_path):
    first = weights(trained(tmp_path))
    shutil.rmtree(tmp_path / "run" / "codec")
    again = trained(tmp_path)
    assert load_codec(again, device="cpu").config["training"]["steps"] == 6
    assert all(torch.equal(value, first[name]) for name, value in weights(again).items())


def test_training_keeps_the_code_and_the_directions_of_the_positions(start, tmp_path):
    again = trained(tmp_path, f"start={start}")
    before, after = load_codec(start, device="cpu").model, load_codec(again, device="cpu").model
    directions = training.CodecModule(settings_for(tmp_path), _start(start)).directions
    assert len(directions) > 20
    for side in ("encoder", "decoder"):
        old, new = (feed_forward(getattr(model, side), 0) for model in (before, after))
        assert torch.equal(old.inner_proj.weight[:16], new.inner_proj.weight[:16])
        assert torch.equal(old.output_proj.weight[:, :16], new.output_proj.weight[:, :16])
        assert not torch.equal(old.inner_proj.weight[16:], new.inner_proj.weight[16:])
        assert (directions @ new.output_proj.weight[:, 16:]).abs().max() < 2e-3
    assert (after.encoder.embed.weight @ directions.T).abs().max() < 2e-3
    assert not torch.equal(before.encoder.embed.weight, after.encoder.embed.weight)


def test_protection_follows_every_step_and_not_only_the_last(start, tmp_path):
    run = training.prepare_run(settings_for(tmp_path, f"start={start}", "limit.steps=2"), None)
    run.fit(None)
    learned = feed_forward(run.module.model.encoder, 0).output_proj.weight[:, 16:]
    assert (run.module.directions @ learned).abs().max() < 2e-3


def test_the_gradient_is_clipped(start, tmp_path):
    """AdamW takes a gradient far below its eps for nothing."""
    overrides = (f"start={start}", "protect=false", "optimizer.clip=1e-12", "limit.steps=1")
    run = training.prepare_run(settings_for(tmp_path, *overrides), None)
    before = {name: value.clone() for name, value in run.module.model.state_dict().items()}
    run.fit(None)
    assert all(torch.allclose(before[name], value, atol=1e-6) for name, value in run.module.model.state_dict().items())


def _start(folder):
    from lcm.codec_lab.start import make_start

    return make_start(settings_for(folder.parent.parent, f"start={folder}"), [], ["eng_Latn"])


def test_a_quantized_decoder_is_trained_and_validated_on_rounded_vectors(start, tmp_path, capsys):
    losses = []
    for units in (2, 32):
        folder = tmp_path / str(units)
        folder.mkdir()
        overrides = (f"start={start}", "freeze=encoder", "terms.codebooks=1", f"terms.units={units}")
        again = trained(folder, *overrides, "limit.steps=1", "optimizer.lr=1e-9")
        losses.append(load_codec(again, device="cpu").card["training"]["validation"]["loss"])
    assert losses[0] > losses[1] + 0.5, "two units say little of a sentence"
    assert "1 codebooks of 2 units leave" in capsys.readouterr().err


def test_the_similarity_term_is_one_of_sentences_and_never_of_translations(start, tmp_path):
    overrides = (f"start={start}", "terms.similarity=1", "terms.unknown=0", "terms.noise=0")
    run = training.prepare_run(settings_for(tmp_path, *overrides), None)
    batch = next(batch for batch in run.order.batches(run.rows.train) if len(batch.sentence) > 2)
    sentences, translations = run.module.loss(batch), run.module.loss(batch._replace(is_translation=True))
    run.module.teacher = None
    assert sentences > run.module.loss(batch) + 1e-4
    assert translations == 0, "the weight of translations, whatever the teacher says"


@torch.no_grad()
def test_pieces_are_hidden_from_the_decoder_in_training_and_never_in_validation(start, tmp_path, monkeypatch):
    run = training.prepare_run(settings_for(tmp_path, f"start={start}", "terms.unknown=0.5"), None)
    seen, logits = [], run.module.logits
    monkeypatch.setattr(run.module, "logits", lambda pieces, *rest: seen.append(pieces) or logits(pieces, *rest))
    batch = next(run.order.batches(run.rows.train))
    torch.manual_seed(0)
    run.module.loss(batch)
    run.module.validation_step(batch, 0)
    in_training, in_validation = ((pieces == run.module.start.unknown).float().mean() for pieces in seen)
    assert in_training > 0.2
    assert in_validation == 0


@torch.no_grad()
def test_a_validation_counts_its_own_pieces_alone(start, tmp_path):
    run = training.prepare_run(settings_for(tmp_path, f"start={start}"), None)
    batches = fixed_batches(run.rows.validation, 60)
    assert len(batches) > 1

    def validated(part):
        for number, batch in enumerate(part):
            run.module.validation_step(batch, number)
        run.module.on_validation_epoch_end()
        return run.module.reported["val/loss"]

    first, rest = validated(batches[:1]), validated(batches[1:])
    assert first != rest
    assert validated(batches[:1]) == first


def test_the_public_encoder_encodes_the_sentences_once(tmp_path, monkeypatch):
    FakeTeacher.encoded = 0
    trained(tmp_path, "terms.similarity=1", "terms.similarity_sentences=30")
    assert FakeTeacher.encoded == 30
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    monkeypatch.setattr(terms, "load_public_encoder", None)
    trained(tmp_path, "terms.similarity=1", "terms.similarity_sentences=30")


def test_translations_teach_a_second_language(tmp_path):
    pair = {"source_lang": "eng_Latn", "target_lang": "fra_Latn"}
    rows = [{**pair, "source": f"The {w} sees.", "target": f"Le {w} voit."} for w in ("fox", "king", "boat", "stone")]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    overrides = (f"data.pairs={pairs}", "terms.translation=1", "terms.translation_mse=0.1", "limit.steps=3")
    codec = load_codec(trained(tmp_path, *overrides), device="cpu")
    assert codec.languages == ("eng_Latn", "fra_Latn")
    assert len(codec.decode(codec.encode(["The fox sees."]), lang="fra_Latn")) == 1


def test_a_dry_run_writes_nothing_and_prints_the_size(tmp_path, capsys, no_public_encoder):
    settings = settings_for(tmp_path, "limit.steps=null", "limit.minutes=5", "terms.similarity=1")
    training.dry_run_codec(settings)
    assert not (tmp_path / "run").exists()
    assert "batches an epoch" in capsys.readouterr().out


def test_minutes_end_training(tmp_path):
    again = trained(tmp_path, "limit.steps=null", "limit.minutes=0.005")
    record = load_codec(again, device="cpu").config["training"]
    assert record["minutes"] >= 0.005
    assert record["steps"] < 200


def test_the_ablation_never_compares_parts_of_sentences_with_a_teacher(tmp_path):
    names = [list(variants(settings_for(tmp_path, f"data.spans={spans}"))) for spans in (0, 0.5)]
    assert [any("similarity" in name for name in found) for found in names] == [True, False]


def test_the_ablation_has_a_row_a_term_and_trains_none_twice(tmp_path, monkeypatch):
    settings = settings_for(tmp_path, "terms.unknown=0")
    text = ablate(settings, 2)
    names = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert names == [
        f"{name}, 2 steps"
        for name in (
            "as configured",
            "autoencoding alone",
            "with denoise 0.3",
            "with unknown 0.04",
            "without noise",
            "with similarity 1",
        )
    ]
    assert (tmp_path / "run" / "ablation.md").read_text() == text
    monkeypatch.setattr(training, "prepare_run", None)
    assert ablate(settings, 2) == text
    with pytest.raises(UserError, match="holds an ablation of other settings"):
        ablate(settings_for(tmp_path, "terms.unknown=0.1"), 2)


def test_nothing_to_validate_on_is_reported_before_training(tmp_path):
    text = tmp_path / "one.jsonl"
    text.write_text('{"id": "a", "text": "The red fox sees a boat.", "split": "train"}\n')
    with pytest.raises(UserError, match="nothing to validate on"):
        trained(tmp_path, f"data.text={text}", "start=mini")


def test_too_small_a_text_for_the_vocabulary_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"lower model\.vocabulary"):
        trained(tmp_path, "model.vocabulary=5000")


def test_each_sentence_gets_its_own_vector_and_its_own_of_the_public_encoder(start, tmp_path):
    overrides = (f"start={start}", "terms.similarity=1", "terms.similarity_sentences=7")
    run = training.prepare_run(settings_for(tmp_path, *overrides), None)
    codec, texts = load_codec(start, device="cpu"), run.rows.texts
    found = training.encode_all(run.module, run.rows.train, tokens=40)
    assert torch.allclose(found, codec.encode(texts), atol=1e-4)
    rows = run.module.teacher.row_of
    assert (rows >= 0).sum() == 7
    for number in (rows >= 0).nonzero()[:, 0].tolist():
        wanted = fake_teacher(None).encode([texts[number]])[0].half()
        assert torch.equal(run.module.teacher.vectors[rows[number]], wanted)
        assert run.rows.train[number].taught
