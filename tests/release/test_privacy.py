"""What reveals a machine is found, in every kind of file; what every release has is not."""

from __future__ import annotations

import base64
import dataclasses
import getpass
import json
import socket
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from launches import AWKWARD, FLAGSHIP, SINGLE, named
from places import DATA

from quantkit.core.errors import InputError
from quantkit.formats.gguf_writer import lay_out, open_shard
from quantkit.formats.imatrix_file import read_imatrix, write_imatrix
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.plan.launch.files import write_launch_files
from quantkit.plan.launch.settings import Launch
from quantkit.release.privacy import A_TOKEN, Finding, Private, find_private, this_machine

TOKEN = "hf_" + "aB3" * 11
"""A token's shape; nobody's."""
MINE = Private(
    folders=("/home/jo", "/data/builds/démo", "/root", "/opt/quantkit"),
    users=("jo",),
    hosts=("tower", "tower.lab.example"),
    tokens=("no-shape-at-all-1234",),
)
IMATRIX = DATA / "imatrix" / "demo-4x512.imatrix.gguf"


def found_in(folder: Path, text: str, private: Private = MINE, name: str = "a.md") -> list[str]:
    """What is found in a file of this text."""
    path = folder / "file"
    path.write_text(text, encoding="utf-8")
    return [finding.what for finding in find_private({name: path}, private)]


def write_gguf(path: Path, metadata: Mapping[str, str | tuple[str, ...]]) -> Path:
    stored: Metadata = {"general.architecture": MetaValue("str", "llama")}
    stored |= {key: MetaValue("str", value) for key, value in metadata.items()}
    (layout,) = lay_out(path.stem, stored, [TensorInfo("a.weight", (1, 32), "F32")])
    with open_shard(path, layout) as writer:
        noise = b"/home/jo/in/the/weights".ljust(128, b"\0")
        writer.write("a.weight", np.frombuffer(noise, np.uint8))
    return path


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A picture of one pixel with these chunks."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixel = zlib.compress(b"\0\0")
    every = ((b"IHDR", header), *chunks, (b"IDAT", pixel), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in every
    )


@pytest.mark.parametrize(
    "text",
    [
        "made in /home/jo.",
        'path: "/home/jo/a b"',
        "--model=/home/jo/model",
        "-v/home/jo:/models",
        "${MODELS:-/home/jo}",
        "https://files.example/home/jo/a.txt",
        "/data/builds/démo/levels/Q4",
        r'"\/home\/jo\/a.txt"',
        json.dumps("/data/builds/démo/a.txt"),
        "file:///data/builds/d%C3%A9mo",
        "?path=%2Fhome%2Fjo%2Fa",
        "/root/.cache/huggingface",
        "/opt/quantkit/quantkit/cli/app.py",
        "/scratch/users/jo/run-3",
        r'"written\n/scratch/jo/a.txt"',
        "/net/tower/models",
        "~jo/texts",
        "scp jo@nas:a .",
        "jo@10.0.0.7",
        "jo@nas.local",
        "anybody@tower:",
        "root@tower.lab.example",
        "http://TOWER:8080/v1",
        "see tower.lab.example for it",
        "tower:/export/models",
        "host: tower",
        '"hostname": "tower"',
        "HOST=tower",
        "user: jo",
    ],
)
def test_what_belongs_to_this_machine_is_found(text: str, tmp_path: Path) -> None:
    assert found_in(tmp_path, f"before\n{text}\nafter")


@pytest.mark.parametrize(
    "text",
    [
        "/usr/local/bin/llama-server -m /models/a.gguf",
        "/srv/models /dev/nvidia-uvm",
        "/home/alice/a.txt, 192.168.1.20",  # somebody else's
        "https://huggingface.co/jo/model-GGUF/blob/main/README.md",
        "hf://datasets/jo/home",
        "jo/model-GGUF, by jo",
        "the watchtower, tower 4, the tower",
        "jo@gmail.com wrote it; recall@10, pass@1",
        "in/home/office, ./jo/a, ../jo/a, folder/jo/a",
        "$folder/jo/a ${X}/jo/b $(dirname)/jo/c",
        "/home/ and /root, /home/…, /home/$USER, /home/<you>",
        "~ 3 %, ~jo",
        "/home/joanna /opt/quantkit-2",
        "hf_transfer hf_hub_download",
        "http://127.0.0.1:8080/health http://localhost:8080 --host 0.0.0.0",
    ],
)
def test_what_everybody_has_passes(text: str, tmp_path: Path) -> None:
    assert found_in(tmp_path, text) == []


@pytest.mark.parametrize("token", [TOKEN, *MINE.tokens])
@pytest.mark.parametrize("form", ["{}", "/home/jo/{}/a", "x={}&y"])
def test_a_token_is_found_and_never_shown(token: str, form: str, tmp_path: Path) -> None:
    text = json.dumps({form.format(token): form.format(token)})
    found = found_in(tmp_path, text, name=f"levels/{token}.md")
    assert A_TOKEN in found
    assert token[:12] not in repr(found)
    assert token not in repr(MINE)


@pytest.mark.parametrize("name", ["max", "demo", "model", "test", "Q4_K", "4x3090", "quantkit"])
def test_names_that_are_words_count_where_a_machine_is_meant(name: str, tmp_path: Path) -> None:
    private = Private((f"/home/{name}",), (name,), (name,))
    innocent = (
        f"{name}, the {name} of /models/{name}.gguf, {name}/{name}-GGUF, levels/{name}/a.json\n"
        f"https://huggingface.co/{name}/{name}  # {name}: 3\n- {name}\n{name}: {name}\n"
        f'{{"{name}": {{"name": "{name}", "evidence": "levels/{name}"}}}}'
    )
    assert found_in(tmp_path, innocent, private, f"{name}.md") == []
    path = write_gguf(tmp_path / "m.gguf", {"general.name": name, "general.author": name})
    assert find_private({f"{name}.gguf": path}, private) == []
    for text in (f"/home/{name}", f"/srv/{name}/{name}", f"{name}@nas", f"http://{name}/"):
        assert found_in(tmp_path, text, private), text


@pytest.mark.parametrize("name", ["root", "user", "localhost"])
def test_names_that_many_have_count_only_in_the_home_folder(name: str, tmp_path: Path) -> None:
    private = Private((f"/home/{name}",), (name,), (name, f"{name}.localdomain"))
    text = f"user: {name} host={name} http://{name}:80/ {name}:/ a@{name} {name}@nas /x/{name}/y"
    assert found_in(tmp_path, text, private) == []
    assert found_in(tmp_path, f"/home/{name}/a", private)


@pytest.mark.parametrize("launch", [FLAGSHIP, SINGLE, *map(named, AWKWARD)])
def test_launch_files_pass(launch: Launch, tmp_path: Path) -> None:
    """Also where the machine has a name that they are full of."""
    files = {path.name: path for path in write_launch_files(launch, tmp_path)}
    words = ("model", "models", "llama-server", "bin", "nvidia", "cuda", "srv")
    private = Private(("/models", "/srv", "/srv/models", "/usr/local", "/root", "/"), words, words)
    assert find_private(files, private) == []


def test_a_finding_says_where_it_is(tmp_path: Path) -> None:
    texts = {
        "README.md": "a\nb\r\n\nin /home/jo/x, twice /home/jo/x\n",
        "levels/Q4/niah.jsonl": '{"key": "a"}\n\n{"key": {"of": "/home/jo/z"}}\n',
        "levels/jo@tower/a.md": "nothing",
    }
    files = {}
    for number, (name, text) in enumerate(texts.items()):
        files[name] = tmp_path / str(number)
        files[name].write_bytes(b"\xff" + text.encode())  # not UTF-8
    assert find_private(files, MINE) == [
        Finding("README.md", "line 4", "/home/jo/x,"),
        Finding("README.md", "line 4", "/home/jo/x"),
        Finding("levels/Q4/niah.jsonl", "line 3", "/home/jo/z"),
        Finding("levels/jo@tower/a.md", "its name", "levels/jo@tower/a.md"),
    ]


def test_metadata_of_gguf_files_and_no_weights(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"general.name": "demo"})
    assert find_private({"m.gguf": path}, MINE) == []
    metadata = {"general.description": "two lines\nin /home/jo/x", "own./home/jo/key": "a"}
    write_gguf(path, metadata | {"own.datasets": ("a.txt", "b\nc", "/home/jo/d.txt", TOKEN)})
    assert {(f.where, f.what) for f in find_private({"m.gguf": path}, MINE)} == {
        ("own.datasets", "/home/jo/d.txt"),
        ("own.datasets", A_TOKEN),
        ("general.description", "/home/jo/x"),
        ("the key own./home/jo/key", "own./home/jo/key"),
    }


def test_templates_and_vocabularies_are_the_checkpoints(tmp_path: Path) -> None:
    for template, words, count in (
        ("/x/jo/y", ("/x/jo", "http://tower/", "user: jo"), 0),
        ("/home/jo/x", ("a", "tower.lab.example", TOKEN), 3),
    ):
        metadata = {"tokenizer.chat_template": template, "tokenizer.ggml.tokens": words}
        path = write_gguf(tmp_path / f"{count}.gguf", metadata)
        assert len(find_private({"m.gguf": path}, MINE)) == count


@pytest.mark.parametrize("text", ["D:\\texts\\calib.txt", "/mnt/disk/calib.txt"])
def test_an_imatrix_with_the_path_of_its_text(text: str, tmp_path: Path) -> None:
    """llama-imatrix records the path that it was given, on whatever machine."""
    found, path = read_imatrix(IMATRIX), tmp_path / "imatrix.gguf"
    assert find_private({"i.gguf": IMATRIX}, MINE) == []
    write_imatrix(path, dataclasses.replace(found, datasets=("ok.txt", text)))
    assert find_private({"i.gguf": path}, MINE) == [Finding("i.gguf", "imatrix.datasets", text)]


PICTURES = {
    "Software": (b"tEXt", b"Software\0Matplotlib in /home/jo/a"),
    "Comment": (b"zTXt", b"Comment\0\0" + zlib.compress(b"/home/jo/a")),
    "Title": (b"iTXt", b"Title\0\0\0en\0\0/home/jo/a"),
    "Author": (b"iTXt", b"Author\0\1\0\0\0" + zlib.compress(b"/home/jo/a")),
    "exif": (b"eXIf", b"MM\0*\0\0\0\x08 /home/jo/a\0"),
}


@pytest.mark.parametrize("where", PICTURES)
def test_texts_of_pictures(where: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(PICTURES[where]))
    (found,) = find_private({"a.png": path}, MINE)
    assert found.where == where
    assert "/home/jo/a" in found.what


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", png()[:30]),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
        ("a.png", png((b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20))))),
        ("a.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 16),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for file in (path, tmp_path / "none"):
        with pytest.raises(InputError, match=file.name):
            find_private({name: file}, MINE)


def test_data_of_pictures_is_not_searched(tmp_path: Path) -> None:
    data = base64.b64encode(b"/x/y" * 6) + b"+/x/jo+/x/jo/hf" + b"aB3d" * 2000
    text = f'<img src="data:image/png;base64,{data.decode()}">\n' + "x" * 300_000 + "@tower\n"
    (what,) = found_in(tmp_path, text, MINE, "a.html")
    assert what.endswith("xx@tower")


def test_an_excerpt_is_short_and_on_one_line(tmp_path: Path) -> None:
    (what,) = found_in(tmp_path, "/home/jo/" + "y" * 5000)
    assert len(what) == 100
    (what,) = found_in(tmp_path, "x\x1b/home/jo/\x1b[0m\u202egnp.a")
    assert what.isprintable()
    assert "/home/jo" in what


def test_this_machine_knows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, stored = tmp_path / "build", tmp_path / "stored_tokens"
    build.mkdir()
    stored.write_text(f"[work]\nhf_token = {TOKEN}\n")
    link = tmp_path / "link"
    link.symlink_to(build)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUDO_USER", "a-real-person")
    monkeypatch.setenv("HF_TOKEN", "another-token")
    monkeypatch.setattr("huggingface_hub.constants.HF_STORED_TOKENS_PATH", str(stored))
    private = this_machine(Path("link"))
    assert {str(link), str(build), str(tmp_path), str(Path.home())} <= set(private.folders)
    assert str(Path(__file__).parents[2]) in private.folders
    assert {getpass.getuser(), "a-real-person"} <= set(private.users)
    assert {socket.gethostname(), socket.getfqdn()} <= set(private.hosts)
    assert private.tokens == ("another-token", TOKEN)
    for text in (str(build / "x"), str(link), f"in {tmp_path}.", "/data/a-real-person/x"):
        assert found_in(tmp_path, text, private), text
    assert not found_in(tmp_path, "/usr/local/bin/llama-server /models/a.gguf", private)
