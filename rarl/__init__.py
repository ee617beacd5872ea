"""RARL: reasoning-aware reinforcement learning for medical vision-language models.

Nothing leaves the machine by itself: whoever imports RARL has the usage statistics of Ray, vLLM and
Hugging Face off, and the processes that it starts inherit that. A variable that is set already
stays as it is.
"""

import os

NO_TELEMETRY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",  # MLflow and others
}
for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)
