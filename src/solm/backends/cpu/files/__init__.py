"""Sources of the engine's weights (GGUF files, folders of safetensors, loaded models), and how they are repacked."""
