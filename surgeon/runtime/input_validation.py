"""Checks of a caller's values against the ports of an artifact. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from surgeon.bundle.scalars import check_scalar, shape_text
from surgeon.bundle.units import Array
from surgeon.errors import SurgeonError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_DTYPES: dict[str, Any] = {
    **{"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16, "tensor(bool)": numpy.bool_},
    **{"tensor(int64)": numpy.int64, "tensor(int32)": numpy.int32},
}


def checked_feeds(artifact: str, session: InferenceSession, values: Mapping[str, Any], recipe: str) -> dict[str, Array]:
    """The feeds of one run: `values` by name, without those that are None, each as the array that its port takes.

    Raises SurgeonError for a required input that is missing, an unknown one (`recipe` says why there is none), or a
    value of another type or shape.
    """
    required = [port.name for port in session.get_inputs()]
    ports = {port.name: port for port in [*session.get_inputs(), *session.get_overridable_initializers()]}
    feeds = {}
    for name, value in {**dict.fromkeys(required), **values}.items():
        if value is None:
            if name in required:
                raise SurgeonError(f"{artifact} needs the input {name!r}", "Give one")
        elif name not in ports:
            raise SurgeonError(f"{artifact} has no use for {name!r} ({recipe})", "Leave it out")
        else:
            feeds[name] = check_value(name, value, ports[name])
    return feeds


def check_value(name: str, value: Any, port: Any) -> Array:
    """`value` as the array that the port takes; raises SurgeonError that names what is wrong with it."""
    dtype = _DTYPES.get(port.type)
    if name == "temperature" and port.shape:
        return _check_temperatures(value, port.shape[0], dtype)
    if not port.shape:
        return numpy.asarray(check_scalar(name, value), dtype)
    if not isinstance(value, numpy.ndarray):
        raise SurgeonError(f"the {name} is a {type(value).__name__}", "Give a numpy array")
    if value.dtype != dtype:
        raise SurgeonError(
            f"the {name} has dtype {value.dtype}, not {numpy.dtype(dtype).name}",
            f"Convert it with .astype(numpy.{numpy.dtype(dtype).name}), in the value range of the manifest",
        )
    if not _fits(value.shape, tuple(port.shape)) or value.shape[0] < 1:
        raise SurgeonError(f"the {name} has shape {list(value.shape)}, not {shape_text(tuple(port.shape))}")
    if not numpy.isfinite(value).all():
        raise SurgeonError(f"the {name} holds values that are not finite")
    return value


def _check_temperatures(value: Any, gates: int, dtype: Any) -> Array:
    """One temperature for each gate and pool; a single number is for all."""
    if isinstance(value, numpy.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return numpy.full(gates, check_scalar("temperature", value), dtype)
    if len(value) != gates:
        raise SurgeonError(
            f"temperature has {len(value)} entries, and the network {gates} gates and pools",
            "Give one for each, in the manifest's order, or a single number for all",
        )
    return numpy.asarray([check_scalar("temperature", item) for item in value], dtype)


def _fits(shape: Sequence[int], expected: Sequence[Any]) -> bool:
    """Whether `shape` has every size that `expected` fixes."""
    pairs = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(not isinstance(want, int) or size == want for size, want in pairs)
