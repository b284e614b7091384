"""Vision-language models: how each family of them is shown images and clips.

A family is told by the model's config. `placeholders`, which needs no torch, writes into a rendered prompt as many
placeholder tokens as a model wants for each image or clip; `tensors` prepares the pixels; `encode` has the model encode
them, once each, and hands the features and the positions to its forward pass.
"""
