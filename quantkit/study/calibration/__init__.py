"""The calibration text for importance and costs: sources, domains, chat, rows."""
