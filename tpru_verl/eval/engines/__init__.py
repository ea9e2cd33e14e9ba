"""Engines that answer requests: vLLM in this process (`local`), or a server (`endpoint`)."""
