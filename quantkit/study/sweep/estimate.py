"""What a sweep takes, worked out from a model's header alone; nothing here reads a weight.

The sweep itself counts by it: how many tokens it decodes at once, how hidden states are kept, and
how many tokens each window runs. So what is said beforehand is what is done.

Work is counted in FLOP: two for each weight that a token runs through, and roughly those of
attention and of recurrent states.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, fields

from quantkit.config.recipe import DivergenceRecipe, ImatrixRecipe, MeasureRecipe
from quantkit.formats.logits_file import rows_bytes, scored_positions
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import ModelHeader, TensorInfo
from quantkit.models.geometry import geometry_of
from quantkit.quantize.candidates import admissible, nearest_type
from quantkit.study.errors import elements_of_errors
from quantkit.study.sweep.branches import (
    Branch,
    active_elements,
    chosen_cost_tokens,
    measurable_units,
    plan_branches,
)
from quantkit.study.sweep.cuts import EMBEDDING, OUTPUT, CutModel, Window
from quantkit.study.sweep.states import row_bytes

BATCH_TOKENS = 8192
"""The most that are decoded at once: more bring nothing (make bench)."""
ROWS = 32
"""Of what batches are multiples: ggml adds up in another order where only a few rows are left."""
MAX_SEQUENCES = 64  # in one batch; llama.cpp takes 256 at most
COMPUTE_BYTES, COMPUTE_SHARE = (64 << 20, 1 << 30), 8
"""Bounds, and share of the model's size: limit for a batch's activations."""
LOGITS_BYTES, LOGITS_SHARE = (8 << 20, 512 << 20), 32
"""The same for the logits of a batch. In all, a few times as many are in memory."""
AHEAD_BYTES, AHEAD_SHARE = (16 << 20, 16 << 30), 16
"""The same for weights that are read ahead."""
EXACT_BRANCHES_BYTES = 2 << 30
"""Branches that take more are kept as differences from the cost text's hidden states, in F16."""
ROUND_CHUNKS = 16
"""Chunks are added in such steps until the experts are covered."""
STATE_FLOP = 6
"""For each element of a recurrent state: decayed, added to, and read."""


@dataclass(frozen=True)
class TextShape:
    """`chunks` of `tokens` each."""

    chunks: int
    tokens: int

    @property
    def size(self) -> int:
        """Tokens of all chunks."""
        return self.chunks * self.tokens


@dataclass(frozen=True)
class TextShapes:
    """The texts of a sweep; None where there are none."""

    calibration: TextShape | None = None
    held_out: TextShape | None = None
    costs: TextShape | None = None

    @property
    def each(self) -> tuple[TextShape | None, ...]:
        return self.calibration, self.held_out, self.costs


@dataclass(frozen=True)
class Parts:
    """A quantity by what runs through the windows."""

    calibration: int = 0
    held_out: int = 0
    costs: int = 0
    branches: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, more: Parts) -> Parts:
        names = [field.name for field in fields(self)]
        return Parts(*(getattr(self, name) + getattr(more, name) for name in names))


class SweepSizes:
    """What a sweep runs, keeps and holds.

    Args:
        recipe: None: neither errors nor costs.

    Attributes:
        windows: those that are swept: without the output where nothing needs logits.
        shape_of: a number for each window; those of equal shape use one loaded model in turn.
        branches: with `begun`, the window where each begins, and `touches`, those of which each
            window exchanges tensors; by their index.
        activation_bytes: of a token, as batches are limited by it.
    """

    def __init__(
        self,
        cut: CutModel,
        model: ModelHeader,
        texts: TextShapes,
        recipe: MeasureRecipe | None = None,
    ) -> None:
        self.texts, self.recipe, self._model, self.width = texts, recipe, model, cut.width
        windows = cut.windows
        if recipe is None and texts.held_out is None and windows[-1].kind == "output":
            windows = windows[:-1]
        self.windows: tuple[Window, ...] = windows
        numbers: dict[tuple[object, ...], int] = {}
        self.shape_of = [numbers.setdefault(window.shape, len(numbers)) for window in windows]
        self._infos = {info.name: info for info in model.tensors}
        self.vocabulary = self._infos[EMBEDDING].rows
        geometry = geometry_of(model.metadata)
        self.activation_bytes = 4 * (3 * geometry.activation_elements + 6 * cut.width)
        self._model_bytes = sum(map(_size, model.tensors))
        self.branches: list[Branch] = []
        self.begun: dict[int, int] = {}
        self.touches: dict[int, list[int]] = {}
        if recipe is not None and texts.costs is not None:
            self.branches = plan_branches(measurable_units(cut, model, recipe), recipe)
            for number, branch in enumerate(self.branches):
                for index, window in enumerate(windows):
                    if not branch.unit or set(branch.unit) & set(window.stored.values()):
                        self.touches.setdefault(index, []).append(number)
                        self.begun.setdefault(number, index)

    @property
    def last(self) -> int:
        """Index of the last window."""
        return len(self.windows) - 1

    @property
    def shapes(self) -> int:
        """How many windows are loaded; the others take their turn in one of these."""
        return len(set(self.shape_of))

    @property
    def largest_window_bytes(self) -> int:
        """Bytes of its weights."""
        return max(window.size_bytes for window in self.windows)

    # --- what is decoded at once ---------------------------------------------------------------

    @property
    def ahead_bytes(self) -> int:
        """Limit for the weights that are read ahead."""
        return self._share(AHEAD_BYTES, AHEAD_SHARE)

    def batch_tokens(self, window: Window) -> int:
        """Tokens that are decoded at once."""
        most = self._share(COMPUTE_BYTES, COMPUTE_SHARE) // self.activation_bytes
        if window.kind in ("output", "whole"):
            logits = self._share(LOGITS_BYTES, LOGITS_SHARE)
            most = min(most, logits // (4 * self.vocabulary))
        return max(ROWS, min(most - most % ROWS, BATCH_TOKENS))

    def capacity(self, window: Window, tokens: int) -> int:
        """Sequences of `tokens` in one batch, at least one."""
        return max(1, min(self.batch_tokens(window) // tokens, MAX_SEQUENCES))

    def rows_at_once(self, window: Window, chunk_tokens: int) -> tuple[int, int]:
        """Sequences, and tokens of each, in which the output takes hidden states of a text.

        They are no longer than its chunks: llama.cpp has other rope factors for long contexts.
        """
        tokens = min(self.batch_tokens(window), chunk_tokens)
        return self.capacity(window, tokens), tokens

    def _share(self, bounds: tuple[int, int], share: int) -> int:
        """A share of the model's bytes, within bounds."""
        least, most = bounds
        return min(max(self._model_bytes // share, least), most)

    # --- what runs -----------------------------------------------------------------------------

    def tokens(self, index: int) -> Parts:
        """Tokens that run through a window."""
        texts, window = self.texts, self.windows[index]
        calibration, held_out, costs = (_tokens(text) for text in texts.each)
        if window.kind == "output":  # it has no statistics, and gives the logits that are kept
            calibration = 0
            if texts.held_out is not None:
                held_out = texts.held_out.chunks * len(scored_positions(texts.held_out.tokens))
        running = sum(begun <= index for begun in self.begun.values())
        return Parts(calibration, held_out, costs, running * costs)

    def flop(self, index: int) -> Parts:
        """FLOP of a window."""
        tokens, (each, attended) = self.tokens(index), self._flop_of[self.shape_of[index]]
        calibration, held_out, costs = (
            each + attended * text.tokens if text else 0 for text in self.texts.each
        )
        return Parts(
            tokens.calibration * calibration,
            tokens.held_out * held_out,
            tokens.costs * costs,
            tokens.branches * costs,
        )

    @property
    def read_bytes(self) -> int:
        """Of the weights; what belongs to several windows is read for each."""
        return sum(map(self.stored_bytes, range(len(self.windows))))

    def stored_bytes(self, index: int) -> int:
        """Bytes of the model's tensors in a window."""
        return sum(map(self.tensor_bytes, self.windows[index].stored.values()))

    def tensor_bytes(self, name: str) -> int:
        """Bytes of a tensor of the model."""
        return _size(self._infos[name])

    def measured_elements(self) -> Counter[str]:
        """Type → weights that are quantized to it to measure errors."""
        if self.recipe is None:
            return Counter()
        inside = {name for window in self.windows for name in window.stored.values()}
        infos = [info for info in self._model.tensors if info.name in inside]
        weighed = {info.name for info in infos if self._has_importance(info)}
        return elements_of_errors(infos, weighed, self.recipe)

    def exchanged_elements(self) -> Counter[tuple[str, str]]:
        """(type, their own) → weights that are exchanged for their values in the type.

        Roughly: the measured errors decide between types.
        """
        found = Counter[tuple[str, str]]()
        for branch in self.branches:
            for name in branch.unit:
                info = self._infos[name]
                assert self.recipe is not None
                kinds = admissible(info, self._has_importance(info), self.recipe.candidates)
                if kinds:
                    kind = nearest_type([kind.name for kind in kinds], branch.bits)
                    found[kind, info.type_name] += info.elements
        return found

    def _has_importance(self, info: TensorInfo) -> bool:
        return info.name.startswith("blk.")

    @functools.cached_property
    def _flop_of(self) -> list[tuple[int, int]]:
        """FLOP of a token in windows of each shape, and those for each token of its chunk."""
        windows = dict(zip(reversed(self.shape_of), reversed(self.windows), strict=True))
        return [self._flop_of_token(windows[shape]) for shape in range(self.shapes)]

    def _flop_of_token(self, window: Window) -> tuple[int, int]:
        if window.kind == "embedding":
            return 0, 0
        run = [info for info in window.tensors if self._is_run(window, info)]
        layers = geometry_of(window.metadata).layers[: window.layers or None]
        states = sum(layer.recurrent_elements for layer in layers)
        # the attention's output takes as many values as the scores weigh
        values = sum(i.row_elements for i in run if i.name.endswith("attn_output.weight"))
        return 2 * active_elements(self._model.metadata, run) + STATE_FLOP * states, 4 * values

    def _is_run(self, window: Window, info: TensorInfo) -> bool:
        """Whether tokens run through a tensor: not through idle layers behind those of the model.

        Rows of the embedding are looked up, unless it is the output matrix as well.
        """
        if window.kind == "layers":
            return info.name in window.stored
        tied = all(other.name != OUTPUT for other in window.tensors)
        return info.name != EMBEDDING or tied

    # --- what is kept on the disk --------------------------------------------------------------

    @property
    def differences(self) -> bool:
        """Whether branches are kept as differences from the cost text's hidden states."""
        exact = len(self.branches) * _tokens(self.texts.costs) * row_bytes(self.width)
        return exact > EXACT_BRANCHES_BYTES

    @property
    def states_bytes(self) -> Parts:
        """Of the hidden states, which two files hold in turn."""
        if not self.last:
            return Parts()
        plain, branch = row_bytes(self.width), row_bytes(self.width, differences=self.differences)
        texts = Parts(*map(_tokens, self.texts.each))
        return Parts(
            2 * plain * texts.calibration,
            2 * plain * texts.held_out,
            2 * plain * texts.costs,
            2 * branch * len(self.branches) * texts.costs,
        )

    @property
    def spool_bytes(self) -> int:
        """Of the cost text's logits."""
        return 4 * _tokens(self.texts.costs) * self.vocabulary if self.branches else 0

    def sums_bytes(self, index: int) -> int:
        """Of the file of a window's sums."""
        if self.texts.calibration is None or self.windows[index].kind == "output":
            return 0
        names = self.windows[index].stored.values()
        return sum(8 * _sums(self._infos[name]) for name in names)

    @property
    def work_bytes(self) -> int:
        """Of all files that the sweep leaves behind for nobody."""
        sums = sum(map(self.sums_bytes, range(len(self.windows))))
        return self.states_bytes.total + self.spool_bytes + sums

    @property
    def states_written_bytes(self) -> int:
        """Hidden states that go to the disk; about as many are read."""
        plain, branch = row_bytes(self.width), row_bytes(self.width, differences=self.differences)
        found = 0
        for index in range(self.last):
            tokens = self.tokens(index)
            texts = tokens.calibration + tokens.held_out + tokens.costs
            found += plain * texts + branch * tokens.branches
        return found


@dataclass(frozen=True)
class StudySizes:
    """What a study takes.

    Attributes:
        sweeps: one; before it one for importance alone where that goes on until experts are
            covered, of which this is the first round.
        logits_bytes: of base.logits, without its header.
    """

    sweeps: tuple[SweepSizes, ...]
    logits_bytes: int

    @property
    def main(self) -> SweepSizes:
        """The sweep that measures all but, perhaps, importance."""
        return self.sweeps[-1]

    @property
    def flop(self) -> Parts:
        each = (sweep.flop(i) for sweep in self.sweeps for i in range(len(sweep.windows)))
        return sum(each, Parts())

    @property
    def tokens(self) -> Parts:
        """Tokens that run, once for each window."""
        each = (sweep.tokens(i) for sweep in self.sweeps for i in range(len(sweep.windows)))
        return sum(each, Parts())

    @property
    def read_bytes(self) -> int:
        return sum(sweep.read_bytes for sweep in self.sweeps)

    @property
    def work_bytes(self) -> int:
        """On the disk until the study ends."""
        return sum(sweep.work_bytes for sweep in self.sweeps)

    @property
    def written_bytes(self) -> int:
        """All that is written."""
        states = sum(sweep.states_written_bytes for sweep in self.sweeps)
        return states + self.main.spool_bytes + self.logits_bytes


def study_sizes(
    model: ModelHeader,
    cut: CutModel,
    imatrix: ImatrixRecipe | None,
    measure: MeasureRecipe | None,
    divergence: DivergenceRecipe | None,
) -> StudySizes:
    """What a study of a model takes, if its texts are as long as the recipe asks for.

    Args:
        imatrix: None: there is one already. The others, None: that is not measured.
    """
    vocabulary = next(info.rows for info in model.tensors if info.name == EMBEDDING)
    calibration = held_out = costs = None
    if imatrix is not None:
        calibration = TextShape(imatrix.chunks, imatrix.chunk_tokens)
    if divergence is not None and divergence.chunks:
        held_out = TextShape(divergence.chunks, divergence.chunk_tokens)
    if measure is not None and measure.measures_costs:
        branches = len(plan_branches(measurable_units(cut, model, measure), measure))
        tokens = chosen_cost_tokens(measure, model, branches)
        costs = TextShape(tokens // measure.cost_chunk_tokens, measure.cost_chunk_tokens)
    logits = 0 if held_out is None else rows_bytes(vocabulary, held_out.chunks, held_out.tokens)
    sweeps = []
    if imatrix is not None and calibration is not None and imatrix.until_covered:
        first = TextShapes(TextShape(first_round(imatrix), calibration.tokens))
        sweeps.append(SweepSizes(cut, model, first))
        calibration = None
    if measure is not None or held_out is not None or calibration is not None:
        texts = TextShapes(calibration, held_out, costs)
        sweeps.append(SweepSizes(cut, model, texts, measure))
    return StudySizes(tuple(sweeps), logits)


def first_round(recipe: ImatrixRecipe) -> int:
    """Chunks that importance begins with where it goes on until experts are covered."""
    return -(-recipe.chunks // ROUND_CHUNKS) * ROUND_CHUNKS


def _tokens(text: TextShape | None) -> int:
    return 0 if text is None else text.size


def _size(info: TensorInfo) -> int:
    return BY_NAME[info.type_name].size_bytes(info.elements)


def _sums(info: TensorInfo) -> int:
    """Numbers that are kept of a weight that activations are multiplied with."""
    kept = ("_norm.", "conv1d")
    is_product = info.name.startswith("blk.") and info.name.endswith(".weight")
    if not is_product or info.rows < 2 or any(part in info.name for part in kept):
        return 0
    return info.matrices * info.row_elements + info.matrices
