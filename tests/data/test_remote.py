"""A remote file arrives whole and right, or one line says why not."""

import errno
import hashlib
from types import SimpleNamespace

import fsspec
import pytest
from made_up_data import some_documents, write_data
from serving import ALWAYS, quick_waits, served

from lcm.cli import main
from lcm.data import remote
from lcm.data.manifest import is_url, join, open_dataset
from lcm.data.remote import Unreachable, download, read, wait_before
from lcm.data.shard_cache import ShardCache, shards_at
from lcm.data.verify import verify
from lcm.errors import UserError

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def server(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a.tar").write_bytes(CONTENT)
    with served(tmp_path / "there") as server:
        yield server


def fetched(url, target, retries=5):
    download(url, target, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), retries)
    return target.read_bytes()


@pytest.mark.parametrize("fault", [500, 503, 429, 408, "truncated", "wrong", "longer", "endless"])
def test_a_fault_that_may_pass_is_retried(fault, server, tmp_path):
    server.fails("a.tar", fault, times=4)
    with quick_waits() as waited:
        assert fetched(f"{server.url}/a.tar", tmp_path / "here") == CONTENT
    assert len(server.requests) == 5
    assert len(waited) == 4


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (500, r"500 Internal Server Error"),
        ("truncated", r"ClientPayloadError .*"),
        ("wrong", r"other bytes than the manifest promises \(sha256\)"),
        ("longer", r"more than 102,400 bytes"),
        ("endless", r"more than 102,400 bytes"),
    ],
)
def test_the_error_says_the_cause_and_the_number_of_attempts(fault, told, server, tmp_path):
    server.fails("a.tar", fault, times=ALWAYS)
    with quick_waits(), pytest.raises(Unreachable, match=rf"^{server.url}/a.tar: {told} \(tried 4 times\)$") as raised:
        fetched(f"{server.url}/a.tar", tmp_path / "here", retries=3)
    assert not raised.value.final
    assert len(server.requests) == 4


@pytest.mark.parametrize(("fault", "told"), [(404, "not found"), (403, "403 Forbidden"), (401, "401 Unauthorized")])
def test_a_final_fault_is_not_retried(fault, told, server, tmp_path):
    server.fails("a.tar", fault, times=ALWAYS)
    with quick_waits() as waited, pytest.raises(Unreachable, match=rf"a.tar: {told} \(tried once\)$") as raised:
        fetched(f"{server.url}/a.tar", tmp_path / "here")
    assert raised.value.final
    assert waited == []
    assert len(server.requests) == 1


def test_a_silent_server_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "STALL", 0.2)
    server.fails("a.tar", "stalled")
    with quick_waits():
        assert fetched(f"{server.url}/a.tar", tmp_path / "here") == CONTENT
    server.fails("a.tar", "stalled")
    with pytest.raises(Unreachable, match=r"no answer for 0\.2 s \(tried once\)"):
        fetched(f"{server.url}/a.tar", tmp_path / "here", retries=0)


def test_a_refused_connection_is_retried(server, tmp_path):
    server.http.server_close()
    with quick_waits() as waited, pytest.raises(Unreachable, match=r"ClientConnectorError .* \(tried 3 times\)$"):
        read(f"{server.url}/a.tar", 2, bytes)
    assert len(waited) == 2


def test_waits_double_up_to_a_minute_with_jitter():
    longest = [1, 2, 4, 8, 16, 32, 60, 60]
    several = [[wait_before(tried) for tried in range(1, 9)] for _ in range(50)]
    for waits in several:
        assert all(0.5 * most <= wait <= most for wait, most in zip(waits, longest, strict=True))
    for waits, most in zip(zip(*several, strict=True), longest, strict=True):
        assert len(set(waits)) == 50
        assert max(waits) - min(waits) > 0.25 * most


def test_the_wait_doubles_with_each_retry(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_random", SimpleNamespace(uniform=lambda low, high: high))
    server.fails("a.tar", 500, times=5)
    with quick_waits() as waited:
        fetched(f"{server.url}/a.tar", tmp_path / "here")
    assert waited == [1, 2, 4, 8, 16]


def test_a_full_disk_is_not_retried(server, tmp_path, monkeypatch):
    def get_file(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote, "_file_system", lambda url: (SimpleNamespace(get_file=get_file), "/a.tar"))
    with quick_waits() as waited, pytest.raises(OSError, match="No space left"):
        fetched("memory://a.tar", tmp_path / "here")
    assert waited == []


@pytest.mark.parametrize("where", ["memory://there/a.tar", "file://{tmp_path}/there/a.tar"])
def test_any_fsspec_file_system_works(where, server, tmp_path):
    url = where.format(tmp_path=tmp_path)
    with fsspec.open(url, "wb") as file:
        file.write(CONTENT)
    assert fetched(url, tmp_path / "here") == CONTENT
    assert read(url, 0, bytes) == CONTENT
    with pytest.raises(Unreachable, match=r"not found \(tried once\)"):
        read(url + "x", 5, bytes)


def test_an_unknown_protocol_is_one_line():
    with pytest.raises(UserError, match=r"^nonsense://a/b: Protocol not known: nonsense \(tried once\)$"):
        read("nonsense://a/b", 5, bytes)


def test_a_small_file_with_wrong_bytes_is_fetched_again(server):
    server.fails("a.tar", "wrong")

    def length_of(data):
        if data != CONTENT:
            raise remote.WrongBytes("not this one")
        return len(data)

    with quick_waits():
        assert read(f"{server.url}/a.tar", 1, length_of) == len(CONTENT)
    assert len(server.requests) == 2


def test_what_is_a_url():
    urls = ["s3://bucket/data", "https://host/data", "file:///data", "memory://data", "simplecache::s3://bucket/data"]
    folders = ["data", "/data", "../data", "C", "data:mine", "a:b/c", ""]
    assert all(map(is_url, urls))
    assert not any(map(is_url, folders))
    assert join("s3://bucket/data/", "a.tar") == join("s3://bucket/data", "a.tar") == "s3://bucket/data/a.tar"


URL = "https://me:word@host/a/data?sv=1&sig=a%2Fb=="


def test_a_query_stays_behind_the_name_and_is_kept():
    assert join(URL, "manifest.json") == "https://me:word@host/a/data/manifest.json?sv=1&sig=a%2Fb=="
    assert join("http://host/data/?sig=/", "a.tar") == "http://host/data/a.tar?sig=/"
    assert join("simplecache::https://host/data?s=1", "a.tar") == "simplecache::https://host/data/a.tar?s=1"
    assert join("s3://bucket/what?/", "a.tar") == "s3://bucket/what?/a.tar", "a name, where there are no queries"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"data.path={URL}: there is no document", "data.path=https://…@host/a/data?…: there is no document"),
        (f"'{URL}', {URL}; {URL}.", "'https://…@host/a/data?…', https://…@host/a/data?…; https://…@host/a/data?…."),
        ("https:/host/data?sig=1 (tried once)", "https:/host/data?… (tried once)"),
        ("s3://bucket/data: is it https://host/data?", "s3://bucket/data: is it https://host/data?"),
        ("--input=what?: no such file; me@host", "--input=what?: no such file; me@host"),
    ],
)
def test_queries_and_passwords_are_left_out_of_every_error(text, shown):
    assert str(UserError(text)) == shown


def test_a_signed_url_is_fetched_by_its_query_and_never_shown(tmp_path, capsys):
    folder = write_data(tmp_path / "there", some_documents(5))
    with served(folder) as server:
        url, plain = f"{server.url}/?sig=secret%2F1", server.url
        answer = server.answer

        def signed(request):
            path, _, query = request.path.partition("?")
            request.path = path if query == "sig=secret%2F1" else "/nothing"
            answer(request)

        server.answer = signed
        assert verify(url).problems == ()
        assert main(["verify", url]) == 0
        assert main(["verify", url, "--json"]) == 0
        assert main(["verify", f"{plain}/?sig=secret-of-yesterday"]) == 1
        record = open_dataset(url).shards("train")[0]
        shards = [shards_at(f"{plain}/?sig={s}", [record], ShardCache(tmp_path / "c"))[0] for s in ("1", "2")]
        assert shards[0].path == shards[1].path, "the bytes are the same, whoever signed"
    shown = "".join(capsys.readouterr())
    assert "secret" not in shown
    assert f"{plain}/?…" in shown


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_a_proxy_is_used_but_not_for_the_hosts_of_no_proxy(name, tmp_path, monkeypatch):
    folder = write_data(tmp_path / "there", some_documents(5))
    for other in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    with served(folder) as proxy:
        answer, asked = proxy.answer, []

        def pass_on(request):
            asked.append(request.path)
            request.path = "/" + request.path.rpartition("/")[2]
            answer(request)

        proxy.answer = pass_on
        monkeypatch.setenv(name, proxy.url)
        assert open_dataset("http://far.example/data", retries=0).documents == 5
        assert asked == ["http://far.example/data/manifest.json"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert open_dataset(f"{proxy.url}/data", retries=0).documents == 5
        assert asked[1:] == ["/data/manifest.json"], "asked itself, not through the proxy"
