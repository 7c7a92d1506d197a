"""Hugging Face data sets → documents: by name from the hub, or from a folder; streamed, in the data set's order."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lcm.data.manifest import DatasetInfo
from lcm.errors import UserError
from lcm.prepare.rows import Columns, Document, Refused, add_names

TYPICAL_BYTES = 64_000_000
"""Assumed size of a data set that does not state one: large enough for shards of the largest size."""
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


class Dataset:
    """A data set at an exact commit.

    name:      name on the hub, or a folder of data files, or a folder written by `save_to_disk`
    revision:  branch, tag or commit on the hub; resolved once, to `info.commit`
    streaming: fetch rows while reading, instead of all of them first
    Raises UserError where datasets is not installed, or the data set does not exist.
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
        """The files of a local folder, sorted, to be hashed; none for a data set of the hub."""
        paths = self.folder.rglob("*") if self.folder else ()
        return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))

    def open(self) -> Any:
        """The split, as an iterable of rows. Raises UserError where the configuration or the split does not exist."""
        datasets, info = _import_datasets(), self.info
        with _explained(info):
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

    lang: language of rows where no column names one
    """

    def __init__(self, dataset: Dataset, columns: Columns, lang: str) -> None:
        self.columns, self.lang = columns, lang
        self.columns_seen: dict[str, None] = {}
        self.info, self._folder = dataset.info, dataset.folder or Path()
        self._rows = dataset.open()
        self._read = 0
        split = (self._rows.info.splits or {}).get(dataset.info.split)
        self._count = split.num_examples if split else 0
        self.total_bytes = (split.num_bytes if split else 0) or TYPICAL_BYTES
        """Size of the data set's text, or TYPICAL_BYTES where it is unknown."""
        wanted = sorted(columns.wanted & set(names := self._rows.column_names or ()))
        add_names(self.columns_seen, names)
        self._rows = self._rows.select_columns(wanted) if wanted else self._rows

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, estimated from the share of the rows; 0 where their number is unknown."""
        return self.total_bytes * self._read // self._count if self._count else 0

    def __iter__(self) -> Iterator[Document | Refused]:
        self._read = 0
        name = Path(self.info.name).name
        with _explained(self.info):
            for number, row in enumerate(self._rows, 1):
                self._read = number
                add_names(self.columns_seen, row)
                yield self.columns.document(row, name, f"{name}:{number}", self.lang, self._folder)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("--dataset: datasets is not installed: pip install 'lcm-train[data]'") from error
    return datasets


def _commit(name: str, revision: str | None) -> str:
    """Resolve `revision` (default: the main branch) to a commit of the hub's repository."""
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
    """Turn anything the library raises into a UserError with its first line."""
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # the library, the network and the file formats raise dozens of types
        raise UserError(
            f"--dataset={info.name}, --dataset-config={info.config or 'none'}, --dataset-split={info.split}: "
            f"{_first_line(error)}; put it right and run the same command again: it continues"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
