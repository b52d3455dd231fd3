"""Plans to start, and names that try to be more than names."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

from quantkit.config.target import RunSettings
from quantkit.plan.launch.settings import Launch
from quantkit.plan.placement import GPUPlan, Placement

# FACTS of the published run: Q4_K_S on four RTX 3090, everything on them, q8_0 KV cache, 504K
FLAGSHIP = Launch(
    Placement(
        run=RunSettings(context_tokens=516096),
        trained_context_tokens=1048576,
        gpus=tuple(
            GPUPlan(
                name="RTX 3090",
                layers=layers,
                capacity_bytes=24 << 30,
                weights_bytes=18 << 30,
                context_bytes=1 << 30,
                compute_bytes=1 << 30,
                reserve_bytes=1 << 29,
            )
            for layers in (23, 22, 22, 22)
        ),
        host_bytes=1 << 29,
        host_compute_bytes=1 << 28,
        compute_is_estimated=False,
    ),
    model_file="Nemotron-3-Super-Q4_K_S-00001-of-00002.gguf",
    model_name="Nemotron-3-Super-Q4_K_S",
    architecture="nemotron_h_moe",
    gguf_context_tokens=1048576,
)


def launched(launch: Launch, **changes: Any) -> Launch:  # noqa: ANN401 - values of many fields
    """The launch with other fields: its own, those of its run settings, or of its placement.

    `gpus` are their names, `tensor_split` their layers.
    """
    own = {f.name for f in dataclasses.fields(Launch)} & changes.keys()
    run = RunSettings.model_fields.keys() & changes.keys()
    content = launch.placement.model_dump()
    content["run"] |= {name: changes.pop(name) for name in run}
    gpu = content["gpus"][0]
    layers = changes.pop("tensor_split", launch.placement.tensor_split)
    names = changes.pop("gpus", tuple(gpu["name"] for gpu in content["gpus"]))
    pairs = zip(names, layers, strict=True)
    content["gpus"] = tuple(gpu | {"name": name, "layers": count} for name, count in pairs)
    content |= {name: changes.pop(name) for name in changes.keys() - own}
    return dataclasses.replace(launch, placement=Placement(**content), **changes)


SINGLE = launched(
    FLAGSHIP, model_file="small.gguf", model_name="small", gpus=("RTX 3090",), tensor_split=(89,)
)
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1).filter(
    str.strip
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
    return launched(launch, model_file=f"{name}.gguf", model_name=name)
