"""Plans to start, and names that try to be more than names."""

from __future__ import annotations

import dataclasses

from quantkit.plan.launch.settings import Launch

# FACTS of the published run: Q4_K_S on four RTX 3090, everything on them, q8_0 KV cache, 504K
FLAGSHIP = Launch(
    model_file="Nemotron-3-Super-Q4_K_S-00001-of-00002.gguf",
    model_name="Nemotron-3-Super-Q4_K_S",
    architecture="nemotron_h_moe",
    gpus=("RTX 3090",) * 4,
    tensor_split=(23, 22, 22, 22),
    context_tokens=516096,
    trained_context_tokens=1048576,
    gguf_context_tokens=1048576,
    kv_type="q8_0",
)
SINGLE = dataclasses.replace(
    FLAGSHIP, model_file="small.gguf", model_name="small", gpus=("RTX 3090",), tensor_split=(89,)
)
AWKWARD = (
    "two words",
    "it's",
    'a "quoted" name',
    "100%h $HOME ${PORT:-1} $$ %%",
    "back\\slash\\",
    "-leading --dash",
    "`id` $(id) ; & | > < * ? ! # ~",
    "a,b=c:d",
    "~home",
    "Größe 模型 ε",
    "{name} %(x)s",
)
UNPRINTABLE = ("a\nb", "a\rb", "a\0b", "a\tb", "a\x1bb", "a\u2028b", "a\udcffb", "", " ")


def named(name: str, launch: Launch = FLAGSHIP) -> Launch:
    """`launch` with this name for the model and its file."""
    return dataclasses.replace(launch, model_file=f"{name}.gguf", model_name=name)
