"""How a planned model is started: with llama.cpp, in a container, by Ollama, as a service."""
