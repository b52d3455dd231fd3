"""Run with a Python that has torch: small random models of every kind, as transformers saves them.

usage: oracle_models.py FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
import oracle_granite
import oracle_qwen
from checkpoints import CHATML, LLAMA3_ROPE, TEKKEN_REGEX

NEMOTRON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "intermediate_size": 96,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 40,
    "moe_latent_size": 32,
    "routed_scaling_factor": 2.5,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
LLAMA: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "bos_token_id": 1,
    "eos_token_id": 4,
}


def main() -> None:
    root = Path(sys.argv[1])
    mixture = NemotronHConfig(
        **NEMOTRON, layers_block_type=["linear_attention", "moe", "full_attention", "moe"]
    )
    save(NemotronHForCausalLM(mixture), root / "moe-latent")
    save(NemotronHForCausalLM(mixture), root / "moe-f32-sharded", torch.float32, "200KB")
    dense = NemotronHConfig(
        **NEMOTRON, layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"]
    )
    save(NemotronHForCausalLM(dense), root / "dense")
    save(LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)), root / "llama-tied")
    untied = LlamaConfig(
        **LLAMA, head_dim=32, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False
    )
    save(LlamaForCausalLM(untied), root / "llama-rope3", torch.float16)

    edited(root / "moe-latent", root / "NVIDIA-Nemotron-3-Tiny-1K-BF16", like_the_flagship)
    edited(root / "dense", root / "dense-old", like_the_first_nemotron)
    edited(root / "llama-rope3", root / "llama-old", like_llama_3)
    edited(root / "llama-tied", root / "llama-sentencepiece", like_llama_2)
    oracle_qwen.write(root, save, edited)
    oracle_granite.write(root, save)


def save(
    model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.bfloat16, shard: str = "1GB"
) -> None:
    """Random values in every parameter and buffer, and a tokenizer trained on this file."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
        for name, buffer in model.named_buffers():
            if "correction" in name:
                buffer.copy_(torch.randn_like(buffer))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TEKKEN_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    for text, normalized in (("<think>", False), ("</think>", False), (" a\u2581b", True)):
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=normalized)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        pad_token="<unk>",
        add_prefix_space=False,  # released models say so, and only some families write it down
    )
    wrapped.chat_template = CHATML
    wrapped.save_pretrained(folder)


def edited(source: Path, target: Path, edit: Callable[[Path, dict[str, Any]], None]) -> None:
    """A copy of a model, or the model itself, whose other files `edit` changes."""
    if target != source:
        shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    edit(target, config)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")


def like_the_flagship(folder: Path, config: dict[str, Any]) -> None:
    """A pattern string, a prediction head, a model card, generation settings."""
    from safetensors.torch import load_file, save_file

    for key in ("layers_block_type", "mtp_layers_block_type", "dtype"):
        del config[key]
    config |= {
        "hybrid_override_pattern": "ME*E",
        "mtp_hybrid_override_pattern": "*E",
        "num_hidden_layers": 4,
        "num_nextn_predict_layers": 1,
        "norm_eps": 1e-5,
        "rope_theta": 10000,
        "max_position_embeddings": 262144,
        "time_step_limit": [0.0, 1e9],
    }
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | prediction_head(tensors), folder / "model.safetensors")
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: nvidia-open\nlicense_link: https://example.org/l\n"
        "language: [en, fr]\ntags: [nvidia]\npipeline_tag: text-generation\n"
        "base_model: [nvidia/Some-Base-8B]\ndatasets:\n- nvidia/Data-v1\n---\n# A card\n",
        encoding="utf-8",
    )
    settings = {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    post_process(folder, [])


def prediction_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What NVIDIA's checkpoints have and transformers does not write: attention, then a MoE."""
    norm = tensors["backbone.norm_f.weight"]
    shapes = {
        f"mtp.layers.{number}.{name.removeprefix(layer)}": value
        for number, layer in enumerate(("backbone.layers.2.", "backbone.layers.1."))
        for name, value in tensors.items()
        if name.startswith(layer)
    }
    for name in ("0.enorm", "0.hnorm", "1.final_layernorm"):
        shapes[f"mtp.layers.{name}.weight"] = norm
    shapes["mtp.layers.0.eh_proj.weight"] = torch.empty(len(norm), 2 * len(norm), dtype=norm.dtype)
    return {name: torch.randn_like(value) * 0.5 for name, value in shapes.items()}


def like_the_first_nemotron(folder: Path, config: dict[str, Any]) -> None:
    """Nemotron-H 8B: no expert keys at all, and the older names of two others."""
    for key in list(config):
        if "moe" in key or "expert" in key or key in ("n_group", "topk_group", "time_step_limit"):
            del config[key]
    del config["layers_block_type"], config["mtp_layers_block_type"]
    config |= {"hybrid_override_pattern": "M-*-", "num_hidden_layers": 4, "rms_norm_eps": 1e-5}
    config["attention_head_dim"] = config.pop("head_dim")


def like_llama_3(folder: Path, config: dict[str, Any]) -> None:
    """Rope settings outside of rope_parameters, and a template that adds BOS."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": i, "type_id": 0}} for i in "AB")
    template = {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    post_process(folder, [template])


def like_llama_2(folder: Path, config: dict[str, Any]) -> None:
    """A SentencePiece model with added tokens."""
    import io

    import sentencepiece

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text(encoding="utf-8").splitlines() * 3),
        model_writer=trained,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<x>"],
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    (folder / "tokenizer.json").unlink()
    added = {
        "0": {"content": "<unk>", "special": True},
        "430": {"content": "<|im\u2581|>", "special": False},
        "431": {"content": "a\u2581b", "special": False},
    }
    options = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "added_tokens_decoder": added,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
    (folder / "added_tokens.json").write_text('{"<extra>": 440}', encoding="utf-8")
    config["eos_token_id"] = 2  # as the tokenizer says
    (folder / "generation_config.json").unlink()  # which says 4


def post_process(folder: Path, more: list[dict[str, Any]]) -> None:
    """Give the tokenizer a byte-level post-processor, and `more` after it."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [byte_level, *more]}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


if __name__ == "__main__":
    main()
