"""Times and memory of a bundle's artifacts, beside those of baselines: what one would use without them."""

BASELINES = ("forward", "eager", "compile")
"""forward: the plain ONNX export; eager: the same gates by PyTorch's autograd; compile: torch.compile of that."""
