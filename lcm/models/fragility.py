"""The fragility network: predicts from a normalized vector how easily noise destroys the sentence (paper §2.4.4).

Shapes.  n vectors · D concept width

Its output F(z) = 1 − E score lies between 0, robust to all noise, and 1, lost at once. The paper's own definition in
§2.5.2, which codec reports print, is −E score, in [−1, 0]: the loss weight sigmoid(−4 F + 3.5) would stay in [0.97, 1].
"""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lcm.errors import UserError
from lcm.files import atomic_path
from lcm.models.interface import Normalizer
from lcm.options import existing_file

HIDDEN = 512
"""Width of the two hidden layers; our choice, the paper gives none."""
KIND = "lcm fragility 1"
SETTING = "model.diffusion.fragility"


class FragilityNetwork(nn.Module):
    """Three layers of buffers: frozen, no parameters. NaN until loaded, so that a run without the file is noticed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        for i, (inner, outer) in enumerate([(dim, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]):
            self.register_buffer(f"weight{i}", torch.full((outer, inner), torch.nan))
            self.register_buffer(f"bias{i}", torch.full((outer,), torch.nan))

    def forward(self, z: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """Normalized vectors → F in [0, 1], in fp32."""
        state = z.float()
        for i in range(3):
            weight, bias = self.get_buffer(f"weight{i}").float(), self.get_buffer(f"bias{i}").float()
            state = F.linear(state if i == 0 else F.gelu(state), weight, bias)
        return state.squeeze(-1).sigmoid()

    def start(self, generator: torch.Generator) -> None:
        """Initialize for fitting: weights uniform with variance 1/inputs, biases 0."""
        for buffer in self.buffers():
            if buffer.ndim == 1:
                buffer.zero_()
            else:
                buffer.uniform_(-1, 1, generator=generator).mul_((3 / buffer.shape[1]) ** 0.5)

    def move(self, old: Normalizer, new: Normalizer) -> None:
        """Fold the change of normalizer into the first layer: from now on inputs are vectors behind `new`."""
        weight, bias = self.get_buffer("weight0"), self.get_buffer("bias0")
        bias.add_(weight @ ((new.location - old.location) / old.scale))
        weight.mul_(new.scale / old.scale)


def save_fragility(
    path: str | Path, network: FragilityNetwork, normalizer: Normalizer, codec: str, fingerprint: str
) -> None:
    """Write the network atomically, with the codec and the normalizer of the vectors it was fitted to."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = nn.ModuleDict({"network": network, "normalizer": normalizer}).state_dict()
    metadata = {"kind": KIND, "codec": codec, "fingerprint": fingerprint, "dim": str(network.dim)}
    with atomic_path(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)


def load_fragility(
    path: str | Path, dim: int, *, normalizer: Normalizer | None = None, fingerprint: str | None = None
) -> FragilityNetwork:
    """Read the network of `save_fragility`, on the CPU.

    normalizer:  of the model that will use it; by default the one it was fitted with
    fingerprint: of the codec of the model's data
    Raises UserError if the file is missing, broken, of another kind, or for another codec or dimension.
    """
    if not str(path):
        raise UserError(f"{SETTING} is empty: weight 'fragility' needs the file that data_prep/fit_fragility.py writes")
    path = existing_file(path, SETTING)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{SETTING}={path}: not a whole safetensors file ({error}); copy it again") from error
    if metadata.get("kind") != KIND:
        raise UserError(f"{SETTING}={path}: expected a file that data_prep/fit_fragility.py wrote")
    again = "; fit one for this codec with data_prep/fit_fragility.py"
    if metadata["dim"] != str(dim):
        raise UserError(f"{SETTING}={path}: for vectors of {metadata['dim']} numbers, the model's have {dim}{again}")
    if fingerprint is not None and metadata["fingerprint"] != fingerprint:
        raise UserError(
            f"{SETTING}={path}: of codec {metadata['codec']!r} ({metadata['fingerprint']}), but the data is of codec "
            f"{fingerprint}{again}"
        )
    network, fitted = FragilityNetwork(dim), Normalizer(dim)
    nn.ModuleDict({"network": network, "normalizer": fitted}).load_state_dict(tensors)
    if normalizer is not None:
        network.move(fitted, normalizer)
    return network
