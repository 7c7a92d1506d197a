"""A sentence through each extra, for `lcm doctor`: an extra that is installed and does not run is worse than none.

    python -m lcm.trials sat        status 0 where it runs, else the reason on stderr

Each runs in a process of its own: some libraries print while they are imported, and some end the process.
"""

import io
import subprocess
import sys
import tempfile

from lcm.errors import UserError, explained

SENTENCE = "The sea was calm."
PATIENCE = 300.0
"""Seconds that a trial may take: some extras are imported for half a minute on a busy machine."""


def sonar() -> None:
    from lcm.codec import SonarSpeech

    if not SonarSpeech().knows("eng_Latn"):
        raise UserError("fairseq2's asset store does not know SONAR's English encoder")


def deepspeed() -> None:
    from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: F401  (of trainer.offload)


def sat() -> None:
    """Split with a model of random weights and one layer, in the format of wtpsplit."""
    import torch
    import wtpsplit.models  # noqa: F401  (registers the architecture)
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from wtpsplit.configs import SubwordXLMConfig
    from wtpsplit.models import SubwordXLMForTokenClassification

    from lcm.codec.text import SatSettings, Splitter

    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    pieces = {name: i for i, name in enumerate([*names.values(), *SENTENCE.split()])}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SubwordXLMConfig(
        **sizes, vocab_size=len(pieces), max_position_embeddings=600, type_vocab_size=1, pad_token_id=1, num_labels=1
    )
    with tempfile.TemporaryDirectory() as folder:
        SubwordXLMForTokenClassification(config).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
        found = Splitter(SatSettings(model=folder)).split(SENTENCE)
    if "".join(found).replace(" ", "") != SENTENCE.replace(" ", ""):
        raise UserError(f"'{SENTENCE}' was split into {found}")


def data() -> None:
    from datasets import Dataset

    if [row["text"] for row in Dataset.from_list([{"text": SENTENCE}])] != [SENTENCE]:
        raise UserError("a row did not come back from datasets as it was")


def judge() -> None:
    from lcm.codec_lab.sentences import load_public_encoder

    load_public_encoder().encode([SENTENCE])
    evaluation()


def evaluation() -> None:
    from lcm.codec_lab.decoding import scores

    if scores([SENTENCE], [SENTENCE], ["eng_Latn"])["bleu"] < 99.9:
        raise UserError("sacrebleu gives a sentence against itself less than 100")


def plots() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.suptitle(SENTENCE)
    figure.savefig(io.BytesIO())


def transformers() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))(torch.tensor([[1, 2, 3]]))


def wandb() -> None:
    import wandb

    with wandb.init(mode="disabled") as run:
        run.log({"loss": 1.0})


def s3() -> None:
    import fsspec

    fsspec.filesystem("s3", anon=True)


TRIALS = {
    "sonar": sonar, "deepspeed": deepspeed, "sat": sat, "data": data, "judge": judge, "eval": evaluation,
    "plots": plots, "transformers": transformers, "wandb": wandb, "s3": s3,
}  # fmt: skip
"""The trials by the names of the extras."""


def reason_not_to_run(extra: str) -> str | None:
    """Try an extra in another process; None where it runs, else the first line of what it says."""
    command = [sys.executable, "-W", "ignore", "-m", "lcm.trials", extra]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, text=True, check=False)
    except subprocess.TimeoutExpired:
        return f"did not answer for {PATIENCE:.0f} seconds"
    if done.returncode == 0:
        return None
    said = [line for line in done.stderr.splitlines() if line.startswith("lcm.trials: ")]
    return said[-1].removeprefix("lcm.trials: ") if said else f"ended with status {done.returncode}"


def main() -> int:
    try:
        TRIALS[sys.argv[1]]()
    except Exception as error:
        print(f"lcm.trials: {explained(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
