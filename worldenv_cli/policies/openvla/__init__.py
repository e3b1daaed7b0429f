"""OpenVLA-OFT: what goes in, the model, and its published checkpoints."""
