"""The whole record of a run: its sections, how they are read and written, and what a run adds about its codec."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as section_of

from lcm.config.models import ModelConfig
from lcm.config.training import DataConfig, OptimizerConfig, RunConfig, TrainerConfig
from lcm.sampling import SamplingOptions
from lcm.settings import Section, Settings, add_descriptions


@section_of(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SamplingConfig(SamplingOptions):
    """Settings by which the model is best sampled, the defaults of `lcm generate`. Training does not read them."""


add_descriptions(SamplingConfig)


class CodecRecord(Section):
    """The codec of the training data, copied from the data's manifest, never set by hand."""

    name: str
    """Name of the codec for `load_codec`."""
    fingerprint: str
    """Fingerprint of the codec's encoder."""
    dim: int
    """Embedding dimension."""
    lang: str
    """FLORES code of the text's language."""
    splitter: dict[str, Any]
    """Sentence splitter and its settings, so that prompts are split as the training text was."""
    end_of_text: str = "End of text."
    """Sentence that ends every document."""
    prompt_suffix: str = "[MODEL]:"
    """Sentence that ends the prompt of a pair; `lcm generate` and `lcm evaluate` append it."""
    lengths: bool = False
    """True if prompts of training pairs asked for the length of the answer (lcm prepare --lengths)."""
    default_task: Literal["continue", "answer"] = "continue"
    """Default task of generation: answer (append the prompt suffix) if every training document was a pair."""
    stop_threshold: float
    """Cosine similarity to the end-of-text vector above which a concept ends the text."""


class Config(Settings):
    """A training run. Values come from a YAML file and the command line, never from the environment."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()
    run: RunConfig = RunConfig()
    sampling: SamplingConfig = SamplingConfig()
    codec: CodecRecord | None = None


load_config = Config.load


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration such that `load_config(path) == config`."""
    sections = {name: section for name, section in config.model_dump(mode="json", exclude_none=True).items() if section}
    Path(path).write_text(yaml.safe_dump(sections, sort_keys=False, allow_unicode=True), encoding="utf-8")
