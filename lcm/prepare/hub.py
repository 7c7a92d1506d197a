"""Hugging Face data sets → documents: by name from the hub, or from a folder; streamed, in the data set's order."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lcm.data.manifest import DatasetInfo
from lcm.errors import UserError, optional_import
from lcm.ledger import Ledger
from lcm.prepare.discovery import files_of
from lcm.prepare.options import PrepareOptions
from lcm.prepare.rows import Document, Refused, add_names

TYPICAL_BYTES = 64_000_000
"""Assumed size of a data set that does not state one: large enough for shards of the largest size."""
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


class DatasetRows:
    """The documents of a data set at an exact commit, in its order; a row's place is NAME:NUMBER, from 1.

    The name of `options.dataset` is one on the hub, a folder of data files, or a folder written by `save_to_disk`. Its
    revision (branch, tag or commit) is resolved once, to `info.commit`.
    Raises UserError where datasets is not installed, or the data set, its configuration or its split does not exist.
    """

    def __init__(self, options: PrepareOptions) -> None:
        name, revision, split = options.dataset or "", options.revision, options.dataset_split
        datasets = optional_import("datasets", "--dataset: datasets is not installed: pip install 'lcm-train[data]'")
        self._folder = Path(name) if Path(name).is_dir() else None
        if self._folder and revision:
            raise UserError(f"--revision={revision}: --dataset={name} is a folder, which has no revisions")
        if self._folder and Path(options.output).resolve().is_relative_to(self._folder.resolve()):
            line = f"lies in --dataset={name}, which would no longer be what is read; choose another folder"
            raise UserError(f"--output={options.output}: {line}")
        self.passed = Ledger()
        self.files = files_of(self._folder, "--dataset", self.passed) if self._folder else []
        """The files of a local folder, sorted, to be hashed; none for a data set of the hub."""
        self.file = len(self.files) - 1
        """Number of the file that was read last: the library says not which, so any may be."""
        commit = "" if self._folder else _commit(name, revision)
        self.info = DatasetInfo(name=name, config=options.dataset_config or "", split=split, commit=commit)
        self.columns, self.lang = options.columns, options.lang
        with _explained(self.info):
            self._rows = self._open(datasets, options.streaming)
        self._read = 0
        size = (self._rows.info.splits or {}).get(split)
        self._count = size.num_examples if size else 0
        self.total_bytes = (size.num_bytes if size else 0) or TYPICAL_BYTES
        """Size of the data set's text, or TYPICAL_BYTES where it is unknown."""
        names = self._rows.column_names or ()
        self.columns_seen: dict[str, None] = {}
        add_names(self.columns_seen, names)
        if wanted := sorted(self.columns.wanted & set(names)):
            self._rows = self._rows.select_columns(wanted)

    def _open(self, datasets: Any, streaming: bool) -> Any:
        """The split, as an iterable of rows, which are fetched while they are read if `streaming`."""
        info = self.info
        if not self._folder:
            return datasets.load_dataset(
                info.name, info.config or None, split=info.split, revision=info.commit or None, streaming=streaming
            )
        if not any((self._folder / name).is_file() for name in _SAVED):
            place = str(self._without_linked_folders(self._folder))
            self._count_files_not_read(datasets.load_dataset_builder(place, info.config or None))
            return datasets.load_dataset(place, info.config or None, split=info.split, streaming=streaming)
        saved = datasets.load_from_disk(str(self._folder))
        if not isinstance(saved, datasets.DatasetDict):
            return saved
        if info.split not in saved:
            raise UserError(f"--dataset-split={info.split}: {info.name} has {', '.join(saved)}")
        return saved[info.split]

    def _without_linked_folders(self, folder: Path) -> Path:
        """The folder, or one of links to its files where some are behind links to folders, which the library skips."""
        inside = {parent for file in self.files for parent in file.relative_to(folder).parents}
        if not any((folder / parent).is_symlink() for parent in inside if parent.parts):
            return folder
        self._links = TemporaryDirectory()  # removed with this object
        for file in self.files:
            link = Path(self._links.name, folder.name, file.relative_to(folder))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        return Path(self._links.name, folder.name)

    def _count_files_not_read(self, builder: Any) -> None:
        """Count the files that are in no split, by their ending or because others have a more frequent one."""
        splits = builder.config.data_files or {}
        read = {Path(file).resolve() for files in splits.values() for file in files}
        for file in self.files if read else ():
            if file.resolve() not in read:
                self.passed.add("file of an unknown kind", str(file))

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
                yield self.columns.document(row, name, f"{name}:{number}", self.lang, self._folder or Path())


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
