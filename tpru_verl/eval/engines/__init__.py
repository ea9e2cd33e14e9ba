"""Engines that answer requests: vLLM in this process, or an endpoint."""
