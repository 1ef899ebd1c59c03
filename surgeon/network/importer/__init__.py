"""Networks from files: ONNX graphs and saved torch.export programs, as modules that conversion takes like any other.

An ONNX node becomes one call of a function in a table (`registry`), by the name of its operator. Adding an operator is
one function in its family's file, with the operator's inputs and attributes for parameters, and one line in
`tests/onnx_nodes.py`.
"""
