"""The text that importance and costs are measured on: sources, domains, chat, rows."""
