"""Text in, text out: what `lcm.load` returns, around a model that recites one story."""

import subprocess
import sys
from typing import get_type_hints

import pytest
import torch
from fakes import FakeCodec, reciting, write_dataset

import lcm
import lcm.inference.command
from lcm.batch import derive_seed
from lcm.codec import load_codec
from lcm.codec.text import PROMPT_SUFFIX
from lcm.config import BaseLCMConfig, CodecRecord, Config, save_config
from lcm.errors import UserError
from lcm.inference.nearest import Bank
from lcm.inference.options import GenerateKeywords, GenerateOptions
from lcm.inference.pipeline import LCM
from lcm.inference.texts import encode
from lcm.models import build_model, load_model, save_model
from lcm.models.base import BaseSampling
from lcm.models.interface import Sampling

STORY = ["The sea was calm.", "A boat went out.", "Then the wind rose.", "The boat came home.", "All were glad."]


def encoded(model, *texts, answers=False):
    return encode([model.read(text) for text in texts], model.codec, model.record, answers)


def test_a_known_beginning_is_continued_to_its_end():
    result = reciting(STORY).generate("The sea was calm. A boat went out.")
    assert result.sentences == STORY[2:]
    assert result.text == "Then the wind rose. The boat came home. All were glad."
    assert result.stop_reason == "end"
    assert (result.nearest, result.similarity) == (None, None)


def test_options_are_keywords_of_generate():
    assert get_type_hints(GenerateKeywords) == get_type_hints(GenerateOptions)
    with pytest.raises(TypeError, match="max_sentence"):
        reciting(STORY).generate(STORY[0], max_sentence=1)
    with pytest.raises(UserError, match="--samples=0: expected 1 or more"):
        reciting(STORY).generate(STORY[0], samples=0)


def test_many_texts_give_what_each_gives_alone_in_order():
    model = reciting(STORY)
    texts = [STORY[2], " ".join(STORY[:2]), STORY[3]]
    assert model.generate_many(texts) == [model.generate(text) for text in texts]
    assert model.generate_many([]) == []


def test_max_sentences_is_obeyed_and_has_a_default_that_leaves_room():
    assert reciting(STORY).generate(STORY[0], max_sentences=2).sentences == STORY[1:3]
    endless = reciting([f"Number {i}." for i in range(40)], slots=10)
    assert len(endless.generate("Number 0.").sentences) == 5
    with pytest.raises(UserError, match=r"--max-sentences=9: expected at most 8"):
        endless.generate("Number 0.", max_sentences=9)


def test_the_prompt_suffix_requests_an_answer():
    """The reciter answers after "[MODEL]:" alone; without the suffix it continues its story."""
    model = reciting(["A question.", "More story.", PROMPT_SUFFIX, "An answer."])
    assert model.generate("A question.", task="answer").sentences == ["An answer."]
    assert model.generate("A question.", max_sentences=1).sentences == ["More story."]
    pairs_only = reciting(["A question.", "More story.", PROMPT_SUFFIX, "An answer."], default_task="answer")
    assert pairs_only.generate("A question.").sentences == ["An answer."]
    assert pairs_only.generate("A question.", task="continue", max_sentences=1).sentences == ["More story."]


def test_texts_and_answers_may_have_other_languages_than_the_training_data():
    model = reciting(["A question.", "More story.", PROMPT_SUFFIX, "An answer."])
    encoded, decoded = [], []
    encode, decode = model.codec.encode, model.codec.decode
    model.codec.encode = lambda sentences, lang: encoded.append(lang) or encode(sentences)
    model.codec.decode = lambda vectors, lang, beam: decoded.append(lang) or decode(vectors)
    model.generate("A question.", task="answer", lang="fra_Latn")
    model.generate("A question.", task="answer", lang="fra_Latn", output_lang="deu_Latn")
    model.generate("A question.", task="answer", output_lang="deu_Latn")
    model.generate("A question.", task="answer")
    french, english = ["fra_Latn", "eng_Latn"], ["eng_Latn", "eng_Latn"]  # the second is "[MODEL]:"
    assert encoded == [french, french, english, english]
    assert decoded == [["fra_Latn"], ["deu_Latn"], ["deu_Latn"], ["eng_Latn"]]


def test_a_long_text_keeps_its_end_when_continued(capsys):
    model = reciting(STORY, slots=6)
    prompts = encoded(model, "One. Two. Three. Four. Five.")
    (kept,) = model.shorten(prompts, model.stop_rules(3), task=None)
    assert model.codec.decode(kept) == ["Three.", "Four.", "Five."]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_long_document_keeps_its_beginning_and_the_suffix_when_answered(capsys):
    model = reciting(STORY, slots=6)
    prompts = encoded(model, "One. Two. Three. Four. Five.", "One. Two.", answers=True)
    long, short = model.shorten(prompts, model.stop_rules(3), task="answer")
    assert model.codec.decode(long) == ["One.", "Two.", PROMPT_SUFFIX]
    assert model.codec.decode(short) == ["One.", "Two.", PROMPT_SUFFIX]
    assert capsys.readouterr().err == (
        "1 of 2 prompts are longer than 3 concepts; their concepts before the prompt's suffix were dropped\n"
    )


def test_a_prompt_that_fits_prints_no_warning(capsys):
    reciting(STORY, slots=6).generate("One. Two. Three.", max_sentences=3)
    assert capsys.readouterr().err == ""


def test_prompts_are_split_to_fit_the_codec():
    (prompt,) = encoded(reciting(STORY), "word " * 20)
    assert len(prompt) == 2


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_text_is_refused_by_its_number(text):
    with pytest.raises(UserError, match="text 2 of 2 is empty"):
        reciting(STORY).generate_many(["Fine.", text])


def test_another_codec_is_refused_by_both_fingerprints():
    with pytest.raises(UserError, match="fingerprint fake, expected of-the-training-data"):
        reciting(STORY, fingerprint="of-the-training-data")


def test_nearest_answers_with_real_sentences_only():
    codec = FakeCodec()
    model = reciting(STORY, codec)
    others = ["Somebody wrote this.", STORY[1], "And that."]
    model.bank = Bank(others, codec.encode(others))
    result = model.generate(STORY[0], max_sentences=2, decode="nearest")
    assert result.sentences == result.nearest
    assert result.nearest[0] == STORY[1]
    assert result.nearest[1] in others
    assert result.similarity[0] > 0.999 > result.similarity[1]
    both = model.generate(STORY[0], max_sentences=2, decode="both")
    assert (both.sentences, both.nearest) == (STORY[1:3], result.nearest)


def test_the_default_bank_is_the_training_data(tmp_path):
    codec = FakeCodec()
    write_dataset(tmp_path / "data", codec, {"train": [STORY[:2], STORY[3:]], "test": [STORY[2:3]]})
    model = reciting(STORY, codec, data=(str(tmp_path / "data"),))
    assert model.bank.sentences == STORY[:2] + STORY[3:]


def test_missing_training_data_is_an_error_with_the_way_out():
    with pytest.raises(UserError, match=r"data.path=data/gone: .* --bank"):
        reciting(STORY, data=("data/gone",)).generate(STORY[0], decode="nearest")


def test_seed_and_temperature_reach_the_model():
    model = reciting(STORY)
    seen = []
    model.model.next = lambda context, sampling: seen.append(sampling) or torch.ones(1, 32)
    model.generate(STORY[0], sampling=Sampling(temperature=0.5), max_sentences=1)
    model.generate(STORY[0], sampling=Sampling(seed=3), max_sentences=1)
    assert [(s.seed, s.temperature) for s in seen] == [(0, 0.5), (3, None)]


def test_a_setting_that_the_family_does_not_have_is_refused_before_the_work(monkeypatch):
    model = reciting(STORY)
    model.model.defaults = BaseSampling()
    monkeypatch.setattr(model.codec, "encode", None)
    with pytest.raises(
        UserError, match=r"--guidance=2.0: means nothing to this kind of model, which has --temperature"
    ):
        model.generate(STORY[0], sampling=Sampling(guidance=2.0))


def test_the_best_of_several_samples_is_the_one_nearest_to_real_sentences():
    sampling = Sampling(seed=1)
    seeds = [1, derive_seed(1, 1), derive_seed(1, 2)]
    spread = dict(zip(seeds, (0.3, 0.1, 0.2), strict=True))
    model = reciting(STORY)
    truth = model.codec.encode(STORY[:1])
    model.model.next = lambda context, given: truth + spread[given.seed]
    one, best = (model.generate(STORY[0], max_sentences=1, sampling=sampling, samples=n) for n in (1, 3))
    assert one.roundtrip is None
    assert best.roundtrip == pytest.approx(0.1 * truth.shape[1] ** 0.5, rel=1e-4)


@pytest.fixture
def saved(tmp_path):
    """A Base-LCM that has learned nothing, on the embedded codec, as a run leaves it."""
    codec = load_codec("mini")
    facts = {"name": "mini", "fingerprint": codec.fingerprint, "dim": codec.dim, "lang": "eng_Latn", "splitter": {}}
    config = Config(
        model=BaseLCMConfig(kind="base", dim=codec.dim, width=32, heads=2, layers=1),
        codec=CodecRecord(**facts, stop_threshold=codec.stop_threshold),
    )
    torch.manual_seed(0)
    save_model(tmp_path / "run", build_model(config.model).state_dict(), config)
    return tmp_path / "run", config


def test_a_saved_model_is_loaded_with_its_codec_and_writes(saved):
    model = lcm.load(saved[0])
    text = "The sea was calm. A boat went out."
    result = model.generate(text, max_sentences=2, sampling=Sampling(temperature=0.5))
    assert len(result.sentences) == 2
    assert result == lcm.load(saved[0]).generate(text, max_sentences=2, sampling=Sampling(temperature=0.5))
    assert result != model.generate(text, max_sentences=2, sampling=Sampling(temperature=0.5, seed=1))
    assert model.codec.decode(encoded(model, text)[0]) == ["The sea was calm.", "A boat went out."]


def test_a_model_without_a_codec_is_refused(saved):
    folder, config = saved
    save_config(config.model_copy(update={"codec": None}), folder / "config.yaml")
    with pytest.raises(UserError, match="has no codec section"):
        lcm.load(folder)


def test_importing_lcm_is_light():
    code = "import sys, lcm; assert lcm.__version__ and callable(lcm.load); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def model_with(folder, *settings):
    """A saved two-tower whose configuration says how it is best sampled, loaded; FakeCodec stands for its codec."""
    codec = FakeCodec()
    record = CodecRecord(
        name="mini", fingerprint=codec.fingerprint, dim=codec.dim, lang="eng_Latn", splitter={"name": "nupunkt"},
        stop_threshold=0.9,
    )  # fmt: skip
    sizes = {"kind": "two_tower", "dim": codec.dim, "width": 16, "heads": 2, "context_layers": 1, "denoiser_layers": 1}
    config = Config.parse({"model": sizes, "codec": record.model_dump()}, settings, where="a test")
    torch.manual_seed(0)
    save_model(folder, build_model(config.model).state_dict(), config)
    model, config = load_model(folder)
    return LCM(model, codec, config)


def test_a_model_is_sampled_as_its_configuration_says_and_as_the_paper_does_if_asked(tmp_path):
    plain = model_with(tmp_path / "plain")
    own = model_with(tmp_path / "own", "sampling.guidance=1.5", "sampling.steps=7", "sampling.sampler=dpm")
    prompts = encoded(plain, "The sea was calm.")
    stop = plain.stop_rules(2, min_sentences=2)

    def drawn(model, **settings):
        return model.continue_concepts(prompts, stop, Sampling(seed=3, **settings))[0].vectors

    as_named = drawn(plain, guidance=1.5, steps=7, sampler="dpm")
    assert torch.equal(drawn(own), as_named)
    assert not torch.equal(drawn(plain), as_named)
    assert torch.equal(drawn(own, paper=True), drawn(plain))
    assert torch.equal(drawn(own, guidance=2.0), drawn(plain, guidance=2.0, steps=7, sampler="dpm"))
    assert torch.equal(drawn(own, paper=True, steps=5), drawn(plain, steps=5))


def test_sampling_settings_of_another_family_are_refused_when_the_model_is_loaded(tmp_path):
    with pytest.raises(UserError, match=r"section sampling of the configuration: --top-k=3: means nothing"):
        model_with(tmp_path, "sampling.top_k=3")


def test_a_packaged_model_has_a_name_and_a_folder_of_this_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr("lcm.models.PACKAGED", tmp_path / "packaged")
    model_with(tmp_path / "packaged" / "tiny", "run.seed=5")
    monkeypatch.chdir(tmp_path)
    assert load_model("tiny")[1].run.seed == 5
    model_with(tmp_path / "tiny", "run.seed=6")
    assert load_model("tiny")[1].run.seed == 6
    with pytest.raises(UserError, match=r"none: no model.safetensors there; expected .* or one of tiny"):
        load_model("none")


def test_a_misspelt_choice_is_refused_in_a_line_with_its_way_out():
    """In a process of its own: here jaxtyping would refuse it before the options do."""
    code = (
        "from lcm.errors import UserError; from lcm.inference.options import GenerateOptions\n"
        "for wrong in ({'decode': 'codek'}, {'task': 'anser'}):\n"
        "    try: GenerateOptions(**wrong)\n"
        "    except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "--decode=codek: expected codec, nearest, both; did you mean 'codec'?",
        "--task=anser: expected continue, answer; did you mean 'answer'?",
    ]
