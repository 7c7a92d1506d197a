"""Sentences ↔ vectors: `Codec` batches by a budget of pieces, longest first, and returns results in input order.

Shapes.  n sentences · D concept width · B rows of a batch · P prefix
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import storage
from lcm.codec.architecture import Decoder, Encoder, SonarText
from lcm.codec.official import RELEASES, sonar_folder
from lcm.codec.search import Rules, beam_search, greedy
from lcm.codec.text import Tokenizer
from lcm.errors import UserError, in_one_line
from lcm.files import expanded

PACKAGED = {"mini": Path(__file__).parent / "assets" / "mini"}
Progress = Callable[[int], None]
"""Called with the number of sentences finished since the last call."""
Languages = str | Sequence[str]
"""A FLORES code for all sentences, or one for each."""
STOP_THRESHOLD = 0.95
"""Default for a codec whose card records none."""
SLACK = 8
"""Pieces that a decoded sentence may be longer than the longest encoded one, where the codec sets no limit."""
PIECES = {"cpu": 1024, "cuda": 32768}
"""Pieces in an encoder batch, padding included, by device type. The fastest on a CPU; not tuned on CUDA."""
ROWS = 1024
"""Hypotheses in a decoder batch; not tuned on CUDA."""
CACHE_BYTES = {"cpu": 4 << 30, "cuda": 8 << 30}
"""Upper bound on the keys and values of a decoder batch in which every hypothesis reaches its longest length."""
MULTIPLE = 8
"""A compiled encoder's batches are padded to multiples of this many pieces."""
logger = logging.getLogger(__name__)


class Codec:
    """A text encoder and its decoder, from a folder; `load_codec` opens one. The weights of each are loaded when used.

    name:           the argument of `load_codec`
    dim:            width of a vector
    languages:      FLORES codes such as eng_Latn
    max_pieces:     the longest sentence that is encoded whole
    stop_threshold: cosine to the vector of "End of text." from which a concept counts as the end
    fingerprint:    hash of everything that decides the vectors: the encoder's weights, vocabulary and configuration
    """

    def __init__(
        self, name: str, folder: Path, device: torch.device, dtype: torch.dtype, compile_encoder: bool = False
    ) -> None:
        self.name, self.folder, self.device, self.dtype = name, folder, device, dtype
        self.compile_encoder = compile_encoder
        self.config = storage.read_json(folder / storage.CONFIG)
        self.card = storage.read_json(folder / storage.CARD, optional=True)
        try:
            sizes = storage.read_sizes(self.config)
            self.max_pieces: int = self.config["max_pieces"]
            self.tokenizer = Tokenizer(folder / storage.VOCABULARY, self.config)
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / storage.CONFIG}: {error} is missing or misplaced; copy it again") from error
        self.dim = sizes.dim
        self.languages: tuple[str, ...] = tuple(self.tokenizer.languages)
        self.stop_threshold: float = self.card.get("stop_threshold", STOP_THRESHOLD)
        with torch.device("meta"):
            self._model = SonarText(sizes)
        storage.check_weights(self._model, folder)

    @cached_property
    def encoder(self) -> Encoder:
        storage.load_part(self._model, "encoder", self.folder, self.dtype, self.device)
        if self.compile_encoder:
            _compile(self._model.encoder, self.device)
        return self._model.encoder

    @cached_property
    def decoder(self) -> Decoder:
        storage.load_part(self._model, "decoder", self.folder, self.dtype, self.device)
        return self._model.decoder

    @property
    def model(self) -> SonarText:
        """Encoder and decoder as one module, both loaded."""
        _ = self.encoder, self.decoder
        return self._model

    @cached_property
    def fingerprint(self) -> str:
        return storage.fingerprint(self.folder)

    def pieces(self, sentence: str) -> int:
        """Length of a sentence in pieces, without the language token and the end."""
        return len(self.tokenizer.encode([sentence])[0])

    def fits(self, sentence: str, lang: str = "eng_Latn") -> bool:
        """True where `encode` does not have to cut the sentence. Raises UserError for an unknown language."""
        self.tokenizer.language(lang)
        return self.pieces(sentence) <= self.max_pieces

    @in_one_line()
    @torch.no_grad()
    def encode(
        self, sentences: Sequence[str], lang: Languages = "eng_Latn", *, progress: Progress | None = None
    ) -> Float[Tensor, "n {self.dim}"]:
        """Encode sentences to fp32 vectors on the CPU. One over `max_pieces` is cut, with a warning.

        Raises UserError for an unknown language and for strings that are not valid Unicode.
        """
        if isinstance(sentences, str):
            raise UserError("encode takes a list of sentences, not one string: encode([sentence])")
        if strange := [each for each in sentences if not isinstance(each, str)]:
            raise UserError(f"encode takes a list of sentences: {strange[0]!r} is no text")
        starts = self._language_tokens(lang, len(sentences))
        all_pieces, most = self.tokenizer.encode(sentences), self.max_pieces
        if too_long := [sentence for sentence, row in zip(sentences, all_pieces, strict=True) if len(row) > most]:
            line = "%d of %d sentences were cut to %d pieces; the first: %.80r"
            logger.warning(line, len(too_long), len(sentences), most, too_long[0])
        rows = [[start, *row[:most], self.tokenizer.end] for start, row in zip(starts, all_pieces, strict=True)]
        vectors = torch.empty(len(rows), self.dim)
        for batch in batches([len(row) for row in rows], PIECES.get(self.device.type, PIECES["cpu"])):
            vectors[batch] = self._encode_rows([rows[i] for i in batch]).cpu()
            if progress:
                progress(len(batch))
        return vectors

    def _language_tokens(self, lang: Languages, rows: int) -> list[int]:
        if isinstance(lang, str):
            return [self.tokenizer.language(lang)] * rows
        if len(lang) != rows:
            raise UserError(f"lang: {len(lang)} languages for {rows} rows; give one for all, or one for each")
        return [self.tokenizer.language(code) for code in lang]

    def _encode_rows(self, rows: list[list[int]]) -> Float[Tensor, "B D"]:
        count, width, end = len(rows), max(map(len, rows)), self.tokenizer.end
        if self.compile_encoder:
            width = min(-(-width // MULTIPLE) * MULTIPLE, self._model.sizes.positions)
            if count == 1 or width == min(map(len, rows)):
                # torch recompiles for batches of one row, and for those without padding.
                rows = [*rows, [end]]
        padded = torch.tensor([row + [end] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        vectors: Tensor = self.encoder(padded.to(self.device), lengths.to(self.device))
        return vectors[:count]

    @in_one_line()
    @torch.no_grad()
    def decode(
        self,
        vectors: Float[Tensor, "n width"],
        lang: Languages = "eng_Latn",
        *,
        beam: int = 1,
        progress: Progress | None = None,
    ) -> list[str]:
        """Decode each vector to a sentence, by greedy search or by a beam search with `beam` hypotheses.

        Raises UserError for an unknown language, a width other than `dim`, and vectors that are not finite.
        """
        self._check(vectors, beam)
        prefix = torch.tensor([[self.tokenizer.end, token] for token in self._language_tokens(lang, len(vectors))])
        search = greedy if beam == 1 else partial(beam_search, beams=beam)
        rules, pieces = self.rules, [[0]] * len(vectors)
        # The mean of many nearly orthogonal pieces is short: vectors of similar norm give sentences of similar length.
        order = vectors.float().norm(dim=1).argsort(stable=True).tolist()
        size = max(1, self._decoder_rows() // beam)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            chosen, first = vectors[batch].to(self.device, torch.float32), prefix[batch].to(self.device)
            for number, written in zip(batch, search(self.decoder, chosen, first, rules), strict=True):
                pieces[number] = written
            if progress:
                progress(len(batch))
        if endless := sum(len(written) >= rules.limit for written in pieces):
            logger.warning("%d of %d decoded sentences were cut at %d pieces", endless, len(pieces), rules.limit)
        return [self.tokenizer.decode(written) for written in pieces]

    @property
    def rules(self) -> Rules:
        """Limits on a decoded sentence: its length, its end, and the banned pieces."""
        most = self.config.get("max_generated", self.max_pieces + SLACK)
        return Rules(self.tokenizer.end, self.tokenizer.banned, limit=min(most, self._model.sizes.positions - 2))

    def _decoder_rows(self) -> int:
        sizes, limit = self._model.sizes, CACHE_BYTES.get(self.device.type, CACHE_BYTES["cpu"])
        row_bytes = 2 * sizes.decoder_layers * sizes.dim * (2 + self.rules.limit) * self.dtype.itemsize
        return max(1, min(ROWS, limit // row_bytes))

    def _check(self, vectors: Float[Tensor, "n width"], beam: int) -> None:
        if not isinstance(vectors, Tensor):
            raise UserError(f"decode takes a tensor, not {type(vectors).__name__}: torch.from_numpy(vectors)")
        if not isinstance(beam, int) or beam < 1:
            raise UserError(f"beam={beam}: expected 1 (greedy) or more")
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise UserError(f"vectors have shape {tuple(vectors.shape)}, but codec {self.name!r} takes (n, {self.dim})")
        if broken := (~vectors.isfinite().all(dim=1)).nonzero()[:, 0].tolist():
            raise UserError(f"vectors[{broken[0]}] is not finite, nor are {len(broken) - 1} others of {len(vectors)}")

    @in_one_line()
    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the codec to a folder for `load_codec`, its weights rounded to `dtype`.

        Raises UserError for a codec loaded in a lower precision than fp32.
        """
        if self.dtype != torch.float32:
            raise UserError(f"a codec in {self.dtype} has lost digits: load it with dtype=torch.float32 to save it")
        vocabulary = (self.folder / storage.VOCABULARY).read_bytes()
        storage.save(Path(folder), self.model, vocabulary, self.config, self.card, dtype)


@in_one_line()
def load_codec(
    name: str | Path = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    compile_encoder: bool = False,
) -> Codec:
    """Open a codec by name ("mini" is in the package; "sonar" is fetched and converted once) or from its folder.

    device:          default: CUDA where there is a GPU, else the CPU
    dtype:           precision of matrix products (default: bfloat16 on a CUDA device that has it, else float32)
    compile_encoder: use torch.compile, which delays the first sentence; vectors agree to 1e-5 of the largest number
    Raises UserError naming the missing files and the place where they should be. Weights are loaded later.
    """
    name = expanded(name, setting="codec")
    folder = sonar_folder(name) if name in RELEASES else PACKAGED.get(name, Path(name))
    if missing := storage.missing_files(folder):
        known = ", ".join(map(repr, (*PACKAGED, *RELEASES)))
        raise UserError(
            f"codec {str(name)!r}: no {', '.join(missing)} in {folder.resolve()}; "
            f"expected {known}, or a folder with {', '.join(storage.NEEDED)}"
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    dtype = dtype or (torch.bfloat16 if bf16 else torch.float32)
    return Codec(str(name), folder, device, dtype, compile_encoder)


def _compile(encoder: Encoder, device: torch.device) -> None:
    """Compile the encoder in place, once for batches of all shapes. Raises UserError where torch finds no compiler.

    The first batch is equal in all processes. Otherwise the compiled kernels, and with them the last bits of every
    vector, could depend on the sentences that come first.
    """
    from torch._dynamo.exc import TorchDynamoException  # not at the top: it takes seconds to import

    encoder.compile(dynamic=True)  # type: ignore[no-untyped-call]
    pieces = torch.zeros(2, 2 * MULTIPLE, dtype=torch.long, device=device)
    try:
        with torch.no_grad():
            encoder(pieces, torch.tensor([2 * MULTIPLE, 1], device=device))
    except TorchDynamoException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the encoder cannot be compiled here ({reason}); lcm doctor looks for a compiler") from error


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of row numbers, longest rows first: at most `budget` pieces with padding, and at least one row, each."""
    out: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not out or (len(out[-1]) + 1) * lengths[out[-1][0]] > budget:
            out.append([])
        out[-1].append(number)
    return out
