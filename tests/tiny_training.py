"""A tiny Base-LCM, eight rows of data, and a Trainer for them."""

from types import SimpleNamespace

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from synthetic import DIM, pack

from lcm.batch import Batch
from lcm.config import Config
from lcm.models import build_model
from lcm.training.module import LCMModule

LENGTHS = [[4, 3], [5], [2, 2, 2], [6], [3, 3], [], [7], [2, 5]]


def config_with(*overrides):
    values = {
        "model": {"kind": "base", "dim": DIM, "width": 16, "heads": 2, "layers": 2, "dropout": 0.0},
        "optimizer": {"lr": 0.1, "warmup_steps": 0, "clip": 0},
        "trainer": {"max_steps": 1, "precision": "fp32", "devices": 1, "log_every": 1},
        "run": {"seed": 3},
    }
    return Config.parse(values, overrides, where="test")


def module_with(*overrides):
    config = config_with(*overrides)
    torch.manual_seed(0)
    return LCMModule(config, build_model(config.model))


def micro_batches(count, ranks=1):
    """The eight rows of LENGTHS, dealt over the ranks, in `count` micro-batches each."""
    everything = pack(LENGTHS, slots=8)
    targets = everything.targets(predicts_first=False).sum()
    order = torch.arange(8).reshape(-1, ranks).T.reshape(ranks, count, -1)
    names = ("emb", "doc", "pos", "is_target", "row")
    return [
        [Batch(*(getattr(everything, n)[rows] for n in names), step_targets=targets) for rows in rank] for rank in order
    ]


class Loader:
    """A list of batches; Lightning would take a plain list for several loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Given(L.LightningDataModule):
    """A DataModule of given batches that counts calls of `advance`."""

    def __init__(self, train, validation=()):
        super().__init__()
        self.train, self.validation, self.advanced = Loader(train), Loader(validation), 0

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.validation

    def advance(self):
        self.advanced += 1

    def metrics(self):
        return {}


class Kept(DummyLogger):
    def __init__(self):
        super().__init__()
        self.kept = []

    def log_metrics(self, metrics, step=None):
        self.kept.append((step, metrics))


def fit(module, train, validation=()):
    settings, kept = module.config.trainer, Kept()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=module.config.optimizer.clip,
        val_check_interval=settings.validate_every * settings.accumulate if validation else None,
        check_val_every_n_epoch=None if validation else 1,
        limit_val_batches=1.0 if validation else 0,
        num_sanity_val_steps=0,
        logger=kept,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Given(train, validation)
    trainer.fit(module, datamodule=data)
    return kept.kept, data


def weights(module):
    return {name: p.detach().clone() for name, p in module.model.named_parameters()}


def stub_trainer(accumulate=1, world_size=1, rank=0, step=0):
    data = SimpleNamespace(advance=lambda: None, metrics=dict)
    strategy = SingleDeviceStrategy(torch.device("cpu"))
    return SimpleNamespace(
        accumulate_grad_batches=accumulate, world_size=world_size, global_rank=rank, global_step=step,
        datamodule=data, strategy=strategy,
    )  # fmt: skip
