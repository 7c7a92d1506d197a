"""Fine-tuning: a run that begins with the weights of a trained model, by `trainer.start`.

The run has that model's codec record, normalizer and quantizer, too, so its concepts stay where they were. Once it has
a checkpoint of its own, it resumes from there, and the model's folder may be gone.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lcm.config import CodecRecord, Config
from lcm.errors import UserError
from lcm.models import ConceptModel, load_model
from lcm.training.checkpoint import latest
from lcm.training.start import check_identity, opened

FREE = {
    "model.dropout", "model.context_drop", "model.diffusion.context_drop", "model.diffusion.weight",
    "model.diffusion.min_snr", "model.diffusion.max_snr", "model.diffusion.timesteps", "model.diffusion.beta_a",
    "model.diffusion.beta_b",
}  # fmt: skip
"""Settings of a model that only its training knows: fine-tuning may have others."""
FILES = {"model.quantizer", "model.diffusion.fragility"}
"""Files whose tensors a trained model brings along; they need not be named again."""


class Trained(NamedTuple):
    """A trained model to go on from: its configuration, and its tensors under the model's own names.

    start: what `trainer.start` says, or said when the run began
    """

    config: Config
    weights: Mapping[str, Tensor]
    start: str

    def record(self, data: CodecRecord) -> CodecRecord:
        """The model's codec record, with the language, the task and the marks of the new data.

        Raises UserError where the data was encoded by another codec.
        """
        own = self.config.codec
        if own is None or own.fingerprint != data.fingerprint:
            before = f"codec '{own.name}' (fingerprint {own.fingerprint})" if own else "a codec that it does not name"
            raise UserError(
                f"trainer.start={self.start}: was trained with {before}, but the data was encoded with '{data.name}' "
                f"({data.fingerprint}); prepare the data with the model's codec"
            )
        news = ("lang", "default_task", "end_of_text", "prompt_suffix", "lengths")
        return own.model_copy(update={name: getattr(data, name) for name in news})

    def fill_buffers(self, model: ConceptModel, fingerprint: str) -> None:
        """Copy normalizer, codebooks and the like; read from the files of the configuration what is not there."""
        state, parameters = model.state_dict(), dict(model.named_parameters())
        own = {name: tensor for name, tensor in self.weights.items() if name in state and name not in parameters}
        # Through load_state_dict, because some modules derive more from their buffers.
        model.load_state_dict(own, strict=False)
        if state.keys() - self.weights.keys():  # such as the network of a loss weight that it was trained without
            model.load_fitted(fingerprint)


def read_start(config: Config) -> Trained | None:
    """Read the model of `trainer.start`; of a run that began so and has a checkpoint, what is in that. Otherwise None.

    Raises UserError where the folder holds no model, or one that is not `config.model`; and beside a checkpoint to
    resume from.
    """
    start, folder, resume = config.trainer.start, Path(config.run.dir), config.trainer.resume
    if start and resume not in ("auto", "none"):
        raise UserError(f"trainer.start={start}: trainer.resume={resume} says where to begin, too; leave one out")
    if start and Path(start).exists() and folder.exists() and Path(start).samefile(folder):
        raise UserError(f"trainer.start={start}: is run.dir itself; choose another run.dir for the tuned model")
    path, checkpoint = latest(folder) or Path(resume), None
    with suppress(UserError):  # none there, or a damaged one: `decide` looks for another
        checkpoint = opened(path, whole=False)
    if checkpoint and (began := start or checkpoint["config"]["trainer"].get("start")):
        check_identity(path, checkpoint, config)
        weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
        return Trained(Config.parse(checkpoint["config"], [], where=str(path)), weights, began)
    if not start:
        return None
    try:
        model, trained = load_model(start)
    except UserError as error:
        raise UserError(f"trainer.start={start}: {error}") from error
    old, new = _flat(trained.model.model_dump()), _flat(config.model.model_dump())
    for name in sorted(old.keys() | new.keys(), key=lambda name: (name != "model.kind", name)):
        before, now = old.get(name), new.get(name)
        if before == now or name in FREE or (name in FILES and not (before and now)):
            continue
        expected = "leave it out" if name in FILES and before else f"set {name}={before}"
        raise UserError(f"{name}={now}, but trainer.start={start} was trained with {before}; {expected}")
    return Trained(trained, model.state_dict(), start)


def _flat(values: Mapping[str, Any], prefix: str = "model.") -> dict[str, Any]:
    """{"diffusion": {"steps": 100}} → {"model.diffusion.steps": 100}"""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
