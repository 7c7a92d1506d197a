import pytest
from tiny_codec import settings_for

from lcm.codec_lab.training import train_codec


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A codec after sixty steps, for what goes on from one."""
    folder = tmp_path_factory.mktemp("start")
    overrides = ("limit.steps=60", "trainer.validate_every=20", "trainer.checkpoint_every=60")
    return train_codec(settings_for(folder, *overrides))
