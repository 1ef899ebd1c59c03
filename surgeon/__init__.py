"""surgeon: rewrite a ReLU network into its pullback graph, and export that graph."""

__version__ = "0.1.0"
