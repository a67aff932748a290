"""A GPU that is not there: what runs on it is computed on the CPU, and its waits are named.

On a real GPU the host only queues work. Two things make it wait until the queue is empty: reading a
value (``.item()``, ``bool(tensor)``, ``nonzero``, a boolean mask as index, ``.cpu()``) and copying
from ordinary host memory (``torch.tensor([...], device="cuda")``). On a CPU neither costs anything,
and a tensor that was left on the CPU goes unnoticed.

>>> with PretendDevice("cuda") as gpu:
...     weights = torch.randn(8, 3, device="cuda")
...     if (weights > 4).any():
...         weights.clamp_(max=4)
>>> [event.operation for event in gpu.events]
['_local_scalar_dense']

torch's own ``FakeTensorMode`` also makes tensors that claim to be on a GPU, but without a driver
(torch 2.14) it runs no backward pass on them, turns autocast off, and stops at the first wait. Here
tensors have values, so that a whole training runs, and every wait is found.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from spectok.testing.waiting import Event, looks_on_cpu, place, reads, replace, tensors_in

COPIES_DATA = ("tensor", "as_tensor", "asarray")
_LIKE = ("zeros", "ones", "full", "empty", "rand", "randn", "randint")
MAKES = (
    *_LIKE,
    *(f"{name}_like" for name in _LIKE),
    *("arange", "empty_strided", "eye", "linspace", "logspace", "normal", "randperm"),
    "scalar_tensor",
)
MAKES_AS = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros")
_HELD: dict[str, dict[int, StorageWeakRef]] = {}  # also of earlier contexts: tensors are kept
_GENERATORS: dict[str, dict[int, torch.Generator]] = {}
_ONE_DEVICE = ("cat", "stack")  # which take not even a scalar from another device


class PretendDevice(TorchDispatchMode):
    """Makes torch believe in a GPU inside its context, and notes what the host waits for.

    Tensors are on it as on a real one: by ``.to("cuda")``, a factory's ``device=`` or as results.
    They compute on the CPU, in the order and with the rounding of a CPU; autocast uses the CPU's
    list of operations. CUDA kernels, streams and memory are not imitated.

    Args:
        kind: Type of the device: ``"cuda"``; with ``"mps"`` float64 is refused as on Apple's.

    Attributes:
        events: The waits so far.
        step: Set it to tell events of one step from those of another.
        model: Set it to tell events of one model from those of another.

    Raises:
        AssertionError: From the operation that combines tensors of the device and of the CPU, a
            generator of the CPU with a tensor of the device, or float64 with ``"mps"``; names
            the line.
    """

    def __init__(self, kind: str = "cuda"):
        super().__init__()
        self.device = torch.device(kind, 0)
        self.events: list[Event] = []
        self.step, self.model = 0, ""
        self._held = _HELD.setdefault(kind, {})
        self._generators = _GENERATORS.setdefault(kind, {})
        self._quiet = self._in_call = False
        self._patches = ExitStack()

    def __enter__(self) -> PretendDevice:
        with ExitStack() as stack:
            self._patch(stack)
            stack.enter_context(_Calls(self))
            super().__enter__()
            self._patches = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the device."""
        return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in self._held

    # -- operations --------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, and note whether the host would wait for it."""
        kwargs = kwargs or {}
        given = [*tensors_in(args), *tensors_in(kwargs.values())]
        if self._quiet or not any(map(self.holds, given)):
            result = func(*args, **kwargs)
            if self._in_call and not given and not self._quiet:
                self._hold_temporary(func.overloadpacket.__name__, result)
            return result
        name = func.overloadpacket.__name__
        strays = [tensor for tensor in given if not self.holds(tensor)]
        if name == "copy_":
            return self._copy(func, args, kwargs)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            strays = [tensor for tensor in strays if not self._indexes(name, args, tensor)]
            for index in filter(lambda index: isinstance(index, Tensor), args[1]):
                self._note_index(name, index, args)
        elif reads(name, args, kwargs):
            self._note("read", name)
        self._check(name, strays, kwargs.get("generator"))
        result = func(*args, **kwargs)
        self._hold_all(result)
        return result

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run what Python called; what is made inside it is where its tensors are."""
        given = itertools.chain(tensors_in(args), tensors_in(options.values()))
        on_device = any(map(self.holds, given))
        if on_device and looks_on_cpu(func, args, options):
            with self._set(_quiet=True):
                result = func(*args, **options)
            self._hold(result)
            return result
        with self._set(_in_call=on_device):
            return func(*args, **options)

    def _copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target, source = args[:2]
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if not self.holds(target):
            self._note("read", "copy_")
        elif not self.holds(source) and waits and source.ndim:  # a number is filled in
            self._note("copy", "copy_")
        return func(*args, **kwargs)

    @staticmethod
    def _indexes(name: str, args: tuple[Any, ...], tensor: Tensor) -> bool:
        return any(index is tensor for index in args[1])

    def _note_index(self, name: str, index: Tensor, args: tuple[Any, ...]) -> None:
        fills = name != "index" and len(args) > 2 and args[2].numel() == 1
        if not self.holds(index):
            self._note("copy", name)
        if index.dtype in (torch.bool, torch.uint8) and not fills:
            self._note("read", name)

    def _check(self, name: str, strays: list[Tensor], generator: Any) -> None:
        large = [tensor for tensor in strays if tensor.ndim or name in _ONE_DEVICE]
        if large:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in large)
            raise AssertionError(
                f"{name} at {place()} takes tensors on {self.device} and on the CPU, the "
                f"latter of shape {shapes}; create or move them where the others are"
            )
        if generator is not None and generator._cdata not in self._generators:
            raise AssertionError(
                f"{name} at {place()} draws for {self.device} with a generator of the CPU; "
                f"draw on the CPU and move the result"
            )

    def _can_hold(self, tensor: Tensor) -> bool:
        return self.device.type != "mps" or tensor.dtype not in (torch.float64, torch.complex128)

    def _hold_temporary(self, name: str, result: Any) -> None:
        """Note what an operation makes for its own use; a number of Python's may be of any type."""
        if name != "scalar_tensor" or self._can_hold(result):
            self._hold_all(result)

    def _hold_all(self, result: Any) -> None:
        for tensor in tensors_in((result,)):
            self._hold(tensor)

    def _hold(self, tensor: Tensor) -> None:
        """Note that a tensor is on the device."""
        if not self._can_hold(tensor):
            raise AssertionError(f"{place()} makes {tensor.dtype}, which MPS does not have")
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._held:
                self._held[storage._cdata] = StorageWeakRef(storage)

    def _note(self, kind: Literal["read", "copy"], operation: str) -> None:
        self.events.append(Event(kind, operation, place(), self.step, self.model))

    @contextmanager
    def _set(self, **states: bool) -> Iterator[None]:
        before = {name: vars(self)[name] for name in states}
        vars(self).update(states)
        try:
            yield
        finally:
            vars(self).update(before)

    # -- what Python sees of a tensor --------------------------------------------------------------

    def _patch(self, stack: ExitStack) -> None:
        """Replace what asks for a device, or is answered by one, until the context ends."""
        kind, of_base = self.device.type, torch._C.TensorBase.device.__get__
        where = property(lambda t: self.device if self.holds(t) else of_base(t))
        seen = {
            "device": where,
            f"is_{kind}": property(lambda t: self.holds(t)),
            "is_cpu": property(lambda t: not self.holds(t) and of_base(t).type == "cpu"),
            "to": lambda t, *args, **options: self._to(t, *args, **options),
            kind: lambda t, *_, non_blocking=False, **__: self._to(t, kind, non_blocking),
            "cpu": lambda t, *_, **__: self._to(t, "cpu"),
            "numpy": lambda t, **options: self._numpy(t, **options),
            "tolist": lambda t: self._tolist(t),
            "new_tensor": lambda t, data, **options: torch.tensor(
                data, **{"dtype": t.dtype, "device": t.device} | options
            ),
        }
        for name in MAKES_AS:
            original = getattr(torch.Tensor, name)
            seen[name] = functools.partialmethod(_call_with_self, self, original)
        for name, value in seen.items():
            replace(stack, torch.Tensor, name, value)
        for name in (*COPIES_DATA, *MAKES):
            original = getattr(torch, name)
            stack.callback(setattr, torch, name, original)
            setattr(torch, name, functools.partial(self._make_by, name, original))
        replace(stack, torch, "Generator", self._generator_class())
        self._patch_autocast(stack)
        self._patch_grouping(stack)

    def _make_by(
        self, name: str, original: Callable[..., Tensor], *args: Any, **options: Any
    ) -> Tensor:
        """Call a factory; its result is on the device if that was asked for."""
        device = options.get("device")
        like = args[0] if args and isinstance(args[0], Tensor) else None
        if device is None:
            if like is not None and name in COPIES_DATA and self.holds(like):
                with self._set(_quiet=True):
                    result = original(*args, **options)
                self._hold(result)
                return result
            with self._set(_in_call=False):
                return original(*args, **options)
        if torch.device(device).type != self.device.type:
            with self._set(_quiet=True):
                return original(*args, **options)
        if name in COPIES_DATA and not (like is not None and self.holds(like)):
            self._note("copy", name)
        self._check(name, [], options.get("generator"))
        with self._set(_quiet=True):
            result = original(*args, **options | {"device": "cpu"})
        self._hold(result)
        return result

    def _to(self, tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        """Move or convert a tensor."""
        original: Any = torch._C.TensorBase.to
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        if "other" in options:
            other = options.pop("other")
            args = (other.device, other.dtype, *args)
        device = options.pop("device", None)
        if args and isinstance(args[0], (str, int, torch.device)):
            device, *rest = args
            args = tuple(rest)
        elif args and args[0] is None:
            args = args[1:]
        if device is None:
            return original(tensor, *args, **options)
        ours = device if isinstance(device, int) else torch.device(device).type
        to_us, from_us = ours in (0, self.device.type), self.holds(tensor)
        arguments = _dtype_first(tensor, args, options)
        if to_us == from_us:
            return original(tensor, **arguments)
        waits = not arguments.pop("non_blocking", False)
        with self._set(_quiet=True):
            result = original(tensor, **arguments | {"copy": True})
        if to_us:
            self._hold(result)
        if from_us or waits:
            self._note("read" if from_us else "copy", "to")
        return result

    def _numpy(self, tensor: Tensor, **options: Any) -> Any:
        if self.holds(tensor):
            raise AssertionError(f"numpy() at {place()} reads a tensor on {self.device}; use cpu()")
        return torch._C.TensorBase.numpy(tensor, **options)

    def _tolist(self, tensor: Tensor) -> Any:
        if self.holds(tensor):
            self._note("read", "tolist")
        with self._set(_quiet=True):
            return torch._C.TensorBase.tolist(tensor)

    def _generator_class(self) -> type[torch.Generator]:
        """Return what stands for ``torch.Generator``: its objects say on which device they draw."""
        original: Any = torch.Generator
        device, ours = self.device, self._generators

        class Meta(type(original)):
            def __instancecheck__(self, found: Any) -> bool:
                return isinstance(found, original)

        class Generator(original, metaclass=Meta):
            def __new__(cls, where: Any = "cpu") -> Any:
                created = super().__new__(cls, "cpu")
                if torch.device(where).type == device.type:
                    ours[created._cdata] = created
                return created

            @property
            def device(self) -> torch.device:
                return device if self._cdata in ours else torch.device("cpu")

        return Generator

    def _patch_autocast(self, stack: ExitStack) -> None:
        """Let the device's autocast be the CPU's, which alone reaches these tensors."""
        kind, cast = self.device.type, torch.amp.autocast_mode.autocast
        start = cast.__init__

        def begin(context: Any, device_type: str, *args: Any, **options: Any) -> None:
            start(context, "cpu" if device_type == kind else device_type, *args, **options)

        stack.callback(setattr, cast, "__init__", start)
        cast.__init__ = begin  # type: ignore[method-assign]
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            original = getattr(torch, name)

            def ask(*devices: str, of: Callable[..., Any] = original) -> Any:
                return of(*("cpu" if device == kind else device for device in devices))

            stack.callback(setattr, torch, name, original)
            setattr(torch, name, ask)

    def _patch_grouping(self, stack: ExitStack) -> None:
        """Name the device in the groups by which optimisers treat many parameters at once."""
        group = torch._C._group_tensors_by_device_and_dtype

        def grouped(*args: Any, **options: Any) -> Any:
            found: dict[Any, Any] = {}
            groups: Any = group(*args, **options)
            for (device, dtype), (lists, places) in groups.items():
                here = self.device if self.holds(lists[0][0]) else device
                found[here, dtype] = (lists, places)
            return found

        stack.callback(setattr, torch._C, "_group_tensors_by_device_and_dtype", group)
        torch._C._group_tensors_by_device_and_dtype = grouped


class _Calls(TorchFunctionMode):
    """Sees what Python calls, of which :class:`PretendDevice` itself sees the parts alone.

    Args:
        gpu: Is told of each call.
    """

    def __init__(self, gpu: PretendDevice):
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one call of Python, or return an attribute, which calls nothing."""
        if func.__name__ == "__get__":
            return func(*args)
        return self._gpu.call(func, args, kwargs or {})


def _call_with_self(
    tensor: Tensor, pretend: PretendDevice, original: Callable[..., Tensor], *a: Any, **options: Any
) -> Tensor:
    """Call ``new_zeros`` and the like; without ``device=`` the result is where the tensor is."""
    device = options.pop("device", None) or tensor.device
    with pretend._set(_quiet=True):
        result = original(tensor, *a, **options)
    if torch.device(device).type == pretend.device.type:
        pretend._hold(result)
    return result


def _dtype_first(tensor: Tensor, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Name the arguments of ``to`` after the device."""
    names = ("dtype", "non_blocking", "copy")
    return {"dtype": tensor.dtype} | {
        name: value
        for name, value in {**dict(zip(names, args)), **options}.items()
        if value is not None
    }
