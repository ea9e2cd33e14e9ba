"""Our rows, prompts, pictures and verdicts inside the evaluation harnesses of others."""
