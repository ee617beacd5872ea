"""The judge: an LLM, or rules, that scores correctness and explanation."""
