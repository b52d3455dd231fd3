"""What gives a machine away is found, in every kind of file; what every release has is not."""

from __future__ import annotations

import base64
import dataclasses
import getpass
import json
import socket
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from finished_levels import answer
from launch.launches import AWKWARD, FLAGSHIP, SINGLE, named
from places import DATA

from quantkit.core.errors import InputError
from quantkit.formats.gguf_writer import lay_out, open_shard
from quantkit.formats.imatrix_file import read_imatrix, write_imatrix
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.plan.launch.files import write_launch_files
from quantkit.plan.launch.settings import Launch
from quantkit.release.privacy import A_TOKEN, Finding, Private, find_private, this_machine
from quantkit.report.retrieval_heatmap import draw_heatmap

TOKEN = "hf_" + "aB3" * 11
"""A token's shape; nobody's."""
MINE = Private(
    folders=("/home/jo", "/data/builds/demo", "/tmp", "/opt/quantkit", "/stuff"),
    users=("jo",),
    hosts=("tower", "tower.lab.example"),
    token="no-shape-at-all-1234",
)
NOBODY = Private((), (), ())
IMATRIX = DATA / "imatrix" / "demo-4x512.imatrix.gguf"


def found_in(text: str, private: Private = MINE, name: str = "a.md") -> list[str]:
    """What is found in a file of this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_text(text, encoding="utf-8")
        return [finding.what for finding in find_private({name: path}, private)]


def found_in_json(content: object, tmp_path: Path, private: Private = MINE) -> list[Finding]:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    return find_private({"a.json": path}, private)


def write_gguf(path: Path, metadata: Mapping[str, str | tuple[str, ...]]) -> Path:
    stored: Metadata = {"general.architecture": MetaValue("str", "llama")}
    stored |= {key: MetaValue("str", value) for key, value in metadata.items()}
    info = TensorInfo("a.weight", (1, 32), "F32")
    (layout,) = lay_out(path.stem, stored, [info])
    with open_shard(path, layout) as writer:
        noise = b"/home/jo/in/the/weights".ljust(128, b"\0")
        writer.write("a.weight", np.frombuffer(noise, np.uint8))
    return path


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A picture of one pixel with these chunks."""
    pixel = zlib.compress(b"\0\0")
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    every = ((b"IHDR", header), *chunks, (b"IDAT", pixel), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in every
    )


@pytest.mark.parametrize(
    "text",
    [
        "made in /home/jo",
        "made in /home/jo.",
        "(/home/jo/texts/a.txt)",
        'path: "/home/jo/a b"',
        "--model=/home/jo/model",
        "-v/home/jo:/models",
        "${MODELS:-/home/jo}",
        "backup/home/jo/a.txt",
        "https://files.example/home/jo/a.txt",
        "/data/builds/demo/levels/Q4",
        "/opt/quantkit/quantkit/cli/app.py",
        "cd /stuff; make",
        "/stuff/a",
        "/scratch/users/jo/run-3",
        "/net/tower/models",
        "~jo/texts",
        "scp jo@nas:a .",
        "jo@10.0.0.7",
        "jo@nas.local",
        "anybody@tower:",
        "root@tower.lab.example",
        "http://tower:8080/v1",
        "http://TOWER/",
        "see tower.lab.example for it",
        "tower:/export/models",
        r"\\tower\share",
        "host: tower",
        '"hostname": "tower"',
        "HOST=tower",
    ],
)
def test_what_is_this_machines_own_is_found(text: str) -> None:
    assert found_in(f"before\n{text}\nafter")
    assert not found_in("before\nafter")


@pytest.mark.parametrize(
    "text",
    [
        "/home/alice/a.txt",
        "/home/alice",
        "WorkingDirectory=/home/alice",
        "/Users/alice/Library",
        "/root/.cache/huggingface",
        "/root/a.txt",
        r"C:\Users\alice\a.txt",
        r"c:\\Users\\alice",
        "C:/Users/alice/a.txt",
        r"D:\calibration\a.txt",
        "/mnt/disk/a.txt",
        "/media/alice/disk",
        "/tmp/build-3",
        "/var/tmp/x",
        "/private/var/folders/x",
        "/Volumes/disk/a",
        "file:///srv/a.txt",
        "ssh://box/srv",
        r"\\nas\share\a.txt",
        "nas:/home/alice",
        "RPC0[192.168.1.20:50052]",
        "http://10.0.0.7:8080/v1",
        "172.31.0.1",
        "PATH=/usr/bin:/home/alice/bin",
        "-I/home/alice/include",
        "${MODELS:-/home/alice/models}",
        r'"written\n/home/alice/a.txt"',
    ],
)
def test_what_looks_like_somebodys_is_found_on_any_machine(text: str) -> None:
    assert found_in(text, NOBODY)


@pytest.mark.parametrize(
    "token",
    [
        TOKEN,
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 12,
        "sk-proj-" + "aB3_x" * 8,
        "sk-" + "aB3x" * 8,
        "AKIA" + "ABCD2345" * 2,
        "glpat-" + "aB3x" * 5,
        "https://jo:" + "secret" * 3 + "@example.org/a",
        MINE.token,
    ],
)
@pytest.mark.parametrize("form", ["{}", "/home/jo/{}/a", "x={}&y", '"{}"', "/tmp/{}"])
def test_a_token_is_found_and_never_shown(token: str, form: str, tmp_path: Path) -> None:
    text = form.format(token)
    secret = token.rpartition("@")[0].rpartition("jo:")[2] or token
    for name in ("a.md", "a.json", "a.jsonl", "a.html"):
        path = tmp_path / name
        content = json.dumps({"answer": text}) if "json" in name else text
        path.write_text(content)
        found = find_private({name: path}, MINE)
        assert A_TOKEN in [finding.what for finding in found], name
        assert not any(secret[:12] in repr(finding) for finding in found), found
    assert secret not in repr(MINE)


@pytest.mark.parametrize(
    "text",
    [
        "/usr/local/bin/llama-server -m /models/a.gguf",
        "/srv/models",
        "/dev/nvidia-uvm",
        "#!/bin/sh",
        "ExecStartPre=-+/usr/bin/nvidia-modprobe -c 0 -u",
        "https://example.org/home/alice/page",
        "https://example.org/a?next=/home/alice https://example.org/web/file:///tmp/a",
        "[page](https://example.org/tmp/a), <https://example.org/root/x>",
        "https://huggingface.co/jo/model-GGUF/blob/main/README.md",
        "hf://datasets/jo/home",
        "jo/model-GGUF, by jo",
        "the watchtower, tower 4, the tower",
        "jo@gmail.com wrote it",
        "recall@10, pass@1",
        "and/or, 12/64, in/home/office, ./tmp/a, ../root/a, folder/mnt/a",
        "$folder/home/a ${X}/tmp/a $(dirname)/tmp/b %C/tmp/c",
        "/home/ and /tmp/, /home/…, /home/$USER, /home/<you>",
        "~ 3 %, ~jo",
        "/stuffing /stuffed",
        r"blk\.(\d+)\.ffn_(up|down)_exps \\d+\\w \\d",
        "sk-learn-estimator-doc-link-label risk-0123456789ABCDEFabcdef",
        "hf_transfer hf_hub_download",
        "http://127.0.0.1:8080/health http://localhost:8080 --host 0.0.0.0",
        "versions 10.2.0, 110.2.0.4, 1.10.2.0.4, 172.32.0.1, 192.168, 10.9.8.7.6",
        "project file:// and A:\\ only",
    ],
)
def test_what_everybody_has_passes(text: str) -> None:
    assert found_in(text) == []


@pytest.mark.parametrize("name", ["max", "demo", "model", "test", "Q4_K", "4x3090", "quantkit"])
def test_names_that_are_words_count_only_where_a_machine_is_meant(
    name: str, tmp_path: Path
) -> None:
    private = Private((f"/home/{name}",), (name,), (name,))
    innocent = (
        f"{name}, the {name} of /models/{name}.gguf, {name}/{name}-GGUF, levels/{name}/a.json\n"
        f"https://huggingface.co/{name}/{name}  # {name}: 3\n- {name}\n{name}: {name}\n"
    )
    assert found_in(innocent, private) == []
    levels = {"levels": {name: {"name": name, "files": [name], "evidence": f"levels/{name}"}}}
    assert found_in_json(levels, tmp_path, private) == []
    path = write_gguf(tmp_path / "m.gguf", {"general.name": name, "general.author": name})
    assert find_private({f"{name}.gguf": path}, private) == []
    for text in (f"/home/{name}", f"/srv/{name}/a/{name}", f"{name}@nas", f"http://{name}/"):
        assert found_in(text, private), text
    assert found_in_json({"host": name}, tmp_path, private)
    path = write_gguf(tmp_path / "m.gguf", {"general.user": name})
    assert find_private({"m.gguf": path}, private)


@pytest.mark.parametrize("name", ["root", "user", "localhost", "vm"])
def test_names_that_many_have_count_in_paths_and_addresses(name: str) -> None:
    private = Private((f"/home/{name}",), (name,), (name,))
    for text in (f"user: {name}", f"host={name}", f"http://{name}:80/", f"a {name} b", f"{name}:/"):
        assert found_in(text, private) == [], text
    for text in (f"/home/{name}/a", f"/data/{name}/a", f"{name}@nas", f"{name}@{name}"):
        assert found_in(text, private), text


def test_every_machine_is_called_localhost() -> None:
    private = Private((), (), ("localhost", "localhost.localdomain", "1.0.0.127.in-addr.arpa"))
    for text in ("http://localhost.localdomain:80/", "IPAddressAllow=localhost", "a@localhost"):
        assert found_in(text, private) == [], text


@pytest.mark.parametrize("launch", [FLAGSHIP, SINGLE, *map(named, AWKWARD)])
def test_launch_files_pass(launch: Launch, tmp_path: Path) -> None:
    """Also where the machine is called like what they are full of."""
    files = {path.name: path for path in write_launch_files(launch, tmp_path)}
    words = ("model", "models", "llama-server", "bin", "nvidia", "cuda", "srv")
    private = Private(("/models", "/srv", "/usr/local", "/root", "/tmp", "/"), words, words)
    for owner in (NOBODY, private, dataclasses.replace(MINE, folders=("/srv/models",))):
        assert find_private(files, owner) == []


def test_places_are_lines_and_paths(tmp_path: Path) -> None:
    texts = {
        "README.md": "a\nb\r\n\nin /home/alice/x, twice /home/alice/x\n",
        "release.json": json.dumps({"a": [{"b c": 1}, {"b": ["x", "/home/alice/y"]}]}),
        "levels/Q4/niah.jsonl": '{"key": "a"}\n\n{"key": {"of": "/home/alice/z"}}\n',
        "recipe.yaml": "# /home/alice/w\na: 1\n",
        "broken.json": '{"a":\n"/home/alice/v"',
        "keys.json": '{"/home/alice/k": 1, "a": "/home/alice/1", "a": "none"}',
        "escaped.json": '{"a": "\\/home\\u002falice\\/u"}',
    }
    files = {}
    for number, (name, text) in enumerate(texts.items()):
        files[name] = tmp_path / f"{number}{Path(name).suffix}"
        files[name].write_bytes(text.encode())
    assert find_private(files, NOBODY) == [
        Finding("README.md", "line 4", "/home/alice/x,"),
        Finding("README.md", "line 4", "/home/alice/x"),
        Finding("release.json", "a[1].b[1]", "/home/alice/y"),
        Finding("levels/Q4/niah.jsonl", "line 3: key.of", "/home/alice/z"),
        Finding("recipe.yaml", "line 1", "/home/alice/w"),
        Finding("broken.json", "line 2", "/home/alice/v"),
        Finding("keys.json", "/home/alice/k", "/home/alice/k"),
        Finding("keys.json", "a", "/home/alice/1"),
        Finding("escaped.json", "a", "/home/alice/u"),
    ]


def test_a_files_name_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("nothing")
    (found,) = find_private({f"levels/{TOKEN}.md": path}, MINE)
    assert found == Finding(f"levels/[{A_TOKEN}].md", "its name", A_TOKEN)
    (found,) = find_private({"levels/jo@tower/a.md": path}, MINE)
    assert (found.where, found.what) == ("its name", "levels/jo@tower/a.md")


def test_a_token_in_a_key_is_not_shown_either(tmp_path: Path) -> None:
    (found,) = found_in_json({"a": {TOKEN: 1}}, tmp_path)
    assert (found.where, found.what) == (f"a.[{A_TOKEN}]", A_TOKEN)


def test_a_models_answers_may_have_paths_but_not_mine(tmp_path: Path) -> None:
    answers, page = tmp_path / "niah.jsonl", tmp_path / "report.html"
    said = {"key": "a", "answer": "look in /home/user/x and /tmp/y"}
    answers.write_text(json.dumps(said) + "\n")
    page.write_text(
        "<td>look in /home/user/x and /tmp/y, or /home/us … 9 characters</td>\n<p>/home/alice</p>"
    )
    files = {"report.html": page, "levels/Q4/niah.jsonl": answers}
    (found,) = find_private(files, MINE)
    assert (found.file, found.where, found.what) == ("report.html", "line 2", "/home/alice")
    for text in ("/home/jo/x", "jo@tower", TOKEN):
        answers.write_text(json.dumps(said | {"answer": text}) + "\n")
        assert [f.where for f in find_private({"n.jsonl": answers}, MINE)] == ["line 1: answer"]
    answers.write_text(json.dumps(said | {"key": "/home/user/x"}) + "\n")
    assert find_private({"n.jsonl": answers}, NOBODY)


def test_metadata_of_gguf_files_and_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"general.name": "demo"})
    assert find_private({"m.gguf": path}, MINE) == []
    write_gguf(
        path,
        {
            "general.description": "two lines\nin /home/alice/x",
            "imatrix.datasets": ("a.txt", "b\nc", "/home/alice/d.txt", TOKEN),
            "own./home/alice/key": "a",
        },
    )
    assert find_private({"m.gguf": path}, MINE) == [
        Finding("m.gguf", "imatrix.datasets[2]", "/home/alice/d.txt"),
        Finding("m.gguf", "imatrix.datasets[3]", A_TOKEN),
        Finding("m.gguf", "general.description", "/home/alice/x"),
    ]


def test_templates_and_vocabularies_are_the_checkpoints(tmp_path: Path) -> None:
    words = (
        "/tmp",
        "/tmp/",
        "/home/user",
        "/root/",
        "/mnt/data",
        "C:\\Users\\x",
        "file://a",
        "/stuff",
    )
    path = write_gguf(
        tmp_path / "m.gguf",
        {"tokenizer.chat_template": "in /home/user/x", "tokenizer.ggml.tokens": words},
    )
    assert find_private({"m.gguf": path}, MINE) == []
    path = write_gguf(
        tmp_path / "m.gguf",
        {
            "tokenizer.chat_template": "made in /home/jo/x",
            "tokenizer.ggml.tokens": ("a", "tower.lab.example", TOKEN),
        },
    )
    assert [finding.where for finding in find_private({"m.gguf": path}, MINE)] == [
        "tokenizer.chat_template",
        "tokenizer.ggml.tokens[1]",
        "tokenizer.ggml.tokens[2]",
    ]


def test_the_imatrix_of_llama_imatrix_with_a_path(tmp_path: Path) -> None:
    found, path = read_imatrix(IMATRIX), tmp_path / "imatrix.gguf"
    assert find_private({"i.gguf": IMATRIX}, MINE) == []
    write_imatrix(path, dataclasses.replace(found, datasets=("ok.txt", "D:\\texts\\calib.txt")))
    (finding,) = find_private({"i.gguf": path}, MINE)
    assert finding == Finding("i.gguf", "imatrix.datasets[1]", "D:\\texts\\calib.txt")


PICTURES = {
    "tEXt Software": (b"tEXt", b"Software\0Matplotlib in /home/alice/a"),
    "zTXt Comment": (b"zTXt", b"Comment\0\0" + zlib.compress(b"/home/alice/a")),
    "iTXt Title": (b"iTXt", b"Title\0\0\0en\0\0/home/alice/a"),
    "iTXt Author": (b"iTXt", b"Author\0\1\0\0\0" + zlib.compress(b"/home/alice/a")),
    "eXIf": (b"eXIf", b"MM\0*\0\0\0\x08/home/alice/a\0"),
}


@pytest.mark.parametrize("chunk", PICTURES)
def test_texts_of_pictures(chunk: str, tmp_path: Path) -> None:
    path, page = tmp_path / "a.png", tmp_path / "report.html"
    path.write_bytes(png(PICTURES[chunk]))
    (found,) = find_private({"a.png": path}, MINE)
    assert found.where == chunk
    assert "/home/alice/a" in found.what
    data = base64.b64encode(path.read_bytes()).decode()
    page.write_text(f'<p>\n<img src="data:image/png;base64,{data}">\n')
    (found,) = find_private({"report.html": page}, MINE)
    assert found.where == f"line 2, picture, {chunk}"


def test_a_plain_picture_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    draw_heatmap([answer("multikey", 512, 0, 4)], "a title", path)
    assert find_private({"a.png": path}, this_machine(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", png()[:-14], "cut short"),
        ("a.png", png((b"zTXt", b"a\0\0no zlib")), "broken text, zTXt at byte 33"),
        ("a.png", png((b"tEXt", b"no end")), "broken text, tEXt"),
        ("a.png", png((b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20)))), "bytes of text"),
        ("a.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 16, "not a readable GGUF"),
    ],
)
def test_what_cannot_be_read_is_not_published(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        find_private({name: path}, MINE)
    with pytest.raises(InputError, match="cannot read"):
        find_private({name: tmp_path / "none"}, MINE)


def test_data_of_pictures_and_long_texts_are_no_matches(tmp_path: Path) -> None:
    data = base64.b64encode(b"/tmp/x" * 7) + b"/tmp/x/home/alice/hf_" + b"aB3d" * 2000
    text = f'<img src="data:image/jpeg;base64,{data.decode()}">\n' + "x" * 300_000 + "@tower\n"
    (what,) = found_in(text, MINE, "a.html")
    assert what.endswith("xx@tower")


def test_an_excerpt_is_short_and_on_one_line() -> None:
    (what,) = found_in("/home/alice/" + "y" * 5000)
    assert len(what) == 100
    (what,) = found_in("x\x1b/home/alice/\x1b[0m\u202egnp.a")
    assert what.isprintable()
    assert "/home/alice" in what


def test_a_text_that_is_no_utf8_is_searched(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"\xff\xfe /home/alice/x \x80")
    assert [finding.what for finding in find_private({"a.md": path}, NOBODY)] == ["/home/alice/x"]


def test_this_machine_knows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = tmp_path / "build"
    build.mkdir()
    link = tmp_path / "link"
    link.symlink_to(build)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUDO_USER", "a-real-person")
    private = this_machine(Path("link"), TOKEN)
    assert {str(link), str(build), str(tmp_path), str(Path.home())} <= set(private.folders)
    assert str(Path(__file__).parents[2]) in private.folders
    assert {getpass.getuser(), "a-real-person"} <= set(private.users)
    assert {socket.gethostname(), socket.getfqdn()} <= set(private.hosts)
    assert private.token == TOKEN
    assert TOKEN not in repr(private)
    for text in (str(build / "x"), str(link), f"in {tmp_path}.", "/data/a-real-person/x"):
        assert found_in(text, private), text
    assert not found_in("/usr/local/bin/llama-server /models/a.gguf", private)
