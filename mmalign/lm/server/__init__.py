"""The model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, transformers serve and their like."""

from mmalign.lm.server.model import ServerLM

__all__ = ["ServerLM"]
