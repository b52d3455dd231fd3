"""Train the demo model that ships in `quantkit/data/demo-model/`.

The model is a very small `NemotronHForCausalLM` (Mamba-2, attention without positions, LatentMoE)
that does one thing: it reads a long text, finds the "special magic number" of the key that it is
asked about, and answers with that number. It is trained on short texts; three things let it work
on long ones. Attention has no positions, so a context of any length looks alike to it. The time
constants of the Mamba heads start between 5 and 300 tokens, so their state saturates. And most
training sequences add log(M) to the attention logits of all filler tokens, which to an attention
layer is exactly a text in which every filler token is repeated M times.

    python scripts/train_demo_model.py --texts FOLDER --out quantkit/data/demo-model

`FOLDER` holds plain-text files whose names start with a year (State of the Union addresses); the
years of `TRAINING_YEARS` are used, all others stay unseen. Needs torch, transformers, tokenizers
and safetensors. A run is a list of stages (`STAGES`), each of them a number of steps; with
`--work` its state is saved regularly and a stopped run goes on where it was. glibc gives memory
back to the kernel too eagerly for this; a run is up to twice as fast with

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 MALLOC_TOP_PAD_=268435456
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import re
import shutil
import string
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from training_needles import draw_needles
from transformers import NemotronHConfig, NemotronHForCausalLM

from quantkit.retrieval.needles import ADJECTIVES, INSTRUCTION, NOUNS, Needle

TRAINING_YEARS = range(1830, 1900)

VOCAB_SIZE = 2048
PAD, IM_START, IM_END = "<pad>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
PRE_TOKENIZER = (  # what llama.cpp calls "tekken" and "pixtral"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking %}"
    "{{- '<think>\\n' }}"
    "{%- else %}"
    "{{- '<think></think>' }}"
    "{%- endif %}"
    "{%- endif %}"
)
ANSWER_START = f"{IM_END}\n{IM_START}assistant\n{THINK}{END_THINK}"
NEXT_TURN = f"\n{IM_START}user\n"

SCAN_CHUNK = 64
NO_TARGET = -100
LOOKUP_WEIGHT = 0.5


# --- texts and tokenizer -------------------------------------------------------------------------


def load_texts(folder: Path) -> list[str]:
    """The training texts in the order of their file names, white space made single spaces."""
    texts = []
    for path in sorted(folder.glob("*.txt")):
        if path.name[:4].isdigit() and int(path.name[:4]) in TRAINING_YEARS:
            texts.append(re.sub(r"\s+", " ", path.read_text(encoding="utf-8")).strip())
    if not texts:
        raise SystemExit(f"no text of the years {TRAINING_YEARS} in {folder}")
    return texts


def train_tokenizer(texts: list[str], seed: int) -> Tokenizer:
    """Byte-level BPE in which every word of a key, and every digit, is one token."""
    rng = random.Random(seed)
    keys = [f"{a}-{n}" for a in ADJECTIVES for n in NOUNS]
    needles = [Needle(key, str(rng.randrange(10000, 100000))) for key in keys]
    drills = [f"{INSTRUCTION}\n\n{n.sentence}\n\n{n.question}" for n in needles]
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[
            AddedToken(PAD, special=True, normalized=False),
            AddedToken(IM_START, special=True, normalized=False),
            AddedToken(IM_END, special=True, normalized=False),
            AddedToken(THINK, special=False, normalized=False),
            AddedToken(END_THINK, special=False, normalized=False),
        ],
    )
    tokenizer.train_from_iterator(texts + drills * 2, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise AssertionError(f"{tokenizer.get_vocab_size()} tokens")
    for word in [f" {a}" for a in ADJECTIVES] + [f"-{n}" for n in NOUNS]:
        if len(tokenizer.encode(word).ids) != 1:
            raise AssertionError(f"{word!r} is not one token")
    for text in ["naïve 中文\t\x00\x7f é́ 🙂\r\n 12345 �", string.printable]:
        if tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) != text:
            raise AssertionError(f"{text!r} does not survive the tokenizer")
    return tokenizer


# --- model ---------------------------------------------------------------------------------------


def build_config(tokenizer: Tokenizer) -> NemotronHConfig:
    """The architecture. The 288 is deliberate: a row that 256-wide blocks do not divide."""
    config = NemotronHConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        layers_block_type=[
            "linear_attention",
            "moe",
            "full_attention",
            "moe",
            "linear_attention",
            "full_attention",
            "moe",
        ],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        mamba_num_heads=8,
        mamba_head_dim=64,
        ssm_state_size=64,
        n_groups=2,
        conv_kernel=4,
        expand=2,
        chunk_size=128,
        time_step_min=1e-6,
        time_step_floor=1e-6,
        intermediate_size=288,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=288,
        moe_latent_size=256,
        n_shared_experts=1,
        moe_shared_expert_intermediate_size=256,
        routed_scaling_factor=1.0,
        max_position_embeddings=1_048_576,
        num_nextn_predict_layers=0,
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=tokenizer.token_to_id(PAD),
        eos_token_id=tokenizer.token_to_id(IM_END),
    )
    config.architectures = ["NemotronHForCausalLM"]
    return config


def init_model(config: NemotronHConfig) -> NemotronHForCausalLM:
    """Random weights in which the way to look something up is laid out already.

    The Mamba heads begin as running means of the last tokens, with time constants spread between
    5 and 300 (all embeddings have a part in common, which keeps their gates open); the queries
    begin equal to the keys, so that attention looks for what resembles the place that asks. The
    experts begin small: squared activations would drown the rest.
    """
    model = NemotronHForCausalLM(config).float()
    heads = config.mamba_num_heads
    step = 1 / torch.exp(torch.linspace(math.log(5), math.log(300), heads))
    residual = 1 / math.sqrt(config.num_hidden_layers)
    common = torch.randn(config.hidden_size).sign() * 0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("embeddings.weight"):
                weight.normal_(0, 0.5).add_(common)
            elif name.endswith("lm_head.weight"):
                weight.normal_(0, 0.02)
            elif name.endswith("mixer.in_proj.weight"):
                weight.normal_(0, 1 / math.sqrt(weight.shape[-1]))
                gates = weight[: heads * config.mamba_head_dim]
                gates.mul_(0.3).add_(common / common.norm() * 0.15)
            elif name.endswith(("out_proj.weight", "o_proj.weight")):
                weight.normal_(0, residual / math.sqrt(weight.shape[-1]))
            elif name.endswith(("fc2_latent_proj.weight", "shared_experts.down_proj.weight")):
                weight.normal_(0, 0.1 * residual / math.sqrt(weight.shape[-1]))
            elif name.endswith("conv1d.weight"):
                weight.uniform_(-0.2, 0.2)
                weight[..., -1] += 0.9
            elif weight.ndim >= 2:
                weight.normal_(0, 1 / math.sqrt(weight.shape[-1]))
            elif name.endswith("A_log"):
                weight.zero_()
            elif name.endswith("dt_bias"):
                weight.copy_(step + torch.log(-torch.expm1(-step)))
            elif name.endswith("conv1d.bias"):
                weight.zero_()
                weight[heads * config.mamba_head_dim :] = 0.5
            elif name.endswith(".D"):
                weight.fill_(0.1)
            elif name.endswith(("norm.weight", "norm_f.weight")):
                weight.fill_(1.0)
            else:
                raise AssertionError(f"no initialisation for {name}")
        for layer in model.model.layers:
            if layer.block_type == "full_attention":
                keys = layer.mixer.k_proj.weight.view(-1, config.head_dim, config.hidden_size)
                keys = keys.repeat_interleave(layer.mixer.num_key_value_groups, dim=0)
                layer.mixer.q_proj.weight.copy_(keys.flatten(0, 1))
    return model


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps)


def mamba(mixer: nn.Module, x: Tensor) -> Tensor:
    """`NemotronHMamba2Mixer` from zero state, with a scan whose work is matrix products."""
    batch, length, _ = x.shape
    heads, width, groups, state = (
        mixer.num_heads,
        mixer.head_dim,
        mixer.n_groups,
        mixer.ssm_state_size,
    )
    inner = heads * width
    gate, xbc, dt = F.linear(x, mixer.in_proj.weight).split([inner, mixer.conv_dim, heads], dim=-1)
    kernel = mixer.conv1d.weight[:, 0]
    taps = kernel.shape[1]
    padded = F.pad(xbc, (0, 0, taps - 1, 0))
    conv = mixer.conv1d.bias + sum(padded[:, k : k + length] * kernel[:, k] for k in range(taps))
    conv = F.silu(conv)
    chunk = min(SCAN_CHUNK, length)
    chunks = -(-length // chunk)
    pad = chunks * chunk - length
    dt = F.softplus(dt.float() + mixer.dt_bias)
    conv_padded = F.pad(conv, (0, 0, 0, pad))
    dt_padded = F.pad(dt, (0, 0, 0, pad))
    value, key, query = conv_padded.split([inner, groups * state, groups * state], dim=-1)
    value = value.view(batch, chunks, chunk, heads, width)
    dt_chunks = dt_padded.view(batch, chunks, chunk, heads)
    scaled = (value * dt_chunks[..., None]).permute(0, 1, 3, 2, 4)  # b c h l p
    key = key.view(batch, chunks, chunk, groups, state).transpose(2, 3)  # b c g l n
    query = query.view(batch, chunks, chunk, groups, state).transpose(2, 3)
    log_decay = -(dt_chunks * torch.exp(mixer.A_log)).permute(0, 1, 3, 2)  # b c h l
    total = log_decay.cumsum(-1)
    causal = torch.ones(chunk, chunk, dtype=torch.bool).tril()
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~causal, -torch.inf).exp()
    per_group = heads // groups
    scores = (query @ key.transpose(-1, -2))[:, :, :, None] * decay.view(
        batch, chunks, groups, per_group, chunk, chunk
    )
    out = scores.view(batch, chunks, heads, chunk, chunk).to(scaled.dtype) @ scaled
    if chunks > 1:
        key_heads = key.repeat_interleave(per_group, dim=2)
        query_heads = query.repeat_interleave(per_group, dim=2)
        to_end = torch.exp(total[..., -1:] - total)
        added = (key_heads * to_end[..., None]).transpose(-1, -2) @ scaled  # b c h n p
        ends = F.pad(total[..., -1], (0, 0, 1, 0)).cumsum(1).permute(0, 2, 1)  # b h c+1
        between = ends[:, :, :-1, None] - ends[:, :, None, 1:]
        earlier = torch.ones(chunks, chunks, dtype=torch.bool).tril(-1)
        between = between.masked_fill(~earlier, -torch.inf).exp()
        start = between @ added.float().permute(0, 2, 1, 3, 4).flatten(3)
        start = start.view(batch, heads, chunks, state, width).transpose(1, 2)
        out = out + (query_heads * torch.exp(total)[..., None]) @ start.to(out.dtype)
    out = out + value.transpose(2, 3) * mixer.D[:, None, None]
    out = out.transpose(2, 3).reshape(batch, chunks * chunk, inner)[:, :length]
    out = (out * F.silu(gate)).float().view(batch, length, groups, -1)
    out = F.rms_norm(out, (inner // groups,), None, mixer.norm.variance_epsilon)
    return F.linear(out.view(batch, length, inner) * mixer.norm.weight, mixer.out_proj.weight)


def lookup_loss(query: Tensor, key: Tensor, sources: Tensor) -> Tensor:
    """How far attention is from looking at `sources` (batch, length; below 0: anywhere)."""
    total, count = torch.zeros(()), 0
    for q, k, source in zip(query, key, sources, strict=True):
        at = (source >= 0).nonzero()[:, 0]
        logits = (q[:, at] @ k.transpose(-1, -2)).float()  # heads, places, length
        later = torch.arange(k.shape[1]) > at[:, None]
        logits = logits.masked_fill(later, -torch.inf).log_softmax(-1)
        total = total - logits[:, torch.arange(len(at)), source[at]].mean(0).sum()
        count += len(at)
    return total / count


def attention(
    mixer: nn.Module,
    x: Tensor,
    key_bias: Tensor | None,
    sources: Tensor | None = None,
    lookups: list[Tensor] | None = None,
) -> Tensor:
    """`NemotronHAttention`; `key_bias` (batch, length) is added to the logits of each key.

    The bias travels as one more coordinate of the keys, against a constant one in the queries, so
    that the causal kernel, which takes no mask, can be used.
    """
    batch, length, _ = x.shape
    width = mixer.head_dim
    query, key, value = (
        F.linear(x, weight).view(batch, length, -1, width).transpose(1, 2)
        for weight in (mixer.q_proj.weight, mixer.k_proj.weight, mixer.v_proj.weight)
    )
    key = key.repeat_interleave(mixer.num_key_value_groups, dim=1)
    value = value.repeat_interleave(mixer.num_key_value_groups, dim=1)
    if key_bias is not None:
        extra = (key_bias / mixer.scaling)[:, None, :, None].to(key.dtype)
        query = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1)
        key = torch.cat([key, extra.expand(-1, key.shape[1], -1, -1)], dim=-1)
        value = F.pad(value, (0, 1))
    if sources is not None and lookups is not None:
        lookups.append(lookup_loss(query * mixer.scaling, key, sources))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=mixer.scaling)
    out = out[..., :width].transpose(1, 2).reshape(batch, length, -1)
    return F.linear(out, mixer.o_proj.weight)


def moe(mixer: nn.Module, x: Tensor, loads: list[Tensor]) -> Tensor:
    """`NemotronHMoE`; appends the share of the tokens that each expert got to `loads`."""
    flat = x.reshape(-1, x.shape[-1])
    gate = mixer.gate
    with torch.autocast("cpu", enabled=False):
        scores = F.linear(flat.float(), gate.weight).sigmoid()
    chosen = torch.topk(scores + gate.e_score_correction_bias, gate.top_k, dim=-1).indices
    weights = scores.gather(1, chosen)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * gate.routed_scaling_factor
    order = torch.argsort(chosen.view(-1), stable=True)
    counts = torch.bincount(chosen.view(-1), minlength=gate.num_experts)
    loads.append(counts / chosen.numel())
    rows = order // gate.top_k
    latent = F.linear(flat, mixer.fc1_latent_proj.weight)
    parts = []
    for expert, part in enumerate(latent[rows].split(counts.tolist())):
        hidden = F.relu(F.linear(part, mixer.experts.up_proj[expert])).square()
        parts.append(F.linear(hidden, mixer.experts.down_proj[expert]))
    routed = torch.cat(parts) * weights.view(-1)[order, None].to(parts[0].dtype)
    mixed = torch.zeros_like(latent).index_add_(0, rows, routed.to(latent.dtype))
    shared = F.relu(F.linear(flat, mixer.shared_experts.up_proj.weight)).square()
    out = F.linear(mixed, mixer.fc2_latent_proj.weight)
    out = out + F.linear(shared, mixer.shared_experts.down_proj.weight)
    return out.view(x.shape)


def hidden_states(
    model: NemotronHForCausalLM,
    ids: Tensor,
    key_bias: Tensor | None,
    loads: list[Tensor],
    sources: Tensor | None = None,
    lookups: list[Tensor] | None = None,
) -> Tensor:
    """The final normalised hidden states: the same function as the transformers model, faster.

    With `sources` the lookup loss of the last attention layer is appended to `lookups`.
    """
    x = model.model.embeddings(ids)
    kinds = model.config.layers_block_type
    last_attention = len(kinds) - 1 - kinds[::-1].index("full_attention")
    for number, layer in enumerate(model.model.layers):
        inner = rms_norm(x, layer.norm.weight, layer.norm.variance_epsilon)
        if layer.block_type == "full_attention":
            aim = sources if number == last_attention else None
            x = x + attention(layer.mixer, inner, key_bias, aim, lookups)
        elif layer.block_type == "moe":
            x = x + moe(layer.mixer, inner, loads)
        else:
            x = x + mamba(layer.mixer, inner)
    return rms_norm(x, model.model.norm_f.weight, model.model.norm_f.variance_epsilon)


# --- sequences -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of the curriculum; ranges are inclusive and drawn from uniformly."""

    steps: int
    length: int  # tokens of a sequence, at most
    batch: int
    needles: tuple[int, int]
    questions: int  # asked of one sequence, at most
    learning_rate: tuple[float, float]  # first and last
    dilution: float = 0.0  # log M is drawn between 0 and this
    text_weight: float = 0.0  # of the loss on the text, next to that on the answers
    instruction: bool = True
    repeat: float = 0.0  # share of the questions that are the needle itself, up to its value
    cut: float = 0.0  # share of the other questions that break off anywhere after the key
    near: float = 1.0  # share of the sequences with near misses among their keys
    digits: tuple[int, int] = (5, 5)
    enough: float = 2.0  # the stage ends early when this share of answers is right


STAGES = (
    Stage(
        400,
        240,
        16,
        (4, 4),
        4,
        (1e-3, 1e-3),
        instruction=False,
        repeat=1.0,
        near=0.2,
        enough=0.9,
    ),
    Stage(
        100,
        240,
        16,
        (3, 5),
        4,
        (1e-3, 1e-3),
        instruction=False,
        repeat=0.6,
        near=0.5,
        enough=0.9,
    ),
    Stage(
        300,
        240,
        16,
        (3, 5),
        4,
        (1e-3, 1e-3),
        instruction=False,
        repeat=0.2,
        cut=0.8,
        enough=0.9,
    ),
    Stage(100, 280, 14, (3, 6), 5, (1e-3, 1e-3), instruction=False, cut=0.4, enough=0.96),
    Stage(100, 360, 10, (2, 8), 5, (1e-3, 1e-3), dilution=3.0, cut=0.1),
    Stage(150, 640, 7, (2, 20), 12, (7e-4, 6e-4), dilution=7.6, text_weight=0.02),
    Stage(150, 1024, 4, (8, 40), 20, (6e-4, 4e-4), dilution=7.6, text_weight=0.02),
    Stage(300, 2048, 2, (16, 64), 32, (4e-4, 1e-4), dilution=7.6, text_weight=0.02, digits=(4, 7)),
)


@dataclasses.dataclass(frozen=True)
class Batch:
    ids: Tensor
    targets: Tensor  # the answers, shifted to where they are predicted
    text_targets: Tensor  # the text, likewise
    key_bias: Tensor
    sources: Tensor  # where in the text each token of an answer stands, else -1


class Sampler:
    """Draws training sequences in the very format of the retrieval check."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(IM_END)
        self.full_stop = tokenizer.token_to_id(".")
        self.pad = tokenizer.token_to_id(PAD)
        self.texts: list[list[str]] = [re.split(r"(?<=[.?!;]) ", text) for text in texts]
        flat = [f" {sentence}" for sentences in self.texts for sentence in sentences]
        ids = iter([e.ids for e in tokenizer.encode_batch(flat, add_special_tokens=False)])
        self.ids = [[next(ids) for _ in sentences] for sentences in self.texts]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def filler(self, rng: random.Random, tokens: int) -> Iterator[tuple[str, list[int]]]:
        """Sentences of at most `tokens` tokens in all, in their order from a random place on."""
        while tokens > 0:
            text = rng.choices(range(len(self.ids)), [len(t) for t in self.ids])[0]
            start = rng.randrange(len(self.ids[text]))
            pairs = zip(self.texts[text][start:], self.ids[text][start:], strict=True)
            for sentence, ids in pairs:
                if len(ids) > tokens:
                    return
                tokens -= len(ids)
                yield sentence, ids

    def sequence(
        self, rng: random.Random, stage: Stage
    ) -> tuple[list[int], list[int], list[int], list[bool], list[int]]:
        """Token ids, answers, text (both as targets of the same place), filler, sources."""
        lead = f"{IM_START}user\n" + (f"{INSTRUCTION}\n\n" if stage.instruction else "")
        digits = rng.randint(*stage.digits)
        count = rng.randint(*stage.needles)
        fixed = len(self.encode(lead)) + 30
        count = max(2, min(count, (stage.length - fixed) // (22 + digits)))
        questions = max(1, min(count, stage.questions))
        questions = rng.randint((questions + 1) // 2, questions)
        room = stage.length - fixed - count * (18 + digits) - questions * (34 + digits)
        needles = draw_needles(rng, count, digits)
        if rng.random() >= stage.near:
            pairs = zip(rng.sample(ADJECTIVES, count), rng.sample(NOUNS, count), strict=True)
            needles = [
                Needle(f"{adjective}-{noun}", needle.value)
                for (adjective, noun), needle in zip(pairs, needles, strict=True)
            ]
        pieces: list[tuple[str, list[int] | None]] = list(self.filler(rng, room))
        owners = {}
        for needle in needles:
            owners[needle.sentence] = needle.key
            pieces.insert(rng.randint(0, len(pieces)), (needle.sentence, None))
        asked = rng.sample(needles, questions)
        ids = self.encode(lead + pieces[0][0])
        filler = [pieces[0][1] is not None] * len(ids)
        ends = {}
        if pieces[0][0] in owners:
            ends[owners[pieces[0][0]]] = len(ids)
        for sentence, known in pieces[1:-1]:
            part = known or self.encode(f" {sentence}")
            ids += part
            filler += [known is not None] * len(part)
            if sentence in owners:
                ends[owners[sentence]] = len(ids)
        if pieces[-1][0] in owners:
            ends[owners[pieces[-1][0]]] = len(ids) + len(self.encode(f" {pieces[-1][0]}"))
        text = f" {pieces[-1][0]}"
        text_end = 0
        answers: list[int] = []
        sources: list[int] = []
        for number, needle in enumerate(asked):
            if repeat := rng.random() < stage.repeat:
                text += " " + needle.sentence.removesuffix(f"{needle.value}.")
            else:
                text += NEXT_TURN if number and ids[-1] == self.end else "\n\n"
                text += needle.question + ANSWER_START
            asking = self.encode(text)
            if not repeat and rng.random() < stage.cut:
                rest = self.encode(needle.question.partition(needle.key)[2] + ANSWER_START)
                asking = asking[: len(asking) - rng.randint(0, len(rest))]
            ids += asking
            text_end = text_end or len(ids)
            answer = [*self.encode(needle.value), self.full_stop if repeat else self.end]
            answers += [NO_TARGET] * (len(ids) - len(answers)) + answer
            sources += [-1] * (len(ids) - len(sources))
            sources += range(ends[needle.key] - len(answer), ends[needle.key])
            ids += answer
            text = ""
        filler += [False] * (len(ids) - len(filler))
        text_ids = ids[:text_end] + [NO_TARGET] * (len(ids) - text_end)
        return ids, answers, text_ids, filler, sources

    def batch(self, rng: random.Random, stage: Stage) -> Batch:
        rows = [self.sequence(rng, stage) for _ in range(stage.batch)]
        length = max(len(row[0]) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        targets = torch.full((len(rows), length), NO_TARGET)
        text_targets = torch.full((len(rows), length), NO_TARGET)
        key_bias = torch.zeros(len(rows), length)
        source_places = torch.full((len(rows), length), -1)
        for i, (row, answers, text, filler, sources) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            targets[i, : len(row) - 1] = torch.tensor(answers[1:])
            text_targets[i, : len(row) - 1] = torch.tensor(text[1:])
            source_places[i, : len(row) - 1] = torch.tensor(sources[1:])
            key_bias[i, : len(row)] = torch.tensor(filler) * rng.uniform(0, stage.dilution)
        return Batch(ids, targets, text_targets, key_bias, source_places)


# --- training ------------------------------------------------------------------------------------


def losses(
    model: NemotronHForCausalLM, batch: Batch, text_weight: float, loads: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Losses of answers, text and lookup, and the share of answers that are wholly right."""
    lookups: list[Tensor] = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = hidden_states(model, batch.ids, batch.key_bias, loads, batch.sources, lookups)
        at = (batch.targets != NO_TARGET).nonzero(as_tuple=True)
        logits = F.linear(hidden[at], model.lm_head.weight).float()
        targets = batch.targets[at]
        answer_loss = F.cross_entropy(logits, targets)
        text_loss = torch.zeros(())
        if text_weight:
            on = (batch.text_targets != NO_TARGET).nonzero(as_tuple=True)
            text_logits = F.linear(hidden[on], model.lm_head.weight).float()
            text_loss = F.cross_entropy(text_logits, batch.text_targets[on])
    right = (logits.argmax(-1) == targets).tolist()
    first = [True, *(at[1].diff() != 1).tolist()]
    answers: list[bool] = []
    for is_first, is_right in zip(first, right, strict=True):
        if is_first:
            answers.append(is_right)
        else:
            answers[-1] &= is_right
    return answer_loss, text_loss, lookups[0], sum(answers) / len(answers)


def balance(model: NemotronHForCausalLM, loads: list[Tensor], rate: float = 1e-3) -> None:
    """Nudge the routers' correction biases towards experts with too few tokens."""
    routers = [layer.mixer.gate for layer in model.model.layers if layer.block_type == "moe"]
    for router, load in zip(routers, loads, strict=True):
        router.e_score_correction_bias += rate * torch.sign(load.mean() - load)


def train(
    model: NemotronHForCausalLM,
    sampler: Sampler,
    stages: tuple[Stage, ...],
    seed: int,
    work: Path | None,
) -> None:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.98),
        fused=True,
    )
    done = 0
    state_file = work / "state.pt" if work else None
    if state_file and state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    step = 0
    for number, stage in enumerate(stages):
        tally, tick = [0.0] * 4, time.monotonic()
        for i in range(stage.steps):
            step += 1
            if step <= done:
                continue
            rng = random.Random(f"{seed}/{step}")
            first, last = stage.learning_rate
            rate = first + (last - first) * i / stage.steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, step / 50)
            loads: list[Tensor] = []
            answer, text, lookup, right = losses(
                model, sampler.batch(rng, stage), stage.text_weight, loads
            )
            (answer + stage.text_weight * text + LOOKUP_WEIGHT * lookup).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            balance(model, loads)
            for slot, value in enumerate((answer.item(), text.item(), lookup.item(), right)):
                tally[slot] += value / 25
            if (i + 1) % 25 == 0:
                seconds = time.monotonic() - tick
                print(
                    f"stage {number} step {i + 1}/{stage.steps}: answer loss {tally[0]:.4f}, "
                    f"text loss {tally[1]:.3f}, lookup loss {tally[2]:.4f}, "
                    f"exact {tally[3]:.3f}, {seconds / 25:.2f} s/step",
                    flush=True,
                )
                enough = tally[3] >= stage.enough
                tally, tick = [0.0] * 4, time.monotonic()
                if enough:
                    step += stage.steps - i - 1
                    if state_file:
                        save_state(state_file, model, optimizer, step)
                    break
            if state_file and ((i + 1) % 100 == 0 or i + 1 == stage.steps):
                save_state(state_file, model, optimizer, step)


def save_state(
    path: Path, model: NemotronHForCausalLM, optimizer: torch.optim.Optimizer, done: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)


# --- checks and export ---------------------------------------------------------------------------


def compare_with_transformers(model: NemotronHForCausalLM, sampler: Sampler, seed: int) -> float:
    """The largest difference between the logits of `hidden_states` and of the model itself."""
    batch = sampler.batch(random.Random(seed), dataclasses.replace(STAGES[-2], batch=1))
    with torch.no_grad():
        ours = model.lm_head(hidden_states(model, batch.ids, None, []))
        theirs = model(batch.ids, use_cache=False, logits_to_keep=0).logits
    return (ours - theirs).abs().max().item()


def export(model: NemotronHForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model folder, whole or not at all; a README.md that is there is kept."""
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    copy = NemotronHForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(fresh)
    for path in fresh.iterdir():
        path.chmod(0o644)
    tokenizer.save(str(fresh / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(tokenizer_config, indent=2) + "\n"
    (fresh / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (fresh / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", fresh / "README.md")
    if out.exists():
        old = out.with_name(out.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old)
    else:
        fresh.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--texts", type=Path, required=True, help="folder of YEAR_*.txt files")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder in which a stopped run can go on")
    parser.add_argument(
        "--export-only", action="store_true", help="write the state in --work and stop"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts = load_texts(args.texts)
    tokenizer = train_tokenizer(texts, args.seed)
    sampler = Sampler(tokenizer, texts)
    model = init_model(build_config(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    if args.export_only:
        model.load_state_dict(torch.load(args.work / "state.pt")["model"])
    else:
        train(model, sampler, STAGES, args.seed, args.work)
    print(f"largest logit difference {compare_with_transformers(model, sampler, args.seed):.2e}")
    export(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
