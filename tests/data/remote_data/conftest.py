"""A prepared folder behind an HTTP server, and configurations of runs on it."""

import pytest
from made_up_data import a_config, some_documents, write_data
from reading import DOCUMENTS
from serving import served

from lcm.config import Config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    return write_data(there / "data", DOCUMENTS, validation=some_documents(25, seed=1))


@pytest.fixture
def server(folder):
    with served(folder.parent) as server:
        yield server


@pytest.fixture
def config(server, tmp_path):
    """Makes the configuration of a run on the server's data, with two shards in a group."""

    def make(**settings) -> Config:
        return a_config(f"{server.url}/data", **{"data__cache": str(tmp_path / "cache"), **settings})

    return make
