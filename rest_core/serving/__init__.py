"""A trained model in use: what a chat API shows of its responses, and vLLM's parsers for them."""
