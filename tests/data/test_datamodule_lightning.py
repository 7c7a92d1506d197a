"""The data under Lightning's Trainer: it knows its rank, and a run resumes without losing or repeating a row."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from made_up_data import a_config, some_documents, write_data
from reading import DOCUMENTS, as_rows, opened, trained

from lcm.batch import Batch
from lcm.config import Config
from lcm.data.datamodule import ConceptData


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "one", DOCUMENTS, validation=some_documents(25, seed=1))


def test_the_trainer_says_which_rank_this_is(folder):
    data = ConceptData(a_config(folder), predicts_first=True)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2)
    data.setup("fit")
    alone = opened(a_config(folder), rank=1, world_size=2)
    assert as_rows(trained(data, 3)) == as_rows(trained(alone, 3))


class Recorder(L.LightningModule):
    """Trains one number, and writes down which rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.trainer.datamodule.advance()
        self.seen += batch.row.tolist()
        return self.weight * batch.is_target.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert not self.training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(config: Config, folder: Path, checkpoint: Path | None = None) -> list[int]:
    module, accumulate = Recorder(), config.trainer.accumulate
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=config.trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        val_check_interval=4 * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[L.pytorch.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=ConceptData(config, predicts_first=True), ckpt_path=checkpoint)
    return module.seen


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_lightning_run_resumes_in_mid_epoch_without_losing_or_repeating_a_row(tmp_path, folder, accumulate, workers):
    def config(steps: int) -> Config:
        return a_config(folder, trainer__max_steps=steps, trainer__accumulate=accumulate, data__workers=workers)

    straight = fit(config(14), tmp_path / "straight")
    assert len(straight) == 14 * accumulate * 2
    killed = fit(config(8), tmp_path / "killed")
    resumed = fit(config(14), tmp_path / "killed", tmp_path / "killed" / "step=6.ckpt")
    assert killed[: 6 * accumulate * 2] + resumed == straight
