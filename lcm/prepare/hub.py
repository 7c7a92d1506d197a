"""Hugging Face data sets → rows: by name from the hub, or from a folder; streamed, in the data set's own order."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lcm.data import DatasetInfo
from lcm.errors import UserError
from lcm.prepare.rows import Columns, Document, Refused, remember

TYPICAL_BYTES = 64_000_000
"""Of a data set that does not tell its size: its shards are then of the largest size."""
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


class Dataset:
    """A data set that is there: which one exactly, and its size.

    name:      on the hub, or a folder: of data files, or one written by `save_to_disk`
    revision:  branch, tag or commit on the hub; what it means now is looked up once, and kept in `info.commit`
    streaming: rows are fetched while they are read, instead of all before
    Raises UserError where datasets is not installed, or the data set, the configuration or the split is not there.
    """

    def __init__(
        self, name: str, config: str | None = None, split: str = "train", revision: str | None = None,
        streaming: bool = True,
    ) -> None:  # fmt: skip
        _import_datasets()
        self.folder = Path(name) if Path(name).is_dir() else None
        if self.folder and revision:
            raise UserError(f"--revision={revision}: --dataset={name} is a folder, which has no revisions")
        commit = "" if self.folder else _commit(name, revision)
        self.info = DatasetInfo(name=name, config=config or "", split=split, commit=commit)
        self.streaming = streaming

    def files(self) -> list[Path]:
        """Those of a local folder, sorted: their hashes say whether it is still the same. None of a hub's."""
        found = self.folder.rglob("*") if self.folder else ()
        return sorted(path for path in found if path.is_file() and not path.name.startswith("."))

    def open(self) -> Any:
        """The split, to be iterated. Raises UserError."""
        with _explained(self.info):
            return self._open()

    def _open(self) -> Any:
        datasets, info = _import_datasets(), self.info
        if self.folder and any((self.folder / name).is_file() for name in _SAVED):
            saved = datasets.load_from_disk(str(self.folder))
            if not isinstance(saved, datasets.DatasetDict):
                return saved
            if info.split not in saved:
                raise UserError(f"--dataset-split={info.split}: {info.name} has {', '.join(saved)}")
            return saved[info.split]
        return datasets.load_dataset(
            info.name, info.config or None, split=info.split, revision=info.commit or None, streaming=self.streaming
        )


class DatasetRows:
    """The documents of a data set, in its order; a row's place is NAME:NUMBER, from 1.

    lang: of rows where no column says it
    """

    def __init__(self, dataset: Dataset, columns: Columns, lang: str) -> None:
        self.columns, self.lang = columns, lang
        self.columns_seen: dict[str, None] = {}
        self._info, self._folder = dataset.info, dataset.folder or Path()
        self._rows = dataset.open()
        self._read = 0
        split = (self._rows.info.splits or {}).get(dataset.info.split)
        self._count = split.num_examples if split else 0
        self.total_bytes = (split.num_bytes if split else 0) or TYPICAL_BYTES
        """Of the text, as far as the data set tells."""
        wanted = sorted(columns.wanted & set(names := self._rows.column_names or ()))
        remember(self.columns_seen, names)
        self._rows = self._rows.select_columns(wanted) if wanted else self._rows

    @property
    def bytes_read(self) -> int:
        """The share of the rows that was read, of `total_bytes`; 0 where their number is not known."""
        return self.total_bytes * self._read // self._count if self._count else 0

    def __iter__(self) -> Iterator[Document | Refused]:
        self._read = 0
        name = Path(self._info.name).name
        with _explained(self._info):
            for number, row in enumerate(self._rows, 1):
                self._read = number
                remember(self.columns_seen, row)
                yield self.columns.document(row, name, f"{name}:{number}", self.lang, self._folder)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("--dataset: datasets is not installed: pip install 'lcm-train[data]'") from error
    return datasets


def _commit(name: str, revision: str | None) -> str:
    """The commit of the hub's repository that `revision` (or its main branch) is now."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha or ""
    except (OSError, ValueError) as error:
        at = f" at {revision}" if revision else ""
        raise UserError(
            f"--dataset={name}: no folder of that name here, and the hub gives none{at} ({_first_line(error)}); "
            "check the name, --revision and the network, or download it and name the folder"
        ) from error


@contextmanager
def _explained(info: DatasetInfo) -> Iterator[None]:
    """What the library raises for a data set, as a UserError with its first line."""
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # of the library, the network, and the format of the files: dozens of kinds
        raise UserError(
            f"--dataset={info.name}, --dataset-config={info.config or 'none'}, --dataset-split={info.split}: "
            f"{_first_line(error)}; put it right and run the same command again: it continues"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
