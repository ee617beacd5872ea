"""The words by which the ingress knows an engine's errors, since exceptions lose their type on the
way."""

DIED = ("EngineCore", "EngineDead", "engine is dead")  # vLLM 0.29
REPLACED = ("is gone", "is being replaced", "was replaced")  # rarl.serving.adapters.Snapshots
