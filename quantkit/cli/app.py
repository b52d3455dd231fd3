"""The command line: parse, call one function, print. The only importer of typer."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.core.errors import MACHINE_ERRORS, EnvironmentFault, InputError, QuantkitError

INTERRUPTED = 130  # what typer exits with on ctrl-C

app = typer.Typer(
    help="Fit a large model on your GPUs as GGUF, and prove that it still retrieves.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str, typer.Option("--model", help="OWNER/NAME on the Hub, a folder, a GGUF file, or 'demo'.")
]
LocalModelOption = Annotated[
    str,
    typer.Option(
        "--model", help="A folder, a GGUF file, or 'demo'; 'quantkit download' brings others."
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        help="A target's name ('quantkit targets'), a YAML file, or auto: this machine's GPUs.",
    ),
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="A recipe's name or a YAML file.")
]
LevelsOption = Annotated[
    str | None,
    typer.Option(
        "--levels",
        help="Only these: levels of the recipe, llama.cpp's presets, bits a weight or sizes, "
        "as in Q6,Q4_K_M,4.5,71GiB.",
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget", help="For weights, instead of the target's: 71GiB, or auto: all that fits."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print only errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]
CalibrationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        help="Text, folder, domain or hf://datasets/OWNER/NAME instead of the recipe's; "
        "may be repeated.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="CPU threads; all cores by default.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from quantkit import __version__

        typer.echo(f"quantkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    pass


@app.command()
def build(
    target: TargetOption,
    model: ModelOption,
    recipe: RecipeOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Build folder; build/MODEL-TARGET by default.")
    ] = None,
    levels: LevelsOption = None,
    haystack: Annotated[
        Path | None, typer.Option("--haystack", help="Text file to hide the needles in.")
    ] = None,
    calibration: CalibrationOption = None,
    ready_imatrix: Annotated[
        Path | None,
        typer.Option("--imatrix", help="A ready importance matrix: GGUF or legacy .dat."),
    ] = None,
    publish_to: Annotated[
        str | None,
        typer.Option(
            "--publish",
            help="Publish what passed to the Hub: OWNER, or OWNER/NAME; see 'quantkit publish'.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --publish: only you see the new repository.")
    ] = False,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """The whole pipeline: from a model to checked artifacts with a plan and a report."""
    from quantkit.cli.build import build as run

    run(
        target,
        model,
        recipe,
        out,
        levels,
        haystack,
        calibration,
        ready_imatrix,
        publish_to,
        private,
        workers,
        quiet or as_json,
        as_json,
    )


@app.command()
def download(
    repository: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hub, or OWNER/NAME@REVISION.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; the repository's name by default.")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """A checkpoint from the Hub: resumed after a kill, every byte verified, safetensors only."""
    from quantkit.cli.download import download as run

    run(repository, out, quiet or as_json, as_json)


@app.command()
def plan(
    target: TargetOption,
    model: ModelOption,
    recipe: RecipeOption = None,
    levels: LevelsOption = None,
    types: Annotated[
        str | None,
        typer.Option("--types", help="An allocation.json or a stock preset, instead of levels."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", min=1, help="Context, tokens; more than the metadata says is overridden."
        ),
    ] = None,
    kv: Annotated[str | None, typer.Option("--kv", help="KV cache type: f16, q8_0, …")] = None,
    ubatch: Annotated[
        int | None, typer.Option("--ubatch", min=1, help="Physical batch, llama.cpp's -ub.")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option("--sequences", min=1, help="Served at once, llama.cpp's -np.")
    ] = None,
    budget: BudgetOption = None,
    no_pipeline: Annotated[
        bool,
        typer.Option(
            "--no-pipeline", help="GPUs wait for each other, and hold inputs once, not 4 times."
        ),
    ] = False,
    draft: Annotated[
        str | None,
        typer.Option("--draft", help="mtp: the model's own prediction layers draft tokens."),
    ] = None,
    what_if: Annotated[
        bool,
        typer.Option("--what-if", help="The largest that fits, for contexts and KV types."),
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw --what-if: PNG, SVG or PDF.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with llama.cpp's own numbers.")
    ] = False,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            help="Devices to verify on: this machine's (present), stand-ins, rpc (servers on this "
            "machine), or auto.",
        ),
    ] = "auto",
    launch: Annotated[
        Path | None, typer.Option("--launch", help="Write scripts and services into this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What fits on the target: GPU by GPU, before a byte is quantized."""
    from quantkit.cli.plan import Asked
    from quantkit.cli.plan import plan as run
    from quantkit.llamacpp.memory_plan import asking
    from quantkit.plan.verify import where_of

    changes: dict[str, float | str | None] = {
        "context_tokens": context,
        "kv_type": kv,
        "ubatch_tokens": ubatch,
        "sequences": sequences,
        "weight_budget_gib": _budget(budget),
        "pipeline": False if no_pipeline else None,
        "draft": draft,
    }
    chosen = where_of(on)
    where = chosen if verify else None
    asked = Asked(
        target, model, recipe, levels, types, changes, where, what_if or picture is not None,
        picture, launch, as_json,
    )  # fmt: skip
    with asking():
        run(asked)


def _budget(words: str | None) -> float | str | None:
    """`--budget`: GiB, or "auto"."""
    from quantkit.config.levels import parse_size
    from quantkit.core.units import GIB

    if words is None or words == "auto":
        return words
    size = parse_size(words)
    if size is None:
        raise InputError(f"--budget {words} is neither auto nor a size as 71GiB or 76GB")
    return size / GIB


@app.command()
def convert(
    model: LocalModelOption,
    out: Annotated[Path, typer.Option("--out", help="The GGUF file to write.")],
    base_type: Annotated[str, typer.Option("--type", help="BF16 or Q8_0.")] = "BF16",
    mtp: Annotated[
        str, typer.Option("--mtp", help="Multi-token prediction layers: drop or keep.")
    ] = "drop",
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """A checkpoint as one GGUF file."""
    from quantkit.cli.convert import convert as run

    run(model, out, base_type, mtp, workers, quiet)


@app.command()
def imatrix(
    model: Annotated[
        Path | None,
        typer.Argument(help="The GGUF to collect on; with --show, the one it was collected on."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("imatrix.gguf"),
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Calibrate as this recipe does; 'default' by default."),
    ] = None,
    calibration: CalibrationOption = None,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="How many; by default the recipe's.")
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option("--chunk-tokens", min=32, help="By default the recipe's.")
    ] = None,
    until_covered: Annotated[
        int | None,
        typer.Option(
            "--until-covered",
            min=0,
            help="Go on until every expert saw so many tokens, or the text ends.",
        ),
    ] = None,
    show: Annotated[
        Path | None,
        typer.Option("--show", help="Describe this imatrix instead: GGUF or legacy .dat."),
    ] = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Collect an importance matrix, or describe one."""
    from quantkit.cli.imatrix import imatrix as collect
    from quantkit.cli.imatrix import show_imatrix

    if show is not None:
        show_imatrix(show, model, as_json)
    else:
        changes = {"chunks": chunks, "chunk_tokens": chunk_tokens, "until_covered": until_covered}
        given = {name: value for name, value in changes.items() if value is not None}
        collect(model, out, recipe, calibration, given, workers, quiet, as_json)


@app.command()
def measure(
    model: Annotated[Path, typer.Argument(help="The GGUF file to measure, BF16 or Q8_0.")],
    imatrix: Annotated[
        Path, typer.Option("--imatrix", help="Its importance matrix: GGUF or legacy .dat.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path(
        "sensitivity.json"
    ),
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Measure as this recipe does; 'default' by default."),
    ] = None,
    calibration: CalibrationOption = None,
    cost_chunks: Annotated[
        int | None,
        typer.Option(
            "--cost-chunks", min=0, help="Of the text that costs are measured on; 0 for none."
        ),
    ] = None,
    sample_rows: Annotated[
        int | None, typer.Option("--sample-rows", min=0, help="Rows of a tensor; 0 for all.")
    ] = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """The error of each tensor at each type, and what it costs the model."""
    from quantkit.cli.measure import measure as run

    changes = {"cost_chunks": cost_chunks, "sample_rows": sample_rows}
    given = {name: value for name, value in changes.items() if value is not None}
    run(model, imatrix, out, recipe, calibration, given, workers, quiet, as_json)


@app.command()
def quantize(
    model: LocalModelOption,
    types: Annotated[
        str, typer.Option("--types", help="An allocation.json, or a stock preset such as Q4_K_M.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The GGUF file to write.")],
    ready_imatrix: Annotated[
        Path | None, typer.Option("--imatrix", help="Importance matrix: GGUF or legacy .dat.")
    ] = None,
    mtp: Annotated[
        str, typer.Option("--mtp", help="Multi-token prediction layers: drop or keep.")
    ] = "drop",
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """One artifact from an allocation or a stock preset."""
    from quantkit.cli.quantize import quantize as run

    run(model, types, ready_imatrix, out, mtp, workers, quiet, as_json)


@app.command()
def niah(
    model: Annotated[Path | None, typer.Argument(help="A GGUF file.")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            help="Ask a running llama-server instead, as in http://127.0.0.1:8080; its key, if it "
            "wants one, in LLAMA_API_KEY.",
        ),
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option("--context", min=256, help="Tokens; may be repeated. 8192 and 32768."),
    ] = None,
    needles: Annotated[
        int, typer.Option("--needles", min=1, max=400, help="Asked at each length.")
    ] = 64,
    classic: Annotated[
        bool, typer.Option("--classic", help="One needle a prompt, at each length and depth.")
    ] = False,
    depth: Annotated[
        list[float] | None,
        typer.Option("--depth", min=0, max=1, help="With --classic; 0.1, 0.5 and 0.9."),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            help="Ask this too: near-miss, absent, updated, multi-value, two-hop, paraphrased or "
            "all; two-hop=16 for another number than 8. May be repeated.",
        ),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", help="Task whose bound must hold, not multikey; may be repeated."),
    ] = None,
    minimum: Annotated[
        float, typer.Option("--minimum", min=0, max=1, help="Lower bound that passes.")
    ] = 0.9,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Of a haystack; may be repeated. 1.")
    ] = None,
    clustered: Annotated[
        bool,
        typer.Option(
            "--clustered", help="Bounds that allow for haystacks of different difficulty."
        ),
    ] = False,
    kv: Annotated[str, typer.Option("--kv", help="KV cache type: f16, bf16 or q8_0.")] = "q8_0",
    thinking: Annotated[
        bool, typer.Option("--thinking", help="Let it think; only what follows counts.")
    ] = False,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", min=1, help="Limit of an answer, thinking included.")
    ] = 24,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Compare names, hyperparameters and sampled weights first with what it was made "
            "from: a folder, a GGUF file, or 'demo'.",
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="A prefill for each question, no forks: hours, not minutes."),
    ] = False,
    haystack: Annotated[
        Path | None, typer.Option("--haystack", help="Text file to hide the needles in.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for answers, heatmap and validation.json.")
    ] = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """The retrieval check on any GGUF file or server; exits 1 when the bound is missed."""
    from quantkit.cli.niah import Where, probes_of
    from quantkit.cli.niah import niah as run

    settings: dict[str, Any] = {
        "mode": "classic" if classic else "one-pass",
        "context_tokens": tuple(context or (8192, 32768)),
        "needles": needles,
        "probes": probes_of(probe or []),
        "gate": tuple(gate or ()),
        "seeds": tuple(seed or (1,)),
        "clustered": clustered,
        "kv_type": kv,
        "minimum_lower_bound": minimum,
        "thinking": thinking,
        "answer_tokens": answer_tokens,
    }
    if depth:
        settings["depths"] = tuple(depth)
    where = Where(model, endpoint, source, haystack, out, workers, fresh)
    run(where, settings, quiet or as_json, as_json)


@app.command()
def compare(
    artifacts: Annotated[list[Path], typer.Argument(help="GGUF files made from one base.")],
    base: Annotated[
        Path | None,
        typer.Option("--base", help="What KLD is measured from; the largest by default."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text of the KLD; the haystack by default.")
    ] = None,
    chunks: Annotated[int, typer.Option("--chunks", min=1, help="Of the text.")] = 16,
    chunk_tokens: Annotated[
        int, typer.Option("--chunk-tokens", min=32, help="Length of a chunk, half of it counts.")
    ] = 512,
    context: Annotated[
        list[int] | None,
        typer.Option(
            "--context",
            min=256,
            help="Length at which questions are asked; may be repeated. 2048 and 8192 by default, "
            "as far as the artifacts were trained for them.",
        ),
    ] = None,
    needles: Annotated[
        int, typer.Option("--needles", min=1, max=400, help="Asked at each length, of each seed.")
    ] = 32,
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", help="A haystack; may be repeated. 1, 2 and 3 by default."),
    ] = None,
    kv: Annotated[str, typer.Option("--kv", help="KV cache type: f16, bf16 or q8_0.")] = "q8_0",
    haystack: Annotated[
        Path | None, typer.Option("--haystack", help="Text file to hide the needles in.")
    ] = None,
    no_retrieval: Annotated[
        bool, typer.Option("--no-retrieval", help="Only size, KLD and the text; no questions.")
    ] = False,
    workers: WorkersOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for page, tables and picture; BASE-compare by default."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Which of several artifacts is better: size, KLD, retrieval, speed, on the same prompts."""
    from quantkit.cli.compare import Asked
    from quantkit.cli.compare import compare as run

    asked = Asked(
        tuple(artifacts), base, text, chunks, chunk_tokens, not no_retrieval, tuple(context or ()),
        needles, tuple(seed or (1, 2, 3)), kv, haystack, workers, out, quiet, as_json,
    )  # fmt: skip
    run(asked)


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished build.")],
    to: Annotated[
        str, typer.Option("--to", help="OWNER or OWNER/NAME on the Hub; -GGUF is added.")
    ],
    levels: Annotated[
        str | None,
        typer.Option(
            "--levels", help="Only these, as in Q6,Q4; all that passed, without baselines."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Only you see the new repository.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be done, and leave the card to be read."),
    ] = False,
    branch: Annotated[
        str | None, typer.Option("--branch", help="Commit to this branch instead of main.")
    ] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Open a pull request instead.")] = False,
    allow_failed: Annotated[
        bool,
        typer.Option("--allow-failed", help="Levels whose gate failed too; their card says so."),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Overwrite files of others, and remove those of an earlier release.",
        ),
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            help="OWNER/NAME that was built, where it came from a folder: for card and licence.",
        ),
    ] = None,
    exact_name: Annotated[
        bool, typer.Option("--exact-name", help="Do not add -GGUF to the repository's name.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """A finished build to the Hub, with its evidence: what passed, verified there afterwards."""
    from quantkit.cli.publish import publish as run
    from quantkit.release.publish import PublishJob

    if pr and branch is not None:
        raise InputError("--pr opens a pull request to main; leave it or --branch")
    named = None
    if levels is not None:
        named = tuple(name.strip() for name in levels.split(",") if name.strip())
        if not named:
            raise InputError("--levels names none; give levels of the build, as in Q6,Q4")
    job = PublishJob(
        folder, to, exact_name, named, private, branch, pr, allow_failed, replace, base_model,
        dry_run,
    )  # fmt: skip
    run(job, quiet or as_json, as_json)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")], as_json: JsonOption = False
) -> None:
    """What a GGUF file holds: architecture, types, sizes."""
    from quantkit.cli.inspect import inspect as run

    run(file, as_json)


@app.command()
def verify(
    release: Annotated[
        str,
        typer.Argument(
            help="A downloaded release, the folder of a build, or OWNER/NAME[@REVISION] on the Hub."
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Compare the weights with those of what it was made from: a folder, a GGUF file, "
            "or 'demo'.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All rows, not a sample, and all of the source's hashes.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            help="Chooses the sampled rows; without it, others each time. The seed is printed.",
        ),
    ] = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """A release against its own claims: hashes, tensors, types, verdicts, and the source."""
    from quantkit.cli.verify import Asked
    from quantkit.cli.verify import verify as run

    run(Asked(release, source, full, seed, workers, quiet, as_json))


@app.command()
def doctor(
    again: Annotated[bool, typer.Option("--again", help="Test now, not from the cache.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What this machine has, and which native settings work on it."""
    from quantkit.cli.doctor import doctor as run

    run(again, as_json)


@app.command()
def targets(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="List what each could hold of it: OWNER/NAME on the Hub, a folder, a GGUF file, "
            "or 'demo'.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    target: Annotated[
        list[Path] | None,
        typer.Option("--target", help="List this YAML file of your own too; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The GPU sets that can be named, and the largest artifact of a model that each holds."""
    from quantkit.cli.targets import targets as run

    run(model, recipe, target or [], as_json)


def main() -> None:
    """Entry point: our own errors become one line and an exit code, bugs keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal has our signs
    try:
        app()
    except QuantkitError as error:
        _fail(error)
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        _fail(EnvironmentFault(f"{error.strerror}: {error.filename or 'while writing'}"))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            sys.stderr.write("stopped; run the same command again to go on from here\n")
        raise


def _fail(error: QuantkitError) -> None:
    from quantkit.core.console import Console

    Console().error(str(error))
    sys.exit(error.exit_code)
