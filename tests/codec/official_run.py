"""Runs sonar-space's own loader and pipelines, in a process of its own: fairseq2 reads its settings only once.

official_run.py JOBS.json OUT: texts and pieces as JSON in OUT.json, vectors in OUT.safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from official_sonar import OfficialPipelines, pipelines_of

from lcm.codec import load_codec


def main(jobs_path: str, out: str) -> None:
    vectors, texts = {}, {}
    with open(jobs_path, encoding="utf-8") as file:
        jobs = json.load(file)
    for name, job in jobs.items():
        if "codec" in job:
            pipelines = pipelines_of(load_codec(job["codec"], device="cpu"))
        else:
            card = "text_sonar_basic_encoder"
            pipelines = OfficialPipelines(card, job["decoder"], card)
        vectors[name] = pipelines.encode(job["sentences"], job["lang"])
        texts[name] = {beam: decoded(pipelines, vectors[name], job["lang"], beam) for beam in job["beams"]}
    save_file(vectors, f"{out}.safetensors")
    with open(f"{out}.json", "w", encoding="utf-8") as file:
        json.dump(texts, file)


def decoded(pipelines: OfficialPipelines, vectors: torch.Tensor, lang: str, beam: int) -> list[dict[str, object]]:
    """The texts of the pipeline, and their pieces."""
    from fairseq2.generation.beam_search.generator import BeamSearchSeq2SeqGenerator
    from fairseq2.nn import BatchLayout
    from sonar.inference_pipelines.utils import SequenceToTextConverter

    official = pipelines.to_text
    generator = BeamSearchSeq2SeqGenerator(official.model, official.tokenizer.vocab_info, beam_size=beam)
    converter = SequenceToTextConverter(
        generator, official.tokenizer, task="translation", target_lang=lang, mode="target"
    )
    texts, pieces = [], []
    for five in vectors.split(5):  # as the pipeline does
        with torch.inference_mode():
            some, output = converter.batch_convert(five, BatchLayout.of(five))
        texts += some
        pieces += [hypotheses[0].seq.tolist() for hypotheses in output.hypotheses]
    assert texts[:5] == pipelines.decode(vectors[:5], lang, beam=beam)
    end = official.tokenizer.vocab_info.eos_idx
    assert all(row[-1] == end for row in pieces)
    return [{"text": text, "pieces": row[:-1]} for text, row in zip(texts, pieces, strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
