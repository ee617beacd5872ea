"""A small world in which everything is real but the size: a Qwen2-VL of 2 M parameters and phantom
radiographs."""
