"""Fused operators of ONNX Runtime's own domain; gates inside them stay gates."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import ConversionError
from surgeon.network.importer.activations import clip, gelu, hard_sigmoid, leaky_relu, relu
from surgeon.network.importer.arithmetic import gemm
from surgeon.network.importer.registry import operator
from surgeon.network.importer.windows import conv

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    **{"Relu": relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh},
    "LeakyRelu": lambda x, alpha=0.01: leaky_relu(x, alpha=alpha),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: hard_sigmoid(x, alpha=alpha, beta=beta),
    "Clip": lambda x, low, high: clip(x, min=low, max=high),
}


def activated(x: Tensor, activation: str, parameters: list[float]) -> Tensor:
    if activation not in ACTIVATIONS:
        raise ConversionError(f"the activation {activation}", f"Use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation](x, *parameters)


@operator("com.microsoft::FusedConv")
def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    *,
    activation: str,
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """activation(conv(x) + added)."""
    y = conv(x, weight, bias, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return activated(y if added is None else y + added, activation, activation_params or [])


@operator("com.microsoft::FusedGemm")
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    parameters = [value for value in (activation_alpha, activation_beta, activation_gamma) if value is not None]
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, parameters)


@operator("com.microsoft::FusedMatMul")
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    if transBatchA or transBatchB:
        raise ConversionError("a transposed batch", "Transpose it before")
    product = torch.matmul(a.mT if transA else a, b.mT if transB else b)
    return product if alpha == 1.0 else alpha * product


@operator("com.microsoft::Gelu")
def fused_gelu(x: Tensor) -> Tensor:
    return gelu(x)


@operator("com.microsoft::QuickGelu")
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@operator("com.microsoft::BiasGelu")
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)
