"""The same rows, pixels and verdicts inside other harnesses: lmms-eval, inspect-ai and VLMEvalKit."""
