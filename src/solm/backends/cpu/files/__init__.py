"""Where the engine's weights come from: GGUF files, folders of safetensors, loaded models; and how they are repacked."""
