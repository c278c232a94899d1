"""Vision-language-action models that can lose vision tokens inside the forward pass."""
