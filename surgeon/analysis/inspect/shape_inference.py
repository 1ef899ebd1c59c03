"""Shapes of an ONNX graph's tensors, stated in the file or inferred. Torch-free.

No weights are needed: the shapes of large constants are enough.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from surgeon.runtime.graphs import graphs

Shape = tuple[int | str, ...]
"""Sizes of a tensor: integers, names of free sizes, and "?" for unknown ones."""

_SMALL = 1024  # values: larger constants are weights, on whose values no shape depends


def inferred(model: ModelProto) -> ModelProto:
    """`model` with inferred shapes; unchanged where they contradict each other."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return model


def without_weights(model: ModelProto) -> ModelProto:
    """A copy of `model` whose weights are names and shapes; small constants, which may be sizes, keep their values."""
    weights = [
        (weight, weight.raw_data) for graph in graphs(model.graph) for weight in graph.initializer if _is_large(weight)
    ]
    for weight, _ in weights:
        weight.ClearField("raw_data")  # so that it is not copied
    light = ModelProto()
    light.CopyFrom(model)
    for weight, data in weights:
        weight.raw_data = data
    for graph in graphs(light.graph):
        for weight in filter(_is_large, graph.initializer):
            for field in ("float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
                weight.ClearField(field)
            weight.data_location = TensorProto.EXTERNAL
    return light


def with_numbers(model: ModelProto, sizes: Mapping[str, int], input_shape: Shape) -> ModelProto:
    """A copy of `model` in which free sizes are numbers: a batch 1, others by name or by `input_shape`.

    That is the shape of one sample of the first input. What has no number is left for inference to find.
    """
    model = copy.deepcopy(model)
    numbers, inputs = dict(sizes), ports(model.graph)
    for value in inputs:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            stated = input_shape[place - 1] if value is inputs[0] and 0 < place <= len(input_shape) else None
            number = 1 if place == 0 else stated if isinstance(stated, int) else None
            if number is None or dim.HasField("dim_value"):
                continue
            if dim.dim_param:
                numbers.setdefault(dim.dim_param, number)
            else:
                dim.dim_value = number
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.HasField("dim_param"):
                    known = numbers.get(dim.dim_param)
                    dim.Clear()
                    if known is not None:
                        dim.dim_value = known
    return model


def ports(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that a caller may give, those with a default included.

    Before IR version 4 every weight is an input too, so a default must be a scalar, or a temperature per gate.
    """
    weights = {
        initializer.name for initializer in graph.initializer if initializer.dims and initializer.name != "temperature"
    }
    return [value for value in graph.input if value.name not in weights]


def shape(value: ValueInfoProto) -> Shape | None:
    """The shape that `value` states; None where it states none, or is no tensor."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    names = [dim.dim_param for dim in tensor.shape.dim]
    names = ["?" if not name or name.startswith("unk__") else name for name in names]  # names that inference made up
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else name for dim, name in zip(tensor.shape.dim, names, strict=True)
    )


def numbers(value: ValueInfoProto) -> tuple[int, ...] | None:
    """The shape that `value` states; None where one of its sizes is no number."""
    stated = shape(value) or ()
    sizes = tuple(size for size in stated if isinstance(size, int))
    return sizes if len(sizes) == len(stated) and shape(value) is not None else None


def _is_large(constant: TensorProto) -> bool:
    return math.prod(constant.dims) > _SMALL
