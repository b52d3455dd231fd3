"""Launch files for a planned model: scripts for llama.cpp, compose file, Modelfile, unit."""
