"""Messages and image → G sampled answers with the sampler's log-probs, by vLLM in Ray actors."""
