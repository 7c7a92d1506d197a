"""One YAML file, one frozen record: everything that defines the training of a codec.

settings = CodecTraining.load("configs/codec/mini.yaml", ["limit.minutes=30", "terms.noise=0"])
"""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lcm.settings import Beta, Place, Places, Section, Settings


class SizeSettings(Section):
    """Sizes of a new model. Ignored where training starts from a codec: that one's sizes count."""

    vocabulary: int = Field(8000, gt=16)
    """Ids of pieces, languages and reserved tokens together."""
    reserved: int = Field(8, ge=1)
    """Ids at the end of the vocabulary that are kept for languages: no piece of text gets them."""
    dim: int = Field(512, ge=8)
    """Width of the model and of a concept."""
    heads: int = Field(8, gt=0)
    encoder_layers: int = Field(2, gt=0)
    decoder_layers: int = Field(2, gt=0)
    encoder_ffn: int = Field(896, gt=0)
    decoder_ffn: int = Field(1664, gt=0)
    max_pieces: int = Field(61, gt=0)
    """The longest sentence that is encoded whole, in pieces; longer ones are cut as `lcm prepare` cuts them."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "SizeSettings":
        if self.dim % (2 * self.heads):
            raise ValueError(f"model.dim={self.dim} cannot be split over model.heads={self.heads}; change either")
        return self


class TextSettings(Section):
    """Files of one language."""

    files: Places
    """.txt, .jsonl, .parquet, plain or compressed; folders and globs."""
    lang: str = "eng_Latn"
    column: str = "text"


class CorpusSettings(Section):
    """The text that is read, and how it becomes batches."""

    text: tuple[TextSettings, ...] = ()
    """Entries such as {files: [a.jsonl, b.txt], lang: fra_Latn}; a file name alone is English."""
    pairs: Places = ()
    """Translations: .jsonl with the columns source, target, source_lang, target_lang."""
    held_out: Places = ()
    """Files of one sentence a line; where a line has tabs, the sentence follows the last. They are the validation set,
    and no document that holds one of them is trained on. Without such files, the validation split is the set."""
    max_characters: int = Field(256, ge=1)
    short_pieces: int = Field(12, ge=0)
    """Sentences of fewer pieces count as short, …"""
    short_share: float = Field(1.0, gt=0, le=1)
    """… and an epoch takes only this share of them: they are learned first."""
    spans: float = Field(0.0, ge=0, le=1)
    """Share of the sentences from which an epoch takes a random run of words instead: epochs then differ."""
    tokens: int = Field(2400, gt=0)
    """Target pieces of a batch, language and end included. All sentences of a batch have one length."""
    validation_sentences: int = Field(300, ge=1)

    @field_validator("text", mode="before")
    @classmethod
    def _names_are_texts(cls, value: Any) -> Any:
        entries = (value,) if isinstance(value, str | dict) else value
        return [{"files": (entry,)} if isinstance(entry, str) else entry for entry in entries]


class TermSettings(Section):
    """The terms of the loss. 0 switches a term off."""

    autoencode: float = Field(1.0, ge=0)
    """Weight of the cross-entropy of a sentence, given its own vector."""
    denoise: float = Field(0.0, ge=0, le=1)
    """Share of the sentences whose source is damaged while the target stays clean (paper §2.1)."""
    drop_words: float = Field(0.1, ge=0, lt=1)
    """Chance that a word of a damaged source is dropped."""
    swap_words: float = Field(0.1, ge=0, lt=1)
    """Chance that a word of a damaged source changes places with the next."""
    unknown: float = Field(0.04, ge=0, le=0.5)
    """Mean share of the decoder's input pieces that become <unk>, so that it must read the vector."""
    noise: float = Field(0.3, ge=0)
    """Largest Gaussian noise on the vector, in standard deviations of each channel over the batch."""
    translation: float = Field(0.0, ge=0)
    """Weight of the cross-entropy of a target, given the vector of its source in another language."""
    translation_mse: float = Field(0.0, ge=0)
    """Weight of the squared distance between the vectors of a pair, summed over the channels (paper §2.1)."""
    similarity: float = Field(0.0, ge=0)
    """Weight of the difference from a public sentence encoder's similarities between the sentences of a batch."""
    similarity_kind: Literal["mse", "kl"] = "mse"
    """mse: squared difference of the cosines. kl: Kullback-Leibler divergence of their softmax."""
    similarity_temperature: float = Field(0.1, gt=0)
    """Temperature of the softmax of kl."""
    similarity_sentences: int = Field(0, ge=0)
    """Training sentences that the public encoder encodes, once; 0 stands for all. The others do without this term."""
    similarity_folder: Place | None = None
    """The public encoder's folder; null: the installed package."""
    robust: float = Field(0.0, ge=0, le=1)
    """Largest a of x(a, e) = denorm(sqrt(1 - a) norm(x) + sqrt(a) e), a uniform (paper §2.5.2). For freeze: encoder."""
    codebooks: int = Field(0, ge=0)
    """Codebooks of a residual quantizer that rounds what the decoder reads. For freeze: encoder."""
    units: int = Field(256, ge=2)
    """Vectors in each codebook."""
    quantizer: Place = ""
    """A file of data_prep/fit_quantizer.py, such as a Quant-LCM's, to use instead of fitting codebooks here."""


class OptimizerSettings(Section):
    """AdamW without weight decay. Its rate warms up, stays constant, and decays linearly."""

    lr: float = Field(2e-4, gt=0)
    """Rate of the weights that the analytic start has set."""
    free_factor: float = Field(2.5, ge=0)
    """Factor of lr for the weights that it has not: self-attention, and the other feed-forward and cross-attention."""
    embedding_factor: float = Field(0.5, ge=0)
    """Factor of lr for the embedding table."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    warmup_steps: int = Field(40, ge=0)
    decay: float = Field(0.55, ge=0, le=1)
    """Share of the limit, at its end, over which the rate falls to final_factor · lr."""
    final_factor: float = Field(0.0, ge=0, le=1)
    clip: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 switches clipping off."""


class LimitSettings(Section):
    """End of training, in steps or in minutes. The decay of the rate follows it."""

    steps: int | None = Field(None, gt=0)
    minutes: float | None = Field(None, gt=0)
    """Minutes of training steps: reading, validation and the public encoder do not count."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "LimitSettings":
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(
                f"limit.steps={self.steps} and limit.minutes={self.minutes}: give one of them, and the other as null"
            )
        return self


class TrainerSettings(Section):
    """Device, precision, and how often to report, validate and save."""

    precision: Literal["fp32", "bf16-mixed"] = "fp32"
    threads: int = Field(0, ge=0)
    """CPU threads; 0: torch's default."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    validate_every: int = Field(100, gt=0)
    """Steps between validations."""
    checkpoint_every: int = Field(100, gt=0)
    """Steps between checkpoints."""
    log_every: int = Field(20, gt=0)


class RunSettings(Section):
    """Folder of the results, and the seed of everything random."""

    dir: Place = Field("runs/codec", min_length=1)
    seed: int = Field(0, ge=0, lt=2**63)


class CodecTraining(Settings):
    """The training of one codec. Values come from the YAML file and the command line only."""

    start: Place = "analytic"
    """analytic, random, or a codec to train further: mini or a folder."""
    spm: Place | None = None
    """A SentencePiece vocabulary for analytic and random starts; null: one is trained on the corpus."""
    freeze: Literal["none", "encoder"] = "none"
    """encoder: the encoder keeps every bit, and so does an embedding table that it shares with the decoder. The result
    has its start's fingerprint, so it decodes models that were trained on the start's vectors."""
    protect: bool = True
    """Keep updates out of the directions that carry positions, where the start has such directions."""
    model: SizeSettings = SizeSettings()
    data: CorpusSettings = CorpusSettings()
    terms: TermSettings = TermSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    limit: LimitSettings
    trainer: TrainerSettings = TrainerSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _terms_fit_together(self) -> "CodecTraining":
        terms, frozen = self.terms, self.freeze == "encoder"
        readings, moves = (
            [f"terms.{name}={getattr(terms, name)}" for name in names if getattr(terms, name)]
            for names in (("robust", "codebooks", "quantizer"), ("similarity", "translation_mse"))
        )
        if frozen and self.start in ("analytic", "random"):
            raise ValueError(f"freeze=encoder keeps the encoder of a codec, but start={self.start}; name a codec")
        if readings and not frozen:
            raise ValueError(f"{readings[0]} is fitted to vectors that must not move: set freeze: encoder")
        if frozen and moves:
            raise ValueError(f"{moves[0]} moves the encoder, but freeze=encoder; drop either")
        if terms.similarity and self.data.spans:
            raise ValueError(
                f"data.spans={self.data.spans} trains on parts of sentences, but terms.similarity compares whole ones; "
                "set either to 0"
            )
        if len(readings) > 1:
            names = " and ".join(reading.split("=")[0] for reading in readings)
            raise ValueError(f"{names} each say what the decoder reads: keep one of them")
        if (terms.translation or terms.translation_mse) and not self.data.pairs:
            raise ValueError("terms.translation needs translations: name their files in data.pairs, or set it to 0")
        return self
