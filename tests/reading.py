"""ConceptData as a training loop would use it, for several ranks in one process."""

from itertools import islice
from pathlib import Path

from made_up_data import a_config, documents_in, some_documents

from lcm.batch import Batch
from lcm.config import Config
from lcm.data.datamodule import ConceptData

DOCUMENTS = some_documents(60)


def opened(config: Config, rank: int = 0, world_size: int = 1, predicts_first: bool = True) -> ConceptData:
    data = ConceptData(config, predicts_first, rank=rank, world_size=world_size)
    data.setup()
    return data


def trained(data: ConceptData, micro_batches: int | None = None) -> list[Batch]:
    """The batches that a training loop sees, with `advance` called for each."""
    batches = []
    for batch in islice(data.train_dataloader(), micro_batches):
        data.advance()
        batches.append(batch)
    return batches


def as_rows(batches: list[Batch]) -> list[tuple[int, bytes, bytes, bytes, bytes]]:
    """Everything about each row, its seed first, for comparison."""
    fields = ("emb", "doc", "pos", "is_target")
    return [
        (int(batch.row[i]), *(getattr(batch, name)[i].numpy().tobytes() for name in fields))
        for batch in batches
        for i in range(len(batch.row))
    ]


def numbers_of(batches) -> list[int]:
    """The numbers of the documents in the order of training, if none of them is cut."""
    return [number for batch in batches for _, number, _, _ in documents_in(batch)]


def in_shard(number: int) -> set[int]:
    """The documents of a shard of `DOCUMENTS`."""
    return set(range(10 * number, 10 * number + 10))


def steps_of(folder: Path, world_size: int, accumulate: int, steps: int, **settings) -> list[list]:
    """The rows of each step, all ranks together, sorted by seed."""
    rows = 8 // world_size // accumulate
    config = a_config(folder, trainer__accumulate=accumulate, data__rows=rows, trainer__max_steps=steps, **settings)
    ranks = [trained(opened(config, rank, world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {steps * accumulate}
    return [
        sorted(as_rows([b for batches in ranks for b in batches[step * accumulate : (step + 1) * accumulate]]))
        for step in range(steps)
    ]
