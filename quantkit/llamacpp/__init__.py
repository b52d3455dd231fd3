"""The only importers of llama_cpp and ggml: kernels, model and context, self-test, child process.

ggml's kernels run in this process; llama.cpp's models run in a child process (`child.py`), where a
crash becomes an error message instead of ending the build.
"""
