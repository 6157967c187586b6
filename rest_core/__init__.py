"""ResT: reshaped token-level policy gradients for tool-use language models (arXiv 2509.21826)."""

__version__ = "0.1.0"
