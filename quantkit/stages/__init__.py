"""One file a stage, named as the arrows of the flow; a stage never imports another."""
