"""Files that surgeon writes: ONNX and TorchScript graphs, the bundle that holds them, and its manifest."""
