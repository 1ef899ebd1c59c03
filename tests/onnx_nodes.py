"""Sample nodes for every ONNX operator that can be imported, models made of them, and ONNX Runtime's view of a file."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from surgeon.runtime.graphs import graphs

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class X:
    """The network's input, without its batch; each place of it is `scale` times a normal number, plus `shift`."""

    shape: tuple[int, ...]
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Node:
    """One node: `inputs` are X, arrays (initializers), or None where one is left out."""

    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1

    @property
    def x(self) -> X:
        return next(given for given in self.inputs if isinstance(given, X))


def x(*shape: int, scale: float = 1.0, shift: float = 0.0) -> X:
    return X(shape, scale, shift)


def w(*shape: int, shift: float = 0.0) -> Array:
    """A weight."""
    return (np.random.default_rng(len(shape)).normal(size=shape) + shift).astype(np.float32)


def i(*values: int) -> Array:
    """Whole numbers."""
    return np.array(values, np.int64)


def f(*values: float) -> Array:
    """Floating-point numbers."""
    return np.array(values, np.float32)


def e(value: float | bool) -> Array:
    """A single number, without a dimension."""
    return np.array(value, np.bool_ if isinstance(value, bool) else np.float32)


def n(*inputs: Any, opset: int = 17, outputs: int = 1, **attributes: Any) -> Node:
    return Node(inputs, attributes, opset, outputs)


UNARY = (
    *("Abs", "Neg", "Sign", "Erf", "Exp", "Floor", "Ceil", "Round", "Identity", "Relu", "Sin", "Cos", "Tan", "Tanh"),
    *("Atan", "Sinh", "Cosh", "Asinh", "Sigmoid", "Softplus", "Softsign", "HardSwish", "Elu", "Selu", "Celu"),
)
NODES: dict[str, list[Node]] = {
    **{name: [n(x(3, 5))] for name in UNARY},
    **{name: [n(x(3, 5, scale=0.1, shift=0.5))] for name in ("Asin", "Acos", "Atanh", "Log", "Sqrt", "Reciprocal")},
    "Acosh": [n(x(3, 5, scale=0.1, shift=3))],
    "Mish": [n(x(3, 5), opset=18)],
    "IsNaN": [n(x(3, 5))],
    "IsInf": [],
    "Not": [],  # with Less, below
    # activations
    "Clip": [
        n(x(6), e(-0.5), e(0.7)),
        n(x(6, scale=5), e(0.0), e(6.0)),
        n(x(6), e(0.2)),
        n(x(6), None, e(0.3)),
        n(x(6), opset=9, min=0.0, max=0.5),
        n(x(6), opset=9, min=0.0),
    ],
    "LeakyRelu": [n(x(6)), n(x(6), alpha=0.3, opset=9)],
    "ThresholdedRelu": [n(x(6)), n(x(6), alpha=0.2)],
    "PRelu": [
        n(x(3, 5, 5), w(3, 1, 1)),
        n(x(3, 5), w(1)),
        n(x(5, 5, 3), w(3)),
        n(x(5, 5, 3), w(1, 1, 3)),
        n(x(3, 5, 5), w(3, 5, 5)),
    ],
    "Shrink": [n(x(6)), n(x(6), bias=0.3, lambd=0.4)],
    "HardSigmoid": [n(x(6, scale=3)), n(x(6, scale=3), alpha=1 / 6, beta=0.5), n(x(6), alpha=0.4, beta=0.3)],
    "Gelu": [n(x(6), opset=20), n(x(6), opset=20, approximate="tanh")],
    "Softmax": [n(x(3, 5)), n(x(3, 5), axis=1), n(x(3, 5), opset=11), n(x(3, 5, 2), opset=11, axis=2)],
    "LogSoftmax": [n(x(3, 5), axis=1), n(x(3, 5), opset=11, axis=1)],
    # arithmetic
    "Add": [n(x(3, 5), w(5)), n(w(2, 3, 1), x(2, 1, 4))],
    "Sub": [n(x(3, 5), w(3, 1)), n(e(1.5), x(3))],
    "Mul": [n(x(3, 5), e(2.5))],
    "Div": [n(x(3, 5), e(2.5)), n(w(5), x(5, shift=9))],
    "Pow": [n(x(5), e(2.0)), n(x(5, shift=9), f(0.5)), n(x(5), e(3.0), opset=9)],
    "Mod": [n(x(5), e(0.7), fmod=1)],
    **{name: [n(x(3, 5), w(5)), n(x(5), w(5), w(1, 5))] for name in ("Min", "Sum", "Mean")},
    "Max": [n(x(3, 5), w(5)), n(x(5), w(5), w(1, 5)), n(x(5), e(0.0)), n(f(0.0), x(5)), n(x(5), x(5), f(0.1))],
    **{name: [n(x(5), e(0.1))] for name in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")},
    "And": [],
    "Or": [],
    "Xor": [],
    "Where": [],
    "Cast": [
        n(x(5, scale=3), to=TensorProto.INT64),
        n(x(5, scale=3), to=TensorProto.INT32),
        n(x(5), to=9),
        n(x(5), to=11),
    ],
    "CastLike": [n(x(5, scale=3), i(1), opset=19), n(x(5), f(1), opset=19)],
    "Dropout": [n(x(3, 5)), n(x(3, 5), e(0.5), e(False)), n(x(3, 5), ratio=0.2, opset=9)],
    "MatMul": [n(x(5), w(5, 3)), n(x(4, 5), w(5, 3)), n(x(2, 4, 5), w(2, 5, 3)), n(w(3, 4), x(4, 5))],
    "Gemm": [
        n(x(5), w(5, 3), w(3)),
        n(x(5), w(3, 5), w(3), transB=1),
        n(x(5), w(3, 5), w(1, 3), transB=1, alpha=0.5, beta=2.0),
        n(x(5), w(3, 5), transB=1),
        n(x(5), w(5, 3), e(2.0)),
    ],
    "Einsum": [n(x(3, 5), w(5, 2), equation="nij,jk->nik"), n(x(3, 5), x(3, 5), equation="nij,nkj->nik")],
    # norms
    "BatchNormalization": [n(x(3, 4, 5), w(3), w(3), w(3), w(3, shift=9)), n(x(3), *[w(3, shift=9)] * 4, epsilon=0.1)],
    "InstanceNormalization": [n(x(3, 4, 5), w(3), w(3)), n(x(2, 6), w(2), w(2), epsilon=0.1)],
    "LayerNormalization": [n(x(3, 5), w(5), w(5)), n(x(3, 5), w(3, 5), axis=1, epsilon=0.1)],
    "GroupNormalization": [
        n(x(6, 5, 4), w(2), w(2), num_groups=2, opset=18),
        n(x(6, 5, 4), w(6), w(6), num_groups=3, opset=21, epsilon=0.1),
    ],
    "MeanVarianceNormalization": [n(x(3, 5, 4), axes=[2, 3]), n(x(3, 5, 4), axes=[1, 2, -1], opset=9)],
    "LpNormalization": [n(x(3, 5)), n(x(3, 5), axis=1, p=1)],
    "LRN": [n(x(7, 4, 4), size=3, alpha=0.5), n(x(7, 4, 4), size=5, alpha=0.5, beta=0.6, bias=2.0)],
    # reductions
    **{
        name: [n(x(3, 5, 4), axes=[1, -1], keepdims=0), n(x(3, 5, 4), axes=[3]), n(x(3, 5, 4), i(2), opset=18)]
        for name in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
        )
    },
    "ReduceLogSum": [n(x(3, 5, 4, shift=9), axes=[1])],
    "ReduceProd": [n(x(3, 5, 4), axes=[1, 2]), n(x(3, 5, 4), axes=[2], keepdims=0)],
    "ReduceSum": [
        n(x(3, 5), axes=[1], opset=11),
        n(x(3, 5), i(-1), keepdims=0),
        n(x(3, 5), noop_with_empty_axes=1),
    ],
    "CumSum": [
        n(x(3, 5), np.array(1)),
        n(x(3, 5), i(-1), exclusive=1),
        n(x(3, 5), i(2), reverse=1),
        n(x(3, 5), np.array(2), reverse=1, exclusive=1),
    ],
    "ArgMax": [n(x(3, 5), axis=1), n(x(3, 5), axis=-1, keepdims=0)],
    "ArgMin": [n(x(3, 5), axis=1)],
    # windows
    "Conv": [
        n(x(2, 9), w(3, 2, 3), w(3), pads=[1, 1], strides=[2]),
        n(x(4, 8, 9), w(6, 2, 3, 3), w(6), group=2, dilations=[1, 2], pads=[1, 0, 1, 0], kernel_shape=[3, 3]),
        n(x(3, 8, 9), w(4, 3, 3, 3), pads=[0, 1, 2, 0]),
        n(x(3, 8, 9), w(4, 3, 3, 2), w(4), auto_pad="SAME_UPPER", strides=[2, 2]),
        n(x(3, 8, 9), w(4, 3, 2, 3), auto_pad="SAME_LOWER", strides=[1, 2]),
        n(x(3, 8, 9), w(4, 3, 3, 3), auto_pad="VALID", strides=[2, 2]),
        n(x(1, 4, 5, 6), w(2, 1, 2, 3, 2), strides=[1, 2, 1]),
    ],
    "ConvTranspose": [
        n(x(2, 6), w(2, 3, 3), w(3), strides=[2], pads=[1, 1], output_padding=[1]),
        n(x(4, 5, 6), w(4, 3, 3, 3), w(6), group=2, strides=[2, 3], pads=[0, 1, 2, 1]),
        n(x(2, 5, 5), w(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
        n(x(2, 5, 5), w(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
        n(x(2, 5, 5), w(2, 3, 2, 1), strides=[3, 2], auto_pad="SAME_UPPER"),
        n(x(2, 5, 5), w(2, 3, 3, 3), strides=[3, 2], output_shape=[14, 12]),
        n(x(2, 5, 5), w(2, 3, 2, 2), dilations=[2, 1]),
        n(x(1, 3, 4, 3), w(1, 2, 2, 2, 2), strides=[2, 1, 2]),
    ],
    "MaxPool": [
        n(x(2, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
        n(x(2, 9, 8), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0], dilations=[1, 2]),
        n(x(2, 9, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        n(x(2, 9, 8, shift=-5), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        n(x(2, 8, 8, shift=-5), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
        n(x(2, 8, 8, shift=-5), kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        n(x(2, 9, 8, shift=-5), kernel_shape=[3, 3], strides=[2, 1], pads=[0, 1, 2, 0]),
        n(x(1, 5, 6, 5), kernel_shape=[2, 2, 2], strides=[2, 2, 1]),
    ],
    "AveragePool": [
        n(x(2, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
        n(x(2, 9, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
        n(x(2, 9, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 0]),
        n(x(2, 9, 8), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        n(x(2, 9, 8), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        n(x(2, 8, 8), kernel_shape=[3, 3], pads=[0, 1, 2, 0], count_include_pad=1),
        n(x(1, 5, 6, 5), kernel_shape=[2, 2, 2], strides=[2, 2, 1]),
        n(x(2, 8, 8), kernel_shape=[2, 2], dilations=[1, 1], opset=19),
        n(x(2, 9, 8), kernel_shape=[3, 2], dilations=[2, 3], strides=[2, 1], pads=[1, 0, 1, 1], opset=19),
        n(x(2, 9, 8), kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 0, 1], count_include_pad=1, opset=19),
    ],
    "LpPool": [
        n(x(2, 9), kernel_shape=[3], strides=[2], pads=[1, 1]),
        n(x(2, 9, 8), kernel_shape=[3, 2], p=3, auto_pad="SAME_UPPER"),
        n(x(2, 9, 8), kernel_shape=[3, 2], dilations=[2, 1], p=1, opset=18),
    ],
    "GlobalLpPool": [n(x(2, 5, 6)), n(x(2, 5), p=3)],
    "GlobalAveragePool": [n(x(2, 5, 6)), n(x(2, 5))],
    "GlobalMaxPool": [n(x(2, 5, 6)), n(x(2, 5))],
    # shapes
    "Shape": [],
    "Size": [],
    "Trilu": [n(x(4, 5)), n(x(4, 5), np.array(-1), upper=0), n(x(3, 4, 5), np.array(1))],
    "Reshape": [n(x(4, 6), i(0, -1)), n(x(4, 6), i(-1, 8, 3)), n(x(4, 6), i(-1, 4, 3, 2), opset=9)],
    "Flatten": [n(x(4, 6)), n(x(6), axis=-1)],
    "Squeeze": [n(x(1, 4, 1), i(1, -1)), n(x(1, 4, 1), axes=[3], opset=11)],
    "Unsqueeze": [n(x(4), i(1, 3)), n(x(4), axes=[-1], opset=11)],
    "Transpose": [n(x(4, 5, 6), perm=[0, 3, 1, 2])],
    "Expand": [n(x(1, 5), i(1, 4, 1)), n(x(3, 1), i(4))],
    "Tile": [n(x(3, 5), i(1, 2, 3))],
    "Concat": [n(x(3, 5), x(3, 5), axis=1), n(x(5), x(5), axis=-1)],
    "Split": [
        n(x(6, 2), axis=1, outputs=2, split=[2, 4], opset=11),
        n(x(6, 2), i(1, 5), axis=1, outputs=2),
        n(x(6, 2), axis=1, outputs=3),
        n(x(7), axis=1, outputs=2, num_outputs=2, opset=18),
    ],
    "Slice": [
        n(x(6, 5), axes=[1, 2], starts=[1, -3], ends=[4, 9223372036854775807], opset=9),
        n(x(6, 5), i(1), i(-1), i(2)),
        n(x(6, 5), i(0, 4), i(6, -100), i(1, 2), i(2, -2)),
        n(x(6, 5), i(-1), i(-4), i(-2), i(-1)),
        n(x(6), i(0, 1), i(9223372036854775807, 4)),
    ],
    "Gather": [
        n(x(6, 5), i(2, -1, 0), axis=1),
        n(x(6, 5), np.array(2), axis=2),
        n(x(6), i(1, 2).reshape(2, 1), axis=1),
    ],
    "GatherND": [n(x(4, 5), i(0, 4, 2, 1, 3, 3).reshape(1, 3, 2), batch_dims=1)],
    "GatherElements": [],
    "ScatterND": [],  # below, with axes in another order, as the next two
    "ScatterElements": [],
    "Scatter": [],
    "TopK": [
        n(x(4, 6), axis=1, k=3, outputs=2, opset=9),
        n(x(4, 6), i(3), axis=1, outputs=2),
        n(x(4, 6), i(2), axis=-1, largest=0, outputs=2),
    ],
    "OneHot": [],
    "ConstantOfShape": [],
    "Pad": [
        n(x(3, 5), i(0, 1, 2, 0, 0, 1)),
        n(x(3, 5), i(0, 0, 1, 0, 0, -1), e(2.5)),
        n(x(3, 5), pads=[0, 1, 0, 0, 0, 2], value=1.5, opset=9),
        n(x(3, 5), i(1, 2), e(0.5), i(-1), opset=18),
        n(x(3, 5), i(0, 1, 2, 0, 2, 1), mode="reflect"),
        n(x(3, 5), i(0, 1, 2, 0, 2, 1), mode="edge"),
        n(x(3, 5), i(0, 1, 2, 0, 2, 1), mode="wrap", opset=19),
    ],
    "DepthToSpace": [n(x(8, 2, 3), blocksize=2), n(x(8, 2, 3), blocksize=2, mode="CRD")],
    "SpaceToDepth": [n(x(2, 4, 6), blocksize=2)],
    "Upsample": [
        n(x(2, 3, 4), f(1, 1, 2, 3), opset=9),
        n(x(2, 3, 4), f(1, 1, 1.5, 2), opset=9),
        n(x(2, 3, 4), f(1, 1, 2, 3), opset=9, mode="linear"),
    ],
    "Resize": [
        n(x(2, 3, 4), f(1, 1, 2, 2), opset=10),
        n(x(2, 3, 4), f(1, 1, 2, 1.5), opset=10, mode="linear"),
        n(x(2, 3, 4), None, f(1, 1, 2, 2), coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        n(x(2, 6, 9), None, None, i(1, 2, 4, 6)),
        n(x(2, 70), None, f(1, 1, 0.7)),
        n(x(2, 10), None, f(1, 1, 0.7), mode="linear"),
        n(x(2, 6, 9), None, None, i(1, 2, 12, 7), nearest_mode="ceil", coordinate_transformation_mode="align_corners"),
        n(x(6, 9, 2), None, f(1, 2, 2, 1), nearest_mode="round_prefer_ceil"),
        n(x(2, 6, 9), None, f(1, 1, 2, 3), mode="linear"),
        n(x(2, 6), None, None, i(1, 2, 9), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
        n(x(2, 6, 9), None, None, i(1, 2, 7, 18), mode="linear", coordinate_transformation_mode="align_corners"),
        n(x(2, 6, 9), None, f(1, 1, 2, 2), mode="cubic"),
        n(x(1, 3, 4, 5), None, f(1, 1, 2, 2, 2), mode="linear", coordinate_transformation_mode="align_corners"),
        n(x(2, 6, 9), None, None, i(7, 12), mode="linear", axes=[2, 3], opset=18),
        n(x(2, 6, 9), None, f(1, 1, 0.7, 1.6), mode="linear"),
        n(x(2, 6, 9), None, None, i(1, 2, 8, 4), mode="linear", coordinate_transformation_mode="asymmetric"),
        n(x(6, 9, 2), None, f(1, 2, 2, 1), mode="linear"),
        n(x(2, 6, 9), None, None, i(1, 2, 8, 4), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
        n(x(2, 6, 9), f(), f(1, 1, 1.5, 2), mode="cubic", coordinate_transformation_mode="asymmetric", opset=11),
        n(x(2, 6, 9), None, None, i(4, 4), axes=[2, 3], keep_aspect_ratio_policy="not_larger", opset=18),
        n(x(2, 7), None, f(1, 1, 0.6), mode="linear", coordinate_transformation_mode="half_pixel_symmetric", opset=19),
    ],
    # ONNX Runtime's own
    "com.microsoft::FusedConv": [
        n(x(2, 6, 6), w(3, 2, 3, 3), w(3), activation="Relu", pads=[1, 1, 1, 1]),
        n(x(2, 6, 6), w(3, 2, 3, 3), w(3), activation="Clip", activation_params=[0.0, 6.0]),
        n(x(2, 6, 6), w(3, 2, 3, 3), activation="LeakyRelu", activation_params=[0.2], strides=[2, 2]),
        n(x(2, 6, 6), w(3, 2, 3, 3), w(3), w(1, 3, 4, 4), activation="Relu"),
    ],
    "com.microsoft::FusedGemm": [
        n(x(5), w(3, 5), w(3), activation="Relu", transB=1),
        n(x(5), w(5, 3), w(3), activation="LeakyRelu", activation_alpha=0.2, alpha=0.5),
    ],
    "com.microsoft::FusedMatMul": [n(x(4, 5), w(3, 5), transB=1, alpha=0.5), n(x(5, 4), w(5, 3), transA=1)],
    "com.microsoft::Gelu": [n(x(5))],
    "com.microsoft::QuickGelu": [n(x(5)), n(x(5), alpha=1.0)],
    "com.microsoft::BiasGelu": [n(x(3, 5), w(5))],
}
"""Where a list is empty, the operator is met in a graph of `test_importer.py` or `test_onnx_graphs.py`."""

FOLDED: dict[str, list[Node]] = {
    **{name: [n(i(3, 4), i(2))] for name in ("Add", "Sub", "Mul", "Min", "Max", "Equal", "Less")},
    **{name: [n(i(3, 4), i(4))] for name in ("Greater", "LessOrEqual", "GreaterOrEqual")},
    "Div": [n(i(3, 4), i(2)), n(i(-7, 7, -7, 0), i(2, -2, -3, -2)), n(f(-7, 7), f(2))],
    "Mod": [
        n(i(3, 4), i(2)),
        n(i(-7, 7, -7, 0), i(4, -4, -4, 3), fmod=0),
        n(i(-7, 7, -7, 0), i(4, -4, -4, 3), fmod=1),
        n(f(-7, 7, -7.5), f(4, -4, 2), fmod=1),
    ],
    "Pow": [n(f(3, 4), f(2))],
    **{name: [n(np.array([True, False]), np.array([True, True]))] for name in ("And", "Or")},
    "Not": [n(np.array([True, False]))],
    **{name: [n(f(2.5, 3))] for name in ("Identity", "Abs", "Neg", "Sqrt", "Floor", "Ceil")},
    "Cast": [n(f(2.5, 3), to=7), n(i(0, 3), to=9), n(i(2, 3), to=1)],
    "Where": [n(np.array([True, False]), i(3, 4), i(5, 6))],
    "Gather": [n(i(3, 4, 5), i(-1, 0)), n(i(3, 4, 5), np.array(1))],
    "Concat": [n(i(3), i(4, 5), axis=0)],
    "Slice": [n(i(3, 4, 5, 6), i(1), i(-1)), n(i(3, 4, 5, 6), i(-1), i(-100), i(0), i(-2))],
    "Squeeze": [n(i(3), i(0)), n(i(3))],
    "Transpose": [n(i(3, 4, 5, 6).reshape(2, 2)), n(i(3, 4, 5, 6).reshape(1, 2, 2), perm=[1, 2, 0])],
    "Unsqueeze": [n(i(3, 4), i(0))],
    "Reshape": [n(i(3, 4), i(-1, 1))],
    "Expand": [n(i(3), i(4))],
    "Split": [
        n(i(3, 4, 5), i(1, 2), outputs=2),
        n(i(3, 4), outputs=2),
        n(i(3, 4, 5), outputs=2, num_outputs=2, opset=18),
    ],
    "Range": [n(np.array(1), np.array(7), np.array(2))],
    "NonZero": [n(i(3, 0, 4)), n(i(0, 1, 1, 0).reshape(2, 2))],
    **{name: [n(i(3, 4), keepdims=0), n(i(3, 4))] for name in ("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")},
}
"""Nodes of which all inputs are known beforehand."""


def model_of(kind: str, node: Node) -> onnx.ModelProto:
    """A model of this one node: its outputs, as float32, are joined, last first; known ones are added to the input."""
    names, initializers, given = [], [], None
    for place, value in enumerate(node.inputs):
        if isinstance(value, X):
            given = value
        elif value is not None:
            initializers.append(numpy_helper.from_array(np.asarray(value), f"c{place}"))
        names.append("" if value is None else "x" if isinstance(value, X) else f"c{place}")
    made = [f"y{place}" for place in range(node.outputs)]
    domain, _, name = kind.rpartition("::")
    nodes = [helper.make_node(name, names, made, name=f"the {name}", domain=domain or None, **node.attributes)]
    nodes += [helper.make_node("Cast", [name], [f"{name}f"], to=TensorProto.FLOAT) for name in made]
    if given is None:
        initializers.append(numpy_helper.from_array(i(1, -1), "row"))
        nodes += [helper.make_node("Reshape", [f"{name}f", "row"], [f"{name}r"]) for name in made]
        nodes += [helper.make_node("Concat", [f"{name}r" for name in reversed(made)], ["y"], axis=1)]
        nodes += [helper.make_node("Add", ["x", "y"], ["out"])]
    elif node.outputs > 1:
        last = [f"{name}f" for name in reversed(made)]
        nodes += [helper.make_node("Concat", last, ["out"], axis=node.attributes["axis"])]
    else:
        nodes[-1].output[0] = "out"
    return model(nodes, initializers, (given or X((1,))).shape, opset=node.opset)


def model(
    nodes: list[onnx.NodeProto],
    initializers: list[TensorProto],
    shape: tuple[int | str, ...],
    *,
    batch: int | str = "N",
    opset: int = 17,
    outputs: tuple[str, ...] = ("out",),
) -> onnx.ModelProto:
    """A model that takes x [batch, *shape]."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])
    returned = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "test", [given], returned, initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)], ir_version=8
    )


def saved(made: onnx.ModelProto, folder: Path, name: str = "net") -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(made, path)
    return path


def runtime(path: Path, x: Array) -> Any:
    """The first output of the file `path` for `x` under ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def optimised(path: Path, scratch: Path) -> collections.Counter[str]:
    """How often each operator occurs in what ONNX Runtime's CPU provider makes of `path`."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(scratch / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    made = onnx.load(scratch / "optimised.onnx", load_external_data=False)
    return collections.Counter(node.op_type for graph in graphs(made.graph) for node in graph.node)


def with_random_weights(light: onnx.ModelProto, side: int) -> onnx.ModelProto:
    """One of the onnx package's light models for images of `side`, its constant weights replaced by random ones."""
    for size in light.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_value = side
    del light.graph.value_info[:]
    graph, generator = light.graph, np.random.default_rng(0)
    shapes = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    spread = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[1::3]}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        shape, (name,) = tuple(shapes[node.input[0]]), node.output
        fan_in = max(int(np.prod(shape[1:])), 1)
        value = (
            generator.uniform(0.5, 1.5, shape) if name in spread else generator.normal(0, (2 / fan_in) ** 0.5, shape)
        )
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        graph.node.remove(node)
    # The softmax at the end is nearly constant where the weights are random.
    last = graph.node[-1]
    if last.op_type == "Softmax":
        graph.output[0].name = last.input[0]
        graph.node.remove(last)
    graph.output[0].type.tensor_type.ClearField("shape")
    return light
