"""What the checks share: headers, which are bounded together."""

from __future__ import annotations

import pytest
from small_release import SmallRelease, verified

from quantkit.core.progress import SILENT
from quantkit.formats.gguf_file import GGUFFile
from quantkit.release.verifying import checking
from quantkit.release.verifying.checking import Job
from quantkit.release.verifying.description import open_folder

Q4 = "tiny-Q4.gguf"


def test_headers_are_bounded_together_and_what_they_share_is_kept_once(
    release: SmallRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, said = open_folder(release.folder, 1)
    job = Job(files, said, 1, SILENT, lambda _: None)
    shards = release.files("Q8")
    one, other = job.header(Q4), job.header(shards[0])
    assert one == GGUFFile(release.path(Q4)).header
    key = "tokenizer.chat_template"
    assert one.metadata[key] is other.metadata[key]
    for name, limit in (
        ("MOST_HEADER_BYTES", one.data_start + 1),
        ("MOST_HELD_ITEMS", 20 * (len(one.metadata) + len(one.stored)) + 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checking, name, limit)
            found = verified(release.folder).faults
        assert any(f"{shards[1]} was not read: the headers before it take" in f for f in found)
        assert not any(shards[0] in fault for fault in found)
