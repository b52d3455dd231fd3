"""Fake GPUs: devices that answer llama.cpp's questions, so that it plans for GPUs not here.

llama.cpp asks a device for names, sizes and abilities, and for computations. With `no_alloc` it
never computes: a device that answers the questions is enough to have its own loader, scheduler and
allocator say what a model would take on each GPU. The structs are those of
`ggml/src/ggml-backend-impl.h`; the answers of a CUDA GPU are those of `ggml/src/ggml-cuda`:

- buffers are aligned to 128 bytes, and a quantized tensor is followed by room for what is missing
  to rows of 512 (`ggml_backend_cuda_buffer_type_get_alloc_size`, MATRIX_ROW_PADDING);
- flash attention over a KV cache that is not F16 keeps F16 copies of one layer's keys and values
  behind its result (`ggml_cuda_flash_attn_ext_get_alloc_size`): half a GiB for the flagship at
  504K, which a CPU behind an RPC server does not need;
- it computes asynchronously and has events, so layers on several GPUs are pipelined.

Used inside a child process: what llama.cpp keeps of a device is freed with it.
"""

from __future__ import annotations

import ctypes
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from quantkit.llamacpp.ggml import GgmlTensor, base_library, op_number

API_VERSION = 2
"""GGML_BACKEND_API_VERSION of the structs below."""
CUDA_ALIGNMENT, CPU_ALIGNMENT = 128, 32
ROW_PADDING = 512
GPU = 1  # GGML_BACKEND_DEVICE_TYPE_GPU
F16 = 1  # GGML_TYPE_F16
BASE_ADDRESS = 1 << 40  # of every buffer: never read, but it must not be null
FLASH_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 256, 512})
"""Head sizes that CUDA's kernels have for equal keys and values (fattn.cu)."""
FLASH_HEADS_UNEQUAL = frozenset({(192, 128), (320, 256), (576, 512)})

_OP = GgmlTensor.op.offset
_Pointer = ctypes.c_void_p
_Size = ctypes.c_size_t


def _struct(pointers: str = "", **others: Any) -> type[ctypes.Structure]:  # noqa: ANN401
    """A struct of pointers of these names and then of `others`, in which None is a pointer."""
    fields = dict.fromkeys(pointers.split()) | others
    listed = [(name, kind or _Pointer) for name, kind in fields.items()]
    return type("_Struct", (ctypes.Structure,), {"_fields_": listed})


_BufferTypeFunctions = _struct(
    "get_name alloc_buffer get_alignment get_max_size get_alloc_size is_host"
)
_BufferFunctions = _struct(
    "free_buffer get_base init_tensor memset_tensor set_tensor get_tensor set_tensor_2d "
    "get_tensor_2d cpy_tensor clear reset"
)
_BackendFunctions = _struct(
    "get_name free set_tensor_async get_tensor_async set_tensor_2d_async get_tensor_2d_async "
    "cpy_tensor_async synchronize graph_plan_create graph_plan_free graph_plan_update "
    "graph_plan_compute graph_compute event_record event_wait graph_optimize"
)
_DeviceFunctions = _struct(
    "get_name get_description get_memory get_type get_props init_backend get_buffer_type "
    "get_host_buffer_type buffer_from_host_ptr supports_op supports_buft offload_op event_new "
    "event_free event_synchronize"
)
_RegistryFunctions = _struct("get_name get_device_count get_device get_proc_address")
_BufferType = _struct(functions=_BufferTypeFunctions, device=None, context=None)
_Backend = _struct(guid=None, functions=_BackendFunctions, device=None, context=None)
_Device = _struct(functions=_DeviceFunctions, registry=None, context=None)
_Registry = _struct(api_version=ctypes.c_int, functions=_RegistryFunctions, context=None)
_Event = _struct("device context")
_ABILITIES = ("asynchronous", "host_buffer", "buffer_from_host_ptr", "events")
_Properties = _struct(
    "name description",
    memory_free=_Size,
    memory_total=_Size,
    type=ctypes.c_int,
    device_id=None,
    **dict.fromkeys(_ABILITIES, ctypes.c_bool),
)


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    name: signature
    for signature, names in (
        ((_Pointer, _Pointer), "get_name get_description get_buffer_type get_base event_new"),
        ((_Pointer, _Pointer, _Pointer), "init_backend"),
        ((_Pointer, _Pointer, _Size), "get_device alloc_buffer"),
        ((_Pointer, _Pointer, ctypes.c_char_p), "get_proc_address"),
        ((_Size, _Pointer), "get_device_count get_alignment"),
        ((_Size, _Pointer, _Pointer), "get_alloc_size"),
        ((ctypes.c_int, _Pointer), "get_type"),
        ((ctypes.c_bool, _Pointer, _Pointer), "supports_op supports_buft"),
        ((None, _Pointer), "free synchronize free_buffer"),
        ((None, _Pointer, _Pointer), "get_props event_free event_synchronize"),
        ((None, _Pointer, _Pointer, _Pointer), "get_memory"),
        ((None, _Pointer, ctypes.c_ubyte), "clear"),
    )
    for name in names.split()
}
"""Function of an interface → its result and its arguments."""


class FakeGPUs:
    """GPUs of `capacities` bytes that cannot compute; they live as long as this object.

    Args:
        cuda: answer as CUDA GPUs do; otherwise as plain memory, as RPC servers on CPUs.
    """

    def __init__(self, capacities: Sequence[int], *, cuda: bool) -> None:
        self._kept: list[Any] = []
        self._cuda = cuda
        self._registry = _Registry(api_version=API_VERSION)
        name = self._text("FAKE")
        self._fill(
            self._registry.functions,
            get_name=lambda _r: name,
            get_device_count=lambda _r: len(found),
            get_device=lambda _r, index: found[index],
            get_proc_address=lambda _r, _name: None,
        )
        found = [self._device(index, size) for index, size in enumerate(capacities)]
        self.devices: tuple[int, ...] = tuple(found)
        """Address of each GPU's `ggml_backend_device`, for `llama_model_params.devices`."""

    def _text(self, text: str) -> int:
        buffer = ctypes.create_string_buffer(text.encode())
        self._kept.append(buffer)
        return ctypes.addressof(buffer)

    def _fill(self, functions: ctypes.Structure, **bodies: Callable[..., Any]) -> None:
        """Fill fields of `functions` with pointers to `bodies`, which are kept alive."""
        for name, body in bodies.items():
            function = ctypes.CFUNCTYPE(*_SIGNATURES[name])(_guarded(body))
            self._kept.append(function)
            setattr(functions, name, ctypes.cast(function, _Pointer))

    def _device(self, index: int, size: int) -> int:
        device, backend, event = _Device(), _Backend(), _Event()
        guid = (ctypes.c_ubyte * 16)(*([index + 1] * 16))
        self._kept += [device, backend, event, guid]
        address = ctypes.addressof(device)
        name = self._text(f"FAKE{index}")
        buffer_type = self._buffer_type(address, name)
        backend.guid, backend.device, event.device = ctypes.addressof(guid), address, address
        self._fill(
            backend.functions,
            get_name=lambda _b: name,
            free=lambda _b: None,
            synchronize=lambda _b: None,
        )

        def memory(_device: int, free: int, total: int) -> None:
            _Size.from_address(free).value = _Size.from_address(total).value = size

        def properties(_device: int, out: int) -> None:
            ctypes.memset(out, 0, ctypes.sizeof(_Properties))
            found = _Properties.from_address(out)
            found.name = found.description = name
            found.memory_free = found.memory_total = size
            found.type = GPU
            found.asynchronous = found.events = True

        device.registry = ctypes.addressof(self._registry)
        self._fill(
            device.functions,
            get_name=lambda _d: name,
            get_description=lambda _d: name,
            get_memory=memory,
            get_type=lambda _d: GPU,
            get_props=properties,
            init_backend=lambda _d, _params: ctypes.addressof(backend),
            get_buffer_type=lambda _d: buffer_type,
            supports_op=self._supports,
            supports_buft=lambda _d, other: other == buffer_type,
            event_new=lambda _d: ctypes.addressof(event),
            event_free=lambda _d, _e: None,
            event_synchronize=lambda _d, _e: None,
        )
        return address

    def _buffer_type(self, device: int, name: int) -> int:
        """Memory of a GPU: buffers have sizes and nothing in them."""
        buffer_type, buffer = _BufferType(device=device), _BufferFunctions()
        self._kept += [buffer_type, buffer]
        self._fill(
            buffer,
            free_buffer=lambda _b: None,
            get_base=lambda _b: BASE_ADDRESS,
            clear=lambda _b, _value: None,
        )
        make = base_library().ggml_backend_buffer_init
        make.restype, make.argtypes = _Pointer, (_Pointer, _BufferFunctions, _Pointer, _Size)
        alignment = CUDA_ALIGNMENT if self._cuda else CPU_ALIGNMENT
        self._fill(
            buffer_type.functions,
            get_name=lambda _t: name,
            alloc_buffer=lambda kind, size: make(kind, buffer, None, size),
            get_alignment=lambda _t: alignment,
        )
        if self._cuda:
            self._fill(buffer_type.functions, get_alloc_size=lambda _t, tensor: cuda_size(tensor))
        return ctypes.addressof(buffer_type)

    def _supports(self, _device: int, address: int) -> bool:
        if not self._cuda:
            return True
        if ctypes.c_int.from_address(address + _OP).value != op_number(b"FLASH_ATTN_EXT"):
            return True  # of thousands of nodes
        tensor = GgmlTensor.from_address(address)
        keys, values = (tensor.src[i].contents.ne[0] for i in (1, 2))
        return (keys in FLASH_HEADS and keys == values) or (keys, values) in FLASH_HEADS_UNEQUAL


def _guarded(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body`, which ends the process if it fails: ctypes would make up an answer and go on."""

    def call(*given: Any) -> Any:  # noqa: ANN401
        try:
            return body(*given)
        except BaseException:  # noqa: BLE001 - whatever it is, nothing may go on
            traceback.print_exc()
            os._exit(1)

    return call


def cuda_size(address: int) -> int:
    """Bytes that the tensor at `address` takes in a CUDA GPU's buffer, without alignment."""
    library = base_library()
    tensor = GgmlTensor.from_address(address)
    size = int(library.ggml_nbytes(address))
    if tensor.op == op_number(b"FLASH_ATTN_EXT"):
        keys, values = tensor.src[1], tensor.src[2]
        shared = _same_memory(values.contents, keys.contents)
        for side in (keys,) if shared else (keys, values):
            if side.contents.type != F16:
                elements = int(library.ggml_nelements(side))
                size = -(-size // CUDA_ALIGNMENT) * CUDA_ALIGNMENT + 2 * elements
    missing = -tensor.ne[0] % ROW_PADDING
    if missing and library.ggml_is_quantized(tensor.type):
        size += int(library.ggml_row_size(tensor.type, missing))
    return size


def _same_memory(values: GgmlTensor, keys: GgmlTensor) -> bool:
    """Whether the values are a view of the keys: then one copy serves both."""
    of_values, of_keys = (ctypes.cast(tensor.view_src, _Pointer).value for tensor in (values, keys))
    if not of_values:
        return False
    same_source = of_values == of_keys and values.view_offs == keys.view_offs
    return of_values == ctypes.addressof(keys) or same_source
